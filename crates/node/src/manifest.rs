//! The manifest: what the agent is. Written by the creator, named on chain by its digest, never changed.

mod further;

pub use further::{Further, Kind, booked_by};

use crate::error::{Error, Result};
use alloy::primitives::Address;
use pay::{RiskPolicy, Usdc};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use store::arweave::{Arweave, TxId};
use store::cid::Cid;

/// Longest manifest accepted, so that it stays one raw block.
const MANIFEST_BYTES_MAX: usize = 64 << 10;
const LEASE_DAYS_MAX: u32 = 30;
const PREPAY_DAYS_MAX: u32 = 2;

/// Unknown keys are refused: a manifest is read by strangers who must all read the same thing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    pub name: String,
    /// CID of the code directory {vivarium, vivarium-engine}, with `vivarium-engine.CLASS` for classes of processors if there
    /// are such.
    pub code_cid: String,
    /// Who pulls what is left after the end.
    pub beneficiary: Address,
    /// Signatures a quorum needs.
    pub threshold: u8,
    /// The Safe that is the one steward on chain: `stewards` are its owners, `threshold` is its own. Without it they are
    /// stewards themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub safe: Option<Address>,
    pub mandate_days: u32,
    pub lease_days: u32,
    #[serde(default = "prepay_days")]
    pub prepay_days: u32,
    /// Seconds in a day; anything but 86400 is a development world in fast motion.
    #[serde(default = "day_secs")]
    pub day_secs: u32,
    /// Income that may rest on one host's disk alone, micro-USDC.
    #[serde(with = "decimal")]
    pub exposure_uusdc_max: u128,
    #[serde(with = "decimal")]
    pub day_limit_uusdc: u128,
    /// Price cap of a lease, micro-USDC x 1e-6 per second.
    pub price_e6_max: u64,
    #[serde(with = "decimal")]
    pub starve_floor_uusdc: u128,
    #[serde(with = "decimal")]
    pub gas_target_wei: u128,
    #[serde(with = "decimal")]
    pub gas_day_max_wei: u128,
    pub margin_pct: u32,
    #[serde(with = "decimal")]
    pub min_call_uusdc: u128,
    #[serde(with = "decimal")]
    pub max_call_uusdc: u128,
    /// What a transaction of its own adds to a call's price (`exact`, `upto`), micro-USDC: its gas.
    #[serde(with = "decimal", default = "settlement_uusdc")]
    pub settlement_uusdc: u128,
    /// Whether the stewards' daemons may rescue the agent from silence without asking a person: fixed on chain at birth.
    #[serde(default = "daemons_rescue")]
    pub daemons_rescue: bool,
    /// Whether the agent lies down instead of winding down when its money is nearly gone: without hosts and without an
    /// operator, until stewards wake it because somebody has funded it, or until its mandate ends.
    #[serde(default, skip_serializing_if = "is_false")]
    pub hibernates: bool,
    /// Days that new code, looser limits and new stewards wait once the quorum ordered them. 0: none of it, ever; then a
    /// steward that is lost is never replaced.
    #[serde(default = "delay_days")]
    pub delay_days: u32,
    /// To each steward whose acknowledgement a checkpoint carries, micro-USDC. 0: stewards work for nothing.
    #[serde(with = "decimal", default)]
    pub duty_pay_uusdc: u128,
    /// Of that in any day, all stewards together. It counts in the day limit.
    #[serde(with = "decimal", default)]
    pub duty_day_max_uusdc: u128,
    /// Gas that comes back at most to whoever relays a quorum's order or a takeover, wei. 0: nothing.
    #[serde(with = "decimal", default = "relay_max_wei")]
    pub relay_max_wei: u128,
    /// Most that lies in the purse at once, micro-USDC: what suppliers are paid from, and what a thief of the operator's
    /// key gets at once. Fixed on chain at birth. 0: no purse.
    #[serde(with = "decimal", default, skip_serializing_if = "is_zero")]
    pub purse_uusdc_max: u128,
    pub store_urls: Vec<String>,
    /// Most memory that `models` take together while they are loaded, bytes. None: three quarters of what the host
    /// gives, less what the engines of `model` and `embedding` take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub models_bytes_max: Option<u64>,
    /// What the stewards' `loosen` reaches at most, after `delay_days`: fixed on chain at birth. None: no limit ever
    /// rises, not even back to where it was before a `tighten`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ceilings: Option<Ceilings>,
    /// Where the treasury buys ETH when it has less than half of `gas_day_max_wei`: fixed on chain at birth. None: it never
    /// does, and lives as long as the ETH that it was born with, and what others send.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gas_market: Option<GasMarket>,
    #[serde(default, skip_serializing_if = "Archive::is_default")]
    pub archive: Archive,
    #[serde(default, skip_serializing_if = "Payments::is_default")]
    pub payments: Payments,
    #[serde(default, skip_serializing_if = "PerCall::is_default")]
    pub per_call: PerCall,
    pub model: Model,
    /// Adapters of `model`: a request for `MODEL:ADAPTER` is answered with one on. Empty: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub adapters: Vec<Adapter>,
    /// Turns texts into vectors. None: the agent does not sell them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub embedding: Option<Model>,
    /// Loaded when a request names one, and let go when others need the memory.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub models: Vec<Further>,
    /// Whose answers this agent sells beside its own. Needs `purse_uusdc_max`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub suppliers: Vec<Supplier>,
    pub stewards: Vec<Steward>,
}

