//! The loop that joins the machine to the world: one closed [`Event`], one `match`.

use crate::api::{self, Board};
use crate::code::Codes;
use crate::config::HostConfig;
use crate::error::Error;
use crate::lease_dir::{LeaseDir, TenantFile};
use crate::lease_loop::{ChainView, CodeDigest, Habits, Input, LeaseId, LeaseLoop, Millis, Output};
use crate::market::{Call, Market};
use crate::sandbox::{Room, Sandbox};
use crate::sender::{Errand, Outcome, Sender};
use crate::tenant::{self, Tenants};
use alloy::primitives::Address;
use alloy::signers::local::PrivateKeySigner;
use anyhow::Context;
use axum::serve::ListenerExt;
use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// How often the newest block is asked for. Blocks come once a second on the fastest chain.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Backoffs and deadlines are kept to this grain.
const TICK_EVERY: Duration = Duration::from_millis(100);

/// Everything that can wake the daemon.
enum Event {
    Chain(Box<ChainView>),
    ChainTrouble(Error),
    Tenant(tenant::Event),
    Fetched { code: CodeDigest, attempt: u32, result: crate::error::Result<()> },
    Sent(Outcome),
    Tick,
    Shutdown,
}

/// Runs the provider daemon until `shutdown` completes: then every tenant is stopped (SIGTERM, 3 s, SIGKILL) and
/// nothing of theirs is destroyed, so that the next start goes on with them.
///
/// Fails at start when the configuration or the machine is not as it must be (no bubblewrap, no stake, busy
/// port, wrong chain). Once it runs, what goes wrong is logged, shown in `/status` and tried again.
pub async fn run(config: HostConfig, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
    let mut config = config;
    std::fs::create_dir_all(&config.data_dir)
        .with_context(|| format!("cannot make the data directory {}", config.data_dir.display()))?;
    config.data_dir = config.data_dir.canonicalize().context("the data directory cannot be named")?;
    let sandbox = Sandbox::find()?;
    sandbox.probe(&config.data_dir.join("probe"))?;
    let key = read_key(&config.key_file)?;
    let me = key.address();
    let listener = tokio::net::TcpListener::bind(config.listen)
        .await
        .with_context(|| format!("cannot listen on {}: is another daemon there?", config.listen))?;
    config.listen = listener.local_addr().context("the listening socket has no address")?;

    let mut market = Market::new(&config, me)?;
    let mut sender = Sender::start(&config, key).await?;
    for call in market.setup(&config).await? {
        sender.send_and_wait(call).await.context("the provider's stake or offer was not accepted")?;
    }

    let board = Board::default();
    board.set(|s| {
        (s.provider, s.url, s.stake_uusdc) =
            (me.to_string(), config.public_url.clone(), config.stake_uusdc.to_string());
    });
    let served =
        tokio::spawn(axum::serve(listener.tap_io(net::send_at_once), api::router(board.clone())).into_future());

    let (events, news) = unbounded_channel();
    let (tenant_events, tenant_news) = unbounded_channel();
    let codes = Codes::open(&config)?;
    let gift = config.gift();
    let leases = config.data_dir.join("leases");
    let daemon = Daemon {
        machine: LeaseLoop::new(
            Habits {
                withdraw_every_secs: config.withdraw_every_secs,
                credit_secs: config.credit_secs,
                final_blocks: config.final_blocks,
                gift_after_uusdc: (gift.wei > 0).then_some(gift.after_uusdc),
            },
            LeaseDir::list(&leases)?,
        ),
        tenants: Tenants::new(tenant_events)?,
        started: Instant::now(),
        urls: BTreeMap::new(),
        income_uusdc: 0,
        trouble: None,
        view: ChainView::default(),
        events: events.clone(),
        config: config.clone(),
        leases,
        sandbox,
        codes,
        sender,
        market_calls: Market::new(&config, me)?,
        board,
    };
    let look = tokio::spawn(look(market, config.clone(), events.clone()));
    let relay = tokio::spawn(relay(tenant_news, events));
    tracing::info!(provider = %me, listen = %config.listen, "provider daemon runs");
    let ended = daemon.turn(news, shutdown).await;
    for task in [look, relay] {
        task.abort();
    }
    served.abort();
    ended
}

/// The provider's key: 64 hex digits, with or without 0x.
fn read_key(path: &std::path::Path) -> Result<PrivateKeySigner, Error> {
    let text = std::fs::read_to_string(path)
        .map_err(|e| Error::setup(format!("cannot read the provider's key {}", path.display())).caused_by(e))?;
    // The cause is left out: it might quote the key.
    text.trim().parse().map_err(|_| Error::setup(format!("{} must hold a key of 64 hex digits", path.display())))
}

async fn look(mut market: Market, config: HostConfig, events: UnboundedSender<Event>) {
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    loop {
        ticks.tick().await;
        let event = match market.look(&config).await {
            Ok(None) => continue,
            Ok(Some(view)) => Event::Chain(Box::new(view)),
            Err(e) => Event::ChainTrouble(e),
        };
        if events.send(event).is_err() {
            return;
        }
    }
}

