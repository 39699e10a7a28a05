//! The engine.

use super::{ADAPTED, ANSWER};
use crate::places::Places;
use crate::shared::Engine;
use infer::wire::{self, FromEngine, Hello, ToEngine};
use infer::{ChatTemplate, EngineClient, EngineConfig, Finish, Generate};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

/// A STAND-IN for an engine, which says [`ANSWER`] to everything, and [`ADAPTED`] where an adapter is on.
pub async fn engine(dir: &Path) -> Engine {
    engine_that(&dir.join("engine"), answered).await
}

/// One at this socket, and what it says to a request for text.
pub async fn engine_that(socket: &Path, answers: fn(u64, Generate) -> Vec<FromEngine>) -> Engine {
    let socket = socket.to_owned();
    let _ = std::fs::remove_file(&socket);
    let listener = UnixListener::bind(&socket).unwrap();
    tokio::spawn(async move {
        while let Ok((line, _)) = listener.accept().await {
            tokio::spawn(says_as(line, None, answers));
        }
    });
    let program = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/src/api/tests/engine.sh"));
    let config = EngineConfig {
        model: program.clone(),
        program,
        adapters: Vec::new(),
        socket,
        threads: 1,
        threads_max: 1,
        ctx: 2_048,
        slots: 8,
    };
    let (client, hello) = EngineClient::spawn(config).await.unwrap();
    let template = ChatTemplate::new(None, "", "").unwrap();
    let places = Places::beside(hello.slots);
    Engine { client, places, hello: Arc::new(hello), template: Arc::new(template) }
}

pub fn answered(id: u64, request: Generate) -> Vec<FromEngine> {
    let prompt_tokens = u32::try_from(request.prompt.len()).unwrap();
    let tokens = if request.adapter == Some(0) { ADAPTED } else { ANSWER };
    let tokens = tokens.map(|text| {
        let text = text.to_owned();
        FromEngine::Tokens { id, text, count: 1, cached_tokens: 0, logprobs: Vec::new() }
    });
    let done = FromEngine::Done { id, finish: Finish::Stop, prompt_tokens, cached_tokens: 0, completion_tokens: 3 };
    [vec![FromEngine::Accepted { id, prompt_tokens }], tokens.to_vec(), vec![done]].concat()
}

/// `dimensions` of its vectors, if it makes some.
pub async fn says_as(mut line: UnixStream, dimensions: Option<u32>, answers: fn(u64, Generate) -> Vec<FromEngine>) {
    let hello = FromEngine::Hello(Hello {
        model_name: "a stand-in".to_owned(),
        n_ctx: 2_048,
        n_ctx_train: 2_048,
        n_vocab: 49_152,
        slots: 8,
        adapters: 1,
        dimensions,
        chat_template: None,
        bos: String::new(),
        eos: String::new(),
        engine_build: String::new(),
        isa: String::new(),
        threads: 1,
        confinement: String::new(),
    });
    line.write_all(&wire::encode(&hello).unwrap()).await.unwrap();
    let mut header = [0; wire::HEADER_BYTES];
    while line.read_exact(&mut header).await.is_ok() {
        let mut body = vec![0; wire::body_length(header).unwrap()];
        line.read_exact(&mut body).await.unwrap();
        let said = match wire::decode(&body).unwrap() {
            ToEngine::Tokenize { id, text, .. } => {
                vec![FromEngine::Tokenized { id, count: u32::try_from(text.len()).unwrap() }]
            }
            ToEngine::Generate { id, request } => answers(id, request),
            ToEngine::Check { id, .. } => vec![FromEngine::Checked { id, why: None }],
            ToEngine::Embed { id, texts } => {
                // Two directions: what speaks of leases, and what does not.
                let vector = |text: &String| if text.contains("lease") { vec![1.0, 0.0] } else { vec![0.0, 1.0] };
                let prompt_tokens = u32::try_from(texts.iter().map(String::len).sum::<usize>()).unwrap();
                let vectors = texts.iter().map(vector).collect();
                vec![FromEngine::Accepted { id, prompt_tokens }, FromEngine::Embedded { id, vectors, prompt_tokens }]
            }
            ToEngine::Cancel { .. } | ToEngine::Save { .. } | ToEngine::Restore { .. } => Vec::new(),
        };
        for frame in said {
            line.write_all(&wire::encode(&frame).unwrap()).await.unwrap();
        }
    }
}
