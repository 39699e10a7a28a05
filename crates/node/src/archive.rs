//! The way to the archivist: asks its price for a copy of the memory, and hands one over that the treasury paid for.
//!
//! Whether it is paid, whom and how much is decided in `economy/src/archive.rs`. Of what the archivist says only
//! numbers come in: a price, and the 32 bytes of a transaction's id.

use crate::checkpoint;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::main_loop::{Event, Node};
use alloy::primitives::B256;
use bytes::Bytes;
use economy::{ArchiveQuote, Input, Outcome, OutputId, Usdc};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use net::chain_of;
use serde::Deserialize;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use store::arweave::TxId;
use store::checkpoint::{ArchiveCopy, ArchiveRequest, Quote};

/// The archivist fetches and sends while it is asked; after its own patience it says that it is still at it.
const DEADLINE: Duration = Duration::from_secs(60);
/// Blocks that are waited for while the payment is too young, or the copy on its way; then the life hears of a failure
/// and tries again later, with the same payment.
const BLOCKS_MAX: u32 = 120;
const ANSWER_BYTES_MAX: usize = 16 << 10;
/// Sources that a request takes.
const SOURCES: usize = 8;

/// What the archivist says of itself: `GET /terms`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Terms {
    pub payee: alloy::primitives::Address,
    pub chain_id: u64,
    pub token: alloy::primitives::Address,
}

/// Asks the archivist at `url` whom it wants paid, and in what.
///
/// # Errors
/// `Retry`: it does not answer, or not as an archivist.
pub async fn terms(http: &net::Client, url: &str) -> Result<Terms> {
    let at = format!("{}/terms", url.trim_end_matches('/'));
    http.get_json(&at).await.map_err(|e| Error::retry("the archivist does not say its terms").caused_by(e))
}

/// Starts the question for a price. Its end comes back under `id`.
pub fn ask_price(node: &Node, id: OutputId) {
    let Some(news) = &node.news else { return };
    let place = (news.state.checkpointSeq, news.state.checkpointDigest);
    let cx = node.cx.clone();
    tell(node.cx.clone(), id, async move { priced(&cx, place).await });
}

/// Starts handing over what `quote` was named for, with the payment at this (block, log index).
pub fn hand_over(node: &Node, id: OutputId, quote: ArchiveQuote, payment: (u64, u32)) {
    let cx = node.cx.clone();
    tell(node.cx.clone(), id, async move { handed_over(&cx, quote, payment).await });
}

fn tell(cx: Arc<Context>, id: OutputId, work: impl Future<Output = Result<Input>> + Send + 'static) {
    tokio::spawn(async move {
        let event = match work.await {
            Ok(said) => Event::Archivist { id, said: Box::new(said) },
            Err(e) => Event::Acted { id, outcome: Outcome::Failed { reason: chain_of(&e) } },
        };
        cx.tell(event).await;
    });
}

async fn priced(cx: &Context, (seq, digest): (u64, B256)) -> Result<Input> {
    let checkpoint = checkpoint::fetch(cx, digest).await?;
    let copy = ArchiveCopy::of(&cx.store, &checkpoint).await;
    let copy = copy.map_err(|e| Error::retry("what is to be copied cannot be read").caused_by(e))?;
    let at = format!("{}/price?bytes={}", url(cx)?, copy.bytes_max);
    let told: Priced = cx.http.get_json(&at).await.map_err(|e| Error::retry("no price").caused_by(e))?;
    let Quote { bytes, amount_uusdc, valid_until, mac } = told.quote;
    if bytes != copy.bytes_max {
        return Err(Error::retry(format!("the archivist names a price for {bytes} bytes, not {}", copy.bytes_max)));
    }
    let price = Usdc(amount_uusdc);
    Ok(Input::ArchivePriced(ArchiveQuote { seq, root: digest.0, bytes, price, valid_until, mac: mac.0 }))
}

