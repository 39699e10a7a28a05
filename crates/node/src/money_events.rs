//! Events of treasury, market and token, translated into what moved the agent's money.

use crate::context::Context;
use crate::state::{Recorded, TOLD_MAX, Told, reverted};
use alloy::primitives::{Address, B256};
use chain::bindings::{MarketEvent, TreasuryEvent};
use chain::logs::{ChainLog, Event, LogItem};
use economy::{ChainEvent, ChainEventKind, Usdc};
use pay::book::channels::ChannelInput;
use pay::book::{Entry, Payment};
use pay::{BookInput, ChannelBook, RequestId, TransferMethod};
use std::collections::{BTreeMap, BTreeSet};
use std::mem::discriminant;

/// Of how many senders the transfers in one block are told apart, of each kind. What further ones sent is one sum. Anybody
/// may send dust, thousands of times in a block; the ledger can take back no more than its last 256 events.
const SENDERS_MAX: usize = 16;
/// Stands for the senders beyond [`SENDERS_MAX`].
const MANY: [u8; 20] = [0; 20];

/// What one look at the chain means for the life and for the book of payments.
#[derive(Debug, Default)]
pub struct Money {
    /// In the order of the chain, none of them empty.
    parts: Vec<Part>,
}

/// What is recorded together: of some whole blocks, or a piece of one that tells more than [`TOLD_MAX`].
#[derive(Debug, Default)]
struct Part {
    told: Vec<Told>,
    /// Everything up to the end of this block (height, hash) is told with it.
    read: Option<(u64, B256)>,
}

impl Money {
    pub fn has_events(&self) -> bool {
        self.told().any(|told| told.event.is_some())
    }

    /// Requests whose payments came in.
    pub fn settled(&self) -> Vec<RequestId> {
        let settled = self.payments().filter_map(|input| match input {
            BookInput::Settled { method, payer, nonce, .. } => Some(RequestId::of_payment(*method, payer, nonce)),
            _ => None,
        });
        settled.collect()
    }

    /// Requests whose payments were taken back.
    pub fn reversed(&self) -> Vec<RequestId> {
        reversed_in(self.payments()).collect()
    }

    /// What to record, in this order and before the block of the look itself: little at a time, whatever strangers sent.
    /// Where a block ends it says how far was read, so that after a crash no more than what one record holds (of a block that
    /// tells more: the block) is taken back, and what follows is read again.
    pub fn records(&self) -> Vec<Recorded> {
        let Some((last, before)) = self.parts.split_last() else { return Vec::new() };
        let mut records = Vec::new();
        for part in before {
            records.push(Recorded::events(&part.told));
            records.extend(part.read.map(|(number, hash)| Recorded::Read { number, hash: hash.0 }));
        }
        records.push(Recorded::events(&last.told));
        records
    }

    fn told(&self) -> impl Iterator<Item = &Told> {
        self.parts.iter().flat_map(|part| &part.told)
    }

    fn payments(&self) -> impl Iterator<Item = &BookInput> {
        self.told().filter_map(|told| told.payment.as_ref())
    }

    /// Takes what one block tells behind the others, with the last of them where there is room.
    fn extend(&mut self, block: Part) {
        match self.parts.last_mut() {
            _ if block.told.is_empty() => {}
            Some(last) if last.told.len() + block.told.len() <= TOLD_MAX => {
                last.told.extend(block.told);
                last.read = block.read;
            }
            _ => {
                let pieces = block.told.chunks(TOLD_MAX).map(|told| Part { told: told.to_vec(), read: None });
                self.parts.extend(pieces);
                if let Some(last) = self.parts.last_mut() {
                    last.read = block.read;
                }
            }
        }
    }
}

/// Requests whose payments these take back.
pub fn reversed_in<'a>(payments: impl IntoIterator<Item = &'a BookInput>) -> impl Iterator<Item = RequestId> {
    payments.into_iter().filter_map(|input| match input {
        BookInput::Reversed { method, payer, nonce } => Some(RequestId::of_payment(*method, payer, nonce)),
        _ => None,
    })
}

