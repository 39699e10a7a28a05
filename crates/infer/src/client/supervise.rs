//! The task that owns the engine's process: hands out ids' events, and starts it again when it dies.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};

use super::process::Process;
use super::{EngineConfig, EngineEvent};
use crate::wire::{FailureKind, FromEngine, Grammar, Hello, ToEngine};

/// Pause before the next start: the first one at once, later ones doubling while engines do not live long.
const PAUSE_FIRST: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// An engine that lived this long did not die of its start.
const LIVED_WELL: Duration = Duration::from_secs(10);

#[derive(Clone, Debug)]
pub(super) enum State {
    Starting,
    Ready { pid: u32, hello: Arc<Hello>, restarts: u64 },
}

impl State {
    pub(super) fn ready(process: &Process) -> State {
        State::ready_again(process, 0)
    }

    fn ready_again(process: &Process, restarts: u64) -> State {
        State::Ready { pid: process.pid, hello: Arc::new(process.hello.clone()), restarts }
    }
}

#[derive(Debug)]
pub(super) enum Command {
    /// `request` carries the same id.
    Start {
        id: u64,
        request: ToEngine,
        events: mpsc::UnboundedSender<EngineEvent>,
    },
    /// End it early and say so.
    Cancel {
        id: u64,
    },
    /// End it early; nobody listens any more.
    Forget {
        id: u64,
    },
    Count {
        id: u64,
        text: String,
        add_bos: bool,
        answer: oneshot::Sender<u32>,
    },
    Check {
        id: u64,
        grammar: Grammar,
        answer: oneshot::Sender<Option<String>>,
    },
    Save {
        id: u64,
        prompt: String,
        add_bos: bool,
        answer: oneshot::Sender<Result<Vec<u8>, String>>,
    },
    /// A part; the last one has an answer.
    Restore {
        id: u64,
        part: Vec<u8>,
        answer: Option<oneshot::Sender<Result<u32, String>>>,
    },
}

enum Pending {
    Answer(mpsc::UnboundedSender<EngineEvent>),
    Count(oneshot::Sender<u32>),
    Check(oneshot::Sender<Option<String>>),
    /// With the parts that came.
    Save(Vec<u8>, oneshot::Sender<Result<Vec<u8>, String>>),
    Restore(oneshot::Sender<Result<u32, String>>),
}

pub(super) fn engine_died() -> EngineEvent {
    EngineEvent::Failed {
        kind: FailureKind::EngineDied,
        message: "the engine's process ended; it is being started again".into(),
    }
}

/// Runs until the last client is gone.
pub(super) async fn run(
    config: EngineConfig,
    first: Process,
    mut commands: mpsc::UnboundedReceiver<Command>,
    publish: watch::Sender<State>,
) {
    let mut process = first;
    let mut pause = PAUSE_FIRST;
    let mut restarts = 0;
    loop {
        let started = Instant::now();
        let Some(why) = serve(&mut process, &mut commands).await else {
            // Its memory is free once it is gone, and whoever waits for that hears it by `publish`.
            let _ = process.child.kill().await;
            return;
        };
        publish.send_replace(State::Starting);
        eprintln!("engine: process {} ended ({why}); starting another", process.pid);
        // The old one must be gone before the next binds its socket; it may only have closed its end.
        let _ = process.child.kill().await;
        if started.elapsed() >= LIVED_WELL {
            pause = PAUSE_FIRST;
        }
        process = loop {
            let restart = async {
                tokio::time::sleep(pause).await;
                Process::start(&config).await
            };
            let Some(started) = refuse_during(restart, &mut commands).await else { return };
            pause = (pause * 2).min(PAUSE_MAX);
            match started {
                Ok(process) => break process,
                Err(error) => eprintln!("engine: {error}"),
            }
        };
        restarts += 1;
        publish.send_replace(State::ready_again(&process, restarts));
    }
}

/// Waits for a new engine while every request is told at once that there is none. `None`: the last client is gone.
async fn refuse_during<T>(work: impl Future<Output = T>, commands: &mut mpsc::UnboundedReceiver<Command>) -> Option<T> {
    tokio::pin!(work);
    loop {
        tokio::select! {
            done = &mut work => return Some(done),
            command = commands.recv() => match command? {
                Command::Start { events, .. } => {
                    let _ = events.send(engine_died());
                }
                // The dropped answer says it.
                Command::Count { .. }
                | Command::Check { .. }
                | Command::Save { .. }
                | Command::Restore { .. }
                | Command::Cancel { .. }
                | Command::Forget { .. } => {}
            },
        }
    }
}

