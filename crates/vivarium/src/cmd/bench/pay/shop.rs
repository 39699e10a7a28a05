//! A shop without a model, for figures of the payment layer alone: `pay`'s seller and book over a real journal and a
//! development chain. It does for a paid request what a node does, in the same order, with nothing to compute between.

use super::super::report::cpu_time;
use super::devchain::{CHAIN_ID, DevChain, RECEIVER, RELAY};
use alloy::primitives::{Address, Bytes as AbiBytes, U256};
use alloy::sol_types::SolCall;
use anyhow::{Context, Result, ensure};
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::serve::ListenerExt;
use axum::{BoxError, Router};
use chain::bindings::TestUSDC;
use futures::StreamExt;
use journal::{Journal, Lsn, Options};
use pay::book::channels::{
    AskedDeposit, CallReservation, ChannelAsk, ChannelDecision, ChannelInput, ChannelLimits, ClaimPolicy,
};
use pay::book::{Ask, Delivery, Finish, Limits, Reservation, Timing};
use pay::scheme::channel::server::{VerifiedVoucher, VoucherKind};
use pay::scheme::channel::{BATCH_SETTLEMENT, ChannelDomain, facilitator};
use pay::scheme::upto::{self, Permit2Payment};
use pay::seller::offers::TransferMethod;
use pay::wire::{PAYMENT_RESPONSE, PAYMENT_SIGNATURE, Resource};
use pay::{
    Accepted, BookInput, Challenge, ChannelBook, ChannelPrice, ChannelTerms, Decision, Prices, Reason, Refusal,
    RequestId, Seller, Settle, Terms, Usdc, Verified,
};
use sha2::{Digest, Sha256};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::net::TcpListener;
use tokio::sync::watch;

/// What a call may cost, and costs.
pub const PRICE: Usdc = Usdc(100);
pub const PAID: &str = "/v1/paid";
pub const FREE: &str = "/v1/free";
const TOKEN: &str = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"word\"}}]}\n\n";
const END: &str = "data: [DONE]\n\n";
/// Rows in one claim.
pub const CLAIM_ROWS: u32 = 50;

pub struct Shop {
    pub url: String,
    inner: Arc<Inner>,
    server: tokio::task::JoinHandle<()>,
}

struct Inner {
    chain: Arc<DevChain>,
    seller: Seller,
    domain: ChannelDomain,
    channels: ChannelTerms,
    resource: Resource,
    desk: Mutex<Desk>,
    /// The last durable record.
    durable: watch::Receiver<Lsn>,
}

struct Desk {
    book: ChannelBook,
    journal: Journal,
    /// From a reservation's append to its being durable.
    commits: Vec<Duration>,
}

impl Desk {
    fn apply_channel(&mut self, input: ChannelInput) -> Lsn {
        self.apply(BookInput::Channel(input))
    }

    /// Folds an input and appends its record; the LSN to wait for.
    fn apply(&mut self, input: BookInput) -> Lsn {
        let payload = borsh::to_vec(&input).expect("a Vec takes all bytes");
        let outputs = borsh::to_vec(&self.book.apply(input)).expect("a Vec takes all bytes");
        self.journal.append(1, now(), Sha256::digest(outputs).into(), &payload).expect("the disk takes it")
    }
}

pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

impl Shop {
    /// Opens on a free port, with its journal in the empty folder `dir`.
    pub async fn open(chain: Arc<DevChain>, dir: &Path) -> Result<Self> {
        let (tell, durable) = watch::channel(0);
        let on_durable = move |lsn: journal::Result<Lsn>| {
            tell.send_replace(lsn.expect("the disk takes it"));
        };
        let journal = Journal::create(dir, Options::default(), Box::new(on_durable))?;
        let limits = ChannelLimits { open_per_channel_max: u32::MAX, calls_max: u32::MAX, ..ChannelLimits::default() };
        let all = Limits { open_per_payer_max: u32::MAX, kept_max: u32::MAX, ..Limits::default() };
        let book = ChannelBook::with_channels(all, limits);
        let inner = Arc::new(Inner {
            seller: Seller::new(CHAIN_ID, chain.usdc, ("USD Coin", "2"), RECEIVER),
            domain: ChannelDomain::new(CHAIN_ID),
            channels: ChannelTerms {
                receiver_authorizer: RECEIVER,
                withdraw_delay_secs: 900,
                deposit_min: ChannelLimits::default().deposit_min,
            },
            resource: Resource {
                url: PAID.to_owned(),
                description: "a word".to_owned(),
                mime_type: "text/event-stream".to_owned(),
            },
            desk: Mutex::new(Desk { book, journal, commits: Vec::new() }),
            durable,
            chain,
        });
        let app = Router::new().route(PAID, post(paid)).route(FREE, post(free)).with_state(Arc::clone(&inner));
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        // As a node does.
        let listener = listener.tap_io(net::send_at_once);
        let server = tokio::spawn(async move { axum::serve(listener, app).await.expect("it serves") });
        Ok(Self { url, inner, server })
    }

