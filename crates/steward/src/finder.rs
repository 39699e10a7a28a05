//! Which treasuries this steward is to watch: those that the configuration names, those that its factory made, and those
//! that a quorum has changed since. Beside the watch, which never waits for it: a long past, an endpoint that gives out no
//! logs or a contract that does not answer keeps nothing from being looked at.

use crate::again::{Again, Waits};
use crate::api::Notes;
use crate::desk::Desk;
use crate::refusal::Refusal;
use alloy::primitives::{Address, B256};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Blocks looked at a second time: a reorg may have put a birth or a change there.
const BLOCKS_AGAIN: u64 = 4;
/// Treasuries asked at once. A guess, as is the rest.
const ASKED_MAX: usize = 16;
/// A steward of theirs may be a contract that takes its time to say whose Safe it is.
const ASK_DEADLINE: Duration = Duration::from_secs(10);
/// Seconds of this machine's clock.
const WAITS: Waits = Waits { least: 1, most: 600 };

pub struct Finder {
    desk: Arc<Desk>,
    notes: Notes,
    started: Instant,
    /// The head up to which there is nothing more to find.
    seen: Option<B256>,
    /// Births were looked for up to this block, changes up to that one.
    births_to: u64,
    changes_to: Option<u64>,
    /// What is not known yet to be an agent of this steward's or a stranger's, or may be it no more.
    pending: BTreeMap<Address, Again>,
    /// Treasuries in which this steward is none: not asked about again until a quorum changes them.
    strangers: BTreeSet<Address>,
}

impl Finder {
    pub fn new(desk: Arc<Desk>, notes: Notes) -> Self {
        let pending = desk.config.treasuries.iter().map(|treasury| (*treasury, Again::default())).collect();
        let (births_to, changes_to, strangers) = (0, None, BTreeSet::new());
        Self { desk, notes, started: Instant::now(), seen: None, births_to, changes_to, pending, strangers }
    }

    /// Looks until it is aborted.
    pub async fn turn(mut self) {
        let mut ticks = tokio::time::interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        loop {
            let looked = self.look().await;
            if !matches!(looked, Ok(false)) {
                ticks.tick().await;
            }
            let trouble = looked.err().map(|refusal| format!("treasuries cannot be looked for: {refusal}"));
            if self.notes.set_search_trouble(trouble.clone())
                && let Some(trouble) = trouble
            {
                tracing::warn!("{trouble}");
            }
        }
    }

    /// One piece of the chain's log of births and of changes, then those that are pending. True once there are no more
    /// pieces.
    async fn look(&mut self) -> Result<bool, Refusal> {
        let head = self.desk.eyes.head().await?;
        let found = match self.seen {
            Some(seen) if seen == head.hash => Ok(true),
            _ => self.find(head.number).await,
        };
        if let Ok(true) = found {
            self.seen = Some(head.hash);
        }
        self.ask().await;
        found
    }

    async fn find(&mut self, head: u64) -> Result<bool, Refusal> {
        // What fails of one must not keep the other.
        let (changes, births) = (self.find_changes(head).await, self.find_births(head).await);
        Ok(changes? && births?)
    }

    /// What a quorum has changed, of agents that are watched and of those that were not ours.
    async fn find_changes(&mut self, head: u64) -> Result<bool, Refusal> {
        // What was changed before the first look is what is read then.
        let from = self.changes_to.unwrap_or(head).min(head).saturating_sub(BLOCKS_AGAIN);
        let known: Vec<Address> = self.desk.watched().into_keys().chain(self.strangers.iter().copied()).collect();
        let (changed, to) = self.desk.eyes.changed(&known, from, head).await?;
        for treasury in changed {
            self.strangers.remove(&treasury);
            self.pending.insert(treasury, Again::default());
        }
        self.changes_to = Some(to);
        Ok(to >= head)
    }

    async fn find_births(&mut self, head: u64) -> Result<bool, Refusal> {
        let Some(factory) = self.desk.config.factory else { return Ok(true) };
        let from = self.births_to.min(head).saturating_sub(BLOCKS_AGAIN);
        let (created, to) = self.desk.eyes.created(factory, from, head).await?;
        let known = self.desk.watched();
        for treasury in created {
            if !known.contains_key(&treasury) && !self.strangers.contains(&treasury) {
                self.pending.entry(treasury).or_default();
            }
        }
        self.births_to = to;
        Ok(to >= head)
    }

    /// Asks those that are due, the ones first that wait longest. One that cannot be read hides no other and is asked
    /// again, more and more seldom.
    async fn ask(&mut self) {
        let now = self.started.elapsed().as_secs();
        let due = self.pending.iter().filter(|(_, again)| again.is_due(now));
        let mut due: Vec<(u64, Address)> = due.map(|(treasury, again)| (again.at(), *treasury)).collect();
        due.sort_unstable();
        due.truncate(ASKED_MAX);
        let mut asked = JoinSet::new();
        for (_, treasury) in due {
            let desk = self.desk.clone();
            let late = |_| Err(Refusal::NoView { why: format!("no answer in {ASK_DEADLINE:?}") });
            asked.spawn(async move {
                let renewed = tokio::time::timeout(ASK_DEADLINE, desk.renew(treasury)).await;
                (treasury, renewed.unwrap_or_else(late))
            });
        }
        // Only the end of the process cancels one.
        while let Some(Ok((treasury, renewed))) = asked.join_next().await {
            self.settle(treasury, renewed);
        }
    }

