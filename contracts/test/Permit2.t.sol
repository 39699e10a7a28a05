// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {Cheats} from "./Cheats.sol";
import {Etch, IPermitToken} from "./BatchSettlement.t.sol";

struct TokenPermissions {
    address token;
    uint256 amount;
}

struct PermitTransferFrom {
    TokenPermissions permitted;
    uint256 nonce;
    uint256 deadline;
}

struct ExactWitness {
    address to;
    uint256 validAfter;
}

struct UptoWitness {
    address to;
    address facilitator;
    uint256 validAfter;
}

interface IExactProxy {
    function settle(PermitTransferFrom calldata, address owner, ExactWitness calldata, bytes calldata) external;

    error PaymentTooEarly();
}

interface IUptoProxy {
    function settle(PermitTransferFrom calldata, uint256 amount, address owner, UptoWitness calldata, bytes calldata)
        external;

    error AmountExceedsPermitted();
    error PaymentTooEarly();
    error UnauthorizedFacilitator();
}

interface IPermit2 {
    function DOMAIN_SEPARATOR() external view returns (bytes32);
    function invalidateUnorderedNonces(uint256 word, uint256 mask) external;

    error InvalidNonce();
    error InvalidSigner();
    error SignatureExpired(uint256);
}

/// The development Permit2 and the two x402 proxies move what was signed for, once, to whom it was signed for.
contract Permit2Test is Cheats {
    string private constant STUB =
        "PermitWitnessTransferFrom(TokenPermissions permitted,address spender,uint256 nonce,uint256 deadline,";
    uint256 private constant PAYER_KEY = 0xA1;
    IPermit2 private permit2 = IPermit2(0x000000000022D473030F116dDEE9F6B43aC78BA3);
    IExactProxy private exact = IExactProxy(0x402085c248EeA27D92E8b30b2C58ed07f9E20001);
    IUptoProxy private upto = IUptoProxy(0x4020A4f3b7b90ccA423B9fabCc0CE57C6C240002);
    IPermitToken private token;
    address private payer = vm.addr(PAYER_KEY);
    address private payee = address(0x7EA5);
    address private facilitator = address(0xFAC);
    PermitTransferFrom private permit;

    function setUp() public {
        vm.warp(1_800_000_000);
        token = IPermitToken(deploy("TestPermitToken", ""));
        Etch(address(vm)).etch(address(permit2), deploy("Permit2", "").code);
        Etch(address(vm)).etch(address(exact), deploy("ExactPermit2Proxy", "").code);
        Etch(address(vm)).etch(address(upto), deploy("UptoPermit2Proxy", "").code);
        token.mint(payer, 1_000);
        vm.prank(payer);
        token.approve(address(permit2), type(uint256).max);
        permit = PermitTransferFrom(TokenPermissions(address(token), 100), 77, block.timestamp + 10);
    }

    function sign(address spender, string memory witnessType, bytes32 witness) private view returns (bytes memory) {
        bytes32 permitted = keccak256(
            abi.encode(keccak256("TokenPermissions(address token,uint256 amount)"), permit.permitted.token, permit.permitted.amount)
        );
        bytes32 hash = keccak256(
            abi.encode(
                keccak256(abi.encodePacked(STUB, witnessType)), permitted, spender, permit.nonce, permit.deadline, witness
            )
        );
        (uint8 v, bytes32 r, bytes32 s) =
            vm.sign(PAYER_KEY, keccak256(abi.encodePacked(hex"1901", permit2.DOMAIN_SEPARATOR(), hash)));
        return abi.encodePacked(r, s, v);
    }

    function signExact(ExactWitness memory witness) private view returns (bytes memory) {
        bytes32 kind = keccak256("Witness(address to,uint256 validAfter)");
        return sign(
            address(exact),
            "Witness witness)TokenPermissions(address token,uint256 amount)Witness(address to,uint256 validAfter)",
            keccak256(abi.encode(kind, witness))
        );
    }

    function signUpto(UptoWitness memory witness) private view returns (bytes memory) {
        bytes32 kind = keccak256("Witness(address to,address facilitator,uint256 validAfter)");
        return sign(
            address(upto),
            "Witness witness)TokenPermissions(address token,uint256 amount)Witness(address to,address facilitator,uint256 validAfter)",
            keccak256(abi.encode(kind, witness))
        );
    }

    function test_exact_moves_the_whole_amount_once() public {
        ExactWitness memory witness = ExactWitness(payee, block.timestamp);
        bytes memory signature = signExact(witness);
        exact.settle(permit, payer, witness, signature);
        eq(token.balanceOf(payee), 100, "paid");
        vm.expectPartialRevert(IPermit2.InvalidNonce.selector);
        exact.settle(permit, payer, witness, signature);
    }

    function test_exact_pays_nobody_else_and_not_before_its_time(address other) public {
        ExactWitness memory witness = ExactWitness(payee, block.timestamp + 1);
        bytes memory signature = signExact(witness);
        vm.expectPartialRevert(IExactProxy.PaymentTooEarly.selector);
        exact.settle(permit, payer, witness, signature);
        vm.warp(block.timestamp + 1);
        vm.assume(other != payee && other != address(0));
        witness.to = other;
        vm.expectPartialRevert(IPermit2.InvalidSigner.selector);
        exact.settle(permit, payer, witness, signature);
        vm.warp(permit.deadline + 1);
        witness.to = payee;
        vm.expectPartialRevert(IPermit2.SignatureExpired.selector);
        exact.settle(permit, payer, witness, signature);
    }

    function test_upto_moves_what_the_named_facilitator_says(uint256 amount, address other) public {
        vm.assume(other != facilitator);
        amount = bound(amount, 0, 100);
        UptoWitness memory witness = UptoWitness(payee, facilitator, 0);
        bytes memory signature = signUpto(witness);
        vm.prank(other);
        vm.expectPartialRevert(IUptoProxy.UnauthorizedFacilitator.selector);
        upto.settle(permit, amount, payer, witness, signature);
        vm.prank(facilitator);
        vm.expectPartialRevert(IUptoProxy.AmountExceedsPermitted.selector);
        upto.settle(permit, 101, payer, witness, signature);
        vm.prank(facilitator);
        upto.settle(permit, amount, payer, witness, signature);
        eq(token.balanceOf(payee), amount, "paid");
        vm.prank(facilitator);
        vm.expectPartialRevert(IPermit2.InvalidNonce.selector);
        upto.settle(permit, amount, payer, witness, signature);
    }

    function test_a_payer_takes_its_permission_back() public {
        ExactWitness memory witness = ExactWitness(payee, 0);
        bytes memory signature = signExact(witness);
        vm.prank(payer);
        permit2.invalidateUnorderedNonces(0, 1 << 77);
        vm.expectPartialRevert(IPermit2.InvalidNonce.selector);
        exact.settle(permit, payer, witness, signature);
    }
}
