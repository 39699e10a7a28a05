use super::*;
use std::collections::BTreeSet;

const CODE: CodeDigest = [7; 32];
const GRACE: u64 = 34;
const DROP: u64 = 40;
const HABITS: Habits =
    Habits { withdraw_every_secs: 86_400, credit_secs: 25, final_blocks: 2, gift_after_uusdc: Some(100) };

fn key(n: u8) -> Address {
    Address::repeat_byte(n)
}

fn requested(id: LeaseId, ready_by: u64) -> LeaseView {
    LeaseView {
        id,
        treasury: key(0xaa),
        code: CODE,
        memory_mib: 512,
        ready: false,
        ready_by,
        end: 0,
        vouched_at: 0,
        node_key: Address::ZERO,
        earned_uusdc: 0,
        due_uusdc: 0,
        paid_until: 0,
    }
}

fn ready(id: LeaseId, node_key: Address, vouched_at: u64, end: u64) -> LeaseView {
    LeaseView { ready: true, node_key, vouched_at, end, paid_until: end, ..requested(id, 0) }
}

fn at(block: u64, leases: Vec<LeaseView>) -> Input {
    Input::Chain(ChainView {
        block,
        timestamp: 1000 + block,
        grace_secs: GRACE,
        drop_after_secs: DROP,
        leases,
        offers: vec![],
    })
}

fn step(machine: &mut LeaseLoop, now: Millis, input: Input) -> Vec<Output> {
    let mut out = Vec::new();
    machine.handle(now, input, &mut out);
    out
}

fn start(lease: LeaseId, run: u64) -> Output {
    Output::Start { lease, run, treasury: key(0xaa), code: CODE, memory_mib: 512 }
}

/// A machine whose lease 1 runs (run 1) and is ready on the chain until chain second 2000, at block 3.
fn serving() -> LeaseLoop {
    let mut machine = LeaseLoop::new(HABITS, []);
    step(&mut machine, 0, at(1, vec![requested(1, 1050)]));
    step(&mut machine, 1, Input::Fetched { code: CODE });
    step(&mut machine, 2, Input::Hello { lease: 1, run: 1, node_key: key(1) });
    assert_eq!(step(&mut machine, 3, at(3, vec![ready(1, key(1), 1003, 2000)])), []);
    machine
}

#[test]
fn a_request_is_fetched_started_and_announced_once() {
    let mut machine = LeaseLoop::new(HABITS, []);
    let request = || at(1, vec![requested(1, 1050)]);
    assert_eq!(step(&mut machine, 0, request()), [Output::Fetch { code: CODE, attempt: 1 }]);
    assert_eq!(step(&mut machine, 1, request()), []);
    assert_eq!(step(&mut machine, 2, Input::Fetched { code: CODE }), [start(1, 1)]);
    assert_eq!(step(&mut machine, 3, Input::Fetched { code: CODE }), []);
    let hello = || Input::Hello { lease: 1, run: 1, node_key: key(1) };
    let announced = [Output::SendReady { lease: 1, node_key: key(1) }];
    assert_eq!(step(&mut machine, 4, hello()), announced);
    assert_eq!(step(&mut machine, 5, hello()), []);
    // Lost on its way: asked for again, but not before the chain had its chance.
    assert_eq!(step(&mut machine, 6, at(10, vec![requested(1, 1050)])), []);
    assert_eq!(step(&mut machine, 7, at(11, vec![requested(1, 1050)])), announced);
    assert_eq!(step(&mut machine, 8, Input::ReadyFailed { lease: 1 }), []);
    assert_eq!(step(&mut machine, 9, at(12, vec![requested(1, 1050)])), announced);
}

