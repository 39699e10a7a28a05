//! All that the agent ever asks for. The closed list is the fence: text cannot add to it.

use crate::input::ArchiveQuote;
use crate::money::{Address, Usdc};
use crate::note::Note;
use crate::price::Price;
use borsh::{BorshDeserialize, BorshSerialize};
use std::fmt;

/// The input that caused an output, and its place among that input's outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, BorshSerialize, BorshDeserialize)]
pub struct OutputId {
    pub lsn: u64,
    pub index: u32,
}

impl fmt::Display for OutputId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.lsn, self.index)
    }
}

/// Nothing of this leaves the process before the causing record is durable.
///
/// The first seventeen carry an id, stay *unfinished* until `Input::Done` names it, and are issued again after a replay;
/// the node must therefore do each at most once per id.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum Output {
    /// Into the standby slot, for `term` seconds, `prepay` into escrow.
    Rent {
        offer: u64,
        term: u32,
        prepay: Usdc,
    },
    TopUp {
        lease: u64,
        amount: Usdc,
    },
    Release {
        lease: u64,
    },
    Heartbeat {
        standby_answered: bool,
    },
    /// Seal, store, collect acknowledgements, commit. While the view says `restoring`: commit what was restored.
    Checkpoint,
    Announce {
        lease: u64,
    },
    /// With the last acknowledged checkpoint's `seq`; not mined after `valid_until` (chain seconds).
    Handover {
        lease: u64,
        valid_until: u64,
    },
    /// Ask the Treasury to top operator and relay gas up.
    Refuel,
    /// ETH for the treasury, for at most `max`: it comes out of the day limit.
    BuyGas {
        max: Usdc,
    },
    /// Out of the treasury, for suppliers; not if the purse would hold more than `full` then.
    FillPurse {
        amount: Usdc,
        full: Usdc,
    },
    Refund {
        payer: Address,
        nonce: [u8; 32],
        amount: Usdc,
    },
    WindDown,
    Close,
    /// Ask what a copy of the last acknowledged checkpoint costs.
    AskArchivist,
    /// Out of the treasury, to birth's payee for storage.
    PayArchivist {
        payee: Address,
        amount: Usdc,
    },
    /// Hand over what the price was named for, with the payment of this (block, log index).
    Archive {
        quote: ArchiveQuote,
        payment: (u64, u32),
    },
    /// Give up all hosts and be nobody's until `until`, chain seconds, or a rescue. What channels owe is claimed before,
    /// unless `leaves_claims`.
    Hibernate {
        until: u64,
        leaves_claims: bool,
    },
    /// Sell at this price from now on.
    Serve {
        price: Price,
    },
    /// Take no new paid work, finish what is running, then say what is owed (`Input::Owed`).
    StopServing {
        why: StopWhy,
    },
    /// A line for people.
    Note(Note),
    /// Nothing is due before this chain time unless something happens; feed the first block at or after it.
    WakeAt(u64),
}

/// Why the agent stopped selling.
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum StopWhy {
    /// Another node is operator.
    NotOperator,
    /// Taken over, not yet committed.
    Restoring,
    /// The money is nearly gone.
    Hunger,
    /// The quorum stopped the agent.
    Stopped,
    MandateOver,
    /// The Treasury winds down or is closed.
    Ended,
}

impl fmt::Display for StopWhy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotOperator => "another node is operator",
            Self::Restoring => "its memory is being restored",
            Self::Hunger => "the money is nearly gone",
            Self::Stopped => "the stewards stopped it",
            Self::MandateOver => "its mandate is over",
            Self::Ended => "its treasury is winding down or closed",
        })
    }
}

/// What an output is about, for "never two unfinished of the same kind for the same object".
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, BorshSerialize, BorshDeserialize)]
pub enum Task {
    Rent,
    TopUp { lease: u64 },
    Release { lease: u64 },
    Heartbeat,
    Checkpoint,
    Announce,
    Handover,
    Refuel,
    BuyGas,
    FillPurse,
    Refund { payer: Address, nonce: [u8; 32] },
    WindDown,
    Close,
    AskArchivist,
    PayArchivist,
    Archive,
    Hibernate,
}

impl Output {
    /// `None` for what needs no completion.
    pub fn task(&self) -> Option<Task> {
        Some(match *self {
            Self::Rent { .. } => Task::Rent,
            Self::TopUp { lease, .. } => Task::TopUp { lease },
            Self::Release { lease } => Task::Release { lease },
            Self::Heartbeat { .. } => Task::Heartbeat,
            Self::Checkpoint => Task::Checkpoint,
            Self::Announce { .. } => Task::Announce,
            Self::Handover { .. } => Task::Handover,
            Self::Refuel => Task::Refuel,
            Self::BuyGas { .. } => Task::BuyGas,
            Self::FillPurse { .. } => Task::FillPurse,
            Self::Refund { payer, nonce, .. } => Task::Refund { payer, nonce },
            Self::WindDown => Task::WindDown,
            Self::Close => Task::Close,
            Self::AskArchivist => Task::AskArchivist,
            Self::PayArchivist { .. } => Task::PayArchivist,
            Self::Archive { .. } => Task::Archive,
            Self::Hibernate { .. } => Task::Hibernate,
            Self::Serve { .. } | Self::StopServing { .. } | Self::Note(_) | Self::WakeAt(_) => return None,
        })
    }

    /// What the Treasury commits by it, counted in its day limit.
    pub fn spends(&self) -> Usdc {
        match *self {
            Self::Rent { prepay, .. } => prepay,
            Self::BuyGas { max } => max,
            Self::TopUp { amount, .. }
            | Self::FillPurse { amount, .. }
            | Self::Refund { amount, .. }
            | Self::PayArchivist { amount, .. } => amount,
            _ => Usdc::ZERO,
        }
    }
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rent => f.write_str("rent"),
            Self::TopUp { lease } => write!(f, "top-up of lease {lease}"),
            Self::Release { lease } => write!(f, "release of lease {lease}"),
            Self::Heartbeat => f.write_str("heartbeat"),
            Self::Checkpoint => f.write_str("checkpoint"),
            Self::Announce => f.write_str("announcement"),
            Self::Handover => f.write_str("handover"),
            Self::Refuel => f.write_str("refuel"),
            Self::BuyGas => f.write_str("purchase of gas"),
            Self::FillPurse => f.write_str("filling of the purse"),
            Self::Refund { .. } => f.write_str("refund"),
            Self::WindDown => f.write_str("wind-down"),
            Self::Close => f.write_str("close"),
            Self::AskArchivist => f.write_str("question for the archivist's price"),
            Self::PayArchivist => f.write_str("payment for storage"),
            Self::Archive => f.write_str("copy for the archivist"),
            Self::Hibernate => f.write_str("hibernation"),
        }
    }
}
