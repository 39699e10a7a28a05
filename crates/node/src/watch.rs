//! Looking at the chain: one snapshot a block, with the events in between when they concern this node.

use crate::context::Context;
use crate::fence::boottime_ms;
use crate::main_loop::Event;
use alloy::eips::BlockId;
use alloy::primitives::{Address, B256, U256};
use chain::bindings::{Policy, Stage, State, TreasuryEvent};
use chain::heads::{agreed, common_head};
use chain::logs::{Event as ChainEvent, LogCore, LogItem, LogReader, Sources};
use chain::{Chain, Head, LeaseView, OfferView, Snapshot};
use economy::View;
use net::chain_of;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch as channel;

/// Between two questions to a chain that did not answer.
const ASK_AGAIN: Duration = Duration::from_millis(500);

/// Everything read at one block.
pub struct News {
    /// When the chain was asked for it, ms since boot: an answer that lay in a stopped process is as old as its question.
    pub asked_ms: u64,
    pub head: Head,
    pub state: State,
    pub limits: Policy,
    pub active: Option<LeaseView>,
    pub standby: Option<LeaseView>,
    pub draining: Option<LeaseView>,
    pub offers: Vec<OfferView>,
    pub operator_wei: U256,
    pub relay_wei: U256,
    pub treasury_wei: U256,
    /// In the purse, micro-USDC; zero without one.
    pub purse: u128,
    /// Events up to and including this block, if they were asked for.
    pub logs: Option<Vec<LogItem>>,
    /// Of their transactions those whose transfer to the treasury its payer had signed.
    pub signed: BTreeSet<B256>,
}

/// The log reader, and what it takes beside its logs to tell payments from gifts.
struct Reader {
    logs: LogReader,
    /// Read, and not told yet: a question about them failed. Until it is answered no block is told, and the node stops
    /// selling at its fence.
    waiting: Vec<LogItem>,
    /// What was found out of the last blocks' transactions, so that a reorg takes back what was told: height, and
    /// whether the payer had signed.
    known: BTreeMap<B256, (u64, bool)>,
}

/// So many transactions are asked about at once. What is answered of them stays known when the endpoint fails at the next,
/// so that a look with thousands of gifts comes to its end.
const ASKED_AT_ONCE: usize = 100;
/// Longer than the log reader takes anything back.
const KNOWN_BLOCKS: u64 = 2 * chain::logs::WINDOW;

impl Reader {
    fn new(logs: LogReader) -> Self {
        Self { logs, waiting: Vec::new(), known: BTreeMap::new() }
    }

    /// As [`LogReader::poll`], with the transactions whose transfers were signed. Nothing more is read until what was read
    /// before is known, so that what waits does not grow with the chain.
    async fn poll(&mut self, cx: &Context, head: Head) -> Result<(Vec<LogItem>, BTreeSet<B256>), chain::Error> {
        self.ask(cx).await?;
        self.waiting.extend(self.logs.poll(head).await?);
        let incoming = self.ask(cx).await?;
        let is_signed = |tx: &B256| self.known.get(tx).is_some_and(|(_, is_signed)| *is_signed);
        let signed = incoming.into_iter().filter(is_signed).collect();
        self.known.retain(|_, (block, _)| *block + KNOWN_BLOCKS > head.number);
        Ok((std::mem::take(&mut self.waiting), signed))
    }

    /// The transactions of strangers' transfers among what waits, of each of which it is known then whether its payer had
    /// signed.
    async fn ask(&mut self, cx: &Context) -> Result<Vec<B256>, chain::Error> {
        let incoming = |item: &LogItem| {
            let log = item.log()?;
            let ChainEvent::Transfer { from, to, .. } = log.event else { return None };
            // Payments of the market, the channels and the purse explain themselves.
            let known = [Address::ZERO, cx.config.lease_market, cx.birth.options.channels, cx.suppliers.purse];
            let strange = !known.contains(&from);
            (to == cx.config.treasury && strange).then_some((log.tx, log.block))
        };
        let mut incoming: BTreeMap<B256, u64> = self.waiting.iter().filter_map(incoming).collect();
        for log in self.waiting.iter().filter_map(LogItem::log) {
            if matches!(log.event, ChainEvent::Treasury(TreasuryEvent::ExactSettled(_))) {
                incoming.remove(&log.tx);
            }
        }
        let strange: Vec<B256> = incoming.keys().filter(|tx| !self.known.contains_key(*tx)).copied().collect();
        for some in strange.chunks(ASKED_AT_ONCE) {
            let found = cx.chain.usdc(cx.birth.token).signed_transfers(some).await?;
            for tx in some {
                self.known.insert(*tx, (incoming[tx], found.contains(tx)));
            }
        }
        Ok(incoming.into_keys().collect())
    }
}

