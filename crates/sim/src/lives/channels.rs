//! Calls that are paid from channels: what a node does about them, wired as a node wires it, and customers who deposit,
//! sign vouchers, ask for what is left, or leave without a word and try to take more than is theirs.

use super::chain::Chain;
use super::life::whole_answer;
use super::node::{Answer, Node};
use crate::world::{World, key};
use alloy::primitives::{Address, B256, Bytes, aliases::U40, keccak256};
use alloy::signers::local::PrivateKeySigner;
use chain::Stage;
use chain::anvil::DEV_CHAIN_ID;
use chain::bindings::{ChannelConfig as OnChain, Voucher, VoucherClaim};
use chain::outbox;
use chain::treasury::calls;
use pay::book::AbortWhy;
use pay::book::channels::{
    AskedDeposit, CallReservation, ChannelAsk, ChannelDecision, ChannelInput, ClaimPolicy, RefundAsk,
};
use pay::scheme::channel::{
    BATCH_SETTLEMENT, ChannelConfig, ChannelDomain, ChannelId, ChannelState, ClaimRow, Deposit, DepositMethod,
    HeldVoucher, facilitator,
};
use pay::{BookInput, Usdc};

/// As a node's, in proportion to what a call costs here.
const UNCLAIMED_CHANNEL_MAX: Usdc = Usdc(250_000);
const UNCLAIMED_ALL_MAX: Usdc = Usdc(500_000);
const ROW_MIN: Usdc = Usdc(1_000);
/// Calls that a deposit pays for.
const DEPOSIT_CALLS: u128 = 12;

/// As `payments.final_blocks` of a manifest, where nothing else is said.
const FINAL_BLOCKS: u64 = 10;

/// How an errand's transaction ended.
#[derive(Clone, Copy, Debug)]
pub struct Ended {
    pub carried_out: bool,
    /// From this block on what the chain shows is its end.
    pub shown_from: u64,
}

impl Ended {
    /// `head`: the newest block that was seen. What was refused in a block may be carried out when that block is taken back.
    pub fn of(outcome: &outbox::Outcome, head: u64) -> Self {
        let (carried_out, shown_from) = match outcome {
            outbox::Outcome::Done { block, .. } => (true, *block),
            outbox::Outcome::Reverted { block, .. } => (false, block + FINAL_BLOCKS),
            outbox::Outcome::Unknown { .. } => (false, head + FINAL_BLOCKS),
            outbox::Outcome::WouldRevert { .. } | outbox::Outcome::NeverSent { .. } => (false, 0),
        };
        Self { carried_out, shown_from }
    }
}

/// What is on its way to the chain for channels. As in a node, only its process knows: after a crash the chain is asked.
#[derive(Clone, Debug)]
pub enum Errand {
    Claim(Vec<ClaimRow>),
    /// What is charged is claimed before the rest goes back.
    ClaimFirst(ChannelId),
    Refund(ChannelId),
}

/// What the chain, so many blocks ago, says of a channel.
pub fn read(chain: &Chain, id: &ChannelId, lag: usize) -> ChannelState {
    let sight = chain.seen(lag);
    let ask = |data: Vec<u8>| sight.world.evm.view(BATCH_SETTLEMENT, data).expect("a channel contract").to_vec();
    facilitator::read_state(&facilitator::state_calls(id).map(ask), sight.head.number).expect("its words")
}

impl Node {
    fn channel(&mut self, chain: &Chain, input: ChannelInput) {
        let tasks = self.pay(chain.now(), BookInput::Channel(input));
        self.submit_all(tasks, chain);
    }

    fn sees(&mut self, chain: &Chain, id: ChannelId, lag: usize) -> ChannelState {
        let state = read(chain, &id, lag);
        let config = self.book.channels().channel(&id).map(|channel| channel.config.clone());
        if let Some(config) = config {
            self.channel(chain, ChannelInput::Seen { channel: id, config, state: state.clone(), at: chain.now() });
        }
        state
    }