/// One for each limit that an order can change, under its own name: all of them, so that nobody has to know what is
/// meant by one that is left out. A ceiling that equals its limit only lets a `tighten` be taken back.
/// `starve_floor_uusdc` has none: no order changes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ceilings {
    #[serde(with = "decimal")]
    pub day_limit_uusdc: u128,
    pub price_e6_max: u64,
    pub lease_days: u32,
    pub prepay_days: u32,
    #[serde(with = "decimal")]
    pub gas_target_wei: u128,
    #[serde(with = "decimal")]
    pub gas_day_max_wei: u128,
}

impl Ceilings {
    /// Whether `own` limits lie below them, and they within what any agent may have.
    fn check(&self, own: &Manifest) -> std::result::Result<(), String> {
        if own.delay_days == 0 {
            return Err("`ceilings` with `delay_days` = 0: limits would never be loosened to them".to_owned());
        }
        for (name, ceiling, limit) in [
            ("day_limit_uusdc", self.day_limit_uusdc, own.day_limit_uusdc),
            ("price_e6_max", self.price_e6_max.into(), own.price_e6_max.into()),
            ("lease_days", self.lease_days.into(), own.lease_days.into()),
            ("prepay_days", self.prepay_days.into(), own.prepay_days.into()),
            ("gas_target_wei", self.gas_target_wei, own.gas_target_wei),
            ("gas_day_max_wei", self.gas_day_max_wei, own.gas_day_max_wei),
        ] {
            if ceiling < limit {
                return Err(format!("`ceilings.{name}` = {ceiling} lies below `{name}` = {limit}"));
            }
        }
        if self.lease_days > LEASE_DAYS_MAX {
            return Err(format!("`ceilings.lease_days` = {}; a lease lasts 1 to 30 days", self.lease_days));
        }
        match self.prepay_days > PREPAY_DAYS_MAX {
            true => Err(format!("`ceilings.prepay_days` = {}; escrow is prepaid 1 or 2 days", self.prepay_days)),
            false => Ok(()),
        }
    }
}

/// A pool of Uniswap v3 behind its SwapRouter02, and the feeds that tell whether its price is honest. The contract trusts
/// none of them alone: what the pool gives must be what the oracle says less `slippage_bps`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GasMarket {
    /// SwapRouter02.
    pub router: Address,
    /// Wrapped ETH, which the pool gives.
    pub weth: Address,
    /// Dollars for an ether, of Chainlink's kind.
    pub oracle: Address,
    /// The chain's uptime feed, of Chainlink's kind. None: the chain has no sequencer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequencer: Option<Address>,
    /// Which pool of token and ether, by its fee in hundredths of a basis point.
    pub pool_fee: u32,
    /// What the pool may give less than the oracle says, hundredths of a percent.
    #[serde(default = "slippage_bps")]
    pub slippage_bps: u16,
    /// A price that is older is none, seconds.
    pub stale_after_secs: u32,
}

