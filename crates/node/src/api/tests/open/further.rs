//! Models beside the first one, behind the same shop.

use super::engine::{answered, says_as};
use super::flat::{bought, receipt_of, signed};
use super::*;
use crate::manifest::{Manifest, PerCall};
use sha2::{Digest, Sha256};

/// A shop whose further models "big", which answers at twice the price of a token, and "v", whose vectors have two
/// dimensions, are there to be loaded; `more` changes what else the manifest says.
async fn shop_with_further(dir: &Path, more: impl FnOnce(&mut Manifest)) -> Shop {
    std::fs::create_dir(dir.join("model")).unwrap();
    std::fs::copy(concat!(env!("CARGO_MANIFEST_DIR"), "/src/api/tests/engine.sh"), dir.join("vivarium-engine"))
        .unwrap();
    let shop = Shop::open_with(dir, u64::MAX, |cx| {
        cx.manifest.models_bytes_max = Some(1 << 40);
        for (place, dimensions) in [None, Some(2)].into_iter().enumerate() {
            let model = &mut cx.manifest.models[place];
            let bytes = model.name.clone().into_bytes();
            let (cid, weights) = (store::cid::of_raw(&bytes), dir.join("model"));
            // A file of one block has no other node that could be kept beside it.
            let kept = store::Blocks::open(weights.join(format!("nodes-{cid}"))).unwrap();
            kept.put(&cid, &bytes).unwrap();
            std::fs::write(weights.join(&model.file), &bytes).unwrap();
            (model.cid, model.sha256) = (cid.to_string(), ::hex::encode(Sha256::digest(&bytes)));
            model.bytes = bytes.len().try_into().unwrap();
            // The script listens nowhere; this does, where the node will look.
            let listener = UnixListener::bind(dir.join(format!("model-{place}.sock"))).unwrap();
            tokio::spawn(async move {
                while let Ok((line, _)) = listener.accept().await {
                    tokio::spawn(says_as(line, dimensions, answered));
                }
            });
        }
        cx.manifest.models[0].price_pct = Some(200);
        more(&mut cx.manifest);
    });
    shop.await
}

fn digest_of(shop: &Shop, place: usize) -> [u8; 32] {
    store::cid::digest(&store::cid::parse(&shop.cx.manifest.models[place].cid).unwrap())
}

/// It is started when it is asked for, costs what the manifest says, and its receipt names it.
#[tokio::test]
async fn a_further_model_is_loaded_when_a_request_names_it_and_its_receipt_names_it() {
    const TEXT: &str = "What is a lease?";
    let dir = tempfile::tempdir().unwrap();
    let shop = shop_with_further(dir.path(), |_| ()).await;
    let metrics = shop.get("/metrics").await;
    assert!(metrics.contains("vivarium_model_loaded{model=\"big\"} 0\n"), "{metrics}");

    let question = json!({ "model": "big", "prompt": TEXT, "max_tokens": 8, "seed": 5 });
    let asked = shop.posts(&question, &[]).await;
    assert_eq!(asked.status, 402, "{}", asked.body);
    let metrics = shop.get("/metrics").await;
    for line in ["loaded{model=\"big\"} 1", "loads_total{model=\"big\"} 1", "loaded{model=\"v\"} 0"] {
        assert!(metrics.contains(&format!("vivarium_model_{line}\n")), "{line} in {metrics}");
    }
    // 16 tokens of the prompt at 2 and 8 of the answer at 20: 192, where the first model costs half and the least is
    // 100. A channel's offer is for the call and for what the one before may owe.
    let offer = asked.offers.unwrap().accepts.into_iter().find(|offer| offer.scheme() == CHANNEL).expect("a channel");
    assert_eq!((offer.amount(), shop.offers(TEXT).await[0].amount()), (Usdc(384), Usdc(200)));

    let payer = customer("likes big ones");
    let config = channel::config(payer.address(), &offer, [0; 32]).unwrap();
    let domain = ChannelDomain::new(shop.cx.config.chain_id);
    let voucher = channel::pay(&payer, &domain, &config, &offer, offer.amount(), None).unwrap();
    let said = shop.posts(&question, &[(PAYMENT_SIGNATURE, encode_header(&json_of(&voucher)))]).await;
    assert_eq!((said.status.as_u16(), said.json()["choices"][0]["text"].as_str()), (200, Some(&ANSWER.concat()[..])));
    assert_eq!(said.json()["model"], "big");
    let receipt = shop.receipt(&said).await.receipt;
    assert_eq!(receipt.model, digest_of(&shop, 0));
    let run = infer::Run::from_canonical(receipt.run.text().unwrap()).unwrap();
    assert_eq!((run.route.as_str(), run.adapter()), ("POST /v1/completions", None));

    // Models of one kind do nothing of the other's.
    for (model, code) in [("v", "model_not_found"), ("big:poet", "model_not_found")] {
        let refused = shop.posts(&json!({ "model": model, "prompt": TEXT }), &[]).await;
        assert_eq!((refused.status.as_u16(), &refused.json()["error"]["code"]), (404, &json!(code)), "{model}");
    }
    shop.close().await;
}

