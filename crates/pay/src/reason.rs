use borsh::{BorshDeserialize, BorshSerialize};
use std::fmt;

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)+) => {
        /// Why a payment was refused, by the name that the x402 specification gives it (v2, section 9), or, where it
        /// gives none, by the name that the official packages use.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, BorshSerialize, BorshDeserialize)]
        pub enum Reason {
            $($(#[$doc])* $name,)+
        }

        impl Reason {
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)+
                }
            }
        }
    };
}

reasons! {
    /// No payment came along. The official server says it in these words.
    PaymentRequired = "Payment required",
    InvalidPayload = "invalid_payload",
    InvalidX402Version = "invalid_x402_version",
    InvalidScheme = "invalid_scheme",
    InvalidNetwork = "invalid_network",
    /// What the customer says it accepted is not what was offered.
    InvalidPaymentRequirements = "invalid_payment_requirements",
    Signature = "invalid_exact_evm_payload_signature",
    Recipient = "invalid_exact_evm_payload_recipient_mismatch",
    /// `exact` means exact: the signed value differs from the accepted amount.
    ValueMismatch = "invalid_exact_evm_payload_authorization_value_mismatch",
    ValidAfter = "invalid_exact_evm_payload_authorization_valid_after",
    ValidBefore = "invalid_exact_evm_payload_authorization_valid_before",
    /// The authorisation was used or cancelled before.
    NonceUsed = "invalid_exact_evm_nonce_already_used",
    InsufficientFunds = "insufficient_funds",
    /// The settlement, simulated, does not go through.
    Simulation = "invalid_exact_evm_transaction_simulation_failed",
    /// The payer is a contract that does not exist yet, and nobody here trusts the factory that would make it.
    FactoryNotAllowed = "eip6492_factory_not_allowed",
    InvalidTransactionState = "invalid_transaction_state",
    UnexpectedVerifyError = "unexpected_verify_error",
    UnexpectedSettleError = "unexpected_settle_error",
    /// The price moved above what was accepted: sign the new offer. Ours; the specification has no name for it.
    PriceMoved = "price_moved",
    /// The same authorisation came with another request. Ours.
    PaymentConflict = "payment_conflict",
    /// Nothing was delivered for this authorisation; what was taken goes back. Ours.
    PaymentAborted = "payment_aborted",
    /// Too many payments of this payer, or of all payers, are open. Ours.
    TooManyOpen = "too_many_open_payments",

    /// It was sent and its end is not known: ask again.
    SettlementPending = "settlement_pending",
    /// The payee has no credit with this facilitator for the gas. Ours.
    FacilitatorCredit = "facilitator_credit_required",

    // Permit2: `exact` for tokens without EIP-3009, and `upto`.
    Permit2Signature = "invalid_permit2_signature",
    Permit2Spender = "invalid_permit2_spender",
    Permit2Recipient = "invalid_permit2_recipient_mismatch",
    Permit2Amount = "permit2_amount_mismatch",
    Permit2Token = "permit2_token_mismatch",
    Permit2Deadline = "permit2_deadline_expired",
    Permit2NotYetValid = "permit2_not_yet_valid",
    Permit2Nonce = "permit2_invalid_nonce",
    Permit2Allowance = "permit2_allowance_required",
    Permit2Simulation = "permit2_simulation_failed",
    /// The witness names another facilitator than the one that would settle.
    UptoFacilitator = "upto_facilitator_mismatch",

    // Channels.
    ChannelPayloadType = "invalid_batch_settlement_evm_payload_type",
    ChannelIdInvalid = "invalid_batch_settlement_evm_channel_id_invalid",
    ChannelIdMismatch = "invalid_batch_settlement_evm_channel_id_mismatch",
    ReceiverMismatch = "invalid_batch_settlement_evm_receiver_mismatch",
    ReceiverAuthorizerMismatch = "invalid_batch_settlement_evm_receiver_authorizer_mismatch",
    TokenMismatch = "invalid_batch_settlement_evm_token_mismatch",
    WithdrawDelayMismatch = "invalid_batch_settlement_evm_withdraw_delay_mismatch",
    WithdrawDelayOutOfRange = "invalid_batch_settlement_evm_withdraw_delay_out_of_range",
    VoucherSignature = "invalid_batch_settlement_evm_voucher_signature",
    ChannelNotFound = "invalid_batch_settlement_evm_channel_not_found",
    /// The voucher does not cover what was charged before and this request: the offer says how the channel stands.
    CumulativeMismatch = "invalid_batch_settlement_evm_cumulative_amount_mismatch",
    /// The voucher is below what was claimed on chain.
    CumulativeBelowClaimed = "invalid_batch_settlement_evm_cumulative_below_claimed",
    CumulativeExceedsBalance = "invalid_batch_settlement_evm_cumulative_exceeds_balance",
    /// Other requests of this channel are being served and hold what the voucher would cover.
    ChannelBusy = "invalid_batch_settlement_evm_channel_busy",
    DepositBelowMin = "invalid_batch_settlement_evm_deposit_below_min_deposit",
    DepositSignature = "invalid_batch_settlement_evm_receive_authorization_signature",
    DepositValidAfter = "invalid_batch_settlement_evm_payload_authorization_valid_after",
    DepositValidBefore = "invalid_batch_settlement_evm_payload_authorization_valid_before",
    DepositDeadline = "invalid_batch_settlement_evm_permit2_deadline_expired",
    DepositPermit2Signature = "invalid_batch_settlement_evm_permit2_invalid_signature",
    DepositPermit2Spender = "invalid_batch_settlement_evm_permit2_invalid_spender",
    DepositPermit2Amount = "invalid_batch_settlement_evm_permit2_amount_mismatch",
    Eip2612AmountMismatch = "invalid_batch_settlement_evm_eip2612_amount_mismatch",
    DepositFactoryNotAllowed = "invalid_batch_settlement_evm_eip6492_factory_not_allowed",
    DepositSimulation = "invalid_batch_settlement_evm_deposit_simulation_failed",
    DepositFailed = "invalid_batch_settlement_evm_deposit_transaction_failed",
    RefundNoBalance = "invalid_batch_settlement_evm_refund_no_balance",
    RefundAmountInvalid = "invalid_batch_settlement_evm_refund_amount_invalid",
    RefundFailed = "invalid_batch_settlement_evm_refund_transaction_failed",
    /// The payee gives no more back today than its day limit leaves beside its hosts. Ours.
    RefundOverDay = "refund_over_day_limit",
}

impl Reason {
    /// Whether the payer gains anything by paying again: with what is offered now (`PriceMoved`, expiry) or later.
    pub fn is_transient(self) -> bool {
        matches!(
            self,
            Self::PriceMoved
                | Self::ValidAfter
                | Self::ValidBefore
                | Self::TooManyOpen
                | Self::RefundOverDay
                | Self::PaymentAborted
                | Self::UnexpectedVerifyError
                | Self::UnexpectedSettleError
                | Self::SettlementPending
                | Self::FacilitatorCredit
                | Self::CumulativeMismatch
                | Self::CumulativeBelowClaimed
                | Self::ChannelBusy
        )
    }

    /// HTTP status of the answer: a header that cannot be read is the sender's bug (400), everything else is an
    /// invitation to pay properly (402), as the HTTP transport of x402 v2 maps them.
    pub fn status(self) -> u16 {
        match self {
            Self::InvalidPayload | Self::InvalidX402Version => 400,
            Self::PaymentConflict => 409,
            Self::TooManyOpen | Self::RefundOverDay => 429,
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
