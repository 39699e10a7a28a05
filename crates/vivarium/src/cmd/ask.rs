//! `vivarium ask`: one paid question.
//!
//! The agent's address comes from the chain, not from a file, and nothing is signed for anyone but its treasury.

use super::link::{Named, Place, Scheme, Shop, block_on};
use anyhow::{Context, Result, bail, ensure};
use economy::Usdc;
use http::HeaderMap;
use pay::buyer::{Answer, Buyer, Error, Kind};
use pay::scheme::channel::CHANNEL;
use pay::scheme::upto::UPTO;
use pay::seller::FRESH_ANSWER;
use serde_json::{Value, json};
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;
use vivarium::proxy::SILENCE_MAX;
use vivarium::world::crowd::{ChainClock, channels, policy};
use vivarium::world::files::{customer_record, read_key};

/// Deposits may lie unspent in the channel with the agent up to this many times what one answer may cost.
const DEPOSIT_ANSWERS_MAX: u128 = 5;
/// Longest line of a stream. The last event of `/v1/responses` has the whole answer in it, which is far shorter. A guess.
const LINE_BYTES_MAX: usize = 8 << 20;
/// Channels of this command; the official clients and `vivarium proxy` have others with the same key.
const LANE: u8 = 1;

/// Asks the agent one question, pays for the answer by x402, and prints it as it comes.
///
/// The question is paid with the world's customer key. The agent's address is taken from the chain
/// (treasury, active lease, endpoint), and the payment is signed only if it goes to that treasury. With --agent any agent
/// of the chain is asked by its ERC-8004 identity, and with --rpc no world is needed for that.
///
/// Where the agent offers it, the answer is paid from a channel: the first one puts a deposit in, for several answers
/// like it; later ones are a voucher each and no transaction, charged by what was delivered. Elsewhere the cheapest of
/// what is offered is paid: exact, or upto by Permit2, which the payer allows once or by a signature beside the payment.
/// What is signed is on record in the world's folder before it leaves: the same question again after a crash is the same
/// payment.
#[derive(clap::Args)]
pub struct Flags {
    /// The question
    prompt: String,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    named: Named,
    /// The most that this answer may cost, in USDC
    #[arg(long, value_name = "USDC", value_parser = Usdc::parse, default_value = "5")]
    max_usdc: Usdc,
    /// The longest answer, in tokens
    #[arg(long, value_name = "N", default_value_t = 200)]
    max_tokens: u32,
    /// What to pay by [default: from a channel where the agent offers one, else what costs the least]
    #[arg(long, value_name = "SCHEME")]
    scheme: Option<Scheme>,
    /// Let the agent remember this answer; the id that is printed goes on with it
    #[arg(long)]
    remember: bool,
    /// Goes on with a remembered answer (the id that --remember printed)
    #[arg(long, value_name = "ID")]
    conversation: Option<String>,
    /// Who pays [default: the world's customer]
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// One JSON object when the answer is complete: {"text", "id", "scheme", "spent_uusdc", "transaction",
    /// "request_id", "url"}
    #[arg(long)]
    json: bool,
}

pub fn run(flags: Flags) -> Result<()> {
    ensure!(flags.max_tokens > 0, "--max-tokens 0: an answer has at least one token");
    block_on(ask(flags))
}

async fn ask(flags: Flags) -> Result<()> {
    let shop = flags.named.shop(&flags.place).await?;
    let url = shop.record.url().await?;
    let models: Value = shop.get(&url, "/v1/models").await?;
    let model = models["data"][0]["id"].as_str().context("the agent names no model")?.to_owned();
    let (path, body) = question(&flags, &model);
    let mut answer = buyer(&shop, &flags)
        .await?
        // The same question tomorrow is a new question, not the stored answer of today.
        .post_stream(
            &format!("{url}{path}"),
            HeaderMap::from_iter([(FRESH_ANSWER, http::HeaderValue::from_static("1"))]),
            &body,
        )
        .await
        .map_err(explain)?;
    if !answer.status.is_success() {
        let status = answer.status;
        let bytes = answer.collect(1 << 20).await?.body;
        let problem: Value = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        let message = problem["error"]["message"].as_str().map(str::to_owned);
        bail!(
            "the agent answers {status}: {}",
            message.unwrap_or_else(|| String::from_utf8_lossy(&bytes).into_owned())
        );
    }
    let told = read(&mut answer, !flags.json).await?;
    report(&flags, &answer, told)
}

