//! Every scheme in one seeded world, with everything that can go wrong between a customer, this process and a chain:
//! answers of the settlement that come late, twice or never, crashes at every step, reorganisations, third parties that
//! settle first, cancelled payments, frozen payers, dust, payers that withdraw from their channels.
//!
//! The world keeps a count of its own: what was signed, what customers got, what the chain moved. It judges the book by
//! that, never by the book's word alone.
//!
//! A failure names its seed, and the same seed is the same world.

use super::*;
use crate::Reason;
use crate::book::channels::{AskedDeposit, CallReservation, ChannelAsk, ChannelDecision, ClaimPolicy, RefundAsk};
use crate::scheme::channel::{ChannelConfig, ChannelId, ChannelState, Deposit, DepositMethod, HeldVoucher, Withdrawal};
use std::collections::{BTreeMap, BTreeSet};

/// Steps of one life.
const STEPS: usize = 60;
const PAYERS: usize = 2;
const NONCES: usize = 4;
/// What every payment permits.
const VALUE: u128 = 100;
/// The exposure that the node is given: over it nothing new is served before it is paid.
const EXPOSURE_MAX: u128 = 500;
/// Most that a call on a channel costs.
const CEILING: u128 = 30;
/// Chain seconds from step to step; a node looks at its channels as often.
const STEP_SECS: u64 = 60;
const WITHDRAW_DELAY_SECS: u64 = 900;
/// No block this old is taken back: the deepest that Base ever took back was younger (docs/reference/payments.md). A claim
/// that is taken back minutes before its payer's delay is over can be outrun by it, if the node dies in that minute, too.
const REORG_SECS: u64 = 120;

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

    fn scheme(self) -> Scheme {
        Some(match self.way {
            Way::Exact => "exact",
            Way::ExactLate => "exact, late",
            Way::ExactPermit2 => "exact by Permit2",
            Way::Upto => "upto",
        })
    }

    fn ask(self) -> Ask {
        let r = self.reservation();
        let (method, payer, nonce) = (r.settlement.method(), r.settlement.payer(), r.settlement.nonce());
        Ask { method, payer, nonce, route: r.route, body_digest: r.body_digest, identifier: None, fresh: true }
    }
}

