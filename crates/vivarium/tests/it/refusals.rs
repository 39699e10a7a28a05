use alloy::primitives::Address;
use alloy::signers::local::PrivateKeySigner;
use serde_json::{Value, json};
use std::net::TcpListener;
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use vivarium::world::files::{AgentEntry, KeyEntry, WorldFile};

const NOBODY: &str = "0x0000000000000000000000000000000000000001";

fn vivarium(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vivarium"));
    command.args(arguments).env_remove("VIVARIUM_WORLD").output().unwrap()
}

/// Every refusal: nothing on standard output, one line on standard error, an exit code that is not 0.
fn refused(arguments: &[&str]) -> String {
    let output = vivarium(arguments);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success(), "{arguments:?} was accepted");
    assert!(output.stdout.is_empty(), "{arguments:?} wrote to standard output");
    assert_eq!(said.trim_end().lines().count(), 1, "{arguments:?} said: {said}");
    assert!(said.starts_with("vivarium: "), "{said}");
    said
}

#[test]
fn wrong_words_are_refused_in_one_line_that_says_where_to_read_on() {
    for (arguments, words) in [
        (&["up", "--no-such-flag"][..], &["--no-such-flag", "vivarium up --help"][..]),
        (&["up", "--day", "20"], &["20s, 10m or 24h", "vivarium up --help"]),
        (&["up", "--lease", "3"], &["days like 3d"]),
        (&["up", "--seed-usdc", "1abc"], &["1abc", "one dot"]),
        (&["up", "--customers", "-1"], &["-1"]),
        (&["fund", "0.0000001"], &["six decimals"]),
        (&["proxy"], &["--budget", "vivarium proxy --help"]),
        (&["proxy", "--budget", "1"], &["1/day or 0.25/day"]),
        (&["frobnicate"], &["frobnicate", "vivarium --help"]),
        (&["steward", "pause"], &["--key"]),
        (&["steward", "pause", "--key", "k", "--chain-id", "1"], &["--rpc <URL>", "vivarium steward --help"]),
        (&["birth", "--abort", NOBODY, "--seed-usdc", "1"], &["--seed-usdc", "vivarium birth --help"]),
        (&["birth", "--abort", NOBODY, "manifest.toml"], &["MANIFEST"]),
        (&["birth", "manifest.toml", "--json"], &["--yes"]),
        (&["facilitator", "--key", "k", "--journal", "j", "--ether", "1", "--token", NOBODY], &["--rpc <URL>"]),
        (&["facilitator", "--key", "k", "--journal", "j", "--ether", "1", "--chain-id", "1"], &["--rpc <URL>"]),
    ] {
        let said = refused(arguments);
        for word in words {
            assert!(said.contains(word), "{arguments:?} said: {said}");
        }
    }
}

#[test]
fn commands_without_a_world_say_how_to_get_one() {
    let empty = tempfile::tempdir().unwrap();
    let dir = empty.path().to_str().unwrap();
    for command in ["status", "watch", "log", "audit"] {
        assert!(refused(&[command, "--data-dir", dir]).contains("start one with `vivarium up`"));
    }
    assert!(refused(&["ask", "--data-dir", dir, "hello"]).contains("start one with `vivarium up`"));
    assert!(refused(&["proxy", "--data-dir", dir, "--budget", "1/day"]).contains("start one with `vivarium up`"));
    assert!(refused(&["fund", "--data-dir", dir, "1"]).contains("start one with `vivarium up`"));
}

#[test]
fn a_daemon_without_its_configuration_names_the_file() {
    for daemon in ["provider", "steward"] {
        let said = refused(&[daemon, "run", "--config", "/nowhere/config.toml"]);
        assert!(said.contains("/nowhere/config.toml"), "{said}");
    }
    let said = refused(&["birth", "/nowhere/manifest.toml"]);
    assert!(said.contains("/nowhere/manifest.toml"), "{said}");
}

#[test]
fn a_manifest_with_an_unknown_key_is_refused_by_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("manifest.toml");
    std::fs::write(&path, "name = \"x\"\nowner = \"me\"\n").unwrap();
    assert!(refused(&["birth", path.to_str().unwrap()]).contains("owner"));
}

