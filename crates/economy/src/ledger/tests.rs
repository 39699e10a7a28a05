use super::*;
use crate::input::Stage;
use crate::policy::Limits;
use expect_test::{Expect, expect};

const PAYER: [u8; 20] = [1; 20];

fn event(block: u64, index: u32, kind: ChainEventKind) -> ChainEvent {
    ChainEvent { block, index, kind }
}

fn reverted(event: &ChainEvent) -> ChainEvent {
    ChainEvent { block: event.block, index: event.index, kind: ChainEventKind::Reverted(Box::new(event.clone())) }
}

fn settled(block: u64, amount: u128) -> ChainEvent {
    event(block, 0, ChainEventKind::ExactSettled { payer: PAYER, nonce: [2; 32], amount: Usdc(amount) })
}

fn view(balance: u128, escrow: u128, leases: &[(u64, u128)]) -> View {
    let lease = |at: usize| {
        leases.get(at).map(|(id, escrow_left)| LeaseView {
            id: *id,
            offer: 1,
            provider: [9; 20],
            price_e6: 1,
            start: 1,
            end: 100,
            ready_by: 10,
            ready: true,
            escrow_left: Usdc(*escrow_left),
        })
    };
    View {
        number: 1,
        timestamp: 1,
        stage: Stage::Alive,
        paused: false,
        restoring: false,
        epoch: 1,
        operator_is_me: true,
        active: lease(0),
        standby: lease(1),
        draining: lease(2),
        announced: 0,
        announced_at: 0,
        checkpoint_seq: 0,
        last_heartbeat: 0,
        challenged_at: 0,
        balance: Usdc(balance),
        escrow: Usdc(escrow),
        purse: Usdc::ZERO,
        spent_in_day: Usdc::ZERO,
        operator_gas_wei: 0,
        relay_gas_wei: 0,
        treasury_gas_wei: 0,
        mandate_until: 0,
        wind_down_at: 0,
        limits: Limits::default(),
        offers: vec![],
    }
}

/// A life's beginning: 1,000 seed, lease 1 with 100 in escrow.
fn born() -> Ledger {
    let mut ledger = Ledger::default();
    for e in [
        event(1, 0, ChainEventKind::TransferIn { from: PAYER, amount: Usdc(1_000) }),
        event(2, 0, ChainEventKind::Rented { lease: 1, prepay: Usdc(100) }),
        event(3, 0, ChainEventKind::Activated { lease: 1 }),
    ] {
        ledger.event(&e);
    }
    ledger
}

/// All accounts that are not empty, and the notes of the comparison.
fn check(ledger: &mut Ledger, view: &View, expected: Expect) {
    let mut notes = Vec::new();
    let outcome = ledger.compare(view, &mut notes);
    ledger.assert_balanced();
    let mut shown: Vec<String> =
        ledger.balances.iter().filter(|(_, b)| **b != 0).map(|(a, b)| format!("{a:?} {b}")).collect();
    shown.extend(notes.iter().map(ToString::to_string));
    assert_eq!(outcome.is_ok(), ledger.is_balanced());
    shown.push(if outcome.is_ok() { "balanced".into() } else { format!("off by {}", ledger.short(view).0) });
    expected.assert_eq(&shown.join("\n"));
}

