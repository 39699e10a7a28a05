//! A seeded world around the book: customers, a chain that mines late, twice or never, and a process that crashes
//! and loses what was not durable. Whatever happens, nobody pays for nothing and nothing is paid twice.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeSet;

const PAYERS: u8 = 3;
const NONCES: u8 = 4;

/// What the chain did: one entry an authorisation, as the token enforces.
#[derive(Default)]
struct Chain {
    paid: BTreeSet<(u8, u8)>,
    refunded: BTreeSet<(u8, u8)>,
    /// In the mempool.
    pending: BTreeSet<(u8, u8)>,
}

#[derive(Default)]
struct World {
    /// All records written; those up to `durable` survive a crash.
    journal: Vec<BookInput>,
    durable: usize,
    chain: Chain,
    /// Customers that got (a part of) an answer.
    served: BTreeSet<(u8, u8)>,
    /// Income posted and taken back, by outputs of durable records.
    earned: i64,
    receipts: u32,
}

struct Node {
    book: ChannelBook,
}

impl World {
    fn record(&mut self, node: &mut Node, input: BookInput) {
        self.journal.push(input.clone());
        let outputs = node.book.apply(input);
        assert!(node.book.totals().is_balanced());
        let recomputed = node.book.entries().fold(Totals::default(), |mut sum, (_, entry)| {
            sum.replace(&Totals::default(), &Totals::of(entry));
            sum
        });
        let totals = Totals { unmatched: Usdc(0), unclaimed: Usdc(0), ..node.book.totals() };
        assert_eq!(totals, recomputed, "running sums are the sums");
        // Output commit: what leaves the process waits for the record to be durable.
        self.durable = self.journal.len();
        for output in outputs {
            match output {
                BookOutput::Earned { amount, .. } => self.earned += i64::try_from(amount.micro()).unwrap(),
                BookOutput::Unearned { amount, .. } => self.earned -= i64::try_from(amount.micro()).unwrap(),
                BookOutput::Receipt { .. } => self.receipts += 1,
                BookOutput::Settle { .. } | BookOutput::Owe { .. } => {}
                BookOutput::Refused { .. } => panic!("decide was asked first"),
                BookOutput::Channel(_) => panic!("no channels here"),
            }
        }
    }

    /// A record that is written but lost with the crash that follows: nothing of it left the process.
    fn record_and_lose(&mut self, node: &mut Node, input: BookInput) {
        node.book.apply(input);
        self.restart(node);
    }

    fn restart(&mut self, node: &mut Node) {
        let mut book = ChannelBook::new(Limits::default());
        for input in &self.journal[..self.durable] {
            book.apply(input.clone());
        }
        node.book = book;
        for input in node.book.interrupted(NOW + 5) {
            self.record(node, input);
        }
        // The log reader starts from an old block: everything settled is read again.
        let paid: Vec<_> = self.chain.paid.iter().copied().collect();
        for (payer, nonce) in paid {
            self.record(node, settled(payer, nonce, 100, true));
        }
    }

    fn step(&mut self, node: &mut Node, op: u8, payer: u8, nonce: u8) {
        let request = id(payer, nonce);
        let in_flight = node.book.in_flight().any(|(r, _)| *r == request);
        match op {
            0 | 1 => {
                let asked = ask(payer, nonce, nonce);
                if node.book.decide(&asked, NOW) == Decision::New {
                    let timing = if op == 0 { Timing::AtOnce } else { Timing::OnDelivery };
                    self.record(node, BookInput::Reserved(reservation(payer, nonce, nonce, timing)));
                }
            }
            2 if in_flight => {
                self.record(node, BookInput::Mark { request, tokens: 64, amount: Usdc(30) });
                self.served.insert((payer, nonce));
            }
            3 if in_flight => {
                self.record(node, delivered(payer, nonce, payer == 1));
                self.served.insert((payer, nonce));
            }
            // Never aborted after a mark: something was delivered.
            4 if in_flight && !self.served.contains(&(payer, nonce)) => self.record(node, aborted(payer, nonce)),
            5 if node.book.may_settle(&request) => {
                self.record(node, sent(payer, nonce));
                self.chain.pending.insert((payer, nonce));
            }
            6 if self.chain.pending.remove(&(payer, nonce)) => {
                self.chain.paid.insert((payer, nonce));
            }
            // The transaction is dropped; nobody knows.
            7 if self.chain.pending.remove(&(payer, nonce)) => {
                self.record(node, BookInput::SettleUnknown { request });
            }
            8 if self.chain.paid.contains(&(payer, nonce)) => self.record(node, settled(payer, nonce, 100, true)),
            9 => {
                let owed: Vec<_> = node.book.owed().map(|(r, _, _)| *r).collect();
                if owed.contains(&request) && self.chain.refunded.insert((payer, nonce)) {
                    self.record(
                        node,
                        BookInput::Refunded { payer: [payer; 20], nonce: [nonce; 32], amount: Usdc(100) },
                    );
                }
            }
            10 => self.restart(node),
            11 if in_flight => self.record_and_lose(node, delivered(payer, nonce, true)),
            // A third party finds the authorisation and settles it through the treasury.
            12 if node.book.entry(&request).is_some() => {
                self.chain.pending.remove(&(payer, nonce));
                self.chain.paid.insert((payer, nonce));
            }
            13 => {
                let bytes = borsh::to_vec(&node.book).unwrap();
                node.book = borsh::from_slice(&bytes).unwrap();
            }
            _ => {}
        }
    }

