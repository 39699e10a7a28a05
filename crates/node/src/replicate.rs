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
use std::collections::BTreeMap;
use std::ops::Bound;
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
    /// Everything up to here is replicated. What only a follower has is not: with its disk it would be gone.
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

/// All headers the stewards hold for this treasury that reach past `after_lsn`, each once, by epoch and first record. A
/// steward may say anything: none counts before it was held against its epoch's operator ([`signed_by_operators`]).
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

/// Keeps only headers signed by the operator that `operator_of(epoch)` names, and of these no impossible ones.
pub fn signed_by_operators(
    headers: Vec<SegmentHeader>,
    agent: Address,
    chain_id: u64,
    operator_of: impl Fn(u64) -> Option<Address>,
) -> Vec<SegmentHeader> {
    headers
        .into_iter()
        .filter(|h| operator_of(h.epoch).is_some_and(|operator| h.verify(operator, agent, chain_id).is_ok()))
        .filter(is_possible)
        .collect()
}

/// Records are counted from 1 and segments from 0, over the whole life, and each segment holds a record at least. A former
/// operator can sign any other numbers, from which the next one would count on.
fn is_possible(header: &SegmentHeader) -> bool {
    header.index < header.first_lsn && header.last_lsn < u64::MAX
}

/// The headers after record `lsn` of a checkpoint of `epoch` that chain, in order, each signed by the operator of its epoch by
/// the treasury's own events. Ends at the first gap.
pub async fn chained(cx: &Context, (epoch, lsn): (u64, u64)) -> Result<Vec<SegmentHeader>> {
    Ok(in_order(&of_the_life(cx, lsn).await?, (epoch, lsn)))
}

/// Where the shipping of this agent's records goes on: after the checkpoint that stands, of this epoch and with everything
/// up to this record (`stands`), on a disk with everything up to `last_lsn`.
pub async fn cursor(cx: &Context, stands: (u64, u64), last_lsn: u64) -> Result<Cursor> {
    Ok(Cursor::of(&of_the_life(cx, 0).await?, stands, last_lsn))
}

/// The headers past `after_lsn` that operators signed and that are part of the agent's life.
async fn of_the_life(cx: &Context, after_lsn: u64) -> Result<Vec<SegmentHeader>> {
    let operators = chain::history::operators(&cx.chain, cx.config.treasury)
        .await
        .map_err(|e| Error::retry("the treasury's events cannot be read").caused_by(e))?;
    let all = headers(cx, after_lsn).await?;
    let operator_of = |epoch| operators.get(&epoch).copied();
    Ok(lived(signed_by_operators(all, cx.config.treasury, cx.config.chain_id, operator_of)))
}

/// A new operator goes on where it restored to. What an older epoch wrote beyond that never became part of the agent's life,
/// and a steward that was away meanwhile holds it still: the rule by which each steward forgets it, over all of them.
fn lived(mut headers: Vec<SegmentHeader>) -> Vec<SegmentHeader> {
    // Epoch → its first record.
    let mut begins: BTreeMap<u64, u64> = BTreeMap::new();
    for header in &headers {
        let first = begins.entry(header.epoch).or_insert(header.first_lsn);
        *first = header.first_lsn.min(*first);
    }
    headers.retain(|header| {
        let mut newer = begins.range((Bound::Excluded(header.epoch), Bound::Unbounded));
        newer.all(|(_, first)| header.last_lsn < *first)
    });
    headers
}

/// Those after `lsn`, of `epoch` or a newer one, up to the first gap.
fn in_order(headers: &[SegmentHeader], (epoch, lsn): (u64, u64)) -> Vec<SegmentHeader> {
    let (mut in_order, mut next) = (Vec::new(), lsn.saturating_add(1));
    let holds =
        |header: &&SegmentHeader, lsn| header.epoch >= epoch && (header.first_lsn..=header.last_lsn).contains(&lsn);
    while let Some(header) = headers.iter().filter(|h| holds(h, next)).max_by_key(|h| (h.epoch, h.last_lsn)) {
        in_order.push(header.clone());
        let Some(after) = header.last_lsn.checked_add(1) else { break };
        next = after;
    }
    in_order
}

