//! What happened to the agent, and who made it happen.

use alloy::{
    primitives::{Address, B256, Bytes, U256, keccak256},
    sol_types::{SolInterface, SolValue},
};

use super::{
    Evidence, Fact, What,
    money::{Moved, Purpose},
};
use crate::{
    bindings::{Approval, Treasury, TreasuryEvent},
    orders::{Order, digest, domain, recover_digest, rescue_argument},
};

/// Something that people did to the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Intervention {
    /// Height.
    pub block: u64,
    /// Chain seconds.
    pub at: u64,
    /// Its transaction.
    pub tx: B256,
    /// In words, like `evict, keeps nobody`.
    pub what: String,
    /// Who is behind it.
    pub by: By,
}

/// Who is behind an intervention.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum By {
    /// A quorum of stewards, by their signatures; whoever sent them had no say.
    Quorum {
        /// Stewards; a contract stands for itself.
        signers: Vec<Address>,
        /// Who sent them.
        relay: Address,
    },
    /// One account, by its own transaction or transfer.
    Account(Address),
    /// A quorum, by the contract's word: its signatures came through another contract and are not in the
    /// transaction's own input.
    SomeQuorum,
}

/// A stretch of life with one operator, or with none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Epoch {
    /// Its number.
    pub epoch: u64,
    /// Who acted; zero: nobody.
    pub operator: Address,
    /// On which lease; 0: none.
    pub lease: u64,
    /// Whose host that was; zero: none.
    pub provider: Address,
    /// Chain seconds.
    pub began_at: u64,
    /// `activate`, `handover`, `takeover`, `rescue`, `evict`, `revokeCode`, `hibernate`.
    pub began_by: &'static str,
    /// Chain seconds; `None`: it goes on.
    pub ended_at: Option<u64>,
    /// The next one's beginning, or `close`; empty while it goes on.
    pub ended_by: &'static str,
}

/// An acknowledged checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Counts from 1.
    pub seq: u64,
    /// Of the object, sha2-256.
    pub digest: B256,
    /// Chain seconds.
    pub at: u64,
}

/// Silence between activation and the end of serving, by the heartbeats on chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Downtime {
    /// Heartbeats.
    pub heartbeats: u64,
    /// Chain seconds that were looked at.
    pub observed_secs: u64,
    /// Of them, what no heartbeat vouches for: of each gap longer than two intervals, all but one interval.
    pub silent_secs: u64,
    /// Those gaps: from, to (chain seconds).
    pub gaps: Vec<(u64, u64)>,
}

/// Everything that people did, funding included.
pub(super) fn interventions(e: &Evidence, moved: &Moved) -> Vec<Intervention> {
    let mut out = Vec::new();
    let mut nonce = U256::ZERO;
    for fact in &e.facts {
        let What::Treasury(event) = &fact.what else { continue };
        let mut put = |what: String, by| {
            out.push(Intervention { block: fact.block, at: fact.at, tx: fact.tx, what, by });
        };
        let sender = || e.sent.get(&fact.tx).map_or(Address::ZERO, |sent| sent.from);
        if let Some((what, ordered)) = order_of(event) {
            let by = if ordered { signers(e, fact, event, nonce) } else { By::Account(sender()) };
            nonce += U256::from(ordered);
            put(what, by);
            continue;
        }
        match event {
            TreasuryEvent::Born(b) => put("birth".into(), By::Account(b.creator)),
            TreasuryEvent::BirthAborted(_) => put("birth aborted".into(), By::Account(sender())),
            TreasuryEvent::Challenged(c) if e.birth.stewards.contains(&c.by) => {
                put("challenge by a steward".into(), By::Account(c.by));
            }
            TreasuryEvent::StarveNotice(_) => put("notice that it starves".into(), By::Account(sender())),
            TreasuryEvent::WindDownBegun(_) => put("wind-down begun".into(), By::Account(sender())),
            TreasuryEvent::Closed(_) => put("closed".into(), By::Account(sender())),
            _ => {}
        }
    }
    for (purpose, word) in
        [(Purpose::Seed, "paid in before activation"), (Purpose::Gift, "gift"), (Purpose::Withdrawn, "withdrawn")]
    {
        out.extend(moved.of(purpose).into_iter().map(|m| Intervention {
            block: m.block,
            at: m.at,
            tx: m.tx,
            what: format!("{word}: {} micro-USDC", m.amount),
            by: By::Account(m.party),
        }));
    }
    out.sort_by_key(|i| i.block);
    out
}

