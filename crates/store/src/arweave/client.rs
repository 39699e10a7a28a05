use super::{
    DataTree, Draft, Key, Observation, Outcome, Seen, Step, Tag, Transaction, TxId, Upload, decode, encode, judge,
    number, verify_chunk,
};
use crate::blocks::Blocks;
use crate::car;
use crate::cid::Cid;
use crate::error::{Error, Kind, Result, off_thread};
use bytes::Bytes;
use futures::future::join_all;
use http::StatusCode;
use net::Client;
use serde_json::{Value, json};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::time::Duration;

/// A gateway answers within this or is passed over.
const DEADLINE: Duration = Duration::from_secs(20);
/// A chunk is 350 kB in base64, its proofs a few kB; a transaction without data is smaller.
const ANSWER_BYTES_MAX: usize = 1 << 20;
/// Chunks between an import and its source.
const AHEAD: usize = 4;

/// Nodes and gateways, none of them trusted: what one does not give, the next one may.
#[derive(Clone, Debug)]
pub struct Arweave {
    http: Client,
    urls: Vec<String>,
}

impl Arweave {
    /// `urls` in order of preference, such as `http://127.0.0.1:1984`.
    pub fn new(http: Client, urls: Vec<String>) -> Self {
        let urls = urls.into_iter().map(|url| url.trim_end_matches('/').to_owned()).collect();
        Self { http: http.with_deadline(DEADLINE), urls }
    }

    /// What storing `bytes` costs now, in winston, as the first gateway that answers has it.
    ///
    /// A gateway can name any price: hold it against a ceiling before signing ([`Arweave::prepare`] does).
    pub async fn price_winston(&self, bytes: u64) -> Result<u128> {
        let text = self.first(&format!("price/{bytes}")).await?;
        number(text.trim()).ok_or_else(|| Error::corrupt("a gateway names a price that is no amount of winston"))
    }

    /// What an address holds, in winston, as the first gateway that answers has it.
    pub async fn balance_winston(&self, address: &str) -> Result<u128> {
        TxId::parse(address).map_err(|_| Error::usage(format!("`{address}` is no address")))?;
        let text = self.first(&format!("wallet/{address}/balance")).await?;
        number(text.trim()).ok_or_else(|| Error::corrupt("a gateway names a balance that is no amount of winston"))
    }

    /// Signs the transaction that stores the data under `tree`. Nothing is sent: write the result down first.
    ///
    /// `OverLimit` if the network asks more than `reward_winston_max`.
    pub async fn prepare(
        &self,
        key: &Key,
        tree: &DataTree,
        tags: Vec<Tag>,
        reward_winston_max: u128,
    ) -> Result<Upload> {
        let reward_winston = self.price_winston(tree.bytes()).await?;
        if reward_winston > reward_winston_max {
            return Err(Error::over_limit(format!(
                "storing {} bytes costs {reward_winston} winston; {reward_winston_max} are allowed",
                tree.bytes()
            )));
        }
        let anchor = self.first("tx_anchor").await?;
        let anchor =
            decode(anchor.trim()).ok_or_else(|| Error::corrupt("a gateway names an anchor that is no hash"))?;
        // Asked for after the anchor, so never lower than the anchor's own height: "unpaid" comes later, not sooner.
        let anchor_height = self.first_height().await?;
        let draft = Draft { anchor, reward_winston, tags, data_root: tree.root(), data_bytes: tree.bytes() };
        Ok(Upload::new(&Transaction::sign(key, draft)?, anchor_height))
    }

