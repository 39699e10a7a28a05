//! What an agent's manifest may name beside its model, bought through `vivarium proxy`: the model with an adapter on,
//! and models that take turns in the memory that the manifest allows them.

use crate::world::{self, World, get_json, get_text, signal};
use chain::alloy::primitives::Address;
use chain::{Chain, Sender, Tx, usdc};
use http::{HeaderMap, HeaderValue, Method, header};
use pay::wire::{PAYMENT_REQUIRED, PaymentRequired};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use store::unixfs::{Profile, import_path};
use tokio::runtime::Runtime;
use vivarium::world::files::read_key;
use vivarium::world::record::Record;

#[path = "../../../../tests/lora.rs"]
mod lora;

const ADAPTER: &str = "parrot";
/// Further models: two that answer, and the one that makes vectors.
const SAILOR: &str = "sailor";
const COOK: &str = "cook";
/// A token of the sailor's for a hundred of the model's: dear enough that its calls cost more than the least.
const SAILOR_PCT: u128 = 10_000;

/// Room for one of those that answer and for the vectors, and not for both of those that answer. One takes 281 MB where its
/// weights lie in memory a second time, as tiles for AMX, and 100 less elsewhere; the vectors 56.
fn models_bytes_max() -> u64 {
    let flags = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    if flags.contains(" amx_int8") { 440_000_000 } else { 340_000_000 }
}

#[test]
fn an_agent_sells_its_model_with_an_adapter_and_others_that_take_turns_in_memory() {
    let _turn = world::turn();
    let mut world = World::start(&["--seed-usdc", "60"]);
    world.until("an agent whose manifest can be copied", |w| w.agent().filter(|agent| agent["selling"] == true));
    let agent = Agent::born(&mut world);
    let shop = Shop::open(&mut world, &agent);

    with_an_adapter(&mut world, &agent, &shop);
    let sailors = loaded_when_asked_for(&mut world, &agent, &shop);
    take_turns(&mut world, &agent, &shop);
    after_a_crash(&mut world, &agent, &shop, &sailors);
}

/// The model with an adapter on says something else, its receipt names the adapter, and both answers are made again.
fn with_an_adapter(world: &mut World, agent: &Agent, shop: &Shop) {
    let model = text_of(&agent.named("model")["name"]);
    let listed = get_json(&format!("{}/v1/models", agent.url)).expect("models");
    let listed: Vec<_> = listed["data"].as_array().expect("a list").iter().map(|one| text_of(&one["id"])).collect();
    let vectors = text_of(&agent.named("models")[2]["name"]);
    let adapted = format!("{model}:{ADAPTER}");
    assert_eq!(listed, [model.as_str(), &adapted, SAILOR, COOK, &vectors]);

    let plain = shop.bought(world, "plain", "/chat/completions", &question(&model));
    let adapted = shop.bought(world, "adapted", "/chat/completions", &question(&adapted));
    assert_ne!(adapted.said(), plain.said(), "the adapter changes what the model says");
    assert_eq!(adapted.receipt["adapter_sha256"], agent.digest(&agent.named("adapters")[0]));
    assert!(text_of(&adapted.receipt["adapter_sha256"]).ends_with(&text_of(&adapted.receipt["run"]["adapter_sha256"])));
    assert_eq!(plain.receipt["adapter_sha256"], format!("0x{}", "0".repeat(64)));
    for answer in [&plain, &adapted] {
        assert_eq!(answer.receipt["model_sha256"], agent.digest(&agent.named("model")));
        answer.is_made_again(world, &[]);
    }
    adapted.is_made_again(
        world,
        &["--adapter", &shown(&world.dir.path().join(text_of(&agent.named("adapters")[0]["file"])))],
    );
}

