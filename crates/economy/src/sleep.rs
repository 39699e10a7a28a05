//! Sleep: an agent whose money is nearly gone gives its hosts up before the floor takes it, and keeps name, mandate and
//! sealed memory. Nobody acts for it then; stewards wake it (`rescue`) once somebody has funded it.
//!
//! Two bounds, one twice the other, so that none is woken only to lie down again.

use crate::money::Usdc;

/// What the treasury of a sleeping agent must hold before it is woken on a host to which it would prepay `prepay`: twice the
/// floor under which it starves, and four times that rent. At the usual two days' prepayment that is a week of one host.
/// A guess, unmeasured.
pub fn wakes_at(starve_floor: Usdc, prepay: Usdc) -> Usdc {
    let below = sleeps_below(starve_floor, prepay);
    below.saturating_add(below)
}

/// What an agent that lies down must hold less than.
pub(crate) fn sleeps_below(starve_floor: Usdc, prepay: Usdc) -> Usdc {
    starve_floor.saturating_add(prepay).saturating_add(prepay)
}
