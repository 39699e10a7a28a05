//! One world of real processes: start, keep current, stop.
//!
//! Order of life: lock → chain → contracts and money → store → stewards → providers → birth → watching. Order of
//! death: providers (with their tenants) → stewards → store → chain, so that nobody ever talks to a chain that is gone.

pub mod anvil;
pub mod birth;
pub mod configs;
pub mod crowd;
pub mod deploy;
pub mod files;
pub mod genesis;
pub mod identity;
pub mod model;
pub mod ports;
pub mod processes;
pub mod progress;
pub mod record;
pub mod wallet;

use alloy::primitives::{Address, U256};
use alloy::signers::local::PrivateKeySigner;
use anyhow::{Context, Result, anyhow, bail, ensure};
use chain::Chain;
use chain::bindings::{Addresses, Stage};
use economy::{Timers, Usdc};
use files::{AgentEntry, Folder, KeyEntry, Lock, ProviderEntry, StewardEntry, WorldFile};
use genesis::Choices;
use model::Model;
use ports::{Place, Ports, local_url};
use processes::{Launcher, Report, Service};
use progress::Progress;
use record::Record;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

/// A daemon answers its health question within this time, also on a busy machine.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// How often `world.json` is compared with the record.
const REFRESH: Duration = Duration::from_millis(500);

/// How to start a world.
#[derive(Clone, Debug)]
pub struct Options {
    pub data_dir: PathBuf,
    /// Begin anew: what is in the folder is deleted.
    pub fresh: bool,
    /// What the user asked for; `None` takes the world's own choice, or the default for a new world.
    pub day_secs: Option<u32>,
    pub lease_days: Option<u32>,
    pub seed: Option<Usdc>,
    /// Most that may be open of what is settled after it was served.
    pub settle_after: Option<Usdc>,
    /// The agent lies down instead of winding down when its money is nearly gone.
    pub hibernates: bool,
    pub port: Option<u16>,
    /// Of a new world: its chain's clock is so far ahead of this machine's.
    pub chain_ahead_secs: i64,
    /// Daemons by name (`provider-1`), with the port on loopback through which each reaches the chain instead of asking it
    /// directly: whoever listens there can cut them off. Tests do.
    pub chain_doors: BTreeMap<String, u16>,
    /// Threads of arithmetic that each tenant's engine may take; `None`: all cores.
    pub threads: Option<u32>,
    /// Providers by name (`provider-1`) that live in a network of their own. Tests cut its links.
    pub places: BTreeMap<String, Place>,
    /// Daemons that die are started again.
    pub restart: bool,
    /// `None`: the standard one.
    pub model: Option<PathBuf>,
    pub programs: Programs,
    pub progress: Progress,
}

/// The files that become processes.
#[derive(Clone, Debug)]
pub struct Programs {
    pub vivarium: PathBuf,
    pub engine: PathBuf,
    pub anvil: PathBuf,
    /// The source tree, for the default model and the example.
    pub project: PathBuf,
}

/// `internal.json`: what `up` needs to go on with a world. Not for other programs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Internal {
    pub version: u32,
    pub choices: Choices,
    pub ports: Ports,
    pub contracts: Option<Contracts>,
    /// Set once the agent is activated.
    pub treasury: Option<Address>,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Contracts {
    pub usdc: Address,
    pub lease_market: Address,
    pub factory: Address,
}

const INTERNAL_VERSION: u32 = 1;
pub const INTERNAL_FILE: &str = "internal.json";

/// A running world. [`World::stop`] it: dropping it leaves that to the kernel, which ends the processes with ours.
pub struct World {
    folder: Folder,
    options: Options,
    internal: Internal,
    people: deploy::People,
    launcher: Launcher,
    reports: mpsc::UnboundedReceiver<Report>,
    chain: Option<Service>,
    store: Option<Service>,
    stewards: Vec<Service>,
    providers: Vec<Service>,
    file: Option<WorldFile>,
    _lock: Lock,
}