impl GasMarket {
    fn check(&self) -> std::result::Result<(), String> {
        for (name, at) in [("router", self.router), ("weth", self.weth), ("oracle", self.oracle)] {
            if at.is_zero() {
                return Err(format!("`gas_market.{name}` is nobody"));
            }
        }
        if self.pool_fee == 0 || self.pool_fee >= 1_000_000 {
            return Err(format!(
                "`gas_market.pool_fee` = {}; a pool's fee lies between 1 and 999999 (100 % is 1000000)",
                self.pool_fee
            ));
        }
        if self.slippage_bps > SLIPPAGE_BPS_MAX {
            return Err(format!("`gas_market.slippage_bps` = {}; the contract takes at most 1000", self.slippage_bps));
        }
        match self.stale_after_secs {
            0 => Err("`gas_market.stale_after_secs` = 0: every price would be too old".to_owned()),
            _ => Ok(()),
        }
    }
}

/// As the contract checks it at birth.
const SLIPPAGE_BPS_MAX: u16 = 1_000;

/// What lies on Arweave as well, asked when no store brings it; and who is paid to put the agent's memory there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Archive {
    /// Nodes or gateways, in order of preference; none of them is believed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub gateways: Vec<String>,
    /// The archivist's address (`vivarium store arweave sell`), which birth makes a payee for storage. None: nobody is
    /// paid, and the memory lies in the stores alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payee: Option<Address>,
    /// Where the archivist serves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Most that it is paid in any day, micro-USDC: fixed on chain at birth. It counts in the day limit. A price above it
    /// is not paid.
    #[serde(with = "decimal", skip_serializing_if = "is_archive_day_default")]
    pub uusdc_per_day_max: u128,
    /// Days between two copies.
    #[serde(skip_serializing_if = "is_archive_days_default")]
    pub every_days: u32,
    /// Root CID → the transaction whose data is the CAR file of what lies below it.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub transactions: BTreeMap<String, String>,
}

/// Half a dollar: some tens of megabytes at what a gigabyte cost in 2025. A guess; archivists and prices differ.
const ARCHIVE_UUSDC_PER_DAY: u128 = 500_000;
/// A lease of the longest term. A copy is for the day when all stores are gone, not for a move.
const ARCHIVE_EVERY_DAYS: u32 = 30;
const ARCHIVE_URL_BYTES_MAX: usize = 256;
/// A year.
const ARCHIVE_EVERY_DAYS_MAX: u32 = 366;

fn is_archive_day_default(amount: &u128) -> bool {
    *amount == ARCHIVE_UUSDC_PER_DAY
}

fn is_archive_days_default(days: &u32) -> bool {
    *days == ARCHIVE_EVERY_DAYS
}

impl Default for Archive {
    fn default() -> Self {
        Self {
            gateways: Vec::new(),
            payee: None,
            url: None,
            uusdc_per_day_max: ARCHIVE_UUSDC_PER_DAY,
            every_days: ARCHIVE_EVERY_DAYS,
            transactions: BTreeMap::new(),
        }
    }
}

impl Archive {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// The transaction that holds `root`, and where to ask for it.
    pub fn of(&self, http: &net::Client, root: &Cid) -> Option<(Arweave, TxId)> {
        let named = self.transactions.iter().find(|(cid, _)| store::cid::parse(cid).is_ok_and(|cid| cid == *root));
        let id = named.and_then(|(_, id)| TxId::parse(id).ok())?;
        Some((Arweave::new(http.clone(), self.gateways.clone()), id))
    }

