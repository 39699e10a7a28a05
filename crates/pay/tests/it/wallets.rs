//! Customers that are contracts: what they sign is taken once its settlement, simulated, goes through, and served once
//! it is mined. Named by triple; `rs` as a client is a wallet whose owner signs with our types.

use crate::chain::{CHAIN_ID, RELAY, TREASURY, call, word};
use crate::market::{Market, wall};
use alloy::primitives::{Address, B256, Bytes, U256, keccak256};
use alloy::signers::SignerSync;
use alloy::signers::local::PrivateKeySigner;
use http::HeaderMap;
use pay::Usdc;
use pay::scheme::channel::client::TopUp;
use pay::scheme::channel::{self, ChannelDomain};
use pay::scheme::exact::{Domain, TransferWithAuthorization};
use pay::scheme::permit2::PERMIT2;
use pay::scheme::signature::Counterfactual;
use pay::scheme::upto::{Permit2Domain, Permit2Payment, Proxy};
use pay::seller::offers::TransferMethod;
use pay::wire::{PAYMENT_REQUIRED, PAYMENT_SIGNATURE, PaymentPayload, PaymentRequired, PaymentRequirements};
use serde_json::{Value, json};

const FUNDED: u128 = 1_000_000;

/// A wallet of `contracts/src/dev`, there or yet to be made.
struct Wallet {
    owner: PrivateKeySigner,
    factory: Address,
    address: Address,
}

impl Wallet {
    /// Its address is funded; the contract is not there.
    async fn planned(market: &Market) -> Self {
        let chain = market.chain();
        let owner = PrivateKeySigner::from_bytes(&keccak256("the wallet's owner")).unwrap();
        let factory = chain.deploy("TestWalletFactory").await;
        let answer = chain.simulate(RELAY, factory, &call("walletOf(address)", &[word(owner.address())])).await;
        let address = Address::from_slice(&answer.unwrap()[12..32]);
        chain.mint(market.token(), address, FUNDED).await;
        // For its own calls to the wallet; its payments cost it nothing.
        chain.rpc("anvil_setBalance", json!([owner.address(), "0xde0b6b3a7640000"])).await;
        Self { owner, factory, address }
    }

    async fn made(market: &Market) -> Self {
        let wallet = Self::planned(market).await;
        assert!(market.chain().send(RELAY, wallet.factory, &wallet.making()).await.1);
        wallet
    }

    fn making(&self) -> Vec<u8> {
        call("make(address)", &[word(self.owner.address())])
    }

    /// For the wallet's `isValidSignature`.
    fn sign(&self, digest: B256) -> Vec<u8> {
        [&[1], self.owner.sign_hash_sync(&digest).unwrap().as_bytes().as_slice()].concat()
    }

    /// ERC-6492: for a wallet that `factory` makes first.
    fn wrapped(&self, inner: Vec<u8>) -> Vec<u8> {
        let making =
            Counterfactual { factory: self.factory, calldata: self.making().into(), inner: Bytes::from(inner) };
        making.to_bytes()
    }

    async fn freeze(&self, market: &Market) {
        let data = call("setFrozen(bool)", &[U256::ONE]);
        assert!(market.chain().send(self.owner.address(), self.address, &data).await.1);
    }

    fn exact(&self, offer: &PaymentRequirements, nonce: u8, wrap: impl Fn(Vec<u8>) -> Vec<u8>) -> PaymentPayload {
        let valid_before = wall() + 300;
        let message = TransferWithAuthorization {
            from: self.address,
            to: offer.pay_to(),
            value: U256::from(offer.amount().micro()),
            validAfter: U256::ZERO,
            validBefore: U256::from(valid_before),
            nonce: B256::repeat_byte(nonce),
        };
        let signature = wrap(self.sign(Domain::of(offer).unwrap().digest(&message)));
        let authorization = json!({
            "from": self.address.to_string(),
            "to": offer.pay_to().to_string(),
            "value": offer.amount().micro().to_string(),
            "validAfter": "0",
            "validBefore": valid_before.to_string(),
            "nonce": message.nonce.to_string(),
        });
        let payload = json!({ "authorization": authorization, "signature": format!("0x{}", hex::encode(signature)) });
        PaymentPayload { payload, resource: None, accepted: offer.json().clone(), extensions: None }
    }
}

