//! Engines of several models under one limit of memory: each a process of its own, loaded when it is asked for.
//!
//! [`residency`] decides; this does. The death of one engine is its own requests' alone: each has a supervisor.

mod residency;

pub use residency::{Later, Policy, Reading, Why};

use crate::client::{EngineClient, EngineConfig};
use crate::wire::Hello;
use futures::future::BoxFuture;
use residency::{Residency, Said};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// Finds a model's weights, fetched if need be, and says how its engine is started; or why not. Asked for each load.
pub type Prepare = dyn Fn(usize) -> BoxFuture<'static, Result<EngineConfig, String>> + Send + Sync;

/// A handle; clones share the engines, which end with the last one and the last of their requests.
#[derive(Clone)]
pub struct EnginePool(Arc<Pool>);

struct Pool {
    state: Mutex<State>,
    /// Something of the state is another.
    changes: watch::Sender<()>,
    prepare: Box<Prepare>,
    started: Instant,
}

struct State {
    residency: Residency,
    /// Of each model that is loaded.
    engines: Vec<Option<Loaded>>,
}

/// An engine that is loaded, and stays as long as this or what was started with it is there.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub client: EngineClient,
    pub hello: Arc<Hello>,
}

impl EnginePool {
    /// `bytes`: what the engine of each model will take, estimated; models are named by their place in it.
    pub fn new(policy: Policy, bytes: impl IntoIterator<Item = u64>, prepare: Box<Prepare>) -> EnginePool {
        let residency = Residency::new(policy, bytes);
        let engines = (0..residency.len()).map(|_| None).collect();
        let pool = Arc::new(Pool {
            state: Mutex::new(State { residency, engines }),
            changes: watch::channel(()).0,
            prepare,
            started: Instant::now(),
        });
        tokio::spawn(tidy(Arc::downgrade(&pool), pool.changes.subscribe()));
        EnginePool(pool)
    }

    /// The engine of `model`, waited for at most `patience`. It is loaded if it is not, and others leave for it; none that
    /// a request runs on.
    pub async fn get(&self, model: usize, patience: Duration) -> Result<Loaded, Later> {
        let until = Instant::now() + patience;
        let mut changes = self.0.changes.subscribe();
        let mut seat = None;
        loop {
            changes.borrow_and_update();
            let again = match self.0.ask(model, until, seat.is_some()) {
                Asked::Loaded(loaded) => return Ok(loaded),
                Asked::Wait(again) => again,
                Asked::Later(later) => return Err(later),
            };
            if seat.is_none() {
                seat = Some(Seat::taken(&self.0, model));
            }
            let again = again.map_or(until, |again| until.min(Instant::now() + Duration::from_millis(again)));
            // Whatever ends the wait, the machine is asked what it means.
            let _ = tokio::time::timeout_at(again, changes.changed()).await;
        }
    }

    /// What all may take from now on, bytes.
    pub fn set_bytes_max(&self, bytes_max: u64) {
        self.0.lock().residency.set_bytes_max(bytes_max);
        self.0.changed();
    }

    pub fn readings(&self) -> Vec<Reading> {
        let state = self.0.lock();
        (0..state.engines.len()).map(|model| state.residency.reading(model)).collect()
    }

    /// Process id of a model's engine, while it is loaded and runs.
    pub fn pid(&self, model: usize) -> Option<u32> {
        self.0.lock().engines[model].as_ref()?.client.pid()
    }

    /// Is told of every change of what [`EnginePool::readings`] says.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.0.changes.subscribe()
    }
}

enum Asked {
    Loaded(Loaded),
    Wait(Option<u64>),
    Later(Later),
}

impl Pool {
    /// A std mutex and not tokio's: nothing is awaited while it is held.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock panics and lives")
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn changed(&self) {
        self.changes.send_replace(());
    }