/// An order with `--rpc` alone goes to the world's treasury, by that endpoint.
#[test]
fn the_endpoint_that_is_named_is_asked() {
    let dir = tempfile::tempdir().unwrap();
    let (any, key) = (Address::repeat_byte(1), dir.path().join("key"));
    std::fs::write(&key, PrivateKeySigner::random().to_bytes().to_string()).unwrap();
    let world = WorldFile {
        version: WorldFile::VERSION,
        rpc_url: "http://127.0.0.1:1".into(),
        chain_id: 31_337,
        usdc: any,
        treasury: any,
        lease_market: any,
        channel: None,
        agent: AgentEntry::default(),
        providers: Vec::new(),
        stewards: Vec::new(),
        customer: KeyEntry { address: any, key_file: key.clone() },
    };
    std::fs::write(dir.path().join("world.json"), serde_json::to_vec(&world).unwrap()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let rpc = format!("http://{}", listener.local_addr().unwrap());
    let is_asked = Arc::new(AtomicBool::new(false));
    let hears = is_asked.clone();
    // Hangs up on whoever asks.
    std::thread::spawn(move || listener.incoming().for_each(|_| hears.store(true, Ordering::SeqCst)));
    let [dir, key] = [dir.path(), &key].map(|path| path.to_str().unwrap());
    let said = refused(&["steward", "pause", "--key", key, "--data-dir", dir, "--rpc", &rpc]);
    assert!(said.contains("cannot be read") && is_asked.load(Ordering::SeqCst), "{said}");
}

/// A steward sees what it signs before anything is signed: without a terminal `--yes` says that somebody has.
#[test]
fn an_order_is_shown_before_it_is_signed() {
    let dir = tempfile::tempdir().unwrap();
    let (order, key, none) = (dir.path().join("order.json"), dir.path().join("key"), dir.path().join("none"));
    let signer = PrivateKeySigner::random();
    std::fs::write(&key, signer.to_bytes().to_string()).unwrap();
    let file = json!({
        "chain_id": 31_337, "treasury": Address::repeat_byte(0x77), "action": "evict", "argument": "0x0", "nonce": 4,
        "deadline": 1_900_000_000, "threshold": 1, "stewards": [{ "address": signer.address(), "safe": null }],
        "signatures": [],
    });
    std::fs::write(&order, file.to_string()).unwrap();
    let [at, key, none] = [&order, &key, &none].map(|path| path.to_str().unwrap());
    let said = refused(&["steward", "approve", at, "--key", key]);
    assert!(said.contains("--yes"), "{said}");
    let words = format!("evict every host: treasury {} on chain 31337, order number 4", Address::repeat_byte(0x77));
    // Shown although there is nothing to sign with.
    let output = vivarium(&["steward", "approve", at, "--key", none, "--yes"]);
    assert!(!output.status.success());
    assert!(String::from_utf8(output.stdout).unwrap().starts_with(&words));
    assert_eq!(std::fs::read_to_string(&order).unwrap(), file.to_string(), "nothing was signed");

    let output = vivarium(&["steward", "approve", at, "--key", key, "--yes"]);
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && said.starts_with(&words) && said.contains("enough have signed"), "{said}");
    let signed: Value = serde_json::from_slice(&std::fs::read(&order).unwrap()).unwrap();
    assert_eq!(signed["signatures"][0]["signer"], json!(signer.address()));
}

#[test]
fn every_command_teaches_itself() {
    let commands = [
        "up",
        "birth",
        "status",
        "watch",
        "ask",
        "proxy",
        "log",
        "audit",
        "fund",
        "receipt",
        "facilitator",
        "steward",
        "provider",
        "store",
    ];
    for command in commands {
        let help = vivarium(&[command, "--help"]);
        let text = String::from_utf8(help.stdout).unwrap();
        assert!(help.status.success() && text.lines().count() > 6, "{command} --help: {text}");
    }
}

/// Output piped into `head` must not look like a crash.
#[test]
fn a_reader_that_leaves_early_is_no_crash() {
    use std::process::Stdio;
    let mut child = Command::new(env!("CARGO_BIN_EXE_vivarium"))
        .args(["up", "--help"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(!String::from_utf8(output.stderr).unwrap().contains("panicked"));
}
