//! Running tenants: start, first line, log, signals, end.
//!
//! One thread starts every sandbox and lives as long as the [`Tenants`]: bubblewrap dies with the *thread*
//! that started it, so the thread must neither end early nor outlive the daemon. Two more threads per tenant
//! read its output; a third waits for its end.
//!
//! bubblewrap asks for that late: one that is killed while it makes the sandbox leaves its child behind, which
//! then runs the tenant. So whoever waits for a sandbox also kills what is left of it, and a start first kills
//! what a daemon that died left of the same sandbox.

use crate::error::{Error, Result};
use crate::lease_loop::LeaseId;
use alloy::primitives::Address;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, kill_process_group, waitid};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::mpsc::UnboundedSender;

/// Bytes after which the log starts anew; the one before is kept as `log.1`.
const LOG_BYTES_MAX: u64 = 8 << 20;
/// A longer first line is no hello.
const HELLO_BYTES_MAX: usize = 4 << 10;
/// From the end of a sandbox to the end of the last process that holds its output. The kernel kills them at
/// once; this only bounds the wait if one does not die.
const LAST_OUTPUT: Duration = Duration::from_secs(5);

/// News of one run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Hello { lease: LeaseId, run: u64, node_key: Address },
    Exited { lease: LeaseId, run: u64, status: String },
}

/// The tenants that run now. Dropping it kills them all.
pub struct Tenants {
    starter: mpsc::Sender<(Command, mpsc::SyncSender<std::io::Result<Child>>)>,
    events: UnboundedSender<Event>,
    running: BTreeMap<LeaseId, (u64, Arc<Mutex<Running>>)>,
}

/// A sandbox that has not been waited for, or None: while this is locked and Some, its number is its own.
struct Running {
    sandbox: Option<Pid>,
}

/// Process numbers of one tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pids {
    /// bubblewrap itself. Killing it ends everything inside.
    pub sandbox: i32,
    /// The tenant's own first process; none while the sandbox is being made.
    pub tenant: Option<i32>,
}

impl Tenants {
    pub fn new(events: UnboundedSender<Event>) -> Result<Self> {
        type Job = (Command, mpsc::SyncSender<std::io::Result<Child>>);
        let (starter, jobs) = mpsc::channel::<Job>();
        std::thread::Builder::new()
            .name("starter".into())
            .spawn(move || {
                for (mut command, reply) in jobs {
                    // The receiver waits for it; if it is gone, so is the daemon.
                    let _ = reply.send(command.spawn());
                }
            })
            .map_err(|e| Error::retry("cannot start the thread that starts tenants").caused_by(e))?;
        Ok(Self { starter, events, running: BTreeMap::new() })
    }

    /// Starts `command` (a sandbox) in a process group of its own.
    pub fn start(&mut self, lease: LeaseId, run: u64, mut command: Command, log: &Path) -> Result<()> {
        let failed =
            |e: std::io::Error| Error::retry(format!("the tenant of lease {lease} does not start")).caused_by(e);
        let log = Arc::new(Mutex::new(Log::open(log).map_err(failed)?));
        let line = command_line(&command);
        kill_all_with(&line);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let (reply, answer) = mpsc::sync_channel(1);
        let gone = |_| Error::retry("the thread that starts tenants is gone");
        self.starter.send((command, reply)).map_err(|_| Error::retry("the thread that starts tenants is gone"))?;
        let mut child = answer.recv().map_err(gone)?.map_err(failed)?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let running = Arc::new(Mutex::new(Running { sandbox: pid }));
        self.running.insert(lease, (run, running.clone()));

        // Dropped by each reader at its end, so that the waiting thread sees when no output can come any more.
        let (open, closed) = mpsc::channel::<()>();
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let (events, out_log, out_open) = (self.events.clone(), log.clone(), open.clone());
        spawn(move || {
            let _open = out_open;
            read_stdout(lease, stdout, &out_log, |node_key| {
                let _ = events.send(Event::Hello { lease, run, node_key });
            });
        });
        spawn(move || {
            let _open = open;
            copy(stderr, &log);
        });
        let events = self.events.clone();
        spawn(move || {
            let status = wait(child, &running, &line);
            let _ = closed.recv_timeout(LAST_OUTPUT);
            let _ = events.send(Event::Exited { lease, run, status });
        });
        Ok(())
    }

