//! How a command finds its world and its agent.

use alloy::primitives::Address;
use anyhow::{Context, Result, ensure};
use chain::Chain;
use node::manifest::Manifest;
use pay::buyer::{Buyer, ChannelPolicy, Schemes};
use serde_json::Value;
use std::path::PathBuf;
use tokio::signal::unix::{SignalKind, signal};
use vivarium::world::files::{WorldFile, chosen_dir};
use vivarium::world::identity::AgentId;
use vivarium::world::record::Record;

/// Which world.
#[derive(clap::Args, Clone, Debug)]
pub struct Place {
    /// The world's folder [default: $VIVARIUM_WORLD, else ./.vivarium/world]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
}

/// A world found.
pub struct Link {
    pub world: WorldFile,
    pub record: Record,
    pub http: net::Client,
}

/// Which agent is bought from, where it is not the world's own.
#[derive(clap::Args, Clone, Debug)]
pub struct Named {
    /// The agent by its ERC-8004 identity, as eip155:CHAIN:REGISTRY/ID. The identity's owner must be a treasury that calls
    /// the number its own; it alone is paid, and it says where the agent serves
    #[arg(long, value_name = "IDENTITY")]
    agent: Option<AgentId>,
    /// Asks this endpoint of the identity's chain (http) and needs no world: then --data-dir is where what was signed is
    /// kept
    #[arg(long, value_name = "URL", requires_all = ["agent", "token", "key"])]
    rpc: Option<String>,
    /// With --rpc: the token that is paid with, of six decimals; an agent that takes another is refused
    #[arg(long, value_name = "ADDRESS", requires = "rpc")]
    token: Option<Address>,
}

/// An agent that is bought from, and with what.
pub struct Shop {
    pub record: Record,
    pub token: Address,
    pub http: net::Client,
    /// The world, unless --rpc is in its place.
    pub world: Option<WorldFile>,
}

impl Named {
    /// Finds the agent: the world's own, or the one of this name.
    pub async fn shop(&self, place: &Place) -> Result<Shop> {
        let http = net::Client::new();
        if let (Some(rpc), Some(token), Some(agent)) = (&self.rpc, self.token, self.agent) {
            let chain = Chain::connect(rpc, agent.chain_id)?;
            chain.verify_chain().await?;
            let record = by_identity(chain, agent, token, &http).await?;
            return Ok(Shop { record, token, http, world: None });
        }
        let Link { world, record, http } = place.link()?;
        let record = match self.agent {
            Some(agent) => by_identity(record.chain, agent, world.usdc, &http).await?,
            None => record,
        };
        Ok(Shop { record, token: world.usdc, http, world: Some(world) })
    }
}

/// What a call is paid by, where the buyer does not choose for itself.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// The price, by one authorisation (EIP-3009, or Permit2 for tokens without it) and one transaction a call
    Exact,
    /// What was delivered, up to a ceiling, by one Permit2 permission and one transaction a call
    Upto,
    /// Vouchers on channels: what was delivered, without a transaction a call
    BatchSettlement,
}

impl Scheme {
    /// How `buyer` pays: by this one alone, or from channels where there is one, else by what costs the least.
    pub fn apply(scheme: Option<Self>, buyer: Buyer, channels: ChannelPolicy) -> Buyer {
        match scheme {
            None => buyer.with_schemes(Schemes::ChannelElseExact(channels)).with_permit2(),
            Some(Self::Exact) => buyer.with_schemes(Schemes::Exact).with_exact_by_permit2(),
            Some(Self::Upto) => buyer.with_schemes(Schemes::Upto).with_permit2(),
            // By Permit2 the deposits into channels of tokens without EIP-3009.
            Some(Self::BatchSettlement) => buyer.with_schemes(Schemes::Channel(channels)).with_permit2(),
        }
    }
}

/// The record of an agent by its identity; refused if it takes another token than ours.
pub async fn by_identity(chain: Chain, agent: AgentId, token: Address, http: &net::Client) -> Result<Record> {
    let (record, takes) = Record::of_identity(chain, agent, http.clone()).await?;
    ensure!(takes == token, "{agent} is paid in {takes}, this pays with {token} and nothing else; nothing was paid");
    Ok(record)
}

impl Shop {
    /// The key that pays: the one named, else the world's customer's.
    pub fn key_file<'a>(&'a self, named: Option<&'a PathBuf>) -> Result<&'a PathBuf> {
        let customer = || self.world.as_ref().map(|world| &world.customer.key_file);
        named.or_else(customer).context("without a world --key names who pays")
    }

    pub fn chain_id(&self) -> u64 {
        self.record.chain.chain_id()
    }

    /// Asks the node at `url`, where the chain says that the agent lives.
    pub async fn get(&self, url: &str, path: &str) -> Result<Value> {
        get(&self.http, url, path).await
    }
}

impl Place {
    pub fn dir(&self) -> PathBuf {
        chosen_dir(self.data_dir.as_deref())
    }

    /// The content stores that the world's manifest names; none where there is no world.
    pub fn stores(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.dir().join("manifest.toml")).ok();
        text.and_then(|text| Manifest::parse(&text).ok()).map(|manifest| manifest.store_urls).unwrap_or_default()
    }

    pub fn link(&self) -> Result<Link> {
        let world = WorldFile::load(&self.dir())?;
        let record = Record::new(&world.rpc_url, world.chain_id, world.treasury, world.lease_market)?;
        Ok(Link { world, record, http: net::Client::new() })
    }
}

impl Link {
    /// Asks the node that the chain names.
    pub async fn get(&self, path: &str) -> Result<Value> {
        get(&self.http, &self.record.url().await?, path).await
    }
}

async fn get(http: &net::Client, url: &str, path: &str) -> Result<Value> {
    http.get_json(&format!("{url}{path}")).await.with_context(|| {
        format!("the agent does not answer at {url}, where the chain says it lives; a moment after a crash or a move that passes")
    })
}

/// Runs a command that waits for others.
pub fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the async runtime")?
        .block_on(work)
}

/// Logs of the long-running commands: to standard error, `RUST_LOG` chooses.
pub fn log_to_stderr(default: &str) {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(default));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
}

/// Micro-USDC from a wire field, as people read it: `12.345678`.
pub fn usdc(value: &Value) -> String {
    let micro = value.as_str().and_then(|text| text.parse::<u128>().ok());
    micro.map_or_else(|| "?".to_owned(), |m| format!("{}.{:06}", m / 1_000_000, m % 1_000_000))
}

/// Chain seconds as a rough duration, in the world's own days. Any numbers will do: hosts say them.
pub fn duration(secs: u64, day_secs: u64) -> String {
    let day = day_secs.max(1);
    let tenths = u128::from(secs) * 10 / u128::from(day);
    if secs >= day { format!("{}.{} days", tenths / 10, tenths % 10) } else { format!("{secs} s") }
}

/// Completes at Ctrl-C, SIGTERM, or when the terminal is closed.
pub fn stopped() -> Result<impl Future<Output = ()> + Send + 'static> {
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for Ctrl-C")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut hangup = signal(SignalKind::hangup()).context("cannot listen for a closed terminal")?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_a_host_says_is_a_duration() {
        assert_eq!(duration(19, 20), "19 s");
        assert_eq!(duration(59, 20), "2.9 days");
        assert_eq!(duration(u64::MAX, 1 << 63), "1.9 days");
        assert_eq!(duration(u64::MAX, 0), format!("{}.0 days", u64::MAX));
    }
}
