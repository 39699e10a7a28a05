//! Another's facilitator, by URL: for sellers who would rather have somebody else's key send and pay the gas.
//!
//! What it says is never proof. "Settled" is looked up on chain, "refused" and a timeout too: the authorisation's nonce
//! is taken once, whoever sends it, so that after any answer the chain can be asked and, if it was not taken, the
//! settlement sent by the seller itself.

use super::api::Asked;
use crate::scheme::exact::Hash;
use crate::wire::SettlementResponse;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// To its answer. A settlement takes a few blocks; after that the chain is asked. A guess.
const PATIENCE: Duration = Duration::from_secs(20);
/// Longest answer read, bytes.
const ANSWER_BYTES_MAX: usize = 64 << 10;
/// Failures in a row after which it is left alone, and for how long.
const FAILURES_MAX: u32 = 2;
const LEFT_ALONE: Duration = Duration::from_secs(30);

/// What it says. Ask the chain in any case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// It was settled by this transaction.
    Settled(Hash),
    /// It was not and will not be, for a reason of its own.
    Refused(String),
    /// No answer, or none that can be read: it may be settled yet.
    Unknown(String),
}

/// Health without a clock or a socket: who failed lately is left alone for a while, then tried once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Health {
    failures: u32,
    left_alone_until: Option<Instant>,
}

impl Health {
    fn is_good(&self, now: Instant) -> bool {
        self.left_alone_until.is_none_or(|until| now >= until)
    }

    fn heard(&mut self, answered: bool, now: Instant) {
        if answered {
            *self = Self::default();
            return;
        }
        self.failures += 1;
        if self.failures >= FAILURES_MAX {
            self.left_alone_until = Some(now + LEFT_ALONE);
        }
    }
}

#[derive(Debug)]
pub struct Remote {
    url: String,
    http: net::Client,
    /// A std mutex: nothing is awaited while it is held.
    health: Mutex<Health>,
}

impl Remote {
    pub fn new(url: &str, http: &net::Client) -> Self {
        let http = http.with_deadline(PATIENCE);
        Self { url: url.trim_end_matches('/').to_owned(), http, health: Mutex::default() }
    }

    /// The same with less patience, for tests.
    pub fn with_patience(self, patience: Duration) -> Self {
        Self { http: self.http.with_deadline(patience), ..self }
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// Whether to try it now; else go without.
    pub fn is_healthy(&self) -> bool {
        self.health.lock().expect("no holder panics").is_good(Instant::now())
    }

    /// Asks it to settle.
    pub async fn settle(&self, asked: &Asked) -> Said {
        let said = self.ask(asked).await;
        let answered = !matches!(said, Said::Unknown(_));
        self.health.lock().expect("no holder panics").heard(answered, Instant::now());
        said
    }

    async fn ask(&self, asked: &Asked) -> Said {
        let url = format!("{}/settle", self.url);
        let answer = match self.http.post_json(&url, &asked.to_body()).await {
            Ok(answer) => answer,
            Err(e) => return Said::Unknown(net::chain_of(&e)),
        };
        // Official ones answer a refusal with 200 or 4xx; the body says what it is.
        let status = answer.status;
        let body = match answer.bytes(ANSWER_BYTES_MAX).await {
            Ok(body) => body,
            Err(e) => return Said::Unknown(net::chain_of(&e)),
        };
        let read = crate::wire::parse_json(&body).and_then(SettlementResponse::from_json);
        match read {
            Ok(answer) if answer.success => match crate::wire::bytes(&answer.transaction) {
                Some(transaction) => Said::Settled(transaction),
                None => Said::Unknown("it names no transaction".to_owned()),
            },
            // "Pending" is no refusal.
            Ok(answer) if answer.transaction.is_empty() => Said::Refused(answer.error_reason.unwrap_or_default()),
            Ok(answer) => Said::Unknown(format!("not settled yet by {}", answer.transaction)),
            Err(refusal) => Said::Unknown(format!("status {status}: {refusal}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_fails_twice_is_left_alone_for_a_while_and_then_tried_once() {
        let (mut health, start) = (Health::default(), Instant::now());
        let at = |secs| start + Duration::from_secs(secs);
        health.heard(false, at(0));
        assert!(health.is_good(at(0)), "one failure is an accident");
        health.heard(false, at(1));
        assert!(!health.is_good(at(1)));
        assert!(!health.is_good(at(30)));
        assert!(health.is_good(at(31)));
        health.heard(false, at(31));
        assert!(!health.is_good(at(32)), "tried once, left alone again");
        health.heard(true, at(70));
        assert_eq!(health, Health::default());
    }
}
