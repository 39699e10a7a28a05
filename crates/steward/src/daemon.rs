//! The loop: look at each block, let the machine decide, do what it says. Requests are answered beside it.

use crate::agent::Seat;
use crate::api::{self, Notes};
use crate::config::StewardConfig;
use crate::desk::Desk;
use crate::eyes::Eyes;
use crate::refusal::Refusal;
use crate::rescue::{PEER_DEADLINE, rescue};
use crate::watch::{BlockView, Input, NoHost, Output, Rescue, Watch};
use alloy::primitives::{Address, B256, Bytes};
use alloy::signers::local::PrivateKeySigner;
use anyhow::{Context, Result, anyhow};
use axum::serve::ListenerExt;
use chain::sender::{Sender, SenderHandle, Tx};
use chain::treasury::calls;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::future::{Future, IntoFuture};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use store::seal::Identity;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Blocks between probes of one agent.
const PROBE_BLOCKS: u64 = 10;
const PROBE_DEADLINE: Duration = Duration::from_secs(3);
const CONFIRMATIONS: u64 = 1;

/// Everything that can wake the loop.
enum Event {
    Look,
    /// A challenge or a rescue did not go through.
    Failed(Address),
    Shutdown,
}

/// Runs the steward daemon until `shutdown` completes.
///
/// Fails at start when the configuration is not as it must be (keys, busy port, wrong chain). Once it runs, what
/// goes wrong is logged, shown in `/status` and tried again.
pub async fn run(config: StewardConfig, shutdown: impl Future<Output = ()>) -> Result<()> {
    let order_key = read_order_key(&config.order_key_file)?;
    let share_key = read_share_key(&config.share_key_file)?;
    let eyes = Eyes::new(&config.rpc_urls, config.chain_id).context("rpc_urls")?;
    if let Err(e) = eyes.verify(config.factory, &config.treasuries).await {
        let away = e.is_transient();
        let refusal = anyhow::Error::new(e);
        return Err(if away { refusal.context("no chain to watch: is it running?") } else { refusal });
    }
    let listener = tokio::net::TcpListener::bind(config.listen)
        .await
        .with_context(|| format!("cannot listen on {}: is another daemon there?", config.listen))?;
    let listen = listener.local_addr().context("the listening socket has no address")?;
    let data_dir = config.data_dir.display().to_string();
    let desk = Desk::new(config, eyes, order_key, share_key).with_context(|| format!("cannot write {data_dir}"))?;
    let desk = Arc::new(desk);
    let notes = Notes::default();
    let router = api::router(desk.clone(), notes.clone()).into_make_service_with_connect_info::<SocketAddr>();
    let served = tokio::spawn(axum::serve(listener.tap_io(net::send_at_once), router).into_future());
    let sender = Sender::spawn(desk.eyes.first().clone(), desk.order_key.clone(), CONFIRMATIONS);
    tracing::info!(steward = %desk.address(), %listen, "steward daemon runs");
    let (events, news) = unbounded_channel();
    let watcher = Watcher {
        desk,
        notes,
        sender,
        watch: Watch::new(),
        events,
        seen: None,
        looked_for_agents_to: 0,
        looked_for_changes_to: None,
        probed_at: BTreeMap::new(),
        strangers: BTreeSet::new(),
    };
    watcher.turn(news, shutdown).await;
    served.abort();
    tracing::info!("steward daemon ends");
    Ok(())
}

fn read_order_key(path: &Path) -> Result<PrivateKeySigner> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("cannot read the order key {}", path.display()))?;
    // The cause is left out: it might quote the key.
    text.trim().parse().map_err(|_| anyhow!("{} must hold a key of 64 hex digits", path.display()))
}

fn read_share_key(path: &Path) -> Result<Identity> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("cannot read the share key {}", path.display()))?;
    Identity::parse(text.trim())
        .map_err(|_| anyhow!("{} must hold an age identity (AGE-SECRET-KEY-1…)", path.display()))
}

struct Watcher {
    desk: Arc<Desk>,
    notes: Notes,
    sender: SenderHandle,
    watch: Watch,
    events: UnboundedSender<Event>,
    seen: Option<B256>,
    looked_for_agents_to: u64,
    looked_for_changes_to: Option<u64>,
    probed_at: BTreeMap<Address, u64>,
    /// Treasuries of the factory in which this steward is none: not asked about again.
    strangers: BTreeSet<Address>,
}

