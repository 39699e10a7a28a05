//! Whatever can wake the agent is on this screen.
//!
//! One closed [`Event`], one `match`, one task that owns all state. Everything slow (RPC, store, engine, peers)
//! runs beside it and comes back as an event.

use crate::ask::Ask;
use crate::channels::{Moved, ReadBack};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::fence::{Fence, boottime_ms};
use crate::live::{Effect, Live};
use crate::memory::{KeyRing, Pages};
use crate::moving::{self, PeerAsk, Tail};
use crate::payer_gas::PayerGas;
use crate::replicate::{Sent, Shipped};
use crate::restore::{self, Restored};
use crate::settle::{Settlement, Waiter};
use crate::shared::{Role, Shared};
use crate::state::{Led, Recorded, State};
use crate::watch::{News, ReadAfter};
use crate::{act, genesis, money_events};
use alloy::primitives::B256;
use chain::bindings::TreasuryEvent;
use chain::logs::{Event as ChainEvent, LogItem};
use economy::{Input, OutputId};
use net::chain_of;
use pay::RequestId;
use pay::facilitator::api::Asked;
use pay::scheme::channel::ChannelId;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use store::checkpoint::Checkpoint;
use tokio::sync::{mpsc, oneshot, watch};

/// How often the loop looks at what has no event of its own: fence, shipping, income.
const TICK: Duration = Duration::from_millis(200);
/// A successor waits this long for the old node's last records before it goes on with what it has, ms.
const LAST_WORDS_MS: u64 = 4_000;
/// The old node lets open streams run this long before it closes its journal, ms.
const DRAIN_MS: u64 = 1_500;
/// After the disk failed, so long between two looks whether it takes writes again, ms.
const DISK_LOOK_MS: u64 = 10_000;
/// How long an arm of the loop may take: whatever else wakes the agent waits for it. Guesses, unmeasured: a paid call waits
/// for two or three arms; those that fold or write a whole memory come a few times an hour.
const BUDGET: Duration = Duration::from_millis(20);
const BUDGET_WHOLE: Duration = Duration::from_millis(250);

pub enum Event {
    /// A new block, with everything read at it.
    Chain(Box<News>),
    /// The chain did not answer.
    ChainLost(String),
    /// The journal's disk: durable up to here, or failed for good.
    Durable(std::result::Result<u64, String>),
    /// The newest block that was read and that the chain still has (0: none of them).
    StillStands(u64),
    /// A branch took back what was read, deeper than the watcher can tell; it reads no events until it is told from where.
    ReadAnew(String),
    /// A paying customer, through the HTTP API.
    Ask(Box<Ask>),
    /// Another node of this agent.
    Peer(PeerAsk),
    /// What became of an output.
    Acted {
        id: OutputId,
        outcome: economy::Outcome,
    },
    /// What the archivist said to an output: a price, or that it has the copy.
    Archivist {
        id: OutputId,
        said: Box<Input>,
    },
    /// A checkpoint stands on chain.
    Committed {
        id: OutputId,
        block: u64,
        checkpoint: Box<Checkpoint>,
        pages: Pages,
    },
    /// What became of a payment.
    Settled {
        request: pay::RequestId,
        settlement: Settlement,
    },
    /// What the chain says of channels after a deposit, a claim or a refund, and how that ended.
    ChannelRead(Box<ReadBack>),
    /// A local snapshot was made beside the loop, or not.
    Snapshotted(Result<()>),
    /// The state of a checkpoint could not be folded from what the disk holds.
    NotFoldedAnew(Error),
    /// A journal segment left, or did not.
    Shipped(Result<Shipped>),
    /// Where the shipping of this epoch stood before a restart, what left since the last checkpoint, and that.
    ShippingKnown {
        next_index: u64,
        prev: Option<store::cid::Cid>,
        replicated_lsn: u64,
        sent: Vec<Sent>,
        stands: Option<Box<Checkpoint>>,
    },
    /// The standby's node answered a health question.
    Standby {
        lease: u64,
        ready: bool,
    },
    /// The last record that the world holds of this life, asked before a journal that lay here goes on.
    Reached(Result<restore::Reached>),
    /// The acknowledged memory arrived, for which this node asked as operator of `epoch`.
    Restored {
        epoch: u64,
        restored: Result<Box<Restored>>,
    },
    /// The memory with which this follower of the active node begins.
    Begun {
        follower: u64,
        restored: Box<Restored>,
    },
    /// Records of the active node, during a move.
    Tail(Tail),
    /// The keys of checkpoints that the active node made since this follower began.
    LaterKeys {
        follower: u64,
        ring: Box<KeyRing>,
    },
    /// Measured decoding speed, tokens x 1e-3 per second.
    Throughput(u64),
    /// Somebody reads: status, log, receipts.
    Look(Box<dyn FnOnce(&Node) + Send>),
    /// A former operator has had its time to report what it was serving at the cut: these.
    LateIsOver(BTreeSet<RequestId>),
    Tick,
    /// SIGTERM from the provider.
    Stop,
}

impl Event {
    /// The name under which the arm is counted in `/metrics`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Chain(_) => "chain",
            Self::ChainLost(_) => "chain_lost",
            Self::StillStands(_) => "still_stands",
            Self::ReadAnew(_) => "read_anew",
            Self::Durable(_) => "durable",
            Self::Ask(_) => "ask",
            Self::Peer(_) => "peer",
            Self::Acted { .. } => "acted",
            Self::Archivist { .. } => "archivist",
            Self::Committed { .. } => "committed",
            Self::Settled { .. } => "settled",
            Self::ChannelRead(_) => "channel_read",
            Self::Snapshotted(_) => "snapshotted",
            Self::NotFoldedAnew(_) => "not_folded_anew",
            Self::Shipped(_) => "shipped",
            Self::ShippingKnown { .. } => "shipping_known",
            Self::Standby { .. } => "standby",
            Self::Reached(_) => "reached",
            Self::Restored { .. } => "restored",
            Self::Begun { .. } => "begun",
            Self::Tail(_) => "tail",
            Self::LaterKeys { .. } => "later_keys",
            Self::Throughput(_) => "throughput",
            Self::Look(_) => "look",
            Self::LateIsOver(_) => "late_is_over",
            Self::Tick => "tick",
            Self::Stop => "stop",
        }
    }

    /// What a node that is fenced must not lose: the end of something that it sent, without which the life waits for ever,
    /// and where its reading of events goes on.
    fn is_kept_behind_the_fence(&self) -> bool {
        matches!(
            self,
            Self::Acted { .. }
                | Self::Archivist { .. }
                | Self::Committed { .. }
                | Self::StillStands(_)
                | Self::ReadAnew(_)
        )
    }

    /// How long its arm may take.
    fn budget(&self) -> Duration {
        match self {
            Self::Committed { .. } | Self::Chain(_) | Self::StillStands(_) => BUDGET_WHOLE,
            Self::Restored { .. } | Self::Begun { .. } | Self::Tail(_) => BUDGET_WHOLE,
            _ => BUDGET,
        }
    }
}

/// What an arm of the loop took since the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arm {
    pub count: u64,
    pub total: Duration,
    pub longest: Duration,
    /// How long it may take.
    pub budget: Duration,
    /// Times that it took longer than it may.
    pub over_budget: u64,
}

impl Arm {
    pub fn within(budget: Duration) -> Self {
        Self { count: 0, total: Duration::ZERO, longest: Duration::ZERO, budget, over_budget: 0 }
    }

    pub fn took(&mut self, time: Duration) {
        self.count += 1;
        self.total += time;
        self.longest = self.longest.max(time);
        self.over_budget += u64::from(time > self.budget);
    }
}

/// The office that this node holds or held last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Office {
    epoch: u64,
    /// Height of the head at which it began, or at which another operator was first seen. Heads below it are an
    /// endpoint's that lags, and say nothing.
    turned_at: u64,
}

