//! Connections: two threads each, one that reads requests and turns text into tokens, one that writes.
//!
//! Tokenizing happens here and not on the decoding thread: a megabyte of text takes long.

use std::io::{BufReader, BufWriter, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender, TryRecvError};
use std::time::Duration;

use anyhow::{Context, bail};
use infer::wire::{self, FailureKind, FromEngine, Generate, Hello, ToEngine};
use llama_cpp_2::token::LlamaToken;

use crate::decode::{self, Key};
use crate::embed;
use crate::grammar::{Form, Grammars};
use crate::model::Model;

/// Stack of a thread that tokenizes: some models' word splitters are `std::regex`, which recurses once a character.
/// Address space only, until it is used.
const STACK_BYTES: usize = 512 << 20;

/// What connections need.
#[derive(Clone)]
pub(crate) struct Acceptor {
    pub(crate) model: Arc<Model>,
    pub(crate) hello: Hello,
    pub(crate) work: Work,
}

/// What the model does, and who takes orders for it.
#[derive(Clone)]
pub(crate) enum Work {
    Answers {
        grammars: Arc<Grammars>,
        orders: Sender<decode::Order>,
        /// Longest saved context.
        state_bytes_max: usize,
    },
    Vectors {
        orders: Sender<embed::Order>,
    },
}

/// Gives `obey` every order that connections have left by now; waits for one where there is nothing else to do.
///
/// # Errors
/// There is nobody left to give orders.
pub(crate) fn take_orders<O>(orders: &Receiver<O>, is_idle: bool, mut obey: impl FnMut(O)) -> anyhow::Result<()> {
    const GONE: &str = "the thread that takes connections is gone";
    if is_idle {
        obey(orders.recv().context(GONE)?);
    }
    loop {
        match orders.try_recv() {
            Ok(order) => obey(order),
            Err(TryRecvError::Empty) => return Ok(()),
            Err(TryRecvError::Disconnected) => bail!(GONE),
        }
    }
}

impl Acceptor {
    /// Takes connections on a thread of its own, and says so once.
    pub(crate) fn start(self, listener: UnixListener, ready: Sender<()>) -> std::io::Result<()> {
        std::thread::Builder::new().name("accept".into()).spawn(move || {
            // Nobody waits for it any more: then the process is ending.
            let _ = ready.send(());
            for connection in 0.. {
                match listener.accept() {
                    Ok((socket, _)) => {
                        if let Err(error) = self.clone().serve(connection, socket) {
                            eprintln!("vivarium-engine: connection {connection} was not served: {error}");
                        }
                    }
                    Err(error) => {
                        eprintln!("vivarium-engine: a connection was not taken: {error}");
                        // Most likely too many are open, and that lasts until one is closed.
                        std::thread::sleep(Duration::from_millis(100));
                    }
                }
            }
        })?;
        Ok(())
    }

    fn serve(self, connection: u64, socket: UnixStream) -> std::io::Result<()> {
        let (out, said) = mpsc::channel();
        let writing = socket.try_clone()?;
        // An error would mean that `said`, three lines above, is gone.
        let _ = out.send(FromEngine::Hello(self.hello.clone()));
        std::thread::Builder::new().name(format!("write {connection}")).spawn(move || {
            if let Err(error) = write_all(&writing, &said) {
                eprintln!("vivarium-engine: connection {connection} takes no more: {error}");
            }
            // So that the reader ends too.
            let _ = writing.shutdown(std::net::Shutdown::Both);
        })?;
        std::thread::Builder::new().name(format!("read {connection}")).stack_size(STACK_BYTES).spawn(move || {
            if let Err(error) = self.read_all(connection, &socket, &out) {
                eprintln!("vivarium-engine: connection {connection} is closed: {error}");
            }
            // Fails like all sending here: only when the process is ending.
            let _ = match &self.work {
                Work::Answers { orders, .. } => orders.send(decode::Order::HangUp(connection)).is_ok(),
                Work::Vectors { orders } => orders.send(embed::Order::HangUp(connection)).is_ok(),
            };
            let _ = socket.shutdown(std::net::Shutdown::Both);
        })?;
        Ok(())
    }

