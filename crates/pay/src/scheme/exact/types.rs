use crate::wire::PaymentRequirements;
use crate::{Reason, Refusal, Usdc, wire};
use alloy::primitives::{Address, B256, U256, keccak256};
use alloy::sol_types::{SolStruct, eip712_domain};
use borsh::{BorshDeserialize, BorshSerialize};

alloy::sol! {
    /// EIP-3009. Field names and order are part of the type hash.
    #[derive(Debug, PartialEq, Eq)]
    struct TransferWithAuthorization {
        address from;
        address to;
        uint256 value;
        uint256 validAfter;
        uint256 validBefore;
        bytes32 nonce;
    }
}

/// A sha2-256 or keccak-256 digest, or an EIP-3009 nonce.
pub type Hash = [u8; 32];

/// The settlement of one authorisation: an intent for whoever holds the relay key, and a field of the journal's
/// reservation record, hence plain arrays.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct SettleExact {
    pub payer: [u8; 20],
    pub value: Usdc,
    /// Chain seconds; the token takes the authorisation strictly between the two.
    pub valid_after: u64,
    pub valid_before: u64,
    pub nonce: Hash,
    /// Of a key: r, s, v with low s and v 27 or 28. Of a contract: as it came ([`crate::scheme::signature`]).
    pub signature: Vec<u8>,
    /// The payer's own key signed this. Otherwise only the chain can tell.
    pub is_signed_by_key: bool,
}

/// An authorisation whose terms and times were checked, and whose signature its payer's key made, unless it comes as
/// an [`crate::seller::offers::Unproven`]. Whether the payer has the money, only the chain knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    pub payer: Address,
    pub nonce: B256,
    pub value: Usdc,
    pub valid_after: u64,
    pub valid_before: u64,
    pub signature: Vec<u8>,
    pub is_signed_by_key: bool,
}

impl Verified {
    pub fn settlement(&self) -> SettleExact {
        SettleExact {
            payer: self.payer.into_array(),
            value: self.value,
            valid_after: self.valid_after,
            valid_before: self.valid_before,
            nonce: self.nonce.0,
            signature: self.signature.clone(),
            is_signed_by_key: self.is_signed_by_key,
        }
    }
}

/// The token's EIP-712 domain, with its separator computed once: hashing the domain again for each payment costs as
/// much as everything else but the recovery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Domain {
    separator: B256,
}

impl Domain {
    pub fn new(name: &str, version: &str, chain_id: u64, token: Address) -> Self {
        let domain = eip712_domain! {
            name: name.to_owned(),
            version: version.to_owned(),
            chain_id: chain_id,
            verifying_contract: token,
        };
        Self { separator: domain.separator() }
    }

    /// The domain an offer names: `extra.name`, `extra.version`, chain id of the network, the asset.
    pub fn of(offer: &PaymentRequirements) -> Result<Self, Refusal> {
        let chain_id = wire::chain_id(offer.network()).ok_or_else(|| {
            Refusal::new(Reason::InvalidNetwork, format!("{:?} is not an eip155 network", offer.network()))
        })?;
        let field = |name| {
            offer.extra_text(name).ok_or_else(|| {
                let message = format!("the offer's `extra.{name}` (EIP-712 domain of the token) is missing");
                Refusal::new(Reason::InvalidPaymentRequirements, message)
            })
        };
        Ok(Self::new(field("name")?, field("version")?, chain_id, offer.asset()))
    }

    pub fn separator(&self) -> B256 {
        self.separator
    }

    /// What the payer's key signs.
    pub fn digest(&self, message: &TransferWithAuthorization) -> B256 {
        self.digest_of(message.eip712_hash_struct())
    }

    /// What is signed in this domain for any struct, by its hash.
    pub fn digest_of(&self, hash_struct: B256) -> B256 {
        let mut preimage = [0; 66];
        preimage[..2].copy_from_slice(&[0x19, 0x01]);
        preimage[2..34].copy_from_slice(self.separator.as_slice());
        preimage[34..].copy_from_slice(hash_struct.as_slice());
        keccak256(preimage)
    }
}

/// The message that `settlement` is signed over.
pub(super) fn message(
    payer: Address,
    pay_to: Address,
    value: Usdc,
    window: (u64, u64),
    nonce: B256,
) -> TransferWithAuthorization {
    TransferWithAuthorization {
        from: payer,
        to: pay_to,
        value: U256::from(value.micro()),
        validAfter: U256::from(window.0),
        validBefore: U256::from(window.1),
        nonce,
    }
}
