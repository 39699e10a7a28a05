//! CAR files: a header with roots, then blocks one after another. Versions 1 and 2, in and out.
//!
//! Both ways hold one block at a time; a writer also remembers which blocks went, so that none comes twice unless there
//! are more leaves than a walk remembers ([`crate::walk::LEAVES_REMEMBERED_MAX`]). A reader allocates no more than a
//! block's limit, whatever a length says.
//! Version 2 is version 1 inside a frame; its index is optional, skipped when read and not written.

use crate::blocks::Blocks;
use crate::cid::{self, Cid};
use crate::dag::BLOCK_BYTES_MAX;
use crate::error::{Error, Kind, Result};
use crate::protobuf::{len64, put_varint};
use crate::walk::Walk;
use bytes::Bytes;
use iroh_car::CarHeader;
use std::io::{BufReader, ErrorKind, Read, Write};

/// A header holds a few roots; a longer one is not read.
const HEADER_BYTES_MAX: u64 = 64 << 10;
/// Room for the CID before a block.
const CID_BYTES_MAX: u64 = 64;
/// The fixed start of version 2: a version 1 header that says `version: 2` and has no roots.
const PRAGMA_V2: [u8; 11] = [0x0a, 0xa1, 0x67, b'v', b'e', b'r', b's', b'i', b'o', b'n', 0x02];

/// The frame of version 2 before the inner file: the pragma, 16 bytes of flags, three numbers.
const FRAME_V2_BYTES: u64 = 51;

/// How a graph is written as a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Version {
    /// What everybody reads.
    #[default]
    V1,
    V2,
}

/// What an import found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Imported {
    pub roots: Vec<Cid>,
    pub blocks: u64,
    pub bytes: u64,
}

/// Encodes the header with these roots.
pub fn header(roots: &[Cid]) -> Result<Vec<u8>> {
    let encoded = CarHeader::new_v1(roots.to_vec()).encode();
    let encoded = encoded.map_err(|e| Error::bug("a CAR header cannot be encoded").caused_by(e))?;
    let mut out = Vec::with_capacity(encoded.len() + 2);
    put_varint(len64(&encoded), &mut out);
    out.extend_from_slice(&encoded);
    Ok(out)
}

/// What stands before a block's bytes: their length with the CID's, and the CID.
pub fn frame(cid: &Cid, bytes: &[u8]) -> Vec<u8> {
    frame_of(cid, len64(bytes))
}

fn frame_of(cid: &Cid, bytes: u64) -> Vec<u8> {
    let name = cid.to_bytes();
    let mut out = Vec::with_capacity(name.len() + 4);
    put_varint(len64(&name) + bytes, &mut out);
    out.extend_from_slice(&name);
    out
}

/// Writes the graph below `root` depth first, each block as often as [`Walk`] visits it. `Missing` if a block is not here:
/// then what was written so far is a valid CAR of an incomplete graph, and the caller throws it away. Returns (blocks,
/// bytes).
pub fn export(blocks: &Blocks, root: &Cid, out: &mut impl Write) -> Result<(u64, u64)> {
    export_each(blocks, root, &[], out, |_, _| Ok(()))
}

/// [`export`] with what lies below `others` behind it: graphs that `root` names in its own way, not by links. The file
/// has the one root. `each` hears of every block before it is written, and ends the export by failing.
pub fn export_each(
    blocks: &Blocks,
    root: &Cid,
    others: &[Cid],
    out: &mut impl Write,
    mut each: impl FnMut(&Cid, &[u8]) -> Result<()>,
) -> Result<(u64, u64)> {
    let failed = |e| Error::disk("cannot write the CAR file", e);
    let head = header(&[*root])?;
    out.write_all(&head).map_err(failed)?;
    let (mut count, mut written) = (0, len64(&head));
    let mut walk = Walk::from_all(&[&[*root], others].concat());
    while let Some((cid, depth)) = walk.next_block() {
        let bytes = blocks.get(&cid)?;
        each(&cid, &bytes)?;
        let head = frame(&cid, &bytes);
        out.write_all(&head).and_then(|()| out.write_all(&bytes)).map_err(failed)?;
        count += 1;
        written += len64(&head) + len64(&bytes);
        walk.visited(&cid, depth, &bytes)?;
    }
    out.flush().map_err(failed)?;
    Ok((count, written))
}

