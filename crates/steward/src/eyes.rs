//! The chain as this steward sees it: through one endpoint, or through two that must say the same.
//!
//! A lying endpoint is how a steward would be talked into giving its share to a stranger or rescuing an agent that
//! lives. With two, every read is made at one block of both, and a difference is no view at all.

use crate::agent::Seat;
use crate::refusal::Refusal;
use crate::watch::{BlockView, LeaseView, OfferView, Policy, Timers, TreasuryView};
use alloy::eips::BlockId;
use alloy::primitives::{Address, B256, Bytes, U256, hex};
use alloy::rpc::types::{Filter, Log};
use alloy::sol_types::SolEvent;
use chain::bindings::{Birth, State, Treasury, TreasuryFactory};
use chain::{Chain, Head, LeaseStatus, Stage};
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::time::Duration;
use tokio::task::JoinSet;

/// Blocks asked for in one look for new treasuries: what public endpoints allow.
const LOG_BLOCKS_MAX: u64 = 1_000;
/// Treasuries named in one such question. A guess.
const LOG_ADDRESSES_MAX: usize = 500;

/// Agents looked at side by side, so that one that takes its time does not keep the others waiting. A guess.
const LOOKS_AT_ONCE: usize = 16;
/// Longest that one agent is looked at: its market and its token are of its creator's choice. A guess: twice what one
/// request may take.
const LOOK_DEADLINE: Duration = Duration::from_secs(10);

/// A block as far as it could be read.
#[derive(Clone, Debug, Default)]
pub struct Looked {
    pub block: BlockView,
    pub states: BTreeMap<Address, State>,
    /// Agents that could not be read, and why.
    pub unread: BTreeMap<Address, Refusal>,
}

/// What was seen of one agent, with the offers of its market where something is wrong.
type Seen = (State, TreasuryView, Vec<OfferView>);

/// One or two endpoints of one chain.
#[derive(Clone, Debug)]
pub struct Eyes {
    chains: Vec<Chain>,
}

impl Eyes {
    /// Fails when a URL cannot be read.
    pub fn new(rpc_urls: &[String], chain_id: u64) -> Result<Self, chain::Error> {
        let chains = rpc_urls.iter().map(|url| Chain::connect(url, chain_id)).collect::<Result<Vec<_>, _>>()?;
        Ok(Self { chains })
    }

    /// The endpoint that transactions go to.
    pub fn first(&self) -> &Chain {
        // The configuration refuses an empty list.
        &self.chains[0]
    }

    /// Refuses endpoints of another chain, a clock that disagrees with theirs, a factory that is none, and treasuries that
    /// are none or could never live.
    pub async fn verify(&self, factory: Option<Address>, treasuries: &[Address]) -> Result<(), chain::Error> {
        for chain in &self.chains {
            chain.verify_chain().await?;
            chain.verify_clock().await?;
            if let Some(factory) = factory {
                chain.verify_factory(factory).await?;
            }
            for treasury in treasuries {
                chain.verify_agent(*treasury).await?;
            }
        }
        Ok(())
    }

    /// The newest block that all endpoints have, the same at each.
    pub async fn head(&self) -> Result<Head, Refusal> {
        chain::heads::common_head(&self.chains).await.map_err(no_view)
    }

    /// One read at every endpoint; what they agree on.
    async fn agreed<T, F>(&self, what: &str, read: impl Fn(Chain) -> F) -> Result<T, Refusal>
    where
        T: PartialEq,
        F: Future<Output = Result<T, chain::Error>>,
    {
        chain::heads::agreed(&self.chains, what, read).await.map_err(no_view)
    }

    pub async fn state(&self, treasury: Address, head: &Head) -> Result<State, Refusal> {
        let at = BlockId::hash(head.hash);
        self.agreed("the treasury", |c| async move { c.treasury(treasury).state_at(at).await }).await
    }