    fn settle(&mut self, treasury: Address, renewed: Result<bool, Refusal>) {
        match renewed {
            Ok(is_ours) => {
                self.pending.remove(&treasury);
                if !is_ours {
                    self.strangers.insert(treasury);
                }
            }
            Err(e) => {
                let again = self.pending.entry(treasury).or_default();
                // Said once.
                match again.at() {
                    0 => tracing::warn!(%treasury, "cannot be read, and is tried again: {e}"),
                    _ => tracing::debug!(%treasury, "cannot be read yet: {e}"),
                }
                again.tried(self.started.elapsed().as_secs(), 0, WAITS);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desk::tests::{FACTORY, desk, genuine, one_of_ours};
    use crate::stand_in::{block, endpoint, failure};
    use alloy::primitives::U64;
    use alloy::sol_types::SolEvent;
    use chain::bindings::TreasuryFactory;
    use serde_json::{Value, json};
    use std::sync::atomic::{AtomicBool, Ordering};

    fn birth_of(treasury: Address) -> Value {
        let event = TreasuryFactory::Created { treasury, creator: Address::repeat_byte(1) }.encode_log_data();
        json!({ "address": FACTORY, "topics": event.topics(), "data": event.data, "blockNumber": "0x5",
            "transactionHash": B256::ZERO, "transactionIndex": "0x0", "blockHash": B256::ZERO, "logIndex": "0x0",
            "removed": false })
    }

    /// A chain of 2,500 blocks in whose first piece two treasuries are born: the one can be read while `is_up`, the other
    /// never. It gives out no births of the second piece while it is not.
    async fn chain(well: Address, ill: Address, is_up: Arc<AtomicBool>) -> String {
        endpoint(move |method, params| {
            let code = genuine();
            let up = is_up.load(Ordering::SeqCst);
            let is_of_factory = params[0]["address"] == json!(FACTORY);
            let from: u64 = serde_json::from_value::<U64>(params[0]["fromBlock"].clone()).map_or(0, |from| from.to());
            match method {
                "eth_getBlockByNumber" => Ok(block(2_500, B256::repeat_byte(7), 1_000)),
                "eth_getLogs" if !is_of_factory => Ok(json!([])),
                "eth_getLogs" if from == 0 => Ok(json!([birth_of(ill), birth_of(well)])),
                "eth_getLogs" if up => Ok(json!([])),
                "eth_getCode" if params[0] == json!(ill) || !up => Err(failure("busy")),
                _ => one_of_ours(method, params, &code).ok_or_else(|| failure("too many results")),
            }
        })
        .await
    }

    #[tokio::test]
    async fn what_was_found_is_kept_whatever_fails_after_it() {
        let [well, ill] = [8, 3].map(Address::repeat_byte);
        let is_up = Arc::new(AtomicBool::new(false));
        let dir = tempfile::tempdir().unwrap();
        let url = chain(well, ill, is_up.clone()).await;
        let desk = Arc::new(desk(dir.path(), &url, |_| ()));
        let mut finder = Finder::new(desk.clone(), Notes::default());
        assert!(matches!(finder.look().await, Ok(false)), "one piece, and there are more");
        assert_eq!(finder.births_to, 999);
        for _ in 0..3 {
            assert_eq!(finder.look().await.unwrap_err().code(), "no_view");
            assert_eq!(finder.pending.keys().copied().collect::<Vec<_>>(), [ill, well]);
        }
        is_up.store(true, Ordering::SeqCst);
        // It is asked again by itself, though its birth is in no piece that comes.
        while !desk.watched().contains_key(&well) {
            finder.look().await.unwrap();
            tokio::task::yield_now().await;
        }
        assert_eq!(finder.pending.keys().copied().collect::<Vec<_>>(), [ill]);
        while !finder.look().await.unwrap() {}
        assert_eq!((finder.births_to, finder.strangers.len()), (2_500, 0));
    }

    #[tokio::test]
    async fn what_the_configuration_names_is_found_without_a_factory() {
        let [well, ill] = [8, 3].map(Address::repeat_byte);
        let dir = tempfile::tempdir().unwrap();
        let url = chain(well, ill, Arc::new(AtomicBool::new(true))).await;
        let desk = Arc::new(desk(dir.path(), &url, |c| (c.treasuries, c.factory) = (vec![well], None)));
        let mut finder = Finder::new(desk.clone(), Notes::default());
        assert!(finder.look().await.unwrap());
        assert!(desk.watched().contains_key(&well) && finder.pending.is_empty());
    }
}