    fn ask(self: &Arc<Self>, model: usize, until: Instant, waits: bool) -> Asked {
        let patience = until.saturating_duration_since(Instant::now());
        let patience_ms = u64::try_from(patience.as_millis()).unwrap_or(u64::MAX);
        let mut state = self.lock();
        let now_ms = self.now_ms();
        match state.residency.asked(now_ms, model, patience_ms, waits) {
            Said::Ready => {
                state.residency.begins(now_ms, model);
                let loaded = state.engines[model].clone().expect("what is ready is there");
                let used = InUse { pool: self.clone(), model };
                Asked::Loaded(Loaded { client: loaded.client.used_by(Arc::new(used)), ..loaded })
            }
            Said::Wait(again) => Asked::Wait(again),
            Said::Load { leaving } => {
                leaving.into_iter().for_each(|other| self.let_go(&mut state, other));
                tokio::spawn(self.clone().load(model));
                Asked::Wait(None)
            }
            Said::Later(later) => Asked::Later(later),
        }
    }

    /// Ends the engine of a model that leaves.
    fn let_go(self: &Arc<Self>, state: &mut State, model: usize) {
        let engine = state.engines[model].take().expect("what leaves was there");
        let pool = self.clone();
        tokio::spawn(async move {
            engine.client.ended().await;
            pool.lock().residency.gone(model);
            pool.changed();
        });
    }

    async fn load(self: Arc<Self>, model: usize) {
        let mut changes = self.changes.subscribe();
        while self.lock().residency.some_leave() {
            // Its own pool is there: somebody will tell.
            let _ = changes.changed().await;
        }
        let loaded = match (self.prepare)(model).await {
            Ok(config) => EngineClient::spawn(config).await.map_err(|error| error.to_string()),
            Err(why) => Err(why),
        };
        let now_ms = self.now_ms();
        let mut state = self.lock();
        match loaded {
            Ok((client, hello)) => {
                state.residency.loaded(now_ms, model, client.pid().and_then(resident_bytes));
                state.engines[model] = Some(Loaded { client, hello: Arc::new(hello) });
            }
            Err(why) => state.residency.failed(now_ms, model, why),
        }
        drop(state);
        self.changed();
    }
}

/// Lets go what nobody uses, after every change and when it is time.
async fn tidy(pool: Weak<Pool>, mut changes: watch::Receiver<()>) {
    loop {
        let Some(held) = pool.upgrade() else { return };
        let (began_ms, next) = {
            let mut state = held.lock();
            let State { residency, engines } = &mut *state;
            for (model, engine) in engines.iter().enumerate() {
                let pid = engine.as_ref().and_then(|loaded| loaded.client.pid());
                if let Some(bytes) = pid.and_then(resident_bytes) {
                    residency.measured(model, bytes);
                }
            }
            let now_ms = held.now_ms();
            let (leaving, next) = state.residency.tidy(now_ms);
            leaving.into_iter().for_each(|model| held.let_go(&mut state, model));
            (now_ms, next)
        };
        drop(held);
        let changed = match next {
            Some(next) => {
                let wait = Duration::from_millis(next.saturating_sub(began_ms).max(1));
                tokio::time::timeout(wait, changes.changed()).await.unwrap_or(Ok(()))
            }
            None => changes.changed().await,
        };
        if changed.is_err() {
            return;
        }
    }
}

/// One request in a model's queue.
struct Seat {
    pool: Arc<Pool>,
    model: usize,
}

impl Seat {
    fn taken(pool: &Arc<Pool>, model: usize) -> Seat {
        pool.lock().residency.waits(model);
        pool.changed();
        Seat { pool: pool.clone(), model }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.pool.lock().residency.waits_no_more(self.model);
        self.pool.changed();
    }
}

/// One request on a loaded model: while it is there, the model stays.
pub(crate) struct InUse {
    pool: Arc<Pool>,
    model: usize,
}

impl std::fmt::Debug for InUse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("InUse").field("model", &self.model).finish_non_exhaustive()
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        let now_ms = self.pool.now_ms();
        self.pool.lock().residency.ends(now_ms, self.model);
        self.pool.changed();
    }
}

/// Memory of a process that is in RAM, mapped files included; `None`: the kernel does not say.
pub fn resident_bytes(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1_024)
}
