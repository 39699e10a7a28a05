//! A birth: from a manifest and a seed sum to an agent that nobody owns.
//!
//! The same steps for `vivarium birth` and for `up`: store what the agent is, create its treasury, pay in the seed,
//! rent the first host, activate it. After `activate` the creator has no rights; [`refusals`] shows that. A birth that
//! ends before that is undone by [`abort`](abort::abort).

pub mod abort;

use super::progress::{Progress, ask};
use super::wallet::Wallet;
use abort::Unborn;
use alloy::eips::BlockId;
use alloy::primitives::{Address, B256, Bytes, U256, aliases::U24, utils::format_ether};
use anyhow::{Context, Result, anyhow, bail, ensure};
use chain::Tx;
use chain::bindings::{
    Addresses, Approval, Birth, ChannelConfig, GasMarket, IDENTITY_REGISTRY, LeaseStatus, Options, Payee, Policy,
    Timers,
};
use chain::orders::{self, ORDERS, Order};
use chain::treasury::{KIND_STORAGE, calls, predict};
use economy::{Timers as Clockwork, Usdc};
use node::manifest::{self, INDEPENDENCE, Manifest};
use pay::scheme::channel::{BATCH_SETTLEMENT, WITHDRAW_DELAY_SECS_MIN};
use std::path::{Path, PathBuf};
use std::time::Duration;
use store::StoreClient;
use store::cid::Cid;
use store::unixfs::Profile;
use tokio::time::sleep;

/// Days of a month in the sum that is shown before a birth.
const MONTH_DAYS: u64 = 30;
/// The treasury gets this many days' gas at birth, so that `refuel` has something to pay out.
const GAS_DAYS: u128 = 30;

/// The files that an agent is made of.
#[derive(Clone, Debug)]
pub struct Goods {
    pub model: PathBuf,
    pub embedding: Option<PathBuf>,
    /// In the order of the manifest's.
    pub adapters: Vec<PathBuf>,
    /// Further models, in the order of the manifest's.
    pub models: Vec<PathBuf>,
    pub vivarium: PathBuf,
    /// One, or one for each class of processor (`infer::engines`).
    pub engines: Vec<PathBuf>,
}

/// Where they lie in the store.
#[derive(Clone, Debug)]
pub struct Stored {
    pub model: Cid,
    pub embedding: Option<Cid>,
    pub adapters: Vec<Cid>,
    pub models: Vec<Cid>,
    /// A directory {vivarium, vivarium-engine}, with an engine for each class of processor if there are such.
    pub code: Cid,
}

impl Goods {
    /// Puts weights and code into `store` and has it keep them. The code directory is put together under `scratch` and removed again.
    pub async fn store(&self, store: &StoreClient, scratch: &Path) -> Result<Stored> {
        let model = store.put_path(&self.model, Profile::V1_2025).await.context("the weights cannot be stored")?.cid;
        let embedding = match &self.embedding {
            Some(path) => {
                let stored = store.put_path(path, Profile::V1_2025).await;
                Some(stored.context("the embedding model's weights cannot be stored")?.cid)
            }
            None => None,
        };
        let mut adapters = Vec::new();
        for path in &self.adapters {
            let stored = store.put_path(path, Profile::V1_2025).await;
            let stored = stored.with_context(|| format!("the adapter {} cannot be stored", path.display()))?;
            adapters.push(stored.cid);
        }
        let mut models = Vec::new();
        for path in &self.models {
            let stored = store.put_path(path, Profile::V1_2025).await;
            let stored = stored.with_context(|| format!("the further model {} cannot be stored", path.display()))?;
            models.push(stored.cid);
        }
        let staged = scratch.join("tmp/code");
        let stage = || -> std::io::Result<()> {
            std::fs::create_dir_all(&staged)?;
            std::fs::copy(&self.vivarium, staged.join("vivarium"))?;
            for engine in &self.engines {
                std::fs::copy(engine, staged.join(engine.file_name().unwrap_or_default()))?;
            }
            Ok(())
        };
        stage().with_context(|| format!("the code cannot be put together in {}", staged.display()))?;
        let code = store.put_path(&staged, Profile::V1_2025).await.context("the code cannot be stored")?.cid;
        std::fs::remove_dir_all(&staged).with_context(|| format!("cannot remove {}", staged.display()))?;
        store.pin(&model, "weights").await.context("no store keeps the weights")?;
        if let Some(embedding) = &embedding {
            store.pin(embedding, "weights").await.context("no store keeps the embedding model's weights")?;
        }
        for adapter in &adapters {
            store.pin(adapter, "weights").await.context("no store keeps an adapter's weights")?;
        }
        for model in &models {
            store.pin(model, "weights").await.context("no store keeps a further model's weights")?;
        }
        store.pin(&code, "code").await.context("no store keeps the code")?;
        Ok(Stored { model, embedding, adapters, models, code })
    }
}

