//! Orders by people: pause, stop, evict, revoke code, tighten and the rest. One prepares an order as a file; each steward (or owner of a Safe
//! that is one) signs it on its own machine, which needs no chain; whoever has enough signatures submits them, with any
//! key that can pay the gas.

use crate::config::StewardConfig;
use alloy::eips::BlockId;
use alloy::primitives::{Address, B256, Bytes, U128, U256, keccak256};
use alloy::rpc::types::TransactionRequest;
use alloy::signers::local::PrivateKeySigner;
use alloy::sol_types::SolValue;
use anyhow::{Context, Result, bail, ensure};
use chain::bindings::{Approval, Policy};
use chain::orders::{Order, digest, domain, recover_digest, rescue_argument, sign};
use chain::sender::{Done, Tx, send_once};
use chain::treasury::calls;
use chain::{Chain, Safe, safe};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

/// What a quorum can order.
#[derive(Clone, Debug, PartialEq, Eq)]
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
    /// No host runs this code any more. It is the one that the treasury names now.
    RevokeCode {
        code: B256,
    },
    /// Every limit at most what it was.
    Tighten {
        limits: Limits,
    },
    /// Every limit at most birth's ceiling. This and the next two are only queued at first: after birth's delay anybody
    /// submits the same order again, and that carries it out.
    Loosen {
        limits: Limits,
    },
    SetCode {
        code: B256,
    },
    SetStewards {
        quorum: Quorum,
    },
}

/// What a treasury may do: its policy, all of it, because an order replaces all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Micro-USDC.
    pub day_limit: U128,
    /// Micro-USDC x 1e-6 per second.
    pub price_e6_max: u64,
    /// Seconds.
    pub term_max: u32,
    /// Seconds of rent.
    pub prepay_max: u32,
    /// Wei.
    pub gas_day_max: U128,
    /// Wei.
    pub gas_target: U128,
    /// Micro-USDC. No order changes it.
    pub starve_floor: U128,
}

/// The stewards to be, ascending.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quorum {
    pub stewards: Vec<Address>,
    pub threshold: u8,
}

/// What an order says that its argument holds only the digest of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Detail {
    Limits(Limits),
    Quorum(Quorum),
}

impl From<&Policy> for Limits {
    fn from(p: &Policy) -> Self {
        Self {
            day_limit: U128::from(p.dayLimit),
            price_e6_max: p.priceE6Max,
            term_max: p.termMax,
            prepay_max: p.prepayMax,
            gas_day_max: U128::from(p.gasDayMax),
            gas_target: U128::from(p.gasTarget),
            starve_floor: U128::from(p.starveFloor),
        }
    }
}

impl Limits {
    fn policy(&self) -> Policy {
        Policy {
            dayLimit: self.day_limit.to(),
            priceE6Max: self.price_e6_max,
            termMax: self.term_max,
            prepayMax: self.prepay_max,
            gasDayMax: self.gas_day_max.to(),
            gasTarget: self.gas_target.to(),
            starveFloor: self.starve_floor.to(),
        }
    }

    /// As the contract hashes it: `keccak256(abi.encode(policy))`.
    fn digest(&self) -> U256 {
        keccak256(self.policy().abi_encode()).into()
    }
}

impl fmt::Display for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} micro-USDC a day, {}e-6 micro-USDC a second for a host, terms of {} s, {} s prepaid, gas of {} wei a day \
             and up to {} wei a key",
            self.day_limit, self.price_e6_max, self.term_max, self.prepay_max, self.gas_day_max, self.gas_target
        )
    }
}