    fn check(&self, day_limit_uusdc: u128) -> std::result::Result<(), String> {
        self.check_archivist(day_limit_uusdc)?;
        for (cid, id) in &self.transactions {
            store::cid::parse(cid).map_err(|e| format!("`archive.transactions`: {e}"))?;
            TxId::parse(id).map_err(|e| format!("`archive.transactions`, {cid}: {e}"))?;
        }
        match self.gateways.is_empty() && !self.transactions.is_empty() {
            true => Err("`archive.gateways` needs one that has the transactions".to_owned()),
            false => Ok(()),
        }
    }

    fn check_archivist(&self, day_limit_uusdc: u128) -> std::result::Result<(), String> {
        let (day, days) = (self.uusdc_per_day_max, self.every_days);
        let Some(payee) = self.payee else {
            let is_meant = self.url.is_some() || !is_archive_day_default(&day) || !is_archive_days_default(&days);
            return match is_meant {
                true => {
                    Err("`archive.url`, `archive.uusdc_per_day_max` and `archive.every_days` are for an archivist: \
                             `archive.payee` names none, and nobody would be paid"
                        .to_owned())
                }
                false => Ok(()),
            };
        };
        if payee.is_zero() {
            return Err("`archive.payee` is nobody".to_owned());
        }
        let Some(url) = &self.url else {
            return Err(format!("`archive.url` is missing: nobody could ask the archivist {payee} for a price"));
        };
        if !url.starts_with("http://") || url.len() > ARCHIVE_URL_BYTES_MAX {
            return Err(format!("`archive.url` = `{url}`; it begins with http:// and has at most 256 bytes"));
        }
        if day == 0 || day > day_limit_uusdc {
            return Err(format!(
                "`archive.uusdc_per_day_max` = {day}; it must be above 0 and not above `day_limit_uusdc` = \
                 {day_limit_uusdc}"
            ));
        }
        match (1..=ARCHIVE_EVERY_DAYS_MAX).contains(&days) {
            true => Ok(()),
            false => Err(format!("`archive.every_days` = {days}; it must lie between 1 and {ARCHIVE_EVERY_DAYS_MAX}")),
        }
    }
}

/// How customers may pay, beyond what every agent takes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Payments {
    /// Factories whose calls the relay sends for payers that do not exist yet (ERC-6492). Empty: none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub factories: Vec<Address>,
    /// Another's facilitator (x402 `/settle`) for `exact`, once the answer is made, and for deposits into channels. Whatever
    /// it says, the chain is asked; when it fails the relay sends. None: the relay sends everything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub facilitator_url: Option<String>,
    /// Most that may be open at once, micro-USDC, for `exact` payments to be settled *after* they were served, in batches:
    /// what payers with a paid call here could keep by emptying their accounts meanwhile. 0: none is.
    #[serde(with = "decimal", skip_serializing_if = "is_zero")]
    pub settle_after_uusdc: u128,
    /// A payment with a transaction of its own that is above this, micro-USDC, is final before anything of its answer
    /// leaves; up to it, mined is enough. 0: all of them. What a reorganisation of the chain may take of one call. The
    /// default is above what a call of most agents costs, so that none waits.
    #[serde(with = "decimal", skip_serializing_if = "is_final_above_default")]
    pub final_above_uusdc: u128,
    /// Blocks that a settlement is under when it is final, its own counted. 1: mined is final.
    #[serde(skip_serializing_if = "is_final_blocks_default")]
    pub final_blocks: u32,
    /// What a million bytes of stored conversation (`store: true`) cost once, micro-USDC: of the text of all its turns, as
    /// its customer can count it; sealing adds some hundred bytes to each. 0: nothing. The default is a guess, unmeasured.
    #[serde(with = "decimal", skip_serializing_if = "is_storage_default")]
    pub storage_uusdc_per_mbyte: u128,
}

/// A dollar for a thousand megabytes, which are kept until the customer deletes them or ten thousand newer ones came.
const STORAGE_UUSDC_PER_MBYTE: u128 = 1_000;

