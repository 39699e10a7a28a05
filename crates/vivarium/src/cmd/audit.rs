//! `vivarium audit`: an agent's whole life recomputed from the chain and from content-addressed objects.

mod report;

use super::link::{Place, block_on};
use alloy::primitives::{Address, B256, U256};
use anyhow::{Context, Result};
use chain::Chain;
use chain::audit::{Audit, Epoch, Evidence, Relation, Scope};
use node::manifest::Manifest;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use store::StoreClient;
use store::checkpoint::{Checkpoint, LifeLog};
use vivarium::world::files::{WorldFile, read_key};

/// The exit status of books that do not balance; 1 and 2 are failures to audit at all.
const DOES_NOT_BALANCE: u8 = 3;
/// Longest checkpoint object that is read; the format has no room for more than some hundred conversations.
const CHECKPOINT_BYTES_MAX: usize = 1 << 20;
const MANIFEST_BYTES_MAX: usize = 64 << 10;
/// Silence before the first word of progress, and between two.
const PATIENCE: Duration = Duration::from_secs(1);

/// Recomputes an agent's books from the chain and its content-addressed objects. The agent itself is not asked.
///
/// Every movement of the token to or from the treasury is given the one event of its own transaction that explains it:
/// a sale, a refund, rent, a purchase that birth allows. What came in without an event is a gift. What went out without
/// one is named under `unexplained`, and an agent that lives by its contract has none. The sums are then held
/// against the token's balance and the lease market's escrow, to the micro-USDC: the last line says `balances`, or
/// what does not, and then the exit status is 3.
///
/// It also lists what people did to the agent and who signed it, every epoch with its host, the silences, the
/// acknowledged checkpoints and whether their objects can be fetched, and who paid, with customers linked to creator,
/// stewards, beneficiary, providers or the built-in crowd counted apart. A link is the same address, or tokens received
/// from one within the blocks read. It cannot see a friend who was paid in another token, or in cash.
///
/// It works for a living agent and for one that is long closed. For an agent that is not of this machine's world:
///
///   vivarium audit 0xTREASURY --rpc http://127.0.0.1:8545 --store http://127.0.0.1:7000
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Flags {
    /// The treasury [default: the world's]
    treasury: Option<Address>,
    #[command(flatten)]
    place: Place,
    /// The chain's RPC endpoint [default: the world's]
    #[arg(long, value_name = "URL")]
    rpc: Option<String>,
    /// Refuse an endpoint of another chain than this [default: the world's, or what --rpc says]
    #[arg(long, value_name = "ID")]
    chain_id: Option<u64>,
    /// A content store to fetch manifest and checkpoints from; may be repeated [default: the world's]
    #[arg(long, value_name = "URL")]
    store: Vec<String>,
    /// A customer that belongs to the built-in crowd; may be repeated [default: the world's]
    #[arg(long, value_name = "ADDRESS")]
    crowd: Vec<Address>,
    /// The last block to read: the books as they stood there [default: the newest]
    #[arg(long, value_name = "N")]
    block: Option<u64>,
    /// The first block to read [default: the treasury's creation]
    #[arg(long, value_name = "N")]
    from_block: Option<u64>,
    /// One JSON object; amounts are strings of micro-USDC
    #[arg(long)]
    json: bool,
}

pub fn run(flags: Flags) -> Result<ExitCode> {
    block_on(async {
        let subject = Subject::of(&flags).await?;
        let scope = Scope { from: flags.from_block, until: flags.block };
        let known = subject.crowd.iter().map(|address| (*address, Relation::Crowd)).collect();
        let mut progress = Progress::new();
        let evidence = chain::audit::read(&subject.chain, subject.treasury, scope, known, |(what, done, of)| {
            progress.tell(&format!("{what}: {done} of {of}"));
        })
        .await?;
        let audit = chain::audit::audit(&evidence);
        let objects = Objects::fetch(&subject, &evidence, &audit, &mut progress).await;
        let report = report::Report { evidence: &evidence, audit: &audit, objects: &objects };
        if flags.json {
            println!("{}", report.json());
        } else {
            print!("{}", report.text());
        }
        Ok(if audit.balances() { ExitCode::SUCCESS } else { ExitCode::from(DOES_NOT_BALANCE) })
    })
}

/// Whose books, and where the evidence lies.
struct Subject {
    chain: Chain,
    treasury: Address,
    stores: Vec<String>,
    crowd: Vec<Address>,
}

