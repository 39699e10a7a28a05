//! Every crash point of the registry, once for real: the node is killed exactly there, its host starts it again (or
//! the standby goes on), and the books balance.
//!
//! One world for all of them: a lease's data folder may hold the name of a point, which arms the next start of the
//! process and no later one (`crash-once` → `crash-armed` → `crash-fired`). A point of payments is passed by several
//! schemes, and the node is killed there once for each; the start after one of these kills is armed with the next, so
//! that each costs one start and not two.

use crate::settling::customers::Town;
use crate::world::{self, World, signal};
use journal::crash::POINTS;
use serde_json::Value;
use std::path::PathBuf;

/// Points that only a successor passes.
const SUCCESSOR: [&str; 3] = ["takeover.challenged", "takeover.sent", "restore.loaded"];
/// Where an agent lies down that `sleep.rs` has.
const SLEEP: &str = "hibernate.sent";
/// Points of the end, in their order.
const END: [&str; 2] = ["winddown.sent", "close.sent"];

/// By what somebody pays while a node is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pays {
    Nothing,
    Exact,
    /// `exact`, and leaves before its answer.
    HungUp,
    Upto,
    ExactPermit2,
    /// A call with its deposit, then the refund with its claim.
    Channel,
}

/// Points of payments, for each scheme that passes them, in the order of one payment.
const PAYMENTS: [(Pays, &[&str]); 5] = [
    (Pays::Exact, &["pay.reserved", "pay.settle_sent", "pay.served", "pay.settled", "pay.kept"]),
    (Pays::HungUp, &["pay.exact_refund_sent"]),
    (Pays::Upto, &BY_PERMIT2),
    (Pays::ExactPermit2, &BY_PERMIT2),
    (
        Pays::Channel,
        &["pay.call_reserved", "pay.deposit_sent", "pay.served", "pay.kept", "pay.claim_sent", "pay.refund_sent"],
    ),
];
const BY_PERMIT2: [&str; 5] = ["pay.reserved", "pay.served", "pay.permit2_sent", "pay.settled", "pay.kept"];

/// One death: where, and what is paid by meanwhile. `next`: the point that the start after it is armed with.
#[derive(Clone, Copy, Debug)]
struct Kill {
    point: &'static str,
    pays: Pays,
    next: Option<&'static str>,
}

/// Every kill of an active node but those of the end, in the order of a life.
fn kills() -> Vec<Kill> {
    let is_paid = |point: &&str| point.starts_with("pay.");
    let active = POINTS.iter().map(|p| p.name).filter(|p| !SUCCESSOR.contains(p) && !END.contains(p) && *p != SLEEP);
    let others = active.clone().filter(|point| !is_paid(point));
    let mut kills: Vec<Kill> = others.map(|point| Kill { point, pays: Pays::Nothing, next: None }).collect();
    let first = kills.iter().position(|kill| !kill.point.starts_with("journal.")).expect("points after these");
    let of_scheme = |(pays, points): &(Pays, &'static [&'static str])| {
        let next = points.iter().copied().skip(1).map(Some).chain([None]);
        let kill = |(point, next): (&&'static str, _)| Kill { point, pays: *pays, next };
        points.iter().zip(next).map(kill).collect::<Vec<_>>()
    };
    kills.splice(first..first, PAYMENTS.iter().flat_map(of_scheme));
    for point in active {
        assert!(kills.iter().any(|kill| kill.point == point), "{point} kills nobody");
    }
    kills
}

/// Data folder of the lease on whichever provider has it.
pub fn data_dir(world: &World, lease: u64) -> Option<PathBuf> {
    (1..=2).map(|i| world.data_dir().join(format!("provider-{i}/data/leases/{lease}/data"))).find(|dir| dir.is_dir())
}

/// Has the node of `lease` start again with `point` armed. `pid` as the node itself knows it is of no use outside
/// its namespace, so the provider is asked.
pub fn arm(world: &World, lease: u64, point: &str) -> Option<PathBuf> {
    let dir = data_dir(world, lease)?;
    std::fs::write(dir.join("crash-once"), point).ok()?;
    let pid = world.tenant_pid(lease)?;
    signal(pid, "KILL");
    Some(dir)
}

/// Whether `point` killed the node of this folder. What an earlier point left behind is another's.
fn fired(dir: &std::path::Path, point: &str) -> bool {
    world::names(&dir.join("crash-fired"), point)
}

/// `asked`: calls that somebody meant to pay for so far. Each is charged at most once.
fn settled(world: &mut World, point: &str, asked: u64) {
    let agent = world.until(&format!("selling with balanced books after {point}"), |w| {
        let agent = w.agent()?;
        (agent["selling"] == true && agent["ledger_ok"] == true).then_some(agent)
    });
    let served = agent["requests"]["served"].as_u64().expect("a number");
    assert!(served <= asked, "after {point} {served} calls are charged, of {asked} that were asked");
    assert_eq!(agent["book_difference_uusdc"], "0", "after {point}: {agent}");
}

fn lease_of(agent: &Value, slot: &str) -> Option<u64> {
    agent[slot]["id"].as_u64()
}

