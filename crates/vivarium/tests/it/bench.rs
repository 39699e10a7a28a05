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
