//! The contracts: built by forge from npm, read by the workspace only as `contracts/abi/*.json`.
//!
//! The JSON files are committed, so a Rust build needs neither Node nor the Solidity compiler. What keeps them honest is
//! `contracts/abi/SOURCES.sha256`: one line for everything that goes in and for every file that came out.

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const DIGESTS: &str = "abi/SOURCES.sha256";
/// What is to be audited in one sitting: [`lines`] that say something, at most.
pub const LINES_MAX: usize = 1_000;

/// Compiles the contracts and writes `contracts/abi`. Needs `npm ci` to have run there; works off line.
pub fn build(root: &Path) -> Result<()> {
    run(root, Command::new("node").arg("build.mjs"))
}

/// The same tests under a profile of foundry.toml: `default`, `ci` or `deep`, each with more runs than the one before.
pub fn test_profile(root: &Path, profile: &str) -> Result<()> {
    run(root, &mut forge_test(root, profile))
}

/// `forge test` under a profile, to be run as it is or with more arguments.
pub fn forge_test(root: &Path, profile: &str) -> Command {
    let mut command = Command::new(root.join("contracts/node_modules/.bin/forge"));
    command.arg("test").env("FOUNDRY_PROFILE", profile).current_dir(root.join("contracts"));
    command
}

/// Compares `contracts/abi` with the sources by digest alone, and names each file that does not fit.
///
/// # Errors
/// A stale, missing or unlisted file: run `cargo xtask contracts` and commit the result.
pub fn check_fresh(root: &Path) -> Result<()> {
    let stale = stale_files(&root.join("contracts"))?;
    if !stale.is_empty() {
        bail!("contracts/abi does not fit its sources; run `cargo xtask contracts`: {}", stale.join(", "));
    }
    Ok(())
}

fn run(root: &Path, command: &mut Command) -> Result<()> {
    let shown = format!("{command:?}");
    let status = command.current_dir(root.join("contracts")).status().with_context(|| {
        format!("cannot start {shown} in contracts: Node.js and `npm ci` there are needed (cargo xtask setup)")
    })?;
    if !status.success() {
        bail!("{shown} in contracts failed ({status})");
    }
    Ok(())
}

/// Every file whose digest is not the listed one, every listed file that is gone, every source that is not listed.
fn stale_files(contracts: &Path) -> Result<Vec<String>> {
    let list = contracts.join(DIGESTS);
    let text = fs::read_to_string(&list).with_context(|| format!("cannot read {}", list.display()))?;
    let listed = parse(&text)?;
    let mut stale = Vec::new();
    for (path, digest) in &listed {
        match fs::read(contracts.join(path)) {
            Ok(bytes) if hex::encode(Sha256::digest(&bytes)) == *digest => {}
            Ok(_) => stale.push(path.clone()),
            Err(error) => stale.push(format!("{path} ({error})")),
        }
    }
    for source in sources(contracts)? {
        if !listed.contains_key(&source) {
            stale.push(format!("{source} (not listed)"));
        }
    }
    Ok(stale)
}

/// The format of `sha256sum`: digest, two spaces, path from `contracts/`.
fn parse(text: &str) -> Result<BTreeMap<String, String>> {
    text.lines()
        .map(|line| {
            let (digest, path) =
                line.split_once("  ").with_context(|| format!("{DIGESTS}: not a digest and a path: {line:?}"))?;
            Ok((path.to_owned(), digest.to_owned()))
        })
        .collect()
}

/// Paths of all `.sol` files under `src`, from `contracts/`, with forward slashes.
fn sources(contracts: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::from("src")];
    while let Some(folder) = folders.pop() {
        let entries =
            fs::read_dir(contracts.join(&folder)).with_context(|| format!("cannot list {}", folder.display()))?;
        for entry in entries {
            let entry = entry?;
            let path = folder.join(entry.file_name());
            if entry.file_type()?.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "sol") {
                found.push(path.to_string_lossy().replace('\\', "/"));
            }
        }
    }
    Ok(found)
}

