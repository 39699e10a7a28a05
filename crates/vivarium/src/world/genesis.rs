//! What a new development world is like: prices, sums, limits. Amounts per day are the same in a scaled world,
//! only its days are shorter.

use super::model::{Checked, Model};
use alloy::primitives::Address;
use anyhow::{Result, ensure};
use economy::{DAY_SECS, Timers, Usdc};
use host::config::{OfferConfig, Reprice};
use node::manifest::{Manifest, Steward};
use serde::{Deserialize, Serialize};

pub const STEWARDS: u16 = 3;
pub const THRESHOLD: u8 = 2;
pub const PROVIDERS: u16 = 2;
/// Micro-USDC that the two providers ask for a day. Choices: what a small virtual machine costs.
const ASKED_A_DAY: [u64; 2] = [600_000, 800_000];
/// How far quotes move around that. Wide enough that the cheaper provider is not always the same.
const REPRICE_SPREAD_PCT: u32 = 30;
/// Price cap of a lease, micro-USDC a day.
const PRICE_A_DAY_MAX: u64 = 2_000_000;
/// Gross commitments a day: two hosts prepaid two days each at the cap, and refunds.
const DAY_LIMIT: Usdc = Usdc(10_000_000);
const STARVE_FLOOR: Usdc = Usdc(1_000_000);
/// The market's least stake, and what each provider puts down.
pub const STAKE: Usdc = Usdc(50_000_000);
pub const PROVIDER_USDC: Usdc = Usdc(100_000_000);
/// Test money costs nothing: the customer of a world never runs dry.
pub const CUSTOMER_USDC: Usdc = Usdc(10_000_000_000);
const ETHER: u128 = 1_000_000_000_000_000_000;
/// Wei that everybody who sends transactions gets.
pub const ACCOUNT_WEI: u128 = 100 * ETHER;
const GAS_TARGET_WEI: u128 = ETHER / 20;
const GAS_DAY_MAX_WEI: u128 = ETHER / 2;
/// As a manifest that says nothing of it.
const RELAY_MAX_WEI: u128 = ETHER / 10_000;
const DELAY_DAYS: u32 = 7;
/// Least and most that one call may cost in real days, micro-USDC.
const CALL_MIN: u128 = 1_000;
const CALL_MAX: u128 = 50_000;
/// What a transaction of its own adds to it: a settlement's gas on a public roll-up (docs/concepts/fees.md).
const SETTLEMENT: u128 = 1_400;
const MANDATE_DAYS: u32 = 365;
/// The agent's own memory and its engine's, with room for the model's pages.
const TENANT_MEMORY_MIB: u32 = 2_048;

/// What the user chose; fixed for the life of a world.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Choices {
    /// Seconds of a day.
    pub day_secs: u32,
    pub lease_days: u32,
    pub seed_uusdc: u128,
    #[serde(default)]
    pub settle_after_uusdc: u128,
    #[serde(default)]
    pub hibernates: bool,
}

impl Default for Choices {
    fn default() -> Self {
        Self { day_secs: DAY_SECS, lease_days: 30, seed_uusdc: 100_000_000, settle_after_uusdc: 0, hibernates: false }
    }
}

impl Choices {
    /// Refuses a world whose timers cannot work, before anything is started.
    pub fn check(&self) -> Result<()> {
        ensure!((10..=DAY_SECS).contains(&self.day_secs), "--day {} s: a day lasts 10 s to 24 h", self.day_secs);
        ensure!((1..=30).contains(&self.lease_days), "--lease {} days: a lease lasts 1 to 30 days", self.lease_days);
        let (timers, _) = Timers::scaled(self.day_secs);
        let block_secs = super::anvil::BLOCK_SECS;
        timers.check(self.term_secs(), block_secs).map_err(|e| {
            anyhow::anyhow!(
                "{e}; take a longer --lease (now {} days of {} s) or a longer --day",
                self.lease_days,
                self.day_secs
            )
        })?;
        let least = DAY_LIMIT.micro() / 2;
        ensure!(
            self.seed_uusdc >= least,
            "--seed-usdc: {} is too little to rent the first hosts; give at least {}",
            Usdc(self.seed_uusdc),
            Usdc(least)
        );
        Ok(())
    }

