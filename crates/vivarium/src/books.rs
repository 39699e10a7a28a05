//! Accounts that a service keeps in a journal of its own: written before anything is sent, folded again after a start.

use anyhow::{Context, Result};
use borsh::{BorshDeserialize, BorshSerialize};
use journal::{Journal, Options};
use std::path::Path;
use std::sync::{Arc, Mutex};

const KIND: u8 = 1;

/// What the records come to.
pub trait Fold: Default + Send + 'static {
    type Record: BorshSerialize + BorshDeserialize;
    /// Whose records they are, for errors: `a facilitator's`.
    const WHOSE: &str;

    fn apply(&mut self, record: &Self::Record);
}

/// Shared by all requests; written through one lock, so that credit is looked at and taken in one step.
pub struct Books<A>(Arc<Mutex<Inner<A>>>);

impl<A> Clone for Books<A> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

struct Inner<A> {
    accounts: A,
    journal: Journal,
}

impl<A: Fold> Books<A> {
    /// Opens the journal in `dir`, or begins one.
    ///
    /// # Errors
    /// It does not open, or holds somebody else's records.
    pub fn open(dir: &Path) -> Result<Self> {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let opened = Journal::open(dir, Options::default(), Box::new(|_| {}))
            .with_context(|| format!("the journal in {} does not open", dir.display()))?;
        let mut accounts = A::default();
        for record in &opened.records {
            let record = borsh::from_slice(&record.payload)
                .with_context(|| format!("record {} of {} is not {}", record.lsn, dir.display(), A::WHOSE))?;
            accounts.apply(&record);
        }
        Ok(Self(Arc::new(Mutex::new(Inner { accounts, journal: opened.journal }))))
    }

    pub fn read<T>(&self, read: impl FnOnce(&A) -> T) -> T {
        read(&self.0.lock().expect("no holder panics").accounts)
    }

    /// Writes what `decide` says of the accounts as they stand, and returns once it is on disk. `None`: nothing.
    ///
    /// # Errors
    /// The disk. Nothing may be sent for this record then.
    pub async fn write(&self, decide: impl FnOnce(&A) -> Option<A::Record> + Send + 'static) -> Result<bool> {
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