async fn handed_over(cx: &Context, quote: ArchiveQuote, payment: (u64, u32)) -> Result<Input> {
    let treasury = cx.config.treasury;
    let transaction = chain::history::transaction_at(&cx.chain, treasury, payment).await;
    let transaction = transaction.map_err(|e| Error::retry("the payment cannot be read").caused_by(e))?;
    let transaction = transaction.ok_or_else(|| Error::retry("the chain has no such payment any more"))?;
    let ArchiveQuote { seq, root, bytes, price, valid_until, mac } = quote;
    let mut request = ArchiveRequest {
        treasury,
        chain_id: cx.config.chain_id,
        checkpoint: store::cid::raw(root),
        transaction,
        quote: Quote { bytes, amount_uusdc: price.0, valid_until, mac: B256::from(mac) },
        sources: cx.manifest.store_urls.iter().take(SOURCES).cloned().collect(),
        signature: String::new(),
    };
    request.sign(&cx.keys.node).map_err(|e| Error::bug("a request cannot be signed").caused_by(e))?;
    let TxId(transaction) = stored(cx, request.to_bytes()).await?;
    Ok(Input::Archived { seq, root, transaction })
}

/// Asks until the archivist has it, with each block while it says that this takes its time.
async fn stored(cx: &Context, request: Vec<u8>) -> Result<TxId> {
    let (at, body) = (format!("{}/items", url(cx)?), Bytes::from(request));
    let http = cx.http.with_deadline(DEADLINE);
    let mut blocks = cx.head.subscribe();
    for _ in 0..BLOCKS_MAX {
        let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))]);
        let answer = http.send(Method::POST, &at, headers, body.clone()).await?;
        let status = answer.status;
        let said = answer.bytes(ANSWER_BYTES_MAX).await?;
        let no_answer = |e| Error::retry("the archivist sent something else than its answer").caused_by(e);
        match status {
            StatusCode::OK => {
                let taken: Taken = serde_json::from_slice(&said).map_err(no_answer)?;
                return TxId::parse(&taken.transaction)
                    .map_err(|e| Error::retry("the archivist names no Arweave transaction").caused_by(e));
            }
            StatusCode::TOO_EARLY | StatusCode::ACCEPTED => {}
            status => {
                // The archivist's words are for whoever runs this node; the life's log has the number alone.
                tracing::warn!(%status, said = %String::from_utf8_lossy(&said), "the archivist refuses");
                return Err(Error::retry(format!("the archivist refuses ({status})")));
            }
        }
        if blocks.changed().await.is_err() {
            break;
        }
    }
    Err(Error::retry(format!("the archivist has not taken it within {BLOCKS_MAX} blocks")))
}

fn url(cx: &Context) -> Result<&str> {
    let url = cx.manifest.archive.url.as_deref().map(|url| url.trim_end_matches('/'));
    url.ok_or_else(|| Error::bug("nobody is asked where the manifest names no archivist"))
}

#[derive(Deserialize)]
struct Priced {
    quote: Quote,
}

#[derive(Deserialize)]
struct Taken {
    transaction: String,
}

impl Node {
    /// A price, or a copy that was taken: into the record, and the second into the log as well.
    pub(crate) fn on_archivist(&mut self, id: OutputId, said: Input) -> Result<()> {
        let (now, block) = (self.now(), self.news.as_ref().map_or(0, |news| news.head.number));
        if let Input::Archived { seq, root, transaction } = &said
            && let Some(live) = self.live.as_mut().filter(|live| !live.sealed)
            && !live.state.agent.archived().any(|known| known.root == *root)
        {
            let (cid, transaction) = (store::cid::raw(*root), TxId(*transaction));
            let text = format!("checkpoint {seq} ({cid}) is on Arweave as {transaction}");
            crate::act::write_line(live, &self.shared, now, "archive", text)?;
        }
        self.life(said)?;
        self.life(Input::Done { id, outcome: Outcome::Done { block } })
    }
}
