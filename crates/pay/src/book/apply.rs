use super::entry::{Entry, Payment, Service};
use super::input::{BookInput, BookOutput, LimitReached, RequestId, Reservation, Timing};
use super::totals::Totals;
use super::{ChannelBook, ChannelInput, ORPHANS_MAX, Orphan, PaymentKey};
use crate::Usdc;
use crate::scheme::TransferMethod;

impl ChannelBook {
    /// Folds one input. Total: an input that does not fit (doubled, late, about a request nobody knows) changes
    /// nothing and returns nothing.
    pub fn apply(&mut self, input: BookInput) -> Vec<BookOutput> {
        match input {
            BookInput::Reserved(reservation) => self.reserve(reservation),
            BookInput::Mark { request, tokens: mark, amount: worth } => self.change(request, |entry| {
                if let Service::Serving { tokens, amount } = &mut entry.service {
                    (*tokens, *amount) = (mark.max(*tokens), worth.max(*amount));
                }
            }),
            BookInput::Delivered { request, delivery, amount } => {
                self.clock = self.clock.max(delivery.at);
                self.change(request, |entry| match &mut entry.service {
                    Service::Serving { .. } => {
                        entry.charge = entry.reservation.settlement.charge(amount);
                        entry.service = Service::Delivered(delivery);
                        if entry.payment == Payment::Waiting {
                            entry.payment = Payment::Due;
                        }
                    }
                    Service::Delivered(known) => known.confirmed |= delivery.confirmed,
                    Service::Aborted { .. } => {}
                })
            }
            BookInput::Aborted { request, why } => self.change(request, |entry| {
                if matches!(entry.service, Service::Serving { .. }) {
                    entry.service = Service::Aborted { why };
                }
            }),
            BookInput::SettleSent { request } => self.change(request, |entry| {
                if matches!(entry.payment, Payment::Waiting | Payment::Due | Payment::Unknown) {
                    entry.payment = Payment::Sent;
                }
            }),
            BookInput::SettleUnknown { request } => self.change(request, |entry| {
                if entry.payment == Payment::Sent {
                    entry.payment = Payment::Unknown;
                }
            }),
            BookInput::Unpaid { request, why } => self.change(request, |entry| {
                if !matches!(entry.payment, Payment::Settled { .. } | Payment::Unpaid { .. }) {
                    entry.payment = Payment::Unpaid { why };
                }
            }),
            BookInput::Settled { method, payer, nonce, amount, tx, block, recorded } => {
                let orphan = Orphan { amount, tx, block, recorded, seen_at: self.clock };
                self.settle((method, payer, nonce), orphan)
            }
            BookInput::Reversed { method, payer, nonce } => self.reverse((method, payer, nonce)),
            BookInput::Refunded { payer, nonce, amount } => {
                match self.by_payment.get(&(TransferMethod::Eip3009, payer, nonce)) {
                    Some(request) => {
                        self.change(*request, |entry| entry.refunded = entry.refunded.max(amount.min(entry.owed())))
                    }
                    None => Vec::new(),
                }
            }
            BookInput::RefundReversed { payer, nonce } => {
                match self.by_payment.get(&(TransferMethod::Eip3009, payer, nonce)) {
                    Some(request) => self.change(*request, |entry| entry.refunded = Usdc::ZERO),
                    None => Vec::new(),
                }
            }
            BookInput::Pruned { before } => {
                self.channels.apply(ChannelInput::Pruned { before });
                self.prune(before)
            }
            BookInput::Channel(input) => {
                let named = match &input {
                    ChannelInput::Reserved(call) => call.identifier.map(|name| (call.request, call.channel, name)),
                    _ => None,
                };
                let outputs = self.channels.apply(input);
                if let Some((request, channel, name)) = named
                    && self.channels.call(&request).is_some()
                    && let Some(channel) = self.channels.channel(&channel)
                {
                    self.by_name.insert((channel.config.payer, name), request);
                }
                outputs.into_iter().map(BookOutput::Channel).collect()
            }
        }
    }

    fn reserve(&mut self, reservation: Reservation) -> Vec<BookOutput> {
        let (request, key) = (reservation.request, reservation.payment_key());
        self.clock = self.clock.max(reservation.at);
        let refused = |why| vec![BookOutput::Refused { request, why }];
        if let Some(entry) = self.entries.get(&request) {
            if entry.reservation.payment_key() != key || entry.reservation.body_key() != reservation.body_key() {
                return refused(LimitReached::NonceTaken);
            }
            if !entry.can_serve_again() {
                return Vec::new();
            }
        } else if self.by_payment.contains_key(&key) || self.spent.contains_key(&key) {
            return refused(LimitReached::NonceTaken);
        }
        let (_, payer, _) = key;
        if let Some(limit) = self.limit_reached(&payer, &key) {
            return refused(limit);
        }
        self.by_payment.insert(key, request);
        self.by_body.insert((payer, reservation.body_key()), request);
        if let Some(name) = reservation.identifier {
            self.by_name.insert((payer, name), request);
        }
        let payment = match (self.take_orphan(&key), reservation.timing) {
            (Some(orphan), _) => orphan.payment(),
            (None, Timing::AtOnce) => Payment::Due,
            (None, Timing::OnDelivery) => Payment::Waiting,
        };
        let before = self.entries.remove(&request);
        // Served again on money that came in without a record: it stays in.
        let payment = match &before {
            Some(Entry { payment: settled @ Payment::Settled { .. }, .. }) => settled.clone(),
            _ => payment,
        };
        let entry = Entry {
            charge: reservation.settlement.value(),
            reservation,
            service: Service::Serving { tokens: 0, amount: Usdc::ZERO },
            payment,
            refunded: Usdc::ZERO,
        };
        self.entries.insert(request, entry);
        self.changed(request, before.as_ref())
    }