#[test]
fn rent_accrues_with_each_block_and_is_trued_up_at_the_close() {
    let mut ledger = born();
    check(
        &mut ledger,
        &view(900, 70, &[(1, 70)]),
        expect![[r#"
        Treasury 900
        Escrow 70
        Seed -1000
        Rent 30
        balanced"#]],
    );
    ledger.event(&event(5, 0, ChainEventKind::RentPaid { lease: 1, amount: Usdc(25) }));
    assert_eq!((ledger.rent_unpaid(), ledger.rent_paid()), (Usdc(5), Usdc(25)));
    ledger.event(&event(6, 0, ChainEventKind::RentPaid { lease: 1, amount: Usdc(15) }));
    let closed = ChainEventKind::LeaseClosed { lease: 1, rent_total: Usdc(40), refund: Usdc(60) };
    ledger.event(&event(6, 1, closed));
    check(
        &mut ledger,
        &view(960, 0, &[]),
        expect![[r#"
        Treasury 960
        Seed -1000
        Rent 40
        balanced"#]],
    );
    assert_eq!((ledger.rent(), ledger.rent_unpaid(), ledger.rent_paid()), (Usdc(40), Usdc(0), Usdc(40)));
}

#[test]
fn customers_money_is_a_liability_until_it_is_earned_or_paid_back() {
    let mut ledger = born();
    ledger.event(&settled(4, 50));
    assert_eq!(ledger.customers(), Usdc(50));
    assert!(ledger.earned(10, 20, Usdc(30)));
    assert!(!ledger.earned(15, 25, Usdc(30)), "overlapping LSNs are not earned twice");
    let refund = ChainEventKind::ExactRefunded { payer: PAYER, nonce: [2; 32], amount: Usdc(20) };
    ledger.event(&event(5, 0, refund));
    check(
        &mut ledger,
        &view(930, 100, &[(1, 100)]),
        expect![[r#"
        Treasury 930
        Escrow 100
        Sales -30
        Seed -1000
        balanced"#]],
    );
    assert_eq!((ledger.refunds(), ledger.customers()), (Usdc(20), Usdc::ZERO));
}

#[test]
fn an_event_counts_once_and_a_reorg_takes_it_back() {
    let mut ledger = born();
    let payment = settled(4, 50);
    ledger.event(&payment);
    ledger.event(&payment);
    assert_eq!(ledger.balance(), 950);
    assert_eq!(ledger.event(&reverted(&payment)), Some(Note::Reorg { block: 4 }));
    assert_eq!(ledger.event(&reverted(&payment)), None, "nor is it taken back twice");
    assert_eq!(ledger.balance(), 900);
    // On the new branch it comes later, and another comes in a block that was empty before.
    let payment = event(6, 1, payment.kind);
    ledger.event(&payment);
    ledger.event(&reverted(&payment));
    ledger.event(&settled(5, 7));
    ledger.event(&payment);
    check(
        &mut ledger,
        &view(957, 100, &[(1, 100)]),
        expect![[r#"
        Treasury 957
        Escrow 100
        Customers -57
        Seed -1000
        balanced"#]],
    );
}

#[test]
fn a_reorg_of_a_close_and_of_a_rent_reopens_and_forgets() {
    let mut ledger = born();
    let rented = event(5, 0, ChainEventKind::Rented { lease: 2, prepay: Usdc(80) });
    let closed = event(6, 3, ChainEventKind::LeaseClosed { lease: 2, rent_total: Usdc(10), refund: Usdc(70) });
    ledger.event(&rented);
    check(
        &mut ledger,
        &view(820, 175, &[(1, 100), (2, 75)]),
        expect![[r#"
        Treasury 820
        Escrow 175
        Seed -1000
        Rent 5
        balanced"#]],
    );
    ledger.event(&closed);
    ledger.event(&reverted(&closed));
    check(
        &mut ledger,
        &view(820, 172, &[(1, 100), (2, 72)]),
        expect![[r#"
        Treasury 820
        Escrow 172
        Seed -1000
        Rent 8
        balanced"#]],
    );
    ledger.event(&reverted(&rented));
    check(
        &mut ledger,
        &view(900, 100, &[(1, 100)]),
        expect![[r#"
        Treasury 900
        Escrow 100
        Seed -1000
        balanced"#]],
    );
}

#[test]
fn money_that_no_event_explains_is_a_gift_until_an_event_does() {
    let mut ledger = born();
    check(
        &mut ledger,
        &view(950, 103, &[(1, 103)]),
        expect![[r#"
        Treasury 950
        Escrow 103
        Unexplained -53
        Seed -1000
        0.000003 USDC came in that no event explains: booked as a gift
        0.000050 USDC came in that no event explains: booked as a gift
        balanced"#]],
    );
    assert_eq!(ledger.gifts(), Usdc(53));
    ledger.event(&settled(4, 50));
    check(
        &mut ledger,
        &view(950, 103, &[(1, 103)]),
        expect![[r#"
        Treasury 950
        Escrow 103
        Customers -50
        Unexplained -3
        Seed -1000
        balanced"#]],
    );
}

#[test]
fn less_on_chain_than_in_the_ledger_is_said_and_said_again_when_it_is_over() {
    let mut ledger = born();
    check(
        &mut ledger,
        &view(899, 100, &[(1, 100)]),
        expect![[r#"
        Treasury 900
        Escrow 100
        Seed -1000
        books do not balance: balance on chain is 0.000899 USDC, the ledger says 900 micro-USDC; spending stops
        off by 1"#]],
    );
    check(
        &mut ledger,
        &view(899, 100, &[(1, 100)]),
        expect![[r#"
        Treasury 900
        Escrow 100
        Seed -1000
        off by 1"#]],
    );
    check(
        &mut ledger,
        &view(900, 99, &[]),
        expect![[r#"
        Treasury 900
        Escrow 100
        Seed -1000
        off by 1"#]],
    );
    check(
        &mut ledger,
        &view(900, 100, &[(1, 100)]),
        expect![[r#"
        Treasury 900
        Escrow 100
        Seed -1000
        books balance again; spending goes on
        balanced"#]],
    );
}

#[test]
fn what_a_frozen_token_leaves_at_the_market_is_neither_lost_nor_counted_twice() {
    let mut ledger = born();
    ledger.event(&event(5, 1, ChainEventKind::LeaseClosed { lease: 1, rent_total: Usdc(40), refund: Usdc(60) }));
    ledger.event(&event(5, 2, ChainEventKind::MarketOwes { amount: Usdc(60) }));
    check(
        &mut ledger,
        &view(900, 0, &[]),
        expect![[r#"
        Treasury 900
        Seed -1000
        Rent 40
        AtMarket 60
        balanced"#]],
    );
    let paid = event(9, 0, ChainEventKind::MarketPaid { amount: Usdc(60) });
    ledger.event(&paid);
    ledger.event(&reverted(&paid));
    assert_eq!(ledger.at_market(), Usdc(60));
    ledger.event(&event(10, 0, paid.kind));
    check(
        &mut ledger,
        &view(960, 0, &[]),
        expect![[r#"
        Treasury 960
        Seed -1000
        Rent 40
        balanced"#]],
    );
}

/// Without its event a steward's pay looked like stolen money, and the agent stopped spending.
#[test]
fn what_stewards_are_paid_is_no_hole_in_the_books() {
    let mut ledger = born();
    let paid = event(4, 0, ChainEventKind::DutyPaid { amount: Usdc(20) });
    ledger.event(&paid);
    let mut notes = Vec::new();
    ledger.compare(&view(880, 100, &[(1, 100)]), &mut notes).expect("it comes out even");
    assert_eq!((ledger.of(Account::Duties), notes.len()), (20, 0));
    ledger.event(&reverted(&paid));
    assert_eq!(ledger.of(Account::Duties), 0);
}

#[test]
fn what_the_purse_paid_is_a_cost_and_what_comes_back_is_none() {
    let (mut ledger, mut notes) = (born(), Vec::new());
    let look = |ledger: &mut Ledger, balance, purse| {
        let mut notes = Vec::new();
        let view = View { purse: Usdc(purse), ..view(balance, 100, &[(1, 100)]) };
        ledger.compare(&view, &mut notes).expect("balanced");
        let told: Vec<String> = notes.iter().map(ToString::to_string).collect();
        (ledger.balance(), ledger.purse().0, ledger.purchases().0, told)
    };
    let none = Vec::<String>::new();
    let filled = event(10, 0, ChainEventKind::PurseFilled { amount: Usdc(300) });
    notes.extend(ledger.event(&filled));
    assert_eq!(look(&mut ledger, 600, 300), (600, 300, 0, none.clone()));
    // Two purchases of 70, and a supplier that gives one back.
    assert_eq!(look(&mut ledger, 600, 160), (600, 160, 140, none.clone()));
    assert_eq!(look(&mut ledger, 600, 230), (600, 230, 70, none.clone()));
    // A stranger puts something in; more than was ever paid from it is no supplier's.
    let gift = Note::Unexplained { amount: Usdc(30) }.to_string();
    assert_eq!(look(&mut ledger, 600, 330), (600, 330, 0, vec![gift]));
    // Swept at a move.
    let swept = event(12, 3, ChainEventKind::PurseReturned { amount: Usdc(330) });
    notes.extend(ledger.event(&swept));
    assert_eq!(look(&mut ledger, 930, 0), (930, 0, 0, none.clone()));
    // The move is taken back, and after it the purchase is mined again.
    notes.extend(ledger.event(&event(12, 3, ChainEventKind::Reverted(Box::new(swept)))));
    assert_eq!(look(&mut ledger, 600, 260), (600, 260, 70, none.clone()));
    // So is the filling, and what was paid from it. The stranger's stays.
    notes.extend(ledger.event(&event(10, 0, ChainEventKind::Reverted(Box::new(filled)))));
    assert_eq!(look(&mut ledger, 900, 30), (900, 30, 0, none));
    let said: Vec<String> = notes.iter().map(ToString::to_string).collect();
    assert_eq!(said.len(), 4, "{said:?}");
    ledger.assert_balanced();
}
