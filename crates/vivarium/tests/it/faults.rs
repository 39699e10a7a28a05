//! What comes over a living agent from outside, one after the other and under a light paid load: its chain is away or
//! hangs, blocks are taken back, its engine is killed in the middle of an answer or has no memory left, the token's issuer
//! freezes a customer and then its treasury, days pass at once. It goes on, or stops for exactly the reason that it says;
//! at the end no call is lost or charged twice, and nobody but one operator of each epoch has signed.
//!
//! One world for all of it.

mod dashboard;
mod door;
mod load;

use crate::disturbed::{blocks_pass, calls_of, folder, height, log, operator, rpc, well};
use crate::settling::customers::Town;
use crate::world::{self, World, get_json, signal};
use alloy::primitives::Address;
use alloy::signers::local::PrivateKeySigner;
use alloy::sol_types::SolCall;
use chain::bindings::Treasury;
use dashboard::Dashboard;
use door::{Door, Doors};
use load::{Call, Load};
use pay::wire::encode_header;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long the chain is away: by this world's days most of one.
const AWAY_BLOCKS: u64 = 16;
/// Days pass at once, as long as silence allows.
const JUMP_SECS: u64 = 20;

#[test]
fn an_agent_goes_on_through_what_comes_from_outside() {
    let _turn = world::turn();
    let doors = Doors::of(&["provider-1", "provider-2", "steward-1", "steward-2", "steward-3"]);
    let flags = ["--day", "20s", "--lease", "30d", "--seed-usdc", "60", "--no-restart"].map(str::to_owned);
    let flags: Vec<String> = flags.into_iter().chain(doors.flags()).collect();
    let mut world = World::start(&flags.iter().map(String::as_str).collect::<Vec<_>>());
    doors.lead_to(world.data_dir());
    let agent = world.until("birth", |w| w.agent().filter(|agent| agent["selling"] == true));
    let town = Town::of(&world, &agent);
    world.until("the relay", |_| town.fund_relay(town.treasury));
    let load = Load::start(&world, &town);
    world.until("the first answers", |_| (load.answered() > 2).then_some(()));

    let begun = Instant::now();
    the_chain_is_away(&mut world, &doors, &load);
    the_chain_hangs(&mut world, &doors, &load);
    blocks_are_taken_back(&mut world, &load);
    let broken = the_engine_is_killed_in_an_answer(&mut world, &load);
    the_engine_has_no_memory_left(&mut world, &load);
    let by_exact = a_customer_and_the_treasury_are_frozen(&mut world, &town, &load);
    days_pass_at_once_and_it_moves(&mut world, &load);
    eprintln!("life: all faults took {:.0} s", begun.elapsed().as_secs_f32());
    nothing_is_lost(&mut world, &town, load, broken, &by_exact);
    cut_off_from_the_chain_it_loses_its_office(&mut world, &doors);
}

pub fn url_of(world: &World) -> String {
    world.world()["agent"]["url"].as_str().expect("a URL").to_owned()
}

fn micro(status: &Value, field: &str) -> u128 {
    status[field].as_str().and_then(|s| s.parse().ok()).unwrap_or_else(|| panic!("{field} in {status}"))
}

/// Sells with balanced books, in the epoch that it had, and somebody was answered after that.
fn goes_on(world: &mut World, load: &Load, epoch: u64, after: &str) {
    well(world, &format!("selling with balanced books after {after}"));
    let answered = load.answered();
    world.until(&format!("an answer after {after}"), |_| (load.answered() > answered).then_some(()));
    assert_eq!(world.epoch(), Some(epoch), "nobody had to take over for it: {after}");
}

