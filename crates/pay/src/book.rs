//! The book of payments: a pure fold over the journal's request records.
//!
//! For each authorisation it knows two things that move independently: the *service* (serving → delivered or
//! aborted) and the *payment* (waiting → due → sent → settled, unpaid or unknown). What has to happen follows from
//! the pair alone, and outputs are the difference between the pair before and after an input. So a doubled input
//! changes nothing and says nothing, and a settlement that comes before, during or after delivery ends the same.
//!
//! **Invariant:** settled = held + earned + owed + stranded + refunded ([`Totals`]), after every input.
//! **Invariant:** each request is earned or owed, never both; each at most once unless the chain took it back.
//! **Invariant:** no clock, no chance, no HashMap; the only time is what inputs carry.
//!
//! Channels have a machine of their own beside these entries, [`channels`], in the same log and the same digest.

mod apply;
pub mod channels;
mod entry;
mod input;
mod totals;

pub use channels::{ChannelInput, ChannelLimits, ChannelOutput, Channels};
pub use entry::{Delivery, Entry, Payment, Service};
pub use input::{
    AbortWhy, Ask, BookInput, BookOutput, Decision, Finish, LimitReached, RequestId, Reservation, Timing, UnpaidWhy,
};
pub use totals::Totals;

use crate::Usdc;
use crate::scheme::TransferMethod;
use crate::scheme::exact::Hash;
use borsh::{BorshDeserialize, BorshSerialize};
use channels::CallService;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// What is spent once: a payer's nonce, which the token (EIP-3009) or Permit2 keeps.
type PaymentKey = (TransferMethod, [u8; 20], Hash);

/// Bounds of the book. Part of its state, so that a replay decides as the first run did.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Limits {
    /// Requests that are served or not settled yet, all payers together.
    pub open_max: u32,
    /// The same for one payer.
    pub open_per_payer_max: u32,
    /// Entries kept, open or closed.
    pub kept_max: u32,
    /// How long an answer can be replayed, in chain seconds.
    pub replay_secs: u64,
}

impl Default for Limits {
    /// Guesses, unmeasured: an entry takes about 500 bytes, so a full book is about 50 MB. 24 h is DESIGN §7's.
    fn default() -> Self {
        Self { open_max: 4_096, open_per_payer_max: 256, kept_max: 100_000, replay_secs: 86_400 }
    }
}

/// Settled payments without a reservation that are remembered; each has cost its sender real money.
const ORPHANS_MAX: usize = 10_000;

/// Money that came in for an authorisation that no request has used yet.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
struct Orphan {
    amount: Usdc,
    tx: Hash,
    block: u64,
    recorded: bool,
    /// The book's latest time when it was seen, for pruning.
    seen_at: u64,
}

/// See the module's documentation.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct ChannelBook {
    limits: Limits,
    entries: BTreeMap<RequestId, Entry>,
    by_payment: BTreeMap<PaymentKey, RequestId>,
    /// Latest request of a payer with this route and body.
    by_body: BTreeMap<([u8; 20], Hash), RequestId>,
    open_by_payer: BTreeMap<[u8; 20], u32>,
    open: u32,
    orphans: BTreeMap<PaymentKey, Orphan>,
    /// Latest request of a payer with the name that it gave it; channels' calls are among them.
    by_name: BTreeMap<([u8; 20], Hash), RequestId>,
    /// Payments whose entries were pruned while they would still verify, with the time when they stop to.
    spent: BTreeMap<PaymentKey, u64>,
    totals: Totals,
    /// Latest time seen in an input.
    clock: u64,
    channels: Channels,
}

impl ChannelBook {
    pub fn new(limits: Limits) -> Self {
        Self::with_channels(limits, ChannelLimits::default())
    }

    pub fn with_channels(limits: Limits, channel_limits: ChannelLimits) -> Self {
        Self {
            limits,
            entries: BTreeMap::new(),
            by_payment: BTreeMap::new(),
            by_body: BTreeMap::new(),
            by_name: BTreeMap::new(),
            open_by_payer: BTreeMap::new(),
            open: 0,
            orphans: BTreeMap::new(),
            spent: BTreeMap::new(),
            totals: Totals::default(),
            clock: 0,
            channels: Channels::new(channel_limits),
        }
    }

