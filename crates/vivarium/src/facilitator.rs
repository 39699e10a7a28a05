//! A standard x402 facilitator: what `vivarium facilitator` serves.
//!
//! Sellers who run no chain client of their own name its URL to the official packages. It has a key for gas and no role
//! anywhere: payers sign transfers to the payee, so it can delay a payment or refuse it, never redirect one.
//!
//! A settlement costs its payee a fee, at least the gas, out of credit that was paid before (`POST /credit/{payTo}`,
//! itself sold by x402): the protocol has no field for a fee. Fee, sending and end are journal records; after a crash
//! each open settlement is asked about on chain before anything else is said of it.

mod books;
mod settle;

use alloy::primitives::Address;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::serve::ListenerExt;
use axum::{Json, Router};
use books::Books;
use bytes::Bytes;
use chain::{Chain, Head};
use net::chain_of;
use pay::facilitator::account::{Record, Standing};
use pay::facilitator::api::{Asked, BODY_BYTES_MAX, Desk, Job, settled, verified};
use pay::facilitator::batch::{BatchPolicy, GasPrice};
use pay::scheme::exact::Hash;
use pay::scheme::exact::client::payment_of;
use pay::seller::{Quote, Seller};
use pay::wire::Resource;
use pay::{Reason, Refusal, Usdc};
use serde_json::{Value, json};
use settle::{End, Plan, Settler};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;

/// Between two questions about a settlement whose end nobody knows.
const ASK_AGAIN: Duration = Duration::from_secs(2);
/// How long a request waits for an end; then it hears "pending" and may ask again. Official clients wait 30 s.
const PATIENCE: Duration = Duration::from_secs(25);

/// How it is run.
pub struct Config {
    pub chain: Chain,
    pub chain_id: u64,
    /// The only token, and its EIP-712 domain.
    pub token: Address,
    pub token_domain: (String, String),
    /// Sends, and pays the gas.
    pub sender: chain::SenderHandle,
    /// Where credit is paid to.
    pub pay_to: Address,
    /// What `POST /credit/{payTo}` sells.
    pub lot: Usdc,
    /// Micro-USDC an ether.
    pub ether: Usdc,
    /// On top of the gas, percent.
    pub margin_pct: u32,
    /// ERC-6492.
    pub factories: Vec<Address>,
    pub batch: BatchPolicy,
    /// Of the journal.
    pub dir: PathBuf,
    /// As it is reached, for `resource` in offers.
    pub public_url: String,
}

#[derive(Clone)]
struct Facilitator(Arc<Inner>);

struct Inner {
    chain: Chain,
    desk: Desk,
    seller: Seller,
    lot: Usdc,
    margin_pct: u32,
    public_url: String,
    books: Books,
    settler: Settler,
}

/// Serves until `until` resolves.
///
/// # Errors
/// The journal does not open, or the listener fails.
pub async fn serve(
    listener: TcpListener,
    config: Config,
    until: impl Future<Output = ()> + Send + 'static,
) -> anyhow::Result<()> {
    let books = Books::open(&config.dir)?;
    let (name, version) = &config.token_domain;
    let seller = Seller::new(config.chain_id, config.token, (name.as_str(), version.as_str()), config.pay_to);
    let desk = Desk { chain_id: config.chain_id, tokens: vec![config.token], facilitator: config.sender.address() };
    let Config { chain, sender, factories, ether, batch, lot, margin_pct, public_url, .. } = config;
    let settler = Settler::start(chain.clone(), sender, factories, ether, batch, books.clone());
    let inner = Inner { chain, desk, seller, lot, margin_pct, public_url, books, settler };
    let facilitator = Facilitator(Arc::new(inner));
    facilitator.resume();
    let app = Router::new()
        .route("/supported", get(supported))
        .route("/verify", post(verify))
        .route("/settle", post(settle_it))
        .route("/credit/{account}", get(credit).post(buy_credit))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(facilitator);
    let listener = listener.tap_io(net::send_at_once);
    Ok(axum::serve(listener, app).with_graceful_shutdown(until).await?)
}

async fn supported(State(facilitator): State<Facilitator>) -> Json<Value> {
    Json(facilitator.0.desk.supported())
}

/// Official facilitators answer a refusal with 200: the body says what it is.
async fn verify(State(facilitator): State<Facilitator>, body: Bytes) -> Json<Value> {
    let outcome = facilitator.quote(&body).await;
    let outcome = outcome.and_then(|quoted| {
        let credit = facilitator.0.books.read(|accounts| accounts.credit(&quoted.job.settlement.pay_to));
        if quoted.standing == Standing::New && credit < quoted.fee {
            return Err(facilitator.too_little(&quoted, credit));
        }
        Ok(quoted.job.payer())
    });
    Json(verified(&outcome))
}

