//! One agent on a simulated chain, among its people: what tests and lives start from.
//!
//! Keys come from names, so the same world has the same addresses. The people here are honest and do what their part of
//! the protocol says; whoever is not is written where it is tried.

use crate::evm::{Evm, Outcome, stand_in};
use crate::glance;
use alloy::primitives::{Address, B256, Bytes, U256, keccak256};
use alloy::signers::{SignerSync, local::PrivateKeySigner};
use alloy::sol_types::SolCall;
use chain::bindings::{
    Addresses, Approval, Birth, Lease, LeaseMarket, LeaseStatus, Offer, Options, Payee, Policy, Standing, State,
    TestUSDC, Timers, Treasury, TreasuryFactory,
};
use chain::deploy::MarketParams;
use chain::orders::{self, Ack, Act, Order};
use chain::treasury::calls::{self, ExactAuthorization};
use chain::{anvil::DEV_CHAIN_ID, market, usdc};
use economy::{DAY_SECS, LeaseView, Limits, Stage, Usdc, View};
use pay::scheme::channel::BATCH_SETTLEMENT;
use pay::scheme::exact::{Domain, TransferWithAuthorization};
use std::collections::BTreeMap;
use std::sync::Mutex;

/// With what a simulated chain begins, chain seconds.
const BEGIN: u64 = 1_800_000_000;
/// The market's least stake, micro-USDC.
pub const STAKE: u128 = 50_000_000;
/// Whoever mints test money: not the one who gets it, which may be a contract.
const FAUCET: Address = Address::repeat_byte(0xfa);
const ETHER: u128 = 1_000_000_000_000_000_000;
/// How long an order or an authorisation holds, chain seconds.
const VALID_SECS: u64 = 3_600;

/// A key that belongs to a name.
pub fn key(name: &str) -> PrivateKeySigner {
    /// Made once: to find a key's address costs more than most calls.
    static KEYS: Mutex<BTreeMap<String, PrivateKeySigner>> = Mutex::new(BTreeMap::new());
    let mut keys = KEYS.lock().expect("nothing panics while it is held");
    if let Some(known) = keys.get(name) {
        return known.clone();
    }
    let made = PrivateKeySigner::from_bytes(&keccak256(name)).expect("a digest is a key, but for one in 2^128");
    keys.insert(name.to_owned(), made.clone());
    made
}

/// The treasury's stage in the model's words.
pub fn stage(state: &State) -> Stage {
    match state.stage() {
        chain::Stage::Unborn => Stage::Unborn,
        chain::Stage::Alive => Stage::Alive,
        chain::Stage::Stopped => Stage::Stopped,
        chain::Stage::WindingDown => Stage::WindingDown,
        chain::Stage::Closed => Stage::Closed,
    }
}

/// Whoever gives birth here.
pub fn creator() -> Address {
    key("creator").address()
}

/// r, s, v over a digest.
pub fn sign(signer: &PrivateKeySigner, digest: B256) -> Bytes {
    signer.sign_hash_sync(&digest).expect("a key in memory signs").as_bytes().into()
}

/// How a world is born.
#[derive(Clone, Debug)]
pub struct Terms {
    /// Of the treasury and the market.
    pub timers: economy::Timers,
    /// Limits at birth.
    pub policy: Policy,
    /// What birth adds.
    pub options: Options,
    /// n stewards, of whom k are a quorum.
    pub stewards: u8,
    pub threshold: u8,
    /// Micro-USDC.
    pub seed: u128,
    /// The agent's first gas.
    pub gas_wei: u128,
}

impl Terms {
    /// Limits and timers as `vivarium up` gives birth to, in real days, and none of the options, of which it has some.
    pub fn plain() -> Self {
        let day = DAY_SECS;
        Self {
            timers: economy::Timers::real(),
            policy: Policy {
                dayLimit: 10_000_000,
                priceE6Max: 2_000_000 * 1_000_000 / u64::from(day),
                termMax: 30 * day,
                prepayMax: 2 * day,
                gasDayMax: ETHER / 2,
                gasTarget: ETHER / 20,
                starveFloor: 1_000_000,
            },
            options: Options::default(),
            stewards: 3,
            threshold: 2,
            seed: 100_000_000,
            gas_wei: 15 * ETHER,
        }
    }

    /// What a birth can switch on that moves money, but bought gas, which needs a pool (the thief's test has one). Off:
    /// the identity registry, and rescuers, who are no more than stewards with fewer powers.
    pub fn full() -> Self {
        let plain = Self::plain();
        let timers = &plain.timers;
        let options = Options {
            ceilings: Policy { dayLimit: 12_000_000, ..plain.policy.clone() },
            payees: vec![Payee { kind: 0, payee: key("archive").address(), dayMax: 500_000 }],
            channels: BATCH_SETTLEMENT,
            withdrawDelay: timers.answer_time + timers.restore_timeout + timers.silence + timers.day,
            delay: timers.day,
            silenceBlocks: 3,
            purseMax: 1_000_000,
            relayMax: ETHER / 1_000,
            dutyPay: 10_000,
            dutyDayMax: 100_000,
            ..Options::default()
        };
        Self { options, ..plain }
    }
}

