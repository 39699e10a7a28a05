//! What a tenant may see: a process under bubblewrap with its code, its own data and the system's programs.
//!
//! Own user, mount, process, IPC, host-name and (where the kernel has them) cgroup namespaces; no
//! capabilities; no further user namespaces; a read-only root; a sized `/tmp` and `/dev/shm`; a clean
//! environment; limits on memory, files and processes. The sandbox ends with the thread that started it.
//!
//! ```text
//! /usr /bin /lib /lib64 /etc/ssl   the host's, read-only
//! /code                            the verified code, read-only
//! /lease/tenant.json, seal.key     read-only; /lease itself cannot be written
//! /lease/data                      the tenant's own, on the host's disk
//! ```
//! Only `/lease/data` can be written, so that nothing the tenant leaves there (a link, say) is ever followed
//! by the daemon when it writes the other two.
//!
//! What this version does **not** hold back, said openly:
//! - The network is shared with the host: own network namespaces need root (or pasta, which needs
//!   `/dev/net/tun`). A tenant can connect to whatever the host's loopback and interfaces reach, and to
//!   abstract Unix sockets. Run it only where that is acceptable, as in a development world.
//! - Limits are rlimits: per process, not per lease, and no share of the processor. The limit on processes
//!   does not bind when the daemon runs as root (the kernel exempts the host's uid 0).
//! - No quota on `/lease/data`.

use crate::error::{Error, Result};
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Address space beyond the memory limit: mapped weights, thread stacks and the allocator's reserved arenas
/// take addresses, not memory. A guess; a tenant of the default model uses about 1.5 GiB of it.
const ADDRESS_ROOM_MIB: u64 = 16 << 10;
/// Open files of one process. A guess: thousands of customers' connections.
const FILES_MAX: u32 = 4096;
/// Processes and threads of one lease.
const PROCESSES_MAX: u32 = 512;
const SHM_MIB: u64 = 64;

/// Where the kernel can be changed through /proc. Their files belong to the host's root: when the daemon runs as
/// root, so does the tenant in the kernel's eyes, without any capability and yet as their owner. bubblewrap 0.8
/// covers some of them, but not `/proc/sys`, behind which lies `core_pattern` and with it the whole host.
const KERNEL_KNOBS: [&str; 9] = [
    "/proc/sys",
    "/proc/sysrq-trigger",
    "/proc/irq",
    "/proc/bus",
    "/proc/fs",
    "/proc/acpi",
    "/proc/scsi",
    "/proc/driver",
    "/proc/mtrr",
];

const CODE: &str = "/code";
const LEASE: &str = "/lease";

/// One tenant's room: what of the host's disk it gets, and how much memory.
#[derive(Clone, Debug)]
pub struct Room {
    /// Mounted read-only at `/code`.
    pub code_dir: PathBuf,
    /// Mounted read-only at `/lease/tenant.json`.
    pub tenant_file: PathBuf,
    /// Mounted read-only at `/lease/seal.key`.
    pub seal_key_file: PathBuf,
    /// Mounted writable at `/lease/data`.
    pub data_dir: PathBuf,
    pub memory_mib: u32,
    /// Added to PATH, HOME and TMPDIR, which are all it has otherwise.
    pub env: BTreeMap<String, String>,
}

/// The two programs it takes, found on this machine.
#[derive(Clone, Debug)]
pub struct Sandbox {
    bwrap: PathBuf,
    /// As seen from inside: limits are set after the namespaces, where processes are counted by themselves.
    prlimit: PathBuf,
}

impl Sandbox {
    /// Finds bubblewrap and prlimit. There is no fallback: without them no tenant runs.
    pub fn find() -> Result<Self> {
        let path = std::env::var_os("PATH").unwrap_or_else(|| OsString::from("/usr/bin:/bin"));
        Self::find_in(&path)
    }

    /// Like [`Sandbox::find`] with a given search path.
    pub fn find_in(path: &OsStr) -> Result<Self> {
        let find = |program: &str| std::env::split_paths(path).map(|dir| dir.join(program)).find(|p| p.is_file());
        let bwrap = find("bwrap").ok_or_else(|| {
            Error::setup("bubblewrap is missing and no tenant runs without it: install it (Debian, Ubuntu: apt install bubblewrap; Fedora: dnf install bubblewrap)")
        })?;
        let prlimit = ["/usr/bin/prlimit", "/bin/prlimit"].map(PathBuf::from).into_iter().find(|p| p.is_file());
        let prlimit = prlimit.ok_or_else(|| {
            Error::setup("/usr/bin/prlimit is missing and no tenant runs without limits: install it (Debian, Ubuntu: apt install util-linux)")
        })?;
        Ok(Self { bwrap, prlimit })
    }

