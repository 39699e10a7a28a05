//! The archivist: puts agents' memories on Arweave for USDC, what `vivarium store arweave sell` serves.
//!
//! An agent cannot get AR on its chain, so whoever has some sells it storage: the agent's treasury pays a plain
//! address, by `spend(storage)`, and its operator names the transaction and the checkpoint. The address' key is not
//! needed here; the Arweave wallet is.
//!
//! A payment counts once, and a checkpoint is charged once: both are in the journal before anything is sent. What is
//! sent twice has the same answer. What a treasury paid too much stays its credit.

mod books;

use alloy::primitives::{Address, B256, keccak256};
use anyhow::Context as _;
use axum::extract::{DefaultBodyLimit, Path, RawQuery, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::serve::ListenerExt;
use axum::{Json, Router};
use books::{Books, Item};
use bytes::Bytes;
use chain::Chain;
use economy::{Usdc, mul_div_up};
use net::chain_of;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use store::arweave::Arweave;
use store::checkpoint::{ArchiveCopy, ArchiveRequest, Checkpoint, Quote};
use store::cid::Cid;
use store::cli::arweave::{self, Stored};
use store::{Blocks, StoreClient};
use tokio::net::TcpListener;

/// A request names a checkpoint, a transaction and a few sources.
const BODY_BYTES_MAX: usize = 16 << 10;
/// How long a request waits for the copy to be sent; then it hears that this goes on, and may ask again.
const PATIENCE: Duration = Duration::from_secs(25);
/// Between two looks at copies that are not known to be mined.
const TEND_EVERY: Duration = Duration::from_secs(120);
const CHECKPOINT_BYTES_MAX: usize = 1 << 20;
/// Winston in an AR.
const AR: u128 = 1_000_000_000_000;
/// Under which reason the store keeps what was sold.
const SOLD: &str = "sold";

/// How it is run.
pub struct Config {
    pub chain: Chain,
    pub chain_id: u64,
    /// The only token that is taken.
    pub token: Address,
    /// Who is paid.
    pub payee: Address,
    /// A payment counts under so many blocks, its own included.
    pub confirmations: u64,
    pub gateways: Vec<String>,
    /// The Arweave wallet, a JWK file.
    pub wallet: PathBuf,
    /// Most that one transaction may cost, whatever a gateway says.
    pub reward_winston_max: u128,
    /// Micro-USDC an AR.
    pub ar: Usdc,
    /// On top of that, percent.
    pub margin_pct: u32,
    /// Chain seconds for which a price holds.
    pub valid_secs: u64,
    /// Longest copy that is sold.
    pub bytes_max: u64,
    /// The store's folder; the journal lies in it.
    pub dir: PathBuf,
}

#[derive(Clone)]
struct Archivist(Arc<Inner>);

struct Inner {
    config: Config,
    arweave: Arweave,
    books: Books,
    blocks: Blocks,
    http: net::Client,
    /// By which it knows its own prices again, so that it need not keep them.
    secret: [u8; 32],
    /// Checkpoints that are being worked on: none is sent by two at once.
    busy: Mutex<BTreeSet<B256>>,
    /// Known to be mined for good.
    mined: Mutex<BTreeSet<B256>>,
}

/// Serves until `until` resolves.
///
/// # Errors
/// Journal or folder do not open, or the listener fails.
pub async fn serve(
    listener: TcpListener,
    config: Config,
    until: impl Future<Output = ()> + Send + 'static,
) -> anyhow::Result<()> {
    let blocks = Blocks::open(&config.dir)?;
    let dir = config.dir.join("archivist");
    let books = Books::open(&dir.join("journal"))?;
    let secret = secret_in(&dir.join("secret"))?;
    let http = net::Client::new();
    let arweave = Arweave::new(http.clone(), config.gateways.clone());
    let (busy, mined) = (Mutex::default(), Mutex::default());
    let archivist = Archivist(Arc::new(Inner { config, arweave, books, blocks, http, secret, busy, mined }));
    let tending = tokio::spawn(archivist.clone().tend());
    let app = Router::new()
        .route("/terms", get(terms))
        .route("/price", get(price))
        .route("/items", post(take))
        .route("/items/{cid}", get(item))
        .route("/credit/{treasury}", get(credit))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(archivist);
    let listener = listener.tap_io(net::send_at_once);
    axum::serve(listener, app).with_graceful_shutdown(until).await?;
    tending.abort();
    Ok(())
}

/// Why a request is not answered.
struct Refusal {
    status: StatusCode,
    code: &'static str,
    /// Of the request, where one is to blame.
    field: Option<&'static str>,
    message: String,
}

impl Refusal {
    fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, field: None, message: message.into() }
    }

    fn of_field(field: &'static str, message: impl Into<String>) -> Self {
        Self { field: Some(field), ..Self::new(StatusCode::BAD_REQUEST, "bad_request", message) }
    }

    fn unavailable(code: &'static str, message: &str, cause: &(dyn std::error::Error + 'static)) -> Self {
        tracing::warn!(cause = %chain_of(cause), "{message}");
        Self::new(StatusCode::SERVICE_UNAVAILABLE, code, message)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let error = json!({ "code": self.code, "field": self.field, "message": self.message });
        (self.status, Json(json!({ "error": error }))).into_response()
    }
}

