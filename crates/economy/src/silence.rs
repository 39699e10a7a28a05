//! When a standby challenges an active node that fell silent, and when it takes over: the contract checks both again.

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

impl Silence {
    /// The fence's time before a challenge: a heartbeat is overdue by then, an operator without a chain has stopped
    /// itself, and one that lives answers at once. Then the contract's own time before the takeover.
    pub fn due(self) -> Due {
        let Self { now, challenged_at, .. } = self;
        if self.rescued {
            return Due::Takeover;
        }
        if challenged_at != 0 {
            return if now > challenged_at + self.answer_time { Due::Takeover } else { Due::Nothing };
        }
        if now > self.last_heartbeat + self.fence { Due::Challenge } else { Due::Nothing }
    }
}

#[cfg(test)]
mod tests {
    use super::{Due, Silence};

    const QUIET: Silence =
        Silence { now: 100, last_heartbeat: 98, challenged_at: 0, fence: 8, answer_time: 12, rescued: false };

    #[test]
    fn a_beating_node_is_left_alone_and_a_silent_one_challenged_once() {
        assert_eq!(QUIET.due(), Due::Nothing);
        assert_eq!(Silence { now: 106, ..QUIET }.due(), Due::Nothing);
        assert_eq!(Silence { now: 107, ..QUIET }.due(), Due::Challenge);
        assert_eq!(Silence { now: 108, challenged_at: 108, ..QUIET }.due(), Due::Nothing);
    }

    #[test]
    fn takeover_waits_for_the_whole_answer_time() {
        assert_eq!(Silence { now: 120, challenged_at: 108, ..QUIET }.due(), Due::Nothing);
        assert_eq!(Silence { now: 121, challenged_at: 108, ..QUIET }.due(), Due::Takeover);
        assert_eq!(Silence { rescued: true, ..QUIET }.due(), Due::Takeover);
    }
}
