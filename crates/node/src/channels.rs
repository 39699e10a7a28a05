//! Payment channels, from the main loop's side: vouchers are reserved here, deposits, claims and refunds leave from
//! here once their record is durable, and what the chain says of a channel comes back as an event.
//!
//! Deposits are sent by the relay key, like all of strangers' money. Claims and refunds are typed calls of the operator
//! to the treasury, which is receiver and receiverAuthorizer of every channel.

use crate::ask::{self, Guard};
use crate::context::Context;
use crate::contract_payers;
use crate::error::Result;
use crate::external;
use crate::live::BEHIND;
use crate::main_loop::{Event, Node};
use crate::state::Recorded;
use alloy::eips::BlockId;
use alloy::primitives::{Address, B256, Bytes};
use alloy::rpc::types::TransactionRequest;
use chain::Outcome as Sent;
use chain::bindings::{ChannelConfig as OnChain, Voucher, VoucherClaim};
use chain::treasury::calls;
use economy::Stage;
use journal::crash_point;
use net::chain_of;
use pay::Reason;
use pay::Usdc;
use pay::book::channels::{
    CallReservation, Channel, ChannelAsk, ChannelDecision, ChannelInput, ChannelOutput, ClaimPolicy, RefundAsk,
};
use pay::book::{BookInput, BookOutput, Decision, LimitReached, RequestId};
use pay::facilitator::api::Asked;
use pay::scheme::channel::facilitator;
use pay::scheme::channel::{BATCH_SETTLEMENT, ChannelConfig, ChannelId, ChannelState, ClaimRow, Deposit, HeldVoucher};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;

/// Unclaimed on one channel, and on all together, before a claim is sent. What a thief of the operator key or a lost
/// host can lose in vouchers. Guesses: thousands of small calls, a few transactions a day.
const UNCLAIMED_CHANNEL_MAX: Usdc = Usdc(250_000);
const UNCLAIMED_ALL_MAX: Usdc = Usdc(500_000);
/// A claim's gas on a roll-up is about this much; smaller rows wait for the end.
const ROW_MIN: Usdc = Usdc(1_000);
/// Rows in one transaction; about 40,000 gas each.
const ROWS_MAX: u32 = 50;
/// Chain seconds between two looks at payers that owe: a fifteenth of the shortest `withdrawDelay`.
const LOOK_SECS: u64 = 60;
/// Between two reads of a chain that does not answer.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// A verified voucher that wants to be served.
pub struct CallWant {
    pub ask: ChannelAsk,
    pub config: ChannelConfig,
    pub voucher: HeldVoucher,
    pub accepted: Usdc,
    /// Digest of the name that the customer gave its request.
    pub identifier: Option<[u8; 32]>,
    pub prompt_tokens: u32,
    pub max_tokens: u32,
    /// How the model is run for it, in the receipt's form.
    pub run: String,
    /// What the chain says of the channel, after [`CallAnswer::Look`].
    pub seen: Option<ChannelState>,
}

/// The answer to a [`CallWant`].
pub enum CallAnswer {
    /// Reserved and durable.
    Yes {
        request: RequestId,
        guard: Guard,
    },
    /// Read the chain, ask again with what it says.
    Look,
    /// Its deposit has to go in first: [`Node::put_in`].
    Deposit,
    /// It is on its way: the same.
    Depositing,
    Replay {
        request: RequestId,
    },
    InFlight {
        request: RequestId,
    },
    /// The name of this request belongs to another one.
    Conflict,
    /// The customer is out of step with this.
    Corrective(Reason, Box<Channel>),
    Refused(Reason),
    Limited(LimitReached),
    /// This node does not sell at the moment.
    Closed(String),
}

/// What the chain says of channels after something left for it.
pub struct ReadBack {
    pub seen: Vec<(ChannelId, ChannelConfig, ChannelState)>,
    /// How that ended.
    pub end: Option<ChannelInput>,
    pub moved: Moved,
}

