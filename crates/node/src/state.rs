//! What the journal folds into. One log, two machines (`economy::Agent`, `pay::ChannelBook`) and three
//! small folds for readers. Nothing here waits, sends or asks the time.

use crate::conversation::{ConversationInput, Conversations};
use crate::error::{Error, Result};
use crate::history::{EventLog, History, Sample};
use borsh::{BorshDeserialize, BorshSerialize};
use economy::{Agent, ChainEvent, ChainEventKind, Input, Outcome, Output, OutputId, Usdc};
use pay::TransferMethod;
use pay::book::channels::CallService;
use pay::book::{BookInput, BookOutput, ChannelBook, ChannelOutput, Service};
use pay::receipt::SignedReceipt;
use pay::receipt::tree::{Place, Trees};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::Read;

/// Receipts kept for `GET /receipts/{id}`; older ones are in the checkpoints. A guess, unmeasured.
const RECEIPTS_MAX: usize = 20_000;
/// Payers remembered. A guess, unmeasured; a forgotten one only waits a block longer.
const PAYERS_MAX: usize = 100_000;
/// Blocks remembered by hash. A chain that lost more than all of them is another chain.
const READ_KEPT: usize = 64;

/// One recorded input. Chance, time and signatures come in here and nowhere else.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
#[expect(clippy::large_enum_variant, reason = "made and encoded in one place, one at a time: nothing is kept of them")]
pub enum Recorded {
    Life(Input),
    Book(BookInput),
    Conversation(ConversationInput),
    /// A signed receipt in its JSON form, and the signature of its COSE form. Holds digests of the exchange, never its
    /// text.
    Receipt {
        request: String,
        json: String,
        cose: [u8; 64],
    },
    /// A line of the log that no machine speaks: restarts, moves, takeovers.
    Line {
        kind: String,
        text: String,
    },
    /// Everything up to this block was read.
    Read {
        number: u64,
        hash: [u8; 32],
    },
    /// What a look at the chain brought, or a part of it, for both machines. An event and the payment that it tells of are in
    /// one record, so that a crash leaves both or neither: by `events` alone it is known what to take back when the blocks
    /// are gone ([`State::take_back_above`]).
    Events {
        events: Vec<ChainEvent>,
        payments: Vec<BookInput>,
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
            Self::Read { .. } => 6,
            Self::Events { .. } => 7,
        }
    }

    pub fn encode(&self) -> Vec<u8> {
        borsh::to_vec(self).expect("encoding into memory does not fail")
    }

    pub fn decode(bytes: &[u8]) -> Result<Self> {
        borsh::from_slice(bytes).map_err(|e| Error::corrupt("a journal record does not decode").caused_by(e))
    }

    /// At most [`TOLD_MAX`] of them in one record.
    pub fn events(told: &[Told]) -> Self {
        assert!(told.len() <= TOLD_MAX, "a record of {} events", told.len());
        Self::Events {
            events: told.iter().filter_map(|told| told.event.clone()).collect(),
            payments: told.iter().filter_map(|told| told.payment.clone()).collect(),
        }
    }
}

/// What one event means for the life, for the book of payments, or for both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    pub event: Option<ChainEvent>,
    pub payment: Option<BookInput>,
}

