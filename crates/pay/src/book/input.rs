use crate::scheme::exact::Hash;
use crate::scheme::{Settle, TransferMethod};
use crate::{Reason, Usdc};
use borsh::{BorshDeserialize, BorshSerialize};
use sha2::{Digest, Sha256};
use std::{fmt, str::FromStr};

/// Names one paid request; 32 hexadecimal digits on the wire.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, BorshSerialize, BorshDeserialize)]
pub struct RequestId(pub [u8; 16]);

impl RequestId {
    /// The id of the request that a signed payment pays for. Derived, not drawn: the same payment names the same
    /// request on every host and after every crash.
    pub fn of_payment(method: TransferMethod, payer: &[u8; 20], nonce: &Hash) -> Self {
        // Each method has nonces of its own.
        let kind: &[u8] = match method {
            TransferMethod::Eip3009 => b"vivarium request",
            TransferMethod::Permit2 => b"vivarium permit2 request",
        };
        let digest = Sha256::new().chain_update(kind).chain_update(payer).chain_update(nonce).finalize();
        let mut id = [0; 16];
        id.copy_from_slice(&digest[..16]);
        Self(id)
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for RequestId {
    type Err = hex::FromHexError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut id = [0; 16];
        hex::decode_to_slice(text, &mut id)?;
        Ok(Self(id))
    }
}

/// A verified payment that asks to be served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask {
    pub method: TransferMethod,
    pub payer: [u8; 20],
    pub nonce: Hash,
    /// Method and path, like `POST /v1/chat/completions`.
    pub route: String,
    /// sha2-256 of the request's body.
    pub body_digest: Hash,
    /// Digest of the name that the customer gave its request, within all that this payer ever asked.
    pub identifier: Option<Hash>,
    /// The customer opted out of replays: it wants (and pays for) a new answer to the same question. A name that is
    /// known is answered all the same: a new question has a new one.
    pub fresh: bool,
}

impl Ask {
    pub(super) fn key(&self) -> super::PaymentKey {
        (self.method, self.payer, self.nonce)
    }

    pub(super) fn body_key(&self) -> Hash {
        body_key(&self.route, &self.body_digest)
    }
}

/// sha2-256 over route and body digest: what "the same request" means.
pub(super) fn body_key(route: &str, body_digest: &Hash) -> Hash {
    Sha256::new().chain_update(body_digest).chain_update(route).finalize().into()
}

/// When a payment is settled. A choice of risk ([`crate::risk`]), made by whoever reserves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum Timing {
    /// At once, while the answer is made: the default of `exact`.
    AtOnce,
    /// When something was delivered, for what was delivered: `upto`, and `exact` by Permit2, which nobody can give
    /// back.
    OnDelivery,
}

/// A request that will be served on a payment.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Reservation {
    pub request: RequestId,
    /// Payer, nonce, amount, times and signature: enough to settle it after a crash.
    pub settlement: Settle,
    pub timing: Timing,
    pub route: String,
    pub body_digest: Hash,
    /// [`Ask::identifier`].
    pub identifier: Option<Hash>,
    pub prompt_tokens: u32,
    /// Completion tokens that the price covers.
    pub max_tokens: u32,
    /// How the model is run for it: the canonical object whose digest its receipt signs ([`crate::receipt::run`]), and
    /// which the journal therefore has before anything is made. Empty where nothing can be run again.
    pub run: String,
    /// Chain seconds.
    pub at: u64,
}

impl Reservation {
    pub(super) fn body_key(&self) -> Hash {
        body_key(&self.route, &self.body_digest)
    }

    pub(super) fn payment_key(&self) -> super::PaymentKey {
        (self.settlement.method(), self.settlement.payer(), self.settlement.nonce())
    }
}

