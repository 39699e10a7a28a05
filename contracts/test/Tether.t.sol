// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {ILeaseMarket} from "../src/interfaces/ILeaseMarket.sol";
import {ITreasury} from "../src/interfaces/ITreasury.sol";
import {TetherDouble} from "./Doubles.sol";
import {IUsdc, World} from "./World.sol";

/// A whole life in a token without EIP-3009, without return values, with a fee and a blacklist.
contract TetherTest is World {
    TetherDouble private tether;
    address private archive = address(0xA5C11);

    function setUp() public override {
        super.setUp();
        tether = new TetherDouble();
        usdc = IUsdc(address(tether)); // only what both have is used below
        market = ILeaseMarket(deploy("LeaseMarket", abi.encode(tether, STAKE, READY_WITHIN, GRACE, DROP_AFTER)));
        offerA = host(providerA);
        offerB = host(providerB);
    }

    function options() internal view override returns (ITreasury.Options memory o) {
        o.payees = new ITreasury.Payee[](1);
        o.payees[0] = ITreasury.Payee(ITreasury.Kind.Storage, archive, 1e6);
        o.purseMax = 1e6;
    }

    function host(address who) private returns (uint256) {
        tether.mint(who, 2 * STAKE);
        vm.prank(who);
        tether.approve(address(market), 2 * STAKE);
        vm.prank(who);
        market.register(2 * STAKE); // twice, so that a fee leaves enough
        vm.prank(who);
        return market.postOffer(PRICE, 4, 1 days, 30 days, 1, 1, 0, "", "");
    }

    /// The market never owes more than it has.
    function solvent() private view {
        uint256 owed = market.stakeOf(providerA) + market.stakeOf(providerB);
        owed += market.owedTo(address(treasury)) + market.owedTo(providerA) + market.owedTo(providerB);
        for (uint256 id = 1; id <= market.leaseCount(); ++id) {
            ILeaseMarket.Lease memory l = market.leaseOf(id);
            owed += l.escrow - l.withdrawn;
        }
        yes(tether.balanceOf(address(market)) >= owed, "solvent");
    }

    function test_a_whole_life_with_a_fee(uint256 bps, uint128 top) public {
        bps = bound(bps, 0, 1000);
        tether.setFee(bps);
        live();
        eq(market.leaseOf(1).escrow, PREPAY_MAX / 2 - PREPAY_MAX / 2 * bps / 10_000, "escrow is what arrived");
        solvent();
        standby(offerB);
        top = uint128(bound(top, 1, 1e5));
        uint256 before = market.leaseOf(2).escrow;
        vm.prank(nodeKey(1));
        treasury.topUp(2, top);
        eq(market.leaseOf(2).escrow, before + top - uint256(top) * bps / 10_000, "and so is a top-up");
        solvent();
        vm.prank(nodeKey(1));
        treasury.spend(ITreasury.Kind.Storage, archive, 1e6);
        yes(tether.balanceOf(archive) == 1e6 - 1e6 * bps / 10_000, "paid without a return value");
        address purse = treasury.standing().purse;
        vm.prank(nodeKey(1));
        treasury.spend(ITreasury.Kind.Purse, purse, 1e6);
        handTo(2);
        eq(tether.balanceOf(purse), 0, "the purse empties without a return value");
        skip(1 days);
        windingDown();
        skip(3 days);
        treasury.close();
        solvent();
        uint256 left = tether.balanceOf(address(treasury));
        vm.prank(beneficiary);
        treasury.withdraw();
        eq(tether.balanceOf(beneficiary), left - left * bps / 10_000, "to the beneficiary");
        eq(tether.balanceOf(address(treasury)), 0, "nothing stays");
    }

    function test_it_is_not_settled_exactly_for_it_has_no_eip3009() public {
        live();
        vm.expectRevert();
        treasury.settleExact(customer, 1, 0, type(uint256).max, "n", "");
        tether.mint(address(treasury), 1e6); // by Permit2 or from a channel: it arrives without a record
        eq(treasury.state().balance, SEED - PREPAY_MAX / 2 + 1e6, "booked as it came");
    }

    function test_a_blacklisted_treasury_winds_down_in_what_is_left() public {
        live();
        tether.setBlackListed(address(treasury), true);
        vm.prank(nodeKey(1));
        yes(treasury.windDownReason() == ITreasury.Reason.Frozen, "a named outcome");
        vm.prank(nodeKey(1));
        treasury.windDown();
        skip(3 days);
        treasury.close();
        yes(market.owedTo(address(treasury)) > 0, "the market keeps what it may not send");
        vm.prank(beneficiary);
        treasury.withdraw();
        eq(beneficiary.balance, 0.9 ether, "the gas is free");
        tether.setBlackListed(address(treasury), false);
        treasury.sweep();
        vm.prank(beneficiary);
        treasury.withdraw();
        eq(tether.balanceOf(address(treasury)) + market.owedTo(address(treasury)), 0, "and later all of it");
    }

    function test_a_blacklisted_host_holds_nobody() public {
        live();
        standby(offerB);
        tether.setBlackListed(providerA, true);
        challengeUnanswered();
        vm.prank(nodeKey(2));
        treasury.takeover();
        eq(operator(), nodeKey(2), "operator");
        yes(market.owedTo(providerA) > 0, "its rent waits");
        solvent();
    }
}
