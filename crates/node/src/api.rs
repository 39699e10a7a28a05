//! The agent's HTTP surface. One file a route; paid routes go through [`sale`].

mod batches;
mod chat;
pub(crate) mod classify;
mod completions;
mod dashboard;
mod discover;
mod embeddings;
mod events;
pub(crate) mod extract;
mod files;
mod forward;
mod further;
mod gate;
mod kept;
mod models;
mod openapi;
mod peer;
mod problem;
mod read;
mod rerank;
mod responses;
pub(crate) mod sale;
pub(crate) mod verify;

use crate::answers::Answers;
use crate::context::Context;
use crate::main_loop::{Event, Node};
use crate::models::Models;
use crate::shared::{Role, Shared};
use alloy::primitives::U256;
use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::{HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use openapi::{Operation, Routes};
use pay::Seller;
use problem::Problem;
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OnceCell, oneshot};

/// Largest request body, bytes: a prompt that fills any context of today's small models.
const BODY_BYTES_MAX: usize = 1 << 20;
/// How long a request waits for this node to become active, during a move.
const BECOMING_ACTIVE: Duration = Duration::from_secs(5);

/// What every handler gets.
#[derive(Clone)]
pub struct Api {
    pub cx: Arc<Context>,
    pub shared: Arc<Shared>,
    pub answers: Arc<Answers>,
    pub seller: Arc<Seller>,
    /// Loaded when they are asked for.
    pub models: Arc<Models>,
    /// How channels are sold on, where birth names their contract.
    pub channels: Arc<sale::call::Counter>,
    pub(crate) desk: Arc<batches::Desk>,
    /// Who reads along at `/events`.
    readers: gate::Gate,
    /// The agent's number in the identity registry, once the chain said it.
    identity: Arc<OnceCell<U256>>,
}

pub fn router(cx: Arc<Context>, shared: Arc<Shared>, answers: Answers) -> Router {
    let seller = Arc::new(sale::seller(&cx));
    let channels = Arc::new(sale::call::Counter::of(&cx));
    let models = Arc::new(Models::of(cx.clone(), shared.clone()));
    let api = Api {
        cx,
        shared,
        answers: Arc::new(answers),
        seller,
        models,
        channels,
        desk: Arc::default(),
        readers: gate::Gate::default(),
        identity: Arc::default(),
    };
    // Ends with the main loop that it asks.
    tokio::spawn(batches::work(api.clone()));
    let sold = sold()
        .into_router()
        .route_layer(middleware::from_fn_with_state(api.clone(), sale::refund::without_a_sale))
        .route_layer(middleware::from_fn_with_state(api.clone(), forward::paid))
        .route_layer(middleware::from_fn_with_state(gate::Gate::default(), gate::keep));
    Router::new()
        .merge(sold)
        .merge(free().into_router())
        // For people, and for this agent's other nodes: no part of the API.
        .route("/", get(dashboard::page))
        .route("/peer/able", get(peer::able))
        .route("/peer/key", post(peer::key))
        .route("/peer/tail", get(peer::tail))
        .route("/peer/delivered", post(peer::delivered))
        .fallback(|uri: Uri| async move { Problem::for_not_found(format!("there is nothing at {}", uri.path())) })
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(middleware::from_fn(open_to_browsers))
        .layer(middleware::from_fn(log_refusals))
        .with_state(api)
}

/// Where requests are let in one by one, and a sale's money may come back.
fn sold() -> Routes {
    Routes::new()
        .post("/v1/chat/completions", chat::about(), chat::complete)
        .get("/v1/chat/completions", openapi::terms(), chat::terms)
        .post("/v1/completions", completions::about(), completions::complete)
        .get("/v1/completions", openapi::terms(), completions::terms)
        .post("/v1/embeddings", embeddings::about(), embeddings::embed)
        .get("/v1/embeddings", openapi::terms(), embeddings::terms)
        .post("/v1/rerank", rerank::about(), rerank::rerank)
        .get("/v1/rerank", openapi::terms(), rerank::terms)
        .post("/v1/classify", classify::about(), classify::classify)
        .get("/v1/classify", openapi::terms(), classify::terms)
        .post("/v1/extract", extract::about(), extract::extract)
        .get("/v1/extract", openapi::terms(), extract::terms)
        .post("/v1/verify", verify::about(), verify::verify)
        .post("/v1/responses", responses::about(), responses::respond)
        .get("/v1/responses", openapi::terms(), responses::terms)
        .post("/v1/responses/export", responses::about_export(), responses::export)
        .post("/v1/files", files::about(), files::upload)
        .post("/v1/files/{id}/content", files::about_content(), files::content)
        .post("/v1/batches", batches::about(), batches::create)
}

/// Whether what is sold at this route is made by the model for vectors.
pub(crate) fn makes_vectors(route: &str) -> bool {
    discover::PAID_VECTORS.contains(&route)
}

