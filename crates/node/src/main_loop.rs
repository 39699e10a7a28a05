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
use crate::memory::Pages;
use crate::moving::{self, PeerAsk, Tail};
use crate::payer_gas::PayerGas;
use crate::replicate::{Sent, Shipped};
use crate::restore::{self, Restored};
use crate::settle::{Settlement, Waiter};
use crate::shared::{Role, Shared};
use crate::state::{Recorded, State};
use crate::watch::News;
use crate::{act, genesis, money_events};
use economy::{Input, OutputId};
use net::chain_of;
use pay::facilitator::api::Asked;
use pay::scheme::channel::ChannelId;
use pay::{BookInput, RequestId};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use store::checkpoint::Checkpoint;
use tokio::sync::{mpsc, oneshot, watch};

/// How often the loop looks at what has no event of its own: fence, shipping, income.
const TICK: Duration = Duration::from_millis(200);
/// A successor waits this long for the old node's last records before it goes on with what it has, ms.
const LAST_WORDS_MS: u64 = 4_000;
/// The old node lets open streams run this long before it closes its journal, ms.
const DRAIN_MS: u64 = 1_500;
/// After a move, streams open at the cut that the old node has not reported by then are closed at their last mark. In
/// worlds with short days `restoreTimeout`, if that is less: the next move must not come before it.
const LATE_REPORTS: Duration = Duration::from_secs(60);

pub enum Event {
    /// A new block, with everything read at it.
    Chain(Box<News>),
    /// The chain did not answer.
    ChainLost(String),
    /// The journal's disk: durable up to here, or failed for good.
    Durable(std::result::Result<u64, String>),
    /// The newest block read before this process began that the chain still has (0: none of them).
    StillStands(u64),
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
    /// Memory arrived from the active node or the stewards.
    Restored(Result<Box<Restored>>),
    /// Records of the active node, during a move.
    Tail(Tail),
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
            Self::Durable(_) => "durable",
            Self::Ask(_) => "ask",
            Self::Peer(_) => "peer",
            Self::Acted { .. } => "acted",
            Self::Archivist { .. } => "archivist",
            Self::Committed { .. } => "committed",
            Self::Settled { .. } => "settled",
            Self::ChannelRead(_) => "channel_read",
            Self::Shipped(_) => "shipped",
            Self::ShippingKnown { .. } => "shipping_known",
            Self::Standby { .. } => "standby",
            Self::Reached(_) => "reached",
            Self::Restored(_) => "restored",
            Self::Tail(_) => "tail",
            Self::Throughput(_) => "throughput",
            Self::Look(_) => "look",
            Self::LateIsOver(_) => "late_is_over",
            Self::Tick => "tick",
            Self::Stop => "stop",
        }
    }
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
    pub(crate) logs_from: watch::Sender<Option<u64>>,
    /// Ends a follower when another successor is announced.
    follower: Option<(u64, watch::Sender<bool>)>,
    /// The old node said its last word (or the restore needs none).
    last_word: bool,
    /// When this node first saw itself as operator, or stopped being it.
    turned_ms: Option<u64>,
    restoring: bool,
    /// The journal here was found on the disk, and nobody has said yet that it is the newest one.
    found: Found,
    /// The token under which this node follows its predecessor, which reports late deliveries by it.
    pub(crate) granted_token: Option<String>,
    /// Bearer token of the announced successor, with its exchange recipient.
    pub(crate) successor: Option<(String, store::seal::Recipient)>,
    pub(crate) tail_waiters: Vec<(u64, oneshot::Sender<Result<moving::TailPart>>)>,
    pub(crate) settled_waiters: BTreeMap<pay::RequestId, Vec<Waiter>>,
    /// Reserved to be settled after they were served, and not sent yet: nobody waits for their settlement. A restart
    /// forgets it, and needs no more of it: then nobody waits for any.
    pub(crate) settled_after: BTreeSet<pay::RequestId>,
    /// Who waits for a channel's deposit or refund.
    pub(crate) channel_waiters: BTreeMap<ChannelId, Vec<oneshot::Sender<Moved>>>,
    /// Deposits that another's facilitator will be asked to put in. A restart forgets them: then the relay does it.
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
    counts: BTreeMap<&'static str, u64>,
}

