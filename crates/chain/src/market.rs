//! The lease market: reads, and calldata for providers and passers-by. (Agents rent through their treasury.)

use alloy::{
    eips::BlockId,
    primitives::{Address, B256, Bytes, U256},
    sol_types::SolCall,
};
use futures::future::try_join;

use crate::{
    bindings::{Lease, LeaseMarket, Offer, Record},
    error::Error,
    rpc::Chain,
};

/// Offers read at most: the newest ones. Beyond it an agent would spend its time reading spam.
pub const OFFERS_MAX: u64 = 512;

/// Reads of one lease market.
#[derive(Clone, Debug)]
pub struct MarketClient {
    /// The endpoint asked.
    pub chain: Chain,
    /// The market.
    pub address: Address,
}

/// A lease as it stands at one block.
#[derive(Clone, Debug, PartialEq)]
pub struct LeaseView {
    /// Its id.
    pub id: u64,
    /// What the market says.
    pub lease: Lease,
    /// Rent earned so far in the whole lease, micro-USDC, rounded up, at most the escrow.
    pub accrued: u128,
}

impl LeaseView {
    /// Micro-USDC in escrow that no rent has used yet.
    pub fn escrow_left(&self) -> u128 {
        self.lease.escrow.saturating_sub(self.accrued)
    }
}

/// An offer as it stands at one block, with what is known of who makes it.
#[derive(Clone, Debug, PartialEq)]
pub struct OfferView {
    /// Its id.
    pub id: u64,
    /// What the market says.
    pub offer: Offer,
    /// The provider's past.
    pub record: Record,
    /// Whether the provider's stake reaches the market's minimum: without it a rent reverts.
    pub staked: bool,
}

/// What the constructor fixed, in the market's units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MarketTerms {
    /// Micro-USDC.
    pub stake_min: U256,
    /// Seconds from `rent` to `ready`.
    pub ready_within: u32,
    /// Seconds of rent past the last heartbeat that vouched.
    pub grace: u32,
    /// Seconds of silence after which anyone may expire a lease.
    pub drop_after: u32,
}

impl MarketClient {
    /// One lease in the newest block.
    ///
    /// # Errors
    /// `Rpc`, or `Missing` when this is not a market.
    pub async fn lease(&self, id: u64) -> Result<LeaseView, Error> {
        self.lease_at(id, BlockId::latest()).await
    }

    /// One lease at a block. An id that does not exist reads as a lease of nobody ([`crate::LeaseStatus::None`]).
    ///
    /// # Errors
    /// As [`MarketClient::lease`].
    pub async fn lease_at(&self, id: u64, at: BlockId) -> Result<LeaseView, Error> {
        let lease = U256::from(id);
        let lease = self.chain.read(self.address, LeaseMarket::leaseOfCall { lease }, at);
        let (lease, accrued) = try_join(lease, self.accrued_at(id, at)).await?;
        Ok(LeaseView { id, lease, accrued })
    }

    /// Rent a lease has earned so far, micro-USDC.
    ///
    /// # Errors
    /// As [`MarketClient::lease`].
    pub async fn accrued(&self, id: u64) -> Result<u128, Error> {
        self.accrued_at(id, BlockId::latest()).await
    }

    async fn accrued_at(&self, id: u64, at: BlockId) -> Result<u128, Error> {
        self.chain.read(self.address, LeaseMarket::accruedCall { lease: U256::from(id) }, at).await
    }

    /// How many leases there ever were: their ids are 1 to this.
    ///
    /// # Errors
    /// As [`MarketClient::lease`].
    pub async fn lease_count(&self) -> Result<u64, Error> {
        let count = self.chain.read(self.address, LeaseMarket::leaseCountCall {}, BlockId::latest()).await?;
        id(count)
    }

    /// One offer in the newest block; an id that does not exist reads as an offer of the zero address.
    ///
    /// # Errors
    /// As [`MarketClient::lease`].
    pub async fn offer(&self, id: u64) -> Result<Offer, Error> {
        let call = LeaseMarket::offerOfCall { offer: U256::from(id) };
        self.chain.read(self.address, call, BlockId::latest()).await
    }

    /// The newest [`OFFERS_MAX`] offers in ascending order of id.
    ///
    /// # Errors
    /// As [`MarketClient::lease`].
    pub async fn offers(&self) -> Result<Vec<OfferView>, Error> {
        self.offers_at(BlockId::latest()).await
    }

    /// The same at a block.
    ///
    /// # Errors
    /// As [`MarketClient::lease`].
    pub async fn offers_at(&self, at: BlockId) -> Result<Vec<OfferView>, Error> {
        let count = self.chain.read(self.address, LeaseMarket::offerCountCall {}, at);
        let stake_min = self.chain.read(self.address, LeaseMarket::minStakeCall {}, at);
        let (count, stake_min) = try_join(count, stake_min).await?;
        let last = id(count)?;
        let ids: Vec<u64> = (last.saturating_sub(OFFERS_MAX) + 1..=last).collect();
        let calls = ids.iter().map(|id| (self.address, LeaseMarket::offerOfCall { offer: U256::from(*id) }));
        let offers: Vec<Offer> = all(self.chain.read_many(calls, at).await?)?;

        let mut providers: Vec<Address> = offers.iter().map(|o| o.provider).collect();
        providers.sort();
        providers.dedup();
        let records = providers.iter().map(|p| (self.address, LeaseMarket::recordOfCall { provider: *p }));
        let stakes = providers.iter().map(|p| (self.address, LeaseMarket::stakeOfCall { provider: *p }));
        let (records, stakes) = try_join(self.chain.read_many(records, at), self.chain.read_many(stakes, at)).await?;
        let (records, stakes) = (all(records)?, all(stakes)?);

        let views = ids.into_iter().zip(offers).filter_map(|(id, offer)| {
            let known = providers.binary_search(&offer.provider).ok()?;
            Some(OfferView { id, record: records[known].clone(), staked: stakes[known] >= stake_min, offer })
        });
        Ok(views.collect())
    }

