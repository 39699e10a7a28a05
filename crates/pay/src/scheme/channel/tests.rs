//! The official client's own messages, verified; and everything that can be wrong with them.

use super::server::{VoucherKind, verify};
use super::*;
use crate::scheme::exact::Domain;
use crate::scheme::permit2;
use crate::wire::{PaymentPayload, PaymentRequirements, parse_json, same_terms};
use crate::{Reason, Usdc};
use alloy::signers::local::PrivateKeySigner;
use serde_json::{Value, json};

/// Requests of a recorded exchange of the official client with the official server on chain 84532.
const EXCHANGE: &[u8] = include_bytes!("../../../tests/golden/batch-settlement.json");
const CHAIN_ID: u64 = 84532;
/// Before the recorded deposit's `validBefore`.
const NOW: u64 = 1_795_453_700;

fn payments() -> Vec<(PaymentPayload, PaymentRequirements)> {
    let Value::Array(exchange) = parse_json(EXCHANGE).unwrap() else { panic!("a list") };
    exchange
        .iter()
        .filter_map(|step| step.get("PAYMENT-SIGNATURE"))
        .map(|sent| {
            let payment = PaymentPayload::from_json(sent.clone()).unwrap();
            let offer = PaymentRequirements::from_json(sent["accepted"].clone()).unwrap();
            (payment, offer)
        })
        .collect()
}

fn token(offer: &PaymentRequirements) -> Domain {
    Domain::of(offer).unwrap()
}

fn reason(payment: &PaymentPayload, offer: &PaymentRequirements, now: u64) -> Reason {
    verify(&ChannelDomain::new(CHAIN_ID), &token(offer), payment, offer, now).unwrap_err().reason
}

#[test]
fn the_official_clients_messages_hold() {
    let domain = ChannelDomain::new(CHAIN_ID);
    let mut maxima = Vec::new();
    for (payment, offer) in payments() {
        let verified = verify(&domain, &token(&offer), &payment, &offer, NOW).unwrap();
        assert_eq!(verified.channel.to_string(), payment.payload["voucher"]["channelId"]);
        maxima.push(verified.voucher.max.micro());
        match verified.kind {
            VoucherKind::Deposit(deposit) => assert!(deposit.is_signed_by_key && deposit.amount == Usdc(10_000)),
            VoucherKind::Voucher => {}
            VoucherKind::Refund { amount } => assert_eq!(amount, None),
        }
    }
    assert_eq!(maxima, [1_000, 2_000, 2_400, 1_850]);
}

#[test]
fn our_client_signs_what_the_official_one_does() {
    // anvil's second development key made the exchange.
    let signer: PrivateKeySigner =
        "0x59c6995e998f97a5a0044966f0945389dc9e86dae88c7a8412f4603b6b78690d".parse().unwrap();
    let domain = ChannelDomain::new(CHAIN_ID);
    for (payment, offer) in payments() {
        let verified = verify(&domain, &token(&offer), &payment, &offer, NOW).unwrap();
        let config = client::config(signer.address(), &offer, [0; 32]).unwrap();
        assert_eq!(config, verified.config);
        let (ours, max) = match &verified.kind {
            VoucherKind::Refund { amount } => {
                (client::refund(&signer, &domain, &config, &offer, verified.voucher.max, *amount), verified.voucher.max)
            }
            VoucherKind::Voucher => {
                (client::pay(&signer, &domain, &config, &offer, verified.voucher.max, None), verified.voucher.max)
            }
            VoucherKind::Deposit(deposit) => {
                let DepositMethod::Eip3009 { valid_before, salt, .. } = &deposit.method else { panic!() };
                let top_up = client::TopUp { amount: deposit.amount, valid_before: *valid_before, salt: *salt };
                (
                    client::pay(&signer, &domain, &config, &offer, verified.voucher.max, Some(&top_up)),
                    verified.voucher.max,
                )
            }
        };
        // The official client keeps the case of addresses that it was given.
        assert!(same_terms(&ours.unwrap().payload, &payment.payload), "{max}");
    }
}

