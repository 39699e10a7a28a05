//! Every decision of the provider about its leases, as a machine that is told the time and what happened.
//!
//! Inputs only change what the machine knows; then one pass over the leases compares that with what should
//! be, and says what is to be done. So an input that comes twice, late or after a restart does no harm: what
//! is already under way is not asked for again.
//!
//! Two clocks: `now` is the daemon's own monotonic clock in milliseconds (backoff, time to die); everything
//! the contracts know is in chain seconds and comes with the [`ChainView`].

use alloy::primitives::Address;
use std::collections::BTreeMap;

/// Milliseconds of a monotonic clock that starts with the daemon.
pub type Millis = u64;
pub type LeaseId = u64;
/// sha2-256 digest of the root block of a code directory (CIDv1 dag-pb).
pub type CodeDigest = [u8; 32];

/// First wait before a tenant that ended is started again, or a failed fetch is repeated; doubles.
pub const BACKOFF_MIN_MS: Millis = 200;
pub const BACKOFF_MAX_MS: Millis = 5_000;
/// A tenant that ran this long starts over with the shortest backoff. A guess, unmeasured.
pub const STEADY_MS: Millis = 10_000;
/// From SIGTERM to SIGKILL.
pub const TERM_MS: Millis = 3_000;
/// A transaction that the chain does not show after this many blocks is asked for again.
pub const RESEND_BLOCKS: u64 = 10;

/// What the provider decides about tenants that it could not decide differently later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Habits {
    /// Chain seconds between withdrawals of accrued rent.
    pub withdraw_every_secs: u64,
    /// Chain seconds for which a tenant goes on without escrow.
    pub credit_secs: u64,
    /// Keys and data of a closed lease go when this many further blocks still say so: a reorg may bring it back.
    pub final_blocks: u64,
    /// Rent in micro-USDC that a lease has earned before its node key gets gas; None: no key gets any.
    pub gift_after_uusdc: Option<u128>,
}

/// What this provider's part of the market looks like at one block.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChainView {
    pub block: u64,
    /// Chain seconds.
    pub timestamp: u64,
    /// Seconds after its last vouch for which a lease still earns.
    pub grace_secs: u64,
    /// Seconds without a vouch after which anyone may end a lease.
    pub drop_after_secs: u64,
    /// Every lease of this provider that is not closed.
    pub leases: Vec<LeaseView>,
    pub offers: Vec<OfferView>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseView {
    pub id: LeaseId,
    pub treasury: Address,
    pub code: CodeDigest,
    /// What the rented offer promises.
    pub memory_mib: u32,
    /// False: requested, to be made ready until `ready_by`.
    pub ready: bool,
    pub ready_by: u64,
    /// Chain seconds; 0 until ready.
    pub end: u64,
    pub vouched_at: u64,
    pub node_key: Address,
    /// Rent earned so far, micro-USDC: what ending the lease does not give back to its tenant.
    pub earned_uusdc: u128,
    /// The part of it that is not withdrawn yet.
    pub due_uusdc: u128,
    /// Chain second up to which all that was ever put into escrow pays; 0 until ready.
    pub paid_until: u64,
}

