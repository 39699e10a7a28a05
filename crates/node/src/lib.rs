//! One agent on one host: the process that a provider runs inside its sandbox.
//!
//! Read in this order: [`main_loop`] (whatever can wake the agent), `live` and `state` (what it is), `act` and
//! `settle` (what leaves), `ask` and `api` (what customers see), `checkpoint`, `replicate`, `restore`, `moving`,
//! `takeover` (how it survives its host).

mod act;
mod answers;
mod api;
pub mod archive;
mod ask;
mod authorization;
pub mod batch;
pub mod batches;
mod channels;
mod checkpoint;
mod config;
mod context;
mod contract_payers;
mod conversation;
mod error;
pub mod export;
mod external;
mod fence;
mod genesis;
mod history;
mod instance;
mod keys;
mod late;
mod live;
pub mod main_loop;
pub mod manifest;
mod memory;
mod models;
mod money_events;
mod moving;
mod outboxes;
#[cfg(test)]
mod paid_call;
mod payer_gas;
pub mod permit2;
mod places;
mod replay;
mod replicate;
pub mod rerun;
mod restore;
mod settle;
mod shared;
#[cfg(test)]
mod stand_in;
mod state;
mod status;
mod suppliers;
mod takeover;
mod watch;
mod weights;

pub use config::NodeConfig;
pub use error::{Error, Kind, Result};

use crate::context::{Context, MarketTimers};
use crate::keys::Keys;
use crate::main_loop::{Event, Node};
use crate::manifest::Manifest;
use crate::memory::RingFile;
use crate::places::Places;
use crate::shared::{Embedder, Engine, Shared};
use crate::suppliers::Suppliers;
use axum::serve::ListenerExt;
use batches::{Batches, Ether};
use chain::Chain;
use infer::{ChatTemplate, EngineClient, EngineConfig};
use net::chain_of;
use outboxes::Outboxes;
use pay::Usdc;
use pay::facilitator::batch::{BatchPolicy, SETTLE_EXACT_GAS};
use pay::facilitator::remote::Remote;
use serde_json::json;
use std::future::Future;
use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch as channel};

/// A batch of payments that are settled after they were served is sent when its gas is at most this share of its sum, in
/// millionths, when it is full, or when its oldest row has waited so long: a fraction of the five minutes that offers
/// give a payment. Guesses, unmeasured.
const BATCH_FEE_PPM_MAX: u32 = 100_000;
const BATCH_ROWS_MAX: usize = 50;
const BATCH_WAIT_MS_MAX: u64 = 20_000;
/// Events that may wait for the main loop. Beyond it askers wait: back-pressure instead of memory.
const EVENTS_MAX: usize = 4_096;
/// The price of gas is looked at this often.
const GAS_EVERY: Duration = Duration::from_secs(10);
/// The chain's head is looked at this often.
const HEAD_EVERY: Duration = Duration::from_millis(150);

