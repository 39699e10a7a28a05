//! Directories too large for one block: a hash array mapped trie (HAMT) of blocks.
//!
//! Each block has 256 slots. The next eight bits of a name's hash say which one it goes into; a slot that several
//! names want holds another block. So the same names give the same blocks, in whatever order they came.
//! Follows the HAMT section of <https://specs.ipfs.tech/unixfs/>.

use super::{Data, Entry, Profile, check_name, encode_shard};
use crate::cid::{self, Cid};
use crate::dag::{Link, Node};
use crate::error::{Error, Result};
use crate::protobuf::len64;

/// Multihash code of the first 64 bits of murmur3 x64-128, the only hash in use.
pub(super) const MURMUR3_X64_64: u64 = 0x22;
/// Slots of a block that is written here, as Kubo and Helia write it.
const FANOUT: u64 = 256;
const FANOUT_BITS: u32 = 8;
/// What is read: a power of two in these bounds. The upper one is Kubo's.
const FANOUT_READ: std::ops::RangeInclusive<u64> = 8..=1024;
const HASH_BITS: u32 = u64::BITS;

/// One block of a sharded directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shard {
    /// Bits of the hash that choose a slot: 8 for 256 slots.
    pub bits: u32,
    /// Slots that are taken, ascending.
    pub slots: Vec<(u64, Slot)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Slot {
    Entry(Entry),
    /// Another block of the same directory.
    Below(Cid),
}

/// Which hashes may lie below a block: those that begin with `prefix`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    bits: u32,
    prefix: u64,
}

impl Place {
    /// The place of what lies in `slot`; `None` beyond the end of the hash.
    pub fn below(self, slot: u64, bits: u32) -> Option<Self> {
        let deeper = self.bits.checked_add(bits).filter(|bits| *bits <= HASH_BITS)?;
        Some(Self { bits: deeper, prefix: self.prefix.checked_shl(bits).unwrap_or(0) | slot })
    }

    pub fn holds(self, hash: u64) -> bool {
        self.bits == 0 || hash >> (HASH_BITS - self.bits) == self.prefix
    }

    /// The slot of `hash` in a block at this place; `None` beyond the end of the hash.
    pub fn slot_of(self, hash: u64, bits: u32) -> Option<u64> {
        let end = self.bits.checked_add(bits).filter(|bits| *bits <= HASH_BITS)?;
        Some(hash >> (HASH_BITS - end) & ((1 << bits) - 1))
    }

    pub fn is_root(self) -> bool {
        self.bits == 0
    }
}

pub(super) fn hash_of(name: &str) -> u64 {
    let both = murmur3::murmur3_x64_128(&mut name.as_bytes(), 0).expect("bytes in memory can be read");
    // The crate puts the first half of the hash into the low bits.
    u64::try_from(both & u128::from(u64::MAX)).expect("64 bits are left")
}

/// Reads one block. Whether its names belong where it lies is seen by who walks ([`super::Listing`]).
pub(super) fn read(node: Node, data: &Data) -> std::result::Result<Shard, String> {
    let fanout = data.fanout.ok_or("a shard without a number of slots")?;
    if !fanout.is_power_of_two() || !FANOUT_READ.contains(&fanout) {
        return Err(format!("a shard of {fanout} slots; 8 to 1024 are read, powers of two"));
    }
    if data.hash_type != Some(MURMUR3_X64_64) {
        return Err(format!("a shard by hash {:?}; only murmur3-x64-64 (0x22) is spoken", data.hash_type));
    }
    let taken = taken_slots(&data.inline, fanout)?;
    if taken.len() != node.links.len() {
        return Err(format!("a shard with {} slots taken but {} links", taken.len(), node.links.len()));
    }
    let digits = format!("{:X}", fanout - 1).len();
    let mut slots = Vec::with_capacity(taken.len());
    for (slot, link) in taken.into_iter().zip(node.links) {
        let label = format!("{slot:0digits$X}");
        let Some(name) = link.name.strip_prefix(&label) else {
            return Err(format!("a shard's slot {label} is called {:?}", link.name));
        };
        let inside = match name {
            "" if link.cid.codec() == cid::DAG_PB => Slot::Below(link.cid),
            "" => return Err(format!("a shard's slot {label} leads to a block that is none")),
            name => {
                check_name(name)?;
                Slot::Entry(Entry { name: name.to_owned(), cid: link.cid, tsize: link.tsize })
            }
        };
        slots.push((slot, inside));
    }
    Ok(Shard { bits: fanout.trailing_zeros(), slots })
}

