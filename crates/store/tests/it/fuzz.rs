//! Parsers of what strangers send, on bytes that were once right: no panic, no memory beyond a block's, and what is taken
//! is what it says it is. Deterministic: a failure names its seed. Nodes, CAR files and sealed objects are tried by
//! libFuzzer (`fuzz/`); here are those that need a store around them, or an original beside.

#[path = "../../../../tests/fuzz.rs"]
pub mod changes;

use crate::support::{Store, noise, store};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use changes::Chance;
use store::arweave::{Bundle, Transaction, verify_chunk};
use store::checkpoint::{Checkpoint, ConversationPage, LifeLog, SegmentHeader, SegmentList, ShareRequest};
use store::cid::{self, Cid};
use store::unixfs::{Listing, Profile, import_path};

/// Enough to find what a day of it found; ten million with VIVARIUM_DEEP=1.
fn runs() -> u64 {
    changes::runs(40_000, DEEP)
}

const DEEP: u64 = 10_000_000;

/// What lengths, wire types and counts look like where they hurt.
const TOKENS: [&[u8]; 14] = [
    &[0],
    &[0xff],
    &[0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x01],
    &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f],
    &[0x0a, 0x00],
    &[0x12, 0x02],
    &[0x18, 0x00],
    &[0x20, 0x00],
    &[0x08, 0x05],
    &[0x30, 0x80, 0x02],
    // An identity CID, a dag-cbor CID, a nested array of CBOR.
    &[0x01, 0x55, 0x00, 0x02, b'h', b'i'],
    &[0x01, 0x71, 0x12, 0x20],
    &[0x81, 0x81, 0x81, 0x81],
    b"../",
];

fn mutate(bytes: &mut Vec<u8>, chance: &mut Chance) {
    changes::mutate(bytes, chance, &TOKENS, 40);
}

/// Runs `check` on seeds, one in eight left as it was. Returns how often it said that the bytes were taken.
fn fuzz(runs: u64, seeds: &[Vec<u8>], mut check: impl FnMut(u64, &[u8]) -> bool) -> u64 {
    let mut taken = 0;
    for seed in 0..runs {
        let mut chance = Chance(seed);
        let mut bytes = seeds[chance.below(seeds.len())].clone();
        if seed % 8 != 0 {
            mutate(&mut bytes, &mut chance);
        }
        taken += u64::from(check(seed, &bytes));
    }
    assert!(taken >= runs / 16, "{taken} of {runs} were taken: the seeds are no good");
    taken
}

/// A store with files and directories of every form, and their roots.
fn graphs() -> (Store, Vec<Cid>) {
    let here = store();
    let source = here.dir.path().join("source");
    std::fs::create_dir_all(source.join("many")).unwrap();
    std::fs::write(source.join("file"), noise(5_000)).unwrap();
    (0..60).for_each(|i| std::fs::write(source.join(format!("many/{i:0240}")), i.to_string()).unwrap());
    let mut roots = Vec::new();
    for profile in [Profile::V1_2025, Profile { chunk_bytes: 100, width: 3, ..Profile::V0_2015 }] {
        let made = import_path(&source, profile, &mut |cid, bytes| here.blocks.put_later(&cid, &bytes)).unwrap();
        roots.push(made.cid);
    }
    // A sharded one, written by hand from two names' slots.
    std::fs::create_dir(source.join("sharded")).unwrap();
    (0..1070).for_each(|i| std::fs::write(source.join(format!("sharded/{i:0200}")), [1]).unwrap());
    let put = &mut |cid, bytes: Vec<u8>| here.blocks.put_later(&cid, &bytes);
    roots.push(import_path(&source.join("sharded"), Profile::V1_2025, put).unwrap().cid);
    (here, roots)
}

/// A graph whose root was bent: whatever it is now, walking it ends, and what is written stays inside.
#[test]
fn strangers_directories_break_no_listing() {
    let (here, roots) = graphs();
    let blocks: Vec<Vec<u8>> = roots.iter().map(|root| here.blocks.get(root).unwrap().to_vec()).collect();
    fuzz(runs() / 100, &blocks, |_, bytes| {
        let cid = cid::of_dag_pb(bytes);
        here.blocks.put_later(&cid, bytes).unwrap();
        let listed = Listing::of(&here.blocks, &cid).map(|listing| listing.filter(Result::is_ok).count());
        listed.is_ok_and(|count| count <= 1070)
    });
}