async fn terms(State(archivist): State<Archivist>) -> Json<Value> {
    let config = &archivist.0.config;
    Json(json!({
        "payee": config.payee,
        "chain_id": config.chain_id,
        "token": config.token,
        "confirmations": config.confirmations,
        "bytes_max": config.bytes_max,
    }))
}

async fn price(State(archivist): State<Archivist>, RawQuery(query): RawQuery) -> Result<Json<Value>, Refusal> {
    let asked = query.as_deref().and_then(|query| query.strip_prefix("bytes=")).unwrap_or_default();
    let bytes = asked.parse::<u64>().ok().filter(|number| *number > 0 && number.to_string() == asked);
    let bytes = bytes.ok_or_else(|| Refusal::of_field("bytes", "`?bytes=N` must say a number of bytes, above 0"))?;
    let quote = archivist.quote(bytes).await?;
    Ok(Json(json!({ "quote": quote, "payee": archivist.0.config.payee })))
}

async fn credit(State(archivist): State<Archivist>, Path(treasury): Path<Address>) -> Json<Value> {
    let credit = archivist.0.books.read(|accounts| accounts.credit(treasury));
    Json(json!({ "treasury": treasury, "credit_uusdc": credit.micro().to_string() }))
}

/// What is known of a checkpoint's copy: `paid`, `unpaid` or `unknown` on Arweave.
async fn item(State(archivist): State<Archivist>, Path(cid): Path<String>) -> Result<Json<Value>, Refusal> {
    let root = store::cid::parse(&cid).map_err(|e| Refusal::of_field("cid", e.to_string()))?;
    let digest = B256::from(store::cid::digest(&root));
    if archivist.0.books.read(|accounts| accounts.item(digest).is_none()) {
        return Err(Refusal::new(StatusCode::NOT_FOUND, "not_taken", format!("nobody paid for a copy of {cid}")));
    }
    let config = &archivist.0.config;
    match arweave::status(&config.dir, &cid, config.gateways.clone()).await {
        Ok(stored) => Ok(Json(json!(stored))),
        // Charged, and no transaction signed yet.
        Err(e) if e.kind == store::Kind::Missing => {
            Ok(Json(json!({ "cid": cid, "transaction": null, "outcome": "unknown" })))
        }
        Err(e) => Err(Refusal::unavailable("archive", "what became of it cannot be told now", &e)),
    }
}

async fn take(State(archivist): State<Archivist>, body: Bytes) -> Result<Response, Refusal> {
    let request = ArchiveRequest::from_bytes(&body).map_err(|e| {
        let field = if e.message.starts_with("`sources`") { Some("sources") } else { None };
        Refusal { field, ..Refusal::new(StatusCode::BAD_REQUEST, "bad_request", chain_of(&e)) }
    })?;
    let root = B256::from(store::cid::digest(&request.checkpoint));
    let still = || (StatusCode::ACCEPTED, Json(json!({ "cid": request.checkpoint.to_string() }))).into_response();
    let Some(turn) = archivist.turn(root) else { return Ok(still()) };
    let (this, asked) = (archivist.clone(), request.clone());
    // Goes on when the asker hangs up: it is charged by then, perhaps.
    let work = tokio::spawn(async move {
        let taken = this.take_it(&asked, root).await;
        drop(turn);
        taken
    });
    match tokio::time::timeout(PATIENCE, work).await {
        Ok(Ok(taken)) => taken.map(|said| Json(said).into_response()),
        Ok(Err(_)) => Err(Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "bug", "the work ended before its end")),
        Err(_) => Ok(still()),
    }
}

