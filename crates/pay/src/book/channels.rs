//! The book's channels: who deposited how much, what was charged against which voucher, what was claimed.
//!
//! A channel has two sides that move independently: what the *chain* says (balance, claimed, a withdrawal under way)
//! and what was *served* (charged, reserved). A call reserves its ceiling under a voucher, and when it ends its charge
//! takes the reservation's place. Claims carry what was charged.
//!
//! **Invariant:** claimed ≤ charged ≤ charged + reserved ≤ the newest voucher, on each channel.
//! **Invariant:** a charge is never above its reservation, a voucher never lowers what is owed.
//! **Invariant:** nothing is sent from here; what should be sent is asked for ([`Channels::due_claims`],
//! [`Channels::deposits`], [`Channels::refunds`]) and recorded when it is on its way.
//! **Invariant:** one bad row never spoils a batch: rows of a failed batch are claimed each alone, and a row that
//! fails alone waits for a newer voucher.

mod input;
mod state;

pub use input::{AskedDeposit, CallReservation, ChannelAsk, ChannelDecision, ChannelInput, ChannelOutput, RefundAsk};
pub use state::{Call, CallService, Channel, ChannelTotals, ChargedDelivery, OpenClaim, OpenDeposit, OpenRefund, Told};

use super::{AbortWhy, Delivery, Finish, LimitReached, RequestId};
use crate::scheme::channel::{ChannelConfig, ChannelId, ChannelState, ClaimRow};
use crate::scheme::exact::Hash;
use crate::{Reason, Usdc};
use borsh::{BorshDeserialize, BorshSerialize};
use std::collections::{BTreeMap, BTreeSet};

/// Bounds of the channels. Part of their state, so that a replay decides as the first run did.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct ChannelLimits {
    /// Channels kept. Each has a deposit of at least `deposit_min` on chain, so filling this costs money.
    pub channels_max: u32,
    /// Least first deposit: makes dust channels cost more than a claim's gas share.
    pub deposit_min: Usdc,
    /// Requests being served on one channel, on all channels of one payer (opening more of them buys no more room),
    /// and on all together.
    pub open_per_channel_max: u32,
    pub open_per_payer_max: u32,
    pub open_max: u32,
    /// Requests kept, all channels together.
    pub calls_max: u32,
    /// How long an answer can be replayed, in chain seconds.
    pub replay_secs: u64,
}

impl Default for ChannelLimits {
    /// Guesses, unmeasured.
    fn default() -> Self {
        Self {
            channels_max: 100_000,
            deposit_min: Usdc(10_000),
            open_per_channel_max: 64,
            open_per_payer_max: 256,
            open_max: 4_096,
            calls_max: 100_000,
            replay_secs: 86_400,
        }
    }
}

/// When to claim. A value of the caller's, not of the state: it may change with the price of gas.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClaimPolicy {
    /// Most that may stay unclaimed on one channel.
    pub channel_max: Usdc,
    /// Most that may stay unclaimed in all.
    pub all_max: Usdc,
    /// Below this a claim is not worth its gas, unless the payer is leaving.
    pub row_min: Usdc,
    /// Rows in one transaction.
    pub rows_max: u32,
}

/// See the module's documentation.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Channels {
    limits: ChannelLimits,
    channels: BTreeMap<ChannelId, Channel>,
    /// Boxed: a call is 400 bytes, and a tree moves half a node of them for each new one.
    calls: BTreeMap<RequestId, Box<Call>>,
    /// Latest request of a channel with this route and body.
    by_body: BTreeMap<(ChannelId, Hash), RequestId>,
    /// Calls being served, by payer and in all.
    open_by_payer: BTreeMap<[u8; 20], u32>,
    open: u32,
    totals: ChannelTotals,
    /// Latest time seen in an input.
    clock: u64,
}

impl Channels {
    pub fn new(limits: ChannelLimits) -> Self {
        Self {
            limits,
            channels: BTreeMap::new(),
            calls: BTreeMap::new(),
            by_body: BTreeMap::new(),
            open_by_payer: BTreeMap::new(),
            open: 0,
            totals: ChannelTotals::default(),
            clock: 0,
        }
    }

    pub fn limits(&self) -> &ChannelLimits {
        &self.limits
    }

    pub fn channel(&self, id: &ChannelId) -> Option<&Channel> {
        self.channels.get(id)
    }

