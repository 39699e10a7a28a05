//! Every parser of what strangers send, on bytes that were once right: no panic, no quadratic time, and what is taken
//! is taken again after it was printed. Deterministic: a failure names its seed.

#[path = "../../../../tests/fuzz.rs"]
pub mod changes;

use alloy::primitives::{Address, B256, Bytes, U256, keccak256};
use alloy::signers::{SignerSync, local::PrivateKeySigner};
use changes::Chance;
use http::{HeaderMap, HeaderValue};
use pay::facilitator::api::{Asked, Desk};
use pay::receipt::PaidBy;
use pay::receipt::cose::CoseReceipt;
use pay::receipt::run::Run;
use pay::scheme::channel::{COLLECTOR_PERMIT2, ChannelDomain, ChannelId, server as channel};
use pay::scheme::exact::{Domain, EXACT, client as exact_client, server as exact};
use pay::scheme::signature::{Counterfactual, NotTaken, first, of_deployed};
use pay::scheme::upto::{Permit2Domain, UPTO, client as permit2_client, server as upto};
use pay::seller::identifier::{self, IDEMPOTENCY_KEY, IDENTIFIER};
use pay::wire::{
    HEADER_BYTES_MAX, PaymentPayload, PaymentRequired, PaymentRequirements, SettlementResponse, amount, decode_header,
    encode_header, parse_json,
};
use pay::{Receipt, RequestId, Usdc};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicU64, Ordering};

/// When the recorded deposit still was executable.
const NOW: u64 = 1_795_453_700;
const CHAIN_ID: u64 = 84532;
/// Pays in the recorded exchanges: anvil's second development key.
const PAYER: &str = "59c6995e998f97a5a0044966f0945389dc9e86dae88c7a8412f4603b6b78690d";

/// Enough to find what a day of it found; ten million with VIVARIUM_DEEP=1.
fn runs() -> u64 {
    changes::runs(20_000, 10_000_000)
}

/// One input from each seed. No input knows of another: as many at once as there are cores.
fn each(one: impl Fn(u64, &mut Chance) + Sync) {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let work = |first: usize| (0..runs()).skip(first).step_by(threads).for_each(|seed| one(seed, &mut Chance(seed)));
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|first| scope.spawn(move || work(first))).collect();
        for worker in workers {
            worker.join().unwrap_or_else(|broken| std::panic::resume_unwind(broken));
        }
    });
}

/// What happened how often, in all threads.
#[derive(Default)]
struct Count(AtomicU64);

impl Count {
    fn add(&self, happened: bool) {
        self.0.fetch_add(u64::from(happened), Ordering::Relaxed);
    }