/// Runs the node until `stop` resolves or the lease is over.
///
/// Fails with `Usage` for a bad configuration or manifest, `Corrupt` for a journal that contradicts itself; the
/// provider starts the process again, so passing troubles are waited for inside.
pub async fn run(config: NodeConfig, stop: impl Future<Output = ()> + Send + 'static) -> Result<()> {
    std::fs::create_dir_all(&config.data_dir)
        .map_err(|e| Error::usage(format!("cannot make {}", config.data_dir.display())).caused_by(e))?;
    arm_crash_point(&config.data_dir);
    let listener = tokio::net::TcpListener::bind(config.listen)
        .await
        .map_err(|e| Error::usage(format!("cannot listen on {}: {e}", config.listen)))?;
    let seal_key = keys::read_seal_key(&config.seal_key_file)?;
    let keys = Keys::load_or_make(&config.data_dir, &seal_key)?;

    let chains: Vec<Chain> = config
        .rpc_urls
        .iter()
        .map(|url| Chain::connect(url, config.chain_id))
        .collect::<std::result::Result<_, _>>()
        .map_err(|e| Error::usage("the chain's address does not parse").caused_by(e))?;
    for other in &chains[1..] {
        at_start("a further endpoint of the chain", || other.verify_chain()).await?;
    }
    // The configuration refuses an empty list.
    let chain = chains[0].clone();
    let birth = at_start("the treasury", || chain.verify_agent(config.treasury)).await?;
    at_start("the chain", || chain.verify_clock()).await?;
    if birth.market != config.lease_market {
        let (ours, theirs) = (config.lease_market, birth.market);
        return Err(Error::usage(format!("the treasury rents on the market {theirs}, but this host's is {ours}")));
    }
    let treasury = chain.treasury(config.treasury);
    let market = chain.market(config.lease_market);
    let market_timers = patiently("the lease market", || market.terms()).await?;
    let http = net::Client::new();
    let store = store::StoreClient::new(http.clone(), config.store_urls.clone());
    let manifest = fetch_manifest(&store, &birth).await?;

    let usdc = chain.usdc(birth.token);
    let token = at_start("the token", || usdc.signing()).await?;
    let permit2 = patiently("the chain", || permit2::support(&chain)).await?;
    if !token.has_eip3009 && !permit2.proxies {
        let (at, name) = (birth.token, &token.name);
        return Err(Error::usage(format!(
            "the token {at} ({name}) takes no EIP-3009 authorisations, and this chain has no Permit2 with x402's \
             proxies: nobody could pay"
        )));
    }
    let answers = answers::Answers::open(&config.data_dir.join("answers"))?;

    let (events, received) = mpsc::channel(EVENTS_MAX);
    let state = patiently("the treasury", || treasury.state()).await?;
    let acts = outboxes::acts(&state, keys.node.address(), config.lease);
    let Outboxes { operator, relay } = Outboxes::open(&chains, &keys, &config.data_dir, &seal_key, acts);
    let ring_file = RingFile::new(&config.data_dir, seal_key);
    let instances = instance::Instances::begin(&config.data_dir, &seal_key)?;
    let born_at = patiently("the chain", || chain.head()).await?.timestamp;
    // Nothing may wait so long that its money could be gone: half of what may be owed in all, or a while.
    let policy = BatchPolicy {
        gas: SETTLE_EXACT_GAS,
        fee_ppm_max: BATCH_FEE_PPM_MAX,
        sum_max: Usdc(manifest.payments.settle_after_uusdc / 2),
        wait_ms_max: BATCH_WAIT_MS_MAX,
        rows_max: BATCH_ROWS_MAX,
    };
    let batches = Batches::start(chain.clone(), relay.clone(), Ether::Feed(birth.options.gas.oracle), policy);
    let another = || manifest.payments.facilitator_url.as_deref().map(|url| Remote::new(url, &http));
    let (facilitator, depositor) = (another(), another());
    let shared = Arc::new(Shared::default());
    let purse = patiently("the treasury", || treasury.standing()).await?.purse;
    let suppliers = Suppliers::open(
        (&config, &manifest),
        (purse, birth.options.purseMax, birth.token),
        (&chain, &http),
        &keys.node,
        clock_of(&shared),
    )?;
    let cx = Arc::new(Context {
        config,
        manifest,
        birth,
        market_timers: MarketTimers {
            ready_within: market_timers.ready_within,
            grace: market_timers.grace,
            drop_after: market_timers.drop_after,
        },
        keys,
        ring_file,
        instances,
        token,
        permit2,
        chain,
        chains,
        treasury,
        operator,
        relay,
        batches,
        contract_attempts: contract_payers::Attempts::default(),
        facilitator,
        depositor,
        suppliers,
        store,
        http,
        born_at,
        head: channel::Sender::new(0),
        events,
    });
    let (logs_from, logs_wanted) = channel::channel(None);

    say_hello(&cx)?;
    tokio::spawn(prepare_engines(cx.clone(), shared.clone()));
    tokio::spawn(watch::watch(cx.clone(), HEAD_EVERY, logs_wanted));
    tokio::spawn(watch_gas(cx.clone(), shared.clone()));
    let router = api::router(cx.clone(), shared.clone(), answers).into_make_service_with_connect_info::<SocketAddr>();
    let listener = listener.tap_io(net::send_as_read);
    tokio::spawn(async move {
        if let Err(e) = axum::serve(listener, router).await {
            tracing::error!(error = %e, "the HTTP server ended");
        }
    });
    let stopper = cx.events.clone();
    tokio::spawn(async move {
        stop.await;
        // A closed channel means that the loop has ended already.
        let _ = stopper.send(Event::Stop).await;
    });
    Node::new(cx, shared, logs_from).run(received).await
}

/// Chain seconds of the last block seen.
fn clock_of(shared: &Arc<Shared>) -> pay::buyer::Clock {
    let shared = shared.clone();
    Arc::new(move || shared.now())
}