    /// The payment channels.
    pub fn channels(&self) -> &Channels {
        &self.channels
    }

    /// What to do with a verified payment, before anything is reserved. Changes nothing.
    pub fn decide(&self, ask: &Ask, now: u64) -> Decision {
        let key = ask.key();
        let named = ask.identifier.and_then(|name| self.named(&ask.payer, &name, &ask.route, &ask.body_digest));
        if let Some(decision) = named {
            return decision;
        }
        if let Some(request) = self.by_payment.get(&key) {
            let entry = &self.entries[request];
            if entry.reservation.body_key() != ask.body_key() {
                return Decision::Conflict { request: *request };
            }
            match (&entry.service, &entry.payment) {
                (Service::Serving { .. }, _) => return Decision::InFlight { request: *request },
                (Service::Delivered(_), Payment::Unpaid { .. }) => return Decision::Spent,
                (Service::Delivered(_), _) => return Decision::Replay { request: *request },
                (Service::Aborted { .. }, Payment::Unpaid { .. }) => return Decision::Spent,
                (Service::Aborted { .. }, _) if !entry.can_serve_again() => {
                    return Decision::Aborted { request: *request };
                }
                (Service::Aborted { .. }, _) => {}
            }
        } else if self.spent.contains_key(&key) {
            return Decision::Spent;
        } else if !ask.fresh
            && let Some(decision) = self.unconfirmed_twin(ask, now)
        {
            return decision;
        }
        match self.limit_reached(&ask.payer, &key) {
            Some(limit) => Decision::Refused(limit),
            None => Decision::New,
        }
    }

    /// What a request gets that its payer has named before, by whatever scheme it is paid now. `None`: it is new, or
    /// came to nothing.
    pub fn named(&self, payer: &[u8; 20], name: &Hash, route: &str, body_digest: &Hash) -> Option<Decision> {
        let request = *self.by_name.get(&(*payer, *name))?;
        let asked = input::body_key(route, body_digest);
        let (first, answered) = match self.entries.get(&request) {
            Some(entry) => {
                let answered = match (&entry.service, &entry.payment) {
                    (Service::Serving { .. }, _) => false,
                    (Service::Delivered(_), Payment::Unpaid { .. }) | (Service::Aborted { .. }, _) => return None,
                    (Service::Delivered(_), _) => true,
                };
                (entry.reservation.body_key(), answered)
            }
            None => {
                let call = self.channels.call(&request)?;
                let answered = match call.service {
                    CallService::Serving { .. } => false,
                    CallService::Delivered(_) => true,
                    CallService::Aborted { .. } => return None,
                };
                (call.reservation.body_key(), answered)
            }
        };
        Some(match (first == asked, answered) {
            (false, _) => Decision::Conflict { request },
            (true, true) => Decision::Replay { request },
            (true, false) => Decision::InFlight { request },
        })
    }

    /// A client that lost the answer signs a fresh nonce for the same request. Its first payment is good for it.
    fn unconfirmed_twin(&self, ask: &Ask, now: u64) -> Option<Decision> {
        let request = *self.by_body.get(&(ask.payer, ask.body_key()))?;
        let entry = &self.entries[&request];
        let collectable = match entry.payment {
            Payment::Settled { .. } => true,
            Payment::Unpaid { .. } => false,
            _ => entry.reservation.settlement.expires_at() > now,
        };
        match &entry.service {
            Service::Serving { .. } if collectable => Some(Decision::InFlight { request }),
            Service::Delivered(delivery) => {
                let recent = now.saturating_sub(delivery.at) <= self.limits.replay_secs;
                (collectable && recent && !delivery.confirmed).then_some(Decision::Replay { request })
            }
            _ => None,
        }
    }

    fn limit_reached(&self, payer: &[u8; 20], key: &PaymentKey) -> Option<LimitReached> {
        let kept_max = usize::try_from(self.limits.kept_max).unwrap_or(usize::MAX);
        if self.open >= self.limits.open_max {
            Some(LimitReached::Open)
        } else if self.open_by_payer.get(payer).is_some_and(|open| *open >= self.limits.open_per_payer_max) {
            Some(LimitReached::OpenPerPayer)
        } else if self.entries.len() >= kept_max && !self.by_payment.contains_key(key) {
            Some(LimitReached::Kept)
        } else {
            None
        }
    }

