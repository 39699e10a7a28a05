//! Refunds of channels while a reorganisation takes blocks back: the channel contract pays as often as it is asked, while
//! the balance lasts.

use super::tests::{block, node_on};
use super::*;
use crate::stand_in;
use alloy::consensus::{Transaction as _, TxEnvelope};
use alloy::eips::Decodable2718;
use alloy::primitives::{Bytes, U256};
use alloy::rpc::types::{Block, Transaction};
use alloy::sol_types::SolCall;
use chain::bindings::Treasury::refundChannelCall;
use pay::Usdc;
use pay::book::{BookInput, ChannelInput};
use pay::scheme::channel::facilitator::state_calls;
use pay::scheme::channel::{ChannelConfig, ChannelDomain, ChannelState};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicU64, Ordering};

/// In each channel, and the part that its payer wants back, micro-USDC.
const BALANCE: u64 = 1_000;
const BACK: u64 = 300;
/// The block in which everything is mined, and the first one.
const MINED_IN: u64 = 100;
/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// A STAND-IN for a chain with a new block at each look at its head. It takes every transaction, and the operator's are
/// mined up to `mined`.
struct Land {
    height: AtomicU64,
    mined: AtomicU64,
    /// Salt of the channel whose refund was sent, and the transaction's nonce.
    sent: mpsc::UnboundedSender<(u8, u64)>,
    /// How often a channel was read.
    reads: watch::Sender<u64>,
}

type Arrives = mpsc::UnboundedReceiver<(u8, u64)>;

impl Land {
    async fn served() -> (Arc<Self>, String, Arrives) {
        let (sent, arrives) = mpsc::unbounded_channel();
        let land = Arc::new(Self {
            height: AtomicU64::new(MINED_IN),
            mined: AtomicU64::new(0),
            sent,
            reads: watch::Sender::new(0),
        });
        let served = land.clone();
        let answer = move |asked: Value| {
            let land = served.clone();
            async move { Ok(land.answer(&asked)) }
        };
        (land, stand_in::endpoint(answer).await, arrives)
    }

    fn answer(&self, asked: &Value) -> Value {
        let (mined, input) = (self.mined.load(Ordering::SeqCst), &asked["params"][0]);
        let data = stand_in::input(input);
        let calls = state_calls(&ChannelId([0; 32])).map(|call| Bytes::from(call[..4].to_vec()).to_string());
        match asked["method"].as_str() {
            Some("eth_getBlockByNumber") => {
                let height = self.height.fetch_add(1, Ordering::SeqCst);
                let mut head = serde_json::to_value(Block::<Transaction>::default()).unwrap();
                (head["number"], head["hash"]) = (json!(format!("{height:#x}")), json!(B256::from(U256::from(height))));
                head
            }
            Some("eth_getTransactionCount") => json!(format!("{mined:#x}")),
            Some("eth_estimateGas") => json!("0x5208"),
            Some("eth_sendRawTransaction") => {
                let raw: Bytes = input.as_str().unwrap().parse().unwrap();
                let tx = TxEnvelope::decode_2718(&mut &raw[..]).unwrap();
                let refund = refundChannelCall::abi_decode(tx.input()).unwrap();
                self.sent.send((refund.config.salt[0], tx.nonce())).unwrap();
                json!(tx.tx_hash())
            }
            Some("eth_getTransactionReceipt") if mined > 0 => stand_in::receipt(input, MINED_IN, &[]),
            Some("eth_call") if data.starts_with(&calls[0]) => {
                stand_in::words(&[u128::from(BALANCE - BACK * mined), 0])
            }
            Some("eth_call") if data.starts_with(&calls[1]) => stand_in::words(&[0, 0]),
            Some("eth_call") => {
                self.reads.send_modify(|reads| *reads += 1);
                stand_in::words(&[mined.into()])
            }
            _ => Value::Null,
        }
    }
}

/// A node that leads on this chain, with the memory that it has in `dir`, and waits long for a refund that was taken back.
fn leading(rpc_url: &str, dir: &std::path::Path) -> (Node, mpsc::Receiver<Event>) {
    let (mut node, heard) = node_on(rpc_url, dir);
    Arc::get_mut(&mut node.cx).expect("its only owner").manifest.payments.final_blocks = 100_000;
    node.wake_from_disk().unwrap();
    node.on_chain(block(&node, 1, 1, (1, true))).unwrap();
    (node, heard)
}

/// The channel with this salt, as the chain shows it in `block`.
fn sees(node: &mut Node, salt: u8, block: u64) -> ChannelId {
    let treasury = node.cx.config.treasury.into_array();
    let config = ChannelConfig {
        payer: [0xC1; 20],
        payer_authorizer: [0xC1; 20],
        receiver: treasury,
        receiver_authorizer: treasury,
        token: node.cx.birth.token.into_array(),
        withdraw_delay_secs: 900,
        salt: [salt; 32],
    };
    let channel = ChannelDomain::new(node.cx.config.chain_id).channel_id(&config);
    let state = ChannelState { balance: Usdc(BALANCE.into()), block, ..ChannelState::default() };
    records(node, ChannelInput::Seen { channel, config, state, at: 1_000 });
    channel
}

