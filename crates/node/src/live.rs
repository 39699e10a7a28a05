//! A living agent on this host: journal, folded state, and what waits for the disk.

use crate::error::{Error, Result};
use crate::memory::{KeyRing, Pages};
use crate::replicate::Shipping;
use crate::state::{Recorded, Said, State};
use economy::{Output, OutputId};
use journal::{Journal, Lsn, OnDurable};
use pay::book::BookOutput;
use std::collections::VecDeque;
use std::path::Path;
use store::checkpoint::Checkpoint;

/// What may leave the process once its record is durable.
pub enum Effect {
    Life(OutputId, Output),
    Book(BookOutput),
    /// A waiting HTTP handler or peer.
    Reply(Box<dyn FnOnce() + Send>),
}

pub struct Live {
    pub state: State,
    pub journal: Journal,
    pub durable: Lsn,
    /// In the order of their LSNs.
    pending: VecDeque<(Lsn, Effect)>,
    pub shipping: Shipping,
    pub ring: KeyRing,
    /// Digest of the last checkpoint on chain.
    pub sealing_for: Option<[u8; 32]>,
    /// That checkpoint, once it is known here: the next one may rest on its snapshot.
    pub stands: Option<Box<Checkpoint>>,
    /// The life asked to be woken at this chain time.
    pub wake_at: u64,
    /// What was last fed, to feed again only when something changed.
    pub fed: Option<economy::View>,
    /// Calls whose record is not replicated yet: (lsn, micro-USDC).
    pub unreplicated: VecDeque<(Lsn, u128)>,
    /// Nothing is appended any more: the journal is being handed over, or the disk failed.
    pub sealed: bool,
}

impl Live {
    pub fn new(state: State, journal: Journal, durable: Lsn, ring: KeyRing) -> Self {
        Self {
            state,
            journal,
            durable,
            pending: VecDeque::new(),
            shipping: Shipping::default(),
            ring,
            sealing_for: None,
            stands: None,
            wake_at: 0,
            fed: None,
            unreplicated: VecDeque::new(),
            sealed: false,
        }
    }

    /// Opens the journal under `dir` and folds it. `None` if there is none.
    ///
    /// Fails with `Corrupt` where a record's outputs differ from those recorded beside it: the code changed
    /// without saying so, or the file did.
    pub fn replay(
        dir: &Path,
        start: impl FnOnce() -> State,
        on_durable: OnDurable,
    ) -> Result<Option<(State, Journal)>> {
        if !dir.exists() {
            return Ok(None);
        }
        let opened = Journal::open(dir, journal::Options::default(), on_durable)
            .map_err(|e| Error::corrupt(format!("the journal in {} does not open", dir.display())).caused_by(e))?;
        if let Some(torn) = &opened.torn {
            tracing::info!(?torn, "a crash had left the last record unfinished: it was never acknowledged");
        }
        let mut state = match &opened.snapshot {
            Some(snapshot) => State::decode(&snapshot.bytes)?,
            None => start(),
        };
        for record in &opened.records {
            let recorded = Recorded::decode(&record.payload)?;
            let said = state.apply(record.lsn, record.time, &recorded);
            if said.digest() != record.outputs_digest {
                return Err(Error::corrupt(format!(
                    "replay differs at record {}: the journal was written by other code",
                    record.lsn
                )));
            }
        }
        Ok(Some((state, opened.journal)))
    }

    /// Folds and appends one input. What it made the machines say waits for the disk.
    pub fn record(&mut self, now: u64, recorded: &Recorded) -> Result<Lsn> {
        if self.sealed {
            return Err(Error::superseded("this journal is closed: the agent lives elsewhere"));
        }
        let lsn = self.journal.next_lsn();
        let said = self.state.apply(lsn, now, recorded);
        let written = self
            .journal
            .append(recorded.kind(), now, said.digest(), &recorded.encode())
            .map_err(|e| Error::retry("the journal does not take records").caused_by(e))?;
        assert_eq!(written, lsn, "the journal numbers records without gaps");
        self.queue(lsn, said);
        Ok(lsn)
    }

    fn queue(&mut self, lsn: Lsn, said: Said) {
        for (id, output) in said.life {
            self.pending.push_back((lsn, Effect::Life(id, output)));
        }
        for output in said.book {
            self.pending.push_back((lsn, Effect::Book(output)));
        }
    }

    /// Applies records that another node wrote; their effects were that node's.
    pub fn import(&mut self, exported: &[u8]) -> Result<()> {
        let records = self
            .journal
            .import(exported)
            .map_err(|e| Error::corrupt("a run of records from the active node does not fit").caused_by(e))?;
        for record in records {
            let recorded = Recorded::decode(&record.payload)?;
            let said = self.state.apply(record.lsn, record.time, &recorded);
            if said.digest() != record.outputs_digest {
                return Err(Error::corrupt(format!("record {} folds differently here", record.lsn)));
            }
        }
        Ok(())
    }

    /// Runs `reply` once `lsn` is durable.
    pub fn when_durable(&mut self, lsn: Lsn, reply: impl FnOnce() + Send + 'static) {
        self.pending.push_back((lsn, Effect::Reply(Box::new(reply))));
    }

    /// Everything that may leave now.
    pub fn release(&mut self) -> Vec<Effect> {
        let mut out = Vec::new();
        while self.pending.front().is_some_and(|(lsn, _)| *lsn <= self.durable) {
            out.extend(self.pending.pop_front().map(|(_, effect)| effect));
        }
        out
    }

    /// Income that rests on this host's disk alone, micro-USDC.
    pub fn exposure(&self) -> u128 {
        self.unreplicated.iter().map(|(_, amount)| amount).sum()
    }

    /// This checkpoint is on chain, with these pages.
    pub fn committed(&mut self, made: Box<Checkpoint>, pages: Pages) {
        self.ring.stands(&made, pages);
        self.sealing_for = Some(made.digest());
        // Records up to it are in the store, in its snapshot or in segments that it names.
        self.replicated(made.lsn);
        self.shipping.sent.retain(|segment| segment.last_lsn > made.lsn);
        self.stands = Some(made);
    }

    pub fn replicated(&mut self, lsn: Lsn) {
        self.shipping.replicated_lsn = self.shipping.replicated_lsn.max(lsn);
        while self.unreplicated.front().is_some_and(|(l, _)| *l <= self.shipping.replicated_lsn) {
            self.unreplicated.pop_front();
        }
    }
}
