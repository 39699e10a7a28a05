use super::*;
use alloy::primitives::Address;
use chain::bindings::{Addresses, LeaseMarket, TestUSDC, Treasury, TreasuryFactory};
use chain::deploy::MarketParams;
use chain::{market, usdc};
use pay::scheme::channel::BATCH_SETTLEMENT;

const WHO: Address = Address::repeat_byte(1);
const OTHER: Address = Address::repeat_byte(2);

fn chain() -> (Evm, Addresses) {
    let mut evm = Evm::new(1_800_000_000);
    let at = evm.deploy(MarketParams { stake_min: 10, ready_within: 45, grace: 34, drop_after: 40 });
    (evm, at)
}

fn balance(evm: &Evm, at: &Addresses, account: Address) -> u64 {
    evm.ask(at.usdc, &TestUSDC::balanceOfCall { account }).expect("a view").saturating_to()
}

#[test]
fn a_development_chain_is_all_there() {
    let (evm, at) = chain();
    for contract in [at.usdc, at.market, at.factory, BATCH_SETTLEMENT] {
        assert!(!evm.code(contract).is_empty(), "{contract}");
    }
    assert_eq!(evm.ask(at.market, &LeaseMarket::tokenCall {}), Ok(at.usdc));
    let implementation = evm.ask(at.factory, &TreasuryFactory::implementationCall {}).expect("a factory");
    let second = evm.ask(implementation, &Treasury::OVERSIGHTCall {}).expect("a treasury");
    assert!(!evm.code(second).is_empty());
}

#[test]
fn a_call_changes_the_state_logs_and_costs_what_it_should() {
    let (mut evm, at) = chain();
    let logged = evm.logs().len();
    evm.call(WHO, at.usdc, usdc::calls::mint(WHO, 5), 0).expect("anybody mints");
    let done = evm.call(WHO, at.usdc, usdc::calls::transfer(OTHER, 2), 0).expect("has five");
    assert_eq!((balance(&evm, &at, WHO), balance(&evm, &at, OTHER)), (3, 2));
    assert_eq!((done.logs.len(), evm.logs().len() - logged), (1, 2));
    assert!((30_000..80_000).contains(&done.gas_used), "{}", done.gas_used);
}

#[test]
fn a_refusal_is_named_and_changes_nothing() {
    let (mut evm, at) = chain();
    let before = evm.logs().len();
    let refused = evm.call(WHO, at.market, market::calls::unregister(), 0).expect_err("no stake");
    assert_eq!(refused.name, "NotStaked");
    let refused = evm.call(WHO, at.usdc, usdc::calls::transfer(OTHER, 2), 0).expect_err("no money");
    assert_eq!(refused.name, "ERC20InsufficientBalance");
    assert_eq!((evm.logs().len(), balance(&evm, &at, OTHER)), (before, 0));
}

#[test]
fn asking_and_forks_change_nothing_here() {
    let (mut evm, at) = chain();
    evm.what_if(WHO, at.usdc, usdc::calls::mint(WHO, 5)).expect("anybody would");
    let mut fork = evm.clone();
    fork.call(WHO, at.usdc, usdc::calls::mint(WHO, 5), 0).expect("anybody mints");
    fork.warp(100);
    assert_eq!((balance(&evm, &at, WHO), balance(&fork, &at, WHO)), (0, 5));
    assert_eq!((fork.now() - evm.now(), fork.number() - evm.number()), (100, 50));
    evm.warp(1);
    assert_eq!(evm.number(), 2);
}

#[test]
fn gas_is_paid_for_when_it_has_a_price() {
    let (mut evm, at) = chain();
    evm.gas_price = 10;
    assert_eq!(evm.call(WHO, at.usdc, usdc::calls::mint(WHO, 1), 0).expect_err("no wei").name, "Unsent");
    evm.set_wei(WHO, 1_000_000_000);
    let used = evm.call(WHO, at.usdc, usdc::calls::mint(WHO, 1), 0).expect("can pay").gas_used;
    assert_eq!(evm.wei(WHO), 1_000_000_000 - u128::from(used) * 10);
}

/// Answers are kept while nothing that they read has changed; not at all, if they hang on the time.
#[test]
fn an_answer_is_as_old_as_what_it_read() {
    let (mut evm, at) = chain();
    evm.call(WHO, at.usdc, usdc::calls::mint(WHO, 5), 0).expect("anybody mints");
    let before = evm.clone();
    assert_eq!((balance(&evm, &at, WHO), balance(&evm, &at, WHO)), (5, 5));
    evm.call(WHO, at.usdc, usdc::calls::transfer(OTHER, 2), 0).expect("has five");
    assert_eq!((balance(&evm, &at, WHO), balance(&before, &at, WHO)), (3, 5));
    // Another contract at the same place.
    let code = evm.code(at.market);
    evm.set_code(at.usdc, code);
    assert!(evm.ask(at.usdc, &TestUSDC::balanceOfCall { account: WHO }).is_err());

    // `TIMESTAMP PUSH0 MSTORE PUSH1 32 PUSH0 RETURN`, and the same with `NUMBER`.
    for (asks, place) in [(0x42, OTHER), (0x43, WHO)] {
        evm.set_code(place, vec![asks, 0x5f, 0x52, 0x60, 0x20, 0x5f, 0xf3].into());
        let first = evm.view(place, Vec::new()).expect("an answer");
        assert_eq!(evm.view(place, Vec::new()), Ok(first.clone()));
        evm.warp(2);
        assert_ne!(evm.view(place, Vec::new()), Ok(first));
    }
}
