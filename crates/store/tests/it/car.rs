use crate::support::{noise, refused, store};
use proptest::prelude::*;
use store::car::{self, Reader};
use store::cid;
use store::{Kind, unixfs};

fn exported() -> (cid::Cid, Vec<u8>) {
    let here = store();
    let root = here.add(&noise(9_000));
    let mut bytes = Vec::new();
    let (_, written) = car::export(&here.blocks, &root, &mut bytes).unwrap();
    assert_eq!(usize::try_from(written).unwrap(), bytes.len());
    (root, bytes)
}

#[test]
fn a_graph_moves_as_a_file() {
    let (root, bytes) = exported();
    let there = store();
    let done = car::import(&there.blocks, &bytes[..]).unwrap();
    assert_eq!((done.roots, done.blocks), (vec![root], 13));
    assert_eq!(unixfs::read_file(&there.blocks, &root, 9_000).unwrap(), noise(9_000));
}

#[test]
fn version_two_is_read_too() {
    let (root, inner) = exported();
    let mut outer = vec![0x0a, 0xa1, 0x67];
    outer.extend_from_slice(b"version\x02");
    outer.extend_from_slice(&[0; 16]);
    for number in [51 + 7, u64::try_from(inner.len()).unwrap(), 0] {
        outer.extend_from_slice(&number.to_le_bytes());
    }
    // Padding before, an index after.
    outer.extend_from_slice(&[0xee; 7]);
    outer.extend_from_slice(&inner);
    outer.extend_from_slice(&[0xff; 100]);
    let there = store();
    assert_eq!(car::import(&there.blocks, &outer[..]).unwrap().blocks, 13);
    assert_eq!(unixfs::read_file(&there.blocks, &root, 9_000).unwrap(), noise(9_000));

    let mut inside = outer.clone();
    inside[27] = 50;
    refused(Reader::new(&inside[..]).map(|_| ()), Kind::Corrupt, "inside its header");
}

#[test]
fn a_graph_that_is_not_whole_is_not_exported() {
    let here = store();
    let root = here.add(&noise(9_000));
    let victim = here.blocks.iter().map(Result::unwrap).map(|(c, _)| c).find(|c| *c != root).unwrap();
    here.blocks.delete(&victim).unwrap();
    refused(car::export(&here.blocks, &root, &mut Vec::new()), Kind::Missing, &victim.to_string());
}

#[test]
fn lying_lengths_other_bytes_and_other_files_are_refused() {
    let there = store();
    let import = |bytes: &[u8]| car::import(&there.blocks, bytes);
    let (_, good) = exported();
    refused(import(b""), Kind::Corrupt, "empty file");
    refused(import(b"<!DOCTYPE html><html></html>"), Kind::Corrupt, "CAR");
    refused(import(&good[..good.len() - 1]), Kind::Corrupt, "middle of a block");

    let header = 1 + usize::from(good[0]);
    // A block of 2^62 bytes, and a header as long: neither is allocated.
    let huge = [&good[..header], &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x3f]].concat();
    refused(import(&huge), Kind::Corrupt, "are allowed");
    refused(import(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x3f]), Kind::Corrupt, "a header of");
    refused(import(&[&good[..header], &[0xff; 12]].concat()), Kind::Corrupt, "over 63 bits");
    refused(import(&[&good[..header], &[0x00]].concat()), Kind::Corrupt, "0 bytes long");
    refused(import(&[&good[..header], &[0x7f, 1, 2, 3]].concat()), Kind::Corrupt, "middle of a block");

    let mut flipped = good.clone();
    *flipped.last_mut().unwrap() ^= 1;
    refused(import(&flipped), Kind::Corrupt, "do not hash to");
    // A block under an identity CID: length 6, CIDv1 raw, hash 0 of 2 bytes.
    let identity = [&good[..header], &[6, 0x01, 0x55, 0x00, 0x02, b'h', b'i']].concat();
    refused(import(&identity), Kind::Corrupt, "hash 0x0");
}

proptest! {
    #[test]
    fn no_bytes_make_the_reader_panic(flips in proptest::collection::vec((0usize..600, any::<u8>()), 1..6)) {
        let (_, mut bytes) = exported();
        for (at, value) in flips {
            bytes[at] = value;
        }
        if let Ok(mut reader) = Reader::new(&bytes[..]) {
            while let Ok(Some((cid, block))) = reader.next_block() {
                prop_assert!(cid::verify(&cid, &block).is_ok());
            }
        }
    }
}
