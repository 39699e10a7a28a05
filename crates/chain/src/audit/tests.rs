use super::{life::By, *};
use crate::{
    bindings::{
        Approval, ILeaseMarket, LeaseMarket, MarketEvent, Treasury,
        TreasuryEvent::{self as T},
    },
    orders::{Order, domain, sign},
};
use alloy::{
    primitives::{U256, keccak256},
    signers::local::PrivateKeySigner,
    sol_types::SolCall,
};

const TREASURY: Address = Address::repeat_byte(0xaa);
const MARKET: Address = Address::repeat_byte(0xbb);
const CHANNELS: Address = Address::repeat_byte(0xcc);
const PURSE: Address = Address::repeat_byte(0xdd);
const CREATOR: Address = Address::repeat_byte(1);
const BENEFICIARY: Address = Address::repeat_byte(2);
const HOST: Address = Address::repeat_byte(3);
const OPERATOR: Address = Address::repeat_byte(4);
const ADA: Address = Address::repeat_byte(0x10);
const BOB: Address = Address::repeat_byte(0x11);

fn key(n: u8) -> PrivateKeySigner {
    PrivateKeySigner::from_bytes(&B256::repeat_byte(n)).expect("in range")
}

/// A chain in the making: each `tx` is one transaction in one block, ten seconds apart.
struct Story {
    e: Evidence,
    balance: i128,
}

impl Story {
    fn new() -> Self {
        let mut birth = Birth { market: MARKET, beneficiary: BENEFICIARY, threshold: 2, ..Birth::default() };
        birth.options.channels = CHANNELS;
        birth.timers.heartbeatEvery = 10;
        birth.stewards = (21..=23).map(|n| key(n).address()).collect();
        let head = Head { number: 0, hash: B256::ZERO, parent: B256::ZERO, timestamp: 0, base_fee: 0 };
        let e = Evidence {
            treasury: TREASURY,
            chain_id: 31337,
            birth,
            state: State::default(),
            purse: PURSE,
            purse_balance: 0,
            unsettled: 0,
            implementation: None,
            head,
            first_block: 0,
            opening: 0,
            facts: Vec::new(),
            strange: 0,
            leases: Vec::new(),
            sent: BTreeMap::new(),
            channels: Vec::new(),
            signed: BTreeSet::new(),
            funding: Vec::new(),
            known: Vec::new(),
        };
        Self { e, balance: 0 }
    }

    fn tx(&mut self, what: impl IntoIterator<Item = What>) -> B256 {
        self.e.head.number += 1;
        self.e.head.timestamp += 10;
        let (block, at) = (self.e.head.number, self.e.head.timestamp);
        let tx = B256::from(U256::from(block));
        for what in what {
            if let What::Transfer { from, to, amount } = what {
                let amount = i128::try_from(amount).expect("small");
                self.balance += if to == TREASURY { amount } else { 0 } - if from == TREASURY { amount } else { 0 };
                self.e.purse_balance = self
                    .e
                    .purse_balance
                    .wrapping_add_signed(if to == PURSE { amount } else { 0 } - if from == PURSE { amount } else { 0 });
            }
            self.e.facts.push(Fact { block, at, tx, what });
        }
        self.e.state.balance = U256::from(self.balance.unsigned_abs());
        tx
    }

    fn sent(&mut self, tx: B256, from: Address, input: Vec<u8>) {
        self.e.sent.insert(tx, Sent { from, to: Some(TREASURY), input: input.into() });
    }

    /// A lease with 500 in escrow, of which the host earned 200.
    fn lease(&mut self, id: u64) {
        self.tx([
            says(T::Rented(Treasury::Rented { lease: n(id), offer: n(1), term: 100, prepay: 500 })),
            moves(TREASURY, MARKET, 500),
            What::Market(MarketEvent::LeaseRequested(LeaseMarket::LeaseRequested {
                lease: n(id),
                offer: n(1),
                tenant: TREASURY,
                provider: HOST,
                priceE6: 7,
                term: 100,
                codeHash: B256::ZERO,
                escrow: 500,
            })),
        ]);
        let lease = ILeaseMarket::Lease { provider: HOST, state: 2, ..Default::default() };
        self.e.leases.push(LeaseView { id, lease, accrued: 200 });
        self.e.state.escrow += n(300);
    }

    fn close_lease(&mut self, id: u64) {
        self.tx([
            What::Market(MarketEvent::LeaseClosed(LeaseMarket::LeaseClosed {
                lease: n(id),
                rentTotal: 200,
                refund: 300,
            })),
            moves(MARKET, TREASURY, 300),
        ]);
        self.e.leases.iter_mut().find(|l| l.id == id).expect("rented").lease.state = 3;
        self.e.state.escrow -= n(300);
    }

