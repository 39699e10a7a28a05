//! A Rust program that pays for what it calls: [`pay::Buyer`] where an HTTP client would be.
//!
//!   cargo run -p pay --example buy -- AGENT_URL TREASURY TOKEN CHAIN_ID KEY_FILE QUESTION
//!
//! TREASURY is who the agent *is*: take it from the chain's record or the identity registry, never from the server that
//! asks for money. `world.json` of `vivarium up` has all of them.

use alloy::primitives::Address;
use alloy::signers::local::PrivateKeySigner;
use pay::buyer::{ChannelPolicy, SpendLimits};
use pay::{Buyer, BuyerPolicy, Usdc};
use serde_json::{Value, json};
use std::error::Error;
use std::path::Path;

/// A client that pays this treasury, in this token, within these limits, and nobody else.
pub fn client(
    key: PrivateKeySigner,
    (chain_id, token, treasury): (u64, Address, Address),
    record: &Path,
) -> Result<Buyer, Box<dyn Error>> {
    let policy = BuyerPolicy {
        network: format!("eip155:{chain_id}"),
        asset: token,
        pay_to: treasury,
        max_per_call: Usdc::parse("0.50")?,
        max_total: Usdc::parse("20")?,
    };
    let limits = SpendLimits { per_day: Some(Usdc::parse("2")?), per_host_day: Some(Usdc::parse("1")?) };
    // Vouchers where the agent offers a channel: one deposit for ten calls, at most 5 USDC lying there.
    let channels = ChannelPolicy {
        deposit: Usdc::ZERO,
        deposit_calls: 10,
        deposit_max: Usdc::parse("5")?,
        withdraw_delay_secs_max: 30 * 86_400,
        slots: 1,
        lane: 0,
    };
    let buyer = Buyer::new(net::Client::new(), key, policy).with_limits(limits).with_channels(channels);
    // On disk before anything leaves: a crash never pays twice, and limits hold over restarts.
    Ok(buyer.with_record(record)?)
}

/// One question, paid for; the answer's text and what it cost.
pub async fn ask(buyer: &Buyer, agent: &str, model: &str, question: &str) -> Result<(String, Usdc), Box<dyn Error>> {
    let messages = json!([{ "role": "user", "content": question }]);
    let body = json!({ "model": model, "messages": messages, "max_tokens": 64 });
    let paid = buyer.post_json(&format!("{agent}/v1/chat/completions"), &body).await?;
    let answer: Value = serde_json::from_slice(&paid.body)?;
    let text = answer["choices"][0]["message"]["content"].as_str();
    let text = text.ok_or_else(|| format!("answered {}: {answer}", paid.status))?;
    Ok((text.to_owned(), paid.spent))
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [agent, treasury, token, chain_id, key_file, question] = &words[..] else {
        return Err("usage: buy AGENT_URL TREASURY TOKEN CHAIN_ID KEY_FILE QUESTION".into());
    };
    let key = std::fs::read_to_string(key_file)?.trim().parse()?;
    let buyer = client(key, (chain_id.parse()?, token.parse()?, treasury.parse()?), Path::new("buy.record"))?;
    let models: Value = net::Client::new().get_json(&format!("{agent}/v1/models")).await?;
    let model = models["data"][0]["id"].as_str().ok_or("the agent names no model")?;
    let (text, spent) = ask(&buyer, agent, model, question).await?;
    println!("{text}");
    eprintln!("-- {spent}; {} signed today", buyer.signed_today());
    Ok(())
}
