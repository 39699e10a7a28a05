//! STAND-IN: a JSON-RPC endpoint that answers what the test says.

use chain::Chain;
use serde_json::{Value, json};
use std::future::Future;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;

/// `answer` gets each request, and gives the part that comes beside `jsonrpc` and `id`: `{"result": …}` or
/// `{"error": …}`. One request after the other, also of a batch.
pub async fn endpoint<F>(mut answer: impl FnMut(Value) -> F + Send + 'static) -> Chain
where
    F: Future<Output = Value> + Send,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
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
            let request: Value = serde_json::from_slice(&body).expect("JSON");
            let mut one = async |request: Value| {
                let id = request["id"].clone();
                let mut said = answer(request).await;
                (said["jsonrpc"], said["id"]) = (json!("2.0"), id);
                said
            };
            let said = match request {
                Value::Array(batch) => {
                    let mut said = Vec::with_capacity(batch.len());
                    for request in batch {
                        said.push(one(request).await);
                    }
                    said.into()
                }
                request => one(request).await,
            };
            let said = said.to_string();
            let head = format!(
                "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                said.len()
            );
            // Whoever asked may have gone.
            drop(stream.write_all((head + &said).as_bytes()).await);
        }
    });
    Chain::connect(&url, 31337).expect("a URL")
}
