//! One life of the engine's process: started, greeted, talked to by two tasks.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::{EngineConfig, Error, ErrorKind};
use crate::wire::{self, FromEngine, Hello, ToEngine};

/// Longest wait for a model to load. SmolLM2 takes 0.1 s; a cold disk and a big model take their time. A guess.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// `sun_path` has 108 bytes and ends with a zero.
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// A started engine. Dropping it kills the process.
pub(super) struct Process {
    pub(super) hello: Hello,
    pub(super) pid: u32,
    pub(super) child: Child,
    /// What the engine says; closed when its socket is.
    pub(super) frames: mpsc::UnboundedReceiver<io::Result<FromEngine>>,
    /// What it is told. A queue, so that nobody waits for the socket while the other direction is full.
    pub(super) to_engine: mpsc::UnboundedSender<ToEngine>,
    /// The engine ends when this pipe does: so it never outlives us, however we end.
    _stdin: Option<ChildStdin>,
}

impl Process {
    pub(super) async fn start(config: &EngineConfig) -> Result<Process, Error> {
        Process::start_with(config, None).await
    }

    pub(super) async fn start_arriving(
        config: &EngineConfig,
        mut verified: watch::Receiver<u64>,
    ) -> Result<Process, Error> {
        if verified.wait_for(|bytes| *bytes > 0).await.is_err() {
            return Err(Error::new(ErrorKind::Start, "the model's file did not begin to arrive"));
        }
        Process::start_with(config, Some(verified)).await
    }

    async fn start_with(config: &EngineConfig, verified: Option<watch::Receiver<u64>>) -> Result<Process, Error> {
        check(config)?;
        let mut child = Command::new(&config.program)
            .arg("--model")
            .arg(&config.model)
            .arg("--socket")
            .arg(&config.socket)
            .args(["--threads", &config.threads.to_string()])
            .args(["--threads-max", &config.threads_max.to_string()])
            .args(["--ctx", &config.ctx.to_string()])
            .args(["--slots", &config.slots.to_string()])
            .args(config.adapters.iter().flat_map(|adapter| [OsStr::new("--adapter"), adapter.as_os_str()]))
            .arg("--exit-with-stdin")
            .args(verified.is_some().then_some("--arriving"))
            // It needs nothing from our environment, and ours may hold what is not its business.
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| {
                let program = config.program.display();
                Error::with_source(ErrorKind::Config, format!("cannot start the engine {program}"), error)
            })?;
        let mut stdin = child.stdin.take();
        let (complaint, complaints) = pass_on_stderr(&mut child);
        match greeted(&mut child, config, stdin.as_mut().zip(verified)).await {
            Ok((pid, hello, socket)) => {
                let (to_engine, frames) = talk(socket);
                Ok(Process { hello, pid, child, frames, to_engine, _stdin: stdin })
            }
            Err(NotGreeted::Ended(error)) => {
                // Its own words say more than ours; they are complete once it is gone.
                let _ = child.kill().await;
                let _ = complaints.await;
                let words = complaint.lock().map(|words| words.clone()).unwrap_or_default();
                if words.is_empty() {
                    return Err(Error::with_source(ErrorKind::Start, "the engine did not start", error));
                }
                Err(Error::new(ErrorKind::Start, words))
            }
            Err(NotGreeted::Late) => Err(Error::new(
                ErrorKind::Start,
                format!("the engine was not ready after {} s", START_TIMEOUT.as_secs()),
            )),
            Err(NotGreeted::ModelEnds { verified, bytes }) => Err(Error::new(
                ErrorKind::Start,
                format!("the model's file stopped arriving at byte {verified} of {bytes}"),
            )),
        }
    }
}

enum NotGreeted {
    Ended(io::Error),
    Late,
    ModelEnds { verified: u64, bytes: u64 },
}

/// Tells the engine of its model's file until that is whole, if it is still arriving; then waits for its hello.
async fn greeted(
    child: &mut Child,
    config: &EngineConfig,
    arriving: Option<(&mut ChildStdin, watch::Receiver<u64>)>,
) -> Result<(u32, Hello, UnixStream), NotGreeted> {
    let greeting = greet(child, config);
    tokio::pin!(greeting);
    if let Some((stdin, verified)) = arriving {
        let bytes = std::fs::metadata(&config.model).map_err(NotGreeted::Ended)?.len();
        tokio::select! {
            // Before the file is whole it can only end.
            greeted = &mut greeting => return greeted.map_err(NotGreeted::Ended),
            told = tell_of(stdin, verified, bytes) => told?,
        }
    }
    match tokio::time::timeout(START_TIMEOUT, greeting).await {
        Ok(greeted) => greeted.map_err(NotGreeted::Ended),
        Err(_) => Err(NotGreeted::Late),
    }
}