/// [`export`] as version 2, without an index. Its frame says how long it is before the first block, so the graph is walked
/// twice: first its nodes alone, with the lengths of its leaves. A file whose writer died is cut short, and says so.
pub fn export_v2(blocks: &Blocks, root: &Cid, out: &mut impl Write) -> Result<(u64, u64)> {
    export_v2_each(blocks, root, out, |_, _| Ok(()))
}

/// [`export_each`] as version 2.
pub fn export_v2_each(
    blocks: &Blocks,
    root: &Cid,
    out: &mut impl Write,
    each: impl FnMut(&Cid, &[u8]) -> Result<()>,
) -> Result<(u64, u64)> {
    let announced = inner_bytes(blocks, root)?;
    out.write_all(&frame_v2(announced)).map_err(|e| Error::disk("cannot write the CAR file", e))?;
    let (count, written) = export_each(blocks, root, &[], out, each)?;
    if written != announced {
        let why = format!("the graph below {root} changed while it was written: {written} bytes, not {announced}");
        return Err(Error::corrupt(why));
    }
    Ok((count, FRAME_V2_BYTES + written))
}

/// How long the graph below `root` is as version 1, leaves unread.
fn inner_bytes(blocks: &Blocks, root: &Cid) -> Result<u64> {
    let mut bytes = len64(&header(&[*root])?);
    let mut walk = Walk::from(root);
    while let Some((cid, depth)) = walk.next_block() {
        let length = match cid.codec() == cid::RAW {
            true => blocks.len(&cid).ok_or_else(|| Error::missing(format!("block {cid} is not here")))?,
            false => {
                let node = blocks.get(&cid)?;
                walk.visited(&cid, depth, &node)?;
                len64(&node)
            }
        };
        bytes += len64(&frame_of(&cid, length)) + length;
    }
    Ok(bytes)
}

fn frame_v2(inner_bytes: u64) -> Vec<u8> {
    let numbers = [FRAME_V2_BYTES, inner_bytes, 0].map(u64::to_le_bytes);
    [&PRAGMA_V2[..], &[0; 16], &numbers.concat()].concat()
}

/// Stores every block of a CAR file, each verified. Blocks before a fault stay: they are good by themselves.
pub fn import(blocks: &Blocks, input: impl Read) -> Result<Imported> {
    import_each(blocks, input, |_| {})
}

/// [`import`]; `each` hears the bytes of blocks stored so far.
pub fn import_each(blocks: &Blocks, input: impl Read, mut each: impl FnMut(u64)) -> Result<Imported> {
    let mut reader = Reader::new(input)?;
    let mut done = Imported { roots: reader.roots().to_vec(), blocks: 0, bytes: 0 };
    while let Some((cid, bytes)) = reader.next_block()? {
        blocks.put_later(&cid, &bytes)?;
        done.blocks += 1;
        done.bytes += len64(&bytes);
        each(done.bytes);
    }
    blocks.sync()?;
    Ok(done)
}

/// Reads a CAR file block by block, verifying each.
pub struct Reader<R> {
    input: BufReader<R>,
    roots: Vec<Cid>,
    /// Bytes of the inner file that version 2 says are left.
    left: Option<u64>,
}

impl<R: Read> Reader<R> {
    /// Reads the header; `Corrupt` if this is no CAR file.
    pub fn new(input: R) -> Result<Self> {
        let mut reader = Self { input: BufReader::new(input), roots: Vec::new(), left: None };
        let mut head = reader.header_bytes()?;
        if head == PRAGMA_V2[1..] {
            reader.enter_v2()?;
            head = reader.header_bytes()?;
        }
        let parsed = CarHeader::decode(&head).map_err(|e| Error::corrupt("not a CAR header").caused_by(e))?;
        for root in parsed.roots() {
            cid::check(root).map_err(|why| Error::corrupt(format!("a root of the CAR file: {why}")))?;
        }
        reader.roots = parsed.roots().to_vec();
        Ok(reader)
    }

