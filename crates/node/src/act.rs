//! Doing what the life decided: each output of `economy::Agent` becomes one typed call to the treasury.
//!
//! The list is closed, and nothing here reads a request, a prompt or an answer.
//! Every call is guarded by what the contract allows once, so a repetition after a crash changes nothing.

use crate::archive;
use crate::checkpoint::{self, Place};
use crate::context::Context;
use crate::error::{Error, Kind, Result};
use crate::live::Live;
use crate::main_loop::{Event, Node};
use crate::memory::Pages;
use crate::outboxes;
use crate::replay::Snapshotting;
use crate::replicate::{self, Cursor, SEGMENT_RECORDS_MAX, Segment, Sent as Left, Waiting};
use crate::shared::{Bulletin, Shared};
use crate::state::Recorded;
use crate::suppliers;
use alloy::primitives::{Address, B256, Bytes};
use chain::Outcome as Sent;
use chain::Stage;
use chain::treasury::{REFUEL_GAS, calls};
use economy::{Outcome, Output, OutputId};
use journal::crash_point;
use net::chain_of;
use pay::Usdc;
use std::sync::Arc;
use store::checkpoint::Checkpoint;
use store::seal::Recipient;

/// Writes a line into the log that no output of a machine is, and tells readers of `/events` once it is on the disk.
pub fn write_line(live: &mut Live, shared: &Arc<Shared>, now: u64, kind: &str, text: String) -> Result<()> {
    let lsn = live.record(now, &Recorded::Line { kind: kind.to_owned(), text })?;
    if let Some(line) = live.state.log.of_record(lsn, 0).cloned() {
        let shared = shared.clone();
        live.when_durable(lsn, move || shared.tell(Bulletin::Line(line)));
    }
    Ok(())
}

/// Starts `output`. Its end comes back as `Event::Acted` under the same id.
pub fn perform(node: &mut Node, id: OutputId, output: Output) {
    let Some(news) = &node.news else { return };
    let state = &news.state;
    match output {
        Output::Rent { offer, term, prepay } => {
            let call = calls::rent(offer, term, prepay.0);
            send(&node.cx, id, "rent", call, || crash_point!("rent.sent"));
        }
        Output::TopUp { lease, amount } => {
            let call = calls::top_up(lease, amount.0);
            send(&node.cx, id, "top-up", call, || crash_point!("topup.sent"));
        }
        Output::Release { lease } => send(&node.cx, id, "release", calls::release(lease), || ()),
        Output::Heartbeat { standby_answered } => {
            // As it stood when the heartbeat was decided: sent again after a crash, it says the same.
            let root = node.live.as_ref().map(|live| live.state.receipt_trees.root_of((id.lsn, id.index)));
            let root = root.map_or(B256::ZERO, B256::from);
            let instance = node.cx.instances.own();
            send(&node.cx, id, "heartbeat", calls::heartbeat(instance, root, standby_answered), || ());
        }
        Output::Checkpoint => start_checkpoint(node, id),
        Output::Announce { lease } => {
            send(&node.cx, id, "announce", calls::announce(lease), || crash_point!("handover.announced"));
        }
        Output::Handover { lease, valid_until } => {
            let cut = node.live.as_ref().map_or(0, |l| l.durable);
            if let Some(live) = &mut node.live {
                live.hand_over(valid_until);
            }
            let call = calls::handover(lease, state.checkpointSeq, cut, valid_until);
            send(&node.cx, id, "handover", call, || crash_point!("handover.sent"));
        }
        Output::Refuel => {
            let tx = chain::Tx::call(node.cx.config.treasury, calls::refuel(), "refuel").with_gas(REFUEL_GAS);
            submit(&node.cx, id, tx, || ());
        }
        Output::BuyGas { max } => send(&node.cx, id, "purchase of gas", calls::buy_gas(max.0), || ()),
        Output::FillPurse { amount, full } => {
            let holds = node.news.as_ref().map_or(0, |news| news.purse);
            if holds.saturating_add(amount.0) > full.0 {
                // Asked again after a crash. The contract knows the cap alone, which may have room for it twice.
                return refuse(&node.cx, id, "the purse is full already");
            }
            let call = calls::spend(chain::treasury::KIND_PURSE, node.cx.suppliers.purse, amount.0);
            send(&node.cx, id, "filling of the purse", call, || ());
        }
        Output::Refund { payer, nonce, amount } => {
            let call = calls::refund_exact(Address::from(payer), B256::from(nonce), amount.0);
            send(&node.cx, id, "refund", call, || crash_point!("pay.exact_refund_sent"));
        }
        Output::WindDown => {
            send(&node.cx, id, "wind-down", calls::wind_down(), || crash_point!("winddown.sent"));
        }
        Output::Hibernate { until, leaves_claims } => {
            let unclaimed = node.live.as_ref().map_or(Usdc::ZERO, |l| l.state.book.channels().totals().unclaimed);
            if !unclaimed.is_zero() && !leaves_claims {
                // Payers can withdraw what nobody claims while the agent sleeps.
                return refuse(&node.cx, id, "what channels owe is being claimed");
            }
            send(&node.cx, id, "hibernation", calls::hibernate(until), || crash_point!("hibernate.sent"));
        }
        Output::Close => send(&node.cx, id, "close", calls::close(), || crash_point!("close.sent")),
        Output::AskArchivist => archive::ask_price(node, id),
        Output::PayArchivist { payee, amount } => {
            let call = calls::spend(chain::treasury::KIND_STORAGE, Address::from(payee), amount.0);
            send(&node.cx, id, "payment for storage", call, || ());
        }
        Output::Archive { quote, payment } => archive::hand_over(node, id, quote, payment),
        Output::Serve { price } => {
            node.shared.sell_at(price);
            // The block's status was told before this was on disk.
            node.publish();
        }
        Output::StopServing { why } => {
            tracing::info!(%why, "not selling");
            node.shared.stop_selling(why.to_string());
            node.publish();
            crate::ask::say_what_is_owed(node);
        }
        Output::Note(note) => {
            tracing::info!("{note}");
            if let Some(line) = node.live.as_ref().and_then(|l| l.state.log.of_record(id.lsn, id.index)) {
                node.shared.tell(Bulletin::Line(line.clone()));
            }
        }
        Output::WakeAt(at) => {
            if let Some(live) = &mut node.live {
                live.wake_at = at;
            }
        }
    }
}

