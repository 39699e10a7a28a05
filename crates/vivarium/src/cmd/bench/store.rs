//! `vivarium bench store`: what content addressing costs over reading and hashing a file.
//!
//! The file is made of random bytes; disk cache and load are as they are, so each figure stands beside a plain read
//! with SHA-256 of the same file in the same run.

use super::cold;
use super::report::{Report, memory_kib};
use anyhow::{Context, Result, ensure};
use axum::Router;
use axum::body::Body;
use axum::extract::{Path as Name, State};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::get;
use sha2::{Digest, Sha256};
use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use store::unixfs::Profile;
use store::{Blocks, Fetcher, cid, cli};
use vivarium::world::Programs;

/// Figures of the content store, with plain reading and hashing beside them
#[derive(clap::Args)]
pub struct Flags {
    /// Mebibytes in the file
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u64).range(1..=65_536))]
    mebibytes: u64,
    /// Writes the figures into docs/benchmarks.md
    #[arg(long)]
    write: bool,
}

/// How long the slow source thinks about each block.
const SLOW: Duration = Duration::from_millis(50);
const PEAK_POLL: Duration = Duration::from_millis(5);

pub async fn run(flags: Flags) -> Result<()> {
    let scratch = scratch_folder()?;
    let dir = scratch.0.as_path();
    let file = dir.join("file");
    write_noise(&file, flags.mebibytes)?;
    let mut report = Report::new("store");
    let bytes = flags.mebibytes << 20;

    // Twice: the first warms the cache for all that follow.
    read_and_hash(&file)?;
    let plain = timed(|| read_and_hash(&file))?.0;
    let beside =
        |took: Duration| format!("plain read and SHA-256: {}; ratio {:.2}", rate(bytes, plain), ratio(took, plain));
    // What the disk allows: nothing durable can be faster than the same bytes in one file.
    let copied = timed(|| copy_durably(&file, &dir.join("copy")))?.0;
    std::fs::remove_file(dir.join("copy")).context("cannot remove the copy")?;
    let (added_in, added) = timed(|| Ok(cli::add(&dir.join("store"), &file, Profile::V1_2025, |_| {})?))?;
    let disk = format!("a plain durable copy: {}; ratio {:.2}", rate(bytes, copied), ratio(added_in, copied));
    let what = format!("add of {} MiB, durable", flags.mebibytes);
    report.row(&what, rate(bytes, added_in), format!("{}; {disk}", beside(added_in)));
    let (read_in, seen) = timed(|| Ok(cli::verify(&dir.join("store"), Some(&added.cid), |_| {})?))?;
    ensure!(seen.damaged.is_empty() && seen.missing.is_empty(), "what was added is not whole");
    report.row("verified read of it", rate(bytes, read_in), beside(read_in));
    beside_helia(&mut report, dir, &file, &added.cid, added_in, read_in)?;

    let origin = Blocks::open(dir.join("store"))?;
    let root = cid::parse(&added.cid)?;
    let good = serve(store::gateway::router(origin.clone())).await?;
    let (took, _) = fetch(&dir.join("alone"), &root, vec![good.clone()]).await?;
    let alone = took;
    report.row("fetch from one gateway on loopback, verified and stored", rate(bytes, took), beside(took));
    let corrupt = serve(gateway_that(origin.clone(), Manner::CorruptsEveryTenth)).await?;
    let slow = serve(gateway_that(origin, Manner::Slow)).await?;
    let (took, dropped) = fetch(&dir.join("three"), &root, vec![corrupt, slow, good.clone()]).await?;
    let what = "fetch from three, of which one is corrupt and one slow";
    let against =
        format!("the good one alone: {}; ratio {:.2}; {dropped} dropped", rate(bytes, alone), ratio(alone, took));
    report.row(what, rate(bytes, took), against);

    peaks(&mut report, dir, &file, &added.cid, &good).await?;
    cold::measure(&mut report).await?;
    if flags.write {
        report.write(&Programs::project()?.join("docs/benchmarks.md"))?;
    }
    Ok(())
}

