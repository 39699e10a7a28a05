use super::super::{AbortWhy, Delivery};
use super::input::CallReservation;
use crate::Usdc;
use crate::scheme::channel::{ChannelConfig, ChannelId, ChannelState, ClaimRow, Deposit, HeldVoucher};
use crate::scheme::exact::Hash;
use borsh::{BorshDeserialize, BorshSerialize};

/// Deposits that are remembered per channel, so that a client that is out of step can send its last one again.
const LANDED_MAX: usize = 4;

/// One channel: what the chain says and what was served.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Channel {
    pub config: ChannelConfig,
    pub chain: ChannelState,
    /// Claimed before this book met the channel; no part of its sums.
    pub base: Usdc,
    /// All that is owed for what was delivered, what was claimed of it included. Never goes back.
    pub charged: Usdc,
    /// Ceilings of the calls being served.
    pub reserved: Usdc,
    /// The largest voucher.
    pub voucher: Option<HeldVoucher>,
    pub deposit: Option<OpenDeposit>,
    pub claim: Option<OpenClaim>,
    pub refund: Option<OpenRefund>,
    /// Keys of the last deposits that came in.
    pub landed: Vec<Hash>,
    /// Calls being served.
    pub open: u32,
    /// Calls ever reserved.
    pub served: u64,
    /// A batch with this row failed: it is claimed alone.
    pub is_claimed_alone: bool,
    /// This voucher's row failed alone: it is not tried again before a newer one comes.
    pub is_row_bad: bool,
    /// `chain` was read in a block that the chain took back, and not again since.
    pub is_in_doubt: bool,
}

/// A deposit that is to be sent or under way.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct OpenDeposit {
    pub key: Hash,
    pub deposit: Deposit,
    /// Its transaction, once it left.
    pub tx: Option<Hash>,
    pub at: u64,
}

/// A claim that is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct OpenClaim {
    pub total: Usdc,
}

/// A refund that is to be sent or under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct OpenRefund {
    pub amount: Usdc,
    pub at: u64,
    /// The channel's `refund_nonce` when it was asked for: it was mined when the chain shows a larger one. What the
    /// chain shows now is no measure, for that may have been read after it was mined and before its end was recorded.
    pub nonce: u64,
}

/// What an answer tells a customer about its channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Told {
    /// Since the state that its voucher was made from.
    pub charged: Usdc,
    /// In all.
    pub cumulative: Usdc,
}

impl Channel {
    pub(super) fn new(config: ChannelConfig) -> Self {
        Self {
            config,
            chain: ChannelState::default(),
            base: Usdc::ZERO,
            charged: Usdc::ZERO,
            reserved: Usdc::ZERO,
            voucher: None,
            deposit: None,
            claim: None,
            refund: None,
            landed: Vec::new(),
            open: 0,
            served: 0,
            is_claimed_alone: false,
            is_row_bad: false,
            is_in_doubt: false,
        }
    }

    /// What vouchers may reach: the balance less what the payer is taking out.
    pub fn available(&self) -> Usdc {
        let leaving = self.chain.withdrawal.map_or(Usdc::ZERO, |withdrawal| withdrawal.amount);
        self.chain.balance.saturating_sub(leaving)
    }

    /// Charged and not claimed.
    pub fn unclaimed(&self) -> Usdc {
        self.charged.saturating_sub(self.chain.claimed)
    }

    /// What a claim would bring: a balance that the payer took out (or a reorganisation) can make it less than is
    /// unclaimed.
    pub fn claimable(&self) -> Usdc {
        self.charged.min(self.chain.balance).saturating_sub(self.chain.claimed)
    }

    /// Charged, and gone with a withdrawal that came before the claim.
    pub fn uncovered(&self) -> Usdc {
        self.charged.saturating_sub(self.chain.balance.max(self.chain.claimed))
    }

    pub(super) fn is_claimable(&self) -> bool {
        !self.claimable().is_zero() && self.claim.is_none() && !self.is_row_bad && self.voucher.is_some()
    }

