//! A host that is cut off: from its customers, from its standby, from the chain, from everybody. Real namespaces with links
//! between them, one at a time. Never two signers, and whoever hears nothing stops by itself.
//!
//! One world for all of it. The network's own module says what it takes.

mod network;

use crate::disturbed::{blocks_pass, calls_of, height, operator, well};
use crate::faults::{host_of, takeovers, url_of};
use crate::world::{self, World, program};
use network::{Network, Place};
use serde_json::{Value, json};
use std::time::Instant;

const TEST: &str = "partitions::a_host_that_is_cut_off_stops_itself_and_nobody_else_ever_signs_with_it";
/// In blocks of a second, from a cut to another operator in a world with days of 20 seconds: a heartbeat that is not missed
/// yet (3), the silence before a challenge (8), the time to answer it (12), three in which things are mined, and as much again
/// for a machine that builds meanwhile.
const TAKEN_OVER_WITHIN: u64 = 52;
/// Longer than a silence before a challenge.
const BLOCKS: u64 = 12;

#[test]
fn a_host_that_is_cut_off_stops_itself_and_nobody_else_ever_signs_with_it() {
    if std::env::var_os(network::MARK).is_none() {
        let _turn = world::turn();
        return network::run_in_its_own(TEST);
    }
    let network = Network::make();
    let flags = ["--day", "20s", "--lease", "30d", "--seed-usdc", "60", "--no-restart"].map(str::to_owned);
    let flags: Vec<String> = flags.into_iter().chain(network.flags()).collect();
    let mut world = World::start(&flags.iter().map(String::as_str).collect::<Vec<_>>());
    let agent = world.until("birth", |w| w.agent().filter(|agent| agent["selling"] == true));
    let model = agent["model"].as_str().expect("a name");
    world.until("an answer", |w| asks(&network, w));

    customers_are_cut_off(&mut world, &network, model);
    the_standby_is_cut_off(&mut world, &network);
    loses_its_office(&mut world, &network, model, &[Place::World]);
    let all = [Place::World, Place::Customers, Place::Provider1, Place::Provider2];
    loses_its_office(&mut world, &network, model, &all);
    assert_eq!(takeovers(&world), 2);
}

/// The place of the host that serves, and that of the other.
fn hosts(world: &mut World, what: &str) -> (Place, Place) {
    let lease = well(world, what);
    match Place::of_provider(&host_of(world, lease)) {
        Place::Provider1 => (Place::Provider1, Place::Provider2),
        _ => (Place::Provider2, Place::Provider1),
    }
}

/// A customer, where customers live, pays for an answer.
fn asks(network: &Network, world: &World) -> Option<()> {
    let mut ask = network.command(Place::Customers, "timeout");
    ask.args(["20", program(), "ask", "--scheme", "exact", "--max-tokens", "4", "Say hello.", "--data-dir"]);
    let out = ask.arg(world.data_dir()).output().expect("it runs");
    if !out.status.success() {
        eprintln!("life: no answer: {}", String::from_utf8_lossy(&out.stderr).trim());
    }
    out.status.success().then_some(())
}

/// The status and the body of an answer as customers get it; 0: nothing came.
fn seen_by_customers(network: &Network, url: &str, body: Option<&str>) -> (u16, Value) {
    let mut curl = network.command(Place::Customers, "curl");
    // A host that may be about to sell takes 5 s before it says that it does not.
    curl.args(["-s", "--max-time", "9", "-w", "\n%{http_code}", url]);
    if let Some(body) = body {
        curl.args(["-H", "content-type: application/json", "-d", body]);
    }
    let out = curl.output().expect("curl runs");
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let (body, status) = text.rsplit_once('\n').unwrap_or_default();
    (status.parse().unwrap_or(0), serde_json::from_str(body).unwrap_or_default())
}

/// What a host says to somebody who wants to buy.
fn offers(network: &Network, url: &str, model: &str) -> u16 {
    let body = json!({ "model": model, "messages": [{ "role": "user", "content": "Hello" }] }).to_string();
    seen_by_customers(network, &format!("{url}/v1/chat/completions"), Some(&body)).0
}

