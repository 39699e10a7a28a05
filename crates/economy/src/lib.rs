//! One agent's life as a pure fold: `Agent::step(now, lsn, input) -> outputs`.
//!
//! Everything it knows came in as an [`Input`], everything it wants leaves as an [`Output`]; the same inputs give the
//! same bytes. It is level-triggered: each turn compares what the chain shows ([`View`]) with what should be, asks for
//! the difference, and remembers what it asked for until the chain shows it. So a lost answer, a crash or a reorg
//! needs no case of its own.
//!
//! Read in this order: `input`, `output`, this file, `life`, `sleep`, `hosting`, `purse`, `gas`, `archive`, `ledger`, `price`, `runway`, `flight`,
//! and `silence`, a standby's own part;
//! [`rules`] is what the contracts allow, as a model to be held against them.

#![deny(clippy::float_arithmetic)]

mod input;
mod output;

mod life;

mod hosting;

mod archive;
mod gas;
mod purse;

mod ledger;
mod price;
mod runway;

mod flight;
mod money;
mod note;
mod policy;
pub mod rules;
mod silence;
mod sleep;
mod timers;

pub use archive::{Archive, Archived};
pub use input::{ArchiveQuote, ChainEvent, ChainEventKind, Input, LeaseView, OfferView, Outcome, Owed, Stage, View};
pub use ledger::{Account, Imbalance, Ledger};
pub use money::{Address, AmountError, USDC, Usdc, mul_div_down, mul_div_up};
pub use note::{Level, MoveWaits, NoHost, Note, Side, StandbyGone};
pub use output::{Output, OutputId, StopWhy, Task};
pub use policy::{Genesis, Limits, Policy, Wishes};
pub use price::{Price, Tokens};
pub use purse::Purse;
pub use runway::{BreakEven, Foretold};
pub use silence::{Due, Silence};
pub use sleep::wakes_at;
pub use timers::{DAY_SECS, MOVE_ATTEMPTS, MOVE_BLOCKS, RENEW_PCT, Raised, TimerError, Timers};

use archive::Archiving;
use borsh::{BorshDeserialize, BorshSerialize};
use flight::{Flights, Patience};
use hosting::Hosting;
use life::Life;
use price::Pricing;
use runway::{Forecast, Income};
use sha2::{Digest, Sha256};

/// Last acknowledged checkpoint, as seen in views.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
struct Checkpoint {
    seq: u64,
    /// Chain time at which it was first seen.
    at: u64,
    /// The record that showed it.
    lsn: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Agent {
    genesis: Genesis,
    /// Of the last boot or view; outputs of an older one are void.
    epoch: u64,
    lease: u64,
    view: Option<View>,
    ledger: Ledger,
    flights: Flights,
    income: Income,
    forecast: Forecast,
    pricing: Pricing,
    hosting: Hosting,
    life: Life,
    checkpoint: Checkpoint,
    serving: Option<Price>,
    stopped: Option<StopWhy>,
    /// Epoch whose begin was noted.
    noted_epoch: u64,
    limit_noted: bool,
    refuel_from: u64,
    /// How long it waited after the last refuel; 0: gas is not low.
    refuel_pause: u64,
    buy_gas_from: u64,
    archiving: Archiving,
    wake_at: u64,
}

/// One call of `step`: its time and what it says.
struct Turn {
    now: u64,
    lsn: u64,
    outputs: Vec<Output>,
}

impl Turn {
    fn say(&mut self, output: Output) {
        self.outputs.push(output);
    }

    fn note(&mut self, note: Note) {
        self.say(Output::Note(note));
    }

    fn notes(&mut self, notes: Vec<Note>) {
        self.outputs.extend(notes.into_iter().map(Output::Note));
    }

    fn next_id(&self) -> OutputId {
        let index = u32::try_from(self.outputs.len()).expect("a turn says a few things");
        OutputId { lsn: self.lsn, index }
    }
}

impl Agent {
    pub fn new(genesis: Genesis) -> Self {
        Self {
            pricing: Pricing::new(&genesis.policy),
            genesis,
            epoch: 0,
            lease: 0,
            view: None,
            ledger: Ledger::default(),
            flights: Flights::default(),
            income: Income::default(),
            forecast: Forecast::default(),
            hosting: Hosting::default(),
            life: Life::default(),
            checkpoint: Checkpoint::default(),
            serving: None,
            stopped: None,
            noted_epoch: 0,
            limit_noted: false,
            refuel_from: 0,
            refuel_pause: 0,
            buy_gas_from: 0,
            archiving: Archiving::default(),
            wake_at: 0,
        }
    }

