//! What a steward writes down: `steward.toml`. Unknown keys are refused.

use alloy::primitives::Address;
use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StewardConfig {
    /// What was signed, which checkpoints and segments are held. Losing it costs the promise never to sign two
    /// objects for one place; keep it on a disk that survives.
    pub data_dir: PathBuf,
    pub listen: SocketAddr,
    /// One or two chain endpoints. With two, every read must be the same at both, or nothing is decided.
    pub rpc_urls: Vec<String>,
    pub chain_id: u64,
    /// Treasuries to watch, by address.
    #[serde(default)]
    pub treasuries: Vec<Address>,
    /// Also watch every treasury of this factory in which this steward is one.
    #[serde(default)]
    pub factory: Option<Address>,
    /// Signs acknowledgements, rescues and a person's orders, and pays for challenges: 64 hex digits.
    pub order_key_file: PathBuf,
    /// Opens shares: an age identity (`AGE-SECRET-KEY-1…`). Another key than the order key, so that whoever may
    /// give orders cannot read memory.
    pub share_key_file: PathBuf,
    /// The other stewards, who are asked to sign a rescue.
    #[serde(default)]
    pub peers: Vec<Peer>,
    /// Content stores from which checkpoints are fetched; at least one.
    pub store_urls: Vec<String>,
    /// Compare what agents say of themselves and what they offer with the chain, every few blocks.
    #[serde(default)]
    pub probe: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peer {
    pub address: Address,
    pub url: String,
}

impl StewardConfig {
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read the steward's configuration {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("{} is not a steward's configuration", path.display()))
    }

    pub fn parse(text: &str) -> Result<Self> {
        let config: Self = toml::from_str(text)?;
        ensure!((1..=2).contains(&config.rpc_urls.len()), "rpc_urls needs one or two endpoints");
        ensure!(!config.store_urls.is_empty(), "store_urls needs at least one store");
        if config.treasuries.is_empty() && config.factory.is_none() {
            bail!("nothing to watch: name treasuries or a factory");
        }
        if let [one, two] = &config.rpc_urls[..] {
            ensure!(one != two, "the two endpoints in rpc_urls are the same");
        }
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
data_dir = "/tmp/s1"
listen = "127.0.0.1:0"
rpc_urls = ["http://127.0.0.1:8545"]
chain_id = 31337
factory = "0x00000000000000000000000000000000000000aa"
order_key_file = "/tmp/s1/order.key"
share_key_file = "/tmp/s1/share.key"
store_urls = ["http://127.0.0.1:7000"]
peers = [{ address = "0x00000000000000000000000000000000000000bb", url = "http://127.0.0.1:7101" }]
"#;

    #[test]
    fn a_whole_file_is_read_and_written_back() {
        let config = StewardConfig::parse(GOOD).unwrap();
        assert_eq!(config.peers.len(), 1);
        assert!(!config.probe);
        let text = toml::to_string(&config).unwrap();
        assert_eq!(toml::to_string(&StewardConfig::parse(&text).unwrap()).unwrap(), text);
    }

    #[test]
    fn bad_files_are_refused_by_name() {
        for (from, to, word) in [
            ("chain_id", "chain", "chain"),
            ("[\"http://127.0.0.1:8545\"]", "[]", "rpc_urls"),
            ("[\"http://127.0.0.1:8545\"]", "[\"http://a\", \"http://a\"]", "the same"),
            ("[\"http://127.0.0.1:8545\"]", "[\"http://a\", \"http://b\", \"http://c\"]", "one or two"),
            ("[\"http://127.0.0.1:7000\"]", "[]", "store_urls"),
            ("factory = \"0x00000000000000000000000000000000000000aa\"\n", "", "nothing to watch"),
        ] {
            let error = format!("{:#}", StewardConfig::parse(&GOOD.replacen(from, to, 1)).unwrap_err());
            assert!(error.contains(word), "{from} -> {to}: {error}");
        }
    }
}