impl Action {
    /// The word in the signed order: the name of the treasury's entry.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Stop => "stop",
            Self::Evict { .. } => "evict",
            Self::ClearBar { .. } => "clearBar",
            Self::ExtendMandate { .. } => "extendMandate",
            Self::OpenRefunds => "openRefunds",
            Self::Rescue { .. } => "rescue",
            Self::RevokeCode { .. } => "revokeCode",
            Self::Tighten { .. } => "tighten",
            Self::Loosen { .. } => "loosen",
            Self::SetCode { .. } => "setCode",
            Self::SetStewards { .. } => "setStewards",
        }
    }

    pub fn argument(&self) -> U256 {
        match self {
            Self::Pause | Self::Resume | Self::Stop | Self::OpenRefunds => U256::ZERO,
            Self::Evict { keep } => U256::from(*keep),
            Self::ClearBar { provider } => U256::from_be_slice(provider.as_slice()),
            Self::ExtendMandate { until } => U256::from(*until),
            Self::Rescue { offer, term, prepay_uusdc } => rescue_argument(*offer, *term, *prepay_uusdc),
            Self::RevokeCode { code } | Self::SetCode { code } => (*code).into(),
            Self::Tighten { limits } | Self::Loosen { limits } => limits.digest(),
            Self::SetStewards { quorum } => {
                keccak256((quorum.stewards.clone(), U256::from(quorum.threshold)).abi_encode_params()).into()
            }
        }
    }

    fn detail(&self) -> Option<Detail> {
        match self {
            Self::Tighten { limits } | Self::Loosen { limits } => Some(Detail::Limits(*limits)),
            Self::SetStewards { quorum } => Some(Detail::Quorum(quorum.clone())),
            _ => None,
        }
    }

    /// The action that a signed order means. `detail`: what its file says besides; the argument must be its digest.
    pub fn of(word: &str, argument: U256, detail: Option<&Detail>) -> Result<Self> {
        let low = |bits: usize, wide: U256| -> U256 { wide & U256::MAX >> (256 - bits) };
        let action = match (word, detail) {
            ("pause", None) => Self::Pause,
            ("resume", None) => Self::Resume,
            ("stop", None) => Self::Stop,
            ("openRefunds", None) => Self::OpenRefunds,
            ("evict", None) => Self::Evict { keep: argument.saturating_to() },
            ("clearBar", None) => Self::ClearBar { provider: Address::from_word(argument.into()) },
            ("extendMandate", None) => Self::ExtendMandate { until: argument.saturating_to() },
            ("rescue", None) => Self::Rescue {
                offer: low(64, argument).saturating_to(),
                term: low(32, argument >> 64usize).saturating_to(),
                prepay_uusdc: (argument >> 96usize).saturating_to(),
            },
            ("revokeCode", None) => Self::RevokeCode { code: argument.into() },
            ("setCode", None) => Self::SetCode { code: argument.into() },
            ("tighten", Some(Detail::Limits(limits))) => Self::Tighten { limits: *limits },
            ("loosen", Some(Detail::Limits(limits))) => Self::Loosen { limits: *limits },
            ("setStewards", Some(Detail::Quorum(quorum))) => Self::SetStewards { quorum: quorum.clone() },
            (other, None) => bail!("no order is called {other:?} here, or its detail is missing"),
            (other, Some(_)) => bail!("{other:?} has another detail, or none"),
        };
        ensure!(action.argument() == argument, "`{word}` has no argument {argument}");
        Ok(action)
    }

    fn call(&self, a: Approval) -> Bytes {
        match self {
            Self::Pause => calls::pause(a),
            Self::Resume => calls::resume(a),
            Self::Stop => calls::stop(a),
            Self::Evict { keep } => calls::evict(*keep, a),
            Self::ClearBar { provider } => calls::clear_bar(*provider, a),
            Self::ExtendMandate { until } => calls::extend_mandate(*until, a),
            Self::OpenRefunds => calls::open_refunds(a),
            Self::Rescue { offer, term, prepay_uusdc } => calls::rescue(*offer, *term, *prepay_uusdc, a),
            Self::RevokeCode { .. } => calls::revoke_code(a),
            Self::Tighten { limits } => calls::tighten(limits.policy(), a),
            Self::Loosen { limits } => calls::loosen(limits.policy(), a),
            Self::SetCode { code } => calls::set_code(*code, a),
            Self::SetStewards { quorum } => calls::set_stewards(quorum.stewards.clone(), quorum.threshold, a),
        }
    }

    /// Whether the treasury is as this order wants it; orders that have effect at once need not be asked about.
    async fn is_in_force(&self, chain: &Chain, treasury: Address) -> Result<bool> {
        let client = chain.treasury(treasury);
        Ok(match self {
            Self::SetCode { code } => client.state().await?.codeHash == *code,
            Self::Loosen { limits } => Limits::from(&client.birth().await?.policy) == *limits,
            Self::SetStewards { quorum } => {
                let birth = client.birth().await?;
                birth.stewards == quorum.stewards && birth.threshold == quorum.threshold
            }
            _ => true,
        })
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
            Self::RevokeCode { code } => write!(f, "revoke the code {code}: every host is left"),
            Self::Tighten { limits } => write!(f, "tighten to {limits}"),
            Self::Loosen { limits } => write!(f, "loosen to {limits}, after the delay"),
            Self::SetCode { code } => write!(f, "run the code {code}, after the delay"),
            Self::SetStewards { quorum } => {
                write!(f, "{} of these be stewards, after the delay:", quorum.threshold)?;
                quorum.stewards.iter().try_for_each(|steward| write!(f, " {steward}"))
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
    /// What the argument is the digest of; whoever signs reads this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<Detail>,
    pub nonce: u64,
    /// Chain seconds.
    pub deadline: u64,
    /// How many of `stewards` must sign.
    pub threshold: u8,
    /// As the chain had them when the order was prepared. Submitting reads them again.
    pub stewards: Vec<Steward>,
    pub signatures: Vec<Part>,
}

/// What became of an order that was sent.
#[derive(Clone, Copy, Debug)]
pub struct Submitted {
    pub done: Done,
    /// False: queued, and the same order must be sent again after birth's delay.
    pub in_force: bool,
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
        Self::new(chain, treasury, action, nonce, head.timestamp.saturating_add(valid_secs)).await
    }

    /// The same with a number and a deadline (chain seconds) that the caller knows.
    pub async fn new(chain: &Chain, treasury: Address, action: Action, nonce: u64, deadline: u64) -> Result<Self> {
        let (threshold, stewards) = quorum(chain, treasury).await?;
        Ok(Self {
            chain_id: chain.chain_id(),
            treasury,
            action: action.word().to_owned(),
            argument: action.argument(),
            detail: action.detail(),
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
        Action::of(&self.action, self.argument, self.detail.as_ref())
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
    ///
    /// What waits for birth's delay is queued by the first time and carried out by the second one.
    pub async fn submit(&self, chain: &Chain, payer: &PrivateKeySigner) -> Result<Submitted> {
        ensure!(
            chain.chain_id() == self.chain_id,
            "the order is for chain {}, not for {}",
            self.chain_id,
            chain.chain_id()
        );
        let action = self.action()?;
        let (threshold, stewards) = quorum(chain, self.treasury).await?;
        let current = Self { threshold, stewards, ..self.clone() };
        let data = action.call(current.approval()?);
        let tx = relayed(chain, payer.address(), self.treasury, data, action.word()).await;
        let tx = tx.with_context(|| format!("`{action}` was not accepted"))?;
        let done = send_once(chain, payer, tx, 1).await.with_context(|| format!("`{action}` was not accepted"))?;
        let in_force = action.is_in_force(chain, self.treasury).await?;
        Ok(Submitted { done, in_force })
    }
}

/// Gas that `ITreasury` needs to pay its relayer back: a transfer, a slot of the day's gas, an event. An estimate runs at
/// a gas price of nothing, and nothing is paid back there.
const REPAY_GAS: u64 = 80_000;

/// Gas that a daemon spends on one call of its own at most, whatever the treasury's market and token would take: their code
/// is of a creator's choice. Four times what the dearest costs, a rescue (docs/concepts/fees.md). A guess, with room for
/// chains that count data as gas.
pub const CALL_GAS_MAX: u64 = 2_000_000;

/// A daemon's call, which the treasury may pay back, with a gas limit that is enough for that, too, and never above
/// [`CALL_GAS_MAX`].
///
/// # Errors
/// The contract's refusal, that it takes more gas than that, or that the chain does not answer.
pub async fn repaid(
    chain: &Chain,
    payer: Address,
    treasury: Address,
    data: Bytes,
    label: &'static str,
) -> Result<Tx, chain::Error> {
    let call = TransactionRequest::default().from(payer).to(treasury).input(data.clone().into());
    let gas = estimate(chain, TransactionRequest { gas: Some(CALL_GAS_MAX), ..call }).await?;
    if gas > CALL_GAS_MAX {
        return Err(chain::Error::usage(format!("{label}: it takes {gas} gas, and a daemon spends {CALL_GAS_MAX}")));
    }
    Ok(Tx::call(treasury, data, label).with_gas(with_room(gas).min(CALL_GAS_MAX)))
}

/// A person's order, at whatever gas it takes: a quorum's word must not fail because a market is dear.
async fn relayed(
    chain: &Chain,
    payer: Address,
    treasury: Address,
    data: Bytes,
    label: &'static str,
) -> Result<Tx, chain::Error> {
    let call = TransactionRequest::default().from(payer).to(treasury).input(data.clone().into());
    let gas = estimate(chain, call).await?;
    Ok(Tx::call(treasury, data, label).with_gas(with_room(gas)))
}

async fn estimate(chain: &Chain, call: TransactionRequest) -> Result<u64, chain::Error> {
    let gas: U256 = chain.request("eth_estimateGas", (call, BlockId::pending())).await?;
    Ok(gas.saturating_to())
}

fn with_room(gas: u64) -> u64 {
    gas.saturating_add(gas / 3).saturating_add(REPAY_GAS)
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
    use crate::stand_in::endpoint;
    use serde_json::{Value, json};

    fn key(n: u8) -> PrivateKeySigner {
        PrivateKeySigner::from_bytes(&B256::repeat_byte(n)).unwrap()
    }

    fn file(stewards: Vec<Steward>, threshold: u8) -> OrderFile {
        OrderFile {
            chain_id: 31337,
            treasury: Address::repeat_byte(9),
            action: "pause".into(),
            argument: U256::ZERO,
            detail: None,
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

    #[tokio::test]
    async fn a_daemons_call_has_a_bound_and_a_persons_order_has_none() {
        for (takes, daemons, peoples) in [
            (300_000_u64, Some(480_000_u64), 480_000_u64),
            (1_900_000, Some(CALL_GAS_MAX), 2_613_333),
            (2_000_001, None, 2_746_668),
            (30_000_000, None, 40_080_000),
        ] {
            // A node that knows no bound of a call's own: what it says is held against ours all the same.
            let url = endpoint(move |_: &str, _: &Value| Ok(json!(format!("{takes:#x}")))).await;
            let chain = Chain::connect(&url, 31337).unwrap();
            let gas = |tx: Tx| tx.gas.unwrap();
            let (payer, treasury) = (Address::repeat_byte(1), Address::repeat_byte(9));
            let ours = repaid(&chain, payer, treasury, calls::wind_down(), "wind down").await;
            assert_eq!(ours.ok().map(gas), daemons);
            let theirs = relayed(&chain, payer, treasury, calls::wind_down(), "pause").await;
            assert_eq!(gas(theirs.unwrap()), peoples);
        }
    }

    #[tokio::test]
    async fn a_node_is_told_the_bound() {
        let url = endpoint(|_: &str, params: &Value| {
            assert_eq!(params[0]["gas"], json!(format!("{CALL_GAS_MAX:#x}")));
            Ok(json!("0x5208"))
        });
        let chain = Chain::connect(&url.await, 31337).unwrap();
        repaid(&chain, Address::ZERO, Address::ZERO, calls::close(), "close").await.unwrap();
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

    fn limits() -> Limits {
        let (day_limit, gas) = (U128::from(u128::MAX), U128::from(7));
        let (gas_day_max, gas_target, starve_floor) = (gas, gas, gas);
        Limits { day_limit, price_e6_max: 1, term_max: 2, prepay_max: 3, gas_day_max, gas_target, starve_floor }
    }

    #[test]
    fn every_action_is_read_back_from_what_is_signed() {
        let provider = Address::repeat_byte(4);
        let (limits, code) = (limits(), B256::repeat_byte(0xc0));
        let quorum = Quorum { stewards: vec![provider], threshold: 2 };
        let all = [
            Action::Pause,
            Action::Resume,
            Action::Stop,
            Action::OpenRefunds,
            Action::Evict { keep: 7 },
            Action::ClearBar { provider },
            Action::ExtendMandate { until: 99 },
            Action::Rescue { offer: 2, term: 600, prepay_uusdc: u128::MAX },
            Action::RevokeCode { code },
            Action::SetCode { code },
            Action::Tighten { limits },
            Action::Loosen { limits },
            Action::SetStewards { quorum },
        ];
        let mut words: Vec<&str> = all.iter().map(Action::word).collect();
        for action in all {
            assert_eq!(Action::of(action.word(), action.argument(), action.detail().as_ref()).unwrap(), action);
        }
        words.sort_unstable();
        let mut entries = chain::orders::ORDERS;
        entries.sort_unstable();
        assert_eq!(words, entries, "whatever a quorum can order can be ordered from here");
        assert!(Action::of("pause", U256::ONE, None).is_err());
        assert!(Action::of("evict", U256::MAX, None).is_err());
        assert!(Action::of("pay", U256::ONE, None).is_err());
    }

    #[test]
    fn a_file_that_shows_other_limits_than_it_would_order_is_refused() {
        let mut order = plain();
        let action = Action::Tighten { limits: limits() };
        (order.action, order.argument, order.detail) = (action.word().into(), action.argument(), action.detail());
        assert_eq!(OrderFile::parse(&order.to_json()).unwrap(), order);
        let harmless = Limits { day_limit: U128::ZERO, ..limits() };
        for detail in [
            Some(Detail::Limits(harmless)),
            None,
            Action::SetStewards { quorum: Quorum { stewards: vec![], threshold: 2 } }.detail(),
        ] {
            assert!(OrderFile::parse(&OrderFile { detail, ..order.clone() }.to_json()).is_err());
        }
    }
}