/// Everything a birth needs once what the agent is lies in the store.
#[derive(Clone, Debug)]
pub struct Plan {
    pub manifest: Manifest,
    /// sha2-256 of the manifest's bytes, as stored.
    pub manifest_digest: B256,
    /// sha2-256 of the code directory's root block.
    pub code_digest: B256,
    pub creator: Wallet,
    pub addresses: Addresses,
    pub seed: Usdc,
}

/// Whether the person was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consent {
    /// `--yes`, or a world of test money.
    Given,
    /// Shows the sum and asks at the terminal.
    Ask,
}

impl Plan {
    /// Checks that the manifest names what is stored, and stores the manifest itself.
    pub async fn new(
        manifest_toml: &str,
        stored: &Stored,
        store: &StoreClient,
        creator: Wallet,
        addresses: Addresses,
        seed: Usdc,
    ) -> Result<Self> {
        let manifest = Manifest::parse(manifest_toml)?;
        let embedding = manifest.embedding.as_ref().map_or("none", |model| &model.cid);
        let cids = |cids: Vec<String>| if cids.is_empty() { "none".to_owned() } else { cids.join(", ") };
        let adapters = cids(manifest.adapters.iter().map(|adapter| adapter.cid.clone()).collect());
        let models = cids(manifest.models.iter().map(|model| model.cid.clone()).collect());
        for (what, named, is) in [
            ("code_cid", manifest.code_cid.as_str(), stored.code.to_string()),
            ("model.cid", &manifest.model.cid, stored.model.to_string()),
            ("adapters.cid", &adapters, cids(stored.adapters.iter().map(ToString::to_string).collect())),
            ("models.cid", &models, cids(stored.models.iter().map(ToString::to_string).collect())),
            ("embedding.cid", embedding, stored.embedding.map_or_else(|| "none".to_owned(), |cid| cid.to_string())),
        ] {
            ensure!(
                named == is,
                "the manifest's `{what}` is {named}, but the files given are {is}; correct the one that is wrong"
            );
        }
        let bytes = manifest_toml.as_bytes();
        let manifest_digest = B256::from(store::cid::digest(&store::cid::of_raw(bytes)));
        let manifest_cid = store.put_bytes(bytes).await.context("the manifest cannot be stored")?;
        store.pin(&manifest_cid, "manifest").await.context("no store keeps the manifest")?;
        let code_digest = B256::from(store::cid::digest(&stored.code));
        Ok(Self { manifest, manifest_digest, code_digest, creator, addresses, seed })
    }
}

/// The whole birth: sum, consent, treasury, seed, host, activation, and the proof that the creator is nobody now.
///
/// `interrupted` ends it once the treasury is there; until then nothing is paid that would have to be found again.
///
/// # Errors
/// From then on whatever fails says where the money is and how it comes back.
pub async fn run(
    plan: &Plan,
    consent: Consent,
    progress: Progress,
    interrupted: impl Future<Output = ()>,
) -> Result<Born> {
    preflight(plan).await?;
    let sum = month_sum(plan).await?;
    progress.line(&sum.lines(plan.seed));
    progress.line(&format!(
        "    oversight     {} of {} stewards can pause, stop or evict it; independence {INDEPENDENCE}",
        plan.manifest.threshold,
        plan.manifest.stewards.len()
    ));
    progress.line(&stewards_terms(&plan.manifest));
    progress.line(&gas_terms(&plan.manifest));
    if !plan.manifest.suppliers.is_empty() {
        progress.line(&suppliers_terms(&plan.manifest));
    }
    if let Some(payee) = plan.manifest.archive.payee {
        progress.line(&archive_terms(&plan.manifest, payee));
    }
    if consent == Consent::Ask {
        let question = format!("  Pay in {} and give up every right to it?", plan.seed);
        ensure!(ask(&question)?, "no birth: nothing was paid");
    }
    let born = give_birth(plan, progress, interrupted).await?;
    let refused = refusals(&plan.creator, born.treasury).await?;
    progress.line(&format!("  the creator's key is refused by every entry of the treasury ({}):", refused.len()));
    progress.line(&refusal_lines(&refused));
    Ok(born)
}

