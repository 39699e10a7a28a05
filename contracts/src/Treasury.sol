// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {Proxy} from "@openzeppelin/contracts/proxy/Proxy.sol";
import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {IERC721Receiver} from "@openzeppelin/contracts/token/ERC721/IERC721Receiver.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {Math} from "@openzeppelin/contracts/utils/math/Math.sol";
import {SafeCast} from "@openzeppelin/contracts/utils/math/SafeCast.sol";
import {IERC3009} from "./interfaces/IERC3009.sol";
import {IIdentityRegistry} from "./interfaces/IIdentityRegistry.sol";
import {ILeaseMarket} from "./interfaces/ILeaseMarket.sol";
import {ISwapRouter02, IWETH} from "./interfaces/IPurchase.sol";
import {ITreasury} from "./interfaces/ITreasury.sol";
import {DayLimit} from "./lib/DayLimit.sol";
import {GasPrice} from "./lib/GasPrice.sol";
import {Quorum} from "./lib/Quorum.sol";
import {TreasuryBase} from "./TreasuryBase.sol";

/// @title Treasury
/// @notice What the agent does. See ITreasury for who may call what: the creator until `activate`, then one operator
/// per epoch, and anyone where only the clock or a signature decides. What others do to the agent is in Oversight.
/// @dev Behind minimal proxies of TreasuryFactory. There is no upgrade, no owner, no arbitrary call and no ERC-1271:
/// a treasury that could sign could be signed away. Every entry has one rhythm: ids, checks, effects, event, transfer;
/// where a lease has to be closed, that call stands last, and `nonReentrant` covers what stands after it.
contract Treasury is TreasuryBase, Proxy {
    using SafeERC20 for IERC20;
    using DayLimit for DayLimit.Ring;
    using Quorum for Quorum.Stewards;

    bytes32 public constant ACK_TYPEHASH = keccak256("Ack(uint64 epoch,uint64 seq,bytes32 digest,bytes32 prev)");
    bytes32 public constant ACT_TYPEHASH =
        keccak256("Act(string action,uint256 lease,uint64 epoch,uint64 nonce,uint64 deadline)");

    /// For one row of a claim: a signature check and five storage slots, ten times over. A payer's contract can't burn
    /// more.
    uint256 private constant CLAIM_GAS = 400_000;

    /// The other half of this contract, fixed for ever.
    address public immutable OVERSIGHT;
    address private immutable FACTORY = msg.sender;

    constructor(address oversight) { OVERSIGHT = oversight; }

    /// Every entry that is not here is in Oversight, or nowhere.
    function _implementation() internal view override returns (address) { return OVERSIGHT; }

    receive() external payable {}

    // ------------------------------------------------------------------ birth

    /// See ITreasury for this and for every entry here and in Oversight.
    function initialize(ITreasury.Birth calldata, address) external payable {
        if (msg.sender != FACTORY) revert ITreasury.NotFactory();
        _fallback();
    }

    function birthRent(uint256 offer, uint32 term, uint128 prepay)
        external nonReentrant only(ITreasury.Stage.Unborn) returns (uint256 lease)
    {
        if (msg.sender != _birth.creator) revert ITreasury.NotCreator();
        if (_active != 0) revert ITreasury.SlotTaken();
        lease = _rent(offer, term, prepay);
        _active = lease;
    }

    function activate(uint256 lease) external nonReentrant only(ITreasury.Stage.Unborn) {
        if (msg.sender != _birth.creator) revert ITreasury.NotCreator();
        if (lease == 0 || lease != _active) revert ITreasury.NotOurLease(lease);
        uint64 until = _bornAt + _birth.timers.activateWithin;
        if (_now() > until) revert ITreasury.TooLate(until);
        address nodeKey = _readyLease(lease).nodeKey;
        _birth.creator = address(0);
        _stage = ITreasury.Stage.Alive;
        _succeed(nodeKey);
        emit ITreasury.Activated(lease, nodeKey);
        _moveIn(nodeKey, type(uint128).max);
    }

    function abortBirth() external nonReentrant only(ITreasury.Stage.Unborn) {
        uint64 until = _bornAt + _birth.timers.activateWithin;
        if (_now() <= until) revert ITreasury.TooEarly(until + 1);
        (address creator, uint256 lease) = (_birth.creator, _active);
        (_stage, _active, _birth.creator) = (ITreasury.Stage.Closed, 0, address(0));
        _close(lease);
        uint256 amount = _balance();
        emit ITreasury.BirthAborted(creator, amount);
        IERC20(_birth.token).safeTransfer(creator, amount);
        _send(creator, address(this).balance, gasleft());
    }

    // ------------------------------------------------------------------ rent

    function rent(uint256 offer, uint32 term, uint128 prepay) external nonReentrant spending returns (uint256 lease) {
        if (_standby != 0) revert ITreasury.SlotTaken();
        _spend(prepay);
        // Active and standby never share an owner: one owner's failure must not take both.
        address host = _active == 0 ? address(0) : _market().leaseOf(_active).provider;
        if (_market().offerOf(offer).provider == host) revert ITreasury.SameOwner();
        lease = _rent(offer, term, prepay);
        _standby = lease;
    }

    function topUp(uint256 lease, uint128 amount) external nonReentrant spending {
        if (lease == 0 || (lease != _active && lease != _standby && lease != _draining)) {
            revert ITreasury.NotOurLease(lease);
        }
        ILeaseMarket.Lease memory l = _market().leaseOf(lease);
        if (!_isOpen(l)) revert ITreasury.NotReady(lease);
        uint256 ahead = uint256(l.escrow) - _market().accrued(lease) + amount;
        if (ahead > _prepayMaxUp(l.priceE6)) revert ITreasury.OverPrepay();
        _spend(amount);
        emit ITreasury.ToppedUp(lease, amount);
        IERC20(_birth.token).forceApprove(_birth.market, amount);
        _market().topUp(lease, amount);
    }

    function release(uint256 lease) external nonReentrant onlyOperator living notRestoring {
        if (lease == 0) revert ITreasury.NotOurLease(lease);
        if (lease == _standby) _clearStandby();
        else if (lease == _draining) _draining = 0;
        else if (lease == _active && _stage == ITreasury.Stage.WindingDown) _active = 0;
        else revert ITreasury.NotOurLease(lease);
        emit ITreasury.Released(lease, _close(lease));
    }

    // ------------------------------------------------------------------ life

    function heartbeat(bytes32 instance, bytes32 receiptsRoot, bool standbyAnswered)
        external nonReentrant onlyOperator living
    {
        _receiptsRoot = receiptsRoot;
        if (_challengedAt != 0) {
            _challengedAt = 0;
            emit ITreasury.ChallengeAnswered();
        }
        emit ITreasury.Heartbeat(_epoch, instance, receiptsRoot);
        // Until it has shown that it restored the memory, a successor neither earns its host rent nor breaks silence.
        if (_restoring) return;
        _heard();
        _vouch(_active);
        _vouch(_draining);
        if (standbyAnswered) _vouch(_standby);
    }

    function commit(uint64 seq, bytes32 digest, bytes32 prev, bytes[] calldata acks)
        external nonReentrant onlyOperator living
    {
        if (seq != _checkpointSeq + 1) revert ITreasury.BadSequence(_checkpointSeq + 1);
        if (prev != _checkpointDigest) revert ITreasury.BadPrevious();
        bytes32 ack = keccak256(abi.encode(ACK_TYPEHASH, _epoch, seq, digest, prev));
        address[] memory who = _stewards.signers(_hashTypedDataV4(ack), acks);
        if (who.length == 0) revert ITreasury.BadQuorum();
        (_checkpointSeq, _checkpointDigest) = (seq, digest);
        emit ITreasury.Committed(seq, digest, prev);
        if (_restoring) {
            _restoring = false;
            emit ITreasury.Restored(_epoch, digest);
        }
        _payDuties(who);
    }

    function announce(uint256 lease) external onlyOperator only(ITreasury.Stage.Alive) notRestoring {
        if (lease == 0 || lease != _standby) revert ITreasury.NotOurLease(lease);
        _readyLease(lease);
        (_announced, _announcedAt) = (lease, _now());
        emit ITreasury.Announced(lease);
    }

    function handover(uint256 lease, uint64 seq, uint64 cut, uint64 validUntil)
        external nonReentrant onlyOperator only(ITreasury.Stage.Alive) notRestoring
    {
        if (lease == 0 || lease != _announced || lease != _standby) revert ITreasury.NotAnnounced();
        uint64 from = _announcedAt + _birth.timers.handoverNotice;
        if (_now() < from) revert ITreasury.TooEarly(from);
        if (_now() > validUntil) revert ITreasury.TooLate(validUntil);
        if (seq != _checkpointSeq) revert ITreasury.BadSequence(_checkpointSeq);
        address nodeKey = _readyLease(lease).nodeKey;
        uint256 drained = _draining;
        (_draining, _active) = (_active, lease);
        _clearStandby();
        _succeed(nodeKey);
        emit ITreasury.HandedOver(_epoch, lease, nodeKey, seq, cut);
        // Planned, so within the day's gas: an operator that hands over to itself all day gets no more than that.
        _moveIn(nodeKey, _gasLeft());
        _close(drained);
    }

    function hibernate(uint64 until) external nonReentrant spending {
        if (until <= _now()) revert ITreasury.TooEarly(_now() + 1);
        if (until > _birth.mandateUntil) revert ITreasury.TooLate(_birth.mandateUntil);
        uint256[3] memory leases = _takeLeases();
        _succeed(address(0));
        _hibernateUntil = until;
        emit ITreasury.Hibernated(_epoch, until);
        _sweepPurse();
        _closeAll(leases);
    }

    /// Also called by every succession, with little gas. It takes nothing from its caller, so anyone may repeat it, and
    /// it isn't closed to reentry: it holds nothing half done.
    function identify() external living {
        if (_active == 0 || _birth.options.identity == address(0)) revert ITreasury.Off();
        IIdentityRegistry registry = IIdentityRegistry(_birth.options.identity);
        string memory uri = string.concat(_market().leaseOf(_active).endpoint, "/.well-known/agent-registration.json");
        if (_isRegistered) registry.setAgentURI(_agentId, uri);
        else (_agentId, _isRegistered) = (registry.register(uri), true);
    }

    /// The registry asks this before it gives us our identity. Tokens of others may lie here; nothing moves them.
    function onERC721Received(address, address, uint256, bytes calldata) external pure returns (bytes4) {
        return IERC721Receiver.onERC721Received.selector;
    }

    function setRelay(address relay) external onlyOperator living notRestoring {
        _relay = relay;
        emit ITreasury.RelaySet(relay);
    }

    // ------------------------------------------------------------------ when the operator is silent

    function challenge() external only(ITreasury.Stage.Alive) {
        if (!_stewards.isSteward[msg.sender]) {
            if (_standby == 0 || msg.sender != _readyLease(_standby).nodeKey) revert ITreasury.NotSteward();
        }
        _challenge(msg.sender);
    }

    function challengeFor(uint64 deadline, bytes calldata signature) external only(ITreasury.Stage.Alive) {
        _challenge(_actor("challenge", deadline, signature));
    }

    function takeover() external nonReentrant only(ITreasury.Stage.Alive) {
        if (_standby == 0 || msg.sender != _readyLease(_standby).nodeKey) revert ITreasury.NotNodeKey();
        _takeover(msg.sender);
    }

    function takeoverFor(uint64 deadline, bytes calldata signature)
        external nonReentrant repaid only(ITreasury.Stage.Alive)
    {
        _takeover(_actor("takeover", deadline, signature));
    }

    // ------------------------------------------------------------------ income

    function settleExact(
        address payer, uint256 value, uint256 validAfter, uint256 validBefore, bytes32 nonce, bytes calldata signature
    ) external nonReentrant living {
        if (value == 0) revert ITreasury.ZeroAmount();
        // What counts is what arrived, so here the transfer stands before its record.
        uint256 before = _balance();
        IERC3009(_birth.token).transferWithAuthorization(
            payer, address(this), value, validAfter, validBefore, nonce, signature
        );
        uint256 arrived = Math.saturatingSub(_balance(), before);
        if (arrived == 0) revert ITreasury.NothingArrived();
        // The token takes each (payer, nonce) once, so this record is written once.
        _payments[payer][nonce].amount = SafeCast.toUint128(arrived);
        emit ITreasury.ExactSettled(payer, nonce, arrived);
    }

    function refundExact(address payer, bytes32 nonce, uint256 amount) external nonReentrant onlyOperator notRestoring {
        if (!_refundsOpen) _notPaused();
        if (_stage != ITreasury.Stage.Alive && _stage != ITreasury.Stage.WindingDown) {
            revert ITreasury.WrongStage(_stage);
        }
        if (amount == 0) revert ITreasury.ZeroAmount();
        Payment storage payment = _payments[payer][nonce];
        uint256 left = payment.amount - payment.refunded;
        if (amount > left) revert ITreasury.OverRecorded(left);
        if (_stage == ITreasury.Stage.Alive) _spend(uint128(amount));
        payment.refunded += uint128(amount);
        emit ITreasury.ExactRefunded(payer, nonce, amount);
        IERC20(_birth.token).safeTransfer(payer, amount);
    }

    function recorded(address payer, bytes32 nonce) external view returns (uint256 amount, uint256 refunded) {
        Payment storage payment = _payments[payer][nonce];
        return (payment.amount, payment.refunded);
    }

    function claimAndSettle(ITreasury.VoucherClaim[] calldata claims)
        external nonReentrant onlyOperator living notRestoring
    {
        if (address(_channels()) == address(0)) revert ITreasury.Off();
        uint256 claimed = 0;
        uint256 before = _balance();
        for (uint256 i = 0; i < claims.length; ++i) {
            if (!_isOurs(claims[i].voucher.channel)) continue;
            ITreasury.VoucherClaim[] memory row = new ITreasury.VoucherClaim[](1);
            row[0] = claims[i];
            try _channels().claim{gas: CLAIM_GAS}(row) {
                ++claimed;
            } catch {}
        }
        try _channels().settle(address(this), _birth.token) {} catch {}
        uint256 arrived = Math.saturatingSub(_balance(), before);
        emit ITreasury.ChannelsClaimed(claimed, claims.length - claimed, arrived);
    }

    function refundChannel(ITreasury.ChannelConfig calldata config, uint128 amount) external nonReentrant living {
        if (address(_channels()) == address(0)) revert ITreasury.Off();
        if (!_isOurs(config)) revert ITreasury.NotOurChannel();
        if (amount == 0) revert ITreasury.ZeroAmount();
        // First the agent claims what it earned, for a third of the window; then anybody may send the rest home.
        bool open = _stage == ITreasury.Stage.WindingDown && _now() >= _windDownAt + _birth.timers.refundWindow / 3;
        if (!open && !_refundsOpen) {
            _onlyOperator();
            _notPaused();
            _notRestoring();
            if (_stage == ITreasury.Stage.Alive) _spend(amount);
        }
        emit ITreasury.ChannelRefunded(config.payer, config.salt, amount);
        _channels().refund(config, amount);
    }

    // ------------------------------------------------------------------ spending

    function spend(ITreasury.Kind kind, address payee, uint128 amount) external nonReentrant spending {
        if (amount == 0) revert ITreasury.ZeroAmount();
        if (kind == ITreasury.Kind.Purse) {
            if (payee == address(0) || payee != _purse) revert ITreasury.NotPayee(payee);
            uint256 room = Math.saturatingSub(_birth.options.purseMax, IERC20(_birth.token).balanceOf(payee));
            if (amount > room) revert ITreasury.OverCeiling(room);
        } else {
            ITreasury.Payee[] storage payees = _birth.options.payees;
            uint256 i = 0;
            while (i < payees.length && (payees[i].payee != payee || payees[i].kind != kind)) ++i;
            if (i == payees.length) revert ITreasury.NotPayee(payee);
            uint256 left = _left(_spentOn[i], payees[i].dayMax);
            if (amount > left) revert ITreasury.OverCeiling(left);
            _spentOn[i].add(_birth.timers.day, amount);
        }
        _spend(amount);
        emit ITreasury.Spent(kind, payee, amount);
        IERC20(_birth.token).safeTransfer(payee, amount);
    }

    function buyGas(uint128 max) external nonReentrant spending returns (uint256 boughtWei) {
        ITreasury.GasMarket storage m = _birth.options.gas;
        if (m.router == address(0)) revert ITreasury.Off();
        (uint256 price, uint256 scale) = GasPrice.read(m);
        uint256 missing = Math.saturatingSub(_birth.policy.gasDayMax, address(this).balance);
        uint256 amount = Math.min(max, GasPrice.costUp(missing, price, scale));
        if (amount == 0) revert ITreasury.ZeroAmount();
        uint256 least = GasPrice.leastUp(amount, price, scale, m.slippageBps);
        _spend(uint128(amount));
        IERC20(_birth.token).forceApprove(m.router, amount);
        uint256 before = IWETH(m.weth).balanceOf(address(this));
        ISwapRouter02(m.router).exactInputSingle(
            ISwapRouter02.ExactInputSingleParams(_birth.token, m.weth, m.poolFee, address(this), amount, least, 0)
        );
        // The router's word is not taken for it, and whatever it left of the allowance ends here.
        boughtWei = Math.saturatingSub(IWETH(m.weth).balanceOf(address(this)), before);
        if (boughtWei < least) revert ITreasury.ShortSwap(boughtWei);
        emit ITreasury.GasBought(amount, boughtWei);
        IERC20(_birth.token).forceApprove(m.router, 0);
        IWETH(m.weth).withdraw(boughtWei);
    }

    function refuel() external nonReentrant living {
        _fuel(_operator, _gasLeft());
        _fuel(_relay, _gasLeft());
    }

    // ------------------------------------------------------------------ small views (the large ones are in Oversight)

    function standing() external view returns (ITreasury.Standing memory s) {
        (s.purse, s.hibernateUntil, s.starveNoticeAt) = (_purse, _hibernateUntil, _starveNoticeAt);
        (s.refundsOpen, s.unsettled) = (_refundsOpen, _unsettled());
        (s.isRegistered, s.agentId) = (_isRegistered, _agentId);
    }

    function domainSeparator() external view returns (bytes32) { return _domainSeparatorV4(); }

    function gasSpentInDay() external view returns (uint128) {
        return _bornAt == 0 ? 0 : _gasSpent.spent(_birth.timers.day);
    }

    function purseSigner() external view returns (address) {
        return _stage == ITreasury.Stage.Alive && !_paused && !_restoring ? _operator : address(0);
    }

    // ------------------------------------------------------------------ inside

    function _vouch(uint256 lease) private { if (lease != 0) _market().vouch(lease); }

    /// The ready standby's node key, if it signed this act. `lastChallengeAt` makes a signature good for one challenge.
    function _actor(string memory action, uint64 deadline, bytes calldata sig) private view returns (address key) {
        if (_now() > deadline) revert ITreasury.TooLate(deadline);
        if (_standby == 0) revert ITreasury.NotNodeKey();
        key = _readyLease(_standby).nodeKey;
        bytes32 act = keccak256(
            abi.encode(ACT_TYPEHASH, keccak256(bytes(action)), _standby, _epoch, lastChallengeAt, deadline)
        );
        (address signer,,) = ECDSA.tryRecoverCalldata(_hashTypedDataV4(act), sig);
        if (signer != key) revert ITreasury.NotNodeKey();
    }

    function _challenge(address by) private {
        uint64 answerTime = _birth.timers.answerTime;
        // `lastChallengeAt` bounds the rate whether or not the last one was answered; one that was not stays open.
        if (_challengedAt != 0 || (lastChallengeAt != 0 && _now() < lastChallengeAt + answerTime)) {
            revert ITreasury.TooEarly(lastChallengeAt + answerTime);
        }
        (_challengedAt, lastChallengeAt, _challengeBlock) = (_now(), _now(), uint64(block.number));
        emit ITreasury.Challenged(by, _now() + answerTime);
    }

    function _takeover(address nodeKey) private {
        if (!_rescued) {
            if (_challengedAt == 0) revert ITreasury.NotChallenged();
            uint64 deadline = _challengedAt + _birth.timers.answerTime;
            bool blocks = block.number >= _challengeBlock + _birth.options.silenceBlocks;
            if (_now() <= deadline || !blocks) revert ITreasury.TooEarly(deadline + 1);
        }
        (uint256 lease, uint256 old, uint256 drained) = (_standby, _active, _draining);
        (_active, _draining) = (lease, 0);
        _clearStandby();
        _succeed(nodeKey);
        _startRestoring();
        emit ITreasury.TakenOver(_epoch, lease, nodeKey, _checkpointDigest);
        _moveIn(nodeKey, type(uint128).max);
        _close(old);
        _close(drained);
    }

    /// Stops at the first steward that its cap or the day limit has no room for: never a reason to refuse a checkpoint.
    function _payDuties(address[] memory who) private {
        uint128 pay = _birth.options.dutyPay;
        if (pay == 0 || _paused || _stage != ITreasury.Stage.Alive) return;
        uint32 day = _birth.timers.day;
        for (uint256 i = 0; i < who.length; ++i) {
            uint256 left = Math.min(_left(_duties, _birth.options.dutyDayMax), _left(_spent, _birth.policy.dayLimit));
            if (pay > left) return;
            _duties.add(day, pay);
            _spent.add(day, pay);
            emit ITreasury.DutyPaid(who[i], pay);
            IERC20(_birth.token).trySafeTransfer(who[i], pay);
        }
    }

    function _isOurs(ITreasury.ChannelConfig calldata config) private view returns (bool) {
        return config.receiver == address(this) && config.token == _birth.token;
    }
}
