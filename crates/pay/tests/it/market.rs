//! A seller with a real chain: every scheme at once, metered, streamed or not. What a node does with a journal and an
//! outbox between, this does at once.

use crate::chain::{CHAIN_ID, Chain, RELAY, TREASURY, call, word};
use alloy::primitives::{Address, U256, keccak256};
use alloy::signers::SignerSync;
use alloy::signers::local::PrivateKeySigner;
use alloy::sol_types::SolValue;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use pay::book::channels::{
    AskedDeposit, CallReservation, ChannelAsk, ChannelDecision, ChannelInput, ChannelLimits, ChannelOutput,
    ClaimPolicy, RefundAsk,
};
use pay::book::{AbortWhy, Decision, Delivery, Finish, Limits};
use pay::facilitator::api::Asked;
use pay::facilitator::multicall::{self, Call, MULTICALL3};
use pay::facilitator::remote::{Remote, Said};
use pay::meter::{Tariff, Tokens};
use pay::scheme::channel::client::deposit_of;
use pay::scheme::channel::server::{VerifiedVoucher, VoucherKind};
use pay::scheme::channel::{BATCH_SETTLEMENT, ChannelDomain, ChannelId, Deposit, facilitator};
use pay::scheme::exact::client::payment_of;
use pay::scheme::exact::{self, Domain, Hash, SettleExact};
use pay::scheme::signature;
use pay::scheme::upto::{self, Permit2Payment, Proxy};
use pay::seller::FRESH_ANSWER;
use pay::seller::offers::{TransferMethod, Unproven, UnprovenPayment};
use pay::wire::{PAYMENT_RESPONSE, PAYMENT_SIGNATURE, PaymentPayload, PaymentRequirements, Resource};
use pay::{
    Accepted, BookInput, BookOutput, ChannelBook, ChannelPrice, ChannelTerms, Prices, Reason, Refusal, RequestId,
    Seller, Terms, Usdc, Verified,
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use tokio::sync::{Notify, watch};

const TARIFF: Tariff = Tariff {
    call_min: Usdc(20),
    mtok_prompt: Usdc(3_000_000),
    mtok_cached: Usdc(1_500_000),
    mtok_completion: Usdc(7_300_000),
};
const PROMPT_TOKENS: u64 = 11;

/// What a call costs with an answer of so many tokens.
pub fn price_up(completion: u64) -> Usdc {
    TARIFF.price_up(Tokens { prompt: PROMPT_TOKENS, cached: 0, completion })
}

const ROUTE: &str = "POST /v1/chat/completions";

pub struct Market {
    pub url: String,
    pub inner: Arc<Inner>,
}

/// Where a seller breaks down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fails {
    BeforeSettlement,
    AfterSettlement,
}

/// How a call wants its answer.
struct Wants {
    is_stream: bool,
    fresh: bool,
    identifier: Option<Hash>,
}

pub struct Inner {
    pub chain: Arc<Chain>,
    pub seller: Seller,
    pub domain: ChannelDomain,
    pub terms: ChannelTerms,
    pub transfer: TransferMethod,
    pub schemes: Vec<&'static str>,
    /// Somebody else's facilitator.
    pub another: Mutex<Option<Arc<Remote>>>,
    pub desk: Mutex<Desk>,
    /// Streams that are over, by their end or because nobody listens any more, as the book knows.
    pub over: watch::Sender<u32>,
}

/// What the seller knows.
pub struct Desk {
    pub book: ChannelBook,
    /// The ledger of receipts: what each request was charged.
    pub receipts: BTreeMap<RequestId, Usdc>,
    pub answers: BTreeMap<RequestId, (Bytes, HeaderValue)>,
    /// Requests, with and without payment, and how many of the paid ones were put right.
    pub asked: u32,
    pub paid: u32,
    pub corrected: u32,
    /// Transactions sent, by what they are for.
    pub transactions: BTreeMap<&'static str, u32>,
    /// The next payment with a transaction of its own ends in a 500.
    pub fails: Option<Fails>,
    /// The next call that brings a deposit gets no answer after it is in; then this is over.
    pub hangs_after_deposit: bool,
    /// So many of the next vouchers are refused, because the price is another one now.
    pub reprices: u32,
    /// Most that goes back in one day, which does not end; `None`: whatever is asked for.
    pub refund_room: Option<Usdc>,
    /// Streams that begin now do not end before this is told, and give no more than so many words until then.
    pub held: Option<Arc<Notify>>,
    pub held_after: u64,
    /// The last authorisation seen.
    last: Option<Verified>,
    /// Room for a call that a stream's head does not know of yet.
    pub carry: bool,
    /// It hands EIP-2612 permissions in; of tokens that are paid by Permit2.
    pub takes_permits: bool,
    /// ERC-6492 factories that are called.
    pub factories: Vec<Address>,
    /// Permit2 nonces taken.
    used: BTreeSet<Hash>,
}

