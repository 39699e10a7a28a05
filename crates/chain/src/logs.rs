//! Events in the order of the chain, each once, and taken back when the chain takes them back.
//!
//! [`LogCore`] is pure: it holds the last blocks it reported and says which of them a new branch replaces.
//! [`LogReader`] fetches headers and logs *by block hash*, so that what it reports up to a head is exactly what the
//! state at that head came from.

use alloy::{
    primitives::{Address, B256, Bytes, LogData},
    rpc::types::{Filter, Log},
    sol_types::{SolEvent, SolEventInterface},
};
use borsh::{BorshDeserialize, BorshSerialize};
use std::collections::{BTreeMap, VecDeque};

use crate::{
    bindings::{MarketEvent, TestUSDC, TreasuryEvent},
    error::Error,
    heads::agreed,
    rpc::{Chain, Head},
};

/// Blocks in which a reorg is noticed and undone. Deeper ones are an error: nothing in the protocol survives them.
pub const WINDOW: u64 = 64;

/// Blocks asked for at once when far behind; fewer from an endpoint that does not answer for so many.
const RANGE: u64 = 1_000;

/// Which contracts to listen to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sources {
    /// All events of this treasury.
    pub treasury: Address,
    /// All events of this market, whoever's leases they are about.
    pub market: Address,
    /// Of this token only transfers to or from the treasury.
    pub usdc: Address,
}

/// One event in one block.
#[derive(Clone, Debug, PartialEq)]
pub struct ChainLog {
    /// Height.
    pub block: u64,
    /// The block.
    pub block_hash: B256,
    /// Position in the block.
    pub index: u64,
    /// The transaction that emitted it.
    pub tx: B256,
    /// Who emitted it.
    pub address: Address,
    /// What it says.
    pub event: Event,
    /// What it says, as it came.
    pub data: LogData,
}

/// Every event that concerns an agent.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// Of the treasury.
    Treasury(TreasuryEvent),
    /// Of the lease market.
    Market(MarketEvent),
    /// Micro-USDC to or from the treasury.
    Transfer {
        /// Payer; the zero address when minted.
        from: Address,
        /// Payee.
        to: Address,
        /// Micro-USDC.
        amount: u128,
    },
}

/// What [`LogReader::poll`] reports, in order.
#[derive(Clone, Debug, PartialEq)]
pub enum LogItem {
    /// It happened.
    Emitted(ChainLog),
    /// It was reported before, and its block is no longer part of the chain. Newest first.
    Reverted(ChainLog),
    /// No block from this height on is what it was, whether it had such logs or not. Told after them.
    TakenBack { from: u64 },
}

impl LogItem {
    /// The log that happened or was taken back.
    pub fn log(&self) -> Option<&ChainLog> {
        match self {
            Self::Emitted(log) | Self::Reverted(log) => Some(log),
            Self::TakenBack { .. } => None,
        }
    }
}

/// What was reported so far: the machine's whole state, small enough to journal.
#[derive(Clone, Debug)]
pub struct LogCore {
    sources: Sources,
    /// The first block not reported yet.
    next: u64,
    /// The lowest height that can still be taken back.
    floor: u64,
    /// The newest reported blocks, oldest first, without gaps in height. One below `floor` may be among them: the
    /// block that a branch hangs on.
    window: VecDeque<Seen>,
}

#[derive(Clone, Debug)]
struct Seen {
    number: u64,
    hash: B256,
    logs: Vec<ChainLog>,
}

/// What a new head means for what was reported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// The head was reported already, or is older than what was: a lagging endpoint.
    Nothing,
    /// Blocks so old that no reorg of theirs is undone: report `first..=last` by range.
    Range {
        /// First height.
        first: u64,
        /// Last height.
        last: u64,
    },
    /// The header with this hash is needed to see how the head hangs together with what was reported.
    NeedHeader(B256),
    /// The branch is known: take back what was reported at these heights and above, then report these blocks.
    Branch {
        /// The new blocks, oldest first; never empty.
        blocks: Vec<Head>,
    },
}

impl LogCore {
    /// Reports from block `from` on.
    pub fn new(sources: Sources, from: u64) -> Self {
        Self { sources, next: from, floor: from, window: VecDeque::new() }
    }

    /// Reports from the block on that hangs on this one, of which was read what is known of it and of those before. A branch
    /// below it is an error, as one below the window.
    pub fn after(sources: Sources, (number, hash): (u64, B256)) -> Self {
        let window = VecDeque::from([Seen { number, hash, logs: Vec::new() }]);
        Self { sources, next: number + 1, floor: number + 1, window }
    }

