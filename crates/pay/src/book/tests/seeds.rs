//! Every scheme in one seeded world, with everything that can go wrong between a customer, this process and a chain:
//! answers of the settlement that come late, twice or never, crashes at every step, reorganisations, third parties that
//! settle first, cancelled payments, frozen payers, dust.
//!
//! A failure names its seed, and the same seed is the same world.

use super::*;
use crate::Reason;
use crate::book::channels::{AskedDeposit, CallReservation, ChannelAsk, ChannelDecision, ClaimPolicy, RefundAsk};
use crate::scheme::channel::{ChannelConfig, ChannelId, ChannelState, Deposit, DepositMethod, HeldVoucher};
use std::collections::{BTreeMap, BTreeSet};

/// Steps of one life.
const STEPS: usize = 60;
const PAYERS: usize = 2;
const NONCES: usize = 4;
/// What every payment permits.
const VALUE: u128 = 100;

fn seeds() -> u64 {
    if std::env::var_os("VIVARIUM_DEEP").is_some() { 1_000_000 } else { 10_000 }
}

/// SplitMix64.
struct Chance(u64);

impl Chance {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        usize::try_from((z ^ (z >> 31)) % u64::try_from(n).unwrap()).unwrap()
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

/// Added to the nonces of payments that are settled late.
const LATE: u8 = 50;

/// A payment by one of the ways that have a transaction of their own, or a row in one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Coin {
    way: Way,
    payer: u8,
    nonce: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Way {
    Exact,
    /// Settled after it was served: in a batch with others, or by somebody else's facilitator.
    ExactLate,
    ExactPermit2,
    Upto,
}

impl Coin {
    const WAYS: [Way; 4] = [Way::Exact, Way::ExactLate, Way::ExactPermit2, Way::Upto];

    fn drawn(ways: &[Way], chance: &mut Chance) -> Self {
        let way = ways[chance.below(ways.len())];
        let small = |n: usize| u8::try_from(n + 1).unwrap();
        Self { way, payer: small(chance.below(PAYERS)), nonce: small(chance.below(NONCES)) }
    }

    fn reservation(self) -> Reservation {
        match self.way {
            Way::Exact => reservation(self.payer, self.nonce, self.nonce, Timing::AtOnce),
            Way::ExactLate => {
                let nonce = self.nonce + LATE;
                reservation(self.payer, nonce, nonce, Timing::OnDelivery)
            }
            Way::ExactPermit2 => permitted(self.payer, self.nonce, self.nonce, Proxy::Exact),
            // Of its own question, so that the two Permit2 ways don't take one another for a lost answer.
            Way::Upto => permitted(self.payer, self.nonce + 100, self.nonce + 100, UPTO),
        }
    }

    fn request(self) -> RequestId {
        self.reservation().request
    }

    fn ask(self) -> Ask {
        let r = self.reservation();
        let (method, payer, nonce) = (r.settlement.method(), r.settlement.payer(), r.settlement.nonce());
        Ask { method, payer, nonce, route: r.route, body_digest: r.body_digest, identifier: None, fresh: true }
    }
}

/// What became of a payment on the chain. A nonce is taken once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Paid {
        amount: u128,
        recorded: bool,
        block: u64,
    },
    /// The payer cancelled it or used its nonce for something else.
    Void,
}

#[derive(Default)]
struct Chain {
    fates: BTreeMap<Coin, Fate>,
    /// Settlements in the mempool, what they move, and whether through the treasury.
    pending: BTreeMap<Coin, (u128, bool)>,
    refunded: BTreeSet<Coin>,
    frozen: BTreeSet<u8>,
    block: u64,
    channels: BTreeMap<u8, ChannelState>,
}

impl Chain {
    /// Mines a settlement that may have been mined before, or cannot be.
    fn mine(&mut self, coin: Coin, amount: u128, recorded: bool) -> bool {
        self.block += 1;
        let possible = !self.fates.contains_key(&coin) && !self.frozen.contains(&coin.payer);
        if possible {
            self.fates.insert(coin, Fate::Paid { amount, recorded, block: self.block });
        }
        possible
    }

