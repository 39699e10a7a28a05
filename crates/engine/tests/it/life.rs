//! How an engine starts, how it is confined, and how it ends.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use infer::{EngineClient, EngineConfig, EngineEvent, ErrorKind, FailureKind};
use rustix::process::{Pid, Signal, kill_process};

use crate::{engine, greedy, model, whole};

#[tokio::test]
async fn a_killed_engine_is_replaced() {
    let engine = engine(2, 1_024).await;
    let alone = whole(engine.client.generate(greedy("Once upon a time", 8)).unwrap()).await;
    let mut running = engine.client.generate(greedy("1 2 3 4 5 6 7 8 9", 1_000)).unwrap();
    running.recv().await;

    let pid = engine.client.pid().unwrap();
    kill(pid);
    let killed = Instant::now();
    let failure = loop {
        match running.recv().await {
            Some(EngineEvent::Failed { kind, .. }) => break kind,
            Some(_) => {}
            None => panic!("the answer ended without a word"),
        }
    };
    assert_eq!(failure, FailureKind::EngineDied);
    engine.client.wait_ready().await.unwrap();
    println!("a new engine after {} ms", killed.elapsed().as_millis());
    // Said to take a second; the rest is for machines that do other things too.
    assert!(killed.elapsed() < Duration::from_secs(10));
    assert_ne!(engine.client.pid(), Some(pid));
    assert_eq!(engine.client.restarts(), 1);
    assert_eq!(whole(engine.client.generate(greedy("Once upon a time", 8)).unwrap()).await, alone);
}

#[tokio::test]
async fn an_engine_is_confined_and_ends_with_its_client() {
    let engine = engine(1, 256).await;
    assert!(engine.hello.confinement.ends_with("seccomp, rlimits"), "{}", engine.hello.confinement);
    let process = format!("/proc/{}", engine.client.pid().unwrap());
    let status = std::fs::read_to_string(format!("{process}/status")).unwrap();
    let field = |name| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    assert_eq!((field("NoNewPrivs:"), field("Seccomp:")), (Some("1"), Some("2")));
    let limits = std::fs::read_to_string(format!("{process}/limits")).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().collect::<Vec<_>>()[4..6], ["0", "0"]);

    drop(engine);
    let ended = async {
        while Path::new(&process).exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), ended).await.expect("the engine outlived its client");
}

/// However its parent ends, the kernel closes the pipe.
#[test]
fn an_engine_ends_with_its_standard_input() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("engine.sock");
    let mut child = command(&model(), &socket).arg("--exit-with-stdin").stdin(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    let stdout = child.stdout.take().unwrap();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut line).unwrap();
    assert!(line.starts_with(r#"{"ready":true,"#), "{line}");

    let second = output(&model(), &socket);
    assert!(!second.status.success());
    assert!(stderr(&second).contains("is in use by another engine"), "{}", stderr(&second));

    drop(child.stdin.take());
    assert!(!child.wait().unwrap().success());
    // What is left of its socket does not keep the next one from starting: it gets as far as its model.
    let third = output(Path::new("/nonexistent.gguf"), &socket);
    assert!(!stderr(&third).contains("in use"), "{}", stderr(&third));
}

#[test]
fn a_wrong_model_is_one_line_of_what_and_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let refused = |path: &Path| {
        let output = output(path, &directory.path().join("engine.sock"));
        assert!(!output.status.success());
        let line = stderr(&output);
        assert_eq!(line.lines().count(), 1, "{line}");
        line
    };
    let missing = refused(&directory.path().join("missing.gguf"));
    assert!(missing.contains("missing.gguf; give --model a GGUF file: No such file"), "{missing}");
    assert!(refused(directory.path()).contains("is not a file"));

    let text = directory.path().join("text.gguf");
    std::fs::write(&text, "GGU").unwrap();
    assert!(refused(&text).contains("(3 bytes) is not a GGUF file"));

    let cut = directory.path().join("cut.gguf");
    let whole = std::fs::read(model()).unwrap();
    std::fs::write(&cut, &whole[..whole.len() / 2]).unwrap();
    assert!(refused(&cut).contains("is cut off, damaged or of an unknown kind; fetch it again"));
}

#[tokio::test]
async fn a_client_says_why_there_is_no_engine() {
    let directory = tempfile::tempdir().unwrap();
    let config = |model: &Path| EngineConfig {
        adapters: Vec::new(),
        program: env!("CARGO_BIN_EXE_vivarium-engine").into(),
        model: model.into(),
        socket: directory.path().join("engine.sock"),
        threads: 1,
        threads_max: 1,
        ctx: 256,
        slots: 1,
    };
    let missing = EngineClient::spawn(config(Path::new("/nonexistent.gguf"))).await.unwrap_err();
    assert_eq!((missing.kind, missing.to_string()), (ErrorKind::Config, "there is no file /nonexistent.gguf".into()));

    let text = directory.path().join("text.gguf");
    std::fs::write(&text, "not a model").unwrap();
    let refused = EngineClient::spawn(config(&text)).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Start);
    assert!(refused.to_string().contains("is not a GGUF file"), "{refused}");

    let too_much = EngineClient::spawn(EngineConfig { ctx: 1 << 20, ..config(&model()) }).await.unwrap_err();
    assert!(too_much.to_string().contains("more than the 8192 tokens this model was trained with"), "{too_much}");

    let long = directory.path().join("x".repeat(100));
    let long = EngineClient::spawn(EngineConfig { socket: long, ..config(&model()) }).await.unwrap_err();
    assert!(long.to_string().contains("107 are possible"), "{long}");
}

fn command(model: &Path, socket: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vivarium-engine"));
    command.arg("--model").arg(model).arg("--socket").arg(socket).args(["--ctx", "256", "--slots", "1"]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn output(model: &Path, socket: &Path) -> Output {
    command(model, socket).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn kill(pid: u32) {
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
}
