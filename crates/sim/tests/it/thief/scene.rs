//! The agent at the moment of the theft, what the honest go on doing, and what was lost.

use super::{Thief, gas_market};
use alloy::primitives::{Address, B256, Bytes, U256};
use alloy::signers::local::PrivateKeySigner;
use alloy::sol_types::{SolEvent, SolValue};
use chain::bindings::Voucher;
use chain::bindings::{
    BatchSettlement, ChannelConfig, LeaseMarket, LeaseStatus, Stage, TestUSDC, Treasury, VoucherClaim,
};
use chain::treasury::calls;
use economy::Usdc;
use pay::scheme::channel::{BATCH_SETTLEMENT, ChannelDomain, ChannelId, client, facilitator};
use pay::scheme::channel::{ChannelConfig as PayConfig, Deposit, DepositMethod};
use sim::world::{STAKE, creator, sign};
use sim::{Terms, World, key};

/// Micro-USDC a day that honest hosts ask for, as in a development world.
const ASKED_A_DAY: [u64; 3] = [600_000, 800_000, 700_000];
/// What the thief's friend paid before the theft, in three payments; it was served for all of it.
const FRIEND_PAID: u128 = 10_000_000;
/// The friend's channel, and what of it was served and is not claimed yet: the bound at which a node claims.
const FRIEND_DEPOSIT: u128 = 4_000_000;
pub const UNCLAIMED_MAX: u128 = 500_000;
/// What an agent has left that is short of gas: less than a day's, so that it may buy some.
const SHORT_OF_GAS_WEI: u128 = 100_000_000_000_000_000;
/// Between two claims and two checkpoints of the honest, seconds.
const DAILY: u64 = 86_400;
/// Heartbeats without an answer after which a standby is given up.
const SILENT_HEARTBEATS: u64 = 6;

/// What belongs to the agent, wherever it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Assets {
    /// Micro-USDC: treasury, purse, escrow not accrued, claims not settled, vouchers not claimed.
    pub uusdc: i128,
    /// Wei of the treasury, and of operator and relay while the agent alone holds their keys.
    pub wei: i128,
}

#[derive(Clone)]
pub struct Scene {
    pub world: World,
    pub purse: Address,
    pub friend: PrivateKeySigner,
    pub friends_payments: Vec<(B256, u128)>,
    pub channel: ChannelConfig,
    pub claim: VoucherClaim,
    /// Accounts of providers that host honestly.
    honest_hosts: Vec<Address>,
    /// Keys that somebody else holds, too.
    pub stolen: Vec<Address>,
    pub began: u64,
    at_theft: Assets,
    earned_at_theft: i128,
    logs_at_theft: usize,
    /// Of the honest operator.
    claimed_at: u64,
    answered: bool,
    silent_since: u64,
    /// By id - 1; those that are closed.
    closed: Vec<Option<LeaseSum>>,
    open_leases: Vec<LeaseSum>,
}

/// What a lease is worth, micro-USDC.
#[derive(Clone, Copy, Debug)]
struct LeaseSum {
    provider: Address,
    /// Of ours, rent so far.
    earned: u128,
    /// Of ours, escrow that comes back if it closes now.
    left: u128,
}

impl Scene {
    /// An agent that lived for two days: two hosts, a checkpoint, income, a full purse, gas, a channel.
    pub fn new() -> Self {
        let mut world = World::new(Terms { stewards: 5, threshold: 3, ..Terms::full() });
        gas_market::open(&mut world);
        let day = u64::from(world.terms.timers.day);
        let names = ["host-1", "host-2", "host-3"];
        let price = |a_day: u64| a_day * 1_000_000 / day;
        let offers: Vec<u64> =
            names.iter().zip(ASKED_A_DAY).map(|(name, a_day)| world.provider(name, price(a_day), 4)).collect();
        let term = 30 * world.terms.timers.day;
        let prepay = |index: usize| Usdc::rent_down(price(ASKED_A_DAY[index]), 2 * day).micro();
        world.live(offers[0], term, prepay(0));
        world.operate(calls::rent(offers[1], term, prepay(1))).expect("room for a standby");
        world.make_ready(2).expect("in time");
        world.operate(calls::set_relay(key("relay").address())).expect("the operator names its relay");
        world.act(creator(), calls::refuel()).expect("anybody refuels");
        let purse = world.standing().purse;
        world.operate(calls::spend(2, purse, world.terms.options.purseMax)).expect("fills the purse");

        let friend = key("friend");
        world.mint(friend.address(), 100_000_000);
        let channel = channel_of(&world, &friend);
        let claim = voucher(&channel, &friend, UNCLAIMED_MAX);
        let honest_hosts = names.iter().map(|name| key(name).address()).collect();
        let mut scene = Self {
            world,
            purse,
            friend,
            friends_payments: Vec::new(),
            channel,
            claim,
            honest_hosts,
            stolen: Vec::new(),
            began: 0,
            at_theft: Assets { uusdc: 0, wei: 0 },
            earned_at_theft: 0,
            logs_at_theft: 0,
            claimed_at: u64::MAX,
            answered: true,
            silent_since: 0,
            closed: Vec::new(),
            open_leases: Vec::new(),
        };
        scene.income();
        // What was spent so far counts for a day and an hour, and then no more.
        for _ in 0..26 {
            scene.world.evm.warp(3_600);
            scene.live_an_hour();
        }
        scene
    }

