//! The customer's side of a channel: its config, vouchers, deposits and refunds, signed.

use super::types::{ChannelConfig, ChannelDomain, ChannelId, Deposit, DepositMethod, HeldVoucher};
use super::{CHANNEL, WITHDRAW_DELAY_SECS_MIN};
use crate::scheme::exact::{Domain, Hash};
use crate::wire::{self, PaymentPayload, PaymentRequirements};
use crate::{Reason, Refusal, Usdc};
use alloy::primitives::{Address, B256, U256};
use alloy::signers::SignerSync;
use alloy::signers::local::PrivateKeySigner;
use serde_json::{Value, json};

/// Money to put in with a voucher, by EIP-3009, or by Permit2 where the offer asks for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TopUp {
    pub amount: Usdc,
    /// Chain seconds; by Permit2 inclusive.
    pub valid_before: u64,
    /// The caller's chance: 32 random bytes, never used before by this payer. Permit2's nonce, or what the
    /// authorisation's is made of.
    pub salt: Hash,
}

/// Whether this offer takes deposits by Permit2, and by nothing else.
pub fn deposits_by_permit2(offer: &PaymentRequirements) -> bool {
    offer.scheme() == CHANNEL && offer.extra_text("assetTransferMethod") == Some("permit2")
}

/// The channel that this customer has with the seller of an offer. `salt` tells several channels apart; zero is what
/// the official clients use, and what makes a lost record recoverable.
///
/// # Errors
/// The offer is of another scheme or names no receiverAuthorizer.
pub fn config(payer: Address, offer: &PaymentRequirements, salt: Hash) -> Result<ChannelConfig, Refusal> {
    if offer.scheme() != CHANNEL {
        let message = format!("scheme {:?} is no channel", offer.scheme());
        return Err(Refusal::new(Reason::InvalidScheme, message));
    }
    let authorizer = match offer.extra_text("receiverAuthorizer") {
        Some(text) => wire::address(text)?,
        None => {
            let message = "the offer's `extra.receiverAuthorizer` is missing";
            return Err(Refusal::new(Reason::InvalidPaymentRequirements, message));
        }
    };
    let delay = offer.json().get("extra").and_then(|extra| extra.get("withdrawDelay")).and_then(Value::as_u64);
    Ok(ChannelConfig {
        payer: payer.into_array(),
        payer_authorizer: payer.into_array(),
        receiver: offer.pay_to().into_array(),
        receiver_authorizer: authorizer.into_array(),
        token: offer.asset().into_array(),
        withdraw_delay_secs: delay.unwrap_or(WITHDRAW_DELAY_SECS_MIN),
        salt,
    })
}

/// A voucher for all that may ever be claimed on the channel.
pub fn sign_voucher(
    signer: &PrivateKeySigner,
    domain: &ChannelDomain,
    channel: &ChannelId,
    max: Usdc,
) -> Result<HeldVoucher, Refusal> {
    Ok(HeldVoucher { max, signature: sign(signer, domain.voucher_digest(channel, max))? })
}

/// A payment from what is in the channel; with `top_up`, from what it puts in first.
///
/// # Errors
/// The offer lacks the token's domain.
pub fn pay(
    signer: &PrivateKeySigner,
    domain: &ChannelDomain,
    config: &ChannelConfig,
    offer: &PaymentRequirements,
    max: Usdc,
    top_up: Option<&TopUp>,
) -> Result<PaymentPayload, Refusal> {
    let channel = domain.channel_id(config);
    let voucher = sign_voucher(signer, domain, &channel, max)?;
    if let Some(top_up) = top_up {
        let deposit = sign_deposit(signer, domain, (config, &channel), offer, top_up)?;
        return Ok(deposit_of(config, &channel, &deposit, &voucher, offer));
    }
    let payload = json!({
        "type": "voucher",
        "channelConfig": config_json(config),
        "voucher": voucher_json(&channel, &voucher),
    });
    Ok(PaymentPayload { payload, resource: None, accepted: offer.json().clone(), extensions: None })
}

