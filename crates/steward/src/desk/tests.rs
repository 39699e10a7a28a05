use super::*;
use crate::api::{Notes, router};
use axum::extract::State as Shared;
use axum::routing::post;
use axum::{Json, Router};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

async fn served(app: Router) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let app = app.into_make_service_with_connect_info::<SocketAddr>();
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    url
}

/// A steward's routes, and how often it asked its chain, a STAND-IN on which no contract is.
async fn steward(dir: &std::path::Path) -> (String, Arc<AtomicU64>) {
    let asked = Arc::new(AtomicU64::new(0));
    let empty = |Shared(asked): Shared<Arc<AtomicU64>>, Json(call): Json<Value>| async move {
        asked.fetch_add(1, Ordering::SeqCst);
        Json(json!({ "jsonrpc": "2.0", "id": call["id"], "result": "0x" }))
    };
    let chain = served(Router::new().route("/", post(empty)).with_state(asked.clone())).await;
    let config = StewardConfig {
        data_dir: dir.to_owned(),
        listen: ([127, 0, 0, 1], 0).into(),
        rpc_urls: vec![chain.clone()],
        chain_id: 31337,
        treasuries: vec![],
        factory: None,
        order_key_file: dir.join("order.key"),
        share_key_file: dir.join("share.key"),
        peers: vec![],
        store_urls: vec![],
        probe: false,
    };
    let eyes = Eyes::new(&[chain], 31337).unwrap();
    let desk = Desk::new(config, eyes, PrivateKeySigner::random(), Identity::generate()).unwrap();
    (served(router(Arc::new(desk), Notes::default())).await, asked)
}

#[tokio::test]
async fn a_treasury_that_is_none_is_looked_for_once_and_who_floods_is_told_to_wait() {
    let dir = tempfile::tempdir().unwrap();
    let (url, asked) = steward(dir.path()).await;
    let http = net::Client::new();
    let nobody = Address::repeat_byte(3);
    let header = SegmentHeader {
        agent: nobody,
        chain_id: 31337,
        epoch: 1,
        index: 0,
        first_lsn: 1,
        last_lsn: 2,
        cid: cid::of_raw(b"segment"),
        prev: None,
        bytes: 7,
        recipient: Identity::generate().recipient().to_string(),
        signature: format!("0x{}", "00".repeat(65)),
    };
    let rescue = json!({ "treasury": nobody, "action": "rescue", "offer": 1, "term": 600, "prepay_uusdc": 1,
        "nonce": 0, "deadline": 1 });
    let share = json!({ "treasury": nobody, "chain_id": 31337, "epoch": 1, "lease": 1,
        "recipient": Identity::generate().recipient().to_string(), "signature": format!("0x{}", "00".repeat(65)) });
    let routes = [
        ("ack", json!({ "treasury": nobody, "seq": 1, "digest": B256::ZERO }), 30),
        ("sign-order", rescue, 30),
        ("segments", serde_json::to_value(header).unwrap(), 300),
        ("segments of", json!({}), 300),
        ("share", share, 30),
    ];
    for (route, body, burst) in routes {
        let (mut unknown, mut told_to_wait) = (0, 0);
        // A busy machine lets a few more through while this goes on.
        for _ in 0..2 * burst {
            let answer = match route {
                "segments of" => http.get(&format!("{url}/segments/{nobody}")).await.unwrap(),
                _ => http.post_json(&format!("{url}/{route}"), &body).await.unwrap(),
            };
            match answer.status.as_u16() {
                404 => unknown += 1,
                429 => told_to_wait += 1,
                other => panic!("{route}: {other}"),
            }
        }
        assert!(unknown >= burst && told_to_wait > 0, "{route}: {unknown} let in, {told_to_wait} told to wait");
    }
    let asked = asked.load(Ordering::SeqCst);
    // Each time it was forgotten, once more: seconds on a busy machine, and never once a request.
    assert!((1..=12).contains(&asked), "the chain was asked {asked} times");
}
