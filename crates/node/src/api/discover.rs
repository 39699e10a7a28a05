//! What a stranger finds the agent by, all of it free: the ERC-8004 registration file that its identity on chain points
//! to, the A2A agent card, the x402 discovery document, `/llms.txt`.
//!
//! Everything in them is from the manifest, the chain and this node's own address. None of it has to be believed: the
//! identity names the treasury, and whoever pays compares `payTo` with that.

use super::openapi::PATH as OPENAPI;
use super::problem::Problem;
use super::{Api, batches, chat, classify, completions, embeddings, extract, files, rerank, responses, verify};
use crate::context::Context;
use alloy::primitives::U256;
use axum::Json;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

pub const REGISTRATION: &str = "/.well-known/agent-registration.json";
pub const CARD: &str = "/.well-known/agent-card.json";
pub const X402: &str = "/.well-known/x402";
pub const LLMS: &str = "/llms.txt";

/// What every agent sells, each by POST.
const PAID: [&str; 3] = [chat::ROUTE, completions::ROUTE, responses::ROUTE];
/// And whole alone.
const PAID_WHOLE: [&str; 2] = [extract::ROUTE, verify::ROUTE];
/// And those with a model for vectors.
pub(super) const PAID_VECTORS: [&str; 3] = [embeddings::ROUTE, rerank::ROUTE, classify::ROUTE];
/// A leaf; registries show a picture beside the name.
const IMAGE: &str = "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E%3Cpath \
                     d='M2 14C2 6 7 2 14 2c0 8-4 12-12 12z' fill='%232a7'/%3E%3C/svg%3E";

/// ERC-8004's registration file, <https://eips.ethereum.org/EIPS/eip-8004>: name, services, and the identity that points
/// here, so that the link can be checked from both ends.
pub async fn registration(State(api): State<Api>) -> Result<Json<Value>, Response> {
    api.here(REGISTRATION).await?;
    let id = api.agent_id().await.map_err(IntoResponse::into_response)?;
    let selling = api.shared.status().is_some_and(|status| status.selling);
    Ok(Json(registration_of(&api.cx, id, selling)))
}

pub async fn card(State(api): State<Api>) -> Result<Json<Value>, Response> {
    api.here(CARD).await?;
    Ok(Json(card_of(&api.cx)))
}

/// The discovery document that x402 indexers read: version 1, the URLs that answer 402.
pub async fn x402(State(api): State<Api>) -> Result<Json<Value>, Response> {
    api.here(X402).await?;
    Ok(Json(json!({ "version": 1, "resources": urls(&api.cx), "instructions": words(&api.cx) })))
}

pub async fn llms(State(api): State<Api>) -> Result<Response, Response> {
    api.here(LLMS).await?;
    Ok(([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], words(&api.cx)).into_response())
}

impl Api {
    /// The agent's number in the identity registry of its birth; None where it has none (yet). It never changes, so the
    /// chain is asked until it says one; one question at a time, however many ask us.
    async fn agent_id(&self) -> Result<Option<U256>, Problem> {
        if self.cx.birth.options.identity.is_zero() {
            return Ok(None);
        }
        let found = self.identity.get_or_try_init(|| async {
            match self.cx.treasury.standing().await {
                Ok(standing) if standing.isRegistered => Ok(standing.agentId),
                Ok(_) => Err(None),
                Err(e) => Err(Some(e)),
            }
        });
        match found.await {
            Ok(id) => Ok(Some(*id)),
            Err(None) => Ok(None),
            Err(Some(e)) => Err(Problem::for_unavail(format!("the chain does not answer: {e}"), 2)),
        }
    }
}

fn urls(cx: &Context) -> Vec<String> {
    paid(cx).map(|route| format!("{}{}", cx.config.public_url, path(route))).collect()
}

/// What this agent sells.
fn paid(cx: &Context) -> impl Iterator<Item = &'static str> {
    let vectors = cx.manifest.vector_models().take(1).flat_map(|_| PAID_VECTORS);
    PAID.into_iter().chain(PAID_WHOLE).chain(vectors)
}

fn path(route: &str) -> &str {
    route.split_once(' ').map_or(route, |(_, path)| path)
}