impl Market {
    /// Opens a market that offers these schemes, in tokens with EIP-3009 or only by Permit2.
    pub async fn open(schemes: &[&'static str], transfer: TransferMethod) -> Self {
        Self::open_on(Arc::new(Chain::start().await), TREASURY, schemes, transfer).await
    }

    /// Another seller on the same chain, of the same kind, paid to this address.
    pub async fn beside(&self, pay_to: Address) -> Self {
        self.chain().rpc("anvil_setBalance", json!([pay_to, "0xde0b6b3a7640000"])).await;
        Self::open_on(Arc::clone(&self.inner.chain), pay_to, &self.inner.schemes, self.inner.transfer).await
    }

    async fn open_on(chain: Arc<Chain>, pay_to: Address, schemes: &[&'static str], transfer: TransferMethod) -> Self {
        let (token, domain) = match transfer {
            TransferMethod::Eip3009 => (chain.usdc, ("USD Coin", "2")),
            TransferMethod::Permit2 => (chain.permit_token, ("Test Dollar", "1")),
        };
        let desk = Desk {
            book: ChannelBook::with_channels(Limits::default(), ChannelLimits::default()),
            receipts: BTreeMap::new(),
            answers: BTreeMap::new(),
            asked: 0,
            paid: 0,
            corrected: 0,
            transactions: BTreeMap::new(),
            fails: None,
            hangs_after_deposit: false,
            reprices: 0,
            refund_room: None,
            held: None,
            held_after: u64::MAX,
            last: None,
            carry: true,
            takes_permits: transfer == TransferMethod::Permit2,
            factories: Vec::new(),
            used: BTreeSet::new(),
        };
        let inner = Arc::new(Inner {
            chain,
            seller: Seller::new(CHAIN_ID, token, domain, pay_to),
            domain: ChannelDomain::new(CHAIN_ID),
            terms: ChannelTerms { receiver_authorizer: pay_to, withdraw_delay_secs: 900, deposit_min: Usdc(10_000) },
            transfer,
            schemes: schemes.to_vec(),
            another: Mutex::default(),
            desk: Mutex::new(desk),
            over: watch::Sender::new(0),
        });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        // GET too: the official client asks for a refund by it.
        let router = Router::new().route("/v1/chat/completions", get(handle).post(handle)).with_state(inner.clone());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { url, inner }
    }

    pub fn with<T>(&self, f: impl FnOnce(&mut Desk) -> T) -> T {
        f(&mut self.inner.desk.lock().unwrap())
    }

    pub fn chain(&self) -> &Chain {
        &self.inner.chain
    }

    pub fn token(&self) -> Address {
        self.inner.seller.asset
    }

    /// The payer of the last authorisation takes it back.
    pub async fn cancel_last(&self, payer: &PrivateKeySigner) {
        let nonce = self.with(|desk| desk.last.clone()).expect("there was one").nonce;
        let domain = Domain::new("USD Coin", "2", CHAIN_ID, self.token());
        let type_hash = keccak256("CancelAuthorization(address authorizer,bytes32 nonce)");
        let digest = domain.digest_of(keccak256((type_hash, payer.address(), nonce).abi_encode()));
        let signature = payer.sign_hash_sync(&digest).unwrap().as_bytes();
        let at = |i: usize| U256::from_be_slice(&signature[i..i + 32]);
        let words = [word(payer.address()), nonce.into(), U256::from(signature[64]), at(0), at(32)];
        let data = call("cancelAuthorization(address,bytes32,uint8,bytes32,bytes32)", &words);
        assert!(self.chain().send(RELAY, self.token(), &data).await.1);
    }

    /// Claims everything that is charged and has it paid out; transactions sent.
    pub async fn claim_and_settle(&self) -> u32 {
        let policy = ClaimPolicy { channel_max: Usdc(0), all_max: Usdc(0), row_min: Usdc(1), rows_max: 50 };
        let batches = self.with(|desk| desk.book.channels().due_claims(&policy, wall()));
        let mut sent = 0;
        for batch in batches {
            let rows = batch.iter().map(|row| (row.channel, row.total)).collect();
            self.inner.apply(ChannelInput::ClaimSent { rows });
            let data = facilitator::claim_call(&batch);
            assert!(self.inner.send("claim", self.inner.seller.pay_to, BATCH_SETTLEMENT, &data).await.1);
            sent += 1;
            for row in &batch {
                self.inner.see(&row.channel, &row.config).await;
            }
            let rows = batch.iter().map(|row| row.channel).collect();
            self.inner.apply(ChannelInput::ClaimDone { rows });
        }
        let settle = facilitator::settle_call(self.inner.seller.pay_to, self.token());
        assert!(self.inner.send("settle", RELAY, BATCH_SETTLEMENT, &settle).await.1);
        sent + 1
    }
}

pub fn wall() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
}

/// What the "model" says: its length depends on the question alone, its price on its length.
fn tokens_of(body: &[u8]) -> u64 {
    1 + u64::from(Sha256::digest(body)[0] % 16)
}

fn max_tokens(body: &Value) -> u64 {
    body["max_tokens"].as_u64().unwrap_or(16)
}

async fn handle(State(shop): State<Arc<Inner>>, headers: HeaderMap, body: Bytes) -> Response {
    shop.handle(headers, body).await
}

impl Inner {
    async fn handle(self: Arc<Self>, headers: HeaderMap, body: Bytes) -> Response {
        let asked: Value = serde_json::from_slice(&body).unwrap_or_default();
        let is_stream = asked["stream"] == json!(true);
        let ceiling = price_up(max_tokens(&asked));
        let is_offered = |scheme: &str| self.schemes.contains(&scheme);
        let (carry, takes_permits) = {
            let mut desk = self.desk.lock().unwrap();
            desk.asked += 1;
            desk.paid += u32::from(headers.contains_key(&PAYMENT_SIGNATURE));
            (if desk.carry { ceiling } else { Usdc::ZERO }, desk.takes_permits)
        };
        let resource = Resource {
            url: "/v1/chat/completions".into(),
            description: "a metered answer".into(),
            mime_type: "application/json".into(),
        };
        let terms = Terms {
            prices: Prices {
                channel: is_offered("batch-settlement").then_some(ChannelPrice { ceiling, carry }),
                upto: is_offered("upto").then_some(ceiling),
                exact: is_offered("exact").then_some(ceiling),
                exact_permit2: None,
            },
            resource: &resource,
            quoted_before: &|_, _| false,
            known: &|_, _, _| false,
            facilitator: RELAY,
            channels: &self.terms,
            transfer: self.transfer,
            takes_permits,
        };
        let taken = self.seller.accept_any(&headers, &terms, &self.domain, wall());
        let identifier = taken.as_ref().ok().and_then(|taken| taken.identifier);
        let answer = match taken.map(|taken| taken.payment) {
            Err(challenge) => Err(challenge),
            Ok(Accepted::Channel(paid)) => {
                let wants = Wants { is_stream, fresh: headers.contains_key(&FRESH_ANSWER), identifier };
                self.clone().on_channel(*paid, &terms, ceiling, &body, wants).await
            }
            Ok(Accepted::Permit2(paid)) => self.on_permit2(&paid, &terms, &body, is_stream).await,
            Ok(Accepted::Exact(paid)) => self.on_exact(&paid, &terms, &body, is_stream).await,
            Ok(Accepted::Unproven(payer)) => self.on_contract(*payer, &terms, &body, is_stream).await,
        };
        answer.unwrap_or_else(|challenge| {
            let status = StatusCode::from_u16(challenge.status()).unwrap();
            (status, HeaderMap::from_iter(challenge.headers()), challenge.body("r").to_string()).into_response()
        })
    }

