//! Several schemes at once: what is offered, which of them a payment took, and what its answer says.

use super::identifier::{self, IDENTIFIER};
use super::{Challenge, MAX_TIMEOUT_SECS, Seller, base64_value, payment_header};
use crate::book::channels::{Channel, Told};
use crate::reason::{Reason, Refusal};
use crate::scheme::channel::server::{VerifiedVoucher, verify as verify_voucher};
use crate::scheme::channel::{CALL_CEILING, CHANNEL, ChannelDomain, ChannelId};
use crate::scheme::exact::server::verify_any_in;
use crate::scheme::exact::{EXACT, Hash, Verified};
use crate::scheme::upto::server::verify_any as verify_permit2;
use crate::scheme::upto::{Permit2Domain, Permit2Payment, UPTO};
use crate::wire::{
    PAYMENT_RESPONSE, PaymentPayload, PaymentRequired, PaymentRequirements, Resource, SettlementResponse,
};
use crate::{Usdc, wire};
use alloy::primitives::{Address, B256};
use http::{HeaderMap, HeaderName, HeaderValue};
use serde_json::{Map, Value, json};

pub use crate::scheme::TransferMethod;

/// How channels are offered; all of it is part of each channel's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChannelTerms {
    /// Beside the receiver, who may claim and refund: the treasury again.
    pub receiver_authorizer: Address,
    /// Our time to claim when a payer leaves. Above takeover + rescue + pause + a claim's margin.
    pub withdraw_delay_secs: u64,
    /// What a first deposit should be, at least.
    pub deposit_min: Usdc,
}

/// The schemes offered for one request, each with its price in the asset's units: the same work at the scheme's own
/// gas. `None`: not offered.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Prices {
    pub channel: Option<ChannelPrice>,
    pub upto: Option<Usdc>,
    /// By the token's own method, [`Terms::transfer`].
    pub exact: Option<Usdc>,
    /// By Permit2, beside the token's own method.
    pub exact_permit2: Option<Usdc>,
}

/// Price of a call on a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChannelPrice {
    /// The most that this call will be charged.
    pub ceiling: Usdc,
    /// Room beyond it for the charge of a call before this one that the customer was not told of yet: a stream's
    /// head leaves before its charge is known, and a customer that signs `told + ceiling` alone would need one more
    /// round trip a call. Zero is right for a seller that streams nothing. Allowed is not charged.
    pub carry: Usdc,
}

impl ChannelPrice {
    pub fn amount(&self) -> Usdc {
        self.ceiling.saturating_add(self.carry)
    }
}

/// A payment that was verified, by scheme.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Accepted {
    Exact(Verified),
    /// `upto`, or `exact` by Permit2.
    Permit2(Permit2Payment),
    /// A voucher, a deposit or a refund on a channel.
    Channel(Box<VerifiedVoucher>),
    /// Everything holds but the signature, which is not the payer's key's.
    Unproven(Box<Unproven>),
}

/// A payment whose payer is a contract, or nobody who signed it. Nothing is proved: simulate its settlement before
/// anything else is done, and settle it before the first byte, because a contract can change its mind. A seller that
/// takes no contracts answers with `refusal`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unproven {
    pub payment: UnprovenPayment,
    /// Why the signature is not a key's.
    pub refusal: Refusal,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UnprovenPayment {
    Exact(Verified),
    Permit2(Permit2Payment),
}

impl Unproven {
    fn accepted(payment: UnprovenPayment, refusal: Refusal) -> Accepted {
        Accepted::Unproven(Box::new(Self { payment, refusal }))
    }
}

/// A payment that came with a request, verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    pub payment: Accepted,
    /// Digest of the name that the customer gave its request ([`identifier::of`]).
    pub identifier: Option<Hash>,
}

