//! The manifest's further models: engines of their own, loaded when a request names one, within what memory there is.

mod room;

use crate::context::Context;
use crate::manifest::{Further, Kind};
use crate::places::Places;
use crate::shared::{Embedder, Engine, Shared};
use crate::weights;
use economy::{Price, Usdc};
use futures::FutureExt;
use infer::{ChatTemplate, EngineConfig, EnginePool, Later, Loaded, PoolPolicy, Reading, resident_bytes};
use net::chain_of;
use std::fmt::Write;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// What a token of context takes in an engine before it was measured: SmolLM2-135M has 23 kB, Llama-3.2-1B 32 kB, as
/// their layers and heads say. A guess for others.
const CONTEXT_BYTES_PER_TOKEN: u64 = 24_000;

pub struct Models {
    cx: Arc<Context>,
    shared: Arc<Shared>,
    pool: EnginePool,
    /// Of each model, once it was loaded: it is the weights' own, and stays the same.
    templates: Vec<OnceLock<Arc<ChatTemplate>>>,
    /// Of each model's engine, whichever process it is.
    places: Vec<Places>,
}

/// Why a further model does not answer now.
pub enum Unavailable {
    Later(Later),
    /// Its file is not what the manifest says it is.
    Unfit(String),
}

impl Models {
    pub fn of(cx: Arc<Context>, shared: Arc<Shared>) -> Models {
        let estimates: Vec<u64> = cx.manifest.models.iter().map(estimated_bytes).collect();
        let prepare = {
            let cx = cx.clone();
            move |at: usize| prepare(cx.clone(), at).boxed()
        };
        let pool = EnginePool::new(PoolPolicy::within(0), estimates, Box::new(prepare));
        let templates = cx.manifest.models.iter().map(|_| OnceLock::new()).collect();
        let places = cx.manifest.models.iter().map(|model| places(model.kind)).collect();
        Models { cx, shared, pool, templates, places }
    }

    /// One that answers.
    pub async fn engine(&self, at: usize, patience: Duration) -> Result<Engine, Unavailable> {
        let Loaded { client, hello } = self.loaded(at, patience).await?;
        if hello.dimensions.is_some() {
            return Err(Unavailable::Unfit("it makes vectors, and answers nothing".to_owned()));
        }
        let template = match self.templates[at].get() {
            Some(template) => template.clone(),
            None => {
                let template = ChatTemplate::new(hello.chat_template.as_deref(), &hello.bos, &hello.eos)
                    .map_err(|e| Unavailable::Unfit(format!("its chat template does not parse: {e}")))?;
                self.templates[at].get_or_init(|| Arc::new(template)).clone()
            }
        };
        Ok(Engine { client, places: self.places[at].clone(), hello, template })
    }

    /// One that makes vectors.
    pub async fn embedder(&self, at: usize, patience: Duration) -> Result<Embedder, Unavailable> {
        let Loaded { client, hello } = self.loaded(at, patience).await?;
        let dimensions = hello.dimensions.ok_or_else(|| Unavailable::Unfit("it makes no vectors".to_owned()))?;
        Ok(Embedder { client, places: self.places[at].clone(), hello, dimensions })
    }

    async fn loaded(&self, at: usize, patience: Duration) -> Result<Loaded, Unavailable> {
        if !self.pool.readings()[at].is_loaded {
            self.pool.set_bytes_max(self.bytes_max());
        }
        self.pool.get(at, patience).await.map_err(Unavailable::Later)
    }

    /// What further models may take together: the manifest's word, or three quarters of what the host gives this
    /// process, less what the other engines take. The last quarter is the node's own, and the kernel's for files. A
    /// guess.
    fn bytes_max(&self) -> u64 {
        if let Some(bytes) = self.cx.manifest.models_bytes_max {
            return bytes;
        }
        let pids = [
            self.shared.engine().and_then(|engine| engine.client.pid()),
            self.shared.embedder().and_then(|embedder| embedder.client.pid()),
        ];
        let beside: u64 = pids.into_iter().flatten().filter_map(resident_bytes).sum();
        (room::bytes() / 4 * 3).saturating_sub(beside)
    }

