//! What the HTTP handlers ask of the main loop: reserve a payment, say what was delivered, wait for money.
//!
//! A prompt never comes this far: handlers send digests and counts.

use crate::channels::{CallAnswer, CallWant, Moved};
use crate::context::Context;
use crate::conversation::{ConversationInput, ConversationKey, Stored};
use crate::error::Result;
use crate::live::BEHIND;
use crate::main_loop::{Event, Node};
use crate::settle::{Settlement, Waiter};
use crate::state::Recorded;
use crate::suppliers;
use economy::{Input, Owed, Usdc};
use journal::crash_point;
use pay::book::channels::{CallService, RefundAsk};
use pay::book::{
    AbortWhy, BookInput, Decision, Delivery, LimitReached, Payment, RequestId, Reservation, Service, Timing,
};
use pay::facilitator::api::Asked;
use pay::facilitator::remote::Remote;
use pay::risk::{Circumstances, Held, Hold, When};
use pay::scheme::channel::{ChannelConfig, ChannelId, ChannelState, Deposit};
use pay::{Reason, Settle, TransferMethod, book};
use std::sync::Arc;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

/// Closed payments and calls are remembered this long, chain seconds: as long as their answers are kept.
const KEPT_SECS: u64 = 86_400;
const PRUNE_EVERY_SECS: u64 = 3_600;

pub enum Ask {
    /// A verified payment wants to be served. `taken` is told at once when the book takes it, and dropped when not.
    Reserve { want: Box<Want>, taken: oneshot::Sender<()>, reply: oneshot::Sender<Reserved> },
    /// A verified voucher wants to be served; `taken` is the same.
    ReserveCall { want: Box<CallWant>, taken: oneshot::Sender<()>, reply: oneshot::Sender<CallAnswer> },
    /// A deposit that was simulated goes into its channel first. `another`: what another's facilitator is asked.
    PutIn { channel: ChannelId, deposit: Deposit, another: Option<Box<Asked>>, reply: oneshot::Sender<Moved> },
    /// A payer wants back what is not charged.
    GiveBack {
        ask: RefundAsk,
        seen: (ChannelConfig, ChannelState),
        reply: oneshot::Sender<std::result::Result<Moved, Reason>>,
    },
    /// A payment by Permit2 came with money that is in the treasury already: somebody else settled it.
    Found { payer: [u8; 20], nonce: [u8; 32], paid: Settlement },
    /// So many tokens were taken so far, worth so much by the meter.
    Mark { request: RequestId, tokens: u32, amount: Usdc },
    /// The answer was taken, or part of it, worth so much by the meter. Answered when the book has it.
    Delivered { request: RequestId, delivery: Delivery, amount: Usdc, reply: Option<oneshot::Sender<()>> },
    /// Nothing was taken.
    Aborted { request: RequestId, why: AbortWhy },
    /// Answered once it is known that the payment can never pay, or once its settlement is under so many blocks, its
    /// own counted.
    WhenSettled { request: RequestId, blocks: u32, reply: oneshot::Sender<Settlement> },
    /// Answered once the receipt of a call is signed; dropped where none is on its way.
    WhenSigned { request: RequestId, reply: oneshot::Sender<()> },
    /// A conversation is sealed and in the store; answered once that is durable.
    Keep { kept: Box<Kept>, key: ConversationKey, reply: oneshot::Sender<()> },
    /// A conversation's key is destroyed; answered once that is durable.
    Forget { response: String, reply: oneshot::Sender<()> },
}

/// A conversation that was sealed under its key.
pub struct Kept {
    pub response: String,
    pub payer: [u8; 20],
    pub cid: String,
}

/// Everything that a reservation records.
pub struct Want {
    pub settlement: Settle,
    pub ask: book::Ask,
    pub prompt_tokens: u32,
    pub max_tokens: u32,
    /// How the model is run for it, in the receipt's form.
    pub run: String,
}

