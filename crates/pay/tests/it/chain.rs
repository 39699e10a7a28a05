//! A development chain with what x402 expects of one: anvil, a token, and our development contracts put at the
//! addresses that the official packages have hard-coded.

use alloy::primitives::{Address, U256, address, keccak256};
use pay::Usdc;
use pay::facilitator::multicall::MULTICALL3;
use pay::scheme::channel::facilitator::{read_state, state_calls};
use pay::scheme::channel::{BATCH_SETTLEMENT, COLLECTOR_3009, COLLECTOR_PERMIT2, ChannelId, ChannelState};
use pay::scheme::exact::Hash;
use pay::scheme::permit2::PERMIT2;
use pay::scheme::upto::{EXACT_PROXY, UPTO_PROXY};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

/// Pays the gas of all that the tests do; an account of anvil's.
pub const RELAY: Address = address!("f39Fd6e51aad88F6F4ce6aB8827279cffFb92266");
pub const TREASURY: Address = Address::repeat_byte(0x77);
pub const CHAIN_ID: u64 = 31337;

pub struct Chain {
    pub url: String,
    /// EIP-3009: "USD Coin", "2".
    pub usdc: Address,
    /// EIP-2612 and no EIP-3009: "Test Dollar", "1".
    pub permit_token: Address,
    client: net::Client,
    /// Ends with the test.
    _anvil: Child,
}

fn contracts() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../contracts")
}

/// Calldata of `name(words…)`.
pub fn call(signature: &str, words: &[U256]) -> Vec<u8> {
    let mut data = keccak256(signature)[..4].to_vec();
    words.iter().for_each(|word| data.extend(word.to_be_bytes::<32>()));
    data
}

pub fn word(address: Address) -> U256 {
    U256::from_be_slice(address.as_slice())
}

impl Chain {
    pub async fn start() -> Self {
        let bin = contracts().join("node_modules/@foundry-rs/anvil-linux-amd64/bin/anvil");
        assert!(
            bin.is_file(),
            "contracts/node_modules is missing: `cargo xtask test` installs it (npm ci in contracts)"
        );
        let mut anvil = Command::new(bin)
            .args(["--host", "127.0.0.1", "--port", "0", "--auto-impersonate"])
            .args(["--chain-id", &CHAIN_ID.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(anvil.stdout.take().unwrap()).lines();
        let url = loop {
            let line = lines.next_line().await.unwrap().expect("anvil says where it listens");
            if let Some(at) = line.strip_prefix("Listening on ") {
                break format!("http://{}", at.trim());
            }
        };
        // Keeps the pipe empty.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        let nowhere = Address::ZERO;
        let mut chain = Self { url, usdc: nowhere, permit_token: nowhere, client: net::Client::new(), _anvil: anvil };
        for (at, name) in [
            (BATCH_SETTLEMENT, "BatchSettlement"),
            (COLLECTOR_3009, "DepositCollector3009"),
            (COLLECTOR_PERMIT2, "DepositCollectorPermit2"),
            (PERMIT2, "Permit2"),
            (EXACT_PROXY, "ExactPermit2Proxy"),
            (UPTO_PROXY, "UptoPermit2Proxy"),
            (MULTICALL3, "Multicall3"),
        ] {
            let made = chain.deploy(name).await;
            let code = chain.rpc("eth_getCode", json!([made, "latest"])).await;
            chain.rpc("anvil_setCode", json!([at, code])).await;
        }
        chain.usdc = chain.deploy("TestUSDC").await;
        chain.permit_token = chain.deploy("TestPermitToken").await;
        chain.rpc("anvil_setBalance", json!([TREASURY, "0xde0b6b3a7640000"])).await;
        chain
    }

    pub async fn rpc(&self, method: &str, params: Value) -> Value {
        self.try_rpc(method, params).await.unwrap_or_else(|error| panic!("{method}: {error}"))
    }

    async fn try_rpc(&self, method: &str, params: Value) -> Result<Value, Value> {
        let ask = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params });
        let mut answer: Value = self.client.call_json(&self.url, &ask).await.expect("anvil answers");
        match answer.get("error") {
            Some(error) => Err(error.clone()),
            None => Ok(answer["result"].take()),
        }
    }

    pub async fn deploy(&self, name: &str) -> Address {
        self.deploy_with(name, &[]).await
    }

    /// With these constructor arguments.
    pub async fn deploy_with(&self, name: &str, words: &[U256]) -> Address {
        let file = contracts().join(format!("abi/{name}.json"));
        let artifact: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
        let words: String = words.iter().map(|word| hex::encode(word.to_be_bytes::<32>())).collect();
        let data = format!("{}{words}", artifact["bytecode"].as_str().expect(name));
        let tx = json!([{ "from": RELAY, "data": data, "gas": "0x989680" }]);
        let hash = self.rpc("eth_sendTransaction", tx).await;
        let receipt = self.receipt(&hash).await;
        receipt["contractAddress"].as_str().expect(name).parse().unwrap()
    }

    /// anvil mines each transaction at once, and answers a little before that.
    async fn receipt(&self, hash: &Value) -> Value {
        loop {
            let receipt = self.rpc("eth_getTransactionReceipt", json!([hash])).await;
            if !receipt.is_null() {
                return receipt;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Sends a transaction; its hash, and whether it did what it should.
    pub async fn send(&self, from: Address, to: Address, data: &[u8]) -> (Hash, bool) {
        let data = format!("0x{}", hex::encode(data));
        let tx = json!([{ "from": from, "to": to, "data": data, "gas": "0x989680" }]);
        let hash = self.rpc("eth_sendTransaction", tx).await;
        let receipt = self.receipt(&hash).await;
        let hash: alloy::primitives::B256 = hash.as_str().unwrap().parse().unwrap();
        (hash.0, receipt["status"] == "0x1")
    }

    /// Whether this call would go through, and its answer.
    pub async fn simulate(&self, from: Address, to: Address, data: &[u8]) -> Result<Vec<u8>, String> {
        let data = format!("0x{}", hex::encode(data));
        let answer = self.try_rpc("eth_call", json!([{ "from": from, "to": to, "data": data }, "latest"])).await;
        let text = answer.map_err(|error| error.to_string())?;
        Ok(hex::decode(text.as_str().unwrap().trim_start_matches("0x")).unwrap())
    }

    pub async fn number(&self, to: Address, data: &[u8]) -> u128 {
        let bytes = self.simulate(RELAY, to, data).await.unwrap();
        U256::from_be_slice(&bytes[..32]).to()
    }

    pub async fn balance(&self, token: Address, of: Address) -> Usdc {
        Usdc(self.number(token, &call("balanceOf(address)", &[word(of)])).await)
    }

    pub async fn mint(&self, token: Address, to: Address, amount: u128) {
        let mint = call("mint(address,uint256)", &[word(to), U256::from(amount)]);
        assert!(self.send(RELAY, token, &mint).await.1);
    }

    pub async fn channel(&self, id: &ChannelId) -> ChannelState {
        let [a, b, c] = state_calls(id);
        let read = async |data: &[u8]| self.simulate(RELAY, BATCH_SETTLEMENT, data).await.unwrap();
        let answers = [read(&a).await, read(&b).await, read(&c).await];
        read_state(&answers, self.height().await).unwrap()
    }

    pub async fn height(&self) -> u64 {
        let text = self.rpc("eth_blockNumber", json!([])).await;
        u64::from_str_radix(text.as_str().unwrap().trim_start_matches("0x"), 16).unwrap()
    }
}
