//! Wrong models, planted: what the comparison is worth is how many of these it sees.

use super::pair::Pair;
use economy::rules::{MarketTerms, Refusal, Terms, Treasury};
use std::panic::{AssertUnwindSafe, catch_unwind};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// A day lets one micro-USDC more through.
    DayLimitOffByOne,
    /// A lease may be a second longer.
    TermOffByOne,
    /// A second more of rent may be prepaid.
    PrepayOffByOne,
    /// Rent accrues a second longer after the last heartbeat that vouched.
    GraceOffByOne,
    /// The treasury closes a second later.
    RefundWindowOffByOne,
    /// Of each refund one micro-USDC stays behind.
    RefundShortByOne,
    /// A lease is vouched for before it is released, and not as the last heartbeat left it.
    VouchesBeforeReleasing,
    /// A pause does not hold the operator's rent.
    RentsWhilePaused,
    /// A quorum's lower limits change nothing.
    ForgetsTightening,
    /// The agent never hears of refunds.
    LedgerMissesRefunds,
}

/// What an entry is about.
#[derive(Clone, Copy, Debug)]
pub enum Of {
    Lease(u64),
    Payer(economy::Address),
    Limits,
}

/// Each with what the difference is called.
pub const BUGS: [(Bug, &str); 10] = [
    (Bug::DayLimitOffByOne, "OverDayLimit"),
    (Bug::TermOffByOne, "OverTerm"),
    (Bug::PrepayOffByOne, "OverPrepay"),
    (Bug::GraceOffByOne, "accrued"),
    (Bug::RefundWindowOffByOne, "disagree about close"),
    (Bug::RefundShortByOne, "balance: the contract says"),
    (Bug::VouchesBeforeReleasing, "vouched at: the contract says"),
    (Bug::RentsWhilePaused, "IsPaused"),
    (Bug::ForgetsTightening, "OverDayLimit"),
    (Bug::LedgerMissesRefunds, "contracts (left), ledger (right)"),
];

impl Bug {
    /// In what birth fixes.
    pub fn in_terms(self, terms: &mut Terms) {
        match self {
            Self::DayLimitOffByOne => terms.day_limit += 1,
            Self::TermOffByOne => terms.term_max += 1,
            Self::PrepayOffByOne => terms.prepay_max += 1,
            Self::RefundWindowOffByOne => terms.timers.refund_window += 1,
            _ => {}
        }
    }

    pub fn in_market(self, terms: &mut MarketTerms) {
        if self == Self::GraceOffByOne {
            terms.grace += 1;
        }
    }

    /// Around one entry of the model, which is `body`. `of`: the lease or the payer that it is about.
    pub fn around(
        self,
        name: &str,
        model: &mut Treasury,
        now: u64,
        of: Of,
        body: impl FnOnce(&mut Treasury) -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        match (self, name, of) {
            (Self::VouchesBeforeReleasing, "release", Of::Lease(lease)) => {
                let at = model.at;
                model.market.vouch(now, at, lease).ok();
                body(model)
            }
            (Self::RentsWhilePaused, "rent", _) => {
                let paused = std::mem::take(&mut model.paused);
                let done = body(model);
                model.paused = paused;
                done
            }
            (Self::ForgetsTightening, "tighten", _) => {
                let before = model.clone();
                body(model)?;
                *model = before;
                Ok(())
            }
            (Self::RefundShortByOne, "refundExact", Of::Payer(payer)) => {
                body(model)?;
                model.token.transfer(payer, model.at, 1)
            }
            _ => body(model),
        }
    }
}

/// What the comparison says about a model with this bug, and of which sequence; `None` if it sees nothing.
pub fn found(bug: Bug, sequences: u64, calls: u32) -> Option<(u64, String)> {
    (0..sequences).find_map(|seed| {
        let run = AssertUnwindSafe(|| {
            let mut pair = Pair::with_bug(seed, bug);
            for _ in 0..calls {
                pair.step();
            }
            pair.compare_everything();
            pair.end();
        });
        let said = catch_unwind(run).err()?;
        let said = said.downcast::<String>().map_or_else(|_| "no text".to_owned(), |text| *text);
        Some((seed, said))
    })
}