    /// How long reservations took to become durable since the last time this was asked.
    pub fn take_commits(&self) -> Vec<Duration> {
        std::mem::take(&mut self.inner.desk().commits)
    }

    /// Records that were appended.
    pub fn records(&self) -> Lsn {
        self.inner.desk().journal.last_lsn()
    }

    /// CPU time of so many requests that are refused, without the HTTP around them.
    pub async fn refused(&self, requests: u32, payment: Option<&str>) -> Result<Duration> {
        let mut headers = HeaderMap::new();
        if let Some(payment) = payment {
            headers.insert(PAYMENT_SIGNATURE, HeaderValue::try_from(payment)?);
        }
        let cpu = cpu_time();
        for _ in 0..requests {
            let answer = paid(State(Arc::clone(&self.inner)), headers.clone(), Bytes::from_static(b"{}")).await;
            ensure!(answer.status() == StatusCode::PAYMENT_REQUIRED, "answered {}", answer.status());
        }
        Ok(cpu_time().saturating_sub(cpu))
    }

    /// CPU time of calls that pay by voucher, from the parsed head to the answer's last byte, without the HTTP around them.
    pub async fn sold(&self, payments: Vec<String>, at_once: usize) -> Result<Duration> {
        let call = |(turn, payment): (usize, String)| async move {
            let mut headers = HeaderMap::new();
            headers.insert(PAYMENT_SIGNATURE, HeaderValue::try_from(payment)?);
            let body = Bytes::from(format!("{{\"turn\":{turn}}}"));
            let answer = paid(State(Arc::clone(&self.inner)), headers, body).await;
            ensure!(answer.status() == StatusCode::OK, "answered {}", answer.status());
            axum::body::to_bytes(answer.into_body(), 1 << 16).await.context("an answer that breaks off")
        };
        let cpu = cpu_time();
        let mut calls = futures::stream::iter(payments.into_iter().enumerate()).map(call).buffer_unordered(at_once);
        while let Some(answer) = calls.next().await {
            answer?;
        }
        Ok(cpu_time().saturating_sub(cpu))
    }

    /// Claims all that is charged and has it paid out. The book must then agree with the chain.
    pub async fn claim_and_settle(&self) -> Result<()> {
        let policy =
            ClaimPolicy { channel_max: Usdc::ZERO, all_max: Usdc::ZERO, row_min: Usdc(1), rows_max: CLAIM_ROWS };
        let chain = &self.inner.chain;
        let before = chain.balance(RECEIVER).await?;
        let batches = self.inner.desk().book.channels().due_claims(&policy, now());
        let owed: Usdc = self.inner.desk().book.channels().totals().unclaimed;
        for batch in batches {
            let claim = facilitator::claim_call(&batch);
            ensure!(chain.send(RECEIVER, BATCH_SETTLEMENT, claim).await?.is_done, "a claim reverted");
            for row in &batch {
                let state = chain.channel(&row.channel).await?;
                let (channel, config) = (row.channel, row.config.clone());
                self.inner.desk().apply_channel(ChannelInput::Seen { channel, config, state, at: now() });
            }
        }
        let settle = facilitator::settle_call(RECEIVER, chain.usdc);
        ensure!(chain.send(RELAY, BATCH_SETTLEMENT, settle).await?.is_done, "the settlement reverted");
        let got = chain.balance(RECEIVER).await?.saturating_sub(before);
        ensure!(got == owed, "charged {owed}, paid out {got}");
        self.inner.desk().book.channels().check().map_err(|e| anyhow::anyhow!("the book does not balance: {e:?}"))
    }

    pub fn close(self) {
        self.server.abort();
    }
}

