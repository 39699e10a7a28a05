//! Which models are in memory: a machine that is told the time, what is asked for and what ended, and says what to
//! load and what to let go.

use std::fmt;

/// What a pool keeps to. Bytes are of memory, times in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// What all models that are loaded may take together.
    pub bytes_max: u64,
    /// A model that nobody asked for so long is let go.
    pub idle_ms: u64,
    /// After its last use a model keeps its place for so long: whoever was told a price can still pay and be answered, and
    /// two customers who take turns with two models cannot keep the host loading.
    pub stay_ms: u64,
    /// Requests that may wait for one model.
    pub waiting_max: u32,
}

impl Policy {
    /// A pool for `bytes_max` with the usual times. Five minutes is what Ollama keeps an idle model for (its documentation,
    /// `keep_alive`); the others are choices.
    pub fn within(bytes_max: u64) -> Policy {
        Policy { bytes_max, idle_ms: 300_000, stay_ms: 10_000, waiting_max: 64 }
    }
}

/// A model that failed to load is left alone for so long.
const REST_MS: u64 = 10_000;
/// Who cannot be served for want of memory is told to come again after so long, and whose model this host will never hold
/// after so long: the agent may have moved by then. Guesses.
const ROOM_LATER_MS: u64 = 5_000;
const NEVER_LATER_MS: u64 = 3_600_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Away,
    Loading {
        since_ms: u64,
    },
    Ready,
    /// Its process is ending; its memory counts as free, and no load begins before it is gone.
    Leaving,
}

#[derive(Clone, Debug)]
struct Model {
    stage: Stage,
    /// What it takes when it is loaded: estimated, and measured from its first load on.
    bytes: u64,
    running: u32,
    waiting: u32,
    used_ms: u64,
    /// How long its last load took.
    load_ms: Option<u64>,
    rest: Option<(u64, String)>,
    loads: u64,
    unloads: u64,
    failures: u64,
}

/// How one model stands, for whoever looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    pub is_loaded: bool,
    /// Measured while it is loaded, or else at its last load; an estimate before the first.
    pub bytes: u64,
    pub running: u32,
    pub waiting: u32,
    pub loads: u64,
    pub unloads: u64,
    pub failures: u64,
    /// Of its last load, fetching included; 0: there was none.
    pub load_ms: u64,
}

/// What becomes of a request now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Said {
    Ready,
    /// Ask again when something changed, or after so many milliseconds.
    Wait(Option<u64>),
    /// It is to be loaded, once these and all others that leave are gone. Then as [`Said::Wait`].
    Load {
        leaving: Vec<usize>,
    },
    Later(Later),
}

/// Why a model cannot be had now, and when to ask again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Later {
    pub after_ms: u64,
    pub why: Why,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    Loading,
    QueueFull,
    /// Models in use, or used a moment ago, take the memory.
    NoRoom,
    TooBig {
        bytes: u64,
        bytes_max: u64,
    },
    Failed(String),
}

impl Later {
    /// Whole seconds, rounded up, at least one: for `Retry-After`.
    pub fn after_secs_up(&self) -> u32 {
        u32::try_from(self.after_ms.div_ceil(1_000)).unwrap_or(u32::MAX).max(1)
    }
}

impl fmt::Display for Later {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.why {
            Why::Loading => f.write_str("the model is being loaded; ask again"),
            Why::QueueFull => f.write_str("too many requests wait for this model; ask again"),
            Why::NoRoom => f.write_str("other models that are in use take this host's memory; ask again"),
            Why::TooBig { bytes, bytes_max } => {
                let (bytes, bytes_max) = (bytes.div_ceil(1 << 20), bytes_max >> 20);
                write!(
                    f,
                    "this host has too little memory for the model: it takes {bytes} MiB, {bytes_max} are for models"
                )
            }
            Why::Failed(why) => write!(f, "the model could not be loaded: {why}"),
        }
    }
}

#[derive(Debug)]
pub(super) struct Residency {
    policy: Policy,
    models: Vec<Model>,
}

