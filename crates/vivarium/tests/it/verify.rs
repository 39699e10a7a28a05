//! `vivarium verify` with the real engine: an answer as the node makes it, and what it says when something is not so.

use super::world::{World, proxy};
use alloy::primitives::{Address, keccak256};
use alloy::signers::local::PrivateKeySigner;
use infer::api::{Answered, ChatReply, ExtractReply, extract};
use infer::rerun::Asked;
use infer::{ChatTemplate, EngineClass, EngineClient, EngineConfig, EngineEvent, Run};
use pay::receipt::PaidBy;
use pay::receipt::run::Run as Signed;
use pay::{Receipt, RequestId, Usdc};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::process::Command;
use store::unixfs::{Profile, import_path};

const ROUTE: &str = infer::api::chat::ROUTE;
/// A Sunday in November, for templates that ask.
const DATE: u64 = 1_795_953_600;

fn operator() -> PrivateKeySigner {
    PrivateKeySigner::from_bytes(&keccak256(b"operator")).expect("a key")
}

fn model() -> PathBuf {
    let path = super::world::project().join(".vivarium/models/SmolLM2-135M-Instruct.Q4_1.gguf");
    assert!(path.is_file(), "NO MODEL at {}: `cargo xtask setup` makes it", path.display());
    path
}

/// A paid answer: the files that its customer has.
struct Paid {
    dir: tempfile::TempDir,
    receipt: Receipt,
}

impl Paid {
    /// `request` answered by an engine as a node runs it, in company of nobody.
    async fn for_request(request: &Value) -> Paid {
        let reply = ChatReply {
            id: "chatcmpl-1".into(),
            created: DATE,
            model: "m".into(),
            include_usage: false,
            logprobs: false,
            tools: false,
        };
        Paid::at(ROUTE, request, |answered| reply.whole(answered, Map::new())).await
    }

    /// The same at another route, which replies in another form.
    async fn at(route: &str, request: &Value, reply: impl FnOnce(Answered<'_>) -> Value) -> Paid {
        let dir = tempfile::tempdir().expect("a folder");
        let config = EngineConfig {
            adapters: Vec::new(),
            program: Path::new(super::world::program()).with_file_name("vivarium-engine"),
            model: model(),
            socket: dir.path().join("engine.sock"),
            threads: 1,
            threads_max: 1,
            ctx: 512,
            slots: EngineConfig::SLOTS_DEFAULT,
        };
        let (engine, hello) = EngineClient::spawn(config).await.expect("an engine");
        let template = ChatTemplate::new(hello.chat_template.as_deref(), &hello.bos, &hello.eos).expect("a template");
        let body = request.to_string();
        let asked = Asked::read(route, body.as_bytes()).expect("a request");
        let prompt = asked.prompt(&template, DATE).expect("a prompt");
        let tokens = engine.count_tokens(&prompt, false).await.expect("a count");
        let max_tokens = asked.settings.max_tokens_within(hello.n_ctx - tokens);
        let generate = asked.settings.clone().generate(prompt, max_tokens, 7);
        let run = Run::of(route, DATE, &generate, None, EngineClass::of(&hello, engine.program_sha256()));
        let mut generation = engine.generate(generate).expect("it begins");
        let mut text = String::new();
        let (finish, usage) = loop {
            match generation.recv().await.expect("an answer ends") {
                EngineEvent::Tokens { text: more, .. } => text.push_str(&more),
                EngineEvent::Done { finish, prompt_tokens, cached_tokens, completion_tokens } => {
                    break (finish, infer::api::Usage { prompt_tokens, cached_tokens, completion_tokens });
                }
                EngineEvent::Accepted { .. } => {}
                other => panic!("{other:?}"),
            }
        };
        let answer = reply(Answered { text: &text, logprobs: &[], finish, usage });
        let cid = import_path(&model(), Profile::V1_2025, &mut |_, _| Ok(())).expect("a CID").cid;
        let receipt = Receipt {
            agent: Address::repeat_byte(0xaa),
            chain_id: 31337,
            epoch: 3,
            request: RequestId([7; 16]),
            payer: Address::repeat_byte(0xbb),
            paid_by: PaidBy::Authorization { nonce: [1; 32], transaction: [5; 32] },
            model: store::cid::digest(&cid),
            adapter: [0; 32],
            run: Signed::of(&run.to_canonical()),
            prompt: Sha256::digest(&body).into(),
            output: Sha256::digest(&text).into(),
            prompt_tokens: usage.prompt_tokens,
            cached_tokens: usage.cached_tokens,
            completion_tokens: usage.completion_tokens,
            embedding_tokens: 0,
            amount: Usdc(1_234),
            issued_at: DATE,
        };
        let paid = Paid { dir, receipt };
        paid.write("request.json", &body);
        paid.write("answer.json", &answer.to_string());
        paid.sign(&paid.receipt);
        paid
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.dir.path().join(name), text).expect("a file");
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.dir.path().join(name)).expect("a file")
    }

    fn sign(&self, receipt: &Receipt) {
        self.write("receipt.json", &receipt.clone().sign(&operator()).expect("signed").to_json());
    }

    /// The exit status, and what was said as JSON (or, where there was none, the complaint).
    fn verify(&self, flags: &[&str]) -> (Option<i32>, Value) {
        let out = Command::new(super::world::program())
            .args(["verify", "receipt.json", "--request", "request.json", "--answer", "answer.json", "--json"])
            .args(["--operator", &operator().address().to_string()])
            .arg("--model")
            .arg(model())
            .args(flags)
            .current_dir(self.dir.path())
            .output()
            .expect("it runs");
        let said = serde_json::from_slice(&out.stdout);
        (out.status.code(), said.unwrap_or_else(|_| String::from_utf8_lossy(&out.stderr).into_owned().into()))
    }
}