async fn settle_it(State(facilitator): State<Facilitator>, body: Bytes) -> Json<Value> {
    let network = facilitator.0.seller.network.clone();
    let quoted = match facilitator.quote(&body).await {
        Ok(quoted) => quoted,
        Err(refusal) => return Json(settled(&network, None, Err((refusal, None))).to_json()),
    };
    let job = quoted.job.clone();
    let (fee, account) = (quoted.fee, job.settlement.pay_to);
    let outcome = match facilitator.settle(quoted, account, fee, Usdc::ZERO).await {
        End::Paid(transaction) => Ok(transaction),
        End::Unpaid(refusal) => Err((refusal, None)),
        End::Unknown(transaction) => {
            let message = "its end is not known yet: ask again, it is settled once";
            Err((Refusal::new(Reason::SettlementPending, message), transaction))
        }
    };
    Json(settled(&network, Some(&job), outcome).to_json())
}

async fn credit(State(facilitator): State<Facilitator>, Path(account): Path<Address>) -> Json<Value> {
    let inner = &facilitator.0;
    let credit = inner.books.read(|accounts| accounts.credit(&account.into_array()));
    let price = inner.settler.gas_price().await.ok();
    let fee =
        price.map(|price| facilitator.fee(&price, pay::facilitator::batch::TRANSFER_GAS.single).micro().to_string());
    Json(json!({
        "account": account,
        "credit_uusdc": credit.micro().to_string(),
        "lot_uusdc": inner.lot.micro().to_string(),
        "fee_uusdc": fee,
    }))
}

/// Sells credit for an address, to anybody.
async fn buy_credit(
    State(facilitator): State<Facilitator>,
    Path(account): Path<Address>,
    headers: HeaderMap,
) -> Response {
    let inner = &facilitator.0;
    let resource = Resource {
        url: format!("{}/credit/{account}", inner.public_url),
        description: format!("settlements for {account}"),
        mime_type: "application/json".to_owned(),
    };
    let Ok(head) = inner.chain.head().await else {
        return (StatusCode::SERVICE_UNAVAILABLE, "the chain does not answer; nothing was charged").into_response();
    };
    let refuse = |challenge: pay::Challenge| {
        let status = StatusCode::from_u16(challenge.status()).unwrap_or(StatusCode::PAYMENT_REQUIRED);
        (status, HeaderMap::from_iter(challenge.headers()), Json(challenge.body("credit"))).into_response()
    };
    let accepted = {
        let quote = Quote { amount: inner.lot, resource: &resource, quoted_before: &|_| false, known: &|_, _| false };
        inner.seller.accept(&headers, &quote, head.timestamp)
    };
    let verified = match accepted {
        Ok(verified) => verified,
        Err(challenge) => return refuse(*challenge),
    };
    let requirements = inner.seller.requirements(verified.value);
    let asked = Asked { payment: payment_of(&verified.settlement(), &requirements), requirements };
    let end = match facilitator.quote_asked(&asked, &head).await {
        // It pays its own gas: the lot is far above it.
        Ok(quoted) => {
            let lot = verified.value;
            facilitator.settle(quoted, account.into_array(), Usdc::ZERO, lot).await
        }
        Err(refusal) => End::Unpaid(refusal),
    };
    match end {
        End::Paid(transaction) => {
            let header = inner.seller.settled_header(verified.payer, verified.value, &transaction);
            let credit = inner.books.read(|accounts| accounts.credit(&account.into_array()));
            ([header], Json(json!({ "account": account, "credit_uusdc": credit.micro().to_string() }))).into_response()
        }
        End::Unpaid(refusal) => refuse(inner.seller.not_settled(inner.lot, &resource, refusal, verified.payer)),
        End::Unknown(_) => {
            let message = "the payment's end is not known yet; send the same again, it is charged once";
            (StatusCode::SERVICE_UNAVAILABLE, message).into_response()
        }
    }
}

/// A checked payment with its price.
struct Quoted {
    job: Job,
    /// `None`: it was sent before.
    plan: Option<Plan>,
    fee: Usdc,
    standing: Standing,
}

impl Facilitator {
    async fn quote(&self, body: &[u8]) -> Result<Quoted, Refusal> {
        let asked = Asked::from_body(body)?;
        let head = self.0.chain.head().await.map_err(|e| {
            tracing::warn!(error = %chain_of(&e), "the chain does not answer");
            Refusal::new(Reason::UnexpectedVerifyError, "the chain does not answer")
        })?;
        self.quote_asked(&asked, &head).await
    }

    async fn quote_asked(&self, asked: &Asked, head: &Head) -> Result<Quoted, Refusal> {
        let job = self.0.desk.check(asked, head.timestamp, head.number)?;
        let standing = self.0.books.read(|accounts| accounts.standing(&job.key));
        if standing != Standing::New {
            return Ok(Quoted { job, plan: None, fee: Usdc::ZERO, standing });
        }
        let plan = self.0.settler.plan(&job).await?;
        let price = self.0.settler.gas_price().await.map_err(|e| {
            tracing::warn!(error = %chain_of(&e), "the price of gas cannot be read");
            Refusal::new(Reason::UnexpectedVerifyError, "the chain does not answer")
        })?;
        let fee = self.fee(&price, plan.gas);
        Ok(Quoted { job, plan: Some(plan), fee, standing })
    }

