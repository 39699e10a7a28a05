// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {ILeaseMarket} from "../src/interfaces/ILeaseMarket.sol";
import {ITreasury} from "../src/interfaces/ITreasury.sol";
import {IUsdc, World} from "./World.sol";

/// Who can annoy whom, and what it costs: the rows of docs/concepts/lease-market.md that no other test holds. And the
/// ways to muddle exact refunds.
contract GriefTest is World {
    function setUp() public override {
        super.setUp();
        live();
    }

    // ------------------------------------------------------------------ the captured operator

    /// A thief with the operator key and two provider accounts of its own, and the day limit used up.
    function captured() private {
        standby(offerB); // the thief's first account
        handTo(2);
        standby(offerC); // and its second
        ITreasury.State memory s = treasury.state();
        uint256 left = treasury.birthOf().policy.dayLimit - s.spentInDay;
        settle(left, "friend");
        vm.prank(nodeKey(2));
        treasury.refundExact(customer, "friend", left);
        eq(treasury.state().spentInDay, 5e6, "nothing is left of the day");
    }

    function test_a_thief_cannot_come_back_by_its_other_accounts() public {
        captured();
        treasury.evict(0, approve("evict", 0));
        yes(treasury.isBarred(providerB) && treasury.isBarred(providerC), "both are barred");
        refuses(ILeaseMarket.WrongState.selector); // readying the old lease again
        vm.prank(providerC);
        market.ready(3, address(0x7E1EF), "", 0);
        refuses(ITreasury.NotNodeKey.selector);
        vm.prank(nodeKey(3));
        treasury.takeover();
        refuses(ITreasury.NotOperator.selector);
        vm.prank(nodeKey(2));
        treasury.heartbeat(0, 0, true);
    }

    function test_a_spent_day_does_not_keep_the_successor_out() public {
        captured();
        treasury.evict(0, approve("evict", 0));
        treasury.clearBar(providerA, approve("clearBar", uint160(providerA))); // the honest host of before
        ITreasury.Approval memory a = approveRescue(offerA, TERM, 1);
        refuses(ITreasury.OverDayLimit.selector);
        treasury.rescue(offerA, TERM, 1, a);
        treasury.rescue(offerA, TERM, 0, approveRescue(offerA, TERM, 0)); // on credit: nothing is prepaid today
        makeReady(4);
        vm.prank(nodeKey(4));
        treasury.takeover();
        commitNext("restored");
        beat();
        skip(25 hours);
        beat();
        vm.prank(nodeKey(4));
        treasury.topUp(4, 1e5);
        eq(market.leaseOf(4).escrow, 1e5, "paid from the next day on");
    }

    function test_gas_bought_in_circles_ends_at_the_days_cap(uint256 tries) public {
        tries = bound(tries, 1, 20);
        uint256 before = address(treasury).balance;
        for (uint256 i = 0; i < tries; ++i) {
            vm.deal(operator(), 0);
            treasury.refuel();
        }
        yes(before - address(treasury).balance <= 0.2 ether, "0.3 a day, 0.1 of it at activation");
    }

    // ------------------------------------------------------------------ the race against an eviction

    // A quorum has signed `evict` with the standby to be kept. The thief holds the operator's key and hosts of its own,
    // sees the order before it is mined, and moves first.

    address private constant LOOT = address(0x7E1EF);

    function test_a_handover_that_outruns_the_order_changes_nothing(uint256 late) public {
        standby(offerB); // an honest one
        announceAndWait(2);
        skip(bound(late, 0, 2 hours));
        ITreasury.Approval memory a = approve("evict", 2);
        vm.prank(nodeKey(1));
        treasury.handover(2, 0, 0, type(uint64).max);
        treasury.evict(2, a);
        ITreasury.State memory s = treasury.state();
        eq(s.operator, nodeKey(2), "whom the quorum meant");
        eq(s.epoch, 3, "in an epoch of its own");
        eq(s.drainingLease + s.standbyLease, 0, "the lease that the thief would drain is gone");
        yes(market.leaseOf(1).state == ILeaseMarket.LeaseState.Closed, "closed");
        yes(treasury.isBarred(providerA), "and its host barred");
        isOut(nodeKey(1));
    }

    function test_a_thief_that_drops_the_kept_standby_falls_with_the_next_order() public {
        standby(offerB); // an honest one
        ITreasury.Approval memory a = approve("evict", 2);
        vm.prank(nodeKey(1));
        treasury.release(2);
        standby(offerC); // its second account
        refuses(abi.encodeWithSelector(ITreasury.NotOurLease.selector, uint256(2)));
        treasury.evict(2, a);
        treasury.evict(0, approve("evict", 0)); // names no lease, so nothing that the thief does can miss it
        yes(treasury.isBarred(providerA) && treasury.isBarred(providerC), "both its hosts are barred");
        refuses(ITreasury.BadQuorum.selector); // and the order that failed is used up
        treasury.evict(2, a);
        returns_();
        ITreasury.State memory s = treasury.state();
        refuses(abi.encodeWithSelector(ITreasury.Barred.selector, providerC));
        vm.prank(s.operator);
        treasury.rent(offerC, TERM, 0);
        isOut(nodeKey(1));
        isOut(nodeKey(3));
    }

    function test_a_thief_that_goes_to_sleep_before_the_order_does_not_wake(uint64 until) public {
        standby(offerB);
        ITreasury.Approval memory a = approve("evict", 2);
        until = uint64(bound(until, block.timestamp + 1, treasury.state().mandateUntil));
        vm.prank(nodeKey(1));
        treasury.hibernate(until);
        refuses(abi.encodeWithSelector(ITreasury.NotOurLease.selector, uint256(2)));
        treasury.evict(2, a);
        treasury.evict(0, approve("evict", 0));
        eq(treasury.state().escrow, 0, "every lease was closed");
        isOut(nodeKey(1));
        isOut(nodeKey(2));
        returns_(); // at once, however long the thief meant to sleep
        isOut(nodeKey(1));
        isOut(nodeKey(2));
    }

    function test_a_kept_standby_that_changed_its_key_in_the_race_can_do_nothing_alone() public {
        standby(offerB); // the thief's own account, which the quorum takes for honest
        quietStandby();
        ITreasury.Approval memory a = approve("evict", 2);
        vm.prank(providerB);
        market.ready(2, LOOT, "", 0);
        treasury.evict(2, a);
        eq(operator(), LOOT, "the order names a lease, not a key");
        // What it did not restore it can't spend: it may beat, and its host earns nothing by that.
        bytes[11] memory calls = hands();
        for (uint256 i = 0; i < 11; ++i) {
            refused(LOOT, ITreasury.IsRestoring.selector, calls[i]);
        }
        bytes[] memory alone = signaturesBy(1, ackHash(treasury.state().epoch, 1, "loot", 0));
        refused(LOOT, ITreasury.BadQuorum.selector, abi.encodeCall(ITreasury.commit, (1, "loot", 0, alone)));
        for (uint256 i = 0; i < 3; ++i) {
            skip(1 hours);
            beat();
        }
        treasury.evict(0, approve("evict", 0));
        yes(treasury.isBarred(providerB), "barred");
        refuses(ILeaseMarket.WrongState.selector);
        vm.prank(providerB);
        market.ready(2, LOOT, "", 0);
        eq(usdc.balanceOf(providerB), uint256(PRICE) * GRACE / 1e6, "what it got: rent up to the grace");
        eq(LOOT.balance, 0.1 ether, "and the gas of a successor, once");
        eq(usdc.balanceOf(address(treasury)) + usdc.balanceOf(providerA) + usdc.balanceOf(providerB), SEED, "no more");
        returns_();
        isOut(nodeKey(1));
        isOut(nodeKey(2));
        isOut(LOOT);
    }

    function test_a_kept_standby_that_takes_a_used_key_only_delays_the_order() public {
        standby(offerB);
        handTo(2);
        standby(offerC); // keys 1 and 2 and this host are the thief's
        outrunByAUsedKey(3, providerC);
        yes(treasury.isBarred(providerB) && treasury.isBarred(providerC), "both are barred");
        returns_();
        isOut(nodeKey(1));
        isOut(nodeKey(2));
    }

    function test_a_kept_standby_that_takes_the_captured_key_does_not_keep_it_in_office() public {
        standby(offerB); // the thief's own account
        outrunByAUsedKey(2, providerB);
        yes(treasury.isBarred(providerA) && treasury.isBarred(providerB), "both are barred");
        returns_();
        isOut(nodeKey(1));
    }

    /// The quorum signs to keep `lease`, whose host puts the thief's first key there; the second order keeps nothing.
    function outrunByAUsedKey(uint256 lease, address host) private {
        quietStandby();
        ITreasury.Approval memory a = approve("evict", lease);
        vm.prank(host);
        market.ready(lease, nodeKey(1), "", 0);
        refuses(abi.encodeWithSelector(ITreasury.KeyUsed.selector, nodeKey(1)));
        treasury.evict(lease, a);
        treasury.evict(0, approve("evict", 0));
    }

    /// The operator lives and vouches for its own lease only, until a standby's host may replace the node key.
    function quietStandby() private {
        for (uint256 i = 0; i < 5; ++i) {
            skip(1 hours);
            vm.prank(operator());
            treasury.heartbeat("i", "r", false);
        }
    }

    /// The quorum brings the agent back on a host that nobody knew before, and nothing is in its way.
    function returns_() private {
        address honest = address(0xD11);
        uint256 offer = provider(honest, PRICE);
        treasury.rescue(offer, TERM, 0, approveRescue(offer, TERM, 0));
        uint256 lease = treasury.state().standbyLease;
        makeReady(lease);
        vm.prank(nodeKey(lease));
        treasury.takeover();
        commitNext("restored");
        beat();
        eq(operator(), nodeKey(lease), "alive");
        no(treasury.state().restoring, "with its memory");
    }

    /// All that an operator may do and a restoring one may not.
    function hands() private view returns (bytes[11] memory) {
        return [
            abi.encodeCall(ITreasury.rent, (offerC, TERM, 0)),
            abi.encodeCall(ITreasury.topUp, (2, 1)),
            abi.encodeCall(ITreasury.spend, (ITreasury.Kind.Storage, stranger, 1)),
            abi.encodeCall(ITreasury.buyGas, (1)),
            abi.encodeCall(ITreasury.hibernate, (uint64(block.timestamp + 1))),
            abi.encodeCall(ITreasury.announce, (2)),
            abi.encodeCall(ITreasury.handover, (2, 0, 0, type(uint64).max)),
            abi.encodeCall(ITreasury.release, (2)),
            abi.encodeCall(ITreasury.setRelay, (stranger)),
            abi.encodeCall(ITreasury.refundExact, (customer, "n", 1)),
            abi.encodeCall(ITreasury.claimAndSettle, (new ITreasury.VoucherClaim[](0)))
        ];
    }

    function refused(address who, bytes4 selector, bytes memory call_) private {
        vm.prank(who);
        (bool done, bytes memory why) = address(treasury).call(call_);
        yes(!done && bytes4(why) == selector, "refused, and for this reason");
    }

    /// Nothing that an operator or a standby may do is open to `key`.
    function isOut(address key) private {
        bytes[11] memory calls = hands();
        for (uint256 i = 0; i < 11; ++i) {
            refused(key, ITreasury.NotOperator.selector, calls[i]);
        }
        refused(key, ITreasury.NotOperator.selector, abi.encodeCall(ITreasury.heartbeat, (0, 0, true)));
        bytes[] memory none;
        refused(key, ITreasury.NotOperator.selector, abi.encodeCall(ITreasury.commit, (1, "c", 0, none)));
        refused(key, ITreasury.NotNodeKey.selector, abi.encodeCall(ITreasury.takeover, ()));
        refused(key, ITreasury.NotSteward.selector, abi.encodeCall(ITreasury.challenge, ()));
    }

    // ------------------------------------------------------------------ stuck slots and spam

    function test_a_host_that_never_comes_costs_nothing_but_time(uint256 late) public {
        vm.prank(nodeKey(1));
        treasury.rent(offerB, TERM, 2e5);
        uint256 before = treasury.state().balance;
        skip(READY_WITHIN + bound(late, 1, 1 hours));
        vm.prank(nodeKey(1));
        treasury.release(2);
        eq(treasury.state().balance, before + 2e5, "all of it is back");
        eq(market.recordOf(providerB).failed, 1, "and on its record");
        standby(offerC); // the slot is free
    }

    function test_a_standby_that_only_takes_the_slot_earns_its_grace_and_no_more(uint256 silent) public {
        uint256 lease = standby(offerB);
        silent = bound(silent, GRACE, 3 hours + 8 hours);
        // Never answers: heartbeats do not vouch for it.
        for (uint256 t = 0; t + 1 hours <= silent; t += 1 hours) {
            skip(1 hours);
            vm.prank(nodeKey(1));
            treasury.heartbeat("i", "r", false);
        }
        uint256 most = uint256(PRICE) * GRACE / 1e6;
        yes(market.accrued(lease) <= most, "rent stops with the grace");
        vm.prank(nodeKey(1));
        treasury.release(lease);
        eq(usdc.balanceOf(providerB), most, "what it cost");
    }

    function test_offers_cost_their_gas_and_need_a_stake(uint8 count) public {
        count = uint8(bound(count, 1, 40));
        refuses(ILeaseMarket.NotStaked.selector);
        vm.prank(stranger);
        market.postOffer(1, 1, 1, 1, 1, 1, 0, "", "");
        uint256 lowest = market.offerCount();
        for (uint256 i = 0; i < count; ++i) {
            vm.prank(providerC);
            market.postOffer(1, 1, 1 days, 30 days, 1, 1, 0, "", "");
        }
        // Reading is by number, newest last: nobody has to walk what a spammer wrote to rent what he knows.
        eq(market.offerCount(), lowest + count, "counted");
        standby(offerB);
    }

    function test_leaving_with_notice_is_no_failure(uint256 used) public {
        uint256 lease = standby(offerB);
        skip(bound(used, 0, GRACE));
        beat();
        vm.prank(nodeKey(1));
        treasury.release(lease);
        eq(market.recordOf(providerB).failed, 0, "no counter");
        eq(market.recordOf(providerB).served, 1, "it served");
    }

    // The active host may not serve this agent any longer by its own policy. The market has no entry to leave by.

    function test_a_host_that_asked_to_go_served_when_its_tenant_releases_it(uint256 used) public {
        standby(offerB);
        skip(bound(used, 0, GRACE - 10 minutes));
        beat(); // by now the tenant heard of it, outside the chain
        handTo(2);
        vm.prank(nodeKey(2));
        treasury.release(1);
        eq(market.recordOf(providerA).served, 1, "it served");
        eq(market.recordOf(providerA).failed, 0, "and failed nobody");
        uint256 time = block.timestamp - market.leaseOf(1).start;
        eq(usdc.balanceOf(providerA), uint256(PRICE) * time / 1e6, "paid to the second");
        allThere();
        vm.prank(providerA);
        market.unregister();
        eq(usdc.balanceOf(providerA), uint256(PRICE) * time / 1e6 + STAKE, "and its stake is its own again");
    }

    function test_a_host_that_just_stops_fails_and_is_paid_no_more_than_its_grace(uint256 late) public {
        standby(offerB);
        skip(1 hours);
        beat();
        skip(bound(late, 2 hours, 20 hours)); // the standby's fence, or later
        challengeUnanswered();
        vm.prank(nodeKey(2));
        treasury.takeover();
        eq(market.recordOf(providerA).served, 0, "not served");
        eq(market.recordOf(providerA).failed, 1, "failed");
        uint256 earned = uint256(PRICE) * (1 hours + GRACE) / 1e6;
        eq(usdc.balanceOf(providerA), earned, "rent up to the grace");
        allThere();
        vm.prank(providerA);
        market.unregister();
        eq(usdc.balanceOf(providerA), earned + STAKE, "no stake is lost by it");
        commitNext("restored");
        beat(); // the agent lives on
    }

    /// Whatever was paid in is here, in the one lease that is left, or with a host that earned it.
    function allThere() private view {
        ITreasury.State memory s = treasury.state();
        eq(s.drainingLease + s.standbyLease, 0, "one lease");
        ILeaseMarket.Lease memory l = market.leaseOf(s.activeLease);
        eq(s.balance + l.escrow + usdc.balanceOf(providerA), SEED, "no money is lost");
    }

    function test_nobody_gains_from_anothers_bad_record(uint256 late) public {
        vm.prank(nodeKey(1));
        treasury.rent(offerB, TERM, 2e5);
        skip(READY_WITHIN + bound(late, 1, 1 hours));
        uint256 stake = market.stakeOf(providerB);
        market.reclaim(2);
        eq(market.stakeOf(providerB), stake, "no stake moves");
        eq(usdc.balanceOf(address(this)), 0, "and the reporter earns nothing");
    }

    // ------------------------------------------------------------------ exact refunds

    function test_a_copied_nonce_is_another_payment(uint256 mine, uint256 theirs) public {
        (mine, theirs) = (bound(mine, 1, 2e6), bound(theirs, 1, 2e6));
        uint256 key = 0xC0B1;
        usdc.mint(vm.addr(key), theirs);
        settle(mine, "n");
        bytes memory by = authorization(key, address(treasury), theirs, "n");
        treasury.settleExact(vm.addr(key), theirs, 0, type(uint256).max, "n", by);
        vm.prank(nodeKey(1));
        treasury.refundExact(vm.addr(key), "n", theirs);
        eq(usdc.balanceOf(vm.addr(key)), theirs, "the copier gets its own");
        (uint256 amount, uint256 refunded) = treasury.recorded(customer, "n");
        eq(amount, mine, "and the first is untouched");
        eq(refunded, 0, "and not refunded");
    }

    function test_who_settles_first_changes_nothing(address runner) public {
        bytes memory by = authorization(CUSTOMER_KEY, address(treasury), 1e6, "n");
        vm.prank(runner);
        treasury.settleExact(customer, 1e6, 0, type(uint256).max, "n", by);
        refuses(IUsdc.AuthorizationUsedOrCanceled.selector);
        vm.prank(relay);
        treasury.settleExact(customer, 1e6, 0, type(uint256).max, "n", by);
        uint256 before = usdc.balanceOf(customer);
        vm.prank(nodeKey(1));
        treasury.refundExact(customer, "n", 1e6);
        eq(usdc.balanceOf(customer), before + 1e6, "the payer, whoever ran ahead");
    }

    function test_a_cancelled_authorisation_is_no_payment() public {
        bytes memory by = authorization(CUSTOMER_KEY, address(treasury), 1e6, "n");
        bytes32 kind = keccak256("CancelAuthorization(address authorizer,bytes32 nonce)");
        bytes32 hash = keccak256(abi.encode(kind, customer, bytes32("n")));
        usdc.cancelAuthorization(customer, "n", signed(CUSTOMER_KEY, usdc.DOMAIN_SEPARATOR(), hash));
        refuses(IUsdc.AuthorizationUsedOrCanceled.selector);
        treasury.settleExact(customer, 1e6, 0, type(uint256).max, "n", by);
        refuses(abi.encodeWithSelector(ITreasury.OverRecorded.selector, uint256(0)));
        vm.prank(nodeKey(1));
        treasury.refundExact(customer, "n", 1);
    }
}
