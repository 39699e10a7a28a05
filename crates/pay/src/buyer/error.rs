use std::fmt;

/// What the buyer's caller does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Nothing was paid: try again or elsewhere.
    Unreachable,
    /// A signed payment is out and nobody knows whether it was taken: make the same call again, which sends the same
    /// payment. Do not make another one in its place.
    OutcomeUnknown,
    /// Over the limit of one call or channel; nothing was signed. Raise the limit or go elsewhere.
    TooExpensive,
    /// Over a sum of a day, a host, or in all; nothing was signed. Wait for the next day or raise the limit.
    BudgetUsed,
    /// Wants another token, network or payee than the policy's; nothing was signed. Do not trust this address.
    WrongSeller,
    /// The seller did not take the payment, and says why. Fix it (fund the account, update the client).
    Refused,
    /// What is offered goes through Permit2, and the payer lets that spend too little; nothing was signed. Approve Permit2
    /// once by a transaction of the payer's, or go elsewhere.
    NoAllowance,
    /// The peer does not speak x402 v2 properly: go elsewhere.
    BadAnswer,
    /// Another process pays by this record: end it, then try again. Nothing was signed.
    InUse,
    /// The call itself is wrong: fix the caller.
    Usage,
}

/// A call that got no answer.
#[derive(Debug)]
pub struct Error {
    pub kind: Kind,
    pub url: String,
    pub message: String,
}

impl Error {
    pub(super) fn new(kind: Kind, url: &str, message: impl fmt::Display) -> Self {
        Self { kind, url: url.to_owned(), message: message.to_string() }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.url, self.message)
    }
}

impl std::error::Error for Error {}