impl Residency {
    /// `bytes`: what each model will take, estimated.
    pub(super) fn new(policy: Policy, bytes: impl IntoIterator<Item = u64>) -> Residency {
        let model = |bytes| Model {
            stage: Stage::Away,
            bytes,
            running: 0,
            waiting: 0,
            used_ms: 0,
            load_ms: None,
            rest: None,
            loads: 0,
            unloads: 0,
            failures: 0,
        };
        Residency { policy, models: bytes.into_iter().map(model).collect() }
    }

    pub(super) fn set_bytes_max(&mut self, bytes_max: u64) {
        self.policy.bytes_max = bytes_max;
    }

    /// A request for `model` that waits at most `patience_ms` more. `waits`: it has a place in the queue already.
    pub(super) fn asked(&mut self, now_ms: u64, model: usize, patience_ms: u64, waits: bool) -> Said {
        let bytes_max = self.policy.bytes_max;
        let asked = &self.models[model];
        let later = |after_ms, why| Said::Later(Later { after_ms, why });
        if asked.stage == Stage::Ready {
            return Said::Ready;
        }
        if asked.bytes > bytes_max {
            return later(NEVER_LATER_MS, Why::TooBig { bytes: asked.bytes, bytes_max });
        }
        if let Some((until, why)) = asked.rest.as_ref().filter(|(until, _)| now_ms < *until) {
            return later(until - now_ms, Why::Failed(why.clone()));
        }
        if !waits && asked.waiting >= self.policy.waiting_max {
            return later(self.left_ms(now_ms, model), Why::QueueFull);
        }
        match asked.stage {
            Stage::Loading { .. } | Stage::Leaving => {
                let left = self.left_ms(now_ms, model);
                match patience_ms == 0 || (asked.load_ms.is_some() && left > patience_ms) {
                    true => later(left, Why::Loading),
                    false => Said::Wait(None),
                }
            }
            Stage::Away | Stage::Ready => self.load(now_ms, model, patience_ms),
        }
    }

    /// Loads `model`, if there is room or room can be made for it.
    fn load(&mut self, now_ms: u64, model: usize, patience_ms: u64) -> Said {
        let bytes = self.models[model].bytes;
        let mut taken = self.taken();
        let mut idle = self.idle_ones(model);
        // The one that was used the longest time ago leaves first.
        idle.sort_by_key(|other| self.models[*other].used_ms);
        let (mut leaving, mut free_at) = (Vec::new(), now_ms);
        for other in idle {
            if taken.saturating_add(bytes) <= self.policy.bytes_max {
                break;
            }
            free_at = free_at.max(self.models[other].used_ms.saturating_add(self.policy.stay_ms));
            taken -= self.models[other].bytes;
            leaving.push(other);
        }
        let wait_ms = free_at - now_ms;
        let later = |after_ms| Said::Later(Later { after_ms, why: Why::NoRoom });
        if taken.saturating_add(bytes) > self.policy.bytes_max {
            // Somebody uses what would have to go.
            return if patience_ms == 0 { later(ROOM_LATER_MS) } else { Said::Wait(None) };
        }
        if wait_ms > 0 {
            return if wait_ms > patience_ms { later(wait_ms) } else { Said::Wait(Some(wait_ms)) };
        }
        leaving.iter().for_each(|other| self.leaves(*other));
        self.models[model].stage = Stage::Loading { since_ms: now_ms };
        Said::Load { leaving }
    }

    fn leaves(&mut self, model: usize) {
        assert!(self.models[model].running == 0, "a model leaves under a running request");
        self.models[model].stage = Stage::Leaving;
        self.models[model].unloads += 1;
    }

    /// Bytes of all that is loaded or being loaded.
    fn taken(&self) -> u64 {
        let has_room = |model: &&Model| matches!(model.stage, Stage::Loading { .. } | Stage::Ready);
        self.models.iter().filter(has_room).map(|model| model.bytes).fold(0, u64::saturating_add)
    }

