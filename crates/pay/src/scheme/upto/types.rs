use crate::Usdc;
use crate::scheme::exact::Hash;
use crate::scheme::permit2::{self, Permit, Permit2612};
use alloy::primitives::{Address, B256, U256, address, keccak256};
use alloy::sol_types::SolValue;
use borsh::{BorshDeserialize, BorshSerialize};

/// Settles `exact` payments made by Permit2; at the same address on every chain.
pub const EXACT_PROXY: Address = address!("402085c248EeA27D92E8b30b2C58ed07f9E20001");
/// Settles `upto` payments; at the same address on every chain.
pub const UPTO_PROXY: Address = address!("4020A4f3b7b90ccA423B9fabCc0CE57C6C240002");

/// Which contract takes the payment, and with it what its witness says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum Proxy {
    /// Anyone may settle, the whole amount.
    Exact,
    /// Only this facilitator may settle, any amount up to the permitted one.
    Upto { facilitator: [u8; 20] },
}

impl Proxy {
    pub fn address(&self) -> Address {
        match self {
            Self::Exact => EXACT_PROXY,
            Self::Upto { .. } => UPTO_PROXY,
        }
    }
}

/// A Permit2 payment whose terms, times and signature were checked. Balance, allowance and whether its nonce is used,
/// only the chain knows. Part of journal records, hence plain arrays.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Permit2Payment {
    pub proxy: Proxy,
    pub payer: [u8; 20],
    pub token: [u8; 20],
    pub pay_to: [u8; 20],
    /// Permitted: the price (`exact`) or the ceiling (`upto`).
    pub amount: Usdc,
    /// 256 bits, big-endian.
    pub nonce: Hash,
    /// Chain seconds, both inclusive.
    pub valid_after: u64,
    pub deadline: u64,
    /// Of a key: r, s, v with low s and v 27 or 28. Of a contract: as it came ([`crate::scheme::signature`]).
    pub signature: Vec<u8>,
    /// The payer's key made the signature. If not, only its simulated settlement tells whether it holds.
    pub is_signed_by_key: bool,
    /// Lets Permit2 spend, where the payer never allowed it.
    pub permit: Option<Permit2612>,
}

/// What Permit2 payments are signed in, on one chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Permit2Domain {
    pub chain_id: u64,
}

impl Permit2Domain {
    /// What the payer's key signs.
    pub fn digest(&self, payment: &Permit2Payment) -> B256 {
        let to = Address::from(payment.pay_to);
        let after = U256::from(payment.valid_after);
        let (kind, witness) = match payment.proxy {
            Proxy::Exact => {
                let kind = "Witness(address to,uint256 validAfter)";
                (kind, (keccak256(kind), to, after).abi_encode())
            }
            Proxy::Upto { facilitator } => {
                let kind = "Witness(address to,address facilitator,uint256 validAfter)";
                (kind, (keccak256(kind), to, Address::from(facilitator), after).abi_encode())
            }
        };
        let witness_type = format!("Witness witness)TokenPermissions(address token,uint256 amount){kind}");
        let permit = Permit {
            token: payment.token.into(),
            amount: payment.amount,
            spender: payment.proxy.address(),
            nonce: U256::from_be_bytes(payment.nonce),
            deadline: payment.deadline,
        };
        permit2::digest(self.chain_id, &witness_type, keccak256(witness), &permit)
    }
}
