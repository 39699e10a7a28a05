//! CAR files of strangers. What must hold: every block that is handed out hashes to its CID; the blocks written again
//! are read as the same; the pieces in which a file arrives do not matter; and no length makes the reader hold more than
//! one block.
#![no_main]

use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use std::io::Read;
use store::Kind;
use store::car::{self, Reader};
use store::cid::{self, Cid};
use store::dag::BLOCK_BYTES_MAX;
use vivarium_fuzz::bounded;

/// The reader's buffer and an error's text, on top of a block.
const BESIDE_A_BLOCK: usize = 256 << 10;
/// A header is read into at most 64 KiB. The list of its roots may say that it is longer than the header: serde then sets
/// aside a mebibyte, never more.
const HEADER: usize = (1 << 20) + (512 << 10);

fuzz_target!(|data: &[u8]| {
    let whole = read(data, usize::MAX);
    assert!(whole == read(data, 7), "in pieces it is another file");
    let Ok((roots, blocks, _)) = whole else { return };
    for (cid, bytes) in &blocks {
        cid::verify(cid, bytes).expect("a block that was handed out");
    }
    let mut again = car::header(&roots).expect("roots that were read");
    for (cid, bytes) in &blocks {
        again.extend_from_slice(&car::frame(cid, bytes));
        again.extend_from_slice(bytes);
    }
    assert!(read(&again, usize::MAX) == Ok((roots, blocks, None)), "written again it is another file");
});

/// Roots, the blocks before the first fault, and its kind; or why there is no header.
type File = Result<(Vec<Cid>, Vec<(Cid, Vec<u8>)>, Option<Kind>), Kind>;

fn read(data: &[u8], piece_bytes: usize) -> File {
    let mut reader = bounded(HEADER, || Reader::new(Pieces { rest: data, piece_bytes })).map_err(|e| e.kind)?;
    let mut blocks = Vec::new();
    let fault = loop {
        match bounded(BLOCK_BYTES_MAX + BESIDE_A_BLOCK, || reader.next_block()) {
            Ok(Some((cid, bytes))) => blocks.push((cid, bytes.to_vec())),
            Ok(None) => break None,
            Err(e) => break Some(e.kind),
        }
    };
    Ok((reader.roots().to_vec(), blocks, fault))
}

/// A connection that brings no more than so many bytes at once.
struct Pieces<'a> {
    rest: &'a [u8],
    piece_bytes: usize,
}

impl Read for Pieces<'_> {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let length = out.len().min(self.piece_bytes).min(self.rest.len());
        let (piece, rest) = self.rest.split_at(length);
        out[..length].copy_from_slice(piece);
        self.rest = rest;
        Ok(length)
    }
}

// No change of a block would get past its hash: three in four inputs get hashes that fit.
fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    let size = libfuzzer_sys::fuzzer_mutate(data, size, max_size);
    if seed % 4 != 0 {
        name_rightly(&mut data[..size]);
    }
    size
});

/// Walks the file as far as its lengths lead and writes each block's own hash before it. Never looks into the header.
fn name_rightly(data: &mut [u8]) -> Option<()> {
    let mut at = 0;
    if data.starts_with(&[0x0a, 0xa1]) {
        at = usize::try_from(u64::from_le_bytes(data.get(27..35)?.try_into().ok()?)).ok()?;
    }
    let header = varint(data, &mut at)?;
    at = at.checked_add(header)?;
    loop {
        let length = varint(data, &mut at)?;
        let end = at.checked_add(length).filter(|end| *end <= data.len())?;
        let section = &mut data[at..end];
        let digest_at = match section {
            [1, 0x55 | 0x70, 0x12, 0x20, ..] => 4,
            [0x12, 0x20, ..] => 2,
            _ => return None,
        };
        let (name, content) = section.split_at_mut_checked(digest_at + 32)?;
        name[digest_at..].copy_from_slice(&cid::digest(&cid::of_raw(content)));
        at = end;
    }
}

fn varint(data: &[u8], at: &mut usize) -> Option<usize> {
    let mut value = 0usize;
    for shift in (0..28).step_by(7) {
        let byte = *data.get(*at)?;
        *at += 1;
        value |= usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}