    fn total(&self) -> u128 {
        let moved = |fate: &Fate| if let Fate::Paid { amount, .. } = fate { *amount } else { 0 };
        self.fates.values().map(moved).sum()
    }
}

struct World {
    /// What its customers pay by.
    ways: &'static [Way],
    chance: Chance,
    chain: Chain,
    book: ChannelBook,
    /// All records that were durable when something left the process.
    journal: Vec<BookInput>,
    /// Authorisations that somebody else's facilitator has seen, and may send at any time.
    handed_out: BTreeSet<Coin>,
    /// What customers got, by the meter.
    served: BTreeMap<Coin, u128>,
    /// Income said and taken back.
    earned: i128,
    calls_charged: u128,
    receipts: BTreeMap<RequestId, u32>,
    expired: bool,
    passed: BTreeMap<&'static str, u64>,
}

impl World {
    fn new(seed: u64) -> Self {
        let limits = ChannelLimits { deposit_min: Usdc(50), ..ChannelLimits::default() };
        // Batches need several that wait.
        let ways: &[Way] = if seed.is_multiple_of(2) { &Coin::WAYS } else { &[Way::ExactLate] };
        Self {
            ways,
            chance: Chance(seed),
            chain: Chain::default(),
            book: ChannelBook::with_channels(Limits::default(), limits),
            journal: Vec::new(),
            handed_out: BTreeSet::new(),
            served: BTreeMap::new(),
            earned: 0,
            calls_charged: 0,
            receipts: BTreeMap::new(),
            expired: false,
            passed: BTreeMap::new(),
        }
    }

    fn pass(&mut self, what: &'static str) {
        *self.passed.entry(what).or_default() += 1;
    }

    fn record(&mut self, input: BookInput) {
        self.journal.push(input.clone());
        let outputs = self.book.apply(input);
        assert!(self.book.totals().is_balanced());
        self.book.channels().check().unwrap();
        for output in outputs {
            match output {
                BookOutput::Earned { amount, .. } => self.earned += i128::try_from(amount.micro()).unwrap(),
                BookOutput::Unearned { amount, .. } => self.earned -= i128::try_from(amount.micro()).unwrap(),
                BookOutput::Channel(ChannelOutput::Charged { request, amount, .. }) => {
                    self.calls_charged += amount.micro();
                    *self.receipts.entry(request).or_default() += 1;
                }
                BookOutput::Refused { .. } | BookOutput::Channel(ChannelOutput::Refused { .. }) => {
                    panic!("decide was asked first")
                }
                _ => {}
            }
        }
    }

    fn channel(&mut self, input: ChannelInput) {
        self.record(BookInput::Channel(input));
    }

    /// What is written, and lost with the crash that follows: nothing of it has left the process.
    fn record_or_lose(&mut self, input: BookInput) -> bool {
        if self.chance.one_in(12) {
            self.pass("crash before durable");
            self.book.apply(input);
            self.restart();
            return false;
        }
        self.record(input);
        true
    }

    fn restart(&mut self) {
        self.pass("crash");
        let limits = self.book.channels().limits().clone();
        let mut book = ChannelBook::with_channels(Limits::default(), limits);
        for input in &self.journal {
            book.apply(input.clone());
        }
        self.book = book;
        let interrupted = self.book.interrupted(NOW).into_iter();
        let calls = self.book.channels().interrupted(NOW).into_iter().map(BookInput::Channel);
        for input in interrupted.chain(calls).collect::<Vec<_>>() {
            self.record(input);
        }
        // The log is read again from an old block, and what was on its way is asked about.
        for coin in self.coins() {
            self.hear(coin);
        }
        for payer in 1..=PAYERS {
            self.read_channel(u8::try_from(payer).unwrap());
        }
    }

    fn coins(&self) -> Vec<Coin> {
        let ways = Coin::WAYS;
        let all = |n: usize| 1..=u8::try_from(n).unwrap();
        let coins = ways.into_iter().flat_map(|way| all(PAYERS).map(move |payer| (way, payer)));
        coins.flat_map(|(way, payer)| all(NONCES).map(move |nonce| Coin { way, payer, nonce })).collect()
    }

