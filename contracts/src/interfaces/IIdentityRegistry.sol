// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

/// @title What a treasury asks of an ERC-8004 identity registry. An identity is an ERC-721 token, its number the agent's
/// id, and whoever holds the token is the agent: here the treasury itself.
interface IIdentityRegistry {
    /// A new identity of the caller's. A contract must take it by `onERC721Received`.
    function register(string calldata agentURI) external returns (uint256 agentId);
    /// Only the holder.
    function setAgentURI(uint256 agentId, string calldata newURI) external;
}
