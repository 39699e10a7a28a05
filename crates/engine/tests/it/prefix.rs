//! What prompts share is computed once, and nobody can tell from an answer.

use infer::Generate;

use crate::{Whole, engine, greedy, whole};

/// A beginning of some 150 tokens.
fn shared() -> String {
    (1..=14).map(|n| format!("Rule {n}: be kind to number {n}. ")).collect()
}

fn ask(prompt: String) -> Generate {
    // Bits and not only text: equal probabilities.
    Generate { logprobs: Some(2), ..greedy(&prompt, 6) }
}

#[tokio::test]
async fn a_shared_beginning_is_computed_once() {
    let questions = ["What is rule 3?", "How many rules are there, and which of them do you like?", "Hi"];
    let prompts: Vec<String> = questions.iter().map(|question| format!("{}{question}", shared())).collect();
    // Each in an engine that has seen nothing.
    let mut alone: Vec<Whole> = Vec::new();
    for prompt in &prompts {
        let fresh = engine(1, 512).await;
        alone.push(whole(fresh.client.generate(ask(prompt.clone())).unwrap()).await);
    }
    assert!(alone.iter().all(|answer| answer.cached_tokens == 0));

    // After each other in one slot, the first of them twice.
    let one = engine(1, 512).await;
    for (index, prompt) in prompts.iter().chain(&prompts[..1]).enumerate() {
        let answer = whole(one.client.generate(ask(prompt.clone())).unwrap()).await;
        assert_eq!(answer, alone[index % 3], "what was there before is not to be seen");
        let most = answer.prompt_tokens - 32;
        let cached = answer.cached_tokens;
        assert!(if index == 0 { cached == 0 } else { (96..=most).contains(&cached) && cached % 32 == 0 }, "{answer:?}");
    }

    // At once in three slots: two copy from the first, as soon as it is there.
    let three = engine(3, 512).await;
    let together = [0, 1, 2].map(|index: usize| whole(three.client.generate(ask(prompts[index].clone())).unwrap()));
    let [a, b, c] = together;
    let together = tokio::join!(a, b, c);
    let together = [together.0, together.1, together.2];
    for (answer, alone) in together.iter().zip(&alone) {
        assert_eq!(answer, alone, "nor what runs beside it");
    }
    let cached: Vec<bool> = together.iter().map(|answer| answer.cached_tokens >= 96).collect();
    assert_eq!(cached, [false, true, true], "{together:?}");
}
