// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {Cheats} from "./Cheats.sol";
import {IUsdc} from "./World.sol";

struct ChannelConfig {
    address payer;
    address payerAuthorizer;
    address receiver;
    address receiverAuthorizer;
    address token;
    uint40 withdrawDelay;
    bytes32 salt;
}

struct Voucher {
    ChannelConfig channel;
    uint128 maxClaimableAmount;
}

struct VoucherClaim {
    Voucher voucher;
    bytes signature;
    uint128 totalClaimed;
}

interface IBatchSettlement {
    function multicall(bytes[] calldata data) external returns (bytes[] memory);
    function deposit(ChannelConfig calldata, uint128, address, bytes calldata) external;
    function claim(VoucherClaim[] calldata) external;
    function claimWithSignature(VoucherClaim[] calldata, bytes calldata) external;
    function settle(address, address) external;
    function refund(ChannelConfig calldata, uint128) external;
    function refundWithSignature(ChannelConfig calldata, uint128, uint256, bytes calldata) external;
    function initiateWithdraw(ChannelConfig calldata, uint128) external;
    function finalizeWithdraw(ChannelConfig calldata) external;
    function channels(bytes32) external view returns (uint128 balance, uint128 totalClaimed);
    function pendingWithdrawals(bytes32) external view returns (uint128 amount, uint40 initiatedAt);
    function refundNonce(bytes32) external view returns (uint256);
    function receivers(address, address) external view returns (uint128 totalClaimed, uint128 totalSettled);
    function getChannelId(ChannelConfig calldata) external view returns (bytes32);
    function getVoucherDigest(bytes32, uint128) external view returns (bytes32);
    function getRefundDigest(bytes32, uint256, uint128) external view returns (bytes32);
    function getClaimBatchDigest(VoucherClaim[] calldata) external view returns (bytes32);

    error BadConfig();
    error BadSignature();
    error DepositMissing(uint256 received, uint128 wanted);
    error ExceedsBalance(bytes32 channelId);
    error ExceedsVoucher(bytes32 channelId);
    error NotAllowed(address caller);
    error NothingPending(bytes32 channelId);
    error NothingToSettle();
    error TooEarly(uint256 readyAt);
    error WrongRefundNonce(uint256 wanted);
}

interface IPermitToken {
    function approve(address spender, uint256 value) external returns (bool);
    function balanceOf(address who) external view returns (uint256);
    function mint(address to, uint256 value) external;
}

interface Etch {
    function etch(address where, bytes calldata code) external;
}

/// A payer with code: any signature of its owner is its own.
contract Wallet {
    address private immutable owner;

    constructor(address owner_) {
        owner = owner_;
    }

    function isValidSignature(bytes32 hash, bytes calldata signature) external view returns (bytes4) {
        (bytes32 r, bytes32 s) = abi.decode(signature[:64], (bytes32, bytes32));
        return ecrecover(hash, uint8(signature[64]), r, s) == owner ? bytes4(0x1626ba7e) : bytes4(0);
    }
}

/// A collector that brings less than it was asked for.
contract ThievingCollector {
    function collect(address, address, uint128, bytes32, bytes calldata) external {}
}

