// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {SignatureChecker} from "@openzeppelin/contracts/utils/cryptography/SignatureChecker.sol";

/// @title k of n stewards, by their signatures over one digest.
/// @notice A signature has 65 bytes (r, s, v) of a steward's key; any other length is the address of a steward that is
/// a contract (20 bytes, a Safe for example) and what its ERC-1271 takes.
library Quorum {
    struct Stewards {
        uint8 threshold;
        mapping(address who => bool) isSteward;
    }

    /// Who signed: at least `threshold` members, strictly ascending (so none counts twice). Empty when it is no quorum:
    /// the caller refuses. One bad signature spoils the set: whoever relays leaves it out.
    function signers(Stewards storage self, bytes32 digest, bytes[] calldata signatures)
        internal view returns (address[] memory who)
    {
        if (self.threshold == 0 || signatures.length < self.threshold) return who;
        who = new address[](signatures.length);
        address last = address(0);
        for (uint256 i = 0; i < signatures.length; ++i) {
            address signer = _signer(self, digest, signatures[i]);
            if (signer <= last || !self.isSteward[signer]) return new address[](0);
            (who[i], last) = (signer, signer);
        }
    }

    /// Only stewards are asked whether they signed: no stranger's code runs here.
    function _signer(Stewards storage self, bytes32 digest, bytes calldata s) private view returns (address signer) {
        if (s.length == 65) {
            (signer,,) = ECDSA.tryRecoverCalldata(digest, s);
        } else if (s.length > 20 && self.isSteward[address(bytes20(s[:20]))]) {
            signer = address(bytes20(s[:20]));
            if (!SignatureChecker.isValidERC1271SignatureNowCalldata(signer, digest, s[20:])) return address(0);
        }
    }
}
