// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {ILeaseMarket} from "../interfaces/ILeaseMarket.sol";
import {ITreasury} from "../interfaces/ITreasury.sol";

/// @title What a birth must satisfy, and every policy after it.
library BirthRules {
    /// Shortest timer, in seconds: three blocks of one second.
    uint32 private constant TIMER_MIN = 3;

    function check(ITreasury.Birth calldata b) internal view {
        if (b.creator == address(0) || b.beneficiary == address(0) || b.market == address(0)) {
            revert ITreasury.ZeroAddress();
        }
        ILeaseMarket market = ILeaseMarket(b.market);
        if (b.token != market.token()) revert ITreasury.WrongToken();
        if (b.mandateUntil <= block.timestamp) revert ITreasury.TooLate(b.mandateUntil);
        _checkTimers(b.timers, b.options, market);
        _checkPolicy(b.policy, b.timers.day, market);
        _checkOptions(b, market);
    }

    /// A new policy of a living treasury: no limit above `most`, and birth's rules.
    function checkWithin(ITreasury.Policy calldata p, ITreasury.Policy memory most, ITreasury.Birth storage b)
        internal view
    {
        _checkPolicy(p, b.timers.day, ILeaseMarket(b.market));
        _checkBelow(p, most);
        // Not a limit on spending: raising it would end the agent sooner, lowering it later.
        if (p.starveFloor != b.policy.starveFloor) revert ITreasury.BadPolicy();
    }

    function _checkTimers(ITreasury.Timers calldata t, ITreasury.Options calldata o, ILeaseMarket market) private view {
        _require(
            t.day >= TIMER_MIN && t.heartbeatEvery >= TIMER_MIN && t.fence >= TIMER_MIN && t.answerTime >= TIMER_MIN
                && t.handoverNotice >= TIMER_MIN && t.restoreTimeout >= TIMER_MIN && t.silence >= TIMER_MIN
                && t.starveTimeout >= TIMER_MIN && t.activateWithin >= TIMER_MIN && t.refundWindow >= TIMER_MIN,
            "timers >= 3 s"
        );
        _require(t.heartbeatEvery < t.fence, "heartbeatEvery < fence");
        _require(t.fence < t.answerTime, "fence < answerTime");
        uint256 takeover = uint256(t.answerTime) + t.restoreTimeout;
        _require(takeover <= market.grace(), "answerTime + restoreTimeout <= market grace");
        _require(market.grace() <= market.dropAfter(), "market grace <= dropAfter");
        _require(o.delay == 0 || o.delay >= t.day, "delay >= day");
        // A channel's payer who begins to withdraw waits until a successor, even a rescued one, could still claim.
        _require(
            o.channels == address(0) || o.withdrawDelay >= takeover + t.silence + t.day,
            "withdrawDelay >= answerTime + restoreTimeout + silence + day"
        );
    }

    function _require(bool holds, string memory pair) private pure { if (!holds) revert ITreasury.BadTimers(pair); }

    function _checkPolicy(ITreasury.Policy calldata p, uint32 day, ILeaseMarket market) private view {
        bool fits = p.termMax != 0 && p.termMax <= 30 * uint256(day) && p.termMax <= market.MAX_TERM();
        if (!fits) revert ITreasury.OverTerm();
        if (p.dayLimit == 0 || p.priceE6Max == 0 || p.prepayMax == 0) revert ITreasury.BadPolicy();
    }

    function _checkOptions(ITreasury.Birth calldata b, ILeaseMarket market) private view {
        ITreasury.Options calldata o = b.options;
        if (o.ceilings.dayLimit != 0) {
            _checkPolicy(o.ceilings, b.timers.day, market);
            _checkBelow(b.policy, o.ceilings);
        }
        for (uint256 i = 0; i < o.payees.length; ++i) {
            address payee = o.payees[i].payee;
            bool nobody = payee == address(0) || payee == b.creator;
            if (nobody || o.payees[i].kind == ITreasury.Kind.Purse) revert ITreasury.NotPayee(payee);
        }
        if (o.gas.router == address(0)) return;
        if (o.gas.weth == address(0) || o.gas.oracle == address(0)) revert ITreasury.ZeroAddress();
        if (o.gas.slippageBps > 1000 || o.gas.staleAfter == 0) revert ITreasury.BadPolicy();
    }

    function _checkBelow(ITreasury.Policy calldata p, ITreasury.Policy memory most) private pure {
        bool below = p.dayLimit <= most.dayLimit && p.priceE6Max <= most.priceE6Max && p.termMax <= most.termMax
            && p.prepayMax <= most.prepayMax && p.gasDayMax <= most.gasDayMax && p.gasTarget <= most.gasTarget;
        if (!below) revert ITreasury.BadPolicy();
    }
}
