//! What the provider tells a tenant: the file `tenant.json`.

use crate::error::{Error, Result};
use alloy::primitives::Address;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// Everything a node is told by its host. All else comes from the chain, the manifest and the journal.
/// Unknown keys are refused, so that a misspelt one is not silently ignored.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeConfig {
    /// Chain endpoints; at least one. The first is asked and told; of each new block all must say the same, or the node
    /// takes none of them for the chain.
    pub rpc_urls: Vec<String>,
    pub chain_id: u64,
    pub treasury: Address,
    pub lease_market: Address,
    /// The lease under which this node runs.
    pub lease: u64,
    /// Content stores; at least one.
    pub store_urls: Vec<String>,
    pub listen: SocketAddr,
    pub public_url: String,
    /// Journal, sealed keys, verified weights. Survives a restart on the same host, gone with the lease.
    pub data_dir: PathBuf,
    /// The verified code directory: `vivarium` and `vivarium-engine`.
    pub code_dir: PathBuf,
    /// 32 bytes in hex, kept by the provider and destroyed at lease end: what the node's keys rest under.
    pub seal_key_file: PathBuf,
    /// Threads of arithmetic that the engine may take; it takes as many as are fastest at the time.
    pub threads: u32,
}

impl NodeConfig {
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .map_err(|e| Error::usage(format!("cannot read the tenant file {}: {e}", path.display())))?;
        let config: Self = serde_json::from_str(&text)
            .map_err(|e| Error::usage(format!("{} is not a tenant file: {e}", path.display())))?;
        if config.rpc_urls.is_empty() || config.store_urls.is_empty() {
            return Err(Error::usage(format!("{}: rpc_urls and store_urls need an entry each", path.display())));
        }
        Ok(config)
    }
}