    /// After each look: deposits that came in, refunds and claims that are due, payers that leave.
    pub fn tend_channels(&mut self, chain: &Chain, lag: usize) {
        if self.falls_back(chain, lag) {
            return;
        }
        for (errand, ended) in std::mem::take(&mut self.unread) {
            self.errand_over(errand, ended, chain, lag);
        }
        let open: Vec<(ChannelId, Usdc, B256)> = self
            .book
            .channels()
            .deposits()
            .map(|(id, channel, open)| {
                (*id, channel.chain.balance.saturating_add(open.deposit.amount), open.key.into())
            })
            .collect();
        for (channel, expected, key) in open {
            // Whoever sent it, the balance decides.
            if read(chain, &channel, lag).balance >= expected {
                self.sees(chain, channel, lag);
                self.channel(chain, ChannelInput::DepositDone { channel, key: key.0 });
            }
        }
        if chain.state.operator != self.key || chain.state.restoring {
            return;
        }
        // What an earlier process had on its way may have them among it, and a second one would take out more than was asked:
        // also where a branch takes back what was mined of it, for the outbox sends the same again.
        let (left, block) = &self.left_over;
        let head = chain.seen(lag).head.number;
        let is_final = *block == 0 || head >= *block + FINAL_BLOCKS;
        let is_known = |id: &ChannelId, before: u64| {
            left.is_empty() && (is_final || head >= *block && read(chain, id, lag).refund_nonce > before)
        };
        let refunds = self.book.channels().refunds().filter(|(id, _, refund)| is_known(id, refund.nonce));
        let refunds: Vec<ChannelId> = refunds.map(|(id, ..)| *id).collect();
        for channel in refunds.into_iter().filter(|id| !self.refunding.contains(id)).collect::<Vec<_>>() {
            self.refund(chain, channel, lag);
        }
        let channels = self.book.channels().channels().filter(|(_, channel)| channel.is_to_be_watched());
        for (channel, is_in_doubt) in channels.map(|(id, channel)| (*id, channel.is_in_doubt)).collect::<Vec<_>>() {
            if is_in_doubt || read(chain, &channel, lag).withdrawal.is_some() {
                self.sees(chain, channel, lag);
            }
        }
        self.claim_due(chain);
        if chain.state.stage() == Stage::WindingDown && !chain.state.paused {
            self.send_home(chain);
        }
    }

    /// As a node does in the wind-down; what fails is tried again with the next look.
    fn send_home(&mut self, chain: &Chain) {
        if let Some((channel, amount)) = self.book.channels().due_refund(|_| false) {
            self.channel(chain, ChannelInput::RefundAsked { channel, amount, at: chain.now() });
        }
    }

    fn claim_due(&mut self, chain: &Chain) {
        let now = chain.now();
        let channels = self.book.channels();
        if channels.totals().unclaimed.is_zero() || channels.open_claims().next().is_some() {
            return;
        }
        let ends = self.call_price().is_none();
        let bound = |sum| if ends { Usdc::ZERO } else { sum };
        let policy = ClaimPolicy {
            channel_max: bound(UNCLAIMED_CHANNEL_MAX),
            all_max: bound(UNCLAIMED_ALL_MAX),
            row_min: if ends { Usdc(1) } else { ROW_MIN },
            rows_max: 50,
        };
        for batch in channels.due_claims(&policy, now) {
            let rows = batch.iter().map(|row| (row.channel, row.total)).collect();
            self.channel(chain, ChannelInput::ClaimSent { rows });
            let data = calls::claim_and_settle(batch.iter().map(row_on_chain).collect());
            self.send_errand(Errand::Claim(batch), data);
        }
    }

    fn refund(&mut self, chain: &Chain, channel: ChannelId, lag: usize) {
        let channels = self.book.channels();
        let Some((config, refund)) = channels.channel(&channel).and_then(|c| Some((c.config.clone(), c.refund?)))
        else {
            return;
        };
        let claim = channels.claim_before_refund(&channel);
        // A process before this one may have sent it.
        if read(chain, &channel, lag).refund_nonce > refund.nonce {
            return self.end_refund(chain, channel, lag);
        }
        if self.is_left_to_its_transaction(&channel, refund.nonce, chain.seen(lag).head.number) {
            return;
        }
        self.refunding.insert(channel);
        match claim {
            Some(row) => {
                self.send_errand(Errand::ClaimFirst(channel), calls::claim_and_settle(vec![row_on_chain(&row)]))
            }
            None => self.send_refund(channel, &config, refund.amount),
        }
    }

