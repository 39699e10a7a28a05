//! Drives one key's [`Outbox`] over RPC: signs, sends, watches, and tells each caller what became of its
//! transaction. One task owns the key; handles are cheap to clone.

use alloy::{
    consensus::{SignableTransaction, TxEip1559, TxEnvelope},
    eips::{BlockId, Encodable2718},
    primitives::{Address, B256, Bytes, TxKind, U256},
    rpc::types::TransactionRequest,
    signers::{SignerSync, local::PrivateKeySigner},
};
use futures::future::try_join;
use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
};

use crate::{
    error::{Error, Kind, Revert},
    outbox::{self, Id, Input, Mined, Outbox, Output, Request},
    rpc::{Chain, Head},
};

/// A transaction to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tx {
    /// Callee; `None` creates a contract.
    pub to: Option<Address>,
    /// Calldata, or init code.
    pub data: Bytes,
    /// Wei.
    pub value: u128,
    /// Gas limit; `None`: estimated, plus 30 %.
    pub gas: Option<u64>,
    /// What it is, for logs and errors.
    pub label: &'static str,
}

impl Tx {
    /// A call without value.
    pub fn call(to: Address, data: Bytes, label: &'static str) -> Self {
        Self { to: Some(to), data, value: 0, gas: None, label }
    }

    /// A plain transfer of `value` wei.
    pub fn transfer(to: Address, value: u128, label: &'static str) -> Self {
        Self { to: Some(to), data: Bytes::new(), value, gas: None, label }
    }

    /// The same with a gas limit instead of an estimate: for calls that do more when they are mined than when they
    /// were estimated. What is not used costs nothing.
    pub fn with_gas(self, gas: u64) -> Self {
        Self { gas: Some(gas), ..self }
    }

    /// The same with `value` wei.
    pub fn with_value(self, value: u128) -> Self {
        Self { value, ..self }
    }
}

/// What became of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// In the chain, deep enough, and it did not revert.
    Done {
        /// Its hash.
        tx_hash: B256,
        /// Height.
        block: u64,
    },
    /// The contract refused: in an estimate, so nothing was sent (`tx_hash` is `None`), or in a block.
    Reverted {
        /// The transaction, if it was mined.
        tx_hash: Option<B256>,
        /// Why. For a mined one this comes from a replay and may be missing.
        revert: Revert,
    },
    /// It may have happened: read the state before repeating it.
    Unknown {
        /// Every version that was sent.
        txs: Vec<B256>,
    },
    /// It did not happen and will not: no money for gas, or the endpoint refused it.
    NeverSent {
        /// Why.
        reason: String,
    },
}

/// A transaction that was mined and did not revert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    /// Its hash.
    pub tx_hash: B256,
    /// Height.
    pub block: u64,
}

impl Outcome {
    /// The outcome as a `Result`, `what` naming the transaction in the error.
    ///
    /// # Errors
    /// `Reverted`, `Unknown`, or `Usage` when it could not be sent.
    pub fn into_result(self, what: &str) -> Result<Done, Error> {
        match self {
            Self::Done { tx_hash, block } => Ok(Done { tx_hash, block }),
            Self::Reverted { revert, .. } => Err(Error::reverted(what, revert)),
            Self::Unknown { txs } => Err(Error::unknown(format!("{what}: sent as {txs:?}, outcome unknown"))),
            Self::NeverSent { reason } => Err(Error::usage(format!("{what}: not sent: {reason}"))),
        }
    }
}

/// Where an outbox's state goes: called with [`Outbox::to_bytes`] before anything is sent.
pub type Persist = Box<dyn FnMut(&[u8]) + Send>;

/// Choices of one sender.
pub struct Options {
    /// The machine's choices.
    pub outbox: outbox::Options,
    /// Further endpoints that must say the same of each receipt before it counts. While they differ, or one does not
    /// answer, nothing is settled: one endpoint that lies or lags makes no payment done, and none failed.
    pub witnesses: Vec<Chain>,
    /// Pause between looks at the head.
    pub poll: Duration,
    /// State that an earlier run persisted.
    pub state: Option<Vec<u8>>,
    /// What that has on its way rests until [`SenderHandle::go_on`] or the first submission.
    pub rests: bool,
    /// Where the state goes.
    pub persist: Option<Persist>,
}

