//! Files and batches: what is paid when, what is free, what a restart keeps.

use super::*;
use crate::batch::{UNPAID_MAX, half_up};
use crate::export::ListRequest;

/// A form as OpenAI's SDKs send it.
fn form(content: &str) -> String {
    let file = "name=\"file\"; filename=\"night.jsonl\"\r\nContent-Type: application/octet-stream";
    format!(
        "--b\r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\nbatch\r\n\
         --b\r\nContent-Disposition: form-data; {file}\r\n\r\n{content}\r\n--b--\r\n"
    )
}

fn line(shop: &Shop, id: &str, prompt: &str) -> String {
    line_with(shop, id, &json!({ "prompt": prompt }))
}

fn line_with(shop: &Shop, id: &str, more: &Value) -> String {
    let mut body = json!({ "model": shop.cx.manifest.model.name, "prompt": "a", "max_tokens": 8 });
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    json!({ "custom_id": id, "method": "POST", "url": "/v1/completions", "body": body }).to_string()
}

fn vectors(id: &str, text: &str) -> String {
    let body = json!({ "model": "vectors", "input": text });
    json!({ "custom_id": id, "method": "POST", "url": "/v1/embeddings", "body": body }).to_string()
}

struct Store {
    url: String,
    blocks: store::Blocks,
}

impl Store {
    async fn open(dir: &Path) -> Self {
        let blocks = store::Blocks::open(dir.join("blocks")).unwrap();
        Self { url: served(store::gateway::router(blocks.clone())).await, blocks }
    }

    async fn shop(&self, dir: &Path) -> Shop {
        Shop::open_with_vectors(dir, |cx| {
            cx.store = store::StoreClient::new(net::Client::new(), vec![self.url.clone()]);
        })
        .await
    }
}

/// What was answered: status, the channel's offer, the header that tells of what is kept, the body.
struct Heard {
    status: u16,
    offer: Option<PaymentRequirements>,
    stored: Option<String>,
    body: String,
}

impl Heard {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e} in {}", self.body))
    }
}

async fn sent(shop: &Shop, method: Method, path: &str, body: &str, more: &[(HeaderName, &str)]) -> Heard {
    let mut headers = HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))]);
    for (name, value) in more {
        headers.insert(name, HeaderValue::from_str(value).unwrap());
    }
    let url = format!("{}{path}", shop.url);
    let answer = net::Client::new().send(method, &url, headers, body.to_owned().into()).await.unwrap();
    let status = answer.status.as_u16();
    let stored = answer.header(&HeaderName::from_static("vivarium-stored")).map(str::to_owned);
    let offers = answer.header(&PAYMENT_REQUIRED).map(|header| PaymentRequired::from_header(header).unwrap());
    let offer = offers.and_then(|offers| offers.accepts.into_iter().find(|offer| offer.scheme() == CHANNEL));
    let body = String::from_utf8(answer.bytes(1 << 20).await.unwrap().to_vec()).unwrap();
    Heard { status, offer, stored, body }
}

async fn free(shop: &Shop, method: Method, path: &str) -> Heard {
    sent(shop, method, path, "", &[]).await
}

/// Paid by this payer's voucher on a channel of its own, and for how much.
async fn paid(shop: &Shop, method: Method, path: &str, body: &str, payer: &str) -> (Heard, u128) {
    let asked = sent(shop, method.clone(), path, body, &[]).await;
    assert_eq!(asked.status, 402, "{path}: {}", asked.body);
    let offer = asked.offer.expect("an offer by channel");
    let (payer, domain) = (customer(payer), ChannelDomain::new(shop.cx.config.chain_id));
    let config = channel::config(payer.address(), &offer, rand::random()).unwrap();
    let voucher = channel::pay(&payer, &domain, &config, &offer, offer.amount(), None).unwrap().to_header();
    // An offer has room for one such call before its own.
    let ceiling = offer.amount().micro() / 2;
    (sent(shop, method, path, body, &[(PAYMENT_SIGNATURE, &voucher)]).await, ceiling)
}

async fn uploaded(shop: &Shop, content: &str, payer: &str) -> String {
    let (heard, _) = paid(shop, Method::POST, "/v1/files", &form(content), payer).await;
    assert_eq!(heard.status, 200, "{}", heard.body);
    heard.json()["id"].as_str().unwrap().to_owned()
}

fn of(file: &str, endpoint: &str) -> String {
    json!({ "input_file_id": file, "endpoint": endpoint, "completion_window": "24h" }).to_string()
}

