//! What the journal folds into. One log, two machines (`economy::Agent`, `pay::ChannelBook`) and three
//! small folds for readers. Nothing here waits, sends or asks the time.

use crate::conversation::{ConversationInput, Conversations};
use crate::error::{Error, Result};
use crate::history::{EventLog, History, Sample};
use borsh::{BorshDeserialize, BorshSerialize};
use economy::{Agent, ChainEventKind, Input, Output, OutputId, Usdc};
use pay::book::{BookInput, BookOutput, ChannelBook, Service};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};

/// Receipts kept for `GET /receipts/{id}`; older ones are in the checkpoints. A guess, unmeasured.
const RECEIPTS_MAX: usize = 20_000;
/// Payers remembered. A guess, unmeasured; a forgotten one only waits a block longer.
const PAYERS_MAX: usize = 100_000;

/// One recorded input. Chance, time and signatures come in here and nowhere else.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum Recorded {
    Life(Input),
    Book(BookInput),
    Conversation(ConversationInput),
    /// A signed receipt in its JSON form. Holds digests of the exchange, never its text.
    Receipt {
        request: String,
        json: String,
    },
    /// A line of the log that no machine speaks: restarts, moves, takeovers.
    Line {
        kind: String,
        text: String,
    },
}

impl Recorded {
    /// The record's kind byte, for tools that look at a journal without decoding it.
    pub fn kind(&self) -> u8 {
        match self {
            Self::Life(_) => 1,
            Self::Book(_) => 2,
            Self::Conversation(_) => 3,
            Self::Receipt { .. } => 4,
            Self::Line { .. } => 5,
        }
    }

    pub fn encode(&self) -> Vec<u8> {
        borsh::to_vec(self).expect("encoding into memory does not fail")
    }

    pub fn decode(bytes: &[u8]) -> Result<Self> {
        borsh::from_slice(bytes).map_err(|e| Error::corrupt("a journal record does not decode").caused_by(e))
    }
}

/// What a record made the machines say.
#[derive(Debug, Default)]
pub struct Said {
    pub life: Vec<(OutputId, Output)>,
    pub book: Vec<BookOutput>,
}

impl Said {
    /// Recorded beside the input, so that replay stops at the first difference.
    pub fn digest(&self) -> [u8; 32] {
        let outputs: Vec<&Output> = self.life.iter().map(|(_, o)| o).collect();
        let bytes = borsh::to_vec(&(outputs, &self.book)).expect("encoding into memory does not fail");
        Sha256::digest(bytes).into()
    }
}

/// The whole folded state of one agent.
#[derive(Clone, Debug, BorshSerialize, BorshDeserialize)]
pub struct State {
    pub agent: Agent,
    pub book: ChannelBook,
    pub conversations: Conversations,
    pub receipts: BTreeMap<String, String>,
    receipt_order: Vec<String>,
    pub history: History,
    pub log: EventLog,
    /// The last block the life heard of: the log's lines name it, and a successor reads events after it.
    block: u64,
    /// Income the life has not heard of yet.
    unposted: Unposted,
    /// Every lease this agent rented.
    leases: BTreeSet<u64>,
    /// Calls earned so far, over the whole life.
    pub served: u64,
    /// Payers who have paid before: the next call of such a one may be settled while it is served.
    payers: BTreeSet<[u8; 20]>,
    /// Running digest over all receipts.
    receipts_digest: [u8; 32],
}

/// Earned calls between two `Input::Earned`. Book = ledger + this tail.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Unposted {
    pub first_lsn: u64,
    pub last_lsn: u64,
    pub count: u64,
    pub tokens: u64,
    pub sum: Usdc,
}

impl State {
    pub fn new(agent: Agent, book: ChannelBook) -> Self {
        Self {
            agent,
            book,
            conversations: Conversations::default(),
            receipts: BTreeMap::new(),
            receipt_order: Vec::new(),
            history: History::default(),
            log: EventLog::default(),
            block: 0,
            unposted: Unposted::default(),
            leases: BTreeSet::new(),
            served: 0,
            payers: BTreeSet::new(),
            receipts_digest: [0; 32],
        }
    }