/// The development contract of payment channels does what the published interface promises.
contract BatchSettlementTest is Cheats {
    bytes32 private constant RECEIVE = keccak256(
        "ReceiveWithAuthorization(address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,bytes32 nonce)"
    );
    address private constant PERMIT2 = 0x000000000022D473030F116dDEE9F6B43aC78BA3;
    address private constant COLLECTOR_3009 = 0x4020806089470a89826cB9fB1f4059150b550004;
    address private constant COLLECTOR_PERMIT2 = 0x4020425FAf3B746C082C2f942b4E5159887B0005;
    uint256 private constant PAYER_KEY = 0xA1;
    uint256 private constant VOUCHER_KEY = 0xA2;
    uint256 private constant AUTHORIZER_KEY = 0xB2;

    IBatchSettlement private batch = IBatchSettlement(0x4020074e9dF2ce1deE5A9C1b5c3f541D02a10003);
    IUsdc private usdc;
    address private payer = vm.addr(PAYER_KEY);
    address private receiver = address(0x7EA5);
    ChannelConfig private config;

    function setUp() public {
        vm.warp(1_800_000_000);
        usdc = IUsdc(deploy("TestUSDC", ""));
        put(address(batch), "BatchSettlement");
        put(COLLECTOR_3009, "DepositCollector3009");
        put(COLLECTOR_PERMIT2, "DepositCollectorPermit2");
        put(PERMIT2, "Permit2");
        usdc.mint(payer, 1_000e6);
        config = ChannelConfig(
            payer, vm.addr(VOUCHER_KEY), receiver, vm.addr(AUTHORIZER_KEY), address(usdc), 900, bytes32(uint256(7))
        );
    }

    function put(address where, string memory name) private {
        Etch(address(vm)).etch(where, deploy(name, "").code);
    }

    function sign(uint256 key, bytes32 digest) private pure returns (bytes memory) {
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(key, digest);
        return abi.encodePacked(r, s, v);
    }

    function id() private view returns (bytes32) {
        return batch.getChannelId(config);
    }

    function deposit(uint128 amount, uint256 salt) private {
        bytes32 nonce = keccak256(abi.encode(id(), salt));
        bytes32 hash = keccak256(abi.encode(RECEIVE, payer, COLLECTOR_3009, amount, 0, type(uint256).max, nonce));
        bytes memory signature = sign(PAYER_KEY, keccak256(abi.encodePacked(hex"1901", usdc.DOMAIN_SEPARATOR(), hash)));
        batch.deposit(config, amount, COLLECTOR_3009, abi.encode(0, type(uint256).max, salt, signature));
    }

    function row(uint128 max, uint128 total) private view returns (VoucherClaim memory) {
        return VoucherClaim(Voucher(config, max), sign(VOUCHER_KEY, batch.getVoucherDigest(id(), max)), total);
    }

    function rows(uint128 max, uint128 total) private view returns (VoucherClaim[] memory list) {
        list = new VoucherClaim[](1);
        list[0] = row(max, total);
    }

    function claim(uint128 max, uint128 total) private {
        VoucherClaim[] memory list = rows(max, total);
        vm.prank(receiver);
        batch.claim(list);
    }

    function state() private view returns (uint128 balance, uint128 claimed) {
        return batch.channels(id());
    }

    function refuses(bytes4 selector) private {
        vm.expectPartialRevert(selector);
    }

    function test_the_id_is_the_whole_digest() public view {
        bytes32 domain = keccak256(
            abi.encode(
                keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"),
                keccak256("x402 Batch Settlement"),
                keccak256("1"),
                block.chainid,
                address(batch)
            )
        );
        bytes32 kind = keccak256(
            "ChannelConfig(address payer,address payerAuthorizer,address receiver,address receiverAuthorizer,address token,uint40 withdrawDelay,bytes32 salt)"
        );
        bytes32 hash = keccak256(abi.encode(kind, config));
        eq(id(), keccak256(abi.encodePacked(hex"1901", domain, hash)), "id");
    }

    function test_deposits_add_up_and_an_authorization_works_once(uint128 first, uint128 second) public {
        first = uint128(bound(first, 1, 500e6));
        second = uint128(bound(second, 1, 500e6));
        deposit(first, 1);
        deposit(second, 2);
        (uint128 balance,) = state();
        eq(balance, uint256(first) + second, "balance");
        eq(usdc.balanceOf(address(batch)), balance, "held");
        refuses(IUsdc.AuthorizationUsedOrCanceled.selector);
        this.depositAgain(first);
    }

    function depositAgain(uint128 amount) external {
        deposit(amount, 1);
    }

    function test_a_deposit_that_does_not_arrive_is_none() public {
        address thief = address(new ThievingCollector());
        refuses(IBatchSettlement.DepositMissing.selector);
        batch.deposit(config, 5, thief, "");
    }

    function test_a_collector_works_for_the_contract_alone(address caller) public {
        vm.assume(caller != address(batch));
        vm.prank(caller);
        (bool done,) = COLLECTOR_3009.call(
            abi.encodeWithSignature("collect(address,address,uint128,bytes32,bytes)", payer, usdc, 1, id(), "")
        );
        no(done, "3009");
        vm.prank(caller);
        (done,) = COLLECTOR_PERMIT2.call(
            abi.encodeWithSignature("collect(address,address,uint128,bytes32,bytes)", payer, usdc, 1, id(), "")
        );
        no(done, "permit2");
    }

    function test_bad_configs_take_no_deposit(uint40 delay) public {
        vm.assume(delay < 900 || delay > 30 days);
        config.withdrawDelay = delay;
        refuses(IBatchSettlement.BadConfig.selector);
        batch.deposit(config, 1, COLLECTOR_3009, "");
    }

    function test_a_permit2_deposit_is_bound_to_its_channel() public {
        IPermitToken token = IPermitToken(deploy("TestPermitToken", ""));
        token.mint(payer, 100);
        vm.prank(payer);
        token.approve(PERMIT2, type(uint256).max);
        config.token = address(token);
        bytes32 kind = keccak256(
            "PermitWitnessTransferFrom(TokenPermissions permitted,address spender,uint256 nonce,uint256 deadline,DepositWitness witness)DepositWitness(bytes32 channelId)TokenPermissions(address token,uint256 amount)"
        );
        bytes32 permitted =
            keccak256(abi.encode(keccak256("TokenPermissions(address token,uint256 amount)"), token, 60));
        bytes32 witness = keccak256(abi.encode(keccak256("DepositWitness(bytes32 channelId)"), id()));
        bytes32 hash =
            keccak256(abi.encode(kind, permitted, COLLECTOR_PERMIT2, 3, block.timestamp, witness));
        bytes32 domain = keccak256(
            abi.encode(
                keccak256("EIP712Domain(string name,uint256 chainId,address verifyingContract)"),
                keccak256("Permit2"),
                block.chainid,
                PERMIT2
            )
        );
        bytes memory data = abi.encode(
            3, block.timestamp, sign(PAYER_KEY, keccak256(abi.encodePacked(hex"1901", domain, hash))), bytes("")
        );
        ChannelConfig memory other = config;
        other.salt = 0;
        vm.expectRevert();
        batch.deposit(other, 60, COLLECTOR_PERMIT2, data);
        batch.deposit(config, 60, COLLECTOR_PERMIT2, data);
        eq(token.balanceOf(address(batch)), 60, "held");
        vm.expectRevert();
        batch.deposit(config, 60, COLLECTOR_PERMIT2, data);
    }

    function test_claims_are_cumulative_and_settle_once(uint128 first, uint128 second) public {
        deposit(1_000, 1);
        first = uint128(bound(first, 1, 1_000));
        second = uint128(bound(second, 1, 1_000));
        claim(1_000, first);
        claim(1_000, second); // a lower total, or the same again, claims nothing and spoils nothing
        (, uint128 claimed) = state();
        eq(claimed, first > second ? first : second, "claimed");
        batch.settle(receiver, address(usdc));
        eq(usdc.balanceOf(receiver), claimed, "paid");
        refuses(IBatchSettlement.NothingToSettle.selector);
        batch.settle(receiver, address(usdc));
    }

    function test_a_claim_stays_under_voucher_and_balance() public {
        deposit(100, 1);
        refuses(IBatchSettlement.ExceedsVoucher.selector);
        this.claimNow(50, 51);
        refuses(IBatchSettlement.ExceedsBalance.selector);
        this.claimNow(200, 101);
        this.claimNow(200, 100);
    }

    function claimNow(uint128 max, uint128 total) external {
        claim(max, total);
    }

    function test_only_the_receivers_side_claims(address caller) public {
        vm.assume(caller != receiver && caller != config.receiverAuthorizer);
        deposit(100, 1);
        VoucherClaim[] memory list = rows(50, 50);
        refuses(IBatchSettlement.NotAllowed.selector);
        vm.prank(caller);
        batch.claim(list);
        batch.claimWithSignature(list, sign(AUTHORIZER_KEY, batch.getClaimBatchDigest(list)));
        (, uint128 claimed) = state();
        eq(claimed, 50, "claimed by anyone with the authorizer's signature");
    }

    function test_a_batch_signature_is_for_these_rows_alone(uint128 other) public {
        other = uint128(bound(other, 1, 100));
        vm.assume(other != 50);
        deposit(100, 1);
        VoucherClaim[] memory list = rows(100, 50);
        bytes memory signature = sign(AUTHORIZER_KEY, batch.getClaimBatchDigest(list));
        list[0].totalClaimed = other;
        refuses(IBatchSettlement.BadSignature.selector);
        batch.claimWithSignature(list, signature);
    }

    function test_one_bad_row_reverts_the_whole_claim() public {
        deposit(100, 1);
        VoucherClaim[] memory list = new VoucherClaim[](2);
        list[0] = row(50, 50);
        list[1] = row(60, 60);
        list[1].signature = sign(PAYER_KEY, batch.getVoucherDigest(id(), 60)); // not the payerAuthorizer's
        refuses(IBatchSettlement.BadSignature.selector);
        vm.prank(receiver);
        batch.claim(list);
    }

    function test_without_an_authorizer_a_contract_signs_for_itself() public {
        config.payer = address(new Wallet(vm.addr(VOUCHER_KEY)));
        config.payerAuthorizer = address(0);
        address collector = address(new MintingCollector());
        batch.deposit(config, 100, collector, "");
        claim(80, 70);
        (, uint128 claimed) = state();
        eq(claimed, 70, "claimed");
    }

    function test_a_refund_needs_the_receivers_side_and_its_nonce() public {
        deposit(100, 1);
        claim(40, 40);
        uint256 before = usdc.balanceOf(payer);
        bytes memory signature = sign(AUTHORIZER_KEY, batch.getRefundDigest(id(), 0, 50));
        refuses(IBatchSettlement.BadSignature.selector);
        batch.refundWithSignature(config, 60, 0, signature);
        batch.refundWithSignature(config, 50, 0, signature);
        eq(usdc.balanceOf(payer) - before, 50, "refunded");
        eq(batch.refundNonce(id()), 1, "nonce");
        refuses(IBatchSettlement.WrongRefundNonce.selector);
        batch.refundWithSignature(config, 50, 0, signature);
        refuses(IBatchSettlement.NotAllowed.selector);
        batch.refund(config, 1);
        vm.prank(receiver);
        refuses(IBatchSettlement.ExceedsBalance.selector); // 10 are left: what was claimed stays
        batch.refund(config, 11);
        vm.prank(receiver);
        batch.refund(config, 10);
        (uint128 balance, uint128 claimed) = state();
        eq(balance, 40, "balance");
        eq(claimed, 40, "claimed");
    }

    function test_claim_and_refund_go_in_one_transaction() public {
        deposit(100, 1);
        VoucherClaim[] memory list = rows(40, 40);
        bytes[] memory calls = new bytes[](2);
        calls[0] = abi.encodeCall(
            IBatchSettlement.claimWithSignature, (list, sign(AUTHORIZER_KEY, batch.getClaimBatchDigest(list)))
        );
        calls[1] = abi.encodeCall(
            IBatchSettlement.refundWithSignature,
            (config, 60, 0, sign(AUTHORIZER_KEY, batch.getRefundDigest(id(), 0, 60)))
        );
        batch.multicall(calls);
        eq(usdc.balanceOf(payer), 1_000e6 - 40, "payer");
    }

    function test_the_payer_leaves_without_us_and_takes_what_is_not_claimed(uint128 amount, uint128 claimed) public {
        deposit(100, 1);
        amount = uint128(bound(amount, 1, 100));
        claimed = uint128(bound(claimed, 1, 100));
        refuses(IBatchSettlement.NotAllowed.selector);
        batch.initiateWithdraw(config, amount);
        vm.prank(payer);
        batch.initiateWithdraw(config, amount);
        (uint128 pending, uint40 at) = batch.pendingWithdrawals(id());
        eq(pending, amount, "pending");
        eq(at, block.timestamp, "since");
        vm.warp(block.timestamp + 899);
        refuses(IBatchSettlement.TooEarly.selector);
        batch.finalizeWithdraw(config);
        claim(100, claimed); // in time
        vm.warp(block.timestamp + 1);
        batch.finalizeWithdraw(config);
        eq(usdc.balanceOf(payer), 1_000e6 - 100 + min(amount, 100 - claimed), "payer");
        (uint128 balance, uint128 total) = state();
        yes(balance >= total, "what was claimed stays");
        batch.settle(receiver, address(usdc));
        eq(usdc.balanceOf(receiver), claimed, "receiver");
        refuses(IBatchSettlement.NothingPending.selector);
        batch.finalizeWithdraw(config);
    }

    function test_a_withdrawal_is_never_more_than_is_free() public {
        deposit(100, 1);
        claim(60, 60);
        vm.prank(payer);
        refuses(IBatchSettlement.ExceedsBalance.selector);
        batch.initiateWithdraw(config, 41);
        vm.prank(payer);
        batch.initiateWithdraw(config, 40);
        vm.prank(receiver);
        batch.refund(config, 30);
        (uint128 pending,) = batch.pendingWithdrawals(id());
        eq(pending, 10, "a refund lowers what is pending");
    }

    /// Whatever is done in whatever order, the contract holds what it owes.
    function test_the_contract_holds_what_it_owes(uint256 seed) public {
        for (uint256 step = 0; step < 24; ++step) {
            seed = uint256(keccak256(abi.encode(seed)));
            (uint128 balance, uint128 claimed) = state();
            uint128 some = uint128(bound(seed >> 8, 1, 1_000));
            if (seed % 5 == 0) {
                deposit(some, step);
            } else if (seed % 5 == 1 && balance > 0) {
                claim(balance, uint128(bound(some, 1, balance)));
            } else if (seed % 5 == 2 && balance > claimed) {
                vm.prank(receiver);
                batch.refund(config, uint128(bound(some, 1, balance - claimed)));
            } else if (seed % 5 == 3 && balance > claimed) {
                vm.prank(payer);
                batch.initiateWithdraw(config, uint128(bound(some, 1, balance - claimed)));
                vm.warp(block.timestamp + 900);
                batch.finalizeWithdraw(config);
            } else {
                (uint128 total, uint128 settled) = batch.receivers(receiver, address(usdc));
                if (total > settled) batch.settle(receiver, address(usdc));
            }
            (balance, claimed) = state();
            (uint128 all, uint128 paid) = batch.receivers(receiver, address(usdc));
            eq(all, claimed, "one channel: the receiver's sum is the channel's");
            eq(usdc.balanceOf(address(batch)), uint256(balance) - paid, "held");
            yes(balance >= claimed, "solvent");
        }
    }
}

/// Mints what it is asked for: a payer with money from elsewhere.
contract MintingCollector {
    function collect(address, address token, uint128 amount, bytes32, bytes calldata) external {
        IUsdc(token).mint(msg.sender, amount);
    }
}
