//! Payments by Permit2, as the chain sees them: what it has for them, whether one would go through, what became of it.

use crate::authorization::{AuthorizationUsed, transfer};
use crate::context::Context;
use crate::settle::Settlement;
use alloy::consensus::Transaction as _;
use alloy::eips::BlockId;
use alloy::primitives::{Address, B256, Bytes, U256};
use alloy::rpc::types::{Filter, Log, Transaction, TransactionReceipt, TransactionRequest};
use alloy::sol;
use alloy::sol_types::SolEvent;
use chain::{Chain, Error};
use pay::Usdc;
use pay::book::UnpaidWhy;
use pay::scheme::channel::COLLECTOR_PERMIT2;
use pay::scheme::exact::Hash;
use pay::scheme::permit2::PERMIT2;
use pay::scheme::upto::{EXACT_PROXY, Permit2Payment, UPTO_PROXY, facilitator};
use std::collections::BTreeSet;
use std::ops::RangeInclusive;

/// Blocks of logs asked for at once: public endpoints give out no more.
const RANGE: u64 = 1_000;
/// Blocks back in which a settlement is looked for: a day of the fastest public roll-up. Permissions live minutes.
pub(crate) const BLOCKS_BACK: u64 = 100_000;

sol! {
    event Transfer(address indexed from, address indexed to, uint256 value);
}

/// What the chain has for payments by Permit2.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Support {
    /// Permit2 and both x402 proxies are where clients expect them.
    pub proxies: bool,
    /// So is the collector of deposits into channels.
    pub collector: bool,
}

/// Read once: contracts at these addresses never change.
pub async fn support(chain: &Chain) -> Result<Support, Error> {
    let is_there = async |at: Address| -> Result<bool, Error> {
        let code: Bytes = chain.request("eth_getCode", (at, BlockId::latest())).await?;
        Ok(!code.is_empty())
    };
    let permit2 = is_there(PERMIT2).await?;
    let proxies = permit2 && is_there(EXACT_PROXY).await? && is_there(UPTO_PROXY).await?;
    let collector = permit2 && is_there(COLLECTOR_PERMIT2).await?;
    Ok(Support { proxies, collector })
}

/// Whether this payment would go through now, all of it, by a call that changes nothing.
///
/// # Errors
/// `Reverted` with the reason, or `Rpc`.
pub async fn simulate(cx: &Context, payment: &Permit2Payment) -> Result<(), Error> {
    let call = TransactionRequest::default()
        .from(cx.relay.address())
        .to(payment.proxy.address())
        .input(Bytes::from(facilitator::settle_call(payment, payment.amount)).into());
    let _: Bytes = cx.chain.request("eth_call", (call, BlockId::latest())).await?;
    Ok(())
}

/// Whether the nonce is spent, at the newest block.
pub async fn is_spent(cx: &Context, payment: &Permit2Payment) -> Result<bool, Error> {
    let call = TransactionRequest::default().to(PERMIT2).input(Bytes::from(facilitator::nonce_call(payment)).into());
    let answer: Bytes = cx.chain.request("eth_call", (call, BlockId::latest())).await?;
    facilitator::nonce_is_spent(payment, &answer).ok_or_else(|| Error::rpc("Permit2 does not say which nonces it has"))
}

/// A payment whose nonce is spent, to be found on the chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sought {
    pub token: Address,
    pub payer: Address,
    pub pay_to: Address,
    pub nonce: Hash,
    /// The contract that its signature names.
    pub proxy: Address,
    /// What it pays.
    pub amount: Usdc,
    /// Nothing older can have paid it.
    pub since_block: u64,
}

/// What its nonce was spent for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spent {
    /// It paid, `amount` of it.
    Here { amount: U256, tx: B256, block: u64 },
    /// The payer took its permission back, or somebody or something else was paid with it.
    Elsewhere,
    /// It was sent as this; the endpoint has no receipt that would tell what it moved.
    Unread(B256),
}

/// The blocks from `first` to `last` in pieces that public endpoints give out logs of, the newest first. Never none: an
/// endpoint whose newest block is older than `first` must say itself that it has no such blocks.
pub fn pieces(first: u64, last: u64) -> impl Iterator<Item = RangeInclusive<u64>> {
    let ends =
        std::iter::successors(Some(last.max(first)), move |end| end.checked_sub(RANGE).filter(|end| *end >= first));
    ends.map(move |end| end.saturating_sub(RANGE - 1).max(first)..=end)
}

/// Finds what a spent nonce paid: a transfer to the payee, in a receipt of the payment's proxy. Permit2 names no nonce
/// in its events, so the transaction is recognised by its bytes; where somebody called the proxy from a contract of his
/// own, by payer, amount and proxy, in a transaction that paid nothing else (`is_taken`, or an EIP-3009 transfer in
/// it).
///
/// # Errors
/// `Rpc`. An unspent nonce is `Elsewhere`: ask for that first.
pub async fn find(chain: &Chain, sought: &Sought, is_taken: impl Fn(&B256) -> bool) -> Result<Spent, Error> {
    let newest = chain.head().await?.number;
    let mut like_it = None;
    for blocks in pieces(sought.since_block, newest) {
        for tx in transfers(chain, sought, blocks).await? {
            let sent: Option<Transaction> = chain.request("eth_getTransactionByHash", (tx,)).await?;
            let Some(sent) = sent else { continue };
            let is_direct = sent.to() == Some(sought.proxy);
            if is_direct && facilitator::settles(&sought.payer.into_array(), &sought.nonce, sent.input()) {
                let receipt = chain.receipt(tx).await?;
                return Ok(receipt.and_then(|receipt| moved_in(&receipt, sought)).unwrap_or(Spent::Unread(tx)));
            }
            // `upto` is settled by its facilitator alone, an account that calls the proxy directly.
            if !is_direct && sought.proxy == EXACT_PROXY && like_it.is_none() && !is_taken(&tx) {
                let receipt = chain.receipt(tx).await?.filter(|receipt| !uses_eip3009(receipt, sought.token));
                let found = receipt.and_then(|receipt| moved_in(&receipt, sought));
                let amount = U256::from(sought.amount.0);
                like_it = found.filter(|spent| matches!(spent, Spent::Here { amount: moved, .. } if *moved == amount));
            }
        }
    }
    Ok(like_it.unwrap_or(Spent::Elsewhere))
}

