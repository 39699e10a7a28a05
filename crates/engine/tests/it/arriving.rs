//! An engine that starts while its model's file is still arriving.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use infer::{EngineClient, EngineConfig, ErrorKind};
use tokio::sync::watch;

use crate::{greedy, model, whole};

/// The beginning of a file as long as `content`, and a hole.
fn begun(path: &Path, content: &[u8], bytes: usize) -> File {
    let file = File::create(path).unwrap();
    file.write_all_at(&content[..bytes], 0).unwrap();
    file.set_len(number(content.len())).unwrap();
    file
}

fn number(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap()
}

fn start(model: &Path, socket: &Path) -> Child {
    Command::new(env!("CARGO_BIN_EXE_vivarium-engine"))
        .args(["--ctx", "256", "--slots", "1", "--exit-with-stdin", "--arriving", "--model"])
        .arg(model)
        .arg("--socket")
        .arg(socket)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Longer than the header, which has 1.7 MB.
const HEAD: usize = 4 << 20;

#[test]
fn an_engine_reads_the_header_while_the_tail_is_a_hole_and_ends_with_the_source() {
    let directory = tempfile::tempdir().unwrap();
    let (path, content) = (directory.path().join("model.gguf"), std::fs::read(model()).unwrap());
    begun(&path, &content, HEAD);
    let mut child = start(&path, &directory.path().join("e.sock"));
    let mut told = child.stdin.take().unwrap();
    let mut says = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    told.write_all(&number(HEAD).to_le_bytes()).unwrap();
    let line = says.next().unwrap();
    assert!(line.contains("the header is here") && line.contains("94168128 bytes of the model are not"), "{line}");
    assert!(child.try_wait().unwrap().is_none(), "it waits");
    drop(told);
    let last = says.last().unwrap();
    assert!(last.contains("the model stopped arriving at byte 4194304 of 98362432; fetch it again"), "{last}");
    assert!(!child.wait().unwrap().success());
}

#[test]
fn a_file_that_is_no_model_is_refused_once_it_is_whole() {
    let directory = tempfile::tempdir().unwrap();
    let (path, content) = (directory.path().join("model.gguf"), b"something else entirely".repeat(10));
    begun(&path, &content, content.len());
    let mut child = start(&path, &directory.path().join("e.sock"));
    child.stdin.take().unwrap().write_all(&number(content.len()).to_le_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let words = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && words.contains("(230 bytes) is not a GGUF file"), "{words}");
}

#[tokio::test]
async fn an_engine_whose_model_arrived_late_answers_as_any_other() {
    let directory = tempfile::tempdir().unwrap();
    let (path, content) = (directory.path().join("model.gguf"), std::fs::read(model()).unwrap());
    let file = begun(&path, &content, HEAD);
    let config = EngineConfig {
        adapters: Vec::new(),
        program: env!("CARGO_BIN_EXE_vivarium-engine").into(),
        model: path.clone(),
        socket: directory.path().join("engine.sock"),
        threads: 1,
        threads_max: 1,
        ctx: 256,
        slots: 1,
    };
    let (verified, arriving) = watch::channel(0);
    let late = tokio::spawn(EngineClient::spawn_arriving(config.clone(), arriving));
    for upto in (HEAD..content.len()).step_by(HEAD).chain([content.len()]) {
        file.write_all_at(&content[upto.saturating_sub(HEAD)..upto], number(upto.saturating_sub(HEAD))).unwrap();
        verified.send_replace(number(upto));
        tokio::task::yield_now().await;
    }
    let (client, _) = late.await.unwrap().unwrap();
    drop(verified);
    let text = whole(client.generate(greedy("Once upon a time", 16)).unwrap()).await.text;
    let usual = crate::engine(1, 256).await;
    assert_eq!(text, whole(usual.client.generate(greedy("Once upon a time", 16)).unwrap()).await.text);
    drop(client);

    // The next fetch ends in the middle.
    begun(&path, &content, HEAD);
    let (verified, arriving) = watch::channel(number(HEAD));
    let socket = directory.path().join("second.sock");
    let broken = tokio::spawn(EngineClient::spawn_arriving(EngineConfig { socket, ..config.clone() }, arriving));
    tokio::task::yield_now().await;
    drop(verified);
    let failed = broken.await.unwrap().unwrap_err();
    assert_eq!(failed.kind, ErrorKind::Start);
    assert_eq!(failed.to_string(), "the model's file stopped arriving at byte 4194304 of 98362432");
    let (verified, arriving) = watch::channel(0);
    drop(verified);
    let failed = EngineClient::spawn_arriving(config, arriving).await.unwrap_err();
    assert_eq!(failed.to_string(), "the model's file did not begin to arrive");
}
