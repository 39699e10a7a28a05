//! How much memory strangers' graphs take: a program of its own, since it counts what is allocated.
//!
//! One test: several at once would count each other's.
#![allow(unsafe_code, reason = "an allocator that counts is unsafe by its trait; it hands everything to the system's")]

#[path = "../it/support.rs"]
#[allow(dead_code, reason = "this program needs a folder of it")]
mod support;

use axum::Router;
use axum::extract::Path as UrlPath;
use axum::response::IntoResponse;
use axum::routing::get;
use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::HashMap;
use std::future::Future;
use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use store::cid::{self, Cid};
use store::dag::{Link, Node};
use store::gateway::selection::{Dups, Scope, Selection};
use store::unixfs::{Limits, Profile, import_reader};
use store::walk::{DEPTH_MAX, LEAVES_REMEMBERED_MAX, LINKS_WAITING_MAX, Walk};
use store::{Blocks, Fetcher, Kind, car, cli, gateway};

struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: each call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(now, Ordering::Relaxed);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// The most that was held at once while `work` ran, beyond what was held before, in bytes.
async fn peak<T>(work: impl Future<Output = T>) -> (usize, T) {
    let before = NOW.load(Ordering::SeqCst);
    PEAK.store(before, Ordering::SeqCst);
    let done = work.await;
    (PEAK.load(Ordering::SeqCst).saturating_sub(before), done)
}

/// Links of the widest node: its block has just under 2 MiB.
const WIDE: u32 = 45_000;
/// Levels that hold several times what a walk may.
const LEVELS: u32 = 12;
/// Nothing that a stranger's graph makes one command hold passes this; docs/reference/storage.md says so.
const BOUND_BYTES: usize = 64 << 20;

/// A leaf that is in no folder.
fn absent(number: u64) -> Cid {
    cid::of_raw(&number.to_le_bytes())
}

/// Each level links to the next one first, then to `WIDE` leaves that nobody has: whoever goes depth first has read all
/// those links before it misses one.
fn wide_and_deep(blocks: &Blocks, node: impl Fn(Vec<Cid>, u64) -> Node) -> Cid {
    let mut below = absent(u64::MAX);
    for level in 0..LEVELS {
        let leaves = (0..WIDE).map(|leaf| absent(u64::from(level * WIDE + leaf)));
        let bytes = node([below].into_iter().chain(leaves).collect(), u64::from(level)).encode();
        assert!(bytes.len() <= 2 << 20, "{} bytes", bytes.len());
        below = cid::of_dag_pb(&bytes);
        blocks.put_later(&below, &bytes).unwrap();
    }
    below
}

/// A node that is no UnixFS.
fn bare(children: Vec<Cid>, _: u64) -> Node {
    let link = |cid| Link { cid, name: String::new(), tsize: 1 };
    Node { links: children.into_iter().map(link).collect(), data: Vec::new() }
}

fn number(field: u8, mut value: u64, out: &mut Vec<u8>) {
    out.push(field << 3);
    while value >= 0x80 {
        out.push(u8::try_from(value & 0x7f).unwrap() | 0x80);
        value >>= 7;
    }
    out.push(u8::try_from(value).unwrap());
}

/// A part of a file that says the truth of its sizes: a byte a leaf.
fn file(children: Vec<Cid>, level: u64) -> Node {
    let below = 1 + level * u64::from(WIDE);
    let parts: Vec<u64> = [below].into_iter().chain(vec![1; children.len() - 1]).collect();
    let mut data = Vec::new();
    number(1, 2, &mut data);
    number(3, parts.iter().sum(), &mut data);
    parts.iter().for_each(|part| number(4, *part, &mut data));
    Node { data, ..bare(children, level) }
}

/// Has everything, the leaves by their numbers.
fn whole(blocks: &Blocks) -> Router {
    let numbers = (0..u64::from(LEVELS * WIDE)).chain([u64::MAX]);
    let leaves: HashMap<Cid, u64> = numbers.map(|number| (absent(number), number)).collect();
    let (blocks, leaves) = (blocks.clone(), Arc::new(leaves));
    let answer = move |UrlPath(text): UrlPath<String>| async move {
        let cid = cid::parse(&text).unwrap();
        match leaves.get(&cid) {
            Some(number) => number.to_le_bytes().to_vec().into_response(),
            None => blocks.get(&cid).unwrap().into_response(),
        }
    };
    Router::new().route("/ipfs/{cid}", get(answer))
}