    /// Runs `true` in a sandbox in `scratch`, so that a kernel that forbids it is found out at start.
    pub fn probe(&self, scratch: &Path) -> Result<()> {
        let broken = |e: std::io::Error| Error::setup(format!("cannot write {}", scratch.display())).caused_by(e);
        let room = Room {
            code_dir: scratch.join("code"),
            tenant_file: scratch.join("tenant.json"),
            seal_key_file: scratch.join("seal.key"),
            data_dir: scratch.join("data"),
            memory_mib: 64,
            env: BTreeMap::new(),
        };
        std::fs::create_dir_all(&room.code_dir).map_err(broken)?;
        std::fs::create_dir_all(&room.data_dir).map_err(broken)?;
        std::fs::write(&room.tenant_file, "{}").map_err(broken)?;
        std::fs::write(&room.seal_key_file, "").map_err(broken)?;
        let ran = self.command(&room, &["/usr/bin/true"]).output();
        std::fs::remove_dir_all(scratch).map_err(broken)?;
        let ran = ran.map_err(|e| Error::setup(format!("{} does not start", self.bwrap.display())).caused_by(e))?;
        if ran.status.success() {
            return Ok(());
        }
        Err(Error::setup(format!(
            "bubblewrap (0.8 or newer is needed) cannot make a sandbox here: {}; are unprivileged user namespaces allowed (sysctl user.max_user_namespaces)?",
            String::from_utf8_lossy(&ran.stderr).trim()
        )))
    }

    /// The command line that runs `program` in `room`.
    ///
    /// bubblewrap asks the kernel to be killed with the *thread* that starts it: start it from one that lives
    /// as long as the tenant shall.
    pub fn command<S: AsRef<OsStr>>(&self, room: &Room, program: &[S]) -> Command {
        let mut command = Command::new(&self.bwrap);
        command.args(["--unshare-user", "--disable-userns", "--unshare-pid", "--unshare-ipc", "--unshare-uts"]);
        command.args(["--unshare-cgroup-try", "--die-with-parent", "--new-session", "--cap-drop", "ALL"]);
        command.args(["--hostname", "tenant", "--clearenv"]);
        for (name, value) in [("PATH", "/usr/bin:/bin"), ("HOME", "/lease/data"), ("TMPDIR", "/tmp")] {
            command.args(["--setenv", name, value]);
        }
        for (name, value) in &room.env {
            command.args(["--setenv", name, value]);
        }
        system_binds(&mut command);
        command.args(["--proc", "/proc", "--dev", "/dev"]);
        for entry in KERNEL_KNOBS {
            command.arg("--ro-bind-try").arg(entry).arg(entry);
        }
        command.args(["--size", &(SHM_MIB << 20).to_string(), "--tmpfs", "/dev/shm", "--remount-ro", "/dev"]);
        command.args(["--size", &(u64::from(room.memory_mib) << 20).to_string(), "--tmpfs", "/tmp"]);
        bind(&mut command, "--ro-bind", &room.code_dir, CODE);
        bind(&mut command, "--bind", &room.data_dir, "/lease/data");
        bind(&mut command, "--ro-bind", &room.tenant_file, "/lease/tenant.json");
        bind(&mut command, "--ro-bind", &room.seal_key_file, "/lease/seal.key");
        command.args(["--remount-ro", "/", "--chdir", LEASE, "--"]);
        let memory = u64::from(room.memory_mib) << 20;
        command.arg(&self.prlimit);
        command.arg(format!("--data={memory}"));
        command.arg(format!("--as={}", memory + (ADDRESS_ROOM_MIB << 20)));
        command.arg(format!("--nofile={FILES_MAX}"));
        command.arg(format!("--nproc={PROCESSES_MAX}"));
        command.args(["--core=0", "--memlock=65536", "--"]);
        command.args(program);
        // bubblewrap clears the environment of what it starts; it has no use for ours either.
        command.env_clear();
        command
    }
}

/// The system's programs and libraries. On most distributions `/bin` and `/lib` are links into `/usr`, and
/// stay links.
fn system_binds(command: &mut Command) {
    command.args(["--ro-bind", "/usr", "/usr"]);
    for dir in ["/bin", "/sbin", "/lib", "/lib32", "/lib64"] {
        match std::fs::read_link(dir) {
            Ok(target) => {
                command.arg("--symlink").arg(target).arg(dir);
            }
            Err(_) => {
                command.args(["--ro-bind-try", dir, dir]);
            }
        }
    }
    // The loader's index of libraries, and the CA certificates for endpoints that speak TLS.
    for path in ["/etc/ld.so.cache", "/etc/ssl"] {
        command.args(["--ro-bind-try", path, path]);
    }
}

fn bind(command: &mut Command, how: &str, from: &Path, to: &str) {
    command.arg(how).arg(from).arg(to);
}