fn question(more: Value) -> Value {
    let mut request = json!({
        "model": "m",
        "messages": [{"role": "user", "content": "Tell me in two sentences what a fox is."}],
        "max_tokens": 24,
    });
    request.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    request
}

#[tokio::test]
async fn an_answer_is_made_again_and_what_is_not_so_is_named() {
    let greedy = Paid::for_request(&question(json!({ "temperature": 0 }))).await;
    let (status, said) = greedy.verify(&[]);
    assert_eq!((status, &said["verdict"], &said["why"]), (Some(0), &json!("same"), &json!([])), "{said}");

    // Other conditions than the receipt's: nothing is said, whatever the text would be.
    let (status, said) = greedy.verify(&["--threads", "2"]);
    assert_eq!((status, &said["verdict"]), (Some(4), &json!("unknown")), "{said}");
    assert_eq!(said["why"], json!(["threads: 1 in the receipt, 2 here"]));
    let run = greedy.receipt.run.text().expect("a run").to_owned();
    for (from, to, why) in [
        ("\"isa\":\"", "\"isa\":\"neon,", "instruction sets: neon,"),
        ("\"program_sha256\":\"", "\"program_sha256\":\"0", "engine program: 0"),
        ("\"temperature\":\"0\"", "\"temperature\":\"0.5\"", "temperature was 0.5, and 0 was asked for"),
    ] {
        let altered = run.replacen(from, to, 1);
        assert_ne!(altered, run, "{from}");
        greedy.sign(&Receipt { run: Signed::of(&altered), ..greedy.receipt.clone() });
        let (status, said) = greedy.verify(&[]);
        assert_eq!((status, &said["verdict"]), (Some(4), &json!("unknown")), "{said}");
        assert!(said["why"][0].as_str().is_some_and(|said| said.starts_with(why)), "{said}");
    }
    greedy.sign(&greedy.receipt);

    // Another answer than the one that was signed, and then one that was signed and never made.
    let answer: Value = serde_json::from_str(&greedy.read("answer.json")).expect("JSON");
    let text = answer["choices"][0]["message"]["content"].as_str().expect("a text").to_owned();
    let at = text.find(' ').expect("two words") + 1;
    let altered = format!("{}X{}", &text[..at], &text[at..]);
    let mut forged = answer.clone();
    forged["choices"][0]["message"]["content"] = altered.as_str().into();
    greedy.write("answer.json", &forged.to_string());
    let (status, said) = greedy.verify(&[]);
    assert_eq!(
        (status, &said["verdict"], &said["place"]["bytes"]),
        (Some(3), &json!("different"), &json!(at)),
        "{said}"
    );
    assert!(said["place"]["answered"].as_str().is_some_and(|shown| shown.starts_with('X')), "{said}");
    assert_eq!(said["why"], json!(["the receipt is not of the text in this answer"]));
    greedy.sign(&Receipt { output: Sha256::digest(&altered).into(), ..greedy.receipt.clone() });
    let (status, said) = greedy.verify(&[]);
    assert_eq!((status, &said["place"]["bytes"]), (Some(3), &json!(at)), "{said}");
    assert_eq!(said["why"], json!(["what the engine makes is not the output that the receipt names"]));
    greedy.sign(&greedy.receipt);

    // Another request, and a receipt of which a byte is not what was signed: not even tried.
    let request = greedy.read("request.json");
    greedy.write("request.json", &request.replace("fox", "dog"));
    let (status, said) = greedy.verify(&[]);
    assert!(status == Some(1) && said.as_str().is_some_and(|said| said.contains("of another request")), "{said}");
    greedy.write("request.json", &request);
    let receipt = greedy.read("receipt.json");
    greedy.write("receipt.json", &receipt.replace("\"max_tokens\":24", "\"max_tokens\":23"));
    let (status, said) = greedy.verify(&[]);
    assert!(status == Some(1) && said.as_str().is_some_and(|said| said.contains("not what was signed")), "{said}");
}