    fn send_refund(&mut self, channel: ChannelId, config: &ChannelConfig, amount: Usdc) {
        let data = calls::refund_channel(config_on_chain(config), amount.micro());
        self.send_errand(Errand::Refund(channel), data);
    }

    /// A refund was carried out, and its block is gone: the outbox sends the same transaction again.
    fn is_left_to_its_transaction(&mut self, channel: &ChannelId, nonce: u64, head: u64) -> bool {
        let Some((_, missed)) = self.refunded.get_mut(channel).filter(|(before, _)| *before >= nonce) else {
            return false;
        };
        head < *missed.get_or_insert(head) + FINAL_BLOCKS
    }

    fn end_refund(&mut self, chain: &Chain, channel: ChannelId, lag: usize) {
        self.refunding.remove(&channel);
        let known = self.book.channels().channel(&channel).and_then(|known| known.refund);
        if let Some(refund) = known.filter(|refund| read(chain, &channel, lag).refund_nonce > refund.nonce) {
            self.refunded.insert(channel, (refund.nonce, None));
        }
        self.sees(chain, channel, lag);
        self.channel(chain, ChannelInput::RefundEnded { channel });
    }

    /// What became of it. An endpoint that lags shows the channel as it was before: it is looked at later. A refund that was
    /// refused is no end before its block stands: its transaction would be mined in another one's place.
    pub fn errand_over(&mut self, errand: Errand, ended: Ended, chain: &Chain, lag: usize) {
        let shown_from = match errand {
            Errand::Refund(_) => ended.shown_from,
            Errand::Claim(_) | Errand::ClaimFirst(_) if ended.carried_out => ended.shown_from,
            Errand::Claim(_) | Errand::ClaimFirst(_) => 0,
        };
        if self.falls_back(chain, lag) || chain.seen(lag).head.number < shown_from {
            return self.unread.push((errand, ended));
        }
        let carried_out = ended.carried_out;
        match errand {
            Errand::Claim(rows) => {
                let (mut done, mut failed) = (Vec::new(), Vec::new());
                for row in rows {
                    let claimed = self.sees(chain, row.channel, lag).claimed;
                    // Only a claim that was carried out says something about its rows.
                    if claimed >= row.total || !carried_out { done.push(row.channel) } else { failed.push(row.channel) }
                }
                self.claims_end(chain, done, failed);
            }
            Errand::ClaimFirst(channel) => {
                let known = self.book.channels().channel(&channel);
                match known.and_then(|c| Some((c.config.clone(), c.refund?.amount))).filter(|_| carried_out) {
                    Some((config, amount)) => self.send_refund(channel, &config, amount),
                    None => self.end_refund(chain, channel, lag),
                }
            }
            Errand::Refund(channel) => self.end_refund(chain, channel, lag),
        }
    }

    fn claims_end(&mut self, chain: &Chain, done: Vec<ChannelId>, failed: Vec<ChannelId>) {
        if !done.is_empty() {
            self.channel(chain, ChannelInput::ClaimDone { rows: done });
        }
        if !failed.is_empty() {
            self.channel(chain, ChannelInput::ClaimFailed { rows: failed });
        }
    }

    /// After a start: what was on its way is asked about; deposits and refunds are tended as ever.
    pub fn resume_channels(&mut self, chain: &Chain) {
        self.errands.clear();
        self.unread.clear();
        self.refunding.clear();
        self.refunded.clear();
        self.left_over = (self.outbox.unsettled().collect(), self.outbox.newest_mined());
        let open: Vec<ChannelId> = self.book.channels().open_claims().map(|(id, _)| *id).collect();
        for channel in open {
            self.sees(chain, channel, 0);
            self.claims_end(chain, vec![channel], Vec::new());
        }
    }

