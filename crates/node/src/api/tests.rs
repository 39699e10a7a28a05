//! The API of a node that has no engine, with stand-ins for its chain and its main loop.

mod open;

use super::router;
use crate::answers::Answers;
use crate::ask::Ask;
use crate::context::{self, Context};
use crate::live::Live;
use crate::main_loop::{Event, Node};
use crate::memory::KeyRing;
use crate::shared::{Role, Shared};
use crate::stand_in;
use crate::state::Recorded;
use alloy::primitives::{B256, Bytes};
use alloy::rpc::types::{Block, Transaction};
use alloy::signers::local::PrivateKeySigner;
use axum::Router;
use axum::http::{HeaderMap, Method};
use pay::Usdc;
use pay::book::BookInput;
use pay::book::channels::ChannelInput;
use pay::buyer::{Buyer, BuyerPolicy, ChannelPolicy, Schemes};
use pay::scheme::channel::ChannelId;
use pay::scheme::channel::facilitator::state_calls;
use pay::wire::{PAYMENT_REQUIRED, PaymentRequired};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};

/// In each channel, and claimed of it.
const BALANCE: u128 = 1_000;
const CLAIMED: u128 = 100;

async fn served(app: Router) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let app = app.into_make_service_with_connect_info::<SocketAddr>();
    tokio::spawn(async move { axum::serve(listener, app).await });
    url
}

/// A STAND-IN for a chain on which every channel holds the same.
async fn chain() -> String {
    stand_in::endpoint(|asked| async move {
        let data = stand_in::input(&asked["params"][0]);
        let [channels, pending, _] = state_calls(&ChannelId([0; 32])).map(|call| Bytes::from(call[..4].to_vec()));
        Ok(match asked["method"].as_str() {
            Some("eth_getBlockByNumber") => serde_json::to_value(Block::<Transaction>::default()).unwrap(),
            Some("eth_call") if data.starts_with(&channels.to_string()) => stand_in::words(&[BALANCE, CLAIMED]),
            Some("eth_call") if data.starts_with(&pending.to_string()) => stand_in::words(&[0, 0]),
            Some("eth_call") => stand_in::words(&[0]),
            _ => Value::Null,
        })
    })
    .await
}

/// A STAND-IN for the main loop: it gives back what is asked for, without a transaction.
async fn main_loop(mut node: Node, mut heard: mpsc::Receiver<Event>) {
    while let Some(event) = heard.recv().await {
        match event {
            Event::Look(read) => read(&node),
            Event::Ask(ask) => {
                let Ask::GiveBack { ask, seen: (config, state), reply } = *ask else { continue };
                let free = state.balance.saturating_sub(state.claimed);
                let seen = ChannelInput::Seen { channel: ask.channel, config, state, at: 1 };
                let live = node.live.as_mut().unwrap();
                live.record(1, &Recorded::Book(BookInput::Channel(seen))).unwrap();
                let _ = reply.send(Ok(Some((free, B256::repeat_byte(7)))));
            }
            _ => {}
        }
    }
}

/// An active node that sells nothing.
async fn closed(rpc_url: &str, dir: &Path, change: impl FnOnce(&mut Context)) -> (Arc<Context>, String) {
    let (mut cx, heard) = context::for_tests(rpc_url, dir);
    change(&mut cx);
    let cx = Arc::new(cx);
    let shared = Arc::new(Shared::default());
    shared.set_role(Role::Active);
    shared.stop_selling("the agent winds down".to_owned());
    let mut node = Node::new(cx.clone(), shared.clone(), watch::channel(None).0);
    let journal =
        journal::Journal::create(&dir.join("journal"), journal::Options::default(), Box::new(|_| ())).unwrap();
    node.live = Some(Live::new(crate::genesis::for_tests(), journal, 0, KeyRing::default(), 0));
    tokio::spawn(main_loop(node, heard));
    let answers = Answers::open(&dir.join("answers")).unwrap();
    let url = served(router(cx.clone(), shared, answers)).await;
    (cx, url)
}

/// No price, no engine: there is nothing to buy, and whoever has money in a channel is given it back all the same. The
/// way is the official clients': look, then ask.
#[tokio::test]
async fn an_agent_that_sells_nothing_gives_back_what_its_channels_hold() {
    let (dir, rpc_url) = (tempfile::tempdir().unwrap(), chain().await);
    let (cx, url) = closed(&rpc_url, dir.path(), |_| ()).await;
    let policy = BuyerPolicy {
        network: format!("eip155:{}", cx.config.chain_id),
        asset: cx.birth.token,
        pay_to: cx.config.treasury,
        max_per_call: Usdc(1_000_000),
        max_total: Usdc(1_000_000),
    };
    let channels = ChannelPolicy {
        deposit: Usdc::ZERO,
        deposit_calls: 1,
        deposit_max: Usdc(BALANCE),
        withdraw_delay_secs_max: 900,
        slots: 1,
        lane: 0,
    };
    let buyer = Buyer::new(net::Client::new(), PrivateKeySigner::random(), policy)
        .with_schemes(Schemes::Channel(channels))
        .with_chain(&rpc_url);
    let route = format!("{url}/v1/chat/completions");
    assert_eq!(buyer.refund(&route).await.unwrap(), Usdc(BALANCE - CLAIMED));
}

/// What a token is called goes into its offers, and where it takes no EIP-3009 authorisations nothing is offered by
/// them.
#[tokio::test]
async fn offers_are_by_what_the_token_takes() {
    let (dir, rpc_url) = (tempfile::tempdir().unwrap(), chain().await);
    let offered = async |has_eip3009: bool| {
        let dir = tempfile::tempdir_in(dir.path()).unwrap();
        let (_, url) = closed(&rpc_url, dir.path(), |cx| {
            cx.token = ::chain::Signing { name: "USDC".to_owned(), has_eip3009, ..cx.token.clone() };
            cx.permit2.collector = true;
        })
        .await;
        let client = net::Client::new();
        let url = format!("{url}/v1/chat/completions");
        let answer = client.send(Method::GET, &url, HeaderMap::new(), Default::default()).await.unwrap();
        let accepts = PaymentRequired::from_header(answer.header(&PAYMENT_REQUIRED).unwrap()).unwrap().accepts;
        accepts.iter().map(|offer| offer.json()["extra"].clone()).collect::<Vec<_>>()
    };
    let by_token = offered(true).await;
    assert_eq!(
        (by_token.len(), &by_token[0]["name"], &by_token[0]["assetTransferMethod"]),
        (1, &json!("USDC"), &Value::Null)
    );
    let by_permit2 = offered(false).await;
    assert_eq!((by_permit2.len(), &by_permit2[0]["assetTransferMethod"]), (1, &json!("permit2")));
}

/// Whoever reads along holds a place until it hangs up; one address has only so many.
#[tokio::test]
async fn readers_of_events_are_counted() {
    let (dir, rpc_url) = (tempfile::tempdir().unwrap(), chain().await);
    let (_, url) = closed(&rpc_url, dir.path(), |_| ()).await;
    let http = net::Client::new();
    let events = format!("{url}/events");
    let read = || http.send(Method::GET, &events, HeaderMap::new(), Default::default());
    let mut readers = Vec::new();
    for _ in 0..64 {
        readers.push(read().await.unwrap());
    }
    assert!(readers.iter().all(|reader| reader.status == 200));
    let refused = read().await.unwrap();
    assert_eq!(refused.status, 429);
    drop((readers.pop(), refused));
    let let_in = async {
        while read().await.unwrap().status != 200 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(60), let_in).await.expect("a place is free");
}
