//! What the agent may do and how it chooses: the treasury's limits, the manifest's wishes and a few constants of temper.

use crate::archive::Archive;
use crate::money::{Address, Usdc};
use crate::purse::Purse;
use crate::timers::{DAY_SECS, Timers};
use borsh::{BorshDeserialize, BorshSerialize};

/// What the Treasury enforces as of one block: a quorum tightens it at once, and loosens it after a delay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Limits {
    /// Gross commitments in any `day`.
    pub day_limit: Usdc,
    /// Price cap of a lease, micro-USDC x 1e-6 per second.
    pub price_e6_max: u64,
    /// Term of a lease, seconds, at most.
    pub term_max: u32,
    /// Rent in escrow ahead of now, seconds, at most.
    pub prepay_max: u32,
    /// Wei that may leave for gas in any `day`; `buyGas` fills the treasury up to it.
    pub gas_day_max_wei: u128,
    /// Wei up to which `refuel` tops operator and relay up; below half of it the agent asks for it.
    pub gas_target_wei: u128,
    /// Balance + escrow under it: starved.
    pub starve_floor: Usdc,
}

impl Limits {
    /// Whether a key with so many wei needs more.
    pub fn is_key_low(&self, wei: u128) -> bool {
        wei < self.gas_target_wei / 2
    }

    /// Whether a treasury with so many wei should buy more.
    pub fn is_treasury_low(&self, wei: u128) -> bool {
        wei < self.gas_day_max_wei / 2
    }
}

/// What the manifest asks for, as far as the treasury's limits let it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Wishes {
    /// Term of every lease, seconds.
    pub term: u32,
    /// Rent in escrow ahead of now, seconds: top-ups fill up to this.
    pub prepay_secs: u32,
    /// On top of the floor of the price, percent.
    pub margin_pct: u32,
    /// Least and most that one call may cost.
    pub min_call: Usdc,
    pub max_call: Usdc,
    /// The chain's block time, seconds, at least 1.
    pub block_secs: u32,
}

/// Everything that decisions depend on besides inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Policy {
    pub wishes: Wishes,
    /// Between two routine checkpoints, seconds.
    pub checkpoint_every: u32,
    /// A checkpoint comes earlier once the journal grew by so many records since the last one...
    pub checkpoint_records: u64,
    /// ...but not before so many seconds.
    pub checkpoint_least: u32,
    /// Rent in escrow ahead of now, seconds, at which a lease is topped up, or half of what may be prepaid if that is less.
    pub escrow_low: u32,
    /// Blocks for which a sent handover may still be mined.
    pub handover_valid_blocks: u32,
    /// A standby whose remaining share of its term is smaller is not moved onto, but replaced, percent.
    pub standby_fit_pct: u32,
    /// Share of the measured throughput assumed sold when the floor of the price is worked out, percent.
    pub utilisation_pct: u32,
    /// A prompt token's price as a share of a completion token's, percent.
    pub prompt_pct: u32,
    /// A prompt token's price where it was in the context already, as a share of one that is computed, percent; at most
    /// 100.
    pub cached_pct: u32,
    /// A token's price in a text that becomes a vector, as a share of a prompt token's, percent.
    pub embedding_pct: u32,
    /// Storage and gas, micro-USDC x 1e-6 per second.
    pub overhead_e6: u64,
    /// Tokens x 1e-3 per second until the first measurement.
    pub milli_tokens_per_sec: u64,
    /// Between two looks at demand, seconds.
    pub reprice_every: u32,
    /// What must be left to end in good order: seconds of the active host's rent.
    pub final_secs: u32,
    pub purse: Purse,
    /// Birth named a market where the treasury may buy gas.
    pub buys_gas: bool,
    pub archive: Archive,
    /// Instead of winding down when the money is nearly gone it lies down, and stewards wake it once it is funded.
    pub hibernates: bool,
}