/// Nobody of this world but its customers hears of the chain for most of a day. The agent sells from channels until its
/// fence, then stops itself and says why; back again it is the same operator, and claims.
fn the_chain_is_away(world: &mut World, doors: &Doors, load: &Load) {
    let (url, epoch, from) = (url_of(world), world.epoch().expect("an epoch"), height(world));
    let answered = load.answered();
    doors.set("", Door::Cut);
    let cut = Instant::now();
    world.until("answers without a chain", |_| (load.answered() > answered + 1).then_some(()));
    eprintln!("life: an answer after {:?} without a chain", cut.elapsed());
    let status =
        world.until("it stops itself", |_| get_json(&format!("{url}/status")).filter(|s| s["role"] == "fenced"));
    eprintln!("life: fenced after {:?} without a fresh block", cut.elapsed());
    assert!(micro(&status, "exposure_uusdc") <= micro(&status, "exposure_max_uusdc"), "{status}");
    let heard = load.calls().len();
    let refused = world.until("it says so", |_| load.calls().into_iter().skip(heard).find(|call| call.status != 200));
    assert_eq!(refused.status, 503, "{refused:?}");
    world.until("most of a day", |w| (height(w) >= from + AWAY_BLOCKS).then_some(()));
    doors.set("", Door::Open);
    goes_on(world, load, epoch, "a chain that was away");
}

/// The endpoint of the host that serves takes questions and never answers: the same, though nothing ever failed.
fn the_chain_hangs(world: &mut World, doors: &Doors, load: &Load) {
    let lease = well(world, "before its endpoint hangs");
    let (url, epoch) = (url_of(world), world.epoch().expect("an epoch"));
    let name = host_of(world, lease);
    doors.set(&name, Door::Hangs);
    let hangs = Instant::now();
    world.until("it stops itself", |_| get_json(&format!("{url}/status")).filter(|s| s["role"] == "fenced"));
    eprintln!("life: fenced after {:?} without a fresh block", hangs.elapsed());
    doors.set(&name, Door::Open);
    goes_on(world, load, epoch, "an endpoint that hung");
}

/// The daemon that runs a lease, by its name.
pub fn host_of(world: &World, lease: u64) -> String {
    let folder = folder(world, lease).expect("a folder");
    let names = (1..=2).map(|i| format!("provider-{i}"));
    names.into_iter().find(|name| folder.starts_with(world.data_dir().join(name))).expect("a host")
}

/// The newest block goes, and with it in turn a heartbeat, a checkpoint and a customer's payment. Each comes again.
fn blocks_are_taken_back(world: &mut World, load: &Load) {
    let epoch = world.epoch().expect("an epoch");
    let entries: [(&str, [u8; 4]); 3] = [
        ("heartbeat", Treasury::heartbeatCall::SELECTOR),
        ("commit", Treasury::commitCall::SELECTOR),
        ("settleExact", Treasury::settleExactCall::SELECTOR),
    ];
    for (entry, selector) in entries {
        let selector = format!("0x{}", hex::encode(selector));
        let pays = (entry == "settleExact").then(|| pays_by_exact(world));
        let gone = world.until(&format!("a {entry} is taken back"), |w| take_back(w, &selector));
        world.until(&format!("the {entry} comes again"), |w| calls_to(w, &selector, gone).then_some(()));
        if let Some(mut pays) = pays {
            assert!(pays.wait().expect("it ends").success(), "whose payment was taken back has its answer");
        }
    }
    goes_on(world, load, epoch, "blocks that were taken back");
}

/// A customer who pays by `exact` beside everything else.
fn pays_by_exact(world: &World) -> Child {
    Command::new(world::program())
        .args([
            "ask",
            "--json",
            "--scheme",
            "exact",
            "--max-tokens",
            "4",
            "Say it after a reorganisation.",
            "--data-dir",
        ])
        .arg(world.data_dir())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .expect("it asks")
}

/// Whether a block from this height on has a call of the treasury that begins so.
fn calls_to(world: &World, selector: &str, from: u64) -> bool {
    let treasury = world.world()["treasury"].as_str().expect("an address").to_owned();
    (from..=height(world)).any(|at| {
        let block = rpc(world, "eth_getBlockByNumber", &json!([format!("{at:#x}"), true])).unwrap_or_default();
        block["transactions"].as_array().into_iter().flatten().any(|tx| {
            tx["to"].as_str().is_some_and(|to| to.eq_ignore_ascii_case(&treasury))
                && tx["input"].as_str().is_some_and(|input| input.starts_with(selector))
        })
    })
}