fn free() -> Routes {
    let json = |summary| Operation::new(summary).answers_as("application/json", json!({}));
    let plain = |summary| Operation::new(summary).answers_as("text/plain", json!({ "type": "string" }));
    Routes::new()
        .get("/v1/responses/{id}", responses::about_read(), responses::read)
        .delete("/v1/responses/{id}", responses::about_delete(), responses::delete)
        .get("/v1/files", files::about_list(), files::list)
        .get("/v1/files/{id}", files::about_read(), files::read)
        .delete("/v1/files/{id}", files::about_delete(), files::delete)
        // What was paid is there whether or not anything is sold.
        .get("/v1/files/{id}/content", files::about_content(), files::content)
        .get("/v1/batches", batches::about_list(), batches::list)
        .get("/v1/batches/{id}", batches::about_read(), batches::read)
        .post("/v1/batches/{id}/cancel", batches::about_cancel(), batches::cancel)
        .get("/v1/models", models::about_list(), models::list)
        .get("/v1/models/{id}", models::about_one(), models::one)
        .get("/receipts/{id}", read::about_receipt(), read::receipt)
        .get("/receipts/{id}/proof", read::about_receipt_proof(), read::receipt_proof)
        .get("/refunds/{id}", read::about_refund(), read::refund)
        .get("/status", json("Books, hosts, runway, price").refuses(&[(503, "no block was read yet")]), read::status)
        .get("/log", json("The agent's life, line by line; `after` a number, or the `last` so many"), read::log)
        .get("/history", json("Balance, earnings and rent over time"), read::history)
        .get("/metrics", plain("For Prometheus"), read::metrics)
        .get("/health/live", Operation::new("The process runs").answers_as("text/plain", json!({})), read::live)
        .get("/health/ready", plain("The agent sells here").refuses(&[(503, "why not")]), read::ready)
        .get(
            "/events",
            Operation::new("The log as it grows")
                .answers_as("text/event-stream", json!({}))
                .refuses(&[(429, "too many of one address"), (503, "too many in all")]),
            events::stream,
        )
        .get(discover::REGISTRATION, json("ERC-8004 registration file"), discover::registration)
        .get(discover::CARD, json("A2A agent card"), discover::card)
        .get(discover::X402, json("x402 discovery document"), discover::x402)
        .get(discover::LLMS, plain("All this in words"), discover::llms)
        .get(openapi::PATH, openapi::about(), openapi::read)
}

/// Any page may use the agent's public surface, pay and see the payment headers: it holds no session and no cookie. A
/// browser asks first whether it may send a payment.
async fn open_to_browsers(request: axum::extract::Request, next: Next) -> Response {
    let is_preflight =
        request.method() == Method::OPTIONS && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    let mut response = if is_preflight { StatusCode::NO_CONTENT.into_response() } else { next.run(request).await };
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    if is_preflight {
        headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST, DELETE"));
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static("*, Authorization"));
        headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("86400"));
    }
    headers.insert(
        header::ACCESS_CONTROL_EXPOSE_HEADERS,
        HeaderValue::from_static("PAYMENT-REQUIRED, PAYMENT-RESPONSE, X-Request-Id, Retry-After, Location"),
    );
    response
}

async fn log_refusals(request: axum::extract::Request, next: Next) -> Response {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let response = next.run(request).await;
    if response.status().is_server_error() {
        tracing::warn!(%method, path, status = response.status().as_u16(), "refused");
    }
    response
}

impl Api {
    /// Asks the main loop to look something up.
    async fn look<T: Send + 'static>(&self, read: impl FnOnce(&Node) -> T + Send + 'static) -> Result<T, Problem> {
        let (reply, answer) = oneshot::channel();
        let event = Event::Look(Box::new(move |node| {
            // The reader may have hung up.
            let _ = reply.send(read(node));
        }));
        self.cx.tell(event).await;
        answer.await.map_err(|_| Problem::for_unavail("the node is stopping", 5))
    }

    /// Lets a request for the agent through only where the agent is. Elsewhere: 308 to its address, or 503. (A paid one at its
    /// former host is carried on before: [`forward`].)
    async fn here(&self, path: &str) -> Result<(), Response> {
        let mut roles = self.shared.roles();
        let settled = |role: &Role| matches!(role, Role::Active | Role::Draining | Role::Ended);
        let role = match tokio::time::timeout(BECOMING_ACTIVE, roles.wait_for(settled)).await {
            Ok(Ok(role)) => *role,
            _ => self.shared.role(),
        };
        if role == Role::Active {
            return Ok(());
        }
        let elsewhere = self
            .shared
            .moved()
            .or_else(|| self.shared.status().and_then(|s| s.active_url.clone()))
            .filter(|url| *url != self.cx.config.public_url);
        match elsewhere {
            Some(url) => Err(Redirect::permanent(&format!("{url}{path}")).into_response()),
            None => Err(Problem::for_unavail(format!("this node is {role}; ask again shortly"), 2).into_response()),
        }
    }
}

#[cfg(test)]
mod tests;