/// A chain with the contracts, stewards, and at most one agent.
#[derive(Clone, Debug)]
pub struct World {
    pub evm: Evm,
    pub at: Addresses,
    pub terms: Terms,
    /// Zero until [`World::create`].
    pub treasury: Address,
    /// Ascending by address.
    pub stewards: Vec<PrivateKeySigner>,
}

impl World {
    /// The contracts and the stewards' keys; nobody is born.
    pub fn new(terms: Terms) -> Self {
        let mut evm = Evm::new(BEGIN);
        let timers = &terms.timers;
        let at = evm.deploy(MarketParams {
            stake_min: STAKE,
            ready_within: timers.ready_within,
            grace: timers.grace,
            drop_after: timers.drop_after,
        });
        let mut stewards: Vec<_> = (1..=terms.stewards).map(|n| key(&format!("steward-{n}"))).collect();
        stewards.sort_by_key(PrivateKeySigner::address);
        Self { evm, at, terms, treasury: Address::ZERO, stewards }
    }

    /// The one place where a simulated birth is written down.
    pub fn birth(&self) -> Birth {
        let (timers, policy) = (&self.terms.timers, self.terms.policy.clone());
        Birth {
            creator: creator(),
            token: self.at.usdc,
            market: self.at.market,
            beneficiary: key("beneficiary").address(),
            stewards: self.stewards.iter().map(PrivateKeySigner::address).collect(),
            threshold: self.terms.threshold,
            codeHash: keccak256("code"),
            manifest: keccak256("manifest"),
            mandateUntil: self.evm.now() + 365 * u64::from(timers.day),
            policy,
            timers: Timers {
                day: timers.day,
                heartbeatEvery: timers.heartbeat_every,
                fence: timers.fence,
                answerTime: timers.answer_time,
                handoverNotice: timers.handover_notice,
                restoreTimeout: timers.restore_timeout,
                silence: timers.silence,
                starveTimeout: timers.starve_timeout,
                activateWithin: timers.activate_within,
                refundWindow: timers.refund_window,
            },
            options: self.terms.options.clone(),
        }
    }

    /// The treasury, with gas and seed, not activated.
    ///
    /// # Panics
    /// The factory refuses the terms.
    pub fn create(&mut self) {
        let (birth, gas_wei) = (self.birth(), self.terms.gas_wei);
        self.evm.set_wei(creator(), gas_wei);
        let made = self.evm.call(creator(), self.at.factory, calls::create(&birth), gas_wei).expect("the terms fit");
        self.treasury = TreasuryFactory::createCall::abi_decode_returns(&made.output).expect("an address");
        self.mint(self.treasury, self.terms.seed);
    }

    /// The agent alive on its first lease; that lease.
    pub fn live(&mut self, offer: u64, term: u32, prepay: u128) -> u64 {
        self.create();
        self.move_in(offer, term, prepay)
    }

    /// The same, of one that is created already.
    pub fn move_in(&mut self, offer: u64, term: u32, prepay: u128) -> u64 {
        self.act(creator(), calls::birth_rent(offer, term, prepay)).expect("the creator rents once");
        let lease = self.last_lease();
        self.make_ready(lease).expect("the provider is in time");
        self.act(creator(), calls::activate(lease)).expect("in time");
        lease
    }

    // ---- people ----

    /// A staked provider under a name, with one offer; the offer.
    pub fn provider(&mut self, name: &str, price_e6: u64, capacity: u32) -> u64 {
        let who = key(name).address();
        self.mint(who, STAKE);
        self.approve_market(who, u128::MAX);
        self.evm.call(who, self.at.market, market::calls::register(STAKE), 0).expect("has the stake");
        self.post(who, price_e6, capacity)
    }

    /// One more offer of a staked provider.
    pub fn post(&mut self, who: Address, price_e6: u64, capacity: u32) -> u64 {
        let offer = self.offer(who, price_e6, capacity);
        self.evm.call(who, self.at.market, market::calls::post_offer(&offer), 0).expect("is staked");
        self.market_count(&LeaseMarket::offerCountCall {})
    }

    /// What providers here offer: terms of an hour to 30 days.
    pub fn offer(&self, provider: Address, price_e6: u64, capacity: u32) -> Offer {
        let day = self.terms.timers.day;
        Offer {
            provider,
            priceE6: price_e6,
            capacity,
            used: 0,
            minTerm: day / 24,
            maxTerm: 30 * day,
            memoryMiB: 2_048,
            milliCpu: 1_000,
            usePolicy: B256::ZERO,
            endpoint: "http://provider".to_owned(),
            abuseContact: "abuse@example.org".to_owned(),
        }
    }

