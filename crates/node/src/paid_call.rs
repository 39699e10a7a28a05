//! A call that is paid by `exact`, as tests tell a book of it.

use pay::book::{Delivery, Finish, Reservation, Timing};
use pay::{BookInput, RequestId, Settle, SettleExact, TransferMethod, Usdc};

pub const PRICE: Usdc = Usdc(900);

pub fn request(payer: [u8; 20], nonce: u8) -> RequestId {
    RequestId::of_payment(TransferMethod::Eip3009, &payer, &[nonce; 32])
}

/// It came `at` these chain seconds, and its payment may be mined before `valid_before`.
pub fn reserved(payer: [u8; 20], nonce: u8, at: u64, valid_before: u64) -> BookInput {
    let settlement = SettleExact {
        payer,
        value: PRICE,
        valid_after: 0,
        valid_before,
        nonce: [nonce; 32],
        signature: vec![5; 65],
        is_signed_by_key: true,
    };
    BookInput::Reserved(Reservation {
        request: request(payer, nonce),
        settlement: Settle::Exact(settlement),
        timing: Timing::AtOnce,
        route: "POST /v1/chat/completions".into(),
        body_digest: [nonce; 32],
        identifier: None,
        prompt_tokens: 11,
        max_tokens: 64,
        run: String::new(),
        at,
    })
}

/// Its answer, whole, `at` these chain seconds.
pub fn delivery(cached_tokens: u32, at: u64) -> Delivery {
    Delivery {
        cached_tokens,
        completion_tokens: 21,
        bytes: 84,
        output_digest: [9; 32],
        finish: Finish::Stop,
        at,
        confirmed: true,
    }
}
