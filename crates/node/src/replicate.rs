//! Shipping the journal: sealed segments to the store, signed headers to the stewards.
//!
//! A segment is a run of durable records, sealed once to the memory recipient of the last acknowledged
//! checkpoint. It counts as *replicated* when the store holds it and k stewards hold its header: then a
//! successor can find and open it. The same sealed bytes are never written twice.

use crate::context::Context;
use crate::error::{Error, Result};
use alloy::primitives::Address;
use futures::future::join_all;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
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
}

/// What came of one segment.
pub struct Shipped {
    pub last_lsn: u64,
    pub index: u64,
    pub cid: store::cid::Cid,
}

/// Seals, stores and announces `segment`. Fails with `Retry` if the store or too many stewards are away;
/// the caller ships the same records again later (another seal, another CID: harmless, headers replace by index).
pub async fn ship(cx: Arc<Context>, segment: Segment) -> Result<Shipped> {
    let sealed = store::seal::seal(&segment.records, std::slice::from_ref(&segment.recipient))
        .map_err(|e| Error::bug("a segment cannot be sealed").caused_by(e))?;
    let bytes = u64::try_from(sealed.len()).map_err(|_| Error::bug("a segment longer than 2^64 bytes"))?;
    let cid =
        cx.store.put_bytes(&sealed).await.map_err(|e| Error::retry("the store did not take a segment").caused_by(e))?;
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
    Ok(Shipped { last_lsn: segment.last_lsn, index: segment.index, cid })
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
