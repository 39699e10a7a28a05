use super::{Refusal, refuse_if};
use crate::money::Address;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The token, as far as it refuses only for want of money. Allowances are taken as given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Token {
    balances: Arc<BTreeMap<Address, u128>>,
    /// Authorisations used (EIP-3009).
    used: Arc<BTreeSet<(Address, [u8; 32])>>,
}

impl Token {
    /// Micro-USDC of an account.
    pub fn of(&self, account: Address) -> u128 {
        self.balances.get(&account).copied().unwrap_or(0)
    }

    /// Test money, or what was there before the model begins.
    pub fn mint(&mut self, to: Address, amount: u128) {
        *Arc::make_mut(&mut self.balances).entry(to).or_default() += amount;
    }

    pub fn transfer(&mut self, from: Address, to: Address, amount: u128) -> Result<(), Refusal> {
        refuse_if(self.of(from) < amount, Refusal::InsufficientBalance)?;
        *Arc::make_mut(&mut self.balances).entry(from).or_default() -= amount;
        self.mint(to, amount);
        Ok(())
    }

    /// A transfer that `from` signed; each nonce once.
    pub(super) fn authorised(
        &mut self,
        from: Address,
        to: Address,
        amount: u128,
        nonce: [u8; 32],
    ) -> Result<(), Refusal> {
        refuse_if(!Arc::make_mut(&mut self.used).insert((from, nonce)), Refusal::AuthorizationUsedOrCanceled)?;
        self.transfer(from, to, amount)
    }

    /// Of everybody together: only minting changes it.
    pub fn supply(&self) -> u128 {
        self.balances.values().sum()
    }
}
