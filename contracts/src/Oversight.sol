// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {ILeaseMarket} from "./interfaces/ILeaseMarket.sol";
import {ISafe} from "./interfaces/ISafe.sol";
import {ITreasury} from "./interfaces/ITreasury.sol";
import {BirthRules} from "./lib/BirthRules.sol";
import {DayLimit} from "./lib/DayLimit.sol";
import {Quorum} from "./lib/Quorum.sol";
import {TreasuryBase} from "./TreasuryBase.sol";

/// @title Oversight
/// @notice What others do to the agent: what a birth must satisfy, the quorum's orders, the end, and what can be read.
/// @dev The treasury's second half, by delegatecall from its fallback. It was cut in two because one contract may have
/// 24,576 bytes; the line runs where the caller changes. On its own it is born dead.
contract Oversight is TreasuryBase {
    using SafeERC20 for IERC20;
    using DayLimit for DayLimit.Ring;
    using Quorum for Quorum.Stewards;

    bytes32 public constant ORDER_TYPEHASH =
        keccak256("Order(string action,uint256 argument,uint256 nonce,uint64 deadline)");

    // ------------------------------------------------------------------ birth

    function initialize(ITreasury.Birth calldata birth, address purse) external payable {
        if (_bornAt != 0 || _stage != ITreasury.Stage.Unborn) revert ITreasury.AlreadyBorn();
        (_birth, _purse, _bornAt, _bornOf) = (birth, purse, _now(), birth.creator);
        _seat(_stewards, birth.stewards, birth.threshold);
        ITreasury.Options calldata o = birth.options;
        if (o.rescueThreshold != 0 || o.rescuers.length != 0) _seat(_rescuers, o.rescuers, o.rescueThreshold);
        emit ITreasury.Born(birth.creator, birth.manifest, birth.codeHash, birth.beneficiary, birth.mandateUntil);
    }

    // ------------------------------------------------------------------ stewards, at once

    function pause(ITreasury.Approval calldata a) external nonReentrant repaid living notPaused {
        _approved("pause", 0, a);
        _paused = true;
        emit ITreasury.Paused();
        _sweepPurse();
    }

    function resume(ITreasury.Approval calldata a) external nonReentrant repaid living {
        if (!_paused) revert ITreasury.NotPaused();
        _approved("resume", 0, a);
        (_paused, _refundsOpen) = (false, false);
        emit ITreasury.Resumed();
    }

    function stop(ITreasury.Approval calldata a) external nonReentrant repaid only(ITreasury.Stage.Alive) {
        _approved("stop", 0, a);
        _stage = ITreasury.Stage.Stopped;
        emit ITreasury.Stopped();
        _sweepPurse();
    }

    function evict(uint256 keep, ITreasury.Approval calldata a) external nonReentrant repaid living {
        _approved("evict", keep, a);
        if (keep != 0 && keep != _active && keep != _standby) revert ITreasury.NotOurLease(keep);
        ILeaseMarket.Lease memory kept;
        if (keep != 0) kept = _readyLease(keep);
        uint256[3] memory leases = _takeLeases();
        // The same host with the same key has its memory; anybody else must show that it restored it. A standby with
        // the operator's key is another host: it could have put that key there when it saw this order.
        bool same = keep == leases[0] && kept.nodeKey == _operator;
        bool restores = keep != 0 && (!same || _restoring);
        _active = keep;
        if (same) _wasOperator[kept.nodeKey] = false;
        _succeed(kept.nodeKey);
        if (restores) _startRestoring();
        emit ITreasury.Evicted(_epoch, keep, kept.nodeKey);
        _moveIn(kept.nodeKey, type(uint128).max);
        for (uint256 i = 0; i < 3; ++i) {
            if (leases[i] == 0 || leases[i] == keep) continue;
            address host = _market().leaseOf(leases[i]).provider;
            if (host != kept.provider) {
                isBarred[host] = true;
                emit ITreasury.ProviderBarred(host);
            }
            _close(leases[i]);
        }
    }

    function rescue(uint256 offer, uint32 term, uint128 prepay, ITreasury.Approval calldata a)
        external nonReentrant repaid only(ITreasury.Stage.Alive)
    {
        bool stuck = _restoring && _now() > _takenOverAt + _birth.timers.restoreTimeout;
        if (_operator != address(0) && !stuck && !_silentFor(_birth.timers.silence)) {
            revert ITreasury.TooEarly(_lastHeartbeat + _birth.timers.silence + 1);
        }
        bytes32 order = _order("rescue", uint256(uint64(offer)) | uint256(term) << 64 | uint256(prepay) << 96, a);
        // Birth may let the daemons do this alone, but never against a pause, which is the quorum's word.
        bool alone = !_paused && _rescuers.signers(order, a.signatures).length != 0;
        if (!alone && _stewards.signers(order, a.signatures).length == 0) revert ITreasury.BadQuorum();
        uint256 replaced = _standby;
        _clearStandby();
        (_hibernateUntil, _starveNoticeAt) = (0, 0);
        _spend(prepay);
        // First, because the offer may have room for one lease only, and its refund may be needed for the prepayment.
        _close(replaced);
        uint256 lease = _rent(offer, term, prepay);
        (_standby, _rescued) = (lease, true);
        emit ITreasury.Rescued(lease, offer);
    }

    function clearBar(address provider, ITreasury.Approval calldata a) external nonReentrant repaid living {
        _approved("clearBar", uint160(provider), a);
        isBarred[provider] = false;
        emit ITreasury.BarCleared(provider);
    }

    function extendMandate(uint64 until, ITreasury.Approval calldata a)
        external nonReentrant repaid only(ITreasury.Stage.Alive)
    {
        if (until <= _birth.mandateUntil) revert ITreasury.TooEarly(_birth.mandateUntil + 1);
        _approved("extendMandate", until, a);
        _birth.mandateUntil = until;
        emit ITreasury.MandateExtended(until);
    }

    function revokeCode(ITreasury.Approval calldata a) external nonReentrant repaid living {
        bytes32 code = _birth.codeHash;
        if (code == 0) revert ITreasury.WrongCode();
        _approved("revokeCode", uint256(code), a);
        ++_round;
        uint256[3] memory leases = _takeLeases();
        _birth.codeHash = 0;
        _succeed(address(0));
        emit ITreasury.CodeRevoked(code);
        _sweepPurse();
        _closeAll(leases);
    }

    function tighten(ITreasury.Policy calldata policy, ITreasury.Approval calldata a)
        external nonReentrant repaid living
    {
        BirthRules.checkWithin(policy, _birth.policy, _birth);
        _approved("tighten", uint256(keccak256(abi.encode(policy))), a);
        ++_round;
        _birth.policy = policy;
        emit ITreasury.Tightened(policy);
    }

    function openRefunds(ITreasury.Approval calldata a) external nonReentrant repaid living {
        _approved("openRefunds", 0, a);
        _refundsOpen = true;
        emit ITreasury.RefundsOpened();
    }

    // ------------------------------------------------------------------ stewards, after a delay

    function setCode(bytes32 codeHash, ITreasury.Approval calldata a)
        external nonReentrant repaid only(ITreasury.Stage.Alive)
    {
        if (codeHash == 0) revert ITreasury.WrongCode();
        if (_waits("setCode", uint256(codeHash), a)) return;
        _birth.codeHash = codeHash;
        emit ITreasury.CodeSet(codeHash);
    }

    function loosen(ITreasury.Policy calldata policy, ITreasury.Approval calldata a)
        external nonReentrant repaid only(ITreasury.Stage.Alive)
    {
        BirthRules.checkWithin(policy, _birth.options.ceilings, _birth);
        if (_waits("loosen", uint256(keccak256(abi.encode(policy))), a)) return;
        _birth.policy = policy;
        emit ITreasury.Loosened(policy);
    }

    function setStewards(address[] calldata stewards, uint8 threshold, ITreasury.Approval calldata a)
        external nonReentrant repaid living
    {
        if (_waits("setStewards", uint256(keccak256(abi.encode(stewards, threshold))), a)) return;
        ++_round;
        for (uint256 i = 0; i < _birth.stewards.length; ++i) {
            _stewards.isSteward[_birth.stewards[i]] = false;
        }
        (_birth.stewards, _birth.threshold) = (stewards, threshold);
        _seat(_stewards, stewards, threshold);
        // Whom birth trusted to rescue alone may be among those who were sent away.
        (_rescuers.threshold, _birth.options.rescueThreshold) = (0, 0);
        emit ITreasury.StewardsSet(stewards, threshold);
    }

    // ------------------------------------------------------------------ the end

    function windDown() external nonReentrant {
        ITreasury.Reason reason = _reason();
        if (reason == ITreasury.Reason.None) {
            if (_stage != ITreasury.Stage.Alive) revert ITreasury.WrongStage(_stage);
            if (_starveNoticeAt == 0) revert ITreasury.NotStarved();
            _starveNoticeAt = 0;
            emit ITreasury.NoticeCancelled();
            return;
        }
        if (reason >= ITreasury.Reason.Starved && msg.sender != _operator) {
            uint64 from = _starveNoticeAt + _birth.timers.silence;
            if (_starveNoticeAt == 0) {
                _starveNoticeAt = _now();
                emit ITreasury.StarveNotice(reason, _now() + _birth.timers.silence);
                return;
            }
            if (_now() < from) revert ITreasury.TooEarly(from);
        }
        uint256 standby = _standby;
        (_stage, _windDownAt, _challengedAt) = (ITreasury.Stage.WindingDown, _now(), 0);
        _clearStandby();
        emit ITreasury.WindDownBegun(reason, _now() + _birth.timers.refundWindow);
        _sweepPurse();
        _close(standby);
    }

    function windDownReason() external returns (ITreasury.Reason) { return _reason(); }

    function close() external nonReentrant only(ITreasury.Stage.WindingDown) {
        uint64 from = _windDownAt + _birth.timers.refundWindow;
        if (_now() < from) revert ITreasury.TooEarly(from);
        (_stage, _operator, _relay) = (ITreasury.Stage.Closed, address(0), address(0));
        _fetchAll();
        emit ITreasury.Closed(_balance());
    }

    function sweep() external nonReentrant only(ITreasury.Stage.Closed) {
        _fetchAll();
        if (_market().owedTo(address(this)) != 0) _market().collect(address(this));
    }

    function withdraw() external nonReentrant only(ITreasury.Stage.Closed) {
        if (msg.sender != _birth.beneficiary) revert ITreasury.NotBeneficiary();
        uint256 amount = _balance();
        bool moved = IERC20(_birth.token).trySafeTransfer(msg.sender, amount);
        if (moved) emit ITreasury.Withdrawn(msg.sender, amount);
        else emit ITreasury.TokenRefused(amount);
        _send(msg.sender, address(this).balance, gasleft());
    }

    // ------------------------------------------------------------------ views

    function state() external view returns (ITreasury.State memory s) {
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

    function birthOf() external view returns (ITreasury.Birth memory) { return _birth; }

    // ------------------------------------------------------------------ inside: birth

    /// At least two people: k >= 2 of n, or one Safe with a threshold of two or more.
    function _seat(Quorum.Stewards storage set, address[] calldata who, uint8 threshold) private {
        if (threshold == 0 || threshold > who.length) revert ITreasury.BadQuorum();
        if (threshold == 1 && (who.length > 1 || !_isQuorum(who[0]))) revert ITreasury.BadQuorum();
        address last = address(0);
        for (uint256 i = 0; i < who.length; ++i) {
            if (who[i] <= last || who[i] == _bornOf) revert ITreasury.BadStewards();
            last = who[i];
            set.isSteward[last] = true;
        }
        set.threshold = threshold;
    }

    function _isQuorum(address safe) private view returns (bool) {
        if (safe.code.length == 0) return false;
        if (ISafe(safe).isOwner(_bornOf)) revert ITreasury.BadStewards();
        uint256 k = ISafe(safe).getThreshold();
        return k >= 2 && k <= ISafe(safe).getOwners().length;
    }

    // ------------------------------------------------------------------ inside: orders

    function _approved(string memory action, uint256 argument, ITreasury.Approval calldata a) private {
        bytes32 order = _order(action, argument, a);
        if (_stewards.signers(order, a.signatures).length == 0) revert ITreasury.BadQuorum();
    }

    /// What has to be signed for it. Uses up the order's nonce: a caller that finds no quorum reverts.
    function _order(string memory action, uint256 argument, ITreasury.Approval calldata a) private returns (bytes32) {
        if (_now() > a.deadline) revert ITreasury.TooLate(a.deadline);
        bytes32 kind = keccak256(bytes(action));
        return _hashTypedDataV4(keccak256(abi.encode(ORDER_TYPEHASH, kind, argument, _orderNonce++, a.deadline)));
    }

    /// Queues an approved order and says so; once its time has come, takes it out and lets it through.
    function _waits(string memory action, uint256 argument, ITreasury.Approval calldata a) private returns (bool) {
        uint32 delay = _birth.options.delay;
        if (delay == 0) revert ITreasury.Off();
        bytes32 id = keccak256(abi.encode(_round, action, argument));
        uint64 from = _queue[id];
        if (from == 0) {
            _approved(action, argument, a);
            _queue[id] = _now() + delay;
            emit ITreasury.Queued(action, argument, _now() + delay);
            return true;
        }
        if (_now() < from) revert ITreasury.TooEarly(from);
        _queue[id] = 0;
        return false;
    }

    // ------------------------------------------------------------------ inside: the end

    function _reason() private returns (ITreasury.Reason) {
        if (_stage == ITreasury.Stage.Stopped) return ITreasury.Reason.Stopped;
        if (_stage != ITreasury.Stage.Alive) return ITreasury.Reason.None;
        if (_now() > _birth.mandateUntil) return ITreasury.Reason.MandateOver;
        // The operator knows that nothing more will come; unless the stewards hold it, it need not wait to be missed.
        bool own = msg.sender == _operator && !_paused && !_restoring;
        if (_now() <= _hibernateUntil || (!own && !_silentFor(_birth.timers.starveTimeout))) {
            return ITreasury.Reason.None;
        }
        uint256 balance = _balance();
        if (balance + _escrow() + _unsettled() < _birth.policy.starveFloor) return ITreasury.Reason.Starved;
        // Moving nothing to oneself changes nothing; a token that refuses even that is frozen.
        if (balance != 0 && !IERC20(_birth.token).trySafeTransfer(address(this), 0)) return ITreasury.Reason.Frozen;
        return ITreasury.Reason.None;
    }

    /// Whatever others hold for us. Nothing here may stop the end, so what fails waits for `sweep`.
    function _fetchAll() private {
        _closeAll(_takeLeases());
        _sweepPurse();
        if (address(_channels()) == address(0)) return;
        try _channels().settle(address(this), _birth.token) {} catch {}
    }

    function _escrow() private view returns (uint256 left) {
        uint256[3] memory leases = [_active, _standby, _draining];
        for (uint256 i = 0; i < 3; ++i) {
            if (leases[i] == 0) continue;
            ILeaseMarket.Lease memory l = _market().leaseOf(leases[i]);
            if (_isOpen(l)) left += l.escrow - _market().accrued(leases[i]);
        }
    }
}
