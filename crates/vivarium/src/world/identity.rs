//! An agent by its ERC-8004 identity: a number in a registry, and from there to whom is paid and where it serves.
//!
//! The chain alone decides who is paid: the token's owner, which must be a treasury that calls this number its own. Where
//! it serves is its active lease's endpoint, as for every agent. The registration file at the token's URI is held against
//! both, and nothing in it is believed: a registry may be upgradeable, anybody may send a treasury a token, and the file
//! is whatever its server says. What does not fit is refused; nothing is paid then.
//!
//! Source: <https://eips.ethereum.org/EIPS/eip-8004>, "Identity Registry".

use alloy::eips::BlockId;
use alloy::primitives::{Address, U256};
use anyhow::{Context, Result, anyhow, bail, ensure};
use chain::bindings::{IdentityRegistry, Treasury};
use chain::{Chain, Kind};
use serde_json::Value;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// What a registration file calls its form.
const REGISTRATION_TYPE: &str = "https://eips.ethereum.org/EIPS/eip-8004#registration-v1";
/// Longest URI of a token that is followed. A node's is about 60 bytes.
const URI_BYTES_MAX: usize = 2 << 10;
/// Longest registration file. A node's is 1.5 KiB.
const FILE_BYTES_MAX: usize = 64 << 10;
/// To the file's last byte: a server that drips holds nobody up.
const FILE_WITHIN: Duration = Duration::from_secs(5);
/// Longest piece of a stranger's text that an error quotes, in characters.
const QUOTED_MAX: usize = 80;

/// An agent's global name, `eip155:CHAIN:REGISTRY/ID`: ERC-8004's `agentRegistry` and `agentId`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AgentId {
    pub chain_id: u64,
    pub registry: Address,
    pub id: U256,
}

/// Whom an identity names, by the chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Named {
    pub treasury: Address,
    pub lease_market: Address,
    /// What the treasury takes.
    pub token: Address,
}

impl fmt::Display for AgentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "eip155:{}:{}/{}", self.chain_id, self.registry, self.id)
    }
}

impl FromStr for AgentId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let refuse = || {
            format!(
                "{text:.120?} is no identity; write eip155:CHAIN:REGISTRY/ID, like \
                 eip155:8453:0x8004A169FB4a3325136EB29fA0ceB6D2e539a432/7"
            )
        };
        let (registry, id) = text.rsplit_once('/').ok_or_else(refuse)?;
        let (chain_id, registry) = registry_of(registry).ok_or_else(refuse)?;
        Ok(Self { chain_id, registry, id: decimal(id).ok_or_else(refuse)? })
    }
}

/// `eip155:CHAIN:ADDRESS`.
fn registry_of(text: &str) -> Option<(u64, Address)> {
    let (network, address) = text.rsplit_once(':')?;
    Some((pay::wire::chain_id(network)?, pay::wire::address(address).ok()?))
}

/// Digits and nothing else, as many as 256 bits have.
fn decimal(text: &str) -> Option<U256> {
    let is_plain = (1..=78).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    is_plain.then(|| U256::from_str_radix(text, 10).ok()).flatten()
}

impl AgentId {
    /// Whom the chain says this is.
    ///
    /// # Errors
    /// Another chain, no such registry or number, an owner that is no treasury, or one that has another number.
    pub async fn named(&self, chain: &Chain) -> Result<Named> {
        ensure!(
            chain.chain_id() == self.chain_id,
            "{self} lies on chain {}, and {} serves chain {}",
            self.chain_id,
            chain.url(),
            chain.chain_id()
        );
        let head = chain.head().await.context("the chain does not answer")?;
        let at = BlockId::hash(head.hash);
        let owner = chain.read(self.registry, IdentityRegistry::ownerOfCall { tokenId: self.id }, at).await;
        let owner = owner.map_err(|e| self.not_there(e))?;
        let no_treasury = |e: chain::Error| {
            let is_foreign = matches!(e.kind, Kind::Missing | Kind::Reverted(_));
            let e = anyhow::Error::from(e);
            if !is_foreign {
                return e.context("the chain does not answer");
            }
            e.context(format!(
                "{self} belongs to {owner}, which is no treasury: the chain does not say where such an agent serves. \
                 Nothing was paid"
            ))
        };
        let standing = chain.read(owner, Treasury::standingCall {}, at).await.map_err(no_treasury)?;
        let birth = chain.read(owner, Treasury::birthOfCall {}, at).await.map_err(no_treasury)?;
        ensure!(
            birth.options.identity == self.registry,
            "{self} belongs to the treasury {owner}, whose identity is in another registry ({}). Nothing was paid",
            birth.options.identity
        );
        ensure!(
            standing.isRegistered && standing.agentId == self.id,
            "{self} belongs to the treasury {owner}, which does not call it its own{}. Anybody may send a treasury such a \
             token; nothing was paid",
            if standing.isRegistered { format!(": its number is {}", standing.agentId) } else { String::new() }
        );
        Ok(Named { treasury: owner, lease_market: birth.market, token: birth.token })
    }

