//! Hosts that begin an answer and do not end it.

use net::{Client, Kind};
use serde_json::Value;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// Longer than anything here takes that ends.
const PATIENCE: Duration = Duration::from_secs(60);

/// Says this to everything on loopback, then a blank a moment for `drips`, then nothing more. Its URL.
async fn serve(status: &'static str, drips: bool) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut asked = [0; 4096];
                let _ = stream.read(&mut asked).await;
                let head = format!("HTTP/1.1 {status}\r\ncontent-length: 1000000\r\n\r\n ");
                stream.write_all(head.as_bytes()).await.unwrap();
                let mut every = tokio::time::interval(Duration::from_millis(20));
                // Whoever asked may have gone.
                while !drips || stream.write_all(b" ").await.is_ok() {
                    every.tick().await;
                }
            });
        }
    });
    url
}

/// What ends by itself, and why.
async fn ends<T: std::fmt::Debug>(asking: impl Future<Output = Result<T, net::Error>>) -> net::Error {
    tokio::time::timeout(PATIENCE, asking).await.expect("nobody waits for ever").unwrap_err()
}

#[tokio::test]
async fn a_host_that_does_not_end_its_answer_is_not_waited_for() {
    let client = Client::new().with_deadline(Duration::from_millis(300));
    for drips in [false, true] {
        let (good, bad) = (serve("200 OK", drips).await, serve("503 Service Unavailable", drips).await);
        let late = ends(client.get_json::<Value>(&good)).await;
        assert!(late.kind == Kind::Unknown && late.message.contains("was not done"), "{late}");
        let late = ends(client.call_json::<Value>(&good, &1)).await;
        assert_eq!(late.kind, Kind::Unknown, "{late}");
        let refused = ends(client.call_json::<Value>(&bad, &1)).await;
        assert!(refused.kind == Kind::BadAnswer && refused.message.contains("503"), "{refused}");
        let late = ends(async { client.get(&good).await?.bytes(1_000_000).await }).await;
        assert_eq!(late.kind, Kind::Unknown, "{late}");
    }
}
