//! What the agent spends on gas for one payer beyond what that payer buys: for its channels, and for payments by `exact`
//! that it hangs up on.
//!
//! A deposit is the relay's transaction and a refund the operator's; neither costs the payer anything. Who does nothing but
//! put a cent in and take it out again would burn the agent's gas for the price of one call: so each payer has a few a day,
//! and more as it has paid for more. Whoever is refused on channels still buys by `exact`, and gets its money out by the
//! contract; whoever hung up too often buys on channels, where hanging up costs nobody a transaction.

use pay::Usdc;
use std::collections::BTreeMap;

/// Transactions of one payer in a day of the chain that need no sale: four channels opened and closed. A guess.
const FREE_A_DAY: u32 = 8;
const DAY_SECS: u64 = 86_400;

/// Transactions of today, by payer. A restart forgets them. Each payer in it has put a deposit in today, which bounds it.
#[derive(Debug, Default)]
pub struct PayerGas {
    day: u64,
    sent: BTreeMap<[u8; 20], u32>,
}

impl PayerGas {
    /// Whether one more is sent for `payer`, who was charged `charged` on its channels so far, at `each` a transaction.
    pub fn allows(&self, payer: &[u8; 20], charged: Usdc, each: Usdc, now: u64) -> bool {
        let sent = if now / DAY_SECS == self.day { self.sent.get(payer).copied().unwrap_or_default() } else { 0 };
        let bought = charged.micro() / each.micro().max(1);
        u128::from(sent) < u128::from(FREE_A_DAY).saturating_add(bought)
    }

    pub fn count(&mut self, payer: [u8; 20], now: u64) {
        let day = now / DAY_SECS;
        if day != self.day {
            (self.day, self.sent) = (day, BTreeMap::new());
        }
        let sent = self.sent.entry(payer).or_default();
        *sent = sent.saturating_add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_buys_nothing_has_a_few_a_day_and_who_buys_has_more() {
        const GAS: Usdc = Usdc(1_400);
        let (spammer, customer, now) = ([1; 20], [2; 20], 5 * DAY_SECS);
        let mut gas = PayerGas::default();
        for _ in 0..FREE_A_DAY {
            assert!(gas.allows(&spammer, Usdc::ZERO, GAS, now));
            gas.count(spammer, now);
        }
        assert!(!gas.allows(&spammer, Usdc(1_399), GAS, now));
        assert!(gas.allows(&spammer, Usdc(1_400), GAS, now), "it has paid for one more");
        assert!(gas.allows(&customer, Usdc::ZERO, GAS, now), "nobody waits for another's");
        assert!(gas.allows(&spammer, Usdc::ZERO, GAS, now + DAY_SECS), "tomorrow");
        gas.count(customer, now + DAY_SECS);
        assert_eq!(gas.sent.len(), 1, "yesterday is forgotten");
        assert!(gas.allows(&spammer, Usdc(u128::MAX), Usdc::ZERO, now), "free gas is no divisor");
    }
}