/// Its payer wants a part of it back.
fn wants_back(node: &mut Node, salt: u8) {
    let channel = sees(node, salt, 1);
    records(node, ChannelInput::RefundAsked { channel, amount: Usdc(BACK.into()), at: 1_000 });
}

/// The record is on the disk, and what follows from it leaves.
fn records(node: &mut Node, input: ChannelInput) {
    let live = node.live.as_mut().unwrap();
    let last = live.record(1_000, &Recorded::Book(BookInput::Channel(input))).unwrap();
    node.on_durable(last).unwrap();
}

/// The refund that is under way ends.
async fn ends(node: &mut Node, heard: &mut mpsc::Receiver<Event>) {
    let is_open = |node: &Node| node.live.as_ref().unwrap().state.book.channels().refunds().next().is_some();
    while is_open(node) {
        let event = tokio::time::timeout(PATIENCE, heard.recv()).await.expect("it ends").unwrap();
        node.on_event(event).unwrap();
    }
}

/// The task that sends a refund is the only one, also when the process begins to lead again beside it.
#[tokio::test]
async fn a_channel_refund_on_its_way_is_not_sent_again_when_the_move_is_taken_back() {
    let dir = tempfile::tempdir().unwrap();
    let (_land, url, mut arrives) = Land::served().await;
    let (mut node, _heard) = leading(&url, dir.path());
    wants_back(&mut node, 1);
    assert_eq!(arrives.recv().await, Some((1, 0)));
    // It waits in the pool. The move is mined, this journal closed, and the block of the move is gone.
    node.on_chain(block(&node, 2, 2, (2, false))).unwrap();
    node.turned_ms = Some(0);
    node.drain();
    assert!(node.live.as_ref().unwrap().sealed);
    node.on_chain(block(&node, 2, 3, (1, true))).unwrap();
    assert!(node.acts());
    let last = node.live.as_ref().unwrap().journal.last_lsn();
    node.on_durable(last).unwrap();
    // Another one goes the same way behind it.
    wants_back(&mut node, 2);
    loop {
        match arrives.recv().await.unwrap() {
            (1, nonce) => assert_eq!(nonce, 0, "the first is not sent under another nonce"),
            (2, _) => break,
            other => panic!("{other:?}"),
        }
    }
}

/// Its block is taken back: the outbox sends the same transaction again. A second one would take out as much again.
#[tokio::test]
async fn a_channel_refund_that_is_taken_back_with_its_block_is_left_to_its_transaction() {
    let dir = tempfile::tempdir().unwrap();
    let (land, url, mut arrives) = Land::served().await;
    let (mut node, mut heard) = leading(&url, dir.path());
    wants_back(&mut node, 1);
    assert_eq!(arrives.recv().await, Some((1, 0)));
    land.mined.store(1, Ordering::SeqCst);
    ends(&mut node, &mut heard).await;
    while arrives.try_recv().is_ok() {}
    // Another branch, in which it waits in the pool.
    land.mined.store(0, Ordering::SeqCst);
    sees(&mut node, 1, 1_000_000);
    let again = tokio::time::timeout(PATIENCE, arrives.recv()).await.expect("it is sent again");
    assert_eq!(again, Some((1, 0)), "under the nonce that it had");
    land.mined.store(1, Ordering::SeqCst);
    ends(&mut node, &mut heard).await;
    while let Ok(sent) = arrives.try_recv() {
        assert_eq!(sent, (1, 0));
    }
}

/// One process of the agent: with it go all the tasks that it had.
fn process() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

/// Killed before it heard that its refund is mined; when it starts again, another branch has taken the block's place.
#[test]
fn a_channel_refund_of_the_process_before_is_left_to_its_transaction() {
    let dir = tempfile::tempdir().unwrap();
    let chain = process();
    let (land, url, mut arrives) = chain.block_on(Land::served());
    process().block_on(async {
        let (mut node, mut heard) = leading(&url, dir.path());
        wants_back(&mut node, 1);
        assert_eq!(arrives.recv().await, Some((1, 0)));
        land.mined.store(1, Ordering::SeqCst);
        loop {
            match tokio::time::timeout(PATIENCE, heard.recv()).await.expect("it is mined").unwrap() {
                Event::ChannelRead(_) => break,
                other => drop(node.on_event(other).unwrap()),
            }
        }
    });
    while arrives.try_recv().is_ok() {}
    land.mined.store(0, Ordering::SeqCst);
    land.reads.send_replace(0);
    process().block_on(async {
        let (mut node, mut heard) = leading(&url, dir.path());
        let mut reads = land.reads.subscribe();
        tokio::time::timeout(PATIENCE, async {
            let (mut is_sent, mut looks) = (false, false);
            while !(is_sent && looks) {
                tokio::select! {
                    sent = arrives.recv() => {
                        assert_eq!(sent, Some((1, 0)), "only what was sent before");
                        is_sent = true;
                    }
                    Ok(_) = reads.wait_for(|reads| *reads >= 3), if !looks => looks = true,
                    Some(event) = heard.recv() => drop(node.on_event(event).unwrap()),
                }
            }
        })
        .await
        .expect("it is sent again, and looked for");
        land.mined.store(1, Ordering::SeqCst);
        ends(&mut node, &mut heard).await;
        while let Ok(sent) = arrives.try_recv() {
            assert_eq!(sent, (1, 0));
        }
    });
}
