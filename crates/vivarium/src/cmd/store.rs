//! `vivarium store …`: content by CID.

use super::link::{block_on, log_to_stderr, stopped};
use anyhow::{Context, Result, bail};
use serde_json::json;
use std::net::SocketAddr;
use std::path::PathBuf;
use store::unixfs::{self, Profile};
use store::{Blocks, StoreClient, cid};

/// Keeps and serves content by CID.
#[derive(clap::Args)]
pub struct Flags {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Serves a folder of blocks until SIGTERM: GET /ipfs/{cid}, PUT /blocks/{cid}, GET /health
    Serve {
        /// The folder of blocks; made if it is not there
        #[arg(long, value_name = "DIR")]
        data_dir: PathBuf,
        /// Where to listen
        #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:7000")]
        listen: SocketAddr,
    },
    /// Stores a file or directory and prints its CID
    Add {
        path: PathBuf,
        /// The store to put it into; without one only the CID is computed
        #[arg(long, value_name = "URL")]
        store: Vec<String>,
        /// One JSON object: {"cid", "bytes"}
        #[arg(long)]
        json: bool,
    },
    /// Writes the bytes behind a CID to a file, verified
    Get {
        cid: String,
        #[arg(long, value_name = "URL", required = true)]
        store: Vec<String>,
        /// Where to write it; must not exist
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// Refuse anything longer
        #[arg(long, value_name = "BYTES", default_value_t = 1 << 30)]
        bytes_max: usize,
    },
}

pub fn run(flags: Flags) -> Result<()> {
    match flags.command {
        Command::Serve { data_dir, listen } => block_on(serve(data_dir, listen)),
        Command::Add { path, store, json } => block_on(add(path, store, json)),
        Command::Get { cid, store, out, bytes_max } => block_on(get(cid, store, out, bytes_max)),
    }
}

async fn serve(data_dir: PathBuf, listen: SocketAddr) -> Result<()> {
    log_to_stderr("info");
    let blocks = Blocks::open(data_dir)?;
    let listener = tokio::net::TcpListener::bind(listen)
        .await
        .with_context(|| format!("cannot listen on {listen}; another program may hold the port"))?;
    Ok(store::serve(listener, blocks, stopped()?).await?)
}

async fn add(path: PathBuf, urls: Vec<String>, as_json: bool) -> Result<()> {
    let imported = if urls.is_empty() {
        unixfs::import_path(&path, Profile::V1_2025, &mut |_, _| Ok(()))?
    } else {
        StoreClient::new(net::Client::new(), urls).put_path(&path, Profile::V1_2025).await?
    };
    if as_json {
        println!("{}", json!({ "cid": imported.cid.to_string(), "bytes": imported.bytes }));
    } else {
        println!("{}", imported.cid);
    }
    Ok(())
}

async fn get(text: String, urls: Vec<String>, out: PathBuf, bytes_max: usize) -> Result<()> {
    let cid = cid::parse(&text)?;
    if out.exists() {
        bail!("{} is there already; name a file that is not", out.display());
    }
    let bytes = StoreClient::new(net::Client::new(), urls).get_bytes(&cid, bytes_max).await?;
    std::fs::write(&out, bytes).with_context(|| format!("cannot write {}", out.display()))
}
