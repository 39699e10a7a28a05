use super::Blocks;
use crate::checkpoint::Checkpoint;
use crate::cid::{self, Cid};
use crate::dag::Walk;
use crate::error::{Error, Kind, Result};
use std::collections::HashSet;
use std::fs::TryLockError;
use std::time::{Duration, SystemTime};

/// What a garbage collection did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    pub removed_blocks: u64,
    pub removed_bytes: u64,
    pub kept_blocks: u64,
    /// Blocks that a pin reaches and that are not here.
    pub missing_blocks: u64,
}

impl Blocks {
    /// Removes what no pin reaches and what is older than `age_min`.
    ///
    /// A pinned checkpoint keeps its snapshot and conversations too, though they are only named in its text.
    /// `age_min` protects blocks that arrive one by one over HTTP before anybody pins their root; whoever
    /// writes in this or another process and holds [`Blocks::writing`] makes this fail with `Usage` at once.
    pub fn gc(&self, age_min: Duration) -> Result<Collected> {
        let lock = self.lock_file()?;
        lock.file.try_lock().map_err(|e| match e {
            TryLockError::WouldBlock => Error::usage("somebody is writing to this store; collect when that is done"),
            TryLockError::Error(e) => Error::disk("cannot lock the store", e),
        })?;
        let mut done = Collected::default();
        let kept = self.reached(&mut done)?;
        let now = SystemTime::now();
        for listed in self.iter() {
            let (cid, bytes) = listed?;
            let modified = std::fs::metadata(self.path(&cid)).and_then(|m| m.modified());
            // A clock set back makes a block look newer than now: then it is kept.
            let age = modified.ok().and_then(|m| now.duration_since(m).ok()).unwrap_or_default();
            if kept.contains(&cid::digest(&cid)) || age < age_min {
                done.kept_blocks += 1;
            } else if self.delete(&cid)? {
                done.removed_blocks += 1;
                done.removed_bytes += bytes;
            }
        }
        Ok(done)
    }

    /// Digests of all blocks that some pin reaches.
    fn reached(&self, done: &mut Collected) -> Result<HashSet<[u8; 32]>> {
        let mut kept = HashSet::new();
        let mut roots: Vec<Cid> = self.pins()?.into_iter().map(|p| p.root).collect();
        let mut checkpoints: HashSet<[u8; 32]> = roots.iter().map(cid::digest).collect();
        while let Some(root) = roots.pop() {
            if root.codec() == cid::RAW && checkpoints.remove(&cid::digest(&root)) {
                roots.extend(self.named_in(&root)?);
            }
            let mut walk = Walk::from(&root);
            while let Some((cid, depth)) = walk.next_block() {
                let fresh = kept.insert(cid::digest(&cid));
                if cid.codec() == cid::RAW {
                    done.missing_blocks += u64::from(fresh && !self.has(&cid));
                } else if fresh {
                    match self.get(&cid) {
                        Ok(bytes) => walk.visited(&cid, depth, &bytes)?,
                        Err(e) if e.kind == Kind::Missing => done.missing_blocks += 1,
                        Err(e) => return Err(e),
                    }
                }
            }
        }
        Ok(kept)
    }

    /// What a raw block names if it is a checkpoint; nothing otherwise.
    fn named_in(&self, cid: &Cid) -> Result<Vec<Cid>> {
        match self.get(cid) {
            Ok(bytes) => Ok(Checkpoint::from_bytes(&bytes).map(|c| c.objects()).unwrap_or_default()),
            Err(e) if e.kind == Kind::Missing => Ok(Vec::new()),
            Err(e) => Err(e),
        }
    }
}