#[test]
fn an_unpaid_tenant_is_stopped_after_its_credit_and_comes_back_when_it_is_paid() {
    let mut machine = serving();
    let paid = |until| LeaseView { paid_until: until, ..ready(1, key(1), 1040, 2000) };
    // Nothing was prepaid since chain second 1003; it may go on for 25 s and no longer.
    assert_eq!(step(&mut machine, 10, at(28, vec![paid(1003)])), []);
    assert_eq!(step(&mut machine, 11, at(29, vec![paid(1003)])), [Output::Terminate { lease: 1, run: 1 }]);
    step(&mut machine, 12, Input::Exited { lease: 1, run: 1 });
    assert_eq!(machine.status()[0].state, "unpaid");
    // The lease stands and its tenant vouches: neither its data nor its place is given up, and nothing runs.
    assert_eq!(step(&mut machine, 13, at(30, vec![paid(1003)])), []);
    assert_eq!(step(&mut machine, 14, at(31, vec![paid(1500)])), [start(1, 2)]);
    assert_eq!(machine.status()[0].state, "serving");
}

#[test]
fn two_leases_of_the_same_code_fetch_it_once() {
    let mut machine = LeaseLoop::new(HABITS, []);
    let out = step(&mut machine, 0, at(1, vec![requested(1, 1050), requested(2, 1050)]));
    assert_eq!(out, [Output::Fetch { code: CODE, attempt: 1 }]);
    assert_eq!(step(&mut machine, 1, Input::Fetched { code: CODE }), [start(1, 1), start(2, 1)]);
}

#[test]
fn a_failed_fetch_waits_longer_each_time() {
    let mut machine = LeaseLoop::new(HABITS, []);
    step(&mut machine, 0, at(1, vec![requested(1, 9999)]));
    let mut now = 0;
    for (attempt, wait) in (1..).zip([200, 400, 800, 1600, 3200, 5000, 5000]) {
        assert_eq!(step(&mut machine, now, Input::FetchFailed { code: CODE, attempt }), []);
        assert_eq!(step(&mut machine, now, Input::FetchFailed { code: CODE, attempt }), [], "it counts once");
        assert_eq!(step(&mut machine, now + wait - 1, Input::Tick), []);
        now += wait;
        assert_eq!(step(&mut machine, now, Input::Tick), [Output::Fetch { code: CODE, attempt: attempt + 1 }]);
        assert_eq!(step(&mut machine, now, Input::FetchFailed { code: CODE, attempt }), [], "an old failure");
    }
}

#[test]
fn a_tenant_that_ends_comes_back_with_backoff() {
    let mut machine = serving();
    let mut now = 100;
    for (run, wait) in [(1, 200), (2, 400), (3, 800)] {
        assert_eq!(step(&mut machine, now, Input::Exited { lease: 1, run }), []);
        assert_eq!(step(&mut machine, now, Input::Exited { lease: 1, run }), []);
        assert_eq!(step(&mut machine, now + wait - 1, Input::Tick), []);
        now += wait;
        assert_eq!(step(&mut machine, now, Input::Tick), [start(1, run + 1)]);
    }
    // Long enough alive: the shortest wait again.
    now += STEADY_MS;
    step(&mut machine, now, Input::Exited { lease: 1, run: 4 });
    assert_eq!(step(&mut machine, now + 200, Input::Tick), [start(1, 5)]);
}

#[test]
fn a_restarted_tenant_with_the_same_key_is_not_announced_again() {
    let mut machine = serving();
    step(&mut machine, 100, Input::Exited { lease: 1, run: 1 });
    step(&mut machine, 300, Input::Tick);
    assert_eq!(step(&mut machine, 301, Input::Hello { lease: 1, run: 2, node_key: key(1) }), []);
}

#[test]
fn another_node_key_is_announced_only_after_silence() {
    let mut machine = serving();
    step(&mut machine, 100, Input::Exited { lease: 1, run: 1 });
    step(&mut machine, 300, Input::Tick);
    assert_eq!(step(&mut machine, 301, Input::Hello { lease: 1, run: 2, node_key: key(2) }), []);
    assert_eq!(step(&mut machine, 302, at(37, vec![ready(1, key(1), 1003, 2000)])), []);
    assert_eq!(
        step(&mut machine, 303, at(38, vec![ready(1, key(1), 1003, 2000)])),
        [Output::SendReady { lease: 1, node_key: key(2) }]
    );
}