    pub fn roots(&self) -> &[Cid] {
        &self.roots
    }

    /// The next block, verified; `None` at the end. After an error, read no further.
    pub fn next_block(&mut self) -> Result<Option<(Cid, Bytes)>> {
        let Some(length) = self.varint()? else { return Ok(None) };
        let longest = CID_BYTES_MAX + u64::try_from(BLOCK_BYTES_MAX).unwrap_or(u64::MAX);
        if length == 0 || length > longest {
            return Err(Error::corrupt(format!("a CAR block says it is {length} bytes long; {longest} are allowed")));
        }
        let section = Bytes::from(self.exactly(length)?);
        let mut rest: &[u8] = &section;
        let cid = Cid::read_bytes(&mut rest).map_err(|e| Error::corrupt("a CAR block without a CID").caused_by(e))?;
        let bytes = section.slice(section.len() - rest.len()..);
        if bytes.len() > BLOCK_BYTES_MAX {
            return Err(Error::corrupt(format!("block {cid} is over {BLOCK_BYTES_MAX} bytes long")));
        }
        cid::verify(&cid, &bytes)?;
        Ok(Some((cid, bytes)))
    }

    fn header_bytes(&mut self) -> Result<Vec<u8>> {
        let length = self.varint()?.ok_or_else(|| Error::corrupt("an empty file is no CAR file"))?;
        if length == 0 || length > HEADER_BYTES_MAX {
            return Err(Error::corrupt(format!("not a CAR file: a header of {length} bytes")));
        }
        self.exactly(length)
    }

    /// Skips to the inner version 1 file: 16 bytes of flags, then its offset, its length and the index's offset.
    fn enter_v2(&mut self) -> Result<()> {
        let fixed = self.exactly(40)?;
        let number = |at: usize| u64::from_le_bytes(fixed[at..at + 8].try_into().expect("eight bytes of forty"));
        let (offset, length) = (number(16), number(24));
        let skip = offset
            .checked_sub(FRAME_V2_BYTES)
            .ok_or_else(|| Error::corrupt("a CARv2 file that starts inside its header"))?;
        let failed = |e| Error::disk("cannot read the CAR file", e);
        let skipped = std::io::copy(&mut self.input.by_ref().take(skip), &mut std::io::sink()).map_err(failed)?;
        if skipped != skip {
            return Err(cut_short());
        }
        self.left = Some(length);
        Ok(())
    }

    /// A length, or `None` at a clean end.
    fn varint(&mut self) -> Result<Option<u64>> {
        let mut value = 0u64;
        for shift in (0..63).step_by(7) {
            if shift == 0 && self.left == Some(0) {
                return Ok(None);
            }
            let mut byte = [0];
            match self.fill(&mut byte) {
                Err(e) if e.kind == Kind::Corrupt && shift == 0 && self.left.is_none() => return Ok(None),
                other => other?,
            }
            value |= u64::from(byte[0] & 0x7f) << shift;
            if byte[0] & 0x80 == 0 {
                return Ok(Some(value));
            }
        }
        Err(Error::corrupt("a length in the CAR file is over 63 bits"))
    }

    fn exactly(&mut self, length: u64) -> Result<Vec<u8>> {
        let length = usize::try_from(length).map_err(|_| Error::corrupt("a length over the address space"))?;
        let mut bytes = vec![0; length];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<()> {
        if let Some(left) = &mut self.left {
            *left = left.checked_sub(len64(bytes)).ok_or_else(cut_short)?;
        }
        self.input.read_exact(bytes).map_err(|e| match e.kind() {
            ErrorKind::UnexpectedEof => cut_short(),
            _ => Error::disk("cannot read the CAR file", e),
        })
    }
}

fn cut_short() -> Error {
    Error::corrupt("the CAR file ends in the middle of a block")
}