    pub fn channels(&self) -> impl Iterator<Item = (&ChannelId, &Channel)> {
        self.channels.iter()
    }

    pub fn call(&self, request: &RequestId) -> Option<&Call> {
        self.calls.get(request).map(Box::as_ref)
    }

    pub fn calls(&self) -> impl Iterator<Item = (&RequestId, &Call)> {
        self.calls.iter().map(|(request, call)| (request, call.as_ref()))
    }

    pub fn totals(&self) -> ChannelTotals {
        self.totals
    }

    /// What to do with a verified payment, before anything is reserved. Changes nothing.
    pub fn decide(&self, ask: &ChannelAsk, now: u64) -> ChannelDecision {
        match self.channels.get(&ask.channel) {
            Some(channel) => self.decide_on(channel, ask, now),
            None if self.is_full() => ChannelDecision::Limited(LimitReached::Kept),
            None => ChannelDecision::Look,
        }
    }

    /// [`decide`](Self::decide) after a `Look`, with what the chain said. Record `Seen` only when this says `Deposit`
    /// or `New`: a stranger's voucher on an empty channel leaves no trace.
    pub fn decide_seen(
        &self,
        ask: &ChannelAsk,
        config: &ChannelConfig,
        state: &ChannelState,
        now: u64,
    ) -> ChannelDecision {
        if self.channels.contains_key(&ask.channel) || self.is_full() {
            return self.decide(ask, now);
        }
        let mut channel = Channel::new(config.clone());
        channel.see(state.clone(), now);
        self.decide_on(&channel, ask, now)
    }

    fn is_full(&self) -> bool {
        self.channels.len() >= usize::try_from(self.limits.channels_max).unwrap_or(usize::MAX)
    }

    fn decide_on(&self, channel: &Channel, ask: &ChannelAsk, now: u64) -> ChannelDecision {
        let needed = channel.charged.saturating_add(channel.reserved).saturating_add(ask.ceiling);
        let body_key = ask.body_key();
        if let Some(decision) = self.known(ask, body_key, ask.max >= needed, now) {
            return decision;
        }
        if ask.max < needed {
            let fits_when_idle = ask.max >= channel.charged.saturating_add(ask.ceiling);
            return if fits_when_idle {
                ChannelDecision::Refused(Reason::ChannelBusy)
            } else if ask.max <= channel.chain.claimed {
                ChannelDecision::Corrective(Reason::CumulativeBelowClaimed)
            } else {
                ChannelDecision::Corrective(Reason::CumulativeMismatch)
            };
        }
        if channel.refund.is_some() {
            return ChannelDecision::Refused(Reason::ChannelBusy);
        }
        if let Some(limit) = self.limit_reached(channel) {
            return ChannelDecision::Limited(limit);
        }
        // A deposit that is in already is no reason to refuse what it pays for.
        let deposit = ask.deposit.filter(|deposit| !channel.landed.contains(&deposit.key));
        if let Some(open) = &channel.deposit {
            let same = deposit.is_some_and(|deposit| deposit.key == open.key);
            return if same { ChannelDecision::Depositing } else { ChannelDecision::Refused(Reason::ChannelBusy) };
        }
        // Clients deposit when their voucher needs it: one that deposits without need does not know its balance.
        if deposit.is_some() && ask.max <= channel.available() {
            return ChannelDecision::Corrective(Reason::CumulativeMismatch);
        }
        let coming = deposit.map_or(Usdc::ZERO, |deposit| deposit.amount);
        if ask.max > channel.available().saturating_add(coming) {
            return if channel.chain.balance.is_zero() && coming.is_zero() {
                ChannelDecision::Refused(Reason::ChannelNotFound)
            } else {
                ChannelDecision::Refused(Reason::CumulativeExceedsBalance)
            };
        }
        if !coming.is_zero() {
            if channel.chain.balance.saturating_add(coming) < self.limits.deposit_min {
                return ChannelDecision::Refused(Reason::DepositBelowMin);
            }
            return ChannelDecision::Deposit;
        }
        // What was charged and served before is part of the id, so that none comes twice, even when the first call under
        // the same voucher is forgotten.
        let before = (channel.charged, channel.served);
        ChannelDecision::New { request: RequestId::of_voucher(&ask.channel, ask.max, &body_key, before) }
    }

