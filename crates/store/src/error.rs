use std::fmt;

/// What the reader of an error does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The request is wrong (malformed CID, name in use, symbolic link): fix what the message names.
    Usage,
    /// The object is in none of the places asked: name more sources, or store it first.
    Missing,
    /// Bytes that do not match their CID, do not parse, or lie about lengths: drop whoever sent them.
    Corrupt,
    /// The object is over a stated limit (size, depth, entries): refuse it, or raise the limit knowingly.
    OverLimit,
    /// The disk is full: free space and run the same command again; nothing was lost.
    DiskFull,
    /// The disk failed otherwise: look at the cause.
    Disk,
    /// No source answered in time: try again later or name other sources.
    Unreachable,
    /// A key does not fit what it should open: use the right key.
    Key,
    /// Something that cannot happen did: file a bug.
    Bug,
}

/// An error of the content store. `Display` speaks for this layer only; the cause is in `source`.
#[derive(Debug)]
pub struct Error {
    pub kind: Kind,
    pub message: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), source: None }
    }

    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Kind::Usage, message)
    }

    pub fn missing(message: impl Into<String>) -> Self {
        Self::new(Kind::Missing, message)
    }

    pub fn corrupt(message: impl Into<String>) -> Self {
        Self::new(Kind::Corrupt, message)
    }

    pub fn over_limit(message: impl Into<String>) -> Self {
        Self::new(Kind::OverLimit, message)
    }

    pub fn unreachable(message: impl Into<String>) -> Self {
        Self::new(Kind::Unreachable, message)
    }

    pub fn key(message: impl Into<String>) -> Self {
        Self::new(Kind::Key, message)
    }

    pub fn bug(message: impl Into<String>) -> Self {
        Self::new(Kind::Bug, message)
    }

    /// A failed file operation; a full disk (or quota) is told apart because its cure is another one.
    pub fn disk(message: impl Into<String>, cause: std::io::Error) -> Self {
        use std::io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        let full = matches!(cause.kind(), StorageFull | QuotaExceeded | FileTooLarge);
        let (kind, message) = match full {
            true => (Kind::DiskFull, format!("{}: the disk is full; free space and try again", message.into())),
            false => (Kind::Disk, message.into()),
        };
        Self::new(kind, message).caused_by(cause)
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

/// Runs file work off the async threads. A panic in it stays a panic.
pub(crate) async fn off_thread<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(e) if e.is_panic() => std::panic::resume_unwind(e.into_panic()),
        Err(e) => Err(Error::bug("the runtime stopped before a file operation ended").caused_by(e)),
    }
}
