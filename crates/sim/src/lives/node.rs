//! One node, as far as it is pure: journal, agent, book of payments, outbox and log reader, wired as a node wires them.
//!
//! **Invariant:** what was recorded is folded again after a crash, and every record must give the outputs that it gave.
//! **Invariant:** nothing leaves before the record that caused it is on the disk ([`Disk`]).
//! **Invariant:** the outbox is kept before anything is sent.

use super::chain::{Chain, Sight, Tx, entry};
use super::channels::{Ended, Errand};
use super::disk::Disk;
use crate::{Chance, glance};
use alloy::primitives::{Address, B256, Bytes, keccak256};
use chain::bindings::{MarketEvent, State, TreasuryEvent};
use chain::logs::{ChainLog, Event, LogCore, LogItem, Sources, Step};
use chain::outbox::{self, Outbox, SendError};
use chain::treasury::calls;
use economy::{
    Agent, ChainEvent, ChainEventKind, Genesis, Input, Outcome, Output, OutputId, Owed, Price, Task, Usdc, View,
    outputs_digest,
};
use journal::Gate;
use pay::book::ChannelOutput;
use pay::book::channels::ChannelInput;
use pay::scheme::channel::{BATCH_SETTLEMENT, ChannelId};
use pay::{BookInput, BookOutput, ChannelBook, RequestId, TransferMethod};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};

/// What the endpoint does in this moment.
#[derive(Clone, Copy, Debug, Default)]
pub struct Endpoint {
    pub is_down: bool,
    /// Blocks behind.
    pub lag: usize,
    /// Of a thousand requests, so many are lost or answered wrongly.
    pub drops: u64,
    pub lies: u64,
}

/// The kind bytes of a node's records.
const LIFE: u8 = 1;
const BOOK: u8 = 2;
/// Every block up to this one was read.
const READ: u8 = 6;
/// What passes between two looks on the node's own clock.
pub const CLOCK_STEP_MS: u64 = 2_000;
/// States of the log reader, at most: a follower that is further behind begins with its checkpoint's.
const LOGS_KEPT: usize = 16;

/// In which moment of a commit the power fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    Writing,
    /// It is on the disk, and nobody was told.
    Synced,
}

/// What the chain showed when the agent last looked, for the auditor: with that its books must agree.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    pub balance: Usdc,
    pub escrow: Usdc,
    /// What the market owes.
    pub owed: u128,
}

/// What a successor starts from, as a checkpoint holds it: the journal's first records, and the log reader then.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    pub last_lsn: u64,
    logs: Vec<u8>,
}

/// What leaves a node once its gate opens, with the record that caused it.
#[derive(Clone, Debug)]
enum Leaving {
    Tx(u64, outbox::Id, outbox::Request),
    Answer(u64, Answer),
}

/// To a customer, whose payment leaves with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Of the calls that were paid one by one, by their number.
    Exact { request: RequestId, number: usize },
    /// Micro-USDC: of this call, and of all on this channel.
    Channel { channel: ChannelId, price: u128, total: u128 },
}

/// What a successor is given.
pub enum Given {
    /// The whole journal.
    Whole,
    /// What it followed.
    Followed(Disk),
    /// An acknowledged checkpoint, by its number.
    Checkpoint(u64),
}

/// What the end of a journal leaves half done.
#[derive(Clone, Debug, Default)]
struct Half {
    /// Of blocks of which it is not recorded that they were read, and what takes their payments back.
    events: Vec<ChainEvent>,
    payments: Vec<BookInput>,
    /// Income that the life has not heard of.
    unposted: Vec<(u64, Usdc)>,
}

#[derive(Clone, Debug)]
pub struct Node {
    pub key: Address,
    pub lease: u64,
    genesis: Genesis,
    sources: Sources,
    /// The block in which this life begins.
    born: u64,
    pub agent: Agent,
    pub book: ChannelBook,
    pub disk: Disk,
    /// The disk takes no writes: nothing is served or signed.
    pub is_fenced: bool,
    /// The power fails in this moment of a commit, after so many others.
    pub power_fails: Option<(u64, Cut)>,
    /// The last record that was said to be durable, and the states then; kept with the rest.
    acknowledged: Option<(u64, [[u8; 32]; 2])>,
    /// A bug that was planted: what is recorded is taken for durable at once.
    pub leaks: bool,
    gate: Gate<Leaving>,
    /// A handover is on its way: after which record, and until when it may be mined, chain seconds.
    pub hands_over: Option<(u64, u64)>,
    /// The last record that this successor was given.
    pub began_with: u64,
    /// Of the last thing that left meanwhile.
    left_lsn: u64,
    /// Others that were planted: a handover on its way holds nothing back, or does for ever.
    pub hurries: bool,
    pub stays_shut: bool,
    /// Calls whose payment and answer have not left.
    pub held: BTreeSet<RequestId>,
    /// Answers that left, until they are taken.
    pub left: Vec<Answer>,
    /// Somebody has a token to follow by, and has said by it how far it is.
    pub is_followed: bool,
    is_acknowledged: bool,
    pub(super) outbox: Outbox,
    kept_outbox: Vec<u8>,
    /// Names of what the outbox has: ids of an epoch.
    sent: BTreeMap<outbox::Id, OutputId>,
    logs: LogCore,
    /// (last record, the log reader then), of late; the first of them is always on the disk.
    kept_logs: Vec<(u64, Vec<u8>)>,
    leases: BTreeSet<u64>,
    earned: BTreeSet<RequestId>,
    price: Option<Price>,
    /// By checkpoint number.
    pub memories: BTreeMap<u64, Memory>,
    /// Acts left until the process dies.
    pub dies_after: Option<u64>,
    /// Between which two acts it died.
    pub died_at: String,
    /// It may die in this look or the next: what it keeps is written down. Nobody reads it otherwise.
    pub keeps: bool,
    /// Of the last look, until it is taken.
    pub seen: Option<Seen>,
    pub told: Vec<String>,
    /// What the outbox said when something was submitted, to be done with the next head.
    answered: Vec<outbox::Output>,
    clock_ms: u64,
    /// Between two looks.
    pub clock_step_ms: u64,
    is_deaf: bool,
    pub(super) errands: BTreeMap<outbox::Id, Errand>,
    /// Over, and not seen in the channels yet: the block in which each was carried out.
    pub(super) unread: Vec<(Errand, Ended)>,
    pub(super) refunding: BTreeSet<ChannelId>,
    /// Refunds that were carried out, with the channel's nonce before each; and in which block they were missed since.
    pub(super) refunded: BTreeMap<ChannelId, (u64, Option<u64>)>,
    /// What a process before this one had on its way, and the last block in which some of it was carried out.
    pub(super) left_over: (BTreeSet<outbox::Id>, u64),
}