impl ReadBack {
    fn event(self) -> Event {
        Event::ChannelRead(Box::new(self))
    }
}

/// What became of a deposit or a refund: its transaction, if it did what it should.
pub type Moved = Option<(Usdc, B256)>;

/// What the chain says in this block or a later one; asked until it answers. An endpoint that lags behind the one that saw
/// a transaction mined would show the channel as it was before.
async fn read_since(cx: &Context, id: &ChannelId, block: u64) -> ChannelState {
    loop {
        match try_read(cx, id).await {
            Ok(state) if state.block >= block => return state,
            Ok(state) => tracing::debug!(seen = state.block, block, "a channel is read too early: asking again"),
            Err(e) => tracing::warn!(error = %chain_of(&e), "a channel cannot be read: asking again"),
        }
        tokio::time::sleep(ASK_AGAIN).await;
    }
}

/// The same once the chain shows the refund, before which the channel's nonce was `nonce`, or shows it again; or at block
/// `until`, whatever it shows.
async fn read_after(cx: &Context, id: &ChannelId, nonce: u64, block: u64, until: u64) -> ChannelState {
    let mut state = read_since(cx, id, block).await;
    while state.refund_nonce <= nonce && state.block < until {
        tokio::time::sleep(ASK_AGAIN).await;
        state = read_since(cx, id, block).await;
    }
    state
}

/// The block in which it was carried out; 0: it was not.
fn done_in(sent: &Sent) -> u64 {
    match sent {
        Sent::Done { block, .. } => *block,
        _ => 0,
    }
}

/// Whether what was sent may be mined yet, although nothing was carried out: another block may take the place of the one that
/// refused it, or of the one that used its nonce up.
fn may_be_mined_yet(sent: &Sent) -> bool {
    matches!(sent, Sent::Reverted { tx_hash: Some(_), .. } | Sent::Unknown { .. })
}

/// What the chain says of a channel, asked once.
///
/// # Errors
/// `Rpc` when the endpoint fails, `Missing` when there is no channel contract.
pub async fn try_read(cx: &Context, id: &ChannelId) -> std::result::Result<ChannelState, chain::Error> {
    let head = cx.chain.head().await?;
    let at = BlockId::hash(head.hash);
    let calls = facilitator::state_calls(id)
        .map(|data| (TransactionRequest::default().to(BATCH_SETTLEMENT).input(Bytes::from(data).into()), at));
    let answers: Vec<std::result::Result<Bytes, chain::Error>> =
        cx.chain.request_many("eth_call", calls.to_vec()).await?;
    let mut bytes = Vec::with_capacity(answers.len());
    for answer in answers {
        bytes.push(answer?.to_vec());
    }
    <[Vec<u8>; 3]>::try_from(bytes)
        .ok()
        .and_then(|answers| facilitator::read_state(&answers, head.number))
        .ok_or_else(|| chain::Error::missing(format!("no channel contract at {BATCH_SETTLEMENT}")))
}