    /// What is charged reaches into what the payer takes out, so it has to be claimed first: at once, or when the calls
    /// that are being served have ended, so that one claim does for all; at the latest when half of the delay is over.
    /// The other half is for hosts, endpoints and stewards that are gone for a while.
    pub fn is_endangered(&self, now: u64) -> bool {
        self.chain.withdrawal.is_some_and(|withdrawal| {
            let half = withdrawal.since.saturating_add(self.config.withdraw_delay_secs / 2);
            self.charged > self.available() && (self.open == 0 || now >= half)
        })
    }

    /// Whether the chain has to be asked about it again though nothing of ours is on its way.
    pub fn is_to_be_watched(&self) -> bool {
        self.charged > self.chain.claimed || self.is_in_doubt
    }

    pub(super) fn claim_row(&self, id: &ChannelId) -> Option<ClaimRow> {
        let voucher = self.voucher.clone()?;
        let total = self.charged.min(self.chain.balance);
        (total > self.chain.claimed && total <= voucher.max).then(|| ClaimRow {
            channel: *id,
            config: self.config.clone(),
            voucher,
            total,
        })
    }

    /// What to tell the customer that paid with this voucher for a request that it accepted `accepted` for.
    ///
    /// Its voucher shows what it thinks was charged before: `max − accepted`. It is told all that was charged since,
    /// at most `accepted` (the official clients refuse more), and the rest with its next answer. So a stream, whose
    /// head leaves before its charge is known, tells of the calls before it.
    pub fn told(&self, max: Usdc, accepted: Usdc) -> Told {
        let base = max.saturating_sub(accepted);
        let charged = self.charged.saturating_sub(base).min(accepted);
        Told { charged, cumulative: base.saturating_add(charged) }
    }

    /// The chain alone tells everything about it: it can be forgotten.
    pub(super) fn is_told_by_chain(&self) -> bool {
        !self.is_in_doubt
            && self.open == 0
            && self.deposit.is_none()
            && self.claim.is_none()
            && self.refund.is_none()
            && self.charged == self.chain.claimed
            && self.chain.claimed == self.chain.balance
    }

    pub(super) fn see(&mut self, state: ChannelState, at: u64) {
        if state.block < self.chain.block {
            return;
        }
        // A refund was taken back with its block. Its transaction may be mined again at any time, so what it takes out must
        // not be served meanwhile: it is under way as it was before.
        let back = state.balance.saturating_sub(self.chain.balance);
        if state.refund_nonce < self.chain.refund_nonce && self.refund.is_none() && !back.is_zero() {
            self.refund = Some(OpenRefund { amount: back, at, nonce: state.refund_nonce });
        }
        // Claimed more than we know of: records were lost with a host, the money was not.
        self.charged = self.charged.max(state.claimed);
        self.chain = state;
        self.is_in_doubt = false;
    }

    /// Block `from` and all after it are gone. What was read there stands until the channel is read again, in any block
    /// of the new branch.
    pub(super) fn doubt(&mut self, from: u64) {
        self.chain.block = from.saturating_sub(1);
        self.is_in_doubt = true;
    }

    pub(super) fn hold(&mut self, voucher: HeldVoucher) {
        if self.voucher.as_ref().is_none_or(|held| voucher.max > held.max) {
            self.voucher = Some(voucher);
            self.is_row_bad = false;
        }
    }

    pub(super) fn ask_deposit(&mut self, key: Hash, deposit: Deposit, at: u64) {
        if self.deposit.is_none() && self.refund.is_none() && !self.landed.contains(&key) {
            self.deposit = Some(OpenDeposit { key, deposit, tx: None, at });
        }
    }

    pub(super) fn end_deposit(&mut self, key: Hash, landed: bool) {
        if self.deposit.as_ref().is_some_and(|open| open.key == key) {
            self.deposit = None;
            if landed {
                if self.landed.len() == LANDED_MAX {
                    self.landed.remove(0);
                }
                self.landed.push(key);
            }
        }
    }

