//! One life in the model: the node's part (records, sends, restarts) and the auditor, who trusts neither.

use crate::chance::Chance;
use crate::world::{Offer, Payment, World, rent_up};
use economy::{
    Account, Agent, ChainEvent, ChainEventKind, Genesis, Input, Limits, Note, Outcome, Output, OutputId, Owed, Policy,
    Stage, Task, Timers, Usdc, Wishes, outputs_digest,
};
use std::collections::{BTreeMap, BTreeSet};

/// What may go wrong, per mille and block or call.
#[derive(Clone, Copy, Default)]
pub struct Faults {
    pub tx_fails: u64,
    /// The answer is lost; the transaction may have happened or not.
    pub answer_lost: u64,
    pub standby_dies: u64,
    /// Of rented hosts: never gets ready.
    pub never_ready: u64,
    pub reorg: u64,
    pub restart: u64,
    pub takeover: u64,
    /// The life's money is sometimes topped up by a stranger.
    pub gift: u64,
    pub unserved: u64,
}

#[derive(Clone, Copy)]
pub struct Setting {
    pub day: u32,
    pub term_days: u32,
    pub block_secs: u32,
    pub seed_uusdc: u128,
    pub starve_floor: u128,
    /// Calls per block and price of each.
    pub calls_permille: u64,
    pub call_uusdc: u128,
    pub hosts: u32,
    /// Seconds a provider needs to make a lease ready.
    pub ready_secs: u64,
    pub hibernates: bool,
    pub faults: Faults,
}

pub struct Life {
    pub chance: Chance,
    pub setting: Setting,
    pub world: World,
    pub agent: Agent,
    genesis: Genesis,
    journal: Vec<(u64, Input, [u8; 32])>,
    /// State and journal length at the last acknowledged checkpoint.
    restore_point: Option<(Vec<u8>, usize)>,
    /// Sent, to be mined at this block.
    pool: Vec<(u64, OutputId, Output)>,
    /// What really became of an id, for restarts.
    ended: BTreeMap<OutputId, Outcome>,
    /// Issued and not yet answered.
    open: BTreeMap<OutputId, Task>,
    /// Worlds of the last blocks, for reorgs.
    past: Vec<World>,
    fed: usize,
    silent: BTreeSet<u64>,
    pub serving: bool,
    owed: BTreeMap<Payment, u128>,
    next_request: u64,
    pub moves: u32,
    pub takeovers: u32,
    pub notes: Vec<(u64, Note)>,
    pub refused: BTreeMap<&'static str, u32>,
    reorged: bool,
    /// Taken back by a reorg, to be mined again.
    again: Vec<(Payment, u128)>,
    gifts_again: u32,
    pub gifts: u128,
    earned: u128,
}

impl Life {
    pub fn born(seed: u64, setting: Setting) -> Self {
        let (timers, _) = Timers::scaled(setting.day);
        let term = setting.term_days * setting.day;
        timers.check(term, setting.block_secs).expect("the setting's timers fit");
        let mut chance = Chance::new(seed);
        // About a dollar a day.
        let base = 1_000_000_000_000 / u64::from(setting.day);
        let offers: Vec<Offer> = (0..setting.hosts)
            .map(|i| Offer {
                provider: [u8::try_from(i + 1).expect("few"); 20],
                price_e6: base * (80 + chance.below(40)) / 100,
                capacity: 2,
                used: 0,
                served: 0,
                failed: 0,
            })
            .collect();
        let wishes = Wishes {
            term,
            prepay_secs: 2 * setting.day,
            margin_pct: 20,
            min_call: Usdc(1_000),
            max_call: Usdc(500_000),
            block_secs: setting.block_secs,
        };
        let limits = Limits {
            day_limit: Usdc(20_000_000),
            price_e6_max: base * 2,
            term_max: term,
            prepay_max: 2 * setting.day,
            gas_day_max_wei: 0,
            gas_target_wei: 10,
            starve_floor: Usdc(setting.starve_floor),
        };
        let genesis = Genesis {
            chain_id: 31_337,
            treasury: [4; 20],
            timers,
            policy: Policy { hibernates: setting.hibernates, ..Policy::new(wishes, &timers) },
        };
        let mut world = World {
            timers,
            block_secs: u64::from(setting.block_secs),
            limits,
            number: 10,
            now: 1_800_000_000,
            stage: Stage::Alive,
            paused: false,
            restoring: false,
            epoch: 1,
            balance: 0,
            leases: vec![],
            offers,
            active: 0,
            standby: 0,
            draining: 0,
            announced: 0,
            announced_at: 0,
            seq: 0,
            last_heartbeat: 0,
            challenged_at: 0,
            wind_down_at: 0,
            mandate_until: u64::MAX - 1,
            asleep: false,
            payments: BTreeMap::new(),
            spent: vec![],
            rent_paid: 0,
            events: vec![],
        };
        world.transfer_in(setting.seed_uusdc);
        world.begin_block();
        let prepay = rent_up(world.offers[0].price_e6, u64::from(limits.prepay_max));
        world.rent(0, u64::from(term), prepay, 0).expect("the first lease");
        // What is paid at birth counts in no day limit.
        world.spent.clear();
        (world.active, world.standby) = (world.standby, 0);
        world.begin_block();
        world.emit(ChainEventKind::Activated { lease: 1 });
        world.last_heartbeat = world.now;
        let agent = Agent::new(genesis.clone());
        let mut life = Self {
            chance,
            setting,
            world,
            agent,
            genesis,
            journal: vec![],
            restore_point: None,
            pool: vec![],
            ended: BTreeMap::new(),
            open: BTreeMap::new(),
            past: vec![],
            fed: 0,
            silent: BTreeSet::new(),
            serving: false,
            owed: BTreeMap::new(),
            next_request: 1,
            moves: 0,
            takeovers: 0,
            notes: vec![],
            refused: BTreeMap::new(),
            reorged: false,
            again: vec![],
            gifts_again: 0,
            gifts: 0,
            earned: 0,
        };
        life.feed(Input::Booted { epoch: 1, lease: 1, restored: false });
        life.feed(Input::Throughput { milli_tokens_per_sec: 60_000 });
        life
    }

