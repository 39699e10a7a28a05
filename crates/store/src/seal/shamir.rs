use super::key_hash;
use crate::error::{Error, Result};
use alloy::primitives::B256;
use std::fmt;
use vsss_rs::Gf256;
use zeroize::Zeroizing;

/// One of n shares of a secret: its number (1 to 255), then a byte for each byte of the secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Share(Zeroizing<Vec<u8>>);

impl Share {
    /// Reads [`Share::as_bytes`]. Whether the share was altered cannot be seen here.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        match bytes {
            [1..=255, _, ..] if bytes.len() <= SHARE_BYTES_MAX => Ok(Self(Zeroizing::new(bytes.to_vec()))),
            _ => Err(Error::key(format!("{} bytes are not a share", bytes.len()))),
        }
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Which of the n shares this is, from 1.
    pub fn number(&self) -> u8 {
        self.0[0]
    }
}

impl fmt::Debug for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Share({} of {} bytes)", self.number(), self.0.len())
    }
}

const SHARE_BYTES_MAX: usize = 4096;

/// Splits `secret` so that any `k` of `n` shares give it back and fewer say nothing about it.
/// `Usage` unless 1 ≤ k ≤ n ≤ 255 and the secret has 1 to 4095 bytes.
pub fn split(secret: &[u8], k: usize, n: usize) -> Result<Vec<Share>> {
    if k == 0 || k > n || n > 255 || secret.is_empty() || secret.len() >= SHARE_BYTES_MAX {
        return Err(Error::usage(format!("{} bytes cannot be split {k} of {n}", secret.len())));
    }
    if k == 1 {
        // A polynomial of degree 0: every share is the secret. vsss refuses it; a lone steward needs it.
        let numbers = (1..=255u8).take(n);
        return Ok(numbers.map(|i| Share(Zeroizing::new([&[i], secret].concat()))).collect());
    }
    let shares = Gf256::split_bytes(k, n, secret, rand::rng())
        .map_err(|e| Error::bug(format!("a key cannot be split {k} of {n}: {e:?}")))?;
    Ok(shares.into_iter().map(|bytes| Share(Zeroizing::new(bytes))).collect())
}

/// Puts shares together. The result is the secret only if there are enough and none was altered, which nobody
/// can see from the shares alone: use [`recover`] where the key's hash is known.
pub fn combine(shares: &[Share]) -> Result<Zeroizing<Vec<u8>>> {
    if let [lone] = shares {
        return Ok(Zeroizing::new(lone.0[1..].to_vec()));
    }
    let bytes: Zeroizing<Vec<Vec<u8>>> = Zeroizing::new(shares.iter().map(|s| s.0.to_vec()).collect());
    let secret =
        Gf256::combine_bytes(&*bytes).map_err(|e| Error::key(format!("the shares do not belong together: {e:?}")))?;
    Ok(Zeroizing::new(secret))
}

/// A secret that matches its hash, and who handed in a share that does not belong to it.
pub struct Recovered {
    pub secret: Zeroizing<Vec<u8>>,
    /// Numbers of the shares that were altered.
    pub bad: Vec<u8>,
}

/// At most this many combinations are tried: 2 of 3 needs 3, 8 of 16 needs 12,870.
const TRIES_MAX: usize = 20_000;

/// Finds `k` of `shares` that give the secret with this [`key_hash`], and names the altered ones.
/// `Key` if no k of them do: fewer than k are good.
pub fn recover(shares: &[Share], k: usize, hash: B256) -> Result<Recovered> {
    if k == 0 || shares.len() < k {
        return Err(Error::key(format!("{} shares of the key are here; {k} are needed", shares.len())));
    }
    let mut picked: Vec<usize> = (0..k).collect();
    for _ in 0..TRIES_MAX {
        let some: Vec<Share> = picked.iter().map(|i| shares[*i].clone()).collect();
        if let Some(secret) = combine(&some).ok().filter(|secret| key_hash(secret) == hash) {
            return Ok(Recovered { bad: altered(shares, &some, &secret), secret });
        }
        if !next_combination(&mut picked, shares.len()) {
            let count = shares.len();
            return Err(Error::key(format!("no {k} of the {count} shares give the key: some were altered")));
        }
    }
    Err(Error::key(format!("{TRIES_MAX} combinations of {} shares do not give the key", shares.len())))
}

/// A share is good if it gives the same secret in place of one of `good`.
fn altered(shares: &[Share], good: &[Share], secret: &[u8]) -> Vec<u8> {
    let is_bad = |share: &&Share| {
        if good.contains(share) {
            return false;
        }
        let mut swapped = good.to_vec();
        swapped[0] = (*share).clone();
        combine(&swapped).map_or(true, |other| other[..] != *secret)
    };
    shares.iter().filter(is_bad).map(Share::number).collect()
}

/// Moves to the next k of `0..n` in lexical order; false after the last.
fn next_combination(picked: &mut [usize], n: usize) -> bool {
    let k = picked.len();
    for i in (0..k).rev() {
        if picked[i] < n - k + i {
            picked[i] += 1;
            for j in i + 1..k {
                picked[j] = picked[j - 1] + 1;
            }
            return true;
        }
    }
    false
}
