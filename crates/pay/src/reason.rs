use std::fmt;

/// Why a payment was refused, by the name that the x402 specification gives it (v2, section 9), or, where it gives
/// none, by the name that the official packages use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// No payment came along. The official server says it in these words.
    PaymentRequired,
    InvalidPayload,
    InvalidX402Version,
    InvalidScheme,
    InvalidNetwork,
    /// What the customer says it accepted is not what was offered.
    InvalidPaymentRequirements,
    Signature,
    Recipient,
    /// `exact` means exact: the signed value differs from the accepted amount.
    ValueMismatch,
    ValidAfter,
    ValidBefore,
    /// The authorisation was used or cancelled before.
    NonceUsed,
    InsufficientFunds,
    InvalidTransactionState,
    UnexpectedVerifyError,
    UnexpectedSettleError,
    /// The price moved above what was accepted: sign the new offer. Ours; the specification has no name for it.
    PriceMoved,
    /// The same authorisation came with another request. Ours.
    PaymentConflict,
    /// Nothing was delivered for this authorisation; what was taken goes back. Ours.
    PaymentAborted,
    /// Too many payments of this payer, or of all payers, are open. Ours.
    TooManyOpen,
}

impl Reason {
    pub const ALL: [Self; 20] = [
        Self::PaymentRequired,
        Self::InvalidPayload,
        Self::InvalidX402Version,
        Self::InvalidScheme,
        Self::InvalidNetwork,
        Self::InvalidPaymentRequirements,
        Self::Signature,
        Self::Recipient,
        Self::ValueMismatch,
        Self::ValidAfter,
        Self::ValidBefore,
        Self::NonceUsed,
        Self::InsufficientFunds,
        Self::InvalidTransactionState,
        Self::UnexpectedVerifyError,
        Self::UnexpectedSettleError,
        Self::PriceMoved,
        Self::PaymentConflict,
        Self::PaymentAborted,
        Self::TooManyOpen,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::PaymentRequired => "Payment required",
            Self::InvalidPayload => "invalid_payload",
            Self::InvalidX402Version => "invalid_x402_version",
            Self::InvalidScheme => "invalid_scheme",
            Self::InvalidNetwork => "invalid_network",
            Self::InvalidPaymentRequirements => "invalid_payment_requirements",
            Self::Signature => "invalid_exact_evm_payload_signature",
            Self::Recipient => "invalid_exact_evm_payload_recipient_mismatch",
            Self::ValueMismatch => "invalid_exact_evm_payload_authorization_value_mismatch",
            Self::ValidAfter => "invalid_exact_evm_payload_authorization_valid_after",
            Self::ValidBefore => "invalid_exact_evm_payload_authorization_valid_before",
            Self::NonceUsed => "invalid_exact_evm_nonce_already_used",
            Self::InsufficientFunds => "insufficient_funds",
            Self::InvalidTransactionState => "invalid_transaction_state",
            Self::UnexpectedVerifyError => "unexpected_verify_error",
            Self::UnexpectedSettleError => "unexpected_settle_error",
            Self::PriceMoved => "price_moved",
            Self::PaymentConflict => "payment_conflict",
            Self::PaymentAborted => "payment_aborted",
            Self::TooManyOpen => "too_many_open_payments",
        }
    }

    /// Whether the payer gains anything by paying again: with what is offered now (`PriceMoved`, expiry) or later.
    pub fn is_transient(self) -> bool {
        matches!(
            self,
            Self::PriceMoved
                | Self::ValidAfter
                | Self::ValidBefore
                | Self::TooManyOpen
                | Self::PaymentAborted
                | Self::UnexpectedVerifyError
                | Self::UnexpectedSettleError
        )
    }

    /// HTTP status of the answer: a header that cannot be read is the sender's bug (400), everything else is an
    /// invitation to pay properly (402), as the HTTP transport of x402 v2 maps them.
    pub fn status(self) -> u16 {
        match self {
            Self::InvalidPayload | Self::InvalidX402Version => 400,
            Self::PaymentConflict => 409,
            Self::TooManyOpen => 429,
            _ => 402,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A payment that was not taken: the name for programs, the sentence for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub reason: Reason,
    pub message: String,
}

impl Refusal {
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.reason, self.message)
    }
}

impl std::error::Error for Refusal {}