/// What happened. Recorded in the journal before it has effects; variants are only ever added at the end.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum BookInput {
    /// `decide` said `New` and the request is served. Repeating it for a request that was aborted before its
    /// payment left serves it again.
    Reserved(Reservation),
    /// So many completion tokens, worth so much by the meter, were taken by the client so far; written every 64 tokens.
    Mark { request: RequestId, tokens: u32, amount: Usdc },
    /// The answer (or the part of it that counts as delivered) was taken, worth `amount` by the meter: what `upto` is
    /// charged. The payment is earned once settled. Said again, it can only confirm that the answer arrived.
    Delivered { request: RequestId, delivery: super::Delivery, amount: Usdc },
    /// Nothing was delivered. A payment that was not sent stays unused; one that was comes back.
    Aborted { request: RequestId, why: AbortWhy },
    /// The settlement is about to leave the process.
    SettleSent { request: RequestId },
    /// The authorisation was used and paid the treasury, in a block that may still be taken back ([`Self::Reversed`]):
    /// who wants more looks again when others are on it ([`crate::risk`]). `recorded`: through `settleExact`,
    /// so that `refundExact` can give it back; a third party that submits the authorisation to the token directly
    /// leaves no record. `tx` zero: not known yet, a later `Settled` brings it.
    Settled { method: TransferMethod, payer: [u8; 20], nonce: Hash, amount: Usdc, tx: Hash, block: u64, recorded: bool },
    /// The authorisation can never pay any more.
    Unpaid { request: RequestId, why: UnpaidWhy },
    /// Nobody knows whether the settlement will be mined: reconcile against the chain before anything else.
    SettleUnknown { request: RequestId },
    /// A reorganisation took a settlement (and any refund of it) back.
    Reversed { method: TransferMethod, payer: [u8; 20], nonce: Hash },
    /// `refundExact` is final.
    Refunded { payer: [u8; 20], nonce: Hash, amount: Usdc },
    /// Closed entries from before this time (chain seconds) are forgotten; their sums stay.
    Pruned { before: u64 },
    /// Something happened on a payment channel.
    Channel(super::ChannelInput),
    /// A reorganisation took `refundExact` back: it is owed again.
    RefundReversed { payer: [u8; 20], nonce: Hash },
}

/// What has to happen because of an input.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum BookOutput {
    /// Send this request's settlement (ask [`super::ChannelBook::may_settle`] right before).
    Settle { request: RequestId },
    /// Served and settled: sign its receipt.
    Receipt { request: RequestId },
    /// Served and settled: income.
    Earned { request: RequestId, amount: Usdc },
    /// A reorganisation took income back.
    Unearned { request: RequestId, amount: Usdc },
    /// Settled and nothing delivered: refund it.
    Owe { request: RequestId, payer: [u8; 20], nonce: Hash, amount: Usdc },
    /// The reservation was not taken; `decide` would have said so.
    Refused { request: RequestId, why: LimitReached },
    /// A payment channel wants something.
    Channel(super::ChannelOutput),
}

/// What a verified payment gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Reserve and serve.
    New,
    /// This request was answered: send the stored answer. The payment at hand is left alone.
    Replay { request: RequestId },
    /// This request is being answered: wait for it, or say 409 with `Retry-After`.
    InFlight { request: RequestId },
    /// The same authorisation came with another route or body: 409, never served.
    Conflict { request: RequestId },
    /// Nothing was delivered on this authorisation and its money is on the way in or back: sign a new one.
    Aborted { request: RequestId },
    /// This authorisation has paid for an answer that is no longer kept, or can pay nothing: sign a new one.
    Spent,
    /// Too much is open: 429 (one payer) or 503 (all).
    Refused(LimitReached),
}

/// Which of [`super::Limits`] was met.
#[derive(Debug, Clone, Copy, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum LimitReached {
    Open,
    OpenPerPayer,
    Kept,
    /// The authorisation was used for another request; only a caller that did not ask `decide` meets this.
    NonceTaken,
}

impl LimitReached {
    /// What the payer hears whose own payments reach it: 429. `None`: others' do, which is a 503.
    pub fn reason(self) -> Option<Reason> {
        match self {
            Self::OpenPerPayer => Some(Reason::TooManyOpen),
            Self::Open | Self::Kept | Self::NonceTaken => None,
        }
    }
}

impl fmt::Display for LimitReached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Open => "too many requests are open; try again in a moment",
            Self::OpenPerPayer => "too many requests of this payer are open; wait for their answers",
            Self::Kept => "the book of payments is full; try again later",
            Self::NonceTaken => "this authorisation belongs to another request",
        })
    }
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum Finish {
    /// The model stopped by itself.
    Stop,
    /// `max_tokens` was reached.
    Length,
    /// The client went away; what it took is charged.
    HungUp,
    /// Engine or host broke off; what was delivered by the last durable mark is charged.
    Broken,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum AbortWhy {
    /// The engine refused or failed before the first token.
    Engine,
    /// The client went away before the first byte.
    HungUp,
    /// The settlement failed or stayed unknown while the answer waited for it.
    NotSettled,
    /// The host stopped before the first durable mark.
    Crashed,
    /// This node may not act any more (fenced, moved, paused).
    NotServing,
    /// Whoever the answer was to be bought from did not deliver it.
    Supplier,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum UnpaidWhy {
    /// `valid_before` passed unused.
    Expired,
    /// The payer cancelled it on chain.
    Cancelled,
    /// The payer used the nonce for another payment.
    UsedElsewhere,
    /// The token refuses it (no balance, frozen) and it is not tried again.
    Refused,
}
