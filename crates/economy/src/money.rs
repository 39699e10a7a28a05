//! Money: integer micro-USDC, parsed strictly, rounded only where a name says so.

use borsh::{BorshDeserialize, BorshSerialize};
use std::fmt;

/// Micro-USDC (1e-6 USDC) in one USDC.
pub const USDC: u128 = 1_000_000;

/// A 20-byte account or contract address.
pub type Address = [u8; 20];

/// An amount in micro-USDC (1e-6 USDC, the token's own unit). Never negative; differences are [`i128`] in the ledger.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, BorshSerialize, BorshDeserialize)]
pub struct Usdc(pub u128);

/// Why a text is not an amount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AmountError {
    Empty,
    /// Something besides digits and one dot: no sign, no exponent, no blanks, no grouping.
    NotANumber,
    /// More than six decimals: a micro-USDC cannot be split.
    TooPrecise,
    /// Above what the token can hold.
    TooLarge,
}

impl fmt::Display for AmountError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "an amount is missing",
            Self::NotANumber => "an amount is digits with at most one dot, like 1.50",
            Self::TooPrecise => "an amount has at most six decimals",
            Self::TooLarge => "the amount is larger than the token can hold",
        })
    }
}

impl std::error::Error for AmountError {}

impl Usdc {
    pub const ZERO: Self = Self(0);
    pub const MAX: Self = Self(u128::MAX);

    /// Parses USDC like `100`, `1.50` or `0.000001`. Digits on both sides of a dot are required, so `1.`, `.5`,
    /// `1abc` and ` 1` are errors.
    pub fn parse(text: &str) -> Result<Self, AmountError> {
        if text.is_empty() {
            return Err(AmountError::Empty);
        }
        let (whole, fraction) = match text.split_once('.') {
            None => (text, ""),
            Some((_, "")) => return Err(AmountError::NotANumber),
            Some(parts) => parts,
        };
        let digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
        if whole.is_empty() || !digits(whole) || !digits(fraction) {
            return Err(AmountError::NotANumber);
        }
        if fraction.len() > 6 {
            return Err(AmountError::TooPrecise);
        }
        let whole: u128 = whole.parse().map_err(|_| AmountError::TooLarge)?;
        let mut micro: u128 = 0;
        for place in 0..6 {
            let digit = fraction.as_bytes().get(place).map_or(0, |b| u128::from(b - b'0'));
            micro = micro * 10 + digit;
        }
        whole.checked_mul(USDC).and_then(|w| w.checked_add(micro)).map(Self).ok_or(AmountError::TooLarge)
    }

    /// Parses the wire form: a decimal integer of micro-USDC without leading zeros.
    pub fn parse_micro(text: &str) -> Result<Self, AmountError> {
        if text.is_empty() {
            return Err(AmountError::Empty);
        }
        if !text.bytes().all(|b| b.is_ascii_digit()) || (text.len() > 1 && text.starts_with('0')) {
            return Err(AmountError::NotANumber);
        }
        text.parse().map(Self).map_err(|_| AmountError::TooLarge)
    }

    /// The wire form: micro-USDC as a decimal integer.
    pub fn micro(self) -> u128 {
        self.0
    }

    pub fn is_zero(self) -> bool {
        self.0 == 0
    }

    pub fn checked_add(self, other: Self) -> Option<Self> {
        self.0.checked_add(other.0).map(Self)
    }

    pub fn checked_sub(self, other: Self) -> Option<Self> {
        self.0.checked_sub(other.0).map(Self)
    }

    pub fn saturating_add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    pub fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }

    /// What `secs` cost at `price_e6` (micro-USDC x 1e-6 per second), rounded up: for what must be covered.
    pub fn rent_up(price_e6: u64, secs: u64) -> Self {
        Self((u128::from(price_e6) * u128::from(secs)).div_ceil(1_000_000))
    }

    /// What `secs` cost at `price_e6`, rounded down: for what must not exceed a cap.
    pub fn rent_down(price_e6: u64, secs: u64) -> Self {
        Self(u128::from(price_e6) * u128::from(secs) / 1_000_000)
    }

    /// Whole seconds that this amount pays at `price_e6`; `u64::MAX` for a host that costs nothing.
    pub fn secs_down(self, price_e6: u64) -> u64 {
        match mul_div_down(self.0, 1_000_000, u128::from(price_e6)) {
            Some(secs) => u64::try_from(secs).unwrap_or(u64::MAX),
            None => u64::MAX,
        }
    }
}

impl std::iter::Sum for Usdc {
    fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
        iter.fold(Self::ZERO, Self::saturating_add)
    }
}

/// `1.500000 USDC`: all six decimals, so that columns line up and nothing is hidden.
impl fmt::Display for Usdc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:06} USDC", self.0 / USDC, self.0 % USDC)
    }
}

/// `a x b / c`, rounded down; `None` when `c` is 0 or the result does not fit.
pub fn mul_div_down(a: u128, b: u128, c: u128) -> Option<u128> {
    mul_div(a, b, c).map(|(quotient, _)| quotient)
}

/// `a x b / c`, rounded up; `None` when `c` is 0 or the result does not fit.
pub fn mul_div_up(a: u128, b: u128, c: u128) -> Option<u128> {
    let (quotient, remainder) = mul_div(a, b, c)?;
    if remainder == 0 { Some(quotient) } else { quotient.checked_add(1) }
}

/// Quotient and remainder of `a x b / c` through a 256-bit product.
fn mul_div(a: u128, b: u128, c: u128) -> Option<(u128, u128)> {
    if c == 0 {
        return None;
    }
    if let Some(product) = a.checked_mul(b) {
        return Some((product / c, product % c));
    }
    // Schoolbook: the product as two 128-bit halves, then long division bit by bit. Rare, so slow is fine.
    let mask = u128::from(u64::MAX);
    let (a1, a0, b1, b0) = (a >> 64, a & mask, b >> 64, b & mask);
    let low = a0 * b0;
    let middle = a1 * b0 + (low >> 64);
    let middle_low = (middle & mask) + a0 * b1;
    let high = a1 * b1 + (middle >> 64) + (middle_low >> 64);
    let low = (middle_low << 64) | (low & mask);
    if high >= c {
        return None;
    }
    let (mut quotient, mut remainder) = (0u128, high);
    for bit in (0..128).rev() {
        let carry = remainder >> 127;
        remainder = (remainder << 1) | ((low >> bit) & 1);
        quotient <<= 1;
        if carry == 1 || remainder >= c {
            remainder = remainder.wrapping_sub(c);
            quotient |= 1;
        }
    }
    Some((quotient, remainder))
}

#[cfg(test)]
mod tests;