impl Watcher {
    async fn turn(mut self, mut news: UnboundedReceiver<Event>, shutdown: impl Future<Output = ()>) {
        let mut ticks = tokio::time::interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        let mut shutdown = std::pin::pin!(shutdown);
        loop {
            let event = tokio::select! {
                () = &mut shutdown => Event::Shutdown,
                Some(event) = news.recv() => event,
                _ = ticks.tick() => Event::Look,
            };
            match event {
                Event::Look => {
                    let trouble = self.look().await.err().map(|refusal| refusal.to_string());
                    if self.notes.set_trouble(trouble.clone())
                        && let Some(trouble) = trouble
                    {
                        tracing::warn!("{trouble}");
                    }
                }
                Event::Failed(treasury) => self.handle(Input::Failed { treasury }),
                Event::Shutdown => return,
            }
        }
    }

    async fn look(&mut self) -> Result<(), Refusal> {
        let head = self.desk.eyes.head().await?;
        if self.seen == Some(head.hash) {
            return Ok(());
        }
        self.find_agents(head.number).await?;
        self.find_changes(head.number).await?;
        let watched = self.desk.watched();
        let (block, states) = self.desk.eyes.block(&watched, self.desk.address(), &head).await?;
        self.desk.saw(block.clone(), states);
        self.seen = Some(head.hash);
        self.handle(Input::Block(block.clone()));
        for treasury in watched.keys() {
            // A store that is away must not keep the watch from watching.
            if let Err(e) = self.desk.prune(*treasury).await {
                tracing::debug!(%treasury, "cannot tidy up yet: {e}");
            }
        }
        self.probe(&block);
        Ok(())
    }

    /// Treasuries named in the configuration, and new ones of the factory.
    async fn find_agents(&mut self, head: u64) -> Result<(), Refusal> {
        let known = self.desk.watched();
        let mut candidates: Vec<Address> = self.desk.config.treasuries.clone();
        if let Some(factory) = self.desk.config.factory {
            // The last blocks are looked at again: a reorg may have put a birth there.
            let mut from = self.looked_for_agents_to.min(head).saturating_sub(4);
            while from <= head {
                let (created, to) = self.desk.eyes.created(factory, from, head).await?;
                candidates.extend(created);
                (from, self.looked_for_agents_to) = (to + 1, to);
            }
        }
        for treasury in candidates {
            if known.contains_key(&treasury) || self.strangers.contains(&treasury) {
                continue;
            }
            match self.desk.look_for(treasury).await {
                Ok(true) => {}
                Ok(false) => {
                    self.strangers.insert(treasury);
                }
                // One that cannot be read must not hide the others; it is tried again at the next block.
                Err(e) => tracing::debug!(%treasury, "cannot be read yet: {e}"),
            }
        }
        Ok(())
    }

    /// What a quorum has changed since the last look, of agents that are watched and of those that were not ours.
    async fn find_changes(&mut self, head: u64) -> Result<(), Refusal> {
        // What was changed before the first look is what was read then.
        let mut from = self.looked_for_changes_to.unwrap_or(head).min(head).saturating_sub(4);
        while from <= head {
            let (changed, to) = self.desk.eyes.changed(from, head).await?;
            let known = self.desk.watched();
            for treasury in changed {
                if !known.contains_key(&treasury) && !self.strangers.contains(&treasury) {
                    continue;
                }
                if self.desk.renew(treasury).await? {
                    self.strangers.remove(&treasury);
                } else {
                    self.strangers.insert(treasury);
                }
            }
            (from, self.looked_for_changes_to) = (to + 1, Some(to));
        }
        Ok(())
    }

    fn handle(&mut self, input: Input) {
        let mut out = Vec::new();
        self.watch.handle(input, &mut out);
        for output in out {
            self.perform(output);
        }
        let alarms = self.watch.alarms().map(|(treasury, alarm)| (treasury, alarm.as_str()));
        let without_hosts = self.watch.without_hosts().map(|(treasury, why)| (treasury, why.as_str()));
        self.notes.set_alarms(alarms.chain(without_hosts).collect());
    }