    /// The first height that was not reported yet.
    pub fn next_block(&self) -> u64 {
        self.next
    }

    /// What to do about `head`, given the headers fetched so far on the way down from it (by hash).
    ///
    /// # Errors
    /// `Unknown` for a reorg deeper than the window, or than what this began with.
    pub fn plan(&self, head: Head, headers: &BTreeMap<B256, Head>) -> Result<Step, Error> {
        if head.number < self.floor || self.seen(head.number).is_some_and(|s| s.hash == head.hash) {
            return Ok(Step::Nothing);
        }
        if head.number >= self.next + WINDOW {
            let last = (head.number - WINDOW).min(self.next + RANGE - 1);
            return Ok(Step::Range { first: self.next, last });
        }
        let mut blocks = vec![head];
        let mut cursor = head;
        loop {
            let below = cursor.number.checked_sub(1).and_then(|number| self.seen(number));
            if below.is_some_and(|s| s.hash == cursor.parent) {
                break;
            }
            if cursor.number == self.floor {
                if below.is_some() {
                    return Err(self.too_deep());
                }
                break;
            }
            let Some(parent) = headers.get(&cursor.parent) else { return Ok(Step::NeedHeader(cursor.parent)) };
            cursor = *parent;
            blocks.push(cursor);
        }
        blocks.reverse();
        Ok(Step::Branch { blocks })
    }

    fn too_deep(&self) -> Error {
        Error::unknown(format!(
            "a reorg below block {}: deeper than {WINDOW} blocks, or than what was read",
            self.floor
        ))
    }

    /// The newest reported block.
    pub fn newest(&self) -> Option<(u64, B256)> {
        self.window.back().map(|s| (s.number, s.hash))
    }

    fn seen(&self, number: u64) -> Option<&Seen> {
        let first = self.window.front()?.number;
        self.window.get(usize::try_from(number.checked_sub(first)?).ok()?)
    }

    /// Takes back every block from height `first` on.
    pub fn revert_from(&mut self, first: u64, out: &mut Vec<LogItem>) {
        let known = self.window.len();
        while self.window.back().is_some_and(|s| s.number >= first) {
            let Some(gone) = self.window.pop_back() else { break };
            self.next = gone.number;
            out.extend(gone.logs.into_iter().rev().map(LogItem::Reverted));
        }
        if self.window.len() < known {
            out.push(LogItem::TakenBack { from: self.next });
        }
    }

    /// Takes the logs of the next block, which must hang on the newest one.
    pub fn extend(&mut self, block: &Head, logs: Vec<ChainLog>, out: &mut Vec<LogItem>) {
        assert_eq!(block.number, self.next, "blocks come in order");
        out.extend(logs.iter().cloned().map(LogItem::Emitted));
        self.window.push_back(Seen { number: block.number, hash: block.hash, logs });
        self.next = block.number + 1;
        // One block more than can be taken back: the one that a branch hangs on.
        while self.window.front().is_some_and(|s| s.number + WINDOW < block.number) {
            self.window.pop_front();
        }
        if let Some(oldest) = self.window.front().filter(|s| s.number + WINDOW == block.number) {
            self.floor = oldest.number + 1;
        }
    }

    /// Takes the logs of all blocks up to `last`, too old to be undone.
    pub fn extend_range(&mut self, last: u64, logs: Vec<ChainLog>, out: &mut Vec<LogItem>) {
        out.extend(logs.into_iter().map(LogItem::Emitted));
        self.window.clear();
        (self.next, self.floor) = (last + 1, last + 1);
    }

    /// Reads one log; `None` for what does not concern the agent.
    ///
    /// # Errors
    /// `Missing` when one of the contracts emits what its ABI does not have; `Rpc` for an incomplete log.
    pub fn decode(&self, log: &Log) -> Result<Option<ChainLog>, Error> {
        let (Some(block), Some(block_hash), Some(index), Some(tx)) =
            (log.block_number, log.block_hash, log.log_index, log.transaction_hash)
        else {
            return Err(Error::rpc("a log without its block"));
        };
        let address = log.inner.address;
        let data = log.inner.data.clone();
        let Some(event) = self.event(address, &data)? else { return Ok(None) };
        Ok(Some(ChainLog { block, block_hash, index, tx, address, event, data }))
    }

