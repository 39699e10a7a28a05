//! Errors of a journal, by what the reader does next.

use std::fmt;

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The disk is full: stop serving, free space, start again; nothing acknowledged is lost.
    DiskFull,
    /// Reading or writing failed in another way: stop, look at the disk, start again.
    Io,
    /// Bytes in the middle of the log are wrong: restore from the last acknowledged checkpoint.
    Corrupt,
    /// Another process holds this journal: stop that one first.
    Locked,
    /// These records do not follow the last one: ask for the missing ones.
    Gap,
    /// Written by a release this one cannot read: use that release, or a checkpoint.
    Version,
    /// The caller asked for something impossible: file a bug.
    Bug,
}

/// Cheap to clone: a failed writer tells every waiter the same thing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    pub kind: Kind,
    pub message: String,
}

impl Error {
    pub(crate) fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    pub(crate) fn io(doing: &str, path: &std::path::Path, e: &std::io::Error) -> Self {
        let full = matches!(
            e.kind(),
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded | std::io::ErrorKind::FileTooLarge
        );
        let kind = if full { Kind::DiskFull } else { Kind::Io };
        Self::new(kind, format!("{doing} {} failed: {e}", path.display()))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}
