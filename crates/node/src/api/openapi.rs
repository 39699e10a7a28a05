//! `GET /openapi.json`: what this API is, for programs that write clients.
//!
//! A route gets its handler and its description by one call, so neither is there without the other. What bodies look
//! like is said where they are parsed and built ([`infer::api::schema`]). docs/reference/openapi.json is the same
//! document, without this agent's address; a test says whether it is fresh.

use super::Api;
use axum::extract::State;
use axum::handler::Handler;
use axum::routing::{MethodFilter, on};
use axum::{Json, Router};
use infer::api::schema::{list, object, or_null, reference, schemas, text, whole, word};
use serde_json::{Map, Value, json};

pub const PATH: &str = "/openapi.json";

/// Routes, and what is said of them.
pub(super) struct Routes {
    router: Router<Api>,
    paths: Map<String, Value>,
}

impl Routes {
    pub(super) fn new() -> Routes {
        Routes { router: Router::new(), paths: Map::new() }
    }

    pub(super) fn get<H: Handler<T, Api>, T: 'static>(self, path: &str, about: Operation, handler: H) -> Routes {
        self.on(MethodFilter::GET, "get", path, about, handler)
    }

    pub(super) fn post<H: Handler<T, Api>, T: 'static>(self, path: &str, about: Operation, handler: H) -> Routes {
        self.on(MethodFilter::POST, "post", path, about, handler)
    }

    pub(super) fn delete<H: Handler<T, Api>, T: 'static>(self, path: &str, about: Operation, handler: H) -> Routes {
        self.on(MethodFilter::DELETE, "delete", path, about, handler)
    }

    fn on<H: Handler<T, Api>, T: 'static>(
        mut self,
        filter: MethodFilter,
        method: &str,
        path: &str,
        about: Operation,
        handler: H,
    ) -> Routes {
        let methods = self.paths.entry(path).or_insert_with(|| json!({}));
        methods[method] = about.to_json(path);
        Routes { router: self.router.route(path, on(filter, handler)), ..self }
    }

    pub(super) fn into_router(self) -> Router<Api> {
        self.router
    }
}