    fn send_errand(&mut self, errand: Errand, data: Bytes) {
        let id = self.fresh_id();
        self.errands.insert(id, errand);
        let request = outbox::Request { to: Some(self.treasury()), data, value: 0, gas: None };
        self.put(id, request);
    }

    /// Deposits on their way, for the relay.
    pub fn deposits(&self) -> Vec<Bytes> {
        let open = self.book.channels().deposits();
        open.map(|(_, channel, open)| facilitator::deposit_call(&channel.config, &open.deposit).into()).collect()
    }
}

/// A customer with a channel.
#[derive(Clone, Debug)]
pub struct Payer {
    signer: PrivateKeySigner,
    config: ChannelConfig,
    pub id: ChannelId,
    /// What it was told that it was charged in all.
    believed: u128,
    /// Its largest voucher that left its hands, and what it got for them.
    pub signed: u128,
    pub delivered: u128,
    deposits: u64,
    /// Until it is in.
    pending: Option<Deposit>,
    /// It takes its money out by itself since then.
    pub leaving_since: Option<u64>,
}

impl Payer {
    pub fn new(n: u64, world: &World) -> Self {
        let signer = key(&format!("payer-{n}"));
        let treasury = world.treasury.into_array();
        let config = ChannelConfig {
            payer: signer.address().into_array(),
            payer_authorizer: signer.address().into_array(),
            receiver: treasury,
            receiver_authorizer: treasury,
            token: world.at.usdc.into_array(),
            withdraw_delay_secs: world.terms.options.withdrawDelay.into(),
            salt: [0; 32],
        };
        let id = ChannelDomain::new(DEV_CHAIN_ID).channel_id(&config);
        Self {
            signer,
            config,
            id,
            believed: 0,
            signed: 0,
            delivered: 0,
            deposits: 0,
            pending: None,
            leaving_since: None,
        }
    }

    pub fn address(&self) -> Address {
        self.signer.address()
    }

    /// Asks for one call at `price`. Returns whether it was served.
    pub fn asks(&mut self, node: &mut Node, chain: &Chain, price: Usdc, engine_fails: bool) -> bool {
        let now = chain.now();
        let domain = ChannelDomain::new(DEV_CHAIN_ID);
        let max = self.believed + price.micro();
        let state = read(chain, &self.id, 0);
        if max <= state.balance.micro() {
            self.pending = None;
        } else if self.pending.is_none() {
            self.deposits += 1;
            let amount = Usdc(price.micro() * DEPOSIT_CALLS);
            let (salt, validity) = (keccak256(self.deposits.to_be_bytes()).0, (0, u64::MAX));
            let token = chain.world.token_domain();
            let digest = domain.deposit_digest(&token, &self.id, self.config.payer, amount, validity, &salt);
            let signature = chain.world.sign(&self.signer, digest).to_vec();
            let method = DepositMethod::Eip3009 { valid_after: 0, valid_before: u64::MAX, salt, signature };
            self.pending = Some(Deposit { amount, method, is_signed_by_key: true });
        }
        let deposit = self.pending.clone();
        self.signed = self.signed.max(max);
        let ask = ChannelAsk {
            channel: self.id,
            max: Usdc(max),
            ceiling: price,
            deposit: deposit.as_ref().map(|d| AskedDeposit { key: d.key(&self.id), amount: d.amount }),
            route: "POST /v1/chat/completions".to_owned(),
            body_digest: keccak256([now.to_be_bytes(), node.lsn().to_be_bytes()].concat()).0,
            fresh: true,
        };
        let channels = node.book.channels();
        let decision = match channels.decide(&ask, now) {
            ChannelDecision::Look => {
                let decision = channels.decide_seen(&ask, &self.config, &state, now);
                if matches!(decision, ChannelDecision::New { .. } | ChannelDecision::Deposit) {
                    let config = self.config.clone();
                    node.channel(chain, ChannelInput::Seen { channel: self.id, config, state, at: now });
                }
                decision
            }
            decision => decision,
        };
        match (decision, deposit) {
            (ChannelDecision::New { request }, _) => {
                let signature = chain.world.sign(&self.signer, domain.voucher_digest(&self.id, Usdc(max)));
                let signature = <[u8; 65]>::try_from(signature.as_ref()).expect("r, s, v");
                let reservation = CallReservation {
                    request,
                    channel: self.id,
                    voucher: HeldVoucher { max: Usdc(max), signature },
                    accepted: price,
                    ceiling: price,
                    route: ask.route,
                    body_digest: ask.body_digest,
                    identifier: None,
                    prompt_tokens: 200,
                    max_tokens: 100,
                    run: String::new(),
                    at: now,
                };
                node.channel(chain, ChannelInput::Reserved(reservation));
                if !node.syncs() {
                    return false;
                }
                if engine_fails {
                    node.channel(chain, ChannelInput::Aborted { request, why: AbortWhy::Engine });
                    return false;
                }
                let delivery = whole_answer(now);
                node.channel(chain, ChannelInput::Charged { request, amount: price, delivery });
                node.answers(Answer::Channel { channel: self.id, price: price.micro(), total: max });
                true
            }
            (ChannelDecision::Deposit, Some(deposit)) => {
                node.channel(chain, ChannelInput::DepositAsked { channel: self.id, deposit, at: now });
                false
            }
            (ChannelDecision::Corrective(_), _) => {
                // It believes a seller that says less, and more only up to what it signed.
                let charged = node.book.channels().channel(&self.id).map_or(0, |channel| channel.charged.micro());
                self.believed = charged.min(self.signed);
                false
            }
            _ => false,
        }
    }

