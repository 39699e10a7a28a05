use crate::support::refused;
use alloy::primitives::{Address, B256};
use alloy::signers::local::PrivateKeySigner;
use std::path::Path;
use store::Kind;
use store::checkpoint::{ArchiveCopy, Checkpoint, Mismatch, SegmentHeader, SegmentList, Share, ShareRequest, keys};
use store::cid::{self, Cid};
use store::cli::arweave;
use store::seal::{Identity, key_hash};
use store::unixfs::{Profile, import_bytes, import_path};

const AGENT: Address = Address::repeat_byte(0xa1);
const CHAIN: u64 = 31337;

fn operator() -> PrivateKeySigner {
    PrivateKeySigner::from_bytes(&B256::repeat_byte(7)).unwrap()
}

fn draft(snapshot: Cid, conversations: Vec<Cid>) -> Checkpoint {
    let memory = Identity::generate();
    let share = |byte: u8| Share {
        steward: Address::repeat_byte(byte),
        share_recipient: Identity::generate().recipient().to_string(),
        sealed: format!("c2VhbGVk{byte}"),
    };
    Checkpoint {
        version: store::checkpoint::VERSION,
        agent: AGENT,
        chain_id: CHAIN,
        epoch: 3,
        seq: 5,
        prev: Some(B256::repeat_byte(4)),
        lsn: 1000,
        snapshot,
        snapshot_bytes: 77,
        snapshot_lsn: 900,
        segments: Some(cid::of_raw(b"segments")),
        segments_bytes: 5_000,
        chapter: Identity::generate().recipient().to_string(),
        keys: cid::of_raw(b"keys"),
        recipient: memory.recipient().to_string(),
        key_hash: key_hash(memory.to_secret_string().as_bytes()),
        threshold: 2,
        shares: vec![share(1), share(2), share(3)],
        conversations,
        log: cid::of_raw(b"log"),
        log_seq: 12,
        created_at: 1_700_000_000,
        signature: String::new(),
    }
}

/// A checkpoint that passes every check.
pub fn signed(snapshot: Cid, conversations: Vec<Cid>) -> Checkpoint {
    let mut checkpoint = draft(snapshot, conversations);
    checkpoint.sign(&operator()).unwrap();
    checkpoint
}

/// With segments after its snapshot that are here.
pub fn resting_on(snapshot: Cid, segments: Cid, pages: Vec<Cid>) -> Checkpoint {
    let mut checkpoint = Checkpoint { segments: Some(segments), ..draft(snapshot, pages) };
    checkpoint.sign(&operator()).unwrap();
    checkpoint
}

/// The one after it, with a key object that is here.
pub fn with_keys(seq: u64, keys: Cid) -> Checkpoint {
    let mut checkpoint = Checkpoint { seq, keys, ..draft(cid::of_raw(b"snapshot"), Vec::new()) };
    checkpoint.sign(&operator()).unwrap();
    checkpoint
}

/// The same with a log that is here.
pub fn ending_with(log: Cid) -> Checkpoint {
    let mut checkpoint = Checkpoint { log, ..draft(cid::of_raw(b"snapshot"), Vec::new()) };
    checkpoint.sign(&operator()).unwrap();
    checkpoint
}

fn example() -> Checkpoint {
    signed(cid::of_raw(b"snapshot"), vec![cid::of_raw(b"page")])
}

fn verify(checkpoint: &Checkpoint) -> Result<(), Mismatch> {
    checkpoint.verify(operator().address(), AGENT, CHAIN)
}

#[test]
fn a_signed_checkpoint_survives_its_bytes() {
    let made = example();
    let read = Checkpoint::from_bytes(&made.to_bytes()).unwrap();
    assert_eq!(read, made);
    verify(&read).unwrap();
    assert_eq!(read.cid(), cid::raw(read.digest()));
    assert_eq!(read.objects(), [&b"snapshot"[..], b"keys", b"log", b"segments", b"page"].map(cid::of_raw));
    assert_eq!(read.share_of(Address::repeat_byte(2)).unwrap().sealed, "c2VhbGVk2");
    read.follows(4, Some(B256::repeat_byte(4)), 3).unwrap();
}

