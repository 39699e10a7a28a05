// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {ITreasury} from "../src/interfaces/ITreasury.sol";
import {ChannelDouble} from "./Doubles.sol";
import {World} from "./World.sol";

/// A payer's contract that burns all the gas it is asked with.
contract Burner {
    function isValidSignature(bytes32, bytes calldata) external pure returns (bytes4) {
        while (true) {}
        return 0;
    }
}

/// claimAndSettle, refundChannel, openRefunds, and what of a channel counts as means.
contract ChannelsTest is World {
    ChannelDouble internal channels;
    uint128 internal constant DEPOSIT = 4e6;

    function setUp() public override {
        super.setUp();
        channels = new ChannelDouble();
        live();
    }

    function options() internal view override returns (ITreasury.Options memory o) {
        (o.channels, o.withdrawDelay) = (address(channels), 2 days);
    }

    function config(bytes32 salt) internal view returns (ITreasury.ChannelConfig memory) {
        return ITreasury.ChannelConfig(
            customer, address(0), address(treasury), address(treasury), address(usdc), 2 days, salt
        );
    }

    /// A channel of the customer with the treasury.
    function open(bytes32 salt) internal returns (ITreasury.ChannelConfig memory c) {
        c = config(salt);
        deposit(c);
    }

    function deposit(ITreasury.ChannelConfig memory c) internal {
        bytes32 kind = keccak256(
            "ReceiveWithAuthorization(address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,bytes32 nonce)"
        );
        bytes32 id = channels.getChannelId(c);
        bytes32 hash =
            keccak256(abi.encode(kind, customer, address(channels), uint256(DEPOSIT), 0, type(uint256).max, id));
        channels.deposit(c, DEPOSIT, address(0), signed(CUSTOMER_KEY, usdc.DOMAIN_SEPARATOR(), hash));
    }

    function row(ITreasury.ChannelConfig memory c, uint128 most, uint128 total)
        internal
        view
        returns (ITreasury.VoucherClaim memory)
    {
        bytes memory by = signed(CUSTOMER_KEY, channels.domain(), channels.voucherHash(c, most));
        return ITreasury.VoucherClaim(ITreasury.Voucher(c, most), by, total);
    }

    function claimOne(ITreasury.ChannelConfig memory c, uint128 total) internal {
        ITreasury.VoucherClaim[] memory claims = new ITreasury.VoucherClaim[](1);
        claims[0] = row(c, DEPOSIT, total);
        vm.prank(operator());
        treasury.claimAndSettle(claims);
    }

    // ------------------------------------------------------------------ claimAndSettle

    function test_vouchers_are_claimed_and_settled(uint128 first, uint128 second) public {
        first = uint128(bound(first, 1, DEPOSIT));
        second = uint128(bound(second, 1, DEPOSIT));
        ITreasury.VoucherClaim[] memory claims = new ITreasury.VoucherClaim[](2);
        claims[0] = row(open("1"), DEPOSIT, first);
        claims[1] = row(open("2"), DEPOSIT, second);
        uint256 before = treasury.state().balance;
        vm.prank(nodeKey(1));
        treasury.claimAndSettle(claims);
        eq(treasury.state().balance, before + first + second, "income");
        eq(treasury.standing().unsettled, 0, "nothing waits");
        eq(treasury.state().spentInDay, 0, "income is no spending");
    }

    function test_bad_rows_are_skipped(uint8 bad, uint256 how) public {
        ITreasury.VoucherClaim[] memory claims = new ITreasury.VoucherClaim[](4);
        uint256 due = 0;
        for (uint256 i = 0; i < 4; ++i) {
            ITreasury.ChannelConfig memory c = open(bytes32(i));
            claims[i] = row(c, 1e6, 1e6);
            if (bad & (1 << i) == 0) {
                due += 1e6;
                continue;
            }
            uint256 fault = (how >> (8 * i)) % 4;
            if (fault == 0) claims[i].totalClaimed = 1e6 + 1; // more than the voucher
            if (fault == 1) claims[i].signature = hex"00";
            if (fault == 2) claims[i] = row(c, DEPOSIT * 2, DEPOSIT + 1); // more than the deposit
            if (fault == 3) {
                c.receiver = stranger; // authorised by us, but the money would go elsewhere
                deposit(c);
                claims[i] = row(c, 1e6, 1e6);
            }
        }
        uint256 before = treasury.state().balance;
        vm.prank(nodeKey(1));
        treasury.claimAndSettle(claims);
        eq(treasury.state().balance, before + due, "the good rows, and only they");
        (uint128 elsewhere,) = channels.receivers(stranger, address(usdc));
        eq(elsewhere, 0, "nothing for anybody else");
    }

    function test_a_payers_contract_cannot_burn_the_batch() public {
        ITreasury.ChannelConfig memory c = config("burner");
        c.payer = address(new Burner());
        channels.credit(c, 1);
        ITreasury.VoucherClaim[] memory claims = new ITreasury.VoucherClaim[](2);
        claims[0] = ITreasury.VoucherClaim(ITreasury.Voucher(c, 1), "sig", 0);
        claims[0].totalClaimed = 1;
        claims[1] = row(open("1"), 1e6, 1e6);
        uint256 before = treasury.state().balance;
        vm.prank(nodeKey(1));
        treasury.claimAndSettle{gas: 1_500_000}(claims);
        eq(treasury.state().balance, before + 1e6, "the other row came through");
    }

    function test_what_was_not_settled_then_comes_later() public {
        ITreasury.ChannelConfig memory c = open("1");
        channels.breakDown(true);
        uint256 before = treasury.state().balance;
        claimOne(c, 1e6);
        eq(treasury.state().balance, before, "not yet");
        eq(treasury.standing().unsettled, 1e6, "but known");
        channels.breakDown(false);
        vm.prank(nodeKey(1));
        treasury.claimAndSettle(new ITreasury.VoucherClaim[](0));
        eq(treasury.state().balance, before + 1e6, "now");
    }

    function test_only_the_operator_claims_also_paused_and_to_the_end(address who) public {
        vm.assume(who != nodeKey(1));
        ITreasury.ChannelConfig memory c = open("1");
        ITreasury.VoucherClaim[] memory claims = new ITreasury.VoucherClaim[](1);
        claims[0] = row(c, DEPOSIT, 1e6);
        refuses(ITreasury.NotOperator.selector);
        vm.prank(who);
        treasury.claimAndSettle(claims);
        treasury.pause(approve("pause", 0));
        claimOne(c, 1e6);
        treasury.stop(approve("stop", 0));
        claimOne(c, 2e6);
        treasury.windDown();
        claimOne(c, 3e6);
        skip(3 days);
        treasury.close();
        refuses(ITreasury.NotOperator.selector);
        vm.prank(nodeKey(1));
        treasury.claimAndSettle(claims);
    }

    function test_a_restoring_operator_neither_claims_nor_refunds() public {
        ITreasury.ChannelConfig memory c = open("1");
        standby(offerB);
        challengeUnanswered();
        vm.prank(nodeKey(2));
        treasury.takeover();
        refuses(ITreasury.IsRestoring.selector);
        vm.prank(nodeKey(2));
        treasury.claimAndSettle(new ITreasury.VoucherClaim[](0));
        refuses(ITreasury.IsRestoring.selector);
        vm.prank(nodeKey(2));
        treasury.refundChannel(c, 1);
    }

    // ------------------------------------------------------------------ refundChannel

    function test_a_refund_goes_to_the_channels_payer_and_counts(uint128 amount) public {
        ITreasury.ChannelConfig memory c = open("1");
        amount = uint128(bound(amount, 1, DEPOSIT));
        uint256 before = usdc.balanceOf(customer);
        uint256 own = treasury.state().balance;
        vm.prank(nodeKey(1));
        treasury.refundChannel(c, amount);
        eq(usdc.balanceOf(customer), before + amount, "home");
        eq(treasury.state().balance, own, "out of the channel, not out of ours");
        eq(treasury.state().spentInDay, amount, "counted");
    }

    function test_refunds_share_the_day_limit(uint128 over) public {
        ITreasury.ChannelConfig memory c = open("1");
        ITreasury.ChannelConfig memory d = open("2");
        vm.prank(nodeKey(1));
        treasury.refundChannel(c, DEPOSIT);
        over = uint128(bound(over, 5e6 - DEPOSIT + 1, DEPOSIT));
        refuses(ITreasury.OverDayLimit.selector);
        vm.prank(nodeKey(1));
        treasury.refundChannel(d, over);
    }

    function test_only_our_channels_in_our_token() public {
        ITreasury.ChannelConfig memory c = open("1");
        c.receiver = stranger;
        refuses(ITreasury.NotOurChannel.selector);
        vm.prank(nodeKey(1));
        treasury.refundChannel(c, 1);
        c = config("1");
        c.token = address(channels);
        refuses(ITreasury.NotOurChannel.selector);
        vm.prank(nodeKey(1));
        treasury.refundChannel(c, 1);
        refuses(ITreasury.ZeroAmount.selector);
        vm.prank(nodeKey(1));
        treasury.refundChannel(config("1"), 0);
    }

    function test_strangers_refund_in_the_refund_phase_only(address who, uint256 later) public {
        vm.assume(who != nodeKey(1));
        ITreasury.ChannelConfig memory c = open("1");
        refuses(ITreasury.NotOperator.selector);
        vm.prank(who);
        treasury.refundChannel(c, 1);
        windingDown();
        uint256 opens = block.timestamp + 1 days; // a third of the window
        skip(bound(later, 0, 3 days));
        if (block.timestamp < opens) refuses(ITreasury.NotOperator.selector);
        vm.prank(who);
        treasury.refundChannel(c, 1);
        // The operator may all the time, without the day limit.
        vm.prank(nodeKey(1));
        treasury.refundChannel(c, DEPOSIT - 1);
    }

    function test_a_pause_holds_refunds_until_the_quorum_opens_them(address who) public {
        ITreasury.ChannelConfig memory c = open("1");
        settle(1e6, "n");
        treasury.pause(approve("pause", 0));
        refuses(ITreasury.IsPaused.selector);
        vm.prank(nodeKey(1));
        treasury.refundChannel(c, 1);
        refuses(ITreasury.IsPaused.selector);
        vm.prank(nodeKey(1));
        treasury.refundExact(customer, "n", 1);
        treasury.openRefunds(approve("openRefunds", 0));
        yes(treasury.standing().refundsOpen, "open");
        vm.prank(who);
        treasury.refundChannel(c, DEPOSIT);
        vm.prank(nodeKey(1));
        treasury.refundExact(customer, "n", 1e6);
        eq(treasury.state().spentInDay, 1e6, "what the operator gives from our own money still counts");
        treasury.resume(approve("resume", 0));
        no(treasury.standing().refundsOpen, "closed again");
    }

    function test_nobody_but_the_operator_refunds_payments_even_when_open(address who) public {
        vm.assume(who != nodeKey(1));
        settle(1e6, "n");
        treasury.openRefunds(approve("openRefunds", 0));
        refuses(ITreasury.NotOperator.selector);
        vm.prank(who);
        treasury.refundExact(customer, "n", 1);
    }

    // ------------------------------------------------------------------ means, and the end

    function test_unsettled_claims_are_means(uint128 claimed) public {
        claimed = uint128(bound(claimed, 1, DEPOSIT));
        channels.breakDown(true);
        claimOne(open("1"), claimed);
        uint256 balance = treasury.state().balance;
        vm.prank(address(treasury));
        usdc.transfer(address(1), balance);
        skip(2 days + 1);
        ITreasury.State memory s = treasury.state();
        bool poor = s.balance + s.escrow + claimed < 2e6;
        yes(treasury.windDownReason() == (poor ? ITreasury.Reason.Starved : ITreasury.Reason.None), "reason");
    }

    function test_the_end_settles_and_so_does_every_sweep(bool late) public {
        ITreasury.ChannelConfig memory c = open("1");
        channels.breakDown(true);
        claimOne(c, 1e6);
        windingDown();
        skip(3 days);
        channels.breakDown(late);
        uint256 before = treasury.state().balance + treasury.state().escrow;
        treasury.close();
        channels.breakDown(false);
        if (late) treasury.sweep();
        eq(treasury.state().balance, before + 1e6, "fetched");
    }

    function test_a_delay_too_short_for_a_rescue_is_named(uint32 delay) public {
        ITreasury.Birth memory b = birth();
        uint256 least = uint256(3 hours) + 1 hours + 6 hours + 1 days;
        b.options.withdrawDelay = uint32(bound(delay, 0, least - 1));
        string memory pair = "withdrawDelay >= answerTime + restoreTimeout + silence + day";
        refuses(abi.encodeWithSelector(ITreasury.BadTimers.selector, pair));
        vm.prank(creator);
        factory.create(b);
        b.options.withdrawDelay = uint32(least);
        create(b);
    }
}
