//! The standby's watch over the active node: challenge when it falls silent, take over when it does not answer.
//!
//! The decision is pure ([`Silence`]); one transaction at a time by the node key.

use crate::error::Result;
use crate::main_loop::Node;
use crate::shared::Role;
use crate::watch::News;
use alloy::primitives::{Address, U256};
use chain::treasury::calls;
use chain::{Outcome as Sent, Stage};
use economy::{Due, Silence};
use journal::crash_point;
use std::sync::atomic::Ordering;

impl Node {
    /// Called with each block while this node is standby.
    pub(crate) fn watch_the_active(&mut self) -> Result<()> {
        let Some(news) = &self.news else { return Ok(()) };
        if self.role != Role::Standby || !self.able_to_take_over(news) {
            return Ok(());
        }
        let timers = &self.cx.birth.timers;
        let silence = Silence {
            now: news.head.timestamp,
            last_heartbeat: news.state.lastHeartbeat,
            challenged_at: news.state.challengedAt,
            fence: u64::from(timers.fence),
            answer_time: u64::from(timers.answerTime),
            silence: u64::from(timers.silence),
            is_vacant: news.state.operator == Address::ZERO,
            is_refused: self.is_not_rescued.load(Ordering::SeqCst),
        };
        let (call, label) = match silence.due() {
            Due::Nothing => return Ok(()),
            Due::Challenge => (calls::challenge(), "challenge"),
            Due::Takeover => (calls::takeover(), "takeover"),
        };
        if self.takeover_in_flight.swap(true, Ordering::SeqCst) {
            return Ok(());
        }
        tracing::info!(label, last_heartbeat = silence.last_heartbeat, now = silence.now, "the active node is silent");
        let tx = chain::Tx::call(self.cx.config.treasury, call, label);
        let waiting = self.cx.operator.submit(tx);
        let (busy, is_not_rescued) = (self.takeover_in_flight.clone(), self.is_not_rescued.clone());
        tokio::spawn(async move {
            if label == "challenge" {
                crash_point!("takeover.challenged");
            } else {
                crash_point!("takeover.sent");
            }
            match waiting.await {
                Sent::Done { block, .. } => tracing::info!(label, block, "mined"),
                other => {
                    if matches!(&other, Sent::Reverted { revert, .. } if revert.name == "NotChallenged") {
                        is_not_rescued.store(true, Ordering::SeqCst);
                    }
                    tracing::info!(label, ?other, "not mined");
                }
            }
            busy.store(false, Ordering::SeqCst);
        });
        Ok(())
    }

    fn able_to_take_over(&self, news: &News) -> bool {
        let mine = U256::from(self.cx.config.lease);
        news.state.stage() == Stage::Alive
            && news.state.standbyLease == mine
            && news.standby.as_ref().is_some_and(|l| l.lease.nodeKey == self.cx.me())
            && self.shared.engine().is_some()
    }
}
