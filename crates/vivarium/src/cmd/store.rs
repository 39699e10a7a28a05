//! `vivarium store …`: content by CID, in a folder of blocks.

mod bar;

use super::link::{block_on, log_to_stderr, stopped};
use alloy::primitives::Address;
use anyhow::{Context, Result, ensure};
use bar::Bar;
use chain::Chain;
use economy::Usdc;
use serde::Serialize;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use store::car::Version;
use store::cli::kubo::Announce;
use store::unixfs::{Limits, Profile};
use store::{Kind, StoreClient, cli};
use vivarium::archivist;
use vivarium::world::files::chosen_dir;

/// Keeps, fetches and serves content by CID. Every block is checked against its name, wherever it comes from.
///
/// Exit status: 0 done, 2 the request is wrong, 3 something is missing, 4 bytes are not what they are called, 5 a limit
/// was passed, 6 the disk is full, 7 no source answered, 8 a key does not fit, 1 anything else.
#[derive(clap::Args)]
pub struct Flags {
    /// The folder of blocks [default: store/ in the world's folder]
    #[arg(long, value_name = "DIR", global = true)]
    data_dir: Option<PathBuf>,
    /// One JSON object instead of a line for people; of a command that fails, {"error", "status"}
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Serves the folder until SIGTERM: GET /ipfs/{cid}, PUT /blocks/{cid}, GET /health
    Serve {
        /// Where to listen
        #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:7000")]
        listen: SocketAddr,
    },
    /// Stores a file or directory and prints its CID
    Add {
        path: PathBuf,
        /// Put it into the store that serves there, instead of the folder; may be repeated
        #[arg(long, value_name = "URL")]
        store: Vec<String>,
        /// How it is cut and named: unixfs-v1-2025 or unixfs-v0-2015
        #[arg(long, value_name = "NAME", default_value = "unixfs-v1-2025", value_parser = Profile::parse)]
        profile: Profile,
    },
    /// Writes the file or directory behind a CID, fetching what is not here
    Get {
        cid: String,
        /// Where to write it; must not exist
        out: PathBuf,
        /// Stores or trustless gateways to fetch from; may be repeated
        #[arg(long, value_name = "URL")]
        from: Vec<String>,
    },
    /// Lists a directory, or everything that is pinned
    Ls { cid: Option<String> },
    /// Keeps a graph from garbage collection
    Pin {
        cid: String,
        /// Under this reason
        #[arg(long, default_value = cli::ADDED)]
        reason: String,
    },
    /// Takes a pin back
    Unpin {
        cid: String,
        /// Only this reason
        #[arg(long)]
        reason: Option<String>,
    },
    /// Removes blocks that no pin holds and that have not been touched for a while
    Gc {
        /// Untouched for this many hours; an agent goes three days without a checkpoint
        #[arg(long, default_value_t = 96)]
        hours: u64,
    },
    /// Reads every block, or those below a CID, and removes what does not match its name; exit status 4 or 3 if
    /// anything is damaged or missing
    Verify { cid: Option<String> },
    /// Writes a graph into a CAR file
    Export {
        cid: String,
        car: PathBuf,
        /// 1 or 2
        #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=2))]
        car_version: u8,
    },
    /// Stores the blocks of a CAR file
    Import { car: PathBuf },
    /// Arweave: storage paid for once, by an RSA key of yours
    #[command(subcommand)]
    Arweave(ArweaveCommand),
    /// A Kubo node, by its RPC interface
    #[command(subcommand)]
    Kubo(KuboCommand),
}

