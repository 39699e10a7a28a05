//! One key's transactions on their way to the chain: a pure machine.
//!
//! It is told blocks, nonces, receipts and failures ([`Input`]) and answers what to do ([`Output`]); it owns no
//! socket, clock or key. Each transaction goes *queued* (estimated) → *slot* (it has a nonce) → *settled*.
//!
//! What it promises: an id is settled once, and its payload is never given a second nonce while the first one may
//! still be mined. Whoever keeps [`Outbox::to_bytes`] before acting on outputs keeps that promise across restarts:
//! the same fields sign to the same transaction, so sending it again is harmless. Without that file a restart may
//! repeat a transaction that was on its way.
//!
//! - *Gap* (the pool lost a transaction, or the chain lost blocks): what was sent under that nonce is sent again,
//!   or, when unknown, an empty transfer to ourselves closes the gap.
//! - *Stuck*: the oldest transaction's fee is raised every few blocks; the others are only sent again.
//! - *Reorg*: a receipt that disappears makes its transaction unmined again; it keeps its nonce.
//! - *Nonce taken by a stranger with our key*: what never left gets another nonce; what left is *unknown*.

mod types;

use alloy::primitives::{Address, B256, Bytes};
use borsh::{BorshDeserialize, BorshSerialize};
use std::collections::{BTreeMap, VecDeque};

pub use types::{Id, Input, Mined, Options, Outcome, Output, Request, SendError};

use crate::error::Error;

/// Settled transactions remembered: to answer a repeated id, and to send again after the chain lost blocks.
const REMEMBERED: usize = 128;
/// Blocks for which a settled transaction keeps us looking whether the chain lost it.
const WATCH_BLOCKS: u64 = 64;
/// Pause before an endpoint that failed is tried again, if no new block comes first.
const RETRY_MS: u64 = 500;
/// Blocks after which a revert in an estimate is believed although other transactions are on their way.
const VERDICT_BLOCKS: u64 = 3;
/// Pause between looks at a chain that makes no blocks; such chains wait for a transaction (anvil without a block
/// time), and if it is the one in the gap, nothing else will come.
const STILL_MS: u64 = 1_500;
/// Gas of a plain transfer.
const TRANSFER_GAS: u64 = 21_000;

/// The machine. See the module.
#[derive(Clone, Debug)]
pub struct Outbox {
    options: Options,
    sender: Address,
    head: Option<Block>,
    nonce: NonceKnown,
    /// Waiting for a nonce, in the order of submission.
    queue: VecDeque<Queued>,
    /// On the way, by nonce.
    slots: BTreeMap<u64, Slot>,
    settled: VecDeque<Settled>,
    fresh_ids: u64,
}

#[derive(Clone, Copy, Debug)]
struct Block {
    number: u64,
    hash: B256,
    base_fee: u128,
}

#[derive(Clone, Copy, Debug, Default)]
struct NonceKnown {
    latest: u64,
    pending: u64,
    /// Asked since the last time the outbox was idle, so the key's other users are accounted for.
    fresh: bool,
    asked_at_ms: Option<u64>,
    answered: bool,
    /// Block and time at which a gap was first seen. Acting waits for a second look, because endpoints lag.
    gap_since: Option<(u64, u64)>,
}

#[derive(Clone, Debug)]
struct Queued {
    id: Id,
    request: Request,
    gas: Option<u64>,
    estimate: Estimate,
    /// The block at which an estimate first said no.
    doubted_since: Option<u64>,
}