fn registration_of(cx: &Context, id: Option<U256>, selling: bool) -> Value {
    let url = &cx.config.public_url;
    let registry = cx.birth.options.identity;
    let registrations: Vec<Value> = id
        .map(|id| {
            // A number as ERC-8004 has it, unless JSON's readers would round it.
            let number = u64::try_from(id).map_or_else(|_| json!(id.to_string()), |n| json!(n));
            json!({ "agentId": number, "agentRegistry": format!("eip155:{}:{registry}", cx.config.chain_id) })
        })
        .into_iter()
        .collect();
    json!({
        "type": "https://eips.ethereum.org/EIPS/eip-8004#registration-v1",
        "name": cx.manifest.name,
        "description": description(cx),
        "image": IMAGE,
        "services": [
            { "name": "web", "endpoint": url },
            { "name": "A2A", "endpoint": format!("{url}{CARD}"), "version": "1.0" },
            { "name": "OpenAI", "endpoint": format!("{url}/v1") },
            { "name": "x402", "endpoint": format!("{url}{X402}"), "version": "2" },
            { "name": "agentWallet", "endpoint": format!("eip155:{}:{}", cx.config.chain_id, cx.config.treasury) },
        ],
        "x402Support": true,
        "active": selling,
        "registrations": registrations,
        "supportedTrust": [],
    })
}

/// An A2A 1.0 agent card. The one interface is the OpenAI API, under the URL of its reference as A2A's open list of
/// bindings allows: a client that speaks A2A's own three bindings only sees that there is none for it.
fn card_of(cx: &Context) -> Value {
    let url = &cx.config.public_url;
    json!({
        "name": cx.manifest.name,
        "description": description(cx),
        "version": env!("CARGO_PKG_VERSION"),
        "url": format!("{url}/v1"),
        "supportedInterfaces": [{
            "url": format!("{url}/v1"),
            "protocolBinding": "https://platform.openai.com/docs/api-reference",
            "protocolVersion": "1.0",
        }],
        "capabilities": { "streaming": true, "pushNotifications": false, "extendedAgentCard": false },
        "defaultInputModes": ["text/plain", "application/json"],
        "defaultOutputModes": ["text/plain", "text/event-stream", "application/json"],
        "skills": [{
            "id": "chat",
            "name": "Chat",
            "description": format!("Answers in text with the model {}; paid a call by x402.", cx.manifest.model.name),
            "tags": ["chat", "completion", "x402"],
            "examples": ["Say hello."],
        }],
        "documentationUrl": format!("{url}{LLMS}"),
    })
}

fn description(cx: &Context) -> String {
    format!(
        "An AI service that pays its own bills: {} behind an OpenAI-compatible API, paid by x402 in USDC. Its money is \
         in the treasury {}; pay nobody else.",
        cx.manifest.model.name, cx.config.treasury
    )
}

fn words(cx: &Context) -> String {
    let (url, chain_id, treasury) = (&cx.config.public_url, cx.config.chain_id, cx.config.treasury);
    let identity = match cx.birth.options.identity {
        registry if registry.is_zero() => String::new(),
        registry => format!(
            "The agent's identity is its token in the ERC-8004 registry eip155:{chain_id}:{registry}; the token's owner is \
             the treasury. The number is in {url}{REGISTRATION}.\n"
        ),
    };
    let sold: String =
        PAID.iter().map(|route| format!("- [{route}]({url}{}): paid; `stream` too\n", path(route))).collect();
    let whole: String = PAID_WHOLE.iter().map(|route| format!("- [{route}]({url}{}): paid\n", path(route))).collect();
    let night = format!(
        "- [{batches}]({url}{}): paid; many requests in a file ([{files}]({url}{}), paid by its bytes), answered within 24 \
         hours at half the price of their tokens\n",
        path(batches::ROUTE),
        path(files::ROUTE),
        batches = batches::ROUTE,
        files = files::ROUTE,
    );
    let by = cx.manifest.vector_models().collect::<Vec<_>>().join(" or ");
    let vectors: String = paid(cx)
        .filter(|route| PAID_VECTORS.contains(route))
        .map(|route| format!("- [{route}]({url}{}): paid; by the vectors of {by}\n", path(route)))
        .collect();
    format!(
        "# {name}\n\n\
         > {description}\n\n\
         ## Pay\n\n\
         Send the request; the 402 answer says in `PAYMENT-REQUIRED` what it costs (x402 version 2, network \
         eip155:{chain_id}). Send it again with `PAYMENT-SIGNATURE`. Every `payTo` must be {treasury}.\n\
         {identity}\n\
         ## Sold\n\n\
         {sold}{whole}{vectors}{night}\n\
         ## Free\n\n\
         - [Models]({url}/v1/models)\n\
         - [OpenAPI document]({url}{OPENAPI})\n\
         - [Status]({url}/status): books, hosts, runway\n\
         - [Log]({url}/log): the agent's life\n\
         - [Agent card]({url}{CARD}), [registration]({url}{REGISTRATION}), [x402]({url}{X402})\n",
        name = cx.manifest.name,
        description = description(cx),
    )
}
