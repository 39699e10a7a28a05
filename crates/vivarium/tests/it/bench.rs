//! The payment bench, with counts so small that its figures mean nothing: it must run, balance and write its table.

use crate::world::program;
use std::process::Command;

#[test]
fn the_payment_bench_runs_with_its_peer() {
    let counts = ["vouchers", "streams", "calls", "exact", "channels", "peer-calls", "flood-secs", "flood-max"];
    let numbers = ["200", "5", "40", "5", "3", "5", "1", "250"];
    let mut bench = Command::new(program());
    bench.args(["bench", "pay"]);
    for (count, number) in counts.iter().zip(numbers) {
        bench.args([format!("--{count}"), number.to_owned()]);
    }
    let out = bench.output().expect("it starts");
    let (said, why) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{said}{why}");
    let rows: Vec<&str> = said.lines().filter(|line| line.starts_with("| ")).collect();
    assert_eq!(rows.len(), 19, "{said}");
    assert!(rows.iter().all(|row| row.matches(" | ").count() == 2 && !row.contains("NaN")), "{said}");
    assert!(said.contains("transactions and gas of 81 calls on one channel | 3, "), "{said}");
}

/// A bench of the program that needs nothing but itself: its rows, each whole.
fn rows_of(arguments: &[&str]) -> Vec<String> {
    let out = Command::new(program()).arg("bench").args(arguments).output().expect("it starts");
    let (said, why) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{said}{why}");
    let rows: Vec<String> = said.lines().filter(|line| line.starts_with("| ")).skip(2).map(str::to_owned).collect();
    assert!(rows.iter().all(|row| row.matches(" | ").count() == 2 && !row.contains("NaN")), "{said}");
    rows
}

#[test]
fn the_journal_bench_runs_beside_a_plain_file() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().to_str().expect("text");
    let counts = ["--commits", "40", "--records", "3000", "--snapshot-mib", "1"];
    let rows = rows_of(&[&["journal", "--dir", path], &counts[..]].concat());
    assert_eq!(rows.len(), 7, "{rows:?}");
    assert!(rows[..3].iter().all(|row| row.contains("; ratio ")), "each beside the same disk: {rows:?}");
    assert!(rows[6].contains(" and 300 records after it"), "{rows:?}");
    assert_eq!(std::fs::read_dir(dir.path()).expect("readable").count(), 0, "nothing is left behind");
}

#[test]
fn the_bench_of_simulated_lives_runs() {
    let rows = rows_of(&["sim", "--short", "2", "--days", "1", "--agents", "110", "--year", "5"]);
    assert_eq!(rows.len(), 7, "{rows:?}");
    assert!(rows[..3].iter().all(|row| row.contains(" ms of CPU each")), "{rows:?}");
    assert!(rows[6].contains("darwin, 110 agent(s), 5 days") && rows[6].contains("110 alive"), "{rows:?}");
}
