//! Shipping the journal: sealed segments to the store, signed headers to the stewards.
//!
//! A segment is a run of durable records, sealed once to the chapter of the last acknowledged
//! checkpoint. It counts as *replicated* when the store holds it and k stewards hold its header: then a
//! successor can find and open it. The same sealed bytes are never written twice.

use crate::context::Context;
use crate::error::{Error, Result};
use alloy::primitives::Address;
use futures::future::join_all;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use store::StoreClient;
use store::checkpoint::SegmentHeader;
use store::seal::Recipient;

/// A run of records ready to leave.
pub struct Segment {
    pub epoch: u64,
    pub index: u64,
    pub first_lsn: u64,
    pub last_lsn: u64,
    pub prev: Option<store::cid::Cid>,
    pub recipient: Recipient,
    pub records: Vec<u8>,
}

/// Where shipping stands, kept by the main loop.
#[derive(Clone, Debug, Default)]
pub struct Shipping {
    /// Everything up to here is replicated.
    pub replicated_lsn: u64,
    pub next_index: u64,
    pub prev: Option<store::cid::Cid>,
    /// A segment is on its way; the next waits for it, so headers chain without gaps.
    pub in_flight: bool,
    /// The stewards said where the chain of headers stands; nothing is shipped before.
    pub known: bool,
    /// What left since the checkpoint that stands, in order.
    pub sent: Vec<Sent>,
    /// When the oldest record that has not left was first seen here, boot time, ms.
    pub waits_since_ms: Option<u64>,
}

/// A segment that is replicated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent {
    pub cid: store::cid::Cid,
    pub first_lsn: u64,
    pub last_lsn: u64,
    /// Sealed.
    pub bytes: u64,
}

impl From<&SegmentHeader> for Sent {
    fn from(header: &SegmentHeader) -> Self {
        Self { cid: header.cid, first_lsn: header.first_lsn, last_lsn: header.last_lsn, bytes: header.bytes }
    }
}

/// Records wait for company before they leave, since each segment costs 200 bytes of seal and a name: at most the
/// 720th part of the agent's day, two minutes.
pub const PARTS_OF_A_DAY: u64 = 720;

/// Whether what waits here leaves now.
#[derive(Clone, Copy, Debug)]
pub struct Waiting {
    pub since_ms: u64,
    pub now_ms: u64,
    pub day_secs: u64,
    pub records: u64,
    /// Income that rests on this host's disk alone, and the most that may, micro-USDC.
    pub exposed: (u128, u128),
    /// Somebody waits for replication.
    pub is_urgent: bool,
}

impl Waiting {
    /// At half the exposure it leaves early: at the whole of it customers would wait.
    pub fn is_due(&self) -> bool {
        let (exposed, most) = self.exposed;
        self.is_urgent
            || self.records >= SEGMENT_RECORDS_MAX
            || exposed.saturating_mul(2) >= most
            || self.now_ms.saturating_sub(self.since_ms).saturating_mul(PARTS_OF_A_DAY) >= self.day_secs * 1_000
    }
}

/// Most records in one segment.
pub const SEGMENT_RECORDS_MAX: u64 = 20_000;

/// What came of one segment.
pub struct Shipped {
    pub index: u64,
    pub sent: Sent,
}

/// Seals, stores and announces `segment`. Fails with `Retry` if the store or too many stewards are away;
/// the caller ships the same records again later (another seal, another CID: harmless, headers replace by index).
pub async fn ship(cx: Arc<Context>, segment: Segment) -> Result<Shipped> {
    let (cid, bytes) = store_sealed(&cx.store, &segment.records, &segment.recipient).await?;
    let mut header = SegmentHeader {
        agent: cx.config.treasury,
        chain_id: cx.config.chain_id,
        epoch: segment.epoch,
        index: segment.index,
        first_lsn: segment.first_lsn,
        last_lsn: segment.last_lsn,
        prev: segment.prev,
        cid,
        recipient: segment.recipient.to_string(),
        bytes,
        signature: String::new(),
    };
    header.sign(&cx.keys.node).map_err(|e| Error::bug("a segment header cannot be signed").caused_by(e))?;
    let announced = join_all(cx.manifest.stewards.iter().map(|s| {
        let url = format!("{}/segments", s.url);
        let (http, header) = (cx.http.clone(), &header);
        async move { http.post_json(&url, header).await?.success_or_read().await.map(|_| ()) }
    }))
    .await;
    let held = announced.iter().filter(|r| r.is_ok()).count();
    if held < usize::from(cx.manifest.threshold) {
        let why = announced.into_iter().find_map(|r| r.err()).map(|e| e.to_string()).unwrap_or_default();
        return Err(Error::retry(format!("{held} stewards hold segment {}; {why}", segment.index)));
    }
    Ok(Shipped { index: segment.index, sent: Sent::from(&header) })
}

