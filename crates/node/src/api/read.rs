//! What anybody may read for nothing: status, receipts, the log of the life, metrics.

use super::Api;
use super::openapi::Operation;
use super::problem::Problem;
use crate::ask::Ask;
use crate::main_loop::{Arm, Event};
use crate::shared::Role;
use crate::state::{Kept, State as Folded};
use crate::status::Status;
use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use pay::RequestId;
use pay::receipt::SignedReceipt;
use pay::receipt::cose::{self, CoseReceipt};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::oneshot;

/// A receipt is signed a moment after the last byte, once all that it says is on the disk: whoever asks sooner waits. Our own
/// buyer gives a seller 3 s for it.
const SIGNED_WITHIN: Duration = Duration::from_secs(2);

pub async fn status(State(api): State<Api>) -> Result<Json<Arc<Status>>, Problem> {
    api.shared.status().map(Json).ok_or_else(|| Problem::for_unavail("no block of the chain has been read yet", 1))
}

pub(super) fn about_receipt() -> Operation {
    Operation::new("What was delivered and charged, signed by the operator")
        .answers("Receipt")
        .answers_as(cose::MEDIA_TYPE, json!({}))
        .refuses(&[(404, "no such receipt, or not signed yet")])
}

pub(super) fn about_receipt_proof() -> Operation {
    Operation::new("That a receipt is under a root on chain")
        .answers("ReceiptProof")
        .refuses(&[(404, "no such receipt, or under no root yet")])
}

pub(super) fn about_refund() -> Operation {
    Operation::new("What goes back of a payment, and why, signed by the operator")
        .answers("RefundNote")
        .refuses(&[(404, "nothing goes back")])
}

