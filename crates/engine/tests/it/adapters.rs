//! LoRA adapters: chosen by request, one at a time in a step, and nobody else notices.

use std::path::{Path, PathBuf};

use infer::{EngineClient, EngineConfig, EngineEvent, FailureKind, Generate};

use crate::{Engine, Whole, engine, greedy, model, whole};

#[path = "../../../../tests/lora.rs"]
mod lora;

pub(crate) use lora::{WIDTH, adapter};

fn config(dir: &Path, adapters: Vec<PathBuf>) -> EngineConfig {
    EngineConfig {
        program: env!("CARGO_BIN_EXE_vivarium-engine").into(),
        model: model(),
        adapters,
        socket: dir.join("engine.sock"),
        threads: 1,
        threads_max: 1,
        ctx: 512,
        slots: 3,
    }
}

/// With a beginning of some 150 tokens.
fn asked(end: &str, adapter: Option<u32>) -> Generate {
    let prompt: String = (1..=14).map(|n| format!("Rule {n}: be kind to number {n}. ")).collect();
    Generate { logprobs: Some(1), adapter, ..greedy(&(prompt + end), 10) }
}

async fn answered(client: &EngineClient, end: &str, adapter: Option<u32>) -> Whole {
    whole(client.generate(asked(end, adapter)).unwrap()).await
}

#[tokio::test]
async fn a_request_chooses_its_adapter_and_the_others_notice_nothing() {
    let plain = engine(3, 512).await;
    let without = answered(&plain.client, "What is rule 3?", None).await;
    drop(plain);

    let directory = tempfile::tempdir().unwrap();
    let adapters = [1, 2].map(|seed| adapter(directory.path(), seed, WIDTH)).to_vec();
    let (client, hello) = EngineClient::spawn(config(directory.path(), adapters)).await.unwrap();
    let Engine { client, hello, .. } = Engine { client, hello, _directory: directory };
    assert_eq!(hello.adapters, 2);

    // Side by side, each with its own and the same text.
    let [a, b, c] = [None, Some(0), Some(1)].map(|adapter| answered(&client, "What is rule 3?", adapter));
    let (none, first, second) = tokio::join!(a, b, c);
    assert_eq!(none, without, "adapters that others have on are not to be seen");
    assert!(none.text != first.text && first.text != second.text && none.text != second.text, "{first:?} {second:?}");
    assert_eq!([&none, &first, &second].map(|answer| answer.cached_tokens), [0, 0, 0], "no context is shared");

    // One after the other, in another order: the same bits, from contexts of their own.
    for (adapter, wanted) in [(Some(1), &second), (None, &none), (Some(0), &first), (Some(1), &second)] {
        let again = answered(&client, "What is rule 3?", adapter).await;
        assert_eq!(&again, wanted, "{adapter:?}");
        assert!(again.cached_tokens >= 96, "{again:?}");
    }

    let mut refused = client.generate(asked("", Some(2))).unwrap();
    let said = refused.recv().await;
    assert!(matches!(&said, Some(EngineEvent::Failed { kind: FailureKind::Invalid, .. })), "{said:?}");
}

#[tokio::test]
async fn what_is_no_adapter_of_this_model_keeps_the_engine_from_starting() {
    let directory = tempfile::tempdir().unwrap();
    let good = adapter(directory.path(), 1, WIDTH);
    let cut = directory.path().join("cut.gguf");
    let bytes = std::fs::read(&good).unwrap();
    std::fs::write(&cut, &bytes[..bytes.len() - 4_096]).unwrap();
    for (bad, why) in [
        (adapter(directory.path(), 1, 64), "llama.cpp refuses the adapter"),
        (cut, "llama.cpp refuses the adapter"),
        (model(), "llama.cpp refuses the adapter"),
        (directory.path().join("nothing.gguf"), "there is no file"),
    ] {
        let refused = EngineClient::spawn(config(directory.path(), vec![good.clone(), bad])).await.unwrap_err();
        assert!(refused.to_string().contains(why), "{refused}");
    }
}
