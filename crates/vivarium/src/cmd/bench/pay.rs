//! `vivarium bench pay`: what a payment costs, in time, transactions and gas.
//!
//! No model and no host is in it: a shop that does what a node does for a paid request ([`shop`]), its journal on this
//! machine's disk, a development chain, and as peers the official Express server and a Rust server with `x402-axum`, all
//! on loopback, in one run.

mod client;
mod devchain;
mod peer;
mod shop;
mod vouchers;

use super::report::{Report, cpu_time, micros_each, millis, millis_between, percentile};
use alloy::primitives::Address;
use alloy::signers::local::PrivateKeySigner;
use anyhow::{Context, Result, ensure};
use client::{Customer, Took};
use devchain::{CHAIN_ID, DevChain, RECEIVER, Used};
use pay::Usdc;
use pay::buyer::{Buyer, BuyerPolicy, ChannelPolicy, Schemes};
use peer::{Axum, Express, Facilitator};
use serde_json::{Value, json};
use shop::{FREE, PAID, PRICE, Shop};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use vivarium::world::{Programs, anvil};

/// Figures of the payment layer, with other servers beside them
#[derive(clap::Args)]
pub struct Flags {
    /// Vouchers to verify and make durable
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..))]
    vouchers: u32,
    /// Threads that verify them
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=256))]
    threads: u32,
    /// Streams of each kind for the time to the first byte
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..))]
    streams: u32,
    /// Calls on one channel
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..))]
    calls: u32,
    /// Payments by `exact`
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..))]
    exact: u32,
    /// Channels that are opened, used once and claimed from
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..))]
    channels: u32,
    /// Calls of one client, first with ours, then with a peer
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..))]
    peer_calls: u32,
    /// Seconds of each rate of the unpaid flood
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=60))]
    flood_secs: u32,
    /// Highest rate of the unpaid flood, requests a second
    #[arg(long, default_value_t = 16_000, value_parser = clap::value_parser!(u32).range(1..=64_000))]
    flood_max: u32,
    /// Writes the figures into docs/benchmarks.md
    #[arg(long)]
    write: bool,
}

/// Requests on their way at once.
const AT_ONCE: u32 = 16;
/// First rate of the flood; doubled until paid calls suffer.
const FLOOD_FIRST: u32 = 250;
/// Unpaid requests on their way at once: over it the flood waits, and its real rate is printed.
const FLOOD_AT_ONCE: usize = 256;
/// Looks at paid calls without a flood; the slowest counts.
const QUIET_TIMES: u32 = 3;
/// How much longer a paid call's p99 may take before the flood counts as felt.
const FELT: f64 = 1.2;

pub async fn run(flags: Flags) -> Result<()> {
    let project = Programs::project()?;
    let scratch = Scratch::create()?;
    let mut report = Report::new("pay");
    vouchers::measure(&mut report, (flags.vouchers, flags.threads), &scratch.folder("vouchers")?)?;
    let chain = Arc::new(DevChain::start(&project, anvil::binary(&project)?).await?);
    let shop = Shop::open(Arc::clone(&chain), &scratch.folder("shop")?).await?;
    let customer = Customer::of(format!("{}{PAID}", shop.url), &chain).await?;
    first_byte(&mut report, &flags, &shop, &customer).await?;
    one_channel(&mut report, &flags, (&shop, &chain), &customer).await?;
    unpaid(&mut report, &flags, &shop, &customer).await?;
    exact(&mut report, &flags, &chain, &customer).await?;
    many_channels(&mut report, &flags, (&shop, &chain), &customer).await?;
    beside_express(&mut report, &flags, (&shop, &chain), &project).await?;
    beside_axum(&mut report, &flags, &chain, &customer, (&project, &scratch.folder("facilitator")?)).await?;
    flood(&mut report, &flags, &customer).await?;
    shop.claim_and_settle().await?;
    shop.close();
    if let Some(chain) = Arc::into_inner(chain) {
        chain.stop().await?;
    }
    if flags.write {
        report.write(&project.join("docs/benchmarks.md"))?;
    }
    Ok(())
}

/// A folder that is gone at the end, however that comes.
struct Scratch(PathBuf);

