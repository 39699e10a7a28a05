// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {ILeaseMarket} from "../src/interfaces/ILeaseMarket.sol";
import {ITreasury} from "../src/interfaces/ITreasury.sol";
import {World} from "./World.sol";

/// pause, resume, stop, evict, extendMandate, clearBar, and what makes an order an order.
contract StewardsTest is World {
    function setUp() public override {
        super.setUp();
        live();
    }

    /// Sends order number `which` with approval `a`. Arguments are fixed, so the approval must be for `argument(which)`.
    function order(uint256 which, ITreasury.Approval memory a) private returns (bool done) {
        bytes[7] memory calls = [
            abi.encodeCall(ITreasury.pause, (a)),
            abi.encodeCall(ITreasury.stop, (a)),
            abi.encodeCall(ITreasury.evict, (0, a)),
            abi.encodeCall(ITreasury.rescue, (offerC, TERM, 1, a)),
            abi.encodeCall(ITreasury.extendMandate, (mandate(), a)),
            abi.encodeCall(ITreasury.clearBar, (providerB, a)),
            abi.encodeCall(ITreasury.resume, (a))
        ];
        (done,) = address(treasury).call(calls[which]);
    }

    function mandate() private pure returns (uint64) {
        return 2_000_000_000;
    }

    function action(uint256 which) private pure returns (string memory) {
        return ["pause", "stop", "evict", "rescue", "extendMandate", "clearBar", "resume"][which];
    }

    function argument(uint256 which) private view returns (uint256) {
        return [0, 0, 0, rescueArgument(offerC, TERM, 1), mandate(), uint160(providerB), 0][which];
    }

    /// A state in which order `which` would be obeyed.
    function prepare(uint256 which) private {
        if (which == 3) skip(6 hours + 1);
        if (which == 6) treasury.pause(approve("pause", 0));
    }

    function test_every_order_takes_two_of_three(uint256 which, uint8 who) public {
        which = which % 7;
        who = who % 8;
        prepare(which);
        ITreasury.Approval memory a = approveBy(who, action(which), argument(which));
        yes(order(which, a) == (a.signatures.length >= 2), "two signatures, and not one");
    }

    function test_one_steward_alone_is_refused_even_twice_over(uint256 which, uint256 who) public {
        which = which % 7;
        who = who % 3;
        prepare(which);
        ITreasury.Approval memory a = approveBy(uint8(1 << who), action(which), argument(which));
        no(order(which, a), "once");
        bytes memory signature = a.signatures[0];
        a.signatures = new bytes[](2);
        (a.signatures[0], a.signatures[1]) = (signature, signature);
        no(order(which, a), "twice");
        // The malleated twin of a signature is the same steward, and not even a signature.
        (bytes32 r, bytes32 s) = abi.decode(abi.encodePacked(signature), (bytes32, bytes32));
        uint8 v = uint8(signature[64]);
        bytes32 twin = bytes32(0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141 - uint256(s));
        a.signatures[1] = abi.encodePacked(r, twin, v == 27 ? uint8(28) : uint8(27));
        no(order(which, a), "with its twin");
        vm.prank(stewards[who]);
        no(order(which, a), "sent by itself");
    }

    function test_an_approval_is_for_one_action_and_one_argument(uint256 signedFor, uint256 usedFor, uint256 other) public {
        (signedFor, usedFor) = (signedFor % 7, usedFor % 7);
        prepare(usedFor);
        if (signedFor != usedFor) {
            no(order(usedFor, approve(action(signedFor), argument(signedFor))), "another action");
            no(order(usedFor, approve(action(signedFor), argument(usedFor))), "another action, this argument");
        }
        vm.assume(other != argument(usedFor));
        no(order(usedFor, approve(action(usedFor), other)), "another argument");
    }

    function test_an_approval_is_used_up(uint256 later) public {
        ITreasury.Approval memory a = approve("pause", 0);
        treasury.pause(a);
        treasury.resume(approve("resume", 0));
        skip(bound(later, 0, 1 hours));
        refuses(ITreasury.BadQuorum.selector);
        treasury.pause(a);
        eq(treasury.state().orderNonce, 2, "two orders so far");
    }

    function test_two_orders_for_one_nonce_exclude_each_other(uint256 first, uint256 second) public {
        (first, second) = (first % 3, second % 3);
        ITreasury.Approval memory a = approve(action(first), argument(first));
        ITreasury.Approval memory b = approve(action(second), argument(second));
        yes(order(first, a), "the first");
        no(order(second, b), "the second is void");
    }

    function test_an_approval_ends(uint256 late) public {
        ITreasury.Approval memory a = approve("pause", 0);
        vm.warp(uint256(a.deadline) + bound(late, 1, 365 days));
        refuses(abi.encodeWithSelector(ITreasury.TooLate.selector, a.deadline));
        treasury.pause(a);
    }

    function test_an_approval_is_for_one_treasury() public {
        ITreasury.Approval memory a = approve("pause", 0);
        ITreasury.Birth memory b = birth();
        b.manifest = "a twin";
        treasury = create(b);
        usdc.mint(address(treasury), SEED);
        vm.prank(creator);
        uint256 lease = treasury.birthRent(offerA, TERM, 1);
        makeReady(lease);
        vm.prank(creator);
        treasury.activate(lease);
        refuses(ITreasury.BadQuorum.selector);
        treasury.pause(a);
    }

    function test_anyone_relays(address who) public {
        ITreasury.Approval memory a = approve("pause", 0);
        vm.prank(who);
        treasury.pause(a);
        yes(treasury.state().paused, "paused");
    }

    // ------------------------------------------------------------------ pause, resume, stop

    function test_pause_and_resume_alternate() public {
        ITreasury.Approval memory a = approve("resume", 0);
        refuses(ITreasury.NotPaused.selector);
        treasury.resume(a);
        treasury.pause(approve("pause", 0));
        a = approve("pause", 0);
        refuses(ITreasury.IsPaused.selector);
        treasury.pause(a);
        treasury.resume(approve("resume", 0));
        no(treasury.state().paused, "resumed");
    }

    function test_stop_is_final() public {
        treasury.stop(approve("stop", 0));
        yes(treasury.state().stage == ITreasury.Stage.Stopped, "stopped");
        ITreasury.Approval memory a = approve("stop", 0);
        refuses(ITreasury.WrongStage.selector);
        treasury.stop(a);
        a = approve("resume", 0);
        refuses(ITreasury.NotPaused.selector);
        treasury.resume(a);
    }

    // ------------------------------------------------------------------ evict

    function test_evicting_everybody_leaves_nobody() public {
        standby(offerB);
        handTo(2);
        standby(offerC);
        treasury.evict(0, approve("evict", 0));
        ITreasury.State memory s = treasury.state();
        eq(s.operator, address(0), "operator");
        eq(s.epoch, 3, "epoch");
        eq(s.activeLease + s.standbyLease + s.drainingLease, 0, "leases");
        eq(s.escrow, 0, "escrow came back");
        for (uint256 lease = 1; lease <= 3; ++lease) {
            yes(market.leaseOf(lease).state == ILeaseMarket.LeaseState.Closed, "closed");
        }
        yes(treasury.isBarred(providerA) && treasury.isBarred(providerB) && treasury.isBarred(providerC), "barred");
        refuses(ITreasury.NotOperator.selector);
        vm.prank(nodeKey(2));
        treasury.heartbeat(0, 0, true);
    }

    function test_keeping_the_active_lease_keeps_its_node_and_its_memory() public {
        standby(offerB);
        treasury.evict(1, approve("evict", 1));
        ITreasury.State memory s = treasury.state();
        eq(s.operator, nodeKey(1), "operator");
        eq(s.epoch, 2, "epoch");
        no(s.restoring, "it has its memory");
        eq(s.standbyLease, 0, "standby");
        yes(treasury.isBarred(providerB), "barred");
        no(treasury.isBarred(providerA), "kept");
        beat();
    }

    function test_keeping_the_standby_makes_it_operator_and_restoring() public {
        standby(offerB);
        treasury.evict(2, approve("evict", 2));
        ITreasury.State memory s = treasury.state();
        eq(s.operator, nodeKey(2), "operator");
        eq(s.activeLease, 2, "active");
        yes(s.restoring, "it must restore");
        yes(treasury.isBarred(providerA), "barred");
        eq(nodeKey(2).balance, 0.1 ether, "gas");
        commitNext("restored");
        no(treasury.state().restoring, "restored");
    }

    function test_only_active_or_ready_standby_is_kept(uint256 other) public {
        vm.prank(nodeKey(1));
        treasury.rent(offerB, TERM, 1);
        ITreasury.Approval memory a = approve("evict", 2);
        refuses(ITreasury.NotReady.selector);
        treasury.evict(2, a);
        vm.assume(other != 0 && other != 1 && other != 2);
        a = approve("evict", other);
        refuses(ITreasury.NotOurLease.selector);
        treasury.evict(other, a);
    }

    function test_an_evicted_owner_is_barred_until_the_quorum_clears_it() public {
        standby(offerB);
        treasury.evict(1, approve("evict", 1));
        refuses(abi.encodeWithSelector(ITreasury.Barred.selector, providerB));
        vm.prank(nodeKey(1));
        treasury.rent(offerB, TERM, 1);
        // Another offer of the same owner is as barred.
        vm.prank(providerB);
        uint256 second = market.postOffer(PRICE, 1, 1 days, 30 days, 1, 1, 0, "", "");
        refuses(abi.encodeWithSelector(ITreasury.Barred.selector, providerB));
        vm.prank(nodeKey(1));
        treasury.rent(second, TERM, 1);
        treasury.clearBar(providerB, approve("clearBar", uint160(providerB)));
        vm.prank(nodeKey(1));
        treasury.rent(offerB, TERM, 1);
    }

    function test_a_kept_owner_is_not_barred_for_its_other_lease() public {
        standby(offerB);
        handTo(2); // draining at A
        standby(offerA); // standby at A again
        treasury.evict(3, approve("evict", 3));
        no(treasury.isBarred(providerA), "kept");
        yes(treasury.isBarred(providerB), "evicted");
    }

    function test_after_evicting_everybody_a_rescue_needs_no_silence() public {
        treasury.evict(0, approve("evict", 0));
        ITreasury.Approval memory a = approveRescue(offerA, TERM, 1);
        refuses(abi.encodeWithSelector(ITreasury.Barred.selector, providerA));
        treasury.rescue(offerA, TERM, 1, a);
        treasury.rescue(offerB, TERM, 1e5, approveRescue(offerB, TERM, 1e5));
        makeReady(2);
        vm.prank(nodeKey(2));
        treasury.takeover();
        eq(operator(), nodeKey(2), "operator");
        yes(treasury.state().restoring, "restoring");
    }

    function test_eviction_ends_an_open_challenge_and_an_announcement() public {
        standby(offerB);
        vm.prank(nodeKey(1));
        treasury.announce(2);
        vm.prank(stewards[0]);
        treasury.challenge();
        treasury.evict(1, approve("evict", 1));
        eq(treasury.state().challengedAt, 0, "challenge");
        eq(treasury.state().announcedLease, 0, "announcement");
    }

    function test_eviction_works_with_dead_leases_and_frozen_hosts() public {
        standby(offerB);
        skip(DROP_AFTER + 1);
        market.expire(2);
        usdc.setFrozen(providerA, true);
        treasury.evict(0, approve("evict", 0));
        eq(operator(), address(0), "nobody");
    }

    function test_eviction_does_not_shorten_a_restore() public {
        standby(offerB);
        challengeUnanswered();
        vm.prank(nodeKey(2));
        treasury.takeover();
        treasury.evict(2, approve("evict", 2));
        yes(treasury.state().restoring, "still restoring");
    }

    // ------------------------------------------------------------------ extendMandate

    function test_a_mandate_is_only_extended(uint64 until) public {
        uint64 now_ = treasury.state().mandateUntil;
        ITreasury.Approval memory a = approve("extendMandate", until);
        if (until <= now_) refuses(ITreasury.TooEarly.selector);
        treasury.extendMandate(until, a);
        eq(treasury.state().mandateUntil, until <= now_ ? now_ : until, "mandate");
    }
}
