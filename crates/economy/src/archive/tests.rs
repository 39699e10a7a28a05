use super::*;
use crate::hosting::tests::{NOW, agent, view};
use crate::{ChainEvent, ChainEventKind, Input, Outcome, OutputId, Stage};

const PLAN: Archive = Archive { payee: [0xA7; 20], day_max: Usdc(500_000), every: 30 * 86_400 };
const ROOT: [u8; 32] = [0x0C; 32];

/// An agent and its journal's next number. Its first view shows checkpoint 1.
struct Life {
    agent: Agent,
    lsn: u64,
    now: u64,
}

impl Life {
    fn with(plan: Archive) -> Self {
        let mut genesis = agent().genesis().clone();
        genesis.policy.archive = plan;
        Self { agent: Agent::new(genesis), lsn: 0, now: NOW }
    }

    fn hears(&mut self, input: Input) -> Vec<(OutputId, Output)> {
        self.lsn += 1;
        let outputs = self.agent.step(self.now, self.lsn, input);
        let id = |index| OutputId { lsn: self.lsn, index };
        (0..).zip(outputs).map(|(index, output)| (id(index), output)).collect()
    }

    /// What is asked of the archivist, or paid to it, on seeing this.
    fn sees(&mut self, view: View) -> Option<(OutputId, Output)> {
        let view = View { number: self.lsn + 1, timestamp: self.now, last_heartbeat: self.now, ..view };
        ours(self.hears(Input::Block(Box::new(view))))
    }

    fn done(&mut self, id: OutputId, outcome: Outcome) -> Option<(OutputId, Output)> {
        ours(self.hears(Input::Done { id, outcome }))
    }

    /// Asked, and answered with this price, valid for an hour.
    fn priced(&mut self, price: u128) -> Option<(OutputId, Output)> {
        let (id, output) = self.sees(view(vec![])).expect("it asks");
        assert_eq!(output, Output::AskArchivist);
        let next = ours(self.hears(Input::ArchivePriced(self.quote(price))));
        assert_eq!(self.done(id, Outcome::Done { block: self.lsn }).filter(|_| next.is_some()), None, "one at a time");
        next
    }

    fn quote(&self, price: u128) -> ArchiveQuote {
        let (bytes, mac) = (5_000_000, [0xAC; 32]);
        ArchiveQuote { seq: 1, root: ROOT, bytes, price: Usdc(price), valid_until: self.now + 3_600, mac }
    }

    /// The treasury's event of a payment in this block.
    fn event(&mut self, block: u64, amount: u128) -> Vec<(OutputId, Output)> {
        self.hears(Input::Chain(vec![paid(block, amount)]))
    }
}

fn paid(block: u64, amount: u128) -> ChainEvent {
    ChainEvent { block, index: 3, kind: ChainEventKind::StoragePaid { amount: Usdc(amount) } }
}

fn ours(outputs: Vec<(OutputId, Output)>) -> Option<(OutputId, Output)> {
    let is_ours =
        |output: &Output| matches!(output.task(), Some(Task::AskArchivist | Task::PayArchivist | Task::Archive));
    let mut found = outputs.into_iter().filter(|(_, output)| is_ours(output));
    let first = found.next();
    assert_eq!(found.next(), None, "one step at a time");
    first
}

fn pays(asked: &Option<(OutputId, Output)>) -> Option<u128> {
    match asked {
        Some((_, Output::PayArchivist { payee, amount })) => {
            assert_eq!(*payee, PLAN.payee, "nobody else is ever paid");
            Some(amount.0)
        }
        _ => None,
    }
}

#[test]
fn a_copy_is_priced_paid_and_handed_over_with_its_payment() {
    let mut life = Life::with(PLAN);
    let (id, output) = life.priced(120_000).expect("it pays");
    assert_eq!(output, Output::PayArchivist { payee: PLAN.payee, amount: Usdc(120_000) });
    assert_eq!(output.spends(), Usdc(120_000));
    assert_eq!(life.done(id, Outcome::Done { block: 9 }), None, "until its event is heard");
    let quote = life.quote(120_000);
    let (id, output) = ours(life.event(9, 120_000)).expect("it hands over");
    assert_eq!(output, Output::Archive { quote, payment: (9, 3) });
    // A restart does it again, with the same payment.
    assert!(life.agent.unfinished().contains(&(id, output)));
    life.hears(Input::Archived { seq: 1, root: ROOT, transaction: [7; 32] });
    life.done(id, Outcome::Done { block: 9 });
    let stored: Vec<Archived> = life.agent.archived().copied().collect();
    assert_eq!(stored, [Archived { seq: 1, root: ROOT, transaction: [7; 32], at: NOW }]);
    assert_eq!(life.agent.ledger().storage(), Usdc(120_000));
    assert_eq!(life.sees(view(vec![])), None, "once");
}

