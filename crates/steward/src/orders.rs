//! Orders by people: pause, resume, stop, evict. One prepares an order as a file; each steward (or owner of a Safe
//! that is one) signs it on its own machine, which needs no chain; whoever has enough signatures submits them, with any
//! key that can pay the gas.

use crate::config::StewardConfig;
use alloy::primitives::{Address, B256, Bytes, U256};
use alloy::signers::local::PrivateKeySigner;
use anyhow::{Context, Result, bail, ensure};
use chain::bindings::Approval;
use chain::orders::{Order, digest, domain, recover_digest, rescue_argument, sign};
use chain::sender::{Done, Tx, send_once};
use chain::treasury::calls;
use chain::{Chain, Safe, safe};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

/// What a quorum can order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Pause,
    Resume,
    Stop,
    /// 0 keeps no lease: every host is shown the door.
    Evict {
        keep: u64,
    },
    /// Lets a barred provider host the agent again.
    ClearBar {
        provider: Address,
    },
    /// Chain seconds.
    ExtendMandate {
        until: u64,
    },
    OpenRefunds,
    /// `term` in seconds. The order names all three.
    Rescue {
        offer: u64,
        term: u32,
        prepay_uusdc: u128,
    },
}

impl Action {
    /// The word in the signed order: the name of the treasury's entry.
    pub fn word(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Stop => "stop",
            Self::Evict { .. } => "evict",
            Self::ClearBar { .. } => "clearBar",
            Self::ExtendMandate { .. } => "extendMandate",
            Self::OpenRefunds => "openRefunds",
            Self::Rescue { .. } => "rescue",
        }
    }

    pub fn argument(self) -> U256 {
        match self {
            Self::Pause | Self::Resume | Self::Stop | Self::OpenRefunds => U256::ZERO,
            Self::Evict { keep } => U256::from(keep),
            Self::ClearBar { provider } => U256::from_be_slice(provider.as_slice()),
            Self::ExtendMandate { until } => U256::from(until),
            Self::Rescue { offer, term, prepay_uusdc } => rescue_argument(offer, term, prepay_uusdc),
        }
    }

    /// The action that a signed order means.
    pub fn of(word: &str, argument: U256) -> Result<Self> {
        let low = |bits: usize, wide: U256| -> U256 { wide & U256::MAX >> (256 - bits) };
        let action = match word {
            "pause" => Self::Pause,
            "resume" => Self::Resume,
            "stop" => Self::Stop,
            "openRefunds" => Self::OpenRefunds,
            "evict" => Self::Evict { keep: argument.saturating_to() },
            "clearBar" => Self::ClearBar { provider: Address::from_word(argument.into()) },
            "extendMandate" => Self::ExtendMandate { until: argument.saturating_to() },
            "rescue" => Self::Rescue {
                offer: low(64, argument).saturating_to(),
                term: low(32, argument >> 64usize).saturating_to(),
                prepay_uusdc: (argument >> 96usize).saturating_to(),
            },
            other => bail!("no order is called {other:?} here"),
        };
        ensure!(action.argument() == argument, "`{word}` has no argument {argument}");
        Ok(action)
    }

    fn call(self, a: Approval) -> Bytes {
        match self {
            Self::Pause => calls::pause(a),
            Self::Resume => calls::resume(a),
            Self::Stop => calls::stop(a),
            Self::Evict { keep } => calls::evict(keep, a),
            Self::ClearBar { provider } => calls::clear_bar(provider, a),
            Self::ExtendMandate { until } => calls::extend_mandate(until, a),
            Self::OpenRefunds => calls::open_refunds(a),
            Self::Rescue { offer, term, prepay_uusdc } => calls::rescue(offer, term, prepay_uusdc, a),
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Evict { keep: 0 } => f.write_str("evict every host"),
            Self::Evict { keep } => write!(f, "evict all but lease {keep}"),
            Self::ClearBar { provider } => write!(f, "let {provider} host it again"),
            Self::ExtendMandate { until } => write!(f, "extend the mandate to {until}"),
            Self::OpenRefunds => f.write_str("open refunds"),
            Self::Rescue { offer, term, prepay_uusdc } => {
                write!(f, "rescue on offer {offer} for {term} s, {prepay_uusdc} micro-USDC prepaid")
            }
            Self::Pause | Self::Resume | Self::Stop => f.write_str(self.word()),
        }
    }
}

