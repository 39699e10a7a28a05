//! `vivarium steward …`: the daemon that watches an agent, and the orders of a quorum.

use super::link::{Place, block_on, log_to_stderr, stopped};
use alloy::primitives::{Address, Bytes, U256};
use anyhow::{Context, Result, bail, ensure};
use chain::Tx;
use chain::bindings::Approval;
use chain::orders::{self, Order};
use chain::treasury::calls;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::path::PathBuf;
use vivarium::world::files::read_key;
use vivarium::world::wallet::Wallet;

/// Chain seconds for which an order stays valid. A choice: long enough to gather signatures by hand.
const ORDER_VALID_SECS: u64 = 3_600;

/// Runs a steward daemon, or gives a quorum's order.
///
/// An order needs the keys of k stewards (2 of 3 in a world made by `up`): name each with --key, or gather
/// signatures made elsewhere with `vivarium steward approve` and name those with --approval. With fewer the
/// treasury refuses. A pause that lasts longer than the escrow prepaid to the host loses the host; it then
/// ends through `resume` and a rescue by the stewards.
#[derive(clap::Args)]
pub struct Flags {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Runs a steward daemon until SIGTERM: keeps a share of the memory key, watches, prepares rescues
    Run {
        /// The steward's TOML file; `vivarium up` writes examples (steward-1/config.toml)
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Stops the agent's spending at once; it goes on serving and settling
    Pause(Quorum),
    /// Ends a pause
    Resume(Quorum),
    /// Ends the agent: from then on anyone may wind it down
    Stop(Quorum),
    /// Takes the operator's role from its host at once
    Evict {
        #[command(flatten)]
        quorum: Quorum,
        /// The lease whose node becomes operator; 0: nobody, until a rescue
        #[arg(long, default_value_t = 0)]
        keep: u64,
    },
    /// Rents a host for an agent that nobody acts for; its node then restores the last checkpoint. The daemons do this by
    /// themselves where birth let them and the agent is not paused; their log says with which numbers
    Rescue {
        #[command(flatten)]
        quorum: Quorum,
        #[command(flatten)]
        bargain: Bargain,
    },
    /// Lets a provider that an eviction barred host the agent again
    ClearBar {
        #[command(flatten)]
        quorum: Quorum,
        /// The provider's address
        #[arg(long, value_name = "ADDRESS")]
        provider: Address,
    },
    /// Signs an order with one key and prints the signature, for a quorum on several machines
    Approve {
        /// pause, resume, stop, evict, rescue or clear-bar
        action: String,
        /// The steward's order key
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
        /// For evict: the lease to keep
        #[arg(long, default_value_t = 0)]
        keep: u64,
        /// For clear-bar: the provider
        #[arg(long, value_name = "ADDRESS")]
        provider: Option<Address>,
        /// For rescue: what is rented
        #[command(flatten)]
        bargain: Option<Bargain>,
        /// Chain time (seconds) until which the order is valid; all signers must name the same [default: an hour from now]
        #[arg(long, value_name = "SECS")]
        deadline: Option<u64>,
        #[command(flatten)]
        target: Target,
    },
}

/// What a rescue rents.
#[derive(Clone, Copy, Debug, clap::Args)]
struct Bargain {
    /// The offer's number in the lease market
    #[arg(long)]
    offer: u64,
    /// Seconds
    #[arg(long)]
    term: u32,
    /// Micro-USDC that goes into escrow at once; counts in the day limit
    #[arg(long)]
    prepay_uusdc: u128,
}

/// Which treasury.
#[derive(clap::Args)]
struct Target {
    #[command(flatten)]
    place: Place,
    /// The treasury [default: the world's]
    #[arg(long, value_name = "ADDRESS", requires = "rpc")]
    treasury: Option<Address>,
    /// The chain's RPC endpoint [default: the world's]
    #[arg(long, value_name = "URL")]
    rpc: Option<String>,
    /// The chain's id [default: the world's]
    #[arg(long, value_name = "ID")]
    chain_id: Option<u64>,
}

/// Who orders.
#[derive(clap::Args)]
struct Quorum {
    /// A steward's order key; name it once for each steward. The first one pays the gas
    #[arg(long, value_name = "FILE", required = true)]
    key: Vec<PathBuf>,
    /// A signature that `vivarium steward approve` printed into a file; may be repeated
    #[arg(long, value_name = "FILE")]
    approval: Vec<PathBuf>,
    #[command(flatten)]
    target: Target,
    /// One JSON object: {"action", "transaction", "block", "signers"}
    #[arg(long)]
    json: bool,
}

/// What `approve` prints and `--approval` reads.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Signed {
    action: String,
    argument: String,
    nonce: String,
    deadline: u64,
    signer: Address,
    signature: Bytes,
}