/// What would make the birth fail, or the life after it: said before anybody pays.
async fn preflight(plan: &Plan) -> Result<()> {
    let chain = &plan.creator.chain;
    chain.verify_contracts(&plan.addresses).await?;
    chain.verify_clock().await?;
    let (clockwork, _) = Clockwork::scaled(plan.manifest.day_secs);
    clockwork
        .check(term_secs(&plan.manifest), super::anvil::BLOCK_SECS)
        .context("the manifest's `day_secs` and `lease_days` are too short")?;
    if let Some(address) = plan.manifest.safe {
        let safe =
            chain.safe(address).await?.with_context(|| format!("the manifest's `safe` {address} is no contract"))?;
        let mut owners = safe.owners.clone();
        owners.sort();
        let named: Vec<Address> = plan.manifest.stewards.iter().map(|s| s.address).collect();
        ensure!(
            owners == named && safe.threshold == usize::from(plan.manifest.threshold),
            "the Safe {address} wants {} of its {} owners; the manifest's `stewards` must be just them, and its \
             `threshold` the same",
            safe.threshold,
            owners.len()
        );
        ensure!(
            !owners.contains(&plan.creator.address()),
            "the creator owns the Safe {address}; it can't be a steward"
        );
    }
    for supplier in &plan.manifest.suppliers {
        let found = chain.verify_agent(supplier.treasury).await;
        found.with_context(|| format!("the manifest's supplier `{}` is no agent on this chain", supplier.model))?;
    }
    if let Some(market) = &plan.manifest.gas_market {
        let found = chain.verify_gas_market(&gas_market(market)).await;
        found.context("nothing can be bought at the manifest's `gas_market`")?;
    }
    if let (Some(payee), Some(url)) = (plan.manifest.archive.payee, &plan.manifest.archive.url) {
        let terms = node::archive::terms(&net::Client::new(), url).await;
        let terms = terms.with_context(|| format!("the manifest's `archive.url` {url} is no archivist that serves"))?;
        ensure!(
            (terms.payee, terms.chain_id, terms.token) == (payee, chain.chain_id(), plan.addresses.usdc),
            "the archivist at {url} is paid at {} in the token {} on chain {}; the manifest's `archive.payee` is \
             {payee}, and the agent has the token {} on chain {}",
            terms.payee,
            terms.token,
            terms.chain_id,
            plan.addresses.usdc,
            chain.chain_id()
        );
    }
    let market = chain.market(plan.addresses.market).terms().await?;
    let takeover = clockwork.answer_time + clockwork.restore_timeout;
    ensure!(
        takeover <= market.grace,
        "the market's grace of {} s is shorter than a takeover takes ({takeover} s): it was made for shorter days",
        market.grace
    );
    Ok(())
}

/// What stewards get, and what they can change.
fn stewards_terms(manifest: &Manifest) -> String {
    let later = match (manifest.delay_days, &manifest.ceilings) {
        (0, _) => "new code, looser limits and new stewards: never".to_owned(),
        (days, None) => format!("new code and new stewards after {days} days, looser limits never"),
        (days, Some(most)) => format!(
            "new code, new stewards and looser limits after {days} days; limits up to {} a day, {} a day for a host, \
             {} days of lease, {} prepaid, gas of {} ETH a day and {} a key",
            Usdc(most.day_limit_uusdc),
            Usdc::rent_up(most.price_e6_max, manifest.day_secs.into()),
            most.lease_days,
            most.prepay_days,
            format_ether(most.gas_day_max_wei),
            format_ether(most.gas_target_wei),
        ),
    };
    let pay = match Usdc(manifest.duty_pay_uusdc) {
        Usdc::ZERO => "stewards are not paid".to_owned(),
        pay => format!("{pay} to a steward for each checkpoint, at most {} a day", Usdc(manifest.duty_day_max_uusdc)),
    };
    format!("    stewards      {later}; {pay}")
}

