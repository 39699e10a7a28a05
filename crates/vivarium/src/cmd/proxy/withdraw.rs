//! `vivarium proxy --withdraw`: a customer's money out of its channels, without asking an agent.
//!
//! Two ways, both the customer's own transactions. Where the channel's receiver is a treasury that refunds whoever asks
//! (it winds down and its time for claims is over, or its stewards opened refunds), one call brings the money at once.
//! Else the channel contract's way: begin, wait for the channel's delay, end. In between the first way is taken as soon as
//! it opens. Which it was, and when money comes, is told of each channel.

use alloy::eips::BlockId;
use alloy::primitives::{Address, B256, U256, utils::format_ether};
use alloy::signers::local::PrivateKeySigner;
use anyhow::{Context, Result, ensure};
use chain::bindings::{ChannelConfig, Stage};
use chain::{Chain, Kind, Tx};
use economy::Usdc;
use pay::buyer::{Buyer, HeldChannel};
use pay::scheme::channel::BATCH_SETTLEMENT;
use pay::scheme::channel::facilitator::{finalize_withdraw_call, initiate_withdraw_call};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use vivarium::proxy::{Agent, Whereabouts};
use vivarium::world::wallet::Wallet;

/// Gas of the dearest one of the transactions that take money out of a channel, with room: 51,000 to 66,000 were used by
/// the two of the channel contract on a development chain, about twice as much by a refund through a treasury.
const WITHDRAW_GAS: u64 = 200_000;
/// Takes what is in the channels of the record, on every agent's chain, without asking an agent; tries all before it fails.
pub async fn withdraw(agents: &[Agent], key: &PrivateKeySigner, as_json: bool) -> Result<()> {
    let (mut told, mut failed, mut now) = (Vec::new(), 0, 0);
    let mut seen = BTreeSet::new();
    for agent in agents {
        let Whereabouts::Chain { record, .. } = agent.whereabouts() else { continue };
        now = record.chain.head().await.context("the chain does not answer")?.timestamp;
        let held = agent.buyer().held_channels().await?;
        let held: Vec<HeldChannel> = held.into_iter().filter(|held| seen.insert(held.id)).collect();
        let wallet = Wallet::new(record.chain.clone(), key.clone());
        let mut steps = Vec::new();
        for held in held {
            let refunds = Refunds::of(&wallet, &held, now).await?;
            if let Some(step) = Step::of(&held, refunds, now) {
                steps.push((held, step, refunds));
            }
        }
        let sends = steps.iter().filter(|(_, step, _)| !matches!(step, Step::Wait { .. })).count();
        if sends > 0 {
            needs_ether(&wallet, sends).await?;
        }
        for (held, step, refunds) in steps {
            match step.take((&wallet, agent.buyer()), &held, refunds).await {
                Ok(line) => {
                    if !as_json {
                        println!("{}", line.words(now));
                    }
                    told.push(line);
                }
                Err(error) => {
                    failed += 1;
                    eprintln!("{}: {error:#}", held.id);
                }
            }
        }
    }
    if as_json {
        let channels: Vec<Value> = told.iter().map(Line::json).collect();
        println!("{}", json!({ "payer": key.address(), "now": now, "channels": channels }));
    } else if told.is_empty() && failed == 0 {
        println!("nothing lies in the channels of {} that are on record", key.address());
    }
    ensure!(failed == 0, "{failed} channels are left as they were; say `vivarium proxy --withdraw` again");
    Ok(())
}

/// Whether the channel's receiver refunds whoever asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refunds {
    Now,
    /// From this chain time on: until then it claims what it is owed.
    From(u64),
    Never,
}

impl Refunds {
    /// Asks the channel's receiver, which may be anything. `now`: chain seconds.
    async fn of(wallet: &Wallet, held: &HeldChannel, now: u64) -> Result<Self> {
        let refunds = match Self::of_treasury(&wallet.chain, held.config.receiver.into(), now).await {
            Ok(refunds) => refunds,
            Err(e) if matches!(e.kind, Kind::Missing | Kind::Reverted(_)) => Self::Never,
            Err(e) => return Err(e).context("the chain does not answer"),
        };
        if refunds == Self::Now && !held.free().is_zero() {
            let (receiver, data) = refund_call(held, held.free());
            // The channel's contract has the last word.
            return Ok(if wallet.ask(receiver, data).await.is_ok() { Self::Now } else { Self::Never });
        }
        Ok(refunds)
    }

    async fn of_treasury(chain: &Chain, receiver: Address, now: u64) -> Result<Self, chain::Error> {
        let treasury = chain.treasury(receiver);
        let (state, standing) = futures::future::try_join(treasury.state(), treasury.standing()).await?;
        if state.stage() == Stage::Closed {
            return Ok(Self::Never);
        }
        if standing.refundsOpen {
            return Ok(Self::Now);
        }
        if state.stage() != Stage::WindingDown {
            return Ok(Self::Never);
        }
        // As `refundChannel` of the treasury has it.
        let window = u64::from(treasury.birth().await?.timers.refundWindow);
        let from = state.windDownAt.saturating_add(window / 3);
        Ok(if now >= from { Self::Now } else { Self::From(from) })
    }
}

/// What takes `amount` out through the channel's receiver, a treasury.
fn refund_call(held: &HeldChannel, amount: Usdc) -> (Address, alloy::primitives::Bytes) {
    let config = &held.config;
    let on_chain = ChannelConfig {
        payer: config.payer.into(),
        payerAuthorizer: config.payer_authorizer.into(),
        receiver: config.receiver.into(),
        receiverAuthorizer: config.receiver_authorizer.into(),
        token: config.token.into(),
        withdrawDelay: alloy::primitives::aliases::U40::saturating_from(config.withdraw_delay_secs),
        salt: config.salt.into(),
    };
    (config.receiver.into(), chain::treasury::calls::refund_channel(on_chain, amount.micro()))
}

