//! Bad company for a real engine with a real model: what comes over HTTP beside answers that run changes nothing of them.
//! The chain is a STAND-IN as ever.

use super::*;
use crate::api::BODY_BYTES_MAX;
use infer::EngineEvent;
use pay::book::Finish as Ended;
use pay::book::channels::CallService;
use std::sync::atomic::AtomicUsize;
use tokio::io::AsyncRead;
use tokio::net::{TcpSocket, TcpStream};

/// Side by side, and waiting.
const SLOTS: u32 = 2;
const PLACES: usize = 2 + 32;
const CONTEXT: u32 = 1_024;
/// What runs while others come, and how long its answer is, tokens.
const COUNTING: [&str; 2] = ["1 2 3 4 5 6 7 8 9 10 11 12", "Monday Tuesday Wednesday Thursday Friday Saturday"];
const ANSWER_TOKENS: u32 = 64;
/// Until its end nobody waits for such an answer.
const ENDLESS_TOKENS: u32 = 900;
/// Of what is refused for its length.
const LONG_BYTES: usize = 10 << 20;
/// Either way, of a customer's machine; the kernel takes twice as much.
const BUFFER_BYTES: u32 = 4 << 10;
/// What two kernels hold of a body that the node does not read on. A guess.
const KERNELS_BYTES: usize = 6 << 20;
/// For what takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(30);

/// The shop of [`Shop::open`], whose answers are made by SmolLM2.
async fn shop(dir: &Path) -> Arc<Shop> {
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../../.vivarium/models/SmolLM2-135M-Instruct.Q4_1.gguf");
    let model = std::env::var_os("VIVARIUM_MODEL").map_or_else(|| PathBuf::from(model), PathBuf::from);
    assert!(model.is_file(), "NO MODEL at {}: `cargo xtask test` fetches it", model.display());
    // Beside the folder of this test's own program.
    let programs = std::env::current_exe().unwrap();
    let program = programs.ancestors().nth(2).unwrap().join(infer::engines::PROGRAM);
    assert!(program.is_file(), "NO ENGINE at {}: `cargo build -p engine` makes it", program.display());
    let config = EngineConfig {
        program,
        model,
        adapters: Vec::new(),
        socket: dir.join("real.sock"),
        threads: 1,
        threads_max: 1,
        ctx: CONTEXT,
        slots: SLOTS,
    };
    let (client, hello) = EngineClient::spawn(config).await.unwrap();
    let template = ChatTemplate::new(hello.chat_template.as_deref(), &hello.bos, &hello.eos).unwrap();
    let shop = Shop::open(dir, u64::MAX).await;
    let places = Places::beside(hello.slots);
    shop.shared.set_engine(Engine { client, places, hello: Arc::new(hello), template: Arc::new(template) });
    Arc::new(shop)
}

/// A greedy stream of at most so many tokens.
fn stream(shop: &Shop, prompt: &str, tokens: u32) -> Value {
    let model = &shop.cx.manifest.model.name;
    json!({ "model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": true })
}

/// A voucher of a new customer, who may say what it takes.
async fn voucher(shop: &Shop, question: &Value, payer: &str) -> Vec<(HeaderName, String)> {
    let said = shop.posts(question, &[]).await;
    assert_eq!(said.status, 402, "{}", said.body);
    let offer = said.offers.unwrap().accepts.into_iter().find(|offer| offer.scheme() == CHANNEL).unwrap();
    let (payer, domain) = (customer(payer), ChannelDomain::new(shop.cx.config.chain_id));
    let config = channel::config(payer.address(), &offer, [0; 32]).unwrap();
    let voucher = channel::pay(&payer, &domain, &config, &offer, offer.amount(), None).unwrap();
    vec![(PAYMENT_SIGNATURE, voucher.to_header())]
}

/// What a new customer gets for this question.
async fn bought(shop: Arc<Shop>, question: Value, payer: String) -> Said {
    let voucher = voucher(&shop, &question, &payer).await;
    shop.posts(&question, &voucher).await
}

/// The answers that run while `others` happen, which must be those that each gives alone.
async fn undisturbed<T>(shop: &Arc<Shop>, alone: &[String], what: &str, others: impl Future<Output = T>) -> T {
    let running = COUNTING.iter().enumerate().map(|(at, prompt)| {
        let question = stream(shop, prompt, ANSWER_TOKENS);
        tokio::spawn(bought(shop.clone(), question, format!("{what} {at}")))
    });
    let running: Vec<_> = running.collect();
    let begun = shop.shared.generations() + u64::from(SLOTS);
    shop.shared.generation_after(begun - 1).await;
    let done = others.await;
    for (running, alone) in running.into_iter().zip(alone) {
        assert_eq!(text_of(&running.await.unwrap()), *alone, "{what}");
    }
    done
}

