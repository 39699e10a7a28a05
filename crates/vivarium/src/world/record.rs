//! Where the agent lives, by the on-chain record: treasury → active lease → endpoint. The only source that a
//! customer trusts; every URL in a file is a hint.

use super::identity::{AgentId, Named};
use alloy::eips::BlockId;
use alloy::primitives::{Address, U256};
use anyhow::{Context, Result, bail};
use chain::Chain;
use chain::bindings::{Lease, LeaseMarket, Stage, State, Treasury};
use economy::Usdc;
use std::sync::{Arc, Mutex, PoisonError};

/// One agent's entry in the record.
#[derive(Clone, Debug)]
pub struct Record {
    pub chain: Chain,
    pub treasury: Address,
    pub lease_market: Address,
    /// What it was found by, if not by its treasury's address.
    identity: Option<Arc<Identity>>,
}

/// The name that the caller gave, whose registration file each place of the agent's is held against once.
#[derive(Debug)]
struct Identity {
    agent: AgentId,
    http: net::Client,
    /// The place that fitted last. A std Mutex: it is never held over an await.
    checked: Mutex<Option<String>>,
}

/// The record at one moment.
#[derive(Clone, Debug)]
pub struct Entry {
    pub state: State,
    /// The lease of the operator, if there is one.
    pub active: Option<Lease>,
}

impl Record {
    pub fn new(rpc_url: &str, chain_id: u64, treasury: Address, lease_market: Address) -> Result<Self> {
        Ok(Self::on(Chain::connect(rpc_url, chain_id)?, treasury, lease_market))
    }

    pub fn on(chain: Chain, treasury: Address, lease_market: Address) -> Self {
        Self { chain, treasury, lease_market, identity: None }
    }

    /// The entry that an ERC-8004 identity leads to, and the token that its treasury takes.
    ///
    /// # Errors
    /// See [`AgentId::named`].
    pub async fn of_identity(chain: Chain, agent: AgentId, http: net::Client) -> Result<(Self, Address)> {
        let Named { treasury, lease_market, token } = agent.named(&chain).await?;
        let identity = Some(Arc::new(Identity { agent, http, checked: Mutex::default() }));
        Ok((Self { chain, treasury, lease_market, identity }, token))
    }

    pub async fn read(&self) -> Result<Entry> {
        let head = self.chain.head().await.context("the chain does not answer; is the world running?")?;
        let at = BlockId::number(head.number);
        let state = self.chain.read(self.treasury, Treasury::stateCall {}, at).await?;
        let active = match state.activeLease {
            U256::ZERO => None,
            lease => Some(self.chain.read(self.lease_market, LeaseMarket::leaseOfCall { lease }, at).await?),
        };
        Ok(Entry { state, active })
    }

    /// The URL under which the agent serves now, or the reason why there is none. Of an agent that was found by its
    /// identity, each new place is held against the registration file first ([`AgentId::check`]).
    pub async fn url(&self) -> Result<String> {
        let entry = self.read().await?;
        match (entry.url(), entry.state.stage()) {
            (Some(url), _) => {
                self.check(url).await?;
                Ok(url.to_owned())
            }
            (None, Stage::Unborn) => bail!("the agent is not born yet; `vivarium up` shows how far it is"),
            (None, Stage::Closed) => bail!(
                "the agent is dead (treasury {} is closed); `vivarium up --fresh` starts another life",
                self.treasury
            ),
            (None, _) => {
                if let Some(sleep) = self.sleep(&entry.state).await? {
                    let balance = Usdc(entry.state.balance.saturating_to());
                    bail!("the agent sleeps for want of money; {}", sleep.wants(balance));
                }
                bail!("the agent has no host now; the stewards can rescue it (`vivarium status` shows the record)")
            }
        }
    }

    /// How an agent without an operator sleeps; `None` if it was left without one otherwise, or has one.
    pub async fn sleep(&self, state: &State) -> Result<Option<Sleep>> {
        if !state.operator.is_zero() || state.stage() != Stage::Alive {
            return Ok(None);
        }
        let treasury = self.chain.treasury(self.treasury);
        let until = treasury.standing().await?.hibernateUntil;
        if until == 0 {
            return Ok(None);
        }
        // Stewards take none of a provider that an eviction barred; these are left out here.
        let chain::Snapshot { offers, limits: policy, .. } = treasury.snapshot(self.lease_market).await?;
        let fits = |o: &&chain::OfferView| {
            let (free, dear) = (o.offer.capacity > o.offer.used, o.offer.priceE6 > policy.priceE6Max);
            o.staked && free && !dear && o.offer.minTerm <= policy.termMax
        };
        let prepay = |o: &chain::OfferView| {
            let secs = policy.prepayMax.min(policy.termMax).min(o.offer.maxTerm);
            Usdc::rent_up(o.offer.priceE6, secs.into())
        };
        let least = offers.iter().filter(fits).map(prepay).min();
        let wakes_at = least.map(|prepay| economy::wakes_at(Usdc(policy.starveFloor), prepay));
        Ok(Some(Sleep { until, wakes_at }))
    }

    async fn check(&self, url: &str) -> Result<()> {
        let Some(identity) = &self.identity else { return Ok(()) };
        let checked = || identity.checked.lock().unwrap_or_else(PoisonError::into_inner);
        if checked().as_deref() == Some(url) {
            return Ok(());
        }
        identity.agent.check(&self.chain, &identity.http, self.treasury, url).await?;
        *checked() = Some(url.to_owned());
        Ok(())
    }
}

/// An agent that hibernates.
#[derive(Clone, Copy, Debug)]
pub struct Sleep {
    /// Chain seconds.
    pub until: u64,
    /// Stewards wake it once the treasury holds as much; `None` while nobody offers a host that it may take.
    pub wakes_at: Option<Usdc>,
}

impl Sleep {
    /// What is still wanted, or that it is woken, for people.
    pub fn wants(&self, balance: Usdc) -> String {
        match self.wakes_at {
            None => "nobody offers a host that it may take".to_owned(),
            Some(sum) if sum > balance => {
                format!("stewards wake it once it has {} more: vivarium fund", sum.saturating_sub(balance))
            }
            Some(_) => "stewards wake it now".to_owned(),
        }
    }
}

impl Entry {
    /// The operator's endpoint, if somebody is operator.
    pub fn url(&self) -> Option<&str> {
        if self.state.operator.is_zero() {
            return None;
        }
        self.active.as_ref().map(|lease| lease.endpoint.as_str()).filter(|url| !url.is_empty())
    }

    pub fn operator(&self) -> Option<Address> {
        (!self.state.operator.is_zero()).then_some(self.state.operator)
    }
}
