//! The provider's key when the ways to the chain come and go. The chain is one; each way to it can be shut.

use crate::life::{ETHER, anvil_bin, key, until};
use chain::Chain;
use chain::alloy::eips::BlockId;
use chain::alloy::primitives::{Address, Bytes, U256};
use chain::anvil::{Anvil, AnvilOptions};
use chain::deploy::fund_eth;
use host::HostConfig;
use host::market::Call;
use host::sender::{Errand, Outcome, Sender};
use serde_json::Value;
use std::net::Ipv4Addr;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

const WEI: u128 = 20_000_000_000_000_000;
const FIRST: Address = Address::repeat_byte(0x51);
const SECOND: Address = Address::repeat_byte(0x52);

/// A way to a port that can be shut: what goes through it is cut off then, and whoever comes is turned away.
struct Door {
    url: String,
    is_open: watch::Sender<bool>,
}

impl Door {
    async fn to(port: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (is_open, seen) = watch::channel(true);
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                tokio::spawn(carry(near, port, seen.clone()));
            }
        });
        Self { url, is_open }
    }
}

async fn carry(mut near: TcpStream, port: u16, mut is_open: watch::Receiver<bool>) {
    let mut far = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
    tokio::select! {
        biased;
        _ = is_open.wait_for(|open| !open) => {}
        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
    }
}

/// A chain that makes a block for each transaction, and a provider with ether on it.
async fn chain() -> (Anvil, Chain) {
    let anvil = Anvil::spawn(&AnvilOptions { block_time: None, ..AnvilOptions::new(anvil_bin()) }).await.unwrap();
    let chain = anvil.chain();
    fund_eth(&chain, key(2).address(), ETHER).await.unwrap();
    (anvil, chain)
}

async fn sender(rpc_urls: &[&str]) -> Sender {
    let config = format!(
        r#"
            data_dir = "/nowhere"
            listen = "127.0.0.1:0"
            public_url = "http://127.0.0.1:7001"
            rpc_urls = {rpc_urls:?}
            chain_id = 31337
            market = "{FIRST}"
            usdc = "{FIRST}"
            key_file = "/nowhere"
            store_urls = ["http://127.0.0.1:7000"]
            offers = []
            stake_uusdc = 1
            abuse_contact = ""
        "#
    );
    Sender::start(&HostConfig::parse(&config).unwrap(), key(2)).await.unwrap()
}

fn gift(lease: u64, to: Address) -> Errand {
    Errand::Gift { lease, to, wei: WEI }
}

async fn outcome(sender: &mut Sender) -> Outcome {
    tokio::time::timeout(Duration::from_secs(60), sender.outcome()).await.expect("an outcome")
}

async fn nonce(chain: &Chain, at: BlockId) -> u64 {
    chain.nonce(key(2).address(), at).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn another_endpoint_goes_on_where_one_stopped_and_nothing_is_sent_twice() {
    let (anvil, chain) = chain().await;
    let door = Door::to(anvil.port()).await;
    let mut sender = sender(&[&door.url, anvil.url()]).await;

    // One has left and is in no block yet when its endpoint dies; another comes after that.
    let _: Value = chain.request("evm_setAutomine", (false,)).await.unwrap();
    sender.push(gift(1, FIRST));
    let pending = async |n| (n == nonce(&chain, BlockId::pending()).await).then_some(());
    until("the first in the pool", || pending(1)).await;
    door.is_open.send(false).unwrap();
    sender.push(gift(2, SECOND));
    until("the second in the pool", || pending(2)).await;

    let _: Value = chain.request("evm_setAutomine", (true,)).await.unwrap();
    let _: Value = chain.request("evm_mine", ()).await.unwrap();
    for _ in 0..2 {
        let outcome = outcome(&mut sender).await;
        assert!(matches!(outcome, Outcome::Done { errand: Errand::Gift { .. } }), "{outcome:?}");
    }
    for node_key in [FIRST, SECOND] {
        assert_eq!(chain.eth_balance(node_key, BlockId::latest()).await.unwrap(), U256::from(WEI));
    }
    assert_eq!(nonce(&chain, BlockId::pending()).await, 2, "two errands are two transactions");
    anvil.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_is_not_queued_again_and_a_balance_that_nobody_tells_is_not_zero() {
    let (anvil, chain) = chain().await;
    let door = Door::to(anvil.port()).await;
    let mut sender = sender(&[&door.url]).await;

    door.is_open.send(false).unwrap();
    for _ in 0..3 {
        let call = Call { to: SECOND, data: Bytes::new() };
        sender.push(Errand::Call { what: "withdraw", of: 7, call, income_uusdc: 0 });
    }
    sender.push(gift(1, FIRST));
    let unread = outcome(&mut sender).await;
    assert!(matches!(unread, Outcome::NotSent { errand: Errand::Gift { lease: 1, .. }, .. }), "{unread:?}");

    door.is_open.send(true).unwrap();
    let late = outcome(&mut sender).await;
    assert!(matches!(late, Outcome::Done { errand: Errand::Call { of: 7, .. } }), "{late:?}");
    // It was answered, so it may be asked for again; a key that has its gas is not sent any.
    for _ in 0..2 {
        sender.push(gift(1, FIRST));
        let given = outcome(&mut sender).await;
        assert!(matches!(given, Outcome::Done { errand: Errand::Gift { .. } }), "{given:?}");
    }
    assert_eq!(chain.eth_balance(FIRST, BlockId::latest()).await.unwrap(), U256::from(WEI));
    assert_eq!(nonce(&chain, BlockId::pending()).await, 2, "one withdrawal and one gift");
    anvil.stop().await.unwrap();
}