/// Where its gas comes from, once what it is born with is used up.
fn gas_terms(manifest: &Manifest) -> String {
    let born_with = format_ether(manifest.gas_day_max_wei.saturating_mul(GAS_DAYS));
    match &manifest.gas_market {
        None => format!(
            "    gas           born with {born_with} ETH, and buys none: without gifts of ETH it ends with that"
        ),
        Some(market) => format!(
            "    gas           born with {born_with} ETH, buys more at {} for at most a tenth of the day limit at once",
            market.router
        ),
    }
}

/// From whom the agent buys what it sells on, and what is at stake.
fn suppliers_terms(manifest: &Manifest) -> String {
    let mut lines = format!(
        "    suppliers     paid from a purse of at most {}, which a thief of the operator's key gets at once",
        Usdc(manifest.purse_uusdc_max)
    );
    for supplier in &manifest.suppliers {
        let (call, day) = (Usdc(supplier.max_uusdc_per_call), Usdc(supplier.max_uusdc_per_day));
        let price = Usdc(supplier.price_uusdc_up(manifest));
        lines += &format!(
            "\n                  `{}` from {}: at most {call} a call and {day} a day, sold at {price}",
            supplier.model, supplier.treasury
        );
    }
    lines
}

/// Who keeps its memory for ever, and what that may take.
fn archive_terms(manifest: &Manifest, payee: Address) -> String {
    format!(
        "    archive       a copy of its memory every {} days by {payee}, paid at most {} a day",
        manifest.archive.every_days,
        Usdc(manifest.archive.uusdc_per_day_max)
    )
}

/// What a month will cost, before anybody pays anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MonthSum {
    /// The host that serves and the standby on the next cheapest one.
    pub rent: Usdc,
    /// Most that the archivist may be paid, if the manifest names one; the embedded store keeps everything for nothing.
    pub storage: Usdc,
    /// Wei, at most: the manifest's cap times the days.
    pub gas_wei_max: u128,
    /// At the least price of a call.
    pub break_even_calls_a_day: u128,
    /// Days that the seed lasts without any income.
    pub seed_days: u128,
}

/// An agent alive.
#[derive(Clone, Copy, Debug)]
pub struct Born {
    pub treasury: Address,
    pub lease: u64,
}

/// The market's cheapest free offers that fit the manifest, cheapest first.
pub async fn fitting_offers(plan: &Plan) -> Result<Vec<chain::market::OfferView>> {
    let market = plan.creator.chain.market(plan.addresses.market);
    let term = term_secs(&plan.manifest);
    let mut offers = market.offers().await?;
    offers.retain(|view| {
        let o = &view.offer;
        let free = o.used < o.capacity && view.staked;
        free && (o.minTerm..=o.maxTerm).contains(&term) && o.priceE6 <= plan.manifest.price_e6_max
    });
    offers.sort_by_key(|o| (o.offer.priceE6, o.id));
    Ok(offers)
}

/// The sum of a month at today's offers.
pub async fn month_sum(plan: &Plan) -> Result<MonthSum> {
    let offers = fitting_offers(plan).await?;
    let prices: Vec<u64> = offers.iter().take(2).map(|o| o.offer.priceE6).collect();
    ensure!(
        !prices.is_empty(),
        "no provider offers a host for {} days below the manifest's price cap; raise `price_e6_max` or wait for offers",
        plan.manifest.lease_days
    );
    Ok(sum_of(&plan.manifest, &prices, plan.seed))
}

fn sum_of(manifest: &Manifest, prices: &[u64], seed: Usdc) -> MonthSum {
    let rent_of = |secs: u64| prices.iter().map(|price| Usdc::rent_up(*price, secs)).sum::<Usdc>();
    let day = u64::from(manifest.day_secs);
    let (rent, rent_a_day) = (rent_of(MONTH_DAYS * day), rent_of(day));
    MonthSum {
        rent,
        storage: archive_month(manifest),
        gas_wei_max: manifest.gas_day_max_wei.saturating_mul(u128::from(MONTH_DAYS)),
        break_even_calls_a_day: rent_a_day.micro().div_ceil(manifest.min_call_uusdc),
        seed_days: seed.micro() / rent_a_day.micro().max(1),
    }
}

