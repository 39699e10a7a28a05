use super::entry::{Entry, Payment, Service};
use crate::Usdc;
use borsh::{BorshDeserialize, BorshSerialize};

/// Sums over all requests, forgotten ones included. Micro-USDC.
///
/// settled = held + earned + owed + stranded + refunded.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Totals {
    /// Being served, payment not in yet.
    pub reserved: Usdc,
    /// Delivered, payment not in yet.
    pub served_unsettled: Usdc,
    /// Delivered and never paid, or the part of it that was not paid.
    pub lost: Usdc,
    /// All that came in for requests.
    pub settled: Usdc,
    /// Came in, still being served.
    pub held: Usdc,
    /// Came in and delivered.
    pub earned: Usdc,
    /// Came in, nothing delivered, to be refunded.
    pub owed: Usdc,
    /// Came in, nothing delivered, cannot be refunded by the contract.
    pub stranded: Usdc,
    pub refunded: Usdc,
    /// Came in for authorisations that no request used (yet); not part of `settled`.
    pub unmatched: Usdc,
    /// Unmatched until it was forgotten: a gift, for the ledger.
    pub unclaimed: Usdc,
}

impl Totals {
    /// What one entry contributes.
    pub fn of(entry: &Entry) -> Self {
        let mut totals = Self {
            lost: entry.lost(),
            earned: entry.earned(),
            owed: entry.owed(),
            stranded: entry.stranded(),
            refunded: entry.refunded,
            settled: entry.settled().unwrap_or_default(),
            ..Self::default()
        };
        match (&entry.service, &entry.payment) {
            (Service::Serving { .. }, Payment::Settled { amount, .. }) => totals.held = *amount,
            (_, Payment::Settled { .. } | Payment::Unpaid { .. }) => {}
            (Service::Serving { .. }, _) => totals.reserved = entry.value(),
            (Service::Delivered(_), _) => totals.served_unsettled = entry.charge,
            (Service::Aborted { .. }, _) => {}
        }
        totals
    }

    /// Whether the books balance; the fold asserts it in its tests, the node whenever it likes.
    pub fn is_balanced(&self) -> bool {
        [self.held, self.earned, self.owed, self.stranded, self.refunded].into_iter().sum::<Usdc>() == self.settled
    }

    /// Takes `before` out and puts `after` in.
    pub(super) fn replace(&mut self, before: &Self, after: &Self) {
        let fields = self.fields_mut().into_iter().zip(before.fields()).zip(after.fields());
        for ((sum, before), after) in fields {
            // `before` was added by an earlier call. Sums of real USDC are far below 2^128, so saturation is never
            // met; it only keeps a made-up amount from stopping the process.
            *sum = sum.saturating_sub(before).saturating_add(after);
        }
    }

    fn fields(&self) -> [Usdc; 11] {
        [
            self.reserved,
            self.served_unsettled,
            self.lost,
            self.settled,
            self.held,
            self.earned,
            self.owed,
            self.stranded,
            self.refunded,
            self.unmatched,
            self.unclaimed,
        ]
    }

    fn fields_mut(&mut self) -> [&mut Usdc; 11] {
        [
            &mut self.reserved,
            &mut self.served_unsettled,
            &mut self.lost,
            &mut self.settled,
            &mut self.held,
            &mut self.earned,
            &mut self.owed,
            &mut self.stranded,
            &mut self.refunded,
            &mut self.unmatched,
            &mut self.unclaimed,
        ]
    }
}
