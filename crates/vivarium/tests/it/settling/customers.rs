//! Customers and the chain that they pay on.

use crate::world::{self, World, get_text, program, project};
use alloy::primitives::{Address, B256, Bytes, U256, keccak256};
use alloy::signers::SignerSync;
use alloy::signers::local::PrivateKeySigner;
use alloy::sol_types::{SolCall, SolEvent, SolValue};
use chain::alloy::eips::BlockId;
use chain::alloy::rpc::types::{Filter, Log, TransactionReceipt};
use chain::bindings::TestUSDC;
use chain::deploy::fund_eth;
use chain::{Chain, Outcome, Sender, Tx, usdc};
use http::{HeaderMap, HeaderName, Method};
use pay::buyer::Buyer;
use pay::scheme::channel::{self, CHANNEL, ChannelDomain};
use pay::scheme::exact::client::sign;
use pay::scheme::exact::facilitator::transfer_call;
use pay::scheme::exact::server::verify;
use pay::scheme::exact::{Domain, EXACT};
use pay::scheme::permit2::PERMIT2;
use pay::scheme::signature::Counterfactual;
use pay::scheme::upto::{Permit2Domain, Permit2Payment, Proxy, UPTO};
use pay::seller::identifier::IDEMPOTENCY_KEY;
use pay::wire::{PAYMENT_REQUIRED, PAYMENT_RESPONSE, PAYMENT_SIGNATURE, decode_header};
use pay::wire::{PaymentPayload, PaymentRequired, PaymentRequirements};
use pay::{RequestId, SettleExact, TransferMethod, Usdc};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Child;
use tokio::runtime::Runtime;
use vivarium::world::crowd::policy;

const ETHER: u128 = 1_000_000_000_000_000_000;

/// A world's chain and its people.
pub struct Town {
    runtime: Runtime,
    rpc_url: String,
    chain_id: u64,
    market: Address,
    /// Of the world's first agent.
    pub treasury: Address,
    token: Address,
    pub model: String,
}

/// One payment as the token tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Paid {
    pub tx: B256,
    /// Micro-USDC.
    pub amount: u128,
}

/// A call that was paid by an authorisation that we know.
pub struct Bought {
    pub status: u16,
    /// The body, and `payment`: the decoded PAYMENT-RESPONSE, or null.
    pub answer: Value,
    /// PAYMENT-SIGNATURE.
    pub header: String,
    terms: SettleExact,
}

/// What was answered.
pub struct Said {
    pub status: u16,
    /// What PAYMENT-REQUIRED says is wrong.
    pub offered: Option<String>,
    /// The body, and `payment`: the decoded PAYMENT-RESPONSE, or null.
    pub body: Value,
}

impl Bought {
    pub fn request(&self) -> &str {
        self.answer["x402"]["request"].as_str().expect("a request id")
    }
}

impl Town {
    /// `agent`: what it says of itself.
    pub fn of(world: &World, agent: &Value) -> Self {
        let file = world.world();
        let address = |name: &str| file[name].as_str().and_then(|a| a.parse().ok()).expect("an address");
        Self {
            runtime: Runtime::new().expect("a runtime"),
            rpc_url: file["rpc_url"].as_str().expect("a URL").to_owned(),
            chain_id: file["chain_id"].as_u64().expect("a number"),
            market: address("lease_market"),
            treasury: address("treasury"),
            token: address("usdc"),
            model: agent["model"].as_str().expect("a name").to_owned(),
        }
    }

    /// One connection a piece of work: it belongs to the runtime's task that made it.
    fn chain<T>(&self, work: impl AsyncFnOnce(Chain) -> T) -> T {
        self.runtime.block_on(async {
            let chain = Chain::connect(&self.rpc_url, self.chain_id).expect("a chain");
            work(chain).await
        })
    }

    /// Everything that `payer` paid the first agent.
    pub fn of_payer(&self, payer: &PrivateKeySigner) -> Vec<Paid> {
        self.paid(payer.address(), self.treasury)
    }

    /// Everything that `payer` paid `payee`, in the order of the chain.
    pub fn paid(&self, payer: Address, payee: Address) -> Vec<Paid> {
        let filter = Filter::new()
            .from_block(0)
            .event_signature(TestUSDC::Transfer::SIGNATURE_HASH)
            .address(self.token)
            .topic1(payer.into_word())
            .topic2(payee.into_word());
        let logs: Vec<Log> = self.chain(async |chain| chain.request("eth_getLogs", (filter,)).await.expect("logs"));
        let amount = |log: &Log| U256::from_be_slice(log.data().data.as_ref()).to::<u128>();
        logs.iter().map(|log| Paid { tx: log.transaction_hash.expect("mined"), amount: amount(log) }).collect()
    }