/// What is not sent, because of what only the node knows. It is asked for again later.
fn refuse(cx: &Arc<Context>, id: OutputId, reason: &str) {
    let (cx, reason) = (cx.clone(), reason.to_owned());
    tokio::spawn(async move { cx.tell(Event::Acted { id, outcome: Outcome::Failed { reason } }).await });
}

/// One transaction by the operator key to the treasury. `sent` is a crash point: reached once the call left.
fn send(cx: &Arc<Context>, id: OutputId, label: &'static str, call: Bytes, sent: fn()) {
    submit(cx, id, chain::Tx::call(cx.config.treasury, call, label), sent);
}

fn submit(cx: &Arc<Context>, id: OutputId, tx: chain::Tx, sent: fn()) {
    let cx = cx.clone();
    let label = tx.label;
    // A process before this one may have sent it: then its end is told here.
    let waiting = cx.operator.submit_as(outboxes::name_of(id, &tx), tx);
    tokio::spawn(async move {
        sent();
        let outcome = outcome_of(label, waiting.await);
        cx.tell(Event::Acted { id, outcome }).await;
    });
}

fn outcome_of(label: &str, sent: Sent) -> Outcome {
    match sent {
        Sent::Done { block, .. } => Outcome::Done { block },
        Sent::Reverted { revert, .. } => {
            tracing::info!(label, why = revert.text, "the treasury refused");
            Outcome::Failed { reason: revert.text }
        }
        Sent::NeverSent { reason } => {
            tracing::info!(label, reason, "not sent");
            Outcome::Failed { reason }
        }
        Sent::Unknown { txs } => {
            tracing::warn!(label, ?txs, "nobody knows yet whether it happened");
            Outcome::Unknown
        }
    }
}

// ---- checkpoints ----