/// A checkpoint's turn; it is free for others when this is dropped.
struct Turn(Archivist, B256);

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.0.busy.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.1);
    }
}

impl Archivist {
    /// `None`: somebody works on it.
    fn turn(&self, root: B256) -> Option<Turn> {
        let is_free = self.0.busy.lock().unwrap_or_else(PoisonError::into_inner).insert(root);
        is_free.then(|| Turn(self.clone(), root))
    }

    /// The gateway's price in winston at the rate and with the margin that were set, each rounded up.
    async fn amount(&self, bytes: u64) -> Result<Usdc, Refusal> {
        let config = &self.0.config;
        if bytes > config.bytes_max {
            let message = format!("copies of at most {} bytes are sold here", config.bytes_max);
            return Err(Refusal { status: StatusCode::PAYLOAD_TOO_LARGE, ..Refusal::of_field("bytes", message) });
        }
        let winston = self.0.arweave.price_winston(bytes).await;
        let winston = winston.map_err(|e| Refusal::unavailable("archive", "no Arweave gateway names a price", &e))?;
        if winston > config.reward_winston_max {
            let message = format!("Arweave asks {winston} winston for it, more than this archivist ever pays at once");
            return Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "archive", message));
        }
        let cost = mul_div_up(winston, config.ar.micro(), AR).unwrap_or(u128::MAX);
        let margin = mul_div_up(cost, config.margin_pct.into(), 100).unwrap_or(u128::MAX);
        Ok(Usdc(cost.saturating_add(margin).max(1)))
    }

    async fn quote(&self, bytes: u64) -> Result<Quote, Refusal> {
        let amount = self.amount(bytes).await?;
        let head = self.0.chain_head().await?;
        let valid_until = head.timestamp.saturating_add(self.0.config.valid_secs);
        let quote = Quote { bytes, amount_uusdc: amount.micro(), valid_until, mac: B256::ZERO };
        Ok(Quote { mac: self.0.mac(&quote), ..quote })
    }

    /// From a signed request to the Arweave transaction: payment, price, objects, charge, upload. Nothing is fetched before
    /// the credit covers the price.
    async fn take_it(&self, request: &ArchiveRequest, root: B256) -> Result<Value, Refusal> {
        let inner = &self.0;
        inner.is_of_operator(request).await?;
        let paid_at = inner.count(request).await?;
        if inner.books.read(|accounts| accounts.item(root).is_none()) {
            let price = self.price(request, paid_at).await?;
            if inner.books.read(|accounts| accounts.credit(request.treasury)) < price {
                return Err(inner.too_little(request.treasury, price));
            }
            let copy = inner.gather(request).await?;
            if let Err(refusal) = inner.charge(request, root, copy, price).await {
                // Others may have taken the credit meanwhile.
                inner.let_go(request, root);
                return Err(refusal);
            }
        }
        let item = inner.books.read(|accounts| accounts.item(root).cloned());
        let item = item.filter(|item| item.treasury == request.treasury).ok_or_else(|| {
            Refusal::of_field("checkpoint", "another treasury had this checkpoint copied: nothing is charged")
        })?;
        let stored = self.upload(&item).await?;
        let credit = inner.books.read(|accounts| accounts.credit(request.treasury));
        Ok(json!({
            "cid": stored.cid,
            "transaction": stored.transaction,
            "bytes": stored.bytes,
            "outcome": stored.outcome,
            "price_uusdc": item.price.micro().to_string(),
            "credit_uusdc": credit.micro().to_string(),
        }))
    }

    /// The price that was told, if this archivist told it and it was paid in time, else today's.
    async fn price(&self, request: &ArchiveRequest, paid_at: u64) -> Result<Usdc, Refusal> {
        let quote = &request.quote;
        let is_mine = quote.mac == self.0.mac(&Quote { mac: B256::ZERO, ..*quote });
        match is_mine && paid_at <= quote.valid_until {
            true => Ok(Usdc(quote.amount_uusdc)),
            false => self.amount(quote.bytes).await,
        }
    }

    /// Sends what is charged, or says what was sent before.
    async fn upload(&self, item: &Item) -> Result<Stored, Refusal> {
        let config = &self.0.config;
        let roots = item.roots.iter().map(|cid| Cid::try_from(cid.as_slice()));
        let roots: Vec<Cid> = roots
            .collect::<Result<_, _>>()
            .map_err(|e| Refusal::unavailable("bug", "the record names something that is no CID", &e))?;
        let Some((root, others)) = roots.split_first() else {
            return Err(Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "bug", "the record names nothing"));
        };
        let gateways = config.gateways.clone();
        let (wallet, reward_max) = (&config.wallet, config.reward_winston_max);
        let sent = arweave::put_with(&config.dir, *root, others.to_vec(), gateways, wallet, reward_max, |_| {});
        let stored = sent.await.map_err(|e| {
            Refusal::unavailable("archive", "it is charged and not sent yet: ask again, it is charged once", &e)
        })?;
        if stored.outcome == "paid" {
            let digest = B256::from(store::cid::digest(root));
            self.0.mined.lock().unwrap_or_else(PoisonError::into_inner).insert(digest);
        }
        Ok(stored)
    }

    /// Sees what is charged through to the end, also when nobody asks any more: after a crash, and when a transaction
    /// was never mined.
    async fn tend(self) {
        loop {
            let items: Vec<Item> = self.0.books.read(|accounts| accounts.items().cloned().collect());
            for item in items {
                let Some(Ok(root)) = item.roots.first().map(|cid| Cid::try_from(cid.as_slice())) else { continue };
                let digest = B256::from(store::cid::digest(&root));
                if self.0.mined.lock().unwrap_or_else(PoisonError::into_inner).contains(&digest) {
                    continue;
                }
                let Some(_turn) = self.turn(digest) else { continue };
                // Said where it failed; the next round tries again.
                let _ = self.upload(&item).await;
            }
            tokio::time::sleep(TEND_EVERY).await;
        }
    }
}