/// For tests: a file that names a crash point arms it for this run of the process only. Whoever can write here can
/// kill the process anyway.
fn arm_crash_point(data_dir: &std::path::Path) {
    let (wish, armed, fired) =
        (data_dir.join("crash-once"), data_dir.join("crash-armed"), data_dir.join("crash-fired"));
    // Armed by the run before this one, which did not come to its end.
    let _ = std::fs::rename(&armed, fired);
    if let Ok(name) = std::fs::read_to_string(&wish) {
        let _ = std::fs::rename(&wish, &armed);
        tracing::warn!(name = name.trim(), "a crash point is armed");
        journal::crash::arm(name.trim());
    }
}

/// Keeps what a settlement of its own costs now, where the treasury has a feed that tells an ether's price.
async fn watch_gas(cx: Arc<Context>, shared: Arc<Shared>) {
    if cx.birth.options.gas.oracle.is_zero() {
        return;
    }
    loop {
        match cx.batches.gas_price().await {
            Ok(price) => shared.set_settling(price.cost_up(SETTLE_EXACT_GAS.single).0),
            Err(error) => tracing::warn!(error = %chain_of(&error), "nobody says what gas costs"),
        }
        tokio::time::sleep(GAS_EVERY).await;
    }
}

/// The one line that the provider waits for. Said before the weights are there: the market's clock runs.
fn say_hello(cx: &Context) -> Result<()> {
    let hello = json!({ "hello": {
        "lease": cx.config.lease,
        "node_key": cx.me(),
        "public_url": cx.config.public_url,
    }});
    let mut out = std::io::stdout().lock();
    writeln!(out, "{hello}")
        .and_then(|()| out.flush())
        .map_err(|e| Error::retry("cannot speak to the provider").caused_by(e))
}

/// Asks the chain until it answers, and takes a refusal for one: what is wrong does not pass by waiting.
async fn at_start<T, F>(what: &str, mut ask: impl FnMut() -> F) -> Result<T>
where
    F: Future<Output = std::result::Result<T, chain::Error>>,
{
    let answer = patiently(what, || {
        let asked = ask();
        async move {
            match asked.await {
                Err(e) if e.is_transient() => Err(e),
                said => Ok(said),
            }
        }
    });
    answer.await?.map_err(|e| Error::usage(format!("{what} is not as it must be")).caused_by(e))
}

