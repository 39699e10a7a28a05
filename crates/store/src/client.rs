//! The small end of the store's protocol: put some bytes, get some bytes, over HTTP and with failover.

use crate::cid::{self, Cid};
use crate::dag::BLOCK_BYTES_MAX;
use crate::error::{Error, Kind, Result, off_thread};
use crate::unixfs::{self, FileNode, Imported, Profile};
use crate::walk::{DEPTH_MAX, check_waiting};
use bytes::Bytes;
use futures::future::join_all;
use futures::{FutureExt, StreamExt, TryStreamExt};
use http::{HeaderMap, Method, StatusCode};
use net::Client;
use std::path::Path;
use std::time::Duration;

/// Blocks in flight at once, per object.
const AT_ONCE: usize = 8;
/// A store answers at once or is passed over; a block of 2 MiB needs no longer on any network we serve on.
const DEADLINE: Duration = Duration::from_secs(10);

/// One or more stores that hold the same objects. Reads try them in order; writes go to all and need one.
#[derive(Clone, Debug)]
pub struct StoreClient {
    http: Client,
    urls: Vec<String>,
}

impl StoreClient {
    /// `urls` in order of preference, such as `http://127.0.0.1:7000`.
    pub fn new(http: Client, urls: Vec<String>) -> Self {
        let urls = urls.into_iter().map(|u| u.trim_end_matches('/').to_owned()).collect();
        Self { http: http.with_deadline(DEADLINE), urls }
    }

    pub fn urls(&self) -> &[String] {
        &self.urls
    }

    /// Stores one block. `Corrupt` if it does not match `cid`, `DiskFull` or `Unreachable` if no store took it.
    pub async fn put_block(&self, cid: &Cid, bytes: &[u8]) -> Result<()> {
        self.put(*cid, Bytes::copy_from_slice(bytes)).await
    }

    /// Stores bytes: one raw block up to 1 MiB, a UnixFS file of many beyond. Either way [`StoreClient::get_bytes`]
    /// gives them back.
    pub async fn put_bytes(&self, bytes: &[u8]) -> Result<Cid> {
        // Cutting is cheap beside hashing, and hashing 1 MiB takes about a millisecond.
        let mut blocks = Vec::new();
        let imported = unixfs::import_bytes(bytes, Profile::V1_2025, &mut |cid, block| {
            blocks.push((cid, Bytes::from(block)));
            Ok(())
        })?;
        let puts = futures::stream::iter(blocks.into_iter().map(|(cid, block)| self.put(cid, block).boxed()));
        puts.buffer_unordered(AT_ONCE).try_collect::<()>().await?;
        Ok(imported.cid)
    }

    /// Stores a file or directory, holding a few blocks at a time.
    pub async fn put_path(&self, path: &Path, profile: Profile) -> Result<Imported> {
        self.put_path_each(path, profile, |_| {}).await
    }

    /// [`StoreClient::put_path`]; `each` hears the encoded bytes stored so far.
    pub async fn put_path_each(&self, path: &Path, profile: Profile, each: impl Fn(u64)) -> Result<Imported> {
        let (sender, receiver) = tokio::sync::mpsc::channel(AT_ONCE);
        let path = path.to_owned();
        let import = off_thread(move || {
            unixfs::import_path(&path, profile, &mut |cid, block| {
                let gone = |_| Error::unreachable("storing was given up");
                sender.blocking_send((cid, Bytes::from(block))).map_err(gone)
            })
        });
        let blocks = tokio_stream::wrappers::ReceiverStream::new(receiver);
        let put = |(cid, block): (Cid, Bytes)| async move {
            let length = crate::protobuf::len64(&block);
            self.put(cid, block).await.map(|()| length)
        };
        let puts = blocks.map(put).buffer_unordered(AT_ONCE).try_fold(0, |stored, length| {
            each(stored + length);
            std::future::ready(Ok(stored + length))
        });
        // A failed put drops the receiver, so the import stops too; the put's error is the one to tell.
        let (imported, put) = futures::join!(import, puts);
        put?;
        imported
    }

    /// Keeps `root` and all that it reaches from garbage collection, in every store that has it whole. `reason` is one
    /// word, such as `weights`.
    ///
    /// `Missing` or `Unreachable` if no store keeps it; to pin again is no error.
    pub async fn pin(&self, root: &Cid, reason: &str) -> Result<()> {
        let results = self.at_pins(&Method::PUT, root, reason).await;
        match results.iter().any(Result::is_ok) {
            true => Ok(()),
            false => {
                Err(worst(results.into_iter().filter_map(Result::err).collect(), format!("no store keeps {root}")))
            }
        }
    }

    /// Takes the reason back in every store that can be asked. One that cannot keeps more than it need: no harm.
    pub async fn unpin(&self, root: &Cid, reason: &str) {
        for failure in self.at_pins(&Method::DELETE, root, reason).await.into_iter().filter_map(Result::err) {
            tracing::info!(error = %failure, %root, "a store did not let go of a pin");
        }
    }

    async fn at_pins(&self, method: &Method, root: &Cid, reason: &str) -> Vec<Result<()>> {
        let asked = self.urls.iter().map(|url| async move {
            let at = format!("{url}/pins/{root}?reason={reason}");
            let answer = self.http.send(method.clone(), &at, HeaderMap::new(), Bytes::new()).await;
            let answer = answer.map_err(|e| away(url, e))?;
            if answer.status == StatusCode::NOT_FOUND {
                return Err(Error::missing(format!("{url} has not all of {root}")));
            }
            if answer.status == StatusCode::INSUFFICIENT_STORAGE {
                return Err(full(url));
            }
            answer.success_or_read().await.map_err(|e| away(url, e))?;
            Ok(())
        });
        join_all(asked).await
    }