#[test]
fn the_next_copy_is_of_another_checkpoint_and_not_before_its_time() {
    let mut life = Life::with(PLAN);
    life.hears(Input::Archived { seq: 1, root: ROOT, transaction: [7; 32] });
    let later = |seq| View { checkpoint_seq: seq, ..view(vec![]) };
    life.now = NOW + 30 * 86_400 - 1;
    assert_eq!(life.sees(later(2)), None, "too early");
    life.now += 1;
    assert_eq!(life.sees(later(1)), None, "the same one");
    assert_eq!(life.sees(later(2)).map(|(_, output)| output), Some(Output::AskArchivist));
}

#[test]
fn without_an_archivist_or_a_checkpoint_nothing_is_asked() {
    assert_eq!(Life::with(Archive::default()).sees(view(vec![])), None);
    assert_eq!(Life::with(PLAN).sees(View { checkpoint_seq: 0, ..view(vec![]) }), None);
}

#[test]
fn a_price_over_the_ceiling_is_said_and_nothing_is_paid_for_a_day() {
    let mut life = Life::with(PLAN);
    assert_eq!(pays(&life.priced(500_000)), Some(500_000), "the ceiling itself");
    let mut life = Life::with(PLAN);
    let (id, _) = life.sees(view(vec![])).expect("it asks");
    let said = life.hears(Input::ArchivePriced(life.quote(500_001)));
    let lines: Vec<String> = said
        .iter()
        .filter_map(|(_, output)| match output {
            Output::Note(note) if note.kind() == "limit" => Some(note.to_string()),
            _ => None,
        })
        .collect();
    assert_eq!(
        lines,
        ["the archivist asks 0.500001 USDC for a copy of its memory, a day may take 0.500000 USDC: nothing is paid"]
    );
    assert_eq!(ours(said), None);
    life.done(id, Outcome::Done { block: 1 });
    life.now += 86_399;
    assert_eq!(life.sees(view(vec![])), None);
    life.now += 1;
    assert_eq!(life.sees(view(vec![])).map(|(_, output)| output), Some(Output::AskArchivist));
}

#[test]
fn nothing_is_paid_paused_ending_restoring_by_another_or_on_the_eve_of_a_move() {
    for (why, view) in [
        ("paused", View { paused: true, ..view(vec![]) }),
        ("restoring", View { restoring: true, ..view(vec![]) }),
        ("announced", View { announced: 2, announced_at: NOW, ..view(vec![]) }),
        ("stopped", View { stage: Stage::Stopped, ..view(vec![]) }),
        ("winding down", View { stage: Stage::WindingDown, wind_down_at: NOW, ..view(vec![]) }),
        ("mandate over", View { mandate_until: NOW - 1, ..view(vec![]) }),
        ("hungry", View { balance: Usdc(1_000_000), escrow: Usdc::ZERO, ..view(vec![]) }),
        ("another's", View { operator_is_me: false, ..view(vec![]) }),
    ] {
        let mut life = Life::with(PLAN);
        assert_eq!(life.sees(view.clone()), None, "{why}: no price");
        life.agent.archiving.quote = Some(life.quote(1));
        assert_eq!(life.sees(view), None, "{why}: no payment");
    }
}

/// A day's limit of 20 USDC, of which 1.728 are kept back for a standby; 1.728 of the money begin another lease.
#[test]
fn hosts_customers_and_the_day_come_first() {
    let asked = |view: View| {
        let mut life = Life::with(PLAN);
        life.agent.archiving.quote = Some(life.quote(300_000));
        pays(&life.sees(view))
    };
    let day = |left: u128| asked(View { spent_in_day: Usdc(20_000_000 - 1_728_000 - left), ..view(vec![]) });
    assert_eq!((day(300_000), day(299_999)), (Some(300_000), None), "in part is no use");
    let standby = view(vec![]).active.map(|active| crate::LeaseView { id: 2, ..active });
    let money = |left: u128| {
        let balance = Usdc(1_000_000 + 1_728_000 + left);
        // With income the balance is no reason to be frugal.
        let mut life = Life::with(PLAN);
        life.hears(Input::Earned { first_lsn: 1, last_lsn: 1, count: 1, tokens: 1, sum: Usdc(9_000_000) });
        life.agent.archiving.quote = Some(life.quote(300_000));
        pays(&life.sees(View { balance, standby: standby.clone(), ..view(vec![]) }))
    };
    assert_eq!((money(300_000), money(299_999)), (Some(300_000), None), "the next lease's rent stays");
}