    /// Whether `factory` made what is at `treasury`; `None` if nothing is there. All that it makes are clones of one
    /// implementation, which takes its birth from this factory only: whoever clones it besides has none born.
    pub async fn is_made_by(&self, factory: Address, treasury: Address) -> Result<Option<bool>, Refusal> {
        let read = |c: Chain| async move { c.request("eth_getCode", (treasury, BlockId::latest())).await };
        let code: Bytes = self.agreed("the treasury's code", read).await?;
        if code.is_empty() {
            return Ok(None);
        }
        let read =
            |c: Chain| async move { c.read(factory, TreasuryFactory::implementationCall {}, BlockId::latest()).await };
        let implementation = self.agreed("what the factory makes", read).await?;
        Ok(Some(code == clone_of(implementation)))
    }

    /// What was fixed at birth, with what a quorum has changed of it since; `None` if there is no treasury.
    pub async fn birth(&self, treasury: Address) -> Result<Option<Birth>, Refusal> {
        let read = |c: Chain| async move {
            match c.treasury(treasury).birth().await {
                Err(e) if matches!(e.kind, chain::Kind::Missing | chain::Kind::Reverted(_)) => Ok(None),
                found => found.map(Some),
            }
        };
        self.agreed("the treasury's birth", read).await
    }

    /// As whom `me` counts for an agent; `None`: not at all. A steward that is a contract and no Safe has owners that
    /// nobody here can ask about.
    pub async fn seat(&self, birth: &Birth, me: Address) -> Result<Option<Seat>, Refusal> {
        let place_in =
            |list: &[Address]| list.iter().position(|one| *one == me).and_then(|place| u64::try_from(place).ok());
        if let Some(place) = place_in(&birth.stewards) {
            return Ok(Some(Seat::Key { place }));
        }
        for steward in birth.stewards.iter().copied() {
            let safe = self
                .agreed("a Safe", |c| async move {
                    match c.safe(steward).await {
                        Err(e) if e.kind == chain::Kind::Missing => Ok(None),
                        other => other,
                    }
                })
                .await?;
            if let Some(place) = safe.and_then(|safe| place_in(&safe.owners)) {
                return Ok(Some(Seat::OwnerOf { safe: steward, place }));
            }
        }
        Ok(place_in(&birth.options.rescuers).filter(|_| may_rescue(birth, me)).map(|place| Seat::Rescuer { place }))
    }

    /// Treasuries that `factory` created in the given blocks, both ends included. At most as far as
    /// [`LOG_BLOCKS_MAX`] from `from`; the second value is the last block looked at.
    pub async fn created(&self, factory: Address, from: u64, to: u64) -> Result<(Vec<Address>, u64), Refusal> {
        let filter = Filter::new().address(factory).event_signature(TreasuryFactory::Created::SIGNATURE_HASH);
        let (logs, to) = self.logs("new treasuries", filter, from, to).await?;
        let found = logs.iter().filter_map(|log| TreasuryFactory::Created::decode_log(&log.inner).ok());
        Ok((found.map(|event| event.treasury).collect(), to))
    }

    /// Those of `treasuries` of which a quorum changed stewards or policy in the given blocks, as
    /// [`created`](Self::created). Asked by name: whoever emits the same events in thousands hides none.
    pub async fn changed(
        &self,
        treasuries: &[Address],
        from: u64,
        to: u64,
    ) -> Result<(BTreeSet<Address>, u64), Refusal> {
        let last = last_of_piece(from, to);
        let mut changed = BTreeSet::new();
        for some in treasuries.chunks(LOG_ADDRESSES_MAX) {
            let filter = Filter::new().address(some.to_vec()).event_signature(vec![
                Treasury::StewardsSet::SIGNATURE_HASH,
                Treasury::Tightened::SIGNATURE_HASH,
                Treasury::Loosened::SIGNATURE_HASH,
            ]);
            let (logs, _) = self.logs("changed treasuries", filter, from, last).await?;
            changed.extend(logs.iter().map(|log| log.inner.address));
        }
        Ok((changed, last))
    }

    /// Logs of the blocks from `from`, at most [`LOG_BLOCKS_MAX`] of them, and the last block looked at.
    async fn logs(&self, what: &str, filter: Filter, from: u64, to: u64) -> Result<(Vec<Log>, u64), Refusal> {
        let to = last_of_piece(from, to);
        let filter = filter.from_block(from).to_block(to);
        let logs = self
            .agreed(what, |c| {
                let filter = filter.clone();
                async move { c.request("eth_getLogs", (filter,)).await }
            })
            .await?;
        Ok((logs, to))
    }