    fn income(&mut self) {
        let payments = (1..=2u64).map(|n| (B256::from(U256::from(n)), FRIEND_PAID / 2)).collect::<Vec<_>>();
        for (nonce, value) in &payments {
            let payment = self.world.payment(&self.friend, *value, *nonce);
            self.world.act(creator(), calls::settle_exact(&payment)).expect("a good payment");
        }
        self.friends_payments = payments;
        let deposit = deposit(&self.world, &self.channel, &self.friend, FRIEND_DEPOSIT);
        self.world.evm.call(creator(), BATCH_SETTLEMENT, deposit, 0).expect("a good deposit");
        self.commit();
    }

    /// The agent has used its gas up, but for a rest.
    pub fn run_short_of_gas(&mut self) {
        self.world.evm.set_wei(self.world.treasury, SHORT_OF_GAS_WEI);
    }

    /// From here on somebody else holds these keys, too.
    pub fn steal(&mut self, stolen: &[PrivateKeySigner]) {
        self.stolen = stolen.iter().map(PrivateKeySigner::address).collect();
        let hosts = std::mem::take(&mut self.honest_hosts);
        self.honest_hosts = hosts.into_iter().filter(|host| !self.stolen.contains(host)).collect();
        // A provider that is a thief serves nobody: its node is gone.
        let standby_host = self.world.lease(2).provider;
        self.answered = !self.stolen.contains(&standby_host);
        self.began = self.world.evm.now();
        (self.silent_since, self.claimed_at) = (self.began, self.began);
        // What the agent had before the theft, stolen keys' gas too.
        let stolen = std::mem::take(&mut self.stolen);
        self.read_leases();
        self.at_theft = self.assets();
        self.stolen = stolen;
        self.earned_at_theft = self.earned_by_the_honest();
        self.logs_at_theft = self.world.evm.logs().len();
    }

    // ---- the honest ----

    /// What the honest do in an hour, as far as they still can. What is refused is left for the next hour.
    pub fn live_an_hour(&mut self) {
        gas_market::quote(&mut self.world);
        let state = self.world.state();
        let operator = state.operator;
        if operator.is_zero() || self.stolen.contains(&operator) || state.stage() != Stage::Alive {
            return;
        }
        let (now, day) = (self.world.evm.now(), u64::from(self.world.terms.timers.day));
        let beat = calls::heartbeat(B256::ZERO, B256::ZERO, self.answered);
        self.world.act(operator, beat).expect("an operator's heartbeat");
        if self.answered {
            self.silent_since = now;
        }
        self.keep_hosts(operator, now);
        if now >= self.claimed_at.saturating_add(DAILY) {
            self.claimed_at = now;
            self.world.act(operator, calls::claim_and_settle(vec![self.claim.clone()])).expect("claims");
            self.commit();
        }
        if now % day < 3_600 {
            self.world.act(operator, calls::refuel()).expect("refuels");
        }
    }

    fn keep_hosts(&mut self, operator: Address, now: u64) {
        let state = self.world.state();
        let (standby, heartbeat) = (state.standbyLease.to::<u64>(), u64::from(self.world.terms.timers.heartbeat_every));
        if standby != 0 && now > self.silent_since + SILENT_HEARTBEATS * heartbeat {
            self.world.act(operator, calls::release(standby)).expect("gives a dead standby up");
            let (offer, day) = (3, u64::from(self.world.terms.timers.day));
            let prepay = Usdc::rent_down(ASKED_A_DAY[2] * 1_000_000 / day, 2 * day).micro();
            self.world.act(operator, calls::rent(offer, 30 * self.world.terms.timers.day, prepay)).expect("rents anew");
            let lease = self.world.last_lease();
            self.world.make_ready(lease).expect("an honest host");
            (self.answered, self.silent_since) = (true, now);
        }
        for lease in [state.activeLease.to::<u64>(), self.world.state().standbyLease.to()] {
            let l = self.world.lease(lease);
            let half = Usdc::rent_down(l.priceE6, DAILY).micro();
            if l.status() == LeaseStatus::Ready && l.escrow - self.world.accrued(lease) < half {
                self.world.act(operator, calls::top_up(lease, half)).ok();
            }
        }
    }