    fn said(&self, coin: Coin) -> Option<BookInput> {
        let terms = coin.reservation().settlement;
        match self.chain.fates.get(&coin)? {
            Fate::Paid { amount, recorded, block } => Some(BookInput::Settled {
                method: terms.method(),
                payer: terms.payer(),
                nonce: terms.nonce(),
                amount: Usdc(*amount),
                tx: [coin.nonce; 32],
                block: *block,
                recorded: *recorded,
            }),
            Fate::Void => Some(BookInput::Unpaid { request: coin.request(), why: UnpaidWhy::Cancelled }),
        }
    }

    /// The treasury's own event: of settlements that it records, whoever sent them.
    fn hear(&mut self, coin: Coin) {
        if let Some(Fate::Paid { recorded: true, .. }) = self.chain.fates.get(&coin) {
            let said = self.said(coin).unwrap();
            self.record(said);
        }
    }

    /// Reconciles one payment that is on its way.
    fn ask_chain(&mut self, coin: Coin) {
        let Some(entry) = self.book.entry(&coin.request()) else { return };
        if !matches!(entry.payment, Payment::Sent | Payment::Unknown) {
            return;
        }
        match self.said(coin) {
            Some(said) => self.record(said),
            None if self.expired => {
                self.record(BookInput::Unpaid { request: coin.request(), why: UnpaidWhy::Expired });
            }
            None => self.record(BookInput::SettleUnknown { request: coin.request() }),
        }
    }

    /// What a node does with a settlement that is due.
    fn send(&mut self, coin: Coin) {
        let request = coin.request();
        if !self.book.may_settle(&request) || self.expired {
            return;
        }
        let charge = self.book.entry(&request).unwrap().charge.micro();
        if !self.record_or_lose(BookInput::SettleSent { request }) {
            return;
        }
        let recorded = match coin.way {
            Way::Exact => true,
            // Somebody else's facilitator leaves no record.
            Way::ExactLate if self.chance.one_in(2) => {
                self.handed_out.insert(coin);
                false
            }
            Way::ExactLate => true,
            Way::ExactPermit2 | Way::Upto => false,
        };
        match self.chance.below(6) {
            0 | 1 => {
                let mined = self.chain.mine(coin, charge, recorded);
                if !mined {
                    // Reverted: somebody was faster, it is void, or the payer is frozen. The chain is asked which.
                    self.pass("reverted");
                    match self.said(coin) {
                        Some(said) => self.record(said),
                        None if matches!(coin.way, Way::Exact | Way::ExactLate) && !self.handed_out.contains(&coin) => {
                            self.record(BookInput::Unpaid { request, why: UnpaidWhy::Refused });
                        }
                        // No event would tell that it paid after all: it is asked about until it is over.
                        None => self.record(BookInput::SettleUnknown { request }),
                    }
                } else {
                    let said = self.said(coin).unwrap();
                    self.record(said.clone());
                    if self.chance.one_in(3) {
                        self.pass("answered twice");
                        self.record(said);
                    }
                }
            }
            2 => {
                self.pass("answer lost after it settled");
                self.chain.mine(coin, charge, recorded);
                self.record(BookInput::SettleUnknown { request });
            }
            3 => {
                self.pass("crash after it settled");
                self.chain.mine(coin, charge, recorded);
                self.restart();
            }
            4 => {
                self.pass("answered late");
                self.chain.pending.insert(coin, (charge, recorded));
                self.record(BookInput::SettleUnknown { request });
            }
            _ => {
                self.pass("never answered");
                self.record(BookInput::SettleUnknown { request });
            }
        }
    }

