// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {ILeaseMarket} from "../src/interfaces/ILeaseMarket.sol";
import {ITreasury, ITreasuryFactory} from "../src/interfaces/ITreasury.sol";
import {Vm} from "./Cheats.sol";
import {ChannelDouble, FeedDouble, RouterDouble, TetherDouble, WethDouble} from "./Doubles.sol";
import {World} from "./World.sol";

/// Every event once more, so that a change of a type, an order or what is indexed shows: whoever reads the record does it
/// by these lines.
interface IRecord {
    // the factory
    event Created(address indexed treasury, address indexed creator);

    // the treasury
    event Born(address indexed creator, bytes32 manifest, bytes32 codeHash, address beneficiary, uint64 mandateUntil);
    event BirthAborted(address indexed creator, uint256 amount);
    event Activated(uint256 indexed lease, address indexed operator);
    event Rented(uint256 indexed lease, uint256 indexed offer, uint32 term, uint128 prepay);
    event ToppedUp(uint256 indexed lease, uint128 amount);
    event Released(uint256 indexed lease, uint128 refund);
    event Heartbeat(uint64 indexed epoch, bytes32 instance, bytes32 receiptsRoot);
    event Committed(uint64 indexed seq, bytes32 digest, bytes32 prev);
    event Announced(uint256 indexed lease);
    event HandedOver(uint64 indexed epoch, uint256 indexed lease, address indexed operator, uint64 seq, uint64 cut);
    event Challenged(address indexed by, uint64 deadline);
    event ChallengeAnswered();
    event TakenOver(uint64 indexed epoch, uint256 indexed lease, address indexed operator, bytes32 digest);
    event Restored(uint64 indexed epoch, bytes32 digest);
    event ExactSettled(address indexed payer, bytes32 indexed nonce, uint256 amount);
    event ExactRefunded(address indexed payer, bytes32 indexed nonce, uint256 amount);
    event RelaySet(address indexed relay);
    event Refueled(address indexed to, uint256 amountWei);
    event Paused();
    event Resumed();
    event Stopped();
    event Evicted(uint64 indexed epoch, uint256 keep, address operator);
    event Rescued(uint256 indexed lease, uint256 indexed offer);
    event MandateExtended(uint64 until);
    event ProviderBarred(address indexed provider);
    event BarCleared(address indexed provider);
    event ChannelsClaimed(uint256 claimed, uint256 skipped, uint256 amount);
    event ChannelRefunded(address indexed payer, bytes32 salt, uint128 amount);
    event Spent(ITreasury.Kind kind, address indexed payee, uint128 amount);
    event GasBought(uint256 paid, uint256 amountWei);
    event DutyPaid(address indexed steward, uint128 amount);
    event Repaid(address indexed relayer, uint256 amountWei);
    event Hibernated(uint64 indexed epoch, uint64 until);
    event Queued(string action, uint256 argument, uint64 from);
    event Tightened(ITreasury.Policy policy);
    event Loosened(ITreasury.Policy policy);
    event CodeRevoked(bytes32 codeHash);
    event CodeSet(bytes32 codeHash);
    event StewardsSet(address[] stewards, uint8 threshold);
    event RefundsOpened();
    event StarveNotice(ITreasury.Reason reason, uint64 from);
    event NoticeCancelled();
    event WindDownBegun(ITreasury.Reason reason, uint64 earliestClose);
    event TokenRefused(uint256 amount);
    event Closed(uint256 balance);
    event Withdrawn(address indexed beneficiary, uint256 amount);

    // the market
    event Registered(address indexed provider, uint256 stake);
    event Unregistered(address indexed provider, uint256 stake);
    event OfferPosted(
        uint256 indexed offer, address indexed provider, uint64 priceE6, uint32 capacity, string endpoint
    );
    event OfferRepriced(uint256 indexed offer, uint64 priceE6);
    event CapacitySet(uint256 indexed offer, uint32 capacity);
    event LeaseRequested(
        uint256 indexed lease, uint256 indexed offer, address indexed tenant, address provider, uint64 priceE6,
        uint32 term, bytes32 codeHash, uint128 escrow
    );
    event LeaseReady(uint256 indexed lease, address nodeKey, string endpoint, bytes32 tlsKeyHash);
    event LeaseToppedUp(uint256 indexed lease, uint128 amount);
    event LeaseVouched(uint256 indexed lease, uint64 vouchedAt);
    event RentPaid(uint256 indexed lease, address indexed provider, uint128 amount);
    event LeaseClosed(uint256 indexed lease, uint128 rentTotal, uint128 refund);
    event Owed(address indexed to, uint256 amount);
    event Collected(address indexed to, uint256 amount);
}

