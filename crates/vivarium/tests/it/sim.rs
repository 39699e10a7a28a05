//! `vivarium sim`, as a person calls it.

use serde_json::Value;
use std::process::{Command, Output};

fn sim(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_vivarium")).arg("sim").args(arguments).output().unwrap()
}

#[test]
fn lives_are_told_as_json_and_a_fault_that_nobody_knows_is_refused() {
    let output = sim(&["--from", "5", "--seeds", "2", "--days", "1", "--faults", "crash,reorg", "--json"]);
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let [first, second, sum] = &lines[..] else { panic!("{text}") };
    assert_eq!((first["seed"].as_u64(), second["seed"].as_u64()), (Some(5), Some(6)));
    assert_eq!((sum["lives"].as_u64(), sum["broken"].as_u64()), (Some(2), Some(0)));

    let refused = sim(&["--faults", "crash,meteor"]);
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(!refused.status.success() && said.contains("meteor"), "{said}");
}

#[test]
fn a_life_that_breaks_something_fails_and_is_told() {
    let output =
        sim(&["--from", "3", "--seeds", "1", "--days", "3", "--faults", "unserved", "--plant", "I2", "--json"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let [broken, sum] = &lines[..] else { panic!("{text}") };
    assert!(broken["broken"].as_str().is_some_and(|what| what.starts_with("I2:")), "{broken}");
    assert!(broken["story"].as_array().is_some_and(|story| story.len() > 5), "{broken}");
    assert_eq!(broken["repeat"], "vivarium sim --from 3 --seeds 1 --faults unserved --days 3 --plant I2");
    assert_eq!(sum["broken"], 1);
}

#[test]
fn a_year_writes_a_page_and_a_table() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("report");
    let output = sim(&["darwin", "--agents", "120", "--days", "10", "--json", "--out", out.to_str().unwrap()]);
    assert!(output.status.success(), "{output:?}");
    let summary: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(summary["all"]["born"].as_u64(), Some(120));
    let table = std::fs::read_to_string(out.join("darwin.csv")).unwrap();
    assert_eq!(table.lines().count(), 121);
    assert!(std::fs::read_to_string(out.join("darwin.html")).unwrap().contains("120 agents, 10 days"));
}
