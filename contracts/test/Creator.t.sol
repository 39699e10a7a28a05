// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {ITreasury} from "../src/interfaces/ITreasury.sol";
import {World} from "./World.sol";

/// After `activate` the creator's key opens nothing: not in any stage, not by any entry that is not open to all.
contract CreatorTest is World {
    struct Try {
        bytes call_;
        bytes4 why; // what refuses it: that it is this caller, wherever the entry asks who calls
        uint8 needs; // bits: 1 paused, 2 silent, 4 standby slot free
    }

    uint8 private constant PAUSED = 1;
    uint8 private constant SILENT = 2;

    /// Every entry that is not open to all, with an approval that the creator signed itself where one is needed.
    function tries(address who) private view returns (Try[] memory all) {
        ITreasury.Approval memory own = ownApproval();
        bytes[] memory acks;
        ITreasury.Policy memory policy = treasury.birthOf().policy;
        bytes4 op = ITreasury.NotOperator.selector;
        bytes4 quorum = ITreasury.BadQuorum.selector;
        bytes4 stage = ITreasury.WrongStage.selector;
        all = new Try[](35);
        uint256 n = 0;
        all[n++] = Try(abi.encodeCall(ITreasury.initialize, (birth(), address(0))), ITreasury.NotFactory.selector, 0);
        all[n++] = Try(abi.encodeCall(ITreasury.birthRent, (offerB, TERM, 1)), stage, 0);
        all[n++] = Try(abi.encodeCall(ITreasury.activate, (1)), stage, 0);
        all[n++] = Try(abi.encodeCall(ITreasury.abortBirth, ()), stage, 0);
        all[n++] = Try(abi.encodeCall(ITreasury.rent, (offerC, TERM, 1)), op, 0);
        all[n++] = Try(abi.encodeCall(ITreasury.topUp, (1, 1)), op, 0);
        all[n++] = Try(abi.encodeCall(ITreasury.release, (2)), op, 0);
        all[n++] = Try(abi.encodeCall(ITreasury.heartbeat, (0, 0, false)), op, 0);
        all[n++] = Try(abi.encodeCall(ITreasury.commit, (1, "d", 0, acks)), op, 0);
        all[n++] = Try(abi.encodeCall(ITreasury.announce, (2)), op, 0);
        all[n++] = Try(abi.encodeCall(ITreasury.handover, (2, 0, 0, type(uint64).max)), op, 0);
        all[n++] = Try(abi.encodeCall(ITreasury.setRelay, (who)), op, 0);
        all[n++] = Try(abi.encodeCall(ITreasury.hibernate, (uint64(block.timestamp + 1))), op, 0);
        all[n++] = Try(abi.encodeCall(ITreasury.spend, (ITreasury.Kind.Storage, who, 1)), op, 0);
        all[n++] = Try(abi.encodeCall(ITreasury.buyGas, (1)), op, 0);
        all[n++] = Try(abi.encodeCall(ITreasury.claimAndSettle, (new ITreasury.VoucherClaim[](0))), op, 0);
        all[n++] = Try(abi.encodeCall(ITreasury.refundExact, (customer, "n", 1)), op, 0);
        all[n++] = Try(abi.encodeCall(ITreasury.challenge, ()), ITreasury.NotSteward.selector, 0);
        all[n++] = Try(abi.encodeCall(ITreasury.challengeFor, (own.deadline, own.signatures[0])), notKey(), 0);
        all[n++] = Try(abi.encodeCall(ITreasury.takeover, ()), notKey(), 0);
        all[n++] = Try(abi.encodeCall(ITreasury.takeoverFor, (own.deadline, own.signatures[0])), notKey(), 0);
        all[n++] = Try(abi.encodeCall(ITreasury.pause, (own)), quorum, 0);
        all[n++] = Try(abi.encodeCall(ITreasury.resume, (own)), quorum, PAUSED);
        all[n++] = Try(abi.encodeCall(ITreasury.stop, (own)), quorum, 0);
        all[n++] = Try(abi.encodeCall(ITreasury.evict, (1, own)), quorum, 0);
        all[n++] = Try(abi.encodeCall(ITreasury.rescue, (offerC, TERM, 1, own)), quorum, SILENT);
        all[n++] = Try(abi.encodeCall(ITreasury.extendMandate, (type(uint64).max, own)), quorum, 0);
        all[n++] = Try(abi.encodeCall(ITreasury.clearBar, (providerA, own)), quorum, 0);
        all[n++] = Try(abi.encodeCall(ITreasury.revokeCode, (own)), quorum, 0);
        all[n++] = Try(abi.encodeCall(ITreasury.tighten, (policy, own)), quorum, 0);
        all[n++] = Try(abi.encodeCall(ITreasury.openRefunds, (own)), quorum, 0);
        all[n++] = Try(abi.encodeCall(ITreasury.setCode, ("x", own)), quorum, 0);
        all[n++] = Try(abi.encodeCall(ITreasury.loosen, (policy, own)), quorum, 0);
        all[n++] = Try(abi.encodeCall(ITreasury.setStewards, (stewards, 2, own)), quorum, 0);
        all[n++] = Try(abi.encodeCall(ITreasury.windDown, ()), ITreasury.NotStarved.selector, 0);
    }

    function notKey() private pure returns (bytes4) {
        return ITreasury.NotNodeKey.selector;
    }

    /// Two signatures of somebody who is no steward.
    function ownApproval() private view returns (ITreasury.Approval memory a) {
        a.deadline = type(uint64).max;
        a.signatures = new bytes[](2);
        a.signatures[0] = signed(CREATOR_KEY, domain(), orderHash("pause", 0, treasury.state().orderNonce, a.deadline));
        a.signatures[1] = a.signatures[0];
    }

    uint256 private constant CREATOR_KEY = 0xC0FFEE;

    function setUp() public override {
        creator = vm.addr(CREATOR_KEY);
        super.setUp();
    }

    function options() internal pure override returns (ITreasury.Options memory o) {
        o.delay = DAY;
        o.ceilings = ITreasury.Policy({
            dayLimit: 10e6, priceE6Max: 20e6, termMax: 30 days, prepayMax: 3 days, gasDayMax: 1 ether,
            gasTarget: 0.2 ether, starveFloor: 2e6
        });
    }

    /// In a state in which the rightful caller would succeed, each entry refuses this one, and says that it is for who
    /// it is.
    function refusedByName(address who) private {
        live();
        standby(offerB);
        announceAndWait(2);
        settle(1e6, "n");
        beat();
        Try[] memory all = tries(who);
        bytes32 before = fingerprint();
        for (uint256 i = 0; i < all.length; ++i) {
            if (all[i].needs != 0) continue;
            refusedFor(who, all[i], i);
        }
        eq(fingerprint(), before, "nothing changed");
        skip(6 hours + 1);
        treasury.pause(approve("pause", 0));
        all = tries(who);
        before = fingerprint();
        for (uint256 i = 0; i < all.length; ++i) {
            if (all[i].needs != 0) refusedFor(who, all[i], i);
        }
        eq(fingerprint(), before, "nothing changed");
        // And the rightful callers are not refused in just that state.
        treasury.rescue(offerC, TERM, 1, approveRescue(offerC, TERM, 1));
        treasury.resume(approve("resume", 0));
    }

    function refusedFor(address who, Try memory t, uint256 i) private {
        vm.prank(who);
        (bool done, bytes memory why) = address(treasury).call(t.call_);
        no(done, string.concat("refused, call ", vm.toString(i)));
        eq(bytes32(bytes4(why)), bytes32(t.why), string.concat("for being who it is, call ", vm.toString(i)));
    }

    function test_the_creator_is_refused_by_name() public {
        refusedByName(creator);
    }

    function test_a_stranger_is_refused_by_name(address who) public {
        vm.assume(who != nodeKey(1) && who != nodeKey(2) && who != address(factory) && who.code.length == 0);
        for (uint256 i = 0; i < 3; ++i) {
            vm.assume(who != stewards[i]);
        }
        refusedByName(who);
    }

    function test_no_entry_is_missing_from_the_table() public {
        live();
        Try[] memory all = tries(creator);
        for (uint256 i = 0; i < all.length; ++i) {
            for (uint256 j = 0; j < i; ++j) {
                no(bytes4(all[i].call_) == bytes4(all[j].call_), "each once");
            }
        }
        // With close, sweep and withdraw (their own test below), and with what is open to all: settleExact, refuel,
        // refundChannel, windDownReason, identify.
        eq(all.length + 3 + 5, 43, "the interface's writing entries");
    }

    function refusedEverywhere(address who) private {
        Try[] memory all = tries(who);
        bytes32 before = fingerprint();
        for (uint256 i = 0; i < all.length; ++i) {
            vm.prank(who);
            (bool done,) = address(treasury).call(all[i].call_);
            no(done, string.concat("refused, call ", vm.toString(i)));
        }
        eq(fingerprint(), before, "nothing changed");
    }

    function fingerprint() private view returns (bytes32) {
        return keccak256(abi.encode(treasury.state(), treasury.birthOf()));
    }

    function test_the_creator_is_refused_everywhere_in_life(uint256 later) public {
        live();
        standby(offerB);
        announceAndWait(2);
        settle(1e6, "n");
        beat();
        skip(bound(later, 0, 6 hours));
        refusedEverywhere(creator);
    }

    function test_a_stranger_is_refused_everywhere_in_life(address who) public {
        live();
        standby(offerB);
        announceAndWait(2);
        vm.assume(who != nodeKey(1) && who != nodeKey(2) && who != beneficiary);
        for (uint256 i = 0; i < 3; ++i) {
            vm.assume(who != stewards[i]);
        }
        refusedEverywhere(who);
    }

    function test_the_creator_is_refused_after_an_open_challenge_and_while_restoring() public {
        takenOver();
        refusedEverywhere(creator);
        skip(1 hours + 1);
        refusedEverywhere(creator);
    }

    function test_the_creator_is_refused_while_paused_and_winding_down() public {
        live();
        standby(offerB);
        treasury.pause(approve("pause", 0));
        refusedEverywhere(creator);
        windingDown();
        refusedEverywhere(creator);
        refuses(ITreasury.TooEarly.selector);
        vm.prank(creator);
        treasury.close();
        refuses(ITreasury.WrongStage.selector);
        vm.prank(creator);
        treasury.sweep();
    }

    function test_the_creator_gets_nothing_at_the_end() public {
        live();
        windingDown();
        skip(3 days);
        treasury.close();
        refuses(ITreasury.NotBeneficiary.selector);
        vm.prank(creator);
        treasury.withdraw();
        eq(usdc.balanceOf(creator), 0, "nothing");
    }
}
