use super::*;
use alloy::primitives::{U256, keccak256};
use std::collections::{BTreeSet, HashMap};

const ME: Address = Address::repeat_byte(7);

fn request(n: u64) -> Request {
    Request { to: Some(Address::repeat_byte(1)), data: Bytes::from(n.to_be_bytes().to_vec()), value: 0, gas: None }
}

/// What the fake network holds of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Signed {
    id: Id,
    nonce: u64,
    max_fee: u128,
    tip: u128,
}

impl Signed {
    fn hash(&self) -> B256 {
        keccak256(borsh::to_vec(&(self.id, self.nonce, self.max_fee, self.tip)).expect("in memory"))
    }
}

/// One node with one account: a chain of blocks, and a pool.
#[derive(Clone, Debug, Default)]
struct Network {
    blocks: Vec<(B256, Vec<Signed>)>,
    pool: BTreeMap<u64, Signed>,
    base_fee: u128,
    mined_ever: u64,
}

impl Network {
    fn nonce(&self) -> u64 {
        self.blocks.iter().map(|(_, txs)| u64::try_from(txs.len()).expect("small")).sum()
    }

    fn pending(&self) -> u64 {
        (self.nonce()..).find(|n| !self.pool.contains_key(n)).expect("the pool is finite")
    }

    fn head(&self) -> Input {
        let number = u64::try_from(self.blocks.len()).expect("small");
        let hash = self.blocks.last().map_or(B256::ZERO, |(hash, _)| *hash);
        Input::Head { number, hash, base_fee: self.base_fee }
    }

    fn mine(&mut self) {
        let mut txs = Vec::new();
        let first = self.nonce();
        for nonce in first.. {
            if self.pool.get(&nonce).is_none_or(|tx| tx.max_fee < self.base_fee) {
                break;
            }
            txs.extend(self.pool.remove(&nonce));
        }
        self.mined_ever += 1;
        self.blocks.push((keccak256(self.mined_ever.to_be_bytes()), txs));
    }

    fn take(&mut self, tx: Signed) -> Result<(), SendError> {
        if tx.nonce < self.nonce() {
            return Err(SendError::NonceTooLow);
        }
        if tx.max_fee < self.base_fee {
            return Err(SendError::FeeTooLow);
        }
        match self.pool.get(&tx.nonce) {
            Some(old) if *old == tx => return Ok(()),
            Some(old) if tx.max_fee < old.max_fee + old.max_fee / 10 => return Err(SendError::ReplacementUnderpriced),
            _ => {}
        }
        self.pool.insert(tx.nonce, tx);
        Ok(())
    }

    fn receipt(&self, txs: &[B256]) -> Option<Mined> {
        for ((_, mined), block) in self.blocks.iter().zip(1..) {
            if let Some(tx) = mined.iter().find(|tx| txs.contains(&tx.hash())) {
                return Some(Mined { tx: tx.hash(), block, success: true });
            }
        }
        None
    }

    /// How often each id is in the chain.
    fn mined(&self) -> HashMap<Id, u64> {
        let mut counts = HashMap::new();
        for tx in self.blocks.iter().flat_map(|(_, txs)| txs) {
            *counts.entry(tx.id).or_default() += 1;
        }
        counts
    }
}

/// SplitMix64: the whole test follows from its seed.
struct Chance(u64);

impl Chance {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// An outbox, its network, and what lies between them.
struct World {
    chance: Chance,
    faults: bool,
    outbox: Outbox,
    kept: Vec<u8>,
    network: Network,
    stale_nonce: Option<(u64, u64)>,
    answers: Vec<Input>,
    submitted: u64,
    settled: BTreeMap<Id, Outcome>,
    now_ms: u64,
}

fn options() -> Options {
    Options { receipt_patience: 8, ..Options::new(4) }
}

impl World {
    fn new(seed: u64) -> Self {
        let outbox = Outbox::new(ME, options());
        let kept = outbox.to_bytes();
        let network = Network { base_fee: 1_000, ..Network::default() };
        Self {
            chance: Chance(seed),
            faults: true,
            outbox,
            kept,
            network,
            stale_nonce: None,
            answers: Vec::new(),
            submitted: 0,
            settled: BTreeMap::new(),
            now_ms: 0,
        }
    }

