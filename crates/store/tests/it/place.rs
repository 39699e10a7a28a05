//! A file that fills at its final place.

use crate::support::{SMALL, Store, noise, refused, spawn, store};
use axum::Router;
use axum::extract::Path;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::get;
use net::Client;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use store::cid::{self, Cid};
use store::dag::{Link, Node};
use store::unixfs::{Profile, import_bytes};
use store::{Blocks, Fetcher, Kind, Result, gateway};
use tokio::sync::watch;

const BYTES: u64 = 100_000;

/// Where a file goes, with its nodes beside it.
struct Host {
    nodes: Store,
    file: PathBuf,
}

fn host() -> Host {
    let nodes = store();
    Host { file: nodes.dir.path().join("weights"), nodes }
}

impl Host {
    /// Fetches, and says how far it got: content bytes right from the start.
    async fn fetch(&self, urls: &[&String], root: &Cid) -> (Result<Vec<u64>>, u64) {
        let (verified, mut told) = watch::channel(0);
        let fetcher = Fetcher::new(Client::new(), urls.iter().map(|url| (*url).clone()).collect());
        let fetch = fetcher.fetch_in_place(&self.nodes.blocks, root, (&self.file, BYTES), verified, |_| {});
        let file = self.file.clone();
        // Reads every beginning that it is told of.
        let reader = tokio::spawn(async move {
            let expected = noise(BYTES);
            while told.changed().await.is_ok() {
                let upto = usize::try_from(*told.borrow_and_update()).unwrap();
                let there = std::fs::read(&file).unwrap();
                assert_eq!(there.len(), 100_000, "as long as it will be");
                assert!(there[..upto] == expected[..upto], "the first {upto} bytes were said to be right");
            }
            *told.borrow()
        });
        let fetched = fetch.await.map(|done| done.sources.iter().map(|source| source.blocks).collect());
        (fetched, reader.await.unwrap())
    }
}

fn origin() -> (Store, Cid) {
    let origin = store();
    let root = origin.add(&noise(BYTES));
    (origin, root)
}

/// Answers so many requests for blocks by `answer`: (block, how many were asked before); then 500.
fn source(blocks: &Blocks, answers: u64, answer: fn(Vec<u8>, u64) -> Vec<u8>) -> (Router, Arc<AtomicU64>) {
    let (blocks, asked) = (blocks.clone(), Arc::new(AtomicU64::new(0)));
    let count = asked.clone();
    let route = get(move |Path(text): Path<String>| async move {
        let before = count.fetch_add(1, Ordering::SeqCst);
        match blocks.get(&cid::parse(&text).unwrap()) {
            _ if before >= answers => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
            Ok(block) => answer(block.to_vec(), before).into_response(),
            Err(_) => StatusCode::NOT_FOUND.into_response(),
        }
    });
    (Router::new().route("/ipfs/{cid}", route), asked)
}

fn honest(block: Vec<u8>, _: u64) -> Vec<u8> {
    block
}

#[tokio::test]
async fn a_file_arrives_in_place_while_one_source_lies_and_one_dies() {
    let (origin, root) = origin();
    let (liar, _) = source(&origin.blocks, u64::MAX, |mut block, before| {
        block[0] ^= u8::from(before % 10 == 9);
        block
    });
    let (dying, _) = source(&origin.blocks, 30, honest);
    let (good, _) = source(&origin.blocks, u64::MAX, honest);
    let urls = [spawn(liar).await, spawn(dying).await, spawn(good).await];
    let host = host();
    let (fetched, verified) = host.fetch(&[&urls[0], &urls[1], &urls[2]], &root).await;
    fetched.unwrap();
    assert_eq!((std::fs::read(&host.file).unwrap() == noise(BYTES), verified), (true, BYTES));
    let leaves = host.nodes.blocks.iter().filter(|listed| listed.as_ref().unwrap().0.codec() == cid::RAW).count();
    assert_eq!(leaves, 0, "no leaf is kept twice");
}

#[tokio::test]
async fn blocks_are_asked_for_in_the_order_of_the_file() {
    let origin = store();
    // More leaves than are looked for at a time.
    let content = noise(BYTES);
    let profile = Profile { chunk_bytes: 64, ..SMALL };
    let root = import_bytes(&content, profile, &mut |cid, bytes| origin.blocks.put_later(&cid, &bytes)).unwrap().cid;
    let leaves: Vec<Cid> = content.chunks(64).map(cid::of_raw).collect();
    let (order, blocks) = (Arc::new(std::sync::Mutex::new(Vec::new())), origin.blocks.clone());
    let asked = order.clone();
    let route = get(move |Path(text): Path<String>| async move {
        let cid = cid::parse(&text).unwrap();
        asked.lock().unwrap().push(cid);
        blocks.get(&cid).unwrap().into_response()
    });
    let url = spawn(Router::new().route("/ipfs/{cid}", route)).await;
    host().fetch(&[&url], &root).await.0.unwrap();
    let place = |cid: &Cid| leaves.iter().position(|leaf| leaf == cid);
    let places: Vec<usize> = order.lock().unwrap().iter().filter_map(place).collect();
    // A few are under way at a time.
    let is_in_order = places.iter().enumerate().all(|(at, place)| place.abs_diff(at) < 32);
    assert!(is_in_order && places.len() == leaves.len(), "{places:?}");
}

