//! `vivarium birth`: a second agent in a world that runs, from a manifest.

use super::link::{Place, block_on};
use anyhow::{Context, Result};
use economy::Usdc;
use serde_json::json;
use std::path::PathBuf;
use vivarium::world::birth::{self, Consent, Goods};
use vivarium::world::files::{Folder, read_key};
use vivarium::world::progress::Progress;
use vivarium::world::wallet::Wallet;
use vivarium::world::{INTERNAL_FILE, Internal, anvil};

/// Gives birth to an agent from a manifest: shows what a month costs, asks, pays, activates.
///
/// Weights, code and manifest are stored by CID; the treasury is created and gets the seed; the cheapest fitting
/// host is rented; its node becomes operator. From then on the creator's key has no rights, which is shown
/// entry by entry. The `manifest.toml` that `vivarium up` writes into its folder is an example.
#[derive(clap::Args)]
pub struct Flags {
    /// The manifest (TOML)
    manifest: PathBuf,
    #[command(flatten)]
    place: Place,
    /// What the creator pays in, in USDC
    #[arg(long, value_name = "USDC", value_parser = Usdc::parse, default_value = "100")]
    seed_usdc: Usdc,
    /// Who pays and has no rights afterwards [default: the world's creator]
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
    #[arg(long)]
    yes: bool,
    /// One JSON object at the end: {"treasury", "lease"}; needs --yes
    #[arg(long, requires = "yes")]
    json: bool,
}

pub fn run(flags: Flags) -> Result<()> {
    let text = std::fs::read_to_string(&flags.manifest)
        .with_context(|| format!("cannot read the manifest {}", flags.manifest.display()))?;
    let manifest = node::manifest::Manifest::parse(&text)?;
    block_on(async {
        let folder = Folder::create(&flags.place.dir())?;
        let internal: Internal = folder.read_json(INTERNAL_FILE)?.with_context(|| {
            format!("there is no world in {}; start one with `vivarium up`", folder.path().display())
        })?;
        let contracts = internal.contracts.context("the world has no contracts yet; wait for `vivarium up`")?;
        let chain = chain::Chain::connect(&vivarium::world::ports::local_url(internal.ports.chain), anvil::CHAIN_ID)?;
        let key_file = flags.key.unwrap_or_else(|| folder.join("keys/creator.development-key"));
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
        let creator = Wallet::new(chain, read_key(&key_file)?);
        let plan = birth::Plan::new(&text, &stored, &store, creator, contracts.addresses(), flags.seed_usdc).await?;
        let consent = if flags.yes { Consent::Given } else { Consent::Ask };
        let born = birth::run(&plan, consent, progress).await?;
        if flags.json {
            println!("{}", json!({ "treasury": born.treasury, "lease": born.lease }));
        } else {
            println!("alive: treasury {}, lease {}", born.treasury, born.lease);
        }
        Ok(())
    })
}
