//! What a treasury answers to `state()`, read word by word where solc puts it: to ask costs a hundred times as much, and
//! lives look after every transaction. Their chain asks as well, now and then, and compares.

use crate::world::World;
use alloy::primitives::{Address, B256, U256};
use chain::bindings::{Lease, LeaseStatus, State};
use economy::Usdc;

// Storage of `TreasuryBase`, by `forge inspect src/Treasury.sol:Treasury storageLayout`.
const BIRTH_CODE_HASH: u64 = 8;
const BIRTH_MANIFEST: u64 = 9;
const BIRTH_MANDATE: u64 = 10;
const STAGE: u64 = 33;
const EPOCH_OPERATOR: u64 = 34;
const RELAY: u64 = 35;
const ACTIVE: u64 = 37;
const STANDBY: u64 = 38;
const DRAINING: u64 = 39;
const ANNOUNCED: u64 = 40;
const ANNOUNCED_AT: u64 = 41;
const CHALLENGED_AT: u64 = 42;
const WIND_DOWN_AT: u64 = 43;
const CHECKPOINT_DIGEST: u64 = 44;
const RECEIPTS_ROOT: u64 = 45;
const ORDER_NONCE: u64 = 47;
const SPENT: u64 = 49;
/// Of `DayLimit`: slots of a 24th of a day.
const SLOTS: u64 = 25;

/// The state of a born treasury at this moment; `balance` in micro-USDC.
pub fn state(world: &World, balance: u128) -> State {
    let word = |index: u64| world.evm.slot(world.treasury, index);
    let part = |index: u64, byte: usize| part(word(index), byte);
    let flag = |index: u64, byte: usize| part(index, byte) & 0xff != 0;
    let mut state = State {
        stage: part(STAGE, 28).to_le_bytes()[0],
        paused: flag(STAGE, 29),
        restoring: flag(STAGE, 30),
        operator: address(word(EPOCH_OPERATOR) >> 80),
        relay: address(word(RELAY)),
        epoch: part(EPOCH_OPERATOR, 2),
        activeLease: word(ACTIVE),
        standbyLease: word(STANDBY),
        drainingLease: word(DRAINING),
        announcedLease: word(ANNOUNCED),
        announcedAt: part(ANNOUNCED_AT, 0),
        checkpointSeq: part(ANNOUNCED_AT, 8),
        checkpointDigest: B256::from(word(CHECKPOINT_DIGEST)),
        lastHeartbeat: part(ANNOUNCED_AT, 16),
        challengedAt: part(CHALLENGED_AT, 0),
        takenOverAt: part(CHALLENGED_AT, 24),
        windDownAt: part(WIND_DOWN_AT, 0),
        mandateUntil: part(BIRTH_MANDATE, 0),
        orderNonce: word(ORDER_NONCE),
        spentInDay: spent(world),
        balance: U256::from(balance),
        escrow: U256::ZERO,
        codeHash: B256::from(word(BIRTH_CODE_HASH)),
        manifest: B256::from(word(BIRTH_MANIFEST)),
        receiptsRoot: B256::from(word(RECEIPTS_ROOT)),
    };
    let leases = [state.activeLease, state.standbyLease, state.drainingLease];
    let open = leases.into_iter().filter(|lease| !lease.is_zero());
    state.escrow = U256::from(open.map(|id| escrow_left(world, &world.lease(id.to()))).sum::<u128>());
    state
}

/// Of an open lease: what was paid in and is not earned yet, micro-USDC.
pub fn escrow_left(world: &World, lease: &Lease) -> u128 {
    match lease.status() {
        LeaseStatus::Requested => lease.escrow,
        LeaseStatus::Ready => {
            let vouched = lease.vouchedAt + u64::from(world.terms.timers.grace);
            let until = vouched.min(lease.end).min(world.evm.now());
            lease.escrow - Usdc::rent_up(lease.priceE6, until - lease.start).micro().min(lease.escrow)
        }
        LeaseStatus::None | LeaseStatus::Closed => 0,
    }
}

/// The nonce of the next order of the stewards.
pub fn order_nonce(world: &World) -> U256 {
    world.evm.slot(world.treasury, ORDER_NONCE)
}

/// What the next checkpoint follows: the epoch, the last one's number and its digest.
pub fn last_checkpoint(world: &World) -> (u64, u64, B256) {
    let word = |index: u64| world.evm.slot(world.treasury, index);
    (part(word(EPOCH_OPERATOR), 2), part(word(ANNOUNCED_AT), 8), word(CHECKPOINT_DIGEST).into())
}

/// What still counts of the day's gross commitments, micro-USDC.
fn spent(world: &World) -> u128 {
    let word = |index: u64| world.evm.slot(world.treasury, SPENT + index);
    let slot_secs = u64::from(world.terms.timers.day).div_ceil(24);
    let ring: u64 = word(0).as_limbs()[0];
    let total: u128 = low(word(0) >> 64);
    let gone = world.evm.now() / slot_secs - ring;
    if gone >= SLOTS {
        return 0;
    }
    let amount = |slot: u64| low(word(1 + slot % SLOTS / 2) >> (128 * usize::from(slot % SLOTS % 2 == 1)));
    (1..=gone).fold(total, |sum, slot| sum - amount(ring + slot))
}

/// Eight bytes of a word from this one on, counted from its end.
fn part(word: U256, byte: usize) -> u64 {
    (word >> (8 * byte)).as_limbs()[0]
}

fn low(word: U256) -> u128 {
    (word & U256::from(u128::MAX)).to()
}

fn address(word: U256) -> Address {
    Address::from_word(B256::from(word))
}
