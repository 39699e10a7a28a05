//! What the facilitator's journal folds into.

use crate::books::Fold;
use pay::facilitator::account::{Accounts, Record};

/// Written before anything is sent for it.
pub type Books = crate::books::Books<Accounts>;

impl Fold for Accounts {
    type Record = Record;
    const WHOSE: &str = "a facilitator's";

    fn apply(&mut self, record: &Record) {
        Self::apply(self, record);
    }
}