    /// Whether this very request was served before, under this voucher or another one.
    ///
    /// A voucher that has room for one more call (streams leave it some, see [`Channel::told`]) pays for the same
    /// question again once its answer has arrived; without room, or with an answer that may not have arrived, the
    /// question is the old one.
    fn known(&self, ask: &ChannelAsk, body_key: Hash, has_room: bool, now: u64) -> Option<ChannelDecision> {
        if ask.fresh {
            return None;
        }
        let request = *self.by_body.get(&(ask.channel, body_key))?;
        let call = &self.calls[&request];
        let is_same_voucher = call.reservation.voucher.max == ask.max;
        match &call.service {
            CallService::Serving { .. } => Some(ChannelDecision::InFlight { request }),
            CallService::Delivered(delivery) => {
                let is_recent = now.saturating_sub(delivery.at) <= self.limits.replay_secs;
                let is_same_question =
                    if delivery.confirmed { is_same_voucher && !has_room } else { is_same_voucher || is_recent };
                is_same_question.then_some(ChannelDecision::Replay { request })
            }
            CallService::Aborted { .. } => None,
        }
    }

    fn limit_reached(&self, channel: &Channel) -> Option<LimitReached> {
        let of_payer = self.open_by_payer.get(&channel.config.payer).copied().unwrap_or(0);
        if self.open >= self.limits.open_max {
            Some(LimitReached::Open)
        } else if channel.open >= self.limits.open_per_channel_max || of_payer >= self.limits.open_per_payer_max {
            Some(LimitReached::OpenPerPayer)
        } else if self.calls.len() >= usize::try_from(self.limits.calls_max).unwrap_or(usize::MAX) {
            Some(LimitReached::Kept)
        } else {
            None
        }
    }

    /// What can be given back on the payer's request: all that is not charged, or `amount` of it.
    pub fn decide_refund(&self, ask: &RefundAsk) -> Result<Usdc, Reason> {
        let Some(channel) = self.channels.get(&ask.channel) else { return Err(Reason::ChannelNotFound) };
        if channel.open > 0 || channel.deposit.is_some() || channel.refund.is_some() {
            return Err(Reason::ChannelBusy);
        }
        let free = channel.chain.balance.saturating_sub(channel.charged);
        match ask.amount {
            _ if free.is_zero() => Err(Reason::RefundNoBalance),
            None => Ok(free),
            Some(amount) if amount.is_zero() || amount > free => Err(Reason::RefundAmountInvalid),
            Some(amount) => Ok(amount),
        }
    }

    /// Deposits to send, to ask about or to send again after a restart.
    pub fn deposits(&self) -> impl Iterator<Item = (&ChannelId, &Channel, &OpenDeposit)> {
        self.channels.iter().filter_map(|(id, channel)| Some((id, channel, channel.deposit.as_ref()?)))
    }

    /// Refunds to send, to ask about or to send again: what is charged is claimed first, in the same transaction.
    pub fn refunds(&self) -> impl Iterator<Item = (&ChannelId, &Channel, &OpenRefund)> {
        self.channels.iter().filter_map(|(id, channel)| Some((id, channel, channel.refund.as_ref()?)))
    }

    /// The next channel of a seller that ends: what its payer gets back unasked. One at a time, and none while a call
    /// is served or anything is claimed or can be. `is_put_off`: not this one, not now.
    pub fn due_refund(&self, is_put_off: impl Fn(&ChannelId) -> bool) -> Option<(ChannelId, Usdc)> {
        let is_busy = |channel: &Channel| channel.claim.is_some() || channel.refund.is_some() || channel.is_claimable();
        if self.open > 0 || self.channels.values().any(is_busy) {
            return None;
        }
        let known = self.channels.iter().filter(|(id, channel)| !channel.is_in_doubt && !is_put_off(id));
        known.map(|(id, _)| RefundAsk { channel: *id, amount: None }).find_map(|ask| {
            let amount = self.decide_refund(&ask).ok()?;
            Some((ask.channel, amount))
        })
    }

    /// The claim that a refund has to make first, if anything is unclaimed.
    pub fn claim_before_refund(&self, id: &ChannelId) -> Option<ClaimRow> {
        self.channels.get(id)?.claim_row(id)
    }