impl Programs {
    /// The programs of a source tree, with `vivarium` as built.
    pub fn of(project: &Path, vivarium: &Path) -> Result<Self> {
        let engine = vivarium.with_file_name("vivarium-engine");
        ensure!(engine.is_file(), "the engine is missing ({}); build it with `cargo xtask up`", engine.display());
        ensure!(vivarium.is_file(), "the program is missing ({}); build it with `cargo build`", vivarium.display());
        let anvil = anvil::binary(project)?;
        Ok(Self { vivarium: vivarium.to_owned(), engine, anvil, project: project.to_owned() })
    }

    /// The source tree that this program was built from.
    pub fn project() -> Result<PathBuf> {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let project = here.ancestors().nth(2).context("the crate lies in the source tree")?;
        ensure!(
            project.join("contracts").is_dir(),
            "the source tree {} is gone; `vivarium up` needs it for the development chain and the model",
            project.display()
        );
        Ok(project.to_owned())
    }
}

impl World {
    /// Starts a world, or goes on with the one in the folder. Whatever fails, and if `cancelled` ends first, everything
    /// that was started is stopped again before this returns.
    pub async fn start(options: Options, cancelled: impl Future<Output = ()>) -> Result<Self> {
        let mut world = Self::prepare(options)?;
        let outcome = tokio::select! {
            outcome = world.bring_up() => outcome,
            () = cancelled => Err(anyhow!("interrupted")),
        };
        if let Err(e) = outcome {
            world.stop().await;
            return Err(e);
        }
        Ok(world)
    }

    /// Everything that can be refused before a process exists.
    fn prepare(options: Options) -> Result<Self> {
        let folder = Folder::create(&options.data_dir)?;
        let lock = folder.lock()?;
        if options.fresh {
            folder.clear()?;
        }
        let known: Option<Internal> = folder.read_json(INTERNAL_FILE)?;
        let internal = match known {
            Some(internal) if internal.contracts.is_some() => {
                let internal = known_world(internal, &options)?;
                if let (Some(_), Some(file)) = (internal.treasury, &options.model) {
                    same_model(&folder, file)?;
                }
                internal
            }
            // Nothing is on the chain yet, so nothing is fixed.
            Some(_) | None => new_world(&options)?,
        };
        internal.ports.check_free()?;
        folder.write_json(INTERNAL_FILE, &internal)?;
        let people = deploy::People::of(&folder)?;
        let (send, reports) = mpsc::unbounded_channel();
        let launcher =
            Launcher { vivarium: options.programs.vivarium.clone(), logs: folder.subfolder("logs")?, reports: send };
        Ok(Self {
            folder,
            options,
            internal,
            people,
            launcher,
            reports,
            chain: None,
            store: None,
            stewards: Vec::new(),
            providers: Vec::new(),
            file: None,
            _lock: lock,
        })
    }

    async fn bring_up(&mut self) -> Result<()> {
        let progress = self.options.progress;
        let new = self.internal.treasury.is_none();
        let (choices, day) = (self.internal.choices.clone(), self.internal.choices.day_secs);
        progress.line(&format!(
            "{} world in {}: a day lasts {day} s, a lease {} days",
            if new { "a new" } else { "the" },
            self.folder.path().display(),
            choices.lease_days
        ));
        if new {
            let raised = Timers::scaled(day).1;
            if !raised.is_empty() {
                let raised: Vec<String> = raised.iter().map(ToString::to_string).collect();
                progress.line(&format!("  timers too short for one-second blocks: {}", raised.join(", ")));
            }
        }
        let model = match &self.options.model {
            Some(file) => Model::from_file(file)?,
            None => Model::standard(&self.options.programs.project),
        };
        let embedding = Model::embedding(&self.options.programs.project);
        // A missing or wrong model is said before anything runs.
        let check = async { anyhow::Ok((model.check()?, embedding.check()?)) };
        let checked = if new { Some(progress.step("models checked", check).await?) } else { None };

        progress.step("development chain (anvil)", self.start_chain()).await?;
        let contracts = self.deployed().await?;
        progress.step("content store", self.start_store()).await?;
        progress.step("three stewards", self.start_stewards(&contracts)).await?;
        progress.step("two providers, their stakes and offers", self.start_providers(&contracts)).await?;
        let treasury = match (self.internal.treasury, checked) {
            (Some(treasury), _) => treasury,
            (None, Some((of_model, of_embedding))) => {
                self.birth(&contracts, (&model, &of_model), (&embedding, &of_embedding)).await?
            }
            (None, None) => bail!("a world without an agent has no checked model: this is a bug"),
        };
        self.file = Some(self.describe(treasury, &contracts));
        progress.step("the agent sells answers", self.agent_sells(treasury)).await?;
        self.refresh().await
    }