impl Node {
    /// The first process of a life.
    pub fn first(genesis: Genesis, chain: &Chain, is_deaf: bool) -> Self {
        let born = chain.blocks[0].head.number;
        let world = &chain.world;
        let sources = Sources { treasury: world.treasury, market: world.at.market, usdc: world.at.usdc };
        let logs = LogCore::new(sources, born);
        let mut node = Self::with(genesis, (sources, born), chain.state.operator, 1, Disk::new(), logs, is_deaf);
        node.boots(chain.now(), chain.state.epoch, false);
        node.syncs();
        node
    }

    fn with(
        genesis: Genesis,
        (sources, born): (Sources, u64),
        key: Address,
        lease: u64,
        disk: Disk,
        logs: LogCore,
        is_deaf: bool,
    ) -> Self {
        let outbox = Outbox::new(key, outbox::Options::new(1));
        Self {
            key,
            lease,
            agent: Agent::new(genesis.clone()),
            genesis,
            sources,
            born,
            book: ChannelBook::new(pay::book::Limits::default()),
            disk,
            is_fenced: false,
            power_fails: None,
            acknowledged: None,
            leaks: false,
            gate: Gate::new(u128::MAX),
            hands_over: None,
            began_with: 0,
            left_lsn: 0,
            hurries: false,
            stays_shut: false,
            held: BTreeSet::new(),
            left: Vec::new(),
            is_followed: false,
            is_acknowledged: false,
            kept_outbox: outbox.to_bytes(),
            outbox,
            sent: BTreeMap::new(),
            kept_logs: Vec::new(),
            logs,
            leases: BTreeSet::from([1]),
            earned: BTreeSet::new(),
            price: None,
            memories: BTreeMap::new(),
            dies_after: None,
            died_at: String::new(),
            keeps: false,
            seen: None,
            told: Vec::new(),
            answered: Vec::new(),
            clock_ms: 0,
            clock_step_ms: CLOCK_STEP_MS,
            is_deaf,
            errands: BTreeMap::new(),
            unread: Vec::new(),
            refunding: BTreeSet::new(),
            refunded: BTreeMap::new(),
            left_over: (BTreeSet::new(), 0),
        }
    }

    /// What one call costs; `None`: it sells nothing.
    pub fn call_price(&self) -> Option<Usdc> {
        self.price.map(|price| price.quote_up(200, 100))
    }

    /// The successor on another lease, with what it is given.
    ///
    /// # Errors
    /// That does not fold to what it was, or lacks what has left this node while the handover was on its way.
    pub fn successor(&self, chain: &Chain, given: Given) -> Result<Self, String> {
        let state = &chain.state;
        let restored = matches!(given, Given::Checkpoint(_));
        let mut disk = self.disk.clone();
        let nothing = || Memory { last_lsn: 0, logs: LogCore::new(self.sources, self.born).to_bytes() };
        let (mut records, memory) = match given {
            Given::Followed(follower) => {
                disk = follower;
                let records = disk.start().map_err(unreadable)?;
                if disk.last_lsn() < self.left_lsn {
                    return Err(format!(
                        "moving: what left with record {} is unknown to the successor, which follows to {}",
                        self.left_lsn,
                        disk.last_lsn()
                    ));
                }
                let (_, logs) = self.logs_at(disk.last_lsn());
                (records, Memory { last_lsn: disk.last_lsn(), logs })
            }
            Given::Whole => {
                let records = disk.start().map_err(unreadable)?;
                let (_, logs) = self.logs_at(disk.last_lsn());
                (records, Memory { last_lsn: disk.last_lsn(), logs })
            }
            Given::Checkpoint(seq) => {
                let records = disk.start().map_err(unreadable)?;
                // Nothing was ever acknowledged: a life that begins anew, with what the chain tells.
                (records, self.memories.get(&seq).cloned().unwrap_or_else(nothing))
            }
        };
        let logs_lsn = match restored {
            true => memory.last_lsn,
            false => self.logs_at(memory.last_lsn).0,
        };
        records.truncate(usize::try_from(memory.last_lsn).expect("small"));
        let logs = LogCore::from_bytes(&memory.logs, self.sources).expect("its own bytes");
        let lease = state.activeLease.to();
        let genesis = self.genesis.clone();
        let disk = Disk::with(records.clone());
        let mut next = Self::with(genesis, (self.sources, self.born), state.operator, lease, disk, logs, self.is_deaf);
        let half = next.fold_again(&records, logs_lsn)?;
        if memory.last_lsn == self.lsn() && next.agent.digest() != self.agent.digest() {
            return Err("journal: what was handed over folds to another state".to_owned());
        }
        let kept = self.memories.iter().filter(|(_, m)| m.last_lsn <= memory.last_lsn);
        next.memories = kept.map(|(seq, memory)| (*seq, memory.clone())).collect();
        // Who waits for an answer that was made asks again, and gets it from whoever has the record.
        next.left = self.held_answers().filter(|(lsn, _)| *lsn <= memory.last_lsn).map(|(_, answer)| answer).collect();
        next.began_with = memory.last_lsn;
        next.boots(chain.now(), state.epoch, restored);
        next.finish(chain, half);
        for input in next.book.interrupted(chain.now()) {
            next.pay(chain.now(), input);
        }
        next.resume_channels(chain);
        next.syncs();
        Ok(next)
    }

    fn held_answers(&self) -> impl Iterator<Item = (u64, Answer)> {
        self.gate.held().filter_map(|(_, leaving)| match leaving {
            Leaving::Answer(lsn, answer) => Some((*lsn, *answer)),
            Leaving::Tx(..) => None,
        })
    }

    /// Another process, which nobody waits for but those whose answer was made, in one of these records.
    fn asked_again(&mut self, keeps: impl Fn(u64) -> bool) {
        let held: Vec<(u64, Answer)> = self.held_answers().filter(|(lsn, _)| keeps(*lsn)).collect();
        (self.gate, self.held) = (Gate::new(u128::MAX), BTreeSet::new());
        for (lsn, answer) in held {
            if let Answer::Exact { request, .. } = answer {
                self.held.insert(request);
            }
            self.gate.when_durable(lsn, Leaving::Answer(lsn, answer));
        }
    }

