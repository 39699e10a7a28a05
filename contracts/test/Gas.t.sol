// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {ITreasury} from "../src/interfaces/ITreasury.sol";
import {World} from "./World.sol";

/// An account that burns what it is given and refuses money.
contract Glutton {
    receive() external payable {
        while (true) {}
    }
}

/// refuel, and the gas that comes with a new epoch.
contract GasTest is World {
    function setUp() public override {
        super.setUp();
        live();
    }

    function test_anyone_tops_operator_and_relay_up_to_the_target(address who, uint256 has, uint256 relayHas) public {
        has = bound(has, 0, 0.2 ether);
        relayHas = bound(relayHas, 0, 0.2 ether);
        vm.prank(nodeKey(1));
        treasury.setRelay(relay);
        vm.deal(nodeKey(1), has);
        vm.deal(relay, relayHas);
        vm.prank(who);
        treasury.refuel();
        eq(nodeKey(1).balance, has < 0.1 ether ? 0.1 ether : has, "operator");
        eq(relay.balance, relayHas < 0.1 ether ? 0.1 ether : relayHas, "relay");
    }

    function test_a_day_has_a_cap(uint256 tries) public {
        tries = bound(tries, 3, 12);
        uint256 before = address(treasury).balance;
        uint256 counted = treasury.gasSpentInDay(); // the activation's
        for (uint256 i = 0; i < tries; ++i) {
            vm.deal(nodeKey(1), 0); // a thief empties it
            treasury.refuel();
            skip(30 minutes);
        }
        eq(before - address(treasury).balance, 0.3 ether - counted, "the cap, and not a wei more");
        eq(treasury.gasSpentInDay(), 0.3 ether, "counted");
        skip(25 hours);
        vm.deal(nodeKey(1), 0);
        treasury.refuel();
        eq(nodeKey(1).balance, 0.1 ether, "another day");
    }

    function test_a_planned_handover_stays_within_the_cap() public {
        for (uint256 i = 0; i < 4; ++i) {
            vm.deal(nodeKey(1), 0);
            treasury.refuel();
        }
        standby(offerB);
        handTo(2);
        eq(nodeKey(2).balance, 0, "no more today");
    }

    function test_a_takeover_is_fuelled_past_the_cap() public {
        standby(offerB);
        skip(1 days);
        beat();
        for (uint256 i = 0; i < 4; ++i) {
            vm.deal(nodeKey(1), 0);
            treasury.refuel();
        }
        challengeUnanswered();
        vm.prank(nodeKey(2));
        treasury.takeover();
        eq(nodeKey(2).balance, 0.1 ether, "a thief of gas can't starve the successor");
    }

    function test_it_pays_what_there_is_and_never_fails(uint256 left) public {
        left = bound(left, 0, 0.2 ether);
        vm.deal(address(treasury), left);
        vm.deal(nodeKey(1), 0);
        treasury.refuel();
        eq(nodeKey(1).balance, min(left, 0.1 ether), "what there was");
    }

    function test_a_relay_that_refuses_money_stops_nothing() public {
        address glutton = address(new Glutton());
        vm.prank(nodeKey(1));
        treasury.setRelay(glutton);
        vm.deal(nodeKey(1), 0);
        treasury.refuel();
        eq(nodeKey(1).balance, 0.1 ether, "the operator has its gas");
        eq(glutton.balance, 0, "the glutton has nothing");
    }

    function test_gas_is_for_the_living() public {
        windingDown();
        vm.deal(nodeKey(1), 0);
        treasury.refuel();
        eq(nodeKey(1).balance, 0.1 ether, "winding down needs gas");
        skip(3 days);
        treasury.close();
        refuses(ITreasury.WrongStage.selector);
        treasury.refuel();
    }
}
