//! A birth that came to no end: where its money is, and how it comes back.

use crate::world::wallet::Wallet;
use alloy::eips::BlockId;
use alloy::primitives::{Address, B256, U256};
use alloy::sol_types::{SolError, SolEvent};
use anyhow::{Context, Result, bail};
use chain::Tx;
use chain::bindings::{Stage, Treasury};
use chain::treasury::calls;
use economy::Usdc;
use std::fmt;

/// A treasury that is made and does not live yet. Its `Display` says what becomes of it if it never does.
#[derive(Clone, Copy, Debug)]
pub struct Unborn {
    pub treasury: Address,
    /// Whom everything goes back to.
    pub creator: Address,
    /// Chain seconds.
    pub made_at: u64,
    /// Seconds for which it may be activated. Until they are over nobody can abort it.
    pub activate_within: u32,
}

impl fmt::Display for Unborn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { treasury, creator, made_at, activate_within } = self;
        let from = made_at.saturating_add((*activate_within).into()).saturating_add(1);
        write!(
            f,
            "the treasury is {treasury}; if it does not come to life, `vivarium birth --abort {treasury}` sends what it \
             has back to {creator}, less accrued rent, from chain time {from} on and not before ({activate_within} s \
             after it was made)"
        )
    }
}

/// What went back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Returned {
    pub creator: Address,
    /// The seed, less what the host had earned.
    pub amount: Usdc,
    /// The gas.
    pub wei: U256,
    pub transaction: B256,
}

/// Ends a birth that was not activated in time: its host is given up, seed and gas go back to the creator. Anybody may do
/// that (`ITreasury.abortBirth`); `caller` pays the gas.
///
/// # Errors
/// The agent was born, the treasury is closed, or it is too early: each by name, the last one with the time.
pub async fn abort(caller: &Wallet, treasury: Address) -> Result<Returned> {
    let chain = &caller.chain;
    let state = chain.treasury(treasury).state().await;
    match state.with_context(|| format!("there is no treasury at {treasury}"))?.stage() {
        Stage::Unborn => {}
        Stage::Closed => bail!("{treasury} is closed: what it had went to its creator or its beneficiary"),
        Stage::Alive | Stage::Stopped | Stage::WindingDown => {
            bail!("the agent of {treasury} was born: nobody takes anything back from it")
        }
    }
    in_time(caller, treasury).await?;
    let before = chain.eth_balance(treasury, BlockId::latest()).await?;
    let done = caller.send(Tx::call(treasury, calls::abort_birth(), "aborting the birth")).await?;
    let receipt = chain.receipt(done.tx_hash).await?.context("the chain has no receipt of the abort any more")?;
    let mut said = receipt.logs().iter().filter(|log| log.address() == treasury);
    let aborted = said.find_map(|log| Treasury::BirthAborted::decode_log(&log.inner).ok());
    let aborted = aborted.context("the treasury does not say what it gave back")?;
    let after = chain.eth_balance(treasury, BlockId::latest()).await?;
    Ok(Returned {
        creator: aborted.creator,
        amount: Usdc(aborted.amount.saturating_to()),
        wei: before.saturating_sub(after),
        transaction: done.tx_hash,
    })
}

/// Refuses what the treasury would refuse, with the time at which it no longer does.
async fn in_time(caller: &Wallet, treasury: Address) -> Result<()> {
    let Err(refused) = caller.ask(treasury, calls::abort_birth()).await else { return Ok(()) };
    let early = refused.revert().and_then(|revert| Treasury::TooEarly::abi_decode(&revert.data).ok());
    let Some(Treasury::TooEarly { until: from }) = early else {
        return Err(refused).context("the treasury refuses to be aborted");
    };
    let now = caller.chain.head().await?.timestamp;
    bail!(
        "it is too early: the agent may be activated until then, so {treasury} gives everything back from chain time \
         {from} on; it is {now}, {} s before that",
        from.saturating_sub(now)
    )
}