/// A further model is there once somebody asks what it costs. Its price is the manifest's share of the model's, its
/// receipt names it, and its answer is made again from the world's store. Returns that answer.
fn loaded_when_asked_for(world: &mut World, agent: &Agent, shop: &Shop) -> Bought {
    let vectors = text_of(&agent.named("models")[2]["name"]);
    for name in [SAILOR, COOK, &vectors] {
        assert_eq!(agent.readings(name, ["loaded", "loads_total", "bytes"]), [0, 0, 0], "{name}");
    }
    let (status, said, _) = shop.posted(&agent.url, &question("stranger"));
    assert_eq!((status, &said["error"]["code"]), (404, &json!("model_not_found")), "{said}");
    assert!(text_of(&said["error"]["message"]).contains("`stranger`"), "{said}");

    let first = shop.prices(world, agent, &text_of(&agent.named("model")["name"]));
    let sailors = shop.prices(world, agent, SAILOR);
    let [prompt, cached, generated, least] = sailors;
    let scaled = [first[0], first[1], first[2]].map(|price| (price * SAILOR_PCT).div_ceil(100));
    assert_eq!(sailors, [scaled[0], scaled[1], scaled[2], first[3]]);
    assert_eq!(agent.readings(SAILOR, ["loaded", "loads_total", "unloads_total"]), [1, 1, 0]);

    let answer = shop.bought(world, "sailor", "/chat/completions", &question(SAILOR));
    assert_eq!(answer.answer["model"], SAILOR);
    assert_eq!(answer.receipt["model_sha256"], agent.digest(&agent.named("models")[0]));
    assert_eq!(shop.prices(world, agent, SAILOR), sailors, "the day's price is still the same");
    let count = |what: &str| u128::from(answer.receipt[what].as_u64().expect("a number"));
    let (asked, of_it) = (count("prompt_tokens"), count("cached_tokens"));
    let metered = prompt * (asked - of_it) + cached * of_it + generated * count("completion_tokens");
    let metered = metered.div_ceil(1_000_000);
    assert!(metered > least, "{metered} is no more than {least}: it says nothing of the price of a token");
    assert_eq!(answer.receipt["amount_uusdc"], metered.to_string(), "{}", answer.receipt);
    answer.is_made_again(world, &[]);

    let body = json!({ "model": vectors, "input": ["a lease", "a promise"] });
    let made = shop.bought(world, "vectors", "/embeddings", &body);
    assert_eq!(made.answer["data"].as_array().map(Vec::len), Some(2), "{}", made.answer);
    assert_eq!(made.receipt["model_sha256"], agent.digest(&agent.named("models")[2]));
    assert!(made.receipt["embedding_tokens"].as_u64() > Some(0) && made.receipt["prompt_tokens"] == 0);
    answer
}

/// Whoever asks for a model that does not fit beside the others gets it once the one that nobody used for the longest
/// time has gone; and that comes back the same way.
fn take_turns(world: &mut World, agent: &Agent, shop: &Shop) {
    assert_eq!(agent.readings(SAILOR, ["loaded", "unloads_total"]), [1, 0]);
    let cooks = shop.bought(world, "cook", "/chat/completions", &question(COOK));
    assert_eq!(cooks.receipt["model_sha256"], agent.digest(&agent.named("models")[1]));
    assert_eq!(agent.readings(COOK, ["loaded", "loads_total"]), [1, 1]);
    assert_eq!(agent.readings(SAILOR, ["loaded", "unloads_total", "bytes"]), [0, 1, 0]);
    agent.keeps_within_its_memory();
    shop.bought(world, "sailor again", "/chat/completions", &question(SAILOR));
    assert_eq!(agent.readings(SAILOR, ["loaded", "loads_total"]), [1, 2]);
    assert_eq!(agent.readings(COOK, ["loaded", "unloads_total"]), [0, 1]);
    agent.keeps_within_its_memory();
}

/// The node that comes back has nothing loaded, keeps the receipts that name further models, and sells them on.
fn after_a_crash(world: &mut World, agent: &Agent, shop: &Shop, before: &Bought) {
    let pid = world.tenant_pid(agent.lease).expect("its provider knows the process");
    signal(pid, "KILL");
    world.until("the node again", |w| {
        let is_new = w.tenant_pid(agent.lease)? != pid;
        let status = get_json(&format!("{}/status", agent.url)).filter(|_| is_new)?;
        (status["selling"] == true && status["ledger_ok"] == true).then_some(())
    });
    assert_eq!(agent.readings(SAILOR, ["loaded", "loads_total"]), [0, 0]);
    let again = shop.bought(world, "after", "/chat/completions", &question(SAILOR));
    assert_eq!(again.said(), before.said(), "greedy, and by the same weights");
    assert_eq!(again.receipt["model_sha256"], before.receipt["model_sha256"]);
    assert_ne!(again.receipt["request"], before.receipt["request"]);
    assert_eq!(agent.readings(SAILOR, ["loaded", "loads_total"]), [1, 1]);
    assert_eq!(get_json(&before.receipt_url).as_ref(), Some(&before.receipt), "as it was signed");
}

