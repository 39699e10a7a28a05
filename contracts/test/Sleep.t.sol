// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {ILeaseMarket} from "../src/interfaces/ILeaseMarket.sol";
import {ITreasury} from "../src/interfaces/ITreasury.sol";
import {World} from "./World.sol";

/// hibernate and waking; challenges and takeovers relayed by others; silence in blocks.
contract SleepTest is World {
    uint256 private constant NODE_KEY = 0x40DE;
    uint32 private blocks;

    function setUp() public override {
        super.setUp();
        live();
    }

    function options() internal view override returns (ITreasury.Options memory o) {
        o.relayMax = 0.02 ether;
        o.silenceBlocks = blocks;
    }

    // ------------------------------------------------------------------ hibernate

    function sleep(uint64 until) private {
        vm.prank(operator());
        treasury.hibernate(until);
    }

    function test_the_sleeping_have_no_host_and_no_operator(uint64 until) public {
        standby(offerB);
        until = uint64(bound(until, block.timestamp + 1, treasury.state().mandateUntil));
        sleep(until);
        ITreasury.State memory s = treasury.state();
        eq(s.operator, address(0), "nobody");
        eq(s.epoch, 2, "a new epoch");
        eq(s.activeLease + s.standbyLease + s.escrow, 0, "no lease");
        eq(s.balance, SEED, "all escrow is back: no time passed");
        eq(treasury.standing().hibernateUntil, until, "until");
        refuses(ITreasury.NotOperator.selector);
        vm.prank(nodeKey(1));
        treasury.heartbeat(0, 0, false);
    }

    function test_sleep_ends_with_the_mandate_at_the_latest(uint64 until) public {
        uint64 end = treasury.state().mandateUntil;
        if (until <= block.timestamp) refuses(ITreasury.TooEarly.selector);
        else if (until > end) refuses(ITreasury.TooLate.selector);
        vm.prank(nodeKey(1));
        treasury.hibernate(until);
    }

    function test_only_the_free_operator_sleeps(address who) public {
        vm.assume(who != nodeKey(1));
        uint64 until = uint64(block.timestamp + 1 days);
        refuses(ITreasury.NotOperator.selector);
        vm.prank(who);
        treasury.hibernate(until);
        treasury.pause(approve("pause", 0));
        refuses(ITreasury.IsPaused.selector);
        vm.prank(nodeKey(1));
        treasury.hibernate(until);
    }

    function test_the_sleeping_do_not_starve_and_a_rescue_wakes(uint256 later) public {
        uint64 until = uint64(block.timestamp + 30 days);
        vm.prank(address(treasury));
        usdc.transfer(address(1), SEED - PREPAY_MAX / 2 - 1e6); // poor: under the floor of 2e6
        sleep(until);
        skip(bound(later, 0, 30 days));
        yes(treasury.windDownReason() == ITreasury.Reason.None, "asleep, not starved");
        refuses(ITreasury.NotStarved.selector);
        treasury.windDown();
        treasury.rescue(offerA, TERM, 1e5, approveRescue(offerA, TERM, 1e5)); // no silence needed, no owner barred
        eq(treasury.standing().hibernateUntil, 0, "awake");
        makeReady(2);
        vm.prank(nodeKey(2));
        treasury.takeover();
        eq(operator(), nodeKey(2), "operator");
        yes(treasury.state().restoring, "it restores first");
    }

    function test_who_is_not_woken_starves_in_the_end() public {
        vm.prank(address(treasury));
        usdc.transfer(address(1), SEED - PREPAY_MAX / 2 - 1e6);
        sleep(uint64(block.timestamp + 10 days));
        skip(10 days + 1);
        yes(treasury.windDownReason() == ITreasury.Reason.Starved, "starved");
        treasury.windDown();
        skip(6 hours);
        treasury.windDown();
        yes(treasury.state().stage == ITreasury.Stage.WindingDown, "winding down");
    }

    // ------------------------------------------------------------------ relayed

    function act(uint256 key, string memory action, uint64 deadline) private view returns (bytes memory) {
        ITreasury.State memory s = treasury.state();
        bytes32 kind = keccak256("Act(string action,uint256 lease,uint64 epoch,uint64 nonce,uint64 deadline)");
        bytes32 hash = keccak256(
            abi.encode(
                kind, keccak256(bytes(action)), s.standbyLease, s.epoch, treasury.lastChallengeAt(), deadline
            )
        );
        return signed(key, domain(), hash);
    }

    /// A standby whose node key can sign.
    function signingStandby() private returns (uint256 lease) {
        vm.prank(operator());
        lease = treasury.rent(offerB, TERM, PREPAY_MAX / 2);
        vm.prank(providerB);
        market.ready(lease, vm.addr(NODE_KEY), "http://node", 0);
    }

    function test_a_provider_relays_its_nodes_challenge_and_takeover(address who, uint256 price) public {
        vm.assume(uint160(who) > 0xFFFF && who.code.length == 0 && who != nodeKey(1));
        price = bound(price, 0, 50 gwei);
        signingStandby();
        uint64 deadline = uint64(block.timestamp + 1 hours);
        bytes memory by = act(NODE_KEY, "challenge", deadline);
        vm.prank(who);
        treasury.challengeFor(deadline, by);
        eq(treasury.state().challengedAt, block.timestamp, "challenged");
        skip(3 hours + 1);
        deadline = uint64(block.timestamp + 1 hours);
        by = act(NODE_KEY, "takeover", deadline);
        uint256 had = who.balance;
        vm.txGasPrice(price);
        vm.prank(who);
        treasury.takeoverFor(deadline, by);
        eq(operator(), vm.addr(NODE_KEY), "the node, not who relayed");
        eq(vm.addr(NODE_KEY).balance, 0.1 ether, "with gas of its own");
        yes(who.balance - had <= 0.02 ether, "repaid within bounds");
        if (price > 0) yes(who.balance > had, "repaid");
    }

    function test_an_act_is_signed_by_the_standby_for_this_very_moment(uint256 key, uint256 late) public {
        key = bound(key, 1, type(uint128).max);
        vm.assume(key != NODE_KEY);
        signingStandby();
        uint64 deadline = uint64(block.timestamp + 1 hours);
        bytes memory by = act(key, "challenge", deadline);
        refuses(ITreasury.NotNodeKey.selector);
        treasury.challengeFor(deadline, by);
        by = act(NODE_KEY, "takeover", deadline);
        refuses(ITreasury.NotNodeKey.selector);
        treasury.challengeFor(deadline, by);
        by = act(NODE_KEY, "challenge", deadline);
        refuses(ITreasury.NotNodeKey.selector);
        treasury.challengeFor(deadline + 1, by);
        treasury.challengeFor(deadline, by);
        beat();
        skip(3 hours);
        // Answered: the same signature opens no second challenge.
        refuses(ITreasury.TooLate.selector);
        treasury.challengeFor(deadline, by);
        deadline = type(uint64).max;
        by = act(NODE_KEY, "challenge", deadline);
        treasury.challengeFor(deadline, by);
        beat();
        skip(bound(late, 3 hours, 5 hours));
        refuses(ITreasury.NotNodeKey.selector);
        treasury.challengeFor(deadline, by);
    }

    function test_without_a_standby_nobody_acts() public {
        refuses(ITreasury.NotNodeKey.selector);
        treasury.challengeFor(type(uint64).max, "");
        refuses(ITreasury.NotNodeKey.selector);
        treasury.takeoverFor(type(uint64).max, "");
    }

    function test_a_relayed_takeover_keeps_every_rule() public {
        signingStandby();
        bytes memory by = act(NODE_KEY, "takeover", type(uint64).max);
        refuses(ITreasury.NotChallenged.selector);
        treasury.takeoverFor(type(uint64).max, by);
        vm.prank(stewards[0]);
        treasury.challenge();
        by = act(NODE_KEY, "takeover", type(uint64).max);
        refuses(ITreasury.TooEarly.selector);
        treasury.takeoverFor(type(uint64).max, by);
    }

    // ------------------------------------------------------------------ blocks

    function again(uint32 silenceBlocks) private {
        blocks = silenceBlocks;
        ITreasury.Birth memory b = birth();
        b.manifest = "with blocks";
        treasury = create(b);
        usdc.mint(address(treasury), SEED);
        vm.prank(creator);
        uint256 lease = treasury.birthRent(offerA, TERM, PREPAY_MAX / 2);
        makeReady(lease);
        vm.prank(creator);
        treasury.activate(lease);
    }

    function test_a_chain_that_stood_still_accuses_nobody(uint32 count) public {
        count = uint32(bound(count, 1, 1_000_000));
        again(count);
        uint256 lease = standby(offerB);
        vm.prank(stewards[0]);
        treasury.challenge();
        skip(1 days); // in one block
        vm.roll(block.number + count - 1);
        refuses(ITreasury.TooEarly.selector);
        vm.prank(nodeKey(lease));
        treasury.takeover();
        ITreasury.Approval memory a = approveRescue(offerC, TERM, 1e5);
        refuses(ITreasury.TooEarly.selector);
        treasury.rescue(offerC, TERM, 1e5, a);
        vm.prank(address(treasury));
        usdc.transfer(address(1), SEED - 1e6);
        skip(2 days);
        yes(treasury.windDownReason() == ITreasury.Reason.None, "nobody starves either");
        vm.roll(block.number + 1);
        vm.prank(nodeKey(lease));
        treasury.takeover();
        eq(operator(), nodeKey(lease), "now");
    }
}
