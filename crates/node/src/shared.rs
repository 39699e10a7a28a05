//! What HTTP handlers may look at without asking the main loop.

use crate::history::LogLine;
use crate::places::Places;
use crate::status::Status;
use economy::Price;
use infer::{ChatTemplate, EngineClass, EngineClient, Hello};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::{Notify, broadcast, watch};

/// Remembered quotes, and for how long they bind, chain seconds.
const QUOTES_MAX: usize = 10_000;
const QUOTE_SECS: u64 = 60;
/// News that a reader of `/events` may be behind. Beyond it the reader loses the oldest, and nobody waits for it.
const BULLETINS_MAX: usize = 256;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Waiting: another node is operator, or nobody yet.
    Standby,
    Active,
    /// Was active; finishes what is open.
    Draining,
    /// Operator as far as it knows, but without a fresh block: serves and signs nothing.
    Fenced,
    /// The lease is over.
    Ended,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Standby => "standby",
            Self::Active => "active",
            Self::Draining => "draining",
            Self::Fenced => "fenced",
            Self::Ended => "ended",
        })
    }
}

/// The engine once it runs.
#[derive(Clone)]
pub struct Engine {
    pub client: EngineClient,
    pub places: Places,
    pub hello: Arc<Hello>,
    pub template: Arc<ChatTemplate>,
}

impl Engine {
    /// What its answers depend on beside the request.
    pub fn class(&self) -> EngineClass {
        EngineClass::of(&self.hello, self.client.program_sha256())
    }
}

/// The embedding model's engine once it runs.
#[derive(Clone)]
pub struct Embedder {
    pub client: EngineClient,
    pub places: Places,
    pub hello: Arc<Hello>,
    /// Numbers of a vector.
    pub dimensions: u32,
}

/// News for readers of `/events`.
#[derive(Clone, Debug)]
pub enum Bulletin {
    Status(Arc<Status>),
    Line(LogLine),
    Moved(String),
}

pub struct Shared {
    role: watch::Sender<Role>,
    price: watch::Sender<Option<Price>>,
    /// Why nothing is sold, for the 503.
    closed_because: watch::Sender<Option<String>>,
    moved: watch::Sender<Option<String>>,
    status: watch::Sender<Option<Arc<Status>>>,
    engine: watch::Sender<Option<Engine>>,
    embedder: watch::Sender<Option<Embedder>>,
    bulletins: broadcast::Sender<Bulletin>,
    in_flight: AtomicU64,
    refused: AtomicU64,
    /// Answers that an engine was asked for.
    generations: AtomicU64,
    /// Told with each of them: what has time makes room.
    begun: Notify,
    trouble: Mutex<Option<String>>,
    /// Why the engine does not run.
    engine_trouble: Mutex<Option<String>>,
    /// What was asked for a request lately: digest of route and body → (micro-USDC, chain seconds).
    quotes: Mutex<BTreeMap<[u8; 32], (u128, u64)>>,
    relay_has_gas: AtomicBool,
    /// Micro-USDC of gas that a settlement of its own takes now; 0: nobody says.
    settling: AtomicU64,
    /// Chain seconds of the last block.
    now: AtomicU64,
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            role: watch::channel(Role::Standby).0,
            price: watch::channel(None).0,
            closed_because: watch::channel(Some("the agent has not opened yet".to_owned())).0,
            moved: watch::channel(None).0,
            status: watch::channel(None).0,
            engine: watch::channel(None).0,
            embedder: watch::channel(None).0,
            bulletins: broadcast::channel(BULLETINS_MAX).0,
            in_flight: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            generations: AtomicU64::new(0),
            begun: Notify::new(),
            trouble: Mutex::new(None),
            engine_trouble: Mutex::new(None),
            quotes: Mutex::default(),
            relay_has_gas: AtomicBool::new(false),
            settling: AtomicU64::new(0),
            now: AtomicU64::new(0),
        }
    }
}