#[test]
fn a_lease_gets_its_gas_once_it_has_earned_it_and_no_second_time() {
    let mut machine = serving();
    let earned =
        |block: u64, n: u8, uusdc| at(block, vec![LeaseView { earned_uusdc: uusdc, ..ready(1, key(n), 1003, 2000) }]);
    let gift = |n| [Output::GiftGas { lease: 1, node_key: key(n) }];
    assert_eq!(step(&mut machine, 4, earned(4, 1, 99)), []);
    assert_eq!(step(&mut machine, 5, earned(5, 1, 100)), gift(1));
    // On its way, however long that takes.
    assert_eq!(step(&mut machine, 6, earned(30, 1, 100)), []);
    // It never left: asked for again, later.
    assert_eq!(step(&mut machine, 7, Input::GiftFailed { lease: 1 }), []);
    assert_eq!(step(&mut machine, 8, earned(39, 1, 100)), []);
    assert_eq!(step(&mut machine, 9, earned(40, 1, 100)), gift(1));
    // The tenant starts anew with a key that is announced, too: the lease had its gift.
    step(&mut machine, 100, Input::Exited { lease: 1, run: 1 });
    step(&mut machine, 300, Input::Tick);
    let announced = [Output::SendReady { lease: 1, node_key: key(2) }];
    assert_eq!(step(&mut machine, 301, Input::Hello { lease: 1, run: 2, node_key: key(2) }), announced);
    assert_eq!(step(&mut machine, 302, earned(41, 2, 200)), []);
}

#[test]
fn whoever_prepays_nothing_or_takes_it_back_before_it_is_earned_gets_no_gas() {
    let mut machine = serving();
    // What is in escrow goes back with the lease: however much that is, it has earned nothing yet.
    let prepaid = LeaseView { paid_until: 9_000, earned_uusdc: 0, ..ready(1, key(1), 1003, 2000) };
    assert_eq!(step(&mut machine, 4, at(4, vec![prepaid])), []);
    assert_eq!(step(&mut machine, 5, at(5, vec![])), [Output::Terminate { lease: 1, run: 1 }]);
}

#[test]
fn only_the_key_that_is_announced_and_runs_gets_gas() {
    let mut machine = serving();
    let earned = |block: u64| at(block, vec![LeaseView { earned_uusdc: 100, ..ready(1, key(1), 1003, 2000) }]);
    step(&mut machine, 4, Input::Exited { lease: 1, run: 1 });
    assert_eq!(step(&mut machine, 5, earned(4)), []);
    step(&mut machine, 300, Input::Tick);
    step(&mut machine, 301, Input::Hello { lease: 1, run: 2, node_key: key(2) });
    assert_eq!(step(&mut machine, 302, earned(5)), []);
    let mut none = LeaseLoop::new(Habits { gift_after_uusdc: None, ..HABITS }, []);
    step(&mut none, 0, at(1, vec![requested(1, 1050)]));
    step(&mut none, 1, Input::Fetched { code: CODE });
    step(&mut none, 2, Input::Hello { lease: 1, run: 1, node_key: key(1) });
    assert_eq!(step(&mut none, 3, earned(3)), [], "this provider gives none");
}

#[test]
fn a_hello_of_an_earlier_process_is_not_heard() {
    let mut machine = LeaseLoop::new(HABITS, []);
    step(&mut machine, 0, at(1, vec![requested(1, 1050)]));
    step(&mut machine, 1, Input::Fetched { code: CODE });
    step(&mut machine, 2, Input::Exited { lease: 1, run: 1 });
    step(&mut machine, 202, Input::Tick);
    assert_eq!(step(&mut machine, 203, Input::Hello { lease: 1, run: 1, node_key: key(9) }), []);
}

#[test]
fn a_closed_lease_is_terminated_killed_and_destroyed_at_finality() {
    let mut machine = serving();
    assert_eq!(step(&mut machine, 100, at(4, vec![])), [Output::Terminate { lease: 1, run: 1 }]);
    assert_eq!(step(&mut machine, 101, at(5, vec![])), []);
    assert_eq!(step(&mut machine, 100 + TERM_MS, Input::Tick), [Output::Kill { lease: 1, run: 1 }]);
    assert_eq!(step(&mut machine, 4000, at(9, vec![])), [], "a process is left: its key is still in use");
    assert_eq!(step(&mut machine, 4001, Input::Exited { lease: 1, run: 1 }), [Output::Destroy { lease: 1 }]);
    assert_eq!(step(&mut machine, 4002, at(10, vec![])), []);
    assert_eq!(machine.status(), []);
}