    fn read_all(&self, connection: u64, socket: &UnixStream, out: &Sender<FromEngine>) -> std::io::Result<()> {
        let mut from = BufReader::new(socket);
        let mut parts = Parts::default();
        while let Some(message) = wire::read::<ToEngine>(&mut from)? {
            match &self.work {
                Work::Answers { orders, state_bytes_max, .. } if matches!(message, ToEngine::Restore { .. }) => {
                    if let Some((id, whole)) = parts.take(message, *state_bytes_max) {
                        // Fails like all sending here.
                        let _ = match whole {
                            Ok(saved) => {
                                let (key, out) = (Key { connection, id }, out.clone());
                                orders.send(decode::Order::Restore { key, saved, out }).is_ok()
                            }
                            Err(message) => {
                                out.send(FromEngine::Failed { id, kind: FailureKind::State, message }).is_ok()
                            }
                        };
                    }
                }
                Work::Answers { grammars, orders, .. } => self.answer(connection, message, grammars, orders, out),
                Work::Vectors { orders } => self.embed(connection, message, orders, out),
            }
        }
        Ok(())
    }

    /// Sending fails only when the other threads are gone, and then the process is: here and below.
    fn answer(
        &self,
        connection: u64,
        message: ToEngine,
        grammars: &Grammars,
        orders: &Sender<decode::Order>,
        out: &Sender<FromEngine>,
    ) {
        match message {
            ToEngine::Generate { id, request } => match self.prepare(&request, grammars) {
                Ok((prompt, form)) => {
                    let key = Key { connection, id };
                    let (form, request) = (form.map(Box::new), Box::new(request));
                    let _ = orders.send(decode::Order::Start { key, prompt, form, request, out: out.clone() });
                }
                Err((kind, message)) => {
                    let _ = out.send(FromEngine::Failed { id, kind, message });
                }
            },
            ToEngine::Cancel { id } => {
                let _ = orders.send(decode::Order::Cancel(Key { connection, id }));
            }
            ToEngine::Tokenize { id, text, add_bos } => {
                let at_least = self.tokens_min(&text);
                let count = if at_least >= self.n_ctx() { at_least } else { self.model.tokenize(&text, add_bos).len() };
                let _ = out.send(FromEngine::Tokenized { id, count: u32::try_from(count).unwrap_or(u32::MAX) });
            }
            ToEngine::Check { id, grammar } => {
                let why = grammars.form(&grammar).err();
                let _ = out.send(FromEngine::Checked { id, why });
            }
            ToEngine::Save { id, prompt, add_bos } => {
                let _ = match self.tokenized(&prompt, add_bos) {
                    Ok(prompt) => {
                        let (key, out) = (Key { connection, id }, out.clone());
                        orders.send(decode::Order::Save { key, prompt, out }).is_ok()
                    }
                    Err((kind, message)) => out.send(FromEngine::Failed { id, kind, message }).is_ok(),
                };
            }
            // Taken apart from the others: see `read_all`.
            ToEngine::Restore { .. } => {}
            ToEngine::Embed { id, .. } => {
                let message = "this model answers and makes no vectors".to_owned();
                let _ = out.send(FromEngine::Failed { id, kind: FailureKind::Invalid, message });
            }
        }
    }

    fn embed(&self, connection: u64, message: ToEngine, orders: &Sender<embed::Order>, out: &Sender<FromEngine>) {
        match message {
            ToEngine::Embed { id, texts } => {
                // Spelled control tokens stay text: a vector is of what was written.
                let texts: Vec<_> = texts.iter().map(|text| self.model.tokenize_plain(text)).collect();
                let too_long = texts.iter().position(|tokens| tokens.len() > self.n_ctx());
                let refused = match too_long {
                    _ if texts.is_empty() => Some((FailureKind::Invalid, "there is no text".to_owned())),
                    Some(at) => {
                        let (size, n_ctx) = (texts[at].len(), self.n_ctx());
                        Some((FailureKind::TooLong, format!("text {at} has {size} tokens; this model takes {n_ctx}")))
                    }
                    None => None,
                };
                let _ = match refused {
                    Some((kind, message)) => out.send(FromEngine::Failed { id, kind, message }).is_ok(),
                    None => {
                        let key = Key { connection, id };
                        orders.send(embed::Order::Start { key, texts, out: out.clone() }).is_ok()
                    }
                };
            }
            ToEngine::Cancel { id } => {
                let _ = orders.send(embed::Order::Cancel(Key { connection, id }));
            }
            // Counted in full: a word that the vocabulary lacks is one token, however long it is.
            ToEngine::Tokenize { id, text, .. } => {
                let count = u32::try_from(self.model.tokenize_plain(&text).len()).unwrap_or(u32::MAX);
                let _ = out.send(FromEngine::Tokenized { id, count });
            }
            ToEngine::Check { id, .. } => {
                let _ =
                    out.send(FromEngine::Checked { id, why: Some("this model makes vectors and no text".to_owned()) });
            }
            ToEngine::Save { id, .. } | ToEngine::Restore { id, last: true, .. } => {
                let message = "this model makes vectors and keeps no context".to_owned();
                let _ = out.send(FromEngine::Failed { id, kind: FailureKind::State, message });
            }
            ToEngine::Restore { .. } => {}
            ToEngine::Generate { id, .. } => {
                let message = "this model makes vectors and does not answer".to_owned();
                let _ = out.send(FromEngine::Failed { id, kind: FailureKind::Invalid, message });
            }
        }
    }

