//! Two endpoints of one chain, and one of another chain that says it is the same.

use crate::world::anvil_bin;
use chain::alloy::eips::BlockId;
use chain::alloy::primitives::Address;
use chain::anvil::{Anvil, AnvilOptions};
use chain::deploy::fund_eth;
use chain::heads::{LAG_BLOCKS_MAX, agreed, common_head};
use chain::{Chain, Kind};

#[tokio::test]
async fn endpoints_that_differ_or_lag_give_no_head() {
    let options = AnvilOptions { block_time: None, ..AnvilOptions::new(anvil_bin()) };
    let (one, stranger) =
        (Anvil::spawn(&options).await.expect("starts"), Anvil::spawn(&options).await.expect("starts"));
    let mine = async |chain: &Chain, blocks: u64| {
        let _: serde_json::Value = chain.request("anvil_mine", (blocks,)).await.expect("mines");
    };
    let by_name = one.url().replace("127.0.0.1", "localhost");
    let (a, again) = (one.chain(), Chain::connect(&by_name, one.chain().chain_id()).expect("a URL"));
    mine(&a, 3).await;
    assert_eq!(common_head(&[a.clone(), again]).await.expect("they agree").number, 3);
    assert_eq!(common_head(std::slice::from_ref(&a)).await.expect("one is enough").number, 3);

    let both = [a.clone(), stranger.chain()];
    // What it says of one account makes its blocks others, also when both chains began in one second.
    fund_eth(&both[1], Address::repeat_byte(7), 1).await.expect("funds");
    mine(&both[1], 2).await;
    let differ = common_head(&both).await.expect_err("two chains");
    assert!(differ.kind == Kind::Rpc && differ.to_string().contains("has another block 2"), "{differ}");
    // What is read counts when all say the same.
    let rich = Address::repeat_byte(7);
    let balance = |chain: Chain| async move { chain.eth_balance(rich, BlockId::latest()).await };
    assert!(agreed(&both[..1], "a balance", balance).await.expect("one is enough").is_zero());
    let differ = agreed(&both, "a balance", balance).await.expect_err("one has it, the other has not");
    assert!(differ.kind == Kind::Rpc && differ.to_string().contains("differ about a balance"), "{differ}");
    assert!(agreed(&[], "a balance", balance).await.is_err());
    mine(&a, LAG_BLOCKS_MAX).await;
    let lags = common_head(&both).await.expect_err("too far apart");
    assert!(lags.to_string().contains("is 21 blocks behind"), "{lags}");
    assert!(common_head(&[]).await.is_err());
    one.stop().await.expect("ends");
    stranger.stop().await.expect("ends");
}
