//! An engine of the embedding model: what its vectors are good for, and what it refuses.

use std::path::PathBuf;

use infer::api::rerank::rank;
use infer::{EngineClient, EngineConfig, EngineEvent, FailureKind};

use crate::{Engine, engine, greedy, whole};

/// Questions of `retrieval.tsv` whose own answer must be the nearest of all forty.
const FOUND_MIN: usize = 36;

/// The model that `cargo xtask up` runs with; `VIVARIUM_EMBEDDING_MODEL` names another place.
pub(crate) fn model() -> PathBuf {
    let usual = concat!(env!("CARGO_MANIFEST_DIR"), "/../../.vivarium/models/all-MiniLM-L6-v2.Q8_0.gguf");
    let path = std::env::var_os("VIVARIUM_EMBEDDING_MODEL").map_or_else(|| PathBuf::from(usual), PathBuf::from);
    assert!(
        path.is_file(),
        "NO EMBEDDING MODEL at {}: `cargo xtask test` makes it; or set VIVARIUM_EMBEDDING_MODEL to a copy",
        path.display()
    );
    path
}

async fn embedder() -> Engine {
    let directory = tempfile::tempdir().unwrap();
    let config = EngineConfig {
        adapters: Vec::new(),
        program: env!("CARGO_BIN_EXE_vivarium-engine").into(),
        model: model(),
        socket: directory.path().join("embed.sock"),
        threads: 1,
        threads_max: 1,
        ctx: 256,
        slots: EngineConfig::TEXTS_DEFAULT,
    };
    let (client, hello) = EngineClient::spawn(config).await.unwrap();
    Engine { client, hello, _directory: directory }
}

/// The vectors of these texts and the tokens of all together.
async fn embed(client: &EngineClient, texts: &[&str]) -> Result<(Vec<Vec<f32>>, u32), (FailureKind, String)> {
    let mut running = client.embed(texts.iter().map(|text| (*text).to_owned()).collect()).unwrap();
    let mut announced = None;
    loop {
        match running.recv().await.unwrap() {
            EngineEvent::Accepted { prompt_tokens } => announced = Some(prompt_tokens),
            EngineEvent::Embedded { vectors, prompt_tokens } => {
                assert_eq!(announced, Some(prompt_tokens));
                assert_eq!(running.recv().await, None);
                return Ok((vectors, prompt_tokens));
            }
            EngineEvent::Failed { kind, message } => return Err((kind, message)),
            other => panic!("{other:?} where vectors are made"),
        }
    }
}

/// Of vectors of length 1.
fn cosine(one: &[f32], other: &[f32]) -> f32 {
    one.iter().zip(other).map(|(a, b)| a * b).sum()
}

