//! `vivarium ask` and `vivarium proxy` by an ERC-8004 identity, on a development chain: an honest agent is found and paid;
//! registries' entries, files and offers that do not fit are refused before anything is signed. A whole agent is found so
//! in `life.rs`.

use super::facilitator::chain::{CHAIN_ID, Chain, word};
use super::stub::code;
use super::world::{get_json, program};
use alloy::primitives::{Address, U256, keccak256};
use alloy::signers::local::PrivateKeySigner;
use alloy::sol_types::{SolCall, SolValue};
use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use chain::bindings::{Birth, Lease, LeaseMarket, Standing, State as OnChain, Treasury};
use pay::seller::Quote;
use pay::wire::Resource;
use pay::{Seller, Usdc};
use serde_json::{Value, json};
use std::process::{Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpListener;
use tokio::process::Command;

const FILE: &str = "/.well-known/agent-registration.json";
/// The agent's treasury and its lease market: addresses whose code only answers.
const TREASURY: Address = Address::repeat_byte(0x71);
const MARKET: Address = Address::repeat_byte(0x72);
/// Registers what is not its own.
const HOSTILE: Address = Address::repeat_byte(0x66);

/// What the agent's server gives instead of its registration file.
#[derive(Clone, Debug)]
enum Gives {
    File(Value),
    /// So many bytes.
    Bytes(usize),
    Elsewhere,
    /// A beginning, and then nothing.
    Drip,
}

struct Server {
    gives: Mutex<Gives>,
    seller: Mutex<Seller>,
    /// Payments that it was sent.
    payments: Mutex<usize>,
}

async fn answer(State(server): State<Arc<Server>>, uri: Uri, headers: HeaderMap) -> Response {
    match uri.path() {
        FILE => {
            let gives = server.gives.lock().unwrap().clone();
            match gives {
                Gives::File(file) => axum::Json(file).into_response(),
                Gives::Bytes(count) => vec![b' '; count].into_response(),
                Gives::Elsewhere => (StatusCode::FOUND, [(header::LOCATION, "http://127.0.0.1:1/")]).into_response(),
                Gives::Drip => {
                    let begun = futures::stream::iter([Ok::<_, std::io::Error>("{")]);
                    Body::from_stream(futures::StreamExt::chain(begun, futures::stream::pending())).into_response()
                }
            }
        }
        "/v1/models" => axum::Json(json!({ "data": [{ "id": "m" }] })).into_response(),
        _ => sell(&server, &headers),
    }
}

fn sell(server: &Server, headers: &HeaderMap) -> Response {
    let resource = Resource { url: "/".into(), description: "an answer".into(), mime_type: "text/plain".into() };
    let quote = Quote { amount: Usdc(1_000), resource: &resource, quoted_before: &|_| false, known: &|_, _| false };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let accepted = server.seller.lock().unwrap().accept(headers, &quote, now);
    if headers.contains_key("payment-signature") {
        *server.payments.lock().unwrap() += 1;
    }
    match accepted {
        Ok(_) => {
            let event = json!({ "id": "chatcmpl-1", "choices": [{ "delta": { "content": "Hello." } }] });
            ([(header::CONTENT_TYPE, "text/event-stream")], format!("data: {event}\n\ndata: [DONE]\n\n"))
                .into_response()
        }
        Err(challenge) => {
            let status = StatusCode::from_u16(challenge.status()).unwrap();
            (status, HeaderMap::from_iter(challenge.headers()), challenge.body("r").to_string()).into_response()
        }
    }
}

/// A chain, a registry, and one agent in it.
struct Place {
    chain: Chain,
    registry: Address,
    url: String,
    server: Arc<Server>,
    dir: tempfile::TempDir,
}

impl Place {
    async fn open() -> Self {
        let chain = Chain::start().await;
        let registry = chain.deploy("IdentityRegistry").await;
        for account in [TREASURY, HOSTILE] {
            chain.rpc("anvil_setBalance", json!([account, "0xde0b6b3a7640000"])).await;
        }
        let seller = Mutex::new(Seller::new(CHAIN_ID, chain.usdc, ("USD Coin", "2"), TREASURY));
        let server = Arc::new(Server { gives: Mutex::new(Gives::Elsewhere), seller, payments: Mutex::default() });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let app = Router::new().fallback(answer).with_state(server.clone());
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        let dir = tempfile::tempdir().unwrap();
        let key = PrivateKeySigner::from_bytes(&keccak256(b"a customer who knows a number")).unwrap();
        std::fs::write(dir.path().join("key"), format!("{}\n", key.to_bytes())).unwrap();
        Self { chain, registry, url, server, dir }
    }

    async fn register(&self, owner: Address, uri: &str) {
        let call = [&keccak256("register(string)")[..4], &(uri,).abi_encode_params()].concat();
        assert!(self.chain.send(owner, self.registry, &call).await.1, "registered");
    }

    /// What the agent's treasury says of its number and its identity's registry.
    async fn treasury_says(&self, number: u64, registry: Address) {
        let standing = Standing { isRegistered: true, agentId: U256::from(number), ..Standing::default() };
        let mut birth = Birth { token: self.chain.usdc, market: MARKET, ..Birth::default() };
        birth.options.identity = registry;
        let state = OnChain { operator: TREASURY, activeLease: U256::from(1), ..OnChain::default() };
        let treasury = code(&[
            (Treasury::standingCall::SELECTOR, Treasury::standingCall::abi_encode_returns(&standing)),
            (Treasury::birthOfCall::SELECTOR, Treasury::birthOfCall::abi_encode_returns(&birth)),
            (Treasury::stateCall::SELECTOR, Treasury::stateCall::abi_encode_returns(&state)),
        ]);
        self.chain.rpc("anvil_setCode", json!([TREASURY, treasury])).await;
        let lease = Lease { endpoint: self.url.clone(), ..Lease::default() };
        let lease = LeaseMarket::leaseOfCall::abi_encode_returns(&lease);
        let market = code(&[(LeaseMarket::leaseOfCall::SELECTOR, lease)]);
        self.chain.rpc("anvil_setCode", json!([MARKET, market])).await;
    }

    /// The registration file of agent `number`, as a node gives it.
    fn file(&self, number: u64) -> Value {
        json!({
            "type": "https://eips.ethereum.org/EIPS/eip-8004#registration-v1",
            "services": [
                { "name": "OpenAI", "endpoint": format!("{}/v1", self.url) },
                { "name": "agentWallet", "endpoint": format!("eip155:{CHAIN_ID}:{TREASURY}") },
            ],
            "registrations": [{ "agentId": number, "agentRegistry": format!("eip155:{CHAIN_ID}:{}", self.registry) }],
        })
    }

    fn gives(&self, gives: Gives) {
        *self.server.gives.lock().unwrap() = gives;
    }

    fn name(&self, number: u64) -> String {
        format!("eip155:{CHAIN_ID}:{}/{number}", self.registry)
    }

    /// `vivarium COMMAND` by this identity, without a world.
    fn command(&self, command: &str, identity: &str, token: Address) -> Command {
        let mut process = Command::new(program());
        process.arg(command).args(["--json", "--agent", identity, "--rpc", &self.chain.url]);
        process.args(["--token", &token.to_string(), "--key"]).arg(self.dir.path().join("key"));
        process.arg("--data-dir").arg(self.dir.path().join("records")).kill_on_drop(true);
        process
    }

    async fn ask(&self, identity: &str) -> Output {
        let mut ask = self.command("ask", identity, self.chain.usdc);
        ask.args(["--max-tokens", "8", "Who are you?"]).output().await.expect("it runs")
    }

    /// It says this, in one line, and paid nothing.
    async fn refuses(&self, identity: &str, said: &str) {
        let out = self.ask(identity).await;
        let text = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(!out.status.success() && text.contains(said), "{identity}: {said:?} in {text}");
        assert!(text.len() < 1_000 && text.trim_end().lines().count() == 1, "{text}");
    }

    fn payments(&self) -> usize {
        *self.server.payments.lock().unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_is_bought_from_by_its_identity_and_by_nobody_elses() {
    let place = Place::open().await;
    let uri = format!("{}{FILE}", place.url);
    // Numbers 0 to 3. The treasury's own comes first: with code it could take no token that is safely minted.
    place.register(TREASURY, &uri).await;
    place.register(TREASURY, &format!("{}0{FILE}", place.url)).await;
    place.register(HOSTILE, &uri).await;
    place.register(HOSTILE, &uri).await;
    let given = [word(HOSTILE), word(TREASURY), U256::from(3)].map(|word| word.to_be_bytes::<32>()).concat();
    let give = [&keccak256("transferFrom(address,address,uint256)")[..4], &given].concat();
    assert!(place.chain.send(HOSTILE, place.registry, &give).await.1, "anybody may give a treasury a token");
    place.treasury_says(0, place.registry).await;
    place.gives(Gives::File(place.file(0)));

    // The chain's part.
    let own = place.name(0);
    place.refuses(&place.name(2), "which is no treasury").await;
    place.refuses(&place.name(3), "does not call it its own: its number is 0").await;
    place.refuses(&place.name(99), "there is no agent 99 in the registry").await;
    place.refuses(&own.replace(&place.registry.to_string(), &MARKET.to_string()), "there is no agent 0").await;
    let nobody = Address::repeat_byte(9).to_string();
    place.refuses(&own.replace(&place.registry.to_string(), &nobody), "is no identity registry on chain 31337").await;
    place.refuses(&own.replace("eip155:31337", "eip155:8453"), "serves chain 31337").await;
    place.refuses("7", "eip155:CHAIN:REGISTRY/ID").await;
    place.treasury_says(0, MARKET).await;
    place.refuses(&own, "whose identity is in another registry").await;
    place.treasury_says(1, place.registry).await;
    place.refuses(&place.name(1), "its treasury's lease says").await;
    place.treasury_says(0, place.registry).await;
    let out = place.command("ask", &own, place.chain.permit_token).arg("Hi").output().await.unwrap();
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(!out.status.success() && text.contains("and nothing else"), "{text}");

    // The file's part.
    let mut paid_elsewhere = place.file(0);
    paid_elsewhere["services"][1]["endpoint"] = json!(format!("eip155:{CHAIN_ID}:{HOSTILE}"));
    let mut served_elsewhere = place.file(0);
    served_elsewhere["services"][0]["endpoint"] = json!("http://127.0.0.1:1/v1");
    for (gives, said) in [
        (Gives::File(paid_elsewhere), "wants to be paid at"),
        (Gives::File(served_elsewhere), "it says that the API is at"),
        (Gives::File(place.file(1)), "as its identities"),
        (Gives::Bytes(65 << 10), "longer than 65536 bytes"),
        (Gives::Bytes(0), "not strict JSON"),
        (Gives::Elsewhere, "answered 302"),
        (Gives::Drip, "nothing whole came within 5 s"),
    ] {
        place.gives(gives);
        place.refuses(&own, said).await;
    }
    place.gives(Gives::File(place.file(0)));

    // The offer's part.
    *place.server.seller.lock().unwrap() = Seller::new(CHAIN_ID, place.chain.usdc, ("USD Coin", "2"), HOSTILE);
    place.refuses(&own, &format!("wants the money for {HOSTILE}, the agent's treasury is {TREASURY}")).await;
    assert_eq!(place.payments(), 0, "nobody was shown a payment");
    *place.server.seller.lock().unwrap() = Seller::new(CHAIN_ID, place.chain.usdc, ("USD Coin", "2"), TREASURY);

    let out = place.ask(&own).await;
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let said: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!((&said["text"], &said["spent_uusdc"]), (&json!("Hello."), &json!("1000")), "{said}");
    assert_eq!(place.payments(), 1);

    // The proxy, too.
    let mut proxy = place.command("proxy", &own, place.chain.usdc);
    proxy.args(["--budget", "1/day", "--listen", "127.0.0.1:0"]).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut proxy = proxy.spawn().unwrap();
    let line = BufReader::new(proxy.stdout.take().unwrap()).lines().next_line().await.unwrap().expect("one line");
    let hello: Value = serde_json::from_str(&line).unwrap();
    let base = hello["base_url"].as_str().unwrap().to_owned();
    let models = tokio::task::spawn_blocking({
        let url = format!("{base}/models");
        move || get_json(&url)
    });
    assert!(models.await.unwrap().is_some(), "what is free is found, too");
    let question = json!({ "model": "m", "messages": [{ "role": "user", "content": "Who else?" }] });
    let bought = net::Client::new().post_json(&format!("{base}/chat/completions"), &question).await.unwrap();
    assert_eq!((bought.status.as_u16(), place.payments()), (200, 2));
    proxy.kill().await.unwrap();
}
