//! `vivarium store` as scripts use it: JSON on standard output, exit statuses that say what went wrong.

use crate::world::program;
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use store::Blocks;
use store::dag::{Link, Node};

/// Nobody listens there.
const GONE: &str = "http://127.0.0.1:1";

/// Exit status, standard output and standard error.
fn store(dir: &Path, arguments: &[&str]) -> (i32, String, String) {
    let output = Command::new(program()).arg("store").args(arguments).arg("--data-dir").arg(dir).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn json(dir: &Path, arguments: &[&str]) -> Value {
    let (status, out, err) = store(dir, &[arguments, &["--json"]].concat());
    assert_eq!((status, err.as_str()), (0, ""), "{arguments:?}");
    serde_json::from_str(&out).unwrap()
}

#[test]
fn every_command_speaks_json_and_its_exit_status_says_what_went_wrong() {
    let home = tempfile::tempdir().unwrap();
    let dir = &home.path().join("store");
    let file = home.path().join("file");
    std::fs::write(&file, vec![7; 300_000]).unwrap();
    let (file, out) = (file.to_str().unwrap(), home.path().join("out"));
    let out = out.to_str().unwrap();

    let added = json(dir, &["add", file]);
    assert_eq!(added["bytes"], 300_000);
    let cid = added["cid"].as_str().unwrap();
    assert!(cid.starts_with("bafk"), "{cid}");
    let old = json(dir, &["add", file, "--profile", "unixfs-v0-2015"]);
    assert!(old["cid"].as_str().unwrap().starts_with("Qm"), "{old}");
    assert_eq!(json(dir, &["ls"]).as_array().unwrap().len(), 2);
    assert_eq!(json(dir, &["pin", cid, "--reason", "weights"])["reasons"][1], "weights");
    assert_eq!(json(dir, &["unpin", cid, "--reason", "weights"])["reasons"][0], "added");
    assert_eq!(json(dir, &["verify"])["damaged"], serde_json::json!([]));
    let car = home.path().join("car");
    let car = car.to_str().unwrap();
    assert_eq!(json(dir, &["export", cid, car, "--car-version", "2"])["blocks"], 1);
    assert_eq!(json(&home.path().join("other"), &["import", car])["roots"][0], cid);
    assert_eq!(json(dir, &["get", cid, out])["bytes"], 300_000);
    assert_eq!(json(dir, &["gc"])["removed_blocks"], 0);

    let blocks = Blocks::open(dir).unwrap();
    let mut below = store::cid::of_raw(b"leaf");
    for _ in 0..70 {
        let node = Node { links: vec![Link { cid: below, name: String::new(), tsize: 0 }], data: vec![] }.encode();
        below = store::cid::of_dag_pb(&node);
        blocks.put_later(&below, &node).unwrap();
    }
    let deep = below.to_string();
    let deep = deep.as_str();
    let absent = "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku";
    for (arguments, expected, words) in [
        (&["ls", "hello"][..], 2, "is not a CID"),
        (&["add", "/nowhere"], 2, "there is no"),
        (&["add", file, "--profile", "new"], 2, "is no profile"),
        (&["get", absent, "new"], 3, "no source is named"),
        (&["unpin", absent], 3, "is not pinned"),
        (&["get", absent, "new", "--from", "http://127.0.0.1:1"], 7, "cannot be had"),
        (&["import", file], 4, "CAR"),
        (&["arweave", "status", cid, "--gateway", "http://127.0.0.1:1"], 3, "was not sent"),
        (&["kubo", "add", cid, "--api", "http://127.0.0.1:1"], 7, "did not serve"),
        (&["verify", deep], 5, "levels deep"),
        (&["arweave", "put", cid, "--gateway", GONE, "--key", "/nowhere", "--reward-max", "1"], 8, "/nowhere"),
    ] {
        let (status, out, err) = store(dir, arguments);
        assert_eq!((status, out.as_str()), (expected, ""), "{arguments:?}: {err}");
        assert!(err.contains(words) && err.trim_end().lines().count() == 1, "{arguments:?}: {err}");
        if words == "is no profile" {
            // Words that are no command are told before any command begins.
            continue;
        }
        let (status, out, err) = store(dir, &[arguments, &["--json"]].concat());
        let said: Value = serde_json::from_str(&out).unwrap_or_else(|e| panic!("{arguments:?}: {e} in {out}"));
        assert_eq!((status, err.as_str(), &said["status"]), (expected, "", &expected.into()), "{arguments:?}");
        assert!(said["error"].as_str().unwrap().contains(words), "{arguments:?}: {said}");
    }
    // A damaged block is found, told and removed; after that it is missing.
    let shard =
        std::fs::read_dir(dir.join("blocks")).unwrap().map(|e| e.unwrap().path().join(cid)).find(|p| p.exists());
    std::fs::write(shard.unwrap(), b"bit rot").unwrap();
    let (status, out, _) = store(dir, &["verify", cid, "--json"]);
    assert_eq!((status, serde_json::from_str::<Value>(&out).unwrap()["damaged"][0].as_str()), (4, Some(cid)));
    assert_eq!(store(dir, &["verify", cid]).0, 3);
}

#[test]
fn a_disk_that_is_full_or_none_has_a_status_of_its_own() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("file");
    std::fs::write(&file, vec![7; 300_000]).unwrap();
    let (path, dir) = (file.to_str().unwrap(), home.path().join("store"));
    // No file may grow beyond 100 blocks of 512 or 1024 bytes.
    let full = |arguments: &[&str]| {
        let out = Command::new("sh")
            .args(["-c", "trap '' XFSZ; ulimit -f 100; exec \"$@\"", "sh"])
            .arg(program())
            .arg("store")
            .args(arguments)
            .arg("--data-dir")
            .arg(&dir)
            .output()
            .unwrap();
        (out.status.code().unwrap(), String::from_utf8(out.stderr).unwrap())
    };
    let (status, err) = full(&["add", path]);
    assert_eq!(status, 6, "{err}");
    assert!(err.contains("the disk is full; free space and try again"), "{err}");
    let (status, _, err) = store(&file.join("below a file"), &["ls"]);
    assert_eq!(status, 1, "{err}");
    assert!(err.contains("cannot make"), "{err}");
}

