//! The node's side of the engine: a child process that is started, watched and started again.
//!
//! The engine runs C++ that strangers feed, so its death is an event and not an accident: every running
//! request ends with [`FailureKind::EngineDied`] and a new engine is there within a second.

mod process;
mod supervise;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{mpsc, oneshot, watch};

use crate::pool::InUse;
use crate::run::sha256;
use crate::wire::{FailureKind, Finish, Generate, Grammar, Hello, PART_BYTES_MAX, ToEngine, TokenLogprob};
use process::Process;
use supervise::{Command, State};

/// How to start an engine.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// The program `vivarium-engine`.
    pub program: PathBuf,
    /// The model, a GGUF file.
    pub model: PathBuf,
    /// LoRA adapters of the model, GGUF files, in the order that requests name them by.
    pub adapters: Vec<PathBuf>,
    /// Where the engine listens; at most 107 bytes long (the kernel's limit). An old socket there is removed.
    pub socket: PathBuf,
    /// Threads of arithmetic whose bits answers have.
    pub threads: u32,
    /// The engine takes as many threads as are fastest at the time, up to this and not fewer than `threads`, where they
    /// give the same bits.
    pub threads_max: u32,
    /// Tokens of context for each request, prompt and answer together.
    pub ctx: u32,
    /// Requests that decode side by side. Memory for all of their contexts is taken at the start.
    pub slots: u32,
}

impl EngineConfig {
    /// Tokens of context for each request when nobody asks for more. SmolLM2 then takes 8 × 2,048 × 23 kB = 377 MB.
    pub const CTX_DEFAULT: u32 = 2_048;
    /// Requests side by side when nobody asks for more.
    pub const SLOTS_DEFAULT: u32 = 8;
    /// Of an embedding model, whose texts are computed one by one.
    pub const TEXTS_DEFAULT: u32 = 1;

    /// Cores of this machine, for `threads_max`; 1 where nobody knows.
    pub fn cores() -> u32 {
        std::thread::available_parallelism().map_or(1, |cores| u32::try_from(cores.get()).unwrap_or(u32::MAX))
    }
}

/// What a running request says, in this order: `Accepted`, `Tokens` any number of times, then `Done`; or, where texts
/// become vectors, `Accepted`, then `Embedded` with one for each text, in their order, and the tokens of all together.
/// `Failed` may take the place of any of them, and nothing follows it.
#[derive(Clone, Debug, PartialEq)]
pub enum EngineEvent {
    Accepted { prompt_tokens: u32 },
    Tokens { text: String, count: u32, cached_tokens: u32, logprobs: Vec<TokenLogprob> },
    Done { finish: Finish, prompt_tokens: u32, cached_tokens: u32, completion_tokens: u32 },
    Embedded { vectors: Vec<Vec<f32>>, prompt_tokens: u32 },
    Failed { kind: FailureKind, message: String },
}

impl EngineEvent {
    fn is_last(&self) -> bool {
        matches!(self, EngineEvent::Done { .. } | EngineEvent::Embedded { .. } | EngineEvent::Failed { .. })
    }
}

/// By what the reader does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// A path is wrong: fix the configuration.
    Config,
    /// The engine ended before it was ready: read its message (bad model, too little memory).
    Start,
    /// There is no engine at this moment: it is being started again, retry.
    Unavailable,
}

/// Why an engine cannot be used.
#[derive(Debug)]
pub struct Error {
    pub kind: ErrorKind,
    pub message: String,
    pub source: Option<std::io::Error>,
}

impl Error {
    fn new(kind: ErrorKind, message: impl Into<String>) -> Error {
        Error { kind, message: message.into(), source: None }
    }

    fn with_source(kind: ErrorKind, message: impl Into<String>, source: std::io::Error) -> Error {
        Error { kind, message: message.into(), source: Some(source) }
    }

    fn unavailable() -> Error {
        Error::new(ErrorKind::Unavailable, "the engine is being started again")
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|error| error as _)
    }
}

/// A handle to the engine. Clones share one process; it ends when the last clone and the last
/// [`Generation`] are gone.
#[derive(Clone, Debug)]
pub struct EngineClient {
    commands: mpsc::UnboundedSender<Command>,
    state: watch::Receiver<State>,
    next_id: Arc<AtomicU64>,
    /// Of the program that was started.
    program_sha256: Arc<str>,
    /// Of a pool's engine: that this handle, or what was started with it, is there.
    used: Option<Arc<InUse>>,
}