    fn n_ctx(&self) -> usize {
        usize::try_from(self.hello.n_ctx).unwrap_or(usize::MAX)
    }

    /// Fewest tokens that this text can be. Known at once, where counting a megabyte takes a second: what is
    /// too long by this alone is not counted at all.
    fn tokens_min(&self, text: &str) -> usize {
        text.len() / self.model.token_bytes_max
    }

    /// The prompt in tokens and the form of the answer, if the request can be served.
    fn prepare(
        &self,
        request: &Generate,
        grammars: &Grammars,
    ) -> Result<(Vec<LlamaToken>, Option<Form>), (FailureKind, String)> {
        let invalid = |what: &str| Err((FailureKind::Invalid, what.to_owned()));
        if !(request.temperature.is_finite() && request.temperature >= 0.0) {
            return invalid("temperature must be finite and not negative");
        }
        if !(0.0..=1.0).contains(&request.top_p) {
            return invalid("top_p must be from 0 to 1");
        }
        if !(0.0..=1.0).contains(&request.min_p) {
            return invalid("min_p must be from 0 to 1");
        }
        let biases = request.logit_bias.iter().map(|(_, bias)| bias);
        if ![request.frequency_penalty, request.presence_penalty].iter().chain(biases).all(|number| number.is_finite())
        {
            return invalid("penalties and biases must be finite");
        }
        if request.max_tokens == 0 {
            return invalid("max_tokens must be at least 1");
        }
        if request.stop.iter().any(String::is_empty) {
            return invalid("a stop string must not be empty");
        }
        if request.adapter.is_some_and(|adapter| adapter >= self.hello.adapters) {
            return invalid("there is no such adapter");
        }
        let prompt = self.tokenized(&request.prompt, request.add_bos)?;
        let form = request.grammar.as_ref().map(|grammar| grammars.form(grammar)).transpose();
        Ok((prompt, form.map_err(|why| (FailureKind::Grammar, why))?))
    }

    /// A prompt that is not empty and leaves room for a token.
    fn tokenized(&self, prompt: &str, add_bos: bool) -> Result<Vec<LlamaToken>, (FailureKind, String)> {
        let n_ctx = self.n_ctx();
        let too_long = |size: String| {
            let message = format!("the prompt has {size} tokens; this model takes {n_ctx} with the answer's");
            Err((FailureKind::TooLong, message))
        };
        let at_least = self.tokens_min(prompt);
        if at_least >= n_ctx {
            return too_long(format!("more than {at_least}"));
        }
        let prompt = self.model.tokenize(prompt, add_bos);
        if prompt.is_empty() {
            return Err((FailureKind::Invalid, "the prompt is empty".to_owned()));
        }
        if prompt.len() >= n_ctx {
            return too_long(prompt.len().to_string());
        }
        Ok(prompt)
    }
}

/// A saved context that arrives in parts, one at a time on a connection.
#[derive(Default)]
struct Parts {
    id: u64,
    bytes: Vec<u8>,
    /// More came than any context has: the rest is thrown away.
    is_too_long: bool,
}

impl Parts {
    /// The whole of it, or why it is refused, when the last part has come.
    fn take(&mut self, message: ToEngine, bytes_max: usize) -> Option<(u64, Result<Vec<u8>, String>)> {
        let ToEngine::Restore { id, part, last } = message else { return None };
        if id != self.id {
            // Of another, which its sender has given up.
            *self = Parts { id, ..Parts::default() };
        }
        self.is_too_long |= self.bytes.len() + part.len() > bytes_max;
        if !self.is_too_long {
            self.bytes.extend(part);
        }
        if !last {
            return None;
        }
        let Parts { bytes, is_too_long, .. } = std::mem::take(self);
        let too_long =
            || format!("not taken as a saved context: it is longer than the {bytes_max} bytes of a full one");
        Some((id, if is_too_long { Err(too_long()) } else { Ok(bytes) }))
    }
}

/// Writes what is said until nobody can say anything more; what is there together goes out together.
fn write_all(socket: &UnixStream, said: &Receiver<FromEngine>) -> std::io::Result<()> {
    let mut to = BufWriter::new(socket);
    while let Ok(message) = said.recv() {
        wire::write(&mut to, &message)?;
        for message in said.try_iter() {
            wire::write(&mut to, &message)?;
        }
        to.flush()?;
    }
    Ok(())
}