    /// The key that an honest provider brings up on a lease.
    pub fn node(lease: u64) -> PrivateKeySigner {
        key(&format!("node-{lease}"))
    }

    /// The lease's provider starts its node.
    pub fn make_ready(&mut self, lease: u64) -> Outcome {
        let provider = self.lease(lease).provider;
        let data = market::calls::ready(lease, Self::node(lease).address(), "http://node", B256::ZERO);
        self.evm.call(provider, self.at.market, data, 0)
    }

    /// Test money.
    pub fn mint(&mut self, to: Address, amount: u128) {
        self.evm.call(FAUCET, self.at.usdc, usdc::calls::mint(to, amount), 0).expect("anybody mints");
    }

    /// Lets the market take from an account.
    pub fn approve_market(&mut self, who: Address, amount: u128) {
        self.evm.call(who, self.at.usdc, usdc::calls::approve(self.at.market, amount), 0).expect("anybody approves");
    }

    // ---- acting ----

    /// A call to the treasury.
    pub fn act(&mut self, from: Address, data: Bytes) -> Outcome {
        self.evm.call(from, self.treasury, data, 0)
    }

    /// A call to the treasury by whoever is operator.
    pub fn operate(&mut self, data: Bytes) -> Outcome {
        let operator = self.state().operator;
        self.act(operator, data)
    }

    /// An order signed by these keys, whoever they are and however many.
    pub fn order(&self, action: &str, argument: U256, signers: &[PrivateKeySigner]) -> Approval {
        let order = Order::new(action, argument, glance::order_nonce(self), self.evm.now() + VALID_SECS);
        Approval { deadline: order.deadline, signatures: self.signatures(&order, signers) }
    }

    /// The next checkpoint, acknowledged by these keys.
    pub fn commit(&self, digest: B256, signers: &[PrivateKeySigner]) -> Bytes {
        let (epoch, seq, prev) = glance::last_checkpoint(self);
        let seq = seq + 1;
        let ack = Ack { epoch, seq, digest, prev };
        calls::commit(seq, digest, prev, self.signatures(&ack, signers))
    }

    /// What the standby's node signs for whoever relays it: "challenge" or "takeover", good now.
    pub fn act_of_standby(&self, action: &str) -> Act {
        let state = self.state();
        let nonce = self.evm.ask(self.treasury, &Treasury::lastChallengeAtCall {}).expect("a treasury");
        Act {
            action: action.to_owned(),
            lease: state.standbyLease,
            epoch: state.epoch,
            nonce,
            deadline: self.evm.now(),
        }
    }

    /// Ascending by signer, as the contract wants them.
    fn signatures<M: alloy::sol_types::SolStruct>(&self, message: &M, signers: &[PrivateKeySigner]) -> Vec<Bytes> {
        let domain = orders::domain(DEV_CHAIN_ID, self.treasury);
        let mut signers: Vec<_> = signers.iter().collect();
        signers.sort_by_key(|signer| signer.address());
        let sign = |signer: &PrivateKeySigner| match self.evm.takes_stand_ins {
            true => stand_in(signer.address(), message.eip712_signing_hash(&domain)),
            false => orders::sign(message, &domain, signer).expect("a key in memory"),
        };
        signers.into_iter().map(sign).collect()
    }

    /// As this chain takes it: by hand, or by a stand-in.
    pub fn sign(&self, signer: &PrivateKeySigner, digest: B256) -> Bytes {
        match self.evm.takes_stand_ins {
            true => stand_in(signer.address(), digest),
            false => sign(signer, digest),
        }
    }

    /// k of the stewards.
    pub fn quorum(&self) -> Vec<PrivateKeySigner> {
        self.stewards[..usize::from(self.terms.threshold)].to_vec()
    }

    // ---- reading ----

    pub fn state(&self) -> State {
        self.evm.ask(self.treasury, &Treasury::stateCall {}).expect("a treasury")
    }

    pub fn standing(&self) -> Standing {
        self.evm.ask(self.treasury, &Treasury::standingCall {}).expect("a treasury")
    }

    pub fn lease(&self, id: u64) -> Lease {
        self.evm.ask(self.at.market, &LeaseMarket::leaseOfCall { lease: U256::from(id) }).expect("a market")
    }

    /// Rent that a lease earned so far, micro-USDC.
    pub fn accrued(&self, id: u64) -> u128 {
        self.evm.ask(self.at.market, &LeaseMarket::accruedCall { lease: U256::from(id) }).expect("a market")
    }

    /// What the chain shows a node of somebody else: no gas, no offers, and not its operator.
    pub fn view(&self, state: &State) -> View {
        self.view_of(state, |id, lease| lease.escrow - self.accrued(id))
    }