    /// A provider's counters.
    ///
    /// # Errors
    /// As [`MarketClient::lease`].
    pub async fn record(&self, provider: Address) -> Result<Record, Error> {
        self.chain.read(self.address, LeaseMarket::recordOfCall { provider }, BlockId::latest()).await
    }

    /// A provider's stake, micro-USDC.
    ///
    /// # Errors
    /// As [`MarketClient::lease`].
    pub async fn stake(&self, provider: Address) -> Result<U256, Error> {
        self.chain.read(self.address, LeaseMarket::stakeOfCall { provider }, BlockId::latest()).await
    }

    /// What the market's constructor fixed.
    ///
    /// # Errors
    /// As [`MarketClient::lease`].
    pub async fn terms(&self) -> Result<MarketTerms, Error> {
        let at = BlockId::latest();
        Ok(MarketTerms {
            stake_min: self.chain.read(self.address, LeaseMarket::minStakeCall {}, at).await?,
            ready_within: self.chain.read(self.address, LeaseMarket::readyWithinCall {}, at).await?,
            grace: self.chain.read(self.address, LeaseMarket::graceCall {}, at).await?,
            drop_after: self.chain.read(self.address, LeaseMarket::dropAfterCall {}, at).await?,
        })
    }
}

/// A contract's counter as a `u64`: ids count from 1, one a transaction, so a larger one means a foreign contract.
pub(crate) fn id(value: U256) -> Result<u64, Error> {
    value.try_into().map_err(|_| Error::missing(format!("impossible id or count {value}: a foreign contract")))
}

fn all<T>(answers: Vec<Result<T, Error>>) -> Result<Vec<T>, Error> {
    answers.into_iter().collect()
}

/// Calldata for the market's entries.
pub mod calls {
    use super::*;

    /// Adds to the caller's stake; needs an allowance. Micro-USDC.
    pub fn register(stake: u128) -> Bytes {
        LeaseMarket::registerCall { stake: U256::from(stake) }.abi_encode().into()
    }

    /// Takes the stake back, once no lease is open.
    pub fn unregister() -> Bytes {
        LeaseMarket::unregisterCall {}.abi_encode().into()
    }

    /// Posts an offer of the caller's. The `provider` and `used` fields of `offer` are ignored.
    pub fn post_offer(offer: &Offer) -> Bytes {
        let o = offer.clone();
        let call = LeaseMarket::postOfferCall {
            priceE6: o.priceE6,
            capacity: o.capacity,
            minTerm: o.minTerm,
            maxTerm: o.maxTerm,
            memoryMiB: o.memoryMiB,
            milliCpu: o.milliCpu,
            usePolicy: o.usePolicy,
            endpoint: o.endpoint,
            abuseContact: o.abuseContact,
        };
        call.abi_encode().into()
    }

    /// Sets an offer's price, micro-USDC x 1e-6 per second; running leases keep theirs.
    pub fn reprice(offer: u64, price_e6: u64) -> Bytes {
        LeaseMarket::repriceCall { offer: U256::from(offer), priceE6: price_e6 }.abi_encode().into()
    }

    /// Sets how many leases an offer takes at once.
    pub fn set_capacity(offer: u64, capacity: u32) -> Bytes {
        LeaseMarket::setCapacityCall { offer: U256::from(offer), capacity }.abi_encode().into()
    }

    /// The provider's word that the node runs, with its key and public URL.
    pub fn ready(lease: u64, node_key: Address, endpoint: &str, tls_key_hash: B256) -> Bytes {
        let call = LeaseMarket::readyCall {
            lease: U256::from(lease),
            nodeKey: node_key,
            endpoint: endpoint.to_owned(),
            tlsKeyHash: tls_key_hash,
        };
        call.abi_encode().into()
    }

    /// Pays the provider what a running lease has earned so far.
    pub fn withdraw(lease: u64) -> Bytes {
        LeaseMarket::withdrawCall { lease: U256::from(lease) }.abi_encode().into()
    }

    /// Anyone: adds `amount` micro-USDC to a lease's escrow; needs an allowance.
    pub fn top_up(lease: u64, amount: u128) -> Bytes {
        LeaseMarket::topUpCall { lease: U256::from(lease), amount }.abi_encode().into()
    }

    /// Anyone: ends a request that never became ready, all of it refunded.
    pub fn reclaim(lease: u64) -> Bytes {
        LeaseMarket::reclaimCall { lease: U256::from(lease) }.abi_encode().into()
    }

    /// Anyone: ends a lease past its end or its tenant's long silence.
    pub fn expire(lease: u64) -> Bytes {
        LeaseMarket::expireCall { lease: U256::from(lease) }.abi_encode().into()
    }

    /// Anyone: pays out what the token refused to take to `to` when a lease ended.
    pub fn collect(to: Address) -> Bytes {
        LeaseMarket::collectCall { to }.abi_encode().into()
    }
}
