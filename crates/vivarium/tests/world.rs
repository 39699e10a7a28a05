//! Worlds of real processes, started as a library: start, break, stop, go on. Needs what `cargo xtask test` built.

use alloy::primitives::Address;
use node::manifest::Steward;
use std::collections::BTreeMap;
use std::future::pending;
use std::path::{Path, PathBuf};
use std::time::Duration;
use store::seal::Identity;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout};
use vivarium::world::files::Folder;
use vivarium::world::genesis::{self, Choices};
use vivarium::world::model::Model;
use vivarium::world::ports::Ports;
use vivarium::world::progress::Progress;
use vivarium::world::{Contracts, INTERNAL_FILE, Internal, Options, Programs, World};

/// Two worlds at once would starve each other on a small machine.
static TURN: Mutex<()> = Mutex::const_new(());

fn options(dir: &Path) -> Options {
    let project = Programs::project().unwrap();
    // The binary of this build, and the engine that `cargo xtask` put beside it.
    let vivarium = PathBuf::from(env!("CARGO_BIN_EXE_vivarium"));
    Options {
        data_dir: dir.to_owned(),
        fresh: false,
        day_secs: Some(20),
        lease_days: Some(3),
        seed: None,
        settle_after: None,
        hibernates: false,
        port: None,
        chain_ahead_secs: 0,
        chain_doors: BTreeMap::new(),
        threads: None,
        places: BTreeMap::new(),
        restart: true,
        model: None,
        programs: Programs::of(&project, &vivarium).unwrap(),
        progress: Progress::Silent,
    }
}

