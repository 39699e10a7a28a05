//! A STAND-IN for a chain's endpoint, for tests: it answers each request by a function.

use alloy::primitives::{Address, B256, Bytes, U64};
use alloy::sol_types::SolCall;
use axum::{Json, Router};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::sync::Arc;

/// Serves `app` on a free port of loopback.
pub async fn served(app: Router) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let app = app.into_make_service_with_connect_info::<SocketAddr>();
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    url
}

/// An endpoint that answers by `answer`, which is told the method and its parameters.
pub async fn endpoint(answer: impl Fn(&str, &Value) -> Result<Value, Value> + Send + Sync + 'static) -> String {
    let answer = Arc::new(answer);
    let one = move |call: &Value| {
        let id = &call["id"];
        match answer(call["method"].as_str().unwrap(), &call["params"]) {
            Ok(result) => json!({ "jsonrpc": "2.0", "id": id, "result": result }),
            Err(error) => json!({ "jsonrpc": "2.0", "id": id, "error": error }),
        }
    };
    let answer = move |Json(request): Json<Value>| async move {
        Json(match &request {
            Value::Array(batch) => batch.iter().map(&one).collect(),
            call => one(call),
        })
    };
    served(Router::new().fallback(answer)).await
}

/// A block without transactions.
pub fn block(number: u64, hash: B256, timestamp: u64) -> Value {
    let (none, nobody, zero) = (B256::ZERO, Address::ZERO, "0x0");
    json!({
        "number": U64::from(number), "hash": hash, "timestamp": U64::from(timestamp), "parentHash": none,
        "sha3Uncles": none, "miner": nobody, "stateRoot": none, "transactionsRoot": none, "receiptsRoot": none,
        "logsBloom": format!("0x{}", "00".repeat(256)), "difficulty": zero, "gasLimit": zero, "gasUsed": zero,
        "extraData": "0x", "mixHash": none, "nonce": "0x0000000000000000", "baseFeePerGas": zero, "uncles": [],
        "transactions": [],
    })
}

/// What a node says when it cannot.
pub fn failure(message: &str) -> Value {
    json!({ "code": -32000, "message": message })
}

/// The answer to a view, if the request with these parameters calls it.
pub fn answers<C: SolCall>(params: &Value, answer: &C::Return) -> Option<Value> {
    let input: Bytes = serde_json::from_value(params[0]["input"].clone()).unwrap();
    input.starts_with(&C::SELECTOR).then(|| json!(Bytes::from(C::abi_encode_returns(answer))))
}

/// Whom a call with these parameters goes to.
pub fn callee(params: &Value) -> Address {
    serde_json::from_value(params[0]["to"].clone()).unwrap()
}
