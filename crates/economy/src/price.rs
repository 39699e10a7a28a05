//! What a call costs: never below what serving it costs, more while demand lasts.

use crate::money::{Usdc, mul_div_up};
use crate::policy::Policy;
use borsh::{BorshDeserialize, BorshSerialize};

/// What customers are quoted. Constant between two `Output::Serve`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Price {
    /// Least price of one call.
    pub call_uusdc: Usdc,
    /// Most that one call may cost.
    pub call_uusdc_max: Usdc,
    /// One million prompt tokens, rounded up.
    pub mtok_prompt_uusdc: Usdc,
    /// One million prompt tokens that an earlier call left in the context, rounded up. Never above a prompt token's.
    pub mtok_cached_uusdc: Usdc,
    /// One million tokens of texts that become vectors, rounded up. The same in an agent that makes none.
    pub mtok_embedding_uusdc: Usdc,
    /// One million completion tokens, rounded up.
    pub mtok_completion_uusdc: Usdc,
}

/// Tokens of one call, by class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tokens {
    /// The whole prompt.
    pub prompt: u64,
    /// Those of the prompt that were not computed for this call; more than the prompt count as all of it.
    pub cached: u64,
    pub completion: u64,
}

impl Price {
    /// The price of a call that makes vectors: all of its prompt is of that class, and nothing of it is ever cached.
    pub fn of_embeddings(self) -> Price {
        Price { mtok_prompt_uusdc: self.mtok_embedding_uusdc, mtok_cached_uusdc: self.mtok_embedding_uusdc, ..self }
    }

    /// The ceiling of one call: nothing of its prompt cached, its answer as long as it may be.
    pub fn quote_up(&self, prompt_tokens: u64, completion_tokens_max: u64) -> Usdc {
        self.meter_up(Tokens { prompt: prompt_tokens, cached: 0, completion: completion_tokens_max })
    }

    /// The charge for these tokens: the classes summed and rounded up once, at least the least and at most the most a call
    /// may cost.
    pub fn meter_up(&self, tokens: Tokens) -> Usdc {
        self.meter_beside_up(tokens, 0)
    }

    /// The same where the call has more to pay for than its tokens: `beside_e6`, in millionths of a micro-USDC, is summed
    /// with their classes before it is rounded.
    pub fn meter_beside_up(&self, tokens: Tokens, beside_e6: u128) -> Usdc {
        let of = |price: Usdc, tokens: u64| price.0.saturating_mul(u128::from(tokens));
        let cached = tokens.cached.min(tokens.prompt);
        let prompt = of(self.mtok_prompt_uusdc, tokens.prompt - cached);
        let cached = of(self.mtok_cached_uusdc, cached);
        let completion = of(self.mtok_completion_uusdc, tokens.completion);
        let all = prompt.saturating_add(cached).saturating_add(completion).saturating_add(beside_e6);
        let metered = Usdc(all.div_ceil(1_000_000));
        metered.max(self.call_uusdc).min(self.call_uusdc_max)
    }
}

/// Busier than this: the price rises. Percent of the measured throughput.
const BUSY_PCT: u64 = 70;
/// Idler than this: it falls back towards the floor. Between the two it stays, so that it does not swing.
const IDLE_PCT: u64 = 40;
/// One step, per mille of the price.
const STEP_PERMILLE: u64 = 100;
/// Never more than this many times the floor, per mille: a flood must not price everyone out for long.
const FACTOR_MAX: u64 = 4_000;
/// A smaller change is not worth a new price, percent.
const CHANGE_PCT: u128 = 2;

/// The controller: a factor on the floor, moved one step a review.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub(crate) struct Pricing {
    /// Per mille of the floor, 1,000 or more.
    factor: u64,
    milli_tokens_per_sec: u64,
    reviewed_at: Option<u64>,
    /// Completion tokens sold since then.
    tokens: u64,
    busy_pct: u32,
    /// A review happened since the last price.
    reviewed: bool,
}

impl Pricing {
    pub fn new(policy: &Policy) -> Self {
        Self {
            factor: 1_000,
            milli_tokens_per_sec: policy.milli_tokens_per_sec.max(1),
            reviewed_at: None,
            tokens: 0,
            busy_pct: 0,
            reviewed: false,
        }
    }

    /// A measurement of nothing is no measurement.
    pub fn measured(&mut self, milli_tokens_per_sec: u64) {
        if milli_tokens_per_sec > 0 {
            self.milli_tokens_per_sec = milli_tokens_per_sec;
        }
    }

    pub fn throughput(&self) -> u64 {
        self.milli_tokens_per_sec
    }

    pub fn sold(&mut self, tokens: u64) {
        self.tokens = self.tokens.saturating_add(tokens);
    }

    pub fn busy_pct(&self) -> u32 {
        self.busy_pct
    }