/// An order and the signatures gathered so far: the file that goes from hand to hand (JSON).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OrderFile {
    pub chain_id: u64,
    pub treasury: Address,
    pub action: String,
    pub argument: U256,
    pub nonce: u64,
    /// Chain seconds.
    pub deadline: u64,
    /// How many of `stewards` must sign.
    pub threshold: u8,
    /// As the chain had them when the order was prepared. Submitting reads them again.
    pub stewards: Vec<Steward>,
    pub signatures: Vec<Part>,
}

/// A steward: a plain key, or a Safe with its owners.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Steward {
    pub address: Address,
    pub safe: Option<Owners>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Owners {
    pub threshold: usize,
    pub owners: Vec<Address>,
}

/// One signature of one person.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    pub signer: Address,
    /// The steward for whom it counts: the signer itself, or a Safe that it owns.
    pub steward: Address,
    pub signature: Bytes,
}

impl OrderFile {
    /// The order as it has to be signed now: with the treasury's next order number, good for `valid_secs` of chain time.
    pub async fn prepare(chain: &Chain, treasury: Address, action: Action, valid_secs: u64) -> Result<Self> {
        let client = chain.treasury(treasury);
        let state = client.state().await.with_context(|| format!("the treasury {treasury} cannot be read"))?;
        let head = chain.head().await.context("the chain's time cannot be read")?;
        let nonce = u64::try_from(state.orderNonce)
            .with_context(|| format!("the order's number {} is too large", state.orderNonce))?;
        Self::new(chain, treasury, action, nonce, head.timestamp + valid_secs).await
    }

    /// The same with a number and a deadline (chain seconds) that the caller knows.
    pub async fn new(chain: &Chain, treasury: Address, action: Action, nonce: u64, deadline: u64) -> Result<Self> {
        let (threshold, stewards) = quorum(chain, treasury).await?;
        Ok(Self {
            chain_id: chain.chain_id(),
            treasury,
            action: action.word().to_owned(),
            argument: action.argument(),
            nonce,
            deadline,
            threshold,
            stewards,
            signatures: Vec::new(),
        })
    }

