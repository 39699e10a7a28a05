// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {ILeaseMarket} from "../src/interfaces/ILeaseMarket.sol";
import {ITreasury} from "../src/interfaces/ITreasury.sol";
import {IUsdc, World} from "./World.sol";

/// A customer that is a contract: it signs by ERC-1271, with its owner's key.
contract Wallet {
    address private immutable owner;

    constructor(address owner_) {
        owner = owner_;
    }

    function isValidSignature(bytes32 digest, bytes calldata signature) external view returns (bytes4) {
        (bytes32 r, bytes32 s) = abi.decode(signature[:64], (bytes32, bytes32));
        bool good = ecrecover(digest, uint8(signature[64]), r, s) == owner;
        return good ? this.isValidSignature.selector : bytes4(0);
    }
}

/// A token that says yes and moves less than it said.
contract ThinToken {
    mapping(address => uint256) public balanceOf;
    uint256 public kept;

    function keep(uint256 amount) external {
        kept = amount;
    }

    function mint(address to, uint256 amount) external {
        balanceOf[to] += amount;
    }

    function transfer(address to, uint256 amount) external returns (bool) {
        balanceOf[msg.sender] -= amount;
        balanceOf[to] += amount;
        return true;
    }

    function transferFrom(address from, address to, uint256 amount) external returns (bool) {
        balanceOf[from] -= amount;
        balanceOf[to] += amount;
        return true;
    }

    function approve(address, uint256) external pure returns (bool) {
        return true;
    }

    function allowance(address, address) external pure returns (uint256) {
        return type(uint256).max;
    }

    function transferWithAuthorization(address, address to, uint256 value, uint256, uint256, bytes32, bytes memory)
        external
    {
        balanceOf[to] += value - kept;
    }
}