#[test]
fn what_is_wrong_is_named() {
    let (deposit, offer) = payments().remove(0);
    let with = |path: &str, value: Value| {
        let mut payment = deposit.clone();
        *payment.payload.pointer_mut(path).unwrap() = value;
        payment
    };
    let zero = json!("0x0000000000000000000000000000000000000000");
    for (path, value, expected) in [
        ("/type", json!("gift"), Reason::ChannelPayloadType),
        ("/voucher/channelId", json!("0x12"), Reason::ChannelIdInvalid),
        ("/voucher/channelId", json!(format!("0x{}", "0".repeat(64))), Reason::ChannelIdMismatch),
        ("/channelConfig/salt", json!(format!("0x{}", "1".repeat(64))), Reason::ChannelIdMismatch),
        ("/channelConfig/payer", zero, Reason::ChannelIdMismatch),
        ("/voucher/maxClaimableAmount", json!("1001"), Reason::VoucherSignature),
        ("/voucher/maxClaimableAmount", json!("01"), Reason::InvalidPayload),
        ("/voucher/maxClaimableAmount", json!(1000), Reason::InvalidPayload),
        ("/voucher/maxClaimableAmount", json!("340282366920938463463374607431768211456"), Reason::InvalidPayload),
        ("/voucher/signature", json!("0x1234"), Reason::VoucherSignature),
        ("/deposit/amount", json!("-1"), Reason::InvalidPayload),
        ("/channelConfig/withdrawDelay", json!(-900), Reason::InvalidPayload),
    ] {
        assert_eq!(reason(&with(path, value.clone()), &offer, NOW), expected, "{path} {value}");
    }
    assert_eq!(reason(&deposit, &offer, 1_795_453_817 - 5), Reason::DepositValidBefore);
    let later = with("/deposit/authorization/erc3009Authorization/validAfter", json!((NOW + 1).to_string()));
    assert_eq!(reason(&later, &offer, NOW), Reason::DepositValidAfter);
    // Another amount than was signed for: only the chain could still find it good (a contract's signature).
    let other = with("/deposit/amount", json!("10001"));
    let verified = verify(&ChannelDomain::new(CHAIN_ID), &token(&offer), &other, &offer, NOW).unwrap();
    assert!(matches!(verified.kind, VoucherKind::Deposit(deposit) if !deposit.is_signed_by_key));
}

/// The recorded deposit by Permit2 instead, for a token without EIP-3009, with an EIP-2612 permission for it.
fn permit2_deposit() -> (PaymentPayload, PaymentRequirements) {
    let (mut payment, offer) = payments().remove(0);
    let payer = payment.payload["channelConfig"]["payer"].clone();
    payment.payload["deposit"]["authorization"] = json!({
        "permit2Authorization": {
            "from": payer,
            "permitted": { "token": offer.asset(), "amount": "10000" },
            "spender": COLLECTOR_PERMIT2,
            "nonce": "7",
            "deadline": (NOW + 60).to_string(),
            "witness": { "channelId": payment.payload["voucher"]["channelId"] },
            "signature": format!("0x{}", "01".repeat(65)),
        }
    });
    payment.extensions = Some(json!({ "eip2612GasSponsoring": { "info": {
        "from": payer, "asset": offer.asset(), "spender": permit2::PERMIT2, "amount": "10000",
        "deadline": (NOW + 60).to_string(), "signature": format!("0x{}", "02".repeat(65)),
    } } }));
    (payment, offer)
}

#[test]
fn what_is_wrong_with_a_deposit_by_permit2_is_named() {
    let (deposit, offer) = permit2_deposit();
    let verified = verify(&ChannelDomain::new(CHAIN_ID), &token(&offer), &deposit, &offer, NOW).unwrap();
    let VoucherKind::Deposit(Deposit { method: DepositMethod::Permit2 { permit, .. }, .. }) = verified.kind else {
        panic!("{:?}", verified.kind)
    };
    assert_eq!(permit.unwrap().amount, Usdc(10_000));
    let other = json!("0x00000000000000000000000000000000000000ff");
    for (path, value, expected) in [
        ("/from", other.clone(), Reason::DepositPermit2Signature),
        ("/spender", other.clone(), Reason::DepositPermit2Spender),
        ("/permitted/token", other, Reason::TokenMismatch),
        ("/permitted/amount", json!("9999"), Reason::DepositPermit2Amount),
        ("/permitted/amount", json!("10001"), Reason::DepositPermit2Amount),
        ("/witness/channelId", json!(format!("0x{}", "1".repeat(64))), Reason::ChannelIdMismatch),
        ("/deadline", json!((NOW + 5).to_string()), Reason::DepositDeadline),
        ("/nonce", json!("0x7"), Reason::InvalidPayload),
        ("/signature", json!("0x1"), Reason::DepositSignature),
    ] {
        let mut wrong = deposit.clone();
        let path = format!("/deposit/authorization/permit2Authorization{path}");
        *wrong.payload.pointer_mut(&path).unwrap() = value.clone();
        assert_eq!(reason(&wrong, &offer, NOW), expected, "{path} {value}");
    }
    for amount in ["9999", "10001"] {
        let mut wrong = deposit.clone();
        wrong.extensions.as_mut().unwrap()["eip2612GasSponsoring"]["info"]["amount"] = json!(amount);
        assert_eq!(reason(&wrong, &offer, NOW), Reason::Eip2612AmountMismatch, "{amount}");
    }
}

