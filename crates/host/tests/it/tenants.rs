use crate::sandbox::{Provider, provider};
use host::sandbox::Sandbox;
use host::tenant::{Event, Tenants};
use std::fs;
use std::time::Duration;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

const HELLO: &str =
    r#"echo '{"hello":{"lease":1,"node_key":"0x0101010101010101010101010101010101010101","public_url":"http://x"}}'"#;

fn start(it: &Provider, script: &str) -> (Tenants, UnboundedReceiver<Event>) {
    let (events, news) = unbounded_channel();
    let mut tenants = Tenants::new(events).unwrap();
    let command = Sandbox::find().unwrap().command(&it.room, &["/bin/sh", "-c", script]);
    tenants.start(1, 1, command, &it.dir.path().join("log")).unwrap();
    (tenants, news)
}

fn expect_hello(news: &mut UnboundedReceiver<Event>) {
    match news.blocking_recv().unwrap() {
        Event::Hello { lease: 1, run: 1, node_key } => assert_eq!(node_key.as_slice(), [1; 20]),
        other => panic!("{other:?}"),
    }
}

fn expect_exit(news: &mut UnboundedReceiver<Event>) -> String {
    match news.blocking_recv().unwrap() {
        Event::Exited { lease: 1, run: 1, status } => status,
        other => panic!("{other:?}"),
    }
}

#[test]
fn hello_output_and_end_are_reported() {
    let it = provider();
    let (tenants, mut news) = start(&it, &format!("echo begin; {HELLO}; echo complaint >&2; exit 3"));
    expect_hello(&mut news);
    assert!(expect_exit(&mut news).contains('3'));
    assert_eq!(tenants.pids(1), None);
    let log = fs::read_to_string(it.dir.path().join("log")).unwrap();
    assert!(log.contains("begin\n") && log.contains("hello") && log.contains("complaint\n"), "{log}");
}

#[test]
fn terminate_reaches_the_tenant_which_may_tidy_up() {
    let it = provider();
    let script = format!("trap 'echo tidy > /lease/data/x; exit 0' TERM; {HELLO}; while :; do sleep 0.05; done");
    let (tenants, mut news) = start(&it, &script);
    expect_hello(&mut news);
    let pids = tenants.pids(1).unwrap();
    assert_ne!(Some(pids.sandbox), pids.tenant);
    let name = fs::read_to_string(format!("/proc/{}/comm", pids.tenant.unwrap())).unwrap();
    assert_eq!(name.trim(), "sh");
    tenants.terminate(1, 2);
    tenants.terminate(1, 1);
    expect_exit(&mut news);
    assert_eq!(fs::read_to_string(it.room.data_dir.join("x")).unwrap(), "tidy\n");
}

#[test]
fn kill_ends_a_tenant_that_ignores_everything() {
    let it = provider();
    let script = format!("trap '' TERM; (trap '' TERM; sleep 1000) & {HELLO}; while :; do sleep 1000; done");
    let (tenants, mut news) = start(&it, &script);
    expect_hello(&mut news);
    tenants.terminate(1, 1);
    assert!(news.try_recv().is_err());
    tenants.kill(1, 1);
    expect_exit(&mut news);
}

#[test]
fn killing_only_the_tenants_process_ends_its_children_too() {
    let it = provider();
    let (tenants, mut news) = start(&it, &format!("sleep 1000 & {HELLO}; sleep 1000"));
    expect_hello(&mut news);
    let pid = tenants.pids(1).unwrap().tenant.and_then(rustix::process::Pid::from_raw).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    // Exited comes only after the last process with the tenant's output is gone.
    expect_exit(&mut news);
}

/// bubblewrap itself leaves the half-made sandbox behind when it is killed early, by whomever.
#[test]
fn a_sandbox_that_is_killed_while_it_is_made_leaves_nothing() {
    let it = provider();
    let data = it.room.data_dir.to_string_lossy().into_owned();
    for turn in 0..40 {
        let (tenants, mut news) = start(&it, "sleep 1000");
        let pid = tenants.pids(1).and_then(|pids| rustix::process::Pid::from_raw(pids.sandbox)).unwrap();
        // No wait for something: these are the moments at which it is killed.
        std::thread::sleep(Duration::from_micros(300 * turn));
        match turn % 3 {
            0 => tenants.terminate(1, 1),
            1 => tenants.kill(1, 1),
            _ => {}
        }
        // It may be gone by now.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        expect_exit(&mut news);
        let left = processes_with(&data);
        assert!(left.is_empty(), "turn {turn}: {left:?}");
    }
}

/// Ids and command lines of the processes that name `word`.
fn processes_with(word: &str) -> Vec<(i32, String)> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|e| e.file_name().to_str()?.parse().ok());
    let lines = pids.map(|pid| (pid, fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default()));
    let lines = lines.map(|(pid, line): (i32, _)| (pid, String::from_utf8_lossy(&line).into_owned()));
    lines.filter(|(_, line)| line.contains(word)).collect()
}

#[test]
fn dropping_the_tenants_leaves_no_process() {
    let it = provider();
    let (tenants, mut news) = start(&it, &format!("{HELLO}; sleep 1000"));
    expect_hello(&mut news);
    drop(tenants);
    expect_exit(&mut news);
}