/// Has a customer pay. Its answer may break off: what matters is what the books say afterwards. How many calls were asked.
fn pay(world: &World, pays: Pays, asked: u64) -> u64 {
    let by = |scheme, flags: &[&str]| drop(world::client(&world.world(), "plain", 1, scheme, flags));
    match pays {
        Pays::Nothing => return 0,
        Pays::Exact => drop(world.ask(&["--scheme", "exact", "--max-tokens", "8", "Say hello."])),
        // Who hangs up has its money back.
        Pays::HungUp => {
            // The node is just being started again.
            let Some(town) = world.agent().map(|agent| Town::of(world, &agent)) else { return 0 };
            let url = world.world()["agent"]["url"].as_str().expect("a URL").to_owned();
            town.hangs_up(&url, &town.stranger(&format!("hangs up {asked}")), "Tell me a long story.");
        }
        Pays::Upto => by("upto", &["--approve"]),
        Pays::ExactPermit2 => by("exact-permit2", &[]),
        Pays::Channel => by("batch-settlement", &["--refund"]),
    }
    1
}

/// Whether the node of this folder died at the point of `kill`. The start after that may have been killed, too, and have
/// left its own mark in its place.
fn is_done(dir: &std::path::Path, kill: &Kill) -> bool {
    let next = |file: &str| kill.next.is_some_and(|next| world::names(&dir.join(file), next));
    fired(dir, kill.point) || next("crash-armed") || next("crash-fired")
}

#[test]
fn every_crash_point_is_survived() {
    let _turn = world::turn();
    let mut world = World::start(&["--day", "20s", "--lease", "3d", "--seed-usdc", "90", "--no-restart"]);
    world.until("birth", |w| (w.agent()?["selling"] == true).then_some(()));
    let (mut asked, mut before) = (0, Pays::Nothing);
    for kill in kills() {
        // Within one scheme no point comes twice; marks of other schemes would be taken for its own.
        if kill.pays == Pays::Nothing || kill.pays != before {
            world.clear_fired();
        }
        before = kill.pays;
        let (point, mut tries) = (kill.point, 0);
        // A lease may end before its point is passed: then the next one is armed.
        world.until(&format!("crash at {point}, paid by {:?}", kill.pays), |w| {
            let agent = w.agent()?;
            let dir = data_dir(w, lease_of(&agent, "lease")?)?;
            if is_done(&dir, &kill) || w.fired_anywhere(point) {
                return Some(());
            }
            let wish = dir.join("crash-once");
            match (wish.is_file(), world::names(&dir.join("crash-armed"), point)) {
                // Not read yet.
                (true, false) => return None,
                (false, false) => {
                    tries += 1;
                    assert!(tries < 12, "{point} is never passed");
                    arm(w, lease_of(&agent, "lease")?, point)?;
                    return None;
                }
                (false, true) => {
                    if let Some(next) = kill.next {
                        std::fs::write(&wish, next).ok()?;
                    }
                }
                (true, true) => {}
            }
            if kill.pays != Pays::Nothing && agent["selling"] != true {
                return None;
            }
            asked += pay(w, kill.pays, asked);
            // The crash may have been the last thing this lease saw.
            (is_done(&dir, &kill) || w.fired_anywhere(point)).then_some(())
        });
        settled(&mut world, point, asked);
    }
    world.clear_fired();

    for point in SUCCESSOR {
        let (lease, standby) = world.until("a standby to take over", |w| {
            let agent = w.agent()?;
            let ready = agent["standby"]["ready"] == true;
            ready.then(|| Some((lease_of(&agent, "lease")?, lease_of(&agent, "standby")?))).flatten()
        });
        let epoch = world.epoch().expect("an epoch");
        arm(&world, standby, point).expect("the standby's node starts again");
        // Stopped, not killed: its host believes that it runs, and only its silence shows.
        let stopped = world.tenant_pid(lease).expect("the active node");
        world::stop_tree(stopped, "STOP");
        world.until(&format!("crash at {point}, and a takeover"), |w| {
            (w.fired_anywhere(point) && w.epoch()? > epoch).then_some(())
        });
        world::stop_tree(stopped, "CONT");
        world.clear_fired();
        settled(&mut world, point, asked);
    }

    // The end, killed twice on its way.
    let keys = world.steward_keys();
    for point in END {
        let lease = world.until("the agent", |w| lease_of(&w.agent()?, "lease"));
        // Arming kills it once; the point does once more.
        let crashed = world.deaths(lease) + 2;
        arm(&world, lease, point).expect("the active node starts again");
        if point == END[0] {
            world.until("the node again", |w| (w.agent()?["role"] == "active").then_some(()));
            let (stopped, text) = world.run(&["steward", "stop", "--key", &keys[0], "--key", &keys[1]]);
            assert!(stopped, "{text}");
        }
        // What the last one sent ends the lease, and its host may burn the folder with the mark before we look.
        world.until(&format!("crash at {point}"), |w| (w.deaths(lease) >= crashed).then_some(()));
        world.clear_fired();
    }
    world.until("the end", |w| (w.status()?["record"]["stage"] == "closed").then_some(()));
}