    /// Everything a decision about one treasury looks at, at one block, with the offers of its market.
    pub async fn look(
        &self,
        treasury: Address,
        birth: &Birth,
        (me, seat): (Address, &Seat),
        head: &Head,
    ) -> Result<(State, TreasuryView), Refusal> {
        let at = BlockId::hash(head.hash);
        let state = self.state(treasury, head).await?;
        let active = self.lease(birth.market, state.activeLease, at).await?;
        let standby = self.lease(birth.market, state.standbyLease, at).await?;
        let frozen = self.is_frozen(treasury, birth, &state, head).await?;
        let sleeps_until = self.sleeps_until(treasury, &state, at).await?;
        let mut view = view_of(treasury, birth, &state, active, standby, (me, seat));
        view.endable_at = endable_at(birth, &state, frozen).map(|due| match state.stage() {
            Stage::Alive => due.max(sleeps_until.saturating_add(1)),
            _ => due,
        });
        view.asleep = head.timestamp <= sleeps_until;
        Ok((state, view))
    }

    /// Whether the treasury says that its token refuses to move what is there. Asked only of one that is silent for long
    /// enough to be ended for it: the answer is a simulated call, and not for every block.
    async fn is_frozen(&self, treasury: Address, birth: &Birth, state: &State, head: &Head) -> Result<bool, Refusal> {
        if state.stage() != Stage::Alive || head.timestamp < silent_from(birth, state) {
            return Ok(false);
        }
        let at = BlockId::hash(head.hash);
        let ask = |c: Chain| async move { c.read(treasury, Treasury::windDownReasonCall {}, at).await };
        Ok(self.agreed("why it may end", ask).await? == FROZEN)
    }

    /// Until when it hibernates, 0 if it does not. Asked only of one that has no operator.
    async fn sleeps_until(&self, treasury: Address, state: &State, at: BlockId) -> Result<u64, Refusal> {
        if !state.operator.is_zero() {
            return Ok(0);
        }
        let ask = |c: Chain| async move { c.read(treasury, Treasury::standingCall {}, at).await };
        Ok(self.agreed("how long it sleeps", ask).await?.hibernateUntil)
    }

    async fn lease(&self, market: Address, lease: U256, at: BlockId) -> Result<Option<LeaseView>, Refusal> {
        let id = u64::try_from(lease).map_err(|_| unseen("an impossible lease id"))?;
        if id == 0 {
            return Ok(None);
        }
        let seen = self.agreed("a lease", |c| async move { c.market(market).lease_at(id, at).await }).await?;
        let lease = seen.lease;
        let open = matches!(lease.status(), LeaseStatus::Requested | LeaseStatus::Ready);
        Ok(open.then(|| LeaseView {
            id,
            offer: u64::try_from(lease.offer).unwrap_or(u64::MAX),
            provider: lease.provider,
            ready: lease.status() == LeaseStatus::Ready,
            ready_by: lease.readyBy,
            start: lease.start,
            end: lease.end,
        }))
    }

    /// The market's offers, and which of their providers `treasury` has barred.
    pub async fn offers(
        &self,
        treasury: Address,
        market: Address,
        head: &Head,
    ) -> Result<(Vec<OfferView>, Vec<Address>), Refusal> {
        let at = BlockId::hash(head.hash);
        let offers = self.agreed("the offers", |c| async move { c.market(market).offers_at(at).await }).await?;
        let barred = self
            .agreed("barred providers", |c| {
                let offers = &offers;
                async move { c.treasury(treasury).barred_at(offers, at).await }
            })
            .await?;
        let barred = barred.into_iter().collect();
        let offers = offers.into_iter().map(|o| OfferView {
            id: o.id,
            provider: o.offer.provider,
            price_e6: o.offer.priceE6,
            free: o.offer.capacity.saturating_sub(o.offer.used),
            min_term: o.offer.minTerm.into(),
            max_term: o.offer.maxTerm.into(),
            staked: o.staked,
        });
        Ok((offers.collect(), barred))
    }