/// Where shipping goes on.
#[derive(Debug, PartialEq, Eq)]
pub struct Cursor {
    pub next_index: u64,
    pub prev: Option<store::cid::Cid>,
    /// A successor finds everything up to here.
    pub replicated_lsn: u64,
    /// What left since the checkpoint that stands, in order.
    pub sent: Vec<Sent>,
}

impl Cursor {
    /// Behind the last header without a gap before it whose records are here. `headers`: checked.
    fn of(headers: &[SegmentHeader], stands: (u64, u64), last_lsn: u64) -> Self {
        let mut sent = in_order(headers, stands);
        sent.retain(|header| header.last_lsn <= last_lsn);
        let replicated_lsn = sent.last().map_or(stands.1, |header| header.last_lsn);
        // One chain over the whole life: segments that the checkpoint covers are part of it.
        let before = headers.iter().filter(|header| header.last_lsn <= replicated_lsn);
        let last = before.max_by_key(|header| (header.last_lsn, header.epoch));
        Self {
            next_index: last.map_or(0, |header| header.index.saturating_add(1)),
            prev: last.map(|header| header.cid),
            replicated_lsn,
            sent: sent.iter().map(Sent::from).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context;
    use crate::stand_in;
    use alloy::signers::local::PrivateKeySigner;
    use alloy::sol_types::SolEvent;
    use chain::bindings::Treasury::Activated;
    use serde_json::{Value, json};

    const AGENT: Address = context::TREASURY_OF_TESTS;
    const CHAIN: u64 = 31_337;

    /// The operator of this epoch.
    fn operator(epoch: u64) -> PrivateKeySigner {
        PrivateKeySigner::from_bytes(&alloy::primitives::B256::repeat_byte(u8::try_from(epoch).unwrap())).unwrap()
    }

    /// A segment's label, which this key signed.
    fn signed(by: &PrivateKeySigner, (epoch, index): (u64, u64), (first_lsn, last_lsn): (u64, u64)) -> SegmentHeader {
        let mut header = SegmentHeader {
            agent: AGENT,
            chain_id: CHAIN,
            epoch,
            index,
            first_lsn,
            last_lsn,
            prev: None,
            cid: store::cid::of_raw(format!("{epoch} {index} {first_lsn} {last_lsn}").as_bytes()),
            recipient: "age1".into(),
            bytes: 10,
            signature: String::new(),
        };
        header.sign(by).unwrap();
        header
    }

    fn header(place: (u64, u64), lsns: (u64, u64)) -> SegmentHeader {
        signed(&operator(place.0), place, lsns)
    }

    /// What a reader takes of these: (epoch, last record) of each.
    fn taken(headers: &[SegmentHeader], stands: (u64, u64)) -> Vec<(u64, u64)> {
        let signed = signed_by_operators(headers.to_vec(), AGENT, CHAIN, |epoch| Some(operator(epoch).address()));
        in_order(&lived(signed), stands).iter().map(|header| (header.epoch, header.last_lsn)).collect()
    }

    #[test]
    fn segments_that_an_older_epoch_wrote_beyond_the_next_one_are_no_part_of_the_life() {
        let life = [header((1, 0), (1, 20)), header((2, 1), (21, 40)), header((2, 2), (41, 50))];
        assert_eq!(taken(&life, (0, 0)), [(1, 20), (2, 40), (2, 50)]);
        // A steward that was away since holds what the first operator wrote after the second one's beginning, which ends
        // beyond it.
        let stale = [header((1, 1), (21, 45)), header((1, 2), (46, 80))];
        let all = [&life[..], &stale].concat();
        assert_eq!(taken(&all, (0, 0)), [(1, 20), (2, 40), (2, 50)]);
        assert_eq!(taken(&all, (2, 40)), [(2, 50)]);
        assert_eq!(taken(&stale, (2, 50)), [], "a checkpoint of the second epoch stands");
        // Replaced by a longer one after a crash.
        assert_eq!(taken(&[&life[..], &[header((2, 2), (41, 60))]].concat(), (2, 40)), [(2, 60)]);
    }

    #[test]
    fn numbers_that_no_segment_can_have_are_not_counted_on_from() {
        let honest = header((1, 0), (1, 20));
        let impossible = [
            header((1, u64::MAX), (21, 30)),
            header((1, 1), (21, u64::MAX)),
            header((1, 21), (21, 30)),
            header((1, 0), (0, 30)),
        ];
        assert_eq!(taken(&[&[honest][..], &impossible].concat(), (0, 0)), [(1, 20)]);
    }

    #[test]
    fn shipping_goes_on_behind_what_a_successor_would_find_and_this_disk_has() {
        let life = [header((1, 0), (1, 20)), header((2, 1), (21, 40)), header((2, 3), (51, 60))];
        let cursor = |stands, last_lsn| {
            let Cursor { next_index, prev, replicated_lsn, sent } = Cursor::of(&life, stands, last_lsn);
            (next_index, prev, replicated_lsn, sent.len())
        };
        assert_eq!(cursor((0, 0), 90), (2, Some(life[1].cid), 40, 2), "nobody finds what lies behind a gap");
        assert_eq!(cursor((0, 0), 30), (1, Some(life[0].cid), 20, 1), "the rest is another node's");
        assert_eq!(cursor((2, 45), 90), (2, Some(life[1].cid), 45, 0));
        assert_eq!(cursor((2, 50), 90), (4, Some(life[2].cid), 60, 1));
        assert_eq!(
            Cursor::of(&[], (2, 50), 90),
            Cursor { next_index: 0, prev: None, replicated_lsn: 50, sent: vec![] }
        );
    }

    /// A steward that answers with these.
    async fn steward(headers: Vec<SegmentHeader>) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let answer = axum::routing::get(move || async move { axum::Json(headers) });
        let app = axum::Router::new().route("/segments/{treasury}", answer);
        tokio::spawn(async move { axum::serve(listener, app).await });
        url
    }

    #[tokio::test]
    async fn what_a_steward_makes_up_moves_no_cursor() {
        let log = Activated { lease: alloy::primitives::U256::ONE, operator: operator(1).address() }.encode_log_data();
        let log = json!([{
            "address": AGENT, "topics": log.topics(), "data": log.data, "blockHash": null, "blockNumber": "0x1",
            "transactionHash": null, "transactionIndex": "0x0", "logIndex": "0x0", "removed": false,
        }]);
        let chain = stand_in::endpoint(move |asked: Value| {
            let log = log.clone();
            async move { Ok(if asked["method"] == "eth_getLogs" { log } else { Value::Null }) }
        });
        let dir = tempfile::tempdir().unwrap();
        let (mut cx, _heard) = context::for_tests(&chain.await, dir.path());
        let honest = header((1, 0), (1, 20));
        let liar = operator(9);
        let made_up = vec![
            signed(&liar, (1, u64::MAX), (21, 90)),
            signed(&liar, (1, 7), (21, 90)),
            signed(&operator(2), (2, 1), (1, 90)),
        ];
        cx.manifest.stewards[0].url = steward(made_up).await;
        cx.manifest.stewards[1].url = steward(vec![honest.clone()]).await;
        let found = cursor(&cx, (0, 0), 90).await.unwrap();
        let sent = vec![Sent::from(&honest)];
        assert_eq!(found, Cursor { next_index: 1, prev: Some(honest.cid), replicated_lsn: 20, sent });
    }

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
