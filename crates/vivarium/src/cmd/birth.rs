//! `vivarium birth`: a second agent in a world that runs, from a manifest.

use super::link::{Place, block_on, stopped};
use alloy::primitives::Address;
use alloy::primitives::utils::format_ether;
use anyhow::{Context, Result};
use chain::Chain;
use economy::Usdc;
use serde_json::json;
use std::path::PathBuf;
use vivarium::world::birth::abort::{Returned, abort};
use vivarium::world::birth::{self, Consent, Goods};
use vivarium::world::files::{Folder, read_key};
use vivarium::world::progress::Progress;
use vivarium::world::wallet::Wallet;
use vivarium::world::{Contracts, INTERNAL_FILE, Internal, anvil};

/// Gives birth to an agent from a manifest: shows what a month costs, asks, pays, activates.
///
/// Weights, code and manifest are stored by CID; the treasury is created and gets the seed; the cheapest fitting
/// host is rented; its node becomes operator. From then on the creator's key has no rights, which is shown
/// entry by entry. The `manifest.toml` that `vivarium up` writes into its folder is an example.
///
/// A birth that ends half way says where the seed and the gas are: in a treasury that does not live. Once the time to
/// activate it is over, --abort has everything go back to the creator.
#[derive(clap::Args)]
pub struct Flags {
    /// The manifest (TOML)
    #[arg(required_unless_present = "abort")]
    manifest: Option<PathBuf>,
    /// Ends the birth that made this treasury and did not activate it in time; what it has goes back to its creator
    #[arg(long, value_name = "TREASURY", group = "asks_nobody")]
    #[arg(conflicts_with_all = ["manifest", "seed_usdc", "model", "embedding", "adapter", "further"])]
    abort: Option<Address>,
    #[command(flatten)]
    place: Place,
    /// What the creator pays in, in USDC
    #[arg(long, value_name = "USDC", value_parser = Usdc::parse, default_value = "100")]
    seed_usdc: Usdc,
    /// Who pays and has no rights afterwards; with --abort, anybody who pays its gas [default: the world's creator]
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// The weights that the manifest's model.cid names [default: the file model.file under .vivarium/models]
    #[arg(long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// The weights that the manifest's embedding.cid names, if it names some [default: as for --model]
    #[arg(long, value_name = "FILE")]
    embedding: Option<PathBuf>,
    /// An adapter that the manifest names, in its order; given for all or none [default: as for --model]
    #[arg(long, value_name = "FILE")]
    adapter: Vec<PathBuf>,
    /// A further model that the manifest names, in its order; given for all or none [default: as for --model]
    #[arg(long, value_name = "FILE")]
    further: Vec<PathBuf>,
    /// Does not ask
    #[arg(long, group = "asks_nobody")]
    yes: bool,
    /// One JSON object at the end: {"treasury", "lease"}, needs --yes; with --abort {"creator", "amount_uusdc", "wei",
    /// "transaction"}
    #[arg(long, requires = "asks_nobody")]
    json: bool,
}

/// A world's folder, contracts and chain, and whoever pays.
struct Site {
    folder: Folder,
    contracts: Contracts,
    creator: Wallet,
}

impl Flags {
    /// Needs a running runtime.
    fn site(&self) -> Result<Site> {
        let folder = Folder::create(&self.place.dir())?;
        let internal: Internal = folder.read_json(INTERNAL_FILE)?.with_context(|| {
            format!("there is no world in {}; start one with `vivarium up`", folder.path().display())
        })?;
        let contracts = internal.contracts.context("the world has no contracts yet; wait for `vivarium up`")?;
        let chain = Chain::connect(&vivarium::world::ports::local_url(internal.ports.chain), anvil::CHAIN_ID)?;
        let key_file = self.key.clone().unwrap_or_else(|| folder.join("keys/creator.development-key"));
        let creator = Wallet::new(chain, read_key(&key_file)?);
        Ok(Site { folder, contracts, creator })
    }
}

pub fn run(flags: Flags) -> Result<()> {
    if let Some(treasury) = flags.abort {
        return block_on(undo(&flags, treasury));
    }
    let path = flags.manifest.as_ref().context("no manifest")?;
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read the manifest {}", path.display()))?;
    let manifest = node::manifest::Manifest::parse(&text)?;
    block_on(give(flags, &text, &manifest))
}

async fn give(flags: Flags, text: &str, manifest: &node::manifest::Manifest) -> Result<()> {
    let Site { folder, contracts, creator } = flags.site()?;
    let vivarium = std::env::current_exe().context("cannot find this program's own file")?;
    let models = vivarium::world::Programs::project()?.join(".vivarium/models");
    let standard = |model: &node::manifest::Model| models.join(&model.file);
    let adapters = match flags.adapter.is_empty() {
        true => manifest.adapters.iter().map(|adapter| models.join(&adapter.file)).collect(),
        false => flags.adapter,
    };
    let further = match flags.further.is_empty() {
        true => manifest.models.iter().map(|model| models.join(&model.file)).collect(),
        false => flags.further,
    };
    let goods = Goods {
        adapters,
        models: further,
        model: flags.model.unwrap_or_else(|| standard(&manifest.model)),
        embedding: flags.embedding.or_else(|| manifest.embedding.as_ref().map(standard)),
        engines: infer::engines::all_in(vivarium.parent().context("this program lies in a folder")?),
        vivarium,
    };
    let progress = if flags.json { Progress::Silent } else { Progress::Shown };
    let store = store::StoreClient::new(net::Client::new(), manifest.store_urls.clone());
    let stored = progress.step("weights and code stored by CID", goods.store(&store, folder.path())).await?;
    let plan = birth::Plan::new(text, &stored, &store, creator, contracts.addresses(), flags.seed_usdc).await?;
    let consent = if flags.yes { Consent::Given } else { Consent::Ask };
    // Not before there is something to tell: until then Ctrl-C ends this at once.
    let interrupted = async {
        match stopped() {
            Ok(stopped) => stopped.await,
            Err(_) => std::future::pending().await,
        }
    };
    let born = birth::run(&plan, consent, progress, interrupted).await?;
    if flags.json {
        println!("{}", json!({ "treasury": born.treasury, "lease": born.lease }));
    } else {
        println!("alive: treasury {}, lease {}", born.treasury, born.lease);
    }
    Ok(())
}

async fn undo(flags: &Flags, treasury: Address) -> Result<()> {
    let caller = flags.site()?.creator;
    let Returned { creator, amount, wei, transaction } = abort(&caller, treasury).await?;
    if flags.json {
        let (amount, wei) = (amount.micro().to_string(), wei.to_string());
        println!("{}", json!({ "creator": creator, "amount_uusdc": amount, "wei": wei, "transaction": transaction }));
    } else {
        println!("aborted: {amount} and {} ETH went back to {creator} (transaction {transaction})", format_ether(wei));
    }
    Ok(())
}
