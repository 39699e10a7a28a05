//! `vivarium steward …`: the daemon that watches an agent, and the orders of a quorum.

use super::link::{Place, block_on, log_to_stderr, stopped};
use alloy::primitives::{Address, U128};
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::path::{Path, PathBuf};
use steward::StewardConfig;
use steward::orders::{Action, Limits, OrderFile, Quorum as Stewards, Submitted};
use vivarium::world::files::{read_key, write_private};
use vivarium::world::progress::ask;

/// Chain seconds for which an order stays valid. A choice: long enough to gather signatures by hand.
const ORDER_VALID_SECS: u64 = 3_600;

/// Runs a steward daemon, or gives a quorum's order.
///
/// An order needs the signatures of k stewards (2 of 3 in a world made by `up`), or of enough owners of the Safe that
/// is the steward. With fewer the treasury refuses. Where all keys are at hand, name each with --key. On separate
/// machines the order goes round as a file, and only the first and the last step need the chain:
///
///   vivarium steward pause --out order.json                    anybody prepares it
///   vivarium steward approve order.json --key FILE             each steward or owner adds a signature
///   vivarium steward submit order.json --key FILE              anybody sends it and pays the gas
///
/// Copies that were signed apart are brought together by `submit one.json two.json`.
/// A pause that lasts longer than the escrow prepaid to the host loses the host; it then ends through `resume` and a
/// rescue by the stewards.
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
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
    /// Rents a fresh host for an agent that nobody acts for
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
    /// Moves the end of the mandate, only ever later
    ExtendMandate {
        #[command(flatten)]
        quorum: Quorum,
        /// Chain time, seconds
        #[arg(long, value_name = "SECS")]
        until: u64,
    },
    /// Lets refunds go on in a pause, until it ends
    OpenRefunds(Quorum),
    /// Forbids the code that the agent runs: every host is left at once, nobody is operator, until `set-code`
    RevokeCode(Quorum),
    /// Lowers limits at once; what is not named stays. Voids every order that waits for its delay
    Tighten {
        #[command(flatten)]
        quorum: Quorum,
        #[command(flatten)]
        limits: NewLimits,
    },
    /// Raises limits within birth's ceilings, after birth's delay: give the same order again then
    Loosen {
        #[command(flatten)]
        quorum: Quorum,
        #[command(flatten)]
        limits: NewLimits,
    },
    /// Names other code for new leases, after birth's delay: give the same order again then
    SetCode {
        #[command(flatten)]
        quorum: Quorum,
        /// The code directory's CID
        #[arg(long, value_name = "CID")]
        code: String,
    },
    /// Names other stewards, after birth's delay: give the same order again then
    SetStewards {
        #[command(flatten)]
        quorum: Quorum,
        /// One of them; name it once for each
        #[arg(long, value_name = "ADDRESS", required = true)]
        steward: Vec<Address>,
        /// How many of them must sign
        #[arg(long, value_name = "K")]
        threshold: u8,
    },
    /// Shows an order, asks, and adds one signature to its file; needs no chain
    Approve(Approve),
    /// Sends an order that enough have signed
    Submit(Submit),
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

/// Which limits change, and to what.
#[derive(Clone, Copy, Debug, clap::Args)]
#[group(required = true, multiple = true)]
struct NewLimits {
    /// Gross commitments a day, micro-USDC
    #[arg(long, value_name = "UUSDC")]
    day_limit_uusdc: Option<u128>,
    /// Price cap of a lease, micro-USDC x 1e-6 per second
    #[arg(long, value_name = "E6")]
    price_e6_max: Option<u64>,
    /// Longest lease
    #[arg(long, value_name = "SECS")]
    term_max: Option<u32>,
    /// Rent in escrow ahead of now, at most
    #[arg(long, value_name = "SECS")]
    prepay_max: Option<u32>,
    /// Gas that a day's refuelling may pay out
    #[arg(long, value_name = "WEI")]
    gas_day_max_wei: Option<u128>,
    /// What refuelling tops a key up to
    #[arg(long, value_name = "WEI")]
    gas_target_wei: Option<u128>,
}

impl NewLimits {
    /// `now` with what was named in its place.
    fn over(self, now: Limits) -> Limits {
        Limits {
            day_limit: self.day_limit_uusdc.map_or(now.day_limit, U128::from),
            price_e6_max: self.price_e6_max.unwrap_or(now.price_e6_max),
            term_max: self.term_max.unwrap_or(now.term_max),
            prepay_max: self.prepay_max.unwrap_or(now.prepay_max),
            gas_day_max: self.gas_day_max_wei.map_or(now.gas_day_max, U128::from),
            gas_target: self.gas_target_wei.map_or(now.gas_target, U128::from),
            starve_floor: now.starve_floor,
        }
    }
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
    /// The chain's id, with --rpc [default: the world's]
    #[arg(long, value_name = "ID", requires = "rpc")]
    chain_id: Option<u64>,
}

