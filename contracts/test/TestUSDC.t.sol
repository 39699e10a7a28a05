// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {IUsdc, World} from "./World.sol";

/// The development token behaves like USDC where the project depends on it.
contract TestUSDCTest is World {
    bytes32 private constant TRANSFER = keccak256(
        "TransferWithAuthorization(address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,bytes32 nonce)"
    );
    bytes32 private constant RECEIVE = keccak256(
        "ReceiveWithAuthorization(address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,bytes32 nonce)"
    );
    bytes32 private constant CANCEL = keccak256("CancelAuthorization(address authorizer,bytes32 nonce)");

    function sign3009(bytes32 kind, address to, uint256 value, uint256 from, uint256 until, bytes32 nonce)
        private
        view
        returns (bytes memory)
    {
        bytes32 hash = keccak256(abi.encode(kind, customer, to, value, from, until, nonce));
        return signed(CUSTOMER_KEY, usdc.DOMAIN_SEPARATOR(), hash);
    }

    function split(bytes memory signature) private pure returns (uint8 v, bytes32 r, bytes32 s) {
        (r, s) = abi.decode(signature, (bytes32, bytes32));
        v = uint8(signature[64]);
    }

    function test_it_calls_itself_what_usdc_does() public view {
        eq(usdc.decimals(), 6, "decimals");
        eq(keccak256(bytes(usdc.name())), keccak256("USD Coin"), "name");
        eq(keccak256(bytes(usdc.version())), keccak256("2"), "version");
        bytes32 kind = keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)");
        eq(
            usdc.DOMAIN_SEPARATOR(),
            keccak256(abi.encode(kind, keccak256("USD Coin"), keccak256("2"), block.chainid, address(usdc))),
            "domain"
        );
    }

    function test_both_overloads_transfer_once(uint256 value, bytes32 nonce, bool packed) public {
        value = bound(value, 0, 1_000_000e6);
        bytes memory signature = sign3009(TRANSFER, stranger, value, 0, type(uint256).max, nonce);
        (uint8 v, bytes32 r, bytes32 s) = split(signature);
        if (packed) usdc.transferWithAuthorization(customer, stranger, value, 0, type(uint256).max, nonce, signature);
        else usdc.transferWithAuthorization(customer, stranger, value, 0, type(uint256).max, nonce, v, r, s);
        eq(usdc.balanceOf(stranger), value, "moved");
        yes(usdc.authorizationState(customer, nonce), "used");
        refuses(IUsdc.AuthorizationUsedOrCanceled.selector);
        usdc.transferWithAuthorization(customer, stranger, value, 0, type(uint256).max, nonce, signature);
        refuses(IUsdc.AuthorizationUsedOrCanceled.selector);
        usdc.transferWithAuthorization(customer, stranger, value, 0, type(uint256).max, nonce, v, r, s);
    }

    function test_an_authorization_has_its_time(uint256 from, uint256 until) public {
        from = bound(from, block.timestamp - 10, block.timestamp + 10);
        until = bound(until, block.timestamp - 10, block.timestamp + 10);
        bytes memory signature = sign3009(TRANSFER, stranger, 1, from, until, "n");
        if (block.timestamp <= from) refuses(IUsdc.AuthorizationNotYetValid.selector);
        else if (block.timestamp >= until) refuses(IUsdc.AuthorizationExpired.selector);
        usdc.transferWithAuthorization(customer, stranger, 1, from, until, "n", signature);
    }

    function test_receive_is_for_the_payee(address who, bool packed) public {
        bytes memory signature = sign3009(RECEIVE, stranger, 5, 0, type(uint256).max, "n");
        (uint8 v, bytes32 r, bytes32 s) = split(signature);
        vm.assume(who != stranger);
        refuses(IUsdc.CallerMustBePayee.selector);
        vm.prank(who);
        usdc.receiveWithAuthorization(customer, stranger, 5, 0, type(uint256).max, "n", signature);
        refuses(IUsdc.InvalidSignature.selector); // nor is it a TransferWithAuthorization
        usdc.transferWithAuthorization(customer, stranger, 5, 0, type(uint256).max, "n", signature);
        vm.prank(stranger);
        if (packed) usdc.receiveWithAuthorization(customer, stranger, 5, 0, type(uint256).max, "n", signature);
        else usdc.receiveWithAuthorization(customer, stranger, 5, 0, type(uint256).max, "n", v, r, s);
        eq(usdc.balanceOf(stranger), 5, "moved");
    }

    function test_a_cancelled_authorization_is_void(bytes32 nonce, bool packed) public {
        bytes memory signature =
            signed(CUSTOMER_KEY, usdc.DOMAIN_SEPARATOR(), keccak256(abi.encode(CANCEL, customer, nonce)));
        (uint8 v, bytes32 r, bytes32 s) = split(signature);
        if (packed) usdc.cancelAuthorization(customer, nonce, signature);
        else usdc.cancelAuthorization(customer, nonce, v, r, s);
        signature = sign3009(TRANSFER, stranger, 5, 0, type(uint256).max, nonce);
        refuses(IUsdc.AuthorizationUsedOrCanceled.selector);
        usdc.transferWithAuthorization(customer, stranger, 5, 0, type(uint256).max, nonce, signature);
    }

    function test_only_the_authorizer_cancels(uint256 key) public {
        key = bound(key, 1, type(uint128).max);
        vm.assume(key != CUSTOMER_KEY);
        bytes memory signature =
            signed(key, usdc.DOMAIN_SEPARATOR(), keccak256(abi.encode(CANCEL, customer, bytes32("n"))));
        refuses(IUsdc.InvalidSignature.selector);
        usdc.cancelAuthorization(customer, "n", signature);
    }

    function test_the_frozen_neither_send_nor_receive() public {
        usdc.setFrozen(customer, true);
        refuses(IUsdc.AccountFrozen.selector);
        vm.prank(customer);
        usdc.transfer(stranger, 1);
        usdc.setFrozen(customer, false);
        usdc.setFrozen(stranger, true);
        refuses(IUsdc.AccountFrozen.selector);
        vm.prank(customer);
        usdc.transfer(stranger, 1);
    }
}