/// What is said of one way to use a route.
pub(super) struct Operation {
    summary: &'static str,
    /// Schema of the request's body.
    body: Option<Value>,
    /// Status, words, and by media type what the body is.
    answers: Vec<(u16, &'static str, Bodies)>,
    is_paid: bool,
}

/// Schemas by media type.
type Bodies = Vec<(&'static str, Value)>;

const JSON: &str = "application/json";
const SSE: &str = "text/event-stream";

impl Operation {
    pub(super) fn new(summary: &'static str) -> Operation {
        Operation { summary, body: None, answers: Vec::new(), is_paid: false }
    }

    /// Takes a body of this schema by name.
    pub(super) fn takes(self, schema: &str) -> Operation {
        Operation { body: Some(reference(schema)), ..self }
    }

    /// Answers 200 with JSON of this schema by name.
    pub(super) fn answers(self, schema: &str) -> Operation {
        self.answers_as(JSON, reference(schema))
    }

    pub(super) fn answers_as(mut self, media_type: &'static str, schema: Value) -> Operation {
        match self.answers.iter_mut().find(|(status, ..)| *status == 200) {
            Some((.., bodies)) => bodies.push((media_type, schema)),
            None => self.answers.push((200, "the answer", vec![(media_type, schema)])),
        }
        self
    }

    /// With `stream: true`: server-sent events with this schema by name.
    pub(super) fn streams(self, schema: &str) -> Operation {
        self.answers_as(SSE, reference(schema))
    }

    /// Asks for money by 402 and is paid by x402.
    pub(super) fn paid(mut self) -> Operation {
        self.is_paid = true;
        self.answers.push((402, "pay, by one of the offers in `PAYMENT-REQUIRED`", vec![(JSON, reference("Error"))]));
        self.refuses(&[(400, "a field is wrong or not done here; it is named"), (404, "another model")])
            .refuses(&[(409, "the payment belongs to another request"), (413, "the body is too long")])
            .refuses(&[(429, "too many at once"), (503, "try again after `Retry-After`")])
    }

    /// Other answers, whose bodies are errors.
    pub(super) fn refuses(mut self, statuses: &[(u16, &'static str)]) -> Operation {
        self.answers.extend(statuses.iter().map(|(status, why)| (*status, *why, vec![(JSON, reference("Error"))])));
        self
    }

    fn to_json(&self, path: &str) -> Value {
        let mut operation = json!({ "summary": self.summary });
        let header = |name: &str, about: Value| json!({ "name": name, "in": "header", "schema": about });
        let mut parameters: Vec<Value> = path
            .split('/')
            .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
            .map(|name| json!({ "name": name, "in": "path", "required": true, "schema": text() }))
            .collect();
        if self.is_paid {
            parameters.push(header("PAYMENT-SIGNATURE", payment_header("PaymentSignature")));
        }
        if !parameters.is_empty() {
            operation["parameters"] = parameters.into();
        }
        if let Some(schema) = &self.body {
            operation["requestBody"] = json!({ "required": true, "content": { JSON: { "schema": schema } } });
        }
        let answers: Map<String, Value> = self
            .answers
            .iter()
            .map(|(status, words, bodies)| {
                let mut answer = json!({ "description": words });
                if !bodies.is_empty() {
                    let bodies = bodies.iter().map(|(kind, schema)| ((*kind).to_owned(), json!({ "schema": schema })));
                    answer["content"] = Value::Object(bodies.collect());
                }
                let told = match status {
                    402 => Some(("PAYMENT-REQUIRED", "PaymentRequired")),
                    200 if self.is_paid => Some(("PAYMENT-RESPONSE", "PaymentResponse")),
                    _ => None,
                };
                if let Some((name, schema)) = told {
                    answer["headers"] = json!({ name: { "schema": payment_header(schema) } });
                }
                (status.to_string(), answer)
            })
            .collect();
        operation["responses"] = Value::Object(answers);
        operation
    }
}

/// JSON of this schema, in base64.
fn payment_header(schema: &str) -> Value {
    json!({
        "type": "string", "contentEncoding": "base64", "contentMediaType": JSON, "contentSchema": reference(schema),
    })
}

/// `GET` of what is sold.
pub(super) fn terms() -> Operation {
    Operation::new("What a call costs, for whoever looks before posting; also a channel's refund")
        .refuses(&[(402, "the offers, in `PAYMENT-REQUIRED`"), (503, "nothing is sold at the moment")])
}

/// The whole document; the agent's own address is not in it.
pub(super) fn document() -> Value {
    let mut paths = super::sold().paths;
    for (path, methods) in super::free().paths {
        // A route may be sold by one method and free by another.
        let all = paths.entry(path).or_insert_with(|| json!({}));
        for (method, about) in methods.as_object().into_iter().flatten() {
            all[method] = about.clone();
        }
    }
    let mut all = schemas();
    all.extend(of_payments());
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "An agent's API",
            "description": "OpenAI's API, strictly: every field is done or refused with a 400 that names it. \
                            `x-refused` lists OpenAI's fields that always are. Paid a call by x402; through \
                            `vivarium proxy` ordinary SDKs do not notice. Where a `maxLength` stands, it counts bytes.",
            "version": env!("CARGO_PKG_VERSION"),
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "paths": paths,
        "components": { "schemas": all },
    })
}

pub(super) fn about() -> Operation {
    Operation::new("This document").answers_as(JSON, json!({ "type": "object" }))
}

pub async fn read(State(api): State<Api>) -> Json<Value> {
    let mut document = document();
    document["servers"] = json!([{ "url": api.cx.config.public_url }]);
    Json(document)
}

/// Signed papers, and x402's headers. Amounts are micro-USDC, as texts; hashes and addresses hexadecimal.
fn of_payments() -> Map<String, Value> {
    let hex = |bytes: usize| json!({ "type": "string", "pattern": format!("^0x[0-9a-fA-F]{{{}}}$", 2 * bytes) });
    let amount = || json!({ "type": "string", "pattern": "^[0-9]+$" });
    let signed = |more: &[(&'static str, Value)]| {
        let mut fields = vec![
            ("agent", hex(20)),
            ("chain_id", whole(0)),
            ("epoch", whole(0)),
            ("request", text()),
            ("payer", hex(20)),
            ("amount_uusdc", amount()),
            ("issued_at", whole(0)),
            ("signature", hex(65)),
        ];
        fields.extend(more.iter().cloned());
        fields
    };
    let receipt = signed(&[
        ("version", json!({ "const": 5 })),
        ("model_sha256", hex(32)),
        ("adapter_sha256", hex(32)),
        ("run_sha256", hex(32)),
        ("prompt_sha256", hex(32)),
        ("output_sha256", hex(32)),
        ("prompt_tokens", whole(0)),
        ("cached_tokens", whole(0)),
        ("completion_tokens", whole(0)),
        ("embedding_tokens", whole(0)),
    ]);
    let paid_by = [
        ("run", json!({ "type": "object" })),
        ("nonce", hex(32)),
        ("transaction", hex(32)),
        ("channel", hex(32)),
        ("channel_charged_uusdc", amount()),
    ];
    // By an authorisation of its own, or by a voucher on a channel.
    let mut receipt = object(&receipt, &paid_by);
    receipt["oneOf"] =
        json!([{ "required": ["nonce", "transaction"] }, { "required": ["channel", "channel_charged_uusdc"] }]);
    let reasons = ["engine_failed", "hung_up", "not_settled", "host_crashed", "not_serving", "supplier_failed"];
    let refund = signed(&[("kind", word("refund")), ("nonce", hex(32)), ("reason", json!({ "enum": reasons }))]);
    let proof = [
        ("index", whole(0)),
        ("size", whole(1)),
        ("path", list(hex(32))),
        ("root", hex(32)),
        ("block", or_null(whole(0))),
    ];
    let turn = object(&[("role", text()), ("content", text())], &[]);
    let stored = [
        ("id", text()),
        ("object", word("response")),
        ("created_at", whole(0)),
        ("output", list(json!({ "type": "object" }))),
        ("messages", list(turn.clone())),
    ];
    let deleted =
        [("id", text()), ("object", word("response")), ("deleted", json!({ "const": true })), ("note", text())];
    let entry = object(&[("id", text()), ("created_at", whole(0))], &[("messages", list(turn)), ("error", text())]);
    let archive = [
        ("object", word("vivarium.archive")),
        ("agent", hex(20)),
        ("chain_id", whole(0)),
        ("payer", hex(20)),
        ("at", whole(0)),
        ("responses", list(entry)),
    ];
    let export = [("payer", hex(20)), ("at", whole(0)), ("signature", hex(65))];
    // What others add to these is passed on untouched, so unknown fields are let through.
    let open = |mut schema: Value| {
        schema["additionalProperties"] = true.into();
        schema
    };
    let offer = open(object(
        &[
            ("scheme", text()),
            ("network", text()),
            ("amount", amount()),
            ("asset", hex(20)),
            ("payTo", hex(20)),
            ("maxTimeoutSeconds", whole(0)),
        ],
        &[("extra", json!({ "type": "object" }))],
    ));
    let resource = open(object(&[("url", text())], &[("description", text()), ("mimeType", text())]));
    let version = || ("x402Version", json!({ "const": 2 }));
    let required = [version(), ("resource", resource.clone()), ("accepts", list(offer.clone()))];
    let signature = [version(), ("accepted", offer), ("payload", json!({ "type": "object" }))];
    let response = [("success", json!({ "type": "boolean" })), ("transaction", text()), ("network", text())];
    let more = [("extensions", json!({ "type": "object" }))];
    [
        ("Receipt", receipt),
        ("ReceiptProof", object(&proof, &[])),
        ("RefundNote", object(&refund, &[])),
        ("StoredResponse", open(object(&stored, &[]))),
        ("DeletedResponse", object(&deleted, &[])),
        ("ExportRequest", object(&export, &[])),
        ("Archive", object(&archive, &[])),
        ("PaymentRequired", open(object(&required, &[("error", text()), more[0].clone()]))),
        ("PaymentSignature", open(object(&signature, &[("resource", resource), more[0].clone()]))),
        ("PaymentResponse", open(object(&response, &[]))),
    ]
    .map(|(name, schema)| (name.to_owned(), schema))
    .into_iter()
    .collect()
}

#[cfg(test)]
mod tests;
