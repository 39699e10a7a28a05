//! Paying by Permit2: `upto`, and `exact` and deposits into channels for tokens without EIP-3009.
//!
//! Permit2 spends only what its owner has let it: by a transaction once, or by an EIP-2612 permission that is signed
//! along with a payment, where token and seller take one. How that stands the chain says, before anything is signed.

use super::{Buyer, Error, Kind, Schemes};
use crate::Usdc;
use crate::scheme::channel::client::deposits_by_permit2;
use crate::scheme::exact::{Domain, EXACT};
use crate::scheme::permit2::PERMIT2;
use crate::scheme::upto::{UPTO, client};
use crate::wire::{PaymentPayload, PaymentRequired, PaymentRequirements};
use alloy::primitives::{Address, Bytes, U256};
use alloy::signers::SignerSync;
use alloy::sol_types::{SolCall, SolStruct};
use serde_json::{Value, json};

/// x402's name for an EIP-2612 permission that comes along with a payment.
const SPONSORING: &str = "eip2612GasSponsoring";

alloy::sol! {
    /// EIP-2612. Field names and order are part of the type hash.
    struct Permit {
        address owner;
        address spender;
        uint256 value;
        uint256 nonce;
        uint256 deadline;
    }
    function allowance(address owner, address spender) external view returns (uint256 amount);
    function nonces(address owner) external view returns (uint256 nonce);
}

/// What Permit2 may take of the payer, as the chain had it a moment ago.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Means {
    allowance: U256,
    /// Of the next EIP-2612 permission; `None`: token or seller takes none.
    permit_nonce: Option<U256>,
}

impl Means {
    pub fn is_allowed(&self, amount: Usdc) -> bool {
        self.allowance >= U256::from(amount.micro())
    }

    /// Whether a payment or deposit of so much can be settled.
    pub fn reach(&self, amount: Usdc) -> bool {
        self.is_allowed(amount) || self.permit_nonce.is_some()
    }
}

/// Whether this offer is paid by Permit2, by a transaction of its own.
pub(super) fn is_by_permit2(offer: &PaymentRequirements) -> bool {
    match offer.scheme() {
        UPTO => true,
        EXACT => offer.extra_text("assetTransferMethod") == Some("permit2"),
        _ => false,
    }
}

/// What is paid by Permit2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ByPermit2 {
    Nothing,
    /// `exact`, and deposits into channels.
    Exact,
    /// `upto`, too.
    All,
}

impl Buyer {
    /// Pays by `upto`, and by `exact` through Permit2, too: what costs the least of what is offered and of what the
    /// payer's allowance to Permit2 reaches (or a permission signed along with it, where seller and token take one).
    /// Deposits into channels go through it where the offer wants them so. Needs [`with_chain`](Self::with_chain). The
    /// limits hold as for `exact`; of `upto` its ceiling counts as signed until the chain tells what it took
    /// ([`look_at_charges`](Self::look_at_charges)).
    pub fn with_permit2(mut self) -> Self {
        self.permit2 = ByPermit2::All;
        self
    }

    /// [`with_permit2`](Self::with_permit2) without `upto`: for tokens without EIP-3009, where a price is to be known before.
    pub fn with_exact_by_permit2(mut self) -> Self {
        self.permit2 = ByPermit2::Exact;
        self
    }

    /// What the chain says of the payer and Permit2. `None`: nothing here is paid by it, or the chain does not answer.
    pub(super) async fn look_at_permit2(&self, offer: &PaymentRequired) -> Option<Means> {
        let uses = |offer: &PaymentRequirements| match (&self.schemes, self.purse) {
            (_, Some(_)) => false,
            (Schemes::Channel(_), None) => deposits_by_permit2(offer),
            (Schemes::ChannelElseExact(_), None) => deposits_by_permit2(offer) || is_by_permit2(offer),
            (Schemes::Exact | Schemes::Upto, None) => is_by_permit2(offer),
        };
        let is_wanted = self.permit2 != ByPermit2::Nothing && offer.accepts.iter().any(uses);
        let chain = self.chain.as_deref().filter(|_| is_wanted)?;
        let owner = self.address();
        let allowance = self.ask_token(chain, allowanceCall { owner, spender: PERMIT2 }.abi_encode()).await?;
        let allowance = allowanceCall::abi_decode_returns(&allowance).ok()?;
        let takes_permits = offer.extensions.as_ref().is_some_and(|extensions| extensions.get(SPONSORING).is_some());
        let mut permit_nonce = None;
        if takes_permits && let Some(nonce) = self.ask_token(chain, noncesCall { owner }.abi_encode()).await {
            permit_nonce = noncesCall::abi_decode_returns(&nonce).ok();
        }
        Some(Means { allowance, permit_nonce })
    }

