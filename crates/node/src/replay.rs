//! The state at one record, folded anew beside the main loop: from the journal's snapshot before it and the records after
//! that. The loop goes on; what it costs is a second folding of those records, on a thread that nobody waits for.
//!
//! A copy of the state, encoded elsewhere, would still have the loop copy every channel and conversation:
//! docs/decisions/0039 has what each takes.

use crate::error::{Error, Result};
use crate::state::{Recorded, State};
use journal::{Lsn, Reader};

/// What the state at `lsn` comes from.
pub struct Replay {
    reader: Reader,
    lsn: Lsn,
}

impl Replay {
    /// `None` where no snapshot is here yet: then the life is young, and its state soon encoded where it is.
    pub fn to(reader: Reader, lsn: Lsn) -> Option<Self> {
        // A folder that cannot be listed says so where the snapshot is written.
        reader.has_snapshot().ok()?.then_some(Self { reader, lsn })
    }

    /// The state, encoded. It blocks: for a thread of its own.
    ///
    /// Fails with `Corrupt` where a record says something else now than when it was folded, or where what leads to it is
    /// not here: then the loop's own state is the one to encode.
    pub fn encoded(&self) -> Result<Vec<u8>> {
        let unread = |e| Error::corrupt(format!("the state at record {} cannot be folded anew", self.lsn)).caused_by(e);
        let Some(from) = self.reader.snapshot_before(self.lsn).map_err(unread)? else {
            return Err(Error::corrupt(format!("no snapshot from before record {} is whole", self.lsn)));
        };
        let mut state = State::decode(&from.bytes)?;
        drop(from.bytes);
        let mut each = |record: journal::Record| {
            let said = state.apply(record.lsn, record.time, &Recorded::decode(&record.payload)?);
            if said.digest() != record.outputs_digest {
                return Err(Error::corrupt(format!("record {} folds differently when it is read again", record.lsn)));
            }
            Ok(())
        };
        let failed = self.reader.records(from.lsn + 1, self.lsn, |record| each(record).map_err(Stop::Node));
        match failed {
            Ok(()) => Ok(state.encode()),
            Err(Stop::Node(e)) => Err(e),
            Err(Stop::Journal(e)) => Err(unread(e)),
        }
    }
}

enum Stop {
    Journal(journal::Error),
    Node(Error),
}

impl From<journal::Error> for Stop {
    fn from(error: journal::Error) -> Self {
        Self::Journal(error)
    }
}

/// A local snapshot that is due: made on any thread, while records go on being appended.
pub struct Snapshotting {
    pub reader: Reader,
    pub lsn: Lsn,
    pub state: Folded,
    /// Records before this one may go.
    pub needed: Lsn,
}

/// Where the state at a record is to be had.
pub enum Folded {
    Here(Vec<u8>),
    Anew(Replay),
}

impl Folded {
    /// It may block.
    pub fn encoded(self) -> Result<Vec<u8>> {
        match self {
            Self::Here(state) => Ok(state),
            Self::Anew(replay) => replay.encoded(),
        }
    }
}

impl Snapshotting {
    /// Writes the snapshot, and lets old records go: a start reads what came after, not the whole life again. It blocks.
    ///
    /// # Errors
    /// The state cannot be folded anew, or not written. Records that cannot be removed just stay.
    pub fn run(self) -> Result<()> {
        let state = self.state.encoded()?;
        self.reader
            .write_snapshot(self.lsn, &state)
            .map_err(|e| Error::retry("the local snapshot cannot be written").caused_by(e))?;
        if let Err(e) = self.reader.truncate_before(self.needed) {
            tracing::warn!(error = %net::chain_of(&e), "old records stay on the disk");
        }
        Ok(())
    }
}
