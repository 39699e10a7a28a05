// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {ILeaseMarket} from "../src/interfaces/ILeaseMarket.sol";
import {ITreasury} from "../src/interfaces/ITreasury.sol";
import {World} from "./World.sol";

/// challenge, takeover, rescue, and what a restoring successor may do.
contract SilenceTest is World {
    function setUp() public override {
        super.setUp();
        live();
    }

    function rescueAt(uint256 offer) private returns (uint256 lease) {
        treasury.rescue(offer, TERM, 1e5, approveRescue(offer, TERM, 1e5));
        lease = treasury.state().standbyLease;
    }

    // ------------------------------------------------------------------ challenge

    function test_a_steward_or_the_standby_challenges_and_nobody_else(address who) public {
        standby(offerB);
        bool may = who == nodeKey(2) || who == stewards[0] || who == stewards[1] || who == stewards[2];
        if (!may) refuses(ITreasury.NotSteward.selector);
        vm.prank(who);
        treasury.challenge();
        vm.prank(may ? stewards[0] : nodeKey(2));
        if (!may) treasury.challenge();
        eq(treasury.state().challengedAt, block.timestamp, "open");
    }

    function test_the_operator_answers_with_a_heartbeat(uint256 later) public {
        standby(offerB);
        vm.prank(nodeKey(2));
        treasury.challenge();
        skip(bound(later, 0, 3 hours));
        refuses(ITreasury.TooEarly.selector);
        vm.prank(nodeKey(2));
        treasury.takeover();
        beat();
        eq(treasury.state().challengedAt, 0, "answered");
        skip(1 days);
        refuses(ITreasury.NotChallenged.selector);
        vm.prank(nodeKey(2));
        treasury.takeover();
    }

    function test_even_a_late_answer_counts_when_it_is_mined_first(uint256 late) public {
        standby(offerB);
        challengeUnanswered();
        skip(bound(late, 0, 1 days));
        beat();
        refuses(ITreasury.NotChallenged.selector);
        vm.prank(nodeKey(2));
        treasury.takeover();
    }

    function test_challenges_have_a_rate(uint256 soon) public {
        vm.prank(stewards[1]);
        treasury.challenge();
        refuses(ITreasury.TooEarly.selector);
        vm.prank(stewards[2]);
        treasury.challenge();
        beat();
        uint256 opened = block.timestamp;
        skip(bound(soon, 0, 3 hours - 1));
        refuses(abi.encodeWithSelector(ITreasury.TooEarly.selector, uint64(opened + 3 hours)));
        vm.prank(stewards[2]);
        treasury.challenge();
        vm.warp(opened + 3 hours);
        vm.prank(stewards[2]);
        treasury.challenge();
    }

    function test_a_standby_that_is_not_ready_does_not_challenge() public {
        vm.prank(nodeKey(1));
        treasury.rent(offerB, TERM, 1e5);
        refuses(ITreasury.NotReady.selector);
        vm.prank(nodeKey(2));
        treasury.challenge();
    }

    // ------------------------------------------------------------------ takeover

    function test_an_unanswered_challenge_ends_in_a_takeover(uint256 late, bool paused) public {
        standby(offerB);
        commitNext("one");
        if (paused) treasury.pause(approve("pause", 0));
        challengeUnanswered();
        skip(bound(late, 0, 2 days));
        uint256 earned = market.accrued(1);
        vm.prank(nodeKey(2));
        treasury.takeover();
        ITreasury.State memory s = treasury.state();
        eq(s.operator, nodeKey(2), "operator");
        eq(s.epoch, 2, "epoch");
        yes(s.restoring, "restoring");
        yes(s.paused == paused, "inherits the pause");
        eq(s.activeLease, 2, "active");
        eq(s.standbyLease, 0, "standby");
        eq(s.takenOverAt, block.timestamp, "when");
        eq(s.challengedAt, 0, "no open challenge");
        eq(s.checkpointDigest, "one", "what it has to restore");
        eq(usdc.balanceOf(providerA), earned, "the old host is paid and its rent stops");
        yes(market.leaseOf(1).state == ILeaseMarket.LeaseState.Closed, "closed");
        eq(nodeKey(2).balance, 0.1 ether, "gas");
    }

    function test_the_deadline_itself_is_still_the_operators() public {
        standby(offerB);
        vm.prank(stewards[0]);
        treasury.challenge();
        uint256 deadline = block.timestamp + 3 hours;
        vm.warp(deadline);
        refuses(abi.encodeWithSelector(ITreasury.TooEarly.selector, uint64(deadline + 1)));
        vm.prank(nodeKey(2));
        treasury.takeover();
        vm.warp(deadline + 1);
        vm.prank(nodeKey(2));
        treasury.takeover();
    }

    function test_only_the_standby_takes_over(address who) public {
        standby(offerB);
        challengeUnanswered();
        vm.assume(who != nodeKey(2));
        refuses(ITreasury.NotNodeKey.selector);
        vm.prank(who);
        treasury.takeover();
    }

    function test_nobody_takes_over_without_a_standby(address who) public {
        challengeUnanswered();
        refuses(ITreasury.NotNodeKey.selector);
        vm.prank(who);
        treasury.takeover();
    }

    function test_a_takeover_works_when_the_old_lease_ended_already() public {
        standby(offerB);
        skip(7 hours);
        beat();
        skip(DROP_AFTER - 2 hours);
        vm.prank(stewards[0]);
        treasury.challenge();
        skip(3 hours + 1);
        market.expire(1);
        vm.prank(nodeKey(2));
        treasury.takeover();
        eq(operator(), nodeKey(2), "operator");
    }

    function test_a_takeover_works_while_providers_are_frozen() public {
        standby(offerB);
        usdc.setFrozen(providerA, true);
        challengeUnanswered();
        vm.prank(nodeKey(2));
        treasury.takeover();
        eq(operator(), nodeKey(2), "operator");
    }

    function test_only_the_first_of_two_takeovers_has_effect() public {
        standby(offerB);
        challengeUnanswered();
        vm.prank(nodeKey(2));
        treasury.takeover();
        refuses(ITreasury.NotNodeKey.selector);
        vm.prank(nodeKey(2));
        treasury.takeover();
        eq(treasury.state().epoch, 2, "one epoch");
    }

    function test_a_handover_mined_first_ends_the_takeover() public {
        standby(offerB);
        announceAndWait(2);
        challengeUnanswered();
        vm.prank(nodeKey(1));
        treasury.handover(2, 0, 0, type(uint64).max);
        refuses(ITreasury.NotNodeKey.selector);
        vm.prank(nodeKey(2));
        treasury.takeover();
        no(treasury.state().restoring, "planned");
    }

    function test_a_takeover_mined_first_ends_the_handover() public {
        standby(offerB);
        announceAndWait(2);
        challengeUnanswered();
        vm.prank(nodeKey(2));
        treasury.takeover();
        refuses(ITreasury.NotOperator.selector);
        vm.prank(nodeKey(1));
        treasury.handover(2, 0, 0, type(uint64).max);
    }

    // ------------------------------------------------------------------ restoring

    function test_a_restoring_operator_may_only_beat_and_commit() public {
        takenOverNow();
        settle(1e6, "n");
        bytes[8] memory calls = [
            abi.encodeCall(ITreasury.rent, (offerC, TERM, 1)),
            abi.encodeCall(ITreasury.topUp, (2, 1)),
            abi.encodeCall(ITreasury.release, (2)),
            abi.encodeCall(ITreasury.announce, (2)),
            abi.encodeCall(ITreasury.handover, (2, 0, 0, type(uint64).max)),
            abi.encodeCall(ITreasury.setRelay, (relay)),
            abi.encodeCall(ITreasury.refundExact, (customer, "n", 1)),
            abi.encodeCall(ITreasury.release, (1))
        ];
        for (uint256 i = 0; i < calls.length; ++i) {
            refuses(ITreasury.IsRestoring.selector);
            vm.prank(nodeKey(2));
            (bool done,) = address(treasury).call(calls[i]);
            done;
        }
        beat();
        commitNext("restored");
        no(treasury.state().restoring, "restored");
        vm.prank(nodeKey(2));
        treasury.rent(offerC, TERM, 1);
    }

    function takenOverNow() private {
        standby(offerB);
        challengeUnanswered();
        vm.prank(nodeKey(2));
        treasury.takeover();
    }

    function test_restoring_heartbeats_neither_vouch_nor_break_silence(uint256 later) public {
        takenOverNow();
        uint64 heard = treasury.state().lastHeartbeat;
        uint64 vouched = market.leaseOf(2).vouchedAt;
        skip(bound(later, 1, 1 hours));
        beat();
        eq(treasury.state().lastHeartbeat, heard, "silence goes on");
        eq(market.leaseOf(2).vouchedAt, vouched, "no rent for a host that restored nothing");
        commitNext("restored");
        beat();
        eq(market.leaseOf(2).vouchedAt, block.timestamp, "now it earns");
    }

    function test_past_the_restore_timeout_another_may_supersede(uint256 early, uint256 late) public {
        takenOverNow();
        uint256 from = block.timestamp + 1 hours;
        vm.warp(block.timestamp + bound(early, 0, 1 hours));
        ITreasury.Approval memory a = approveRescue(offerC, TERM, 1e5);
        refuses(ITreasury.TooEarly.selector);
        treasury.rescue(offerC, TERM, 1e5, a);
        vm.warp(from + bound(late, 1, 1 days));
        uint256 lease = rescueAt(offerC);
        makeReady(lease);
        vm.prank(nodeKey(lease));
        treasury.takeover();
        ITreasury.State memory s = treasury.state();
        eq(s.operator, nodeKey(3), "superseded");
        eq(s.epoch, 3, "epoch");
        yes(s.restoring, "and restoring in turn");
        yes(market.leaseOf(2).state == ILeaseMarket.LeaseState.Closed, "the first is closed");
    }

    // ------------------------------------------------------------------ rescue

    function test_rescue_wants_silence(uint256 quiet) public {
        skip(bound(quiet, 0, 6 hours));
        ITreasury.Approval memory a = approveRescue(offerB, TERM, 1e5);
        refuses(ITreasury.TooEarly.selector);
        treasury.rescue(offerB, TERM, 1e5, a);
        skip(6 hours + 1);
        uint256 lease = rescueAt(offerB);
        eq(treasury.state().standbyLease, lease, "in the standby slot");
        eq(treasury.state().spentInDay, 1e5, "counted in the day limit");
    }

    function test_a_rescued_node_takes_over_without_a_challenge(bool paused) public {
        if (paused) treasury.pause(approve("pause", 0));
        skip(6 hours + 1);
        uint256 lease = rescueAt(offerB);
        refuses(ITreasury.NotReady.selector);
        vm.prank(nodeKey(lease));
        treasury.takeover();
        makeReady(lease);
        vm.prank(nodeKey(lease));
        treasury.takeover();
        eq(operator(), nodeKey(lease), "operator");
        yes(treasury.state().restoring, "restoring");
    }

    function test_a_rescue_replaces_a_standby(bool ready) public {
        vm.prank(nodeKey(1));
        uint256 old = treasury.rent(offerB, TERM, 2e5);
        if (ready) makeReady(old);
        skip(6 hours + 1);
        uint256 lease = rescueAt(offerC);
        yes(market.leaseOf(old).state == ILeaseMarket.LeaseState.Closed, "the old one is closed");
        if (ready) {
            refuses(ITreasury.NotReady.selector); // the new one is not ready yet, and the old key counts for nothing
            vm.prank(nodeKey(old));
            treasury.takeover();
        }
        makeReady(lease);
        refuses(ITreasury.NotNodeKey.selector);
        vm.prank(nodeKey(old));
        treasury.takeover();
    }

    function test_an_ordinary_standby_after_a_rescue_needs_a_challenge_again() public {
        skip(6 hours + 1);
        uint256 lease = rescueAt(offerB);
        beat(); // it was only slow
        vm.prank(nodeKey(1));
        treasury.release(lease);
        standby(offerC);
        refuses(ITreasury.NotChallenged.selector);
        vm.prank(nodeKey(3));
        treasury.takeover();
    }

    function refusedRescue(uint256 offer, uint32 term, uint128 prepay, bytes4 why) private {
        ITreasury.Approval memory a = approveRescue(offer, term, prepay);
        refuses(why);
        treasury.rescue(offer, term, prepay, a);
    }

    function test_rescue_keeps_rents_rules(uint256 over) public {
        skip(6 hours + 1);
        refusedRescue(offerB, TERM, PREPAY_MAX + uint128(bound(over, 1, 3e6)), ITreasury.OverPrepay.selector);
        refusedRescue(offerB, 30 days + 1, 1, ITreasury.OverTerm.selector);
        vm.prank(providerB);
        market.reprice(offerB, 10e6 + 1);
        refusedRescue(offerB, TERM, 1, ITreasury.OverPriceCap.selector);
        refusedRescue(offerB, TERM, 5e6 + 1, ITreasury.OverDayLimit.selector);
        eq(treasury.state().orderNonce, 0, "refused orders are not used up");
    }

    function test_the_last_provider_rescues_its_own_dead_lease() public {
        skip(6 hours + 1);
        uint256 lease = rescueAt(offerA);
        makeReady(lease);
        vm.prank(nodeKey(lease));
        treasury.takeover();
        eq(operator(), nodeKey(lease), "operator");
        yes(market.leaseOf(1).state == ILeaseMarket.LeaseState.Closed, "the dead lease is closed");
    }

    function test_rescue_wants_a_quorum_over_this_very_bargain(uint8 who, uint256 other, uint256 which) public {
        skip(6 hours + 1);
        (uint256 offer, uint32 term, uint128 prepay) = (offerB, TERM, 1e5);
        which = which % 3;
        if (which == 0) offer = bound(other, 1, type(uint64).max);
        if (which == 1) term = uint32(bound(other, 1, type(uint32).max));
        if (which == 2) prepay = uint128(bound(other, 1, type(uint128).max));
        vm.assume(offer != offerB || term != TERM || prepay != 1e5);
        ITreasury.Approval memory a = approveRescue(offer, term, prepay);
        refuses(ITreasury.BadQuorum.selector);
        treasury.rescue(offerB, TERM, 1e5, a);
        who = who % 8;
        a = approveBy(who, "rescue", rescueArgument(offerB, TERM, 1e5));
        if (a.signatures.length < 2) refuses(ITreasury.BadQuorum.selector);
        treasury.rescue(offerB, TERM, 1e5, a);
    }

    function test_rescue_at_the_only_slot_of_the_replaced_offer() public {
        vm.prank(providerB);
        market.setCapacity(offerB, 1);
        standby(offerB);
        skip(6 hours + 1);
        uint256 lease = rescueAt(offerB);
        eq(treasury.state().standbyLease, lease, "the old lease made room first");
    }

    function test_no_rescue_of_the_stopped() public {
        skip(6 hours + 1);
        treasury.stop(approve("stop", 0));
        ITreasury.Approval memory a = approveRescue(offerB, TERM, 1e5);
        refuses(ITreasury.WrongStage.selector);
        treasury.rescue(offerB, TERM, 1, a);
    }
}