impl Options {
    /// The usual choices, nothing persisted. The poll of 200 ms is a fifth of a development chain's block.
    pub fn new(confirmations: u64) -> Self {
        let outbox = outbox::Options::new(confirmations);
        Self {
            outbox,
            witnesses: Vec::new(),
            poll: Duration::from_millis(200),
            state: None,
            rests: false,
            persist: None,
        }
    }
}

/// Starts senders.
pub struct Sender;

impl Sender {
    /// Starts the task that sends with `key`; it ends when the last handle is dropped. A block counts from
    /// `confirmations` on (1 is "mined"). Two senders of one key get along, but slowly, and the same bytes
    /// from both may become one transaction: keep one per key.
    pub fn spawn(chain: Chain, key: PrivateKeySigner, confirmations: u64) -> SenderHandle {
        Self::start(chain, key, Options::new(confirmations), None)
    }

    /// The same with all choices. What `options.state` has on its way goes on by itself. Whoever knows its names submits
    /// them again ([`SenderHandle::submit_as`]) and hears the end, or has sent what never left; whoever
    /// does not waits until it is over ([`SenderHandle::left_over`]) and reads what became of it.
    ///
    /// # Errors
    /// `Usage` when `options.state` is not this key's outbox.
    pub fn spawn_with(chain: Chain, key: PrivateKeySigner, mut options: Options) -> Result<SenderHandle, Error> {
        let restored = match options.state.take() {
            Some(bytes) => Some(Outbox::from_bytes(&bytes, key.address(), options.outbox)?),
            None => None,
        };
        Ok(Self::start(chain, key, options, restored))
    }

    fn start(chain: Chain, key: PrivateKeySigner, options: Options, restored: Option<Outbox>) -> SenderHandle {
        let (commands, inbox) = mpsc::unbounded_channel();
        let address = key.address();
        let outbox = restored.unwrap_or_else(|| Outbox::new(address, options.outbox));
        let left: BTreeSet<Id> = outbox.unsettled().collect();
        let (over, left_over) = watch::channel(LeftOver { open: left.len(), block: outbox.newest_mined() });
        let driver = Driver {
            chain,
            witnesses: options.witnesses.into(),
            key,
            outbox,
            persist: options.persist,
            persisted: Vec::new(),
            started: Instant::now(),
            head_at: None,
            head_asked: false,
            held: Vec::new(),
            callers: BTreeMap::new(),
            left,
            over,
            rests: options.rests,
            jobs: JoinSet::new(),
        };
        tokio::spawn(driver.run(inbox, options.poll));
        SenderHandle { commands, address, left_over }
    }
}

/// Hands transactions to a sender.
#[derive(Clone, Debug)]
pub struct SenderHandle {
    commands: mpsc::UnboundedSender<Command>,
    address: Address,
    left_over: watch::Receiver<LeftOver>,
}

/// What the run before this one had on its way.
#[derive(Clone, Copy, Debug)]
struct LeftOver {
    /// Not settled yet.
    open: usize,
    /// The highest block in which one was found, or in which one that was settled before was; 0: none yet.
    block: u64,
}

#[derive(Debug)]
enum Command {
    Submit { id: Option<Id>, tx: Tx, answer: oneshot::Sender<Outcome> },
    GoOn,
}

impl SenderHandle {
    /// The account that sends.
    pub fn address(&self) -> Address {
        self.address
    }

    /// Queues a transaction at once (the order of calls is the order of nonces) and resolves when it is settled.
    /// Dropping the future cancels nothing.
    pub fn submit(&self, tx: Tx) -> impl Future<Output = Outcome> + Send + use<> {
        self.command(None, tx)
    }

    /// The same under a name that survives restarts: an id that the outbox knows is not sent a second time.
    pub fn submit_as(&self, id: Id, tx: Tx) -> impl Future<Output = Outcome> + Send + use<> {
        self.command(Some(id), tx)
    }

    /// What rests goes on its way again: its owner knows by now that it is still its own.
    pub fn go_on(&self) {
        // A sender that has stopped sends nothing more.
        let _ = self.commands.send(Command::GoOn);
    }

