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

/// The parts in a hundred that a row tells behind these words.
fn percent(row: &str, words: &str) -> u32 {
    let (_, after) = row.split_once(words).unwrap_or_else(|| panic!("{words} in {row}"));
    let digits: String = after.trim_start().chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap_or_else(|e| panic!("{e}: {words} in {row}"))
}

/// The vectors' part of what `bench quality` measures, and floors well under it (docs/benchmarks.md): a model, a prompt
/// or arithmetic that is broken falls below them.
#[test]
fn vectors_are_as_good_as_they_are_said_to_be() {
    let rows = rows_of(&["quality", "--vectors", "--each", "1"]);
    assert_eq!(rows.len(), 4, "{rows:?}");
    for (row, name, floors) in [
        (&rows[0], "| sentiment: ", [40, 30, 30]),
        (&rows[1], "| topic: ", [80, 80, 55]),
        (&rows[2], "| intent: ", [55, 55, 50]),
    ] {
        assert!(row.starts_with(name), "{row}");
        for (words, floor) in ["| by names ", ", described ", " examples each "].into_iter().zip(floors) {
            assert!(percent(row, words) >= floor, "{words}{floor}: {row}");
        }
    }
    assert!(percent(&rows[3], "| first ") >= 75 && percent(&rows[3], "first three ") >= 85, "{}", rows[3]);
}
