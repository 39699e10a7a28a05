//! The archivist's journal: what treasuries paid, and what was taken for it. On disk before anything is sent.

use alloy::primitives::{Address, B256};
use anyhow::{Context, Result};
use borsh::{BorshDeserialize, BorshSerialize};
use economy::Usdc;
use journal::{Journal, Options};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex};

const KIND: u8 = 1;

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

    fn apply(&mut self, record: Record) {
        match record {
            Record::Paid { treasury, transaction, payments } => {
                for (place, amount) in payments {
                    if self.counted.insert((transaction, place)) {
                        let credit = self.credits.entry(treasury).or_default();
                        *credit = credit.saturating_add(amount);
                    }
                }
            }
            Record::Taken { treasury, root, roots, price } => {
                let credit = self.credits.entry(treasury).or_default();
                *credit = credit.saturating_sub(price);
                self.items.insert(root, Item { treasury: treasury.into(), price, roots });
            }
        }
    }
}

/// Shared by all requests; written through one lock, so that credit is looked at and taken in one step.
#[derive(Clone)]
pub struct Books(Arc<Mutex<Inner>>);

struct Inner {
    accounts: Accounts,
    journal: Journal,
}

impl Books {
    /// Opens the journal in `dir`, or begins one.
    ///
    /// # Errors
    /// It does not open, or holds records that are not an archivist's.
    pub fn open(dir: &Path) -> Result<Self> {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let opened = Journal::open(dir, Options::default(), Box::new(|_| {}))
            .with_context(|| format!("the journal in {} does not open", dir.display()))?;
        let mut accounts = Accounts::default();
        for record in &opened.records {
            let record = borsh::from_slice(&record.payload)
                .with_context(|| format!("record {} of {} is not an archivist's", record.lsn, dir.display()))?;
            accounts.apply(record);
        }
        Ok(Self(Arc::new(Mutex::new(Inner { accounts, journal: opened.journal }))))
    }

    pub fn read<T>(&self, read: impl FnOnce(&Accounts) -> T) -> T {
        read(&self.0.lock().expect("no holder panics").accounts)
    }

    /// Writes what `decide` says of the accounts as they stand, and returns once it is on disk. `None`: nothing.
    ///
    /// # Errors
    /// The disk. Nothing may be sent for this record then.
    pub async fn write(&self, decide: impl FnOnce(&Accounts) -> Option<Record> + Send + 'static) -> Result<bool> {
        let books = self.0.clone();
        // The disk takes milliseconds: not on a thread that serves others.
        let written = tokio::task::spawn_blocking(move || {
            let (durable, lsn) = {
                let mut inner = books.lock().expect("no holder panics");
                let Some(record) = decide(&inner.accounts) else { return Ok(false) };
                let bytes = borsh::to_vec(&record).expect("encoding into memory does not fail");
                let lsn = inner.journal.append(KIND, 0, [0; 32], &bytes)?;
                inner.accounts.apply(record);
                (inner.journal.durable(), lsn)
            };
            durable.wait(lsn)?;
            Ok::<_, journal::Error>(true)
        });
        written.await.context("the journal's thread ended")?.context("the journal does not take records")
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
