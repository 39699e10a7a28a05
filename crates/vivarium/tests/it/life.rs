//! One whole life with real processes: birth → paid answers by the official JavaScript client → a steward's daemon
//! killed for good → moves → a killed node → a killed host and a takeover → pause and resume by a quorum → starvation
//! → `Closed`.
//!
//! Nothing is stood in for: the chain is anvil, the sandbox bubblewrap, the model the real one, the client
//! `@x402/fetch`. Time is scaled (`--day 20s`), so a life takes minutes.

use crate::world::{self, World, get_json, program, project, signal};
use pay::scheme::channel::ChannelId;
use pay::scheme::channel::facilitator::state_calls;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Enough for about four minutes of two hosts.
const SEED_USDC: &str = "16";
const SEED_UUSDC: i128 = 16_000_000;
/// What offers name as the least deposit, micro-USDC.
const LEAST_DEPOSIT: i128 = 100_000;

/// How long the seed and what customers paid may last: providers quote by chance, and four minutes are the rule.
const HUNGER: Duration = Duration::from_secs(600);

/// A process that ends with the test.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        signal(self.0.id(), "TERM");
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(10) {
            if matches!(self.0.try_wait(), Ok(Some(_))) {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn micro(status: &Value, field: &str) -> i128 {
    status[field].as_str().and_then(|s| s.parse().ok()).unwrap_or_else(|| panic!("{field} in {status}"))
}

/// The official JavaScript client, unmodified.
fn official_client(world: &Value, mode: &str, count: u32) -> Vec<Value> {
    let key = std::fs::read_to_string(world["customer"]["key_file"].as_str().expect("a key file")).expect("the key");
    let key = key.lines().find(|l| l.starts_with("0x")).expect("a line with the key");
    let out = Command::new("node")
        .arg("exact.mjs")
        .args([world["agent"]["url"].as_str().expect("a URL"), key.trim(), &count.to_string(), mode])
        .current_dir(project().join("tests/clients"))
        .output()
        .expect("node runs");
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success(), "the official client failed: {text} {}", String::from_utf8_lossy(&out.stderr));
    text.lines().map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("{e} in {l}"))).collect()
}

/// The same client paying by vouchers on a channel; every run is a new client without memory of the one before.
pub fn on_a_channel(world: &Value, mode: &str, count: u32) -> Vec<Value> {
    let out = world::client(world, mode, count, "batch-settlement", &[]);
    let said = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success(), "the official client failed: {said} {}", String::from_utf8_lossy(&out.stderr));
    lines_of(&out)
}

fn lines_of(out: &Output) -> Vec<Value> {
    let said = String::from_utf8_lossy(&out.stdout);
    said.lines().map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("{e} in {l}"))).collect()
}

/// The same client paying by the scheme it is told to. A host that the agent has just moved to offers nothing by Permit2
/// before its relay has gas, so it is asked until it does.
fn by_scheme(world: &mut World, mode: &str, count: u32, scheme: &str, flags: &[&str]) -> Vec<Value> {
    world.until(&format!("calls paid by {scheme}"), |w| {
        let out = world::client(&w.world(), mode, count, scheme, flags);
        if !out.status.success() {
            eprintln!("life: {}", String::from_utf8_lossy(&out.stdout).lines().next().unwrap_or_default());
        }
        out.status.success().then(|| lines_of(&out))
    })
}

/// The same question a hundred times at once under one name: answered once, paid once, and only what was delivered moves.
fn ts_rs_rs_upto_named(world: &mut World) {
    let asked = by_scheme(world, "plain", 100, "upto", &["--approve", "--named", "--at-once"]);
    let first = &asked[0];
    assert!(first["charged"].as_str().is_some_and(|charged| charged == first["payment"]["amount"]), "{first}");
    for answer in &asked {
        assert_eq!(
            (&answer["text"], &answer["payment"]),
            (&first["text"], &first["payment"]),
            "one answer, one charge"
        );
    }
}

/// A payer with a record: the text streams, and its end waits for the settlement.
fn ts_rs_rs_exact_permit2_streamed(world: &mut World) {
    let asked = by_scheme(world, "stream", 1, "exact-permit2", &[]);
    assert_eq!(asked[0]["status"], 200, "{asked:?}");
    assert!(asked[0]["text"].as_str().is_some_and(|text| text.contains("transaction")), "{asked:?}");
}