    fn perform(&self, output: Output) {
        match output {
            Output::NoHost { treasury, why } => {
                let what = match why {
                    NoHost::NoOffer => "no offer is within its price cap and term, of a provider that is not barred",
                    NoHost::NoMoney => "its treasury can pay nothing for the offer that fits: fund it",
                };
                tracing::warn!(%treasury, why = why.as_str(), "a rescue is due and cannot be ordered: {what}");
            }
            Output::Alarm { treasury, alarm } => {
                tracing::warn!(%treasury, alarm = alarm.as_str(), "alarm");
                self.tell_peers(treasury, alarm.as_str());
            }
            Output::AllClear { treasury } => {
                tracing::info!(%treasury, "all clear");
                self.tell_peers(treasury, api::CLEAR);
            }
            Output::Challenge { treasury } => match self.desk.watched().get(&treasury) {
                // The contract takes a challenge from a steward: that is the Safe, and it takes its own transaction.
                Some((_, Seat::OwnerOf { safe, .. })) => {
                    tracing::warn!(%treasury, %safe, "the operator is silent; only the Safe or the standby can challenge it");
                }
                _ => {
                    tracing::warn!(%treasury, "challenging a silent operator");
                    self.call(treasury, calls::challenge(), "challenge");
                }
            },
            Output::WindDown { treasury } => {
                tracing::warn!(%treasury, "winding down what its agent does not");
                self.call(treasury, calls::wind_down(), "wind down");
            }
            Output::Close { treasury } => {
                tracing::warn!(%treasury, "closing what its agent left open");
                self.call(treasury, calls::close(), "close");
            }
            Output::Prepared { treasury, order } => {
                let Rescue { offer, term, prepay_uusdc, .. } = order;
                tracing::warn!(
                    %treasury, offer, term, prepay_uusdc,
                    "a rescue is due and people must sign it: vivarium steward rescue --offer {offer} --term {term} \
                     --prepay-uusdc {prepay_uusdc}"
                );
            }
            Output::Rescue { treasury, order } => {
                tracing::warn!(%treasury, offer = order.offer, "preparing a rescue");
                let (desk, sender, events) = (self.desk.clone(), self.sender.clone(), self.events.clone());
                tokio::spawn(async move {
                    if let Err(e) = rescue(&desk, &sender, treasury, &order).await {
                        tracing::warn!(%treasury, "{e:#}");
                        let _ = events.send(Event::Failed(treasury));
                    }
                });
            }
        }
    }

    /// Once to each; one that is away sees for itself when it is back.
    fn tell_peers(&self, treasury: Address, alarm: &str) {
        let request = match self.desk.alarm(treasury, alarm, self.desk.block().timestamp) {
            Ok(request) => request,
            Err(e) => return tracing::error!(%treasury, "{e}"),
        };
        let desk = self.desk.clone();
        tokio::spawn(async move {
            let http = desk.http().with_deadline(PEER_DEADLINE);
            for peer in &desk.config.peers {
                let url = format!("{}/alarm", peer.url.trim_end_matches('/'));
                if let Err(e) = http.call_json::<serde_json::Value>(&url, &request).await {
                    tracing::info!(%treasury, "a peer was not told: {e}");
                }
            }
        });
    }

    /// One call that this steward pays for; a failure is told to the watch.
    fn call(&self, treasury: Address, call: Bytes, label: &'static str) {
        let sent = self.sender.submit(Tx::call(treasury, call, label));
        let events = self.events.clone();
        tokio::spawn(async move {
            if let Err(e) = sent.await.into_result(label) {
                tracing::warn!(%treasury, "{e}");
                let _ = events.send(Event::Failed(treasury));
            }
        });
    }

    /// Compares what agents say of themselves with the chain, and notes it for people. Nothing is decided by it:
    /// whoever can lie to a probe must not be able to move a quorum.
    fn probe(&mut self, block: &BlockView) {
        if !self.desk.config.probe {
            return;
        }
        let watched = self.desk.watched();
        for view in block.treasuries.iter().filter(|t| t.alive) {
            let due = self.probed_at.get(&view.treasury).is_none_or(|at| block.number >= at + PROBE_BLOCKS);
            let (Some(active), Some((birth, _))) = (&view.active, watched.get(&view.treasury)) else { continue };
            if !due {
                continue;
            }
            self.probed_at.insert(view.treasury, block.number);
            let (desk, notes) = (self.desk.clone(), self.notes.clone());
            let (treasury, market, lease) = (view.treasury, birth.market, active.id);
            let (operator, epoch) = (view.operator, view.epoch);
            tokio::spawn(async move {
                let found = match probe(&desk, market, lease).await {
                    Err(e) => format!("unreachable: {e:#}"),
                    Ok(said) if said.agent != treasury => format!("says it is agent {}", said.agent),
                    Ok(said) if Some(said.operator) != operator || said.epoch != epoch => {
                        format!("says epoch {} of operator {}", said.epoch, said.operator)
                    }
                    Ok(_) => "as on chain".to_owned(),
                };
                notes.set_probe(treasury, found);
            });
        }
    }
}

/// The part of an agent's `/status` that the chain can confirm.
#[derive(Deserialize)]
struct Said {
    agent: Address,
    operator: Address,
    epoch: u64,
}

async fn probe(desk: &Desk, market: Address, lease: u64) -> Result<Said> {
    let url = desk.eyes.endpoint(market, lease).await?;
    let http = desk.http().with_deadline(PROBE_DEADLINE);
    Ok(http.get_json(&format!("{}/status", url.trim_end_matches('/'))).await?)
}