    /// Takes one recorded input in. `now`: chain seconds; `lsn`: the record that holds the input. An output's id is
    /// (`lsn`, its place in what is returned).
    pub fn step(&mut self, now: u64, lsn: u64, input: Input) -> Vec<Output> {
        let mut turn = Turn { now, lsn, outputs: Vec::new() };
        self.hear(input, &mut turn);
        if let Some(view) = self.view.take() {
            self.decide(&view, &mut turn);
            self.view = Some(view);
        }
        self.ledger.assert_balanced();
        turn.outputs
    }

    // ---- what the node reads ----

    /// Outputs with an id whose end no input told: the node does them again after a replay, each at most once per id.
    pub fn unfinished(&self) -> Vec<(OutputId, Output)> {
        self.flights.unfinished()
    }

    /// The handover that was asked for and did not fail, and until when it may be mined, chain seconds: until then another
    /// node may be operator in any block.
    pub fn handover(&self) -> Option<(OutputId, u64)> {
        self.flights.handover()
    }

    /// What is being sold, or `None`.
    pub fn serving(&self) -> Option<Price> {
        self.serving
    }

    pub fn genesis(&self) -> &Genesis {
        &self.genesis
    }

    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Whether ledger and chain agreed at the last view.
    pub fn books_balance(&self) -> bool {
        self.ledger.is_balanced()
    }

    /// Seconds the money lasts at the present hosts' cost less the last day's income; `None`: for ever, or unknown.
    pub fn runway_secs(&self, now: u64) -> Option<u64> {
        self.view.as_ref().and_then(|view| self.runway_at(view, now))
    }

    /// What the runway of a day ago foretold, and what there was; `None` in the first day.
    pub fn foretold(&self) -> Option<Foretold> {
        self.forecast.last
    }

    /// What pays for the hosts there are, first, and for each of the cheapest offers that fit, at most `offers` of them.
    /// With a standby at the same price, unless it is too hungry for one. Empty before the first view.
    pub fn break_even(&self, offers: usize) -> Vec<BreakEven> {
        let Some(view) = &self.view else { return Vec::new() };
        let (policy, day) = (&self.genesis.policy, self.genesis.timers.day);
        let two = self.life.level() < Level::Frugal;
        let call = self.serving.map_or(policy.wishes.min_call, |price| price.call_uusdc);
        let here = BreakEven::up(None, self.cost_e6(view, two), day, call);
        let there = |offer: &&OfferView| {
            let hosts = offer.price_e6.saturating_mul(if two { 2 } else { 1 });
            BreakEven::up(Some(offer.id), hosts.saturating_add(policy.overhead_e6), day, call)
        };
        std::iter::once(here).chain(self.cheapest(view, offers).iter().map(there)).collect()
    }

    /// When the active host should be left, chain seconds.
    pub fn next_move_at(&self) -> Option<u64> {
        self.view.as_ref().and_then(|view| view.active.as_ref()).map(hosting::renewal_at)
    }

    pub fn level(&self) -> Level {
        self.life.level()
    }

    /// Why it closes its affairs, if it does.
    pub fn ending(&self) -> Option<StopWhy> {
        self.life.stop_why()
    }

    /// sha2-256 of the whole state: equal on every host that folded the same records.
    pub fn digest(&self) -> [u8; 32] {
        // Writing into a Vec cannot fail.
        Sha256::digest(borsh::to_vec(self).expect("a Vec takes all bytes")).into()
    }

    // ---- hearing ----

