// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {ILeaseMarket} from "../src/interfaces/ILeaseMarket.sol";
import {ITreasury} from "../src/interfaces/ITreasury.sol";
import {World} from "./World.sol";

/// windDown, close, sweep, withdraw.
contract EndTest is World {
    function setUp() public override {
        super.setUp();
        live();
    }

    /// Burns the treasury's money down to `left`.
    function impoverish(uint256 left) private {
        uint256 balance = usdc.balanceOf(address(treasury));
        vm.prank(address(treasury));
        usdc.transfer(address(1), balance - left);
    }

    // ------------------------------------------------------------------ windDown

    function test_a_healthy_agent_is_not_wound_down_by_anybody(address who, uint256 quiet) public {
        skip(bound(quiet, 0, 90 days)); // to the mandate's last second; even in silence, with money it waits for a rescue
        refuses(ITreasury.NotStarved.selector);
        vm.prank(who);
        treasury.windDown();
        refuses(ITreasury.NotStarved.selector);
        vm.prank(nodeKey(1));
        treasury.windDown();
    }

    function test_stopped_is_wound_down_by_anyone(address who) public {
        treasury.stop(approve("stop", 0));
        vm.prank(who);
        treasury.windDown();
        eq(treasury.state().windDownAt, block.timestamp, "when");
        refuses(ITreasury.WrongStage.selector);
        treasury.windDown();
    }

    function test_a_mandate_that_ended_is_the_end(address who, uint256 late) public {
        uint256 from = treasury.state().mandateUntil;
        vm.warp(from + bound(late, 1, 365 days));
        vm.prank(who);
        treasury.windDown();
        yes(treasury.state().stage == ITreasury.Stage.WindingDown, "winding down");
    }

    function test_an_extended_mandate_is_not_over() public {
        uint64 until = treasury.state().mandateUntil;
        treasury.extendMandate(until + 30 days, approve("extendMandate", until + 30 days));
        vm.warp(until + 1);
        beat();
        refuses(ITreasury.NotStarved.selector);
        treasury.windDown();
    }

    function test_starved_is_poor_and_silent(uint256 left, uint256 quiet, address who) public {
        vm.assume(who != nodeKey(1));
        impoverish(bound(left, 0, 3e6));
        skip(bound(quiet, 0, 3 days));
        ITreasury.State memory s = treasury.state();
        bool poor = s.balance + s.escrow < 2e6;
        bool silent = block.timestamp > s.lastHeartbeat + 2 days;
        if (!(poor && silent)) refuses(ITreasury.NotStarved.selector);
        vm.prank(who);
        treasury.windDown();
        if (!(poor && silent)) return;
        yes(treasury.state().stage == ITreasury.Stage.Alive, "only a notice");
        eq(treasury.standing().starveNoticeAt, block.timestamp, "posted");
        refuses(abi.encodeWithSelector(ITreasury.TooEarly.selector, uint64(block.timestamp + 6 hours)));
        treasury.windDown();
        skip(6 hours);
        vm.prank(who);
        treasury.windDown();
        yes(treasury.state().stage == ITreasury.Stage.WindingDown, "winding down");
    }

    function starvedWithNotice() private {
        impoverish(1e6);
        skip(2 days + 1);
        treasury.windDown();
    }

    function test_a_heartbeat_cancels_the_notice() public {
        starvedWithNotice();
        beat();
        eq(treasury.standing().starveNoticeAt, 0, "cancelled");
        skip(6 hours);
        refuses(ITreasury.NotStarved.selector);
        treasury.windDown();
    }

    function test_money_cancels_the_notice(address who) public {
        starvedWithNotice();
        usdc.mint(address(treasury), 5e6);
        skip(6 hours);
        vm.prank(who);
        treasury.windDown();
        yes(treasury.state().stage == ITreasury.Stage.Alive, "funded");
        eq(treasury.standing().starveNoticeAt, 0, "cancelled");
        refuses(ITreasury.NotStarved.selector);
        treasury.windDown();
        impoverish(1e6); // poor again: the notice begins anew
        treasury.windDown();
        eq(treasury.standing().starveNoticeAt, block.timestamp, "a new notice");
    }

    function test_a_rescue_cancels_the_notice() public {
        starvedWithNotice();
        treasury.rescue(offerB, TERM, 1e5, approveRescue(offerB, TERM, 1e5));
        eq(treasury.standing().starveNoticeAt, 0, "cancelled");
    }

    function test_daemons_can_ask_for_the_reason() public {
        yes(treasury.windDownReason() == ITreasury.Reason.None, "it lives");
        impoverish(1e6);
        yes(treasury.windDownReason() == ITreasury.Reason.None, "poor, but heard of");
        vm.prank(nodeKey(1));
        yes(treasury.windDownReason() == ITreasury.Reason.Starved, "the operator knows");
        skip(2 days + 1);
        yes(treasury.windDownReason() == ITreasury.Reason.Starved, "poor and silent");
        vm.warp(treasury.state().mandateUntil + 1);
        yes(treasury.windDownReason() == ITreasury.Reason.MandateOver, "the mandate is over");
        treasury.stop(approve("stop", 0));
        yes(treasury.windDownReason() == ITreasury.Reason.Stopped, "stopped");
        treasury.windDown();
        yes(treasury.windDownReason() == ITreasury.Reason.None, "under way");
    }

    function test_a_frozen_token_is_a_named_outcome(uint256 quiet) public {
        usdc.setFrozen(address(treasury), true);
        skip(bound(quiet, 0, 3 days));
        bool silent = block.timestamp > treasury.state().lastHeartbeat + 2 days;
        if (!silent) refuses(ITreasury.NotStarved.selector);
        vm.prank(stranger);
        treasury.windDown();
        yes(treasury.windDownReason() == (silent ? ITreasury.Reason.Frozen : ITreasury.Reason.None), "named");
        vm.prank(nodeKey(1));
        treasury.windDown(); // the operator need not wait
        skip(3 days);
        treasury.close();
        uint256 gas = address(treasury).balance;
        vm.prank(beneficiary);
        treasury.withdraw();
        eq(beneficiary.balance, gas, "what is left that is not frozen");
        yes(usdc.balanceOf(address(treasury)) > 0, "the rest waits");
        usdc.setFrozen(address(treasury), false);
        treasury.sweep();
        vm.prank(beneficiary);
        treasury.withdraw();
        eq(usdc.balanceOf(beneficiary), SEED - usdc.balanceOf(providerA), "and is not lost");
    }

    function test_escrow_counts_as_means() public {
        standby(offerB);
        vm.prank(nodeKey(1));
        treasury.topUp(2, PREPAY_MAX / 2);
        impoverish(2e6 - 7e5);
        skip(2 days + 1);
        ITreasury.State memory s = treasury.state();
        yes(s.balance < 2e6 && s.escrow > 0, "poor but for escrow");
        // Silent leases stopped accruing, so what is left in escrow still counts.
        if (s.balance + s.escrow >= 2e6) refuses(ITreasury.NotStarved.selector);
        treasury.windDown();
        eq(treasury.standing().starveNoticeAt != 0 ? 1 : 0, s.balance + s.escrow < 2e6 ? 1 : 0, "poor with its escrow");
    }

    function test_the_operator_ends_a_starved_life_at_once_unless_held() public {
        refuses(ITreasury.NotStarved.selector);
        vm.prank(nodeKey(1));
        treasury.windDown();
        impoverish(1e6);
        treasury.pause(approve("pause", 0));
        refuses(ITreasury.NotStarved.selector);
        vm.prank(nodeKey(1));
        treasury.windDown();
        treasury.resume(approve("resume", 0));
        refuses(ITreasury.NotStarved.selector);
        vm.prank(stranger);
        treasury.windDown();
        vm.prank(nodeKey(1));
        treasury.windDown();
        yes(treasury.state().stage == ITreasury.Stage.WindingDown, "winding down");
    }

    function test_wind_down_closes_the_standby_and_keeps_the_host(bool ready) public {
        vm.prank(nodeKey(1));
        treasury.rent(offerB, TERM, 1e5);
        if (ready) makeReady(2);
        else skip(READY_WITHIN + 1);
        windingDown();
        yes(market.leaseOf(2).state == ILeaseMarket.LeaseState.Closed, "the standby is closed");
        yes(market.leaseOf(1).state == ILeaseMarket.LeaseState.Ready, "the host stays for the refunds");
        eq(operator(), nodeKey(1), "and so does the operator");
    }

    // ------------------------------------------------------------------ close

    function test_close_waits_for_the_refund_window(uint256 early, uint256 late) public {
        refuses(ITreasury.WrongStage.selector);
        treasury.close();
        windingDown();
        uint256 from = block.timestamp + 3 days;
        vm.warp(block.timestamp + bound(early, 0, 3 days - 1));
        refuses(abi.encodeWithSelector(ITreasury.TooEarly.selector, uint64(from)));
        treasury.close();
        vm.warp(from + bound(late, 0, 60 days));
        vm.prank(stranger);
        treasury.close();
        ITreasury.State memory s = treasury.state();
        yes(s.stage == ITreasury.Stage.Closed, "closed");
        eq(s.operator, address(0), "nobody");
        eq(s.escrow, 0, "no escrow");
        refuses(ITreasury.WrongStage.selector);
        treasury.close();
    }

    function test_everything_ends_with_the_beneficiary(uint256 drain, bool paused) public {
        standby(offerB);
        if (drain % 2 == 0) handTo(2);
        if (paused) treasury.pause(approve("pause", 0));
        windingDown();
        skip(3 days);
        treasury.close();
        uint256 gas = address(treasury).balance;
        vm.prank(beneficiary);
        treasury.withdraw();
        uint256 earned = usdc.balanceOf(providerA) + usdc.balanceOf(providerB);
        eq(usdc.balanceOf(beneficiary), SEED - earned, "all that was not rent");
        eq(usdc.balanceOf(address(market)), 3 * STAKE, "nothing is left in the market");
        eq(beneficiary.balance, gas, "and the gas");
        eq(address(treasury).balance, 0, "nothing left");
    }

    function test_close_works_when_hosts_ended_the_leases() public {
        windingDown();
        skip(3 days);
        market.expire(1);
        treasury.close();
        eq(treasury.state().escrow, 0, "closed");
    }

    // ------------------------------------------------------------------ sweep, withdraw

    function test_only_the_beneficiary_withdraws_and_only_when_closed(address who) public {
        refuses(ITreasury.WrongStage.selector);
        vm.prank(beneficiary);
        treasury.withdraw();
        windingDown();
        refuses(ITreasury.WrongStage.selector);
        vm.prank(beneficiary);
        treasury.withdraw();
        skip(3 days);
        treasury.close();
        vm.assume(who != beneficiary);
        refuses(ITreasury.NotBeneficiary.selector);
        vm.prank(who);
        treasury.withdraw();
    }

    function test_late_arrivals_are_withdrawable_for_ever(uint128 late, uint128 gas) public {
        windingDown();
        refuses(ITreasury.WrongStage.selector);
        treasury.sweep();
        skip(3 days);
        treasury.close();
        vm.prank(beneficiary);
        treasury.withdraw();
        uint256 before = usdc.balanceOf(beneficiary);
        uint256 had = beneficiary.balance;
        late = uint128(bound(late, 0, 1e15));
        usdc.mint(address(treasury), late);
        vm.deal(address(treasury), gas);
        treasury.sweep();
        vm.prank(beneficiary);
        treasury.withdraw();
        eq(usdc.balanceOf(beneficiary), before + late, "late money");
        eq(beneficiary.balance, had + gas, "late gas");
    }

    function test_a_frozen_treasury_still_closes_and_is_swept_later() public {
        windingDown();
        skip(3 days);
        usdc.setFrozen(address(treasury), true);
        treasury.close();
        uint256 owed = market.owedTo(address(treasury));
        yes(owed > 0, "the refund waits in the market");
        usdc.setFrozen(address(treasury), false);
        treasury.sweep();
        eq(market.owedTo(address(treasury)), 0, "fetched");
        eq(treasury.state().balance, SEED - usdc.balanceOf(providerA), "whole");
    }

    function test_the_closed_do_nothing_else() public {
        windingDown();
        skip(3 days);
        treasury.close();
        ITreasury.Approval memory a = approve("pause", 0);
        refuses(ITreasury.WrongStage.selector);
        treasury.pause(a);
        a = approve("evict", 0);
        refuses(ITreasury.WrongStage.selector);
        treasury.evict(0, a);
        a = approve("clearBar", uint160(providerA));
        refuses(ITreasury.WrongStage.selector);
        treasury.clearBar(providerA, a);
        refuses(ITreasury.WrongStage.selector);
        vm.prank(stewards[0]);
        treasury.challenge();
        refuses(ITreasury.WrongStage.selector);
        vm.prank(nodeKey(2));
        treasury.takeover();
    }
}
