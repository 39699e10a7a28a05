//! Settlements that can wait, put together into one transaction (Multicall3) when that is worth it: of a node, which
//! settles some `exact` payments after it has served them, and of `vivarium facilitator`.
//!
//! Each call of a batch stands or falls alone, so one bad row spoils nothing; whoever waits for a row hears what became
//! of the *transaction* and asks the chain what became of the row. Nothing is kept here: a row is on record with its
//! owner before it comes, and after a crash its owner asks the chain first and brings it again.

use alloy::eips::BlockId;
use alloy::primitives::{Address, Bytes, U256};
use chain::bindings::price_feed::{decimalsCall, latestRoundDataCall};
use chain::{Chain, Error, Outcome, SenderHandle, Tx};
use journal::crash_point;
use pay::Usdc;
use pay::facilitator::batch::{BatchPolicy, Due, GasPrice, RowGas, due};
use pay::facilitator::multicall::{self, Call, MULTICALL3};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{OnceCell, mpsc, oneshot};

/// Rows that wait to be sent. Beyond it askers wait.
const QUEUE_MAX: usize = 1_024;
/// Between two looks at the price of gas while rows wait for a better one: a block of the slower roll-ups.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// Gas limit of a batch, times what its rows are reckoned to use. What is not used costs nothing.
const GAS_ROOM: u64 = 2;
/// What no row is worth.
const DEAREST: GasPrice = GasPrice { wei: u128::MAX, ether: Usdc::MAX };

/// Where the price of an ether comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ether {
    /// Whoever runs this says it, micro-USDC.
    Said(Usdc),
    /// The feed that the treasury's contract buys gas by. Zero: nobody tells, and rows wait for company or their bounds.
    Feed(Address),
}

/// Where rows go. Clones share one queue, and whoever finds it full waits.
#[derive(Clone)]
pub struct Batches {
    chain: Chain,
    sender: SenderHandle,
    ether: Ether,
    queue: mpsc::Sender<Row>,
    has_multicall: Arc<OnceCell<bool>>,
}

/// One call of a batch.
struct Row {
    call: Call,
    amount: Usdc,
    since: Instant,
    reply: oneshot::Sender<Outcome>,
}

impl Batches {
    pub fn start(chain: Chain, sender: SenderHandle, ether: Ether, policy: BatchPolicy) -> Self {
        let (queue, waiting) = mpsc::channel(QUEUE_MAX);
        let batches = Self { chain, sender, ether, queue, has_multicall: Arc::default() };
        tokio::spawn(gather(batches.clone(), policy, waiting));
        batches
    }

    /// Whether the chain has Multicall3; asked until it says so once. Where there is no contract a call goes through and
    /// does nothing, so nothing may be sent there unasked.
    ///
    /// # Errors
    /// `Rpc`.
    pub async fn has_multicall(&self) -> Result<bool, Error> {
        let ask = async || {
            let code: Bytes = self.chain.request("eth_getCode", (MULTICALL3, BlockId::latest())).await?;
            Ok(!code.is_empty())
        };
        self.has_multicall.get_or_try_init(ask).await.copied()
    }

    /// What gas costs now.
    ///
    /// # Errors
    /// `Rpc`.
    pub async fn gas_price(&self) -> Result<GasPrice, Error> {
        let wei: U256 = self.chain.request("eth_gasPrice", ()).await?;
        Ok(GasPrice { wei: wei.saturating_to(), ether: self.ether().await? })
    }

    /// An ether's price, micro-USDC. What nobody tells is too dear to be worth anything.
    async fn ether(&self) -> Result<Usdc, Error> {
        let feed = match self.ether {
            Ether::Said(price) => return Ok(price),
            Ether::Feed(Address::ZERO) => return Ok(Usdc::MAX),
            Ether::Feed(feed) => feed,
        };
        let latest = BlockId::latest();
        let decimals = self.chain.read(feed, decimalsCall {}, latest).await?;
        let answer = self.chain.read(feed, latestRoundDataCall {}, latest).await?.answer;
        let scale = 10_u128.checked_pow(u32::from(decimals)).unwrap_or(u128::MAX);
        let answer = u128::try_from(answer).unwrap_or(u128::MAX);
        Ok(Usdc(answer.saturating_mul(1_000_000).div_ceil(scale)))
    }

