//! A living agent on this host: journal, folded state, and what waits for the disk.

use crate::error::{Error, Result};
use crate::memory::{KeyRing, Pages};
use crate::replay::{Folded, Replay, Snapshotting};
use crate::replicate::Shipping;
use crate::state::{Recorded, Said, State};
use economy::{Output, OutputId};
use journal::{Gate, Journal, Lsn, OnDurable};
use pay::book::BookOutput;
use std::path::Path;
use store::checkpoint::Checkpoint;

/// What may leave the process once its record is durable.
pub enum Effect {
    Life(OutputId, Output),
    Book(BookOutput),
    /// A waiting HTTP handler or peer.
    Reply(Reply),
}

type Reply = Box<dyn FnOnce() + Send>;

/// A start folds so many records in a second: 10,000 took 276 ms (docs/decisions/0039), in a development build.
const SNAPSHOT_RECORDS: u64 = 20_000;

/// Said to whoever asks meanwhile.
pub const BEHIND: &str = "this host's disk is slower than its customers; ask again in a moment";

/// Records that wait for the disk, bytes: some ten thousand calls, seconds of what a disk of 2026 takes. A guess, unmeasured.
const BACKLOG_BYTES_MAX: u64 = 4 << 20;

pub struct Live {
    pub state: State,
    pub journal: Journal,
    pub durable: Lsn,
    /// What waits until it may leave.
    gate: Gate<Effect>,
    pub shipping: Shipping,
    pub ring: KeyRing,
    /// Digest of the last checkpoint on chain.
    pub sealing_for: Option<[u8; 32]>,
    /// That checkpoint, once it is known here: the next one may rest on its snapshot.
    pub stands: Option<Box<Checkpoint>>,
    /// The first record that must stay on this disk.
    needed: Lsn,
    /// The life asked to be woken at this chain time.
    pub wake_at: u64,
    /// What was last fed, to feed again only when something changed.
    pub fed: Option<economy::View>,
    /// Nothing is appended any more: the journal is being handed over, or the disk failed.
    pub sealed: bool,
    /// A local snapshot is being made.
    snapshotting: bool,
    /// Of the last local snapshot that was begun by this process.
    snapshot_lsn: Lsn,
    /// States are encoded on this thread: folding one anew failed.
    encodes_here: bool,
}

