use super::*;
use crate::scheme::Settle;
use crate::scheme::exact::SettleExact;
use crate::scheme::upto::{Permit2Payment, Proxy};
use expect_test::{Expect, expect};

mod seeds;
mod world;

pub(super) const NOW: u64 = 1_000_000;

fn reservation(payer: u8, nonce: u8, body: u8, timing: Timing) -> Reservation {
    let settlement = SettleExact {
        payer: [payer; 20],
        value: Usdc(100),
        valid_after: 0,
        valid_before: NOW + 300,
        nonce: [nonce; 32],
        signature: vec![0; 65],
        is_signed_by_key: true,
    };
    reserved_by(Settle::Exact(settlement), body, timing)
}

/// The same by Permit2: `exact`, or `upto` a ceiling of 100.
fn permitted(payer: u8, nonce: u8, body: u8, proxy: Proxy) -> Reservation {
    let payment = Permit2Payment {
        proxy,
        payer: [payer; 20],
        token: [0xDD; 20],
        pay_to: [0xEE; 20],
        amount: Usdc(100),
        nonce: [nonce; 32],
        valid_after: 0,
        deadline: NOW + 299,
        signature: vec![0; 65],
        is_signed_by_key: true,
        permit: None,
    };
    reserved_by(Settle::Permit2(payment), body, Timing::OnDelivery)
}

fn reserved_by(settlement: Settle, body: u8, timing: Timing) -> Reservation {
    Reservation {
        request: RequestId::of_payment(settlement.method(), &settlement.payer(), &settlement.nonce()),
        settlement,
        timing,
        route: "POST /v1/chat/completions".into(),
        body_digest: [body; 32],
        identifier: None,
        prompt_tokens: 10,
        max_tokens: 64,
        run: String::new(),
        at: NOW,
    }
}

fn id(payer: u8, nonce: u8) -> RequestId {
    RequestId::of_payment(TransferMethod::Eip3009, &[payer; 20], &[nonce; 32])
}

fn reserved(payer: u8, nonce: u8) -> BookInput {
    BookInput::Reserved(reservation(payer, nonce, nonce, Timing::AtOnce))
}

/// A whole answer, of the channels' tests too.
pub(super) fn delivery(confirmed: bool) -> Delivery {
    Delivery {
        cached_tokens: 0,
        completion_tokens: 5,
        bytes: 20,
        output_digest: [1; 32],
        finish: Finish::Stop,
        at: NOW + 1,
        confirmed,
    }
}

fn delivered(payer: u8, nonce: u8, confirmed: bool) -> BookInput {
    BookInput::Delivered { request: id(payer, nonce), delivery: delivery(confirmed), amount: Usdc(40) }
}

fn aborted(payer: u8, nonce: u8) -> BookInput {
    BookInput::Aborted { request: id(payer, nonce), why: AbortWhy::Engine }
}

fn sent(payer: u8, nonce: u8) -> BookInput {
    BookInput::SettleSent { request: id(payer, nonce) }
}

fn settled(payer: u8, nonce: u8, amount: u128, recorded: bool) -> BookInput {
    BookInput::Settled {
        method: TransferMethod::Eip3009,
        payer: [payer; 20],
        nonce: [nonce; 32],
        amount: Usdc(amount),
        tx: [8; 32],
        block: 5,
        recorded,
    }
}

fn unpaid(payer: u8, nonce: u8) -> BookInput {
    BookInput::Unpaid { request: id(payer, nonce), why: UnpaidWhy::Expired }
}

fn ask(payer: u8, nonce: u8, body: u8) -> Ask {
    let r = reservation(payer, nonce, body, Timing::AtOnce);
    Ask {
        method: TransferMethod::Eip3009,
        payer: [payer; 20],
        nonce: [nonce; 32],
        route: r.route,
        body_digest: r.body_digest,
        identifier: None,
        fresh: false,
    }
}