impl Inner {
    async fn chain_head(&self) -> Result<chain::Head, Refusal> {
        self.config.chain.head().await.map_err(no_chain)
    }

    fn mac(&self, quote: &Quote) -> B256 {
        let fields = [quote.bytes.into(), quote.amount_uusdc, quote.valid_until.into()].map(u128::to_be_bytes);
        keccak256([&self.secret[..], &fields.concat()].concat())
    }

    /// A payment is public, so only the operator's word spends it.
    async fn is_of_operator(&self, request: &ArchiveRequest) -> Result<(), Refusal> {
        if request.chain_id != self.config.chain_id {
            return Err(Refusal::of_field("chain_id", format!("payments are taken on chain {}", self.config.chain_id)));
        }
        let state = self.config.chain.treasury(request.treasury).state().await;
        let state = state.map_err(|e| match e.kind {
            chain::Kind::Missing => Refusal::of_field("treasury", "there is no treasury at this address"),
            _ => no_chain(e),
        })?;
        match request.signer() == Some(state.operator) {
            true => Ok(()),
            false => {
                let message = format!("the request is not signed by {}, the treasury's operator", state.operator);
                let refusal = Refusal::new(StatusCode::FORBIDDEN, "not_operator", message);
                Err(Refusal { field: Some("signature"), ..refusal })
            }
        }
    }

    /// Counts the payments of the transaction that are under enough blocks. Returns when they were mined, chain
    /// seconds.
    async fn count(&self, request: &ArchiveRequest) -> Result<u64, Refusal> {
        let (config, treasury, transaction) = (&self.config, request.treasury, request.transaction);
        let too_early = |message: String| {
            let refusal = Refusal::new(StatusCode::TOO_EARLY, "too_early", message);
            Refusal { field: Some("transaction"), ..refusal }
        };
        let who = (treasury, config.payee);
        let paid = chain::history::storage_paid(&config.chain, config.token, who, transaction).await;
        let Some(paid) = paid.map_err(no_chain)? else {
            return Err(too_early(format!("the chain has no transaction {transaction} in a block yet")));
        };
        let head = self.chain_head().await?;
        let blocks = (head.number + 1).saturating_sub(paid.block);
        if blocks < config.confirmations {
            return Err(too_early(format!("the payment is under {blocks} of {} blocks", config.confirmations)));
        }
        if paid.payments.is_empty() {
            let message =
                format!("in {transaction} {treasury} pays {} nothing for storage in {}", config.payee, config.token);
            let refusal = Refusal::new(StatusCode::PAYMENT_REQUIRED, "unpaid", message);
            return Err(Refusal { field: Some("transaction"), ..refusal });
        }
        let written = self.books.write(move |accounts| accounts.paid(treasury, transaction, &paid.payments)).await;
        written.map_err(|e| Refusal::unavailable("disk", "nothing can be recorded", &*e))?;
        Ok(paid.timestamp)
    }