pub fn run(flags: Flags) -> Result<()> {
    match flags.command {
        Command::Run { config } => {
            log_to_stderr("info");
            let config = steward::StewardConfig::load(&config)?;
            block_on(async { steward::run(config, stopped()?).await })
        }
        Command::Pause(quorum) => block_on(order(Action::Pause, quorum)),
        Command::Resume(quorum) => block_on(order(Action::Resume, quorum)),
        Command::Stop(quorum) => block_on(order(Action::Stop, quorum)),
        Command::Evict { quorum, keep } => block_on(order(Action::Evict { keep }, quorum)),
        Command::Rescue { quorum, bargain } => block_on(order(Action::Rescue(bargain), quorum)),
        Command::ClearBar { quorum, provider } => block_on(order(Action::ClearBar { provider }, quorum)),
        Command::Approve { action, key, keep, provider, bargain, deadline, target } => {
            let action = Action::parse(&action, keep, provider, bargain)?;
            block_on(approve(action, &key, deadline, target))
        }
    }
}

/// What a quorum can order here, in the treasury's words.
#[derive(Clone, Copy, Debug)]
enum Action {
    Pause,
    Resume,
    Stop,
    Evict { keep: u64 },
    Rescue(Bargain),
    ClearBar { provider: Address },
}

impl Action {
    fn parse(word: &str, keep: u64, provider: Option<Address>, bargain: Option<Bargain>) -> Result<Self> {
        Ok(match word {
            "pause" => Self::Pause,
            "resume" => Self::Resume,
            "stop" => Self::Stop,
            "evict" => Self::Evict { keep },
            "rescue" => Self::Rescue(bargain.context("rescue needs --offer, --term and --prepay-uusdc")?),
            "clear-bar" => Self::ClearBar { provider: provider.context("clear-bar needs --provider ADDRESS")? },
            other => bail!("no order is called {other:?}; pause, resume, stop, evict, rescue and clear-bar are"),
        })
    }

    /// The treasury's name for it, which is signed.
    fn name(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Stop => "stop",
            Self::Evict { .. } => "evict",
            Self::Rescue(_) => "rescue",
            Self::ClearBar { .. } => "clearBar",
        }
    }

    fn argument(self) -> U256 {
        match self {
            Self::Pause | Self::Resume | Self::Stop => U256::ZERO,
            Self::Evict { keep } => U256::from(keep),
            Self::Rescue(b) => orders::rescue_argument(b.offer, b.term, b.prepay_uusdc),
            Self::ClearBar { provider } => U256::from_be_slice(provider.as_slice()),
        }
    }

    fn call(self, approval: Approval) -> Bytes {
        match self {
            Self::Pause => calls::pause(approval),
            Self::Resume => calls::resume(approval),
            Self::Stop => calls::stop(approval),
            Self::Evict { keep } => calls::evict(keep, approval),
            Self::Rescue(b) => calls::rescue(b.offer, b.term, b.prepay_uusdc, approval),
            Self::ClearBar { provider } => calls::clear_bar(provider, approval),
        }
    }
}

impl Target {
    fn chain(&self) -> Result<(chain::Chain, Address)> {
        match (self.treasury, &self.rpc) {
            (Some(treasury), Some(rpc)) => {
                let chain_id = self.chain_id.context("--treasury needs --chain-id, too")?;
                Ok((chain::Chain::connect(rpc, chain_id)?, treasury))
            }
            _ => {
                let link = self.place.link()?;
                Ok((link.record.chain, link.world.treasury))
            }
        }
    }
}

