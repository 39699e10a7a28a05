//! The loop: look at each block, let the machine decide, do what it says. Requests are answered beside it.

use crate::agent::{Proposed, Seat};
use crate::api::{self, Notes};
use crate::config::StewardConfig;
use crate::desk::Desk;
use crate::eyes::{Eyes, Looked};
use crate::finder::Finder;
use crate::orders::repaid;
use crate::refusal::Refusal;
use crate::rescue::{PEER_DEADLINE, rescue};
use crate::suspicion::{Fault, Finding, Proposal};
use crate::unread::Unread;
use crate::watch::{BlockView, Input, NoHost, Output, Rescue, Watch};
use alloy::primitives::{Address, B256, Bytes};
use alloy::signers::local::PrivateKeySigner;
use anyhow::{Context, Result, anyhow};
use axum::http;
use axum::serve::ListenerExt;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use chain::Head;
use chain::bindings::Birth;
use chain::sender::{Sender, SenderHandle};
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
use tokio::task::JoinHandle;

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
    /// What a look at an agent's host found: epoch and lease that it looked at.
    Probed(Address, (u64, u64), Finding),
    /// An agent that could not be read was asked again.
    Asked(Address, Result<(), Refusal>),
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
    let found = tokio::spawn(Finder::new(desk.clone(), notes.clone()).turn());
    let watcher = Watcher {
        desk,
        notes,
        sender,
        watch: Watch::new(),
        events,
        seen: None,
        probed_at: BTreeMap::new(),
        unread: Unread::default(),
        pruning: None,
    };
    watcher.turn(news, shutdown).await;
    found.abort();
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
    /// The newest block that was looked at, and the agents that were seen in it.
    seen: Option<(B256, BTreeSet<Address>)>,
    probed_at: BTreeMap<Address, u64>,
    unread: Unread,
    pruning: Option<JoinHandle<()>>,
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
                Event::Probed(treasury, office, finding) => self.handle(Input::Found { treasury, office, finding }),
                Event::Asked(treasury, Ok(())) => self.unread.mend(treasury),
                Event::Asked(treasury, Err(why)) => self.leave_out(treasury, &why, self.desk.block().timestamp),
                Event::Shutdown => return,
            }
        }
    }

    async fn look(&mut self) -> Result<(), Refusal> {
        let head = self.desk.eyes.head().await?;
        let mut watched = self.desk.watched();
        self.unread.keep(|treasury| watched.contains_key(treasury));
        let named = &self.desk.config.treasuries;
        for treasury in watched.keys().filter(|treasury| !named.contains(treasury)) {
            self.unread.meet(*treasury);
        }
        self.ask_unread(&watched, &head);
        watched.retain(|treasury, _| !self.unread.has(treasury));
        if self.seen.as_ref().is_some_and(|(hash, all)| *hash == head.hash && all.iter().eq(watched.keys())) {
            return Ok(());
        }
        let Looked { mut block, states, unread } = self.desk.eyes.block(&watched, self.desk.address(), &head).await?;
        for (treasury, why) in &unread {
            self.leave_out(*treasury, why, head.timestamp);
        }
        self.notes.set_unread(self.unread.troubles());
        block.unread = self.unread.all();
        self.desk.saw(block.clone(), states);
        watched.retain(|treasury, _| !unread.contains_key(treasury));
        self.seen = Some((head.hash, watched.keys().copied().collect()));
        self.handle(Input::Block(block.clone()));
        self.prune(watched.into_keys().collect());
        for (treasury, office) in self.desk.bad_checkpoints() {
            self.handle(Input::Found { treasury, office, finding: Finding::Bad(Fault::BadCheckpoint) });
        }
        self.probe(&block);
        Ok(())
    }

    /// Beside the loop: a store that is away, or has not what a treasury names, must not keep the watch from watching.
    fn prune(&mut self, watched: Vec<Address>) {
        if self.pruning.as_ref().is_some_and(|task| !task.is_finished()) {
            return;
        }
        let desk = self.desk.clone();
        self.pruning = Some(tokio::spawn(async move {
            for treasury in watched {
                if let Err(e) = desk.prune(treasury).await {
                    tracing::debug!(%treasury, "cannot tidy up yet: {e}");
                }
            }
        }));
    }

    /// One that cannot be read delays no other: it is asked beside the loop, and looked at again once it can be.
    fn ask_unread(&mut self, watched: &BTreeMap<Address, (Birth, Seat)>, head: &Head) {
        for treasury in self.unread.due(head.timestamp) {
            let Some((birth, seat)) = watched.get(&treasury).cloned() else { continue };
            let (desk, events, head) = (self.desk.clone(), self.events.clone(), *head);
            tokio::spawn(async move {
                let seen = desk.eyes.see(treasury, &birth, (desk.address(), &seat), &head).await;
                // A receiver that is gone means that the loop ends, too.
                let _ = events.send(Event::Asked(treasury, seen.map(drop)));
            });
        }
    }

    /// Said once for each reason.
    fn leave_out(&mut self, treasury: Address, why: &Refusal, now: u64) {
        if self.unread.fail(treasury, why.to_string(), now) {
            tracing::warn!(%treasury, "it cannot be watched: {why}");
        }
        self.notes.set_unread(self.unread.troubles());
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
        self.notes.set_proposals(self.watch.proposals().collect());
        self.desk.set_disappointed(self.watch.disappointed());
    }

    fn perform(&self, output: Output) {
        match output {
            Output::NoHost { treasury, why } => {
                let what = match why {
                    NoHost::NoOffer => "no offer is within its price cap and term, of a provider that is not barred",
                    NoHost::Asleep => {
                        tracing::info!(%treasury, "it sleeps, and is woken once it is funded for a week of rent");
                        return;
                    }
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
            Output::Propose { treasury, proposal } => {
                let Proposal { epoch, lease, provider, fault, times, since, keep } = proposal;
                let (found, at) = (self.notes.probe(treasury), self.desk.block().timestamp);
                tracing::warn!(
                    %treasury, lease, %provider, why = fault.as_str(), times, since, found,
                    "its host is paid and does not do what for; if the other stewards find the same, people evict it: \
                     vivarium steward evict --keep {keep}"
                );
                let fault = fault.as_str().to_owned();
                let proposed = Proposed { at, epoch, lease, provider, fault, times, since, found, keep };
                if let Err(e) = self.desk.note_proposal(treasury, &proposed) {
                    tracing::error!(%treasury, "{e}");
                }
                self.tell_peers(treasury, proposal.fault.as_str());
            }
            Output::Withdraw { treasury } => {
                tracing::info!(%treasury, "nothing is held against its host any more");
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

    /// One call that this steward pays for, within a bound; a failure is told to the watch.
    fn call(&self, treasury: Address, call: Bytes, label: &'static str) {
        let (desk, sender, events) = (self.desk.clone(), self.sender.clone(), self.events.clone());
        tokio::spawn(async move {
            let sent = async {
                sender.send_and_wait(repaid(desk.eyes.first(), desk.address(), treasury, call, label).await?).await
            };
            if let Err(e) = sent.await {
                tracing::warn!(%treasury, "{e}");
                let _ = events.send(Event::Failed(treasury));
            }
        });
    }

    /// Compares what agents say of themselves, and what they offer, with the chain. Nothing is done on it: whoever can lie
    /// to a probe must not be able to move a quorum. What it finds often enough becomes a proposal to people.
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
            let (desk, notes, events) = (self.desk.clone(), self.notes.clone(), self.events.clone());
            let (treasury, market, office) = (view.treasury, birth.market, (view.epoch, active.id));
            let named = Named { treasury, operator: view.operator, epoch: view.epoch };
            tokio::spawn(async move {
                let url = match desk.eyes.endpoint(market, office.1).await {
                    Ok(url) => url,
                    // The chain's fault and not the host's.
                    Err(e) => return notes.set_probe(treasury, format!("not looked at: {e}")),
                };
                let (finding, words) = probe(desk.http(), url.trim_end_matches('/'), &named).await;
                notes.set_probe(treasury, words);
                // A receiver that is gone means that the loop ends, too.
                let _ = events.send(Event::Probed(treasury, office, finding));
            });
        }
    }
}

/// Whom the chain names.
struct Named {
    treasury: Address,
    operator: Option<Address>,
    epoch: u64,
}

/// The part of an agent's `/status` that the chain can confirm.
#[derive(Deserialize)]
struct Said {
    agent: Address,
    operator: Address,
    epoch: u64,
}

/// The part of a 402's offers that says who gets the money.
#[derive(Deserialize)]
struct Offers {
    accepts: Vec<OfferOf>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct OfferOf {
    pay_to: Address,
    #[serde(default)]
    extra: Extra,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Extra {
    receiver_authorizer: Option<Address>,
}

/// A route that every agent sells on; asked without a payment it says its terms, for which the engine counts tokens.
const TERMS: &str = "/v1/chat/completions";
const PAYMENT_REQUIRED: http::HeaderName = http::HeaderName::from_static("payment-required");

/// One look at a host, and what it found in words of our own: a host's text is for nobody to act on.
async fn probe(http: &net::Client, url: &str, named: &Named) -> (Finding, String) {
    let bad = |fault, words: String| (Finding::Bad(fault), words);
    let http = http.clone().with_deadline(PROBE_DEADLINE);
    let said: Said = match http.get_json(&format!("{url}/status")).await {
        Ok(said) => said,
        Err(e) => return bad(Fault::Unserved, format!("unreachable: {e:#}")),
    };
    if said.agent != named.treasury {
        return bad(Fault::WrongRecord, format!("says it is agent {}", said.agent));
    }
    if Some(said.operator) != named.operator || said.epoch != named.epoch {
        return bad(Fault::WrongRecord, format!("says epoch {} of operator {}", said.epoch, said.operator));
    }
    let answer = match http.get(&format!("{url}{TERMS}")).await {
        Ok(answer) => answer,
        Err(e) => return bad(Fault::Unserved, format!("offers nothing: {e:#}")),
    };
    let offers = answer.header(&PAYMENT_REQUIRED).and_then(|header| {
        let json = BASE64_STANDARD.decode(header).ok()?;
        serde_json::from_slice::<Offers>(&json).ok().filter(|offers| !offers.accepts.is_empty())
    });
    let Some(offers) = offers else {
        return bad(Fault::Unserved, format!("offers nothing: status {}", answer.status.as_u16()));
    };
    let mut payees = offers.accepts.iter().flat_map(|o| [Some(o.pay_to), o.extra.receiver_authorizer]).flatten();
    match payees.find(|payee| *payee != named.treasury) {
        Some(payee) => bad(Fault::WrongPayee, format!("has customers pay {payee}")),
        None => (Finding::Good, "as on chain".to_owned()),
    }
}
