// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";
import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";
import {Math} from "@openzeppelin/contracts/utils/math/Math.sol";
import {SafeCast} from "@openzeppelin/contracts/utils/math/SafeCast.sol";
import {DayLimit} from "./lib/DayLimit.sol";
import {Quorum} from "./lib/Quorum.sol";
import {IERC3009} from "./interfaces/IERC3009.sol";
import {ILeaseMarket} from "./interfaces/ILeaseMarket.sol";
import {ITreasury} from "./interfaces/ITreasury.sol";

/// @title Treasury
/// @notice See ITreasury for who may call what. In short: the creator until `activate`, then one operator per epoch,
/// a quorum of stewards above it, and anyone where only the clock decides.
/// @dev Behind minimal proxies of TreasuryFactory. There is no upgrade, no owner, no arbitrary call and no ERC-1271:
/// a treasury that could sign could be signed away. Every entry has one rhythm: ids, checks, effects, event, transfer;
/// where a lease has to be closed, that call stands last, and `nonReentrant` covers what stands after it.
contract Treasury is ITreasury, EIP712, ReentrancyGuardTransient {
    using SafeERC20 for IERC20;
    using DayLimit for DayLimit.Ring;
    using Quorum for Quorum.Stewards;

    bytes32 public constant ORDER_TYPEHASH =
        keccak256("Order(string action,uint256 argument,uint256 nonce,uint64 deadline)");
    bytes32 public constant ACK_TYPEHASH = keccak256("Ack(uint64 epoch,uint64 seq,bytes32 digest,bytes32 prev)");

    /// Gas for a plain transfer of ETH, enough for a smart account that logs. What fails is left out, never fatal.
    uint256 private constant SEND_GAS = 10_000;
    /// Shortest timer, in seconds: three blocks of one second.
    uint32 private constant TIMER_MIN = 3;

    struct Payment {
        uint128 amount;
        uint128 refunded;
    }

    address private immutable FACTORY;

    Birth private _birth;
    Quorum.Stewards private _stewards;
    uint64 private _bornAt;

    Stage private _stage;
    bool private _paused;
    bool private _restoring;
    bool private _rescued; // the standby lease came by `rescue`: its node key needs no challenge
    uint64 private _epoch;
    address private _operator;
    address private _relay;
    uint256 private _active; // before `activate`: the birth lease
    uint256 private _standby;
    uint256 private _draining;
    uint256 private _announced;
    uint64 private _announcedAt;
    uint64 private _checkpointSeq;
    uint64 private _lastHeartbeat;
    uint64 private _challengedAt;
    uint64 private _lastChallengeAt;
    uint64 private _takenOverAt;
    uint64 private _windDownAt;
    bytes32 private _checkpointDigest;
    bytes32 private _receiptsRoot;
    uint256 private _orderNonce;

    DayLimit.Ring private _spent; // micro-USDC
    DayLimit.Ring private _gasSpent; // wei
    mapping(bytes32 payerAndNonce => Payment) private _payments;
    mapping(address provider => bool) public isBarred;
    mapping(address nodeKey => bool) private _wasOperator;

    // ------------------------------------------------------------------ who and when

    modifier onlyOperator() {
        _onlyOperator();
        _;
    }

    modifier only(Stage wanted) {
        _only(wanted);
        _;
    }

    /// Alive, Stopped or WindingDown: what goes on until the end.
    modifier living() {
        _living();
        _;
    }

    modifier notPaused() {
        if (_paused) revert IsPaused();
        _;
    }

    modifier notRestoring() {
        if (_restoring) revert IsRestoring();
        _;
    }

    /// The implementation behind the proxies is born dead.
    constructor() EIP712("Vivarium Treasury", "1") {
        FACTORY = msg.sender;
        _stage = Stage.Closed;
    }

    // ------------------------------------------------------------------ birth

    /// @inheritdoc ITreasury
    function initialize(Birth calldata birth) external payable {
        if (msg.sender != FACTORY) revert NotFactory();
        if (_bornAt != 0 || _stage != Stage.Unborn) revert AlreadyBorn();
        if (birth.creator == address(0) || birth.beneficiary == address(0) || birth.market == address(0)) {
            revert ZeroAddress();
        }
        if (birth.token != ILeaseMarket(birth.market).token()) revert WrongToken();
        if (birth.mandateUntil <= _now()) revert TooLate(birth.mandateUntil);
        _checkTimers(birth.timers, ILeaseMarket(birth.market));
        _checkPolicy(birth.policy, birth.timers.day, ILeaseMarket(birth.market));
        _setStewards(birth.stewards, birth.threshold, birth.creator);
        _birth = birth;
        _bornAt = _now();
        emit Born(birth.creator, birth.manifest, birth.codeHash, birth.beneficiary, birth.mandateUntil);
    }

    /// @inheritdoc ITreasury
    function birthRent(uint256 offer, uint32 term, uint128 prepay)
        external
        nonReentrant
        only(Stage.Unborn)
        returns (uint256 lease)
    {
        _onlyCreator();
        if (_active != 0) revert SlotTaken();
        lease = _rent(offer, term, prepay);
        _active = lease;
    }

    /// @inheritdoc ITreasury
    function activate(uint256 lease) external nonReentrant only(Stage.Unborn) {
        _onlyCreator();
        if (lease == 0 || lease != _active) revert NotOurLease(lease);
        uint64 until = _bornAt + _birth.timers.activateWithin;
        if (_now() > until) revert TooLate(until);
        address nodeKey = _readyLease(lease).nodeKey;
        _birth.creator = address(0);
        _stage = Stage.Alive;
        _succeed(nodeKey);
        emit Activated(lease, nodeKey);
        _fuel(nodeKey, type(uint128).max);
    }

    /// @inheritdoc ITreasury
    function abortBirth() external nonReentrant only(Stage.Unborn) {
        uint64 until = _bornAt + _birth.timers.activateWithin;
        if (_now() <= until) revert TooEarly(until + 1);
        address creator = _birth.creator;
        uint256 lease = _active;
        (_stage, _active, _birth.creator) = (Stage.Closed, 0, address(0));
        _close(lease);
        uint256 amount = _balance();
        emit BirthAborted(creator, amount);
        IERC20(_birth.token).safeTransfer(creator, amount);
        _send(creator, address(this).balance, gasleft());
    }

    // ------------------------------------------------------------------ rent

    /// @inheritdoc ITreasury
    function rent(uint256 offer, uint32 term, uint128 prepay)
        external
        nonReentrant
        onlyOperator
        only(Stage.Alive)
        notPaused
        notRestoring
        returns (uint256 lease)
    {
        if (_standby != 0) revert SlotTaken();
        _spend(prepay);
        lease = _rent(offer, term, prepay);
        _standby = lease;
    }

    /// @inheritdoc ITreasury
    function topUp(uint256 lease, uint128 amount)
        external
        nonReentrant
        onlyOperator
        only(Stage.Alive)
        notPaused
        notRestoring
    {
        if (lease == 0 || (lease != _active && lease != _standby && lease != _draining)) revert NotOurLease(lease);
        ILeaseMarket.Lease memory l = _market().leaseOf(lease);
        if (!_isOpen(l)) revert NotReady(lease);
        uint256 ahead = uint256(l.escrow) - _market().accrued(lease) + amount;
        if (ahead > _prepayMaxUp(l.priceE6)) revert OverPrepay();
        _spend(amount);
        emit ToppedUp(lease, amount);
        IERC20(_birth.token).forceApprove(_birth.market, amount);
        _market().topUp(lease, amount);
    }

    /// @inheritdoc ITreasury
    function release(uint256 lease) external nonReentrant onlyOperator living notRestoring {
        if (lease == 0) revert NotOurLease(lease);
        if (lease == _standby) _clearStandby();
        else if (lease == _draining) _draining = 0;
        else if (lease == _active && _stage == Stage.WindingDown) _active = 0;
        else revert NotOurLease(lease);
        emit Released(lease, _close(lease));
    }

    // ------------------------------------------------------------------ life

    /// @inheritdoc ITreasury
    function heartbeat(bytes32 instance, bytes32 receiptsRoot, bool standbyAnswered)
        external
        nonReentrant
        onlyOperator
        living
    {
        _receiptsRoot = receiptsRoot;
        if (_challengedAt != 0) {
            _challengedAt = 0;
            emit ChallengeAnswered();
        }
        emit Heartbeat(_epoch, instance, receiptsRoot);
        // Until it has shown that it restored the memory, a successor neither earns its host rent nor breaks silence.
        if (_restoring) return;
        _lastHeartbeat = _now();
        _vouch(_active);
        _vouch(_draining);
        if (standbyAnswered) _vouch(_standby);
    }

    /// @inheritdoc ITreasury
    function commit(uint64 seq, bytes32 digest, bytes32 prev, bytes[] calldata acks) external onlyOperator living {
        if (seq != _checkpointSeq + 1) revert BadSequence(_checkpointSeq + 1);
        if (prev != _checkpointDigest) revert BadPrevious();
        bytes32 ack = keccak256(abi.encode(ACK_TYPEHASH, _epoch, seq, digest, prev));
        if (!_stewards.holds(_hashTypedDataV4(ack), acks)) revert BadQuorum();
        (_checkpointSeq, _checkpointDigest) = (seq, digest);
        emit Committed(seq, digest, prev);
        if (_restoring) {
            _restoring = false;
            emit Restored(_epoch, digest);
        }
    }

    /// @inheritdoc ITreasury
    function announce(uint256 lease) external onlyOperator only(Stage.Alive) notRestoring {
        if (lease == 0 || lease != _standby) revert NotOurLease(lease);
        _readyLease(lease);
        (_announced, _announcedAt) = (lease, _now());
        emit Announced(lease);
    }

    /// @inheritdoc ITreasury
    function handover(uint256 lease, uint64 seq, uint64 cut, uint64 validUntil)
        external
        nonReentrant
        onlyOperator
        only(Stage.Alive)
        notRestoring
    {
        if (lease == 0 || lease != _announced || lease != _standby) revert NotAnnounced();
        uint64 from = _announcedAt + _birth.timers.handoverNotice;
        if (_now() < from) revert TooEarly(from);
        if (_now() > validUntil) revert TooLate(validUntil);
        if (seq != _checkpointSeq) revert BadSequence(_checkpointSeq);
        address nodeKey = _readyLease(lease).nodeKey;
        uint256 drained = _draining;
        (_draining, _active) = (_active, lease);
        _clearStandby();
        _succeed(nodeKey);
        emit HandedOver(_epoch, lease, nodeKey, seq, cut);
        // Planned, so within the day's gas: an operator that hands over to itself all day gets no more than that.
        _fuel(nodeKey, _gasLeft());
        _close(drained);
    }

    /// @inheritdoc ITreasury
    function setRelay(address relay) external onlyOperator living notRestoring {
        _relay = relay;
        emit RelaySet(relay);
    }

    // ------------------------------------------------------------------ when the operator is silent

    /// @inheritdoc ITreasury
    function challenge() external only(Stage.Alive) {
        if (!_stewards.isSteward[msg.sender]) {
            if (_standby == 0 || msg.sender != _readyLease(_standby).nodeKey) revert NotSteward();
        }
        uint64 answerTime = _birth.timers.answerTime;
        // `_lastChallengeAt` bounds the rate whether or not the last one was answered; one that was not stays open.
        if (_challengedAt != 0 || (_lastChallengeAt != 0 && _now() < _lastChallengeAt + answerTime)) {
            revert TooEarly(_lastChallengeAt + answerTime);
        }
        (_challengedAt, _lastChallengeAt) = (_now(), _now());
        emit Challenged(msg.sender, _now() + answerTime);
    }

    /// @inheritdoc ITreasury
    function takeover() external nonReentrant only(Stage.Alive) {
        uint256 lease = _standby;
        if (lease == 0) revert NotNodeKey();
        if (msg.sender != _readyLease(lease).nodeKey) revert NotNodeKey();
        if (!_rescued) {
            if (_challengedAt == 0) revert NotChallenged();
            uint64 deadline = _challengedAt + _birth.timers.answerTime;
            if (_now() <= deadline) revert TooEarly(deadline + 1);
        }
        (uint256 old, uint256 drained) = (_active, _draining);
        (_active, _draining) = (lease, 0);
        _clearStandby();
        _succeed(msg.sender);
        _startRestoring();
        emit TakenOver(_epoch, lease, msg.sender, _checkpointDigest);
        _fuel(msg.sender, type(uint128).max);
        _close(old);
        _close(drained);
    }

    // ------------------------------------------------------------------ income

    /// @inheritdoc ITreasury
    function settleExact(
        address payer, uint256 value, uint256 validAfter, uint256 validBefore, bytes32 nonce, bytes calldata signature
    ) external nonReentrant living {
        if (value == 0) revert ZeroAmount();
        // The token takes each (payer, nonce) once, so this record is written once.
        _payments[_paymentId(payer, nonce)].amount = SafeCast.toUint128(value);
        emit ExactSettled(payer, nonce, value);
        uint256 before = _balance();
        IERC3009(_birth.token).transferWithAuthorization(
            payer, address(this), value, validAfter, validBefore, nonce, signature
        );
        if (_balance() < before + value) revert ShortReceipt();
    }

    /// @inheritdoc ITreasury
    function refundExact(address payer, bytes32 nonce, uint256 amount)
        external
        nonReentrant
        onlyOperator
        notPaused
        notRestoring
    {
        if (_stage != Stage.Alive && _stage != Stage.WindingDown) revert WrongStage(_stage);
        if (amount == 0) revert ZeroAmount();
        Payment storage payment = _payments[_paymentId(payer, nonce)];
        uint256 left = payment.amount - payment.refunded;
        if (amount > left) revert OverRecorded(left);
        if (_stage == Stage.Alive) _spend(uint128(amount));
        payment.refunded += uint128(amount);
        emit ExactRefunded(payer, nonce, amount);
        IERC20(_birth.token).safeTransfer(payer, amount);
    }

    /// @inheritdoc ITreasury
    function recorded(address payer, bytes32 nonce) external view returns (uint256 amount, uint256 refunded) {
        Payment storage payment = _payments[_paymentId(payer, nonce)];
        return (payment.amount, payment.refunded);
    }

    // ------------------------------------------------------------------ gas

    /// @inheritdoc ITreasury
    function refuel() external nonReentrant living {
        _fuel(_operator, _gasLeft());
        _fuel(_relay, _gasLeft());
    }

    receive() external payable {}

    // ------------------------------------------------------------------ stewards

    /// @inheritdoc ITreasury
    function pause(Approval calldata a) external living notPaused {
        _approved("pause", 0, a);
        _paused = true;
        emit Paused();
    }

    /// @inheritdoc ITreasury
    function resume(Approval calldata a) external living {
        if (!_paused) revert NotPaused();
        _approved("resume", 0, a);
        _paused = false;
        emit Resumed();
    }

    /// @inheritdoc ITreasury
    function stop(Approval calldata a) external only(Stage.Alive) {
        _approved("stop", 0, a);
        _stage = Stage.Stopped;
        emit Stopped();
    }

    /// @inheritdoc ITreasury
    function evict(uint256 keep, Approval calldata a) external nonReentrant living {
        _approved("evict", keep, a);
        if (keep != 0 && keep != _active && keep != _standby) revert NotOurLease(keep);
        ILeaseMarket.Lease memory kept;
        if (keep != 0) kept = _readyLease(keep);
        uint256[3] memory leases = [_active, _standby, _draining];
        // The same host with the same key has its memory; anybody else must show that it restored it.
        bool same = keep != 0 && kept.nodeKey == _operator;
        (_active, _draining) = (keep, 0);
        _clearStandby();
        bool wasRestoring = _restoring;
        if (same) _wasOperator[kept.nodeKey] = false;
        _succeed(kept.nodeKey);
        if (keep != 0 && (!same || wasRestoring)) _startRestoring();
        emit Evicted(_epoch, keep, kept.nodeKey);
        _fuel(kept.nodeKey, type(uint128).max);
        for (uint256 i = 0; i < 3; ++i) {
            if (leases[i] != 0 && leases[i] != keep) _bar(_market().leaseOf(leases[i]).provider, kept.provider);
            if (leases[i] != keep) _close(leases[i]);
        }
    }

    /// @inheritdoc ITreasury
    function rescue(uint256 offer, uint32 term, uint128 prepay, Approval calldata a)
        external
        nonReentrant
        only(Stage.Alive)
    {
        uint64 from = _lastHeartbeat + _birth.timers.silence;
        bool stuck = _restoring && _now() > _takenOverAt + _birth.timers.restoreTimeout;
        if (_operator != address(0) && !stuck && _now() <= from) revert TooEarly(from + 1);
        _approved("rescue", offer, a);
        uint256 replaced = _standby;
        _clearStandby();
        _spend(prepay);
        // First, because the offer may have room for one lease only, and its refund may be needed for the prepayment.
        _close(replaced);
        uint256 lease = _rent(offer, term, prepay);
        (_standby, _rescued) = (lease, true);
        emit Rescued(lease, offer);
    }

    /// @inheritdoc ITreasury
    function extendMandate(uint64 until, Approval calldata a) external only(Stage.Alive) {
        if (until <= _birth.mandateUntil) revert TooEarly(_birth.mandateUntil + 1);
        _approved("extendMandate", until, a);
        _birth.mandateUntil = until;
        emit MandateExtended(until);
    }

    /// @inheritdoc ITreasury
    function clearBar(address provider, Approval calldata a) external living {
        _approved("clearBar", uint160(provider), a);
        isBarred[provider] = false;
        emit BarCleared(provider);
    }

    // ------------------------------------------------------------------ the end

    /// @inheritdoc ITreasury
    function windDown() external nonReentrant {
        if (_stage == Stage.Alive) {
            if (_now() <= _birth.mandateUntil && !_isStarved()) revert NotStarved();
        } else if (_stage != Stage.Stopped) {
            revert WrongStage(_stage);
        }
        uint256 standby = _standby;
        (_stage, _windDownAt, _challengedAt) = (Stage.WindingDown, _now(), 0);
        _clearStandby();
        emit WindDownBegun(_now() + _birth.timers.refundWindow);
        _close(standby);
    }

    /// @inheritdoc ITreasury
    function close() external nonReentrant only(Stage.WindingDown) {
        uint64 from = _windDownAt + _birth.timers.refundWindow;
        if (_now() < from) revert TooEarly(from);
        (_stage, _operator, _relay) = (Stage.Closed, address(0), address(0));
        _closeAll();
        emit Closed(_balance());
    }

    /// @inheritdoc ITreasury
    function sweep() external nonReentrant only(Stage.Closed) {
        _closeAll();
        if (_market().owedTo(address(this)) != 0) _market().collect(address(this));
    }

    /// @inheritdoc ITreasury
    function withdraw() external nonReentrant only(Stage.Closed) {
        if (msg.sender != _birth.beneficiary) revert NotBeneficiary();
        uint256 amount = _balance();
        emit Withdrawn(msg.sender, amount);
        IERC20(_birth.token).safeTransfer(msg.sender, amount);
        _send(msg.sender, address(this).balance, gasleft());
    }

    // ------------------------------------------------------------------ views

    /// @inheritdoc ITreasury
    function state() external view returns (State memory s) {
        (s.stage, s.paused, s.restoring) = (_stage, _paused, _restoring);
        (s.operator, s.relay, s.epoch) = (_operator, _relay, _epoch);
        (s.activeLease, s.standbyLease, s.drainingLease) = (_active, _standby, _draining);
        (s.announcedLease, s.announcedAt) = (_announced, _announcedAt);
        (s.checkpointSeq, s.checkpointDigest) = (_checkpointSeq, _checkpointDigest);
        (s.lastHeartbeat, s.challengedAt, s.takenOverAt) = (_lastHeartbeat, _challengedAt, _takenOverAt);
        (s.windDownAt, s.mandateUntil, s.orderNonce) = (_windDownAt, _birth.mandateUntil, _orderNonce);
        (s.codeHash, s.manifest, s.receiptsRoot) = (_birth.codeHash, _birth.manifest, _receiptsRoot);
        if (_bornAt == 0) return s;
        s.spentInDay = _spent.spent(_birth.timers.day);
        (s.balance, s.escrow) = (_balance(), _escrow());
    }

    /// @inheritdoc ITreasury
    function birthOf() external view returns (Birth memory) {
        return _birth;
    }

    /// @inheritdoc ITreasury
    function domainSeparator() external view returns (bytes32) {
        return _domainSeparatorV4();
    }

    /// @inheritdoc ITreasury
    function gasSpentInDay() external view returns (uint128) {
        return _bornAt == 0 ? 0 : _gasSpent.spent(_birth.timers.day);
    }

    // ------------------------------------------------------------------ inside: who and when

    function _onlyOperator() private view {
        if (msg.sender != _operator) revert NotOperator();
    }

    function _only(Stage wanted) private view {
        if (_stage != wanted) revert WrongStage(_stage);
    }

    function _living() private view {
        if (_stage == Stage.Unborn || _stage == Stage.Closed) revert WrongStage(_stage);
    }

    // ------------------------------------------------------------------ inside: birth

    function _onlyCreator() private view {
        if (msg.sender != _birth.creator) revert NotCreator();
    }

    function _checkTimers(Timers calldata t, ILeaseMarket market) private view {
        _require(
            t.day >= TIMER_MIN && t.heartbeatEvery >= TIMER_MIN && t.fence >= TIMER_MIN && t.answerTime >= TIMER_MIN
                && t.handoverNotice >= TIMER_MIN && t.restoreTimeout >= TIMER_MIN && t.silence >= TIMER_MIN
                && t.starveTimeout >= TIMER_MIN && t.activateWithin >= TIMER_MIN && t.refundWindow >= TIMER_MIN,
            "timers >= 3 s"
        );
        _require(t.heartbeatEvery < t.fence, "heartbeatEvery < fence");
        _require(t.fence < t.answerTime, "fence < answerTime");
        _require(
            uint256(t.answerTime) + t.restoreTimeout <= market.grace(), "answerTime + restoreTimeout <= market grace"
        );
        _require(market.grace() <= market.dropAfter(), "market grace <= dropAfter");
    }

    function _require(bool holds, string memory pair) private pure {
        if (!holds) revert BadTimers(pair);
    }

    function _checkPolicy(Policy calldata p, uint32 day, ILeaseMarket market) private view {
        if (p.termMax == 0 || p.termMax > 30 * uint256(day) || p.termMax > market.MAX_TERM()) revert OverTerm();
        if (p.dayLimit == 0 || p.priceE6Max == 0 || p.prepayMax == 0) revert BadPolicy();
    }

    function _setStewards(address[] calldata stewards, uint8 threshold, address creator) private {
        if (threshold == 0 || threshold > stewards.length || (stewards.length > 1 && threshold == 1)) revert BadQuorum();
        address last = address(0);
        for (uint256 i = 0; i < stewards.length; ++i) {
            if (stewards[i] <= last || stewards[i] == creator) revert BadStewards();
            last = stewards[i];
            _stewards.isSteward[last] = true;
        }
        _stewards.threshold = threshold;
    }

    // ------------------------------------------------------------------ inside: leases

    /// Everything that policy asks of a new lease, but the day limit.
    function _rent(uint256 offer, uint32 term, uint128 prepay) private returns (uint256 lease) {
        ILeaseMarket.Offer memory o = _market().offerOf(offer);
        if (isBarred[o.provider]) revert Barred(o.provider);
        if (o.priceE6 > _birth.policy.priceE6Max) revert OverPriceCap();
        if (term > _birth.policy.termMax) revert OverTerm();
        if (prepay > _prepayMaxUp(o.priceE6)) revert OverPrepay();
        // Active and standby never share an owner: one owner's failure must not take both.
        if (_active != 0 && _market().leaseOf(_active).provider == o.provider) revert SameOwner();
        IERC20(_birth.token).forceApprove(_birth.market, prepay);
        lease = _market().rent(offer, term, _birth.codeHash, prepay);
        emit Rented(lease, offer, term, prepay);
    }

    /// Closes a lease in whatever state it is and never fails for one that is closed already. Returns what came back.
    function _close(uint256 lease) private returns (uint128 refund) {
        if (lease == 0) return 0;
        ILeaseMarket.Lease memory l = _market().leaseOf(lease);
        if (!_isOpen(l)) return 0;
        if (l.state == ILeaseMarket.LeaseState.Requested && _now() > l.readyBy) {
            _market().reclaim(lease);
            return l.escrow;
        }
        return _market().close(lease);
    }

    function _closeAll() private {
        uint256[3] memory leases = [_active, _standby, _draining];
        (_active, _draining) = (0, 0);
        _clearStandby();
        for (uint256 i = 0; i < 3; ++i) {
            _close(leases[i]);
        }
    }

    function _clearStandby() private {
        (_standby, _rescued, _announced, _announcedAt) = (0, false, 0, 0);
    }

    /// A lease that ended must not stop a heartbeat.
    function _vouch(uint256 lease) private {
        if (lease == 0) return;
        ILeaseMarket.Lease memory l = _market().leaseOf(lease);
        if (l.state == ILeaseMarket.LeaseState.Ready && _now() <= l.end) _market().vouch(lease);
    }

    function _readyLease(uint256 lease) private view returns (ILeaseMarket.Lease memory l) {
        l = _market().leaseOf(lease);
        if (l.state != ILeaseMarket.LeaseState.Ready || _now() >= l.end) revert NotReady(lease);
        if (l.codeHash != _birth.codeHash) revert WrongCode();
    }

    function _bar(address provider, address spared) private {
        if (provider == spared || isBarred[provider]) return;
        isBarred[provider] = true;
        emit ProviderBarred(provider);
    }

    function _isOpen(ILeaseMarket.Lease memory l) private pure returns (bool) {
        return l.state == ILeaseMarket.LeaseState.Requested || l.state == ILeaseMarket.LeaseState.Ready;
    }

    function _escrow() private view returns (uint256 left) {
        uint256[3] memory leases = [_active, _standby, _draining];
        for (uint256 i = 0; i < 3; ++i) {
            if (leases[i] == 0) continue;
            ILeaseMarket.Lease memory l = _market().leaseOf(leases[i]);
            if (_isOpen(l)) left += l.escrow - _market().accrued(leases[i]);
        }
    }

    function _prepayMaxUp(uint64 priceE6) private view returns (uint256) {
        return Math.ceilDiv(uint256(priceE6) * _birth.policy.prepayMax, 1e6);
    }

    // ------------------------------------------------------------------ inside: succession

    /// A new epoch with a new operator (0: nobody). A key serves one epoch only, so what it signed and sent in an old
    /// one can't come back to life.
    function _succeed(address operator) private {
        if (operator != address(0)) {
            if (_wasOperator[operator]) revert KeyUsed(operator);
            _wasOperator[operator] = true;
        }
        ++_epoch;
        if (_relay != address(0)) emit RelaySet(address(0));
        (_operator, _relay, _restoring) = (operator, address(0), false);
        (_lastHeartbeat, _challengedAt) = (_now(), 0);
    }

    function _startRestoring() private {
        (_restoring, _takenOverAt) = (true, _now());
    }

    /// Uses up the order's nonce, or reverts.
    function _approved(string memory action, uint256 argument, Approval calldata a) private {
        if (_now() > a.deadline) revert TooLate(a.deadline);
        bytes32 order = keccak256(
            abi.encode(ORDER_TYPEHASH, keccak256(bytes(action)), argument, _orderNonce, a.deadline)
        );
        if (!_stewards.holds(_hashTypedDataV4(order), a.signatures)) revert BadQuorum();
        ++_orderNonce;
    }

    // ------------------------------------------------------------------ inside: money

    /// Counts a gross commitment. What comes back later never makes room again.
    function _spend(uint128 amount) private {
        uint256 left = _left(_spent, _birth.policy.dayLimit);
        if (amount > left) revert OverDayLimit(left);
        _spent.add(_birth.timers.day, amount);
    }

    function _gasLeft() private view returns (uint256) {
        return _left(_gasSpent, _birth.policy.gasDayMax);
    }

    function _left(DayLimit.Ring storage ring, uint128 limit) private view returns (uint256) {
        return Math.saturatingSub(limit, ring.spent(_birth.timers.day));
    }

    /// Tops `to` up to the gas target, with at most `max` wei. Pays what there is and never reverts.
    function _fuel(address to, uint256 max) private {
        if (to == address(0)) return;
        uint256 amount = Math.saturatingSub(_birth.policy.gasTarget, to.balance);
        amount = Math.min(Math.min(amount, max), address(this).balance);
        if (amount == 0 || !_send(to, amount, SEND_GAS)) return;
        _gasSpent.add(_birth.timers.day, uint128(amount));
        emit Refueled(to, amount);
    }

    function _send(address to, uint256 amount, uint256 gas_) private returns (bool sent) {
        assembly ("memory-safe") {
            // No return data is copied: the recipient can't make us pay for it.
            sent := call(gas_, to, amount, 0, 0, 0, 0)
        }
    }

    function _isStarved() private view returns (bool) {
        if (_balance() + _escrow() >= _birth.policy.starveFloor) return false;
        if (_now() > _lastHeartbeat + _birth.timers.starveTimeout) return true;
        // The operator knows that nothing more will come; unless the stewards hold it, it need not wait to be missed.
        return msg.sender == _operator && !_paused && !_restoring;
    }

    function _paymentId(address payer, bytes32 nonce) private pure returns (bytes32) {
        return keccak256(abi.encode(payer, nonce));
    }

    function _balance() private view returns (uint256) {
        return IERC20(_birth.token).balanceOf(address(this));
    }

    function _market() private view returns (ILeaseMarket) {
        return ILeaseMarket(_birth.market);
    }

    function _now() private view returns (uint64) {
        return uint64(block.timestamp);
    }
}