    /// What a node does with payments that wait for company: one transaction, in which each row stands or falls alone.
    fn send_batch(&mut self) {
        let due: Vec<Coin> = self.coins().into_iter().filter(|coin| coin.way == Way::ExactLate).collect();
        let mut rows = Vec::new();
        for coin in due {
            if !self.book.may_settle(&coin.request()) || self.expired {
                continue;
            }
            if !self.record_or_lose(BookInput::SettleSent { request: coin.request() }) {
                return;
            }
            rows.push(coin);
        }
        if rows.len() < 2 {
            return;
        }
        match self.chance.below(5) {
            0 | 1 => {
                let mined: Vec<bool> = rows.iter().map(|coin| self.chain.mine(*coin, VALUE, true)).collect();
                if mined.contains(&true) && mined.contains(&false) {
                    self.pass("a bad row in a batch");
                }
                // The transaction went through; of its rows the chain is asked, and one that did not is sent alone.
                for coin in rows {
                    match self.said(coin) {
                        Some(said) => self.record(said),
                        None => self.send(coin),
                    }
                }
            }
            2 => {
                self.pass("crash between a batch and its outcome");
                for coin in rows {
                    self.chain.mine(coin, VALUE, true);
                }
                self.restart();
            }
            3 => {
                self.pass("crash while a batch waits");
                self.restart();
            }
            _ => {
                self.pass("a batch without an outcome");
                for coin in rows {
                    if self.chance.one_in(2) {
                        self.chain.pending.insert(coin, (VALUE, true));
                    }
                    self.record(BookInput::SettleUnknown { request: coin.request() });
                }
            }
        }
    }

    fn step(&mut self) {
        let coin = Coin::drawn(self.ways, &mut self.chance);
        let request = coin.request();
        let serving = self.book.in_flight().any(|(r, _)| *r == request);
        match self.chance.below(23) {
            0..=4 => {
                let decided = self.book.decide(&coin.ask(), NOW);
                if decided == Decision::New && !self.expired {
                    self.record_or_lose(BookInput::Reserved(coin.reservation()));
                }
            }
            5 | 6 if serving => {
                let amount = u128::try_from(1 + self.chance.below(60)).unwrap();
                let marked = BookInput::Mark { request, tokens: 64, amount: Usdc(amount) };
                if self.record_or_lose(marked) {
                    let most = self.served.entry(coin).or_default();
                    *most = amount.max(*most);
                }
            }
            7..=9 if serving => {
                let marked = self.served.get(&coin).copied().unwrap_or(0);
                let amount = marked + u128::try_from(1 + self.chance.below(80)).unwrap();
                let BookInput::Delivered { delivery, .. } = delivered(1, 1, self.chance.one_in(2)) else { panic!() };
                if self.record_or_lose(BookInput::Delivered { request, delivery, amount: Usdc(amount) }) {
                    self.served.insert(coin, amount);
                }
            }
            10 if serving && !self.served.contains_key(&coin) => {
                self.pass("nothing delivered");
                self.record(BookInput::Aborted { request, why: AbortWhy::Engine });
            }
            11 | 12 if coin.way == Way::ExactLate => self.send_batch(),
            11..=13 => self.send(coin),
            14 => self.ask_chain(coin),
            15 => {
                if let Some((amount, recorded)) = self.chain.pending.remove(&coin) {
                    self.chain.mine(coin, amount, recorded);
                    self.hear(coin);
                }
            }
            16 => self.third_party(coin),
            17 => {
                self.pass("cancelled");
                self.chain.fates.entry(coin).or_insert(Fate::Void);
            }
            18 => {
                self.pass("frozen");
                if !self.chain.frozen.remove(&coin.payer) {
                    self.chain.frozen.insert(coin.payer);
                }
            }
            19 => self.reorg(),
            20 => self.restart(),
            21 => self.send_batch(),
            _ => self.refund(),
        }
        self.on_channel();
    }

    /// Anybody may settle what is not `upto`: through the treasury, or without a record.
    fn third_party(&mut self, coin: Coin) {
        let unpaid = self.book.entry(&coin.request()).is_some_and(|e| matches!(e.payment, Payment::Unpaid { .. }));
        let has_settled = match coin.way {
            Way::Upto => false,
            Way::Exact | Way::ExactLate if self.chance.one_in(2) => self.chain.mine(coin, VALUE, true),
            // Whoever said that it can never pay has looked for the last time.
            _ if unpaid => false,
            // A payer who signs one nonce twice and has the smaller one settled: dust.
            Way::Exact | Way::ExactLate => {
                let amount = if self.chance.one_in(3) { 1 } else { VALUE };
                self.chain.mine(coin, amount, false)
            }
            Way::ExactPermit2 => self.chain.mine(coin, VALUE, false),
        };
        if has_settled {
            self.pass("third party settled first");
            self.hear(coin);
            self.find(coin);
        }
    }

