//! What a provider writes down: `provider.toml`. Unknown keys are refused, so that a misspelt limit is not
//! silently no limit.

use crate::error::{Error, Result};
use alloy::primitives::Address;
use axum::http::Uri;
use chain::preflight::DEVELOPMENT_CHAIN;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

/// Everything the daemon is told. All else it reads from the chain and from its own data directory.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostConfig {
    /// Blocks, exported code, one directory a lease. Created if it is missing.
    pub data_dir: PathBuf,
    /// Where `/status` and `/health` answer. Port 0 takes a free one. Tenants listen on the same address,
    /// each on a port of its own.
    pub listen: SocketAddr,
    /// The daemon's own URL, `http://HOST:PORT` with a host that strangers reach, posted with each offer. A tenant's URL has
    /// the same host and its own port ([`HostConfig::tenant_url`]).
    pub public_url: String,
    /// Chain endpoints in order of preference; the daemon reads from the first that answers, and sends through one until that
    /// does not answer any more ([`crate::sender`]).
    pub rpc_urls: Vec<String>,
    pub chain_id: u64,
    /// The lease market.
    pub market: Address,
    /// The token of stakes and rents.
    pub usdc: Address,
    /// The provider's key: 64 hex digits. Mode 0600 is the owner's business; tenants cannot see the file.
    pub key_file: PathBuf,
    /// Content stores from which tenants' code is fetched, and which tenants are told; at least one.
    pub store_urls: Vec<String>,
    pub offers: Vec<OfferConfig>,
    /// Without it the offered prices stay as they are.
    pub reprice: Option<Reprice>,
    /// First gas for tenants' node keys; without it [`Gift::on_chain`].
    pub gift: Option<Gift>,
    /// Stake in micro-USDC; the daemon tops the registered stake up to it at start.
    #[serde(with = "decimal")]
    pub stake_uusdc: u128,
    pub abuse_contact: String,
    /// Threads of arithmetic that each tenant's engine may take, by itself all cores. It takes as many as are fastest at the
    /// time.
    #[serde(default = "cores")]
    pub threads: u32,
    /// Chain seconds between withdrawals of accrued rent. Closing a lease pays the rest by itself.
    #[serde(default = "a_day")]
    pub withdraw_every_secs: u64,
    /// Chain seconds for which a tenant runs on without escrow, from the last one that it paid for. 25 hours let a rescue
    /// that could prepay nothing top up once the treasury's day is over; less turns such tenants away.
    #[serde(default = "a_day_and_an_hour")]
    pub credit_secs: u64,
    /// Blocks for which a lease must stay closed before its keys and data are destroyed: more than this chain ever
    /// reorganises. Waiting costs room on a disk. The default is twenty minutes of two-second blocks, longer than a batch
    /// of Base takes to be final on Ethereum.
    #[serde(default = "twenty_minutes")]
    pub final_blocks: u64,
    /// Environment of every tenant, besides PATH, HOME and TMPDIR. Nothing of the daemon's own gets in.
    #[serde(default)]
    pub tenant_env: BTreeMap<String, String>,
}

/// One offer on the market.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OfferConfig {
    /// Price in 1e-6 micro-USDC per second; with `reprice` the middle of the band.
    pub price_e6: u64,
    /// Leases at once.
    pub capacity: u32,
    /// Seconds.
    pub min_term: u32,
    /// Seconds.
    pub max_term: u32,
    /// Memory that a tenant's process may write to, and the size of its `/tmp`.
    pub memory_mib: u32,
    /// Advertised share of the processor, in thousandths of a core. Not enforced without cgroups.
    pub milli_cpu: u32,
}

/// How the offered prices move.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reprice {
    /// Chain seconds between quotes.
    pub every_secs: u64,
    /// Quotes stay within this many percent of the configured price.
    pub spread_pct: u32,
    /// Two providers with different seeds quote differently; the same seed quotes the same again.
    pub seed: u64,
}

/// What the node key of a tenant gets from the provider, once a lease: a standby sends its challenge and its takeover before
/// its treasury fuels it.
///
/// Anyone may rent, end the lease again and take what it prepaid back with it; only rent that has accrued stays with the
/// provider. So the gift waits for that and not for a prepayment: whoever rents again and again for the gifts has paid
/// `after_uusdc` for each. It must be worth at least `wei`. A lease that prepaid nothing earns nothing, and gets no gift before
/// somebody tops it up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gift {
    /// Wei; 0: no gifts.
    #[serde(with = "decimal")]
    pub wei: u128,
    /// Rent in micro-USDC that the lease must have earned before; at least 1, unless there are no gifts.
    #[serde(with = "decimal")]
    pub after_uusdc: u128,
}

