use super::*;
use crate::scheme::exact::client;
use alloy::primitives::keccak256;
use alloy::signers::local::PrivateKeySigner;
use expect_test::expect;

const NOW: u64 = 1_795_453_140;

fn seller() -> Seller {
    Seller::new(31337, Address::repeat_byte(0xa5), ("USD Coin", "2"), Address::repeat_byte(0x77))
}

fn resource() -> Resource {
    Resource { url: "http://a/v1/x".into(), description: "x".into(), mime_type: "application/json".into() }
}

fn paid(amount: u128) -> HeaderMap {
    let payer = PrivateKeySigner::from_bytes(&keccak256(b"payer")).unwrap();
    let offer = seller().requirements(Usdc(amount));
    let payment = client::sign(&payer, &offer, NOW, B256::repeat_byte(9)).unwrap();
    HeaderMap::from_iter([(PAYMENT_SIGNATURE, base64_value(payment.to_header()))])
}

/// Accepts at a price of 1,000; 900 was quoted a moment ago.
fn accept(headers: &HeaderMap, known: bool, now: u64) -> Result<Verified, Reason> {
    let resource = resource();
    let quote = Quote {
        amount: Usdc(1_000),
        resource: &resource,
        quoted_before: &|amount| amount == Usdc(900),
        known: &|_, _| known,
    };
    seller().accept(headers, &quote, now).map_err(|challenge| challenge.refusal.reason)
}

#[test]
fn the_price_may_have_moved_since_the_offer() {
    for (amount, outcome) in
        [(1_000, None), (1_200, None), (900, None), (950, Some(Reason::PriceMoved)), (1, Some(Reason::PriceMoved))]
    {
        assert_eq!(accept(&paid(amount), false, NOW).err(), outcome, "{amount}");
    }
}

#[test]
fn what_was_paid_can_be_asked_for_when_price_and_time_have_passed() {
    assert_eq!(accept(&paid(1), true, NOW).err(), None);
    assert_eq!(accept(&paid(1_000), false, NOW + MAX_TIMEOUT_SECS).err(), Some(Reason::ValidBefore));
    assert_eq!(accept(&paid(1_000), true, NOW + MAX_TIMEOUT_SECS).err(), None);
}

#[test]
fn headers_are_taken_once_and_in_version_2() {
    assert_eq!(accept(&HeaderMap::new(), false, NOW).err(), Some(Reason::PaymentRequired));
    let old = HeaderMap::from_iter([(X_PAYMENT, HeaderValue::from_static("eyJ4NDAyVmVyc2lvbiI6MX0="))]);
    assert_eq!(accept(&old, false, NOW).err(), Some(Reason::InvalidX402Version));
    let mut twice = paid(1_000);
    twice.append(PAYMENT_SIGNATURE, HeaderValue::from_static("x"));
    assert_eq!(accept(&twice, false, NOW).err(), Some(Reason::InvalidPayload));
    let raw = HeaderMap::from_iter([(PAYMENT_SIGNATURE, HeaderValue::from_bytes(b"\xff").unwrap())]);
    assert_eq!(accept(&raw, false, NOW).err(), Some(Reason::InvalidPayload));
}

