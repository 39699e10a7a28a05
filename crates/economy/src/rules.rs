//! What the contracts do with an agent's money and leases, as a pure model: the rules that its decisions count on.
//!
//! The contracts enforce, this only says the same: `crates/sim` holds both against each other, call by call, and a
//! difference is a bug in one of them. An entry copies the state first, to take itself back when it is refused: made to
//! be compared with, not to be fast.
//!
//! **Invariant:** a refused call changes nothing.
//!
//! Left out: signatures (a caller is who it says; orders are taken as approved), gas, and all of birth's options:
//! purse, payees, bought gas, duties, channels, queued orders, silence in blocks, identity. It is the model of a birth
//! without options. Our births have some of them: channels wherever the chain has the x402 contract, and orders after
//! a delay, of 7 days by default.

mod day_limit;
mod market;
mod token;
mod treasury;

pub use day_limit::DayLimit;
pub use market::{Lease, LeaseState, Market, MarketTerms, Offer};
pub use token::Token;
pub use treasury::{Terms, Treasury};

/// Why the contracts refuse, by their own names for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    // who
    NotCreator,
    NotOperator,
    NotNodeKey,
    NotSteward,
    NotBeneficiary,
    NotProvider,
    NotTenant,
    // when
    WrongStage,
    WrongState,
    IsPaused,
    NotPaused,
    IsRestoring,
    TooEarly,
    TooLate,
    NotChallenged,
    NotStarved,
    // which
    NotOurLease,
    NotReady,
    SlotTaken,
    SameOwner,
    Barred,
    BadSequence,
    NotAnnounced,
    KeyUsed,
    UnknownOffer,
    NotStaked,
    NoCapacity,
    BadTerm,
    StakeInUse,
    ZeroAddress,
    // how much
    ZeroAmount,
    OverDayLimit,
    OverPriceCap,
    OverTerm,
    OverPrepay,
    OverEscrow,
    OverRecorded,
    BadPolicy,
    // the token's
    AuthorizationUsedOrCanceled,
    /// The token calls it `ERC20InsufficientBalance`.
    InsufficientBalance,
}

impl Refusal {
    /// The contract's name of the error.
    pub fn name(self) -> String {
        match self {
            Self::InsufficientBalance => "ERC20InsufficientBalance".to_owned(),
            other => format!("{other:?}"),
        }
    }
}

fn refuse_if(refused: bool, why: Refusal) -> Result<(), Refusal> {
    if refused { Err(why) } else { Ok(()) }
}

#[cfg(test)]
mod tests;