/// Chance is in the receipt where the customer named none, and a seed is the customer's where it named one.
#[tokio::test]
async fn drawn_answers_are_made_again_by_their_seed() {
    let drawn = Paid::for_request(&question(json!({ "temperature": 1.3, "top_p": 0.95, "stop": ["\n\n"] }))).await;
    let (status, said) = drawn.verify(&[]);
    assert_eq!((status, &said["verdict"]), (Some(0), &json!("same")), "{said}");
    // With another seed it is another answer: so it was drawn.
    let run = drawn.receipt.run.text().expect("a run").replacen("\"seed\":\"7\"", "\"seed\":\"8\"", 1);
    drawn.sign(&Receipt { run: Signed::of(&run), ..drawn.receipt.clone() });
    let (status, said) = drawn.verify(&[]);
    assert_eq!((status, &said["verdict"]), (Some(3), &json!("different")), "{said}");
    assert!(said["place"].is_object(), "{said}");

    let seeded = Paid::for_request(&question(json!({ "temperature": 0.9, "seed": 11 }))).await;
    let (status, said) = seeded.verify(&[]);
    assert_eq!((status, &said["verdict"]), (Some(0), &json!("same")), "{said}");
}

/// JSON that was taken out of a text is greedy, and made again.
#[tokio::test]
async fn what_was_extracted_is_made_again() {
    let schema = json!({
        "type": "object",
        "properties": {"name": {"type": "string"}, "order": {"type": "integer"}},
        "required": ["name", "order"],
        "additionalProperties": false,
    });
    let request = json!({"model": "m", "input": "Ines Okoro asks where order 4471 is.", "schema": schema});
    let reply = ExtractReply { id: "extr-1".into(), created: DATE, model: "m".into() };
    let paid = Paid::at(extract::ROUTE, &request, |answered| reply.whole(answered, Map::new())).await;
    let answer: Value = serde_json::from_str(&paid.read("answer.json")).expect("JSON");
    assert_eq!(answer["data"]["order"], 4471, "{answer}");
    let (status, said) = paid.verify(&[]);
    assert_eq!((status, &said["verdict"]), (Some(0), &json!("same")), "{said}");
    let mut forged = answer;
    forged["output_text"] = forged["output_text"].as_str().expect("a text").replace("4471", "4472").into();
    paid.write("answer.json", &forged.to_string());
    let (status, said) = paid.verify(&[]);
    assert_eq!((status, &said["verdict"]), (Some(3), &json!("different")), "{said}");
}

/// An agent's own answer, bought through the proxy: its receipt, the world's store and the engine are enough.
pub fn an_agents_answer_is_made_again(world: &mut World) {
    let (process, base_url) = proxy(&world.data_dir(), &["--budget", "100/day", "--max-usdc", "20"]);
    let _process = Ended(process);
    let file = |name: &str| world.dir.path().join(name).to_str().expect("UTF-8").to_owned();
    let [request, answer, receipt] = ["asked.json", "answered.json", "bought.json"].map(file);
    let model = world.agent().expect("a status")["model"].clone();
    let body = json!({
        "model": model,
        "messages": [{"role": "user", "content": "Tell me in two sentences what a fox is."}],
        "max_tokens": 24,
        "temperature": 0.8,
    });
    std::fs::write(&request, body.to_string()).expect("a file");
    let id = world.until("an answer through the proxy", |_| {
        let out = Command::new("curl")
            .args(["-s", "--max-time", "60", "-H", "content-type: application/json"])
            .args(["--data-binary", &format!("@{request}"), &format!("{base_url}/chat/completions")])
            .output()
            .ok()?;
        let body: Value = serde_json::from_slice(&out.stdout).ok()?;
        let id = body["x402"]["request"].as_str()?.to_owned();
        std::fs::write(&answer, &out.stdout).expect("a file");
        Some(id)
    });
    world.until("its receipt", |w| w.run(&["receipt", &id, "--out", &receipt]).0.then_some(()));
    let verify = ["verify", &receipt, "--request", &request, "--answer", &answer];
    let (same, said) = world.run(&verify);
    assert!(same && said.contains("\nsame "), "{said}");
    let text = std::fs::read_to_string(&answer).expect("the answer");
    let word = text.find("\"content\":\"").expect("a text") + 11;
    std::fs::write(&answer, format!("{}~{}", &text[..word], &text[word..])).expect("a file");
    let (same, said) = world.run(&verify);
    assert!(!same && said.contains("line 1, column 1 (0 bytes are the same)"), "{said}");
}

/// A process that ends with the test.
struct Ended(std::process::Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