    /// [`look`](Self::look) within a time, and the offers only where something is wrong: a healthy agent needs none.
    pub async fn see(
        &self,
        treasury: Address,
        birth: &Birth,
        (me, seat): (Address, &Seat),
        head: &Head,
    ) -> Result<Seen, Refusal> {
        let seen = async {
            let (state, mut view) = self.look(treasury, birth, (me, seat), head).await?;
            let mut offers = Vec::new();
            if view.alarm(head.timestamp).is_some() {
                (offers, view.barred) = self.offers(treasury, birth.market, head).await?;
            }
            Ok::<Seen, Refusal>((state, view, offers))
        };
        let late = |_| Err(unseen(&format!("it cannot be read in {LOOK_DEADLINE:?}")));
        tokio::time::timeout(LOOK_DEADLINE, seen).await.unwrap_or_else(late)
    }

    /// The block's view of `known` treasuries, without those that cannot be read: what one of them, its market or its
    /// token answers, or does not, hides no other.
    ///
    /// Fails as a whole where the endpoints do: they have this block no more, or none of all agents could be read and no
    /// contract's answer was the reason.
    pub async fn block(
        &self,
        known: &BTreeMap<Address, (Birth, Seat)>,
        me: Address,
        head: &Head,
    ) -> Result<Looked, Refusal> {
        let mut looked = Looked::default();
        (looked.block.number, looked.block.timestamp) = (head.number, head.timestamp);
        let (mut waiting, mut asked) = (known.iter(), JoinSet::new());
        loop {
            for (treasury, (birth, seat)) in waiting.by_ref().take(LOOKS_AT_ONCE - asked.len()) {
                let (eyes, treasury, birth, seat, head) = (self.clone(), *treasury, birth.clone(), seat.clone(), *head);
                asked.spawn(async move { (treasury, eyes.see(treasury, &birth, (me, &seat), &head).await) });
            }
            match asked.join_next().await {
                Some(Ok((treasury, seen))) => looked.add(treasury, seen),
                // Only the end of the process cancels a look.
                Some(Err(e)) => return Err(unseen(&e.to_string())),
                None => break,
            }
        }
        looked.block.treasuries.sort_unstable_by_key(|view| view.treasury);
        if let Some(why) = looked.unread.values().next() {
            let is_endpoints = |why: &Refusal| matches!(why, Refusal::NoView { .. });
            if looked.states.is_empty() && looked.unread.values().all(is_endpoints) {
                return Err(why.clone());
            }
            self.still_has(head).await?;
        }
        Ok(looked)
    }

    /// Whether the endpoints still answer, and for this block.
    async fn still_has(&self, head: &Head) -> Result<(), Refusal> {
        let hash = head.hash;
        let block = self.agreed("a block", |c| async move { c.block(hash).await }).await?;
        block.map(drop).ok_or_else(|| unseen("the block is gone"))
    }

    /// The endpoint URL of the active lease, for a probe.
    pub async fn endpoint(&self, market: Address, lease: u64) -> Result<String, Refusal> {
        let seen = self.agreed("a lease", |c| async move { c.market(market).lease(lease).await }).await?;
        Ok(seen.lease.endpoint)
    }
}

impl Looked {
    fn add(&mut self, treasury: Address, seen: Result<Seen, Refusal>) {
        match seen {
            Ok((state, view, offers)) => {
                self.states.insert(treasury, state);
                self.block.treasuries.push(view);
                self.block.offers.insert(treasury, offers);
            }
            Err(why) => drop(self.unread.insert(treasury, why)),
        }
    }
}