fn sign_deposit(
    signer: &PrivateKeySigner,
    domain: &ChannelDomain,
    (config, channel): (&ChannelConfig, &ChannelId),
    offer: &PaymentRequirements,
    &TopUp { amount, valid_before, salt }: &TopUp,
) -> Result<Deposit, Refusal> {
    let method = if deposits_by_permit2(offer) {
        let digest = domain.permit2_deposit_digest(channel, config.token, amount, &salt, valid_before);
        let signature = sign(signer, digest)?.to_vec();
        DepositMethod::Permit2 { nonce: salt, deadline: valid_before, signature, permit: None }
    } else {
        let token = Domain::of(offer)?;
        let digest = domain.deposit_digest(&token, channel, config.payer, amount, (0, valid_before), &salt);
        let signature = sign(signer, digest)?.to_vec();
        DepositMethod::Eip3009 { valid_after: 0, valid_before, salt, signature }
    };
    Ok(Deposit { amount, method, is_signed_by_key: true })
}

/// A deposit that a customer signed, with the voucher that came along. A permission (EIP-2612) beside it is an
/// extension of the envelope's, not of this.
pub fn deposit_of(
    config: &ChannelConfig,
    channel: &ChannelId,
    deposit: &Deposit,
    voucher: &HeldVoucher,
    offer: &PaymentRequirements,
) -> PaymentPayload {
    let signature = hex_text(deposit.signature());
    let authorization = match &deposit.method {
        DepositMethod::Eip3009 { valid_after, valid_before, salt, .. } => json!({ "erc3009Authorization": {
            "validAfter": valid_after.to_string(),
            "validBefore": valid_before.to_string(),
            "salt": hex_text(salt),
            "signature": signature,
        } }),
        DepositMethod::Permit2 { nonce, deadline, .. } => json!({ "permit2Authorization": {
            "from": Address::from(config.payer).to_checksum(None),
            "permitted": {
                "token": Address::from(config.token).to_checksum(None),
                "amount": deposit.amount.micro().to_string(),
            },
            "spender": deposit.collector().to_checksum(None),
            "nonce": U256::from_be_bytes(*nonce).to_string(),
            "deadline": deadline.to_string(),
            "witness": { "channelId": channel.to_string() },
            "signature": signature,
        } }),
    };
    let payload = json!({
        "type": "deposit",
        "channelConfig": config_json(config),
        "voucher": voucher_json(channel, voucher),
        "deposit": { "amount": deposit.amount.micro().to_string(), "authorization": authorization },
    });
    PaymentPayload { payload, resource: None, accepted: offer.json().clone(), extensions: None }
}

/// A request to give back what is left in the channel, or `amount` of it.
pub fn refund(
    signer: &PrivateKeySigner,
    domain: &ChannelDomain,
    config: &ChannelConfig,
    offer: &PaymentRequirements,
    charged: Usdc,
    amount: Option<Usdc>,
) -> Result<PaymentPayload, Refusal> {
    let channel = domain.channel_id(config);
    let voucher = sign_voucher(signer, domain, &channel, charged)?;
    let mut payload = json!({
        "type": "refund",
        "channelConfig": config_json(config),
        "voucher": voucher_json(&channel, &voucher),
    });
    if let Some(amount) = amount {
        payload["amount"] = amount.micro().to_string().into();
    }
    Ok(PaymentPayload { payload, resource: None, accepted: offer.json().clone(), extensions: None })
}

fn sign(signer: &PrivateKeySigner, digest: B256) -> Result<[u8; 65], Refusal> {
    let signature = signer.sign_hash_sync(&digest);
    signature
        .map(|signature| signature.as_bytes())
        .map_err(|e| Refusal::new(Reason::VoucherSignature, format!("cannot sign: {e}")))
}

pub(super) fn config_json(config: &ChannelConfig) -> Value {
    let address = |bytes: [u8; 20]| Address::from(bytes).to_checksum(None);
    json!({
        "payer": address(config.payer),
        "payerAuthorizer": address(config.payer_authorizer),
        "receiver": address(config.receiver),
        "receiverAuthorizer": address(config.receiver_authorizer),
        "token": address(config.token),
        "withdrawDelay": config.withdraw_delay_secs,
        "salt": hex_text(&config.salt),
    })
}

fn voucher_json(channel: &ChannelId, voucher: &HeldVoucher) -> Value {
    json!({
        "channelId": channel.to_string(),
        "maxClaimableAmount": voucher.max.micro().to_string(),
        "signature": hex_text(&voucher.signature),
    })
}

fn hex_text(bytes: &[u8]) -> String {
    format!("0x{}", hex::encode(bytes))
}
