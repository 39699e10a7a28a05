//! The report, for people and for programs.

use super::super::link::duration;
use super::Objects;
use alloy::primitives::Address;
use chain::audit::{Audit, By, Epoch, Evidence, Intervention, LeaseBill, Link, Movement, Payer, Relation};
use node::manifest::INDEPENDENCE;
use serde_json::{Value, json};
use std::fmt::Write;

/// Rows of one list that are shown to people; programs get all.
const ROWS_MAX: usize = 20;

pub struct Report<'a> {
    pub evidence: &'a Evidence,
    pub audit: &'a Audit,
    pub objects: &'a Objects,
}

impl Report<'_> {
    pub fn json(&self) -> Value {
        let (e, a) = (self.evidence, self.audit);
        let movements = |list: &[Movement]| list.iter().map(movement_json).collect::<Vec<_>>();
        let differences = a.differences.iter().map(
            |d| json!({ "what": d.what, "events_uusdc": d.events.to_string(), "chain_uusdc": d.chain.to_string() }),
        );
        let parts = [
            ("treasury", json!(e.treasury)),
            ("chain_id", json!(e.chain_id)),
            ("implementation", json!(e.implementation)),
            ("stage", json!(stage(e))),
            ("blocks", json!({ "first": e.first_block, "last": e.head.number, "last_at": e.head.timestamp })),
            ("balances", json!(a.balances())),
            ("differences", differences.collect()),
            ("money", self.money_json()),
            (
                "gas",
                amounts([("bought_wei", a.gas.bought), ("refueled_wei", a.gas.refueled), ("repaid_wei", a.gas.repaid)]),
            ),
            (
                "income",
                amounts([
                    ("strangers_uusdc", a.income.strangers),
                    ("linked_uusdc", a.income.linked),
                    ("crowd_uusdc", a.income.crowd),
                ]),
            ),
            ("payers", a.payers.iter().map(payer_json).collect()),
            ("leases", a.leases.iter().map(lease_json).collect()),
            ("gifts", movements(&a.gifts).into()),
            ("unexplained", movements(&a.unexplained).into()),
            ("purse_payments", movements(&a.purse_payments).into()),
            ("interventions", a.interventions.iter().map(intervention_json).collect()),
            ("epochs", a.epochs.iter().map(epoch_json).collect()),
            (
                "downtime",
                json!({
                    "heartbeats": a.downtime.heartbeats,
                    "observed_secs": a.downtime.observed_secs,
                    "silent_secs": a.downtime.silent_secs,
                    "gaps": a.downtime.gaps,
                }),
            ),
            ("checkpoints", self.checkpoints_json().into()),
            ("log_lines", json!(self.objects.log.as_ref().and_then(|log| log.as_ref().ok()))),
            ("manifest", self.manifest_json()),
            (
                "stewards",
                json!({
                    "threshold": e.birth.threshold,
                    "addresses": e.birth.stewards,
                    "independence": INDEPENDENCE,
                }),
            ),
            ("strange_events", json!(e.strange)),
        ];
        Value::Object(parts.into_iter().map(|(name, part)| (name.to_owned(), part)).collect())
    }

    fn money_json(&self) -> Value {
        let m = &self.audit.money;
        let Value::Object(mut money) = amounts([
            ("opening_uusdc", m.opening),
            ("seed_uusdc", m.seed),
            ("gifts_uusdc", m.gifts),
            ("settled_uusdc", m.revenue()),
            ("exact_uusdc", m.exact),
            ("channels_uusdc", m.channels),
            ("refunds_uusdc", m.refunds),
            ("rent_uusdc", m.rent),
            ("storage_uusdc", m.storage),
            ("tools_uusdc", m.tools),
            ("purse_uusdc", m.purse),
            ("gas_uusdc", m.gas),
            ("duty_uusdc", m.duty),
            ("costs_uusdc", m.costs()),
            ("unexplained_uusdc", m.unexplained),
            ("withdrawn_uusdc", m.withdrawn),
            ("balance_uusdc", m.balance),
            ("escrow_uusdc", m.escrow),
            ("in_purse_uusdc", m.in_purse),
            ("uncollected_uusdc", m.uncollected),
            ("unsettled_uusdc", m.unsettled),
            ("channel_refunds_uusdc", m.channel_refunds),
        ]) else {
            return Value::Null;
        };
        money.insert("net_uusdc".to_owned(), json!(m.net().to_string()));
        Value::Object(money)
    }

    fn checkpoints_json(&self) -> Vec<Value> {
        let pairs = self.audit.checkpoints.iter().zip(&self.objects.checkpoints);
        let one = |(c, found): (&chain::audit::Checkpoint, &anyhow::Result<store::checkpoint::Checkpoint>)| {
            json!({
                "seq": c.seq,
                "cid": store::cid::raw(c.digest.0).to_string(),
                "at": c.at,
                "fetched": self.objects.asked.then_some(found.is_ok()),
                "problem": found.as_ref().err().filter(|_| self.objects.asked).map(|e| format!("{e:#}")),
            })
        };
        pairs.map(one).collect()
    }

    fn manifest_json(&self) -> Value {
        let cid = store::cid::raw(self.evidence.birth.manifest.0).to_string();
        let found = self.objects.manifest.as_ref();
        json!({
            "cid": cid,
            "fetched": self.objects.asked.then_some(found.is_ok()),
            "name": found.ok().map(|m| m.name.clone()),
            "model": found.ok().map(|m| m.model.name.clone()),
        })
    }

    pub fn text(&self) -> String {
        let mut out = String::new();
        // Writing to a String cannot fail.
        self.head(&mut out);
        self.money(&mut out);
        self.who_paid(&mut out);
        self.leases(&mut out);
        self.life(&mut out);
        self.objects(&mut out);
        let _ = match self.audit.differences.as_slice() {
            [] => writeln!(out, "\nbalances: every sum is equal to the chain's, to the micro-USDC"),
            differences => {
                let lines: Vec<String> = differences.iter().map(|d| format!("  {d} (micro-USDC)")).collect();
                writeln!(out, "\nDOES NOT BALANCE\n{}", lines.join("\n"))
            }
        };
        out
    }

    fn head(&self, out: &mut String) {
        let (e, birth) = (self.evidence, &self.evidence.birth);
        let name = self
            .objects
            .manifest
            .as_ref()
            .map_or_else(|_| String::new(), |m| format!(" ({}, {})", m.name, m.model.name));
        let _ = writeln!(out, "treasury    {} on chain {}{name}", e.treasury, e.chain_id);
        let _ = match e.implementation {
            Some(code) => writeln!(out, "contract    a proxy of {code}, which never changes"),
            None => writeln!(out, "contract    NOT a proxy of a treasury factory: its events prove nothing"),
        };
        let _ = writeln!(
            out,
            "stage       {}, epoch {}, {} into its life",
            stage(e),
            e.state.epoch,
            self.when(e.head.timestamp)
        );
        let _ = writeln!(out, "read        blocks {} to {}", e.first_block, e.head.number);
        let _ = writeln!(
            out,
            "stewards    {} of {} must sign; independence {INDEPENDENCE}: {}",
            birth.threshold,
            birth.stewards.len(),
            birth.stewards.iter().map(Address::to_string).collect::<Vec<_>>().join(" ")
        );
        if e.strange > 0 {
            let _ = writeln!(
                out,
                "strange     {} events that this program does not know; it is older than the contract",
                e.strange
            );
        }
    }

    fn money(&self, out: &mut String) {
        let m = &self.audit.money;
        let _ = writeln!(out, "\nmoney, USDC");
        let mut row = |indent: usize, what: &str, text: String| {
            let width = 26 - indent;
            let _ = writeln!(out, "  {:indent$}{what:<width$}{text:>18}", "");
        };
        row(0, "revenue", usdc(m.revenue()));
        row(2, "exact", usdc(m.exact));
        row(2, "channels", usdc(m.channels));
        row(0, "refunds out", usdc(m.refunds));
        row(0, "costs", usdc(m.costs()));
        for (what, amount) in [
            ("rent", m.rent),
            ("storage", m.storage),
            ("tools", m.tools),
            ("purse", m.purse),
            ("gas", m.gas),
            ("stewards' duties", m.duty),
        ] {
            row(2, what, usdc(amount));
        }
        row(0, "net", signed_usdc(m.net()));
        row(0, "seed", usdc(m.seed + m.opening));
        row(0, "gifts", usdc(m.gifts));
        row(0, "withdrawn at the end", usdc(m.withdrawn));
        row(0, "spent, unexplained", usdc(m.unexplained));
        row(0, "held", usdc(m.balance + m.escrow + m.in_purse + m.uncollected));
        row(2, "in the treasury", usdc(m.balance));
        row(2, "in escrow with hosts", usdc(m.escrow));
        row(2, "in the purse", usdc(m.in_purse));
        if m.uncollected > 0 {
            row(2, "waits at the market", usdc(m.uncollected));
        }
        if m.unsettled > 0 {
            row(0, "claimed, not yet settled", usdc(m.unsettled));
        }
        let gas = &self.audit.gas;
        let _ = writeln!(
            out,
            "  gas, wei: {} bought, {} to operators and relays, {} repaid to relayers",
            gas.bought, gas.refueled, gas.repaid
        );
        let unexplained: Vec<String> = self.audit.unexplained.iter().map(|m| self.movement(m, "to")).collect();
        rows(out, "spending that the public record does not explain", &unexplained);
        let purse: Vec<String> = self.audit.purse_payments.iter().map(|m| self.movement(m, "to")).collect();
        rows(out, "paid from the purse (to whom is public, for what is not)", &purse);
    }

    fn who_paid(&self, out: &mut String) {
        let income = &self.audit.income;
        let _ = writeln!(out, "\nwho paid, USDC (channels as claimed)");
        for (what, amount) in
            [("strangers", income.strangers), ("linked to the agent", income.linked), ("built-in crowd", income.crowd)]
        {
            let _ = writeln!(out, "  {what:<26}{:>18}", usdc(amount));
        }
        let mut payers: Vec<&Payer> = self.audit.payers.iter().collect();
        payers.sort_by_key(|p| std::cmp::Reverse(p.paid()));
        let lines = payers.iter().map(|p| format!("{} {:>14}  {}", p.address, usdc(p.paid()), link(p.link)));
        rows(out, "customers", &lines.collect::<Vec<_>>());
    }

    fn leases(&self, out: &mut String) {
        let lines = self.audit.leases.iter().map(|l| {
            let (began, ended) = (self.when(l.rented_at), l.closed_at.map_or("now".to_owned(), |at| self.when(at)));
            format!("lease {} of {}: rent {} from {began} to {ended}", l.lease, l.provider, usdc(l.rent))
        });
        rows(out, "rent", &lines.collect::<Vec<_>>());
    }

    fn life(&self, out: &mut String) {
        let a = self.audit;
        let lines = a.epochs.iter().map(|e| {
            let ended = e.ended_at.map_or("now".to_owned(), |at| format!("{} ({})", self.when(at), e.ended_by));
            let host = if e.lease == 0 { "no host".to_owned() } else { format!("lease {} of {}", e.lease, e.provider) };
            format!(
                "epoch {}: {} ({}) to {ended}, {host}, operator {}",
                e.epoch,
                self.when(e.began_at),
                e.began_by,
                e.operator
            )
        });
        rows(out, "epochs", &lines.collect::<Vec<_>>());
        let lines = a.interventions.iter().map(|i| format!("{:>10}  {} {}", self.when(i.at), i.what, by(&i.by)));
        rows(out, "what people did", &lines.collect::<Vec<_>>());
        let d = &a.downtime;
        // Permille without floats.
        let permille = (u128::from(d.silent_secs) * 1_000).checked_div(d.observed_secs.into()).unwrap_or(0);
        let _ = writeln!(
            out,
            "\nsilence     {} s of {} s ({}.{} %), by {} heartbeats; {} gaps",
            d.silent_secs,
            d.observed_secs,
            permille / 10,
            permille % 10,
            d.heartbeats,
            d.gaps.len()
        );
    }

    fn objects(&self, out: &mut String) {
        let (all, objects) = (&self.audit.checkpoints, self.objects);
        if !objects.asked {
            let _ = writeln!(
                out,
                "checkpoints {} acknowledged; name a --store to see whether they can be fetched",
                all.len()
            );
            return;
        }
        let good = objects.checkpoints.iter().filter(|c| c.is_ok()).count();
        let _ = writeln!(
            out,
            "checkpoints {} acknowledged, {good} of them can be fetched and are signed by their operator",
            all.len()
        );
        let missing = all.iter().zip(&objects.checkpoints).filter_map(|(c, found)| {
            let error = found.as_ref().err()?;
            Some(format!("checkpoint {} ({}): {error:#}", c.seq, store::cid::raw(c.digest.0)))
        });
        rows(out, "checkpoints that cannot be had", &missing.collect::<Vec<_>>());
        let _ = match &objects.log {
            Some(Ok(lines)) => {
                writeln!(out, "log         {lines} lines up to the last checkpoint; `vivarium log` prints them")
            }
            Some(Err(e)) => writeln!(out, "log         cannot be had: {e:#}"),
            None => Ok(()),
        };
        if let Err(e) = &objects.manifest {
            let _ = writeln!(out, "manifest    cannot be had: {e:#}");
        }
    }

    /// Since birth, in the agent's own days.
    fn when(&self, at: u64) -> String {
        let born = self.evidence.facts.first().map_or(at, |fact| fact.at);
        duration(at.saturating_sub(born), u64::from(self.evidence.birth.timers.day))
    }

    fn movement(&self, m: &Movement, word: &str) -> String {
        format!("{:>10}  {} {word} {} (transaction {})", self.when(m.at), usdc(m.amount), m.party, m.tx)
    }
}

