//! A light load: one customer who asks again and again through `vivarium proxy`, and keeps what it hears.

use crate::settling::customers::Town;
use crate::world::{self, World, signal};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// Between an answer and the next question: one core of two stays free for the world.
const PAUSE: Duration = Duration::from_millis(400);

/// A short answer costs a sixth of a USDC in a world whose days have 20 seconds.
const PURSE_UUSDC: u128 = 1_000_000_000;

/// What became of one question.
#[derive(Clone, Debug)]
pub struct Call {
    /// 0: nothing came.
    pub status: u16,
    pub body: Value,
}

pub struct Load {
    calls: Arc<Mutex<Vec<Call>>>,
    ends: Arc<AtomicBool>,
    asks: Option<JoinHandle<()>>,
    proxy: Child,
    /// Where the proxy answers.
    pub base_url: String,
    model: String,
}

impl Load {
    /// A customer of its own, who pays from a channel.
    pub fn start(world: &World, town: &Town) -> Self {
        let key = town.stranger("asks again and again");
        town.mint(key.address(), PURSE_UUSDC);
        let file = world.dir.path().join("load.development-key");
        std::fs::write(&file, format!("{}\n", key.to_bytes())).expect("a key file");
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).expect("a private file");
        let flags = ["--scheme", "batch-settlement", "--max-usdc", "20", "--budget", "1000/day", "--key"];
        let flags = [&flags[..], &[file.to_str().expect("UTF-8")]].concat();
        let (proxy, base_url) = world::proxy(&world.data_dir(), &flags);
        let (calls, ends): (Arc<Mutex<Vec<Call>>>, Arc<AtomicBool>) = Default::default();
        let (heard, over, url) = (calls.clone(), ends.clone(), base_url.clone());
        let model = town.model.clone();
        let body = question(&model, "Say hello.", 4, false);
        let asks = std::thread::spawn(move || {
            while !over.load(Ordering::SeqCst) {
                let call = ask(&url, &body);
                heard.lock().expect("no writer panics").push(call);
                std::thread::sleep(PAUSE);
            }
        });
        Self { calls, ends, asks: Some(asks), proxy, base_url, model }
    }

    /// One more question beside the others, kept with them.
    pub fn asks(&self, text: &str) -> Call {
        let call = ask(&self.base_url, &question(&self.model, text, 4, false));
        self.calls.lock().expect("no writer panics").push(call.clone());
        call
    }

    /// One whose answer comes as a stream, which `curl` passes on line by line, its head first.
    pub fn asks_for_a_stream(&self, text: &str, max_tokens: u32) -> Child {
        Command::new("curl")
            .args(["-siN", "--max-time", "60", "-H", "content-type: application/json", "-d"])
            .arg(question(&self.model, text, max_tokens, true).to_string())
            .arg(format!("{}/chat/completions", self.base_url))
            .stdout(Stdio::piped())
            .spawn()
            .expect("curl runs")
    }

    pub fn calls(&self) -> Vec<Call> {
        self.calls.lock().expect("no writer panics").clone()
    }

    pub fn answered(&self) -> usize {
        self.calls().iter().filter(|call| call.status == 200).count()
    }

    /// No more questions; all that were asked.
    pub fn end(mut self) -> Vec<Call> {
        self.stop();
        self.calls()
    }

    fn stop(&mut self) {
        self.ends.store(true, Ordering::SeqCst);
        if let Some(asks) = self.asks.take() {
            asks.join().expect("the customer asked");
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::SeqCst);
        signal(self.proxy.id(), "TERM");
        let _ = self.proxy.wait();
    }
}

/// What an ordinary program asks.
fn question(model: &str, text: &str, max_tokens: u32, stream: bool) -> Value {
    json!({ "model": model, "max_tokens": max_tokens, "stream": stream,
            "messages": [{ "role": "user", "content": text }] })
}

fn ask(base_url: &str, body: &Value) -> Call {
    let out = Command::new("curl")
        .args(["-s", "--max-time", "60", "-H", "content-type: application/json", "-w", "\n%{http_code}"])
        .args(["-d", &body.to_string(), &format!("{base_url}/chat/completions")])
        .output()
        .expect("curl runs");
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let (body, status) = text.rsplit_once('\n').unwrap_or_default();
    Call { status: status.parse().unwrap_or(0), body: serde_json::from_str(body).unwrap_or_default() }
}

/// The sum of what these answers cost, micro-USDC. None of them is another's.
pub fn sum_of(calls: &[Call]) -> u128 {
    let answers: Vec<&Value> = calls.iter().filter(|call| call.status == 200).map(|call| &call.body["x402"]).collect();
    let requests: BTreeSet<&str> = answers.iter().filter_map(|x402| x402["request"].as_str()).collect();
    assert_eq!(requests.len(), answers.len(), "each answer has a request of its own");
    let amount = |x402: &&Value| x402["amount"].as_str().and_then(|a| a.parse::<u128>().ok()).expect("an amount");
    answers.iter().map(amount).sum()
}