    /// Applies one record. `now` is chain time in seconds, as recorded.
    pub fn apply(&mut self, lsn: u64, now: u64, record: &Recorded) -> Said {
        let mut said = Said::default();
        match record {
            Recorded::Life(input) => {
                if let Input::Block(view) = input {
                    self.block = view.number;
                }
                if let Input::Chain(events) = input {
                    for event in events {
                        if let ChainEventKind::Rented { lease, .. } = event.kind {
                            self.leases.insert(lease);
                        }
                    }
                }
                if let Input::Earned { .. } = input {
                    self.unposted = Unposted::default();
                }
                let outputs = self.agent.step(now, lsn, input.clone());
                for (index, output) in (0u32..).zip(outputs) {
                    if let Output::Note(note) = &output {
                        self.log.add((lsn, index), now, self.block, note.kind(), note.to_string());
                    }
                    said.life.push((OutputId { lsn, index }, output));
                }
                if let Input::Block(view) = input {
                    self.history.observe(Sample {
                        at: now,
                        balance: view.balance.0,
                        earned: self.agent.ledger().sales().0,
                        rent: self.agent.ledger().rent().0,
                    });
                }
            }
            Recorded::Book(input) => {
                said.book = self.book.apply(input.clone());
                for output in &said.book {
                    self.count_income(lsn, output);
                }
            }
            Recorded::Conversation(input) => self.conversations.apply(input),
            Recorded::Receipt { request, json } => {
                let mut hasher = Sha256::new();
                hasher.update(self.receipts_digest);
                hasher.update(json);
                self.receipts_digest = hasher.finalize().into();
                if self.receipts.insert(request.clone(), json.clone()).is_none() {
                    self.receipt_order.push(request.clone());
                }
                if self.receipt_order.len() > RECEIPTS_MAX {
                    let oldest = self.receipt_order.remove(0);
                    self.receipts.remove(&oldest);
                }
            }
            Recorded::Line { kind, text } => {
                self.log.add((lsn, 0), now, self.block, kind, text.clone());
            }
        }
        said
    }

    fn count_income(&mut self, lsn: u64, output: &BookOutput) {
        match output {
            BookOutput::Earned { request, amount } => {
                let Some(entry) = self.book.entry(request) else { return };
                if self.unposted.count == 0 {
                    self.unposted.first_lsn = lsn;
                }
                self.unposted.last_lsn = lsn;
                self.unposted.count += 1;
                self.unposted.sum = self.unposted.sum.saturating_add(*amount);
                if let Service::Delivered(delivery) = &entry.service {
                    self.unposted.tokens += u64::from(delivery.completion_tokens);
                }
                self.served += 1;
                if self.payers.len() < PAYERS_MAX {
                    self.payers.insert(entry.reservation.settlement.payer);
                }
            }
            BookOutput::Unearned { amount, .. } => {
                self.unposted.sum = self.unposted.sum.saturating_sub(*amount);
            }
            BookOutput::Settle { .. }
            | BookOutput::Receipt { .. }
            | BookOutput::Owe { .. }
            | BookOutput::Refused { .. }
            // The node sells by `exact` alone so far: no channel input is ever recorded.
            | BookOutput::Channel(_) => {}
        }
    }

    pub fn unposted(&self) -> Unposted {
        self.unposted
    }

    pub fn knows_payer(&self, payer: &[u8; 20]) -> bool {
        self.payers.contains(payer)
    }

    pub fn receipts_digest(&self) -> [u8; 32] {
        self.receipts_digest
    }

    pub fn leases(&self) -> &BTreeSet<u64> {
        &self.leases
    }

    /// The last block that was fed.
    pub fn block(&self) -> u64 {
        self.block
    }

    pub fn encode(&self) -> Vec<u8> {
        borsh::to_vec(self).expect("encoding into memory does not fail")
    }

    pub fn decode(bytes: &[u8]) -> Result<Self> {
        borsh::from_slice(bytes).map_err(|e| Error::corrupt("a snapshot does not decode").caused_by(e))
    }

    /// Digest of the whole state: equal after replay, or the code changed.
    pub fn digest(&self) -> [u8; 32] {
        Sha256::digest(self.encode()).into()
    }
}
