//! The self-fence: a node that has not seen a fresh block in which it is operator stops by itself.
//!
//! Time is CLOCK_BOOTTIME, which goes on while the machine sleeps or the process is stopped by a signal:
//! a node continued after an hour must find itself fenced before it signs anything.

use rustix::time::{ClockId, clock_gettime};

/// Milliseconds since boot, suspended time included.
pub fn boottime_ms() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    let secs = u64::try_from(now.tv_sec).unwrap_or(0);
    let millis = u64::try_from(now.tv_nsec / 1_000_000).unwrap_or(0);
    secs * 1000 + millis
}

/// Pure part: told of every fresh block and asked before every signature.
#[derive(Clone, Debug)]
pub struct Fence {
    fence_ms: u64,
    last_fresh_ms: Option<u64>,
    last_block: (u64, u64),
}

impl Fence {
    pub fn new(fence_secs: u64) -> Self {
        Self { fence_ms: fence_secs * 1000, last_fresh_ms: None, last_block: (0, 0) }
    }

    /// A block in which this node is operator, and when it was asked for. Fresh only if both its number and its timestamp
    /// moved on: an endpoint that repeats an old block, or counts up without time passing, does not keep the node alive.
    pub fn saw_block(&mut self, asked_ms: u64, number: u64, timestamp: u64) {
        let (last_number, last_timestamp) = self.last_block;
        if number > last_number && timestamp > last_timestamp {
            self.last_block = (number, timestamp);
            self.last_fresh_ms = Some(asked_ms);
        }
    }

    /// The chain names somebody else.
    pub fn superseded(&mut self) {
        self.last_fresh_ms = None;
    }

    /// May this node serve and sign now?
    pub fn holds(&self, now_ms: u64) -> bool {
        self.last_fresh_ms.is_some_and(|last| now_ms.saturating_sub(last) < self.fence_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::Fence;

    #[test]
    fn a_node_that_sees_no_fresh_block_stops_by_itself() {
        let mut fence = Fence::new(8);
        assert!(!fence.holds(0), "before the first block nothing may be signed");
        fence.saw_block(1_000, 10, 100);
        assert!(fence.holds(8_999));
        assert!(!fence.holds(9_000));
        fence.saw_block(9_500, 10, 100);
        assert!(!fence.holds(9_500), "the same block again is not fresh");
        fence.saw_block(9_500, 11, 100);
        assert!(!fence.holds(9_500), "a block whose time stands still is not fresh");
        fence.saw_block(9_600, 12, 101);
        assert!(fence.holds(9_600));
        fence.superseded();
        assert!(!fence.holds(9_600));
    }
}
