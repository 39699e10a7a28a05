// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {Math} from "@openzeppelin/contracts/utils/math/Math.sol";
import {IPriceFeed} from "../interfaces/IPurchase.sol";
import {ITreasury} from "../interfaces/ITreasury.sol";

/// @title What ETH costs, or a revert: no price is better than a wrong one.
/// @notice One USDC is taken for one dollar. If it is worth less, the pool gives less than the oracle says and the
/// purchase fails.
library GasPrice {
    /// A sequencer that was down must be up so long before its prices count: what Chainlink advises.
    uint256 private constant SEQUENCER_GRACE = 1 hours;

    /// Micro-USDC for 1 ETH x `scale`.
    function read(ITreasury.GasMarket storage m) internal view returns (uint256 price, uint256 scale) {
        if (m.sequencer != address(0)) {
            (, int256 down, uint256 since,,) = IPriceFeed(m.sequencer).latestRoundData();
            bool up = down == 0 && since != 0 && since <= block.timestamp;
            if (!up || block.timestamp - since < SEQUENCER_GRACE) revert ITreasury.BadPrice();
        }
        (, int256 answer,, uint256 updated,) = IPriceFeed(m.oracle).latestRoundData();
        bool fresh = updated != 0 && updated <= block.timestamp && block.timestamp - updated <= m.staleAfter;
        if (!fresh || answer <= 0) revert ITreasury.BadPrice();
        (price, scale) = (uint256(answer) * 1e6, 10 ** IPriceFeed(m.oracle).decimals());
    }

    /// What `amountWei` costs.
    function costUp(uint256 amountWei, uint256 price, uint256 scale) internal pure returns (uint256) {
        return Math.mulDiv(amountWei, price, scale * 1e18, Math.Rounding.Ceil);
    }

    /// The least that `paid` micro-USDC must buy.
    function leastUp(uint256 paid, uint256 price, uint256 scale, uint16 slippageBps) internal pure returns (uint256) {
        return Math.mulDiv(paid * (10_000 - slippageBps), scale * 1e18, price * 10_000, Math.Rounding.Ceil);
    }
}
