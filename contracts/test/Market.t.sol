// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {ILeaseMarket} from "../src/interfaces/ILeaseMarket.sol";
import {World} from "./World.sol";

/// The lease market on its own, with tenants that are no treasuries.
contract MarketTest is World {
    address private tenant = address(0x7E2A);

    function setUp() public override {
        super.setUp();
        usdc.mint(tenant, 1000e6);
        vm.prank(tenant);
        usdc.approve(address(market), type(uint256).max);
    }

    function rented(uint128 prepay) private returns (uint256 lease) {
        vm.prank(tenant);
        return market.rent(offerA, TERM, CODE, prepay);
    }

    function rentedAndReady(uint128 prepay) private returns (uint256 lease) {
        lease = rented(prepay);
        makeReady(lease);
    }

    function whole() private pure returns (uint128) {
        return uint128(uint256(PRICE) * TERM / 1e6);
    }

    // ------------------------------------------------------------------ constructor, register, unregister

    function test_a_market_needs_sense(uint32 readyWithin, uint32 grace, uint32 dropAfter) public {
        bytes4 bad = ILeaseMarket.BadMarket.selector;
        makes(address(0), STAKE, 1, 1, 1, ILeaseMarket.ZeroAddress.selector);
        makes(address(usdc), 0, 1, 1, 1, bad);
        makes(address(usdc), STAKE, 0, 1, 1, bad);
        makes(address(usdc), STAKE, 1, 0, 1, bad);
        makes(address(usdc), STAKE, 1, 2, 1, bad);
        bool sane = readyWithin != 0 && grace != 0 && grace <= dropAfter;
        address place = makes(address(usdc), STAKE + grace, readyWithin, grace, dropAfter, sane ? bytes4(0) : bad);
        if (!sane) return;
        market = ILeaseMarket(place);
        eq(market.token(), address(usdc), "token");
        eq(market.minStake(), STAKE + grace, "stake");
        eq(market.readyWithin(), readyWithin, "time to get ready");
        eq(market.grace(), grace, "grace");
        eq(market.dropAfter(), dropAfter, "silence");
    }

    /// A market of these numbers, or the refusal that is wanted.
    function makes(address token, uint256 stake, uint32 within, uint32 grace, uint32 dropAfter, bytes4 wanted)
        private returns (address place)
    {
        bytes memory code = vm.getCode("out/LeaseMarket.sol/LeaseMarket.json");
        code = bytes.concat(code, abi.encode(token, stake, within, grace, dropAfter));
        bytes4 why;
        assembly ("memory-safe") {
            place := create(0, add(code, 32), mload(code))
            if iszero(place) {
                returndatacopy(0, 0, 4)
                why := mload(0)
            }
        }
        eq(bytes32(why) >> 224, bytes32(wanted) >> 224, "as wanted");
    }

    function test_a_stake_is_whole_and_comes_back(uint256 first, uint256 second) public {
        address who = address(0xD11);
        usdc.mint(who, 1000e6);
        vm.prank(who);
        usdc.approve(address(market), type(uint256).max);
        first = bound(first, 0, 500e6);
        if (first == 0) refuses(ILeaseMarket.ZeroAmount.selector);
        else if (first < STAKE) refuses(ILeaseMarket.NotStaked.selector);
        vm.prank(who);
        market.register(first);
        if (first < STAKE) return;
        second = bound(second, 1, 500e6);
        vm.prank(who);
        market.register(second);
        eq(market.stakeOf(who), first + second, "stake");
        vm.prank(who);
        market.unregister();
        eq(usdc.balanceOf(who), 1000e6, "back");
        refuses(ILeaseMarket.NotStaked.selector);
        vm.prank(who);
        market.unregister();
    }

    function test_a_stake_stays_while_a_lease_is_open(bool ready) public {
        uint256 lease = ready ? rentedAndReady(1e5) : rented(1e5);
        refuses(ILeaseMarket.StakeInUse.selector);
        vm.prank(providerA);
        market.unregister();
        vm.prank(tenant);
        market.close(lease);
        vm.prank(providerA);
        market.unregister();
    }

    // ------------------------------------------------------------------ offers

    function test_only_the_staked_post_offers_with_possible_terms(address who, uint32 shortest, uint32 longest) public {
        vm.assume(who != providerA && who != providerB && who != providerC);
        refuses(ILeaseMarket.NotStaked.selector);
        vm.prank(who);
        market.postOffer(1, 1, 1, 1, 1, 1, 0, "", "");
        bool possible = shortest != 0 && shortest <= longest && longest <= 30 days;
        if (!possible) refuses(ILeaseMarket.BadTerm.selector);
        vm.prank(providerA);
        market.postOffer(1, 1, shortest, longest, 1, 1, 0, "", "");
    }

    function test_only_its_provider_changes_an_offer(address who, uint64 priceE6, uint32 capacity) public {
        vm.prank(providerA);
        market.reprice(offerA, priceE6);
        vm.prank(providerA);
        market.setCapacity(offerA, capacity);
        eq(market.offerOf(offerA).priceE6, priceE6, "price");
        eq(market.offerOf(offerA).capacity, capacity, "capacity");
        vm.assume(who != providerA);
        refuses(ILeaseMarket.NotProvider.selector);
        vm.prank(who);
        market.reprice(offerA, 1);
        refuses(ILeaseMarket.NotProvider.selector);
        vm.prank(who);
        market.setCapacity(offerA, 1);
    }

    // ------------------------------------------------------------------ rent

    function test_rent_takes_an_offer_as_it_is(uint256 offer, uint32 term, uint128 prepay) public {
        offer = bound(offer, 0, 4);
        bool exists = offer != 0 && offer != 4;
        bool fits = term >= 1 days && term <= 30 days;
        uint256 most = (uint256(PRICE) * term + 999_999) / 1e6;
        prepay = uint128(bound(prepay, 0, 200e6));
        if (!exists) refuses(ILeaseMarket.UnknownOffer.selector);
        else if (!fits) refuses(ILeaseMarket.BadTerm.selector);
        else if (prepay > most) refuses(ILeaseMarket.OverEscrow.selector);
        vm.prank(tenant);
        market.rent(offer, term, CODE, prepay);
    }

    function test_an_offer_has_a_capacity(uint32 capacity) public {
        capacity = uint32(bound(capacity, 0, 8));
        vm.prank(providerA);
        market.setCapacity(offerA, capacity);
        for (uint256 i = 0; i < capacity; ++i) {
            rented(0);
        }
        refuses(ILeaseMarket.NoCapacity.selector);
        vm.prank(tenant);
        market.rent(offerA, TERM, CODE, 0);
        if (capacity == 0) return;
        vm.prank(tenant);
        market.close(1);
        rented(0);
        eq(market.offerOf(offerA).used, capacity, "used");
        eq(market.openLeasesOf(providerA), capacity, "open");
    }

    function test_a_running_lease_keeps_its_price(uint64 priceE6) public {
        uint256 lease = rentedAndReady(1e6);
        vm.prank(providerA);
        market.reprice(offerA, priceE6);
        skip(1 hours);
        eq(market.accrued(lease), 4 * 3600, "the old price");
    }

    // ------------------------------------------------------------------ ready

    function test_ready_within_its_time_and_by_its_provider(uint256 late, address who) public {
        uint256 lease = rented(1e5);
        vm.assume(who != providerA);
        refuses(ILeaseMarket.NotProvider.selector);
        vm.prank(who);
        market.ready(lease, stranger, "", 0);
        refuses(ILeaseMarket.ZeroAddress.selector);
        vm.prank(providerA);
        market.ready(lease, address(0), "", 0);
        late = bound(late, 0, 2 * READY_WITHIN);
        skip(late);
        if (late > READY_WITHIN) refuses(ILeaseMarket.TooLate.selector);
        vm.prank(providerA);
        market.ready(lease, stranger, "http://node", "tls");
        if (late > READY_WITHIN) return;
        ILeaseMarket.Lease memory l = market.leaseOf(lease);
        eq(l.start, block.timestamp, "start");
        eq(l.end, block.timestamp + TERM, "end");
        eq(l.nodeKey, stranger, "key");
        eq(l.tlsKeyHash, "tls", "tls");
    }

    function test_a_node_key_is_replaced_only_after_silence(uint256 quiet) public {
        uint256 lease = rentedAndReady(1e5);
        quiet = bound(quiet, 0, TERM + 1);
        skip(quiet);
        if (quiet <= GRACE) refuses(ILeaseMarket.TooEarly.selector);
        else if (quiet >= TERM) refuses(ILeaseMarket.TooLate.selector);
        vm.prank(providerA);
        market.ready(lease, stranger, "again", 0);
        eq(market.leaseOf(lease).nodeKey, quiet > GRACE && quiet < TERM ? stranger : nodeKey(lease), "key");
    }

    // ------------------------------------------------------------------ rent accrues

    function test_rent_accrues_to_the_last_voucher_plus_grace_and_no_further(uint256 vouched, uint256 later) public {
        uint256 lease = rentedAndReady(whole());
        vouched = bound(vouched, 0, TERM);
        later = bound(later, 0, TERM);
        skip(vouched);
        vm.prank(tenant);
        market.vouch(lease);
        skip(later);
        uint256 time = min(min(vouched + later, TERM), vouched + GRACE);
        eq(market.accrued(lease), time * PRICE / 1e6, "rent");
    }

    function test_rounding_favours_the_provider_by_less_than_one(uint64 priceE6, uint256 time, uint256 stops) public {
        uint256 offer = provider(address(0xD11), priceE6);
        uint256 most = (uint256(priceE6) * TERM + 999_999) / 1e6;
        vm.assume(most <= 1e15);
        usdc.mint(tenant, most);
        vm.prank(tenant);
        uint256 lease = market.rent(offer, TERM, CODE, uint128(most));
        makeReady(lease);
        time = bound(time, 0, TERM);
        stops = bound(stops, 1, 8);
        for (uint256 i = 0; i < stops; ++i) {
            skip(time / stops);
            vm.prank(tenant);
            market.vouch(lease);
            vm.prank(address(0xD11));
            market.withdraw(lease); // however often it is fetched, it is rounded once
        }
        uint256 exact = uint256(priceE6) * (time / stops * stops);
        uint256 got = usdc.balanceOf(address(0xD11));
        yes(got * 1e6 >= exact && got * 1e6 < exact + 1e6, "up, by less than a micro-USDC");
    }

    function test_escrow_is_never_overdrawn(uint128 prepay, uint256 time) public {
        prepay = uint128(bound(prepay, 0, whole()));
        uint256 lease = rentedAndReady(prepay);
        time = bound(time, 0, GRACE);
        skip(time);
        uint256 earned = min(time * PRICE / 1e6, prepay);
        eq(market.accrued(lease), earned, "rent");
        vm.prank(providerA);
        market.withdraw(lease);
        vm.prank(providerA);
        market.withdraw(lease);
        eq(usdc.balanceOf(providerA), earned, "once");
        vm.prank(tenant);
        eq(market.close(lease), prepay - earned, "the rest");
        eq(usdc.balanceOf(address(market)), 3 * STAKE, "stakes untouched");
    }

    function test_only_its_provider_withdraws(address who) public {
        uint256 lease = rented(1e5);
        refuses(ILeaseMarket.WrongState.selector);
        vm.prank(providerA);
        market.withdraw(lease);
        makeReady(lease);
        vm.assume(who != providerA);
        refuses(ILeaseMarket.NotProvider.selector);
        vm.prank(who);
        market.withdraw(lease);
    }

    // ------------------------------------------------------------------ topUp, vouch, close

    function test_anyone_tops_up_but_never_past_the_whole_rent(uint128 prepay, uint128 amount) public {
        prepay = uint128(bound(prepay, 0, whole()));
        amount = uint128(bound(amount, 0, 2 * uint256(whole())));
        uint256 lease = rented(prepay);
        vm.prank(customer);
        usdc.approve(address(market), type(uint256).max);
        bool fits = uint256(prepay) + amount <= whole();
        if (amount == 0) refuses(ILeaseMarket.ZeroAmount.selector);
        else if (!fits) refuses(ILeaseMarket.OverEscrow.selector);
        vm.prank(customer);
        market.topUp(lease, amount);
        eq(market.leaseOf(lease).escrow, prepay + (fits ? amount : 0), "escrow");
    }

    function test_only_its_tenant_vouches_and_closes(address who) public {
        uint256 lease = rented(1e5);
        vm.prank(tenant);
        no(market.vouch(lease), "nothing runs yet");
        eq(market.leaseOf(lease).vouchedAt, 0, "no effect");
        makeReady(lease);
        vm.prank(tenant);
        yes(market.vouch(lease), "counted");
        vm.assume(who != tenant);
        refuses(ILeaseMarket.NotTenant.selector);
        vm.prank(who);
        market.vouch(lease);
        refuses(ILeaseMarket.NotTenant.selector);
        vm.prank(who);
        market.close(lease);
        uint64 before = market.leaseOf(lease).vouchedAt;
        skip(TERM + 1);
        vm.prank(tenant);
        no(market.vouch(lease), "its time is over");
        eq(market.leaseOf(lease).vouchedAt, before, "no effect");
    }

    function test_the_closed_stay_closed() public {
        uint256 lease = rentedAndReady(1e5);
        vm.prank(tenant);
        market.close(lease);
        refuses(ILeaseMarket.WrongState.selector);
        vm.prank(tenant);
        market.close(lease);
        refuses(ILeaseMarket.WrongState.selector);
        vm.prank(tenant);
        market.topUp(lease, 1);
        refuses(ILeaseMarket.WrongState.selector);
        vm.prank(providerA);
        market.ready(lease, stranger, "", 0);
        refuses(ILeaseMarket.WrongState.selector);
        market.expire(lease);
        refuses(ILeaseMarket.WrongState.selector);
        market.reclaim(lease);
        refuses(ILeaseMarket.WrongState.selector);
        vm.prank(providerA);
        market.withdraw(lease);
    }

    // ------------------------------------------------------------------ reclaim, expire, record

    function test_a_host_that_never_came_is_reclaimed_by_anyone(uint256 late, address who) public {
        uint256 lease = rented(1e5);
        late = bound(late, 0, 2 * READY_WITHIN);
        skip(late);
        if (late <= READY_WITHIN) refuses(ILeaseMarket.TooEarly.selector);
        vm.prank(who);
        market.reclaim(lease);
        eq(usdc.balanceOf(tenant), late > READY_WITHIN ? 1000e6 : 1000e6 - 1e5, "full refund");
        eq(market.recordOf(providerA).failed, late > READY_WITHIN ? 1 : 0, "on record");
    }

    function test_silence_or_the_end_expires_a_lease(uint256 vouched, uint256 later) public {
        uint256 lease = rentedAndReady(whole());
        vouched = bound(vouched, 0, TERM);
        later = bound(later, 0, TERM);
        skip(vouched);
        vm.prank(tenant);
        market.vouch(lease);
        skip(later);
        bool over = vouched + later >= TERM || later > DROP_AFTER;
        if (!over) refuses(ILeaseMarket.TooEarly.selector);
        market.expire(lease);
        if (!over) return;
        uint256 paid = usdc.balanceOf(providerA);
        eq(paid, min(vouched + GRACE, min(TERM, vouched + later)) * PRICE / 1e6, "rent to the voucher plus grace");
        eq(usdc.balanceOf(tenant), 1000e6 - paid, "the rest is back");
        eq(market.recordOf(providerA).served, vouched + later >= TERM ? 1 : 0, "served");
        eq(market.recordOf(providerA).failed, vouched + later >= TERM ? 0 : 1, "failed");
    }

    function test_a_frozen_party_holds_nobody_else(bool providerFrozen, uint256 used) public {
        uint256 lease = rentedAndReady(1e5);
        skip(bound(used, 1, 4 hours));
        uint256 earned = market.accrued(lease);
        address frozen = providerFrozen ? providerA : tenant;
        uint256 due = providerFrozen ? earned : 1e5 - earned;
        usdc.setFrozen(frozen, true);
        vm.prank(tenant);
        market.close(lease);
        eq(market.owedTo(frozen), due, "waits");
        if (due == 0) return;
        vm.expectRevert();
        market.collect(frozen);
        usdc.setFrozen(frozen, false);
        uint256 before = usdc.balanceOf(frozen);
        market.collect(frozen);
        eq(usdc.balanceOf(frozen), before + due, "collected");
        refuses(ILeaseMarket.ZeroAmount.selector);
        market.collect(frozen);
    }
}