fn question(model: &str) -> Value {
    json!({
        "model": model,
        "messages": [{ "role": "user", "content": "Say what a fox is." }],
        "max_tokens": 12,
        "temperature": 0,
    })
}

/// The agent that has all this, the second one of its world.
struct Agent {
    manifest: Value,
    url: String,
    lease: u64,
}

impl Agent {
    fn born(world: &mut World) -> Agent {
        let (file, runtime) = (world.world(), Runtime::new().expect("a runtime"));
        let address = |name: &str| file[name].as_str().and_then(|text| text.parse().ok()).expect("an address");
        let (token, market): (Address, Address) = (address("usdc"), address("lease_market"));
        let (rpc, chain_id) = (text_of(&file["rpc_url"]), file["chain_id"].as_u64().expect("a number"));
        let manifest = std::fs::read_to_string(world.data_dir().join("manifest.toml")).expect("a manifest");
        let mut manifest: toml::Table = manifest.parse().expect("TOML");
        let flags = add_models(&mut manifest, world.dir.path());
        let path = world.dir.path().join("seller.toml");
        std::fs::write(&path, manifest.to_string()).expect("a file");

        let creator = read_key(&world.data_dir().join("keys/creator.development-key")).expect("a key");
        runtime.block_on(async {
            let mint = Tx::call(token, usdc::calls::mint(creator.address(), 60_000_000), "mint");
            let chain = Chain::connect(&rpc, chain_id).expect("a chain");
            Sender::spawn(chain, creator.clone(), 1).send_and_wait(mint).await.expect("test money");
        });
        let birth = ["birth", path.to_str().expect("UTF-8"), "--seed-usdc", "60", "--yes", "--json"];
        let flags: Vec<&str> = birth.into_iter().chain(flags.iter().map(String::as_str)).collect();
        let (born, said) = world.run(&flags);
        assert!(born, "{said}");
        let said: Value = serde_json::from_str(said.trim()).expect("a JSON line");
        let treasury: Address = said["treasury"].as_str().and_then(|text| text.parse().ok()).expect("an address");
        let url = world.until("its address", |_| {
            // A chain's connection belongs to the task that made it.
            runtime.block_on(async { Record::new(&rpc, chain_id, treasury, market).ok()?.url().await.ok() })
        });
        world.until("what it sells", |_| {
            let status = get_json(&format!("{url}/status"))?;
            (status["selling"] == true).then_some(())
        });
        let manifest = serde_json::to_value(&manifest).expect("it is JSON, too");
        Agent { manifest, url, lease: said["lease"].as_u64().expect("a lease") }
    }

    fn named(&self, what: &str) -> Value {
        self.manifest[what].clone()
    }

    /// As receipts have it.
    fn digest(&self, weights: &Value) -> String {
        let cid = store::cid::parse(weights["cid"].as_str().expect("a CID")).expect("a CID");
        format!("0x{}", hex::encode(store::cid::digest(&cid)))
    }

    /// What `/metrics` says of a model.
    fn readings<const N: usize>(&self, model: &str, names: [&str; N]) -> [u64; N] {
        let metrics = get_text(&format!("{}/metrics", self.url)).expect("metrics");
        names.map(|name| {
            let line = format!("vivarium_model_{name}{{model=\"{model}\"}} ");
            let found = metrics.lines().find_map(|found| found.strip_prefix(&line));
            found.unwrap_or_else(|| panic!("{line} in {metrics}")).parse().expect("a number")
        })
    }

    fn keeps_within_its_memory(&self) {
        let models = self.named("models");
        let names = models.as_array().expect("models").iter().map(|model| text_of(&model["name"]));
        let taken: Vec<u64> = names.map(|name| self.readings(&name, ["bytes"])[0]).collect();
        let sum: u64 = taken.iter().sum();
        assert!((1..=models_bytes_max()).contains(&sum), "{taken:?}");
    }
}

