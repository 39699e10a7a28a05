use crate::support::{noise, refused, store};
use std::fs::{self, File};
use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use store::checkpoint::{ConversationPage, LifeLog, LogLine, SegmentList};
use store::cid;
use store::{Blocks, Kind};

/// The only file of a block in the folder.
fn file_of(dir: &Path, cid: &cid::Cid) -> PathBuf {
    let shard = hex::encode(&cid::digest(cid)[..1]);
    dir.join("blocks").join(shard).join(cid.to_string())
}

#[test]
fn a_block_goes_in_comes_out_and_goes_away() {
    let here = store();
    let cid = here.put_raw(b"abc");
    here.blocks.put(&cid, b"abc").unwrap();
    assert_eq!(&here.blocks.get(&cid).unwrap()[..], b"abc");
    assert_eq!((here.blocks.has(&cid), here.blocks.len(&cid)), (true, Some(3)));
    // Another handle, another process: the folder is the state.
    let again = Blocks::open(here.dir.path()).unwrap();
    assert_eq!(again.iter().map(Result::unwrap).collect::<Vec<_>>(), [(cid, 3)]);
    assert!(again.delete(&cid).unwrap());
    assert!(!again.delete(&cid).unwrap());
    refused(here.blocks.get(&cid), Kind::Missing, "is not in");
}

#[test]
fn what_does_not_match_its_name_or_is_too_long_is_refused() {
    let here = store();
    refused(here.blocks.put(&cid::of_raw(b"abc"), b"abd"), Kind::Corrupt, "do not hash to");
    let long = vec![0; (2 << 20) + 1];
    refused(here.blocks.put(&cid::of_raw(&long), &long), Kind::OverLimit, "2097153 bytes");
    here.blocks.put(&cid::of_raw(&long[1..]), &long[1..]).unwrap();
    assert_eq!(here.count(), 1);
    assert_eq!(fs::read_dir(here.dir.path().join("tmp")).unwrap().count(), 0);
}

#[test]
fn a_block_that_a_power_cut_tore_is_missing_and_can_be_put_again() {
    let here = store();
    let cid = here.put_raw(b"abc");
    for torn in [&b""[..], b"ab", b"\0\0\0"] {
        fs::write(file_of(here.dir.path(), &cid), torn).unwrap();
        refused(here.blocks.get(&cid), Kind::Missing, "damaged");
        assert!(!here.blocks.has(&cid));
        // Torn again, and put before anybody read it.
        fs::write(file_of(here.dir.path(), &cid), torn).unwrap();
        here.blocks.put(&cid, b"abc").unwrap();
        assert_eq!(&here.blocks.get(&cid).unwrap()[..], b"abc");
    }
}

/// The child of the test below: puts blocks for ever and says each name once it is stored.
#[test]
#[ignore = "a process of its own, started by `what_was_stored_survives_kill_9`"]
fn writer_for_ever() {
    let blocks = Blocks::open(std::env::var_os("STORE_TEST_DIR").unwrap()).unwrap();
    for number in 0u64.. {
        let bytes = number.to_le_bytes().repeat(4096);
        let cid = cid::of_raw(&bytes);
        blocks.put_later(&cid, &bytes).unwrap();
        println!("stored {cid}");
    }
}

#[test]
fn what_was_stored_survives_kill_9() {
    let here = store();
    let mut child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["blocks::writer_for_ever", "--exact", "--ignored", "--nocapture"])
        .env("STORE_TEST_DIR", here.dir.path())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
    let mut said = Vec::new();
    for line in lines {
        if let Some(text) = line.unwrap().split("stored ").nth(1) {
            said.push(cid::parse(text).unwrap());
        }
        if said.len() == 50 {
            // SIGKILL, in the middle of some write.
            child.kill().unwrap();
            break;
        }
    }
    child.wait().unwrap();
    assert_eq!(said.len(), 50);
    let again = Blocks::open(here.dir.path()).unwrap();
    said.iter().for_each(|cid| assert_eq!(again.get(cid).unwrap().len(), 32768));
    let checked = store::cli::verify(here.dir.path(), None, |_| {}).unwrap();
    assert!(checked.damaged.is_empty() && checked.blocks >= 50, "{checked:?}");
}