fn furthest(one: &[f32], other: &[f32]) -> f32 {
    one.iter().zip(other).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[tokio::test]
async fn vectors_are_the_published_models_and_the_same_in_any_company() {
    let engine = embedder().await;
    assert_eq!((engine.hello.dimensions, engine.hello.n_ctx), (Some(384), 256));
    assert!(engine.hello.confinement.ends_with("seccomp, rlimits"), "{}", engine.hello.confinement);

    let texts = ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."];
    let (alone, tokens) = embed(&engine.client, &texts).await.unwrap();
    assert_eq!(tokens, 8 + 9 + 8, "with a token before and one behind each");
    // What sentence-transformers' documentation prints for the same model in 32 bits (sbert.net, quickstart).
    for (one, other, published) in [(0, 1, 0.6660), (0, 2, 0.1046), (1, 2, 0.1411)] {
        let ours = cosine(&alone[one], &alone[other]);
        assert!((ours - published).abs() < 0.01, "{one} and {other}: {ours}, published {published}");
    }

    // The same between longer texts, at the end of many, and asked for at once by two.
    let long = "A sentence that is rather longer than the others, so that its batch looks different. ".repeat(8);
    let mut crowd = vec![long.as_str(); 40];
    crowd.extend(texts);
    let (crowded, mixed) = tokio::join!(embed(&engine.client, &crowd), embed(&engine.client, &texts));
    let (crowded, mixed) = (crowded.unwrap().0, mixed.unwrap().0);
    assert_eq!((crowded.len(), mixed.len()), (43, 3));
    for (at, vector) in alone.iter().enumerate() {
        assert!((cosine(vector, vector) - 1.0).abs() < 1e-5, "its length is 1");
        assert!(*vector == crowded[40 + at] && *vector == mixed[at], "text {at}: the same bits in any company");
    }
    assert!(furthest(&crowded[0], &alone[0]) > 0.01, "another text has another vector");
}

/// The figures of docs/reference/api.md, of vectors and of `rerank`, which is nothing but their order: a small test set of
/// our own, whose answers avoid the words of their questions.
#[tokio::test]
async fn a_question_finds_its_answer_among_forty() {
    let engine = embedder().await;
    let pairs: Vec<(&str, &str)> =
        include_str!("retrieval.tsv").lines().map(|line| line.split_once('\t').unwrap()).collect();
    assert_eq!(pairs.len(), 40);
    let (questions, answers): (Vec<&str>, Vec<&str>) = pairs.iter().copied().unzip();
    let (questions, answers) =
        (embed(&engine.client, &questions).await.unwrap().0, embed(&engine.client, &answers).await.unwrap().0);
    let mut ranks = Vec::new();
    for (at, question) in questions.iter().enumerate() {
        // As a call of `rerank` with all forty answers.
        let vectors: Vec<Vec<f32>> = std::iter::once(question).chain(&answers).cloned().collect();
        let ranked = rank(&vectors, None);
        let before = ranked.iter().position(|result| result.index == at).unwrap();
        assert!((ranked[before].relevance - cosine(question, &answers[at])).abs() < 1e-6);
        if before > 0 {
            println!("not found first: {}", pairs[at].0);
        }
        ranks.push(before);
    }
    let within = |most| ranks.iter().filter(|rank| **rank < most).count();
    // In thousandths: a test needs no more, and comparing whole numbers is plain.
    let reciprocal: usize = ranks.iter().map(|rank| 1_000 / (rank + 1)).sum::<usize>() / ranks.len();
    println!(
        "nearest of 40: {} of 40; among the three nearest: {}; mean reciprocal rank 0.{reciprocal:03}",
        within(1),
        within(3)
    );
    assert!(within(1) >= FOUND_MIN, "{ranks:?}");
}

#[tokio::test]
async fn what_is_no_text_for_it_is_refused_and_nothing_else_suffers() {
    let engine = embedder().await;
    let long = "word ".repeat(255);
    assert_eq!(engine.client.count_tokens(&long, true).await.unwrap(), 257);
    let (kind, message) = embed(&engine.client, &["short", &long]).await.unwrap_err();
    assert_eq!(kind, FailureKind::TooLong);
    assert!(message.contains("text 1 has 257 tokens"), "{message}");
    assert_eq!(embed(&engine.client, &[]).await.unwrap_err().0, FailureKind::Invalid);
    let mut answer = engine.client.generate(greedy("Once", 4)).unwrap();
    assert!(matches!(answer.recv().await, Some(EngineEvent::Failed { kind: FailureKind::Invalid, .. })));

    // The longest that fits, spaces alone, control tokens that are only spelled, what makes tokenizers trip, and a word of
    // 200 kB that the vocabulary lacks: one token.
    let (fits, unknown) = ("word ".repeat(254), "🦀".repeat(50_000));
    let odd = [fits.as_str(), " ", "[SEP] [CLS]", "\u{0} \u{fffd} \u{301}\u{301} 🦀 ﷽ 漢字", unknown.as_str()];
    let (vectors, _) = embed(&engine.client, &odd).await.unwrap();
    assert_eq!(vectors.len(), 5);
    assert!(engine.client.count_tokens("[SEP] [CLS]", true).await.unwrap() > 4, "text, and no control tokens");
    // A request that is left makes room for the next one.
    drop(engine.client.embed(vec![fits; 200]).unwrap());
    assert_eq!(embed(&engine.client, &["short"]).await.unwrap().0.len(), 1);
    assert_eq!(engine.client.restarts(), 0);
}

#[tokio::test]
async fn a_model_that_answers_makes_no_vectors() {
    let engine = engine(1, 256).await;
    assert_eq!(engine.hello.dimensions, None);
    assert_eq!(embed(&engine.client, &["a"]).await.unwrap_err().0, FailureKind::Invalid);
    whole(engine.client.generate(greedy("Once", 2)).unwrap()).await;
}