    /// Batches of rows to claim now. Empty while the unclaimed sums are within the policy and nobody is leaving;
    /// otherwise everything that is worth its gas comes along. Each batch is a transaction.
    pub fn due_claims(&self, policy: &ClaimPolicy, now: u64) -> Vec<Vec<ClaimRow>> {
        let rows = || self.channels.iter().filter(|(_, channel)| channel.is_claimable());
        let is_urgent = |channel: &Channel| channel.is_endangered(now);
        let unclaimed: Usdc = rows().map(|(_, channel)| channel.claimable()).sum();
        let is_due = unclaimed > policy.all_max
            || rows().any(|(_, channel)| is_urgent(channel) || channel.claimable() > policy.channel_max);
        if !is_due {
            return Vec::new();
        }
        let mut batches = Vec::new();
        let mut together = Vec::new();
        for (id, channel) in rows() {
            let is_worth = channel.claimable() >= policy.row_min || is_urgent(channel);
            let Some(row) = channel.claim_row(id).filter(|_| is_worth) else { continue };
            if channel.is_claimed_alone {
                batches.push(vec![row]);
            } else {
                together.push(row);
            }
        }
        let rows_max = usize::try_from(policy.rows_max.max(1)).unwrap_or(usize::MAX);
        batches.extend(together.chunks(rows_max).map(<[ClaimRow]>::to_vec));
        batches
    }

    /// Claims whose outcome is not known yet, after a restart too: read the channel's state, then say so.
    pub fn open_claims(&self) -> impl Iterator<Item = (&ChannelId, &OpenClaim)> {
        self.channels.iter().filter_map(|(id, channel)| Some((id, channel.claim.as_ref()?)))
    }

    /// Inputs that close what a crash interrupted: the last durable mark is charged, a call without one is aborted.
    pub fn interrupted(&self, at: u64) -> Vec<ChannelInput> {
        self.calls
            .iter()
            .filter_map(|(request, call)| match &call.service {
                CallService::Serving { tokens: 0, .. } => {
                    Some(ChannelInput::Aborted { request: *request, why: AbortWhy::Crashed })
                }
                CallService::Serving { tokens, amount } => {
                    let delivery = Delivery {
                        cached_tokens: 0,
                        completion_tokens: *tokens,
                        bytes: 0,
                        output_digest: [0; 32],
                        finish: Finish::Broken,
                        at,
                        confirmed: false,
                    };
                    Some(ChannelInput::Charged { request: *request, amount: *amount, delivery })
                }
                _ => None,
            })
            .collect()
    }

