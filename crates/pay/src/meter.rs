//! From tokens to money, rounded once.

use crate::Usdc;

/// Prices as values: who decides them is no concern of this crate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tariff {
    /// Least charge of one call, micro-USDC.
    pub call_min: Usdc,
    /// Micro-USDC for a million prompt tokens.
    pub mtok_prompt: Usdc,
    /// Micro-USDC for a million completion tokens.
    pub mtok_completion: Usdc,
}

impl Tariff {
    /// The charge for these tokens: both products summed, divided once, rounded up, at least `call_min`.
    /// Saturates instead of overflowing; [`charge_up`](Self::charge_up) then caps it at what was authorised.
    pub fn price_up(&self, prompt_tokens: u64, completion_tokens: u64) -> Usdc {
        let prompt = self.mtok_prompt.micro().saturating_mul(u128::from(prompt_tokens));
        let completion = self.mtok_completion.micro().saturating_mul(u128::from(completion_tokens));
        Usdc(prompt.saturating_add(completion).div_ceil(1_000_000)).max(self.call_min)
    }

    /// [`price_up`](Self::price_up), never more than the customer authorised.
    pub fn charge_up(&self, prompt_tokens: u64, completion_tokens: u64, authorised: Usdc) -> Usdc {
        self.price_up(prompt_tokens, completion_tokens).min(authorised)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tariff(call_min: u128, prompt: u128, completion: u128) -> Tariff {
        Tariff { call_min: Usdc(call_min), mtok_prompt: Usdc(prompt), mtok_completion: Usdc(completion) }
    }

    #[test]
    fn rounds_the_sum_once() {
        // 0.4 + 0.4 micro-USDC is 1 when the sum is rounded, 2 when each part is.
        assert_eq!(tariff(0, 400_000, 400_000).price_up(1, 1), Usdc(1));
        assert_eq!(tariff(0, 100_000, 200_000).price_up(7, 64), Usdc(14)); // 0.7 + 12.8 = 13.5
        assert_eq!(tariff(200, 1, 1).price_up(0, 0), Usdc(200));
        assert_eq!(tariff(200, 1_000_000_000, 0).charge_up(1_000, 0, Usdc(900_000)), Usdc(900_000));
        assert_eq!(tariff(0, u128::MAX, u128::MAX).price_up(u64::MAX, u64::MAX), Usdc(u128::MAX.div_ceil(1_000_000)));
    }

    proptest! {
        #[test]
        fn never_below_cost_never_a_unit_above(p in 0u64..1 << 40, c in 0u64..1 << 40, mp in 0u128..1 << 40, mc in 0u128..1 << 40) {
            let cost_e6 = mp * u128::from(p) + mc * u128::from(c);
            let price = tariff(0, mp, mc).price_up(p, c).micro();
            prop_assert!(price * 1_000_000 >= cost_e6);
            prop_assert!(price == 0 || (price - 1) * 1_000_000 < cost_e6);
        }
    }
}
