//! A world of real processes for the tests of this folder.

use chain::Chain;
use chain::alloy::primitives::Address;
use chain::deploy::fund_eth;
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Longest wait for one turn of the life. Generous, because two busy cores may run it; never a measurement.
const PATIENCE: Duration = Duration::from_secs(240);

/// A world waits for its days most of the time, so two share a small machine; more would starve each other.
const WORLDS_AT_ONCE: usize = 2;

static WORLDS: Mutex<usize> = Mutex::new(0);
static WORLD_ENDED: Condvar = Condvar::new();

/// The right to run a world, until it is dropped.
pub struct Turn(());

/// Waits until fewer than [`WORLDS_AT_ONCE`] run.
pub fn turn() -> Turn {
    let worlds = WORLDS.lock().unwrap_or_else(PoisonError::into_inner);
    let worlds = WORLD_ENDED.wait_while(worlds, |worlds| *worlds >= WORLDS_AT_ONCE);
    *worlds.unwrap_or_else(PoisonError::into_inner) += 1;
    Turn(())
}

impl Drop for Turn {
    fn drop(&mut self) {
        *WORLDS.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        WORLD_ENDED.notify_one();
    }
}

/// A running `vivarium up`. Dropping it ends every process of the world.
pub struct World {
    up: Child,
    pub dir: tempfile::TempDir,
}

impl World {
    pub fn start(flags: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let log = std::fs::File::create(dir.path().join("up.log")).expect("a log file");
        let up = Command::new(program())
            .args(["up", "--data-dir"])
            .arg(dir.path().join("world"))
            .args(flags)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log)
            .spawn()
            .expect("vivarium up starts");
        Self { up, dir }
    }

    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("world")
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("up.log")).unwrap_or_default()
    }

    /// world.json, kept current by `up`.
    pub fn file(&self) -> Option<Value> {
        let text = std::fs::read_to_string(self.data_dir().join("world.json")).ok()?;
        serde_json::from_str(&text).ok()
    }

    pub fn world(&self) -> Value {
        self.file().expect("world.json is there")
    }

    /// Runs `vivarium …` against this world.
    pub fn run(&self, args: &[&str]) -> (bool, String) {
        let out = Command::new(program())
            .args(args)
            .arg("--data-dir")
            .arg(self.data_dir())
            .stdin(Stdio::null())
            .output()
            .expect("vivarium runs");
        let text = [out.stdout, out.stderr].concat();
        (out.status.success(), String::from_utf8_lossy(&text).into_owned())
    }

    /// `vivarium status --json`: the record on chain and what the agent says.
    pub fn status(&self) -> Option<Value> {
        let (ok, text) = self.run(&["status", "--json"]);
        ok.then(|| serde_json::from_str(text.trim()).ok()).flatten()
    }

    /// What the agent says of itself, where the chain says that it lives.
    pub fn agent(&self) -> Option<Value> {
        self.status()?.get("agent").filter(|a| a.is_object()).cloned()
    }

    /// Waits until `ready` gives something. An ended `up` or a passed patience fails with its log.
    pub fn until<T>(&mut self, what: &str, ready: impl FnMut(&Self) -> Option<T>) -> T {
        self.within(PATIENCE, what, ready)
    }

    /// The same for what takes longer by its nature.
    pub fn within<T>(&mut self, patience: Duration, what: &str, mut ready: impl FnMut(&Self) -> Option<T>) -> T {
        let begun = Instant::now();
        loop {
            if let Some(found) = ready(self) {
                eprintln!("life: {what} ({:.1} s)", begun.elapsed().as_secs_f32());
                return found;
            }
            let ended = self.up.try_wait().expect("the world's process can be asked");
            assert!(ended.is_none(), "`vivarium up` ended ({ended:?}) while waiting for {what}:\n{}", self.log());
            assert!(begun.elapsed() < patience, "no {what} after {patience:?}:\n{}\n{:?}", self.log(), self.status());
            std::thread::sleep(Duration::from_millis(300));
        }
    }

    pub fn epoch(&self) -> Option<u64> {
        self.file()?["agent"]["epoch"].as_u64()
    }

    /// The process of a lease's tenant, as its provider knows it.
    pub fn tenant_pid(&self, lease: u64) -> Option<u32> {
        self.world()["providers"].as_array()?.iter().find_map(|p| {
            let status = get_json(&format!("{}/status", p["url"].as_str()?))?;
            let tenant = status["tenants"].as_array()?.iter().find(|t| t["lease"] == lease)?;
            tenant["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok())
        })
    }

    /// The process of a steward's daemon, by number from 1.
    pub fn steward_pid(&self, number: usize) -> Option<u32> {
        let config = self.data_dir().join(format!("steward-{number}/config.toml"));
        let config = config.to_str().expect("UTF-8");
        std::fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let words = std::fs::read(entry.path().join("cmdline")).ok()?;
            words.split(|byte| *byte == 0).any(|word| word == config.as_bytes()).then_some(pid)
        })
    }

    pub fn steward_keys(&self) -> Vec<String> {
        let world = self.world();
        let stewards = world["stewards"].as_array().expect("stewards");
        stewards.iter().map(|s| s["key_file"].as_str().expect("a key file").to_owned()).collect()
    }

    fn lease_data(&self, name: &str) -> Vec<PathBuf> {
        (1..=2)
            .filter_map(|i| std::fs::read_dir(self.data_dir().join(format!("provider-{i}/data/leases"))).ok())
            .flatten()
            .filter_map(|entry| Some(entry.ok()?.path().join("data").join(name)))
            .filter(|path| path.is_file())
            .collect()
    }

    /// Did this crash point kill a node?
    pub fn fired_anywhere(&self, point: &str) -> bool {
        self.lease_data("crash-fired").iter().any(|path| names(path, point))
    }

    /// How often the tenant of `lease` was killed, by whomever, as its provider's log tells.
    pub fn deaths(&self, lease: u64) -> usize {
        let (lease, killed) = (format!(" lease={lease} "), "exit status: 137");
        (1..=2)
            .filter_map(|i| std::fs::read_to_string(self.data_dir().join(format!("logs/provider-{i}.log"))).ok())
            .map(|log| log.lines().filter(|l| l.contains(&lease) && l.contains(killed)).count())
            .sum()
    }

    pub fn clear_fired(&self) {
        for path in self.lease_data("crash-fired") {
            let _ = std::fs::remove_file(path);
        }
    }

    pub fn ask(&self, args: &[&str]) -> Option<Value> {
        let (ok, text) = self.run(&[&["ask", "--json"], args].concat());
        if !ok {
            eprintln!("life: ask refused: {}", text.trim());
            return None;
        }
        serde_json::from_str(text.trim()).ok()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let kept = std::env::temp_dir().join("vivarium-life-failed");
            let _ = std::fs::remove_dir_all(&kept);
            let _ = Command::new("cp").arg("-r").arg(self.dir.path()).arg(&kept).status();
            eprintln!("life: the world's files are kept in {}", kept.display());
        }
        signal(self.up.id(), "INT");
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(40) {
            if matches!(self.up.try_wait(), Ok(Some(_))) {
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        signal(self.up.id(), "KILL");
        let _ = self.up.wait();
    }
}

