use super::{BATCH_SETTLEMENT, COLLECTOR_3009, COLLECTOR_PERMIT2};
use crate::Usdc;
use crate::scheme::exact::{Domain, Hash};
use crate::scheme::permit2::{self, Permit2612};
use crate::scheme::signature::of_deployed;
use alloy::primitives::{Address, B256, U256, aliases::U40, keccak256};
use alloy::sol_types::{SolStruct, SolValue, eip712_domain};
use borsh::{BorshDeserialize, BorshSerialize};
use std::fmt;

/// What is signed. Field names and order are part of the type hashes.
mod signed {
    alloy::sol! {
        struct ChannelConfig {
            address payer;
            address payerAuthorizer;
            address receiver;
            address receiverAuthorizer;
            address token;
            uint40 withdrawDelay;
            bytes32 salt;
        }
        struct Voucher {
            bytes32 channelId;
            uint128 maxClaimableAmount;
        }
        struct ReceiveWithAuthorization {
            address from;
            address to;
            uint256 value;
            uint256 validAfter;
            uint256 validBefore;
            bytes32 nonce;
        }
        struct DepositWitness {
            bytes32 channelId;
        }
    }
}

/// Names a channel: the whole EIP-712 digest of its [`ChannelConfig`], so it differs by chain too.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, BorshSerialize, BorshDeserialize)]
pub struct ChannelId(pub Hash);

impl fmt::Display for ChannelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "0x{}", hex::encode(self.0))
    }
}

impl fmt::Debug for ChannelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What a channel is between. Immutable; part of journal records, hence plain arrays.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct ChannelConfig {
    /// Deposits, and gets back what is left.
    pub payer: [u8; 20],
    /// Signs vouchers; zero: the payer does.
    pub payer_authorizer: [u8; 20],
    /// Is paid: the treasury.
    pub receiver: [u8; 20],
    /// May claim and refund beside the receiver: the treasury too.
    pub receiver_authorizer: [u8; 20],
    pub token: [u8; 20],
    /// How long a payer that leaves without us has to wait, in seconds: our time to claim.
    pub withdraw_delay_secs: u64,
    pub salt: Hash,
}

impl ChannelConfig {
    /// Whose key signs vouchers.
    pub fn voucher_signer(&self) -> [u8; 20] {
        if self.payer_authorizer == [0; 20] { self.payer } else { self.payer_authorizer }
    }

    fn signed(&self) -> signed::ChannelConfig {
        signed::ChannelConfig {
            payer: self.payer.into(),
            payerAuthorizer: self.payer_authorizer.into(),
            receiver: self.receiver.into(),
            receiverAuthorizer: self.receiver_authorizer.into(),
            token: self.token.into(),
            // At most 30 days by `verify`; a larger one wraps and names another channel, which then does not fit.
            withdrawDelay: U40::wrapping_from(self.withdraw_delay_secs),
            salt: self.salt.into(),
        }
    }
}

/// The newest voucher of a channel, kept to be claimed.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct HeldVoucher {
    /// All that may ever be claimed on the channel, micro-USDC.
    pub max: Usdc,
    /// r, s, v with low s and v 27 or 28.
    pub signature: [u8; 65],
}

/// What the contract says about a channel.
#[derive(Debug, Default, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct ChannelState {
    /// All deposits less all that went back; what was claimed is still in it.
    pub balance: Usdc,
    pub claimed: Usdc,
    /// The payer is leaving.
    pub withdrawal: Option<Withdrawal>,
    pub refund_nonce: u64,
    /// Block that it was read at; older news than known is passed over.
    pub block: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Withdrawal {
    pub amount: Usdc,
    /// Chain seconds; it can be taken `withdraw_delay_secs` later.
    pub since: u64,
}

/// One row of a claim.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct ClaimRow {
    pub channel: ChannelId,
    pub config: ChannelConfig,
    pub voucher: HeldVoucher,
    /// Charged on the channel in all, never above `voucher.max`.
    pub total: Usdc,
}

/// Money that a payer lets somebody put into a channel.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Deposit {
    pub amount: Usdc,
    pub method: DepositMethod,
    /// The payer's own key signed this. Otherwise only the chain can tell (a contract's signature).
    pub is_signed_by_key: bool,
}

/// How the collector gets the tokens.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum DepositMethod {
    Eip3009 { valid_after: u64, valid_before: u64, salt: Hash, signature: Vec<u8> },
    Permit2 { nonce: Hash, deadline: u64, signature: Vec<u8>, permit: Option<Permit2612> },
}

impl Deposit {
    pub fn collector(&self) -> Address {
        match self.method {
            DepositMethod::Eip3009 { .. } => COLLECTOR_3009,
            DepositMethod::Permit2 { .. } => COLLECTOR_PERMIT2,
        }
    }

    /// What makes a deposit unique on chain: the EIP-3009 nonce, or the Permit2 nonce.
    pub fn key(&self, channel: &ChannelId) -> Hash {
        match &self.method {
            DepositMethod::Eip3009 { salt, .. } => deposit_nonce(channel, salt).0,
            DepositMethod::Permit2 { nonce, .. } => *nonce,
        }
    }

