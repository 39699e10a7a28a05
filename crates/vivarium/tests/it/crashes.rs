//! Every crash point of the registry, once for real: the node is killed exactly there, its host starts it again (or
//! the standby goes on), and the books balance.
//!
//! One world for all of them: a lease's data folder may hold the name of a point, which arms the next start of the
//! process and no later one (`crash-once` → `crash-armed` → `crash-fired`).

use crate::settling::customers::Town;
use crate::world::{self, World, signal};
use journal::crash::POINTS;
use serde_json::Value;
use std::path::PathBuf;

/// Points that only a successor passes.
const SUCCESSOR: [&str; 3] = ["takeover.challenged", "takeover.sent", "restore.loaded"];
/// Points of the end, in their order.
const END: [&str; 2] = ["winddown.sent", "close.sent"];

/// Data folder of the lease on whichever provider has it.
fn data_dir(world: &World, lease: u64) -> Option<PathBuf> {
    (1..=2).map(|i| world.data_dir().join(format!("provider-{i}/data/leases/{lease}/data"))).find(|dir| dir.is_dir())
}

/// Has the node of `lease` start again with `point` armed. `pid` as the node itself knows it is of no use outside
/// its namespace, so the provider is asked.
fn arm(world: &World, lease: u64, point: &str) -> Option<PathBuf> {
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

/// Has a customer pay in the way that passes `point`. Its answer may break off: what matters is what the books say
/// afterwards. How many calls were asked.
fn pay_past(world: &World, point: &str, asked: u64) -> u64 {
    match point {
        // Who hangs up has its money back.
        "pay.exact_refund_sent" => {
            // The node is just being started again.
            let Some(town) =
                world.agent().filter(|agent| agent["selling"] == true).map(|agent| Town::of(world, &agent))
            else {
                return 0;
            };
            let url = world.world()["agent"]["url"].as_str().expect("a URL").to_owned();
            town.hangs_up(&url, &town.stranger(&format!("hangs up {asked}")), "Tell me a long story.");
        }
        "pay.permit2_sent" => {
            let _ = world::client(&world.world(), "plain", 1, "upto", &["--approve"]);
        }
        // A call with its deposit, then the refund with its claim.
        "pay.call_reserved" | "pay.deposit_sent" | "pay.claim_sent" | "pay.refund_sent" => {
            let _ = world::client(&world.world(), "plain", 1, "batch-settlement", &["--refund"]);
        }
        _ if point.starts_with("pay.") => {
            let _ = world.ask(&["--scheme", "exact", "--max-tokens", "8", "Say hello."]);
        }
        _ => return 0,
    }
    1
}

#[test]
fn every_crash_point_is_survived() {
    let _turn = world::turn();
    let mut world = World::start(&["--day", "20s", "--lease", "3d", "--seed-usdc", "90", "--no-restart"]);
    world.until("birth", |w| (w.agent()?["selling"] == true).then_some(()));
    let active = POINTS.iter().map(|p| p.name).filter(|p| !SUCCESSOR.contains(p) && !END.contains(p));
    let mut asked = 0;
    for point in active {
        let mut tries = 0;
        // A lease may end before its point is passed: then the next one is armed.
        world.until(&format!("crash at {point}"), |w| {
            let lease = lease_of(&w.agent()?, "lease")?;
            let dir = data_dir(w, lease)?;
            if fired(&dir, point) {
                return Some(());
            }
            if !dir.join("crash-once").is_file() && !dir.join("crash-armed").is_file() {
                tries += 1;
                assert!(tries < 12, "{point} is never passed");
                arm(w, lease, point)?;
            }
            asked += pay_past(w, point, asked);
            // The crash may have been the last thing this lease saw.
            w.fired_anywhere(point).then_some(())
        });
        world.clear_fired();
        settled(&mut world, point, asked);
    }

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
