//! The manifest: what the agent is. Written by the creator, named on chain by its digest, never changed.

use crate::error::{Error, Result};
use alloy::primitives::Address;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
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
    /// CID of the code directory {vivarium, vivarium-engine}.
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
    pub store_urls: Vec<String>,
    /// What the stewards' `loosen` reaches at most, after `delay_days`: fixed on chain at birth. None: no limit ever
    /// rises, not even back to where it was before a `tighten`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ceilings: Option<Ceilings>,
    #[serde(default, skip_serializing_if = "Archive::is_default")]
    pub archive: Archive,
    #[serde(default, skip_serializing_if = "Payments::is_default")]
    pub payments: Payments,
    pub model: Model,
    /// Turns texts into vectors. None: the agent does not sell them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub embedding: Option<Model>,
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

/// What lies on Arweave as well: asked when no store brings it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Archive {
    /// Nodes or gateways, in order of preference; none of them is believed.
    pub gateways: Vec<String>,
    /// Root CID → the transaction whose data is the CAR file of what lies below it.
    pub transactions: BTreeMap<String, String>,
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

    fn check(&self) -> std::result::Result<(), String> {
        for (cid, id) in &self.transactions {
            store::cid::parse(cid).map_err(|e| format!("`archive.transactions`: {e}"))?;
            TxId::parse(id).map_err(|e| format!("`archive.transactions`, {cid}: {e}"))?;
        }
        match self.gateways.is_empty() && !self.transactions.is_empty() {
            true => Err("`archive.gateways` needs one that has the transactions".to_owned()),
            false => Ok(()),
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
    /// Another's facilitator (x402 `/settle`) for `exact`, once the answer is made. Whatever it says, the chain is asked;
    /// when it fails the relay settles. None: the relay settles everything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub facilitator_url: Option<String>,
    /// Most that may be open at once, micro-USDC, for `exact` payments to be settled *after* they were served, in batches:
    /// what payers with a paid call here could keep by emptying their accounts meanwhile. 0: none is.
    #[serde(with = "decimal", skip_serializing_if = "is_zero")]
    pub settle_after_uusdc: u128,
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

impl Default for Payments {
    fn default() -> Self {
        Self {
            factories: Vec::new(),
            facilitator_url: None,
            settle_after_uusdc: 0,
            storage_uusdc_per_mbyte: STORAGE_UUSDC_PER_MBYTE,
        }
    }
}

impl Payments {
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
    pub sha256: String,
    pub bytes: u64,
    /// Context length in tokens; of an embedding model the longest text.
    pub context: u32,
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
/// is: nothing on chain or here shows that two addresses are two people. `verified` will be for stewards whom somebody
/// else vouches for.
pub const INDEPENDENCE: &str = "self-declared";

fn is_zero(amount: &u128) -> bool {
    *amount == 0
}
fn prepay_days() -> u32 {
    2
}
fn day_secs() -> u32 {
    86_400
}
/// 111,034 gas (`settleExact`) at Base's 0.005 gwei and $2,500 an ETH, rounded up: docs/concepts/fees.md, November 2026.
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
/// The dearest order (`rescue`, 460,000 gas) up to 0.2 gwei, forty times Base's floor: 0.0001 ETH.
fn relay_max_wei() -> u128 {
    100_000_000_000_000
}

impl Manifest {
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
        for (what, model) in [("model", Some(&self.model)), ("embedding", self.embedding.as_ref())] {
            let Some(model) = model else { continue };
            if model.sha256.len() != 64 || !model.sha256.bytes().all(|b| b.is_ascii_hexdigit()) {
                return refuse(format!("`{what}.sha256` must have 64 hex digits"));
            }
        }
        if self.embedding.as_ref().is_some_and(|e| e.name == self.model.name || e.file == self.model.file) {
            return refuse("`embedding` must have another name and another file than `model`".into());
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
        if self.store_urls.is_empty() {
            return refuse("`store_urls` needs at least one content store".into());
        }
        if let Err(why) = self.archive.check() {
            return refuse(why);
        }
        Ok(())
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
mod tests;
