//! Several models under one limit of memory, with real weights: loaded on demand, let go when others need the room.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures::FutureExt;
use infer::{EngineConfig, EngineEvent, EnginePool, FailureKind, Loaded, PoolPolicy, Reading, Why, resident_bytes};

use crate::{embed, greedy, model, whole};

/// SmolLM2, which answers, and MiniLM, which makes vectors.
const ANSWERS: usize = 0;
const VECTORS: usize = 1;
const PATIENCE: Duration = Duration::from_secs(60);
const SOON: Duration = Duration::from_secs(60);

/// Room for both, in a test that is not about room.
const PLENTY: u64 = 1 << 40;

struct Shop {
    pool: EnginePool,
    prepared: Arc<AtomicU32>,
    _directory: tempfile::TempDir,
}

impl Shop {
    /// Models of 60 units each, as far as is known before they are loaded.
    fn open(policy: PoolPolicy) -> Shop {
        let directory = tempfile::tempdir().unwrap();
        let (dir, prepared) = (directory.path().to_owned(), Arc::new(AtomicU32::new(0)));
        let counted = prepared.clone();
        let prepare = move |place: usize| {
            counted.fetch_add(1, Ordering::SeqCst);
            let config = EngineConfig {
                program: env!("CARGO_BIN_EXE_vivarium-engine").into(),
                model: if place == ANSWERS { model() } else { embed::model() },
                adapters: Vec::new(),
                socket: dir.join(format!("engine-{place}.sock")),
                threads: 1,
                threads_max: 1,
                ctx: 256,
                slots: 2,
            };
            async move { Ok::<_, String>(config) }.boxed()
        };
        let pool = EnginePool::new(policy, [60, 60], Box::new(prepare));
        Shop { pool, prepared, _directory: directory }
    }

    async fn get(&self, place: usize) -> Loaded {
        self.pool.get(place, PATIENCE).await.unwrap()
    }

    async fn answer(&self) -> String {
        let loaded = self.get(ANSWERS).await;
        whole(loaded.client.generate(greedy("Once upon a time", 8)).unwrap()).await.text
    }

