//! What must hold after every call (DESIGN §12), kept apart from what it judges: it reads only what the contracts show and
//! log, and shares no line with the agent, its model or its ledger.

use alloy::primitives::{Address, B256, Log};
use alloy::sol_types::SolEventInterface;
use chain::bindings::{Stage, State, TreasuryEvent};
use std::collections::{BTreeMap, BTreeSet};

/// Entries that only the operator of the present epoch may call.
const OPERATORS: [&str; 10] = [
    "announce",
    "claimAndSettle",
    "commit",
    "handover",
    "heartbeat",
    "hibernate",
    "refundExact",
    "release",
    "rent",
    "topUp",
];

#[derive(Clone, Debug)]
pub struct Audit {
    treasury: Address,
    /// Seconds.
    day: u64,
    /// Micro-USDC.
    day_limit: u128,
    /// (time, micro-USDC) of every gross commitment.
    gross: Vec<(u64, u128)>,
    operator: Address,
    former: BTreeSet<Address>,
    refunds_open: bool,
    paused: bool,
    checkpoint_seq: u64,
    /// The operator took over and has not restored.
    restoring: bool,
    /// Stewards that gave it their share of the memory key.
    shares: BTreeSet<usize>,
    /// By (payer, nonce); nothing is asked of payments while nobody told of any.
    charges: BTreeMap<(Address, B256), Charge>,
    is_overcharged: bool,
}

/// One call that is paid by itself, micro-USDC.
#[derive(Clone, Copy, Debug, Default)]
struct Charge {
    authorised: u128,
    paid: u128,
    refunded: u128,
}

/// A call that was carried out.
pub struct Call<'a> {
    /// The entry's.
    pub name: &'a str,
    pub from: Address,
    pub now: u64,
    pub logs: &'a [Log],
    pub before: &'a State,
    pub after: &'a State,
}

impl Audit {
    pub fn new(treasury: Address, day: u64, day_limit: u128) -> Self {
        Self {
            treasury,
            day,
            day_limit,
            gross: Vec::new(),
            operator: Address::ZERO,
            former: BTreeSet::new(),
            refunds_open: false,
            paused: false,
            checkpoint_seq: 0,
            restoring: false,
            shares: BTreeSet::new(),
            charges: BTreeMap::new(),
            is_overcharged: false,
        }
    }

    /// Of a treasury that lives already.
    pub fn begin(&mut self, state: &State) {
        (self.operator, self.paused, self.checkpoint_seq) = (state.operator, state.paused, state.checkpointSeq);
    }

    /// Says which invariant does not hold any more.
    ///
    /// # Errors
    /// Its number and what it says, and the call that broke it.
    pub fn hear(&mut self, call: &Call<'_>) -> Result<(), String> {
        let (operator, treasury, was_paused) = (self.operator, self.treasury, self.paused);
        for log in call.logs.iter().filter(|log| log.address == treasury) {
            if let Ok(event) = TreasuryEvent::decode_log(log) {
                self.event(call, event.data);
            }
        }
        let holds = [
            ("I2: only the operator of this epoch acts", !OPERATORS.contains(&call.name) || call.from == operator),
            ("I2: the operator is who became it last", call.after.operator == self.operator),
            ("I2: no key comes back", !self.former.contains(&call.after.operator)),
            ("I3: nobody pays twice, or more than was authorised, or has back more than that", !self.is_overcharged),
            ("I4: a day's gross commitments are within the limit", self.within_the_day(call.now) <= self.day_limit),
            ("I5: checkpoints never go back", call.after.checkpointSeq >= self.checkpoint_seq),
            ("I7: in a pause no money leaves", self.stays_in_a_pause(call, was_paused)),
        ];
        self.gross.retain(|(at, _)| at + self.day > call.now);
        match holds.into_iter().find(|(_, holds)| !holds) {
            Some((what, _)) => Err(format!("{what}; broken by {}", call.name)),
            None => {
                self.checkpoint_seq = call.after.checkpointSeq;
                Ok(())
            }
        }
    }

    /// A customer agreed to pay so much, once.
    pub fn authorises(&mut self, payer: Address, nonce: B256, authorised: u128) {
        self.charges.insert((payer, nonce), Charge { authorised, ..Charge::default() });
    }