/// The official JavaScript client in a world, paying by the scheme it is told to.
pub fn client(world: &Value, mode: &str, count: u32, scheme: &str, flags: &[&str]) -> std::process::Output {
    let text = |value: &Value| value.as_str().expect("a word in world.json").to_owned();
    let key = std::fs::read_to_string(text(&world["customer"]["key_file"])).expect("the key");
    let key = key.lines().find(|l| l.starts_with("0x")).expect("a line with the key").trim().to_owned();
    Command::new("node")
        .arg("schemes.mjs")
        .args([&text(&world["agent"]["url"]), &key, &count.to_string(), mode, scheme])
        .args([&text(&world["rpc_url"]), &text(&world["usdc"])])
        .args(flags)
        .current_dir(project().join("tests/clients"))
        .output()
        .expect("node runs")
}

/// `vivarium proxy` for the world in `dir` on a port of its own, and the base URL that it says.
pub fn proxy(dir: &Path, flags: &[&str]) -> (Child, String) {
    let mut process = Command::new(program())
        .args(["proxy", "--listen", "127.0.0.1:0", "--json"])
        .args(flags)
        .arg("--data-dir")
        .arg(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the proxy starts");
    let mut line = String::new();
    BufReader::new(process.stdout.take().expect("its words")).read_line(&mut line).expect("one line");
    let hello: Value = serde_json::from_str(&line).expect("a JSON line");
    (process, hello["base_url"].as_str().expect("a base URL").to_owned())
}

/// Gives the relay of an agent gas, once it has one. Anybody may.
pub async fn fund_relay(chain: &Chain, treasury: Address) -> Option<()> {
    let relay = chain.treasury(treasury).state().await.expect("a state").relay;
    if relay.is_zero() {
        return None;
    }
    fund_eth(chain, relay, 1_000_000_000_000_000_000).await.expect("a development chain");
    Some(())
}

/// Whether the file names this crash point.
pub fn names(file: &Path, point: &str) -> bool {
    std::fs::read_to_string(file).is_ok_and(|text| text.trim() == point)
}

pub fn program() -> &'static str {
    env!("CARGO_BIN_EXE_vivarium")
}

pub fn project() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

pub fn signal(pid: u32, name: &str) {
    let _ = Command::new("kill").arg(format!("-{name}")).arg(pid.to_string()).status();
}

/// Signals a process and everything below it.
pub fn stop_tree(pid: u32, name: &str) {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    signal(pid, name);
    for child in children.split_whitespace().filter_map(|c| c.parse().ok()) {
        stop_tree(child, name);
    }
}

pub fn get_json(url: &str) -> Option<Value> {
    serde_json::from_str(&get_text(url)?).ok()
}

pub fn get_text(url: &str) -> Option<String> {
    let out = Command::new("curl").args(["-sf", "--max-time", "5", url]).output().ok()?;
    out.status.success().then(|| String::from_utf8(out.stdout).ok()).flatten()
}