/// Applies each input twice: the second time nothing may change and nothing may be said.
fn run(book: &mut ChannelBook, inputs: impl IntoIterator<Item = BookInput>) -> Vec<&'static str> {
    let mut said = Vec::new();
    for input in inputs {
        let outputs = book.apply(input.clone());
        let digest = book.digest();
        assert!(book.totals().is_balanced(), "{input:?} {:?}", book.totals());
        assert_eq!(book.apply(input.clone()), vec![], "doubled {input:?}");
        assert_eq!(book.digest(), digest, "doubled {input:?}");
        said.extend(outputs.iter().map(name));
    }
    said
}

fn name(output: &BookOutput) -> &'static str {
    match output {
        BookOutput::Settle { .. } => "settle",
        BookOutput::Receipt { .. } => "receipt",
        BookOutput::Earned { .. } => "earned",
        BookOutput::Unearned { .. } => "unearned",
        BookOutput::Owe { .. } => "owe",
        BookOutput::Refused { .. } => "refused",
        BookOutput::Channel(_) => "channel",
    }
}

fn check(inputs: Vec<BookInput>, expect: Expect) {
    let mut book = ChannelBook::new(Limits::default());
    let said = run(&mut book, inputs).join(" ");
    let t = book.totals();
    let sums = [
        ("reserved", t.reserved),
        ("served_unsettled", t.served_unsettled),
        ("lost", t.lost),
        ("settled", t.settled),
        ("held", t.held),
        ("earned", t.earned),
        ("owed", t.owed),
        ("stranded", t.stranded),
        ("refunded", t.refunded),
        ("unmatched", t.unmatched),
        ("unclaimed", t.unclaimed),
    ];
    let sums: Vec<_> =
        sums.iter().filter(|(_, sum)| !sum.is_zero()).map(|(name, sum)| format!("{name} {}", sum.micro())).collect();
    expect.assert_eq(&format!("{said} | {} | open {}", sums.join(", "), book.open()));
}

#[test]
fn a_paid_answer_is_earned_once_whenever_the_settlement_comes() {
    check(vec![reserved(1, 1)], expect!["settle | reserved 100 | open 1"]);
    check(
        vec![reserved(1, 1), sent(1, 1), settled(1, 1, 100, true)],
        expect!["settle | settled 100, held 100 | open 1"],
    );
    let end = "settle receipt earned | settled 100, earned 100 | open 0";
    let before = vec![reserved(1, 1), sent(1, 1), settled(1, 1, 100, true), delivered(1, 1, true)];
    let after = vec![reserved(1, 1), sent(1, 1), delivered(1, 1, true), settled(1, 1, 100, true)];
    let unsent = vec![reserved(1, 1), delivered(1, 1, true), settled(1, 1, 100, true), sent(1, 1)];
    for inputs in [before, after, unsent] {
        let mut book = ChannelBook::new(Limits::default());
        assert_eq!(run(&mut book, inputs.clone()), ["settle", "receipt", "earned"]);
        let expect = expect!["settle receipt earned | settled 100, earned 100 | open 0"];
        assert_eq!(expect.data(), end);
        check(inputs, expect);
    }
    // The chain's event was read before the request came: the payment is in already, nothing is to be sent.
    check(
        vec![settled(1, 1, 100, true), reserved(1, 1), delivered(1, 1, true)],
        expect!["receipt earned | settled 100, earned 100 | open 0"],
    );
}

#[test]
fn settling_on_delivery_waits_for_it() {
    let waiting = BookInput::Reserved(reservation(1, 1, 1, Timing::OnDelivery));
    check(vec![waiting.clone()], expect![" | reserved 100 | open 1"]);
    check(vec![waiting.clone(), delivered(1, 1, true)], expect!["settle | served_unsettled 100 | open 1"]);
    check(vec![waiting, aborted(1, 1)], expect![" |  | open 0"]);
}

