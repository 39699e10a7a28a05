//! The token: balances, EIP-3009 authorisations, and what a development chain adds (minting).

use alloy::{
    eips::BlockId,
    primitives::{Address, B256, Bytes, U256},
    rpc::types::{Log, TransactionReceipt},
    sol,
    sol_types::{SolCall, SolEvent, eip712_domain},
};
use std::collections::BTreeSet;

use crate::{
    bindings::{TestUSDC, X402_PROXIES},
    error::{Error, Kind},
    rpc::Chain,
};

/// Reads of one token contract.
#[derive(Clone, Debug)]
pub struct UsdcClient {
    /// The endpoint asked.
    pub chain: Chain,
    /// The token.
    pub address: Address,
}

impl UsdcClient {
    /// Micro-USDC of `account` in the newest block.
    ///
    /// # Errors
    /// `Rpc`, or `Missing` when this is not a token.
    pub async fn balance(&self, account: Address) -> Result<U256, Error> {
        self.balance_at(account, BlockId::latest()).await
    }

    /// Micro-USDC of `account` at a block.
    ///
    /// # Errors
    /// As [`UsdcClient::balance`].
    pub async fn balance_at(&self, account: Address, at: BlockId) -> Result<U256, Error> {
        self.chain.read(self.address, TestUSDC::balanceOfCall { account }, at).await
    }

    /// Micro-USDC that `spender` may still take from `owner`.
    ///
    /// # Errors
    /// As [`UsdcClient::balance`].
    pub async fn allowance(&self, owner: Address, spender: Address) -> Result<U256, Error> {
        self.chain.read(self.address, TestUSDC::allowanceCall { owner, spender }, BlockId::latest()).await
    }

    /// Whether the authorisation (payer, nonce) was used *or cancelled* (EIP-3009). Which of the two, only the logs
    /// tell: used and no matching `Transfer` in the same receipt is not a payment.
    ///
    /// # Errors
    /// As [`UsdcClient::balance`].
    pub async fn authorization_state(&self, payer: Address, nonce: B256) -> Result<bool, Error> {
        let call = TestUSDC::authorizationStateCall { authorizer: payer, nonce };
        self.chain.read(self.address, call, BlockId::latest()).await
    }

    /// Those of `txs` in which a payer had signed what moved: an EIP-3009 authorisation was used, or one of x402's
    /// proxies ran. A transaction that is gone (a reorg) is none of them.
    ///
    /// # Errors
    /// As [`UsdcClient::balance`].
    pub async fn signed_transfers(&self, txs: &[B256]) -> Result<BTreeSet<B256>, Error> {
        let asked = txs.iter().map(|tx| (*tx,)).collect();
        let receipts: Vec<Result<Option<TransactionReceipt>, Error>> =
            self.chain.request_many("eth_getTransactionReceipt", asked).await?;
        let is_signed = |log: &Log| {
            let used = TestUSDC::AuthorizationUsed::SIGNATURE_HASH;
            (log.address() == self.address && log.topic0() == Some(&used)) || X402_PROXIES.contains(&log.address())
        };
        let mut found = BTreeSet::new();
        for (tx, receipt) in txs.iter().zip(receipts) {
            if receipt?.is_some_and(|receipt| receipt.inner.logs().iter().any(is_signed)) {
                found.insert(*tx);
            }
        }
        Ok(found)
    }

    /// How payers sign for it, by what the token itself says.
    ///
    /// # Errors
    /// `Missing` if this is no token, or it checks signatures in a domain that nobody can name: another's than that of
    /// its name and version (of "1" or "2", if it tells none), this chain and its address. Else `Rpc`.
    pub async fn signing(&self) -> Result<Signing, Error> {
        let name = self.if_there(TestUSDC::nameCall {}).await?;
        let name = name.ok_or_else(|| Error::missing(format!("{} has no name: it is no token", self.address)))?;
        let nobody = (Address::ZERO, B256::ZERO);
        let state = TestUSDC::authorizationStateCall { authorizer: nobody.0, nonce: nobody.1 };
        let has_eip3009 = self.if_there(state).await?.is_some();
        let has_permit = self.if_there(noncesCall { owner: nobody.0 }).await?.is_some();
        let versions = match self.if_there(TestUSDC::versionCall {}).await? {
            Some(version) => vec![version],
            None => vec!["1".to_owned(), "2".to_owned()],
        };
        let separator = self.if_there(TestUSDC::DOMAIN_SEPARATORCall {}).await?;
        let is_right = |version: &&String| {
            let domain = eip712_domain! {
                name: name.clone(),
                version: (*version).clone(),
                chain_id: self.chain.chain_id(),
                verifying_contract: self.address,
            };
            Some(domain.separator()) == separator
        };
        let version = match versions.iter().find(is_right) {
            Some(version) => version.clone(),
            // Nobody signs anything in its domain.
            None if !has_eip3009 && !has_permit => versions[0].clone(),
            None => {
                let (address, chain) = (self.address, self.chain.chain_id());
                let versions = versions.join("\" or \"");
                return Err(Error::missing(format!(
                    "the token {address} checks signatures in another EIP-712 domain than {{name \"{name}\", version \
                     \"{versions}\", chain {chain}, its address}}: nobody could sign for it"
                )));
            }
        };
        Ok(Signing { name, version, has_eip3009, has_permit })
    }

    /// The answer of an entry that not every token has.
    async fn if_there<C: SolCall>(&self, call: C) -> Result<Option<C::Return>, Error> {
        match self.chain.read(self.address, call, BlockId::latest()).await {
            Ok(answer) => Ok(Some(answer)),
            Err(e) if matches!(e.kind, Kind::Reverted(_) | Kind::Missing) => Ok(None),
            Err(e) => Err(e),
        }
    }
}

sol! {
    function nonces(address owner) external view returns (uint256);
}

/// What permissions a token takes, and the EIP-712 domain that they are signed in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signing {
    pub name: String,
    pub version: String,
    /// It moves what an EIP-3009 authorisation allows.
    pub has_eip3009: bool,
    /// It takes EIP-2612 permissions.
    pub has_permit: bool,
}

/// Calldata for the token's entries.
pub mod calls {
    use super::*;

    /// Makes money out of nothing: the test token only.
    pub fn mint(to: Address, amount: u128) -> Bytes {
        TestUSDC::mintCall { to, value: U256::from(amount) }.abi_encode().into()
    }

    /// Lets `spender` take up to `amount` micro-USDC.
    pub fn approve(spender: Address, amount: u128) -> Bytes {
        TestUSDC::approveCall { spender, value: U256::from(amount) }.abi_encode().into()
    }

    /// Sends `amount` micro-USDC.
    pub fn transfer(to: Address, amount: u128) -> Bytes {
        TestUSDC::transferCall { to, value: U256::from(amount) }.abi_encode().into()
    }
}
