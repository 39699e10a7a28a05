//! A Kubo node by its RPC interface (`/api/v0`): store, pin, fetch and announce through somebody's IPFS node.
//!
//! The node is not trusted: what it names is compared with the CID that was made here, what it sends with the CID
//! that was asked. Whoever reaches the RPC port of a Kubo node rules it: it belongs on loopback.
//! Source: <https://docs.ipfs.tech/reference/kubo/rpc/>. Run against a server that follows that page, not against a
//! live Kubo.

use crate::blocks::Blocks;
use crate::car;
use crate::cid::{self, Cid};
use crate::dag::BLOCK_BYTES_MAX;
use crate::error::{Error, Kind, Result, off_thread};
use crate::walk::Walk;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use net::{Client, Response};
use serde::Deserialize;
use serde_json::Value;
use std::time::Duration;

/// Time to the head of an answer. Adding and pinning what is there is quick; finding strangers' blocks is not.
const DEADLINE: Duration = Duration::from_secs(60);
/// Between two pieces of an answer.
const STALL: Duration = Duration::from_secs(30);
/// A request carries at most this much: the interface takes one body a call, and it is held in memory.
const BODY_BYTES_MAX: usize = 16 << 20;
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// One Kubo node.
#[derive(Clone, Debug)]
pub struct Kubo {
    http: Client,
    url: String,
}

/// What Kubo says when it refuses.
#[derive(Deserialize)]
struct Refusal {
    #[serde(rename = "Message")]
    message: String,
}

impl Kubo {
    /// `url` such as `http://127.0.0.1:5001`.
    pub fn new(http: Client, url: impl Into<String>) -> Self {
        Self { http: http.with_deadline(DEADLINE), url: url.into().trim_end_matches('/').to_owned() }
    }

    /// The node's own version, such as `0.38.0`: shows that it is one.
    pub async fn version(&self) -> Result<String> {
        let answer = self.call("version", Vec::new()).await?;
        self.json(answer).await?["Version"].as_str().map(str::to_owned).ok_or_else(|| self.odd("version"))
    }

    /// Puts the graph below `root`, which must be here whole, into the node, as CAR files of at most 16 MiB, and pins
    /// it when all have arrived. Returns how many blocks went, and says so to `each` on the way.
    pub async fn add(&self, blocks: &Blocks, root: &Cid, each: impl Fn(u64)) -> Result<u64> {
        let mut walk = Walk::from(root);
        let mut count = 0;
        loop {
            let (here, at) = (blocks.clone(), walk);
            let (batch, rest) = off_thread(move || next_batch(&here, at)).await?;
            walk = rest;
            let Some((car, in_batch)) = batch else { break };
            self.import(car).await?;
            count += in_batch;
            each(count);
        }
        self.pin(root).await?;
        Ok(count)
    }

    /// Keeps a graph, fetching what the node lacks from its own peers.
    pub async fn pin(&self, root: &Cid) -> Result<()> {
        let answer = self.call(&format!("pin/add?arg={root}&progress=false"), Vec::new()).await?;
        let pinned = self.json(answer).await?;
        let names = pinned["Pins"].as_array().map(|pins| pins.iter().filter_map(Value::as_str)).into_iter().flatten();
        match names.filter_map(|name| cid::parse(name).ok()).any(|name| cid::normal(&name) == cid::normal(root)) {
            true => Ok(()),
            false => Err(self.odd("pin/add")),
        }
    }