/// The most that each command holds of a file of this size.
async fn peaks(report: &mut Report, dir: &Path, file: &Path, root: &str, gateway: &str) -> Result<()> {
    let (store, car) = (dir.join("peak"), dir.join("peak.car"));
    let mut row = |what: &str, kib: u64, beside: &str| {
        report.row(&format!("peak memory of `vivarium store {what}`"), format!("{} MiB", kib >> 10), beside);
    };
    let with = |mut all: Vec<OsString>, path: &Path| {
        all.push(path.into());
        all
    };
    let beside = "VmHWM of the process, polled; goal 64 MiB";
    row("add", peak_kib(&with(words_of(&["add"]), file), &store)?, beside);
    row("verify", peak_kib(&words_of(&["verify", root]), &store)?, "the same");
    row("export", peak_kib(&with(words_of(&["export", root]), &car), &store)?, "the same; a CAR of version 1");
    row("import", peak_kib(&with(words_of(&["import"]), &car), &dir.join("peak-import"))?, "the same, of that file");
    std::fs::remove_file(&car).context("cannot remove the CAR file")?;
    let got = with(words_of(&["get", "--from", gateway, root]), &dir.join("out"));
    row("get", peak_kib(&got, &dir.join("peak-get"))?, "the same, from a gateway on loopback");
    row("serve", serving_kib(root, &store).await?, "the same; the file is asked for four times at once, as CAR files");
    Ok(())
}

fn words_of(words: &[&str]) -> Vec<OsString> {
    words.iter().map(OsString::from).collect()
}

/// The most that a gateway holds while four customers fetch `root` from it.
async fn serving_kib(root: &str, data_dir: &Path) -> Result<u64> {
    let place = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let mut server = store_command(&words_of(&["serve", "--listen", &place.to_string()]), data_dir)?;
    let url = format!("http://{place}/ipfs/{root}?format=car");
    let fetched = async {
        let http = net::Client::new();
        let deadline = Instant::now() + Duration::from_secs(30);
        while http.get(&format!("http://{place}/health")).await.is_err() {
            ensure!(Instant::now() < deadline, "`vivarium store serve` does not answer");
            tokio::time::sleep(PEAK_POLL).await;
        }
        futures::future::try_join_all((0..4).map(|_| drained(&http, &url))).await
    };
    let fetched = fetched.await;
    // Of the whole life until now: the high-water mark does not fall.
    let peak = memory_kib(server.id(), "VmHWM:");
    server.kill().context("cannot end the gateway")?;
    server.wait().context("the gateway's end")?;
    fetched?;
    peak.context("the gateway ended by itself")
}

/// Reads an answer to its end and keeps nothing of it.
async fn drained(http: &net::Client, url: &str) -> Result<()> {
    let mut answer = http.get(url).await?;
    while answer.body.chunk(url).await?.is_some() {}
    Ok(())
}

/// The same with Helia's importer and its block store of files, which syncs nothing.
fn beside_helia(
    report: &mut Report,
    dir: &Path,
    file: &Path,
    root: &str,
    added_in: Duration,
    read_in: Duration,
) -> Result<()> {
    #[derive(serde::Deserialize)]
    struct Took {
        cid: String,
        bytes: u64,
        add_ms: f64,
        read_ms: f64,
    }
    let peer = Programs::project()?.join("tests/helia");
    if !peer.join("node_modules").is_dir() {
        report.row("the same by Helia", "not measured", "`npm ci` in tests/helia brings it");
        return Ok(());
    }
    let store = dir.join("helia");
    let out = Command::new("node").arg("bench.mjs").args([file, &store]).current_dir(&peer).output()?;
    ensure!(out.status.success(), "Helia failed: {}", String::from_utf8_lossy(&out.stderr));
    let took: Took = serde_json::from_slice(&out.stdout).context("Helia's answer")?;
    ensure!(took.cid == root, "Helia calls the same file {}, not {root}", took.cid);
    std::fs::remove_dir_all(&store).context("cannot remove Helia's blocks")?;
    for (what, millis, ours) in
        [("add by Helia, not synced", took.add_ms, added_in), ("verified read by Helia", took.read_ms, read_in)]
    {
        let theirs = Duration::from_secs_f64(millis / 1e3);
        report.row(what, rate(took.bytes, theirs), format!("ours is {:.1} times as fast", ratio(theirs, ours)));
    }
    Ok(())
}

/// A folder that is gone at the end, however that comes.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

