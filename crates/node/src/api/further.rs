//! Which model answers: the first one, with or without an adapter, or one that is loaded for it.

use super::Api;
use super::problem::Problem;
use super::sale::ENGINE_START;
use crate::manifest::Kind;
use crate::models::{Unavailable, price_up};
use crate::shared::{Embedder, Engine};
use economy::Price;
use infer::api::ApiError;

/// What a request for text named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Served {
    /// Place of the model among the manifest's further ones; `None`: the first one.
    pub further: Option<usize>,
    /// Place of the adapter that the first model has on, among the manifest's.
    pub adapter: Option<usize>,
}

impl Api {
    /// Who answers requests for this model with text.
    pub(super) fn serves(&self, model: &str) -> Result<Served, ApiError> {
        match self.cx.manifest.further(model, Kind::Chat) {
            further @ Some(_) => Ok(Served { further, adapter: None }),
            None => Ok(Served { further: None, adapter: self.serves_model(model)? }),
        }
    }

    /// The adapter that answers of this model, the first one, have on.
    pub(super) fn serves_model(&self, model: &str) -> Result<Option<usize>, ApiError> {
        let mut own = self.cx.manifest.own_models();
        if let Some((_, adapter)) = own.find(|(name, _)| name == model) {
            return Ok(adapter);
        }
        let name = &self.cx.manifest.model.name;
        Err(ApiError::for_not_found("model_not_found", "model", format!("`{model}` is not served here; `{name}` is")))
    }

    pub(super) async fn engine_of(&self, further: Option<usize>) -> Result<Engine, Problem> {
        let Some(at) = further else {
            let engine = self.shared.engine_within(ENGINE_START).await;
            return engine.ok_or_else(|| Problem::for_unavail("the engine is still starting", 5));
        };
        self.models.engine(at, ENGINE_START).await.map_err(|why| self.unavailable_model(at, why))
    }

    pub(super) async fn embedder_of(&self, further: Option<usize>) -> Result<Embedder, Problem> {
        let Some(at) = further else {
            let embedder = self.shared.embedder_within(ENGINE_START).await;
            return embedder.ok_or_else(|| Problem::for_unavail("the embedding engine is still starting", 5));
        };
        self.models.embedder(at, ENGINE_START).await.map_err(|why| self.unavailable_model(at, why))
    }

    /// Today's price of the model at this place.
    pub(super) fn price_of(&self, price: Price, further: Option<usize>) -> Price {
        let model = further.and_then(|at| self.cx.manifest.models.get(at));
        model.map_or(price, |model| price_up(price, model.price_pct_up(&self.cx.manifest)))
    }

    fn unavailable_model(&self, at: usize, why: Unavailable) -> Problem {
        let name = self.cx.manifest.models.get(at).map_or("", |model| &model.name);
        match why {
            Unavailable::Later(later) => Problem::for_unavail(format!("`{name}`: {later}"), later.after_secs_up()),
            // Fixed at birth: nothing here will mend it.
            Unavailable::Unfit(why) => Problem::for_internal(format!("the manifest's model `{name}`: {why}")),
        }
    }
}