impl Policy {
    /// The manifest's wishes with this project's temper. All percentages and cadences are choices, unmeasured.
    pub fn new(wishes: Wishes, timers: &Timers) -> Self {
        let real_hours = |hours: u32| {
            let secs = u64::from(hours) * 3_600 * u64::from(timers.day) / 86_400;
            // At most a few days of seconds.
            u32::try_from(secs).unwrap_or(u32::MAX)
        };
        // A successor reads what came since in segments, which are stored within seconds, so a checkpoint's age costs no
        // memory: it only delays a new memory key, and with it what deletion can promise. A commit costs 270,000 gas, so a
        // real day's agent makes one in three days (docs/concepts/fees.md). A scaled world's gas is worth nothing.
        let checkpoint_every = if timers.day < DAY_SECS { real_hours(1).max(5) } else { 3 * DAY_SECS };
        // As late as still leaves the host paid while nobody can top up: from an operator's last heartbeat until its
        // successor has restored. A provider's patience is not planned with.
        let escrow_low = timers.fence.saturating_add(timers.answer_time).saturating_add(timers.restore_timeout);
        Self {
            wishes,
            checkpoint_every,
            // No more segments than stewards keep headers of (20,000), at one record each, and no more than a successor
            // fetches in a few minutes. A guess; at the least price of a call these records earned a commit's gas often.
            checkpoint_records: 8_192,
            checkpoint_least: real_hours(1).max(5),
            escrow_low,
            handover_valid_blocks: 10,
            standby_fit_pct: 60,
            utilisation_pct: 30,
            // Prefill runs about five times as fast as decoding (docs/benchmarks.md).
            prompt_pct: 20,
            // Reading a kept beginning takes a copy in memory instead of prefill; the memory and the attention over it are
            // used all the same. Half is a choice, not a measurement (docs/decisions/0020).
            cached_pct: 50,
            // The embedding model reads 15.6 to 16.7 times as many tokens in a second of a core as the model that answers
            // (docs/benchmarks.md): a sixteenth, rounded up.
            embedding_pct: 7,
            overhead_e6: 0,
            milli_tokens_per_sec: 20_000,
            reprice_every: real_hours(1).max(10),
            final_secs: real_hours(6).max(2 * timers.answer_time),
            purse: Purse::default(),
            buys_gas: false,
            archive: Archive::default(),
            hibernates: false,
        }
    }

    /// Term of a lease that is taken under these limits, seconds.
    pub fn term(&self, limits: &Limits) -> u32 {
        self.wishes.term.min(limits.term_max)
    }

    /// Rent that is kept in escrow under these limits, seconds ahead of now.
    pub fn prepay_secs(&self, limits: &Limits) -> u32 {
        self.wishes.prepay_secs.min(limits.prepay_max)
    }

    /// Rent in escrow, seconds ahead of now, at which a lease is topped up.
    pub fn escrow_low(&self, limits: &Limits) -> u32 {
        self.escrow_low.min(self.prepay_secs(limits) / 2)
    }
}

/// With what a life begins. The same genesis and the same inputs give the same bytes.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Genesis {
    pub chain_id: u64,
    pub treasury: Address,
    pub timers: Timers,
    pub policy: Policy,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hosting::tests::{NOW, agent, view};
    use crate::{Input, Output, View};

    /// What it asks for at `now` with so many seconds of rent in escrow, in record `lsn`.
    fn asked(now: u64, lsn: u64, escrow_secs: u128) -> Vec<Output> {
        let mut agent = agent();
        agent.step(NOW, 1, Input::Block(Box::new(view(vec![]))));
        let mut later = View { timestamp: now, last_heartbeat: now, ..view(vec![]) };
        let active = later.active.as_mut().expect("it has a host");
        active.escrow_left = Usdc(escrow_secs * u128::from(active.price_e6) / 1_000_000);
        agent.step(now, lsn, Input::Block(Box::new(later)))
    }

    #[test]
    fn a_lease_is_topped_up_as_late_as_a_takeover_still_finds_it_paid() {
        let topped_up = |secs| {
            asked(NOW, 2, secs).into_iter().find_map(|output| match output {
                Output::TopUp { amount, .. } => Some(amount),
                _ => None,
            })
        };
        // Fence 5.5 h, answer 6 h, restore 1 h; two seconds' slack.
        assert_eq!(topped_up(44_998), None);
        assert_eq!(topped_up(44_997), Some(Usdc(10 * (172_800 - 44_997))));
    }

    #[test]
    fn a_real_day_checkpoints_every_third_one_unless_the_journal_grew_long() {
        let commits = |secs, lsn| asked(NOW + secs, lsn, 172_800).contains(&Output::Checkpoint);
        let days = 3 * u64::from(DAY_SECS);
        assert!(!commits(days - 1, 2) && commits(days, 2));
        assert!(!commits(3_600, 8_192) && commits(3_600, 8_193) && !commits(3_599, 8_193));
    }

    #[test]
    fn a_scaled_day_keeps_its_hourly_checkpoint() {
        let (timers, _) = Timers::scaled(2_400);
        let policy = Policy::new(agent().genesis().policy.wishes, &timers);
        assert_eq!((policy.checkpoint_every, policy.checkpoint_least), (100, 100));
    }
}