fn is_storage_default(price: &u128) -> bool {
    *price == STORAGE_UUSDC_PER_MBYTE
}

/// A dollar.
const FINAL_ABOVE_UUSDC: u128 = 1_000_000;
/// Twenty seconds of Base, ten of a development chain. Base says that one of its blocks was ever taken back, and none
/// that was two minutes old and so on Ethereum (docs.base.org, Transaction Finality, November 2026). A choice.
const FINAL_BLOCKS: u32 = 10;
/// Two minutes of Base. No customer waits for its answer longer than that.
const FINAL_BLOCKS_MAX: u32 = 60;

fn is_final_above_default(amount: &u128) -> bool {
    *amount == FINAL_ABOVE_UUSDC
}

fn is_final_blocks_default(blocks: &u32) -> bool {
    *blocks == FINAL_BLOCKS
}

impl Default for Payments {
    fn default() -> Self {
        Self {
            factories: Vec::new(),
            facilitator_url: None,
            settle_after_uusdc: 0,
            final_above_uusdc: FINAL_ABOVE_UUSDC,
            final_blocks: FINAL_BLOCKS,
            storage_uusdc_per_mbyte: STORAGE_UUSDC_PER_MBYTE,
        }
    }
}

impl Payments {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }

    pub fn risk(&self) -> RiskPolicy {
        RiskPolicy {
            settle_after: Usdc(self.settle_after_uusdc),
            final_above: Usdc(self.final_above_uusdc),
            final_blocks: self.final_blocks,
        }
    }
}

/// Prices of what is sold by the call and not by the token, micro-USDC. Zero, where the manifest is silent: what the
/// longest usual call costs by the meter of the day (`api::sale::Flat`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PerCall {
    /// A text that is classified.
    #[serde(with = "decimal", skip_serializing_if = "is_zero")]
    pub classify_uusdc: u128,
    /// A text that JSON is taken out of.
    #[serde(with = "decimal", skip_serializing_if = "is_zero")]
    pub extract_uusdc: u128,
    /// An answer that is made again.
    #[serde(with = "decimal", skip_serializing_if = "is_zero")]
    pub verify_uusdc: u128,
}

impl PerCall {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// The name customers put into `model`.
    pub name: String,
    pub cid: String,
    pub file: String,
    /// Of the whole file, for people who compare it with what its publisher says; birth takes it and the CID of the same
    /// bytes. Hosts check by the CID (docs/decisions/0038).
    pub sha256: String,
    pub bytes: u64,
    /// Context length in tokens; of an embedding model the longest text.
    pub context: u32,
}

/// A LoRA adapter of the model, a GGUF file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Adapter {
    /// What customers write behind the model's name and a colon.
    pub name: String,
    pub cid: String,
    pub file: String,
    pub sha256: String,
    pub bytes: u64,
}

/// Another agent, whose answers are bought one by one as customers ask for them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Supplier {
    /// What customers of this agent put into `model`.
    pub model: String,
    /// The other agent: who is paid, and by whose lease it is found.
    pub treasury: Address,
    /// What it calls that model. None: the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub supplier_model: Option<String>,
    /// Most that one of its answers may cost, micro-USDC. The price here is made of it.
    #[serde(with = "decimal")]
    pub max_uusdc_per_call: u128,
    /// Most that is signed over to it in a day, micro-USDC.
    #[serde(with = "decimal")]
    pub max_uusdc_per_day: u128,
}

/// Each is tried at the engine's start and takes memory beside the model. A guess.
const ADAPTERS_MAX: usize = 16;
/// Far more names than anybody reads; each has a record of what was signed.
const SUPPLIERS_MAX: usize = 16;

