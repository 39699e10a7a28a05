// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {ILeaseMarket} from "../src/interfaces/ILeaseMarket.sol";
import {ITreasury} from "../src/interfaces/ITreasury.sol";
import {World} from "./World.sol";

/// Who can act when nobody is left: every combination of seven misfortunes, who can do what in it, and that the money
/// always comes out in the end.
contract MatrixTest is World {
    struct Fate {
        bool operatorDead;
        bool standbyDead;
        bool stewardsShort; // one of three is left, two are needed
        bool providersGone; // nobody rents out anything any more
        bool noGas;
        bool paused;
        bool starved;
    }

    error Fine();

    function fate(uint256 mask) private pure returns (Fate memory) {
        return Fate(
            mask & 1 != 0, mask & 2 != 0, mask & 4 != 0, mask & 8 != 0, mask & 16 != 0, mask & 32 != 0, mask & 64 != 0
        );
    }

    function test_each_combination_of_misfortunes() public {
        for (uint256 mask = 0; mask < 128; ++mask) {
            // Each begins in the same world: what it did is undone by its own revert.
            (bool done, bytes memory why) = address(this).call(abi.encodeCall(this.suffer, (mask)));
            no(done, "never returns");
            if (why.length == 4 && bytes4(why) == Fine.selector) continue;
            revert(string.concat("combination ", vm.toString(mask), ": ", string(why)));
        }
    }

    function suffer(uint256 mask) external {
        Fate memory f = fate(mask);
        live();
        standby(offerB);
        prepare(f);
        orders(f);
        operators(f);
        silence(f);
        theEnd(f);
        revert Fine();
    }

    function prepare(Fate memory f) private {
        if (f.standbyDead) {
            vm.prank(nodeKey(1));
            treasury.release(2);
        }
        if (f.providersGone) {
            address[3] memory hosts = [providerA, providerB, providerC];
            uint256[3] memory offers = [offerA, offerB, offerC];
            for (uint256 i = 0; i < 3; ++i) {
                vm.prank(hosts[i]);
                market.setCapacity(offers[i], 0);
            }
        }
        if (f.paused) treasury.pause(approve("pause", 0)); // while they were still three
        if (f.starved) {
            uint256 balance = usdc.balanceOf(address(treasury));
            vm.prank(address(treasury));
            usdc.transfer(address(1), balance - 5e5);
        }
        if (f.noGas) vm.deal(address(treasury), 0);
    }

    function may(bool expected, address who, bytes memory call_, string memory what) private {
        vm.prank(who);
        (bool done,) = address(treasury).call(call_);
        yes(done == expected, what);
    }

    function by(Fate memory f, string memory action, uint256 argument) private view returns (ITreasury.Approval memory) {
        return approveBy(f.stewardsShort ? 1 : 3, action, argument);
    }

    /// A quorum's orders need the quorum, and nothing else: no gas of the agent's, no operator, no money.
    function orders(Fate memory f) private {
        bool quorum = !f.stewardsShort;
        if (f.paused) {
            may(quorum, stranger, abi.encodeCall(ITreasury.resume, (by(f, "resume", 0))), "resume");
            if (quorum) may(true, stranger, abi.encodeCall(ITreasury.pause, (by(f, "pause", 0))), "pause again");
        } else {
            may(quorum, stranger, abi.encodeCall(ITreasury.pause, (by(f, "pause", 0))), "pause");
            if (quorum) may(true, stranger, abi.encodeCall(ITreasury.resume, (by(f, "resume", 0))), "resume again");
        }
        may(true, stranger, abi.encodeCall(ITreasury.refuel, ()), "refuel never fails");
        may(true, relay, settleCall(), "income is always welcome");
    }

    function settleCall() private view returns (bytes memory) {
        bytes memory signature = authorization(CUSTOMER_KEY, address(treasury), 1e5, "n");
        return abi.encodeCall(ITreasury.settleExact, (customer, 1e5, 0, type(uint256).max, "n", signature));
    }

    /// What a living operator can do, and that a pause holds its hand and not its pulse.
    function operators(Fate memory f) private {
        if (f.operatorDead) return;
        address op = nodeKey(1);
        may(true, op, abi.encodeCall(ITreasury.heartbeat, (0, 0, true)), "beat");
        may(!f.paused, op, abi.encodeCall(ITreasury.topUp, (1, 1)), "topUp");
        may(!f.paused, op, abi.encodeCall(ITreasury.refundExact, (customer, "n", 1)), "refund");
        if (!f.standbyDead) {
            may(true, op, abi.encodeCall(ITreasury.announce, (2)), "announce");
        } else {
            bool rents = !f.paused && !f.providersGone;
            bytes memory call_ = abi.encodeCall(ITreasury.rent, (offerB, TERM, 1e5));
            may(rents, op, call_, "rent");
            if (!rents) return;
            uint256 lease = treasury.state().standbyLease;
            may(true, op, abi.encodeCall(ITreasury.release, (lease)), "release");
        }
    }

    /// One steward is enough to ask; then the standby, or a quorum with a host, brings the agent back.
    function silence(Fate memory f) private {
        may(true, stewards[0], abi.encodeCall(ITreasury.challenge, ()), "one steward challenges");
        skip(1 hours);
        if (!f.operatorDead) {
            beat();
            skip(2 hours + 1);
            beat();
        } else {
            skip(2 hours + 1);
        }
        bool takes = f.operatorDead && !f.standbyDead;
        may(takes, nodeKey(2), abi.encodeCall(ITreasury.takeover, ()), "takeover");
        if (takes) {
            eq(nodeKey(2).balance, f.noGas ? 0 : 0.1 ether, "with gas, if there is any");
            yes(treasury.state().paused == f.paused, "and with the pause");
            return;
        }
        // Long enough for silence, short of the market's drop.
        for (uint256 i = 0; i < 3 && !f.operatorDead; ++i) {
            skip(1 hours);
            beat();
        }
        if (f.operatorDead) skip(3 hours + 1);
        bool saved = f.operatorDead && !f.stewardsShort && !f.providersGone;
        uint256 argument = rescueArgument(offerC, TERM, 1e5);
        bytes memory call_ = abi.encodeCall(ITreasury.rescue, (offerC, TERM, 1e5, by(f, "rescue", argument)));
        may(saved, stranger, call_, "rescue");
        if (!saved) return;
        uint256 lease = treasury.state().standbyLease;
        makeReady(lease);
        may(true, nodeKey(lease), abi.encodeCall(ITreasury.takeover, ()), "the rescued takes over");
        may(!f.stewardsShort, nodeKey(lease), commitCall(), "and restores, if stewards acknowledge");
    }

    function commitCall() private view returns (bytes memory) {
        ITreasury.State memory s = treasury.state();
        bytes[] memory acks = signaturesBy(3, ackHash(s.epoch, s.checkpointSeq + 1, "c", s.checkpointDigest));
        return abi.encodeCall(ITreasury.commit, (s.checkpointSeq + 1, "c", s.checkpointDigest, acks));
    }

    /// With everybody gone, the clock and any passer-by bring the money to the beneficiary.
    function theEnd(Fate memory f) private {
        uint256 burnt = usdc.balanceOf(address(1));
        uint64 over = treasury.state().mandateUntil;
        if (!f.stewardsShort) {
            treasury.stop(approve("stop", 0));
        } else if (f.starved) {
            skip(2 days + 1); // everybody falls silent
            may(true, stranger, abi.encodeCall(ITreasury.windDown, ()), "the notice");
            skip(6 hours);
        } else {
            may(false, stranger, abi.encodeCall(ITreasury.windDown, ()), "rich and within the mandate");
            vm.warp(over + 1);
        }
        may(true, stranger, abi.encodeCall(ITreasury.windDown, ()), "windDown");
        may(false, stranger, abi.encodeCall(ITreasury.close, ()), "not yet");
        skip(3 days);
        may(true, stranger, abi.encodeCall(ITreasury.close, ()), "close");
        may(true, stranger, abi.encodeCall(ITreasury.sweep, ()), "sweep");
        may(true, beneficiary, abi.encodeCall(ITreasury.withdraw, ()), "withdraw");
        eq(usdc.balanceOf(address(treasury)), 0, "nothing stays in the treasury");
        eq(usdc.balanceOf(address(market)), 3 * STAKE, "nothing stays in the market");
        uint256 hosts = usdc.balanceOf(providerA) + usdc.balanceOf(providerB) + usdc.balanceOf(providerC);
        uint256 back = usdc.balanceOf(customer) - (1_000_000e6 - 1e5);
        eq(usdc.balanceOf(beneficiary) + hosts + back + burnt, SEED + 1e5, "all that came in went out");
    }
}