/// Somebody who knows the registry, the agent's number in it and a chain endpoint: finds the agent, checks that it asks
/// to be paid as the identity's owner, and buys an answer, two vectors and a ranking; it tells of the
/// last two.
fn stranger(running: &World) -> [Value; 2] {
    let world = running.world();
    let text = |value: &Value| value.as_str().expect("a word in world.json").to_owned();
    let key = std::fs::read_to_string(text(&world["customer"]["key_file"])).expect("the key");
    let key = key.lines().find(|l| l.starts_with("0x")).expect("a line with the key").trim().to_owned();
    let registry = chain::bindings::IDENTITY_REGISTRY.to_string();
    // The first agent of this chain, and the published registry counts from 0.
    let out = Command::new("node")
        .arg("stranger.mjs")
        .args([&text(&world["rpc_url"]), &registry, "0", &key])
        .current_dir(project().join("tests/clients"))
        .output()
        .expect("node runs");
    let homes = [world["agent"]["url"].clone(), running.world()["agent"]["url"].clone()];
    let said = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success(), "the stranger failed: {said} {}", String::from_utf8_lossy(&out.stderr));
    let found: Value = serde_json::from_str(&said).unwrap_or_else(|e| panic!("{e} in {said}"));
    assert_eq!(found["owner"].as_str().map(str::to_lowercase), world["treasury"].as_str().map(str::to_lowercase));
    // It may have moved meanwhile.
    assert!(homes.contains(&found["url"]), "the record leads to where the agent lives now: {found}, {homes:?}");
    assert_eq!(found["status"], 200, "{found}");
    ["vectors", "ranking"].map(|bought| found[bought].clone())
}

/// Tokens of a class of their own, the model that made the vectors, and what was paid; off line, in both forms.
fn vectors_have_their_receipt(world: &mut World, bought: &Value) {
    let request = bought["request"].as_str().expect("a request id");
    let receipt = world.until("the receipt of vectors", |w| {
        get_json(&format!("{}/receipts/{request}", w.world()["agent"]["url"].as_str()?))
    });
    let counts = ["version", "prompt_tokens", "completion_tokens"].map(|name| receipt[name].as_u64());
    assert_eq!(counts, [Some(5), Some(0), Some(0)], "{receipt}");
    assert!(receipt["embedding_tokens"] == bought["tokens"] && bought["tokens"].as_u64() > Some(4), "{receipt}");
    assert_eq!(receipt["amount_uusdc"], bought["amount"], "{receipt}");
    let manifest = std::fs::read_to_string(world.data_dir().join("manifest.toml")).expect("the manifest");
    let manifest = node::manifest::Manifest::parse(&manifest).expect("it parses");
    let cid = store::cid::parse(&manifest.embedding.expect("a model for vectors").cid).expect("a CID");
    assert_eq!(receipt["model_sha256"], format!("0x{}", hex::encode(store::cid::digest(&cid))), "{receipt}");
    for form in ["json", "cose"] {
        let file = world.dir.path().join(format!("vectors.{form}"));
        // What was kept under this name before is not held against the new receipt.
        std::fs::write(file.with_extension(format!("{form}.proof")), "of another receipt").expect("a file");
        let mut fetch = vec!["receipt", request, "--out", file.to_str().expect("a path")];
        fetch.extend((form == "cose").then_some("--cose"));
        world.until("a receipt in a file", |w| w.run(&fetch).0.then_some(()));
        let out = Command::new(program()).args(["receipt", "verify"]).arg(&file).output().expect("it runs");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    }
}

/// `vivarium proxy` on this world.
struct Proxy {
    process: Daemon,
    base_url: String,
}

impl Proxy {
    fn start(world: &World, flags: &[&str]) -> Self {
        let mut process = Command::new(program())
            .args(["proxy", "--listen", "127.0.0.1:0", "--json", "--max-usdc", "20", "--data-dir"])
            .arg(world.data_dir())
            .args(flags)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the proxy starts");
        let mut line = String::new();
        BufReader::new(process.stdout.take().expect("its words")).read_line(&mut line).expect("one line");
        let hello: Value = serde_json::from_str(&line).expect("a JSON line");
        let base_url = hello["base_url"].as_str().expect("a base URL").to_owned();
        Self { process: Daemon(process), base_url }
    }

