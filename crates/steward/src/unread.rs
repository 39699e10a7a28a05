//! Agents that cannot be read while others can: a token or a market of a stranger's choice may refuse, or take all the
//! time that there is. They are left out of the looks at the others and asked apart from them, more and more seldom, and
//! so is who was never read yet.
//! Pure; all times are chain seconds.

use crate::again::{Again, Waits};
use alloy::primitives::Address;
use std::collections::{BTreeMap, BTreeSet};

/// Guesses: an endpoint's bad moment costs an agent a block, and one that stays bad is asked every ten minutes.
const WAITS: Waits = Waits { least: 1, most: 600 };
/// Asked at once, so that a thousand of them do not keep an endpoint busy. A guess.
const ASKED_MAX: usize = 32;

#[derive(Clone, Debug, Default)]
pub struct Unread {
    agents: BTreeMap<Address, One>,
}

#[derive(Clone, Debug, Default)]
struct One {
    again: Again,
    /// Why it cannot be read; `None`: it can, and how long it was left alone is remembered for a while.
    trouble: Option<String>,
    is_asked: bool,
}

impl Unread {
    /// Leaves `treasury` out until it was asked once, if it is new.
    pub fn meet(&mut self, treasury: Address) {
        let new = || One { trouble: Some("it was not read yet".into()), ..One::default() };
        self.agents.entry(treasury).or_insert_with(new);
    }

    /// `treasury` could not be read at `now`; true if the reason is news.
    pub fn fail(&mut self, treasury: Address, why: String, now: u64) -> bool {
        let one = self.agents.entry(treasury).or_default();
        one.is_asked = false;
        one.again.tried(now, 0, WAITS);
        let is_news = one.trouble.as_ref() != Some(&why);
        one.trouble = Some(why);
        is_news
    }

    /// `treasury` can be read: it is looked at with the others from here on.
    pub fn mend(&mut self, treasury: Address) {
        if let Some(one) = self.agents.get_mut(&treasury) {
            (one.is_asked, one.trouble) = (false, None);
        }
    }

    pub fn has(&self, treasury: &Address) -> bool {
        self.agents.get(treasury).is_some_and(|one| one.trouble.is_some())
    }

    /// Those that are left out now.
    pub fn all(&self) -> BTreeSet<Address> {
        self.troubles().into_keys().collect()
    }

    /// Why each of them is.
    pub fn troubles(&self) -> BTreeMap<Address, String> {
        self.agents.iter().filter_map(|(treasury, one)| Some((*treasury, one.trouble.clone()?))).collect()
    }

    /// Those to ask at `now`, the ones first that wait longest. Each is told of by [`fail`](Self::fail) or
    /// [`mend`](Self::mend) before it comes again.
    pub fn due(&mut self, now: u64) -> Vec<Address> {
        let asked = self.agents.values().filter(|one| one.is_asked).count();
        let is_due = |one: &One| one.trouble.is_some() && !one.is_asked && one.again.is_due(now);
        let mut due: Vec<(u64, Address)> =
            self.agents.iter().filter(|(_, one)| is_due(one)).map(|(t, one)| (one.again.at(), *t)).collect();
        due.sort_unstable();
        due.truncate(ASKED_MAX.saturating_sub(asked));
        let due: Vec<Address> = due.into_iter().map(|(_, treasury)| treasury).collect();
        for treasury in &due {
            self.agents.entry(*treasury).or_default().is_asked = true;
        }
        due
    }

    /// Forgets those that are not watched any more.
    pub fn keep(&mut self, is_watched: impl Fn(&Address) -> bool) {
        self.agents.retain(|treasury, _| is_watched(treasury));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent(n: u8) -> Address {
        Address::repeat_byte(n)
    }

    #[test]
    fn one_that_cannot_be_read_is_said_once_and_asked_more_and_more_seldom() {
        let mut unread = Unread::default();
        assert!(unread.fail(agent(1), "reverted".into(), 100));
        let mut asked = Vec::new();
        for now in 100..120 {
            for treasury in unread.due(now) {
                asked.push(now);
                assert!(unread.due(now).is_empty(), "it is being asked");
                assert!(!unread.fail(treasury, "reverted".into(), now));
            }
        }
        assert_eq!(asked, [101, 103, 107, 115]);
        assert!(unread.fail(agent(1), "out of gas".into(), 120));
        unread.mend(agent(1));
        assert_eq!((unread.all().len(), unread.due(500)), (0, vec![]));
        // One that comes and goes is left alone for as long as before.
        assert!(unread.fail(agent(1), "reverted".into(), 200));
        assert_eq!((unread.due(263), unread.due(264)), (vec![], vec![agent(1)]));
        unread.keep(|_| false);
        assert!(unread.agents.is_empty());
    }

    #[test]
    fn a_crowd_is_asked_a_few_at_a_time_and_all_of_it_in_turn() {
        let mut unread = Unread::default();
        for n in 0..80 {
            unread.fail(agent(n), "reverted".into(), 100);
        }
        let mut asked = BTreeSet::new();
        for now in 101..104 {
            let due = unread.due(now);
            assert!(due.len() <= ASKED_MAX && unread.due(now).is_empty());
            for treasury in due {
                asked.insert(treasury);
                unread.fail(treasury, "reverted".into(), now);
            }
        }
        assert_eq!(asked.len(), 80);
    }

    #[test]
    fn a_new_one_is_asked_before_it_is_looked_at_with_others() {
        let mut unread = Unread::default();
        for now in [100, 101] {
            unread.meet(agent(1));
            assert_eq!(unread.has(&agent(1)), now == 100);
            assert_eq!(unread.due(now).len(), usize::from(now == 100));
            unread.mend(agent(1));
        }
    }
}