    /// Rounded up: never below the gas.
    fn fee(&self, price: &GasPrice, gas: u64) -> Usdc {
        let cost = price.cost_up(gas).micro();
        Usdc(cost.saturating_add(cost.saturating_mul(u128::from(self.0.margin_pct)).div_ceil(100)))
    }

    fn too_little(&self, quoted: &Quoted, credit: Usdc) -> Refusal {
        let account = quoted.job.pay_to();
        let url = &self.0.public_url;
        let message = format!(
            "settling this costs {}, {account} has credit for {credit}: POST {url}/credit/{account} sells more",
            quoted.fee
        );
        Refusal::new(Reason::FacilitatorCredit, message)
    }

    /// One settlement, whoever asks how often: recorded, sent, its end recorded. Goes on when the asker hangs up.
    async fn settle(&self, quoted: Quoted, account: [u8; 20], fee: Usdc, credit: Usdc) -> End {
        let this = self.clone();
        let settling = tokio::spawn(async move { this.settle_to_the_end(quoted, account, fee, credit).await });
        match tokio::time::timeout(PATIENCE, settling).await {
            Ok(Ok(end)) => end,
            Ok(Err(_)) | Err(_) => End::Unknown(None),
        }
    }

    async fn settle_to_the_end(&self, quoted: Quoted, account: [u8; 20], fee: Usdc, credit: Usdc) -> End {
        let Quoted { job, plan, standing, .. } = &quoted;
        let key = job.key;
        match standing {
            Standing::Paid(transaction) => return End::Paid(*transaction),
            Standing::Open => return self.wait_for(key).await,
            Standing::New => {}
        }
        let Some(plan) = plan.clone() else { return End::Unknown(None) };
        let settlement = job.settlement.clone();
        let opened = self.0.books.write(move |accounts| {
            let is_new = accounts.standing(&key) == Standing::New && accounts.credit(&account) >= fee;
            is_new.then_some(Record::Opened { key, account, fee, credit, settlement })
        });
        match opened.await {
            Ok(true) => {}
            // Somebody was faster, or the credit went for another one.
            Ok(false) if self.0.books.read(|accounts| accounts.standing(&key)) != Standing::New => {
                return self.wait_for(key).await;
            }
            Ok(false) => {
                let left = self.0.books.read(|accounts| accounts.credit(&account));
                return End::Unpaid(self.too_little(&quoted, left));
            }
            Err(e) => {
                tracing::error!("{e:#}");
                return End::Unpaid(Refusal::new(Reason::UnexpectedSettleError, "nothing can be recorded"));
            }
        }
        let end = self.0.settler.settle(job, plan).await;
        self.close(key, &end).await;
        if let End::Unknown(_) = end {
            return self.ask_until_known(key).await;
        }
        end
    }

    /// Records an end, if it is one.
    async fn close(&self, key: Hash, end: &End) {
        let paid = match end {
            End::Paid(transaction) => Some(*transaction),
            End::Unpaid(_) => None,
            End::Unknown(_) => return,
        };
        let written = self
            .0
            .books
            .write(move |accounts| (accounts.standing(&key) == Standing::Open).then_some(Record::Ended { key, paid }));
        if let Err(e) = written.await {
            // It stays open, and is asked about after the next start.
            tracing::error!("{e:#}");
        }
    }

    /// Asks the chain until it says how an open settlement ended.
    async fn ask_until_known(&self, key: Hash) -> End {
        loop {
            let open =
                self.0.books.read(|accounts| accounts.open().find(|(open, _)| **open == key).map(|(_, o)| o.clone()));
            let Some(open) = open else { return self.wait_for(key).await };
            match self.0.settler.look(&open.settlement).await {
                Ok(end @ (End::Paid(_) | End::Unpaid(_))) => {
                    self.close(key, &end).await;
                    return end;
                }
                Ok(End::Unknown(_)) => {}
                Err(e) => tracing::warn!(error = %chain_of(&e), "the chain does not say what became of a settlement"),
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
    }

    /// The end of a settlement that another request has opened.
    async fn wait_for(&self, key: Hash) -> End {
        loop {
            match self.0.books.read(|accounts| accounts.standing(&key)) {
                Standing::Paid(transaction) => return End::Paid(transaction),
                Standing::New => {
                    return End::Unpaid(Refusal::new(Reason::InvalidTransactionState, "it was not settled"));
                }
                Standing::Open => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }

    /// What a crash left open is asked about.
    fn resume(&self) {
        let open: Vec<Hash> = self.0.books.read(|accounts| accounts.open().map(|(key, _)| *key).collect());
        for key in open {
            let this = self.clone();
            tokio::spawn(async move { this.ask_until_known(key).await });
        }
    }
}
