//! `GET /v1/models`.

use serde_json::{Value, json};

/// The list of models: `id` is what requests call it, `created` seconds since 1970, `owned_by` free text.
pub fn models_list<'a>(ids: impl IntoIterator<Item = &'a str>, created: u64, owned_by: &str) -> Value {
    let data: Vec<Value> = ids.into_iter().map(|id| model_object(id, created, owned_by)).collect();
    json!({"object": "list", "data": data})
}

/// One model, as `GET /v1/models/{id}` answers.
pub fn model_object(id: &str, created: u64, owned_by: &str) -> Value {
    json!({"id": id, "object": "model", "created": created, "owned_by": owned_by})
}