    fn refuse(&self, terms: &Terms<'_>, reason: Reason, message: &str) -> Box<pay::Challenge> {
        Box::new(self.seller.refuse(terms, Refusal::new(reason, message)))
    }

    fn apply(&self, input: ChannelInput) {
        let mut desk = self.desk.lock().unwrap();
        for output in desk.book.apply(BookInput::Channel(input)) {
            if let BookOutput::Channel(ChannelOutput::Charged { request, amount, .. }) = output {
                assert!(desk.receipts.insert(request, amount).is_none(), "one receipt a request");
            }
        }
        desk.book.channels().check().unwrap();
    }

    async fn send(&self, what: &'static str, from: Address, to: Address, data: &[u8]) -> (Hash, bool) {
        *self.desk.lock().unwrap().transactions.entry(what).or_default() += 1;
        self.chain.send(from, to, data).await
    }

    /// Reads a channel and tells the book.
    pub async fn see(&self, id: &ChannelId, config: &pay::scheme::channel::ChannelConfig) {
        let state = self.chain.channel(id).await;
        self.apply(ChannelInput::Seen { channel: *id, config: config.clone(), state, at: wall() });
    }

    async fn on_channel(
        self: Arc<Self>,
        paid: VerifiedVoucher,
        terms: &Terms<'_>,
        ceiling: Usdc,
        body: &Bytes,
        Wants { is_stream, fresh, identifier }: Wants,
    ) -> Result<Response, Box<pay::Challenge>> {
        let id = paid.channel;
        let reprices = matches!(paid.kind, VoucherKind::Voucher) && {
            let left = &mut self.desk.lock().unwrap().reprices;
            std::mem::replace(left, left.saturating_sub(1)) > 0
        };
        if reprices {
            return Err(self.refuse(terms, Reason::PriceMoved, "the price moved"));
        }
        let deposit = match &paid.kind {
            VoucherKind::Refund { amount } => return self.on_refund(&paid, terms, *amount).await,
            VoucherKind::Voucher => None,
            VoucherKind::Deposit(deposit) => Some(deposit),
        };
        let ask = ChannelAsk {
            channel: id,
            max: paid.voucher.max,
            ceiling,
            deposit: deposit.map(|deposit| AskedDeposit { key: deposit.key(&id), amount: deposit.amount }),
            route: ROUTE.into(),
            body_digest: Sha256::digest(body).into(),
            fresh,
        };
        let named = |name: &Hash| {
            let desk = self.desk.lock().unwrap();
            match desk.book.named(&paid.config.payer, name, &ask.route, &ask.body_digest)? {
                Decision::Replay { request } => Some(desk.answers[&request].clone()),
                other => panic!("{other:?}"),
            }
        };
        if let Some((body, payment)) = identifier.as_ref().and_then(named) {
            return Ok(([(PAYMENT_RESPONSE, payment)], body).into_response());
        }
        let mut put_in = None;
        let request = loop {
            let mut decision = self.desk.lock().unwrap().book.channels().decide(&ask, wall());
            if decision == ChannelDecision::Look {
                let state = self.chain.channel(&id).await;
                let desk = || self.desk.lock().unwrap();
                decision = desk().book.channels().decide_seen(&ask, &paid.config, &state, wall());
                if matches!(decision, ChannelDecision::New { .. } | ChannelDecision::Deposit) {
                    let config = paid.config.clone();
                    self.apply(ChannelInput::Seen { channel: id, config, state, at: wall() });
                }
            }
            match decision {
                ChannelDecision::New { request } => break request,
                ChannelDecision::Deposit => {
                    let deposit = deposit.unwrap();
                    let (to, data) = self
                        .deposit(&paid, deposit)
                        .await
                        .map_err(|refusal| Box::new(self.seller.refuse(terms, refusal)))?;
                    let (key, amount) = (deposit.key(&id), deposit.amount);
                    self.apply(ChannelInput::DepositAsked { channel: id, deposit: deposit.clone(), at: wall() });
                    let before = self.chain.channel(&id).await.balance;
                    let offer = self.seller.requirements_of(("batch-settlement", self.transfer), paid.accepted, terms);
                    let payment = deposit_of(&paid.config, &id, deposit, &paid.voucher, &offer);
                    let said = self.ask_another(payment, offer).await;
                    let is_in = self.chain.channel(&id).await.balance > before;
                    let (tx, done) = match said {
                        Some(Said::Settled(tx)) if is_in => {
                            *self.desk.lock().unwrap().transactions.entry("deposit by another").or_default() += 1;
                            (tx, true)
                        }
                        _ if is_in => ([0; 32], true),
                        _ => self.send("deposit", RELAY, to, &data).await,
                    };
                    self.apply(ChannelInput::DepositSent { channel: id, tx });
                    self.see(&id, &paid.config).await;
                    if !done {
                        self.apply(ChannelInput::DepositFailed { channel: id, key });
                        return Err(self.refuse(terms, Reason::DepositFailed, "the deposit reverted"));
                    }
                    self.apply(ChannelInput::DepositDone { channel: id, key });
                    put_in = Some((amount, tx));
                    if std::mem::take(&mut self.desk.lock().unwrap().hangs_after_deposit) {
                        std::future::pending::<()>().await;
                    }
                }
                ChannelDecision::Corrective(reason) => {
                    let mut desk = self.desk.lock().unwrap();
                    let refusal = Refusal::new(reason, "the voucher does not cover what was charged and this call");
                    let Some(channel) = desk.book.channels().channel(&id) else {
                        return Err(Box::new(self.seller.refuse(terms, refusal)));
                    };
                    let corrected = self.seller.correct(terms, refusal, &id, channel);
                    desk.corrected += 1;
                    return Err(Box::new(corrected));
                }
                ChannelDecision::Refused(reason) => return Err(self.refuse(terms, reason, "see the name")),
                ChannelDecision::Replay { request } => {
                    let (body, payment) = self.desk.lock().unwrap().answers[&request].clone();
                    return Ok(([("payment-response", payment)], body).into_response());
                }
                ChannelDecision::Limited(limit) => match limit.reason() {
                    Some(reason) => return Err(self.refuse(terms, reason, &limit.to_string())),
                    None => return Ok((StatusCode::SERVICE_UNAVAILABLE, limit.to_string()).into_response()),
                },
                ChannelDecision::Look | ChannelDecision::Depositing | ChannelDecision::InFlight { .. } => {
                    return Err(self.refuse(terms, Reason::ChannelBusy, "try again in a moment"));
                }
            }
        };
        let reservation = CallReservation {
            request,
            channel: id,
            voucher: paid.voucher.clone(),
            accepted: paid.accepted,
            ceiling,
            route: ask.route,
            body_digest: ask.body_digest,
            identifier,
            prompt_tokens: 11,
            max_tokens: 16,
            run: String::new(),
            at: wall(),
        };
        self.apply(ChannelInput::Reserved(reservation));
        let tokens = tokens_of(body);
        if is_stream {
            let (_, payment) = self.told(&paid, put_in);
            let (held, held_after) = {
                let desk = self.desk.lock().unwrap();
                (desk.held.clone(), desk.held_after)
            };
            let stream = Streaming { shop: self, paid, request, tokens, held, held_after, given: 0, done: false };
            let body = Body::from_stream(futures::stream::unfold(stream, Streaming::next));
            let form = HeaderValue::from_static("text/event-stream");
            return Ok(([(header::CONTENT_TYPE, form), (PAYMENT_RESPONSE, payment)], body).into_response());
        }
        // Nobody knows yet whether it arrives.
        self.charge(request, tokens, Finish::Stop, false);
        let (_, payment) = self.told(&paid, put_in);
        let text = json!({ "choices": [{ "message": { "content": "word ".repeat(tokens as usize) } }] }).to_string();
        let mut desk = self.desk.lock().unwrap();
        desk.answers.insert(request, (Bytes::from(text.clone()), payment.clone()));
        Ok(([(PAYMENT_RESPONSE, payment)], text).into_response())
    }