#[test]
fn nothing_delivered_is_nothing_charged() {
    // Not sent yet: the authorisation stays unused.
    check(vec![reserved(1, 1), aborted(1, 1)], expect!["settle |  | open 0"]);
    // Sent: what comes in goes back, once.
    check(vec![reserved(1, 1), sent(1, 1), aborted(1, 1)], expect!["settle |  | open 1"]);
    check(
        vec![reserved(1, 1), sent(1, 1), aborted(1, 1), settled(1, 1, 100, true)],
        expect!["settle owe | settled 100, owed 100 | open 1"],
    );
    let refunded = BookInput::Refunded { payer: [1; 20], nonce: [1; 32], amount: Usdc(100) };
    check(
        vec![reserved(1, 1), settled(1, 1, 100, true), aborted(1, 1), refunded.clone()],
        expect!["settle owe | settled 100, refunded 100 | open 0"],
    );
    // Taken back by a reorganisation it is owed again, and made again. It may have gone with its settlement, in any order.
    let reversed = BookInput::RefundReversed { payer: [1; 20], nonce: [1; 32] };
    let paid = || vec![reserved(1, 1), settled(1, 1, 100, true), aborted(1, 1), refunded.clone()];
    check([paid(), vec![reversed.clone()]].concat(), expect!["settle owe owe | settled 100, owed 100 | open 1"]);
    check(
        [paid(), vec![reversed.clone(), refunded.clone()]].concat(),
        expect!["settle owe owe | settled 100, refunded 100 | open 0"],
    );
    let settlement = BookInput::Reversed { method: TransferMethod::Eip3009, payer: [1; 20], nonce: [1; 32] };
    check([paid(), vec![settlement.clone(), reversed.clone()]].concat(), expect!["settle owe |  | open 1"]);
    check([paid(), vec![reversed, settlement]].concat(), expect!["settle owe owe |  | open 1"]);
    // A refund of something earned is not this book's doing and changes nothing here.
    check(
        vec![reserved(1, 1), settled(1, 1, 100, true), delivered(1, 1, true), refunded],
        expect!["settle receipt earned | settled 100, earned 100 | open 0"],
    );
    // A third party submitted it to the token: there is no record to refund from.
    check(
        vec![reserved(1, 1), aborted(1, 1), settled(1, 1, 100, false)],
        expect!["settle | settled 100, stranded 100 | open 0"],
    );
}

#[test]
fn unpaid_is_lost_only_if_something_was_delivered() {
    check(vec![reserved(1, 1), unpaid(1, 1), aborted(1, 1)], expect!["settle |  | open 0"]);
    check(vec![reserved(1, 1), delivered(1, 1, true), unpaid(1, 1)], expect!["settle | lost 100 | open 0"]);
    // The chain knows better, later.
    check(
        vec![reserved(1, 1), delivered(1, 1, true), unpaid(1, 1), settled(1, 1, 100, true)],
        expect!["settle receipt earned | settled 100, earned 100 | open 0"],
    );
    // A payer who signed the same nonce for less, and had that one settled.
    check(
        vec![reserved(1, 1), delivered(1, 1, true), settled(1, 1, 1, true)],
        expect!["settle receipt earned | lost 99, settled 1, earned 1 | open 0"],
    );
}

#[test]
fn a_reorganisation_takes_income_back_and_gives_it_again() {
    let reversed = BookInput::Reversed { method: TransferMethod::Eip3009, payer: [1; 20], nonce: [1; 32] };
    check(
        vec![reserved(1, 1), sent(1, 1), delivered(1, 1, true), settled(1, 1, 100, true), reversed.clone()],
        expect!["settle receipt earned unearned | served_unsettled 100 | open 1"],
    );
    let mut book = ChannelBook::new(Limits::default());
    let inputs = [reserved(1, 1), delivered(1, 1, true), settled(1, 1, 100, true), reversed.clone()];
    run(&mut book, inputs);
    let (_, entry) = book.unsettled().next().unwrap();
    assert_eq!(entry.payment, Payment::Unknown);
    assert_eq!(run(&mut book, [sent(1, 1), settled(1, 1, 100, true)]), ["receipt", "earned"]);
    check(vec![settled(1, 1, 100, true), reversed], expect![" |  | open 0"]);
}