async fn created(shop: &Shop, file: &str, payer: &str) -> Value {
    let (heard, _) = paid(shop, Method::POST, "/v1/batches", &of(file, "/v1/completions"), payer).await;
    assert_eq!(heard.status, 200, "{}", heard.body);
    heard.json()
}

/// The batch once its status is this.
async fn until(shop: &Shop, id: &str, status: &str) -> Value {
    let path = format!("/v1/batches/{id}");
    for _ in 0..600 {
        let batch = free(shop, Method::GET, &path).await.json();
        if batch["status"] == status {
            return batch;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{id} never was {status}: {}", free(shop, Method::GET, &path).await.body);
}

fn content_of(file: &Value) -> String {
    format!("/v1/files/{}/content", file.as_str().expect("a file"))
}

/// Beside the other prices, and the halves of them that are asked for.
#[tokio::test]
async fn what_a_batch_costs_stands_in_the_status() {
    let dir = tempfile::tempdir().unwrap();
    let shop = Shop::open(dir.path(), u64::MAX).await;
    let (done, published) = tokio::sync::oneshot::channel();
    let publish = move |node: &Node| {
        node.publish();
        done.send(()).unwrap();
    };
    shop.cx.tell(Event::Look(Box::new(publish))).await;
    published.await.unwrap();
    let status: Value = serde_json::from_str(&shop.get("/status").await).unwrap();
    let told = |class: &str| [format!("mtok_{class}_uusdc"), format!("batch_mtok_{class}_uusdc")];
    for (class, whole, half) in
        [("prompt", "1000000", "500000"), ("embedding", "70000", "35000"), ("completion", "10000000", "5000000")]
    {
        assert_eq!(told(class).map(|name| status["price"][name].clone()), [json!(whole), json!(half)], "{status}");
    }
}

#[tokio::test]
async fn a_batch_is_paid_in_two_exact_parts_at_half_price_and_its_output_is_free_from_then_on() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).await;
    let shop = store.shop(dir.path()).await;
    let prompts = ["What is a lease?", "What is a promise, and who keeps it? ".repeat(8).leak()];
    let lines = [line(&shop, "one", prompts[0]), line(&shop, "two", prompts[1])].join("\n");
    let (file, upload) = paid(&shop, Method::POST, "/v1/files", &form(&lines), "a customer").await;
    assert_eq!((file.status, upload), (200, 100), "the least call: {}", file.body);
    assert!(file.stored.as_deref().expect("it says what is kept").contains("nobody can prove"));
    let file = file.json()["id"].as_str().unwrap().to_owned();
    let about = free(&shop, Method::GET, &format!("/v1/files/{file}")).await.json();
    assert_eq!((&about["filename"], &about["bytes"]), (&json!("night.jsonl"), &json!(lines.len())));
    assert_eq!(free(&shop, Method::GET, &format!("/v1/files/{file}/content")).await.body, lines);
    assert!(store.blocks.iter().count() > 0);

    let before = shop.in_the_book().await;
    let (batch, amount) = paid(&shop, Method::POST, "/v1/batches", &of(&file, "/v1/completions"), "a customer").await;
    assert_eq!(batch.status, 200, "{}", batch.body);
    let batch = batch.json();
    // The stand-in counts a token a byte; a million of them cost a USDC.
    let tokens: usize = prompts.iter().map(|prompt| prompt.len()).sum();
    assert_eq!(amount, half_up(tokens.try_into().unwrap(), Usdc(1_000_000)).0);
    assert!(amount > 100, "more than the least call");
    assert_eq!((&batch["status"], &batch["x402"]["charged"]), (&json!("validating"), &json!(amount.to_string())));
    let batch = until(&shop, batch["id"].as_str().unwrap(), "completed").await;
    assert_eq!(batch["request_counts"], json!({ "total": 2, "completed": 2, "failed": 0 }), "{batch}");

    // 6 tokens at 10 micro-USDC, halved: less than the least call.
    assert_eq!((&batch["output_uusdc"], &batch["output_paid"]), (&json!("100"), &json!(false)));
    let path = content_of(&batch["output_file_id"]);
    assert_eq!(free(&shop, Method::GET, &path).await.status, 402);
    let (output, amount) = paid(&shop, Method::GET, &path, "", "a customer").await;
    assert_eq!((output.status, amount), (200, 100), "{}", output.body);
    let answers: Vec<Value> = output.body.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let names: Vec<&Value> = answers.iter().map(|answer| &answer["custom_id"]).collect();
    assert_eq!(names, ["one", "two"]);
    for answer in &answers {
        assert_eq!((&answer["response"]["status_code"], &answer["error"]), (&json!(200), &Value::Null));
        assert_eq!(answer["response"]["body"]["choices"][0]["text"], ANSWER.concat());
    }
    // By either method.
    for method in [Method::GET, Method::POST] {
        assert_eq!(free(&shop, method, &path).await.body, output.body);
    }
    assert_eq!(shop.in_the_book().await.0 + shop.in_the_book().await.1, before.0 + before.1 + 2, "two calls");
    let batch = until(&shop, batch["id"].as_str().unwrap(), "completed").await;
    assert_eq!(batch["output_paid"], true);
    shop.close().await;
}

