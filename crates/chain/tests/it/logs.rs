//! The log reader against a node that reorganises its chain.

use chain::{
    alloy::primitives::Address,
    logs::{Event, LogCore, LogItem, LogReader, Sources},
};

use crate::world::World;

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