    /// What to send for a deposit, once its simulation goes through.
    async fn deposit(&self, paid: &VerifiedVoucher, deposit: &Deposit) -> Result<(Address, Vec<u8>), Refusal> {
        let data = facilitator::deposit_call(&paid.config, deposit);
        if deposit.is_signed_by_key {
            let simulated = self.chain.simulate(RELAY, BATCH_SETTLEMENT, &data).await;
            let refusal = |why| Refusal::new(Reason::DepositSimulation, why);
            return simulated.map(|_| (BATCH_SETTLEMENT, data)).map_err(refusal);
        }
        let names = [Reason::DepositSignature, Reason::DepositFactoryNotAllowed, Reason::DepositSimulation];
        let call = Call { to: BATCH_SETTLEMENT, data: data.into() };
        self.for_payer(paid.config.payer.into(), call, deposit.signature(), names).await
    }

    fn told(&self, paid: &VerifiedVoucher, deposit: Option<(Usdc, Hash)>) -> (header::HeaderName, HeaderValue) {
        let desk = self.desk.lock().unwrap();
        let channel = desk.book.channels().channel(&paid.channel).unwrap();
        let told = channel.told(paid.voucher.max, paid.accepted);
        self.seller.channel_header(&paid.channel, channel, told, deposit)
    }