/// A journal that lay on this disk at the start. A disk may come back older than it was: a snapshot of the machine, a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    /// None, or it may go on: what is in memory is as new as anything that was acknowledged.
    Nothing,
    /// Not compared yet with what the world holds.
    Unproven,
    /// Being compared.
    Asked,
}

impl Node {
    pub fn new(cx: Arc<Context>, shared: Arc<Shared>, logs_from: watch::Sender<Option<u64>>) -> Self {
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
            last_word: false,
            turned_ms: None,
            restoring: false,
            found: Found::Nothing,
            granted_token: None,
            successor: None,
            standby_asked_ms: 0,
            takeover_in_flight: Arc::default(),
            tail_waiters: Vec::new(),
            settled_waiters: BTreeMap::new(),
            settled_after: BTreeSet::new(),
            channel_waiters: BTreeMap::new(),
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
            counts: BTreeMap::new(),
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
            *self.counts.entry(event.name()).or_default() += 1;
            match event {
                Event::Chain(news) => self.on_chain(news)?,
                Event::ChainLost(why) => tracing::warn!(why, "the chain does not answer, or not with one voice"),
                Event::StillStands(height) => self.read_on_from(height)?,
                Event::Durable(Ok(lsn)) => self.on_durable(lsn)?,
                Event::Durable(Err(why)) => self.on_disk_failed(&why),
                Event::Ask(ask) => self.on_ask(*ask)?,
                Event::Peer(ask) => self.on_peer(ask)?,
                Event::Acted { id, outcome } => self.life(Input::Done { id, outcome })?,
                Event::Archivist { id, said } => self.on_archivist(id, *said)?,
                Event::Committed { id, block, checkpoint, pages } => self.on_committed(id, block, checkpoint, pages)?,
                Event::Settled { request, settlement } => self.on_settled(request, settlement)?,
                Event::ChannelRead(read) => self.on_channel_read(*read)?,
                Event::Shipped(shipped) => self.on_shipped(shipped),
                Event::ShippingKnown { next_index, prev, replicated_lsn, sent, stands } => {
                    self.on_shipping_known((next_index, prev), replicated_lsn, sent, stands);
                }
                Event::Standby { lease, ready } => self.life(Input::StandbyAnswered { lease, ready })?,
                Event::Reached(reached) => self.on_reached(reached)?,
                Event::Restored(restored) => self.on_restored(restored)?,
                Event::Tail(tail) => self.on_tail(tail)?,
                Event::Throughput(milli_tokens_per_sec) => self.life(Input::Throughput { milli_tokens_per_sec })?,
                Event::Look(look) => look(&self),
                Event::LateIsOver(requests) => crate::settle::close_unreported(&mut self, &requests)?,
                Event::Tick => self.on_tick()?,
                Event::Stop => break,
            }
        }
        tracing::info!("stopping: the journal is flushed and closed");
        Ok(())
    }

    /// Chain time of the last block seen, seconds.
    pub fn now(&self) -> u64 {
        self.news.as_ref().map_or(0, |n| n.head.timestamp)
    }

    pub fn counts(&self) -> &BTreeMap<&'static str, u64> {
        &self.counts
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
        Ok(())
    }

    // ---- the chain ----

    fn on_chain(&mut self, news: Box<News>) -> Result<()> {
        let mine = news.state.operator == self.cx.me();
        if mine {
            self.fence.saw_block(boottime_ms(), news.head.number, news.head.timestamp);
        }
        let announced_to_me = news.state.announcedLease == alloy::primitives::U256::from(self.cx.config.lease);
        self.news = Some(news);
        self.shared.set_relay_has_gas(!self.relay_is_poor());
        match (self.role, mine) {
            (Role::Active, true) => self.feed_chain()?,
            (Role::Active, false) => self.superseded(),
            (Role::Fenced, true) => {
                tracing::info!("a fresh block names this node as operator: serving again");
                self.set_role(Role::Active);
                self.feed_chain()?;
            }
            (Role::Standby, true) => self.try_become_active()?,
            (Role::Standby, false) => {
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

    /// Money and life as of this block, if anything changed or the life asked to be woken.
    fn feed_chain(&mut self) -> Result<()> {
        let Some(news) = &self.news else { return Ok(()) };
        let Some(live) = &mut self.live else { return Ok(()) };
        // Without the events of the same block the books cannot be compared with the balance.
        let Some(logs) = &news.logs else { return Ok(()) };
        let now = news.head.timestamp;
        let money = money_events::translate(logs, &news.signed, &self.cx, live.state.leases(), &live.state.book);
        let view = news.view(self.cx.me());
        let changed = live.fed.as_ref().is_none_or(|fed| crate::watch::differs(fed, &view));
        let (mut settled, mut taken_back) = (Vec::new(), Vec::new());
        for input in money.book {
            match &input {
                BookInput::Settled { method, payer, nonce, .. } => {
                    settled.push(RequestId::of_payment(*method, payer, nonce));
                }
                BookInput::Reversed { method, payer, nonce } => {
                    taken_back.push(RequestId::of_payment(*method, payer, nonce));
                }
                _ => {}
            }
            live.record(now, &Recorded::Book(input))?;
        }
        // A heartbeat must not depend on the life's own alarm alone.
        let routine = u64::from(self.cx.birth.timers.heartbeatEvery / 2).max(1);
        let due = now >= live.wake_at || live.fed.as_ref().is_none_or(|fed| now >= fed.timestamp + routine);
        if !money.life.is_empty() || changed || due {
            if !money.life.is_empty() {
                live.record(now, &Recorded::Life(Input::Chain(money.life)))?;
            }
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

    /// Events are read from where the record and the chain part; what was read beyond that is taken back first.
    fn read_on_from(&mut self, height: u64) -> Result<()> {
        let now = self.now();
        let Some(live) = self.live.as_mut().filter(|live| self.role == Role::Active && !live.sealed) else {
            return Ok(());
        };
        let gone = live.state.take_back_above(height);
        if !gone.is_empty() {
            tracing::warn!(height, "the chain came back without blocks that were read: their events are taken back");
        }
        for record in &gone {
            live.record(now, record)?;
        }
        for record in &gone {
            if let Recorded::Book(BookInput::Reversed { method, payer, nonce }) = record {
                self.ask_again(RequestId::of_payment(*method, payer, nonce));
            }
        }
        // A receiver that is gone means that the loop ends, too.
        let _ = self.logs_from.send(Some(height + 1));
        Ok(())
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
        let Some(news) = &self.news else { return Ok(()) };
        let turned = *self.turned_ms.get_or_insert_with(boottime_ms);
        let followed = self.follower.is_some();
        if self.live.is_some() {
            let patient = followed && !self.last_word && boottime_ms().saturating_sub(turned) < LAST_WORDS_MS;
            // Before the first checkpoint nobody else has anything of this life.
            return match self.found {
                _ if patient => Ok(()),
                Found::Nothing => self.become_active(false),
                _ if news.state.checkpointSeq == 0 => self.become_active(false),
                Found::Asked => Ok(()),
                Found::Unproven => {
                    self.ask_what_is_reached();
                    Ok(())
                }
            };
        }
        if news.state.checkpointSeq == 0 && news.state.epoch == 1 {
            return self.be_born();
        }
        if followed && boottime_ms().saturating_sub(turned) < LAST_WORDS_MS {
            return Ok(());
        }
        if !self.restoring {
            self.restoring = true;
            tracing::info!(epoch = news.state.epoch, "operator without memory: restoring the acknowledged checkpoint");
            let cx = self.cx.clone();
            let (epoch, digest) = (news.state.epoch, news.state.checkpointDigest);
            let ring = self.cx.ring_file.load()?;
            tokio::spawn(async move {
                let restored = restore::acknowledged(&cx, epoch, digest, &ring).await;
                if restored.is_err() {
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
                cx.tell(Event::Restored(restored.map(Box::new))).await;
            });
        }
        Ok(())
    }

    fn ask_what_is_reached(&mut self) {
        let Some(news) = &self.news else { return };
        self.found = Found::Asked;
        let (epoch, digest, restoring) = (news.state.epoch, news.state.checkpointDigest, news.state.restoring);
        let cx = self.cx.clone();
        tokio::spawn(async move {
            cx.tell(Event::Reached(restore::reached(&cx, epoch, digest, restoring).await)).await;
        });
    }

    /// A journal that ends before what was acknowledged is an older one (a disk image that was started again): nothing is
    /// done from it. With the acknowledged checkpoint's key in the ring, or after a takeover, the memory can be had; else
    /// this process has no right to it and ends, and once it is silent for long enough the standby takes over.
    fn on_reached(&mut self, reached: Result<restore::Reached>) -> Result<()> {
        if self.found != Found::Asked {
            return Ok(());
        }
        self.found = Found::Nothing;
        let last = self.live.as_ref().map_or(0, |live| live.journal.last_lsn());
        match reached {
            // Without them nothing can be acknowledged either, and a host must be able to start again without its store.
            Err(e) => tracing::warn!(error = %chain_of(&e), "whether this journal is the newest cannot be told now"),
            Ok(reached) if reached.lsn <= last => {}
            Ok(restore::Reached { lsn, recipient }) => {
                let old = format!("this journal ends at record {last}, and record {lsn} was acknowledged");
                let is_restoring = self.news.as_ref().is_some_and(|news| news.state.restoring);
                if !is_restoring && self.cx.ring_file.load()?.memory_of(&recipient).is_none() {
                    return Err(Error::corrupt(format!(
                        "{old}: {} is an old copy. Nothing is done from it; a standby takes over and restores the last \
                         acknowledged checkpoint",
                        self.journal_dir().display()
                    )));
                }
                tracing::warn!("{old}: it is left, and the memory restored");
                self.live = None;
            }
        }
        if self.role == Role::Standby && self.news.as_ref().is_some_and(|n| n.state.operator == self.cx.me()) {
            self.try_become_active()?;
        }
        Ok(())
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
        self.become_active(false)
    }

    fn become_active(&mut self, restored: bool) -> Result<()> {
        let Some(news) = &self.news else { return Ok(()) };
        let (epoch, lease, now) = (news.state.epoch, self.cx.config.lease, news.head.timestamp);
        let (digest, seq) = (news.state.checkpointDigest, news.state.checkpointSeq);
        // The old node still finishes streams that were open at the cut, and reports them.
        let moved = self.last_word;
        self.stop_following();
        self.turned_ms = None;
        self.last_word = false;
        self.set_role(Role::Active);
        self.cx.operator.go_on();
        self.cx.relay.go_on();
        let Some(live) = &mut self.live else { return Ok(()) };
        live.sealing_for = (digest != alloy::primitives::B256::ZERO).then_some(digest.0);
        live.ring.learn(&live.state.conversations);
        live.ring.forget_before(seq);
        self.cx.ring_file.save(&live.ring)?;
        live.record(now, &Recorded::Life(Input::Booted { epoch, lease, restored }))?;
        let text = format!("epoch {epoch} begins on lease {lease} at {}", self.cx.config.public_url);
        live.record(now, &Recorded::Line { kind: "epoch".into(), text: text.clone() })?;
        tracing::info!("{text}");
        // Outputs whose end no record tells: done again, each guarded by what the contract allows once.
        if let Some(price) = live.state.agent.serving() {
            self.shared.sell_at(price);
        }
        let unreported = crate::settle::being_served(live);
        let unfinished = live.state.agent.unfinished();
        let read: Vec<_> = live.state.read_blocks().collect();
        let cx = self.cx.clone();
        tokio::spawn(async move {
            let height = crate::watch::newest_standing(&cx, read).await;
            cx.tell(Event::StillStands(height)).await;
        });
        for (id, output) in unfinished {
            act::perform(self, id, output);
        }
        if moved {
            let cx = self.cx.clone();
            let patience = LATE_REPORTS.min(Duration::from_secs(cx.birth.timers.restoreTimeout.into()));
            tokio::spawn(async move {
                tokio::time::sleep(patience).await;
                cx.tell(Event::LateIsOver(unreported)).await;
            });
        } else {
            crate::settle::close_interrupted(self)?;
        }
        crate::settle::resume(self)?;
        self.resume_channels()?;
        act::learn_shipping(self);
        Ok(())
    }

    fn follow_active(&mut self) {
        let Some(news) = &self.news else { return };
        let (epoch, digest) = (news.state.epoch, news.state.checkpointDigest);
        let active = news.state.activeLease.saturating_to::<u64>();
        if self.follower.as_ref().is_some_and(|(lease, _)| *lease == active) {
            return;
        }
        let Some(url) = news.active.as_ref().map(|l| l.lease.endpoint.clone()) else { return };
        if news.state.checkpointSeq == 0 {
            return;
        }
        self.stop_following();
        tracing::info!(lease = active, url, "announced as successor: following the active node");
        // A journal left here by an earlier attempt is stale: the acknowledged checkpoint is where it starts.
        self.live = None;
        self.found = Found::Nothing;
        let (stop, stopped) = watch::channel(false);
        self.follower = Some((active, stop));
        let _ = self.durable.send(0);
        tokio::spawn(moving::follow(self.cx.clone(), url, epoch, digest, self.durable.subscribe(), stopped));
    }

    fn stop_following(&mut self) {
        if let Some((_, stop)) = self.follower.take() {
            let _ = stop.send(true);
        }
    }

    fn on_restored(&mut self, restored: Result<Box<Restored>>) -> Result<()> {
        let after_takeover = std::mem::take(&mut self.restoring);
        let restored = match restored {
            Ok(restored) => restored,
            Err(e) => {
                tracing::warn!(error = %chain_of(&e), "no memory yet: trying again with the next block");
                return Ok(());
            }
        };
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
        let _ = self.durable.send(restored.lsn);
        self.live = Some(live);
        if after_takeover {
            self.become_active(true)?;
        }
        Ok(())
    }

    fn on_tail(&mut self, tail: Tail) -> Result<()> {
        if self.role != Role::Standby {
            return Ok(());
        }
        let Some(live) = &mut self.live else { return Ok(()) };
        if !tail.records.is_empty() {
            live.import(&tail.records)?;
        }
        if let Some(ring) = tail.ring {
            live.ring.merge(ring);
            self.cx.ring_file.save(&live.ring)?;
        }
        if tail.last {
            self.last_word = true;
            if self.news.as_ref().is_some_and(|n| n.state.operator == self.cx.me()) {
                self.become_active(false)?;
                self.publish();
            }
        }
        Ok(())
    }

    // ---- ceasing to be active ----

    /// The chain names another operator: take nothing new, let open streams end, then close the journal.
    fn superseded(&mut self) {
        let to = self.news.as_ref().and_then(|n| n.active.as_ref().map(|l| l.lease.endpoint.clone()));
        journal::crash_point!("handover.mined");
        tracing::info!(to, "another node is operator now: no new work here");
        self.fence.superseded();
        self.turned_ms = Some(boottime_ms());
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

    // ---- the disk ----

    pub(crate) fn on_durable(&mut self, lsn: u64) -> Result<()> {
        let Some(live) = &mut self.live else { return Ok(()) };
        live.durable = live.durable.max(lsn);
        let _ = self.durable.send(live.durable);
        for effect in live.release() {
            match effect {
                Effect::Life(id, output) => act::perform(self, id, output),
                Effect::Book(output) => self.on_book(output)?,
                Effect::Reply(reply) => reply(),
            }
        }
        self.answer_tails();
        Ok(())
    }

    /// Nothing is lost that was promised, but nothing more can be promised: stop serving and say so.
    fn on_disk_failed(&mut self, why: &str) {
        tracing::error!(why, "the journal's disk failed: this node stops serving; free space or restart the lease");
        if let Some(live) = &mut self.live {
            live.sealed = true;
        }
        self.shared.set_trouble(Some(format!("the journal's disk failed: {why}")));
        self.set_role(Role::Fenced);
    }

    // ---- time ----

    fn on_tick(&mut self) -> Result<()> {
        if self.role == Role::Active && !self.fence.holds(boottime_ms()) {
            tracing::warn!("no fresh block names this node: fenced until one does");
            self.set_role(Role::Fenced);
        }
        if self.role == Role::Standby && self.news.as_ref().is_some_and(|n| n.state.operator == self.cx.me()) {
            self.try_become_active()?;
        }
        self.drain();
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
mod tests {
    use super::*;
    use crate::context;

    #[tokio::test]
    async fn a_life_is_replayed_from_the_limits_that_it_began_with() {
        let dir = tempfile::tempdir().unwrap();
        let (mut cx, _heard) = context::for_tests("http://127.0.0.1:1", dir.path());
        let timers = &mut cx.birth.timers;
        (timers.day, timers.heartbeatEvery, timers.fence, timers.answerTime) = (86_400, 18_000, 19_800, 21_600);
        let mut node = Node::new(Arc::new(cx), Arc::new(Shared::default()), watch::channel(None).0);
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
