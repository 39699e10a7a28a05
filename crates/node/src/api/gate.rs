//! How many requests of one address are looked at at once: a flood from one place waits for nobody's answer but its own.
//!
//! A request without payment costs a count of its tokens; nothing of it is kept or written. Behind a gateway all
//! customers may have one address, so the bounds are far above what one program does.

use super::problem::Problem;
use axum::extract::{ConnectInfo, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use infer::api::ApiError;
use pay::wire::PAYMENT_SIGNATURE;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};

/// Requests of one address before their answers begin, at once. Guesses, unmeasured.
const UNPAID_MAX: u32 = 256;
const PAID_MAX: u32 = 1_024;

/// Requests without and with a payment, by where they come from.
#[derive(Clone, Default)]
pub struct Gate(Arc<Mutex<BTreeMap<(IpAddr, bool), u32>>>);

/// One request inside, for as long as it lives.
struct Inside {
    gate: Gate,
    key: (IpAddr, bool),
}

impl Gate {
    fn enter(&self, from: IpAddr, is_paid: bool) -> Option<Inside> {
        let key = (network_of(from), is_paid);
        let most = if is_paid { PAID_MAX } else { UNPAID_MAX };
        let mut inside = self.lock();
        let count = inside.entry(key).or_default();
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(Inside { gate: self.clone(), key })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<(IpAddr, bool), u32>> {
        self.0.lock().expect("no holder of this lock panics and lives")
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        let mut inside = self.gate.lock();
        if let Some(count) = inside.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                inside.remove(&self.key);
            }
        }
    }
}

/// Whoever has one address of an IPv6 network of 64 bits has them all.
fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => Ipv6Addr::from(u128::from(address) >> 64 << 64).into(),
    }
}

pub async fn keep(State(gate): State<Gate>, request: Request, next: Next) -> Response {
    let from = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(from)| from.ip());
    let Some(from) = from else { return next.run(request).await };
    let is_paid = request.headers().contains_key(&PAYMENT_SIGNATURE);
    let Some(_inside) = gate.enter(from, is_paid) else {
        let message = "too many requests from your address are open; wait for their answers";
        let refusal = ApiError { status: 429, ..ApiError::for_unavail("too_many_open", message, 1) };
        return Problem::from(refusal).into_response();
    };
    next.run(request).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_flood_from_one_address_shuts_out_itself_alone() {
        let gate = Gate::default();
        let flood: Vec<_> = (0..UNPAID_MAX).map(|_| gate.enter(ip("10.0.0.1"), false).unwrap()).collect();
        assert!(gate.enter(ip("10.0.0.1"), false).is_none());
        assert!(gate.enter(ip("::ffff:10.0.0.1"), false).is_none(), "the same address, written otherwise");
        assert!(gate.enter(ip("10.0.0.1"), true).is_some(), "whoever pays has a door of its own");
        assert!(gate.enter(ip("10.0.0.2"), false).is_some());
        drop(flood);
        assert!(gate.enter(ip("10.0.0.1"), false).is_some());
        assert!(gate.lock().is_empty(), "nothing is remembered of whoever left");
    }

    #[test]
    fn an_ipv6_network_is_one_address() {
        let gate = Gate::default();
        let _flood: Vec<_> =
            (0..UNPAID_MAX).map(|n| gate.enter(ip(&format!("2001:db8::{n:x}")), false).unwrap()).collect();
        assert!(gate.enter(ip("2001:db8::ffff"), false).is_none());
        assert!(gate.enter(ip("2001:db8:0:1::1"), false).is_some());
    }
}