    pub fn days(&self, days: u64) -> u64 {
        days * u64::from(self.setting.day) / u64::from(self.setting.block_secs)
    }

    pub fn noted(&self, is: impl Fn(&Note) -> bool) -> usize {
        self.notes.iter().filter(|(_, n)| is(n)).count()
    }

    /// The last lines, for a failing test's reader.
    pub fn story(&self) -> String {
        let told: Vec<_> = self
            .notes
            .iter()
            .filter(|(_, n)| !matches!(n, Note::CheckpointAcknowledged { .. } | Note::PriceSet { .. }))
            .collect();
        told[told.len().saturating_sub(40)..].iter().map(|(at, n)| format!("  {at} {n}\n")).collect()
    }

    // ---- the node ----

    fn feed(&mut self, input: Input) {
        let lsn = u64::try_from(self.journal.len()).expect("small") + 1;
        let paused = self.world.paused && matches!(input, Input::Block(_));
        let now = self.world.now;
        let outputs = self.agent.step(now, lsn, input.clone());
        self.journal.push((now, input, outputs_digest(&outputs)));
        for (index, output) in (0u32..).zip(outputs) {
            let id = OutputId { lsn, index };
            if let Some(task) = output.task() {
                self.audit_request(task, &output, paused);
                self.open.insert(id, task);
                self.send(id, output);
                continue;
            }
            match output {
                Output::Serve { price } => {
                    assert!(price.mtok_completion_uusdc.0 > 0);
                    self.serving = true;
                }
                Output::StopServing { .. } => {
                    self.serving = false;
                    self.say_owed();
                }
                Output::Note(note) => self.notes.push((now, note)),
                Output::WakeAt(at) => assert!(at > now, "asks to be woken in the past"),
                _ => unreachable!("all others have a task"),
            }
        }
    }

    fn say_owed(&mut self) {
        let owed = self.owed.iter();
        let owed = owed.map(|((payer, nonce), amount)| Owed { payer: *payer, nonce: *nonce, amount: Usdc(*amount) });
        let list = owed.collect();
        self.feed(Input::Owed(list));
    }

    fn audit_request(&self, task: Task, output: &Output, paused: bool) {
        assert!(!self.open.values().any(|t| *t == task), "a second {task} while one is unanswered\n{}", self.story());
        let spends = matches!(
            output,
            Output::Rent { .. }
                | Output::TopUp { .. }
                | Output::Refund { .. }
                | Output::Announce { .. }
                | Output::Handover { .. }
        );
        assert!(!(paused && spends), "{output:?} while paused");
    }

    fn send(&mut self, id: OutputId, output: Output) {
        let block = self.world.number + 1 + self.chance.below(2);
        self.pool.push((block, id, output));
    }

    /// A transaction's end, as the node's outbox would tell it.
    fn answer(&mut self, id: OutputId, outcome: Outcome) {
        self.ended.insert(id, outcome.clone());
        if outcome == Outcome::Unknown {
            // The node owes no further answer, so the agent may ask again once it sees or doubts.
            self.open.remove(&id);
        }
        self.open.remove(&id);
        self.feed(Input::Done { id, outcome });
    }