#[derive(clap::Subcommand)]
enum ArweaveCommand {
    /// Sends a graph as a CAR file; run it again after a crash, it goes on with the same transaction
    Put {
        cid: String,
        /// Nodes or gateways; may be repeated
        #[arg(long, value_name = "URL", required = true)]
        gateway: Vec<String>,
        /// The wallet that pays (a JWK file)
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
        /// Pay at most this, in winston (1e-12 AR)
        #[arg(long, value_name = "WINSTON")]
        reward_max: u128,
    },
    /// Says whether the transaction of a graph is paid, unpaid or not known yet
    Status {
        cid: String,
        #[arg(long, value_name = "URL", required = true)]
        gateway: Vec<String>,
    },
    /// Stores and pins the graph that a transaction holds; every chunk is proven
    Get {
        transaction: String,
        #[arg(long, value_name = "URL", required = true)]
        gateway: Vec<String>,
        /// Refuse more than this
        #[arg(long, value_name = "BYTES", default_value_t = 1 << 40)]
        bytes_max: u64,
    },
    /// Sells storage there to agents, for USDC that their treasuries pay to --payee, until SIGTERM
    ///
    /// An agent whose manifest names the payee and this URL in [archive] asks GET /price?bytes=N, pays from its treasury,
    /// and names the transaction in POST /items. The checkpoint that it names is fetched from the stores that it names,
    /// without its keys, and sent as one transaction by your wallet. GET /items/CID says what became of it: paid, unpaid
    /// or unknown; GET /credit/TREASURY what a treasury has paid and not used. Keep the folder: in it is who has paid for
    /// what.
    Sell(Box<Sell>),
}

#[derive(clap::Args)]
struct Sell {
    /// Arweave nodes or gateways; may be repeated
    #[arg(long, value_name = "URL", required = true)]
    gateway: Vec<String>,
    /// The wallet that pays Arweave (a JWK file). Only this program uses it
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// Pay at most this for one copy, in winston (1e-12 AR), whatever a gateway asks
    #[arg(long, value_name = "WINSTON")]
    reward_max: u128,
    /// Price of an AR in USDC. Nobody is asked: keep it current
    #[arg(long, value_name = "USDC", value_parser = Usdc::parse)]
    ar: Usdc,
    /// What is taken above what Arweave asks
    #[arg(long, value_name = "PERCENT", default_value_t = 30)]
    margin: u32,
    /// Whom treasuries pay. Its key is not needed here
    #[arg(long, value_name = "ADDRESS")]
    payee: Address,
    /// The chain's endpoint
    #[arg(long, value_name = "URL")]
    rpc: String,
    #[arg(long, value_name = "ID")]
    chain_id: u64,
    /// The only token that is taken
    #[arg(long, value_name = "ADDRESS")]
    token: Address,
    /// Blocks that a payment is under before it counts (1: mined)
    #[arg(long, value_name = "BLOCKS", default_value_t = 10)]
    confirmations: u64,
    /// Chain seconds for which a price holds
    #[arg(long, value_name = "SECONDS", default_value_t = 3_600)]
    valid: u64,
    /// Longest copy that is sold
    #[arg(long, value_name = "BYTES", default_value_t = 1 << 28)]
    bytes_max: u64,
    /// Where to listen; port 0 chooses a free one
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:7010")]
    listen: SocketAddr,
}

#[derive(clap::Subcommand)]
enum KuboCommand {
    /// Puts a graph into the node and pins it there
    Add {
        cid: String,
        #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:5001")]
        api: String,
        /// And have the node tell the network that it has it
        #[arg(long)]
        announce: bool,
    },
    /// Brings a graph here and pins it
    Get {
        cid: String,
        #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:5001")]
        api: String,
    },
}

pub fn run(flags: Flags) -> ExitCode {
    let json = flags.json;
    carry_out(flags).unwrap_or_else(|error| {
        let status = error.downcast_ref::<store::Error>().map_or(1, |e| status(e.kind));
        match json {
            true => println!("{}", serde_json::json!({ "error": format!("{error:#}"), "status": status })),
            false => crate::say(&error),
        }
        ExitCode::from(status)
    })
}

/// What a script sees of an error; in the help of `vivarium store`.
fn status(kind: Kind) -> u8 {
    match kind {
        Kind::Usage => 2,
        Kind::Missing => 3,
        Kind::Corrupt => 4,
        Kind::OverLimit => 5,
        Kind::DiskFull => 6,
        Kind::Unreachable => 7,
        Kind::Key => 8,
        Kind::Disk | Kind::Bug => 1,
    }
}

