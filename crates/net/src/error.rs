use std::fmt;

/// What the caller does next about a failed exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The request certainly did not reach the peer: retry elsewhere or later.
    Unreachable,
    /// Nobody knows whether the peer acted on it. Ask before doing it again if it moves money.
    Unknown,
    /// The peer's answer is not what it should be (too long, not JSON): drop the peer.
    BadAnswer,
    /// The request itself is wrong (bad URL, body that cannot be encoded): fix the caller.
    Usage,
}

/// A failed exchange with `url`.
#[derive(Debug)]
pub struct Error {
    pub kind: Kind,
    pub url: String,
    pub message: String,
}

impl Error {
    pub(crate) fn new(kind: Kind, url: &str, message: impl fmt::Display) -> Self {
        Self { kind, url: url.to_owned(), message: message.to_string() }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.url, self.message)
    }
}

impl std::error::Error for Error {}

/// An error with its causes on one line.
pub fn chain_of(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
