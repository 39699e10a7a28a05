//! Blocks with hashes, a pool, and branches: what an endpoint shows of [`World`].

use crate::audit::{Audit, Call};
use crate::glance;
use crate::world::World;
use alloy::primitives::{Address, B256, Bytes, Log, U256, keccak256};
use alloy::rpc::types::Log as RpcLog;
use alloy::signers::local::PrivateKeySigner;
use alloy::sol_types::{SolEvent, SolValue};
use chain::Head;
use chain::bindings::{Lease, LeaseMarket, State, Treasury::TreasuryCalls};
use economy::OfferView;
use std::collections::{BTreeMap, VecDeque};

/// Branches reach so far back at most.
pub const DEPTH: usize = 3;

/// Wei a gas, when nothing is wrong.
pub const BASE_FEE: u128 = 1;
/// In one of so many blocks the treasury is asked what it shows, beside being read.
const COMPARED: usize = 16;

/// A signed transaction.
#[derive(Clone, Debug)]
pub struct Tx {
    pub from: Address,
    pub to: Address,
    pub data: Bytes,
    /// `None`: of people whose nonces are nobody's concern here.
    pub nonce: Option<u64>,
    pub max_fee: u128,
}

impl Tx {
    pub fn of_people(from: Address, to: Address, data: Bytes) -> Self {
        Self { from, to, data, nonce: None, max_fee: 0 }
    }

    pub fn hash(&self) -> B256 {
        let (nonce, fee) = (U256::from(self.nonce.unwrap_or(u64::MAX)), U256::from(self.max_fee));
        let nonce: [u8; 32] = nonce.to_be_bytes();
        let fee: [u8; 32] = fee.to_be_bytes();
        keccak256([self.from.as_slice(), self.to.as_slice(), &nonce, &fee, &self.data].concat())
    }
}

#[derive(Clone, Debug)]
pub struct Block {
    pub head: Head,
    /// (transaction, log), in order.
    logs: Vec<(B256, Log)>,
    /// Whether each transaction was carried out.
    receipts: BTreeMap<B256, bool>,
    txs: Vec<Tx>,
}

/// What can be taken back: everything on chain, and what the auditor knew then.
#[derive(Clone, Debug)]
struct Past {
    world: World,
    audit: Audit,
    offers: Vec<OfferView>,
    owed: u128,
    blocks: usize,
    epoch: u64,
}

/// What an endpoint shows: the chain at one of its last blocks.
#[derive(Clone, Copy, Debug)]
pub struct Sight<'a> {
    pub world: &'a World,
    pub head: Head,
    pub offers: &'a [OfferView],
    /// What the market owes the treasury.
    pub owed: u128,
}

#[derive(Clone, Debug)]
pub struct Chain {
    pub world: World,
    pub audit: Audit,
    /// What the treasury showed after its last transaction: what grows with time may have grown since ([`Chain::state_now`]).
    pub state: State,
    /// The block in which it was looked at.
    seen_in: u64,
    offers: Vec<OfferView>,
    /// Something in the present block changed them: they are asked once, at its end.
    offers_changed: bool,
    /// What the market owes the treasury since a frozen token refused it, micro-USDC.
    pub owed: u128,
    /// Where the token keeps balances.
    balances: U256,
    /// The last block moved tokens.
    pub moved_money: bool,
    pub blocks: Vec<Block>,
    past: VecDeque<Past>,
    /// Blocks that are remembered.
    depth: usize,
    /// By account and nonce.
    pool: BTreeMap<(Address, u64), Tx>,
    people: Vec<Tx>,
    branch: u64,
    /// Wei that a unit of gas costs from the next block on; what offers less waits.
    pub base_fee: u128,
    /// Nothing of this account is mined until then.
    pub held_back: Option<(Address, u64)>,
    /// Fewer stewards than a quorum acknowledge anything.
    pub stewards_are_silent: bool,
    pub done: u64,
    pub refused: u64,
    /// For the story: what the last block did.
    pub told: Vec<String>,
}