    async fn start_chain(&mut self) -> Result<()> {
        let state = self.folder.subfolder("chain")?.join("state.json");
        let ahead = self.options.chain_ahead_secs;
        let program = anvil::program(&self.options.programs.anvil, self.internal.ports.chain, &state, ahead);
        // Kept before anything is waited for: whoever gives up in between must still stop it.
        self.chain = Some(self.launcher.start(program)?);
        let woken = anvil::wake(&self.connect()?).await;
        self.chain.as_ref().map_or(Ok(()), Service::alive)?;
        woken
    }

    /// The contracts, put on the chain if it is empty.
    async fn deployed(&mut self) -> Result<Contracts> {
        let chain = self.connect()?;
        if let Some(known) = self.internal.contracts {
            let addresses = known.addresses();
            chain
                .verify_contracts(&addresses)
                .await
                .context("the chain's state does not belong to this world; use --fresh")?;
            return Ok(known);
        }
        let progress = self.options.progress;
        let addresses = progress
            .step("contracts deployed", deploy::contracts(&chain, &self.people, &self.internal.choices))
            .await?;
        let seed = Usdc(self.internal.choices.seed_uusdc);
        progress.step("test money handed out", deploy::money(&chain, addresses.usdc, &self.people, seed)).await?;
        let contracts = Contracts { usdc: addresses.usdc, lease_market: addresses.market, factory: addresses.factory };
        self.internal.contracts = Some(contracts);
        self.folder.write_json(INTERNAL_FILE, &self.internal)?;
        Ok(contracts)
    }

    async fn start_store(&mut self) -> Result<()> {
        let program = self.site().store()?;
        let service = self.launcher.start(self.kept(program))?;
        let url = format!("{}/health", local_url(self.internal.ports.store));
        self.store.insert(service).ready(&url, READY_WITHIN).await
    }

    async fn start_stewards(&mut self, contracts: &Contracts) -> Result<()> {
        for index in 0..self.people.stewards.len() {
            let program = self.site().steward(contracts, index, &self.people.stewards)?;
            let service = self.launcher.start(self.kept(program))?;
            self.stewards.push(service);
        }
        for (service, port) in self.stewards.iter().zip(&self.internal.ports.stewards) {
            service.ready(&format!("{}/health", local_url(*port)), READY_WITHIN).await?;
        }
        Ok(())
    }

    async fn start_providers(&mut self, contracts: &Contracts) -> Result<()> {
        for (index, key) in self.people.providers.iter().enumerate() {
            let program = self.site().provider(contracts, index, key)?;
            let service = self.launcher.start(self.kept(program))?;
            self.providers.push(service);
        }
        for (index, service) in self.providers.iter().enumerate() {
            service.ready(&format!("{}/health", self.site().provider_url(index)), READY_WITHIN).await?;
        }
        if self.internal.treasury.is_some() {
            return Ok(());
        }
        // A birth needs their offers on chain.
        let market = self.connect()?.market(contracts.lease_market);
        let deadline = Instant::now() + READY_WITHIN;
        while market.offers().await?.len() < self.providers.len() {
            for service in &self.providers {
                service.alive()?;
            }
            ensure!(Instant::now() < deadline, "the providers post no offers; see logs/provider-1.log");
            sleep(Duration::from_millis(200)).await;
        }
        Ok(())
    }