fn start_checkpoint(node: &mut Node, id: OutputId) {
    let (Some(news), Some(live)) = (&node.news, &mut node.live) else { return };
    let place = Place {
        epoch: news.state.epoch,
        seq: news.state.checkpointSeq + 1,
        prev: news.state.checkpointDigest,
        at: news.head.timestamp,
        may_grow: news.state.stage() == Stage::Alive && news.runs_the_code(),
    };
    let before = live.ring.clone();
    let drawn_up = checkpoint::draw_up(live, &place);
    let drawn_up = drawn_up.and_then(|draft| node.cx.ring_file.save(&live.ring).map(|()| draft));
    let draft = match drawn_up {
        Ok(draft) => draft,
        Err(e) => {
            let reason = chain_of(&e);
            tracing::warn!(reason, "no checkpoint");
            live.ring = before;
            let cx = node.cx.clone();
            tokio::spawn(async move { cx.tell(Event::Acted { id, outcome: Outcome::Failed { reason } }).await });
            return;
        }
    };
    let cx = node.cx.clone();
    tokio::spawn(async move {
        let prepared = match checkpoint::prepare(cx.clone(), draft).await {
            Ok(prepared) => prepared,
            Err(e) => {
                let reason = chain_of(&e);
                tracing::warn!(reason, "no checkpoint");
                cx.tell(Event::Acted { id, outcome: Outcome::Failed { reason } }).await;
                if e.kind == Kind::Corrupt {
                    cx.tell(Event::NotFoldedAnew(e)).await;
                }
                return;
            }
        };
        let made = prepared.checkpoint;
        let call = calls::commit(made.seq, prepared.digest, prepared.prev, prepared.acks);
        let tx = chain::Tx::call(cx.config.treasury, call, "commit");
        let sent = cx.operator.submit(tx).await;
        crash_point!("checkpoint.committed");
        match sent {
            Sent::Done { block, .. } => {
                let log = made.log;
                let pages = prepared.pages;
                cx.tell(Event::Committed { id, block, checkpoint: Box::new(made), pages }).await;
                checkpoint::keep(&cx, prepared.digest, prepared.prev, &log).await;
            }
            other => {
                let outcome = outcome_of("commit", other);
                cx.tell(Event::Acted { id, outcome }).await;
            }
        }
    });
}

// ---- shipping ----

/// Sends what is durable and not yet replicated, one segment at a time.
pub fn ship(node: &mut Node) {
    let Some(news) = &node.news else { return };
    let epoch = news.state.epoch;
    let Some(live) = &mut node.live else { return };
    let Some(chapter) = live.ring.chapter.clone() else { return };
    let (exposure, is_urgent, now_ms) = (live.exposure(), live.is_awaited(), crate::fence::boottime_ms());
    let shipping = &mut live.shipping;
    if !shipping.known || shipping.in_flight || live.durable <= shipping.replicated_lsn {
        return;
    }
    let waiting = Waiting {
        since_ms: *shipping.waits_since_ms.get_or_insert(now_ms),
        now_ms,
        day_secs: u64::from(node.cx.birth.timers.day),
        records: live.durable - shipping.replicated_lsn,
        exposed: (exposure, node.cx.manifest.exposure_uusdc_max),
        is_urgent,
    };
    if !waiting.is_due() {
        return;
    }
    let Ok(recipient) = Recipient::parse(&chapter) else { return };
    let first_lsn = shipping.replicated_lsn + 1;
    let last_lsn = live.durable.min(first_lsn + SEGMENT_RECORDS_MAX - 1);
    let records = match live.journal.export(first_lsn, last_lsn) {
        Ok(records) => records,
        Err(e) => {
            tracing::error!(error = %e, "records to ship cannot be read back");
            return;
        }
    };
    let segment =
        Segment { epoch, index: shipping.next_index, first_lsn, last_lsn, prev: shipping.prev, recipient, records };
    live.shipping.in_flight = true;
    live.shipping.waits_since_ms = None;
    let cx = node.cx.clone();
    tokio::spawn(async move {
        let shipped = replicate::ship(cx.clone(), segment).await;
        cx.tell(Event::Shipped(shipped)).await;
    });
}

