use super::*;
use crate::context;
use crate::stand_in::{self, Said};
use alloy::rpc::types::Block;
use alloy::sol_types::SolEvent;
use serde_json::{Value, json};
use std::sync::atomic::{AtomicU64, Ordering};

/// A STAND-IN for a chain endpoint: in each block a stranger gives the treasury one micro-USDC `in_block` times, and of so
/// many transactions as `tells_receipts` it says what they were.
struct Gifts {
    in_block: u64,
    tells_receipts: AtomicU64,
}

impl Gifts {
    fn new(in_block: u64) -> Arc<Self> {
        Arc::new(Self { in_block, tells_receipts: AtomicU64::new(0) })
    }

    async fn served(self: Arc<Self>) -> String {
        let answer = move |asked: Value| {
            let gifts = self.clone();
            async move { gifts.answer(&asked) }
        };
        stand_in::endpoint(answer).await
    }

    fn answer(&self, asked: &Value) -> Said {
        Ok(match asked["method"].as_str() {
            Some("eth_getBlockByHash") => {
                let mut block: Block = Block::default();
                let head = head(number_of(&asked["params"][0]));
                (block.header.hash, block.header.number) = (head.hash, head.number);
                block.header.parent_hash = head.parent;
                serde_json::to_value(block).unwrap()
            }
            Some("eth_getLogs") => {
                let filter = &asked["params"][0];
                let about = filter["topics"][2].as_str();
                let is_incoming = about == Some(&context::TREASURY_OF_TESTS.into_word().to_string());
                let gifts = if is_incoming { self.in_block } else { 0 };
                (0..gifts).map(|index| gift(&filter["blockHash"], index)).collect()
            }
            Some("eth_getTransactionReceipt") if self.tells_one() => Value::Null,
            _ => return Err(json!({ "code": -32000, "message": "not now" })),
        })
    }

    fn tells_one(&self) -> bool {
        let one_less = |left: u64| left.checked_sub(1);
        self.tells_receipts.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less).is_ok()
    }
}

fn head(number: u64) -> Head {
    let hash = |number: u64| B256::from(U256::from(number + 1_000));
    Head { number, hash: hash(number), parent: hash(number - 1), timestamp: 0, base_fee: 0 }
}

fn number_of(hash: &Value) -> u64 {
    let hash: B256 = hash.as_str().unwrap().parse().unwrap();
    u64::try_from(U256::from_be_bytes(hash.0)).unwrap() - 1_000
}

fn gift(block: &Value, index: u64) -> Value {
    let topics = [
        chain::bindings::TestUSDC::Transfer::SIGNATURE_HASH,
        Address::repeat_byte(0x51).into_word(),
        context::TREASURY_OF_TESTS.into_word(),
    ];
    json!({
        "address": Address::repeat_byte(0xa5), "topics": topics, "data": B256::from(U256::from(1)), "blockHash": block,
        "blockNumber": format!("{:#x}", number_of(block)), "transactionIndex": format!("{index:#x}"),
        "transactionHash": B256::from(U256::from(number_of(block) * 1_000 + index)),
        "logIndex": format!("{index:#x}"), "removed": false,
    })
}

#[tokio::test]
async fn what_waits_for_an_answer_does_not_grow_with_the_chain() {
    let dir = tempfile::tempdir().unwrap();
    let gifts = Gifts::new(1);
    let (cx, _heard) = context::for_tests(&gifts.clone().served().await, dir.path());
    let mut reader = Reader::new(LogReader::new(cx.chains.clone(), LogCore::new(sources(&cx), 1)));

    for number in 1..=20 {
        reader.poll(&cx, head(number)).await.unwrap_err();
        assert_eq!(reader.waiting.len(), 1, "only the first block was read");
    }
    gifts.tells_receipts.store(20, Ordering::SeqCst);
    let (told, signed) = reader.poll(&cx, head(20)).await.unwrap();
    let blocks: Vec<u64> = told.iter().filter_map(LogItem::log).map(|log| log.block).collect();
    assert_eq!(blocks, (1..=20).collect::<Vec<_>>(), "each once and in order");
    assert!(signed.is_empty(), "gifts");
    assert!(reader.waiting.is_empty());
}

/// An endpoint that tells of no more than 120 transactions in a minute.
#[tokio::test]
async fn a_look_with_many_gifts_goes_on_where_the_endpoint_failed() {
    let dir = tempfile::tempdir().unwrap();
    let gifts = Gifts::new(250);
    let (cx, _heard) = context::for_tests(&gifts.clone().served().await, dir.path());
    let mut reader = Reader::new(LogReader::new(cx.chains.clone(), LogCore::new(sources(&cx), 1)));
    let mut look = async || {
        gifts.tells_receipts.store(120, Ordering::SeqCst);
        reader.poll(&cx, head(1)).await.map(|(told, _)| told.len())
    };
    look().await.unwrap_err();
    look().await.unwrap_err();
    assert_eq!(look().await.unwrap(), 250);
}
