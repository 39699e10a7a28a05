use super::super::input::body_key;
use super::super::{AbortWhy, Delivery, RequestId};
use crate::scheme::channel::{ChannelConfig, ChannelId, ChannelState, Deposit, HeldVoucher};
use crate::scheme::exact::Hash;
use crate::{Reason, Usdc};
use borsh::{BorshDeserialize, BorshSerialize};
use sha2::{Digest, Sha256};

impl RequestId {
    /// The id of a request that a voucher pays for, on a channel that has charged and served so much before.
    pub fn of_voucher(channel: &ChannelId, max: Usdc, body_key: &Hash, (charged, served): (Usdc, u64)) -> Self {
        let digest = Sha256::new()
            .chain_update(b"vivarium channel request")
            .chain_update(channel.0)
            .chain_update(max.micro().to_be_bytes())
            .chain_update(body_key)
            .chain_update(charged.micro().to_be_bytes())
            .chain_update(served.to_be_bytes())
            .finalize();
        let mut id = [0; 16];
        id.copy_from_slice(&digest[..16]);
        Self(id)
    }
}

/// A verified voucher that asks to be served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChannelAsk {
    pub channel: ChannelId,
    /// The voucher's `maxClaimableAmount`.
    pub max: Usdc,
    /// The most that this request will be charged.
    pub ceiling: Usdc,
    pub deposit: Option<AskedDeposit>,
    /// Method and path, like `POST /v1/chat/completions`.
    pub route: String,
    /// sha2-256 of the request's body.
    pub body_digest: Hash,
    /// The customer opted out of replays.
    pub fresh: bool,
}

/// A deposit that comes with a voucher.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AskedDeposit {
    /// [`Deposit::key`].
    pub key: Hash,
    pub amount: Usdc,
}

impl ChannelAsk {
    pub(super) fn body_key(&self) -> Hash {
        body_key(&self.route, &self.body_digest)
    }
}

/// A payer that asks for its money.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RefundAsk {
    pub channel: ChannelId,
    /// `None`: all that is not charged.
    pub amount: Option<Usdc>,
}

/// A request that will be served under a voucher.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct CallReservation {
    pub request: RequestId,
    pub channel: ChannelId,
    pub voucher: HeldVoucher,
    /// What the customer accepted, the most that it may be told was charged.
    pub accepted: Usdc,
    /// The most that will be charged, at most `accepted`.
    pub ceiling: Usdc,
    pub route: String,
    pub body_digest: Hash,
    /// Digest of the name that the customer gave its request: kept and looked up by the book, see
    /// [`super::super::ChannelBook::named`].
    pub identifier: Option<Hash>,
    pub prompt_tokens: u32,
    /// Completion tokens that the ceiling covers.
    pub max_tokens: u32,
    /// How the model is run for it: the canonical object whose digest its receipt signs ([`crate::receipt::run`]), and
    /// which the journal therefore has before anything is made. Empty where nothing can be run again.
    pub run: String,
    /// Chain seconds.
    pub at: u64,
}

impl CallReservation {
    pub(in super::super) fn body_key(&self) -> Hash {
        body_key(&self.route, &self.body_digest)
    }
}

/// What happened on a channel. Recorded in the journal before it has effects; variants are only ever added at the end.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum ChannelInput {
    /// The chain was read. News of an older block than known are passed over.
    Seen { channel: ChannelId, config: ChannelConfig, state: ChannelState, at: u64 },
    /// A deposit will be sent.
    DepositAsked { channel: ChannelId, deposit: Deposit, at: u64 },
    /// Its transaction is about to leave the process.
    DepositSent { channel: ChannelId, tx: Hash },
    /// It is in: a `Seen` with the new balance comes before this.
    DepositDone { channel: ChannelId, key: Hash },
    /// It can never come in any more.
    DepositFailed { channel: ChannelId, key: Hash },
    /// `decide` said `New` and the request is served.
    Reserved(CallReservation),
    /// So many tokens, worth so much, were taken by the client so far; written every 64 tokens.
    Mark { request: RequestId, tokens: u32, amount: Usdc },
    /// The answer (or the part of it that counts as delivered) was taken. The charge is capped by the reservation. Said
    /// again, it can only confirm that the answer arrived.
    Charged { request: RequestId, amount: Usdc, delivery: Delivery },
    /// Nothing was delivered and nothing is charged.
    Aborted { request: RequestId, why: AbortWhy },
    /// A claim is about to leave the process: channels and the totals that it claims.
    ClaimSent { rows: Vec<(ChannelId, Usdc)> },
    /// It was mined (as far as it went): a `Seen` of each channel comes before this.
    ClaimDone { rows: Vec<ChannelId> },
    /// It reverted, or a simulation says that it would.
    ClaimFailed { rows: Vec<ChannelId> },
    /// The payer asked for money that is not charged, and gets it.
    RefundAsked { channel: ChannelId, amount: Usdc, at: u64 },
    /// The refund was mined or can never be: a `Seen` comes before this.
    RefundEnded { channel: ChannelId },
    /// Closed calls from before this time (chain seconds), and channels that the chain alone tells all about, are
    /// forgotten; their sums stay.
    Pruned { before: u64 },
    /// The chain took blocks back, from this one on: what was read of channels there may never have happened. They are
    /// read again.
    TakenBack { from: u64 },
}

/// What has to happen because of an input.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum ChannelOutput {
    /// Send this channel's deposit.
    Deposit { channel: ChannelId },
    /// Served: sign its receipt.
    Receipt { request: RequestId },
    /// Served: owed by the channel's voucher from now on, and claimed later.
    Charged { request: RequestId, channel: ChannelId, amount: Usdc },
    /// So much more was claimed on chain: money, once `settle` moved it.
    Claimed { channel: ChannelId, amount: Usdc },
    /// The payer is leaving and owes something: claim before the delay is over.
    ClaimNow { channel: ChannelId },
    /// Send this channel's refund, its claim first.
    Refund { channel: ChannelId },
    /// The reservation was not taken; `decide` would have said so.
    Refused { request: RequestId, why: Reason },
}

/// What a verified voucher gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChannelDecision {
    /// Nothing is known of this channel: read the chain, record `Seen`, decide again.
    Look,
    /// Simulate the deposit, send it, record what became of it, decide again.
    Deposit,
    /// This very deposit is under way: wait for it.
    Depositing,
    /// Reserve and serve.
    New { request: RequestId },
    /// This request was answered: send the stored answer, charge nothing.
    Replay { request: RequestId },
    /// This request is being answered: wait for it, or say 409 with `Retry-After`.
    InFlight { request: RequestId },
    /// The customer is out of step: 402 with the channel's state in the offer.
    Corrective(Reason),
    /// 402 with this reason.
    Refused(Reason),
    /// Too much is open or kept.
    Limited(super::LimitReached),
}