    /// Those that could leave for `model`: loaded, and no request runs on them.
    fn idle_ones(&self, model: usize) -> Vec<usize> {
        let is_idle = |(at, other): &(usize, &Model)| *at != model && other.stage == Stage::Ready && other.running == 0;
        self.models.iter().enumerate().filter(is_idle).map(|(at, _)| at).collect()
    }

    /// How long until it is loaded, by its last load; where that says nothing, as long again as it took until now.
    fn left_ms(&self, now_ms: u64, model: usize) -> u64 {
        let model = &self.models[model];
        let spent = match model.stage {
            Stage::Loading { since_ms } => now_ms.saturating_sub(since_ms),
            Stage::Away | Stage::Ready | Stage::Leaving => 0,
        };
        model.load_ms.and_then(|whole| whole.checked_sub(spent)).unwrap_or(spent).max(1_000)
    }

    pub(super) fn waits(&mut self, model: usize) {
        self.models[model].waiting += 1;
    }

    pub(super) fn waits_no_more(&mut self, model: usize) {
        self.models[model].waiting -= 1;
    }

    /// A request runs on it.
    pub(super) fn begins(&mut self, now_ms: u64, model: usize) {
        assert!(self.models[model].stage == Stage::Ready, "a request begins on a model that is not loaded");
        self.models[model].running += 1;
        self.models[model].used_ms = now_ms;
    }

    pub(super) fn ends(&mut self, now_ms: u64, model: usize) {
        self.models[model].running -= 1;
        self.models[model].used_ms = now_ms;
    }

    /// It is loaded and takes `bytes`, or as much as was estimated where nobody can tell.
    pub(super) fn loaded(&mut self, now_ms: u64, model: usize, bytes: Option<u64>) {
        let model = &mut self.models[model];
        let Stage::Loading { since_ms } = model.stage else { unreachable!("it was not being loaded") };
        model.stage = Stage::Ready;
        model.load_ms = Some(now_ms.saturating_sub(since_ms));
        model.bytes = bytes.unwrap_or(model.bytes);
        model.used_ms = now_ms;
        model.rest = None;
        model.loads += 1;
    }

    pub(super) fn failed(&mut self, now_ms: u64, model: usize, why: String) {
        let model = &mut self.models[model];
        model.stage = Stage::Away;
        model.rest = Some((now_ms.saturating_add(REST_MS), why));
        model.failures += 1;
    }

    /// The process of one that left has ended.
    pub(super) fn gone(&mut self, model: usize) {
        self.models[model].stage = Stage::Away;
    }

    /// What a loaded model takes now. It grows while requests fill its contexts.
    pub(super) fn measured(&mut self, model: usize, bytes: u64) {
        if self.models[model].stage == Stage::Ready {
            self.models[model].bytes = bytes;
        }
    }

    /// Those that leave now, because nobody asked for them for long or because they turned out to take more than they may;
    /// and when to look again.
    pub(super) fn tidy(&mut self, now_ms: u64) -> (Vec<usize>, Option<u64>) {
        let mut leaving = Vec::new();
        let mut idle = self.idle_ones(usize::MAX);
        idle.sort_by_key(|model| self.models[*model].used_ms);
        let mut next = None;
        for model in idle {
            let until = self.models[model].used_ms.saturating_add(self.policy.idle_ms);
            if now_ms >= until || self.taken() > self.policy.bytes_max {
                self.leaves(model);
                leaving.push(model);
            } else {
                next = Some(next.map_or(until, |next: u64| next.min(until)));
            }
        }
        (leaving, next)
    }

    pub(super) fn some_leave(&self) -> bool {
        self.models.iter().any(|model| model.stage == Stage::Leaving)
    }

    pub(super) fn reading(&self, model: usize) -> Reading {
        let model = &self.models[model];
        Reading {
            is_loaded: model.stage == Stage::Ready,
            bytes: model.bytes,
            running: model.running,
            waiting: model.waiting,
            loads: model.loads,
            unloads: model.unloads,
            failures: model.failures,
            load_ms: model.load_ms.unwrap_or(0),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.models.len()
    }
}

#[cfg(test)]
mod tests;
