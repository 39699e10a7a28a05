//! `GET /status` and `GET /health`: what runs here, as it was at the last turn of the daemon's loop.

use crate::lease_loop::TenantStatus;
use crate::tenant::Pids;
use axum::http::StatusCode;
use axum::{Json, Router, extract::State, routing::get};
use serde::Serialize;
use std::sync::{Arc, Mutex, PoisonError};

/// Shared between the daemon's loop, which writes it, and the requests, which copy it.
/// A std mutex: it is never held across an await.
#[derive(Clone, Debug, Default)]
pub struct Board(Arc<Mutex<Status>>);

impl Board {
    pub fn set(&self, change: impl FnOnce(&mut Status)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    pub fn get(&self) -> Status {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Amounts are decimal strings of micro-USDC.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Status {
    pub provider: String,
    pub url: String,
    pub block: Block,
    pub stake_uusdc: String,
    pub offers: Vec<OfferStatus>,
    pub tenants: Vec<Tenant>,
    /// Paid out to the provider since this process started.
    pub income_uusdc: String,
    /// Earned and still in the market.
    pub due_uusdc: String,
    /// The last thing that did not work, if it still does not.
    pub trouble: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Block {
    pub number: u64,
    pub timestamp: u64,
}

#[derive(Clone, Debug, Serialize)]
pub struct OfferStatus {
    pub id: u64,
    pub price_e6: u64,
    pub quote_e6: u64,
}

#[derive(Clone, Debug, Serialize)]
pub struct Tenant {
    pub lease: u64,
    pub treasury: Option<String>,
    /// fetching, starting, announced, serving, restarting, over, stopping, closed.
    pub state: &'static str,
    /// The tenant's own first process.
    pub pid: Option<i32>,
    /// The sandbox around it.
    pub sandbox_pid: Option<i32>,
    pub url: Option<String>,
    pub node_key: Option<String>,
    /// How often it was started, and how often in a row it ended early.
    pub starts: u64,
    pub failures: u32,
    /// Chain seconds.
    pub end: Option<u64>,
    pub due_uusdc: String,
}

impl Tenant {
    pub fn new(status: TenantStatus, pids: Option<Pids>, url: Option<String>) -> Self {
        Self {
            lease: status.lease,
            treasury: status.treasury.map(|t| t.to_string()),
            state: status.state,
            pid: pids.and_then(|p| p.tenant),
            sandbox_pid: pids.map(|p| p.sandbox),
            url,
            node_key: status.node_key.map(|k| k.to_string()),
            starts: status.run,
            failures: status.failures,
            end: status.end,
            due_uusdc: status.due_uusdc.to_string(),
        }
    }
}

/// The daemon's routes.
pub fn router(board: Board) -> Router {
    Router::new().route("/status", get(status)).route("/health", get(health)).with_state(board)
}

async fn status(State(board): State<Board>) -> Json<Status> {
    Json(board.get())
}

/// 200 once the daemon has seen the chain, 503 before.
async fn health(State(board): State<Board>) -> (StatusCode, &'static str) {
    if board.get().block.number == 0 {
        return (StatusCode::SERVICE_UNAVAILABLE, "no block seen yet\n");
    }
    (StatusCode::OK, "ok\n")
}