    /// The process died, or the disk takes writes again. The same host starts another one from what was kept.
    ///
    /// # Errors
    /// What was acknowledged is not what is on the disk.
    pub fn restarts(&mut self, chain: &Chain) -> Result<(), String> {
        // What was written when only the process died, the machine still has; without power it is gone already.
        if !self.is_fenced {
            self.disk.sync();
        }
        let (recorded, told, before) = (self.lsn(), self.disk.durable(), self.agent.digest());
        let records = self.disk.start().map_err(|e| format!("journal: its own start refuses it: {e}"))?;
        let left = self.lsn();
        if left < told {
            return Err(format!("journal: records up to {told} were acknowledged, and {left} are left"));
        }
        if let Some(early) = self.sent.values().find(|id| id.lsn > left) {
            return Err(format!("output commit: {early:?} left the process, and the journal ends at {left}"));
        }
        self.outbox = Outbox::from_bytes(&self.kept_outbox, self.key, outbox::Options::new(1)).expect("its own bytes");
        let (logs_lsn, logs) = self.kept_logs_at(left);
        self.logs = LogCore::from_bytes(&logs, self.sources).expect("its own bytes");
        self.kept_logs = vec![(logs_lsn, logs)];
        // Whoever waits for an answer that was made asks again.
        self.asked_again(|lsn| lsn <= left);
        // Nobody has followed this process yet.
        (self.is_followed, self.is_acknowledged) = (false, false);
        (self.dies_after, self.power_fails, self.is_fenced, self.keeps) = (None, None, false, self.disk.is_full);
        let half = self.fold_again(&records, logs_lsn)?;
        if left == recorded && self.agent.digest() != before {
            return Err("journal: folded again, it ends in another state".to_owned());
        }
        if left < recorded {
            // Of the look that is lost nothing is known.
            self.seen = None;
            self.answered.clear();
        }
        self.hands_over_still(chain.now());
        self.boots(chain.now(), chain.state.epoch, false);
        self.finish(chain, half);
        if left < recorded {
            let tasks = self.say_owed(chain.now());
            self.submit_all(tasks, chain);
        }
        self.resume_channels(chain);
        // What was asked for and has no end is asked for again, under the same name.
        for (id, output) in self.agent.unfinished() {
            self.submit(id, &output, chain);
        }
        self.syncs();
        Ok(())
    }

    /// `logs_lsn`: up to which record the log reader knows what was read.
    fn fold_again(&mut self, records: &[journal::Record], logs_lsn: u64) -> Result<Half, String> {
        self.agent = Agent::new(self.genesis.clone());
        self.book = ChannelBook::new(pay::book::Limits::default());
        (self.price, self.earned, self.leases) = (None, BTreeSet::new(), BTreeSet::from([1]));
        let mut half = Half::default();
        for record in records {
            let lsn = record.lsn;
            let digest = match record.kind {
                LIFE => {
                    let input: Input =
                        borsh::from_slice(&record.payload).map_err(|e| format!("journal: {lsn}: {e}"))?;
                    if let Input::Chain(events) = &input {
                        self.leases.extend(events.iter().filter_map(rented));
                    }
                    if let Input::Chain(events) = &input
                        && lsn > logs_lsn
                    {
                        let emitted = events.iter().filter(|e| !matches!(e.kind, ChainEventKind::Reverted(_)));
                        half.events.extend(emitted.cloned());
                    }
                    if let Input::Earned { last_lsn, .. } = &input {
                        half.unposted.retain(|(earned, _)| earned > last_lsn);
                    }
                    outputs_digest(&self.agent.step(record.time, lsn, input))
                }
                BOOK => {
                    let input: BookInput =
                        borsh::from_slice(&record.payload).map_err(|e| format!("journal: {lsn}: {e}"))?;
                    half.payments.extend(taking_back(&input).filter(|_| lsn > logs_lsn));
                    let outputs = self.book.apply(input);
                    for output in &outputs {
                        match output {
                            BookOutput::Earned { request, amount } if self.earned.insert(*request) => {
                                half.unposted.push((lsn, *amount));
                            }
                            BookOutput::Channel(ChannelOutput::Charged { amount, .. }) => {
                                half.unposted.push((lsn, *amount));
                            }
                            _ => {}
                        }
                    }
                    book_digest(&outputs)
                }
                // How far it had read: its log reader says more.
                _ => [0; 32],
            };
            if digest != record.outputs_digest {
                return Err(format!("journal: record {lsn} folds differently"));
            }
            if let Some((_, states)) = self.acknowledged.filter(|(at, _)| *at == lsn)
                && states != self.states()
            {
                return Err(format!("journal: the state that was acknowledged with record {lsn} was another one"));
            }
        }
        Ok(half)
    }

    fn states(&self) -> [[u8; 32]; 2] {
        [self.agent.digest(), self.book.digest()]
    }

    /// Half-read blocks are read again, whatever they are then; the life hears of the rest of its income.
    fn finish(&mut self, chain: &Chain, half: Half) {
        let now = chain.now();
        for (lsn, sum) in half.unposted {
            let earned = Input::Earned { first_lsn: lsn, last_lsn: lsn, count: 1, tokens: 100, sum };
            let outputs = self.record(now, earned);
            let tasks = self.hear(now, outputs);
            self.submit_all(tasks, chain);
        }
        for input in half.payments.into_iter().rev() {
            let tasks = self.pay(now, input);
            self.submit_all(tasks, chain);
        }
        let reverted = |event: ChainEvent| ChainEvent {
            block: event.block,
            index: event.index,
            kind: ChainEventKind::Reverted(Box::new(event)),
        };
        let events: Vec<ChainEvent> = half.events.into_iter().rev().map(reverted).collect();
        if !events.is_empty() {
            let outputs = self.record(now, Input::Chain(events));
            let tasks = self.hear(now, outputs);
            self.submit_all(tasks, chain);
        }
    }

    // ---- the disk ----

    /// Whether all that is recorded is on the disk: before that nothing leaves. A disk that takes no writes fences the
    /// node, until it does.
    pub fn syncs(&mut self) -> bool {
        if self.is_fenced {
            return false;
        }
        let has_news = self.disk.has_news();
        if self.leaks {
            return true;
        }
        if !self.disk.sync() {
            self.told.push("the disk takes no writes: nothing is served or signed until it does".to_owned());
            (self.is_fenced, self.price, self.seen) = (true, None, None);
            return false;
        }
        if self.keeps && has_news {
            self.acknowledged = Some((self.lsn(), self.states()));
        }
        self.lets_go();
        true
    }