    fn hear(&mut self, input: Input, turn: &mut Turn) {
        let now = turn.now;
        match input {
            Input::Booted { epoch, lease, restored } => self.booted(epoch, lease, restored, turn),
            Input::Block(view) => self.look(*view, turn),
            Input::Chain(events) => {
                for event in events {
                    self.chain_event(&event, turn);
                }
            }
            Input::Earned { first_lsn, last_lsn, count: _, tokens, sum } => {
                if self.ledger.earned(first_lsn, last_lsn, sum) {
                    self.income.add(now, self.genesis.timers.day, sum);
                    self.pricing.sold(tokens);
                }
            }
            Input::Owed(owed) => self.life.hear_owed(owed, now),
            Input::Done { id, outcome } => {
                let mut notes = Vec::new();
                let failed = self.flights.done(id, outcome, now, self.patience(), &mut notes);
                turn.notes(notes);
                match failed {
                    Some(Output::Rent { offer, .. }) => {
                        if let Some(provider) = self.provider_of(offer) {
                            self.penalise(provider, now);
                        }
                    }
                    Some(output) => {
                        if let Some(step @ (Task::AskArchivist | Task::PayArchivist | Task::Archive)) = output.task() {
                            self.not_archived(step, now);
                        }
                    }
                    None => {}
                }
            }
            Input::StandbyAnswered { lease, ready } => self.hosting.answered(lease, ready, now),
            Input::Throughput { milli_tokens_per_sec } => {
                self.pricing.measured(milli_tokens_per_sec);
                if let Some(active) = self.view.as_ref().and_then(|v| v.active.as_ref()) {
                    self.hosting.measured(active.provider, milli_tokens_per_sec);
                }
            }
            Input::CodeChanged { digest } => turn.note(Note::CodeChanged { digest }),
            Input::ArchivePriced(quote) => self.archiving.hear_quote(quote),
            Input::Archived { seq, root, transaction } => self.archiving.hear_stored(seq, root, transaction, now),
        }
    }

    fn booted(&mut self, epoch: u64, lease: u64, restored: bool, turn: &mut Turn) {
        self.enter(epoch);
        self.lease = lease;
        self.income.begin(turn.now);
        self.hosting.listen_from(turn.now);
        self.life.booted();
        // A process that just began sells nothing until it is told again.
        (self.serving, self.stopped, self.wake_at) = (None, None, 0);
        // Nor does an old view describe its world: it may be another node's.
        self.view = None;
        turn.note(Note::Booted { epoch, lease, restored });
    }

    /// What an operator of an older epoch signed has no effect any more.
    fn enter(&mut self, epoch: u64) {
        if epoch != self.epoch {
            self.epoch = epoch;
            self.flights.clear();
            self.moved();
        }
    }

    fn look(&mut self, view: View, turn: &mut Turn) {
        let mut notes = Vec::new();
        self.enter(view.epoch);
        // Views come once a heartbeat's time at least. After a longer gap it was this node that was away, so nobody
        // else may be called silent for it.
        let last = self.view.as_ref().map_or(view.timestamp, |v| v.timestamp);
        if view.timestamp.saturating_sub(last) > 2 * u64::from(self.genesis.timers.heartbeat_every) {
            self.hosting.listen_from(turn.now);
        }
        self.flights.view(&view, turn.now, self.patience(), &mut notes);
        if view.stage != Stage::Unborn {
            let before = self.ledger.purchases();
            // The imbalance itself is kept in the ledger; decisions ask it.
            let _ = self.ledger.compare(&view, &mut notes);
            // What customers paid for others' answers went on to these: the runway does not count it twice.
            self.income.less(self.ledger.purchases().saturating_sub(before));
        }
        if view.checkpoint_seq != self.checkpoint.seq {
            self.checkpoint = Checkpoint { seq: view.checkpoint_seq, at: turn.now, lsn: turn.lsn };
            notes.push(Note::CheckpointAcknowledged { seq: view.checkpoint_seq });
        }
        if let Some(before) = self.view.as_ref().map(|last| last.limits).filter(|before| *before != view.limits) {
            notes.push(Note::LimitsChanged { before, after: view.limits });
        }
        turn.notes(notes);
        self.view = Some(view);
    }

    fn chain_event(&mut self, event: &ChainEvent, turn: &mut Turn) {
        let position = self.ledger.position();
        if let Some(note) = self.ledger.event(event) {
            turn.note(note);
        }
        let (kind, back) = match &event.kind {
            ChainEventKind::Reverted(event) => (&event.kind, true),
            kind => (kind, false),
        };
        if let ChainEventKind::ExactRefunded { payer, nonce, amount } = *kind {
            self.life.refunded((payer, nonce), amount, event.block, back);
        }
        // Fed twice, it counts once: as in the ledger.
        if let ChainEventKind::StoragePaid { amount } = *kind
            && self.ledger.position() != position
        {
            self.archiving.hear_paid((event.block, event.index), amount, back, turn.now);
        }
        if !back {
            self.flights.event(kind);
        }
    }