/// Translates in chain order. `leases` are those this agent rented before; market events about others are
/// somebody else's. A token transfer counts as unexplained only if no event of its own transaction explains it; one
/// that its payer had signed (`signed`: the transactions) is a customer's all the same. Transfers of one kind that a sender
/// made in one block are one event, in the place of the first. The market pays a tenant nothing but what `LeaseClosed` told,
/// in the same transaction or, when the token was frozen then (`Owed`), by `collect` later (`Collected`). Blocks that are
/// taken back put in doubt what was read of channels there.
pub fn translate(
    items: &[LogItem],
    signed: &BTreeSet<B256>,
    cx: &Context,
    leases: &BTreeSet<u64>,
    book: &ChannelBook,
) -> Money {
    let mut reading = Reading { signed, cx, leases: leases.clone(), explained: explained(items), book };
    let mut money = Money::default();
    let in_doubt = channels_taken_back(items, book).map(|payment| Told { event: None, payment: Some(payment) });
    money.extend(Part { told: in_doubt.into_iter().collect(), read: None });
    for block in items.chunk_by(|one, next| place(one) == place(next)) {
        money.extend(reading.block(block));
    }
    money
}

/// The block of a log, height and hash, and whether it is taken back. The reader tells each block in one run.
fn place(item: &LogItem) -> Option<(u64, B256, bool)> {
    match item {
        LogItem::Emitted(log) => Some((log.block, log.block_hash, false)),
        LogItem::Reverted(log) => Some((log.block, log.block_hash, true)),
        LogItem::TakenBack { .. } => None,
    }
}

/// What a translation knows while it goes from block to block.
struct Reading<'a> {
    signed: &'a BTreeSet<B256>,
    cx: &'a Context,
    leases: BTreeSet<u64>,
    explained: BTreeMap<(B256, Address), u128>,
    book: &'a ChannelBook,
}

impl Reading<'_> {
    /// One block, or one block taken back, of which the newest log comes first.
    fn block(&mut self, items: &[LogItem]) -> Part {
        let Some((number, hash, is_reverted)) = items.first().and_then(place) else { return Part::default() };
        let mut logs: Vec<&ChainLog> = items.iter().filter_map(LogItem::log).collect();
        if !is_reverted {
            return Part { told: self.logs(&logs, false), read: Some((number, hash)) };
        }
        logs.reverse();
        let mut told = self.logs(&logs, true);
        told.reverse();
        for told in &mut told {
            told.event = told.event.take().map(reverted);
        }
        told.extend(unrecorded_in(&logs, self.book));
        Part { told, read: None }
    }

    /// In the order of the block, and of one that is taken back what it had told when it was mined.
    fn logs(&mut self, logs: &[&ChainLog], is_reverted: bool) -> Vec<Told> {
        let mut told = Vec::new();
        for log in logs {
            let kind = life_event(log, self.signed, self.cx, &mut self.leases, &self.explained);
            // The index within a block is far below 2^32.
            let index = u32::try_from(log.index).unwrap_or(u32::MAX);
            let event = kind.map(|kind| ChainEvent { block: log.block, index, kind });
            push(&mut told, Told { event, payment: book_input(log, is_reverted) });
        }
        told
    }
}

/// Puts `new` behind what the block told before; a transfer becomes part of the sum of what its sender sent before.
fn push(told: &mut Vec<Told>, mut new: Told) {
    let Some(event) = &mut new.event else {
        if new.payment.is_some() {
            told.push(new);
        }
        return;
    };
    let kind = discriminant(&event.kind);
    if let Some((mut sender, amount)) = transfer(&mut event.kind) {
        let before = told.iter_mut().filter_map(|told| told.event.as_mut()).map(|event| &mut event.kind);
        let mut sums: Vec<_> = before.filter(|before| discriminant(&**before) == kind).filter_map(transfer).collect();
        let is_known = sums.iter().any(|(of, _)| *of == sender);
        if let Some(sender) = sender.as_deref_mut().filter(|_| !is_known && sums.len() >= SENDERS_MAX) {
            *sender = MANY;
        }
        if let Some((_, sum)) = sums.iter_mut().find(|(of, _)| *of == sender) {
            **sum = sum.saturating_add(*amount);
            return;
        }
    }
    told.push(new);
}

