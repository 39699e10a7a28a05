//! How many requests are looked at at once, and how many read along at `/events`: of one address, so that a flood from one
//! place waits for nobody's answer but its own, and of all together, so that many such places do not take the memory.
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
/// The same of all addresses. Each holds its body, at most a megabyte: half a gigabyte in all. A guess, unmeasured.
const ALL_UNPAID_MAX: u32 = 512;
const ALL_PAID_MAX: u32 = 4_096;

/// Who reads along at `/events`, of one address and of all. Each holds a connection and what its kernel buffers. Guesses,
/// unmeasured.
const READERS_MAX: u32 = 64;
const ALL_READERS_MAX: u32 = 1_024;

/// What is counted apart, so that none shuts out another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Unpaid,
    Paid,
    /// Of `/events`: inside until it hangs up.
    Reader,
}

impl Kind {
    /// At most of one address, and of all.
    const fn most(self) -> (u32, u32) {
        match self {
            Self::Unpaid => (UNPAID_MAX, ALL_UNPAID_MAX),
            Self::Paid => (PAID_MAX, ALL_PAID_MAX),
            Self::Reader => (READERS_MAX, ALL_READERS_MAX),
        }
    }
}

/// Who is inside, by where they come from.
#[derive(Clone, Default)]
pub struct Gate(Arc<Mutex<Counts>>);

#[derive(Default)]
struct Counts {
    of_address: BTreeMap<(IpAddr, Kind), u32>,
    of_all: BTreeMap<Kind, u32>,
}

/// One request inside, for as long as it lives.
pub struct Inside {
    gate: Gate,
    key: (IpAddr, Kind),
}

/// Why a request does not come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    OfAddress,
    OfAll,
}

impl Gate {
    /// Lets one in, for as long as what it gets is held.
    ///
    /// # Errors
    /// Which bound it would go beyond.
    pub fn enter(&self, from: IpAddr, kind: Kind) -> Result<Inside, Full> {
        let key = (network_of(from), kind);
        let (most, most_of_all) = kind.most();
        let mut inside = self.lock();
        let count = inside.of_address.get(&key).copied().unwrap_or(0);
        if count >= most {
            return Err(Full::OfAddress);
        }
        let of_all = inside.of_all.entry(kind).or_default();
        if *of_all >= most_of_all {
            return Err(Full::OfAll);
        }
        *of_all += 1;
        inside.of_address.insert(key, count + 1);
        Ok(Inside { gate: self.clone(), key })
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().expect("no holder of this lock panics and lives")
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        let mut inside = self.gate.lock();
        if let Some(of_all) = inside.of_all.get_mut(&self.key.1) {
            *of_all -= 1;
        }
        if let Some(count) = inside.of_address.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                inside.of_address.remove(&self.key);
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
    let kind = if request.headers().contains_key(&PAYMENT_SIGNATURE) { Kind::Paid } else { Kind::Unpaid };
    match gate.enter(from, kind) {
        Ok(_inside) => next.run(request).await,
        Err(full) => Problem::from(full).into_response(),
    }
}

impl From<Full> for Problem {
    fn from(full: Full) -> Self {
        Self::from(match full {
            Full::OfAddress => {
                let message = "too many requests from your address are open; wait for their answers";
                ApiError { status: 429, ..ApiError::for_unavail("too_many_open", message, 1) }
            }
            Full::OfAll => ApiError::for_unavail("too_many_open", "too many requests are open; ask again", 1),
        })
    }
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
        let flood: Vec<_> = (0..UNPAID_MAX).map(|_| gate.enter(ip("10.0.0.1"), Kind::Unpaid).unwrap()).collect();
        assert_eq!(gate.enter(ip("10.0.0.1"), Kind::Unpaid).err(), Some(Full::OfAddress));
        assert!(gate.enter(ip("::ffff:10.0.0.1"), Kind::Unpaid).is_err(), "the same address, written otherwise");
        assert!(gate.enter(ip("10.0.0.1"), Kind::Paid).is_ok(), "whoever pays has a door of its own");
        assert!(gate.enter(ip("10.0.0.2"), Kind::Unpaid).is_ok());
        drop(flood);
        assert!(gate.enter(ip("10.0.0.1"), Kind::Unpaid).is_ok());
        assert!(gate.lock().of_address.is_empty(), "nothing is remembered of whoever left");
    }

    #[test]
    fn an_ipv6_network_is_one_address() {
        let gate = Gate::default();
        let _flood: Vec<_> =
            (0..UNPAID_MAX).map(|n| gate.enter(ip(&format!("2001:db8::{n:x}")), Kind::Unpaid).unwrap()).collect();
        assert!(gate.enter(ip("2001:db8::ffff"), Kind::Unpaid).is_err());
        assert!(gate.enter(ip("2001:db8:0:1::1"), Kind::Unpaid).is_ok());
    }

    #[test]
    fn many_floods_shut_out_what_is_not_paid_and_nothing_else() {
        let gate = Gate::default();
        let floods: Vec<_> = (0..ALL_UNPAID_MAX)
            .map(|n| {
                gate.enter(IpAddr::from([10, 0, u8::try_from(n >> 8).unwrap(), n.to_le_bytes()[0]]), Kind::Unpaid)
                    .ok()
                    .unwrap()
            })
            .collect();
        assert_eq!(gate.enter(ip("192.0.2.1"), Kind::Unpaid).err(), Some(Full::OfAll));
        assert!(gate.enter(ip("192.0.2.1"), Kind::Paid).is_ok(), "whoever pays comes in");
        drop(floods);
        assert!(gate.enter(ip("192.0.2.1"), Kind::Unpaid).is_ok());
    }
}