/// Which transaction a channel needs.
enum Step {
    /// `refundChannel` of the treasury, of all that is not claimed.
    Refund(Usdc),
    /// `initiateWithdraw` of all that is not claimed.
    Begin(Usdc),
    /// The delay runs.
    Wait { amount: Usdc, ready_at: u64 },
    /// `finalizeWithdraw`.
    End(Usdc),
}

/// What was done for one channel.
struct Line {
    held: HeldChannel,
    step: &'static str,
    amount: Usdc,
    /// Chain seconds.
    ready_at: Option<u64>,
    /// From when on the treasury refunds whoever asks, where that is sooner.
    refunds_at: Option<u64>,
    transaction: Option<B256>,
}

impl Step {
    /// `None`: nothing is in it.
    fn of(held: &HeldChannel, refunds: Refunds, now: u64) -> Option<Self> {
        let free = held.free();
        if refunds == Refunds::Now && !free.is_zero() {
            return Some(Self::Refund(free));
        }
        match (held.state.withdrawal, held.ready_at()) {
            (Some(leaving), Some(ready_at)) => {
                // What was claimed meanwhile is the seller's.
                let amount = leaving.amount.min(free);
                Some(if now >= ready_at { Self::End(amount) } else { Self::Wait { amount, ready_at } })
            }
            _ => (!free.is_zero()).then_some(Self::Begin(free)),
        }
    }

    async fn take(mut self, (wallet, buyer): (&Wallet, &Buyer), held: &HeldChannel, refunds: Refunds) -> Result<Line> {
        let send = async |data: Vec<u8>, what: &'static str| -> Result<chain::sender::Done> {
            Ok(wallet.send(Tx::call(BATCH_SETTLEMENT, data.into(), what)).await?)
        };
        let line = |step, amount, ready_at: Option<u64>, transaction| {
            let refunds_at = match refunds {
                Refunds::From(at) if ready_at.is_some_and(|ready_at| at < ready_at) => Some(at),
                _ => None,
            };
            Line { held: held.clone(), step, amount, ready_at, refunds_at, transaction }
        };
        if let Self::Refund(amount) = self {
            let (receiver, data) = refund_call(held, amount);
            let done = wallet.send(Tx::call(receiver, data, "the refund")).await?;
            let now_held = buyer.held_channels().await?.into_iter().find(|now| now.id == held.id);
            if now_held.is_none_or(|now| now.free() < amount) {
                return Ok(line("refunded", amount, None, Some(done.tx_hash)));
            }
            // Whatever took the call, it was no treasury.
            self = Self::Begin(amount);
        }
        Ok(match self {
            Self::Refund(_) => unreachable!("it is done"),
            Self::Begin(amount) => {
                let done = send(initiate_withdraw_call(&held.config, amount), "the withdrawal's beginning").await?;
                let mined = wallet.chain.block_at(done.block).await?;
                let since = mined.context("the block of the withdrawal is gone; look again")?.timestamp;
                let ready_at = since.saturating_add(held.config.withdraw_delay_secs);
                line("begun", amount, Some(ready_at), Some(done.tx_hash))
            }
            Self::Wait { amount, ready_at } => line("waits", amount, Some(ready_at), None),
            Self::End(amount) => {
                let done = send(finalize_withdraw_call(&held.config), "the withdrawal's end").await?;
                line("done", amount, None, Some(done.tx_hash))
            }
        })
    }
}

impl Line {
    fn words(&self, now: u64) -> String {
        let Self { held, amount, .. } = self;
        let receiver = Address::from(held.config.receiver);
        match (self.ready_at, self.refunds_at) {
            (None, _) if self.step == "refunded" => {
                format!(
                    "{amount} came back out of channel {} at once: its seller {receiver} ends, and refunds",
                    held.id
                )
            }
            (None, _) => format!("{amount} came back out of channel {}", held.id),
            (Some(ready_at), None) => format!(
                "{amount} are leaving channel {}; {} s from now, at chain time {ready_at}, `vivarium proxy --withdraw` \
                 takes them out",
                held.id,
                ready_at.saturating_sub(now)
            ),
            (Some(ready_at), Some(refunds_at)) => format!(
                "{amount} are leaving channel {}, at the latest at chain time {ready_at}; its seller {receiver} ends, and \
                 {} s from now, from chain time {refunds_at} on, `vivarium proxy --withdraw` has it refunded",
                held.id,
                refunds_at.saturating_sub(now)
            ),
        }
    }

    fn json(&self) -> Value {
        json!({
            "channel": self.held.id.to_string(),
            "receiver": Address::from(self.held.config.receiver),
            "step": self.step,
            "amount_uusdc": self.amount.micro().to_string(),
            "ready_at": self.ready_at,
            "refunds_at": self.refunds_at,
            "transaction": self.transaction,
        })
    }
}

/// Nobody pays the gas of whoever leaves.
async fn needs_ether(wallet: &Wallet, sends: usize) -> Result<()> {
    let payer = wallet.address();
    let (has, price) = (
        wallet.chain.eth_balance(payer, BlockId::latest()).await?,
        wallet.chain.request::<_, U256>("eth_gasPrice", ()).await?,
    );
    let needs = price.saturating_mul(U256::from(WITHDRAW_GAS)).saturating_mul(U256::from(sends));
    ensure!(
        has >= needs,
        "{payer} has {} ether and needs about {} to send {sends} transactions: leaving a channel without its seller costs \
         gas of the payer's own. Send it some, then say `vivarium proxy --withdraw` again; nothing was sent",
        format_ether(has),
        format_ether(needs)
    );
    Ok(())
}
