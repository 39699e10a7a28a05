//! The development chain: anvil, a real Ethereum node, on loopback, one block a second.
//!
//! Chain time is the world's time. A world that was stopped overnight goes on where it was: anvil starts without
//! mining, is told the time of its last block plus one second, and only then begins to mine, so that no block ever
//! jumps to the wall clock.

use super::processes::Program;
use anyhow::{Context, Result, bail};
use chain::Chain;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub const CHAIN_ID: u64 = chain::anvil::DEV_CHAIN_ID;
pub const BLOCK_SECS: u32 = 1;
/// How often anvil writes its state. After an orderly end nothing is lost; after `kill -9` the blocks since, at most
/// this many seconds of them, which the rest of the world treats as a reorg.
const STATE_INTERVAL_SECS: u32 = 5;
/// Chosen, not measured: anvil is up in half a second, with a long state file in a few.
const START_DEADLINE: Duration = Duration::from_secs(30);

/// The program to run; its state lies in `state_file`. A chain that begins here has a clock `ahead_secs` ahead of this
/// machine's: time is the chain's everywhere, so nothing may depend on the difference.
pub fn program(anvil: &Path, port: u16, state_file: &Path, ahead_secs: i64) -> Program {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let genesis = ["--timestamp".to_owned(), wall.saturating_add_signed(ahead_secs).to_string()];
    let begins = ahead_secs != 0 && !state_file.exists();
    Program {
        name: "chain".to_owned(),
        executable: anvil.to_owned(),
        arguments: [
            "--host",
            "127.0.0.1",
            "--port",
            &port.to_string(),
            "--chain-id",
            &CHAIN_ID.to_string(),
            // The accounts that anvil brings are known to everybody: no money in them.
            "--accounts",
            "1",
            "--balance",
            "0",
            "--no-mining",
            "--quiet",
            "--state",
            &state_file.to_string_lossy(),
            "--state-interval",
            &STATE_INTERVAL_SECS.to_string(),
        ]
        .map(str::to_owned)
        .into_iter()
        .chain(genesis.into_iter().filter(|_| begins))
        .collect(),
        // Even --quiet tells every request at the usual level.
        environment: vec![("RUST_LOG".to_owned(), "error".to_owned())],
        // SIGINT makes anvil write its state; SIGTERM would not.
        stop_signal: rustix::process::Signal::INT,
        stop_within: Duration::from_secs(20),
        restart: false,
    }
}

/// Waits until the chain answers, sets its clock and starts the one-second heartbeat of blocks.
/// Must be done before anybody else connects.
pub async fn wake(chain: &Chain) -> Result<()> {
    let deadline = tokio::time::Instant::now() + START_DEADLINE;
    loop {
        match chain.verify_chain().await {
            Ok(()) => break,
            Err(e) if e.is_transient() && tokio::time::Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(30)).await;
            }
            Err(e) => return Err(e).context("the development chain does not start"),
        }
    }
    let last = chain.head().await?;
    if last.number > 0 {
        let _: Value =
            chain.request("evm_setTime", (last.timestamp + 1,)).await.context("the chain's clock cannot be set")?;
    }
    let _: Value =
        chain.request("evm_setIntervalMining", (BLOCK_SECS,)).await.context("the chain does not start mining")?;
    Ok(())
}

/// Where npm put the binary for this machine, under the contracts' folder.
pub fn binary(project: &Path) -> Result<PathBuf> {
    let platform = match std::env::consts::ARCH {
        "x86_64" => "linux-amd64",
        "aarch64" => "linux-arm64",
        other => bail!("there is no anvil for {other} machines; run this on x86-64 or arm64"),
    };
    let path = project.join(format!("contracts/node_modules/@foundry-rs/anvil-{platform}/bin/anvil"));
    if !path.is_file() {
        bail!("the development chain is not installed ({} is missing); run `cargo xtask setup`", path.display());
    }
    Ok(path)
}
