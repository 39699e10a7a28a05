//! The token: balances, EIP-3009 authorisations, and what a development chain adds (minting).

use alloy::{
    eips::BlockId,
    primitives::{Address, B256, Bytes, U256},
    rpc::types::{Log, TransactionReceipt},
    sol_types::{SolCall, SolEvent},
};
use std::collections::BTreeSet;

use crate::{
    bindings::{TestUSDC, X402_PROXIES},
    error::Error,
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

    /// The EIP-712 domain's name, version and separator as the token itself says them.
    ///
    /// # Errors
    /// As [`UsdcClient::balance`].
    pub async fn domain(&self) -> Result<(String, String, B256), Error> {
        let at = BlockId::latest();
        let name = self.chain.read(self.address, TestUSDC::nameCall {}, at).await?;
        let version = self.chain.read(self.address, TestUSDC::versionCall {}, at).await?;
        let separator = self.chain.read(self.address, TestUSDC::DOMAIN_SEPARATORCall {}, at).await?;
        Ok((name, version, separator))
    }
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
