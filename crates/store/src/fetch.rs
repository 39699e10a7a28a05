//! Gathering a graph from several sources, none of them trusted.
//!
//! Each block is asked of one source, verified on arrival and stored at once; a source that sends other bytes is
//! dropped and named, one that is slow is overtaken. What is in [`Blocks`] is not asked again, so a fetch that
//! was killed goes on where it was.

mod schedule;

use crate::arweave::{Arweave, TxId};
use crate::blocks::Blocks;
use crate::cid::{self, Cid};
use crate::dag::{self, BLOCK_BYTES_MAX};
use crate::error::{Error, Kind, Result, off_thread};
use crate::place::Place;
use crate::protobuf::len64;
use crate::unixfs::{self, Limits};
use crate::walk::Walk;
use bytes::{Bytes, BytesMut};
use futures::stream::{AbortHandle, Abortable, FuturesUnordered};
use futures::{FutureExt, StreamExt};
use net::Client;
use schedule::{Input, Output, Schedule};
use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// Time to an answer's head. Other sources overtake long before; this is for the last one left.
const HEAD_DEADLINE: Duration = Duration::from_secs(10);
/// Time between two pieces of a block.
const STALL: Duration = Duration::from_secs(5);
/// A block of 2 MiB in a minute is 35 kB/s; who is slower is no source.
const BLOCK_DEADLINE: Duration = Duration::from_secs(60);
const TICK: Duration = Duration::from_millis(100);
/// Encoded bytes of one graph: 1 TiB unless the caller says less.
const BYTES_MAX: u64 = 1 << 40;

/// Blocks that are looked for at a time, and how few are left when the next ones are: so that what is asked of the
/// sources grows with neither a file nor a stranger's graph. Many times what a few sources work on at once.
const WANTED_MAX: usize = 512;
const WANTED_MIN: usize = 256;

/// How far a fetch is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Blocks and bytes of the graph that are here now, those that were here before among them. A leaf counts for each
    /// node that links to it.
    pub blocks_done: u64,
    pub bytes_done: u64,
    /// By the root's own claim, as soon as it is here; a hint for a progress bar.
    pub bytes_total: Option<u64>,
    pub sources: Vec<SourceReport>,
}

/// What one source did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceReport {
    pub url: String,
    pub blocks: u64,
    pub bytes: u64,
    /// Why it was dropped, if it was.
    pub dropped: Option<String>,
}

/// Fetches from a fixed list of sources: trustless gateways, ours or anybody's.
#[derive(Clone, Debug)]
pub struct Fetcher {
    http: Client,
    urls: Vec<String>,
    bytes_max: u64,
    archive: Option<(Arweave, TxId)>,
}

impl Fetcher {
    /// `sources` such as `http://127.0.0.1:7000`; all are asked at once.
    pub fn new(http: Client, sources: Vec<String>) -> Self {
        let urls = sources.into_iter().map(|u| u.trim_end_matches('/').to_owned()).collect();
        Self { http: http.with_deadline(HEAD_DEADLINE), urls, bytes_max: BYTES_MAX, archive: None }
    }

    /// Where else the graph lies: the Arweave transaction whose data is its CAR file, read when the sources cannot bring
    /// a block. It is all or nothing there, and chunks are read one after another, so it is asked last.
    pub fn with_archive(self, arweave: Arweave, transaction: TxId) -> Self {
        Self { archive: Some((arweave, transaction)), ..self }
    }

    /// Gives up on a graph that turns out longer than this (encoded bytes).
    pub fn with_bytes_max(self, bytes_max: u64) -> Self {
        Self { bytes_max, ..self }
    }

    /// Makes all blocks below `root` present in `blocks` and durable. `progress` is called at the start, for
    /// each block that arrives, and when a source is dropped; it must not block.
    ///
    /// `Missing` if every source says that it lacks some block, `Unreachable` if those that might have it cannot
    /// be used; the message names the sources and why. Blocks that arrived stay.
    pub async fn fetch_dag(&self, blocks: &Blocks, root: &Cid, progress: impl Fn(&Progress)) -> Result<Progress> {
        let _writing = blocks.writing()?;
        let done = self.fetch_graph(blocks, root, &progress).await?;
        let blocks = blocks.clone();
        off_thread(move || blocks.sync()).await?;
        Ok(done)
    }