impl Subject {
    async fn of(flags: &Flags) -> Result<Self> {
        let (chain, treasury, world) = match (&flags.rpc, flags.treasury) {
            (Some(rpc), treasury) => {
                let treasury = treasury.context("--rpc needs the treasury's address, too")?;
                let chain_id = match flags.chain_id {
                    Some(id) => id,
                    None => serving(rpc).await?,
                };
                (Chain::connect(rpc, chain_id)?, treasury, false)
            }
            (None, treasury) => {
                let world = WorldFile::load(&flags.place.dir())?;
                let chain_id = flags.chain_id.unwrap_or(world.chain_id);
                (Chain::connect(&world.rpc_url, chain_id)?, treasury.unwrap_or(world.treasury), true)
            }
        };
        let mut stores = flags.store.clone();
        let mut crowd = flags.crowd.clone();
        if world {
            crowd.extend(crowd_of(&flags.place.dir())?);
            if stores.is_empty() {
                stores = flags.place.stores();
            }
        }
        Ok(Self { chain, treasury, stores, crowd })
    }
}

/// The id of the chain that an endpoint serves.
async fn serving(rpc: &str) -> Result<u64> {
    let id: U256 = Chain::connect(rpc, 0)?.request("eth_chainId", ()).await?;
    u64::try_from(id).with_context(|| format!("{rpc} serves a chain of the impossible id {id}"))
}

/// The addresses of the world's own customers, from their key files.
fn crowd_of(dir: &Path) -> Result<Vec<Address>> {
    let Ok(entries) = std::fs::read_dir(dir.join("keys")) else { return Ok(Vec::new()) };
    let mut crowd = Vec::new();
    for entry in entries {
        let entry = entry.context("the world's keys cannot be listed")?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("crowd-") && name.ends_with(".development-key") {
            crowd.push(read_key(&entry.path())?.address());
        }
    }
    Ok(crowd)
}

/// What the stores gave.
struct Objects {
    /// Whether any store was there to be asked.
    asked: bool,
    manifest: Result<Manifest>,
    /// By the treasury's list, in its order.
    checkpoints: Vec<Result<Checkpoint>>,
    /// Lines of the log that the last checkpoint at hand names; `None` without one.
    log: Option<Result<usize>>,
}

impl Objects {
    async fn fetch(subject: &Subject, evidence: &Evidence, audit: &Audit, progress: &mut Progress) -> Self {
        let http = net::Client::new();
        let first = StoreClient::new(http.clone(), subject.stores.clone());
        let manifest = manifest(&first, evidence.birth.manifest).await;
        // The manifest may name more stores than the auditor did.
        let mut urls = subject.stores.clone();
        urls.extend(
            manifest.iter().flat_map(|m| m.store_urls.iter().filter(|url| !subject.stores.contains(*url)).cloned()),
        );
        let store = StoreClient::new(http, urls);
        let mut checkpoints = Vec::with_capacity(audit.checkpoints.len());
        for (done, one) in audit.checkpoints.iter().enumerate() {
            checkpoints.push(checkpoint(&store, evidence, &audit.epochs, one.seq, one.digest).await);
            progress.tell(&format!("checkpoints: {} of {}", done + 1, audit.checkpoints.len()));
        }
        let log = match checkpoints.iter().rev().find_map(|found| found.as_ref().ok()) {
            Some(last) => Some(log_lines(&store, last).await),
            None => None,
        };
        Self { asked: !store.urls().is_empty(), manifest, checkpoints, log }
    }
}

async fn manifest(store: &StoreClient, digest: B256) -> Result<Manifest> {
    let bytes = store.get_bytes(&store::cid::raw(digest.0), MANIFEST_BYTES_MAX).await?;
    Ok(Manifest::parse(&String::from_utf8(bytes).context("the manifest is no text")?)?)
}

/// The object, if some store has it, and if the operator of its epoch signed it for this treasury.
async fn checkpoint(
    store: &StoreClient,
    evidence: &Evidence,
    epochs: &[Epoch],
    seq: u64,
    digest: B256,
) -> Result<Checkpoint> {
    let bytes = store.get_bytes(&store::cid::raw(digest.0), CHECKPOINT_BYTES_MAX).await?;
    let found = Checkpoint::from_bytes(&bytes)?;
    let epoch = epochs.iter().find(|e| e.epoch == found.epoch).context("it is of an epoch that never was")?;
    found.verify(epoch.operator, evidence.treasury, evidence.chain_id)?;
    anyhow::ensure!(found.seq == seq, "it calls itself checkpoint {}", found.seq);
    Ok(found)
}

async fn log_lines(store: &StoreClient, checkpoint: &Checkpoint) -> Result<usize> {
    Ok(LifeLog::read(store, checkpoint.log, checkpoint.agent, 0).await?.len())
}

/// A line on standard error once a second, after the first.
struct Progress {
    last: Instant,
}

impl Progress {
    fn new() -> Self {
        Self { last: Instant::now() }
    }

    fn tell(&mut self, text: &str) {
        if self.last.elapsed() >= PATIENCE {
            self.last = Instant::now();
            // Nobody may be listening.
            let _ = writeln!(std::io::stderr(), "  {text}");
        }
    }
}