    /// Everything ends: in-flight requests are closed, transactions mined, events read, refunds sent.
    fn quiesce(&mut self, node: &mut Node) {
        self.restart(node);
        for _ in 0..2 {
            let due: Vec<_> = node
                .book
                .unsettled()
                .map(|(_, e)| (e.reservation.settlement.payer()[0], e.reservation.settlement.nonce()[0]))
                .collect();
            for (payer, nonce) in due {
                self.record(node, sent(payer, nonce));
                self.chain.paid.insert((payer, nonce));
                self.record(node, settled(payer, nonce, 100, true));
            }
            for (payer, nonce) in self.chain.paid.clone() {
                self.record(node, settled(payer, nonce, 100, true));
            }
            let owed: Vec<_> = node.book.owed().map(|(_, e, _)| e.reservation.settlement.clone()).collect();
            for settlement in owed {
                assert!(self.chain.refunded.insert((settlement.payer()[0], settlement.nonce()[0])), "refunded twice");
                let (payer, nonce, amount) = (settlement.payer(), settlement.nonce(), settlement.value());
                self.record(node, BookInput::Refunded { payer, nonce, amount });
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_500))]

    #[test]
    fn nobody_pays_for_nothing_and_nothing_is_paid_twice(
        ops in proptest::collection::vec((0u8..14, 1..=PAYERS, 1..=NONCES), 0..120),
    ) {
        let mut world = World::default();
        let mut node = Node { book: ChannelBook::new(Limits::default()) };
        for (op, payer, nonce) in ops {
            world.step(&mut node, op, payer, nonce);
        }
        world.quiesce(&mut node);

        let book = &node.book;
        prop_assert_eq!(book.open(), 0);
        prop_assert_eq!(book.exposure(), Usdc(0));
        for payer in 1..=PAYERS {
            for nonce in 1..=NONCES {
                let key = (payer, nonce);
                let (paid, refunded) = (world.chain.paid.contains(&key), world.chain.refunded.contains(&key));
                let served = world.served.contains(&key);
                prop_assert!(!paid || served || refunded || book.entry(&id(payer, nonce)).is_none(), "{key:?} paid for nothing");
                prop_assert!(!(served && refunded), "{key:?} served and refunded");
                prop_assert!(!served || paid, "{key:?} served and never collected");
            }
        }
        let count = |n: usize| Usdc(u128::try_from(n).unwrap() * 100);
        let totals = book.totals();
        prop_assert_eq!(totals.settled.saturating_add(totals.unmatched), count(world.chain.paid.len()));
        prop_assert_eq!(totals.refunded, count(world.chain.refunded.len()));
        prop_assert_eq!(totals.earned, count(world.served.len()));
        prop_assert_eq!(i128::from(world.earned), i128::try_from(totals.earned.micro()).unwrap(), "posted once");
        prop_assert_eq!(totals.lost, Usdc(0));

        // Replay of the whole life gives the same state, byte for byte.
        let mut replayed = ChannelBook::new(Limits::default());
        for input in &world.journal {
            let bytes = borsh::to_vec(input).unwrap();
            replayed.apply(borsh::from_slice(&bytes).unwrap());
        }
        prop_assert_eq!(replayed.totals(), totals);
    }

    /// Any inputs in any order: the books balance, and doubling each changes nothing.
    #[test]
    fn any_order_balances(ops in proptest::collection::vec((0u8..11, 1..=PAYERS, 1..=NONCES), 0..60)) {
        let mut once = ChannelBook::new(Limits::default());
        let mut twice = ChannelBook::new(Limits::default());
        for (op, payer, nonce) in ops {
            let request = id(payer, nonce);
            let input = match op {
                0 => reserved(payer, nonce),
                1 => BookInput::Reserved(reservation(payer, nonce, nonce, Timing::OnDelivery)),
                2 => BookInput::Mark { request, tokens: 64, amount: Usdc(30) },
                3 => delivered(payer, nonce, true),
                4 => aborted(payer, nonce),
                5 => sent(payer, nonce),
                6 => settled(payer, nonce, 100, nonce % 2 == 0),
                7 => unpaid(payer, nonce),
                8 => BookInput::SettleUnknown { request },
                9 => BookInput::Refunded { payer: [payer; 20], nonce: [nonce; 32], amount: Usdc(100) },
                _ => BookInput::Reversed { method: TransferMethod::Eip3009, payer: [payer; 20], nonce: [nonce; 32] },
            };
            let outputs = once.apply(input.clone());
            prop_assert_eq!(&twice.apply(input.clone()), &outputs);
            prop_assert_eq!(twice.apply(input), vec![]);
            prop_assert!(once.totals().is_balanced(), "{:?}", once.totals());
            prop_assert_eq!(once.digest(), twice.digest());
        }
    }
}