    pub fn sender_of(&self, tx: B256) -> Address {
        let receipt: Option<TransactionReceipt> =
            self.chain(async |chain| chain.request("eth_getTransactionReceipt", (tx,)).await.expect("an answer"));
        receipt.expect("mined").from
    }

    pub fn has_code(&self, at: Address) -> bool {
        let code: Bytes =
            self.chain(async |chain| chain.request("eth_getCode", (at, BlockId::latest())).await.expect("an answer"));
        !code.is_empty()
    }

    /// Gives the relay of an agent gas, once it has one. Anybody may.
    pub fn fund_relay(&self, treasury: Address) -> Option<()> {
        self.chain(async |chain| world::fund_relay(&chain, treasury).await)
    }

    /// Where the node of a lease serves.
    pub fn place_of(&self, lease: u64) -> String {
        self.chain(async |chain| chain.market(self.market).lease(lease).await.expect("a lease").lease.endpoint)
    }

    /// Sends as somebody with ether and no other part in this.
    fn send(&self, tx: Tx) -> Outcome {
        let key = PrivateKeySigner::from_bytes(&keccak256("somebody")).expect("in range");
        self.chain(async |chain| {
            fund_eth(&chain, key.address(), ETHER).await.expect("a development chain");
            Sender::spawn(chain, key, 1).submit(tx).await
        })
    }

    /// A new customer with money.
    pub fn stranger(&self, name: &str) -> PrivateKeySigner {
        let key = PrivateKeySigner::from_bytes(&keccak256(name)).expect("in range");
        self.mint(key.address(), 10_000_000);
        key
    }

    pub fn mint(&self, to: Address, amount: u128) {
        let minted = self.send(Tx::call(self.token, usdc::calls::mint(to, amount), "mint"));
        assert!(matches!(minted, Outcome::Done { .. }), "{minted:?}");
    }

    /// A contract of `contracts/abi` without arguments.
    pub fn deploy(&self, name: &str) -> Address {
        let file = project().join(format!("contracts/abi/{name}.json"));
        let artifact: Value = serde_json::from_slice(&std::fs::read(file).expect("its code")).expect("JSON");
        let code: Bytes = artifact["bytecode"].as_str().expect("bytecode").parse().expect("hex");
        let deployed = self.send(Tx { to: None, data: code, value: 0, gas: None, label: "deploy" });
        let Outcome::Done { tx_hash, .. } = deployed else { panic!("{name}: {deployed:?}") };
        let receipt: Option<TransactionReceipt> =
            self.chain(async |chain| chain.request("eth_getTransactionReceipt", (tx_hash,)).await.expect("an answer"));
        receipt.and_then(|receipt| receipt.contract_address).expect("a contract")
    }

    /// The payer takes its authorisation back; whether it was still its own.
    pub fn cancel(&self, payer: &PrivateKeySigner, bought: &Bought) -> bool {
        let nonce = B256::from(bought.terms.nonce);
        let kind = keccak256("CancelAuthorization(address authorizer,bytes32 nonce)");
        let domain = Domain::new("USD Coin", "2", self.chain_id, self.token);
        let digest = domain.digest_of(keccak256((kind, payer.address(), nonce).abi_encode()));
        let signature = Bytes::from(payer.sign_hash_sync(&digest).expect("a key signs").as_bytes());
        let call = TestUSDC::cancelAuthorization_1Call { authorizer: payer.address(), nonce, signature };
        matches!(self.send(Tx::call(self.token, call.abi_encode().into(), "cancel")), Outcome::Done { .. })
    }

    /// Somebody else brings the authorisation to the token; the transaction, if it was the first.
    pub fn bring_in(&self, bought: &Bought) -> Option<B256> {
        let call = transfer_call(&bought.terms, self.treasury);
        match self.send(Tx::call(self.token, call.into(), "bring in")) {
            Outcome::Done { tx_hash, .. } => Some(tx_hash),
            _ => None,
        }
    }

    /// As a customer with gas does it, once. The payer needs none before.
    pub fn lets_permit2_spend(&self, payer: &PrivateKeySigner) {
        let allowed = self.chain(async |chain| {
            fund_eth(&chain, payer.address(), ETHER).await.expect("a development chain");
            let approve = Tx::call(self.token, usdc::calls::approve(PERMIT2, u128::MAX), "approve");
            Sender::spawn(chain, payer.clone(), 1).submit(approve).await
        });
        assert!(matches!(allowed, Outcome::Done { .. }), "{allowed:?}");
    }