    /// Sends what is left of `upload`: the transaction, then each chunk of `data` with its proof. `keep` writes the
    /// upload down; it is called before the first step and after each one, and its failure ends the sending.
    ///
    /// After a crash, call it again with what was kept. `Usage` if a gateway refuses for good, with its words.
    pub async fn send(
        &self,
        upload: &mut Upload,
        tree: &DataTree,
        data: &Path,
        mut keep: impl FnMut(&Upload) -> Result<()>,
    ) -> Result<()> {
        let transaction = upload.transaction()?;
        let failed = |e| Error::disk(format!("cannot read {}", data.display()), e);
        let mut file = File::open(data).map_err(failed)?;
        keep(upload)?;
        loop {
            let step = upload.next(tree)?;
            match step {
                Step::Done => return Ok(()),
                Step::Transaction => self.post("tx", &transaction.to_json()).await?,
                Step::Chunk(at) => {
                    let (start, end) = tree.range(at).ok_or_else(|| Error::bug("a chunk beyond the data"))?;
                    let proof = tree.proof(at).ok_or_else(|| Error::bug("a chunk beyond the data"))?;
                    let mut chunk = Vec::new();
                    file.seek(SeekFrom::Start(start)).map_err(failed)?;
                    (&file).take(end - start).read_to_end(&mut chunk).map_err(failed)?;
                    // The file may have changed since the tree was built: then nobody would take this chunk.
                    verify_chunk(&tree.root(), tree.bytes(), start, &proof, &chunk)
                        .map_err(|e| Error::usage(format!("{} has changed", data.display())).caused_by(e))?;
                    let posted = json!({
                        "data_root": encode(&tree.root()),
                        "data_size": tree.bytes().to_string(),
                        "data_path": encode(&proof),
                        "offset": (end - 1).to_string(),
                        "chunk": encode(&chunk),
                    });
                    self.post("chunk", &posted).await?;
                }
            }
            upload.taken(step);
            keep(upload)?;
        }
    }

    /// What became of a transaction, by all gateways that are named. See [`judge`].
    pub async fn outcome(&self, id: &TxId, anchor_height: u64) -> Outcome {
        let said = join_all(self.urls.iter().map(|url| self.observe(url, id))).await;
        judge(anchor_height, &said.into_iter().map(Result::ok).collect::<Vec<_>>())
    }

    /// A transaction with its signature checked. `Missing` if no gateway has it.
    pub async fn transaction(&self, id: &TxId) -> Result<Transaction> {
        let mut failures = Vec::new();
        for url in &self.urls {
            match self.transaction_of(url, id).await {
                Ok(transaction) => return Ok(transaction),
                Err(e) => failures.push(e),
            }
        }
        Err(worst(failures, format!("transaction {id} cannot be had")))
    }

    /// Hands the data of a transaction to `sink` in order, each chunk proven against the signed root before.
    /// Returns its bytes.
    ///
    /// A gateway whose chunk is not proven is not asked again. `OverLimit` before anything is read if the data is
    /// longer than `bytes_max`; `Missing` or `Unreachable` with every gateway's failure if a chunk cannot be had:
    /// what came before was right.
    pub async fn read(&self, id: &TxId, bytes_max: u64, mut sink: impl FnMut(&[u8]) -> Result<()>) -> Result<u64> {
        let mut reading = self.open(id, bytes_max).await?;
        while let Some(chunk) = reading.next(self).await? {
            sink(&chunk)?;
        }
        Ok(reading.bytes)
    }

    /// Stores the blocks of a CAR file that a transaction holds, without a file in between; each block is checked
    /// against its name as well.
    pub async fn import(&self, blocks: &Blocks, id: &TxId, bytes_max: u64) -> Result<car::Imported> {
        self.import_each(blocks, id, bytes_max, |_| {}).await
    }

    /// [`Arweave::import`]; `each` hears the bytes of data read so far.
    pub async fn import_each(
        &self,
        blocks: &Blocks,
        id: &TxId,
        bytes_max: u64,
        each: impl Fn(u64),
    ) -> Result<car::Imported> {
        let mut reading = self.open(id, bytes_max).await?;
        let (sender, receiver) = tokio::sync::mpsc::channel(AHEAD);
        let blocks = blocks.clone();
        let import = off_thread(move || car::import(&blocks, Pieces { receiver, piece: Bytes::new() }));
        let read = async move {
            while let Some(chunk) = reading.next(self).await? {
                if sender.send(chunk).await.is_err() {
                    // The import failed: its error is the one to tell.
                    break;
                }
                each(reading.at);
            }
            Ok(())
        };
        let (imported, read) = futures::join!(import, read);
        read?;
        imported
    }

