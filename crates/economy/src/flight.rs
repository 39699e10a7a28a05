//! Outputs on their way: what was asked for and not yet seen on chain, and what failed and when to try again.

use crate::input::{ChainEventKind, Outcome, Stage, View};
use crate::money::Usdc;
use crate::note::Note;
use crate::output::{Output, OutputId, Task};
use borsh::{BorshDeserialize, BorshSerialize};
use std::collections::BTreeMap;

#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
enum State {
    /// Nobody said yet what became of it.
    Sent,
    /// On chain since this block; kept until a view of that block or a later one, so that it is not asked for twice.
    Landed {
        block: u64,
    },
    Unknown {
        since: u64,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
struct Flight {
    task: Task,
    output: Output,
    sent_at: u64,
    /// `checkpoint_seq` when it was sent.
    seq: u64,
    state: State,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
struct Backoff {
    fails: u32,
    until: u64,
}

/// Chain seconds: how failures are repeated and how long the unknown is waited for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    pub first: u64,
    pub longest: u64,
    pub unknown: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub(crate) struct Flights {
    flights: BTreeMap<OutputId, Flight>,
    backoffs: BTreeMap<Task, Backoff>,
}

impl Flights {
    /// No second one for the same object while one is on its way, and none before its time after a failure.
    pub fn may(&self, task: Task, now: u64) -> bool {
        !self.busy(task) && self.backoffs.get(&task).is_none_or(|b| b.until <= now)
    }

    pub fn busy(&self, task: Task) -> bool {
        self.flights.values().any(|f| f.task == task)
    }

    pub fn fails(&self, task: Task) -> u32 {
        self.backoffs.get(&task).map_or(0, |b| b.fails)
    }

    /// Money that is on its way out and may not show in the view yet.
    pub fn spending(&self) -> Usdc {
        self.flights.values().map(|f| f.output.spends()).sum()
    }

    pub fn refunds(&self) -> usize {
        self.flights.values().filter(|f| matches!(f.task, Task::Refund { .. })).count()
    }

    pub fn send(&mut self, id: OutputId, output: &Output, now: u64, seq: u64) {
        let Some(task) = output.task() else { return };
        assert!(!self.busy(task), "a second {task} while one is on its way");
        self.flights.insert(id, Flight { task, output: output.clone(), sent_at: now, seq, state: State::Sent });
    }

    /// What the node must see through: everything without an end. Landed ones have one.
    pub fn unfinished(&self) -> Vec<(OutputId, Output)> {
        self.flights.iter().filter(|(_, f)| f.state == State::Sent).map(|(id, f)| (*id, f.output.clone())).collect()
    }

    /// The handover that was asked for and did not fail, and until when it may be mined, chain seconds.
    pub fn handover(&self) -> Option<(OutputId, u64)> {
        self.flights.iter().find_map(|(id, flight)| match flight.output {
            Output::Handover { valid_until, .. } => Some((*id, valid_until)),
            _ => None,
        })
    }

    /// Takes an end in. Returns the failed output, if it failed now. An unknown id belongs to an earlier epoch.
    pub fn done(
        &mut self,
        id: OutputId,
        outcome: Outcome,
        now: u64,
        patience: Patience,
        notes: &mut Vec<Note>,
    ) -> Option<Output> {
        let flight = self.flights.get_mut(&id)?;
        match outcome {
            Outcome::Done { block } => {
                flight.state = State::Landed { block };
                let task = flight.task;
                self.backoffs.remove(&task);
                None
            }
            Outcome::Unknown => {
                if flight.state == State::Sent {
                    flight.state = State::Unknown { since: now };
                    notes.push(Note::TaskUnknown { task: flight.task });
                }
                None
            }
            Outcome::Failed { reason } => {
                let (task, output) = (flight.task, flight.output.clone());
                self.flights.remove(&id);
                let retry_at = self.back_off(task, now, patience);
                notes.push(Note::TaskFailed { task, reason, retry_at });
                Some(output)
            }
        }
    }

    fn back_off(&mut self, task: Task, now: u64, patience: Patience) -> u64 {
        let backoff = self.backoffs.entry(task).or_default();
        let doublings = if is_urgent(task) { 0 } else { backoff.fails.min(20) };
        let wait = patience.first.saturating_mul(1 << doublings).min(patience.longest);
        backoff.fails = backoff.fails.saturating_add(1);
        backoff.until = now.saturating_add(wait);
        backoff.until
    }

    /// An event ends the flights that it is the trace of.
    pub fn event(&mut self, kind: &ChainEventKind) {
        let task = match *kind {
            ChainEventKind::Rented { .. } => Task::Rent,
            ChainEventKind::ToppedUp { lease, .. } => Task::TopUp { lease },
            ChainEventKind::LeaseClosed { lease, .. } => Task::Release { lease },
            ChainEventKind::PurseFilled { .. } => Task::FillPurse,
            ChainEventKind::GasBought { .. } => Task::BuyGas,
            ChainEventKind::StoragePaid { .. } => Task::PayArchivist,
            ChainEventKind::ExactRefunded { payer, nonce, .. } => Task::Refund { payer, nonce },
            _ => return,
        };
        // Sent ones stay until the node says so: it still owes us their end, and would be asked again after a replay.
        self.flights.retain(|_, f| f.task != task || !matches!(f.state, State::Unknown { .. }));
    }

    /// A view ends what landed at or before it, and what is unknown and shows; what is unknown for too long and does
    /// not show counts as failed: the contract lets none of these happen twice (one standby, escrow, purse, gas and
    /// refunds capped, sequence numbers), so asking again is safe. The archivist could be paid twice: until then every
    /// event of every block was heard, and the outbox calls unknown only what a later transaction has overtaken.
    pub fn view(&mut self, view: &View, now: u64, patience: Patience, notes: &mut Vec<Note>) {
        let mut lost = Vec::new();
        self.flights.retain(|_, flight| match flight.state {
            State::Sent => true,
            State::Landed { block } => block > view.number,
            State::Unknown { .. } if shows(flight, view) => false,
            State::Unknown { since } => {
                let given_up = now >= since.saturating_add(patience.unknown);
                if given_up {
                    lost.push(flight.task);
                }
                !given_up
            }
        });
        for task in lost {
            self.back_off(task, now, patience);
            notes.push(Note::TaskLost { task });
        }
        self.backoffs.retain(|task, b| b.until + patience.longest.saturating_mul(8) > now || is_one_of_a_kind(*task));
    }

    /// A new epoch: what the old operator signed has no effect any more.
    pub fn clear(&mut self) {
        self.flights.clear();
        self.backoffs.clear();
    }

    /// The next time at which something here changes by itself.
    pub fn wake_at(&self, now: u64, patience: Patience) -> Option<u64> {
        let landed = self.flights.values().map(|f| match f.state {
            State::Sent => u64::MAX,
            State::Landed { .. } => now + 1,
            State::Unknown { since } => since.saturating_add(patience.unknown).max(now + 1),
        });
        let held = self.backoffs.values().map(|b| b.until).filter(|until| *until > now);
        landed.chain(held).min().filter(|at| *at != u64::MAX)
    }
}

/// A beat or a move that comes too late costs the life, a transaction more costs gas: these are repeated evenly.
fn is_urgent(task: Task) -> bool {
    matches!(task, Task::Heartbeat | Task::Announce | Task::Handover)
}

/// Tasks about single objects (leases, payments) leave the list when they are long over; the others are few.
fn is_one_of_a_kind(task: Task) -> bool {
    !matches!(task, Task::TopUp { .. } | Task::Release { .. } | Task::Refund { .. })
}

/// Whether the view proves that the flight arrived.
fn shows(flight: &Flight, view: &View) -> bool {
    let slots = [&view.active, &view.standby, &view.draining];
    match flight.output {
        Output::Rent { .. } => view.standby.is_some(),
        Output::Release { lease } => slots.into_iter().flatten().all(|l| l.id != lease),
        Output::Heartbeat { .. } => view.last_heartbeat >= flight.sent_at,
        Output::Checkpoint => view.checkpoint_seq > flight.seq,
        Output::Announce { lease } => view.announced == lease,
        Output::WindDown => view.stage >= Stage::WindingDown,
        Output::Close => view.stage == Stage::Closed,
        // These show as events, or by a new epoch, or not at all.
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hosting::tests::view;

    const PATIENCE: Patience = Patience { first: 2, longest: 10, unknown: 60 };
    const ID: OutputId = OutputId { lsn: 7, index: 0 };

    fn beating() -> Flights {
        let mut flights = Flights::default();
        assert!(flights.may(Task::Heartbeat, 100));
        flights.send(ID, &Output::Heartbeat { standby_answered: false }, 100, 0);
        flights
    }

    fn done(flights: &mut Flights, outcome: Outcome, now: u64) -> Vec<String> {
        let mut notes = Vec::new();
        flights.done(ID, outcome, now, PATIENCE, &mut notes);
        notes.iter().map(ToString::to_string).collect()
    }

    fn look(flights: &mut Flights, number: u64, last_heartbeat: u64, now: u64) -> Vec<String> {
        let mut notes = Vec::new();
        let view = View { number, last_heartbeat, ..view(vec![]) };
        flights.view(&view, now, PATIENCE, &mut notes);
        notes.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_landed_is_not_asked_for_again_before_a_view_can_show_it() {
        let mut flights = beating();
        assert_eq!(flights.unfinished().len(), 1);
        done(&mut flights, Outcome::Done { block: 5 }, 101);
        assert_eq!(flights.unfinished(), vec![], "it has its end");
        look(&mut flights, 4, 0, 101);
        assert!(!flights.may(Task::Heartbeat, 101));
        assert_eq!(flights.wake_at(101, PATIENCE), Some(102), "the next block may show it");
        look(&mut flights, 5, 101, 102);
        assert!(flights.may(Task::Heartbeat, 102));
    }

    #[test]
    fn failures_wait_twice_as_long_each_time_up_to_a_bound_and_a_success_forgets_them() {
        let mut flights = Flights::default();
        let mut waits = Vec::new();
        for _ in 0..6 {
            flights.send(ID, &Output::Refuel, 100, 0);
            done(&mut flights, Outcome::Failed { reason: "no gas".into() }, 100);
            waits.push((101..200).find(|now| flights.may(Task::Refuel, *now)).expect("bounded") - 100);
        }
        assert_eq!(waits, [2, 4, 8, 10, 10, 10]);
        flights.send(ID, &Output::Refuel, 110, 0);
        done(&mut flights, Outcome::Done { block: 1 }, 111);
        assert_eq!(flights.fails(Task::Refuel), 0);
    }

    #[test]
    fn the_unknown_waits_for_the_view_and_not_for_ever() {
        let mut flights = beating();
        let said = done(&mut flights, Outcome::Unknown, 101);
        assert_eq!(said, ["nobody knows what became of a heartbeat: waits for the chain to tell"]);
        look(&mut flights, 5, 99, 160);
        assert!(!flights.may(Task::Heartbeat, 160), "an older heartbeat is no trace of this one");
        let mut seen = flights.clone();
        look(&mut seen, 6, 102, 160);
        assert!(seen.may(Task::Heartbeat, 160));
        assert_eq!(look(&mut flights, 6, 99, 161), ["the chain shows no trace of a heartbeat: tries again"]);
        assert!(flights.may(Task::Heartbeat, 163));
    }

    #[test]
    #[should_panic(expected = "a second heartbeat")]
    fn two_for_one_object_are_a_bug() {
        beating().send(OutputId { lsn: 8, index: 0 }, &Output::Heartbeat { standby_answered: true }, 101, 0);
    }
}