    async fn birth(
        &mut self,
        contracts: &Contracts,
        (model, checked): (&Model, &model::Checked),
        (embedding, embedding_checked): (&Model, &model::Checked),
    ) -> Result<Address> {
        let progress = self.options.progress;
        let store = store::StoreClient::new(net::Client::new(), vec![local_url(self.internal.ports.store)]);
        let goods = birth::Goods {
            model: model.path.clone(),
            embedding: Some(embedding.path.clone()),
            adapters: Vec::new(),
            models: Vec::new(),
            vivarium: self.options.programs.vivarium.clone(),
            engines: vec![self.options.programs.engine.clone()],
        };
        let stored = progress.step("weights and code stored by CID", goods.store(&store, self.folder.path())).await?;
        let names = genesis::Names {
            stewards: self.manifest_stewards()?,
            beneficiary: self.people.beneficiary,
            code_cid: stored.code.to_string(),
            model: genesis::Weights { cid: stored.model.to_string(), model, checked },
            embedding: genesis::Weights {
                cid: stored.embedding.context("the embedding model was not stored: this is a bug")?.to_string(),
                model: embedding,
                checked: embedding_checked,
            },
            store_url: local_url(self.internal.ports.store),
        };
        let manifest = genesis::manifest(&self.internal.choices, names).to_toml()?;
        files::write_private(&self.folder.join("manifest.toml"), manifest.as_bytes())?;
        let chain = self.connect()?;
        let creator = wallet::Wallet::new(chain.clone(), self.people.creator.clone());
        let seed = Usdc(self.internal.choices.seed_uusdc);
        // After an interrupted birth the creator's first seed lies in a treasury that was never activated.
        if chain.usdc(contracts.usdc).balance(creator.address()).await? < U256::from(seed.micro()) {
            chain::deploy::fund_eth(&chain, creator.address(), genesis::ACCOUNT_WEI).await?;
            deploy::mint(&creator, contracts.usdc, vec![(creator.address(), seed)]).await?;
        }
        let plan = birth::Plan::new(&manifest, &stored, &store, creator, contracts.addresses(), seed).await?;
        // Whoever interrupts a world drops all of this; the treasury's address was shown.
        let born = birth::run(&plan, birth::Consent::Given, progress, std::future::pending()).await?;
        self.internal.treasury = Some(born.treasury);
        self.folder.write_json(INTERNAL_FILE, &self.internal)?;
        Ok(born.treasury)
    }

    fn manifest_stewards(&self) -> Result<Vec<node::manifest::Steward>> {
        let entries = self.people.stewards.iter().zip(&self.internal.ports.stewards).enumerate();
        entries
            .map(|(index, (entry, port))| {
                let share_recipient = configs::share_key(&self.folder, index)?.0.recipient().to_string();
                Ok(node::manifest::Steward { address: entry.address, url: local_url(*port), share_recipient })
            })
            .collect()
    }