#[test]
fn a_lease_that_a_reorg_brings_back_runs_again_with_its_key() {
    let mut machine = serving();
    step(&mut machine, 100, at(4, vec![]));
    step(&mut machine, 200, Input::Exited { lease: 1, run: 1 });
    assert_eq!(step(&mut machine, 300, at(5, vec![])), []);
    assert_eq!(step(&mut machine, 400, at(4, vec![ready(1, key(1), 1003, 2000)])), [start(1, 2)]);
}

#[test]
fn past_its_end_a_lease_stops_and_is_expired() {
    let mut machine = serving();
    assert_eq!(
        step(&mut machine, 100, at(1000, vec![ready(1, key(1), 1990, 2000)])),
        [Output::Terminate { lease: 1, run: 1 }]
    );
    assert_eq!(step(&mut machine, 101, at(1001, vec![ready(1, key(1), 1990, 2000)])), [Output::Expire { lease: 1 }]);
    assert_eq!(step(&mut machine, 102, at(1002, vec![ready(1, key(1), 1990, 2000)])), []);
}

#[test]
fn a_lease_that_nobody_vouches_for_is_expired() {
    let mut machine = serving();
    assert_eq!(step(&mut machine, 100, at(43, vec![ready(1, key(1), 1003, 2000)])), []);
    assert_eq!(step(&mut machine, 101, at(44, vec![ready(1, key(1), 1003, 2000)])), [Output::Expire { lease: 1 }]);
}

#[test]
fn a_request_past_its_deadline_is_not_run() {
    let mut machine = LeaseLoop::new(HABITS, []);
    assert_eq!(step(&mut machine, 0, at(51, vec![requested(1, 1050)])), []);
}

#[test]
fn rent_is_withdrawn_once_a_period() {
    let mut machine = LeaseLoop::new(Habits { withdraw_every_secs: 20, ..HABITS }, []);
    let due = |block: u64| at(block, vec![LeaseView { due_uusdc: 5, ..ready(1, key(1), 1000 + block, 9000) }]);
    assert_eq!(step(&mut machine, 0, due(1)), [Output::Fetch { code: CODE, attempt: 1 }]);
    assert_eq!(step(&mut machine, 1, due(20)), []);
    assert_eq!(step(&mut machine, 2, due(21)), [Output::Withdraw { lease: 1 }]);
    assert_eq!(step(&mut machine, 3, due(21)), []);
    assert_eq!(step(&mut machine, 4, due(41)), [Output::Withdraw { lease: 1 }]);
}

#[test]
fn a_quote_that_differs_from_the_chain_is_posted() {
    let mut machine = LeaseLoop::new(Habits { withdraw_every_secs: 20, ..HABITS }, []);
    let view = |block, price_e6, quote_e6| {
        Input::Chain(ChainView {
            block,
            timestamp: 1000 + block,
            offers: vec![OfferView { id: 4, price_e6, quote_e6 }],
            ..ChainView::default()
        })
    };
    assert_eq!(step(&mut machine, 0, view(1, 10, 10)), []);
    assert_eq!(step(&mut machine, 0, view(2, 10, 12)), [Output::Reprice { offer: 4, price_e6: 12 }]);
    assert_eq!(step(&mut machine, 0, view(3, 10, 12)), []);
    assert_eq!(step(&mut machine, 0, view(4, 10, 13)), [Output::Reprice { offer: 4, price_e6: 13 }]);
    assert_eq!(step(&mut machine, 0, view(14, 10, 13)), [Output::Reprice { offer: 4, price_e6: 13 }]);
}