    fn commit(&mut self) {
        let honest: Vec<PrivateKeySigner> =
            self.world.stewards.iter().filter(|s| !self.stolen.contains(&s.address())).cloned().collect();
        let k = usize::from(self.world.terms.threshold);
        if honest.len() >= k {
            let data = self.world.commit(B256::repeat_byte(7), &honest[..k]);
            self.world.operate(data).expect("acknowledged");
        }
    }

    /// Honest stewards evict everybody, then put the agent onto an honest host.
    pub fn evict(&mut self) {
        let approval = self.world.order("evict", U256::ZERO, &self.world.quorum());
        self.world.act(creator(), calls::evict(0, approval)).expect("a quorum evicts");
    }

    /// The quorum's rescue onto the third host, whose node restores the memory and lives on.
    pub fn rescue(&mut self) {
        let day = u64::from(self.world.terms.timers.day);
        // A rescue counts in the day limit. A thief that used it up leaves nothing to prepay: the host trusts the agent
        // until the limit makes room again.
        let prepay = Usdc::rent_down(ASKED_A_DAY[2] * 1_000_000 / day, day).micro().min(self.day_left());
        let (offer, term) = (3, 10 * self.world.terms.timers.day);
        let argument = chain::orders::rescue_argument(offer, term, prepay);
        let approval = self.world.order("rescue", argument, &self.world.quorum());
        self.world.act(creator(), calls::rescue(offer, term, prepay, approval)).expect("a quorum rescues");
        let lease = self.world.last_lease();
        self.world.make_ready(lease).expect("an honest host");
        self.world.act(World::node(lease).address(), calls::takeover()).expect("a rescued node takes over");
        self.commit();
        (self.answered, self.silent_since) = (true, self.world.evm.now());
    }

    // ---- what was lost ----

    /// Seconds since the theft.
    pub fn elapsed(&self) -> u64 {
        self.world.evm.now() - self.began
    }

    /// (micro-USDC, wei) that the agent lost since the theft: what it has less, with what came in and without what the
    /// honest earned. What was paid for gas is lost, and if somebody takes the gas, that is lost, too.
    pub fn loss(&mut self) -> (i128, i128) {
        self.read_leases();
        let now = self.assets();
        let earned = self.earned_by_the_honest() - self.earned_at_theft;
        let uusdc = self.at_theft.uusdc + self.income_since() - earned - now.uusdc;
        (uusdc, self.at_theft.wei + self.bought_since() - now.wei)
    }

    /// After [`Scene::read_leases`].
    fn assets(&self) -> Assets {
        let (world, treasury) = (&self.world, self.world.treasury);
        let state = world.state();
        let owed = LeaseMarket::owedToCall { who: treasury };
        let owed: u128 = world.evm.ask(world.at.market, &owed).expect("a market").saturating_to();
        let unsettled: u128 = world.standing().unsettled.saturating_to();
        let mine = world.usdc(treasury) + world.usdc(self.purse) + owed + unsettled + self.receivable();
        let escrow: u128 = self.leases_read().map(|lease| lease.left).sum();
        // Nobody's account is not the agent's.
        let lost = |account: &Address| account.is_zero() || self.stolen.contains(account);
        let alone = |account: Address| if lost(&account) { 0 } else { world.evm.wei(account) };
        let wei = world.evm.wei(treasury) + [state.operator, state.relay].map(alone).iter().sum::<u128>();
        Assets { uusdc: signed(mine + escrow), wei: signed(wei) }
    }

    fn escrow_left(&self, lease: u64) -> u128 {
        let l = self.world.lease(lease);
        match l.status() {
            LeaseStatus::Requested | LeaseStatus::Ready => l.escrow - self.world.accrued(lease),
            LeaseStatus::None | LeaseStatus::Closed => 0,
        }
    }

    /// Of the friend's voucher, what the channel could still pay.
    fn receivable(&self) -> u128 {
        let id = channel_id(&self.channel);
        let call = BatchSettlement::channelsCall { channelId: id };
        let channel = self.world.evm.ask(BATCH_SETTLEMENT, &call).expect("channels");
        let left = channel.balance - channel.totalClaimed;
        UNCLAIMED_MAX.saturating_sub(channel.totalClaimed).min(left)
    }