#[tokio::test]
async fn a_strangers_graph_takes_bounded_memory_and_a_long_file_hardly_any() {
    const { assert!(LEAVES_REMEMBERED_MAX < 250_000) };
    const { assert!((WIDE * (LEVELS - 2)) as usize > 3 * LINKS_WAITING_MAX && (LEVELS as usize) < DEPTH_MAX) };
    let home = support::folder();
    let blocks = Blocks::open(home.path()).unwrap();
    let (root, long) = (wide_and_deep(&blocks, bare), wide_and_deep(&blocks, file));
    let (bare_root, file_root) = (root.to_string(), long.to_string());

    let wide = |what: &str, (bytes, refused): (usize, Option<store::Error>)| {
        let error = refused.unwrap_or_else(|| panic!("{what} took it"));
        assert_eq!(error.kind, Kind::OverLimit, "{what}: {error}");
        assert!(error.to_string().contains("links wait to be followed"), "{what}: {error}");
        println!("{what}: {bytes} bytes");
        assert!(bytes < BOUND_BYTES, "{what} held {bytes} bytes");
    };
    wide("verify", peak(async { cli::verify(home.path(), Some(&bare_root), |_| {}).err() }).await);
    wide("pin", peak(async { cli::pin(home.path(), &bare_root, "added", |_| {}).err() }).await);
    wide("export", peak(async { car::export(&blocks, &root, &mut std::io::sink()).err() }).await);
    let out = home.path().join("out");
    wide("a file", peak(async { store::unixfs::export(&blocks, &long, &out, Limits::default()).err() }).await);

    let there = Blocks::open(home.path().join("there")).unwrap();
    let source = support::spawn(whole(&blocks)).await;
    let fetched = peak(async {
        let fetcher = Fetcher::new(net::Client::new(), vec![source]);
        fetcher.fetch_dag(&there, &root, |_| {}).await.err()
    });
    wide("fetch", fetched.await);

    let gateway = support::spawn(gateway::router(blocks.clone())).await;
    for scope in ["all", "entity"] {
        let url = format!("{gateway}/ipfs/{file_root}?format=car&dag-scope={scope}");
        let (bytes, ended) = peak(async {
            let mut answer = net::Client::new().get(&url).await.unwrap();
            loop {
                match answer.body.chunk(&url).await {
                    Ok(Some(_)) => {}
                    Ok(None) => break "whole",
                    Err(_) => break "broken off",
                }
            }
        })
        .await;
        println!("gateway, {scope}: {bytes} bytes");
        assert_eq!(ended, "broken off", "{scope}");
        assert!(bytes < BOUND_BYTES, "a CAR of {scope} held {bytes} bytes");
    }

    // A long file: 16,384 leaves, of which only the nodes are remembered.
    let tiny = Profile { chunk_bytes: 64, width: 1024, ..Profile::V1_2025 };
    let tiny_blocks = Blocks::open(home.path().join("tiny")).unwrap();
    let mut count = 0u64;
    let imported = import_reader(&mut Counter { next: 0 }.take(64 * 16_384), tiny, &mut |cid, bytes| {
        count += 1;
        tiny_blocks.put_later(&cid, &bytes)
    });
    let root = imported.unwrap().cid;
    assert_eq!(count, 16_384 + 16 + 1);
    let walked = |mut walk: Walk| {
        let tiny_blocks = tiny_blocks.clone();
        async move {
            while let Some((cid, depth)) = walk.next_block() {
                if cid.codec() == cid::DAG_PB {
                    walk.visited(&cid, depth, &tiny_blocks.get(&cid).unwrap()).unwrap();
                }
            }
        }
    };
    let (once, ()) = peak(walked(Walk::from(&root))).await;
    let (repeating, ()) = peak(walked(Walk::repeating_leaves(&[root]))).await;
    println!("walks: {once} bytes, {repeating} without leaves");
    assert!(once > 32 * 16_384 && repeating < 600 << 10, "{once} and {repeating} bytes");

    many_leaves(&Blocks::open(home.path().join("many")).unwrap()).await;
}

/// Leaves that one node links to.
const LEAVES_OF_NODE: u64 = 40_000;
/// Nothing that walks more leaves than are remembered holds more: what is (13 MB), what waits, and the making of one node.
/// The names of 600,000 alone would take 36 MB, and 53 while that grows.
const LEAVES_BOUND_BYTES: usize = 40 << 20;

/// A graph of so many leaves, no two the same, made while it is walked: a root, nodes below it, leaves below those. Its
/// digests are numbers and no hashes: whoever walks believes what they are given.
#[derive(Clone, Copy)]
struct Long {
    leaves: u64,
    /// Names a leaf: a raw block, or a node without links.
    leaf: fn([u8; 32]) -> Cid,
}