    /// A payment that comes back with money that somebody else has settled: a node finds it when it looks at the
    /// chain before it serves.
    fn find(&mut self, coin: Coin) {
        let Some(entry) = self.book.entry(&coin.request()) else { return };
        let is_idle = matches!(entry.payment, Payment::Waiting | Payment::Due);
        if is_idle && matches!(entry.service, Service::Aborted { .. }) {
            let said = self.said(coin).unwrap();
            self.record(said);
        }
    }

    /// The last block is taken back, and with it what it settled, unless that was refunded.
    fn reorg(&mut self) {
        let settled = self.chain.fates.iter().filter_map(|(coin, fate)| match fate {
            Fate::Paid { amount, recorded, block } if !self.chain.refunded.contains(coin) => {
                Some((*block, *coin, *amount, *recorded))
            }
            _ => None,
        });
        let Some((_, coin, amount, recorded)) = settled.max_by_key(|(block, ..)| *block) else { return };
        self.pass("reorg after it settled");
        self.chain.fates.remove(&coin);
        let terms = coin.reservation().settlement;
        let (method, payer, nonce) = (terms.method(), terms.payer(), terms.nonce());
        self.record(BookInput::Reversed { method, payer, nonce });
        // Most come again; one that was cancelled instead never does.
        if self.chance.one_in(4) {
            self.chain.fates.insert(coin, Fate::Void);
        } else {
            self.chain.mine(coin, amount, recorded);
        }
        self.ask_chain(coin);
    }

    fn refund(&mut self) {
        let owed: Vec<_> = self.book.owed().map(|(_, e, amount)| (e.reservation.settlement.clone(), amount)).collect();
        for (terms, amount) in owed {
            let (payer, nonce) = (terms.payer(), terms.nonce());
            let (way, number) = match nonce[0].checked_sub(LATE) {
                Some(late) => (Way::ExactLate, late),
                None => (Way::Exact, nonce[0]),
            };
            let coin = Coin { way, payer: payer[0], nonce: number };
            assert!(self.chain.refunded.insert(coin), "{coin:?} is refunded twice");
            self.pass("refunded");
            self.record(BookInput::Refunded { payer, nonce, amount });
        }
    }

    // ---- channels ----

    fn id(payer: u8) -> ChannelId {
        ChannelId([payer; 32])
    }

    fn config(payer: u8) -> ChannelConfig {
        ChannelConfig {
            payer: [payer; 20],
            payer_authorizer: [payer; 20],
            receiver: [0xEE; 20],
            receiver_authorizer: [0xEE; 20],
            token: [0xDD; 20],
            withdraw_delay_secs: 900,
            salt: [0; 32],
        }
    }

    fn state(&self, payer: u8) -> ChannelState {
        let nothing =
            ChannelState { balance: Usdc::ZERO, claimed: Usdc::ZERO, withdrawal: None, refund_nonce: 0, block: 0 };
        ChannelState { block: self.chain.block, ..self.chain.channels.get(&payer).cloned().unwrap_or(nothing) }
    }

    fn see(&mut self, payer: u8) {
        let (channel, config, state) = (Self::id(payer), Self::config(payer), self.state(payer));
        self.channel(ChannelInput::Seen { channel, config, state, at: NOW });
    }

