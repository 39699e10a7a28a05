//! What comes out for what goes in.

use std::time::Duration;

use infer::{EngineEvent, FailureKind, Finish, Generate};

use crate::{chat, engine, greedy, whole};

#[tokio::test]
async fn the_text_comes_from_the_model() {
    let engine = engine(1, 1_024).await;
    let answer = whole(engine.client.generate(greedy("The capital of France is", 4)).unwrap()).await;
    assert!(answer.text.starts_with(" Paris"), "{answer:?}");
    assert_eq!((answer.finish, answer.prompt_tokens, answer.completion_tokens), (Finish::Length, 5, 4));

    let prompt = chat(&engine.hello, "What is 2+2?");
    assert_eq!(prompt.matches("<|im_start|>").count(), 3, "{prompt}");
    let answer = whole(engine.client.generate(greedy(&prompt, 100)).unwrap()).await;
    assert_eq!(answer.finish, Finish::Stop, "{answer:?}");
    assert!(!answer.text.contains("<|im_end|>"), "{answer:?}");
    assert_eq!(engine.client.count_tokens(&prompt, false).await.unwrap(), answer.prompt_tokens);
    // One token for each of the six that are spelled, not a handful of pieces.
    assert_eq!(engine.client.count_tokens("<|im_start|><|im_end|>", false).await.unwrap(), 2);
}

/// Alone, beside others, beside a long prompt, greedy and by seed: always the same.
#[tokio::test]
async fn an_answer_does_not_depend_on_its_neighbours() {
    let engine = engine(4, 512).await;
    let story = greedy("Once upon a time, there was a", 24);
    let rolled = Generate { temperature: 1.0, top_p: 0.9, top_k: 50, seed: 7, ..story.clone() };
    let long = greedy(&"The quick brown fox jumps over the lazy dog. ".repeat(30), 4);
    let start = |request: &Generate| engine.client.generate(request.clone()).unwrap();

    let story_alone = whole(start(&story)).await;
    let rolled_alone = whole(start(&rolled)).await;
    let long_alone = whole(start(&long)).await;
    assert!(long_alone.prompt_tokens > 256, "it should take two steps: {long_alone:?}");
    assert_ne!(story_alone.text, rolled_alone.text);

    let together = [&story, &rolled, &long, &story, &long, &rolled].map(|request| whole(start(request)));
    let [a, b, c, d, e, f] = together;
    let seen = tokio::join!(a, b, c, d, e, f);
    assert_eq!((&seen.0, &seen.3), (&story_alone, &story_alone));
    assert_eq!((&seen.1, &seen.5), (&rolled_alone, &rolled_alone));
    assert_eq!((&seen.2, &seen.4), (&long_alone, &long_alone));

    let other_seed = whole(start(&Generate { seed: 8, ..rolled })).await;
    assert_ne!(other_seed.text, rolled_alone.text);
}

#[tokio::test]
async fn a_stop_string_ends_the_answer_before_it() {
    let engine = engine(1, 1_024).await;
    let free = whole(engine.client.generate(greedy("Once upon a time, there was a", 24)).unwrap()).await;
    // Seven characters from the middle of what it says: longer than a usual token, so they span two.
    let at = free.text.char_indices().nth(20).unwrap().0;
    let stop: String = free.text[at..].chars().take(7).collect();
    let before = &free.text[..free.text.find(&stop).unwrap()];

    let request = Generate { stop: vec!["never said".into(), stop], ..greedy("Once upon a time, there was a", 24) };
    let stopped = whole(engine.client.generate(request).unwrap()).await;
    assert_eq!((stopped.text.as_str(), stopped.finish), (before, Finish::Stop));
    assert!(stopped.completion_tokens < free.completion_tokens);
}

#[tokio::test]
async fn what_cannot_be_served_is_said() {
    let engine = engine(1, 256).await;
    let failure = async |request| match engine.client.generate(request).unwrap().recv().await {
        Some(EngineEvent::Failed { kind, message }) => (kind, message),
        other => panic!("{other:?} and no failure"),
    };
    let (kind, message) = failure(greedy(&"word ".repeat(260), 1)).await;
    assert_eq!(kind, FailureKind::TooLong);
    assert!(message.contains("this model takes 256"), "{message}");
    assert_eq!(failure(greedy(&"word ".repeat(200_000), 1)).await.0, FailureKind::TooLong);
    assert_eq!(failure(greedy("", 1)).await.0, FailureKind::Invalid);
    assert_eq!(failure(greedy("x", 0)).await.0, FailureKind::Invalid);
    assert_eq!(failure(Generate { temperature: -1.0, ..greedy("x", 1) }).await.0, FailureKind::Invalid);
    assert_eq!(failure(Generate { stop: vec![String::new()], ..greedy("x", 1) }).await.0, FailureKind::Invalid);

    // The context's end ends an answer, and nothing else does.
    let nearly_full = greedy(&"word ".repeat(250), u32::MAX);
    let answer = whole(engine.client.generate(nearly_full).unwrap()).await;
    assert_eq!(answer.finish, Finish::Length, "{answer:?}");
    assert_eq!(answer.prompt_tokens + answer.completion_tokens, 256);
}

/// One slot, so that an answer that goes on would keep everybody else waiting.
#[tokio::test]
async fn a_cancelled_answer_ends_at_once() {
    let engine = engine(1, 1_024).await;
    let endless = || engine.client.generate(greedy("1 2 3 4 5 6 7 8 9", 1_000)).unwrap();

    let mut answer = endless();
    let mut tokens = 0;
    while tokens == 0 {
        if let Some(EngineEvent::Tokens { count, .. }) = answer.recv().await {
            tokens = count;
        }
    }
    answer.cancel();
    let finished = loop {
        if let Some(EngineEvent::Done { finish, completion_tokens, .. }) = answer.recv().await {
            break (finish, completion_tokens);
        }
    };
    assert_eq!(finished.0, Finish::Cancelled);
    assert!(finished.1 < 100, "{} tokens after a cancellation at the first", finished.1);

    // Dropped: one that runs, and one that waits.
    let (mut running, waiting) = (endless(), endless());
    running.recv().await;
    running.recv().await;
    drop((running, waiting));
    let next = whole(engine.client.generate(greedy("x", 2)).unwrap());
    let next = tokio::time::timeout(Duration::from_secs(15), next).await.expect("the slot was not freed");
    assert_eq!(next.completion_tokens, 2);
}

#[tokio::test]
async fn a_full_queue_is_said_to_be_busy() {
    let engine = engine(1, 1_024).await;
    let mut answers: Vec<_> =
        (0..34).map(|_| engine.client.generate(greedy("1 2 3 4 5 6 7 8 9", 900)).unwrap()).collect();
    let mut last = answers.pop().unwrap();
    assert!(
        matches!(last.recv().await, Some(EngineEvent::Failed { kind: FailureKind::Busy, .. })),
        "one slot and 32 places in the queue should not take 34 requests"
    );
    drop(answers);
    let next = whole(engine.client.generate(greedy("x", 1)).unwrap()).await;
    assert_eq!(next.completion_tokens, 1);
}