#[tokio::test]
async fn what_is_right_in_the_file_is_not_asked_again_and_what_is_wrong_is() {
    let (origin, root) = origin();
    let (dying, _) = source(&origin.blocks, 90, honest);
    let dying = spawn(dying).await;
    let host = host();
    let (failed, verified) = host.fetch(&[&dying], &root).await;
    refused(failed, Kind::Unreachable, "answered 500");
    assert!((1_024..BYTES).contains(&verified), "{verified}");
    let nodes = u64::try_from(host.nodes.count()).unwrap();
    let kept = 90 - nodes;
    // A byte of a leaf in the middle turns.
    let mut content = std::fs::read(&host.file).unwrap();
    content[10 * 1_024 + 5] ^= 1;
    std::fs::write(&host.file, content).unwrap();
    let all = u64::try_from(origin.count()).unwrap();
    let (good, asked) = source(&origin.blocks, u64::MAX, honest);
    let good = spawn(good).await;
    let (fetched, verified) = host.fetch(&[&good], &root).await;
    assert_eq!((fetched.unwrap(), verified), (vec![all - nodes - kept + 1], BYTES));
    assert_eq!(asked.load(Ordering::SeqCst), all - nodes - kept + 1);
    assert!(std::fs::read(&host.file).unwrap() == noise(BYTES));
    // With everything here, no source is needed.
    assert_eq!(host.fetch(&[], &root).await.1, BYTES);
    // Longer or shorter than it should be, it is made right.
    std::fs::write(&host.file, [&noise(BYTES)[..], b"more"].concat()).unwrap();
    assert_eq!(host.fetch(&[], &root).await.1, BYTES);
    assert_eq!(std::fs::metadata(&host.file).unwrap().len(), BYTES);
}

/// The child of the test below: fetches until it is killed.
#[tokio::test]
#[ignore = "a process of its own, started by `a_fetch_in_place_that_was_killed_goes_on_where_it_was`"]
async fn fetch_in_place_for_ever() {
    let variable = |name: &str| std::env::var(name).unwrap();
    let dir = PathBuf::from(variable("STORE_TEST_DIR"));
    let nodes = Blocks::open(&dir).unwrap();
    let root = cid::parse(&variable("STORE_TEST_ROOT")).unwrap();
    let fetcher = Fetcher::new(Client::new(), vec![variable("STORE_TEST_URL")]);
    let place = dir.join("weights");
    fetcher.fetch_in_place(&nodes, &root, (&place, BYTES), watch::Sender::new(0), |_| {}).await.unwrap();
}