impl Node {
    /// Decides on a voucher and reserves.
    pub(crate) fn reserve_call(
        &mut self,
        want: CallWant,
        taken: oneshot::Sender<()>,
        reply: oneshot::Sender<CallAnswer>,
    ) -> Result<()> {
        let now = self.now();
        if !self.acts() || self.shared.price().is_none() {
            let why = self.shared.closed_because().unwrap_or_else(|| format!("this node is {}", self.role));
            drop(reply.send(CallAnswer::Closed(why)));
            return Ok(());
        }
        let Some(live) = &mut self.live else { return Ok(()) };
        if live.is_behind() {
            drop(reply.send(CallAnswer::Closed(BEHIND.to_owned())));
            return Ok(());
        }
        let named = |name: &[u8; 32]| {
            let ask = &want.ask;
            live.state.book.named(&want.config.payer, name, &ask.route, &ask.body_digest)
        };
        let known = match want.identifier.as_ref().and_then(named) {
            Some(Decision::Replay { request }) => Some(CallAnswer::Replay { request }),
            Some(Decision::InFlight { request }) => Some(CallAnswer::InFlight { request }),
            Some(Decision::Conflict { .. }) => Some(CallAnswer::Conflict),
            _ => None,
        };
        if let Some(known) = known {
            drop(reply.send(known));
            return Ok(());
        }
        let channels = live.state.book.channels();
        let decision = match &want.seen {
            None => channels.decide(&want.ask, now),
            Some(state) => channels.decide_seen(&want.ask, &want.config, state, now),
        };
        if let (Some(state), ChannelDecision::New { .. } | ChannelDecision::Deposit) = (want.seen, &decision) {
            let seen = ChannelInput::Seen { channel: want.ask.channel, config: want.config, state, at: now };
            live.record(now, &Recorded::Book(BookInput::Channel(seen)))?;
        }
        let known = || live.state.book.channels().channel(&want.ask.channel).cloned();
        let request = match taken_or_answer(decision, known) {
            Ok(request) => request,
            Err(answer) => {
                drop(reply.send(answer));
                return Ok(());
            }
        };
        let ceiling = want.ask.ceiling;
        let reservation = CallReservation {
            request,
            channel: want.ask.channel,
            voucher: want.voucher,
            accepted: want.accepted,
            ceiling,
            route: want.ask.route,
            body_digest: want.ask.body_digest,
            identifier: want.identifier,
            prompt_tokens: want.prompt_tokens,
            max_tokens: want.max_tokens,
            run: want.run,
            at: now,
        };
        let lsn = live.record(now, &Recorded::Book(BookInput::Channel(ChannelInput::Reserved(reservation))))?;
        // Who has hung up needs no telling.
        let _ = taken.send(());
        let cx = self.cx.clone();
        let answer = move || {
            crash_point!("pay.call_reserved");
            let guard = Guard::of(cx, request);
            // Whoever has hung up meanwhile drops the guard with the answer.
            drop(reply.send(CallAnswer::Yes { request, guard }));
        };
        live.when_safe(lsn, ceiling.0, answer);
        Ok(())
    }

    /// Whether a deposit into this channel of `payer`, or a refund from it, is sent or on its way: see
    /// [`crate::payer_gas`].
    pub(crate) fn has_gas_for(&self, channel: &ChannelId, payer: &[u8; 20]) -> bool {
        let Some(live) = &self.live else { return false };
        let channels = live.state.book.channels();
        if channels.channel(channel).is_some_and(|known| known.deposit.is_some() || known.refund.is_some()) {
            return true;
        }
        let of_payer = channels.channels().filter(|(_, channel)| channel.config.payer == *payer);
        let charged = of_payer.map(|(_, channel)| channel.charged).sum();
        self.channel_gas.allows(payer, charged, Usdc(self.cx.manifest.settlement_uusdc), self.now())
    }

    /// A deposit that was simulated: sent once its record is durable, by another's facilitator where there is one. Answered
    /// when it is in, or can never be.
    pub(crate) fn put_in(
        &mut self,
        channel: ChannelId,
        deposit: Deposit,
        another: Option<Box<Asked>>,
        reply: oneshot::Sender<Moved>,
    ) -> Result<()> {
        let now = self.now();
        ask::wait(self.channel_waiters.entry(channel).or_default(), reply, oneshot::Sender::is_closed);
        let Some(live) = self.live.as_mut().filter(|live| !live.sealed) else { return Ok(()) };
        if live.state.book.channels().channel(&channel).is_none_or(|known| known.deposit.is_some()) {
            return Ok(());
        }
        if let Some(known) = live.state.book.channels().channel(&channel) {
            self.channel_gas.count(known.config.payer, now);
        }
        if let Some(another) = another {
            self.asked_another.insert(channel, another);
        }
        let asked = ChannelInput::DepositAsked { channel, deposit, at: now };
        live.record(now, &Recorded::Book(BookInput::Channel(asked))).map(|_| ())
    }