    /// The same, where the power may fail. False: it did, or the node is fenced.
    fn commits(&mut self, chance: &mut Chance) -> bool {
        if !self.disk.has_news() {
            return !self.is_fenced;
        }
        let cut = match &mut self.power_fails {
            Some((0, cut)) => Some(*cut),
            Some((left, _)) => {
                *left -= 1;
                None
            }
            None => None,
        };
        // A world in which what leaks does harm.
        let leaked = self.leaks && self.sent.values().any(|id| id.lsn > self.disk.durable());
        if cut == Some(Cut::Writing) || leaked {
            self.disk.loses_power(chance);
            self.died_at = "before syncing its records".to_owned();
            return false;
        }
        let synced = self.syncs();
        if synced && cut == Some(Cut::Synced) {
            self.died_at = "after syncing its records".to_owned();
            return false;
        }
        synced
    }

    /// What the log reader knew when this record was the last one, or before it: with which record it was.
    fn logs_at(&self, lsn: u64) -> (u64, Vec<u8>) {
        match lsn == self.lsn() && !self.is_fenced {
            true => (lsn, self.logs.to_bytes()),
            false => self.kept_logs_at(lsn),
        }
    }

    /// The same, as far as it was kept.
    fn kept_logs_at(&self, lsn: u64) -> (u64, Vec<u8>) {
        let known = self.kept_logs.iter().rfind(|(kept, _)| *kept <= lsn).cloned();
        let memories = self.memories.values().filter(|memory| memory.last_lsn <= lsn);
        let memory = memories.max_by_key(|memory| memory.last_lsn).map(|m| (m.last_lsn, m.logs.clone()));
        known.max(memory).unwrap_or_else(|| (0, LogCore::new(self.sources, self.born).to_bytes()))
    }

    // ---- the gate ----

    fn on_disk(&self) -> u64 {
        if self.leaks { self.lsn() } else { self.disk.durable() }
    }

    /// The announced successor has the memory's keys, and a token by which it follows.
    pub fn grants(&mut self) {
        (self.is_followed, self.is_acknowledged) = (true, false);
        self.gate.follow_anew();
        self.keep_logs();
    }

    /// A follower has everything up to this record.
    pub fn is_followed_to(&mut self, lsn: u64) {
        self.is_acknowledged |= lsn > 0;
        let (durable, mut opened) = (self.on_disk(), Vec::new());
        let followed = self.gate.followed_to(lsn, durable);
        opened.extend(self.gate.replicated_to(followed, durable));
        self.leave(opened);
        self.lets_go();
    }

    /// Whoever followed does no more.
    pub fn is_followed_anew(&mut self) {
        (self.is_followed, self.is_acknowledged) = (false, false);
    }

    fn lets_go(&mut self) {
        while let Some(leaving) = self.gate.release(self.on_disk()) {
            self.leave(vec![leaving]);
        }
    }

    fn leave(&mut self, opened: Vec<Leaving>) {
        let mut out = Vec::new();
        for leaving in opened {
            let lsn = match leaving {
                Leaving::Tx(lsn, id, request) => {
                    self.outbox.handle(self.clock_ms, outbox::Input::Submit { id, request }, &mut out);
                    lsn
                }
                Leaving::Answer(lsn, answer) => {
                    if let Answer::Exact { request, .. } = answer {
                        self.held.remove(&request);
                    }
                    self.left.push(answer);
                    lsn
                }
            };
            if self.hands_over.is_some_and(|(since, _)| lsn > since) {
                self.left_lsn = self.left_lsn.max(lsn);
            }
        }
        self.answered.extend(out);
    }

    /// A handover leaves; from now on what else does is on the successor's disk too, if one has followed this process.
    fn hands_over(&mut self, valid_until: u64) {
        // As the gate has it.
        if self.is_acknowledged || self.hands_over.is_some() {
            let since = self.hands_over.map_or(self.lsn(), |(since, _)| since);
            self.hands_over = Some((since, valid_until));
        }
        if !self.hurries {
            self.gate.hand_over(valid_until);
        }
    }

    /// A process that finds a handover on its way lets nothing out before its follower has asked (docs/decisions/0037).
    fn hands_over_still(&mut self, now: u64) {
        let Some((_, valid_until)) = self.agent.handover().filter(|(_, until)| now <= *until) else {
            (self.hands_over, self.left_lsn) = (None, 0);
            return;
        };
        let since = self.hands_over.map_or(self.lsn(), |(since, _)| since);
        self.hands_over = Some((since, valid_until));
        if !self.hurries {
            self.gate.hands_over_still(valid_until);
        }
    }

    /// The block that named a successor is gone: this process goes on where it closed. What the successor was given, `knew`
    /// records, it has answered.
    pub fn reinstated(&mut self, chain: &Chain, knew: u64) {
        self.asked_again(|lsn| lsn > knew);
        (self.is_followed, self.is_acknowledged) = (false, false);
        // Whoever follows next begins anew: of what left before the block that is gone, only this journal tells.
        self.left_lsn = 0;
        self.hands_over_still(chain.now());
        self.boots(chain.now(), chain.state.epoch, false);
        for (id, output) in self.agent.unfinished() {
            self.submit(id, &output, chain);
        }
        self.syncs();
    }

    /// A bug that was planted.
    pub fn forgets_all_but(&mut self, checkpoint_seq: u64) {
        let kept = self.memories.get(&checkpoint_seq).map_or(0, |memory| memory.last_lsn);
        self.disk = Disk::with(self.disk.records_to(kept));
    }

    /// Whether something waits though its record is on the disk and no handover is on its way. Of a fenced process all waits.
    pub fn waits_for_nothing(&self) -> bool {
        let durable = self.on_disk();
        !self.is_fenced && self.hands_over.is_none() && self.gate.held().any(|(lsn, _)| *lsn <= durable)
    }

    /// A call was served, and the last record is of it.
    pub fn answers(&mut self, answer: Answer) {
        if let Answer::Exact { request, .. } = answer {
            self.held.insert(request);
        }
        let lsn = self.lsn();
        self.gate.when_durable(lsn, Leaving::Answer(lsn, answer));
        self.lets_go();
    }