/// Tries until it works: at a start the world around may still be starting.
async fn patiently<T, E, F>(what: &str, mut attempt: impl FnMut() -> F) -> Result<T>
where
    E: std::error::Error + Send + Sync + 'static,
    F: Future<Output = std::result::Result<T, E>>,
{
    const ATTEMPTS: u32 = 120;
    let mut last = None;
    for _ in 0..ATTEMPTS {
        match attempt().await {
            Ok(value) => return Ok(value),
            Err(e) => {
                tracing::info!(error = %chain_of(&e), "{what} does not answer yet");
                last = Some(e);
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        }
    }
    let error = Error::retry(format!("{what} did not answer for a minute"));
    Err(match last {
        Some(e) => error.caused_by(e),
        None => error,
    })
}

async fn fetch_manifest(store: &store::StoreClient, birth: &chain::bindings::Birth) -> Result<Manifest> {
    let cid = store::cid::raw(birth.manifest.0);
    let bytes = patiently("the content store", || store.get_bytes(&cid, 64 << 10)).await?;
    let text = String::from_utf8(bytes.to_vec())
        .map_err(|e| Error::usage(format!("the manifest {cid} is not text")).caused_by(e))?;
    Manifest::parse(&text)
}

/// The model that answers first: without it nothing is sold, and a standby cannot take over.
async fn prepare_engines(cx: Arc<Context>, shared: Arc<Shared>) {
    prepare_engine(cx.clone(), shared.clone()).await;
    prepare_embedder(cx, shared).await;
}

/// Weights from the store, verified; then the engine in a process of its own.
async fn prepare_engine(cx: Arc<Context>, shared: Arc<Shared>) {
    loop {
        match start_engine(&cx).await {
            Ok(engine) => {
                tracing::info!(model = engine.hello.model_name, isa = engine.hello.isa, "the engine is ready");
                shared.set_engine(engine.clone());
                measure(cx, engine).await;
                return;
            }
            Err(e) => {
                tracing::error!(error = %chain_of(&e), "no engine yet: trying again");
                shared.set_engine_trouble(format!("no engine: {}", chain_of(&e)));
                tokio::time::sleep(Duration::from_secs(2)).await;
            }
        }
    }
}

/// The same for the embedding model, if there is one: another process of the same program (docs/decisions/0023). Its want
/// keeps nothing else from being sold.
async fn prepare_embedder(cx: Arc<Context>, shared: Arc<Shared>) {
    let Some(model) = &cx.manifest.embedding else { return };
    loop {
        match start_embedder(&cx, model).await {
            Ok(embedder) => {
                tracing::info!(model = model.name, dimensions = embedder.dimensions, "the embedding engine is ready");
                return shared.set_embedder(embedder);
            }
            Err(e) => {
                tracing::error!(error = %chain_of(&e), "no embedding engine yet: trying again");
                tokio::time::sleep(Duration::from_secs(2)).await;
            }
        }
    }
}

async fn start_embedder(cx: &Context, model: &manifest::Model) -> Result<Embedder> {
    let config = EngineConfig {
        adapters: Vec::new(),
        program: infer::engines::best_in(&cx.config.code_dir),
        model: weights::path(cx, model)?,
        socket: cx.config.data_dir.join("embed.sock"),
        // A text is short work, and one thread never waits for another that other work keeps from its core.
        threads: 1,
        threads_max: 1,
        ctx: model.context,
        slots: EngineConfig::TEXTS_DEFAULT,
    };
    let (client, hello) = spawn_on_arrival(cx, model, config, "the embedding engine does not start").await?;
    let dimensions =
        hello.dimensions.ok_or_else(|| Error::usage("the manifest's `embedding` is no embedding model"))?;
    Ok(Embedder { client, places: Places::of_vectors(), hello: Arc::new(hello), dimensions })
}

/// The engine starts when its model's file begins to arrive, and has read the header when the tail is here. It ends with
/// the fetch, if that fails.
async fn spawn_on_arrival(
    cx: &Context,
    model: &manifest::Model,
    config: EngineConfig,
    what: &str,
) -> Result<(EngineClient, infer::wire::Hello)> {
    let (verified, arriving) = channel::channel(0);
    let started =
        async { EngineClient::spawn_arriving(config, arriving).await.map_err(|e| Error::retry(what).caused_by(e)) };
    // The fetch is asked first: when both fail, its reason is the reason.
    let (_, started) = tokio::try_join!(biased; weights::arrive(cx, model, verified), started)?;
    Ok(started)
}

async fn start_engine(cx: &Context) -> Result<Engine> {
    let mut adapters = Vec::new();
    for adapter in &cx.manifest.adapters {
        adapters.push(weights::ready(cx, adapter).await?);
    }
    let config = EngineConfig {
        program: infer::engines::best_in(&cx.config.code_dir),
        model: weights::path(cx, &cx.manifest.model)?,
        adapters,
        socket: cx.config.data_dir.join("engine.sock"),
        threads: 1,
        threads_max: cx.config.threads,
        ctx: cx.manifest.model.context,
        slots: EngineConfig::SLOTS_DEFAULT,
    };
    let (client, hello) = spawn_on_arrival(cx, &cx.manifest.model, config, "the engine does not start").await?;
    if hello.dimensions.is_some() {
        return Err(Error::usage("the manifest's `model` is an embedding model, and answers nothing"));
    }
    let template = ChatTemplate::new(hello.chat_template.as_deref(), &hello.bos, &hello.eos)
        .map_err(|e| Error::usage("the model's chat template does not parse").caused_by(e))?;
    let places = Places::beside(hello.slots);
    Ok(Engine { client, places, hello: Arc::new(hello), template: Arc::new(template) })
}

/// One short answer to nobody, so that the price starts from what this host can do.
async fn measure(cx: Arc<Context>, engine: Engine) {
    let started = fence::boottime_ms();
    let request = infer::api::Sampling::default().generate("Once upon a time".into(), 48, Vec::new(), 7);
    let Ok(mut generation) = engine.client.generate(request) else { return };
    let mut tokens = 0u64;
    while let Some(event) = generation.recv().await {
        if let infer::EngineEvent::Tokens { count, .. } = event {
            tokens += u64::from(count);
        }
    }
    let spent_ms = fence::boottime_ms().saturating_sub(started).max(1);
    // tokens / ms × 1000 = tokens / s, in units of 1e-3.
    cx.tell(Event::Throughput(tokens.max(1) * 1_000_000 / spent_ms)).await;
}
