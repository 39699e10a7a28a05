//! Blocks with hashes, a pool, and branches: what an endpoint shows of [`World`].

use crate::audit::{Audit, Call};
use crate::world::World;
use alloy::primitives::{Address, B256, Bytes, Log, U256, keccak256};
use alloy::rpc::types::Log as RpcLog;
use chain::Head;
use chain::bindings::{State, Treasury::TreasuryCalls};
use economy::OfferView;
use std::collections::{BTreeMap, VecDeque};

/// Branches reach so far back at most.
pub const DEPTH: usize = 3;

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
    blocks: usize,
    epoch: u64,
}

#[derive(Clone, Debug)]
pub struct Chain {
    pub world: World,
    pub audit: Audit,
    /// What the treasury and the market show now: asking costs more than all else here.
    pub state: State,
    pub offers: Vec<OfferView>,
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
            base_fee: 1,
        };
        let logs = world.evm.take_logs().into_iter().map(|(_, log)| (B256::repeat_byte(2), log)).collect();
        let birth = Block { head, logs, receipts: BTreeMap::new(), txs: Vec::new() };
        Self {
            state: world.state(),
            offers: offers(&world),
            moved_money: true,
            world,
            audit,
            blocks: vec![birth],
            past: VecDeque::new(),
            depth,
            pool: BTreeMap::new(),
            people: Vec::new(),
            branch: 0,
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

    /// The world as it stood `lag` blocks ago, as far as it is remembered.
    pub fn seen(&self, lag: usize) -> (&World, Head) {
        let lag = lag.min(self.past.len());
        match lag {
            0 => (&self.world, self.head()),
            _ => (&self.past[self.past.len() - lag].world, self.blocks[self.blocks.len() - 1 - lag].head),
        }
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

    /// Whether the account's transaction with this data waits for the next block.
    pub fn waits(&self, from: Address, data: &Bytes) -> bool {
        self.pool.values().any(|tx| tx.from == from && tx.data == *data)
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
            let (world, audit) = (self.world.clone(), self.audit.clone());
            let (blocks, epoch) = (self.blocks.len(), self.state.epoch);
            self.past.push_back(Past { world, audit, blocks, epoch });
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
            base_fee: 1,
        };
        self.blocks.push(Block { head, logs: Vec::new(), receipts: BTreeMap::new(), txs: Vec::new() });
        (self.state, self.moved_money) = (self.world.state(), false);
        for tx in std::mem::take(&mut self.people) {
            self.execute(tx)?;
        }
        let accounts: Vec<Address> = self.pool.keys().map(|(account, _)| *account).collect();
        for account in accounts {
            while let Some(tx) = self.pool.remove(&(account, self.world.evm.nonce(account))) {
                self.execute(tx)?;
            }
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
        match outcome {
            Ok(done) => {
                self.done += 1;
                self.state = self.world.state();
                let after = self.state.clone();
                self.moved_money |= done.logs.iter().any(|log| log.address == self.world.at.usdc);
                if done.logs.iter().any(|log| log.address == self.world.at.market) {
                    self.offers = offers(&self.world);
                }
                block.logs.extend(logs.into_iter().map(|(_, log)| (hash, log)));
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
        (self.state, self.offers, self.moved_money) = (self.world.state(), offers(&self.world), true);
    }

    /// Whether these blocks can be taken back without undoing a succession.
    pub fn can_branch(&self, depth: usize) -> bool {
        let past = depth.checked_sub(1).and_then(|_| self.past.len().checked_sub(depth)).map(|at| &self.past[at]);
        past.is_some_and(|past| past.epoch == self.state.epoch)
    }

    /// The last `depth` blocks never happened. What was in them waits in the pool again; time goes on.
    pub fn branch(&mut self, depth: usize) -> u64 {
        let now = self.now();
        let at = self.past.len() - depth;
        let Past { world, audit, blocks, .. } = self.past[at].clone();
        self.past.truncate(at);
        (self.world, self.audit) = (world, audit);
        self.look_again();
        for block in self.blocks.split_off(blocks) {
            block.txs.into_iter().for_each(|tx| self.send(tx));
        }
        now - self.now()
    }
}

/// As an agent sees them.
pub fn offers(world: &World) -> Vec<OfferView> {
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
fn entry(data: &[u8], to_us: bool) -> String {
    let selector = data.first_chunk::<4>().copied().unwrap_or_default();
    let name = to_us.then(|| TreasuryCalls::name_by_selector(selector)).flatten();
    name.map_or_else(
        || "a call to others".to_owned(),
        |name| name.trim_end_matches("Call").trim_end_matches("_0").to_owned(),
    )
}