impl EngineClient {
    /// Starts the engine and waits until it has loaded the model.
    pub async fn spawn(config: EngineConfig) -> Result<(EngineClient, Hello), Error> {
        let process = Process::start(&config).await?;
        EngineClient::of(config, process).await
    }

    /// The same with a model whose file is still arriving: it is as long as it will be when `verified` is first above
    /// zero, and `verified` says how many of its bytes are right, from the start. The engine reads no others.
    ///
    /// Fails with `Start` if `verified` closes before the file is whole; whoever writes the file knows why.
    pub async fn spawn_arriving(
        config: EngineConfig,
        verified: watch::Receiver<u64>,
    ) -> Result<(EngineClient, Hello), Error> {
        let process = Process::start_arriving(&config, verified).await?;
        EngineClient::of(config, process).await
    }

    async fn of(config: EngineConfig, process: Process) -> Result<(EngineClient, Hello), Error> {
        let program_sha256 = program_sha256(&config.program).await?;
        let hello = process.hello.clone();
        let (commands, received) = mpsc::unbounded_channel();
        let (publish, state) = watch::channel(State::ready(&process));
        tokio::spawn(supervise::run(config, process, received, publish));
        Ok((EngineClient { commands, state, next_id: Arc::default(), program_sha256, used: None }, hello))
    }

    /// Starts an answer. Fails at once when there is no engine at this moment.
    pub fn generate(&self, request: Generate) -> Result<Generation, Error> {
        self.start(|id| ToEngine::Generate { id, request })
    }

    /// Starts to turn texts into vectors; none of them is empty. Fails at once when there is no engine at this moment.
    pub fn embed(&self, texts: Vec<String>) -> Result<Generation, Error> {
        self.start(|id| ToEngine::Embed { id, texts })
    }

    fn start(&self, request: impl FnOnce(u64) -> ToEngine) -> Result<Generation, Error> {
        if self.pid().is_none() {
            return Err(Error::unavailable());
        }
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        // Unbounded, so that a slow reader never holds up the others; an answer's length is bounded by the context.
        let (events, received) = mpsc::unbounded_channel();
        let request = request(id);
        self.commands.send(Command::Start { id, request, events }).map_err(|_| Error::unavailable())?;
        let (commands, used) = (self.commands.clone(), self.used.clone());
        Ok(Generation { id, events: received, commands, ended: false, _used: used })
    }

    /// How many tokens this text is as a prompt. Control tokens that are spelled in it count as one each. A text that
    /// is certainly longer than the context gets a lower bound, which is not less than the context. `add_bos` as in
    /// [`Generate`].
    pub async fn count_tokens(&self, text: &str, add_bos: bool) -> Result<u32, Error> {
        let (text, (answer, count)) = (text.to_owned(), oneshot::channel());
        self.send(|id| Command::Count { id, text, add_bos, answer })?;
        count.await.map_err(|_| Error::unavailable())
    }

    /// Why no answer can be held to this grammar; `None`: it can.
    pub async fn check_grammar(&self, grammar: Grammar) -> Result<Option<String>, Error> {
        let (answer, why) = oneshot::channel();
        self.send(|id| Command::Check { id, grammar, answer })?;
        why.await.map_err(|_| Error::unavailable())
    }

    /// The context of this prompt's beginning as bytes, as far as a free slot holds it: another engine of the same build,
    /// class, threads and model goes on from it ([`EngineClient::restore`]). `Err` inside: why there is none. The bytes
    /// show the prompt, and whoever alters them alters answers: keep them as what they are.
    pub async fn save(&self, prompt: &str, add_bos: bool) -> Result<Result<Vec<u8>, String>, Error> {
        let (prompt, (answer, saved)) = (prompt.to_owned(), oneshot::channel());
        self.send(|id| Command::Save { id, prompt, add_bos, answer })?;
        saved.await.map_err(|_| Error::unavailable())
    }