    fn born(&mut self) {
        self.tx([says(T::Born(Treasury::Born {
            creator: CREATOR,
            manifest: B256::ZERO,
            codeHash: B256::ZERO,
            beneficiary: BENEFICIARY,
            mandateUntil: 1_000,
        }))]);
        self.tx([moves(CREATOR, TREASURY, 10_000)]);
        self.lease(1);
        self.tx([says(T::Activated(Treasury::Activated { lease: n(1), operator: OPERATOR }))]);
    }

    fn beat(&mut self) {
        let zero = B256::ZERO;
        self.tx([says(T::Heartbeat(Treasury::Heartbeat { epoch: 1, instance: zero, receiptsRoot: zero }))]);
    }

    fn sale(&mut self, payer: Address, amount: u128) {
        let settled = Treasury::ExactSettled { payer, nonce: B256::ZERO, amount: U256::from(amount) };
        self.tx([moves(payer, TREASURY, amount), says(T::ExactSettled(settled))]);
    }

    fn audit(&self) -> Audit {
        audit(&self.e)
    }
}

fn n(value: u64) -> U256 {
    U256::from(value)
}

fn says(event: TreasuryEvent) -> What {
    What::Treasury(event)
}

fn moves(from: Address, to: Address, amount: u128) -> What {
    What::Transfer { from, to, amount }
}

#[test]
fn a_life_adds_up_by_source_and_kind() {
    let mut s = Story::new();
    s.born();
    s.sale(ADA, 100);
    s.tx([
        moves(CHANNELS, TREASURY, 40),
        says(T::ChannelsClaimed(Treasury::ChannelsClaimed { claimed: n(1), skipped: n(0), amount: n(40) })),
    ]);
    s.tx([
        says(T::ExactRefunded(Treasury::ExactRefunded { payer: ADA, nonce: B256::ZERO, amount: n(25) })),
        moves(TREASURY, ADA, 25),
    ]);
    let payees = [(0u8, ADA, 3u128), (1, BOB, 5), (2, PURSE, 70)];
    for (kind, payee, amount) in payees {
        s.tx([says(T::Spent(Treasury::Spent { kind, payee, amount })), moves(TREASURY, payee, amount)]);
    }
    s.tx([moves(PURSE, BOB, 11)]);
    s.tx([moves(PURSE, TREASURY, 9)]);
    s.tx([moves(TREASURY, BOB, 13), says(T::GasBought(Treasury::GasBought { paid: n(13), amountWei: n(1_000) }))]);
    let steward = s.e.birth.stewards[0];
    s.tx([says(T::DutyPaid(Treasury::DutyPaid { steward, amount: 2 })), moves(TREASURY, steward, 2)]);
    s.tx([moves(BOB, TREASURY, 77)]);
    s.close_lease(1);

    let a = s.audit();
    assert_eq!(a.differences, []);
    let m = a.money;
    assert_eq!((m.seed, m.gifts, m.exact, m.channels, m.refunds), (10_000, 77, 100, 40, 25));
    assert_eq!((m.rent, m.storage, m.tools, m.purse, m.gas, m.duty), (200, 3, 5, 11, 13, 2));
    assert_eq!((m.in_purse, m.escrow, m.unexplained), (50, 0, 0));
    assert_eq!(m.net(), 140 - 25 - 234);
    assert_eq!((a.purse_payments.len(), a.gas.bought), (1, 1_000));
    assert_eq!(m.balance, 10_000 + 77 + 140 - 25 - 200 - 3 - 5 - 70 + 9 - 13 - 2);
}

#[test]
fn what_went_out_without_a_reason_is_named_and_still_adds_up() {
    let mut s = Story::new();
    s.born();
    s.tx([moves(TREASURY, BOB, 66)]);
    // Half of it is explained: a refund of 4, and 6 more in the same transaction.
    s.tx([
        says(T::ExactRefunded(Treasury::ExactRefunded { payer: ADA, nonce: B256::ZERO, amount: n(4) })),
        moves(TREASURY, ADA, 10),
    ]);
    let a = s.audit();
    assert_eq!(a.differences, []);
    let named: Vec<_> = a.unexplained.iter().map(|m| (m.party, m.amount)).collect();
    assert_eq!((named, a.money.unexplained, a.money.refunds), (vec![(BOB, 66), (ADA, 6)], 72, 4));
}

#[test]
fn a_sum_that_is_off_is_named() {
    let mut s = Story::new();
    s.born();
    s.e.state.balance += n(5);
    let a = s.audit();
    assert!(!a.balances());
    assert_eq!(a.differences[0].to_string(), "the treasury's balance: 9500 by the events, 9505 on chain, 5 apart");

    let mut s = Story::new();
    s.born();
    s.e.state.escrow -= n(1);
    assert!(s.audit().differences.iter().any(|d| d.what == "escrow of open leases"), "{:?}", s.audit().differences);

    // The treasury tells of income that never came.
    let mut s = Story::new();
    s.born();
    s.tx([says(T::ExactSettled(Treasury::ExactSettled { payer: ADA, nonce: B256::ZERO, amount: n(50) }))]);
    assert_eq!(s.audit().differences.len(), 1, "{:?}", s.audit().differences);
}