    // ---- one block ----

    pub fn block(&mut self) {
        let faults = self.setting.faults;
        if self.past.len() > 3 && self.chance.of_1000(faults.reorg) {
            self.reorg();
        }
        if faults.reorg > 0 {
            self.past.push(self.world.clone());
            if self.past.len() > 5 {
                self.past.remove(0);
            }
        }
        self.world.begin_block();
        self.market();
        let answers = self.mine();
        self.customers();
        self.read();
        for (id, outcome) in answers {
            self.answer(id, outcome);
        }
        self.standby_talks();
        if self.chance.of_1000(faults.restart) {
            self.restart();
        }
        if self.chance.of_1000(faults.takeover) {
            self.host_dies();
        }
        self.audit();
    }

    fn market(&mut self) {
        if self.chance.of_1000(20) {
            let any = 1 + self.chance.below(u64::try_from(self.world.leases.len()).expect("small"));
            self.world.withdraw(any);
        }
        for (payment, amount) in std::mem::take(&mut self.again) {
            self.world.settle(payment, amount);
        }
        for _ in 0..std::mem::take(&mut self.gifts_again) {
            self.world.transfer_in(50_000);
        }
        if self.chance.of_1000(self.setting.faults.gift) {
            self.world.transfer_in(50_000);
            self.gifts += 50_000;
        }
    }

    fn mine(&mut self) -> Vec<(OutputId, Outcome)> {
        let mut answers = Vec::new();
        let due: Vec<_> = {
            let number = self.world.number;
            let (due, later) = std::mem::take(&mut self.pool).into_iter().partition(|(at, ..)| *at <= number);
            self.pool = later;
            due
        };
        for (_, id, output) in due {
            let fails = self.chance.of_1000(self.setting.faults.tx_fails);
            let lost = self.chance.of_1000(self.setting.faults.answer_lost);
            let slow = self.chance.of_1000(self.setting.faults.never_ready);
            let delay = if slow { u64::MAX / 2 } else { self.setting.ready_secs };
            let epoch = self.world.epoch;
            let outcome = if fails { Err("chance") } else { self.world.execute(&output, delay) };
            if let Err(why) = outcome
                && why != "chance"
            {
                *self.refused.entry(why).or_default() += 1;
                self.notes.push((
                    self.world.now,
                    Note::TaskFailed {
                        task: output.task().expect("only tasks are sent"),
                        reason: format!("MODEL: {why}"),
                        retry_at: 0,
                    },
                ));
            }
            if outcome.is_ok() {
                self.happened(&output);
            }
            if self.world.epoch != epoch {
                if self.world.asleep {
                    // Its host ends it; what it had asked for is void.
                    self.pool.clear();
                    self.open.clear();
                } else {
                    self.moved(false);
                }
                return Vec::new();
            }
            let told = match outcome {
                _ if lost => Outcome::Unknown,
                Ok(()) => Outcome::Done { block: self.world.number },
                Err(why) => Outcome::Failed { reason: why.into() },
            };
            answers.push((id, told));
        }
        answers
    }

    fn happened(&mut self, output: &Output) {
        match output {
            Output::Checkpoint => {
                self.restore_point = Some((borsh::to_vec(&self.agent).expect("memory"), self.journal.len()));
            }
            Output::Refund { payer, nonce, .. } => {
                self.owed.remove(&(*payer, *nonce));
            }
            _ => {}
        }
    }

    /// The new node goes on from the old one's journal, or (after a takeover) from a checkpoint.
    fn moved(&mut self, restored: bool) {
        self.pool.clear();
        self.open.clear();
        self.past.clear();
        if !restored {
            self.moves += 1;
        }
        let (epoch, lease) = (self.world.epoch, self.world.active);
        self.feed(Input::Booted { epoch, lease, restored });
        assert_eq!(self.agent.unfinished(), vec![], "an old epoch's outputs are void");
    }

    fn customers(&mut self) {
        if !self.serving || self.world.paused || self.world.stage != Stage::Alive {
            return;
        }
        for _ in 0..self.setting.calls_permille.div_ceil(1_000) {
            if !self.chance.of_1000(self.setting.calls_permille.min(1_000)) {
                continue;
            }
            let n = self.next_request;
            self.next_request += 1;
            let mut nonce = [0; 32];
            nonce[..8].copy_from_slice(&n.to_le_bytes());
            let payment = ([200; 20], nonce);
            self.world.settle(payment, self.setting.call_uusdc);
            if self.chance.of_1000(self.setting.faults.unserved) {
                self.owed.insert(payment, self.setting.call_uusdc);
                self.say_owed();
            } else {
                self.earned += self.setting.call_uusdc;
                let lsn = 1_000_000 + n;
                let sum = Usdc(self.setting.call_uusdc);
                self.feed(Input::Earned { first_lsn: lsn, last_lsn: lsn, count: 1, tokens: 64, sum });
            }
        }
    }