    /// Reads a file that somebody handed over. Whatever it says, only its order's own digest is ever signed.
    pub fn parse(text: &str) -> Result<Self> {
        let file: Self = serde_json::from_str(text).context("this is not a steward's order")?;
        file.action()?;
        Ok(file)
    }

    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("plain structs with text keys are always JSON")
    }

    pub fn action(&self) -> Result<Action> {
        Action::of(&self.action, self.argument)
    }

    /// What the treasury checks: the order's EIP-712 digest.
    pub fn digest(&self) -> B256 {
        let order = Order::new(&self.action, self.argument, U256::from(self.nonce), self.deadline);
        digest(&order, &domain(self.chain_id, self.treasury))
    }

    /// Adds this key's signature for every steward that it is or owns.
    ///
    /// Fails when it is neither.
    pub fn sign(&mut self, key: &PrivateKeySigner) -> Result<()> {
        let signer = key.address();
        let order = Order::new(&self.action, self.argument, U256::from(self.nonce), self.deadline);
        let mut parts = Vec::new();
        for steward in &self.stewards {
            let signature = match &steward.safe {
                None if steward.address == signer => sign(&order, &domain(self.chain_id, self.treasury), key)?,
                Some(safe) if safe.owners.contains(&signer) => {
                    safe::sign(self.chain_id, steward.address, self.digest(), key)?
                }
                None | Some(_) => continue,
            };
            parts.push(Part { signer, steward: steward.address, signature });
        }
        ensure!(
            !parts.is_empty(),
            "{signer} is no steward of {} and owns no Safe that is one: its signature would not count",
            self.treasury
        );
        self.add(parts);
        Ok(())
    }

    /// Takes over the signatures of another copy of the same order.
    pub fn merge(&mut self, other: Self) -> Result<()> {
        ensure!(
            self.digest() == other.digest(),
            "these are two orders: {} (number {}, until {}) and {} (number {}, until {})",
            self.action,
            self.nonce,
            self.deadline,
            other.action,
            other.nonce,
            other.deadline
        );
        self.add(other.signatures);
        Ok(())
    }

    fn add(&mut self, parts: Vec<Part>) {
        for part in parts {
            if !self.signatures.iter().any(|have| (have.signer, have.steward) == (part.signer, part.steward)) {
                self.signatures.push(part);
            }
        }
        self.signatures.sort_by_key(|part| (part.steward, part.signer));
    }

    /// The stewards' signatures as the contract takes them, ascending, no more than are needed. Whoever passed the file
    /// on may have added rubbish: what does not count is left out.
    ///
    /// Fails when there are too few, naming what is missing.
    pub fn approval(&self) -> Result<Approval> {
        let digest = self.digest();
        let mut signed: BTreeMap<Address, Bytes> = BTreeMap::new();
        let mut short = Vec::new();
        for steward in &self.stewards {
            let parts = self.signatures.iter().filter(|part| part.steward == steward.address);
            match &steward.safe {
                None => {
                    let mut good = parts.filter(|p| recover_digest(digest, &p.signature).ok() == Some(steward.address));
                    signed.extend(good.next().map(|part| (steward.address, part.signature.clone())));
                }
                Some(owners) => {
                    let parts: Vec<Bytes> = parts.map(|part| part.signature.clone()).collect();
                    let safe =
                        Safe { address: steward.address, owners: owners.owners.clone(), threshold: owners.threshold };
                    match safe.signature(self.chain_id, digest, &parts) {
                        Ok(signature) => drop(signed.insert(steward.address, signature)),
                        Err(e) => short.push(e.to_string()),
                    }
                }
            }
        }
        let (found, needed) = (signed.len(), usize::from(self.threshold));
        if found < needed {
            let plain = format!("{found} of {} stewards signed and {needed} must", self.stewards.len());
            let why = std::iter::once(plain).chain(short).collect::<Vec<_>>().join("; ");
            bail!("{why}");
        }
        Ok(Approval { deadline: self.deadline, signatures: signed.into_values().take(needed).collect() })
    }

    /// Submits the order, paid by `payer`. Refuses before sending when the signatures are too few, by today's stewards.
    pub async fn submit(&self, chain: &Chain, payer: &PrivateKeySigner) -> Result<Done> {
        ensure!(
            chain.chain_id() == self.chain_id,
            "the order is for chain {}, not for {}",
            self.chain_id,
            chain.chain_id()
        );
        let action = self.action()?;
        let (threshold, stewards) = quorum(chain, self.treasury).await?;
        let current = Self { threshold, stewards, ..self.clone() };
        let tx = Tx::call(self.treasury, action.call(current.approval()?), action.word());
        send_once(chain, payer, tx, 1).await.with_context(|| format!("`{action}` was not accepted"))
    }
}