fn url(market: &Market) -> String {
    format!("{}/v1/chat/completions", market.url)
}

fn question() -> Value {
    json!({ "messages": [{ "role": "user", "content": "hello" }], "max_tokens": 16 })
}

async fn offer(market: &Market, scheme: &str) -> PaymentRequirements {
    let answer = net::Client::new().post_json(&url(market), &question()).await.unwrap();
    let required = PaymentRequired::from_header(answer.header(&PAYMENT_REQUIRED).unwrap()).unwrap();
    required.accepts.into_iter().find(|offer| offer.scheme() == scheme).unwrap()
}

/// Status and, of a refusal, its reason.
async fn pay(market: &Market, payment: &PaymentPayload) -> (u16, String) {
    let headers = HeaderMap::from_iter([(PAYMENT_SIGNATURE, payment.to_header().try_into().unwrap())]);
    let body = bytes::Bytes::from(question().to_string());
    let answer = net::Client::new().send(http::Method::POST, &url(market), headers, body).await.unwrap();
    let status = answer.status.as_u16();
    let body: Value = serde_json::from_slice(&answer.bytes(1 << 20).await.unwrap()).unwrap();
    (status, body["error"]["code"].as_str().unwrap_or_default().to_owned())
}

async fn agree(market: &Market) -> Usdc {
    let receipts: Usdc = market.with(|desk| desk.receipts.values().copied().sum());
    assert_eq!(market.chain().balance(market.token(), TREASURY).await, receipts, "chain = receipts");
    receipts
}

/// ERC-1271: a contract that exists signs an EIP-3009 authorisation. One that has changed its mind is refused before anything is served.
#[tokio::test(flavor = "multi_thread")]
async fn rs_rs_rs_exact_by_a_contract() {
    let market = Market::open(&["exact"], TransferMethod::Eip3009).await;
    let wallet = Wallet::made(&market).await;
    let offer = offer(&market, "exact").await;
    assert_eq!(pay(&market, &wallet.exact(&offer, 1, |inner| inner)).await, (200, String::new()));
    // Wrapped although it exists: the wrapping is left aside, and nobody calls the factory.
    assert_eq!(pay(&market, &wallet.exact(&offer, 2, |inner| wallet.wrapped(inner))).await, (200, String::new()));
    assert_eq!(agree(&market).await, Usdc(2 * offer.amount().micro()));
    // The nonce is used.
    let (status, reason) = pay(&market, &wallet.exact(&offer, 1, |inner| inner)).await;
    assert_eq!((status, reason.as_str()), (402, "invalid_exact_evm_transaction_simulation_failed"));
    // Somebody else's signature, as long as a key's and not.
    for wrong in [vec![1; 65], vec![1; 66]] {
        let (status, reason) = pay(&market, &wallet.exact(&offer, 3, |_| wrong.clone())).await;
        assert_eq!((status, reason.as_str()), (402, "invalid_exact_evm_transaction_simulation_failed"));
    }
    wallet.freeze(&market).await;
    let (status, reason) = pay(&market, &wallet.exact(&offer, 4, |inner| inner)).await;
    assert_eq!((status, reason.as_str()), (402, "invalid_exact_evm_transaction_simulation_failed"));
    assert_eq!(market.with(|desk| (desk.transactions["contract"], desk.receipts.len())), (2, 2));
    agree(&market).await;
}