/// The one owner of everything that changes.
pub struct Node {
    pub cx: Arc<Context>,
    pub shared: Arc<Shared>,
    pub role: Role,
    pub live: Option<Live>,
    pub fence: Fence,
    pub news: Option<Box<News>>,
    pub(crate) durable: watch::Sender<u64>,
    /// The block after which the watcher also reads events; `None` while they concern somebody else.
    pub(crate) logs_from: watch::Sender<Option<ReadAfter>>,
    follower: Option<Follower>,
    /// Followers that this process began.
    followers: u64,
    /// The old node said its last word (or the restore needs none).
    last_word: bool,
    /// When this node first saw itself as operator, or stopped being it.
    turned_ms: Option<u64>,
    /// What ended here after this journal was closed: the successor's to charge, unless the succession is taken back. One for
    /// each stream that was open at the cut.
    pub(crate) late: Vec<Recorded>,
    /// `None`: it was never operator.
    office: Option<Office>,
    /// The journal takes nothing any more, since this boot time, ms; whatever the chain says, this process does not act.
    disk_failed: Option<u64>,
    /// Another process signs as this operator: this one never acts again.
    is_copied: bool,
    /// What came while this node was fenced and its life must hear: told when it acts again. Ends of what it sent before,
    /// so there are no more than it had on its way.
    kept: Vec<Event>,
    restoring: bool,
    found: Found,
    /// The token under which this node follows its predecessor, which reports late deliveries by it.
    pub(crate) granted_token: Option<String>,
    /// Bearer token of the announced successor, with its exchange recipient.
    pub(crate) successor: Option<(String, store::seal::Recipient)>,
    /// At most `TAILS_WAITING_MAX`.
    pub(crate) tail_waiters: Vec<(u64, oneshot::Sender<Result<moving::TailPart>>)>,
    /// Whoever hung up is forgotten when the next one comes: no more than requests are let in.
    pub(crate) settled_waiters: BTreeMap<pay::RequestId, Vec<Waiter>>,
    /// Who asks for the receipt of a call that is not signed yet.
    pub(crate) receipt_waiters: BTreeMap<pay::RequestId, Vec<oneshot::Sender<()>>>,
    /// Reserved to be settled after they were served, and not sent yet: nobody waits for their settlement. A restart
    /// forgets it, and needs no more of it: then nobody waits for any.
    pub(crate) settled_after: BTreeSet<pay::RequestId>,
    /// Who waits for a channel's deposit or refund, the same.
    pub(crate) channel_waiters: BTreeMap<ChannelId, Vec<oneshot::Sender<Moved>>>,
    /// Channels whose refund a task of this process is sending. The channel contract pays as often as it is asked, while the
    /// balance lasts: a second task would take out as much again.
    pub(crate) refunding: BTreeSet<ChannelId>,
    /// The channel's nonce before the last refund that this process had carried out. A block that takes it back leaves it to
    /// the outbox, which sends the same transaction again.
    pub(crate) refunded: BTreeMap<ChannelId, u64>,
    /// Deposits that another's facilitator will be asked to put in. A restart forgets them: then the relay does it. One for
    /// each channel of the book, which are bounded.
    pub(crate) asked_another: BTreeMap<ChannelId, Box<Asked>>,
    /// Transactions for payers' channels.
    pub(crate) channel_gas: PayerGas,
    /// Payments by `exact` that their payers hung up on before anything was delivered: two transactions for nothing.
    pub(crate) hung_up: PayerGas,
    pub(crate) relay_asked_ms: u64,
    pub(crate) collect_asked_ms: u64,
    pub(crate) trim_asked_ms: u64,
    pub(crate) posted_ms: u64,
    /// Chain seconds when the channels were last looked at.
    pub(crate) payers_seen_at: u64,
    /// Channels that were given back unasked in the wind-down, and until when, in chain seconds, none is tried again.
    pub(crate) sent_home: BTreeMap<ChannelId, u64>,
    /// Chain seconds when the book last forgot what is closed.
    pub(crate) pruned_at: u64,
    pub(crate) standby_asked_ms: u64,
    pub(crate) takeover_in_flight: Arc<std::sync::atomic::AtomicBool>,
    /// The contract has said so of this lease.
    pub(crate) is_not_rescued: Arc<std::sync::atomic::AtomicBool>,
    arms: BTreeMap<&'static str, Arm>,
}

/// The task that follows another node's journal ([`moving::follow`]).
struct Follower {
    /// Counts the followers of this process: what another one still says is passed over.
    id: u64,
    /// The lease that is followed.
    lease: u64,
    /// It began when this node was operator already.
    is_late: bool,
    /// Which checkpoint the chain names; nothing ends it.
    want: watch::Sender<Option<B256>>,
}

/// Whether what lies on this disk may be gone on from. A disk may come back older than it was: a snapshot of the machine, a
/// copy; and a successor may have been down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    /// None, or it may go on: what is in memory is as new as anything that was acknowledged.
    Nothing,
    /// Not compared yet with what the world holds.
    Unproven,
    /// Being compared.
    Asked,
    /// It ends before what was acknowledged, and only the node that led before has the rest.
    Behind,
}

/// How a node comes to lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Begins {
    /// From its own journal, or from what it followed.
    OnItsOwn,
    /// From the stewards' shares, after a takeover.
    Restored,
    /// The same process led before, and never stopped serving what was open.
    Again,
}

impl Node {
    pub fn new(cx: Arc<Context>, shared: Arc<Shared>, logs_from: watch::Sender<Option<ReadAfter>>) -> Self {
        let fence = Fence::new(u64::from(cx.birth.timers.fence));
        Self {
            cx,
            shared,
            role: Role::Standby,
            live: None,
            fence,
            news: None,
            durable: watch::channel(0).0,
            logs_from,
            follower: None,
            followers: 0,
            last_word: false,
            turned_ms: None,
            late: Vec::new(),
            office: None,
            disk_failed: None,
            is_copied: false,
            kept: Vec::new(),
            restoring: false,
            found: Found::Nothing,
            granted_token: None,
            successor: None,
            standby_asked_ms: 0,
            takeover_in_flight: Arc::default(),
            is_not_rescued: Arc::default(),
            tail_waiters: Vec::new(),
            settled_waiters: BTreeMap::new(),
            receipt_waiters: BTreeMap::new(),
            settled_after: BTreeSet::new(),
            channel_waiters: BTreeMap::new(),
            refunding: BTreeSet::new(),
            refunded: BTreeMap::new(),
            asked_another: BTreeMap::new(),
            channel_gas: PayerGas::default(),
            hung_up: PayerGas::default(),
            relay_asked_ms: 0,
            collect_asked_ms: 0,
            trim_asked_ms: 0,
            posted_ms: 0,
            payers_seen_at: 0,
            sent_home: BTreeMap::new(),
            pruned_at: 0,
            arms: BTreeMap::new(),
        }
    }