    /// SIGTERM to every process of the tenant.
    pub fn terminate(&self, lease: LeaseId, run: u64) {
        self.with_sandbox(lease, run, |sandbox| match child_of(sandbox) {
            // bubblewrap's first child leads the session that --new-session made. As process 1 of its
            // namespace it ignores the signal itself; the tenant's processes get it.
            Some(init) => drop(kill_process_group(init, Signal::TERM)),
            None => drop(kill_process(sandbox, Signal::TERM)),
        });
    }

    /// SIGKILL to the sandbox; what is inside dies with it.
    pub fn kill(&self, lease: LeaseId, run: u64) {
        self.with_sandbox(lease, run, |sandbox| {
            if let Some(init) = child_of(sandbox) {
                let _ = kill_process(init, Signal::KILL);
            }
            let _ = kill_process_group(sandbox, Signal::KILL);
        });
    }

    pub fn pids(&self, lease: LeaseId) -> Option<Pids> {
        let (_, running) = self.running.get(&lease)?;
        let sandbox = lock(running).sandbox?;
        let tenant = child_of(sandbox).and_then(child_of).map(|p| p.as_raw_nonzero().get());
        Some(Pids { sandbox: sandbox.as_raw_nonzero().get(), tenant })
    }

    /// Forgets a run that has exited.
    pub fn forget(&mut self, lease: LeaseId, run: u64) {
        if self.running.get(&lease).is_some_and(|(r, _)| *r == run) {
            self.running.remove(&lease);
        }
    }

    fn with_sandbox(&self, lease: LeaseId, run: u64, act: impl FnOnce(Pid)) {
        let Some((_, running)) = self.running.get(&lease).filter(|(r, _)| *r == run) else { return };
        let running = lock(running);
        if let Some(sandbox) = running.sandbox {
            act(sandbox);
        }
    }
}

fn spawn(body: impl FnOnce() + Send + 'static) {
    std::thread::spawn(body);
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits for the end without reaping, kills what was left behind, then reaps under the lock: nobody signals a
/// number that is free again. `line` is the sandbox's own.
fn wait(mut child: Child, running: &Mutex<Running>, line: &[u8]) -> String {
    let pid = lock(running).sandbox;
    if let Some(pid) = pid {
        // An interrupted wait is repeated; any other failure falls through to the blocking wait below.
        while waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT)
            .is_err_and(|e| e == rustix::io::Errno::INTR)
        {}
        kill_all_with(line);
    }
    let mut running = lock(running);
    running.sandbox = None;
    child.wait().map_or_else(|e| format!("cannot be waited for: {e}"), |s| s.to_string())
}

/// The first line `{"hello": …}` is announced; everything is logged.
fn read_stdout(lease: LeaseId, from: Option<impl Read>, log: &Mutex<Log>, mut hello: impl FnMut(Address)) {
    let Some(mut from) = from else { return };
    let mut line = Vec::new();
    let mut said = false;
    let mut chunk = [0u8; 4096];
    while let Ok(read) = from.read(&mut chunk) {
        if read == 0 {
            return;
        }
        lock(log).write(&chunk[..read]);
        for byte in chunk[..read].iter().filter(|_| !said) {
            if *byte != b'\n' {
                if line.len() <= HELLO_BYTES_MAX {
                    line.push(*byte);
                }
                continue;
            }
            if let Some(node_key) = parse_hello(lease, &line) {
                said = true;
                hello(node_key);
                break;
            }
            line.clear();
        }
    }
}

#[derive(Deserialize)]
struct HelloLine {
    hello: Hello,
}

#[derive(Deserialize)]
struct Hello {
    lease: u64,
    node_key: Address,
}

/// The node key, if the line is a hello of this lease. The URL in it is not used: the daemon announces the
/// one it gave out, so that a tenant cannot point the record at somebody else.
fn parse_hello(lease: LeaseId, line: &[u8]) -> Option<Address> {
    let hello = serde_json::from_slice::<HelloLine>(line).ok()?.hello;
    (hello.lease == lease && !hello.node_key.is_zero()).then_some(hello.node_key)
}

