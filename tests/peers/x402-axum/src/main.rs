//! The peer of `cargo xtask bench pay` for `exact`: x402-axum as its documentation has it, settling before the answer
//! leaves through the facilitator that it is given.
//!
//!     x402-axum-peer FACILITATOR_URL CHAIN_ID ASSET PAY_TO AMOUNT
//!
//! Prints {"url"} once it listens; ends with its stdin.

use axum::Router;
use axum::routing::post;
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use x402_axum::X402Middleware;
use x402_chain_eip155::V2Eip155Exact;
use x402_chain_eip155::chain::{AssetTransferMethod, ChecksummedAddress, Eip155ChainReference, Eip155TokenDeployment};

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [facilitator, chain_id, asset, pay_to, amount] = arguments.as_slice() else {
        panic!("x402-axum-peer FACILITATOR_URL CHAIN_ID ASSET PAY_TO AMOUNT")
    };
    let token = Eip155TokenDeployment {
        chain_reference: Eip155ChainReference::new(chain_id.parse().expect("a chain id")),
        address: asset.parse().expect("an address"),
        decimals: 6,
        transfer_method: AssetTransferMethod::Eip3009 { name: "USD Coin".into(), version: "2".into() },
    };
    let pay_to: ChecksummedAddress = pay_to.parse().expect("an address");
    let price = V2Eip155Exact::price_tag(pay_to, token.amount(amount.parse::<u64>().expect("an amount")));
    let x402 = X402Middleware::new(facilitator);
    let paid = post(|| async { r#"{"ok":true}"# }).layer(x402.with_price_tag(price));
    let app = Router::new().route("/v1/infer", paid);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    println!("{{\"url\":\"http://{}/v1/infer\"}}", listener.local_addr().expect("it is bound"));
    let until = async {
        let mut all = Vec::new();
        tokio::io::stdin().read_to_end(&mut all).await.ok();
    };
    axum::serve(listener, app).with_graceful_shutdown(until).await.expect("it serves");
}