    /// Folds one input. Total: an input that does not fit changes nothing and returns nothing.
    pub fn apply(&mut self, input: ChannelInput) -> Vec<ChannelOutput> {
        match input {
            ChannelInput::Seen { channel, config, state, at } => {
                self.clock = self.clock.max(at);
                if !self.channels.contains_key(&channel) {
                    if !self.is_full() {
                        let mut new = Channel::new(config);
                        new.see(state, at);
                        // What was claimed before we met counts for nothing here: it was counted before the channel
                        // was forgotten, or is a gift of a host that lost its records.
                        new.base = new.chain.claimed;
                        self.channels.insert(channel, new);
                    }
                    return Vec::new();
                }
                self.change(channel, |channel| channel.see(state, at))
            }
            ChannelInput::DepositAsked { channel, deposit, at } => {
                self.clock = self.clock.max(at);
                let key = deposit.key(&channel);
                self.change(channel, |channel| channel.ask_deposit(key, deposit, at))
            }
            ChannelInput::DepositSent { channel, tx } => self.change(channel, |channel| {
                if let Some(open) = &mut channel.deposit {
                    open.tx = Some(tx);
                }
            }),
            ChannelInput::DepositDone { channel, key } => {
                self.change(channel, |channel| channel.end_deposit(key, true))
            }
            ChannelInput::DepositFailed { channel, key } => {
                self.change(channel, |channel| channel.end_deposit(key, false))
            }
            ChannelInput::Reserved(reservation) => self.reserve(reservation),
            ChannelInput::Mark { request, tokens, amount } => self.serve(request, |call, _| {
                if let CallService::Serving { tokens: last, amount: owed } = &mut call.service {
                    *last = tokens.max(*last);
                    *owed = amount.max(*owed).min(call.reservation.ceiling);
                }
            }),
            ChannelInput::Charged { request, amount, delivery } => {
                self.clock = self.clock.max(delivery.at);
                if let Some(call) = self.calls.get_mut(&request)
                    && let CallService::Delivered(known) = &mut call.service
                {
                    known.delivery.confirmed |= delivery.confirmed;
                    return Vec::new();
                }
                self.serve(request, |call, channel| call.charge(channel, amount, delivery))
            }
            ChannelInput::Aborted { request, why } => self.serve(request, |call, channel| call.abort(channel, why)),
            ChannelInput::ClaimSent { rows } => {
                for (id, total) in rows {
                    self.change(id, |channel| channel.claim = Some(OpenClaim { total }));
                }
                Vec::new()
            }
            ChannelInput::ClaimDone { rows } => {
                for id in rows {
                    self.change(id, |channel| (channel.claim, channel.is_claimed_alone) = (None, false));
                }
                Vec::new()
            }
            ChannelInput::ClaimFailed { rows } => {
                let is_alone = rows.len() == 1;
                for id in rows {
                    self.change(id, |channel| channel.fail_claim(is_alone));
                }
                Vec::new()
            }
            ChannelInput::RefundAsked { channel, amount, at } => {
                self.clock = self.clock.max(at);
                let asked = RefundAsk { channel, amount: Some(amount) };
                let amount = self.decide_refund(&asked).ok();
                self.change(channel, |channel| {
                    if let Some(amount) = amount {
                        let nonce = channel.chain.refund_nonce;
                        channel.refund = Some(OpenRefund { amount, at, nonce });
                    }
                })
            }
            ChannelInput::RefundEnded { channel } => self.change(channel, |channel| channel.refund = None),
            ChannelInput::Pruned { before } => self.prune(before),
            ChannelInput::TakenBack { from } => {
                let read_there = self.channels.iter().filter(|(_, channel)| channel.chain.block >= from);
                for id in read_there.map(|(id, _)| *id).collect::<Vec<_>>() {
                    self.change(id, |channel| channel.doubt(from));
                }
                Vec::new()
            }
        }
    }

    fn reserve(&mut self, reservation: CallReservation) -> Vec<ChannelOutput> {
        let CallReservation { request, channel: id, .. } = reservation;
        self.clock = self.clock.max(reservation.at);
        if self.calls.contains_key(&request) {
            return Vec::new();
        }
        let refused = |why| vec![ChannelOutput::Refused { request, why }];
        let Some(channel) = self.channels.get(&id) else { return refused(Reason::ChannelNotFound) };
        let needed = channel.charged.saturating_add(channel.reserved).saturating_add(reservation.ceiling);
        // `decide` said so before; the pair of this assertion.
        if reservation.voucher.max < needed {
            return refused(Reason::CumulativeMismatch);
        }
        if reservation.voucher.max > channel.available() {
            return refused(Reason::CumulativeExceedsBalance);
        }
        if channel.refund.is_some() || self.limit_reached(channel).is_some() {
            return refused(Reason::ChannelBusy);
        }
        self.by_body.insert((id, reservation.body_key()), request);
        self.open += 1;
        *self.open_by_payer.entry(channel.config.payer).or_default() += 1;
        let outputs = self.change(id, |channel| {
            channel.reserved = channel.reserved.saturating_add(reservation.ceiling);
            channel.open += 1;
            channel.served += 1;
            channel.hold(reservation.voucher.clone());
        });
        let service = CallService::Serving { tokens: 0, amount: Usdc::ZERO };
        self.calls.insert(request, Box::new(Call { reservation, service }));
        outputs
    }

    /// Changes a call and its channel, and returns what follows.
    fn serve(&mut self, request: RequestId, change: impl FnOnce(&mut Call, &mut Channel)) -> Vec<ChannelOutput> {
        let Some(call) = self.calls.get_mut(&request) else { return Vec::new() };
        if !matches!(call.service, CallService::Serving { .. }) {
            return Vec::new();
        }
        let id = call.reservation.channel;
        let Some(channel) = self.channels.get_mut(&id) else { return Vec::new() };
        let before = ChannelTotals::of(channel);
        change(call, channel);
        self.totals.replace(&before, &ChannelTotals::of(channel));
        if call.is_closed() {
            self.open -= 1;
            if let Some(open) = self.open_by_payer.get_mut(&channel.config.payer) {
                *open -= 1;
                if *open == 0 {
                    self.open_by_payer.remove(&channel.config.payer);
                }
            }
        }
        match call.service {
            CallService::Delivered(_) => vec![
                ChannelOutput::Receipt { request },
                ChannelOutput::Charged { request, channel: id, amount: call.charged() },
            ],
            _ => Vec::new(),
        }
    }

