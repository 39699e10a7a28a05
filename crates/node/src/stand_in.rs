//! A STAND-IN for a chain's endpoint: JSON-RPC over HTTP, requests one by one and in batches.

use alloy::primitives::{Address, B256, Bloom, Bytes, U256};
use axum::extract::State;
use axum::{Json, Router, routing::post};
use serde_json::{Value, json};
use std::future::Future;

/// What is said to one request: `result`, or the object `error`.
pub type Said = Result<Value, Value>;

/// Serves what `answer` says of each request, in a batch one after the other, until the runtime ends. Its URL.
pub async fn endpoint<A, F>(answer: A) -> String
where
    A: Fn(Value) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Said> + Send,
{
    let all = |State(answer): State<A>, Json(asked): Json<Value>| async move {
        let one = async |asked: Value| {
            let id = asked["id"].clone();
            match answer(asked).await {
                Ok(result) => json!({ "jsonrpc": "2.0", "id": id, "result": result }),
                Err(error) => json!({ "jsonrpc": "2.0", "id": id, "error": error }),
            }
        };
        let Value::Array(batch) = asked else { return Json(one(asked).await) };
        let mut said = Vec::with_capacity(batch.len());
        for asked in batch {
            said.push(one(asked).await);
        }
        Json(said.into())
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let app = Router::new().route("/", post(all)).with_state(answer);
    tokio::spawn(async move { axum::serve(listener, app).await });
    url
}

/// What a contract's function returns that returns only numbers.
pub fn words(words: &[u128]) -> Value {
    let bytes: Vec<u8> = words.iter().flat_map(|word| U256::from(*word).to_be_bytes::<32>()).collect();
    json!(Bytes::from(bytes))
}

/// The bytes that a call is asked with, in hex.
pub fn input(call: &Value) -> &str {
    call["input"].as_str().or(call["data"].as_str()).unwrap_or("0x")
}

/// The receipt of a transaction that was carried out in block `number`.
pub fn receipt(tx: &Value, number: u64, logs: &[Value]) -> Value {
    json!({
        "type": "0x2", "status": "0x1", "cumulativeGasUsed": "0x1", "gasUsed": "0x1", "effectiveGasPrice": "0x1",
        "logs": logs, "logsBloom": Bloom::ZERO, "transactionHash": tx, "blockHash": B256::ZERO,
        "transactionIndex": "0x0", "blockNumber": format!("{number:#x}"), "from": Address::ZERO, "to": Address::ZERO,
    })
}
