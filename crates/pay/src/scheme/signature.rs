//! Signatures that are no key's: a contract's (ERC-1271), and those of a contract that does not exist yet (ERC-6492).
//!
//! Nothing here says that such a signature holds. A contract says so itself, in the block where it is asked, and may
//! say something else in the next one: only the settlement, simulated, tells now; only the settlement, mined, tells for
//! good. Whoever serves such a payer settles before the first byte.

use crate::{Reason, Refusal};
use alloy::primitives::{Address, B256, Bytes, b256};
use alloy::sol_types::SolValue;

/// Longest signature that is carried to the chain, in bytes. A passkey's is about 600, a Safe's 65 an owner; an
/// ERC-6492 one holds a factory call beside.
pub const SIGNATURE_BYTES_MAX: usize = 4_096;
/// The last 32 bytes of every ERC-6492 signature.
const MAGIC: B256 = b256!("6492649264926492649264926492649264926492649264926492649264926492");

/// An ERC-6492 signature, taken apart: the call that makes the payer's contract, and what that contract will accept.
///
/// The call is the payer's choice, to any contract, with any data: it is sent by a key that owns nothing and only to
/// factories that somebody trusts, never by an operator's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counterfactual {
    pub factory: Address,
    pub calldata: Bytes,
    /// For the contract, once it is there.
    pub inner: Bytes,
}

impl Counterfactual {
    /// Reads a signature that ends with ERC-6492's mark. `None`: it is an ordinary one, or what stands before the mark
    /// does not parse, which no token takes either.
    pub fn read(signature: &[u8]) -> Option<Self> {
        let body = signature.strip_suffix(MAGIC.as_slice())?;
        let (factory, calldata, inner) = <(Address, Bytes, Bytes)>::abi_decode_params(body).ok()?;
        Some(Self { factory, calldata, inner })
    }

    /// The signature it was read from, for buyers and tests.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = (self.factory, self.calldata.clone(), self.inner.clone()).abi_encode_params();
        bytes.extend_from_slice(MAGIC.as_slice());
        bytes
    }
}

/// What a contract that exists is asked to accept: the signature itself, or what ERC-6492 wrapped around it.
pub fn of_deployed(signature: &[u8]) -> Bytes {
    Counterfactual::read(signature).map_or_else(|| Bytes::copy_from_slice(signature), |found| found.inner)
}

/// What has to run before a settlement whose signature no key made: nothing where the payer's contract exists, else the
/// call that makes it.
///
/// # Errors
/// Why it is not even simulated.
pub fn first(signature: &[u8], payer_exists: bool, factories: &[Address]) -> Result<Option<Counterfactual>, NotTaken> {
    match Counterfactual::read(signature) {
        _ if payer_exists => Ok(None),
        None => Err(NotTaken::NoContract),
        Some(made) if factories.contains(&made.factory) => Ok(Some(made)),
        Some(made) => Err(NotTaken::Factory(made.factory)),
    }
}

/// Why a contract's signature is not looked at. Each scheme has its own name for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotTaken {
    /// There is no contract at the payer's address: the signature is simply wrong.
    NoContract,
    /// The call to make it would go to this factory, which is not on the list.
    Factory(Address),
}

impl NotTaken {
    /// `wrong` and `factory` are the scheme's names for the two.
    pub fn refusal(self, wrong: Reason, factory: Reason) -> Refusal {
        match self {
            Self::NoContract => {
                Refusal::new(wrong, "the signature is not the payer's key's, and there is no contract at its address")
            }
            Self::Factory(address) => Refusal::new(
                factory,
                format!(
                    "the payer does not exist yet, and {address}, which would make it, is not a factory trusted here"
                ),
            ),
        }
    }
}

/// Strict hexadecimal with 0x, at most [`SIGNATURE_BYTES_MAX`]. `None`: refuse it by the scheme's own name.
pub(crate) fn parse(text: &str) -> Option<Vec<u8>> {
    let digits = text.strip_prefix("0x").filter(|digits| !digits.is_empty() && digits.len() <= 2 * SIGNATURE_BYTES_MAX);
    hex::decode(digits?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counterfactual_signature_is_known_by_its_end() {
        let made = Counterfactual {
            factory: Address::repeat_byte(0xfa),
            calldata: Bytes::from_static(&[1, 2, 3]),
            inner: Bytes::from_static(&[9; 66]),
        };
        let bytes = made.to_bytes();
        assert_eq!(Counterfactual::read(&bytes).as_ref(), Some(&made));
        assert_eq!(of_deployed(&bytes), made.inner);
        assert_eq!(Counterfactual::read(&made.inner), None);
        assert_eq!(of_deployed(&made.inner), made.inner);
        // The mark behind something else.
        assert_eq!(Counterfactual::read(&bytes[64..]), None);
        assert_eq!(Counterfactual::read(MAGIC.as_slice()), None);
    }

    #[test]
    fn a_factory_is_called_only_for_a_payer_that_is_not_there_and_only_if_it_is_on_the_list() {
        let factory = Address::repeat_byte(0xfa);
        let made = Counterfactual { factory, calldata: Bytes::from_static(&[1]), inner: Bytes::from_static(&[9; 66]) };
        let signature = made.to_bytes();
        assert_eq!(first(&signature, true, &[factory]), Ok(None));
        assert_eq!(first(&signature, false, &[factory]), Ok(Some(made)));
        assert_eq!(first(&signature, false, &[]), Err(NotTaken::Factory(factory)));
        assert_eq!(first(&[9; 66], true, &[]), Ok(None));
        assert_eq!(first(&[9; 66], false, &[factory]), Err(NotTaken::NoContract));
    }

    #[test]
    fn hexadecimal_is_strict_and_bounded() {
        assert_eq!(parse("0x0102"), Some(vec![1, 2]));
        let long = format!("0x{}", "00".repeat(SIGNATURE_BYTES_MAX + 1));
        for wrong in ["", "0x", "0x1", "0102", "0x01 ", "0xg1", &long] {
            assert_eq!(parse(wrong), None, "{:.10}", wrong);
        }
    }
}