    fn boots(&mut self, now: u64, epoch: u64, restored: bool) {
        let outputs = self.record(now, Input::Booted { epoch, lease: self.lease, restored });
        self.hear(now, outputs);
        let outputs = self.record(now, Input::Throughput { milli_tokens_per_sec: 60_000 });
        self.hear(now, outputs);
    }

    fn record(&mut self, now: u64, input: Input) -> Vec<(OutputId, Output)> {
        let (lsn, payload) = (self.lsn() + 1, borsh::to_vec(&input).expect("a Vec takes all bytes"));
        let outputs = self.agent.step(now, lsn, input);
        self.disk.append(LIFE, now, outputs_digest(&outputs), payload);
        (0..).zip(outputs).map(|(index, output)| (OutputId { lsn, index }, output)).collect()
    }

    /// What needs no chain; the rest comes back.
    fn hear(&mut self, now: u64, outputs: Vec<(OutputId, Output)>) -> Vec<(OutputId, Output)> {
        let mut tasks = Vec::new();
        for (id, output) in outputs {
            match output {
                Output::Serve { price } => self.price = Some(price),
                Output::StopServing { .. } => {
                    self.price = None;
                    tasks.extend(self.say_owed(now));
                }
                Output::Note(note) => self.told.push(note.to_string()),
                Output::WakeAt(_) => {}
                task => tasks.push((id, task)),
            }
        }
        tasks
    }

    fn say_owed(&mut self, now: u64) -> Vec<(OutputId, Output)> {
        let owed = self.book.owed().map(|(_, entry, amount)| Owed {
            payer: entry.reservation.settlement.payer(),
            nonce: entry.reservation.settlement.nonce(),
            amount,
        });
        let owed = owed.collect();
        let outputs = self.record(now, Input::Owed(owed));
        self.hear(now, outputs)
    }

    /// One input of the book, recorded before it has effects.
    pub fn pay(&mut self, now: u64, input: BookInput) -> Vec<(OutputId, Output)> {
        let (lsn, payload) = (self.lsn() + 1, borsh::to_vec(&input).expect("a Vec takes all bytes"));
        let outputs = self.book.apply(input);
        self.disk.append(BOOK, now, book_digest(&outputs), payload);
        let mut tasks = Vec::new();
        for output in outputs {
            match output {
                BookOutput::Earned { request, amount } if self.earned.insert(request) => {
                    let earned = Input::Earned { first_lsn: lsn, last_lsn: lsn, count: 1, tokens: 100, sum: amount };
                    let outputs = self.record(now, earned);
                    tasks.extend(self.hear(now, outputs));
                }
                BookOutput::Channel(ChannelOutput::Charged { amount, .. }) => {
                    let earned = Input::Earned { first_lsn: lsn, last_lsn: lsn, count: 1, tokens: 100, sum: amount };
                    let outputs = self.record(now, earned);
                    tasks.extend(self.hear(now, outputs));
                }
                BookOutput::Owe { .. } => tasks.extend(self.say_owed(now)),
                _ => {}
            }
        }
        tasks
    }

    // ---- one look at the chain ----

    /// False: the process died on the way.
    ///
    /// # Errors
    /// As [`Node::restarts`].
    pub fn looks(
        &mut self,
        chain: &mut Chain,
        endpoint: Endpoint,
        standby: Option<u64>,
        chance: &mut Chance,
    ) -> Result<bool, String> {
        self.clock_ms += self.clock_step_ms;
        if self.is_fenced && !self.disk.is_full {
            self.told.push("the disk takes writes again: it starts anew from what that holds".to_owned());
            self.restarts(chain)?;
        }
        if endpoint.is_down || self.is_fenced {
            return Ok(true);
        }
        let now = chain.now();
        if endpoint.lag == 0 {
            chain.state_now();
        }
        let sight = chain.seen(endpoint.lag);
        let head = sight.head;
        let view = match endpoint.lag {
            0 => self.view(&sight, &chain.state),
            _ => self.view(&sight, &chain.state_of(sight.world)),
        };
        if self.hands_over.is_some_and(|(_, valid_until)| head.timestamp > valid_until) {
            (self.hands_over, self.left_lsn) = (None, 0);
        }
        if !self.stays_shut && self.gate.hand_over_is_over(head.timestamp) {
            self.lets_go();
        }
        let seen = Seen { balance: view.balance, escrow: view.escrow, owed: sight.owed };
        let mut tasks = Vec::new();
        if let Some(lease) = standby {
            let outputs = self.record(now, Input::StandbyAnswered { lease, ready: true });
            tasks.extend(self.hear(now, outputs));
        }
        let items = self.read(chain, head);
        let (events, payments) = self.translate(&items);
        for input in payments {
            tasks.extend(self.pay(now, input));
        }
        if !events.is_empty() {
            let outputs = self.record(now, Input::Chain(events));
            tasks.extend(self.hear(now, outputs));
        }
        if !items.is_empty() {
            self.disk.append(READ, now, [0; 32], head.number.to_le_bytes().to_vec());
            self.keep_logs();
        }
        if !self.falls_back(chain, endpoint.lag) {
            let outputs = self.record(now, Input::Block(Box::new(view)));
            tasks.extend(self.hear(now, outputs));
            self.seen = Some(seen);
        }
        self.tend_channels(chain, endpoint.lag);
        if !self.commits(chance) {
            return Ok(self.is_fenced);
        }
        for (id, task) in tasks {
            if self.dies("before", "asking for", || task.task().map_or_else(String::new, name)) {
                return Ok(false);
            }
            self.submit(id, &task, chain);
        }
        let head = outbox::Input::Head { number: head.number, hash: head.hash, base_fee: head.base_fee };
        Ok(self.sends(head, chain, endpoint, chance) && (self.commits(chance) || self.is_fenced))
    }

    /// The endpoint shows an older state than the events that were heard: it is not believed.
    pub(super) fn falls_back(&self, chain: &Chain, lag: usize) -> bool {
        chain.seen(lag).head.number + 1 < self.logs.next_block()
    }

    /// The name of a task that is on its way.
    fn unfinished(&self, id: outbox::Id) -> String {
        let all = if self.dies_after == Some(0) { self.agent.unfinished() } else { Vec::new() };
        let one = all.into_iter().find(|(output, _)| self.sent.get(&id) == Some(output));
        one.and_then(|(_, output)| output.task()).map_or_else(|| "what is over".to_owned(), name)
    }