#[test]
fn swapped_replayed_and_mixed_checkpoints_are_refused_by_name() {
    let good = example();
    let (me, other) = (operator().address(), Address::repeat_byte(9));
    assert_eq!(good.verify(me, other, CHAIN), Err(Mismatch::Agent { found: AGENT, expected: other }));
    assert_eq!(good.verify(me, AGENT, 1), Err(Mismatch::Chain { found: CHAIN, expected: 1 }));
    assert_eq!(good.verify(other, AGENT, CHAIN), Err(Mismatch::Signature { found: Some(me), expected: other }));

    let prev = Some(B256::repeat_byte(4));
    assert_eq!(good.follows(4, prev, 4), Err(Mismatch::Epoch { found: 3, expected: 4 }));
    assert_eq!(good.follows(5, prev, 3), Err(Mismatch::Seq { found: 5, expected: 6 }));
    assert_eq!(good.follows(4, None, 3), Err(Mismatch::Prev { found: prev, expected: None }));
}

#[test]
fn a_change_of_any_field_breaks_the_signature() {
    let good = example();
    let changes: [fn(&mut Checkpoint); 18] = [
        |c| c.epoch += 1,
        |c| c.seq += 1,
        |c| c.prev = None,
        |c| c.lsn += 1,
        |c| c.snapshot = cid::of_raw(b"other"),
        |c| c.snapshot_bytes += 1,
        |c| c.snapshot_lsn += 1,
        |c| c.segments = Some(cid::of_raw(b"other")),
        |c| c.segments_bytes += 1,
        |c| c.chapter = Identity::generate().recipient().to_string(),
        |c| c.keys = cid::of_raw(b"other"),
        |c| c.recipient = Identity::generate().recipient().to_string(),
        |c| c.key_hash = B256::ZERO,
        |c| c.threshold = 1,
        |c| c.shares.swap(0, 1),
        |c| c.shares[0].sealed = "b3RoZXI=".into(),
        |c| c.conversations.clear(),
        |c| c.created_at += 1,
    ];
    for (at, change) in changes.iter().enumerate() {
        let mut changed = good.clone();
        change(&mut changed);
        assert!(matches!(verify(&changed), Err(Mismatch::Signature { .. })), "change {at}");
    }
}

#[test]
fn a_signature_has_one_form() {
    let good = example();
    let bytes = hex::decode(&good.signature[2..]).unwrap();
    let high_s = {
        // s' = n − s with the other parity recovers the same key; accepting it would give one object two CIDs.
        let n = hex::decode("fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141").unwrap();
        let mut other = bytes.clone();
        let mut borrow = 0i16;
        for i in (0..32).rev() {
            let digit = i16::from(n[i]) - i16::from(bytes[32 + i]) - borrow;
            borrow = i16::from(digit < 0);
            other[32 + i] = u8::try_from(digit.rem_euclid(256)).unwrap();
        }
        other[64] = 55 - other[64];
        other
    };
    let forms = [
        String::new(),
        good.signature[2..].to_owned(),
        good.signature.to_uppercase(),
        format!("{}00", good.signature),
        format!("0x{}", hex::encode(high_s)),
    ];
    for form in forms {
        let changed = Checkpoint { signature: form.clone(), ..good.clone() };
        assert!(matches!(verify(&changed), Err(Mismatch::Signature { found: None, .. })), "{form}");
    }
}

#[test]
fn a_key_that_could_not_be_restored_is_not_signed() {
    let broken: [fn(&mut Checkpoint); 6] = [
        |c| c.threshold = 0,
        |c| c.threshold = 4,
        |c| c.shares[1].steward = c.shares[0].steward,
        |c| c.shares[1].sealed = c.shares[0].sealed.clone(),
        |c| c.recipient = "age1nobody".into(),
        |c| c.chapter = "age1nobody".into(),
    ];
    for (at, change) in broken.iter().enumerate() {
        let mut checkpoint = draft(cid::of_raw(b"s"), vec![]);
        change(&mut checkpoint);
        refused(checkpoint.sign(&operator()), Kind::Usage, "nobody could accept");
        assert!(matches!(verify(&checkpoint), Err(Mismatch::Shares { .. })), "{at}");
    }
}

#[test]
fn a_checkpoint_with_a_hole_behind_its_snapshot_is_not_signed() {
    let broken: [fn(&mut Checkpoint); 3] =
        [|c| c.snapshot_lsn = c.lsn + 1, |c| c.snapshot_lsn = c.lsn, |c| c.segments = None];
    for (at, change) in broken.iter().enumerate() {
        let mut checkpoint = draft(cid::of_raw(b"s"), vec![]);
        change(&mut checkpoint);
        refused(checkpoint.sign(&operator()), Kind::Usage, "nobody could accept");
        assert!(matches!(verify(&checkpoint), Err(Mismatch::Gap { .. })), "{at}");
    }
}