    /// After a start: what became of deposit, claim and refund is read from the channel.
    fn read_channel(&mut self, payer: u8) {
        let id = Self::id(payer);
        let Some(known) = self.book.channels().channel(&id).cloned() else { return };
        self.see(payer);
        let state = self.state(payer);
        if let Some(open) = &known.deposit {
            let key = open.key;
            let landed = state.balance >= known.chain.balance.saturating_add(open.deposit.amount);
            self.channel(match landed {
                true => ChannelInput::DepositDone { channel: id, key },
                false => ChannelInput::DepositFailed { channel: id, key },
            });
        }
        if let Some(open) = &known.claim {
            let done = state.claimed >= open.total;
            self.channel(match done {
                true => ChannelInput::ClaimDone { rows: vec![id] },
                false => ChannelInput::ClaimFailed { rows: vec![id] },
            });
        }
        if known.refund.is_some() {
            self.channel(ChannelInput::RefundEnded { channel: id });
        }
    }

    fn on_channel(&mut self) {
        let payer = u8::try_from(1 + self.chance.below(PAYERS)).unwrap();
        let id = Self::id(payer);
        let open = self.book.channels().calls().find(|(_, c)| !c.is_closed() && c.reservation.channel == id);
        let open = open.map(|(request, _)| *request);
        self.chain.block += 1;
        match (self.chance.below(10), open) {
            (0..=2, _) => self.call(payer),
            (3 | 4, Some(request)) => {
                let amount = Usdc(u128::try_from(self.chance.below(40)).unwrap());
                let BookInput::Delivered { delivery, .. } = delivered(1, 1, true) else { panic!() };
                self.record_or_lose(BookInput::Channel(ChannelInput::Charged { request, amount, delivery }));
            }
            (5, Some(request)) => self.channel(ChannelInput::Aborted { request, why: AbortWhy::HungUp }),
            (6, _) => self.claim(),
            (7, _) => {
                let asked = RefundAsk { channel: id, amount: None };
                let Ok(amount) = self.book.channels().decide_refund(&asked) else { return };
                self.channel(ChannelInput::RefundAsked { channel: id, amount, at: NOW });
                let claim = self.book.channels().claim_before_refund(&id);
                let state = self.chain.channels.get_mut(&payer).unwrap();
                if let Some(row) = claim {
                    state.claimed = row.total.max(state.claimed);
                }
                if self.chance.one_in(2) {
                    state.balance = state.balance.saturating_sub(amount);
                    state.refund_nonce += 1;
                }
                if self.chance.one_in(2) {
                    self.pass("crash after a refund");
                    return self.restart();
                }
                self.read_channel(payer);
            }
            (8, _) => {
                // A claim is taken back by a reorganisation: it is due again.
                let Some(state) = self.chain.channels.get_mut(&payer) else { return };
                if !state.claimed.is_zero() && self.book.channels().channel(&id).is_some_and(|c| c.refund.is_none()) {
                    state.claimed = Usdc::ZERO;
                    self.pass("reorg after a claim");
                    self.see(payer);
                }
            }
            _ => {}
        }
    }

    fn call(&mut self, payer: u8) {
        let id = Self::id(payer);
        let (charged, reserved) =
            self.book.channels().channel(&id).map_or((0, 0), |c| (c.charged.micro(), c.reserved.micro()));
        let max = charged + reserved + 30;
        let amount = Usdc(if self.chance.one_in(5) { 40 } else { 200 });
        let deposit = Deposit {
            amount,
            method: DepositMethod::Eip3009 {
                valid_after: 0,
                valid_before: NOW + 60,
                salt: [u8::try_from(self.chance.below(250)).unwrap(); 32],
                signature: vec![1; 65],
            },
            is_signed_by_key: true,
        };
        let needs = self.state(payer).balance.micro() < max;
        let ask = ChannelAsk {
            channel: id,
            max: Usdc(max),
            ceiling: Usdc(30),
            deposit: needs.then(|| AskedDeposit { key: deposit.key(&id), amount }),
            route: "POST /".into(),
            body_digest: [u8::try_from(self.chance.below(4)).unwrap(); 32],
            fresh: self.chance.one_in(2),
        };
        let state = self.state(payer);
        match self.book.channels().decide_seen(&ask, &Self::config(payer), &state, NOW) {
            ChannelDecision::Refused(Reason::DepositBelowMin) => self.pass("dust deposit refused"),
            ChannelDecision::Deposit => {
                self.see(payer);
                self.channel(ChannelInput::DepositAsked { channel: id, deposit, at: NOW });
                if !self.chance.one_in(4) {
                    let state = self.chain.channels.entry(payer).or_insert(state);
                    state.balance = state.balance.saturating_add(amount);
                }
                if self.chance.one_in(3) {
                    self.pass("crash after a deposit");
                    return self.restart();
                }
                self.read_channel(payer);
            }
            ChannelDecision::New { request } => {
                self.see(payer);
                self.record_or_lose(BookInput::Channel(ChannelInput::Reserved(CallReservation {
                    request,
                    channel: id,
                    voucher: HeldVoucher { max: ask.max, signature: [7; 65] },
                    accepted: ask.ceiling,
                    ceiling: ask.ceiling,
                    route: ask.route,
                    body_digest: ask.body_digest,
                    identifier: None,
                    prompt_tokens: 1,
                    max_tokens: 64,
                    at: NOW,
                })));
            }
            _ => {}
        }
    }