/// A copy takes at most a day's ceiling, and a month has at least one.
fn archive_month(manifest: &Manifest) -> Usdc {
    let archive = &manifest.archive;
    let copies = MONTH_DAYS.div_ceil(u64::from(archive.every_days.max(1)));
    let month = archive.uusdc_per_day_max.saturating_mul(copies.into());
    archive.payee.map_or(Usdc::ZERO, |_| Usdc(month))
}

impl MonthSum {
    pub fn lines(&self, seed: Usdc) -> String {
        // Exact to 0.001 ETH; the cap is a round number anyway.
        let milli_eth = self.gas_wei_max / 1_000_000_000_000_000;
        format!(
            "    a month of {MONTH_DAYS} days   rent {} (host and standby), storage {}, gas at most {}.{:03} ETH\n    \
             break-even    {} calls a day at the least price; the seed of {seed} alone lasts {} days",
            self.rent,
            self.storage,
            milli_eth / 1000,
            milli_eth % 1000,
            self.break_even_calls_a_day,
            self.seed_days
        )
    }
}

/// Creates, funds, rents, waits, activates.
async fn give_birth(plan: &Plan, progress: Progress, interrupted: impl Future<Output = ()>) -> Result<Born> {
    let balance = plan.creator.chain.usdc(plan.addresses.usdc).balance(plan.creator.address()).await?;
    ensure!(
        balance >= U256::from(plan.seed.micro()),
        "the creator {} has less than the seed of {}; send it test USDC or lower --seed-usdc",
        plan.creator.address(),
        plan.seed
    );
    let unborn = create(plan, progress).await?;
    progress.line(&format!("    {unborn}"));
    let born = tokio::select! {
        born = bring_to_life(plan, unborn.treasury, progress) => born,
        () = interrupted => Err(anyhow!("interrupted")),
    };
    born.with_context(|| unborn.to_string())
}

async fn create(plan: &Plan, progress: Progress) -> Result<Unborn> {
    let chain = &plan.creator.chain;
    let birth = terms(plan).await?;
    let treasury = predict(chain, &plan.addresses, &birth).await?;
    let gas_wei = plan.manifest.gas_day_max_wei.saturating_mul(GAS_DAYS);
    let create = Tx::call(plan.addresses.factory, calls::create(&birth), "creating the treasury").with_value(gas_wei);
    let made = progress.step("treasury created", plan.creator.send(create)).await;
    let made = made.with_context(|| format!("the treasury would be {treasury}"))?;
    let block = chain.block_at(made.block).await.ok().flatten();
    let block = block.with_context(|| format!("the treasury {treasury} is made, and the chain does not say when"))?;
    let activate_within = birth.timers.activateWithin;
    Ok(Unborn { treasury, creator: birth.creator, made_at: block.timestamp, activate_within })
}

async fn bring_to_life(plan: &Plan, treasury: Address, progress: Progress) -> Result<Born> {
    progress
        .step(&format!("seed of {} paid in", plan.seed), async {
            let transfer = chain::usdc::calls::transfer(treasury, plan.seed.micro());
            plan.creator.send(Tx::call(plan.addresses.usdc, transfer, "paying in the seed")).await
        })
        .await?;
    let lease = progress.step("first host rented", rent_first(plan, treasury)).await?;
    progress.step("host fetches code and weights, node made its keys", ready(plan, lease)).await?;
    progress
        .step("activated: the node is operator, the creator is forgotten", async {
            plan.creator.send(Tx::call(treasury, calls::activate(lease), "activating the agent")).await
        })
        .await?;
    Ok(Born { treasury, lease })
}

/// Looks at the offers, for one rent: a price may move between the look and the rent.
const LOOKS_MAX: u32 = 5;

async fn rent_first(plan: &Plan, treasury: Address) -> Result<u64> {
    let chain = &plan.creator.chain;
    let prepay_secs =
        u64::from(plan.manifest.prepay_days.min(plan.manifest.lease_days)) * u64::from(plan.manifest.day_secs);
    let mut looks = 1;
    loop {
        let offers = fitting_offers(plan).await?;
        let offer = offers.first().context("every offer was taken in the meantime; try again")?;
        let prepay = Usdc::rent_down(offer.offer.priceE6, prepay_secs);
        let data = calls::birth_rent(offer.id, term_secs(&plan.manifest), prepay.micro());
        match plan.creator.send(Tx::call(treasury, data, "renting the first host")).await {
            Err(refused) if looks < LOOKS_MAX && is_for_another_price(&refused) => looks += 1,
            sent => {
                sent?;
                break;
            }
        }
    }
    let state = chain.treasury(treasury).state().await?;
    // The birth lease waits in whichever slot the contract keeps it.
    let lease = if state.activeLease.is_zero() { state.standbyLease } else { state.activeLease };
    u64::try_from(lease).ok().filter(|id| *id != 0).context("the treasury names no lease after birthRent")
}

