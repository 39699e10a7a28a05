//! Settling payments with the relay key, and finding out what became of each: paid, unpaid, or unknown.
//!
//! The relay sends strangers' authorisations to the treasury's `settleExact`, and their Permit2 payments to the x402
//! proxies, which anyone or the named facilitator may call; it has no role. The operator key stands in for it at the
//! treasury, never at a proxy. "Reverted" and "timed out" are questions for the chain, not answers.

use crate::api::makes_vectors;
use crate::authorization::{self, Fate};
use crate::context::Context;
use crate::contract_payers::{self, NotMade};
use crate::error::Result;
use crate::external;
use crate::live::Live;
use crate::main_loop::{Event, Node};
use crate::manifest;
use crate::permit2;
use crate::shared::Role;
use crate::state::Recorded;
use crate::suppliers;
use alloy::primitives::{Address, B256, U256};
use chain::Outcome as Sent;
use journal::crash_point;
use net::chain_of;
use pay::book::channels::{CallService, ChannelInput};
use pay::book::{BookInput, BookOutput, Payment, RequestId, Service, Timing, UnpaidWhy};
use pay::receipt::PaidBy;
use pay::receipt::refund::RefundNote;
use pay::receipt::run::Run;
use pay::risk::is_under;
use pay::scheme::upto::{Permit2Payment, Proxy};
use pay::{Receipt, Settle, SettleExact, TransferMethod, Usdc};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{oneshot, watch};

/// Between two questions about a payment whose outcome is unknown.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// Gas that a settlement needs, wei at the prices of a development chain: below it the operator key sends instead.
const RELAY_WEI_MIN: u128 = 1_000_000_000_000_000;

/// What became of one payment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settlement {
    Paid {
        amount: u128,
        tx: B256,
        block: u64,
        recorded: bool,
    },
    Unpaid(UnpaidWhy),
    /// Nobody knows yet.
    Unknown,
}

/// Somebody who wants to know what became of a payment.
pub struct Waiter {
    /// A settlement counts once it is under so many, its own counted.
    pub blocks: u32,
    pub reply: oneshot::Sender<Settlement>,
}

impl Node {
    pub(crate) fn on_book(&mut self, output: BookOutput) -> Result<()> {
        match output {
            BookOutput::Settle { request } => self.settle(request),
            BookOutput::Receipt { request } => self.sign_receipt(request),
            BookOutput::Owe { .. } | BookOutput::Unearned { .. } => {
                crate::ask::say_what_is_owed(self);
                Ok(())
            }
            // Summed by the state's own fold; posted about once a second.
            BookOutput::Earned { .. } => Ok(()),
            BookOutput::Channel(output) => self.on_channel_output(output),
            BookOutput::Refused { request, why } => {
                tracing::warn!(%request, %why, "a reservation was refused after it was decided");
                Ok(())
            }
        }
    }

    /// The relay cannot pay the gas of a settlement now, so the operator key sends it.
    pub(crate) fn relay_is_poor(&self) -> bool {
        let relay = self.cx.keys.relay.address();
        self.news.as_ref().is_none_or(|n| n.state.relay != relay || n.relay_wei < U256::from(RELAY_WEI_MIN))
    }

    fn settle(&mut self, request: RequestId) -> Result<()> {
        let acts = self.acts();
        let now = self.now();
        let poor = self.relay_is_poor();
        let draining = self.role == Role::Draining;
        let Some(live) = &mut self.live else { return Ok(()) };
        if live.sealed || !live.state.book.may_settle(&request) {
            return Ok(());
        }
        let Some(entry) = live.state.book.entry(&request) else { return Ok(()) };
        // The relay has no role that a move could end, and of `upto` nobody else can collect what it is named for.
        let may = acts || (draining && matches!(entry.reservation.settlement, Settle::Permit2(_)));
        if !may {
            return Ok(());
        }
        let task = Task::of(live, &request);
        let lsn = live.record(now, &Recorded::Book(BookInput::SettleSent { request }))?;
        let cx = self.cx.clone();
        let nobody_waits = self.settled_after.remove(&request);
        let Some(task) = task else { return Ok(()) };
        live.when_durable(lsn, move || {
            tokio::spawn(async move {
                let outcome = match (&cx.facilitator, &task.settlement) {
                    // Without a record of its own nothing could be given back: only what is made and charged.
                    (Some(remote), Settle::Exact(terms)) if task.can_wait => external::settle(&cx, remote, terms).await,
                    _ => None,
                };
                let outcome = match outcome {
                    Some(outcome) => outcome,
                    None if nobody_waits => task.send_with_others(&cx, poor).await,
                    None => task.send(&cx, poor).await,
                };
                cx.tell(Event::Settled { request, settlement: outcome }).await;
            });
        });
        Ok(())
    }