/// Lets the daemon of `config` hand out what its operator signed: `GET /orders/{treasury}`. Signatures are no secret;
/// whoever gathers enough of them may submit the order.
pub fn hand_out(config: &StewardConfig, order: &OrderFile) -> Result<()> {
    let dir = orders_dir(config);
    std::fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let path = dir.join(format!("{}.json", order.digest()));
    let partial = path.with_extension("partial");
    std::fs::write(&partial, order.to_json())
        .and_then(|()| std::fs::rename(&partial, &path))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// What was handed to this daemon for `treasury`, and is not past its deadline.
pub fn handed_out(config: &StewardConfig, treasury: Address, now: u64) -> Vec<OrderFile> {
    let Ok(entries) = std::fs::read_dir(orders_dir(config)) else { return Vec::new() };
    let texts = entries.flatten().filter_map(|entry| {
        let path = entry.path();
        path.extension().is_some_and(|e| e == "json").then(|| std::fs::read_to_string(path).ok()).flatten()
    });
    let orders = texts.filter_map(|text| OrderFile::parse(&text).ok());
    orders.filter(|order| order.treasury == treasury && order.deadline >= now).collect()
}

fn orders_dir(config: &StewardConfig) -> PathBuf {
    config.data_dir.join("orders")
}

/// Who must sign for `treasury` now.
async fn quorum(chain: &Chain, treasury: Address) -> Result<(u8, Vec<Steward>)> {
    let birth = chain.treasury(treasury).birth().await.with_context(|| format!("no treasury at {treasury}"))?;
    let mut stewards = Vec::with_capacity(birth.stewards.len());
    for address in birth.stewards {
        let safe = chain.safe(address).await?.map(|s| Owners { threshold: s.threshold, owners: s.owners });
        stewards.push(Steward { address, safe });
    }
    Ok((birth.threshold, stewards))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u8) -> PrivateKeySigner {
        PrivateKeySigner::from_bytes(&B256::repeat_byte(n)).unwrap()
    }

    fn file(stewards: Vec<Steward>, threshold: u8) -> OrderFile {
        OrderFile {
            chain_id: 31337,
            treasury: Address::repeat_byte(9),
            action: "pause".into(),
            argument: U256::ZERO,
            nonce: 3,
            deadline: 1000,
            threshold,
            stewards,
            signatures: Vec::new(),
        }
    }

    fn plain() -> OrderFile {
        file((1..=3).map(|n| Steward { address: key(n).address(), safe: None }).collect(), 2)
    }

    fn of_a_safe() -> OrderFile {
        let owners = Owners { threshold: 2, owners: (1..=3).map(|n| key(n).address()).collect() };
        file(vec![Steward { address: Address::repeat_byte(0x5a), safe: Some(owners) }], 1)
    }

    #[test]
    fn two_people_sign_two_copies_and_the_merged_file_is_enough() {
        for order in [plain(), of_a_safe()] {
            let (mut one, mut other) = (order.clone(), order);
            one.sign(&key(3)).unwrap();
            let refusal = one.approval().unwrap_err().to_string();
            assert!(
                refusal.contains("of 3 stewards signed and 2 must") || refusal.contains("1 of the 3 owners"),
                "{refusal}"
            );
            other.sign(&key(1)).unwrap();
            let read = OrderFile::parse(&other.to_json()).unwrap();
            assert_eq!(read, other);
            one.merge(read.clone()).unwrap();
            one.merge(read).unwrap();
            assert_eq!(one.signatures.len(), 2);
            let needed = usize::from(one.threshold);
            assert_eq!(one.approval().unwrap().signatures.len(), needed);
        }
    }

    #[test]
    fn strangers_and_repetitions_do_not_count() {
        for mut order in [plain(), of_a_safe()] {
            assert!(order.sign(&key(9)).unwrap_err().to_string().contains("would not count"));
            order.sign(&key(1)).unwrap();
            order.sign(&key(1)).unwrap();
            assert!(order.approval().is_err());
            // Somebody else's signature under a steward's name.
            let mut forged = order.signatures[0].clone();
            forged.signer = key(2).address();
            if order.stewards.len() > 1 {
                forged.steward = forged.signer;
            }
            order.signatures.push(forged);
            assert!(order.approval().is_err());
        }
    }

    #[test]
    fn a_changed_order_has_none_of_the_signatures() {
        let mut order = plain();
        order.sign(&key(1)).unwrap();
        order.sign(&key(2)).unwrap();
        order.approval().unwrap();
        for changed in [
            OrderFile { action: "stop".into(), ..order.clone() },
            OrderFile { argument: U256::ONE, action: "evict".into(), ..order.clone() },
            OrderFile { nonce: 4, ..order.clone() },
            OrderFile { deadline: 1001, ..order.clone() },
            OrderFile { chain_id: 1, ..order.clone() },
            OrderFile { treasury: Address::ZERO, ..order.clone() },
        ] {
            assert!(changed.approval().is_err(), "{changed:?}");
            assert!(order.clone().merge(changed).is_err());
        }
    }

    #[test]
    fn every_action_is_read_back_from_what_is_signed() {
        let provider = Address::repeat_byte(4);
        for action in [
            Action::Pause,
            Action::Resume,
            Action::Stop,
            Action::OpenRefunds,
            Action::Evict { keep: 7 },
            Action::ClearBar { provider },
            Action::ExtendMandate { until: 99 },
            Action::Rescue { offer: 2, term: 600, prepay_uusdc: u128::MAX },
        ] {
            assert_eq!(Action::of(action.word(), action.argument()).unwrap(), action);
        }
        assert!(Action::of("pause", U256::ONE).is_err());
        assert!(Action::of("evict", U256::MAX).is_err());
        assert!(Action::of("setCode", U256::ONE).is_err());
    }
}
