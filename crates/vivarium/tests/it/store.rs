//! `vivarium store` as scripts use it: JSON on standard output, exit statuses that say what went wrong.

use crate::world::program;
use serde_json::Value;
use std::path::Path;
use std::process::Command;

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
    ] {
        let (status, out, err) = store(dir, arguments);
        assert_eq!((status, out.as_str()), (expected, ""), "{arguments:?}: {err}");
        assert!(err.contains(words) && err.trim_end().lines().count() == 1, "{arguments:?}: {err}");
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
fn the_store_bench_runs() {
    let out = Command::new(program()).args(["bench", "store", "--mebibytes", "8"]).output().expect("it starts");
    let (said, why) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{said}{why}");
    let rows: Vec<&str> = said.lines().filter(|line| line.starts_with("| ")).collect();
    // One more where Helia is installed.
    assert!((9..=10).contains(&rows.len()), "{said}");
    assert!(rows.iter().all(|row| row.matches(" | ").count() == 2 && !row.contains("NaN")), "{said}");
}
