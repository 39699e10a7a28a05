//! The peer: the official Express middleware and facilitator with `batch-settlement`, unmodified, on the same chain.

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
        let mut server = Command::new("node")
            .current_dir(clients)
            .args(["batch-server.mjs", &chain.url, &CHAIN_ID.to_string(), &chain.usdc.to_string()])
            .args([RECEIVER_KEY, FACILITATOR_KEY, &price.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("node does not start")?;
        let mut said = BufReader::new(server.stdout.take().context("its output is piped")?).lines();
        let hello = said.next_line().await?.context("the peer ended at once")?;
        let hello: Value = serde_json::from_str(&hello)?;
        let url = hello["url"].as_str().context("the peer names no URL")?.to_owned();
        Ok(Self { url, server, said })
    }

    /// Makes it claim and settle what it is owed.
    pub async fn claim(&mut self) -> Result<()> {
        self.server.stdin.as_mut().context("its input is piped")?.write_all(b"claim\n").await?;
        self.said.next_line().await?.context("the peer ended")?;
        Ok(())
    }

    pub async fn stop(mut self) -> Result<()> {
        drop(self.server.stdin.take());
        self.server.wait().await?;
        Ok(())
    }
}
