//! With what a life begins: the limits of manifest and treasury, turned into the pure machine's terms.

use crate::context::Context;
use crate::state::State;
use economy::{Agent, Genesis, Limits, Policy, Purse, Timers, Usdc};
use pay::book::ChannelBook;

/// Block time assumed when timers are judged, seconds. Public roll-ups are faster or equal (Base: 2 s).
const BLOCK_SECS: u32 = 2;

/// The state before the first record.
pub fn fresh(cx: &Context) -> State {
    let timers = timers(cx);
    let limits = limits(cx, &timers);
    let purse = Purse { cap: Usdc(cx.birth.options.purseMax), call_max: Usdc(cx.manifest.dearest_supplier_uusdc()) };
    let genesis = Genesis {
        chain_id: cx.config.chain_id,
        treasury: cx.config.treasury.into_array(),
        timers,
        policy: Policy { purse, ..Policy::new(limits, &timers) },
    };
    State::new(Agent::new(genesis), ChannelBook::new(pay::book::Limits::default()))
}

fn timers(cx: &Context) -> Timers {
    let on_chain = &cx.birth.timers;
    Timers {
        day: on_chain.day,
        heartbeat_every: on_chain.heartbeatEvery,
        fence: on_chain.fence,
        answer_time: on_chain.answerTime,
        handover_notice: on_chain.handoverNotice,
        restore_timeout: on_chain.restoreTimeout,
        silence: on_chain.silence,
        starve_timeout: on_chain.starveTimeout,
        activate_within: on_chain.activateWithin,
        refund_window: on_chain.refundWindow,
        ready_within: cx.market_timers.ready_within,
        grace: cx.market_timers.grace,
        drop_after: cx.market_timers.drop_after,
    }
}

fn limits(cx: &Context, timers: &Timers) -> Limits {
    let (manifest, policy) = (&cx.manifest, &cx.birth.policy);
    let days = |count: u32| count.saturating_mul(timers.day);
    Limits {
        day_limit: Usdc(policy.dayLimit),
        price_e6_max: policy.priceE6Max,
        term: days(manifest.lease_days).min(policy.termMax),
        prepay_secs: days(manifest.prepay_days).min(policy.prepayMax),
        gas_target_wei: policy.gasTarget,
        starve_floor: Usdc(policy.starveFloor),
        margin_pct: manifest.margin_pct,
        min_call: Usdc(manifest.min_call_uusdc),
        max_call: Usdc(manifest.max_call_uusdc),
        block_secs: if timers.day < economy::DAY_SECS { 1 } else { BLOCK_SECS },
    }
}

/// A state before the first record, for tests.
#[cfg(test)]
pub fn for_tests() -> State {
    for_tests_of([1; 20], 0)
}

/// The same for this treasury, with so many wei to keep for gas. The kept journals (`live::journals`) begin from it: with
/// other limits the same records say something else.
#[cfg(test)]
pub fn for_tests_of(treasury: [u8; 20], gas_target_wei: u128) -> State {
    // What a treasury was born with stays, whatever the default is by now.
    let timers = Timers {
        heartbeat_every: 14_400,
        fence: 16_200,
        answer_time: 18_000,
        silence: 21_600,
        grace: 21_600,
        drop_after: 50_400,
        ..Timers::real()
    };
    let limits = Limits {
        day_limit: Usdc(20_000_000),
        price_e6_max: 20_000_000,
        term: 30 * 86_400,
        prepay_secs: 2 * 86_400,
        gas_target_wei,
        starve_floor: Usdc(1_000_000),
        margin_pct: 20,
        min_call: Usdc(1),
        max_call: Usdc(1_000_000),
        block_secs: 2,
    };
    let genesis = Genesis { chain_id: 1, treasury, timers, policy: Policy::new(limits, &timers) };
    State::new(Agent::new(genesis), ChannelBook::new(pay::book::Limits::default()))
}
