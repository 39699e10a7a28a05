//! The log reader against a node that reorganises its chain.

use crate::stand_in;
use crate::world::World;
use chain::{
    Head,
    alloy::primitives::{Address, B256},
    logs::{Event, LogCore, LogItem, LogReader, Sources},
};
use serde_json::json;
use std::sync::{Arc, Mutex};

/// Transfers to the treasury less what was taken back, and how many items were taken back.
fn sum(items: &[LogItem]) -> (i64, usize) {
    let amount = |event: &Event| match event {
        Event::Transfer { amount, .. } => i64::try_from(*amount).expect("small"),
        _ => 0,
    };
    items.iter().fold((0, 0), |(sum, reverted), item| match item {
        LogItem::Emitted(log) => (sum + amount(&log.event), reverted),
        LogItem::Reverted(log) => (sum - amount(&log.event), reverted + 1),
        LogItem::TakenBack { .. } => (sum, reverted),
    })
}

#[tokio::test]
async fn what_a_reorg_takes_back_is_taken_back_once() {
    let world = World::instant().await;
    let treasury = Address::repeat_byte(0x77);
    let sources = Sources { treasury, market: world.addresses.market, usdc: world.addresses.usdc };
    let start = world.chain.head().await.expect("head").number + 1;
    let mut reader = LogReader::new(vec![world.chain.clone()], LogCore::new(sources, start));

    // 100 and 200 to the treasury, 1 to somebody else, who is of no concern.
    world.mint(treasury, 100).await;
    world.mint(treasury, 200).await;
    world.mint(Address::repeat_byte(0x78), 1).await;
    let head = world.chain.head().await.expect("head");
    let items = reader.poll(head).await.expect("logs");
    assert_eq!((sum(&items), items.len()), ((300, 0), 2));

    // The reader is restarted from what it kept, while the chain loses the newest two blocks.
    let kept = reader.core().to_bytes();
    world.reorg(2).await;
    let mut reader = LogReader::new(vec![world.chain.clone()], LogCore::from_bytes(&kept, sources).expect("kept"));
    let head = world.chain.head().await.expect("head");
    let items = reader.poll(head).await.expect("logs");
    assert_eq!(sum(&items), (-200, 1));
    assert_eq!(world.usdc_of(treasury).await, 100);

    // The height did not change; asked again there is nothing to say.
    assert_eq!(reader.poll(head).await.expect("logs"), []);
    // The sender notices what was lost, and sends it again in front of the next one.
    world.mint(treasury, 7).await;
    let head = world.chain.head().await.expect("head");
    assert_eq!(sum(&reader.poll(head).await.expect("logs")), (207, 0));
    assert_eq!(world.usdc_of(treasury).await, 307);
}

#[tokio::test]
async fn a_reader_far_behind_catches_up() {
    let world = World::instant().await;
    let treasury = Address::repeat_byte(0x77);
    let sources = Sources { treasury, market: world.addresses.market, usdc: world.addresses.usdc };
    let start = world.chain.head().await.expect("head").number + 1;
    world.mint(treasury, 1).await;
    for _ in 0..6 {
        world.mine(200).await;
    }
    world.mint(treasury, 2).await;
    world.mine(10).await;
    world.mint(treasury, 4).await;
    let mut reader = LogReader::new(vec![world.chain.clone()], LogCore::new(sources, start));
    let head = world.chain.head().await.expect("head");
    let items = reader.poll(head).await.expect("logs");
    assert_eq!((sum(&items), reader.core().next_block()), ((7, 0), head.number + 1));
    world.reorg(12).await;
    let head = world.chain.head().await.expect("head");
    assert_eq!(sum(&reader.poll(head).await.expect("logs")), (-6, 2));
}

/// As public ones are: a bound of blocks, or of logs, that nobody tells.
#[tokio::test]
async fn an_endpoint_that_does_not_answer_for_many_blocks_is_asked_for_fewer() {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let seen = asked.clone();
    let chain = stand_in::endpoint(move |request| {
        let filter = request["params"][0].clone();
        let number = |name: &str| filter[name].as_str().and_then(|text| u64::from_str_radix(&text[2..], 16).ok());
        let blocks = number("toBlock").zip(number("fromBlock")).map(|(last, first)| last - first + 1);
        let is_refused = blocks.is_some_and(|blocks| blocks > 150);
        if request["method"] == "eth_getLogs" && !seen.lock().unwrap().ends_with(&[blocks]) {
            seen.lock().unwrap().push(blocks);
        }
        async move {
            match is_refused {
                true => json!({ "error": { "code": -32005, "message": "query returned more than 10000 results" } }),
                false => json!({ "result": [] }),
            }
        }
    })
    .await;
    let any = Address::repeat_byte(0x77);
    let mut reader = LogReader::new(vec![chain], LogCore::new(Sources { treasury: any, market: any, usdc: any }, 1));
    let head =
        Head { number: 1_600, hash: B256::repeat_byte(1), parent: B256::repeat_byte(2), timestamp: 0, base_fee: 0 };
    // The blocks near the head are asked for by their hashes, which this one does not know: an error of another kind.
    for _ in 0..20 {
        let _ = reader.poll(head).await;
    }
    let asked = asked.lock().unwrap().clone();
    // All but the last 64.
    assert_eq!(asked[..5], [1_000, 500, 250, 125, 1_536 % 125].map(Some), "{asked:?}");
}