/// How many of [`Told`] one record holds at most: half of what the ledger can take back (its last 256 events), since a crash
/// may leave a record whose blocks are gone. At some 200 bytes each that is far below what the journal takes.
pub const TOLD_MAX: usize = 128;

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
    /// By request.
    pub receipts: BTreeMap<String, Kept>,
    /// At most [`RECEIPTS_MAX`].
    receipt_order: VecDeque<String>,
    /// What heartbeats commit the agent to.
    pub receipt_trees: Trees,
    pub history: History,
    pub log: EventLog,
    /// The last block the life heard of: the log's lines name it.
    block: u64,
    /// The last blocks that were read, ascending, and what they held since the first of them: a chain that comes
    /// back without them (a reorg while nobody looked) is noticed and its events are taken back. At most [`READ_KEPT`]
    /// blocks; what they held was paid for in their gas.
    read: VecDeque<(u64, [u8; 32])>,
    recent: VecDeque<ChainEvent>,
    /// Income the life has not heard of yet.
    unposted: Unposted,
    /// Every lease this agent rented.
    leases: BTreeSet<u64>,
    /// Calls earned so far, over the whole life.
    pub served: u64,
    /// Payers who have paid before: the next call of such a one may be settled while it is served.
    payers: BTreeSet<[u8; 20]>,
    /// Income that the life has heard of and that a reorganisation took back: what is earned next makes up for it, and the
    /// life hears of what is more.
    #[borsh(deserialize_with = "nothing_at_the_end")]
    unearned: Usdc,
    #[borsh(deserialize_with = "nothing_at_the_end")]
    led: Led,
}

/// Snapshots of builds before [`State::unearned`] or [`State::led`] end where it begins.
fn nothing_at_the_end<T: Default + BorshDeserialize, R: Read>(reader: &mut R) -> std::io::Result<T> {
    let mut first = [0];
    match reader.read(&mut first)? {
        0 => Ok(T::default()),
        _ => T::deserialize_reader(&mut first.as_slice().chain(reader)),
    }
}

/// Whose records the last ones are. Zeros before the first operator's, and from a snapshot that did not say, until the next
/// block is recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Led {
    pub epoch: u64,
    pub lease: u64,
}