    /// An answer came, with what it was charged in all.
    pub fn hears(&mut self, price: u128, total: u128) {
        self.believed = self.believed.max(total);
        self.delivered += price;
    }

    /// Wants back what is not charged.
    pub fn asks_back(&self, node: &mut Node, chain: &Chain) {
        let (channel, now) = (self.id, chain.now());
        if node.book.channels().channel(&channel).is_none() {
            return;
        }
        node.sees(chain, channel, 0);
        if let Ok(amount) = node.book.channels().decide_refund(&RefundAsk { channel, amount: None }) {
            node.channel(chain, ChannelInput::RefundAsked { channel, amount, at: now });
        }
    }

    /// Its way out without the agent: all that is not claimed, the part that it owes included.
    pub fn leaves(&mut self, chain: &Chain) -> Option<Bytes> {
        let state = read(chain, &self.id, 0);
        let amount = state.balance.saturating_sub(state.claimed);
        if amount.is_zero() || state.withdrawal.is_some() {
            return None;
        }
        self.leaving_since = Some(chain.now());
        Some(facilitator::initiate_withdraw_call(&self.config, amount).into())
    }

    /// When its delay is over.
    pub fn takes_out(&mut self, now: u64) -> Option<Bytes> {
        let since = self.leaving_since.filter(|since| now > since + self.config.withdraw_delay_secs)?;
        // A block may be taken back: it is sent again later.
        self.leaving_since = Some(since + 3_600);
        Some(facilitator::finalize_withdraw_call(&self.config).into())
    }

    pub fn delay_secs(&self) -> u64 {
        self.config.withdraw_delay_secs
    }
}

fn row_on_chain(row: &ClaimRow) -> VoucherClaim {
    VoucherClaim {
        voucher: Voucher { channel: config_on_chain(&row.config), maxClaimableAmount: row.voucher.max.micro() },
        signature: Bytes::copy_from_slice(&row.voucher.signature),
        totalClaimed: row.total.micro(),
    }
}

fn config_on_chain(config: &ChannelConfig) -> OnChain {
    OnChain {
        payer: Address::from(config.payer),
        payerAuthorizer: Address::from(config.payer_authorizer),
        receiver: Address::from(config.receiver),
        receiverAuthorizer: Address::from(config.receiver_authorizer),
        token: Address::from(config.token),
        withdrawDelay: U40::wrapping_from(config.withdraw_delay_secs),
        salt: B256::from(config.salt),
    }
}
