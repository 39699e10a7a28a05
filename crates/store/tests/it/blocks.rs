use crate::support::{Store, noise, on_a_full_disk, refused, spawn, store};
use std::fs::{self, File};
use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use store::checkpoint::{ConversationPage, LifeLog, LogLine, SegmentList};
use store::cid;
use store::dag::{Link, Node};
use store::{Blocks, Fetcher, Kind, StoreClient, gateway};

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

/// A node of one link, many times.
fn nested(here: &Store, leaf: cid::Cid, levels: u8) -> cid::Cid {
    (0..levels).fold(leaf, |below, level| {
        here.put_node(&Node { links: vec![Link { cid: below, name: String::new(), tsize: 0 }], data: vec![level] })
    })
}

/// A block that is no node: after a link to `below` comes a field that no node has.
fn unreadable(here: &Store, below: cid::Cid) -> cid::Cid {
    let mut bytes = Node { links: vec![Link { cid: below, name: String::new(), tsize: 0 }], data: vec![1] }.encode();
    bytes.extend_from_slice(&[0x2a, 0x00]);
    let cid = cid::of_dag_pb(&bytes);
    here.blocks.put_later(&cid, &bytes).unwrap();
    cid
}

#[test]
fn a_pin_that_cannot_be_followed_is_named_and_keeps_all_that_it_might_reach() {
    let here = store();
    let (deep_leaf, hidden) = (here.put_raw(b"deep"), here.add(&noise(5_000)));
    let deep = nested(&here, deep_leaf, 100);
    let broken = nested(&here, unreadable(&here, hidden), 3);
    let stray = here.put_raw(b"stray");
    let all = here.count();
    // As a program before this one let them be pinned.
    here.blocks.pin(&deep, "added").unwrap();
    here.blocks.pin(&broken, "added").unwrap();
    let done = here.blocks.gc(Duration::ZERO).unwrap();
    assert_eq!((done.removed_blocks, here.count()), (1, all - 1), "{done:?}");
    assert!(!here.blocks.has(&stray) && here.blocks.has(&deep_leaf));
    assert_eq!(store::unixfs::read_file(&here.blocks, &hidden, 5_000).unwrap(), noise(5_000));
    assert_eq!(done.unreadable.len(), 1, "{:?}", done.unreadable);
    assert_eq!(done.unreadable[0].pin, broken);
    assert!(done.unreadable[0].why.contains("is not a dag-pb node"), "{}", done.unreadable[0].why);
}

#[test]
fn a_pin_keeps_what_a_node_links_to_also_where_its_bytes_are_linked_as_a_leaf() {
    let here = store();
    let node = here.add(&noise(5_000));
    let as_leaf = here.put_raw(&here.blocks.get(&node).unwrap());
    let links = [as_leaf, node].map(|cid| Link { cid, name: String::new(), tsize: 0 });
    let root = here.put_node(&Node { links: links.to_vec(), data: vec![1] });
    let all = here.count();
    here.blocks.pin(&root, "added").unwrap();
    here.blocks.gc(Duration::ZERO).unwrap();
    assert_eq!(here.count(), all);
    assert_eq!(store::cli::verify(here.dir.path(), Some(&root.to_string()), |_| {}).unwrap().blocks, 10);
}

