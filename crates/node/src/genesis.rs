//! With what a life begins: the manifest's wishes and the timers of treasury and market, in the pure machine's terms. The
//! treasury's limits come with each block: a quorum may change them.

use crate::context::Context;
use crate::state::State;
use economy::{Agent, Archive, Genesis, Policy, Purse, Timers, Usdc, Wishes};
use pay::book::ChannelBook;

/// Block time assumed when timers are judged, seconds. Public roll-ups are faster or equal (Base: 2 s).
const BLOCK_SECS: u32 = 2;

/// The state before the first record.
pub fn fresh(cx: &Context) -> State {
    let timers = timers(cx);
    let purse = Purse { cap: Usdc(cx.birth.options.purseMax), call_max: Usdc(cx.manifest.dearest_supplier_uusdc()) };
    let wishes = wishes(cx, &timers);
    let genesis = Genesis {
        chain_id: cx.config.chain_id,
        treasury: cx.config.treasury.into_array(),
        timers,
        policy: Policy {
            purse,
            buys_gas: !cx.birth.options.gas.router.is_zero(),
            archive: archive(cx),
            hibernates: cx.manifest.hibernates,
            ..Policy::new(wishes, &timers)
        },
    };
    State::new(Agent::new(genesis), ChannelBook::new(pay::book::Limits::default()))
}

/// The manifest's archivist, if birth named it too: the contract pays nobody else.
fn archive(cx: &Context) -> Archive {
    let Some(payee) = cx.manifest.archive.payee else { return Archive::default() };
    let payees = cx.birth.options.payees.iter();
    let born = payees.filter(|known| known.kind == chain::treasury::KIND_STORAGE).find(|known| known.payee == payee);
    born.map_or_else(Archive::default, |born| Archive {
        payee: payee.into_array(),
        day_max: Usdc(born.dayMax.min(cx.manifest.archive.uusdc_per_day_max)),
        every: cx.manifest.archive.every_days.saturating_mul(cx.birth.timers.day),
    })
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

fn wishes(cx: &Context, timers: &Timers) -> Wishes {
    let manifest = &cx.manifest;
    let days = |count: u32| count.saturating_mul(timers.day);
    Wishes {
        term: days(manifest.longest_lease_days()),
        prepay_secs: days(manifest.longest_prepay_days()),
        margin_pct: manifest.margin_pct,
        min_call: Usdc(manifest.min_call_uusdc),
        max_call: Usdc(manifest.max_call_uusdc),
        block_secs: if timers.day < economy::DAY_SECS { 1 } else { BLOCK_SECS },
    }
}

/// A state before the first record, for tests.
#[cfg(test)]
pub fn for_tests() -> State {
    for_tests_of([1; 20])
}

/// The same for this treasury. The kept journals (`live::journals`) begin from it: with other wishes the same records say
/// something else.
#[cfg(test)]
pub fn for_tests_of(treasury: [u8; 20]) -> State {
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
    let wishes = Wishes {
        term: 30 * 86_400,
        prepay_secs: 2 * 86_400,
        margin_pct: 20,
        min_call: Usdc(1),
        max_call: Usdc(1_000_000),
        block_secs: 2,
    };
    let genesis = Genesis { chain_id: 1, treasury, timers, policy: Policy::new(wishes, &timers) };
    State::new(Agent::new(genesis), ChannelBook::new(pay::book::Limits::default()))
}