async fn tell_of(stdin: &mut ChildStdin, mut verified: watch::Receiver<u64>, bytes: u64) -> Result<(), NotGreeted> {
    loop {
        let here = *verified.borrow_and_update();
        // An engine that is gone says so by its greeting.
        let told = stdin.write_all(&here.to_le_bytes()).await;
        if here >= bytes || told.is_err() {
            return Ok(());
        }
        if verified.changed().await.is_err() {
            return Err(NotGreeted::ModelEnds { verified: here, bytes });
        }
    }
}

fn check(config: &EngineConfig) -> Result<(), Error> {
    for path in [&config.program, &config.model].into_iter().chain(&config.adapters) {
        if !path.is_file() {
            return Err(Error::new(ErrorKind::Config, format!("there is no file {}", path.display())));
        }
    }
    let length = config.socket.as_os_str().as_bytes().len();
    if length > SOCKET_PATH_BYTES_MAX {
        let socket = config.socket.display();
        return Err(Error::new(
            ErrorKind::Config,
            format!(
                "the engine's socket {socket} has {length} bytes, {SOCKET_PATH_BYTES_MAX} are possible: use a shorter data directory"
            ),
        ));
    }
    Ok(())
}

/// Lets the engine's log lines through to ours and remembers the last one: if it ends early, that is why.
fn pass_on_stderr(child: &mut Child) -> (Arc<Mutex<String>>, JoinHandle<()>) {
    let last = Arc::new(Mutex::new(String::new()));
    let stderr = child.stderr.take();
    let kept = Arc::clone(&last);
    let task = tokio::spawn(async move {
        let Some(stderr) = stderr else { return };
        let mut lines = BufReader::new(stderr).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            eprintln!("{line}");
            if let Ok(mut kept) = kept.lock() {
                *kept = line;
            }
        }
    });
    (last, task)
}

/// Waits for the ready line, connects, and hears the hello.
async fn greet(child: &mut Child, config: &EngineConfig) -> io::Result<(u32, Hello, UnixStream)> {
    let ended = || io::Error::new(io::ErrorKind::UnexpectedEof, "it ended before it was ready");
    let stdout = child.stdout.take().ok_or_else(ended)?;
    let mut line = String::new();
    if BufReader::new(stdout).read_line(&mut line).await? == 0 {
        return Err(ended());
    }
    let pid = child.id().ok_or_else(ended)?;
    let mut socket = UnixStream::connect(&config.socket).await?;
    match read_frame(&mut socket).await? {
        Some(FromEngine::Hello(hello)) => Ok((pid, hello, socket)),
        Some(other) => Err(io::Error::new(io::ErrorKind::InvalidData, format!("its first frame is {other:?}"))),
        None => Err(ended()),
    }
}

async fn read_frame<R: AsyncReadExt + Unpin>(from: &mut R) -> io::Result<Option<FromEngine>> {
    let mut header = [0; wire::HEADER_BYTES];
    match from.read_exact(&mut header).await {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    }
    let mut body = vec![0; wire::body_length(header)?];
    from.read_exact(&mut body).await?;
    wire::decode(&body).map(Some)
}

/// One task a direction, so that neither waits for the other. Both end with the socket.
fn talk(socket: UnixStream) -> (mpsc::UnboundedSender<ToEngine>, mpsc::UnboundedReceiver<io::Result<FromEngine>>) {
    let (read, write) = socket.into_split();
    let (to_engine, told) = mpsc::unbounded_channel();
    let (say, frames) = mpsc::unbounded_channel();
    tokio::spawn(hear(BufReader::new(read), say));
    tokio::spawn(tell(write, told));
    (to_engine, frames)
}

async fn hear(mut from: BufReader<OwnedReadHalf>, say: mpsc::UnboundedSender<io::Result<FromEngine>>) {
    loop {
        let frame = read_frame(&mut from).await.transpose();
        let Some(frame) = frame else { return };
        let broken = frame.is_err();
        if say.send(frame).is_err() || broken {
            return;
        }
    }
}

async fn tell(mut to: OwnedWriteHalf, mut told: mpsc::UnboundedReceiver<ToEngine>) {
    while let Some(message) = told.recv().await {
        // A request too long for a frame was too long for HTTP before; a closed socket is noticed by the reader.
        let Ok(frame) = wire::encode(&message) else { continue };
        if to.write_all(&frame).await.is_err() {
            return;
        }
    }
}