impl LeaseView {
    /// Whether a process should run for it at chain time `timestamp`: within its term, and not unpaid for longer than
    /// `credit_secs`. The market lets a lease without escrow stand until its end, and its rent comes from nowhere.
    pub fn is_live(&self, timestamp: u64, credit_secs: u64) -> bool {
        if !self.ready {
            return timestamp <= self.ready_by;
        }
        timestamp < self.end && timestamp <= self.paid_until.saturating_add(credit_secs)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OfferView {
    pub id: u64,
    /// As the chain has it.
    pub price_e6: u64,
    /// As this provider asks at this block.
    pub quote_e6: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    Chain(ChainView),
    /// The code lies verified on the disk.
    Fetched {
        code: CodeDigest,
    },
    FetchFailed {
        code: CodeDigest,
        attempt: u32,
    },
    /// The tenant's first line: its node key.
    Hello {
        lease: LeaseId,
        run: u64,
        node_key: Address,
    },
    /// Every process of that run is gone, or it could not be started.
    Exited {
        lease: LeaseId,
        run: u64,
    },
    /// `ready` was not accepted; the next block decides whether to try again.
    ReadyFailed {
        lease: LeaseId,
    },
    /// The gift has not left, and will not.
    GiftFailed {
        lease: LeaseId,
    },
    Tick,
    /// The daemon ends: every tenant is stopped, nothing is destroyed.
    Shutdown,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// `attempt` counts from 1 and comes back with a failure, so that a late one is not taken for a new one.
    Fetch {
        code: CodeDigest,
        attempt: u32,
    },
    Start {
        lease: LeaseId,
        run: u64,
        treasury: Address,
        code: CodeDigest,
        memory_mib: u32,
    },
    /// Gas, so that the node can send a challenge or a takeover by itself. A machine asks for it once a lease, again only after
    /// [`Input::GiftFailed`]; over restarts [`crate::lease_dir`] knows who got it.
    GiftGas {
        lease: LeaseId,
        node_key: Address,
    },
    SendReady {
        lease: LeaseId,
        node_key: Address,
    },
    /// SIGTERM to the tenant's process group.
    Terminate {
        lease: LeaseId,
        run: u64,
    },
    /// SIGKILL to everything in the sandbox.
    Kill {
        lease: LeaseId,
        run: u64,
    },
    /// The seal key first, then the data.
    Destroy {
        lease: LeaseId,
    },
    Withdraw {
        lease: LeaseId,
    },
    Expire {
        lease: LeaseId,
    },
    Reprice {
        offer: u64,
        price_e6: u64,
    },
}

#[derive(Clone, Debug)]
pub struct LeaseLoop {
    leases: BTreeMap<LeaseId, Lease>,
    codes: BTreeMap<CodeDigest, Code>,
    /// The offer's last asked price and the block at which it was asked.
    repriced: BTreeMap<u64, (u64, u64)>,
    block: Option<Block>,
    habits: Habits,
    closing: bool,
}

#[derive(Clone, Copy, Debug)]
struct Block {
    number: u64,
    timestamp: u64,
    grace_secs: u64,
    drop_after_secs: u64,
}

#[derive(Clone, Debug)]
struct Lease {
    /// None: the chain does not show it (closed, or not looked at yet).
    view: Option<LeaseView>,
    /// The first of the blocks that do not show it.
    gone_at: Option<u64>,
    process: Process,
    /// Counts starts, so that news of an earlier process is not taken for this one's.
    run: u64,
    failures: u32,
    hello: Option<Address>,
    ready_sent: Option<(Address, u64)>,
    /// The block from which on the lease's gift may be asked for; None: it was.
    gift_due: Option<u64>,
    expire_sent: Option<u64>,
    /// Chain seconds of the last withdrawal, or when the lease was first seen.
    withdrawn_at: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Process {
    None,
    Waiting { until: Millis },
    Running { since: Millis },
    Terminated { kill_at: Millis },
    Killed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Code {
    Fetching { attempt: u32 },
    Here,
    Failed { attempt: u32, until: Millis },
}

/// A tenant as `/status` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TenantStatus {
    pub lease: LeaseId,
    pub treasury: Option<Address>,
    pub state: &'static str,
    pub run: u64,
    pub failures: u32,
    pub node_key: Option<Address>,
    pub end: Option<u64>,
    pub due_uusdc: u128,
}

impl LeaseLoop {
    /// `kept` are the leases that have a directory: this daemon, or one before it, ran them. Their processes
    /// died with it; whether they run again or are destroyed is for the first [`ChainView`] to say.
    pub fn new(habits: Habits, kept: impl IntoIterator<Item = LeaseId>) -> Self {
        let leases = kept.into_iter().map(|id| (id, Lease::new())).collect();
        Self { leases, codes: BTreeMap::new(), repriced: BTreeMap::new(), block: None, habits, closing: false }
    }

    /// Takes one input in and appends what is to be done about it. Never fails, never blocks.
    pub fn handle(&mut self, now: Millis, input: Input, out: &mut Vec<Output>) {
        match input {
            Input::Chain(view) => self.see(view, out),
            Input::Fetched { code } => {
                self.codes.insert(code, Code::Here);
            }
            Input::FetchFailed { code, attempt } => self.fetch_failed(now, code, attempt),
            Input::Hello { lease, run, node_key } => {
                if let Some(lease) = self.run_of(lease, run) {
                    lease.hello = Some(node_key);
                }
            }
            Input::Exited { lease, run } => {
                let closing = self.closing;
                if let Some(lease) = self.run_of(lease, run) {
                    lease.exited(now, closing);
                }
            }
            Input::ReadyFailed { lease } => {
                if let (Some(lease), Some(block)) = (self.leases.get_mut(&lease), self.block)
                    && let Some((_, sent_at)) = &mut lease.ready_sent
                {
                    // Due again one block from now, not at once: the chain would only refuse again.
                    *sent_at = (block.number + 1).saturating_sub(RESEND_BLOCKS);
                }
            }
            Input::GiftFailed { lease } => {
                if let (Some(lease), Some(block)) = (self.leases.get_mut(&lease), self.block) {
                    lease.gift_due = Some(block.number + RESEND_BLOCKS);
                }
            }
            Input::Tick => {}
            Input::Shutdown => self.closing = true,
        }
        self.reconcile(now, out);
    }

    /// True when no process is left: after [`Input::Shutdown`] the daemon may end.
    pub fn is_quiet(&self) -> bool {
        self.leases.values().all(|l| !l.process.is_alive())
    }

    pub fn status(&self) -> Vec<TenantStatus> {
        let timestamp = self.block.map_or(0, |b| b.timestamp);
        self.leases.iter().map(|(id, lease)| lease.status(*id, timestamp, self.habits)).collect()
    }

    /// The lease, if `run` is its present process.
    fn run_of(&mut self, lease: LeaseId, run: u64) -> Option<&mut Lease> {
        self.leases.get_mut(&lease).filter(|l| l.run == run && l.process.is_alive())
    }

    fn see(&mut self, view: ChainView, out: &mut Vec<Output>) {
        let block = Block {
            number: view.block,
            timestamp: view.timestamp,
            grace_secs: view.grace_secs,
            drop_after_secs: view.drop_after_secs,
        };
        self.block = Some(block);
        for lease in self.leases.values_mut() {
            lease.view = None;
        }
        for seen in view.leases {
            let lease = self.leases.entry(seen.id).or_insert_with(Lease::new);
            if lease.withdrawn_at == 0 {
                lease.withdrawn_at = block.timestamp;
            }
            lease.gone_at = None;
            lease.view = Some(seen);
        }
        for lease in self.leases.values_mut().filter(|l| l.view.is_none()) {
            // A lower number than before: the chain was reorganised, the count starts again.
            lease.gone_at = Some(lease.gone_at.unwrap_or(block.number).min(block.number));
        }
        if !self.closing {
            self.reprice(block.number, &view.offers, out);
        }
    }

    fn reprice(&mut self, block: u64, offers: &[OfferView], out: &mut Vec<Output>) {
        for offer in offers.iter().filter(|o| o.price_e6 != o.quote_e6) {
            let pending = self
                .repriced
                .get(&offer.id)
                .is_some_and(|(price, at)| *price == offer.quote_e6 && block < at + RESEND_BLOCKS && block >= *at);
            if !pending {
                self.repriced.insert(offer.id, (offer.quote_e6, block));
                out.push(Output::Reprice { offer: offer.id, price_e6: offer.quote_e6 });
            }
        }
    }

    fn fetch_failed(&mut self, now: Millis, code: CodeDigest, attempt: u32) {
        if self.codes.get(&code) == Some(&Code::Fetching { attempt }) {
            self.codes.insert(code, Code::Failed { attempt, until: now + backoff_ms(attempt) });
        }
    }

    fn reconcile(&mut self, now: Millis, out: &mut Vec<Output>) {
        let Some(block) = self.block else {
            // Nothing runs before the first look at the chain, so there is nothing to stop either.
            return;
        };
        let mut destroyed = Vec::new();
        let habits = self.habits;
        for (id, lease) in &mut self.leases {
            let wanted =
                !self.closing && lease.view.as_ref().is_some_and(|v| v.is_live(block.timestamp, habits.credit_secs));
            match lease.process {
                Process::None if wanted => lease.start(*id, now, &mut self.codes, out),
                Process::Waiting { until } if wanted && now >= until => lease.start(*id, now, &mut self.codes, out),
                Process::Waiting { .. } if !wanted => lease.process = Process::None,
                Process::Running { .. } if !wanted => {
                    lease.process = Process::Terminated { kill_at: now + TERM_MS };
                    out.push(Output::Terminate { lease: *id, run: lease.run });
                }
                Process::Terminated { kill_at } if now >= kill_at => {
                    lease.process = Process::Killed;
                    out.push(Output::Kill { lease: *id, run: lease.run });
                }
                _ => {}
            }
            if self.closing {
                continue;
            }
            let final_at = lease.gone_at.map(|at| at.saturating_add(habits.final_blocks));
            if lease.process == Process::None && final_at.is_some_and(|at| block.number >= at) {
                out.push(Output::Destroy { lease: *id });
                destroyed.push(*id);
                continue;
            }
            lease.send(*id, block, habits, out);
        }
        for id in destroyed {
            self.leases.remove(&id);
        }
    }
}

impl Process {
    fn is_alive(self) -> bool {
        matches!(self, Process::Running { .. } | Process::Terminated { .. } | Process::Killed)
    }
}

impl Lease {
    fn new() -> Self {
        Self {
            view: None,
            gone_at: None,
            process: Process::None,
            run: 0,
            failures: 0,
            hello: None,
            ready_sent: None,
            gift_due: Some(0),
            expire_sent: None,
            withdrawn_at: 0,
        }
    }

    /// Starts the process, or has its code fetched first.
    fn start(&mut self, id: LeaseId, now: Millis, codes: &mut BTreeMap<CodeDigest, Code>, out: &mut Vec<Output>) {
        let Some(view) = &self.view else { return };
        let attempt = match codes.get(&view.code).copied() {
            Some(Code::Here) => {
                self.run += 1;
                self.process = Process::Running { since: now };
                let LeaseView { treasury, code, memory_mib, .. } = *view;
                out.push(Output::Start { lease: id, run: self.run, treasury, code, memory_mib });
                return;
            }
            Some(Code::Fetching { .. }) => return,
            Some(Code::Failed { until, .. }) if now < until => return,
            Some(Code::Failed { attempt, .. }) => attempt.saturating_add(1),
            None => 1,
        };
        codes.insert(view.code, Code::Fetching { attempt });
        out.push(Output::Fetch { code: view.code, attempt });
    }

    fn exited(&mut self, now: Millis, closing: bool) {
        let steady = matches!(self.process, Process::Running { since } if now >= since + STEADY_MS);
        self.failures = if steady { 1 } else { self.failures.saturating_add(1) };
        self.hello = None;
        self.process = match self.process {
            Process::Running { .. } if !closing => Process::Waiting { until: now + backoff_ms(self.failures) },
            _ => Process::None,
        };
    }

    /// What the chain is to be told about this lease.
    fn send(&mut self, id: LeaseId, block: Block, habits: Habits, out: &mut Vec<Output>) {
        let Some(view) = &self.view else { return };
        let now = block.timestamp;
        if let Some(node_key) = self.hello.filter(|key| view.wants_key(*key, block, habits.credit_secs)) {
            let pending = self.ready_sent.is_some_and(|(key, at)| key == node_key && is_pending(at, block.number));
            if !pending {
                self.ready_sent = Some((node_key, block.number));
                out.push(Output::SendReady { lease: id, node_key });
            }
        }
        if !view.ready {
            return;
        }
        if view.has_earned(habits.gift_after_uusdc)
            && self.hello == Some(view.node_key)
            && self.gift_due.is_some_and(|from| block.number >= from)
        {
            self.gift_due = None;
            out.push(Output::GiftGas { lease: id, node_key: view.node_key });
        }
        let over = now > view.end || now > view.vouched_at + block.drop_after_secs;
        if over && !self.expire_sent.is_some_and(|at| is_pending(at, block.number)) {
            self.expire_sent = Some(block.number);
            out.push(Output::Expire { lease: id });
        } else if !over && view.due_uusdc > 0 && now >= self.withdrawn_at + habits.withdraw_every_secs {
            self.withdrawn_at = now;
            out.push(Output::Withdraw { lease: id });
        }
    }

    fn status(&self, lease: LeaseId, timestamp: u64, habits: Habits) -> TenantStatus {
        let state = match (self.process, &self.view) {
            (Process::Terminated { .. } | Process::Killed, _) => "stopping",
            (_, None) => "closed",
            (_, Some(view)) if view.is_live(timestamp, u64::MAX) && !view.is_live(timestamp, habits.credit_secs) => {
                "unpaid"
            }
            (_, Some(view)) if !view.is_live(timestamp, u64::MAX) => "over",
            (Process::Running { .. }, Some(view)) if view.ready => "serving",
            (Process::Running { .. }, Some(_)) if self.hello.is_some() => "announced",
            (Process::Running { .. }, Some(_)) => "starting",
            (Process::Waiting { .. }, _) => "restarting",
            (Process::None, Some(_)) => "fetching",
        };
        TenantStatus {
            lease,
            treasury: self.view.as_ref().map(|v| v.treasury),
            state,
            run: self.run,
            failures: self.failures,
            node_key: self.hello.or(self.view.as_ref().map(|v| v.node_key).filter(|k| !k.is_zero())),
            end: self.view.as_ref().map(|v| v.end).filter(|e| *e != 0),
            due_uusdc: self.view.as_ref().map_or(0, |v| v.due_uusdc),
        }
    }
}

impl LeaseView {
    fn has_earned(&self, least_uusdc: Option<u128>) -> bool {
        least_uusdc.is_some_and(|least| self.earned_uusdc >= least)
    }

    /// Whether `ready` with this key would be accepted and change something: the first time within
    /// `ready_by`, later only for another key after silence (`ILeaseMarket.ready`).
    fn wants_key(&self, node_key: Address, block: Block, credit_secs: u64) -> bool {
        if !self.is_live(block.timestamp, credit_secs) {
            return false;
        }
        !self.ready || (self.node_key != node_key && block.timestamp > self.vouched_at + block.grace_secs)
    }
}

fn is_pending(sent_at: u64, block: u64) -> bool {
    // A chain that went back behind the block of sending may have dropped the transaction.
    block >= sent_at && block < sent_at + RESEND_BLOCKS
}

/// 200 ms doubling to 5 s.
fn backoff_ms(failures: u32) -> Millis {
    let doublings = failures.saturating_sub(1).min(10);
    (BACKOFF_MIN_MS << doublings).min(BACKOFF_MAX_MS)
}

#[cfg(test)]
mod tests;