    async fn fetch_graph(&self, blocks: &Blocks, root: &Cid, progress: &impl Fn(&Progress)) -> Result<Progress> {
        let graph = || Wanted::Graph { walk: Walk::repeating_leaves(&[cid::normal(root)]), leaves: true };
        match self.fetch_from_sources(blocks, root, graph(), progress).await {
            Err(e) if self.has_archive_for(&e) => self.unarchive(blocks, e).await?,
            fetched => return fetched,
        }
        // What was archived under that name may be another graph, or less of it: then this says what is missing.
        let local = Self { urls: Vec::new(), archive: None, ..self.clone() };
        local.fetch_from_sources(blocks, root, graph(), progress).await
    }

    fn has_archive_for(&self, failure: &Error) -> bool {
        self.archive.is_some() && matches!(failure.kind, Kind::Missing | Kind::Unreachable)
    }

    /// Brings all that is archived into `blocks`, where the sources failed in this way.
    async fn unarchive(&self, blocks: &Blocks, first: Error) -> Result<()> {
        let Some((arweave, transaction)) = &self.archive else { return Err(first) };
        tracing::warn!(error = %first, %transaction, "no source brings it; the archive is asked");
        let archived = arweave.import(blocks, transaction, self.bytes_max).await;
        archived.map_err(|e| Error::new(e.kind, format!("{first}; nor can its archive {transaction} be read: {e}")))?;
        Ok(())
    }

    async fn fetch_from_sources(
        &self,
        blocks: &Blocks,
        root: &Cid,
        wanted: Wanted,
        progress: &impl Fn(&Progress),
    ) -> Result<Progress> {
        cid::check(root).map_err(Error::usage)?;
        Run::new(self, blocks.clone(), cid::normal(root), wanted).finish(progress).await
    }

    /// Fills the file behind `root` at `dest`, its final place, in order as far as the sources let it, each block
    /// verified before it is written. `verified` says of how many bytes from the start each is there; it closes when
    /// this ends, and is then as long as the file or stands where the file is broken off. Its first value above 0 comes
    /// when the file is as long as it will be. What is missing is a hole.
    ///
    /// A start after a kill, or anew, reads and hashes what is there, once, and asks for what is missing or wrong.
    /// `nodes` keeps the graph's inner nodes, a thousandth of it. Nothing is synced: each start checks it all.
    ///
    /// Fails as [`Fetcher::fetch_dag`]; `OverLimit` if the file is longer than `bytes_max`. What arrived stays.
    pub async fn fetch_in_place(
        &self,
        nodes: &Blocks,
        root: &Cid,
        (dest, bytes_max): (&Path, u64),
        verified: watch::Sender<u64>,
        progress: impl Fn(&Progress),
    ) -> Result<Progress> {
        cid::check(root).map_err(Error::usage)?;
        let _writing = nodes.writing()?;
        let root = cid::normal(root);
        let inner = Wanted::Graph { walk: Walk::repeating_leaves(&[root]), leaves: root.codec() == cid::RAW };
        match self.fetch_from_sources(nodes, &root, inner, &progress).await {
            Err(e) if self.has_archive_for(&e) => self.unarchive(nodes, e).await?,
            fetched => drop(fetched?),
        }
        let (blocks, dest) = (nodes.clone(), dest.to_owned());
        let (place, here) = off_thread(move || {
            let place = Place::open(&dest, &blocks, &root, bytes_max, verified)?;
            let here = place.scan()?;
            Ok((Arc::new(place), here))
        })
        .await?;
        let leaves = Wanted::Leaves { place: place.clone(), next: 0 };
        let mut run = Run::new(self, nodes.clone(), root, leaves);
        (run.progress.blocks_done, run.progress.bytes_done) = here;
        run.progress.bytes_total = Some(place.bytes());
        match run.finish(&progress).await {
            Err(e) if self.has_archive_for(&e) => {
                self.unarchive(nodes, e).await?;
                self.fill(nodes, place, progress).await
            }
            done => done,
        }
    }

    /// Moves the leaves that are missing from `blocks` to their place.
    async fn fill(&self, blocks: &Blocks, place: Arc<Place>, progress: impl Fn(&Progress)) -> Result<Progress> {
        let (blocks, filled) = (blocks.clone(), place.clone());
        off_thread(move || {
            let mut next = 0;
            while let [leaf] = filled.missing(&mut next, 1)[..] {
                filled.put(&leaf, &blocks.get(&leaf)?)?;
                blocks.delete(&leaf)?;
            }
            Ok(())
        })
        .await?;
        let bytes = place.bytes();
        let done = Progress { blocks_done: 0, bytes_done: bytes, bytes_total: Some(bytes), sources: Vec::new() };
        progress(&done);
        Ok(done)
    }