/// The text of a stream that came to its end.
fn text_of(said: &Said) -> String {
    assert_eq!(said.status, 200, "{}", said.body);
    assert!(said.body.ends_with("data: [DONE]\n\n"), "{}", said.body);
    let chunks = said.body.split("\n\n").filter_map(|frame| frame.strip_prefix("data: "));
    let chunks = chunks.filter_map(|chunk| serde_json::from_str::<Value>(chunk).ok());
    chunks.filter_map(|chunk| chunk["choices"][0]["text"].as_str().map(str::to_owned)).collect()
}

/// A customer with a socket of its own, who has sent a request and read nothing.
async fn connected(shop: &Shop, headers: &[(HeaderName, String)], body_bytes: usize) -> TcpStream {
    let at = shop.url.strip_prefix("http://").unwrap();
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(BUFFER_BYTES).unwrap();
    socket.set_send_buffer_size(BUFFER_BYTES).unwrap();
    let mut line = socket.connect(at.parse().unwrap()).await.unwrap();
    let mut head = format!("POST /v1/completions HTTP/1.1\r\nhost: {at}\r\ncontent-type: application/json\r\n");
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    head += &format!("content-length: {body_bytes}\r\n\r\n");
    line.write_all(head.as_bytes()).await.unwrap();
    line
}

/// What comes, up to where it says this.
async fn heard(line: &mut (impl AsyncRead + Unpin), end: &str) -> String {
    let (mut said, mut piece) = (String::new(), [0; 1_024]);
    while !said.contains(end) {
        let read = line.read(&mut piece).await.unwrap();
        assert_ne!(read, 0, "{said}");
        said += std::str::from_utf8(&piece[..read]).unwrap();
    }
    said
}

/// Customers come until one hears that the queue is full; then those who wait go.
async fn a_full_queue(shop: &Arc<Shop>) {
    let question = stream(shop, "Once upon a time", ENDLESS_TOKENS);
    let mut waiting = Vec::new();
    let refused = loop {
        assert!(waiting.len() <= PLACES, "more than its places");
        let paid = voucher(shop, &question, &format!("waits {}", waiting.len())).await;
        let body = question.to_string();
        let mut line = connected(shop, &paid, body.len()).await;
        line.write_all(body.as_bytes()).await.unwrap();
        let head = heard(&mut line, "\r\n\r\n").await;
        if !head.starts_with("HTTP/1.1 200 ") {
            break if head.contains("}}") { head } else { head + &heard(&mut line, "}}").await };
        }
        waiting.push(line);
    };
    assert!(refused.starts_with("HTTP/1.1 503 ") && refused.contains("retry-after: 2\r\n"), "{refused}");
    assert!(refused.contains("engine_busy"), "{refused}");
    assert!(waiting.len() >= PLACES - COUNTING.len(), "{} wait", waiting.len());
}

/// A body of 10 MB is refused by its length, and most of it is never taken.
async fn a_long_body(shop: &Shop) {
    let (mut read, mut write) = connected(shop, &[], LONG_BYTES).await.into_split();
    let taken = Arc::new(AtomicUsize::new(0));
    let sending = tokio::spawn({
        let taken = taken.clone();
        async move {
            let piece = vec![b' '; 64 << 10];
            while let Ok(sent) = write.write(&piece).await {
                taken.fetch_add(sent, Ordering::SeqCst);
            }
        }
    });
    let said = heard(&mut read, "}}").await;
    sending.abort();
    assert!(said.starts_with("HTTP/1.1 413 "), "{said}");
    assert!(said.contains("body_too_large") && said.contains(&BODY_BYTES_MAX.to_string()), "{said}");
    let taken = taken.load(Ordering::SeqCst);
    assert!(taken < BODY_BYTES_MAX + KERNELS_BYTES, "{taken} of {LONG_BYTES} bytes were taken");
}

