//! When a steward proposes that a host be evicted: it is paid, its heartbeats come, and it does not do what they vouch
//! for. Pure: it is told each look at the host and each block, and says when there is something to propose.
//!
//! Nothing but a proposal comes of it. Whoever can lie to a probe must not be able to move a quorum, so the daemon signs
//! nothing: people read what was found, compare it with what the other stewards found, and order `evict` or do not
//! (DESIGN §5.5, §6). All times are chain seconds.

use crate::watch::TreasuryView;
use alloy::primitives::Address;
use std::collections::BTreeMap;

/// Looks in a row that must have found the same. A guess: one is a lost packet, two a restart.
pub const TIMES_MIN: u32 = 3;

/// What one look at a host found, or one checkpoint that it signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    /// It is whom the chain names, and offers to serve for the treasury's money.
    Good,
    Bad(Fault),
}

/// What is wrong with a host that is paid, the worst last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// It does not answer, or offers nothing: nobody is served.
    Unserved,
    /// It says that it is another agent, another operator or in another epoch than the chain does.
    WrongRecord,
    /// A checkpoint that its operator signed cannot be what it says: a share that does not open, a content that is another.
    BadCheckpoint,
    /// Customers are asked to pay somebody else.
    WrongPayee,
}

impl Fault {
    pub const ALL: [Self; 4] = [Self::Unserved, Self::WrongRecord, Self::BadCheckpoint, Self::WrongPayee];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unserved => "unserved",
            Self::WrongRecord => "wrong_record",
            Self::BadCheckpoint => "bad_checkpoint",
            Self::WrongPayee => "wrong_payee",
        }
    }
}

/// That the quorum evict the host of a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proposal {
    pub epoch: u64,
    pub lease: u64,
    /// Whose host it is; `evict` bars it.
    pub provider: Address,
    pub fault: Fault,
    /// How often in a row it was found, and since when.
    pub times: u32,
    pub since: u64,
    /// The lease whose node would become operator: a standby that is ready, of another owner. 0: nobody, until a rescue;
    /// always so against a thief, who may hold the standby's key by then.
    pub keep: u64,
}

/// What this steward holds against one agent's host.
#[derive(Clone, Debug, Default)]
pub struct Suspicion {
    /// Epoch and lease that all of it concerns.
    office: (u64, u64),
    found: BTreeMap<Fault, Found>,
    proposed: Option<Proposal>,
}

#[derive(Clone, Copy, Debug)]
struct Found {
    since: u64,
    times: u32,
}

/// A change of what is proposed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Propose(Proposal),
    Withdraw,
}

impl Suspicion {
    pub fn proposed(&self) -> Option<&Proposal> {
        self.proposed.as_ref()
    }

    /// Another epoch or another host begins with nothing against it.
    pub fn see(&mut self, view: &TreasuryView) -> Option<Change> {
        let office = office_of(view);
        if self.office == office && view.alive {
            return None;
        }
        let before = std::mem::replace(self, Self { office, ..Self::default() });
        before.proposed.map(|_| Change::Withdraw)
    }

    /// One finding at chain time `now` about the host of `office` (epoch, lease). What concerns a former one is dropped, and
    /// so is what is found of an agent that is silent, restores its memory or is none: others deal with that.
    pub fn hear(&mut self, view: &TreasuryView, now: u64, office: (u64, u64), finding: Finding) -> Option<Change> {
        let mut change = self.see(view);
        if office != self.office || !is_accountable(view, now) {
            return change;
        }
        match finding {
            Finding::Good => {
                // A checkpoint that was bad stays so.
                self.found.retain(|fault, _| *fault == Fault::BadCheckpoint);
                if self.proposed.is_some_and(|p| p.fault != Fault::BadCheckpoint) {
                    self.proposed = None;
                    change = Some(Change::Withdraw);
                }
            }
            Finding::Bad(fault) => {
                let found = self.found.entry(fault).or_insert(Found { since: now, times: 0 });
                found.times = found.times.saturating_add(1);
                // Looks in a row: what a look did not find this time is over. Checkpoints are no looks.
                if fault != Fault::BadCheckpoint {
                    self.found.retain(|other, _| *other == fault || *other == Fault::BadCheckpoint);
                }
            }
        }
        let worst = self.found.iter().rev().find(|(fault, found)| {
            found.times >= TIMES_MIN && now >= found.since.saturating_add(patience(**fault, view))
        });
        if let (None, Some((fault, found)), Some(active)) = (self.proposed, worst, &view.active) {
            let standby = view.standby.as_ref().filter(|s| s.ready && now < s.end && s.provider != active.provider);
            let keep = standby.filter(|_| *fault != Fault::WrongPayee).map_or(0, |standby| standby.id);
            let (epoch, lease) = self.office;
            let (times, since) = (found.times, found.since);
            let proposal = Proposal { epoch, lease, provider: active.provider, fault: *fault, times, since, keep };
            self.proposed = Some(proposal);
            change = Some(Change::Propose(proposal));
        }
        change
    }
}

fn office_of(view: &TreasuryView) -> (u64, u64) {
    (view.epoch, view.active.as_ref().map_or(0, |lease| lease.id))
}

/// Whether somebody is in office and vouches for a lease that is paid.
fn is_accountable(view: &TreasuryView, now: u64) -> bool {
    view.alive && view.operator.is_some() && view.active.is_some() && !view.restoring && view.alarm(now).is_none()
}

/// Chain seconds for which it must have been found. Whoever serves nobody gets as long as one who is silent does before a
/// rescue: a node may fetch its weights again, and start its engine.
fn patience(fault: Fault, view: &TreasuryView) -> u64 {
    match fault {
        Fault::Unserved => view.timers.silence,
        Fault::WrongRecord | Fault::BadCheckpoint | Fault::WrongPayee => 0,
    }
}

#[cfg(test)]
mod tests;