async fn buyer(shop: &Shop, flags: &Flags) -> Result<Buyer> {
    let key = read_key(shop.key_file(flags.key.as_ref())?)?;
    let clock = ChainClock::default();
    clock.set(shop.record.chain.head().await?.timestamp);
    // Each answer is bounded, not all of them.
    let policy = policy(shop.chain_id(), shop.token, shop.record.treasury, flags.max_usdc, Usdc::MAX);
    let deposit_max = Usdc(flags.max_usdc.micro().saturating_mul(DEPOSIT_ANSWERS_MAX));
    let channels = channels(deposit_max, 1, LANE);
    let file = customer_record(&flags.place.dir(), "ask", key.address())?;
    let buyer = Buyer::new(shop.http.clone(), key, policy).with_clock(clock.reader());
    let buyer = buyer.with_chain(shop.record.chain.url());
    Ok(Scheme::apply(flags.scheme, buyer, channels)
        .with_record_in_turn(&file, || eprintln!("another `vivarium ask` is paying with this key; waiting for it"))?)
}

fn question(flags: &Flags, model: &str) -> (&'static str, Value) {
    if flags.remember || flags.conversation.is_some() {
        let mut body = json!({
            "model": model, "input": flags.prompt, "max_output_tokens": flags.max_tokens, "store": true, "stream": true,
        });
        if let Some(id) = &flags.conversation {
            body["previous_response_id"] = json!(id);
        }
        return ("/v1/responses", body);
    }
    let messages = json!([{ "role": "user", "content": flags.prompt }]);
    let body = json!({ "model": model, "messages": messages, "max_tokens": flags.max_tokens, "stream": true });
    ("/v1/chat/completions", body)
}

/// What the stream said.
#[derive(Default)]
struct Told {
    text: String,
    id: Option<String>,
    /// The settlement, which a stream can only tell in its last event.
    transaction: Option<String>,
    /// What a call on a channel was charged, micro-USDC; known at the end.
    charged: Option<String>,
}

/// Reads the events of either API; prints text as it comes if `aloud`.
async fn read(answer: &mut Answer, aloud: bool) -> Result<Told> {
    let (mut told, mut lines, url) = (Told::default(), Lines::default(), answer.url.clone());
    while let Some(piece) = within(SILENCE_MAX, &url, answer.chunk()).await.map_err(explain)? {
        lines.take(&piece)?;
        while let Some(line) = lines.next_line() {
            let Some(data) = line.trim_end().strip_prefix("data: ") else { continue };
            if data == "[DONE]" {
                continue;
            }
            let event: Value = serde_json::from_str(data).context("the stream holds an event that is not JSON")?;
            let piece = told.hear(&event)?;
            if aloud {
                print!("{piece}");
                std::io::stdout().flush()?;
            }
        }
    }
    Ok(told)
}

/// What comes next, unless nothing does for this long.
async fn within<T>(silence: Duration, url: &str, next: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    tokio::time::timeout(silence, next).await.unwrap_or_else(|_| {
        let message = format!("nothing came for {} s", silence.as_secs());
        Err(Error { kind: Kind::Unreachable, url: url.to_owned(), message })
    })
}

/// A stream's bytes, line by line.
#[derive(Default)]
struct Lines(Vec<u8>);

impl Lines {
    fn take(&mut self, piece: &[u8]) -> Result<()> {
        ensure!(
            self.0.len().saturating_add(piece.len()) <= LINE_BYTES_MAX,
            "the stream has a line of more than {LINE_BYTES_MAX} bytes; this is not what an agent answers"
        );
        self.0.extend_from_slice(piece);
        Ok(())
    }

    fn next_line(&mut self) -> Option<String> {
        let end = self.0.iter().position(|byte| *byte == b'\n')?;
        let line: Vec<u8> = self.0.drain(..=end).collect();
        Some(String::from_utf8_lossy(&line).into_owned())
    }
}

impl Told {
    /// The text that `event` adds.
    fn hear(&mut self, event: &Value) -> Result<String> {
        if let Some(message) = event["error"]["message"].as_str() {
            bail!("the answer broke off: {message}");
        }
        let id = event["id"].as_str().or_else(|| event["response"]["id"].as_str());
        if let Some(id) = id {
            self.id = Some(id.to_owned());
        }
        let x402 = [&event["x402"], &event["response"]["x402"]];
        if let Some(transaction) = x402.iter().find_map(|x402| x402["transaction"].as_str()) {
            self.transaction = Some(transaction.to_owned());
        }
        if let Some(charged) = x402.iter().find_map(|x402| x402["charged"].as_str()) {
            self.charged = Some(charged.to_owned());
        }
        let delta = match event["type"].as_str() {
            Some("response.output_text.delta") => event["delta"].as_str(),
            Some("response.failed") => {
                let why = event["response"]["error"]["message"].as_str().unwrap_or("no reason was given");
                bail!("the answer failed: {why}")
            }
            Some(_) => None,
            None => event["choices"][0]["delta"]["content"].as_str(),
        };
        let delta = delta.unwrap_or_default().to_owned();
        self.text.push_str(&delta);
        Ok(delta)
    }
}