/// JSON, or COSE for whoever asks for `application/cose`.
pub async fn receipt(State(api): State<Api>, Path(id): Path<String>, headers: HeaderMap) -> Result<Response, Response> {
    let kept = api.kept(&id, |_, kept| kept.clone()).await?;
    let accepted = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let wants_cose = accepted
        .flat_map(|value| value.split(','))
        .any(|kind| kind.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/cose")));
    if !wants_cose {
        let kind = [(header::CONTENT_TYPE, "application/json"), (header::VARY, "accept")];
        return Ok((kind, kept.json).into_response());
    }
    let bytes = SignedReceipt::from_json(&kept.json)
        .and_then(|signed| {
            let operator = signed.signer()?;
            Ok(CoseReceipt { receipt: signed.receipt, operator, signature: kept.cose }.to_bytes())
        })
        .map_err(|e| Problem::for_internal(format!("a receipt that was kept does not read: {e}")).into_response())?;
    Ok(([(header::CONTENT_TYPE, cose::MEDIA_TYPE), (header::VARY, "accept")], bytes).into_response())
}

/// What goes back of a payment for which nothing was delivered, and why, signed by the operator.
pub async fn refund(State(api): State<Api>, Path(id): Path<String>) -> Result<Response, Response> {
    let unknown = || Problem::for_not_found(format!("nothing goes back for a request `{id}`")).into_response();
    let request: RequestId = id.parse().map_err(|_| unknown())?;
    let found = api.look(move |node| node.refund_note(&request)).await.map_err(IntoResponse::into_response)?;
    let Some(note) = found else {
        if api.shared.role() != Role::Active {
            api.here(&format!("/refunds/{id}")).await?;
        }
        return Err(unknown());
    };
    let signed = note.sign(&api.cx.keys.node).map_err(|e| Problem::for_internal(e).into_response())?;
    Ok(([(header::CONTENT_TYPE, "application/json")], signed.to_json()).into_response())
}

/// That the receipt is under a root on chain: 404 until the first heartbeat after it.
pub async fn receipt_proof(State(api): State<Api>, Path(id): Path<String>) -> Result<Response, Response> {
    let proof = api.kept(&id, |state, kept| state.receipt_trees.proof(kept.place)).await?;
    let (proof, root, block) = proof.ok_or_else(|| {
        Problem::for_not_found(format!("receipt `{id}` is under no root on chain yet: ask again after a heartbeat"))
            .into_response()
    })?;
    Ok(([(header::CONTENT_TYPE, "application/json")], proof.to_json(&root, Some(block))).into_response())
}

impl Api {
    /// Looks at one receipt, here or where the agent lives now. One that is about to be signed is waited for.
    async fn kept<T: Send + 'static>(
        &self,
        id: &str,
        read: impl FnOnce(&Folded, &Kept) -> T + Send + 'static,
    ) -> Result<T, Response> {
        if self.shared.role() == Role::Active
            && let Ok(request) = id.parse()
        {
            self.signed(request).await.map_err(IntoResponse::into_response)?;
        }
        let request = id.to_owned();
        let found = self
            .look(move |node| {
                let state = &node.live.as_ref()?.state;
                Some(read(state, state.receipts.get(&request)?))
            })
            .await
            .map_err(IntoResponse::into_response)?;
        if let Some(found) = found {
            return Ok(found);
        }
        if self.shared.role() != Role::Active {
            self.here(&format!("/receipts/{id}")).await?;
        }
        Err(Problem::for_not_found(format!("there is no receipt `{id}`")).into_response())
    }

    /// Returns when the receipt is there, or when none will be; 404 where neither is known in time.
    async fn signed(&self, request: RequestId) -> Result<(), Problem> {
        let (reply, signed) = oneshot::channel();
        self.cx.tell(Event::Ask(Box::new(Ask::WhenSigned { request, reply }))).await;
        // Dropped or answered: the look that follows says which.
        let ended = tokio::time::timeout(SIGNED_WITHIN, signed).await.map(drop);
        ended.map_err(|_| {
            let message =
                format!("receipt `{request}` is not signed yet: ask again when its call is answered and paid");
            Problem::for_not_found(message).retry_after(1)
        })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogQuery {
    after: Option<u64>,
    last: Option<usize>,
}

#[derive(Serialize)]
struct Line {
    seq: u64,
    at: u64,
    block: u64,
    kind: String,
    text: String,
}

pub async fn log(State(api): State<Api>, Query(query): Query<LogQuery>) -> Result<Json<Value>, Problem> {
    let lines: Vec<Line> = api
        .look(move |node| {
            let Some(live) = &node.live else { return Vec::new() };
            let log = &live.state.log;
            let line = |l: &crate::history::LogLine| Line {
                seq: l.seq,
                at: l.at,
                block: l.block,
                kind: l.kind.clone(),
                text: l.text.clone(),
            };
            match (query.after, query.last) {
                (Some(after), _) => log.after(after).map(line).collect(),
                (None, last) => log.last(last.unwrap_or(200)).map(line).collect(),
            }
        })
        .await?;
    Ok(Json(json!({ "events": lines })))
}

pub async fn history(State(api): State<Api>) -> Result<Json<Value>, Problem> {
    let samples = api
        .look(|node| {
            let samples = node.live.as_ref().map(|l| l.state.history.samples().to_vec()).unwrap_or_default();
            samples
                .iter()
                .map(|s| {
                    json!({
                        "at": s.at,
                        "balance_uusdc": s.balance.to_string(),
                        "earned_uusdc": s.earned.to_string(),
                        "rent_uusdc": s.rent.to_string(),
                    })
                })
                .collect::<Vec<_>>()
        })
        .await?;
    Ok(Json(Value::Array(samples)))
}

pub async fn metrics(State(api): State<Api>) -> Result<Response, Problem> {
    let mut text = String::new();
    if let Some(status) = api.shared.status() {
        let amounts = [
            ("balance_uusdc", &status.balance_uusdc),
            ("escrow_uusdc", &status.escrow_uusdc),
            ("earned_uusdc_total", &status.earned_uusdc),
            ("rent_uusdc_total", &status.rent_uusdc),
            ("gifts_uusdc_total", &status.gifts_uusdc),
            ("refunds_uusdc_total", &status.refunds_uusdc),
            ("purse_uusdc", &status.purse_uusdc),
            ("purchases_uusdc_total", &status.purchases_uusdc),
            ("gas_uusdc_total", &status.gas_uusdc),
            ("storage_uusdc_total", &status.storage_uusdc),
            ("treasury_gas_wei", &status.treasury_gas_wei),
            ("day_limit_uusdc", &status.day_limit_uusdc),
            ("spent_in_day_uusdc", &status.spent_in_day_uusdc),
            ("exposure_uusdc", &status.exposure_uusdc),
            ("ledger_short_uusdc", &status.ledger_short_uusdc),
            ("book_difference_uusdc", &status.book_difference_uusdc),
        ];
        for (name, value) in amounts {
            let _ = writeln!(text, "vivarium_{name} {value}");
        }
        let numbers = [
            ("epoch", status.epoch),
            ("block", status.block.number),
            ("checkpoint_seq", status.checkpoint.seq),
            ("requests_served_total", status.requests.served),
            ("requests_refused_total", status.requests.refused),
            ("requests_in_flight", status.requests.in_flight),
            ("generations_total", api.shared.generations()),
            ("batches_open", api.desk.open.load(Ordering::SeqCst)),
            ("batch_lines_total", api.desk.lines.load(Ordering::SeqCst)),
            ("batch_lines_interrupted_total", api.desk.interrupted.load(Ordering::SeqCst)),
            ("ledger_ok", u64::from(status.ledger_ok)),
            ("active", u64::from(api.shared.role() == Role::Active)),
        ];
        if let Some(forecast) = &status.forecast {
            let _ = writeln!(text, "vivarium_forecast_error_permille {}", forecast.error_permille);
        }
        for (name, value) in numbers {
            let _ = writeln!(text, "vivarium_{name} {value}");
        }
    }
    text += &api.models.metrics();
    text += &main_loop_metrics(&api.look(|node| node.arms().clone()).await?);
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response())
}

/// One family after the other, as Prometheus wants them: `arms` by the name of their event.
fn main_loop_metrics(arms: &BTreeMap<&'static str, Arm>) -> String {
    type Family = (&'static str, &'static str, &'static str, fn(&Arm) -> f64);
    // A double holds every count below 2^53.
    let families: [Family; 5] = [
        ("events_total", "counter", "Events that the main loop took.", |arm| arm.count as f64),
        ("seconds_total", "counter", "Time that they took, all together.", |arm| arm.total.as_secs_f64()),
        ("longest_seconds", "gauge", "The longest time that one of them took.", |arm| arm.longest.as_secs_f64()),
        ("budget_seconds", "gauge", "How long one of them may take.", |arm| arm.budget.as_secs_f64()),
        ("over_budget_total", "counter", "Events that took longer than that.", |arm| arm.over_budget as f64),
    ];
    let mut text = String::new();
    for (name, kind, help, value) in families {
        let _ = writeln!(text, "# HELP vivarium_main_loop_{name} {help}");
        let _ = writeln!(text, "# TYPE vivarium_main_loop_{name} {kind}");
        for (event, arm) in arms {
            let _ = writeln!(text, "vivarium_main_loop_{name}{{event=\"{event}\"}} {}", value(arm));
        }
    }
    text
}

/// The process runs.
pub async fn live() -> StatusCode {
    StatusCode::OK
}

/// The agent sells here and now.
pub async fn ready(State(api): State<Api>) -> Result<&'static str, Problem> {
    match api.shared.status() {
        Some(status) if status.selling => Ok("selling\n"),
        _ => {
            let why = api.shared.closed_because().unwrap_or_else(|| format!("this node is {}", api.shared.role()));
            Err(Problem::for_unavail(why, 2))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_arm_of_the_main_loop_tells_its_budget_and_how_often_it_went_over_it() {
        let [mut tick, mut tail] = [20, 250].map(|ms| Arm::within(Duration::from_millis(ms)));
        for ms in [3, 21, 30] {
            tick.took(Duration::from_millis(ms));
            tail.took(Duration::from_millis(ms));
        }
        let text = main_loop_metrics(&BTreeMap::from([("tick", tick), ("tail", tail)]));
        expect_test::expect![[r#"
            # HELP vivarium_main_loop_events_total Events that the main loop took.
            # TYPE vivarium_main_loop_events_total counter
            vivarium_main_loop_events_total{event="tail"} 3
            vivarium_main_loop_events_total{event="tick"} 3
            # HELP vivarium_main_loop_seconds_total Time that they took, all together.
            # TYPE vivarium_main_loop_seconds_total counter
            vivarium_main_loop_seconds_total{event="tail"} 0.054
            vivarium_main_loop_seconds_total{event="tick"} 0.054
            # HELP vivarium_main_loop_longest_seconds The longest time that one of them took.
            # TYPE vivarium_main_loop_longest_seconds gauge
            vivarium_main_loop_longest_seconds{event="tail"} 0.03
            vivarium_main_loop_longest_seconds{event="tick"} 0.03
            # HELP vivarium_main_loop_budget_seconds How long one of them may take.
            # TYPE vivarium_main_loop_budget_seconds gauge
            vivarium_main_loop_budget_seconds{event="tail"} 0.25
            vivarium_main_loop_budget_seconds{event="tick"} 0.02
            # HELP vivarium_main_loop_over_budget_total Events that took longer than that.
            # TYPE vivarium_main_loop_over_budget_total counter
            vivarium_main_loop_over_budget_total{event="tail"} 0
            vivarium_main_loop_over_budget_total{event="tick"} 2
        "#]]
        .assert_eq(&text);
    }
}
