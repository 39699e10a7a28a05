//! Payers that are contracts (ERC-1271), and those that do not exist yet (ERC-6492).
//!
//! Whether their signature holds, only the settlement tells: it is simulated before anything is served, and mined
//! before the first byte. It runs code that strangers chose, so only the relay sends it, which owns nothing, with
//! bounded gas; the operator key never does, not even when the relay is out of gas. A factory is called only if the
//! manifest lists it. A contract that goes through in simulation and then fails burns the relay's gas: [`Attempts`] bounds
//! how often that may happen.

use crate::context::Context;
use alloy::eips::BlockId;
use alloy::primitives::{Address, B256, Bytes, U256};
use alloy::rpc::types::TransactionRequest;
use chain::treasury::calls;
use chain::{Outcome, SenderHandle, Tx};
use net::chain_of;
use pay::facilitator::multicall::{self, Call, MULTICALL3};
use pay::scheme::channel::facilitator::deposit_call;
use pay::scheme::channel::{BATCH_SETTLEMENT, ChannelConfig, Deposit};
use pay::scheme::signature::{self, NotTaken};
use pay::scheme::upto::facilitator::settle_call;
use pay::scheme::upto::{Permit2Payment, Proxy};
use pay::{Reason, Refusal, SettleExact, Usdc};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;

/// Gas of a settlement for a contract, its making included. A passkey wallet's signature costs up to 400,000, a Safe
/// of three owners to make 400,000. A guess above both; it bounds what one payer can burn of the relay's gas.
const GAS_MAX: u64 = 1_200_000;
/// Settlements for contracts that failed within [`DAY`] or are on their way, of all payers and of one: with [`GAS_MAX`] each
/// this is what strangers can burn in a day, 9.6 M gas (0.12 USD at 0.005 gwei and 2,500 USD an ETH). Guesses: a wallet
/// in good faith fails when its money moves between simulation and block.
const FAILED_MAX: usize = 8;
const FAILED_OF_ONE_MAX: usize = 2;
const DAY: Duration = Duration::from_secs(86_400);
/// Simulations at once, of all who claim to be contracts: a flood of wrong signatures costs the endpoint no more.
static SIMULATIONS: Semaphore = Semaphore::const_new(4);

/// Settlements for contracts that have not gone through: failed, or not known yet. Real time; a restart forgets them.
#[derive(Debug, Default)]
pub struct Attempts(Mutex<Vec<(Instant, Address)>>);

impl Attempts {
    /// Counts one more for `payer` until [`Self::burnt_nothing`] is called.
    ///
    /// # Errors
    /// It or all of them together have failed too often today.
    fn begin(&self, payer: Address) -> Result<(), Refusal> {
        self.allow(payer)?;
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push((Instant::now(), payer));
        Ok(())
    }

    fn allow(&self, payer: Address) -> Result<(), Refusal> {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|(at, _)| at.elapsed() < DAY);
        let of_one = open.iter().filter(|(_, of)| *of == payer).count();
        if of_one < FAILED_OF_ONE_MAX && open.len() < FAILED_MAX {
            return Ok(());
        }
        let message = "too many payments of contracts failed or are on their way: pay with a key, or try again later";
        Err(Refusal::new(Reason::TooManyOpen, message))
    }

    fn burnt_nothing(&self, payer: Address) {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = open.iter().position(|(_, of)| *of == payer) {
            open.remove(at);
        }
    }
}

/// A transaction for a payer, and who may send it.
pub struct ForPayer {
    payer: Address,
    call: Call,
    label: &'static str,
    /// Only the relay: somebody else's code decides what it does.
    runs_strangers_code: bool,
}

