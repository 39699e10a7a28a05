//! What to send next, and what the answers mean. Pure: told what gateways said.

use super::{DataTree, Transaction, TxId};
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// A transaction whose anchor is older than this many blocks is never mined. A rule of the network.
pub const ANCHOR_BLOCKS: u64 = 50;
/// Blocks on top after which a transaction counts as paid, and beyond its anchor's end after which it counts as
/// never mined. A choice: deeper than the reorganisations that exchanges wait for.
pub const CONFIRMATIONS: u64 = 20;

/// One object on its way. Written down (it is JSON) before its first step is taken, it goes on after a crash with
/// the same transaction: sending a step twice changes nothing, signing twice would pay twice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Upload {
    /// The signed transaction as it is sent.
    transaction: serde_json::Value,
    /// Height of the block that anchors it.
    pub anchor_height: u64,
    is_posted: bool,
    /// Chunks that a gateway has taken, from the first.
    chunks_done: usize,
}

/// What is sent next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Transaction,
    /// The chunk of this number, with its proof.
    Chunk(usize),
    /// All is sent; now [`judge`] what becomes of it.
    Done,
}

impl Upload {
    pub fn new(transaction: &Transaction, anchor_height: u64) -> Self {
        Self { transaction: transaction.to_json(), anchor_height, is_posted: false, chunks_done: 0 }
    }

    /// The transaction, checked against its own signature: a file on disk may have been altered.
    pub fn transaction(&self) -> Result<Transaction> {
        let transaction = Transaction::from_json(&self.transaction)?;
        transaction.verify(&transaction.id())?;
        Ok(transaction)
    }

    pub fn id(&self) -> Result<TxId> {
        Ok(self.transaction()?.id())
    }

    /// The next step for the data under `tree`; `Usage` if that is other data than was signed.
    pub fn next(&self, tree: &DataTree) -> Result<Step> {
        let draft = self.transaction()?.draft;
        if (draft.data_root, draft.data_bytes) != (tree.root(), tree.bytes()) {
            return Err(Error::usage("this is other data than the transaction was signed for"));
        }
        Ok(match (self.is_posted, self.chunks_done < tree.count()) {
            (false, _) => Step::Transaction,
            (true, true) => Step::Chunk(self.chunks_done),
            (true, false) => Step::Done,
        })
    }

    /// Bytes of data in the chunks that a gateway has taken.
    pub fn bytes_done(&self, tree: &DataTree) -> u64 {
        let last = self.chunks_done.checked_sub(1).and_then(|at| tree.range(at));
        last.map_or(0, |(_, end)| end)
    }

    /// A gateway took `step`.
    pub fn taken(&mut self, step: Step) {
        match step {
            Step::Transaction => self.is_posted = true,
            Step::Chunk(at) => self.chunks_done = self.chunks_done.max(at + 1),
            Step::Done => {}
        }
    }
}

/// What one gateway says of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Observation {
    /// Its newest block.
    pub height: u64,
    pub seen: Seen,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// It does not know it.
    Nothing,
    /// It has it, and no block has.
    Pending,
    /// In a block, with that many on top.
    Mined { confirmations: u64 },
}

/// What became of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// In a block that will stay.
    Paid,
    /// Never mined, and never will be: its anchor is too old. Another one may be signed.
    Unpaid,
    /// Neither is certain. Ask again; sign nothing for the same data meanwhile.
    Unknown,
}

/// Judges what the gateways say; `None` is one that could not be asked.
///
/// Paid: one has it deep enough and none that is as far contradicts. Unpaid: *every* gateway was asked, knows
/// nothing of it, and is so far beyond the anchor that no block can take it any more, not even after a
/// reorganisation. All else is unknown. Blocks are not verified here: whoever names only liars believes them.
pub fn judge(anchor_height: u64, said: &[Option<Observation>]) -> Outcome {
    let dead_from = anchor_height.saturating_add(ANCHOR_BLOCKS + CONFIRMATIONS);
    let heard = || said.iter().flatten();
    let is_deep = |o: &Observation| matches!(o.seen, Seen::Mined { confirmations } if confirmations >= CONFIRMATIONS);
    let is_gone = |o: &Observation| o.seen == Seen::Nothing && o.height > dead_from;
    if heard().any(is_deep) {
        return if heard().any(is_gone) { Outcome::Unknown } else { Outcome::Paid };
    }
    let all_gone = !said.is_empty() && said.iter().all(|o| o.as_ref().is_some_and(is_gone));
    if all_gone { Outcome::Unpaid } else { Outcome::Unknown }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_is_paid_unpaid_or_unknown() {
        let said = |height, seen| Some(Observation { height, seen });
        let mined = |confirmations| Seen::Mined { confirmations };
        let end = 100 + ANCHOR_BLOCKS + CONFIRMATIONS;
        for (outcome, heard) in [
            (Outcome::Unknown, vec![]),
            (Outcome::Unknown, vec![None]),
            (Outcome::Unknown, vec![said(110, Seen::Nothing)]),
            (Outcome::Unknown, vec![said(end + 1, Seen::Pending)]),
            (Outcome::Unknown, vec![said(130, mined(CONFIRMATIONS - 1))]),
            (Outcome::Paid, vec![said(130, mined(CONFIRMATIONS))]),
            // One that is behind contradicts nothing; one that is far ahead does.
            (Outcome::Paid, vec![said(130, mined(CONFIRMATIONS)), said(105, Seen::Nothing), None]),
            (Outcome::Unknown, vec![said(end + 9, mined(60)), said(end + 9, Seen::Nothing)]),
            (Outcome::Unknown, vec![said(end, Seen::Nothing)]),
            (Outcome::Unpaid, vec![said(end + 1, Seen::Nothing)]),
            // A gateway that could not be asked may have it.
            (Outcome::Unknown, vec![said(end + 1, Seen::Nothing), None]),
            (Outcome::Unknown, vec![said(end + 1, Seen::Nothing), said(end - 1, Seen::Nothing)]),
        ] {
            assert_eq!(judge(100, &heard), outcome, "{heard:?}");
        }
    }
}
