//! `vivarium store …`: content by CID, in a folder of blocks.

use super::link::{block_on, log_to_stderr, stopped};
use anyhow::{Context, Result};
use serde::Serialize;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use store::unixfs::{Limits, Profile};
use store::{StoreClient, cli};
use vivarium::world::files::chosen_dir;

/// Keeps, fetches and serves content by CID. Every block is checked against its name, wherever it comes from.
#[derive(clap::Args)]
pub struct Flags {
    /// The folder of blocks [default: store/ in the world's folder]
    #[arg(long, value_name = "DIR", global = true)]
    data_dir: Option<PathBuf>,
    /// One JSON object instead of a line for people
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
        /// Untouched for this many hours
        #[arg(long, default_value_t = 24)]
        hours: u64,
    },
    /// Reads every block, or those below a CID, and removes what does not match its name
    Verify { cid: Option<String> },
    /// Writes a graph into a CAR file
    Export { cid: String, car: PathBuf },
    /// Stores the blocks of a CAR file
    Import { car: PathBuf },
}

pub fn run(flags: Flags) -> Result<()> {
    let dir = flags.data_dir.unwrap_or_else(|| chosen_dir(None).join("store"));
    let json = flags.json;
    match flags.command {
        Command::Serve { listen } => {
            log_to_stderr("info");
            block_on(async {
                let listener = tokio::net::TcpListener::bind(listen)
                    .await
                    .with_context(|| format!("cannot listen on {listen}; another program may hold the port"))?;
                Ok(cli::serve(&dir, listener, stopped()?).await?)
            })
        }
        Command::Add { path, store } if store.is_empty() => {
            let added = cli::add(&dir, &path, Profile::V1_2025, |_| {})?;
            show(json, &added, &added.cid)
        }
        Command::Add { path, store } => block_on(async {
            let imported = StoreClient::new(net::Client::new(), store).put_path(&path, Profile::V1_2025).await?;
            let cid = imported.cid.to_string();
            show(json, &serde_json::json!({ "cid": cid, "bytes": imported.bytes }), &cid)
        }),
        Command::Get { cid, out, from } => block_on(async {
            let got = cli::get(&dir, &cid, &out, from, Limits::default(), |_| {}).await?;
            show(json, &got, &format!("{} bytes in {}", got.bytes, got.path.display()))
        }),
        Command::Ls { cid } => {
            let listed = cli::ls(&dir, cid.as_deref())?;
            let line = |l: &cli::Listed| match &l.name {
                Some(name) => format!("{}  {name}", l.cid),
                None => format!("{}  {}", l.cid, l.reasons.join(", ")),
            };
            show(json, &listed, &listed.iter().map(line).collect::<Vec<_>>().join("\n"))
        }
        Command::Pin { cid, reason } => pinned(json, &cli::pin(&dir, &cid, &reason)?),
        Command::Unpin { cid, reason } => pinned(json, &cli::unpin(&dir, &cid, reason.as_deref())?),
        Command::Gc { hours } => {
            let gone = cli::gc(&dir, Duration::from_secs(hours.saturating_mul(3_600)))?;
            let line = format!(
                "removed {} blocks ({} bytes), kept {}; {} are pinned but not here",
                gone.removed_blocks, gone.removed_bytes, gone.kept_blocks, gone.missing_blocks
            );
            show(json, &gone, &line)
        }
        Command::Verify { cid } => {
            let seen = cli::verify(&dir, cid.as_deref(), |_| {})?;
            let (damaged, missing) = (seen.damaged.len(), seen.missing.len());
            let line =
                format!("{} blocks ({} bytes) read, {damaged} damaged, {missing} missing", seen.blocks, seen.bytes);
            show(json, &seen, &line)
        }
        Command::Export { cid, car } => moved(json, &cli::export(&dir, &cid, &car)?),
        Command::Import { car } => moved(json, &cli::import(&dir, &car)?),
    }
}

fn pinned(json: bool, pinned: &cli::Pinned) -> Result<()> {
    show(json, pinned, &format!("{} is kept for: {}", pinned.cid, pinned.reasons.join(", ")))
}

fn moved(json: bool, moved: &cli::Moved) -> Result<()> {
    show(json, moved, &format!("{} blocks ({} bytes) below {}", moved.blocks, moved.bytes, moved.roots.join(", ")))
}

fn show(json: bool, value: &impl Serialize, line: &str) -> Result<()> {
    if json {
        println!("{}", serde_json::to_string(value)?);
    } else {
        println!("{line}");
    }
    Ok(())
}