#[test]
fn the_same_payment_again() {
    let mut book = ChannelBook::new(Limits::default());
    assert_eq!(book.decide(&ask(1, 1, 1), NOW), Decision::New);
    run(&mut book, [reserved(1, 1)]);
    let request = id(1, 1);
    assert_eq!(book.decide(&ask(1, 1, 1), NOW), Decision::InFlight { request });
    assert_eq!(book.decide(&ask(1, 1, 2), NOW), Decision::Conflict { request });
    let other_route = Ask { route: "POST /v1/responses".into(), ..ask(1, 1, 1) };
    assert_eq!(book.decide(&other_route, NOW), Decision::Conflict { request });
    assert_eq!(book.decide(&ask(2, 1, 1), NOW), Decision::New);
    run(&mut book, [delivered(1, 1, true), settled(1, 1, 100, true)]);
    assert_eq!(book.decide(&ask(1, 1, 1), NOW), Decision::Replay { request });
    run(&mut book, [BookInput::Pruned { before: NOW + 1 }]);
    assert_eq!(book.entries().count(), 0);
    assert_eq!(book.decide(&ask(1, 1, 1), NOW), Decision::Spent);
    assert_eq!(run(&mut book, [settled(1, 1, 100, true)]), Vec::<&str>::new());
    assert_eq!((book.totals().earned, book.totals().unmatched), (Usdc(100), Usdc(0)));
    run(&mut book, [BookInput::Pruned { before: NOW + 300 }]);
    // Expired by then: `verify` refuses it.
    assert_eq!(book.decide(&ask(1, 1, 1), NOW), Decision::New);
    // What cannot be collected is not answered again for free.
    run(&mut book, [reserved(1, 9), delivered(1, 9, false), unpaid(1, 9)]);
    assert_eq!(book.decide(&ask(1, 9, 9), NOW), Decision::Spent);
}

#[test]
fn a_reservation_by_the_wrong_request_is_refused() {
    let mut book = ChannelBook::new(Limits::default());
    run(&mut book, [reserved(1, 1)]);
    let twice = BookInput::Reserved(reservation(1, 1, 2, Timing::AtOnce));
    let why = LimitReached::NonceTaken;
    assert_eq!(book.apply(twice), [BookOutput::Refused { request: id(1, 1), why }]);
    let mut renamed = reservation(1, 1, 1, Timing::AtOnce);
    renamed.request = RequestId([9; 16]);
    assert_eq!(book.apply(BookInput::Reserved(renamed)), [BookOutput::Refused { request: RequestId([9; 16]), why }]);
}

#[test]
fn a_lost_answer_is_not_paid_twice_with_a_fresh_nonce() {
    let mut book = ChannelBook::new(Limits::default());
    run(&mut book, [BookInput::Reserved(reservation(1, 1, 7, Timing::AtOnce))]);
    let request = id(1, 1);
    assert_eq!(book.decide(&ask(1, 2, 7), NOW), Decision::InFlight { request });
    assert_eq!(book.decide(&ask(2, 2, 7), NOW), Decision::New, "another payer");
    assert_eq!(book.decide(&ask(1, 2, 8), NOW), Decision::New, "another body");
    let fresh = Ask { fresh: true, ..ask(1, 2, 7) };
    assert_eq!(book.decide(&fresh, NOW), Decision::New, "opted out");
    assert_eq!(book.decide(&ask(1, 2, 7), NOW + 301), Decision::New, "the first can't be collected any more");

    run(&mut book, [delivered(1, 1, false)]);
    assert_eq!(book.decide(&ask(1, 2, 7), NOW), Decision::Replay { request });
    assert_eq!(book.decide(&ask(1, 2, 7), NOW + 301), Decision::New, "expired and unsettled");
    run(&mut book, [settled(1, 1, 100, true)]);
    assert_eq!(book.decide(&ask(1, 2, 7), NOW + 301), Decision::Replay { request });
    assert_eq!(book.decide(&ask(1, 2, 7), NOW + 1 + 86_400), Decision::Replay { request });
    assert_eq!(book.decide(&ask(1, 2, 7), NOW + 2 + 86_400), Decision::New, "too long ago");

    run(&mut book, [BookInput::Reserved(reservation(1, 3, 7, Timing::AtOnce)), delivered(1, 3, true)]);
    assert_eq!(book.decide(&ask(1, 4, 7), NOW), Decision::New, "it has its answer and asks again");
}

