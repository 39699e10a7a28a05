//! Verifying what a customer sends on a channel: shape, terms and signatures, no I/O. What the channel allows, the
//! book decides; what is on chain, the chain.

use super::types::{ChannelConfig, ChannelDomain, ChannelId, Deposit, DepositMethod, HeldVoucher};
use super::{COLLECTOR_PERMIT2, WITHDRAW_DELAY_SECS_MAX, WITHDRAW_DELAY_SECS_MIN};
use crate::scheme::check_terms;
use crate::scheme::exact::{Domain, Hash};
use crate::scheme::permit2::{self, Permit2612};
use crate::scheme::signature;
use crate::wire::{self, PaymentPayload, PaymentRequirements, bytes, invalid, seconds};
use crate::{Reason, Refusal, Usdc};
use alloy::consensus::crypto::secp256k1::recover_signer;
use alloy::primitives::{Address, B256, Signature};
use serde_json::Value;

/// A deposit must stay executable this much longer than now; the official facilitator asks for the same 6 s.
pub const DEPOSIT_MARGIN_SECS: u64 = 6;

/// A payment on a channel whose terms and voucher signature hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedVoucher {
    pub channel: ChannelId,
    pub config: ChannelConfig,
    pub voucher: HeldVoucher,
    /// What the customer accepted for this request, the most that it may be told was charged for it.
    pub accepted: Usdc,
    pub kind: VoucherKind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VoucherKind {
    /// Pay from what is in the channel.
    Voucher,
    /// Put this in first.
    Deposit(Deposit),
    /// Close the channel, or take this much out of it.
    Refund { amount: Option<Usdc> },
}

/// Checks a payment against the offer: one recovery for a voucher, two for a deposit.
///
/// `chain_now` is the timestamp of the newest block. `token` is the token's domain. Refusals carry the official
/// packages' name of the first thing that is wrong, in their order: scheme, network, terms, shape, channel, voucher,
/// deposit.
pub fn verify(
    domain: &ChannelDomain,
    token: &Domain,
    payment: &PaymentPayload,
    offered: &PaymentRequirements,
    chain_now: u64,
) -> Result<VerifiedVoucher, Refusal> {
    check_terms(payment, offered)?;
    let fields = Fields::read(&payment.payload)?;
    let config = &fields.config;
    let channel = domain.channel_id(config);
    if channel != fields.channel {
        let message = format!("channelConfig is channel {channel}, the voucher is for {}", fields.channel);
        return Err(Refusal::new(Reason::ChannelIdMismatch, message));
    }
    check_config(config, offered)?;
    verify_voucher(domain, &channel, config, &fields.voucher)?;
    let kind = match fields.kind {
        Kind::Voucher => VoucherKind::Voucher,
        Kind::Refund(amount) => VoucherKind::Refund { amount },
        Kind::Deposit(amount, method) => {
            let permit = permit_of(payment, config, amount)?;
            let deposit = verify_deposit(domain, token, &channel, config, amount, method, permit, chain_now)?;
            VoucherKind::Deposit(deposit)
        }
    };
    Ok(VerifiedVoucher { channel, config: fields.config, voucher: fields.voucher, accepted: offered.amount(), kind })
}

/// Checks a voucher of a channel whose config is known to name it: one recovery.
pub fn verify_voucher(
    domain: &ChannelDomain,
    channel: &ChannelId,
    config: &ChannelConfig,
    voucher: &HeldVoucher,
) -> Result<(), Refusal> {
    let digest = domain.voucher_digest(channel, voucher.max);
    let found = recover(&voucher.signature, digest).map_err(|m| Refusal::new(Reason::VoucherSignature, m))?;
    if found != config.voucher_signer() {
        let signer = Address::from(config.voucher_signer());
        let message = format!("the signature is {found}'s, not {signer}'s (contracts name a key as payerAuthorizer)");
        return Err(Refusal::new(Reason::VoucherSignature, message));
    }
    Ok(())
}

fn check_config(config: &ChannelConfig, offered: &PaymentRequirements) -> Result<(), Refusal> {
    let extra = |name: &str| offered.json().get("extra").and_then(|extra| extra.get(name));
    let authorizer = extra("receiverAuthorizer").and_then(Value::as_str).map(wire::address).transpose()?;
    let delay = extra("withdrawDelay").and_then(Value::as_u64);
    let wrong = |reason, message: String| Err(Refusal::new(reason, message));
    if offered.pay_to() != config.receiver {
        return wrong(Reason::ReceiverMismatch, format!("the channel's receiver is not {}", offered.pay_to()));
    }
    if authorizer.is_none_or(|authorizer| authorizer != config.receiver_authorizer) {
        return wrong(Reason::ReceiverAuthorizerMismatch, "the channel's receiverAuthorizer is not the offer's".into());
    }
    if offered.asset() != config.token {
        return wrong(Reason::TokenMismatch, format!("the channel's token is not {}", offered.asset()));
    }
    if delay.is_some_and(|delay| delay != config.withdraw_delay_secs) {
        let message = format!("the channel's withdrawDelay is {}, the offer's is another", config.withdraw_delay_secs);
        return wrong(Reason::WithdrawDelayMismatch, message);
    }
    if !(WITHDRAW_DELAY_SECS_MIN..=WITHDRAW_DELAY_SECS_MAX).contains(&config.withdraw_delay_secs) {
        let message = format!("a withdrawDelay is {WITHDRAW_DELAY_SECS_MIN} to {WITHDRAW_DELAY_SECS_MAX} seconds");
        return wrong(Reason::WithdrawDelayOutOfRange, message);
    }
    Ok(())
}

