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
fn version_two_is_written_too_and_a_torn_one_is_no_file() {
    let (root, inner) = exported();
    let here = store();
    here.add(&noise(9_000));
    // A stream: nothing in it is written again.
    let mut written = Vec::new();
    let (blocks, bytes) = car::export_v2(&here.blocks, &root, &mut written).unwrap();
    assert_eq!((blocks, usize::try_from(bytes).unwrap()), (13, written.len()));
    assert_eq!(&written[51..], inner);
    let there = store();
    let done = car::import(&there.blocks, &written[..]).unwrap();
    assert_eq!((done.roots, done.blocks), (vec![root], 13));
    // Killed before the last byte was written, or without a length: not taken for a whole file.
    refused(car::import(&store().blocks, &written[..written.len() - 1]), Kind::Corrupt, "middle of a block");
    let mut empty = written.clone();
    empty[35..43].fill(0);
    refused(Reader::new(&empty[..]).map(|_| ()), Kind::Corrupt, "empty file");
    // A length that is longer or shorter than what is there.
    for (lie, words) in
        [(bytes - 52, "middle of a block"), (bytes, "middle of a block"), (u64::MAX, "middle of a block")]
    {
        let mut lying = written.clone();
        lying[35..43].copy_from_slice(&lie.to_le_bytes());
        refused(car::import(&store().blocks, &lying[..]), Kind::Corrupt, words);
    }
    let mut far = written.clone();
    far[27..35].copy_from_slice(&u64::MAX.to_le_bytes());
    refused(Reader::new(&far[..]).map(|_| ()), Kind::Corrupt, "middle of a block");
}

#[test]
fn a_file_that_holds_a_block_twice_is_taken() {
    let (root, car) = exported();
    let mut reader = car::Reader::new(&car[..]).unwrap();
    let mut twice = car::header(&[root]).unwrap();
    let mut count = 0;
    while let Some((cid, block)) = reader.next_block().unwrap() {
        for _ in 0..2 {
            twice.extend_from_slice(&car::frame(&cid, &block));
            twice.extend_from_slice(&block);
        }
        count += 1;
    }
    let here = store();
    let done = car::import(&here.blocks, &twice[..]).unwrap();
    assert_eq!((done.roots, done.blocks, here.count()), (vec![root], 2 * count, usize::try_from(count).unwrap()));
    let mut again = Vec::new();
    car::export(&here.blocks, &root, &mut again).unwrap();
    assert!(again == car, "each block once");
}

#[test]
fn a_graph_that_is_not_whole_is_not_exported() {
    let here = store();
    let root = here.add(&noise(9_000));
    let victim = here.blocks.iter().map(Result::unwrap).map(|(c, _)| c).find(|c| *c != root).unwrap();
    here.blocks.delete(&victim).unwrap();
    refused(car::export(&here.blocks, &root, &mut Vec::new()), Kind::Missing, &victim.to_string());
    let mut begun = Vec::new();
    refused(car::export_v2(&here.blocks, &root, &mut begun), Kind::Missing, &victim.to_string());
    assert!(begun.is_empty(), "what is missing is found before anything is written");
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
    // CBOR nested 60,000 deep must not eat the stack.
    let mut bomb = vec![0xe0, 0xd4, 0x03];
    bomb.extend(vec![0x81; 60_000]);
    refused(import(&bomb), Kind::Corrupt, "not a CAR header");
    // A block over 2 MiB, with its true length and hash.
    let large = vec![5; (2 << 20) + 1];
    let mut section = good[..header].to_vec();
    section.extend(car::frame(&cid::of_raw(&large), &large));
    section.extend_from_slice(&large);
    refused(import(&section), Kind::Corrupt, "over 2097152 bytes");
    // A root in a codec that is not spoken (dag-cbor), and a block in one.
    let cbor = cid::Cid::new_v1(0x71, *cid::of_raw(b"x").hash());
    refused(import(&car::header(&[cbor]).unwrap()), Kind::Corrupt, "codec 0x71");
    let foreign = [&good[..header], &car::frame(&cbor, b"x"), b"x"].concat();
    refused(import(&foreign), Kind::Corrupt, "codec 0x71");
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
