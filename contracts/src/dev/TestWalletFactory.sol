// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {TestWallet} from "./TestWallet.sol";

/// @title Makes smart-contract payers at addresses known before, for development chains only.
/// @notice What an ERC-6492 signature names. It tells who called: a facilitator must not be seen here by its operator.
contract TestWalletFactory {
    event Made(address indexed wallet, address indexed caller);

    function make(address owner) external returns (address wallet) {
        wallet = walletOf(owner);
        if (wallet.code.length == 0) {
            new TestWallet{salt: 0}(owner);
            emit Made(wallet, msg.sender);
        }
    }

    function walletOf(address owner) public view returns (address) {
        bytes32 code = keccak256(abi.encodePacked(type(TestWallet).creationCode, abi.encode(owner)));
        return address(uint160(uint256(keccak256(abi.encodePacked(bytes1(0xff), address(this), bytes32(0), code)))));
    }
}