/// Counts one open request for as long as it lives.
pub struct InFlight(Arc<Shared>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Shared {
    pub fn role(&self) -> Role {
        *self.role.borrow()
    }
    pub fn roles(&self) -> watch::Receiver<Role> {
        self.role.subscribe()
    }
    pub(crate) fn set_role(&self, role: Role) {
        self.role.send_if_modified(|r| std::mem::replace(r, role) != role);
    }

    pub fn price(&self) -> Option<Price> {
        *self.price.borrow()
    }
    pub fn prices(&self) -> watch::Receiver<Option<Price>> {
        self.price.subscribe()
    }
    pub(crate) fn sell_at(&self, price: Price) {
        self.closed_because.send_replace(None);
        self.price.send_replace(Some(price));
    }
    pub(crate) fn stop_selling(&self, why: String) {
        self.price.send_replace(None);
        self.closed_because.send_replace(Some(why));
    }
    pub fn closed_because(&self) -> Option<String> {
        self.closed_because.borrow().clone()
    }

    /// Where the agent lives now, once it does not live here any more.
    pub fn moved(&self) -> Option<String> {
        self.moved.borrow().clone()
    }
    pub(crate) fn moved_to(&self, url: Option<String>) {
        if let Some(url) = &url {
            self.tell(Bulletin::Moved(url.clone()));
        }
        self.moved.send_replace(url);
    }

    pub fn status(&self) -> Option<Arc<Status>> {
        self.status.borrow().clone()
    }
    pub(crate) fn set_status(&self, status: Status) {
        let status = Arc::new(status);
        self.now.store(status.block.timestamp, Ordering::SeqCst);
        self.status.send_replace(Some(status.clone()));
        self.tell(Bulletin::Status(status));
    }
    /// Chain seconds of the last block seen.
    pub fn now(&self) -> u64 {
        self.now.load(Ordering::SeqCst)
    }

    #[cfg(test)]
    pub(crate) fn set_now(&self, now: u64) {
        self.now.store(now, Ordering::SeqCst);
    }

    pub fn engine(&self) -> Option<Engine> {
        self.engine.borrow().clone()
    }
    /// The engine, waited for at most `patience`: right after a start it may still load the weights.
    pub async fn engine_within(&self, patience: Duration) -> Option<Engine> {
        let mut engines = self.engine.subscribe();
        // The borrow must end before the caller waits for anything else.
        tokio::time::timeout(patience, engines.wait_for(Option::is_some)).await.ok()?.ok()?.clone()
    }
    pub(crate) fn set_engine(&self, engine: Engine) {
        *lock(&self.engine_trouble) = None;
        self.engine.send_replace(Some(engine));
    }

    pub fn embedder(&self) -> Option<Embedder> {
        self.embedder.borrow().clone()
    }
    /// As [`Shared::engine_within`].
    pub async fn embedder_within(&self, patience: Duration) -> Option<Embedder> {
        let mut embedders = self.embedder.subscribe();
        tokio::time::timeout(patience, embedders.wait_for(Option::is_some)).await.ok()?.ok()?.clone()
    }
    pub(crate) fn set_embedder(&self, embedder: Embedder) {
        self.embedder.send_replace(Some(embedder));
    }

    pub fn bulletins(&self) -> broadcast::Receiver<Bulletin> {
        self.bulletins.subscribe()
    }
    pub(crate) fn tell(&self, bulletin: Bulletin) {
        // No reader is no failure.
        let _ = self.bulletins.send(bulletin);
    }

    pub fn enter(self: &Arc<Self>) -> InFlight {
        self.in_flight.fetch_add(1, Ordering::SeqCst);
        InFlight(self.clone())
    }
    pub fn in_flight(&self) -> u64 {
        self.in_flight.load(Ordering::SeqCst)
    }
    pub fn count_generation(&self) {
        self.generations.fetch_add(1, Ordering::SeqCst);
        self.begun.notify_waiters();
    }
    /// Until [`Shared::generations`] is above `seen`.
    pub async fn generation_after(&self, seen: u64) {
        loop {
            let begun = self.begun.notified();
            // A notification between here and the await is not lost: it is for all that were made before it.
            if self.generations() > seen {
                return;
            }
            begun.await;
        }
    }
    pub fn generations(&self) -> u64 {
        self.generations.load(Ordering::SeqCst)
    }
    pub fn refuse(&self) {
        self.refused.fetch_add(1, Ordering::SeqCst);
    }
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::SeqCst)
    }

    /// What keeps this process from leading: its disk, or a copy of it. It does not pass while the process runs.
    pub fn trouble(&self) -> Option<String> {
        lock(&self.trouble).clone()
    }
    pub(crate) fn set_trouble(&self, trouble: Option<String>) {
        *lock(&self.trouble) = trouble;
    }

    /// Until the engine runs.
    pub fn engine_trouble(&self) -> Option<String> {
        lock(&self.engine_trouble).clone()
    }
    pub(crate) fn set_engine_trouble(&self, why: String) {
        *lock(&self.engine_trouble) = Some(why);
    }

    /// What a settlement of its own costs in gas, micro-USDC: at least what the manifest says, and as much as it takes by
    /// the price of gas, rounded up to a power of two so that a quote does not change with every block.
    pub fn settling_up(&self, least: u128) -> u128 {
        let now = u128::from(self.settling.load(Ordering::SeqCst));
        if now <= least { least } else { now.checked_next_power_of_two().unwrap_or(u128::MAX) }
    }
    pub(crate) fn set_settling(&self, uusdc: u128) {
        self.settling.store(u64::try_from(uusdc).unwrap_or(u64::MAX), Ordering::SeqCst);
    }

    /// Whether the relay can pay for settlements, as of the last block.
    pub fn relay_has_gas(&self) -> bool {
        self.relay_has_gas.load(Ordering::SeqCst)
    }
    pub(crate) fn set_relay_has_gas(&self, has_gas: bool) {
        self.relay_has_gas.store(has_gas, Ordering::SeqCst);
    }

    /// Remembers what was asked for a request, since prices move between a 402 and its payment.
    pub fn quoted(&self, key: [u8; 32], amount: u128) {
        let mut quotes = lock(&self.quotes);
        if quotes.len() >= QUOTES_MAX {
            quotes.pop_first();
        }
        quotes.insert(key, (amount, self.now()));
    }

    /// Was this amount, or less, asked for this request within the last minute?
    pub fn was_quoted(&self, key: &[u8; 32], amount: u128) -> bool {
        let now = self.now();
        lock(&self.quotes).get(key).is_some_and(|(asked, at)| amount >= *asked && now.saturating_sub(*at) <= QUOTE_SECS)
    }
}

/// A std mutex and not tokio's: nothing is awaited while it is held. A poisoned lock means that a holder
/// panicked, and a panic ends the process.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no holder of this lock panics and lives")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn whoever_gives_way_hears_of_the_next_generation_and_of_one_before() {
        let shared = Shared::default();
        let seen = shared.generations();
        tokio::join!(shared.generation_after(seen), async { shared.count_generation() });
        shared.generation_after(seen).await;
        let patience = Duration::from_millis(1);
        assert!(tokio::time::timeout(patience, shared.generation_after(seen + 1)).await.is_err(), "none since");
    }

    #[test]
    fn gas_in_the_price_follows_the_chain_in_steps_and_never_falls_below_the_manifest() {
        let shared = Shared::default();
        assert_eq!(shared.settling_up(1_400), 1_400, "nobody says");
        for (now, price) in [(900, 1_400), (1_400, 1_400), (1_401, 2_048), (2_048, 2_048), (2_049, 4_096)] {
            shared.set_settling(now);
            assert_eq!(shared.settling_up(1_400), price);
        }
        shared.set_settling(u128::MAX);
        assert!(shared.settling_up(1_400) >= u128::from(u64::MAX), "too dear to be offered");
    }
}