#[test]
fn other_forms_of_the_same_json_are_refused() {
    let text = String::from_utf8(example().to_bytes()).unwrap();
    for (changed, why) in [
        (text.replacen('{', "{ ", 1), "canonical"),
        (text.replacen("\"version\":3", "\"version\":3,\"extra\":0", 1), "not a checkpoint"),
        (text.replacen("\"version\":3,", "", 1), "not a checkpoint"),
        (text.replacen("\"version\":3", "\"version\":3.0", 1), "not a checkpoint"),
        (text.replacen("0xa1", "0xA1", 1), "canonical"),
        (text.replacen("bafkrei", "bafkqa", 1), "not a checkpoint"),
        (format!("{text}\n"), "canonical"),
        (format!("{text}{{}}"), "not a checkpoint"),
    ] {
        refused(Checkpoint::from_bytes(changed.as_bytes()), Kind::Corrupt, why);
    }
    let next = text.replacen("\"version\":3", "\"version\":4", 1);
    assert_eq!(verify(&Checkpoint::from_bytes(next.as_bytes()).unwrap()), Err(Mismatch::Version { found: 4 }));
}

#[test]
fn a_key_object_opens_under_its_memory_key_and_says_what_it_is() {
    let (memory, other) = (Identity::generate(), Identity::generate());
    let sealed = keys::seal(b"the keys", &memory.recipient()).unwrap();
    assert_eq!(keys::open(&sealed, &memory).unwrap(), b"the keys");
    assert!(keys::is_key_object(&cid::of_raw(&sealed), &sealed));
    refused(keys::open(&sealed, &other), Kind::Key, "not sealed to");
    let plain = store::seal::seal(b"the keys", &[memory.recipient()]).unwrap();
    assert!(!keys::is_key_object(&cid::of_raw(&plain), &plain));
    refused(keys::open(&plain, &memory), Kind::Corrupt, "not a key object");
}

#[tokio::test]
async fn no_key_object_goes_to_arweave_whatever_it_lies_in() {
    let here = crate::support::store();
    let sealed = |bytes: usize| keys::seal(&vec![7; bytes], &Identity::generate().recipient()).unwrap();
    let file = |bytes: &[u8], profile| {
        import_bytes(bytes, profile, &mut |cid, block| here.blocks.put_later(&cid, &block)).unwrap().cid
    };
    let small = here.put_raw(&sealed(100));
    let large = file(&sealed(3 << 20), Profile::V1_2025);
    assert_eq!(large.codec(), cid::DAG_PB);
    let old = file(&sealed(100), Profile::V0_2015);
    let folder = here.dir.path().join("folder");
    std::fs::create_dir_all(folder.join("below")).unwrap();
    std::fs::write(folder.join("a"), b"harmless").unwrap();
    std::fs::write(folder.join("below/keys"), sealed(100)).unwrap();
    let folder = import_path(&folder, Profile::V1_2025, &mut |cid, block| here.blocks.put_later(&cid, &block)).unwrap();
    for root in [small, large, old, folder.cid] {
        // Neither a gateway nor a wallet is asked for: nothing comes so far.
        let put =
            arweave::put(here.dir.path(), &root.to_string(), Vec::new(), Path::new("/no/wallet"), 0, |_| {}).await;
        refused(put, Kind::Usage, "must stay destructible");
    }
    assert_eq!(std::fs::read_dir(here.dir.path().join("tmp")).unwrap().count(), 0, "nothing of it stays in a file");
    let harmless = here.put_raw(b"harmless");
    let put =
        arweave::put(here.dir.path(), &harmless.to_string(), Vec::new(), Path::new("/no/wallet"), 0, |_| {}).await;
    refused(put, Kind::Key, "/no/wallet");
}

fn segment(index: u64, lsns: (u64, u64), prev: Option<Cid>) -> SegmentHeader {
    let mut header = SegmentHeader {
        agent: AGENT,
        chain_id: CHAIN,
        epoch: 3,
        index,
        first_lsn: lsns.0,
        last_lsn: lsns.1,
        prev,
        cid: cid::of_raw(&index.to_le_bytes()),
        recipient: Identity::generate().recipient().to_string(),
        bytes: 10,
        signature: String::new(),
    };
    header.sign(&operator()).unwrap();
    header
}

