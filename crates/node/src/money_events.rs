//! Events of treasury, market and token, translated into what moved the agent's money.

use crate::context::Context;
use alloy::primitives::{Address, B256};
use chain::bindings::{MarketEvent, TreasuryEvent};
use chain::logs::{ChainLog, Event, LogItem};
use economy::{ChainEvent, ChainEventKind, Usdc};
use pay::book::channels::ChannelInput;
use pay::book::{Entry, Payment};
use pay::{BookInput, ChannelBook, RequestId, TransferMethod};
use std::collections::{BTreeMap, BTreeSet};

/// What one batch of events means for the life and for the book of payments.
#[derive(Debug, Default)]
pub struct Money {
    pub life: Vec<ChainEvent>,
    pub book: Vec<BookInput>,
}

impl Money {
    /// Requests whose payments came in.
    pub fn settled(&self) -> Vec<RequestId> {
        let settled = self.book.iter().filter_map(|input| match input {
            BookInput::Settled { method, payer, nonce, .. } => Some(RequestId::of_payment(*method, payer, nonce)),
            _ => None,
        });
        settled.collect()
    }

    /// Requests whose payments were taken back.
    pub fn reversed(&self) -> Vec<RequestId> {
        reversed_in(&self.book).collect()
    }
}

/// Requests whose payments these take back.
pub fn reversed_in(payments: &[BookInput]) -> impl Iterator<Item = RequestId> {
    payments.iter().filter_map(|input| match input {
        BookInput::Reversed { method, payer, nonce } => Some(RequestId::of_payment(*method, payer, nonce)),
        _ => None,
    })
}

/// Translates in chain order. `leases` are those this agent rented before; market events about others are
/// somebody else's. A token transfer counts as unexplained only if no event of its own transaction explains it; one
/// that its payer had signed (`signed`: the transactions) is a customer's all the same. The market pays a tenant nothing
/// but what `LeaseClosed` told, in the same transaction or, when the token was frozen then (`Owed`), by
/// `collect` later (`Collected`). Blocks that are taken back put in doubt what was read of channels there.
pub fn translate(
    items: &[LogItem],
    signed: &BTreeSet<B256>,
    cx: &Context,
    leases: &BTreeSet<u64>,
    book: &ChannelBook,
) -> Money {
    let mut leases = leases.clone();
    let mut money = Money::default();
    let explained = explained(items);
    for item in items {
        let (log, reverted) = match item {
            LogItem::Emitted(log) => (log, false),
            LogItem::Reverted(log) => (log, true),
            LogItem::TakenBack { .. } => continue,
        };
        if let Some(input) = book_input(log, reverted) {
            money.book.push(input);
        }
        if reverted && matches!(log.event, Event::Transfer { .. }) {
            money.book.extend(unrecorded_in(log.tx, book));
        }
        let Some(kind) = life_event(log, signed, cx, &mut leases, &explained) else { continue };
        // The index within a block is far below 2^32.
        let event = ChainEvent { block: log.block, index: u32::try_from(log.index).unwrap_or(u32::MAX), kind };
        money.life.push(if reverted {
            ChainEvent { block: event.block, index: event.index, kind: ChainEventKind::Reverted(Box::new(event)) }
        } else {
            event
        });
    }
    money.book.extend(channels_taken_back(items, book));
    money
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

/// Payments without a record in the treasury, which no event of its own takes back, that this transaction had made.
fn unrecorded_in(tx: B256, book: &ChannelBook) -> Vec<BookInput> {
    let entries = book.entries().filter(|(_, entry)| match entry.payment {
        Payment::Settled { tx: settled_in, recorded: false, .. } => settled_in == tx.0,
        _ => false,
    });
    entries.map(|(_, entry)| reversed(entry)).collect()
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
