use super::Blocks;
use super::filter::Filter;
use crate::checkpoint::{Checkpoint, ConversationPage, LifeLog, SegmentList, log};
use crate::cid::{self, Cid};
use crate::dag::{self, possible_links};
use crate::error::{Error, Kind, Result};
use crate::unixfs;
use crate::walk;
use std::collections::HashSet;
use std::fs::TryLockError;
use std::time::{Duration, SystemTime};

/// 16 MiB, a quarter of what one command may hold. A collection takes a leaf that no pin reaches for one
/// that is kept in one of 6,000 cases where 4 million leaves are kept (4 TiB by the profile, 1 TiB by the old one), and in
/// nearly one of four where 40 million are (by reckoning; the filter's tests hold it against a 1024th part). What one
/// collection leaves the next one takes, but for the same share.
const FILTER_WORDS: u32 = 2 << 20;

/// What a garbage collection did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    pub removed_blocks: u64,
    pub removed_bytes: u64,
    pub kept_blocks: u64,
    /// Blocks that a pin reaches and that are not here; a few less of many millions.
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
    /// Removes what no pin reaches and what is older than `age_min`: nothing else, and nearly all of it. Where 4 million
    /// leaves stay, one in 6,000 blocks that should go stays until the next collection.
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
            if kept.holds(&cid::digest(&cid)) || age < age_min {
                done.kept_blocks += 1;
            } else if self.delete(&cid)? {
                done.removed_blocks += 1;
                done.removed_bytes += bytes;
            }
        }
        Ok(done)
    }

    /// All blocks that some pin reaches.
    fn reached(&self, done: &mut Collected, each: &mut impl FnMut()) -> Result<Reach<'_>> {
        let mut reach = Reach::of(self);
        // Each with the pin that it is kept for.
        let mut roots: Vec<(Cid, Cid)> = self.pins()?.into_iter().map(|p| (p.root, p.root)).collect();
        // Whatever is pinned may be a text that names others, and so may be what such a text names. All that were looked
        // into: one that only seems to have been would take what it names with it.
        let mut read = HashSet::new();
        while let Some((root, pin)) = roots.pop() {
            if read.insert(walk::name(&root)) {
                roots.extend(self.named_in(&root)?.into_iter().map(|named| (named, pin)));
            }
            if let Some(why) = reach.follow(&root, done, each)?
                && !done.unreadable.iter().any(|known| known.pin == pin)
            {
                done.unreadable.push(Unreadable { pin, why });
            }
        }
        Ok(reach)
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
            // The list before waits until these are followed, so that those of one list wait at a time.
            return Ok(list.prev.into_iter().chain(list.segments).collect());
        }
        Ok(LifeLog::from_bytes(&bytes).ok().and_then(|stretch| stretch.prev).into_iter().collect())
    }
}

/// What pins reach. Unlike [`crate::walk::Walk`] it knows no limits: what it leaves out would be removed. It grows with the
/// nodes of what is pinned, at 40 to 110 bytes each, and with the links to nodes that wait, not with the leaves: 0.1 MB for
/// each TiB of files by the profile, 2.7 MB by the old one.
struct Reach<'a> {
    blocks: &'a Blocks,
    /// Those that were followed, by digest: all of them, since one that is taken for another would not be. Linked as
    /// leaves only, the same bytes lead nowhere.
    nodes: HashSet<[u8; 32]>,
    /// Raw blocks, and nodes that were found to have no links.
    leaves: Filter,
    waiting: Vec<Cid>,
}

impl<'a> Reach<'a> {
    fn of(blocks: &'a Blocks) -> Self {
        Self { blocks, nodes: HashSet::new(), leaves: Filter::of_words(FILTER_WORDS), waiting: Vec::new() }
    }

    /// Whether a block is to be kept: true for all that were met, and for a few others.
    fn holds(&self, digest: &[u8; 32]) -> bool {
        self.nodes.contains(digest) || self.leaves.holds(digest)
    }

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
                Ok(links) if links.is_empty() => self.met_leaf(&cid),
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
        if cid.codec() == cid::RAW {
            let is_new = self.leaves.insert(&digest);
            done.missing_blocks += u64::from(is_new && !self.blocks.has(cid));
        } else if self.nodes.insert(digest) {
            self.waiting.push(cid::normal(cid));
        }
    }

    /// A node turned out to lead nowhere: it is read again where another node links to it.
    fn met_leaf(&mut self, cid: &Cid) {
        let digest = cid::digest(cid);
        self.leaves.insert(&digest);
        self.nodes.remove(&digest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::unixfs::{Profile, import_bytes};

    #[test]
    fn nodes_with_links_are_remembered_one_by_one_and_leaves_are_not() {
        let home = tempfile::tempdir().unwrap();
        let blocks = Blocks::open(home.path()).unwrap();
        let content: Vec<u8> = (0..=u8::MAX).collect();
        for raw_leaves in [true, false] {
            // 64 leaves of 4 bytes, below 16 nodes, below 4, below the root.
            let profile = Profile { chunk_bytes: 4, width: 4, raw_leaves, cid_v0: !raw_leaves };
            let mut all = Vec::new();
            let imported = import_bytes(&content, profile, &mut |cid, bytes| {
                all.push(cid::digest(&cid));
                blocks.put_later(&cid, &bytes)
            });
            let (mut reach, mut done) = (Reach::of(&blocks), Collected::default());
            assert_eq!(reach.follow(&imported.unwrap().cid, &mut done, &mut || ()).unwrap(), None);
            assert_eq!((all.len(), reach.nodes.len(), done), (64 + 21, 21, Collected::default()));
            assert!(all.iter().all(|digest| reach.holds(digest)));
        }
    }
}