    fn charge(&self, request: RequestId, tokens: u64, finish: Finish, confirmed: bool) {
        let delivery = Delivery {
            cached_tokens: 0,
            completion_tokens: tokens.try_into().unwrap(),
            bytes: tokens * 5,
            output_digest: [0; 32],
            finish,
            at: wall(),
            confirmed,
        };
        let amount = price_up(tokens);
        self.apply(ChannelInput::Charged { request, amount, delivery });
    }

    async fn on_refund(
        &self,
        paid: &VerifiedVoucher,
        terms: &Terms<'_>,
        amount: Option<Usdc>,
    ) -> Result<Response, Box<pay::Challenge>> {
        let id = paid.channel;
        self.see(&id, &paid.config).await;
        let decided = self.desk.lock().unwrap().book.channels().decide_refund(&RefundAsk { channel: id, amount });
        let amount = decided.map_err(|reason| self.refuse(terms, reason, "no refund"))?;
        let left = self.desk.lock().unwrap().refund_room.map(|room| room.micro().checked_sub(amount.micro()));
        match left {
            Some(None) => return Err(self.refuse(terms, Reason::RefundOverDay, "hosts come first")),
            Some(Some(room)) => self.desk.lock().unwrap().refund_room = Some(Usdc(room)),
            None => {}
        }
        self.apply(ChannelInput::RefundAsked { channel: id, amount, at: wall() });
        let claim = self.desk.lock().unwrap().book.channels().claim_before_refund(&id);
        let mut calls: Vec<Vec<u8>> =
            claim.iter().map(|row| facilitator::claim_call(std::slice::from_ref(row))).collect();
        calls.push(facilitator::refund_call(&paid.config, amount));
        let (tx, done) =
            self.send("refund", self.seller.pay_to, BATCH_SETTLEMENT, &facilitator::all_calls(calls)).await;
        self.see(&id, &paid.config).await;
        self.apply(ChannelInput::RefundEnded { channel: id });
        if !done {
            return Err(self.refuse(terms, Reason::RefundFailed, "the refund reverted"));
        }
        let desk = self.desk.lock().unwrap();
        let channel = desk.book.channels().channel(&id).unwrap();
        let (name, payment) = self.seller.refund_header(&id, channel, amount, tx);
        Ok(([(name, payment)], "{}").into_response())
    }