    /// A stream that ended after this node's journal was closed: its successor has the record, but only this relay can
    /// collect an `upto` payment that names it.
    pub(crate) fn settle_late(&self, input: &BookInput) {
        let BookInput::Delivered { request, amount, .. } = input else { return };
        let Some(task) = self.live.as_ref().and_then(|live| Task::of(live, request)) else { return };
        let mine = matches!(&task.settlement, Settle::Permit2(payment) if is_facilitator(&self.cx, payment));
        if !mine || self.known_settlement(request).is_some() {
            return;
        }
        let task = Task { charge: task.settlement.charge(*amount), ..task };
        let (cx, request) = (self.cx.clone(), *request);
        tokio::spawn(async move {
            let outcome = task.send(&cx, false).await;
            cx.tell(Event::Settled { request, settlement: outcome }).await;
        });
    }

    pub(crate) fn on_settled(&mut self, request: RequestId, settlement: Settlement) -> Result<()> {
        if matches!(settlement, Settlement::Paid { .. }) {
            crash_point!("pay.settled");
        }
        let Some(live) = &self.live else { return Ok(()) };
        let Some(entry) = live.state.book.entry(&request) else { return Ok(()) };
        let terms = &entry.reservation.settlement;
        let input = match &settlement {
            Settlement::Paid { amount, tx, block, recorded } => BookInput::Settled {
                method: terms.method(),
                payer: terms.payer(),
                nonce: terms.nonce(),
                amount: economy::Usdc(*amount),
                tx: tx.0,
                block: *block,
                recorded: *recorded,
            },
            Settlement::Unpaid(why) => BookInput::Unpaid { request, why: *why },
            Settlement::Unknown => {
                self.ask_again(request);
                if matches!(entry.payment, Payment::Unknown) {
                    return Ok(());
                }
                BookInput::SettleUnknown { request }
            }
        };
        if live.sealed {
            // The successor hears of the settlement from the chain; the customer is still on this node's line.
            if settlement != Settlement::Unknown {
                self.tell(&request, &settlement);
            }
            return Ok(());
        }
        self.book(input)?;
        self.tell_waiters(&request);
        Ok(())
    }

    /// After the chain named a successor no events are read here any more: ask for each payment somebody waits for.
    pub(crate) fn ask_for_open_payments(&self) {
        let Some(live) = &self.live else { return };
        // A payment by Permit2 that was not sent has no outcome to ask for: its delivery sends it, from here.
        let is_out = |request: &&RequestId| {
            live.state.book.entry(request).is_some_and(|entry| {
                let waits = matches!(entry.payment, Payment::Waiting | Payment::Due);
                !waits || entry.reservation.settlement.method() == TransferMethod::Eip3009
            })
        };
        for request in self.settled_waiters.keys().filter(is_out) {
            self.ask_again(*request);
        }
    }

    /// Asks the chain, after a moment, what became of a payment. Until that is known it is asked again.
    pub(crate) fn ask_again(&self, request: RequestId) {
        let Some(task) = self.live.as_ref().and_then(|live| Task::of(live, &request)) else { return };
        let cx = self.cx.clone();
        tokio::spawn(async move {
            tokio::time::sleep(ASK_AGAIN).await;
            let found = task.reconcile(&cx).await;
            cx.tell(Event::Settled { request, settlement: found }).await;
        });
    }

    /// Customers that wait for the outcome of their payment.
    pub(crate) fn tell_waiters(&mut self, request: &RequestId) {
        if let Some(settlement) = self.known_settlement(request) {
            self.tell(request, &settlement);
        }
    }

    fn tell(&mut self, request: &RequestId, settlement: &Settlement) {
        for waiter in self.settled_waiters.remove(request).unwrap_or_default() {
            self.answer(request, settlement.clone(), waiter);
        }
    }

    /// At once what is known for good or mined as it was asked for; else when it is under enough blocks.
    pub(crate) fn answer(&self, request: &RequestId, settlement: Settlement, waiter: Waiter) {
        let Waiter { blocks, mut reply } = waiter;
        let block = match settlement {
            Settlement::Paid { block, .. } if blocks > 1 => block,
            // The customer may have hung up.
            _ => return drop(reply.send(settlement)),
        };
        // Without an answer the customer hears that its payment's outcome is not known.
        let Some(task) = self.live.as_ref().and_then(|live| Task::of(live, request)) else { return };
        let cx = self.cx.clone();
        tokio::spawn(async move {
            tokio::select! {
                settlement = until_under(block, blocks, cx.head.subscribe(), || task.reconcile(&cx)) => {
                    let _ = reply.send(settlement);
                }
                () = reply.closed() => {}
            }
        });
    }

