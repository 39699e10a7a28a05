//! The provider's part of the lease market: what the chain says, and what is sent to it.

use crate::config::{HostConfig, OfferConfig};
use crate::error::{Error, Result};
use crate::lease_loop::{ChainView, LeaseView, OfferView};
use crate::offer::quote_e6;
use alloy::eips::BlockId;
use alloy::primitives::{Address, B256, Bytes, U256};
use chain::bindings::{Lease, LeaseMarket, Offer};
use chain::market::{MarketTerms, calls};
use chain::{Chain, Head, LeaseStatus};
use std::collections::BTreeSet;

/// The newest ids are looked at again in each block: after a reorg another lease or offer may have got one.
const REORG_IDS: u64 = 16;

/// Reads one provider's leases and offers, remembering which ids are its own.
#[derive(Debug)]
pub struct Market {
    chains: Vec<Chain>,
    address: Address,
    me: Address,
    terms: Option<MarketTerms>,
    leases: Ids,
    offers: Ids,
    seen: Option<B256>,
}

/// Which of a contract's ids 1..=count are ours.
#[derive(Debug, Default)]
struct Ids {
    mine: BTreeSet<u64>,
    looked: u64,
}

impl Ids {
    /// The ids to look at, given how many there are now.
    fn due(&mut self, count: u64) -> Vec<u64> {
        self.mine.retain(|id| *id <= count);
        let from = self.looked.min(count).saturating_sub(REORG_IDS) + 1;
        self.mine.iter().copied().filter(|id| *id < from).chain(from..=count).collect()
    }

    fn note(&mut self, id: u64, mine: bool) {
        if mine {
            self.mine.insert(id);
        } else {
            self.mine.remove(&id);
        }
    }
}

impl Market {
    pub fn new(config: &HostConfig, me: Address) -> Result<Self> {
        let connect = |url: &String| {
            Chain::connect(url, config.chain_id).map_err(|e| Error::setup(format!("rpc_urls: {e}")).caused_by(e))
        };
        Ok(Self {
            chains: config.rpc_urls.iter().map(connect).collect::<Result<_>>()?,
            address: config.market,
            me,
            terms: None,
            leases: Ids::default(),
            offers: Ids::default(),
            seen: None,
        })
    }

    /// The first endpoint that answers, with its newest block.
    pub async fn head(&self) -> Result<(Chain, Head)> {
        let mut last = None;
        for chain in &self.chains {
            match chain.head().await {
                Ok(head) => return Ok((chain.clone(), head)),
                Err(e) => last = Some(e),
            }
        }
        // `new` is given at least one endpoint by the configuration's check.
        Err(last.map_or_else(
            || Error::setup("no chain endpoint"),
            |e| Error::retry("no chain endpoint answers").caused_by(e),
        ))
    }

    /// What is new since the last look; None while the newest block is still the same.
    pub async fn look(&mut self, config: &HostConfig) -> Result<Option<ChainView>> {
        let (chain, head) = self.head().await?;
        if self.seen == Some(head.hash) {
            return Ok(None);
        }
        let view = self
            .look_at(&chain, head, config)
            .await
            .map_err(|e| Error::retry(format!("cannot read the lease market at block {}", head.number)).caused_by(e))?;
        self.seen = Some(head.hash);
        Ok(Some(view))
    }

    async fn look_at(
        &mut self,
        chain: &Chain,
        head: Head,
        config: &HostConfig,
    ) -> std::result::Result<ChainView, chain::Error> {
        let terms = match self.terms {
            Some(terms) => terms,
            None => *self.terms.insert(chain.market(self.address).terms().await?),
        };
        let at = BlockId::hash(head.hash);
        let leases = self.my_leases(chain, at).await?;
        let ids = leases.iter().map(|(id, _)| (self.address, LeaseMarket::accruedCall { lease: U256::from(*id) }));
        let accrued = chain.read_many(ids, at).await?.into_iter().collect::<std::result::Result<Vec<_>, _>>()?;
        let posted = self.my_offers(chain, at).await?;
        let mut views = Vec::new();
        for ((id, lease), accrued) in leases.into_iter().zip(accrued) {
            views.push(LeaseView {
                id,
                treasury: lease.tenant,
                code: lease.codeHash.0,
                // An offer of ours that is not among the posted ones cannot be; 1 GiB runs the default model.
                memory_mib: posted
                    .iter()
                    .find(|(offer, _)| U256::from(*offer) == lease.offer)
                    .map_or(1024, |(_, offer)| offer.memoryMiB),
                ready: lease.status() == LeaseStatus::Ready,
                ready_by: lease.readyBy,
                end: lease.end,
                vouched_at: lease.vouchedAt,
                node_key: lease.nodeKey,
                earned_uusdc: accrued,
                due_uusdc: accrued.saturating_sub(lease.withdrawn),
                paid_until: paid_until(&lease),
            });
        }
        let asked = pair(&config.offers, &posted).into_iter().enumerate();
        let offers = asked.filter_map(|(index, id)| {
            let id = id?;
            let offer = posted.iter().find(|(posted, _)| *posted == id)?;
            let quote_e6 = quote_e6(&config.offers[index], index, config.reprice.as_ref(), head.timestamp);
            Some(OfferView { id, price_e6: offer.1.priceE6, quote_e6 })
        });
        Ok(ChainView {
            block: head.number,
            timestamp: head.timestamp,
            grace_secs: terms.grace.into(),
            drop_after_secs: terms.drop_after.into(),
            leases: views,
            offers: offers.collect(),
        })
    }

