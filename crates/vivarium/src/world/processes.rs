//! Child processes as a service manager keeps them: own process group, own log, restarted when they die,
//! stopped in order, and never left behind.
//!
//! Three things end a child: its stop signal, SIGKILL to its group when that took too long, and the kernel when
//! `up` itself is killed (`vivarium launch` asks for that before it becomes the program).

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal};
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

const BACKOFF_MIN: Duration = Duration::from_millis(500);
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// A child that lived this long starts its backoff over.
const SETTLED: Duration = Duration::from_secs(30);

/// How to run one program.
#[derive(Clone, Debug)]
pub struct Program {
    /// What people call it; names its log, too.
    pub name: String,
    pub executable: PathBuf,
    pub arguments: Vec<String>,
    pub environment: Vec<(String, String)>,
    pub stop_signal: Signal,
    /// After that, SIGKILL to the whole group.
    pub stop_within: Duration,
    /// Started again when it dies by itself.
    pub restart: bool,
}

/// What happened to a child without our doing.
#[derive(Clone, Debug)]
pub enum Report {
    Died { name: String, pid: u32, how: String, log: PathBuf },
    Restarted { name: String, pid: u32 },
    CannotRestart { name: String, why: String },
}

/// Starts children. Clones share nothing but paths.
#[derive(Clone, Debug)]
pub struct Launcher {
    /// The `vivarium` program, for `vivarium launch`.
    pub vivarium: PathBuf,
    pub logs: PathBuf,
    pub reports: mpsc::UnboundedSender<Report>,
}

/// One program that is kept running.
#[derive(Debug)]
pub struct Service {
    name: String,
    log: PathBuf,
    state: watch::Receiver<State>,
    stop: watch::Sender<bool>,
    keeper: JoinHandle<()>,
}

#[derive(Clone, Copy, Debug)]
struct State {
    pid: Option<u32>,
    deaths: u32,
}

impl Launcher {
    /// Starts `program` and keeps it.
    pub fn start(&self, program: Program) -> Result<Service> {
        let log = self.log_of(&program);
        let child = self.spawn(&program)?;
        let (state_in, state) = watch::channel(State { pid: child.id(), deaths: 0 });
        let (stop, stopped) = watch::channel(false);
        let name = program.name.clone();
        let keeper = tokio::spawn(keep(self.clone(), program, child, state_in, stopped));
        Ok(Service { name, log, state, stop, keeper })
    }

    fn log_of(&self, program: &Program) -> PathBuf {
        self.logs.join(format!("{}.log", program.name))
    }

    fn spawn(&self, program: &Program) -> Result<Child> {
        let path = self.log_of(program);
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&path)
            .with_context(|| format!("cannot open the log {}", path.display()))?;
        let mut command = Command::new(&self.vivarium);
        command
            .args(["launch", "--parent", &std::process::id().to_string()])
            .args(["--signal", &program.stop_signal.as_raw().to_string(), "--"])
            .arg(&program.executable)
            .args(&program.arguments)
            .envs(program.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("cannot share the log")?)
            .stderr(log)
            // Ctrl-C in the terminal then reaches `up` alone, which stops the others in order.
            .process_group(0);
        command.spawn().with_context(|| format!("cannot start {} ({})", program.name, program.executable.display()))
    }
}

impl Service {
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `None` between a death and the restart.
    pub fn pid(&self) -> Option<u32> {
        self.state.borrow().pid
    }

    /// Waits until `url` answers 2xx. A death before that is final: its last words become the error.
    pub async fn ready(&self, url: &str, within: Duration) -> Result<()> {
        let client = net::Client::new().with_deadline(Duration::from_secs(2));
        let deadline = Instant::now() + within;
        loop {
            if client.get(url).await.is_ok_and(|answer| answer.status.is_success()) {
                return Ok(());
            }
            if self.state.borrow().deaths > 0 {
                bail!("{} ended while it was starting: {}", self.name, last_words(&self.log));
            }
            if Instant::now() > deadline {
                bail!(
                    "{} does not answer at {url} after {} s; see {}",
                    self.name,
                    within.as_secs(),
                    self.log.display()
                );
            }
            sleep(Duration::from_millis(30)).await;
        }
    }

    /// Fails if it has died since it was started.
    pub fn alive(&self) -> Result<()> {
        if self.state.borrow().deaths > 0 {
            bail!("{} ended while it was starting: {}", self.name, last_words(&self.log));
        }
        Ok(())
    }

    /// Stops it and everything in its group; returns when it is gone.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        if let Err(e) = self.keeper.await {
            tracing::error!(service = self.name, error = %e, "its keeper failed");
        }
    }
}