    /// Served first, settled before the last byte: for the whole amount (`exact`) or for what was delivered (`upto`).
    async fn on_permit2(
        &self,
        paid: &Permit2Payment,
        terms: &Terms<'_>,
        body: &Bytes,
        is_stream: bool,
    ) -> Result<Response, Box<pay::Challenge>> {
        if !self.desk.lock().unwrap().used.insert(paid.nonce) {
            return Err(self.refuse(terms, Reason::Permit2Nonce, "used before"));
        }
        let fails = self.desk.lock().unwrap().fails.take();
        if fails == Some(Fails::BeforeSettlement) {
            return Ok(StatusCode::INTERNAL_SERVER_ERROR.into_response());
        }
        let to = paid.proxy.address();
        if let Err(why) = self.chain.simulate(RELAY, to, &upto::facilitator::settle_call(paid, paid.amount)).await {
            return Err(self.refuse(terms, Reason::Permit2Allowance, &why));
        }
        let tokens = tokens_of(body);
        let amount = match paid.proxy {
            Proxy::Exact => paid.amount,
            Proxy::Upto { .. } => price_up(tokens).min(paid.amount),
        };
        let (tx, done) = self.send("permit2", RELAY, to, &upto::facilitator::settle_call(paid, amount)).await;
        assert!(done, "it was simulated");
        let request = RequestId::of_payment(TransferMethod::Permit2, &paid.payer, &paid.nonce);
        if fails == Some(Fails::AfterSettlement) {
            return Ok(StatusCode::INTERNAL_SERVER_ERROR.into_response());
        }
        self.desk.lock().unwrap().receipts.insert(request, amount);
        Ok(self.settled(paid.payer.into(), amount, &tx, tokens, is_stream))
    }