    async fn open(&self, id: &TxId, bytes_max: u64) -> Result<Reading<'_>> {
        let Draft { data_root, data_bytes, .. } = self.transaction(id).await?.draft;
        if data_bytes > bytes_max {
            return Err(Error::over_limit(format!("{id} holds {data_bytes} bytes; {bytes_max} are allowed here")));
        }
        let sources = self.urls.iter().map(|url| Source { url, start: None, failure: None }).collect();
        Ok(Reading { sources, id: *id, root: data_root, bytes: data_bytes, at: 0 })
    }

    async fn observe(&self, url: &str, id: &TxId) -> Result<Observation> {
        let height = self.height_of(url).await?;
        let (status, text) = self.ask(url, &format!("tx/{id}/status")).await?;
        let seen = match status {
            StatusCode::NOT_FOUND => Seen::Nothing,
            StatusCode::ACCEPTED => Seen::Pending,
            _ if text.trim() == "Pending" => Seen::Pending,
            _ => {
                let answer: Value = serde_json::from_str(&text).map_err(|e| no_answer(url).caused_by(e))?;
                let confirmations = answer["number_of_confirmations"].as_u64().ok_or_else(|| no_answer(url))?;
                Seen::Mined { confirmations }
            }
        };
        Ok(Observation { height, seen })
    }

    async fn transaction_of(&self, url: &str, id: &TxId) -> Result<Transaction> {
        let answer = self.ask_json(url, &format!("tx/{id}")).await?;
        let transaction = Transaction::from_json(&answer)?;
        transaction.verify(id)?;
        Ok(transaction)
    }

    /// Where in the weave the data begins, by the gateway's word: a wrong one leads to chunks that are not proven.
    async fn start_of(&self, url: &str, id: &TxId, bytes: u64) -> Result<u64> {
        let answer = self.ask_json(url, &format!("tx/{id}/offset")).await?;
        let field = |name: &str| answer[name].as_str().and_then(number::<u64>).ok_or_else(|| no_answer(url));
        let (last, size) = (field("offset")?, field("size")?);
        match last.checked_add(1).and_then(|end| end.checked_sub(size)) {
            Some(start) if size == bytes => Ok(start),
            _ => Err(Error::corrupt(format!("{url} places {size} bytes where {bytes} were signed"))),
        }
    }

    async fn first_height(&self) -> Result<u64> {
        let mut failures = Vec::new();
        for url in &self.urls {
            match self.height_of(url).await {
                Ok(height) => return Ok(height),
                Err(e) => failures.push(e),
            }
        }
        Err(worst(failures, "no gateway names its height".into()))
    }

    async fn height_of(&self, url: &str) -> Result<u64> {
        self.ask_json(url, "info").await?["height"].as_u64().ok_or_else(|| no_answer(url))
    }

    /// The first successful answer to `path`.
    async fn first(&self, path: &str) -> Result<String> {
        let mut failures = Vec::new();
        for url in &self.urls {
            match self.ask(url, path).await {
                Ok((status, text)) if status.is_success() => return Ok(text),
                Ok((status, _)) => failures.push(Error::unreachable(format!("{url} answered {status}"))),
                Err(e) => failures.push(e),
            }
        }
        Err(worst(failures, format!("no gateway answers /{path}")))
    }

    async fn ask_json(&self, url: &str, path: &str) -> Result<Value> {
        let (status, text) = self.ask(url, path).await?;
        if matches!(status, StatusCode::NOT_FOUND | StatusCode::NO_CONTENT | StatusCode::GONE) {
            return Err(Error::missing(format!("{url} has no /{path}")));
        }
        if status != StatusCode::OK {
            return Err(Error::unreachable(format!("{url} answered {status} to /{path}")));
        }
        serde_json::from_str(&text).map_err(|e| no_answer(url).caused_by(e))
    }

    async fn ask(&self, url: &str, path: &str) -> Result<(StatusCode, String)> {
        let away = |e| Error::unreachable(format!("{url} did not serve")).caused_by(e);
        let answer = self.http.get(&format!("{url}/{path}")).await.map_err(away)?;
        let status = answer.status;
        let bytes = tokio::time::timeout(DEADLINE, answer.bytes(ANSWER_BYTES_MAX)).await;
        let bytes = bytes.map_err(|_| Error::unreachable(format!("{url} sent no whole answer")))?.map_err(away)?;
        let text = String::from_utf8(bytes.to_vec()).map_err(|e| no_answer(url).caused_by(e))?;
        Ok((status, text))
    }

    /// Offers `value` to one gateway after another until one takes it.
    async fn post(&self, path: &str, value: &Value) -> Result<()> {
        let mut failures = Vec::new();
        for url in &self.urls {
            let answer = match self.http.post_json(&format!("{url}/{path}"), value).await {
                Ok(answer) => answer,
                Err(e) => {
                    failures.push(Error::unreachable(format!("{url} did not serve")).caused_by(e));
                    continue;
                }
            };
            // 208: it has it already.
            if answer.status.is_success() {
                return Ok(());
            }
            let status = answer.status;
            let said = answer.success_or_read().await.err().map(|e| e.message).unwrap_or_default();
            let failure = format!("{url} does not take the {path}: {said}");
            failures.push(match status.is_client_error() && status != StatusCode::TOO_MANY_REQUESTS {
                true => Error::usage(failure),
                false => Error::unreachable(failure),
            });
        }
        Err(worst(failures, format!("no gateway takes the {path}")))
    }
}

