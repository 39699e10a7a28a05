//! Named places where a test may kill this process, as a power cut would.
//!
//! `VIVARIUM_CRASH=name` kills at the first pass, `VIVARIUM_CRASH=name:3` at the third. SIGKILL and not a panic:
//! nothing may be flushed, unwound or answered. Without the variable a point costs one atomic load.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// The variable that arms a point.
pub const VARIABLE: &str = "VIVARIUM_CRASH";

/// One registered point: its name and what a crash there must not break.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Point {
    pub name: &'static str,
    pub guards: &'static str,
}

/// Every `crash_point!` in the workspace, in the order of a life. A test compares it with the sources both ways.
pub const POINTS: &[Point] = &[
    Point { name: "journal.append", guards: "a record written but not synced is not acknowledged: it may be cut" },
    Point { name: "journal.synced", guards: "a record synced but not yet announced is replayed" },
    Point { name: "pay.reserved", guards: "a reserved authorisation is not served twice" },
    Point { name: "pay.settle_sent", guards: "a settlement on its way is reconciled, not paid twice" },
    Point { name: "pay.served", guards: "a served call is charged once, or its payer refunded" },
    Point { name: "pay.settled", guards: "a settlement that was mined and not recorded is found, not sent again" },
    Point { name: "pay.kept", guards: "an answer that was kept and not sent is charged once or given back" },
    Point { name: "pay.exact_refund_sent", guards: "a payment that goes back goes back once" },
    Point { name: "pay.permit2_sent", guards: "a settlement through a proxy is found on the chain, not lost" },
    Point { name: "pay.call_reserved", guards: "a reserved voucher is charged for nothing that was not delivered" },
    Point { name: "pay.deposit_sent", guards: "a deposit on its way is found in its channel, not sent twice" },
    Point { name: "pay.claim_sent", guards: "a claim on its way is read from the channel, not counted twice" },
    Point { name: "pay.refund_sent", guards: "a channel's refund that was mined is not sent again" },
    Point { name: "checkpoint.sealed", guards: "a sealed snapshot that nobody stored is made again" },
    Point { name: "checkpoint.stored", guards: "a stored checkpoint without acknowledgements changes nothing" },
    Point { name: "checkpoint.acked", guards: "acknowledgements collected twice give one commit" },
    Point { name: "checkpoint.committed", guards: "a commit that was mined is not sent again" },
    Point { name: "rent.sent", guards: "one rent, one standby" },
    Point { name: "topup.sent", guards: "escrow is topped up once" },
    Point { name: "handover.announced", guards: "an announcement without a handover holds nothing up" },
    Point { name: "handover.sent", guards: "a handover that may still be mined is waited for" },
    Point { name: "handover.mined", guards: "the old node finishes, the new one acts, never both" },
    Point { name: "takeover.challenged", guards: "a challenge is made once and waited for" },
    Point { name: "takeover.sent", guards: "a takeover that may still be mined is waited for" },
    Point { name: "restore.loaded", guards: "a restore can be begun again" },
    Point { name: "hibernate.sent", guards: "the agent sleeps once, or is awake and tries again" },
    Point { name: "winddown.sent", guards: "the wind-down goes on from its stage on chain" },
    Point { name: "close.sent", guards: "the close goes on from its stage on chain" },
];

/// Marks a place where `VIVARIUM_CRASH` may kill the process. The name must be in [`POINTS`].
#[macro_export]
macro_rules! crash_point {
    ($name:literal) => {{
        const { assert!($crate::crash::is_registered($name), "this crash point is not in journal::crash::POINTS") };
        $crate::crash::pass($name)
    }};
}

/// Whether `name` is in the registry; `const`, so that a misspelt point does not compile.
pub const fn is_registered(name: &str) -> bool {
    let mut i = 0;
    while i < POINTS.len() {
        if same(POINTS[i].name.as_bytes(), name.as_bytes()) {
            return true;
        }
        i += 1;
    }
    false
}

const fn same(a: &[u8], b: &[u8]) -> bool {
    if a.len() != b.len() {
        return false;
    }
    let mut i = 0;
    while i < a.len() {
        if a[i] != b[i] {
            return false;
        }
        i += 1;
    }
    true
}

struct Armed {
    name: String,
    /// Passes left before the deadly one, counting down.
    passes_left: AtomicU64,
}

static ARMED: OnceLock<Option<Armed>> = OnceLock::new();

/// Arms a point as [`VARIABLE`] would, for a process that gets no environment. The first one to arm wins; an unknown
/// name ends the process.
pub fn arm(value: &str) {
    let _ = ARMED.set(parse(value));
}

/// Called by [`crash_point!`].
pub fn pass(name: &'static str) {
    let Some(armed) = ARMED.get_or_init(|| std::env::var(VARIABLE).ok().as_deref().and_then(parse)) else {
        return;
    };
    if armed.name == name && armed.passes_left.fetch_sub(1, Ordering::SeqCst) == 1 {
        kill_self();
    }
}

/// `name` or `name:nth`. An armed point that does not exist would make a test pass for nothing, so it is fatal.
fn parse(value: &str) -> Option<Armed> {
    let (name, nth) = match value.split_once(':') {
        Some((name, nth)) => (name, nth.parse().ok().filter(|n| *n >= 1)),
        None => (value, Some(1)),
    };
    match nth {
        Some(nth) if is_registered(name) => Some(Armed { name: name.to_owned(), passes_left: AtomicU64::new(nth) }),
        _ => {
            eprintln!("{VARIABLE}={value}: not the name of a crash point (name or name:nth, nth from 1)");
            std::process::exit(2);
        }
    }
}

fn kill_self() -> ! {
    // Nothing after this runs; should the kernel refuse, abort is the next best thing.
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    std::process::abort()
}
