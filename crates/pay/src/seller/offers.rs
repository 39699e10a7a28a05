//! Several schemes at once: what is offered, which of them a payment took, and what its answer says.

use super::{Challenge, MAX_TIMEOUT_SECS, Seller, base64_value, payment_header};
use crate::book::channels::{Channel, Told};
use crate::reason::{Reason, Refusal};
use crate::scheme::channel::server::{VerifiedVoucher, verify as verify_voucher};
use crate::scheme::channel::{CHANNEL, ChannelDomain, ChannelId};
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

/// What a token without EIP-3009 is paid with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TransferMethod {
    Eip3009,
    Permit2,
}

/// The schemes offered for one request, each with its price in the asset's units: the same work at the scheme's own
/// gas. `None`: not offered.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Prices {
    pub channel: Option<ChannelPrice>,
    pub upto: Option<Usdc>,
    pub exact: Option<Usdc>,
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
    Channel(VerifiedVoucher),
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

/// Terms of one request that a payment of any scheme is held against.
pub struct Terms<'a> {
    pub prices: Prices,
    pub resource: &'a Resource,
    /// See [`super::Quote`].
    pub quoted_before: &'a (dyn Fn(Usdc) -> bool + Sync),
    /// See [`super::Quote`]; for EIP-3009.
    pub known: &'a (dyn Fn(&[u8; 20], &Hash) -> bool + Sync),
    /// The relay's address: who settles `upto`.
    pub facilitator: Address,
    pub channels: &'a ChannelTerms,
    pub transfer: TransferMethod,
}

impl Seller {
    /// The offer of this scheme for this amount, if it is one of ours.
    pub fn requirements_of(&self, scheme: &str, amount: Usdc, terms: &Terms<'_>) -> Option<PaymentRequirements> {
        let mut extra = json!({ "name": self.token_name, "version": self.token_version });
        match scheme {
            EXACT if terms.transfer == TransferMethod::Permit2 => extra["assetTransferMethod"] = "permit2".into(),
            EXACT => {}
            UPTO => {
                extra["assetTransferMethod"] = "permit2".into();
                extra["facilitatorAddress"] = terms.facilitator.to_checksum(None).into();
            }
            CHANNEL => {
                extra["receiverAuthorizer"] = terms.channels.receiver_authorizer.to_checksum(None).into();
                extra["withdrawDelay"] = terms.channels.withdraw_delay_secs.into();
                extra["minDeposit"] = terms.channels.deposit_min.micro().to_string().into();
                if terms.transfer == TransferMethod::Permit2 {
                    extra["assetTransferMethod"] = "permit2".into();
                }
            }
            _ => return None,
        }
        let (kind, parties) = ((scheme, self.network.as_str()), (self.asset, self.pay_to));
        Some(PaymentRequirements::new(kind, amount, parties, MAX_TIMEOUT_SECS, extra))
    }

    /// All offers, cheapest for the payer first; at the same price the one that costs it least gas and trust.
    pub fn offers(&self, terms: &Terms<'_>, reason: Reason) -> PaymentRequired {
        let Prices { channel, upto, exact } = terms.prices;
        let mut priced: Vec<(Usdc, &str, Usdc)> = [
            channel.map(|price| (price.ceiling, CHANNEL, price.amount())),
            upto.map(|price| (price, UPTO, price)),
            exact.map(|price| (price, EXACT, price)),
        ]
        .into_iter()
        .flatten()
        .collect();
        priced.sort_by_key(|(price, _, _)| *price);
        let accepts = priced.iter().filter_map(|(_, scheme, amount)| self.requirements_of(scheme, *amount, terms));
        let mut offer = PaymentRequired::new(reason.as_str(), terms.resource, accepts.collect());
        if terms.transfer == TransferMethod::Permit2 {
            // The extension by which a customer without gas lets Permit2 spend.
            offer.extensions = Some(json!({ "eip2612GasSponsoring": { "info": {
                "description": "The facilitator accepts EIP-2612 gasless Permit to `Permit2` canonical contract.",
                "version": "1",
            } } }));
        }
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
    ) -> Result<Accepted, Box<Challenge>> {
        let found = match payment_header(headers) {
            Ok(Some(header)) => self.verify_any(header, terms, channel_domain, chain_now),
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
        header: &str,
        terms: &Terms<'_>,
        channel_domain: &ChannelDomain,
        chain_now: u64,
    ) -> Result<Accepted, Refusal> {
        let payment = PaymentPayload::from_header(header)?;
        let text = |name: &str| payment.accepted.get(name).and_then(Value::as_str).unwrap_or_default();
        let accepted = wire::amount(text("amount"))?;
        let scheme = text("scheme").to_owned();
        let Prices { channel, upto, exact } = terms.prices;
        let price = match scheme.as_str() {
            CHANNEL => channel.map(|price| price.amount()),
            UPTO => upto,
            EXACT => exact,
            _ => None,
        };
        let offered = price.and_then(|price| Some((price, self.requirements_of(&scheme, accepted, terms)?)));
        let Some((price, offered)) = offered else {
            return Err(Refusal::new(Reason::InvalidScheme, format!("scheme {scheme:.40?} is not offered here")));
        };
        let is_enough = accepted >= price || (terms.quoted_before)(accepted);
        let moved = || {
            let message = format!("the price is {price} now, {accepted} was accepted");
            Refusal::new(Reason::PriceMoved, message)
        };
        match scheme.as_str() {
            CHANNEL => {
                let found = verify_voucher(channel_domain, &self.domain, &payment, &offered, chain_now)?;
                // A refund costs nothing, whatever the price.
                let is_refund = matches!(found.kind, crate::scheme::channel::server::VoucherKind::Refund { .. });
                if is_enough || is_refund { Ok(Accepted::Channel(found)) } else { Err(moved()) }
            }
            EXACT if terms.transfer == TransferMethod::Eip3009 => {
                let known = |payer: &Address, nonce: &B256| (terms.known)(&payer.0.0, &nonce.0);
                let now_for = |payer: &Address, nonce: &B256| (!known(payer, nonce)).then_some(chain_now);
                let (found, by_key) = verify_any_in(&self.domain, &payment, &offered, now_for)?;
                let is_taken = is_enough || known(&found.payer, &found.nonce);
                match by_key {
                    _ if !is_taken => Err(moved()),
                    Ok(()) => Ok(Accepted::Exact(found)),
                    Err(refusal) => Ok(Unproven::accepted(UnprovenPayment::Exact(found), refusal)),
                }
            }
            _ => {
                let domain = Permit2Domain { chain_id: self.chain_id };
                let (found, by_key) = verify_permit2(domain, &payment, &offered, chain_now)?;
                match by_key {
                    _ if !is_enough => Err(moved()),
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