/// The tags of a CAR file: what it is, and whose graph.
pub fn car_tags(root: &Cid) -> Vec<Tag> {
    vec![Tag::new("Content-Type", "application/vnd.ipld.car; version=1"), Tag::new("IPFS-CID", root.to_string())]
}

/// The data of one transaction, on its way.
struct Reading<'a> {
    sources: Vec<Source<'a>>,
    id: TxId,
    root: [u8; 32],
    bytes: u64,
    at: u64,
}

struct Source<'a> {
    url: &'a str,
    /// Where in the weave the data begins, once it was asked for.
    start: Option<u64>,
    /// Why it is not asked any more.
    failure: Option<Error>,
}

impl Reading<'_> {
    /// The next chunk, proven; `None` at the end.
    async fn next(&mut self, arweave: &Arweave) -> Result<Option<Bytes>> {
        if self.at >= self.bytes {
            return Ok(None);
        }
        for turn in 0..self.sources.len() {
            if self.sources[turn].failure.is_some() {
                continue;
            }
            match self.ask(arweave, turn).await {
                Ok((chunk, end)) => {
                    self.at = end;
                    return Ok(Some(chunk));
                }
                Err(e) => {
                    let source = &mut self.sources[turn];
                    tracing::warn!(url = source.url, id = %self.id, error = %e, "an Arweave gateway is given up");
                    source.failure = Some(e);
                }
            }
        }
        let failures = self.sources.iter_mut().filter_map(|source| source.failure.take()).collect();
        Err(worst(failures, format!("byte {} of {} cannot be had", self.at, self.id)))
    }

    /// The chunk at hand and where it ends.
    async fn ask(&mut self, arweave: &Arweave, turn: usize) -> Result<(Bytes, u64)> {
        let (url, at) = (self.sources[turn].url, self.at);
        let start = match self.sources[turn].start {
            Some(start) => start,
            None => arweave.start_of(url, &self.id, self.bytes).await?,
        };
        self.sources[turn].start = Some(start);
        let place = start.checked_add(at).ok_or_else(|| no_answer(url))?;
        let answer = arweave.ask_json(url, &format!("chunk/{place}")).await?;
        let field = |name: &str| answer[name].as_str().and_then(decode).ok_or_else(|| no_answer(url));
        let (chunk, proof) = (field("chunk")?, field("data_path")?);
        let proven = verify_chunk(&self.root, self.bytes, at, &proof, &chunk)
            .map_err(|e| Error::corrupt(format!("{url} sent a chunk that is not proven")).caused_by(e))?;
        if proven.start != at {
            return Err(Error::corrupt(format!("{url} sent the chunk from {} where {at} was asked", proven.start)));
        }
        Ok((Bytes::from(chunk), proven.end))
    }
}

/// What arrives in pieces, as one stream.
struct Pieces {
    receiver: tokio::sync::mpsc::Receiver<Bytes>,
    piece: Bytes,
}

impl Read for Pieces {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        while self.piece.is_empty() {
            match self.receiver.blocking_recv() {
                Some(piece) => self.piece = piece,
                // The sender is gone: the end, or a failure that is told elsewhere.
                None => return Ok(0),
            }
        }
        let length = out.len().min(self.piece.len());
        out[..length].copy_from_slice(&self.piece.split_to(length));
        Ok(length)
    }
}

fn no_answer(url: &str) -> Error {
    Error::corrupt(format!("{url} sent something else than an Arweave gateway's answer"))
}

/// One error for all gateways' failures, of the kind whose advice is true for the whole.
fn worst(failures: Vec<Error>, what: String) -> Error {
    let order = [Kind::Usage, Kind::Unreachable, Kind::Corrupt, Kind::Missing];
    let kind = order.into_iter().find(|kind| failures.iter().any(|e| e.kind == *kind));
    let list: Vec<String> = failures.iter().map(ToString::to_string).collect();
    match kind {
        None if failures.is_empty() => Error::usage(format!("{what}: no gateway is named")),
        kind => Error::new(kind.unwrap_or(Kind::Unreachable), format!("{what}: {}", list.join("; "))),
    }
}