/// Waits a moment for such a call in the newest block and has that block replaced by an empty one; its height.
fn take_back(world: &World, selector: &str) -> Option<u64> {
    let looked = Instant::now();
    while looked.elapsed() < Duration::from_secs(2) {
        let at = height(world);
        if calls_to(world, selector, at) {
            let hash = |at: u64| {
                Some(rpc(world, "eth_getBlockByNumber", &json!([format!("{at:#x}"), false]))?["hash"].clone())
            };
            let before = hash(at)?;
            // The next block may have come in between: then it goes, too.
            let depth = height(world) - at + 1;
            rpc(world, "anvil_reorg", &json!([depth, []]))?;
            return (hash(at)? != before).then_some(at);
        }
        std::thread::sleep(Duration::from_millis(30));
    }
    None
}

/// The engine's process of a lease, seen from outside its namespace.
fn engine_of(world: &World, lease: u64) -> Option<u32> {
    fn below(pid: u32, found: &mut Vec<u32>) {
        // Each thread has children of its own.
        for thread in std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
            let children = std::fs::read_to_string(thread.path().join("children")).unwrap_or_default();
            for child in children.split_whitespace().filter_map(|c| c.parse().ok()) {
                found.push(child);
                below(child, found);
            }
        }
    }
    let mut all = Vec::new();
    below(world.tenant_pid(lease)?, &mut all);
    all.into_iter().find(|pid| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<String> = line.split(|b| *b == 0).map(|w| String::from_utf8_lossy(w).into_owned()).collect();
        words.first().is_some_and(|program| program.ends_with("vivarium-engine"))
            && words.iter().any(|word| word.ends_with("/engine.sock"))
    })
}

/// `kill -9` while a paid answer streams: the stream ends by saying so, is charged for the tokens that came and no more, the
/// next question is answered by another engine (how soon is told, and depends on the machine), and the node never noticed more than that. What was charged.
fn the_engine_is_killed_in_an_answer(world: &mut World, load: &Load) -> u128 {
    let lease = well(world, "before its engine is killed");
    let (url, epoch, node) = (url_of(world), world.epoch().expect("an epoch"), world.tenant_pid(lease));
    let engine = world.until("its engine", |w| engine_of(w, lease));
    let mut client = load.asks_for_a_stream("Tell me a long story about a lighthouse.", 600);
    let (mut request, mut heard, mut killed) = (None, Vec::<Value>::new(), None);
    for line in BufReader::new(client.stdout.take().expect("its words")).lines().map(|line| line.expect("UTF-8")) {
        request = request.or(line.strip_prefix("x-request-id: ").map(|id| id.trim().to_owned()));
        heard.extend(line.strip_prefix("data: ").and_then(|data| serde_json::from_str(data).ok()));
        if heard.len() == 6 && killed.is_none() {
            signal(engine, "KILL");
            killed = Some(Instant::now());
        }
    }
    client.wait().expect("it ends");
    let killed = killed.unwrap_or_else(|| panic!("the answer was too short: {heard:?}"));
    let last = heard.last().expect("words");
    assert_eq!(last["error"]["code"], "engine_restarting", "{last}");
    let text: String = heard.iter().filter_map(|event| event["choices"][0]["delta"]["content"].as_str()).collect();
    let again =
        world.until("the next answer", |_| (load.asks("Are you there?").status == 200).then(|| killed.elapsed()));
    eprintln!("life: answered again {again:?} after its engine was killed");
    let receipt = format!("{url}/receipts/{}", request.expect("an id"));
    let receipt = world.until("its receipt", |_| get_json(&receipt));
    let tokens = receipt["completion_tokens"].as_u64().expect("a number");
    assert!(tokens > 0 && tokens < 600, "killed in the middle: {receipt}");
    let digest = format!("0x{}", hex::encode(Sha256::digest(&text)));
    assert_eq!(receipt["output_sha256"], digest, "charged for what came: {text:?}, {receipt}");
    assert_eq!(world.tenant_pid(lease), node, "the node lives on");
    let said = log(&folder(world, lease).expect("a folder"));
    assert!(said.contains("starting another"), "its log says what happened");
    goes_on(world, load, epoch, "an engine that was killed");
    micro(&receipt, "amount_uusdc")
}

