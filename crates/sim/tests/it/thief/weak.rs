//! Treasuries that are weaker than their birth says: what the thief's bounds are worth is that they see these.

use super::{Row, Scene, World, rob, rows};
use alloy::primitives::{B256, U256};
use sim::world::creator;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Words in which the treasury keeps birth, stewards and life; mappings lie elsewhere.
const WORDS: u64 = 64;

/// Replaces the one place in the treasury's storage where these bytes stand, inside one word.
fn overwrite(world: &mut World, old: &[u8], new: &[u8]) {
    let treasury = world.treasury;
    let mut places = Vec::new();
    for index in 0..WORDS {
        let word = world.evm.slot(treasury, index).to_be_bytes::<32>();
        places.extend(word.windows(old.len()).enumerate().filter(|(_, w)| *w == old).map(|(at, _)| (index, at)));
    }
    let [(index, at)] = places[..] else { panic!("{old:x?} stands in {places:?} (word, byte)") };
    let mut word = world.evm.slot(treasury, index).to_be_bytes::<32>();
    word[at..at + new.len()].copy_from_slice(new);
    world.evm.set_slot(treasury, index, B256::from(word).into());
}

/// The row that this key's theft is held against.
fn row(key: &str) -> Row {
    rows().into_iter().find(|row| row.key.starts_with(key)).expect("a row of the table")
}

/// What the thief's test says, of which it is expected to say something.
fn found_out(row: &Row, weaken: impl FnOnce(&mut World)) -> String {
    let mut scene = Scene::new();
    weaken(&mut scene.world);
    let said = catch_unwind(AssertUnwindSafe(|| rob(row, &scene))).expect_err("nobody noticed");
    *said.downcast::<String>().expect("a text")
}

fn says_by_how_much(said: &str) {
    println!("{said}");
    assert!(said.contains("lost (") && said.contains("at most (") && said.contains("carried out"), "{said}");
}

#[test]
fn a_day_limit_that_binds_too_late_is_found_out() {
    let said = found_out(&row("operator"), |world| {
        let limit = world.terms.policy.dayLimit;
        overwrite(world, &limit.to_be_bytes(), &(4 * limit).to_be_bytes());
    });
    says_by_how_much(&said);
}

#[test]
fn a_creator_that_was_not_forgotten_is_found_out() {
    let said = found_out(&row("creator"), |world| {
        let operator = world.state().operator;
        overwrite(world, operator.as_slice(), creator().as_slice());
    });
    says_by_how_much(&said);
}

#[test]
fn a_quorum_that_one_too_few_can_form_is_found_out() {
    let said = found_out(&row("k - 1"), |world| {
        // The threshold has a word to itself, before the mapping of stewards. Another word may hold the same number: it is
        // lowered, too.
        let (treasury, k) = (world.treasury, U256::from(world.terms.threshold));
        for index in (0..WORDS).filter(|index| world.evm.slot(treasury, *index) == k).collect::<Vec<_>>() {
            world.evm.set_slot(treasury, index, k - U256::ONE);
        }
    });
    says_by_how_much(&said);
}

#[test]
fn a_bound_below_what_a_key_takes_is_found_out() {
    let provider = row("provider");
    let said = found_out(&Row { bound: |_, _| (10_000, 0), ..provider }, |_| {});
    says_by_how_much(&said);
}
