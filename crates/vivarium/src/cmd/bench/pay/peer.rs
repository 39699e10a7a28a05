//! The peers, on the same chain: the official Express middleware and facilitator with `batch-settlement`, unmodified; and
//! the Rust middleware `x402-axum` with `exact`, which settles by a facilitator's URL: the official one's, or ours.

use super::devchain::{CHAIN_ID, DevChain};
use alloy::primitives::{Address, address};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::path::Path;
use std::process::Stdio;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

/// anvil's development keys of accounts 0 (pays the gas) and 2 (gets the money).
const FACILITATOR_KEY: &str = "0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80";
const RECEIVER_KEY: &str = "0x5de4111afa1a4b94908f83103eb1f1706367c2e68ca870fc3fb9a804cdab365a";
pub const RECEIVER: Address = address!("3C44CdDdB6a900fa2b585dd299e03d12FA4293BC");
/// anvil's account 4, for our facilitator.
const OUR_FACILITATOR_KEY: &str = "47e179ec197488593b187f80a00eb0da91f1b9d0b13f8733639f19c30a34926a";
pub const OUR_FACILITATOR: Address = address!("15d34AAf54267DB7D7c367839AAf71A00a2C6A65");

/// Of `tests/peers/x402-axum`.
pub const AXUM_VERSION: &str = "2.0.2";

pub struct Express {
    pub url: String,
    server: Child,
    said: Lines<BufReader<ChildStdout>>,
}

impl Express {
    /// `price`: the most that a call may cost, micro-USDC; a request's `cost` says what it does cost.
    pub async fn start(project: &Path, chain: &DevChain, price: u128) -> Result<Self> {
        let clients = project.join("tests/clients");
        ensure!(
            clients.join("node_modules/@x402/express").is_dir(),
            "the peer is not installed; run `cargo xtask setup`"
        );
        let mut command = Command::new("node");
        command
            .current_dir(clients)
            .args(["batch-server.mjs", &chain.url, &CHAIN_ID.to_string(), &chain.usdc.to_string()])
            .args([RECEIVER_KEY, FACILITATOR_KEY, &price.to_string()]);
        let Served { url, server, said } = Served::start(command).await?;
        Ok(Self { url, server, said })
    }

    /// Makes it claim and settle what it is owed.
    pub async fn claim(&mut self) -> Result<()> {
        self.server.stdin.as_mut().context("its input is piped")?.write_all(b"claim\n").await?;
        self.said.next_line().await?.context("the peer ended")?;
        Ok(())
    }

    pub async fn stop(self) -> Result<()> {
        stop(self.server).await
    }
}

/// Settles for others, over HTTP.
pub struct Facilitator {
    pub url: String,
    server: Child,
}

impl Facilitator {
    pub async fn official(project: &Path, chain: &DevChain) -> Result<Self> {
        let mut command = Command::new("node");
        command.current_dir(project.join("tests/clients"));
        command.args(["facilitator.mjs", &chain.url, &CHAIN_ID.to_string(), FACILITATOR_KEY]);
        let Served { url, server, .. } = Served::start(command).await?;
        Ok(Self { url, server })
    }

    /// `vivarium facilitator`, with nothing to wait for and a fee of next to nothing; its files are in the folder `dir`.
    pub async fn ours(dir: &Path, chain: &DevChain) -> Result<Self> {
        let key = dir.join("facilitator.key");
        std::fs::write(&key, OUR_FACILITATOR_KEY)?;
        let mut command = Command::new(std::env::current_exe().context("cannot find this program's own file")?);
        command
            .args(["facilitator", "--json", "--listen", "127.0.0.1:0", "--ether", "0.000001", "--wait", "0"])
            .args(["--lot", "0.001", "--rpc", &chain.url, "--chain-id", &CHAIN_ID.to_string()])
            .args(["--token", &chain.usdc.to_string(), "--key"])
            .arg(key)
            .arg("--journal")
            .arg(dir.join("journal"));
        let Served { url, server, .. } = Served::start(command).await?;
        Ok(Self { url, server })
    }

    /// Ours ends by a signal only, the official one by anything.
    pub async fn stop(mut self) -> Result<()> {
        self.server.kill().await.context("the facilitator does not end")
    }
}

pub struct Axum {
    pub url: String,
    server: Child,
}

impl Axum {
    /// `None`: it is not built. It is no part of the workspace, so that nobody compiles it who does not measure.
    pub async fn start(chain: &DevChain, price: u128, facilitator: &Facilitator) -> Result<Option<Self>> {
        let program = std::env::current_exe().context("cannot find this program's own file")?;
        let target = program.ancestors().nth(2).context("cargo puts programs into folders")?;
        let peer = target.join("peers/debug/x402-axum-peer");
        if !peer.is_file() {
            return Ok(None);
        }
        let mut command = Command::new(peer);
        command.args([&facilitator.url, &CHAIN_ID.to_string(), &chain.usdc.to_string()]);
        command.args([RECEIVER.to_string(), price.to_string()]);
        let Served { url, server, .. } = Served::start(command).await?;
        Ok(Some(Self { url, server }))
    }

    pub async fn stop(self) -> Result<()> {
        stop(self.server).await
    }
}

/// A process that says its URL in its first line and ends with its input.
struct Served {
    url: String,
    server: Child,
    said: Lines<BufReader<ChildStdout>>,
}

impl Served {
    async fn start(mut command: Command) -> Result<Self> {
        let mut server = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("the peer does not start")?;
        let mut said = BufReader::new(server.stdout.take().context("its output is piped")?).lines();
        let hello = said.next_line().await?.context("the peer ended at once")?;
        let hello: Value = serde_json::from_str(&hello)?;
        let url = hello["url"].as_str().context("the peer names no URL")?.to_owned();
        Ok(Self { url, server, said })
    }
}

async fn stop(mut server: Child) -> Result<()> {
    drop(server.stdin.take());
    server.wait().await?;
    Ok(())
}