#[tokio::test]
async fn a_live_request_goes_first_and_a_restart_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).await;
    let shop = store.shop(dir.path()).await;
    let busy = shop.shared.enter();
    let file = uploaded(&shop, &line(&shop, "one", "What is a lease?"), "a customer").await;
    let id = created(&shop, &file, "a customer").await["id"].as_str().unwrap().to_owned();
    until(&shop, &id, "in_progress").await;
    let batch = free(&shop, Method::GET, &format!("/v1/batches/{id}")).await.json();
    assert_eq!((&batch["request_counts"]["completed"], &batch["waits"]), (&json!(0), &Value::Null));
    shop.shared.stop_selling("the agent is hungry".to_owned());
    drop(busy);
    let batch = free(&shop, Method::GET, &format!("/v1/batches/{id}")).await.json();
    assert_eq!((&batch["status"], &batch["waits"]), (&json!("in_progress"), &json!("the agent is hungry")));
    shop.close().await;

    let shop = store.shop(dir.path()).await;
    let batch = until(&shop, &id, "completed").await;
    shop.close().await;
    let shop = store.shop(dir.path()).await;
    let path = content_of(&batch["output_file_id"]);
    assert_eq!(paid(&shop, Method::POST, &path, "{}", "a customer").await.0.status, 200);
    shop.close().await;
    let shop = store.shop(dir.path()).await;
    shop.shared.stop_selling("the agent winds down".to_owned());
    assert!(free(&shop, Method::GET, &path).await.body.contains("promise"), "it was paid");
    shop.close().await;
}

#[tokio::test]
async fn vectors_are_paid_with_their_texts() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).await;
    let shop = store.shop(dir.path()).await;
    let text = "a lease ".repeat(1_000);
    let file = uploaded(&shop, &vectors("v", &text[..2_000]), "a customer").await;
    let (batch, amount) = paid(&shop, Method::POST, "/v1/batches", &of(&file, "/v1/embeddings"), "a customer").await;
    // 2,000 tokens at 0.07, halved: 70 are less than the least call.
    assert_eq!((batch.status, amount), (200, 100), "{}", batch.body);
    let batch = until(&shop, batch.json()["id"].as_str().unwrap(), "completed").await;
    assert_eq!((&batch["output_uusdc"], &batch["output_paid"]), (&json!("0"), &json!(true)));
    let output = free(&shop, Method::GET, &content_of(&batch["output_file_id"])).await;
    let answer: Value = serde_json::from_str(&output.body).unwrap();
    assert_eq!(answer["response"]["body"]["data"][0]["embedding"], json!([1.0, 0.0]));
    shop.close().await;
}