#[test]
fn rent_that_a_stranger_paid_is_a_gift_and_what_the_market_still_owes_is_not_lost() {
    let mut s = Story::new();
    s.born();
    let topped = LeaseMarket::LeaseToppedUp { lease: n(1), amount: 50 };
    s.tx([What::Market(MarketEvent::LeaseToppedUp(topped))]);
    s.e.state.escrow += n(50);
    assert_eq!(s.audit().differences, []);
    assert_eq!(s.audit().money.gifts, 50);

    let mut s = Story::new();
    s.born();
    s.tx([
        What::Market(MarketEvent::LeaseClosed(LeaseMarket::LeaseClosed { lease: n(1), rentTotal: 200, refund: 300 })),
        What::Market(MarketEvent::Owed(LeaseMarket::Owed { to: TREASURY, amount: n(300) })),
    ]);
    s.e.leases[0].lease.state = 3;
    s.e.state.escrow = U256::ZERO;
    let a = s.audit();
    assert_eq!((a.differences.as_slice(), a.money.uncollected), (&[][..], 300));
    s.tx([
        What::Market(MarketEvent::Collected(LeaseMarket::Collected { to: TREASURY, amount: n(300) })),
        moves(MARKET, TREASURY, 300),
    ]);
    let a = s.audit();
    assert_eq!((a.differences.as_slice(), a.money.uncollected, a.money.gifts), (&[][..], 0, 0));
}

#[test]
fn an_order_names_who_signed_it_and_counts_its_number() {
    let mut s = Story::new();
    s.born();
    let deadline = 5_000;
    let approve = |action: &str, argument: U256, nonce: u64, who: &[u8]| {
        let order = Order::new(action, argument, n(nonce), deadline);
        let mut keys: Vec<_> = who.iter().map(|n| key(*n)).collect();
        keys.sort_by_key(PrivateKeySigner::address);
        let sign = |k| sign(&order, &domain(31337, TREASURY), k).expect("signs");
        Approval { deadline, signatures: keys.iter().map(sign).collect() }
    };
    let tx = s.tx([says(T::Paused(Treasury::Paused {}))]);
    s.sent(tx, BOB, Treasury::pauseCall { a: approve("pause", U256::ZERO, 0, &[21, 23]) }.abi_encode());
    let tx = s.tx([says(T::Resumed(Treasury::Resumed {}))]);
    s.sent(tx, BOB, Treasury::resumeCall { a: approve("resume", U256::ZERO, 1, &[22, 23]) }.abi_encode());
    let code = B256::repeat_byte(9);
    let queued = Treasury::Queued { action: "setCode".into(), argument: code.into(), from: 99 };
    let tx = s.tx([says(T::Queued(queued))]);
    s.sent(
        tx,
        BOB,
        Treasury::setCodeCall { codeHash: code, a: approve("setCode", code.into(), 2, &[21, 22]) }.abi_encode(),
    );
    let tx = s.tx([says(T::CodeSet(Treasury::CodeSet { codeHash: code }))]);
    s.sent(tx, ADA, Treasury::setCodeCall { codeHash: code, a: Approval::default() }.abi_encode());
    let tx = s.tx([says(T::CodeRevoked(Treasury::CodeRevoked { codeHash: code }))]);
    s.sent(tx, BOB, Treasury::revokeCodeCall { a: approve("revokeCode", code.into(), 3, &[21, 22]) }.abi_encode());
    let tx = s.tx([says(T::Stopped(Treasury::Stopped {}))]);
    s.sent(tx, BOB, b"through a contract of its own".to_vec());

    let a = s.audit();
    let orders: Vec<_> = a.interventions.iter().filter(|i| i.block > 4).collect();
    let quorum = |who: &[u8]| {
        let mut signers: Vec<_> = who.iter().map(|n| key(*n).address()).collect();
        signers.sort();
        By::Quorum { signers, relay: BOB }
    };
    let by: Vec<_> = orders.iter().map(|i| i.by.clone()).collect();
    let expected =
        [quorum(&[21, 23]), quorum(&[22, 23]), quorum(&[21, 22]), By::Account(ADA), quorum(&[21, 22]), By::SomeQuorum];
    assert_eq!(by, expected, "{orders:?}");
    assert_eq!(a.interventions[0].what, "birth");
    assert!(a.interventions.iter().any(|i| i.what == "paid in before activation: 10000 micro-USDC"));
}

