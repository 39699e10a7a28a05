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
fn shares_are_given_one_at_a_time() {
    let root = tempfile::tempdir().unwrap();
    let mut agent = open(root.path());
    agent.may_share().unwrap();
    assert_eq!(agent.may_share().unwrap_err().code(), "too_often");
}