    fn feed(&mut self, input: Input) {
        self.now_ms += 50;
        let mut out = Vec::new();
        self.outbox.handle(self.now_ms, input, &mut out);
        // As the sender does: first to disk, then to the network.
        self.kept = self.outbox.to_bytes();
        for output in out {
            self.act(output);
        }
    }

    fn act(&mut self, output: Output) {
        let lost = self.faults && self.chance.one_in(12);
        match output {
            Output::AskNonce if lost => {}
            Output::AskNonce => {
                let fresh = (self.network.nonce(), self.network.pending());
                let stale = self.stale_nonce.replace(fresh).filter(|_| self.faults && self.chance.one_in(8));
                let (latest, pending) = stale.unwrap_or(fresh);
                self.answers.push(Input::NonceIs { latest, pending });
            }
            Output::Estimate { id, .. } if lost => self.answers.push(Input::EstimateFailed { id }),
            Output::Estimate { id, .. } => self.answers.push(Input::Estimated { id, gas: 50_000 }),
            Output::Send { id, nonce, max_fee, tip, .. } => {
                let tx = Signed { id, nonce, max_fee, tip };
                let hash = tx.hash();
                // Lost on the way there, or on the way back.
                let arrives = !lost || self.chance.one_in(2);
                let answer = if arrives { self.network.take(tx) } else { Ok(()) };
                self.answers.push(match answer {
                    _ if lost => Input::SendFailed { id, nonce, tx: hash, why: SendError::Transport },
                    Ok(()) => Input::Sent { id, nonce, tx: hash },
                    Err(why) => Input::SendFailed { id, nonce, tx: hash, why },
                });
            }
            Output::AskReceipt { .. } if lost => {}
            Output::AskReceipt { id, nonce, txs } => {
                let found = self.network.receipt(&txs);
                self.answers.push(Input::ReceiptIs { id, nonce, found });
            }
            Output::Settled { id, outcome } => {
                if let Some(before) = self.settled.insert(id, outcome.clone()) {
                    assert_eq!(before, outcome, "the outcome of {id:?} changed");
                }
            }
        }
    }

    fn submit(&mut self) {
        self.submitted += 1;
        let n = self.submitted;
        self.feed(Input::Submit { id: n.into(), request: request(n) });
    }

    /// The process dies: answers on the way are lost, the outbox is what was kept. Unfinished ids come again.
    fn restart(&mut self) {
        self.answers.clear();
        self.outbox = Outbox::from_bytes(&self.kept, ME, options()).expect("its own bytes");
        for n in 1..=self.submitted {
            if !self.settled.contains_key(&n.into()) {
                self.feed(Input::Submit { id: n.into(), request: request(n) });
            }
        }
    }

    /// The newest blocks are replaced by as many empty ones; their transactions go back to the pool, or are lost.
    fn reorg(&mut self, depth: usize) {
        let keep = self.network.blocks.len().saturating_sub(depth);
        for (_, txs) in self.network.blocks.split_off(keep) {
            for tx in txs {
                if self.chance.one_in(2) {
                    self.network.pool.insert(tx.nonce, tx);
                }
            }
        }
        for _ in 0..depth {
            let pool = std::mem::take(&mut self.network.pool);
            self.network.mine();
            self.network.pool = pool;
        }
    }

    fn step(&mut self) {
        match self.chance.below(100) {
            0..50 if !self.answers.is_empty() => {
                let length = u64::try_from(self.answers.len()).expect("small");
                let which = usize::try_from(self.chance.below(length)).expect("small");
                let answer = self.answers.swap_remove(which);
                self.feed(answer);
            }
            50..70 => {
                self.network.mine();
                self.feed(self.network.head());
            }
            70..80 => self.feed(self.network.head()),
            80..88 => self.submit(),
            88..91 => drop(self.network.pool.pop_last()),
            91..93 => drop(self.network.pool.pop_first()),
            93..95 => self.network.base_fee = 500 + u128::from(self.chance.below(1_000_000)),
            95..97 => self.restart(),
            97 => {
                let depth = usize::try_from(self.chance.below(3) + 1).expect("small");
                self.reorg(depth);
                self.feed(self.network.head());
            }
            _ => {}
        }
    }

