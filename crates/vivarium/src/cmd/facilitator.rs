//! `vivarium facilitator`: settles x402 payments for sellers who name its URL.

use super::link::{Place, block_on, log_to_stderr, stopped};
use alloy::primitives::Address;
use anyhow::{Context, Result, ensure};
use chain::{Chain, Sender, sender};
use economy::Usdc;
use pay::facilitator::batch::{BatchPolicy, TRANSFER_GAS};
use serde_json::json;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use tokio::net::TcpListener;
use vivarium::facilitator::{self, Config};
use vivarium::world::files::read_key;

/// Between two looks at the chain while a settlement is on its way: whoever pays waits for it, and so does its seller.
const LOOK_EVERY: Duration = Duration::from_millis(40);

/// Serves the standard facilitator API (/verify, /settle, /supported): `exact` and `upto`, for a fee above its gas.
///
/// A payee pays for its settlements beforehand: POST /credit/ADDRESS is sold by x402, GET tells credit and fee. The key
/// needs ether and nothing else, and holds nothing of anybody's.
#[derive(clap::Args)]
pub struct Flags {
    /// The key that sends and pays the gas. Only this program uses it
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// Its journal: who has credit, what is being settled
    #[arg(long, value_name = "DIR")]
    journal: PathBuf,
    /// Price of an ether in USDC, to tell the fee by. Nobody is asked: keep it current
    #[arg(long, value_name = "USDC", value_parser = Usdc::parse)]
    ether: Usdc,
    /// What is taken above the gas that a settlement is estimated to need. It also covers what a roll-up takes for data
    #[arg(long, value_name = "PERCENT", default_value_t = 30)]
    margin: u32,
    /// What POST /credit/ADDRESS sells at once
    #[arg(long, value_name = "USDC", value_parser = Usdc::parse, default_value = "1")]
    lot: Usdc,
    /// Where credit is paid to [default: the key's address]
    #[arg(long, value_name = "ADDRESS")]
    pay_to: Option<Address>,
    /// The chain's endpoint, with --chain-id and --token [default: the world's]
    #[arg(long, value_name = "URL", requires = "token", requires = "chain_id")]
    rpc: Option<String>,
    /// With --rpc: its chain
    #[arg(long, value_name = "ID", requires = "rpc")]
    chain_id: Option<u64>,
    /// With --rpc: the only token that is settled
    #[arg(long, value_name = "ADDRESS", requires = "rpc")]
    token: Option<Address>,
    #[command(flatten)]
    place: Place,
    /// A factory that makes payers' contracts (ERC-6492), called by the key for whoever names it. May be repeated
    #[arg(long = "factory", value_name = "ADDRESS")]
    factories: Vec<Address>,
    /// A settlement waits for others at most so long, while the fee is more than a hundredth of what is settled
    #[arg(long, value_name = "MS", default_value_t = 1_000)]
    wait: u64,
    /// Where to listen; port 0 chooses a free one
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:4022")]
    listen: SocketAddr,
    /// Blocks until a settlement counts (1: mined)
    #[arg(long, value_name = "BLOCKS", default_value_t = 1)]
    confirmations: u64,
    /// One JSON object when it listens: {"url", "facilitator"}
    #[arg(long)]
    json: bool,
}

pub fn run(flags: Flags) -> Result<()> {
    ensure!(!flags.ether.is_zero(), "--ether 0: then gas would cost nothing");
    ensure!(!flags.lot.is_zero(), "--lot 0 sells nothing");
    log_to_stderr("warn,vivarium=info");
    block_on(serve(flags))
}

async fn serve(flags: Flags) -> Result<()> {
    let until = stopped()?;
    let (rpc, chain_id, token) = match (flags.rpc, flags.chain_id, flags.token) {
        (Some(rpc), Some(chain_id), Some(token)) => (rpc, chain_id, token),
        _ => {
            let world = flags.place.link()?.world;
            (world.rpc_url, world.chain_id, world.usdc)
        }
    };
    let chain = Chain::connect(&rpc, chain_id)?;
    chain.verify_chain().await?;
    chain.verify_code("the token", token).await?;
    let chain::Signing { name, version, has_eip3009, .. } = chain.usdc(token).signing().await?;
    ensure!(
        has_eip3009,
        "the token {token} ({name}) takes no EIP-3009 authorisations: credit could not be sold for it"
    );
    let key = read_key(&flags.key)?;
    let options = sender::Options { poll: LOOK_EVERY, ..sender::Options::new(flags.confirmations) };
    let sender = Sender::spawn_with(chain.clone(), key.clone(), options)?;
    let listener =
        TcpListener::bind(flags.listen).await.with_context(|| format!("cannot listen on {}", flags.listen))?;
    let url = format!("http://{}", listener.local_addr().context("cannot tell the port")?);
    if flags.json {
        println!("{}", json!({ "url": url, "facilitator": key.address() }));
    } else {
        println!("{url}  settles {name} ({token}) on eip155:{chain_id} by {}", key.address());
        println!("a payee buys credit with POST {url}/credit/ADDRESS, {} a lot; Ctrl-C ends", flags.lot);
    }
    let batch = BatchPolicy {
        gas: TRANSFER_GAS,
        fee_ppm_max: 10_000,
        // A dollar at risk is not worth a wait.
        sum_max: Usdc(1_000_000),
        wait_ms_max: flags.wait,
        rows_max: 50,
    };
    let config = Config {
        chain,
        chain_id,
        token,
        token_domain: (name, version),
        sender,
        pay_to: flags.pay_to.unwrap_or(key.address()),
        lot: flags.lot,
        ether: flags.ether,
        margin_pct: flags.margin,
        factories: flags.factories,
        batch,
        dir: flags.journal,
        public_url: url,
    };
    facilitator::serve(listener, config, until).await
}
