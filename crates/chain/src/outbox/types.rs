//! What the outbox is told and what it answers. Plain values; nothing here does anything.

use alloy::primitives::{Address, B256, Bytes};
use borsh::{BorshDeserialize, BorshSerialize};

/// Names one transaction to be. The caller chooses it, and chooses the same one again after a restart: that is how
/// nothing is sent twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, BorshSerialize, BorshDeserialize)]
pub struct Id(pub [u8; 16]);

impl From<u64> for Id {
    fn from(value: u64) -> Self {
        Self(u128::from(value).to_be_bytes())
    }
}

/// What to send. `to: None` creates a contract.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Callee.
    pub to: Option<Address>,
    /// Calldata, or init code.
    pub data: Bytes,
    /// Wei.
    pub value: u128,
    /// Gas limit. `None`: estimated first, so that what would revert is not sent.
    pub gas: Option<u64>,
}

type RequestParts = (Option<[u8; 20]>, Vec<u8>, u128, Option<u64>);

impl BorshSerialize for Request {
    fn serialize<W: std::io::Write>(&self, writer: &mut W) -> std::io::Result<()> {
        let parts: RequestParts = (self.to.map(|to| to.0.0), self.data.to_vec(), self.value, self.gas);
        parts.serialize(writer)
    }
}

impl BorshDeserialize for Request {
    fn deserialize_reader<R: std::io::Read>(reader: &mut R) -> std::io::Result<Self> {
        let (to, data, value, gas) = RequestParts::deserialize_reader(reader)?;
        Ok(Self { to: to.map(Address::from), data: data.into(), value, gas })
    }
}

/// Choices of one outbox. Blocks, not seconds: the chain's own rhythm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Blocks that must hold a transaction until it counts: 1 is "mined", 2 has one block above it.
    pub confirmations: u64,
    /// Transactions on the way at once; nodes refuse long rows of one account (geth: 16 slots guaranteed).
    pub in_flight_max: usize,
    /// Blocks without being mined after which the fee is raised.
    pub bump_after: u64,
    /// Wei per gas for the block's producer.
    pub tip_wei: u128,
    /// Wei per gas that is never passed, whatever the base fee.
    pub fee_max_wei: u128,
    /// Blocks to wait for money to come (a refuel) before a transaction that cannot be paid is given up.
    pub funds_patience: u64,
    /// Blocks in which a used-up nonce may go without a receipt before the outcome is called unknown.
    pub receipt_patience: u64,
}

impl Options {
    /// The usual choices; guesses, except that raising by 1/8 every third block follows geth's 10 % rule.
    pub fn new(confirmations: u64) -> Self {
        Self {
            confirmations: confirmations.max(1),
            in_flight_max: 16,
            bump_after: 3,
            tip_wei: 1_000_000,
            fee_max_wei: 500_000_000_000,
            funds_patience: 5,
            receipt_patience: 5,
        }
    }
}

/// A transaction found in the endpoint's chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mined {
    /// Which of the versions that were sent.
    pub tx: B256,
    /// Height.
    pub block: u64,
    /// False: it reverted, and its gas is gone.
    pub success: bool,
}

/// Why an endpoint did not take a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SendError {
    /// The nonce is used up.
    NonceTooLow,
    /// Another transaction of this account waits with this nonce, and this one does not pay enough to replace it.
    ReplacementUnderpriced,
    /// The fee is under what the next block asks.
    FeeTooLow,
    /// The account cannot pay gas and value.
    InsufficientFunds,
    /// The endpoint says no for good, in these words.
    Refused(String),
    /// No answer, or none that can be understood: it may have been taken.
    Transport,
}