/// Processes whose command line names the world's folder, with that line.
fn processes_of(dir: &Path) -> BTreeMap<i32, String> {
    let needle = dir.to_string_lossy().into_owned();
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
    let lines = pids.map(|pid| (pid, std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default()));
    let lines = lines.map(|(pid, line)| (pid, String::from_utf8_lossy(&line).replace('\0', " ")));
    lines.filter(|(_, line)| line.contains(&needle)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_world_survives_a_dead_daemon_and_goes_on_after_a_stop() {
    let _turn = TURN.lock().await;
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("world");
    let mut world = World::start(options(&dir), pending()).await.unwrap();
    let dir = dir.canonicalize().unwrap();
    let first = world.file().unwrap().clone();
    let record = world.record(first.treasury).unwrap();

    // A second one in the same folder is refused, and harms nothing.
    let refusal = World::start(options(&dir), pending()).await.err().unwrap().to_string();
    assert!(refusal.contains("already runs"), "{refusal}");

    // A daemon that dies is started again.
    let store = pid_of(&world, "store").unwrap();
    rustix::process::kill_process(rustix::process::Pid::from_raw(store).unwrap(), rustix::process::Signal::KILL)
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while pid_of(&world, "store").is_none_or(|now| now == store) {
        assert!(Instant::now() < deadline, "the store was not started again");
        world.run(sleep(Duration::from_millis(50))).await.unwrap();
    }

    let head = record.chain.head().await.unwrap();
    timeout(Duration::from_secs(60), world.stop()).await.unwrap();
    assert_eq!(processes_of(&dir), BTreeMap::new(), "processes are left");

    let again = World::start(options(&dir), pending()).await.unwrap();
    let file = again.file().unwrap();
    assert_eq!((file.treasury, &file.customer), (first.treasury, &first.customer));
    let now = record.chain.head().await.unwrap();
    assert!(now.number >= head.number, "blocks are lost: {} then {}", head.number, now.number);
    // Chain time went on block by block, whatever the wall clock did meanwhile.
    let (blocks, secs) = (now.number - head.number, now.timestamp - head.timestamp);
    assert!(secs <= blocks + 2, "{blocks} blocks took {secs} s of chain time");
    timeout(Duration::from_secs(60), again.stop()).await.unwrap();
    assert_eq!(processes_of(&dir), BTreeMap::new(), "processes are left");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_start_leaves_nothing_and_the_next_one_is_born() {
    let _turn = TURN.lock().await;
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("world");
    let interrupted = World::start(options(&dir), sleep(Duration::from_secs(3))).await;
    assert!(interrupted.is_err_and(|e| e.to_string().contains("interrupted")));
    let dir = dir.canonicalize().unwrap();
    assert_eq!(processes_of(&dir), BTreeMap::new(), "processes are left");
    let world = World::start(options(&dir), pending()).await.unwrap();
    assert!(world.file().unwrap().agent.url.is_some());
    world.stop().await;
}

#[tokio::test]
async fn what_cannot_work_is_refused_before_anything_starts() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("world");
    let anywhere = PathBuf::from("/bin/sh");
    let base = Options {
        programs: Programs {
            vivarium: anywhere.clone(),
            engine: anywhere.clone(),
            anvil: anywhere,
            project: scratch.path().to_owned(),
        },
        day_secs: Some(20),
        ..options_without_programs(&dir)
    };
    let refuse = async |options: Options| World::start(options, pending()).await.err().unwrap().to_string();
    let said = refuse(Options { lease_days: Some(2), ..base.clone() }).await;
    assert!(said.contains("take a longer --lease"), "{said}");
    let said = refuse(Options { lease_days: Some(31), ..base.clone() }).await;
    assert!(said.contains("1 to 30 days"), "{said}");
    let said = refuse(Options { seed: Some(economy::Usdc(1)), ..base.clone() }).await;
    assert!(said.contains("too little"), "{said}");
    let said = refuse(Options { lease_days: Some(3), ..base.clone() }).await;
    assert!(said.contains("model file") && said.contains("is missing"), "{said}");
    // A start that failed has fixed nothing.
    let said = refuse(Options { lease_days: Some(4), ..base }).await;
    assert!(said.contains("model file"), "{said}");
}

/// A world that has its agent goes on with that one's model. The file it was born with may be named again.
#[tokio::test]
async fn another_model_than_the_agents_is_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("world");
    let [own, other] = ["own", "other"].map(|name| scratch.path().join(format!("{name}.gguf")));
    std::fs::write(&own, "weights").unwrap();
    std::fs::write(&other, "weight2").unwrap();
    // A port that somebody holds: what is not refused before ends there.
    let held = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    known_world(&dir, [&own, &other], held.local_addr().unwrap().port());
    let refuse = async |model: &Path| {
        let options = Options { model: Some(model.to_owned()), ..options_without_programs(&dir) };
        World::start(options, pending()).await.err().unwrap().to_string()
    };
    let said = refuse(&other).await;
    assert!(said.contains("this world was born with --model own.gguf"), "{said}");
    let said = refuse(&own).await;
    assert!(!said.contains("--model"), "{said}");
}

/// Writes what a world whose agent has these models, for answers and for vectors, leaves in its folder.
fn known_world(dir: &Path, models: [&Path; 2], port: u16) {
    let ports = Ports { chain: port, ..Ports::choose(None, genesis::STEWARDS, genesis::PROVIDERS).unwrap() };
    let any = Address::repeat_byte(1);
    let contracts = Some(Contracts { usdc: any, lease_market: any, factory: any });
    let choices = Choices::default();
    let folder = Folder::create(dir).unwrap();
    let models = models.map(|file| Model::from_file(file).unwrap());
    let checked = [&models[0], &models[1]].map(|model| model.check().unwrap());
    let cid = |bytes: &str| store::cid::of_raw(bytes.as_bytes()).to_string();
    let weights =
        |at: usize| genesis::Weights { cid: cid(&models[at].name), model: &models[at], checked: &checked[at] };
    let steward = |n: u8| Steward {
        address: Address::repeat_byte(n),
        url: "http://127.0.0.1:1".to_owned(),
        share_recipient: Identity::generate().recipient().to_string(),
    };
    let names = genesis::Names {
        stewards: vec![steward(2), steward(3), steward(4)],
        beneficiary: any,
        code_cid: cid("code"),
        model: weights(0),
        embedding: weights(1),
        store_url: "http://127.0.0.1:1".to_owned(),
    };
    let manifest = genesis::manifest(&choices, names).to_toml().unwrap();
    std::fs::write(folder.join("manifest.toml"), manifest).unwrap();
    folder.write_json(INTERNAL_FILE, &Internal { version: 1, choices, ports, contracts, treasury: Some(any) }).unwrap();
}

fn options_without_programs(dir: &Path) -> Options {
    Options {
        data_dir: dir.to_owned(),
        fresh: false,
        day_secs: None,
        lease_days: None,
        seed: None,
        settle_after: None,
        hibernates: false,
        port: None,
        chain_ahead_secs: 0,
        chain_doors: BTreeMap::new(),
        threads: None,
        places: BTreeMap::new(),
        restart: false,
        model: None,
        programs: Programs {
            vivarium: PathBuf::new(),
            engine: PathBuf::new(),
            anvil: PathBuf::new(),
            project: PathBuf::new(),
        },
        progress: Progress::Silent,
    }
}

fn pid_of(world: &World, name: &str) -> Option<i32> {
    let pid = world.pids().into_iter().find(|(own, _)| own == name)?.1?;
    i32::try_from(pid).ok()
}