fn copy(from: Option<impl Read>, log: &Mutex<Log>) {
    let Some(mut from) = from else { return };
    let mut chunk = [0u8; 4096];
    while let Ok(read) = from.read(&mut chunk) {
        if read == 0 {
            return;
        }
        lock(log).write(&chunk[..read]);
    }
}

/// A file that never grows past [`LOG_BYTES_MAX`].
struct Log {
    path: PathBuf,
    file: File,
    bytes: u64,
}

impl Log {
    fn open(path: &Path) -> std::io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        let bytes = file.metadata()?.len();
        Ok(Self { path: path.to_owned(), file, bytes })
    }

    /// A log that cannot be written (full disk) loses lines; the tenant goes on.
    fn write(&mut self, bytes: &[u8]) {
        let len = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        if self.bytes.saturating_add(len) > LOG_BYTES_MAX {
            let renamed = std::fs::rename(&self.path, self.path.with_extension("1"));
            if let (Ok(()), Ok(fresh)) = (renamed, Self::open(&self.path)) {
                *self = fresh;
            } else {
                return;
            }
        }
        if self.file.write_all(bytes).is_ok() {
            self.bytes += len;
        }
    }
}

/// What /proc shows of a process that `command` starts: each argument with a zero after it.
fn command_line(command: &Command) -> Vec<u8> {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.flat_map(|word| word.as_bytes().iter().copied().chain([0])).collect()
}

/// Kills every process with this command line, and returns when there is none (or one does not die). A sandbox's
/// own line names its lease's folders, so it is nobody else's.
fn kill_all_with(line: &[u8]) {
    let until = Instant::now() + LAST_OUTPUT;
    loop {
        let has_it = |pid: &i32| std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|own| own == line);
        let left: Vec<Pid> = processes().filter(has_it).filter_map(Pid::from_raw).collect();
        if left.is_empty() || Instant::now() > until {
            return;
        }
        for pid in left {
            let _ = kill_process(pid, Signal::KILL);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The first child of `parent`, by the parents that /proc names.
fn child_of(parent: Pid) -> Option<Pid> {
    let parent = parent.as_raw_nonzero().get();
    processes().filter(|pid| parent_of(*pid) == Some(parent)).min().and_then(Pid::from_raw)
}

/// Numbers of the processes there are.
fn processes() -> impl Iterator<Item = i32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn parent_of(pid: i32) -> Option<i32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // "pid (name) state ppid …"; the name may hold spaces and parentheses, so count from its end.
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_hello_of_this_lease_counts() {
        let key = "0x0101010101010101010101010101010101010101";
        let good = format!(r#"{{"hello":{{"lease":3,"node_key":"{key}","public_url":"http://x"}}}}"#);
        assert_eq!(parse_hello(3, good.as_bytes()), Some(Address::repeat_byte(1)));
        assert_eq!(parse_hello(4, good.as_bytes()), None);
        assert_eq!(parse_hello(3, b"hello"), None);
        assert_eq!(parse_hello(3, br#"{"hello":{"lease":3,"node_key":"0x00"}}"#), None);
        let nobody = good.replace("01", "00");
        assert_eq!(parse_hello(3, nobody.as_bytes()), None);
    }

    #[test]
    fn a_hello_after_other_lines_is_heard_once_and_an_endless_line_is_not_kept() {
        let dir = tempfile::tempdir().unwrap();
        let log = Mutex::new(Log::open(&dir.path().join("log")).unwrap());
        let hello = format!("{{\"hello\":{{\"lease\":3,\"node_key\":\"{}\"}}}}\n", Address::repeat_byte(1));
        let text = format!("starting\n{}\n{hello}{hello}", "x".repeat(100_000));
        let mut heard = Vec::new();
        read_stdout(3, Some(text.as_bytes()), &log, |key| heard.push(key));
        assert_eq!(heard, [Address::repeat_byte(1)]);
        assert_eq!(std::fs::read_to_string(dir.path().join("log")).unwrap(), text);
    }

    #[test]
    fn the_log_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = Log::open(&path).unwrap();
        let chunk = vec![b'x'; 1 << 20];
        for _ in 0..20 {
            log.write(&chunk);
        }
        let size = |name: &str| std::fs::metadata(dir.path().join(name)).unwrap().len();
        assert_eq!((size("log"), size("log.1")), (4 << 20, 8 << 20));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}