    /// Changes a channel, keeps the sums, and says what became true of it.
    fn change(&mut self, id: ChannelId, change: impl FnOnce(&mut Channel)) -> Vec<ChannelOutput> {
        let Some(channel) = self.channels.get_mut(&id) else { return Vec::new() };
        let (before, was_leaving) = (ChannelTotals::of(channel), channel.chain.withdrawal.is_some());
        let claimed = channel.chain.claimed;
        let (had_deposit, had_refund) = (channel.deposit.is_some(), channel.refund.is_some());
        change(channel);
        self.totals.replace(&before, &ChannelTotals::of(channel));
        let mut outputs = Vec::new();
        if !had_deposit && channel.deposit.is_some() {
            outputs.push(ChannelOutput::Deposit { channel: id });
        }
        if !had_refund && channel.refund.is_some() {
            outputs.push(ChannelOutput::Refund { channel: id });
        }
        if channel.chain.claimed > claimed {
            let amount = channel.chain.claimed.saturating_sub(claimed);
            outputs.push(ChannelOutput::Claimed { channel: id, amount });
        }
        if channel.chain.withdrawal.is_some() && !was_leaving && !channel.claimable().is_zero() {
            outputs.push(ChannelOutput::ClaimNow { channel: id });
        }
        outputs
    }

    fn prune(&mut self, before: u64) -> Vec<ChannelOutput> {
        let by_body = &mut self.by_body;
        self.calls.retain(|request, call| {
            let keep = !call.is_closed() || call.reservation.at >= before;
            if !keep {
                let key = (call.reservation.channel, call.reservation.body_key());
                if by_body.get(&key) == Some(request) {
                    by_body.remove(&key);
                }
            }
            keep
        });
        // A channel may be forgotten only when the chain alone tells all about it.
        let busy: BTreeSet<ChannelId> = self.calls.values().map(|call| call.reservation.channel).collect();
        let idle: Vec<ChannelId> = self
            .channels
            .iter()
            .filter(|(id, channel)| !busy.contains(id) && channel.is_told_by_chain())
            .map(|(id, _)| *id)
            .collect();
        for id in idle {
            if let Some(channel) = self.channels.remove(&id) {
                self.totals.forget(&ChannelTotals::of(&channel));
            }
        }
        Vec::new()
    }

    /// sha2-256 of the state's borsh is the book's; this is a check of the invariants, for tests and for the auditor.
    pub fn check(&self) -> Result<(), String> {
        let mut sums = ChannelTotals::default();
        let mut reserved: BTreeMap<ChannelId, (Usdc, u32)> = BTreeMap::new();
        for call in self.calls.values().filter(|call| !call.is_closed()) {
            let entry = reserved.entry(call.reservation.channel).or_default();
            *entry = (entry.0.saturating_add(call.reservation.ceiling), entry.1 + 1);
        }
        for (id, channel) in &self.channels {
            let held = channel.voucher.as_ref().map_or(channel.chain.claimed, |voucher| voucher.max);
            let owed = channel.charged.saturating_add(channel.reserved);
            let open = reserved.remove(id).unwrap_or_default();
            if channel.chain.claimed > channel.charged || owed > held.max(channel.chain.claimed) {
                return Err(format!("{id}: {channel:?}"));
            }
            if open != (channel.reserved, channel.open) {
                return Err(format!("{id}: reserved {:?}, calls say {open:?}", (channel.reserved, channel.open)));
            }
            sums.replace(&ChannelTotals::default(), &ChannelTotals::of(channel));
        }
        let open = self.calls.values().filter(|call| !call.is_closed()).count();
        let by_payer: u32 = self.open_by_payer.values().sum();
        if usize::try_from(self.open) != Ok(open) || by_payer != self.open {
            return Err(format!("{} calls open, {by_payer} by payer, calls say {open}", self.open));
        }
        if !reserved.is_empty() || !self.totals.is_sum_of(&sums) {
            return Err(format!("totals {:?}, channels say {sums:?}", self.totals));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