/// The record is complete and true: each entry emits these events, with these arguments, in this order, and none besides.
/// A step reads: who does what, what that must emit (the test says it itself), and `told`, which compares the two.
contract EventsTest is World {
    uint256 private constant NODE_KEY = 0x40DE;
    uint128 private constant RELAY_MAX = 0.001 ether;
    uint128 private constant DUTY = 1e4;
    uint64 private constant ANY = type(uint64).max;
    address private archive = address(0xA5C11);
    address private tenant = address(0x7E2A);
    address private next = address(0x40DEFF);
    ChannelDouble private channels;
    WethDouble private weth;
    RouterDouble private router;
    FeedDouble private feed;
    ITreasury.Approval private none;

    function setUp() public override {
        super.setUp();
        (channels, weth, feed) = (new ChannelDouble(), new WethDouble(), new FeedDouble(8));
        router = new RouterDouble(weth, usdc);
        router.set(4e8, true); // wei for a micro-USDC, at 2,500 dollars
        vm.deal(address(router), 100 ether);
        feed.set(2500e8, block.timestamp, block.timestamp);
        usdc.mint(tenant, 1000e6);
        vm.prank(tenant);
        usdc.approve(address(market), type(uint256).max);
    }

    function options() internal view override returns (ITreasury.Options memory o) {
        o.payees = new ITreasury.Payee[](1);
        o.payees[0] = ITreasury.Payee(ITreasury.Kind.Storage, archive, 1e6);
        o.gas = ITreasury.GasMarket(address(router), address(weth), address(feed), address(0), 500, 100, 1 hours);
        (o.channels, o.withdrawDelay, o.delay, o.purseMax) = (address(channels), 2 days, DAY, 1e6);
        (o.relayMax, o.dutyPay, o.dutyDayMax) = (RELAY_MAX, DUTY, 1e6);
        o.ceilings = ITreasury.Policy({
            dayLimit: 6e6, priceE6Max: 10e6, termMax: 30 days, prepayMax: 2 days, gasDayMax: 0.3 ether,
            gasTarget: 0.1 ether, starveFloor: 2e6
        });
    }

    // ------------------------------------------------------------------ how a step is compared

    function acts(address who, bytes memory call_) private {
        actsAt(address(treasury), who, call_);
    }

    function hosts(address who, bytes memory call_) private {
        actsAt(address(market), who, call_);
    }

    function actsAt(address where, address who, bytes memory call_) private {
        vm.recordLogs();
        vm.prank(who);
        (bool done, bytes memory why) = where.call(call_);
        yes(done, string(why));
    }

    function told() private {
        toldBy(address(treasury));
    }

    function hosted() private {
        toldBy(address(market));
    }

    /// What `emitter` said in this step is what the test said after it: topic by topic, byte by byte, nothing more.
    function toldBy(address emitter) private {
        Vm.Log[] memory all = vm.getRecordedLogs();
        Vm.Log[] memory got = saidBy(all, emitter);
        Vm.Log[] memory wanted = saidBy(all, address(this));
        eq(got.length, wanted.length, "so many events");
        for (uint256 i = 0; i < got.length; ++i) {
            string memory one = string.concat("event ", vm.toString(i));
            eq(got[i].topics[0], wanted[i].topics[0], string.concat(one, ": its kind"));
            eq(hash(got[i].topics), hash(wanted[i].topics), string.concat(one, ": what is indexed"));
            eq(keccak256(got[i].data), keccak256(wanted[i].data), string.concat(one, ": its data"));
        }
    }

    function hash(bytes32[] memory topics) private pure returns (bytes32) {
        return keccak256(abi.encode(topics));
    }

    function saidBy(Vm.Log[] memory all, address emitter) private pure returns (Vm.Log[] memory some) {
        uint256 n = 0;
        for (uint256 i = 0; i < all.length; ++i) {
            if (all[i].emitter == emitter) ++n;
        }
        some = new Vm.Log[](n);
        for (uint256 i = all.length; i > 0; --i) {
            if (all[i - 1].emitter == emitter) some[--n] = all[i - 1];
        }
    }

    function time() private view returns (uint64) {
        return uint64(block.timestamp);
    }

    // ------------------------------------------------------------------ birth

    function test_a_creation() public {
        ITreasury.Birth memory b = birth();
        actsAt(address(factory), creator, abi.encodeCall(ITreasuryFactory.create, (b)));
        emit IRecord.Created(factory.predict(b), creator);
        toldBy(address(factory));
        b.manifest = "a twin";
        actsAt(address(factory), creator, abi.encodeCall(ITreasuryFactory.create, (b)));
        emit IRecord.Born(creator, "a twin", CODE, beneficiary, time() + 90 days);
        toldBy(factory.predict(b));
    }

    function test_a_birth() public {
        born();
        acts(creator, abi.encodeCall(ITreasury.birthRent, (offerB, TERM, 3e5)));
        emit IRecord.Rented(1, offerB, TERM, 3e5);
        told();
        makeReady(1);
        acts(creator, abi.encodeCall(ITreasury.activate, (1)));
        emit IRecord.Activated(1, nodeKey(1));
        emit IRecord.Refueled(nodeKey(1), 0.1 ether);
        told();
    }

    function test_an_aborted_birth() public {
        born();
        vm.prank(creator);
        treasury.birthRent(offerA, TERM, 3e5);
        makeReady(1);
        skip(1 days + 1);
        acts(stranger, abi.encodeCall(ITreasury.abortBirth, ()));
        emit IRecord.BirthAborted(creator, SEED - 4 * GRACE); // less the rent, which stops with the grace
        told();
    }

    // ------------------------------------------------------------------ leases

    function test_the_standby() public {
        live();
        acts(nodeKey(1), abi.encodeCall(ITreasury.rent, (offerC, TERM, 2e5)));
        emit IRecord.Rented(2, offerC, TERM, 2e5);
        told();
        makeReady(2);
        acts(nodeKey(1), abi.encodeCall(ITreasury.topUp, (2, 1e5)));
        emit IRecord.ToppedUp(2, 1e5);
        told();
        skip(1000);
        acts(nodeKey(1), abi.encodeCall(ITreasury.release, (2)));
        emit IRecord.Released(2, 3e5 - 4 * 1000);
        told();
    }

    function test_a_lease_that_others_ended_brings_nothing_back() public {
        live();
        vm.prank(nodeKey(1));
        treasury.rent(offerB, TERM, 2e5);
        skip(READY_WITHIN + 1);
        market.reclaim(2);
        acts(nodeKey(1), abi.encodeCall(ITreasury.release, (2)));
        emit IRecord.Released(2, 0);
        told();
    }

    // ------------------------------------------------------------------ life

    function test_heartbeats_and_a_challenge() public {
        live();
        acts(nodeKey(1), abi.encodeCall(ITreasury.heartbeat, ("instance", "root", true)));
        emit IRecord.Heartbeat(1, "instance", "root");
        told();
        acts(stewards[1], abi.encodeCall(ITreasury.challenge, ()));
        emit IRecord.Challenged(stewards[1], time() + 3 hours);
        told();
        skip(1 hours);
        acts(nodeKey(1), abi.encodeCall(ITreasury.heartbeat, ("instance", "another", false)));
        emit IRecord.ChallengeAnswered();
        emit IRecord.Heartbeat(1, "instance", "another");
        told();
    }

    function commits(bytes32 digest) private {
        ITreasury.State memory s = treasury.state();
        bytes[] memory acks = signaturesBy(5, ackHash(s.epoch, s.checkpointSeq + 1, digest, s.checkpointDigest));
        acts(s.operator, abi.encodeCall(ITreasury.commit, (s.checkpointSeq + 1, digest, s.checkpointDigest, acks)));
    }

    function duties() private {
        emit IRecord.DutyPaid(stewards[0], DUTY);
        emit IRecord.DutyPaid(stewards[2], DUTY);
    }

    function test_checkpoints_and_who_is_paid_for_them() public {
        live();
        commits("one");
        emit IRecord.Committed(1, "one", 0);
        duties();
        told();
        commits("two");
        emit IRecord.Committed(2, "two", "one");
        duties();
        told();
        treasury.pause(approve("pause", 0));
        commits("three"); // in a pause nobody is paid
        emit IRecord.Committed(3, "three", "two");
        told();
    }

    function test_a_handover() public {
        live();
        standby(offerB);
        commitNext("one");
        acts(nodeKey(1), abi.encodeCall(ITreasury.setRelay, (relay)));
        emit IRecord.RelaySet(relay);
        told();
        acts(nodeKey(1), abi.encodeCall(ITreasury.announce, (2)));
        emit IRecord.Announced(2);
        told();
        skip(10 minutes);
        acts(nodeKey(1), abi.encodeCall(ITreasury.handover, (2, 1, 77, ANY)));
        emit IRecord.RelaySet(address(0)); // the old operator's
        emit IRecord.HandedOver(2, 2, nodeKey(2), 1, 77);
        emit IRecord.Refueled(nodeKey(2), 0.1 ether);
        told();
    }

    function test_a_handover_without_a_relay_to_a_key_with_gas() public {
        live();
        standby(offerB);
        announceAndWait(2);
        vm.deal(nodeKey(2), 0.1 ether);
        acts(nodeKey(1), abi.encodeCall(ITreasury.handover, (2, 0, 0, ANY)));
        emit IRecord.HandedOver(2, 2, nodeKey(2), 0, 0);
        told();
    }

    function test_sleep() public {
        live();
        vm.prank(nodeKey(1));
        treasury.setRelay(relay);
        acts(nodeKey(1), abi.encodeCall(ITreasury.hibernate, (time() + 5 days)));
        emit IRecord.RelaySet(address(0));
        emit IRecord.Hibernated(2, time() + 5 days);
        told();
    }

    // ------------------------------------------------------------------ silence

    /// Anybody may carry the standby's signature; the record names whose act it is.
    function act(string memory action) private view returns (bytes memory) {
        bytes32 kind = keccak256("Act(string action,uint256 lease,uint64 epoch,uint64 nonce,uint64 deadline)");
        uint64 nonce = treasury.lastChallengeAt();
        return signed(NODE_KEY, domain(), keccak256(abi.encode(kind, keccak256(bytes(action)), 2, 1, nonce, ANY)));
    }

    function test_a_takeover_and_a_restoration() public {
        live();
        commitNext("one");
        vm.prank(nodeKey(1));
        treasury.rent(offerB, TERM, 3e5);
        address key = vm.addr(NODE_KEY);
        vm.prank(providerB);
        market.ready(2, key, "http://node", 0);
        acts(relay, abi.encodeCall(ITreasury.challengeFor, (ANY, act("challenge"))));
        emit IRecord.Challenged(key, time() + 3 hours);
        told();
        skip(3 hours + 1);
        vm.txGasPrice(100 gwei); // so much that the bound is paid
        acts(relay, abi.encodeCall(ITreasury.takeoverFor, (ANY, act("takeover"))));
        emit IRecord.TakenOver(2, 2, key, "one");
        emit IRecord.Refueled(key, 0.1 ether);
        emit IRecord.Repaid(relay, RELAY_MAX);
        told();
        acts(key, abi.encodeCall(ITreasury.heartbeat, ("i", "r", true)));
        emit IRecord.Heartbeat(2, "i", "r");
        told();
        commits("two");
        emit IRecord.Committed(2, "two", "one");
        emit IRecord.Restored(2, "two");
        duties();
        told();
    }

    function test_a_rescue() public {
        live();
        skip(6 hours + 1);
        acts(relay, abi.encodeCall(ITreasury.rescue, (offerC, TERM, 1e5, approveRescue(offerC, TERM, 1e5))));
        emit IRecord.Rented(2, offerC, TERM, 1e5);
        emit IRecord.Rescued(2, offerC);
        told();
        makeReady(2);
        acts(nodeKey(2), abi.encodeCall(ITreasury.takeover, ()));
        emit IRecord.TakenOver(2, 2, nodeKey(2), 0);
        emit IRecord.Refueled(nodeKey(2), 0.1 ether);
        told();
    }

    // ------------------------------------------------------------------ income and spending

    function test_a_payment_and_its_refund() public {
        live();
        bytes memory by = authorization(CUSTOMER_KEY, address(treasury), 1e6, "n");
        acts(relay, abi.encodeCall(ITreasury.settleExact, (customer, 1e6, 0, type(uint256).max, "n", by)));
        emit IRecord.ExactSettled(customer, "n", 1e6);
        told();
        acts(nodeKey(1), abi.encodeCall(ITreasury.refundExact, (customer, "n", 4e5)));
        emit IRecord.ExactRefunded(customer, "n", 4e5);
        told();
    }

    function opened(bytes32 salt) private returns (ITreasury.ChannelConfig memory c) {
        c = ITreasury.ChannelConfig(
            customer, address(0), address(treasury), address(treasury), address(usdc), 2 days, salt
        );
        channels.credit(c, 1e6);
        usdc.mint(address(channels), 1e6);
    }

    function row(bytes32 salt, uint128 total) private returns (ITreasury.VoucherClaim memory) {
        ITreasury.ChannelConfig memory c = opened(salt);
        bytes memory by = signed(CUSTOMER_KEY, channels.domain(), channels.voucherHash(c, 5e5));
        return ITreasury.VoucherClaim(ITreasury.Voucher(c, 5e5), by, total);
    }

    function test_channels() public {
        live();
        ITreasury.VoucherClaim[] memory claims = new ITreasury.VoucherClaim[](4);
        (claims[0], claims[1]) = (row("1", 5e5), row("2", 5e5 + 1)); // the second claims more than its voucher says
        (claims[2], claims[3]) = (row("3", 3e5), row("4", 1e5));
        acts(nodeKey(1), abi.encodeCall(ITreasury.claimAndSettle, (claims)));
        emit IRecord.ChannelsClaimed(3, 1, 9e5);
        told();
        acts(nodeKey(1), abi.encodeCall(ITreasury.claimAndSettle, (new ITreasury.VoucherClaim[](0))));
        emit IRecord.ChannelsClaimed(0, 0, 0);
        told();
        acts(nodeKey(1), abi.encodeCall(ITreasury.refundChannel, (claims[2].voucher.channel, 1e5)));
        emit IRecord.ChannelRefunded(customer, "3", 1e5);
        told();
    }

    function test_spending() public {
        live();
        acts(nodeKey(1), abi.encodeCall(ITreasury.spend, (ITreasury.Kind.Storage, archive, 1e5)));
        emit IRecord.Spent(ITreasury.Kind.Storage, archive, 1e5);
        told();
        address purse = treasury.standing().purse;
        acts(nodeKey(1), abi.encodeCall(ITreasury.spend, (ITreasury.Kind.Purse, purse, 2e5)));
        emit IRecord.Spent(ITreasury.Kind.Purse, purse, 2e5);
        told();
    }

    function test_gas() public {
        live();
        vm.deal(address(treasury), 0.2999 ether); // of a day's gas, 0.0001 are missing: 25 cents, whatever is offered
        acts(nodeKey(1), abi.encodeCall(ITreasury.buyGas, (1e6)));
        emit IRecord.GasBought(250_000, 0.0001 ether);
        told();
        vm.prank(nodeKey(1));
        treasury.setRelay(relay);
        vm.deal(nodeKey(1), 0.04 ether);
        acts(stranger, abi.encodeCall(ITreasury.refuel, ()));
        emit IRecord.Refueled(nodeKey(1), 0.06 ether);
        emit IRecord.Refueled(relay, 0.1 ether);
        told();
        acts(stranger, abi.encodeCall(ITreasury.refuel, ()));
        told(); // both are full
    }

    // ------------------------------------------------------------------ the quorum, at once

    function test_orders_at_once() public {
        live();
        acts(stranger, abi.encodeCall(ITreasury.pause, (approve("pause", 0))));
        emit IRecord.Paused();
        told();
        acts(stranger, abi.encodeCall(ITreasury.openRefunds, (approve("openRefunds", 0))));
        emit IRecord.RefundsOpened();
        told();
        acts(stranger, abi.encodeCall(ITreasury.resume, (approve("resume", 0))));
        emit IRecord.Resumed();
        told();
        uint64 until = time() + 200 days;
        acts(stranger, abi.encodeCall(ITreasury.extendMandate, (until, approve("extendMandate", until))));
        emit IRecord.MandateExtended(until);
        told();
        ITreasury.Policy memory p = treasury.birthOf().policy;
        (p.dayLimit, p.gasTarget) = (4e6, 0.05 ether);
        acts(stranger, abi.encodeCall(ITreasury.tighten, (p, approve("tighten", uint256(keccak256(abi.encode(p)))))));
        emit IRecord.Tightened(p);
        told();
        acts(stranger, abi.encodeCall(ITreasury.stop, (approve("stop", 0))));
        emit IRecord.Stopped();
        told();
    }

    function test_who_relays_an_order_is_repaid() public {
        live();
        vm.txGasPrice(100 gwei);
        acts(relay, abi.encodeCall(ITreasury.pause, (approve("pause", 0))));
        emit IRecord.Paused();
        emit IRecord.Repaid(relay, RELAY_MAX);
        told();
        vm.deal(address(treasury), 0);
        acts(relay, abi.encodeCall(ITreasury.resume, (approve("resume", 0))));
        emit IRecord.Resumed(); // with nothing to repay from, nobody was repaid
        told();
    }

    function test_an_eviction_that_keeps_the_active_lease() public {
        live();
        standby(offerB);
        acts(stranger, abi.encodeCall(ITreasury.evict, (1, approve("evict", 1))));
        emit IRecord.Evicted(2, 1, nodeKey(1));
        emit IRecord.ProviderBarred(providerB);
        told();
        uint256 bar = uint160(providerB);
        acts(stranger, abi.encodeCall(ITreasury.clearBar, (providerB, approve("clearBar", bar))));
        emit IRecord.BarCleared(providerB);
        told();
    }

    function test_an_eviction_bars_all_but_the_kept_provider() public {
        live();
        standby(offerB);
        handTo(2); // draining at A
        standby(offerA); // standby at A too
        acts(stranger, abi.encodeCall(ITreasury.evict, (3, approve("evict", 3))));
        emit IRecord.Evicted(3, 3, nodeKey(3));
        emit IRecord.Refueled(nodeKey(3), 0.1 ether);
        emit IRecord.ProviderBarred(providerB);
        told();
    }

    function test_an_eviction_of_everybody() public {
        live();
        standby(offerB);
        handTo(2);
        standby(offerC);
        vm.prank(nodeKey(2));
        treasury.setRelay(relay);
        acts(stranger, abi.encodeCall(ITreasury.evict, (0, approve("evict", 0))));
        emit IRecord.RelaySet(address(0));
        emit IRecord.Evicted(3, 0, address(0));
        emit IRecord.ProviderBarred(providerB); // active
        emit IRecord.ProviderBarred(providerC); // standby
        emit IRecord.ProviderBarred(providerA); // draining
        told();
    }

    // ------------------------------------------------------------------ the quorum, after a delay

    function test_new_code() public {
        live();
        acts(stranger, abi.encodeCall(ITreasury.revokeCode, (approve("revokeCode", uint256(CODE)))));
        emit IRecord.CodeRevoked(CODE);
        told();
        acts(stranger, abi.encodeCall(ITreasury.setCode, ("new", approve("setCode", uint256(bytes32("new"))))));
        emit IRecord.Queued("setCode", uint256(bytes32("new")), time() + DAY);
        told();
        skip(DAY);
        acts(stranger, abi.encodeCall(ITreasury.setCode, ("new", none)));
        emit IRecord.CodeSet("new");
        told();
    }

    function test_a_looser_policy() public {
        live();
        ITreasury.Policy memory p = treasury.birthOf().policy;
        (p.dayLimit, p.priceE6Max) = (6e6, 9e6);
        uint256 argument = uint256(keccak256(abi.encode(p)));
        acts(stranger, abi.encodeCall(ITreasury.loosen, (p, approve("loosen", argument))));
        emit IRecord.Queued("loosen", argument, time() + DAY);
        told();
        skip(DAY);
        acts(stranger, abi.encodeCall(ITreasury.loosen, (p, none)));
        emit IRecord.Loosened(p);
        told();
    }

    function test_new_stewards() public {
        live();
        address[] memory people = new address[](2);
        (people[0], people[1]) = (stewards[0], stewards[2]);
        uint256 argument = uint256(keccak256(abi.encode(people, uint8(2))));
        acts(stranger, abi.encodeCall(ITreasury.setStewards, (people, 2, approve("setStewards", argument))));
        emit IRecord.Queued("setStewards", argument, time() + DAY);
        told();
        skip(DAY);
        acts(stranger, abi.encodeCall(ITreasury.setStewards, (people, 2, none)));
        emit IRecord.StewardsSet(people, 2);
        told();
    }

    // ------------------------------------------------------------------ the end

    function impoverish() private {
        uint256 balance = usdc.balanceOf(address(treasury));
        vm.prank(address(treasury));
        usdc.transfer(address(1), balance - 1e6);
    }

    function noticed() private {
        acts(stranger, abi.encodeCall(ITreasury.windDown, ()));
        emit IRecord.StarveNotice(ITreasury.Reason.Starved, time() + 6 hours);
        told();
    }

    function begun(ITreasury.Reason reason, address by) private {
        acts(by, abi.encodeCall(ITreasury.windDown, ()));
        emit IRecord.WindDownBegun(reason, time() + 3 days);
        told();
    }

    function test_hunger() public {
        live();
        impoverish();
        skip(2 days + 1);
        noticed();
        usdc.mint(address(treasury), 5e6);
        acts(stranger, abi.encodeCall(ITreasury.windDown, ()));
        emit IRecord.NoticeCancelled();
        told();
        impoverish();
        noticed();
        acts(nodeKey(1), abi.encodeCall(ITreasury.heartbeat, ("i", "r", true)));
        emit IRecord.Heartbeat(1, "i", "r"); // which ends the notice, too
        told();
        skip(2 days + 1);
        noticed();
        skip(6 hours);
        begun(ITreasury.Reason.Starved, stranger);
    }

    function test_the_other_reasons(uint256 which) public {
        live();
        which = bound(which, 0, 2);
        if (which == 0) {
            treasury.stop(approve("stop", 0));
            begun(ITreasury.Reason.Stopped, stranger);
        } else if (which == 1) {
            skip(90 days + 1);
            begun(ITreasury.Reason.MandateOver, stranger);
        } else {
            usdc.setFrozen(address(treasury), true);
            begun(ITreasury.Reason.Frozen, nodeKey(1));
        }
    }

    function test_the_end() public {
        live();
        windingDown();
        skip(3 days);
        uint256 left = SEED - 4 * GRACE;
        acts(stranger, abi.encodeCall(ITreasury.close, ()));
        emit IRecord.Closed(left);
        told();
        acts(stranger, abi.encodeCall(ITreasury.sweep, ()));
        told(); // nothing came
        usdc.setFrozen(beneficiary, true);
        acts(beneficiary, abi.encodeCall(ITreasury.withdraw, ()));
        emit IRecord.TokenRefused(left);
        told();
        usdc.setFrozen(beneficiary, false);
        acts(beneficiary, abi.encodeCall(ITreasury.withdraw, ()));
        emit IRecord.Withdrawn(beneficiary, left);
        told();
    }

    // ------------------------------------------------------------------ the market: providers

    function test_stakes() public {
        address host = address(0xD11);
        usdc.mint(host, 2 * STAKE);
        vm.prank(host);
        usdc.approve(address(market), 2 * STAKE);
        hosts(host, abi.encodeCall(ILeaseMarket.register, (STAKE)));
        emit IRecord.Registered(host, STAKE);
        hosted();
        hosts(host, abi.encodeCall(ILeaseMarket.register, (5)));
        emit IRecord.Registered(host, STAKE + 5); // all that is at stake
        hosted();
        hosts(host, abi.encodeCall(ILeaseMarket.unregister, ()));
        emit IRecord.Unregistered(host, STAKE + 5);
        hosted();
    }

    function test_offers() public {
        hosts(
            providerB,
            abi.encodeCall(ILeaseMarket.postOffer, (7, 3, 1 days, 2 days, 512, 250, "policy", "http://b", "abuse@b"))
        );
        emit IRecord.OfferPosted(4, providerB, 7, 3, "http://b");
        hosted();
        hosts(providerB, abi.encodeCall(ILeaseMarket.reprice, (4, 8)));
        emit IRecord.OfferRepriced(4, 8);
        hosted();
        hosts(providerB, abi.encodeCall(ILeaseMarket.setCapacity, (4, 9)));
        emit IRecord.CapacitySet(4, 9);
        hosted();
    }

    // ------------------------------------------------------------------ the market: leases

    function rented(uint128 prepay) private {
        vm.prank(tenant);
        market.rent(offerB, TERM, CODE, prepay);
    }

    function test_a_lease() public {
        hosts(tenant, abi.encodeCall(ILeaseMarket.rent, (offerB, TERM, CODE, 2e5)));
        emit IRecord.LeaseRequested(1, offerB, tenant, providerB, PRICE, TERM, CODE, 2e5);
        hosted();
        hosts(tenant, abi.encodeCall(ILeaseMarket.vouch, (1)));
        hosted(); // it doesn't run yet
        hosts(providerB, abi.encodeCall(ILeaseMarket.ready, (1, nodeKey(1), "http://node", "tls")));
        emit IRecord.LeaseReady(1, nodeKey(1), "http://node", "tls");
        hosted();
        hosts(tenant, abi.encodeCall(ILeaseMarket.topUp, (1, 1e5)));
        emit IRecord.LeaseToppedUp(1, 1e5);
        hosted();
        skip(1000);
        hosts(tenant, abi.encodeCall(ILeaseMarket.vouch, (1)));
        emit IRecord.LeaseVouched(1, time());
        hosted();
        hosts(providerB, abi.encodeCall(ILeaseMarket.withdraw, (1)));
        emit IRecord.RentPaid(1, providerB, 4000);
        hosted();
        hosts(providerB, abi.encodeCall(ILeaseMarket.withdraw, (1)));
        hosted(); // nothing more is earned yet
        skip(500);
        hosts(tenant, abi.encodeCall(ILeaseMarket.close, (1)));
        emit IRecord.RentPaid(1, providerB, 2000);
        emit IRecord.LeaseClosed(1, 6000, 3e5 - 6000);
        hosted();
    }

    function test_a_node_that_was_restarted() public {
        rented(1e5);
        makeReady(1);
        skip(GRACE + 1);
        hosts(providerB, abi.encodeCall(ILeaseMarket.ready, (1, next, "http://again", "other")));
        emit IRecord.LeaseReady(1, next, "http://again", "other");
        hosted();
    }

    function test_a_lease_that_earned_nothing() public {
        rented(2e5);
        hosts(tenant, abi.encodeCall(ILeaseMarket.close, (1)));
        emit IRecord.LeaseClosed(1, 0, 2e5);
        hosted();
        rented(3e5);
        skip(READY_WITHIN + 1);
        hosts(stranger, abi.encodeCall(ILeaseMarket.reclaim, (2)));
        emit IRecord.LeaseClosed(2, 0, 3e5);
        hosted();
    }

    function test_a_lease_in_silence() public {
        rented(3e5);
        makeReady(1);
        skip(DROP_AFTER + 1);
        hosts(tenant, abi.encodeCall(ILeaseMarket.close, (1)));
        emit IRecord.RentPaid(1, providerB, 4 * GRACE);
        emit IRecord.LeaseClosed(1, 4 * GRACE, 3e5 - 4 * GRACE);
        hosted();
        rented(1e5);
        makeReady(2);
        skip(DROP_AFTER + 1);
        hosts(stranger, abi.encodeCall(ILeaseMarket.expire, (2)));
        emit IRecord.RentPaid(2, providerB, 4 * GRACE);
        emit IRecord.LeaseClosed(2, 4 * GRACE, 1e5 - 4 * GRACE);
        hosted();
    }

    function test_what_the_token_refuses() public {
        rented(3e5);
        makeReady(1);
        skip(1000);
        usdc.setFrozen(providerB, true);
        usdc.setFrozen(tenant, true);
        hosts(tenant, abi.encodeCall(ILeaseMarket.close, (1)));
        emit IRecord.RentPaid(1, providerB, 4000);
        emit IRecord.LeaseClosed(1, 4000, 3e5 - 4000);
        emit IRecord.Owed(providerB, 4000);
        emit IRecord.Owed(tenant, 3e5 - 4000);
        hosted();
        usdc.setFrozen(tenant, false);
        hosts(stranger, abi.encodeCall(ILeaseMarket.collect, (tenant)));
        emit IRecord.Collected(tenant, 3e5 - 4000);
        hosted();
    }

    /// A token that keeps one part in a hundred: the record says what arrived.
    function test_what_arrives_is_what_is_told() public {
        TetherDouble tether = new TetherDouble();
        market = ILeaseMarket(deploy("LeaseMarket", abi.encode(tether, STAKE, READY_WITHIN, GRACE, DROP_AFTER)));
        tether.setFee(100);
        tether.mint(tenant, 3 * STAKE);
        vm.prank(tenant);
        tether.approve(address(market), 3 * STAKE);
        hosts(tenant, abi.encodeCall(ILeaseMarket.register, (2 * STAKE)));
        emit IRecord.Registered(tenant, 2 * STAKE / 100 * 99);
        hosted();
        vm.prank(tenant);
        market.postOffer(PRICE, 4, 1 days, 30 days, 1, 1, 0, "", "");
        hosts(tenant, abi.encodeCall(ILeaseMarket.rent, (1, TERM, CODE, 2e5)));
        emit IRecord.LeaseRequested(1, 1, tenant, tenant, PRICE, TERM, CODE, 198_000);
        hosted();
        hosts(tenant, abi.encodeCall(ILeaseMarket.topUp, (1, 1e5)));
        emit IRecord.LeaseToppedUp(1, 99_000);
        hosted();
    }
}
