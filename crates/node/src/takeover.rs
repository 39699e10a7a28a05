//! The standby's watch over the active node: challenge when it falls silent, take over when it does not answer.
//!
//! Pure decision ([`due`]) and one transaction at a time by the node key; the contract checks both again.

use crate::error::Result;
use crate::main_loop::Node;
use crate::shared::Role;
use crate::watch::News;
use alloy::primitives::{Address, U256};
use chain::treasury::calls;
use chain::{Outcome as Sent, Stage};
use journal::crash_point;
use std::sync::atomic::Ordering;

/// What a standby should send now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    Nothing,
    Challenge,
    Takeover,
}

/// What the decision looks at. Times are chain seconds.
#[derive(Clone, Copy, Debug)]
pub struct Silence {
    pub now: u64,
    pub last_heartbeat: u64,
    /// 0: no open challenge.
    pub challenged_at: u64,
    /// Longer than the time between two heartbeats.
    pub fence: u64,
    pub answer_time: u64,
    /// The lease was rented by the stewards' `rescue`: its node key needs no challenge.
    pub rescued: bool,
}

/// The fence's time before a challenge: a heartbeat is overdue by then, an operator without a chain has stopped itself,
/// and one that lives answers at once. Then the contract's own time before the takeover.
pub fn due(silence: Silence) -> Due {
    if silence.rescued {
        return Due::Takeover;
    }
    if silence.challenged_at != 0 {
        return if silence.now > silence.challenged_at + silence.answer_time { Due::Takeover } else { Due::Nothing };
    }
    if silence.now > silence.last_heartbeat + silence.fence { Due::Challenge } else { Due::Nothing }
}

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
            rescued: news.state.operator == Address::ZERO || self.rescued(news),
        };
        let (call, label) = match due(silence) {
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
        let busy = self.takeover_in_flight.clone();
        tokio::spawn(async move {
            if label == "challenge" {
                crash_point!("takeover.challenged");
            } else {
                crash_point!("takeover.sent");
            }
            match waiting.await {
                Sent::Done { block, .. } => tracing::info!(label, block, "mined"),
                other => tracing::info!(label, ?other, "not mined"),
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

    /// Past the rescue's own condition only a rescued lease sits in the standby slot without a challenge open:
    /// trying costs a refused estimate, not gas.
    fn rescued(&self, news: &News) -> bool {
        news.state.challengedAt == 0
            && news.head.timestamp > news.state.lastHeartbeat + u64::from(self.cx.birth.timers.silence)
    }
}

#[cfg(test)]
mod tests {
    use super::{Due, Silence, due};

    const QUIET: Silence =
        Silence { now: 100, last_heartbeat: 98, challenged_at: 0, fence: 8, answer_time: 12, rescued: false };

    #[test]
    fn a_beating_node_is_left_alone_and_a_silent_one_challenged_once() {
        assert_eq!(due(QUIET), Due::Nothing);
        assert_eq!(due(Silence { now: 106, ..QUIET }), Due::Nothing);
        assert_eq!(due(Silence { now: 107, ..QUIET }), Due::Challenge);
        assert_eq!(due(Silence { now: 108, challenged_at: 108, ..QUIET }), Due::Nothing);
    }

    #[test]
    fn takeover_waits_for_the_whole_answer_time() {
        assert_eq!(due(Silence { now: 120, challenged_at: 108, ..QUIET }), Due::Nothing);
        assert_eq!(due(Silence { now: 121, challenged_at: 108, ..QUIET }), Due::Takeover);
        assert_eq!(due(Silence { rescued: true, ..QUIET }), Due::Takeover);
    }
}