    /// Waits until nothing of what the restored state had on its way can happen any more, but for what is *unknown*.
    /// What the chain says in the block that this returns, or a later one, has it all, unless a branch takes it back: then the
    /// same is sent again. At once 0 without such a state.
    pub async fn left_over(&self) -> u64 {
        let mut left = self.left_over.clone();
        // A sender that has stopped sends nothing more.
        let over = left.wait_for(|left| left.open == 0).await.map(|left| left.block);
        over.unwrap_or_else(|_| self.left_over.borrow().block)
    }

    /// Sends and waits.
    ///
    /// # Errors
    /// As [`Outcome::into_result`].
    pub async fn send_and_wait(&self, tx: Tx) -> Result<Done, Error> {
        let label = tx.label;
        self.submit(tx).await.into_result(label)
    }

    fn command(&self, id: Option<Id>, tx: Tx) -> impl Future<Output = Outcome> + Send + use<> {
        let (answer, outcome) = oneshot::channel();
        let gone = self.commands.send(Command::Submit { id, tx, answer }).is_err();
        async move {
            if gone {
                return Outcome::NeverSent { reason: "the sender has stopped".into() };
            }
            outcome.await.unwrap_or(Outcome::Unknown { txs: Vec::new() })
        }
    }
}

/// One transaction from a program that does nothing else: sends, waits for `confirmations`, stops.
///
/// # Errors
/// As [`Outcome::into_result`].
pub async fn send_once(chain: &Chain, key: &PrivateKeySigner, tx: Tx, confirmations: u64) -> Result<Done, Error> {
    Sender::spawn(chain.clone(), key.clone(), confirmations).send_and_wait(tx).await
}

struct Driver {
    chain: Chain,
    witnesses: Arc<[Chain]>,
    key: PrivateKeySigner,
    outbox: Outbox,
    persist: Option<Persist>,
    persisted: Vec<u8>,
    started: Instant,
    head_at: Option<Instant>,
    head_asked: bool,
    /// Submitted while the last head was old: fees and ages must not be reckoned from it.
    held: Vec<Input>,
    callers: BTreeMap<Id, Vec<(Tx, oneshot::Sender<Outcome>)>>,
    /// Of the run before this one, not settled yet.
    left: BTreeSet<Id>,
    over: watch::Sender<LeftOver>,
    rests: bool,
    jobs: JoinSet<Answer>,
}

/// What a job brings back.
enum Answer {
    Head(Option<Head>),
    Input(Input),
    /// The endpoint failed where the outbox asks again by itself.
    Nothing,
}

impl Driver {
    async fn run(mut self, mut inbox: mpsc::UnboundedReceiver<Command>, poll: Duration) {
        let mut tick = tokio::time::interval(poll);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut ticks: u64 = 0;
        loop {
            tokio::select! {
                command = inbox.recv() => match command {
                    Some(Command::Submit { id, tx, answer }) => {
                        self.rests = false;
                        self.on_command(id, tx, answer);
                    }
                    Some(Command::GoOn) => self.rests = false,
                    None => return,
                },
                Some(answer) = self.jobs.join_next(), if !self.jobs.is_empty() => match answer {
                    Ok(Answer::Head(head)) => self.on_head(head),
                    Ok(Answer::Input(input)) => self.feed(input),
                    Ok(Answer::Nothing) => {}
                    Err(crash) => match crash.try_into_panic() {
                        Ok(panic) => std::panic::resume_unwind(panic),
                        // The process is ending.
                        Err(_) => return,
                    },
                },
                _ = tick.tick() => {
                    ticks += 1;
                    // Only watching for lost blocks needs no haste.
                    let due = self.outbox.is_busy() || (self.outbox.is_watching() && ticks.is_multiple_of(5));
                    if (due && !self.rests) || !self.held.is_empty() {
                        self.ask_head();
                    }
                },
            }
        }
    }

    fn on_command(&mut self, id: Option<Id>, tx: Tx, answer: oneshot::Sender<Outcome>) {
        let id = id.unwrap_or_else(|| self.outbox.fresh_id());
        let request = Request { to: tx.to, data: tx.data.clone(), value: tx.value, gas: tx.gas };
        tracing::debug!(label = tx.label, from = %self.key.address(), ?id, "transaction queued");
        self.callers.entry(id).or_default().push((tx, answer));
        let submit = Input::Submit { id, request };
        if self.head_at.is_some_and(|at| at.elapsed() < Duration::from_secs(1)) {
            return self.feed(submit);
        }
        self.held.push(submit);
        self.ask_head();
    }

