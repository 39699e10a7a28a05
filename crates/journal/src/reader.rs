//! What is on the disk, for a thread beside the one that appends: a replay in the background, and what follows from it.

use crate::error::{Error, Kind, Result};
use crate::record::{Lsn, Record};
use crate::snapshot::{self, Snapshot};
use crate::writer::Durable;
use crate::{read_export, segment};
use std::fs;
use std::path::PathBuf;

/// Records that are held at a time.
const PIECE: u64 = 4_096;

/// Reads a journal while its owner goes on writing. Clones share one journal; what it reads stays when that is closed.
#[derive(Clone)]
pub struct Reader {
    pub(crate) dir: PathBuf,
    pub(crate) durable: Durable,
}

impl Reader {
    /// Whether a replay can begin from a snapshot; without one it begins with the life.
    pub fn has_snapshot(&self) -> Result<bool> {
        Ok(snapshot::oldest_lsn(&self.dir)? > 0)
    }

    /// The newest whole snapshot of no later record than `lsn`. Waits until that record is durable.
    pub fn snapshot_before(&self, lsn: Lsn) -> Result<Option<Snapshot>> {
        self.durable.wait(lsn)?;
        let _kept = self.durable.snapshots();
        snapshot::latest_to(&self.dir, lsn)
    }

    /// Hands the records `first..=last` to `each`, in order, a few thousand at a time: the journal can be longer than
    /// memory. Fails as [`Reader::export`].
    pub fn records<E: From<Error>>(
        &self,
        first: Lsn,
        last: Lsn,
        mut each: impl FnMut(Record) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        let mut from = first;
        while from <= last {
            let to = last.min(from + PIECE - 1);
            read_export(&self.export(from, to)?)?.into_iter().try_for_each(&mut each)?;
            from = to + 1;
        }
        Ok(())
    }

    /// See [`crate::Journal::export`].
    pub fn export(&self, first: Lsn, last: Lsn) -> Result<Vec<u8>> {
        let _kept = self.durable.old_segments();
        let (segments, durable) = (self.durable.segments(), self.durable.lsn());
        let here = segments.first().map_or(durable + 1, |s| s.first_lsn);
        if first < here || last > durable || first > last {
            return Err(Error::new(
                Kind::Gap,
                format!("LSN {first} to {last} were asked for; {here} to {durable} are here and durable"),
            ));
        }
        let mut out = segment::header(first).to_vec();
        for (i, s) in segments.iter().enumerate() {
            let ends_before = segments.get(i + 1).is_some_and(|next| next.first_lsn <= first);
            if !ends_before && s.first_lsn <= last {
                segment::read_range(s, first, last, &mut out)?;
            }
        }
        Ok(out)
    }

    /// See [`crate::Journal::write_snapshot`].
    pub fn write_snapshot(&self, lsn: Lsn, bytes: &[u8]) -> Result<()> {
        self.durable.wait(lsn)?;
        let _kept = self.durable.snapshots();
        snapshot::write(&self.dir, lsn, bytes)
    }

    /// See [`crate::Journal::truncate_before`].
    pub fn truncate_before(&self, lsn: Lsn) -> Result<()> {
        let _kept = self.durable.old_segments();
        let reached = snapshot::oldest_lsn(&self.dir)?;
        for gone in self.durable.forget_before(lsn.min(reached + 1)) {
            fs::remove_file(&gone.path).map_err(|e| Error::io("removing", &gone.path, &e))?;
        }
        Ok(())
    }
}
