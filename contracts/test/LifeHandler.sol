// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {ILeaseMarket} from "../src/interfaces/ILeaseMarket.sol";
import {IPurse} from "../src/interfaces/IPurse.sol";
import {ITreasury} from "../src/interfaces/ITreasury.sol";
import {ChannelDouble, FeedDouble, RouterDouble, WethDouble} from "./Doubles.sol";
import {World} from "./World.sol";

/// @title Everything that can happen to one agent, in any order, by everybody.
/// Keeps its own books beside the contract's. What must never succeed is tried too; if it does, `violation` names it.
contract LifeHandler is World {
    struct Gross {
        uint256 time;
        uint256 amount;
    }

    struct Acks {
        uint64 epoch;
        uint64 seq;
        bytes32 digest;
        bytes32 prev;
        bytes[] signatures;
    }

    string public violation;
    /// How often each thing really happened: invariants over a handler that gets nowhere prove nothing.
    mapping(string what => uint256) public happened;
    uint256 public paidIn;
    uint256 public refunded;
    uint256 public withdrawn;
    uint256 public payments;
    address public operatorDue; // who should be operator by our own books
    uint64 public epochDue = 1;
    uint64 public seqDue;
    bytes32 public digestDue;
    uint256 private rescued; // the lease whose key needs no challenge
    Gross[] private gross;
    Acks[] private early; // acknowledgements that were collected and not sent at once
    bytes[] private used; // orders that were obeyed
    address[] private keys; // everybody: people, hosts, stewards, and each node key that there ever was
    mapping(address key => uint256 secret) private secretOf;
    mapping(address key => bool) private served; // was operator in some epoch
    mapping(uint256 lease => address) private keyOf; // the node key on it now, by our own books
    uint256 private constant PEOPLE = 10; // the first of `keys`; then come node keys
    uint256 private made; // node keys so far
    uint256 private authorizations; // signed in the purse's name, by whomever

    ChannelDouble private channels = new ChannelDouble();
    WethDouble private weth = new WethDouble();
    FeedDouble private feed = new FeedDouble(8);
    RouterDouble private router;
    address private archive = address(0xA5C11);
    uint256 public bought; // micro-USDC that went to payees, stewards and the pool
    uint256 private channelsOpened;

    constructor() {
        (creator, stranger, beneficiary, relay) = (known(0xC0FFEE), known(0x5EED), known(0xBEEF), known(0x4E1A));
        (providerA, providerB, providerC) = (known(0xA11), known(0xB11), known(0xC11));
        World.setUp();
        known(CUSTOMER_KEY);
        (known(stewardKeys[0]), known(stewardKeys[1]));
        router = new RouterDouble(weth, usdc);
        router.set(4e8, true);
        vm.deal(address(router), 1000 ether);
        live();
        paidIn = SEED;
        operatorDue = keyOf[1];
        served[operatorDue] = true;
    }

    function options() internal view override returns (ITreasury.Options memory o) {
        o.payees = new ITreasury.Payee[](1);
        o.payees[0] = ITreasury.Payee(ITreasury.Kind.Storage, archive, 1e6);
        o.gas = ITreasury.GasMarket(address(router), address(weth), address(feed), address(0), 500, 100, 1 hours);
        (o.channels, o.withdrawDelay, o.delay, o.purseMax) = (address(channels), 2 days, DAY, 1e6);
        (o.relayMax, o.dutyPay, o.dutyDayMax) = (0.001 ether, 1e4, 1e5);
        o.ceilings = ITreasury.Policy({
            dayLimit: 6e6, priceE6Max: 10e6, termMax: 30 days, prepayMax: 2 days, gasDayMax: 0.3 ether,
            gasTarget: 0.1 ether, starveFloor: 2e6
        });
    }

    function selectors() external pure returns (bytes4[] memory all) {
        all = new bytes4[](39);
        all[0] = this.wait.selector;
        all[1] = this.waitLong.selector;
        all[2] = this.pay.selector;
        all[3] = this.gift.selector;
        all[4] = this.rent.selector;
        all[5] = this.rent.selector; // moving needs many steps in a row: these are drawn more often
        all[6] = this.ready.selector;
        all[7] = this.ready.selector;
        all[8] = this.topUp.selector;
        all[9] = this.release.selector;
        all[10] = this.heartbeat.selector;
        all[11] = this.heartbeat.selector;
        all[12] = this.commit.selector;
        all[13] = this.collectAcks.selector;
        all[14] = this.commitEarly.selector;
        all[15] = this.move.selector;
        all[16] = this.move.selector;
        all[17] = this.challenge.selector;
        all[18] = this.takeover.selector;
        all[19] = this.refund.selector;
        all[20] = this.refuel.selector;
        all[21] = this.order.selector;
        all[22] = this.order.selector;
        all[23] = this.replay.selector;
        all[24] = this.meddle.selector;
        all[25] = this.chores.selector;
        all[26] = this.takeover.selector;
        all[27] = this.challenge.selector;
        all[28] = this.buy.selector;
        all[29] = this.channel.selector;
        all[30] = this.seldom.selector;
        all[31] = this.queued.selector;
        all[32] = this.queued.selector;
        all[33] = this.rent.selector;
        all[34] = this.ready.selector;
        all[35] = this.order.selector;
        all[36] = this.sign.selector;
        all[37] = this.rekey.selector;
        all[38] = this.rekey.selector;
    }

    // ------------------------------------------------------------------ time and income

    function wait(uint256 time) external {
        skip(bound(time, 1, 40 minutes));
    }

    function waitLong(uint256 time) external {
        skip(bound(time, 1, 5 hours));
    }

    function pay(uint256 value) external {
        value = bound(value, 1, 3e6);
        bytes memory signature = authorization(CUSTOMER_KEY, address(treasury), value, bytes32(payments));
        bytes memory call_ = abi.encodeCall(
            ITreasury.settleExact, (customer, value, 0, type(uint256).max, bytes32(payments), signature)
        );
        if (!send(relay, call_)) return;
        ++happened["pay"];
        paidIn += value;
        ++payments;
        expect(!send(relay, call_), "one authorization settled twice");
    }

    function gift(uint256 value) external {
        value = bound(value, 0, 2e6);
        usdc.mint(address(treasury), value);
        paidIn += value;
    }

    // ------------------------------------------------------------------ the operator

    function rent(uint256 which, uint256 seed) external {
        uint256 offer = 1 + which % 3;
        uint128 prepay = uint128(bound(seed, 0, PREPAY_MAX));
        if (asOperator(abi.encodeCall(ITreasury.rent, (offer, TERM, prepay)))) spend(prepay, "rent");
    }

    function topUp(uint256 which, uint256 seed) external {
        uint128 amount = uint128(bound(seed, 1, PREPAY_MAX));
        if (asOperator(abi.encodeCall(ITreasury.topUp, (slot(which), amount)))) spend(amount, "topUp");
    }

    function release(uint256 which) external {
        if (asOperator(abi.encodeCall(ITreasury.release, (slot(which))))) ++happened["release"];
    }

    function heartbeat(uint256 seed) external {
        bool due = treasury.state().operator != address(0) && treasury.state().stage != ITreasury.Stage.Closed;
        bool done = asOperator(abi.encodeCall(ITreasury.heartbeat, (0, 0, seed % 4 != 0)));
        if (done) ++happened["heartbeat"];
        expect(done == due, "the operator can always beat, and nobody else");
    }

    function commit(uint256 who, bytes32 digest) external {
        ITreasury.State memory s = treasury.state();
        bytes[] memory acks = signaturesBy(uint8(who % 8), ackHash(s.epoch, s.checkpointSeq + 1, digest, s.checkpointDigest));
        uint256 before = usdc.balanceOf(address(treasury));
        if (!asOperator(abi.encodeCall(ITreasury.commit, (s.checkpointSeq + 1, digest, s.checkpointDigest, acks)))) return;
        duties(before);
        expect(acks.length >= 2, "a checkpoint without a quorum");
        ++happened[s.restoring ? "restored" : "commit"];
        (seqDue, digestDue) = (seqDue + 1, digest);
    }

    function collectAcks(bytes32 digest) external {
        ITreasury.State memory s = treasury.state();
        bytes[] memory acks = signaturesBy(3, ackHash(s.epoch, s.checkpointSeq + 1, digest, s.checkpointDigest));
        early.push(Acks(s.epoch, s.checkpointSeq + 1, digest, s.checkpointDigest, acks));
    }

    function commitEarly(uint256 which) external {
        if (early.length == 0) return;
        Acks memory a = early[which % early.length];
        uint256 before = usdc.balanceOf(address(treasury));
        if (!asOperator(abi.encodeCall(ITreasury.commit, (a.seq, a.digest, a.prev, a.signatures)))) return;
        duties(before);
        ++happened["commitEarly"];
        expect(a.epoch == epochDue, "acknowledgements of an old epoch counted");
        expect(a.seq == seqDue + 1 && a.prev == digestDue, "a checkpoint went back");
        (seqDue, digestDue) = (a.seq, a.digest);
    }

    /// Announces, or hands over to what was announced.
    function move(uint256 seed) external {
        ITreasury.State memory s = treasury.state();
        if (seed % 2 == 0) {
            asOperator(abi.encodeCall(ITreasury.announce, (s.standbyLease)));
        } else if (
            asOperator(abi.encodeCall(ITreasury.handover, (s.standbyLease, s.checkpointSeq, 0, type(uint64).max)))
        ) {
            expect(block.timestamp >= s.announcedAt + 10 minutes, "a handover without notice");
            expect(!s.restoring, "a handover while restoring");
            successor(s.standbyLease, "handover");
        }
    }

    function refund(uint256 which, uint256 amount) external {
        bytes32 nonce = bytes32(payments == 0 ? 0 : which % payments);
        amount = bound(amount, 1, 3e6);
        (uint256 recorded, uint256 back) = treasury.recorded(customer, nonce);
        bool alive = treasury.state().stage == ITreasury.Stage.Alive;
        bool open = treasury.standing().refundsOpen;
        expectPauseHolds = !open;
        if (!asOperator(abi.encodeCall(ITreasury.refundExact, (customer, nonce, amount)))) return;
        expect(back + amount <= recorded, "more refunded than paid");
        refunded += amount;
        if (alive) spend(amount, "refund");
        expectPauseHolds = true;
    }

    bool private expectPauseHolds = true; // but for refunds that the quorum opened

    // ------------------------------------------------------------------ buying, channels, sleep

    function buy(uint256 which, uint256 seed) external {
        uint128 amount = uint128(bound(seed, 1, 2e6));
        which = which % 4;
        uint256 before = usdc.balanceOf(address(treasury));
        if (which == 0) {
            if (!asOperator(abi.encodeCall(ITreasury.spend, (ITreasury.Kind.Storage, archive, amount)))) return;
            spend(amount, "spend");
            bought += amount;
        } else if (which == 1) {
            address purse = treasury.standing().purse;
            if (!asOperator(abi.encodeCall(ITreasury.spend, (ITreasury.Kind.Purse, purse, amount)))) return;
            spend(amount, "purse");
            expect(usdc.balanceOf(purse) <= 1e6, "the purse over its cap");
        } else if (which == 2) {
            if (address(treasury).balance > 0.2 ether) vm.deal(address(treasury), 0.2 ether); // used up
            feed.set(2500e8, block.timestamp, block.timestamp - (seed % 5 == 0 ? 2 hours : 0));
            if (!asOperator(abi.encodeCall(ITreasury.buyGas, (amount)))) return;
            expect(seed % 5 != 0, "gas at a stale price");
            uint256 paid = before - usdc.balanceOf(address(treasury));
            spend(paid, "buyGas");
            bought += paid;
        } else {
            address payee = keys[seed % keys.length];
            expect(
                !asOperator(abi.encodeCall(ITreasury.spend, (ITreasury.Kind(seed % 3), payee, 1))),
                "paid somebody whom birth does not list"
            );
        }
    }

    /// A payment in the purse's name, signed by anybody's key: it goes through if, and only if, that is the operator of
    /// this epoch, alive, neither paused nor restoring, and the purse holds no more than its cap.
    function sign(uint256 which, uint256 seed) external {
        ITreasury.State memory s = treasury.state();
        address purse = treasury.standing().purse;
        if (seed % 5 == 0) {
            uint256 gift_ = bound(seed >> 8, 1, 2e6); // may fill it past the cap
            usdc.mint(purse, gift_);
            paidIn += gift_;
        }
        uint256 held = usdc.balanceOf(purse);
        bool ours = which % 3 == 0 && operatorDue != address(0);
        address by = ours ? operatorDue : keys[(which >> 8) % keys.length];
        uint256 value = bound(seed >> 40, 0, held);
        bytes32 nonce = bytes32(++authorizations);
        bytes memory hand = authorizationOf(purse, secretOf[by], archive, value, nonce);
        hand = abi.encode(archive, value, uint256(0), type(uint256).max, nonce, hand);
        bool done = sendTo(address(usdc), relay, transferCall(purse, value, nonce, hand));
        bool valid = by == operatorDue && s.stage == ITreasury.Stage.Alive && !s.paused && !s.restoring;
        expect(done == (valid && held <= 1e6), "the purse pays by its operator's word and within its cap");
        if (done) bought += value;
        if (done) ++happened["sign"];
        else if (served[by] && by != operatorDue) ++happened["sign of old"];
        else if (by == operatorDue && held <= 1e6) ++happened["sign in vain"];
        else if (valid) ++happened["sign over cap"];
        if (seed % 2 == 0) sendTo(purse, stranger, abi.encodeCall(IPurse.trim, ()));
    }

    function transferCall(address from, uint256 value, bytes32 nonce, bytes memory by)
        private
        view
        returns (bytes memory)
    {
        return abi.encodeWithSignature(
            "transferWithAuthorization(address,address,uint256,uint256,uint256,bytes32,bytes)", from, archive, value,
            uint256(0), type(uint256).max, nonce, by
        );
    }

    /// A channel is opened, claimed from, or refunded.
    function channel(uint256 which, uint256 seed) external {
        if (which % 3 == 0 || channelsOpened == 0) {
            depositTo(config(channelsOpened++));
            return;
        }
        ITreasury.ChannelConfig memory c = config(seed % channelsOpened);
        (uint128 balance, uint128 claimed) = channels.channels(channels.getChannelId(c));
        if (which % 3 == 1) {
            uint128 total = uint128(bound(seed >> 8, 1, 2e6));
            ITreasury.VoucherClaim[] memory claims = new ITreasury.VoucherClaim[](1);
            bytes memory by = signed(CUSTOMER_KEY, channels.domain(), channels.voucherHash(c, 1e6));
            claims[0] = ITreasury.VoucherClaim(ITreasury.Voucher(c, 1e6), by, total);
            channels.breakDown(seed % 7 == 0);
            if (asOperator(abi.encodeCall(ITreasury.claimAndSettle, (claims)))) ++happened["claim"];
            return;
        }
        uint128 amount = uint128(bound(seed >> 8, 1, 1e6));
        bytes memory call_ = abi.encodeCall(ITreasury.refundChannel, (c, amount));
        uint256 had = usdc.balanceOf(customer);
        uint256 own = usdc.balanceOf(address(treasury));
        ITreasury.State memory s = treasury.state();
        bool open = treasury.standing().refundsOpen;
        bool phase = s.stage == ITreasury.Stage.WindingDown && block.timestamp >= s.windDownAt + 1 days;
        bool byStranger = (seed >> 4) % 2 == 0;
        if (!(byStranger ? send(stranger, call_) : asOperator(call_))) return;
        expect(!byStranger || open || phase, "a stranger refunded before the refund phase");
        expect(usdc.balanceOf(customer) == had + amount, "a refund to somebody else");
        expect(usdc.balanceOf(address(treasury)) == own, "a channel's refund out of our pocket");
        expect(amount <= balance - claimed, "more refunded than the channel held");
        ++happened["refundChannel"];
        if (!open && !phase && s.stage == ITreasury.Stage.Alive) spend(amount, "refundChannel");
    }

    function config(uint256 salt) private view returns (ITreasury.ChannelConfig memory) {
        return ITreasury.ChannelConfig(
            customer, address(0), address(treasury), address(treasury), address(usdc), 2 days, bytes32(salt)
        );
    }

    function depositTo(ITreasury.ChannelConfig memory c) private {
        bytes32 kind = keccak256(
            "ReceiveWithAuthorization(address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,bytes32 nonce)"
        );
        bytes32 id = channels.getChannelId(c);
        bytes32 hash = keccak256(abi.encode(kind, customer, address(channels), uint256(2e6), 0, type(uint256).max, id));
        channels.deposit(c, 2e6, address(0), signed(CUSTOMER_KEY, usdc.DOMAIN_SEPARATOR(), hash));
    }

    /// What ends an epoch without a successor.
    function seldom(uint256 which, uint256 seed) external {
        if (which % 12 == 0) {
            if (!asOperator(abi.encodeCall(ITreasury.hibernate, (uint64(block.timestamp + bound(seed, 1, 10 days)))))) return;
            ++happened["hibernate"];
        } else if (which % 12 == 1) {
            bytes32 code = treasury.state().codeHash;
            uint8 who = seed % 4 == 0 ? 1 : 6;
            bytes memory call_ = abi.encodeCall(ITreasury.revokeCode, (approveBy(who, "revokeCode", uint256(code))));
            if (!send(stranger, call_)) return;
            expect(who == 6, "code revoked without a quorum");
            (loosenFrom, codeFrom) = (0, 0);
            ++happened["revokeCode"];
        } else {
            return;
        }
        ++epochDue;
        operatorDue = address(0);
        rescued = 0;
        expect(treasury.state().escrow == 0, "a lease without an operator");
    }

    /// Orders at once and after a delay: limits, code, refunds.
    function queued(uint256 which, uint256 seed) external {
        ITreasury.Approval memory none;
        none.deadline = type(uint64).max;
        ITreasury.Policy memory p = treasury.birthOf().policy;
        which = which % 8;
        if (which == 0) {
            p.dayLimit = uint128(bound(seed, 3e6, p.dayLimit));
            uint256 argument = uint256(keccak256(abi.encode(p)));
            if (send(stranger, abi.encodeCall(ITreasury.tighten, (p, approve("tighten", argument))))) {
                ++happened["tighten"];
                loosenFrom = 0;
                codeFrom = 0;
            }
        } else if (which == 1 || which == 2) {
            p.dayLimit = 6e6;
            uint256 argument = uint256(keccak256(abi.encode(p)));
            bool first = which == 1 && loosenFrom == 0;
            if (!send(stranger, abi.encodeCall(ITreasury.loosen, (p, first ? approve("loosen", argument) : none)))) return;
            if (treasury.birthOf().policy.dayLimit == 6e6 && !first) {
                expect(loosenFrom != 0 && block.timestamp >= loosenFrom, "loosened without waiting");
                ++happened["loosen"];
                loosenFrom = 0;
            } else {
                loosenFrom = block.timestamp + DAY;
            }
        } else if (which < 6) {
            bool first = codeFrom == 0;
            ITreasury.Approval memory a = first ? approve("setCode", uint256(CODE)) : none;
            if (!send(stranger, abi.encodeCall(ITreasury.setCode, (CODE, a)))) return;
            if (first) {
                codeFrom = block.timestamp + DAY;
            } else {
                expect(block.timestamp >= codeFrom, "code without waiting");
                ++happened["setCode"];
                codeFrom = 0;
            }
        } else if (which == 6) {
            uint8 who = seed % 3 == 0 ? 2 : 5;
            if (!send(stranger, abi.encodeCall(ITreasury.openRefunds, (approveBy(who, "openRefunds", 0))))) return;
            expect(who == 5, "refunds opened without a quorum");
            ++happened["openRefunds"];
        } else {
            // A passer-by tries to carry out what nobody queued.
            p.dayLimit = uint128(bound(seed, 1, 6e6 - 1));
            expect(!send(stranger, abi.encodeCall(ITreasury.loosen, (p, none))), "loosened by a passer-by");
        }
    }

    uint256 private loosenFrom; // 0: nothing queued, by our own books
    uint256 private codeFrom;

    function duties(uint256 before) private {
        uint256 paid = before - usdc.balanceOf(address(treasury));
        if (paid == 0) return;
        bought += paid;
        spend(paid, "duty");
    }

    function refuel() external {
        send(stranger, abi.encodeCall(ITreasury.refuel, ()));
    }

    // ------------------------------------------------------------------ hosts

    function ready(uint256 which) external {
        uint256 lease = slot(which);
        ILeaseMarket.Lease memory l = market.leaseOf(lease);
        if (l.state != ILeaseMarket.LeaseState.Requested) lease = treasury.state().standbyLease;
        l = market.leaseOf(lease);
        if (l.state == ILeaseMarket.LeaseState.Requested && block.timestamp <= l.readyBy) makeReady(lease);
    }

    /// Each lease with a node key of its own.
    function makeReady(uint256 lease) internal override {
        expect(putKey(lease, freshKey()), "a lease in time is made ready");
    }

    function freshKey() private returns (address) {
        return known(0x40DE0000 + ++made);
    }

    /// A host puts another key on a running lease: a fresh one, the operator's own, or any that was on a lease before.
    /// It takes silence, and makes nobody operator.
    function rekey(uint256 which, uint256 seed) external {
        uint256 lease = which % 2 == 0 ? treasury.state().standbyLease : slot(which >> 1);
        ILeaseMarket.Lease memory l = market.leaseOf(lease);
        if (l.state != ILeaseMarket.LeaseState.Ready) return;
        if (seed % 4 == 0) skip(GRACE + 1); // nobody vouches
        bool silent = block.timestamp > l.vouchedAt + GRACE && block.timestamp < l.end;
        uint256 what = (seed >> 8) % 5;
        address key = what == 4 ? keys[PEOPLE + (seed >> 16) % made] : operatorDue;
        if (what < 2 || key == address(0)) key = freshKey();
        bool done = putKey(lease, key);
        expect(done == silent, "a key is replaced after silence, and only then");
        if (done) ++happened[lease == treasury.state().activeLease ? "rekey active" : "rekey"];
    }

    function putKey(uint256 lease, address key) private returns (bool done) {
        address host = market.leaseOf(lease).provider;
        done = sendTo(address(market), host, abi.encodeCall(ILeaseMarket.ready, (lease, key, "http://node", 0)));
        if (done) keyOf[lease] = key;
    }

    function known(uint256 secret) private returns (address who) {
        who = vm.addr(secret);
        secretOf[who] = secret;
        keys.push(who);
    }

    function chores(uint256 which, uint256 seed) external {
        uint256 lease = slot(which);
        address host = market.leaseOf(lease).provider;
        uint256 what = seed % 6;
        if (what == 0) sendTo(address(market), host, abi.encodeCall(ILeaseMarket.withdraw, (lease)));
        if (what == 1) sendTo(address(market), stranger, abi.encodeCall(ILeaseMarket.expire, (lease)));
        if (what == 2) sendTo(address(market), stranger, abi.encodeCall(ILeaseMarket.reclaim, (lease)));
        if (what == 3) usdc.setFrozen(providerC, (seed >> 8) % 4 == 0);
        if (what == 4) sendTo(address(market), stranger, abi.encodeCall(ILeaseMarket.collect, (providerC)));
        if (what == 5 && (seed >> 8) % 6 == 0) end(seed >> 16);
    }

    // ------------------------------------------------------------------ silence

    function challenge(uint256 who) external {
        uint256 lease = treasury.state().standbyLease;
        send(who % 2 == 0 || lease == 0 ? stewards[who % 3] : keyOf[lease], abi.encodeCall(ITreasury.challenge, ()));
        if (who % 3 == 0) skip(3 hours + 1); // nobody answers
    }

    function takeover() external {
        ITreasury.State memory s = treasury.state();
        if (s.standbyLease == 0) return;
        if (!send(keyOf[s.standbyLease], abi.encodeCall(ITreasury.takeover, ()))) return;
        expect(treasury.state().restoring, "a successor that need not restore");
        bool unanswered = s.challengedAt != 0 && block.timestamp > s.challengedAt + 3 hours;
        expect(unanswered || s.standbyLease == rescued, "a takeover without an unanswered challenge");
        expect(treasury.state().paused == s.paused, "a takeover changed the pause");
        successor(s.standbyLease, s.standbyLease == rescued ? "takeover of the rescued" : "takeover");
    }

    // ------------------------------------------------------------------ stewards

    function order(uint256 signers, uint256 which, uint256 seed) external {
        // Mostly a quorum; now and then one alone, or nobody.
        uint8 who = signers % 16 < 13 ? (signers % 2 == 0 ? 3 : 5) : uint8(signers % 4);
        which = which % 10;
        ITreasury.State memory s = treasury.state();
        if (s.operator == address(0) && which == 4) which = 5; // nobody left to evict: what is needed is a rescue
        bytes memory call_;
        uint256 keep = seed % 7 == 0 ? 0 : seed % 2 == 1 ? s.activeLease : s.standbyLease;
        uint256 offer = 1 + seed % 3;
        if (which == 0) call_ = abi.encodeCall(ITreasury.pause, (approveBy(who, "pause", 0)));
        else if (which < 4) call_ = abi.encodeCall(ITreasury.resume, (approveBy(who, "resume", 0)));
        else if (which == 4) call_ = abi.encodeCall(ITreasury.evict, (keep, approveBy(who, "evict", keep)));
        else if (which < 8) call_ = rescueCall(offer, who);
        else call_ = clearCall(market.offerOf(offer).provider, who);
        // Its own host, still with the key that is operator, has its memory. Nobody else does.
        bool same = keep != 0 && keep == s.activeLease && keyOf[keep] == operatorDue;
        if (!send(stranger, call_)) {
            if (which == 4 && keep != 0 && !same && served[keyOf[keep]]) ++happened["keep a used key, in vain"];
            return;
        }
        expect(who == 3 || who == 5 || who == 7, "an order without a quorum");
        used.push(call_);
        if (which == 0) ++happened["pause"];
        if (which == 4) {
            ++epochDue;
            ++happened[keep == 0 ? "evict all" : keep == s.activeLease ? "keep active" : "keep standby"];
            if (keep == s.activeLease && !same) ++happened["keep another key"];
            operatorDue = keep == 0 ? address(0) : keyOf[keep];
            expect(keep == 0 || same || !served[operatorDue], "a key served twice by an eviction");
            expect(treasury.state().restoring == (keep != 0 && (!same || s.restoring)), "kept without its memory");
            served[operatorDue] = true;
        }
        if (which > 4 && which < 8) {
            rescued = treasury.state().standbyLease;
            spend(1e5, "rescue");
            bool silent = block.timestamp > s.lastHeartbeat + 6 hours;
            bool stuck = s.restoring && block.timestamp > s.takenOverAt + 1 hours;
            expect(silent || stuck || s.operator == address(0), "a rescue without silence");
        }
    }

    function rescueCall(uint256 offer, uint8 who) private view returns (bytes memory) {
        return abi.encodeCall(ITreasury.rescue, (offer, TERM, 1e5, approveBy(who, "rescue", rescueArgument(offer, TERM, 1e5))));
    }

    function clearCall(address host, uint8 who) private view returns (bytes memory) {
        return abi.encodeCall(ITreasury.clearBar, (host, approveBy(who, "clearBar", uint160(host))));
    }

    function replay(uint256 which) external {
        if (used.length == 0) return;
        expect(!send(stranger, used[which % used.length]), "an order was obeyed twice");
    }

    function end(uint256 seed) private {
        if (seed % 4 != 3) send(stranger, abi.encodeCall(ITreasury.stop, (approve("stop", 0))));
        send(stranger, abi.encodeCall(ITreasury.windDown, ()));
        if (seed % 2 == 0) skip(3 days);
        if (send(stranger, abi.encodeCall(ITreasury.close, ()))) {
            operatorDue = address(0);
            ++happened["close"];
        }
        if (send(stranger, abi.encodeCall(ITreasury.sweep, ()))) {
            expect(usdc.balanceOf(treasury.standing().purse) == 0, "money left in the purse");
        }
        uint256 before = usdc.balanceOf(beneficiary);
        send(beneficiary, abi.encodeCall(ITreasury.withdraw, ()));
        withdrawn += usdc.balanceOf(beneficiary) - before;
    }

    // ------------------------------------------------------------------ those who may not

    /// Anybody but the operator tries anything that is not open to all.
    function meddle(uint256 who, uint256 what) external {
        ITreasury.State memory s = treasury.state();
        address actor = keys[who % keys.length];
        if (actor == s.operator) return;
        ITreasury.Approval memory none;
        none.deadline = type(uint64).max;
        bytes[] memory acks = signaturesBy(3, ackHash(s.epoch, s.checkpointSeq + 1, "stolen", s.checkpointDigest));
        bytes memory call_;
        what = what % 21;
        if (what == 16) call_ = abi.encodeCall(ITreasury.spend, (ITreasury.Kind.Storage, archive, 1));
        if (what == 17) call_ = abi.encodeCall(ITreasury.buyGas, (1));
        if (what == 18) call_ = abi.encodeCall(ITreasury.hibernate, (uint64(block.timestamp + 1)));
        if (what == 19) call_ = abi.encodeCall(ITreasury.claimAndSettle, (new ITreasury.VoucherClaim[](0)));
        if (what == 20) call_ = abi.encodeCall(ITreasury.revokeCode, (none));
        if (what == 0) call_ = abi.encodeCall(ITreasury.rent, (offerC, TERM, 1));
        if (what == 1) call_ = abi.encodeCall(ITreasury.topUp, (s.activeLease, 1));
        if (what == 2) call_ = abi.encodeCall(ITreasury.release, (s.standbyLease));
        if (what == 3) call_ = abi.encodeCall(ITreasury.heartbeat, (0, 0, true));
        if (what == 4) {
            call_ = abi.encodeCall(ITreasury.commit, (s.checkpointSeq + 1, "stolen", s.checkpointDigest, acks));
        }
        if (what == 5) call_ = abi.encodeCall(ITreasury.announce, (s.standbyLease));
        if (what == 6) call_ = abi.encodeCall(ITreasury.handover, (s.standbyLease, s.checkpointSeq, 0, type(uint64).max));
        if (what == 7) call_ = abi.encodeCall(ITreasury.setRelay, (actor));
        if (what == 8) call_ = abi.encodeCall(ITreasury.refundExact, (customer, 0, 1));
        if (what == 9) call_ = abi.encodeCall(ITreasury.birthRent, (offerC, TERM, 1));
        if (what == 10) call_ = abi.encodeCall(ITreasury.activate, (s.activeLease));
        if (what == 11) call_ = abi.encodeCall(ITreasury.abortBirth, ());
        if (what == 12) call_ = abi.encodeCall(ITreasury.evict, (0, none));
        if (what == 13) call_ = abi.encodeCall(ITreasury.stop, (none));
        if (what == 14) call_ = abi.encodeCall(ITreasury.initialize, (birth(), address(0)));
        if (what == 15) {
            if (s.standbyLease != 0 && actor == keyOf[s.standbyLease]) return;
            call_ = abi.encodeCall(ITreasury.takeover, ());
        }
        expect(!send(actor, call_), "somebody who may not did");
    }

    // ------------------------------------------------------------------ books

    function successor(uint256 lease, string memory how) private {
        ++happened[how];
        ++epochDue;
        operatorDue = keyOf[lease];
        expect(!served[operatorDue], "a key served twice");
        served[operatorDue] = true;
    }

    function spend(uint256 amount, string memory how) private {
        ++happened[how];
        expect(!treasury.state().paused || isRescue() || !expectPauseHolds, "money left a paused treasury");
        gross.push(Gross(block.timestamp, amount));
        // A limit that was tightened below what was spent before lets nothing more out, which nothing at all fits.
        expect(amount == 0 || window() <= treasury.birthOf().policy.dayLimit, "over the day limit");
        expect(treasury.state().spentInDay >= window(), "the contract counts less than was spent");
    }

    /// The one commitment that the quorum itself makes may be made in a pause.
    function isRescue() private view returns (bool) {
        return rescued != 0 && treasury.state().standbyLease == rescued;
    }

    /// Gross commitments of the last day, by our own books.
    function window() private view returns (uint256 sum) {
        for (uint256 i = gross.length; i > 0 && gross[i - 1].time + DAY > block.timestamp; --i) {
            sum += gross[i - 1].amount;
        }
    }

    function slot(uint256 which) private view returns (uint256) {
        ITreasury.State memory s = treasury.state();
        which = which % 3;
        return which == 0 ? s.activeLease : which == 1 ? s.standbyLease : s.drainingLease;
    }

    function asOperator(bytes memory call_) private returns (bool) {
        address op = operator();
        return op != address(0) && send(op, call_);
    }

    function send(address from, bytes memory call_) private returns (bool) {
        return sendTo(address(treasury), from, call_);
    }

    function sendTo(address to, address from, bytes memory call_) private returns (bool done) {
        vm.prank(from);
        (done,) = to.call(call_);
    }

    function expect(bool holds, string memory what) private {
        if (!holds && bytes(violation).length == 0) violation = what;
    }

    function world() external view returns (ITreasury, ILeaseMarket) {
        return (treasury, market);
    }

    function hosts() external view returns (address[3] memory) {
        return [providerA, providerB, providerC];
    }

    /// What channels paid, whoever settled.
    function channelIncome() external view returns (uint256 settled) {
        (, settled) = channels.receivers(address(treasury), address(usdc));
    }

    function token() external view returns (address) {
        return address(usdc);
    }
}