fn carry_out(flags: Flags) -> Result<ExitCode> {
    let dir = flags.data_dir.unwrap_or_else(|| chosen_dir(None).join("store"));
    let json = flags.json;
    let bar = Bar::new(json);
    match flags.command {
        Command::Serve { listen } => {
            log_to_stderr("info");
            block_on(async {
                let listener = tokio::net::TcpListener::bind(listen)
                    .await
                    .with_context(|| format!("cannot listen on {listen}; another program may hold the port"))?;
                if json {
                    println!("{}", serde_json::json!({ "url": format!("http://{}", listener.local_addr()?) }));
                }
                Ok(cli::serve(&dir, listener, stopped()?).await?)
            })
        }
        Command::Add { path, store, profile } if store.is_empty() => {
            let added = cli::add(&dir, &path, profile, |bytes| bar.bytes(bytes))?;
            show(&bar, json, &added, &added.cid)
        }
        Command::Add { path, store, profile } => block_on(async {
            let client = StoreClient::new(net::Client::new(), store);
            let imported = client.put_path_each(&path, profile, |bytes| bar.bytes(bytes)).await?;
            let cid = imported.cid.to_string();
            show(&bar, json, &serde_json::json!({ "cid": cid, "bytes": imported.bytes }), &cid)
        }),
        Command::Get { cid, out, from } => block_on(async {
            let got = cli::get(&dir, &cid, &out, from, Limits::default(), |progress| bar.fetch(progress)).await?;
            show(&bar, json, &got, &format!("{} bytes in {}", got.bytes, got.path.display()))?;
            if !json {
                // It is here all the same; whoever named that source wants to know.
                for source in &got.sources {
                    source.dropped.iter().for_each(|why| eprintln!("{} was dropped: {why}", source.url));
                }
            }
            Ok(())
        }),
        Command::Ls { cid } => {
            let listed = cli::ls(&dir, cid.as_deref())?;
            let line = |l: &cli::Listed| match &l.name {
                Some(name) => format!("{}  {name}", l.cid),
                None => format!("{}  {}", l.cid, l.reasons.join(", ")),
            };
            show(&bar, json, &listed, &listed.iter().map(line).collect::<Vec<_>>().join("\n"))
        }
        Command::Pin { cid, reason } => {
            pinned(&bar, json, &cli::pin(&dir, &cid, &reason, |blocks| bar.blocks(blocks))?)
        }
        Command::Unpin { cid, reason } => pinned(&bar, json, &cli::unpin(&dir, &cid, reason.as_deref())?),
        Command::Gc { hours } => {
            let age_min = Duration::from_secs(hours.saturating_mul(3_600));
            let gone = cli::gc(&dir, age_min, |blocks| bar.blocks(blocks))?;
            let line = format!(
                "removed {} blocks ({} bytes), kept {}; {} are pinned but not here",
                gone.removed_blocks, gone.removed_bytes, gone.kept_blocks, gone.missing_blocks
            );
            show(&bar, json, &gone, &line)?;
            if !json {
                for cli::Unreadable { pin, why } in &gone.unreadable {
                    eprintln!("the pin {pin} cannot be followed ({why}); all that it might reach is kept: unpin it");
                }
            }
            Ok(())
        }
        Command::Verify { cid } => {
            let seen = cli::verify(&dir, cid.as_deref(), |bytes| bar.bytes(bytes))?;
            let (damaged, missing) = (seen.damaged.len(), seen.missing.len());
            let line =
                format!("{} blocks ({} bytes) read, {damaged} damaged, {missing} missing", seen.blocks, seen.bytes);
            show(&bar, json, &seen, &line)?;
            return Ok(match (damaged, missing) {
                (0, 0) => ExitCode::SUCCESS,
                (0, _) => ExitCode::from(status(Kind::Missing)),
                _ => ExitCode::from(status(Kind::Corrupt)),
            });
        }
        Command::Export { cid, car, car_version } => {
            let version = if car_version == 2 { Version::V2 } else { Version::V1 };
            moved(&bar, json, &cli::export(&dir, &cid, &car, version, |bytes| bar.bytes(bytes))?)
        }
        Command::Import { car } => moved(&bar, json, &cli::import(&dir, &car, |bytes| bar.bytes(bytes))?),
        Command::Arweave(command) => block_on(arweave(&bar, json, &dir, command)),
        Command::Kubo(command) => block_on(kubo(&bar, json, &dir, command)),
    }?;
    Ok(ExitCode::SUCCESS)
}