/// An order in words, and whether this event used up a number of the treasury's: what waited was signed when it was
/// queued.
fn order_of(event: &TreasuryEvent) -> Option<(String, bool)> {
    let now = |what: String| Some((what, true));
    match event {
        TreasuryEvent::Paused(_) => now("pause".into()),
        TreasuryEvent::Resumed(_) => now("resume".into()),
        TreasuryEvent::Stopped(_) => now("stop".into()),
        TreasuryEvent::Evicted(e) if e.keep.is_zero() => now("evict, keeps nobody".into()),
        TreasuryEvent::Evicted(e) => now(format!("evict, keeps lease {}", e.keep)),
        TreasuryEvent::Rescued(r) => now(format!("rescue: lease {} on offer {}", r.lease, r.offer)),
        TreasuryEvent::MandateExtended(m) => now(format!("mandate extended to {}", m.until)),
        TreasuryEvent::BarCleared(b) => now(format!("bar of {} cleared", b.provider)),
        TreasuryEvent::CodeRevoked(c) => now(format!("code {} revoked", c.codeHash)),
        TreasuryEvent::Tightened(_) => now("limits tightened".into()),
        TreasuryEvent::RefundsOpened(_) => now("refunds opened".into()),
        TreasuryEvent::Queued(q) => now(format!("{} queued until {}", q.action, q.from)),
        TreasuryEvent::Loosened(_) => Some(("limits loosened, as queued".into(), false)),
        TreasuryEvent::CodeSet(c) => Some((format!("code {} set, as queued", c.codeHash), false)),
        TreasuryEvent::StewardsSet(s) => {
            Some((format!("stewards set, as queued: {} of {}", s.threshold, s.stewards.len()), false))
        }
        _ => None,
    }
}

/// Whose signatures carried an order, from the transaction that brought them.
fn signers(e: &Evidence, fact: &Fact, event: &TreasuryEvent, nonce: U256) -> By {
    let Some(sent) = e.sent.get(&fact.tx).filter(|sent| sent.to == Some(e.treasury)) else { return By::SomeQuorum };
    let Some((action, argument, approval)) = ordered(&sent.input, event) else { return By::SomeQuorum };
    let order = Order::new(action, argument, nonce, approval.deadline);
    let digest = digest(&order, &domain(e.chain_id, e.treasury));
    let signers: Option<Vec<Address>> = approval.signatures.iter().map(|s| signer(s, digest)).collect();
    signers.map_or(By::SomeQuorum, |signers| By::Quorum { signers, relay: sent.from })
}

/// A key's signature has 65 bytes; any other begins with the address of a steward that is a contract, and the treasury
/// asked that contract.
fn signer(signature: &Bytes, digest: B256) -> Option<Address> {
    match signature.len() {
        65 => recover_digest(digest, signature).ok(),
        _ => signature.get(..20).map(Address::from_slice),
    }
}

/// What an order's call says. That which code is revoked, only the event does.
fn ordered(input: &[u8], event: &TreasuryEvent) -> Option<(&'static str, U256, Approval)> {
    use Treasury::TreasuryCalls as Call;
    let policy = |p: &crate::bindings::Policy| U256::from_be_bytes(keccak256(p.abi_encode()).0);
    Some(match Call::abi_decode(input).ok()? {
        Call::pause(c) => ("pause", U256::ZERO, c.a),
        Call::resume(c) => ("resume", U256::ZERO, c.a),
        Call::stop(c) => ("stop", U256::ZERO, c.a),
        Call::evict(c) => ("evict", c.keep, c.a),
        Call::rescue(c) => {
            let argument = rescue_argument(c.offer.saturating_to(), c.term, c.prepay);
            ("rescue", argument, c.a)
        }
        Call::clearBar(c) => ("clearBar", U256::from_be_slice(c.provider.as_slice()), c.a),
        Call::extendMandate(c) => ("extendMandate", U256::from(c.until), c.a),
        Call::tighten(c) => ("tighten", policy(&c.policy), c.a),
        Call::loosen(c) => ("loosen", policy(&c.policy), c.a),
        Call::openRefunds(c) => ("openRefunds", U256::ZERO, c.a),
        Call::setCode(c) => ("setCode", c.codeHash.into(), c.a),
        Call::setStewards(c) => {
            let argument = keccak256((c.stewards, U256::from(c.threshold)).abi_encode_params());
            ("setStewards", argument.into(), c.a)
        }
        Call::revokeCode(c) => match event {
            TreasuryEvent::CodeRevoked(revoked) => ("revokeCode", revoked.codeHash.into(), c.a),
            _ => return None,
        },
        _ => return None,
    })
}