    async fn my_leases(&mut self, chain: &Chain, at: BlockId) -> std::result::Result<Vec<(u64, Lease)>, chain::Error> {
        let count = small(chain.read(self.address, LeaseMarket::leaseCountCall {}, at).await?);
        let ids = self.leases.due(count);
        let calls = ids.iter().map(|id| (self.address, LeaseMarket::leaseOfCall { lease: U256::from(*id) }));
        let answers = chain.read_many(calls, at).await?;
        let mut mine = Vec::new();
        for (id, lease) in ids.into_iter().zip(answers) {
            let lease = lease?;
            let open = matches!(lease.status(), LeaseStatus::Requested | LeaseStatus::Ready);
            self.leases.note(id, open && lease.provider == self.me);
            if open && lease.provider == self.me {
                mine.push((id, lease));
            }
        }
        self.leases.looked = count;
        Ok(mine)
    }

    async fn my_offers(&mut self, chain: &Chain, at: BlockId) -> std::result::Result<Vec<(u64, Offer)>, chain::Error> {
        let count = small(chain.read(self.address, LeaseMarket::offerCountCall {}, at).await?);
        let ids = self.offers.due(count);
        let calls = ids.iter().map(|id| (self.address, LeaseMarket::offerOfCall { offer: U256::from(*id) }));
        let answers = chain.read_many(calls, at).await?;
        let mut mine = Vec::new();
        for (id, offer) in ids.into_iter().zip(answers) {
            let offer = offer?;
            self.offers.note(id, offer.provider == self.me);
            if offer.provider == self.me {
                mine.push((id, offer));
            }
        }
        self.offers.looked = count;
        Ok(mine)
    }

    /// What must be sent, in this order, so that stake and offers are as the configuration says. Empty on a
    /// restart: it reads the chain first.
    pub async fn setup(&mut self, config: &HostConfig) -> Result<Vec<Call>> {
        let (chain, head) = self.head().await?;
        let setup = |e: chain::Error| {
            Error::setup(format!("the lease market {} or the token {} does not answer", self.address, config.usdc))
                .caused_by(e)
        };
        let refused = |e: chain::Error| Error::setup(e.to_string()).caused_by(e);
        chain.verify_chain().await.map_err(refused)?;
        chain.verify_token(config.usdc).await.map_err(refused)?;
        chain.verify_market(self.address, config.usdc).await.map_err(refused)?;
        chain.verify_clock().await.map_err(refused)?;
        let stake = chain.market(self.address).stake(self.me).await.map_err(setup)?;
        let stake_min = chain.market(self.address).terms().await.map_err(setup)?.stake_min;
        let wanted = U256::from(config.stake_uusdc);
        if wanted < stake_min {
            return Err(Error::setup(format!("stake_uusdc is {wanted}, but the market asks for at least {stake_min}")));
        }
        let mut sends = Vec::new();
        if stake < wanted {
            let missing = (wanted - stake).to::<u128>();
            let balance = chain.usdc(config.usdc).balance(self.me).await.map_err(setup)?;
            if balance < U256::from(missing) {
                return Err(Error::setup(format!(
                    "the provider {} has {balance} micro-USDC and needs {missing} for its stake: send it some",
                    self.me
                )));
            }
            sends.push(Call::new(config.usdc, chain::usdc::calls::approve(self.address, missing)));
            sends.push(Call::new(self.address, calls::register(missing)));
        }
        let posted = self
            .my_offers(&chain, BlockId::hash(head.hash))
            .await
            .map_err(|e| Error::retry("cannot read the market's offers").caused_by(e))?;
        let pairs = pair(&config.offers, &posted);
        for (id, offer) in &posted {
            let index = pairs.iter().position(|p| *p == Some(*id));
            let capacity = index.map_or(0, |index| config.offers[index].capacity);
            if offer.capacity != capacity {
                sends.push(Call::new(self.address, calls::set_capacity(*id, capacity)));
            }
        }
        for (index, (offer, _)) in config.offers.iter().zip(&pairs).enumerate().filter(|(_, (_, id))| id.is_none()) {
            let price_e6 = quote_e6(offer, index, config.reprice.as_ref(), head.timestamp);
            sends.push(Call::new(self.address, calls::post_offer(&posted_as(config, offer, price_e6))));
        }
        Ok(sends)
    }

