//! What is sold by the call: one price whatever is in it, a receipt as ever, and nothing below the meter.

use super::*;
use crate::manifest::PerCall;

async fn shop(dir: &Path) -> Shop {
    Shop::open_with_vectors(dir, |cx| {
        cx.manifest.per_call = PerCall { classify_uusdc: 1_200, extract_uusdc: 2_500, verify_uusdc: 3_000 };
    })
    .await
}

fn classify(inputs: &[&str]) -> Value {
    json!({ "model": "vectors", "inputs": inputs, "labels": ["leases", {"name": "soup", "description": "of leeks"}] })
}

fn extract(shop: &Shop, input: &str) -> Value {
    let schema = json!({ "type": "object", "properties": { "what": { "type": "string" } } });
    let model = &shop.cx.manifest.model.name;
    json!({ "model": model, "input": input, "schema": schema, "max_output_tokens": 16 })
}

/// What a call costs on a channel.
async fn offered(shop: &Shop, path: &str, body: &Value) -> PaymentRequirements {
    let sent = HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))]);
    let url = format!("{}{path}", shop.url);
    let said = net::Client::new().send(Method::POST, &url, sent, body.to_string().into()).await.unwrap();
    assert_eq!(said.status, 402);
    let offers = PaymentRequired::from_header(said.header(&PAYMENT_REQUIRED).unwrap()).unwrap();
    offers.accepts.into_iter().find(|offer| offer.scheme() == CHANNEL).expect("an offer by channel")
}

/// The answer to a call that a new customer's voucher pays.
pub(super) async fn bought(shop: &Shop, path: &str, body: &Value, payer: &str) -> Value {
    let offer = offered(shop, path, body).await;
    let (payer, domain) = (customer(payer), ChannelDomain::new(shop.cx.config.chain_id));
    let config = channel::config(payer.address(), &offer, [0; 32]).unwrap();
    let voucher = channel::pay(&payer, &domain, &config, &offer, offer.amount(), None).unwrap().to_header();
    let (status, _, said) = asked(shop, Method::POST, path, body, Some(&voucher)).await;
    assert_eq!(status, 200, "{said}");
    said
}

pub(super) async fn receipt_of(shop: &Shop, said: &Value) -> pay::Receipt {
    signed(shop, said).await.receipt
}

pub(super) async fn signed(shop: &Shop, said: &Value) -> SignedReceipt {
    let said = Said { status: StatusCode::OK, offers: None, told: None, later: None, body: said.to_string() };
    shop.receipt(&said).await
}

#[tokio::test]
async fn a_call_costs_the_manifests_price_whatever_is_in_it() {
    let dir = tempfile::tempdir().unwrap();
    let shop = shop(dir.path()).await;

    for (inputs, price) in [(&["a lease"][..], 1_200), (&["a lease", "a soup", "a lease of soup"][..], 3_600)] {
        let said = bought(&shop, "/v1/classify", &classify(inputs), inputs[inputs.len() - 1]).await;
        assert_eq!(said["x402"]["charged"], price.to_string(), "{said}");
        let predictions: Vec<&Value> =
            said["classifications"].as_array().unwrap().iter().map(|one| &one["prediction"]).collect();
        assert_eq!(predictions, ["leases", "soup", "leases"][..inputs.len()], "{said}");
        let receipt = receipt_of(&shop, &said).await;
        assert_eq!((receipt.amount, receipt.prompt_tokens, receipt.embedding_tokens > 0), (Usdc(price), 0, true));
        assert_eq!(receipt.run.digest(), [0; 32], "no receipt names how vectors were made");
    }
    for input in ["A lease is a promise.", &"A lease is a promise. ".repeat(30)] {
        let said = bought(&shop, "/v1/extract", &extract(&shop, input), input).await;
        assert_eq!(said["x402"]["charged"], "2500", "{said}");
        assert_eq!((&said["output_text"], &said["finish_reason"]), (&json!(ANSWER.concat()), &json!("stop")));
        let receipt = receipt_of(&shop, &said).await;
        assert_eq!((receipt.amount, receipt.completion_tokens), (Usdc(2_500), 3));
        let run = infer::Run::from_canonical(receipt.run.text().unwrap()).unwrap();
        assert_eq!((run.route.as_str(), run.sampling.temperature.as_str()), ("POST /v1/extract", "0"));
        assert!(run.sampling.constraints_sha256.is_some(), "held to the schema");
    }
    shop.close().await;
}