    /// Once every `reprice_every`: up a step when busy, down a step when idle.
    pub fn review(&mut self, now: u64, policy: &Policy) {
        let since = *self.reviewed_at.get_or_insert(now);
        let elapsed = now.saturating_sub(since);
        if elapsed < u64::from(policy.reprice_every) {
            return;
        }
        let capacity = u128::from(self.milli_tokens_per_sec) * u128::from(elapsed);
        let busy = u128::from(self.tokens) * 100_000 / capacity.max(1);
        let busy = u64::try_from(busy).unwrap_or(u64::MAX).min(100);
        self.busy_pct = u32::try_from(busy).unwrap_or(100);
        if busy > BUSY_PCT {
            self.factor = (self.factor * (1_000 + STEP_PERMILLE) / 1_000).min(FACTOR_MAX);
        } else if busy < IDLE_PCT {
            self.factor = (self.factor * (1_000 - STEP_PERMILLE) / 1_000).max(1_000);
        }
        (self.reviewed_at, self.tokens, self.reviewed) = (Some(now), 0, true);
    }

    /// What a million completion tokens must bring, rounded up: cost per second over the throughput that is assumed
    /// sold, plus the margin. `cost_e6`: micro-USDC x 1e-6 per second of hosts, storage and gas together.
    pub fn floor_mtok_up(&self, cost_e6: u64, policy: &Policy) -> Usdc {
        let sold = u128::from(self.milli_tokens_per_sec.max(1)) * u128::from(policy.utilisation_pct.max(1));
        // cost_e6 / 1e6 per second over sold / 1e5 tokens per second, x 1e6 tokens.
        let cost = mul_div_up(u128::from(cost_e6), 100_000, sold);
        let with_margin = cost.and_then(|c| mul_div_up(c, 100 + u128::from(policy.wishes.margin_pct), 100));
        Usdc(with_margin.unwrap_or(u128::MAX))
    }