/// Terms of one request that a payment of any scheme is held against.
pub struct Terms<'a> {
    pub prices: Prices,
    pub resource: &'a Resource,
    /// See [`super::Quote`]; by scheme, because each has a price of its own.
    pub quoted_before: &'a (dyn Fn(&str, Usdc) -> bool + Sync),
    /// See [`super::Quote`]; payer and nonce, which each method has of its own.
    pub known: &'a (dyn Fn(TransferMethod, &[u8; 20], &Hash) -> bool + Sync),
    /// The relay's address: who settles `upto`.
    pub facilitator: Address,
    pub channels: &'a ChannelTerms,
    /// The token's own method: what `exact` and deposits are paid with.
    pub transfer: TransferMethod,
    /// The token takes EIP-2612 permissions, and whoever settles hands them in: a customer needs no transaction to let
    /// Permit2 spend.
    pub takes_permits: bool,
}

/// Whether a request asks for a channel's money back. That buys nothing, so it needs no price. Nothing is verified
/// here.
pub fn asks_back(headers: &HeaderMap) -> bool {
    let header = payment_header(headers).ok().flatten();
    let payment = header.and_then(|header| PaymentPayload::from_header(header).ok());
    payment.is_some_and(|payment| payment.accepted["scheme"] == CHANNEL && payment.payload["type"] == "refund")
}