    pub(crate) fn known_settlement(&self, request: &RequestId) -> Option<Settlement> {
        match &self.live.as_ref()?.state.book.entry(request)?.payment {
            Payment::Settled { amount, tx, block, recorded } => {
                Some(Settlement::Paid { amount: amount.0, tx: B256::from(*tx), block: *block, recorded: *recorded })
            }
            Payment::Unpaid { why } => Some(Settlement::Unpaid(*why)),
            _ => None,
        }
    }

    /// What this operator says of a payment whose money goes back, or went. `None`: none does.
    pub(crate) fn refund_note(&self, request: &RequestId) -> Option<RefundNote> {
        if !self.acts() {
            return None;
        }
        let entry = self.live.as_ref()?.state.book.entry(request)?;
        let (Service::Aborted { why }, Payment::Settled { .. }) = (&entry.service, &entry.payment) else {
            return None;
        };
        let amount = entry.owed().saturating_add(entry.refunded);
        (!amount.is_zero()).then(|| RefundNote {
            agent: self.cx.config.treasury,
            chain_id: self.cx.config.chain_id,
            epoch: self.epoch(),
            request: *request,
            payer: Address::from(entry.reservation.settlement.payer()),
            nonce: entry.reservation.settlement.nonce(),
            amount,
            reason: *why,
            issued_at: self.now(),
        })
    }

    fn sign_receipt(&mut self, request: RequestId) -> Result<()> {
        let now = self.now();
        let epoch = self.epoch();
        let cx = self.cx.clone();
        let Some(live) = &self.live else { return Ok(()) };
        let Some(entry) = live.state.book.entry(&request) else { return Ok(()) };
        let (Service::Delivered(delivery), Payment::Settled { amount, tx, .. }) = (&entry.service, &entry.payment)
        else {
            return Ok(());
        };
        let sold = Sold::by(&cx, &entry.reservation.route, entry.reservation.prompt_tokens);
        let receipt = Receipt {
            agent: cx.config.treasury,
            chain_id: cx.config.chain_id,
            epoch,
            request,
            payer: Address::from(entry.reservation.settlement.payer()),
            paid_by: PaidBy::Authorization { nonce: entry.reservation.settlement.nonce(), transaction: *tx },
            model: sold.model,
            adapter: adapter_of(&entry.reservation.run),
            run: Run::of(&entry.reservation.run),
            prompt: entry.reservation.body_digest,
            output: delivery.output_digest,
            prompt_tokens: sold.prompt_tokens,
            cached_tokens: delivery.cached_tokens,
            completion_tokens: delivery.completion_tokens,
            embedding_tokens: sold.embedding_tokens,
            amount: *amount,
            issued_at: now,
        };
        self.sign(receipt)
    }

    /// Of a call on a channel: no transaction is its own.
    pub(crate) fn sign_call_receipt(&mut self, request: RequestId) -> Result<()> {
        let now = self.now();
        let epoch = self.epoch();
        let cx = self.cx.clone();
        let Some(live) = &self.live else { return Ok(()) };
        let channels = live.state.book.channels();
        let Some(call) = channels.call(&request) else { return Ok(()) };
        let CallService::Delivered(delivery) = &call.service else { return Ok(()) };
        let Some(channel) = channels.channel(&call.reservation.channel) else { return Ok(()) };
        let sold = Sold::by(&cx, &call.reservation.route, call.reservation.prompt_tokens);
        let receipt = Receipt {
            agent: cx.config.treasury,
            chain_id: cx.config.chain_id,
            epoch,
            request,
            payer: Address::from(channel.config.payer),
            paid_by: PaidBy::Voucher { channel: call.reservation.channel.0, charged: delivery.cumulative },
            model: sold.model,
            adapter: adapter_of(&call.reservation.run),
            run: Run::of(&call.reservation.run),
            prompt: call.reservation.body_digest,
            output: delivery.output_digest,
            prompt_tokens: sold.prompt_tokens,
            cached_tokens: delivery.cached_tokens,
            completion_tokens: delivery.completion_tokens,
            embedding_tokens: sold.embedding_tokens,
            amount: call.charged(),
            issued_at: now,
        };
        self.sign(receipt)
    }

    /// Has whoever asks for a receipt wait for it, while its call is being answered or waits for the disk or its money.
    pub(crate) fn when_signed(&mut self, request: RequestId, reply: oneshot::Sender<()>) {
        let is_signed = |live: &Live| live.state.receipts.contains_key(&request.to_string());
        if self.live.as_ref().is_some_and(is_signed) {
            // Who has hung up needs no telling.
            let _ = reply.send(());
        } else if self.is_sold(&request) != Some(false) {
            self.receipt_waiters.retain(|_, waiters| {
                waiters.retain(|waiter| !waiter.is_closed());
                !waiters.is_empty()
            });
            self.receipt_waiters.entry(request).or_default().push(reply);
        }
    }

