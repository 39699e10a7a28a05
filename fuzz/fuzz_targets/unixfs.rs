//! UnixFS nodes of strangers. What must hold: sizes add up, no part is empty, no name leaves its directory or comes
//! twice, slots ascend; what was read, written again from the format's text alone (not by the importer), is read as the
//! same; and memory is a multiple of the block.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::collections::HashSet;
use store::cid::{self, Cid};
use store::dag::{Link, Node};
use store::unixfs::{self, Entry, Object, Slot};
use vivarium_fuzz::bounded;

const DIRECTORY: u64 = 1;
const FILE: u64 = 2;
const SHARD: u64 = 5;
const MURMUR3_X64_64: u64 = 0x22;

fuzz_target!(|data: &[u8]| {
    let name = cid::of_dag_pb(data);
    // A packed size of one byte becomes eight, in a list that grows by doubling; a link of 38 bytes about 150, twice.
    let Ok(object) = bounded(8192 + 40 * data.len(), || unixfs::read(&name, data)) else { return };
    let written = match &object {
        Object::File { inline, parts, bytes } => {
            let own = u64::try_from(inline.len()).unwrap();
            assert_eq!(parts.iter().map(|(_, bytes)| bytes).sum::<u64>() + own, *bytes, "sizes");
            assert!(parts.iter().all(|(_, bytes)| *bytes > 0), "an empty part");
            file(inline, parts, *bytes)
        }
        Object::Directory { entries } => {
            let mut names = HashSet::new();
            entries.iter().for_each(|entry| assert!(names.insert(&entry.name), "{:?} is there twice", entry.name));
            entries.iter().for_each(stays_inside);
            let links = entries.iter().map(|e| link(e.cid, e.name.clone(), e.tsize)).collect();
            Node { links, data: message(&[(1, Field::Number(DIRECTORY))]) }
        }
        Object::Shard(shard) => {
            assert!(shard.slots.windows(2).all(|pair| pair[0].0 < pair[1].0), "slots out of order");
            assert!(shard.slots.iter().all(|(slot, _)| slot >> shard.bits == 0), "a slot beyond the last");
            shard.slots.iter().for_each(|(_, slot)| {
                if let Slot::Entry(entry) = slot {
                    stays_inside(entry);
                }
            });
            sharded(shard)
        }
    };
    let written = written.encode();
    let again = unixfs::read(&cid::of_dag_pb(&written), &written);
    // Two blocks of one object differ in what nobody reads: the claimed size of another part of a directory.
    assert!(again.is_ok_and(|again| again == object), "written again it is another object");
});

fn stays_inside(entry: &Entry) {
    let name = &entry.name;
    assert!(!name.is_empty() && name.len() <= 255 && name != "." && name != "..", "{name:?}");
    assert!(!name.contains(['/', '\\', '\0']), "{name:?}");
}

fn link(cid: Cid, name: String, tsize: u64) -> Link {
    Link { cid, name, tsize }
}

fn file(inline: &[u8], parts: &[(Cid, u64)], bytes: u64) -> Node {
    let mut fields = vec![(1, Field::Number(FILE)), (2, Field::Bytes(inline)), (3, Field::Number(bytes))];
    fields.extend(parts.iter().map(|(_, bytes)| (4, Field::Number(*bytes))));
    Node { links: parts.iter().map(|(cid, _)| link(*cid, String::new(), 0)).collect(), data: message(&fields) }
}

fn sharded(shard: &unixfs::Shard) -> Node {
    let slots = 1u64 << shard.bits;
    let digits = format!("{:X}", slots - 1).len();
    let mut taken = vec![0u8; usize::try_from(slots / 8).unwrap()];
    let mut links = Vec::new();
    for (slot, inside) in &shard.slots {
        let from_the_end = usize::try_from(slot / 8).unwrap();
        let last = taken.len() - 1;
        taken[last - from_the_end] |= 1 << (slot % 8);
        links.push(match inside {
            Slot::Entry(entry) => link(entry.cid, format!("{slot:0digits$X}{}", entry.name), entry.tsize),
            Slot::Below(cid) => link(*cid, format!("{slot:0digits$X}"), 0),
        });
    }
    let data = message(&[
        (1, Field::Number(SHARD)),
        (2, Field::Bytes(&taken)),
        (5, Field::Number(MURMUR3_X64_64)),
        (6, Field::Number(slots)),
    ]);
    Node { links, data }
}

enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// Protobuf, from its description: a key, then a number or a length and bytes.
fn message(fields: &[(u8, Field<'_>)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (number, field) in fields {
        match field {
            Field::Number(value) => {
                out.push(number << 3);
                varint(*value, &mut out);
            }
            Field::Bytes(bytes) => {
                out.push(number << 3 | 2);
                varint(u64::try_from(bytes.len()).unwrap(), &mut out);
                out.extend_from_slice(bytes);
            }
        }
    }
    out
}

fn varint(mut value: u64, out: &mut Vec<u8>) {
    loop {
        let low = u8::try_from(value & 0x7f).unwrap();
        value >>= 7;
        if value == 0 {
            return out.push(low);
        }
        out.push(low | 0x80);
    }
}
