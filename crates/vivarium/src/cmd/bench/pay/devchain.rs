//! A development chain for figures: anvil that mines each transaction at once, the test token, and the development
//! contracts at the addresses that x402 clients have built in. The accounts are anvil's own, known to everybody.

use alloy::primitives::{Address, B256, Bytes, U256, address};
use alloy::sol_types::SolCall;
use anyhow::{Context, Result, ensure};
use chain::anvil::{Anvil, AnvilOptions, DEV_CHAIN_ID};
use chain::bindings::TestUSDC;
use pay::Usdc;
use pay::facilitator::multicall::MULTICALL3;
use pay::scheme::channel::facilitator::{read_state, state_calls};
use pay::scheme::channel::{BATCH_SETTLEMENT, COLLECTOR_3009, ChannelId, ChannelState};
use pay::scheme::permit2::PERMIT2;
use pay::scheme::upto::UPTO_PROXY;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::Mutex;

pub const CHAIN_ID: u64 = DEV_CHAIN_ID;
/// anvil's accounts 1 and 3: ours pays the gas and gets the money. The peer has 0 and 2.
pub const RELAY: Address = address!("70997970C51812dc3A010C7d01b50e0d17dc79C8");
pub const RECEIVER: Address = address!("90F79bf6EB2c4f870365E785982E1f101E93b906");
/// Gas of anything that is sent here; a claim of 50 rows takes 2 million.
const GAS_MAX: &str = "0x989680";

pub struct DevChain {
    pub url: String,
    pub usdc: Address,
    client: net::Client,
    abi: PathBuf,
    anvil: Anvil,
    /// One transaction at a time: two sent at once are given the same nonce.
    turn: Mutex<()>,
}

/// What one transaction did.
pub struct Mined {
    pub hash: B256,
    pub is_done: bool,
}

/// Transactions and the gas that they used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Used {
    pub transactions: u64,
    pub gas: u64,
}

impl DevChain {
    pub async fn start(project: &Path, bin: PathBuf) -> Result<Self> {
        let anvil = Anvil::spawn(&AnvilOptions { block_time: None, ..AnvilOptions::new(bin) }).await?;
        let (url, abi) = (anvil.url().to_owned(), project.join("contracts/abi"));
        let mut chain = Self { url, usdc: Address::ZERO, client: net::Client::new(), abi, anvil, turn: Mutex::new(()) };
        for (at, name) in [
            (BATCH_SETTLEMENT, "BatchSettlement"),
            (COLLECTOR_3009, "DepositCollector3009"),
            (PERMIT2, "Permit2"),
            (UPTO_PROXY, "UptoPermit2Proxy"),
            (MULTICALL3, "Multicall3"),
        ] {
            let made = chain.deploy(name).await?;
            let code = chain.rpc("eth_getCode", json!([made, "latest"])).await?;
            chain.rpc("anvil_setCode", json!([at, code])).await?;
        }
        chain.usdc = chain.deploy("TestUSDC").await?;
        Ok(chain)
    }

    pub async fn stop(self) -> Result<()> {
        Ok(self.anvil.stop().await?)
    }

    async fn deploy(&self, name: &str) -> Result<Address> {
        let file = self.abi.join(format!("{name}.json"));
        let text = std::fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let artifact: Value = serde_json::from_slice(&text)?;
        let hash = self.transact(json!({ "from": RELAY, "data": artifact["bytecode"], "gas": GAS_MAX })).await?;
        let receipt = self.receipt(hash).await?;
        receipt["contractAddress"].as_str().context("a contract was not made")?.parse().context("an address")
    }

    pub async fn rpc(&self, method: &str, params: Value) -> Result<Value> {
        let ask = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params });
        let mut answer: Value = self.client.call_json(&self.url, &ask).await?;
        ensure!(answer.get("error").is_none(), "{method}: {}", answer["error"]);
        Ok(answer["result"].take())
    }

    async fn transact(&self, tx: Value) -> Result<B256> {
        let _turn = self.turn.lock().await;
        let hash = self.rpc("eth_sendTransaction", json!([tx])).await?;
        hash.as_str().context("a transaction without a hash")?.parse().context("a hash")
    }

    /// anvil mines each transaction at once, and answers a little before that.
    async fn receipt(&self, hash: B256) -> Result<Value> {
        loop {
            let receipt = self.rpc("eth_getTransactionReceipt", json!([hash])).await?;
            if !receipt.is_null() {
                return Ok(receipt);
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    pub async fn send(&self, from: Address, to: Address, data: Vec<u8>) -> Result<Mined> {
        let hash = self.transact(json!({ "from": from, "to": to, "data": Bytes::from(data), "gas": GAS_MAX })).await?;
        let receipt = self.receipt(hash).await?;
        Ok(Mined { hash, is_done: receipt["status"] == "0x1" })
    }

    async fn call(&self, to: Address, data: Vec<u8>) -> Result<Bytes> {
        let answer = self.rpc("eth_call", json!([{ "to": to, "data": Bytes::from(data) }, "latest"])).await?;
        answer.as_str().context("a call without an answer")?.parse().context("bytes")
    }

    pub async fn mint(&self, to: Address, amount: Usdc) -> Result<()> {
        let mint = TestUSDC::mintCall { to, value: U256::from(amount.micro()) }.abi_encode();
        ensure!(self.send(RELAY, self.usdc, mint).await?.is_done, "the test token mints nothing");
        Ok(())
    }

    /// Lets Permit2 spend for `owner`, as a customer with gas does it once.
    pub async fn allow_permit2(&self, owner: Address) -> Result<()> {
        self.rpc("anvil_setBalance", json!([owner, "0xde0b6b3a7640000"])).await?;
        self.rpc("anvil_impersonateAccount", json!([owner])).await?;
        let allow = TestUSDC::approveCall { spender: PERMIT2, value: U256::MAX }.abi_encode();
        ensure!(self.send(owner, self.usdc, allow).await?.is_done, "the test token allows nothing");
        Ok(())
    }

    pub async fn balance(&self, account: Address) -> Result<Usdc> {
        let answer = self.call(self.usdc, TestUSDC::balanceOfCall { account }.abi_encode()).await?;
        Ok(Usdc(U256::from_be_slice(&answer).saturating_to()))
    }

    pub async fn channel(&self, id: &ChannelId) -> Result<ChannelState> {
        let [a, b, c] = state_calls(id);
        let height = self.height().await?;
        let mut answers = Vec::with_capacity(3);
        for data in [a, b, c] {
            answers.push(self.call(BATCH_SETTLEMENT, data).await?.to_vec());
        }
        let answers: [Vec<u8>; 3] = answers.try_into().expect("three were asked");
        read_state(&answers, height).context("the channel contract answers strangely")
    }

    pub async fn height(&self) -> Result<u64> {
        number(&self.rpc("eth_blockNumber", json!([])).await?)
    }

    /// What all transactions after block `height` used.
    pub async fn used_since(&self, height: u64) -> Result<Used> {
        let mut used = Used::default();
        for block in height + 1..=self.height().await? {
            let block = self.rpc("eth_getBlockByNumber", json!([format!("{block:#x}"), false])).await?;
            used.gas += number(&block["gasUsed"])?;
            used.transactions += block["transactions"].as_array().map_or(0, |all| all.len() as u64);
        }
        Ok(used)
    }
}

fn number(value: &Value) -> Result<u64> {
    let text = value.as_str().context("a number is missing")?;
    u64::from_str_radix(text.trim_start_matches("0x"), 16).context("a number")
}
