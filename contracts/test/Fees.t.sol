// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {ILeaseMarket} from "../src/interfaces/ILeaseMarket.sol";
import {IPurse} from "../src/interfaces/IPurse.sol";
import {ITreasury} from "../src/interfaces/ITreasury.sol";
import {ChannelDouble, FeedDouble, RouterDouble, WethDouble} from "./Doubles.sol";
import {World} from "./World.sol";

/// What each entry costs, as a transaction of its own: snapshots/treasury.json and market.json, written and compared by
/// the profile `gas`. A change of more than nothing is a change to look at. Only `initialize` and the purse's `sweep` are
/// missing: nobody sends them, they are part of `create`, `pause`, `takeover` and others.
contract FeesTest is World {
    uint256 private constant NODE_KEY = 0x40DE;
    ChannelDouble private channels;
    WethDouble private weth;
    RouterDouble private router;
    FeedDouble private feed;
    ITreasury.Approval private none;
    address private registry;
    uint128 private dutyPay = 1e4;

    function setUp() public override {
        super.setUp();
        (channels, weth, feed) = (new ChannelDouble(), new WethDouble(), new FeedDouble(8));
        router = new RouterDouble(weth, usdc);
        router.set(4e8, true);
        vm.deal(address(router), 100 ether);
        feed.set(2500e8, block.timestamp, block.timestamp);
        registry = deploy("IdentityRegistry", "");
        none.deadline = type(uint64).max;
    }

    function options() internal view override returns (ITreasury.Options memory o) {
        o.payees = new ITreasury.Payee[](1);
        o.payees[0] = ITreasury.Payee(ITreasury.Kind.Storage, stranger, 1e6);
        o.gas = ITreasury.GasMarket(address(router), address(weth), address(feed), address(0), 500, 100, 1 hours);
        (o.channels, o.withdrawDelay, o.delay, o.purseMax) = (address(channels), 2 days, DAY, 1e6);
        (o.relayMax, o.dutyPay, o.dutyDayMax, o.identity) = (0.001 ether, dutyPay, 1e6, registry);
        o.ceilings = ITreasury.Policy({
            dayLimit: 6e6, priceE6Max: 10e6, termMax: 30 days, prepayMax: 2 days, gasDayMax: 0.3 ether,
            gasTarget: 0.1 ether, starveFloor: 2e6
        });
    }

    function pays(string memory name, address who, bytes memory call_) private {
        paysAt("treasury", address(treasury), name, who, call_);
    }

    function hosts(string memory name, address who, bytes memory call_) private {
        paysAt("market", address(market), name, who, call_);
    }

    function paysAt(string memory group, address to, string memory name, address who, bytes memory call_) private {
        vm.prank(who);
        (bool done, bytes memory why) = to.call(call_);
        yes(done, string.concat(name, string(why)));
        vm.snapshotGasLastCall(group, name);
    }

    function lived() private {
        live();
        standby(offerB);
        beat();
        skip(1 hours);
    }

    function test_a_birth() public {
        ITreasury.Birth memory b = birth();
        vm.deal(creator, 2 ether);
        vm.prank(creator);
        treasury = ITreasury(payable(factory.create{value: 1 ether}(b)));
        vm.snapshotGasLastCall("treasury", "create (factory)");
        usdc.mint(address(treasury), SEED);
        pays("birthRent", creator, abi.encodeCall(ITreasury.birthRent, (offerA, TERM, PREPAY_MAX / 2)));
        hosts("ready", providerA, abi.encodeCall(ILeaseMarket.ready, (1, nodeKey(1), "http://node", 0)));
        pays("activate", creator, abi.encodeCall(ITreasury.activate, (1)));
    }

    function test_an_aborted_birth() public {
        born();
        skip(2 days);
        pays("abortBirth", stranger, abi.encodeCall(ITreasury.abortBirth, ()));
    }

    function test_a_day() public {
        live();
        address op = nodeKey(1);
        pays("rent", op, abi.encodeCall(ITreasury.rent, (offerB, TERM, PREPAY_MAX / 2)));
        makeReady(2);
        pays("heartbeat (first)", op, abi.encodeCall(ITreasury.heartbeat, ("i", "r", true)));
        skip(1 hours);
        pays("heartbeat", op, abi.encodeCall(ITreasury.heartbeat, ("i", "s", true)));
        skip(1 hours);
        pays("topUp", op, abi.encodeCall(ITreasury.topUp, (1, 1e4)));
        pays("settleExact", relay, settleCall("1"));
        pays("refundExact", op, abi.encodeCall(ITreasury.refundExact, (customer, "1", 1e5)));
        pays("setRelay", op, abi.encodeCall(ITreasury.setRelay, (relay)));
        vm.deal(op, 0);
        pays("refuel (both)", stranger, abi.encodeCall(ITreasury.refuel, ()));
        pays("refuel (nothing to do)", stranger, abi.encodeCall(ITreasury.refuel, ()));
        pays("commit (two stewards, paid)", op, commitCall("1"));
        pays("spend", op, abi.encodeCall(ITreasury.spend, (ITreasury.Kind.Storage, stranger, 1e5)));
        vm.deal(address(treasury), 0.1 ether);
        feed.set(2500e8, block.timestamp, block.timestamp);
        pays("buyGas", op, abi.encodeCall(ITreasury.buyGas, (1e6)));
        pays("announce", op, abi.encodeCall(ITreasury.announce, (2)));
        skip(10 minutes);
        pays("handover", op, abi.encodeCall(ITreasury.handover, (2, 1, 0, type(uint64).max)));
        pays("release", nodeKey(2), abi.encodeCall(ITreasury.release, (1)));
        pays("hibernate", nodeKey(2), abi.encodeCall(ITreasury.hibernate, (uint64(block.timestamp + 1 days))));
    }

    /// As our own births have it: stewards who acknowledge are paid nothing.
    function test_an_unpaid_checkpoint() public {
        dutyPay = 0;
        lived();
        pays("commit (two stewards)", nodeKey(1), commitCall("1"));
        eq(usdc.balanceOf(stewards[0]) + usdc.balanceOf(stewards[1]), 0, "nobody was paid");
    }

    function settleCall(bytes32 nonce) private view returns (bytes memory) {
        bytes memory signature = authorization(CUSTOMER_KEY, address(treasury), 1e6, nonce);
        return abi.encodeCall(ITreasury.settleExact, (customer, 1e6, 0, type(uint256).max, nonce, signature));
    }

    function commitCall(bytes32 digest) private view returns (bytes memory) {
        ITreasury.State memory s = treasury.state();
        bytes[] memory acks = signaturesBy(3, ackHash(s.epoch, s.checkpointSeq + 1, digest, s.checkpointDigest));
        return abi.encodeCall(ITreasury.commit, (s.checkpointSeq + 1, digest, s.checkpointDigest, acks));
    }

    function test_channels() public {
        lived();
        ITreasury.ChannelConfig[4] memory c;
        ITreasury.VoucherClaim[] memory one = new ITreasury.VoucherClaim[](1);
        ITreasury.VoucherClaim[] memory three = new ITreasury.VoucherClaim[](3);
        for (uint256 i = 0; i < 4; ++i) {
            c[i] = ITreasury.ChannelConfig(
                customer, address(0), address(treasury), address(treasury), address(usdc), 2 days, bytes32(i)
            );
            bytes32 id = channels.getChannelId(c[i]);
            bytes32 kind = keccak256(
                "ReceiveWithAuthorization(address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,bytes32 nonce)"
            );
            bytes32 hash =
                keccak256(abi.encode(kind, customer, address(channels), uint256(1e6), 0, type(uint256).max, id));
            channels.deposit(c[i], 1e6, address(0), signed(CUSTOMER_KEY, usdc.DOMAIN_SEPARATOR(), hash));
            bytes memory by = signed(CUSTOMER_KEY, channels.domain(), channels.voucherHash(c[i], 1e6));
            ITreasury.VoucherClaim memory row = ITreasury.VoucherClaim(ITreasury.Voucher(c[i], 1e6), by, 5e5);
            if (i == 0) one[0] = row;
            else three[i - 1] = row;
        }
        pays("claimAndSettle (1 row)", nodeKey(1), abi.encodeCall(ITreasury.claimAndSettle, (one)));
        pays("claimAndSettle (3 rows)", nodeKey(1), abi.encodeCall(ITreasury.claimAndSettle, (three)));
        pays("refundChannel", nodeKey(1), abi.encodeCall(ITreasury.refundChannel, (c[0], 1e5)));
    }

    function test_the_purse() public {
        lived();
        IPurse purse = IPurse(treasury.standing().purse);
        bytes memory fill = abi.encodeCall(ITreasury.spend, (ITreasury.Kind.Purse, address(purse), 1e6));
        pays("spend (purse)", nodeKey(1), fill);
        usdc.mint(address(purse), 1e5);
        paysAt("treasury", address(purse), "trim (purse)", stranger, abi.encodeCall(IPurse.trim, ()));
        eq(usdc.balanceOf(address(purse)), 1e6, "down to its cap");
    }

    function test_an_identity() public {
        // No registry answers the first move, so whoever comes by registers the agent later.
        bytes memory code = registry.code;
        vm.etch(registry, "");
        live();
        no(treasury.standing().isRegistered, "not by the activation");
        vm.etch(registry, code);
        pays("identify (first)", stranger, abi.encodeCall(ITreasury.identify, ()));
        yes(treasury.standing().isRegistered, "registered");
        // As after a restart of the host: the same lease with another endpoint.
        skip(GRACE + 1);
        vm.prank(providerA);
        market.ready(1, nodeKey(1), "http://moved", 0);
        pays("identify", stranger, abi.encodeCall(ITreasury.identify, ()));
    }

    function test_silence() public {
        live();
        vm.prank(nodeKey(1));
        treasury.rent(offerB, TERM, PREPAY_MAX / 2);
        vm.prank(providerB);
        market.ready(2, vm.addr(NODE_KEY), "http://node", 0);
        pays("challengeFor", relay, abi.encodeCall(ITreasury.challengeFor, (type(uint64).max, act("challenge"))));
        beat();
        skip(3 hours);
        pays("challenge", stewards[0], abi.encodeCall(ITreasury.challenge, ()));
        skip(3 hours + 1);
        pays("takeoverFor", relay, abi.encodeCall(ITreasury.takeoverFor, (type(uint64).max, act("takeover"))));
    }

    function act(string memory action) private view returns (bytes memory) {
        ITreasury.State memory s = treasury.state();
        bytes32 kind = keccak256("Act(string action,uint256 lease,uint64 epoch,uint64 nonce,uint64 deadline)");
        bytes32 hash = keccak256(
            abi.encode(
                kind, keccak256(bytes(action)), s.standbyLease, s.epoch, treasury.lastChallengeAt(), type(uint64).max
            )
        );
        return signed(NODE_KEY, domain(), hash);
    }

    function test_a_takeover_and_a_rescue() public {
        lived();
        challengeUnanswered();
        pays("takeover", nodeKey(2), abi.encodeCall(ITreasury.takeover, ()));
        skip(6 hours + 1);
        pays(
            "rescue", relay,
            abi.encodeCall(ITreasury.rescue, (offerC, TERM, 1e5, approveRescue(offerC, TERM, 1e5)))
        );
    }

    function test_orders() public {
        lived();
        ITreasury.Policy memory p = treasury.birthOf().policy;
        uint256 same = uint256(keccak256(abi.encode(p)));
        pays("pause", relay, abi.encodeCall(ITreasury.pause, (approve("pause", 0))));
        pays("openRefunds", relay, abi.encodeCall(ITreasury.openRefunds, (approve("openRefunds", 0))));
        pays("resume", relay, abi.encodeCall(ITreasury.resume, (approve("resume", 0))));
        pays("tighten", relay, abi.encodeCall(ITreasury.tighten, (p, approve("tighten", same))));
        pays("loosen (queue)", relay, abi.encodeCall(ITreasury.loosen, (p, approve("loosen", same))));
        pays("setCode (queue)", relay, abi.encodeCall(ITreasury.setCode, (CODE, approve("setCode", uint256(CODE)))));
        uint256 people = uint256(keccak256(abi.encode(stewards, uint8(2))));
        bytes memory call_ = abi.encodeCall(ITreasury.setStewards, (stewards, 2, approve("setStewards", people)));
        pays("setStewards (queue)", relay, call_);
        uint64 until = uint64(block.timestamp + 200 days);
        pays("extendMandate", relay, abi.encodeCall(ITreasury.extendMandate, (until, approve("extendMandate", until))));
        skip(DAY);
        pays("loosen (carry out)", relay, abi.encodeCall(ITreasury.loosen, (p, none)));
        pays("setCode (carry out)", relay, abi.encodeCall(ITreasury.setCode, (CODE, none)));
        pays("setStewards (carry out)", relay, abi.encodeCall(ITreasury.setStewards, (stewards, 2, none)));
        pays("evict", relay, abi.encodeCall(ITreasury.evict, (1, approve("evict", 1))));
        uint256 bar = uint160(providerB);
        pays("clearBar", relay, abi.encodeCall(ITreasury.clearBar, (providerB, approve("clearBar", bar))));
        pays("revokeCode", relay, abi.encodeCall(ITreasury.revokeCode, (approve("revokeCode", uint256(CODE)))));
    }

    function test_the_end() public {
        lived();
        pays("stop", relay, abi.encodeCall(ITreasury.stop, (approve("stop", 0))));
        pays("windDownReason", stranger, abi.encodeCall(ITreasury.windDownReason, ()));
        pays("windDown", stranger, abi.encodeCall(ITreasury.windDown, ()));
        skip(3 days);
        pays("close", stranger, abi.encodeCall(ITreasury.close, ()));
        pays("sweep", stranger, abi.encodeCall(ITreasury.sweep, ()));
        pays("withdraw", beneficiary, abi.encodeCall(ITreasury.withdraw, ()));
    }

    function test_the_market() public {
        address host = address(0xD11);
        usdc.mint(host, 2 * STAKE);
        vm.prank(host);
        usdc.approve(address(market), type(uint256).max);
        hosts("register", host, abi.encodeCall(ILeaseMarket.register, (STAKE)));
        hosts("unregister", host, abi.encodeCall(ILeaseMarket.unregister, ()));
        hosts(
            "postOffer", providerA,
            abi.encodeCall(ILeaseMarket.postOffer, (PRICE, 4, 1 days, 30 days, 1, 1, 0, "http://provider", "abuse@provider"))
        );
        hosts("reprice", providerA, abi.encodeCall(ILeaseMarket.reprice, (offerA, PRICE + 1)));
        hosts("setCapacity", providerA, abi.encodeCall(ILeaseMarket.setCapacity, (offerA, 5)));
        lived();
        hosts("withdraw", providerA, abi.encodeCall(ILeaseMarket.withdraw, (1)));
        skip(DROP_AFTER + 1);
        hosts("expire", stranger, abi.encodeCall(ILeaseMarket.expire, (1)));
    }

    /// By a tenant of its own, as the market alone costs it; a treasury pays its checks on top.
    function test_a_tenant_of_the_market() public {
        lived(); // neither the first lease nor the first rent
        address tenant = address(0x7E4A47);
        usdc.mint(tenant, 10e6);
        vm.prank(tenant);
        usdc.approve(address(market), type(uint256).max);
        hosts("rent", tenant, abi.encodeCall(ILeaseMarket.rent, (offerC, TERM, CODE, PREPAY_MAX / 2)));
        makeReady(3);
        skip(1 hours);
        hosts("vouch", tenant, abi.encodeCall(ILeaseMarket.vouch, (3)));
        hosts("topUp", tenant, abi.encodeCall(ILeaseMarket.topUp, (3, 1e4)));
        skip(1 hours);
        hosts("close", tenant, abi.encodeCall(ILeaseMarket.close, (3)));
        eq(usdc.balanceOf(providerC), uint256(PRICE) * 2 hours / 1e6, "the host was paid");
    }

    function test_a_host_that_never_came_and_one_that_could_not_be_paid() public {
        lived();
        usdc.mint(address(this), 10e6);
        usdc.approve(address(market), type(uint256).max);
        market.rent(offerC, TERM, CODE, PREPAY_MAX / 2);
        skip(READY_WITHIN + 1);
        hosts("reclaim", stranger, abi.encodeCall(ILeaseMarket.reclaim, (3)));
        market.rent(offerC, TERM, CODE, PREPAY_MAX / 2);
        makeReady(4);
        skip(1 hours);
        usdc.setFrozen(providerC, true);
        market.close(4);
        usdc.setFrozen(providerC, false);
        hosts("collect", stranger, abi.encodeCall(ILeaseMarket.collect, (providerC)));
        eq(usdc.balanceOf(providerC), uint256(PRICE) * 1 hours / 1e6, "what was owed");
    }
}