impl Chain {
    /// `depth`: how many blocks can be taken back, or seen late; [`DEPTH`] at most.
    pub fn new(mut world: World, audit: Audit, depth: usize) -> Self {
        let head = Head {
            number: world.evm.number(),
            hash: B256::repeat_byte(1),
            parent: B256::ZERO,
            timestamp: world.evm.now(),
            base_fee: BASE_FEE,
        };
        let logs = world.evm.take_logs().into_iter().map(|(_, log)| (B256::repeat_byte(2), log)).collect();
        let birth = Block { head, logs, receipts: BTreeMap::new(), txs: Vec::new() };
        Self {
            state: world.state(),
            seen_in: head.number,
            offers: offers(&world),
            offers_changed: false,
            owed: 0,
            balances: balances_of(&world),
            moved_money: true,
            world,
            audit,
            blocks: vec![birth],
            past: VecDeque::new(),
            depth,
            pool: BTreeMap::new(),
            people: Vec::new(),
            branch: 0,
            base_fee: BASE_FEE,
            held_back: None,
            stewards_are_silent: false,
            done: 0,
            refused: 0,
            told: Vec::new(),
        }
    }

    pub fn now(&self) -> u64 {
        self.world.evm.now()
    }

    pub fn head(&self) -> Head {
        self.blocks[self.blocks.len() - 1].head
    }

    /// The treasury's state in the present block.
    pub fn state_now(&mut self) -> &State {
        if self.seen_in != self.head().number {
            self.look();
        }
        &self.state
    }

    /// What a treasury shows there, for little.
    pub fn state_of(&self, world: &World) -> State {
        glance::state(world, balance(world, self.balances, world.treasury))
    }

    fn look(&mut self) {
        (self.state, self.seen_in) = (self.state_of(&self.world), self.head().number);
    }

    pub fn lease(&self, id: u64) -> Lease {
        self.world.lease(id)
    }

    /// Micro-USDC of an account, as the token's storage has it.
    pub fn balance(&self, account: Address) -> u128 {
        balance(&self.world, self.balances, account)
    }