    /// What every lease of the agent is worth now. What is closed stays as it is and is read once.
    fn read_leases(&mut self) {
        self.closed.resize(usize::try_from(self.world.last_lease()).expect("few"), None);
        self.open_leases.clear();
        for (id, known) in (1..).zip(&mut self.closed).filter(|(_, known)| known.is_none()) {
            let lease = self.world.lease(id);
            let earned = self.world.accrued(id);
            let is_open = matches!(lease.status(), LeaseStatus::Requested | LeaseStatus::Ready);
            let ours = lease.tenant == self.world.treasury;
            let left = if is_open && ours { lease.escrow - earned } else { 0 };
            let sum = LeaseSum { provider: lease.provider, earned: if ours { earned } else { 0 }, left };
            match is_open {
                true => self.open_leases.push(sum),
                false => *known = Some(sum),
            }
        }
    }

    fn leases_read(&self) -> impl Iterator<Item = &LeaseSum> {
        self.closed.iter().flatten().chain(&self.open_leases)
    }

    /// By honest hosts for hosting, and by honest stewards for their duties. After [`Scene::read_leases`].
    fn earned_by_the_honest(&self) -> i128 {
        let hosted = self.leases_read().filter(|lease| self.honest_hosts.contains(&lease.provider));
        let rent: i128 = hosted.map(|lease| signed(lease.earned)).sum();
        let stewards = self.world.stewards.iter().map(PrivateKeySigner::address);
        let honest = stewards.filter(|steward| !self.stolen.contains(steward));
        rent + honest.map(|steward| signed(self.world.usdc(steward))).sum::<i128>()
    }

    /// What came to the treasury from outside: not from market or purse, which hold its own; and what was claimed in the
    /// channel was counted as receivable before.
    fn income_since(&self) -> i128 {
        let own = [self.world.at.market, self.purse, BATCH_SETTLEMENT];
        let to_us = [self.world.treasury.into_word(), self.purse.into_word()];
        let transfers = self.world.evm.logs()[self.logs_at_theft..].iter().filter_map(|(_, log)| {
            let topics = log.topics();
            let ours = log.address == self.world.at.usdc && topics.len() == 3 && to_us.contains(&topics[2]);
            ours.then(|| TestUSDC::Transfer::decode_log(log).ok()).flatten()
        });
        let from_outside = transfers.filter(|t| !own.contains(&t.from) && t.from != self.world.treasury);
        from_outside.map(|t| signed(t.value.saturating_to())).sum()
    }

    /// Wei bought by `buyGas`.
    fn bought_since(&self) -> i128 {
        let logs = self.world.evm.logs()[self.logs_at_theft..].iter();
        let bought = logs.filter(|(_, log)| log.address == self.world.treasury);
        let bought = bought.filter_map(|(_, log)| Treasury::GasBought::decode_log(log).ok());
        bought.map(|bought| signed(bought.amountWei.saturating_to())).sum()
    }

    // ---- for the thief ----

    /// Leases that a thief would name: ours, its own, and one that is not there.
    pub fn leases(&self) -> Vec<u64> {
        let state = self.world.state();
        let mut leases: Vec<u64> = vec![state.activeLease.to(), state.standbyLease.to(), state.drainingLease.to()];
        leases.extend([self.world.last_lease(), 1, 2, 1 << 40]);
        leases.sort();
        leases.dedup();
        leases
    }

    /// Micro-USDC that the day limit leaves.
    pub fn day_left(&self) -> u128 {
        self.policy().dayLimit.saturating_sub(self.world.state().spentInDay)
    }

    /// The policy as it stands: `loosen` and `tighten` change it.
    pub fn policy(&self) -> chain::bindings::Policy {
        let birth = self.world.evm.ask(self.world.treasury, &Treasury::birthOfCall {}).expect("a treasury");
        birth.policy
    }

    /// What the price cap lets the operator prepay.
    pub fn prepay_max(&self) -> u128 {
        let policy = self.policy();
        Usdc::rent_up(policy.priceE6Max, policy.prepayMax.into()).micro()
    }

    /// What may be added to a lease's escrow.
    pub fn top_up_max(&self, lease: u64) -> u128 {
        let l = self.world.lease(lease);
        let most = Usdc::rent_up(l.priceE6, self.world.terms.policy.prepayMax.into()).micro();
        let whole = Usdc::rent_up(l.priceE6, l.term.into()).micro();
        most.saturating_sub(self.escrow_left(lease)).min(whole.saturating_sub(l.escrow))
    }