/// Who orders.
#[derive(clap::Args)]
struct Quorum {
    /// The order key of a steward, or of an owner of the Safe that is one; name it once for each. The first one pays the
    /// gas
    #[arg(long, value_name = "FILE", required_unless_present = "out")]
    key: Vec<PathBuf>,
    /// Write the order, with the signatures of the keys named, instead of sending it
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    target: Target,
    /// One JSON object: {"action", "transaction", "block", "signers", "in_force"}
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
struct Approve {
    /// The order that somebody prepared with --out
    order: PathBuf,
    /// Sign with this order key
    #[arg(long, value_name = "FILE", conflicts_with = "config", required_unless_present = "config")]
    key: Option<PathBuf>,
    /// Sign with the order key of the steward daemon of this TOML file, and let the daemon hand the signature out: then
    /// `submit --daemon URL` finds it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Write the signed order here [default: where it was]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Shows the order and does not ask
    #[arg(long)]
    yes: bool,
}

#[derive(clap::Args)]
struct Submit {
    /// The order's file; several copies of one order are brought together
    #[arg(required = true)]
    order: Vec<PathBuf>,
    /// Pays the gas; anybody's
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// A steward daemon that may hold a signature of its operator's; may be repeated
    #[arg(long, value_name = "URL")]
    daemon: Vec<String>,
    #[command(flatten)]
    place: Place,
    /// The chain's RPC endpoint [default: the world's]
    #[arg(long, value_name = "URL")]
    rpc: Option<String>,
    /// One JSON object: {"action", "transaction", "block", "signers", "in_force"}
    #[arg(long)]
    json: bool,
}

pub fn run(flags: Flags) -> Result<()> {
    match flags.command {
        Command::Run { config } => {
            log_to_stderr("info");
            let config = StewardConfig::load(&config)?;
            block_on(async { steward::run(config, stopped()?).await })
        }
        Command::Pause(quorum) => block_on(order(Action::Pause, quorum)),
        Command::Resume(quorum) => block_on(order(Action::Resume, quorum)),
        Command::Stop(quorum) => block_on(order(Action::Stop, quorum)),
        Command::Evict { quorum, keep } => block_on(order(Action::Evict { keep }, quorum)),
        Command::Rescue { quorum, bargain: Bargain { offer, term, prepay_uusdc } } => {
            block_on(order(Action::Rescue { offer, term, prepay_uusdc }, quorum))
        }
        Command::ClearBar { quorum, provider } => block_on(order(Action::ClearBar { provider }, quorum)),
        Command::ExtendMandate { quorum, until } => block_on(order(Action::ExtendMandate { until }, quorum)),
        Command::OpenRefunds(quorum) => block_on(order(Action::OpenRefunds, quorum)),
        Command::RevokeCode(quorum) => block_on(revoke_code(quorum)),
        Command::Tighten { quorum, limits } => block_on(async {
            let limits = limits.over(limits_now(&quorum).await?);
            order(Action::Tighten { limits }, quorum).await
        }),
        Command::Loosen { quorum, limits } => block_on(async {
            let limits = limits.over(limits_now(&quorum).await?);
            order(Action::Loosen { limits }, quorum).await
        }),
        Command::SetCode { quorum, code } => {
            let cid = store::cid::parse(&code).with_context(|| format!("{code:?} is no CID"))?;
            block_on(order(Action::SetCode { code: store::cid::digest(&cid).into() }, quorum))
        }
        Command::SetStewards { quorum, mut steward, threshold } => {
            steward.sort();
            block_on(order(Action::SetStewards { quorum: Stewards { stewards: steward, threshold } }, quorum))
        }
        Command::Approve(approve) => self::approve(&approve),
        Command::Submit(submit) => block_on(self::submit(submit)),
    }
}

impl Target {
    fn chain(&self) -> Result<(chain::Chain, Address)> {
        if let (Some(treasury), Some(rpc)) = (self.treasury, &self.rpc) {
            let chain_id = self.chain_id.context("--treasury needs --chain-id, too")?;
            return Ok((chain::Chain::connect(rpc, chain_id)?, treasury));
        }
        let link = self.place.link()?;
        let chain = match &self.rpc {
            Some(rpc) => chain::Chain::connect(rpc, self.chain_id.unwrap_or(link.world.chain_id))?,
            None => link.record.chain,
        };
        Ok((chain, link.world.treasury))
    }
}

/// The code is whatever the treasury names now: nobody revokes another one by a slip.
async fn revoke_code(quorum: Quorum) -> Result<()> {
    let (chain, treasury) = quorum.target.chain()?;
    let code = chain.treasury(treasury).state().await?.codeHash;
    ensure!(!code.is_zero(), "the treasury {treasury} names no code: it is revoked already");
    order(Action::RevokeCode { code }, quorum).await
}

async fn limits_now(quorum: &Quorum) -> Result<Limits> {
    let (chain, treasury) = quorum.target.chain()?;
    let birth = chain.treasury(treasury).birth().await.with_context(|| format!("no treasury at {treasury}"))?;
    Ok(Limits::from(&birth.policy))
}

async fn order(action: Action, quorum: Quorum) -> Result<()> {
    let (chain, treasury) = quorum.target.chain()?;
    let mut order = OrderFile::prepare(&chain, treasury, action, ORDER_VALID_SECS).await?;
    let keys = quorum.key.iter().map(|file| read_key(file)).collect::<Result<Vec<_>>>()?;
    for key in &keys {
        order.sign(key)?;
    }
    match quorum.out {
        Some(out) => {
            write_private(&out, order.to_json().as_bytes())?;
            println!("{}", in_words(&order));
            tell_next(&order, &out);
            Ok(())
        }
        None => send(&order, &chain, keys.first().context("no --key")?, quorum.json).await,
    }
}

fn approve(flags: &Approve) -> Result<()> {
    let mut order = read(&flags.order)?;
    if flags.yes {
        println!("{}", in_words(&order));
    } else {
        ensure!(ask(&format!("{}\n  Sign it?", in_words(&order)))?, "not signed, and nothing is written");
    }
    let config = flags.config.as_deref().map(StewardConfig::load).transpose()?;
    let key = config.as_ref().map(|c| &c.order_key_file).or(flags.key.as_ref()).context("no --key")?;
    order.sign(&read_key(key)?)?;
    let out = flags.out.as_ref().unwrap_or(&flags.order);
    write_private(out, order.to_json().as_bytes())?;
    if let Some(config) = config {
        steward::orders::hand_out(&config, &order)?;
    }
    tell_next(&order, out);
    Ok(())
}

async fn submit(flags: Submit) -> Result<()> {
    let mut files = flags.order.iter().map(|file| read(file)).collect::<Result<Vec<_>>>()?.into_iter();
    let mut order = files.next().context("no order")?;
    for other in files {
        order.merge(other)?;
    }
    let http = net::Client::new();
    let digest = order.digest();
    for daemon in &flags.daemon {
        let url = format!("{}/orders/{}", daemon.trim_end_matches('/'), order.treasury);
        let held: Vec<OrderFile> =
            http.get_json(&url).await.with_context(|| format!("the steward daemon at {daemon} does not answer"))?;
        for other in held.into_iter().filter(|other| other.digest() == digest) {
            order.merge(other)?;
        }
    }
    let chain = match &flags.rpc {
        Some(rpc) => chain::Chain::connect(rpc, order.chain_id)?,
        None => flags.place.link()?.record.chain,
    };
    chain.verify_chain().await?;
    send(&order, &chain, &read_key(&flags.key)?, flags.json).await
}

async fn send(
    order: &OrderFile,
    chain: &chain::Chain,
    payer: &alloy::signers::local::PrivateKeySigner,
    json: bool,
) -> Result<()> {
    let Submitted { done, in_force } = order.submit(chain, payer).await?;
    let signers: Vec<Address> = order.signatures.iter().map(|part| part.signer).collect();
    if json {
        println!(
            "{}",
            json!({
                "action": order.action,
                "transaction": done.tx_hash,
                "block": done.block,
                "signers": signers,
                "in_force": in_force,
            })
        );
    } else if !in_force {
        println!(
            "{}: queued in block {}; after the delay of birth give the same order again, and it is carried out",
            order.action, done.block
        );
    } else {
        println!("{}: in force since block {}, signed by {} people", order.action, done.block, signers.len());
    }
    Ok(())
}

fn read(path: &Path) -> Result<OrderFile> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read the order {}", path.display()))?;
    let order = OrderFile::parse(&text).with_context(|| format!("{}", path.display()))?;
    ensure!(!order.stewards.is_empty(), "{} names no stewards", path.display());
    Ok(order)
}

/// What the order is, in words, so that nobody signs what it is called by a file's name.
fn in_words(order: &OrderFile) -> String {
    let what = order.action().map_or_else(|_| order.action.clone(), |action| action.to_string());
    format!(
        "{what}: treasury {} on chain {}, order number {}, valid until {} (chain seconds)",
        order.treasury, order.chain_id, order.nonce, order.deadline
    )
}

/// Who is asked next.
fn tell_next(order: &OrderFile, path: &Path) {
    match order.approval() {
        Ok(_) => println!("enough have signed: vivarium steward submit {} --key FILE", path.display()),
        Err(missing) => {
            println!("{missing:#}; the next one signs with: vivarium steward approve {} --key FILE", path.display());
        }
    }
}
