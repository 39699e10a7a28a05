// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {ITreasury} from "../src/interfaces/ITreasury.sol";
import {World} from "./World.sol";

/// After `activate` the creator's key opens nothing: not in any stage, not by any entry that is not open to all.
contract CreatorTest is World {
    function calls() private view returns (bytes[] memory all) {
        ITreasury.Approval memory none;
        none.deadline = type(uint64).max;
        bytes[] memory acks;
        all = new bytes[](26);
        uint256 n = 0;
        all[n++] = abi.encodeCall(ITreasury.initialize, (birth(), address(0)));
        all[n++] = abi.encodeCall(ITreasury.birthRent, (offerB, TERM, 1));
        all[n++] = abi.encodeCall(ITreasury.activate, (1));
        all[n++] = abi.encodeCall(ITreasury.abortBirth, ());
        all[n++] = abi.encodeCall(ITreasury.rent, (offerC, TERM, 1));
        all[n++] = abi.encodeCall(ITreasury.topUp, (1, 1));
        all[n++] = abi.encodeCall(ITreasury.release, (2));
        all[n++] = abi.encodeCall(ITreasury.heartbeat, (0, 0, false));
        all[n++] = abi.encodeCall(ITreasury.commit, (1, "d", 0, acks));
        all[n++] = abi.encodeCall(ITreasury.announce, (2));
        all[n++] = abi.encodeCall(ITreasury.handover, (2, 0, 0, type(uint64).max));
        all[n++] = abi.encodeCall(ITreasury.setRelay, (creator));
        all[n++] = abi.encodeCall(ITreasury.challenge, ());
        all[n++] = abi.encodeCall(ITreasury.takeover, ());
        all[n++] = abi.encodeCall(ITreasury.refundExact, (customer, "n", 1));
        all[n++] = abi.encodeCall(ITreasury.pause, (none));
        all[n++] = abi.encodeCall(ITreasury.resume, (none));
        all[n++] = abi.encodeCall(ITreasury.stop, (none));
        all[n++] = abi.encodeCall(ITreasury.evict, (1, none));
        all[n++] = abi.encodeCall(ITreasury.rescue, (offerC, TERM, 1, none));
        all[n++] = abi.encodeCall(ITreasury.extendMandate, (type(uint64).max, none));
        all[n++] = abi.encodeCall(ITreasury.clearBar, (providerA, none));
        all[n++] = abi.encodeCall(ITreasury.windDown, ());
        all[n++] = abi.encodeCall(ITreasury.close, ());
        all[n++] = abi.encodeCall(ITreasury.sweep, ());
        all[n++] = abi.encodeCall(ITreasury.withdraw, ());
    }

    function refusedEverywhere(address who) private {
        bytes[] memory all = calls();
        bytes32 before = fingerprint();
        for (uint256 i = 0; i < all.length; ++i) {
            vm.prank(who);
            (bool done,) = address(treasury).call(all[i]);
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