    fn provider_of(&self, offer: u64) -> Option<Address> {
        let view = self.view.as_ref()?;
        view.offers.iter().find(|o| o.id == offer).map(|o| o.provider)
    }

    // ---- deciding ----

    fn decide(&mut self, view: &View, turn: &mut Turn) {
        if !view.operator_is_me {
            self.stop_serving(StopWhy::NotOperator, turn);
            return;
        }
        if self.noted_epoch != view.epoch
            && let Some(active) = &view.active
        {
            self.noted_epoch = view.epoch;
            turn.note(Note::LivesOn { epoch: view.epoch, lease: active.id, provider: active.provider });
        }
        if matches!(view.stage, Stage::Unborn) {
            return;
        }
        self.age(view, turn);
        if view.stage == Stage::Closed {
            self.stop_serving(StopWhy::Ended, turn);
            return;
        }
        self.beat(view, turn);
        self.refuel(view, turn);
        let spend = view.stage == Stage::Alive && !view.paused && !view.restoring && self.ledger.is_balanced();
        if !view.restoring {
            if spend && !self.is_about_to_wind_down(view) {
                self.keep_escrow(view, turn);
            }
            self.host(view, spend, turn);
            self.fill_purse(view, spend, turn);
            self.buy_gas(view, spend, turn);
            self.archive(view, spend, turn);
        }
        self.commit(view, turn);
        if !view.restoring {
            self.settle_affairs(view, spend, turn);
        }
        self.sell(view, turn);
        self.wake(view, turn);
    }

    /// Asks for `output` unless one for the same object is on its way or it is too early after a failure.
    fn ask(&mut self, output: Output, turn: &mut Turn) -> bool {
        let Some(task) = output.task() else { return false };
        if !self.flights.may(task, turn.now) {
            return false;
        }
        self.flights.send(turn.next_id(), &output, turn.now, self.checkpoint.seq);
        turn.say(output);
        true
    }

    fn patience(&self) -> Patience {
        let (timers, block) = (&self.genesis.timers, u64::from(self.genesis.policy.wishes.block_secs));
        let first = 2 * block;
        // Half of what a heartbeat may be late before its node stops itself.
        let mut longest = (u64::from(timers.fence.saturating_sub(timers.heartbeat_every)) / 2).max(8 * block);
        // The restored memory is committed in time, or another may take the place: at least six tries.
        if self.view.as_ref().is_some_and(|view| view.restoring) {
            longest = longest.min(u64::from(timers.restore_timeout) / 6).max(first);
        }
        Patience { first, longest, unknown: u64::from(timers.fence).max(30 * block) }
    }

    /// What may still be committed: (in the day limit, of the balance), less what is on its way.
    fn room(&self, view: &View) -> (Usdc, Usdc) {
        let on_its_way = self.flights.spending();
        let day = view.limits.day_limit.saturating_sub(view.spent_in_day).saturating_sub(on_its_way);
        (day, view.balance.saturating_sub(on_its_way))
    }

    fn beat(&mut self, view: &View, turn: &mut Turn) {
        let due = view.last_heartbeat + u64::from(self.genesis.timers.heartbeat_every);
        if view.challenged_at != 0 || turn.now >= due {
            let standby_answered = self.standby_answered(view, turn.now);
            self.ask(Output::Heartbeat { standby_answered }, turn);
        }
    }

    /// Fills the escrow of active and standby up to what may be prepaid whenever it runs low, the active host's first.
    fn keep_escrow(&mut self, view: &View, turn: &mut Turn) {
        let prepay = u64::from(self.genesis.policy.prepay_secs(&view.limits));
        let low = u64::from(self.genesis.policy.escrow_low(&view.limits));
        for lease in [&view.active, &view.standby].into_iter().flatten() {
            let remaining = lease.end.saturating_sub(turn.now);
            let ahead = lease.escrow_left.secs_down(lease.price_e6);
            // Two seconds' slack: escrow is rounded, and a lease is never topped up past its whole rent.
            if !lease.ready || ahead.saturating_add(2) >= remaining.min(low) {
                continue;
            }
            let target = Usdc::rent_down(lease.price_e6, remaining.min(prepay));
            let needed = target.saturating_sub(lease.escrow_left);
            let (day, money) = self.room(view);
            // What customers are owed back is not ours to spend on rent.
            let room = day.min(money.saturating_sub(self.life.owed()));
            let amount = needed.min(room);
            let worth_while = needed.min(Usdc::rent_down(lease.price_e6, prepay / 8));
            if amount.is_zero() || amount < worth_while {
                if !self.limit_noted && !needed.is_zero() {
                    self.limit_noted = true;
                    turn.note(Note::EscrowShort { needed, left: room });
                }
                continue;
            }
            if self.ask(Output::TopUp { lease: lease.id, amount }, turn) {
                self.limit_noted = false;
            }
        }
    }