    fn calm(&mut self, blocks: u64) {
        self.faults = false;
        for _ in 0..blocks {
            self.network.mine();
            self.feed(self.network.head());
            while let Some(answer) = self.answers.pop() {
                self.feed(answer);
            }
        }
    }
}

#[test]
fn under_faults_no_id_is_lost_or_doubled() {
    for seed in 0..300 {
        let mut world = World::new(seed);
        for _ in 0..600 {
            world.step();
        }
        world.calm(60);
        let mined = world.network.mined();
        assert_eq!(world.outbox.unsettled().count(), 0, "seed {seed}: {:?}", world.outbox);
        for n in 1..=world.submitted {
            let id = Id::from(n);
            let outcome = world.settled.get(&id).unwrap_or_else(|| panic!("seed {seed}: {n} was lost"));
            assert!(matches!(outcome, Outcome::Done { .. }), "seed {seed}: {n} ended {outcome:?}");
            assert_eq!(mined.get(&id), Some(&1), "seed {seed}: times {n} is in the chain");
        }
    }
}

#[test]
fn the_same_seed_ends_in_the_same_state() {
    let run = |seed| {
        let mut world = World::new(seed);
        for _ in 0..400 {
            world.step();
        }
        world.kept
    };
    assert_eq!(run(11), run(11));
    assert_ne!(run(11), run(12));
}

/// A disk that came back: whoever decided what is in it reads the chain before deciding again.
#[test]
fn a_file_that_is_older_than_the_chain_sends_nothing_a_second_time() {
    let mut world = World::new(1);
    world.faults = false;
    let mut old = Vec::new();
    world.submit();
    while world.settled.is_empty() {
        old.push(world.kept.clone());
        match world.answers.pop() {
            Some(answer) => world.feed(answer),
            None => {
                world.network.mine();
                world.feed(world.network.head());
            }
        }
    }
    let network = world.network;
    for state in old {
        let mut world = World { network: network.clone(), ..World::new(1) };
        world.outbox = Outbox::from_bytes(&state, ME, options()).expect("its own bytes");
        world.calm(20);
        assert_eq!(world.outbox.unsettled().count(), 0);
        assert_eq!(world.network.mined(), HashMap::from([(1.into(), 1)]));
    }
}

#[test]
fn blocks_lost_after_the_outcome_are_sent_again_under_their_nonces() {
    let mut world = World::new(1);
    for _ in 0..5 {
        world.submit();
    }
    world.calm(10);
    assert_eq!(world.settled.len(), 5);
    // The development chain was killed and comes back without its last blocks.
    world.network.blocks.truncate(1);
    world.network.pool.clear();
    world.calm(10);
    let mined = world.network.mined();
    assert!((1..=5).all(|n| mined.get(&Id::from(n)) == Some(&1)), "{mined:?}");
    assert_eq!(world.settled.len(), 5);
}

#[test]
fn a_gap_closes_on_a_chain_that_makes_no_blocks_by_itself() {
    let mut world = World::new(1);
    world.submit();
    world.calm(10);
    world.network.blocks.truncate(1);
    world.network.pool.clear();
    world.submit();
    for _ in 0..100 {
        world.feed(world.network.head());
        while let Some(answer) = world.answers.pop() {
            world.feed(answer);
        }
        if !world.network.pool.is_empty() && world.network.pending() > world.network.nonce() {
            world.network.mine();
        }
    }
    assert_eq!(world.network.mined(), HashMap::from([(1.into(), 1), (2.into(), 1)]));
}

/// anvil without a block time, told that its next block costs a hundred times the last one.
#[test]
fn a_fee_under_the_next_blocks_is_raised_on_a_chain_that_makes_no_blocks_by_itself() {
    let mut world = World::new(1);
    world.faults = false;
    let Input::Head { number, hash, base_fee } = world.network.head() else { unreachable!() };
    world.network.base_fee = 100 * base_fee;
    world.submit();
    for _ in 0..1_000 {
        world.feed(Input::Head { number, hash, base_fee });
        while let Some(answer) = world.answers.pop() {
            world.feed(answer);
        }
    }
    let sent = world.network.pool.get(&0).expect("it was taken");
    // The first offer doubled until it is enough.
    assert!((100 * base_fee..200 * base_fee + 2 * options().tip_wei).contains(&sent.max_fee), "{sent:?}");
    world.calm(5);
    assert_eq!(world.network.mined(), HashMap::from([(1.into(), 1)]));
}

#[test]
fn a_stuck_transaction_gets_a_higher_fee() {
    let mut world = World::new(1);
    world.submit();
    world.calm(0);
    world.feed(world.network.head());
    while let Some(answer) = world.answers.pop() {
        world.feed(answer);
    }
    let first = world.network.pool[&0].clone();
    world.network.base_fee = first.max_fee + 1;
    world.calm(20);
    assert_eq!(world.network.mined().get(&Id::from(1)), Some(&1));
    assert!(matches!(world.settled[&Id::from(1)], Outcome::Done { tx, .. } if tx != first.hash()));
}

#[test]
fn without_money_it_gives_up_and_the_next_one_takes_the_nonce() {
    let mut outbox = Outbox::new(ME, Options::new(1));
    let (mut out, mut sent, mut gave_up) = (Vec::new(), Vec::new(), BTreeSet::new());
    for n in [1, 2] {
        outbox.handle(
            0,
            Input::Submit { id: n.into(), request: Request { gas: Some(21_000), ..request(n) } },
            &mut out,
        );
    }
    for number in 1..20 {
        outbox.handle(number * 1_000, Input::Head { number, hash: U256::from(number).into(), base_fee: 1 }, &mut out);
        while let Some(output) = out.pop() {
            match output {
                Output::AskNonce => outbox.handle(0, Input::NonceIs { latest: 0, pending: 0 }, &mut out),
                Output::Send { id, nonce, .. } => {
                    sent.push((id, nonce));
                    let why = SendError::InsufficientFunds;
                    outbox.handle(0, Input::SendFailed { id, nonce, tx: B256::ZERO, why }, &mut out);
                }
                Output::Settled { id, outcome: Outcome::NeverSent { .. } } => drop(gave_up.insert(id)),
                other => panic!("{other:?}"),
            }
        }
    }
    assert_eq!(gave_up, BTreeSet::from([1.into(), 2.into()]));
    assert!(!outbox.is_busy(), "no filler is left: {outbox:?}");
    assert!(sent.iter().all(|(_, nonce)| *nonce < 2), "{sent:?}");
}

#[test]
fn a_strangers_transaction_under_our_nonce_makes_the_outcome_unknown() {
    let mut world = World::new(1);
    world.submit();
    world.faults = false;
    world.feed(world.network.head());
    while let Some(answer) = world.answers.pop() {
        world.feed(answer);
    }
    let stranger = Signed { id: 99.into(), nonce: 0, max_fee: u128::MAX / 4, tip: 0 };
    world.network.pool.insert(0, stranger);
    world.calm(20);
    assert!(matches!(world.settled[&Id::from(1)], Outcome::Unknown { .. }), "{:?}", world.settled);
}

#[test]
fn a_revert_is_believed_only_when_nothing_before_it_is_on_its_way() {
    let mut outbox = Outbox::new(ME, Options::new(1));
    let mut out = Vec::new();
    let no = |id: u64| Input::WouldRevert { id: id.into(), data: Bytes::from_static(&[1]), text: "no".into() };
    outbox.handle(0, Input::Head { number: 1, hash: B256::ZERO, base_fee: 1 }, &mut out);
    for n in [1, 2] {
        outbox.handle(0, Input::Submit { id: n.into(), request: request(n) }, &mut out);
    }
    outbox.handle(0, no(2), &mut out);
    outbox.handle(0, no(1), &mut out);
    outbox.handle(RETRY_MS, no(2), &mut out);
    let ends: Vec<Id> =
        out.iter().filter_map(|o| if let Output::Settled { id, .. } = o { Some(*id) } else { None }).collect();
    assert_eq!(ends, [Id::from(1), Id::from(2)]);
}
