//! How a command finds its world and its agent.

use anyhow::{Context, Result};
use node::manifest::Manifest;
use serde_json::Value;
use std::path::PathBuf;
use tokio::signal::unix::{SignalKind, signal};
use vivarium::world::files::{WorldFile, chosen_dir};
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
        let url = self.record.url().await?;
        self.http.get_json(&format!("{url}{path}")).await.with_context(|| {
            format!("the agent does not answer at {url}, where the chain says it lives; a moment after a crash or a move that passes")
        })
    }
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

/// Chain seconds as a rough duration, in the world's own days.
pub fn duration(secs: u64, day_secs: u64) -> String {
    let day = day_secs.max(1);
    if secs >= day { format!("{}.{} days", secs / day, secs % day * 10 / day) } else { format!("{secs} s") }
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