    /// [`Fetcher::fetch_dag`], then the file or directory written to `dest` (see [`unixfs::export`]).
    pub async fn fetch_file(
        &self,
        blocks: &Blocks,
        root: &Cid,
        dest: &Path,
        limits: Limits,
        progress: impl Fn(&Progress),
    ) -> Result<Progress> {
        let done = self.fetch_dag(blocks, root, progress).await?;
        let (blocks, root, dest) = (blocks.clone(), *root, dest.to_owned());
        off_thread(move || unixfs::export(&blocks, &root, &dest, limits)).await?;
        Ok(done)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Asked {
    source: usize,
    cid: Cid,
}

enum Answer {
    /// The block came, was right and is stored; or it was right and could not be stored or read.
    Here(Result<Stored>),
    Lacks,
    Lied(String),
    Failed(String),
}

struct Stored {
    bytes: u64,
    /// The block itself, if it is a node.
    node: Option<Bytes>,
}

type Ended = (Asked, std::result::Result<Answer, futures::future::Aborted>);

/// What a fetch is after, and how far it has looked.
enum Wanted {
    /// What is known of a graph; `leaves` are wanted too, or only what leads to them.
    Graph { walk: Walk, leaves: bool },
    /// The leaves of a file, which are written where they belong.
    Leaves { place: Arc<Place>, next: usize },
}

impl Wanted {
    fn is_done(&self) -> bool {
        match self {
            Self::Graph { walk, .. } => walk.is_done(),
            // Looked through to its end: then nothing moves it on, and whatever is still missing is asked for.
            Self::Leaves { place, next } => place.is_whole() || place.missing(&mut next.clone(), 1).is_empty(),
        }
    }
}

/// Where a verified block goes.
#[derive(Clone)]
enum Keep {
    Blocks(Blocks),
    Place(Arc<Place>),
}

impl Keep {
    fn put(&self, cid: &Cid, bytes: &[u8]) -> Result<()> {
        match self {
            Self::Blocks(blocks) => blocks.put_named(cid, bytes),
            Self::Place(place) => place.put(cid, bytes),
        }
    }
}

/// One fetch under way: the schedule and what carries out its orders.
struct Run<'a> {
    fetcher: &'a Fetcher,
    blocks: Blocks,
    started: Instant,
    schedule: Schedule,
    asking: FuturesUnordered<futures::future::BoxFuture<'a, Ended>>,
    handles: HashMap<Asked, AbortHandle>,
    /// What was not looked for yet.
    ahead: Wanted,
    /// Blocks that the schedule was told to get, with their depth.
    wanted: HashMap<Cid, usize>,
    root: Cid,
    progress: Progress,
}

impl<'a> Run<'a> {
    fn new(fetcher: &'a Fetcher, blocks: Blocks, root: Cid, ahead: Wanted) -> Self {
        let report = |url: &String| SourceReport { url: url.clone(), ..SourceReport::default() };
        let sources = fetcher.urls.iter().map(report).collect();
        Self {
            fetcher,
            blocks,
            started: Instant::now(),
            schedule: Schedule::new(fetcher.urls.len()),
            asking: FuturesUnordered::new(),
            handles: HashMap::new(),
            ahead,
            wanted: HashMap::new(),
            root,
            progress: Progress { blocks_done: 0, bytes_done: 0, bytes_total: None, sources },
        }
    }

    async fn finish(mut self, progress: &impl Fn(&Progress)) -> Result<Progress> {
        self.explore(None).await?;
        progress(&self.progress);
        let mut ticks = tokio::time::interval(TICK);
        while !self.schedule.is_done() {
            let ended = tokio::select! {
                ended = self.asking.next(), if !self.asking.is_empty() => ended,
                _ = ticks.tick() => None,
            };
            match ended {
                Some((asked, Ok(answer))) => self.answered(asked, answer).await?,
                // Cancelled: the schedule knows.
                Some((_, Err(_))) => continue,
                None => self.tell(Input::Tick)?,
            }
            progress(&self.progress);
        }
        Ok(self.progress)
    }

