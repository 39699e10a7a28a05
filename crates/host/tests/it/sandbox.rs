//! A hostile tenant tries to get out. bubblewrap must be installed: a machine that cannot hold tenants cannot
//! pass these tests either.

use host::lease_dir::LeaseDir;
use host::sandbox::{Room, Sandbox};
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A provider's data directory with its key and two leases; the tenant of lease 1 is the hostile one.
pub struct Provider {
    pub dir: tempfile::TempDir,
    pub room: Room,
    pub key: PathBuf,
    pub other: PathBuf,
}

pub fn provider() -> Provider {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let (key, leases, code_dir) = (dir.path().join("provider.key"), dir.path().join("leases"), dir.path().join("code"));
    fs::write(&key, "precious").unwrap();
    fs::create_dir(&code_dir).unwrap();
    fs::write(code_dir.join("vivarium"), "#!/bin/sh\necho I am the code\n").unwrap();
    fs::set_permissions(code_dir.join("vivarium"), fs::Permissions::from_mode(0o555)).unwrap();
    let (mine, other) = (LeaseDir::open(&leases, 1).unwrap(), LeaseDir::open(&leases, 2).unwrap());
    fs::write(mine.tenant_file(), "{}").unwrap();
    let room = Room {
        code_dir,
        tenant_file: mine.tenant_file(),
        seal_key_file: mine.seal_key(),
        data_dir: mine.data(),
        memory_mib: 48,
        env: BTreeMap::from([("GREETING".to_owned(), "hello".to_owned())]),
    };
    Provider { dir, room, key, other: other.seal_key() }
}

/// What `script` prints (both streams) inside the sandbox.
fn inside(room: &Room, script: &str) -> String {
    text(Sandbox::find().unwrap().command(room, &["/bin/sh", "-c", script]))
}

fn text(mut command: Command) -> String {
    let ran = command.stdin(Stdio::null()).output().unwrap();
    format!("{}{}", String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr))
}

/// The same command as an ordinary user, when the test itself runs as root.
fn as_nobody(command: &Command) -> Command {
    let mut wrapped = Command::new("/usr/bin/setpriv");
    wrapped.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"]);
    wrapped.arg(command.get_program()).args(command.get_args()).env_clear();
    wrapped
}

#[test]
fn the_probe_passes_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    Sandbox::find().unwrap().probe(&dir.path().join("probe")).unwrap();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_machine_without_bubblewrap_is_told_what_to_install() {
    let empty = tempfile::tempdir().unwrap();
    let error = Sandbox::find_in(empty.path().as_os_str()).unwrap_err();
    assert_eq!(error.kind, host::Kind::Setup);
    assert!(error.message.contains("apt install bubblewrap"), "{error}");
}

#[test]
fn its_own_room_is_there() {
    let it = provider();
    let said = inside(
        &it.room,
        "/code/vivarium; cat /lease/tenant.json; wc -c < /lease/seal.key; echo kept > data/x; pwd; echo $GREETING",
    );
    assert_eq!(said.split_whitespace().collect::<Vec<_>>().join(" "), "I am the code {}64 /lease hello");
    assert_eq!(fs::read_to_string(it.room.data_dir.join("x")).unwrap(), "kept\n");
}

#[test]
fn the_providers_key_and_other_leases_cannot_be_read() {
    let it = provider();
    let other_key = fs::read_to_string(&it.other).unwrap();
    let (key, other, root) = (it.key.display(), it.other.display(), it.dir.path().display());
    let script = format!(
        "cat {key}; cat {other}; ls {root}; cat /proc/*/root{key}; cat /lease/../..{key}; \
         ln -s {key} /lease/data/link; cat /lease/data/link; find / -name provider.key -not -path '/proc/*' 2>&1; \
         find / -name leases -not -path '/proc/*' 2>&1; ls -a / /lease"
    );
    let said = inside(&it.room, &script);
    assert!(!said.contains("precious") && !said.contains(&other_key), "{said}");
    assert!(!said.contains("leases\n"), "{said}");
    assert!(said.contains("No such file"), "{said}");
}

#[test]
fn nothing_but_its_data_can_be_written() {
    let it = provider();
    for path in ["/x", "/code/vivarium", "/code/x", "/usr/bin/x", "/lease/x", "/lease/tenant.json", "/lease/seal.key"] {
        let said = inside(&it.room, &format!("echo bad > {path} && echo WRITTEN"));
        assert!(!said.contains("WRITTEN"), "{path}: {said}");
    }
    for attack in [
        "rm -f /lease/seal.key",
        "mv /lease/tenant.json /lease/data/t",
        "mount -t tmpfs none /tmp",
        "mount -o remount,rw /usr",
        "umount /lease/seal.key",
        // Harmless even where it works: the file says the same afterwards.
        "cat /proc/sys/kernel/core_pattern > /tmp/x && cat /tmp/x > /proc/sys/kernel/core_pattern",
        "test -w /proc/sysrq-trigger",
        "mknod /tmp/disk b 8 0",
        "unshare -U true",
        "unshare -m true",
        "chroot / true",
        "chown 1:1 /lease/data",
    ] {
        let said = inside(&it.room, &format!("{attack} && echo BROKEN OUT"));
        assert!(!said.contains("BROKEN OUT"), "{attack}: {said}");
    }
    assert_eq!(fs::read_to_string(&it.room.tenant_file).unwrap(), "{}");
    // Reading pressure is harmless, and so is setting a trigger on it for oneself.
    let said = inside(
        &it.room,
        "find / -type f -writable -not -path '/proc/[0-9]*' -not -path '/proc/pressure/*' -not -path '/lease/data/*' -not -path '/dev/*'",
    );
    assert_eq!(said.lines().filter(|l| !l.contains("Permission denied")).collect::<Vec<_>>(), [] as [&str; 0]);
}