    /// What a question costs at most by `upto`.
    pub fn ceiling(&self, url: &str, text: &str, max_tokens: u32) -> u128 {
        let required = self.required(&format!("{url}/v1/chat/completions"), &self.question_of(text, max_tokens));
        let upto = required.accepts.iter().find(|offer| offer.scheme() == UPTO).expect("an offer");
        upto.amount().micro()
    }

    /// Asks at a place that pays by itself.
    pub fn asks_free(&self, url: &str, text: &str, max_tokens: u32) -> Said {
        let url = format!("{url}/v1/chat/completions");
        self.runtime.block_on(self.posts(&url, &self.question_of(text, max_tokens), &[]))
    }

    /// What the token's issuer can do.
    pub fn freeze(&self, account: Address, frozen: bool) {
        let call = TestUSDC::setFrozenCall { account, frozen };
        let done = self.send(Tx::call(self.token, call.abi_encode().into(), "freeze"));
        assert!(matches!(done, Outcome::Done { .. }), "{done:?}");
    }

    fn question(&self, text: &str) -> Value {
        self.question_of(text, 4)
    }

    fn question_of(&self, text: &str, max_tokens: u32) -> Value {
        json!({ "model": self.model, "messages": [{ "role": "user", "content": text }], "max_tokens": max_tokens })
    }

    /// A payment by `exact`, not sent. Its nonce is the text's: once each for a payer.
    fn payment(&self, offer: &PaymentRequirements, payer: &PrivateKeySigner, text: &str, now: u64) -> PaymentPayload {
        sign(payer, offer, now, nonce_of(payer, text)).expect("a payment")
    }

    /// The 402 of a route.
    pub fn required(&self, url: &str, body: &Value) -> PaymentRequired {
        self.may_be_required(url, body).expect("an offer")
    }

    /// The same of a node that may be down.
    fn may_be_required(&self, url: &str, body: &Value) -> Option<PaymentRequired> {
        let asked = async { net::Client::new().post_json(url, body).await.ok() };
        let answer = self.runtime.block_on(asked)?;
        Some(PaymentRequired::from_header(answer.header(&PAYMENT_REQUIRED)?).expect("one"))
    }

    /// The `exact` offer for a question by `method`, if it is made.
    pub fn offer(&self, url: &str, text: &str, method: &str) -> Option<PaymentRequirements> {
        let required = self.required(&format!("{url}/v1/chat/completions"), &self.question(text));
        let by = |offer: &PaymentRequirements| offer.extra_text("assetTransferMethod").unwrap_or("eip3009") == method;
        required.accepts.into_iter().find(|offer| offer.scheme() == EXACT && by(offer))
    }

    fn response(&self, store: bool) -> Value {
        json!({ "model": self.model, "input": "hello", "max_output_tokens": 4, "store": store })
    }

    /// A stored response paid by `exact`: what it cost, the height of its settlement, and that of the chain once its
    /// answer had come.
    pub fn buys_stored(&self, url: &str, payer: &PrivateKeySigner) -> (u128, u64, u64) {
        let (url, body) = (format!("{url}/v1/responses"), self.response(true));
        let by_key =
            |offer: &PaymentRequirements| offer.extra_text("assetTransferMethod").unwrap_or("eip3009") == "eip3009";
        let mut offers = self.required(&url, &body).accepts.into_iter();
        let offer = offers.find(|offer| offer.scheme() == EXACT && by_key(offer)).expect("an offer");
        let payment = self.payment(&offer, payer, "a stored response", self.now()).to_header();
        let said = self.runtime.block_on(self.posts(&url, &body, &[(PAYMENT_SIGNATURE, payment)]));
        assert_eq!(said.status, 200, "{}", said.body);
        self.chain(async |chain| {
            let head = chain.head().await.expect("a head").number;
            let receipt = chain.receipt(transaction_of(&said.body)).await.expect("an answer").expect("mined");
            (offer.amount().micro(), receipt.block_number.expect("mined"), head)
        })
    }

    /// What a response costs at most by `exact`, stored or not, and how it is described.
    pub fn response_offer(&self, url: &str, store: bool) -> (u128, String) {
        let required = self.required(&format!("{url}/v1/responses"), &self.response(store));
        let exact = required.accepts.iter().find(|offer| offer.scheme() == EXACT).expect("an offer");
        (exact.amount().micro(), required.resource["description"].as_str().unwrap_or_default().to_owned())
    }