    /// Has `call`, which moves `amount`, sent with others, and waits for the end of their transaction. Only what anyone
    /// may call, and what runs no stranger's code.
    ///
    /// `Done` says that the transaction went through, not that this row did.
    pub async fn send(&self, call: Call, amount: Usdc) -> Outcome {
        let (reply, outcome) = oneshot::channel();
        let row = Row { call, amount, since: Instant::now(), reply };
        let unknown = || Outcome::Unknown { txs: Vec::new() };
        if self.queue.send(row).await.is_err() {
            return unknown();
        }
        outcome.await.unwrap_or_else(|_| unknown())
    }

    /// In one transaction where the chain can do that.
    async fn send_all(&self, mut rows: Vec<Row>, gas: RowGas) {
        while rows.len() > 1 && !self.has_multicall().await.unwrap_or(false) {
            let (batches, row) = (self.clone(), rows.pop());
            tokio::spawn(async move { batches.send_batch(row.into_iter().collect(), gas).await });
        }
        self.send_batch(rows, gas).await;
    }

    async fn send_batch(&self, rows: Vec<Row>, gas: RowGas) {
        let tx = match rows.as_slice() {
            [row] => Tx::call(row.call.to, row.call.data.clone(), "settle"),
            rows => {
                let calls = rows.iter().map(|row| row.call.clone()).collect();
                // Never estimated: an estimate is the least with which the whole goes through, and it goes through when
                // each row fails for want of gas.
                let gas = gas.of(rows.len()).saturating_mul(GAS_ROOM);
                Tx::call(MULTICALL3, multicall::each(calls), "settle a batch").with_gas(gas)
            }
        };
        let waiting = self.sender.submit(tx);
        crash_point!("pay.settle_sent");
        let outcome = waiting.await;
        for row in rows {
            // Whoever asked may have gone.
            drop(row.reply.send(outcome.clone()));
        }
    }
}

/// Puts rows together while they wait for a good moment.
///
/// The price of gas is asked for once a look, however many rows come in between, and never longer than the oldest row
/// may wait: an endpoint that does not tell keeps nobody waiting.
async fn gather(batches: Batches, policy: BatchPolicy, mut waiting: mpsc::Receiver<Row>) {
    let mut rows: Vec<Row> = Vec::new();
    let mut price: Option<(Instant, GasPrice)> = None;
    loop {
        let Some(oldest) = rows.first().map(|row| row.since) else {
            match waiting.recv().await {
                Some(row) => rows.push(row),
                None => return,
            }
            continue;
        };
        while rows.len() < policy.rows_max
            && let Ok(row) = waiting.try_recv()
        {
            rows.push(row);
        }
        let amounts: Vec<Usdc> = rows.iter().map(|row| row.amount).collect();
        let due_at = |price: &GasPrice| {
            let oldest_ms = u64::try_from(oldest.elapsed().as_millis()).unwrap_or(u64::MAX);
            due(&policy, price, &amounts, oldest_ms)
        };
        let known = price.filter(|(asked, _)| asked.elapsed() < LOOK_AGAIN);
        let due = match (due_at(&DEAREST), known) {
            // At a bound the price does not matter.
            (Due::Now, _) => Due::Now,
            (Due::WithinMs(_), Some((_, price))) => due_at(&price),
            (Due::WithinMs(left), None) => {
                let left = Duration::from_millis(left);
                match tokio::time::timeout(left, batches.gas_price()).await {
                    Ok(Ok(told)) => {
                        price = Some((Instant::now(), told));
                        due_at(&told)
                    }
                    Ok(Err(_)) | Err(_) => Due::Now,
                }
            }
        };
        match due {
            Due::Now => {
                let (batches, batch, gas) = (batches.clone(), std::mem::take(&mut rows), policy.gas);
                tokio::spawn(async move { batches.send_all(batch, gas).await });
            }
            Due::WithinMs(ms) => {
                // The timeout is an answer, too: the price is asked for again, or the policy says "now".
                let next_look = price.map_or(LOOK_AGAIN, |(asked, _)| LOOK_AGAIN.saturating_sub(asked.elapsed()));
                let until = Duration::from_millis(ms).min(next_look);
                if let Ok(Some(row)) = tokio::time::timeout(until, waiting.recv()).await {
                    rows.push(row);
                }
            }
        }
    }
}