    /// A payer wants what is not charged back. `seen` is what the chain says of its channel now.
    pub(crate) fn give_back(
        &mut self,
        ask: RefundAsk,
        seen: (ChannelConfig, ChannelState),
        reply: oneshot::Sender<std::result::Result<Moved, Reason>>,
    ) -> Result<()> {
        let now = self.now();
        let acts = self.acts();
        let Some(live) = self.live.as_mut().filter(|live| acts && !live.sealed) else {
            let _ = reply.send(Err(Reason::ChannelBusy));
            return Ok(());
        };
        // Each is a commitment of the day, and hosts come first.
        let on_its_way: Usdc = live.state.book.channels().refunds().map(|(_, _, refund)| refund.amount).sum();
        let room = self.news.as_ref().map(|news| news.view(self.cx.me())).filter(|view| view.stage == Stage::Alive);
        let room = room.map(|view| live.state.agent.refund_room(&view).0.saturating_sub(on_its_way));
        let channel = ask.channel;
        let look = ChannelInput::Seen { channel, config: seen.0, state: seen.1, at: now };
        live.record(now, &Recorded::Book(BookInput::Channel(look)))?;
        match live.state.book.channels().decide_refund(&ask) {
            Err(reason) => {
                let _ = reply.send(Err(reason));
            }
            Ok(amount) if room.is_some_and(|room| amount > room) => {
                let _ = reply.send(Err(Reason::RefundOverDay));
            }
            Ok(amount) => {
                if let Some(known) = live.state.book.channels().channel(&channel) {
                    self.channel_gas.count(known.config.payer, now);
                }
                let asked = ChannelInput::RefundAsked { channel, amount, at: now };
                live.record(now, &Recorded::Book(BookInput::Channel(asked)))?;
                let (moved, ended) = oneshot::channel();
                self.channel_waiters.entry(channel).or_default().push(moved);
                tokio::spawn(async move {
                    if let Ok(moved) = ended.await {
                        let _ = reply.send(Ok(moved));
                    }
                });
            }
        }
        Ok(())
    }

    pub(crate) fn on_channel_output(&mut self, output: ChannelOutput) -> Result<()> {
        match output {
            ChannelOutput::Deposit { channel } => self.send_deposit(channel),
            ChannelOutput::Refund { channel } => self.send_refund(channel),
            ChannelOutput::Receipt { request } => self.sign_call_receipt(request),
            ChannelOutput::ClaimNow { .. } => self.claim_due(),
            ChannelOutput::Refused { request, why } => {
                tracing::warn!(%request, why = why.as_str(), "a call was refused after it was decided");
                Ok(())
            }
            // Income is summed by the state's own fold; the ledger hears of claimed money from the token's events.
            ChannelOutput::Charged { .. } | ChannelOutput::Claimed { .. } => Ok(()),
        }
    }

    fn send_deposit(&mut self, channel: ChannelId) -> Result<()> {
        let poor = self.relay_is_poor();
        let another = self.asked_another.remove(&channel);
        let Some(live) = &self.live else { return Ok(()) };
        let Some(known) = live.state.book.channels().channel(&channel) else { return Ok(()) };
        let Some(open) = &known.deposit else { return Ok(()) };
        let (config, deposit) = (known.config.clone(), open.deposit.clone());
        let before = known.chain.balance;
        let cx = self.cx.clone();
        tokio::spawn(async move {
            let (wanted, key) = (before.saturating_add(deposit.amount), deposit.key(&channel));
            let by_another = match (&cx.depositor, &another) {
                (Some(remote), Some(asked)) => external::deposit(&cx, remote, asked, &channel, wanted).await,
                _ => None,
            };
            if let Some((state, tx)) = by_another {
                let end = Some(ChannelInput::DepositDone { channel, key });
                let moved = Some((deposit.amount, tx));
                return cx.tell(ReadBack { seen: vec![(channel, config, state)], end, moved }.event()).await;
            }
            let sent = match contract_payers::deposit(&cx, &config, &deposit).await {
                Ok(made) => match made.send(&cx, poor, || crash_point!("pay.deposit_sent")).await {
                    Ok(sent) => Some(sent),
                    Err(why) => {
                        tracing::info!(%why, %channel, "a deposit is not sent");
                        None
                    }
                },
                Err(why) => {
                    tracing::info!(?why, %channel, "a deposit is not sent");
                    None
                }
            };
            let tx = match &sent {
                Some(Sent::Done { tx_hash, .. }) => *tx_hash,
                refused => {
                    tracing::info!(?refused, %channel, "a deposit did not go in by our transaction");
                    B256::ZERO
                }
            };
            // Whatever the sender says, the channel's balance decides: somebody else may have sent it, too.
            let state = read_since(&cx, &channel, sent.as_ref().map_or(0, done_in)).await;
            let done = matches!(sent, Some(Sent::Done { .. })) || state.balance >= wanted;
            let moved = done.then_some((deposit.amount, tx));
            let end = if done {
                ChannelInput::DepositDone { channel, key }
            } else {
                ChannelInput::DepositFailed { channel, key }
            };
            cx.tell(ReadBack { seen: vec![(channel, config, state)], end: Some(end), moved }.event()).await;
        });
        Ok(())
    }

