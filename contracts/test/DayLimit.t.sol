// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {ITreasury} from "../src/interfaces/ITreasury.sol";
import {World} from "./World.sol";

/// Gross commitments in any window of a day stay within policy, whatever comes back and whoever is operator.
contract DayLimitTest is World {
    struct Spent {
        uint256 time;
        uint256 amount;
    }

    Spent[] private log;

    function begin(uint32 day) private {
        ITreasury.Birth memory b = birth();
        b.timers.day = day;
        b.policy.termMax = uint32(min(b.policy.termMax, 30 * uint256(day)));
        b.policy.dayLimit = 1e6;
        treasury = create(b);
        usdc.mint(address(treasury), SEED);
        vm.prank(providerA);
        offerA = market.postOffer(PRICE, 1000, 1, 30 days, 1, 1, 0, "", "");
        vm.prank(providerB);
        offerB = market.postOffer(PRICE, 1000, 1, 30 days, 1, 1, 0, "", "");
        vm.prank(creator);
        uint256 lease = treasury.birthRent(offerA, b.policy.termMax, 0);
        makeReady(lease);
        vm.prank(creator);
        treasury.activate(lease);
    }

    /// Rents and releases again at once: the purest way to commit gross amounts.
    function commitGross(uint32 term, uint128 amount) private returns (bool done) {
        vm.prank(operator());
        try treasury.rent(offerB, term, amount) returns (uint256 lease) {
            vm.prank(operator());
            treasury.release(lease);
            log.push(Spent(block.timestamp, amount));
            return true;
        } catch (bytes memory why) {
            eq(bytes32(bytes4(why)), bytes32(ITreasury.OverDayLimit.selector), "refused for the limit");
            return false;
        }
    }

    function test_no_window_of_a_day_passes_the_limit(uint32 day, uint256 seed) public {
        day = uint32(bound(day, 20, 3 days));
        begin(day);
        uint32 term = treasury.birthOf().policy.termMax;
        uint256 most = min(uint256(PRICE) * term / 1e6, PREPAY_MAX);
        for (uint256 i = 0; i < 20; ++i) {
            seed = uint256(keccak256(abi.encode(seed, i)));
            skip(seed % (day / 5 + 1));
            commitGross(term, uint128(bound(seed >> 128, 0, most)));
            uint256 window = 0;
            for (uint256 j = log.length; j > 0 && log[j - 1].time + day > block.timestamp; --j) {
                window += log[j - 1].amount;
            }
            yes(window <= 1e6, "any day's window is within the limit");
            yes(treasury.state().spentInDay >= window, "the contract counts at least the window");
        }
        // And it is a day's limit, not a life's: 25 slots later everything is free again.
        skip(25 * ((uint256(day) + 23) / 24));
        eq(treasury.state().spentInDay, 0, "forgotten after 25 slots");
        no(commitGross(term, 0) && treasury.state().spentInDay != 0, "still works");
    }

    function test_the_limit_says_what_is_left(uint128 first, uint128 second) public {
        begin(DAY);
        first = uint128(bound(first, 1, PREPAY_MAX));
        vm.prank(operator());
        treasury.rent(offerB, TERM, first);
        vm.prank(operator());
        treasury.release(2);
        second = uint128(bound(second, 1, PREPAY_MAX));
        bool fits = uint256(first) + second <= 1e6;
        if (!fits) refuses(abi.encodeWithSelector(ITreasury.OverDayLimit.selector, 1e6 - uint256(first)));
        vm.prank(nodeKey(1));
        treasury.rent(offerB, TERM, second);
    }

    /// What was spent in the last second of a slot is less than a day old until the 25th slot after it begins.
    function test_a_day_is_a_whole_day_at_the_edges_of_its_slots(uint256 offset) public {
        begin(DAY);
        vm.warp(block.timestamp / 1 hours * 1 hours + 1 hours - 1);
        uint256 spentAt = block.timestamp;
        settle(2e6, "n");
        vm.prank(nodeKey(1));
        treasury.refundExact(customer, "n", 1e6);
        vm.warp(spentAt + 23 hours + 1 + bound(offset, 0, 1 hours - 1)); // the 24th slot
        refuses(abi.encodeWithSelector(ITreasury.OverDayLimit.selector, uint256(0)));
        vm.prank(nodeKey(1));
        treasury.refundExact(customer, "n", 1);
        vm.warp(spentAt + 24 hours + 1);
        vm.prank(nodeKey(1));
        treasury.refundExact(customer, "n", 1e6);
    }

    function test_it_survives_a_change_of_operator() public {
        begin(DAY);
        vm.prank(operator());
        treasury.rent(offerB, TERM, 3e5);
        makeReady(2);
        handTo(2);
        eq(treasury.state().spentInDay, 3e5, "the new epoch inherits what was spent");
        vm.prank(nodeKey(2));
        treasury.topUp(1, PREPAY_MAX);
        refuses(abi.encodeWithSelector(ITreasury.OverDayLimit.selector, 7e5 - uint256(PREPAY_MAX)));
        vm.prank(nodeKey(2));
        treasury.topUp(2, 7e5 - PREPAY_MAX + 1);
    }

    function test_refunds_count(uint128 amount) public {
        begin(DAY);
        settle(5e6, "n");
        amount = uint128(bound(amount, 1, 5e6));
        if (amount > 1e6) refuses(ITreasury.OverDayLimit.selector);
        vm.prank(nodeKey(1));
        treasury.refundExact(customer, "n", amount);
        eq(treasury.state().spentInDay, amount > 1e6 ? 0 : amount, "counted");
    }
}
