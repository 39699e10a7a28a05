//! Fetching over a simulated network (turmoil) and real HTTP: gateways lie, lack blocks, die and come back, links to them are
//! cut and held up, and the process that fetches is killed and begins again.
//!
//! Whatever happens: what arrives is what was asked for, and it arrives.

use crate::fuzz::changes::{Chance, runs};
use crate::simulated::{Port, client};
use crate::support::{Store, noise, store};
use axum::body::Body;
use axum::extract::Request;
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use store::cid::Cid;
use store::{Fetcher, gateway};
use tokio::sync::watch;

/// Lives of an ordinary run, and of `cargo xtask test --deep`.
const LIVES: u64 = 40;
const LIVES_DEEP: u64 = 10_000;
/// Twenty leaves and what is above them.
const BYTES: u64 = 20_000;
const GATEWAYS: [&str; 3] = ["gateway-1", "gateway-2", "gateway-3"];
/// A stretch of weather lasts at most so long, milliseconds.
const STRETCH_MS: u64 = 400;

/// Every third answer has a wrong byte in it.
async fn lying(count: Arc<AtomicU64>, request: Request, next: Next) -> Response {
    let (head, body) = next.run(request).await.into_parts();
    let mut bytes = axum::body::to_bytes(body, 1 << 20).await.unwrap().to_vec();
    if count.fetch_add(1, Ordering::Relaxed) % 3 == 2
        && let Some(byte) = bytes.first_mut()
    {
        *byte ^= 1;
    }
    Response::from_parts(head, Body::from(bytes))
}

#[derive(Default)]
struct Lived {
    cuts: u64,
    holds: u64,
    deaths: u64,
    kills: u64,
    liars: u64,
}

fn live(seed: u64, origin: &Store, root: &Cid) -> Lived {
    let mut chance = Chance(seed);
    let mut lived = Lived::default();
    let mut sim = turmoil::Builder::new()
        .rng_seed(seed)
        .simulation_duration(Duration::from_secs(3_600))
        .tick_duration(Duration::from_millis(5))
        .min_message_latency(Duration::from_millis(1))
        .max_message_latency(Duration::from_millis(40))
        .build();
    // One at least is honest and has everything.
    let honest = chance.below(3);
    let poor = store();
    for (at, name) in GATEWAYS.into_iter().enumerate() {
        let kind = if at == honest { 0 } else { chance.below(3) };
        let blocks = if kind == 2 { poor.blocks.clone() } else { origin.blocks.clone() };
        let count = Arc::new(AtomicU64::new(0));
        let routes = match kind {
            1 => gateway::router(blocks).layer(from_fn(move |request, next| lying(count.clone(), request, next))),
            _ => gateway::router(blocks),
        };
        lived.liars += u64::from(kind == 1);
        sim.host(name, move || {
            let routes = routes.clone();
            async move {
                let listener = turmoil::net::TcpListener::bind(("0.0.0.0", 80)).await?;
                Ok(axum::serve(Port(listener), routes).await?)
            }
        });
    }

    let (here, is_done) = (store(), Arc::new(AtomicBool::new(false)));
    let file = here.dir.path().join("weights");
    let in_place = seed.is_multiple_of(2);
    {
        let (blocks, file, is_done, root) = (here.blocks.clone(), file.clone(), is_done.clone(), *root);
        // Killed and started again it goes on with what lies there.
        sim.host("host", move || {
            let (blocks, file, is_done) = (blocks.clone(), file.clone(), is_done.clone());
            async move {
                let sources = GATEWAYS.map(|name| format!("http://{name}")).to_vec();
                let fetcher = Fetcher::new(client(), sources);
                while !is_done.load(Ordering::Relaxed) {
                    let fetched = if in_place {
                        let (verified, _told) = watch::channel(0);
                        fetcher.fetch_in_place(&blocks, &root, (&file, BYTES), verified, |_| {}).await
                    } else {
                        fetcher.fetch_dag(&blocks, &root, |_| {}).await
                    };
                    is_done.store(fetched.is_ok(), Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                std::future::pending().await
            }
        });
    }

    let mut until = Duration::ZERO;
    let mut down: Option<&str> = None;
    let mut steps = 0u64;
    while !is_done.load(Ordering::Relaxed) {
        sim.step().unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        steps += 1;
        assert!(steps < 200_000, "seed {seed}: it is not fetched after {:?}", sim.elapsed());
        if sim.elapsed() < until {
            continue;
        }
        for name in GATEWAYS {
            sim.repair("host", name);
            sim.release("host", name);
        }
        if let Some(name) = down.take() {
            sim.bounce(name);
        }
        until = sim.elapsed() + Duration::from_millis(20 + chance.draw() % STRETCH_MS);
        let gateway = GATEWAYS[chance.below(3)];
        match chance.below(7) {
            0 => {
                sim.partition("host", gateway);
                lived.cuts += 1;
            }
            1 => {
                sim.hold("host", gateway);
                lived.holds += 1;
            }
            2 => {
                sim.crash(gateway);
                down = Some(gateway);
                lived.deaths += 1;
            }
            3 => {
                sim.crash("host");
                down = Some("host");
                lived.kills += 1;
            }
            _ => {}
        }
    }
    let got = if in_place {
        std::fs::read(&file).unwrap()
    } else {
        store::unixfs::read_file(&here.blocks, root, usize::try_from(BYTES).unwrap()).unwrap()
    };
    assert!(got == noise(BYTES), "seed {seed}: other bytes arrived");
    for block in here.blocks.iter() {
        let (cid, _) = block.unwrap();
        store::cid::verify(&cid, &here.blocks.get(&cid).unwrap()).unwrap();
    }
    lived
}

#[test]
fn whatever_the_network_does_a_file_arrives_whole() {
    let lives = runs(LIVES, LIVES_DEEP);
    let origin = store();
    let root = origin.add(&noise(BYTES));
    let mut all = Lived::default();
    for seed in 0..lives {
        let lived = live(seed, &origin, &root);
        all.cuts += lived.cuts;
        all.holds += lived.holds;
        all.deaths += lived.deaths;
        all.kills += lived.kills;
        all.liars += lived.liars;
    }
    println!(
        "{lives} fetches over a simulated network: {} cuts, {} holds, {} deaths of gateways, {} kills, {} liars",
        all.cuts, all.holds, all.deaths, all.kills, all.liars
    );
    assert!(all.cuts > 0 && all.holds > 0 && all.deaths > 0 && all.kills > 0 && all.liars > 0);
}