    async fn on_exact(
        &self,
        paid: &Verified,
        terms: &Terms<'_>,
        body: &Bytes,
        is_stream: bool,
    ) -> Result<Response, Box<pay::Challenge>> {
        let fails = {
            let mut desk = self.desk.lock().unwrap();
            desk.last = Some(paid.clone());
            desk.fails.take()
        };
        if fails == Some(Fails::BeforeSettlement) {
            return Ok(StatusCode::INTERNAL_SERVER_ERROR.into_response());
        }
        let settlement = paid.settlement();
        let offer = self.seller.requirements(paid.value);
        let said = self.ask_another(payment_of(&settlement, &offer), offer).await;
        // Whatever it said, the chain is asked: settled once, whoever sends it.
        let tx = if self.is_used(&settlement).await {
            *self.desk.lock().unwrap().transactions.entry("exact by another").or_default() += 1;
            match said {
                Some(Said::Settled(tx)) => tx,
                _ => [0; 32],
            }
        } else {
            let data = exact::facilitator::transfer_call(&settlement, self.seller.pay_to);
            let (tx, done) = self.send("exact", RELAY, self.seller.asset, &data).await;
            if !done {
                return Err(self.refuse(terms, Reason::InvalidTransactionState, "the transfer reverted"));
            }
            tx
        };
        if fails == Some(Fails::AfterSettlement) {
            return Ok(StatusCode::INTERNAL_SERVER_ERROR.into_response());
        }
        let request = RequestId::of_payment(TransferMethod::Eip3009, &paid.payer.into_array(), &paid.nonce.0);
        self.desk.lock().unwrap().receipts.insert(request, paid.value);
        Ok(self.settled(paid.payer, paid.value, &tx, tokens_of(body), is_stream))
    }

    /// A payer that is a contract, or will be: the settlement is simulated, then settled, then served.
    async fn on_contract(
        &self,
        payer: Unproven,
        terms: &Terms<'_>,
        body: &Bytes,
        is_stream: bool,
    ) -> Result<Response, Box<pay::Challenge>> {
        let (owner, call, signature, amount, names) = match &payer.payment {
            UnprovenPayment::Exact(paid) => {
                let data = exact::facilitator::transfer_call(&paid.settlement(), self.seller.pay_to);
                let names = [Reason::Signature, Reason::FactoryNotAllowed, Reason::Simulation];
                (paid.payer, Call { to: self.seller.asset, data: data.into() }, &paid.signature, paid.value, names)
            }
            UnprovenPayment::Permit2(paid) => {
                let data = upto::facilitator::settle_call(paid, paid.amount);
                let names = [Reason::Permit2Signature, Reason::FactoryNotAllowed, Reason::Permit2Simulation];
                let call = Call { to: paid.proxy.address(), data: data.into() };
                (Address::from(paid.payer), call, &paid.signature, paid.amount, names)
            }
        };
        let sent = self.for_payer(owner, call, signature, names).await;
        let (to, data) = sent.map_err(|refusal| Box::new(self.seller.refuse(terms, refusal)))?;
        let (tx, done) = self.send("contract", RELAY, to, &data).await;
        if !done {
            return Err(self.refuse(terms, Reason::InvalidTransactionState, "it changed its mind"));
        }
        self.desk
            .lock()
            .unwrap()
            .receipts
            .insert(RequestId::of_payment(TransferMethod::Eip3009, &owner.into_array(), &tx), amount);
        let fails = self.desk.lock().unwrap().fails.take();
        if fails == Some(Fails::AfterSettlement) {
            return Ok(StatusCode::INTERNAL_SERVER_ERROR.into_response());
        }
        Ok(self.settled(owner, amount, &tx, tokens_of(body), is_stream))
    }