/// The block after which events are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadAfter {
    pub height: u64,
    /// What was read hangs on it; `None` if nothing was.
    pub hash: Option<B256>,
}

impl ReadAfter {
    fn reader(self, cx: &Context) -> Reader {
        let core = match self.hash {
            Some(hash) => LogCore::after(sources(cx), (self.height, hash)),
            None => LogCore::new(sources(cx), self.height + 1),
        };
        Reader::new(LogReader::new(cx.chains.clone(), core))
    }
}

/// Follows the head and tells the main loop, and whoever waits for it, of each new block. Ends with the main loop.
pub async fn watch(cx: Arc<Context>, every: Duration, mut logs_from: channel::Receiver<Option<ReadAfter>>) {
    let mut last = None;
    let mut reader: Option<Reader> = None;
    let mut interval = tokio::time::interval(every);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = interval.tick() => {}
            changed = logs_from.changed() => {
                if changed.is_err() {
                    return;
                }
                reader = logs_from.borrow_and_update().map(|after| after.reader(&cx));
                last = None;
            }
        }
        match look(&cx, last, reader.as_mut()).await {
            Ok(None) => {}
            Ok(Some(news)) => {
                last = Some(news.head.hash);
                cx.head.send_replace(news.head.number);
                cx.tell(Event::Chain(Box::new(news))).await;
            }
            // A branch below what this reader began with: where it goes on from is asked anew.
            Err(e) if e.kind == chain::Kind::Unknown && reader.take().is_some() => {
                last = None;
                cx.tell(Event::ReadAnew(chain_of(&e))).await;
            }
            Err(e) => cx.tell(Event::ChainLost(chain_of(&e))).await,
        }
        if cx.events.is_closed() {
            return;
        }
    }
}

/// The height of the first of these blocks (newest first) that the chain still has, 0 if it has none of them. Asks
/// until the chain answers.
pub async fn newest_standing(cx: &Context, read: Vec<(u64, [u8; 32])>) -> u64 {
    let mut read = read.into_iter().peekable();
    while let Some((number, hash)) = read.peek().copied() {
        match cx.chain.block_at(number).await {
            Ok(Some(block)) if block.hash == hash => return number,
            Ok(_) => drop(read.next()),
            Err(e) => {
                cx.tell(Event::ChainLost(chain_of(&e))).await;
                tokio::time::sleep(ASK_AGAIN).await;
            }
        }
    }
    0
}

fn sources(cx: &Context) -> Sources {
    Sources { treasury: cx.config.treasury, market: cx.config.lease_market, usdc: cx.birth.token }
}

async fn look(
    cx: &Context,
    last: Option<alloy::primitives::B256>,
    reader: Option<&mut Reader>,
) -> Result<Option<News>, chain::Error> {
    let asked_ms = boottime_ms();
    let head = common_head(&cx.chains).await?;
    if last == Some(head.hash) {
        return Ok(None);
    }
    let (treasury, market) = (cx.config.treasury, cx.config.lease_market);
    let look = |chain: Chain| async move { chain.treasury(treasury).snapshot_at(market, head).await };
    let snapshot: Snapshot = agreed(&cx.chains, "the treasury", look).await?;
    let (token, purse) = (cx.birth.token, cx.suppliers.purse);
    let holds = |chain: Chain| async move { chain.usdc(token).balance_at(purse, BlockId::hash(head.hash)).await };
    let purse = if purse.is_zero() { U256::ZERO } else { agreed(&cx.chains, "the purse", holds).await? };
    let (logs, signed) = match reader {
        Some(reader) => {
            let (logs, signed) = reader.poll(cx, snapshot.head).await?;
            (Some(logs), signed)
        }
        None => (None, BTreeSet::new()),
    };
    Ok(Some(News {
        asked_ms,
        head: snapshot.head,
        state: snapshot.state,
        limits: snapshot.limits,
        active: snapshot.active,
        standby: snapshot.standby,
        draining: snapshot.draining,
        offers: snapshot.offers,
        operator_wei: snapshot.operator_wei,
        relay_wei: snapshot.relay_wei,
        treasury_wei: snapshot.treasury_wei,
        purse: purse.saturating_to(),
        logs,
        signed,
    }))
}

impl News {
    /// Whether the active lease runs what the quorum last named: not between `setCode` and the next move.
    pub fn runs_the_code(&self) -> bool {
        self.active.as_ref().is_some_and(|active| active.lease.codeHash == self.state.codeHash)
    }