/// A real limit, set on the engine as it runs: the next long prompt takes more memory than it may have. It dies of it and is
/// started again under the limit that its host gave; nobody else notices.
fn the_engine_has_no_memory_left(world: &mut World, load: &Load) {
    let lease = well(world, "before its engine has no memory left");
    let (epoch, node) = (world.epoch().expect("an epoch"), world.tenant_pid(lease));
    let engine = world.until("its engine", |w| engine_of(w, lease));
    let limited =
        Command::new("prlimit").args(["--data=1048576", "--as=1048576", "--pid", &engine.to_string()]).status();
    assert!(limited.is_ok_and(|status| status.success()), "prlimit sets a limit");
    world.until("it dies of it", |w| {
        load.asks(&"word ".repeat(900));
        engine_of(w, lease).filter(|pid| *pid != engine).map(|_| ())
    });
    assert_eq!(world.tenant_pid(lease), node, "the node lives on");
    goes_on(world, load, epoch, "an engine that ran out of memory");
}

/// The token's issuer freezes a customer: it is told so and charged nothing, the others are served. Then the treasury: it
/// sells on from channels, takes no `exact`, and when it is let go all is as before. Who paid by `exact` in between.
fn a_customer_and_the_treasury_are_frozen(world: &mut World, town: &Town, load: &Load) -> Vec<Address> {
    well(world, "before anybody is frozen");
    let (url, epoch) = (url_of(world), world.epoch().expect("an epoch"));
    let [ours, another] = ["is frozen", "pays who is frozen"].map(|name| town.stranger(name));
    // Whoever has never paid is settled before the answer.
    let pays = |customer: &PrivateKeySigner, what: &str| {
        let payment = town.signed(&url, customer, what);
        let (status, said) = town.sends(&url, what, &encode_header(&payment), None);
        (status, town.of_payer(customer).len(), said)
    };
    town.freeze(ours.address(), true);
    let (status, paid, said) = pays(&ours, "Who is frozen?");
    assert!(status >= 400 && paid == 0, "{status}: {said}");
    town.freeze(ours.address(), false);
    let (status, paid, said) = pays(&ours, "Who is free?");
    assert_eq!((status, paid), (200, 1), "{said}");

    town.freeze(town.treasury, true);
    let answered = load.answered();
    let (status, paid, said) = pays(&another, "Who is frozen now?");
    assert!(status >= 400 && paid == 0, "{status}: {said}");
    world.until("answers from a channel", |_| (load.answered() > answered + 1).then_some(()));
    blocks_pass(world, 8);
    town.freeze(town.treasury, false);
    let (status, paid, said) = pays(&another, "Who is free again?");
    assert_eq!((status, paid), (200, 1), "{said}");
    goes_on(world, load, epoch, "a frozen treasury");
    vec![ours.address(), another.address()]
}

/// Days pass from one block to the next, one after the other, and the last one takes the agent past the point where it
/// should move. It beats in time after each, and moves under load; who has its dashboard open sees the move in its order and
/// no error, and no customer does.
fn days_pass_at_once_and_it_moves(world: &mut World, load: &Load) {
    let lease = well(world, "before days pass");
    let epoch = world.epoch().expect("an epoch");
    let page = Dashboard::open(&url_of(world));
    let answered = load.calls().len();
    loop {
        let agent = world.until("its plan", |w| w.agent().filter(|a| a["next_move_at"].is_u64()));
        let (now, moves_at) = (agent["block"]["timestamp"].as_u64(), agent["next_move_at"].as_u64());
        rpc(world, "evm_increaseTime", &json!([JUMP_SECS])).expect("anvil");
        if now.zip(moves_at).is_some_and(|(now, at)| now + JUMP_SECS >= at) {
            break;
        }
        blocks_pass(world, 4);
        well(world, "a day at once");
    }
    let next = epoch + 1;
    world.until("a move", |w| (w.epoch()? >= next).then_some(()));
    let stages =
        [format!("moves from lease {lease}"), format!("epoch {next} begins"), format!("releases lease {lease}")];
    world.until("the move in the dashboard", |_| page.told(stages.last()?));
    let order: Vec<Option<usize>> = stages.iter().map(|words| page.told(words)).collect();
    assert!(order.iter().all(Option::is_some) && order.is_sorted(), "{order:?}: {:?}", page.shown());
    assert_eq!(page.trouble(), Vec::<Value>::new(), "{:?}", page.shown());
    goes_on(world, load, next, "days that passed at once");
    let calls = load.calls().split_off(answered);
    let refused: Vec<&Call> = calls.iter().filter(|call| call.status != 200).collect();
    assert!(refused.is_empty(), "{refused:?}");
}