    fn sign(&mut self, receipt: Receipt) -> Result<()> {
        let (request, now) = (receipt.request, receipt.issued_at);
        let Some(live) = &mut self.live else { return Ok(()) };
        if live.sealed || live.state.receipts.contains_key(&request.to_string()) {
            return Ok(());
        }
        let key = &self.cx.keys.node;
        match receipt.sign_cose(key).and_then(|cose| Ok((receipt.sign(key)?, cose))) {
            Ok((signed, cose)) => {
                let json = signed.to_json();
                live.record(now, &Recorded::Receipt { request: request.to_string(), json, cose })?;
                for waiter in self.receipt_waiters.remove(&request).unwrap_or_default() {
                    let _ = waiter.send(());
                }
            }
            Err(e) => tracing::error!(%request, error = %e, "a receipt cannot be signed"),
        }
        Ok(())
    }
}

/// Requests that are being served, by this node or by the one whose journal it took over.
pub fn being_served(live: &Live) -> BTreeSet<RequestId> {
    interrupted(live, 0).into_keys().collect()
}

/// What closes them: the last durable mark is charged, a request without one is given back.
fn interrupted(live: &Live, now: u64) -> BTreeMap<RequestId, BookInput> {
    let channels = live.state.book.channels().interrupted(now).into_iter().map(BookInput::Channel);
    let inputs = live.state.book.interrupted(now).into_iter().chain(channels);
    let by_request = |input: BookInput| match &input {
        BookInput::Aborted { request, .. }
        | BookInput::Delivered { request, .. }
        | BookInput::Channel(ChannelInput::Aborted { request, .. } | ChannelInput::Charged { request, .. }) => {
            Some((*request, input))
        }
        // The book closes with nothing else.
        _ => None,
    };
    inputs.filter_map(by_request).collect()
}

/// Closes those of `requests` that are still open: who served them is gone, or has not said in time what it delivered.
/// What this node serves itself by now goes on.
pub fn close_unreported(node: &mut Node, requests: &BTreeSet<RequestId>) -> Result<()> {
    let now = node.now();
    let Some(live) = &mut node.live else { return Ok(()) };
    if live.sealed {
        return Ok(());
    }
    for (request, input) in interrupted(live, now) {
        if requests.contains(&request) {
            live.record(now, &Recorded::Book(input))?;
        }
    }
    crate::ask::say_what_is_owed(node);
    Ok(())
}

/// After a fence: payments that became due while nothing might be sent.
pub fn send_due(node: &mut Node) -> Result<()> {
    let Some(live) = &node.live else { return Ok(()) };
    let unsettled = live.state.book.unsettled();
    let due: Vec<RequestId> =
        unsettled.filter(|(_, entry)| entry.payment == Payment::Due).map(|(request, _)| *request).collect();
    due.into_iter().try_for_each(|request| node.settle(request))
}

/// After a start: payments that were on their way are asked about.
pub fn resume(node: &mut Node) -> Result<()> {
    let Some(live) = &mut node.live else { return Ok(()) };
    let unsettled: Vec<(RequestId, bool)> =
        live.state.book.unsettled().map(|(request, entry)| (*request, matches!(entry.payment, Payment::Due))).collect();
    for (request, due) in unsettled {
        if due {
            node.settled_after.insert(request);
            node.settle(request)?;
            continue;
        }
        let Some(live) = &mut node.live else { return Ok(()) };
        let Some(task) = Task::of(live, &request) else { continue };
        let cx = node.cx.clone();
        live.when_durable(live.journal.last_lsn(), move || {
            tokio::spawn(async move {
                let found = match task.reconcile(&cx).await {
                    // It may never have left the process: sending it again is safe, a nonce is taken once. Whoever waited
                    // for it was on another process's line.
                    Settlement::Unknown => task.send_with_others(&cx, true).await,
                    known => known,
                };
                cx.tell(Event::Settled { request, settlement: found }).await;
            });
        });
    }
    crate::ask::say_what_is_owed(node);
    Ok(())
}

/// One payment on its way: what is sent, and asked about.
struct Task {
    settlement: Settle,
    /// What it moves.
    charge: Usdc,
    /// Transactions that are known to have paid for other requests of this payer.
    taken: BTreeSet<B256>,
    /// Settled only once its answer was made.
    can_wait: bool,
    /// It was: what it is paid with is sent as long as it is valid.
    is_delivered: bool,
}

