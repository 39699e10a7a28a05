//! A development chain of our own: anvil as a child process that keeps its state in a file.
//!
//! What the tool does on its own and what is done about it here (anvil 1.7.1): it mines nothing when idle unless it
//! has a block time; after a restart from a state file its next block jumps to wall time, so it starts without
//! mining, is put to the second after the last block, and only then mines; it writes its state on SIGINT and every
//! second, so after SIGKILL the last blocks may be missing, which readers see as a reorg.

use rustix::process::{Pid, Signal, kill_process};
use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::PathBuf,
    process::Stdio,
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader},
    process::{Child, Command},
};

use crate::{error::Error, rpc::Chain};

/// Chain id of development chains.
pub const DEV_CHAIN_ID: u64 = 31337;

/// How long the tool may take to answer. It needs 0.5 s on an idle machine; reading a day's state takes longer.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the tool may take to write its state and end.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);

/// What kind of chain to start.
#[derive(Clone, Debug)]
pub struct AnvilOptions {
    /// The program.
    pub bin: PathBuf,
    /// Port on loopback; 0 takes a free one.
    pub port: u16,
    /// Seconds between blocks; `None` mines each transaction at once and nothing else.
    pub block_time: Option<u64>,
    /// The chain's id.
    pub chain_id: u64,
    /// Where the chain lives between runs; `None`: only in memory.
    pub state: Option<PathBuf>,
}

impl AnvilOptions {
    /// One block a second, a free port, nothing kept.
    pub fn new(bin: PathBuf) -> Self {
        Self { bin, port: 0, block_time: Some(1), chain_id: DEV_CHAIN_ID, state: None }
    }
}

/// A running chain. Dropped without [`Anvil::stop`] it is killed.
#[derive(Debug)]
pub struct Anvil {
    child: Child,
    pid: u32,
    port: u16,
    chain: Chain,
}

impl Anvil {
    /// Starts the chain in a process group of its own (a Ctrl-C at the terminal does not reach it: it must be
    /// stopped last) and returns once it answers.
    ///
    /// # Errors
    /// `Usage` when the program is missing, the port is taken or the state file cannot be read; the message holds
    /// the tool's last words.
    pub async fn spawn(options: &AnvilOptions) -> Result<Self, Error> {
        let resumes = options.state.as_ref().is_some_and(|path| path.exists());
        // Two anvils on one port do not notice each other in time, so look first (port 0 is always free).
        TcpListener::bind((Ipv4Addr::LOCALHOST, options.port))
            .map_err(|e| Error::usage(format!("port {} is not free: {e}", options.port)).with_source(e))?;
        let mut command = Command::new(&options.bin);
        command
            .args(["--host", "127.0.0.1", "--no-mining"])
            .args(["--port", &options.port.to_string(), "--chain-id", &options.chain_id.to_string()])
            .env("RUST_LOG", "error")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        if let Some(state) = &options.state {
            command.arg("--state").arg(state).args(["--state-interval", "1"]);
        }
        let mut child = command
            .spawn()
            .map_err(|e| Error::usage(format!("cannot start {}: {e}", options.bin.display())).with_source(e))?;
        let pid = child.id().ok_or_else(|| Error::usage("anvil ended at once"))?;
        let port = listening_port(&mut child).await?;
        let chain = Chain::connect(&format!("http://127.0.0.1:{port}"), options.chain_id)?;
        wait_until_up(&chain, &mut child).await?;
        let mut anvil = Self { child, pid, port, chain };
        anvil.drain_stderr();
        anvil.start_clock(options, resumes).await?;
        Ok(anvil)
    }

    async fn start_clock(&self, options: &AnvilOptions, resumes: bool) -> Result<(), Error> {
        if resumes {
            let last = self.chain.head().await?.timestamp;
            let _: serde_json::Value = self.chain.request("evm_setTime", (last + 1,)).await?;
        }
        let _: serde_json::Value = match options.block_time {
            Some(seconds) => self.chain.request("evm_setIntervalMining", (seconds,)).await?,
            None => self.chain.request("evm_setAutomine", (true,)).await?,
        };
        Ok(())
    }

    /// Keeps the pipe empty, so that a talkative tool never blocks on it.
    fn drain_stderr(&mut self) {
        if let Some(mut stderr) = self.child.stderr.take() {
            tokio::spawn(async move { tokio::io::copy(&mut stderr, &mut tokio::io::sink()).await });
        }
    }

    /// A connection to it.
    pub fn chain(&self) -> Chain {
        self.chain.clone()
    }

    /// Its address.
    pub fn url(&self) -> &str {
        self.chain.url()
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its process, and process group.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether the process still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Lets it write its state and end; kills it when it does not end in 20 s.
    ///
    /// # Errors
    /// `Usage` when it had to be killed: the last blocks may be missing from the state file.
    pub async fn stop(mut self) -> Result<(), Error> {
        if let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw)
            && self.is_running()
        {
            kill_process(pid, Signal::INT).ok();
        }
        match tokio::time::timeout(STOP_TIMEOUT, self.child.wait()).await {
            Ok(_) => Ok(()),
            Err(_) => {
                self.child.kill().await.ok();
                Err(Error::usage(format!("anvil did not end in {STOP_TIMEOUT:?} and was killed")))
            }
        }
    }
}

/// The port that the tool took, from its own words. Only the kernel can give a port that nobody else is about to take:
/// one that was found free and let go may be held again, by a child that another thread is just starting.
async fn listening_port(child: &mut Child) -> Result<u16, Error> {
    let stdout = child.stdout.take().ok_or_else(|| Error::usage("anvil has no output"))?;
    let mut lines = BufReader::new(stdout).lines();
    let said = async {
        while let Ok(Some(line)) = lines.next_line().await {
            let address = line.strip_prefix("Listening on ").and_then(|a| a.parse::<SocketAddr>().ok());
            if let Some(address) = address {
                return Some(address.port());
            }
        }
        None
    };
    match tokio::time::timeout(START_TIMEOUT, said).await {
        Ok(Some(port)) => {
            // Keeps the pipe empty.
            tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
            Ok(port)
        }
        Ok(None) => Err(last_words(child).await),
        Err(_) => Err(Error::usage(format!("anvil did not say in {START_TIMEOUT:?} where it listens"))),
    }
}

/// Of a tool whose output has ended.
async fn last_words(child: &mut Child) -> Error {
    let status = child.wait().await.map_or_else(|e| e.to_string(), |status| status.to_string());
    let mut words = String::new();
    if let Some(mut stderr) = child.stderr.take() {
        stderr.read_to_string(&mut words).await.ok();
    }
    Error::usage(format!("anvil ended at start ({status}): {}", words.lines().last().unwrap_or("no words")))
}

async fn wait_until_up(chain: &Chain, child: &mut Child) -> Result<(), Error> {
    let started = Instant::now();
    loop {
        if matches!(child.try_wait(), Ok(Some(_))) {
            return Err(last_words(child).await);
        }
        match chain.verify_chain().await {
            Err(e) if e.is_transient() && started.elapsed() < START_TIMEOUT => {
                tokio::time::sleep(Duration::from_millis(25)).await;
            }
            other => return other,
        }
    }
}