impl ForPayer {
    /// Sends it and waits for its end. `on_its_way` is called once it is handed over.
    ///
    /// # Errors
    /// The payer is a contract, and too many of them have failed today: nothing was sent.
    pub async fn send(&self, cx: &Context, relay_is_poor: bool, on_its_way: fn()) -> Result<Outcome, Refusal> {
        if self.runs_strangers_code {
            cx.contract_attempts.begin(self.payer)?;
        }
        let waiting = self.sender(cx, relay_is_poor).submit(self.tx());
        on_its_way();
        let outcome = waiting.await;
        let burnt = match &outcome {
            Outcome::Done { .. } | Outcome::NeverSent { .. } => false,
            Outcome::Reverted { tx_hash, .. } => tx_hash.is_some(),
            Outcome::Unknown { .. } => true,
        };
        if self.runs_strangers_code && !burnt {
            cx.contract_attempts.burnt_nothing(self.payer);
        }
        Ok(outcome)
    }

    fn tx(&self) -> Tx {
        let tx = Tx::call(self.call.to, self.call.data.clone(), self.label);
        if self.runs_strangers_code { tx.with_gas(GAS_MAX) } else { tx }
    }

    /// The relay, or the operator when the relay cannot pay the gas and nothing but the token's code and ours runs.
    fn sender<'cx>(&self, cx: &'cx Context, relay_is_poor: bool) -> &'cx SenderHandle {
        if relay_is_poor && !self.runs_strangers_code { &cx.operator } else { &cx.relay }
    }
}

/// Why a payer's transaction is not made.
#[derive(Debug)]
pub enum NotMade {
    /// Its signature is nobody's, or its factory is not on the list. For good.
    NotTaken(NotTaken),
    /// The endpoint does not answer.
    Unknown(chain::Error),
}

/// What settles an authorisation, once its payer exists.
pub fn exact_call(cx: &Context, terms: &SettleExact) -> Call {
    let data = calls::settle_exact(&calls::ExactAuthorization {
        payer: Address::from(terms.payer),
        value: U256::from(terms.value.0),
        valid_after: U256::from(terms.valid_after),
        valid_before: U256::from(terms.valid_before),
        nonce: B256::from(terms.nonce),
        signature: signature::of_deployed(&terms.signature),
    });
    Call { to: cx.config.treasury, data }
}

/// The settlement of an authorisation.
pub async fn settlement(cx: &Context, terms: &SettleExact) -> Result<ForPayer, NotMade> {
    let call = exact_call(cx, terms);
    let by_key = terms.is_signed_by_key;
    make(cx, terms.payer.into(), &terms.signature, by_key, call, "settle").await
}

/// The settlement of a payment by Permit2, which moves `charge`. Always the relay's. `upto` names who may call its proxy, so
/// the call that makes a payer cannot go with its settlement: such a payer makes itself first.
pub async fn permit2(cx: &Context, payment: &Permit2Payment, charge: Usdc) -> Result<ForPayer, NotMade> {
    let to = payment.proxy.address();
    let call = Call { to, data: settle_call(payment, charge).into() };
    let payer = payment.payer.into();
    let made = make(cx, payer, &payment.signature, payment.is_signed_by_key, call, "permit2 settlement").await?;
    if made.call.to != to && matches!(payment.proxy, Proxy::Upto { .. }) {
        return Err(NotMade::NotTaken(NotTaken::NoContract));
    }
    Ok(made)
}

/// A deposit into a channel.
pub async fn deposit(cx: &Context, config: &ChannelConfig, deposit: &Deposit) -> Result<ForPayer, NotMade> {
    let call = Call { to: BATCH_SETTLEMENT, data: deposit_call(config, deposit).into() };
    make(cx, config.payer.into(), deposit.signature(), deposit.is_signed_by_key, call, "deposit").await
}

async fn make(
    cx: &Context,
    payer: Address,
    signature: &[u8],
    is_signed_by_key: bool,
    call: Call,
    label: &'static str,
) -> Result<ForPayer, NotMade> {
    if is_signed_by_key {
        return Ok(ForPayer { payer, call, label, runs_strangers_code: false });
    }
    let code: Bytes = cx.chain.request("eth_getCode", (payer, BlockId::latest())).await.map_err(NotMade::Unknown)?;
    let first = signature::first(signature, !code.is_empty(), &cx.manifest.payments.factories);
    let call = match first.map_err(NotMade::NotTaken)? {
        None => call,
        // A call to a contract that is not there would go through, and pay nothing.
        Some(_) if !cx.batches.has_multicall().await.map_err(NotMade::Unknown)? => {
            return Err(NotMade::NotTaken(NotTaken::NoContract));
        }
        Some(made) => {
            let making = Call { to: made.factory, data: made.calldata };
            Call { to: MULTICALL3, data: multicall::all(vec![making, call]) }
        }
    };
    Ok(ForPayer { payer, call, label, runs_strangers_code: true })
}