impl Task {
    fn of(live: &Live, request: &RequestId) -> Option<Self> {
        let book = &live.state.book;
        let entry = book.entry(request)?;
        let settlement = entry.reservation.settlement.clone();
        // Only a payment by Permit2 could be taken for another one.
        let others = book.of_payer(TransferMethod::Permit2, settlement.payer());
        let taken = others
            .filter_map(|(other, entry)| match entry.payment {
                Payment::Settled { tx, .. } if other != request => Some(B256::from(tx)),
                _ => None,
            })
            .collect();
        let can_wait = entry.reservation.timing == Timing::OnDelivery;
        let is_delivered = matches!(entry.service, Service::Delivered(_));
        Some(Self { settlement, charge: entry.charge, taken, can_wait, is_delivered })
    }

    /// In company where it can wait; alone, when that has not settled it.
    async fn send_with_others(&self, cx: &Arc<Context>, relay_is_poor: bool) -> Settlement {
        let in_company = match &self.settlement {
            Settle::Exact(terms) if self.can_wait && terms.is_signed_by_key => with_others(cx, terms).await,
            Settle::Exact(_) | Settle::Permit2(_) => None,
        };
        match in_company {
            Some(settlement) => settlement,
            None => self.send(cx, relay_is_poor).await,
        }
    }

    async fn send(&self, cx: &Arc<Context>, relay_is_poor: bool) -> Settlement {
        match &self.settlement {
            Settle::Exact(terms) => match self.send_exact(cx, terms, relay_is_poor).await {
                // Another's facilitator may have it, too, and send it as long as it is valid; it would leave no record
                // that tells. So it is asked about until it is over.
                Settlement::Unpaid(UnpaidWhy::Refused) if self.can_wait && cx.facilitator.is_some() => {
                    Settlement::Unknown
                }
                outcome => outcome,
            },
            Settle::Permit2(payment) if is_facilitator(cx, payment) => self.send_permit2(cx, payment).await,
            // A node before this one was named: what its relay sent shows on the chain, or nothing will.
            Settle::Permit2(_) => self.reconcile(cx).await,
        }
    }

    /// To the treasury.
    async fn send_exact(&self, cx: &Arc<Context>, terms: &SettleExact, relay_is_poor: bool) -> Settlement {
        loop {
            let sent = match send(cx, terms, relay_is_poor).await {
                Ok(sent) => sent,
                Err(settlement) => return settlement,
            };
            match sent {
                Sent::Done { tx_hash, block } => {
                    return Settlement::Paid { amount: terms.value.0, tx: tx_hash, block, recorded: true };
                }
                Sent::Unknown { txs } => {
                    tracing::warn!(?txs, "a settlement's outcome is unknown: asking the chain");
                    return Settlement::Unknown;
                }
                Sent::NeverSent { reason } if self.is_delivered => {
                    // An endpoint that did not take it may take it in a moment, and the authorisation is good for minutes.
                    tracing::warn!(reason, "a settlement cannot be sent yet");
                    match reconcile(cx, terms).await {
                        Settlement::Unknown => tokio::time::sleep(ASK_AGAIN).await,
                        known => return known,
                    }
                }
                refused @ (Sent::Reverted { .. } | Sent::NeverSent { .. }) => {
                    tracing::info!(?refused, "a settlement was refused: asking the chain why");
                    return match look(cx, terms).await {
                        // Not used, not expired: the token refuses it (no balance, frozen), now.
                        Ok(Settlement::Unknown) => Settlement::Unpaid(UnpaidWhy::Refused),
                        Ok(known) => known,
                        Err(_) => Settlement::Unknown,
                    };
                }
            }
        }
    }

    /// Through its proxy, by the relay and by no other key.
    async fn send_permit2(&self, cx: &Arc<Context>, payment: &Permit2Payment) -> Settlement {
        loop {
            let settlement = match contract_payers::permit2(cx, payment, self.charge).await {
                Ok(settlement) => settlement,
                Err(why) => {
                    tracing::warn!(?why, "a settlement is not sent: asking the chain");
                    return self.reconcile(cx).await;
                }
            };
            let sent = match settlement.send(cx, false, || crash_point!("pay.permit2_sent")).await {
                Ok(sent) => sent,
                Err(why) => {
                    // Anybody may settle `exact` until its deadline.
                    tracing::info!(%why, "a settlement is not sent: asking the chain");
                    return self.reconcile(cx).await;
                }
            };
            match sent {
                Sent::Done { tx_hash, .. } => match permit2::paid_in(cx, payment, tx_hash).await {
                    Ok(Some(paid)) => return paid,
                    // Mined, and what it moved is not read yet.
                    Ok(None) | Err(_) => return Settlement::Unknown,
                },
                Sent::Unknown { txs } => {
                    tracing::warn!(?txs, "a settlement's outcome is unknown: asking the chain");
                    return Settlement::Unknown;
                }
                refused @ Sent::Reverted { .. } => {
                    // Not spent, not over: the payer has moved its money or its allowance away. No event would tell
                    // that it pays after all, so it is asked about until its deadline.
                    tracing::info!(?refused, "a settlement was refused: asking the chain why");
                    return self.reconcile(cx).await;
                }
                Sent::NeverSent { reason } => {
                    tracing::warn!(reason, "a settlement cannot be sent yet");
                    match self.reconcile(cx).await {
                        Settlement::Unknown => tokio::time::sleep(ASK_AGAIN).await,
                        known => return known,
                    }
                }
            }
        }
    }