/// After a start: the chain of headers goes on where the stewards hold it, and the next checkpoint where the last one is.
pub fn learn_shipping(node: &Node) {
    let cx = node.cx.clone();
    let last_lsn = node.live.as_ref().map_or(0, |l| l.durable);
    let digest = node.news.as_ref().map(|news| news.state.checkpointDigest).filter(|digest| !digest.is_zero());
    tokio::spawn(async move {
        loop {
            match shipping_known(&cx, last_lsn, digest).await {
                Ok(event) => return cx.tell(event).await,
                Err(e) => {
                    tracing::warn!(error = %chain_of(&e), "what was shipped is not known yet: asking again");
                    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
                }
            }
        }
    });
}

async fn shipping_known(cx: &Context, last_lsn: u64, digest: Option<B256>) -> Result<Event> {
    let stands = match digest {
        None => None,
        Some(digest) => Some(Box::new(checkpoint::fetch(cx, digest).await?)),
    };
    let covered = stands.as_ref().map_or((0, 0), |stands| (stands.epoch, stands.lsn));
    let Cursor { next_index, prev, replicated_lsn, sent } = replicate::cursor(cx, covered, last_lsn).await?;
    Ok(Event::ShippingKnown { next_index, prev, replicated_lsn, sent, stands })
}

/// Is the standby's node alive and able? Asked about once a second.
pub fn ask_standby(node: &mut Node) {
    let now_ms = crate::fence::boottime_ms();
    if now_ms.saturating_sub(node.standby_asked_ms) < 1_000 {
        return;
    }
    let Some(news) = &node.news else { return };
    let Some(standby) = news.standby.as_ref().map(|l| &l.lease) else { return };
    if standby.endpoint.is_empty() {
        return;
    }
    node.standby_asked_ms = now_ms;
    let lease = news.state.standbyLease.saturating_to::<u64>();
    let url = format!("{}/peer/able", standby.endpoint);
    let cx = node.cx.clone();
    tokio::spawn(async move {
        #[derive(serde::Deserialize)]
        struct Able {
            lease: u64,
            ready: bool,
        }
        if let Ok(able) = cx.http.get_json::<Able>(&url).await
            && able.lease == lease
        {
            cx.tell(Event::Standby { lease, ready: able.ready }).await;
        }
    });
}

/// Keeps the relay known to the treasury; the life asks for its fuel. Fetches what the market owes the treasury since
/// the token refused it. Idempotent, so neither is a decision of the life.
pub fn housekeeping(node: &mut Node) {
    let now_ms = crate::fence::boottime_ms();
    collect(node, now_ms);
    trim(node, now_ms);
    let Some(news) = &node.news else { return };
    let relay = node.cx.keys.relay.address();
    if news.state.relay == relay || now_ms.saturating_sub(node.relay_asked_ms) < 15_000 {
        return;
    }
    node.relay_asked_ms = now_ms;
    let waiting =
        node.cx.operator.submit(chain::Tx::call(node.cx.config.treasury, calls::set_relay(relay), "set relay"));
    tokio::spawn(async move {
        let sent = waiting.await;
        if !matches!(sent, Sent::Done { .. }) {
            tracing::info!(?sent, "the relay is not set yet");
        }
    });
}

/// Anybody may ask for it, so the relay does. While the token still refuses, that is found out without a transaction.
fn collect(node: &mut Node, now_ms: u64) {
    let owed = node.live.as_ref().map_or(economy::Usdc::ZERO, |live| live.state.agent.ledger().at_market());
    if owed.is_zero() || now_ms.saturating_sub(node.collect_asked_ms) < 60_000 {
        return;
    }
    node.collect_asked_ms = now_ms;
    let call = chain::market::calls::collect(node.cx.config.treasury);
    let waiting = node.cx.relay.submit(chain::Tx::call(node.cx.config.lease_market, call, "collect"));
    tokio::spawn(async move {
        let sent = waiting.await;
        if !matches!(sent, Sent::Done { .. }) {
            tracing::info!(?sent, "what the market owes is not collected yet");
        }
    });
}

