//! `GET /v1/models`: free.

use super::Api;
use super::openapi::Operation;
use super::problem::Problem;
use crate::manifest::Manifest;
use axum::Json;
use axum::extract::{Path, State};
use infer::api::models::{model_object, models_list};
use serde_json::Value;

const OWNER: &str = "vivarium";

/// What requests may say in `model`: the one that answers, the same with each adapter, the one that makes vectors if there
/// is one, those that are loaded on demand, and other agents' whose answers are sold here.
fn names(manifest: &Manifest) -> impl Iterator<Item = String> {
    let own = manifest.own_models().map(|(name, _)| name);
    let vectors = manifest.embedding.iter().map(|model| model.name.clone());
    let further = manifest.models.iter().map(|model| model.name.clone());
    own.chain(vectors).chain(further).chain(manifest.suppliers.iter().map(|supplier| supplier.model.clone()))
}

/// Whose it is: `vivarium`, or the other agent.
fn object(manifest: &Manifest, id: &str, created: u64) -> Value {
    let other = manifest.suppliers.iter().find(|supplier| supplier.model == id);
    model_object(id, created, &other.map_or_else(|| OWNER.to_owned(), |supplier| supplier.treasury.to_string()))
}

pub(super) fn about_list() -> Operation {
    Operation::new("What requests may name in `model`").answers("ModelList")
}

pub(super) fn about_one() -> Operation {
    Operation::new("One model").answers("Model").refuses(&[(404, "no such model")])
}

pub async fn list(State(api): State<Api>) -> Json<Value> {
    let manifest = &api.cx.manifest;
    Json(models_list(names(manifest).map(|id| object(manifest, &id, api.cx.born_at))))
}

pub async fn one(State(api): State<Api>, Path(id): Path<String>) -> Result<Json<Value>, Problem> {
    if !names(&api.cx.manifest).any(|name| name == id) {
        return Err(Problem::for_not_found(format!("there is no model `{id}` here; see /v1/models")));
    }
    Ok(Json(object(&api.cx.manifest, &id, api.cx.born_at)))
}