impl Long {
    /// Of the block with this number on this level, 0 the root's.
    fn digest(level: u8, number: u64) -> [u8; 32] {
        let mut digest = [level; 32];
        digest[..8].copy_from_slice(&number.to_le_bytes());
        digest
    }

    fn root() -> Cid {
        cid::dag_pb(Self::digest(0, 0))
    }

    fn nodes(self) -> u64 {
        self.leaves / LEAVES_OF_NODE
    }

    fn leaves_of(self, node: u64) -> Vec<Cid> {
        let leaves = node * LEAVES_OF_NODE..(node + 1) * LEAVES_OF_NODE;
        leaves.map(|leaf| (self.leaf)(Self::digest(2, leaf))).collect()
    }

    /// The bytes of any of its blocks.
    fn block(self, cid: &Cid) -> Vec<u8> {
        let digest = cid::digest(cid);
        let number = u64::from_le_bytes(digest[..8].try_into().unwrap());
        let children = match digest[31] {
            0 => (0..self.nodes()).map(|node| cid::dag_pb(Self::digest(1, node))).collect(),
            1 => self.leaves_of(number),
            _ => Vec::new(),
        };
        bare(children, number).encode()
    }

    /// How many blocks a walk visits.
    fn walked(self) -> u64 {
        let (mut walk, mut count) = (Walk::from(&Self::root()), 0);
        while let Some((cid, depth)) = walk.next_block() {
            walk.visited(&cid, depth, &self.block(&cid)).unwrap();
            count += 1;
        }
        count
    }

    /// How many blocks a CAR holds, or what ends it.
    fn selected(self, dups: Dups) -> store::Result<u64> {
        let (mut selection, mut count) = (Selection::new(&[], &Self::root(), Scope::All, dups), 0);
        while let Some(step) = selection.next_step()? {
            selection.visited(&step, &self.block(&step.cid))?;
            count += 1;
        }
        Ok(count)
    }
}

fn bounded(what: &str, bytes: usize) {
    println!("many leaves, {what}: {bytes} bytes");
    assert!(bytes < LEAVES_BOUND_BYTES, "{what} held {bytes} bytes");
}

/// Graphs of more leaves than anybody remembers.
async fn many_leaves(blocks: &Blocks) {
    let raw = Long { leaves: 1_200_000, leaf: cid::raw };
    for (kind, graph) in [("raw", raw), ("nodes", Long { leaves: 600_000, leaf: cid::dag_pb })] {
        let all = graph.leaves + graph.nodes() + 1;
        let (bytes, count) = peak(async { graph.walked() }).await;
        assert_eq!(count, all, "{kind}");
        bounded(&format!("walk ({kind})"), bytes);
        let (bytes, count) = peak(async { graph.selected(Dups::Unsaid) }).await;
        assert_eq!(count.unwrap(), all, "{kind}");
        bounded(&format!("CAR ({kind})"), bytes);
        let (bytes, ended) = peak(async { graph.selected(Dups::No) }).await;
        let error = ended.unwrap_err();
        assert!(error.kind == Kind::OverLimit && error.to_string().contains("one leaf more"), "{kind}: {error}");
        bounded(&format!("CAR that said each comes once ({kind})"), bytes);
    }

    // A collection looks for each leaf on the disk, and finds none of these.
    let kept = Long { leaves: 600_000, ..raw };
    let put = |node: Vec<u8>| {
        let cid = cid::of_dag_pb(&node);
        blocks.put_later(&cid, &node).unwrap();
        cid
    };
    let nodes = (0..kept.nodes()).map(|number| put(bare(kept.leaves_of(number), number).encode())).collect();
    blocks.pin(&put(bare(nodes, 0).encode()), "added").unwrap();
    (0..100u64).for_each(|stray| blocks.put_later(&absent(stray), &stray.to_le_bytes()).unwrap());
    let (bytes, done) = peak(async { blocks.gc(Duration::ZERO).unwrap() }).await;
    bounded("collection", bytes);
    assert_eq!((done.kept_blocks, done.removed_blocks), (kept.nodes() + 1, 100));
    assert!((kept.leaves - 10..=kept.leaves).contains(&done.missing_blocks), "{} are missing", done.missing_blocks);
}

/// Numbers one after another, so that no two leaves are the same.
struct Counter {
    next: u64,
}

impl Read for Counter {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        for word in out.chunks_mut(8) {
            word.copy_from_slice(&self.next.to_le_bytes()[..word.len()]);
            self.next += 1;
        }
        Ok(out.len())
    }
}