    /// Goes on looking, below `node` first: follows what is here already, and wants what is not.
    async fn explore(&mut self, node: Option<(Cid, usize, Bytes)>) -> Result<()> {
        let (blocks, root, room) = (self.blocks.clone(), self.root, WANTED_MAX.saturating_sub(self.wanted.len()));
        let (mut walk, leaves) = match &mut self.ahead {
            Wanted::Graph { walk, leaves } => (std::mem::replace(walk, Walk::repeating_leaves(&[])), *leaves),
            Wanted::Leaves { place, next } => {
                let mut missing = place.missing(next, room);
                // The same bytes further on come with the first.
                missing.retain(|leaf| self.wanted.insert(*leaf, 0).is_none());
                return self.tell(Input::WantLast(missing));
            }
        };
        let wanted: HashSet<Cid> = self.wanted.keys().copied().collect();
        let is_claim_wanted = self.progress.bytes_total.is_none();
        let (found, claimed, walk) = off_thread(move || {
            if let Some((cid, depth, bytes)) = node {
                walk.visited(&cid, depth, &bytes)?;
            }
            let found = explore_local(&blocks, &mut walk, leaves, wanted, room)?;
            let claimed = match is_claim_wanted && blocks.has(&root) {
                true => Some(dag::claimed_bytes(&root, &blocks.get(&root)?)?),
                false => None,
            };
            Ok((found, claimed, walk))
        })
        .await?;
        self.ahead = Wanted::Graph { walk, leaves };
        self.progress.bytes_total = self.progress.bytes_total.or(claimed);
        self.arrived(found.blocks, found.bytes)?;
        self.wanted.extend(found.missing.iter().copied());
        self.tell(Input::Want(found.missing.into_iter().map(|(cid, _)| cid).collect()))
    }

    async fn answered(&mut self, asked: Asked, answer: Answer) -> Result<()> {
        self.handles.remove(&asked);
        let Asked { source, cid } = asked;
        match answer {
            Answer::Lacks => self.tell(Input::Lacks { source, cid }),
            Answer::Lied(why) => self.tell(Input::Lied { source, cid, why }),
            Answer::Failed(why) => self.tell(Input::Failed { source, cid, why }),
            Answer::Here(Err(e)) => Err(e),
            Answer::Here(Ok(stored)) => {
                let Some(depth) = self.wanted.remove(&cid) else {
                    // Two racers arrived at once; the other one counted.
                    return Ok(());
                };
                let report = &mut self.progress.sources[source];
                (report.blocks, report.bytes) = (report.blocks + 1, report.bytes + stored.bytes);
                self.arrived(1, stored.bytes)?;
                self.tell(Input::Arrived { source, cid })?;
                match stored.node {
                    Some(bytes) => self.explore(Some((cid, depth, bytes))).await,
                    // Nothing lies below a leaf, and no thread is woken for each.
                    None if self.progress.bytes_total.is_some() && !self.is_short_of_work() => Ok(()),
                    None => self.explore(None).await,
                }
            }
        }
    }

    /// Whether the schedule has little left, and there is more to look for.
    fn is_short_of_work(&self) -> bool {
        self.wanted.len() <= WANTED_MIN && !self.ahead.is_done()
    }

    fn arrived(&mut self, blocks: u64, bytes: u64) -> Result<()> {
        self.progress.blocks_done += blocks;
        self.progress.bytes_done += bytes;
        if self.progress.bytes_done > self.fetcher.bytes_max {
            let limit = self.fetcher.bytes_max;
            return Err(Error::over_limit(format!("the object is longer than the {limit} bytes allowed here")));
        }
        Ok(())
    }

    /// Tells the schedule and carries out what it says.
    fn tell(&mut self, input: Input) -> Result<()> {
        let now_ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let mut orders = Vec::new();
        self.schedule.handle(now_ms, input, &mut orders);
        for order in orders {
            match order {
                Output::Ask { source, cid } => self.ask(Asked { source, cid }),
                Output::Cancel { source, cid } => {
                    if let Some(handle) = self.handles.remove(&Asked { source, cid }) {
                        handle.abort();
                    }
                }
                Output::Drop { source, why } => {
                    let report = &mut self.progress.sources[source];
                    tracing::warn!(source = %report.url, %why, "a source is dropped");
                    report.dropped = Some(why);
                }
                Output::Stuck { cid, missing } => return Err(self.stuck(&cid, missing)),
            }
        }
        Ok(())
    }

    fn ask(&mut self, asked: Asked) {
        let (handle, registration) = AbortHandle::new_pair();
        self.handles.insert(asked, handle);
        let fetcher = self.fetcher;
        let request = Abortable::new(fetcher.ask(asked, self.keep()), registration);
        self.asking.push(request.map(move |answer| (asked, answer)).boxed());
    }

