use std::fmt;

/// What the reader of a provider's error does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The configuration or the machine is not as it must be: fix what the message names, start again.
    Setup,
    /// The disk, the chain or a store did not do its part just now: try again later.
    Retry,
    /// A tenant's code or output is not what the protocol says: its lease fails, nobody else's.
    Tenant,
}

/// An error of the provider daemon. `Display` speaks for this layer only; the cause is in `source`.
#[derive(Debug)]
pub struct Error {
    pub kind: Kind,
    pub message: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    pub fn setup(message: impl Into<String>) -> Self {
        Self { kind: Kind::Setup, message: message.into(), source: None }
    }

    pub fn retry(message: impl Into<String>) -> Self {
        Self { kind: Kind::Retry, message: message.into(), source: None }
    }

    pub fn tenant(message: impl Into<String>) -> Self {
        Self { kind: Kind::Tenant, message: message.into(), source: None }
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
        self.source.as_deref().map(|e| e as _)
    }
}

pub type Result<T> = std::result::Result<T, Error>;