/// More was prepaid than the offer's price of now makes of it, or that price is over the cap.
fn is_for_another_price(refused: &chain::Error) -> bool {
    refused.revert().is_some_and(|revert| ["OverPrepay", "OverEscrow", "OverPriceCap"].contains(&revert.name.as_str()))
}

/// Waits for the provider, as long as the market gives it.
async fn ready(plan: &Plan, lease: u64) -> Result<()> {
    let market = plan.creator.chain.market(plan.addresses.market);
    loop {
        let view = market.lease(lease).await?.lease;
        match view.status() {
            LeaseStatus::Ready => return Ok(()),
            LeaseStatus::Requested => {}
            other => bail!("lease {lease} is {other:?} before it was ready; look into the provider's log"),
        }
        let now = plan.creator.chain.head().await?.timestamp;
        if now > view.readyBy {
            bail!(
                "the provider {} did not get lease {lease} ready in time; look into its log (logs/ and provider-*/)",
                view.provider
            );
        }
        sleep(Duration::from_millis(200)).await;
    }
}

fn term_secs(manifest: &Manifest) -> u32 {
    manifest.lease_days.saturating_mul(manifest.day_secs)
}

/// The init arguments that the treasury's address commits to.
async fn terms(plan: &Plan) -> Result<Birth> {
    let manifest = &plan.manifest;
    let (clockwork, _) = Clockwork::scaled(manifest.day_secs);
    let now = plan.creator.chain.head().await?.timestamp;
    let creator = plan.creator.address();
    ensure!(
        manifest.stewards.iter().all(|s| s.address != creator),
        "the creator {creator} is one of the stewards; an agent's creator can't be"
    );
    Ok(Birth {
        creator,
        token: plan.addresses.usdc,
        market: plan.addresses.market,
        beneficiary: manifest.beneficiary,
        stewards: manifest
            .safe
            .map_or_else(|| manifest.stewards.iter().map(|s| s.address).collect(), |safe| vec![safe]),
        threshold: if manifest.safe.is_some() { 1 } else { manifest.threshold },
        codeHash: plan.code_digest,
        manifest: plan.manifest_digest,
        mandateUntil: now + u64::from(manifest.mandate_days) * u64::from(manifest.day_secs),
        policy: limits(manifest),
        timers: Timers {
            day: clockwork.day,
            heartbeatEvery: clockwork.heartbeat_every,
            fence: clockwork.fence,
            answerTime: clockwork.answer_time,
            handoverNotice: clockwork.handover_notice,
            restoreTimeout: clockwork.restore_timeout,
            silence: clockwork.silence,
            starveTimeout: clockwork.starve_timeout,
            activateWithin: clockwork.activate_within,
            refundWindow: clockwork.refund_window,
        },
        options: options(plan, &clockwork).await?,
    })
}

/// What the agent may do from birth on.
fn limits(manifest: &Manifest) -> Policy {
    Policy {
        dayLimit: manifest.day_limit_uusdc,
        priceE6Max: manifest.price_e6_max,
        termMax: term_secs(manifest),
        prepayMax: manifest.prepay_days.saturating_mul(manifest.day_secs),
        gasDayMax: manifest.gas_day_max_wei,
        gasTarget: manifest.gas_target_wei,
        starveFloor: manifest.starve_floor_uusdc,
    }
}

/// What stewards can loosen that to. All zero: nothing.
fn ceilings(manifest: &Manifest) -> Policy {
    let Some(most) = &manifest.ceilings else { return Policy::default() };
    Policy {
        dayLimit: most.day_limit_uusdc,
        priceE6Max: most.price_e6_max,
        termMax: most.lease_days.saturating_mul(manifest.day_secs),
        prepayMax: most.prepay_days.saturating_mul(manifest.day_secs),
        gasDayMax: most.gas_day_max_wei,
        gasTarget: most.gas_target_wei,
        // No order changes it.
        starveFloor: manifest.starve_floor_uusdc,
    }
}