    fn settle(&mut self, key: PaymentKey, orphan: Orphan) -> Vec<BookOutput> {
        if let Some(request) = self.by_payment.get(&key) {
            return self.change(*request, |entry| match &mut entry.payment {
                // The first word counts. It may have come without its transaction (zero), which a later one brings.
                Payment::Settled { tx, block, .. } if *tx == [0; 32] => (*tx, *block) = (orphan.tx, orphan.block),
                Payment::Settled { .. } => {}
                payment => *payment = orphan.payment(),
            });
        }
        // A forgotten payment that is read again is no new money.
        if !self.spent.contains_key(&key) && !self.orphans.contains_key(&key) {
            if self.orphans.len() < ORPHANS_MAX {
                self.totals.unmatched = self.totals.unmatched.saturating_add(orphan.amount);
                self.orphans.insert(key, orphan);
            } else {
                self.totals.unclaimed = self.totals.unclaimed.saturating_add(orphan.amount);
            }
        }
        Vec::new()
    }

    fn reverse(&mut self, key: PaymentKey) -> Vec<BookOutput> {
        self.take_orphan(&key);
        match self.by_payment.get(&key) {
            Some(request) => self.change(*request, |entry| {
                if entry.settled().is_some() {
                    entry.payment = Payment::Unknown;
                    entry.refunded = Usdc::ZERO;
                }
            }),
            None => Vec::new(),
        }
    }

    fn take_orphan(&mut self, key: &PaymentKey) -> Option<Orphan> {
        let orphan = self.orphans.remove(key)?;
        self.totals.unmatched = self.totals.unmatched.saturating_sub(orphan.amount);
        Some(orphan)
    }

    fn prune(&mut self, before: u64) -> Vec<BookOutput> {
        let old: Vec<RequestId> = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.is_closed() && entry.reservation.at < before)
            .map(|(request, _)| *request)
            .collect();
        for request in old {
            let Some(entry) = self.entries.remove(&request) else { continue };
            let key = entry.reservation.payment_key();
            self.by_payment.remove(&key);
            let body = (key.1, entry.reservation.body_key());
            if self.by_body.get(&body) == Some(&request) {
                self.by_body.remove(&body);
            }
            // Not the unused ones: those may still pay for something, once.
            if matches!(entry.payment, Payment::Settled { .. } | Payment::Unpaid { .. }) {
                self.spent.insert(key, entry.reservation.settlement.expires_at());
            }
        }
        self.spent.retain(|_, expires_at| *expires_at > before);
        let (entries, channels) = (&self.entries, &self.channels);
        self.by_name.retain(|_, request| entries.contains_key(request) || channels.call(request).is_some());
        let old: Vec<PaymentKey> =
            self.orphans.iter().filter(|(_, orphan)| orphan.seen_at < before).map(|(key, _)| *key).collect();
        for key in old {
            if let Some(orphan) = self.take_orphan(&key) {
                self.totals.unclaimed = self.totals.unclaimed.saturating_add(orphan.amount);
            }
        }
        Vec::new()
    }

    /// Changes one entry and returns what follows from the difference.
    fn change(&mut self, request: RequestId, change: impl FnOnce(&mut Entry)) -> Vec<BookOutput> {
        let Some(entry) = self.entries.get_mut(&request) else { return Vec::new() };
        let before = entry.clone();
        change(entry);
        self.changed(request, Some(&before))
    }

    /// Keeps the sums and counts, and derives the outputs: each is a predicate of the entry that became true.
    fn changed(&mut self, request: RequestId, before: Option<&Entry>) -> Vec<BookOutput> {
        let Some(after) = self.entries.get(&request) else { return Vec::new() };
        let (payer, nonce) = (after.reservation.settlement.payer(), after.reservation.settlement.nonce());
        let was_open = before.is_some_and(|entry| !entry.is_closed());
        match (was_open, !after.is_closed()) {
            (false, true) => {
                self.open += 1;
                *self.open_by_payer.entry(payer).or_default() += 1;
            }
            (true, false) => {
                self.open -= 1;
                if let Some(open) = self.open_by_payer.get_mut(&payer) {
                    *open -= 1;
                    if *open == 0 {
                        self.open_by_payer.remove(&payer);
                    }
                }
            }
            _ => {}
        }
        self.totals.replace(&before.map(Totals::of).unwrap_or_default(), &Totals::of(after));

        let amounts = |read: fn(&Entry) -> Usdc| (before.map(read).unwrap_or_default(), read(after));
        let mut outputs = Vec::new();
        if after.wants_settling() && !before.is_some_and(Entry::wants_settling) {
            outputs.push(BookOutput::Settle { request });
        }
        match amounts(Entry::earned) {
            (Usdc::ZERO, amount) if !amount.is_zero() => {
                outputs.push(BookOutput::Receipt { request });
                outputs.push(BookOutput::Earned { request, amount });
            }
            (amount, Usdc::ZERO) if !amount.is_zero() => outputs.push(BookOutput::Unearned { request, amount }),
            _ => {}
        }
        if let (Usdc::ZERO, amount) = amounts(Entry::owed)
            && !amount.is_zero()
        {
            outputs.push(BookOutput::Owe { request, payer, nonce, amount });
        }
        outputs
    }
}

impl Orphan {
    fn payment(&self) -> Payment {
        Payment::Settled { amount: self.amount, tx: self.tx, block: self.block, recorded: self.recorded }
    }
}