    fn ask_head(&mut self) {
        if self.head_asked {
            return;
        }
        self.head_asked = true;
        let chain = self.chain.clone();
        self.jobs.spawn(async move {
            let head = chain.head().await;
            if let Err(error) = &head {
                tracing::debug!(%error, "no head");
            }
            Answer::Head(head.ok())
        });
    }

    fn on_head(&mut self, head: Option<Head>) {
        self.head_asked = false;
        let Some(Head { number, hash, base_fee, .. }) = head else { return };
        self.head_at = Some(Instant::now());
        self.feed(Input::Head { number, hash, base_fee });
        for submit in std::mem::take(&mut self.held) {
            self.feed(submit);
        }
    }

    fn feed(&mut self, input: Input) {
        let now_ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let mut outputs = Vec::new();
        self.outbox.handle(now_ms, input, &mut outputs);
        if outputs.iter().any(|o| matches!(o, Output::Send { .. } | Output::Settled { .. })) {
            self.keep();
        }
        for output in outputs {
            self.act(output);
        }
    }

    fn keep(&mut self) {
        let Some(persist) = &mut self.persist else { return };
        let state = self.outbox.to_bytes();
        if state != self.persisted {
            persist(&state);
            self.persisted = state;
        }
    }

    fn act(&mut self, output: Output) {
        let (chain, from) = (self.chain.clone(), self.key.address());
        match output {
            Output::AskNonce => {
                self.jobs.spawn(async move {
                    let latest = chain.nonce(from, BlockId::latest());
                    match try_join(latest, chain.nonce(from, BlockId::pending())).await {
                        Ok((latest, pending)) => Answer::Input(Input::NonceIs { latest, pending }),
                        Err(_) => Answer::Nothing,
                    }
                });
            }
            Output::Estimate { id, request } => {
                self.jobs.spawn(async move { Answer::Input(estimate(&chain, from, id, &request).await) });
            }
            Output::Send { id, nonce, request, gas, max_fee, tip } => {
                let tx = TxEip1559 {
                    chain_id: chain.chain_id(),
                    nonce,
                    gas_limit: gas,
                    max_fee_per_gas: max_fee,
                    max_priority_fee_per_gas: tip,
                    to: request.to.map_or(TxKind::Create, TxKind::Call),
                    value: U256::from(request.value),
                    access_list: Default::default(),
                    input: request.data,
                };
                let signature = self.key.sign_hash_sync(&tx.signature_hash()).expect("a key in memory signs");
                let signed = TxEnvelope::from(tx.into_signed(signature));
                let (tx, raw) = (*signed.tx_hash(), Bytes::from(signed.encoded_2718()));
                self.jobs.spawn(async move {
                    Answer::Input(match chain.send_raw(raw).await {
                        Ok(()) => Input::Sent { id, nonce, tx },
                        Err(why) => {
                            tracing::debug!(nonce, %tx, ?why, "transaction not taken");
                            Input::SendFailed { id, nonce, tx, why }
                        }
                    })
                });
            }
            Output::AskReceipt { id, nonce, txs } => {
                let witnesses = self.witnesses.clone();
                self.jobs.spawn(async move {
                    match agreed_receipt(&chain, &witnesses, &txs).await {
                        Ok(found) => Answer::Input(Input::ReceiptIs { id, nonce, found }),
                        Err(error) => {
                            tracing::debug!(nonce, %error, "no receipt yet");
                            Answer::Nothing
                        }
                    }
                });
            }
            Output::Settled { id, outcome } => self.answer(id, outcome),
        }
    }