    fn sum(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

fn payer() -> PrivateKeySigner {
    PAYER.parse().unwrap()
}

/// An offer to be paid by Permit2.
fn by_permit2(scheme: &str) -> PaymentRequirements {
    let extra = json!({
        "name": "USD Coin", "version": "2", "assetTransferMethod": "permit2",
        "facilitatorAddress": Address::repeat_byte(0xfa),
    });
    let places = (Address::repeat_byte(1), Address::repeat_byte(0x77));
    PaymentRequirements::new((scheme, &format!("eip155:{CHAIN_ID}")), Usdc(1_000), places, 300, extra)
}

/// `exact` for a token without EIP-3009.
fn exact_by_permit2() -> PaymentPayload {
    permit2_client::sign(&payer(), &by_permit2(EXACT), NOW, [5; 32]).unwrap()
}

/// A recorded deposit, made by Permit2, with an EIP-2612 permission for it.
fn deposit_by_permit2() -> PaymentPayload {
    let is_deposit = |json: &Value| json.pointer("/payload/type").is_some_and(|kind| kind == "deposit");
    let mut json = recorded().into_iter().find(is_deposit).unwrap();
    let at = |path: &str| json.pointer(path).unwrap().as_str().unwrap().to_owned();
    let token = at("/payload/channelConfig/token");
    let channel: B256 = at("/payload/voucher/channelId").parse().unwrap();
    let amount: u128 = at("/payload/deposit/amount").parse().unwrap();
    let (nonce, deadline) = ([6; 32], NOW + 60);
    let digest = ChannelDomain::new(CHAIN_ID).permit2_deposit_digest(
        &ChannelId(channel.0),
        token.parse::<Address>().unwrap().into_array(),
        Usdc(amount),
        &nonce,
        deadline,
    );
    let hex = |bytes: &[u8]| format!("0x{}", hex::encode(bytes));
    let signature = hex(&payer().sign_hash_sync(&digest).unwrap().as_bytes());
    json["payload"]["deposit"]["authorization"] = json!({
        "permit2Authorization": {
            "from": payer().address(),
            "permitted": { "token": token, "amount": amount.to_string() },
            "spender": COLLECTOR_PERMIT2,
            "nonce": U256::from_be_bytes(nonce).to_string(),
            "deadline": deadline.to_string(),
            "witness": { "channelId": channel },
            "signature": signature,
        }
    });
    json["extensions"] = json!({ "eip2612GasSponsoring": { "info": {
        "from": payer().address(), "asset": token, "spender": pay::scheme::permit2::PERMIT2,
        "amount": amount.to_string(), "nonce": "0", "deadline": deadline.to_string(),
        "signature": hex(&[27; 65]), "version": "1",
    } } });
    PaymentPayload::from_json(json).unwrap()
}

/// Messages of the recorded exchanges, and of what was not recorded.
fn seeds() -> Vec<Value> {
    let mut seeds = recorded();
    let mut named = exact_by_permit2();
    named.extensions = Some(json!({ IDENTIFIER: { "info": { "required": false, "id": "pay_0123456789abcdef" } } }));
    seeds.extend([named.to_json(), deposit_by_permit2().to_json()]);
    seeds
}

/// Payments, offers and settlements of all three schemes.
fn recorded() -> Vec<Value> {
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/");
    let mut seeds = Vec::new();
    for name in ["batch-settlement.json", "upto.json", "exact-paid.json", "exact-no-funds.json"] {
        let json: Value = serde_json::from_slice(&std::fs::read(format!("{golden}{name}")).unwrap()).unwrap();
        collect(&json, &mut seeds);
    }
    assert!(seeds.len() > 15, "{}", seeds.len());
    seeds
}

fn collect(json: &Value, seeds: &mut Vec<Value>) {
    match json {
        Value::Object(fields) => {
            let is_message = fields.contains_key("x402Version") || fields.contains_key("success");
            if is_message {
                seeds.push(json.clone());
            }
            fields.values().for_each(|value| collect(value, seeds));
        }
        Value::Array(items) => items.iter().for_each(|value| collect(value, seeds)),
        _ => {}
    }
}

const TOKENS: [&str; 24] = [
    "0",
    "1",
    "-1",
    "1e3",
    "340282366920938463463374607431768211456",
    "null",
    "true",
    "\"\"",
    "{}",
    "[]",
    "0x",
    "0X00",
    "\\u0000",
    "\"payload\":",
    "\"accepted\":",
    "\"amount\":\"1\",",
    "}",
    "]",
    ",",
    "\u{feff}",
    "é",
    "NaN",
    "\"type\":\"refund\"",
    "115792089237316195423570985008687907853269984665640564039457584007913129639936",
];

fn mutate(bytes: &mut Vec<u8>, chance: &mut Chance) {
    changes::mutate(bytes, chance, &TOKENS, 40);
}

/// Every seed is what its parser takes and its scheme verifies: what is changed was once right.
#[test]
fn the_seeds_by_permit2_verify() {
    let offer = |payment: &PaymentPayload| PaymentRequirements::from_json(payment.accepted.clone()).unwrap();
    let domain = Permit2Domain { chain_id: CHAIN_ID };
    let exact = exact_by_permit2();
    assert!(upto::verify(domain, &exact, &offer(&exact), |_, _| Some(NOW)).unwrap().is_signed_by_key);
    let deposit = deposit_by_permit2();
    let token = Domain::of(&offer(&deposit)).unwrap();
    let found = channel::verify(&ChannelDomain::new(CHAIN_ID), &token, &deposit, &offer(&deposit), NOW).unwrap();
    let channel::VoucherKind::Deposit(found) = found.kind else { panic!("{found:?}") };
    assert!(found.is_signed_by_key && found.collector() == COLLECTOR_PERMIT2);
}

#[test]
fn strangers_bytes_break_no_parser() {
    let seeds: Vec<Vec<u8>> = seeds().iter().map(|seed| seed.to_string().into_bytes()).collect();
    let channels = ChannelDomain::new(CHAIN_ID);
    let token = Domain::new("USD Coin", "2", CHAIN_ID, Address::repeat_byte(1));
    let (read, verified, nameless) = (Count::default(), Count::default(), HeaderMap::new());
    each(|seed, chance| {
        let mut bytes = seeds[chance.below(seeds.len())].clone();
        // One in thirty-two is left as it was: the parsers must take that.
        if seed % 32 != 0 {
            mutate(&mut bytes, chance);
        }
        let Ok(json) = parse_json(&bytes) else { return };
        if let Ok(payment) = PaymentPayload::from_json(json.clone()) {
            read.add(true);
            assert_eq!(PaymentPayload::from_header(&payment.to_header()), Ok(payment.clone()), "seed {seed}");
            // A name or none or a refusal, the same each time.
            assert_eq!(identifier::of(&nameless, &payment), identifier::of(&nameless, &payment), "seed {seed}");
            if let Ok(offer) = PaymentRequirements::from_json(payment.accepted.clone()) {
                assert_eq!(offer.json(), &payment.accepted, "seed {seed}: echoed untouched");
                verified.add(channel::verify(&channels, &token, &payment, &offer, NOW).is_ok());
                let domain = Permit2Domain { chain_id: CHAIN_ID };
                verified.add(upto::verify(domain, &payment, &offer, |_, _| Some(NOW)).is_ok());
                verified.add(exact::verify(&payment, &offer, NOW).is_ok());
            }
        }
        if let Ok(offer) = PaymentRequired::from_json(json.clone()) {
            assert_eq!(PaymentRequired::from_header(&offer.to_header()), Ok(offer), "seed {seed}");
        }
        if let Ok(settlement) = SettlementResponse::from_json(json) {
            assert_eq!(SettlementResponse::from_header(&settlement.to_header()), Ok(settlement), "seed {seed}");
        }
    });
    let (read, verified) = (read.sum(), verified.sum());
    assert!(read > runs() / 20 && verified > runs() / 200, "{read} payments read, {verified} verified");
}

/// Bodies of `/verify` and `/settle`.
#[test]
fn strangers_bodies_break_no_facilitator() {
    let desk =
        Desk { chain_id: CHAIN_ID, tokens: vec![Address::repeat_byte(1)], facilitator: Address::repeat_byte(0xfa) };
    let with = |mut payment: PaymentPayload| {
        payment.resource = None;
        let requirements = PaymentRequirements::from_json(payment.accepted.clone()).unwrap();
        Asked { payment, requirements }
    };
    let plain = PaymentRequirements::new(
        (EXACT, &format!("eip155:{CHAIN_ID}")),
        Usdc(1_000),
        (Address::repeat_byte(1), Address::repeat_byte(0x77)),
        300,
        json!({ "name": "USD Coin", "version": "2" }),
    );
    let seeds = [
        with(exact_client::sign(&payer(), &plain, NOW, B256::repeat_byte(9)).unwrap()),
        with(exact_by_permit2()),
        with(permit2_client::sign(&payer(), &by_permit2(UPTO), NOW, [5; 32]).unwrap()),
        with(deposit_by_permit2()),
    ];
    // Three are settled here; of a channel nothing is.
    let taken: Vec<bool> = seeds.iter().map(|asked| desk.check(asked, NOW, 1).is_ok()).collect();
    assert_eq!(taken, [true, true, true, false]);
    let seeds: Vec<Vec<u8>> = seeds.iter().map(|asked| asked.to_body().to_string().into_bytes()).collect();
    let (read, settled) = (Count::default(), Count::default());
    each(|seed, chance| {
        let mut bytes = seeds[chance.below(seeds.len())].clone();
        if seed % 32 != 0 {
            mutate(&mut bytes, chance);
        }
        let Ok(asked) = Asked::from_body(&bytes) else { return };
        read.add(true);
        assert_eq!(Asked::from_body(asked.to_body().to_string().as_bytes()).as_ref(), Ok(&asked), "seed {seed}");
        let Ok(job) = desk.check(&asked, NOW, 7) else { return };
        settled.add(true);
        // Whatever was changed: it moves what was asked for, to whom that names, in a token that is on the list.
        let (found, wanted) = (&job.settlement, &asked.requirements);
        assert!(found.amount == wanted.amount() && job.pay_to() == wanted.pay_to(), "seed {seed}");
        let permitted = PaymentRequirements::from_json(asked.payment.accepted.clone()).unwrap();
        assert!(
            found.amount <= permitted.amount() && job.pay_to() == permitted.pay_to(),
            "seed {seed}: more than signed"
        );
        assert!(desk.tokens.contains(&found.token.into()), "seed {seed}");
    });
    let (read, settled) = (read.sum(), settled.sum());
    assert!(read > runs() / 20 && settled > runs() / 100, "{read} bodies read, {settled} to be settled");
}

/// A request's name, by extension and by header: what is taken is of the form that is promised, and one name is one
/// digest whichever way it comes.
#[test]
fn strangers_names_are_of_one_form() {
    let taken = Count::default();
    let payment = |id: Value| PaymentPayload {
        payload: json!({}),
        resource: None,
        accepted: json!({}),
        extensions: Some(json!({ IDENTIFIER: { "info": { "required": false, "id": id } } })),
    };
    let (nameless, nobodys) = (HeaderMap::new(), payment(json!(null)));
    let unnamed = PaymentPayload { extensions: None, ..nobodys };
    each(|seed, chance| {
        let mut bytes = b"pay_0123456789abcdef-ABCDEFGHIJKLMNOPQRSTUVWXYZ"[..16 + chance.below(31)].to_vec();
        bytes = bytes.repeat(1 + chance.below(8));
        if seed % 8 != 0 {
            mutate(&mut bytes, chance);
        }
        let by_header = HeaderValue::from_bytes(&bytes).ok().map(|value| {
            let headers = HeaderMap::from_iter([(IDEMPOTENCY_KEY, value)]);
            (identifier::of(&headers, &unnamed), headers)
        });
        if let Some((Ok(found), _)) = &by_header {
            assert!(found.is_some() && (1..=255).contains(&bytes.len()), "seed {seed}");
        }
        let Ok(text) = String::from_utf8(bytes) else { return };
        let payment = payment(json!(text));
        let Ok(by_extension) = identifier::of(&nameless, &payment) else { return };
        taken.add(true);
        let is_plain = text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        assert!(is_plain && (16..=128).contains(&text.len()) && by_extension.is_some(), "seed {seed}");
        let (by_header, headers) = by_header.unwrap();
        assert_eq!(by_header.as_ref(), Ok(&by_extension), "seed {seed}");
        assert_eq!(identifier::of(&headers, &payment).as_ref(), Ok(&by_extension), "seed {seed}");
    });
    assert!(taken.sum() > runs() / 10, "{} taken", taken.sum());
}

/// ERC-6492 signatures: what is read is read again, only its own factory makes it taken, and a contract that exists is
/// asked about what was wrapped.
#[test]
fn strangers_signatures_name_one_factory() {
    let factory = Address::repeat_byte(0xfa);
    let seed_of = |calldata: usize, inner: usize| {
        let (calldata, inner) = (Bytes::from(vec![3; calldata]), Bytes::from(vec![9; inner]));
        Counterfactual { factory, calldata, inner }.to_bytes()
    };
    let seeds = [seed_of(0, 0), seed_of(4, 65), seed_of(100, 66), seed_of(1_500, 600), vec![9; 65]];
    let mark = &seeds[0][seeds[0].len() - 32..];
    let read = Count::default();
    each(|seed, chance| {
        let mut bytes = seeds[chance.below(seeds.len())].clone();
        if seed % 32 != 0 {
            mutate(&mut bytes, chance);
            // Most changes would break the mark or move it: every other time it is put where it was.
            if seed % 2 == 0 && !bytes.ends_with(mark) {
                bytes.extend_from_slice(mark);
            }
        }
        assert_eq!(first(&bytes, true, &[]), Ok(None), "seed {seed}");
        let Some(found) = Counterfactual::read(&bytes) else {
            assert_eq!(first(&bytes, false, &[factory]), Err(NotTaken::NoContract), "seed {seed}");
            assert_eq!(of_deployed(&bytes), bytes, "seed {seed}");
            return;
        };
        read.add(true);
        assert!(found.calldata.len() + found.inner.len() <= 2 * bytes.len(), "seed {seed}: more than came");
        assert_eq!(Counterfactual::read(&found.to_bytes()).as_ref(), Some(&found), "seed {seed}");
        assert_eq!(of_deployed(&bytes), found.inner, "seed {seed}");
        let others = [Address::ZERO, Address::repeat_byte(0xfb)];
        assert_eq!(first(&bytes, false, &others), Err(NotTaken::Factory(found.factory)), "seed {seed}");
        assert_eq!(first(&bytes, false, &[found.factory]), Ok(Some(found)), "seed {seed}");
    });
    assert!(read.sum() > runs() / 20, "{} read", read.sum());
}

/// Receipts as COSE: what is taken is a receipt that was signed, to the byte.
#[test]
fn strangers_receipts_are_those_that_were_signed() {
    let operator = PrivateKeySigner::from_bytes(&keccak256(b"operator")).unwrap();
    let receipt = Receipt {
        agent: Address::repeat_byte(0xaa),
        chain_id: CHAIN_ID,
        epoch: 3,
        request: RequestId([7; 16]),
        payer: Address::repeat_byte(0xbb),
        paid_by: PaidBy::Authorization { nonce: [1; 32], transaction: [5; 32] },
        model: [2; 32],
        adapter: [0; 32],
        run: Run::default(),
        prompt: [3; 32],
        output: [4; 32],
        prompt_tokens: 12,
        cached_tokens: 8,
        completion_tokens: 24,
        embedding_tokens: 0,
        amount: Usdc(1_234),
        issued_at: NOW,
    };
    let of_vectors = Receipt {
        prompt_tokens: 0,
        cached_tokens: 0,
        completion_tokens: 0,
        embedding_tokens: 70_000,
        amount: Usdc(u128::MAX),
        ..receipt.clone()
    };
    let paid_by = PaidBy::Voucher { channel: [6; 32], charged: Usdc(u128::from(u64::MAX) + 1) };
    let on_channel = Receipt { paid_by, ..receipt.clone() };
    let seeds = [receipt, of_vectors, on_channel].map(|receipt| {
        let signature = receipt.sign_cose(&operator).unwrap();
        CoseReceipt { receipt, operator: operator.address(), signature }.to_bytes()
    });
    let taken = Count::default();
    each(|seed, chance| {
        let mut bytes = seeds[chance.below(seeds.len())].clone();
        if seed % 64 != 0 {
            changes::mutate(&mut bytes, chance, &CBOR, 40);
        }
        let Ok(found) = CoseReceipt::from_bytes(&bytes) else { return };
        taken.add(true);
        assert!(found.to_bytes() == bytes && seeds.contains(&bytes), "seed {seed}");
    });
    assert!(taken.sum() >= runs() / 64, "{} taken", taken.sum());
}

/// Heads of CBOR that say more than comes: lengths of 64 bits, endless things, tags, nesting, numbers in long forms.
const CBOR: [&[u8]; 12] = [
    &[0x5b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
    &[0x9b, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
    &[0xbb, 0x00, 0x00, 0x00, 0x01, 0x00, 0x00, 0x00, 0x00],
    &[0x5f],
    &[0x9f],
    &[0xbf],
    &[0xff],
    &[0xc2, 0x41, 0x00],
    &[0xd2, 0x84],
    &[0x81; 40],
    &[0x18, 0x00],
    &[0xfb, 0x7f, 0xf8, 0, 0, 0, 0, 0, 0],
];

#[test]
fn strangers_headers_break_no_parser() {
    let seeds: Vec<String> = seeds().iter().map(encode_header).collect();
    each(|seed, chance| {
        let mut bytes = seeds[chance.below(seeds.len())].clone().into_bytes();
        mutate(&mut bytes, chance);
        let Ok(text) = String::from_utf8(bytes) else { return };
        if let Ok(json) = decode_header(&text) {
            // One header, one meaning: standard base64 has one form of the same bytes.
            assert!(text.len() <= HEADER_BYTES_MAX && parse_json(json.to_string().as_bytes()).is_ok(), "seed {seed}");
        }
    });
    assert!(decode_header(&"A".repeat(HEADER_BYTES_MAX + 4)).is_err());
}

#[test]
fn strangers_amounts_have_one_form() {
    each(|seed, chance| {
        let value = u128::from(chance.draw()) << chance.below(65) | u128::from(chance.draw());
        let mut text = value.to_string().into_bytes();
        assert_eq!(amount(std::str::from_utf8(&text).unwrap()).unwrap().micro(), value);
        mutate(&mut text, chance);
        let Ok(text) = String::from_utf8(text) else { return };
        if let Ok(read) = amount(&text) {
            assert_eq!(read.micro().to_string(), text, "seed {seed}");
        }
    });
    for wrong in
        ["", "00", "01", "+1", "-0", "1.0", "1e3", " 1", "1 ", "0x1", "１", "340282366920938463463374607431768211456"]
    {
        assert!(amount(wrong).is_err(), "{wrong:?}");
    }
    assert_eq!(amount("340282366920938463463374607431768211455").unwrap().micro(), u128::MAX);
}