/// A receipt as it was signed, and where its leaf is.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Kept {
    pub json: String,
    /// Signature of the COSE form.
    pub cose: [u8; 64],
    pub place: Place,
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
            receipt_order: VecDeque::new(),
            receipt_trees: Trees::default(),
            history: History::default(),
            log: EventLog::default(),
            block: 0,
            read: VecDeque::new(),
            recent: VecDeque::new(),
            unposted: Unposted::default(),
            leases: BTreeSet::new(),
            served: 0,
            payers: BTreeSet::new(),
            unearned: Usdc::ZERO,
            led: Led::default(),
        }
    }

    /// Applies one record. `now` is chain time in seconds, as recorded.
    pub fn apply(&mut self, lsn: u64, now: u64, record: &Recorded) -> Said {
        let mut said = Said::default();
        match record {
            Recorded::Life(input) => said.life = self.live(lsn, now, input),
            Recorded::Book(input) => said.book = self.pay(lsn, input),
            Recorded::Events { events, payments } => {
                said.book = payments.iter().flat_map(|input| self.pay(lsn, input)).collect();
                if !events.is_empty() {
                    said.life = self.live(lsn, now, &Input::Chain(events.clone()));
                }
            }
            Recorded::Conversation(input) => self.conversations.apply(input),
            Recorded::Receipt { request, json, cose } => {
                self.keep(now, request, json, *cose);
            }
            Recorded::Line { kind, text } => {
                self.log.add((lsn, 0), now, self.block, kind, text.clone());
            }
            Recorded::Read { number, hash } => {
                self.read.retain(|(earlier, _)| earlier < number);
                self.read.push_back((*number, *hash));
                if self.read.len() > READ_KEPT {
                    self.read.pop_front();
                }
                let first = self.read.front().map_or(0, |(first, _)| *first);
                self.recent.retain(|event| event.block > first);
            }
        }
        said
    }

    /// One input of the life.
    fn live(&mut self, lsn: u64, now: u64, input: &Input) -> Vec<(OutputId, Output)> {
        match input {
            Input::Booted { epoch, lease, .. } => self.led = Led { epoch: *epoch, lease: *lease },
            Input::Block(view) => {
                self.block = view.number;
                if let Some(active) = view.active.as_ref().filter(|_| view.operator_is_me) {
                    self.led = Led { epoch: view.epoch, lease: active.id };
                }
            }
            Input::Chain(events) => events.iter().for_each(|event| self.remember(event)),
            Input::Earned { .. } => self.unposted = Unposted::default(),
            Input::Done { id, outcome } => {
                let id = (id.lsn, id.index);
                match outcome {
                    Outcome::Done { block } => self.receipt_trees.anchored(id, *block),
                    Outcome::Failed { .. } => self.receipt_trees.lost(id),
                    Outcome::Unknown => {}
                }
            }
            _ => {}
        }
        let outputs = self.agent.step(now, lsn, input.clone());
        for (index, output) in (0u32..).zip(&outputs) {
            match output {
                Output::Heartbeat { .. } => {
                    let day = self.day(now);
                    self.receipt_trees.cut((lsn, index), day);
                }
                Output::Note(note) => self.log.add((lsn, index), now, self.block, note.kind(), note.to_string()),
                _ => {}
            }
        }
        if let Input::Block(view) = input {
            self.history.observe(Sample {
                at: now,
                balance: view.balance.0,
                earned: self.agent.ledger().sales().0,
                rent: self.agent.ledger().rent().0,
            });
        }
        (0..).zip(outputs).map(|(index, output)| (OutputId { lsn, index }, output)).collect()
    }

    /// One input of the book.
    fn pay(&mut self, lsn: u64, input: &BookInput) -> Vec<BookOutput> {
        let outputs = self.book.apply(input.clone());
        for output in &outputs {
            self.count_income(lsn, output);
        }
        outputs
    }

    fn keep(&mut self, now: u64, request: &str, json: &str, cose: [u8; 64]) {
        // One receipt a request: a second one would be a second leaf for the same money.
        let Ok(signed) = SignedReceipt::from_json(json) else { return };
        if self.receipts.contains_key(request) {
            return;
        }
        let place = self.receipt_trees.add(signed.receipt.leaf(), self.day(now));
        self.receipts.insert(request.to_owned(), Kept { json: json.to_owned(), cose, place });
        self.receipt_order.push_back(request.to_owned());
        if self.receipt_order.len() > RECEIPTS_MAX
            && let Some(oldest) = self.receipt_order.pop_front()
        {
            self.receipts.remove(&oldest);
            let kept = self.receipt_order.front().and_then(|request| self.receipts.get(request));
            if let Some(first) = kept.map(|kept| kept.place.tree) {
                self.receipt_trees.forget_before(first);
            }
        }
    }

    /// Days of this chain, scaled in a world in fast motion.
    fn day(&self, now: u64) -> u64 {
        now / u64::from(self.agent.genesis().timers.day.max(1))
    }

    fn remember(&mut self, event: &ChainEvent) {
        match &event.kind {
            ChainEventKind::Reverted(gone) => {
                self.recent.retain(|kept| (kept.block, kept.index) < (gone.block, gone.index));
                return;
            }
            ChainEventKind::Rented { lease, .. } => {
                self.leases.insert(*lease);
            }
            _ => {}
        }
        // A range may be fed twice.
        if self.recent.back().is_none_or(|last| (last.block, last.index) < (event.block, event.index)) {
            self.recent.push_back(event.clone());
        }
    }

    /// The blocks that were read last, newest first: (height, hash).
    pub fn read_blocks(&self) -> impl Iterator<Item = (u64, [u8; 32])> + '_ {
        self.read.iter().rev().copied()
    }

    /// What to record so that nothing read above `height` counts any more, newest first, so that a crash between two leaves
    /// the older events to be taken back after it. Empty: nothing was read.
    ///
    /// Payments go by their own block, too: of one whose transaction was mined the book hears before its event is read.
    pub fn take_back_above(&self, height: u64) -> Vec<Recorded> {
        let gone = self.recent.iter().rev().filter(|event| event.block > height);
        let mut told: Vec<Told> =
            gone.map(|event| Told { payment: reversed(&event.kind), event: Some(reverted(event.clone())) }).collect();
        let settled =
            self.book.settled_above(height).map(|(method, payer, nonce)| BookInput::Reversed { method, payer, nonce });
        let is_unheard = |input: &BookInput| !told.iter().any(|told| told.payment.as_ref() == Some(input));
        let unheard: Vec<BookInput> = settled.filter(is_unheard).collect();
        told.extend(unheard.into_iter().map(|payment| Told { event: None, payment: Some(payment) }));
        told.chunks(TOLD_MAX).map(Recorded::events).collect()
    }

    fn count_income(&mut self, lsn: u64, output: &BookOutput) {
        match output {
            BookOutput::Earned { request, amount } => {
                let Some(entry) = self.book.entry(request) else { return };
                let tokens = match &entry.service {
                    Service::Delivered(delivery) => delivery.completion_tokens,
                    _ => 0,
                };
                if self.payers.len() < PAYERS_MAX {
                    self.payers.insert(entry.reservation.settlement.payer());
                }
                self.count_call(lsn, *amount, tokens);
            }
            BookOutput::Unearned { amount, .. } => {
                let posted = amount.saturating_sub(self.unposted.sum);
                self.unposted.sum = self.unposted.sum.saturating_sub(*amount);
                self.unearned = self.unearned.saturating_add(posted);
                self.served = self.served.saturating_sub(1);
            }
            BookOutput::Channel(ChannelOutput::Charged { request, amount, .. }) => {
                let Some(call) = self.book.channels().call(request) else { return };
                let tokens = match &call.service {
                    CallService::Delivered(delivery) => delivery.completion_tokens,
                    _ => 0,
                };
                self.count_call(lsn, *amount, tokens);
            }
            BookOutput::Settle { .. }
            | BookOutput::Receipt { .. }
            | BookOutput::Owe { .. }
            | BookOutput::Refused { .. }
            | BookOutput::Channel(_) => {}
        }
    }

    fn count_call(&mut self, lsn: u64, amount: Usdc, tokens: u32) {
        self.served += 1;
        let made_up = amount.min(self.unearned);
        self.unearned = self.unearned.saturating_sub(made_up);
        if !made_up.is_zero() && made_up == amount {
            // The life has heard of this call.
            return;
        }
        if self.unposted.count == 0 {
            self.unposted.first_lsn = lsn;
        }
        self.unposted.last_lsn = lsn;
        self.unposted.count += 1;
        self.unposted.sum = self.unposted.sum.saturating_add(amount.saturating_sub(made_up));
        self.unposted.tokens += u64::from(tokens);
    }

    pub fn unposted(&self) -> Unposted {
        self.unposted
    }

    /// What the book has charged less what the ledger has heard of, or is about to: zero, or one of the two is wrong.
    /// Micro-USDC.
    pub fn book_difference(&self) -> i128 {
        let signed = |amount: Usdc| i128::try_from(amount.0).expect("USDC's whole supply fits 64 bits");
        let charged = signed(self.book.totals().earned) + signed(self.book.channels().totals().charged);
        charged + signed(self.unearned) - signed(self.agent.ledger().sales()) - signed(self.unposted.sum)
    }

    pub fn knows_payer(&self, payer: &[u8; 20]) -> bool {
        self.payers.contains(payer)
    }

    pub fn leases(&self) -> &BTreeSet<u64> {
        &self.leases
    }

    /// Who led when the last records were made: what a journal that lies on a disk says of whose it is.
    pub fn led(&self) -> Led {
        self.led
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

/// What takes an event back in the life.
pub fn reverted(event: ChainEvent) -> ChainEvent {
    ChainEvent { block: event.block, index: event.index, kind: ChainEventKind::Reverted(Box::new(event)) }
}

/// What takes the payment or refund of an event back in the book.
fn reversed(event: &ChainEventKind) -> Option<BookInput> {
    match event {
        ChainEventKind::ExactSettled { payer, nonce, .. } => {
            Some(BookInput::Reversed { method: TransferMethod::Eip3009, payer: *payer, nonce: *nonce })
        }
        ChainEventKind::ExactRefunded { payer, nonce, .. } => {
            Some(BookInput::RefundReversed { payer: *payer, nonce: *nonce })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::genesis::for_tests as fresh;
    use crate::paid_call;

    fn event(block: u64, kind: ChainEventKind) -> ChainEvent {
        ChainEvent { block, index: 0, kind }
    }

    /// Records, numbered from `state`'s first free number in this test.
    fn feed(state: &mut State, lsn: &mut u64, records: Vec<Recorded>) {
        for record in records {
            *lsn += 1;
            state.apply(*lsn, *lsn, &record);
        }
    }

    fn block(number: u64, hash: u8, events: Vec<ChainEventKind>) -> Vec<Recorded> {
        let events = events.into_iter().map(|kind| event(number, kind)).collect();
        vec![Recorded::Life(Input::Chain(events)), Recorded::Read { number, hash: [hash; 32] }]
    }

    /// A development chain killed in mid-block comes back without its last blocks; a public one may reorganise while
    /// the node is down. What those blocks held is taken back, and may then come anew in other blocks.
    #[test]
    fn blocks_that_the_chain_lost_while_nobody_looked_are_taken_back_once() {
        let (mut state, mut lsn) = (fresh(), 0);
        let gift = |n| ChainEventKind::TransferIn { from: [7; 20], amount: Usdc(n) };
        let paid_in = ChainEventKind::ToppedUp { lease: 1, amount: Usdc(30) };
        feed(&mut state, &mut lsn, block(10, 1, vec![ChainEventKind::Rented { lease: 1, prepay: Usdc(0) }]));
        feed(&mut state, &mut lsn, block(11, 2, vec![gift(1_000)]));
        feed(&mut state, &mut lsn, block(12, 3, vec![paid_in.clone()]));
        let treasury = |state: &State| state.agent.ledger().balance();
        assert_eq!((treasury(&state), state.agent.ledger().escrow()), (970, 30));
        let read: Vec<u64> = state.read_blocks().map(|(number, _)| number).collect();
        assert_eq!(read, [12, 11, 10]);
        assert_eq!(state.take_back_above(12), [], "nothing was lost");

        // The chain came back at block 11: the top-up was never mined.
        let gone = state.take_back_above(11);
        feed(&mut state, &mut lsn, gone);
        assert_eq!((treasury(&state), state.agent.ledger().escrow()), (1_000, 0));
        assert_eq!(state.take_back_above(11), [], "once");

        // Sent again, it is mined in another block 12, which is read instead of the lost one.
        feed(&mut state, &mut lsn, block(12, 9, vec![paid_in]));
        assert_eq!((treasury(&state), state.agent.ledger().escrow()), (970, 30));
        assert_eq!(state.read_blocks().next(), Some((12, [9; 32])));
        // A successor decodes the same memory.
        assert_eq!(State::decode(&state.encode()).unwrap().read_blocks().count(), 3);
    }

    fn settled(nonce: u8, block: u64) -> Recorded {
        let (method, payer) = (TransferMethod::Eip3009, [9; 20]);
        let (amount, tx) = (Usdc(900), [8; 32]);
        let input = BookInput::Settled { method, payer, nonce: [nonce; 32], amount, tx, block, recorded: true };
        Recorded::Book(input)
    }

    fn reserved(nonce: u8) -> Recorded {
        Recorded::Book(paid_call::reserved([9; 20], nonce, 1, 1_000))
    }

    fn delivered(nonce: u8) -> Recorded {
        let (request, delivery) = (paid_call::request([9; 20], nonce), paid_call::delivery(0, 2));
        Recorded::Book(BookInput::Delivered { request, delivery, amount: paid_call::PRICE })
    }

    /// A node hears of a payment from its transaction's receipt, and dies before it has read that block. If the block never
    /// was, no event tells.
    #[test]
    fn a_payment_of_a_block_that_was_never_read_goes_with_the_block() {
        let (mut state, mut lsn) = (fresh(), 0);
        feed(&mut state, &mut lsn, block(10, 1, vec![]));
        feed(&mut state, &mut lsn, vec![settled(1, 10), settled(2, 11)]);
        assert_eq!(state.book.totals().unmatched, Usdc(1_800));
        let gone = state.take_back_above(10);
        let reversed = BookInput::Reversed { method: TransferMethod::Eip3009, payer: [9; 20], nonce: [2; 32] };
        assert_eq!(gone, [Recorded::Events { events: vec![], payments: vec![reversed] }]);
        feed(&mut state, &mut lsn, gone);
        assert_eq!(state.book.totals().unmatched, Usdc(900));
        assert_eq!(state.take_back_above(10), [], "once");
    }

    /// What the life hears of income, as the node posts it.
    fn posted(state: &State, lsn: u64) -> Vec<Recorded> {
        let Unposted { count, tokens, sum, .. } = state.unposted();
        let earned = Input::Earned { first_lsn: lsn, last_lsn: lsn, count, tokens, sum };
        if count == 0 { Vec::new() } else { vec![Recorded::Life(earned)] }
    }

    #[test]
    fn income_that_a_reorganisation_takes_back_after_it_was_posted_is_not_posted_twice() {
        let (mut state, mut lsn) = (fresh(), 0);
        let sold = |state: &State| (state.agent.ledger().sales().0, state.served, state.book_difference());
        feed(&mut state, &mut lsn, vec![reserved(1), delivered(1), settled(1, 11)]);
        let posts = posted(&state, lsn);
        feed(&mut state, &mut lsn, posts);
        assert_eq!(sold(&state), (900, 1, 0));
        let reversed = || BookInput::Reversed { method: TransferMethod::Eip3009, payer: [9; 20], nonce: [1; 32] };
        feed(&mut state, &mut lsn, vec![Recorded::Book(reversed())]);
        assert_eq!((sold(&state), posted(&state, lsn)), ((900, 0, 0), vec![]));
        // Another call makes up for it, on whatever host.
        state = State::decode(&state.encode()).unwrap();
        feed(&mut state, &mut lsn, vec![reserved(2), delivered(2), settled(2, 12)]);
        assert_eq!((sold(&state), posted(&state, lsn)), ((900, 1, 0), vec![]));
        feed(&mut state, &mut lsn, vec![settled(1, 13)]);
        let posts = posted(&state, lsn);
        feed(&mut state, &mut lsn, posts);
        assert_eq!(sold(&state), (1_800, 2, 0));
    }

    #[test]
    fn snapshots_of_builds_that_kept_less_are_read() {
        let state = fresh();
        let bytes = state.encode();
        // Before it was kept who led; before unearned income was.
        let (led, unearned) = (size_of::<Led>(), size_of::<u128>());
        for left_out in [led, led + unearned] {
            let older = &bytes[..bytes.len() - left_out];
            assert_eq!(State::decode(older).unwrap().digest(), state.digest());
            assert!(State::decode(&bytes[..bytes.len() - left_out + 1]).is_err(), "a part of it is damage");
        }
    }

    #[test]
    fn whose_records_the_last_ones_are_is_what_its_operator_recorded() {
        let (mut state, mut lsn) = (fresh(), 0);
        let booted = |epoch, lease| Recorded::Life(Input::Booted { epoch, lease, restored: false });
        feed(&mut state, &mut lsn, vec![booted(1, 7)]);
        assert_eq!(state.led(), Led { epoch: 1, lease: 7 });
        feed(&mut state, &mut lsn, vec![booted(2, 9)]);
        assert_eq!(State::decode(&state.encode()).unwrap().led(), Led { epoch: 2, lease: 9 });
    }
}