    fn too_little(&self, treasury: Address, price: Usdc) -> Refusal {
        let credit = self.books.read(|accounts| accounts.credit(treasury));
        let message = format!("it costs {price}, and the credit of {treasury} is {credit}: ask for a new price");
        Refusal::new(StatusCode::PAYMENT_REQUIRED, "unpaid", message)
    }

    /// Takes the price out of the credit.
    async fn charge(
        &self,
        request: &ArchiveRequest,
        root: B256,
        copy: ArchiveCopy,
        price: Usdc,
    ) -> Result<(), Refusal> {
        let treasury = request.treasury;
        let roots: Vec<Vec<u8>> = copy.roots.iter().map(Cid::to_bytes).collect();
        let taken = self.books.write(move |accounts| accounts.taken(treasury, root, roots, price)).await;
        match taken.map_err(|e| Refusal::unavailable("disk", "nothing can be recorded", &*e))? {
            true => Ok(()),
            false => Err(self.too_little(treasury, price)),
        }
    }

    /// Unpins what was fetched and is not charged.
    fn let_go(&self, request: &ArchiveRequest, root: B256) {
        if self.books.read(|accounts| accounts.item(root).is_some()) {
            return;
        }
        if let Err(e) = self.blocks.unpin(&request.checkpoint, Some(SOLD)) {
            tracing::warn!(cause = %chain_of(&e), "the pin of a copy that nobody paid for stays");
        }
    }

    /// Fetches the checkpoint and what of it is copied, each block checked, and no more bytes than the price is for.
    async fn gather(&self, request: &ArchiveRequest) -> Result<ArchiveCopy, Refusal> {
        let sources = StoreClient::new(self.http.clone(), request.sources.clone());
        let failed = |e: store::Error| match e.kind {
            store::Kind::Corrupt | store::Kind::Usage => Refusal::of_field("checkpoint", chain_of(&e)),
            store::Kind::OverLimit => Refusal::of_field("quote", chain_of(&e)),
            _ => Refusal::unavailable("sources", "the sources do not bring what is to be copied", &e),
        };
        let bytes = sources.get_bytes(&request.checkpoint, CHECKPOINT_BYTES_MAX).await.map_err(failed)?;
        let checkpoint = Checkpoint::from_bytes(&bytes).map_err(failed)?;
        if (checkpoint.agent, checkpoint.chain_id) != (request.treasury, request.chain_id) {
            return Err(Refusal::of_field("checkpoint", format!("it is of the agent {}", checkpoint.agent)));
        }
        let copy = ArchiveCopy::of(&sources, &checkpoint).await.map_err(failed)?;
        let limit = request.quote.bytes.min(self.config.bytes_max);
        let _writing = self.blocks.writing().map_err(failed)?;
        copy.gather(&self.blocks, &sources, limit).await.map_err(failed)?;
        // With it all that it names.
        self.blocks.pin(&request.checkpoint, SOLD).map_err(failed)?;
        Ok(copy)
    }
}

fn no_chain(e: chain::Error) -> Refusal {
    Refusal::unavailable("chain", "the chain does not answer", &e)
}

/// Made once, readable for the owner alone.
fn secret_in(path: &std::path::Path) -> anyhow::Result<[u8; 32]> {
    let failed = || format!("cannot keep a secret in {}", path.display());
    match std::fs::read(path) {
        Ok(bytes) => return bytes.try_into().ok().with_context(|| format!("{} is no secret", path.display())),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => return Err(e).with_context(failed),
    }
    let secret: [u8; 32] = rand::random();
    let mut file =
        std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).with_context(failed)?;
    file.write_all(&secret).and_then(|()| file.sync_all()).with_context(failed)?;
    Ok(secret)
}
