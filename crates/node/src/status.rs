//! `GET /status`: the wire form of what the main loop knows. All money is a decimal string of micro-USDC.

use crate::api::{classify, extract, verify};
use crate::batch::half_up;
use crate::fence::boottime_ms;
use crate::main_loop::Node;
use crate::manifest::{INDEPENDENCE, Manifest};
use crate::shared::Role;
use alloy::primitives::Address;
use economy::{LeaseView, Ledger, Price, Stage, Usdc};
use serde::Serialize;

#[derive(Clone, Debug, Serialize)]
pub struct Status {
    pub name: String,
    pub agent: Address,
    pub chain_id: u64,
    pub usdc: Address,
    pub role: String,
    pub stage: String,
    pub paused: bool,
    pub epoch: u64,
    pub operator: Address,
    pub node_key: Address,
    pub block: BlockStatus,
    pub model: String,
    /// None: it sells no vectors.
    pub embedding_model: Option<String>,
    pub price: PriceStatus,
    pub selling: bool,
    pub closed_because: Option<String>,
    pub balance_uusdc: String,
    pub escrow_uusdc: String,
    pub seed_uusdc: String,
    /// All that customers ever paid in: earned, not yet earned, or given back.
    pub settled_uusdc: String,
    pub earned_uusdc: String,
    pub rent_uusdc: String,
    pub gifts_uusdc: String,
    pub refunds_uusdc: String,
    /// In the purse, and paid from it to other agents whose answers are sold here.
    pub purse_uusdc: String,
    pub purchases_uusdc: String,
    /// Paid for ETH.
    pub gas_uusdc: String,
    /// Paid to the archivist for copies of the memory.
    pub storage_uusdc: String,
    /// ETH that the treasury has left for its operator and relay, wei.
    pub treasury_gas_wei: String,
    /// Gross commitments of any day: the limit right now, and what is used of it.
    pub day_limit_uusdc: String,
    pub spent_in_day_uusdc: String,
    /// Null while income covers the cost.
    pub runway_secs: Option<u64>,
    /// What the runway of a day ago foretold for now. Null in the first day.
    pub forecast: Option<ForecastStatus>,
    /// For the hosts there are, first, and the three cheapest offers. Empty before the first block.
    pub break_even: Vec<BreakEvenStatus>,
    pub requests: RequestStatus,
    pub lease: Option<LeaseStatus>,
    pub standby: Option<LeaseStatus>,
    pub next_move_at: Option<u64>,
    pub checkpoint: CheckpointStatus,
    /// The last copies of checkpoints on Arweave, newest last.
    pub archived: Vec<ArchivedStatus>,
    pub exposure_uusdc: String,
    pub exposure_max_uusdc: String,
    pub day_secs: u32,
    pub mandate_until: u64,
    pub ledger_ok: bool,
    /// How much less the chain holds than the ledger says; then nothing is spent.
    pub ledger_short_uusdc: String,
    /// What the payment book has charged less what the ledger has heard of it; not 0 is a bug. May be negative.
    pub book_difference_uusdc: String,
    pub trouble: Option<String>,
    pub stewards: Vec<StewardStatus>,
    pub threshold: u8,
    /// This node.
    pub url: String,
    /// The node that the chain names.
    pub active_url: Option<String>,
    pub pid: u32,
    pub engine_pid: Option<u32>,
}

#[derive(Clone, Debug, Serialize)]
pub struct BlockStatus {
    pub number: u64,
    pub timestamp: u64,
}

#[derive(Clone, Debug, Serialize)]
pub struct PriceStatus {
    pub call_uusdc: String,
    pub mtok_prompt_uusdc: String,
    pub mtok_cached_uusdc: String,
    pub mtok_embedding_uusdc: String,
    pub mtok_completion_uusdc: String,
    /// A million bytes of stored conversation, once.
    pub mbyte_stored_uusdc: String,
    /// A text that is classified, and one that JSON is taken out of.
    pub classify_uusdc: String,
    pub extract_uusdc: String,
    /// An answer that is made again.
    pub verify_uusdc: String,
    /// A million tokens in a batch: of its prompts, of texts that become vectors, and generated.
    pub batch_mtok_prompt_uusdc: String,
    pub batch_mtok_embedding_uusdc: String,
    pub batch_mtok_completion_uusdc: String,
}

#[derive(Clone, Debug, Serialize)]
pub struct ForecastStatus {
    /// Chain seconds.
    pub at: u64,
    pub foretold_uusdc: String,
    /// Gifts included.
    pub found_uusdc: String,
    /// Thousandths of what was foretold; positive: more was found.
    pub error_permille: i64,
}

/// What a day costs, and how many calls at the least price pay for it.
#[derive(Clone, Debug, Serialize)]
pub struct BreakEvenStatus {
    /// Null: the hosts there are.
    pub offer: Option<u64>,
    pub cost_day_uusdc: String,
    pub calls_a_day: u64,
}