    /// Routine checkpoints, one for a move, one for the end, and the restored one after a takeover.
    fn commit(&mut self, view: &View, turn: &mut Turn) {
        let (policy, last) = (&self.genesis.policy, self.checkpoint);
        let long_journal = turn.lsn.saturating_sub(last.lsn) >= policy.checkpoint_records
            && turn.now >= last.at + u64::from(policy.checkpoint_least);
        let routine =
            view.checkpoint_seq == 0 || turn.now >= last.at + u64::from(policy.checkpoint_every) || long_journal;
        let wanted = if view.restoring {
            true
        } else if self.life.is_ending() {
            self.end_needs_checkpoint(view, turn.now)
        } else {
            routine || self.move_needs_checkpoint(view)
        };
        // A handover names the last acknowledged one, which must not change under it.
        if wanted && !self.flights.busy(Task::Handover) {
            self.ask(Output::Checkpoint, turn);
        }
    }

    fn sell(&mut self, view: &View, turn: &mut Turn) {
        let closed = match self.life.stop_why() {
            Some(why) => Some(why),
            None if view.restoring => Some(StopWhy::Restoring),
            None => None,
        };
        if let Some(why) = closed {
            self.stop_serving(why, turn);
            return;
        }
        self.pricing.review(turn.now, &self.genesis.policy);
        let cost = self.cost_e6(view, self.life.level() < Level::Frugal);
        let price = self.pricing.price(cost, &self.genesis.policy, self.serving);
        if self.serving != Some(price) {
            let floor = self.pricing.floor_mtok_up(cost, &self.genesis.policy);
            (self.serving, self.stopped) = (Some(price), None);
            turn.say(Output::Serve { price });
            turn.note(Note::PriceSet { price, floor, busy_pct: self.pricing.busy_pct() });
        }
    }

    fn stop_serving(&mut self, why: StopWhy, turn: &mut Turn) {
        let said = self.serving.is_none() && self.stopped.is_some();
        // Another reason is told as well: the node asks the book again what is owed.
        if said && self.stopped == Some(why) {
            return;
        }
        if why == StopWhy::NotOperator && self.serving.is_none() {
            return;
        }
        (self.serving, self.stopped) = (None, Some(why));
        turn.say(Output::StopServing { why });
    }

    /// Says when the next thing is due, whenever that changed.
    fn wake(&mut self, view: &View, turn: &mut Turn) {
        let now = turn.now;
        let mut at = self.hosting_wakes(view, now);
        at.extend(self.life_wakes(view, now));
        at.extend(self.flights.wake_at(now, self.patience()));
        at.push(view.last_heartbeat + u64::from(self.genesis.timers.heartbeat_every));
        at.push(self.checkpoint.at + u64::from(self.genesis.policy.checkpoint_every));
        at.extend([self.refuel_from, self.buy_gas_from, self.archive_from()]);
        at.retain(|t| *t > now);
        // Escrow runs down and demand is reviewed without an event: look again within a heartbeat's time.
        at.push(now + u64::from(self.genesis.timers.heartbeat_every));
        if let Some(next) = at.into_iter().min()
            && next != self.wake_at
        {
            self.wake_at = next;
            turn.say(Output::WakeAt(next));
        }
    }
}

/// sha2-256 of the outputs' borsh: what each record carries, so that a replay stops at the first difference.
pub fn outputs_digest(outputs: &[Output]) -> [u8; 32] {
    // Writing into a Vec cannot fail.
    Sha256::digest(borsh::to_vec(outputs).expect("a Vec takes all bytes")).into()
}