    fn claim(&mut self) {
        let policy = ClaimPolicy { channel_max: Usdc(0), all_max: Usdc(0), row_min: Usdc(1), rows_max: 10 };
        for batch in self.book.channels().due_claims(&policy, NOW) {
            let rows: Vec<(ChannelId, Usdc)> = batch.iter().map(|row| (row.channel, row.total)).collect();
            self.channel(ChannelInput::ClaimSent { rows: rows.clone() });
            let mined = !self.chance.one_in(4);
            for (row, (id, total)) in batch.iter().zip(&rows) {
                let state = self.chain.channels.get_mut(&id.0[0]).unwrap();
                assert!(*total <= row.voucher.max && *total <= state.balance, "claims what was signed and is there");
                if mined {
                    state.claimed = *total;
                }
            }
            if self.chance.one_in(3) {
                self.pass("crash after a claim");
                return self.restart();
            }
            for (id, _) in rows {
                self.read_channel(id.0[0]);
            }
        }
    }

    // ---- the end ----

    /// Everything ends: answers are closed, transactions mined or dropped, permissions run out, refunds sent.
    fn quiesce(&mut self) {
        self.chain.frozen.clear();
        self.restart();
        for coin in self.coins() {
            if let Some((amount, recorded)) = self.chain.pending.remove(&coin) {
                self.chain.mine(coin, amount, recorded);
            }
            self.hear(coin);
            self.ask_chain(coin);
        }
        // One more try each, and then they are over.
        for coin in self.coins() {
            for _ in 0..20 {
                let under_way = self.book.may_settle(&coin.request());
                if !under_way {
                    break;
                }
                self.send(coin);
                if let Some((amount, recorded)) = self.chain.pending.remove(&coin) {
                    self.chain.mine(coin, amount, recorded);
                }
                self.hear(coin);
                self.ask_chain(coin);
            }
        }
        self.expired = true;
        for coin in self.coins() {
            self.ask_chain(coin);
        }
        self.refund();
    }

