// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {ITreasury} from "../src/interfaces/ITreasury.sol";
import {World} from "./World.sol";

/// heartbeat, commit, announce, handover, setRelay.
contract LifeTest is World {
    function setUp() public override {
        super.setUp();
        live();
    }

    // ------------------------------------------------------------------ heartbeat

    function test_a_heartbeat_vouches_for_the_active_and_an_answering_standby(uint256 later, bool answered) public {
        standby(offerB);
        uint256 rented = block.timestamp;
        skip(bound(later, 1, 3 hours));
        vm.prank(nodeKey(1));
        treasury.heartbeat("i", "r", answered);
        eq(market.leaseOf(1).vouchedAt, block.timestamp, "active");
        eq(market.leaseOf(2).vouchedAt, answered ? block.timestamp : rented, "standby");
        eq(treasury.state().lastHeartbeat, block.timestamp, "heard");
        eq(treasury.state().receiptsRoot, "r", "root");
    }

    function test_a_heartbeat_vouches_for_the_draining_lease() public {
        standby(offerB);
        handTo(2);
        skip(1 hours);
        beat();
        eq(market.leaseOf(1).vouchedAt, block.timestamp, "draining");
    }

    function test_only_the_operator_beats(address who) public {
        vm.assume(who != nodeKey(1));
        refuses(ITreasury.NotOperator.selector);
        vm.prank(who);
        treasury.heartbeat("i", "r", false);
    }

    function test_a_lease_that_ended_does_not_stop_the_heart(bool active) public {
        standby(offerB);
        skip(DROP_AFTER + 1);
        market.expire(active ? 1 : 2);
        beat();
        eq(treasury.state().lastHeartbeat, block.timestamp, "heard");
        skip(TERM);
        beat();
        eq(treasury.state().lastHeartbeat, block.timestamp, "heard past the end of every lease");
    }

    function test_it_beats_paused_stopped_and_winding_down() public {
        treasury.pause(approve("pause", 0));
        beat();
        treasury.stop(approve("stop", 0));
        beat();
        treasury.windDown();
        beat();
        skip(3 days);
        treasury.close();
        refuses(ITreasury.NotOperator.selector);
        vm.prank(nodeKey(1));
        treasury.heartbeat("i", "r", false);
    }

    // ------------------------------------------------------------------ commit

    function test_checkpoints_form_a_chain(bytes32 a, bytes32 b) public {
        commitNext(a);
        commitNext(b);
        eq(treasury.state().checkpointSeq, 2, "seq");
        eq(treasury.state().checkpointDigest, b, "digest");
    }

    function test_a_checkpoint_follows_the_last_one(uint64 seq, bytes32 prev) public {
        commitNext("one");
        bytes[] memory acks = signaturesBy(7, ackHash(1, seq, "two", prev));
        if (seq != 2) refuses(abi.encodeWithSelector(ITreasury.BadSequence.selector, uint64(2)));
        else if (prev != "one") refuses(ITreasury.BadPrevious.selector);
        vm.prank(nodeKey(1));
        treasury.commit(seq, "two", prev, acks);
    }

    function test_a_wrong_predecessor_is_refused(bytes32 prev) public {
        commitNext("one");
        vm.assume(prev != "one");
        bytes[] memory acks = signaturesBy(7, ackHash(1, 2, "two", prev));
        refuses(ITreasury.BadPrevious.selector);
        vm.prank(nodeKey(1));
        treasury.commit(2, "two", prev, acks);
    }

    function test_it_takes_two_stewards(uint8 who) public {
        who = who % 8;
        bytes[] memory acks = signaturesBy(who, ackHash(1, 1, "one", 0));
        if (acks.length < 2) refuses(ITreasury.BadQuorum.selector);
        vm.prank(nodeKey(1));
        treasury.commit(1, "one", 0, acks);
        eq(treasury.state().checkpointSeq, acks.length < 2 ? 0 : 1, "seq");
    }

    function test_acknowledgements_are_for_one_epoch_digest_and_sequence(uint64 epoch, bytes32 digest, uint256 what)
        public
    {
        what = bound(what, 0, 2);
        vm.assume(epoch != 1 && digest != "one");
        bytes32 hash = what == 0 ? ackHash(epoch, 1, "one", 0) : what == 1 ? ackHash(1, 1, digest, 0) : ackHash(1, 2, "one", 0);
        bytes[] memory acks = signaturesBy(7, hash);
        refuses(ITreasury.BadQuorum.selector);
        vm.prank(nodeKey(1));
        treasury.commit(1, "one", 0, acks);
    }

    function test_acknowledgements_are_not_replayed_in_the_next_epoch() public {
        standby(offerB);
        // Two stewards acknowledged it in epoch 1, but it was not sent before the handover.
        bytes[] memory acks = signaturesBy(3, ackHash(1, 1, "one", 0));
        handTo(2);
        refuses(ITreasury.BadQuorum.selector);
        vm.prank(nodeKey(2));
        treasury.commit(1, "one", 0, acks);
        refuses(ITreasury.NotOperator.selector);
        vm.prank(nodeKey(1));
        treasury.commit(1, "one", 0, acks);
    }

    function test_a_committed_checkpoint_is_not_committed_again() public {
        bytes[] memory acks = signaturesBy(3, ackHash(1, 1, "one", 0));
        vm.prank(nodeKey(1));
        treasury.commit(1, "one", 0, acks);
        refuses(ITreasury.BadSequence.selector);
        vm.prank(nodeKey(1));
        treasury.commit(1, "one", 0, acks);
    }

    function test_signatures_ascend_and_are_whole(uint256 spoil, uint256 strangerKey) public {
        bytes32 hash = ackHash(1, 1, "one", 0);
        bytes[] memory acks = signaturesBy(3, hash);
        spoil = bound(spoil, 0, 4);
        if (spoil == 0) (acks[0], acks[1]) = (acks[1], acks[0]);
        if (spoil == 1) acks[1] = acks[0];
        if (spoil == 2) acks[1] = hex"";
        if (spoil == 3) acks[0][64] = 0x05;
        if (spoil == 4) {
            strangerKey = bound(strangerKey, 1, type(uint128).max);
            address who = vm.addr(strangerKey);
            vm.assume(who != stewards[0] && who != stewards[1] && who != stewards[2]);
            acks[0] = signed(strangerKey, domain(), hash);
        }
        refuses(ITreasury.BadQuorum.selector);
        vm.prank(nodeKey(1));
        treasury.commit(1, "one", 0, acks);
    }

    function test_only_the_operator_commits(address who) public {
        vm.assume(who != nodeKey(1));
        bytes[] memory acks = signaturesBy(3, ackHash(1, 1, "one", 0));
        refuses(ITreasury.NotOperator.selector);
        vm.prank(who);
        treasury.commit(1, "one", 0, acks);
    }

    function test_it_commits_paused_stopped_and_winding_down() public {
        treasury.pause(approve("pause", 0));
        commitNext("1");
        treasury.stop(approve("stop", 0));
        commitNext("2");
        treasury.windDown();
        commitNext("3");
    }

    // ------------------------------------------------------------------ announce

    function test_only_the_ready_standby_is_announced(uint256 other) public {
        vm.prank(nodeKey(1));
        uint256 lease = treasury.rent(offerB, TERM, 1e5);
        refuses(ITreasury.NotReady.selector);
        vm.prank(nodeKey(1));
        treasury.announce(lease);
        makeReady(lease);
        vm.assume(other != lease);
        refuses(ITreasury.NotOurLease.selector);
        vm.prank(nodeKey(1));
        treasury.announce(other);
        refuses(ITreasury.NotOperator.selector);
        vm.prank(nodeKey(2));
        treasury.announce(lease);
        vm.prank(nodeKey(1));
        treasury.announce(lease);
        eq(treasury.state().announcedLease, lease, "announced");
        eq(treasury.state().announcedAt, block.timestamp, "when");
    }

    // ------------------------------------------------------------------ handover

    function test_a_handover_changes_the_operator_and_nothing_of_the_memory(uint64 cut, uint256 later) public {
        standby(offerB);
        commitNext("one");
        vm.prank(nodeKey(1));
        treasury.setRelay(relay);
        announceAndWait(2);
        skip(bound(later, 0, 3 hours));
        vm.prank(nodeKey(1));
        treasury.handover(2, 1, cut, uint64(block.timestamp));
        ITreasury.State memory s = treasury.state();
        eq(s.operator, nodeKey(2), "operator");
        eq(s.epoch, 2, "epoch");
        eq(s.activeLease, 2, "active");
        eq(s.drainingLease, 1, "draining");
        eq(s.standbyLease, 0, "standby");
        eq(s.announcedLease, 0, "announced");
        eq(s.relay, address(0), "relay");
        eq(s.checkpointDigest, "one", "memory");
        no(s.restoring, "a planned move restores nothing");
        eq(nodeKey(2).balance, 0.1 ether, "gas");
        yes(uint8(market.leaseOf(1).state) == 2, "the old lease goes on");
    }

    function test_a_handover_needs_notice_validity_and_the_right_checkpoint(uint256 wait, uint64 seq, uint256 past) public {
        standby(offerB);
        refuses(ITreasury.NotAnnounced.selector);
        vm.prank(nodeKey(1));
        treasury.handover(2, 0, 0, type(uint64).max);
        vm.prank(nodeKey(1));
        treasury.announce(2);
        skip(bound(wait, 0, 10 minutes - 1));
        refuses(ITreasury.TooEarly.selector);
        vm.prank(nodeKey(1));
        treasury.handover(2, 0, 0, type(uint64).max);
        skip(10 minutes);
        refuses(ITreasury.TooLate.selector);
        vm.prank(nodeKey(1));
        treasury.handover(2, 0, 0, uint64(bound(past, 0, block.timestamp - 1)));
        vm.assume(seq != 0);
        refuses(ITreasury.BadSequence.selector);
        vm.prank(nodeKey(1));
        treasury.handover(2, seq, 0, type(uint64).max);
        refuses(ITreasury.NotOperator.selector);
        vm.prank(nodeKey(2));
        treasury.handover(2, 0, 0, type(uint64).max);
        treasury.pause(approve("pause", 0));
        vm.prank(nodeKey(1));
        treasury.handover(2, 0, 0, type(uint64).max);
        yes(treasury.state().paused, "the successor inherits the pause");
    }

    function test_a_handover_to_a_lease_that_ended_is_refused() public {
        standby(offerB);
        announceAndWait(2);
        skip(DROP_AFTER + 1);
        market.expire(2);
        refuses(ITreasury.NotReady.selector);
        vm.prank(nodeKey(1));
        treasury.handover(2, 0, 0, type(uint64).max);
    }

    function test_the_lease_before_last_is_closed() public {
        standby(offerB);
        handTo(2);
        standby(offerC);
        handTo(3);
        yes(uint8(market.leaseOf(1).state) == 3, "closed");
        eq(treasury.state().drainingLease, 2, "draining");
        eq(treasury.state().epoch, 3, "epoch");
    }

    function test_a_key_serves_one_epoch_only() public {
        standby(offerB);
        handTo(2);
        vm.prank(nodeKey(2));
        uint256 lease = treasury.rent(offerC, TERM, 1e5);
        vm.prank(providerC);
        market.ready(lease, nodeKey(1), "http://node", 0); // the first operator's key again
        announceAndWait(lease);
        refuses(abi.encodeWithSelector(ITreasury.KeyUsed.selector, nodeKey(1)));
        vm.prank(nodeKey(2));
        treasury.handover(lease, 0, 0, type(uint64).max);
    }

    function test_the_old_operator_can_do_nothing_after_a_handover() public {
        standby(offerB);
        settle(1e6, "n");
        handTo(2);
        bytes32 before = keccak256(abi.encode(treasury.state()));
        bytes[] memory acks = signaturesBy(3, ackHash(2, 1, "one", 0));
        bytes[9] memory calls = [
            abi.encodeCall(ITreasury.rent, (offerC, TERM, 1)),
            abi.encodeCall(ITreasury.topUp, (1, 1)),
            abi.encodeCall(ITreasury.release, (1)),
            abi.encodeCall(ITreasury.heartbeat, (0, 0, true)),
            abi.encodeCall(ITreasury.commit, (1, "one", 0, acks)),
            abi.encodeCall(ITreasury.announce, (2)),
            abi.encodeCall(ITreasury.handover, (2, 0, 0, type(uint64).max)),
            abi.encodeCall(ITreasury.setRelay, (relay)),
            abi.encodeCall(ITreasury.refundExact, (customer, "n", 1))
        ];
        for (uint256 i = 0; i < calls.length; ++i) {
            refuses(ITreasury.NotOperator.selector);
            vm.prank(nodeKey(1));
            (bool done,) = address(treasury).call(calls[i]);
            done;
        }
        eq(keccak256(abi.encode(treasury.state())), before, "nothing changed");
    }

    // ------------------------------------------------------------------ setRelay

    function test_the_operator_names_the_relay(address who, address to) public {
        vm.prank(nodeKey(1));
        treasury.setRelay(to);
        eq(treasury.state().relay, to, "relay");
        vm.assume(who != nodeKey(1));
        refuses(ITreasury.NotOperator.selector);
        vm.prank(who);
        treasury.setRelay(who);
    }
}