    fn keep_outbox(&mut self) {
        if self.keeps {
            self.kept_outbox = self.outbox.to_bytes();
        }
    }

    fn keep_logs(&mut self) {
        if self.keeps || self.is_followed {
            if self.kept_logs.len() >= LOGS_KEPT {
                self.kept_logs.remove(0);
            }
            self.kept_logs.push((self.lsn(), self.logs.to_bytes()));
        }
    }

    /// From the next look on. What was not written down so far is kept as it is now.
    pub fn begins_to_keep(&mut self) {
        if !self.is_fenced && !std::mem::replace(&mut self.keeps, true) {
            self.kept_outbox = self.outbox.to_bytes();
            self.keep_logs();
            self.acknowledged = Some((self.disk.durable(), self.states())).filter(|_| !self.disk.has_news());
        }
    }

    /// When and before or after what is told only if it does.
    fn dies(&mut self, when: &str, act: &str, what: impl FnOnce() -> String) -> bool {
        match &mut self.dies_after {
            Some(0) => {
                self.died_at = format!("{when} {act} {}", what());
                true
            }
            Some(left) => {
                *left -= 1;
                false
            }
            None => false,
        }
    }

    /// As `chain::logs::LogReader` does it, without waiting.
    fn read(&mut self, chain: &Chain, head: chain::Head) -> Vec<LogItem> {
        let (mut headers, mut out) = (BTreeMap::new(), Vec::new());
        loop {
            match self.logs.plan(head, &headers).expect("branches are short") {
                Step::Nothing => return out,
                Step::NeedHeader(hash) => {
                    headers.insert(hash, chain.header(hash).expect("a block of this branch"));
                }
                Step::Range { .. } if self.lost_newest(chain, &mut out) => {}
                Step::Range { first, last } => {
                    let blocks = chain.blocks.iter().map(|block| block.head);
                    let logs =
                        blocks.filter(|h| (first..=last).contains(&h.number)).flat_map(|h| self.decoded(chain, h.hash));
                    let logs = logs.collect();
                    self.logs.extend_range(last, logs, &mut out);
                }
                Step::Branch { blocks } => {
                    self.logs.revert_from(blocks[0].number, &mut out);
                    for block in blocks {
                        let logs = self.decoded(chain, block.hash);
                        self.logs.extend(&block, logs, &mut out);
                    }
                    return out;
                }
            }
        }
    }

    /// Far behind, headers are not walked: if the newest block that was read no longer stands, it is taken back.
    fn lost_newest(&mut self, chain: &Chain, out: &mut Vec<LogItem>) -> bool {
        let Some((number, hash)) = self.logs.newest() else { return false };
        let lost = chain.header(hash).is_none();
        if lost {
            self.logs.revert_from(number, out);
        }
        lost
    }

    fn decoded(&self, chain: &Chain, hash: B256) -> Vec<ChainLog> {
        let logs = chain.logs(hash).into_iter();
        logs.filter_map(|log| self.logs.decode(&log).expect("our contracts' ABI")).collect()
    }

    /// Money for the life, payments for the book.
    fn translate(&mut self, items: &[LogItem]) -> (Vec<ChainEvent>, Vec<BookInput>) {
        let (mut events, mut payments) = (Vec::new(), Vec::new());
        let mut explained: BTreeMap<(B256, Address), u128> = BTreeMap::new();
        for log in items.iter().filter_map(LogItem::log) {
            if let Event::Treasury(TreasuryEvent::ExactSettled(e)) = &log.event {
                *explained.entry((log.tx, e.payer)).or_default() += e.amount.saturating_to::<u128>();
            }
        }
        for item in items {
            let (log, reverted) = match item {
                LogItem::Emitted(log) => (log, false),
                LogItem::Reverted(log) => (log, true),
                LogItem::TakenBack { .. } => continue,
            };
            payments.extend(payment(log, reverted));
            let Some(kind) = self.money(log, &explained) else { continue };
            let index = u32::try_from(log.index).expect("few logs");
            let event = ChainEvent { block: log.block, index, kind };
            events.push(match reverted {
                false => event,
                true => ChainEvent { block: log.block, index, kind: ChainEventKind::Reverted(Box::new(event)) },
            });
        }
        let gone = items.iter().filter_map(|item| match item {
            LogItem::TakenBack { from } => Some(*from),
            LogItem::Emitted(_) | LogItem::Reverted(_) => None,
        });
        payments.extend(gone.min().map(|from| BookInput::Channel(ChannelInput::TakenBack { from })));
        (events, payments)
    }

    fn money(&mut self, log: &ChainLog, explained: &BTreeMap<(B256, Address), u128>) -> Option<ChainEventKind> {
        let usdc = |amount: alloy::primitives::U256| Usdc(amount.saturating_to());
        Some(match &log.event {
            Event::Treasury(TreasuryEvent::Activated(e)) => ChainEventKind::Activated { lease: e.lease.to() },
            Event::Treasury(TreasuryEvent::Rented(e)) => {
                self.leases.insert(e.lease.to());
                ChainEventKind::Rented { lease: e.lease.to(), prepay: Usdc(e.prepay) }
            }
            Event::Treasury(TreasuryEvent::ToppedUp(e)) if !self.is_deaf => {
                ChainEventKind::ToppedUp { lease: e.lease.to(), amount: Usdc(e.amount) }
            }
            Event::Treasury(TreasuryEvent::ExactSettled(e)) => {
                ChainEventKind::ExactSettled { payer: e.payer.into_array(), nonce: e.nonce.0, amount: usdc(e.amount) }
            }
            Event::Treasury(TreasuryEvent::ExactRefunded(e)) => {
                ChainEventKind::ExactRefunded { payer: e.payer.into_array(), nonce: e.nonce.0, amount: usdc(e.amount) }
            }
            Event::Market(MarketEvent::RentPaid(e)) if self.leases.contains(&e.lease.to()) => {
                ChainEventKind::RentPaid { lease: e.lease.to(), amount: Usdc(e.amount) }
            }
            Event::Market(MarketEvent::LeaseClosed(e)) if self.leases.contains(&e.lease.to()) => {
                let (rent_total, refund) = (Usdc(e.rentTotal), Usdc(e.refund));
                ChainEventKind::LeaseClosed { lease: e.lease.to(), rent_total, refund }
            }
            Event::Market(MarketEvent::Owed(e)) if e.to == self.sources.treasury => {
                ChainEventKind::MarketOwes { amount: usdc(e.amount) }
            }
            Event::Market(MarketEvent::Collected(e)) if e.to == self.sources.treasury => {
                ChainEventKind::MarketPaid { amount: usdc(e.amount) }
            }
            Event::Transfer { from, to, amount } if *to == self.sources.treasury => {
                let known = explained.get(&(log.tx, *from)).copied().unwrap_or(0);
                // What the market pays was told by `LeaseClosed` or `Collected`: no gift.
                if known >= *amount || *from == self.sources.market {
                    return None;
                }
                if *from == BATCH_SETTLEMENT {
                    return Some(ChainEventKind::ChannelsSettled { amount: Usdc(*amount) });
                }
                ChainEventKind::TransferIn { from: from.into_array(), amount: Usdc(*amount - known) }
            }
            _ => return None,
        })
    }