fn rows(out: &mut String, title: &str, lines: &[String]) {
    if lines.is_empty() {
        return;
    }
    let _ = writeln!(out, "\n{title}");
    for line in lines.iter().take(ROWS_MAX) {
        let _ = writeln!(out, "  {line}");
    }
    if lines.len() > ROWS_MAX {
        let _ = writeln!(out, "  … and {} more; --json has all", lines.len() - ROWS_MAX);
    }
}

fn stage(e: &Evidence) -> String {
    let paused = if e.state.paused { ", paused" } else { "" };
    format!("{:?}{paused}", e.state.stage()).to_lowercase()
}

fn usdc(micro: u128) -> String {
    format!("{}.{:06}", micro / 1_000_000, micro % 1_000_000)
}

fn signed_usdc(micro: i128) -> String {
    let sign = if micro < 0 { "-" } else { "" };
    format!("{sign}{}", usdc(micro.unsigned_abs()))
}

fn relation(relation: Relation) -> &'static str {
    match relation {
        Relation::Creator => "creator",
        Relation::Steward => "steward",
        Relation::Beneficiary => "beneficiary",
        Relation::Provider => "provider",
        Relation::Itself => "the agent itself",
        Relation::Crowd => "built-in crowd",
    }
}

fn link(link: Option<Link>) -> String {
    match link {
        None => "stranger".into(),
        Some(Link::Is(who)) => relation(who).into(),
        Some(Link::FundedBy(who, from)) => format!("funded by {from} ({})", relation(who)),
    }
}

