//! Processes that are stopped and go on, disks that come back older or damaged, clocks that are an hour off: never two
//! signers, never an older memory acknowledged.
//!
//! One world for all of it. Every clock of this machine is an hour ahead of its chain; in `rebuild` an hour behind.

use crate::world::{self, World, get_json, program, signal, stop_tree};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

/// Seconds by which the chain's clock is behind this machine's.
const BEHIND: u64 = 3_600;

/// A process that ends with the test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub fn rpc(world: &World, method: &str, params: &Value) -> Option<Value> {
    let ask = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params }).to_string();
    let url = world.world()["rpc_url"].as_str()?.to_owned();
    let out = Command::new("curl")
        .args(["-sf", "--max-time", "5", "-H", "content-type: application/json", "-d", &ask, &url])
        .output()
        .ok()?;
    let answer: Value = serde_json::from_slice(&out.stdout).ok()?;
    answer.get("result").cloned()
}

fn number(value: &Value) -> u64 {
    let digits = value.as_str().and_then(|text| text.strip_prefix("0x")).unwrap_or_else(|| panic!("{value}"));
    u64::from_str_radix(digits, 16).expect("a quantity")
}

pub fn height(world: &World) -> u64 {
    number(&rpc(world, "eth_blockNumber", &json!([])).expect("the chain answers"))
}

/// Until so many more blocks are there.
pub fn blocks_pass(world: &mut World, count: u64) {
    let until = height(world) + count;
    world.until("some blocks", |w| (height(w) >= until).then_some(()));
}

/// What `from` asked of contracts in blocks after `height`: first bytes of each call. Gas that a former operator's key
/// gives back to the treasury asks nothing.
pub fn calls_of(world: &World, from: &str, after: u64) -> Vec<String> {
    let mut calls = Vec::new();
    for at in after + 1..=height(world) {
        let block = rpc(world, "eth_getBlockByNumber", &json!([format!("{at:#x}"), true])).expect("the chain answers");
        for tx in block["transactions"].as_array().expect("whole transactions") {
            let sender = tx["from"].as_str().unwrap_or_default();
            let input = tx["input"].as_str().unwrap_or_default();
            if sender.eq_ignore_ascii_case(from) && input != "0x" {
                calls.push(format!("block {at}: {}", input.get(..10).unwrap_or(input)));
            }
        }
    }
    calls
}

fn lease_of(agent: &Value, slot: &str) -> Option<u64> {
    agent[slot]["id"].as_u64()
}

/// What a provider keeps of a lease.
pub fn folder(world: &World, lease: u64) -> Option<PathBuf> {
    let folders = (1..=2).map(|i| world.data_dir().join(format!("provider-{i}/data/leases/{lease}")));
    folders.into_iter().find(|folder| folder.is_dir())
}

fn copy(from: &Path, to: &Path) {
    let _ = fs::remove_dir_all(to);
    // What is written at this moment may come out torn, as in any image of a running disk.
    Command::new("cp").arg("-a").args([from, to]).status().expect("cp runs");
}

pub fn log(folder: &Path) -> String {
    fs::read_to_string(folder.join("log")).unwrap_or_default()
}

pub fn operator(world: &World) -> Option<String> {
    world.status()?["record"]["operator"].as_str().map(str::to_owned)
}

fn checkpoint(world: &World) -> Option<u64> {
    world.status()?["record"]["checkpoint_seq"].as_u64()
}

/// Selling, with books that balance; its lease.
pub fn well(world: &mut World, what: &str) -> u64 {
    world.until(what, |w| {
        let agent = w.agent()?;
        (agent["selling"] == true && agent["ledger_ok"] == true).then(|| lease_of(&agent, "lease")).flatten()
    })
}

fn asks(world: &mut World) {
    world.until("an answer", |w| w.ask(&["--scheme", "exact", "--max-tokens", "4", "Say hello."]));
}

