// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {ITreasury} from "./ITreasury.sol";

/// @title What the treasury calls of the x402 batch-settlement contract, as its receiver and receiverAuthorizer.
interface IBatchSettlement {
    function claim(ITreasury.VoucherClaim[] calldata claims) external;
    function settle(address receiver, address token) external;
    function refund(ITreasury.ChannelConfig calldata config, uint128 amount) external;
    function receivers(address receiver, address token)
        external
        view
        returns (uint128 totalClaimed, uint128 totalSettled);
}
