//! All that the agent ever hears. Inputs are recorded before their outputs leave the process.

use crate::money::{Address, Usdc};
use crate::output::OutputId;
use crate::policy::Limits;
use borsh::{BorshDeserialize, BorshSerialize};

#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum Input {
    /// A process began to act for the agent: first boot, restart on the same lease, or successor on another.
    /// `restored`: its memory came from a checkpoint after a takeover, so a tail may be lost.
    Booted { epoch: u64, lease: u64, restored: bool },
    /// What stands on chain at one block. Feed `Chain` with all events up to that block first.
    Block(Box<View>),
    /// Events in chain order; for a reorg `Reverted`, newest first, then the new chain's.
    Chain(Vec<ChainEvent>),
    /// Delivered and charged calls between two LSNs of the journal, inclusive. Ranges never overlap.
    Earned { first_lsn: u64, last_lsn: u64, count: u64, tokens: u64, sum: Usdc },
    /// Every payment that was settled and whose answer will not come. The whole list each time; also the answer to
    /// [`crate::StopWhy`], empty when nothing is owed.
    Owed(Vec<Owed>),
    /// What became of an output that had an id.
    Done { id: OutputId, outcome: Outcome },
    /// The standby's node answered the active one (or, `ready` false, says that it is not able to take over yet).
    StandbyAnswered { lease: u64, ready: bool },
    /// Completion tokens x 1e-3 per second, all streams together, measured on this host.
    Throughput { milli_tokens_per_sec: u64 },
    /// Another build goes on from here.
    CodeChanged { digest: [u8; 32] },
    /// What the archivist asks for a copy.
    ArchivePriced(ArchiveQuote),
    /// The archivist took the checkpoint `root`, as this Arweave transaction.
    Archived { seq: u64, root: [u8; 32], transaction: [u8; 32] },
}

/// A price for one checkpoint's copy. The archivist's word: held against the ceiling before anything is paid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct ArchiveQuote {
    pub seq: u64,
    /// The checkpoint's digest on chain.
    pub root: [u8; 32],
    /// Most bytes that the copy has.
    pub bytes: u64,
    pub price: Usdc,
    /// Chain seconds by which the payment must be mined.
    pub valid_until: u64,
    /// By which the archivist knows its word again.
    pub mac: [u8; 32],
}

#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum Outcome {
    /// It is on chain (or acknowledged) since `block`; it shows in every view from that block on.
    Done { block: u64 },
    /// It did not happen and never will. The reason is for people.
    Failed { reason: String },
    /// Nobody knows: the view will tell. Never treated as failed before that.
    Unknown,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Owed {
    pub payer: Address,
    pub nonce: [u8; 32],
    pub amount: Usdc,
}

/// The Treasury's stage, in the contract's order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, BorshSerialize, BorshDeserialize)]
pub enum Stage {
    Unborn,
    Alive,
    Stopped,
    WindingDown,
    Closed,
}

/// The chain at one block, as far as it concerns this agent. Times are chain seconds, 0 for never.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct View {
    pub number: u64,
    pub timestamp: u64,
    pub stage: Stage,
    pub paused: bool,
    /// Taken over and not yet committed: only heartbeats and that commit are allowed.
    pub restoring: bool,
    pub epoch: u64,
    pub operator_is_me: bool,
    pub active: Option<LeaseView>,
    pub standby: Option<LeaseView>,
    /// The lease that was active before the last handover.
    pub draining: Option<LeaseView>,
    /// Lease id, 0 for none.
    pub announced: u64,
    pub announced_at: u64,
    /// Last acknowledged checkpoint.
    pub checkpoint_seq: u64,
    pub last_heartbeat: u64,
    pub challenged_at: u64,
    pub balance: Usdc,
    /// Escrow less accrued rent, all open leases.
    pub escrow: Usdc,
    /// In the purse; zero without one.
    pub purse: Usdc,
    /// Of the day limit, right now.
    pub spent_in_day: Usdc,
    pub operator_gas_wei: u128,
    pub relay_gas_wei: u128,
    /// What the treasury has left to give them.
    pub treasury_gas_wei: u128,
    pub mandate_until: u64,
    pub wind_down_at: u64,
    pub limits: Limits,
    pub offers: Vec<OfferView>,
}

#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct LeaseView {
    pub id: u64,
    pub offer: u64,
    pub provider: Address,
    /// Micro-USDC x 1e-6 per second, fixed for the lease.
    pub price_e6: u64,
    /// 0 until ready.
    pub start: u64,
    pub end: u64,
    /// The provider's deadline.
    pub ready_by: u64,
    pub ready: bool,
    /// Escrow less accrued rent.
    pub escrow_left: Usdc,
}

#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct OfferView {
    pub id: u64,
    pub provider: Address,
    pub price_e6: u64,
    /// Leases that still fit.
    pub free: u32,
    /// Seconds.
    pub min_term: u32,
    pub max_term: u32,
    /// The provider's record on the market.
    pub served: u32,
    pub failed: u32,
}

/// One log entry that moved the agent's money, by its place in the chain.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct ChainEvent {
    pub block: u64,
    /// Log index within the block.
    pub index: u32,
    pub kind: ChainEventKind,
}

#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum ChainEventKind {
    /// Treasury `Activated`: what came in before is seed, what comes in after it is income or gift.
    Activated { lease: u64 },
    /// Treasury `ExactSettled`: a customer paid.
    ExactSettled { payer: Address, nonce: [u8; 32], amount: Usdc },
    /// Treasury `ExactRefunded`.
    ExactRefunded { payer: Address, nonce: [u8; 32], amount: Usdc },
    /// Treasury `Rented`, or the market's `LeaseRequested` of a birth or rescue: `prepay` went into escrow.
    Rented { lease: u64, prepay: Usdc },
    /// Treasury `ToppedUp`.
    ToppedUp { lease: u64, amount: Usdc },
    /// Market `RentPaid`: accrued rent left escrow for the provider.
    RentPaid { lease: u64, amount: Usdc },
    /// Market `LeaseClosed`, whoever closed it. Not the Treasury's `Released`, which tells of the same money.
    LeaseClosed { lease: u64, rent_total: Usdc, refund: Usdc },
    /// A token transfer to the Treasury that none of the events above explains.
    TransferIn { from: Address, amount: Usdc },
    /// Treasury `Withdrawn`: a beneficiary pulled.
    Withdrawn { amount: Usdc },
    /// A reorg took this event back.
    Reverted(Box<ChainEvent>),
    /// The channel contract paid out what customers' vouchers had promised.
    ChannelsSettled { amount: Usdc },
    /// A transfer that a customer had signed (EIP-3009, or Permit2 through an x402 proxy), without a record in the
    /// Treasury: a payment and no gift.
    CustomerPaid { from: Address, amount: Usdc },
    /// Market `Owed` to the Treasury: the token refused what a closed lease gave back, so it waits at the market.
    MarketOwes { amount: Usdc },
    /// Market `Collected` for the Treasury: what waited there came, whoever asked for it.
    MarketPaid { amount: Usdc },
    /// Treasury `DutyPaid`: a steward's pay for an acknowledgement. Should the token have refused it, the next view has more
    /// than the books.
    DutyPaid { amount: Usdc },
    /// Treasury `Spent` on the purse.
    PurseFilled { amount: Usdc },
    /// A token transfer from the purse to the Treasury: swept by a move, a pause or the end, or trimmed.
    PurseReturned { amount: Usdc },
    /// Treasury `GasBought`: this left for ETH.
    GasBought { amount: Usdc },
    /// Treasury `Spent` on storage: the archivist was paid.
    StoragePaid { amount: Usdc },
}