#[test]
fn after_kill_9_of_the_daemon_a_live_lease_is_adopted_and_a_dead_one_destroyed() {
    let mut machine = LeaseLoop::new(HABITS, [1, 2]);
    assert_eq!(step(&mut machine, 0, Input::Tick), []);
    assert_eq!(
        step(&mut machine, 1, at(5, vec![ready(1, key(1), 1003, 2000)])),
        [Output::Fetch { code: CODE, attempt: 1 }],
        "the code is verified again; its blocks are here, so that costs a read"
    );
    assert_eq!(step(&mut machine, 2, Input::Fetched { code: CODE }), [start(1, 1)]);
    assert_eq!(step(&mut machine, 3, at(6, vec![ready(1, key(1), 1003, 2000)])), []);
    assert_eq!(step(&mut machine, 4, at(7, vec![ready(1, key(1), 1003, 2000)])), [Output::Destroy { lease: 2 }]);
}

#[test]
fn at_shutdown_everything_stops_and_nothing_is_destroyed() {
    let mut machine = serving();
    assert!(!machine.is_quiet());
    assert_eq!(step(&mut machine, 10, Input::Shutdown), [Output::Terminate { lease: 1, run: 1 }]);
    assert_eq!(step(&mut machine, 11, at(20, vec![])), []);
    assert_eq!(step(&mut machine, 12, Input::Exited { lease: 1, run: 1 }), []);
    assert!(machine.is_quiet());
    assert_eq!(step(&mut machine, 13, at(30, vec![])), []);
}

/// A made-up world in which anything may happen twice, late or not at all, and the daemon may be killed.
struct World {
    dice: u64,
    now: Millis,
    block: u64,
    leases: Vec<LeaseView>,
    /// The block and leases that the machine was last told of: all that it can be held to.
    told: (u64, Vec<LeaseView>),
    next_lease: LeaseId,
    machine: LeaseLoop,
    /// Runs that live: (lease, run).
    alive: BTreeSet<(LeaseId, u64)>,
    directories: BTreeSet<LeaseId>,
    /// The attempt under way.
    fetching: Option<u32>,
    late: Vec<Input>,
}

impl World {
    fn roll(&mut self, sides: u64) -> u64 {
        self.dice = self.dice.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.dice;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (x ^ (x >> 31)) % sides
    }

    fn pick(&mut self) -> Option<usize> {
        let len = u64::try_from(self.leases.len()).unwrap();
        (len > 0).then(|| usize::try_from(self.roll(len)).unwrap())
    }

    fn chain_input(&mut self) -> Input {
        self.told = (self.block, self.leases.clone());
        at(self.block, self.leases.clone())
    }

    fn feed(&mut self, input: Input) {
        let doubled = self.roll(5) == 0;
        if self.roll(8) == 0 && !matches!(input, Input::Chain(_)) {
            self.late.push(input.clone());
        }
        for _ in 0..=u8::from(doubled) {
            let mut out = Vec::new();
            self.machine.handle(self.now, input.clone(), &mut out);
            for output in out {
                self.perform(output);
            }
        }
    }

    fn live(&self, lease: LeaseId) -> bool {
        let (block, leases) = &self.told;
        leases.iter().any(|l| l.id == lease && l.is_live(1000 + block, HABITS.credit_secs))
    }

    fn perform(&mut self, output: Output) {
        match output {
            Output::Fetch { attempt, .. } => {
                assert_eq!(self.fetching, None, "two fetches of one code at once");
                self.fetching = Some(attempt);
            }
            Output::Start { lease, run, .. } => {
                assert!(self.live(lease), "started for lease {lease}, which is not live");
                assert!(!self.alive.iter().any(|(l, _)| *l == lease), "two processes for lease {lease}");
                self.alive.insert((lease, run));
                self.directories.insert(lease);
            }
            Output::Kill { lease, run } => {
                self.alive.remove(&(lease, run));
                self.late.push(Input::Exited { lease, run });
            }
            Output::Destroy { lease } => {
                assert!(!self.alive.iter().any(|(l, _)| *l == lease), "destroyed under a running process");
                assert!(!self.leases.iter().any(|l| l.id == lease), "destroyed while the lease is open");
                self.directories.remove(&lease);
            }
            Output::SendReady { lease, node_key } => {
                let (now, lost) = (1000 + self.block, self.roll(4) == 0);
                if lost {
                    self.late.push(Input::ReadyFailed { lease });
                } else if let Some(l) = self.leases.iter_mut().find(|l| l.id == lease) {
                    (l.ready, l.node_key, l.vouched_at) = (true, node_key, now);
                    if l.end == 0 {
                        (l.end, l.paid_until) = (now + 200, now + 200);
                    }
                }
            }
            Output::Expire { lease } => self.leases.retain(|l| l.id != lease),
            _ => {}
        }
    }