#[tokio::test]
async fn what_is_wrong_is_refused_by_name_before_it_is_paid() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).await;
    let shop = store.shop(dir.path()).await;
    let refused = async |path: &str, body: &str| {
        let heard = sent(&shop, Method::POST, path, body, &[]).await;
        let error = heard.json()["error"].clone();
        let word = |name: &str| error[name].as_str().unwrap_or_default().to_owned();
        (heard.status, word("code"), word("param"))
    };
    let named = |status, code: &str, param: &str| (status, code.to_owned(), param.to_owned());
    let two = |second: &str| form(&[&line(&shop, "one", "a"), second].map(ToString::to_string).join("\n"));
    let elsewhere = line_with(&shop, "two", &json!({ "model": "another" }));
    assert_eq!(refused("/v1/files", &two(&elsewhere)).await, named(404, "model_not_found", "line 2: body.model"));
    assert_eq!(refused("/v1/files", &two("{}")).await, named(400, "missing_field", "line 2: custom_id"));
    let streamed = line_with(&shop, "two", &json!({ "stream": true }));
    assert_eq!(refused("/v1/files", &two(&streamed)).await, named(400, "unsupported_field", "line 2: body.stream"));
    assert_eq!(refused("/v1/files", "--b").await, named(400, "invalid_form", ""));

    let file = uploaded(&shop, &line(&shop, "one", "a"), "a customer").await;
    assert_eq!(refused("/v1/batches", &of("file-1", "/v1/completions")).await.2, "input_file_id");
    assert_eq!(refused("/v1/batches", &of(&file, "/v1/embeddings")).await, named(400, "out_of_range", "endpoint"));
    assert_eq!(refused("/v1/batches", "{}").await, named(400, "missing_field", "input_file_id"));
    // The model's context is 2,048: found when it is counted, which is after the payment is good, and nothing is charged.
    let long = form(&line(&shop, "one", &"a".repeat(3_000)));
    let (heard, _) = paid(&shop, Method::POST, "/v1/files", &long, "a customer").await;
    let error = heard.json()["error"].clone();
    assert_eq!((heard.status, &error["param"]), (400, &json!("line 1: body")), "{error}");
    for path in ["/v1/files/file-1", "/v1/files/resp_1", "/v1/files/file-1-output/content", "/v1/batches/batch_1"] {
        assert_eq!(free(&shop, Method::GET, path).await.status, 404, "{path}");
    }
    // A file is no response, and no batch a file.
    assert_eq!(free(&shop, Method::GET, &format!("/v1/responses/{file}")).await.status, 404);
    assert_eq!(free(&shop, Method::DELETE, &format!("/v1/responses/{file}")).await.status, 404);
    shop.close().await;
}

#[tokio::test]
async fn a_customer_has_few_unpaid_batches_lists_its_own_and_deletes_them() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).await;
    let shop = store.shop(dir.path()).await;
    let busy = shop.shared.enter();
    let file = uploaded(&shop, &[line(&shop, "one", "a"), line(&shop, "two", "b")].join("\n"), "a customer").await;
    let mut ids = Vec::new();
    for _ in 0..UNPAID_MAX {
        ids.push(created(&shop, &file, "a customer").await["id"].as_str().unwrap().to_owned());
    }
    let (heard, _) = paid(&shop, Method::POST, "/v1/batches", &of(&file, "/v1/completions"), "a customer").await;
    assert_eq!((heard.status, &heard.json()["error"]["code"]), (429, &json!("too_many_unpaid_batches")));
    created(&shop, &file, "another").await;

    let signer = customer("a customer");
    let signed = ListRequest::signed(shop.cx.config.treasury, shop.cx.config.chain_id, NOW, &signer).unwrap();
    let signed = serde_json::to_string(&signed).unwrap();
    let lists = [(HeaderName::from_static("vivarium-payer"), signed.as_str())];
    let listed = sent(&shop, Method::GET, "/v1/batches?limit=100", "", &lists).await.json();
    let mut found: Vec<&str> = listed["data"].as_array().unwrap().iter().filter_map(|b| b["id"].as_str()).collect();
    found.sort_unstable();
    ids.sort_unstable();
    assert_eq!(found, ids, "and nobody else's");
    let listed = sent(&shop, Method::GET, "/v1/files", "", &lists).await.json();
    assert_eq!((&listed["data"][0]["id"], &listed["has_more"]), (&json!(file), &json!(false)));
    assert_eq!(free(&shop, Method::GET, "/v1/batches").await.status, 403);

    let cancelled = free(&shop, Method::POST, &format!("/v1/batches/{}/cancel", ids[0])).await.json();
    assert!(["cancelling", "cancelled"].contains(&cancelled["status"].as_str().unwrap()), "{cancelled}");
    let cancelled = until(&shop, &ids[0], "cancelled").await;
    let errors = free(&shop, Method::GET, &content_of(&cancelled["error_file_id"])).await.body;
    assert_eq!((errors.lines().count(), errors.contains("batch_cancelled")), (2, true), "{errors}");
    // It bars no other one.
    created(&shop, &file, "a customer").await;

    let gone = free(&shop, Method::DELETE, &format!("/v1/files/{file}")).await.json();
    assert_eq!((&gone["deleted"], gone["note"].as_str().unwrap().contains("next checkpoint")), (&json!(true), true));
    until(&shop, &ids[1], "cancelled").await;
    let errors = format!("/v1/files/{}", cancelled["error_file_id"].as_str().unwrap());
    assert_eq!(free(&shop, Method::DELETE, &errors).await.status, 200);
    assert_eq!(free(&shop, Method::GET, &errors).await.status, 404);
    drop(busy);
    shop.close().await;
}