/// The numbers of the bits that are set, ascending; the field is a big-endian number.
fn taken_slots(field: &[u8], fanout: u64) -> std::result::Result<Vec<u64>, String> {
    if len64(field) > fanout / 8 {
        return Err(format!("a shard of {fanout} slots with a field of {} bytes", field.len()));
    }
    let bytes = (0u64..).step_by(8).zip(field.iter().rev());
    Ok(bytes
        .flat_map(|(first, byte)| (0..8).filter(move |bit| byte >> bit & 1 == 1).map(move |bit| first + bit))
        .collect())
}

/// Writes a directory of these entries (names in `links`) as shards, children first. Returns the root and the
/// encoded bytes of all below, itself included.
///
/// `OverLimit` for two names with the same 64-bit hash: those have no place in the format.
pub(super) fn write(
    links: Vec<Link>,
    profile: Profile,
    emit: &mut impl FnMut(Cid, Vec<u8>) -> Result<()>,
) -> Result<(Cid, u64)> {
    let mut hashed: Vec<(u64, Link)> = links.into_iter().map(|link| (hash_of(&link.name), link)).collect();
    hashed.sort_unstable_by_key(|(hash, _)| *hash);
    write_below(&hashed, Place::default(), profile, emit)
}

fn write_below(
    hashed: &[(u64, Link)],
    place: Place,
    profile: Profile,
    emit: &mut impl FnMut(Cid, Vec<u8>) -> Result<()>,
) -> Result<(Cid, u64)> {
    let same_hash = || {
        let names: Vec<&str> = hashed.iter().take(2).map(|(_, link)| link.name.as_str()).collect();
        Error::over_limit(format!("the names {names:?} have the same hash; rename one"))
    };
    let slot = |hash: u64| place.slot_of(hash, FANOUT_BITS);
    let mut links = Vec::new();
    let mut taken = [0u8; 32];
    for run in hashed.chunk_by(|a, b| slot(a.0) == slot(b.0)) {
        let at = slot(run[0].0).ok_or_else(same_hash)?;
        let byte = usize::try_from(at / 8).map_err(|_| Error::bug("a slot over 256"))?;
        taken[31 - byte] |= 1 << (at % 8);
        links.push(match run {
            [(_, only)] => Link { name: format!("{at:02X}{}", only.name), ..only.clone() },
            several => {
                let below = place.below(at, FANOUT_BITS).ok_or_else(same_hash)?;
                let (cid, tsize) = write_below(several, below, profile, emit)?;
                Link { cid, name: format!("{at:02X}"), tsize }
            }
        });
    }
    let below: u64 = links.iter().map(|link| link.tsize).sum();
    let encoded = Node { links, data: encode_shard(&taken, FANOUT) }.encode();
    let (cid, bytes) = (profile.node_cid(&encoded), below + len64(&encoded));
    emit(cid, encoded)?;
    Ok((cid, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_follow_the_bits_of_the_hash() {
        let hash = 0xAB_CD_00_00_00_00_00_EF;
        let root = Place::default();
        assert!(root.holds(hash) && root.is_root());
        assert_eq!(root.slot_of(hash, 8), Some(0xAB));
        let first = root.below(0xAB, 8).unwrap();
        assert!(first.holds(hash) && !first.holds(0xAC << 56));
        assert_eq!(first.slot_of(hash, 8), Some(0xCD));
        let last = (0..7).try_fold(root, |place, level| place.below(hash >> (56 - 8 * level) & 0xff, 8)).unwrap();
        assert_eq!(last.slot_of(hash, 8), Some(0xEF));
        let whole = last.below(0xEF, 8).unwrap();
        assert!(whole.holds(hash) && !whole.holds(hash ^ 1));
        assert_eq!((whole.slot_of(hash, 8), whole.below(0, 8)), (None, None));
    }

    #[test]
    fn a_field_of_slots_is_a_big_endian_number() {
        assert_eq!(taken_slots(&[0b101], 256).unwrap(), [0, 2]);
        assert_eq!(taken_slots(&[0x80, 0, 1], 256).unwrap(), [0, 23]);
        assert_eq!(taken_slots(&[], 8).unwrap(), [0; 0]);
        assert!(taken_slots(&[0; 33], 256).is_err());
    }
}