    pub(super) fn fail_claim(&mut self, was_alone: bool) {
        if self.claim.take().is_some() {
            if was_alone && self.is_claimed_alone {
                self.is_row_bad = true;
            }
            self.is_claimed_alone = true;
        }
    }
}

/// One request that a voucher pays for.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Call {
    pub reservation: CallReservation,
    pub service: CallService,
}

#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum CallService {
    /// The last mark, and what it is worth.
    Serving {
        tokens: u32,
        amount: Usdc,
    },
    Delivered(ChargedDelivery),
    Aborted {
        why: AbortWhy,
    },
}

/// What was delivered and charged.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct ChargedDelivery {
    pub delivery: Delivery,
    pub amount: Usdc,
    /// All that was charged on the channel then.
    pub cumulative: Usdc,
}

impl std::ops::Deref for ChargedDelivery {
    type Target = Delivery;

    fn deref(&self) -> &Delivery {
        &self.delivery
    }
}

impl Call {
    pub fn charged(&self) -> Usdc {
        match &self.service {
            CallService::Delivered(delivered) => delivered.amount,
            _ => Usdc::ZERO,
        }
    }

    pub fn is_closed(&self) -> bool {
        !matches!(self.service, CallService::Serving { .. })
    }

    pub(super) fn charge(&mut self, channel: &mut Channel, amount: Usdc, delivery: Delivery) {
        let amount = amount.min(self.reservation.ceiling);
        self.release(channel);
        channel.charged = channel.charged.saturating_add(amount);
        self.service = CallService::Delivered(ChargedDelivery { delivery, amount, cumulative: channel.charged });
    }

    pub(super) fn abort(&mut self, channel: &mut Channel, why: AbortWhy) {
        self.release(channel);
        self.service = CallService::Aborted { why };
    }

    fn release(&self, channel: &mut Channel) {
        channel.reserved = channel.reserved.saturating_sub(self.reservation.ceiling);
        channel.open = channel.open.saturating_sub(1);
    }
}

/// Sums over all channels, forgotten ones included. Micro-USDC.
///
/// charged = claimed + unclaimed; what is uncovered is part of unclaimed.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct ChannelTotals {
    pub reserved: Usdc,
    pub charged: Usdc,
    pub claimed: Usdc,
    pub unclaimed: Usdc,
    pub uncovered: Usdc,
    /// Parts of `charged` and `claimed` whose channels are forgotten.
    pub forgotten: Usdc,
}

impl ChannelTotals {
    pub(super) fn of(channel: &Channel) -> Self {
        let charged = channel.charged.saturating_sub(channel.base);
        let claimed = channel.chain.claimed.saturating_sub(channel.base);
        Self {
            reserved: channel.reserved,
            charged,
            claimed,
            unclaimed: charged.saturating_sub(claimed),
            uncovered: channel.uncovered(),
            forgotten: Usdc::ZERO,
        }
    }

    pub(super) fn replace(&mut self, before: &Self, after: &Self) {
        let change = |sum: &mut Usdc, before: Usdc, after: Usdc| {
            *sum = sum.saturating_sub(before).saturating_add(after);
        };
        change(&mut self.reserved, before.reserved, after.reserved);
        change(&mut self.charged, before.charged, after.charged);
        change(&mut self.claimed, before.claimed, after.claimed);
        change(&mut self.unclaimed, before.unclaimed, after.unclaimed);
        change(&mut self.uncovered, before.uncovered, after.uncovered);
    }

    /// A forgotten channel's charges stay in the sums; the chain has claimed them all.
    pub(super) fn forget(&mut self, channel: &Self) {
        self.forgotten = self.forgotten.saturating_add(channel.charged);
    }

    pub fn is_balanced(&self) -> bool {
        self.claimed.saturating_add(self.unclaimed) == self.charged
    }

    pub(super) fn is_sum_of(&self, known: &Self) -> bool {
        self.is_balanced()
            && self.reserved == known.reserved
            && self.unclaimed == known.unclaimed
            && self.uncovered == known.uncovered
            && self.charged == known.charged.saturating_add(self.forgotten)
    }
}