#[test]
fn an_aborted_request_is_served_again_while_that_charges_nobody_twice() {
    let mut book = ChannelBook::new(Limits::default());
    run(&mut book, [reserved(1, 1), aborted(1, 1)]);
    assert!(!book.may_settle(&id(1, 1)));
    assert_eq!(book.decide(&ask(1, 1, 1), NOW), Decision::New);
    assert_eq!(run(&mut book, [reserved(1, 1)]), ["settle"]);
    assert!(book.may_settle(&id(1, 1)));
    run(&mut book, [sent(1, 1), aborted(1, 1)]);
    let request = id(1, 1);
    assert_eq!(book.decide(&ask(1, 1, 1), NOW), Decision::Aborted { request });
    assert_eq!(run(&mut book, [reserved(1, 1)]), Vec::<&str>::new());
    assert_eq!(run(&mut book, [settled(1, 1, 100, true)]), ["owe"]);
    assert_eq!(book.decide(&ask(1, 1, 1), NOW), Decision::Aborted { request });
    // Money that the contract cannot give back still buys an answer.
    assert_eq!(run(&mut book, [reserved(2, 1), aborted(2, 1), settled(2, 1, 100, false)]), ["settle"]);
    assert_eq!(book.totals().stranded, Usdc(100));
    assert_eq!(book.decide(&ask(2, 1, 1), NOW), Decision::New);
    assert_eq!(run(&mut book, [reserved(2, 1), delivered(2, 1, true)]), ["receipt", "earned"]);
    assert_eq!((book.totals().stranded, book.totals().earned), (Usdc(0), Usdc(100)));
}

#[test]
fn a_crash_charges_the_last_mark_and_aborts_the_rest() {
    let mut book = ChannelBook::new(Limits::default());
    run(
        &mut book,
        [reserved(1, 1), reserved(1, 2), BookInput::Mark { request: id(1, 1), tokens: 64, amount: Usdc(30) }],
    );
    run(&mut book, [BookInput::Mark { request: id(1, 1), tokens: 12, amount: Usdc(5) }]);
    let inputs = book.interrupted(NOW + 9);
    run(&mut book, inputs);
    let Service::Delivered(delivery) = &book.entry(&id(1, 1)).unwrap().service else { panic!() };
    assert_eq!((delivery.completion_tokens, delivery.finish, delivery.confirmed), (64, Finish::Broken, false));
    assert_eq!(book.entry(&id(1, 2)).unwrap().service, Service::Aborted { why: AbortWhy::Crashed });
    assert_eq!(book.interrupted(NOW), vec![]);
}

#[test]
fn everything_is_bounded() {
    let limits = Limits { open_max: 3, open_per_payer_max: 2, kept_max: 5, replay_secs: 10 };
    let mut book = ChannelBook::new(limits);
    run(&mut book, [reserved(1, 1), reserved(1, 2)]);
    assert_eq!(book.decide(&ask(1, 3, 3), NOW), Decision::Refused(LimitReached::OpenPerPayer));
    run(&mut book, [reserved(2, 1)]);
    assert_eq!(book.decide(&ask(3, 1, 1), NOW), Decision::Refused(LimitReached::Open));
    let outputs = book.apply(reserved(3, 1));
    assert_eq!(outputs, [BookOutput::Refused { request: id(3, 1), why: LimitReached::Open }]);
    for (payer, nonce) in [(1, 1), (1, 2), (2, 1)] {
        run(&mut book, [delivered(payer, nonce, true), settled(payer, nonce, 100, true)]);
    }
    assert_eq!(book.open(), 0);
    run(&mut book, [reserved(4, 1), reserved(4, 2), aborted(4, 1), aborted(4, 2)]);
    assert_eq!(book.decide(&ask(5, 1, 1), NOW), Decision::Refused(LimitReached::Kept));
    run(&mut book, [BookInput::Pruned { before: NOW + 1 }]);
    assert_eq!(book.decide(&ask(5, 1, 1), NOW), Decision::New);
    assert_eq!(book.totals().earned, Usdc(300));
}

#[test]
fn money_nobody_asks_for_is_kept_a_while_then_called_unclaimed() {
    check(vec![settled(1, 1, 100, true)], expect![" | unmatched 100 | open 0"]);
    check(vec![settled(1, 1, 100, true), BookInput::Pruned { before: 1 }], expect![" | unclaimed 100 | open 0"]);
}

