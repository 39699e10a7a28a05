//! What the provider asks for: a quote per period, moved within a band by a walk that anyone who knows the
//! seed can compute again. No state: after a restart the daemon quotes what it would have quoted anyway.

use crate::config::{OfferConfig, Reprice};

/// The asked price at chain time `now`, in 1e-6 micro-USDC per second; never 0.
///
/// The walk takes one step of up to a quarter of the band per period and is drawn from the last
/// [`STEPS`] periods, so neighbouring quotes are near each other and it never leaves the band.
pub fn quote_e6(offer: &OfferConfig, index: usize, reprice: Option<&Reprice>, now: u64) -> u64 {
    let Some(reprice) = reprice else { return offer.price_e6 };
    let period = now / reprice.every_secs;
    let lane = reprice.seed ^ (u64::try_from(index).unwrap_or(u64::MAX)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    // Sum of STEPS draws in -1000..=1000, over STEPS: a moving average, in thousandths of the spread.
    let sum: i64 = (0..STEPS).map(|back| draw(lane, period.wrapping_sub(back))).sum();
    let permille = sum / i64::try_from(STEPS).unwrap_or(1);
    let price = i128::from(offer.price_e6);
    let moved = price + price * i128::from(reprice.spread_pct) * i128::from(permille) / 100_000;
    u64::try_from(moved.max(1)).unwrap_or(u64::MAX)
}

/// Periods that one quote remembers. A guess, unmeasured: enough for neighbours to resemble each other.
const STEPS: u64 = 4;

/// A number in -1000..=1000 from (lane, period), by the finaliser of splitmix64 (public domain, Vigna 2015).
fn draw(lane: u64, period: u64) -> i64 {
    let mut x = lane.wrapping_add(period.wrapping_mul(0xd1b5_4a32_d192_ed03));
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^= x >> 31;
    i64::try_from(x % 2001).unwrap_or(0) - 1000
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer() -> OfferConfig {
        OfferConfig { price_e6: 1_000_000, capacity: 1, min_term: 1, max_term: 9, memory_mib: 1, milli_cpu: 1 }
    }

    #[test]
    fn a_quote_holds_for_its_period_and_stays_in_the_band() {
        let reprice = Reprice { every_secs: 60, spread_pct: 20, seed: 3 };
        let mut seen = std::collections::BTreeSet::new();
        for period in 0..500u64 {
            let first = quote_e6(&offer(), 0, Some(&reprice), period * 60);
            assert_eq!(first, quote_e6(&offer(), 0, Some(&reprice), period * 60 + 59));
            assert!((800_000..=1_200_000).contains(&first), "{first}");
            seen.insert(first);
        }
        assert!(seen.len() > 100, "the price hardly moves: {}", seen.len());
    }

    #[test]
    fn seeds_and_offers_quote_differently() {
        let quotes = |seed, index| {
            let reprice = Reprice { every_secs: 60, spread_pct: 20, seed };
            (0..20).map(|p| quote_e6(&offer(), index, Some(&reprice), p * 60)).collect::<Vec<_>>()
        };
        assert_eq!(quotes(1, 0), quotes(1, 0));
        assert_ne!(quotes(1, 0), quotes(2, 0));
        assert_ne!(quotes(1, 0), quotes(1, 1));
    }

    #[test]
    fn without_repricing_the_price_stands() {
        assert_eq!(quote_e6(&offer(), 0, None, 12345), 1_000_000);
    }
}
