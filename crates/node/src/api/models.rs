//! `GET /v1/models`: free.

use super::Api;
use super::problem::Problem;
use axum::Json;
use axum::extract::{Path, State};
use infer::api::models::{model_object, models_list};
use serde_json::Value;

const OWNER: &str = "vivarium";

pub async fn list(State(api): State<Api>) -> Json<Value> {
    Json(models_list([api.cx.manifest.model.name.as_str()], api.cx.born_at, OWNER))
}

pub async fn one(State(api): State<Api>, Path(id): Path<String>) -> Result<Json<Value>, Problem> {
    if id != api.cx.manifest.model.name {
        return Err(Problem::for_not_found(format!("there is no model `{id}` here; see /v1/models")));
    }
    Ok(Json(model_object(&id, api.cx.born_at, OWNER)))
}