async fn arweave(bar: &Bar, json: bool, dir: &Path, command: ArweaveCommand) -> Result<()> {
    let stored = match command {
        ArweaveCommand::Put { cid, gateway, key, reward_max } => {
            cli::arweave::put(dir, &cid, gateway, &key, reward_max, |bytes| bar.bytes(bytes)).await?
        }
        ArweaveCommand::Status { cid, gateway } => cli::arweave::status(dir, &cid, gateway).await?,
        ArweaveCommand::Sell(sell) => return self::sell(json, dir, *sell).await,
        ArweaveCommand::Get { transaction, gateway, bytes_max } => {
            let got = cli::arweave::get(dir, &transaction, gateway, bytes_max, |bytes| bar.bytes(bytes)).await?;
            return moved(bar, json, &got);
        }
    };
    show(bar, json, &stored, &format!("{}  {}", stored.transaction, stored.outcome))
}

async fn sell(json: bool, dir: &Path, sell: Sell) -> Result<()> {
    ensure!(!sell.ar.is_zero(), "--ar 0: then storage would cost nothing");
    ensure!(!sell.payee.is_zero(), "--payee is nobody");
    ensure!(sell.confirmations > 0, "--confirmations 0: a payment counts when it is in a block, at the earliest");
    log_to_stderr("warn,vivarium=info");
    let until = stopped()?;
    let chain = Chain::connect(&sell.rpc, sell.chain_id)?;
    chain.verify_chain().await?;
    chain.verify_code("the token", sell.token).await?;
    let wallet = std::fs::read(&sell.key).with_context(|| format!("cannot read {}", sell.key.display()))?;
    store::arweave::Key::from_jwk(&wallet)?;
    let listener = tokio::net::TcpListener::bind(sell.listen)
        .await
        .with_context(|| format!("cannot listen on {}", sell.listen))?;
    let url = format!("http://{}", listener.local_addr().context("cannot tell the port")?);
    if json {
        println!("{}", serde_json::json!({ "url": url, "payee": sell.payee }));
    } else {
        println!(
            "{url}  sells storage on Arweave for {} on eip155:{}, paid to {}",
            sell.token, sell.chain_id, sell.payee
        );
        println!("agents name both in their manifest's [archive]; Ctrl-C ends");
    }
    let config = archivist::Config {
        chain,
        chain_id: sell.chain_id,
        token: sell.token,
        payee: sell.payee,
        confirmations: sell.confirmations,
        gateways: sell.gateway,
        wallet: sell.key,
        reward_winston_max: sell.reward_max,
        ar: sell.ar,
        margin_pct: sell.margin,
        valid_secs: sell.valid,
        bytes_max: sell.bytes_max,
        dir: dir.to_owned(),
    };
    archivist::serve(listener, config, until).await
}

async fn kubo(bar: &Bar, json: bool, dir: &Path, command: KuboCommand) -> Result<()> {
    let shared = match command {
        KuboCommand::Add { cid, api, announce } => {
            let announces = if announce { Announce::Yes } else { Announce::No };
            cli::kubo::add(dir, &cid, api, announces, |blocks| bar.blocks(blocks)).await?
        }
        KuboCommand::Get { cid, api } => cli::kubo::get(dir, &cid, api, |blocks| bar.blocks(blocks)).await?,
    };
    show(bar, json, &shared, &format!("{} blocks of {}", shared.blocks, shared.cid))
}

fn pinned(bar: &Bar, json: bool, pinned: &cli::Pinned) -> Result<()> {
    show(bar, json, pinned, &format!("{} is kept for: {}", pinned.cid, pinned.reasons.join(", ")))
}

fn moved(bar: &Bar, json: bool, moved: &cli::Moved) -> Result<()> {
    show(bar, json, moved, &format!("{} blocks ({} bytes) below {}", moved.blocks, moved.bytes, moved.roots.join(", ")))
}

fn show(bar: &Bar, json: bool, value: &impl Serialize, line: &str) -> Result<()> {
    bar.clear();
    if json {
        println!("{}", serde_json::to_string(value)?);
    } else {
        println!("{line}");
    }
    Ok(())
}