    /// What the chain says. `Unknown` while the payment is unused and still valid, or nobody answers.
    async fn reconcile(&self, cx: &Arc<Context>) -> Settlement {
        match &self.settlement {
            Settle::Exact(terms) => reconcile(cx, terms).await,
            Settle::Permit2(payment) => or_unknown(permit2::fate(cx, payment, &self.taken).await),
        }
    }
}

/// Looks at the chain until a settlement that was seen in `block` is under `blocks` blocks, its own counted, or can
/// never pay. What a reorganisation took back meanwhile is waited for in the block that it is mined in next.
async fn until_under<F: Future<Output = Settlement>>(
    mut block: u64,
    blocks: u32,
    mut heads: watch::Receiver<u64>,
    look: impl Fn() -> F,
) -> Settlement {
    loop {
        let head = *heads.borrow_and_update();
        if is_under(block, blocks, head) {
            match look().await {
                Settlement::Paid { block: now_in, .. } if !is_under(now_in, blocks, head) => block = now_in,
                Settlement::Unknown => {}
                known => return known,
            }
        }
        if heads.changed().await.is_err() {
            return Settlement::Unknown;
        }
    }
}

/// Whether this node's relay may settle it.
fn is_facilitator(cx: &Context, payment: &Permit2Payment) -> bool {
    match payment.proxy {
        Proxy::Exact => true,
        Proxy::Upto { facilitator } => cx.relay.address() == facilitator,
    }
}

/// In one transaction with others, whose going through says nothing of this one: the chain is asked. `None`: not paid by
/// it, so that it is sent alone, and what is wrong with it is its own.
async fn with_others(cx: &Arc<Context>, terms: &SettleExact) -> Option<Settlement> {
    // Only keys' payments are settled so, and they need no contract made first.
    let call = contract_payers::exact_call(cx, terms);
    let sent = cx.batches.send(call, terms.value).await;
    match (reconcile(cx, terms).await, sent) {
        (Settlement::Unknown, Sent::Unknown { txs }) => {
            tracing::warn!(?txs, "a batch's outcome is unknown: asking the chain");
            Some(Settlement::Unknown)
        }
        (Settlement::Unknown, _) => None,
        (known, _) => Some(known),
    }
}

/// The end of one transaction, or what the payment is without one.
async fn send(cx: &Arc<Context>, terms: &SettleExact, relay_is_poor: bool) -> std::result::Result<Sent, Settlement> {
    let settlement = contract_payers::settlement(cx, terms).await.map_err(|why| match why {
        NotMade::NotTaken(why) => {
            tracing::info!(?why, "a settlement is not sent");
            Settlement::Unpaid(UnpaidWhy::Refused)
        }
        NotMade::Unknown(e) => {
            tracing::warn!(error = %chain_of(&e), "a payer cannot be looked at: its settlement is not sent");
            Settlement::Unknown
        }
    })?;
    settlement.send(cx, relay_is_poor, || crash_point!("pay.settle_sent")).await.map_err(|why| {
        tracing::info!(%why, "a settlement is not sent");
        Settlement::Unpaid(UnpaidWhy::Refused)
    })
}

/// What the chain says of an authorisation. `Unknown` while it is unused and still valid, or nobody answers.
pub(crate) async fn reconcile(cx: &Context, terms: &SettleExact) -> Settlement {
    or_unknown(look(cx, terms).await)
}

fn or_unknown(found: std::result::Result<Settlement, chain::Error>) -> Settlement {
    found.unwrap_or_else(|e| {
        tracing::warn!(error = %chain_of(&e), "the chain does not say what became of a payment");
        Settlement::Unknown
    })
}

