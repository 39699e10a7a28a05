//! What lies on the chain. A clone shares everything with its original until one of them writes, so a fork a block costs
//! next to nothing.

use alloy::primitives::{Address, B256, U256, keccak256};
use revm::DatabaseRef;
use revm::primitives::{AddressMap, StorageKeyMap};
use revm::state::{Account, AccountInfo, Bytecode};
use std::convert::Infallible;
use std::sync::Arc;

#[derive(Clone, Debug, Default)]
pub struct Store {
    accounts: Arc<AddressMap<Kept>>,
}

#[derive(Clone, Debug, Default)]
struct Kept {
    /// With its code.
    info: AccountInfo,
    storage: Arc<StorageKeyMap<U256>>,
}

impl Store {
    pub fn info(&self, at: Address) -> Option<&AccountInfo> {
        self.accounts.get(&at).map(|kept| &kept.info)
    }

    pub fn set_info(&mut self, at: Address, info: AccountInfo) {
        Arc::make_mut(&mut self.accounts).entry(at).or_default().info = info;
    }

    /// A word that was never written is 0.
    pub fn word(&self, at: Address, index: U256) -> U256 {
        self.accounts.get(&at).and_then(|kept| kept.storage.get(&index)).copied().unwrap_or_default()
    }

    pub fn set_word(&mut self, at: Address, index: U256, word: U256) {
        let kept = Arc::make_mut(&mut self.accounts).entry(at).or_default();
        Arc::make_mut(&mut kept.storage).insert(index, word);
    }

    /// What a transaction changed.
    pub fn commit(&mut self, changes: AddressMap<Account>) {
        let accounts = Arc::make_mut(&mut self.accounts);
        for (at, account) in changes {
            if !account.is_touched() {
                continue;
            }
            if account.is_selfdestructed() {
                accounts.remove(&at);
                continue;
            }
            let kept = accounts.entry(at).or_default();
            if account.is_created() {
                kept.storage = Arc::default();
            }
            let mut written = account.storage.iter().filter(|(_, slot)| slot.is_changed()).peekable();
            if written.peek().is_some() {
                Arc::make_mut(&mut kept.storage).extend(written.map(|(index, slot)| (*index, slot.present_value())));
            }
            // A touched account that nobody looked into comes without its code.
            let code = account.info.code.clone().or_else(|| kept.info.code.take());
            kept.info = AccountInfo { code, ..account.info };
        }
    }
}

impl DatabaseRef for Store {
    type Error = Infallible;

    fn basic_ref(&self, at: Address) -> Result<Option<AccountInfo>, Infallible> {
        Ok(self.info(at).cloned())
    }

    /// Accounts come with their code.
    fn code_by_hash_ref(&self, _: B256) -> Result<Bytecode, Infallible> {
        Ok(Bytecode::default())
    }

    fn storage_ref(&self, at: Address, index: U256) -> Result<U256, Infallible> {
        Ok(self.word(at, index))
    }

    fn block_hash_ref(&self, number: u64) -> Result<B256, Infallible> {
        Ok(keccak256(number.to_be_bytes()))
    }
}
