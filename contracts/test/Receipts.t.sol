// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {MerkleProof} from "@openzeppelin/contracts/utils/cryptography/MerkleProof.sol";
import {Cheats} from "./Cheats.sol";

/// The roots that heartbeats carry are made for OpenZeppelin's library: what crates/pay/src/receipt/tree proves, a
/// contract can check.
contract ReceiptsTest is Cheats {
    /// Of five leaves, from the vector in crates/pay/src/receipt/tree/tests.rs.
    bytes32 private constant ROOT = 0x62aa95be4d0705810ae58c8e50bff88f482c3f45a51a1d915d851626adb5f72f;

    function leaf(uint32 n) private pure returns (bytes32) {
        return keccak256(bytes.concat(keccak256(abi.encode(keccak256(abi.encodePacked(n)), uint256(n)))));
    }

    function test_a_contract_checks_a_receipt() public pure {
        bytes32[] memory last = new bytes32[](1);
        last[0] = 0x74b40674e274dd36ec11c1ada70f6335861b398b602744614381ca539f98a234;
        yes(MerkleProof.verify(last, ROOT, leaf(4)), "the last leaf");
        yes(!MerkleProof.verify(last, ROOT, leaf(3)), "another receipt");
        bytes32[] memory inner = new bytes32[](3);
        inner[0] = leaf(0);
        inner[1] = 0x92de5186dc8f7d5cae3b5af2f797e18a35ee04721681a24849e1ff931b72f9ed;
        inner[2] = leaf(4);
        yes(MerkleProof.verify(inner, ROOT, leaf(1)), "an inner leaf");
    }
}