    // ---- transactions ----

    fn submit(&mut self, id: OutputId, output: &Output, chain: &Chain) {
        if !self.syncs() {
            return;
        }
        let data = self.call(output, chain);
        // The same after every restart; another in every epoch's outbox.
        let name = outbox::Id((u128::from(id.lsn) << 32 | u128::from(id.index)).to_be_bytes());
        self.sent.insert(name, id);
        self.put(name, outbox::Request { to: Some(self.sources.treasury), data, value: 0, gas: None });
    }

    pub(super) fn put(&mut self, id: outbox::Id, request: outbox::Request) {
        if !self.syncs() {
            return;
        }
        let lsn = self.lsn();
        self.gate.when_durable(lsn, Leaving::Tx(lsn, id, request));
        self.lets_go();
    }

    pub(super) fn fresh_id(&mut self) -> outbox::Id {
        self.outbox.fresh_id()
    }

    pub(super) fn treasury(&self) -> Address {
        self.sources.treasury
    }

    /// Of the last record.
    pub(super) fn lsn(&self) -> u64 {
        self.disk.last_lsn()
    }

    pub fn submit_all(&mut self, tasks: Vec<(OutputId, Output)>, chain: &Chain) {
        tasks.into_iter().for_each(|(id, task)| self.submit(id, &task, chain));
    }

    fn call(&mut self, output: &Output, chain: &Chain) -> Bytes {
        match *output {
            Output::Rent { offer, term, prepay } => calls::rent(offer, term, prepay.0),
            Output::TopUp { lease, amount } => calls::top_up(lease, amount.0),
            Output::Release { lease } => calls::release(lease),
            Output::Heartbeat { standby_answered } => {
                calls::heartbeat(keccak256(self.key), B256::ZERO, standby_answered)
            }
            Output::Checkpoint => {
                let seq = chain.state.checkpointSeq + 1;
                let memory = Memory { last_lsn: self.lsn(), logs: self.logs.to_bytes() };
                self.memories.insert(seq, memory);
                self.memories.retain(|kept, _| kept + 4 > seq);
                chain.world.commit(keccak256(seq.to_be_bytes()), &chain.acknowledging())
            }
            Output::Announce { lease } => calls::announce(lease),
            Output::Handover { lease, valid_until } => {
                self.hands_over(valid_until);
                calls::handover(lease, chain.state.checkpointSeq, 0, valid_until)
            }
            Output::Refuel => calls::refuel(),
            Output::BuyGas { max } => calls::buy_gas(max.0),
            Output::FillPurse { amount, .. } => {
                calls::spend(chain::treasury::KIND_PURSE, chain.world.standing().purse, amount.0)
            }
            Output::Refund { payer, nonce, amount } => calls::refund_exact(payer.into(), nonce.into(), amount.0),
            Output::WindDown => calls::wind_down(),
            Output::Close => calls::close(),
            Output::Hibernate { until, .. } => calls::hibernate(until),
            Output::PayArchivist { payee, amount } => {
                calls::spend(chain::treasury::KIND_STORAGE, payee.into(), amount.0)
            }
            // Births here name no archivist, and what is no call leaves nothing.
            Output::AskArchivist | Output::Archive { .. } => Bytes::new(),
            Output::Serve { .. } | Output::StopServing { .. } | Output::Note(_) | Output::WakeAt(_) => Bytes::new(),
        }
    }

    fn sends(&mut self, head: outbox::Input, chain: &mut Chain, endpoint: Endpoint, chance: &mut Chance) -> bool {
        let mut inputs = vec![head];
        let mut todo = std::mem::take(&mut self.answered);
        loop {
            for input in std::mem::take(&mut inputs) {
                self.outbox.handle(self.clock_ms, input, &mut todo);
            }
            if todo.is_empty() {
                return true;
            }
            for output in std::mem::take(&mut todo) {
                let mut sent = None;
                if let outbox::Output::Send { request, .. } = &output {
                    self.keep_outbox();
                    sent = Some(request.data.clone());
                    if self.dies("before", "sending", || entry(&request.data, true)) {
                        return false;
                    }
                }
                match output {
                    outbox::Output::Settled { id, outcome } => {
                        self.keep_outbox();
                        let unfinished = self.unfinished(id);
                        if self.dies("before", "hearing of", || unfinished) {
                            return false;
                        }
                        self.settled(id, outcome, chain, endpoint.lag);
                        todo.append(&mut self.answered);
                    }
                    asked => inputs.extend(self.ask(asked, chain, endpoint, chance)),
                }
                let arrived = sent.filter(|_| matches!(inputs.last(), Some(outbox::Input::Sent { .. })));
                if arrived.is_some_and(|data| self.dies("after", "sending", || entry(&data, true))) {
                    return false;
                }
            }
        }
    }