    /// For Prometheus: a line for each reading of each model.
    pub fn metrics(&self) -> String {
        let mut text = String::new();
        for (model, reading) in self.cx.manifest.models.iter().zip(self.pool.readings()) {
            let Reading { is_loaded, bytes, running, waiting, loads, unloads, failures, load_ms } = reading;
            let readings = [
                ("loaded", u64::from(is_loaded)),
                ("bytes", if is_loaded { bytes } else { 0 }),
                ("running", running.into()),
                ("waiting", waiting.into()),
                ("loads_total", loads),
                ("unloads_total", unloads),
                ("load_failures_total", failures),
                ("load_ms", load_ms),
            ];
            for (name, value) in readings {
                // A model's name has no quotes: the manifest was checked.
                let _ = writeln!(text, "vivarium_model_{name}{{model=\"{}\"}} {value}", model.name);
            }
        }
        text
    }
}

/// What a token of `model` costs, made of what one of the first model, or of the embedding model, does; rounded up. The
/// least and the most that a call costs stay.
pub fn price_up(price: Price, pct: u32) -> Price {
    let up = |amount: Usdc| Usdc(amount.0.saturating_mul(u128::from(pct)).div_ceil(100));
    Price {
        mtok_prompt_uusdc: up(price.mtok_prompt_uusdc),
        mtok_cached_uusdc: up(price.mtok_cached_uusdc),
        mtok_embedding_uusdc: up(price.mtok_embedding_uusdc),
        mtok_completion_uusdc: up(price.mtok_completion_uusdc),
        ..price
    }
}

/// Weights and, of one that answers, all contexts: before it was ever loaded here.
fn estimated_bytes(model: &Further) -> u64 {
    let tokens = u64::from(model.context).saturating_mul(u64::from(slots(model.kind)));
    let contexts = match model.kind {
        Kind::Chat => tokens.saturating_mul(CONTEXT_BYTES_PER_TOKEN),
        Kind::Embedding => 0,
    };
    model.bytes.saturating_add(contexts)
}

fn slots(kind: Kind) -> u32 {
    match kind {
        Kind::Chat => EngineConfig::SLOTS_DEFAULT,
        Kind::Embedding => EngineConfig::TEXTS_DEFAULT,
    }
}

fn places(kind: Kind) -> Places {
    match kind {
        Kind::Chat => Places::beside(slots(kind)),
        Kind::Embedding => Places::of_vectors(),
    }
}

async fn prepare(cx: Arc<Context>, at: usize) -> Result<EngineConfig, String> {
    let model = &cx.manifest.models[at];
    tracing::info!(model = model.name, "a further model is being loaded");
    let weights = weights::ready(&cx, model).await.map_err(|e| {
        tracing::error!(model = model.name, error = %chain_of(&e), "no weights");
        chain_of(&e)
    })?;
    Ok(EngineConfig {
        program: infer::engines::best_in(&cx.config.code_dir),
        model: weights,
        adapters: Vec::new(),
        socket: cx.config.data_dir.join(format!("model-{at}.sock")),
        threads: 1,
        threads_max: match model.kind {
            Kind::Chat => cx.config.threads,
            // As the embedding model's engine, and for its reason.
            Kind::Embedding => 1,
        },
        ctx: model.context,
        slots: slots(model.kind),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_price_is_scaled_by_the_token_and_rounded_up() {
        let price = Price {
            call_uusdc: Usdc(10),
            call_uusdc_max: Usdc(1_000),
            mtok_prompt_uusdc: Usdc(333),
            mtok_cached_uusdc: Usdc(111),
            mtok_embedding_uusdc: Usdc(7),
            mtok_completion_uusdc: Usdc(999),
        };
        assert_eq!(price_up(price, 100), price);
        let half = price_up(price, 50);
        let tokens =
            [half.mtok_prompt_uusdc, half.mtok_cached_uusdc, half.mtok_embedding_uusdc, half.mtok_completion_uusdc];
        assert_eq!(tokens.map(|amount| amount.0), [167, 56, 4, 500]);
        assert_eq!((half.call_uusdc, half.call_uusdc_max), (price.call_uusdc, price.call_uusdc_max));
    }
}
