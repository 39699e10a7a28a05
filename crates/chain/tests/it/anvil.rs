//! The development chain as a child process, and what is refused at start.

use chain::{
    Addresses, Chain, Kind,
    alloy::primitives::Address,
    anvil::{Anvil, AnvilOptions},
};
use std::time::Duration;

use crate::world::{World, anvil_bin};

#[tokio::test]
async fn a_stopped_chain_goes_on_where_it_was() {
    let dir = tempfile::tempdir().expect("tempdir");
    let options = AnvilOptions { state: Some(dir.path().join("chain.json")), ..AnvilOptions::new(anvil_bin()) };
    let anvil = Anvil::spawn(&options).await.expect("starts");
    let chain = anvil.chain();
    let mut last = chain.head().await.expect("head");
    while last.number < 2 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        last = chain.head().await.expect("head");
    }
    anvil.stop().await.expect("writes its state and ends");
    // Wall time goes on; chain time must not.
    tokio::time::sleep(Duration::from_secs(5)).await;

    let anvil = Anvil::spawn(&options).await.expect("starts again");
    let chain = anvil.chain();
    let block = chain.block(last.hash).await.expect("answers").expect("the old blocks are there");
    assert_eq!(block, last);
    let mut head = chain.head().await.expect("head");
    while head.number <= last.number + 1 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        head = chain.head().await.expect("head");
    }
    let blocks = head.number - last.number;
    let passed = head.timestamp - last.timestamp;
    assert!(passed <= blocks + 2, "{blocks} blocks took {passed} s of chain time");
    anvil.stop().await.expect("ends");
}

#[tokio::test]
async fn what_cannot_start_says_why() {
    let missing = AnvilOptions::new("/nonexistent/anvil".into());
    let error = Anvil::spawn(&missing).await.expect_err("no such program");
    assert!(error.to_string().starts_with("cannot start /nonexistent/anvil"), "{error}");

    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("bound").port();
    let busy = AnvilOptions { port, ..AnvilOptions::new(anvil_bin()) };
    let error = Anvil::spawn(&busy).await.expect_err("the port is taken");
    assert!(error.to_string().contains(&format!("port {port} is not free")), "{error}");
}

#[tokio::test]
async fn wrong_chains_and_addresses_are_refused_with_the_reason() {
    let world = World::instant().await;
    let other = Chain::connect(world.chain.url(), 1).expect("a URL");
    assert_eq!(other.verify_chain().await.expect_err("31337 is not 1").kind, Kind::WrongChain);

    world.chain.verify_contracts(&world.addresses).await.expect("all there");
    let nobody = Address::repeat_byte(0x99);
    let Addresses { usdc, market, factory } = world.addresses;
    for wrong in [
        Addresses { usdc: nobody, ..world.addresses },
        Addresses { usdc: market, ..world.addresses },
        Addresses { market: usdc, ..world.addresses },
        Addresses { market: factory, ..world.addresses },
        Addresses { factory: usdc, ..world.addresses },
    ] {
        let error = world.chain.verify_contracts(&wrong).await.expect_err("not what it is taken for");
        assert_eq!(error.kind, Kind::Missing, "{error}");
    }
    let error = world.chain.treasury(usdc).verify().await.expect_err("a token is no treasury");
    assert_eq!(error.kind, Kind::Missing, "{error}");

    assert_eq!(Chain::connect("wss://example.org", 1).expect_err("HTTP only").kind, Kind::Usage);
    let silent = Chain::connect("http://127.0.0.1:1", 1).expect("a URL");
    assert!(silent.verify_chain().await.expect_err("nobody listens").is_transient());
}