    /// Takes a pin back; false if there was none.
    pub async fn unpin(&self, root: &Cid) -> Result<bool> {
        match self.call(&format!("pin/rm?arg={root}"), Vec::new()).await {
            Ok(answer) => self.json(answer).await.map(|_| true),
            Err(e) if e.message.contains("not pinned") => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// One verified block; `Missing` if the node says that it does not have it. It is not asked to search its peers.
    pub async fn block(&self, cid: &Cid) -> Result<Bytes> {
        let answer = self.call(&format!("block/get?arg={cid}&offline=true"), Vec::new()).await.map_err(|e| {
            let absent = e.kind == Kind::Usage && e.message.contains("not found");
            if absent { Error::missing(format!("{} has no block {cid}", self.url)).caused_by(e) } else { e }
        })?;
        let bytes = self.bytes(answer, BLOCK_BYTES_MAX).await?;
        cid::verify(cid, &bytes)
            .map_err(|e| Error::corrupt(format!("{} sent other bytes than block {cid}", self.url)).caused_by(e))?;
        Ok(bytes)
    }

    /// Brings the graph below `root` here, block by block, each verified; what is here is not asked again.
    /// Returns how many blocks came, and says so to `each` on the way.
    pub async fn fetch(&self, blocks: &Blocks, root: &Cid, each: impl Fn(u64)) -> Result<u64> {
        let _writing = blocks.writing()?;
        let mut walk = Walk::repeating_leaves(std::slice::from_ref(root));
        let mut count = 0;
        while let Some((cid, depth)) = walk.next_block() {
            let here = blocks.clone();
            let found = off_thread(move || match here.get(&cid) {
                Err(e) if e.kind == Kind::Missing => Ok(None),
                found => found.map(Some),
            });
            let block = match found.await? {
                Some(block) => block,
                None => {
                    let block = self.block(&cid).await?;
                    let (here, bytes) = (blocks.clone(), block.clone());
                    off_thread(move || here.put_later(&cid, &bytes)).await?;
                    count += 1;
                    each(count);
                    block
                }
            };
            walk.visited(&cid, depth, &block)?;
        }
        let here = blocks.clone();
        off_thread(move || here.sync()).await?;
        Ok(count)
    }

    /// Tells the network that this node has `root`, so that others find it. `Usage` if the node is off line.
    pub async fn provide(&self, root: &Cid) -> Result<()> {
        let answer = self.call(&format!("routing/provide?arg={root}"), Vec::new()).await?;
        // A line for each peer that was told; the end is what counts.
        self.bytes(answer, ANSWER_BYTES_MAX).await.map(drop)
    }

    async fn import(&self, car: Vec<u8>) -> Result<()> {
        let answer = self.call("dag/import?pin-roots=false&stats=true", car).await?;
        let text = self.bytes(answer, ANSWER_BYTES_MAX).await?;
        // One JSON object a line; the statistics come last, and only after all blocks were taken.
        let lines = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        let lines: Vec<Value> = lines.filter_map(|line| serde_json::from_slice(line).ok()).collect();
        match lines.iter().any(|line| line["Stats"]["BlockCount"].is_u64()) {
            true => Ok(()),
            false => Err(self.odd("dag/import")),
        }
    }

    /// One call; a body goes as the one file of a form. `Usage` with Kubo's words if it refuses.
    async fn call(&self, what: &str, file: Vec<u8>) -> Result<Response> {
        let mut headers = HeaderMap::new();
        let mut body = Vec::new();
        if !file.is_empty() {
            // Random, so that no content can hold it but by design of one who cannot know it.
            let boundary = hex::encode(rand::random::<[u8; 16]>());
            let kind = HeaderValue::from_str(&format!("multipart/form-data; boundary={boundary}"));
            headers.insert(header::CONTENT_TYPE, kind.map_err(|e| Error::bug("a boundary is no header").caused_by(e))?);
            let head = format!(
                "--{boundary}\r\nContent-Disposition: form-data; name=\"file\"; filename=\"blocks.car\"\r\n\
                 Content-Type: application/octet-stream\r\n\r\n"
            );
            body = [head.as_bytes(), &file, format!("\r\n--{boundary}--\r\n").as_bytes()].concat();
        }
        let url = format!("{}/api/v0/{what}", self.url);
        let away = |e| Error::unreachable(format!("{} did not serve", self.url)).caused_by(e);
        let answer = self.http.send(Method::POST, &url, headers, Bytes::from(body)).await.map_err(away)?;
        if answer.status == StatusCode::OK {
            return Ok(answer);
        }
        let status = answer.status;
        let said = self.bytes(answer, ANSWER_BYTES_MAX).await?;
        // A refusal is JSON; anything else comes from something that is no Kubo.
        match serde_json::from_slice::<Refusal>(&said) {
            Ok(Refusal { message }) => Err(Error::usage(format!("{} refuses: {message}", self.url))),
            Err(_) => Err(Error::unreachable(format!("{} answered {status}, not as a Kubo node does", self.url))),
        }
    }

    async fn json(&self, answer: Response) -> Result<Value> {
        let bytes = self.bytes(answer, ANSWER_BYTES_MAX).await?;
        serde_json::from_slice(&bytes).map_err(|e| self.odd("a call").caused_by(e))
    }

    async fn bytes(&self, mut answer: Response, bytes_max: usize) -> Result<Bytes> {
        let mut whole = bytes::BytesMut::new();
        loop {
            let piece = tokio::time::timeout(STALL, answer.body.chunk(&self.url)).await;
            let piece = piece.map_err(|_| Error::unreachable(format!("{} fell silent", self.url)))?;
            let away = |e| Error::unreachable(format!("{} broke off", self.url)).caused_by(e);
            let Some(piece) = piece.map_err(away)? else { return Ok(whole.freeze()) };
            if whole.len() + piece.len() > bytes_max {
                return Err(Error::corrupt(format!("{} sent over {bytes_max} bytes", self.url)));
            }
            whole.extend_from_slice(&piece);
        }
    }

    fn odd(&self, what: &str) -> Error {
        Error::corrupt(format!("{} answered {what} as no Kubo node does", self.url))
    }
}

type Batch = Option<(Vec<u8>, u64)>;

/// The next blocks of a walk as a CAR file, and how many; `None` at the end.
fn next_batch(blocks: &Blocks, mut walk: Walk) -> Result<(Batch, Walk)> {
    let mut car = Vec::new();
    let mut count = 0;
    while car.len() + BLOCK_BYTES_MAX + 128 <= BODY_BYTES_MAX {
        let Some((cid, depth)) = walk.next_block() else { break };
        let block = blocks.get(&cid)?;
        if car.is_empty() {
            // A header names a root; it is not pinned by its being named.
            car = car::header(&[cid])?;
        }
        car.extend_from_slice(&car::frame(&cid, &block));
        car.extend_from_slice(&block);
        count += 1;
        walk.visited(&cid, depth, &block)?;
    }
    Ok(((count > 0).then_some((car, count)), walk))
}
