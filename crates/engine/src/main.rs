//! `vivarium-engine`: one model behind a Unix socket, in a process without keys, network or files.
//!
//! Strangers write what this process reads, and the reading is done by C++. So it shares no memory with a
//! key, drops what it does not need as soon as the model is loaded ([`confine`]), and its death is ordinary:
//! the node starts another.
//!
//! One thread owns the model's context and does nothing but decode ([`decode`]), or, for a model that turns texts into
//! vectors, encode ([`embed`]); connections have threads of their own ([`serve`]). What is decided is decided by plain
//! values: which tokens go into a step ([`schedule`]), how many of a prompt ([`pace`]), by how many threads ([`threads`]),
//! which token comes out ([`sample`], [`grammar`]), which text may be shown ([`text`]), and which bytes are a saved context
//! ([`state`]).

mod args;
mod arriving;
mod confine;
mod decode;
mod embed;
mod gguf;
mod gpu;
mod grammar;
mod lookup;
mod model;
mod pace;
mod sample;
mod schedule;
mod serve;
mod state;
mod text;
mod threads;

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, mpsc};

use anyhow::{Context, bail};
use infer::wire::Hello;

use args::{Args, Command};
use arriving::Arriving;
use model::Model;
use serve::{Acceptor, Work};

fn main() -> ExitCode {
    end_the_process_on_panic();
    match args::parse(std::env::args_os().skip(1)) {
        Ok(Command::Help) => {
            println!("{}", args::USAGE);
            ExitCode::SUCCESS
        }
        Ok(Command::Run(args)) => match run(&args) {
            Ok(never) => match never {},
            Err(error) => {
                eprintln!("vivarium-engine: {error:#}");
                ExitCode::FAILURE
            }
        },
        Err(what) => {
            eprintln!("vivarium-engine: {what} (see --help)");
            ExitCode::from(2)
        }
    }
}

/// A panic in one thread would leave the others waiting for it; the node starts a whole engine again.
fn end_the_process_on_panic() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        print(info);
        std::process::abort();
    }));
}

fn run(args: &Args) -> anyhow::Result<std::convert::Infallible> {
    let mut model = match args.arriving {
        false => Model::load(&args.model)?,
        true => Model::load_arriving(&args.model, Arriving::new(&args.model, arriving::standard_input()?)?)?,
    };
    let adapters = model.load_adapters(&args.adapters)?;
    let model = Arc::new(model);
    if args.ctx > model.n_ctx_train() {
        bail!(
            "--ctx {} is more than the {} tokens this model was trained with; use a smaller one",
            args.ctx,
            model.n_ctx_train()
        );
    }
    let listener = listen(&args.socket)?;
    // The context is made, and the limits are put on, by the thread that will use it: the others begin after that
    // and inherit them.
    match model.dimensions()? {
        None => {
            let decoder = decode::Decoder::new(&model, adapters, args)?;
            let hello = confined(args, &model, None)?;
            let state_bytes_max = decoder.state_bytes_max();
            let (orders, received) = mpsc::channel();
            let grammars = Arc::new(grammar::Grammars::new(Arc::clone(&model)));
            open(
                args,
                listener,
                Acceptor {
                    model: Arc::clone(&model),
                    hello,
                    work: Work::Answers { grammars, orders, state_bytes_max },
                },
            )?;
            decoder.run(&received)
        }
        Some(_) if !adapters.is_empty() => bail!("adapters are for models that answer, and this one makes vectors"),
        Some(dimensions) => {
            let embedder = embed::Embedder::new(&model, args)?;
            let hello = confined(args, &model, Some(dimensions))?;
            let (orders, received) = mpsc::channel();
            open(args, listener, Acceptor { model: Arc::clone(&model), hello, work: Work::Vectors { orders } })?;
            embedder.run(&received)
        }
    }
}

/// Gives up what is not needed any more, and says what this engine is.
fn confined(args: &Args, model: &Model, dimensions: Option<u32>) -> anyhow::Result<Hello> {
    let confinement = confine::confine()?;
    eprintln!("vivarium-engine: in force: {confinement}");
    Ok(Hello {
        model_name: model.name(),
        n_ctx: args.ctx,
        n_ctx_train: model.n_ctx_train(),
        n_vocab: model.n_vocab(),
        slots: args.slots,
        adapters: u32::try_from(args.adapters.len()).unwrap_or(u32::MAX),
        dimensions,
        chat_template: model.chat_template(),
        bos: model.bos(),
        eos: model.eos(),
        engine_build: model::BUILD.to_owned(),
        isa: model.isa(),
        threads: args.threads,
        confinement,
    })
}

/// Takes connections from now on, and says so.
fn open(args: &Args, listener: UnixListener, acceptor: Acceptor) -> anyhow::Result<()> {
    let hello = acceptor.hello.clone();
    let (ready, is_ready) = mpsc::channel();
    if args.exit_with_stdin {
        exit_with_stdin().context("no thread for standard input")?;
    }
    acceptor.start(listener, ready).context("no thread for connections")?;
    // An error would mean that the thread just started is gone, and then whoever waits for its orders says so.
    let _ = is_ready.recv();
    announce(&hello);
    Ok(())
}

/// Binds the socket, for this user alone. A file there that nobody listens on is a dead engine's, and removed.
fn listen(path: &Path) -> anyhow::Result<UnixListener> {
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        bail!("{} is in use by another engine; stop it or choose another --socket", path.display());
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot remove the old socket {}", path.display()));
        }
        _ => {}
    }
    let listener = UnixListener::bind(path)
        .with_context(|| format!("cannot listen on {}; is its directory there and writable?", path.display()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
        .with_context(|| format!("cannot close {} to others", path.display()))?;
    Ok(listener)
}

/// The one line on standard output: whoever started us may connect now.
fn announce(hello: &Hello) {
    let line = serde_json::json!({
        "ready": true,
        "model": hello.model_name,
        "n_ctx": hello.n_ctx,
        "slots": hello.slots,
        "threads": hello.threads,
        "isa": hello.isa,
        "engine_build": hello.engine_build,
        "confinement": hello.confinement,
    });
    let mut out = std::io::stdout().lock();
    // Nobody reads it: then nobody waits for it either.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// Ends the process when the pipe on its standard input closes, which the kernel does however its parent ends.
/// (`PR_SET_PDEATHSIG` would follow the parent's *thread*, and those come and go.)
fn exit_with_stdin() -> std::io::Result<()> {
    std::thread::Builder::new().name("stdin".into()).spawn(|| {
        let mut buffer = [0; 64];
        while matches!(std::io::stdin().read(&mut buffer), Ok(read) if read > 0) {}
        // Not `exit`: that would run C++'s destructors under the feet of the thread that decodes.
        std::process::abort();
    })?;
    Ok(())
}
