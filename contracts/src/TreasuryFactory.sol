// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {Clones} from "@openzeppelin/contracts/proxy/Clones.sol";
import {ITreasury, ITreasuryFactory} from "./interfaces/ITreasury.sol";
import {Treasury} from "./Treasury.sol";

/// @title TreasuryFactory
/// @notice Deploys treasuries as minimal proxies of one locked implementation, which can never be exchanged. The
/// address commits to the creator and to every field of the birth, so money may be sent there before the treasury
/// exists.
contract TreasuryFactory is ITreasuryFactory {
    address public immutable implementation;

    constructor() {
        implementation = address(new Treasury());
    }

    /// @inheritdoc ITreasuryFactory
    function create(ITreasury.Birth calldata birth) external payable returns (address treasury) {
        if (msg.sender != birth.creator) revert ITreasury.NotCreator();
        treasury = Clones.cloneDeterministic(implementation, _salt(birth));
        emit Created(treasury, msg.sender);
        // Value goes along with the call and not with the creation, so one transaction has one place where it can fail.
        Treasury(payable(treasury)).initialize{value: msg.value}(birth);
    }

    /// @inheritdoc ITreasuryFactory
    function predict(ITreasury.Birth calldata birth) external view returns (address treasury) {
        return Clones.predictDeterministicAddress(implementation, _salt(birth));
    }

    function _salt(ITreasury.Birth calldata birth) private pure returns (bytes32) {
        return keccak256(abi.encode(birth.creator, abi.encode(birth)));
    }
}