async fn look(cx: &Context, terms: &SettleExact) -> std::result::Result<Settlement, chain::Error> {
    let (payer, nonce) = (Address::from(terms.payer), B256::from(terms.nonce));
    let (recorded, _) = cx.treasury.recorded(payer, nonce).await?;
    if recorded > U256::ZERO {
        // The receipt will name the transaction, so it is looked up before anything is said.
        return Ok(match authorization::fate(cx, payer, nonce).await? {
            Fate::PaidHere { tx, block, .. } => {
                Settlement::Paid { amount: recorded.saturating_to(), tx, block, recorded: true }
            }
            Fate::Cancelled | Fate::PaidElsewhere | Fate::Untold => Settlement::Unknown,
        });
    }
    let usdc = cx.chain.usdc(cx.birth.token);
    if usdc.authorization_state(payer, nonce).await? {
        // Used, but not through the treasury: a third party sent it to the token (then the money is here), or the
        // payer cancelled it or spent it elsewhere. The token's own events tell.
        return Ok(match authorization::fate(cx, payer, nonce).await? {
            Fate::PaidHere { amount, tx, block } => {
                Settlement::Paid { amount: amount.saturating_to(), tx, block, recorded: false }
            }
            Fate::Cancelled => Settlement::Unpaid(UnpaidWhy::Cancelled),
            Fate::PaidElsewhere => Settlement::Unpaid(UnpaidWhy::UsedElsewhere),
            Fate::Untold => Settlement::Unknown,
        });
    }
    let head = cx.chain.head().await?;
    if head.timestamp >= terms.valid_before {
        return Ok(Settlement::Unpaid(UnpaidWhy::Expired));
    }
    Ok(Settlement::Unknown)
}

/// The adapter that a run names, for the receipt's own field. A run that does not read is an earlier build's, without one.
fn adapter_of(run: &str) -> [u8; 32] {
    infer::Run::from_canonical(run).ok().and_then(|run| run.adapter()).unwrap_or_default()
}

/// Which model a receipt names, and the class of what it was given: the route that was reserved says both, on every host
/// and after every crash.
struct Sold {
    /// sha2-256 digest in the model's CID.
    model: [u8; 32],
    prompt_tokens: u32,
    embedding_tokens: u32,
}