/// Of a transfer whose sums are all that is booked of it: the amount, and the sender, where there may be several.
fn transfer(kind: &mut ChainEventKind) -> Option<(Option<&mut [u8; 20]>, &mut Usdc)> {
    match kind {
        ChainEventKind::ChannelsSettled { amount } | ChainEventKind::PurseReturned { amount } => Some((None, amount)),
        ChainEventKind::CustomerPaid { from, amount } | ChainEventKind::TransferIn { from, amount } => {
            Some((Some(from), amount))
        }
        _ => None,
    }
}

/// The oldest block that the chain took back, if channels were read there or later. Most that happens to a channel logs
/// nothing of ours.
fn channels_taken_back(items: &[LogItem], book: &ChannelBook) -> Option<BookInput> {
    let gone = |item: &LogItem| match item {
        LogItem::TakenBack { from } => Some(*from),
        LogItem::Emitted(_) | LogItem::Reverted(_) => None,
    };
    let from = items.iter().filter_map(gone).min()?;
    let concerned = book.channels().channels().any(|(_, channel)| channel.chain.block >= from);
    concerned.then_some(BookInput::Channel(ChannelInput::TakenBack { from }))
}

/// (transaction, payer) → amount that the treasury's own events account for.
fn explained(items: &[LogItem]) -> BTreeMap<(B256, Address), u128> {
    let mut sums: BTreeMap<(B256, Address), u128> = BTreeMap::new();
    for log in items.iter().filter_map(LogItem::log) {
        if let Event::Treasury(TreasuryEvent::ExactSettled(e)) = &log.event {
            *sums.entry((log.tx, e.payer)).or_default() += e.amount.saturating_to::<u128>();
        }
    }
    sums
}

/// Payments without a record in the treasury, which no event of its own takes back, that these transfers had made.
fn unrecorded_in(logs: &[&ChainLog], book: &ChannelBook) -> Vec<Told> {
    let transfers = logs.iter().filter(|log| matches!(log.event, Event::Transfer { .. }));
    let txs: BTreeSet<B256> = transfers.map(|log| log.tx).collect();
    let entries = book.entries().filter(|(_, entry)| match entry.payment {
        Payment::Settled { tx, recorded: false, .. } => txs.contains(&B256::from(tx)),
        _ => false,
    });
    entries.map(|(_, entry)| Told { event: None, payment: Some(reversed(entry)) }).collect()
}

/// What takes a settlement back.
fn reversed(entry: &Entry) -> BookInput {
    let terms = &entry.reservation.settlement;
    BookInput::Reversed { method: terms.method(), payer: terms.payer(), nonce: terms.nonce() }
}

fn life_event(
    log: &ChainLog,
    signed: &BTreeSet<B256>,
    cx: &Context,
    leases: &mut BTreeSet<u64>,
    explained: &BTreeMap<(B256, Address), u128>,
) -> Option<ChainEventKind> {
    match &log.event {
        Event::Treasury(event) => treasury_event(event, leases),
        Event::Market(MarketEvent::RentPaid(e)) => {
            let lease = e.lease.saturating_to();
            leases.contains(&lease).then_some(ChainEventKind::RentPaid { lease, amount: Usdc(e.amount) })
        }
        Event::Market(MarketEvent::LeaseClosed(e)) => {
            let lease = e.lease.saturating_to();
            let (rent_total, refund) = (Usdc(e.rentTotal), Usdc(e.refund));
            leases.contains(&lease).then_some(ChainEventKind::LeaseClosed { lease, rent_total, refund })
        }
        Event::Market(MarketEvent::Owed(e)) => {
            let amount = Usdc(e.amount.saturating_to());
            (e.to == cx.config.treasury).then_some(ChainEventKind::MarketOwes { amount })
        }
        Event::Market(MarketEvent::Collected(e)) => {
            let amount = Usdc(e.amount.saturating_to());
            (e.to == cx.config.treasury).then_some(ChainEventKind::MarketPaid { amount })
        }
        Event::Market(_) => None,
        Event::Transfer { from, to, amount } => {
            let known = explained.get(&(log.tx, *from)).copied().unwrap_or(0);
            let from_market = *from == cx.config.lease_market;
            let unexplained = *to == cx.config.treasury && known < *amount && !from_market;
            let amount = Usdc(amount.saturating_sub(known));
            // Whoever made the channel contract pay out: it is what vouchers had promised.
            if unexplained && !from.is_zero() && *from == cx.suppliers.purse {
                return Some(ChainEventKind::PurseReturned { amount });
            }
            let from_channels = !from.is_zero() && *from == cx.birth.options.channels;
            let from = from.into_array();
            unexplained.then(|| match (from_channels, signed.contains(&log.tx)) {
                (true, _) => ChainEventKind::ChannelsSettled { amount },
                (false, true) => ChainEventKind::CustomerPaid { from, amount },
                (false, false) => ChainEventKind::TransferIn { from, amount },
            })
        }
    }
}

