//! `POST /v1/verify`: an answer is made again by this agent's engine, at a price a call. What cannot be tried here is
//! refused before anything is paid.

use super::Api;
use super::further::Served;
use super::openapi::Operation;
use super::problem::{Posted, Problem, fresh_id};
use super::sale::{Errand, Flat, Order, Prompt, Rendered, Whole};
use crate::answers::Question as Asked;
use crate::manifest::{Adapter, Further, Kind, Manifest};
use crate::rerun::{Judged, NotTried, Question};
use axum::body::Bytes;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use economy::Usdc;
use infer::api::{Answered, ApiError, VerifyReply, VerifyRequest};
use pay::receipt::SignedReceipt;
use store::cid;

pub use infer::api::verify::ROUTE;

/// Tokens that the price covers where the manifest names none. Choices: most answers that are worth a second look.
const PROMPT_TOKENS: u32 = 1_024;
const ANSWER_TOKENS: u32 = 768;

pub(super) fn about() -> Operation {
    Operation::new("An answer is made again from its receipt, at a fixed price; Vivarium's own")
        .takes("VerifyRequest")
        .answers("Verification")
        .paid()
}

pub async fn verify(State(api): State<Api>, headers: HeaderMap, Posted(body): Posted) -> Result<Response, Response> {
    answer(&api, &headers, &body).await
}

/// The price of a call.
pub(crate) fn flat(manifest: &Manifest) -> Flat {
    let uusdc = Usdc(manifest.per_call.verify_uusdc);
    Flat { uusdc, prompt_tokens: PROMPT_TOKENS, completion_tokens: ANSWER_TOKENS }
}

async fn answer(api: &Api, headers: &HeaderMap, body: &Bytes) -> Result<Response, Response> {
    let refuse = |e: ApiError| Problem::from(e).into_response();
    let request = VerifyRequest::parse(body).map_err(refuse)?;
    let invalid = |field: &str, why: String| refuse(ApiError::for_field("invalid_value", field, why));
    let signed = SignedReceipt::from_json(&request.receipt).map_err(|e| invalid("receipt", e.to_string()))?;
    let signer = signed.signer().map_err(|e| invalid("receipt", e.to_string()))?;
    let not_tried = |e: NotTried| match e {
        NotTried::Unknown(why) => cannot_say(why.join("; ")),
        NotTried::Invalid(why) => ApiError::for_field("invalid_value", "request", why),
    };
    let answer = request.answer.as_ref().map(String::as_bytes);
    let question =
        Question::of(&signed.receipt, request.request.as_bytes(), answer).map_err(|e| refuse(not_tried(e)))?;
    let Served { further, adapter } = api.made_by(&question).map_err(refuse)?;
    api.here("/v1/verify").await?;
    let engine = api.engine_of(further).await.map_err(IntoResponse::into_response)?;
    question.fits(&engine.class()).map_err(|e| refuse(not_tried(e)))?;
    let prompt = question.prompt(&engine.template).map_err(|e| refuse(cannot_say(e.to_string())))?;
    let tokens = engine.client.count_tokens(&prompt, question.add_bos()).await;
    let tokens =
        tokens.map_err(|e| Problem::for_unavail(format!("the engine does not answer: {e}"), 1).into_response())?;
    let place = adapter.and_then(|adapter| u32::try_from(adapter).ok());
    let then = question.generate(prompt.clone(), tokens, &engine.hello, place).map_err(|e| refuse(not_tried(e)))?;
    let order = Order {
        errand: Errand::Buy,
        route: ROUTE,
        description: "an answer made again",
        question: Asked::of(body),
        prompt: Prompt::Text(Rendered { text: prompt, date: question.run.date, further }),
        prompt_field: "request",
        settings: question.settings(then.max_tokens),
        adapter,
        stored_bytes: None,
        flat: Some(flat(&api.cx.manifest)),
    };
    let reply = VerifyReply { id: fresh_id("vrf-"), created: api.shared.now(), signer: signer.to_string() };
    let sale = api.sell(headers, order).await?;
    let json = move |answered: Answered<'_>, extra| match question.judged(answered.text) {
        Judged::Same => reply.whole(None, answered.usage, extra),
        Judged::Different { why, place } => reply.whole(Some((&why, place.as_ref())), answered.usage, extra),
    };
    Ok(sale.deliver(Whole { id: fresh_id("vrf-"), json }, None).await)
}

fn cannot_say(why: String) -> ApiError {
    let message = format!("`receipt`: nothing can be said of this answer here, and nothing was charged: {why}");
    ApiError::for_field("cannot_verify", "receipt", message)
}

impl Api {
    /// Which of this agent's models, with which of its adapters, made an answer.
    fn made_by(&self, question: &Question) -> Result<Served, ApiError> {
        let manifest = &self.cx.manifest;
        let is = |named: &str, digest: [u8; 32]| cid::parse(named).is_ok_and(|cid| cid::digest(&cid) == digest);
        let further = match is(&manifest.model.cid, question.receipt.model) {
            true => None,
            false => {
                let made_it = |model: &Further| model.kind == Kind::Chat && is(&model.cid, question.receipt.model);
                let further = manifest.models.iter().position(made_it);
                Some(further.ok_or_else(|| cannot_say("none of this agent's models made it".to_owned()))?)
            }
        };
        if question.receipt.adapter == [0; 32] {
            return Ok(Served { further, adapter: None });
        }
        let is_its = |adapter: &Adapter| further.is_none() && is(&adapter.cid, question.receipt.adapter);
        let adapter = manifest.adapters.iter().position(is_its);
        let adapter = adapter.ok_or_else(|| cannot_say("its adapter is none of this agent's".to_owned()))?;
        Ok(Served { further, adapter: Some(adapter) })
    }
}
