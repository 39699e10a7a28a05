// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {ILeaseMarket} from "../src/interfaces/ILeaseMarket.sol";
import {ITreasury} from "../src/interfaces/ITreasury.sol";
import {World} from "./World.sol";

/// rent, topUp, release.
contract RentTest is World {
    function setUp() public override {
        super.setUp();
        live();
    }

    // ------------------------------------------------------------------ rent

    function test_rent_fills_the_standby_slot(uint32 term, uint128 prepay) public {
        term = uint32(bound(term, 1 days, 30 days));
        prepay = uint128(bound(prepay, 0, min(PREPAY_MAX, uint256(PRICE) * term / 1e6)));
        uint256 before = treasury.state().balance;
        vm.prank(operator());
        uint256 lease = treasury.rent(offerB, term, prepay);
        ITreasury.State memory s = treasury.state();
        eq(s.standbyLease, lease, "slot");
        eq(s.balance, before - prepay, "balance");
        eq(s.spentInDay, prepay, "counted in the day limit");
        eq(market.leaseOf(lease).codeHash, CODE, "our code");
        eq(s.escrow, PREPAY_MAX / 2 + uint256(prepay), "escrow");
        refuses(ITreasury.SlotTaken.selector);
        vm.prank(nodeKey(1));
        treasury.rent(offerC, term, prepay);
    }

    function test_only_the_operator_rents(address who) public {
        vm.assume(who != operator());
        refuses(ITreasury.NotOperator.selector);
        vm.prank(who);
        treasury.rent(offerB, TERM, 1);
    }

    function test_rent_refuses_what_policy_forbids(uint256 over) public {
        address op = operator();
        refuses(ITreasury.SameOwner.selector);
        vm.prank(op);
        treasury.rent(offerA, TERM, 1);
        refuses(ITreasury.OverPrepay.selector);
        vm.prank(op);
        treasury.rent(offerB, TERM, PREPAY_MAX + uint128(bound(over, 1, 4e6)));
        refuses(ITreasury.OverTerm.selector);
        vm.prank(op);
        treasury.rent(offerB, uint32(bound(over, 30 days + 1, type(uint32).max)), 1);
        vm.prank(providerB);
        market.reprice(offerB, uint64(bound(over, 10e6 + 1, type(uint64).max)));
        refuses(ITreasury.OverPriceCap.selector);
        vm.prank(op);
        treasury.rent(offerB, TERM, 1);
        vm.prank(providerC);
        market.unregister();
        refuses(ILeaseMarket.NotStaked.selector);
        vm.prank(op);
        treasury.rent(offerC, TERM, 1);
    }

    function test_a_second_offer_of_the_same_owner_is_the_same_owner() public {
        vm.prank(providerA);
        uint256 second = market.postOffer(1, 9, 1 days, 30 days, 1, 1, 0, "", "");
        refuses(ITreasury.SameOwner.selector);
        vm.prank(nodeKey(1));
        treasury.rent(second, TERM, 0);
    }

    function test_prepayment_rounds_up_and_no_further(uint64 priceE6, uint256 prepay) public {
        priceE6 = uint64(bound(priceE6, 1, 10e6));
        uint256 offer = provider(address(0xD11), priceE6);
        uint256 most = (uint256(priceE6) * 2 days + 1e6 - 1) / 1e6;
        prepay = bound(prepay, 0, most + 1);
        if (prepay > most) refuses(ITreasury.OverPrepay.selector);
        vm.prank(nodeKey(1));
        treasury.rent(offer, TERM, uint128(prepay));
    }

    function test_no_renting_while_paused_restoring_or_winding_down() public {
        treasury.pause(approve("pause", 0));
        refuses(ITreasury.IsPaused.selector);
        vm.prank(nodeKey(1));
        treasury.rent(offerB, TERM, 1);
        treasury.resume(approve("resume", 0));
        standby(offerB);
        challengeUnanswered();
        vm.prank(nodeKey(2));
        treasury.takeover();
        refuses(ITreasury.IsRestoring.selector);
        vm.prank(nodeKey(2));
        treasury.rent(offerC, TERM, 1);
        windingDown();
        refuses(ITreasury.WrongStage.selector);
        vm.prank(nodeKey(2));
        treasury.rent(offerC, TERM, 1);
    }

    // ------------------------------------------------------------------ topUp

    function test_top_up_keeps_at_most_the_prepayment_ahead(uint256 elapsed, uint128 amount) public {
        elapsed = bound(elapsed, 0, 3 days);
        for (uint256 i = 0; i < elapsed / 3 hours; ++i) {
            skip(3 hours);
            beat();
        }
        uint256 ahead = PREPAY_MAX / 2 - market.accrued(1);
        uint256 most = PREPAY_MAX - ahead;
        amount = uint128(bound(amount, 1, 2 * most));
        bool fits = amount <= most;
        if (!fits) refuses(ITreasury.OverPrepay.selector);
        vm.prank(nodeKey(1));
        treasury.topUp(1, amount);
        if (!fits) return;
        eq(market.leaseOf(1).escrow, PREPAY_MAX / 2 + amount, "escrow");
        eq(treasury.state().spentInDay, amount, "counted");
    }

    function test_top_up_reaches_active_standby_and_draining_only(uint256 other) public {
        standby(offerB);
        vm.prank(nodeKey(1));
        treasury.topUp(1, 1);
        vm.prank(nodeKey(1));
        treasury.topUp(2, 1);
        handTo(2);
        vm.prank(nodeKey(2));
        treasury.topUp(1, 1);
        vm.assume(other != 1 && other != 2);
        refuses(ITreasury.NotOurLease.selector);
        vm.prank(nodeKey(2));
        treasury.topUp(other, 1);
        refuses(ITreasury.NotOperator.selector);
        vm.prank(nodeKey(1));
        treasury.topUp(1, 1);
    }

    function test_no_top_up_of_a_dead_lease_or_while_paused() public {
        treasury.pause(approve("pause", 0));
        refuses(ITreasury.IsPaused.selector);
        vm.prank(nodeKey(1));
        treasury.topUp(1, 1);
        treasury.resume(approve("resume", 0));
        skip(DROP_AFTER + 1);
        market.expire(1);
        refuses(ITreasury.NotReady.selector);
        vm.prank(nodeKey(1));
        treasury.topUp(1, 1);
    }

    // ------------------------------------------------------------------ release

    function test_release_brings_escrow_back_but_not_the_day_limit(uint256 used) public {
        standby(offerB);
        skip(bound(used, 0, GRACE));
        uint256 earned = market.accrued(2);
        uint256 before = treasury.state().balance;
        vm.prank(nodeKey(1));
        treasury.release(2);
        ITreasury.State memory s = treasury.state();
        eq(s.standbyLease, 0, "slot");
        eq(s.balance, before + PREPAY_MAX / 2 - earned, "refund");
        eq(usdc.balanceOf(providerB), earned, "the provider got what it earned");
        eq(s.spentInDay, PREPAY_MAX / 2, "money coming back restores nothing");
    }

    function test_release_before_ready_refunds_all_and_late_counts_against_the_provider(bool late) public {
        vm.prank(nodeKey(1));
        uint256 lease = treasury.rent(offerB, TERM, 2e5);
        if (late) skip(READY_WITHIN + 1);
        vm.prank(nodeKey(1));
        treasury.release(lease);
        eq(usdc.balanceOf(providerB), 0, "nothing earned");
        eq(market.recordOf(providerB).failed, late ? 1 : 0, "failed");
        eq(treasury.state().balance, SEED - PREPAY_MAX / 2, "all back");
    }

    function test_release_of_a_lease_that_others_ended_clears_the_slot() public {
        standby(offerB);
        skip(DROP_AFTER + 1);
        vm.prank(stranger);
        market.expire(2);
        vm.prank(nodeKey(1));
        treasury.release(2);
        eq(treasury.state().standbyLease, 0, "slot");
    }

    function test_the_active_lease_is_released_only_in_wind_down(uint256 other) public {
        standby(offerB);
        vm.assume(other > 2 || other == 0);
        refuses(ITreasury.NotOurLease.selector);
        vm.prank(nodeKey(1));
        treasury.release(other);
        refuses(ITreasury.NotOurLease.selector);
        vm.prank(nodeKey(1));
        treasury.release(1);
        windingDown();
        vm.prank(nodeKey(1));
        treasury.release(1);
        eq(treasury.state().activeLease, 0, "slot");
        eq(treasury.state().escrow, 0, "nothing in escrow");
    }

    function test_release_works_while_paused_and_clears_the_announcement(address who) public {
        standby(offerB);
        vm.prank(nodeKey(1));
        treasury.announce(2);
        treasury.pause(approve("pause", 0));
        vm.assume(who != nodeKey(1));
        refuses(ITreasury.NotOperator.selector);
        vm.prank(who);
        treasury.release(2);
        vm.prank(nodeKey(1));
        treasury.release(2);
        eq(treasury.state().announcedLease, 0, "announcement");
    }

    function test_a_frozen_provider_cannot_hold_the_refund() public {
        standby(offerB);
        skip(1 hours);
        uint256 earned = market.accrued(2);
        usdc.setFrozen(providerB, true);
        vm.prank(nodeKey(1));
        treasury.release(2);
        eq(treasury.state().balance, SEED - PREPAY_MAX / 2 - earned, "refunded");
        eq(market.owedTo(providerB), earned, "the provider's rent waits");
        usdc.setFrozen(providerB, false);
        market.collect(providerB);
        eq(usdc.balanceOf(providerB), earned, "collected");
    }
}