/// What became of a request whose answer is asked for again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Being made, or settled.
    Coming,
    Made,
    /// Nothing was delivered.
    Aborted,
}

/// Tells the book that nothing was delivered, unless somebody says otherwise first. It is made with the answer to a
/// reservation and goes with it, so that a customer who hangs up before its handler was told leaves nothing open.
pub struct Guard {
    cx: Arc<Context>,
    request: Option<RequestId>,
}

impl Guard {
    pub fn of(cx: Arc<Context>, request: RequestId) -> Self {
        Self { cx, request: Some(request) }
    }

    pub fn disarm(&mut self) {
        self.request = None;
    }

    /// Tells the book that nothing was delivered, and why.
    pub fn abort(&mut self, why: AbortWhy) {
        if let Some(request) = self.request.take() {
            tell(&self.cx, Ask::Aborted { request, why });
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.abort(AbortWhy::HungUp);
    }
}

/// One more waits. Whoever asks again and again, and hangs up each time, waits once.
pub(crate) fn wait<T>(waiting: &mut Vec<T>, waiter: T, has_hung_up: impl Fn(&T) -> bool) {
    waiting.retain(|waiter| !has_hung_up(waiter));
    waiting.push(waiter);
}

/// From a destructor nothing can be awaited: a task carries the message. Where nothing runs any more the next start
/// closes what is open. As many wait so as requests were let in ([`crate::api`], `gate`).
pub fn tell(cx: &Arc<Context>, ask: Ask) {
    let cx = cx.clone();
    if let Ok(runtime) = Handle::try_current() {
        runtime.spawn(async move { cx.tell(Event::Ask(Box::new(ask))).await });
    }
}

/// The answer to `Ask::Reserve`, sent when the record is durable (and replicated, at the exposure's bound).
pub enum Reserved {
    Yes {
        request: RequestId,
        guard: Guard,
        when: When,
    },
    Replay {
        request: RequestId,
    },
    InFlight {
        request: RequestId,
    },
    Conflict,
    /// Nothing was delivered for this authorisation and its money is on the way back: sign a new one.
    Aborted,
    /// It has paid for an answer that is no longer kept, or can pay nothing: sign a new one.
    Spent {
        method: TransferMethod,
    },
    /// This payer hung up on too many payments today.
    HungUp,
    Refused(LimitReached),
    /// This node does not sell at the moment.
    Closed(String),
}

impl Node {
    pub(crate) fn on_ask(&mut self, ask: Ask) -> Result<()> {
        match ask {
            Ask::Reserve { want, taken, reply } => self.reserve(*want, taken, reply),
            Ask::ReserveCall { want, taken, reply } => self.reserve_call(*want, taken, reply),
            Ask::PutIn { channel, deposit, another, reply } => self.put_in(channel, deposit, another, reply),
            Ask::GiveBack { ask, seen, reply } => self.give_back(ask, seen, reply),
            Ask::Found { payer, nonce, paid } => match paid {
                Settlement::Paid { amount, tx, block, recorded } => self.book(BookInput::Settled {
                    method: TransferMethod::Permit2,
                    payer,
                    nonce,
                    amount: Usdc(amount),
                    tx: tx.0,
                    block,
                    recorded,
                }),
                Settlement::Unpaid(_) | Settlement::Unknown => Ok(()),
            },
            Ask::Mark { request, tokens, amount } => self.served(BookInput::Mark { request, tokens, amount }),
            Ask::Delivered { request, delivery, amount, reply } => {
                self.served(BookInput::Delivered { request, delivery, amount })?;
                crash_point!("pay.served");
                if let Some(reply) = reply {
                    // The customer may have hung up.
                    let _ = reply.send(());
                }
                Ok(())
            }
            Ask::Aborted { request, why } => {
                self.settled_after.remove(&request);
                self.receipt_waiters.remove(&request);
                self.count_hung_up(&request, why);
                self.served(BookInput::Aborted { request, why })?;
                say_what_is_owed(self);
                Ok(())
            }
            Ask::WhenSettled { request, blocks, reply } => {
                let waiter = Waiter { blocks, reply };
                match self.known_settlement(&request) {
                    Some(settlement) => self.answer(&request, settlement, waiter),
                    None => {
                        let waiting = self.settled_waiters.entry(request).or_default();
                        wait(waiting, waiter, |waiter| waiter.reply.is_closed());
                    }
                }
                Ok(())
            }
            Ask::WhenSigned { request, reply } => {
                self.when_signed(request, reply);
                Ok(())
            }
            Ask::Keep { kept, key, reply } => self.keep(*kept, key, reply),
            Ask::Forget { response, reply } => self.forget(response, reply),
        }
    }