    /// Holds the registration file against what the chain says: this identity serves at `endpoint`, the base URL of its
    /// treasury's active lease.
    ///
    /// # Errors
    /// What does not fit, or why it cannot be read.
    pub async fn check(&self, chain: &Chain, http: &net::Client, treasury: Address, endpoint: &str) -> Result<()> {
        let uri = IdentityRegistry::tokenURICall { tokenId: self.id };
        let uri = chain.read(self.registry, uri, BlockId::latest()).await.map_err(|e| self.not_there(e))?;
        let endpoint = endpoint.trim_end_matches('/');
        ensure!(uri.len() <= URI_BYTES_MAX, "the URI of {self} has {} bytes; nothing was paid", uri.len());
        ensure!(
            is_under(&uri, endpoint),
            "the registry says that {self} is at {}, its treasury's lease says {}. A move that wrote no new URI is \
             mended by `identify()` of the treasury, which anybody may call; until then nothing is paid by this name",
            quoted(&uri),
            quoted(endpoint)
        );
        // The one timer over all of it: the client's own are longer.
        let file = tokio::time::timeout(FILE_WITHIN, async {
            let answer = http.get(&uri).await?.success()?;
            anyhow::Ok(answer.bytes(FILE_BYTES_MAX).await?)
        });
        let file = file.await.unwrap_or_else(|_| bail!("nothing whole came within {} s", FILE_WITHIN.as_secs()));
        let file = file.with_context(|| format!("the registration file of {self} cannot be read"))?;
        self.fits(&file, treasury, endpoint).with_context(|| {
            format!("the registration file of {self} at {} does not fit; nothing was paid", quoted(&uri))
        })
    }

    /// Whether a registration file is this identity's, of an agent that is paid by `treasury` and serves at `endpoint`.
    fn fits(&self, file: &[u8], treasury: Address, endpoint: &str) -> Result<()> {
        // A refusal may quote a key, which may be as long as the file.
        let file = pay::wire::parse_json(file).map_err(|refusal| anyhow!("{}", quoted(&refusal.message)))?;
        ensure!(file["type"] == REGISTRATION_TYPE, "its type is {}, not {REGISTRATION_TYPE}", shown(&file["type"]));
        let names_it = |registration: &Value| {
            let id = match &registration["agentId"] {
                Value::Number(number) => number.as_u64().map(U256::from),
                Value::String(text) => decimal(text),
                _ => None,
            };
            let registry = registration["agentRegistry"].as_str().and_then(registry_of);
            id == Some(self.id) && registry == Some((self.chain_id, self.registry))
        };
        let registrations = file["registrations"].as_array().map(Vec::as_slice).unwrap_or_default();
        ensure!(registrations.iter().any(names_it), "it names {} as its identities", shown(&file["registrations"]));
        let services = file["services"].as_array().map(Vec::as_slice).unwrap_or_default();
        // Of two with one name two readers may believe one each.
        let service = |name: &str| -> Result<Option<&str>> {
            let mut named = services.iter().filter(|service| service["name"] == name);
            let found = named.next().map(|service| service["endpoint"].as_str().unwrap_or_default());
            ensure!(named.next().is_none(), "it names the service {name} twice");
            Ok(found)
        };
        let api = service("OpenAI")?.context("it names no service `OpenAI`, and nothing else is bought")?;
        ensure!(
            api.trim_end_matches('/') == format!("{endpoint}/v1"),
            "it says that the API is at {}, the chain says {}",
            quoted(api),
            quoted(endpoint)
        );
        if let Some(wallet) = service("agentWallet")? {
            ensure!(
                registry_of(wallet) == Some((self.chain_id, treasury)),
                "it wants to be paid at {}, the identity's owner is {treasury}",
                quoted(wallet)
            );
        }
        Ok(())
    }

    fn not_there(&self, e: chain::Error) -> anyhow::Error {
        let why = match e.kind {
            Kind::Reverted(_) => format!("there is no agent {} in the registry {}", self.id, self.registry),
            Kind::Missing => format!("{} is no identity registry on chain {}", self.registry, self.chain_id),
            _ => "the chain does not answer".to_owned(),
        };
        anyhow::Error::from(e).context(why)
    }
}

/// Whether this URL is below that one, on the same host and port.
fn is_under(url: &str, base: &str) -> bool {
    url.strip_prefix(base).is_some_and(|rest| rest.starts_with('/')) && base.parse().is_ok_and(|uri| net::is_http(&uri))
}

/// A stranger's words in an error: short, and on one line.
fn quoted(text: &str) -> String {
    let short: String = text.chars().take(QUOTED_MAX).collect();
    format!("{short:?}")
}