impl Sold {
    fn by(cx: &Context, route: &str, tokens: u32) -> Sold {
        let digest = |cid: &str| store::cid::parse(cid).map_or([0; 32], |cid| store::cid::digest(&cid));
        let (route, further) = manifest::booked_by(route);
        let own = match &cx.manifest.embedding {
            Some(embedding) if makes_vectors(route) => &embedding.cid,
            _ => &cx.manifest.model.cid,
        };
        let model = digest(further.unwrap_or(own));
        match route {
            // None of this agent's made it.
            suppliers::ROUTE => Sold { model: [0; 32], prompt_tokens: 0, embedding_tokens: 0 },
            _ if makes_vectors(route) => Sold { model, prompt_tokens: 0, embedding_tokens: tokens },
            _ => Sold { model, prompt_tokens: tokens, embedding_tokens: 0 },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{context, stand_in};
    use alloy::rpc::types::{Block, Transaction};
    use serde_json::{Value, json};
    use std::cell::{Cell, RefCell};
    use std::sync::atomic::{AtomicU64, Ordering};

    /// Chain seconds at which the payment below is over.
    const OVER_AT: u64 = 2_000;

    /// A STAND-IN for a chain with a new block at each look at its head, whose endpoint takes no transaction at first. It
    /// counts them.
    struct Busy {
        refuses: u64,
        came: AtomicU64,
        height: AtomicU64,
        /// Chain seconds.
        now: AtomicU64,
    }

    impl Busy {
        async fn served(refuses: u64) -> (Arc<Self>, String) {
            let [came, height, now] = [0, 1, 1_000].map(AtomicU64::new);
            let busy = Arc::new(Self { refuses, came, height, now });
            let served = busy.clone();
            let url = stand_in::endpoint(move |asked: Value| {
                let busy = served.clone();
                async move { busy.answer(&asked) }
            });
            (busy, url.await)
        }

        fn answer(&self, asked: &Value) -> stand_in::Said {
            let has_it = self.came.load(Ordering::SeqCst) > self.refuses;
            Ok(match asked["method"].as_str() {
                Some("eth_getBlockByNumber") => {
                    let mut head = serde_json::to_value(Block::<Transaction>::default()).unwrap();
                    let height = self.height.fetch_add(1, Ordering::SeqCst);
                    (head["number"], head["hash"]) =
                        (json!(format!("{height:#x}")), json!(B256::from(U256::from(height))));
                    head["timestamp"] = json!(format!("{:#x}", self.now.load(Ordering::SeqCst)));
                    head
                }
                Some("eth_getTransactionCount") => json!(if has_it { "0x1" } else { "0x0" }),
                Some("eth_estimateGas") => json!("0x5208"),
                Some("eth_sendRawTransaction") if self.came.fetch_add(1, Ordering::SeqCst) < self.refuses => {
                    return Err(json!({ "code": -32603, "message": "internal error" }));
                }
                Some("eth_sendRawTransaction") => {
                    let raw: alloy::primitives::Bytes = asked["params"][0].as_str().unwrap().parse().unwrap();
                    json!(alloy::primitives::keccak256(&raw))
                }
                Some("eth_getTransactionReceipt") if has_it => stand_in::receipt(&asked["params"][0], 1, &[]),
                // Neither recorded nor used.
                Some("eth_call") if asked["params"][0]["to"] == json!(context::TREASURY_OF_TESTS) => {
                    stand_in::words(&[0, 0])
                }
                Some("eth_call") => stand_in::words(&[0]),
                _ => Value::Null,
            })
        }
    }

    /// What becomes of a payment that this endpoint refuses so often.
    async fn ends(busy: &Busy, url: &str, is_delivered: bool) -> (Settlement, u64) {
        let dir = tempfile::tempdir().unwrap();
        let (cx, _heard) = context::for_tests(url, dir.path());
        let settlement = Settle::Exact(SettleExact {
            payer: [9; 20],
            value: Usdc(5),
            valid_after: 0,
            valid_before: OVER_AT,
            nonce: [1; 32],
            signature: vec![5; 65],
            is_signed_by_key: true,
        });
        let task = Task { settlement, charge: Usdc(5), taken: BTreeSet::new(), can_wait: is_delivered, is_delivered };
        let ended = task.send(&Arc::new(cx), false).await;
        (ended, busy.came.load(Ordering::SeqCst))
    }

    #[tokio::test]
    async fn what_was_delivered_is_sent_until_an_endpoint_takes_it_or_it_is_over() {
        let (busy, url) = Busy::served(2).await;
        let (ended, came) = ends(&busy, &url, true).await;
        assert!(matches!(ended, Settlement::Paid { amount: 5, recorded: true, .. }), "{ended:?}");
        assert_eq!(came, 3);
        // Nobody takes it any more.
        let (busy, url) = Busy::served(u64::MAX).await;
        busy.now.store(OVER_AT, Ordering::SeqCst);
        let (ended, _) = ends(&busy, &url, true).await;
        assert_eq!(ended, Settlement::Unpaid(UnpaidWhy::Expired));
        // Whoever was served nothing yet hears it at once.
        let (busy, url) = Busy::served(u64::MAX).await;
        assert_eq!(ends(&busy, &url, false).await, (Settlement::Unpaid(UnpaidWhy::Refused), 1));
    }

    fn paid(block: u64) -> Settlement {
        Settlement::Paid { amount: 5, tx: B256::ZERO, block, recorded: true }
    }

    /// What a customer is told who waits for `blocks` of them, and at which height, when the chain says this at these
    /// heights.
    async fn told(mined_in: u64, blocks: u32, chain: &[(u64, Settlement)]) -> (u64, Settlement) {
        let (say, heads) = watch::channel(mined_in);
        let chain = RefCell::new(chain.iter().cloned());
        let at = Cell::new(mined_in);
        let look = || async {
            let (height, found) = chain.borrow_mut().next().expect("nobody looks so often");
            assert_eq!(at.get(), height, "it looks at another block");
            found
        };
        let blocks_come = async {
            loop {
                tokio::task::yield_now().await;
                at.set(at.get() + 1);
                say.send_replace(at.get());
            }
        };
        tokio::select! {
            biased;
            found = until_under(mined_in, blocks, heads, look) => (at.get(), found),
            () = blocks_come => unreachable!("blocks never end"),
        }
    }

    #[tokio::test]
    async fn a_settlement_is_told_when_it_is_under_enough_blocks_and_still_there() {
        assert_eq!(told(7, 3, &[(9, paid(7))]).await, (9, paid(7)));
        // Taken back and mined again, two blocks later.
        assert_eq!(told(7, 3, &[(9, paid(9)), (11, paid(9))]).await, (11, paid(9)));
        // Taken back, nowhere for a block, mined again.
        let again = [(9, Settlement::Unknown), (10, paid(10)), (12, paid(10))];
        assert_eq!(told(7, 3, &again).await, (12, paid(10)));
        // Taken back, and then its payer was faster.
        let never = Settlement::Unpaid(UnpaidWhy::Cancelled);
        assert_eq!(told(7, 3, &[(9, Settlement::Unknown), (10, never.clone())]).await, (10, never));
    }
}