/// What is sold by the call is done by further models, too, at the same price, if the meter of theirs is not above it;
/// and their answers are made again by them.
#[tokio::test]
async fn calls_of_a_fixed_price_are_done_by_further_models() {
    let dir = tempfile::tempdir().unwrap();
    let shop = shop_with_further(dir.path(), |manifest| {
        manifest.per_call = PerCall { classify_uusdc: 1_200, extract_uusdc: 2_500, verify_uusdc: 3_000 };
    })
    .await;
    let extract = |model: &str, input: &str| {
        let schema = json!({ "type": "object" });
        json!({ "model": model, "input": input, "schema": schema, "max_output_tokens": 16 })
    };
    let asks = extract("big", "A lease is a promise.");
    let said = bought(&shop, "/v1/extract", &asks, "asks").await;
    assert_eq!((&said["x402"]["charged"], &said["model"]), (&json!("2500"), &json!("big")), "{said}");
    let receipt = signed(&shop, &said).await;
    assert_eq!((receipt.receipt.model, receipt.receipt.amount), (digest_of(&shop, 0), Usdc(2_500)));
    let long = "x".repeat(1_000);
    let first = shop.cx.manifest.model.name.clone();
    assert_eq!(asked(&shop, Method::POST, "/v1/extract", &extract(&first, &long), None).await.0, 402);
    let (status, _, refused) = asked(&shop, Method::POST, "/v1/extract", &extract("big", &long), None).await;
    assert_eq!((status, &refused["error"]["code"]), (400, &json!("over_fixed_price")), "{refused}");

    let papers = json!({
        "receipt": serde_json::from_str::<Value>(&receipt.to_json()).unwrap(),
        "request": asks.to_string(),
        "answer": said.to_string(),
    });
    let same = bought(&shop, "/v1/verify", &papers, "looks").await;
    assert_eq!(same["verdict"], "same", "{same}");
    assert_eq!(receipt_of(&shop, &same).await.model, digest_of(&shop, 0));

    // 2,000 tokens of a text at half as much again as the embedding model's 0.07.
    let text = "a lease".to_owned() + &" ".repeat(1_993);
    for (path, body, price) in [
        ("/v1/embeddings", json!({ "model": "v", "input": text }), "210"),
        ("/v1/rerank", json!({ "model": "v", "query": "a lease", "documents": ["a soup", "a lease"] }), "100"),
        ("/v1/classify", json!({ "model": "v", "inputs": ["a lease"], "labels": ["leases", "soup"] }), "1200"),
    ] {
        let said = bought(&shop, path, &body, path).await;
        assert_eq!((&said["x402"]["charged"], &said["model"]), (&json!(price), &json!("v")), "{path}: {said}");
        let receipt = receipt_of(&shop, &said).await;
        assert_eq!((receipt.model, receipt.prompt_tokens), (digest_of(&shop, 1), 0), "{path}");
        assert!(receipt.embedding_tokens > 0, "{path}");
    }
    shop.close().await;
}

/// Whoever asks for a model that this host has no room for is told so, and when to come again; others are served.
#[tokio::test]
async fn a_model_that_does_not_fit_is_refused_and_the_first_one_sells_on() {
    let dir = tempfile::tempdir().unwrap();
    let shop = Shop::open_with(dir.path(), u64::MAX, |cx| cx.manifest.models_bytes_max = Some(1)).await;
    let refused = shop.posts(&json!({ "model": "big", "prompt": "hello" }), &[]).await;
    assert_eq!((refused.status.as_u16(), refused.later.as_deref()), (503, Some("3600")), "{}", refused.body);
    assert!(refused.body.contains("too little memory"), "{}", refused.body);
    assert_eq!(shop.asks("hello", &[]).await.status, 402);
    shop.close().await;
}