    pub async fn run(mut self, mut events: mpsc::Receiver<Event>) -> Result<()> {
        self.wake_from_disk()?;
        let ticker = self.cx.events.clone();
        tokio::spawn(async move {
            let mut interval = tokio::time::interval(TICK);
            interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                interval.tick().await;
                if ticker.send(Event::Tick).await.is_err() {
                    return;
                }
            }
        });
        while let Some(event) = events.recv().await {
            let (name, budget, began) = (event.name(), event.budget(), Instant::now());
            let goes_on = self.on_event(event);
            let took = began.elapsed();
            if took > budget {
                tracing::debug!(event = name, ?took, "an arm of the main loop took longer than it may");
            }
            self.arms.entry(name).or_insert_with(|| Arm::within(budget)).took(took);
            match goes_on {
                Ok(true) => {}
                Ok(false) => break,
                // What could not be recorded was not promised to anybody either.
                Err(e) => match self.journal_failure() {
                    Some(why) => self.on_disk_failed(&why),
                    None => return Err(e),
                },
            }
        }
        tracing::info!("stopping: the journal is flushed and closed");
        Ok(())
    }

    /// The one `match`. Whether the loop goes on.
    fn on_event(&mut self, event: Event) -> Result<bool> {
        self.look_at_the_fence();
        if self.role == Role::Fenced && event.is_kept_behind_the_fence() {
            self.kept.push(event);
            return Ok(true);
        }
        match event {
            Event::Chain(news) => self.on_chain(news)?,
            Event::ChainLost(why) => tracing::warn!(why, "the chain does not answer, or not with one voice"),
            Event::StillStands(height) => self.read_on_from(height)?,
            Event::ReadAnew(why) => {
                tracing::warn!(why, "what was read is compared with the chain anew");
                self.ask_what_stands();
            }
            Event::Durable(Ok(lsn)) => self.on_durable(lsn)?,
            Event::Durable(Err(why)) => self.on_disk_failed(&why),
            Event::Ask(ask) => self.on_ask(*ask)?,
            Event::Peer(ask) => self.on_peer(ask)?,
            Event::Acted { id, outcome } => self.life(Input::Done { id, outcome })?,
            Event::Archivist { id, said } => self.on_archivist(id, *said)?,
            Event::Committed { id, block, checkpoint, pages } => self.on_committed(id, block, checkpoint, pages)?,
            Event::Settled { request, settlement } => self.on_settled(request, settlement)?,
            Event::ChannelRead(read) => self.on_channel_read(*read)?,
            Event::Snapshotted(made) => self.live.iter_mut().for_each(|live| live.snapshot_made(&made)),
            Event::NotFoldedAnew(why) => self.live.iter_mut().for_each(|live| live.cannot_fold_anew(&why)),
            Event::Shipped(shipped) => self.on_shipped(shipped),
            Event::ShippingKnown { next_index, prev, replicated_lsn, sent, stands } => {
                self.on_shipping_known((next_index, prev), replicated_lsn, sent, stands);
            }
            Event::Standby { lease, ready } => self.life(Input::StandbyAnswered { lease, ready })?,
            Event::Reached(reached) => self.on_reached(reached)?,
            Event::Restored { epoch, restored } => self.on_restored(epoch, restored)?,
            Event::Begun { follower, restored } => self.on_begun(follower, *restored)?,
            Event::Tail(tail) => self.on_tail(tail)?,
            Event::LaterKeys { follower, ring } => self.on_later_keys(follower, *ring)?,
            Event::Throughput(milli_tokens_per_sec) => self.life(Input::Throughput { milli_tokens_per_sec })?,
            Event::Look(look) => look(self),
            Event::LateIsOver(requests) => self.on_late_is_over(&requests)?,
            Event::Tick => self.on_tick()?,
            Event::Stop => return Ok(false),
        }
        Ok(true)
    }

    /// Chain time of the last block seen, seconds.
    pub fn now(&self) -> u64 {
        self.news.as_ref().map_or(0, |n| n.head.timestamp)
    }

    /// The epoch of the office that this node holds or held last, which is the only one that its key signs for; 0: it was
    /// never operator. The newest block may name a later one.
    pub(crate) fn epoch(&self) -> u64 {
        self.office.map_or(0, |office| office.epoch)
    }

    pub fn arms(&self) -> &BTreeMap<&'static str, Arm> {
        &self.arms
    }

    /// May this node serve and sign?
    pub fn acts(&self) -> bool {
        self.role == Role::Active && self.fence.holds(boottime_ms())
    }

    /// What the purse can pay with; `None` while its signer is nobody (paused, restoring, not alive) or it is over its cap.
    pub(crate) fn purse_can_pay(&self) -> Option<economy::Usdc> {
        let news = self.news.as_ref()?;
        let state = &news.state;
        let signs = self.acts() && state.stage() == chain::bindings::Stage::Alive && !state.paused && !state.restoring;
        (signs && news.purse <= self.cx.birth.options.purseMax).then_some(economy::Usdc(news.purse))
    }

    fn journal_dir(&self) -> PathBuf {
        self.cx.config.data_dir.join("journal")
    }

    /// Has the journal's thread say what is durable. It must never wait for this loop, so it writes into a watch
    /// (the last word is the one that counts) and a task carries that over.
    pub(crate) fn on_durable_callback(&self) -> journal::OnDurable {
        let (say, mut heard) = watch::channel(None);
        let cx = self.cx.clone();
        tokio::spawn(async move {
            while heard.changed().await.is_ok() {
                let event = match heard.borrow_and_update().clone() {
                    Some(Ok(lsn)) => Event::Durable(Ok(lsn)),
                    Some(Err(e)) => Event::Durable(Err(journal::Error::to_string(&e))),
                    None => continue,
                };
                cx.tell(event).await;
            }
        });
        Box::new(move |report| {
            say.send_replace(Some(report));
        })
    }

    /// A node that lived here before goes on from its journal, once the chain says that it still may.
    fn wake_from_disk(&mut self) -> Result<()> {
        let dir = self.journal_dir();
        let start = genesis::fresh(&self.cx);
        let Some((state, journal)) = Live::replay(&dir, || start, self.on_durable_callback())? else {
            return Ok(());
        };
        let last = journal.next_lsn() - 1;
        let ring = self.cx.ring_file.load()?;
        self.found = Found::Unproven;
        tracing::info!(records = last, "replayed the journal of this lease");
        self.live = Some(Live::new(state, journal, last, ring, self.cx.manifest.exposure_uusdc_max));
        let _ = self.durable.send(last);
        self.resume_reports()
    }

    // ---- the chain ----

    fn on_chain(&mut self, news: Box<News>) -> Result<()> {
        let mine = news.state.operator == self.cx.me();
        if mine {
            self.fence.saw_block(news.asked_ms, news.head.number, news.head.timestamp);
        }
        let announced_to_me = news.state.announcedLease == alloy::primitives::U256::from(self.cx.config.lease);
        self.news = Some(news);
        self.shared.set_relay_has_gas(!self.relay_is_poor());
        let now = self.now();
        // Where it was mined, its successor has begun by now: what is held leaves with that one's word, or never.
        if mine && self.live.as_mut().is_some_and(|live| live.hand_over_is_over(now)) {
            tracing::info!("the handover was not mined in time: this disk alone is enough again");
            self.let_go()?;
        }
        let is_undone = self.is_undone();
        match (self.role, mine) {
            _ if self.disk_failed.is_some() || self.is_copied => {}
            (Role::Active, true) => self.feed_chain()?,
            (Role::Active | Role::Fenced, false) if is_undone => self.succession_undone()?,
            (Role::Active | Role::Fenced, false) if self.lags() => {}
            (Role::Active | Role::Fenced, false) => self.superseded(),
            (Role::Draining, true) if is_undone => self.reinstated()?,
            (Role::Draining, true) if self.is_named_anew() => {
                let why = "the chain names this node operator again, in another epoch: starting anew from its disk";
                return Err(Error::retry(why));
            }
            (Role::Fenced, true) if self.fence.holds(boottime_ms()) => self.act_again()?,
            (Role::Standby, true) => self.try_become_active()?,
            (Role::Standby, false) => {
                self.turned_ms = None;
                if announced_to_me {
                    self.follow_active();
                }
                self.watch_the_active()?;
            }
            (Role::Draining | Role::Fenced | Role::Ended, _) => {}
        }
        self.drain();
        self.publish();
        Ok(())
    }

    /// A fresh block names this node again. It is looked at first: by an older one the life would call others silent for
    /// the time in which this node heard nothing.
    fn act_again(&mut self) -> Result<()> {
        tracing::info!("a fresh block names this node as operator: serving again");
        self.set_role(Role::Active);
        self.feed_chain()?;
        for event in std::mem::take(&mut self.kept) {
            self.on_event(event)?;
        }
        crate::settle::send_due(self)
    }

    /// Money and life as of this block, if anything changed or the life asked to be woken.
    fn feed_chain(&mut self) -> Result<()> {
        let Some(news) = &self.news else { return Ok(()) };
        // Without the events of the same block the books cannot be compared with the balance.
        let Some(logs) = &news.logs else { return Ok(()) };
        if let Some(instance) = self.foreign_heartbeat(logs, news.state.epoch) {
            self.stop_beside_a_copy(instance);
            return Ok(());
        }
        let Some(live) = &mut self.live else { return Ok(()) };
        let now = news.head.timestamp;
        let money = money_events::translate(logs, &news.signed, &self.cx, live.state.leases(), &live.state.book);
        let view = news.view(self.cx.me());
        let changed = live.fed.as_ref().is_none_or(|fed| crate::watch::differs(fed, &view));
        let (settled, taken_back) = (money.settled(), money.reversed());
        // A heartbeat must not depend on the life's own alarm alone.
        let routine = u64::from(self.cx.birth.timers.heartbeatEvery / 2).max(1);
        let due = now >= live.wake_at || live.fed.as_ref().is_none_or(|fed| now >= fed.timestamp + routine);
        let has_events = money.has_events();
        for recorded in money.records() {
            live.record(now, &recorded)?;
        }
        if has_events || changed || due {
            live.wake_at = u64::MAX;
            live.fed = Some(view.clone());
            let (number, hash) = (news.head.number, news.head.hash.0);
            live.record(now, &Recorded::Life(Input::Block(Box::new(view))))?;
            live.record(now, &Recorded::Read { number, hash })?;
        }
        for request in settled {
            self.tell_waiters(&request);
        }
        // Its transaction is most probably mined again, but nothing may have to say so.
        for request in taken_back {
            self.ask_again(request);
        }
        act::housekeeping(self);
        Ok(())
    }

    /// A heartbeat of this epoch by a process that is none of this lease's, mined since this one leads. (What was mined
    /// before is of a process that is gone, where this disk is an older copy.)
    fn foreign_heartbeat(&self, logs: &[LogItem], epoch: u64) -> Option<B256> {
        let since = self.office.map_or(0, |office| office.turned_at);
        logs.iter().find_map(|item| match item {
            LogItem::Emitted(log) if log.block > since => match &log.event {
                ChainEvent::Treasury(TreasuryEvent::Heartbeat(beat))
                    if beat.epoch == epoch && self.cx.instances.is_foreign(beat.instance) =>
                {
                    Some(beat.instance)
                }
                _ => None,
            },
            _ => None,
        })
    }

    /// Two processes have this operator's key. Whose memory is the agent's is not for either of them to say.
    fn stop_beside_a_copy(&mut self, instance: B256) {
        tracing::error!(%instance, "another process signs heartbeats as this operator: stopping for good");
        self.is_copied = true;
        self.shared.set_trouble(Some(format!(
            "a copy of this host signs as the operator (instance {instance}): this one serves and signs nothing any more; \
             stewards evict the host"
        )));
        self.set_role(Role::Fenced);
    }

    /// Events are read from where the record and the chain part; what was read beyond that is taken back first.
    fn read_on_from(&mut self, height: u64) -> Result<()> {
        let now = self.now();
        let Some(live) = self.live.as_mut().filter(|live| self.role == Role::Active && !live.sealed) else {
            return Ok(());
        };
        let records = live.state.take_back_above(height);
        if !records.is_empty() {
            tracing::warn!(height, "the chain came back without blocks that were read: what they held is taken back");
        }
        for gone in &records {
            live.record(now, gone)?;
        }
        for gone in &records {
            if let Recorded::Events { payments, .. } = gone {
                money_events::reversed_in(payments).for_each(|request| self.ask_again(request));
            }
        }
        let read = self.live.as_ref().and_then(|live| live.state.read_blocks().find(|(number, _)| *number == height));
        let hash = read.map(|(_, hash)| B256::from(hash));
        // A receiver that is gone means that the loop ends, too.
        let _ = self.logs_from.send(Some(ReadAfter { height, hash }));
        Ok(())
    }

    /// Which of the blocks that were read the chain still has.
    fn ask_what_stands(&self) {
        let Some(live) = &self.live else { return };
        let read: Vec<_> = live.state.read_blocks().collect();
        let cx = self.cx.clone();
        tokio::spawn(async move {
            let height = crate::watch::newest_standing(&cx, read).await;
            cx.tell(Event::StillStands(height)).await;
        });
    }

    /// One input of the life, if this node leads it.
    pub(crate) fn life(&mut self, input: Input) -> Result<()> {
        if self.role != Role::Active {
            return Ok(());
        }
        let now = self.now();
        if let Some(live) = &mut self.live
            && !live.sealed
        {
            live.record(now, &Recorded::Life(input))?;
        }
        Ok(())
    }

    // ---- becoming active ----

    /// The chain names this node. It leads once it has the memory: its own journal, the old node's last words,
    /// the stewards' shares, or nothing at all at birth.
    fn try_become_active(&mut self) -> Result<()> {
        let turned = *self.turned_ms.get_or_insert_with(boottime_ms);
        self.follow_the_former();
        let is_early = boottime_ms().saturating_sub(turned) < LAST_WORDS_MS;
        if self.follower.is_some() && !self.last_word && is_early {
            return Ok(());
        }
        if self.live.is_some() { self.lead_from_the_journal() } else { self.lead_from_elsewhere() }
    }

    fn lead_from_the_journal(&mut self) -> Result<()> {
        // Before the first checkpoint nobody else has anything of this life.
        let is_first = self.news.as_ref().is_some_and(|news| news.state.checkpointSeq == 0);
        match self.found {
            _ if is_first => self.become_active(Begins::OnItsOwn),
            Found::Nothing => self.become_active(Begins::OnItsOwn),
            Found::Unproven => {
                self.ask_what_is_reached();
                Ok(())
            }
            Found::Asked | Found::Behind => Ok(()),
        }
    }

    fn lead_from_elsewhere(&mut self) -> Result<()> {
        let Some(news) = &self.news else { return Ok(()) };
        if news.state.checkpointSeq == 0 && news.state.epoch == 1 {
            return self.be_born();
        }
        if self.restoring {
            return Ok(());
        }
        let (epoch, digest) = (news.state.epoch, news.state.checkpointDigest);
        tracing::info!(epoch, "operator without memory: restoring the acknowledged checkpoint");
        let ring = self.cx.ring_file.load()?;
        self.restoring = true;
        let cx = self.cx.clone();
        tokio::spawn(async move {
            let restored = restore::acknowledged(&cx, epoch, digest, &ring).await;
            if restored.is_err() {
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
            cx.tell(Event::Restored { epoch, restored: restored.map(Box::new) }).await;
        });
        Ok(())
    }

    /// Whether the journal here is this node's own of the epoch that the chain shows, so that nobody else has more of it. One
    /// that does not say is taken for it.
    fn has_led(&self) -> bool {
        let (Some(news), Some(live)) = (&self.news, &self.live) else { return false };
        let (led, own) = (live.state.led(), Led { epoch: news.state.epoch, lease: self.cx.config.lease });
        led == own || led == Led::default()
    }

    /// A move was mined while this process was down, or since it began: it knows nothing of what the old node recorded
    /// meanwhile, and asks for it first. What it had acknowledged stays; a journal that the old node's life is not in was left
    /// by an earlier attempt. Either may still be an old image of this node's own disk, so what was acknowledged is asked, too.
    fn follow_the_former(&mut self) {
        if self.follower.is_some() || self.found != Found::Unproven || self.has_led() {
            return;
        }
        let (Some(news), Some(live)) = (&self.news, &self.live) else { return };
        // After a takeover nobody drains; before the first checkpoint nobody was followed.
        let Some(former) = news.draining.as_ref().filter(|_| news.state.checkpointSeq > 0) else { return };
        let (lease, url) = (former.id, former.lease.endpoint.clone());
        let held = (live.state.led().lease == lease).then(|| live.journal.last_lsn());
        tracing::info!(lease, url, ?held, "operator since this process was down: asking the node that led before");
        if held.is_none() {
            self.live = None;
            self.found = Found::Nothing;
        }
        self.follow(lease, url, held, true);
    }

    fn ask_what_is_reached(&mut self) {
        let Some(news) = &self.news else { return };
        self.found = Found::Asked;
        // What an old operator wrote beyond the cut counts for nothing beside this node's own records.
        let own = (self.has_led() && !news.state.restoring).then_some(news.state.epoch);
        let (cx, digest) = (self.cx.clone(), news.state.checkpointDigest);
        tokio::spawn(async move {
            cx.tell(Event::Reached(restore::reached(&cx, digest, own).await)).await;
        });
    }

    /// A journal that ends before what was acknowledged is an older one (a disk image that was started again, a successor that
    /// was down): nothing is done from it. With the acknowledged checkpoint's key in the ring, or after a takeover, the memory
    /// can be had; else the old node of a move has it, for as long as it is there; else this process has no right to it and
    /// ends, and once it is silent for long enough the standby takes over.
    fn on_reached(&mut self, reached: Result<restore::Reached>) -> Result<()> {
        if self.found != Found::Asked {
            return Ok(());
        }
        self.found = match reached {
            _ if !self.is_named() => Found::Unproven,
            Ok(reached) => self.compared_with(&reached)?,
            // Without them nothing can be acknowledged either, and a host must be able to start again without its store.
            Err(e) => {
                tracing::warn!(error = %chain_of(&e), "whether this journal is the newest cannot be told now");
                Found::Nothing
            }
        };
        if self.is_named() { self.try_become_active() } else { Ok(()) }
    }

    fn compared_with(&mut self, reached: &restore::Reached) -> Result<Found> {
        let last = self.live.as_ref().map_or(0, |live| live.journal.last_lsn());
        if reached.lsn <= last {
            return Ok(Found::Nothing);
        }
        let old = format!("this journal ends at record {last}, and record {} was acknowledged", reached.lsn);
        let is_restoring = self.news.as_ref().is_some_and(|news| news.state.restoring);
        if is_restoring || self.cx.ring_file.load()?.memory_of(&reached.recipient).is_some() {
            tracing::warn!("{old}: it is left, and the memory restored");
            (self.live, self.last_word) = (None, false);
            return Ok(Found::Nothing);
        }
        if self.follower.is_some() && !self.last_word {
            tracing::warn!("{old}: waiting for the node that led before");
            return Ok(Found::Behind);
        }
        Err(Error::corrupt(format!(
            "{old}: {} is an old copy. Nothing is done from it; a standby takes over and restores the last acknowledged \
             checkpoint",
            self.journal_dir().display()
        )))
    }

    /// A standby that the newest block names as operator.
    fn is_named(&self) -> bool {
        self.role == Role::Standby && self.news.as_ref().is_some_and(|news| news.state.operator == self.cx.me())
    }

    fn be_born(&mut self) -> Result<()> {
        let journal =
            journal::Journal::open(&self.journal_dir(), journal::Options::default(), self.on_durable_callback())
                .map_err(|e| Error::retry("the journal cannot be made").caused_by(e))?
                .journal;
        let ring = self.cx.ring_file.load()?;
        let state = genesis::fresh(&self.cx);
        // A replay begins from this, and not from what manifest and treasury make of it by then.
        journal
            .write_snapshot(0, &state.encode())
            .map_err(|e| Error::retry("the first snapshot cannot be written").caused_by(e))?;
        self.live = Some(Live::new(state, journal, 0, ring, self.cx.manifest.exposure_uusdc_max));
        self.become_active(Begins::OnItsOwn)
    }

    fn become_active(&mut self, begins: Begins) -> Result<()> {
        let Some(news) = &self.news else { return Ok(()) };
        let (epoch, lease, now) = (news.state.epoch, self.cx.config.lease, news.head.timestamp);
        let restored = begins == Begins::Restored;
        let office = Office { epoch, turned_at: news.head.number };
        let (digest, seq) = (news.state.checkpointDigest, news.state.checkpointSeq);
        // The old node still finishes streams that were open at the cut, and reports them.
        let moved = self.last_word;
        self.stop_following();
        self.turned_ms = None;
        self.office = Some(office);
        self.last_word = false;
        self.set_role(Role::Active);
        self.cx.operator.go_on();
        self.cx.relay.go_on();
        let late = std::mem::take(&mut self.late);
        let Some(live) = &mut self.live else { return Ok(()) };
        live.sealing_for = (digest != alloy::primitives::B256::ZERO).then_some(digest.0);
        for recorded in &late {
            live.record(now, recorded)?;
        }
        live.ring.learn(&live.state.conversations);
        live.ring.forget_before(seq);
        self.cx.ring_file.save(&live.ring)?;
        live.record(now, &Recorded::Life(Input::Booted { epoch, lease, restored }))?;
        let text = format!("epoch {epoch} begins on lease {lease} at {}", self.cx.config.public_url);
        crate::act::write_line(live, &self.shared, now, "epoch", text.clone())?;
        tracing::info!("{text}");
        // Outputs whose end no record tells: done again, each guarded by what the contract allows once.
        if let Some(price) = live.state.agent.serving() {
            self.shared.sell_at(price);
        }
        let unfinished = live.unfinished(now);
        self.ask_what_stands();
        for (id, output) in unfinished {
            act::perform(self, id, output);
        }
        match begins {
            _ if moved => self.await_reports(epoch)?,
            Begins::Again => {}
            Begins::OnItsOwn | Begins::Restored => self.close_interrupted(epoch)?,
        }
        crate::settle::resume(self)?;
        self.resume_channels()?;
        act::learn_shipping(self);
        if !late.is_empty() {
            self.reports_are_over()?;
        }
        Ok(())
    }

    fn follow_active(&mut self) {
        let Some(news) = &self.news else { return };
        let digest = news.state.checkpointDigest;
        let active = news.state.activeLease.saturating_to::<u64>();
        if let Some(follower) = self.follower.as_ref().filter(|follower| follower.lease == active) {
            follower.want.send_if_modified(|known| known.replace(digest) != Some(digest));
            return;
        }
        let Some(url) = news.active.as_ref().map(|l| l.lease.endpoint.clone()) else { return };
        if news.state.checkpointSeq == 0 {
            return;
        }
        tracing::info!(lease = active, url, "announced as successor: following the active node");
        // A journal left here by an earlier attempt is stale: the acknowledged checkpoint is where it starts.
        self.live = None;
        self.found = Found::Nothing;
        self.follow(active, url, None, false);
    }

    /// `held`: up to which record that node's journal is on this disk.
    fn follow(&mut self, lease: u64, url: String, held: Option<u64>, is_late: bool) {
        let Some((epoch, digest)) = self.news.as_ref().map(|n| (n.state.epoch, n.state.checkpointDigest)) else {
            return;
        };
        self.stop_following();
        self.followers += 1;
        let (id, (want, wanted)) = (self.followers, watch::channel(Some(digest)));
        self.follower = Some(Follower { id, lease, is_late, want });
        // Also when nobody listens: of a journal that is gone nothing is on this disk.
        self.durable.send_replace(held.unwrap_or(0));
        let followed = moving::Followed { follower: id, url, epoch, held };
        tokio::spawn(moving::follow(self.cx.clone(), followed, self.durable.subscribe(), wanted));
    }

    fn stop_following(&mut self) {
        if let Some(follower) = self.follower.take() {
            let _ = follower.want.send(None);
        }
    }

    /// Whether this follower's words count: the present one's, until this node leads.
    fn follows(&self, follower: u64) -> bool {
        self.role == Role::Standby && self.follower.as_ref().is_some_and(|present| present.id == follower)
    }

    /// What was asked for in another epoch is not what the chain names this node for now; and a journal that came from the
    /// old node meanwhile has more.
    fn on_restored(&mut self, epoch: u64, restored: Result<Box<Restored>>) -> Result<()> {
        self.restoring = false;
        let restored = match restored {
            Ok(restored) => *restored,
            Err(e) => {
                tracing::warn!(error = %chain_of(&e), "no memory yet: trying again with the next block");
                return Ok(());
            }
        };
        let is_epoch = self.news.as_ref().is_some_and(|news| news.state.epoch == epoch);
        if !self.is_named() || !is_epoch || self.live.is_some() {
            tracing::info!(epoch, "the memory that was restored is not wanted any more");
            return Ok(());
        }
        self.take_in(restored)?;
        self.become_active(Begins::Restored)
    }

    fn on_begun(&mut self, follower: u64, restored: Restored) -> Result<()> {
        // An old node that has less than what it was told is here has nothing to begin with once this one is operator.
        let has_more = self.is_named() && self.live.is_some();
        if !self.follows(follower) || has_more {
            return Ok(());
        }
        self.take_in(restored)?;
        // Until the first records after the checkpoint are here.
        self.found = Found::Unproven;
        Ok(())
    }

    /// A journal of this memory takes the place of the one that lies here.
    fn take_in(&mut self, restored: Restored) -> Result<()> {
        self.live = None;
        let dir = self.journal_dir();
        if dir.exists() {
            std::fs::remove_dir_all(&dir)
                .map_err(|e| Error::retry(format!("cannot clear {}", dir.display())).caused_by(e))?;
        }
        let snapshot = journal::Snapshot { lsn: restored.lsn, bytes: restored.state };
        let on_durable = self.on_durable_callback();
        let journal = journal::Journal::create_at(&dir, &snapshot, journal::Options::default(), on_durable)
            .map_err(|e| Error::retry("the journal cannot be made").caused_by(e))?;
        self.cx.ring_file.save(&restored.ring)?;
        self.granted_token = restored.token;
        let state = State::decode(&snapshot.bytes)?;
        let mut live = Live::new(state, journal, restored.lsn, restored.ring, self.cx.manifest.exposure_uusdc_max);
        for run in &restored.later {
            live.import(run)?;
        }
        let last = live.journal.next_lsn() - 1;
        if last < restored.until {
            let until = restored.until;
            return Err(Error::corrupt(format!("the checkpoint's segments end with record {last}, not with {until}")));
        }
        self.durable.send_replace(restored.lsn);
        self.live = Some(live);
        self.found = Found::Nothing;
        Ok(())
    }

    fn on_tail(&mut self, tail: Tail) -> Result<()> {
        if !self.follows(tail.follower) {
            return Ok(());
        }
        let Some(live) = &mut self.live else { return Ok(()) };
        self.granted_token = Some(tail.token);
        if !tail.records.is_empty() {
            live.import(&tail.records)?;
        }
        // A follower that was ended does not need to hear it.
        let _ = tail.taken.send(());
        self.last_word |= tail.last;
        if !self.follower.as_ref().is_some_and(|follower| follower.is_late) {
            // From now on nothing leaves the old node during the handover that is not here.
            self.found = Found::Nothing;
        } else if tail.last {
            // This may be an image of a disk on which this node led already: of its own records the old node knows nothing.
            self.found = Found::Unproven;
        }
        if tail.last && self.is_named() {
            self.try_become_active()?;
            self.publish();
        }
        Ok(())
    }

    /// The last ones come after the last records, and mostly after this node began to lead. Where a checkpoint of its own
    /// stands by then, it keeps its own keys, and learns what only the old ones open.
    fn on_later_keys(&mut self, follower: u64, later: KeyRing) -> Result<()> {
        let (Some(news), Some(live)) = (&self.news, &mut self.live) else { return Ok(()) };
        if follower != self.followers {
            return Ok(());
        }
        let mut ring = live.ring.clone();
        ring.merge(later);
        ring.learn(&live.state.conversations);
        if live.stands.as_ref().is_some_and(|own| own.epoch == news.state.epoch) && self.role != Role::Standby {
            live.ring.conversations = ring.conversations;
        } else {
            ring.forget_before(news.state.checkpointSeq);
            live.ring = ring;
        }
        self.cx.ring_file.save(&live.ring)
    }

    // ---- ceasing to be active ----

    /// The chain names another operator: take nothing new, let open streams end, then close the journal.
    fn superseded(&mut self) {
        let to = self.news.as_ref().and_then(|n| n.active.as_ref().map(|l| l.lease.endpoint.clone()));
        journal::crash_point!("handover.mined");
        tracing::info!(to, "another node is operator now: no new work here");
        self.fence.superseded();
        self.kept.clear();
        self.turned_ms = Some(boottime_ms());
        if let (Some(office), Some(news)) = (&mut self.office, &self.news) {
            office.turned_at = news.head.number;
        }
        self.shared.moved_to(to);
        self.set_role(Role::Draining);
        let _ = self.logs_from.send(None);
        self.ask_for_open_payments();
        self.drain();
    }

    fn drain(&mut self) {
        if self.role != Role::Draining {
            return;
        }
        let waited = boottime_ms().saturating_sub(self.turned_ms.unwrap_or(0));
        if self.shared.in_flight() > 0 && waited < DRAIN_MS {
            return;
        }
        if let Some(live) = &mut self.live
            && !live.sealed
        {
            live.sealed = true;
            act::give_back_gas(self);
        }
        self.answer_tails();
    }

    pub(crate) fn set_role(&mut self, role: Role) {
        if self.role != role {
            tracing::info!(from = %self.role, to = %role, "role");
            self.role = role;
        }
        self.shared.set_role(role);
    }

    // ---- a succession that a reorganisation took back ----

    /// An older head than the one at which this node began, or ceased, to be operator: an endpoint's that lags.
    fn lags(&self) -> bool {
        match (&self.office, &self.news) {
            (Some(office), Some(news)) => news.head.number < office.turned_at,
            _ => false,
        }
    }

    /// Whether the block that made this node operator, or somebody else after it, is gone: of an operator the epoch is
    /// less than its own then, of a former one the same again.
    fn is_undone(&self) -> bool {
        let (Some(office), Some(news)) = (&self.office, &self.news) else { return false };
        let is_before = match self.role {
            Role::Draining => news.state.epoch == office.epoch,
            _ => news.state.epoch < office.epoch,
        };
        is_before && !self.lags()
    }

    /// Of a former operator: the chain went another way, and names it in an epoch after its own. Others may have led between.
    fn is_named_anew(&self) -> bool {
        let epoch = self.news.as_ref().map_or(0, |news| news.state.epoch);
        self.office.is_none_or(|office| epoch > office.epoch) && !self.lags()
    }

    /// The block that named a successor is gone: this node goes on where it closed. What the successor recorded meanwhile
    /// has no effect on the chain, and streams that were open at the cut are charged here.
    fn reinstated(&mut self) -> Result<()> {
        tracing::warn!("the chain came back without the block that named another operator: serving again");
        if let Some(live) = &mut self.live {
            live.sealed = false;
        }
        self.shared.moved_to(None);
        let Some(news) = &self.news else { return Ok(()) };
        self.fence.saw_block(news.asked_ms, news.head.number, news.head.timestamp);
        self.become_active(Begins::Again)?;
        self.feed_chain()
    }

    /// The block that made this node operator is gone, and the one before it acts again. What was recorded in between binds
    /// nobody, and must not come back: this node is a standby again, which has to be given the memory anew.
    fn succession_undone(&mut self) -> Result<()> {
        tracing::warn!("the chain came back without the block that made this node operator: a standby again");
        let before = self.news.as_ref().and_then(|news| news.active.as_ref().map(|l| l.lease.endpoint.clone()));
        self.fence.superseded();
        self.kept.clear();
        self.office = None;
        self.turned_ms = None;
        self.found = Found::Nothing;
        self.live = None;
        self.stop_following();
        let dir = self.journal_dir();
        std::fs::remove_dir_all(&dir)
            .map_err(|e| Error::retry(format!("cannot clear {}", dir.display())).caused_by(e))?;
        self.shared.moved_to(before);
        self.set_role(Role::Standby);
        let _ = self.logs_from.send(None);
        Ok(())
    }

    // ---- the disk ----

    pub(crate) fn on_durable(&mut self, lsn: u64) -> Result<()> {
        let Some(live) = &mut self.live else { return Ok(()) };
        live.durable = live.durable.max(lsn);
        let _ = self.durable.send(live.durable);
        self.let_go()?;
        self.answer_tails();
        Ok(())
    }

    /// Everything leaves that may.
    pub(crate) fn let_go(&mut self) -> Result<()> {
        while let Some(effect) = self.live.as_mut().and_then(Live::release) {
            match effect {
                Effect::Life(id, output) => act::perform(self, id, output),
                Effect::Book(output) => self.on_book(output)?,
                Effect::Reply(reply) => reply(),
            }
        }
        Ok(())
    }

    fn journal_failure(&self) -> Option<String> {
        self.live.as_ref().and_then(|live| live.journal.durable().error()).map(|e| e.to_string())
    }

    /// Nothing is lost that was promised, but nothing more can be promised: stop serving and say so. No block changes that,
    /// only a start anew, once the disk takes writes again.
    fn on_disk_failed(&mut self, why: &str) {
        if self.disk_failed.is_some() {
            return;
        }
        tracing::error!(why, "the journal's disk failed: this node stops serving; it starts again once there is space");
        self.disk_failed = Some(boottime_ms());
        if let Some(live) = &mut self.live {
            live.give_up();
        }
        self.shared.set_trouble(Some(format!("the journal's disk failed: {why}")));
        self.set_role(Role::Fenced);
        self.publish();
    }

    /// # Errors
    /// The disk takes writes again: whoever runs this process starts it anew, from what is on the disk.
    fn look_at_the_disk(&mut self) -> Result<()> {
        let Some(since) = self.disk_failed else { return Ok(()) };
        if boottime_ms().saturating_sub(since) < DISK_LOOK_MS {
            return Ok(());
        }
        self.disk_failed = Some(boottime_ms());
        match journal::takes_writes(&self.journal_dir()) {
            Ok(()) => Err(Error::retry("the journal's disk takes writes again: starting anew from what it holds")),
            Err(_) => Ok(()),
        }
    }

    // ---- time ----

    /// Before anything else: a process that was stopped has much waiting for it, and may be operator no more.
    fn look_at_the_fence(&mut self) {
        if self.role == Role::Active && !self.fence.holds(boottime_ms()) {
            tracing::warn!("no fresh block names this node: fenced until one does");
            self.set_role(Role::Fenced);
            // No block comes that would tell it.
            self.publish();
        }
    }

    fn on_tick(&mut self) -> Result<()> {
        if self.disk_failed.is_some() {
            return self.look_at_the_disk();
        }
        if self.is_named() {
            self.try_become_active()?;
        }
        self.drain();
        let due = self.live.as_mut().and_then(Live::snapshot_when_long);
        self.make_snapshot(due);
        if self.role == Role::Active {
            self.post_income()?;
            self.prune()?;
            self.claim_due()?;
            self.send_home()?;
            self.watch_payers();
            act::ship(self);
            act::ask_standby(self);
        }
        Ok(())
    }
}