#[test]
fn the_first_word_about_a_settlement_counts_and_a_later_one_may_name_its_transaction() {
    let said = |amount, tx: u8| BookInput::Settled {
        method: TransferMethod::Eip3009,
        payer: [1; 20],
        nonce: [1; 32],
        amount: Usdc(amount),
        tx: [tx; 32],
        block: u64::from(tx),
        recorded: true,
    };
    let mut book = ChannelBook::new(Limits::default());
    run(&mut book, [reserved(1, 1), delivered(1, 1, true)]);
    assert_eq!(run(&mut book, [said(100, 0)]), ["receipt", "earned"]);
    assert_eq!(run(&mut book, [said(1, 7), said(1, 8)]), Vec::<&str>::new());
    let settled = Payment::Settled { amount: Usdc(100), tx: [7; 32], block: 7, recorded: true };
    assert_eq!(book.entry(&id(1, 1)).unwrap().payment, settled);
}

const UPTO: Proxy = Proxy::Upto { facilitator: [0xFA; 20] };

/// Inputs about a payment by Permit2.
fn by_permit2(nonce: u8) -> RequestId {
    RequestId::of_payment(TransferMethod::Permit2, &[1; 20], &[nonce; 32])
}

fn delivered_worth(nonce: u8, amount: u128) -> BookInput {
    let BookInput::Delivered { delivery, .. } = delivered(1, nonce, false) else { unreachable!() };
    BookInput::Delivered { request: by_permit2(nonce), delivery, amount: Usdc(amount) }
}

fn moved(nonce: u8, amount: u128) -> BookInput {
    let (method, payer, nonce) = (TransferMethod::Permit2, [1; 20], [nonce; 32]);
    BookInput::Settled { method, payer, nonce, amount: Usdc(amount), tx: [8; 32], block: 5, recorded: false }
}

#[test]
fn upto_is_charged_by_what_was_delivered_and_exact_is_not() {
    let asked = |proxy| BookInput::Reserved(permitted(1, 1, 1, proxy));
    check(vec![asked(UPTO)], expect![" | reserved 100 | open 1"]);
    check(vec![asked(UPTO), delivered_worth(1, 40)], expect!["settle | served_unsettled 40 | open 1"]);
    check(vec![asked(UPTO), delivered_worth(1, 5_000)], expect!["settle | served_unsettled 100 | open 1"]);
    check(vec![asked(Proxy::Exact), delivered_worth(1, 40)], expect!["settle | served_unsettled 100 | open 1"]);
    check(
        vec![asked(UPTO), delivered_worth(1, 40), moved(1, 40)],
        expect!["settle receipt earned | settled 40, earned 40 | open 0"],
    );
    // After a crash the last durable mark is charged; without one the permission is left alone.
    let mut book = ChannelBook::new(Limits::default());
    let mark = BookInput::Mark { request: by_permit2(1), tokens: 64, amount: Usdc(30) };
    run(&mut book, [asked(UPTO), BookInput::Reserved(permitted(1, 2, 2, UPTO)), mark]);
    let inputs = book.interrupted(NOW + 9);
    assert_eq!(run(&mut book, inputs), ["settle"]);
    assert_eq!(book.entry(&by_permit2(1)).unwrap().charge, Usdc(30));
    assert!(!book.may_settle(&by_permit2(2)));
}

#[test]
fn nothing_delivered_leaves_the_permission_alone() {
    let aborted = BookInput::Aborted { request: by_permit2(1), why: AbortWhy::Engine };
    let asked = BookInput::Reserved(permitted(1, 1, 1, UPTO));
    check(vec![asked.clone(), aborted.clone()], expect![" |  | open 0"]);
    let mut book = ChannelBook::new(Limits::default());
    run(&mut book, [asked, aborted.clone()]);
    // Its nonce pays for nothing else, and for the same question still.
    let same = Ask { method: TransferMethod::Permit2, ..ask(1, 1, 1) };
    let other = Ask { body_digest: [9; 32], ..same.clone() };
    assert_eq!(book.decide(&other, NOW), Decision::Conflict { request: by_permit2(1) });
    assert_eq!(book.decide(&same, NOW), Decision::New);
    // A third party settled the `exact` one all the same: no record, so it buys an answer instead of going back.
    let asked = BookInput::Reserved(permitted(1, 1, 1, Proxy::Exact));
    check(vec![asked.clone(), aborted.clone(), moved(1, 100)], expect![" | settled 100, stranded 100 | open 0"]);
    check(
        vec![asked.clone(), aborted, moved(1, 100), asked, delivered_worth(1, 40)],
        expect!["receipt earned | settled 100, earned 100 | open 0"],
    );
}