/// Serves one life of the process. Says why it ended; `None`: the last client is gone.
async fn serve(process: &mut Process, commands: &mut mpsc::UnboundedReceiver<Command>) -> Option<String> {
    let mut pending = BTreeMap::new();
    let why = loop {
        tokio::select! {
            frame = process.frames.recv() => match frame {
                Some(Ok(frame)) => dispatch(frame, &mut pending),
                Some(Err(error)) => break error.to_string(),
                None => break "it closed its socket".to_owned(),
            },
            status = process.child.wait() => break match status {
                Ok(status) => status.to_string(),
                Err(error) => error.to_string(),
            },
            command = commands.recv() => {
                let Some(message) = obey(command?, &mut pending) else { continue };
                if process.to_engine.send(message).is_err() {
                    break "it closed its socket".to_owned();
                }
            }
        }
    };
    for waiting in pending.into_values() {
        if let Pending::Answer(events) = waiting {
            let _ = events.send(engine_died());
        }
    }
    Some(why)
}

fn obey(command: Command, pending: &mut BTreeMap<u64, Pending>) -> Option<ToEngine> {
    match command {
        Command::Start { id, request, events } => {
            pending.insert(id, Pending::Answer(events));
            Some(request)
        }
        Command::Cancel { id } => pending.contains_key(&id).then_some(ToEngine::Cancel { id }),
        Command::Forget { id } => pending.remove(&id).map(|_| ToEngine::Cancel { id }),
        Command::Count { id, text, add_bos, answer } => {
            pending.insert(id, Pending::Count(answer));
            Some(ToEngine::Tokenize { id, text, add_bos })
        }
        Command::Check { id, grammar, answer } => {
            pending.insert(id, Pending::Check(answer));
            Some(ToEngine::Check { id, grammar })
        }
        Command::Save { id, prompt, add_bos, answer } => {
            pending.insert(id, Pending::Save(Vec::new(), answer));
            Some(ToEngine::Save { id, prompt, add_bos })
        }
        Command::Restore { id, part, answer } => {
            let last = answer.is_some();
            if let Some(answer) = answer {
                pending.insert(id, Pending::Restore(answer));
            }
            Some(ToEngine::Restore { id, part, last })
        }
    }
}

/// Hands a frame to whoever waits for it; nobody does if the answer was dropped.
fn dispatch(frame: FromEngine, pending: &mut BTreeMap<u64, Pending>) {
    let (id, event) = match frame {
        FromEngine::Accepted { id, prompt_tokens } => (id, EngineEvent::Accepted { prompt_tokens }),
        FromEngine::Tokens { id, text, count, cached_tokens, logprobs } => {
            (id, EngineEvent::Tokens { text, count, cached_tokens, logprobs })
        }
        FromEngine::Done { id, finish, prompt_tokens, cached_tokens, completion_tokens } => {
            (id, EngineEvent::Done { finish, prompt_tokens, cached_tokens, completion_tokens })
        }
        FromEngine::Embedded { id, vectors, prompt_tokens } => (id, EngineEvent::Embedded { vectors, prompt_tokens }),
        FromEngine::Failed { id, kind, message } => match pending.remove(&id) {
            Some(Pending::Answer(events)) => {
                let _ = events.send(EngineEvent::Failed { kind, message });
                return;
            }
            Some(Pending::Save(_, answer)) => {
                let _ = answer.send(Err(message));
                return;
            }
            Some(Pending::Restore(answer)) => {
                let _ = answer.send(Err(message));
                return;
            }
            // A failed count is a dropped answer.
            Some(Pending::Count(_) | Pending::Check(_)) | None => return,
        },
        FromEngine::Saved { id, part, last } => {
            let Some(Pending::Save(parts, _)) = pending.get_mut(&id) else { return };
            parts.extend(part);
            if last && let Some(Pending::Save(parts, answer)) = pending.remove(&id) {
                let _ = answer.send(Ok(parts));
            }
            return;
        }
        FromEngine::Restored { id, tokens } => {
            if let Some(Pending::Restore(answer)) = pending.remove(&id) {
                let _ = answer.send(Ok(tokens));
            }
            return;
        }
        FromEngine::Tokenized { id, count } => {
            if let Some(Pending::Count(answer)) = pending.remove(&id) {
                let _ = answer.send(count);
            }
            return;
        }
        FromEngine::Checked { id, why } => {
            if let Some(Pending::Check(answer)) = pending.remove(&id) {
                let _ = answer.send(why);
            }
            return;
        }
        FromEngine::Hello(_) => return,
    };
    let last = event.is_last();
    if let Some(Pending::Answer(events)) = pending.get(&id) {
        let _ = events.send(event);
    }
    if last {
        pending.remove(&id);
    }
}
