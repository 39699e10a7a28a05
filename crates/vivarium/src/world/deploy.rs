//! A new chain's first minute: contracts, keys, money.

use super::files::{Folder, KeyEntry};
use super::genesis::{self, Choices};
use super::wallet::Wallet;
use alloy::eips::BlockId;
use alloy::primitives::{Address, Bytes};
use alloy::signers::local::PrivateKeySigner;
use anyhow::{Context, Result};
use chain::bindings::{
    Addresses, BatchSettlement, DepositCollector3009, ExactPermit2Proxy, IDENTITY_REGISTRY, IdentityRegistry,
    Multicall3, Permit2, UptoPermit2Proxy,
};
use chain::{Chain, Tx};
use economy::{Timers, Usdc};
use pay::facilitator::multicall::MULTICALL3;
use pay::scheme::channel::{BATCH_SETTLEMENT, COLLECTOR_3009};
use pay::scheme::permit2::PERMIT2;
use pay::scheme::upto::{EXACT_PROXY, UPTO_PROXY};
use std::path::PathBuf;

/// The people of a world and their development keys.
pub struct People {
    pub creator: PrivateKeySigner,
    pub customer: PrivateKeySigner,
    pub customer_file: PathBuf,
    pub beneficiary: Address,
    pub stewards: Vec<KeyEntry>,
    pub providers: Vec<KeyEntry>,
}

impl People {
    /// The keys in the world's folder, made if they are not there.
    pub fn of(folder: &Folder) -> Result<Self> {
        let entry = |name: String| -> Result<KeyEntry> {
            let (signer, key_file) = folder.development_key(&name)?;
            Ok(KeyEntry { address: signer.address(), key_file })
        };
        let (customer, customer_file) = folder.development_key("customer")?;
        Ok(Self {
            creator: folder.development_key("creator")?.0,
            customer,
            customer_file,
            beneficiary: folder.development_key("beneficiary")?.0.address(),
            stewards: (1..=genesis::STEWARDS).map(|n| entry(format!("steward-{n}-orders"))).collect::<Result<_>>()?,
            providers: (1..=genesis::PROVIDERS).map(|n| entry(format!("provider-{n}"))).collect::<Result<_>>()?,
        })
    }

    fn everybody(&self) -> impl Iterator<Item = Address> + '_ {
        let named = [self.creator.address(), self.customer.address(), self.beneficiary];
        named.into_iter().chain(self.stewards.iter().chain(&self.providers).map(|entry| entry.address))
    }
}

/// Puts the contracts on an empty chain.
pub async fn contracts(chain: &Chain, people: &People, choices: &Choices) -> Result<Addresses> {
    for account in people.everybody() {
        chain::deploy::fund_eth(chain, account, genesis::ACCOUNT_WEI).await?;
    }
    let (timers, _) = Timers::scaled(choices.day_secs);
    let terms = chain::deploy::MarketParams {
        stake_min: genesis::STAKE.micro(),
        ready_within: timers.ready_within,
        grace: timers.grace,
        drop_after: timers.drop_after,
    };
    let addresses = chain::deploy::deploy(chain, &people.creator, terms).await;
    let addresses = addresses.context("the contracts cannot be deployed")?;
    published(chain, people).await.context("the development copies of public contracts cannot be deployed")?;
    Ok(addresses)
}

/// Puts our channel contract with its collector, Permit2, the x402 proxies, Multicall3 and our identity registry at the
/// addresses that clients know.
async fn published(chain: &Chain, people: &People) -> Result<()> {
    let deployer = Wallet::new(chain.clone(), people.creator.clone());
    for (at, code) in [
        (BATCH_SETTLEMENT, &BatchSettlement::BYTECODE),
        (COLLECTOR_3009, &DepositCollector3009::BYTECODE),
        (PERMIT2, &Permit2::BYTECODE),
        (EXACT_PROXY, &ExactPermit2Proxy::BYTECODE),
        (UPTO_PROXY, &UptoPermit2Proxy::BYTECODE),
        (MULTICALL3, &Multicall3::BYTECODE),
        (IDENTITY_REGISTRY, &IdentityRegistry::BYTECODE),
    ] {
        let nonce = chain.nonce(deployer.address(), BlockId::latest()).await?;
        let create = Tx { to: None, data: code.clone(), value: 0, gas: None, label: "a development contract" };
        deployer.send(create).await?;
        let made = deployer.address().create(nonce);
        let runtime: Bytes = chain.request("eth_getCode", (made, BlockId::latest())).await?;
        let () = chain.request("anvil_setCode", (at, runtime)).await?;
    }
    Ok(())
}

/// Mints what providers, customer and creator need.
pub async fn money(chain: &Chain, usdc: Address, people: &People, seed: Usdc) -> Result<()> {
    let mut purses = vec![(people.creator.address(), seed), (people.customer.address(), genesis::CUSTOMER_USDC)];
    purses.extend(people.providers.iter().map(|entry| (entry.address, genesis::PROVIDER_USDC)));
    mint(&Wallet::new(chain.clone(), people.creator.clone()), usdc, purses).await
}

/// Mints test USDC into many purses, all in one block if the chain lets them.
pub async fn mint(minter: &Wallet, usdc: Address, purses: Vec<(Address, Usdc)>) -> Result<()> {
    let mints = purses.into_iter().map(|(to, amount)| {
        minter.send(Tx::call(usdc, chain::usdc::calls::mint(to, amount.micro()), "minting test USDC"))
    });
    futures::future::try_join_all(mints).await?;
    Ok(())
}
