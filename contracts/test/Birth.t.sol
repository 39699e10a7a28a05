// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {IERC5267} from "@openzeppelin/contracts/interfaces/IERC5267.sol";
import {Errors} from "@openzeppelin/contracts/utils/Errors.sol";
import {ILeaseMarket} from "../src/interfaces/ILeaseMarket.sol";
import {ITreasury, ITreasuryFactory} from "../src/interfaces/ITreasury.sol";
import {World} from "./World.sol";

/// What an audit asks of a treasury besides its entries: where its other half is.
interface IHalf {
    function OVERSIGHT() external view returns (address);
}

/// create, initialize, birthRent, activate, abortBirth.
contract BirthTest is World {
    function test_the_address_is_known_before_and_commits_to_every_field(uint256 field) public {
        ITreasury.Birth memory b = birth();
        address planned = factory.predict(b);
        eq(address(create(b)), planned, "where it was predicted");

        field = bound(field, 0, 7);
        if (field == 0) b.creator = stranger;
        if (field == 1) b.beneficiary = stranger;
        if (field == 2) b.threshold = 3;
        if (field == 3) b.codeHash = keccak256("other");
        if (field == 4) b.manifest = keccak256("other");
        if (field == 5) b.mandateUntil += 1;
        if (field == 6) b.policy.starveFloor += 1;
        if (field == 7) b.timers.refundWindow += 1;
        no(factory.predict(b) == planned, "another birth has another address");
    }

    function test_a_birth_is_what_was_asked_for() public {
        ITreasury.Birth memory b = birth();
        treasury = create(b);
        yes(keccak256(abi.encode(treasury.birthOf())) == keccak256(abi.encode(b)), "birthOf");
        ITreasury.State memory s = treasury.state();
        yes(s.stage == ITreasury.Stage.Unborn, "unborn");
        eq(address(treasury).balance, 1 ether, "first gas");
        eq(treasury.domainSeparator(), domain(), "EIP-712 domain");
    }

    function test_a_factory_says_where_both_halves_are() public {
        address oversight = deploy("Oversight", "");
        factory = ITreasuryFactory(deploy("TreasuryFactory", abi.encode(oversight)));
        eq(IHalf(factory.implementation()).OVERSIGHT(), oversight, "of the implementation");
        eq(IHalf(address(create(birth()))).OVERSIGHT(), oversight, "and of each of its treasuries");
    }

    function test_a_treasury_tells_what_its_signatures_are_over() public {
        treasury = create(birth());
        (bytes1 fields, string memory name, string memory version, uint256 chain, address where,,) =
            IERC5267(address(treasury)).eip712Domain();
        eq(bytes32(fields), bytes32(bytes1(0x0f)), "name, version, chain, contract; no salt");
        eq(keccak256(bytes(name)), keccak256("Vivarium Treasury"), "name");
        eq(keccak256(bytes(version)), keccak256("1"), "version");
        eq(chain, block.chainid, "chain");
        eq(where, address(treasury), "the treasury itself, not its implementation");
        eq(treasury.ACK_TYPEHASH(), keccak256("Ack(uint64 epoch,uint64 seq,bytes32 digest,bytes32 prev)"), "ack");
        eq(
            treasury.ACT_TYPEHASH(),
            keccak256("Act(string action,uint256 lease,uint64 epoch,uint64 nonce,uint64 deadline)"), "act"
        );
        eq(
            treasury.ORDER_TYPEHASH(),
            keccak256("Order(string action,uint256 argument,uint256 nonce,uint64 deadline)"), "order"
        );
    }

    function test_only_the_creator_creates(address who) public {
        vm.assume(who != creator);
        refuses(ITreasury.NotCreator.selector);
        vm.prank(who);
        factory.create(birth());
    }

    function test_the_same_birth_happens_once() public {
        create(birth());
        refuses(Errors.FailedDeployment.selector);
        vm.prank(creator);
        factory.create(birth());
    }

    function test_nobody_initializes_again_or_the_implementation(address who) public {
        born();
        ITreasury.Birth memory b = birth();
        ITreasury implementation = ITreasury(payable(factory.implementation()));
        yes(implementation.state().stage == ITreasury.Stage.Closed, "the implementation is dead");
        vm.assume(who != address(factory));
        refuses(ITreasury.NotFactory.selector);
        vm.prank(who);
        treasury.initialize(b, address(0));
        refuses(ITreasury.NotFactory.selector);
        vm.prank(who);
        implementation.initialize(b, address(0));
        refuses(ITreasury.AlreadyBorn.selector);
        vm.prank(address(factory));
        treasury.initialize(b, address(0));
        refuses(ITreasury.AlreadyBorn.selector);
        vm.prank(address(factory));
        implementation.initialize(b, address(0));
    }

    // ------------------------------------------------------------------ what a birth must satisfy

    function refused(ITreasury.Birth memory b, bytes4 selector) private {
        refuses(selector);
        vm.prank(b.creator);
        factory.create(b);
    }

    function refusedTimers(ITreasury.Birth memory b, string memory pair) private {
        refuses(abi.encodeWithSelector(ITreasury.BadTimers.selector, pair));
        vm.prank(b.creator);
        factory.create(b);
    }

    function test_stewards_ascend_and_exclude_the_creator() public {
        ITreasury.Birth memory b = birth();
        (b.stewards[0], b.stewards[1]) = (b.stewards[1], b.stewards[0]);
        refused(b, ITreasury.BadStewards.selector);
        b = birth();
        b.stewards[1] = b.stewards[0];
        refused(b, ITreasury.BadStewards.selector);
        b = birth();
        b.stewards[0] = address(0);
        refused(b, ITreasury.BadStewards.selector);
        for (uint256 i = 0; i < 3; ++i) {
            b = birth();
            b.creator = b.stewards[i];
            refused(b, ITreasury.BadStewards.selector);
        }
    }

    function test_there_is_no_agent_without_a_quorum(uint8 threshold) public {
        ITreasury.Birth memory b = birth();
        b.stewards = new address[](0);
        b.threshold = threshold;
        refused(b, ITreasury.BadQuorum.selector);
        b = birth();
        b.threshold = threshold;
        if (threshold == 2 || threshold == 3) create(b);
        else refused(b, ITreasury.BadQuorum.selector);
    }

    function test_timers_keep_their_order(uint32 a, uint32 c) public {
        ITreasury.Birth memory b = birth();
        b.timers.heartbeatEvery = uint32(bound(a, b.timers.fence, type(uint32).max));
        refusedTimers(b, "heartbeatEvery < fence");
        b = birth();
        b.timers.fence = uint32(bound(a, b.timers.answerTime, type(uint32).max));
        refusedTimers(b, "fence < answerTime");
        b = birth();
        b.timers.restoreTimeout = uint32(bound(c, GRACE - b.timers.answerTime + 1, type(uint32).max));
        refusedTimers(b, "answerTime + restoreTimeout <= market grace");
    }

    function test_no_timer_is_shorter_than_three_seconds(uint256 which, uint32 short) public {
        ITreasury.Birth memory b = birth();
        short = uint32(bound(short, 0, 2));
        which = bound(which, 0, 9);
        if (which == 0) b.timers.day = short;
        if (which == 1) b.timers.heartbeatEvery = short;
        if (which == 2) b.timers.fence = short;
        if (which == 3) b.timers.answerTime = short;
        if (which == 4) b.timers.handoverNotice = short;
        if (which == 5) b.timers.restoreTimeout = short;
        if (which == 6) b.timers.silence = short;
        if (which == 7) b.timers.starveTimeout = short;
        if (which == 8) b.timers.activateWithin = short;
        if (which == 9) b.timers.refundWindow = short;
        refusedTimers(b, "timers >= 3 s");
    }

    function test_a_lease_term_has_an_upper_bound(uint32 term, uint32 day) public {
        ITreasury.Birth memory b = birth();
        b.timers.day = uint32(bound(day, 3, type(uint32).max));
        b.policy.termMax = uint32(bound(term, 1, type(uint32).max));
        bool fits = b.policy.termMax <= 30 * uint256(b.timers.day) && b.policy.termMax <= market.MAX_TERM();
        if (fits) create(b);
        else refused(b, ITreasury.OverTerm.selector);
        b.policy.termMax = 0;
        refused(b, ITreasury.OverTerm.selector);
    }

    function test_addresses_token_mandate_and_policy_are_checked(uint64 until) public {
        ITreasury.Birth memory b = birth();
        b.beneficiary = address(0);
        refused(b, ITreasury.ZeroAddress.selector);
        b = birth();
        b.market = address(0);
        refused(b, ITreasury.ZeroAddress.selector);
        b = birth();
        b.token = stranger;
        refused(b, ITreasury.WrongToken.selector);
        b = birth();
        b.mandateUntil = uint64(bound(until, 0, block.timestamp));
        refused(b, ITreasury.TooLate.selector);
        b = birth();
        b.policy.dayLimit = 0;
        refused(b, ITreasury.BadPolicy.selector);
        b = birth();
        b.policy.priceE6Max = 0;
        refused(b, ITreasury.BadPolicy.selector);
        b = birth();
        b.policy.prepayMax = 0;
        refused(b, ITreasury.BadPolicy.selector);
    }

    // ------------------------------------------------------------------ birthRent

    function test_the_creator_rents_once(uint32 term, uint128 prepay) public {
        born();
        term = uint32(bound(term, 1 days, 30 days));
        prepay = uint128(bound(prepay, 0, min(PREPAY_MAX, uint256(PRICE) * term / 1e6)));
        vm.prank(creator);
        uint256 lease = treasury.birthRent(offerA, term, prepay);
        ILeaseMarket.Lease memory l = market.leaseOf(lease);
        eq(l.tenant, address(treasury), "tenant");
        eq(l.codeHash, CODE, "code");
        eq(l.escrow, prepay, "escrow");
        eq(treasury.state().activeLease, lease, "slot");
        eq(treasury.state().balance, SEED - prepay, "paid");
        refuses(ITreasury.SlotTaken.selector);
        vm.prank(creator);
        treasury.birthRent(offerB, term, prepay);
    }

    function test_birth_rent_obeys_policy(uint256 over, address who) public {
        born();
        vm.assume(who != creator);
        refuses(ITreasury.NotCreator.selector);
        vm.prank(who);
        treasury.birthRent(offerA, TERM, 0);

        refuses(ITreasury.OverPrepay.selector);
        vm.prank(creator);
        treasury.birthRent(offerA, TERM, uint128(bound(over, PREPAY_MAX + 1, type(uint128).max)));

        refuses(ITreasury.OverTerm.selector);
        vm.prank(creator);
        treasury.birthRent(offerA, uint32(bound(over, 30 days + 1, type(uint32).max)), 0);

        uint256 dear = provider(address(0xDEA2), uint64(bound(over, 10e6 + 1, type(uint64).max)));
        refuses(ITreasury.OverPriceCap.selector);
        vm.prank(creator);
        treasury.birthRent(dear, TERM, 0);

        vm.prank(providerA);
        market.unregister();
        refuses(ILeaseMarket.NotStaked.selector);
        vm.prank(creator);
        treasury.birthRent(offerA, TERM, 0);
    }

    // ------------------------------------------------------------------ activate

    function test_activation_makes_the_node_key_operator_and_forgets_the_creator(uint256 late) public {
        born();
        vm.prank(creator);
        uint256 lease = treasury.birthRent(offerA, TERM, 1e5);
        makeReady(lease);
        skip(bound(late, 0, 1 days));
        vm.prank(creator);
        treasury.activate(lease);
        ITreasury.State memory s = treasury.state();
        yes(s.stage == ITreasury.Stage.Alive, "alive");
        eq(s.operator, nodeKey(lease), "operator");
        eq(s.epoch, 1, "epoch");
        eq(s.lastHeartbeat, block.timestamp, "the clock of silence starts");
        eq(treasury.birthOf().creator, address(0), "creator");
        eq(nodeKey(lease).balance, 0.1 ether, "first gas");
    }

    function test_activation_wants_the_ready_birth_lease_in_time(uint256 other) public {
        born();
        vm.prank(creator);
        uint256 lease = treasury.birthRent(offerA, TERM, 1e5);
        vm.assume(other != lease);
        refuses(ITreasury.NotOurLease.selector);
        vm.prank(creator);
        treasury.activate(other);
        refuses(ITreasury.NotReady.selector);
        vm.prank(creator);
        treasury.activate(lease);
        makeReady(lease);
        refuses(ITreasury.NotCreator.selector);
        vm.prank(stranger);
        treasury.activate(lease);
        skip(1 days + 1);
        refuses(ITreasury.TooLate.selector);
        vm.prank(creator);
        treasury.activate(lease);
    }

    function test_somebody_elses_lease_cannot_be_activated() public {
        born();
        usdc.mint(stranger, 1e6);
        vm.prank(stranger);
        usdc.approve(address(market), 1e6);
        vm.prank(stranger);
        uint256 lease = market.rent(offerA, TERM, CODE, 1e5);
        makeReady(lease);
        refuses(ITreasury.NotOurLease.selector);
        vm.prank(creator);
        treasury.activate(lease);
    }

    // ------------------------------------------------------------------ abortBirth

    function test_an_agent_that_is_not_born_gives_everything_back(uint256 late, bool rents, bool readies) public {
        born();
        uint256 ethBefore = creator.balance;
        uint256 lease;
        if (rents) {
            vm.prank(creator);
            lease = treasury.birthRent(offerA, TERM, 2e5);
            if (readies) makeReady(lease);
        }
        refuses(ITreasury.TooEarly.selector);
        treasury.abortBirth();
        skip(1 days + bound(late, 1, 30 days));
        uint256 earned = rents && readies ? market.accrued(lease) : 0;
        vm.prank(stranger);
        treasury.abortBirth();
        eq(usdc.balanceOf(creator), SEED - earned, "the seed, less rent that accrued");
        eq(creator.balance, ethBefore + 1 ether, "the gas");
        eq(usdc.balanceOf(address(market)), 3 * STAKE, "only stakes are left in the market");
        yes(treasury.state().stage == ITreasury.Stage.Closed, "closed");
        refuses(ITreasury.WrongStage.selector);
        treasury.abortBirth();
        refuses(ITreasury.WrongStage.selector);
        vm.prank(creator);
        treasury.activate(lease);
    }

    function test_nothing_can_be_aborted_once_it_lives(uint256 late) public {
        live();
        skip(bound(late, 0, 60 days));
        refuses(ITreasury.WrongStage.selector);
        treasury.abortBirth();
    }
}