    /// When it can no longer be executed, in chain seconds.
    pub fn valid_before(&self) -> u64 {
        match self.method {
            DepositMethod::Eip3009 { valid_before, .. } => valid_before,
            DepositMethod::Permit2 { deadline, .. } => deadline,
        }
    }

    /// As it came.
    pub fn signature(&self) -> &[u8] {
        match &self.method {
            DepositMethod::Eip3009 { signature, .. } | DepositMethod::Permit2 { signature, .. } => signature,
        }
    }

    /// The collector's argument. A payer that does not exist yet is made before ([`signature::first`]).
    ///
    /// [`signature::first`]: crate::scheme::signature::first
    pub fn collector_data(&self) -> Vec<u8> {
        match &self.method {
            DepositMethod::Eip3009 { valid_after, valid_before, salt, signature } => {
                let salt = U256::from_be_bytes(*salt);
                let signature = of_deployed(signature);
                (U256::from(*valid_after), U256::from(*valid_before), salt, signature).abi_encode_params()
            }
            DepositMethod::Permit2 { nonce, deadline, signature, permit } => {
                let permit = permit.as_ref().map(permit_data).unwrap_or_default();
                let signature = of_deployed(signature);
                let permit = alloy::primitives::Bytes::from(permit);
                (U256::from_be_bytes(*nonce), U256::from(*deadline), signature, permit).abi_encode_params()
            }
        }
    }
}

fn permit_data(permit: &Permit2612) -> Vec<u8> {
    let (amount, deadline) = (U256::from(permit.amount.micro()), U256::from(permit.deadline));
    (amount, deadline, U256::from(permit.v()), permit.r(), permit.s()).abi_encode_params()
}

/// Nonce of the `ReceiveWithAuthorization` that a deposit is made of: binds it to one channel.
pub(super) fn deposit_nonce(channel: &ChannelId, salt: &Hash) -> B256 {
    keccak256((B256::from(channel.0), U256::from_be_bytes(*salt)).abi_encode())
}

/// EIP-712 domain of the channel contract on one chain, its separator computed once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChannelDomain {
    chain_id: u64,
    separator: B256,
    /// Type hash of a voucher: hashing a voucher is then 96 bytes.
    voucher: B256,
}

impl ChannelDomain {
    pub fn new(chain_id: u64) -> Self {
        let domain = eip712_domain! {
            name: "x402 Batch Settlement",
            version: "1",
            chain_id: chain_id,
            verifying_contract: BATCH_SETTLEMENT,
        };
        let voucher = signed::Voucher { channelId: B256::ZERO, maxClaimableAmount: 0 }.eip712_type_hash();
        Self { chain_id, separator: domain.separator(), voucher }
    }

    pub fn chain_id(&self) -> u64 {
        self.chain_id
    }

    pub fn channel_id(&self, config: &ChannelConfig) -> ChannelId {
        ChannelId(self.digest(config.signed().eip712_hash_struct()).0)
    }

    /// What a voucher's signer signs.
    pub fn voucher_digest(&self, channel: &ChannelId, max: Usdc) -> B256 {
        let mut fields = [0; 96];
        fields[..32].copy_from_slice(self.voucher.as_slice());
        fields[32..64].copy_from_slice(&channel.0);
        fields[80..].copy_from_slice(&max.micro().to_be_bytes());
        self.digest(keccak256(fields))
    }

    /// What a payer signs, in the token's domain, to deposit by EIP-3009.
    pub fn deposit_digest(
        &self,
        token: &Domain,
        channel: &ChannelId,
        payer: [u8; 20],
        amount: Usdc,
        (valid_after, valid_before): (u64, u64),
        salt: &Hash,
    ) -> B256 {
        let message = signed::ReceiveWithAuthorization {
            from: payer.into(),
            to: COLLECTOR_3009,
            value: U256::from(amount.micro()),
            validAfter: U256::from(valid_after),
            validBefore: U256::from(valid_before),
            nonce: deposit_nonce(channel, salt),
        };
        token.digest_of(message.eip712_hash_struct())
    }

    /// What a payer signs, in Permit2's domain, to deposit by Permit2.
    pub fn permit2_deposit_digest(
        &self,
        channel: &ChannelId,
        token: [u8; 20],
        amount: Usdc,
        nonce: &Hash,
        deadline: u64,
    ) -> B256 {
        let witness = signed::DepositWitness { channelId: channel.0.into() };
        permit2::digest(
            self.chain_id,
            "DepositWitness witness)DepositWitness(bytes32 channelId)TokenPermissions(address token,uint256 amount)",
            witness.eip712_hash_struct(),
            &permit2::Permit {
                token: token.into(),
                amount,
                spender: COLLECTOR_PERMIT2,
                nonce: U256::from_be_bytes(*nonce),
                deadline,
            },
        )
    }

    fn digest(&self, hash_struct: B256) -> B256 {
        let mut preimage = [0; 66];
        preimage[..2].copy_from_slice(&[0x19, 0x01]);
        preimage[2..34].copy_from_slice(self.separator.as_slice());
        preimage[34..].copy_from_slice(hash_struct.as_slice());
        keccak256(preimage)
    }
}