    /// What to send for a payer whose key did not sign, once its simulation goes through.
    async fn for_payer(
        &self,
        payer: Address,
        call: Call,
        signature: &[u8],
        [wrong, factory, fails]: [Reason; 3],
    ) -> Result<(Address, Vec<u8>), Refusal> {
        let code = self.chain.rpc("eth_getCode", json!([payer, "latest"])).await;
        let factories = self.desk.lock().unwrap().factories.clone();
        let first = signature::first(signature, code != "0x", &factories);
        let (to, data) = match first.map_err(|why| why.refusal(wrong, factory))? {
            None => (call.to, call.data),
            Some(made) => {
                let making = Call { to: made.factory, data: made.calldata };
                (MULTICALL3, multicall::all(vec![making, call]))
            }
        };
        match self.chain.simulate(RELAY, to, &data).await {
            Ok(_) => Ok((to, data.to_vec())),
            Err(why) => Err(Refusal::new(fails, why)),
        }
    }

    /// Asks the external facilitator, if there is one in good health, to settle.
    async fn ask_another(&self, payment: PaymentPayload, requirements: PaymentRequirements) -> Option<Said> {
        let another = self.another.lock().unwrap().clone().filter(|another| another.is_healthy())?;
        Some(another.settle(&Asked { payment, requirements }).await)
    }

    async fn is_used(&self, settlement: &SettleExact) -> bool {
        let nonce = U256::from_be_bytes(settlement.nonce);
        let state = call("authorizationState(address,bytes32)", &[word(settlement.payer.into()), nonce]);
        self.chain.number(self.seller.asset, &state).await == 1
    }

    fn settled(&self, payer: Address, amount: Usdc, tx: &Hash, tokens: u64, is_stream: bool) -> Response {
        let (_, payment) = self.seller.settled_header(payer, amount, tx);
        let words = "word ".repeat(tokens as usize);
        if is_stream {
            let chunk = json!({ "choices": [{ "index": 0, "delta": { "content": words } }] });
            let form = HeaderValue::from_static("text/event-stream");
            let text = format!("data: {chunk}\n\ndata: [DONE]\n\n");
            return ([(header::CONTENT_TYPE, form), (PAYMENT_RESPONSE, payment)], text).into_response();
        }
        let text = json!({ "choices": [{ "message": { "content": words } }] }).to_string();
        ([(PAYMENT_RESPONSE, payment)], text).into_response()
    }
}

/// An answer on its way. Dropped before its end, what was given is charged.
struct Streaming {
    shop: Arc<Inner>,
    paid: VerifiedVoucher,
    request: RequestId,
    tokens: u64,
    held: Option<Arc<Notify>>,
    held_after: u64,
    given: u64,
    done: bool,
}

impl Streaming {
    async fn next(mut self) -> Option<(Result<Bytes, std::io::Error>, Self)> {
        if self.done {
            return None;
        }
        if self.given >= self.tokens.min(self.held_after)
            && let Some(held) = self.held.take()
        {
            held.notified().await;
        }
        if self.given < self.tokens {
            self.given += 1;
            let chunk = json!({ "choices": [{ "index": 0, "delta": { "content": "word " } }] });
            return Some((Ok(Bytes::from(format!("data: {chunk}\n\n"))), self));
        }
        // Charged before the last frame leaves: whoever has read it can rely on it.
        self.done = true;
        self.shop.charge(self.request, self.tokens, Finish::Stop, true);
        let last = {
            let desk = self.shop.desk.lock().unwrap();
            let channel = desk.book.channels().channel(&self.paid.channel).unwrap();
            json!({ "choices": [], "x402": {
                "request": self.request.to_string(),
                "charged": desk.receipts[&self.request].micro().to_string(),
                "chargedCumulativeAmount": channel.charged.micro().to_string(),
            } })
        };
        // Of a stream only the end is kept: enough to tell that it is the same one.
        let last = Bytes::from(format!("data: {last}\n\ndata: [DONE]\n\n"));
        let (_, payment) = self.shop.told(&self.paid, None);
        self.shop.desk.lock().unwrap().answers.insert(self.request, (last.clone(), payment));
        Some((Ok(last), self))
    }
}

impl Drop for Streaming {
    fn drop(&mut self) {
        match self.given {
            _ if self.done => {}
            0 => self.shop.apply(ChannelInput::Aborted { request: self.request, why: AbortWhy::HungUp }),
            given => self.shop.charge(self.request, given, Finish::HungUp, false),
        }
        self.shop.over.send_modify(|over| *over += 1);
    }
}