#[tokio::test]
async fn a_fetch_in_place_that_was_killed_goes_on_where_it_was() {
    let (origin, root) = origin();
    let (told, mut heard) = tokio::sync::mpsc::unbounded_channel();
    let (asked, blocks) = (Arc::new(AtomicU64::new(0)), origin.blocks.clone());
    let route = get(move |Path(text): Path<String>| async move {
        if asked.fetch_add(1, Ordering::SeqCst) >= 90 {
            told.send(()).ok();
            std::future::pending::<()>().await;
        }
        blocks.get(&cid::parse(&text).unwrap()).unwrap().into_response()
    });
    let falling_silent = spawn(Router::new().route("/ipfs/{cid}", route)).await;
    let host = host();
    let mut child = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args(["place::fetch_in_place_for_ever", "--exact", "--ignored"])
        .env("STORE_TEST_DIR", host.nodes.dir.path())
        .env("STORE_TEST_URL", &falling_silent)
        .env("STORE_TEST_ROOT", root.to_string())
        .stdout(std::process::Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    heard.recv().await.unwrap();
    child.kill().await.unwrap();

    let (good, asked) = source(&origin.blocks, u64::MAX, honest);
    let good = spawn(good).await;
    let (fetched, verified) = host.fetch(&[&good], &root).await;
    fetched.unwrap();
    assert!(verified == BYTES && std::fs::read(&host.file).unwrap() == noise(BYTES));
    let (all, asked) = (u64::try_from(origin.count()).unwrap(), asked.load(Ordering::SeqCst));
    // Of 90 answers a few may have been on their way.
    assert!((all - 90..=all - 80).contains(&asked), "{asked} of {all} blocks");
}

#[tokio::test]
async fn files_of_every_shape_arrive() {
    let (origin, host) = (store(), host());
    let url = spawn(gateway::router(origin.blocks.clone())).await;
    let import = |content: &[u8], profile| {
        import_bytes(content, profile, &mut |cid, bytes| origin.blocks.put_later(&cid, &bytes)).unwrap().cid
    };
    let old = Profile { chunk_bytes: 1_024, width: 4, ..Profile::V0_2015 };
    let shapes = [
        // Nothing, one leaf, the same leaf many times, and leaves that are nodes.
        (Vec::new(), SMALL),
        (noise(700), SMALL),
        (vec![7; 50_000], SMALL),
        (noise(50_000), old),
    ];
    for (content, profile) in shapes {
        let root = import(&content, profile);
        let fetcher = Fetcher::new(Client::new(), vec![url.clone()]);
        let (verified, told) = watch::channel(0);
        let place = (&*host.file, BYTES);
        fetcher.fetch_in_place(&host.nodes.blocks, &root, place, verified, |_| {}).await.unwrap();
        assert!(std::fs::read(&host.file).unwrap() == content, "{} bytes", content.len());
        assert_eq!(*told.borrow(), u64::try_from(content.len()).unwrap());
    }
    let long = import(&noise(BYTES + 1), SMALL);
    refused(host.fetch(&[&url], &long).await.0, Kind::OverLimit, "100001 bytes long; 100000 are allowed");
}

#[tokio::test]
async fn a_leaf_of_another_length_than_its_parent_says_ends_the_fetch() {
    let (origin, host) = (store(), host());
    let leaf = origin.put_raw(b"five!");
    // A file of one part that has six bytes.
    let data = vec![0x08, 2, 0x18, 6, 0x20, 6];
    let root = origin.put_node(&Node { links: vec![Link { cid: leaf, name: String::new(), tsize: 5 }], data });
    let (url, _) = source(&origin.blocks, u64::MAX, honest);
    let url = spawn(url).await;
    let fetcher = Fetcher::new(Client::new(), vec![url]);
    let (verified, told) = watch::channel(0);
    let place = (&*host.file, BYTES);
    let failed = fetcher.fetch_in_place(&host.nodes.blocks, &root, place, verified, |_| {}).await;
    refused(failed, Kind::Corrupt, "holds 5 bytes; its parent says 6");
    assert_eq!(*told.borrow(), 0);
}

/// A file of as many MiB as `STORE_TEST_MIB` says (256): fetched into blocks, laid out and hashed as a whole, against in
/// place; then a start that finds it there, and what reading and hashing it once takes.
/// `cargo test -p store --test it how_long -- --ignored --nocapture`
#[tokio::test]
#[ignore = "a measurement"]
async fn how_long_weights_take_to_be_here() {
    use sha2::{Digest, Sha256};
    use std::io::Read;
    use std::time::Instant;
    let mib: u64 = std::env::var("STORE_TEST_MIB").map_or(256, |text| text.parse().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let origin = Blocks::open(dir.path().join("origin")).unwrap();
    let (mut left, mut counter) = (mib << 20, 0u64);
    struct Numbers<'a>(&'a mut u64, &'a mut u64);
    impl Read for Numbers<'_> {
        fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
            let most = out.len().min(usize::try_from(*self.1).unwrap());
            for word in out[..most].chunks_mut(4_096) {
                word.fill(u8::try_from(*self.0 % 251).unwrap());
                let stamp = self.0.to_le_bytes();
                let stamped = word.len().min(8);
                word[..stamped].copy_from_slice(&stamp[..stamped]);
                *self.0 += 1;
            }
            *self.1 -= u64::try_from(most).unwrap();
            Ok(most)
        }
    }
    let mut numbers = Numbers(&mut counter, &mut left);
    let put = &mut |cid: Cid, bytes: Vec<u8>| origin.put_later(&cid, &bytes);
    let root = store::unixfs::import_reader(&mut numbers, Profile::V1_2025, put).unwrap().cid;
    let url = spawn(gateway::router(origin.clone())).await;
    let fetcher = Fetcher::new(Client::new(), vec![url]);
    let hash = |path: &std::path::Path| {
        let (mut file, mut hasher, mut buffer) = (std::fs::File::open(path).unwrap(), Sha256::new(), vec![0; 1 << 20]);
        loop {
            match file.read(&mut buffer).unwrap() {
                0 => break hex::encode(hasher.finalize()),
                read => hasher.update(&buffer[..read]),
            }
        }
    };
    let (one, two) = (dir.path().join("one"), dir.path().join("two"));
    let began = Instant::now();
    let gathered = Blocks::open(dir.path().join("gathered")).unwrap();
    let limits = store::unixfs::Limits::default();
    fetcher.fetch_file(&gathered, &root, &one, limits, |_| {}).await.unwrap();
    let fetched = began.elapsed();
    let first = hash(&one);
    println!("{mib} MiB: into blocks and laid out {fetched:?}, with the hash of the whole {:?}", began.elapsed());
    std::fs::remove_dir_all(dir.path().join("gathered")).unwrap();
    let nodes = Blocks::open(dir.path().join("nodes")).unwrap();
    let in_place = async || {
        let began = Instant::now();
        let place = (&*two, mib << 20);
        fetcher.fetch_in_place(&nodes, &root, place, watch::Sender::new(0), |_| {}).await.unwrap();
        began.elapsed()
    };
    println!("in place {:?}", in_place().await);
    println!("in place, when all is there {:?}", in_place().await);
    let began = Instant::now();
    assert_eq!(hash(&two), first);
    println!("read and hashed {:?}", began.elapsed());
}