    /// The world as it stood `lag` blocks ago, as far as it is remembered.
    pub fn seen(&self, lag: usize) -> Sight<'_> {
        let lag = lag.min(self.past.len());
        if lag == 0 {
            return Sight { world: &self.world, head: self.head(), offers: &self.offers, owed: self.owed };
        }
        let Past { world, offers, owed, .. } = &self.past[self.past.len() - lag];
        Sight { world, head: self.blocks[self.blocks.len() - 1 - lag].head, offers, owed: *owed }
    }

    pub fn header(&self, hash: B256) -> Option<Head> {
        self.blocks.iter().rev().map(|block| block.head).find(|head| head.hash == hash)
    }

    /// The logs of a block, as an endpoint gives them.
    pub fn logs(&self, hash: B256) -> Vec<RpcLog> {
        let Some(block) = self.blocks.iter().rev().find(|block| block.head.hash == hash) else { return Vec::new() };
        let (number, time) = (block.head.number, block.head.timestamp);
        let log = |(index, (tx, inner)): (u64, &(B256, Log))| RpcLog {
            inner: inner.clone(),
            block_hash: Some(hash),
            block_number: Some(number),
            block_timestamp: Some(time),
            transaction_hash: Some(*tx),
            transaction_index: Some(0),
            log_index: Some(index),
            removed: false,
        };
        (0..).zip(&block.logs).map(log).collect()
    }

    /// (block, whether it was carried out), in what an endpoint that lags shows.
    pub fn receipt(&self, tx: B256, lag: usize) -> Option<(u64, bool)> {
        let shown = &self.blocks[..self.blocks.len() - lag.min(self.past.len())];
        let recent = shown.iter().rev().take(200);
        recent.filter_map(|block| Some((block.head.number, *block.receipts.get(&tx)?))).next()
    }

    /// Into the pool. A transaction under a nonce that is taken replaces the other if it pays more.
    pub fn send(&mut self, tx: Tx) {
        let Some(nonce) = tx.nonce else { return self.people.push(tx) };
        let known = self.pool.get(&(tx.from, nonce)).map_or(0, |known| known.max_fee);
        if tx.max_fee >= known {
            self.pool.insert((tx.from, nonce), tx);
        }
    }

    /// Who acknowledges a checkpoint: as many as it takes, or one less.
    pub fn acknowledging(&self) -> Vec<PrivateKeySigner> {
        let mut quorum = self.world.quorum();
        if self.stewards_are_silent {
            quorum.pop();
        }
        quorum
    }

    /// Whether the account's transaction with this data waits for the next block.
    pub fn waits(&self, from: Address, data: &Bytes) -> bool {
        self.pool.values().any(|tx| tx.from == from && tx.data == *data)
    }

    /// The pool forgets the account's next transaction, if it has it.
    pub fn forgets(&mut self, account: Address) {
        self.pool.remove(&(account, self.world.evm.nonce(account)));
    }

    /// Whether the account's next transaction is in the pool.
    pub fn has_next(&self, account: Address) -> bool {
        self.pool.contains_key(&(account, self.world.evm.nonce(account)))
    }

    /// The pool's next nonce.
    pub fn pending(&self, account: Address) -> u64 {
        let mut nonce = self.world.evm.nonce(account);
        while self.pool.contains_key(&(account, nonce)) {
            nonce += 1;
        }
        nonce
    }

    /// The next block, `secs` after the last one, with everything that can be in it.
    ///
    /// # Errors
    /// An invariant does not hold after one of its transactions.
    pub fn mine(&mut self, secs: u64) -> Result<(), String> {
        if self.depth > 0 {
            let (world, audit, offers) = (self.world.clone(), self.audit.clone(), self.offers.clone());
            let (blocks, epoch) = (self.blocks.len(), self.state.epoch);
            self.past.push_back(Past { world, audit, offers, owed: self.owed, blocks, epoch });
        }
        while self.past.len() > self.depth {
            self.past.pop_front();
        }
        self.world.evm.next_block(secs);
        self.branch += 1;
        let parent = self.head();
        let head = Head {
            number: self.world.evm.number(),
            hash: keccak256(self.branch.to_be_bytes()),
            parent: parent.hash,
            timestamp: self.world.evm.now(),
            base_fee: self.base_fee,
        };
        self.blocks.push(Block { head, logs: Vec::new(), receipts: BTreeMap::new(), txs: Vec::new() });
        self.moved_money = false;
        for tx in std::mem::take(&mut self.people) {
            self.execute(tx)?;
        }
        let accounts: Vec<Address> = self.pool.keys().map(|(account, _)| *account).collect();
        let held_back = self.held_back.filter(|(_, until)| head.timestamp <= *until).map(|(account, _)| account);
        for account in accounts.into_iter().filter(|account| held_back != Some(*account)) {
            let next = |chain: &Self| (account, chain.world.evm.nonce(account));
            while self.pool.get(&next(self)).is_some_and(|tx| tx.max_fee >= self.base_fee)
                && let Some(tx) = self.pool.remove(&next(self))
            {
                self.execute(tx)?;
            }
        }
        if self.blocks.len().is_multiple_of(COMPARED) {
            assert_eq!(self.state_of(&self.world), self.world.state(), "the treasury's words are read wrongly");
        }
        if std::mem::take(&mut self.offers_changed) {
            self.offers = offers(&self.world);
        }
        let world = &self.world;
        self.pool.retain(|(account, nonce), _| *nonce >= world.evm.nonce(*account));
        Ok(())
    }

    /// The auditor looks on.
    fn execute(&mut self, tx: Tx) -> Result<(), String> {
        let to_us = tx.to == self.world.treasury;
        let before = self.state.clone();
        let outcome = self.world.evm.call(tx.from, tx.to, tx.data.clone(), 0);
        let name = entry(&tx.data, to_us);
        let said = outcome.as_ref().map_or_else(|revert| revert.text.clone(), |_| "done".to_owned());
        self.told.push(format!("{name} by {}: {said}", tx.from));
        let hash = tx.hash();
        let logs = self.world.evm.take_logs();
        let block = self.blocks.last_mut().expect("a block is being made");
        block.receipts.insert(hash, outcome.is_ok());
        block.txs.push(tx.clone());
        // Of one that is refused there are none.
        block.logs.extend(logs.into_iter().map(|(_, log)| (hash, log)));
        match outcome {
            Ok(done) => {
                self.done += 1;
                let at = self.world.at;
                let emits = |address: Address| done.logs.iter().any(move |log| log.address == address);
                let tells = |topic: B256| done.logs.iter().any(move |log| log.topics().first() == Some(&topic));
                self.moved_money |= emits(at.usdc);
                if emits(self.world.treasury) {
                    self.look();
                } else if emits(at.usdc) {
                    self.state.balance = U256::from(balance(&self.world, self.balances, self.world.treasury));
                }
                if emits(at.market) {
                    let steady = [LeaseMarket::RentPaid::SIGNATURE_HASH, LeaseMarket::LeaseVouched::SIGNATURE_HASH];
                    let mut of_market = done.logs.iter().filter(|log| log.address == at.market);
                    if !of_market.all(|log| log.topics().first().is_some_and(|topic| steady.contains(topic))) {
                        self.offers_changed = true;
                    }
                }
                if tells(LeaseMarket::Owed::SIGNATURE_HASH) || tells(LeaseMarket::Collected::SIGNATURE_HASH) {
                    self.owed = owed(&self.world);
                }
                let after = self.state.clone();
                let name = if to_us { name.as_str() } else { "of others" };
                let call = Call {
                    name,
                    from: tx.from,
                    now: self.world.evm.now(),
                    logs: &done.logs,
                    before: &before,
                    after: &after,
                };
                self.audit.hear(&call)
            }
            Err(_) => {
                self.refused += 1;
                Ok(())
            }
        }
    }

    /// After something that no transaction of ours did.
    pub fn look_again(&mut self) {
        self.look();
        (self.offers, self.owed, self.moved_money) = (offers(&self.world), owed(&self.world), true);
    }

    /// Whether these blocks can be taken back without undoing a succession.
    pub fn can_branch(&self, depth: usize) -> bool {
        let past = depth.checked_sub(1).and_then(|_| self.past.len().checked_sub(depth)).map(|at| &self.past[at]);
        past.is_some_and(|past| past.epoch == self.state.epoch)
    }

    /// How many blocks have to be taken back so that the last succession never happened. `None`: it is too deep.
    pub fn succession_depth(&self) -> Option<usize> {
        (1..=self.past.len()).find(|depth| self.past[self.past.len() - depth].epoch < self.state.epoch)
    }

    /// The last `depth` blocks never happened. What was in them waits in the pool again, before what was sent since; time
    /// goes on.
    pub fn branch(&mut self, depth: usize) -> u64 {
        let now = self.now();
        let at = self.past.len() - depth;
        let Past { world, mut audit, blocks, .. } = self.past[at].clone();
        audit.remembers_people_of(&self.audit);
        self.past.truncate(at);
        (self.world, self.audit) = (world, audit);
        let gone = self.blocks.split_off(blocks);
        self.look_again();
        let newer = std::mem::take(&mut self.people);
        for block in gone {
            block.txs.into_iter().for_each(|tx| self.send(tx));
        }
        self.people.extend(newer);
        now - self.now()
    }
}