#[derive(Clone, Debug, Serialize)]
pub struct RequestStatus {
    pub served: u64,
    /// Served or not settled yet.
    pub open: u32,
    pub refused: u64,
    pub in_flight: u64,
}

#[derive(Clone, Debug, Serialize)]
pub struct LeaseStatus {
    pub id: u64,
    pub provider: String,
    pub endpoint: String,
    pub price_e6: u64,
    pub start: u64,
    pub end: u64,
    pub ready: bool,
}

#[derive(Clone, Debug, Serialize)]
pub struct CheckpointStatus {
    pub seq: u64,
    /// CID of the checkpoint object; null before the first.
    pub cid: Option<String>,
    pub digest: String,
}

#[derive(Clone, Debug, Serialize)]
pub struct StewardStatus {
    pub address: Address,
    pub url: String,
    /// Always `self-declared`: nothing shows that two addresses are two people.
    pub independence: &'static str,
}

/// A checkpoint's copy, by the archivist's word: whoever reads it from there proves it.
#[derive(Clone, Debug, Serialize)]
pub struct ArchivedStatus {
    pub seq: u64,
    /// CID of the checkpoint object, the root of the CAR file.
    pub cid: String,
    /// The Arweave transaction whose data that file is.
    pub transaction: String,
    /// Chain seconds.
    pub at: u64,
}

impl PriceStatus {
    /// Of a day; without a price nothing is sold.
    fn of(price: Option<Price>, manifest: &Manifest) -> PriceStatus {
        let class = |of: fn(Price) -> Usdc| money(price.map(of));
        let of_batch = |of: fn(Price) -> Usdc| money(price.map(|price| half_up(1_000_000, of(price))));
        PriceStatus {
            call_uusdc: class(|p| p.call_uusdc),
            mtok_prompt_uusdc: class(|p| p.mtok_prompt_uusdc),
            mtok_cached_uusdc: class(|p| p.mtok_cached_uusdc),
            mtok_embedding_uusdc: class(|p| p.mtok_embedding_uusdc),
            mtok_completion_uusdc: class(|p| p.mtok_completion_uusdc),
            mbyte_stored_uusdc: manifest.payments.storage_uusdc_per_mbyte.to_string(),
            classify_uusdc: money(price.map(|p| classify::flat(manifest, 1).today(p.of_embeddings()))),
            extract_uusdc: money(price.map(|p| extract::flat(manifest).today(p))),
            verify_uusdc: money(price.map(|p| verify::flat(manifest).today(p))),
            batch_mtok_prompt_uusdc: of_batch(|p| p.mtok_prompt_uusdc),
            batch_mtok_embedding_uusdc: of_batch(|p| p.mtok_embedding_uusdc),
            batch_mtok_completion_uusdc: of_batch(|p| p.mtok_completion_uusdc),
        }
    }
}

/// Nothing is zero.
fn money(amount: Option<Usdc>) -> String {
    amount.unwrap_or(Usdc::ZERO).0.to_string()
}

impl Node {
    /// Tells readers how things stand. Nothing before the first block.
    pub(crate) fn publish(&self) {
        if let Some(status) = self.status() {
            self.shared.set_status(status);
        }
    }

