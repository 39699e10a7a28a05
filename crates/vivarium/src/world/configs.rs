//! The daemons of a world and their configuration files, written anew at each start.

use super::files::{Folder, KeyEntry, write_private};
use super::genesis::{self, Choices};
use super::ports::{Place, Ports, local_url, url_at};
use super::processes::Program;
use super::{Contracts, anvil};
use anyhow::{Context, Result};
use host::HostConfig;
use infer::EngineConfig;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;
use steward::config::{Peer, StewardConfig};
use store::seal::Identity;

const HEADER: &str =
    "# Written by `vivarium up` at each start: a development world on loopback, with development keys.\n";
/// Providers stop their tenants (up to 3 s each, at once) before they end.
const PROVIDER_STOPS_WITHIN: Duration = Duration::from_secs(10);
const STOPS_WITHIN: Duration = Duration::from_secs(6);

/// What every daemon of a world needs to know of it.
pub struct Site<'a> {
    pub vivarium: &'a Path,
    pub folder: &'a Folder,
    pub ports: &'a Ports,
    pub choices: &'a Choices,
    pub doors: &'a BTreeMap<String, u16>,
    /// Of each tenant's engine; `None`: all cores.
    pub threads: Option<u32>,
    pub places: &'a BTreeMap<String, Place>,
}

impl Site<'_> {
    pub fn store(&self) -> Result<Program> {
        let dir = self.folder.subfolder("store")?;
        let listen = listen(self.ports.store).to_string();
        let arguments = ["store", "serve", "--data-dir", &dir.to_string_lossy(), "--listen", &listen];
        Ok(self.daemon("store", arguments.map(str::to_owned).to_vec(), STOPS_WITHIN))
    }

    pub fn steward(&self, contracts: &Contracts, index: usize, keys: &[KeyEntry]) -> Result<Program> {
        let name = format!("steward-{}", index + 1);
        let dir = self.folder.subfolder(&name)?;
        let others = keys.iter().zip(&self.ports.stewards).enumerate().filter(|(other, _)| *other != index);
        let config = StewardConfig {
            data_dir: dir.join("data"),
            listen: listen(self.ports.stewards[index]),
            rpc_urls: vec![self.rpc_url(&name)],
            chain_id: anvil::CHAIN_ID,
            treasuries: Vec::new(),
            factory: Some(contracts.factory),
            order_key_file: keys[index].key_file.clone(),
            share_key_file: share_key(self.folder, index)?.1,
            peers: others.map(|(_, (key, port))| Peer { address: key.address, url: local_url(*port) }).collect(),
            store_urls: vec![local_url(self.ports.store)],
            probe: true,
        };
        let file = write_toml(&dir.join("config.toml"), &config)?;
        Ok(self.daemon(&name, run_with("steward", &file), STOPS_WITHIN))
    }

    pub fn provider(&self, contracts: &Contracts, index: usize, key: &KeyEntry) -> Result<Program> {
        let name = format!("provider-{}", index + 1);
        let dir = self.folder.subfolder(&name)?;
        let port = self.ports.providers[index];
        let config = HostConfig {
            data_dir: dir.join("data"),
            listen: SocketAddr::from((self.address_of(&name), port)),
            public_url: self.provider_url(index),
            rpc_urls: vec![self.rpc_url(&name)],
            chain_id: anvil::CHAIN_ID,
            market: contracts.lease_market,
            usdc: contracts.usdc,
            key_file: key.key_file.clone(),
            store_urls: vec![local_url(self.ports.store)],
            offers: vec![self.choices.offer(index)],
            reprice: Some(self.choices.reprice(index)),
            gift: None,
            stake_uusdc: genesis::STAKE.micro(),
            abuse_contact: "abuse@example.invalid".to_owned(),
            threads: self.threads.unwrap_or_else(EngineConfig::cores),
            withdraw_every_secs: u64::from(self.choices.day_secs),
            // The default's 25 hours in the world's days, and never less than a real process needs to be paid again.
            credit_secs: (u64::from(self.choices.day_secs) * 25 / 24).max(60),
            // This chain only goes back when it was killed, by the blocks that it had not written.
            final_blocks: 2,
            tenant_env: tenant_env(),
        };
        let file = write_toml(&dir.join("config.toml"), &config)?;
        Ok(self.daemon(&name, run_with("provider", &file), PROVIDER_STOPS_WITHIN))
    }

    pub fn provider_url(&self, index: usize) -> String {
        url_at(self.address_of(&format!("provider-{}", index + 1)), self.ports.providers[index])
    }

    fn address_of(&self, daemon: &str) -> Ipv4Addr {
        self.places.get(daemon).map_or(Ipv4Addr::LOCALHOST, |place| place.address)
    }

    /// Where a daemon, and whoever lives on it, asks about the chain.
    fn rpc_url(&self, daemon: &str) -> String {
        local_url(self.doors.get(daemon).copied().unwrap_or(self.ports.chain))
    }

    fn daemon(&self, name: &str, arguments: Vec<String>, stop_within: Duration) -> Program {
        let (executable, arguments) = match self.places.get(name) {
            None => (self.vivarium.to_owned(), arguments),
            Some(place) => {
                let vivarium = self.vivarium.to_string_lossy();
                let enter = ["netns", "exec", &place.namespace, &vivarium].map(str::to_owned);
                (PathBuf::from("ip"), enter.into_iter().chain(arguments).collect())
            }
        };
        Program {
            name: name.to_owned(),
            executable,
            arguments,
            environment: Vec::new(),
            stop_signal: rustix::process::Signal::TERM,
            stop_within,
            restart: true,
        }
    }
}

