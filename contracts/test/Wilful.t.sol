// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";
import {SafeCast} from "@openzeppelin/contracts/utils/math/SafeCast.sol";
import {ILeaseMarket} from "../src/interfaces/ILeaseMarket.sol";
import {ITreasury} from "../src/interfaces/ITreasury.sol";
import {WilfulDouble} from "./Doubles.sol";
import {IUsdc, World} from "./World.sol";

/// A beneficiary that calls back when it is paid in ETH.
contract GreedyDouble {
    bytes4 public heard;

    receive() external payable {
        (bool done, bytes memory why) = msg.sender.call(abi.encodeCall(ITreasury.withdraw, ()));
        require(!done, "paid twice");
        heard = bytes4(why);
    }
}

/// Receivers and a token that call back from within, a token that says no instead of reverting, and one without bounds.
contract WilfulTest is World {
    WilfulDouble private token;
    bytes4 private constant GUARD = ReentrancyGuardTransient.ReentrancyGuardReentrantCall.selector;

    function setUp() public override {
        super.setUp();
        token = new WilfulDouble();
        usdc = IUsdc(address(token)); // only what both have is used below
        market = ILeaseMarket(deploy("LeaseMarket", abi.encode(token, STAKE, READY_WITHIN, GRACE, DROP_AFTER)));
        (offerA, offerB) = (provider(providerA, PRICE), provider(providerB, PRICE));
    }

    function options() internal view override returns (ITreasury.Options memory o) {
        o.payees = new ITreasury.Payee[](1);
        o.payees[0] = ITreasury.Payee(ITreasury.Kind.Storage, stranger, 1e6);
    }

    // ------------------------------------------------------------------ calls from within

    /// Every entry of both halves that takes or gives anything. The rest (announce, setRelay, challenge, challengeFor,
    /// identify) moves nothing.
    function entries() private view returns (bytes[] memory all) {
        ITreasury.Approval memory none;
        ITreasury.Policy memory policy;
        ITreasury.ChannelConfig memory channel;
        bytes[] memory acks;
        all = new bytes[](36);
        uint256 n = 0;
        all[n++] = abi.encodeCall(ITreasury.birthRent, (offerB, TERM, 1));
        all[n++] = abi.encodeCall(ITreasury.activate, (1));
        all[n++] = abi.encodeCall(ITreasury.abortBirth, ());
        all[n++] = abi.encodeCall(ITreasury.rent, (offerB, TERM, 1));
        all[n++] = abi.encodeCall(ITreasury.topUp, (1, 1));
        all[n++] = abi.encodeCall(ITreasury.release, (2));
        all[n++] = abi.encodeCall(ITreasury.heartbeat, (0, 0, false));
        all[n++] = abi.encodeCall(ITreasury.commit, (1, "d", 0, acks));
        all[n++] = abi.encodeCall(ITreasury.handover, (2, 0, 0, type(uint64).max));
        all[n++] = abi.encodeCall(ITreasury.hibernate, (uint64(block.timestamp + 1)));
        all[n++] = abi.encodeCall(ITreasury.takeover, ());
        all[n++] = abi.encodeCall(ITreasury.takeoverFor, (type(uint64).max, ""));
        all[n++] = abi.encodeCall(ITreasury.settleExact, (customer, 1, 0, 0, "n", ""));
        all[n++] = abi.encodeCall(ITreasury.refundExact, (customer, "n", 1));
        all[n++] = abi.encodeCall(ITreasury.claimAndSettle, (new ITreasury.VoucherClaim[](0)));
        all[n++] = abi.encodeCall(ITreasury.refundChannel, (channel, 1));
        all[n++] = abi.encodeCall(ITreasury.spend, (ITreasury.Kind.Storage, stranger, 1));
        all[n++] = abi.encodeCall(ITreasury.buyGas, (1));
        all[n++] = abi.encodeCall(ITreasury.refuel, ());
        all[n++] = abi.encodeCall(ITreasury.pause, (none));
        all[n++] = abi.encodeCall(ITreasury.resume, (none));
        all[n++] = abi.encodeCall(ITreasury.stop, (none));
        all[n++] = abi.encodeCall(ITreasury.evict, (1, none));
        all[n++] = abi.encodeCall(ITreasury.rescue, (offerB, TERM, 1, none));
        all[n++] = abi.encodeCall(ITreasury.extendMandate, (type(uint64).max, none));
        all[n++] = abi.encodeCall(ITreasury.clearBar, (providerA, none));
        all[n++] = abi.encodeCall(ITreasury.revokeCode, (none));
        all[n++] = abi.encodeCall(ITreasury.tighten, (policy, none));
        all[n++] = abi.encodeCall(ITreasury.openRefunds, (none));
        all[n++] = abi.encodeCall(ITreasury.setCode, ("x", none));
        all[n++] = abi.encodeCall(ITreasury.loosen, (policy, none));
        all[n++] = abi.encodeCall(ITreasury.setStewards, (stewards, 2, none));
        all[n++] = abi.encodeCall(ITreasury.windDown, ());
        all[n++] = abi.encodeCall(ITreasury.close, ());
        all[n++] = abi.encodeCall(ITreasury.sweep, ());
        all[n++] = abi.encodeCall(ITreasury.withdraw, ());
        eq(n, all.length, "entries");
    }

    function marketEntries() private view returns (bytes[] memory all) {
        all = new bytes[](9);
        all[0] = abi.encodeCall(ILeaseMarket.register, (1));
        all[1] = abi.encodeCall(ILeaseMarket.unregister, ());
        all[2] = abi.encodeCall(ILeaseMarket.withdraw, (2));
        all[3] = abi.encodeCall(ILeaseMarket.rent, (offerB, TERM, CODE, 0));
        all[4] = abi.encodeCall(ILeaseMarket.topUp, (2, 1));
        all[5] = abi.encodeCall(ILeaseMarket.close, (2));
        all[6] = abi.encodeCall(ILeaseMarket.reclaim, (2));
        all[7] = abi.encodeCall(ILeaseMarket.expire, (2));
        all[8] = abi.encodeCall(ILeaseMarket.collect, (address(treasury)));
    }

    /// While a lease is closed, first its provider is paid and then the treasury: both times the token calls back.
    function closedToAll(address where, bytes[] memory inside) private {
        standby(offerB);
        skip(1000);
        token.callBack(where, inside);
        vm.prank(nodeKey(1));
        treasury.release(2);
        eq(token.calls(), 2 * inside.length, "called at both payments");
        for (uint256 i = 0; i < inside.length; ++i) {
            eq(bytes32(token.heard(i)), bytes32(GUARD), vm.toString(i));
        }
        eq(usdc.balanceOf(providerB), 4 * 1000, "the lease was closed as ever");
    }

    function test_nothing_of_a_treasury_is_entered_while_it_closes_a_lease() public {
        live();
        closedToAll(address(treasury), entries());
    }

    function test_nothing_of_the_market_is_entered_while_it_closes_a_lease() public {
        live();
        closedToAll(address(market), marketEntries());
    }

    /// The two halves have one guard: what begins in the one is closed in the other.
    function test_nor_while_the_other_half_is_at_work() public {
        live();
        standby(offerB);
        skip(1000);
        bytes[] memory all = entries();
        token.callBack(address(treasury), all);
        treasury.evict(1, approve("evict", 1));
        eq(token.calls(), 2 * all.length, "called at both payments");
        for (uint256 i = 0; i < all.length; ++i) {
            eq(bytes32(token.heard(i)), bytes32(GUARD), vm.toString(i));
        }
    }

    function test_a_beneficiary_that_calls_back_is_paid_once() public {
        GreedyDouble greedy = new GreedyDouble();
        beneficiary = address(greedy);
        live();
        windingDown();
        skip(3 days);
        treasury.close();
        vm.prank(beneficiary);
        treasury.withdraw();
        eq(bytes32(greedy.heard()), bytes32(GUARD), "closed");
        eq(beneficiary.balance, 0.9 ether, "what there was");
    }

    // ------------------------------------------------------------------ a token that says no

    function no_() private {
        refuses(abi.encodeWithSelector(SafeERC20.SafeERC20FailedOperation.selector, address(token)));
    }

    function test_a_no_is_not_taken_for_a_payment() public {
        live();
        token.say(false);
        no_();
        vm.prank(nodeKey(1));
        treasury.spend(ITreasury.Kind.Storage, stranger, 1e5);
        eq(treasury.state().spentInDay, 0, "nor counted");
        no_();
        vm.prank(nodeKey(1));
        treasury.rent(offerB, TERM, 1e5);
        no_();
        vm.prank(providerB);
        market.register(1);
        no_();
        vm.prank(providerB);
        market.unregister();
        eq(market.stakeOf(providerB), STAKE, "the stake is still there");
    }

    function test_a_birth_that_cannot_be_given_back_waits() public {
        born();
        skip(1 days + 1);
        token.say(false);
        no_();
        treasury.abortBirth();
        token.say(true);
        treasury.abortBirth();
        eq(usdc.balanceOf(creator), SEED, "until it can");
    }

    function test_a_no_holds_nobody_else() public {
        live();
        windingDown();
        skip(3 days);
        token.say(false);
        treasury.close();
        uint256 rent = 4 * GRACE;
        eq(market.owedTo(providerA), rent, "the rent waits");
        eq(market.owedTo(address(treasury)), PREPAY_MAX / 2 - rent, "and so does the rest");
        no_();
        market.collect(providerA);
        token.say(true);
        market.collect(providerA);
        treasury.sweep();
        vm.prank(beneficiary);
        treasury.withdraw();
        eq(usdc.balanceOf(beneficiary), SEED - rent, "until the token moves");
    }

    // ------------------------------------------------------------------ a token without bounds

    function test_sums_that_no_record_has_room_for_are_refused(uint256 sum) public {
        live();
        sum = bound(sum, 2 ** 128, type(uint256).max - token.totalSupply());
        bytes memory why =
            abi.encodeWithSelector(SafeCast.SafeCastOverflowedUintDowncast.selector, uint8(128), sum);
        usdc.mint(customer, sum);
        vm.prank(customer);
        usdc.approve(address(market), sum);
        refuses(why);
        vm.prank(customer);
        market.register(sum);
        refuses(why);
        treasury.settleExact(customer, sum, 0, type(uint256).max, "n", "");
        eq(usdc.balanceOf(customer), sum, "nothing moved");
    }
}