#[test]
fn nonces_of_the_two_methods_are_two() {
    let mut book = ChannelBook::new(Limits::default());
    run(&mut book, [reserved(1, 1), BookInput::Reserved(permitted(1, 1, 1, UPTO))]);
    assert_eq!(book.entries().count(), 2);
    run(&mut book, [moved(1, 40)]);
    assert_eq!(book.entry(&id(1, 1)).unwrap().settled(), None);
    assert_eq!(book.entry(&by_permit2(1)).unwrap().settled(), Some(Usdc(40)));
}

#[test]
fn an_answer_is_confirmed_after_it_was_charged() {
    let mut book = ChannelBook::new(Limits::default());
    let request = by_permit2(1);
    run(&mut book, [BookInput::Reserved(permitted(1, 1, 7, UPTO)), delivered_worth(1, 40), moved(1, 40)]);
    assert_eq!(book.decide(&ask(1, 2, 7), NOW), Decision::Replay { request }, "it may be lost");
    let BookInput::Delivered { delivery, .. } = delivered(1, 1, true) else { unreachable!() };
    run(&mut book, [BookInput::Delivered { request, delivery, amount: Usdc(99) }]);
    assert_eq!(book.decide(&ask(1, 2, 7), NOW), Decision::New);
    assert_eq!(book.entry(&request).unwrap().charge, Usdc(40), "said again, it charges nothing");
}

#[test]
fn a_named_request_is_one_whatever_pays_for_it() {
    let name = Some([0x1D; 32]);
    let asked = |nonce, body| Ask { identifier: name, ..ask(1, nonce, body) };
    let mut book = ChannelBook::new(Limits::default());
    let first = Reservation { identifier: name, ..reservation(1, 1, 1, Timing::AtOnce) };
    run(&mut book, [BookInput::Reserved(first)]);
    let request = id(1, 1);
    assert_eq!(book.decide(&asked(2, 1), NOW), Decision::InFlight { request });
    run(&mut book, [delivered(1, 1, true), settled(1, 1, 100, true)]);
    // It has its answer, and asks under the same name: a repetition, even with another nonce or another scheme.
    assert_eq!(book.decide(&asked(2, 1), NOW), Decision::Replay { request });
    assert_eq!(book.decide(&Ask { fresh: true, ..asked(2, 1) }, NOW), Decision::Replay { request });
    assert_eq!(book.decide(&Ask { method: TransferMethod::Permit2, ..asked(3, 1) }, NOW), Decision::Replay { request });
    assert_eq!(book.decide(&asked(2, 9), NOW), Decision::Conflict { request }, "one name, two questions");
    assert_eq!(book.decide(&Ask { payer: [2; 20], ..asked(2, 1) }, NOW), Decision::New, "another payer's name");
    assert_eq!(book.decide(&ask(1, 2, 1), NOW), Decision::New, "no name");
    // What came to nothing gives its name back, and so does what is forgotten.
    let lost = Reservation { identifier: name, ..reservation(3, 1, 1, Timing::AtOnce) };
    run(&mut book, [BookInput::Reserved(lost), aborted(3, 1)]);
    assert_eq!(book.decide(&Ask { payer: [3; 20], ..asked(2, 1) }, NOW), Decision::New);
    run(&mut book, [BookInput::Pruned { before: NOW + 1 }]);
    assert_eq!(book.decide(&asked(2, 1), NOW), Decision::New);
}

#[test]
fn request_ids_read_back() {
    let request = id(1, 2);
    assert_eq!(request.to_string().parse(), Ok(request));
    assert_eq!(request.to_string().len(), 32);
    assert!("xyz".parse::<RequestId>().is_err());
}
