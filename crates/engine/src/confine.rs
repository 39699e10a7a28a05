//! What this process gives up for good, once it has all that it needs.
//!
//! Three layers, each of which would be enough for most of what can go wrong: Landlock takes the file system and
//! TCP away, seccomp leaves a short list of system calls, rlimits bound the rest. Landlock may be missing in a
//! kernel; then the process says so and goes on, because seccomp refuses the same calls.

use std::collections::BTreeMap;

use crate::gpu;
use anyhow::Context;
use landlock::{ABI, Access, AccessFs, AccessNet, Ruleset, RulesetAttr, RulesetStatus, Scope};
use rustix::process::{Resource, Rlimit, setrlimit};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

/// The newest rules that are asked for; an older kernel enforces those that it knows.
const LANDLOCK_ABI: ABI = ABI::V6;

/// Open files: standard streams, the socket, and two a connection.
const FILES_MAX: u64 = 64;

/// System calls that remain. Everything else fails with EPERM: no socket, connect or bind, no open, no execve,
/// no ptrace, no namespace. Kept by running the tests under it; each line says what needs it.
const ALLOWED: &[i64] = &[
    // The socket and the log.
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_accept4,
    libc::SYS_shutdown,
    libc::SYS_close,
    libc::SYS_fcntl,
    libc::SYS_ppoll,
    // Memory.
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_brk,
    // Threads, and what libc does around them. `clone` has conditions, below.
    libc::SYS_clone3,
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_set_tid_address,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_exit,
    libc::SYS_exit_group,
    // Signals: a crash must be able to end the process.
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    // Time and chance (the hash tables' seeds).
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_getrandom,
];

/// Confines this thread and every thread it starts from now on. Says what is in force.
pub(crate) fn confine() -> anyhow::Result<String> {
    limit_resources().context("cannot set resource limits")?;
    let landlock = restrict_files().context("cannot apply Landlock")?;
    restrict_calls().context("cannot apply seccomp")?;
    Ok(format!("{landlock}, seccomp, rlimits"))
}

fn limit_resources() -> rustix::io::Result<()> {
    // A dump would hold what customers wrote.
    for (resource, most) in [(Resource::Core, 0), (Resource::Nofile, FILES_MAX)] {
        setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) })?;
    }
    Ok(())
}

/// No file and no TCP port at all: rules are made for every access, and none is granted.
fn restrict_files() -> Result<&'static str, landlock::RulesetError> {
    let status = Ruleset::default()
        .handle_access(AccessFs::from_all(LANDLOCK_ABI))?
        .handle_access(AccessNet::from_all(LANDLOCK_ABI))?
        .scope(Scope::from_all(LANDLOCK_ABI))?
        .create()?
        .restrict_self()?;
    Ok(match status.ruleset {
        RulesetStatus::FullyEnforced => "landlock",
        RulesetStatus::PartiallyEnforced => "landlock in part (this kernel knows fewer rules)",
        RulesetStatus::NotEnforced => "NO landlock (this kernel has none)",
    })
}

fn restrict_calls() -> anyhow::Result<()> {
    // `clone3` takes its flags from memory, where a filter cannot look. ENOSYS makes libc use `clone`.
    let no_clone3 = filter(
        [(libc::SYS_clone3, Vec::new())].into(),
        SeccompAction::Allow,
        SeccompAction::Errno(u32::try_from(libc::ENOSYS)?),
    )?;
    let calls = ALLOWED.iter().chain(gpu::CALLS);
    let mut allowed: BTreeMap<i64, Vec<SeccompRule>> = calls.map(|call| (*call, Vec::new())).collect();
    allowed.insert(libc::SYS_clone, vec![thread_only()?]);
    allowed.insert(libc::SYS_tgkill, vec![ourselves_only()?]);
    allowed.insert(libc::SYS_prctl, vec![thread_name_only()?]);
    #[cfg(target_arch = "x86_64")]
    allowed.insert(libc::SYS_arch_prctl, vec![tiles_only()?]);
    let only_these = filter(allowed, SeccompAction::Errno(u32::try_from(libc::EPERM)?), SeccompAction::Allow)?;
    // The narrow one first: the second does not allow what installs a filter.
    seccompiler::apply_filter_all_threads(&no_clone3)?;
    seccompiler::apply_filter_all_threads(&only_these)?;
    Ok(())
}

