//! Bytecode of the stand-ins of the contracts' own tests (contracts/test/Doubles.sol) for tests of other crates: a pool
//! behind SwapRouter02's ABI that gives what it is told to, wrapped ether, and a price feed that anybody sets.
//! `doubles.json` holds it, and is stale when that source has changed.

use alloy::primitives::hex;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::process::Command;
use std::sync::LazyLock;

const CONTRACTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../contracts");
const BYTECODE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/doubles.json");

alloy::sol! {
    /// RouterDouble: what it gives for a micro-USDC, and whether it keeps the buyer's minimum.
    function set(uint256 rate, bool honest);
}

pub mod feed {
    alloy::sol! {
        /// FeedDouble: an answer, since when, and as of when.
        function set(int256 answer, uint256 startedAt, uint256 updatedAt);
    }
}

/// Creation bytecode by name.
pub static DOUBLES: LazyLock<BTreeMap<String, Vec<u8>>> = LazyLock::new(|| {
    let source = std::fs::read(format!("{CONTRACTS}/test/Doubles.sol")).expect("the contracts' tests are there");
    let source = hex::encode(Sha256::digest(source));
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        write(&source);
    }
    let text = std::fs::read_to_string(BYTECODE).expect("doubles.json is there");
    let mut held: BTreeMap<String, String> = serde_json::from_str(&text).expect("names and hexadecimals");
    let of = held.remove("source").expect("names its source");
    assert_eq!(of, source, "doubles.json is stale: UPDATE_EXPECT=1 cargo test -p sim --test it thief");
    held.into_iter().map(|(name, code)| (name, hex::decode(code).expect("hexadecimal"))).collect()
});

fn write(source: &str) {
    let made = std::env::temp_dir().join(format!("doubles-{}", std::process::id()));
    let done = Command::new("node_modules/.bin/forge")
        .args(["build", "test/Doubles.sol", "--out"])
        .arg(made.join("out"))
        .arg("--cache-path")
        .arg(made.join("cache"))
        .current_dir(CONTRACTS)
        .status()
        .expect("forge is in contracts/node_modules: cargo xtask up puts it there");
    assert!(done.success(), "forge: {done}");
    let code = |name: &str| {
        let path = made.join(format!("out/Doubles.sol/{name}.json"));
        let text = std::fs::read_to_string(path).expect("forge wrote it");
        let artifact: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let code = artifact["bytecode"]["object"].as_str().expect("bytecode").to_owned();
        (name.to_owned(), code)
    };
    let mut held: BTreeMap<String, String> = ["FeedDouble", "RouterDouble", "WethDouble"].map(code).into();
    held.insert("source".to_owned(), source.to_owned());
    std::fs::write(BYTECODE, serde_json::to_string_pretty(&held).expect("text") + "\n").expect("doubles.json");
    std::fs::remove_dir_all(made).expect("its own folder");
}
