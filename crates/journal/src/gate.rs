//! When something may leave the process: once the record that caused it is on this disk, and, where this disk alone is not
//! enough, on another one. Pure: it is told what is durable where.

use crate::record::Lsn;
use std::collections::VecDeque;

/// What waits. `E` is what leaves: a transaction, an answer.
#[derive(Clone, Debug)]
pub struct Gate<E> {
    /// In the order of their LSNs.
    pending: VecDeque<(Lsn, E)>,
    /// The announced successor has everything up to here on its disk; 0: none follows.
    followed: Lsn,
    /// A handover is on its way to the chain, which will not take it after this time, chain seconds: what leaves must be
    /// on the successor's disk too, because from the block on that alone counts.
    handing_over: Option<u64>,
    /// Most that may rest on this host's disk alone, micro-USDC.
    exposure_max: u128,
    /// Calls whose record is not replicated yet: (lsn, micro-USDC).
    unreplicated: VecDeque<(Lsn, u128)>,
    /// First bytes of calls that came while the exposure was at its bound.
    waiting: Vec<(Lsn, E)>,
}

impl<E> Gate<E> {
    /// `exposure_max`: micro-USDC of calls that may rest on one disk alone.
    pub fn new(exposure_max: u128) -> Self {
        Self {
            pending: VecDeque::new(),
            followed: 0,
            handing_over: None,
            exposure_max,
            unreplicated: VecDeque::new(),
            waiting: Vec::new(),
        }
    }

    /// Leaves once `lsn`, of no earlier record than what was queued before, is durable.
    pub fn when_durable(&mut self, lsn: Lsn, effect: E) {
        self.pending.push_back((lsn, effect));
    }

    /// Leaves once the record of a call of at most `amount` is durable, and replicated too while more than may be would
    /// rest on this host's disk alone.
    pub fn when_safe(&mut self, lsn: Lsn, amount: u128, effect: E) {
        let is_exposed = self.exposure().saturating_add(amount) > self.exposure_max;
        self.unreplicated.push_back((lsn, amount));
        if is_exposed {
            self.waiting.push((lsn, effect));
        } else {
            self.when_durable(lsn, effect);
        }
    }

    /// The next that may leave now, with this on the disk. One by one, because what leaves may close the gate behind it
    /// ([`Gate::hand_over`]).
    pub fn release(&mut self, durable: Lsn) -> Option<E> {
        let durable = durable.min(self.bound());
        self.pending.pop_front_if(|(lsn, _)| *lsn <= durable).map(|(_, effect)| effect)
    }

    /// The last record of which anything may leave, whatever else it waits for.
    fn bound(&self) -> Lsn {
        if self.handing_over.is_some() { self.followed } else { Lsn::MAX }
    }

    /// Another node follows from the beginning of what it was given.
    pub fn follow_anew(&mut self) {
        self.followed = 0;
    }

    /// The follower has everything up to `lsn` on its disk. Returns up to where that is durable here, too: so far it is
    /// replicated.
    pub fn followed_to(&mut self, lsn: Lsn, durable: Lsn) -> Lsn {
        self.followed = self.followed.max(lsn.min(durable));
        self.followed
    }

    /// A handover is being sent, and may be mined until `valid_until`, chain seconds. Without a follower nothing is waited
    /// for: the successor then restores what is in the store.
    pub fn hand_over(&mut self, valid_until: u64) {
        if self.followed > 0 || self.handing_over.is_some() {
            self.handing_over = Some(valid_until);
        }
    }

    /// A process before this one sent a handover that may be mined until `valid_until`. Whoever followed that one asks here
    /// next; until then nothing leaves.
    pub fn hands_over_still(&mut self, valid_until: u64) {
        self.handing_over = Some(valid_until);
    }

    /// It was not mined, and cannot be any more; or this node went on all the same: its own disk is enough again. Whoever
    /// hears yes tells again what is replicated.
    pub fn hand_over_is_over(&mut self, now: u64) -> bool {
        let is_over = self.handing_over.is_some_and(|valid_until| now > valid_until);
        if is_over {
            self.handing_over = None;
        }
        is_over
    }

    /// Income that rests on this host's disk alone, micro-USDC.
    pub fn exposure(&self) -> u128 {
        self.unreplicated.iter().map(|(_, amount)| amount).sum()
    }

    /// Somebody waits until records are replicated.
    pub fn is_awaited(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Records up to this one are in the store or on the standby. What may leave by that, whether the disk was asked or not:
    /// what is replicated is on a disk.
    pub fn replicated_to(&mut self, replicated: Lsn, durable: Lsn) -> Vec<E> {
        let bound = self.bound();
        while self.unreplicated.front().is_some_and(|(l, _)| *l <= replicated) {
            self.unreplicated.pop_front();
        }
        let has_room = self.exposure() < self.exposure_max;
        let mut out = Vec::new();
        for (lsn, effect) in std::mem::take(&mut self.waiting) {
            if lsn <= bound && (lsn <= replicated || (has_room && lsn <= durable)) {
                out.push(effect);
            } else if has_room {
                self.when_durable(lsn, effect);
            } else {
                self.waiting.push((lsn, effect));
            }
        }
        out
    }

    /// Nothing is durable any more: what waits never leaves.
    pub fn give_up(&mut self) {
        self.pending.clear();
        self.waiting.clear();
    }

    /// What waits.
    pub fn held(&self) -> impl Iterator<Item = &(Lsn, E)> {
        self.pending.iter().chain(&self.waiting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn released<E>(gate: &mut Gate<E>, durable: Lsn) -> Vec<E> {
        std::iter::from_fn(|| gate.release(durable)).collect()
    }

    #[test]
    fn what_leaves_during_a_handover_is_on_both_disks_and_waits_no_longer_than_it_may_be_mined() {
        let mut gate = Gate::new(0);
        gate.when_durable(1, "before");
        assert_eq!(gate.release(0), None);
        assert_eq!(released(&mut gate, 1), ["before"]);
        gate.followed_to(1, 1);
        gate.hand_over(100);
        gate.when_durable(2, "during");
        gate.when_durable(3, "later");
        assert_eq!(gate.release(3), None, "the successor would not know of it");
        // What a follower claims beyond this disk counts up to there.
        assert_eq!((gate.followed_to(9, 2), released(&mut gate, 3)), (2, vec!["during"]));
        assert!(!gate.hand_over_is_over(100), "it may still be mined");
        assert!(gate.hand_over_is_over(101) && !gate.hand_over_is_over(102));
        assert_eq!(released(&mut gate, 3), ["later"]);
    }

    /// The disk had both in one write.
    #[test]
    fn what_became_durable_with_a_handover_stays_behind_it() {
        let mut gate = Gate::new(0);
        gate.followed_to(1, 1);
        gate.when_durable(2, "handover");
        gate.when_durable(3, "answer");
        assert_eq!(gate.release(3), Some("handover"));
        gate.hand_over(100);
        assert_eq!(gate.release(3), None, "the successor would not know of it");
        gate.followed_to(3, 3);
        assert_eq!(gate.release(3), Some("answer"));
    }

    #[test]
    fn a_process_that_finds_a_handover_on_its_way_lets_nothing_out_before_the_follower_asks() {
        let mut gate = Gate::new(0);
        gate.hands_over_still(100);
        gate.when_durable(5, "asked again");
        assert_eq!(gate.release(5), None);
        // Sent again, it is the same one.
        gate.hand_over(100);
        assert_eq!(gate.release(5), None);
        gate.follow_anew();
        gate.followed_to(5, 5);
        assert_eq!(gate.release(5), Some("asked again"));
    }
}