/// Gives the manifest an adapter and three further models, of which one is its embedding model until now. Returns what
/// `birth` is told of it.
fn add_models(manifest: &mut toml::Table, dir: &Path) -> Vec<String> {
    let adapter = lora::adapter(dir, 1, lora::WIDTH);
    manifest.insert("adapters".into(), vec![weights(&adapter, ADAPTER)].into());
    let given = world::project().join(".vivarium/models");
    let plain =
        std::fs::read(given.join(text_of_toml(&manifest["model"]["file"]))).expect("the model: cargo xtask setup");
    let mut models = Vec::new();
    let mut flags = vec!["--adapter".to_owned(), shown(&adapter)];
    let mut add = |path: &Path, name: &str, more: &[(&str, toml::Value)]| {
        let mut model = weights(path, name);
        model.extend(more.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
        models.push(model);
        flags.extend(["--further".to_owned(), shown(path)]);
    };
    // The weights of the model, told by their template to be somebody else: what a receipt's digest keeps apart.
    for (name, who, price) in [
        (SAILOR, "called Ishmael, a sailor with a verse", Some(SAILOR_PCT)),
        (COOK, "called Auguste, who answers by recipe", None),
    ] {
        let path = dir.join(format!("{name}.gguf"));
        std::fs::write(&path, retold(&plain, who)).expect("a file");
        let price = price.map(|pct| ("price_pct", i64::try_from(pct).expect("small").into()));
        let about = [("kind", "chat".into()), ("context", 256.into())];
        add(&path, name, &about.into_iter().chain(price).collect::<Vec<_>>());
    }
    let Some(toml::Value::Table(vectors)) = manifest.remove("embedding") else { panic!("{manifest}") };
    let about = [("kind", "embedding".into()), ("context", vectors["context"].clone())];
    add(&given.join(text_of_toml(&vectors["file"])), &text_of_toml(&vectors["name"]), &about);
    manifest.insert("models".into(), models.into());
    manifest.insert("models_bytes_max".into(), i64::try_from(models_bytes_max()).expect("small").into());
    manifest.insert("name".into(), "the seller".into());
    flags
}

/// The model with another sentence about itself in its chat template, of the same length.
fn retold(model: &[u8], who: &str) -> Vec<u8> {
    const FROM: &[u8] = b"named SmolLM, trained by Hugging Face";
    assert_eq!(who.len(), FROM.len());
    let at = model.windows(FROM.len()).position(|found| found == FROM).expect("the shipped model's own template");
    let mut model = model.to_vec();
    model[at..at + FROM.len()].copy_from_slice(who.as_bytes());
    model
}

/// What a manifest says of a file.
fn weights(path: &Path, name: &str) -> toml::Table {
    let bytes = std::fs::read(path).expect("weights");
    let cid = import_path(path, Profile::V1_2025, &mut |_, _| Ok(())).expect("a CID").cid;
    let file = path.file_name().and_then(|name| name.to_str()).expect("UTF-8");
    let texts = [
        ("name", name.to_owned()),
        ("cid", cid.to_string()),
        ("file", file.to_owned()),
        ("sha256", hex::encode(Sha256::digest(&bytes))),
    ];
    let length = ("bytes".to_owned(), i64::try_from(bytes.len()).expect("small").into());
    texts.into_iter().map(|(name, value)| (name.to_owned(), value.into())).chain([length]).collect()
}

fn shown(path: &Path) -> String {
    path.to_str().expect("UTF-8").to_owned()
}

/// A customer behind the proxy.
struct Shop {
    base_url: String,
    dir: PathBuf,
    runtime: Runtime,
    _process: Ended,
}

/// An answer that was paid for, and its receipt; both also as files.
struct Bought {
    answer: Value,
    receipt: Value,
    receipt_url: String,
    /// The receipt, the request and the answer, byte by byte.
    files: [String; 3],
}

impl Bought {
    fn said(&self) -> String {
        text_of(&self.answer["choices"][0]["message"]["content"])
    }

    /// By this program and what the world's store has, or what `flags` name.
    fn is_made_again(&self, world: &World, flags: &[&str]) {
        let [receipt, request, answer] = &self.files;
        let verify = ["verify", receipt, "--request", request, "--answer", answer];
        let (same, said) = world.run(&[&verify[..], flags].concat());
        assert!(same && said.contains("\nsame "), "{said}");
    }
}

impl Shop {
    /// The agent is found by its number: the world's own is another.
    fn open(world: &mut World, agent: &Agent) -> Shop {
        let number = world.until("its number in the registry", |_| {
            let file = get_json(&format!("{}/.well-known/agent-registration.json", agent.url))?;
            let one = file["registrations"].get(0)?;
            Some(format!("{}/{}", one["agentRegistry"].as_str()?, one["agentId"]))
        });
        let (process, base_url) = world::proxy(&world.data_dir(), &["--budget", "10/day", "--agent", &number]);
        let (dir, runtime) = (world.dir.path().to_owned(), Runtime::new().expect("a runtime"));
        Shop { base_url, dir, runtime, _process: Ended(process) }
    }

    fn bought(&self, world: &mut World, name: &str, path: &str, body: &Value) -> Bought {
        let file = |what: &str| shown(&self.dir.join(format!("{name}-{what}.json")));
        let files = ["receipt", "request", "answer"].map(file);
        let [receipt_file, request_file, answer_file] = &files;
        std::fs::write(request_file, body.to_string()).expect("a file");
        let (answer, receipt_url) = world.until(&format!("an answer: {name}"), |_| {
            let out = Command::new("curl")
                .args(["-s", "--max-time", "60", "-H", "content-type: application/json"])
                .args(["--data-binary", &format!("@{request_file}"), &format!("{}{path}", self.base_url)])
                .output()
                .ok()?;
            let said: Value = serde_json::from_slice(&out.stdout).ok()?;
            let Some(url) = said["x402"]["receipt"].as_str().map(str::to_owned) else {
                eprintln!("{name}: {said}");
                return None;
            };
            std::fs::write(answer_file, &out.stdout).expect("a file");
            Some((said, url))
        });
        let text = world.until("its receipt", |_| get_text(&receipt_url));
        std::fs::write(receipt_file, &text).expect("a file");
        let receipt = serde_json::from_str(&text).expect("JSON");
        Bought { answer, receipt, receipt_url, files }
    }

    /// Status, body and terms of a request for an answer that nothing is paid for, of the agent itself.
    fn posted(&self, url: &str, body: &Value) -> (u16, Value, Option<PaymentRequired>) {
        let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))]);
        let url = format!("{url}/v1/chat/completions");
        self.runtime.block_on(async {
            let sent = net::Client::new().send(Method::POST, &url, headers, body.to_string().into()).await;
            let mut answer = sent.expect("an answer");
            let terms = answer.header(&PAYMENT_REQUIRED).map(|text| PaymentRequired::from_header(text).expect("terms"));
            let mut whole = Vec::new();
            while let Some(piece) = answer.body.chunk(&url).await.expect("a body") {
                whole.extend_from_slice(&piece);
            }
            (answer.status.as_u16(), serde_json::from_slice(&whole).unwrap_or_default(), terms)
        })
    }

    /// Of a million tokens, prompt, cached and generated, and of the least call, micro-USDC: as the 402 says.
    fn prices(&self, world: &mut World, agent: &Agent, model: &str) -> [u128; 4] {
        let terms = world.until(&format!("the price of {model}"), |_| self.posted(&agent.url, &question(model)).2);
        let said = text_of(&terms.resource["description"]);
        let amounts = said.split(" USDC").filter_map(|piece| piece.rsplit(' ').next());
        let amounts: Vec<u128> =
            amounts.filter_map(|amount| pay::Usdc::parse(amount).ok()).map(|amount| amount.micro()).collect();
        amounts.try_into().unwrap_or_else(|_| panic!("four amounts in {said}"))
    }
}

fn text_of(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("a text: {value}")).to_owned()
}

fn text_of_toml(value: &toml::Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("a text: {value}")).to_owned()
}

/// A process that ends with the test.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
