//! The Kubo client against a server that follows the published RPC interface (<https://docs.ipfs.tech/reference/kubo/rpc/>),
//! and against a real Kubo where `VIVARIUM_KUBO_API` names one.

use crate::support::{Store, noise, refused, spawn, store};
use axum::Router;
use axum::body::Bytes;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::post;
use net::Client;
use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use store::cid::{self, Cid};
use store::kubo::Kubo;
use store::{Blocks, Kind, car, unixfs};

#[derive(Clone)]
struct Node {
    blocks: Blocks,
    pins: Arc<Mutex<BTreeSet<String>>>,
    provided: Arc<Mutex<Vec<String>>>,
    imports: Arc<Mutex<u64>>,
}

type Arguments = Query<HashMap<String, String>>;

fn refusal(message: &str) -> Response {
    let body = serde_json::json!({ "Message": message, "Code": 0, "Type": "error" });
    (StatusCode::INTERNAL_SERVER_ERROR, axum::Json(body)).into_response()
}

/// As Kubo has it: every call is a POST, arguments are in the query, files in a form, answers JSON objects by lines.
fn node(here: &Store) -> (Router, Node) {
    let node =
        Node { blocks: here.blocks.clone(), pins: Arc::default(), provided: Arc::default(), imports: Arc::default() };
    let router = Router::new()
        .route("/api/v0/version", post(|| async { r#"{"Version":"0.38.0","Commit":"","Repo":"16"}"# }))
        .route("/api/v0/dag/import", post(import).layer(axum::extract::DefaultBodyLimit::max(17 << 20)))
        .route("/api/v0/pin/add", post(pin))
        .route("/api/v0/pin/rm", post(unpin))
        .route("/api/v0/block/get", post(block))
        .route("/api/v0/routing/provide", post(provide))
        .with_state(node.clone());
    (router, node)
}

async fn import(State(node): State<Node>, Query(arguments): Arguments, headers: HeaderMap, body: Bytes) -> Response {
    assert_eq!(arguments["pin-roots"], "false");
    let kind = headers["content-type"].to_str().unwrap();
    let boundary = kind.strip_prefix("multipart/form-data; boundary=").unwrap();
    let (open, close) = (format!("--{boundary}\r\n"), format!("\r\n--{boundary}--\r\n"));
    let form = body.strip_prefix(open.as_bytes()).and_then(|rest| rest.strip_suffix(close.as_bytes())).unwrap();
    let at = form.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
    assert!(std::str::from_utf8(&form[..at]).unwrap().contains(r#"form-data; name="file"; filename="#));
    *node.imports.lock().unwrap() += 1;
    match car::import(&node.blocks, &form[at + 4..]) {
        Ok(done) => format!("{{\"Stats\":{{\"BlockCount\":{},\"BlockBytesCount\":{}}}}}\n", done.blocks, done.bytes)
            .into_response(),
        Err(e) => refusal(&e.to_string()),
    }
}

async fn pin(State(node): State<Node>, Query(arguments): Arguments) -> Response {
    let root = cid::parse(&arguments["arg"]).unwrap();
    match store::cli::verify(node.blocks.dir(), Some(&root.to_string()), |_| {}) {
        Ok(seen) if seen.missing.is_empty() => {
            node.pins.lock().unwrap().insert(root.to_string());
            axum::Json(serde_json::json!({ "Pins": [root.to_string()] })).into_response()
        }
        _ => refusal("pin: block was not found locally (offline): ipld: could not find node"),
    }
}

async fn unpin(State(node): State<Node>, Query(arguments): Arguments) -> Response {
    match node.pins.lock().unwrap().remove(&arguments["arg"]) {
        true => axum::Json(serde_json::json!({ "Pins": [arguments["arg"]] })).into_response(),
        false => refusal("not pinned or pinned indirectly"),
    }
}

async fn block(State(node): State<Node>, Query(arguments): Arguments) -> Response {
    assert_eq!(arguments["offline"], "true");
    match node.blocks.get(&cid::parse(&arguments["arg"]).unwrap()) {
        Ok(bytes) => bytes.into_response(),
        Err(_) => refusal("block was not found locally (offline): ipld: could not find node"),
    }
}

async fn provide(State(node): State<Node>, Query(arguments): Arguments) -> Response {
    node.provided.lock().unwrap().push(arguments["arg"].clone());
    "{\"Type\":4}\n{\"Type\":4}\n".into_response()
}

fn client(url: &str) -> Kubo {
    Kubo::new(Client::new(), url)
}

#[tokio::test]
async fn a_graph_goes_to_a_node_is_pinned_announced_and_fetched_by_somebody_else() {
    let (here, there, third) = (store(), store(), store());
    let (router, node) = node(&there);
    let kubo = client(&spawn(router).await);
    assert_eq!(kubo.version().await.unwrap(), "0.38.0");
    // 34 leaves of 1 MiB do not fit into one call.
    let content = noise(34 << 20);
    let put = &mut |cid, bytes: Vec<u8>| here.blocks.put_later(&cid, &bytes);
    let root = unixfs::import_bytes(&content, unixfs::Profile::V1_2025, put).unwrap().cid;
    assert_eq!(kubo.add(&here.blocks, &root, |_| {}).await.unwrap(), 35);
    assert!(*node.imports.lock().unwrap() > 2);
    assert!(node.pins.lock().unwrap().contains(&root.to_string()));
    kubo.provide(&root).await.unwrap();
    assert_eq!(*node.provided.lock().unwrap(), [root.to_string()]);

    assert_eq!(kubo.fetch(&third.blocks, &root, |_| {}).await.unwrap(), 35);
    assert!(unixfs::read_file(&third.blocks, &root, content.len()).unwrap() == content);
    assert_eq!(kubo.fetch(&third.blocks, &root, |_| {}).await.unwrap(), 0, "what is here is not asked again");

    assert!(kubo.unpin(&root).await.unwrap());
    assert!(!kubo.unpin(&root).await.unwrap());
    let absent = cid::of_raw(b"absent");
    refused(kubo.block(&absent).await, Kind::Missing, "has no block");
    refused(kubo.pin(&absent).await, Kind::Usage, "could not find node");
    refused(kubo.add(&here.blocks, &absent, |_| {}).await, Kind::Missing, "is not in");
}

/// What the test above asks of a stand-in, as far as a node of somebody's own shows it. Announcing is left out: it would tell
/// the world.
#[tokio::test]
async fn a_real_kubo_takes_a_graph_and_gives_it_back_where_there_is_one() {
    let Ok(url) = std::env::var("VIVARIUM_KUBO_API") else {
        println!(
            "NOT RUN against a real Kubo: the client was tried on a server that follows the published interface. \
             VIVARIUM_KUBO_API=http://127.0.0.1:5001 names a node to try it on"
        );
        return;
    };
    let (here, there) = (store(), store());
    let kubo = client(&url);
    println!("a real Kubo, version {}", kubo.version().await.unwrap());
    let content = noise(34 << 20);
    let put = &mut |cid, bytes: Vec<u8>| here.blocks.put_later(&cid, &bytes);
    let root = unixfs::import_bytes(&content, unixfs::Profile::V1_2025, put).unwrap().cid;
    assert_eq!(kubo.add(&here.blocks, &root, |_| {}).await.unwrap(), 35);
    assert_eq!(kubo.fetch(&there.blocks, &root, |_| {}).await.unwrap(), 35);
    assert!(unixfs::read_file(&there.blocks, &root, content.len()).unwrap() == content);
    assert!(kubo.unpin(&root).await.unwrap());
    assert!(!kubo.unpin(&root).await.unwrap());
}

#[tokio::test]
async fn a_node_that_lies_or_is_none_is_told_apart() {
    let root: Cid = cid::of_raw(b"abc");
    let liar = Router::new().route("/api/v0/block/get", post(|| async { "other" })).route(
        "/api/v0/pin/add",
        post(|| async { r#"{"Pins":["bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku"]}"# }),
    );
    let liar = client(&spawn(liar).await);
    let here = store();
    refused(liar.block(&root).await, Kind::Corrupt, "sent other bytes");
    refused(liar.fetch(&here.blocks, &root, |_| {}).await, Kind::Corrupt, "sent other bytes");
    assert_eq!(here.count(), 0);
    refused(liar.pin(&root).await, Kind::Corrupt, "as no Kubo node does");
    let html = Router::new().fallback(|| async { Html("<html>Welcome to the captive portal</html>") });
    let html = client(&spawn(html).await);
    refused(html.version().await, Kind::Corrupt, "as no Kubo node does");
    refused(html.pin(&root).await, Kind::Corrupt, "as no Kubo node does");
    let long = Router::new().fallback(|| async { vec![0u8; 3 << 20] });
    refused(client(&spawn(long).await).block(&root).await, Kind::Corrupt, "sent over 2097152 bytes");
    refused(client("http://127.0.0.1:1").version().await, Kind::Unreachable, "did not serve");
}