impl Scratch {
    fn create() -> Result<Self> {
        let dir = std::env::temp_dir().join(format!("vivarium-bench-pay-{}", std::process::id()));
        std::fs::create_dir(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        Ok(Self(dir))
    }

    fn folder(&self, name: &str) -> Result<PathBuf> {
        let dir = self.0.join(name);
        std::fs::create_dir(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        Ok(dir)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

/// Time to the first byte of a stream: free, by voucher, by `exact` and by `upto` in turn, the payments signed before.
async fn first_byte(report: &mut Report, flags: &Flags, shop: &Shop, customer: &Customer) -> Result<()> {
    let mut channel = customer.channel(0).await?;
    channel.open(flags.streams + 1).await?;
    shop.take_commits();
    let free = format!("{}{FREE}", shop.url);
    let mut times: [Vec<Duration>; 5] = Default::default();
    for turn in 0..flags.streams {
        let voucher = channel.payment(0)?;
        let exact = customer.exact().await?;
        let upto = customer.upto().await?;
        let paid = &customer.url;
        let requests = [(&free, None), (paid, Some(&voucher)), (paid, Some(&exact)), (paid, Some(&upto)), (paid, None)];
        for (times, (url, payment)) in times.iter_mut().zip(requests) {
            let body = format!("{{\"turn\":{turn}}}");
            times.push(customer.call(url, payment.map(String::as_str), body).await?.first);
        }
    }
    let commits = shop.take_commits();
    let [free, voucher, exact, upto, quote] = &times;
    let both = |of: &[Duration]| format!("{} / {}", millis(percentile(of, 50)), millis(percentile(of, 99)));
    let minus = |of: &[Duration]| {
        let at = |percent| millis_between(percentile(of, percent), percentile(free, percent));
        format!("{} / {}", at(50), at(99))
    };
    let streams = flags.streams;
    report.row("time to first byte, unpaid, p50 / p99", both(free), format!("{streams} streams of each kind in turn"));
    let goal = percentile(&commits, 99) + Duration::from_millis(1);
    let over = percentile(voucher, 99).saturating_sub(percentile(free, 99));
    let commit = format!(
        "a journal commit took {} in the same run; goal: p99 at most {} (nothing is computed meanwhile): {}",
        both(&commits),
        millis(goal),
        if over <= goal { "met" } else { "**not met**" }
    );
    report.row("paid minus unpaid, a voucher, p50 / p99", minus(voucher), commit);
    report.row("paid minus unpaid, `exact` of a known payer, p50 / p99", minus(exact), "settled before the last byte");
    let beside = "settled for what was made, before the last byte";
    report.row("paid minus unpaid, `upto` of a known payer, p50 / p99", minus(upto), beside);
    report.row("the 402 before it, for clients that ask first, p50 / p99", both(quote), "one round trip more");
    // So that the next claim is the next channel's alone.
    shop.claim_and_settle().await
}

/// Calls a second on one channel, and what they cost on chain.
async fn one_channel(
    report: &mut Report,
    flags: &Flags,
    (shop, chain): (&Shop, &DevChain),
    customer: &Customer,
) -> Result<()> {
    let height = chain.height().await?;
    let mut channel = customer.channel(1).await?;
    // Whatever overtakes a call that the machine leaves lying, its voucher has room for: all of them may come before it.
    let calls = flags.calls;
    channel.open(3 * calls + 1).await?;
    let mut signed = || (0..calls).map(|_| channel.payment(calls)).collect::<Result<Vec<_>>>();
    let (over_http, without) = (signed()?, signed()?);
    let paid = rate(customer, &customer.url, over_http.into_iter().map(Some).collect()).await?;
    let none = (0..flags.calls).map(|_| None).collect();
    let free = rate(customer, &format!("{}{FREE}", shop.url), none).await?;
    let (paid_rate, free_rate) = (paid.a_second(), free.a_second());
    let beside = format!("unpaid, same route and client: {free_rate:.0}/s; ratio {:.2}", paid_rate / free_rate);
    report.row("paid calls over HTTP on one channel", format!("{paid_rate:.0}/s"), beside);
    report.row(
        "CPU time of a payment by voucher, over HTTP",
        micros_each(paid.cpu.saturating_sub(free.cpu), flags.calls),
        format!(
            "a paid call {}, an unpaid one {}, client and server together",
            micros_each(paid.cpu, flags.calls),
            micros_each(free.cpu, flags.calls)
        ),
    );
    let without = shop.sold(without, AT_ONCE as usize).await?;
    report.row(
        "the same without HTTP",
        micros_each(without, calls),
        "from parsed head to the last byte, journal included; goal: less than 200 µs",
    );
    shop.claim_and_settle().await?;
    let Used { transactions, gas } = chain.used_since(height).await?;
    let what = format!("transactions and gas of {} calls on one channel", 2 * calls + 1);
    report.row(&what, format!("{transactions}, {gas}"), "deposit, claim, settlement; goal: at most 3 for 10,000 calls");
    Ok(())
}

/// What so many calls took.
struct Spent {
    calls: usize,
    wall: Duration,
    /// Of this process, which is client and server.
    cpu: Duration,
}

impl Spent {
    fn a_second(&self) -> f64 {
        self.calls as f64 / self.wall.as_secs_f64()
    }
}

/// A call for each payment, [`AT_ONCE`] on their way, each answer read to its end.
async fn rate(customer: &Customer, url: &str, payments: Vec<Option<String>>) -> Result<Spent> {
    let calls = payments.len();
    let queue = Arc::new(tokio::sync::Mutex::new(payments.into_iter().enumerate()));
    let (started, cpu) = (Instant::now(), cpu_time());
    let mut workers = tokio::task::JoinSet::new();
    for _ in 0..AT_ONCE {
        let (queue, customer, url) = (Arc::clone(&queue), customer.clone(), url.to_owned());
        workers.spawn(async move {
            loop {
                let Some((turn, payment)) = queue.lock().await.next() else { return anyhow::Ok(()) };
                customer.whole(&url, payment.as_deref(), format!("{{\"call\":{turn}}}")).await?;
            }
        });
    }
    while let Some(worker) = workers.join_next().await {
        worker.context("a worker ended")??;
    }
    Ok(Spent { calls, wall: started.elapsed(), cpu: cpu_time().saturating_sub(cpu) })
}

/// What a request costs that brings no money: first without a payment, then with a forged voucher.
async fn unpaid(report: &mut Report, flags: &Flags, shop: &Shop, customer: &Customer) -> Result<()> {
    let forged = customer.channel(0).await?.forged()?;
    let records = shop.records();
    let none = shop.refused(flags.calls, None).await?;
    let forged = shop.refused(flags.calls, Some(&forged)).await?;
    ensure!(shop.records() == records, "an unpaid request was written to disk");
    report.row(
        "CPU time of a request without a payment",
        micros_each(none, flags.calls),
        format!(
            "from parsed head to 402, nothing written; goal: less than 50 µs; with a forged voucher: {}",
            micros_each(forged, flags.calls)
        ),
    );
    Ok(())
}

async fn exact(report: &mut Report, flags: &Flags, chain: &DevChain, customer: &Customer) -> Result<()> {
    let mut payments = Vec::new();
    for _ in 0..flags.exact {
        payments.push(Some(customer.exact().await?));
    }
    let height = chain.height().await?;
    let rate = rate(customer, &customer.url, payments).await?.a_second();
    let Used { transactions, gas } = chain.used_since(height).await?;
    let each = gas / transactions.max(1);
    let beside = format!("{transactions} transactions of {each} gas, each mined at once by a development chain");
    report.row("`exact` payments, settled before the last byte", format!("{rate:.0}/s"), beside);
    Ok(())
}

async fn many_channels(
    report: &mut Report,
    flags: &Flags,
    (shop, chain): (&Shop, &DevChain),
    customer: &Customer,
) -> Result<()> {
    let height = chain.height().await?;
    for slot in 0..flags.channels {
        customer.channel(2 + slot).await?.open(1).await?;
    }
    let opened = chain.used_since(height).await?;
    let height = chain.height().await?;
    shop.claim_and_settle().await?;
    let closed = chain.used_since(height).await?;
    let count = u64::from(flags.channels);
    let figure = format!("{}, {}", opened.transactions + closed.transactions, opened.gas + closed.gas);
    let beside = format!(
        "{} a channel to open; {} a channel to claim, {} in a transaction",
        opened.gas / count,
        closed.gas / count,
        shop::CLAIM_ROWS
    );
    report.row(&format!("transactions and gas of {count} channels with a call each"), figure, beside);
    Ok(())
}

fn buyer(chain: &DevChain, key: PrivateKeySigner, pay_to: Address, schemes: Schemes) -> Buyer {
    let policy = BuyerPolicy {
        network: format!("eip155:{CHAIN_ID}"),
        asset: chain.usdc,
        pay_to,
        max_per_call: Usdc(10 * PRICE.micro()),
        max_total: Usdc::MAX,
    };
    Buyer::new(net::Client::new(), key, policy).with_schemes(schemes)
}

/// The same client, one call after the other, with ours and with the official server.
async fn beside_express(
    report: &mut Report,
    flags: &Flags,
    (shop, chain): (&Shop, &DevChain),
    project: &Path,
) -> Result<()> {
    let key = PrivateKeySigner::random();
    chain.mint(key.address(), Usdc(1_000_000_000_000)).await?;
    let schemes = Schemes::Channel(ChannelPolicy {
        deposit: Usdc(1_000_000_000),
        deposit_calls: 1,
        deposit_max: Usdc(10_000_000_000),
        withdraw_delay_secs_max: 30 * 86_400,
        slots: 1,
        lane: 0,
    });
    let mut express = Express::start(project, chain, PRICE.micro()).await?;
    let height = chain.height().await?;
    let ours = buyer(chain, key.clone(), RECEIVER, schemes);
    let ours = calls(&ours, &format!("{}{PAID}", shop.url), flags.peer_calls).await?;
    shop.claim_and_settle().await?;
    let our_gas = chain.used_since(height).await?;
    let height = chain.height().await?;
    let theirs = buyer(chain, key, peer::RECEIVER, schemes);
    let theirs = calls(&theirs, &express.url, flags.peer_calls).await?;
    express.claim().await?;
    let their_gas = chain.used_since(height).await?;
    express.stop().await?;
    let ratio = a_second(&ours) / a_second(&theirs);
    report.row(
        &format!("{} calls on one channel, one after the other, 402 and payment each", flags.peer_calls),
        format!("{:.0}/s, p99 {}", a_second(&ours), millis(percentile(&ours, 99))),
        format!(
            "official Express server: {:.0}/s, p99 {}; ours is {ratio:.1} times as fast (and durable before the first byte)",
            a_second(&theirs),
            millis(percentile(&theirs, 99))
        ),
    );
    report.row(
        "their transactions and gas",
        format!("{}, {}", our_gas.transactions, our_gas.gas),
        format!("official Express server: {}, {}", their_gas.transactions, their_gas.gas),
    );
    Ok(())
}

/// `exact`, which both speak, by one client that has signed before and waits for each answer. Theirs settles by a
/// facilitator over HTTP, the official one and then ours, and answers after that; ours settles by itself, a known payer's
/// payment before the last byte.
async fn beside_axum(
    report: &mut Report,
    flags: &Flags,
    chain: &DevChain,
    customer: &Customer,
    (project, dir): (&Path, &Path),
) -> Result<()> {
    let ours = Exact::of(&exact_calls(customer, flags.peer_calls).await?);
    let what = format!("{} calls by `exact`, one after the other", flags.peer_calls);
    let mut beside = Vec::new();
    for (name, facilitator) in [
        ("the official facilitator", Facilitator::official(project, chain).await?),
        ("`vivarium facilitator`", Facilitator::ours(dir, chain).await?),
    ] {
        let Some(axum) = Axum::start(chain, PRICE.micro(), &facilitator).await? else { continue };
        buy_credit(chain, &facilitator, flags.peer_calls).await?;
        let customer = Customer::of(axum.url.clone(), chain).await?;
        let theirs = Exact::of(&exact_calls(&customer, flags.peer_calls).await?);
        axum.stop().await?;
        facilitator.stop().await?;
        beside.push(format!("by {name} {:.0}/s, {}: ratio {:.1}", theirs.rate, theirs.first, ours.rate / theirs.rate));
    }
    let beside = match beside.as_slice() {
        [] => "x402-axum was not measured: `cargo xtask bench pay` builds it".to_owned(),
        _ => format!("x402-axum {}: {}", peer::AXUM_VERSION, beside.join("; ")),
    };
    report.row(&format!("{what}, and first byte, p50 / p99"), format!("{:.0}/s, {}", ours.rate, ours.first), beside);
    Ok(())
}

/// Enough for a settlement a call, where credit is sold.
async fn buy_credit(chain: &DevChain, facilitator: &Facilitator, calls: u32) -> Result<()> {
    let key = PrivateKeySigner::random();
    chain.mint(key.address(), Usdc(1_000_000_000)).await?;
    let buyer = buyer(chain, key, peer::OUR_FACILITATOR, Schemes::Exact);
    let url = format!("{}/credit/{}", facilitator.url, peer::RECEIVER);
    for lot in 0..=calls / 500 {
        let bought = buyer.post_json(&url, &json!({ "lot": lot })).await?;
        if bought.status == http::StatusCode::NOT_FOUND {
            return Ok(());
        }
        ensure!(bought.status.is_success(), "credit: {}", bought.status);
    }
    Ok(())
}

/// Calls a second, and the time to the first byte as text.
struct Exact {
    rate: f64,
    first: String,
}

impl Exact {
    fn of(took: &[Took]) -> Self {
        let wholes: Vec<Duration> = took.iter().map(|took| took.whole).collect();
        let firsts: Vec<Duration> = took.iter().map(|took| took.first).collect();
        let first = format!("{} / {}", millis(percentile(&firsts, 50)), millis(percentile(&firsts, 99)));
        Self { rate: a_second(&wholes), first }
    }
}

/// One call after the other, each with a payment signed before the clock runs.
async fn exact_calls(customer: &Customer, count: u32) -> Result<Vec<Took>> {
    let mut times = Vec::new();
    for turn in 0..count {
        let payment = customer.exact().await?;
        times.push(customer.call(&customer.url, Some(&payment), format!("{{\"exact\":{turn}}}")).await?);
    }
    Ok(times)
}

/// Calls a second of one client that waits for each.
fn a_second(times: &[Duration]) -> f64 {
    times.len() as f64 / times.iter().sum::<Duration>().as_secs_f64()
}

/// One call after the other; the first one, which opens the channel, is not counted.
async fn calls(buyer: &Buyer, url: &str, count: u32) -> Result<Vec<Duration>> {
    let mut times = Vec::new();
    for turn in 0..=count {
        let body: Value = json!({ "turn": turn, "cost": PRICE.micro().to_string() });
        let started = Instant::now();
        let paid = buyer.post_json(url, &body).await?;
        ensure!(paid.status.is_success(), "answered {}: {}", paid.status, String::from_utf8_lossy(&paid.body));
        if turn > 0 {
            times.push(started.elapsed());
        }
    }
    Ok(times)
}

/// Unpaid requests at doubling rates beside paid calls, until those feel it: twice, since a machine's own noise makes
/// one p99 of a few seconds jump.
async fn flood(report: &mut Report, flags: &Flags, customer: &Customer) -> Result<()> {
    let mut channel = customer.channel(u32::MAX).await?;
    channel.open(4_000_000).await?;
    let for_secs = Duration::from_secs(u64::from(flags.flood_secs));
    let mut quiet = Duration::ZERO;
    for _ in 0..QUIET_TIMES {
        quiet = quiet.max(percentile(&paid_for(customer, &mut channel, for_secs).await?, 99));
    }
    let mut asked = FLOOD_FIRST.min(flags.flood_max);
    let mut was_felt = false;
    let (is_felt, rate, p99) = loop {
        let unpaid = tokio::spawn(flood_at(customer.clone(), asked, for_secs));
        let p99 = percentile(&paid_for(customer, &mut channel, for_secs).await?, 99);
        let rate = unpaid.await.context("the flood ended")??;
        let is_felt = p99.as_secs_f64() >= FELT * quiet.as_secs_f64();
        if is_felt && !was_felt {
            was_felt = true;
            continue;
        }
        if is_felt || asked >= flags.flood_max {
            break (is_felt, rate, p99);
        }
        (asked, was_felt) = ((asked * 2).min(flags.flood_max), false);
    };
    let beside = format!("paid p99 {} quiet, {} then; client and server on the same cores", millis(quiet), millis(p99));
    let figure = if is_felt { format!("{rate:.0}/s") } else { format!("not reached at {rate:.0}/s") };
    report.row(&format!("unpaid flood at which paid p99 reaches {FELT}×"), figure, beside);
    Ok(())
}

async fn paid_for(customer: &Customer, channel: &mut client::Channel, long: Duration) -> Result<Vec<Duration>> {
    let started = Instant::now();
    let mut times = Vec::new();
    while started.elapsed() < long {
        let payment = channel.payment(0)?;
        let body = format!("{{\"beside\":{}}}", times.len());
        times.push(customer.call(&customer.url, Some(&payment), body).await?.first);
    }
    Ok(times)
}

/// Requests a second that were really answered.
async fn flood_at(customer: Customer, rate: u32, long: Duration) -> Result<f64> {
    let room = Arc::new(tokio::sync::Semaphore::new(FLOOD_AT_ONCE));
    let mut ticks = tokio::time::interval(Duration::from_millis(5));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    let (started, mut sent) = (Instant::now(), 0_u32);
    while started.elapsed() < long {
        ticks.tick().await;
        let due = (started.elapsed().as_secs_f64() * f64::from(rate)) as u32;
        while sent < due && started.elapsed() < long {
            let permit = Arc::clone(&room).acquire_owned().await?;
            let customer = customer.clone();
            tokio::spawn(async move {
                let asked = customer.whole(&customer.url, None, "{}".to_owned()).await;
                drop(permit);
                asked.ok();
            });
            sent += 1;
        }
    }
    drop(room.acquire_many(FLOOD_AT_ONCE as u32).await?);
    Ok(f64::from(sent) / started.elapsed().as_secs_f64())
}
