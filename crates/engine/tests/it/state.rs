//! A prompt's context leaves as bytes, and another process goes on from it as if it had computed it.

use infer::Generate;

use crate::{Whole, engine, engine_with, greedy, whole};

/// Some 150 tokens.
fn prompt() -> String {
    (1..=14).map(|n| format!("Rule {n}: be kind to number {n}. ")).collect()
}

/// Bits and not only text: equal probabilities.
fn asked(end: &str) -> Generate {
    Generate { logprobs: Some(2), ..greedy(&(prompt() + end), 12) }
}

#[tokio::test]
async fn another_process_goes_on_from_a_saved_context_with_the_same_bits() {
    let first = engine(2, 512).await;
    let nothing = first.client.save(&prompt(), false).await.unwrap();
    assert_eq!(nothing, Err("no free slot holds 32 tokens of this prompt".to_owned()));
    let answer = whole(first.client.generate(asked("What is rule 3?")).unwrap()).await;
    // Whole blocks of what it shares with another question; what that one never says is not in it.
    let saved = first.client.save(&prompt(), false).await.unwrap().unwrap();
    drop(first);

    let fresh = engine(2, 512).await;
    let computed: Whole = whole(fresh.client.generate(asked("What is rule 3?")).unwrap()).await;
    assert_eq!((computed.cached_tokens, &computed), (0, &answer));
    let other: Whole = whole(fresh.client.generate(asked("And rule 5?")).unwrap()).await;

    let second = engine(2, 512).await;
    let tokens = second.client.restore(&saved).await.unwrap().unwrap();
    assert!(tokens >= 96 && tokens % 32 == 0, "{tokens}");
    println!("{} bytes of {tokens} tokens", saved.len());
    for (end, wanted) in [("And rule 5?", &other), ("What is rule 3?", &computed)] {
        let gone_on = whole(second.client.generate(asked(end)).unwrap()).await;
        // All of it but what is always computed.
        assert!((96..=tokens).contains(&gone_on.cached_tokens), "{end}: {gone_on:?}");
        assert_eq!(&gone_on, wanted, "{end}");
    }
    // What was restored can be saved again, and is the same to the bit.
    assert_eq!(second.client.save(&prompt(), false).await.unwrap().as_ref(), Ok(&saved));

    // Other bytes are refused, and the engine is as it was.
    let pid = second.client.pid();
    let altered = |at: usize| {
        let mut altered = saved.clone();
        altered[at] ^= 1;
        altered
    };
    let middle = altered(saved.len() / 2);
    let endless = vec![0; 64 << 20];
    for (bytes, why) in [
        (&middle[..], "it was altered or cut off (its sha2-256 is another)"),
        (&altered(0), "it does not begin as one"),
        (&altered(saved.len() - 1), "it was altered or cut off (its sha2-256 is another)"),
        (&saved[..saved.len() - 1], "it was altered or cut off (its sha2-256 is another)"),
        (&saved[..20], "it is cut off"),
        (&[], "it does not begin as one"),
        (&endless, "bytes of a full one"),
    ] {
        let refused = second.client.restore(bytes).await.unwrap().unwrap_err();
        assert!(refused.starts_with("not taken as a saved context: ") && refused.ends_with(why), "{refused}");
    }
    let again = whole(second.client.generate(asked("And rule 5?")).unwrap()).await;
    assert_eq!((&again, second.client.pid()), (&other, pid));
    assert!(again.cached_tokens >= 96, "what was there is still there: {again:?}");

    let threads = engine_with(2, 512, (2, 2)).await;
    let refused = threads.client.restore(&saved).await.unwrap().unwrap_err();
    assert!(
        refused.ends_with("it is of another model, engine build, processor class or number of threads"),
        "{refused}"
    );
    // Threads that are taken because they are faster give the same bits, and go on from it.
    let more = engine_with(2, 512, (1, 2)).await;
    assert_eq!(more.hello.threads, 1);
    assert!(more.client.restore(&saved).await.unwrap().is_ok());
    let short = engine(2, 64).await;
    let refused = short.client.restore(&saved).await.unwrap().unwrap_err();
    assert!(refused.starts_with("not taken as a saved context: "), "{refused}");
}