/// The official client pays from a smart wallet; then the wallet declares its signatures void.
#[tokio::test(flavor = "multi_thread")]
async fn ts_rs_rs_exact_by_a_contract() {
    let market = Market::open(&["exact"], TransferMethod::Eip3009).await;
    let owner = PrivateKeySigner::from_bytes(&keccak256("an owner")).unwrap();
    let key = format!("0x{}", hex::encode(owner.to_bytes()));
    for mode in ["plain", "stream"] {
        let out = tokio::process::Command::new("node")
            .current_dir(crate::schemes::clients())
            .args(["wallet.mjs", &market.url, &key, "3", mode, &market.chain().url, &market.token().to_string()])
            .kill_on_drop(true)
            .output()
            .await
            .expect("node starts");
        let text = String::from_utf8(out.stdout).unwrap();
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let statuses: Vec<&Value> = lines.iter().map(|line| &line["status"]).collect();
        assert_eq!(statuses, [200, 200, 402], "{text}{}", String::from_utf8_lossy(&out.stderr));
        assert_eq!(lines[2]["error"], "invalid_exact_evm_transaction_simulation_failed");
    }
    assert_eq!(market.with(|desk| desk.receipts.len()), 4);
    agree(&market).await;
}

/// ERC-6492: the factory is called only if it is on the list, by the relay's transaction, together with the settlement.
#[tokio::test(flavor = "multi_thread")]
async fn rs_rs_rs_exact_by_a_contract_that_is_not_there_yet() {
    let market = Market::open(&["exact"], TransferMethod::Eip3009).await;
    let wallet = Wallet::planned(&market).await;
    let offer = offer(&market, "exact").await;
    let (status, reason) = pay(&market, &wallet.exact(&offer, 1, |inner| inner)).await;
    assert_eq!((status, reason.as_str()), (402, "invalid_exact_evm_payload_signature"), "no contract, no key");
    let (status, reason) = pay(&market, &wallet.exact(&offer, 1, |inner| wallet.wrapped(inner))).await;
    assert_eq!((status, reason.as_str()), (402, "eip6492_factory_not_allowed"));
    market.with(|desk| desk.factories.push(wallet.factory));
    let (status, reason) = pay(&market, &wallet.exact(&offer, 1, |_| wallet.wrapped(vec![1; 66]))).await;
    assert_eq!((status, reason.as_str()), (402, "invalid_exact_evm_transaction_simulation_failed"));
    let code = async || market.chain().rpc("eth_getCode", json!([wallet.address, "latest"])).await;
    assert_eq!(code().await, "0x", "a payment that fails makes nothing");
    assert_eq!(pay(&market, &wallet.exact(&offer, 1, |inner| wallet.wrapped(inner))).await, (200, String::new()));
    assert_ne!(code().await, "0x");
    assert_eq!(agree(&market).await, offer.amount());
}

/// A token without EIP-3009: Permit2 asks the contract.
#[tokio::test(flavor = "multi_thread")]
async fn rs_rs_rs_exact_permit2_by_a_contract() {
    let market = Market::open(&["exact"], TransferMethod::Permit2).await;
    let wallet = Wallet::made(&market).await;
    let offer = offer(&market, "exact").await;
    let payment = |nonce: u8, wrong: bool| {
        let mut paid = Permit2Payment {
            proxy: Proxy::Exact,
            payer: wallet.address.into_array(),
            token: offer.asset().into_array(),
            pay_to: TREASURY.into_array(),
            amount: offer.amount(),
            nonce: [nonce; 32],
            valid_after: 0,
            deadline: wall() + 300,
            signature: Vec::new(),
            is_signed_by_key: false,
            permit: None,
        };
        paid.signature = wallet.sign(Permit2Domain { chain_id: CHAIN_ID }.digest(&paid));
        paid.signature[40] ^= u8::from(wrong);
        let payload = json!({
            "signature": format!("0x{}", hex::encode(&paid.signature)),
            "permit2Authorization": {
                "from": wallet.address.to_string(),
                "permitted": { "token": offer.asset().to_string(), "amount": paid.amount.micro().to_string() },
                "spender": paid.proxy.address().to_string(),
                "nonce": U256::from_be_bytes(paid.nonce).to_string(),
                "deadline": paid.deadline.to_string(),
                "witness": { "to": TREASURY.to_string(), "validAfter": "0" },
            },
        });
        PaymentPayload { payload, resource: None, accepted: offer.json().clone(), extensions: None }
    };
    let (status, reason) = pay(&market, &payment(1, false)).await;
    assert_eq!((status, reason.as_str()), (402, "permit2_simulation_failed"), "Permit2 may not spend yet");
    let approve = call("approve(address,uint256)", &[word(PERMIT2), U256::MAX]);
    let mut execute =
        call("execute(address,bytes)", &[word(market.token()), U256::from(64), U256::from(approve.len())]);
    execute.extend(&approve);
    execute.resize(execute.len().next_multiple_of(32) + 4, 0);
    assert!(market.chain().send(wallet.owner.address(), wallet.address, &execute).await.1);
    let (status, reason) = pay(&market, &payment(1, true)).await;
    assert_eq!((status, reason.as_str()), (402, "permit2_simulation_failed"), "its owner did not sign this");
    assert_eq!(pay(&market, &payment(1, false)).await, (200, String::new()));
    assert_eq!(agree(&market).await, offer.amount());
}