    /// A call with a first deposit of so much into a channel: what the agent answers.
    pub fn opens_with(&self, url: &str, payer: &PrivateKeySigner, deposit: Usdc) -> (u16, Value) {
        let text = "How small is a channel?";
        let required = self.required(&format!("{url}/v1/chat/completions"), &self.question(text));
        let offer = required.accepts.into_iter().find(|offer| offer.scheme() == CHANNEL).expect("an offer");
        let config = channel::client::config(payer.address(), &offer, [0; 32]).expect("a channel");
        let top_up = channel::client::TopUp { amount: deposit, valid_before: self.now() + 300, salt: [7; 32] };
        let domain = ChannelDomain::new(self.chain_id);
        let payment = channel::client::pay(payer, &domain, &config, &offer, offer.amount(), Some(&top_up));
        self.sends(url, text, &payment.expect("a payment").to_header(), None)
    }

    pub fn now(&self) -> u64 {
        self.chain(async |chain| chain.head().await.expect("a head").timestamp)
    }

    /// Asks with this payment: status, and the body with its PAYMENT-RESPONSE as `payment`.
    pub fn sends(&self, url: &str, text: &str, payment: &str, name: Option<&str>) -> (u16, Value) {
        let mut headers = vec![(PAYMENT_SIGNATURE, payment.to_owned())];
        headers.extend(name.map(|name| (IDEMPOTENCY_KEY, name.to_owned())));
        let said = self.runtime.block_on(self.asks(url, text, &headers));
        (said.status, said.body)
    }

    /// The same with these headers.
    pub fn sends_with(&self, url: &str, text: &str, headers: &[(HeaderName, String)]) -> Said {
        self.runtime.block_on(self.asks(url, text, headers))
    }

    async fn asks(&self, url: &str, text: &str, headers: &[(HeaderName, String)]) -> Said {
        self.posts(&format!("{url}/v1/chat/completions"), &self.question(text), headers).await
    }

    async fn posts(&self, url: &str, body: &Value, headers: &[(HeaderName, String)]) -> Said {
        let mut all = HeaderMap::new();
        all.insert("content-type", http::HeaderValue::from_static("application/json"));
        for (name, value) in headers {
            all.append(name, value.try_into().expect("ASCII"));
        }
        let answer = net::Client::new().send(Method::POST, url, all, body.to_string().into()).await.expect("an answer");
        let status = answer.status.as_u16();
        let offer = answer.header(&PAYMENT_REQUIRED).map(|header| PaymentRequired::from_header(header).expect("one"));
        let paid = answer.header(&PAYMENT_RESPONSE).map(|header| decode_header(header).expect("JSON"));
        let mut body: Value = answer.json().await.expect("JSON");
        body["payment"] = paid.unwrap_or_default();
        Said { status, offered: offer.map(|offer| offer.error), body }
    }

    /// A payment by `exact` for a question, not sent.
    pub fn signed(&self, url: &str, payer: &PrivateKeySigner, text: &str) -> Value {
        let offer = self.offer(url, text, "eip3009").expect("an offer");
        decode_header(&self.payment(&offer, payer, text, self.now()).to_header()).expect("JSON")
    }

    /// Answers to this question, asked by so many strangers at once with vouchers for channels that do not exist.
    pub fn pay_with_nothing(&self, url: &str, text: &str, strangers: u32) -> Vec<Said> {
        let required = self.required(&format!("{url}/v1/chat/completions"), &self.question(text));
        let offer = required.accepts.into_iter().find(|offer| offer.scheme() == CHANNEL).expect("an offer");
        let domain = ChannelDomain::new(self.chain_id);
        let payments = (0..strangers).map(|number| {
            let key = PrivateKeySigner::from_bytes(&keccak256(format!("nobody {number}"))).expect("in range");
            let config = channel::client::config(key.address(), &offer, [0; 32]).expect("a channel");
            let payment = channel::client::pay(&key, &domain, &config, &offer, offer.amount(), None);
            vec![(PAYMENT_SIGNATURE, payment.expect("a payment").to_header())]
        });
        let payments: Vec<_> = payments.collect();
        let asked = payments.iter().map(|headers| self.asks(url, text, headers));
        self.runtime.block_on(futures::future::join_all(asked))
    }