    /// The same, by whoever knows what is left of an open lease's escrow, micro-USDC.
    pub fn view_of(&self, state: &State, escrow_left: impl Fn(u64, &Lease) -> u128) -> View {
        let lease = |id: U256| {
            let id = id.to::<u64>();
            (id != 0).then(|| {
                let l = self.lease(id);
                LeaseView {
                    id,
                    offer: l.offer.to(),
                    provider: l.provider.into_array(),
                    price_e6: l.priceE6,
                    start: l.start,
                    end: l.end,
                    ready_by: l.readyBy,
                    ready: l.status() == LeaseStatus::Ready,
                    escrow_left: match l.status() {
                        LeaseStatus::Requested | LeaseStatus::Ready => Usdc(escrow_left(id, &l)),
                        LeaseStatus::None | LeaseStatus::Closed => Usdc::ZERO,
                    },
                }
            })
        };
        View {
            number: self.evm.number(),
            timestamp: self.evm.now(),
            stage: stage(state),
            paused: state.paused,
            restoring: state.restoring,
            epoch: state.epoch,
            operator_is_me: false,
            active: lease(state.activeLease),
            standby: lease(state.standbyLease),
            draining: lease(state.drainingLease),
            announced: state.announcedLease.to(),
            announced_at: state.announcedAt,
            checkpoint_seq: state.checkpointSeq,
            last_heartbeat: state.lastHeartbeat,
            challenged_at: state.challengedAt,
            balance: Usdc(state.balance.to()),
            escrow: Usdc(state.escrow.to()),
            purse: Usdc::ZERO,
            spent_in_day: Usdc(state.spentInDay),
            operator_gas_wei: 0,
            relay_gas_wei: 0,
            treasury_gas_wei: 0,
            mandate_until: state.mandateUntil,
            wind_down_at: state.windDownAt,
            // Birth's: nobody changes them where lives are looked at.
            limits: limits(&self.terms.policy),
            offers: Vec::new(),
        }
    }

    /// The newest lease's id; 0 when there is none.
    pub fn last_lease(&self) -> u64 {
        self.market_count(&LeaseMarket::leaseCountCall {})
    }

    /// Offers ever posted; ids count from 1.
    pub fn offer_count(&self) -> u64 {
        self.market_count(&LeaseMarket::offerCountCall {})
    }

    pub fn offer_of(&self, id: u64) -> Offer {
        self.evm.ask(self.at.market, &LeaseMarket::offerOfCall { offer: U256::from(id) }).expect("a market")
    }

    /// (served, failed).
    pub fn record_of(&self, provider: Address) -> (u32, u32) {
        let record = self.evm.ask(self.at.market, &LeaseMarket::recordOfCall { provider }).expect("a market");
        (record.served, record.failed)
    }

    fn market_count<C: SolCall<Return = U256>>(&self, call: &C) -> u64 {
        self.evm.ask(self.at.market, call).expect("a market").saturating_to()
    }

    /// A payment to the treasury, signed and not settled.
    pub fn payment(&self, payer: &PrivateKeySigner, value: u128, nonce: B256) -> ExactAuthorization {
        self.authorization(payer, self.treasury, value, nonce)
    }

    /// An EIP-3009 transfer, signed. It holds for ever.
    pub fn authorization(&self, payer: &PrivateKeySigner, to: Address, value: u128, nonce: B256) -> ExactAuthorization {
        let message = TransferWithAuthorization {
            from: payer.address(),
            to,
            value: U256::from(value),
            validAfter: U256::ZERO,
            validBefore: U256::MAX,
            nonce,
        };
        ExactAuthorization {
            payer: payer.address(),
            value: message.value,
            valid_after: message.validAfter,
            valid_before: message.validBefore,
            nonce,
            signature: self.sign(payer, self.token_domain().digest(&message)),
        }
    }

    /// In which the token's holders sign.
    pub fn token_domain(&self) -> Domain {
        Domain::new("USD Coin", "2", DEV_CHAIN_ID, self.at.usdc)
    }

    /// Micro-USDC of an account.
    pub fn usdc(&self, account: Address) -> u128 {
        self.evm.ask(self.at.usdc, &TestUSDC::balanceOfCall { account }).expect("a token").saturating_to()
    }
}

/// The contract's limits, as the agent sees them.
pub fn limits(policy: &Policy) -> Limits {
    Limits {
        day_limit: Usdc(policy.dayLimit),
        price_e6_max: policy.priceE6Max,
        term_max: policy.termMax,
        prepay_max: policy.prepayMax,
        gas_day_max_wei: policy.gasDayMax,
        gas_target_wei: policy.gasTarget,
        starve_floor: Usdc(policy.starveFloor),
    }
}
