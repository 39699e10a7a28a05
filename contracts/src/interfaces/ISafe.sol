// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

/// @title What a birth asks a Safe that is to be the only steward.
interface ISafe {
    function getThreshold() external view returns (uint256);
    function getOwners() external view returns (address[] memory);
    function isOwner(address who) external view returns (bool);
}