    /// The price to sell at, given the one in force. A cost that rises is passed on at once, one that falls at the
    /// next review and if it is worth it: a quote should not age while its customer signs.
    pub fn price(&mut self, cost_e6: u64, policy: &Policy, in_force: Option<Price>) -> Price {
        let floor = self.floor_mtok_up(cost_e6, policy);
        let completion = mul_div_up(floor.0, u128::from(self.factor), 1_000).map_or(Usdc::MAX, Usdc);
        let wishes = &policy.wishes;
        let reviewed = std::mem::take(&mut self.reviewed);
        if let Some(old) = in_force {
            let at = old.mtok_completion_uusdc;
            let close = |to: Usdc| to.0.abs_diff(at.0).saturating_mul(100) <= at.0.saturating_mul(CHANGE_PCT);
            let stays = if reviewed { close(completion) } else { true };
            if at >= floor && stays {
                return old;
            }
        }
        let prompt = mul_div_up(completion.0, u128::from(policy.prompt_pct), 100).map_or(Usdc::MAX, Usdc);
        Price {
            call_uusdc: wishes.min_call,
            call_uusdc_max: wishes.max_call,
            mtok_prompt_uusdc: prompt,
            mtok_cached_uusdc: mul_div_up(prompt.0, u128::from(policy.cached_pct.min(100)), 100).map_or(prompt, Usdc),
            mtok_embedding_uusdc: mul_div_up(prompt.0, u128::from(policy.embedding_pct), 100).map_or(Usdc::MAX, Usdc),
            mtok_completion_uusdc: completion,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Wishes;
    use crate::timers::Timers;
    use proptest::prelude::*;

    fn policy() -> Policy {
        let wishes = Wishes {
            term: 30 * 86_400,
            prepay_secs: 2 * 86_400,
            margin_pct: 20,
            min_call: Usdc(1_000),
            max_call: Usdc(500_000),
            block_secs: 2,
        };
        Policy::new(wishes, &Timers::real())
    }

    #[test]
    fn the_floor_covers_the_hosts_at_the_assumed_utilisation() {
        let mut pricing = Pricing::new(&policy());
        pricing.measured(100_000);
        // 10 micro-USDC a second over 30 tokens a second, plus 20 %.
        assert_eq!(pricing.floor_mtok_up(10_000_000, &policy()), Usdc(400_001));
        // Selling exactly the assumed share for a day brings the day's rent and the margin.
        let sold = 30 * 86_400u64;
        assert!(400_001 * sold / 1_000_000 >= 864_000 * 120 / 100);
    }

    #[test]
    fn a_quote_is_rounded_up_once_and_kept_between_least_and_most() {
        let price = Price {
            call_uusdc: Usdc(10),
            call_uusdc_max: Usdc(1_000),
            mtok_prompt_uusdc: Usdc(1),
            mtok_cached_uusdc: Usdc(1),
            mtok_embedding_uusdc: Usdc(500_000),
            mtok_completion_uusdc: Usdc(1_000_000),
        };
        assert_eq!(price.quote_up(0, 0), Usdc(10));
        assert_eq!(price.quote_up(1, 20), Usdc(21));
        assert_eq!(price.quote_up(1_000_000, 20), Usdc(21));
        assert_eq!(price.quote_up(0, 5_000), Usdc(1_000));
        // What comes beside the tokens is rounded with them.
        let tokens = Tokens { prompt: 500_000, cached: 0, completion: 20 };
        assert_eq!(price.meter_beside_up(tokens, 500_000), Usdc(21));
        assert_eq!(price.meter_beside_up(tokens, 500_001), Usdc(22));
        assert_eq!(price.meter_beside_up(tokens, u128::MAX), Usdc(1_000));
        assert_eq!(price.quote_up(u64::MAX, u64::MAX), Usdc(1_000));
        // Texts that become vectors: their own class, rounded up once, and the same least and most.
        let charge = |prompt| price.of_embeddings().meter_up(Tokens { prompt, cached: 9, completion: 0 });
        assert_eq!([charge(0), charge(19), charge(41), charge(5_000)].map(|c| c.0), [10, 10, 21, 1_000]);
    }

    #[test]
    fn a_kept_beginning_costs_half_and_a_vector_its_share() {
        const EMBEDDING_PCT: u128 = 7;
        let price = Pricing::new(&policy()).price(10_000_000, &policy(), None);
        assert_eq!(price.mtok_cached_uusdc.0, price.mtok_prompt_uusdc.0.div_ceil(2));
        assert_eq!(price.mtok_embedding_uusdc.0, (price.mtok_prompt_uusdc.0 * EMBEDDING_PCT).div_ceil(100));
    }

    proptest! {
        /// Exact to the micro-USDC: the sum of the classes rounded up once, within the bounds of a call. What is cached
        /// never makes a call dearer, and a quote is never below the charge that comes of it.
        #[test]
        fn a_charge_is_the_sum_of_its_classes_rounded_up_once(
            prompt in 0u64..1 << 30, cached in 0u64..1 << 31, completion in 0u64..1 << 30, room in 0u64..1 << 20,
            mtok in 0u128..1 << 40, cached_pct in 0u128..=100, mtok_completion in 0u128..1 << 40,
            least in 0u128..1 << 20, span in 0u128..1 << 60,
        ) {
            let price = Price {
                call_uusdc: Usdc(least),
                call_uusdc_max: Usdc(least + span),
                mtok_prompt_uusdc: Usdc(mtok),
                mtok_cached_uusdc: Usdc((mtok * cached_pct).div_ceil(100)),
                mtok_embedding_uusdc: Usdc(mtok),
                mtok_completion_uusdc: Usdc(mtok_completion),
            };
            let charge = price.meter_up(Tokens { prompt, cached, completion });
            let kept = u128::from(cached.min(prompt));
            let cost_e6 = mtok * (u128::from(prompt) - kept)
                + price.mtok_cached_uusdc.0 * kept
                + mtok_completion * u128::from(completion);
            prop_assert_eq!(charge.0, cost_e6.div_ceil(1_000_000).clamp(least, least + span));
            let computed = price.meter_up(Tokens { prompt, cached: 0, completion });
            prop_assert!(charge <= computed);
            prop_assert!(charge <= price.quote_up(prompt, completion + room));
        }
    }

    #[test]
    fn demand_raises_the_price_step_by_step_and_idleness_brings_it_back_to_the_floor() {
        let policy = policy();
        let mut pricing = Pricing::new(&policy);
        pricing.measured(100_000);
        let mut price = pricing.price(10_000_000, &policy, None);
        let floor = price.mtok_completion_uusdc;
        let mut now = 0;
        let mut review = |pricing: &mut Pricing, price: &mut Price, tokens_per_sec: u64| {
            for _ in 0..2 {
                now += u64::from(policy.reprice_every);
                pricing.sold(tokens_per_sec * u64::from(policy.reprice_every));
                pricing.review(now, &policy);
            }
            *price = pricing.price(10_000_000, &policy, Some(*price));
        };
        for _ in 0..30 {
            review(&mut pricing, &mut price, 90);
        }
        assert_eq!(price.mtok_completion_uusdc, Usdc(floor.0 * 4), "up to the cap");
        let high = price;
        for _ in 0..10 {
            review(&mut pricing, &mut price, 55);
        }
        assert_eq!(price, high, "between the two it stays");
        for _ in 0..30 {
            review(&mut pricing, &mut price, 0);
        }
        assert_eq!(price.mtok_completion_uusdc, floor);
    }

    proptest! {
        #[test]
        fn never_below_the_floor(
            costs in proptest::collection::vec((0u64..1 << 40, 0u64..1_000_000, 1u64..10_000_000), 1..50),
        ) {
            let policy = policy();
            let mut pricing = Pricing::new(&policy);
            let mut price = None;
            for (i, (cost_e6, tokens, throughput)) in (0u64..).zip(costs) {
                pricing.measured(throughput);
                pricing.sold(tokens);
                pricing.review(i * u64::from(policy.reprice_every), &policy);
                let next = pricing.price(cost_e6, &policy, price);
                prop_assert!(next.mtok_completion_uusdc >= pricing.floor_mtok_up(cost_e6, &policy));
                price = Some(next);
            }
        }
    }
}