pub(super) fn epochs(e: &Evidence) -> Vec<Epoch> {
    let mut out: Vec<Epoch> = Vec::new();
    let mut rescued = None;
    for fact in &e.facts {
        let What::Treasury(event) = &fact.what else { continue };
        let next = out.last().map_or(1, |last| last.epoch + 1);
        let (epoch, operator, lease, by) = match event {
            TreasuryEvent::Activated(a) => (1, a.operator, a.lease, "activate"),
            TreasuryEvent::HandedOver(h) => (h.epoch, h.operator, h.lease, "handover"),
            TreasuryEvent::TakenOver(t) => {
                let by = if rescued == Some(t.lease) { "rescue" } else { "takeover" };
                (t.epoch, t.operator, t.lease, by)
            }
            TreasuryEvent::Evicted(v) => (v.epoch, v.operator, v.keep, "evict"),
            TreasuryEvent::CodeRevoked(_) => (next, Address::ZERO, U256::ZERO, "revokeCode"),
            TreasuryEvent::Hibernated(h) => (h.epoch, Address::ZERO, U256::ZERO, "hibernate"),
            TreasuryEvent::Rescued(r) => {
                rescued = Some(r.lease);
                continue;
            }
            TreasuryEvent::Closed(_) => {
                end(&mut out, fact.at, "close");
                continue;
            }
            _ => continue,
        };
        end(&mut out, fact.at, by);
        let lease = lease.saturating_to();
        let provider = e.leases.iter().find(|l| l.id == lease).map_or(Address::ZERO, |l| l.lease.provider);
        let (began_at, began_by) = (fact.at, by);
        out.push(Epoch { epoch, operator, lease, provider, began_at, began_by, ended_at: None, ended_by: "" });
    }
    out
}

fn end(epochs: &mut [Epoch], at: u64, by: &'static str) {
    if let Some(last) = epochs.last_mut().filter(|last| last.ended_at.is_none()) {
        (last.ended_at, last.ended_by) = (Some(at), by);
    }
}

pub(super) fn checkpoints(e: &Evidence) -> Vec<Checkpoint> {
    let one = |fact: &Fact| match &fact.what {
        What::Treasury(TreasuryEvent::Committed(c)) => Some(Checkpoint { seq: c.seq, digest: c.digest, at: fact.at }),
        _ => None,
    };
    e.facts.iter().filter_map(one).collect()
}

/// A successor is heard when the chain names it; before activation and after the end of serving nobody is missed, nor
/// while the agent sleeps.
pub(super) fn downtime(e: &Evidence) -> Downtime {
    let every = u64::from(e.birth.timers.heartbeatEvery);
    let mut out = Downtime::default();
    let mut heard: Option<u64> = None;
    for fact in &e.facts {
        let What::Treasury(event) = &fact.what else { continue };
        let at = fact.at;
        match event {
            TreasuryEvent::Activated(_) => heard = Some(at),
            TreasuryEvent::Heartbeat(_) | TreasuryEvent::HandedOver(_) | TreasuryEvent::TakenOver(_) => {
                out.heartbeats += u64::from(matches!(event, TreasuryEvent::Heartbeat(_)));
                out.hear(heard, at, every);
                heard = heard.map(|_| at);
                // Awake again.
                if matches!(event, TreasuryEvent::TakenOver(_)) {
                    heard = Some(at);
                }
            }
            TreasuryEvent::Hibernated(_) | TreasuryEvent::WindDownBegun(_) => {
                out.hear(heard, at, every);
                heard = None;
            }
            _ => {}
        }
    }
    out.hear(heard, e.head.timestamp, every);
    out
}

impl Downtime {
    fn hear(&mut self, since: Option<u64>, at: u64, every: u64) {
        let Some(since) = since else { return };
        let gap = at.saturating_sub(since);
        self.observed_secs += gap;
        if gap > 2 * every {
            self.silent_secs += gap - every;
            self.gaps.push((since, at));
        }
    }
}
