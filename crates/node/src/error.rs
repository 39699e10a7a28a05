//! Errors of a node, by what the reader does next.

use std::fmt;

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Fix the configuration, the manifest or the files it names.
    Usage,
    /// Something outside failed in a way that passes: try again.
    Retry,
    /// The chain says that this node may not act (another operator, lease over): stop.
    Superseded,
    /// Stored state contradicts itself or the chain: stop and restore from the last acknowledged checkpoint.
    Corrupt,
    /// File a bug.
    Bug,
}

#[derive(Debug)]
pub struct Error {
    pub kind: Kind,
    pub message: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    pub fn usage(message: impl Into<String>) -> Self {
        Self { kind: Kind::Usage, message: message.into(), source: None }
    }
    pub fn retry(message: impl Into<String>) -> Self {
        Self { kind: Kind::Retry, message: message.into(), source: None }
    }
    pub fn superseded(message: impl Into<String>) -> Self {
        Self { kind: Kind::Superseded, message: message.into(), source: None }
    }
    pub fn corrupt(message: impl Into<String>) -> Self {
        Self { kind: Kind::Corrupt, message: message.into(), source: None }
    }
    pub fn bug(message: impl Into<String>) -> Self {
        Self { kind: Kind::Bug, message: message.into(), source: None }
    }
    pub fn caused_by(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|s| {
            let cause: &(dyn std::error::Error + 'static) = s.as_ref();
            cause
        })
    }
}

impl From<net::Error> for Error {
    fn from(e: net::Error) -> Self {
        Self::retry("an exchange with a peer failed").caused_by(e)
    }
}