/// To the micro-USDC: the answers, the ledger, the chain. `broken`: the charge of the answer that broke off; `by_exact`: who
/// else paid.
fn nothing_is_lost(world: &mut World, town: &Town, load: Load, broken: u128, by_exact: &[Address]) {
    let calls = load.end();
    let customer = world.world()["customer"]["address"].as_str().and_then(|a| a.parse().ok()).expect("an address");
    let payers = by_exact.iter().copied().chain([customer]);
    let exact: u128 = payers.flat_map(|payer| town.paid(payer, town.treasury)).map(|paid| paid.amount).sum();
    let sold = load::sum_of(&calls) + broken + exact;
    let refused = calls.iter().filter(|call| call.status != 200).count();
    eprintln!("life: {} questions, {refused} refused, {sold} micro-USDC", calls.len());
    // Somebody was asked while the node died: its charge is in the books once it is told.
    let agent = world.until("every call is charged once", |w| {
        w.agent().filter(|a| a["ledger_ok"] == true && a["requests"]["open"] == 0 && micro(a, "earned_uusdc") == sold)
    });
    let gaps = ["book_difference_uusdc", "ledger_short_uusdc", "gifts_uusdc"].map(|name| &agent[name]);
    assert_eq!(gaps, [&json!("0"); 3], "{agent}");
    assert!(micro(&agent, "settled_uusdc") > exact, "claims were made: {agent}");
    assert_eq!(takeovers(world), 0, "nobody had to take over for any of it");
}

/// How often somebody took over, by an audit that finds nothing unexplained.
pub fn takeovers(world: &World) -> usize {
    let (ok, text) = world.run(&["audit", "--json"]);
    let line = text.lines().find(|line| line.starts_with('{')).unwrap_or_else(|| panic!("no report: {text}"));
    let report: Value = serde_json::from_str(line).expect("a JSON line");
    assert!(ok && report["balances"] == true, "{text}");
    assert_eq!((&report["unexplained"], &report["strange_events"]), (&json!([]), &json!(0)), "{report}");
    let began = report["epochs"].as_array().into_iter().flatten().map(|epoch| epoch["began_by"].as_str());
    began.filter(|how| *how == Some("takeover")).count()
}

/// The host that serves hears nothing of the chain, while everybody else does: it stops itself before anybody can take its
/// place, the standby does, and when it is back it finds another operator. In the whole time nobody hears a second signer.
fn cut_off_from_the_chain_it_loses_its_office(world: &mut World, doors: &Doors) {
    let lease = well(world, "before it is cut off");
    world.until("a standby to take over", |w| w.agent().filter(|a| a["standby"]["ready"] == true));
    let (url, epoch, old) = (url_of(world), world.epoch().expect("an epoch"), operator(world).expect("an operator"));
    let name = host_of(world, lease);
    doors.set(&name, Door::Cut);
    world.until("it stops itself", |_| get_json(&format!("{url}/status")).filter(|s| s["role"] == "fenced"));
    assert_eq!(world.epoch(), Some(epoch), "somebody took its place while it served");
    let taken = world.until("a takeover", |w| (w.epoch()? > epoch).then(|| height(w)));
    doors.set(&name, Door::Open);
    well(world, "selling after the takeover");
    blocks_pass(world, 5);
    assert_eq!(calls_of(world, &old, taken), Vec::<String>::new(), "{old} signed after it was superseded");
    assert_ne!(operator(world), Some(old));
    world.until("an answer", |w| w.ask(&["--scheme", "exact", "--max-tokens", "4", "Who are you now?"]));
    assert_eq!(takeovers(world), 1);
}