/// What the treasury answers to its creator, entry by entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub entry: &'static str,
    /// The contract's error.
    pub reason: String,
}

/// Tries every entry of the treasury that acts or pays, with the creator's key and the creator's signature where an
/// order needs one. Nothing is sent: the chain is asked what would happen.
///
/// Fails if any of them would be accepted. `refuel` and `settleExact` are open to everybody and give the caller
/// nothing; `settleExact` is tried with an authorisation that nobody signed.
pub async fn refusals(creator: &Wallet, treasury: Address) -> Result<Vec<Refusal>> {
    let chain = &creator.chain;
    let state = chain.treasury(treasury).state().await?;
    let lease = u64::try_from(state.activeLease).context("the lease's number is too large")?;
    let me = creator.address();
    let mut refused = Vec::new();
    for (entry, data) in entries(lease, me, chain.head().await?.timestamp) {
        refused.push(try_entry(creator, treasury, entry, data).await?);
    }
    let policy = chain.treasury(treasury).birth().await?.policy;
    for action in ORDERS {
        let approval = own_approval(creator, treasury, action, state.orderNonce).await?;
        let data = match action {
            "pause" => calls::pause(approval),
            "resume" => calls::resume(approval),
            "stop" => calls::stop(approval),
            "evict" => calls::evict(0, approval),
            "rescue" => calls::rescue(1, 1, 0, approval),
            "clearBar" => calls::clear_bar(Address::ZERO, approval),
            "revokeCode" => calls::revoke_code(approval),
            "openRefunds" => calls::open_refunds(approval),
            "tighten" => calls::tighten(policy.clone(), approval),
            "loosen" => calls::loosen(policy.clone(), approval),
            "setCode" => calls::set_code(B256::repeat_byte(7), approval),
            "setStewards" => calls::set_stewards(vec![me], 1, approval),
            _ => calls::extend_mandate(u64::MAX, approval),
        };
        refused.push(try_entry(creator, treasury, action, data).await?);
    }
    Ok(refused)
}

/// What this birth adds. Payees: the manifest's archivist, or none.
async fn options(plan: &Plan, clockwork: &Clockwork) -> Result<Options> {
    let mut options = Options::default();
    if is_there(plan, BATCH_SETTLEMENT).await? {
        // Long enough for a takeover, a rescue and a pause before a payer can leave with what it owes.
        let recovered = clockwork.answer_time + clockwork.restore_timeout + clockwork.silence + clockwork.day;
        let delay = recovered.max(u32::try_from(WITHDRAW_DELAY_SECS_MIN).expect("a quarter of an hour"));
        (options.channels, options.withdrawDelay) = (BATCH_SETTLEMENT, delay);
    }
    if is_there(plan, IDENTITY_REGISTRY).await? {
        options.identity = IDENTITY_REGISTRY;
    }
    let manifest = &plan.manifest;
    if manifest.daemons_rescue {
        // The daemons sign with their stewards' order keys, so it takes as many of them as any order.
        options.rescuers = manifest.stewards.iter().map(|s| s.address).collect();
        options.rescueThreshold = manifest.threshold;
    }
    options.ceilings = ceilings(manifest);
    options.delay = manifest.delay_days.saturating_mul(manifest.day_secs);
    options.silenceBlocks = silence_blocks(clockwork.answer_time);
    (options.dutyPay, options.dutyDayMax) = (manifest.duty_pay_uusdc, manifest.duty_day_max_uusdc);
    options.relayMax = manifest.relay_max_wei;
    options.purseMax = manifest.purse_uusdc_max;
    if let Some(payee) = manifest.archive.payee {
        options.payees.push(Payee { kind: KIND_STORAGE, payee, dayMax: manifest.archive.uusdc_per_day_max });
    }
    options.gas = manifest.gas_market.as_ref().map(gas_market).unwrap_or_default();
    Ok(options)
}

fn gas_market(market: &manifest::GasMarket) -> GasMarket {
    GasMarket {
        router: market.router,
        weth: market.weth,
        oracle: market.oracle,
        sequencer: market.sequencer.unwrap_or_default(),
        // Below a million, which the manifest checks.
        poolFee: U24::saturating_from(market.pool_fee),
        slippageBps: market.slippage_bps,
        staleAfter: market.stale_after_secs,
    }
}

