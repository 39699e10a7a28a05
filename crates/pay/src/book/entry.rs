use super::input::{AbortWhy, Finish, Reservation, UnpaidWhy};
use crate::Usdc;
use crate::scheme::exact::Hash;
use borsh::{BorshDeserialize, BorshSerialize};

/// One authorisation and the request that it pays for.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Entry {
    pub reservation: Reservation,
    pub service: Service,
    pub payment: Payment,
    /// What its settlement moves: the price, or of an `upto` payment what was delivered (its ceiling until then).
    pub charge: Usdc,
    /// Given back so far. One refund per payment.
    pub refunded: Usdc,
}

/// What the customer got.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum Service {
    /// The last mark, and what it is worth by the meter.
    Serving {
        tokens: u32,
        amount: Usdc,
    },
    Delivered(Delivery),
    Aborted {
        why: AbortWhy,
    },
}

/// What was delivered: frames that the server's transport took while the client was connected.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Delivery {
    /// Prompt tokens that were not computed for this request; zero when a crash lost the count.
    pub cached_tokens: u32,
    pub completion_tokens: u32,
    pub bytes: u64,
    /// sha2-256 of the output; zero when a crash lost it.
    pub output_digest: Hash,
    pub finish: Finish,
    /// Chain seconds.
    pub at: u64,
    /// The client was still connected when the last frame was taken, so it has its answer. Otherwise the same
    /// request with a fresh authorisation gets the stored answer and pays nothing.
    pub confirmed: bool,
}

/// What the seller got.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum Payment {
    /// Not to be settled before delivery.
    Waiting,
    /// To be settled.
    Due,
    /// A transaction is out.
    Sent,
    /// A transaction was out; ask the chain.
    Unknown,
    /// In the treasury. `amount` is what came, which a payer who signed one nonce twice can make less than agreed;
    /// `tx` is zero while only the treasury's record is known.
    Settled {
        amount: Usdc,
        tx: Hash,
        block: u64,
        recorded: bool,
    },
    Unpaid {
        why: UnpaidWhy,
    },
}

impl Entry {
    /// The most that its payment can move.
    pub fn value(&self) -> Usdc {
        self.reservation.settlement.value()
    }

    /// What came in, if it did.
    pub fn settled(&self) -> Option<Usdc> {
        match self.payment {
            Payment::Settled { amount, .. } => Some(amount),
            _ => None,
        }
    }

    /// Income: delivered and settled.
    pub fn earned(&self) -> Usdc {
        match self.service {
            Service::Delivered(_) => self.settled().unwrap_or_default(),
            _ => Usdc::ZERO,
        }
    }

    /// To be refunded: settled through the treasury, nothing delivered, not refunded.
    pub fn owed(&self) -> Usdc {
        match (&self.service, &self.payment) {
            (Service::Aborted { .. }, Payment::Settled { amount, recorded: true, .. }) if self.refunded.is_zero() => {
                *amount
            }
            _ => Usdc::ZERO,
        }
    }

    /// Nothing delivered, and the contract cannot give it back (no record of it, or only a part was refunded). The
    /// customer can still be served on it.
    pub fn stranded(&self) -> Usdc {
        match (&self.service, &self.payment) {
            (Service::Aborted { .. }, Payment::Settled { amount, recorded, .. })
                if !recorded || !self.refunded.is_zero() =>
            {
                amount.saturating_sub(self.refunded)
            }
            _ => Usdc::ZERO,
        }
    }

    /// Served but never (fully) paid.
    pub fn lost(&self) -> Usdc {
        match (&self.service, &self.payment) {
            (Service::Delivered(_), Payment::Unpaid { .. }) => self.charge,
            (Service::Delivered(_), Payment::Settled { amount, .. }) => self.charge.saturating_sub(*amount),
            _ => Usdc::ZERO,
        }
    }

    /// The settlement should be sent.
    pub(super) fn wants_settling(&self) -> bool {
        self.payment == Payment::Due && !self.is_aborted()
    }

    /// The settlement was sent and has no outcome yet.
    pub(super) fn is_under_way(&self) -> bool {
        matches!(self.payment, Payment::Sent | Payment::Unknown)
    }

    pub(super) fn is_aborted(&self) -> bool {
        matches!(self.service, Service::Aborted { .. })
    }

    /// Aborted, and serving it now would charge nobody twice: its payment never left, or came in and can't go back.
    pub(super) fn can_serve_again(&self) -> bool {
        self.is_aborted()
            && match self.payment {
                Payment::Waiting | Payment::Due => true,
                Payment::Settled { recorded, .. } => !recorded && self.refunded.is_zero(),
                _ => false,
            }
    }

    /// Nothing is to be done about it any more.
    pub fn is_closed(&self) -> bool {
        match (&self.service, &self.payment) {
            (Service::Serving { .. }, _) => false,
            (Service::Aborted { .. }, Payment::Waiting | Payment::Due) => true,
            (_, Payment::Settled { .. } | Payment::Unpaid { .. }) => self.owed().is_zero(),
            _ => false,
        }
    }

    /// What is charged after a crash: the last durable mark.
    pub(super) fn crashed_delivery(&self, at: u64) -> Delivery {
        let completion_tokens = match self.service {
            Service::Serving { tokens, .. } => tokens,
            _ => 0,
        };
        Delivery {
            cached_tokens: 0,
            completion_tokens,
            bytes: 0,
            output_digest: [0; 32],
            finish: Finish::Broken,
            at,
            confirmed: false,
        }
    }
}
