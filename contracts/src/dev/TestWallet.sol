// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {IERC1271} from "@openzeppelin/contracts/interfaces/IERC1271.sol";
import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";

/// @title A smart-contract payer, for development chains only.
/// @notice Signs by ERC-1271: its owner's signature behind one byte, so that it is never taken for a key's.
contract TestWallet is IERC1271 {
    address public immutable OWNER;
    /// It changed its mind: nothing it signed holds any more.
    bool public frozen;

    error NotOwner(address caller);

    constructor(address owner) {
        OWNER = owner;
    }

    function isValidSignature(bytes32 digest, bytes calldata signature) external view returns (bytes4) {
        if (frozen || signature.length != 66 || signature[0] != 0x01) return bytes4(0xffffffff);
        (address signer, ECDSA.RecoverError failure,) = ECDSA.tryRecoverCalldata(digest, signature[1:]);
        bool holds = failure == ECDSA.RecoverError.NoError && signer == OWNER;
        return holds ? IERC1271.isValidSignature.selector : bytes4(0xffffffff);
    }

    function setFrozen(bool is_) external {
        if (msg.sender != OWNER) revert NotOwner(msg.sender);
        frozen = is_;
    }

    function execute(address to, bytes calldata data) external {
        if (msg.sender != OWNER) revert NotOwner(msg.sender);
        (bool done, bytes memory answer) = to.call(data);
        if (!done) {
            assembly {
                revert(add(answer, 32), mload(answer))
            }
        }
    }
}