/// settleExact, refundExact, recorded.
contract IncomeTest is World {
    function setUp() public override {
        super.setUp();
        live();
    }

    // ------------------------------------------------------------------ settleExact

    function test_anyone_settles_and_the_payment_is_recorded(address who, uint256 value, bytes32 nonce) public {
        value = bound(value, 1, 1_000_000e6);
        bytes memory signature = authorization(CUSTOMER_KEY, address(treasury), value, nonce);
        uint256 before = treasury.state().balance;
        vm.prank(who);
        treasury.settleExact(customer, value, 0, type(uint256).max, nonce, signature);
        eq(treasury.state().balance, before + value, "income");
        (uint256 amount, uint256 refunded) = treasury.recorded(customer, nonce);
        eq(amount, value, "recorded");
        eq(refunded, 0, "nothing refunded");
    }

    function test_an_authorization_counts_once(uint256 value, bytes32 nonce) public {
        value = bound(value, 1, 1000e6);
        settle(value, nonce);
        bytes memory signature = authorization(CUSTOMER_KEY, address(treasury), value, nonce);
        refuses(IUsdc.AuthorizationUsedOrCanceled.selector);
        treasury.settleExact(customer, value, 0, type(uint256).max, nonce, signature);
        (uint256 amount,) = treasury.recorded(customer, nonce);
        eq(amount, value, "recorded once");
    }

    function test_what_a_third_party_settled_leaves_no_record(uint256 value, bytes32 nonce) public {
        value = bound(value, 1, 1000e6);
        bytes memory signature = authorization(CUSTOMER_KEY, address(treasury), value, nonce);
        usdc.transferWithAuthorization(customer, address(treasury), value, 0, type(uint256).max, nonce, signature);
        refuses(IUsdc.AuthorizationUsedOrCanceled.selector);
        treasury.settleExact(customer, value, 0, type(uint256).max, nonce, signature);
        (uint256 amount,) = treasury.recorded(customer, nonce);
        eq(amount, 0, "a gift");
    }

    function test_it_takes_the_payers_own_signature_over_this_very_payment(uint256 key, uint256 value, bytes32 nonce)
        public
    {
        key = bound(key, 1, type(uint128).max);
        vm.assume(key != CUSTOMER_KEY);
        value = bound(value, 1, 1000e6);
        bytes memory signature = authorization(key, address(treasury), value, nonce);
        refuses(IUsdc.InvalidSignature.selector);
        treasury.settleExact(customer, value, 0, type(uint256).max, nonce, signature);
        signature = authorization(CUSTOMER_KEY, address(treasury), value, nonce);
        refuses(IUsdc.InvalidSignature.selector);
        treasury.settleExact(customer, value + 1, 0, type(uint256).max, nonce, signature);
        signature = authorization(CUSTOMER_KEY, stranger, value, nonce);
        refuses(IUsdc.InvalidSignature.selector);
        treasury.settleExact(customer, value, 0, type(uint256).max, nonce, signature);
    }

    function test_nothing_for_nothing(bytes32 nonce) public {
        bytes memory signature = authorization(CUSTOMER_KEY, address(treasury), 0, nonce);
        refuses(ITreasury.ZeroAmount.selector);
        treasury.settleExact(customer, 0, 0, type(uint256).max, nonce, signature);
    }

    function test_contracts_pay_by_erc1271(uint256 value) public {
        address wallet = address(new Wallet(customer));
        usdc.mint(wallet, 10e6);
        value = bound(value, 1, 10e6);
        bytes32 kind = keccak256(
            "TransferWithAuthorization(address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,bytes32 nonce)"
        );
        bytes32 hash = keccak256(abi.encode(kind, wallet, address(treasury), value, 0, type(uint256).max, bytes32("n")));
        treasury.settleExact(
            wallet, value, 0, type(uint256).max, "n", signed(CUSTOMER_KEY, usdc.DOMAIN_SEPARATOR(), hash)
        );
        (uint256 amount,) = treasury.recorded(wallet, "n");
        eq(amount, value, "recorded");
    }

    function test_the_treasury_itself_signs_nothing(uint256 value, bytes32 nonce, bytes memory signature) public {
        value = bound(value, 1, SEED);
        refuses(IUsdc.InvalidSignature.selector);
        usdc.transferWithAuthorization(address(treasury), stranger, value, 0, type(uint256).max, nonce, signature);
        (bool done, bytes memory said) =
            address(treasury).call(abi.encodeWithSignature("isValidSignature(bytes32,bytes)", nonce, signature));
        no(done && said.length == 32 && abi.decode(said, (bytes4)) == bytes4(0x1626ba7e), "no ERC-1271");
    }

    function test_it_settles_paused_stopped_and_winding_down_but_not_before_or_after() public {
        treasury.pause(approve("pause", 0));
        settle(1e6, "1");
        treasury.stop(approve("stop", 0));
        settle(1e6, "2");
        treasury.windDown();
        settle(1e6, "3");
        skip(3 days);
        treasury.close();
        bytes memory signature = authorization(CUSTOMER_KEY, address(treasury), 1e6, "4");
        refuses(ITreasury.WrongStage.selector);
        treasury.settleExact(customer, 1e6, 0, type(uint256).max, "4", signature);

        ITreasury.Birth memory b = birth();
        b.manifest = "another";
        treasury = create(b);
        signature = authorization(CUSTOMER_KEY, address(treasury), 1e6, "4");
        refuses(ITreasury.WrongStage.selector);
        treasury.settleExact(customer, 1e6, 0, type(uint256).max, "4", signature);
    }

    function test_what_did_not_arrive_is_not_recorded(uint256 value, uint256 kept) public {
        ThinToken thin = new ThinToken();
        market = ILeaseMarket(
            deploy("LeaseMarket", abi.encode(address(thin), STAKE, READY_WITHIN, GRACE, DROP_AFTER))
        );
        thin.mint(providerA, STAKE);
        vm.prank(providerA);
        market.register(STAKE);
        vm.prank(providerA);
        uint256 offer = market.postOffer(PRICE, 4, 1 days, 30 days, 1, 1, 0, "", "");
        ITreasury.Birth memory b = birth();
        b.token = address(thin);
        treasury = create(b);
        thin.mint(address(treasury), SEED);
        vm.prank(creator);
        treasury.birthRent(offer, TERM, 1e5);
        makeReady(1);
        vm.prank(creator);
        treasury.activate(1);

        value = bound(value, 1, 1e12);
        kept = bound(kept, 0, value);
        thin.keep(kept);
        if (kept == value) refuses(ITreasury.NothingArrived.selector);
        treasury.settleExact(customer, value, 0, type(uint256).max, "n", "");
        (uint256 amount,) = treasury.recorded(customer, "n");
        eq(amount, value - kept, "what arrived, and no more");
        vm.prank(nodeKey(1));
        refuses(abi.encodeWithSelector(ITreasury.OverRecorded.selector, value - kept));
        treasury.refundExact(customer, "n", value - kept + 1);
    }

    // ------------------------------------------------------------------ refundExact

    function test_a_refund_goes_to_its_payer_and_never_over_the_record(uint256 value, uint256 first, uint256 second)
        public
    {
        value = bound(value, 2, 5e6);
        first = bound(first, 1, value - 1);
        second = bound(second, 1, 5e6 - first);
        settle(value, "n");
        uint256 before = usdc.balanceOf(customer);
        vm.prank(nodeKey(1));
        treasury.refundExact(customer, "n", first);
        eq(usdc.balanceOf(customer), before + first, "back");
        bool fits = second <= value - first;
        if (!fits) refuses(abi.encodeWithSelector(ITreasury.OverRecorded.selector, value - first));
        vm.prank(nodeKey(1));
        treasury.refundExact(customer, "n", second);
        (, uint256 refunded) = treasury.recorded(customer, "n");
        eq(refunded, fits ? first + second : first, "refunded");
    }

    function test_nobody_without_a_record_is_refunded(address payer, bytes32 nonce, uint256 amount) public {
        settle(1e6, "n");
        vm.assume(payer != customer || nonce != "n");
        amount = bound(amount, 1, type(uint256).max);
        refuses(abi.encodeWithSelector(ITreasury.OverRecorded.selector, uint256(0)));
        vm.prank(nodeKey(1));
        treasury.refundExact(payer, nonce, amount);
    }

    function test_only_the_operator_refunds(address who) public {
        settle(1e6, "n");
        vm.assume(who != nodeKey(1));
        refuses(ITreasury.NotOperator.selector);
        vm.prank(who);
        treasury.refundExact(customer, "n", 1);
    }

    function test_refunds_obey_the_day_limit_alive_and_not_in_wind_down() public {
        settle(20e6, "n");
        refuses(abi.encodeWithSelector(ITreasury.OverDayLimit.selector, uint256(5e6)));
        vm.prank(nodeKey(1));
        treasury.refundExact(customer, "n", 5e6 + 1);
        treasury.stop(approve("stop", 0));
        refuses(ITreasury.WrongStage.selector);
        vm.prank(nodeKey(1));
        treasury.refundExact(customer, "n", 1);
        treasury.windDown();
        vm.prank(nodeKey(1));
        treasury.refundExact(customer, "n", 20e6);
        eq(treasury.state().spentInDay, 0, "not counted");
    }

    function test_no_refunds_while_paused_alive_or_winding_down() public {
        settle(1e6, "n");
        treasury.pause(approve("pause", 0));
        refuses(ITreasury.IsPaused.selector);
        vm.prank(nodeKey(1));
        treasury.refundExact(customer, "n", 1);
        windingDown();
        refuses(ITreasury.IsPaused.selector);
        vm.prank(nodeKey(1));
        treasury.refundExact(customer, "n", 1);
        treasury.resume(approve("resume", 0));
        vm.prank(nodeKey(1));
        treasury.refundExact(customer, "n", 1);
    }
}
