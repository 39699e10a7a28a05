//! Gathering the evidence over RPC. Asks in ranges, in two passes: the treasury first, then the leases it names.

use alloy::{
    eips::BlockId,
    hex,
    primitives::{Address, B256, Bytes, U256},
    rpc::types::{Block, Filter, Log},
    sol_types::{SolEvent, SolEventInterface, SolInterface},
};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};

use super::{Evidence, Fact, Relation, Sent, What, people};
use crate::{
    bindings::{BatchSettlement, Birth, ChannelConfig, LeaseMarket, MarketEvent, TestUSDC, Treasury, TreasuryEvent},
    error::Error,
    market::{LeaseView, id},
    rpc::{Chain, Head},
};

/// Blocks asked for at once: what public endpoints allow.
const RANGE: u64 = 1_000;
/// A chain up to this long is read whole; on a longer one the treasury's creation is searched for.
const SHORT_CHAIN: u64 = 100_000;
/// Topics that one filter names at most.
const TOPICS_MAX: usize = 64;

/// What to read.
#[derive(Clone, Copy, Debug, Default)]
pub struct Scope {
    /// The first block; `None`: the treasury's creation, or the whole of a short chain.
    pub from: Option<u64>,
    /// The last block; `None`: the newest.
    pub until: Option<u64>,
}

/// How far the reading is: what is read, how much of it, of how much.
pub type Step<'a> = (&'a str, u64, u64);

/// Reads everything that the chain says of `treasury`. `tell` hears of progress.
///
/// # Errors
/// `Missing` when there is no treasury, `Usage` for a range that cannot be, `Rpc` otherwise (an endpoint that does not
/// keep old states cannot say what stood at an old block).
pub async fn read(
    chain: &Chain,
    treasury: Address,
    scope: Scope,
    known: Vec<(Address, Relation)>,
    mut tell: impl FnMut(Step<'_>),
) -> Result<Evidence, Error> {
    chain.verify_chain().await?;
    let client = chain.treasury(treasury);
    client.verify().await?;
    let head = head(chain, scope.until).await?;
    let at = BlockId::number(head.number);
    let birth: Birth = chain.read(treasury, Treasury::birthOfCall {}, at).await?;
    let state = client.state_at(at).await?;
    let standing = chain.read(treasury, Treasury::standingCall {}, at).await?;
    let first_block = first_block(chain, treasury, scope.from, &head).await?;
    let token = chain.usdc(birth.token);
    let before = match first_block.checked_sub(1) {
        Some(before) => micro(token.balance_at(treasury, BlockId::number(before)).await?),
        None => 0,
    };
    let purse_balance = match standing.purse {
        Address::ZERO => 0,
        purse => micro(token.balance_at(purse, at).await?),
    };

    let reader = Reader { chain, first: first_block, last: head.number };
    let (mut raw, mut strange) = (BTreeMap::new(), 0);
    let own = reader.own_filters(treasury, standing.purse, &birth);
    reader.gather("treasury", own, &mut raw, &mut tell).await?;
    let mut leases: BTreeSet<U256> = BTreeSet::new();
    for log in raw.values().filter(|log| log.address() == birth.market) {
        leases.extend(log.topics().get(1).map(|lease| U256::from_be_bytes(lease.0)));
    }
    let of_leases = reader.lease_filters(birth.market, &leases);
    reader.gather("leases", of_leases, &mut raw, &mut tell).await?;
    let times = times(chain, &raw, &mut tell).await?;
    let mut facts = Vec::with_capacity(raw.len());
    for ((block, _), log) in &raw {
        match what(log, treasury, &birth) {
            Some(what) => {
                let at = times.get(block).copied().unwrap_or_default();
                facts.push(Fact { block: *block, at, tx: log.transaction_hash.unwrap_or_default(), what });
            }
            None => strange += 1,
        }
    }

    let sent = sent(chain, &facts, &mut tell).await?;
    let inward: BTreeSet<B256> = facts
        .iter()
        .filter(|fact| matches!(fact.what, What::Transfer { to, .. } if to == treasury))
        .map(|fact| fact.tx)
        .collect();
    let mut signed = BTreeSet::new();
    for some in Vec::from_iter(inward).chunks(256) {
        signed.extend(token.signed_transfers(some).await?);
    }
    let channels = channels(chain, treasury, &birth, &sent, at).await?;
    let mut customers = people::customers(&facts);
    customers.extend(channels.iter().map(|(config, _)| config.payer));
    let funding = reader.funding(birth.token, &customers, &mut tell).await?;
    let mut views: Vec<LeaseView> = Vec::with_capacity(leases.len());
    for lease in leases {
        views.push(chain.market(birth.market).lease_at(id(lease)?, at).await?);
    }
    Ok(Evidence {
        treasury,
        chain_id: chain.chain_id(),
        implementation: implementation(chain, treasury).await?,
        purse: standing.purse,
        purse_balance,
        unsettled: micro(standing.unsettled),
        birth,
        state,
        head,
        first_block,
        opening: before,
        facts,
        strange,
        leases: views,
        sent,
        channels,
        signed,
        funding,
        known,
    })
}

async fn head(chain: &Chain, until: Option<u64>) -> Result<Head, Error> {
    let newest = chain.head().await?;
    match until {
        None => Ok(newest),
        Some(block) if block > newest.number => {
            Err(Error::usage(format!("block {block} is not there yet; the newest is {}", newest.number)))
        }
        Some(block) => {
            chain.block_at(block).await?.ok_or_else(|| Error::rpc(format!("the endpoint has no block {block}")))
        }
    }
}

/// The treasury's creation, by halving; it needs an endpoint with old states.
async fn first_block(chain: &Chain, treasury: Address, from: Option<u64>, head: &Head) -> Result<u64, Error> {
    match from {
        Some(from) if from > head.number => {
            return Err(Error::usage(format!("block {from} lies behind the last one, {}", head.number)));
        }
        Some(from) => return Ok(from),
        None if head.number <= SHORT_CHAIN => return Ok(0),
        None => {}
    }
    let (mut without, mut with) = (0, head.number);
    while with - without > 1 {
        let middle = without + (with - without) / 2;
        let code: Result<Bytes, Error> =
            chain.request("eth_getCode", (treasury, BlockId::number(middle))).await.map_err(|e| {
                Error::rpc("the endpoint does not keep old states: name the first block yourself").with_source(e)
            });
        if code?.is_empty() { without = middle } else { with = middle }
    }
    Ok(with)
}

struct Reader<'a> {
    chain: &'a Chain,
    first: u64,
    last: u64,
}