#[test]
fn a_writer_killed_in_the_middle_leaves_nothing_under_a_name() {
    let here = store();
    let cid = cid::of_raw(b"abc");
    // What kill -9 leaves: a temporary file, partly written.
    let tmp = here.dir.path().join("tmp/1-0000");
    let mut file = File::create(&tmp).unwrap();
    file.write_all(b"a").unwrap();
    assert!(!here.blocks.has(&cid));
    Blocks::open(here.dir.path()).unwrap();
    assert!(tmp.exists(), "it may belong to a living writer");
    file.set_modified(SystemTime::now() - Duration::from_secs(7200)).unwrap();
    Blocks::open(here.dir.path()).unwrap();
    assert!(!tmp.exists(), "an old one belongs to nobody");
}

#[test]
fn garbage_collection_keeps_what_a_pin_reaches() {
    let here = store();
    let kept = here.add(&noise(20_000));
    let kept_count = here.count();
    let lost = here.add(&noise(30_000)[1..]);
    let all_count = here.count();
    here.blocks.pin(&kept, "weights").unwrap();
    here.blocks.pin(&kept, "added").unwrap();

    let young = here.blocks.gc(Duration::from_secs(3600)).unwrap();
    assert_eq!((young.removed_blocks, young.kept_blocks), (0, u64::try_from(all_count).unwrap()));
    let done = here.blocks.gc(Duration::ZERO).unwrap();
    assert_eq!(here.count(), kept_count);
    assert_eq!(done.kept_blocks, u64::try_from(kept_count).unwrap());
    assert_eq!(done.removed_blocks, u64::try_from(all_count - kept_count).unwrap());
    assert!(!here.blocks.has(&lost));
    assert_eq!(store::unixfs::read_file(&here.blocks, &kept, 20_000).unwrap(), noise(20_000));

    // One reason taken back leaves the other.
    assert!(here.blocks.unpin(&kept, Some("weights")).unwrap());
    assert!(!here.blocks.unpin(&kept, Some("weights")).unwrap());
    assert_eq!(here.blocks.pins().unwrap()[0].reasons, ["added"]);
    assert_eq!(here.blocks.gc(Duration::ZERO).unwrap().removed_blocks, 0);
    assert!(here.blocks.unpin(&kept, None).unwrap());
    here.blocks.gc(Duration::ZERO).unwrap();
    assert_eq!(here.count(), 0);
}

#[test]
fn garbage_collection_stays_away_while_somebody_writes() {
    let here = store();
    let writing = here.blocks.writing().unwrap();
    let _two_at_once = Blocks::open(here.dir.path()).unwrap().writing().unwrap();
    refused(here.blocks.gc(Duration::ZERO), Kind::Usage, "somebody is writing");
    drop((writing, _two_at_once));
    here.blocks.gc(Duration::ZERO).unwrap();
}

#[test]
fn a_pinned_checkpoint_keeps_its_snapshot_segments_and_conversations() {
    let here = store();
    let snapshot = here.add(&noise(5_000));
    let talk = here.put_raw(b"sealed conversation");
    let stray = here.put_raw(b"stray");
    let page = ConversationPage { conversations: vec![talk], keys: String::new() };
    let page = here.put_raw(&page.to_bytes());
    let runs = [b"run 1", b"run 2", b"run 3"].map(|run| here.put_raw(run));
    let list = |prev, segments: &[cid::Cid]| {
        here.put_raw(&SegmentList { agent: [7; 20].into(), prev, segments: segments.to_vec() }.to_bytes())
    };
    let lists = list(Some(list(None, &runs[..2])), &runs[2..]);
    let checkpoint = crate::checkpoint::resting_on(snapshot, lists, vec![page]);
    here.blocks.put(&checkpoint.cid(), &checkpoint.to_bytes()).unwrap();
    here.blocks.pin(&checkpoint.cid(), "checkpoint").unwrap();
    here.blocks.gc(Duration::ZERO).unwrap();
    assert!(here.blocks.has(&talk) && !here.blocks.has(&stray));
    assert!(runs.iter().all(|run| here.blocks.has(run)));
    assert_eq!(store::unixfs::read_file(&here.blocks, &snapshot, 5_000).unwrap(), noise(5_000));
}

#[test]
fn a_key_object_goes_with_its_checkpoint() {
    let here = store();
    let (old, new) = (here.put_raw(b"old keys"), here.put_raw(b"new keys"));
    for (seq, keys) in [(1, old), (2, new)] {
        let checkpoint = crate::checkpoint::with_keys(seq, keys);
        here.blocks.put(&checkpoint.cid(), &checkpoint.to_bytes()).unwrap();
        here.blocks.pin(&checkpoint.cid(), "checkpoint").unwrap();
        if keys == old {
            here.blocks.unpin(&checkpoint.cid(), Some("checkpoint")).unwrap();
        }
    }
    here.blocks.gc(Duration::ZERO).unwrap();
    assert!(here.blocks.has(&new) && !here.blocks.has(&old));
}

