//! OpenAI's Batch API in a world of real processes, by the official Python SDK through `vivarium proxy`; the node is killed
//! in the middle of a batch.

use super::world::{self, World, project, proxy, signal};
use serde_json::Value;
use std::process::{Child, Command};

const LINES: u64 = 40;

/// The proxy ends with the test.
struct Proxy(Child, String);

impl Drop for Proxy {
    fn drop(&mut self) {
        signal(self.0.id(), "TERM");
        let _ = self.0.wait();
    }
}

impl Proxy {
    /// A step of the program; its lines, or what it said where it failed.
    fn run(&self, step: &[&str]) -> Result<Vec<Value>, String> {
        let python = project().join(".vivarium/python/bin/python");
        assert!(python.is_file(), ".vivarium/python is missing: `cargo xtask setup` makes it");
        let out = Command::new(python)
            .arg("openai_batch.py")
            .arg(&self.1)
            .args(step)
            .current_dir(project().join("tests/clients"))
            .output()
            .expect("it runs");
        let said = String::from_utf8_lossy(&out.stdout).into_owned();
        if !out.status.success() {
            return Err(format!("{step:?}: {said} {}", String::from_utf8_lossy(&out.stderr)));
        }
        Ok(said.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e} in {line}"))).collect())
    }
}

#[test]
fn a_batch_outlives_a_kill_of_its_node_and_is_paid_once() {
    let _turn = world::turn();
    let mut world = World::start(&["--seed-usdc", "60"]);
    world.until("birth", |w| w.file()?["agent"]["url"].as_str().map(str::to_owned));
    world.until("the agent sells", |w| (w.agent()?["selling"] == true).then_some(()));
    let budget = ["--budget", "100/day", "--max-usdc", "20", "--scheme", "batch-settlement"];
    let (process, base_url) = proxy(&world.data_dir(), &budget);
    let proxy = Proxy(process, base_url);

    // Nothing can be stored before the first checkpoint.
    let lines = LINES.to_string();
    let begun =
        world.until("a batch", |_| proxy.run(&["begin", &lines]).map_err(|said| eprintln!("batches: {said}")).ok());
    let id = begun[0]["batch"].as_str().expect("its id").to_owned();
    let counts = |proxy: &Proxy| Some(proxy.run(&["counts", &id]).ok()?.remove(0));
    let told =
        world.until("some of its lines", |_| counts(&proxy)?["completed"].as_u64().filter(|completed| *completed >= 2));
    assert!(told < LINES, "it was over before it could be killed: {told}");

    let pid = world.world()["agent"]["pid"].as_u64().expect("a pid");
    signal(u32::try_from(pid).expect("a pid"), "KILL");
    world.until("another process", |w| {
        let now = w.file()?["agent"]["pid"].as_u64()?;
        (now != pid && w.agent()?["selling"] == true).then_some(())
    });
    let after = world.until("the batch after the restart", |_| counts(&proxy));
    assert!(after["completed"].as_u64() >= Some(told), "lines that were told of are lost: {told}, then {after}");

    let collected = proxy.run(&["collect", &id]).expect("its output");
    assert_eq!(collected[0]["answers"], LINES);
    let said = proxy.run(&["rest"]).expect("the rest of the API");
    assert!(said.iter().any(|line| line["vectors"] == 2), "{said:?}");
    world.until("the ledger", |w| w.agent().filter(|status| status["ledger_ok"] == true));
}
