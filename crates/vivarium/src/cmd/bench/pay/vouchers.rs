//! Vouchers verified and made durable a second, from the decoded voucher to the durable journal record; without HTTP and
//! JSON.
//!
//! Threads verify; one folds the book and appends; the journal commits in groups. The clock stops when the last record
//! is durable. Beside it, in the same run, before and after: what libsecp256k1 recovers on as many threads that do nothing
//! else, from digests made before. Other work on the machine lengthens both alike, so their ratio says more than either.

use super::super::report::{Report, cpu_time};
use alloy::consensus::crypto::secp256k1::recover_signer;
use alloy::primitives::{B256, Signature, keccak256};
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
use std::time::{Duration, Instant};

const CEILING: Usdc = Usdc(100);
const NOW: u64 = 1_800_000_000;
/// Channels that take turns.
const CHANNELS: usize = 100;
/// Vouchers that go from a verifying thread to the fold at a time.
const BATCH: usize = 64;
/// Recoveries of the comparison, each of the two times.
const ALONE_MAX: usize = 20_000;

/// Vouchers of one thread, each of a channel in order.
type Lane = Vec<(ChannelId, HeldVoucher)>;

/// The journal is made in the empty folder `dir`.
pub fn measure(report: &mut Report, (count, threads): (u32, u32), dir: &Path) -> Result<()> {
    let (count, threads) = (usize::try_from(count)?, usize::try_from(threads)?);
    let domain = ChannelDomain::new(31337);
    let signers = signers(&domain);
    let configs: BTreeMap<ChannelId, ChannelConfig> =
        signers.iter().map(|(_, id, config)| (*id, config.clone())).collect();
    let lanes = sign(&domain, &signers, count, threads);

    let mut alone = recover(&domain, &lanes);
    let mut book = open(&configs, count);
    let mut log = Journal::create(dir, Options::default(), Box::new(|_| {}))?;
    let (started, cpu) = (Instant::now(), cpu_time());
    let (send, receive) = mpsc::sync_channel::<Lane>(threads * 4);
    std::thread::scope(|scope| {
        for lane in &lanes {
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
    let all = Spent { count, wall: started.elapsed(), cpu: cpu_time().saturating_sub(cpu) };
    book.channels().check().expect("the book balances");
    alone.add(&recover(&domain, &lanes));
    report.row(
        "vouchers verified and made durable",
        format!("{:.0}/s", all.rate()),
        format!(
            "libsecp256k1 recoveries alone, {threads} threads too: {:.0}/s; ratio {:.2}. CPU {:.1} µs each, a recovery \
             {:.1} of them: ratio {:.2}",
            alone.rate(),
            all.rate() / alone.rate(),
            all.cpu_micros(),
            alone.cpu_micros(),
            alone.cpu_micros() / all.cpu_micros()
        ),
    );
    Ok(())
}

/// What so many took.
struct Spent {
    count: usize,
    wall: Duration,
    /// Of all threads of this process.
    cpu: Duration,
}

impl Spent {
    fn add(&mut self, other: &Self) {
        self.count += other.count;
        self.wall += other.wall;
        self.cpu += other.cpu;
    }

    fn rate(&self) -> f64 {
        self.count as f64 / self.wall.as_secs_f64()
    }

    fn cpu_micros(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / self.count as f64
    }
}

/// Recovers the signers of the first vouchers of each lane, a thread a lane.
fn recover(domain: &ChannelDomain, lanes: &[Lane]) -> Spent {
    let most = (ALONE_MAX / lanes.len()).max(1);
    let signed = |(id, voucher): &(ChannelId, HeldVoucher)| {
        let signature = Signature::from_raw(&voucher.signature).expect("it was signed so");
        (signature, domain.voucher_digest(id, voucher.max))
    };
    let lanes: Vec<Vec<(Signature, B256)>> =
        lanes.iter().map(|lane| lane.iter().take(most).map(signed).collect()).collect();
    let (started, cpu) = (Instant::now(), cpu_time());
    std::thread::scope(|scope| {
        for lane in &lanes {
            scope.spawn(move || {
                for (signature, digest) in lane {
                    recover_signer(signature, *digest).expect("it was signed so");
                }
            });
        }
    });
    let count = lanes.iter().map(Vec::len).sum();
    Spent { count, wall: started.elapsed(), cpu: cpu_time().saturating_sub(cpu) }
}

type Signer = (PrivateKeySigner, ChannelId, ChannelConfig);

fn signers(domain: &ChannelDomain) -> Vec<Signer> {
    let signer = |n: usize| {
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
    };
    (0..CHANNELS).map(signer).collect()
}

/// `count` vouchers, one of each channel in turn; a channel's are all in one lane, so that they stay in order.
fn sign(domain: &ChannelDomain, signers: &[Signer], count: usize, threads: usize) -> Vec<Lane> {
    let one = |at: usize| {
        let (signer, id, _) = &signers[at % CHANNELS];
        let turn = u128::try_from(at / CHANNELS + 1).expect("small");
        (*id, sign_voucher(signer, domain, id, Usdc(CEILING.micro() * turn)).expect("a key signs"))
    };
    std::thread::scope(|scope| {
        let lane = |lane: usize| {
            let mine = (0..count).filter(move |at| at % CHANNELS % threads == lane);
            scope.spawn(move || mine.map(one).collect::<Lane>())
        };
        let signing: Vec<_> = (0..threads.min(CHANNELS)).map(lane).collect();
        signing.into_iter().map(|lane| lane.join().expect("it signs")).collect()
    })
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
        run: String::new(),
        at: NOW,
    }
}
