//! A child process that appends and says what is durable, to be killed; and one whose disk is full.

use crate::{append, deaf, open, payload};
use journal::{Journal, Kind, Options};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

const DIR: &str = "JOURNAL_TEST_DIR";
const OPTIONS: Options = Options { segment_bytes_max: 20_000 };

/// Not a test by itself: the program that the tests below start. Without the variable it has nothing to do.
#[test]
fn the_child_appends() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    let say = |news: journal::Result<u64>| {
        let line = match news {
            Ok(lsn) => format!("durable {lsn}\n"),
            Err(e) => format!("failed {:?} {e}\n", e.kind),
        };
        // The parent may have gone; then so may we.
        let mut out = std::io::stdout().lock();
        let _ = out.write_all(line.as_bytes()).and_then(|()| out.flush());
    };
    let (heard, failed) = std::sync::mpsc::channel();
    let on_durable = Box::new(move |news: journal::Result<u64>| {
        let last = news.is_err();
        say(news);
        if last {
            let _ = heard.send(());
        }
    });
    let mut journal = Journal::open(Path::new(&dir), OPTIONS, on_durable).expect("opens").journal;
    loop {
        let n = journal.next_lsn();
        if let Err(first) = journal.append(3, 1_000 + n, [7; 32], &payload(n)) {
            let again = journal.append(3, 1_000 + n, [7; 32], &payload(n));
            assert_eq!(again, Err(first.clone()), "a failed writer stays failed");
            assert_eq!(journal.durable().error(), Some(first));
            failed.recv().expect("the failure was told");
            return;
        }
        if n.is_multiple_of(16) && journal.sync().is_err() {
            continue;
        }
    }
}

fn command(dir: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.args(["--exact", "child::the_child_appends", "--nocapture"]).env(DIR, dir);
    command
}

fn start(mut command: Command) -> (Child, impl Iterator<Item = String>) {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("starts");
    let lines = BufReader::new(child.stdout.take().expect("piped")).lines().map_while(Result::ok);
    (child, lines)
}

fn last_durable(lines: impl Iterator<Item = String>) -> u64 {
    lines.filter_map(|l| l.strip_prefix("durable ").and_then(|n| n.parse().ok())).max().unwrap_or(0)
}

fn assert_kept(dir: &Path, acknowledged: u64) {
    let opened = Journal::open(dir, OPTIONS, deaf()).expect("a kill is no damage");
    let kept = opened.records.last().map_or(0, |r| r.lsn);
    assert!(kept >= acknowledged, "LSN {acknowledged} was acknowledged, the log ends at {kept}");
    crate::assert_run(&opened.records, 1, kept);
}

#[test]
fn kill_9_loses_nothing_acknowledged() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut acknowledged = 0;
    for round in 1..=5u64 {
        let (mut child, mut lines) = start(command(dir.path()));
        let target = acknowledged + 400 * round;
        let mut seen = acknowledged;
        while seen < target {
            let line = lines.next().expect("the child goes on until it is killed");
            if let Some(lsn) = line.strip_prefix("durable ").and_then(|n| n.parse().ok()) {
                seen = lsn;
            }
        }
        child.kill().expect("it runs");
        let status = child.wait().expect("it ended");
        assert_eq!(status.signal(), Some(9));
        acknowledged = seen.max(last_durable(lines));
        assert_kept(dir.path(), acknowledged);
    }
}

#[test]
fn the_journal_s_own_crash_points_kill_and_lose_nothing_acknowledged() {
    for point in ["journal.append", "journal.append:7", "journal.synced", "journal.synced:7"] {
        let dir = tempfile::tempdir().expect("a folder");
        let mut command = command(dir.path());
        command.env(journal::crash::VARIABLE, point);
        let (mut child, lines) = start(command);
        let acknowledged = last_durable(lines);
        assert_eq!(child.wait().expect("it ended").signal(), Some(9), "{point} did not kill");
        assert_eq!(point.ends_with(":7"), acknowledged > 0, "{point}: {acknowledged} acknowledged");
        assert_kept(dir.path(), acknowledged);
    }
}

#[test]
fn a_crash_point_that_does_not_exist_is_refused_and_not_ignored() {
    let dir = tempfile::tempdir().expect("a folder");
    for wrong in ["journal.apend", "journal.append:0", "journal.append:x", ""] {
        let mut command = command(dir.path());
        command.env(journal::crash::VARIABLE, wrong);
        let (mut child, lines) = start(command);
        lines.for_each(drop);
        assert_eq!(child.wait().expect("it ended").code(), Some(2), "{wrong:?} was taken");
    }
}

#[test]
fn a_full_disk_is_named_sticky_and_loses_nothing() {
    let dir = tempfile::tempdir().expect("a folder");
    // A file size limit stands in for the disk; an ignored SIGXFSZ stays ignored across exec.
    let inner = command(dir.path());
    let mut limited = Command::new("sh");
    limited.arg("-c").arg("trap '' XFSZ; ulimit -f 16; exec \"$@\"").arg("sh").arg(inner.get_program());
    limited.args(inner.get_args()).env(DIR, dir.path());
    let (mut child, lines) = start(limited);
    let lines: Vec<String> = lines.collect();
    assert!(child.wait().expect("it ended").success(), "{lines:?}");
    assert!(lines.iter().any(|l| l.starts_with(&format!("failed {:?}", Kind::DiskFull))), "{lines:?}");
    let acknowledged = last_durable(lines.into_iter());
    assert!(acknowledged > 50);
    assert_kept(dir.path(), acknowledged);
    let mut opened = open(dir.path());
    append(&mut opened.journal, 10);
    opened.journal.sync().expect("with room it goes on");
}
