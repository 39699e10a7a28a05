use super::shard::{Place, hash_of};
use super::{Entry, Object, Shard, Slot, read};
use crate::blocks::Blocks;
use crate::cid::Cid;
use crate::error::{Error, Result};
use std::vec::IntoIter;

/// The entries of a directory one after another, in the order of its blocks, however many those are.
///
/// Holds one block a level. `Corrupt` for a name that does not belong into the block where it lies: so no name
/// comes twice, and few blocks cannot pose as many.
#[derive(Debug)]
pub struct Listing<'a> {
    blocks: &'a Blocks,
    stack: Vec<Level>,
}

#[derive(Debug)]
enum Level {
    Flat(IntoIter<Entry>),
    Shard { cid: Cid, place: Place, bits: u32, slots: IntoIter<(u64, Slot)> },
}

impl<'a> Listing<'a> {
    /// `Usage` if `root` is no directory, `Missing` if its block is not here.
    pub fn of(blocks: &'a Blocks, root: &Cid) -> Result<Self> {
        Self::of_object(blocks, root, read(root, &blocks.get(root)?)?)
    }

    /// [`Listing::of`] for a root that was read already.
    pub(crate) fn of_object(blocks: &'a Blocks, root: &Cid, object: Object) -> Result<Self> {
        let first = match object {
            Object::Directory { entries } => Level::Flat(entries.into_iter()),
            Object::Shard(shard) => Level::at(*root, Place::default(), shard)?,
            Object::File { .. } => return Err(no_directory(root)),
        };
        Ok(Self { blocks, stack: vec![first] })
    }

    fn advance(&mut self) -> Result<Option<Entry>> {
        while let Some(level) = self.stack.last_mut() {
            let (below, cid) = match level {
                Level::Flat(entries) => match entries.next() {
                    Some(entry) => return Ok(Some(entry)),
                    None => {
                        self.stack.pop();
                        continue;
                    }
                },
                Level::Shard { cid, place, bits, slots } => match slots.next() {
                    None => {
                        self.stack.pop();
                        continue;
                    }
                    Some((slot, Slot::Entry(entry))) => {
                        let hash = hash_of(&entry.name);
                        if !place.holds(hash) || place.slot_of(hash, *bits) != Some(slot) {
                            return Err(misplaced(cid, &entry.name));
                        }
                        return Ok(Some(entry));
                    }
                    Some((slot, Slot::Below(below))) => (place.below(slot, *bits).ok_or_else(|| too_deep(cid))?, below),
                },
            };
            self.stack.push(Level::at(cid, below, shard_at(self.blocks, &cid)?)?);
        }
        Ok(None)
    }
}

impl Iterator for Listing<'_> {
    type Item = Result<Entry>;

    fn next(&mut self) -> Option<Self::Item> {
        let next = self.advance();
        if next.is_err() {
            // Read no further: what follows an error is not to be believed.
            self.stack.clear();
        }
        next.transpose()
    }
}

impl Level {
    fn at(cid: Cid, place: Place, Shard { bits, slots }: Shard) -> Result<Self> {
        if slots.is_empty() && !place.is_root() {
            // Blocks of nothing cost work and carry no name: eight of them could be linked 256^8 times.
            return Err(Error::corrupt(format!("{cid} is an empty part of a directory")));
        }
        Ok(Self::Shard { cid, place, bits, slots: slots.into_iter() })
    }
}

/// The entry called `name` in the directory at `root`, reading only the blocks on the way to it; `visit` hears of
/// each, `root` first. `None` if the directory has no such entry; errors as for [`Listing::of`].
pub fn find(blocks: &Blocks, root: &Cid, name: &str, mut visit: impl FnMut(&Cid)) -> Result<Option<Entry>> {
    visit(root);
    let mut shard = match read(root, &blocks.get(root)?)? {
        Object::Directory { entries } => return Ok(entries.into_iter().find(|entry| entry.name == name)),
        Object::File { .. } => return Err(no_directory(root)),
        Object::Shard(shard) => shard,
    };
    let hash = hash_of(name);
    let (mut at, mut place) = (*root, Place::default());
    loop {
        let slot = place.slot_of(hash, shard.bits).ok_or_else(|| too_deep(&at))?;
        let taken = shard.slots.into_iter().find(|(taken, _)| *taken == slot);
        let below = match taken {
            Some((_, Slot::Entry(entry))) => return Ok(Some(entry).filter(|entry| entry.name == name)),
            Some((_, Slot::Below(below))) => below,
            None => return Ok(None),
        };
        place = place.below(slot, shard.bits).ok_or_else(|| too_deep(&at))?;
        visit(&below);
        shard = shard_at(blocks, &below)?;
        at = below;
    }
}

fn shard_at(blocks: &Blocks, cid: &Cid) -> Result<Shard> {
    match read(cid, &blocks.get(cid)?)? {
        Object::Shard(shard) => Ok(shard),
        _ => Err(Error::corrupt(format!("{cid} should be a part of a directory and is none"))),
    }
}

fn no_directory(cid: &Cid) -> Error {
    Error::usage(format!("{cid} is a file where a directory is expected"))
}

fn misplaced(cid: &Cid, name: &str) -> Error {
    Error::corrupt(format!("the name {name:?} does not belong into part {cid} of its directory"))
}

fn too_deep(cid: &Cid) -> Error {
    Error::corrupt(format!("{cid} is a part of a directory that lies deeper than hashes are long"))
}
