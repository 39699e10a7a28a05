// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

/// @title The agent's pocket money: what a stolen operator key can spend by signature, and no more.
interface IPurse {
    error NotTreasury(); // only the treasury sweeps

    /// Who: the treasury, anybody else NotTreasury. Everything goes back there; what a frozen token refuses stays, and
    /// nothing reverts: a takeover must not depend on it.
    function sweep() external;
    /// Who: anyone. What lies above the cap (refunds, gifts) goes back to the treasury; until then nothing is signed.
    /// Nothing happens when nothing lies above it, or when a frozen token refuses.
    function trim() external;
    /// ERC-1271. `signature` = abi.encode(address to, uint256 value, uint256 validAfter, uint256 validBefore, bytes32
    /// nonce, bytes operatorSignature), and `hash` must be the token's TransferWithAuthorization of just that: no
    /// permit, no channel deposit, no cancellation. Valid while the signer is the treasury's `purseSigner` and the
    /// balance is within the cap; then 0x1626ba7e, otherwise 0. Reverts for a signature of another shape.
    function isValidSignature(bytes32 hash, bytes calldata signature) external view returns (bytes4);
    function treasury() external view returns (address);
    function token() external view returns (address);
    /// Micro-USDC: birth's purseMax.
    function cap() external view returns (uint128);
}

/// @title What the purse asks of the token, besides ERC-20.
interface IDomain {
    function DOMAIN_SEPARATOR() external view returns (bytes32);
}
