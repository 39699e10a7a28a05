//! Vouchers verified and made durable a second, from the decoded voucher to the durable journal record; without HTTP and
//! JSON.
//!
//! Threads verify; one folds the book and appends; the journal commits in groups. The clock stops when the last record
//! is durable. For comparison: what one thread recovers when it does nothing else.

use super::super::report::Report;
use alloy::primitives::keccak256;
use alloy::signers::local::PrivateKeySigner;
use anyhow::Result;
use journal::{Journal, Options};
use pay::book::channels::{CallReservation, ChannelAsk, ChannelDecision, ChannelInput, ChannelLimits};
use pay::book::{BookInput, ChannelBook, Limits};
use pay::scheme::channel::client::sign_voucher;
use pay::scheme::channel::server::verify_voucher;
use pay::scheme::channel::{ChannelConfig, ChannelDomain, ChannelId, ChannelState, HeldVoucher};
use pay::{BookOutput, Usdc};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::mpsc;
use std::time::Instant;

const CEILING: Usdc = Usdc(100);
const NOW: u64 = 1_800_000_000;
/// Channels that take turns.
const CHANNELS: usize = 100;
/// Vouchers that go from a verifying thread to the fold at a time.
const BATCH: usize = 64;
/// Recoveries of the comparison.
const ALONE_MAX: usize = 20_000;

/// The journal is made in the empty folder `dir`.
pub fn measure(report: &mut Report, (count, threads): (u32, u32), dir: &Path) -> Result<()> {
    let (count, threads) = (usize::try_from(count)?, usize::try_from(threads)?);
    let domain = ChannelDomain::new(31337);
    let (configs, vouchers) = prepare(&domain, count);
    let started = Instant::now();
    let alone = vouchers.len().min(ALONE_MAX);
    for (id, voucher) in &vouchers[..alone] {
        verify_voucher(&domain, id, &configs[id], voucher).expect("it was signed so");
    }
    let alone_rate = rate(alone, started);

    let mut book = open(&configs, count);
    let mut log = Journal::create(dir, Options::default(), Box::new(|_| {}))?;
    let started = Instant::now();
    let (send, receive) = mpsc::sync_channel::<Vec<(ChannelId, HeldVoucher)>>(threads * 4);
    std::thread::scope(|scope| {
        // Round robin by channel, so that each channel's vouchers stay in order.
        let mut lanes: Vec<Vec<(ChannelId, HeldVoucher)>> = vec![Vec::new(); threads];
        for (at, voucher) in vouchers.into_iter().enumerate() {
            lanes[at % CHANNELS % threads].push(voucher);
        }
        for lane in lanes {
            let (send, domain, configs) = (send.clone(), &domain, &configs);
            scope.spawn(move || {
                for batch in lane.chunks(BATCH) {
                    for (id, voucher) in batch {
                        verify_voucher(domain, id, &configs[id], voucher).expect("it was signed so");
                    }
                    send.send(batch.to_vec()).expect("the fold waits for all");
                }
            });
        }
        drop(send);
        for batch in receive {
            for (id, voucher) in batch {
                let input = BookInput::Channel(ChannelInput::Reserved(reserve(&book, id, voucher)));
                let payload = borsh::to_vec(&input).expect("a Vec takes all bytes");
                let outputs: Vec<BookOutput> = book.apply(input);
                let digest = Sha256::digest(borsh::to_vec(&outputs).expect("a Vec takes all bytes")).into();
                log.append(1, NOW, digest, &payload).expect("the disk takes it");
            }
        }
    });
    log.sync()?;
    let all_rate = rate(count, started);
    book.channels().check().expect("the book balances");
    report.row(
        "vouchers verified and made durable",
        format!("{all_rate:.0}/s"),
        format!(
            "recoveries alone, one thread: {alone_rate:.0}/s; ratio {:.2} with {threads} verifying threads",
            all_rate / alone_rate
        ),
    );
    Ok(())
}

fn rate(count: usize, started: Instant) -> f64 {
    count as f64 / started.elapsed().as_secs_f64()
}

type Prepared = (BTreeMap<ChannelId, ChannelConfig>, Vec<(ChannelId, HeldVoucher)>);

/// Vouchers in the order in which they come: one of each channel in turn.
fn prepare(domain: &ChannelDomain, count: usize) -> Prepared {
    let signers: Vec<(PrivateKeySigner, ChannelId, ChannelConfig)> = (0..CHANNELS)
        .map(|n| {
            let signer = PrivateKeySigner::from_bytes(&keccak256(n.to_be_bytes())).expect("a key");
            let address = signer.address().into_array();
            let config = ChannelConfig {
                payer: address,
                payer_authorizer: address,
                receiver: [7; 20],
                receiver_authorizer: [7; 20],
                token: [8; 20],
                withdraw_delay_secs: 900,
                salt: [0; 32],
            };
            (signer, domain.channel_id(&config), config)
        })
        .collect();
    let vouchers = (0..count)
        .map(|at| {
            let (signer, id, _) = &signers[at % CHANNELS];
            let turn = u128::try_from(at / CHANNELS + 1).expect("small");
            (*id, sign_voucher(signer, domain, id, Usdc(CEILING.micro() * turn)).expect("a key signs"))
        })
        .collect();
    (signers.into_iter().map(|(_, id, config)| (id, config)).collect(), vouchers)
}

fn open(configs: &BTreeMap<ChannelId, ChannelConfig>, count: usize) -> ChannelBook {
    let most = u32::try_from(count).unwrap_or(u32::MAX);
    // None of the calls ends here.
    let limits = ChannelLimits {
        open_per_channel_max: most,
        open_per_payer_max: most,
        open_max: most,
        calls_max: most,
        ..ChannelLimits::default()
    };
    let mut book = ChannelBook::with_channels(Limits::default(), limits);
    for (id, config) in configs {
        let state = ChannelState { balance: Usdc(u128::from(u64::MAX)), block: 1, ..ChannelState::default() };
        let seen = ChannelInput::Seen { channel: *id, config: config.clone(), state, at: NOW };
        book.apply(BookInput::Channel(seen));
    }
    book
}

/// What a seller does with a verified voucher: decides and reserves.
fn reserve(book: &ChannelBook, channel: ChannelId, voucher: HeldVoucher) -> CallReservation {
    let mut ask = ChannelAsk {
        channel,
        max: voucher.max,
        ceiling: CEILING,
        deposit: None,
        route: "POST /v1/chat/completions".into(),
        body_digest: [0; 32],
        fresh: false,
    };
    ask.body_digest[..16].copy_from_slice(&voucher.max.micro().to_be_bytes());
    let ChannelDecision::New { request } = book.channels().decide(&ask, NOW) else { panic!("in order, and enough") };
    CallReservation {
        request,
        channel,
        voucher,
        accepted: CEILING,
        ceiling: CEILING,
        route: ask.route,
        body_digest: ask.body_digest,
        identifier: None,
        prompt_tokens: 100,
        max_tokens: 256,
        at: NOW,
    }
}
