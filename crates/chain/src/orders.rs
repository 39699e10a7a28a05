//! What stewards sign: EIP-712 `Order` (pause, resume, stop, evict, rescue, …) and `Ack` of a checkpoint, in the
//! treasury's domain; and the `Act` of a standby's node. Signatures are collected off line and put in the order that the contract wants.

use alloy::{
    dyn_abi::Eip712Domain,
    primitives::{Address, B256, Bytes, Signature, U256},
    signers::{SignerSync, local::PrivateKeySigner},
    sol_types::{SolStruct, eip712_domain},
};
use std::collections::BTreeMap;

use crate::{bindings::Approval, error::Error};

alloy::sol! {
    /// A quorum's order. `nonce` is the treasury's `orderNonce`; past `deadline` (chain seconds) it is void.
    #[derive(Debug, PartialEq, Eq)]
    struct Order {
        string action;
        uint256 argument;
        uint256 nonce;
        uint64 deadline;
    }

    /// A steward's word that it fetched the checkpoint object and checked its own share.
    #[derive(Debug, PartialEq, Eq)]
    struct Ack {
        uint64 epoch;
        uint64 seq;
        bytes32 digest;
        bytes32 prev;
    }

    /// The standby's node key asks whoever relays it to "challenge" or "takeover" in its name. `lease` is the standby,
    /// `nonce` the treasury's `lastChallengeAt`.
    #[derive(Debug, PartialEq, Eq)]
    struct Act {
        string action;
        uint256 lease;
        uint64 epoch;
        uint64 nonce;
        uint64 deadline;
    }

    /// What a steward daemon tells its peers about an agent. No contract knows the type. `at`: chain seconds.
    #[derive(Debug, PartialEq, Eq)]
    struct Alarm {
        string alarm;
        uint64 at;
    }
}

/// Every action of an [`Order`], by the treasury's names of the entries.
pub const ORDERS: [&str; 13] = [
    "pause",
    "resume",
    "stop",
    "evict",
    "rescue",
    "clearBar",
    "revokeCode",
    "openRefunds",
    "tighten",
    "loosen",
    "setCode",
    "setStewards",
    "extendMandate",
];

/// The EIP-712 domain of one treasury: `{"Vivarium Treasury", "1", chainId, treasury}`.
pub fn domain(chain_id: u64, treasury: Address) -> Eip712Domain {
    eip712_domain! {
        name: "Vivarium Treasury",
        version: "1",
        chain_id: chain_id,
        verifying_contract: treasury,
    }
}

/// The digest that is signed for `message` ([`Order`], [`Ack`]) in a treasury's domain.
pub fn digest<M: SolStruct>(message: &M, domain: &Eip712Domain) -> B256 {
    message.eip712_signing_hash(domain)
}

/// Signs an [`Order`] or [`Ack`]: 65 bytes r, s, v with a low s.
///
/// # Errors
/// `Usage` when the key cannot sign (it is a plain key in memory, so this does not happen in practice).
pub fn sign<M: SolStruct>(message: &M, domain: &Eip712Domain, key: &PrivateKeySigner) -> Result<Bytes, Error> {
    let signature = key
        .sign_hash_sync(&digest(message, domain))
        .map_err(|e| Error::usage(format!("{} cannot sign", key.address())).with_source(e))?;
    Ok(signature.as_bytes().into())
}

/// Who signed. Refuses what the contract refuses: not 65 bytes, a high s, no such point.
///
/// # Errors
/// `Usage` with the reason.
pub fn recover<M: SolStruct>(message: &M, domain: &Eip712Domain, signature: &[u8]) -> Result<Address, Error> {
    recover_digest(digest(message, domain), signature)
}

/// The same for a digest made elsewhere.
///
/// # Errors
/// As [`recover`].
pub fn recover_digest(digest: B256, signature: &[u8]) -> Result<Address, Error> {
    if signature.len() != 65 {
        return Err(Error::usage(format!("a signature has 65 bytes, this one {}", signature.len())));
    }
    let parsed = Signature::try_from(signature).map_err(|e| Error::usage("no signature").with_source(e))?;
    alloy::consensus::crypto::secp256k1::recover_signer(&parsed, digest)
        .map_err(|e| Error::usage("the signature is of nobody (malformed, or its s is high)").with_source(e))
}

/// Sorts signatures over one message by their signers, ascending, one each, and checks that at least `threshold`
/// of `stewards` are among them. Strangers' and broken signatures are left out, since whoever passes them on may
/// have added them; exactly `threshold` are returned, because each one more costs gas.
///
/// # Errors
/// `Usage`, naming how many of how many were found.
pub fn collect<M: SolStruct>(
    message: &M,
    domain: &Eip712Domain,
    signatures: &[Bytes],
    stewards: &[Address],
    threshold: usize,
) -> Result<Vec<Bytes>, Error> {
    let digest = digest(message, domain);
    let mut by_signer = BTreeMap::new();
    for signature in signatures {
        if let Ok(signer) = recover_digest(digest, signature)
            && stewards.contains(&signer)
        {
            by_signer.insert(signer, signature.clone());
        }
    }
    if by_signer.len() < threshold {
        let found = by_signer.len();
        return Err(Error::usage(format!("{found} valid signatures of stewards, {threshold} needed")));
    }
    Ok(by_signer.into_values().take(threshold).collect())
}