    /// Events up to the block, then the view at it.
    fn read(&mut self) {
        let new: Vec<ChainEvent> = self.world.events[self.fed..].to_vec();
        self.fed = self.world.events.len();
        if !new.is_empty() {
            self.feed(Input::Chain(new));
        }
        self.feed(Input::Block(Box::new(self.world.view())));
    }

    fn standby_talks(&mut self) {
        let id = self.world.standby;
        if id == 0 || self.world.lease(id).is_none_or(|l| l.start == 0) {
            return;
        }
        if self.chance.of_1000(self.setting.faults.standby_dies) {
            self.silent.insert(id);
        }
        if !self.silent.contains(&id) {
            self.feed(Input::StandbyAnswered { lease: id, ready: true });
        }
    }

    /// The last one to three blocks never happened; what was in them comes again later, or not at all.
    fn reorg(&mut self) {
        let depth = 1 + usize::try_from(self.chance.below(3)).expect("small");
        let at = self.past.len() - depth;
        let (old, now) = (self.past[at].clone(), self.world.now);
        if old.epoch != self.world.epoch {
            return;
        }
        self.reorged = true;
        self.past.truncate(at);
        let gone = self.world.events.clone();
        let kept = old.events.len();
        let reverted = gone[kept..self.fed].iter().rev().map(|e| ChainEvent {
            block: e.block,
            index: e.index,
            kind: ChainEventKind::Reverted(Box::new(e.clone())),
        });
        let reverted: Vec<ChainEvent> = reverted.collect();
        let payments: Vec<_> = gone[kept..]
            .iter()
            .filter_map(|e| match e.kind {
                ChainEventKind::ExactSettled { payer, nonce, amount } => Some(((payer, nonce), amount.0)),
                _ => None,
            })
            .collect();
        let gifts = gone[kept..].iter().filter(|e| matches!(e.kind, ChainEventKind::TransferIn { .. })).count();
        let refunds: Vec<_> = gone[kept..]
            .iter()
            .filter_map(|e| match e.kind {
                ChainEventKind::ExactRefunded { payer, nonce, amount } => Some(((payer, nonce), amount.0)),
                _ => None,
            })
            .collect();
        self.world = old;
        self.world.now = now;
        self.fed = kept;
        if !reverted.is_empty() {
            self.feed(Input::Chain(reverted));
        }
        // Signed authorisations are still valid and gifts are sent again.
        self.again.extend(payments);
        self.gifts_again += u32::try_from(gifts).expect("few");
        for (payment, amount) in refunds {
            self.owed.insert(payment, amount);
        }
        if !self.owed.is_empty() {
            self.say_owed();
        }
    }

    /// The process dies and folds its journal again: the same bytes, the same outputs.
    pub fn restart(&mut self) {
        let mut again = Agent::new(self.genesis.clone());
        for (lsn, (now, input, digest)) in (1u64..).zip(&self.journal) {
            let outputs = again.step(*now, lsn, input.clone());
            assert_eq!(outputs_digest(&outputs), *digest, "record {lsn} folds differently");
        }
        self.assert_same(&again);
        let decoded: Agent = borsh::from_slice(&borsh::to_vec(&again).expect("memory")).expect("its own bytes");
        assert_eq!(decoded.digest(), self.agent.digest());
        self.agent = decoded;
        let (epoch, lease) = (self.world.epoch, self.world.active);
        self.feed(Input::Booted { epoch, lease, restored: false });
        for (id, output) in self.agent.unfinished() {
            // The node's outbox knows what became of an id, or it was never sent.
            match self.ended.get(&id).cloned() {
                Some(outcome) => self.answer(id, outcome),
                None if self.pool.iter().any(|(_, pooled, _)| *pooled == id) => {}
                None => self.send(id, output),
            }
        }
        self.read();
    }

    fn assert_same(&self, other: &Agent) {
        assert_eq!(
            borsh::to_vec(other).expect("memory"),
            borsh::to_vec(&self.agent).expect("memory"),
            "a replay ended in other bytes"
        );
    }