#[test]
fn what_was_paid_in_a_day_counts_against_its_ceiling() {
    let mut life = Life::with(PLAN);
    life.agent.archiving.quote = Some(life.quote(400_000));
    life.agent.archiving.paid.push_back((NOW - 86_399, Usdc(100_001)));
    assert_eq!(life.sees(view(vec![])), None, "100,001 and 400,000 are more than a day may take");
    life.now += 1;
    assert_eq!(pays(&life.sees(view(vec![]))), Some(400_000), "a day later it does not count");
}

#[test]
fn a_price_that_ends_soon_is_asked_for_anew() {
    let mut life = Life::with(PLAN);
    life.agent.archiving.quote = Some(ArchiveQuote { valid_until: NOW + 29, ..life.quote(1) });
    assert_eq!(life.sees(view(vec![])), None);
    life.now += 30;
    assert_eq!(life.sees(view(vec![])).map(|(_, output)| output), Some(Output::AskArchivist));
}

#[test]
fn an_unknown_payment_is_never_paid_again_before_the_chain_has_told() {
    let mut life = Life::with(PLAN);
    let (id, _) = life.priced(120_000).expect("it pays");
    assert_eq!(life.done(id, Outcome::Unknown), None);
    assert_eq!(life.sees(view(vec![])), None);
    // Its event came after all: it is handed over, and not paid again.
    let mut told = Life { agent: life.agent.clone(), ..life };
    let (_, output) = ours(told.event(9, 120_000)).expect("it hands over");
    assert!(matches!(output, Output::Archive { payment: (9, 3), .. }), "{output:?}");
    // Nothing came for as long as an operator may be silent: by then all blocks were read, and the price has ended.
    life.now += 19_799;
    assert_eq!(life.sees(view(vec![])), None, "not a second before");
    life.now += 1;
    life.sees(view(vec![]));
    life.now += 60;
    assert_eq!(life.sees(view(vec![])).map(|(_, output)| output), Some(Output::AskArchivist));
}

#[test]
fn a_payment_that_failed_is_tried_again_and_one_that_a_reorganisation_took_back_is_no_credit() {
    let mut life = Life::with(PLAN);
    let (id, _) = life.priced(120_000).expect("it pays");
    life.done(id, Outcome::Failed { reason: "OverCeiling".to_owned() });
    life.now += 4;
    let (id, output) = life.sees(view(vec![])).expect("again");
    assert!(matches!(output, Output::PayArchivist { .. }));
    life.done(id, Outcome::Done { block: 9 });
    let (id, _) = ours(life.event(9, 120_000)).expect("it hands over");
    life.done(id, Outcome::Failed { reason: "not confirmed".to_owned() });
    let gone = ChainEvent { block: 9, index: 3, kind: ChainEventKind::Reverted(Box::new(paid(9, 120_000))) };
    life.hears(Input::Chain(vec![gone]));
    assert_eq!(life.agent.ledger().storage(), Usdc::ZERO);
    life.now += 4;
    assert_eq!(pays(&life.sees(view(vec![]))), Some(120_000));
}

#[test]
fn an_event_that_is_fed_twice_is_one_payment_and_credit_is_used_before_money() {
    let mut life = Life::with(PLAN);
    life.event(5, 100_000);
    life.event(5, 100_000);
    assert_eq!(pays(&life.priced(120_000)), Some(20_000), "what is missing");
    let mut life = Life::with(PLAN);
    life.event(5, 120_000);
    let next = life.priced(120_000).map(|(_, output)| output);
    assert_eq!(next, Some(Output::Archive { quote: life.quote(120_000), payment: (5, 3) }), "nothing is missing");
}

#[test]
fn an_archivist_that_takes_the_money_and_stores_nothing_gets_no_second_payment_for_the_same_price() {
    let mut life = Life::with(PLAN);
    let (id, _) = life.priced(120_000).expect("it pays");
    life.done(id, Outcome::Done { block: 2 });
    let mut handed = ours(life.event(2, 120_000));
    for _ in 0..TRIES {
        let (id, output) = handed.expect("it hands over");
        assert!(matches!(output, Output::Archive { .. }), "{output:?}");
        life.done(id, Outcome::Failed { reason: "no answer".to_owned() });
        life.now += 3_600;
        handed = life.sees(view(vec![]));
    }
    assert_eq!(handed, None, "a quarter of a day without a word");
    life.now += 5 * 3_600;
    let (id, output) = life.sees(view(vec![])).expect("then it asks for a price");
    assert_eq!(output, Output::AskArchivist);
    let next = ours(life.hears(Input::ArchivePriced(life.quote(120_000))));
    assert!(next.is_none_or(|(_, output)| matches!(output, Output::Archive { .. })), "and pays nothing");
    life.done(id, Outcome::Done { block: 2 });
    assert_eq!(life.agent.ledger().storage(), Usdc(120_000));
}