async fn keep(
    launcher: Launcher,
    program: Program,
    mut child: Child,
    state: watch::Sender<State>,
    mut stopped: watch::Receiver<bool>,
) {
    let mut backoff = BACKOFF_MIN;
    loop {
        let pid = child.id();
        let started = Instant::now();
        let status = tokio::select! {
            status = child.wait() => status,
            () = told(&mut stopped) => {
                end(&program, &mut child).await;
                state.send_modify(|s| s.pid = None);
                return;
            }
        };
        kill_group(pid);
        state.send_modify(|s| {
            s.pid = None;
            s.deaths += 1;
        });
        let how = status.map_or_else(|e| e.to_string(), describe);
        let log = launcher.log_of(&program);
        // A closed channel means that nobody listens any more; the child is gone either way.
        let _ = launcher.reports.send(Report::Died { name: program.name.clone(), pid: pid.unwrap_or(0), how, log });
        if !program.restart {
            return;
        }
        if started.elapsed() > SETTLED {
            backoff = BACKOFF_MIN;
        }
        tokio::select! {
            () = sleep(backoff) => {}
            () = told(&mut stopped) => return,
        }
        backoff = (backoff * 2).min(BACKOFF_MAX);
        match launcher.spawn(&program) {
            Ok(again) => child = again,
            Err(e) => {
                let why = format!("{e:#}");
                let _ = launcher.reports.send(Report::CannotRestart { name: program.name.clone(), why });
                return;
            }
        }
        let pid = child.id();
        state.send_modify(|s| s.pid = pid);
        let _ = launcher.reports.send(Report::Restarted { name: program.name.clone(), pid: pid.unwrap_or(0) });
    }
}

/// Completes when the service is to stop (or nobody holds it any more).
async fn told(stopped: &mut watch::Receiver<bool>) {
    // The guard that comes back is dropped here: it must not live across the caller's awaits.
    let _ = stopped.wait_for(|stop| *stop).await;
}

/// The stop signal, patience, then SIGKILL; the group is swept in any case.
async fn end(program: &Program, child: &mut Child) {
    let pid = child.id();
    if let Some(target) = pid.and_then(as_pid) {
        // It may have ended by itself a moment ago: then there is nobody to signal.
        let _ = rustix::process::kill_process(target, program.stop_signal);
    }
    if timeout(program.stop_within, child.wait()).await.is_err() {
        tracing::warn!(service = program.name, "did not stop in time: killed");
        kill_group(pid);
        if let Err(e) = child.kill().await {
            tracing::error!(service = program.name, error = %e, "cannot be killed");
        }
    }
    kill_group(pid);
}

/// A child's group has its own number: it was started as the leader of one.
fn kill_group(leader: Option<u32>) {
    if let Some(pid) = leader.and_then(as_pid) {
        // An empty group (the usual case) answers ESRCH.
        let _ = rustix::process::kill_process_group(pid, Signal::KILL);
    }
}

fn as_pid(pid: u32) -> Option<Pid> {
    i32::try_from(pid).ok().and_then(Pid::from_raw)
}

fn describe(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => status.to_string(),
    }
}

/// The end of a log in one line, for an error message.
pub fn last_words(log: &Path) -> String {
    let text = std::fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    match text.lines().rev().find(|line| !line.trim().is_empty()) {
        Some(line) => format!("{} (see {})", line.trim(), log.display()),
        None => format!("it said nothing (see {})", log.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `launch` needs the built program, so these run `sh` under a launcher that is `sh` itself:
    /// the words before the script stand where `launch`'s flags do.
    fn launcher(dir: &Path) -> (Launcher, mpsc::UnboundedReceiver<Report>) {
        use std::os::unix::fs::PermissionsExt;
        let stand_in = dir.join("launch.sh");
        std::fs::write(&stand_in, "#!/bin/sh\nshift 6\nexec \"$@\"\n").unwrap();
        std::fs::set_permissions(&stand_in, std::fs::Permissions::from_mode(0o700)).unwrap();
        let (reports, seen) = mpsc::unbounded_channel();
        (Launcher { vivarium: stand_in, logs: dir.to_owned(), reports }, seen)
    }

    fn script(text: &str, restart: bool) -> Program {
        Program {
            name: "script".into(),
            executable: "/bin/sh".into(),
            arguments: vec!["-c".into(), text.into()],
            environment: Vec::new(),
            stop_signal: Signal::TERM,
            stop_within: Duration::from_millis(300),
            restart,
        }
    }

    #[tokio::test]
    async fn a_child_that_dies_is_reported_and_started_again() {
        let dir = tempfile::tempdir().unwrap();
        let (launcher, mut seen) = launcher(dir.path());
        let service = launcher.start(script("echo last words; exit 3", true)).unwrap();
        let Some(Report::Died { how, log, .. }) = seen.recv().await else { panic!("no death reported") };
        assert_eq!(how, "exit code 3");
        assert!(last_words(&log).starts_with("last words"));
        assert!(service.alive().unwrap_err().to_string().contains("last words"));
        assert!(matches!(seen.recv().await, Some(Report::Restarted { .. })));
        service.stop().await;
    }

    #[tokio::test]
    async fn stop_ends_even_a_child_that_ignores_it_and_its_own_children() {
        let dir = tempfile::tempdir().unwrap();
        let (launcher, _seen) = launcher(dir.path());
        let pids = dir.path().join("pid");
        let text =
            format!("trap '' TERM; sleep 1000 & echo $! > {0}.partial; mv {0}.partial {0}; wait; wait", pids.display());
        let service = launcher.start(script(&text, true)).unwrap();
        let grandchild = loop {
            if let Ok(text) = std::fs::read_to_string(&pids) {
                break text.trim().to_owned();
            }
            tokio::task::yield_now().await;
        };
        service.stop().await;
        // Gone, or a zombie that only waits for whoever adopted it.
        let gone = || match std::fs::read_to_string(format!("/proc/{grandchild}/stat")) {
            Err(_) => true,
            Ok(stat) => stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z')),
        };
        let until = Instant::now() + Duration::from_secs(5);
        while !gone() && Instant::now() < until {
            tokio::task::yield_now().await;
        }
        assert!(gone(), "process {grandchild} survived its group");
    }
}