    fn send_refund(&mut self, channel: ChannelId) -> Result<()> {
        let Some(live) = &self.live else { return Ok(()) };
        let channels = live.state.book.channels();
        let Some(known) = channels.channel(&channel) else { return Ok(()) };
        let Some(refund) = known.refund else { return Ok(()) };
        let claim = channels.claim_before_refund(&channel);
        let (config, nonce_before) = (known.config.clone(), refund.nonce);
        // A move that was taken back has this process begin to lead again while it is still sending.
        if !self.refunding.insert(channel) {
            return Ok(());
        }
        let (cx, seen) = (self.cx.clone(), self.newest_block());
        let final_blocks = u64::from(cx.manifest.payments.final_blocks);
        let taken_back = self.refunded.get(&channel).copied().filter(|nonce| *nonce >= nonce_before);
        tokio::spawn(async move {
            // A run before this one may have sent it, and a second one would take out more than was asked for: also where a
            // branch takes back what was mined of it, for then the outbox sends the same again.
            let left_over = cx.operator.left_over().await;
            let seen = left_over.max(seen);
            let (nonce, until) = match taken_back {
                Some(nonce) => (nonce, seen + final_blocks),
                None if left_over > 0 => (nonce_before, left_over + final_blocks),
                None => (nonce_before, seen),
            };
            let state = read_after(&cx, &channel, nonce, seen, until).await;
            if state.refund_nonce > nonce_before {
                let (end, moved) = (Some(ChannelInput::RefundEnded { channel }), Some((refund.amount, B256::ZERO)));
                return cx.tell(ReadBack { seen: vec![(channel, config, state)], end, moved }.event()).await;
            }
            // What was charged is claimed first: the published contract protects only what is claimed.
            let claimed = match claim {
                Some(row) => {
                    let call = calls::claim_and_settle(vec![row_on_chain(&row)]);
                    let tx = chain::Tx::call(cx.config.treasury, call, "claim before a refund");
                    let waiting = cx.operator.submit(tx);
                    crash_point!("pay.claim_sent");
                    matches!(waiting.await, Sent::Done { .. })
                }
                None => true,
            };
            let (mut moved, mut block) = (None, 0);
            if claimed {
                let call = calls::refund_channel(config_on_chain(&config), refund.amount.micro());
                let waiting = cx.operator.submit(chain::Tx::call(cx.config.treasury, call, "channel refund"));
                crash_point!("pay.refund_sent");
                let sent = waiting.await;
                block = done_in(&sent);
                if may_be_mined_yet(&sent) {
                    // The channel serves nothing until the blocks stand in which it was refused.
                    block = read_since(&cx, &channel, seen).await.block + final_blocks;
                }
                if let Sent::Done { tx_hash, .. } = sent {
                    moved = Some((refund.amount, tx_hash));
                } else {
                    tracing::warn!(?sent, %channel, "a channel refund did not go through");
                }
            }
            let state = read_since(&cx, &channel, block.max(seen)).await;
            if moved.is_none() && state.refund_nonce > nonce_before {
                moved = Some((refund.amount, B256::ZERO));
            }
            let end = ChannelInput::RefundEnded { channel };
            cx.tell(ReadBack { seen: vec![(channel, config, state)], end: Some(end), moved }.event()).await;
        });
        Ok(())
    }