impl Queued {
    fn new(id: Id, request: Request, gas: Option<u64>) -> Self {
        Self { id, request, gas, estimate: Estimate::Due, doubted_since: None }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Estimate {
    #[default]
    Due,
    Asked,
    /// The endpoint failed, or the call would revert while others before it are on their way.
    RetryAt(u64),
}

#[derive(Clone, Debug, BorshSerialize, BorshDeserialize)]
struct Slot {
    id: Id,
    request: Request,
    gas: u64,
    max_fee: u128,
    tip: u128,
    /// Every version that may be in a pool.
    txs: Vec<[u8; 32]>,
    /// Some version may have reached the network. While false, the payload may still get another nonce.
    exposed: bool,
    /// Said `Send` and heard nothing yet.
    in_doubt: bool,
    kind: Purpose,
    #[borsh(skip)]
    next: Next,
    #[borsh(skip)]
    sent_at: u64,
    #[borsh(skip)]
    mined: Option<Mined>,
    /// Blocks at which the nonce was used up and no version had a receipt, and the last of them.
    #[borsh(skip)]
    missing: u64,
    #[borsh(skip)]
    missing_at: u64,
    #[borsh(skip)]
    short_since: Option<u64>,
    /// An endpoint has refused less than this, wei per gas.
    #[borsh(skip)]
    fee_min: u128,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
enum Purpose {
    /// Somebody waits for its outcome.
    Caller,
    /// Settled before, then lost by the chain: sent again, nobody is told.
    Again,
    /// Closes a gap.
    Filler,
}

/// What to do with a slot at the next occasion.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Next {
    /// Only look for its receipt; fees are raised by age.
    #[default]
    Wait,
    /// Send the same bytes at the next block.
    SendSame,
    /// Send with fees of the day at the next block.
    SendRepriced,
    /// The same, or once this time has passed: the next block may wait for this very transaction.
    SendRepricedAt(u64),
    /// Send the same bytes once this time has passed.
    SendSameAt(u64),
    /// The pool holds a stranger's transaction under this nonce: ask whether it still does.
    Contested,
}

#[derive(Clone, Debug, BorshSerialize, BorshDeserialize)]
struct Settled {
    id: Id,
    outcome: Outcome,
    /// What was mined under which nonce, and when; absent for what never left.
    mined: Option<(u64, u64)>,
    request: Request,
    gas: u64,
}

impl Outbox {
    /// An empty outbox of the account `sender`.
    pub fn new(sender: Address, options: Options) -> Self {
        Self {
            options,
            sender,
            head: None,
            nonce: NonceKnown::default(),
            queue: VecDeque::new(),
            slots: BTreeMap::new(),
            settled: VecDeque::new(),
            fresh_ids: 0,
        }
    }

    /// An outbox as [`Outbox::to_bytes`] left it. Everything that may be on its way is sent again, unchanged. What never
    /// left is forgotten: whoever wanted it has that on record and submits it again, while a file that is older than the
    /// chain (a disk that came back) would have it sent a second time.
    ///
    /// # Errors
    /// `Usage` when the bytes are not an outbox of this sender.
    pub fn from_bytes(bytes: &[u8], sender: Address, options: Options) -> Result<Self, Error> {
        type Parts = ([u8; 20], BTreeMap<u64, Slot>, Vec<Settled>);
        let (owner, slots, settled): Parts =
            borsh::from_slice(bytes).map_err(|e| Error::usage("not an outbox's state").with_source(e))?;
        if owner != sender.0.0 {
            return Err(Error::usage(format!("the outbox belongs to {}, not {sender}", Address::from(owner))));
        }
        let mut outbox = Self::new(sender, options);
        (outbox.slots, outbox.settled) = (slots, settled.into());
        outbox.slots.retain(|_, slot| slot.may_be_out());
        for slot in outbox.slots.values_mut() {
            // A send that nobody heard the end of may have arrived.
            slot.exposed |= slot.in_doubt;
            slot.in_doubt = false;
            slot.next = Next::SendSame;
        }
        Ok(outbox)
    }

    /// The state worth keeping: what has a nonce, and what was settled lately.
    pub fn to_bytes(&self) -> Vec<u8> {
        let settled: Vec<&Settled> = self.settled.iter().collect();
        borsh::to_vec(&(self.sender.0.0, &self.slots, settled)).expect("writing to memory does not fail")
    }

    /// Ids that are not settled yet.
    pub fn unsettled(&self) -> impl Iterator<Item = Id> {
        let slots = self.slots.values().filter(|s| s.kind == Purpose::Caller).map(|s| s.id);
        self.queue.iter().map(|q| q.id).chain(slots)
    }

    /// The highest block in which something that is remembered was mined, 0 if nothing was: a branch may take it back, and
    /// then the same is sent again.
    pub fn newest_mined(&self) -> u64 {
        self.settled.iter().filter_map(|settled| settled.mined).map(|(_, block)| block).max().unwrap_or(0)
    }

    /// An id that nothing here has, for callers who do not care. High bits set keep it apart from small numbers.
    pub fn fresh_id(&mut self) -> Id {
        loop {
            self.fresh_ids += 1;
            let id = Id((1 << 127 | u128::from(self.fresh_ids)).to_be_bytes());
            if !self.settled.iter().any(|s| s.id == id) && !self.unsettled().any(|known| known == id) {
                return id;
            }
        }
    }

    /// Whether anything is queued or on its way.
    pub fn is_busy(&self) -> bool {
        !self.queue.is_empty() || !self.slots.is_empty()
    }

    /// Takes one input and appends what to do. `now_ms` only paces retries; any clock that goes forward will do.
    pub fn handle(&mut self, now_ms: u64, input: Input, out: &mut Vec<Output>) {
        match input {
            Input::Submit { id, request } => self.submit(id, request, out),
            Input::Head { number, hash, base_fee } => self.on_head(now_ms, Block { number, hash, base_fee }, out),
            Input::NonceIs { latest, pending } => self.on_nonce(now_ms, latest, pending, out),
            Input::Estimated { id, gas } => {
                if let Some(queued) = self.queue.iter_mut().find(|q| q.id == id) {
                    queued.gas = Some(gas);
                }
            }
            Input::WouldRevert { id, data, text } => {
                self.on_verdict(now_ms, id, Outcome::WouldRevert { data, text }, out);
            }
            Input::EstimateRefused { id, reason } => {
                self.on_verdict(now_ms, id, Outcome::NeverSent { reason }, out);
            }
            Input::EstimateFailed { id } => {
                if let Some(queued) = self.queue.iter_mut().find(|q| q.id == id) {
                    queued.estimate = Estimate::RetryAt(now_ms + RETRY_MS);
                }
            }
            Input::Sent { id, nonce, tx } => {
                if let Some(slot) = self.slot(id, nonce) {
                    slot.in_doubt = false;
                    slot.left(tx);
                    slot.short_since = None;
                }
            }
            Input::SendFailed { id, nonce, tx, why } => self.on_send_failed(now_ms, (id, nonce), tx, why, out),
            Input::ReceiptIs { id, nonce, found } => self.on_receipt(id, nonce, found, out),
        }
        self.pump(now_ms, out);
    }

    fn submit(&mut self, id: Id, request: Request, out: &mut Vec<Output>) {
        if let Some(settled) = self.settled.iter().find(|s| s.id == id) {
            out.push(Output::Settled { id, outcome: settled.outcome.clone() });
        } else if !self.unsettled().any(|known| known == id) {
            let gas = request.gas;
            self.queue.push_back(Queued::new(id, request, gas));
        }
    }

    /// An estimate said no. What is still on its way may be what this one needs (an allowance, a refuel): so it is
    /// asked again while others are on their way, and for want of money, but not for ever.
    fn on_verdict(&mut self, now_ms: u64, id: Id, verdict: Outcome, out: &mut Vec<Output>) {
        let head = self.head.map_or(0, |h| h.number);
        let funds_patience = self.options.funds_patience;
        let Some(position) = self.queue.iter().position(|q| q.id == id) else { return };
        let others_first = position > 0 || self.slots.values().any(|s| s.mined.is_none());
        let queued = &mut self.queue[position];
        let doubted_for = head.saturating_sub(*queued.doubted_since.get_or_insert(head));
        let wait = match verdict {
            Outcome::NeverSent { .. } => doubted_for < funds_patience,
            _ => others_first && doubted_for < VERDICT_BLOCKS,
        };
        if wait {
            queued.estimate = Estimate::RetryAt(now_ms + RETRY_MS);
        } else if let Some(queued) = self.queue.remove(position) {
            self.settle(queued.id, queued.request, 0, None, verdict, out);
        }
    }

    // ------------------------------------------------------------------ blocks

    fn on_head(&mut self, now_ms: u64, head: Block, out: &mut Vec<Output>) {
        let changed = self.head.is_none_or(|old| (old.number, old.hash) != (head.number, head.hash));
        self.head = Some(head);
        for slot in self.slots.values_mut() {
            if matches!(slot.next, Next::SendSameAt(at) if at <= now_ms) {
                slot.next = Next::SendSame;
            }
        }
        if (changed && self.is_watching()) || (self.is_busy() && self.asked_before(now_ms, STILL_MS)) {
            self.ask_nonce(now_ms, out);
        }
        if changed {
            self.age_slots(head);
        }
        let due = |slot: &Slot| match slot.next {
            Next::SendSame => Some(false),
            Next::SendRepriced if changed => Some(true),
            Next::SendRepricedAt(at) if changed || at <= now_ms => Some(true),
            _ => None,
        };
        let sends: Vec<(u64, bool)> =
            self.slots.iter().filter(|(_, s)| !s.in_doubt).filter_map(|(n, s)| Some((*n, due(s)?))).collect();
        for (nonce, reprice) in sends {
            self.send(nonce, reprice, out);
        }
    }

    /// Something to do, or something settled so lately that the chain might lose it.
    pub fn is_watching(&self) -> bool {
        let head = self.head.map_or(0, |h| h.number);
        let lately = |s: &Settled| s.mined.is_some_and(|(_, block)| block + WATCH_BLOCKS > head);
        self.is_busy() || self.settled.iter().any(lately)
    }

    /// Decides by age what is sent again at this block, and whether dearer.
    fn age_slots(&mut self, head: Block) {
        let patience = self.options.bump_after;
        let oldest = self.slots.iter().find(|(_, s)| s.mined.is_none()).map(|(n, _)| *n);
        for (nonce, slot) in &mut self.slots {
            let unheard = slot.mined.is_none() && slot.missing == 0 && head.number >= slot.sent_at + patience;
            if slot.next == Next::Wait && slot.exposed && unheard {
                // Only the oldest can be stuck by its own fee; the others wait for it.
                slot.next = if Some(*nonce) == oldest { Next::SendRepriced } else { Next::SendSame };
            }
        }
    }

    fn asked_before(&self, now_ms: u64, pause_ms: u64) -> bool {
        self.nonce.asked_at_ms.is_none_or(|at| at + pause_ms <= now_ms)
    }

    fn ask_nonce(&mut self, now_ms: u64, out: &mut Vec<Output>) {
        (self.nonce.asked_at_ms, self.nonce.answered) = (Some(now_ms), false);
        out.push(Output::AskNonce);
    }

    fn on_nonce(&mut self, now_ms: u64, latest: u64, pending: u64, out: &mut Vec<Output>) {
        let pending = pending.max(latest);
        self.nonce = NonceKnown { latest, pending, fresh: true, answered: true, ..self.nonce };
        let mut taken = Vec::new();
        for (nonce, slot) in &mut self.slots {
            if *nonce < latest {
                if !slot.txs.is_empty() {
                    let txs = slot.txs.iter().map(|tx| B256::from(*tx)).collect();
                    out.push(Output::AskReceipt { id: slot.id, nonce: *nonce, txs });
                } else if !slot.exposed && !slot.in_doubt {
                    taken.push(*nonce);
                }
                continue;
            }
            slot.missing = 0;
            if slot.mined.take().is_some() {
                slot.next = Next::SendSame;
            }
            if slot.next == Next::Contested {
                if *nonce < pending {
                    taken.push(*nonce);
                } else {
                    slot.next = Next::SendRepriced;
                }
            }
        }
        for nonce in taken.into_iter().rev() {
            self.requeue(nonce);
        }
        self.close_gaps(now_ms, pending);
    }

    /// The first nonce above all that we ever gave away; an endpoint that lags may know of fewer.
    fn above_ours(&self) -> u64 {
        let settled = self.settled.iter().filter_map(|s| s.mined).map(|(nonce, _)| nonce + 1).max();
        self.slots.keys().next_back().map(|n| n + 1).max(settled).unwrap_or(0)
    }

    /// Nonces that nobody holds, under ones that were used or are waiting: nothing above them can be mined.
    fn close_gaps(&mut self, now_ms: u64, pending: u64) {
        let Some(head) = self.head else { return };
        let open: Vec<u64> = (pending..self.above_ours()).filter(|n| !self.slots.contains_key(n)).collect();
        if open.is_empty() {
            self.nonce.gap_since = None;
            return;
        }
        let (block, time) = *self.nonce.gap_since.get_or_insert((head.number, now_ms));
        if head.number == block && now_ms < time + STILL_MS {
            return;
        }
        self.nonce.gap_since = None;
        for nonce in open {
            let lost = self.settled.iter().find(|s| s.mined.is_some_and(|(n, _)| n == nonce));
            let slot = match lost {
                Some(s) => Slot::new(s.id, s.request.clone(), s.gas, Purpose::Again),
                None => self.filler(nonce),
            };
            self.slots.insert(nonce, slot);
        }
    }

    fn filler(&self, nonce: u64) -> Slot {
        let request = Request { to: Some(self.sender), data: Bytes::new(), value: 0, gas: Some(TRANSFER_GAS) };
        // Its own corner of the ids: nobody submits all ones above a nonce.
        let id = Id((u128::from(u64::MAX) << 64 | u128::from(nonce)).to_be_bytes());
        Slot::new(id, request, TRANSFER_GAS, Purpose::Filler)
    }

    // ------------------------------------------------------------------ sending

    fn slot(&mut self, id: Id, nonce: u64) -> Option<&mut Slot> {
        self.slots.get_mut(&nonce).filter(|slot| slot.id == id)
    }

    /// Estimates what is new, and gives nonces to what is ready, in order.
    fn pump(&mut self, now_ms: u64, out: &mut Vec<Output>) {
        // An idle key may be used by others: ask again before the next nonce.
        self.nonce.fresh &= self.is_busy();
        if self.head.is_none() || !self.is_busy() {
            return;
        }
        for queued in self.queue.iter_mut().filter(|q| q.gas.is_none()) {
            let due = match queued.estimate {
                Estimate::Due => true,
                Estimate::Asked => false,
                Estimate::RetryAt(at) => at <= now_ms,
            };
            if due {
                queued.estimate = Estimate::Asked;
                out.push(Output::Estimate { id: queued.id, request: queued.request.clone() });
            }
        }
        if !self.nonce.fresh {
            if self.nonce.answered || self.asked_before(now_ms, RETRY_MS) {
                self.ask_nonce(now_ms, out);
            }
            return;
        }
        while self.slots.len() < self.options.in_flight_max {
            let Some(ready) = self.queue.iter().position(|q| q.gas.is_some()) else { break };
            let Some(Queued { id, request, gas: Some(gas), .. }) = self.queue.remove(ready) else { break };
            let nonce = self.above_ours().max(self.nonce.pending);
            self.slots.insert(nonce, Slot::new(id, request, gas, Purpose::Caller));
        }
        let new: Vec<u64> = self.slots.iter().filter(|(_, s)| s.max_fee == 0 && !s.in_doubt).map(|(n, _)| *n).collect();
        for nonce in new {
            self.send(nonce, true, out);
        }
    }

    fn send(&mut self, nonce: u64, reprice: bool, out: &mut Vec<Output>) {
        let (Some(head), Some(slot)) = (self.head, self.slots.get_mut(&nonce)) else { return };
        if reprice {
            slot.reprice(head.base_fee, &self.options);
        }
        slot.in_doubt = true;
        slot.next = Next::Wait;
        slot.sent_at = head.number;
        out.push(Output::Send {
            id: slot.id,
            nonce,
            request: slot.request.clone(),
            gas: slot.gas,
            max_fee: slot.max_fee,
            tip: slot.tip,
        });
    }

    fn on_send_failed(&mut self, now_ms: u64, (id, nonce): (Id, u64), tx: B256, why: SendError, out: &mut Vec<Output>) {
        let head = self.head.map_or(0, |h| h.number);
        let patience = self.options.funds_patience;
        let Some(slot) = self.slot(id, nonce) else { return };
        slot.in_doubt = false;
        match why {
            SendError::Transport => {
                slot.left(tx);
                slot.next = Next::SendSameAt(now_ms + RETRY_MS);
            }
            SendError::NonceTooLow if slot.exposed => {
                // One of our versions was mined, or a stranger's: the receipts will tell.
                slot.left(tx);
                self.ask_nonce(now_ms, out);
            }
            SendError::NonceTooLow => self.requeue(nonce),
            SendError::ReplacementUnderpriced if slot.exposed => slot.next = Next::SendRepriced,
            SendError::ReplacementUnderpriced => {
                slot.next = Next::Contested;
                self.ask_nonce(now_ms, out);
            }
            SendError::FeeTooLow => {
                // The block that is being made asks more than the last one let expect: offer twice as much, up to the
                // ceiling. What a block does not ask for is not paid.
                slot.fee_min = slot.max_fee.saturating_mul(2);
                slot.next = Next::SendRepricedAt(now_ms + STILL_MS);
            }
            SendError::InsufficientFunds => {
                slot.next = Next::SendRepriced;
                let since = *slot.short_since.get_or_insert(head);
                if !slot.exposed && head >= since + patience {
                    self.abandon(nonce, "the account cannot pay for gas and value", out);
                }
            }
            SendError::Refused(words) if !slot.exposed => self.abandon(nonce, &words, out),
            // The version before may still be mined.
            SendError::Refused(_) => slot.next = Next::Wait,
        }
    }

    /// Takes the nonce from a transaction that never left and puts it in front of the queue.
    fn requeue(&mut self, nonce: u64) {
        let Some(slot) = self.slots.remove(&nonce) else { return };
        self.nonce.fresh = false;
        if slot.kind == Purpose::Caller {
            let Slot { id, request, gas, .. } = slot;
            self.queue.push_front(Queued::new(id, request, Some(gas)));
        }
    }

    /// Gives up on what never left. Its nonce goes back if it is the last one; else an empty transfer takes it.
    fn abandon(&mut self, nonce: u64, reason: &str, out: &mut Vec<Output>) {
        let Some(slot) = self.slots.remove(&nonce) else { return };
        if slot.kind == Purpose::Caller {
            let outcome = Outcome::NeverSent { reason: reason.to_owned() };
            self.settle(slot.id, slot.request, slot.gas, None, outcome, out);
        }
        if slot.kind != Purpose::Again && self.slots.keys().next_back().is_some_and(|last| *last > nonce) {
            let mut filler = self.filler(nonce);
            filler.next = Next::SendRepriced;
            filler.reprice(self.head.map_or(0, |h| h.base_fee), &self.options);
            self.slots.insert(nonce, filler);
        }
        while self.slots.last_key_value().is_some_and(|(_, s)| s.kind == Purpose::Filler && !s.may_be_out()) {
            self.slots.pop_last();
        }
    }

    // ------------------------------------------------------------------ ends

    fn on_receipt(&mut self, id: Id, nonce: u64, found: Option<Mined>, out: &mut Vec<Output>) {
        let (head, latest) = (self.head.map_or(0, |h| h.number), self.nonce.latest);
        let Options { confirmations, receipt_patience, .. } = self.options;
        let Some(slot) = self.slot(id, nonce) else { return };
        slot.mined = found;
        let outcome = match found {
            Some(Mined { tx, block, success }) if head + 1 >= block + confirmations => {
                if success {
                    Outcome::Done { tx, block }
                } else {
                    Outcome::Reverted { tx, block }
                }
            }
            Some(_) => {
                slot.missing = 0;
                return;
            }
            None => {
                if nonce < latest && head > slot.missing_at {
                    (slot.missing, slot.missing_at) = (slot.missing + 1, head);
                }
                if slot.missing <= receipt_patience {
                    return;
                }
                Outcome::Unknown { txs: slot.txs.iter().map(|tx| B256::from(*tx)).collect() }
            }
        };
        let Some(slot) = self.slots.remove(&nonce) else { return };
        let block = found.map(|mined| (nonce, mined.block));
        match slot.kind {
            Purpose::Caller => self.settle(slot.id, slot.request, slot.gas, block, outcome, out),
            Purpose::Filler => {}
            Purpose::Again => {
                if let Some(old) = self.settled.iter_mut().find(|s| s.id == slot.id) {
                    old.mined = block;
                }
            }
        }
    }

    fn settle(
        &mut self,
        id: Id,
        request: Request,
        gas: u64,
        mined: Option<(u64, u64)>,
        outcome: Outcome,
        out: &mut Vec<Output>,
    ) {
        if self.settled.len() == REMEMBERED {
            self.settled.pop_front();
        }
        self.settled.push_back(Settled { id, outcome: outcome.clone(), mined, request, gas });
        out.push(Output::Settled { id, outcome });
    }
}

impl Slot {
    fn new(id: Id, request: Request, gas: u64, kind: Purpose) -> Self {
        Self {
            id,
            request,
            gas,
            max_fee: 0,
            tip: 0,
            txs: Vec::new(),
            exposed: false,
            in_doubt: false,
            kind,
            next: Next::Wait,
            sent_at: 0,
            mined: None,
            missing: 0,
            missing_at: 0,
            short_since: None,
            fee_min: 0,
        }
    }

    fn may_be_out(&self) -> bool {
        self.exposed || self.in_doubt
    }

    fn left(&mut self, tx: B256) {
        self.exposed = true;
        if !self.txs.contains(&tx.0) {
            self.txs.push(tx.0);
        }
    }

    /// Twice the base fee leaves room for six full blocks. What was out before is raised by at least 1/8, or the
    /// pools would not take the new version.
    fn reprice(&mut self, base_fee: u128, options: &Options) {
        let (mut tip, mut max_fee) =
            (options.tip_wei, base_fee.saturating_mul(2).saturating_add(options.tip_wei).max(1).max(self.fee_min));
        if self.exposed {
            tip = tip.max(self.tip + self.tip / 8 + 1);
            max_fee = max_fee.max(self.max_fee + self.max_fee / 8 + 1);
        }
        if max_fee > options.fee_max_wei {
            // A second version under the ceiling could not replace the first: the same bytes again.
            (tip, max_fee) = if self.exposed { (self.tip, self.max_fee) } else { (tip, options.fee_max_wei) };
        }
        (self.tip, self.max_fee) = (tip.min(max_fee), max_fee);
    }
}

#[cfg(test)]
mod tests;
