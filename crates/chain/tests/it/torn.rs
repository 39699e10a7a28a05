//! An endpoint that answers from the state of one block and the clock of another. STAND-IN: what anvil does for a moment
//! while it makes a block, here as often as the test wants.

use chain::alloy::primitives::{Address, U256};
use chain::{Chain, Kind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;

/// Fails in its arithmetic so many times, then says 7; how often it was asked.
async fn endpoint(panics: u32) -> (Chain, Arc<AtomicU32>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let asked = Arc::new(AtomicU32::new(0));
    let count = asked.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let mut stream = BufReader::new(stream);
            let mut length = 0;
            loop {
                let mut line = String::new();
                stream.read_line(&mut line).await.expect("a head");
                let line = line.trim().to_ascii_lowercase();
                if line.is_empty() {
                    break;
                }
                length = line.strip_prefix("content-length:").map_or(length, |n| n.trim().parse().expect("a length"));
            }
            let mut body = vec![0; length];
            stream.read_exact(&mut body).await.expect("a body");
            let id = &serde_json::from_slice::<serde_json::Value>(&body).expect("JSON")["id"];
            let answer = if count.fetch_add(1, Ordering::SeqCst) < panics {
                let data = format!("0x4e487b71{:064x}", 0x11);
                let error = serde_json::json!({ "code": 3, "message": "execution reverted", "data": data });
                serde_json::json!({ "jsonrpc": "2.0", "id": id, "error": error })
            } else {
                serde_json::json!({ "jsonrpc": "2.0", "id": id, "result": format!("0x{:064x}", 7) })
            };
            let answer = answer.to_string();
            let head = format!(
                "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                answer.len()
            );
            stream.write_all((head + &answer).as_bytes()).await.expect("an answer");
        }
    });
    (Chain::connect(&url, 31337).expect("a URL"), asked)
}

#[tokio::test]
async fn a_view_that_fails_in_its_arithmetic_is_asked_again_and_then_believed() {
    let (chain, asked) = endpoint(3).await;
    let balance = chain.usdc(Address::repeat_byte(1)).balance(Address::repeat_byte(2)).await.expect("it goes by");
    assert_eq!((balance, asked.load(Ordering::SeqCst)), (U256::from(7), 4));
    let (chain, asked) = endpoint(u32::MAX).await;
    let error = chain.usdc(Address::repeat_byte(1)).balance(Address::repeat_byte(2)).await.expect_err("it does not");
    assert!(matches!(&error.kind, Kind::Reverted(revert) if revert.name == "Panic"), "{error}");
    assert_eq!(asked.load(Ordering::SeqCst), 4);
}