/// One way to pay: scheme and transfer method.
pub type Way = (&'static str, TransferMethod);

impl Seller {
    /// The offer of this way to pay, for this amount.
    pub fn requirements_of(&self, (scheme, method): Way, amount: Usdc, terms: &Terms<'_>) -> PaymentRequirements {
        let mut extra = json!({ "name": self.token_name, "version": self.token_version });
        if method == TransferMethod::Permit2 {
            extra["assetTransferMethod"] = "permit2".into();
        }
        match scheme {
            UPTO => extra["facilitatorAddress"] = terms.facilitator.to_checksum(None).into(),
            CHANNEL => {
                extra["receiverAuthorizer"] = terms.channels.receiver_authorizer.to_checksum(None).into();
                extra["withdrawDelay"] = terms.channels.withdraw_delay_secs.into();
                extra["minDeposit"] = terms.channels.deposit_min.micro().to_string().into();
            }
            _ => {}
        }
        let (kind, parties) = ((scheme, self.network.as_str()), (self.asset, self.pay_to));
        PaymentRequirements::new(kind, amount, parties, MAX_TIMEOUT_SECS, extra)
    }

    /// All offers, cheapest for the payer first; at the same price the one that costs it least gas and trust.
    pub fn offers(&self, terms: &Terms<'_>, reason: Reason) -> PaymentRequired {
        let mut priced = terms.ways();
        priced.sort_by_key(|(price, _, _)| *price);
        let accepts = priced.iter().map(|(ceiling, way, amount)| {
            let offer = self.requirements_of(*way, *amount, terms);
            if ceiling < amount { offer.with_extra(CALL_CEILING, ceiling.micro().to_string()) } else { offer }
        });
        let mut offer = PaymentRequired::new(reason.as_str(), terms.resource, accepts.collect());
        let mut extensions = json!({ IDENTIFIER: identifier::declaration() });
        if terms.takes_permits && priced.iter().any(|(_, (_, method), _)| *method == TransferMethod::Permit2) {
            extensions["eip2612GasSponsoring"] = json!({ "info": {
                "description": "The facilitator accepts EIP-2612 gasless Permit to `Permit2` canonical contract.",
                "version": "1",
            } });
        }
        offer.extensions = Some(extensions);
        offer
    }

    /// The answer to a request that did not pay, or not properly.
    pub fn refuse(&self, terms: &Terms<'_>, refusal: Refusal) -> Challenge {
        Challenge { offer: self.offers(terms, refusal.reason), refusal, settlement: None }
    }

    /// The 402 that puts a customer right that is out of step with its channel: the channel's state goes into the
    /// offer, with the newest voucher as proof that the customer once allowed what was charged.
    pub fn correct(&self, terms: &Terms<'_>, refusal: Refusal, id: &ChannelId, channel: &Channel) -> Challenge {
        let mut challenge = self.refuse(terms, refusal);
        let state = channel_state(id, channel, channel.charged);
        let voucher = channel.voucher.as_ref().map(|voucher| {
            json!({
                "signedMaxClaimable": voucher.max.micro().to_string(),
                "signature": format!("0x{}", hex::encode(voucher.signature)),
            })
        });
        for offer in challenge.offer.accepts.iter_mut().filter(|offer| offer.scheme() == CHANNEL) {
            let mut json = offer.json().clone();
            json["extra"]["channelState"] = state.clone();
            if let Some(voucher) = &voucher {
                json["extra"]["voucherState"] = voucher.clone();
            }
            if let Ok(corrected) = PaymentRequirements::from_json(json) {
                *offer = corrected;
            }
        }
        challenge
    }

    /// Takes the payment out of a request's headers and verifies it, whichever scheme it chose: one recovery (two
    /// for a deposit), no I/O. What the book and the chain say comes after.
    ///
    /// # Errors
    /// The whole answer to send, boxed because it carries the offers.
    pub fn accept_any(
        &self,
        headers: &HeaderMap,
        terms: &Terms<'_>,
        channel_domain: &ChannelDomain,
        chain_now: u64,
    ) -> Result<Taken, Box<Challenge>> {
        let found = match payment_header(headers) {
            Ok(Some(header)) => PaymentPayload::from_header(header).and_then(|payment| {
                let identifier = identifier::of(headers, &payment)?;
                let payment = self.verify_any(&payment, terms, channel_domain, chain_now)?;
                Ok(Taken { payment, identifier })
            }),
            Ok(None) => Err(Refusal::new(
                Reason::PaymentRequired,
                "this costs money: pay with an x402 client (PAYMENT-REQUIRED has the offers)",
            )),
            Err(refusal) => Err(refusal),
        };
        found.map_err(|refusal| Box::new(self.refuse(terms, refusal)))
    }

    fn verify_any(
        &self,
        payment: &PaymentPayload,
        terms: &Terms<'_>,
        channel_domain: &ChannelDomain,
        chain_now: u64,
    ) -> Result<Accepted, Refusal> {
        let text = |name: &str| payment.accepted.get(name).and_then(Value::as_str).unwrap_or_default();
        let accepted = wire::amount(text("amount"))?;
        let by_permit2 = payment.accepted["extra"]["assetTransferMethod"] == "permit2";
        let method = if by_permit2 { TransferMethod::Permit2 } else { TransferMethod::Eip3009 };
        // Of one scheme by another method than is offered: what is wrong with it is said by its verification.
        let ways = terms.ways().into_iter().filter(|(_, (scheme, _), _)| *scheme == text("scheme"));
        let Some((_, way, price)) = ways.min_by_key(|(_, (_, offered), _)| *offered != method) else {
            let message = format!("scheme {:.40?} is not offered here", text("scheme"));
            return Err(Refusal::new(Reason::InvalidScheme, message));
        };
        let offered = self.requirements_of(way, accepted, terms);
        let is_enough = accepted >= price || (terms.quoted_before)(way.0, accepted);
        let moved = || {
            let message = format!("the price is {price} now, {accepted} was accepted");
            Refusal::new(Reason::PriceMoved, message)
        };
        match way {
            (CHANNEL, _) => {
                let found = verify_voucher(channel_domain, &self.domain, payment, &offered, chain_now)?;
                // A refund costs nothing, whatever the price.
                let is_refund = matches!(found.kind, crate::scheme::channel::server::VoucherKind::Refund { .. });
                if is_enough || is_refund { Ok(Accepted::Channel(Box::new(found))) } else { Err(moved()) }
            }
            (EXACT, method @ TransferMethod::Eip3009) => {
                let known = |payer: &Address, nonce: &B256| (terms.known)(method, &payer.0.0, &nonce.0);
                let now_for = |payer: &Address, nonce: &B256| (!known(payer, nonce)).then_some(chain_now);
                let (found, by_key) = verify_any_in(&self.domain, payment, &offered, now_for)?;
                let is_taken = is_enough || known(&found.payer, &found.nonce);
                match by_key {
                    _ if !is_taken => Err(moved()),
                    Ok(()) => Ok(Accepted::Exact(found)),
                    Err(refusal) => Ok(Unproven::accepted(UnprovenPayment::Exact(found), refusal)),
                }
            }
            _ => {
                let domain = Permit2Domain { chain_id: self.chain_id };
                let known = |payer: &[u8; 20], nonce: &Hash| (terms.known)(TransferMethod::Permit2, payer, nonce);
                let now_for = |payer: &[u8; 20], nonce: &Hash| (!known(payer, nonce)).then_some(chain_now);
                let (found, by_key) = verify_permit2(domain, payment, &offered, now_for)?;
                let is_taken = is_enough || known(&found.payer, &found.nonce);
                match by_key {
                    _ if !is_taken => Err(moved()),
                    Ok(()) => Ok(Accepted::Permit2(found)),
                    Err(refusal) => Ok(Unproven::accepted(UnprovenPayment::Permit2(found), refusal)),
                }
            }
        }
    }

    /// `PAYMENT-RESPONSE` of a call on a channel. `told` is what this customer is told was charged
    /// ([`Channel::told`]); `deposit` the amount and transaction of the deposit that came with it.
    pub fn channel_header(
        &self,
        id: &ChannelId,
        channel: &Channel,
        told: Told,
        deposit: Option<(Usdc, Hash)>,
    ) -> (HeaderName, HeaderValue) {
        let extra = json!({
            "channelState": channel_state(id, channel, told.cumulative),
            "chargedAmount": told.charged.micro().to_string(),
        });
        self.channel_response(channel, extra, deposit)
    }

    /// `PAYMENT-RESPONSE` of a refund.
    pub fn refund_header(
        &self,
        id: &ChannelId,
        channel: &Channel,
        amount: Usdc,
        transaction: Hash,
    ) -> (HeaderName, HeaderValue) {
        let extra = json!({ "channelState": channel_state(id, channel, channel.charged) });
        self.channel_response(channel, extra, Some((amount, transaction)))
    }

    fn channel_response(
        &self,
        channel: &Channel,
        extra: Value,
        moved: Option<(Usdc, Hash)>,
    ) -> (HeaderName, HeaderValue) {
        let response = SettlementResponse {
            success: true,
            transaction: moved.map(|(_, tx)| format!("0x{}", hex::encode(tx))).unwrap_or_default(),
            network: self.network.clone(),
            payer: Some(Address::from(channel.config.payer).to_string()),
            error_reason: None,
            amount: moved.map(|(amount, _)| amount),
            rest: Map::from_iter([("extra".to_owned(), extra)]),
        };
        (PAYMENT_RESPONSE, base64_value(response.to_header()))
    }
}

impl Terms<'_> {
    /// What is offered: (what the call costs at most, the way to pay, the offer's amount).
    fn ways(&self) -> Vec<(Usdc, Way, Usdc)> {
        let Prices { channel, upto, exact, exact_permit2 } = self.prices;
        [
            channel.map(|price| (price.ceiling, (CHANNEL, self.transfer), price.amount())),
            upto.map(|price| (price, (UPTO, TransferMethod::Permit2), price)),
            exact.map(|price| (price, (EXACT, self.transfer), price)),
            exact_permit2.map(|price| (price, (EXACT, TransferMethod::Permit2), price)),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

fn channel_state(id: &ChannelId, channel: &Channel, charged: Usdc) -> Value {
    let chain = &channel.chain;
    json!({
        "channelId": id.to_string(),
        "balance": chain.balance.micro().to_string(),
        "totalClaimed": chain.claimed.micro().to_string(),
        "withdrawRequestedAt": chain.withdrawal.map_or(0, |withdrawal| withdrawal.since),
        "refundNonce": chain.refund_nonce.to_string(),
        "chargedCumulativeAmount": charged.micro().to_string(),
    })
}