#[test]
fn a_pinned_log_keeps_all_that_came_before_it_and_so_does_a_checkpoint() {
    let here = store();
    let stretch = |prev: Option<cid::Cid>, seq: u64| {
        let lines = vec![LogLine { seq, at: 1, block: 1, kind: "life".into(), text: "x".into() }];
        let stretch = LifeLog { agent: [7; 20].into(), chain_id: 1, prev, lines };
        here.put_raw(&stretch.to_bytes())
    };
    let first = stretch(None, 1);
    let second = stretch(Some(first), 2);
    let third = stretch(Some(second), 3);
    let stray = stretch(Some(third), 4);
    here.blocks.pin(&third, "log").unwrap();
    here.blocks.gc(Duration::ZERO).unwrap();
    assert!([first, second, third].iter().all(|cid| here.blocks.has(cid)) && !here.blocks.has(&stray));

    let checkpoint = crate::checkpoint::ending_with(third);
    here.blocks.put(&checkpoint.cid(), &checkpoint.to_bytes()).unwrap();
    here.blocks.pin(&checkpoint.cid(), "checkpoint").unwrap();
    here.blocks.unpin(&third, None).unwrap();
    here.blocks.gc(Duration::ZERO).unwrap();
    assert!([first, second, third].iter().all(|cid| here.blocks.has(cid)), "the log of a kept checkpoint");
}

#[test]
fn a_reason_is_one_line() {
    let here = store();
    let cid = here.put_raw(b"abc");
    for bad in ["", " ", "two\nlines", " padded"] {
        refused(here.blocks.pin(&cid, bad), Kind::Usage, "is no reason");
    }
}

/// The child of the test below: adds a folder and says how that ended.
#[test]
#[ignore = "a process of its own, started by `an_add_that_fills_the_disk_says_so_and_goes_on_later`"]
fn adder() {
    let dir = PathBuf::from(std::env::var_os("STORE_TEST_DIR").unwrap());
    let added = store::cli::add(&dir, &dir.join("source"), store::unixfs::Profile::V1_2025, |_| {});
    println!("ended {:?}", added.map(drop).map_err(|e| e.kind));
}

#[test]
fn an_add_that_fills_the_disk_says_so_and_goes_on_later() {
    let here = store();
    let dir = here.dir.path();
    fs::create_dir(dir.join("source")).unwrap();
    fs::write(dir.join("source/a"), b"small").unwrap();
    fs::write(dir.join("source/b"), noise(3 << 20)).unwrap();
    // No file may grow beyond 100 blocks of 512 or 1024 bytes: the first chunk of `b` does not fit.
    let out = std::process::Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 100; exec \"$@\"", "sh"])
        .arg(std::env::current_exe().unwrap())
        .args(["blocks::adder", "--exact", "--ignored", "--nocapture"])
        .env("STORE_TEST_DIR", dir)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(said.contains("ended Err(DiskFull)"), "{said}{}", String::from_utf8_lossy(&out.stderr));
    assert_eq!(fs::read_dir(dir.join("tmp")).unwrap().count(), 0, "the space is given back");
    assert!(here.blocks.pins().unwrap().is_empty());
    let seen = store::cli::verify(dir, None, |_| {}).unwrap();
    assert_eq!((seen.blocks, seen.damaged.len()), (1, 0), "what was stored before is whole");
    let added = store::cli::add(dir, &dir.join("source"), store::unixfs::Profile::V1_2025, |_| {}).unwrap();
    assert_eq!(added.bytes, (3 << 20) + 5);
    let seen = store::cli::verify(dir, Some(&added.cid), |_| {}).unwrap();
    assert!(seen.missing.is_empty() && seen.damaged.is_empty());
}

#[test]
fn a_full_disk_is_told_apart_from_a_broken_one() {
    let full = store::Error::disk("cannot store block", std::io::Error::from_raw_os_error(28));
    refused(Err::<(), _>(full), Kind::DiskFull, "free space");
    let broken = store::Error::disk("cannot store block", std::io::Error::from_raw_os_error(5));
    assert_eq!(broken.kind, Kind::Disk);
}
