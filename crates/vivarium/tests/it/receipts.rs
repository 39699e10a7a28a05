//! `vivarium receipt verify` on files, with nobody to ask.

use alloy::primitives::{Address, keccak256};
use alloy::signers::local::PrivateKeySigner;
use pay::receipt::cose::CoseReceipt;
use pay::receipt::run::Run;
use pay::receipt::{PaidBy, SignedReceipt};
use pay::{Receipt, RequestId, Usdc};
use std::path::Path;
use std::process::Command;

fn operator() -> PrivateKeySigner {
    PrivateKeySigner::from_bytes(&keccak256(b"operator")).expect("a key")
}

/// Of a call that was charged 1,234 micro-USDC.
fn receipt(paid_by: PaidBy) -> Receipt {
    Receipt {
        agent: Address::repeat_byte(0xaa),
        chain_id: 31337,
        epoch: 3,
        request: RequestId([7; 16]),
        payer: Address::repeat_byte(0xbb),
        paid_by,
        model: [2; 32],
        adapter: [0; 32],
        run: Run::default(),
        prompt: [3; 32],
        output: [4; 32],
        prompt_tokens: 12,
        cached_tokens: 8,
        completion_tokens: 64,
        embedding_tokens: 0,
        amount: Usdc(1_234),
        issued_at: 1_795_453_200,
    }
}

/// Whether it holds, and what was said.
fn verify(dir: &Path, document: &[u8]) -> (bool, String) {
    let file = dir.join("receipt");
    std::fs::write(&file, document).expect("a file");
    let out = Command::new(env!("CARGO_BIN_EXE_vivarium"))
        .args(["receipt", "verify", file.to_str().expect("UTF-8"), "--operator", &operator().address().to_string()])
        .output()
        .expect("it runs");
    (out.status.success(), String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned())
}

#[test]
fn a_receipt_of_a_channel_shows_what_that_was_charged_and_a_sum_that_cannot_be_is_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let of = |charged| receipt(PaidBy::Voucher { channel: [6; 32], charged: Usdc(charged) });
    let signed = of(5_678).sign(&operator()).expect("signed");
    let cose = CoseReceipt {
        receipt: signed.receipt.clone(),
        operator: operator().address(),
        signature: signed.receipt.sign_cose(&operator()).expect("signed"),
    };
    let line = format!("channel     0x{}, charged 0.005678 USDC in all with this call", "06".repeat(32));
    for document in [signed.to_json().into_bytes(), cose.to_bytes()] {
        let (holds, said) = verify(dir.path(), &document);
        assert!(holds && said.contains(&line) && said.contains("paid        0.001234 USDC"), "{said}");
    }
    // The operator's own signature makes no sum of less than its part.
    let lie = of(1_233);
    let mut signature = [0; 65];
    let by_hand = alloy::signers::SignerSync::sign_hash_sync(&operator(), &lie.digest()).expect("signed");
    signature.copy_from_slice(&by_hand.as_bytes());
    let lie = SignedReceipt { receipt: lie, signature };
    let (holds, said) = verify(dir.path(), lie.to_json().as_bytes());
    assert!(!holds && said.contains("that cannot be"), "{said}");
    let raised = signed.to_json().replace("5678", "9999");
    assert!(!verify(dir.path(), raised.as_bytes()).0, "altered after signing");

    let alone = receipt(PaidBy::Authorization { nonce: [1; 32], transaction: [5; 32] });
    let (holds, said) = verify(dir.path(), alone.sign(&operator()).expect("signed").to_json().as_bytes());
    assert!(holds && !said.contains("channel"), "{said}");
}
