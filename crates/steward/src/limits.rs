//! How often one address may ask for the answers that make this steward work: a token bucket each. Pure: it is told what
//! time it is.

use alloy::primitives::Address;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};

/// Buckets held at once; the one that was asked longest ago gives way, which only helps whoever comes back.
const BUCKETS_MAX: usize = 4_096;

/// Routes that read the chain or fetch from the store for whoever asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Route {
    Ack,
    Segments,
    ReadSegments,
    Share,
    SignOrder,
}

impl Route {
    /// Requests at once, and how many more each second. Guesses, unmeasured: a checkpoint or a rescue is asked for a few
    /// times an hour, tries included, a share by a host that restores; a segment every two minutes, in a world whose day takes
    /// 20 s every 28 ms, and read as often.
    fn allowance(self) -> (u64, u64) {
        match self {
            Self::Ack | Self::Share | Self::SignOrder => (30, 2),
            Self::Segments | Self::ReadSegments => (300, 60),
        }
    }
}

/// Whose bucket it is. An agent that is watched has its own at each address, so that it does not wait for others behind
/// the same gateway; `None` for all that this steward does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Asker {
    network: IpAddr,
    treasury: Option<Address>,
    route: Route,
}

impl Asker {
    pub fn new(from: IpAddr, treasury: Option<Address>, route: Route) -> Self {
        // Whoever has one address of an IPv6 network of 64 bits has them all.
        let network = match from.to_canonical() {
            IpAddr::V4(address) => address.into(),
            IpAddr::V6(address) => Ipv6Addr::from(u128::from(address) >> 64 << 64).into(),
        };
        Self { network, treasury, route }
    }
}

#[derive(Debug)]
struct Bucket {
    /// Thousandths of a request.
    left_milli: u64,
    asked_ms: u64,
}

#[derive(Debug, Default)]
pub struct Limits {
    buckets: BTreeMap<Asker, Bucket>,
}

impl Limits {
    /// Whether `asker` may ask once more at `now_ms`, which never goes back.
    pub fn take(&mut self, asker: Asker, now_ms: u64) -> bool {
        let (burst, per_sec) = asker.route.allowance();
        let full_milli = burst * 1_000;
        if !self.buckets.contains_key(&asker) && self.buckets.len() >= BUCKETS_MAX {
            let oldest = self.buckets.iter().min_by_key(|(_, bucket)| bucket.asked_ms).map(|(asker, _)| *asker);
            oldest.map(|oldest| self.buckets.remove(&oldest));
        }
        let bucket = self.buckets.entry(asker).or_insert(Bucket { left_milli: full_milli, asked_ms: now_ms });
        // Requests a second are thousandths of one a millisecond.
        let since_ms = now_ms.saturating_sub(bucket.asked_ms);
        bucket.left_milli = bucket.left_milli.saturating_add(since_ms.saturating_mul(per_sec)).min(full_milli);
        bucket.asked_ms = now_ms;
        let Some(left) = bucket.left_milli.checked_sub(1_000) else { return false };
        bucket.left_milli = left;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asker(from: &str, treasury: Option<u8>, route: Route) -> Asker {
        Asker::new(from.parse().unwrap(), treasury.map(Address::repeat_byte), route)
    }

    #[test]
    fn a_flood_empties_its_own_bucket_which_fills_again() {
        let mut limits = Limits::default();
        let flood = asker("10.0.0.1", None, Route::Ack);
        let taken = (0..100).filter(|_| limits.take(flood, 5)).count();
        assert_eq!(taken, 30);
        assert!(!limits.take(asker("::ffff:10.0.0.1", None, Route::Ack), 5), "the same address, written otherwise");
        assert!(limits.take(asker("10.0.0.1", Some(1), Route::Ack), 5), "an agent that is watched has its own");
        assert!(limits.take(asker("10.0.0.1", None, Route::SignOrder), 5));
        assert!(limits.take(asker("10.0.0.2", None, Route::Ack), 5));
        assert!(!limits.take(flood, 504), "half a second is one request");
        assert!(limits.take(flood, 505));
        assert!(!limits.take(flood, 505));
        // An hour fills it, and no more than that.
        assert_eq!((0..100).filter(|_| limits.take(flood, 3_600_000)).count(), 30);
    }

    #[test]
    fn an_agent_in_a_hurry_is_not_stopped() {
        let mut limits = Limits::default();
        let agent = asker("127.0.0.1", Some(1), Route::Segments);
        assert!((0..10_000).all(|n| limits.take(agent, n * 28)));
    }

    #[test]
    fn an_ipv6_network_is_one_address_and_the_table_is_bounded() {
        let mut limits = Limits::default();
        let taken = (0..100).filter(|n| limits.take(asker(&format!("2001:db8::{n:x}"), None, Route::Ack), 0)).count();
        assert_eq!(taken, 30);
        for n in 0..10_000u64 {
            let from = IpAddr::from(Ipv6Addr::from(u128::from(n) << 64));
            assert!(limits.take(Asker::new(from, None, Route::Ack), n));
        }
        assert_eq!(limits.buckets.len(), BUCKETS_MAX);
    }
}