fn treasury_event(event: &TreasuryEvent, leases: &mut BTreeSet<u64>) -> Option<ChainEventKind> {
    Some(match event {
        TreasuryEvent::Activated(e) => ChainEventKind::Activated { lease: e.lease.saturating_to() },
        TreasuryEvent::Rented(e) => {
            let lease = e.lease.saturating_to();
            leases.insert(lease);
            ChainEventKind::Rented { lease, prepay: Usdc(e.prepay) }
        }
        TreasuryEvent::ToppedUp(e) => {
            ChainEventKind::ToppedUp { lease: e.lease.saturating_to(), amount: Usdc(e.amount) }
        }
        TreasuryEvent::ExactSettled(e) => ChainEventKind::ExactSettled {
            payer: e.payer.into_array(),
            nonce: e.nonce.0,
            amount: Usdc(e.amount.saturating_to()),
        },
        TreasuryEvent::ExactRefunded(e) => ChainEventKind::ExactRefunded {
            payer: e.payer.into_array(),
            nonce: e.nonce.0,
            amount: Usdc(e.amount.saturating_to()),
        },
        TreasuryEvent::DutyPaid(e) => ChainEventKind::DutyPaid { amount: Usdc(e.amount) },
        TreasuryEvent::Spent(e) if e.kind == chain::treasury::KIND_PURSE => {
            ChainEventKind::PurseFilled { amount: Usdc(e.amount) }
        }
        TreasuryEvent::Spent(e) if e.kind == chain::treasury::KIND_STORAGE => {
            ChainEventKind::StoragePaid { amount: Usdc(e.amount) }
        }
        TreasuryEvent::GasBought(e) => ChainEventKind::GasBought { amount: Usdc(e.paid.saturating_to()) },
        TreasuryEvent::Withdrawn(e) => ChainEventKind::Withdrawn { amount: Usdc(e.amount.saturating_to()) },
        _ => return None,
    })
}

/// The same settlement or refund for the book. Told twice, it changes nothing.
fn book_input(log: &ChainLog, reverted: bool) -> Option<BookInput> {
    Some(match (&log.event, reverted) {
        (Event::Treasury(TreasuryEvent::ExactSettled(e)), false) => BookInput::Settled {
            method: TransferMethod::Eip3009,
            payer: e.payer.into_array(),
            nonce: e.nonce.0,
            amount: Usdc(e.amount.saturating_to()),
            tx: log.tx.0,
            block: log.block,
            recorded: true,
        },
        (Event::Treasury(TreasuryEvent::ExactSettled(e)), true) => {
            BookInput::Reversed { method: TransferMethod::Eip3009, payer: e.payer.into_array(), nonce: e.nonce.0 }
        }
        (Event::Treasury(TreasuryEvent::ExactRefunded(e)), false) => BookInput::Refunded {
            payer: e.payer.into_array(),
            nonce: e.nonce.0,
            amount: Usdc(e.amount.saturating_to()),
        },
        (Event::Treasury(TreasuryEvent::ExactRefunded(e)), true) => {
            BookInput::RefundReversed { payer: e.payer.into_array(), nonce: e.nonce.0 }
        }
        _ => return None,
    })
}