/// Logs by their place, so that one which two filters find counts once.
type Raw = BTreeMap<(u64, u64), Log>;

impl Reader<'_> {
    fn own_filters(&self, treasury: Address, purse: Address, birth: &Birth) -> Vec<Filter> {
        let transfer = || Filter::new().address(birth.token).event_signature(TestUSDC::Transfer::SIGNATURE_HASH);
        let rented = LeaseMarket::LeaseRequested::SIGNATURE_HASH;
        let mut filters = vec![
            Filter::new().address(treasury),
            transfer().topic1(treasury),
            transfer().topic2(treasury),
            Filter::new().address(birth.market).event_signature(rented).topic3(treasury),
        ];
        let collected = [LeaseMarket::Owed::SIGNATURE_HASH, LeaseMarket::Collected::SIGNATURE_HASH];
        filters.push(Filter::new().address(birth.market).event_signature(collected.to_vec()).topic1(treasury));
        if !purse.is_zero() {
            filters.extend([transfer().topic1(purse), transfer().topic2(purse)]);
        }
        filters
    }

    fn lease_filters(&self, market: Address, leases: &BTreeSet<U256>) -> Vec<Filter> {
        let about = vec![
            LeaseMarket::LeaseReady::SIGNATURE_HASH,
            LeaseMarket::LeaseToppedUp::SIGNATURE_HASH,
            LeaseMarket::RentPaid::SIGNATURE_HASH,
            LeaseMarket::LeaseClosed::SIGNATURE_HASH,
        ];
        let leases: Vec<B256> = leases.iter().map(|lease| B256::from(*lease)).collect();
        let one =
            |leases: &[B256]| Filter::new().address(market).event_signature(about.clone()).topic1(leases.to_vec());
        leases.chunks(TOPICS_MAX).map(one).collect()
    }

    async fn gather(
        &self,
        what: &str,
        filters: Vec<Filter>,
        raw: &mut Raw,
        tell: &mut impl FnMut(Step<'_>),
    ) -> Result<(), Error> {
        let blocks = self.last - self.first + 1;
        let mut from = self.first;
        while from <= self.last && !filters.is_empty() {
            let to = self.last.min(from + RANGE - 1);
            let asked = filters.iter().map(|f| (f.clone().from_block(from).to_block(to),)).collect();
            let answers: Vec<Result<Vec<Log>, Error>> = self.chain.request_many("eth_getLogs", asked).await?;
            for answer in answers {
                for log in answer? {
                    let (Some(block), Some(index)) = (log.block_number, log.log_index) else {
                        return Err(Error::rpc("a log without its block"));
                    };
                    raw.insert((block, index), log);
                }
            }
            tell((what, to - self.first + 1, blocks));
            from = to + 1;
        }
        Ok(())
    }

    /// Who sent tokens to the customers, one hop back and not before the first block.
    async fn funding(
        &self,
        token: Address,
        customers: &BTreeSet<Address>,
        tell: &mut impl FnMut(Step<'_>),
    ) -> Result<Vec<(Address, Address)>, Error> {
        let customers: Vec<B256> = customers.iter().map(|c| c.into_word()).collect();
        let transfer = || Filter::new().address(token).event_signature(TestUSDC::Transfer::SIGNATURE_HASH);
        let filters = customers.chunks(TOPICS_MAX).map(|some| transfer().topic2(some.to_vec())).collect();
        let mut raw = Raw::new();
        self.gather("customers' money", filters, &mut raw, tell).await?;
        let mut funding = BTreeSet::new();
        for log in raw.values() {
            if let Ok(transfer) = TestUSDC::Transfer::decode_log(&log.inner) {
                funding.insert((transfer.to, transfer.from));
            }
        }
        Ok(funding.into_iter().collect())
    }
}

fn what(log: &Log, treasury: Address, birth: &Birth) -> Option<What> {
    let address = log.address();
    if address == treasury {
        return TreasuryEvent::decode_log(&log.inner).ok().map(|event| What::Treasury(event.data));
    }
    if address == birth.market {
        return MarketEvent::decode_log(&log.inner).ok().map(|event| What::Market(event.data));
    }
    let TestUSDC::Transfer { from, to, value } = TestUSDC::Transfer::decode_log(&log.inner).ok()?.data;
    Some(What::Transfer { from, to, amount: micro(value) })
}

/// Chain seconds of every block that something happened in.
async fn times(chain: &Chain, raw: &Raw, tell: &mut impl FnMut(Step<'_>)) -> Result<BTreeMap<u64, u64>, Error> {
    let mut times: BTreeMap<u64, u64> = BTreeMap::new();
    let mut unknown = BTreeSet::new();
    for ((block, _), log) in raw {
        match log.block_timestamp {
            Some(time) => drop(times.insert(*block, time)),
            None => drop(unknown.insert(*block)),
        }
    }
    let unknown: Vec<u64> = unknown.into_iter().collect();
    for (done, some) in unknown.chunks(512).enumerate() {
        let asked = some.iter().map(|block| (format!("{block:#x}"), false)).collect();
        let answers: Vec<Result<Option<Block>, Error>> = chain.request_many("eth_getBlockByNumber", asked).await?;
        for (block, answer) in some.iter().zip(answers) {
            let header = answer?.ok_or_else(|| Error::rpc(format!("block {block} is gone: a reorg")))?;
            times.insert(*block, header.header.timestamp);
        }
        let done = u64::try_from(done * 512 + some.len()).unwrap_or(u64::MAX);
        tell(("block times", done, u64::try_from(unknown.len()).unwrap_or(u64::MAX)));
    }
    Ok(times)
}

/// The transactions that tell who was behind something, or whose vouchers were claimed.
async fn sent(chain: &Chain, facts: &[Fact], tell: &mut impl FnMut(Step<'_>)) -> Result<BTreeMap<B256, Sent>, Error> {
    #[derive(Debug, Deserialize)]
    struct Wire {
        from: Address,
        to: Option<Address>,
        input: Bytes,
    }
    let routine = |event: &TreasuryEvent| {
        matches!(
            event,
            TreasuryEvent::Heartbeat(_)
                | TreasuryEvent::Committed(_)
                | TreasuryEvent::ExactSettled(_)
                | TreasuryEvent::Refueled(_)
                | TreasuryEvent::ToppedUp(_)
        )
    };
    let told = facts.iter().filter(|f| matches!(&f.what, What::Treasury(event) if !routine(event)));
    let hashes: Vec<B256> = told.map(|fact| fact.tx).collect::<BTreeSet<_>>().into_iter().collect();
    let mut sent = BTreeMap::new();
    for some in hashes.chunks(256) {
        let asked = some.iter().map(|hash| (*hash,)).collect();
        let answers: Vec<Result<Option<Wire>, Error>> = chain.request_many("eth_getTransactionByHash", asked).await?;
        for (hash, answer) in some.iter().zip(answers) {
            let Wire { from, to, input } =
                answer?.ok_or_else(|| Error::rpc(format!("transaction {hash} is gone: a reorg")))?;
            sent.insert(*hash, Sent { from, to, input });
        }
        let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        tell(("transactions", count(sent.len()), count(hashes.len())));
    }
    Ok(sent)
}

/// Every channel that a claim named, and what was claimed of it by now.
async fn channels(
    chain: &Chain,
    treasury: Address,
    birth: &Birth,
    sent: &BTreeMap<B256, Sent>,
    at: BlockId,
) -> Result<Vec<(ChannelConfig, u128)>, Error> {
    let contract = birth.options.channels;
    let mut configs: Vec<ChannelConfig> = Vec::new();
    for sent in sent.values().filter(|sent| sent.to == Some(treasury)) {
        let Ok(Treasury::TreasuryCalls::claimAndSettle(call)) = Treasury::TreasuryCalls::abi_decode(&sent.input) else {
            continue;
        };
        for row in call.claims {
            let config = row.voucher.channel;
            if config.receiver == treasury && config.token == birth.token && !configs.contains(&config) {
                configs.push(config);
            }
        }
    }
    if contract.is_zero() || configs.is_empty() {
        return Ok(Vec::new());
    }
    let ids = configs.iter().map(|c| {
        let config = BatchSettlement::ChannelConfig {
            payer: c.payer,
            payerAuthorizer: c.payerAuthorizer,
            receiver: c.receiver,
            receiverAuthorizer: c.receiverAuthorizer,
            token: c.token,
            withdrawDelay: c.withdrawDelay,
            salt: c.salt,
        };
        (contract, BatchSettlement::getChannelIdCall { config })
    });
    let mut reads = Vec::new();
    for id in chain.read_many(ids, at).await? {
        reads.push((contract, BatchSettlement::channelsCall { channelId: id? }));
    }
    let mut out = Vec::with_capacity(configs.len());
    for (config, channel) in configs.into_iter().zip(chain.read_many(reads, at).await?) {
        out.push((config, channel?.totalClaimed));
    }
    Ok(out)
}

/// What an EIP-1167 proxy points to.
async fn implementation(chain: &Chain, treasury: Address) -> Result<Option<Address>, Error> {
    const BEFORE: [u8; 10] = hex!("363d3d373d3d3d363d73");
    const AFTER: [u8; 15] = hex!("5af43d82803e903d91602b57fd5bf3");
    let code: Bytes = chain.request("eth_getCode", (treasury, BlockId::latest())).await?;
    let inside = code.strip_prefix(&BEFORE[..]).and_then(|rest| rest.strip_suffix(&AFTER[..]));
    Ok(inside.filter(|address| address.len() == 20).map(Address::from_slice))
}

fn micro(amount: U256) -> u128 {
    amount.saturating_to()
}
