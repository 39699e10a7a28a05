// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";
import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";
import {Math} from "@openzeppelin/contracts/utils/math/Math.sol";
import {IBatchSettlement} from "./interfaces/IBatchSettlement.sol";
import {ILeaseMarket} from "./interfaces/ILeaseMarket.sol";
import {IPurse} from "./interfaces/IPurse.sol";
import {ITreasury} from "./interfaces/ITreasury.sol";
import {DayLimit} from "./lib/DayLimit.sol";
import {Quorum} from "./lib/Quorum.sol";

/// @title TreasuryBase
/// @notice What both halves of a treasury share: its storage, who may act, and how leases, succession and money move.
/// @dev `Treasury` holds what the agent does, `Oversight` what others do to it. The second runs by delegatecall in the
/// first one's storage, so every variable lies here, and here alone.
abstract contract TreasuryBase is EIP712, ReentrancyGuardTransient {
    using SafeERC20 for IERC20;
    using DayLimit for DayLimit.Ring;

    /// Gas for a plain transfer of ETH, enough for a smart account that logs. What fails is left out, never fatal.
    uint256 private constant SEND_GAS = 10_000;
    /// What a relayer pays that can't be measured inside the call: the transaction, its data, the repayment.
    uint256 private constant RELAY_GAS = 60_000;
    /// What the identity registry may burn: about twice what registering costs, 190,000.
    uint256 private constant IDENTITY_GAS = 400_000;

    struct Payment {
        uint128 amount;
        uint128 refunded;
    }

    ITreasury.Birth internal _birth;
    Quorum.Stewards internal _stewards;
    Quorum.Stewards internal _rescuers; // daemons' keys, for `rescue` alone
    address internal _bornOf; // the creator, remembered for one thing: that it never becomes a steward
    uint64 internal _bornAt;

    ITreasury.Stage internal _stage;
    bool internal _paused;
    bool internal _restoring;
    bool internal _rescued; // the standby lease came by `rescue`: its node key needs no challenge
    bool internal _refundsOpen;
    bool internal _isRegistered;
    uint64 internal _epoch;
    address internal _operator;
    address internal _relay;
    address internal _purse;
    uint256 internal _active; // before `activate`: the birth lease
    uint256 internal _standby;
    uint256 internal _draining;
    uint256 internal _announced;
    uint64 internal _announcedAt;
    uint64 internal _checkpointSeq;
    uint64 internal _lastHeartbeat;
    uint64 internal _heartbeatBlock;
    uint64 internal _challengedAt;
    uint64 internal _challengeBlock;
    uint64 public lastChallengeAt;
    uint64 internal _takenOverAt;
    uint64 internal _windDownAt;
    uint64 internal _hibernateUntil;
    uint64 internal _starveNoticeAt;
    bytes32 internal _checkpointDigest;
    bytes32 internal _receiptsRoot;
    uint256 internal _agentId; // in the identity registry; means nothing until `_isRegistered`
    uint256 internal _orderNonce;
    uint256 internal _round; // what was queued in an earlier one is void

    DayLimit.Ring internal _spent; // micro-USDC
    DayLimit.Ring internal _gasSpent; // wei
    DayLimit.Ring internal _duties; // micro-USDC, in `_spent` too
    mapping(uint256 payee => DayLimit.Ring) internal _spentOn; // by index in birth's list
    mapping(address payer => mapping(bytes32 nonce => Payment)) internal _payments;
    mapping(bytes32 roundActionArgument => uint64 from) internal _queue;
    mapping(address provider => bool) public isBarred;
    mapping(address nodeKey => bool) internal _wasOperator;

    // ------------------------------------------------------------------ who and when

    modifier onlyOperator() { _onlyOperator(); _; }

    modifier only(ITreasury.Stage wanted) { _only(wanted); _; }

    /// Alive, Stopped or WindingDown: what goes on until the end.
    modifier living() { _living(); _; }

    modifier notPaused() { _notPaused(); _; }

    modifier notRestoring() { _notRestoring(); _; }

    /// Where the operator commits money: its own, alive, not paused, not restoring.
    modifier spending() {
        _onlyOperator();
        _only(ITreasury.Stage.Alive);
        _notPaused();
        _notRestoring();
        _;
    }

    /// Whoever sends this for others gets its gas back, up to birth's relayMax.
    modifier repaid() {
        uint256 gas = gasleft();
        _;
        _repay(gas);
    }

    /// Both implementations are born dead: only proxies of the factory live.
    constructor() EIP712("Vivarium Treasury", "1") { _stage = ITreasury.Stage.Closed; }

    function _onlyOperator() internal view { if (msg.sender != _operator) revert ITreasury.NotOperator(); }

    function _only(ITreasury.Stage wanted) internal view { if (_stage != wanted) revert ITreasury.WrongStage(_stage); }

    function _living() internal view {
        if (_stage == ITreasury.Stage.Unborn || _stage == ITreasury.Stage.Closed) revert ITreasury.WrongStage(_stage);
    }

    function _notPaused() internal view { if (_paused) revert ITreasury.IsPaused(); }

    function _notRestoring() internal view { if (_restoring) revert ITreasury.IsRestoring(); }

    /// Seconds alone would accuse everybody after a chain stood still, so blocks count too.
    function _silentFor(uint32 time) internal view returns (bool) {
        return _now() > _lastHeartbeat + time && block.number >= _heartbeatBlock + _birth.options.silenceBlocks;
    }

    // ------------------------------------------------------------------ leases

    /// Everything that policy asks of a new lease, but the day limit.
    function _rent(uint256 offer, uint32 term, uint128 prepay) internal returns (uint256 lease) {
        ILeaseMarket.Offer memory o = _market().offerOf(offer);
        if (isBarred[o.provider]) revert ITreasury.Barred(o.provider);
        if (_birth.codeHash == 0) revert ITreasury.WrongCode();
        if (o.priceE6 > _birth.policy.priceE6Max) revert ITreasury.OverPriceCap();
        if (term > _birth.policy.termMax) revert ITreasury.OverTerm();
        if (prepay > _prepayMaxUp(o.priceE6)) revert ITreasury.OverPrepay();
        IERC20(_birth.token).forceApprove(_birth.market, prepay);
        lease = _market().rent(offer, term, _birth.codeHash, prepay);
        emit ITreasury.Rented(lease, offer, term, prepay);
    }

    /// Closes a lease in whatever state it is and never fails for one that is closed already. Returns what came back.
    function _close(uint256 lease) internal returns (uint128 refund) {
        if (lease != 0 && _isOpen(_market().leaseOf(lease))) refund = _market().close(lease);
    }

    /// Clears the slots first: closing stands last.
    function _takeLeases() internal returns (uint256[3] memory leases) {
        leases = [_active, _standby, _draining];
        (_active, _draining) = (0, 0);
        _clearStandby();
    }

    function _closeAll(uint256[3] memory leases) internal {
        for (uint256 i = 0; i < 3; ++i) {
            _close(leases[i]);
        }
    }

    function _clearStandby() internal { (_standby, _rescued, _announced, _announcedAt) = (0, false, 0, 0); }

    function _readyLease(uint256 lease) internal view returns (ILeaseMarket.Lease memory l) {
        l = _market().leaseOf(lease);
        if (l.state != ILeaseMarket.LeaseState.Ready || _now() >= l.end) revert ITreasury.NotReady(lease);
        if (l.codeHash != _birth.codeHash) revert ITreasury.WrongCode();
    }

    function _isOpen(ILeaseMarket.Lease memory l) internal pure returns (bool) {
        return l.state == ILeaseMarket.LeaseState.Requested || l.state == ILeaseMarket.LeaseState.Ready;
    }

    function _prepayMaxUp(uint64 priceE6) internal view returns (uint256) {
        return Math.ceilDiv(uint256(priceE6) * _birth.policy.prepayMax, 1e6);
    }

    // ------------------------------------------------------------------ succession

    /// A new epoch with a new operator (0: nobody). A key serves one epoch only, so what it signed and sent in an old
    /// one can't come back to life.
    function _succeed(address operator) internal {
        if (operator != address(0)) {
            if (_wasOperator[operator]) revert ITreasury.KeyUsed(operator);
            _wasOperator[operator] = true;
            _hibernateUntil = 0;
        }
        ++_epoch;
        if (_relay != address(0)) emit ITreasury.RelaySet(address(0));
        (_operator, _relay, _restoring) = (operator, address(0), false);
        _challengedAt = 0;
        _heard();
    }

    function _heard() internal {
        (_lastHeartbeat, _heartbeatBlock, _starveNoticeAt) = (_now(), uint64(block.number), 0);
    }

    function _startRestoring() internal { (_restoring, _takenOverAt) = (true, _now()); }

    /// What each succession to a live key ends with, before leases are closed: the purse is emptied, the key fuelled,
    /// the registry told, if there is one. Whatever the registry does, the move goes on.
    function _moveIn(address operator, uint256 gasMax) internal {
        _sweepPurse();
        _fuel(operator, gasMax);
        if (_birth.options.identity == address(0)) return;
        // A call gets 63 of 64 parts of what is left (EIP-150). Or whoever sends a move could starve the registry.
        if (gasleft() < IDENTITY_GAS + IDENTITY_GAS / 32) revert ITreasury.LowGas();
        try ITreasury(payable(address(this))).identify{gas: IDENTITY_GAS}() {} catch {}
    }

    // ------------------------------------------------------------------ money

    /// Counts a gross commitment. What comes back later never makes room again.
    function _spend(uint128 amount) internal {
        uint256 left = _left(_spent, _birth.policy.dayLimit);
        if (amount > left) revert ITreasury.OverDayLimit(left);
        _spent.add(_birth.timers.day, amount);
    }

    function _gasLeft() internal view returns (uint256) { return _left(_gasSpent, _birth.policy.gasDayMax); }

    function _left(DayLimit.Ring storage ring, uint128 limit) internal view returns (uint256) {
        return Math.saturatingSub(limit, ring.spent(_birth.timers.day));
    }

    /// Tops `to` up to the gas target, with at most `max` wei. Pays what there is and never reverts.
    function _fuel(address to, uint256 max) internal {
        if (to == address(0)) return;
        uint256 amount = Math.min(Math.saturatingSub(_birth.policy.gasTarget, to.balance), max);
        amount = _pay(to, amount);
        if (amount != 0) emit ITreasury.Refueled(to, amount);
    }

    function _repay(uint256 gas) private {
        uint256 amount = Math.min((gas - gasleft() + RELAY_GAS) * tx.gasprice, _birth.options.relayMax);
        amount = _pay(msg.sender, amount);
        if (amount != 0) emit ITreasury.Repaid(msg.sender, amount);
    }

    /// Up to `amount` wei, counted as gas of this day. Returns what was paid.
    function _pay(address to, uint256 amount) private returns (uint256) {
        amount = Math.min(amount, address(this).balance);
        if (amount == 0 || !_send(to, amount, SEND_GAS)) return 0;
        _gasSpent.add(_birth.timers.day, uint128(amount));
        return amount;
    }

    function _send(address to, uint256 amount, uint256 gas_) internal returns (bool sent) {
        assembly ("memory-safe") {
            // No return data is copied: the recipient can't make us pay for it.
            sent := call(gas_, to, amount, 0, 0, 0, 0)
        }
    }

    function _sweepPurse() internal { if (_purse != address(0)) IPurse(_purse).sweep(); }

    function _balance() internal view returns (uint256) { return IERC20(_birth.token).balanceOf(address(this)); }

    function _unsettled() internal view returns (uint256) {
        if (address(_channels()) == address(0)) return 0;
        (uint128 claimed, uint128 settled) = _channels().receivers(address(this), _birth.token);
        return claimed - settled;
    }

    function _market() internal view returns (ILeaseMarket) { return ILeaseMarket(_birth.market); }

    function _channels() internal view returns (IBatchSettlement) { return IBatchSettlement(_birth.options.channels); }

    function _now() internal view returns (uint64) { return uint64(block.timestamp); }
}