impl Live {
    pub fn new(state: State, journal: Journal, durable: Lsn, ring: KeyRing, exposure_max: u128) -> Self {
        Self {
            state,
            journal,
            durable,
            gate: Gate::new(exposure_max),
            shipping: Shipping::default(),
            ring,
            sealing_for: None,
            stands: None,
            needed: 0,
            wake_at: 0,
            fed: None,
            sealed: false,
            snapshotting: false,
            snapshot_lsn: 0,
            encodes_here: false,
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
            self.gate.when_durable(lsn, Effect::Life(id, output));
        }
        for output in said.book {
            self.gate.when_durable(lsn, Effect::Book(output));
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

    /// Nothing is durable any more: what waits for the disk never leaves, and whoever waits for it hears no more.
    pub fn give_up(&mut self) {
        self.sealed = true;
        self.gate.give_up();
    }

    /// Runs `reply` once `lsn` is durable.
    pub fn when_durable(&mut self, lsn: Lsn, reply: impl FnOnce() + Send + 'static) {
        self.gate.when_durable(lsn, Effect::Reply(Box::new(reply)));
    }

    /// The next that may leave now.
    pub fn release(&mut self) -> Option<Effect> {
        self.gate.release(self.durable)
    }

    /// What the book asked for and heard no end of, when a process begins to lead: asked for again as if that were new.
    pub fn again(&mut self, output: BookOutput) {
        let waits = |effect: &Effect| matches!(effect, Effect::Book(waiting) if *waiting == output);
        if !self.gate.held().any(|(_, effect)| waits(effect)) {
            self.gate.when_durable(self.journal.last_lsn(), Effect::Book(output));
        }
    }

    /// What the life asked for and heard no end of, when a process begins to lead: what may be asked for again at once.
    ///
    /// If a handover may be mined, what came after it waited for the successor's disk, or would have: it waits here, until
    /// the successor has this journal to its present end or the handover is over.
    pub fn unfinished(&mut self, now: u64) -> Vec<(OutputId, Output)> {
        let waits = |id: &OutputId| {
            let same = |effect: &Effect| matches!(effect, Effect::Life(waiting, _) if waiting == id);
            self.gate.held().any(|(_, effect)| same(effect))
        };
        let mut all = self.state.agent.unfinished();
        all.retain(|(id, _)| !waits(id));
        let Some((handover, valid_until)) = self.state.agent.handover().filter(|(_, until)| now <= *until) else {
            return all;
        };
        self.gate.hands_over_still(valid_until);
        let last = self.journal.last_lsn();
        for (id, output) in all.extract_if(.., |(id, _)| *id > handover) {
            self.gate.when_durable(last, Effect::Life(id, output));
        }
        all
    }

    /// Another node follows from the beginning of what it was given.
    pub fn follow_anew(&mut self) {
        self.gate.follow_anew();
    }

    /// The follower has everything up to `lsn` on its disk. It is shipped all the same: a follower can be lost.
    pub fn followed_to(&mut self, lsn: Lsn) {
        let followed = self.gate.followed_to(lsn, self.durable);
        self.is_elsewhere(followed);
    }

    /// A handover is being sent, and may be mined until `valid_until`, chain seconds. Without a follower nothing is waited
    /// for: the successor then restores what is in the store.
    pub fn hand_over(&mut self, valid_until: u64) {
        self.gate.hand_over(valid_until);
    }

    /// It was not mined, and cannot be any more; or this node went on all the same: its own disk is enough again.
    pub fn hand_over_is_over(&mut self, now: u64) -> bool {
        let is_over = self.gate.hand_over_is_over(now);
        if is_over {
            self.replicated(self.shipping.replicated_lsn);
        }
        is_over
    }

    /// Income that rests on this host's disk alone, micro-USDC.
    pub fn exposure(&self) -> u128 {
        self.gate.exposure()
    }

    /// Somebody waits until records are replicated.
    pub fn is_awaited(&self) -> bool {
        self.gate.is_awaited()
    }

    /// Runs `reply` once the record of a call of at most `amount` is durable, and replicated too while more than may be
    /// would rest on this host's disk alone.
    pub fn when_safe(&mut self, lsn: Lsn, amount: u128, reply: impl FnOnce() + Send + 'static) {
        self.gate.when_safe(lsn, amount, Effect::Reply(Box::new(reply)));
    }

    /// This checkpoint is on chain, with these pages.
    pub fn committed(&mut self, made: Box<Checkpoint>, pages: Pages) {
        self.ring.stands(&made, pages);
        // After a reorganisation the checkpoint before is the last one again, and a follower asks for what came after it.
        self.needed = self.stands.as_ref().map_or(0, |before| before.lsn + 1);
        self.sealing_for = Some(made.digest());
        // Records up to it are in the store, in its snapshot or in segments that it names.
        self.replicated(made.lsn);
        self.shipping.sent.retain(|segment| segment.last_lsn > made.lsn);
        self.stands = Some(made);
    }

    /// The state as of now, which a thread beside this one encodes.
    pub fn folded(&self) -> Folded {
        let replay = (!self.encodes_here).then(|| Replay::to(self.journal.reader(), self.journal.last_lsn())).flatten();
        replay.map_or_else(|| Folded::Here(self.state.encode()), Folded::Anew)
    }

    /// A snapshot of now, to be made beside this thread; `None` while one is being made. Tell [`Live::snapshot_made`].
    pub fn snapshot(&mut self) -> Option<Snapshotting> {
        if std::mem::replace(&mut self.snapshotting, true) {
            return None;
        }
        // Of now, not of a checkpoint: it only has to be consistent with its own number.
        self.snapshot_lsn = self.journal.last_lsn();
        let (lsn, needed) = (self.journal.last_lsn(), self.needed.min(self.shipping.replicated_lsn + 1));
        Some(Snapshotting { reader: self.journal.reader(), lsn, state: self.folded(), needed })
    }

    /// A snapshot of now, where a start would have to fold many records: commits, which bring one, may stay away for days.
    pub fn snapshot_when_long(&mut self) -> Option<Snapshotting> {
        let is_long = self.journal.last_lsn().saturating_sub(self.snapshot_lsn) >= SNAPSHOT_RECORDS;
        if is_long && !self.sealed { self.snapshot() } else { None }
    }

    /// Whether the disk takes records more slowly than they come: then nothing new is sold.
    pub fn is_behind(&self) -> bool {
        self.journal.durable().backlog_bytes() > BACKLOG_BYTES_MAX
    }

    pub fn snapshot_made(&mut self, made: &Result<()>) {
        self.snapshotting = false;
        if let Err(e) = made {
            tracing::warn!(error = %net::chain_of(e), "no snapshot: a start reads more of the journal");
            self.cannot_fold_anew(e);
        }
    }

    /// What the disk holds does not lead to this state: from now on it is encoded on the thread that has it.
    pub fn cannot_fold_anew(&mut self, why: &Error) {
        self.encodes_here |= why.kind == crate::error::Kind::Corrupt;
    }

    /// Records up to `lsn` are in the store, and whoever restores finds them.
    pub fn replicated(&mut self, lsn: Lsn) {
        self.shipping.replicated_lsn = self.shipping.replicated_lsn.max(lsn);
        self.is_elsewhere(self.shipping.replicated_lsn);
    }

    /// Records up to `lsn` are on another disk than this one.
    fn is_elsewhere(&mut self, lsn: Lsn) {
        for effect in self.gate.replicated_to(lsn, self.durable) {
            // Nothing else waits for a replica.
            if let Effect::Reply(reply) = effect {
                reply();
            }
        }
    }
}

#[cfg(test)]
mod journals;

#[cfg(test)]
mod tests {
    use super::*;
    use economy::Input;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    /// With a bound of 100, and how many replies were given.
    fn live(dir: &Path) -> (Live, Arc<AtomicU32>) {
        let journal = Journal::create(dir, journal::Options::default(), Box::new(|_| ())).unwrap();
        (Live::new(crate::genesis::for_tests(), journal, 0, KeyRing::default(), 100), Arc::default())
    }

    fn record(live: &mut Live) -> Lsn {
        live.record(1, &Recorded::Life(Input::Owed(Vec::new()))).unwrap()
    }

    fn counts(count: &Arc<AtomicU32>) -> impl FnOnce() + Send + 'static {
        let count = count.clone();
        move || {
            count.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// What the main loop does when the disk has it.
    fn durable(live: &mut Live, lsn: Lsn) {
        live.durable = lsn;
        while let Some(effect) = live.release() {
            if let Effect::Reply(reply) = effect {
                reply();
            }
        }
    }

    #[test]
    fn nothing_leaves_before_its_record_is_on_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        let (mut live, given) = live(dir.path());
        let (first, second) = (record(&mut live), record(&mut live));
        live.when_safe(first, 10, counts(&given));
        live.when_safe(second, 10, counts(&given));
        assert!(live.release().is_none());
        durable(&mut live, first);
        assert_eq!(given.load(Ordering::SeqCst), 1);
        durable(&mut live, second);
        assert_eq!(given.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn while_a_handover_is_on_its_way_what_leaves_is_on_both_disks() {
        let dir = tempfile::tempdir().unwrap();
        let (mut live, given) = live(dir.path());
        let lsns: Vec<Lsn> = (0..5).map(|_| record(&mut live)).collect();
        // Nobody follows: this disk is enough.
        live.hand_over(100);
        live.when_safe(lsns[0], 1, counts(&given));
        durable(&mut live, lsns[0]);
        assert_eq!(given.load(Ordering::SeqCst), 1);
        live.followed_to(lsns[0]);
        live.hand_over(100);
        live.when_safe(lsns[1], 1, counts(&given));
        live.when_safe(lsns[2], 1_000, counts(&given));
        durable(&mut live, lsns[2]);
        assert_eq!(given.load(Ordering::SeqCst), 1, "the successor would not know of it");
        // The store has it, but a successor that followed looks at no store.
        live.replicated(lsns[2]);
        assert_eq!(given.load(Ordering::SeqCst), 1);
        live.followed_to(lsns[1]);
        durable(&mut live, lsns[2]);
        assert_eq!(given.load(Ordering::SeqCst), 2);
        live.followed_to(lsns[2]);
        durable(&mut live, lsns[2]);
        assert_eq!(given.load(Ordering::SeqCst), 3);
        // Never mined, and the successor is gone: customers are not kept waiting for ever.
        live.when_safe(lsns[3], 1, counts(&given));
        durable(&mut live, lsns[3]);
        assert!(!live.hand_over_is_over(100), "it may still be mined");
        assert!(live.hand_over_is_over(101) && !live.hand_over_is_over(102));
        durable(&mut live, lsns[3]);
        assert_eq!(given.load(Ordering::SeqCst), 4);
    }

    #[test]
    fn at_the_bound_of_exposure_a_call_waits_for_a_replica_and_for_the_disk_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let (mut live, given) = live(dir.path());
        let lsns: Vec<Lsn> = (0..4).map(|_| record(&mut live)).collect();
        live.when_safe(lsns[0], 60, counts(&given));
        live.when_safe(lsns[1], 60, counts(&given));
        assert_eq!(live.exposure(), 120, "promised or not, it counts");
        durable(&mut live, lsns[1]);
        assert_eq!(given.load(Ordering::SeqCst), 1, "the second would expose 120 of 100");
        live.replicated(lsns[0]);
        assert_eq!((given.load(Ordering::SeqCst), live.exposure()), (2, 60), "there is room again");
        live.when_safe(lsns[2], 60, counts(&given));
        live.when_safe(lsns[3], 60, counts(&given));
        // Room came before the disk had the third and the fourth: no byte yet.
        live.replicated(lsns[1]);
        live.replicated(lsns[2]);
        assert_eq!(given.load(Ordering::SeqCst), 3, "what is replicated is on a disk");
        durable(&mut live, lsns[3]);
        assert_eq!(given.load(Ordering::SeqCst), 4);
    }

    /// The follower may be lost like this host, and a restore reads the store alone.
    #[test]
    fn what_a_follower_has_lets_answers_out_and_is_shipped_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let (mut live, given) = live(dir.path());
        let lsns: Vec<Lsn> = (0..3).map(|_| record(&mut live)).collect();
        live.replicated(lsns[0]);
        for lsn in &lsns[1..] {
            live.when_safe(*lsn, 100, counts(&given));
        }
        durable(&mut live, lsns[2]);
        assert_eq!(given.load(Ordering::SeqCst), 1, "the second would expose 200 of 100");
        live.followed_to(lsns[2]);
        assert_eq!((given.load(Ordering::SeqCst), live.exposure(), live.is_awaited()), (2, 0, false));
        assert_eq!(live.shipping.replicated_lsn, lsns[0]);
        // A segment that was on its way says less than the follower.
        live.replicated(lsns[1]);
        assert_eq!((live.shipping.replicated_lsn, live.exposure()), (lsns[1], 0));
    }
}