/// The contract signs the deposit, a key that it names the vouchers. A contract's own vouchers are refused.
#[tokio::test(flavor = "multi_thread")]
async fn rs_rs_rs_batch_settlement_by_a_contract() {
    let market = Market::open(&["batch-settlement"], TransferMethod::Eip3009).await;
    let wallet = Wallet::planned(&market).await;
    let offer = offer(&market, "batch-settlement").await;
    let domain = ChannelDomain::new(CHAIN_ID);
    let mut config = channel::client::config(wallet.address, &offer, [0; 32]).unwrap();
    config.payer_authorizer = wallet.owner.address().into_array();
    let top_up = TopUp { amount: Usdc(50_000), valid_before: wall() + 300, salt: [7; 32] };
    let max = |calls: u128| Usdc(offer.amount().micro() * calls);
    let opening = |wrap: &dyn Fn(Vec<u8>) -> Vec<u8>| {
        let mut payment = channel::client::pay(&wallet.owner, &domain, &config, &offer, max(1), Some(&top_up)).unwrap();
        let signature = payment.payload.pointer_mut("/deposit/authorization/erc3009Authorization/signature").unwrap();
        let key = hex::decode(signature.as_str().unwrap().trim_start_matches("0x")).unwrap();
        *signature = format!("0x{}", hex::encode(wrap([&[1], key.as_slice()].concat()))).into();
        payment
    };
    let refused = |reason: &str| (402, format!("invalid_batch_settlement_evm_{reason}"));
    let not_there = pay(&market, &opening(&|inner| inner)).await;
    assert_eq!(not_there, refused("receive_authorization_signature"));
    assert_eq!(pay(&market, &opening(&|inner| wallet.wrapped(inner))).await, refused("eip6492_factory_not_allowed"));
    market.with(|desk| desk.factories.push(wallet.factory));
    let wrong = |mut inner: Vec<u8>| {
        inner[9] ^= 1;
        wallet.wrapped(inner)
    };
    assert_eq!(pay(&market, &opening(&wrong)).await, refused("deposit_simulation_failed"));
    assert_eq!(pay(&market, &opening(&|inner| wallet.wrapped(inner))).await, (200, String::new()));
    // The next call is an ordinary voucher of the key.
    let voucher = channel::client::pay(&wallet.owner, &domain, &config, &offer, max(2), None).unwrap();
    assert_eq!(pay(&market, &voucher).await, (200, String::new()));
    // A wallet that would sign its vouchers itself could declare them void after it was served.
    let mut own = config.clone();
    own.payer_authorizer = [0; 20];
    let voucher = channel::client::pay(&wallet.owner, &domain, &own, &offer, max(3), None).unwrap();
    assert_eq!(pay(&market, &voucher).await, refused("voucher_signature"));
    market.claim_and_settle().await;
    agree(&market).await;
}