    fn event(&self, address: Address, data: &LogData) -> Result<Option<Event>, Error> {
        let Sources { treasury, market, usdc } = self.sources;
        let (topics, bytes) = (data.topics(), &data.data);
        let strange = |e| Error::missing(format!("the contract at {address} emits what its ABI lacks")).with_source(e);
        if address == treasury {
            return TreasuryEvent::decode_raw_log(topics, bytes).map(|e| Some(Event::Treasury(e))).map_err(strange);
        }
        if address == market {
            return MarketEvent::decode_raw_log(topics, bytes).map(|e| Some(Event::Market(e))).map_err(strange);
        }
        if address != usdc || topics.first() != Some(&TestUSDC::Transfer::SIGNATURE_HASH) {
            return Ok(None);
        }
        let TestUSDC::Transfer { from, to, value } =
            TestUSDC::Transfer::decode_raw_log(topics.iter().copied(), bytes).map_err(strange)?;
        if from != treasury && to != treasury {
            return Ok(None);
        }
        let amount = value.try_into().map_err(|_| Error::missing(format!("impossible transfer of {value}")))?;
        Ok(Some(Event::Transfer { from, to, amount }))
    }

    // ------------------------------------------------------------------ kept between runs

    /// The state, for the journal: at most 65 blocks and their logs.
    pub fn to_bytes(&self) -> Vec<u8> {
        let window = self.window.iter().map(|seen| SeenParts {
            number: seen.number,
            hash: seen.hash.0,
            logs: seen.logs.iter().map(LogParts::of).collect(),
        });
        let parts = CoreParts { next: self.next, floor: self.floor, window: window.collect() };
        borsh::to_vec(&parts).expect("writing to memory does not fail")
    }

    /// The state as [`LogCore::to_bytes`] left it: blocks that were reorged away in between are reverted.
    ///
    /// # Errors
    /// `Usage` when the bytes are something else.
    pub fn from_bytes(bytes: &[u8], sources: Sources) -> Result<Self, Error> {
        let parts: CoreParts =
            borsh::from_slice(bytes).map_err(|e| Error::usage("not a log reader's state").with_source(e))?;
        let mut core = Self { sources, next: parts.next, floor: parts.floor, window: VecDeque::new() };
        for SeenParts { number, hash, logs } in parts.window {
            let mut seen = Seen { number, hash: hash.into(), logs: Vec::with_capacity(logs.len()) };
            for log in logs {
                seen.logs.push(log.into_log(number, seen.hash, &core)?);
            }
            core.window.push_back(seen);
        }
        Ok(core)
    }
}

#[derive(BorshSerialize, BorshDeserialize)]
struct CoreParts {
    next: u64,
    floor: u64,
    window: Vec<SeenParts>,
}

#[derive(BorshSerialize, BorshDeserialize)]
struct SeenParts {
    number: u64,
    hash: [u8; 32],
    logs: Vec<LogParts>,
}

#[derive(BorshSerialize, BorshDeserialize)]
struct LogParts {
    index: u64,
    tx: [u8; 32],
    address: [u8; 20],
    topics: Vec<[u8; 32]>,
    data: Vec<u8>,
}

impl LogParts {
    fn of(log: &ChainLog) -> Self {
        Self {
            index: log.index,
            tx: log.tx.0,
            address: log.address.0.0,
            topics: log.data.topics().iter().map(|t| t.0).collect(),
            data: log.data.data.to_vec(),
        }
    }

    fn into_log(self, block: u64, block_hash: B256, core: &LogCore) -> Result<ChainLog, Error> {
        let topics = self.topics.into_iter().map(B256::from).collect();
        let data = LogData::new(topics, Bytes::from(self.data)).ok_or_else(|| Error::usage("a log has 4 topics"))?;
        let address = Address::from(self.address);
        let event = core.event(address, &data)?.ok_or_else(|| Error::usage("logs of other contracts"))?;
        Ok(ChainLog { block, block_hash, index: self.index, tx: self.tx.into(), address, event, data })
    }
}

/// Reads logs over RPC.
#[derive(Clone, Debug)]
pub struct LogReader {
    chains: Vec<Chain>,
    core: LogCore,
    /// Blocks to ask for at once.
    range: u64,
}

impl LogReader {
    /// A reader that goes on from `core` and reports what all `chains`, endpoints of one chain, say; at least one.
    pub fn new(chains: Vec<Chain>, core: LogCore) -> Self {
        assert!(!chains.is_empty(), "somebody must be asked");
        Self { chains, core, range: RANGE }
    }

