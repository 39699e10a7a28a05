//! The peer says where it listens and ends with its input. `cargo test --no-run` makes the program, too.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

#[test]
fn it_says_where_it_listens_and_ends_with_its_input() {
    let address = "0x0000000000000000000000000000000000000001";
    let mut peer = Command::new(env!("CARGO_BIN_EXE_x402-axum-peer"))
        .args(["http://127.0.0.1:1", "31337", address, address, "100"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut line = String::new();
    BufReader::new(peer.stdout.take().unwrap()).read_line(&mut line).expect("a line");
    assert!(line.starts_with("{\"url\":\"http://127.0.0.1:"), "{line}");
    drop(peer.stdin.take());
    assert!(peer.wait().expect("it ends").success());
}