fn shown(value: &Value) -> String {
    value.to_string().chars().take(QUOTED_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const REGISTRY: &str = "0x8004A169FB4a3325136EB29fA0ceB6D2e539a432";
    const TREASURY: Address = Address::repeat_byte(0x77);
    const ENDPOINT: &str = "http://10.0.0.1:80";

    fn agent() -> AgentId {
        format!("eip155:8453:{REGISTRY}/7").parse().unwrap()
    }

    #[test]
    fn an_identity_is_written_as_erc_8004_writes_it_and_in_no_other_way() {
        assert_eq!(agent().to_string(), format!("eip155:8453:{REGISTRY}/7"));
        let most: AgentId = format!("eip155:1:{}/{}", REGISTRY.to_lowercase(), U256::MAX).parse().unwrap();
        assert_eq!((most.chain_id, most.registry, most.id), (1, agent().registry, U256::MAX));
        for wrong in [
            String::new(),
            "7".to_owned(),
            format!("{REGISTRY}/7"),
            format!("eip155:{REGISTRY}/7"),
            format!("eip155:0:{REGISTRY}/7"),
            format!("eip155:1:{REGISTRY}"),
            format!("eip155:1:{REGISTRY}/"),
            format!("eip155:1:{REGISTRY}/+7"),
            format!("eip155:1:{REGISTRY}/0x7"),
            format!("eip155:1:{REGISTRY}/7 "),
            format!("eip155:1:{REGISTRY}/{}0", U256::MAX),
            format!("eip155:1:{}/7", &REGISTRY[2..]),
            format!("solana:1:{REGISTRY}/7"),
        ] {
            assert!(wrong.parse::<AgentId>().unwrap_err().contains("eip155:CHAIN:REGISTRY/ID"), "{wrong}");
        }
    }

    #[test]
    fn a_file_is_below_its_endpoint_or_elsewhere() {
        assert!(is_under("http://a:1/x", "http://a:1"));
        for elsewhere in ["http://a:10/x", "http://a:1", "http://a:1@b/x", "http://b:1/x", "HTTP://a:1/x", ""] {
            assert!(!is_under(elsewhere, "http://a:1"), "{elsewhere}");
        }
        assert!(!is_under("/x", ""));
    }

    #[test]
    fn a_registration_file_fits_or_says_what_does_not() {
        let good = json!({
            "type": REGISTRATION_TYPE,
            "registrations": [
                { "agentId": 7, "agentRegistry": format!("eip155:1:{REGISTRY}") },
                { "agentId": 7, "agentRegistry": format!("eip155:8453:{}", REGISTRY.to_lowercase()) },
            ],
            "services": [
                { "name": "OpenAI", "endpoint": format!("{ENDPOINT}/v1") },
                { "name": "agentWallet", "endpoint": format!("eip155:8453:{TREASURY}") },
            ],
        });
        let fits = |file: &Value| agent().fits(file.to_string().as_bytes(), TREASURY, ENDPOINT);
        fits(&good).unwrap();
        let other = Address::repeat_byte(0x66);
        for (pointer, value, said) in [
            ("/type", json!("https://example.org"), "its type is"),
            ("/registrations/1/agentId", json!(8), "as its identities"),
            ("/registrations/1/agentId", json!(7.5), "as its identities"),
            ("/registrations/1/agentRegistry", json!(format!("eip155:8453:{other}")), "as its identities"),
            ("/registrations", json!("x".repeat(9_000)), "as its identities"),
            ("/services/0/endpoint", json!("http://10.0.0.1:80.example.org/v1"), "the chain says"),
            ("/services/0/endpoint", json!(null), "the chain says"),
            ("/services/0/name", json!("web"), "no service `OpenAI`"),
            ("/services/1/endpoint", json!(format!("eip155:8453:{other}")), "wants to be paid at"),
            ("/services/1/endpoint", json!(format!("eip155:1:{TREASURY}")), "wants to be paid at"),
            ("/services/1/name", json!("OpenAI"), "twice"),
            ("/services", json!({}), "no service `OpenAI`"),
        ] {
            let mut bad = good.clone();
            *bad.pointer_mut(pointer).unwrap() = value;
            let error = format!("{:#}", fits(&bad).unwrap_err());
            assert!(error.contains(said) && error.len() < 400, "{pointer}: {error}");
        }
        // As a text where a number would lose digits; and without a wallet, which the chain knows better.
        let mut plain = good.clone();
        plain["registrations"][1]["agentId"] = json!("7");
        plain["services"].as_array_mut().unwrap().pop();
        fits(&plain).unwrap();
        for broken in ["", "[]", "{", "null", r#"{"type":1,"type":1}"#, &"[".repeat(1_000)] {
            agent().fits(broken.as_bytes(), TREASURY, ENDPOINT).unwrap_err();
        }
    }
}
