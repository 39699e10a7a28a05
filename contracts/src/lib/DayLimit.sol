// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

/// @title A rolling limit over the last day.
/// @notice Time is cut into slots of day/24, rounded up, and an amount counts in its own slot and the 24 after it.
/// So it counts for a whole day at least and for 25 slots at most: the sum over any window of a day never passes the
/// limit. Nothing takes an amount out again before its time.
library DayLimit {
    uint256 private constant SLOTS = 25;

    struct Ring {
        uint64 slot;            // the newest slot that anything was added in
        uint128 total;          // sum of `amounts`, as of `slot`
        uint128[25] amounts;    // by slot % SLOTS
    }

    /// What still counts at this moment, in the unit that was added.
    function spent(Ring storage ring, uint32 day) internal view returns (uint128 sum) {
        uint64 slot = _slot(day);
        sum = ring.total;
        uint64 gone = slot - ring.slot;
        if (gone >= SLOTS) return 0;
        for (uint64 i = 1; i <= gone; ++i) {
            sum -= ring.amounts[(ring.slot + i) % SLOTS];
        }
    }

    /// Adds without asking: the caller has compared with `spent`.
    function add(Ring storage ring, uint32 day, uint128 amount) internal {
        uint64 slot = _slot(day);
        uint128 sum = spent(ring, day);
        uint64 gone = slot - ring.slot;
        for (uint64 i = 1; i <= gone && i <= SLOTS; ++i) {
            ring.amounts[(ring.slot + i) % SLOTS] = 0;
        }
        ring.slot = slot;
        ring.total = sum + amount;
        ring.amounts[slot % SLOTS] += amount;
    }

    function _slot(uint32 day) private view returns (uint64) {
        return uint64(block.timestamp / ((uint256(day) + 23) / 24));
    }
}