    fn site(&self) -> configs::Site<'_> {
        configs::Site {
            vivarium: &self.options.programs.vivarium,
            folder: &self.folder,
            ports: &self.internal.ports,
            choices: &self.internal.choices,
            doors: &self.options.chain_doors,
            threads: self.options.threads,
            places: &self.options.places,
        }
    }

    /// Waits until the node that the chain names sells answers. One that has reasons not to sell (paused, poor, stopped)
    /// is not waited for longer than it needs to start.
    async fn agent_sells(&self, treasury: Address) -> Result<()> {
        let record = self.record(treasury)?;
        let http = net::Client::new().with_deadline(Duration::from_secs(2));
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            let entry = record.read().await?;
            let Some(url) = entry.url() else { return Ok(()) };
            let status: Option<serde_json::Value> = http.get_json(&format!("{url}/status")).await.ok();
            let started = status.as_ref().is_some_and(|s| s["engine_pid"].is_number());
            let free_to_sell = entry.state.stage() == Stage::Alive && !entry.state.paused;
            if started && (!free_to_sell || status.as_ref().is_some_and(|s| s["selling"] == true)) {
                return Ok(());
            }
            if Instant::now() > deadline {
                ensure!(
                    status.is_some(),
                    "the agent does not answer at {url}; see {}",
                    self.folder.join("logs").display()
                );
                return Ok(());
            }
            sleep(Duration::from_millis(100)).await;
        }
    }

    fn describe(&self, treasury: Address, contracts: &Contracts) -> WorldFile {
        let steward = |entry: &KeyEntry| StewardEntry { address: entry.address, key_file: entry.key_file.clone() };
        WorldFile {
            version: WorldFile::VERSION,
            rpc_url: self.rpc_url(),
            chain_id: anvil::CHAIN_ID,
            usdc: contracts.usdc,
            treasury,
            lease_market: contracts.lease_market,
            channel: Some(pay::scheme::channel::BATCH_SETTLEMENT),
            agent: AgentEntry::default(),
            providers: Vec::new(),
            stewards: self.people.stewards.iter().map(steward).collect(),
            customer: KeyEntry { address: self.people.customer.address(), key_file: self.people.customer_file.clone() },
        }
    }

    /// Brings `world.json` up to date; writes only when something changed.
    pub async fn refresh(&mut self) -> Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        let mut now = file.clone();
        let entry = self.record(file.treasury)?.read().await?;
        let urls: Vec<String> = {
            let site = self.site();
            (0..site.ports.providers.len()).map(|index| site.provider_url(index)).collect()
        };
        now.agent = AgentEntry {
            url: entry.url().map(str::to_owned),
            operator: entry.operator(),
            epoch: entry.state.epoch,
            pid: configs::tenant_pid(&urls, u64::try_from(entry.state.activeLease).unwrap_or(0)).await,
        };
        let pids = self.providers.iter().map(Service::pid);
        now.providers = urls.into_iter().zip(pids).map(|(url, pid)| ProviderEntry { url, pid }).collect();
        if *file != now || !self.folder.join("world.json").exists() {
            self.folder.write_json("world.json", &now)?;
            self.file = Some(now);
        }
        Ok(())
    }

    /// Keeps `world.json` current and tells about deaths until `until` ends. Without its chain a world cannot go on:
    /// then this fails, and the caller stops the rest.
    pub async fn run(&mut self, until: impl Future<Output = ()>) -> Result<()> {
        let mut until = std::pin::pin!(until);
        let mut tick = tokio::time::interval(REFRESH);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = &mut until => return Ok(()),
                Some(report) = self.reports.recv() => {
                    self.tell(&report);
                    if self.chain.as_ref().is_none_or(|chain| chain.pid().is_none()) {
                        bail!("the development chain is gone, so everything stops; start again to go on where it was");
                    }
                }
                _ = tick.tick() => {
                    // The chain may be busy for a moment; the next tick tries again.
                    if let Err(e) = self.refresh().await {
                        tracing::debug!(error = format!("{e:#}"), "world.json was not refreshed");
                    }
                }
            }
        }
    }

    fn tell(&self, report: &Report) {
        let line = match report {
            Report::Died { name, pid, how, log } => {
                format!("{name} (pid {pid}) died: {how}; {}", processes::last_words(log))
            }
            Report::Restarted { name, pid } => format!("{name} was started again (pid {pid})"),
            Report::CannotRestart { name, why } => format!("{name} cannot be started again: {why}"),
        };
        self.options.progress.line(&line);
    }

    /// What `world.json` says.
    pub fn file(&self) -> Result<&WorldFile> {
        self.file.as_ref().context("the world has no agent yet")
    }

    pub fn folder(&self) -> &Folder {
        &self.folder
    }

    pub fn internal(&self) -> &Internal {
        &self.internal
    }

    /// Process ids of the daemons by name.
    pub fn pids(&self) -> Vec<(String, Option<u32>)> {
        let services = self.chain.iter().chain(&self.store).chain(&self.stewards).chain(&self.providers);
        services.map(|service| (service.name().to_owned(), service.pid())).collect()
    }

    /// The agent's entry in the on-chain record.
    pub fn record(&self, treasury: Address) -> Result<Record> {
        let market = self.internal.contracts.context("there are no contracts yet")?.lease_market;
        Ok(Record::on(self.connect()?, treasury, market))
    }

    /// Keys for a crowd, each with a purse of test USDC. The same keys every time.
    pub async fn crowd_keys(&self, customers: u16) -> Result<Vec<PrivateKeySigner>> {
        let usdc = self.internal.contracts.context("there are no contracts yet")?.usdc;
        let (chain, minter) = (self.connect()?, self.people.creator.clone());
        let (mut keys, mut empty) = (Vec::new(), Vec::new());
        for n in 1..=customers {
            let key = self.folder.development_key(&format!("crowd-{n}"))?.0;
            if chain.usdc(usdc).balance(key.address()).await?.is_zero() {
                empty.push((key.address(), genesis::CUSTOMER_USDC));
            }
            keys.push(key);
        }
        if !empty.is_empty() {
            let minter = wallet::Wallet::new(chain, minter);
            self.options.progress.step("the crowd's purses", deploy::mint(&minter, usdc, empty)).await?;
        }
        Ok(keys)
    }

    /// The name that customers put into `model`, from the manifest.
    pub fn model_name(&self) -> Result<String> {
        let path = self.folder.join("manifest.toml");
        let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(node::manifest::Manifest::parse(&text)?.model.name)
    }

    /// The source tree.
    pub fn project(&self) -> &Path {
        &self.options.programs.project
    }

    fn connect(&self) -> Result<Chain> {
        Ok(Chain::connect(&self.rpc_url(), anvil::CHAIN_ID)?)
    }

    pub fn rpc_url(&self) -> String {
        local_url(self.internal.ports.chain)
    }

    fn kept(&self, program: processes::Program) -> processes::Program {
        processes::Program { restart: self.options.restart, ..program }
    }

    /// Stops everything that was started, the chain last, and waits for it.
    pub async fn stop(mut self) {
        futures::future::join_all(self.providers.drain(..).map(Service::stop)).await;
        futures::future::join_all(self.stewards.drain(..).map(Service::stop)).await;
        for service in [self.store.take(), self.chain.take()].into_iter().flatten() {
            service.stop().await;
        }
    }
}