#[test]
fn a_car_file_whose_roots_cannot_be_kept_is_not_pinned() {
    let there = store();
    let leaf = there.put_raw(b"leaf");
    let (deep, broken) = (nested(&there, leaf, 70), nested(&there, unreadable(&there, leaf), 1));
    let partial = there.add(&noise(5_000));
    let whole = there.put_raw(b"whole");
    for (roots, kind, words) in [
        (vec![whole, deep], Kind::OverLimit, "levels deep"),
        (vec![broken], Kind::Corrupt, "is not a dag-pb node"),
        (vec![partial], Kind::Missing, "is not in"),
    ] {
        let here = store();
        let car = here.dir.path().join("hostile.car");
        let mut out = store::car::header(&roots).unwrap();
        for listed in there.blocks.iter() {
            let (cid, _) = listed.unwrap();
            let block = there.blocks.get(&cid).unwrap();
            if cid.codec() == cid::RAW && block.len() == 1024 {
                continue;
            }
            out.extend_from_slice(&store::car::frame(&cid, &block));
            out.extend_from_slice(&block);
        }
        fs::write(&car, out).unwrap();
        let imported = store::cli::import(here.dir.path(), &car, |_| {});
        assert!(imported.as_ref().unwrap_err().to_string().contains("blocks are stored, but no root is pinned"));
        refused(imported, kind, words);
        assert_eq!(here.blocks.pins().unwrap(), []);
        here.blocks.gc(Duration::ZERO).unwrap();
        assert_eq!(here.count(), 0, "nothing of it stays");
    }
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
fn a_text_that_is_also_a_part_of_something_else_keeps_what_it_names() {
    let here = store();
    let stretch = |prev: Option<cid::Cid>, seq: u64| {
        let lines = vec![LogLine { seq, at: 1, block: 1, kind: "life".into(), text: "x".into() }];
        here.put_raw(&LifeLog { agent: [7; 20].into(), chain_id: 1, prev, lines }.to_bytes())
    };
    let first = stretch(None, 1);
    let second = stretch(Some(first), 2);
    let third = stretch(Some(second), 3);
    // Met as a leaf before the third one names it: nodes come first.
    let folder =
        here.put_node(&Node { links: vec![Link { cid: second, name: "log".into(), tsize: 0 }], data: vec![8, 1] });
    here.blocks.pin(&folder, "added").unwrap();
    here.blocks.pin(&third, "log").unwrap();
    assert_eq!(here.blocks.gc(Duration::ZERO).unwrap().removed_blocks, 0);
    assert!([first, second, third].iter().all(|cid| here.blocks.has(cid)));
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
    let out = on_a_full_disk(100, "blocks::adder").env("STORE_TEST_DIR", dir).output().unwrap();
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

/// The child of the test below: fetches and says how that ended.
#[tokio::test]
#[ignore = "a process of its own, started by `a_fetch_that_fills_the_disk_says_so_and_goes_on_later`"]
async fn fetcher() {
    let variable = |name: &str| std::env::var(name).unwrap();
    let blocks = Blocks::open(variable("STORE_TEST_DIR")).unwrap();
    let root = cid::parse(&variable("STORE_TEST_ROOT")).unwrap();
    let fetcher = Fetcher::new(net::Client::new(), vec![variable("STORE_TEST_URL")]);
    println!("ended {:?}", fetcher.fetch_dag(&blocks, &root, |_| {}).await.map(drop).map_err(|e| e.kind));
}

#[tokio::test]
async fn a_fetch_that_fills_the_disk_says_so_and_goes_on_later() {
    let (there, here) = (store(), store());
    // Two leaves, of which the first does not fit.
    let put = &mut |cid, bytes: Vec<u8>| there.blocks.put_later(&cid, &bytes);
    let content = noise((1 << 20) + 5);
    let root = store::unixfs::import_bytes(&content, store::unixfs::Profile::V1_2025, put).unwrap().cid;
    let url = spawn(gateway::router(there.blocks.clone())).await;
    let mut child = on_a_full_disk(100, "blocks::fetcher");
    child.env("STORE_TEST_DIR", here.dir.path()).env("STORE_TEST_URL", &url).env("STORE_TEST_ROOT", root.to_string());
    let out = tokio::task::spawn_blocking(move || child.output().unwrap()).await.unwrap();
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(said.contains("ended Err(DiskFull)"), "{said}{}", String::from_utf8_lossy(&out.stderr));
    assert_eq!(fs::read_dir(here.dir.path().join("tmp")).unwrap().count(), 0, "the space is given back");
    assert!(here.blocks.has(&root), "what was stored before stays");
    let fetched = Fetcher::new(net::Client::new(), vec![url]).fetch_dag(&here.blocks, &root, |_| {}).await.unwrap();
    assert_eq!(fetched.blocks_done, 3);
    assert!(store::unixfs::read_file(&here.blocks, &root, content.len()).unwrap() == content);
}

/// The child of the test below: serves until nobody holds its standard input any more.
#[tokio::test]
#[ignore = "a process of its own, started by `a_store_on_a_full_disk_answers_507_and_keeps_no_half`"]
async fn server() {
    let blocks = Blocks::open(std::env::var_os("STORE_TEST_DIR").unwrap()).unwrap();
    println!("serving {}", spawn(gateway::router(blocks)).await);
    let wait = || std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
    tokio::task::spawn_blocking(wait).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_store_on_a_full_disk_answers_507_and_keeps_no_half() {
    let here = store();
    let kept = here.put_raw(b"kept");
    let mut child = on_a_full_disk(0, "blocks::server")
        .env("STORE_TEST_DIR", here.dir.path())
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
    let url = lines.map(Result::unwrap).find_map(|line| Some(line.split_once("serving ")?.1.to_owned())).unwrap();
    let client = StoreClient::new(net::Client::new(), vec![url.clone()]);
    refused(client.put_block(&cid::of_raw(b"new"), b"new").await, Kind::DiskFull, "is full");
    refused(client.pin(&kept, "weights").await, Kind::DiskFull, "is full");
    let put = format!("{url}/blocks/{}", cid::of_raw(b"new"));
    let answer = net::Client::new().put(&put, b"new".as_slice()).await.unwrap();
    assert_eq!(answer.status, 507);
    let said: serde_json::Value = answer.json().await.unwrap();
    assert!(said["error"]["message"].as_str().unwrap().contains("free space and try again"), "{said}");
    // What is here already needs no room, and is read as ever.
    client.put_block(&kept, b"kept").await.unwrap();
    assert_eq!(client.get_bytes(&kept, 10).await.unwrap(), b"kept");
    drop(child.stdin.take());
    child.wait().unwrap();
    assert_eq!(here.blocks.pins().unwrap(), []);
    assert_eq!(fs::read_dir(here.dir.path().join("tmp")).unwrap().count(), 0, "the space is given back");
    assert_eq!(here.count(), 1);
}

#[test]
fn a_full_disk_is_told_apart_from_a_broken_one() {
    let full = store::Error::disk("cannot store block", std::io::Error::from_raw_os_error(28));
    refused(Err::<(), _>(full), Kind::DiskFull, "free space");
    let broken = store::Error::disk("cannot store block", std::io::Error::from_raw_os_error(5));
    assert_eq!(broken.kind, Kind::Disk);
}

/// The child of the test below: collects, and is killed when it has looked at so many blocks.
#[test]
#[ignore = "a process of its own, started by `a_collection_that_was_killed_has_taken_nothing_that_is_pinned`"]
fn collect_until_killed() {
    let variable = |name: &str| std::env::var(name).unwrap();
    let blocks = Blocks::open(variable("STORE_TEST_DIR")).unwrap();
    let last: u64 = variable("STORE_TEST_LOOKS").parse().unwrap();
    let kill = |looked_at| {
        if looked_at == last {
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL).unwrap();
        }
    };
    blocks.gc_each(Duration::ZERO, kill).unwrap();
}

#[test]
fn a_collection_that_was_killed_has_taken_nothing_that_is_pinned() {
    use std::os::unix::process::ExitStatusExt;
    let here = store();
    let weights = here.add(&noise(30_000));
    let snapshot = here.add(&noise(5_000));
    let talk = here.put_raw(b"sealed conversation");
    let page = here.put_raw(&ConversationPage { conversations: vec![talk], keys: String::new() }.to_bytes());
    let run = here.put_raw(b"a run of records");
    let list = SegmentList { agent: [7; 20].into(), prev: None, segments: vec![run] };
    let list = here.put_raw(&list.to_bytes());
    let checkpoint = crate::checkpoint::resting_on(snapshot, list, vec![page]);
    here.blocks.put(&checkpoint.cid(), &checkpoint.to_bytes()).unwrap();
    here.blocks.pin(&checkpoint.cid(), "checkpoint").unwrap();
    here.blocks.pin(&weights, "weights").unwrap();
    let is_whole = |blocks: &Blocks| {
        let read = |root, bytes| store::unixfs::read_file(blocks, root, bytes).unwrap();
        assert!(read(&weights, 30_000) == noise(30_000) && read(&snapshot, 5_000) == noise(5_000));
        for cid in [checkpoint.cid(), talk, page, run, list] {
            blocks.get(&cid).unwrap();
        }
    };
    let pinned = here.count();
    here.add(&noise(100_000)[1..]);
    let all = here.count();
    // At the first block, while it follows pins, and while it removes: the first, some in the middle, the last.
    let mut looks = u64::try_from(all).unwrap();
    let (mut left, mut kills) = (all, 0);
    for at in [1, 20, 45, 60, 80, 110, looks] {
        let child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["blocks::collect_until_killed", "--exact", "--ignored"])
            .env("STORE_TEST_DIR", here.dir.path())
            .env("STORE_TEST_LOOKS", at.min(looks).to_string())
            .stdout(std::process::Stdio::null())
            .status()
            .unwrap();
        assert_eq!(child.signal(), Some(9), "{child} at block {at}");
        // As after a start: a new handle.
        let blocks = Blocks::open(here.dir.path()).unwrap();
        is_whole(&blocks);
        let now = here.count();
        assert!((pinned..=left).contains(&now), "{now} of {left} blocks");
        kills += u32::from(now < left);
        left = now;
        looks = u64::try_from(now).unwrap();
    }
    assert!(kills >= 2 && left > pinned, "killed while it removed {kills} times; {left} blocks are left");
    // Nobody's lock is left, and what no pin reaches goes now.
    here.blocks.gc(Duration::ZERO).unwrap();
    is_whole(&here.blocks);
    assert_eq!(here.count(), pinned);
}
