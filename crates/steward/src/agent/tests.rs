use super::*;
use crate::segments::Place;
use alloy::primitives::U256;
use chain::bindings::{Policy, Timers};
use serde_json::Value;

fn birth() -> Birth {
    let policy =
        Policy { dayLimit: 1, priceE6Max: 1, termMax: 1, prepayMax: 1, gasDayMax: 1, gasTarget: 1, starveFloor: 1 };
    let timers = Timers {
        day: 20,
        heartbeatEvery: 3,
        fence: 8,
        answerTime: 12,
        handoverNotice: 3,
        restoreTimeout: 20,
        silence: 26,
        starveTimeout: 15,
        activateWithin: 90,
        refundWindow: 6,
    };
    let who = Address::ZERO;
    Birth {
        creator: who,
        token: who,
        market: who,
        beneficiary: who,
        stewards: vec![],
        threshold: 1,
        codeHash: B256::ZERO,
        manifest: B256::ZERO,
        mandateUntil: U256::ZERO.to(),
        policy,
        timers,
        options: Default::default(),
    }
}

fn open(root: &Path) -> Agent {
    Agent::open(root, Address::repeat_byte(1), birth(), Seat::Key { place: 0 }).unwrap()
}

fn segment(index: u64, first_lsn: u64, last_lsn: u64) -> Kept {
    let cid = format!("cid{index}");
    let prev = index.checked_sub(1).map(|p| format!("cid{p}"));
    Kept { header: Value::from(cid.clone()), place: Place { epoch: 1, index, first_lsn, last_lsn, cid, prev } }
}

#[test]
fn what_was_signed_is_known_after_a_restart() {
    let root = tempfile::tempdir().unwrap();
    let (one, two) = (B256::repeat_byte(1), B256::repeat_byte(2));
    open(root.path()).remember(3, 8, one, b"object").unwrap();
    let mut again = open(root.path());
    assert_eq!(again.remember(3, 8, two, b"other").unwrap_err().code(), "already_signed");
    assert_eq!(again.object(two), None);
    assert_eq!(again.object(one).unwrap(), b"object");
    again.remember(4, 8, two, b"other").unwrap();
}

#[test]
fn a_disk_that_does_not_take_it_leaves_nothing_signed() {
    let root = tempfile::tempdir().unwrap();
    let mut agent = open(root.path());
    // A directory in the place of the file stands for every failure of the disk.
    fs::create_dir(root.path().join(Address::repeat_byte(1).to_string()).join("signed.json")).unwrap();
    assert_eq!(agent.remember(3, 8, B256::repeat_byte(1), b"object").unwrap_err().code(), "disk");
    assert_eq!(agent.signed().last(), None);
}

#[test]
fn segments_survive_a_restart_and_a_torn_tail() {
    let root = tempfile::tempdir().unwrap();
    let mut agent = open(root.path());
    for (index, first) in [(0, 1), (1, 11), (2, 21)] {
        agent.accept(segment(index, first, first + 9)).unwrap();
    }
    let path = root.path().join(Address::repeat_byte(1).to_string()).join("segments.jsonl");
    let whole = fs::read(&path).unwrap();
    for cut in [1, 10, 100] {
        fs::write(&path, &whole[..whole.len() - cut]).unwrap();
        let mut again = open(root.path());
        assert_eq!(again.segments().kept().len(), 2, "cut {cut}");
        again.accept(segment(2, 21, 30)).unwrap();
        assert_eq!(fs::read(&path).unwrap(), whole);
    }
    // Corruption in the middle is not a torn tail: somebody must look.
    fs::write(&path, [b"rubbish\n".as_slice(), &whole].concat()).unwrap();
    assert_eq!(
        Agent::open(root.path(), Address::repeat_byte(1), birth(), Seat::Key { place: 0 }).unwrap_err().code(),
        "disk"
    );
}

#[test]
fn a_share_that_leaves_is_on_the_disk_first_whatever_tore_the_line_before() {
    let root = tempfile::tempdir().unwrap();
    let released = |seq: u64| Released {
        at: 1_800_000_000,
        epoch: 2,
        lease: 9,
        operator: Address::repeat_byte(7),
        recipient: "age1x".into(),
        seq,
        digest: B256::repeat_byte(3),
    };
    let path = root.path().join(Address::repeat_byte(1).to_string()).join("released.jsonl");
    open(root.path()).note_release(&released(1)).unwrap();
    // A power cut in the middle of the next.
    OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"at\":18").unwrap();
    let agent = open(root.path());
    agent.note_release(&released(2)).unwrap();
    agent.note_release(&released(3)).unwrap();
    let text = fs::read_to_string(&path).unwrap();
    let lines: Vec<_> = text.lines().map(serde_json::from_str::<Released>).collect();
    assert_eq!(lines.len(), 4);
    assert!(lines[1].is_err());
    let whole: Vec<u64> = lines.into_iter().flatten().map(|line| line.seq).collect();
    assert_eq!(whole, [1, 2, 3]);
    // A disk that refuses: nothing leaves.
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert_eq!(agent.note_release(&released(4)).unwrap_err().code(), "disk");
}

fn object(seq: u64, lsn: u64) -> Checkpoint {
    let cid = store::cid::of_raw(b"sealed");
    let recipient = store::seal::Identity::generate().recipient().to_string();
    Checkpoint {
        version: store::checkpoint::VERSION,
        agent: Address::repeat_byte(1),
        chain_id: 31337,
        epoch: 1,
        seq,
        prev: None,
        lsn,
        snapshot: cid,
        snapshot_bytes: 6,
        snapshot_lsn: lsn,
        segments: None,
        segments_bytes: 0,
        chapter: recipient.clone(),
        keys: cid,
        recipient,
        key_hash: B256::ZERO,
        threshold: 1,
        shares: vec![],
        conversations: vec![],
        log: cid,
        log_seq: 1,
        created_at: 1,
        signature: String::new(),
    }
}

#[test]
fn what_a_newer_checkpoint_covers_is_removed_with_the_shares_in_it() {
    let root = tempfile::tempdir().unwrap();
    let mut agent = open(root.path());
    // Number 7 and a rival of its place, 8, and 9, which may not stand.
    let [old, rival, stands, next] = [object(7, 10), object(8, 19), object(8, 20), object(9, 30)];
    for made in [&old, &rival, &stands, &next] {
        agent.keep_object(made.digest().into(), &made.to_bytes()).unwrap();
    }
    let litter = root.path().join(Address::repeat_byte(1).to_string()).join("checkpoints/litter");
    fs::write(&litter, b"half an obj").unwrap();
    for (index, first) in [(0, 1), (1, 11), (2, 21)] {
        agent.accept(segment(index, first, first + 9)).unwrap();
    }
    agent.prune(stands.digest().into(), &stands).unwrap();
    assert_eq!(agent.object(old.digest().into()), None, "its share is gone from here");
    for made in [&rival, &stands, &next] {
        assert!(agent.object(made.digest().into()).is_some(), "number {} may still be restored", made.seq);
    }
    assert!(!litter.exists());
    let places = |agent: &Agent| agent.segments().kept().iter().map(|k| k.place.index).collect::<Vec<_>>();
    assert_eq!(places(&agent), [2]);
    assert_eq!(places(&open(root.path())), [2], "on the disk, too");
}

#[test]
fn shares_are_given_one_at_a_time() {
    let root = tempfile::tempdir().unwrap();
    let mut agent = open(root.path());
    agent.may_share().unwrap();
    assert_eq!(agent.may_share().unwrap_err().code(), "too_often");
}