    fn answer(&mut self, id: Id, outcome: outbox::Outcome) {
        if self.left.remove(&id) {
            tracing::info!(from = %self.key.address(), ?id, ?outcome, "of the run before this one: settled");
            let found = match outcome {
                outbox::Outcome::Done { block, .. } | outbox::Outcome::Reverted { block, .. } => block,
                _ => 0,
            };
            let open = self.left.len();
            self.over.send_modify(|left| *left = LeftOver { open, block: left.block.max(found) });
        }
        let Some(callers) = self.callers.remove(&id) else { return };
        let (chain, from) = (self.chain.clone(), self.key.address());
        // In a task of its own, because a revert's reason takes another request.
        self.jobs.spawn(async move {
            let outcome = match outcome {
                outbox::Outcome::Done { tx, block } => Outcome::Done { tx_hash: tx, block },
                outbox::Outcome::Unknown { txs } => Outcome::Unknown { txs },
                outbox::Outcome::NeverSent { reason } => Outcome::NeverSent { reason },
                outbox::Outcome::WouldRevert { data, text } => {
                    Outcome::Reverted { tx_hash: None, revert: revert_of(&data, &text) }
                }
                outbox::Outcome::Reverted { tx, block } => {
                    let revert = replay(&chain, from, &callers[0].0, block).await;
                    Outcome::Reverted { tx_hash: Some(tx), revert }
                }
            };
            for (tx, answer) in callers {
                tracing::debug!(label = tx.label, %from, ?id, ?outcome, "transaction settled");
                // A caller that went away does not want to know.
                answer.send(outcome.clone()).ok();
            }
            Answer::Nothing
        });
    }
}

fn revert_of(data: &Bytes, text: &str) -> Revert {
    if data.is_empty() { Revert::without_data(text) } else { Revert::decode(data) }
}

fn call_of(from: Address, to: Option<Address>, data: &Bytes, value: u128) -> TransactionRequest {
    let request = TransactionRequest::default().from(from).value(U256::from(value)).input(data.clone().into());
    TransactionRequest { to: Some(to.map_or(TxKind::Create, TxKind::Call)), ..request }
}

async fn estimate(chain: &Chain, from: Address, id: Id, request: &Request) -> Input {
    let call = call_of(from, request.to, &request.data, request.value);
    match chain.request::<_, U256>("eth_estimateGas", (call, BlockId::pending())).await {
        // 30 % above, because the state changes until it is mined; what is not used costs nothing.
        Ok(gas) => match u64::try_from(gas) {
            Ok(gas) => Input::Estimated { id, gas: gas.saturating_add(gas.saturating_mul(3) / 10) },
            Err(_) => Input::EstimateRefused { id, reason: format!("impossible gas estimate {gas}") },
        },
        Err(Error { kind: Kind::Reverted(revert), .. }) => {
            Input::WouldRevert { id, data: revert.data, text: revert.text }
        }
        Err(error) if error.was_answered() => Input::EstimateRefused { id, reason: error.message },
        Err(_) => Input::EstimateFailed { id },
    }
}

/// What all endpoints say of these transactions.
///
/// # Errors
/// `Rpc` when one does not answer, or they differ.
async fn agreed_receipt(chain: &Chain, witnesses: &[Chain], txs: &[B256]) -> Result<Option<Mined>, Error> {
    let found = find_receipt(chain, txs).await?;
    for witness in witnesses {
        if find_receipt(witness, txs).await? != found {
            return Err(Error::rpc("two endpoints differ about a receipt: one of them lags or lies"));
        }
    }
    Ok(found.map(|(mined, _)| mined))
}

/// The receipt, and the hash of its block.
async fn find_receipt(chain: &Chain, txs: &[B256]) -> Result<Option<(Mined, Option<B256>)>, Error> {
    // Newest first: a raised fee usually wins.
    for tx in txs.iter().rev() {
        if let Some(receipt) = chain.receipt(*tx).await?
            && let Some(block) = receipt.block_number
        {
            return Ok(Some((Mined { tx: *tx, block, success: receipt.status() }, receipt.block_hash)));
        }
    }
    Ok(None)
}

/// Why a mined transaction reverted: the same call on the state before its block, then after it. Neither is exactly
/// the state it met, but the reason is nearly always the same.
async fn replay(chain: &Chain, from: Address, tx: &Tx, block: u64) -> Revert {
    for number in [block.saturating_sub(1), block] {
        let call = call_of(from, tx.to, &tx.data, tx.value);
        let again: Result<Bytes, Error> = chain.request("eth_call", (call, BlockId::number(number))).await;
        if let Err(Error { kind: Kind::Reverted(revert), .. }) = again {
            return revert;
        }
    }
    Revert::without_data("reverted in a block; a replay does not revert")
}