/// Seals and stores a run of records: its name and its length, sealed.
pub async fn store_sealed(store: &StoreClient, records: &[u8], to: &Recipient) -> Result<(store::cid::Cid, u64)> {
    let sealed = store::seal::seal(records, std::slice::from_ref(to))
        .map_err(|e| Error::bug("a segment cannot be sealed").caused_by(e))?;
    let bytes = u64::try_from(sealed.len()).map_err(|_| Error::bug("a segment longer than 2^64 bytes"))?;
    let cid = store.put_bytes(&sealed).await;
    Ok((cid.map_err(|e| Error::retry("the store did not take a segment").caused_by(e))?, bytes))
}

/// All headers the stewards hold for `treasury` that reach past `after_lsn`, each once, by epoch and index.
/// A header counts if its signature names one of `operators`; contradicting stewards are outvoted by the chain
/// of `prev` links, which the caller walks.
pub async fn headers(cx: &Context, after_lsn: u64) -> Result<Vec<SegmentHeader>> {
    #[derive(Serialize, Deserialize)]
    struct Answer(Vec<SegmentHeader>);
    let answers = join_all(cx.manifest.stewards.iter().map(|s| {
        let url = format!("{}/segments/{}?after_lsn={after_lsn}", s.url, cx.config.treasury);
        let http = cx.http.clone();
        async move { http.get_json::<Answer>(&url).await }
    }))
    .await;
    if answers.iter().all(|a| a.is_err()) {
        return Err(Error::retry("no steward answered with segment headers"));
    }
    let mut all: Vec<SegmentHeader> = answers.into_iter().flatten().flat_map(|a| a.0).collect();
    all.sort_by_key(|h| (h.epoch, h.first_lsn, h.last_lsn));
    all.dedup_by(|a, b| a.cid == b.cid);
    Ok(all)
}

/// Keeps only headers signed by the operator that `operator_of(epoch)` names.
pub fn signed_by_operators(
    headers: Vec<SegmentHeader>,
    agent: Address,
    chain_id: u64,
    operator_of: impl Fn(u64) -> Option<Address>,
) -> Vec<SegmentHeader> {
    headers
        .into_iter()
        .filter(|h| operator_of(h.epoch).is_some_and(|operator| h.verify(operator, agent, chain_id).is_ok()))
        .collect()
}

/// The headers after `lsn` that chain, in order, each signed by the operator of its epoch by the treasury's own events.
/// Ends at the first gap.
pub async fn chained(cx: &Context, lsn: u64) -> Result<Vec<SegmentHeader>> {
    let operators = chain::history::operators(&cx.chain, cx.config.treasury)
        .await
        .map_err(|e| Error::retry("the treasury's events cannot be read").caused_by(e))?;
    let all = headers(cx, lsn).await?;
    let all = signed_by_operators(all, cx.config.treasury, cx.config.chain_id, |epoch| operators.get(&epoch).copied());
    let mut chained = Vec::new();
    let mut next = lsn + 1;
    while let Some(header) = all.iter().filter(|h| h.first_lsn <= next && h.last_lsn >= next).max_by_key(|h| h.epoch) {
        next = header.last_lsn + 1;
        chained.push(header.clone());
    }
    Ok(chained)
}

#[cfg(test)]
mod tests {
    use super::Waiting;

    const FEW: Waiting =
        Waiting { since_ms: 1_000, now_ms: 2_000, day_secs: 86_400, records: 9, exposed: (4, 10), is_urgent: false };

    #[test]
    fn records_wait_two_minutes_for_company_and_no_longer_when_it_costs_somebody() {
        assert!(!FEW.is_due());
        assert!(!Waiting { now_ms: 120_999, ..FEW }.is_due());
        assert!(Waiting { now_ms: 121_000, ..FEW }.is_due());
        assert!(Waiting { exposed: (5, 10), ..FEW }.is_due());
        assert!(Waiting { is_urgent: true, ..FEW }.is_due());
        assert!(Waiting { records: super::SEGMENT_RECORDS_MAX, ..FEW }.is_due());
        assert!(Waiting { day_secs: 20, now_ms: 1_028, ..FEW }.is_due(), "in fast motion");
    }
}
