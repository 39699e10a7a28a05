// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {ITreasury} from "../src/interfaces/ITreasury.sol";
import {World} from "./World.sol";

/// Birth may let the stewards' daemons rescue without the people whose keys make the quorum. Two of three of the
/// daemons' keys rescue, in silence and within `rescue`'s rules, and do nothing else.
contract RescuersTest is World {
    uint256[3] private daemonKeys;
    address[] private daemons;
    uint8 private constant K = 2;

    function setUp() public override {
        super.setUp();
        for (uint256 i = 0; i < 3; ++i) {
            daemonKeys[i] = 0xDAE0 + i;
        }
        for (uint256 i = 0; i < 3; ++i) {
            for (uint256 j = i + 1; j < 3; ++j) {
                if (vm.addr(daemonKeys[j]) < vm.addr(daemonKeys[i])) {
                    (daemonKeys[i], daemonKeys[j]) = (daemonKeys[j], daemonKeys[i]);
                }
            }
        }
        for (uint256 i = 0; i < 3; ++i) {
            daemons.push(vm.addr(daemonKeys[i]));
        }
    }

    function options() internal view override returns (ITreasury.Options memory o) {
        (o.rescuers, o.rescueThreshold, o.delay) = (daemons, K, DAY);
        o.ceilings = ITreasury.Policy({
            dayLimit: 10e6, priceE6Max: 20e6, termMax: 30 days, prepayMax: 3 days, gasDayMax: 1 ether,
            gasTarget: 0.2 ether, starveFloor: 2e6
        });
    }

    /// Signed by the daemons whose bit is set in `who`.
    function byDaemons(uint8 who, string memory action, uint256 argument)
        private
        view
        returns (ITreasury.Approval memory a)
    {
        a.deadline = uint64(block.timestamp + 1 hours);
        bytes32 hash = orderHash(action, argument, treasury.state().orderNonce, a.deadline);
        a.signatures = new bytes[]((who & 1) + ((who >> 1) & 1) + ((who >> 2) & 1));
        uint256 n = 0;
        for (uint256 i = 0; i < 3; ++i) {
            if (who & (1 << i) != 0) a.signatures[n++] = signed(daemonKeys[i], domain(), hash);
        }
    }

    function rescueBy(uint8 who) private view returns (ITreasury.Approval memory) {
        return byDaemons(who, "rescue", rescueArgument(offerC, TERM, 1e5));
    }

    function silent() private {
        live();
        skip(6 hours + 1);
    }

    function test_k_daemons_rescue_in_silence(uint8 who) public {
        who = who % 8;
        silent();
        bool enough = (who & 1) + ((who >> 1) & 1) + ((who >> 2) & 1) >= K;
        ITreasury.Approval memory a = rescueBy(who);
        if (!enough) refuses(ITreasury.BadQuorum.selector);
        vm.prank(relay);
        treasury.rescue(offerC, TERM, 1e5, a);
        eq(treasury.state().standbyLease, enough ? 2 : 0, "a standby");
        if (!enough) return;
        makeReady(2);
        vm.prank(nodeKey(2));
        treasury.takeover();
        eq(operator(), nodeKey(2), "saved");
        yes(treasury.state().restoring, "once it shows the memory");
    }

    function test_the_quorum_rescues_as_before(bool first) public {
        silent();
        if (first) {
            treasury.rescue(offerB, TERM, 1e5, byDaemons(3, "rescue", rescueArgument(offerB, TERM, 1e5)));
            skip(READY_WITHIN + 1);
        }
        treasury.rescue(offerC, TERM, 1e5, approveRescue(offerC, TERM, 1e5));
    }

    function test_rescues_own_rules_hold(uint256 quiet, uint128 prepay) public {
        live();
        quiet = bound(quiet, 0, 12 hours);
        skip(quiet);
        prepay = uint128(bound(prepay, 0, 6e6));
        ITreasury.Approval memory a = byDaemons(3, "rescue", rescueArgument(offerC, TERM, prepay));
        if (quiet <= 6 hours) refuses(ITreasury.TooEarly.selector);
        else if (prepay > 5e6) refuses(ITreasury.OverDayLimit.selector);
        else if (prepay > PREPAY_MAX) refuses(ITreasury.OverPrepay.selector);
        treasury.rescue(offerC, TERM, prepay, a);
    }

    function test_never_onto_a_barred_host() public {
        live();
        standby(offerB);
        treasury.evict(0, approve("evict", 0));
        ITreasury.Approval memory a = byDaemons(3, "rescue", rescueArgument(offerB, TERM, 1e5));
        refuses(abi.encodeWithSelector(ITreasury.Barred.selector, providerB));
        treasury.rescue(offerB, TERM, 1e5, a);
    }

    function test_a_pause_is_the_quorums_word() public {
        live();
        treasury.pause(approve("pause", 0));
        skip(6 hours + 1);
        ITreasury.Approval memory a = rescueBy(7);
        refuses(ITreasury.BadQuorum.selector);
        treasury.rescue(offerC, TERM, 1e5, a);
        treasury.rescue(offerC, TERM, 1e5, approveRescue(offerC, TERM, 1e5));
    }

    function test_steward_and_daemon_together_are_no_quorum() public {
        silent();
        ITreasury.Approval memory a = rescueBy(1);
        ITreasury.Approval memory b = approveBy(1, "rescue", rescueArgument(offerC, TERM, 1e5));
        bytes[] memory both = new bytes[](2);
        bool ascending = daemons[0] < stewards[0];
        (both[0], both[1]) = ascending ? (a.signatures[0], b.signatures[0]) : (b.signatures[0], a.signatures[0]);
        a.signatures = both;
        refuses(ITreasury.BadQuorum.selector);
        treasury.rescue(offerC, TERM, 1e5, a);
    }

    /// Every order, a checkpoint, a challenge: refused, with all three of them, in silence.
    function test_they_can_do_nothing_else() public {
        live();
        skip(6 hours + 1);
        ITreasury.Policy memory p = treasury.birthOf().policy;
        uint256 policy = uint256(keccak256(abi.encode(p)));
        uint256 people = uint256(keccak256(abi.encode(daemons, K)));
        bytes[12] memory orders = [
            abi.encodeCall(ITreasury.pause, (byDaemons(7, "pause", 0))),
            abi.encodeCall(ITreasury.stop, (byDaemons(7, "stop", 0))),
            abi.encodeCall(ITreasury.evict, (0, byDaemons(7, "evict", 0))),
            abi.encodeCall(ITreasury.clearBar, (providerB, byDaemons(7, "clearBar", uint160(providerB)))),
            abi.encodeCall(ITreasury.extendMandate, (type(uint64).max, byDaemons(7, "extendMandate", type(uint64).max))),
            abi.encodeCall(ITreasury.revokeCode, (byDaemons(7, "revokeCode", uint256(CODE)))),
            abi.encodeCall(ITreasury.tighten, (p, byDaemons(7, "tighten", policy))),
            abi.encodeCall(ITreasury.loosen, (p, byDaemons(7, "loosen", policy))),
            abi.encodeCall(ITreasury.openRefunds, (byDaemons(7, "openRefunds", 0))),
            abi.encodeCall(ITreasury.setCode, (CODE, byDaemons(7, "setCode", uint256(CODE)))),
            abi.encodeCall(ITreasury.setStewards, (daemons, K, byDaemons(7, "setStewards", people))),
            abi.encodeCall(ITreasury.commit, (1, "d", 0, acks()))
        ];
        for (uint256 i = 0; i < orders.length; ++i) {
            vm.prank(i == 11 ? operator() : daemons[0]);
            (bool done, bytes memory why) = address(treasury).call(orders[i]);
            no(done, vm.toString(i));
            eq(bytes32(bytes4(why)), bytes32(ITreasury.BadQuorum.selector), vm.toString(i));
        }
        refuses(ITreasury.NotSteward.selector);
        vm.prank(daemons[0]);
        treasury.challenge();
        treasury.pause(approve("pause", 0));
        ITreasury.Approval memory a = byDaemons(7, "resume", 0);
        refuses(ITreasury.BadQuorum.selector);
        treasury.resume(a);
    }

    function acks() private view returns (bytes[] memory all) {
        all = new bytes[](3);
        for (uint256 i = 0; i < 3; ++i) {
            all[i] = signed(daemonKeys[i], domain(), ackHash(treasury.state().epoch, 1, "d", 0));
        }
    }

    function test_new_stewards_end_it() public {
        live();
        uint256 people = uint256(keccak256(abi.encode(stewards, uint8(3))));
        treasury.setStewards(stewards, 3, approve("setStewards", people));
        skip(DAY);
        ITreasury.Approval memory none;
        treasury.setStewards(stewards, 3, none);
        eq(treasury.birthOf().options.rescueThreshold, 0, "and birth's word says so");
        for (uint8 who = 1; who < 8; ++who) {
            ITreasury.Approval memory a = rescueBy(who);
            refuses(ITreasury.BadQuorum.selector);
            treasury.rescue(offerC, TERM, 1e5, a);
        }
        treasury.rescue(offerC, TERM, 1e5, approveBy(7, "rescue", rescueArgument(offerC, TERM, 1e5)));
    }

    function test_birth_asks_of_them_what_it_asks_of_stewards(uint8 k) public {
        ITreasury.Birth memory b = birth();
        k = uint8(bound(k, 0, 5));
        b.options.rescueThreshold = k;
        if (k < 2 || k > 3) refuses(ITreasury.BadQuorum.selector);
        vm.prank(creator);
        factory.create(b);
        b = birth();
        b.options.rescuers[1] = b.options.rescuers[0];
        refuses(ITreasury.BadStewards.selector);
        vm.prank(creator);
        factory.create(b);
        b = birth();
        b.options.rescuers = new address[](0);
        refuses(ITreasury.BadQuorum.selector);
        vm.prank(creator);
        factory.create(b);
        // The creator is none of them.
        b = birth();
        b.creator = daemons[0];
        refuses(ITreasury.BadStewards.selector);
        vm.prank(daemons[0]);
        factory.create(b);
    }

    function test_where_birth_named_none_only_the_quorum_rescues() public {
        ITreasury.Birth memory b = birth();
        (b.options.rescuers, b.options.rescueThreshold) = (new address[](0), 0);
        treasury = create(b);
        usdc.mint(address(treasury), SEED);
        vm.prank(creator);
        treasury.birthRent(offerA, TERM, PREPAY_MAX / 2);
        makeReady(1);
        vm.prank(creator);
        treasury.activate(1);
        skip(6 hours + 1);
        ITreasury.Approval memory a = rescueBy(7);
        refuses(ITreasury.BadQuorum.selector);
        treasury.rescue(offerC, TERM, 1e5, a);
        a.signatures = new bytes[](0);
        refuses(ITreasury.BadQuorum.selector);
        treasury.rescue(offerC, TERM, 1e5, a);
    }
}