#[test]
fn stopped_processes_old_disks_and_wrong_clocks_never_make_a_second_signer() {
    let _turn = world::turn();
    let behind = format!("--chain-ahead=-{BEHIND}");
    // A lease of ten minutes: no planned move comes between.
    let flags = ["--day", "20s", "--lease", "30d", "--seed-usdc", "60", "--no-restart", &behind];
    let mut world = World::start(&flags);
    world.until("birth", |w| (w.agent()?["selling"] == true).then_some(()));
    let block = rpc(&world, "eth_getBlockByNumber", &json!(["latest", false])).expect("a block");
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    let apart = wall - number(&block["timestamp"]);
    assert!((BEHIND - 60..BEHIND + 600).contains(&apart), "the clocks are {apart} s apart");
    world.until("a checkpoint", |w| checkpoint(w).filter(|seq| *seq > 0));
    asks(&mut world);

    let image = world.dir.path().join("image");
    let lease = world.until("its lease", |w| lease_of(&w.agent()?, "lease"));
    copy(&folder(&world, lease).expect("a folder"), &image);
    a_damaged_middle_is_told_and_the_checkpoint_restored(&mut world);
    let old = a_stopped_operator_comes_back_and_signs_nothing(&mut world, &image);
    an_old_image_of_a_former_operator_does_nothing(&mut world, &image, &old);
    an_old_image_of_the_operator_is_refused(&mut world);
}

/// A byte flips in the middle of the journal, and the process starts again: it ends with the place and what to do; done so,
/// the key in its ring brings the acknowledged memory back, on the same host.
fn a_damaged_middle_is_told_and_the_checkpoint_restored(world: &mut World) {
    let lease = well(world, "before the damage");
    let folder = folder(world, lease).expect("a folder");
    let journal = folder.join("data/journal");
    let first = fs::read_dir(&journal).expect("a journal").filter_map(|entry| Some(entry.ok()?.path()));
    let first = first.filter(|path| path.extension().is_some_and(|e| e == "log")).min().expect("a segment");
    let mut bytes = fs::read(&first).expect("readable");
    bytes[200] ^= 1;
    let pid = world.tenant_pid(lease).expect("it runs");
    // Stopped, so that what it appends meanwhile is not lost with what is written back.
    stop_tree(pid, "STOP");
    let grown = fs::read(&first).expect("readable");
    bytes.extend_from_slice(&grown[bytes.len()..]);
    fs::write(&first, &bytes).expect("damaged");
    signal(pid, "KILL");
    let said =
        world.until("the damage is told", |_| Some(log(&folder)).filter(|log| log.contains("damaged at offset")));
    assert!(said.contains("move this folder away") && said.contains("last acknowledged checkpoint"), "{said}");
    fs::rename(&journal, folder.join("data/journal.damaged")).expect("moved away");
    well(world, "restored from the acknowledged checkpoint");
    asks(world);
}

/// The process that holds the operator key is stopped for longer than a silence and an answer take, a standby takes over,
/// and it goes on: it finds another epoch. Who it was.
fn a_stopped_operator_comes_back_and_signs_nothing(world: &mut World, image: &Path) -> String {
    let (lease, epoch) = world.until("a standby to take over", |w| {
        let agent = w.agent()?;
        let ready = agent["standby"]["ready"] == true && agent["selling"] == true;
        ready.then(|| Some((lease_of(&agent, "lease")?, w.epoch()?))).flatten()
    });
    // The newest that there is, for what comes after.
    let folder = folder(world, lease).expect("a folder");
    copy(&folder, image);
    let old = operator(world).expect("an operator");
    let pid = world.tenant_pid(lease).expect("it runs");
    stop_tree(pid, "STOP");
    let taken = world.until("a takeover", |w| (w.epoch()? > epoch).then(|| height(w)));
    stop_tree(pid, "CONT");
    // It notices, or its host has ended its lease by then.
    world.until("it finds another operator", |_| {
        let said = log(&folder);
        (!folder.is_dir() || said.contains("another node is operator now") || said.contains("fenced")).then_some(())
    });
    well(world, "selling after the takeover");
    blocks_pass(world, 5);
    assert_eq!(calls_of(world, &old, taken), Vec::<String>::new(), "{old} signed after it was superseded");
    assert_ne!(operator(world), Some(old.clone()));
    old
}

