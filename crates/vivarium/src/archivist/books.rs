//! The archivist's journal: what treasuries paid, and what was taken for it. On disk before anything is sent.

use crate::books::Fold;
use alloy::primitives::{Address, B256};
use borsh::{BorshDeserialize, BorshSerialize};
use economy::Usdc;
use std::collections::{BTreeMap, BTreeSet};

/// Written before anything is sent for it.
pub type Books = crate::books::Books<Accounts>;

#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum Record {
    /// A transaction's payments: (place among its logs, amount). Each counts once, however often it is told.
    Paid { treasury: [u8; 20], transaction: [u8; 32], payments: Vec<(u64, Usdc)> },
    /// A checkpoint, for this price out of the treasury's credit. The first of the roots' CIDs is its own.
    Taken { treasury: [u8; 20], root: [u8; 32], roots: Vec<Vec<u8>>, price: Usdc },
}

/// A copy that is paid for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    pub treasury: Address,
    pub price: Usdc,
    /// CIDs; the checkpoint's first.
    pub roots: Vec<Vec<u8>>,
}

/// What the records come to.
#[derive(Debug, Default)]
pub struct Accounts {
    credits: BTreeMap<[u8; 20], Usdc>,
    counted: BTreeSet<([u8; 32], u64)>,
    items: BTreeMap<[u8; 32], Item>,
}

impl Accounts {
    pub fn credit(&self, treasury: Address) -> Usdc {
        self.credits.get(&treasury.into_array()).copied().unwrap_or(Usdc::ZERO)
    }

    /// By the checkpoint's digest.
    pub fn item(&self, root: B256) -> Option<&Item> {
        self.items.get(&root.0)
    }

    pub fn items(&self) -> impl Iterator<Item = &Item> {
        self.items.values()
    }

    /// The record that counts what of these was not counted yet; `None`: all was.
    pub fn paid(&self, treasury: Address, transaction: B256, payments: &[(u64, u128)]) -> Option<Record> {
        let is_new = |(place, _): &&(u64, u128)| !self.counted.contains(&(transaction.0, *place));
        let payments: Vec<_> = payments.iter().filter(is_new).map(|(place, amount)| (*place, Usdc(*amount))).collect();
        let is_any = !payments.is_empty();
        is_any.then_some(Record::Paid { treasury: treasury.into_array(), transaction: transaction.0, payments })
    }

    /// The record that takes a checkpoint; `None`: it was taken before, or the credit is too small.
    pub fn taken(&self, treasury: Address, root: B256, roots: Vec<Vec<u8>>, price: Usdc) -> Option<Record> {
        let may = !self.items.contains_key(&root.0) && self.credit(treasury) >= price;
        may.then(|| Record::Taken { treasury: treasury.into_array(), root: root.0, roots, price })
    }
}

impl Fold for Accounts {
    type Record = Record;
    const WHOSE: &str = "an archivist's";

    fn apply(&mut self, record: &Record) {
        match record {
            Record::Paid { treasury, transaction, payments } => {
                for (place, amount) in payments {
                    if self.counted.insert((*transaction, *place)) {
                        let credit = self.credits.entry(*treasury).or_default();
                        *credit = credit.saturating_add(*amount);
                    }
                }
            }
            Record::Taken { treasury, root, roots, price } => {
                let credit = self.credits.entry(*treasury).or_default();
                *credit = credit.saturating_sub(*price);
                let item = Item { treasury: (*treasury).into(), price: *price, roots: roots.clone() };
                self.items.insert(*root, item);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TREASURY: Address = Address::repeat_byte(0x77);
    const OTHER: Address = Address::repeat_byte(0x66);
    const TX: B256 = B256::repeat_byte(1);
    const ROOT: B256 = B256::repeat_byte(2);

    async fn pays(books: &Books, who: Address, payments: &'static [(u64, u128)]) -> bool {
        books.write(move |accounts| accounts.paid(who, TX, payments)).await.unwrap()
    }

    async fn takes(books: &Books, who: Address, root: B256, price: u128) -> bool {
        books.write(move |accounts| accounts.taken(who, root, vec![root.to_vec()], Usdc(price))).await.unwrap()
    }

    #[tokio::test]
    async fn a_payment_counts_once_an_item_is_paid_once_and_what_is_left_stays_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let books = Books::open(dir.path()).unwrap();
        assert!(pays(&books, TREASURY, &[(3, 700)]).await);
        assert!(!pays(&books, TREASURY, &[(3, 700)]).await, "told again");
        assert!(pays(&books, TREASURY, &[(3, 700), (5, 300)]).await, "another one in the same transaction");
        assert_eq!(books.read(|accounts| accounts.credit(TREASURY)), Usdc(1_000));
        assert!(!takes(&books, OTHER, ROOT, 1).await, "another treasury's money");
        assert!(!takes(&books, TREASURY, ROOT, 1_001).await, "too little");
        assert!(takes(&books, TREASURY, ROOT, 600).await);
        assert!(!takes(&books, TREASURY, ROOT, 100).await, "taken before");
        drop(books);
        let books = Books::open(dir.path()).unwrap();
        assert!(!pays(&books, TREASURY, &[(3, 700)]).await, "counted before the restart");
        assert!(!takes(&books, TREASURY, ROOT, 100).await);
        assert_eq!(books.read(|accounts| accounts.credit(TREASURY)), Usdc(400));
        assert_eq!(books.read(|accounts| accounts.item(ROOT).map(|item| item.price)), Some(Usdc(600)));
    }
}
