use super::Blocks;
use crate::checkpoint::{Checkpoint, ConversationPage, LifeLog, SegmentList, log};
use crate::cid::{self, Cid};
use crate::dag::Walk;
use crate::error::{Error, Kind, Result};
use crate::unixfs;
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
    /// A pinned checkpoint keeps its snapshot, the segments after it, its keys, its conversations and the whole log that
    /// ends with it, though they are only named in texts; a pinned log keeps all that came before it.
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
        // Whatever is pinned may be a text that names others, and so may be what such a text names.
        let mut unread: HashSet<[u8; 32]> = roots.iter().map(cid::digest).collect();
        while let Some(root) = roots.pop() {
            if unread.remove(&cid::digest(&root)) {
                let named = self.named_in(&root)?;
                unread.extend(named.iter().map(cid::digest).filter(|digest| !kept.contains(digest)));
                roots.extend(named);
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

    /// What a checkpoint, a page, a list of segments or a stretch of a log names; nothing if it is none of them. Only texts are looked into: one block,
    /// or a file of few.
    fn named_in(&self, root: &Cid) -> Result<Vec<Cid>> {
        let bytes = match unixfs::read_file(self, root, log::STRETCH_BYTES_MAX) {
            Ok(bytes) => bytes,
            Err(e) if matches!(e.kind, Kind::Disk | Kind::DiskFull | Kind::Bug) => return Err(e),
            // Not here, too long to be a text, or no file at all.
            Err(_) => return Ok(Vec::new()),
        };
        if let Ok(checkpoint) = Checkpoint::from_bytes(&bytes) {
            return Ok(checkpoint.objects());
        }
        if let Ok(page) = ConversationPage::from_bytes(&bytes) {
            return Ok(page.conversations);
        }
        if let Ok(list) = SegmentList::from_bytes(&bytes) {
            return Ok(list.segments.into_iter().chain(list.prev).collect());
        }
        Ok(LifeLog::from_bytes(&bytes).ok().and_then(|stretch| stretch.prev).into_iter().collect())
    }
}