async fn relay(mut news: UnboundedReceiver<tenant::Event>, events: UnboundedSender<Event>) {
    while let Some(event) = news.recv().await {
        if events.send(Event::Tenant(event)).is_err() {
            return;
        }
    }
}

struct Daemon {
    machine: LeaseLoop,
    tenants: Tenants,
    started: Instant,
    urls: BTreeMap<LeaseId, String>,
    income_uusdc: u128,
    trouble: Option<String>,
    view: ChainView,
    events: UnboundedSender<Event>,
    config: HostConfig,
    leases: PathBuf,
    sandbox: Sandbox,
    codes: Codes,
    sender: Sender,
    /// Only for its calldata: the one that looks is with its own task.
    market_calls: Market,
    board: Board,
}

impl Daemon {
    async fn turn(
        mut self,
        mut news: UnboundedReceiver<Event>,
        shutdown: impl Future<Output = ()>,
    ) -> anyhow::Result<()> {
        let mut ticks = tokio::time::interval(TICK_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        let mut shutdown = std::pin::pin!(shutdown);
        let mut closing = false;
        loop {
            let event = tokio::select! {
                Some(event) = news.recv() => event,
                outcome = self.sender.outcome() => Event::Sent(outcome),
                _ = ticks.tick() => Event::Tick,
                () = &mut shutdown, if !closing => Event::Shutdown,
            };
            closing |= matches!(event, Event::Shutdown);
            self.handle(event);
            if closing && self.machine.is_quiet() {
                tracing::info!("provider daemon ends");
                return Ok(());
            }
        }
    }

    fn handle(&mut self, event: Event) {
        let input = match event {
            Event::Chain(view) => {
                self.trouble = None;
                self.view = (*view).clone();
                Input::Chain(*view)
            }
            Event::ChainTrouble(e) => {
                self.complain(&e);
                Input::Tick
            }
            Event::Tenant(tenant::Event::Hello { lease, run, node_key }) => {
                tracing::info!(lease, run, %node_key, "tenant says hello");
                Input::Hello { lease, run, node_key }
            }
            Event::Tenant(tenant::Event::Exited { lease, run, status }) => {
                tracing::warn!(lease, run, status, "tenant ended");
                self.tenants.forget(lease, run);
                Input::Exited { lease, run }
            }
            Event::Fetched { code, result: Ok(()), .. } => Input::Fetched { code },
            Event::Fetched { code, attempt, result: Err(e) } => {
                self.complain(&e);
                Input::FetchFailed { code, attempt }
            }
            Event::Sent(outcome) => self.sent(outcome),
            Event::Tick => Input::Tick,
            Event::Shutdown => Input::Shutdown,
        };
        let quiet = matches!(input, Input::Tick);
        let mut inputs = vec![input];
        let mut acted = false;
        while let Some(input) = inputs.pop() {
            let mut out = Vec::new();
            self.machine.handle(self.now(), input, &mut out);
            acted |= !out.is_empty();
            for output in out {
                inputs.extend(self.perform(output));
            }
        }
        if acted || !quiet {
            self.show();
        }
    }

    fn now(&self) -> Millis {
        Millis::try_from(self.started.elapsed().as_millis()).unwrap_or(Millis::MAX)
    }

    /// Does what the machine says. What fails at once comes back as an input.
    fn perform(&mut self, output: Output) -> Option<Input> {
        match output {
            Output::Fetch { code, attempt } => {
                let (codes, events) = (self.codes.clone(), self.events.clone());
                tokio::spawn(async move {
                    let result = codes.fetch(code).await;
                    let _ = events.send(Event::Fetched { code, attempt, result });
                });
            }
            Output::Start { lease, run, treasury, code, memory_mib } => {
                if let Err(e) = self.start(lease, run, treasury, code, memory_mib) {
                    self.complain(&e);
                    return Some(Input::Exited { lease, run });
                }
            }
            Output::GiftGas { lease, node_key } => {
                match LeaseDir::note_gift(&self.leases, lease, &node_key.to_string()) {
                    Ok(true) => self.sender.push(Errand::Gift { lease, to: node_key, wei: self.config.gift().wei }),
                    Ok(false) => tracing::info!(lease, %node_key, "no gas for this key: the lease has had its gift"),
                    Err(e) => {
                        self.complain(&e);
                        return Some(Input::GiftFailed { lease });
                    }
                }
            }
            Output::SendReady { lease, node_key } => match self.urls.get(&lease) {
                Some(url) => {
                    let call = self.market_calls.ready(lease, node_key, url);
                    self.sender.push(Errand::Ready { lease, call });
                }
                None => return Some(Input::ReadyFailed { lease }),
            },
            Output::Terminate { lease, run } => {
                tracing::info!(lease, run, "stopping tenant");
                self.tenants.terminate(lease, run);
            }
            Output::Kill { lease, run } => {
                tracing::warn!(lease, run, "tenant did not end by itself, killing it");
                self.tenants.kill(lease, run);
            }
            Output::Destroy { lease } => {
                tracing::info!(lease, "lease is over: destroying its key and data");
                self.urls.remove(&lease);
                if let Err(e) = LeaseDir::destroy(&self.leases, lease) {
                    // The directory is found again at the next start, and destroyed then.
                    self.complain(&e);
                }
            }
            Output::Withdraw { lease } => {
                let due = self.view.leases.iter().find(|l| l.id == lease).map_or(0, |l| l.due_uusdc);
                self.push("withdraw", lease, self.market_calls.withdraw(lease), due);
            }
            Output::Expire { lease } => self.push("expire", lease, self.market_calls.expire(lease), 0),
            Output::Reprice { offer, price_e6 } => {
                tracing::info!(offer, price_e6, "asking another price");
                self.push("reprice", offer, self.market_calls.reprice(offer, price_e6), 0);
            }
        }
        None
    }

    fn push(&mut self, what: &'static str, of: u64, call: Call, income_uusdc: u128) {
        self.sender.push(Errand::Call { what, of, call, income_uusdc });
    }

    fn sent(&mut self, outcome: Outcome) -> Input {
        match outcome {
            Outcome::Done { errand: Errand::Call { income_uusdc, .. } } => {
                self.income_uusdc = self.income_uusdc.saturating_add(income_uusdc);
                Input::Tick
            }
            Outcome::Done { .. } => Input::Tick,
            Outcome::NotSent { errand: Errand::Gift { lease, .. }, error } => {
                self.complain(&error);
                match LeaseDir::forget_gift(&self.leases, lease) {
                    Ok(()) => Input::GiftFailed { lease },
                    Err(e) => {
                        self.complain(&e);
                        Input::Tick
                    }
                }
            }
            Outcome::NotSent { errand, error } | Outcome::Failed { errand, error } => {
                self.complain(&error);
                match errand {
                    Errand::Ready { lease, .. } => Input::ReadyFailed { lease },
                    _ => Input::Tick,
                }
            }
        }
    }

    fn start(
        &mut self,
        lease: LeaseId,
        run: u64,
        treasury: Address,
        code: CodeDigest,
        memory_mib: u32,
    ) -> Result<(), Error> {
        let dir = LeaseDir::open(&self.leases, lease)?;
        let listen = SocketAddr::new(self.config.listen.ip(), dir.port(self.config.listen.ip())?);
        let url = self.config.tenant_url(listen.port())?;
        dir.write_tenant_file(&TenantFile {
            rpc_urls: &self.config.rpc_urls,
            chain_id: self.config.chain_id,
            treasury: treasury.to_string(),
            lease_market: self.config.market.to_string(),
            lease,
            store_urls: &self.config.store_urls,
            listen: listen.to_string(),
            public_url: url.clone(),
            data_dir: "/lease/data",
            code_dir: "/code",
            seal_key_file: "/lease/seal.key",
            threads: self.config.threads,
        })?;
        let room = Room {
            code_dir: self.codes.dir(code),
            tenant_file: dir.tenant_file(),
            seal_key_file: dir.seal_key(),
            data_dir: dir.data(),
            memory_mib,
            env: self.config.tenant_env.clone(),
        };
        let command = self.sandbox.command(&room, &["/code/vivarium", "node", "--config", "/lease/tenant.json"]);
        self.urls.insert(lease, url);
        self.tenants.start(lease, run, command, &dir.log())?;
        tracing::info!(lease, run, %treasury, %listen, "tenant started");
        Ok(())
    }

    /// Logs a trouble once, not at each of its repetitions.
    fn complain(&mut self, error: &dyn std::error::Error) {
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            text = format!("{text}: {cause}");
            source = cause.source();
        }
        if self.trouble.as_ref() != Some(&text) {
            tracing::warn!("{text}");
            self.trouble = Some(text);
        }
    }

    fn show(&self) {
        let tenants = self.machine.status().into_iter().map(|status| {
            let (lease, pids) = (status.lease, self.tenants.pids(status.lease));
            api::Tenant::new(status, pids, self.urls.get(&lease).cloned())
        });
        let tenants: Vec<_> = tenants.collect();
        let offers =
            self.view.offers.iter().map(|o| api::OfferStatus { id: o.id, price_e6: o.price_e6, quote_e6: o.quote_e6 });
        self.board.set(|s| {
            s.block = api::Block { number: self.view.block, timestamp: self.view.timestamp };
            s.due_uusdc = self.view.leases.iter().map(|l| l.due_uusdc).sum::<u128>().to_string();
            s.income_uusdc = self.income_uusdc.to_string();
            s.offers = offers.collect();
            s.tenants = tenants;
            s.trouble.clone_from(&self.trouble);
        });
    }
}