#[test]
fn strangers_names_break_no_parser() {
    let (_, roots) = graphs();
    let mut seeds: Vec<Vec<u8>> = roots.iter().map(|root| root.to_string().into_bytes()).collect();
    seeds.push(b"bafkqaaa".to_vec());
    fuzz(runs(), &seeds, |seed, bytes| {
        let Ok(text) = std::str::from_utf8(bytes) else { return false };
        let Ok(cid) = cid::parse(text) else { return false };
        assert_eq!(cid::parse(&cid.to_string()).unwrap(), cid, "seed {seed}");
        assert_eq!(cid::normal(&cid).hash().digest().len(), 32, "seed {seed}");
        true
    });
}

#[test]
fn strangers_signed_objects_break_no_parser() {
    let checkpoint = crate::checkpoint::signed(cid::of_raw(b"snapshot"), vec![cid::of_raw(b"talk")]).to_bytes();
    let log = br#"{"agent":"0xa1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1","chain_id":1,"prev":null,"lines":[{"seq":1,"at":2,"block":3,"kind":"k","text":"t"}]}"#;
    let list = SegmentList { agent: [7; 20].into(), prev: None, segments: vec![cid::of_raw(b"run")] }.to_bytes();
    let page = ConversationPage { conversations: vec![cid::of_raw(b"talk")], keys: "AAAA".into() }.to_bytes();
    fuzz(runs(), &[checkpoint, log.to_vec(), list, page], |seed, bytes| {
        let _ = (SegmentHeader::from_bytes(bytes), serde_json::from_slice::<ShareRequest>(bytes));
        let log = LifeLog::from_bytes(bytes).map(|log| log.to_bytes());
        let checkpoint = Checkpoint::from_bytes(bytes).map(|checkpoint| checkpoint.to_bytes());
        let list = SegmentList::from_bytes(bytes).map(|list| list.to_bytes());
        let page = ConversationPage::from_bytes(bytes).map(|page| page.to_bytes());
        let read = [log, checkpoint, list, page].into_iter().flatten();
        let forms = read.inspect(|again| assert_eq!(again, bytes, "seed {seed}: one object, one form")).count();
        assert!(forms <= 1, "seed {seed}: one object, one kind");
        forms == 1
    });
}

#[test]
fn strangers_arweave_objects_break_no_parser() {
    let reference: serde_json::Value = serde_json::from_str(include_str!("../reference/arweave.json")).unwrap();
    let transaction = reference["transaction"].to_string().into_bytes();
    fuzz(runs() / 4, &[transaction], |seed, bytes| {
        let Ok(json) = serde_json::from_slice(bytes) else { return false };
        let Ok(read) = Transaction::from_json(&json) else { return false };
        assert_eq!(Transaction::from_json(&read.to_json()).unwrap(), read, "seed {seed}");
        true
    });
    // Signatures are checked in every item, which takes most of the time.
    let bundle = URL_SAFE_NO_PAD.decode(reference["bundle"].as_str().unwrap()).unwrap();
    fuzz(runs() / 100, &[bundle], |seed, bytes| match Bundle::from_bytes(bytes) {
        Ok(bundle) => {
            assert!(bundle.to_bytes() == bytes, "seed {seed}: altered and taken");
            true
        }
        Err(_) => false,
    });
    let data = noise(600_000);
    let tree = store::arweave::DataTree::build(&mut &data[..], 600_000).unwrap();
    let chunk = &data[256 << 10..512 << 10];
    let proof = tree.proof(1).unwrap();
    fuzz(runs() / 100, std::slice::from_ref(&proof), |seed, bytes| {
        match verify_chunk(&tree.root(), 600_000, 256 << 10, bytes, chunk) {
            Ok(_) => {
                assert!(bytes == proof, "seed {seed}: another proof was taken");
                true
            }
            Err(_) => false,
        }
    });
}
