//! What a context holds of a prompt, as bytes: another engine of the same class goes on from it.
//!
//! Our header, llama.cpp's own bytes, and the sha2-256 of both. llama.cpp's reader is C++ and trusts what it reads, so
//! nothing reaches it that is not, to the bit, what an engine of this class once wrote. The digest finds accidents, not
//! forgers: whoever brings the bytes must know where it has them from.

use sha2::{Digest, Sha256};

const MAGIC: [u8; 8] = *b"vivkv\0\0\x01";
const DIGEST_BYTES: usize = 32;
/// Magic, class, and the number of tokens.
const HEADER_BYTES: usize = 8 + DIGEST_BYTES + 4;
const TOKEN_BYTES: usize = 4;

/// A prompt's beginning, and the context that was computed of it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) tokens: Vec<i32>,
    /// llama.cpp's own.
    pub(crate) bytes: Vec<u8>,
}

/// Which engines may go on from each other's contexts.
pub(crate) struct Class {
    /// Digest of what the engine is and of numbers that it computed at its start: weights, build, processor and threads
    /// all show in them.
    pub(crate) fingerprint: [u8; DIGEST_BYTES],
    /// Tokens have the numbers below it.
    pub(crate) n_vocab: u32,
    /// Tokens of context of a request.
    pub(crate) ctx: u32,
}

/// Bytes of a state of so many tokens and so many bytes of llama.cpp's.
pub(crate) fn length(tokens: usize, bytes: usize) -> usize {
    HEADER_BYTES + TOKEN_BYTES * tokens + bytes + DIGEST_BYTES
}

impl State {
    pub(crate) fn pack(&self, class: &Class) -> Vec<u8> {
        let mut packed = Vec::with_capacity(length(self.tokens.len(), self.bytes.len()));
        packed.extend(MAGIC);
        packed.extend(class.fingerprint);
        packed.extend(u32::try_from(self.tokens.len()).expect("a context is counted in u32").to_le_bytes());
        packed.extend(self.tokens.iter().flat_map(|token| token.to_le_bytes()));
        packed.extend(&self.bytes);
        let digest = Sha256::digest(&packed);
        packed.extend(digest);
        packed
    }

    /// Or why these bytes are refused.
    pub(crate) fn unpack(packed: &[u8], class: &Class) -> Result<State, String> {
        let refused = |why: &str| Err(format!("not taken as a saved context: {why}"));
        if packed.get(..MAGIC.len()) != Some(&MAGIC[..]) {
            return refused("it does not begin as one");
        }
        if packed.len() < HEADER_BYTES + DIGEST_BYTES {
            return refused("it is cut off");
        }
        let (body, digest) = packed.split_at(packed.len() - DIGEST_BYTES);
        if Sha256::digest(body)[..] != *digest {
            return refused("it was altered or cut off (its sha2-256 is another)");
        }
        let (header, rest) = body.split_at(HEADER_BYTES);
        let (fingerprint, count) = header[MAGIC.len()..].split_at(DIGEST_BYTES);
        if *fingerprint != class.fingerprint {
            return refused("it is of another model, engine build, processor class or number of threads");
        }
        let count = count.iter().rev().fold(0, |count, byte| count << 8 | usize::from(*byte));
        let is_short = u32::try_from(count).is_ok_and(|count| (1..=class.ctx).contains(&count));
        if !is_short || rest.len() < TOKEN_BYTES * count {
            return refused("it has no tokens, or more than this engine's context");
        }
        let (tokens, bytes) = rest.split_at(TOKEN_BYTES * count);
        let tokens: Vec<i32> =
            tokens.as_chunks().0.iter().map(|token: &[u8; TOKEN_BYTES]| i32::from_le_bytes(*token)).collect();
        if tokens.iter().any(|token| !u32::try_from(*token).is_ok_and(|token| token < class.n_vocab)) {
            return refused("it names tokens that the model does not have");
        }
        Ok(State { tokens, bytes: bytes.to_vec() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class() -> Class {
        Class { fingerprint: [7; 32], n_vocab: 100, ctx: 4 }
    }

    fn state(tokens: &[i32]) -> State {
        State { tokens: tokens.to_vec(), bytes: b"llama".to_vec() }
    }

    fn why(packed: &[u8], class: &Class) -> String {
        State::unpack(packed, class).unwrap_err().rsplit(": ").next().unwrap_or_default().to_owned()
    }

    #[test]
    fn every_byte_counts() {
        let packed = state(&[1, 99]).pack(&class());
        assert_eq!(packed.len(), length(2, 5));
        assert_eq!(State::unpack(&packed, &class()), Ok(state(&[1, 99])));
        for at in 0..packed.len() {
            let mut altered = packed.clone();
            altered[at] ^= 1;
            assert!(State::unpack(&altered, &class()).is_err(), "byte {at}");
            assert!(State::unpack(&packed[..at], &class()).is_err(), "cut at {at}");
        }
        assert!(State::unpack(&[&packed[..], &[0]].concat(), &class()).is_err(), "something behind it");
    }

    #[test]
    fn what_is_whole_and_does_not_fit_is_refused_by_name() {
        let packed = state(&[1, 2]).pack(&class());
        assert_eq!(why(b"GGUF", &class()), "it does not begin as one");
        assert_eq!(why(&MAGIC, &class()), "it is cut off");
        let other = Class { fingerprint: [8; 32], ..class() };
        assert_eq!(why(&packed, &other), "it is of another model, engine build, processor class or number of threads");
        for tokens in [&[][..], &[1, 2, 3, 4, 5]] {
            let packed = state(tokens).pack(&class());
            assert_eq!(why(&packed, &class()), "it has no tokens, or more than this engine's context");
        }
        for tokens in [[100], [-1]] {
            assert_eq!(why(&state(&tokens).pack(&class()), &class()), "it names tokens that the model does not have");
        }
    }
}