fn view_of(
    treasury: Address,
    birth: &Birth,
    state: &State,
    active: Option<LeaseView>,
    standby: Option<LeaseView>,
    (me, seat): (Address, &Seat),
) -> TreasuryView {
    let (t, p) = (&birth.timers, &birth.policy);
    let balance = u128::try_from(state.balance).unwrap_or(u128::MAX);
    TreasuryView {
        treasury,
        alive: state.stage() == Stage::Alive,
        has_code: !state.codeHash.is_zero(),
        restoring: state.restoring,
        operator: Some(state.operator).filter(|o| !o.is_zero()),
        epoch: state.epoch,
        order_nonce: u64::try_from(state.orderNonce).unwrap_or(u64::MAX),
        last_heartbeat: state.lastHeartbeat,
        challenged_at: state.challengedAt,
        taken_over_at: state.takenOverAt,
        timers: Timers {
            heartbeat_every: t.heartbeatEvery.into(),
            fence: t.fence.into(),
            answer_time: t.answerTime.into(),
            restore_timeout: t.restoreTimeout.into(),
            silence: t.silence.into(),
        },
        policy: Policy {
            price_e6_max: p.priceE6Max,
            term_max: p.termMax.into(),
            prepay_max: p.prepayMax.into(),
            starve_floor_uusdc: p.starveFloor,
        },
        active,
        standby,
        asleep: false,
        balance_uusdc: balance,
        spendable_uusdc: balance.min(p.dayLimit.saturating_sub(state.spentInDay)),
        barred: Vec::new(),
        my_place: seat.place(),
        may_challenge: matches!(seat, Seat::Key { .. }),
        may_rescue: !state.paused && may_rescue(birth, me),
        checkpoint_seq: state.checkpointSeq,
        endable_at: None,
        closable_at: (state.stage() == Stage::WindingDown)
            .then(|| state.windDownAt.saturating_add(t.refundWindow.into())),
    }
}

/// Whether `birth` lets the daemon with this key rescue without a person. The quorum takes that back with new stewards.
pub fn may_rescue(birth: &Birth, daemon: Address) -> bool {
    birth.options.rescueThreshold != 0 && birth.options.rescuers.contains(&daemon)
}

/// `ITreasury.Reason.Frozen`.
const FROZEN: u8 = 4;

/// From when on the treasury's silence lets it be wound down for hunger or a frozen token.
fn silent_from(birth: &Birth, state: &State) -> u64 {
    state.lastHeartbeat.saturating_add(birth.timers.starveTimeout.into()).saturating_add(1)
}

/// As `ITreasury.windDown` allows it to anyone. An agent that beats is never starved, and while it beats a stopped one
/// ends its own affairs. `frozen`: the treasury says so now.
fn endable_at(birth: &Birth, state: &State, frozen: bool) -> Option<u64> {
    match state.stage() {
        Stage::Stopped => Some(state.lastHeartbeat),
        Stage::Alive => {
            let timeout = u64::from(birth.timers.starveTimeout);
            // One that still beats is ending its own affairs, and gets that long for it.
            let over = state.mandateUntil.saturating_add(1);
            let mandate = state.lastHeartbeat.clamp(over, over.saturating_add(timeout));
            let funds = state.balance.saturating_add(state.escrow);
            let starved = funds < U256::from(birth.policy.starveFloor);
            Some(if starved || frozen { mandate.min(silent_from(birth, state)) } else { mandate })
        }
        Stage::Unborn | Stage::WindingDown | Stage::Closed => None,
    }
}

/// The code of a minimal proxy (ERC-1167).
pub(crate) fn clone_of(implementation: Address) -> Bytes {
    let (before, after) = (hex!("363d3d373d3d3d363d73"), hex!("5af43d82803e903d91602b57fd5bf3"));
    [&before[..], implementation.as_slice(), &after].concat().into()
}

/// The last block to ask for in one look at the logs from `from` to `to`.
fn last_of_piece(from: u64, to: u64) -> u64 {
    to.min(from.saturating_add(LOG_BLOCKS_MAX - 1))
}

/// A digest as the chain has it: zero before the first checkpoint.
pub fn some_digest(digest: B256) -> Option<B256> {
    (!digest.is_zero()).then_some(digest)
}

fn no_view(e: chain::Error) -> Refusal {
    let why = e.to_string();
    match e.kind {
        chain::Kind::Reverted(_) | chain::Kind::Missing => Refusal::Unreadable { why },
        _ => Refusal::NoView { why },
    }
}