    pub fn reprice(&self, offer: u64, price_e6: u64) -> Call {
        Call::new(self.address, calls::reprice(offer, price_e6))
    }

    /// The key of its TLS certificate is 0: this version speaks plain HTTP on loopback.
    pub fn ready(&self, lease: u64, node_key: Address, url: &str) -> Call {
        Call::new(self.address, calls::ready(lease, node_key, url, B256::ZERO))
    }

    pub fn withdraw(&self, lease: u64) -> Call {
        Call::new(self.address, calls::withdraw(lease))
    }

    pub fn expire(&self, lease: u64) -> Call {
        Call::new(self.address, calls::expire(lease))
    }
}

/// A call that sends no ETH along.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    pub to: Address,
    pub data: Bytes,
}

impl Call {
    fn new(to: Address, data: Bytes) -> Self {
        Self { to, data }
    }
}

/// For each configured offer the posted one that it is: same terms and resources, each used once. Price and
/// capacity may differ, they can be changed; the rest of a posted offer cannot.
fn pair(asked: &[OfferConfig], posted: &[(u64, Offer)]) -> Vec<Option<u64>> {
    let mut used = BTreeSet::new();
    let same = |a: &OfferConfig, p: &Offer| {
        (a.min_term, a.max_term, a.memory_mib, a.milli_cpu) == (p.minTerm, p.maxTerm, p.memoryMiB, p.milliCpu)
    };
    let mut pairs = Vec::with_capacity(asked.len());
    for a in asked {
        let id = posted.iter().find(|(id, p)| !used.contains(id) && same(a, p)).map(|(id, _)| *id);
        used.extend(id);
        pairs.push(id);
    }
    pairs
}

fn posted_as(config: &HostConfig, offer: &OfferConfig, price_e6: u64) -> Offer {
    Offer {
        provider: Address::ZERO,
        priceE6: price_e6,
        capacity: offer.capacity,
        used: 0,
        minTerm: offer.min_term,
        maxTerm: offer.max_term,
        memoryMiB: offer.memory_mib,
        milliCpu: offer.milli_cpu,
        usePolicy: B256::ZERO,
        endpoint: config.public_url.clone(),
        abuseContact: config.abuse_contact.clone(),
    }
}

/// A count of things that cost gas each: no chain reaches 2^64 of them.
fn small(count: U256) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

/// The second in which what was put into escrow is used up, rounded down; 0 until ready.
fn paid_until(lease: &Lease) -> u64 {
    if lease.status() != LeaseStatus::Ready {
        return 0;
    }
    let secs = lease.escrow.saturating_mul(1_000_000) / u128::from(lease.priceE6.max(1));
    lease.start.saturating_add(u64::try_from(secs).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_looked_at_once_and_the_newest_again() {
        let mut ids = Ids::default();
        assert_eq!(ids.due(3), [1, 2, 3]);
        ids.note(2, true);
        ids.looked = 100;
        let due = ids.due(102);
        assert_eq!(due.first(), Some(&2));
        assert_eq!(due[1..], (85..=102).collect::<Vec<_>>());
        ids.note(2, false);
        assert_eq!(ids.due(102)[0], 85);
        // The chain went back.
        ids.note(90, true);
        assert_eq!(ids.due(50), (35..=50).collect::<Vec<_>>());
    }

    #[test]
    fn equal_offers_pair_up_one_to_one() {
        let asked =
            |memory_mib| OfferConfig { price_e6: 5, capacity: 1, min_term: 1, max_term: 9, memory_mib, milli_cpu: 1 };
        let config = [asked(64), asked(64), asked(128)];
        let posted = |memory| Offer {
            provider: Address::ZERO,
            priceE6: 1,
            capacity: 3,
            used: 0,
            minTerm: 1,
            maxTerm: 9,
            memoryMiB: memory,
            milliCpu: 1,
            usePolicy: B256::ZERO,
            endpoint: String::new(),
            abuseContact: String::new(),
        };
        assert_eq!(pair(&config, &[(4, posted(64)), (7, posted(128))]), [Some(4), None, Some(7)]);
        assert_eq!(pair(&config, &[(4, posted(64)), (5, posted(64))]), [Some(4), Some(5), None]);
        assert_eq!(pair(&config, &[(4, posted(32))]), [None, None, None]);
    }
}
