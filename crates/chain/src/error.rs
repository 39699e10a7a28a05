//! What can go wrong between us and the chain, sorted by what the caller does next.

use alloy::{
    hex,
    primitives::Bytes,
    sol_types::{Panic, Revert as RevertString, SolError},
    transports::{RpcError, TransportError},
};
use std::{fmt, sync::Arc};

use crate::bindings::{LeaseMarket::LeaseMarketErrors, TestUSDC::TestUSDCErrors, Treasury::TreasuryErrors};

/// An error of this crate. `Display` is one line for people; [`Error::kind`] is for programs.
#[derive(Clone, Debug)]
pub struct Error {
    /// What the caller does next.
    pub kind: Kind,
    /// One line: what was tried and why it failed.
    pub message: String,
    source: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

/// What the caller does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The endpoint did not answer, or answered nonsense. Nothing is known to have happened: retry.
    Rpc,
    /// A contract refused, for this reason. Retrying the same call at the same state gives the same answer.
    Reverted(Revert),
    /// It may or may not have happened. Read the chain before doing it again.
    Unknown,
    /// The endpoint serves another chain than the one named. Fix the configuration.
    WrongChain,
    /// No contract, or the wrong one, at an address. Fix the configuration, or deploy.
    Missing,
    /// Quorum, timers or clocks are such that no agent could live: fix what the message names.
    Unfit,
    /// The caller asked for something that cannot be: fix the call.
    Usage,
}

/// A contract's refusal, decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revert {
    /// The custom error's name (`OverDayLimit`), `Error` for a plain message, `Panic`, or `Unknown`.
    pub name: String,
    /// The error with its arguments, for people.
    pub text: String,
    /// The revert data as it came.
    pub data: Bytes,
}

impl Revert {
    /// Decodes revert data by the errors of the treasury, the market and the token.
    pub fn decode(data: &Bytes) -> Self {
        let (name, text) = named(data);
        Self { name, text, data: data.clone() }
    }

    /// A refusal that came without data, only with the endpoint's words.
    pub fn without_data(message: &str) -> Self {
        Self { name: "Unknown".into(), text: message.into(), data: Bytes::new() }
    }
}

fn named(data: &Bytes) -> (String, String) {
    if let Ok(error) = RevertString::abi_decode(data) {
        return ("Error".into(), error.reason);
    }
    if let Ok(panic) = Panic::abi_decode(data) {
        return ("Panic".into(), panic.to_string());
    }
    let Some(selector) = data.first_chunk::<4>().copied() else {
        return ("Unknown".into(), "reverted without a reason".into());
    };
    macro_rules! try_contract {
        ($errors:ident) => {
            if let Some(name) = $errors::name_by_selector(selector) {
                use alloy::sol_types::SolInterface;
                let text = $errors::abi_decode(data).map_or_else(|_| name.to_owned(), |e| plain(&format!("{e:?}")));
                return (name.to_owned(), text);
            }
        };
    }
    try_contract!(TreasuryErrors);
    try_contract!(LeaseMarketErrors);
    try_contract!(TestUSDCErrors);
    ("Unknown".into(), format!("unknown error {}", hex::encode_prefixed(data)))
}

/// `TooEarly(TooEarly { until: 5 })` as the derive prints it becomes `TooEarly { until: 5 }`.
fn plain(debug: &str) -> String {
    match debug.split_once('(') {
        Some((variant, inner)) if inner.starts_with(variant) && inner.ends_with(')') => {
            inner[..inner.len() - 1].to_owned()
        }
        _ => debug.to_owned(),
    }
}

impl Error {
    /// The endpoint failed in a way that a retry may cure.
    pub fn rpc(message: impl Into<String>) -> Self {
        Self { kind: Kind::Rpc, message: message.into(), source: None }
    }

    /// A contract refused.
    pub fn reverted(what: &str, revert: Revert) -> Self {
        Self { message: format!("{what}: {}", revert.text), kind: Kind::Reverted(revert), source: None }
    }

    /// It may have happened.
    pub fn unknown(message: impl Into<String>) -> Self {
        Self { kind: Kind::Unknown, message: message.into(), source: None }
    }

    /// The endpoint serves another chain.
    pub fn wrong_chain(message: impl Into<String>) -> Self {
        Self { kind: Kind::WrongChain, message: message.into(), source: None }
    }

    /// A contract is not where it should be.
    pub fn missing(message: impl Into<String>) -> Self {
        Self { kind: Kind::Missing, message: message.into(), source: None }
    }

    /// What was found could not work.
    pub fn unfit(message: impl Into<String>) -> Self {
        Self { kind: Kind::Unfit, message: message.into(), source: None }
    }

    /// The caller's mistake.
    pub fn usage(message: impl Into<String>) -> Self {
        Self { kind: Kind::Usage, message: message.into(), source: None }
    }

    /// Keeps the cause below this error.
    pub fn with_source(mut self, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        self.source = Some(Arc::new(source));
        self
    }

    /// Whether trying again later may succeed without anybody changing anything.
    pub fn is_transient(&self) -> bool {
        matches!(self.kind, Kind::Rpc)
    }

    /// The contract's refusal, if that is what this is.
    pub fn revert(&self) -> Option<&Revert> {
        match &self.kind {
            Kind::Reverted(revert) => Some(revert),
            _ => None,
        }
    }

    /// Whether the endpoint did answer, with an error in its own words (no funds, unknown block): asking again at
    /// once gives the same answer.
    pub(crate) fn was_answered(&self) -> bool {
        let source =
            self.source.as_deref().and_then(|s| (s as &dyn std::error::Error).downcast_ref::<TransportError>());
        matches!(source, Some(RpcError::ErrorResp(_)))
    }

    /// Sorts what alloy's transport says. An error *response* with revert data, or with code 3, is the contract's
    /// word; every other failure is the endpoint's.
    pub(crate) fn of_transport(what: &str, error: TransportError) -> Self {
        if let RpcError::ErrorResp(payload) = &error {
            if let Some(data) = payload.as_revert_data() {
                return Self::reverted(what, Revert::decode(&data));
            }
            if payload.code == 3 || payload.message.contains("revert") {
                return Self::reverted(what, Revert::without_data(&payload.message));
            }
            return Self::rpc(format!("{what}: the endpoint answers: {}", payload.message)).with_source(error);
        }
        Self::rpc(format!("{what}: {error}")).with_source(error)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| &**source as &(dyn std::error::Error + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bindings::{LeaseMarket, Treasury};
    use alloy::primitives::U256;

    #[test]
    fn a_custom_error_is_named_with_its_arguments() {
        let data = Treasury::OverDayLimit { left: U256::from(12) }.abi_encode().into();
        let revert = Revert::decode(&data);
        assert_eq!((revert.name.as_str(), revert.text.as_str()), ("OverDayLimit", "OverDayLimit { left: 12 }"));
    }

    #[test]
    fn the_markets_errors_are_known_too() {
        let data = LeaseMarket::NoCapacity {}.abi_encode().into();
        assert_eq!(Revert::decode(&data).name, "NoCapacity");
    }

    #[test]
    fn a_strangers_error_keeps_its_bytes() {
        let data = Bytes::from_static(&[1, 2, 3, 4, 5]);
        let revert = Revert::decode(&data);
        assert_eq!((revert.name.as_str(), revert.text.as_str()), ("Unknown", "unknown error 0x0102030405"));
        assert_eq!(Revert::decode(&Bytes::new()).text, "reverted without a reason");
    }
}