    /// The endpoint's part.
    fn ask(
        &self,
        output: outbox::Output,
        chain: &mut Chain,
        endpoint: Endpoint,
        chance: &mut Chance,
    ) -> Option<outbox::Input> {
        let (lost, lies) = (chance.of_1000(endpoint.drops), chance.of_1000(endpoint.lies));
        let seen = chain.seen(endpoint.lag).world;
        Some(match output {
            outbox::Output::AskNonce if lost => return None,
            outbox::Output::AskNonce => outbox::Input::NonceIs {
                latest: seen.evm.nonce(self.key),
                pending: chain.pending(self.key).max(seen.evm.nonce(self.key)),
            },
            outbox::Output::Estimate { id, .. } if lost => outbox::Input::EstimateFailed { id },
            outbox::Output::Estimate { id, .. } if lies => {
                outbox::Input::WouldRevert { id, data: Bytes::new(), text: "a lie".to_owned() }
            }
            outbox::Output::Estimate { id, request } => {
                match seen.evm.what_if(self.key, request.to.unwrap_or_default(), request.data) {
                    Ok(done) => outbox::Input::Estimated { id, gas: done.gas_used * 3 / 2 },
                    Err(revert) => outbox::Input::WouldRevert { id, data: revert.data, text: revert.text },
                }
            }
            outbox::Output::Send { id, nonce, request, max_fee, .. } => {
                let to = request.to.unwrap_or_default();
                let tx = Tx { from: self.key, to, data: request.data, nonce: Some(nonce), max_fee };
                let hash = tx.hash();
                if nonce < chain.world.evm.nonce(self.key) {
                    return Some(outbox::Input::SendFailed { id, nonce, tx: hash, why: SendError::NonceTooLow });
                }
                // Lost: the request on its way there, or the answer on its way back.
                if !lost || chance.of_1000(500) {
                    chain.send(tx);
                }
                match lost {
                    true => outbox::Input::SendFailed { id, nonce, tx: hash, why: SendError::Transport },
                    false => outbox::Input::Sent { id, nonce, tx: hash },
                }
            }
            outbox::Output::AskReceipt { .. } if lost => return None,
            outbox::Output::AskReceipt { id, nonce, txs } => {
                let found = txs.into_iter().find_map(|tx| Some((tx, chain.receipt(tx, endpoint.lag)?)));
                let found = found.filter(|_| !lies);
                let found = found.map(|(tx, (block, success))| outbox::Mined { tx, block, success });
                outbox::Input::ReceiptIs { id, nonce, found }
            }
            outbox::Output::Settled { .. } => return None,
        })
    }

    fn settled(&mut self, id: outbox::Id, outcome: outbox::Outcome, chain: &Chain, lag: usize) {
        let (left, block) = &mut self.left_over;
        if left.remove(&id)
            && let outbox::Outcome::Done { block: done_in, .. } = &outcome
        {
            *block = (*block).max(*done_in);
        }
        if let Some(errand) = self.errands.remove(&id) {
            let ended = Ended::of(&outcome, chain.seen(lag).head.number);
            return self.errand_over(errand, ended, chain, lag);
        }
        let Some(output) = self.sent.remove(&id) else { return };
        let outcome = match outcome {
            outbox::Outcome::Done { block, .. } => Outcome::Done { block },
            outbox::Outcome::Reverted { .. } => Outcome::Failed { reason: "reverted".to_owned() },
            outbox::Outcome::WouldRevert { text, .. } => Outcome::Failed { reason: text },
            outbox::Outcome::NeverSent { reason } => Outcome::Failed { reason },
            outbox::Outcome::Unknown { .. } => Outcome::Unknown,
        };
        let now = chain.now();
        let outputs = self.record(now, Input::Done { id: output, outcome });
        for (id, task) in self.hear(now, outputs) {
            self.submit(id, &task, chain);
        }
    }

    /// Whether something is on its way or waits for an end.
    pub fn is_busy(&self) -> bool {
        self.outbox.is_busy()
    }

    fn view(&self, sight: &Sight<'_>, state: &State) -> View {
        View {
            number: sight.head.number,
            operator_is_me: state.operator == self.key,
            operator_gas_wei: u128::MAX,
            relay_gas_wei: u128::MAX,
            treasury_gas_wei: u128::MAX,
            offers: sight.offers.to_vec(),
            ..sight.world.view_of(state, |_, lease| glance::escrow_left(sight.world, lease))
        }
    }
}

/// As the treasury has it.
fn name(task: Task) -> String {
    let name = match task {
        Task::Rent => "rent",
        Task::TopUp { .. } => "topUp",
        Task::Release { .. } => "release",
        Task::Heartbeat => "heartbeat",
        Task::Checkpoint => "commit",
        Task::Announce => "announce",
        Task::Handover => "handover",
        Task::Refuel => "refuel",
        Task::BuyGas => "buyGas",
        Task::FillPurse | Task::PayArchivist => "spend",
        Task::AskArchivist | Task::Archive => "none",
        Task::Refund { .. } => "refundExact",
        Task::WindDown => "windDown",
        Task::Close => "close",
        Task::Hibernate => "hibernate",
    };
    name.to_owned()
}

fn unreadable(e: journal::Error) -> String {
    format!("journal: a successor cannot read it: {e}")
}

fn book_digest(outputs: &[BookOutput]) -> [u8; 32] {
    Sha256::digest(borsh::to_vec(outputs).expect("a Vec takes all bytes")).into()
}

/// The input that takes a payment or refund of a block back.
fn taking_back(input: &BookInput) -> Option<BookInput> {
    Some(match *input {
        BookInput::Settled { method, payer, nonce, .. } => BookInput::Reversed { method, payer, nonce },
        BookInput::Refunded { payer, nonce, .. } => BookInput::RefundReversed { payer, nonce },
        _ => return None,
    })
}

fn rented(event: &ChainEvent) -> Option<u64> {
    match event.kind {
        ChainEventKind::Rented { lease, .. } => Some(lease),
        _ => None,
    }
}

/// The same settlement or refund for the book.
fn payment(log: &ChainLog, reverted: bool) -> Option<BookInput> {
    let method = TransferMethod::Eip3009;
    Some(match (&log.event, reverted) {
        (Event::Treasury(TreasuryEvent::ExactSettled(e)), false) => BookInput::Settled {
            method,
            payer: e.payer.into_array(),
            nonce: e.nonce.0,
            amount: Usdc(e.amount.saturating_to()),
            tx: log.tx.0,
            block: log.block,
            recorded: true,
        },
        (Event::Treasury(TreasuryEvent::ExactSettled(e)), true) => {
            BookInput::Reversed { method, payer: e.payer.into_array(), nonce: e.nonce.0 }
        }
        (Event::Treasury(TreasuryEvent::ExactRefunded(e)), false) => BookInput::Refunded {
            payer: e.payer.into_array(),
            nonce: e.nonce.0,
            amount: Usdc(e.amount.saturating_to()),
        },
        (Event::Treasury(TreasuryEvent::ExactRefunded(e)), true) => {
            BookInput::RefundReversed { payer: e.payer.into_array(), nonce: e.nonce.0 }
        }
        _ => return None,
    })
}