/// The key under which a steward's shares are sealed, made at first use. Not the key that signs its orders.
pub fn share_key(folder: &Folder, index: usize) -> Result<(Identity, PathBuf)> {
    let path = folder.subfolder("keys")?.join(format!("steward-{}-shares.development-key", index + 1));
    if !path.exists() {
        write_private(&path, Identity::generate().to_secret_string().as_bytes())?;
    }
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok((Identity::parse(text.trim()).with_context(|| format!("{} is no age identity", path.display()))?, path))
}

/// Tests may ask tenants to crash at a named step; nothing else of our environment gets in.
fn tenant_env() -> BTreeMap<String, String> {
    let wanted = ["RUST_LOG"];
    wanted.iter().filter_map(|name| Some(((*name).to_owned(), std::env::var(name).ok()?))).collect()
}

fn listen(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

fn run_with(command: &str, config: &Path) -> Vec<String> {
    vec![command.to_owned(), "run".to_owned(), "--config".to_owned(), config.to_string_lossy().into_owned()]
}

fn write_toml(path: &Path, config: &impl Serialize) -> Result<PathBuf> {
    let text = toml::to_string(config).with_context(|| format!("{} cannot be written as TOML", path.display()))?;
    write_private(path, format!("{HEADER}{text}").as_bytes())?;
    Ok(path.to_owned())
}

#[derive(Deserialize)]
struct ProviderStatus {
    tenants: Vec<Tenant>,
}

#[derive(Deserialize)]
struct Tenant {
    lease: u64,
    pid: Option<u32>,
}

/// The process id of the tenant that runs under `lease`, asked of each provider.
pub async fn tenant_pid(providers: &[String], lease: u64) -> Option<u32> {
    let http = net::Client::new().with_deadline(Duration::from_secs(1));
    for url in providers {
        let status: Result<ProviderStatus, _> = http.get_json(&format!("{url}/status")).await;
        // A provider that is down has no tenant that runs.
        let tenant = status.ok().and_then(|s| s.tenants.into_iter().find(|t| t.lease == lease));
        if let Some(tenant) = tenant {
            return tenant.pid;
        }
    }
    None
}