    /// Pays for a long answer by `exact` and hangs up once its engine has begun. The request; none without a node.
    pub fn hangs_up(&self, url: &str, payer: &PrivateKeySigner, text: &str) -> Option<RequestId> {
        let begun = generations(url);
        let question = self.question_of(text, 200);
        let required = self.may_be_required(&format!("{url}/v1/chat/completions"), &question)?;
        let offer = required.accepts.into_iter().find(|offer| offer.scheme() == EXACT)?;
        let header = self.payment(&offer, payer, text, self.now()).to_header();
        let (host, body) = (url.strip_prefix("http://").expect("a URL"), question.to_string());
        let mut line = std::net::TcpStream::connect(host).ok()?;
        let head = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n\
             payment-signature: {header}\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        line.write_all([head.as_bytes(), body.as_bytes()].concat().as_slice()).ok()?;
        // A node that refuses, or dies on it, never begins.
        let asked = Instant::now();
        while generations(url) == begun && asked.elapsed() < Duration::from_secs(30) {
            std::thread::yield_now();
        }
        let nonce = nonce_of(payer, text);
        Some(RequestId::of_payment(TransferMethod::Eip3009, &payer.address().into_array(), &nonce.0))
    }

    /// A call by `exact`, under a name or none.
    pub fn buys(&self, url: &str, payer: &PrivateKeySigner, text: &str, name: Option<&str>) -> Bought {
        let offer = self.offer(url, text, "eip3009").expect("an offer");
        let now = self.now();
        let payment = self.payment(&offer, payer, text, now);
        let terms = verify(&payment, &offer, now).expect("a good one").settlement();
        let header = payment.to_header();
        let (status, answer) = self.sends(url, text, &header, name);
        Bought { status, answer, header, terms }
    }

    /// `vivarium facilitator` for this chain: process, URL, and the key that it sends with.
    pub fn facilitator(&self, dir: &Path) -> (Child, String, Address) {
        let key = PrivateKeySigner::from_bytes(&keccak256("a facilitator")).expect("in range");
        let file = dir.join("facilitator.development-key");
        std::fs::write(&file, format!("{}\n", key.to_bytes())).expect("a key file");
        std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("a private file");
        self.chain(async |chain| fund_eth(&chain, key.address(), ETHER).await.expect("a development chain"));
        self.runtime.block_on(async {
            let mut process = tokio::process::Command::new(program())
                .args(["facilitator", "--json", "--listen", "127.0.0.1:0", "--ether", "3", "--wait", "100"])
                .args(["--rpc", &self.rpc_url, "--chain-id", &self.chain_id.to_string()])
                .args(["--token", &self.token.to_string()])
                .arg("--key")
                .arg(file)
                .arg("--journal")
                .arg(dir.join("facilitator"))
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .kill_on_drop(true)
                .spawn()
                .expect("it starts");
            let mut lines = BufReader::new(process.stdout.take().expect("its words")).lines();
            let line = lines.next_line().await.expect("readable").expect("a first line");
            let told: Value = serde_json::from_str(&line).expect("a JSON line");
            (process, told["url"].as_str().expect("a URL").to_owned(), key.address())
        })
    }

    pub fn end(&self, process: &mut Child) {
        self.runtime.block_on(process.kill()).expect("it was running");
    }

    /// Credit with a facilitator for settlements to `payee`.
    pub fn buy_credit(&self, url: &str, its_key: Address, payee: Address, buyer: &PrivateKeySigner) {
        let policy = policy(self.chain_id, self.token, its_key, Usdc(1_000_000), Usdc(1_000_000));
        let buyer = Buyer::new(net::Client::new(), buyer.clone(), policy);
        let url = format!("{url}/credit/{payee}");
        let bought = self.runtime.block_on(async { buyer.post_json(&url, &json!({})).await.expect("a sale") });
        assert_eq!(bought.status, 200, "credit is sold");
    }
}

/// A payer of `contracts/src/dev` that is yet to be made: it has money, and Permit2 may spend it.
pub struct Wallet {
    owner: PrivateKeySigner,
    factory: Address,
    pub address: Address,
}