    /// The pure machine's view of this block.
    pub fn view(&self, me: Address) -> View {
        let state = &self.state;
        View {
            number: self.head.number,
            timestamp: self.head.timestamp,
            stage: match state.stage() {
                Stage::Unborn => economy::Stage::Unborn,
                Stage::Alive => economy::Stage::Alive,
                Stage::Stopped => economy::Stage::Stopped,
                Stage::WindingDown => economy::Stage::WindingDown,
                Stage::Closed => economy::Stage::Closed,
            },
            paused: state.paused,
            restoring: state.restoring,
            epoch: state.epoch,
            operator_is_me: state.operator == me,
            active: self.active.as_ref().map(lease_view),
            standby: self.standby.as_ref().map(lease_view),
            draining: self.draining.as_ref().map(lease_view),
            announced: state.announcedLease.saturating_to(),
            announced_at: state.announcedAt,
            checkpoint_seq: state.checkpointSeq,
            last_heartbeat: state.lastHeartbeat,
            challenged_at: state.challengedAt,
            balance: economy::Usdc(state.balance.saturating_to()),
            escrow: economy::Usdc(state.escrow.saturating_to()),
            purse: economy::Usdc(self.purse),
            spent_in_day: economy::Usdc(state.spentInDay),
            operator_gas_wei: self.operator_wei.saturating_to(),
            relay_gas_wei: self.relay_wei.saturating_to(),
            treasury_gas_wei: self.treasury_wei.saturating_to(),
            mandate_until: state.mandateUntil,
            wind_down_at: state.windDownAt,
            limits: limits(&self.limits),
            offers: self.offers.iter().filter(|o| o.staked).map(offer_view).collect(),
        }
    }
}

fn limits(policy: &Policy) -> economy::Limits {
    economy::Limits {
        day_limit: economy::Usdc(policy.dayLimit),
        price_e6_max: policy.priceE6Max,
        term_max: policy.termMax,
        prepay_max: policy.prepayMax,
        gas_day_max_wei: policy.gasDayMax,
        gas_target_wei: policy.gasTarget,
        starve_floor: economy::Usdc(policy.starveFloor),
    }
}

fn lease_view(view: &LeaseView) -> economy::LeaseView {
    let lease = &view.lease;
    economy::LeaseView {
        id: view.id,
        offer: lease.offer.saturating_to(),
        provider: lease.provider.into_array(),
        price_e6: lease.priceE6,
        start: lease.start,
        end: lease.end,
        ready_by: lease.readyBy,
        ready: lease.status() == chain::LeaseStatus::Ready,
        escrow_left: economy::Usdc(view.escrow_left()),
    }
}

fn offer_view(view: &OfferView) -> economy::OfferView {
    economy::OfferView {
        id: view.id,
        provider: view.offer.provider.into_array(),
        price_e6: view.offer.priceE6,
        free: view.offer.capacity.saturating_sub(view.offer.used),
        min_term: view.offer.minTerm,
        max_term: view.offer.maxTerm,
        served: view.record.served,
        failed: view.record.failed,
    }
}

#[cfg(test)]
impl News {
    /// The first block of a chain on which this node is operator, in epoch 1.
    pub fn for_tests(cx: &Context) -> Self {
        let state = State { operator: cx.me(), relay: cx.relay.address(), epoch: 1, ..State::default() };
        Self {
            asked_ms: boottime_ms(),
            head: Head { number: 1, hash: B256::repeat_byte(1), parent: B256::ZERO, timestamp: 1_000, base_fee: 1 },
            state,
            limits: Policy::default(),
            active: None,
            standby: None,
            draining: None,
            offers: Vec::new(),
            operator_wei: U256::from(u64::MAX),
            relay_wei: U256::from(u64::MAX),
            treasury_wei: U256::ZERO,
            purse: 0,
            logs: None,
            signed: BTreeSet::new(),
        }
    }
}

/// Did anything change that a decision could hang on? Time, block number and what accrues with time do not count:
/// for those the life asks to be woken. Of gas it counts whether it is low.
pub fn differs(a: &View, b: &View) -> bool {
    let steady = |view: &View| {
        let mut view = view.clone();
        view.number = 0;
        view.timestamp = 0;
        view.escrow = economy::Usdc::ZERO;
        view.operator_gas_wei = view.limits.is_key_low(view.operator_gas_wei).into();
        view.relay_gas_wei = view.limits.is_key_low(view.relay_gas_wei).into();
        view.treasury_gas_wei = view.limits.is_treasury_low(view.treasury_gas_wei).into();
        view.spent_in_day = economy::Usdc::ZERO;
        for lease in [&mut view.active, &mut view.standby, &mut view.draining].into_iter().flatten() {
            lease.escrow_left = economy::Usdc::ZERO;
        }
        view
    };
    steady(a) != steady(b)
}

#[cfg(test)]
mod tests;