    fn keep(&self) -> Keep {
        match &self.ahead {
            Wanted::Graph { .. } => Keep::Blocks(self.blocks.clone()),
            Wanted::Leaves { place, .. } => Keep::Place(place.clone()),
        }
    }

    fn stuck(&self, cid: &Cid, missing: bool) -> Error {
        if self.progress.sources.is_empty() {
            return Error::missing(format!("block {cid} is not here, and no source is named"));
        }
        let say = |s: &SourceReport| format!("{}: {}", s.url, s.dropped.as_deref().unwrap_or("does not have it"));
        let list: Vec<String> = self.progress.sources.iter().map(say).collect();
        let kind = if missing { Kind::Missing } else { Kind::Unreachable };
        Error::new(kind, format!("block {cid} cannot be had ({})", list.join("; ")))
    }
}

impl Fetcher {
    async fn ask(&self, asked: Asked, keep: Keep) -> Answer {
        match tokio::time::timeout(BLOCK_DEADLINE, self.ask_patiently(asked, keep)).await {
            Ok(answer) => answer,
            Err(_) => Answer::Failed(format!("sent no whole block within {} s", BLOCK_DEADLINE.as_secs())),
        }
    }

    async fn ask_patiently(&self, Asked { source, cid }: Asked, keep: Keep) -> Answer {
        let url = &self.urls[source];
        let mut answer = match self.http.get(&format!("{url}/ipfs/{cid}?format=raw")).await {
            Ok(answer) => answer,
            Err(e) => return Answer::Failed(e.message),
        };
        if matches!(answer.status.as_u16(), 404 | 410) {
            return Answer::Lacks;
        }
        if !answer.status.is_success() {
            return Answer::Failed(format!("answered {}", answer.status));
        }
        let what = answer.header(&http::header::CONTENT_TYPE).unwrap_or("no content type").to_owned();
        let mut bytes = BytesMut::new();
        loop {
            match tokio::time::timeout(STALL, answer.body.chunk(url)).await {
                Err(_) => return Answer::Failed(format!("stalled for {} s", STALL.as_secs())),
                Ok(Err(e)) => return Answer::Failed(e.message),
                Ok(Ok(None)) => break,
                Ok(Ok(Some(chunk))) if bytes.len() + chunk.len() > BLOCK_BYTES_MAX => {
                    return Answer::Lied(format!("sent over {BLOCK_BYTES_MAX} bytes for block {cid} ({what})"));
                }
                Ok(Ok(Some(chunk))) => bytes.extend_from_slice(&chunk),
            }
        }
        let length = bytes.len();
        let stored = off_thread(move || {
            // Only bytes that are not the block are the source's fault.
            if cid::verify(&cid, &bytes).is_err() {
                return Ok(None);
            }
            keep.put(&cid, &bytes)?;
            let length = len64(&bytes);
            Ok(Some(Stored { bytes: length, node: (cid.codec() != cid::RAW).then(|| bytes.freeze()) }))
        });
        match stored.await.transpose() {
            Some(stored) => Answer::Here(stored),
            None => Answer::Lied(format!("sent {length} bytes that are not block {cid} ({what})")),
        }
    }
}

struct Found {
    blocks: u64,
    bytes: u64,
    missing: Vec<(Cid, usize)>,
}

/// Walks what is here until `room` blocks are found that are not; raw blocks are only looked for, since they point
/// nowhere, and passed over where `leaves` are not wanted. So is what is `wanted` already.
fn explore_local(
    blocks: &Blocks,
    walk: &mut Walk,
    leaves: bool,
    mut wanted: HashSet<Cid>,
    room: usize,
) -> Result<Found> {
    let mut found = Found { blocks: 0, bytes: 0, missing: Vec::new() };
    while found.missing.len() < room {
        let Some((cid, depth)) = walk.next_block() else { break };
        let here = match cid.codec() == cid::RAW {
            true if !leaves => continue,
            true => blocks.len(&cid),
            false => match blocks.get(&cid) {
                Ok(bytes) => {
                    walk.visited(&cid, depth, &bytes)?;
                    Some(len64(&bytes))
                }
                Err(e) if e.kind == Kind::Missing => None,
                Err(e) => return Err(e),
            },
        };
        match here {
            Some(length) => (found.blocks, found.bytes) = (found.blocks + 1, found.bytes + length),
            None if wanted.insert(cid) => found.missing.push((cid, depth)),
            None => {}
        }
    }
    Ok(found)
}