/// Lines that say something, of what is deployed: interfaces are documentation and declare only, `dev` never is where
/// money has value. See docs/decisions/0008-a-treasury-in-two-halves.md for what counts as a line.
pub fn lines(contracts: &Path) -> Result<usize> {
    let mut lines = 0;
    for source in sources(contracts)?.iter().filter(|source| !only_declares(source)) {
        let path = contracts.join(source);
        lines += code_lines(&fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?);
    }
    Ok(lines)
}

fn only_declares(source: &str) -> bool {
    source.starts_with("src/interfaces/") || source.starts_with("src/dev/")
}

/// Lines of Solidity that say something: no comments, blanks, imports, pragmas, nor brackets standing alone.
fn code_lines(text: &str) -> usize {
    let mut in_block = false;
    let mut in_import = false;
    let says = |line: &str| {
        let line = line.trim();
        if line.starts_with("/*") {
            in_block = true;
        }
        let comment = in_block || line.starts_with("//");
        if line.ends_with("*/") {
            in_block = false;
        }
        in_import |= line.starts_with("import ");
        let import = in_import;
        if line.ends_with(';') {
            in_import = false;
        }
        !comment && !import && !line.starts_with("pragma ") && line.chars().any(|c| !"{}();".contains(c))
    };
    text.lines().map(says).filter(|says| *says).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// EIP-170.
    const CODE_BYTES_MAX: usize = 24_576;
    const COLUMNS_MAX: usize = 120;

    #[test]
    fn only_lines_that_say_something_count() {
        let text = "// a\npragma solidity ^0.8.24;\nimport {A} from \"a\";\n\n/// b\ncontract C {\n    uint256 x; // c\n    )\n}\n";
        assert_eq!(code_lines(text), 2);
        assert_eq!(code_lines("/* a\n b\n */\nuint256 x;\n"), 1);
    }

    #[test]
    fn the_fees_page_fits_the_snapshots() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("in the root");
        let page = fs::read_to_string(root.join("docs/concepts/fees.md")).unwrap();
        for group in ["treasury", "market"] {
            let text = fs::read_to_string(root.join(format!("contracts/snapshots/{group}.json"))).unwrap();
            let gas: BTreeMap<String, String> = serde_json::from_str(&text).unwrap();
            for (entry, gas) in gas {
                let (thousands, rest) = gas.split_at(gas.len() - 3);
                let (millions, thousands) = thousands.split_at(thousands.len().saturating_sub(3));
                let comma = if millions.is_empty() { "" } else { "," };
                let row = format!("| {entry} | {millions}{comma}{thousands},{rest} |");
                assert!(page.contains(&row), "docs/concepts/fees.md lacks {row}");
            }
        }
    }

    /// But for what nobody sends: a contract is initialized by what makes it, and a purse swept by its treasury.
    #[test]
    fn every_entry_has_its_gas() {
        const NOT_SENT: [(&str, &str); 3] = [("Treasury", "initialize"), ("Purse", "initialize"), ("Purse", "sweep")];
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("in the root");
        let json = |path: &str| -> serde_json::Value {
            serde_json::from_str(&fs::read_to_string(root.join(path)).unwrap()).unwrap()
        };
        let rows = ["treasury", "market"].map(|group| json(&format!("contracts/snapshots/{group}.json")));
        let rows: BTreeSet<&str> = rows
            .iter()
            .flat_map(|group| group.as_object().unwrap().keys())
            .map(|row| row.split(" (").next().unwrap())
            .collect();
        let mut entries = 0;
        for contract in ["Treasury", "LeaseMarket", "Purse", "TreasuryFactory"] {
            let file = json(&format!("contracts/abi/{contract}.json"));
            let abi = file["abi"].as_array().or(file.as_array()).unwrap();
            let changes = |entry: &&serde_json::Value| {
                let mutability = entry["stateMutability"].as_str().unwrap_or("view");
                entry["type"] == "function" && !["view", "pure"].contains(&mutability)
            };
            for name in abi.iter().filter(changes).map(|entry| entry["name"].as_str().unwrap()) {
                entries += 1;
                assert!(
                    rows.contains(name) || NOT_SENT.contains(&(contract, name)),
                    "{contract}.{name} has no gas snapshot"
                );
            }
        }
        assert!(entries > 50, "{entries}");
    }

    /// What docs/concepts/fees.md says of a month, counted by the rules that agents run by: 1 % of a rent of $30 at Base's
    /// floor of 0.005 gwei and $2,500 for an ETH is 24 M gas. The default is the shortest whole hour that meets it.
    #[test]
    fn a_months_fees_are_what_the_page_says() {
        const GAS_GOAL: u64 = 24_000_000;
        const TRANSFER_GAS: u64 = 21_000;
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("in the root");
        let text = fs::read_to_string(root.join("contracts/snapshots/treasury.json")).unwrap();
        let snapshot: BTreeMap<String, String> = serde_json::from_str(&text).unwrap();
        let gas = |entry: &str| -> u64 { snapshot[entry].parse().unwrap() };
        let month = |hours: u32| {
            let (month, month_secs) = (Month::with_heartbeat_every(hours), 30 * 86_400);
            gas("rent")
                + gas("announce")
                + gas("handover")
                + gas("release")
                + gas("refuel (both)")
                + month.top_ups * gas("topUp")
                // Births pay stewards nothing for it, unless the manifest says so.
                + month.commits * gas("commit (two stewards)")
                // Each of the two operators names its relay, and the first one's two keys send their gas home.
                + 2 * gas("setRelay")
                + 2 * TRANSFER_GAS
                // Claims follow income; every third day is an assumption.
                + 10 * gas("claimAndSettle (3 rows)")
                + month_secs / (3_600 * u64::from(hours)) * gas("heartbeat")
        };
        let page = fs::read_to_string(root.join("docs/concepts/fees.md")).unwrap();
        for hours in [1, 2, 3, 4, 5, 6, 8, 12] {
            let gas = month(hours);
            let row = format!("| {hours} h | {}.{} M |", gas / 1_000_000, gas / 100_000 % 10);
            assert!(page.contains(&row), "docs/concepts/fees.md lacks {row}");
        }
        let default = economy::Timers::real().heartbeat_every / 3_600;
        assert!(month(default) <= GAS_GOAL && month(default - 1) > GAS_GOAL, "{}", month(default));
        let (bold, month) = (month(default), Month::with_heartbeat_every(default));
        let said = [
            format!("**{}.{} M gas, ", bold / 1_000_000, bold / 100_000 % 10),
            format!("{} top-ups", month.top_ups),
            format!("{} checkpoints", month.commits),
        ];
        for words in said {
            assert!(page.contains(&words), "docs/concepts/fees.md lacks {words:?}");
        }
    }

    /// How often a month's transactions come about, by the default policy of a public chain.
    struct Month {
        top_ups: u64,
        commits: u64,
    }

    impl Month {
        /// Fence and answer time follow the heartbeat by half an hour each, as in the default timers.
        fn with_heartbeat_every(hours: u32) -> Self {
            let real = economy::Timers::real();
            let every = 3_600 * hours;
            let timers =
                economy::Timers { heartbeat_every: every, fence: every + 1_800, answer_time: every + 3_600, ..real };
            assert!(every != real.heartbeat_every || timers == real, "the defaults lie apart otherwise");
            let usdc = economy::Usdc;
            let wishes = economy::Wishes {
                term: 30 * real.day,
                prepay_secs: 2 * real.day,
                margin_pct: 20,
                min_call: usdc(1),
                max_call: usdc(1),
                block_secs: 2,
            };
            let policy = economy::Policy::new(wishes, &timers);
            let month = 30 * u64::from(real.day);
            // Each top-up fills from the low mark to the whole prepayment, for two leases.
            let limits = economy::Limits { prepay_max: wishes.prepay_secs, ..Default::default() };
            let top_ups = 2 * month.div_ceil(u64::from(wishes.prepay_secs - policy.escrow_low(&limits)));
            // The routine ones, and the move's own.
            let commits = month / u64::from(policy.checkpoint_every) + 1;
            Self { top_ups, commits }
        }
    }

    /// Whoever reads that a rule is held by a test must find it: "`File.t.sol` name, name" on any page.
    #[test]
    fn the_tests_that_pages_name_are_there() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("in the root");
        let mut named = 0;
        for page in ["concepts/lease-market.md", "concepts/oversight.md", "concepts/treasury.md", "operating/keys.md"] {
            let text = fs::read_to_string(root.join("docs").join(page)).unwrap();
            let mut files = text.split('`').skip(1);
            while let Some(file) = files.next() {
                let after = files.next().unwrap_or_default();
                if !file.ends_with(".t.sol") {
                    continue;
                }
                let source = fs::read_to_string(root.join("contracts/test").join(file));
                let source = source.unwrap_or_else(|error| panic!("docs/{page} names {file}: {error}"));
                let list = after.split(['|', '(', ';']).next().unwrap_or_default();
                for name in list.split([',', ' ']).filter(|word| word.contains('_')) {
                    let is_there =
                        ["test_", "invariant_"].iter().any(|p| source.contains(&format!("function {p}{name}(")));
                    assert!(is_there, "docs/{page} names {name}, which {file} does not have");
                    named += 1;
                }
            }
        }
        assert!(named > 30, "only {named} names were found: the pages are written in another way");
    }

    /// What an outsider may call, be refused with, or read is what a test calls, is refused with, or compares: functions and
    /// errors stand somewhere after a dot, events after `emit`. A declaration or a comment is no test.
    #[test]
    fn every_entry_error_and_event_is_named_by_a_test() {
        /// In the ABI, and never seen from outside.
        const UNSEEN: [(&str, &str); 4] = [
            ("EIP712DomainChanged", "OpenZeppelin declares it; a domain here never changes"),
            ("InvalidShortString", "how OpenZeppelin reads a name that it stored; ours is short and constant"),
            ("StringTooLong", "the same: for names of 32 bytes and more"),
            ("InsufficientBalance", "the factory sends no value with a creation, it sends it with `initialize`"),
        ];
        let contracts = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("in the root").join("contracts");
        let mut tests = String::new();
        for entry in fs::read_dir(contracts.join("test")).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "sol") {
                let text = fs::read_to_string(path).unwrap();
                tests.extend(text.lines().flat_map(|line| [line.split("//").next().unwrap_or_default(), "\n"]));
            }
        }
        let word =
            |text: &str| -> String { text.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect() };
        let used: BTreeSet<_> = tests.split('.').skip(1).map(word).collect();
        let emitted: BTreeSet<_> = tests.split("emit IRecord.").skip(1).map(word).collect();
        let mut seen = BTreeSet::new();
        let mut unnamed = Vec::new();
        for contract in ["Treasury", "Oversight", "Purse", "LeaseMarket", "TreasuryFactory"] {
            let text = fs::read_to_string(contracts.join(format!("abi/{contract}.json"))).unwrap();
            let file: serde_json::Value = serde_json::from_str(&text).unwrap();
            for item in file["abi"].as_array().expect("an ABI") {
                let (kind, name) = (item["type"].as_str().expect("a type"), item["name"].as_str().unwrap_or_default());
                let is_named = match kind {
                    "function" | "error" => used.contains(name),
                    "event" => emitted.contains(name),
                    _ => continue,
                };
                seen.insert((name.to_owned(), is_named));
                if !is_named && !UNSEEN.iter().any(|(unseen, _)| *unseen == name) {
                    unnamed.push(format!("{contract}: {kind} {name}"));
                }
            }
        }
        assert!(unnamed.is_empty(), "no test in contracts/test names {}", unnamed.join(", "));
        assert!(seen.len() > 150, "only {} names were found: the ABIs are written in another way", seen.len());
        for (unseen, why) in UNSEEN {
            assert!(seen.contains(&(unseen.to_owned(), false)), "{unseen} is no exception any more: {why}");
        }
    }

    /// The second half runs in the first one's storage, so neither may have a variable of its own.
    #[test]
    fn only_the_base_declares_storage() {
        let contracts = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("in the root").join("contracts");
        for name in ["Treasury", "Oversight"] {
            let text = fs::read_to_string(contracts.join(format!("src/{name}.sol"))).unwrap();
            let body = text.lines().filter(|l| l.starts_with("    ") && !l.starts_with("     ") && !l.contains("///"));
            let own = body.filter(|l| l.contains(';') && !l.contains('{') && !l.trim_start().starts_with("using "));
            let own: Vec<_> = own.filter(|l| !l.contains(" constant ") && !l.contains(" immutable ")).collect();
            assert!(own.is_empty(), "{name}: {own:?}");
        }
    }

    #[test]
    fn the_contracts_are_small_enough_to_read() {
        let contracts = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("in the root").join("contracts");
        for source in sources(&contracts).unwrap() {
            let text = fs::read_to_string(contracts.join(&source)).unwrap();
            // The count can't be met by longer lines. Type strings of EIP-712 can't be broken.
            let long =
                text.lines().find(|l| l.chars().count() > COLUMNS_MAX && !l.contains('"') && !only_declares(&source));
            assert_eq!(long, None, "{source}");
        }
        let lines = lines(&contracts).unwrap();
        assert!(lines <= LINES_MAX, "{lines} lines of contracts, {LINES_MAX} are allowed");
    }

    #[test]
    fn each_contract_fits_eip170() {
        let contracts = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("in the root").join("contracts");
        // Both halves have a short constructor, so their creation code bounds what is deployed.
        for name in ["Oversight", "Treasury"] {
            let text = fs::read_to_string(contracts.join(format!("abi/{name}.json"))).unwrap();
            let (_, code) = text.split_once("\"bytecode\":\"0x").expect("bytecode");
            let bytes = code.split('"').next().expect("closed").len() / 2;
            assert!(bytes <= CODE_BYTES_MAX, "{name}: {bytes} bytes of creation code");
        }
    }

    #[test]
    fn committed_abi_fits_its_sources() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the root");
        check_fresh(root).unwrap();
    }

    #[test]
    fn a_changed_a_missing_and_a_new_source_are_named() {
        let dir = std::env::temp_dir().join(format!("vivarium-xtask-contracts-{}", std::process::id()));
        let contracts = dir.join("contracts");
        fs::create_dir_all(contracts.join("src/lib")).unwrap();
        fs::create_dir_all(contracts.join("abi")).unwrap();
        let write = |path: &str, text: &str| fs::write(contracts.join(path), text).unwrap();
        let line = |path: &str, text: &str| format!("{}  {path}\n", hex::encode(Sha256::digest(text)));
        write("src/A.sol", "a");
        write("src/lib/B.sol", "b");
        write(DIGESTS, &(line("src/A.sol", "a") + &line("src/lib/B.sol", "b")));
        check_fresh(&dir).unwrap();

        write("src/A.sol", "changed");
        fs::remove_file(contracts.join("src/lib/B.sol")).unwrap();
        write("src/lib/C.sol", "c");
        let said = check_fresh(&dir).unwrap_err().to_string();
        fs::remove_dir_all(&dir).unwrap();
        for name in ["src/A.sol", "src/lib/B.sol (", "src/lib/C.sol (not listed)"] {
            assert!(said.contains(name), "{name} is missing in: {said}");
        }
    }
}
