use super::Blocks;
use crate::checkpoint::{Checkpoint, ConversationPage, LifeLog, SegmentList, log};
use crate::cid::{self, Cid};
use crate::dag::{self, possible_links};
use crate::error::{Error, Kind, Result};
use crate::unixfs;
use std::collections::HashSet;
use std::fs::TryLockError;
use std::time::{Duration, SystemTime};

/// What a garbage collection did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    pub removed_blocks: u64,
    pub removed_bytes: u64,
    pub kept_blocks: u64,
    /// Blocks that a pin reaches and that are not here.
    pub missing_blocks: u64,
    /// Pins that reach a block which is no node, so that nobody can tell all that they keep.
    pub unreadable: Vec<Unreadable>,
}

/// A pin that cannot be followed to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable {
    pub pin: Cid,
    /// The block, and what is wrong with it.
    pub why: String,
}

impl Blocks {
    /// Removes what no pin reaches and what is older than `age_min`.
    ///
    /// A pinned checkpoint keeps its snapshot, the segments after it, its keys, its conversations and the whole log that
    /// ends with it, though they are only named in texts; a pinned log keeps all that came before it.
    /// However deep a graph is, it is followed. Of a block that does not parse everything that might be a link counts as
    /// one: a pin like that keeps too much rather than too little, is named, and stops no collection.
    /// `age_min` protects blocks that arrive one by one over HTTP before anybody pins their root; whoever
    /// writes in this or another process and holds [`Blocks::writing`] makes this fail with `Usage` at once.
    pub fn gc(&self, age_min: Duration) -> Result<Collected> {
        self.gc_each(age_min, |_| {})
    }

    /// [`Blocks::gc`]; `each` hears how many blocks were looked at.
    pub fn gc_each(&self, age_min: Duration, mut each: impl FnMut(u64)) -> Result<Collected> {
        let lock = self.lock_file()?;
        lock.file.try_lock().map_err(|e| match e {
            TryLockError::WouldBlock => Error::usage("somebody is writing to this store; collect when that is done"),
            TryLockError::Error(e) => Error::disk("cannot lock the store", e),
        })?;
        let mut done = Collected::default();
        let mut looked_at = 0;
        let mut each = || {
            looked_at += 1;
            each(looked_at);
        };
        let kept = self.reached(&mut done, &mut each)?;
        let now = SystemTime::now();
        for listed in self.iter() {
            let (cid, bytes) = listed?;
            each();
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
    fn reached(&self, done: &mut Collected, each: &mut impl FnMut()) -> Result<HashSet<[u8; 32]>> {
        let mut reach = Reach { blocks: self, kept: HashSet::new(), nodes: HashSet::new(), waiting: Vec::new() };
        // Each with the pin that it is kept for.
        let mut roots: Vec<(Cid, Cid)> = self.pins()?.into_iter().map(|p| (p.root, p.root)).collect();
        // Whatever is pinned may be a text that names others, and so may be what such a text names.
        let mut unread: HashSet<[u8; 32]> = roots.iter().map(|(root, _)| cid::digest(root)).collect();
        while let Some((root, pin)) = roots.pop() {
            if unread.remove(&cid::digest(&root)) {
                let named = self.named_in(&root)?;
                unread.extend(named.iter().map(cid::digest).filter(|digest| !reach.kept.contains(digest)));
                roots.extend(named.into_iter().map(|named| (named, pin)));
            }
            if let Some(why) = reach.follow(&root, done, each)?
                && !done.unreadable.iter().any(|known| known.pin == pin)
            {
                done.unreadable.push(Unreadable { pin, why });
            }
        }
        Ok(reach.kept)
    }

    /// What a checkpoint, a page, a list of segments or a stretch of a log names; nothing if it is none of them. Only texts
    /// are looked into: one block, or a file of few.
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

/// What pins reach. Unlike [`crate::walk::Walk`] it knows no limits: what it leaves out would be removed. It grows with the
/// links of what is pinned, each once.
struct Reach<'a> {
    blocks: &'a Blocks,
    kept: HashSet<[u8; 32]>,
    /// Those of `kept` that were followed as nodes; linked as leaves only, the same bytes lead nowhere.
    nodes: HashSet<[u8; 32]>,
    waiting: Vec<Cid>,
}

impl Reach<'_> {
    /// Adds `root` and all below it. What is wrong with the first block that is no node, if there is one.
    fn follow(&mut self, root: &Cid, done: &mut Collected, each: &mut impl FnMut()) -> Result<Option<String>> {
        let mut why = None;
        self.meet(root, done);
        while let Some(cid) = self.waiting.pop() {
            each();
            let bytes = match self.blocks.get(&cid) {
                Ok(bytes) => bytes,
                Err(e) if e.kind == Kind::Missing => {
                    done.missing_blocks += 1;
                    continue;
                }
                Err(e) => return Err(e),
            };
            match dag::links(&cid, &bytes) {
                Ok(links) => links.iter().for_each(|link| self.meet(link, done)),
                Err(e) => {
                    why.get_or_insert(e.message);
                    for link in possible_links(&bytes).filter(|link| self.blocks.has(link)).collect::<Vec<_>>() {
                        self.meet(&link, done);
                    }
                }
            }
        }
        Ok(why)
    }

    fn meet(&mut self, cid: &Cid, done: &mut Collected) {
        let digest = cid::digest(cid);
        let is_new = self.kept.insert(digest);
        if cid.codec() == cid::RAW {
            done.missing_blocks += u64::from(is_new && !self.blocks.has(cid));
        } else if self.nodes.insert(digest) {
            self.waiting.push(cid::normal(cid));
        }
    }
}