    /// What can still go back of a payment, within `left`.
    pub fn refundable(&self, payer: Address, nonce: B256, left: u128) -> u128 {
        let call = Treasury::recordedCall { payer, nonce };
        let recorded = self.world.evm.ask(self.world.treasury, &call).expect("a treasury");
        (recorded.amount - recorded.refunded).saturating_to::<u128>().min(left).max(1)
    }

    /// What the friend's channel holds and was not claimed.
    pub fn channel_free(&self) -> u128 {
        let call = BatchSettlement::channelsCall { channelId: channel_id(&self.channel) };
        let channel = self.world.evm.ask(BATCH_SETTLEMENT, &call).expect("channels");
        channel.balance - channel.totalClaimed
    }

    /// Everything the thief has besides what it stole: money, two staked provider accounts with an offer each at the
    /// price cap, and gas to relay with.
    pub fn equip(&mut self, thief: &mut Thief) {
        let cap = self.world.terms.policy.priceE6Max;
        for host in &thief.hosts {
            let who = host.address();
            self.world.mint(who, 2 * STAKE);
            self.world.approve_market(who, u128::MAX);
            self.world.evm.call(who, self.world.at.market, chain::market::calls::register(STAKE), 0).expect("staked");
            thief.offers.push(self.world.post(who, cap, 1_000));
        }
        self.world.mint(thief.account.address(), 100_000_000);
        self.world.approve_market(thief.account.address(), u128::MAX);
        self.world.evm.set_wei(thief.account.address(), u128::MAX / 4);
    }
}

fn signed(amount: u128) -> i128 {
    i128::try_from(amount).expect("fits")
}

// ---- channels ----

fn channel_of(world: &World, payer: &PrivateKeySigner) -> ChannelConfig {
    channel_between(world, payer.address(), world.treasury)
}

/// A channel of the treasury's token whose receiver may be anybody; the receiver is the authorizer, too.
pub fn channel_between(world: &World, payer: Address, receiver: Address) -> ChannelConfig {
    ChannelConfig {
        payer,
        payerAuthorizer: payer,
        receiver,
        receiverAuthorizer: receiver,
        token: world.at.usdc,
        withdrawDelay: alloy::primitives::aliases::U40::from(world.terms.options.withdrawDelay),
        salt: B256::ZERO,
    }
}

pub fn of_pay(config: &ChannelConfig) -> PayConfig {
    PayConfig {
        payer: config.payer.into_array(),
        payer_authorizer: config.payerAuthorizer.into_array(),
        receiver: config.receiver.into_array(),
        receiver_authorizer: config.receiverAuthorizer.into_array(),
        token: config.token.into_array(),
        withdraw_delay_secs: config.withdrawDelay.to(),
        salt: config.salt.0,
    }
}

fn channels() -> ChannelDomain {
    ChannelDomain::new(chain::anvil::DEV_CHAIN_ID)
}

pub fn channel_id(config: &ChannelConfig) -> B256 {
    channels().channel_id(&of_pay(config)).0.into()
}

/// A claim of `max` by a voucher that `signer` signs.
pub fn voucher(config: &ChannelConfig, signer: &PrivateKeySigner, max: u128) -> VoucherClaim {
    let id = ChannelId(channel_id(config).0);
    let held = client::sign_voucher(signer, &channels(), &id, Usdc(max)).expect("a key in memory");
    VoucherClaim {
        voucher: Voucher { channel: config.clone(), maxClaimableAmount: max },
        signature: Bytes::copy_from_slice(&held.signature),
        totalClaimed: max,
    }
}

/// Puts money of `config.payer` into a channel by EIP-3009, with a signature of `signer`.
pub fn deposit(world: &World, config: &ChannelConfig, signer: &PrivateKeySigner, amount: u128) -> Vec<u8> {
    let (id, salt, window) = (ChannelId(channel_id(config).0), [0; 32], (0, u64::MAX));
    let digest =
        channels().deposit_digest(&world.token_domain(), &id, config.payer.into_array(), Usdc(amount), window, &salt);
    let method = DepositMethod::Eip3009 {
        valid_after: window.0,
        valid_before: window.1,
        salt,
        signature: sign(signer, digest).to_vec(),
    };
    let deposit = Deposit { amount: Usdc(amount), method, is_signed_by_key: true };
    facilitator::deposit_call(&of_pay(config), &deposit)
}

/// The signature that the purse takes: the transfer itself and the operator's signature over it.
pub fn purse_signature(to: Address, value: u128, nonce: B256, signature: Bytes) -> Bytes {
    (to, U256::from(value), U256::ZERO, U256::MAX, nonce, signature).abi_encode_params().into()
}