#[expect(clippy::too_many_arguments, reason = "one private step of `verify`, split off for its length")]
fn verify_deposit(
    domain: &ChannelDomain,
    token: &Domain,
    channel: &ChannelId,
    config: &ChannelConfig,
    amount: Usdc,
    mut method: DepositMethod,
    permit: Option<Permit2612>,
    chain_now: u64,
) -> Result<Deposit, Refusal> {
    let soon = chain_now.saturating_add(DEPOSIT_MARGIN_SECS);
    let (digest, signature) = match &mut method {
        DepositMethod::Eip3009 { valid_after, valid_before, salt, signature } => {
            if *valid_before < soon {
                let message = format!("valid before {valid_before}, chain time is {chain_now}");
                return Err(Refusal::new(Reason::DepositValidBefore, message));
            }
            if *valid_after > chain_now {
                let message = format!("valid after {valid_after}, chain time is {chain_now}");
                return Err(Refusal::new(Reason::DepositValidAfter, message));
            }
            let window = (*valid_after, *valid_before);
            (domain.deposit_digest(token, channel, config.payer, amount, window, salt), signature)
        }
        DepositMethod::Permit2 { nonce, deadline, signature, permit: slot } => {
            if *deadline < soon {
                let message = format!("the deadline is {deadline}, chain time is {chain_now}");
                return Err(Refusal::new(Reason::DepositDeadline, message));
            }
            *slot = permit;
            (domain.permit2_deposit_digest(channel, config.token, amount, nonce, *deadline), signature)
        }
    };
    let is_signed_by_key = <[u8; 65]>::try_from(signature.as_slice())
        .ok()
        .and_then(|signature| recover(&signature, digest).ok())
        .is_some_and(|signer| signer == config.payer);
    Ok(Deposit { amount, method, is_signed_by_key })
}

/// The EIP-2612 permission that came along as extension `eip2612GasSponsoring`.
fn permit_of(payment: &PaymentPayload, config: &ChannelConfig, amount: Usdc) -> Result<Option<Permit2612>, Refusal> {
    let info = payment.extensions.as_ref().and_then(|e| e.get("eip2612GasSponsoring")).and_then(|e| e.get("info"));
    // The offer's own extension is echoed by clients that did not sign one: without a signature it is nobody's.
    let Some(info) = info.filter(|info| info.get("signature").is_some()) else { return Ok(None) };
    let permit = permit2::read_2612(info, config.payer.into(), config.token.into())?;
    if permit.amount != amount {
        let message = format!("the permit is for {}, the deposit is {amount}", permit.amount);
        return Err(Refusal::new(Reason::Eip2612AmountMismatch, message));
    }
    Ok(Some(permit))
}

/// Strict: v 27 or 28 and low s, as the contract has it.
pub(crate) fn recover(signature: &[u8; 65], digest: B256) -> Result<Address, String> {
    let parity = match signature[64] {
        27 => false,
        28 => true,
        v => return Err(format!("v is {v}; the contract takes 27 or 28")),
    };
    let signature = Signature::from_bytes_and_parity(&signature[..64], parity);
    recover_signer(&signature, digest).map_err(|e| format!("no key made this signature: {e}"))
}

/// `payload` of the envelope, read strictly. Unknown fields are passed over: nothing that is signed depends on them.
struct Fields {
    config: ChannelConfig,
    channel: ChannelId,
    voucher: HeldVoucher,
    kind: Kind,
}

enum Kind {
    Voucher,
    Deposit(Usdc, DepositMethod),
    Refund(Option<Usdc>),
}