    fn turn(&mut self, faults: bool) {
        self.now += 100 + self.roll(400);
        match self.roll(if faults { 12 } else { 5 }) {
            0..=2 => {
                self.block += 1;
                let now = 1000 + self.block;
                for lease in self.leases.iter_mut().filter(|l| l.ready) {
                    lease.vouched_at = now;
                }
                let input = self.chain_input();
                self.feed(input);
            }
            3 => self.feed(Input::Tick),
            4 => {
                if let Some(attempt) = self.fetching.take() {
                    let failed = faults && self.roll(3) == 0;
                    self.feed(if failed {
                        Input::FetchFailed { code: CODE, attempt }
                    } else {
                        Input::Fetched { code: CODE }
                    });
                }
                for (lease, run) in self.alive.clone() {
                    let node_key = key(u8::try_from(lease % 200).unwrap() + 1);
                    self.feed(Input::Hello { lease, run, node_key });
                }
            }
            5 | 6 => {
                let id = self.next_lease;
                self.next_lease += 1;
                self.leases.push(requested(id, 1000 + self.block + 45));
            }
            7 => {
                if let Some(i) = self.pick() {
                    self.leases.remove(i);
                }
            }
            8 | 9 => {
                if let Some((lease, run)) = self.alive.pop_first() {
                    self.feed(Input::Exited { lease, run });
                }
            }
            10 => {
                for input in std::mem::take(&mut self.late) {
                    self.feed(input);
                }
            }
            _ => {
                // kill -9: tenants die with the daemon; what was on the disk is what is known afterwards.
                self.alive.clear();
                self.late.clear();
                self.fetching = None;
                self.machine = LeaseLoop::new(Habits { withdraw_every_secs: 50, ..HABITS }, self.directories.clone());
            }
        }
    }
}

#[test]
fn whatever_happens_open_leases_run_and_closed_ones_leave_nothing() {
    for seed in 0..300 {
        let mut world = World {
            dice: seed,
            now: 0,
            block: 1,
            leases: vec![],
            told: (0, vec![]),
            next_lease: 1,
            machine: LeaseLoop::new(Habits { withdraw_every_secs: 50, ..HABITS }, []),
            alive: BTreeSet::new(),
            directories: BTreeSet::new(),
            fetching: None,
            late: vec![],
        };
        for _ in 0..400 {
            world.turn(true);
        }
        // The rain stops: after a while the world is as the chain says.
        for input in std::mem::take(&mut world.late) {
            world.feed(input);
        }
        for _ in 0..200 {
            world.turn(false);
            for input in std::mem::take(&mut world.late) {
                world.feed(input);
            }
        }
        // What ended in the last of those blocks gets the time to die; nothing more ends.
        for lease in &mut world.leases {
            (lease.ready, lease.end) = (true, 1_000_000);
        }
        for _ in 0..6 {
            world.block += 1;
            let now = 1000 + world.block;
            world.leases.iter_mut().for_each(|l| l.vouched_at = now);
            world.now += TERM_MS;
            let input = world.chain_input();
            world.feed(input);
            world.feed(Input::Tick);
            if let Some(attempt) = world.fetching.take() {
                world.feed(Input::FetchFailed { code: CODE, attempt });
                world.feed(Input::Fetched { code: CODE });
            }
            for input in std::mem::take(&mut world.late) {
                world.feed(input);
            }
        }
        let open: BTreeSet<_> = world.leases.iter().map(|l| l.id).filter(|id| world.live(*id)).collect();
        let running: BTreeSet<_> = world.alive.iter().map(|(lease, _)| *lease).collect();
        assert_eq!(running, open, "seed {seed}");
        let left: Vec<_> = world.directories.iter().filter(|d| !world.leases.iter().any(|l| l.id == **d)).collect();
        assert!(left.is_empty(), "seed {seed}: directories {left:?} of closed leases are left");
    }
}