async fn order(action: Action, quorum: Quorum) -> Result<()> {
    let (chain, treasury) = quorum.target.chain()?;
    let state = chain.treasury(treasury).state().await?;
    let gathered: Vec<Signed> = quorum.approval.iter().map(read_approval).collect::<Result<_>>()?;
    // Signatures made elsewhere fix the deadline; ours then use the same.
    let deadline = match gathered.first() {
        Some(first) => first.deadline,
        None => chain.head().await?.timestamp + ORDER_VALID_SECS,
    };
    let order = Order::new(action.name(), action.argument(), state.orderNonce, deadline);
    let domain = orders::domain(chain.chain_id(), treasury);
    let keys = quorum.key.iter().map(|file| read_key(file)).collect::<Result<Vec<_>>>()?;
    let mut signatures = Vec::new();
    for key in &keys {
        signatures.push((key.address(), orders::sign(&order, &domain, key)?));
    }
    for signed in gathered {
        check_same(&order, &signed)?;
        signatures.push((signed.signer, signed.signature));
    }
    // Ascending by signer, as the contract wants them. Whether they are enough is the contract's to say.
    signatures.sort_by_key(|(signer, _)| *signer);
    let signers: Vec<Address> = signatures.iter().map(|(signer, _)| *signer).collect();
    let approval = Approval { deadline, signatures: signatures.into_iter().map(|(_, s)| s).collect() };
    let tx = Tx::call(treasury, action.call(approval), "the treasury refuses the order");
    let payer = keys.into_iter().next().context("no --key")?;
    let done = match Wallet::new(chain.clone(), payer).send(tx).await {
        Ok(done) => done,
        Err(e) => return Err(explain(&chain, treasury, &signers, e).await),
    };
    if quorum.json {
        println!(
            "{}",
            json!({ "action": action.name(), "transaction": done.tx_hash, "block": done.block, "signers": signers })
        );
    } else {
        println!("{}: in force since block {}, by {} stewards", action.name(), done.block, signers.len());
    }
    Ok(())
}

/// The treasury's refusal, with what is missing where the signatures are why.
async fn explain(chain: &chain::Chain, treasury: Address, signers: &[Address], refusal: chain::Error) -> anyhow::Error {
    let refusal = anyhow::Error::new(refusal);
    let Ok(birth) = chain.treasury(treasury).birth().await else { return refusal };
    let stewards = signers.iter().filter(|signer| birth.stewards.contains(signer)).count();
    if stewards >= usize::from(birth.threshold) {
        return refusal;
    }
    refusal.context(format!(
        "{stewards} of {} stewards signed and {} must: name another --key, or an --approval made by `vivarium steward \
         approve`",
        birth.stewards.len(),
        birth.threshold
    ))
}

async fn approve(action: Action, key: &std::path::Path, deadline: Option<u64>, target: Target) -> Result<()> {
    let (chain, treasury) = target.chain()?;
    let state = chain.treasury(treasury).state().await?;
    let deadline = match deadline {
        Some(deadline) => deadline,
        None => chain.head().await?.timestamp + ORDER_VALID_SECS,
    };
    let order = Order::new(action.name(), action.argument(), state.orderNonce, deadline);
    let key = read_key(key)?;
    let signature = orders::sign(&order, &orders::domain(chain.chain_id(), treasury), &key)?;
    let signed = Signed {
        action: order.action,
        argument: order.argument.to_string(),
        nonce: state.orderNonce.to_string(),
        deadline,
        signer: key.address(),
        signature,
    };
    println!("{}", serde_json::to_string_pretty(&signed)?);
    Ok(())
}

fn read_approval(path: &PathBuf) -> Result<Signed> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read the approval {}", path.display()))?;
    serde_json::from_str(&text)
        .with_context(|| format!("{} is not what `vivarium steward approve` prints", path.display()))
}

fn check_same(order: &Order, signed: &Signed) -> Result<()> {
    let same = signed.action == order.action
        && signed.argument == order.argument.to_string()
        && signed.nonce == order.nonce.to_string()
        && signed.deadline == order.deadline;
    ensure!(
        same,
        "the approval by {} is for another order ({} with nonce {} until {}); sign again",
        signed.signer,
        signed.action,
        signed.nonce,
        signed.deadline
    );
    Ok(())
}