fn unseen(why: &str) -> Refusal {
    Refusal::NoView { why: why.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stand_in::{answers, block, callee, endpoint, failure};
    use serde_json::{Value, json};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[tokio::test]
    async fn an_agent_that_cannot_be_read_hides_no_other() {
        let [well, reverts, burns] = [1, 2, 3].map(Address::repeat_byte);
        let hash = B256::repeat_byte(0xb1);
        let head = Head { number: 9, hash, parent: B256::ZERO, timestamp: 1_000, base_fee: 0 };
        let is_there = Arc::new(AtomicBool::new(true));
        let has_block = is_there.clone();
        let state = State { stage: 1, operator: well, lastHeartbeat: 1_000, ..State::default() };
        let chain = endpoint(move |method, params| match method {
            "eth_getBlockByHash" if has_block.load(Ordering::SeqCst) => Ok(block(9, hash, 1_000)),
            "eth_getBlockByHash" => Ok(Value::Null),
            // A token or a market of its creator's choice.
            _ if callee(params) == reverts => Err(json!({ "code": 3, "message": "execution reverted", "data": "0x" })),
            _ if callee(params) == burns => Err(failure("out of gas")),
            _ => answers::<Treasury::stateCall>(params, &state).ok_or_else(|| failure(method)),
        });
        let eyes = Eyes::new(&[chain.await], 31337).unwrap();
        let look = async |agents: &[Address]| {
            let one = |agent: &Address| (*agent, (Birth::default(), Seat::Key { place: 0 }));
            eyes.block(&agents.iter().map(one).collect(), well, &head).await
        };
        let looked = look(&[burns, reverts, well]).await.unwrap();
        let seen: Vec<Address> = looked.block.treasuries.iter().map(|view| view.treasury).collect();
        assert_eq!((seen, looked.states.contains_key(&well)), (vec![well], true));
        let unread: Vec<_> = looked.unread.iter().map(|(agent, why)| (*agent, why.code())).collect();
        assert_eq!(unread, [(reverts, "unreadable"), (burns, "no_view")]);
        // The contract's word is enough; that nobody answers is the endpoint's fault until it answers somebody.
        assert_eq!(look(&[reverts]).await.unwrap().unread.len(), 1);
        assert_eq!(look(&[burns]).await.unwrap_err().code(), "no_view");
        is_there.store(false, Ordering::SeqCst);
        assert_eq!(look(&[reverts, well]).await.unwrap_err().code(), "no_view");
        assert_eq!(look(&[well]).await.unwrap().block.treasuries.len(), 1);
    }

    #[test]
    fn a_frozen_agent_may_be_ended_once_it_was_silent_like_a_starved_one() {
        let mut birth = Birth::default();
        (birth.timers.starveTimeout, birth.policy.starveFloor) = (15, 1_000);
        let balance = U256::from(5_000);
        let rich = State { stage: 1, lastHeartbeat: 100, mandateUntil: 9_000, balance, ..State::default() };
        assert_eq!(rich.stage(), Stage::Alive);
        assert_eq!(endable_at(&birth, &rich, false), Some(9_001));
        assert_eq!(endable_at(&birth, &rich, true), Some(116));
        let poor = State { balance: U256::from(999), ..rich };
        assert_eq!(endable_at(&birth, &poor, false), Some(116));
    }

    #[test]
    fn a_mandate_without_end_and_times_beyond_all_clocks_are_no_overflow() {
        let mut birth = Birth::default();
        (birth.timers.starveTimeout, birth.timers.refundWindow, birth.policy.starveFloor) = (15, 6, 1_000);
        let never = State { stage: 1, lastHeartbeat: 100, mandateUntil: u64::MAX, ..State::default() };
        assert_eq!(endable_at(&birth, &never, false), Some(116));
        let rich = State { balance: U256::MAX, escrow: U256::MAX, ..never };
        assert_eq!(endable_at(&birth, &rich, false), Some(u64::MAX));
        let late = State { lastHeartbeat: u64::MAX, windDownAt: u64::MAX, ..rich };
        assert_eq!((endable_at(&birth, &late, true), silent_from(&birth, &late)), (Some(u64::MAX), u64::MAX));
        let ending = State { stage: 3, ..late };
        assert_eq!(ending.stage(), Stage::WindingDown);
        let seen = view_of(Address::ZERO, &birth, &ending, None, None, (Address::ZERO, &Seat::Key { place: 0 }));
        assert_eq!(seen.closable_at, Some(u64::MAX));
    }
}