/// [`collect`] for an order, as the contract's entries take it.
///
/// # Errors
/// As [`collect`].
pub fn approval(
    order: &Order,
    domain: &Eip712Domain,
    signatures: &[Bytes],
    stewards: &[Address],
    threshold: usize,
) -> Result<Approval, Error> {
    let signatures = collect(order, domain, signatures, stewards, threshold)?;
    Ok(Approval { deadline: order.deadline, signatures })
}

/// What a quorum signs to rescue onto `offer`: the whole bargain, `offer | term << 64 | prepay << 96`.
pub fn rescue_argument(offer: u64, term: u32, prepay: u128) -> U256 {
    U256::from(offer) | U256::from(term) << 64 | U256::from(prepay) << 96
}

impl Order {
    /// An order with the treasury's words for it: `action` is the entry's name, `argument` its lease, offer, time,
    /// or 0.
    pub fn new(action: &str, argument: U256, nonce: U256, deadline: u64) -> Self {
        Self { action: action.to_owned(), argument, nonce, deadline }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloy::primitives::keccak256;

    fn keys() -> Vec<PrivateKeySigner> {
        (1..=3u8).map(|n| PrivateKeySigner::from_bytes(&B256::repeat_byte(n)).expect("in range")).collect()
    }

    fn order() -> (Order, Eip712Domain) {
        (Order::new("pause", U256::ZERO, U256::from(7), 1_000), domain(31337, Address::repeat_byte(0xaa)))
    }

    #[test]
    fn the_type_strings_are_the_contracts() {
        let order = "Order(string action,uint256 argument,uint256 nonce,uint64 deadline)";
        let ack = "Ack(uint64 epoch,uint64 seq,bytes32 digest,bytes32 prev)";
        let act = "Act(string action,uint256 lease,uint64 epoch,uint64 nonce,uint64 deadline)";
        assert_eq!((Order::eip712_encode_type().as_ref(), Ack::eip712_encode_type().as_ref()), (order, ack));
        assert_eq!(Act::eip712_encode_type(), act);
        assert_eq!(self::order().0.eip712_type_hash(), keccak256(order));
    }

    #[test]
    fn signatures_come_out_ascending_and_strangers_are_left_out() {
        let (order, domain) = order();
        let keys = keys();
        let mut signatures: Vec<Bytes> = keys.iter().map(|k| sign(&order, &domain, k).expect("signs")).collect();
        signatures.push(signatures[0].clone());
        signatures.push(Bytes::from_static(b"rubbish"));
        let stewards = [keys[0].address(), keys[1].address()];
        let approval = approval(&order, &domain, &signatures, &stewards, 2).expect("two of two");
        let signers: Vec<Address> =
            approval.signatures.iter().map(|s| recover(&order, &domain, s).expect("valid")).collect();
        let mut expected = stewards.to_vec();
        expected.sort();
        assert_eq!(signers, expected);
    }

    #[test]
    fn a_rescue_binds_offer_term_and_prepayment() {
        let argument = rescue_argument(7, 600, 100_000);
        assert_eq!(format!("{argument:#x}"), "0x186a0000002580000000000000007");
        for other in [rescue_argument(8, 600, 100_000), rescue_argument(7, 601, 100_000), rescue_argument(7, 600, 1)] {
            assert_ne!(argument, other);
        }
    }

    #[test]
    fn one_signature_twice_is_not_a_quorum() {
        let (order, domain) = order();
        let keys = keys();
        let one = sign(&order, &domain, &keys[0]).expect("signs");
        let stewards: Vec<Address> = keys.iter().map(PrivateKeySigner::address).collect();
        let refused = collect(&order, &domain, &[one.clone(), one], &stewards, 2).expect_err("one signer");
        assert_eq!(refused.to_string(), "1 valid signatures of stewards, 2 needed");
    }

    #[test]
    fn another_domain_or_a_high_s_recovers_nobody_we_know() {
        let (order, domain) = order();
        let key = &keys()[0];
        let signature = sign(&order, &domain, key).expect("signs");
        let elsewhere = self::domain(1, Address::repeat_byte(0xaa));
        assert_ne!(recover(&order, &elsewhere, &signature).ok(), Some(key.address()));

        let parsed = Signature::try_from(&signature[..]).expect("65 bytes");
        let n = U256::from_be_bytes(alloy::hex!("fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141"));
        let high = Signature::new(parsed.r(), n - parsed.s(), !parsed.v());
        assert!(recover(&order, &domain, &high.as_bytes()).is_err());
    }
}