/// What the outbox is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// A transaction to send. Known ids change nothing; settled ones are answered again.
    Submit {
        /// The caller's name for it.
        id: Id,
        /// What to send.
        request: Request,
    },
    /// The newest block; told again at each poll, changed or not, so that retries happen.
    Head {
        /// Height.
        number: u64,
        /// Its hash.
        hash: B256,
        /// Wei per gas.
        base_fee: u128,
    },
    /// Answers [`Output::AskNonce`].
    NonceIs {
        /// Transactions mined: the next nonce of the chain.
        latest: u64,
        /// The same with what waits in the endpoint's pool.
        pending: u64,
    },
    /// Answers [`Output::Estimate`]: gas limit to use, margin included.
    Estimated {
        /// Which.
        id: Id,
        /// Gas limit.
        gas: u64,
    },
    /// Answers [`Output::Estimate`]: it would revert now.
    WouldRevert {
        /// Which.
        id: Id,
        /// Revert data.
        data: Bytes,
        /// The endpoint's words.
        text: String,
    },
    /// Answers [`Output::Estimate`]: the endpoint refuses to try it (no funds, too much gas), in these words.
    EstimateRefused {
        /// Which.
        id: Id,
        /// The endpoint's words.
        reason: String,
    },
    /// Answers [`Output::Estimate`]: the endpoint failed.
    EstimateFailed {
        /// Which.
        id: Id,
    },
    /// Answers [`Output::Send`]: the endpoint has it.
    Sent {
        /// Which.
        id: Id,
        /// Its nonce, as in the output.
        nonce: u64,
        /// Hash of the signed transaction.
        tx: B256,
    },
    /// Answers [`Output::Send`]: it did not take it.
    SendFailed {
        /// Which.
        id: Id,
        /// Its nonce, as in the output.
        nonce: u64,
        /// Hash of the signed transaction; signing happens before sending, so it is known.
        tx: B256,
        /// Why.
        why: SendError,
    },
    /// Answers [`Output::AskReceipt`].
    ReceiptIs {
        /// Which.
        id: Id,
        /// Its nonce, as in the output.
        nonce: u64,
        /// The receipt of any of the hashes, if the endpoint's chain has one.
        found: Option<Mined>,
    },
}

/// What the outbox wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Ask for the account's nonces, latest and pending.
    AskNonce,
    /// Try it against the pending state.
    Estimate {
        /// Which.
        id: Id,
        /// What.
        request: Request,
    },
    /// Sign (the same fields give the same hash) and send. Whoever keeps the outbox's state on disk writes it
    /// *before* doing this.
    Send {
        /// Which.
        id: Id,
        /// Nonce.
        nonce: u64,
        /// What; its gas is known now.
        request: Request,
        /// Gas limit.
        gas: u64,
        /// Wei per gas, at most.
        max_fee: u128,
        /// Wei per gas for the producer.
        tip: u128,
    },
    /// Look for a receipt of any of these.
    AskReceipt {
        /// Which.
        id: Id,
        /// Its nonce.
        nonce: u64,
        /// Every version that was ever sent.
        txs: Vec<B256>,
    },
    /// The end of this id. It is said once, and again if the id is submitted again.
    Settled {
        /// Which.
        id: Id,
        /// What became of it.
        outcome: Outcome,
    },
}

/// What became of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// In the chain, deep enough, and it did not revert.
    Done {
        /// The version that was mined.
        tx: B256,
        /// Height.
        block: u64,
    },
    /// In the chain, deep enough, and it reverted.
    Reverted {
        /// The version that was mined.
        tx: B256,
        /// Height.
        block: u64,
    },
    /// Never left: it would have reverted with this data. No gas was used.
    WouldRevert {
        /// Revert data.
        data: Bytes,
        /// The endpoint's words.
        text: String,
    },
    /// Never left: no money for gas, or the endpoint refused it.
    NeverSent {
        /// Why.
        reason: String,
    },
    /// It left, its nonce is used up, and none of its versions has a receipt: read the state before repeating it.
    Unknown {
        /// Every version that was sent.
        txs: Vec<B256>,
    },
}

#[derive(BorshSerialize, BorshDeserialize)]
enum OutcomeParts {
    Done([u8; 32], u64),
    Reverted([u8; 32], u64),
    WouldRevert(Vec<u8>, String),
    NeverSent(String),
    Unknown(Vec<[u8; 32]>),
}

impl BorshSerialize for Outcome {
    fn serialize<W: std::io::Write>(&self, writer: &mut W) -> std::io::Result<()> {
        let parts = match self.clone() {
            Self::Done { tx, block } => OutcomeParts::Done(tx.0, block),
            Self::Reverted { tx, block } => OutcomeParts::Reverted(tx.0, block),
            Self::WouldRevert { data, text } => OutcomeParts::WouldRevert(data.to_vec(), text),
            Self::NeverSent { reason } => OutcomeParts::NeverSent(reason),
            Self::Unknown { txs } => OutcomeParts::Unknown(txs.into_iter().map(|tx| tx.0).collect()),
        };
        parts.serialize(writer)
    }
}

impl BorshDeserialize for Outcome {
    fn deserialize_reader<R: std::io::Read>(reader: &mut R) -> std::io::Result<Self> {
        Ok(match OutcomeParts::deserialize_reader(reader)? {
            OutcomeParts::Done(tx, block) => Self::Done { tx: tx.into(), block },
            OutcomeParts::Reverted(tx, block) => Self::Reverted { tx: tx.into(), block },
            OutcomeParts::WouldRevert(data, text) => Self::WouldRevert { data: data.into(), text },
            OutcomeParts::NeverSent(reason) => Self::NeverSent { reason },
            OutcomeParts::Unknown(txs) => Self::Unknown { txs: txs.into_iter().map(B256::from).collect() },
        })
    }
}