#[test]
fn a_challenge_has_status_headers_and_body() {
    let challenge = seller().ask(Usdc(1_000), &resource());
    assert_eq!(challenge.status(), 402);
    expect![[r#"{"error":{"code":"payment_required","message":"this costs 0.001000 USDC: pay with an x402 client (PAYMENT-REQUIRED has the offer)","request_id":"r1"}}"#]]
        .assert_eq(&challenge.body("r1").to_string());
    let headers = challenge.headers();
    assert_eq!(headers.len(), 2);
    let offer = wire::decode_header(headers[0].1.to_str().unwrap()).unwrap();
    expect![[r#"{"x402Version":2,"error":"Payment required","resource":{"url":"http://a/v1/x","description":"x","mimeType":"application/json"},"accepts":[{"scheme":"exact","network":"eip155:31337","amount":"1000","asset":"0xA5A5A5A5A5A5A5A5A5A5a5a5a5a5a5a5A5a5a5a5","payTo":"0x7777777777777777777777777777777777777777","maxTimeoutSeconds":300,"extra":{"name":"USD Coin","version":"2"}}]}"#]]
        .assert_eq(&offer.to_string());
    let failed =
        seller().not_settled(Usdc(1), &resource(), Refusal::new(Reason::InsufficientFunds, "no"), Address::ZERO);
    let header = failed.headers().pop().unwrap();
    assert_eq!(header.0, PAYMENT_RESPONSE);
    let settlement = SettlementResponse::from_header(header.1.to_str().unwrap()).unwrap();
    assert_eq!((settlement.success, settlement.error_reason.as_deref()), (false, Some("insufficient_funds")));
}

/// Whose turn it is for each reason, all of them: whoever adds one or moves one says so here. None is a 500, because
/// nothing that a customer sends is our bug; `again` is worth paying again for.
#[test]
fn every_reason_is_a_client_matter() {
    let mut table = String::new();
    for &reason in Reason::ALL {
        let challenge = seller().challenge(Usdc(1), &resource(), Refusal::new(reason, "m"));
        assert_eq!(challenge.offer.error, reason.as_str());
        let body = challenge.body("r");
        let code = if reason == Reason::PaymentRequired { "payment_required" } else { reason.as_str() };
        assert_eq!(body["error"]["code"], code);
        let again = if reason.is_transient() { " again" } else { "" };
        table.push_str(&format!("{} {reason}{again}\n", challenge.status()));
    }
    expect![[r#"
        402 Payment required
        400 invalid_payload
        400 invalid_x402_version
        402 invalid_scheme
        402 invalid_network
        402 invalid_payment_requirements
        402 invalid_exact_evm_payload_signature
        402 invalid_exact_evm_payload_recipient_mismatch
        402 invalid_exact_evm_payload_authorization_value_mismatch
        402 invalid_exact_evm_payload_authorization_valid_after again
        402 invalid_exact_evm_payload_authorization_valid_before again
        402 invalid_exact_evm_nonce_already_used
        402 insufficient_funds
        402 invalid_exact_evm_transaction_simulation_failed
        402 eip6492_factory_not_allowed
        402 invalid_transaction_state
        402 unexpected_verify_error again
        402 unexpected_settle_error again
        402 price_moved again
        409 payment_conflict
        402 payment_aborted again
        429 too_many_open_payments again
        402 settlement_pending again
        402 facilitator_credit_required again
        402 invalid_permit2_signature
        402 invalid_permit2_spender
        402 invalid_permit2_recipient_mismatch
        402 permit2_amount_mismatch
        402 permit2_token_mismatch
        402 permit2_deadline_expired
        402 permit2_not_yet_valid
        402 permit2_invalid_nonce
        402 permit2_allowance_required
        402 permit2_simulation_failed
        402 upto_facilitator_mismatch
        402 invalid_batch_settlement_evm_payload_type
        402 invalid_batch_settlement_evm_channel_id_invalid
        402 invalid_batch_settlement_evm_channel_id_mismatch
        402 invalid_batch_settlement_evm_receiver_mismatch
        402 invalid_batch_settlement_evm_receiver_authorizer_mismatch
        402 invalid_batch_settlement_evm_token_mismatch
        402 invalid_batch_settlement_evm_withdraw_delay_mismatch
        402 invalid_batch_settlement_evm_withdraw_delay_out_of_range
        402 invalid_batch_settlement_evm_voucher_signature
        402 invalid_batch_settlement_evm_channel_not_found
        402 invalid_batch_settlement_evm_cumulative_amount_mismatch again
        402 invalid_batch_settlement_evm_cumulative_below_claimed again
        402 invalid_batch_settlement_evm_cumulative_exceeds_balance
        402 invalid_batch_settlement_evm_channel_busy again
        402 invalid_batch_settlement_evm_deposit_below_min_deposit
        402 invalid_batch_settlement_evm_receive_authorization_signature
        402 invalid_batch_settlement_evm_payload_authorization_valid_after
        402 invalid_batch_settlement_evm_payload_authorization_valid_before
        402 invalid_batch_settlement_evm_permit2_deadline_expired
        402 invalid_batch_settlement_evm_permit2_invalid_signature
        402 invalid_batch_settlement_evm_permit2_invalid_spender
        402 invalid_batch_settlement_evm_permit2_amount_mismatch
        402 invalid_batch_settlement_evm_eip2612_amount_mismatch
        402 invalid_batch_settlement_evm_eip6492_factory_not_allowed
        402 invalid_batch_settlement_evm_deposit_simulation_failed
        402 invalid_batch_settlement_evm_deposit_transaction_failed
        402 invalid_batch_settlement_evm_refund_no_balance
        402 invalid_batch_settlement_evm_refund_amount_invalid
        402 invalid_batch_settlement_evm_refund_transaction_failed
        429 refund_over_day_limit again
    "#]]
    .assert_eq(&table);
    let names: std::collections::BTreeSet<&str> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
    assert_eq!(names.len(), Reason::ALL.len(), "two reasons have one name");
}