    async fn vector(&self) -> Vec<f32> {
        let loaded = self.get(VECTORS).await;
        let mut generation = loaded.client.embed(vec!["a lease".to_owned()]).unwrap();
        loop {
            match generation.recv().await.expect("vectors come") {
                EngineEvent::Embedded { vectors, .. } => return vectors.into_iter().next().unwrap(),
                EngineEvent::Accepted { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }

    fn reading(&self, place: usize) -> Reading {
        self.pool.readings()[place]
    }

    /// Waits until the readings are so.
    async fn until(&self, is_so: impl Fn(&[Reading]) -> bool) {
        let mut changes = self.pool.changes();
        let seen = async {
            while !is_so(&self.pool.readings()) {
                changes.changed().await.unwrap();
            }
        };
        tokio::time::timeout(SOON, seen).await.unwrap_or_else(|_| panic!("{:?}", self.pool.readings()));
    }
}

/// No memory is measured in units: limits in bytes come once it is known what the two take.
async fn bytes_of_both() -> (Shop, u64, u64) {
    let shop = Shop::open(QUICK);
    let (text, vector) = tokio::join!(shop.answer(), shop.vector());
    assert!(!text.is_empty() && vector.len() == 384, "{text:?}");
    let [answers, vectors] = [ANSWERS, VECTORS].map(|place| shop.reading(place).bytes);
    assert!(answers > 90 << 20 && vectors > 20 << 20, "measured, {answers} and {vectors} bytes");
    (shop, answers, vectors)
}

const QUICK: PoolPolicy = PoolPolicy { bytes_max: PLENTY, idle_ms: 3_600_000, stay_ms: 0, waiting_max: 8 };

#[tokio::test]
async fn models_take_turns_where_there_is_room_for_one_and_answer_as_before() {
    let (shop, answers, vectors) = bytes_of_both().await;
    let text = shop.answer().await;
    let vector = shop.vector().await;
    assert_eq!([ANSWERS, VECTORS].map(|place| shop.reading(place).loads), [1, 1], "both stay while there is room");

    // Its contexts may still grow by some pages: room for the larger one and a part of the other.
    shop.pool.set_bytes_max(answers + vectors / 2);
    shop.until(|all| !all[ANSWERS].is_loaded).await;
    let first = shop.pool.pid(VECTORS).expect("the other one stays");
    for round in 2..4 {
        assert_eq!(shop.answer().await, text);
        assert!(shop.reading(ANSWERS).is_loaded && !shop.reading(VECTORS).is_loaded);
        assert_eq!(resident_bytes(first), None, "its process is gone before the other's begins");
        assert_eq!(shop.vector().await, vector);
        assert!(!shop.reading(ANSWERS).is_loaded && shop.reading(VECTORS).is_loaded);
        assert_eq!([ANSWERS, VECTORS].map(|place| shop.reading(place).loads), [round, round]);
    }
    assert_eq!([ANSWERS, VECTORS].map(|place| shop.reading(place).unloads), [3, 2]);
}

#[tokio::test]
async fn a_model_stays_under_a_running_stream_and_whoever_cannot_wait_is_told_when_to_come_again() {
    let shop = Shop::open(QUICK);
    let loaded = shop.get(ANSWERS).await;
    // No room for the 60 that the other one will take, as far as is known.
    shop.pool.set_bytes_max(shop.reading(ANSWERS).bytes + 50);
    let mut stream = loaded.client.generate(greedy("Once upon a time", 200)).unwrap();
    drop(loaded);
    assert!(matches!(stream.recv().await, Some(EngineEvent::Accepted { .. })));
    let pid = shop.pool.pid(ANSWERS).unwrap();

    let refused = shop.pool.get(VECTORS, Duration::ZERO).await.unwrap_err();
    assert_eq!((&refused.why, refused.after_secs_up()), (&Why::NoRoom, 5), "{refused}");
    // One that waits gets it when the stream has ended, and not before.
    let waiting = tokio::spawn({
        let pool = shop.pool.clone();
        async move { pool.get(VECTORS, PATIENCE).await.map(|loaded| loaded.hello.dimensions) }
    });
    shop.until(|all| all[VECTORS].waiting == 1).await;
    let mut tokens = 0;
    loop {
        match stream.recv().await.expect("it ends") {
            EngineEvent::Tokens { count, .. } => {
                tokens += count;
                assert_eq!(shop.pool.pid(ANSWERS), Some(pid), "after {tokens} tokens");
            }
            EngineEvent::Done { completion_tokens, .. } => break assert_eq!(completion_tokens, tokens),
            other => panic!("{other:?}"),
        }
    }
    assert!(tokens > 20 && !waiting.is_finished(), "{tokens}");
    drop(stream);
    assert_eq!(waiting.await.unwrap().unwrap(), Some(384));
    assert!(!shop.reading(ANSWERS).is_loaded);
}

#[tokio::test]
async fn one_engines_death_is_not_the_others() {
    let shop = Shop::open(QUICK);
    let vector = shop.vector().await;
    let text = shop.answer().await;
    let answers = shop.get(ANSWERS).await;
    let mut stream = answers.client.generate(greedy("Once upon a time", 200)).unwrap();
    assert!(matches!(stream.recv().await, Some(EngineEvent::Accepted { .. })));

    let dead = shop.pool.pid(VECTORS).unwrap();
    let held = shop.get(VECTORS).await;
    let mut torn = held.client.embed(vec!["a lease ".repeat(60); 200]).unwrap();
    let killed = std::process::Command::new("kill").args(["-9", &dead.to_string()]).status().unwrap();
    assert!(killed.success());
    let end = loop {
        match torn.recv().await {
            Some(EngineEvent::Accepted { .. }) => {}
            other => break other,
        }
    };
    assert!(matches!(&end, Some(EngineEvent::Failed { kind: FailureKind::EngineDied, .. })), "{end:?}");
    held.client.wait_ready().await.unwrap();
    assert_eq!(shop.vector().await, vector, "another process of the same model");
    assert_ne!(shop.pool.pid(VECTORS), Some(dead));

    let told = loop {
        match stream.recv().await.expect("it ends") {
            EngineEvent::Tokens { .. } => {}
            EngineEvent::Done { completion_tokens, .. } => break completion_tokens,
            other => panic!("{other:?} for a stream of the other model"),
        }
    };
    assert!(told > 20, "{told}");
    assert_eq!(shop.answer().await, text);
    assert_eq!(shop.prepared.load(Ordering::SeqCst), 2, "its supervisor started it, not the pool");
}

#[tokio::test]
async fn a_model_is_loaded_once_for_all_who_ask_and_let_go_when_nobody_does() {
    let shop = Shop::open(PoolPolicy { idle_ms: 200, ..QUICK });
    let texts = futures::future::join_all((0..8).map(|_| shop.answer())).await;
    assert!(texts.iter().all(|text| *text == texts[0]));
    assert_eq!(shop.prepared.load(Ordering::SeqCst), 1);
    let pid = shop.pool.pid(ANSWERS);
    shop.until(|all| all[ANSWERS].unloads == 1).await;
    if let Some(pid) = pid {
        let gone = async {
            while resident_bytes(pid).is_some() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(SOON, gone).await.expect("its process ends");
    }
    assert_eq!(shop.answer().await, texts[0]);
    assert_eq!(shop.reading(ANSWERS).loads, 2);
}
