//! `GET /v1/models`.

use serde_json::{Value, json};

/// The list of models, each a [`model_object`].
pub fn models_list(models: impl IntoIterator<Item = Value>) -> Value {
    let data: Vec<Value> = models.into_iter().collect();
    json!({"object": "list", "data": data})
}

/// One model, as `GET /v1/models/{id}` answers: `id` is what requests call it, `created` seconds since 1970, `owned_by`
/// free text.
pub fn model_object(id: &str, created: u64, owned_by: &str) -> Value {
    json!({"id": id, "object": "model", "created": created, "owned_by": owned_by})
}