/// Where the token keeps what accounts hold: the mapping in which an account that has something has just that.
///
/// # Panics
/// Nobody has anything, or the token keeps it otherwise.
fn balances_of(world: &World) -> U256 {
    let (account, held) = (world.at.market, world.usdc(world.at.market));
    let fits = |slot: &U256| held != 0 && balance(world, *slot, account) == held;
    (0..16).map(U256::from).find(fits).expect("a mapping of balances")
}

fn balance(world: &World, balances: U256, account: Address) -> u128 {
    let place = keccak256((account, balances).abi_encode());
    world.evm.word(world.at.usdc, place.into()).saturating_to()
}

fn owed(world: &World) -> u128 {
    let call = LeaseMarket::owedToCall { who: world.treasury };
    world.evm.ask(world.at.market, &call).expect("a market").saturating_to()
}

/// As an agent sees them.
fn offers(world: &World) -> Vec<OfferView> {
    let offers = (1..=world.offer_count()).map(|id| (id, world.offer_of(id)));
    offers
        .map(|(id, offer)| {
            let (served, failed) = world.record_of(offer.provider);
            OfferView {
                id,
                provider: offer.provider.into_array(),
                price_e6: offer.priceE6,
                free: offer.capacity - offer.used,
                min_term: offer.minTerm,
                max_term: offer.maxTerm,
                served,
                failed,
            }
        })
        .collect()
}

/// The entry's name, as the treasury has it.
pub fn entry(data: &[u8], to_us: bool) -> String {
    let selector = data.first_chunk::<4>().copied().unwrap_or_default();
    let name = to_us.then(|| TreasuryCalls::name_by_selector(selector)).flatten();
    name.map_or_else(
        || "a call to others".to_owned(),
        |name| name.trim_end_matches("Call").trim_end_matches("_0").to_owned(),
    )
}
