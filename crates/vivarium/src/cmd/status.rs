//! `vivarium status`: how the agent stands, from the chain and from the agent itself.

use super::link::{Link, Place, block_on, duration, usdc};
use alloy::primitives::utils::format_ether;
use anyhow::Result;
use economy::Usdc;
use serde_json::{Value, json};
use std::fmt::Write;

/// Shows how the agent stands: stage, money, lease, last checkpoint.
///
/// The record on chain is shown even when nobody answers at the agent's address.
#[derive(clap::Args)]
pub struct Flags {
    #[command(flatten)]
    place: Place,
    /// One JSON object: {"record": …, "agent": GET /status or null, "error": … or null}
    #[arg(long)]
    json: bool,
}

pub fn run(flags: Flags) -> Result<()> {
    block_on(async {
        let link = flags.place.link()?;
        let both = Both::read(&link).await?;
        if flags.json {
            println!("{}", both.json());
        } else {
            print!("{}", both.text());
        }
        Ok(())
    })
}

/// What the chain says and what the agent says.
pub struct Both {
    record: Value,
    agent: Result<Value>,
}

impl Both {
    pub async fn read(link: &Link) -> Result<Self> {
        let entry = link.record.read().await?;
        let state = &entry.state;
        let sleep = link.record.sleep(state).await?;
        let record = json!({
            "treasury": link.world.treasury,
            "stage": format!("{:?}", state.stage()).to_lowercase(),
            "paused": state.paused,
            "epoch": state.epoch,
            "operator": entry.operator(),
            "url": entry.url(),
            "balance_uusdc": state.balance.to_string(),
            "escrow_uusdc": state.escrow.to_string(),
            "checkpoint_seq": state.checkpointSeq,
            "last_heartbeat": state.lastHeartbeat,
            "sleeps_until": sleep.map(|s| s.until),
            "wakes_at_uusdc": sleep.and_then(|s| s.wakes_at).map(|sum| sum.micro().to_string()),
        });
        let agent = match entry.url() {
            Some(url) => link.http.get_json::<Value>(&format!("{url}/status")).await.map_err(Into::into),
            None => Err(match sleep {
                Some(sleep) => anyhow::anyhow!("it sleeps; {}", sleep.wants(Usdc(state.balance.saturating_to()))),
                None => anyhow::anyhow!("nobody is operator now"),
            }),
        };
        Ok(Self { record, agent })
    }

    pub fn json(&self) -> Value {
        let error = self.agent.as_ref().err().map(|e| format!("{e:#}"));
        json!({ "record": self.record, "agent": self.agent.as_ref().ok(), "error": error })
    }

    pub fn text(&self) -> String {
        let r = &self.record;
        let mut out = String::new();
        // Writing to a String cannot fail.
        let _ = writeln!(out, "treasury    {}", plain(&r["treasury"]));
        let paused = if r["paused"] == true { ", paused by the stewards" } else { "" };
        let _ = writeln!(out, "stage       {}{paused}, epoch {}", plain(&r["stage"]), r["epoch"]);
        let _ = writeln!(out, "address     {}", plain(&r["url"]));
        let _ = writeln!(
            out,
            "money       {} USDC in hand, {} USDC in escrow with hosts",
            usdc(&r["balance_uusdc"]),
            usdc(&r["escrow_uusdc"])
        );
        match &self.agent {
            Ok(agent) => agent_lines(&mut out, agent),
            Err(e) => {
                let _ = writeln!(out, "agent       does not answer: {e:#}");
            }
        }
        out
    }
}