    fn judge(&self, seed: u64) {
        let book = &self.book;
        assert_eq!((book.open(), book.exposure()), (0, Usdc::ZERO), "seed {seed}: something is open");
        let (mut earned, mut lost, mut stranded) = (0, 0, 0);
        for coin in self.coins() {
            let story = format!("seed {seed} {coin:?} {:?}", book.entry(&coin.request()));
            let moved = match self.chain.fates.get(&coin) {
                Some(Fate::Paid { amount, .. }) => *amount,
                _ => 0,
            };
            let (served, refunded) = (self.served.contains_key(&coin), self.chain.refunded.contains(&coin));
            assert!(moved <= VALUE, "more than was signed: {story}");
            assert!(!(served && refunded), "served and refunded: {story}");
            let Some(entry) = book.entry(&coin.request()) else { continue };
            assert_eq!(served, matches!(entry.service, Service::Delivered(_)), "{story}");
            let charge = match (coin.way, self.served.get(&coin)) {
                (Way::Upto, Some(worth)) => (*worth).min(VALUE),
                (Way::Upto, None) => {
                    assert_eq!(moved, 0, "paid for nothing: {story}");
                    0
                }
                (Way::Exact | Way::ExactLate | Way::ExactPermit2, _) => VALUE,
            };
            if coin.way == Way::Upto && moved > 0 {
                assert_eq!(moved, charge, "charged by what was delivered: {story}");
            }
            match (served, moved > 0) {
                (true, true) => {
                    earned += moved;
                    lost += charge - moved;
                }
                (true, false) => lost += charge,
                (false, true) if !refunded => {
                    let unrecorded = matches!(self.chain.fates[&coin], Fate::Paid { recorded: false, .. });
                    let is_known = entry.settled().is_some();
                    assert!(unrecorded, "paid for nothing: {story}");
                    stranded += if is_known { moved } else { 0 };
                }
                (false, _) => {}
            }
        }
        let totals = book.totals();
        assert_eq!(totals.earned, Usdc(earned), "seed {seed}");
        assert_eq!((totals.lost, totals.stranded), (Usdc(lost), Usdc(stranded)), "seed {seed}");
        assert_eq!(i128::try_from(earned).unwrap(), self.earned, "seed {seed}: income is said once");
        assert!(totals.settled.saturating_add(totals.unmatched).micro() <= self.chain.total(), "seed {seed}");
        // Channels: what was charged has a receipt each, and nothing was claimed that was not charged.
        let channels = book.channels().totals();
        assert!(self.receipts.values().all(|count| *count == 1), "seed {seed}");
        assert_eq!(channels.charged.micro(), self.calls_charged, "seed {seed}");
        // The same records give the same book, byte for byte.
        let limits = book.channels().limits().clone();
        let mut replayed = ChannelBook::with_channels(Limits::default(), limits);
        for input in &self.journal {
            replayed.apply(borsh::from_slice(&borsh::to_vec(input).unwrap()).unwrap());
        }
        assert_eq!(replayed.digest(), book.digest(), "seed {seed}");
    }
}

/// Says which seed it was, whatever broke.
struct Named(u64);

impl Drop for Named {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("seed {}", self.0);
        }
    }
}

/// One life in each of these worlds; how often what happened.
fn live(seeds: impl Iterator<Item = u64>) -> BTreeMap<&'static str, u64> {
    let mut passed: BTreeMap<&'static str, u64> = BTreeMap::new();
    for seed in seeds {
        let _named = Named(seed);
        let mut world = World::new(seed);
        for _ in 0..STEPS {
            world.step();
        }
        world.quiesce();
        world.judge(seed);
        for (what, count) in world.passed {
            *passed.entry(what).or_default() += count;
        }
    }
    passed
}

#[test]
fn no_seed_charges_twice_serves_for_nothing_or_loses_money() {
    // No world knows of another: as many at once as there are cores.
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let of_thread = |first: usize| (0..seeds()).skip(first).step_by(threads);
    let mut passed: BTreeMap<&'static str, u64> = BTreeMap::new();
    std::thread::scope(|scope| {
        let lives: Vec<_> = (0..threads).map(|first| scope.spawn(move || live(of_thread(first)))).collect();
        for life in lives {
            for (what, count) in life.join().unwrap_or_else(|broken| std::panic::resume_unwind(broken)) {
                *passed.entry(what).or_default() += count;
            }
        }
    });
    // A fault that never happens tests nothing.
    for what in [
        "a bad row in a batch",
        "a batch without an outcome",
        "crash between a batch and its outcome",
        "crash while a batch waits",
        "answer lost after it settled",
        "answered late",
        "answered twice",
        "cancelled",
        "crash",
        "crash after a claim",
        "crash after a deposit",
        "crash after a refund",
        "crash after it settled",
        "crash before durable",
        "dust deposit refused",
        "frozen",
        "never answered",
        "nothing delivered",
        "refunded",
        "reorg after a claim",
        "reorg after it settled",
        "reverted",
        "third party settled first",
    ] {
        assert!(passed.get(what).copied().unwrap_or(0) >= 100, "{what}: {passed:?}");
    }
}
