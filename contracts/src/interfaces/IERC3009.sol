// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

/// @title The overload of EIP-3009 with packed signatures, as USDC v2.2 has it: contracts may sign by ERC-1271.
interface IERC3009 {
    function transferWithAuthorization(
        address from, address to, uint256 value, uint256 validAfter, uint256 validBefore, bytes32 nonce,
        bytes memory signature
    ) external;
}