    /// What is settled beside its answer costs a settlement and a refund when its payer hangs up on it.
    fn count_hung_up(&mut self, request: &RequestId, why: AbortWhy) {
        let now = self.now();
        let entry = self.live.as_ref().and_then(|live| live.state.book.entry(request));
        let Some(entry) = entry.filter(|_| why == AbortWhy::HungUp) else { return };
        if entry.reservation.timing == Timing::AtOnce {
            self.hung_up.count(entry.reservation.settlement.payer(), now);
        }
    }

    /// What became of a call, in the words of how it is paid.
    fn served(&mut self, input: BookInput) -> Result<()> {
        let input = self.call_input(&input).map_or(input, BookInput::Channel);
        self.book(input)
    }

    /// Whether the call of this request was delivered, by a payment that did not fail; `None`: it is not over yet.
    pub(crate) fn is_sold(&self, request: &RequestId) -> Option<bool> {
        let state = &self.live.as_ref()?.state;
        if let Some(entry) = state.book.entry(request) {
            return match (&entry.service, &entry.payment) {
                (Service::Serving { .. }, _) => None,
                (Service::Delivered(_), Payment::Unpaid { .. }) | (Service::Aborted { .. }, _) => Some(false),
                (Service::Delivered(_), _) => Some(true),
            };
        }
        if let Some(call) = state.book.channels().call(request) {
            return match &call.service {
                CallService::Serving { .. } => None,
                CallService::Delivered(_) => Some(true),
                CallService::Aborted { .. } => Some(false),
            };
        }
        // The book has forgotten it: what was delivered has a receipt.
        Some(state.receipts.contains_key(&request.to_string()))
    }

    /// What the book says of this payment before anything is asked of the chain. `None`: it is new, or this node does
    /// not sell.
    pub(crate) fn known(&self, ask: &book::Ask) -> Option<Reserved> {
        refusal(ask.method, self.live.as_ref()?.state.book.decide(ask, self.now()))
    }

    /// The signature that the answer of `request` is kept under, and what became of it so far.
    pub(crate) fn kept_under(&self, request: &RequestId) -> Option<(Vec<u8>, Stage)> {
        let stage = |is_aborted, is_closed| match (is_aborted, is_closed) {
            (true, _) => Stage::Aborted,
            (false, true) => Stage::Made,
            (false, false) => Stage::Coming,
        };
        let book = &self.live.as_ref()?.state.book;
        if let Some(entry) = book.entry(request) {
            let is_aborted = matches!(entry.service, Service::Aborted { .. });
            return Some((entry.reservation.settlement.signature().to_vec(), stage(is_aborted, entry.is_closed())));
        }
        let call = book.channels().call(request)?;
        let is_aborted = matches!(call.service, CallService::Aborted { .. });
        Some((call.reservation.voucher.signature.to_vec(), stage(is_aborted, call.is_closed())))
    }

    /// One record of the book. A node whose journal is closed reports to its successor instead.
    pub(crate) fn book(&mut self, input: BookInput) -> Result<()> {
        let now = self.now();
        match &mut self.live {
            Some(live) if !live.sealed => live.record(now, &Recorded::Book(input)).map(|_| ()),
            Some(_) => {
                self.settle_late(&input);
                self.report_late(Recorded::Book(input))
            }
            None => Ok(()),
        }
    }