fn agent_lines(out: &mut String, a: &Value) {
    let day = a["day_secs"].as_u64().unwrap_or(86_400);
    let now = a["block"]["timestamp"].as_u64().unwrap_or(0);
    let until = |at: &Value| duration(at.as_u64().unwrap_or(now).saturating_sub(now), day);
    let _ = writeln!(
        out,
        "books       earned {}, rent {}, gifts {}, refunds {} USDC{}",
        usdc(&a["earned_uusdc"]),
        usdc(&a["rent_uusdc"]),
        usdc(&a["gifts_uusdc"]),
        usdc(&a["refunds_uusdc"]),
        if a["ledger_ok"] == false { "; THE BOOKS DO NOT BALANCE" } else { "" }
    );
    if [&a["purse_uusdc"], &a["purchases_uusdc"]].iter().any(|sum| sum.as_str().is_some_and(|sum| sum != "0")) {
        let (purse, bought) = (usdc(&a["purse_uusdc"]), usdc(&a["purchases_uusdc"]));
        let _ = writeln!(out, "purse       {purse} USDC; {bought} USDC paid to other agents");
    }
    if a["gas_uusdc"].as_str().is_some_and(|sum| sum != "0") {
        let left = a["treasury_gas_wei"].as_str().and_then(|wei| wei.parse::<u128>().ok()).map(format_ether);
        let left = left.unwrap_or_else(|| "?".to_owned());
        let _ = writeln!(out, "gas         {} USDC paid for it, {left} ETH left", usdc(&a["gas_uusdc"]));
    }
    if let Some(copy) = a["archived"].as_array().and_then(|copies| copies.last()) {
        let (cid, transaction) = (copy["cid"].as_str().unwrap_or("?"), copy["transaction"].as_str().unwrap_or("?"));
        let paid = usdc(&a["storage_uusdc"]);
        let _ = writeln!(out, "archive     {cid} is on Arweave as {transaction}; {paid} USDC paid for storage");
    }
    let runway = a["runway_secs"].as_u64().map_or_else(|| "income covers the cost".to_owned(), |s| duration(s, day));
    let off = a["forecast"]["error_permille"].as_i64().map(|permille| {
        let side = if permille < 0 { "below" } else { "above" };
        let permille = permille.unsigned_abs();
        format!("; funds are {}.{} % {side} what it foretold a day ago", permille / 10, permille % 10)
    });
    let _ = writeln!(out, "runway      {runway}{}", off.unwrap_or_default());
    if let Some(line) = break_even(&a["break_even"]) {
        let _ = writeln!(out, "break-even  {line}");
    }
    if a["lease"].is_object() {
        let _ = writeln!(
            out,
            "host        lease {} at {}, {} left",
            a["lease"]["id"],
            plain(&a["lease"]["provider"]),
            until(&a["lease"]["end"])
        );
    }
    if a["standby"].is_object() {
        let ready = if a["standby"]["ready"] == true { "ready" } else { "getting ready" };
        let _ =
            writeln!(out, "standby     lease {} at {}, {ready}", a["standby"]["id"], plain(&a["standby"]["provider"]));
    }
    if let Some(at) = a["next_move_at"].as_u64() {
        let _ = writeln!(out, "next move   in {}", duration(at.saturating_sub(now), day));
    }
    let _ = writeln!(
        out,
        "serving     {}, from {} USDC a call; {} served, {} refused",
        if a["selling"] == true { plain(&a["model"]) } else { format!("nothing ({})", plain(&a["closed_because"])) },
        usdc(&a["price"]["call_uusdc"]),
        a["requests"]["served"],
        a["requests"]["refused"]
    );
    let _ = writeln!(out, "memory      checkpoint {} acknowledged", a["checkpoint"]["seq"]);
    if let Some(stewards) = a["stewards"].as_array() {
        let mut kinds: Vec<String> = stewards.iter().map(|s| plain(&s["independence"])).collect();
        kinds.sort();
        kinds.dedup();
        let _ = writeln!(
            out,
            "stewards    {} of {} can pause, stop or evict it; independence {}",
            a["threshold"],
            stewards.len(),
            kinds.join(", ")
        );
    }
    if let Some(trouble) = a["trouble"].as_str() {
        let _ = writeln!(out, "trouble     {trouble}");
    }
}

/// In calls a day: here, and on the cheapest offers.
fn break_even(told: &Value) -> Option<String> {
    let (here, offers) = told.as_array()?.split_first()?;
    let offers: Vec<String> = offers.iter().map(|o| format!("{} on offer {}", o["calls_a_day"], o["offer"])).collect();
    let elsewhere = if offers.is_empty() { String::new() } else { format!("; {}", offers.join(", ")) };
    Some(format!(
        "{} calls a day at the least price ({} USDC a day){elsewhere}",
        here["calls_a_day"],
        usdc(&here["cost_day_uusdc"])
    ))
}

/// A JSON string without quotes; `-` for null.
fn plain(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