    pub fn entry(&self, request: &RequestId) -> Option<&Entry> {
        self.entries.get(request)
    }

    pub fn request_of(&self, method: TransferMethod, payer: &[u8; 20], nonce: &Hash) -> Option<RequestId> {
        self.by_payment.get(&(method, *payer, *nonce)).copied()
    }

    /// Entries of one payer's payments by one method.
    pub fn of_payer(&self, method: TransferMethod, payer: [u8; 20]) -> impl Iterator<Item = (&RequestId, &Entry)> {
        let all = (method, payer, [0; 32])..=(method, payer, [0xFF; 32]);
        self.by_payment.range(all).filter_map(|(_, request)| Some((request, self.entries.get(request)?)))
    }

    pub fn entries(&self) -> impl Iterator<Item = (&RequestId, &Entry)> {
        self.entries.iter()
    }

    /// What was settled in blocks above `height`, for a request or for none yet.
    pub fn settled_above(&self, height: u64) -> impl Iterator<Item = (TransferMethod, [u8; 20], Hash)> {
        let is_above = move |entry: &Entry| matches!(entry.payment, Payment::Settled { block, .. } if block > height);
        let served = self.entries.values().filter(move |entry| is_above(entry));
        let orphans = self.orphans.iter().filter(move |(_, orphan)| orphan.block > height);
        served.map(|entry| entry.reservation.payment_key()).chain(orphans.map(|(key, _)| *key))
    }

    /// Whether this request's settlement may leave the process: asked right before `SettleSent` is recorded, since
    /// the request may have been aborted after `BookOutput::Settle`.
    pub fn may_settle(&self, request: &RequestId) -> bool {
        self.entries.get(request).is_some_and(|entry| entry.wants_settling() || entry.is_under_way())
    }

    /// Payments that are due, sent or unknown: what is sent, asked about or sent again after a restart.
    pub fn unsettled(&self) -> impl Iterator<Item = (&RequestId, &Entry)> {
        self.entries.iter().filter(|(_, entry)| entry.wants_settling() || entry.is_under_way())
    }

    /// Refunds to send (again): paid, nothing delivered, recorded by the treasury.
    pub fn owed(&self) -> impl Iterator<Item = (&RequestId, &Entry, Usdc)> {
        self.entries.iter().filter_map(|(request, entry)| {
            let owed = entry.owed();
            (!owed.is_zero()).then_some((request, entry, owed))
        })
    }

    /// Requests being served.
    pub fn in_flight(&self) -> impl Iterator<Item = (&RequestId, &Entry)> {
        self.entries.iter().filter(|(_, entry)| matches!(entry.service, Service::Serving { .. }))
    }

    /// Inputs that close what a crash interrupted, to be recorded by whoever restarts at `at`: the last durable
    /// mark is charged, and a request without one is aborted.
    pub fn interrupted(&self, at: u64) -> Vec<BookInput> {
        self.in_flight()
            .map(|(request, entry)| match entry.service {
                Service::Serving { tokens: 1.., amount } => {
                    BookInput::Delivered { request: *request, delivery: entry.crashed_delivery(at), amount }
                }
                _ => BookInput::Aborted { request: *request, why: AbortWhy::Crashed },
            })
            .collect()
    }

    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// What would be given away if no open authorisation could be collected: being served or served, not settled.
    pub fn exposure(&self) -> Usdc {
        self.totals.reserved.saturating_add(self.totals.served_unsettled)
    }

    /// Requests that are served or not settled yet.
    pub fn open(&self) -> u32 {
        self.open
    }

    /// sha2-256 of the state's borsh: equal books, equal digests.
    pub fn digest(&self) -> Hash {
        // Writing into a Vec cannot fail.
        Sha256::digest(borsh::to_vec(self).expect("a Vec takes all bytes")).into()
    }
}

#[cfg(test)]
mod tests;