async fn free(_: Bytes) -> Response {
    stream([Ok(Bytes::from_static(TOKEN.as_bytes())), Ok(Bytes::from_static(END.as_bytes()))])
}

fn stream(frames: [Result<Bytes, std::convert::Infallible>; 2]) -> Response {
    let form = [(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"))];
    (form, Body::from_stream(futures::stream::iter(frames))).into_response()
}

async fn paid(State(shop): State<Arc<Inner>>, headers: HeaderMap, body: Bytes) -> Response {
    let answer = shop
        .sell(&headers, &body)
        .await
        .unwrap_or_else(|e| Err(Box::new(shop.refuse(Refusal::new(Reason::UnexpectedVerifyError, format!("{e:#}"))))));
    answer.unwrap_or_else(|challenge| {
        let status = StatusCode::from_u16(challenge.status()).unwrap_or(StatusCode::PAYMENT_REQUIRED);
        (status, HeaderMap::from_iter(challenge.headers()), challenge.body("r").to_string()).into_response()
    })
}

impl Inner {
    fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn terms<T>(&self, then: impl FnOnce(&Terms<'_>) -> T) -> T {
        then(&Terms {
            prices: Prices {
                channel: Some(ChannelPrice { ceiling: PRICE, carry: Usdc::ZERO }),
                upto: Some(PRICE),
                exact: Some(PRICE),
                exact_permit2: None,
            },
            resource: &self.resource,
            quoted_before: &|_, _| false,
            known: &|method, payer, nonce| self.desk().book.request_of(method, payer, nonce).is_some(),
            facilitator: RELAY,
            channels: &self.channels,
            transfer: TransferMethod::Eip3009,
            takes_permits: false,
        })
    }

    fn refuse(&self, refusal: Refusal) -> Challenge {
        self.terms(|terms| self.seller.refuse(terms, refusal))
    }

    async fn sell(self: &Arc<Self>, headers: &HeaderMap, body: &Bytes) -> Result<Result<Response, Box<Challenge>>> {
        let taken = self.terms(|terms| self.seller.accept_any(headers, terms, &self.domain, now()));
        match taken.map(|taken| taken.payment) {
            Err(challenge) => Ok(Err(challenge)),
            Ok(Accepted::Channel(paid)) => self.on_channel(*paid, body).await,
            Ok(Accepted::Exact(paid)) => self.on_exact(&paid, body).await,
            Ok(Accepted::Permit2(payment)) => self.on_upto(payment, body).await,
            Ok(Accepted::Unproven(_)) => {
                Ok(Err(Box::new(self.refuse(Refusal::new(Reason::InvalidScheme, "not offered")))))
            }
        }
    }

    async fn until_durable(&self, lsn: Lsn) -> Result<()> {
        self.durable.clone().wait_for(|durable| *durable >= lsn).await.context("the journal ended")?;
        Ok(())
    }

    /// The first byte waits for this.
    async fn until_reserved(&self, lsn: Lsn) -> Result<()> {
        let since = Instant::now();
        self.until_durable(lsn).await?;
        self.desk().commits.push(since.elapsed());
        Ok(())
    }

    async fn on_channel(
        self: &Arc<Self>,
        paid: VerifiedVoucher,
        body: &Bytes,
    ) -> Result<Result<Response, Box<Challenge>>> {
        let id = paid.channel;
        let deposit = match &paid.kind {
            VoucherKind::Deposit(deposit) => Some(deposit.clone()),
            VoucherKind::Voucher => None,
            VoucherKind::Refund { .. } => {
                return Ok(Err(Box::new(
                    self.refuse(Refusal::new(Reason::RefundFailed, "this shop gives nothing back")),
                )));
            }
        };
        let ask = ChannelAsk {
            channel: id,
            max: paid.voucher.max,
            ceiling: PRICE,
            deposit: deposit.as_ref().map(|deposit| AskedDeposit { key: deposit.key(&id), amount: deposit.amount }),
            route: PAID.to_owned(),
            body_digest: Sha256::digest(body).into(),
            fresh: false,
        };
        let mut seen = None;
        let (request, lsn) = loop {
            let decision = {
                let mut desk = self.desk();
                let decision = match seen.take() {
                    None => desk.book.channels().decide(&ask, now()),
                    Some(state) => {
                        let decision = desk.book.channels().decide_seen(&ask, &paid.config, &state, now());
                        if matches!(decision, ChannelDecision::New { .. } | ChannelDecision::Deposit) {
                            let config = paid.config.clone();
                            desk.apply_channel(ChannelInput::Seen { channel: id, config, state, at: now() });
                        }
                        decision
                    }
                };
                if let ChannelDecision::New { request } = decision {
                    let reservation = reservation(request, &paid, &ask);
                    break (request, desk.apply_channel(ChannelInput::Reserved(reservation)));
                }
                decision
            };
            match (decision, &deposit) {
                (ChannelDecision::Look, _) => seen = Some(self.chain.channel(&id).await?),
                (ChannelDecision::Deposit, Some(deposit)) => {
                    let asked = ChannelInput::DepositAsked { channel: id, deposit: deposit.clone(), at: now() };
                    let lsn = self.desk().apply_channel(asked);
                    self.until_durable(lsn).await?;
                    let call = facilitator::deposit_call(&paid.config, deposit);
                    let mined = self.chain.send(RELAY, BATCH_SETTLEMENT, call).await?;
                    ensure!(mined.is_done, "a deposit reverted");
                    let state = self.chain.channel(&id).await?;
                    let (config, key) = (paid.config.clone(), deposit.key(&id));
                    let mut desk = self.desk();
                    desk.apply_channel(ChannelInput::DepositSent { channel: id, tx: mined.hash.0 });
                    desk.apply_channel(ChannelInput::Seen { channel: id, config, state, at: now() });
                    desk.apply_channel(ChannelInput::DepositDone { channel: id, key });
                }
                (ChannelDecision::Corrective(reason), _) => {
                    let desk = self.desk();
                    let channel = desk.book.channels().channel(&id).context("it was just decided on")?.clone();
                    drop(desk);
                    let refusal = Refusal::new(reason, "the voucher does not cover what was charged and this call");
                    let answer = self.terms(|terms| self.seller.correct(terms, refusal, &id, &channel));
                    return Ok(Err(Box::new(answer)));
                }
                (other, _) => {
                    let refusal = Refusal::new(Reason::ChannelBusy, format!("not now: {other:?}"));
                    return Ok(Err(Box::new(self.refuse(refusal))));
                }
            }
        };
        self.until_reserved(lsn).await?;
        let told = {
            let desk = self.desk();
            let channel = desk.book.channels().channel(&id).context("it was just reserved on")?;
            self.seller.channel_header(&id, channel, channel.told(paid.voucher.max, paid.accepted), None)
        };
        let charged = BookInput::Channel(ChannelInput::Charged { request, amount: PRICE, delivery: delivery() });
        Ok(Ok(self.answer(told, move |_| async move { Ok(charged) })))
    }

    /// Reserves a payment that has a transaction of its own.
    async fn reserve_alone(
        &self,
        settlement: Settle,
        timing: Timing,
        body: &Bytes,
    ) -> Result<Result<RequestId, Box<Challenge>>> {
        let (method, payer, nonce) = (settlement.method(), settlement.payer(), settlement.nonce());
        let body_digest = Sha256::digest(body).into();
        let ask = Ask { method, payer, nonce, route: PAID.to_owned(), body_digest, identifier: None, fresh: true };
        let request = RequestId::of_payment(method, &payer, &nonce);
        let lsn = {
            let mut desk = self.desk();
            if desk.book.decide(&ask, now()) != Decision::New {
                let refusal = Refusal::new(Reason::NonceUsed, "this authorisation was used");
                drop(desk);
                return Ok(Err(Box::new(self.refuse(refusal))));
            }
            desk.apply(BookInput::Reserved(Reservation {
                request,
                settlement,
                timing,
                route: ask.route,
                body_digest,
                identifier: None,
                prompt_tokens: 1,
                max_tokens: 1,
                run: String::new(),
                at: now(),
            }))
        };
        self.until_reserved(lsn).await?;
        Ok(Ok(request))
    }

    /// Sends what settles a payment, and records that it is in.
    async fn settle(&self, request: RequestId, terms: &Settle, (to, call): (Address, Vec<u8>)) -> Result<()> {
        self.desk().apply(BookInput::SettleSent { request });
        let mined = self.chain.send(RELAY, to, call).await?;
        ensure!(mined.is_done, "a settlement reverted");
        let block = self.chain.height().await?;
        self.desk().apply(BookInput::Settled {
            method: terms.method(),
            payer: terms.payer(),
            nonce: terms.nonce(),
            amount: PRICE,
            tx: mined.hash.0,
            block,
            recorded: matches!(terms, Settle::Exact(_)),
        });
        Ok(())
    }

    /// A payer who is known: the first byte waits for the disk, the last one for the chain.
    async fn on_exact(self: &Arc<Self>, paid: &Verified, body: &Bytes) -> Result<Result<Response, Box<Challenge>>> {
        let terms = Settle::Exact(paid.settlement());
        let request = match self.reserve_alone(terms.clone(), Timing::AtOnce, body).await? {
            Ok(request) => request,
            Err(challenge) => return Ok(Err(challenge)),
        };
        let told = self.seller.settled_header(paid.payer, paid.value, &[0; 32]);
        let transfer = TestUSDC::transferWithAuthorization_0Call {
            from: paid.payer,
            to: RECEIVER,
            value: U256::from(paid.value.micro()),
            validAfter: U256::from(paid.valid_after),
            validBefore: U256::from(paid.valid_before),
            nonce: paid.nonce,
            signature: AbiBytes::copy_from_slice(&paid.signature),
        };
        let call = transfer.abi_encode();
        let settle = move |shop: Arc<Self>| async move {
            shop.settle(request, &terms, (shop.chain.usdc, call)).await?;
            Ok(BookInput::Delivered { request, delivery: delivery(), amount: PRICE })
        };
        Ok(Ok(self.answer(told, settle)))
    }

    /// The same by Permit2, settled for what was made, once it is.
    async fn on_upto(
        self: &Arc<Self>,
        payment: Permit2Payment,
        body: &Bytes,
    ) -> Result<Result<Response, Box<Challenge>>> {
        let terms = Settle::Permit2(payment.clone());
        let request = match self.reserve_alone(terms.clone(), Timing::OnDelivery, body).await? {
            Ok(request) => request,
            Err(challenge) => return Ok(Err(challenge)),
        };
        let told = self.seller.settled_header(payment.payer.into(), payment.amount, &[0; 32]);
        let call = (payment.proxy.address(), upto::facilitator::settle_call(&payment, PRICE));
        let settle = move |shop: Arc<Self>| async move {
            let delivered = BookInput::Delivered { request, delivery: delivery(), amount: PRICE };
            shop.desk().apply(delivered.clone());
            shop.settle(request, &terms, call).await?;
            Ok(delivered)
        };
        Ok(Ok(self.answer(told, settle)))
    }

    /// A word, then the end: it leaves when what `end` says is durable.
    fn answer<F: Future<Output = Result<BookInput>> + Send + 'static>(
        self: &Arc<Self>,
        (name, value): (header::HeaderName, HeaderValue),
        end: impl FnOnce(Arc<Self>) -> F + Send + 'static,
    ) -> Response {
        debug_assert_eq!(name, PAYMENT_RESPONSE);
        let shop = Arc::clone(self);
        let last = async move {
            let input = end(Arc::clone(&shop)).await?;
            let lsn = shop.desk().apply(input);
            shop.until_durable(lsn).await?;
            Ok::<_, BoxError>(Bytes::from_static(END.as_bytes()))
        };
        let first = async { Ok::<_, BoxError>(Bytes::from_static(TOKEN.as_bytes())) };
        let body = Body::from_stream(futures::stream::once(first).chain(futures::stream::once(last)));
        let form = (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
        ([form, (name, value)], body).into_response()
    }
}

fn reservation(request: RequestId, paid: &VerifiedVoucher, ask: &ChannelAsk) -> CallReservation {
    CallReservation {
        request,
        channel: ask.channel,
        voucher: paid.voucher.clone(),
        accepted: paid.accepted,
        ceiling: PRICE,
        route: ask.route.clone(),
        body_digest: ask.body_digest,
        identifier: None,
        prompt_tokens: 1,
        max_tokens: 1,
        run: String::new(),
        at: now(),
    }
}

fn delivery() -> Delivery {
    Delivery {
        cached_tokens: 0,
        completion_tokens: 1,
        bytes: TOKEN.len() as u64,
        output_digest: [0; 32],
        finish: Finish::Stop,
        at: now(),
        confirmed: true,
    }
}