/// The transactions of these blocks in which the payer moved the token to the payee.
async fn transfers(chain: &Chain, sought: &Sought, blocks: RangeInclusive<u64>) -> Result<BTreeSet<B256>, Error> {
    let filter = Filter::new()
        .address(sought.token)
        .from_block(*blocks.start())
        .to_block(*blocks.end())
        .event_signature(Transfer::SIGNATURE_HASH)
        .topic1(sought.payer.into_word())
        .topic2(sought.pay_to.into_word());
    let logs: Vec<Log> = chain.request("eth_getLogs", (filter,)).await?;
    Ok(logs.iter().filter_map(|log| log.transaction_hash).collect())
}

/// What a transaction moved for the payment, if its receipt shows the proxy and the transfer.
fn moved_in(receipt: &TransactionReceipt, sought: &Sought) -> Option<Spent> {
    let by_proxy = receipt.inner.logs().iter().any(|log| log.address() == sought.proxy);
    let amount = transfer(receipt, sought.token, sought.payer, sought.pay_to).filter(|_| by_proxy)?;
    Some(Spent::Here { amount, tx: receipt.transaction_hash, block: receipt.block_number? })
}

/// Then its transfer may be another payment's.
fn uses_eip3009(receipt: &TransactionReceipt, token: Address) -> bool {
    let used = Some(&AuthorizationUsed::SIGNATURE_HASH);
    receipt.inner.logs().iter().any(|log| log.address() == token && log.topic0() == used)
}

/// What the chain says of a payment. `Unknown` while its nonce is unspent and its deadline not over.
///
/// Paid means: the nonce is spent *and* [`find`] finds what it paid.
pub async fn fate(cx: &Context, payment: &Permit2Payment, taken: &BTreeSet<B256>) -> Result<Settlement, Error> {
    let head = cx.chain.head().await?;
    if !is_spent(cx, payment).await? {
        let expired = head.timestamp > payment.deadline;
        return Ok(if expired { Settlement::Unpaid(UnpaidWhy::Expired) } else { Settlement::Unknown });
    }
    let sought = sought(cx, payment, head.number.saturating_sub(BLOCKS_BACK));
    Ok(match find(&cx.chain, &sought, |tx| taken.contains(tx)).await? {
        Spent::Here { amount, tx, block } => {
            Settlement::Paid { amount: amount.saturating_to(), tx, block, recorded: false }
        }
        Spent::Elsewhere => Settlement::Unpaid(UnpaidWhy::UsedElsewhere),
        Spent::Unread(_) => Settlement::Unknown,
    })
}

/// What this transaction moved here for the payment, if its receipt shows the proxy and the transfer.
pub async fn paid_in(cx: &Context, payment: &Permit2Payment, tx: B256) -> Result<Option<Settlement>, Error> {
    let receipt = cx.chain.receipt(tx).await?;
    let moved = receipt.and_then(|receipt| moved_in(&receipt, &sought(cx, payment, 0)));
    Ok(moved.and_then(|spent| match spent {
        Spent::Here { amount, tx, block } => {
            Some(Settlement::Paid { amount: amount.saturating_to(), tx, block, recorded: false })
        }
        Spent::Elsewhere | Spent::Unread(_) => None,
    }))
}

fn sought(cx: &Context, payment: &Permit2Payment, since_block: u64) -> Sought {
    Sought {
        token: cx.birth.token,
        payer: payment.payer.into(),
        pay_to: cx.config.treasury,
        nonce: payment.nonce,
        proxy: payment.proxy.address(),
        amount: payment.amount,
        since_block,
    }
}

/// Why the chain refuses a payment, in x402's words. The order is the official facilitator's.
pub async fn what_is_missing(cx: &Context, payment: &Permit2Payment) -> Result<pay::Refusal, Error> {
    use pay::{Reason, Refusal};
    let usdc = cx.chain.usdc(cx.birth.token);
    let (payer, wanted) = (Address::from(payment.payer), U256::from(payment.amount.0));
    let balance = usdc.balance(payer).await?;
    if balance < wanted {
        let message = format!("{payer} holds {balance} micro-USDC, the permission is for {}", payment.amount);
        return Ok(Refusal::new(Reason::InsufficientFunds, message));
    }
    if payment.permit.is_none() && usdc.allowance(payer, PERMIT2).await? < wanted {
        return Ok(Refusal::new(Reason::Permit2Allowance, format!("{payer} has not allowed Permit2 to spend this")));
    }
    Ok(Refusal::new(
        Reason::InvalidTransactionState,
        format!("the settlement of {} would fail", Usdc(payment.amount.0)),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `pay` names the contracts to call, `chain` those whose events tell of payments.
    #[test]
    fn both_crates_mean_the_same_contracts() {
        assert_eq!(chain::bindings::X402_PROXIES, [EXACT_PROXY, UPTO_PROXY]);
    }
}
