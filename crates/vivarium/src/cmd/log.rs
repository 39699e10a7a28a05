//! `vivarium log`: the agent's life as it wrote it down.

use super::link::{Link, Place, block_on};
use alloy::primitives::B256;
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use store::StoreClient;
use store::checkpoint::{Checkpoint, LifeLog};

/// Longest checkpoint object that is read.
const CHECKPOINT_BYTES_MAX: usize = 1 << 20;

/// Prints the agent's log: birth, leases, moves, income, alarms, with chain times.
///
/// A living agent is asked. When nobody runs it (it is closed, or between two hosts), the log is read from the content
/// store: the treasury names the last acknowledged checkpoint, and that names the log up to then. What came after it
/// is on chain: `vivarium audit` tells it.
#[derive(clap::Args)]
pub struct Flags {
    #[command(flatten)]
    place: Place,
    /// Only events after this sequence number
    #[arg(long, value_name = "SEQ")]
    after: Option<u64>,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

pub fn run(flags: Flags) -> Result<()> {
    block_on(async {
        let link = flags.place.link()?;
        let after = flags.after.unwrap_or(0);
        let entry = link.record.read().await?;
        let events = match entry.url() {
            Some(_) => fetch(&link, Some(after)).await?,
            None => {
                let store = StoreClient::new(link.http.clone(), flags.place.stores());
                archived(&store, &link, entry.state.checkpointDigest, after).await?
            }
        };
        for event in events {
            if flags.json {
                println!("{event}");
            } else {
                println!("{}", line(&event));
            }
        }
        Ok(())
    })
}

/// Events after `after`; the newest ones when it is `None`.
pub async fn fetch(link: &Link, after: Option<u64>) -> Result<Vec<Value>> {
    let path = after.map_or_else(|| "/log?last=20".to_owned(), |seq| format!("/log?after={seq}"));
    let mut answer = link.get(&path).await?;
    match answer["events"].take() {
        Value::Array(events) => Ok(events),
        _ => None.context("the agent's log has no list of events: is it a Vivarium agent?"),
    }
}

/// What the last acknowledged checkpoint kept, in the form of the agent's own answer.
async fn archived(store: &StoreClient, link: &Link, checkpoint: B256, after: u64) -> Result<Vec<Value>> {
    let treasury = link.world.treasury;
    if checkpoint.is_zero() {
        bail!("nobody runs the agent and it never had a checkpoint: there is no log, `vivarium audit` reads the chain");
    }
    let cid = store::cid::raw(checkpoint.0);
    let unread = || format!("nobody runs the agent, and its last checkpoint {cid} cannot be read");
    let bytes = store.get_bytes(&cid, CHECKPOINT_BYTES_MAX).await.with_context(unread)?;
    let checkpoint = Checkpoint::from_bytes(&bytes).with_context(unread)?;
    ensure!(checkpoint.agent == treasury, "{cid} is a checkpoint of another agent, {}", checkpoint.agent);
    let lines = LifeLog::read(store, checkpoint.log, treasury, after).await.context("the log cannot be read")?;
    let event = |line: store::checkpoint::LogLine| json!({ "seq": line.seq, "at": line.at, "block": line.block, "kind": line.kind, "text": line.text });
    Ok(lines.into_iter().map(event).collect())
}

pub fn line(event: &Value) -> String {
    let text = |name: &str| event[name].as_str().unwrap_or("?").to_owned();
    format!(
        "{:>6}  block {:>6}  {:<12} {}",
        event["seq"].to_string(),
        event["block"].to_string(),
        text("kind"),
        text("text")
    )
}