/// Whether the settlement of a payer that is not a key would go through now. The names are the scheme's, for a
/// signature that holds nowhere, a factory nobody trusts, and a settlement that fails.
///
/// # Errors
/// The refusal to send.
async fn simulate(cx: &Context, made: Result<ForPayer, NotMade>, names: [Reason; 3]) -> Result<(), Refusal> {
    let [wrong, factory, fails] = names;
    let made = made.map_err(|why| match why {
        NotMade::NotTaken(why) => why.refusal(wrong, factory),
        NotMade::Unknown(e) => away(&e),
    })?;
    if made.runs_strangers_code {
        cx.contract_attempts.allow(made.payer)?;
    }
    let call = TransactionRequest::default()
        .from(cx.relay.address())
        .to(made.call.to)
        .gas_limit(GAS_MAX)
        .input(made.call.data.into());
    let answer: Result<Bytes, chain::Error> = cx.chain.request("eth_call", (call, BlockId::latest())).await;
    answer.map(drop).map_err(|e| Refusal::new(fails, chain_of(&e)))
}

/// [`settlement`], simulated.
///
/// # Errors
/// The refusal to send.
pub async fn simulate_settlement(cx: &Context, terms: &SettleExact) -> Result<(), Refusal> {
    let _turn = turn()?;
    let names = [Reason::Signature, Reason::FactoryNotAllowed, Reason::Simulation];
    simulate(cx, settlement(cx, terms).await, names).await
}

/// [`permit2`] of all that is permitted, simulated.
///
/// # Errors
/// The refusal to send.
pub async fn simulate_permit2(cx: &Context, payment: &Permit2Payment) -> Result<(), Refusal> {
    let _turn = turn()?;
    let names = [Reason::Permit2Signature, Reason::FactoryNotAllowed, Reason::Permit2Simulation];
    simulate(cx, permit2(cx, payment, payment.amount).await, names).await
}

/// [`deposit`], simulated: a key's too, whose balance and allowance only the chain knows.
///
/// # Errors
/// The refusal to send.
pub async fn simulate_deposit(cx: &Context, config: &ChannelConfig, asked: &Deposit) -> Result<(), Refusal> {
    let _turn = if asked.is_signed_by_key { None } else { Some(turn()?) };
    let names = [Reason::DepositSignature, Reason::DepositFactoryNotAllowed, Reason::DepositSimulation];
    simulate(cx, deposit(cx, config, asked).await, names).await
}

fn turn() -> Result<tokio::sync::SemaphorePermit<'static>, Refusal> {
    SIMULATIONS.try_acquire().map_err(|_| {
        let message = "too many signatures of contracts are being checked: try again in a moment, or pay with a key";
        Refusal::new(Reason::TooManyOpen, message)
    })
}

fn away(error: &chain::Error) -> Refusal {
    tracing::warn!(error = %chain_of(error), "a payer cannot be looked at");
    Refusal::new(Reason::UnexpectedVerifyError, "the chain does not answer; nothing was charged")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_contracts_can_burn_in_a_day_is_bounded() {
        let attempts = Attempts::default();
        let payer = |n: u8| Address::repeat_byte(n);
        for n in 1..=4 {
            for _ in 0..FAILED_OF_ONE_MAX {
                attempts.begin(payer(n)).expect("it has failed less often than it may");
            }
            let refusal = attempts.begin(payer(n)).expect_err("one payer");
            assert_eq!(refusal.reason, Reason::TooManyOpen);
        }
        assert!(attempts.begin(payer(5)).is_err(), "all of them");
        // One that went through counts no more, and makes room.
        attempts.burnt_nothing(payer(1));
        attempts.begin(payer(5)).expect("there is room");
        assert!(attempts.begin(payer(6)).is_err());
    }
}