    pub fn term_secs(&self) -> u32 {
        self.lease_days * self.day_secs
    }

    /// How many times faster than a real one this world's days pass, rounded down.
    pub fn speed(&self) -> u32 {
        DAY_SECS / self.day_secs
    }

    /// What provider `index` offers.
    pub fn offer(&self, index: usize) -> OfferConfig {
        OfferConfig {
            price_e6: self.price_e6(ASKED_A_DAY[index]),
            capacity: 4,
            min_term: self.day_secs,
            max_term: 30 * self.day_secs,
            memory_mib: TENANT_MEMORY_MIB,
            milli_cpu: 1_000,
        }
    }

    /// Providers quote anew for each term.
    pub fn reprice(&self, index: usize) -> Reprice {
        Reprice {
            every_secs: u64::from(self.term_secs()),
            spread_pct: REPRICE_SPREAD_PCT,
            seed: u64::try_from(index).unwrap_or(0) + 1,
        }
    }

    /// Micro-USDC a day as the market's price: 1e-6 micro-USDC per second.
    fn price_e6(&self, a_day: u64) -> u64 {
        a_day * 1_000_000 / u64::from(self.day_secs)
    }
}

/// Who and what an agent's manifest names. Every key is this world's own.
pub struct Names<'a> {
    pub stewards: Vec<Steward>,
    pub beneficiary: Address,
    pub code_cid: String,
    pub model: Weights<'a>,
    pub embedding: Weights<'a>,
    pub store_url: String,
}

/// A model, as it was found and stored.
pub struct Weights<'a> {
    pub cid: String,
    pub model: &'a Model,
    pub checked: &'a Checked,
}

impl Weights<'_> {
    fn named(self) -> node::manifest::Model {
        node::manifest::Model {
            name: self.model.name.clone(),
            cid: self.cid,
            file: self.checked.file.clone(),
            sha256: self.checked.sha256.clone(),
            bytes: self.checked.bytes,
            context: self.model.context,
        }
    }
}

/// The manifest of a world's agent.
pub fn manifest(choices: &Choices, names: Names) -> Manifest {
    let Names { mut stewards, beneficiary, code_cid, model, embedding, store_url } = names;
    // A fast world has fewer calls in a day, so each may cost more; up to a hundred times is enough.
    let dearer = u128::from(choices.speed().clamp(1, 100));
    stewards.sort_by_key(|steward| steward.address);
    Manifest {
        name: "vivarium-1".to_owned(),
        code_cid,
        beneficiary,
        threshold: THRESHOLD,
        safe: None,
        mandate_days: MANDATE_DAYS,
        lease_days: choices.lease_days,
        prepay_days: 2,
        day_secs: choices.day_secs,
        exposure_uusdc_max: 10 * CALL_MAX * dearer,
        day_limit_uusdc: DAY_LIMIT.micro(),
        price_e6_max: choices.price_e6(PRICE_A_DAY_MAX),
        starve_floor_uusdc: STARVE_FLOOR.micro(),
        gas_target_wei: GAS_TARGET_WEI,
        gas_day_max_wei: GAS_DAY_MAX_WEI,
        margin_pct: 20,
        min_call_uusdc: CALL_MIN * dearer.min(10),
        max_call_uusdc: CALL_MAX * dearer,
        settlement_uusdc: SETTLEMENT,
        daemons_rescue: true,
        hibernates: choices.hibernates,
        delay_days: DELAY_DAYS,
        // A fast world has a checkpoint each few seconds: its stewards work for nothing.
        duty_pay_uusdc: 0,
        duty_day_max_uusdc: 0,
        relay_max_wei: RELAY_MAX_WEI,
        purse_uusdc_max: 0,
        store_urls: vec![store_url],
        models_bytes_max: None,
        ceilings: None,
        gas_market: None,
        archive: node::manifest::Archive::default(),
        payments: node::manifest::Payments {
            settle_after_uusdc: choices.settle_after_uusdc,
            ..node::manifest::Payments::default()
        },
        per_call: node::manifest::PerCall::default(),
        model: model.named(),
        adapters: Vec::new(),
        embedding: Some(embedding.named()),
        models: Vec::new(),
        suppliers: Vec::new(),
        stewards,
    }
}
