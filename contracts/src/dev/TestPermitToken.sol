// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {ERC20} from "@openzeppelin/contracts/token/ERC20/ERC20.sol";
import {ERC20Permit} from "@openzeppelin/contracts/token/ERC20/extensions/ERC20Permit.sol";

/// @title A token with EIP-2612 and without EIP-3009, for development chains. Worth nothing: anybody mints.
/// @notice What x402 pays with by Permit2.
contract TestPermitToken is ERC20Permit {
    constructor() ERC20("Test Dollar", "TUSD") ERC20Permit("Test Dollar") {}

    function decimals() public pure override returns (uint8) {
        return 6;
    }

    function version() external pure returns (string memory) {
        return "1";
    }

    /// Anybody mints to anybody, in atomic units.
    function mint(address to, uint256 value) external {
        _mint(to, value);
    }
}