#[tokio::test]
async fn what_would_cost_more_by_the_meter_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let shop = shop(dir.path()).await;
    let refused = async |path: &str, body: Value| {
        let (status, _, said) = asked(&shop, Method::POST, path, &body, None).await;
        (status, said["error"]["code"].clone(), said["error"]["param"].clone())
    };
    let path = "/v1/extract";
    let mut many = extract(&shop, &"x".repeat(1_000));
    many["max_output_tokens"] = 256.into();
    assert_eq!(refused(path, many.clone()).await, (400, json!("over_fixed_price"), json!("input")));
    many["max_output_tokens"] = 257.into();
    assert_eq!(refused(path, many).await, (400, json!("out_of_range"), json!("max_output_tokens")));
    let mut other = classify(&["x"]);
    other["model"] = shop.cx.manifest.model.name.as_str().into();
    assert_eq!(refused("/v1/classify", other).await, (404, json!("model_not_found"), json!("model")));
    let too_long = classify(&["x", &"x".repeat(2_049)]);
    assert_eq!(refused("/v1/classify", too_long).await, (400, json!("context_length_exceeded"), json!("inputs[1]")));
    shop.close().await;
}

#[tokio::test]
async fn an_answer_is_made_again_for_whoever_pays() {
    let dir = tempfile::tempdir().unwrap();
    let shop = shop(dir.path()).await;
    let question = extract(&shop, "A lease is a promise.");
    let said = bought(&shop, "/v1/extract", &question, "asks").await;
    let receipt = signed(&shop, &said).await;
    let papers = |receipt: &SignedReceipt, answer: &Value| {
        let receipt: Value = serde_json::from_str(&receipt.to_json()).unwrap();
        json!({ "receipt": receipt, "request": question.to_string(), "answer": answer.to_string() })
    };
    let same = bought(&shop, "/v1/verify", &papers(&receipt, &said), "looks").await;
    assert_eq!((&same["verdict"], &same["place"], &same["why"]), (&json!("same"), &Value::Null, &json!([])), "{same}");
    assert_eq!(same["x402"]["charged"], "3000", "{same}");
    assert_eq!(same["signer"], receipt.signer().unwrap().to_string(), "{same}");
    let own = receipt_of(&shop, &same).await;
    assert_eq!((own.output, own.completion_tokens), (receipt.receipt.output, 3), "what was made");

    let mut forged = said.clone();
    forged["output_text"] = "A lease is a lie.".into();
    let different = bought(&shop, "/v1/verify", &papers(&receipt, &forged), "looks again").await;
    assert_eq!((&different["verdict"], &different["place"]["bytes"]), (&json!("different"), &json!(13)), "{different}");

    let refused = async |body: Value| {
        let (status, _, said) = asked(&shop, Method::POST, "/v1/verify", &body, None).await;
        (status, said["error"]["code"].clone(), said["error"]["param"].clone())
    };
    let key = customer("another agent");
    let elsewhere = pay::Receipt { model: [9; 32], ..receipt.receipt.clone() }.sign(&key).unwrap();
    let cannot = (400, json!("cannot_verify"), json!("receipt"));
    assert_eq!(refused(papers(&elsewhere, &said)).await, cannot, "another model");
    let run = receipt.receipt.run.text().unwrap().replacen("\"threads\":1", "\"threads\":2", 1);
    let other_class = pay::Receipt { run: pay::receipt::run::Run::of(&run), ..receipt.receipt.clone() };
    assert_eq!(refused(papers(&other_class.sign(&key).unwrap(), &said)).await, cannot, "another class");
    let mut other = papers(&receipt, &said);
    other["request"] = "{}".into();
    assert_eq!(refused(other).await, (400, json!("invalid_value"), json!("request")), "another request");
    let mut none = papers(&receipt, &said);
    none["receipt"]["version"] = 4.into();
    assert_eq!(refused(none).await, (400, json!("invalid_value"), json!("receipt")));

    let vectors = classify(&["a lease"]);
    let said = bought(&shop, "/v1/classify", &vectors, "sorts").await;
    let mut of_vectors = papers(&signed(&shop, &said).await, &said);
    of_vectors["request"] = vectors.to_string().into();
    assert_eq!(refused(of_vectors).await, cannot, "vectors");
    shop.close().await;
}