/// A purse over its cap signs nothing until somebody has it trimmed. The relay does, as anybody may.
fn trim(node: &mut Node, now_ms: u64) {
    let (cap, holds) = (node.cx.birth.options.purseMax, node.news.as_ref().map_or(0, |news| news.purse));
    if holds <= cap || now_ms.saturating_sub(node.trim_asked_ms) < 60_000 {
        return;
    }
    node.trim_asked_ms = now_ms;
    let waiting = node.cx.relay.submit(chain::Tx::call(node.cx.suppliers.purse, suppliers::trim(), "trim"));
    tokio::spawn(async move {
        let sent = waiting.await;
        if !matches!(sent, Sent::Done { .. }) {
            tracing::info!(?sent, "the purse is not trimmed yet");
        }
    });
}

/// What a former operator's keys still hold goes back to the treasury, which fuels the next one: keys are destroyed
/// with the lease, and ether left on them would be lost.
pub fn give_back_gas(node: &Node) {
    /// Stays behind for the transfer itself, wei: far above its fee on a roll-up.
    const KEPT_WEI: u128 = 1_000_000_000_000_000;
    /// Transactions that were on their way at the cut end first.
    const LAST_CALLS: std::time::Duration = std::time::Duration::from_secs(2);
    let cx = node.cx.clone();
    tokio::spawn(async move {
        tokio::time::sleep(LAST_CALLS).await;
        for sender in [&cx.operator, &cx.relay] {
            let held = match cx.chain.eth_balance(sender.address(), chain::alloy::eips::BlockId::latest()).await {
                Ok(held) => held.saturating_to::<u128>(),
                Err(e) => {
                    tracing::warn!(error = %e, "the gas that is left cannot be read");
                    continue;
                }
            };
            let Some(back) = held.checked_sub(KEPT_WEI).filter(|back| *back > 0) else { continue };
            let sent = sender.submit(chain::Tx::transfer(cx.config.treasury, back, "gas back")).await;
            tracing::info!(back, done = matches!(sent, Sent::Done { .. }), "gas goes back to the treasury");
        }
    });
}

impl Node {
    pub(crate) fn on_committed(&mut self, id: OutputId, block: u64, made: Box<Checkpoint>, pages: Pages) -> Result<()> {
        self.life(economy::Input::Done { id, outcome: Outcome::Done { block } })?;
        let Some(live) = &mut self.live else { return Ok(()) };
        tracing::info!(seq = made.seq, lsn = made.lsn, "checkpoint acknowledged and on chain");
        live.committed(made, pages);
        self.cx.ring_file.save(&live.ring)?;
        let due = live.snapshot();
        self.make_snapshot(due);
        Ok(())
    }

    /// Beside the loop.
    pub(crate) fn make_snapshot(&self, due: Option<Snapshotting>) {
        let (Some(due), cx) = (due, self.cx.clone()) else { return };
        tokio::spawn(async move {
            let made = tokio::task::spawn_blocking(move || due.run()).await;
            let broken_off = |e| Err(Error::bug("making a snapshot was broken off").caused_by(e));
            cx.tell(Event::Snapshotted(made.unwrap_or_else(broken_off))).await;
        });
    }

    pub(crate) fn on_shipped(&mut self, shipped: Result<replicate::Shipped>) {
        let Some(live) = &mut self.live else { return };
        live.shipping.in_flight = false;
        match shipped {
            Ok(shipped) => {
                live.shipping.next_index = shipped.index.saturating_add(1);
                live.shipping.prev = Some(shipped.sent.cid);
                live.shipping.sent.push(shipped.sent);
                live.replicated(shipped.sent.last_lsn);
            }
            Err(e) => tracing::warn!(error = %chain_of(&e), "a segment is not replicated yet"),
        }
    }

    pub(crate) fn on_shipping_known(
        &mut self,
        (next_index, prev): (u64, Option<store::cid::Cid>),
        replicated_lsn: u64,
        sent: Vec<Left>,
        stands: Option<Box<Checkpoint>>,
    ) {
        if let Some(live) = &mut self.live {
            live.shipping.known = true;
            live.shipping.next_index = next_index;
            live.shipping.prev = prev;
            // One that was committed while this was asked is newer.
            if live.stands.is_none() {
                live.shipping.sent = sent;
                live.stands = stands;
            }
            // Records before the journal's first came inside a checkpoint.
            live.replicated(replicated_lsn.max(live.journal.first_lsn() - 1));
        }
    }
}
