//! An agent to buy from: where it is now, and the buyer that pays it and nobody else.

use crate::world::crowd::ChainClock;
use crate::world::record::Record;
use alloy::primitives::Address;
use anyhow::{Context, Result};
use pay::buyer::Buyer;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long a place that was read from the record is believed without reading again. A move is announced by 308
/// anyway; this bounds how old the chain's time may be that a signature goes by.
const BELIEVED: Duration = Duration::from_secs(5);
/// How long the record is waited for. Its reads take milliseconds.
const READ_WITHIN: Duration = Duration::from_secs(5);
/// How long an agent that did not answer comes after the others: long enough that not each call waits for it, short enough
/// that it is not left for good.
const TROUBLE: Duration = Duration::from_secs(30);

/// What tells where the agent is.
pub enum Whereabouts {
    /// The on-chain record; the clock is what the agent's buyer signs by.
    Chain { record: Record, clock: ChainClock },
    /// One address that never changes.
    Fixed(String),
}

pub struct Agent {
    buyer: Buyer,
    whereabouts: Whereabouts,
    /// A std Mutex: it is never held over an await.
    known: Mutex<Option<(String, Instant)>>,
    /// When it last did not answer.
    trouble: Mutex<Option<Instant>>,
}

impl Agent {
    /// `buyer` pays this agent's treasury.
    pub fn new(buyer: Buyer, whereabouts: Whereabouts) -> Self {
        Self { buyer, whereabouts, known: Mutex::default(), trouble: Mutex::default() }
    }

    pub fn buyer(&self) -> &Buyer {
        &self.buyer
    }

    pub fn whereabouts(&self) -> &Whereabouts {
        &self.whereabouts
    }

    pub fn treasury(&self) -> Address {
        self.buyer.policy().pay_to
    }

    /// Whether it did not answer of late.
    pub fn is_in_trouble(&self) -> bool {
        let trouble = *self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        trouble.is_some_and(|since| since.elapsed() < TROUBLE)
    }

    /// Notes that it answered, or did not.
    pub fn heard(&self, answered: bool) {
        let since = (!answered).then(Instant::now);
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = since;
    }

    /// Its base URL. While the chain does not answer, the last one known.
    pub async fn url(&self) -> Result<String> {
        let known = self.known();
        match known {
            Some((url, since)) if since.elapsed() < BELIEVED => Ok(url),
            Some((url, _)) => Ok(self.read().await.unwrap_or(url)),
            None => self.read().await,
        }
    }

    /// Its base URL, read now.
    pub async fn read(&self) -> Result<String> {
        let url = match &self.whereabouts {
            Whereabouts::Fixed(url) => url.clone(),
            Whereabouts::Chain { record, clock } => {
                let read = async {
                    let url = record.url().await?;
                    anyhow::Ok((url, record.chain.head().await?.timestamp))
                };
                let (url, now) =
                    tokio::time::timeout(READ_WITHIN, read).await.context("the chain does not answer")??;
                clock.set(now);
                url
            }
        };
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = Some((url.clone(), Instant::now()));
        Ok(url)
    }

    fn known(&self) -> Option<(String, Instant)> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
