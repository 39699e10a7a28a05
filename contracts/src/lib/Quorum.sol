// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";

/// @title k of n stewards, by their signatures over one digest.
library Quorum {
    struct Stewards {
        uint8 threshold;
        mapping(address who => bool) isSteward;
    }

    /// True when at least `threshold` signatures came, all of stewards, strictly ascending by signer (so none counts
    /// twice). One bad signature spoils the set: whoever relays leaves it out.
    function holds(Stewards storage self, bytes32 digest, bytes[] calldata signatures) internal view returns (bool) {
        if (signatures.length < self.threshold) return false;
        address last = address(0);
        for (uint256 i = 0; i < signatures.length; ++i) {
            (address signer, ECDSA.RecoverError failed,) = ECDSA.tryRecoverCalldata(digest, signatures[i]);
            if (failed != ECDSA.RecoverError.NoError || signer <= last || !self.isSteward[signer]) return false;
            last = signer;
        }
        return true;
    }
}