    /// A program written for OpenAI, with nothing changed but its base URL; whether it worked, and what it said.
    fn run(&self, [language, script]: [&str; 2]) -> (bool, String) {
        let out = Command::new(language)
            .args([script, &self.base_url])
            .current_dir(project().join("tests/clients"))
            .output()
            .expect("it runs");
        let said = [out.stdout, out.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        (out.status.success(), said)
    }

    /// Ends it; what it said to its user.
    fn end(mut self) -> String {
        let mut said = String::new();
        let mut words = self.process.0.stderr.take().expect("its words");
        signal(self.process.0.id(), "TERM");
        words.read_to_string(&mut said).expect("text");
        said
    }
}

/// The SDKs of both languages through a proxy that pays from channels and from nothing else.
fn openai_sdks_through(proxy: &Proxy) {
    let python = project().join(".vivarium/python/bin/python");
    assert!(python.is_file(), ".vivarium/python is missing: `cargo xtask setup` makes it");
    for (language, program) in
        [("JavaScript", ["node", "openai.mjs"]), ("Python", [&*python.to_string_lossy(), "openai_sdk.py"])]
    {
        let (worked, said) = proxy.run(program);
        assert!(worked, "the OpenAI SDK for {language} failed: {said}");
        assert!(said.contains("model_not_found"), "an agent's own refusal comes through: {said}");
    }
}

/// The SDKs of both languages at the agent itself, with the official x402 clients as their transports.
fn openai_sdks_that_pay(world: &mut World) {
    let python = project().join(".vivarium/python/bin/python").to_string_lossy().into_owned();
    for program in [["node", "openai.mjs"], [&*python, "openai_paid.py"]] {
        // It may move in the middle, and these clients do not follow it: then once more at its new place.
        world.until(&format!("{} pays by itself", program[1]), |w| {
            let world = w.world();
            let word = |value: &Value| value.as_str().map(str::to_owned);
            let url = word(&world["agent"]["url"])?;
            let key = std::fs::read_to_string(word(&world["customer"]["key_file"])?).ok()?;
            let key = key.lines().find(|line| line.starts_with("0x"))?.trim().to_owned();
            let out = Command::new(program[0])
                .args([program[1], &format!("{url}/v1"), &key, &word(&world["rpc_url"])?])
                .current_dir(project().join("tests/clients"))
                .output()
                .expect("it runs");
            if !out.status.success() {
                let said = [out.stdout, out.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
                eprintln!("life: {} failed: {said}", program[1]);
                return None;
            }
            Some(())
        });
    }
}

/// The same proxy after the agent has moved: what was in channels still pays. Then its money is given back, and the
/// budget is used up: a new proxy still knows it.
fn openai_sdk_after_a_move(world: &mut World, proxy: Proxy) {
    world.until("the SDK after the move", |_| {
        let (worked, said) = proxy.run(["node", "openai.mjs"]);
        // A door that closes for a moment is an error that a program handles; nothing was paid for it.
        if !worked {
            eprintln!("life: {said}");
        }
        worked.then_some(())
    });
    let said = proxy.end();
    assert!(said.contains("lie in channels and are not spent"), "{said}");
    world.until("the money in channels comes back", |w| {
        let (worked, said) = w.run(&["proxy", "--refund"]);
        if !worked {
            eprintln!("life: {said}");
        }
        (worked && said.contains("came back from")).then_some(())
    });
    // What was signed before counts, so a smaller budget is used up from the start.
    for scheme in ["exact", "batch-settlement"] {
        let proxy = Proxy::start(world, &["--budget", "0.000001/day", "--scheme", scheme]);
        let (worked, said) = proxy.run(["node", "openai.mjs"]);
        assert!(!worked, "nothing is paid over the budget: {said}");
        assert!(said.contains(if scheme == "exact" { "insufficient_quota" } else { "price_over_limit" }), "{said}");
    }
}

/// From a smart wallet (`exact` plain and streamed, `upto`, `exact` by Permit2 streamed): served, and refused once the
/// wallet takes its word back.
fn ts_rs_rs_exact_and_upto_by_a_contract(world: &mut World) {
    // A host that the agent has just moved to takes nothing of a contract, and offers nothing by Permit2, before its relay
    // has gas, so it is asked until it does. Anybody's: it owns a wallet of its own.
    let owner = format!("0x{}", "5a".repeat(32));
    let simulated = ["invalid_exact_evm_transaction_simulation_failed", "permit2_simulation_failed"];
    for (scheme, mode, refusal) in [
        ("exact", "plain", simulated[0]),
        ("exact", "stream", simulated[0]),
        ("upto", "plain", simulated[1]),
        ("exact-permit2", "stream", simulated[1]),
    ] {
        let lines = world.until(&format!("a wallet pays by {scheme}"), |w| {
            let world = w.world();
            let text = |value: &Value| value.as_str().expect("a word in world.json").to_owned();
            let out = Command::new("node")
                .args(["wallet.mjs", &text(&world["agent"]["url"]), &owner, "2", mode])
                .args([&text(&world["rpc_url"]), &text(&world["usdc"]), scheme])
                .current_dir(project().join("tests/clients"))
                .output()
                .expect("node runs");
            let lines = lines_of(&out);
            let without_gas = lines.first().is_some_and(|line| line["status"] == 503);
            let is_ready = (scheme == "exact" || out.status.success()) && !without_gas;
            if !is_ready {
                eprintln!("life: {}", String::from_utf8_lossy(&out.stderr).lines().next().unwrap_or_default());
            }
            is_ready.then_some(lines)
        });
        let statuses: Vec<&Value> = lines.iter().map(|line| &line["status"]).collect();
        assert_eq!(statuses, [200, 402], "{scheme}: {lines:?}");
        assert_eq!(lines[0]["payment"]["success"], true, "settled before its first byte: {lines:?}");
        assert_eq!(lines[1]["error"], refusal, "{scheme}: {lines:?}");
    }
}

/// The same long beginning twice: the second time most of it is cached, and costs less. Both amounts are what the prices in
/// force make of the tokens that the receipts name, rounded up once, and no more than a call may cost.
fn metered_by_class(world: &mut World) {
    let beginning = "Of the lease market, the treasury, the purse, the stewards and their quorum. ".repeat(12);
    let class = |status: &Value, name: &str| micro(&status["price"], name);
    let manifest = std::fs::read_to_string(world.data_dir().join("manifest.toml")).expect("a manifest");
    let manifest: toml::Table = manifest.parse().expect("TOML");
    let most: i128 = manifest["max_call_uusdc"].as_str().and_then(|most| most.parse().ok()).expect("a number");
    world.until("two calls at one price", |w| {
        let before = w.agent()?;
        let receipts: Vec<Value> = ["first", "second"]
            .iter()
            .map(|which| {
                let question = format!("{beginning} Say {which}.");
                let told =
                    w.ask(&["--scheme", "batch-settlement", "--max-usdc", "20", "--max-tokens", "4", &question])?;
                get_json(&format!("{}/receipts/{}", w.world()["agent"]["url"].as_str()?, told["request_id"].as_str()?))
            })
            .collect::<Option<_>>()?;
        // A new price, or another host in between: once more. One that charges wrongly never comes to an end here.
        let is_steady = before["price"] == w.agent()?["price"] && receipts[0]["epoch"] == receipts[1]["epoch"];
        let cached = receipts[1]["cached_tokens"].as_i64()?;
        if !is_steady || cached == 0 {
            return None;
        }
        for receipt in &receipts {
            let of = |name: &str| i128::from(receipt[name].as_i64().expect("a number"));
            let cached = of("cached_tokens");
            let cost = (of("prompt_tokens") - cached) * class(&before, "mtok_prompt_uusdc")
                + cached * class(&before, "mtok_cached_uusdc")
                + of("completion_tokens") * class(&before, "mtok_completion_uusdc");
            let metered = ((cost + 999_999) / 1_000_000).max(class(&before, "call_uusdc")).min(most);
            let charged = micro(receipt, "amount_uusdc");
            // A price may rise and fall back while the two are asked: a standby ends and the next one is rented.
            if charged != metered {
                eprintln!("life: {charged} charged, {metered} metered: {receipt} at {}", before["price"]);
                return None;
            }
        }
        assert!(class(&before, "mtok_cached_uusdc") < class(&before, "mtok_prompt_uusdc"), "{}", before["price"]);
        Some(())
    });
}

/// A receipt in either form, off line and against the chain; an altered one in neither.
fn a_receipt_is_proved_on_chain(world: &mut World, request: &str) {
    let rpc = world.world()["rpc_url"].as_str().expect("an endpoint").to_owned();
    let verify = |file: &Path, more: &[&str]| {
        let out = Command::new(program()).args(["receipt", "verify"]).arg(file).args(more).output().expect("it runs");
        (out.status.success(), String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned())
    };
    for form in ["json", "cose"] {
        let file = world.dir.path().join(format!("receipt.{form}"));
        let proof = world.dir.path().join(format!("receipt.{form}.proof"));
        let mut fetch = vec!["receipt", request, "--out", file.to_str().expect("a path")];
        fetch.extend((form == "cose").then_some("--cose"));
        world.until("a heartbeat after the receipt", |w| {
            let (done, text) = w.run(&fetch);
            assert!(done, "{text}");
            proof.is_file().then_some(())
        });
        let (holds, text) = verify(&file, &[]);
        assert!(holds && text.contains("signed by"), "{text}");
        let (holds, text) = verify(&file, &["--rpc", &rpc]);
        assert!(holds && text.contains("operator of epoch") && text.contains("root of the heartbeat"), "{text}");
        let mut altered = std::fs::read(&file).expect("the receipt");
        let middle = altered.len() / 2;
        altered[middle] ^= 1;
        std::fs::write(&file, altered).expect("written");
        assert!(!verify(&file, &["--rpc", &rpc]).0, "an altered receipt");
    }
}

/// The chain names two more: the first may have been acknowledged before whatever happened last.
fn checkpoints_go_on(world: &mut World) {
    let seq = |w: &World| w.status()?["record"]["checkpoint_seq"].as_u64();
    let before = world.until("the record", seq);
    world.until("checkpoints go on", |w| (seq(w)? > before + 1).then_some(()));
}

/// Plain and streamed; a receipt of it is under a root on chain.
fn ts_rs_rs_exact(world: &mut World) {
    for mode in ["plain", "stream"] {
        let answers = official_client(&world.world(), mode, 2);
        assert_eq!(answers.len(), 2);
        for answer in &answers {
            assert_eq!(answer["status"], 200, "{answer}");
            assert!(!answer["text"].as_str().unwrap_or_default().is_empty(), "the text comes from the model: {answer}");
        }
        if mode == "plain" {
            a_receipt_is_proved_on_chain(world, answers[0]["x402"]["request"].as_str().expect("a request id"));
        }
    }
}

/// A deposit, and no transaction a call while what it put in lasts.
fn ts_rs_rs_batch_settlement_streamed(world: &World) -> Vec<Value> {
    let calls = on_a_channel(&world.world(), "stream", 3);
    assert_eq!(calls.len(), 3);
    let puts_in = |call: &Value| call["payment"]["transaction"].as_str().is_some_and(|tx| !tx.is_empty());
    assert!(puts_in(&calls[0]), "{calls:?}");
    // Five calls' worth where a call may cost more than the least deposit that offers name, else that; so never less than
    // a call may cost.
    let first = micro(&calls[0]["payment"], "amount");
    for next in calls.windows(2) {
        let left = of_channel(&next[0], "balance") - of_channel(&next[1], "chargedCumulativeAmount");
        let is_needed = first == LEAST_DEPOSIT && left < first;
        assert!(is_needed || !puts_in(&next[1]), "{left} lay in it: {calls:?}");
    }
    calls
}

/// What the answer to a call says of its channel, micro-USDC.
fn of_channel(call: &Value, field: &str) -> i128 {
    micro(&call["payment"]["extra"]["channelState"], field)
}

/// The channel moves with the agent: a client without memory is put right and pays on from what was charged before.
fn ts_rs_rs_batch_settlement_after_a_takeover(now: &Value, before: &[Value]) -> Vec<Value> {
    let charged = |calls: &[Value]| of_channel(calls.last().expect("a call"), "chargedCumulativeAmount");
    let later = on_a_channel(now, "plain", 2);
    assert!(charged(&later) > charged(before), "the same channel goes on: {before:?} {later:?}");
    later
}

#[test]
fn a_whole_life() {
    let _turn = world::turn();
    let mut world = World::start(&["--day", "20s", "--lease", "6d", "--seed-usdc", SEED_USDC, "--no-restart"]);
    world.until("birth", |w| w.file()?["agent"]["url"].as_str().map(str::to_owned));
    world.until("the agent sells", |w| (w.agent()?["selling"] == true).then_some(()));

    // Money comes in.
    ts_rs_rs_exact(&mut world);
    ts_rs_rs_exact_and_upto_by_a_contract(&mut world);
    let calls = ts_rs_rs_batch_settlement_streamed(&world);
    metered_by_class(&mut world);
    let gifts = micro(&world.agent().expect("a status"), "gifts_uusdc");
    ts_rs_rs_upto_named(&mut world);
    ts_rs_rs_exact_permit2_streamed(&mut world);
    let proxy = Proxy::start(&world, &["--budget", "100/day", "--scheme", "batch-settlement"]);
    openai_sdks_through(&proxy);
    openai_sdks_that_pay(&mut world);
    // And from somebody who was told nothing but a number.
    for bought in stranger(&world) {
        vectors_have_their_receipt(&mut world, &bought);
    }
    let begun = world.ask(&["--remember", "--max-tokens", "24", "My name is Ada. Say hello."]).expect("an answer");
    assert_eq!(begun["scheme"], "batch-settlement", "{begun}");
    let by_exact = world.ask(&["--scheme", "exact", "--max-tokens", "8", "Say hello."]).expect("an answer");
    assert_eq!(by_exact["scheme"], "exact", "{by_exact}");
    let conversation = begun["id"].as_str().expect("the id of the stored answer").to_owned();
    let booked = world.until("income in the ledger", |w| w.agent().filter(|s| micro(s, "earned_uusdc") > 0));
    assert_eq!(micro(&booked, "gifts_uusdc"), gifts, "what customers paid by Permit2 is no gift: {booked}");

    // One of three stewards is off line from here to the end: two acknowledge, release their shares and give orders.
    let gone = 3;
    signal(world.steward_pid(gone).expect("its daemon runs"), "KILL");
    world.until("a steward is gone", |w| w.steward_pid(gone).is_none().then_some(()));
    checkpoints_go_on(&mut world);

    // A planned move.
    let first = world.epoch().expect("an epoch");
    world.until("a move", |w| (w.epoch()? > first).then_some(()));
    let goes_on = world.until("the conversation goes on after the move", |w| {
        w.ask(&["--conversation", &conversation, "--remember", "--max-tokens", "24", "What is my name?"])
    });
    let conversation = goes_on["id"].as_str().expect("an id").to_owned();
    openai_sdk_after_a_move(&mut world, proxy);

    // The node dies; its provider starts it again on the same lease, and the journal goes on.
    let (epoch, before) = (world.epoch().expect("an epoch"), world.agent().expect("a status"));
    let earned = micro(&before, "earned_uusdc");
    let pid = before["pid"].as_u64().expect("a pid");
    let pid = world.world()["agent"]["pid"].as_u64().unwrap_or(pid);
    signal(u32::try_from(pid).expect("a pid"), "KILL");
    world.until("restart on the same host", |w| {
        let status = w.agent()?;
        (status["selling"] == true && (w.epoch()? > epoch || status["pid"] != before["pid"])).then_some(())
    });
    let after = world.until("the ledger after the restart", |w| w.agent().filter(|s| s["ledger_ok"] == true));
    assert!(micro(&after, "earned_uusdc") >= earned, "income was lost: {earned} before, {after}");

    // The host dies, provider daemon and all.
    let epoch = world.epoch().expect("an epoch");
    world.until("a standby", |w| w.agent()?["standby"]["ready"].as_bool().filter(|r| *r));
    let file = world.world();
    let url = file["agent"]["url"].as_str().expect("a URL").to_owned();
    let (index, victim) = provider_of(&file).unwrap_or_else(|| panic!("no provider serves {url} in {file}"));
    signal(victim, "KILL");
    world.until("a takeover", |w| {
        let now = w.file()?;
        (now["agent"]["epoch"].as_u64()? > epoch && now["agent"]["url"].as_str()? != url).then_some(())
    });
    world.until("selling after the takeover", |w| (w.agent()?["selling"] == true).then_some(()));
    world.until("the conversation goes on after the takeover", |w| {
        w.ask(&["--conversation", &conversation, "--max-tokens", "16", "And what did I say first?"])
    });
    let after = world.until("balanced books after the takeover", |w| w.agent().filter(|s| s["ledger_ok"] == true));
    assert!(micro(&after, "earned_uusdc") >= earned, "income was lost in the takeover: {after}");
    checkpoints_go_on(&mut world);
    assert_eq!(world.steward_pid(gone), None, "nobody started it again");

    let now = world.world();
    let later = ts_rs_rs_batch_settlement_after_a_takeover(&now, &calls);
    // More lies in it than was charged, and nobody will ask for that.
    let channel = later.last().expect("a call")["payment"]["extra"]["channelState"]["channelId"].clone();
    let (balance, claimed) = lies_in(&now, &channel);
    assert!(balance > claimed, "{balance} in the channel, {claimed} claimed");
    // So did the identity.
    stranger(&world);
    let named = format!("eip155:{}:{}/0", now["chain_id"], chain::bindings::IDENTITY_REGISTRY);
    let by_name = world.ask(&["--agent", &named, "--max-tokens", "8", "Who are you by your number?"]);
    assert!(by_name.is_some_and(|answer| answer["url"].as_str().is_some_and(|url| !url.is_empty())), "{named}");

    // The dead provider comes back, as its service manager would have it: the agent needs two owners to live on.
    let config = world.data_dir().join(format!("provider-{}/config.toml", index + 1));
    let log = std::fs::File::create(world.dir.path().join("provider.log")).expect("a log file");
    let back = Command::new(program())
        .args(["provider", "run", "--config"])
        .arg(&config)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .expect("the provider starts again");
    let _back = Daemon(back);

    // Oversight: one steward is refused, two pause and resume.
    let keys = world.steward_keys();
    let (one_alone, text) = world.run(&["steward", "pause", "--key", &keys[0]]);
    assert!(!one_alone, "one steward alone paused the agent: {text}");
    let (paused, text) = world.run(&["steward", "pause", "--key", &keys[0], "--key", &keys[2]]);
    assert!(paused, "{text}");
    world.until("the pause", |w| w.agent()?["paused"].as_bool().filter(|p| *p));
    let (resumed, text) = world.run(&["steward", "resume", "--key", &keys[1], "--key", &keys[2]]);
    assert!(resumed, "{text}");
    world.until("the resumption", |w| w.agent()?["paused"].as_bool().filter(|p| !*p));

    // Nobody pays any more: it starves and ends in good order.
    let mut last: Option<Value> = None;
    world.within(HUNGER, "the end", |w| {
        let both = w.status()?;
        if let Some(status) = both.get("agent").filter(|a| a.is_object()).cloned().filter(|s| s["role"] != "standby") {
            assert_eq!(status["ledger_ok"], true, "the books do not balance: {status}");
            last = Some(status);
        }
        (both["record"]["stage"] == "closed").then_some(())
    });
    let last = last.expect("a last status");
    let (balance, claimed) = lies_in(&now, &channel);
    assert_eq!(balance, claimed, "a deposit stays in the channel of an agent that has ended");
    assert!(micro(&last, "earned_uusdc") <= micro(&last, "settled_uusdc"), "vouchers were left unclaimed: {last}");
    // Everything that ever came in is accounted for, to the micro-USDC.
    let came_in = SEED_UUSDC + micro(&last, "gifts_uusdc") + micro(&last, "settled_uusdc");
    let went_out = micro(&last, "rent_uusdc") + micro(&last, "refunds_uusdc");
    let left = micro(&last, "balance_uusdc") + micro(&last, "escrow_uusdc");
    assert_eq!(came_in - went_out, left, "the ledger and the chain differ: {last}");
    audited(&world, &last);
    remembered(&world);
}

/// What the channel contract holds of a channel, and what was claimed of it, micro-USDC.
pub fn lies_in(world: &Value, channel: &Value) -> (u128, u128) {
    let id = channel.as_str().expect("a channel's id").trim_start_matches("0x");
    let [ask, ..] = state_calls(&ChannelId(hex::decode(id).expect("digits").try_into().expect("32 bytes")));
    let call = json!({ "to": world["channel"], "data": format!("0x{}", hex::encode(ask)) });
    let ask = json!({ "jsonrpc": "2.0", "id": 1, "method": "eth_call", "params": [call, "latest"] });
    let out = Command::new("curl")
        .args(["-sf", "-H", "content-type: application/json", "-d", &ask.to_string()])
        .arg(world["rpc_url"].as_str().expect("a URL"))
        .output()
        .expect("curl runs");
    let answer: Value = serde_json::from_slice(&out.stdout).expect("an answer of the chain");
    let words = answer["result"].as_str().unwrap_or_else(|| panic!("{answer}")).trim_start_matches("0x");
    let number = |word: &str| u128::from_str_radix(word, 16).expect("a number below 2^128");
    (number(&words[32..64]), number(&words[96..128]))
}

/// Somebody who asks only chain and store comes to the agent's own sums, and finds nothing unexplained.
fn audited(world: &World, last: &Value) {
    let audit = |flags: &[&str]| -> Value {
        let (ok, text) = world.run(&[&["audit", "--json"], flags].concat());
        let line = text.lines().find(|line| line.starts_with('{')).unwrap_or_else(|| panic!("no report: {text}"));
        let report: Value = serde_json::from_str(line).expect("a JSON line");
        assert!(ok && report["balances"] == true, "the books do not balance: {text}");
        report
    };
    // At the block of the last status every sum is the agent's own, to the micro-USDC.
    let then = audit(&["--block", &last["block"]["number"].to_string()]);
    for sum in ["seed", "settled", "rent", "gifts", "refunds", "balance", "escrow"] {
        let sum = format!("{sum}_uusdc");
        assert_eq!(then["money"][&sum], last[&sum], "{sum} differs: {then}\n{last}");
    }
    let now = audit(&[]);
    assert_eq!(now["stage"], "closed");
    assert_eq!((&now["unexplained"], &now["strange_events"]), (&json!([]), &json!(0)), "{now}");
    let words = |list: &str, field: &str| -> Vec<String> {
        let rows = now[list].as_array().unwrap_or_else(|| panic!("{list} in {now}"));
        rows.iter().map(|row| row[field].as_str().unwrap_or_default().to_owned()).collect()
    };
    let began = words("epochs", "began_by");
    assert!(["activate", "handover", "takeover"].iter().all(|how| began.iter().any(|b| b == how)), "{began:?}");
    assert_eq!(words("epochs", "ended_by").last().map(String::as_str), Some("close"));
    let pause = now["interventions"].as_array().and_then(|all| all.iter().find(|i| i["what"] == "pause"));
    let signers = pause.and_then(|p| p["by"]["signers"].as_array()).map(Vec::len);
    assert_eq!(signers, Some(2), "the pause names its two stewards: {now}");
    assert!(
        now["checkpoints"].as_array().is_some_and(|c| !c.is_empty() && c.iter().all(|c| c["fetched"] == true)),
        "{now}"
    );
}

/// Nobody runs the agent any more, and its log is still there: whole, up to its wind-down, and without anybody's words.
fn remembered(world: &World) {
    let (ok, text) = world.run(&["log", "--json"]);
    assert!(ok, "{text}");
    let lines: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    assert!(lines.iter().zip(1..).all(|(line, seq)| line["seq"] == seq), "lines are missing: {text}");
    for fact in ["epoch 1 begins", "paused by the stewards", "winds down"] {
        assert!(text.contains(fact), "no {fact:?} in the log: {text}");
    }
    for word in ["Ada", "Say hello"] {
        assert!(!text.contains(word), "the log holds what a customer said: {text}");
    }
}

/// Index and process of the provider whose tenant serves at the agent's address.
fn provider_of(file: &Value) -> Option<(usize, u32)> {
    let url = file["agent"]["url"].as_str()?;
    file["providers"].as_array()?.iter().enumerate().find_map(|(index, p)| {
        let status: Value = get_json(&format!("{}/status", p["url"].as_str()?))?;
        let pid = u32::try_from(p["pid"].as_u64()?).ok()?;
        status.to_string().contains(url).then_some((index, pid))
    })
}