#[test]
fn segments_chain_without_gaps() {
    let first = segment(0, (1, 10), None);
    let second = segment(1, (11, 20), Some(first.cid));
    assert_eq!(SegmentHeader::from_bytes(&second.to_bytes()).unwrap(), second);
    second.verify(operator().address(), AGENT, CHAIN).unwrap();
    second.follows(&first).unwrap();
    let after = |index, lsns, prev| segment(index, lsns, prev).follows(&first);
    assert_eq!(after(2, (11, 20), Some(first.cid)), Err(Mismatch::Seq { found: 2, expected: 1 }));
    assert!(matches!(after(1, (11, 20), None), Err(Mismatch::Prev { found: None, .. })));
    assert_eq!(after(1, (12, 20), Some(first.cid)), Err(Mismatch::Gap { found: 12, expected: 11 }));

    let mut moved = second.clone();
    moved.last_lsn = 21;
    assert!(matches!(moved.verify(operator().address(), AGENT, CHAIN), Err(Mismatch::Signature { .. })));
    let backwards = segment(1, (11, 10), Some(first.cid));
    assert!(matches!(backwards.verify(operator().address(), AGENT, CHAIN), Err(Mismatch::Gap { .. })));
}

#[test]
fn a_share_request_is_good_for_one_key_one_epoch_and_one_recipient() {
    let node = operator();
    let mut request = ShareRequest {
        treasury: AGENT,
        chain_id: CHAIN,
        epoch: 4,
        lease: 2,
        recipient: Identity::generate().recipient().to_string(),
        signature: String::new(),
    };
    request.sign(&node).unwrap();
    request.verify(node.address(), AGENT, CHAIN, 4).unwrap();
    assert_eq!(request.signer(), Some(node.address()));
    assert_eq!(request.verify(node.address(), AGENT, CHAIN, 5), Err(Mismatch::Epoch { found: 4, expected: 5 }));
    assert!(matches!(request.verify(Address::ZERO, AGENT, CHAIN, 4), Err(Mismatch::Signature { .. })));

    // A thief of the message wants the answer for itself.
    let mut stolen = request.clone();
    stolen.recipient = Identity::generate().recipient().to_string();
    assert!(matches!(stolen.verify(node.address(), AGENT, CHAIN, 4), Err(Mismatch::Signature { .. })));
    // A signature over one kind of object is none over another.
    let header = SegmentHeader { signature: request.signature, ..segment(0, (1, 2), None) };
    assert!(header.verify(node.address(), AGENT, CHAIN).is_err());
}

#[tokio::test]
async fn a_copy_for_arweave_is_list_snapshot_and_segments_and_none_where_keys_pass_for_memory() {
    let here = crate::support::store();
    let url = crate::support::spawn(store::gateway::router(here.blocks.clone())).await;
    let client = store::StoreClient::new(net::Client::new(), vec![url]);
    let list = async |agent: Address, prev: Option<Cid>, segment: &[u8]| {
        let list = SegmentList { agent, prev, segments: vec![cid::of_raw(segment)] };
        client.put_bytes(&list.to_bytes()).await.unwrap()
    };
    let snapshot = client.put_bytes(b"snapshot").await.unwrap();
    let first = list(AGENT, None, b"one").await;
    let second = list(AGENT, Some(first), b"two").await;
    let checkpoint = resting_on(snapshot, second, vec![cid::of_raw(b"page")]);
    let copy = ArchiveCopy::of(&client, &checkpoint).await.unwrap();
    let named = [checkpoint.cid(), snapshot, second, cid::of_raw(b"two"), first, cid::of_raw(b"one")];
    assert_eq!(copy.roots, named);
    for (segment, page) in [(&b"keys"[..], &b"page"[..]), (b"page", b"page")] {
        let segments = list(AGENT, None, segment).await;
        let bad = resting_on(snapshot, segments, vec![cid::of_raw(page)]);
        refused(ArchiveCopy::of(&client, &bad).await, Kind::Corrupt, "as keys and as memory");
    }
    let foreign = list(Address::repeat_byte(9), None, b"one").await;
    let bad = resting_on(snapshot, foreign, vec![]);
    refused(ArchiveCopy::of(&client, &bad).await, Kind::Corrupt, "is no part of the memory");

    // What is not here yet is brought, and no more bytes than were paid for.
    client.put_block(&checkpoint.cid(), &checkpoint.to_bytes()).await.unwrap();
    for segment in [b"one", b"two"] {
        client.put_bytes(segment).await.unwrap();
    }
    let there = crate::support::store();
    let short = copy.gather(&there.blocks, &client, 500).await;
    refused(short, Kind::OverLimit, "more than the 500 bytes of its price");
    copy.gather(&there.blocks, &client, copy.bytes_max).await.unwrap();
    assert_eq!(there.count(), named.len());
}