#[test]
fn the_daemons_environment_and_processes_are_out_of_reach() {
    let it = provider();
    let me = std::process::id();
    // cargo gives every test this variable: it stands for the provider's secrets.
    assert!(std::env::var_os("CARGO_MANIFEST_DIR").is_some());
    let said = inside(&it.room, &format!("env; cat /proc/*/environ | tr '\\0' '\\n'; kill -0 {me} && echo REACHED"));
    assert!(!said.contains("CARGO") && !said.contains("REACHED"), "{said}");
    let names: Vec<_> = inside(&it.room, "env").lines().map(|l| l.split('=').next().unwrap().to_owned()).collect();
    assert_eq!(names.iter().filter(|n| *n != "PWD" && *n != "_").count(), 4, "{names:?}");
    let seen = inside(&it.room, "ls /proc | grep -c '^[0-9]'");
    assert!(seen.trim().parse::<u32>().unwrap() < 8, "it sees the host's processes: {seen}");
    assert_eq!(inside(&it.room, "hostname").trim(), "tenant");
    let capabilities = inside(&it.room, "grep -E 'CapEff|CapBnd|NoNewPrivs' /proc/self/status");
    assert!(capabilities.contains("CapEff:\t0000000000000000"), "{capabilities}");
    assert!(capabilities.contains("CapBnd:\t0000000000000000"), "{capabilities}");
    assert!(capabilities.contains("NoNewPrivs:\t1"), "{capabilities}");
}

#[test]
fn memory_files_and_scratch_space_end_at_their_limits() {
    let it = provider();
    let said = inside(&it.room, "head -c 200000000 /dev/zero | tail -c 200000000 | wc -c");
    assert!(!said.contains("200000000"), "more memory than its limit: {said}");
    assert_eq!(inside(&it.room, "head -c 20000000 /dev/zero | tail -c 20000000 | wc -c").trim(), "20000000");
    let said = inside(&it.room, "head -c 80000000 /dev/zero > /tmp/x; wc -c < /tmp/x");
    assert!(said.contains("No space left"), "{said}");
    assert_eq!(inside(&it.room, "ulimit -n; ulimit -c").split_whitespace().collect::<Vec<_>>(), ["4096", "0"]);
}

#[test]
fn an_ordinary_users_sandbox_holds_as_well_and_stops_a_fork_bomb() {
    if !rustix::process::geteuid().is_root() {
        return; // Every other test of this file already ran as an ordinary user.
    }
    let it = provider();
    for path in [&it.room.data_dir, it.room.data_dir.parent().unwrap(), &it.room.seal_key_file] {
        std::os::unix::fs::chown(path, Some(65534), Some(65534)).unwrap();
    }
    fs::set_permissions(it.dir.path().join("leases"), fs::Permissions::from_mode(0o755)).unwrap();
    let sandbox = Sandbox::find().unwrap();
    let run = |script: &str| text(as_nobody(&sandbox.command(&it.room, &["/bin/sh", "-c", script])));
    assert!(run("/code/vivarium; cat /lease/seal.key > /lease/data/x; echo done").contains("done"));
    let said = run(&format!("cat {0}; cat /proc/*/root{0}; unshare -U true && echo OUT", it.key.display()));
    assert!(!said.contains("precious") && !said.contains("OUT"), "{said}");
    let said = run("i=0; while [ $i -lt 700 ]; do sleep 5 & i=$((i+1)); done; echo ALL");
    assert!(!said.contains("ALL"), "700 processes started: {said}");
}

#[test]
fn kill_9_of_the_daemon_takes_the_sandbox_with_it() {
    let it = provider();
    let sandbox = Sandbox::find().unwrap();
    // `sh` stands for the daemon: it starts the sandbox and is killed.
    let tenant = sandbox.command(&it.room, &["/bin/sh", "-c", "echo up; sleep 1000 & sleep 1000"]);
    let mut daemon = Command::new("/bin/sh")
        .args(["-c", "\"$@\" & wait", "sh"])
        .arg(tenant.get_program())
        .args(tenant.get_args())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(daemon.stdout.take().unwrap());
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    assert_eq!(line, "up\n");
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    // Ends when the last process that holds the pipe is gone; a survivor would hold it for 1000 s.
    out.read_to_string(&mut line).unwrap();
}

#[test]
fn the_lease_directory_is_not_for_others() {
    let it = provider();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&it.other), 0o600);
    assert_eq!(mode(it.other.parent().unwrap()), 0o700);
}