#[cfg(test)]
mod crashes;
#[cfg(test)]
mod hosts;
#[cfg(test)]
mod successions;
#[cfg(test)]
mod taken_back;
#[cfg(test)]
mod waiting;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context;
    use alloy::primitives::Address;

    /// On lease 1, with its files in `dir`; and what its loop would hear.
    pub(super) fn node(dir: &std::path::Path) -> (Node, mpsc::Receiver<Event>) {
        node_on("http://127.0.0.1:1", dir)
    }

    /// The same on the chain that answers at `rpc_url`.
    pub(super) fn node_on(rpc_url: &str, dir: &std::path::Path) -> (Node, mpsc::Receiver<Event>) {
        let (mut cx, heard) = context::for_tests(rpc_url, dir);
        let timers = &mut cx.birth.timers;
        (timers.day, timers.heartbeatEvery, timers.fence, timers.answerTime) = (86_400, 18_000, 19_800, 21_600);
        (Node::new(Arc::new(cx), Arc::new(Shared::default()), watch::channel(None).0), heard)
    }

    /// A block of this height that names the node as operator, or somebody else.
    pub(super) fn block(node: &Node, number: u64, fork: u8, (epoch, is_mine): (u64, bool)) -> Box<News> {
        let mut news = News::for_tests(&node.cx);
        (news.head.number, news.head.timestamp, news.head.hash) = (number, 1_000 + number, B256::repeat_byte(fork));
        news.state.epoch = epoch;
        if !is_mine {
            news.state.operator = Address::repeat_byte(0x66);
        }
        Box::new(news)
    }

    pub(super) fn records(node: &Node) -> u64 {
        node.live.as_ref().map_or(0, |live| live.journal.last_lsn())
    }

    #[tokio::test]
    async fn a_handover_that_is_taken_back_leaves_the_old_node_serving() {
        let dir = tempfile::tempdir().unwrap();
        let (mut node, _heard) = node(dir.path());
        node.on_chain(block(&node, 1, 1, (1, true))).unwrap();
        assert_eq!((node.role, node.acts()), (Role::Active, true));
        node.on_chain(block(&node, 2, 2, (2, false))).unwrap();
        // Every stream has ended: the journal is closed, and one that ends after that is the successor's.
        node.turned_ms = Some(0);
        node.drain();
        assert!(node.role == Role::Draining && node.live.as_ref().unwrap().sealed && !node.acts());
        node.report_late(Recorded::Line { kind: "late".into(), text: "an end".into() }).unwrap();
        let closed = records(&node);
        // An endpoint that lags shows an old block: nothing is read into it.
        node.on_chain(block(&node, 1, 1, (1, true))).unwrap();
        assert_eq!((node.role, records(&node)), (Role::Draining, closed));
        // Another block of the same height: this node is operator, and was all the time.
        node.on_chain(block(&node, 2, 3, (1, true))).unwrap();
        assert_eq!((node.role, node.acts(), node.shared.moved()), (Role::Active, true, None));
        let text = |record: &journal::Record| match Recorded::decode(&record.payload).unwrap() {
            Recorded::Line { text, .. } => text,
            _ => String::new(),
        };
        let live = node.live.as_ref().unwrap();
        live.journal.sync().unwrap();
        let new = journal::read_export(&live.journal.export(closed + 1, live.journal.last_lsn()).unwrap()).unwrap();
        assert_eq!(text(&new[0]), "an end", "what ended in between is in this node's books");
        // And ceases to be when it is mined again.
        node.on_chain(block(&node, 3, 4, (2, false))).unwrap();
        assert_eq!((node.role, node.acts()), (Role::Draining, false));
    }

    #[tokio::test]
    async fn a_succession_that_is_taken_back_leaves_nothing_of_itself() {
        let dir = tempfile::tempdir().unwrap();
        let (mut node, _heard) = node(dir.path());
        node.on_chain(block(&node, 5, 1, (1, true))).unwrap();
        assert_eq!(node.role, Role::Active);
        // An endpoint that lags has not seen it yet.
        node.on_chain(block(&node, 4, 2, (0, false))).unwrap();
        assert_eq!(node.role, Role::Active);
        node.on_chain(block(&node, 6, 3, (0, false))).unwrap();
        assert_eq!((node.role, node.acts(), node.live.is_none()), (Role::Standby, false, true));
        assert!(!node.journal_dir().exists(), "a start must not go on from records that bind nobody");
        // Mined again: with a memory of its own, not with that one.
        node.on_chain(block(&node, 7, 4, (1, true))).unwrap();
        assert_eq!((node.role, node.acts()), (Role::Active, true));
    }

    #[tokio::test]
    async fn a_node_whose_disk_failed_acts_no_more_until_it_takes_writes() {
        let dir = tempfile::tempdir().unwrap();
        let (mut node, mut heard) = node(dir.path());
        node.on_chain(block(&node, 1, 1, (1, true))).unwrap();
        let (reply, waits) = oneshot::channel();
        node.live.as_mut().unwrap().when_durable(u64::MAX, move || reply.send(()).unwrap());
        // The next segment of the journal has no folder to lie in.
        std::fs::remove_dir_all(node.journal_dir()).unwrap();
        let line = Recorded::Line { kind: "long".into(), text: "x".repeat(1 << 20) };
        let failed = (0..64).find_map(|_| node.live.as_mut().unwrap().record(1, &line).err());
        let why = loop {
            match tokio::time::timeout(Duration::from_secs(60), heard.recv()).await.expect("it fails").unwrap() {
                Event::Durable(Err(why)) => break why,
                other => assert!(node.on_event(other).is_ok()),
            }
        };
        assert!(failed.is_none_or(|e| net::chain_of(&e).contains(&why)), "{why}");
        assert!(node.journal_failure().is_some());
        node.on_event(Event::Durable(Err(why))).unwrap();
        assert_eq!(node.role, Role::Fenced);
        assert!(waits.await.is_err(), "nobody is told that what is lost is durable");
        // The chain goes on naming it; it does not act, whatever comes.
        node.on_chain(block(&node, 2, 2, (1, true))).unwrap();
        node.on_tick().unwrap();
        assert_eq!((node.role, node.acts()), (Role::Fenced, false));
        // Not yet; then the disk takes writes, and the process ends to be started anew.
        node.disk_failed = Some(0);
        node.on_tick().unwrap();
        std::fs::create_dir_all(node.journal_dir()).unwrap();
        node.disk_failed = Some(0);
        let ended = node.on_tick().unwrap_err();
        assert_eq!(ended.kind, crate::error::Kind::Retry, "{ended}");
    }

    /// A block with its events of a treasury that is alive, in which nobody has beaten yet.
    pub(super) fn whole_block(node: &Node, number: u64) -> Box<News> {
        let mut news = block(node, number, u8::try_from(number).unwrap(), (1, true));
        (news.state.stage, news.logs) = (1, Some(Vec::new()));
        news.head.timestamp = 100_000 + number;
        news
    }

    /// The heartbeats that the life has asked for and heard no end of.
    fn beats(node: &Node) -> Vec<OutputId> {
        let unfinished = node.live.as_ref().unwrap().state.agent.unfinished();
        let beat = |output: &economy::Output| matches!(output, economy::Output::Heartbeat { .. });
        unfinished.into_iter().filter(|(_, output)| beat(output)).map(|(id, _)| id).collect()
    }

    /// The chain hangs between a heartbeat and the word that it was mined, which comes before the next block is read. A
    /// life that never hears it never beats again.
    #[tokio::test]
    async fn a_fenced_node_hears_what_became_of_its_heartbeat_when_it_acts_again() {
        let dir = tempfile::tempdir().unwrap();
        let (mut node, _heard) = node(dir.path());
        let logs_from = node.logs_from.subscribe();
        for number in 1..=2 {
            node.on_chain(whole_block(&node, number)).unwrap();
        }
        let [beat] = beats(&node)[..] else { panic!("{:?}", beats(&node)) };
        node.fence.superseded();
        node.on_event(Event::Acted { id: beat, outcome: economy::Outcome::Done { block: 3 } }).unwrap();
        node.on_event(Event::StillStands(0)).unwrap();
        assert_eq!((node.role, beats(&node)), (Role::Fenced, vec![beat]), "a fenced node decides nothing");
        assert_eq!(*logs_from.borrow(), None);
        // The same block once more is not a fresh one.
        node.on_chain(whole_block(&node, 2)).unwrap();
        assert_eq!((node.role, beats(&node)), (Role::Fenced, vec![beat]));
        node.on_chain(whole_block(&node, 4)).unwrap();
        assert_eq!((node.role, beats(&node)), (Role::Active, vec![]));
        let after = ReadAfter { height: 0, hash: None };
        assert_eq!(*logs_from.borrow(), Some(after), "events are read on");
        // As it asked to be.
        node.live.as_mut().unwrap().wake_at = 0;
        node.on_chain(whole_block(&node, 5)).unwrap();
        assert!(beats(&node).len() == 1 && beats(&node) != [beat], "the next heartbeat is due: {:?}", beats(&node));
    }

    #[tokio::test]
    async fn a_fenced_node_whose_place_was_taken_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let (mut node, _heard) = node(dir.path());
        node.on_chain(block(&node, 1, 1, (1, true))).unwrap();
        node.fence.superseded();
        node.on_event(Event::Tick).unwrap();
        assert_eq!(node.role, Role::Fenced);
        node.on_chain(block(&node, 2, 2, (2, false))).unwrap();
        assert_eq!((node.role, node.acts()), (Role::Draining, false));
    }

    /// A process was stopped while it asked for a block, or before it read the answer.
    #[tokio::test]
    async fn an_answer_is_as_old_as_its_question() {
        let dir = tempfile::tempdir().unwrap();
        let (mut node, _heard) = node(dir.path());
        node.on_chain(block(&node, 1, 1, (1, true))).unwrap();
        assert!(node.acts());
        let mut news = block(&node, 2, 2, (1, true));
        news.asked_ms = 0;
        node.fence = Fence::new(1);
        node.on_event(Event::Chain(news)).unwrap();
        assert_eq!((node.role, node.acts()), (Role::Fenced, false));
    }

    #[tokio::test]
    async fn a_node_beside_a_copy_of_itself_stops_for_good() {
        let dir = tempfile::tempdir().unwrap();
        let (mut node, _heard) = node(dir.path());
        let later = crate::instance::Instances::begin(dir.path(), &[1; 32]).unwrap().own();
        node.on_chain(block(&node, 5, 1, (1, true))).unwrap();
        let node_address = node.cx.config.treasury;
        let heartbeat = |number: u64, epoch: u64, instance: B256| {
            let beat = chain::bindings::Treasury::Heartbeat { epoch, instance, receiptsRoot: B256::ZERO };
            let event = ChainEvent::Treasury(TreasuryEvent::Heartbeat(beat));
            LogItem::Emitted(chain::logs::ChainLog {
                block: number,
                block_hash: B256::ZERO,
                index: 0,
                tx: B256::ZERO,
                address: node_address,
                event,
                data: alloy::primitives::LogData::default(),
            })
        };
        let foreign = B256::repeat_byte(9);
        // Its own, one of another epoch, and one that was there when it began.
        let own = node.cx.instances.own();
        let harmless = [(6, 1, own), (6, 2, foreign), (5, 1, foreign)];
        let mut news = block(&node, 6, 2, (1, true));
        news.logs = Some(harmless.map(|(number, epoch, instance)| heartbeat(number, epoch, instance)).to_vec());
        node.on_chain(news).unwrap();
        assert_eq!((node.role, node.acts()), (Role::Active, true));
        let mut news = block(&node, 7, 3, (1, true));
        news.logs = Some(vec![heartbeat(7, 1, later)]);
        node.on_chain(news).unwrap();
        assert_eq!((node.role, node.acts()), (Role::Fenced, false), "it was drawn after this process began");
        node.on_chain(block(&node, 8, 4, (1, true))).unwrap();
        node.on_tick().unwrap();
        assert_eq!((node.role, node.acts()), (Role::Fenced, false));
    }

    #[test]
    fn an_arm_says_how_long_it_took() {
        let mut arm = Arm::within(BUDGET);
        arm.took(BUDGET);
        arm.took(Duration::from_millis(21));
        let longest = Duration::from_millis(21);
        let expected = Arm { count: 2, total: Duration::from_millis(41), longest, budget: BUDGET, over_budget: 1 };
        assert_eq!(arm, expected);
    }

    #[tokio::test]
    async fn a_life_is_replayed_from_the_limits_that_it_began_with() {
        let dir = tempfile::tempdir().unwrap();
        let (mut node, _heard) = node(dir.path());
        node.be_born().unwrap();
        let begun = node.live.as_ref().unwrap().state.encode();
        let journal = node.journal_dir();
        drop(node);
        // Before any checkpoint, when a quorum has tightened the treasury's limits.
        let (state, _) =
            Live::replay(&journal, || unreachable!("it is on the disk"), Box::new(|_| ())).unwrap().unwrap();
        assert_eq!(state.encode(), begun);
    }
}