impl Gift {
    /// On a development chain 0.02 ETH after the first rent: neither is worth anything. Elsewhere 0.00002 ETH after 0.05 USDC,
    /// which is its worth at 1 ETH = $2,500 (docs/concepts/fees.md; where ether is dearer, ask more).
    ///
    /// 0.00002 ETH pays a challenge and a takeover up to a base fee of 0.011 gwei, twice Base's floor: a takeover that calls
    /// the registry is sent with some 845,000 gas (reckoned, not measured), and its sender must hold twice the base fee and
    /// 0.001 gwei for each. What a roll-up asks for publishing comes on top. At a rent of $30 a month 0.05 USDC take
    /// 72 minutes, within the 7 hours that rescuers give a host; below $5.20 a month they take longer, so ask less there.
    pub fn on_chain(chain_id: u64) -> Self {
        if chain_id == DEVELOPMENT_CHAIN {
            return Self { wei: 20_000_000_000_000_000, after_uusdc: 1 };
        }
        Self { wei: 20_000_000_000_000, after_uusdc: 50_000 }
    }
}

impl HostConfig {
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| {
            Error::setup(format!("cannot read the provider's configuration {}", path.display())).caused_by(e)
        })?;
        Self::parse(&text)
            .map_err(|e| Error::setup(format!("{} is not a provider's configuration", path.display())).caused_by(e))
    }

    pub fn parse(text: &str) -> Result<Self> {
        let config: Self = toml::from_str(text).map_err(|e| Error::setup(e.to_string()))?;
        config.check()?;
        Ok(config)
    }

    /// Where the tenant that listens on `port` is reached: what `ready` puts on chain.
    ///
    /// Fails with what to write when `public_url` names no host that could be announced.
    pub fn tenant_url(&self, port: u16) -> Result<String> {
        let host = public_host(&self.public_url).ok_or_else(|| {
            Error::setup(format!(
                "public_url is {:?}: write http://HOST:PORT, without a path and not https, with the name or address by \
                 which strangers reach this machine; each tenant is announced at that host and a port of its own",
                self.public_url
            ))
        })?;
        Ok(format!("http://{host}:{port}"))
    }

    /// As configured, or as the chain has it.
    pub fn gift(&self) -> Gift {
        self.gift.unwrap_or_else(|| Gift::on_chain(self.chain_id))
    }

    fn check(&self) -> Result<()> {
        let need = |holds: bool, what: &str| if holds { Ok(()) } else { Err(Error::setup(what)) };
        self.tenant_url(0)?;
        let gift = self.gift();
        need(
            gift.wei == 0 || gift.after_uusdc > 0,
            "gift.after_uusdc must be at least 1, or whoever rents is paid for it",
        )?;
        need(!self.rpc_urls.is_empty(), "rpc_urls needs at least one endpoint")?;
        need(!self.store_urls.is_empty(), "store_urls needs at least one store")?;
        need(self.threads > 0, "threads must be at least 1")?;
        need(self.withdraw_every_secs > 0, "withdraw_every_secs must be at least 1")?;
        for offer in &self.offers {
            need(offer.price_e6 > 0, "an offer's price_e6 must be more than 0")?;
            need(offer.min_term <= offer.max_term, "an offer's min_term is more than its max_term")?;
            need(offer.memory_mib > 0, "an offer's memory_mib must be more than 0")?;
        }
        if let Some(reprice) = &self.reprice {
            need(reprice.every_secs > 0, "reprice.every_secs must be at least 1")?;
            need(reprice.spread_pct < 100, "reprice.spread_pct must be less than 100")?;
        }
        Ok(())
    }
}

/// The host of `http://HOST` or `http://HOST:PORT`, an IPv6 address with its brackets; None when that is not all of it. Tenants
/// speak plain HTTP, so an `https://` would promise what nobody answers. The address that stands for all of a machine's own
/// is none that a stranger could ask.
fn public_host(url: &str) -> Option<String> {
    let uri: Uri = url.parse().ok()?;
    let authority = uri.authority()?;
    let (host, port) = (authority.host(), authority.port_u16());
    let is_whole = url == format!("http://{host}") || port.is_some_and(|port| url == format!("http://{host}:{port}"));
    let is_everywhere = host.trim_matches(['[', ']']).parse().is_ok_and(|ip: IpAddr| ip.is_unspecified());
    (is_whole && !host.is_empty() && !is_everywhere).then(|| host.to_owned())
}

fn cores() -> u32 {
    std::thread::available_parallelism().map_or(1, |cores| u32::try_from(cores.get()).unwrap_or(u32::MAX))
}

fn a_day() -> u64 {
    86_400
}

fn a_day_and_an_hour() -> u64 {
    90_000
}

fn twenty_minutes() -> u64 {
    600
}

/// Amounts as decimal strings: TOML's integers end at 2^63 and some tools turn them into floats.
mod decimal {
    use serde::{Deserialize, Deserializer, Serializer, de};

    pub fn serialize<S: Serializer>(amount: &u128, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&amount.to_string())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<u128, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Amount {
            Number(u64),
            Text(String),
        }
        match Amount::deserialize(from)? {
            Amount::Number(n) => Ok(n.into()),
            Amount::Text(text) if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) => {
                text.parse().map_err(de::Error::custom)
            }
            Amount::Text(text) => Err(de::Error::custom(format!("{text:?} is not a whole number"))),
        }
    }
}

#[cfg(test)]
mod tests;