    /// What was reported so far.
    pub fn core(&self) -> &LogCore {
        &self.core
    }

    /// Everything up to and including `head`, in order; first what a reorg took back. Nothing when `head` is not
    /// newer than what was reported. After an error nothing was reported and nothing is lost: call it again; far behind,
    /// fewer blocks are asked for at once then.
    ///
    /// # Errors
    /// `Rpc` (also when `head` was itself reorged away meanwhile, or endpoints differ), `Unknown` for a reorg that is too
    /// deep.
    pub async fn poll(&mut self, head: Head) -> Result<Vec<LogItem>, Error> {
        // Work on a copy: the caller hears all of it or nothing.
        let mut core = self.core.clone();
        let mut out = Vec::new();
        let mut headers = BTreeMap::new();
        loop {
            match core.plan(head, &headers)? {
                Step::Nothing => break,
                Step::NeedHeader(hash) => {
                    let header = self.chains[0].block(hash).await?;
                    let header = header.ok_or_else(|| Error::rpc(format!("block {hash} is gone: a reorg")))?;
                    headers.insert(hash, header);
                }
                Step::Range { .. } if self.lost_newest(&mut core, &mut out).await? => {}
                Step::Range { first, last } => {
                    let last = last.min(first + self.range - 1);
                    let range = |filter: Filter| filter.from_block(first).to_block(last);
                    let fetched = self.fetch(&core, &[range]).await;
                    if fetched.is_err() {
                        // Endpoints have bounds of blocks, of logs or of time.
                        self.range = (self.range / 2).max(1);
                    }
                    core.extend_range(last, fetched?.pop().unwrap_or_default(), &mut out);
                }
                Step::Branch { blocks } => {
                    let by_hash: Vec<_> =
                        blocks.iter().map(|b| b.hash).map(|hash| move |f: Filter| f.at_block_hash(hash)).collect();
                    let logs = self.fetch(&core, &by_hash).await?;
                    core.revert_from(blocks[0].number, &mut out);
                    for (block, logs) in blocks.iter().zip(logs) {
                        core.extend(block, logs, &mut out);
                    }
                    break;
                }
            }
        }
        self.core = core;
        self.range = (2 * self.range).min(RANGE);
        Ok(out)
    }

    /// Far behind, headers are not walked: asks instead by height whether the newest reported block still stands,
    /// and takes it back if not.
    async fn lost_newest(&self, core: &mut LogCore, out: &mut Vec<LogItem>) -> Result<bool, Error> {
        let Some((number, hash)) = core.newest() else { return Ok(false) };
        if self.chains[0].block_at(number).await?.is_some_and(|block| block.hash == hash) {
            return Ok(false);
        }
        if number < core.floor {
            return Err(core.too_deep());
        }
        core.revert_from(number, out);
        Ok(true)
    }

    /// The logs of several selections of blocks, each in order. A selection takes three filters, because a filter
    /// cannot say "to *or* from".
    async fn fetch(&self, core: &LogCore, blocks: &[impl Fn(Filter) -> Filter]) -> Result<Vec<Vec<ChainLog>>, Error> {
        agreed(&self.chains, "events", |chain| Self::fetch_from(chain, core, blocks)).await
    }

    async fn fetch_from(
        chain: Chain,
        core: &LogCore,
        blocks: &[impl Fn(Filter) -> Filter],
    ) -> Result<Vec<Vec<ChainLog>>, Error> {
        let Sources { treasury, market, usdc } = core.sources;
        let transfer = || Filter::new().address(usdc).event_signature(TestUSDC::Transfer::SIGNATURE_HASH);
        let filters = blocks.iter().flat_map(|select| {
            let ours = Filter::new().address(vec![treasury, market]);
            [ours, transfer().topic1(treasury), transfer().topic2(treasury)].map(|filter| (select(filter),))
        });
        let answers: Vec<Result<Vec<Log>, Error>> = chain.request_many("eth_getLogs", filters.collect()).await?;
        let mut selections = Vec::with_capacity(blocks.len());
        let mut answers = answers.into_iter();
        for _ in blocks {
            let mut logs = BTreeMap::new();
            for answer in answers.by_ref().take(3) {
                for log in answer? {
                    if let Some(log) = core.decode(&log)? {
                        // By position, so a transfer to oneself that two filters find counts once.
                        logs.insert((log.block, log.index), log);
                    }
                }
            }
            selections.push(logs.into_values().collect());
        }
        Ok(selections)
    }
}

#[cfg(test)]
mod tests;