fn filter(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    otherwise: SeccompAction,
    matched: SeccompAction,
) -> anyhow::Result<BpfProgram> {
    let arch = std::env::consts::ARCH.try_into().context("seccomp filters are not known for this processor")?;
    Ok(SeccompFilter::new(rules, otherwise, matched, arch)?.try_into()?)
}

/// `clone` for a thread of this process: no new process, and no namespace.
fn thread_only() -> anyhow::Result<SeccompRule> {
    let thread = libc::CLONE_THREAD;
    let namespaces = libc::CLONE_NEWNS
        | libc::CLONE_NEWCGROUP
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUSER
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNET;
    let seen = SeccompCmpOp::MaskedEq(u64::try_from(thread | namespaces)?);
    Ok(SeccompRule::new(vec![SeccompCondition::new(0, SeccompCmpArgLen::Dword, seen, u64::try_from(thread)?)?])?)
}

/// `prctl` to name a thread.
fn thread_name_only() -> anyhow::Result<SeccompRule> {
    let name = u64::try_from(libc::PR_SET_NAME)?;
    Ok(SeccompRule::new(vec![SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, name)?])?)
}

/// `arch_prctl` to ask for the registers of AMX. ggml asks each time it looks for a place for weights, long after the
/// first answer, and a no leaves those that lie there without anybody who can multiply them.
#[cfg(target_arch = "x86_64")]
fn tiles_only() -> anyhow::Result<SeccompRule> {
    // Linux, arch/x86/include/uapi/asm/prctl.h and Documentation/arch/x86/xstate.rst.
    const ARCH_REQ_XCOMP_PERM: u64 = 0x1023;
    const XFEATURE_XTILEDATA: u64 = 18;
    let equal = |index, value| SeccompCondition::new(index, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value);
    Ok(SeccompRule::new(vec![equal(0, ARCH_REQ_XCOMP_PERM)?, equal(1, XFEATURE_XTILEDATA)?])?)
}

/// Signals to this process alone, for `abort`.
fn ourselves_only() -> anyhow::Result<SeccompRule> {
    let pid = u64::from(std::process::id());
    Ok(SeccompRule::new(vec![SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, pid)?])?)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::unix::net::UnixStream;
    use std::process::Command;

    /// Confinement is for ever and for all threads, so it is tried in a process of its own.
    #[test]
    fn confined_threads_work_and_nothing_else_does() {
        let inside = Command::new(std::env::current_exe().unwrap())
            .args(["confine::tests::inside", "--exact", "--ignored", "--nocapture"])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&inside.stdout);
        assert!(inside.status.success(), "{said}{}", String::from_utf8_lossy(&inside.stderr));
        assert!(said.contains("1 passed"), "{said}");
    }

    #[test]
    #[ignore = "run by the test above, in a process of its own"]
    fn inside() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (one, other) = UnixStream::pair().unwrap();
        assert!(super::confine().unwrap().ends_with("seccomp, rlimits"));

        let refused = [
            std::fs::File::open("/etc/hostname").err(),
            std::fs::write("/tmp/confined", "x").err(),
            std::fs::read_dir("/").err(),
            TcpListener::bind("127.0.0.1:0").err(),
            TcpStream::connect(address).err(),
            UdpSocket::bind("127.0.0.1:0").err(),
            UnixStream::pair().err(),
            Command::new("/bin/true").spawn().err(),
            rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
                .err()
                .map(Into::into),
        ];
        for (index, error) in refused.into_iter().enumerate() {
            let error = error.unwrap_or_else(|| panic!("attempt {index} was allowed"));
            assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied, "attempt {index}: {error}");
        }

        let written = std::thread::spawn(move || std::io::Write::write_all(&mut &one, b"x"));
        let mut byte = [0];
        std::io::Read::read_exact(&mut &other, &mut byte).unwrap();
        written.join().unwrap().unwrap();
    }
}