fn coins() -> impl Iterator<Item = Coin> {
    let all = |n: usize| 1..=u8::try_from(n).unwrap();
    let coins = Coin::WAYS.into_iter().flat_map(move |way| all(PAYERS).map(move |payer| (way, payer)));
    coins.flat_map(move |(way, payer)| all(NONCES).map(move |nonce| Coin { way, payer, nonce }))
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
    /// Seconds, for channels; payments have the world's fixed time and run out when it says so.
    time: u64,
    channels: BTreeMap<u8, ChannelState>,
    /// The newest deposit of a channel, as long as a reorganisation may take it back.
    deposits: BTreeMap<u8, Usdc>,
    /// When each channel was claimed from last.
    claimed_at: BTreeMap<u8, u64>,
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

/// A call on a channel as its customer knows it.
struct OwnCall {
    payer: u8,
    /// What it got, by the meter: the last durable mark, or all.
    worth: u128,
}

struct World {
    requests: BTreeMap<Coin, RequestId>,
    /// Payments that were in, and that a reorganisation took out again.
    taken_back: BTreeSet<Coin>,
    calls: BTreeMap<RequestId, OwnCall>,
    /// The largest voucher that a payer ever signed.
    signed: BTreeMap<u8, u128>,
    /// Deposits that a reorganisation took out again, of a payer in all: so much may have been served for nothing.
    deposits_taken_back: BTreeMap<u8, u128>,
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
    passed: Passed,
}

/// How often what happened, to a payment by which scheme.
type Passed = BTreeMap<(Scheme, &'static str), u64>;

/// A way to pay, as far as its crashes are told apart; `None`: what is no one payment's.
type Scheme = Option<&'static str>;

impl World {
    fn new(seed: u64) -> Self {
        let limits = ChannelLimits { deposit_min: Usdc(50), ..ChannelLimits::default() };
        // Batches need several that wait.
        let ways: &[Way] = if seed.is_multiple_of(2) { &Coin::WAYS } else { &[Way::ExactLate] };
        Self {
            requests: coins().map(|coin| (coin, coin.request())).collect(),
            taken_back: BTreeSet::new(),
            calls: BTreeMap::new(),
            signed: BTreeMap::new(),
            deposits_taken_back: BTreeMap::new(),
            ways,
            chance: Chance(seed),
            chain: Chain { time: NOW, ..Chain::default() },
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
        self.pass_by(None, what);
    }

    fn pass_by(&mut self, scheme: Scheme, what: &'static str) {
        *self.passed.entry((scheme, what)).or_default() += 1;
    }

    /// Which step of which scheme this record is.
    fn step_of(&self, input: &BookInput) -> (Scheme, &'static str) {
        let of = |request: &RequestId| {
            let coin = self.requests.iter().find(|(_, own)| *own == request);
            coin.and_then(|(coin, _)| coin.scheme())
        };
        let on_channel = Some("batch-settlement");
        match input {
            BookInput::Reserved(reservation) => (of(&reservation.request), "reserved"),
            BookInput::Mark { request, .. } => (of(request), "marked"),
            BookInput::Delivered { request, .. } => (of(request), "delivered"),
            BookInput::SettleSent { request } => (of(request), "sent"),
            BookInput::Channel(ChannelInput::Reserved(_)) => (on_channel, "reserved"),
            BookInput::Channel(ChannelInput::Mark { .. }) => (on_channel, "marked"),
            BookInput::Channel(ChannelInput::Charged { .. }) => (on_channel, "charged"),
            BookInput::Channel(ChannelInput::DepositAsked { .. }) => (on_channel, "deposit asked"),
            BookInput::Channel(ChannelInput::ClaimSent { .. }) => (on_channel, "claim sent"),
            BookInput::Channel(ChannelInput::RefundAsked { .. }) => (on_channel, "refund asked"),
            other => panic!("{other:?} is no step that is lost"),
        }
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
            let (scheme, step) = self.step_of(&input);
            self.pass_by(scheme, step);
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
        let calls = self.book.channels().interrupted(self.chain.time).into_iter().map(BookInput::Channel);
        for input in interrupted.chain(calls).collect::<Vec<_>>() {
            self.record(input);
        }
        // The log is read again from an old block, and what was on its way is asked about.
        for coin in coins() {
            self.hear(coin);
        }
        for payer in 1..=PAYERS {
            self.read_channel(u8::try_from(payer).unwrap());
        }
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
            Fate::Void => Some(BookInput::Unpaid { request: self.requests[&coin], why: UnpaidWhy::Cancelled }),
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
        let Some(entry) = self.book.entry(&self.requests[&coin]) else { return };
        if !matches!(entry.payment, Payment::Sent | Payment::Unknown) {
            return;
        }
        match self.said(coin) {
            Some(said) => self.record(said),
            None if self.expired => {
                self.record(BookInput::Unpaid { request: self.requests[&coin], why: UnpaidWhy::Expired });
            }
            None => self.record(BookInput::SettleUnknown { request: self.requests[&coin] }),
        }
    }

    /// What a node does with a settlement that is due.
    fn send(&mut self, coin: Coin) {
        let request = self.requests[&coin];
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
                self.pass_by(coin.scheme(), "settled");
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
        let due: Vec<Coin> = coins().filter(|coin| coin.way == Way::ExactLate).collect();
        let mut rows = Vec::new();
        for coin in due {
            if !self.book.may_settle(&self.requests[&coin]) || self.expired {
                continue;
            }
            if !self.record_or_lose(BookInput::SettleSent { request: self.requests[&coin] }) {
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
                self.pass_by(rows[0].scheme(), "settled");
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
                    self.record(BookInput::SettleUnknown { request: self.requests[&coin] });
                }
            }
        }
    }

    fn step(&mut self) {
        let coin = Coin::drawn(self.ways, &mut self.chance);
        let request = self.requests[&coin];
        let serving = self.book.in_flight().any(|(r, _)| *r == request);
        match self.chance.below(23) {
            0..=4 => {
                let decided = self.book.decide(&coin.ask(), NOW);
                let has_room = self.book.exposure().micro() + VALUE <= EXPOSURE_MAX;
                if decided == Decision::New && !has_room {
                    self.pass("no room for more exposure");
                } else if decided == Decision::New && !self.expired {
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
        self.check_exposure();
    }

    /// Nothing is served for nothing beyond the stated exposure: the book never says less than what customers have and
    /// did not pay, and never takes on more than it was given. Except what a reorganisation reopened: payments that were
    /// in when they were served.
    fn check_exposure(&self) {
        let exposure = self.book.exposure().micro();
        let entry = |coin: &Coin| self.book.entry(&self.requests[coin]);
        let is_over = |entry: &&Entry| matches!(entry.payment, Payment::Settled { .. } | Payment::Unpaid { .. });
        let reopened = self.taken_back.iter().filter_map(entry).filter(|entry| !is_over(entry));
        let reopened: u128 = reopened.map(|entry| entry.charge.micro()).sum();
        assert!(exposure <= EXPOSURE_MAX + reopened, "{exposure} are exposed, {reopened} of it reopened");
        let is_paid = |coin: &Coin| matches!(self.chain.fates.get(coin), Some(Fate::Paid { .. }));
        // What is given up is no longer exposed: `judge` looks at what was lost.
        let is_given_up = |coin: &Coin| entry(coin).is_some_and(|e| matches!(e.payment, Payment::Unpaid { .. }));
        let unpaid = self.served.iter().filter(|(coin, _)| !is_paid(coin) && !is_given_up(coin));
        let unpaid: u128 = unpaid.map(|(_, worth)| (*worth).min(VALUE)).sum();
        assert!(unpaid <= exposure, "{unpaid} are served and not paid, the book says {exposure}");
    }

    /// Anybody may settle what is not `upto`: through the treasury, or without a record.
    fn third_party(&mut self, coin: Coin) {
        let unpaid =
            self.book.entry(&self.requests[&coin]).is_some_and(|e| matches!(e.payment, Payment::Unpaid { .. }));
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
        let Some(entry) = self.book.entry(&self.requests[&coin]) else { return };
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
        self.taken_back.insert(coin);
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
            withdraw_delay_secs: WITHDRAW_DELAY_SECS,
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
        self.channel(ChannelInput::Seen { channel, config, state, at: self.chain.time });
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
        if known.claim.is_some() {
            // Whether it was mined shows; if not, that is no fault of its row, and it is made again.
            self.channel(ChannelInput::ClaimDone { rows: vec![id] });
        }
        if known.refund.is_some() {
            self.channel(ChannelInput::RefundEnded { channel: id });
        }
    }

    fn open_calls(&self, payer: u8) -> Vec<RequestId> {
        let calls = self.book.channels().calls();
        let open = calls.filter(|(_, call)| !call.is_closed() && call.reservation.channel == Self::id(payer));
        open.map(|(request, _)| *request).collect()
    }

    /// What its customers got on a channel, and have to pay for.
    fn delivered(&self, payer: u8) -> u128 {
        self.calls.values().filter(|call| call.payer == payer).map(|call| call.worth.min(CEILING)).sum()
    }

    fn on_channel(&mut self) {
        let payer = u8::try_from(1 + self.chance.below(PAYERS)).unwrap();
        self.chain.block += 1;
        self.chain.time += STEP_SECS;
        self.watch();
        let open = self.open_calls(payer).first().copied();
        match (self.chance.below(14), open) {
            (0..=2, _) => self.call(payer),
            (3, Some(request)) => {
                let amount = u128::try_from(1 + self.chance.below(25)).unwrap();
                let marked = ChannelInput::Mark { request, tokens: 64, amount: Usdc(amount) };
                if self.record_or_lose(BookInput::Channel(marked)) {
                    self.pass("a call was marked");
                    let call = self.calls.get_mut(&request).unwrap();
                    call.worth = call.worth.max(amount);
                }
            }
            (4 | 5, Some(request)) => self.end_call(request),
            (6, Some(request)) if self.calls[&request].worth == 0 => {
                self.channel(ChannelInput::Aborted { request, why: AbortWhy::HungUp });
            }
            (7, _) => {
                self.claim(&ClaimPolicy { channel_max: Usdc(0), all_max: Usdc(0), row_min: Usdc(1), rows_max: 10 })
            }
            (8, _) => self.refund_channel(payer),
            (9, _) => {
                // A claim is taken back by a reorganisation: it is due again.
                let has_refund = self.book.channels().channel(&Self::id(payer)).is_none_or(|c| c.refund.is_some());
                let Some(state) = self.chain.channels.get_mut(&payer).filter(|_| !has_refund) else { return };
                let since = self.chain.claimed_at.get(&payer).copied().unwrap_or(0);
                if !state.claimed.is_zero() && self.chain.time <= since + REORG_SECS {
                    state.claimed = Usdc::ZERO;
                    self.pass("reorg after a claim");
                    self.see(payer);
                }
            }
            (10, _) => self.take_deposit_back(payer),
            (11, _) => self.leave(payer),
            (12, _) => self.withdraw(payer),
            _ => {}
        }
    }

    /// What a node does once a minute of chain time: it sees who leaves, and claims what that payer owes before the delay
    /// is over. No call takes half of it.
    fn watch(&mut self) {
        let leaving = self.chain.channels.iter().filter_map(|(payer, state)| Some((*payer, state.withdrawal?.since)));
        let leaving: Vec<(u8, u64)> = leaving.collect();
        for (payer, since) in &leaving {
            if self.book.channels().channel(&Self::id(*payer)).is_none() {
                continue;
            }
            self.see(*payer);
            if self.chain.time >= since + WITHDRAW_DELAY_SECS / 2 {
                // A crash in between has closed them.
                while let Some(request) = self.open_calls(*payer).first() {
                    self.end_call(*request);
                }
            }
        }
        if !leaving.is_empty() {
            let most = Usdc(u128::MAX);
            self.claim(&ClaimPolicy { channel_max: most, all_max: most, row_min: Usdc(1), rows_max: 10 });
        }
    }

    fn end_call(&mut self, request: RequestId) {
        let marked = self.calls[&request].worth;
        let amount = marked + u128::try_from(self.chance.below(40)).unwrap();
        let BookInput::Delivered { delivery, .. } = delivered(1, 1, true) else { panic!() };
        let charged = ChannelInput::Charged { request, amount: Usdc(amount), delivery };
        if self.record_or_lose(BookInput::Channel(charged)) {
            self.calls.get_mut(&request).unwrap().worth = amount;
        }
    }

    /// The agent gives back what is not charged. What is charged is claimed in the same transaction.
    fn refund_channel(&mut self, payer: u8) {
        let id = Self::id(payer);
        let Ok(amount) = self.book.channels().decide_refund(&RefundAsk { channel: id, amount: None }) else { return };
        let asked = ChannelInput::RefundAsked { channel: id, amount, at: self.chain.time };
        if !self.record_or_lose(BookInput::Channel(asked)) {
            return;
        }
        let claim = self.book.channels().claim_before_refund(&id);
        if self.chance.one_in(2) {
            let state = self.chain.channels.get_mut(&payer).unwrap();
            state.claimed = claim.map_or(state.claimed, |row| row.total.max(state.claimed));
            self.chain.claimed_at.insert(payer, self.chain.time);
            // The contract's own bound.
            state.balance = state.balance.saturating_sub(amount.min(state.balance.saturating_sub(state.claimed)));
            state.refund_nonce += 1;
            self.chain.deposits.remove(&payer);
        }
        if self.chance.one_in(2) {
            self.pass("crash after a refund");
            return self.restart();
        }
        self.read_channel(payer);
    }

    /// A reorganisation takes the newest deposit back, and it is never sent again.
    fn take_deposit_back(&mut self, payer: u8) {
        let Some(amount) = self.chain.deposits.remove(&payer) else { return };
        let state = self.chain.channels.get_mut(&payer).unwrap();
        // What was claimed of it would have gone with it.
        if state.balance.saturating_sub(amount) < state.claimed {
            return;
        }
        state.balance = state.balance.saturating_sub(amount);
        *self.deposits_taken_back.entry(payer).or_default() += amount.micro();
        self.pass("reorg after a deposit");
        self.see(payer);
    }

    /// The payer leaves without us, or says anew how much it takes.
    fn leave(&mut self, payer: u8) {
        let since = self.chain.time;
        let share = u128::try_from(1 + self.chance.below(2)).unwrap();
        let Some(state) = self.chain.channels.get_mut(&payer) else { return };
        let amount = Usdc(state.balance.saturating_sub(state.claimed).micro() / share);
        if !amount.is_zero() && (state.withdrawal.is_none() || self.chance.one_in(4)) {
            state.withdrawal = Some(Withdrawal { amount, since });
            self.pass("a payer leaves");
        }
    }

    fn withdraw(&mut self, payer: u8) {
        let Some(state) = self.chain.channels.get_mut(&payer) else { return };
        let is_ripe = |leaving: &Withdrawal| self.chain.time >= leaving.since + WITHDRAW_DELAY_SECS;
        let Some(leaving) = state.withdrawal.filter(is_ripe) else { return };
        state.withdrawal = None;
        let free = state.balance.saturating_sub(state.claimed);
        state.balance = state.balance.saturating_sub(leaving.amount.min(free));
        let covers = state.balance.micro();
        self.chain.deposits.remove(&payer);
        self.pass("a payer withdrew");
        let owed = self.delivered(payer);
        let explained = self.deposits_taken_back.get(&payer).copied().unwrap_or(0);
        assert!(owed <= covers + explained, "payer {payer} owes {owed}, {covers} are left, {explained} taken back");
    }

    fn call(&mut self, payer: u8) {
        let id = Self::id(payer);
        let (charged, reserved) =
            self.book.channels().channel(&id).map_or((0, 0), |c| (c.charged.micro(), c.reserved.micro()));
        let max = charged + reserved + CEILING;
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
            ceiling: Usdc(CEILING),
            deposit: needs.then(|| AskedDeposit { key: deposit.key(&id), amount }),
            route: "POST /".into(),
            body_digest: [u8::try_from(self.chance.below(4)).unwrap(); 32],
            fresh: self.chance.one_in(2),
        };
        let state = self.state(payer);
        match self.book.channels().decide_seen(&ask, &Self::config(payer), &state, self.chain.time) {
            ChannelDecision::Refused(Reason::DepositBelowMin) => self.pass("dust deposit refused"),
            ChannelDecision::Deposit => {
                self.see(payer);
                let asked = ChannelInput::DepositAsked { channel: id, deposit, at: self.chain.time };
                if !self.record_or_lose(BookInput::Channel(asked)) {
                    return;
                }
                if !self.chance.one_in(4) {
                    let state = self.chain.channels.entry(payer).or_insert(state);
                    state.balance = state.balance.saturating_add(amount);
                    self.chain.deposits.insert(payer, amount);
                }
                if self.chance.one_in(3) {
                    self.pass("crash after a deposit");
                    return self.restart();
                }
                self.read_channel(payer);
            }
            ChannelDecision::New { request } => {
                self.see(payer);
                let most = self.signed.entry(payer).or_default();
                *most = max.max(*most);
                let reserved = ChannelInput::Reserved(CallReservation {
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
                    run: String::new(),
                    at: self.chain.time,
                });
                if self.record_or_lose(BookInput::Channel(reserved)) {
                    self.calls.insert(request, OwnCall { payer, worth: 0 });
                }
            }
            _ => {}
        }
    }

    fn claim(&mut self, policy: &ClaimPolicy) {
        for batch in self.book.channels().due_claims(policy, self.chain.time) {
            let rows: Vec<(ChannelId, Usdc)> = batch.iter().map(|row| (row.channel, row.total)).collect();
            // Half of the delay is time enough to have it mined, at whatever price of gas.
            let is_late = |state: &ChannelState| {
                state.withdrawal.is_some_and(|leaving| self.chain.time >= leaving.since + WITHDRAW_DELAY_SECS / 2)
            };
            let must_be_mined = rows.iter().any(|(id, _)| is_late(&self.chain.channels[&id.0[0]]));
            let sent = BookInput::Channel(ChannelInput::ClaimSent { rows: rows.clone() });
            match must_be_mined {
                true => self.record(sent),
                false if !self.record_or_lose(sent) => return,
                false => {}
            }
            let fate = if must_be_mined { 3 } else { self.chance.below(5) };
            for (row, (id, total)) in batch.iter().zip(&rows) {
                let payer = id.0[0];
                let state = self.chain.channels.get_mut(&payer).unwrap();
                assert!(*total <= row.voucher.max && *total <= state.balance, "claims what was signed and is there");
                if fate > 1 {
                    self.chain.deposits.remove(&payer);
                    state.claimed = *total;
                    self.chain.claimed_at.insert(payer, self.chain.time);
                }
                assert!(total.micro() <= self.signed[&payer], "payer {payer}: {total} claimed, more than it signed");
                assert!(total.micro() <= self.delivered(payer), "payer {payer}: {total} claimed, more than it got");
            }
            if fate == 0 && rows.len() > 1 {
                // One bad row reverts them all: each is claimed alone from here on.
                self.pass("a batch of claims reverted");
                self.channel(ChannelInput::ClaimFailed { rows: rows.iter().map(|(id, _)| *id).collect() });
                continue;
            }
            if fate <= 1 {
                self.pass("a claim was dropped");
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
        for coin in coins() {
            if let Some((amount, recorded)) = self.chain.pending.remove(&coin) {
                self.chain.mine(coin, amount, recorded);
            }
            self.hear(coin);
            self.ask_chain(coin);
        }
        // One more try each, and then they are over.
        for coin in coins() {
            for _ in 0..20 {
                let under_way = self.book.may_settle(&self.requests[&coin]);
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
        for coin in coins() {
            self.ask_chain(coin);
        }
        self.refund();
        self.claim_all();
        // Whoever is leaving has left.
        self.chain.time += WITHDRAW_DELAY_SECS;
        for payer in 1..=u8::try_from(PAYERS).unwrap() {
            self.withdraw(payer);
            self.read_channel(payer);
        }
    }

    /// Every channel is read and all that is owed is claimed, however often a claim fails.
    fn claim_all(&mut self) {
        let policy = ClaimPolicy { channel_max: Usdc(0), all_max: Usdc(0), row_min: Usdc(1), rows_max: 10 };
        for _ in 0..100 {
            for payer in 1..=u8::try_from(PAYERS).unwrap() {
                self.read_channel(payer);
            }
            if self.book.channels().due_claims(&policy, self.chain.time).is_empty() {
                return;
            }
            self.claim(&policy);
        }
        panic!("something is claimed for ever");
    }

    fn judge(&self, seed: u64) {
        let book = &self.book;
        assert_eq!((book.open(), book.exposure()), (0, Usdc::ZERO), "seed {seed}: something is open");
        let (mut earned, mut lost, mut stranded) = (0, 0, 0);
        for coin in coins() {
            let story = format!("seed {seed} {coin:?} {:?}", book.entry(&self.requests[&coin]));
            let moved = match self.chain.fates.get(&coin) {
                Some(Fate::Paid { amount, .. }) => *amount,
                _ => 0,
            };
            let (served, refunded) = (self.served.contains_key(&coin), self.chain.refunded.contains(&coin));
            assert!(moved <= VALUE, "more than was signed: {story}");
            assert!(!(served && refunded), "served and refunded: {story}");
            let Some(entry) = book.entry(&self.requests[&coin]) else { continue };
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
        self.judge_channels(seed);
        // The same records give the same book, byte for byte.
        let limits = book.channels().limits().clone();
        let mut replayed = ChannelBook::with_channels(Limits::default(), limits);
        for input in &self.journal {
            replayed.apply(borsh::from_slice(&borsh::to_vec(input).unwrap()).unwrap());
        }
        assert_eq!(replayed.digest(), book.digest(), "seed {seed}");
    }
}

impl World {
    /// What was charged is what was delivered, and has a receipt each; claimed is at most what was signed and what was
    /// delivered; and nothing is left unclaimed but what a deposit had covered that a reorganisation took back.
    fn judge_channels(&self, seed: u64) {
        let channels = self.book.channels();
        assert!(self.receipts.values().all(|count| *count == 1), "seed {seed}");
        assert_eq!(channels.totals().charged.micro(), self.calls_charged, "seed {seed}");
        let mut unclaimed = 0;
        for payer in 1..=u8::try_from(PAYERS).unwrap() {
            let story = format!("seed {seed} payer {payer} {:?}", channels.channel(&Self::id(payer)));
            let (delivered, claimed) = (self.delivered(payer), self.state(payer).claimed.micro());
            assert!(claimed <= self.signed.get(&payer).copied().unwrap_or(0), "claimed more than signed: {story}");
            assert!(claimed <= delivered, "claimed more than delivered: {story}");
            let Some(channel) = channels.channel(&Self::id(payer)) else {
                assert_eq!(delivered, 0, "{story}");
                continue;
            };
            assert_eq!(channel.charged.micro(), delivered, "charged is what was delivered: {story}");
            assert_eq!(channel.unclaimed().micro(), delivered - claimed, "{story}");
            let taken_back = self.deposits_taken_back.get(&payer).copied().unwrap_or(0);
            assert!(delivered - claimed <= taken_back, "unclaimed, and no deposit was taken back: {story}");
            unclaimed += delivered - claimed;
        }
        assert_eq!(channels.totals().unclaimed.micro(), unclaimed, "seed {seed}");
        assert_eq!(channels.totals().reserved, Usdc::ZERO, "seed {seed}: something is reserved");
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
fn live(seeds: impl Iterator<Item = u64>) -> Passed {
    let mut passed = Passed::new();
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
    let mut passed = Passed::new();
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
        "a batch of claims reverted",
        "a call was marked",
        "a claim was dropped",
        "a payer leaves",
        "a payer withdrew",
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
        "no room for more exposure",
        "nothing delivered",
        "refunded",
        "reorg after a claim",
        "reorg after a deposit",
        "reorg after it settled",
        "reverted",
        "third party settled first",
    ] {
        assert!(passed.get(&(None, what)).copied().unwrap_or(0) >= 100, "{what}: {passed:?}");
    }
    // The process died at every step of every scheme: before its record was durable, and between its settlement and the
    // word of it. (What is settled late is settled by the row, in a batch or alone.)
    let steps = ["reserved", "marked", "delivered", "sent", "settled"];
    let with_transactions = ["exact", "exact, late", "exact by Permit2", "upto"];
    let on_channel = ["reserved", "marked", "charged", "deposit asked", "claim sent", "refund asked"];
    let all = with_transactions.into_iter().flat_map(|scheme| steps.map(|step| (Some(scheme), step)));
    for step in all.chain(on_channel.map(|step| (Some("batch-settlement"), step))) {
        assert!(passed.get(&step).copied().unwrap_or(0) >= 10, "{step:?}: {passed:?}");
    }
}