#[test]
fn a_source_that_is_dropped_is_named_to_people() {
    let home = tempfile::tempdir().unwrap();
    let (there, here) = (home.path().join("there"), home.path().join("here"));
    let file = home.path().join("file");
    std::fs::write(&file, vec![7; 300_000]).unwrap();
    let cid = json(&there, &["add", file.to_str().unwrap()])["cid"].as_str().unwrap().to_owned();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let served = |router: axum::Router| {
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        runtime.spawn(async move { axum::serve(listener, router).await.unwrap() });
        url
    };
    let good = served(store::gateway::router(Blocks::open(&there).unwrap()));
    let liar = served(axum::Router::new().fallback(|| async { "other bytes" }));
    // Alone the liar is named in the error; beside an honest one it may not even be asked for the only block.
    let mut dropped = 0;
    for (number, first) in [&liar, &good].into_iter().enumerate() {
        let second = if first == &liar { &good } else { &liar };
        let out = home.path().join(format!("out{number}"));
        let dir = here.join(number.to_string());
        let (status, said, err) = store(&dir, &["get", &cid, out.to_str().unwrap(), "--from", first, "--from", second]);
        assert_eq!(status, 0, "{err}");
        assert!(said.contains("300000 bytes in"), "{said}");
        if !err.is_empty() {
            dropped += 1;
            assert!(err.contains(&format!("{liar} was dropped: sent 11 bytes that are not block")), "{err}");
        }
    }
    assert!(dropped > 0, "the first source that is named is asked first");
}

#[test]
fn the_store_bench_runs() {
    // Its cold start is a world.
    let _turn = crate::world::turn();
    let out = Command::new(program()).args(["bench", "store", "--mebibytes", "8"]).output().expect("it starts");
    let (said, why) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{said}{why}");
    let rows: Vec<&str> = said.lines().filter(|line| line.starts_with("| ")).collect();
    // One more where Helia is installed.
    assert!((14..=15).contains(&rows.len()), "{said}");
    assert!(rows.iter().all(|row| row.matches(" | ").count() == 2 && !row.contains("NaN")), "{said}");
}

#[test]
fn a_served_store_says_in_json_where() {
    let home = tempfile::tempdir().unwrap();
    let mut serving = Command::new(program())
        .args(["store", "serve", "--listen", "127.0.0.1:0", "--json", "--data-dir"])
        .arg(home.path().join("store"))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(serving.stdout.take().unwrap()).read_line(&mut line).unwrap();
    serving.kill().unwrap();
    serving.wait().unwrap();
    let said: Value = serde_json::from_str(&line).unwrap();
    let url = said["url"].as_str().unwrap();
    assert!(url.starts_with("http://127.0.0.1:") && !url.ends_with(":0"), "{url}");
}
