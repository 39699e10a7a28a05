//! The facilitator's journal and what it folds into.

use anyhow::{Context, Result};
use journal::{Journal, Options};
use pay::facilitator::account::{Accounts, Record};
use std::path::Path;
use std::sync::{Arc, Mutex};

const KIND: u8 = 1;

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
    /// It does not open, or holds records that are not a facilitator's.
    pub fn open(dir: &Path) -> Result<Self> {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let opened = Journal::open(dir, Options::default(), Box::new(|_| {}))
            .with_context(|| format!("the journal in {} does not open", dir.display()))?;
        let mut accounts = Accounts::default();
        for record in &opened.records {
            let record = borsh::from_slice(&record.payload)
                .with_context(|| format!("record {} of {} is not a facilitator's", record.lsn, dir.display()))?;
            accounts.apply(&record);
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
                inner.accounts.apply(&record);
                (inner.journal.durable(), lsn)
            };
            durable.wait(lsn)?;
            Ok::<_, journal::Error>(true)
        });
        written.await.context("the journal's thread ended")?.context("the journal does not take records")
    }
}
