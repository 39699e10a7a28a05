// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {ITreasury} from "../src/interfaces/ITreasury.sol";
import {FeedDouble, RouterDouble, WethDouble} from "./Doubles.sol";
import {World} from "./World.sol";

/// spend and buyGas.
contract SpendTest is World {
    address private archive = address(0xA5C11);
    address private tools = address(0x7001);
    WethDouble private weth;
    RouterDouble private router;
    FeedDouble private feed;
    FeedDouble private uptime;
    uint256 private constant PRICE_E8 = 2500e8; // dollars for an ETH
    uint256 private constant RATE = 4e8; // wei for a micro-USDC at that price

    function setUp() public override {
        super.setUp();
        weth = new WethDouble();
        router = new RouterDouble(weth, usdc);
        (feed, uptime) = (new FeedDouble(8), new FeedDouble(0));
        vm.deal(address(router), 1000 ether);
        fresh();
        router.set(RATE, true);
        live();
        // The first gas is mostly used up.
        vm.deal(address(treasury), 0.1 ether);
    }

    function fresh() private {
        feed.set(int256(PRICE_E8), block.timestamp, block.timestamp);
        uptime.set(0, block.timestamp - 1 hours, block.timestamp);
    }

    function options() internal view override returns (ITreasury.Options memory o) {
        o.payees = new ITreasury.Payee[](2);
        o.payees[0] = ITreasury.Payee(ITreasury.Kind.Storage, archive, 1e6);
        o.payees[1] = ITreasury.Payee(ITreasury.Kind.Tools, tools, 2e6);
        o.purseMax = 3e6;
        o.gas = ITreasury.GasMarket(address(router), address(weth), address(feed), address(uptime), 500, 100, 1 hours);
    }

    function purse() private view returns (address) {
        return treasury.standing().purse;
    }

    function spend(ITreasury.Kind kind, address payee, uint128 amount) private {
        vm.prank(operator());
        treasury.spend(kind, payee, amount);
    }

    // ------------------------------------------------------------------ spend

    function test_each_payee_has_its_ceiling_of_the_day(uint128 first, uint128 second) public {
        first = uint128(bound(first, 1, 1e6));
        second = uint128(bound(second, 1, 1e6));
        spend(ITreasury.Kind.Storage, archive, first);
        eq(usdc.balanceOf(archive), first, "paid");
        eq(treasury.state().spentInDay, first, "counted");
        bool fits = first + second <= 1e6;
        if (!fits) refuses(abi.encodeWithSelector(ITreasury.OverCeiling.selector, uint256(1e6 - first)));
        vm.prank(nodeKey(1));
        treasury.spend(ITreasury.Kind.Storage, archive, second);
        spend(ITreasury.Kind.Tools, tools, 2e6); // its own ceiling
        skip(25 hours);
        beat();
        spend(ITreasury.Kind.Storage, archive, 1e6);
    }

    function test_only_births_payees_are_paid(address payee, uint8 kind) public {
        kind = kind % 3;
        bool listed = (payee == archive && kind == 0) || (payee == tools && kind == 1) || (payee == purse() && kind == 2);
        vm.assume(!listed);
        refuses(abi.encodeWithSelector(ITreasury.NotPayee.selector, payee));
        vm.prank(nodeKey(1));
        treasury.spend(ITreasury.Kind(kind), payee, 1);
        refuses(abi.encodeWithSelector(ITreasury.NotPayee.selector, archive));
        vm.prank(nodeKey(1));
        treasury.spend(ITreasury.Kind.Tools, archive, 1);
    }

    function test_the_purse_is_filled_up_to_its_cap(uint128 has, uint128 more) public {
        has = uint128(bound(has, 1, 3e6));
        more = uint128(bound(more, 1, 3e6));
        spend(ITreasury.Kind.Purse, purse(), has);
        eq(usdc.balanceOf(purse()), has, "filled");
        bool fits = has + more <= 3e6;
        if (fits) {
            // The day limit of 5e6 is not in the way: the cap is lower.
            spend(ITreasury.Kind.Purse, purse(), more);
        } else {
            address full = purse();
            refuses(abi.encodeWithSelector(ITreasury.OverCeiling.selector, uint256(3e6 - has)));
            vm.prank(nodeKey(1));
            treasury.spend(ITreasury.Kind.Purse, full, more);
        }
    }

    function test_the_day_limit_counts_every_kind() public {
        spend(ITreasury.Kind.Purse, purse(), 3e6);
        spend(ITreasury.Kind.Storage, archive, 1e6);
        spend(ITreasury.Kind.Tools, tools, 1e6);
        refuses(abi.encodeWithSelector(ITreasury.OverDayLimit.selector, uint256(0)));
        vm.prank(nodeKey(1));
        treasury.spend(ITreasury.Kind.Tools, tools, 1);
        // What comes back makes no room.
        treasury.pause(approve("pause", 0));
        treasury.resume(approve("resume", 0));
        address empty = purse();
        eq(usdc.balanceOf(empty), 0, "swept");
        refuses(ITreasury.OverDayLimit.selector);
        vm.prank(nodeKey(1));
        treasury.spend(ITreasury.Kind.Purse, empty, 1);
    }

    function test_spending_is_the_free_operators(address who) public {
        vm.assume(who != nodeKey(1));
        address full = purse();
        refuses(ITreasury.NotOperator.selector);
        vm.prank(who);
        treasury.spend(ITreasury.Kind.Purse, full, 1);
        refuses(ITreasury.NotOperator.selector);
        vm.prank(who);
        treasury.buyGas(1);
        refuses(ITreasury.ZeroAmount.selector);
        vm.prank(nodeKey(1));
        treasury.spend(ITreasury.Kind.Storage, archive, 0);
        treasury.pause(approve("pause", 0));
        refuses(ITreasury.IsPaused.selector);
        vm.prank(nodeKey(1));
        treasury.spend(ITreasury.Kind.Purse, full, 1);
        refuses(ITreasury.IsPaused.selector);
        vm.prank(nodeKey(1));
        treasury.buyGas(1);
        treasury.resume(approve("resume", 0));
        treasury.stop(approve("stop", 0));
        refuses(ITreasury.WrongStage.selector);
        vm.prank(nodeKey(1));
        treasury.spend(ITreasury.Kind.Storage, archive, 1);
    }

    function test_a_restoring_operator_buys_nothing() public {
        standby(offerB);
        challengeUnanswered();
        vm.prank(nodeKey(2));
        treasury.takeover();
        refuses(ITreasury.IsRestoring.selector);
        vm.prank(nodeKey(2));
        treasury.spend(ITreasury.Kind.Storage, archive, 1);
        refuses(ITreasury.IsRestoring.selector);
        vm.prank(nodeKey(2));
        treasury.buyGas(1);
        refuses(ITreasury.IsRestoring.selector);
        vm.prank(nodeKey(2));
        treasury.hibernate(uint64(block.timestamp + 1 days));
    }

    // ------------------------------------------------------------------ buyGas

    function buy(uint128 max) private returns (uint256) {
        vm.prank(nodeKey(1));
        return treasury.buyGas(max);
    }

    function refusedBuy(bytes4 why) private {
        refuses(why);
        vm.prank(nodeKey(1));
        treasury.buyGas(1e6);
    }

    function test_gas_is_bought_at_the_price(uint128 max) public {
        max = uint128(bound(max, 1, 5e6));
        uint256 had = address(treasury).balance;
        uint256 money = treasury.state().balance;
        eq(buy(max), max * RATE, "bought");
        eq(address(treasury).balance, had + max * RATE, "as plain ETH");
        eq(treasury.state().balance, money - max, "paid");
        eq(treasury.state().spentInDay, max, "counted");
        eq(router.feeAsked(), 500, "the pool of birth");
        eq(weth.balanceOf(address(treasury)), 0, "nothing stays wrapped");
    }

    function test_no_more_than_a_days_gas_is_bought(uint256 has) public {
        // A day's gas is 0.3 ether; 0.002 of it are 5 dollars, the day limit.
        has = bound(has, 0.298 ether, 0.4 ether);
        vm.deal(address(treasury), has);
        if (has >= 0.3 ether) {
            refusedBuy(ITreasury.ZeroAmount.selector);
            return;
        }
        uint256 missing = 0.3 ether - has;
        uint256 got = buy(5e6);
        yes(got >= missing && got < missing + RATE, "what is missing, rounded up");
        refusedBuy(ITreasury.ZeroAmount.selector);
    }

    function test_a_price_must_be_fresh(uint256 age) public {
        skip(bound(age, 0, 2 hours));
        bool stale = block.timestamp - 1_800_000_000 > 1 hours;
        if (stale) refusedBuy(ITreasury.BadPrice.selector);
        else buy(1e6);
        feed.set(int256(PRICE_E8), 0, 0);
        refusedBuy(ITreasury.BadPrice.selector);
        feed.set(int256(PRICE_E8), 0, block.timestamp + 1);
        refusedBuy(ITreasury.BadPrice.selector);
    }

    function test_a_price_must_be_positive(int256 answer) public {
        feed.set(answer > 0 ? -answer : answer, block.timestamp, block.timestamp);
        refusedBuy(ITreasury.BadPrice.selector);
    }

    function test_the_sequencer_must_be_up_for_an_hour(uint256 since, int256 down) public {
        since = bound(since, 0, 2 hours);
        uptime.set(0, block.timestamp - since, block.timestamp);
        if (since < 1 hours) refusedBuy(ITreasury.BadPrice.selector);
        else buy(1e6);
        vm.assume(down != 0);
        uptime.set(down, block.timestamp - 2 hours, block.timestamp);
        refusedBuy(ITreasury.BadPrice.selector);
        uptime.set(0, 0, block.timestamp);
        refusedBuy(ITreasury.BadPrice.selector);
        uptime.set(0, block.timestamp + 1, block.timestamp);
        refusedBuy(ITreasury.BadPrice.selector);
    }

    function test_a_pool_below_the_price_sells_nothing(uint256 rate) public {
        rate = bound(rate, RATE / 2, RATE);
        router.set(rate, true);
        bool fair = 1e6 * rate >= 1e6 * RATE * 99 / 100;
        if (!fair) vm.expectRevert();
        vm.prank(nodeKey(1));
        treasury.buyGas(1e6);
        eq(treasury.state().spentInDay, fair ? 1e6 : 0, "a failed purchase costs nothing");
    }

    function test_a_router_that_lies_is_not_believed(uint256 rate) public {
        rate = bound(rate, 0, RATE * 99 / 100 - 1);
        router.set(rate, false);
        refusedBuy(ITreasury.ShortSwap.selector);
    }

    function test_a_pool_better_than_the_price_is_welcome() public {
        router.set(RATE * 2, true);
        eq(buy(1e6), 2e6 * RATE, "more");
    }

    function test_the_router_keeps_no_allowance() public {
        buy(1e6);
        (bool asked, bytes memory left) =
            address(usdc).staticcall(abi.encodeWithSignature("allowance(address,address)", treasury, router));
        yes(asked && abi.decode(left, (uint256)) == 0, "nothing");
    }

    function test_what_birth_left_off_stays_off() public {
        ITreasury.Birth memory b = birth();
        b.options.gas.router = address(0);
        b.options.purseMax = 0;
        b.options.payees = new ITreasury.Payee[](0);
        treasury = create(b);
        usdc.mint(address(treasury), SEED);
        vm.prank(creator);
        uint256 lease = treasury.birthRent(offerA, TERM, 1);
        makeReady(lease);
        vm.prank(creator);
        treasury.activate(lease);
        refuses(ITreasury.Off.selector);
        vm.prank(nodeKey(lease));
        treasury.buyGas(1);
        refuses(ITreasury.NotPayee.selector);
        vm.prank(nodeKey(lease));
        treasury.spend(ITreasury.Kind.Purse, address(0), 1);
        refuses(ITreasury.Off.selector);
        vm.prank(nodeKey(lease));
        treasury.claimAndSettle(new ITreasury.VoucherClaim[](0));
        ITreasury.Approval memory a = approve("setCode", 1);
        refuses(ITreasury.Off.selector);
        treasury.setCode(bytes32(uint256(1)), a);
    }

    // ------------------------------------------------------------------ what a birth must satisfy

    function refusedBirth(ITreasury.Birth memory b, bytes4 why) private {
        refuses(why);
        vm.prank(b.creator);
        factory.create(b);
    }

    function test_births_list_names_somebody_and_never_the_creator() public {
        ITreasury.Birth memory b = birth();
        b.options.payees[1].payee = creator;
        refusedBirth(b, ITreasury.NotPayee.selector);
        b = birth();
        b.options.payees[0].payee = address(0);
        refusedBirth(b, ITreasury.NotPayee.selector);
        b = birth();
        b.options.payees[0].kind = ITreasury.Kind.Purse;
        refusedBirth(b, ITreasury.NotPayee.selector);
    }

    function test_a_gas_market_is_whole_or_off(uint16 bps) public {
        ITreasury.Birth memory b = birth();
        b.options.gas.oracle = address(0);
        refusedBirth(b, ITreasury.ZeroAddress.selector);
        b = birth();
        b.options.gas.weth = address(0);
        refusedBirth(b, ITreasury.ZeroAddress.selector);
        b = birth();
        b.options.gas.staleAfter = 0;
        refusedBirth(b, ITreasury.BadPolicy.selector);
        b = birth();
        b.options.gas.slippageBps = uint16(bound(bps, 1001, type(uint16).max));
        refusedBirth(b, ITreasury.BadPolicy.selector);
    }
}