    fn reserve(&mut self, want: Want, taken: oneshot::Sender<()>, reply: oneshot::Sender<Reserved>) -> Result<()> {
        let now = self.now();
        if !self.acts() || self.shared.price().is_none() {
            let why = self.shared.closed_because().unwrap_or_else(|| format!("this node is {}", self.role));
            drop(reply.send(Reserved::Closed(why)));
            return Ok(());
        }
        let Some(live) = &mut self.live else { return Ok(()) };
        if live.is_behind() {
            drop(reply.send(Reserved::Closed(BEHIND.to_owned())));
            return Ok(());
        }
        if let Some(refusal) = refusal(want.ask.method, live.state.book.decide(&want.ask, now)) {
            drop(reply.send(refusal));
            return Ok(());
        }
        let request = RequestId::of_payment(want.ask.method, &want.ask.payer, &want.ask.nonce);
        let amount = want.settlement.value().0;
        let circumstances = Circumstances {
            known_payer: live.state.knows_payer(&want.ask.payer),
            open: live.state.book.exposure(),
            another_settles: self.cx.facilitator.as_ref().is_some_and(Remote::is_healthy),
            now,
        };
        let when = match self.cx.manifest.payments.risk().when(&want.settlement, &circumstances) {
            // Nothing is bought with a payment that can still fail.
            When::AtEnd(hold) if want.ask.route == suppliers::ROUTE => When::Beside(hold),
            When::After if want.ask.route == suppliers::ROUTE => {
                When::Beside(Hold { what: Held::Everything, blocks: 1 })
            }
            when => when,
        };
        let gives_back = matches!(when, When::Beside(_));
        if gives_back && !self.hung_up.allows(&want.ask.payer, Usdc::ZERO, Usdc(1), now) {
            drop(reply.send(Reserved::HungUp));
            return Ok(());
        }
        let reservation = Reservation {
            request,
            settlement: want.settlement,
            timing: when.timing(),
            route: want.ask.route,
            body_digest: want.ask.body_digest,
            identifier: want.ask.identifier,
            prompt_tokens: want.prompt_tokens,
            max_tokens: want.max_tokens,
            run: want.run,
            at: now,
        };
        let lsn = live.record(now, &Recorded::Book(BookInput::Reserved(reservation)))?;
        if when == When::After {
            self.settled_after.insert(request);
        }
        // Who has hung up needs no telling.
        let _ = taken.send(());
        let cx = self.cx.clone();
        let answer = move || {
            crash_point!("pay.reserved");
            let guard = Guard::of(cx, request);
            // Whoever has hung up meanwhile drops the guard with the answer.
            drop(reply.send(Reserved::Yes { request, guard, when }));
        };
        live.when_safe(lsn, amount, answer);
        Ok(())
    }

    /// Its key is sealed here and not where it was made: a checkpoint that began meanwhile has another memory key.
    fn keep(&mut self, kept: Kept, key: ConversationKey, reply: oneshot::Sender<()>) -> Result<()> {
        let now = self.now();
        let Some(live) = &mut self.live else { return Ok(()) };
        let wrapped_key = match live.ring.wrap(&key) {
            Ok(wrapped_key) => wrapped_key,
            Err(e) => {
                tracing::warn!(error = %net::chain_of(&e), "a conversation is not kept");
                // Without an answer the customer is told to ask again.
                return Ok(());
            }
        };
        let Kept { response, payer, cid } = kept;
        let before = live.state.conversations.get(&response).map(|before| before.cid.clone());
        let input = ConversationInput::Store(Stored { response, payer, at: now, cid: cid.clone(), wrapped_key });
        if live.sealed {
            if before.is_some() {
                // The successor may have written it anew since: it is not put back. Without an answer whoever wrote it asks
                // there.
                return Ok(());
            }
            // The agent moved while this answer was made: its successor keeps the conversation.
            self.report_late(Recorded::Conversation(input))?;
            let _ = reply.send(());
            return Ok(());
        }
        let lsn = live.record(now, &Recorded::Conversation(input))?;
        if let Some(before) = before {
            live.ring.forget(&before);
        }
        live.ring.conversations.insert(cid, key);
        live.when_durable(lsn, move || {
            let _ = reply.send(());
        });
        Ok(())
    }