    /// The active host is gone: challenge, no answer, the standby's node takes over from the last checkpoint.
    fn host_dies(&mut self) {
        let ready = self.world.lease(self.world.standby).is_some_and(|l| l.start != 0 && self.world.now < l.end);
        if self.restore_point.is_none()
            || !ready
            || self.world.stage != Stage::Alive
            || self.silent.contains(&self.world.standby)
        {
            return;
        }
        let dead_for = u64::from(self.world.timers.answer_time) + 5 * self.world.block_secs;
        for _ in 0..dead_for / self.world.block_secs {
            self.world.begin_block();
        }
        if self.world.now >= self.world.lease(self.world.standby).map_or(0, |l| l.end) {
            return;
        }
        self.world.takeover();
        self.restored();
    }

    /// Stewards wake it: a host is rented, and its node goes on from the last checkpoint.
    pub fn wake(&mut self) {
        self.world.rescue();
        self.restored();
    }

    fn restored(&mut self) {
        let (state, length) = self.restore_point.clone().expect("it made a checkpoint");
        self.takeovers += 1;
        self.agent = borsh::from_slice(&state).expect("its own bytes");
        self.journal.truncate(length);
        // Income since then that only the dead host knew of is forgotten: its payers are owed their money.
        let position = self.agent.ledger().position();
        self.fed = self.world.events.iter().take_while(|e| Some((e.block, e.index)) <= position).count();
        self.earned = self.agent.ledger().sales().0;
        self.moved(true);
        self.read();
    }

    // ---- the auditor ----

    fn audit(&self) {
        let (ledger, world) = (self.agent.ledger(), &self.world);
        let story = || self.story();
        let signed = |amount: u128| i128::try_from(amount).expect("small");
        assert_eq!(ledger.balance(), signed(world.balance), "balance\n{}", story());
        assert_eq!(ledger.escrow(), signed(world.escrow()), "escrow\n{}", story());
        assert!(self.agent.books_balance());
        assert_eq!(ledger.of(Account::Unexplained), 0, "everything is explained\n{}", story());
        assert_eq!(ledger.gifts().0, self.gifts);
        assert_eq!(ledger.seed().0, self.setting.seed_uusdc);
        assert_eq!(ledger.sales().0, self.earned);
        let accrued: u128 = world.leases.iter().map(|l| world.accrued(l)).sum();
        assert_eq!(ledger.rent().0, accrued, "rent\n{}", story());
        assert_eq!(ledger.rent_paid().0, world.rent_paid);
        assert_eq!(ledger.rent_unpaid().0, accrued - world.rent_paid);
        let all = [
            Account::Treasury,
            Account::Escrow,
            Account::Customers,
            Account::Sales,
            Account::Gifts,
            Account::Unexplained,
            Account::Seed,
            Account::Rent,
            Account::Withdrawn,
        ];
        assert_eq!(all.into_iter().map(|a| ledger.of(a)).sum::<i128>(), 0);
        assert!(world.spent_in_day() <= world.limits.day_limit.0);
        let leases = [world.active, world.standby, world.draining];
        let open = world.leases.iter().filter(|l| l.open).count();
        assert_eq!(open, leases.iter().filter(|id| world.lease(**id).is_some_and(|l| l.open)).count());
        if let (Some(active), Some(standby)) = (world.lease(world.active), world.lease(world.standby)) {
            assert_ne!(active.provider, standby.provider, "one owner twice");
        }
        self.audit_host(&story);
        for (why, count) in &self.refused {
            // After a reorg or a lost answer the agent may act on what was true a moment ago.
            let excused = self.reorged || self.setting.faults.answer_lost > 0;
            assert!(excused, "the contract refused {count} times: {why}\n{}", story());
        }
    }

    /// While there is money and nobody paused, the agent has a host whose lease runs and is paid.
    fn audit_host(&self, story: &dyn Fn() -> String) {
        let world = &self.world;
        if world.asleep {
            assert!(!self.serving, "asleep and serving\n{}", story());
            return;
        }
        let Some(active) = world.lease(world.active) else {
            assert_ne!(world.stage, Stage::Alive, "alive without a host\n{}", story());
            return;
        };
        if world.stage != Stage::Alive || world.paused || self.agent.ending().is_some() {
            return;
        }
        assert!(world.now < active.end, "lease {} ran out\n{}", active.id, story());
        let cheap = rent_up(active.price_e6, u64::from(self.setting.day));
        if world.balance > 4 * cheap && active.start != 0 {
            assert!(world.escrow_left(active.id) > 0, "the active host is not paid\n{}", story());
        }
        assert!(world.restoring || self.serving, "alive, fed and not serving\n{}", story());
    }
}
