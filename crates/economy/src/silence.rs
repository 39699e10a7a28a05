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
    /// Without a heartbeat for this long the stewards may have rented the standby's lease by `rescue`.
    pub silence: u64,
    /// There is no operator, after whom nobody can be but who was rescued.
    pub is_vacant: bool,
    /// The contract has said that this lease was not rescued.
    pub is_refused: bool,
}

impl Silence {
    /// The fence's time before a challenge: a heartbeat is overdue by then, an operator without a chain has stopped
    /// itself, and one that lives answers at once. Then the contract's own time before the takeover.
    ///
    /// A rescued lease's node key needs no challenge, and the treasury's state does not say whether it is one: where it may
    /// be, a takeover is tried first, which costs a refused estimate.
    pub fn due(self) -> Due {
        let Self { now, challenged_at, .. } = self;
        if challenged_at != 0 {
            let is_over = (self.is_vacant && !self.is_refused) || now > challenged_at + self.answer_time;
            return if is_over { Due::Takeover } else { Due::Nothing };
        }
        let may_be_rescued = self.is_vacant || now > self.last_heartbeat + self.silence;
        match now > self.last_heartbeat + self.fence {
            _ if may_be_rescued && !self.is_refused => Due::Takeover,
            true => Due::Challenge,
            false => Due::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Due, Silence};

    const QUIET: Silence = Silence {
        now: 100,
        last_heartbeat: 98,
        challenged_at: 0,
        fence: 8,
        answer_time: 12,
        silence: 20,
        is_vacant: false,
        is_refused: false,
    };

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
    }

    #[test]
    fn a_rescued_standby_waits_for_nobody_and_one_that_came_late_challenges() {
        assert_eq!(Silence { is_vacant: true, ..QUIET }.due(), Due::Takeover);
        let late = Silence { now: 119, ..QUIET };
        assert_eq!(late.due(), Due::Takeover, "it may have been rescued");
        assert_eq!(Silence { is_refused: true, ..late }.due(), Due::Challenge, "it was not");
        let challenged = Silence { challenged_at: 119, is_refused: true, now: 130, ..QUIET };
        assert_eq!(challenged.due(), Due::Nothing);
        assert_eq!(Silence { now: 132, ..challenged }.due(), Due::Takeover);
    }
}