    /// The key, and that of its page, go from memory and disk at once; what the last checkpoint's memory key opens goes
    /// with that, when the next checkpoint stands.
    fn forget(&mut self, response: String, reply: oneshot::Sender<()>) -> Result<()> {
        let now = self.now();
        // Moved: without an answer the customer is told to ask again, and asks the successor.
        let Some(live) = self.live.as_mut().filter(|live| !live.sealed) else { return Ok(()) };
        if let Some(stored) = live.state.conversations.get(&response) {
            live.ring.forget(&stored.cid);
        }
        self.cx.ring_file.save(&live.ring)?;
        let lsn = live.record(now, &Recorded::Conversation(ConversationInput::Delete { response }))?;
        live.when_durable(lsn, move || {
            let _ = reply.send(());
        });
        Ok(())
    }

    /// About once an hour of the chain what was closed more than a day ago is forgotten; its sums stay.
    pub(crate) fn prune(&mut self) -> Result<()> {
        let now = self.now();
        let Some(live) = self.live.as_mut().filter(|live| !live.sealed) else { return Ok(()) };
        if now < self.pruned_at.saturating_add(PRUNE_EVERY_SECS) {
            return Ok(());
        }
        self.pruned_at = now;
        self.refunded.retain(|channel, _| live.state.book.channels().channel(channel).is_some());
        let before = now.saturating_sub(KEPT_SECS);
        live.record(now, &Recorded::Book(BookInput::Pruned { before })).map(|_| ())
    }

    /// About once a second the life hears what was earned since.
    pub(crate) fn post_income(&mut self) -> Result<()> {
        let Some(live) = &self.live else { return Ok(()) };
        let unposted = live.state.unposted();
        if unposted.count == 0 || crate::fence::boottime_ms().saturating_sub(self.posted_ms) < 1_000 {
            return Ok(());
        }
        let input = Input::Earned {
            first_lsn: unposted.first_lsn,
            last_lsn: unposted.last_lsn,
            count: unposted.count,
            tokens: unposted.tokens,
            sum: unposted.sum,
        };
        self.posted_ms = crate::fence::boottime_ms();
        self.life(input)
    }
}

/// What the book's decision means for a customer; `None` for a request that is new.
fn refusal(method: TransferMethod, decision: Decision) -> Option<Reserved> {
    match decision {
        Decision::New => None,
        Decision::Replay { request } => Some(Reserved::Replay { request }),
        Decision::InFlight { request } => Some(Reserved::InFlight { request }),
        Decision::Conflict { .. } => Some(Reserved::Conflict),
        Decision::Aborted { .. } => Some(Reserved::Aborted),
        Decision::Spent => Some(Reserved::Spent { method }),
        Decision::Refused(limit) => Some(Reserved::Refused(limit)),
    }
}

/// The whole list each time: the life compares it with what it has refunded.
pub fn say_what_is_owed(node: &mut Node) {
    let Some(live) = &node.live else { return };
    let owed: Vec<Owed> = live
        .state
        .book
        .owed()
        .map(|(_, entry, amount)| Owed {
            payer: entry.reservation.settlement.payer(),
            nonce: entry.reservation.settlement.nonce(),
            amount,
        })
        .collect();
    if let Err(e) = node.life(Input::Owed(owed)) {
        tracing::error!(error = %e, "what is owed cannot be recorded");
    }
}