fn beat(world: &World) -> Option<u64> {
    world.status()?["record"]["last_heartbeat"].as_u64()
}

/// Nobody can buy, which is no reason to take its office away: it beats, and sells on when they are back.
fn customers_are_cut_off(world: &mut World, network: &Network, model: &str) {
    let (host, _) = hosts(world, "before its customers are cut off");
    let (url, epoch, from) = (url_of(world), world.epoch().expect("an epoch"), beat(world).expect("a heartbeat"));
    assert_eq!(offers(network, &url, model), 402, "an offer to customers");
    network.cut(host, Place::Customers);
    assert_eq!(offers(network, &url, model), 0, "customers reach it over a link that is cut");
    blocks_pass(world, BLOCKS);
    world.until("heartbeats", |w| beat(w).filter(|at| *at > from));
    assert_eq!(world.agent().map(|agent| agent["role"] == "active"), Some(true));
    network.mend(host, Place::Customers);
    world.until("an answer to customers who are back", |w| asks(network, w));
    assert_eq!(world.epoch(), Some(epoch), "nobody had to take over for its customers");
}

/// The standby hears and sees the chain, and not the host: heartbeats there are what counts.
fn the_standby_is_cut_off(world: &mut World, network: &Network) {
    let (host, other) = hosts(world, "before its standby is cut off");
    standby_ready(world);
    let epoch = world.epoch().expect("an epoch");
    network.cut(host, other);
    blocks_pass(world, BLOCKS);
    world.until("an answer without a standby", |w| asks(network, w));
    network.mend(host, other);
    standby_ready(world);
    assert_eq!(world.epoch(), Some(epoch), "a standby took over from a host that beats");
}

fn standby_ready(world: &mut World) {
    world.until("a standby to take over", |w| w.agent().filter(|agent| agent["standby"]["ready"] == true));
}

/// The host that serves is cut off from these. It stops itself before anybody can take its place, the standby does in time,
/// and back together it stays down.
fn loses_its_office(world: &mut World, network: &Network, model: &str, from: &[Place]) {
    let (host, other) = hosts(world, "before it is cut off");
    standby_ready(world);
    let (url, epoch, old) = (url_of(world), world.epoch().expect("an epoch"), operator(world).expect("an operator"));
    let links: Vec<Place> = from.iter().copied().filter(|place| *place != host).collect();
    links.iter().for_each(|place| network.cut(host, *place));
    let (cut, cut_at) = (Instant::now(), height(world));
    // Where customers still reach it, they are told.
    let reached = !from.contains(&Place::Customers);
    if reached {
        world.until("it stops itself", |_| {
            let (_, status) = seen_by_customers(network, &format!("{url}/status"), None);
            (status["role"] == "fenced").then_some(())
        });
        eprintln!("life: fenced after {:?}", cut.elapsed());
        assert_eq!(world.epoch(), Some(epoch), "somebody took its place while it served");
        assert_eq!(offers(network, &url, model), 503, "a fenced host sells");
    }
    let taken = world.until("a takeover", |w| (w.epoch()? > epoch).then(|| height(w)));
    let took = taken - cut_at;
    assert!(took < TAKEN_OVER_WITHIN, "taken over only after {took} blocks");
    world.until("an answer by the successor", |w| asks(network, w));
    if reached {
        let (_, status) = seen_by_customers(network, &format!("{url}/status"), None);
        assert_eq!((&status["role"], offers(network, &url, model)), (&Value::from("fenced"), 503), "{status}");
    }
    links.iter().for_each(|place| network.mend(host, *place));
    let (now, _) = hosts(world, "selling after the takeover");
    assert_eq!(now, other);
    blocks_pass(world, BLOCKS);
    let (_, status) = seen_by_customers(network, &format!("{url}/status"), None);
    assert_ne!(status["role"], "active", "{status}");
    assert!(![200, 402].contains(&offers(network, &url, model)), "a former operator sells");
    assert_eq!(calls_of(world, &old, taken), Vec::<String>::new(), "{old} signed after it was superseded");
    assert_eq!(world.epoch(), Some(epoch + 1), "one takeover is enough");
    assert_ne!(operator(world), Some(old));
}