    /// `None`: the chain does not answer, or the token has no such function.
    async fn ask_token(&self, chain: &str, data: Vec<u8>) -> Option<Bytes> {
        let call = json!([{ "to": self.policy.asset, "data": Bytes::from(data) }, "latest"]);
        let answers = self.rpc(chain, &[("eth_call", call)]).await?;
        answers[0].as_str()?.parse().ok()
    }

    /// Signs a payment by Permit2, with a permission beside it where the allowance does not reach. The offer's extensions
    /// are in it.
    pub(super) fn sign_by_permit2(
        &self,
        asked: &PaymentRequired,
        offer: &PaymentRequirements,
        means: Means,
        now: u64,
        url: &str,
    ) -> Result<PaymentPayload, Error> {
        let payment = client::sign(&self.signer, offer, now, rand::random());
        let mut payment = payment.map_err(|refusal| Error::new(Kind::WrongSeller, url, refusal))?;
        payment.extensions.clone_from(&asked.extensions);
        self.allow_permit2(&mut payment, (offer, offer.amount()), means, now, url)?;
        Ok(payment)
    }

    /// Puts a permission for `amount` beside a payment or deposit by Permit2 that has the offer's extensions, unless what
    /// is allowed reaches.
    pub(super) fn allow_permit2(
        &self,
        payment: &mut PaymentPayload,
        (offer, amount): (&PaymentRequirements, Usdc),
        means: Means,
        now: u64,
        url: &str,
    ) -> Result<(), Error> {
        if means.is_allowed(amount) {
            return Ok(());
        }
        let Some(nonce) = means.permit_nonce else {
            let message = format!("{} has let Permit2 spend less than {amount}", self.address());
            return Err(Error::new(Kind::Usage, url, message));
        };
        let wrong = |refusal| Error::new(Kind::WrongSeller, url, refusal);
        let deadline = now.saturating_add(offer.max_timeout_secs());
        let permit = Permit {
            owner: self.address(),
            spender: PERMIT2,
            value: U256::from(amount.micro()),
            nonce,
            deadline: U256::from(deadline),
        };
        let digest = Domain::of(offer).map_err(wrong)?.digest_of(permit.eip712_hash_struct());
        let signature = self
            .signer
            .sign_hash_sync(&digest)
            .map_err(|e| Error::new(Kind::Usage, url, format!("cannot sign: {e}")))?;
        let text = |address: Address| address.to_checksum(None);
        let permission = json!({
            "from": text(self.address()),
            "asset": text(offer.asset()),
            "spender": text(PERMIT2),
            "amount": amount.micro().to_string(),
            "nonce": nonce.to_string(),
            "deadline": deadline.to_string(),
            "signature": format!("0x{}", hex::encode(signature.as_bytes())),
            "version": "1",
        });
        // Beside what the seller declared there: official servers refuse a payment that does not echo it.
        let declared =
            payment.extensions.as_mut().and_then(|extensions| extensions.get_mut(SPONSORING)?.as_object_mut());
        let info = declared.and_then(|declared| declared.entry("info").or_insert_with(|| json!({})).as_object_mut());
        let (Some(info), Value::Object(permission)) = (info, permission) else {
            return Err(Error::new(Kind::BadAnswer, url, format!("its `{SPONSORING}` is no object")));
        };
        for (name, value) in permission {
            info.entry(name).or_insert(value);
        }
        Ok(())
    }
}

/// Whether a permission comes along with this payment: the token takes its payer's next one only after it.
pub(super) fn is_sponsored(payment: &PaymentPayload) -> bool {
    let info = payment.extensions.as_ref().and_then(|extensions| extensions.get(SPONSORING)?.get("info"));
    info.is_some_and(|info| info.get("signature").is_some())
}