fn scratch_folder() -> Result<Scratch> {
    let dir = std::env::temp_dir().join(format!("vivarium-bench-store-{}", std::process::id()));
    std::fs::create_dir(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    Ok(Scratch(dir))
}

pub fn timed<T>(work: impl FnOnce() -> Result<T>) -> Result<(Duration, T)> {
    let started = Instant::now();
    let done = work()?;
    Ok((started.elapsed(), done))
}

fn write_noise(path: &Path, mebibytes: u64) -> Result<()> {
    let mut file = File::create_new(path).with_context(|| format!("cannot create {}", path.display()))?;
    let mut state = 1_u64;
    let mut piece = vec![0; 1 << 20];
    for _ in 0..mebibytes {
        for word in piece.chunks_exact_mut(8) {
            // xorshift64: no two chunks are alike, and nothing has to be read to make them.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_le_bytes());
        }
        file.write_all(&piece)?;
    }
    file.sync_all().context("cannot write the file")
}

pub fn read_and_hash(path: &Path) -> Result<()> {
    let (mut file, mut hash, mut piece) = (File::open(path)?, Sha256::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut piece)? {
            0 => break,
            read => hash.update(&piece[..read]),
        }
    }
    std::hint::black_box(hash.finalize());
    Ok(())
}

fn copy_durably(from: &Path, to: &Path) -> Result<()> {
    let (mut from, mut to, mut piece) = (File::open(from)?, File::create_new(to)?, vec![0; 1 << 20]);
    loop {
        match from.read(&mut piece)? {
            0 => break,
            read => to.write_all(&piece[..read])?,
        }
    }
    to.sync_all().context("cannot sync the copy")
}

async fn fetch(dir: &Path, root: &cid::Cid, sources: Vec<String>) -> Result<(Duration, usize)> {
    let blocks = Blocks::open(dir)?;
    let started = Instant::now();
    let done = Fetcher::new(net::Client::new(), sources).fetch_dag(&blocks, root, |_| {}).await?;
    Ok((started.elapsed(), done.sources.iter().filter(|source| source.dropped.is_some()).count()))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Manner {
    CorruptsEveryTenth,
    Slow,
}

fn gateway_that(blocks: Blocks, manner: Manner) -> Router {
    let asked = Arc::new(AtomicU64::new(0));
    let answer = move |State(blocks): State<Blocks>, Name(name): Name<String>| async move {
        let number = asked.fetch_add(1, Ordering::Relaxed);
        let Some(block) = cid::parse(&name).ok().and_then(|cid| blocks.get(&cid).ok()) else {
            return StatusCode::NOT_FOUND.into_response();
        };
        if manner == Manner::Slow {
            tokio::time::sleep(SLOW).await;
        } else if number % 10 == 9 {
            return Body::from(vec![0; block.len()]).into_response();
        }
        Body::from(block).into_response()
    };
    Router::new().route("/ipfs/{cid}", get(answer)).with_state(blocks)
}

async fn serve(router: Router) -> Result<String> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}", listener.local_addr()?);
    tokio::spawn(async move { axum::serve(listener, router).await.ok() });
    Ok(url)
}

/// This program's `store` with these arguments, on its way.
fn store_command(arguments: &[OsString], data_dir: &Path) -> Result<Child> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("store").args(arguments).arg("--data-dir").arg(data_dir).stdout(Stdio::null());
    command.spawn().context("cannot start `vivarium store`")
}

/// Largest resident set of this program with these arguments, in KiB.
fn peak_kib(arguments: &[OsString], data_dir: &Path) -> Result<u64> {
    let mut child = store_command(arguments, data_dir)?;
    let mut peak = 0;
    let ended = loop {
        peak = peak.max(memory_kib(child.id(), "VmHWM:").unwrap_or(0));
        if let Some(ended) = child.try_wait()? {
            break ended;
        }
        std::thread::sleep(PEAK_POLL);
    };
    ensure!(ended.success(), "`vivarium store {arguments:?}` failed");
    Ok(peak)
}

fn rate(bytes: u64, took: Duration) -> String {
    format!("{:.0} MB/s", bytes as f64 / 1e6 / took.as_secs_f64())
}

pub fn ratio(one: Duration, other: Duration) -> f64 {
    one.as_secs_f64() / other.as_secs_f64()
}
