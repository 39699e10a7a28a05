//! Logarithms and powers in integers, so that a year is the same on every machine.

use crate::Chance;

/// 1.0 of an exponent.
pub const ONE: i64 = 1 << 16;
/// 2^(1/2), 2^(1/4), … times 2^32, rounded down.
const ROOTS: [u64; 16] = [
    0x16a09e667,
    0x1306fe0a3,
    0x1172b83c7,
    0x10b5586cf,
    0x1059b0d31,
    0x102c9a3e7,
    0x10163da9f,
    0x100b1afa5,
    0x10058c86d,
    0x1002c605e,
    0x100162f39,
    0x1000b175e,
    0x100058ba0,
    0x10002c5cc,
    0x1000162e5,
    0x10000b172,
];

/// log2(x) x 2^16, rounded down; of 0 as of 1.
pub fn log2(x: u64) -> i64 {
    let x = x.max(1);
    let whole = 63 - x.leading_zeros();
    // In [1, 2) x 2^32.
    let mut mantissa = u128::from(x << (63 - whole)) >> 31;
    let mut log = i64::from(whole) << 16;
    for bit in (0..16).rev() {
        mantissa = (mantissa * mantissa) >> 32;
        if mantissa >= 1 << 33 {
            mantissa >>= 1;
            log |= 1 << bit;
        }
    }
    log
}

/// 2^(y / 2^16), rounded down; 0 below 1, and never above 2^62.
pub fn exp2(y: i64) -> u64 {
    if y < 0 {
        return 0;
    }
    let (whole, fraction) = (y >> 16, y & (ONE - 1));
    if whole >= 62 {
        return 1 << 62;
    }
    let mut mantissa = 1u128 << 32;
    for (bit, root) in (0..16).rev().zip(ROOTS) {
        if fraction & (1 << bit) != 0 {
            mantissa = (mantissa * u128::from(root)) >> 32;
        }
    }
    // Below 2^33 x 2^62.
    u64::try_from((mantissa << whole) >> 32).unwrap_or(1 << 62)
}

/// About normal, with a deviation of 1 x 2^16: twelve even draws, less their mean.
pub fn normal(chance: &mut Chance) -> i64 {
    let sum: u64 = (0..12).map(|_| chance.below(1 << 16)).sum();
    i64::try_from(sum).unwrap_or(0) - 6 * ONE
}

/// Around `median`: of three draws two lie between median x 2^-s and median x 2^s, s = `spread` / 1,000.
pub fn lognormal(chance: &mut Chance, median: u64, spread: i64) -> u64 {
    exp2(log2(median) + normal(chance) * spread / 1_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logarithms_and_powers_meet() {
        assert_eq!([1, 2, 1 << 40].map(log2), [0, ONE, 40 * ONE]);
        assert_eq!([0, ONE, 40 * ONE, -1].map(exp2), [1, 2, 1 << 40, 0]);
        assert_eq!(log2(3), 103_872);
        for x in [3, 1_000, 123_456_789, 1 << 50] {
            let back = exp2(log2(x));
            assert!(x.abs_diff(back) * 10_000 <= x.max(10_000), "{x} became {back}");
        }
    }

    #[test]
    fn a_third_of_the_draws_lies_beyond_the_spread() {
        let mut chance = Chance::new(1);
        let draws: Vec<u64> = (0..10_000).map(|_| lognormal(&mut chance, 1_000, 1_000)).collect();
        let share = |below: u64| draws.iter().filter(|draw| **draw < below).count() / 100;
        assert!(share(500).abs_diff(16) <= 2 && share(1_000).abs_diff(50) <= 2 && share(2_000).abs_diff(84) <= 2);
    }
}