    /// An endpoint that shows less than this lags.
    fn newest_block(&self) -> u64 {
        self.news.as_ref().map_or(0, |news| news.head.number)
    }

    /// What the chain says after a deposit, a claim or a refund.
    pub(crate) fn on_channel_read(&mut self, ReadBack { seen, end, moved }: ReadBack) -> Result<()> {
        let now = self.now();
        let waited_for = match &end {
            Some(
                ChannelInput::DepositDone { channel, .. }
                | ChannelInput::DepositFailed { channel, .. }
                | ChannelInput::RefundEnded { channel },
            ) => Some(*channel),
            _ => None,
        };
        if let Some(ChannelInput::RefundEnded { channel }) = &end {
            self.refund_ended(channel, moved.is_some());
        }
        if let Some(live) = self.live.as_mut().filter(|live| !live.sealed) {
            for (channel, config, state) in seen {
                let look = ChannelInput::Seen { channel, config, state, at: now };
                live.record(now, &Recorded::Book(BookInput::Channel(look)))?;
            }
            if let Some(end) = end {
                live.record(now, &Recorded::Book(BookInput::Channel(end)))?;
            }
        }
        for waiter in waited_for.and_then(|channel| self.channel_waiters.remove(&channel)).unwrap_or_default() {
            // The customer may have hung up.
            let _ = waiter.send(moved);
        }
        Ok(())
    }

    fn refund_ended(&mut self, channel: &ChannelId, is_carried_out: bool) {
        self.refunding.remove(channel);
        let known = self.live.as_ref().and_then(|live| live.state.book.channels().channel(channel));
        if let Some(refund) = known.and_then(|known| known.refund).filter(|_| is_carried_out) {
            self.refunded.insert(*channel, refund.nonce);
        }
    }

    /// Claims what is due: sums above their bounds, payers that leave, and everything when the agent stops selling.
    pub(crate) fn claim_due(&mut self) -> Result<()> {
        let now = self.now();
        let ends = self.shared.price().is_none();
        // While it is being restored the treasury takes no claim.
        let restores = self.news.as_ref().is_none_or(|news| news.state.restoring);
        if !self.acts() || restores || self.cx.birth.options.channels.is_zero() {
            return Ok(());
        }
        let Some(live) = self.live.as_mut().filter(|live| !live.sealed) else { return Ok(()) };
        let channels = live.state.book.channels();
        // The tick comes often and the channels may be many.
        if channels.totals().unclaimed.is_zero() || channels.open_claims().next().is_some() {
            return Ok(());
        }
        let bound = |sum| if ends { Usdc::ZERO } else { sum };
        let policy = ClaimPolicy {
            channel_max: bound(UNCLAIMED_CHANNEL_MAX),
            all_max: bound(UNCLAIMED_ALL_MAX),
            row_min: if ends { Usdc(1) } else { ROW_MIN },
            rows_max: ROWS_MAX,
        };
        for batch in live.state.book.channels().due_claims(&policy, now) {
            let rows = batch.iter().map(|row| (row.channel, row.total)).collect();
            let lsn = live.record(now, &Recorded::Book(BookInput::Channel(ChannelInput::ClaimSent { rows })))?;
            let cx = self.cx.clone();
            live.when_durable(lsn, move || drop(tokio::spawn(claim(cx, batch))));
        }
        Ok(())
    }

