// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {ILeaseMarket} from "../src/interfaces/ILeaseMarket.sol";
import {ITreasury} from "../src/interfaces/ITreasury.sol";
import {World} from "./World.sol";

/// Who can act when nobody is left: every combination of seven misfortunes, who can do what in it and what comes of it,
/// and that the money always comes out in the end, in each way that is open.
contract MatrixTest is World {
    struct Fate {
        bool operatorDead;
        bool standbyDead; // its lease stands and fills the slot, its key never acts
        bool stewardsShort; // one of three is left, two are needed
        bool providersGone; // nobody rents out anything any more
        bool noGas;
        bool paused;
        bool starved;
    }

    /// Who is the agent once everybody has done what he can.
    enum Heir { Operator, Standby, Rescued, Nobody }

    /// What brings the end: the quorum's order, a passer-by's notice, the poor operator itself, the clock.
    enum Ending { Stop, Notice, Own, Mandate }

    uint256 private constant INCOME = 1e5;
    uint128 private constant POCKET = 3e5;

    /// How a walk ends that found everything as it must be.
    error Fine(Heir heir, bool ended);

    function options() internal pure override returns (ITreasury.Options memory o) {
        o.purseMax = 1e6;
    }

    // ------------------------------------------------------------------ what must come of it

    function fate(uint256 mask) private pure returns (Fate memory) {
        return Fate(
            mask & 1 != 0, mask & 2 != 0, mask & 4 != 0, mask & 8 != 0, mask & 16 != 0, mask & 32 != 0, mask & 64 != 0
        );
    }

    function heirOf(Fate memory f) private pure returns (Heir) {
        if (!f.operatorDead) return Heir.Operator;
        if (!f.standbyDead) return Heir.Standby;
        return f.stewardsShort || f.providersGone ? Heir.Nobody : Heir.Rescued;
    }

    function isOpen(Fate memory f, Ending ending) private pure returns (bool) {
        if (ending == Ending.Stop) return !f.stewardsShort;
        if (ending == Ending.Notice) return f.starved;
        if (ending == Ending.Mandate) return true;
        // Who restores nothing, because nobody acknowledges, is no operator yet.
        Heir heir = heirOf(f);
        bool acts = heir == Heir.Operator || (heir != Heir.Nobody && !f.stewardsShort);
        return f.starved && acts && !f.paused;
    }

    function test_each_combination_of_misfortunes() public {
        uint256[4] memory heirs;
        uint256[4] memory endings;
        for (uint256 i = 0; i < 128 * 4; ++i) {
            (uint256 mask, Ending ending) = (i / 4, Ending(i % 4));
            (Heir heir, bool ended) = (heirOf(fate(mask)), isOpen(fate(mask), ending));
            // Each begins in the same world: what it did is undone by its own revert.
            (bool done, bytes memory why) = address(this).call(abi.encodeCall(this.suffer, (mask, ending)));
            no(done, "never returns");
            if (keccak256(why) != keccak256(abi.encodeWithSelector(Fine.selector, heir, ended))) {
                string memory where = string.concat(vm.toString(mask), ", ending ", vm.toString(i % 4));
                revert(string.concat("combination ", where, ": ", string(why)));
            }
            if (ending == Ending.Mandate) ++heirs[uint256(heir)];
            if (ended) ++endings[uint256(ending)];
        }
        eq(heirs[uint256(Heir.Operator)], 64, "goes on");
        eq(heirs[uint256(Heir.Standby)], 32, "is followed by its standby");
        eq(heirs[uint256(Heir.Rescued)], 8, "is rescued");
        eq(heirs[uint256(Heir.Nobody)], 24, "is dead");
        eq(endings[uint256(Ending.Stop)], 64, "stopped by the quorum");
        eq(endings[uint256(Ending.Notice)], 64, "ended by a passer-by");
        eq(endings[uint256(Ending.Own)], 22, "ended by itself");
        eq(endings[uint256(Ending.Mandate)], 128, "ended by the clock, all of them");
    }

    function suffer(uint256 mask, Ending ending) external {
        Fate memory f = fate(mask);
        live();
        vm.prank(nodeKey(1));
        treasury.rent(offerB, TERM, PREPAY_MAX / 2);
        bringUp(2);
        can(nodeKey(1), abi.encodeCall(ITreasury.spend, (ITreasury.Kind.Purse, purse(), POCKET)), "pocket money");
        prepare(f);
        orders(f, mask);
        operators(f);
        Heir heir = silence(f);
        bool ended = windsDown(f, ending, heir);
        if (ended) theEnd(f, heir);
        revert Fine(heir, ended);
    }

    // ------------------------------------------------------------------ people

    /// A node key that can sign, for the successors.
    function key(uint256 lease) private pure returns (uint256) {
        return 0x4E1F0000 + lease;
    }

    function bringUp(uint256 lease) private {
        vm.prank(market.leaseOf(lease).provider);
        market.ready(lease, vm.addr(key(lease)), "http://node", 0);
    }

    function purse() private view returns (address) {
        return treasury.standing().purse;
    }

    function can(address who, bytes memory call_, string memory what) private {
        vm.prank(who);
        (bool done,) = address(treasury).call(call_);
        yes(done, what);
    }

    /// Refused, and for the reason `why`.
    function cannot(address who, bytes memory call_, bytes4 why, string memory what) private {
        vm.prank(who);
        (bool done, bytes memory said) = address(treasury).call(call_);
        yes(!done && bytes4(said) == why, what);
    }

    function may(bool expected, address who, bytes memory call_, bytes4 why, string memory what) private {
        if (expected) can(who, call_, what);
        else cannot(who, call_, why, what);
    }

    function by(Fate memory f, string memory action, uint256 argument) private view returns (ITreasury.Approval memory) {
        return approveBy(f.stewardsShort ? 1 : 3, action, argument);
    }

    // ------------------------------------------------------------------ the misfortunes

    function prepare(Fate memory f) private {
        if (f.providersGone) {
            address[3] memory hosts = [providerA, providerB, providerC];
            uint256[3] memory offers = [offerA, offerB, offerC];
            for (uint256 i = 0; i < 3; ++i) {
                vm.prank(hosts[i]);
                market.setCapacity(offers[i], 0);
            }
        }
        if (f.paused) treasury.pause(approve("pause", 0)); // while they were still three
        if (f.starved) {
            uint256 balance = usdc.balanceOf(address(treasury));
            vm.prank(address(treasury));
            usdc.transfer(address(1), balance - 5e5);
        }
        if (f.noGas) drain(address(treasury));
        ITreasury.State memory s = treasury.state();
        yes(s.paused == f.paused, "paused");
        yes(s.balance + s.escrow + usdc.balanceOf(purse()) + INCOME < 2e6 == f.starved, "starved for good");
        eq(usdc.balanceOf(purse()), f.paused ? 0 : POCKET, "a pause sweeps the purse");
    }

    /// Not by `vm.deal`, which a revert does not undo.
    function drain(address who) private {
        vm.prank(who);
        (bool sent,) = address(0xDEAD).call{value: who.balance}("");
        yes(sent, "drained");
    }

    // ------------------------------------------------------------------ the quorum, and anybody

    /// A quorum's orders need the quorum, and nothing else: no gas of the agent's, no operator, no money.
    function orders(Fate memory f, uint256 mask) private {
        bool quorum = !f.stewardsShort;
        bytes4 why = ITreasury.BadQuorum.selector;
        if (f.paused) {
            may(quorum, stranger, abi.encodeCall(ITreasury.resume, (by(f, "resume", 0))), why, "resume");
            yes(treasury.state().paused != quorum, "resumed, if they were two");
            if (quorum) treasury.pause(by(f, "pause", 0));
        } else {
            may(quorum, stranger, abi.encodeCall(ITreasury.pause, (by(f, "pause", 0))), why, "pause");
            yes(treasury.state().paused == quorum, "paused, if they were two");
            if (quorum) treasury.resume(by(f, "resume", 0));
        }
        (, bytes memory said) = address(this).call(abi.encodeCall(this.eviction, (mask)));
        bytes memory fine = abi.encodeWithSelector(Fine.selector, Heir.Nobody, quorum);
        yes(keccak256(said) == keccak256(fine), "an eviction empties every lease, if they were two");

        drain(nodeKey(1));
        can(stranger, abi.encodeCall(ITreasury.refuel, ()), "refuel never fails");
        eq(nodeKey(1).balance, f.noGas ? 0 : 0.1 ether, "and gives what there is");
        uint256 before = usdc.balanceOf(address(treasury));
        can(relay, settleCall(), "income is always welcome");
        eq(usdc.balanceOf(address(treasury)), before + INCOME, "and arrives");
    }

    /// Undone by its own revert.
    function eviction(uint256 mask) external {
        Fate memory f = fate(mask);
        bytes memory call_ = abi.encodeCall(ITreasury.evict, (0, by(f, "evict", 0)));
        may(!f.stewardsShort, stranger, call_, ITreasury.BadQuorum.selector, "evict");
        if (!f.stewardsShort) {
            ITreasury.State memory s = treasury.state();
            eq(s.operator, address(0), "nobody");
            eq(s.escrow, 0, "the escrow is back");
            eq(usdc.balanceOf(address(market)), 3 * STAKE, "and the market empty");
        }
        revert Fine(Heir.Nobody, !f.stewardsShort);
    }

    function settleCall() private view returns (bytes memory) {
        bytes memory signature = authorization(CUSTOMER_KEY, address(treasury), INCOME, "n");
        return abi.encodeCall(ITreasury.settleExact, (customer, INCOME, 0, type(uint256).max, "n", signature));
    }

    // ------------------------------------------------------------------ the operator

    /// What a living operator can do, and that a pause holds its hand and not its pulse.
    function operators(Fate memory f) private {
        skip(10 minutes);
        bytes memory call_ = abi.encodeCall(ITreasury.heartbeat, (0, 0, true));
        cannot(stranger, call_, ITreasury.NotOperator.selector, "nobody else beats");
        if (f.operatorDead) return;
        address op = nodeKey(1);
        lives(f, op, 1);
        uint256 had = usdc.balanceOf(customer);
        call_ = abi.encodeCall(ITreasury.refundExact, (customer, "n", 1));
        may(!f.paused, op, call_, ITreasury.IsPaused.selector, "refund");
        eq(usdc.balanceOf(customer), had + (f.paused ? 0 : 1), "to the payer");
        had = usdc.balanceOf(purse());
        call_ = abi.encodeCall(ITreasury.spend, (ITreasury.Kind.Purse, purse(), 1e5));
        may(!f.paused, op, call_, ITreasury.IsPaused.selector, "pocket money");
        eq(usdc.balanceOf(purse()), had + (f.paused ? 0 : 1e5), "in the purse");
        if (f.standbyDead) anotherStandby(f, op);
        else can(op, abi.encodeCall(ITreasury.announce, (2)), "announce");
        eq(treasury.state().announcedLease, f.standbyDead ? 0 : 2, "to whom it will hand over");
    }

    /// Heartbeats count and keep the host paid; a pause stops the purse strings alone.
    function lives(Fate memory f, address op, uint256 lease) private {
        can(op, abi.encodeCall(ITreasury.heartbeat, (0, 0, !f.standbyDead)), "beat");
        eq(treasury.state().lastHeartbeat, block.timestamp, "heard");
        eq(market.leaseOf(lease).vouchedAt, block.timestamp, "and vouched");
        uint256 had = market.leaseOf(lease).escrow;
        may(!f.paused, op, abi.encodeCall(ITreasury.topUp, (lease, 1)), ITreasury.IsPaused.selector, "topUp");
        eq(market.leaseOf(lease).escrow, had + (f.paused ? 0 : 1), "paid ahead");
    }

    function anotherStandby(Fate memory f, address op) private {
        can(op, abi.encodeCall(ITreasury.release, (2)), "release the dead one");
        yes(market.leaseOf(2).state == ILeaseMarket.LeaseState.Closed, "its escrow is back");
        bytes4 why = f.paused ? ITreasury.IsPaused.selector : ILeaseMarket.NoCapacity.selector;
        bool rents = !f.paused && !f.providersGone;
        may(rents, op, abi.encodeCall(ITreasury.rent, (offerC, TERM, 1e5)), why, "rent");
        eq(treasury.state().standbyLease, rents ? 3 : 0, "another host stands by");
        if (rents) bringUp(3);
    }

    // ------------------------------------------------------------------ silence

    /// One steward is enough to ask; then the standby, or a quorum with a host, brings the agent back.
    function silence(Fate memory f) private returns (Heir) {
        cannot(stranger, abi.encodeCall(ITreasury.challenge, ()), ITreasury.NotSteward.selector, "nobody else asks");
        can(stewards[0], abi.encodeCall(ITreasury.challenge, ()), "one steward challenges");
        eq(treasury.state().challengedAt, block.timestamp, "asked");
        skip(1 hours);
        if (!f.operatorDead) {
            beat();
            eq(treasury.state().challengedAt, 0, "answered");
            skip(2 hours + 1);
            beat();
        } else {
            skip(2 hours + 1);
        }
        bytes memory call_ = abi.encodeCall(ITreasury.takeover, ());
        cannot(stranger, call_, ITreasury.NotNodeKey.selector, "nobody else takes over");
        if (!f.standbyDead) takesOver(f, 2, f.operatorDead);
        if (f.operatorDead && !f.standbyDead) return Heir.Standby;
        // Long enough for silence, short of the market's drop.
        for (uint256 i = 0; i < 3 && !f.operatorDead; ++i) {
            skip(1 hours);
            beat();
        }
        if (f.operatorDead) skip(3 hours + 1);
        if (rescued(f)) return Heir.Rescued;
        eq(operator(), nodeKey(1), "nobody else came");
        return f.operatorDead ? Heir.Nobody : Heir.Operator;
    }

    function rescued(Fate memory f) private returns (bool saved) {
        saved = f.operatorDead && !f.stewardsShort && !f.providersGone;
        bytes4 why = ILeaseMarket.NoCapacity.selector;
        if (f.stewardsShort) why = ITreasury.BadQuorum.selector;
        if (!f.operatorDead) why = ITreasury.TooEarly.selector;
        uint256 argument = rescueArgument(offerC, TERM, 1e5);
        bytes memory call_ = abi.encodeCall(ITreasury.rescue, (offerC, TERM, 1e5, by(f, "rescue", argument)));
        may(saved, stranger, call_, why, "rescue");
        if (!saved) return false;
        yes(market.leaseOf(2).state == ILeaseMarket.LeaseState.Closed, "in the place of the dead standby");
        eq(treasury.state().standbyLease, 3, "a host stands by");
        bringUp(3);
        takesOver(f, 3, true);
    }

    /// Who has no gas is carried by its provider.
    function takesOver(Fate memory f, uint256 lease, bool expected) private {
        address next = vm.addr(key(lease));
        bytes memory call_ = abi.encodeCall(ITreasury.takeover, ());
        if (f.noGas) call_ = abi.encodeCall(ITreasury.takeoverFor, (type(uint64).max, act(lease)));
        may(expected, f.noGas ? relay : next, call_, ITreasury.NotChallenged.selector, "takeover");
        if (!expected) return;
        ITreasury.State memory s = treasury.state();
        yes(s.operator == next && s.epoch == 2 && s.activeLease == lease && s.restoring, "the agent now");
        eq(s.standbyLease + s.drainingLease, 0, "alone");
        eq(next.balance, f.noGas ? 0 : 0.1 ether, "with gas, if there is any");
        yes(s.paused == f.paused, "and with the pause");
        eq(usdc.balanceOf(purse()), 0, "and an empty purse");
        yes(market.leaseOf(1).state == ILeaseMarket.LeaseState.Closed, "the old host is left");
        restores(f, next, lease);
    }

    /// It may act once stewards acknowledge what it restored; until then its heartbeats count for nothing.
    function restores(Fate memory f, address op, uint256 lease) private {
        bytes4 why = f.paused ? ITreasury.IsPaused.selector : ITreasury.IsRestoring.selector;
        cannot(op, abi.encodeCall(ITreasury.topUp, (lease, 1)), why, "not yet");
        uint64 heard = treasury.state().lastHeartbeat;
        skip(10 minutes);
        can(op, abi.encodeCall(ITreasury.heartbeat, (0, 0, true)), "beats");
        eq(treasury.state().lastHeartbeat, heard, "unheard");
        may(!f.stewardsShort, op, commitCall(f), ITreasury.BadQuorum.selector, "restores, if stewards acknowledge");
        yes(treasury.state().restoring == f.stewardsShort, "or waits for them");
        if (!f.stewardsShort) lives(f, op, lease);
    }

    function act(uint256 lease) private view returns (bytes memory) {
        bytes32 kind = keccak256("Act(string action,uint256 lease,uint64 epoch,uint64 nonce,uint64 deadline)");
        uint64 nonce = treasury.lastChallengeAt();
        bytes32 hash = keccak256(
            abi.encode(kind, keccak256("takeover"), lease, treasury.state().epoch, nonce, type(uint64).max)
        );
        return signed(key(lease), domain(), hash);
    }

    function commitCall(Fate memory f) private view returns (bytes memory) {
        ITreasury.State memory s = treasury.state();
        bytes32 hash = ackHash(s.epoch, s.checkpointSeq + 1, "c", s.checkpointDigest);
        bytes[] memory acks = signaturesBy(f.stewardsShort ? 1 : 3, hash);
        return abi.encodeCall(ITreasury.commit, (s.checkpointSeq + 1, "c", s.checkpointDigest, acks));
    }

    // ------------------------------------------------------------------ the end

    /// Begins the end in this way, or finds that it is closed to everybody.
    function windsDown(Fate memory f, Ending ending, Heir heir) private returns (bool begun) {
        bytes memory windDown = abi.encodeCall(ITreasury.windDown, ());
        bytes4 why = ITreasury.NotStarved.selector;
        begun = isOpen(f, ending);
        address who = stranger;
        if (ending == Ending.Stop) {
            bytes memory stop = abi.encodeCall(ITreasury.stop, (by(f, "stop", 0)));
            may(begun, stranger, stop, ITreasury.BadQuorum.selector, "stop");
        } else if (ending == Ending.Notice) {
            skip(2 days + 1); // everybody falls silent
            if (begun) {
                can(stranger, windDown, "the notice");
                why = ITreasury.TooEarly.selector;
                cannot(stranger, windDown, why, "which gives time to object");
                skip(6 hours);
            }
        } else if (ending == Ending.Own) {
            if (heir != Heir.Nobody) who = operator();
        } else {
            cannot(stranger, windDown, why, "within the mandate");
            vm.warp(treasury.state().mandateUntil + 1);
        }
        may(begun, who, windDown, why, "windDown");
        ITreasury.Stage stage = begun ? ITreasury.Stage.WindingDown : ITreasury.Stage.Alive;
        yes(treasury.state().stage == stage, "only if it was open");
    }

    /// With everybody gone, the clock and any passer-by bring the money to the beneficiary.
    function theEnd(Fate memory f, Heir heir) private {
        cannot(stranger, abi.encodeCall(ITreasury.close, ()), ITreasury.TooEarly.selector, "not yet");
        skip(3 days);
        can(stranger, abi.encodeCall(ITreasury.close, ()), "close");
        can(stranger, abi.encodeCall(ITreasury.sweep, ()), "sweep");
        bytes memory withdraw = abi.encodeCall(ITreasury.withdraw, ());
        cannot(stranger, withdraw, ITreasury.NotBeneficiary.selector, "to nobody else");
        can(beneficiary, withdraw, "withdraw");

        eq(usdc.balanceOf(address(treasury)) + usdc.balanceOf(purse()), 0, "nothing stays in the treasury");
        eq(usdc.balanceOf(address(market)), 3 * STAKE, "nothing stays in the market");
        uint256 rent = 0;
        for (uint256 lease = 1; lease <= market.leaseCount(); ++lease) {
            ILeaseMarket.Lease memory l = market.leaseOf(lease);
            yes(l.state == ILeaseMarket.LeaseState.Closed, "no lease stays");
            rent += l.withdrawn;
        }
        uint256 hosts = usdc.balanceOf(providerA) + usdc.balanceOf(providerB) + usdc.balanceOf(providerC);
        eq(hosts, rent, "hosts have what they earned");
        yes(rent != 0, "which is something");
        uint256 refunded = usdc.balanceOf(customer) + INCOME - 1_000_000e6;
        eq(refunded, f.operatorDead || f.paused ? 0 : 1, "the customer has its refund");
        uint256 out = rent + refunded + usdc.balanceOf(address(1));
        eq(usdc.balanceOf(beneficiary), SEED + INCOME - out, "and the beneficiary all the rest");
        // A tank at the activation, one by `refuel`, one for a successor.
        uint256 tanks = heir == Heir.Standby || heir == Heir.Rescued ? 3 : 2;
        eq(beneficiary.balance, f.noGas ? 0 : 1 ether - tanks * 0.1 ether, "its gas too");
        eq(address(treasury).balance, 0, "to the last wei");
    }
}
