//! `GET /v1/models`: free.

use super::Api;
use super::problem::Problem;
use crate::manifest::Manifest;
use axum::Json;
use axum::extract::{Path, State};
use infer::api::models::{model_object, models_list};
use serde_json::Value;

const OWNER: &str = "vivarium";

/// What requests may say in `model`: the one that answers, and the one that makes vectors if there is one.
fn names(manifest: &Manifest) -> impl Iterator<Item = &str> {
    std::iter::once(&manifest.model).chain(&manifest.embedding).map(|model| model.name.as_str())
}

pub async fn list(State(api): State<Api>) -> Json<Value> {
    Json(models_list(names(&api.cx.manifest), api.cx.born_at, OWNER))
}

pub async fn one(State(api): State<Api>, Path(id): Path<String>) -> Result<Json<Value>, Problem> {
    if !names(&api.cx.manifest).any(|name| name == id) {
        return Err(Problem::for_not_found(format!("there is no model `{id}` here; see /v1/models")));
    }
    Ok(Json(model_object(&id, api.cx.born_at, OWNER)))
}