/// The contract takes 900 s to 30 days: a channel with another delay could never be opened.
#[test]
fn a_channels_delay_is_the_contracts() {
    let signer = PrivateKeySigner::from_bytes(&[7; 32].into()).unwrap();
    let domain = ChannelDomain::new(CHAIN_ID);
    let (_, offer) = payments().remove(0);
    for (delay, expected) in [
        (WITHDRAW_DELAY_SECS_MIN - 1, Some(Reason::WithdrawDelayOutOfRange)),
        (WITHDRAW_DELAY_SECS_MIN, None),
        (WITHDRAW_DELAY_SECS_MAX, None),
        (WITHDRAW_DELAY_SECS_MAX + 1, Some(Reason::WithdrawDelayOutOfRange)),
    ] {
        let offer = offer.clone().with_extra("withdrawDelay", delay);
        let config = client::config(signer.address(), &offer, [0; 32]).unwrap();
        let payment = client::pay(&signer, &domain, &config, &offer, Usdc(1_000), None).unwrap();
        let found = verify(&domain, &token(&offer), &payment, &offer, NOW);
        assert_eq!(found.err().map(|refusal| refusal.reason), expected, "{delay}");
    }
}

#[test]
fn the_channel_must_be_the_offers() {
    let (payment, offer) = payments().remove(1);
    let with = |path: &str, value: Value| {
        let (mut json, mut payment) = (offer.json().clone(), payment.clone());
        *json.pointer_mut(path).unwrap() = value;
        payment.accepted = json.clone();
        (payment, PaymentRequirements::from_json(json).unwrap())
    };
    let other = json!("0x00000000000000000000000000000000000000ff");
    for (path, value, expected) in [
        ("/payTo", other.clone(), Reason::ReceiverMismatch),
        ("/extra/receiverAuthorizer", other.clone(), Reason::ReceiverAuthorizerMismatch),
        ("/asset", other, Reason::TokenMismatch),
        ("/extra/withdrawDelay", json!(901), Reason::WithdrawDelayMismatch),
    ] {
        let (payment, offer) = with(path, value);
        assert_eq!(reason(&payment, &offer, NOW), expected, "{path}");
    }
    // What was not offered is refused, except the state that our own corrective 402 had added.
    let mut accepted = offer.json().clone();
    accepted["extra"]["channelState"] = json!({ "chargedCumulativeAmount": "1" });
    accepted["extra"]["voucherState"] = json!({});
    let corrected = PaymentPayload { accepted: accepted.clone(), ..payment.clone() };
    verify(&ChannelDomain::new(CHAIN_ID), &token(&offer), &corrected, &offer, NOW).unwrap();
    accepted["extra"]["discount"] = json!(true);
    let wrong = PaymentPayload { accepted, ..payment };
    assert_eq!(reason(&wrong, &offer, NOW), Reason::InvalidPaymentRequirements);
}

/// The contract's answers, as eth_call returns them.
#[test]
fn state_is_read_from_the_contracts_words() {
    let word = |n: u128| [vec![0; 16], n.to_be_bytes().to_vec()].concat();
    let answers = [[word(10_000), word(1_850)].concat(), [word(7), word(1_700_000_000)].concat(), word(3)];
    let state = facilitator::read_state(&answers, 9).unwrap();
    assert_eq!((state.balance, state.claimed, state.refund_nonce, state.block), (Usdc(10_000), Usdc(1_850), 3, 9));
    assert_eq!(state.withdrawal, Some(Withdrawal { amount: Usdc(7), since: 1_700_000_000 }));
    let answers = [[word(0), word(0)].concat(), [word(0), word(0)].concat(), word(0)];
    assert_eq!(facilitator::read_state(&answers, 9).unwrap().withdrawal, None);
    assert_eq!(facilitator::read_state(&[vec![], vec![], vec![]], 9), None, "no contract there");
}

/// Verifying with a key that is known from before would save a sixth of a recovery. It takes what the contract refuses:
/// `v` is no part of what libsecp256k1 verifies, and a voucher with the wrong one can never be claimed.
#[test]
fn a_signature_that_a_known_key_verifies_may_still_be_worth_nothing() {
    let domain = ChannelDomain::new(CHAIN_ID);
    for seed in 1u8..=64 {
        let signer = PrivateKeySigner::from_bytes(&[seed; 32].into()).unwrap();
        let mut key = [4; 65];
        key[1..].copy_from_slice(signer.public_key().as_slice());
        let (channel, max) = (ChannelId([seed; 32]), Usdc(u128::from(seed)));
        let voucher = client::sign_voucher(&signer, &domain, &channel, max).unwrap();
        let digest = domain.voucher_digest(&channel, max);
        let mut turned = voucher.signature;
        turned[64] = 27 + 28 - turned[64];
        for (signature, is_claimable) in [(voucher.signature, true), (turned, false)] {
            let parity = signature[64] == 28;
            let plain = alloy::primitives::Signature::from_bytes_and_parity(&signature[..64], parity);
            let by_key = alloy::consensus::crypto::secp256k1::verify_and_compute_signer(&key, &plain, digest);
            assert_eq!(by_key.ok(), Some(signer.address()), "the key alone takes both");
            assert_eq!(server::recover(&signature, digest).ok() == Some(signer.address()), is_claimable);
        }
    }
}