    fn status(&self) -> Option<Status> {
        let news = self.news.as_ref()?;
        let view = news.view(self.cx.me());
        let (state, live) = (&news.state, self.live.as_ref().filter(|_| self.role != Role::Standby));
        let ledger = live.map(|l| l.state.agent.ledger());
        let price = self.shared.price();
        let role = match (self.role, view.stage) {
            (Role::Active, Stage::WindingDown) => "winding_down".to_owned(),
            (_, Stage::Closed) => "closed".to_owned(),
            (role, _) => role.to_string(),
        };
        let lease = |lease: &Option<LeaseView>, endpoint: Option<&str>| {
            lease.as_ref().map(|l| LeaseStatus {
                id: l.id,
                provider: Address::from(l.provider).to_string(),
                endpoint: endpoint.unwrap_or_default().to_owned(),
                price_e6: l.price_e6,
                start: l.start,
                end: l.end,
                ready: l.ready,
            })
        };
        let checkpointed = state.checkpointSeq > 0;
        Some(Status {
            name: self.cx.manifest.name.clone(),
            agent: self.cx.config.treasury,
            chain_id: self.cx.config.chain_id,
            usdc: self.cx.birth.token,
            role,
            stage: stage_name(view.stage).to_owned(),
            paused: view.paused,
            epoch: view.epoch,
            operator: state.operator,
            node_key: self.cx.me(),
            block: BlockStatus { number: view.number, timestamp: view.timestamp },
            model: self.cx.manifest.model.name.clone(),
            embedding_model: self.cx.manifest.embedding.as_ref().map(|model| model.name.clone()),
            price: PriceStatus::of(price, &self.cx.manifest),
            selling: price.is_some() && self.acts() && self.shared.engine().is_some(),
            closed_because: self.shared.closed_because(),
            balance_uusdc: view.balance.0.to_string(),
            escrow_uusdc: view.escrow.0.to_string(),
            seed_uusdc: money(ledger.map(|l| l.seed())),
            settled_uusdc: money(ledger.map(Ledger::arrived)),
            earned_uusdc: money(ledger.map(|l| l.sales())),
            rent_uusdc: money(ledger.map(|l| l.rent())),
            gifts_uusdc: money(ledger.map(|l| l.gifts())),
            refunds_uusdc: money(ledger.map(|l| l.refunds())),
            purse_uusdc: view.purse.0.to_string(),
            purchases_uusdc: money(ledger.map(|l| l.purchases())),
            gas_uusdc: money(ledger.map(|l| l.gas())),
            storage_uusdc: money(ledger.map(|l| l.storage())),
            treasury_gas_wei: view.treasury_gas_wei.to_string(),
            day_limit_uusdc: view.limits.day_limit.0.to_string(),
            spent_in_day_uusdc: view.spent_in_day.0.to_string(),
            forecast: live.and_then(|l| l.state.agent.foretold()).map(|foretold| ForecastStatus {
                at: foretold.at,
                foretold_uusdc: foretold.foretold.0.to_string(),
                found_uusdc: foretold.found.0.to_string(),
                error_permille: foretold.error_permille(),
            }),
            runway_secs: live.and_then(|l| l.state.agent.runway_secs(view.timestamp)),
            break_even: live.map_or_else(Vec::new, |l| {
                let told = l.state.agent.break_even(3).into_iter();
                told.map(|b| BreakEvenStatus {
                    offer: b.offer,
                    cost_day_uusdc: b.cost_day.0.to_string(),
                    calls_a_day: b.calls_a_day,
                })
                .collect()
            }),
            requests: RequestStatus {
                served: live.map_or(0, |l| l.state.served),
                open: live.map_or(0, |l| l.state.book.open()),
                refused: self.shared.refused(),
                in_flight: self.shared.in_flight(),
            },
            lease: lease(&view.active, news.active.as_ref().map(|l| l.lease.endpoint.as_str())),
            standby: lease(&view.standby, news.standby.as_ref().map(|l| l.lease.endpoint.as_str())),
            next_move_at: live.and_then(|l| l.state.agent.next_move_at()),
            checkpoint: CheckpointStatus {
                seq: state.checkpointSeq,
                cid: checkpointed.then(|| store::cid::raw(state.checkpointDigest.0).to_string()),
                digest: state.checkpointDigest.to_string(),
            },
            archived: live.map_or_else(Vec::new, |l| {
                let told = l.state.agent.archived();
                told.map(|copy| ArchivedStatus {
                    seq: copy.seq,
                    cid: store::cid::raw(copy.root).to_string(),
                    transaction: store::arweave::TxId(copy.transaction).to_string(),
                    at: copy.at,
                })
                .collect()
            }),
            exposure_uusdc: live.map_or(0, |l| l.exposure()).to_string(),
            exposure_max_uusdc: self.cx.manifest.exposure_uusdc_max.to_string(),
            day_secs: self.cx.birth.timers.day,
            mandate_until: view.mandate_until,
            ledger_ok: live.is_none_or(|l| l.state.agent.books_balance()),
            ledger_short_uusdc: money(ledger.map(|l| l.short(&view))),
            book_difference_uusdc: live.map_or(0, |l| l.state.book_difference()).to_string(),
            trouble: self.trouble(),
            stewards: self
                .cx
                .manifest
                .stewards
                .iter()
                .map(|s| StewardStatus { address: s.address, url: s.url.clone(), independence: INDEPENDENCE })
                .collect(),
            threshold: self.cx.manifest.threshold,
            url: self.cx.config.public_url.clone(),
            active_url: news.active.as_ref().map(|l| l.lease.endpoint.clone()),
            pid: std::process::id(),
            engine_pid: self.shared.engine().and_then(|e| e.client.pid()),
        })
    }

    fn trouble(&self) -> Option<String> {
        if self.role == Role::Active && !self.fence.holds(boottime_ms()) {
            return Some("no fresh block from the chain".to_owned());
        }
        self.shared.trouble().or_else(|| self.shared.engine_trouble())
    }
}

pub fn stage_name(stage: Stage) -> &'static str {
    match stage {
        Stage::Unborn => "unborn",
        Stage::Alive => "alive",
        Stage::Stopped => "stopped",
        Stage::WindingDown => "winding_down",
        Stage::Closed => "closed",
    }
}
