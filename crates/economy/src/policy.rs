//! What the agent may do and how it chooses: limits fixed at birth and the few constants of its temper.

use crate::money::{Address, Usdc};
use crate::timers::Timers;
use borsh::{BorshDeserialize, BorshSerialize};

/// The limits of the manifest. The Treasury enforces those that cost money again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Limits {
    /// Gross commitments in any `day`.
    pub day_limit: Usdc,
    /// Price cap of a lease, micro-USDC x 1e-6 per second.
    pub price_e6_max: u64,
    /// Term of every lease, seconds.
    pub term: u32,
    /// Rent in escrow ahead of now, seconds: top-ups keep it between half of this and this.
    pub prepay_secs: u32,
    /// Wei up to which `refuel` tops operator and relay up; below half of it the agent asks for it.
    pub gas_target_wei: u128,
    /// Balance + escrow under it: starved.
    pub starve_floor: Usdc,
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
    pub limits: Limits,
    /// Between two routine checkpoints, seconds.
    pub checkpoint_every: u32,
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
}

impl Policy {
    /// The manifest's limits with this project's temper. All percentages and cadences are choices, unmeasured.
    pub fn new(limits: Limits, timers: &Timers) -> Self {
        let real_hours = |hours: u32| {
            let secs = u64::from(hours) * 3_600 * u64::from(timers.day) / 86_400;
            // At most a few days of seconds.
            u32::try_from(secs).unwrap_or(u32::MAX)
        };
        Self {
            limits,
            checkpoint_every: real_hours(1).max(5),
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
        }
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