    /// The bytes behind a raw block or UnixFS file, verified, at most `bytes_max` of them.
    ///
    /// `Missing` if every store says so, `Unreachable` if one could not be asked, `OverLimit` if the object is longer,
    /// or more links wait to be followed than a walk may hold.
    pub async fn get_bytes(&self, cid: &Cid, bytes_max: usize) -> Result<Vec<u8>> {
        let limit = u64::try_from(bytes_max).unwrap_or(u64::MAX);
        let mut whole = Vec::new();
        let root = self.get_block(cid).await?;
        self.gather(*cid, root, None, limit, (0, 0), &mut whole).await?;
        Ok(whole)
    }

    /// One verified block.
    pub async fn get_block(&self, cid: &Cid) -> Result<Bytes> {
        let mut failures = Vec::new();
        for url in &self.urls {
            match self.ask(url, cid).await {
                Ok(bytes) => return Ok(bytes),
                Err(e) => failures.push(e),
            }
        }
        Err(worst(failures, format!("block {cid} cannot be had")))
    }

    /// Appends the content below `cid`, whose block is `block`, in order, a few blocks ahead. Above it lie `depth` nodes
    /// with so many links together.
    async fn gather(
        &self,
        cid: Cid,
        block: Bytes,
        claimed: Option<u64>,
        bytes_max: u64,
        (depth, links): (usize, usize),
        whole: &mut Vec<u8>,
    ) -> Result<()> {
        if depth > DEPTH_MAX {
            return Err(Error::over_limit(format!("{cid} lies {depth} levels deep; the limit is {DEPTH_MAX}")));
        }
        let FileNode { inline, parts, bytes } = unixfs::file_node(&cid, &block, claimed)?;
        if bytes > bytes_max {
            return Err(Error::over_limit(format!("{cid} is {bytes} bytes long; {bytes_max} are allowed here")));
        }
        let links = links + parts.len();
        check_waiting(&cid, links)?;
        whole.extend_from_slice(&inline);
        let fetches = parts
            .into_iter()
            .map(|(part, bytes)| async move { Ok::<_, Error>((part, bytes, self.get_block(&part).await?)) });
        let mut blocks = futures::stream::iter(fetches).buffered(AT_ONCE);
        while let Some((part, bytes, block)) = blocks.try_next().await? {
            Box::pin(self.gather(part, block, Some(bytes), bytes_max, (depth + 1, links), whole)).await?;
        }
        Ok(())
    }

    async fn ask(&self, url: &str, cid: &Cid) -> Result<Bytes> {
        let answer = self.http.get(&format!("{url}/ipfs/{cid}?format=raw")).await.map_err(|e| away(url, e))?;
        if answer.status == StatusCode::NOT_FOUND {
            return Err(Error::missing(format!("{url} has no block {cid}")));
        }
        let answer = answer.success().map_err(|e| away(url, e))?;
        let whole = tokio::time::timeout(DEADLINE, answer.bytes(BLOCK_BYTES_MAX)).await;
        let bytes = whole
            .map_err(|_| Error::unreachable(format!("{url} sent no whole block within {} s", DEADLINE.as_secs())))?
            .map_err(|e| away(url, e))?;
        cid::verify(cid, &bytes).map_err(|e| {
            tracing::warn!(%url, %cid, "a store sent bytes that do not match");
            Error::corrupt(format!("{url} sent other bytes than block {cid}")).caused_by(e)
        })?;
        Ok(bytes)
    }

    async fn put(&self, cid: Cid, block: Bytes) -> Result<()> {
        cid::verify(&cid, &block)?;
        let puts = self.urls.iter().map(|url| self.put_at(url, &cid, block.clone()));
        let results = join_all(puts).await;
        if results.iter().any(Result::is_ok) {
            for failure in results.into_iter().filter_map(Result::err) {
                tracing::warn!(error = %failure, %cid, "a store did not take a block; another did");
            }
            return Ok(());
        }
        Err(worst(results.into_iter().filter_map(Result::err).collect(), format!("no store took block {cid}")))
    }

    async fn put_at(&self, url: &str, cid: &Cid, block: Bytes) -> Result<()> {
        let answer = self.http.put(&format!("{url}/blocks/{cid}"), block).await.map_err(|e| away(url, e))?;
        if answer.status == StatusCode::INSUFFICIENT_STORAGE {
            return Err(full(url));
        }
        answer.success_or_read().await.map_err(|e| away(url, e))?;
        Ok(())
    }
}

fn full(url: &str) -> Error {
    Error::new(Kind::DiskFull, format!("the disk of {url} is full"))
}

fn away(url: &str, cause: net::Error) -> Error {
    Error::unreachable(format!("{url} did not serve")).caused_by(cause)
}

/// One error for all stores' failures, of the kind whose advice is true for the whole: anything but `Missing`
/// leaves hope that the object is somewhere.
fn worst(failures: Vec<Error>, what: String) -> Error {
    let order = [Kind::DiskFull, Kind::Corrupt, Kind::Unreachable, Kind::Missing];
    let rank = |e: &Error| order.iter().position(|k| *k == e.kind).unwrap_or(order.len());
    let kind = failures.iter().min_by_key(|e| rank(e)).map(|e| e.kind);
    let list: Vec<String> = failures.iter().map(ToString::to_string).collect();
    match kind {
        None => Error::usage(format!("{what}: no store is named")),
        Some(kind) => Error::new(kind, format!("{what}: {}", list.join("; "))),
    }
}