/// A copy of its whole lease, the key of the lease among it, is started elsewhere after the move.
fn an_old_image_of_a_former_operator_does_nothing(world: &mut World, image: &Path, old: &str) {
    let from = height(world);
    let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port();
    let mut config: Value =
        serde_json::from_slice(&fs::read(image.join("tenant.json")).expect("what it was told")).expect("JSON");
    config["listen"] = format!("127.0.0.1:{port}").into();
    config["data_dir"] = image.join("data").to_string_lossy().into();
    config["seal_key_file"] = image.join("seal.key").to_string_lossy().into();
    config["code_dir"] = Path::new(program()).parent().expect("a folder").to_string_lossy().into();
    let file = image.join("again.json");
    fs::write(&file, config.to_string()).expect("written");
    let said = fs::File::create(image.join("again.log")).expect("a log");
    let again = Command::new(program())
        .args(["node", "--config"])
        .arg(&file)
        .stdin(Stdio::null())
        .stdout(said.try_clone().expect("a second handle"))
        .stderr(said)
        .spawn()
        .expect("it starts");
    let _again = Process(again);
    let url = format!("http://127.0.0.1:{port}");
    let role =
        world.until("the image is up", |_| get_json(&format!("{url}/status"))?["role"].as_str().map(str::to_owned));
    blocks_pass(world, 6);
    let model = &world.agent().expect("an agent")["model"];
    let question = json!({ "model": model, "messages": [{ "role": "user", "content": "Hello" }] }).to_string();
    let out = Command::new("curl")
        .args(["-s", "-o", "/dev/null", "-w", "%{http_code}", "-H", "content-type: application/json", "-d"])
        .args([&question, &format!("{url}/v1/chat/completions")])
        .output()
        .expect("curl runs");
    let status = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(!["200", "402"].contains(&status.as_str()), "an image sells: {status}");
    assert_eq!(role, "standby");
    assert_eq!(calls_of(world, old, from), Vec::<String>::new(), "an image of {old} signed");
}

/// The disk of the host that serves comes back as it was a checkpoint ago, key ring and all: the process does nothing from
/// it, and acknowledges nothing. With the newest disk it goes on.
fn an_old_image_of_the_operator_is_refused(world: &mut World) {
    let lease = well(world, "before its disk comes back older");
    let folder = folder(world, lease).expect("a folder");
    let seq = world.until("a checkpoint of its own", |w| checkpoint(w).filter(|seq| *seq > 0));
    let image = world.dir.path().join("older");
    copy(&folder.join("data"), &image);
    // Two further: the image may have caught the key of one that was under way.
    world.until("newer checkpoints", |w| checkpoint(w).filter(|newer| *newer > seq + 1));
    let signer = operator(world).expect("an operator");
    let pid = world.tenant_pid(lease).expect("it runs");
    stop_tree(pid, "STOP");
    // What left before is mined.
    blocks_pass(world, 2);
    let (data, newest) = (folder.join("data"), world.dir.path().join("newest"));
    fs::create_dir(&newest).expect("made");
    for name in ["journal", "memory.sealed"] {
        fs::rename(data.join(name), newest.join(name)).expect("set aside");
        copy(&image.join(name), &data.join(name));
    }
    let from = height(world);
    signal(pid, "KILL");
    world.until("the old copy is refused", |_| log(&folder).contains("is an old copy").then_some(()));
    blocks_pass(world, 3);
    // No commit, no heartbeat, nothing.
    assert_eq!(calls_of(world, &signer, from), Vec::<String>::new(), "{signer} acted on an older memory");
    for name in ["journal", "memory.sealed"] {
        let old = data.join(name);
        let _ = if old.is_dir() { fs::remove_dir_all(&old) } else { fs::remove_file(&old) };
        let _ = fs::rename(newest.join(name), old);
    }
    well(world, "going on with the newest disk, or on another host");
}