/// What no model can do, with the field that says so.
async fn nonsense(shop: &Shop) {
    let ask = |name: &str, value: &str| {
        let question = stream(shop, "x", 1).to_string();
        let rest = question.strip_prefix('{').unwrap().replace("\"max_tokens\":1,", "");
        format!("{{\"{name}\":{value},{rest}").into_bytes()
    };
    let stops = format!("[{}]", vec!["\"a\""; 10_000].join(","));
    let named = [
        ("stop", stops.as_str(), "stop"),
        ("logit_bias", r#"{"5":"NaN"}"#, "logit_bias.5"),
        ("logit_bias", r#"{"5":1e300}"#, "logit_bias.5"),
        ("max_tokens", "0", "max_tokens"),
        ("max_tokens", "-1", "max_tokens"),
        ("max_tokens", "1e300", "max_tokens"),
    ];
    for (field, value, param) in named {
        let (status, error) = refused(shop, ask(field, value)).await;
        assert_eq!((status, error["param"].as_str()), (400, Some(param)), "{field}: {error}");
        assert!(error["message"].as_str().unwrap().contains(param), "{error}");
    }
    // What is no JSON has no fields.
    for body in [ask("logit_bias", r#"{"5":NaN}"#), ask("stop", "\"\u{1}\""), b"{\"prompt\":\"\xff\xfe\"}".to_vec()] {
        let (status, error) = refused(shop, body).await;
        assert_eq!((status, &error["code"]), (400, &json!("invalid_json")), "{error}");
    }
    // As many as fit the context, as is documented: it has a price like any other.
    let (status, _) = refused(shop, ask("max_tokens", &u64::MAX.to_string())).await;
    assert_eq!(status, 402);
}

async fn refused(shop: &Shop, body: Vec<u8>) -> (u16, Value) {
    let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))]);
    let url = format!("{}/v1/completions", shop.url);
    let said = net::Client::new().send(Method::POST, &url, headers, body.into()).await.unwrap();
    let status = said.status.as_u16();
    (status, said.json::<Value>().await.unwrap()["error"].clone())
}

/// Whoever stops reading keeps nobody from anything, and hangs up in the middle of its answer, which ends there.
async fn a_reader_that_stops(shop: &Arc<Shop>, alone: &[String]) {
    let question = stream(shop, "10 9 8 7 6 5 4 3 2 1 0", ENDLESS_TOKENS);
    let (paid, body) = (voucher(shop, &question, "stops reading").await, question.to_string());
    let mut line = connected(shop, &paid, body.len()).await;
    line.write_all(body.as_bytes()).await.unwrap();
    let head = heard(&mut line, "\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    let other = bought(shop.clone(), stream(shop, COUNTING[0], ANSWER_TOKENS), "reads on".to_owned()).await;
    assert_eq!(text_of(&other), alone[0]);
    drop(line);
    // Its delivery is in the book when the node has let go of the engine.
    let payer = customer("stops reading").address();
    let delivered = async {
        loop {
            let (reply, calls) = tokio::sync::oneshot::channel();
            let look = move |node: &Node| {
                let channels = node.live.as_ref().unwrap().state.book.channels();
                let of_payer = |channel| channels.channel(&channel).is_some_and(|c| c.config.payer == payer.0.0);
                let mut own = channels.calls().filter(|(_, call)| of_payer(call.reservation.channel));
                drop(reply.send(own.next().map(|(_, call)| call.service.clone())));
            };
            shop.cx.tell(Event::Look(Box::new(look))).await;
            if let Some(CallService::Delivered(delivery)) = calls.await.unwrap() {
                return delivery;
            }
            tokio::task::yield_now().await;
        }
    };
    let delivery = tokio::time::timeout(PATIENCE, delivered).await.expect("it is over");
    assert_eq!(delivery.finish, Ended::HungUp);
    assert!((1..ENDLESS_TOKENS).contains(&delivery.completion_tokens), "{}", delivery.completion_tokens);
}

/// All places are free again, by the node's count and by the engine's own word.
async fn all_is_free(shop: &Shop) {
    let Engine { client, places, .. } = shop.shared.engine().unwrap();
    let counted = async {
        while std::iter::from_fn(|| places.take(&client).ok()).collect::<Vec<_>>().len() != PLACES {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, counted).await.expect("whoever has hung up keeps no place");
    let asked: Vec<_> =
        (0..PLACES).map(|_| client.generate(Generate::greedy("Once upon a time", ENDLESS_TOKENS)).unwrap()).collect();
    for mut generation in asked {
        let first = generation.recv().await;
        assert!(matches!(first, Some(EngineEvent::Accepted { .. })), "{first:?}");
    }
}

#[tokio::test]
async fn answers_of_a_real_engine_are_the_same_in_bad_company() {
    let dir = tempfile::tempdir().unwrap();
    let shop = shop(dir.path()).await;
    let mut alone = Vec::new();
    for prompt in COUNTING {
        let question = stream(&shop, prompt, ANSWER_TOKENS);
        alone.push(text_of(&bought(shop.clone(), question, format!("is alone with {prompt}")).await));
    }
    undisturbed(&shop, &alone, "beside a full queue", a_full_queue(&shop)).await;
    all_is_free(&shop).await;
    undisturbed(&shop, &alone, "beside a long body", a_long_body(&shop)).await;
    undisturbed(&shop, &alone, "beside nonsense", nonsense(&shop)).await;
    a_reader_that_stops(&shop, &alone).await;
    all_is_free(&shop).await;
    Arc::into_inner(shop).expect("nobody else asks").close().await;
}
