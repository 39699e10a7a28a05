// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {ILeaseMarket} from "../src/interfaces/ILeaseMarket.sol";
import {ITreasury} from "../src/interfaces/ITreasury.sol";
import {World} from "./World.sol";

/// tighten, revokeCode at once; setCode, loosen, setStewards after a delay; duties; and the pay of relayers.
contract OrdersTest is World {
    uint32 private constant DELAY = 2 days;
    ITreasury.Approval private none;

    function setUp() public override {
        super.setUp();
        live();
        none.deadline = type(uint64).max;
    }

    function options() internal pure override returns (ITreasury.Options memory o) {
        o.delay = DELAY;
        o.ceilings = ITreasury.Policy({
            dayLimit: 10e6, priceE6Max: 20e6, termMax: 30 days, prepayMax: 3 days, gasDayMax: 1 ether,
            gasTarget: 0.2 ether, starveFloor: 2e6
        });
        (o.dutyPay, o.dutyDayMax) = (1e5, 5e5);
        o.relayMax = 0.01 ether;
    }

    function policy() private view returns (ITreasury.Policy memory) {
        return treasury.birthOf().policy;
    }

    function argument(ITreasury.Policy memory p) private pure returns (uint256) {
        return uint256(keccak256(abi.encode(p)));
    }

    // ------------------------------------------------------------------ tighten

    function test_tightening_is_immediate(uint256 which, uint256 value) public {
        ITreasury.Policy memory p = lowered(policy(), which % 6, value);
        treasury.tighten(p, approve("tighten", argument(p)));
        yes(keccak256(abi.encode(policy())) == keccak256(abi.encode(p)), "in force");
    }

    function lowered(ITreasury.Policy memory p, uint256 which, uint256 v) private pure returns (ITreasury.Policy memory) {
        if (which == 0) p.dayLimit = uint128(bound(v, 1, p.dayLimit));
        if (which == 1) p.priceE6Max = uint64(bound(v, 1, p.priceE6Max));
        if (which == 2) p.termMax = uint32(bound(v, 1, p.termMax));
        if (which == 3) p.prepayMax = uint32(bound(v, 1, p.prepayMax));
        if (which == 4) p.gasDayMax = uint128(bound(v, 0, p.gasDayMax));
        if (which == 5) p.gasTarget = uint128(bound(v, 0, p.gasTarget));
        return p;
    }

    function test_tightening_never_loosens(uint256 which) public {
        which = which % 7;
        ITreasury.Policy memory p = policy();
        if (which == 0) ++p.dayLimit;
        if (which == 1) ++p.priceE6Max;
        if (which == 2) ++p.termMax;
        if (which == 3) ++p.prepayMax;
        if (which == 4) ++p.gasDayMax;
        if (which == 5) ++p.gasTarget;
        if (which == 6) --p.starveFloor;
        ITreasury.Approval memory a = approve("tighten", argument(p));
        refuses(which == 2 ? ITreasury.OverTerm.selector : ITreasury.BadPolicy.selector);
        treasury.tighten(p, a);
    }

    function test_no_policy_makes_every_spending_impossible() public {
        ITreasury.Policy memory p = policy();
        p.dayLimit = 0;
        ITreasury.Approval memory a = approve("tighten", argument(p));
        refuses(ITreasury.BadPolicy.selector);
        treasury.tighten(p, a);
    }

    function test_a_tightened_day_counts_what_was_spent_before() public {
        vm.prank(nodeKey(1));
        treasury.rent(offerB, TERM, 2e5);
        ITreasury.Policy memory p = policy();
        p.dayLimit = 1e5;
        treasury.tighten(p, approve("tighten", argument(p)));
        refuses(abi.encodeWithSelector(ITreasury.OverDayLimit.selector, uint256(0)));
        vm.prank(nodeKey(1));
        treasury.topUp(1, 1);
    }

    // ------------------------------------------------------------------ loosen

    function looser() private view returns (ITreasury.Policy memory p) {
        p = policy();
        p.dayLimit = 10e6;
    }

    function test_loosening_waits(uint256 early, uint256 late, address who) public {
        ITreasury.Policy memory p = looser();
        treasury.loosen(p, approve("loosen", argument(p)));
        eq(policy().dayLimit, 5e6, "only queued");
        uint256 from = block.timestamp + DELAY;
        skip(bound(early, 0, DELAY - 1));
        beat();
        refuses(abi.encodeWithSelector(ITreasury.TooEarly.selector, uint64(from)));
        treasury.loosen(p, none);
        vm.warp(from + bound(late, 0, 30 days));
        vm.assume(who.code.length == 0 && uint160(who) > 0xFFFF);
        vm.prank(who);
        treasury.loosen(p, none);
        eq(policy().dayLimit, 10e6, "in force");
        // Used up: again it takes a quorum.
        refuses(ITreasury.BadQuorum.selector);
        treasury.loosen(p, none);
    }

    function test_birth_drew_the_ceilings(uint256 which) public {
        which = which % 6;
        ITreasury.Policy memory p = treasury.birthOf().options.ceilings;
        if (which == 0) ++p.dayLimit;
        if (which == 1) ++p.priceE6Max;
        if (which == 2) ++p.termMax;
        if (which == 3) ++p.prepayMax;
        if (which == 4) ++p.gasDayMax;
        if (which == 5) ++p.gasTarget;
        ITreasury.Approval memory a = approve("loosen", argument(p));
        refuses(which == 2 ? ITreasury.OverTerm.selector : ITreasury.BadPolicy.selector);
        treasury.loosen(p, a);
    }

    function test_without_ceilings_nothing_is_loosened_and_they_bound_the_policy() public {
        ITreasury.Birth memory b = birth();
        b.options.ceilings.gasTarget = b.policy.gasTarget - 1;
        refuses(ITreasury.BadPolicy.selector);
        vm.prank(creator);
        factory.create(b);
        b = birth();
        delete b.options.ceilings;
        create(b);
    }

    function test_a_tightening_voids_what_was_queued() public {
        ITreasury.Policy memory p = looser();
        treasury.loosen(p, approve("loosen", argument(p)));
        ITreasury.Policy memory tight = policy();
        tight.dayLimit = 1e6;
        treasury.tighten(tight, approve("tighten", argument(tight)));
        skip(DELAY);
        refuses(ITreasury.BadQuorum.selector);
        treasury.loosen(p, none);
        eq(policy().dayLimit, 1e6, "tight");
    }

    function test_a_queued_order_is_for_its_own_argument(uint128 other) public {
        ITreasury.Policy memory p = looser();
        treasury.loosen(p, approve("loosen", argument(p)));
        skip(DELAY);
        p.dayLimit = uint128(bound(other, 1, 10e6 - 1));
        refuses(ITreasury.BadQuorum.selector);
        treasury.loosen(p, none);
    }

    function test_one_steward_queues_nothing(uint8 who) public {
        who = who % 8;
        ITreasury.Policy memory p = looser();
        ITreasury.Approval memory a = approveBy(who, "loosen", argument(p));
        if (a.signatures.length < 2) refuses(ITreasury.BadQuorum.selector);
        treasury.loosen(p, a);
    }

    // ------------------------------------------------------------------ code

    function test_new_code_waits_and_then_rules_new_leases() public {
        bytes32 next = keccak256("next");
        treasury.setCode(next, approve("setCode", uint256(next)));
        uint256 old = standby(offerB);
        eq(treasury.state().codeHash, CODE, "not yet");
        skip(DELAY);
        beat();
        treasury.setCode(next, none);
        eq(treasury.state().codeHash, next, "in force");
        refuses(ITreasury.WrongCode.selector);
        vm.prank(nodeKey(1));
        treasury.announce(old);
        vm.prank(nodeKey(1));
        treasury.release(old);
        uint256 lease = standby(offerC);
        eq(market.leaseOf(lease).codeHash, next, "the lease is for it");
        handTo(lease);
        eq(operator(), nodeKey(lease), "moved");
    }

    function test_there_is_no_code_zero() public {
        ITreasury.Approval memory a = approve("setCode", 0);
        refuses(ITreasury.WrongCode.selector);
        treasury.setCode(0, a);
    }

    function test_revoked_code_runs_nowhere() public {
        standby(offerB);
        treasury.revokeCode(approve("revokeCode", uint256(CODE)));
        ITreasury.State memory s = treasury.state();
        eq(s.operator, address(0), "nobody");
        eq(s.codeHash, 0, "no code");
        eq(s.activeLease + s.standbyLease + s.escrow, 0, "no lease");
        no(treasury.isBarred(providerA) || treasury.isBarred(providerB), "the hosts did nothing");
        ITreasury.Approval memory a = approveRescue(offerB, TERM, 1e5);
        refuses(ITreasury.WrongCode.selector);
        treasury.rescue(offerB, TERM, 1e5, a);
        a = approve("revokeCode", 0);
        refuses(ITreasury.WrongCode.selector);
        treasury.revokeCode(a);
        // Back with new code.
        bytes32 next = keccak256("next");
        treasury.setCode(next, approve("setCode", uint256(next)));
        skip(DELAY);
        treasury.setCode(next, none);
        treasury.rescue(offerB, TERM, 1e5, approveRescue(offerB, TERM, 1e5));
        makeReady(3);
        vm.prank(nodeKey(3));
        treasury.takeover();
        eq(operator(), nodeKey(3), "alive again");
    }

    function test_revoking_names_the_code_and_voids_the_queue(bytes32 other) public {
        vm.assume(other != CODE);
        ITreasury.Approval memory a = approve("revokeCode", uint256(other));
        refuses(ITreasury.BadQuorum.selector);
        treasury.revokeCode(a);
        treasury.setCode("bad", approve("setCode", uint256(bytes32("bad"))));
        treasury.revokeCode(approve("revokeCode", uint256(CODE)));
        skip(DELAY);
        refuses(ITreasury.BadQuorum.selector);
        treasury.setCode("bad", none);
    }

    // ------------------------------------------------------------------ stewards

    function others() private pure returns (address[] memory list) {
        list = new address[](2);
        (list[0], list[1]) = (vm.addr(0xAAA1), vm.addr(0xAAA2));
        if (list[0] > list[1]) (list[0], list[1]) = (list[1], list[0]);
    }

    function stewardsArgument(address[] memory list, uint8 k) private pure returns (uint256) {
        return uint256(keccak256(abi.encode(list, k)));
    }

    function test_new_stewards_wait_and_then_replace_the_old() public {
        address[] memory list = others();
        treasury.setStewards(list, 2, approve("setStewards", stewardsArgument(list, 2)));
        treasury.pause(approve("pause", 0)); // the old ones still rule
        skip(DELAY);
        treasury.setStewards(list, 2, none);
        ITreasury.Approval memory a = approve("resume", 0);
        refuses(ITreasury.BadQuorum.selector);
        treasury.resume(a);
        refuses(ITreasury.NotSteward.selector);
        vm.prank(stewards[0]);
        treasury.challenge();
        eq(treasury.birthOf().stewards.length, 2, "as birthOf says");
        bytes32 hash = orderHash("resume", 0, treasury.state().orderNonce, a.deadline);
        uint256 first = vm.addr(0xAAA1) == list[0] ? 0xAAA1 : 0xAAA2;
        a.signatures[0] = signed(first, domain(), hash);
        a.signatures[1] = signed(first == 0xAAA1 ? 0xAAA2 : 0xAAA1, domain(), hash);
        treasury.resume(a);
        no(treasury.state().paused, "the new ones rule");
    }

    function test_the_creator_never_becomes_a_steward() public {
        address[] memory list = new address[](2);
        (list[0], list[1]) = (creator, vm.addr(0xAAA1));
        if (list[0] > list[1]) (list[0], list[1]) = (list[1], list[0]);
        treasury.setStewards(list, 2, approve("setStewards", stewardsArgument(list, 2)));
        skip(DELAY);
        refuses(ITreasury.BadStewards.selector);
        treasury.setStewards(list, 2, none);
    }

    function test_there_is_always_a_quorum_of_two(uint8 k) public {
        address[] memory list = others();
        treasury.setStewards(list, k, approve("setStewards", stewardsArgument(list, k)));
        skip(DELAY);
        if (k != 2) refuses(ITreasury.BadQuorum.selector);
        treasury.setStewards(list, k, none);
    }

    function test_new_stewards_void_what_the_old_ones_queued() public {
        address[] memory list = others();
        treasury.setStewards(list, 2, approve("setStewards", stewardsArgument(list, 2)));
        ITreasury.Policy memory p = looser();
        treasury.loosen(p, approve("loosen", argument(p)));
        skip(DELAY);
        treasury.setStewards(list, 2, none);
        refuses(ITreasury.BadQuorum.selector);
        treasury.loosen(p, none);
    }

    function test_a_delay_is_a_day_at_least(uint32 delay) public {
        ITreasury.Birth memory b = birth();
        b.options.delay = uint32(bound(delay, 1, DAY - 1));
        refuses(abi.encodeWithSelector(ITreasury.BadTimers.selector, "delay >= day"));
        vm.prank(creator);
        factory.create(b);
    }

    // ------------------------------------------------------------------ duties

    function test_stewards_are_paid_for_acknowledging_up_to_the_cap() public {
        for (uint256 i = 1; i <= 4; ++i) {
            commitNext(bytes32(i));
            uint256 each = i <= 2 ? i * 1e5 : 2e5; // 5e5 a day: two commits by two, and half of the third
            eq(usdc.balanceOf(stewards[0]), i <= 2 ? i * 1e5 : 3e5, "the first");
            eq(usdc.balanceOf(stewards[1]), each, "the second");
        }
        eq(usdc.balanceOf(stewards[2]), 0, "who did not sign");
        eq(treasury.state().spentInDay, 5e5, "in the day limit");
        eq(treasury.state().checkpointSeq, 4, "and no checkpoint was refused");
    }

    function test_no_pay_in_a_pause_or_over_the_day_limit(bool paused) public {
        if (paused) {
            treasury.pause(approve("pause", 0));
        } else {
            ITreasury.Policy memory p = policy();
            p.dayLimit = 1e5 - 1;
            treasury.tighten(p, approve("tighten", argument(p)));
        }
        commitNext("one");
        eq(usdc.balanceOf(stewards[0]), 0, "unpaid");
        eq(treasury.state().checkpointSeq, 1, "committed");
    }

    function test_a_frozen_steward_stops_no_checkpoint() public {
        usdc.setFrozen(stewards[0], true);
        commitNext("one");
        eq(usdc.balanceOf(stewards[1]), 1e5, "the other is paid");
    }

    // ------------------------------------------------------------------ the pay of relayers

    function test_a_relayer_is_repaid_within_bounds(uint256 price) public {
        price = bound(price, 0, 100 gwei);
        ITreasury.Approval memory a = approve("pause", 0);
        uint256 had = relay.balance;
        vm.txGasPrice(price);
        vm.prank(relay);
        treasury.pause(a);
        uint256 got = relay.balance - had;
        yes(got <= 0.01 ether, "never over the bound");
        yes(got >= min(price * 100_000, 0.01 ether), "about what it cost");
        yes(got <= price * 300_000, "and no profit");
        eq(treasury.gasSpentInDay(), 0.1 ether + got, "counted");
    }

    function test_a_failed_order_repays_nobody() public {
        vm.txGasPrice(1 gwei);
        uint256 had = relay.balance;
        refuses(ITreasury.BadQuorum.selector);
        vm.prank(relay);
        treasury.pause(none);
        eq(relay.balance, had, "nothing");
    }

    function test_an_empty_treasury_still_obeys() public {
        vm.deal(address(treasury), 0);
        vm.txGasPrice(1 gwei);
        treasury.pause(approve("pause", 0));
        yes(treasury.state().paused, "paused");
    }
}