fn report(flags: &Flags, answer: &Answer, told: Told) -> Result<()> {
    let in_head = answer.payment.as_ref().map(|payment| payment.transaction.clone());
    let transaction = told.transaction.or(in_head);
    let spent = match (answer.scheme, &told.charged) {
        // A stream's head knows only of the calls before it.
        (Some(CHANNEL), Some(charged)) => {
            Usdc(charged.parse().context("the agent charges something that is no number")?)
        }
        // Never more than was signed, whatever is said.
        (Some(UPTO), Some(charged)) => {
            let charged = charged.parse().context("the agent charges something that is no number")?;
            Usdc(charged).min(answer.spent)
        }
        _ => answer.spent,
    };
    let request = answer.headers.get("x-request-id").and_then(|v| v.to_str().ok());
    if flags.json {
        let spent = spent.micro().to_string();
        let whole = json!({
            "text": told.text, "id": told.id, "scheme": answer.scheme, "spent_uusdc": spent, "transaction": transaction,
            "request_id": request, "url": answer.url,
        });
        println!("{whole}");
        return Ok(());
    }
    println!();
    let how = match answer.scheme {
        Some(CHANNEL) => "from a channel",
        Some(UPTO) => "by upto",
        _ => "by exact",
    };
    eprintln!("-- paid {spent} {how}; receipt: vivarium receipt {}", request.unwrap_or("?"));
    if let (true, Some(id)) = (flags.remember || flags.conversation.is_some(), told.id) {
        eprintln!("-- go on: vivarium ask --conversation {id} \"…\"");
    }
    Ok(())
}

/// What the person does next, by the kind of failure.
fn explain(error: pay::buyer::Error) -> anyhow::Error {
    let advice = match error.kind {
        Kind::TooExpensive | Kind::BudgetUsed => "raise --max-usdc or ask for fewer --max-tokens",
        Kind::WrongSeller => "do not trust this address",
        Kind::NoAllowance => "approve Permit2 once by a transaction of the payer's",
        Kind::OutcomeUnknown => "ask the same again: the same payment is sent, not another",
        Kind::Unreachable => "the agent may be moving; try again in a moment",
        Kind::Refused => "the customer may be out of test USDC",
        Kind::BadAnswer | Kind::Usage => "this is not what an agent answers",
        Kind::InUse => "end that process first",
    };
    anyhow::anyhow!("{error}; {advice}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_host_that_says_nothing_any_more_is_not_waited_for() {
        let (url, nothing) = ("http://agent", std::future::pending::<Result<(), Error>>());
        let error = within(Duration::ZERO, url, nothing).await.unwrap_err();
        assert_eq!((error.kind, error.to_string()), (Kind::Unreachable, "http://agent: nothing came for 0 s".into()));
        assert_eq!(within(SILENCE_MAX, url, async { Ok(7) }).await.unwrap(), 7);
    }

    #[test]
    fn lines_are_put_together_up_to_a_bound() {
        let mut lines = Lines::default();
        lines.take(b"data: 1\ndata").unwrap();
        assert_eq!((lines.next_line().as_deref(), lines.next_line()), (Some("data: 1\n"), None));
        lines.take(b": 2\n\n").unwrap();
        assert_eq!((lines.next_line().as_deref(), lines.next_line().as_deref()), (Some("data: 2\n"), Some("\n")));
        let piece = vec![b'x'; LINE_BYTES_MAX / 2];
        lines.take(&piece).unwrap();
        lines.take(&piece).unwrap();
        assert!(lines.take(b"x").unwrap_err().to_string().contains("a line of more than"));
    }

    #[test]
    fn both_apis_streams_are_understood() {
        let mut told = Told::default();
        told.hear(&json!({ "id": "chatcmpl-1", "choices": [{ "delta": { "content": "Hel" } }] })).unwrap();
        told.hear(&json!({ "id": "chatcmpl-1", "choices": [{ "delta": {}, "finish_reason": "stop" }] })).unwrap();
        told.hear(&json!({ "type": "response.output_text.delta", "delta": "lo" })).unwrap();
        told.hear(
            &json!({ "type": "response.completed", "response": { "id": "resp_1" }, "x402": { "transaction": "0x1" } }),
        )
        .unwrap();
        assert_eq!((told.text.as_str(), told.id.as_deref()), ("Hello", Some("resp_1")));
        assert_eq!(told.transaction.as_deref(), Some("0x1"));
        assert!(told.hear(&json!({ "error": { "code": "x", "message": "engine died" } })).is_err());
    }
}