impl Contracts {
    pub fn addresses(&self) -> Addresses {
        Addresses { usdc: self.usdc, market: self.lease_market, factory: self.factory }
    }
}

fn new_world(options: &Options) -> Result<Internal> {
    let default = Choices::default();
    let choices = Choices {
        day_secs: options.day_secs.unwrap_or(default.day_secs),
        lease_days: options.lease_days.unwrap_or(default.lease_days),
        seed_uusdc: options.seed.map_or(default.seed_uusdc, Usdc::micro),
        settle_after_uusdc: options.settle_after.map_or(default.settle_after_uusdc, Usdc::micro),
        hibernates: options.hibernates,
    };
    choices.check()?;
    let ports = Ports::choose(options.port, genesis::STEWARDS, genesis::PROVIDERS)?;
    Ok(Internal { version: INTERNAL_VERSION, choices, ports, contracts: None, treasury: None })
}

/// Goes on with what the world was born with; flags that say something else are refused, not ignored.
fn known_world(internal: Internal, options: &Options) -> Result<Internal> {
    ensure!(
        internal.version == INTERNAL_VERSION,
        "this world was made by another version of the program; use that one, or --fresh"
    );
    let own = &internal.choices;
    let differs = |flag: &str, own: String| {
        Err(anyhow!(
            "this world was born with {flag} {own}, which never changes; leave the flag out, or begin anew with --fresh"
        ))
    };
    match options {
        Options { day_secs: Some(day), .. } if *day != own.day_secs => differs("--day", format!("{}s", own.day_secs)),
        Options { lease_days: Some(days), .. } if *days != own.lease_days => {
            differs("--lease", format!("{}d", own.lease_days))
        }
        Options { seed: Some(seed), .. } if seed.micro() != own.seed_uusdc => {
            differs("--seed-usdc", Usdc(own.seed_uusdc).to_string())
        }
        Options { settle_after: Some(sum), .. } if sum.micro() != own.settle_after_uusdc => {
            differs("--settle-after", Usdc(own.settle_after_uusdc).to_string())
        }
        Options { hibernates: true, .. } if !own.hibernates => {
            Err(anyhow!("this world was born without --hibernates, which never changes; begin anew with --fresh"))
        }
        Options { port: Some(port), .. } if *port != internal.ports.chain => {
            differs("--port", internal.ports.chain.to_string())
        }
        _ => Ok(internal),
    }
}

/// The agent has the model of its manifest. `--model` may name it again, so that the same command goes on with a world,
/// and nothing else.
fn same_model(folder: &Folder, file: &Path) -> Result<()> {
    let path = folder.join("manifest.toml");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let own = node::manifest::Manifest::parse(&text)?.model;
    let named = Model::from_file(file)?.check()?;
    ensure!(
        named.sha256 == own.sha256,
        "this world was born with --model {} (sha256 {}), which never changes, and {} is another; leave the flag out, or \
         begin anew with --fresh",
        own.file,
        own.sha256,
        file.display()
    );
    Ok(())
}