    /// Gives a free slot what [`EngineClient::save`] gave, of an engine that may be gone: how many tokens that were. `Err`
    /// inside: why these bytes are refused; nothing changed then.
    pub async fn restore(&self, saved: &[u8]) -> Result<Result<u32, String>, Error> {
        let (answer, restored) = oneshot::channel();
        let (mut answer, id) = (Some(answer), self.next_id.fetch_add(1, Ordering::Relaxed));
        // Nothing is a part, too: then the engine says what it thinks of it.
        let parts = saved.chunks(PART_BYTES_MAX).chain(saved.is_empty().then_some(saved));
        let count = saved.len().div_ceil(PART_BYTES_MAX).max(1);
        for (index, part) in parts.enumerate() {
            let answer = if index + 1 == count { answer.take() } else { None };
            let command = Command::Restore { id, part: part.to_vec(), answer };
            self.commands.send(command).map_err(|_| Error::unavailable())?;
        }
        restored.await.map_err(|_| Error::unavailable())
    }

    fn send(&self, command: impl FnOnce(u64) -> Command) -> Result<(), Error> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        self.commands.send(command(id)).map_err(|_| Error::unavailable())
    }

    /// The same engine, whose pool hears when this handle and all that was started with it are gone.
    pub(crate) fn used_by(self, used: Arc<InUse>) -> EngineClient {
        EngineClient { used: Some(used), ..self }
    }

    /// Lets go, and waits until the process is gone: it ends when the last handle and the last answer do.
    pub(crate) async fn ended(self) {
        let mut state = self.state.clone();
        drop(self);
        // The supervisor has the other end, and drops it when the process has ended.
        while state.changed().await.is_ok() {}
    }

    /// sha2-256 of the engine's program, hexadecimal: which build answers.
    pub fn program_sha256(&self) -> &str {
        &self.program_sha256
    }

    /// Process id of the engine, while there is one that is ready.
    pub fn pid(&self) -> Option<u32> {
        match &*self.state.borrow() {
            State::Ready { pid, .. } => Some(*pid),
            State::Starting => None,
        }
    }

    /// How often it was started again.
    pub fn restarts(&self) -> u64 {
        match &*self.state.borrow() {
            State::Ready { restarts, .. } => *restarts,
            State::Starting => 0,
        }
    }

    /// Waits until there is an engine that is ready.
    pub async fn wait_ready(&self) -> Result<Hello, Error> {
        let mut state = self.state.clone();
        let ready =
            state.wait_for(|state| matches!(state, State::Ready { .. })).await.map_err(|_| Error::unavailable())?;
        match &*ready {
            State::Ready { hello, .. } => Ok(hello.as_ref().clone()),
            State::Starting => Err(Error::unavailable()),
        }
    }
}

async fn program_sha256(program: &Path) -> Result<Arc<str>, Error> {
    let path = program.to_owned();
    let unread =
        |error| Error::with_source(ErrorKind::Config, format!("cannot read the engine {}", program.display()), error);
    let hashed = tokio::task::spawn_blocking(move || Ok(sha256(&std::fs::read(path)?).into())).await;
    hashed.map_err(|error| unread(std::io::Error::other(error)))?.map_err(unread)
}

/// A running answer. Dropping it cancels it within one step of the engine.
#[derive(Debug)]
pub struct Generation {
    id: u64,
    events: mpsc::UnboundedReceiver<EngineEvent>,
    commands: mpsc::UnboundedSender<Command>,
    ended: bool,
    _used: Option<Arc<InUse>>,
}

impl Generation {
    /// The next event; `None` after the last one. Safe to give up halfway (in a `select!`).
    pub async fn recv(&mut self) -> Option<EngineEvent> {
        std::future::poll_fn(|context| self.poll_recv(context)).await
    }

    /// Ends the answer early; what was generated until then still arrives, and `Done` with `Cancelled`.
    pub fn cancel(&self) {
        // An error means that the engine and all that ran on it are gone already.
        let _ = self.commands.send(Command::Cancel { id: self.id });
    }

    fn poll_recv(&mut self, context: &mut std::task::Context<'_>) -> std::task::Poll<Option<EngineEvent>> {
        if self.ended {
            return std::task::Poll::Ready(None);
        }
        self.events.poll_recv(context).map(|event| {
            // The supervisor ends every answer with its last event; without one it is gone itself.
            let event = event.unwrap_or_else(supervise::engine_died);
            self.ended = event.is_last();
            Some(event)
        })
    }
}

impl futures::Stream for Generation {
    type Item = EngineEvent;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<EngineEvent>> {
        self.poll_recv(context)
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        if !self.ended {
            let _ = self.commands.send(Command::Forget { id: self.id });
        }
    }
}