impl Wallet {
    pub fn planned(town: &Town, factory: Address) -> Self {
        let owner = PrivateKeySigner::from_bytes(&keccak256("the wallet's owner")).expect("in range");
        let address = town.chain(async |chain| {
            let call = json!({ "to": factory, "data": calldata("walletOf(address)", owner.address()) });
            let answer: Bytes = chain.request("eth_call", (call, BlockId::latest())).await.expect("an answer");
            Address::from_slice(&answer[12..32])
        });
        town.mint(address, 10_000_000);
        // Only here: on a real chain the token's permit would say so, or the call that makes the wallet.
        town.chain(async |chain| {
            fund_eth(&chain, address, ETHER).await.expect("a development chain");
            let _: Value = chain.request("anvil_impersonateAccount", (address,)).await.expect("anvil");
            let approve = usdc::calls::approve(PERMIT2, u128::MAX);
            let tx = json!({ "from": address, "to": town.token, "data": approve });
            let hash: B256 = chain.request("eth_sendTransaction", (tx,)).await.expect("anvil");
            let mut mined: Option<TransactionReceipt> = None;
            while mined.is_none() {
                mined = chain.request("eth_getTransactionReceipt", (hash,)).await.expect("an answer");
                tokio::task::yield_now().await;
            }
            let _: Value = chain.request("anvil_stopImpersonatingAccount", (address,)).await.expect("anvil");
            // Nothing can be made at an address that has sent something (EIP-684).
            let _: Value = chain.request("anvil_setNonce", (address, "0x0")).await.expect("anvil");
        });
        Self { owner, factory, address }
    }

    /// Its payment by Permit2, in ERC-6492's wrapping.
    pub fn permit2(&self, town: &Town, offer: &PaymentRequirements) -> PaymentPayload {
        let mut paid = Permit2Payment {
            proxy: Proxy::Exact,
            payer: self.address.into_array(),
            token: offer.asset().into_array(),
            pay_to: offer.pay_to().into_array(),
            amount: offer.amount(),
            nonce: [1; 32],
            valid_after: 0,
            deadline: town.now() + 300,
            signature: Vec::new(),
            is_signed_by_key: false,
            permit: None,
        };
        let digest = Permit2Domain { chain_id: town.chain_id }.digest(&paid);
        let inner = [&[1], self.owner.sign_hash_sync(&digest).expect("a key signs").as_bytes().as_slice()].concat();
        let making = calldata("make(address)", self.owner.address());
        paid.signature =
            Counterfactual { factory: self.factory, calldata: making, inner: Bytes::from(inner) }.to_bytes();
        let payload = json!({
            "signature": format!("0x{}", hex::encode(&paid.signature)),
            "permit2Authorization": {
                "from": self.address.to_string(),
                "permitted": { "token": offer.asset().to_string(), "amount": paid.amount.micro().to_string() },
                "spender": paid.proxy.address().to_string(),
                "nonce": U256::from_be_bytes(paid.nonce).to_string(),
                "deadline": paid.deadline.to_string(),
                "witness": { "to": offer.pay_to().to_string(), "validAfter": "0" },
            },
        });
        PaymentPayload { payload, resource: None, accepted: offer.json().clone(), extensions: None }
    }
}

fn calldata(signature: &str, argument: Address) -> Bytes {
    [&keccak256(signature)[..4], argument.into_word().as_slice()].concat().into()
}

fn nonce_of(payer: &PrivateKeySigner, text: &str) -> B256 {
    keccak256((payer.address(), text.to_owned()).abi_encode())
}

/// Answers that a node has asked its engine for since it started; 0 where there is none.
pub fn generations(url: &str) -> u64 {
    let text = get_text(&format!("{url}/metrics")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("vivarium_generations_total "));
    line.map_or(0, |count| count.parse().expect("a number"))
}

/// The official client, `count` calls by `exact`; what each said.
pub fn pays(url: &str, key: &PrivateKeySigner, count: usize) -> Vec<Value> {
    let out = Command::new("node")
        .args(["exact.mjs", url, &key.to_bytes().to_string(), &count.to_string(), "plain", "--max-tokens", "4"])
        .current_dir(project().join("tests/clients"))
        .output()
        .expect("node runs");
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success(), "the official client failed: {text} {}", String::from_utf8_lossy(&out.stderr));
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e} in {line}"))).collect()
}

pub fn amount_of(answer: &Value) -> u128 {
    let amount = answer["x402"]["amount"].as_str().and_then(|amount| amount.parse().ok());
    amount.unwrap_or_else(|| panic!("an amount in {answer}"))
}

pub fn transaction_of(answer: &Value) -> B256 {
    let tx = answer["payment"]["transaction"].as_str().and_then(|tx| tx.parse().ok());
    tx.unwrap_or_else(|| panic!("a settlement in {answer}"))
}

pub fn transactions(paid: &[Paid]) -> usize {
    paid.iter().map(|paid| paid.tx).collect::<BTreeSet<_>>().len()
}
