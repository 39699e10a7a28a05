// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {Clones} from "@openzeppelin/contracts/proxy/Clones.sol";
import {ITreasury, ITreasuryFactory} from "./interfaces/ITreasury.sol";
import {BirthRules} from "./lib/BirthRules.sol";
import {Purse} from "./Purse.sol";
import {Treasury} from "./Treasury.sol";

/// @title TreasuryFactory
/// @notice Deploys treasuries as minimal proxies of one locked implementation, which can never be exchanged. The
/// address commits to the creator and to every field of the birth, so money may be sent there before the treasury
/// exists.
contract TreasuryFactory is ITreasuryFactory {
    address public immutable implementation;

    /// @param oversight the treasury's second half; who audits this factory reads both: `Treasury.OVERSIGHT()`
    constructor(address oversight) {
        if (oversight.code.length == 0) revert ITreasury.ZeroAddress();
        implementation = address(new Treasury(oversight));
    }

    /// @inheritdoc ITreasuryFactory
    function create(ITreasury.Birth calldata birth) external payable returns (address treasury) {
        if (msg.sender != birth.creator) revert ITreasury.NotCreator();
        BirthRules.check(birth);
        treasury = Clones.cloneDeterministic(implementation, _salt(birth));
        uint128 cap = birth.options.purseMax;
        address purse = cap == 0 ? address(0) : address(new Purse(treasury, birth.token, cap));
        emit Created(treasury, msg.sender);
        // Value goes along with the call and not with the creation, so one transaction has one place where it can fail.
        ITreasury(payable(treasury)).initialize{value: msg.value}(birth, purse);
    }

    /// @inheritdoc ITreasuryFactory
    function predict(ITreasury.Birth calldata birth) external view returns (address treasury) {
        return Clones.predictDeterministicAddress(implementation, _salt(birth));
    }

    function _salt(ITreasury.Birth calldata birth) private pure returns (bytes32) {
        return keccak256(abi.encode(birth.creator, abi.encode(birth)));
    }
}
