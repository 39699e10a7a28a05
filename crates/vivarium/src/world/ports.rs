//! The ports of a world: chosen once, free at that moment, and kept, because endpoints are recorded on chain
//! and in the manifest.

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::net::{Ipv4Addr, TcpListener};

/// Below Linux's range of outgoing ports (from 32768), so that no connection takes one while the world is down.
const FIRST: u16 = 20_000;
const LAST: u16 = 31_900;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ports {
    pub chain: u16,
    pub store: u16,
    pub stewards: Vec<u16>,
    /// The daemons' ports. Tenants get theirs from their provider.
    pub providers: Vec<u16>,
}

impl Ports {
    /// Ports for a new world, all free now, from `first` upwards or from a place drawn by chance.
    pub fn choose(first: Option<u16>, stewards: u16, providers: u16) -> Result<Self> {
        let count = 2 + stewards + providers;
        if let Some(first) = first {
            let ports = Self::from(first, count, stewards, providers)?;
            ports.check_free()?;
            return Ok(ports);
        }
        for _ in 0..200 {
            let first = rand::random_range(FIRST..LAST - count);
            let ports = Self::from(first, count, stewards, providers)?;
            if ports.check_free().is_ok() {
                return Ok(ports);
            }
        }
        bail!(
            "found no {count} free ports in a row between {FIRST} and {LAST}; free some, or name the first with --port"
        )
    }

    fn from(first: u16, count: u16, stewards: u16, providers: u16) -> Result<Self> {
        if first < 1024 || first.checked_add(count).is_none() {
            bail!("--port {first}: a world needs {count} ports in a row from there, between 1024 and 65535");
        }
        Ok(Self {
            chain: first,
            store: first + 1,
            stewards: (0..stewards).map(|i| first + 2 + i).collect(),
            providers: (0..providers).map(|i| first + 2 + stewards + i).collect(),
        })
    }

    /// Names the first port that somebody else holds.
    pub fn check_free(&self) -> Result<()> {
        let named = [("the chain", self.chain), ("the content store", self.store)];
        let stewards = self.stewards.iter().map(|port| ("a steward", *port));
        let providers = self.providers.iter().map(|port| ("a provider", *port));
        for (whose, port) in named.into_iter().chain(stewards).chain(providers) {
            // The listener sets SO_REUSEADDR, so a port that only waits out old connections counts as free.
            TcpListener::bind((Ipv4Addr::LOCALHOST, port)).with_context(|| {
                format!("port {port} (for {whose}) is busy; stop the program that holds it, or start a new world with --port N or another --data-dir")
            })?;
        }
        Ok(())
    }
}

/// Where a provider, and whoever lives on it, is instead of on 127.0.0.1: tests give it a network of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub address: Ipv4Addr,
    /// The network namespace that has the address, as `ip netns` names it.
    pub namespace: String,
}

/// `http://127.0.0.1:port`.
pub fn local_url(port: u16) -> String {
    url_at(Ipv4Addr::LOCALHOST, port)
}

pub fn url_at(address: Ipv4Addr, port: u16) -> String {
    format!("http://{address}:{port}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_port_is_named_with_its_use() {
        let ports = Ports::choose(None, 3, 2).unwrap();
        let _holder = TcpListener::bind((Ipv4Addr::LOCALHOST, ports.store)).unwrap();
        let refusal = format!("{:#}", ports.check_free().unwrap_err());
        assert!(refusal.contains(&format!("port {} (for the content store) is busy", ports.store)), "{refusal}");
    }

    #[test]
    fn no_two_uses_share_a_port() {
        let ports = Ports::choose(None, 3, 2).unwrap();
        let mut all = vec![ports.chain, ports.store];
        all.extend(&ports.stewards);
        all.extend(&ports.providers);
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
    }

    #[test]
    fn a_first_port_without_room_is_refused() {
        assert!(Ports::choose(Some(80), 3, 2).is_err());
        assert!(Ports::choose(Some(65_533), 3, 2).is_err());
    }
}