fn by(by: &By) -> String {
    match by {
        By::Quorum { signers, relay } => {
            let signers: Vec<String> = signers.iter().map(Address::to_string).collect();
            format!("signed by {}, sent by {relay}", signers.join(" and "))
        }
        By::Account(account) => format!("by {account}"),
        By::SomeQuorum => "by a quorum whose signatures came through another contract".into(),
    }
}

fn by_json(by: &By) -> Value {
    match by {
        By::Quorum { signers, relay } => json!({ "signers": signers, "sent_by": relay }),
        By::Account(account) => json!({ "account": account }),
        By::SomeQuorum => json!({ "signers": null }),
    }
}

/// Amounts are strings: a JSON number ends at 2^53 in most programs.
fn amounts<const N: usize>(list: [(&str, u128); N]) -> Value {
    Value::Object(list.into_iter().map(|(name, amount)| (name.to_owned(), json!(amount.to_string()))).collect())
}

fn lease_json(l: &LeaseBill) -> Value {
    json!({
        "lease": l.lease,
        "provider": l.provider,
        "price_e6": l.price_e6,
        "rented_at": l.rented_at,
        "started_at": l.started_at,
        "closed_at": l.closed_at,
        "paid_in_uusdc": l.paid_in.to_string(),
        "rent_uusdc": l.rent.to_string(),
        "refund_uusdc": l.refund.to_string(),
        "left_uusdc": l.left.to_string(),
    })
}

fn intervention_json(i: &Intervention) -> Value {
    json!({ "block": i.block, "at": i.at, "transaction": i.tx, "what": i.what, "by": by_json(&i.by) })
}

fn epoch_json(e: &Epoch) -> Value {
    json!({
        "epoch": e.epoch,
        "operator": e.operator,
        "lease": e.lease,
        "provider": e.provider,
        "began_at": e.began_at,
        "began_by": e.began_by,
        "ended_at": e.ended_at,
        "ended_by": (!e.ended_by.is_empty()).then_some(e.ended_by),
    })
}

fn movement_json(m: &Movement) -> Value {
    json!({ "block": m.block, "at": m.at, "transaction": m.tx, "party": m.party, "amount_uusdc": m.amount.to_string() })
}

fn payer_json(p: &Payer) -> Value {
    let link = p.link.map(|link| match link {
        Link::Is(who) => json!({ "is": relation(who) }),
        Link::FundedBy(who, from) => json!({ "funded_by": from, "who_is": relation(who) }),
    });
    json!({
        "address": p.address,
        "exact_uusdc": p.exact.to_string(),
        "channels_uusdc": p.channels.to_string(),
        "refunds_uusdc": p.refunds.to_string(),
        "link": link,
    })
}