    /// In the wind-down payers get back unasked what their channels hold beyond their charges: by then nothing of it
    /// counts in a day. What fails, or is taken back with its block, is tried again. In a pause the treasury takes it
    /// from no operator.
    pub(crate) fn send_home(&mut self) -> Result<()> {
        let now = self.now();
        let ends = self.news.as_ref().map(|news| news.view(self.cx.me()));
        let ends = ends.filter(|view| view.stage == Stage::WindingDown && !view.paused && !view.restoring);
        if ends.is_none() || !self.acts() || self.cx.birth.options.channels.is_zero() {
            return Ok(());
        }
        let Some(live) = self.live.as_mut().filter(|live| !live.sealed) else { return Ok(()) };
        let is_put_off = |id: &ChannelId| self.sent_home.get(id).is_some_and(|until| now < *until);
        let Some((channel, amount)) = live.state.book.channels().due_refund(is_put_off) else { return Ok(()) };
        self.sent_home.insert(channel, now.saturating_add(LOOK_SECS));
        tracing::info!(%channel, %amount, "the agent ends: what a channel holds goes back");
        let asked = ChannelInput::RefundAsked { channel, amount, at: now };
        live.record(now, &Recorded::Book(BookInput::Channel(asked))).map(|_| ())
    }

    /// A payer that begins to withdraw can be gone after `withdrawDelay`: whoever owes is looked at now and then, and
    /// a withdrawal that is seen makes a claim due. So is what was last read in a block that the chain took back.
    pub(crate) fn watch_payers(&mut self) {
        let now = self.now();
        if now < self.payers_seen_at.saturating_add(LOOK_SECS) {
            return;
        }
        self.payers_seen_at = now;
        let Some(live) = &self.live else { return };
        let owing: Vec<(ChannelId, ChannelConfig, bool)> = live
            .state
            .book
            .channels()
            .channels()
            .filter(|(_, channel)| channel.is_to_be_watched())
            .map(|(id, channel)| (*id, channel.config.clone(), channel.is_in_doubt))
            .collect();
        if owing.is_empty() {
            return;
        }
        let cx = self.cx.clone();
        tokio::spawn(async move {
            for (channel, config, is_in_doubt) in owing {
                // One that cannot be read now is read in the next round.
                let Ok(state) = try_read(&cx, &channel).await else { continue };
                if state.withdrawal.is_some() || is_in_doubt {
                    cx.tell(ReadBack { seen: vec![(channel, config, state)], end: None, moved: None }.event()).await;
                }
            }
        });
    }

    /// After a start: what was on its way is asked about or sent again.
    pub(crate) fn resume_channels(&mut self) -> Result<()> {
        let Some(live) = &mut self.live else { return Ok(()) };
        let channels = live.state.book.channels();
        let deposits = channels.deposits().map(|(id, _, _)| ChannelOutput::Deposit { channel: *id });
        let refunds = channels.refunds().map(|(id, _, _)| ChannelOutput::Refund { channel: *id });
        let again: Vec<ChannelOutput> = deposits.chain(refunds).collect();
        let claims: Vec<(ChannelId, ChannelConfig)> =
            channels.open_claims().filter_map(|(id, _)| Some((*id, channels.channel(id)?.config.clone()))).collect();
        again.into_iter().for_each(|output| live.again(BookOutput::Channel(output)));
        for (channel, config) in claims {
            let (cx, seen) = (self.cx.clone(), self.newest_block());
            tokio::spawn(async move {
                // Whether it was mined shows once nothing of that run can be any more; if not, that is no fault of its row,
                // and it is made again.
                let seen = cx.operator.left_over().await.max(seen);
                let state = read_since(&cx, &channel, seen).await;
                let end = ChannelInput::ClaimDone { rows: vec![channel] };
                cx.tell(ReadBack { seen: vec![(channel, config, state)], end: Some(end), moved: None }.event()).await;
            });
        }
        Ok(())
    }