/// Silence lasts so many blocks, too: a chain that stood still and goes on accuses nobody before its operator had time to
/// be heard. A minute of a roll-up's blocks, or what a scaled world's time to answer has room for. Guesses, unmeasured.
fn silence_blocks(answer_time_secs: u32) -> u32 {
    (answer_time_secs / 4).clamp(3, 30)
}

/// Whether the chain has the contract that clients know by this address.
async fn is_there(plan: &Plan, at: Address) -> Result<bool> {
    let code: Bytes = plan.creator.chain.request("eth_getCode", (at, BlockId::latest())).await?;
    Ok(!code.is_empty())
}

fn entries(lease: u64, me: Address, now: u64) -> Vec<(&'static str, Bytes)> {
    let unsigned = calls::ExactAuthorization {
        payer: me,
        value: U256::from(1),
        valid_after: U256::ZERO,
        valid_before: U256::from(now + 3_600),
        nonce: B256::repeat_byte(7),
        signature: Bytes::from(vec![0; 65]),
    };
    vec![
        ("birthRent", calls::birth_rent(1, 1, 0)),
        ("activate", calls::activate(lease)),
        ("abortBirth", calls::abort_birth()),
        ("rent", calls::rent(1, 1, 0)),
        ("topUp", calls::top_up(lease, 1)),
        ("release", calls::release(lease)),
        ("heartbeat", calls::heartbeat(B256::ZERO, B256::ZERO, false)),
        ("commit", calls::commit(1, B256::ZERO, B256::ZERO, Vec::new())),
        ("announce", calls::announce(lease)),
        ("handover", calls::handover(lease, 0, 0, u64::MAX)),
        ("setRelay", calls::set_relay(me)),
        ("challenge", calls::challenge()),
        ("takeover", calls::takeover()),
        ("settleExact", calls::settle_exact(&unsigned)),
        ("refundExact", calls::refund_exact(me, B256::ZERO, 1)),
        ("spend", calls::spend(0, me, 1)),
        ("buyGas", calls::buy_gas(1)),
        ("hibernate", calls::hibernate(now + 3_600)),
        ("claimAndSettle", calls::claim_and_settle(Vec::new())),
        ("refundChannel", calls::refund_channel(ChannelConfig::default(), 1)),
        ("challengeFor", calls::challenge_for(u64::MAX, Bytes::new())),
        ("takeoverFor", calls::takeover_for(u64::MAX, Bytes::new())),
        ("windDown", calls::wind_down()),
        ("close", calls::close()),
        ("sweep", calls::sweep()),
        ("withdraw", calls::withdraw()),
    ]
}

async fn own_approval(creator: &Wallet, treasury: Address, action: &str, nonce: U256) -> Result<Approval> {
    let deadline = creator.chain.head().await?.timestamp + 3_600;
    let order = Order::new(action, U256::ZERO, nonce, deadline);
    let signature = orders::sign(&order, &orders::domain(creator.chain.chain_id(), treasury), creator.key())?;
    Ok(Approval { deadline, signatures: vec![signature] })
}

async fn try_entry(creator: &Wallet, treasury: Address, entry: &'static str, data: Bytes) -> Result<Refusal> {
    match creator.ask(treasury, data).await {
        Ok(_) => bail!("the treasury would let its creator call {entry}: this is a bug, don't use this world"),
        Err(e) => match e.revert() {
            Some(revert) => Ok(Refusal { entry, reason: revert.name.clone() }),
            None => Err(e).with_context(|| format!("asking the chain about {entry}")),
        },
    }
}

/// The refusals by reason, a line for each: `NotOperator: rent topUp …`.
pub fn refusal_lines(refusals: &[Refusal]) -> String {
    let mut by_reason: Vec<(&str, Vec<&str>)> = Vec::new();
    for refusal in refusals {
        match by_reason.iter_mut().find(|(reason, _)| *reason == refusal.reason) {
            Some((_, entries)) => entries.push(refusal.entry),
            None => by_reason.push((&refusal.reason, vec![refusal.entry])),
        }
    }
    let lines = by_reason.iter().map(|(reason, entries)| format!("    {reason:<14} {}", entries.join(" ")));
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests;
