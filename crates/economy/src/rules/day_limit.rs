use std::collections::VecDeque;

/// Slots in which an amount counts: its own and the 24 after it.
const SLOTS: u64 = 25;

/// The rolling day limit: a day is cut into slots of day/24, rounded up, and an amount counts in its own slot and the 24
/// after it, so for a whole day at least. The contract keeps a ring of sums; here the entries themselves are kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DayLimit {
    /// (slot, micro-USDC), ascending.
    entries: VecDeque<(u64, u128)>,
}

impl DayLimit {
    /// What still counts at `now`, micro-USDC. `day` in seconds, as everywhere.
    pub fn spent(&self, now: u64, day: u32) -> u128 {
        let slot = slot(now, day);
        self.entries.iter().filter(|(at, _)| at + SLOTS > slot).map(|(_, amount)| amount).sum()
    }

    /// Counts a gross commitment. The caller has compared; nothing takes it out again before its time.
    pub fn add(&mut self, now: u64, day: u32, amount: u128) {
        let slot = slot(now, day);
        while self.entries.front().is_some_and(|(at, _)| at + SLOTS <= slot) {
            self.entries.pop_front();
        }
        self.entries.push_back((slot, amount));
    }
}

fn slot(now: u64, day: u32) -> u64 {
    now / u64::from(day.div_ceil(24))
}
