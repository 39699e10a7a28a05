//! From tokens to money, rounded once.

use crate::Usdc;

/// Prices as values: who decides them is no concern of this crate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tariff {
    /// Least charge of one call, micro-USDC.
    pub call_min: Usdc,
    /// Micro-USDC for a million prompt tokens.
    pub mtok_prompt: Usdc,
    /// Micro-USDC for a million prompt tokens that an earlier request left in the context.
    pub mtok_cached: Usdc,
    /// Micro-USDC for a million completion tokens.
    pub mtok_completion: Usdc,
}

/// Tokens of one request, by class.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Tokens {
    /// The whole prompt.
    pub prompt: u64,
    /// Those of the prompt that were not computed for this request; more than the prompt count as all of it.
    pub cached: u64,
    pub completion: u64,
}

impl Tariff {
    /// The charge for these tokens: the products summed, divided once, rounded up, at least `call_min`.
    /// Saturates instead of overflowing; [`charge_up`](Self::charge_up) then caps it at what was authorised.
    pub fn price_up(&self, tokens: Tokens) -> Usdc {
        let of = |price: Usdc, tokens: u64| price.micro().saturating_mul(u128::from(tokens));
        let cached = tokens.cached.min(tokens.prompt);
        let prompt = of(self.mtok_prompt, tokens.prompt - cached).saturating_add(of(self.mtok_cached, cached));
        let sum = prompt.saturating_add(of(self.mtok_completion, tokens.completion));
        Usdc(sum.div_ceil(1_000_000)).max(self.call_min)
    }

    /// [`price_up`](Self::price_up), never more than the customer authorised.
    pub fn charge_up(&self, tokens: Tokens, authorised: Usdc) -> Usdc {
        self.price_up(tokens).min(authorised)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tariff(call_min: u128, prompt: u128, cached: u128, completion: u128) -> Tariff {
        Tariff {
            call_min: Usdc(call_min),
            mtok_prompt: Usdc(prompt),
            mtok_cached: Usdc(cached),
            mtok_completion: Usdc(completion),
        }
    }

    fn tokens(prompt: u64, cached: u64, completion: u64) -> Tokens {
        Tokens { prompt, cached, completion }
    }

    #[test]
    fn rounds_the_sum_once() {
        // 0.4 + 0.4 micro-USDC is 1 when the sum is rounded, 2 when each part is.
        assert_eq!(tariff(0, 400_000, 0, 400_000).price_up(tokens(1, 0, 1)), Usdc(1));
        // 0.3 + 0.3 + 0.3.
        assert_eq!(tariff(0, 300_000, 300_000, 300_000).price_up(tokens(2, 1, 1)), Usdc(1));
        assert_eq!(tariff(0, 100_000, 50_000, 200_000).price_up(tokens(7, 0, 64)), Usdc(14)); // 0.7 + 12.8 = 13.5
        assert_eq!(tariff(0, 100_000, 50_000, 200_000).price_up(tokens(40, 32, 64)), Usdc(16)); // 0.8 + 1.6 + 12.8
        assert_eq!(tariff(200, 1, 1, 1).price_up(tokens(0, 0, 0)), Usdc(200));
        assert_eq!(tariff(200, 1_000_000_000, 0, 0).charge_up(tokens(1_000, 0, 0), Usdc(900_000)), Usdc(900_000));
        let most = tariff(0, u128::MAX, u128::MAX, u128::MAX).price_up(tokens(u64::MAX, 9, u64::MAX));
        assert_eq!(most, Usdc(u128::MAX.div_ceil(1_000_000)));
    }

    proptest! {
        #[test]
        fn never_below_cost_never_a_unit_above(
            p in 0u64..1 << 40, k in 0u64..1 << 40, c in 0u64..1 << 40,
            mp in 0u128..1 << 40, mk in 0u128..1 << 40, mc in 0u128..1 << 40,
        ) {
            let k = k.min(p);
            let cost_e6 = mp * u128::from(p - k) + mk * u128::from(k) + mc * u128::from(c);
            let price = tariff(0, mp, mk, mc).price_up(tokens(p, k, c)).micro();
            prop_assert!(price * 1_000_000 >= cost_e6);
            prop_assert!(price == 0 || (price - 1) * 1_000_000 < cost_e6);
        }
    }
}