    fn charge(&mut self, payer: Address, nonce: B256, change: impl FnOnce(&mut Charge)) {
        if self.charges.is_empty() {
            return;
        }
        let charge = self.charges.entry((payer, nonce)).or_default();
        change(charge);
        self.is_overcharged |= charge.paid > charge.authorised || charge.refunded > charge.paid;
    }

    fn event(&mut self, call: &Call<'_>, event: TreasuryEvent) {
        match &event {
            TreasuryEvent::ExactSettled(e) => {
                self.charge(e.payer, e.nonce, |charge| charge.paid += e.amount.saturating_to::<u128>());
            }
            TreasuryEvent::ExactRefunded(e) => {
                self.charge(e.payer, e.nonce, |charge| charge.refunded += e.amount.saturating_to::<u128>());
            }
            _ => {}
        }
        match event {
            // The first lease is paid before there is a limit.
            TreasuryEvent::Rented(e) if call.before.stage() != Stage::Unborn => self.gross.push((call.now, e.prepay)),
            TreasuryEvent::ToppedUp(e) => self.gross.push((call.now, e.amount)),
            TreasuryEvent::ExactRefunded(e) if call.before.stage() == Stage::Alive => {
                self.gross.push((call.now, e.amount.saturating_to()));
            }
            TreasuryEvent::ChannelRefunded(e) if call.before.stage() == Stage::Alive => {
                self.gross.push((call.now, e.amount));
            }
            TreasuryEvent::Activated(e) => self.succeed(e.operator),
            TreasuryEvent::HandedOver(e) => self.succeed(e.operator),
            TreasuryEvent::TakenOver(e) => {
                self.succeed(e.operator);
                self.restoring = true;
            }
            TreasuryEvent::Evicted(e) => {
                self.succeed(e.operator);
                self.restoring = !e.operator.is_zero();
            }
            TreasuryEvent::Restored(_) => self.restoring = false,
            TreasuryEvent::Hibernated(_) | TreasuryEvent::Closed(_) => self.succeed(Address::ZERO),
            TreasuryEvent::RefundsOpened(_) => self.refunds_open = true,
            TreasuryEvent::Paused(_) => self.paused = true,
            TreasuryEvent::Resumed(_) => (self.paused, self.refunds_open) = (false, false),
            _ => {}
        }
    }

    /// An eviction may keep the operator that there is.
    fn succeed(&mut self, operator: Address) {
        if operator != self.operator && !self.operator.is_zero() {
            self.former.insert(self.operator);
        }
        self.operator = operator;
        (self.restoring, self.shares) = (false, BTreeSet::new());
    }

    /// A steward gave its share of the memory key, sealed to this key.
    ///
    /// # Errors
    /// The chain's operator is another one, or has no memory to restore.
    pub fn share(&mut self, steward: usize, to: Address) -> Result<(), String> {
        self.shares.insert(steward);
        match to == self.operator && self.restoring {
            true => Ok(()),
            false => Err(format!(
                "shares: steward {steward} gave its share to {to}; the operator is {}, restoring: {}",
                self.operator, self.restoring
            )),
        }
    }

    /// A branch takes back what was on chain, and neither a share nor what a customer agreed to.
    pub fn remembers_people_of(&mut self, before: &Self) {
        self.shares.clone_from(&before.shares);
        for (call, charge) in &before.charges {
            self.charges.entry(*call).or_insert(Charge { authorised: charge.authorised, ..Charge::default() });
        }
    }

    /// The operator opened the memory.
    ///
    /// # Errors
    /// Fewer stewards than this gave it their shares.
    pub fn restored(&self, threshold: usize) -> Result<(), String> {
        match self.shares.len() {
            given if given >= threshold => Ok(()),
            given => Err(format!("shares: the memory was opened with {given} shares, which takes {threshold}")),
        }
    }

    fn within_the_day(&self, now: u64) -> u128 {
        self.gross.iter().filter(|(at, _)| at + self.day > now).map(|(_, amount)| amount).sum()
    }

    /// A rescue is the quorum's own order, and so are the refunds that it opened.
    fn stays_in_a_pause(&self, call: &Call<'_>, was_paused: bool) -> bool {
        let ordered = match call.name {
            "rescue" => true,
            "refundExact" => self.refunds_open,
            "withdrawal" => call.before.stage() == Stage::Closed,
            _ => false,
        };
        !was_paused || ordered || call.after.balance >= call.before.balance
    }
}