impl Supplier {
    /// What one of its answers costs here, micro-USDC: the most that it may cost this agent, and on top the manifest's
    /// margin of that, rounded up, or the least price of a call, whichever is more. So no call is sold below its cost.
    pub fn price_uusdc_up(&self, manifest: &Manifest) -> u128 {
        let most = self.max_uusdc_per_call;
        let margin = most.saturating_mul(u128::from(manifest.margin_pct)).div_ceil(100);
        most.saturating_add(margin.max(manifest.min_call_uusdc))
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Steward {
    pub address: Address,
    pub url: String,
    /// Age recipient to which this steward's share of the memory key is sealed.
    pub share_recipient: String,
}

/// How independent the stewards are, as every surface that names them says. Today their own word for it is all there
/// is: nothing on chain or here shows that two addresses are two people, and nothing could (docs/decisions/0025).
pub const INDEPENDENCE: &str = "self-declared";

fn is_zero(amount: &u128) -> bool {
    *amount == 0
}
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands it over so")]
fn is_false(is: &bool) -> bool {
    !is
}
fn prepay_days() -> u32 {
    2
}
fn day_secs() -> u32 {
    86_400
}
/// 110,942 gas (`settleExact`) at Base's 0.005 gwei and $2,500 an ETH, rounded up: docs/concepts/fees.md, November 2026.
fn settlement_uusdc() -> u128 {
    1_400
}
fn daemons_rescue() -> bool {
    true
}
/// Long enough for people to read what was queued and to leave, short enough to replace a lost key. A choice.
fn delay_days() -> u32 {
    7
}
/// The pool's fee of 0.05 % and half a percent of movement of the price, which the feeds of roll-ups report.
fn slippage_bps() -> u16 {
    100
}
/// The dearest order (`rescue`, 460,000 gas) up to 0.2 gwei, forty times Base's floor: 0.0001 ETH.
fn relay_max_wei() -> u128 {
    100_000_000_000_000
}

impl Manifest {
    /// Term of a lease that a quorum's `loosen` can reach, days.
    pub fn longest_lease_days(&self) -> u32 {
        self.ceilings.as_ref().map_or(self.lease_days, |most| most.lease_days)
    }

    /// Prepaid rent that a quorum's `loosen` can reach, days.
    pub fn longest_prepay_days(&self) -> u32 {
        self.ceilings.as_ref().map_or(self.prepay_days, |most| most.prepay_days)
    }

    pub fn parse(text: &str) -> Result<Self> {
        if text.len() > MANIFEST_BYTES_MAX {
            return Err(Error::usage(format!(
                "the manifest is {} bytes long; the limit is {MANIFEST_BYTES_MAX}",
                text.len()
            )));
        }
        let manifest: Self = toml::from_str(text).map_err(|e| {
            Error::usage(format!("the manifest does not parse: {}", e.to_string().trim().replace('\n', " ")))
        })?;
        manifest.check()?;
        Ok(manifest)
    }

    pub fn to_toml(&self) -> Result<String> {
        toml::to_string(self).map_err(|e| Error::bug("the manifest cannot be written as TOML").caused_by(e))
    }

    fn check(&self) -> Result<()> {
        let refuse = |what: String| Err(Error::usage(format!("the manifest is refused: {what}")));
        if self.name.is_empty() || self.name.len() > 64 {
            return refuse("`name` must have 1 to 64 bytes".into());
        }
        if self.lease_days == 0 || self.lease_days > LEASE_DAYS_MAX {
            return refuse(format!("`lease_days` = {}; a lease lasts 1 to 30 days", self.lease_days));
        }
        if self.prepay_days == 0 || self.prepay_days > PREPAY_DAYS_MAX {
            return refuse(format!("`prepay_days` = {}; escrow is prepaid 1 or 2 days", self.prepay_days));
        }
        if self.day_secs < 10 || self.day_secs > 86_400 {
            return refuse(format!("`day_secs` = {}; it must lie between 10 and 86400", self.day_secs));
        }
        if self.stewards.is_empty() {
            return refuse("there is no agent without stewards".into());
        }
        if usize::from(self.threshold) > self.stewards.len() || self.threshold == 0 {
            return refuse(format!("`threshold` = {} of {} stewards", self.threshold, self.stewards.len()));
        }
        if self.stewards.len() > 1 && self.threshold < 2 {
            return refuse("with several stewards `threshold` is at least 2, so that no single one can act".into());
        }
        if self.stewards.windows(2).any(|w| w[0].address >= w[1].address) {
            return refuse("`stewards` must be in ascending order of address, each once".into());
        }
        if self.min_call_uusdc == 0 || self.min_call_uusdc > self.max_call_uusdc {
            return refuse("`min_call_uusdc` must be above 0 and not above `max_call_uusdc`".into());
        }
        let per_call = &self.per_call;
        for (name, price) in [
            ("classify_uusdc", per_call.classify_uusdc),
            ("extract_uusdc", per_call.extract_uusdc),
            ("verify_uusdc", per_call.verify_uusdc),
        ] {
            if price != 0 && !(self.min_call_uusdc..=self.max_call_uusdc).contains(&price) {
                return refuse(format!(
                    "`per_call.{name}` = {price}; like every call it costs `min_call_uusdc` = {} to \
                     `max_call_uusdc` = {}",
                    self.min_call_uusdc, self.max_call_uusdc
                ));
            }
        }
        for (what, model) in [("model", Some(&self.model)), ("embedding", self.embedding.as_ref())] {
            let Some(model) = model else { continue };
            if model.sha256.len() != 64 || !model.sha256.bytes().all(|b| b.is_ascii_hexdigit()) {
                return refuse(format!("`{what}.sha256` must have 64 hex digits"));
            }
        }
        if self.embedding.as_ref().is_some_and(|e| e.name == self.model.name || e.file == self.model.file) {
            return refuse("`embedding` must have another name and another file than `model`".into());
        }
        if let Err(why) = self.check_further() {
            return refuse(why);
        }
        if let Err(why) = self.check_adapters() {
            return refuse(why);
        }
        if self.duty_pay_uusdc > self.duty_day_max_uusdc || self.duty_day_max_uusdc > self.day_limit_uusdc {
            return refuse(
                "`duty_pay_uusdc` must not be above `duty_day_max_uusdc`, nor that above `day_limit_uusdc`: nobody \
                 would ever be paid, or all of the day would go to the stewards"
                    .into(),
            );
        }
        if self.delay_days > 365 {
            return refuse(format!("`delay_days` = {}; a year is the longest", self.delay_days));
        }
        if let Some(Err(why)) = self.ceilings.as_ref().map(|ceilings| ceilings.check(self)) {
            return refuse(why);
        }
        if let Some(Err(why)) = self.gas_market.as_ref().map(GasMarket::check) {
            return refuse(why);
        }
        if self.store_urls.is_empty() {
            return refuse("`store_urls` needs at least one content store".into());
        }
        if !(1..=FINAL_BLOCKS_MAX).contains(&self.payments.final_blocks) {
            return refuse(format!(
                "`payments.final_blocks` = {}; it must lie between 1 (mined is final) and {FINAL_BLOCKS_MAX}, since \
                 customers wait for it",
                self.payments.final_blocks
            ));
        }
        if let Err(why) = self.archive.check(self.day_limit_uusdc) {
            return refuse(why);
        }
        self.check_suppliers().or_else(refuse)
    }

    /// What a call of the dearest supplier may cost, micro-USDC; 0: there is none.
    pub fn dearest_supplier_uusdc(&self) -> u128 {
        self.suppliers.iter().map(|supplier| supplier.max_uusdc_per_call).max().unwrap_or(0)
    }

    /// The names that requests for this agent's own answers may have, and the adapter that each has on.
    pub fn own_models(&self) -> impl Iterator<Item = (String, Option<usize>)> {
        let adapted = self.adapters.iter().enumerate();
        let adapted = adapted.map(|(at, adapter)| (format!("{}:{}", self.model.name, adapter.name), Some(at)));
        std::iter::once((self.model.name.clone(), None)).chain(adapted)
    }

    fn check_adapters(&self) -> std::result::Result<(), String> {
        if self.adapters.len() > ADAPTERS_MAX {
            return Err(format!("`adapters` has {} entries; the limit is {ADAPTERS_MAX}", self.adapters.len()));
        }
        let (mut names, mut files) = (BTreeSet::new(), BTreeSet::from([self.model.file.as_str()]));
        files.extend(self.embedding.as_ref().map(|embedding| embedding.file.as_str()));
        for (index, adapter) in self.adapters.iter().enumerate() {
            let field = |name: &str| format!("`adapters[{index}].{name}`");
            let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
            if adapter.name.is_empty() || adapter.name.len() > 64 || !adapter.name.bytes().all(is_plain) {
                return Err(format!(
                    "{} must have 1 to 64 letters, digits, dots, dashes or underscores",
                    field("name")
                ));
            }
            if !names.insert(adapter.name.as_str()) || !files.insert(adapter.file.as_str()) {
                return Err(format!("{} and {} must be no other's", field("name"), field("file")));
            }
            if adapter.sha256.len() != 64 || !adapter.sha256.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(format!("{} must have 64 hex digits", field("sha256")));
            }
            // Receipts name it by this.
            store::cid::parse(&adapter.cid).map_err(|e| format!("{}: {e}", field("cid")))?;
        }
        Ok(())
    }

    fn check_suppliers(&self) -> std::result::Result<(), String> {
        if self.suppliers.len() > SUPPLIERS_MAX {
            return Err(format!("`suppliers` has {} entries; the limit is {SUPPLIERS_MAX}", self.suppliers.len()));
        }
        let mut names: BTreeSet<String> = self.own_models().map(|(name, _)| name).collect();
        if let Some(embedding) = &self.embedding
            && !names.insert(embedding.name.clone())
        {
            return Err(format!("`embedding.name` = `{}` is sold here already", embedding.name));
        }
        names.extend(self.models.iter().map(|model| model.name.clone()));
        for (index, supplier) in self.suppliers.iter().enumerate() {
            let field = |name: &str| format!("`suppliers[{index}].{name}`");
            let (call, day) = (supplier.max_uusdc_per_call, supplier.max_uusdc_per_day);
            for (name, text) in [("model", Some(&supplier.model)), ("supplier_model", supplier.supplier_model.as_ref())]
            {
                if text.is_some_and(|text| text.is_empty() || text.len() > 128) {
                    return Err(format!("{} must have 1 to 128 bytes", field(name)));
                }
            }
            if !names.insert(supplier.model.clone()) {
                return Err(format!(
                    "{} = `{}` is sold here already; give it another name",
                    field("model"),
                    supplier.model
                ));
            }
            if supplier.treasury.is_zero() {
                return Err(format!("{} is nobody", field("treasury")));
            }
            if call == 0 || call > day {
                let (call, day) = (field("max_uusdc_per_call"), field("max_uusdc_per_day"));
                return Err(format!("{call} must be above 0 and not above {day}"));
            }
            let price = supplier.price_uusdc_up(self);
            if price > self.max_call_uusdc {
                return Err(format!(
                    "{} = {call}: with `margin_pct` or `min_call_uusdc` on top a call costs {price}, more than \
                     `max_call_uusdc`",
                    field("max_uusdc_per_call")
                ));
            }
        }
        match (self.dearest_supplier_uusdc(), self.purse_uusdc_max) {
            (0, 0) => Ok(()),
            (0, _) => {
                Err("`purse_uusdc_max` is for `suppliers`, and there is none: a purse would only be stolen".into())
            }
            (call, purse) if purse < call => Err(format!(
                "`suppliers` are paid from the purse: `purse_uusdc_max` = {purse} is less than a call of {call} costs"
            )),
            _ => Ok(()),
        }
    }
}

/// TOML's integers end at 2^63, so money is a decimal string.
mod decimal {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(value: &u128, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&value.to_string())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<u128, D::Error> {
        let text = String::deserialize(d)?;
        let canonical =
            !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
        if !canonical {
            return Err(D::Error::custom(format!("`{text}` is not a decimal integer")));
        }
        text.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
pub(crate) mod tests;