impl Fields {
    fn read(payload: &Value) -> Result<Self, Refusal> {
        let voucher = member(payload, "voucher")?;
        let channel = bytes(text(voucher, "channelId")?).map(ChannelId).ok_or_else(|| {
            Refusal::new(Reason::ChannelIdInvalid, "`voucher.channelId` is not 0x and 64 hexadecimal digits")
        })?;
        let signature = bytes(text(voucher, "signature")?).ok_or_else(|| {
            Refusal::new(Reason::VoucherSignature, "a voucher's signature is 0x and 130 digits (r, s, v of a key)")
        })?;
        let max = wire::amount(text(voucher, "maxClaimableAmount")?)?;
        let kind = match payload.get("type").and_then(Value::as_str) {
            Some("voucher") => Kind::Voucher,
            Some("deposit") => {
                let deposit = member(payload, "deposit")?;
                let amount = wire::amount(text(deposit, "amount")?)?;
                Kind::Deposit(amount, read_method(member(deposit, "authorization")?, payload, amount)?)
            }
            Some("refund") => Kind::Refund(match payload.get("amount") {
                None => None,
                Some(Value::String(amount)) => Some(wire::amount(amount)?),
                Some(_) => return Err(invalid("`payload.amount` is not a text")),
            }),
            other => {
                let message = format!("payload type {other:.40?}; deposit, voucher and refund are known");
                return Err(Refusal::new(Reason::ChannelPayloadType, message));
            }
        };
        let config = read_config(member(payload, "channelConfig")?)?;
        Ok(Self { config, channel, voucher: HeldVoucher { max, signature }, kind })
    }
}

pub(super) fn read_config(config: &Value) -> Result<ChannelConfig, Refusal> {
    let address = |name| Ok::<_, Refusal>(wire::address(text(config, name)?)?.into_array());
    Ok(ChannelConfig {
        payer: address("payer")?,
        payer_authorizer: address("payerAuthorizer")?,
        receiver: address("receiver")?,
        receiver_authorizer: address("receiverAuthorizer")?,
        token: address("token")?,
        withdraw_delay_secs: config
            .get("withdrawDelay")
            .and_then(Value::as_u64)
            .ok_or_else(|| invalid("`channelConfig.withdrawDelay` is not a whole number of seconds"))?,
        salt: bytes(text(config, "salt")?).ok_or_else(|| invalid("`channelConfig.salt` is not 0x and 64 digits"))?,
    })
}

fn read_method(authorization: &Value, payload: &Value, amount: Usdc) -> Result<DepositMethod, Refusal> {
    if let Some(fields) = authorization.get("erc3009Authorization") {
        return Ok(DepositMethod::Eip3009 {
            valid_after: seconds(text(fields, "validAfter")?)?,
            valid_before: seconds(text(fields, "validBefore")?)?,
            salt: bytes(text(fields, "salt")?).ok_or_else(|| invalid("a deposit's `salt` is not 0x and 64 digits"))?,
            signature: long_signature(text(fields, "signature")?)?,
        });
    }
    let fields = member(authorization, "permit2Authorization")?;
    let config = read_config(member(payload, "channelConfig")?)?;
    let permitted = member(fields, "permitted")?;
    let refuse = |reason, message: &str| Err(Refusal::new(reason, message));
    if wire::address(text(fields, "from")?)? != config.payer {
        return refuse(Reason::DepositPermit2Signature, "`permit2Authorization.from` is not the channel's payer");
    }
    if wire::address(text(fields, "spender")?)? != COLLECTOR_PERMIT2 {
        return refuse(Reason::DepositPermit2Spender, "`spender` is not the Permit2 deposit collector");
    }
    if wire::address(text(permitted, "token")?)? != config.token {
        return refuse(Reason::TokenMismatch, "`permitted.token` is not the channel's token");
    }
    if wire::amount(text(permitted, "amount")?)? != amount {
        return refuse(Reason::DepositPermit2Amount, "`permitted.amount` is not the deposit's amount");
    }
    let witness: Option<Hash> = bytes(text(member(fields, "witness")?, "channelId")?);
    let voucher: Option<Hash> = bytes(text(member(payload, "voucher")?, "channelId")?);
    if witness.is_none() || witness != voucher {
        return refuse(Reason::ChannelIdMismatch, "`witness.channelId` is not the voucher's channel");
    }
    Ok(DepositMethod::Permit2 {
        nonce: permit2::nonce(text(fields, "nonce")?)?,
        deadline: seconds(text(fields, "deadline")?)?,
        signature: long_signature(text(fields, "signature")?)?,
        permit: None,
    })
}

/// A contract's signature may be of any length within reason.
fn long_signature(text: &str) -> Result<Vec<u8>, Refusal> {
    let refuse = || Refusal::new(Reason::DepositSignature, "a signature is 0x and hexadecimal digits, at most 4 KiB");
    signature::parse(text).ok_or_else(refuse)
}

fn member<'v>(value: &'v Value, name: &str) -> Result<&'v Value, Refusal> {
    value.get(name).filter(|v| v.is_object()).ok_or_else(|| invalid(format!("`{name}` is not an object")))
}

fn text<'v>(value: &'v Value, name: &str) -> Result<&'v str, Refusal> {
    value.get(name).and_then(Value::as_str).ok_or_else(|| invalid(format!("`{name}` is not a text")))
}