    /// One record of a call on a channel; what the handlers say in the book's general words is put into the channels'.
    pub(crate) fn call_input(&self, input: &BookInput) -> Option<ChannelInput> {
        let (request, on_channel) = match input {
            BookInput::Mark { request, tokens, amount } => {
                (request, ChannelInput::Mark { request: *request, tokens: *tokens, amount: *amount })
            }
            BookInput::Delivered { request, delivery, amount } => {
                (request, ChannelInput::Charged { request: *request, amount: *amount, delivery: delivery.clone() })
            }
            BookInput::Aborted { request, why } => (request, ChannelInput::Aborted { request: *request, why: *why }),
            _ => return None,
        };
        self.live.as_ref()?.state.book.channels().call(request).map(|_| on_channel)
    }
}

async fn claim(cx: Arc<Context>, batch: Vec<ClaimRow>) {
    let call = calls::claim_and_settle(batch.iter().map(row_on_chain).collect());
    let waiting = cx.operator.submit(chain::Tx::call(cx.config.treasury, call, "claim"));
    crash_point!("pay.claim_sent");
    let sent = waiting.await;
    // The treasury skips bad rows, so only a claim that was carried out says something about its rows. One that it refused
    // as a whole, or that nobody knows of, is made again: a row that is blamed waits for a newer voucher, which may never
    // come.
    let is_done = matches!(sent, Sent::Done { .. });
    if !is_done {
        tracing::info!(?sent, rows = batch.len(), "a claim did not go through");
    }
    let mut seen = Vec::new();
    let mut done = Vec::new();
    let mut failed = Vec::new();
    for row in &batch {
        let state = read_since(&cx, &row.channel, done_in(&sent)).await;
        if state.claimed >= row.total || !is_done {
            done.push(row.channel)
        } else {
            failed.push(row.channel)
        }
        seen.push((row.channel, row.config.clone(), state));
    }
    if !done.is_empty() {
        let end = ChannelInput::ClaimDone { rows: done };
        cx.tell(ReadBack { seen: seen.clone(), end: Some(end), moved: None }.event()).await;
    }
    if !failed.is_empty() {
        let end = ChannelInput::ClaimFailed { rows: failed };
        cx.tell(ReadBack { seen, end: Some(end), moved: None }.event()).await;
    }
}

/// The request that the book takes, or what its customer hears.
fn taken_or_answer(
    decision: ChannelDecision,
    known: impl FnOnce() -> Option<Channel>,
) -> std::result::Result<RequestId, CallAnswer> {
    Err(match decision {
        ChannelDecision::New { request } => return Ok(request),
        ChannelDecision::Look => CallAnswer::Look,
        ChannelDecision::Deposit => CallAnswer::Deposit,
        ChannelDecision::Depositing => CallAnswer::Depositing,
        ChannelDecision::Replay { request } => CallAnswer::Replay { request },
        ChannelDecision::InFlight { request } => CallAnswer::InFlight { request },
        ChannelDecision::Corrective(reason) => match known() {
            Some(channel) => CallAnswer::Corrective(reason, Box::new(channel)),
            None => CallAnswer::Refused(reason),
        },
        ChannelDecision::Refused(reason) => CallAnswer::Refused(reason),
        ChannelDecision::Limited(limit) => CallAnswer::Limited(limit),
    })
}

fn row_on_chain(row: &ClaimRow) -> VoucherClaim {
    VoucherClaim {
        voucher: Voucher { channel: config_on_chain(&row.config), maxClaimableAmount: row.voucher.max.micro() },
        signature: Bytes::copy_from_slice(&row.voucher.signature),
        totalClaimed: row.total.micro(),
    }
}

fn config_on_chain(config: &ChannelConfig) -> OnChain {
    OnChain {
        payer: Address::from(config.payer),
        payerAuthorizer: Address::from(config.payer_authorizer),
        receiver: Address::from(config.receiver),
        receiverAuthorizer: Address::from(config.receiver_authorizer),
        token: Address::from(config.token),
        withdrawDelay: alloy::primitives::aliases::U40::wrapping_from(config.withdraw_delay_secs),
        salt: B256::from(config.salt),
    }
}
