//! The engine as the node sees it: a real process with a real model.

mod adapters;
mod answers;
mod arriving;
mod embed;
mod forms;
mod life;
mod pool;
mod prefix;
mod state;

use std::path::PathBuf;

use infer::api::{Message, Role};
use infer::{ChatTemplate, EngineClient, EngineConfig, EngineEvent, Finish, Generate, Generation, Hello, TokenLogprob};

/// The model that `cargo xtask up` runs with; `VIVARIUM_MODEL` names another place.
fn model() -> PathBuf {
    let usual = concat!(env!("CARGO_MANIFEST_DIR"), "/../../.vivarium/models/SmolLM2-135M-Instruct.Q4_1.gguf");
    let path = std::env::var_os("VIVARIUM_MODEL").map_or_else(|| PathBuf::from(usual), PathBuf::from);
    assert!(
        path.is_file(),
        "NO MODEL at {}: `cargo xtask test` fetches it; or set VIVARIUM_MODEL to a copy of SmolLM2-135M-Instruct.Q4_1.gguf",
        path.display()
    );
    path
}

/// An engine and the directory of its socket.
struct Engine {
    client: EngineClient,
    hello: Hello,
    _directory: tempfile::TempDir,
}

/// `ctx` in tokens for each request.
async fn engine(slots: u32, ctx: u32) -> Engine {
    engine_with(slots, ctx, (1, 1)).await
}

/// `threads`: whose bits answers have, and at most.
async fn engine_with(slots: u32, ctx: u32, threads: (u32, u32)) -> Engine {
    let directory = tempfile::tempdir().unwrap();
    let config = EngineConfig {
        adapters: Vec::new(),
        program: env!("CARGO_BIN_EXE_vivarium-engine").into(),
        model: model(),
        socket: directory.path().join("engine.sock"),
        threads: threads.0,
        threads_max: threads.1,
        ctx,
        slots,
    };
    let (client, hello) = EngineClient::spawn(config).await.unwrap();
    Engine { client, hello, _directory: directory }
}

/// A plain continuation, greedy.
fn greedy(prompt: &str, max_tokens: u32) -> Generate {
    Generate::greedy(prompt, max_tokens)
}

fn chat(hello: &Hello, question: &str) -> String {
    let template = ChatTemplate::new(hello.chat_template.as_deref(), &hello.bos, &hello.eos).unwrap();
    template.render(&[Message::new(Role::User, question)], 0).unwrap()
}

/// Everything that one answer said.
#[derive(Debug)]
struct Whole {
    text: String,
    logprobs: Vec<TokenLogprob>,
    finish: Finish,
    prompt_tokens: u32,
    cached_tokens: u32,
    completion_tokens: u32,
}

/// Whether what was in the context already says nothing about the answer.
impl PartialEq for Whole {
    fn eq(&self, other: &Whole) -> bool {
        let seen = |whole: &Whole| (whole.finish, whole.prompt_tokens, whole.completion_tokens);
        self.text == other.text && self.logprobs == other.logprobs && seen(self) == seen(other)
    }
}

/// Reads an answer to its end and checks that the events come in order and add up.
async fn whole(mut generation: Generation) -> Whole {
    let Some(EngineEvent::Accepted { prompt_tokens: announced }) = generation.recv().await else {
        panic!("the first event is not Accepted");
    };
    let (mut text, mut counted, mut told, mut cached) = (String::new(), 0, Vec::new(), None);
    loop {
        match generation.recv().await.expect("an answer ends with Done or Failed") {
            EngineEvent::Tokens { text: more, count, cached_tokens, logprobs } => {
                assert_eq!(*cached.get_or_insert(cached_tokens), cached_tokens);
                text.push_str(&more);
                told.extend(logprobs);
                counted += count;
            }
            EngineEvent::Done { finish, prompt_tokens, cached_tokens, completion_tokens } => {
                assert_eq!((prompt_tokens, completion_tokens), (announced, counted));
                assert_eq!(cached.unwrap_or(cached_tokens), cached_tokens, "who leaves early is told the same");
                assert_eq!(generation.recv().await, None);
                return Whole { text, logprobs: told, finish, prompt_tokens, cached_tokens, completion_tokens };
            }
            other => panic!("{other:?} in the middle of an answer"),
        }
    }
}