#[test]
fn epochs_tell_how_they_began_and_ended() {
    let mut s = Story::new();
    s.born();
    s.lease(2);
    let event = Treasury::HandedOver { epoch: 2, lease: n(2), operator: ADA, seq: 1, cut: 1 };
    s.tx([says(T::HandedOver(event))]);
    s.lease(3);
    let event = Treasury::TakenOver { epoch: 3, lease: n(3), operator: BOB, digest: B256::ZERO };
    s.tx([says(T::TakenOver(event))]);
    s.tx([says(T::Evicted(Treasury::Evicted { epoch: 4, keep: n(0), operator: Address::ZERO }))]);
    s.tx([says(T::Rescued(Treasury::Rescued { lease: n(4), offer: n(1) }))]);
    s.lease(4);
    let event = Treasury::TakenOver { epoch: 5, lease: n(4), operator: CREATOR, digest: B256::ZERO };
    s.tx([says(T::TakenOver(event))]);
    s.tx([says(T::Closed(Treasury::Closed { balance: n(0) }))]);
    let epochs = s.audit().epochs;
    let told: Vec<_> = epochs.iter().map(|e| (e.epoch, e.lease, e.began_by, e.ended_by)).collect();
    let expected = [
        (1, 1, "activate", "handover"),
        (2, 2, "handover", "takeover"),
        (3, 3, "takeover", "evict"),
        (4, 0, "evict", "rescue"),
        (5, 4, "rescue", "close"),
    ];
    assert_eq!(told, expected);
    assert!(epochs.windows(2).all(|w| w[0].ended_at == Some(w[1].began_at)));
    assert_eq!((epochs[0].provider, epochs[3].provider), (HOST, Address::ZERO));
}

#[test]
fn silence_is_what_no_heartbeat_vouches_for() {
    let mut s = Story::new();
    s.born();
    s.beat();
    s.beat();
    // Four blocks without one: 50 s between two heartbeats that should lie 10 s apart.
    for _ in 0..4 {
        s.tx([]);
    }
    s.beat();
    s.tx([says(T::WindDownBegun(Treasury::WindDownBegun { reason: 1, earliestClose: 9 }))]);
    for _ in 0..9 {
        s.tx([]);
    }
    let d = s.audit().downtime;
    assert_eq!((d.heartbeats, d.observed_secs, d.silent_secs), (3, 80, 40), "{d:?}");
    assert_eq!(d.gaps.len(), 1);
}

#[test]
fn payers_near_the_agent_are_counted_apart() {
    let mut s = Story::new();
    s.born();
    let [stranger, funded, crowd, minted] = [0x31, 0x32, 0x33, 0x34].map(Address::repeat_byte);
    for (payer, amount) in
        [(stranger, 1), (funded, 2), (crowd, 4), (HOST, 8), (CREATOR, 16), (OPERATOR, 32), (minted, 64)]
    {
        s.sale(payer, amount);
    }
    s.e.known.push((crowd, Relation::Crowd));
    // One hop back; the treasury's own refunds and a mint make nobody a friend.
    s.e.funding = vec![(funded, BENEFICIARY), (stranger, TREASURY), (stranger, CHANNELS), (minted, Address::ZERO)];
    s.e.channels = vec![(crate::bindings::ChannelConfig { payer: stranger, ..Default::default() }, 128)];
    let a = s.audit();
    assert_eq!(a.income, Income { strangers: 1 + 64 + 128, linked: 2 + 8 + 16 + 32, crowd: 4 });
    let of = |who| a.payers.iter().find(|p| p.address == who).expect("paid").link;
    assert_eq!(of(funded), Some(Link::FundedBy(Relation::Beneficiary, BENEFICIARY)));
    assert_eq!(of(HOST), Some(Link::Is(Relation::Provider)));
    assert_eq!(of(OPERATOR), Some(Link::Is(Relation::Itself)));
    assert_eq!(of(stranger), None);
}

#[test]
fn a_policy_is_signed_by_its_digest() {
    use alloy::sol_types::SolValue;
    let mut s = Story::new();
    s.born();
    let policy = crate::bindings::Policy { dayLimit: 9, ..Default::default() };
    let argument = U256::from_be_bytes(keccak256(policy.abi_encode()).0);
    let order = Order::new("tighten", argument, U256::ZERO, 7);
    let signature = sign(&order, &domain(31337, TREASURY), &key(22)).expect("signs");
    let tx = s.tx([says(T::Tightened(Treasury::Tightened { policy: policy.clone() }))]);
    let a = Approval { deadline: 7, signatures: vec![signature] };
    s.sent(tx, BOB, Treasury::tightenCall { policy, a }.abi_encode());
    let by = s.audit().interventions.pop().expect("the last one").by;
    assert_eq!(by, By::Quorum { signers: vec![key(22).address()], relay: BOB });
}
