//! From a checked payment to its end on chain: simulate, put together, send, and ask what became of it.

use super::books::Books;
use alloy::eips::BlockId;
use alloy::primitives::{Address, B256, Bytes, U256};
use alloy::rpc::types::{Filter, Log, TransactionRequest};
use alloy::sol_types::SolEvent;
use chain::{Chain, Outcome, SenderHandle, Tx};
use net::chain_of;
use node::batches::{Batches, Ether};
use node::permit2::{self, Sought, Spent};
use pay::facilitator::account::{Means, Settlement};
use pay::facilitator::api::Job;
use pay::facilitator::batch::{BatchPolicy, GasPrice};
use pay::facilitator::multicall::{self, Call, MULTICALL3};
use pay::scheme::exact::Hash;
use pay::scheme::exact::facilitator::{self as exact, Expected};
use pay::scheme::permit2::PERMIT2;
use pay::scheme::signature::{self, NotTaken};
use pay::scheme::upto::{EXACT_PROXY, UPTO_PROXY};
use pay::{Reason, Refusal, Usdc};
use std::sync::Arc;

/// Gas that one settlement may take, a contract's signature and its making included.
const GAS_MAX: u64 = 1_200_000;
/// Blocks below the height at which a payment was checked in which it is looked for, too: after a reorganisation its
/// transaction may stand lower than it was sent. A guess; a nonce is used once, so that more would only take longer.
const REORGANISED_MAX: u64 = 64;

mod abi {
    alloy::sol! {
        event AuthorizationUsed(address indexed authorizer, bytes32 indexed nonce);
        event AuthorizationCanceled(address indexed authorizer, bytes32 indexed nonce);
        event Transfer(address indexed from, address indexed to, uint256 value);
        function nonceBitmap(address owner, uint256 word) external view returns (uint256);
    }
}

/// How a settlement ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    Paid(Hash),
    Unpaid(Refusal),
    /// Nobody knows yet; it was sent as this, if at all.
    Unknown(Option<Hash>),
}

/// What will be sent for a job, and what it costs.
#[derive(Debug, Clone)]
pub struct Plan {
    pub call: Call,
    pub gas: u64,
}

/// Where settlements go.
#[derive(Clone)]
pub struct Settler {
    chain: Chain,
    sender: SenderHandle,
    factories: Arc<[Address]>,
    batches: Batches,
    books: Books,
}

impl Settler {
    pub fn start(
        chain: Chain,
        sender: SenderHandle,
        factories: Vec<Address>,
        ether: Usdc,
        policy: BatchPolicy,
        books: Books,
    ) -> Self {
        let batches = Batches::start(chain.clone(), sender.clone(), Ether::Said(ether), policy);
        Self { chain, sender, factories: factories.into(), batches, books }
    }

    /// Wei a unit of gas now, with the price of an ether beside it.
    ///
    /// # Errors
    /// `Rpc`.
    pub async fn gas_price(&self) -> Result<GasPrice, chain::Error> {
        self.batches.gas_price().await
    }

    /// Simulates the real transaction: whether it would go through now, and its gas.
    ///
    /// # Errors
    /// The refusal by the scheme's own name.
    pub async fn plan(&self, job: &Job) -> Result<Plan, Refusal> {
        let call = if job.is_signed_by_key { job.call.clone() } else { self.for_contract(job).await? };
        let tx = TransactionRequest::default()
            .from(self.sender.address())
            .to(call.to)
            .gas_limit(GAS_MAX)
            .input(call.data.clone().into());
        let gas: Result<U256, chain::Error> = self.chain.request("eth_estimateGas", (tx,)).await;
        match gas {
            Ok(gas) => Ok(Plan { call, gas: gas.saturating_to() }),
            Err(e) if matches!(e.kind, chain::Kind::Reverted(_)) => Err(Refusal::new(job.fails, chain_of(&e))),
            Err(e) => Err(away(&e)),
        }
    }

    async fn for_contract(&self, job: &Job) -> Result<Call, Refusal> {
        let code: Bytes = self
            .chain
            .request("eth_getCode", (job.payer(), BlockId::latest()))
            .await
            .map_err(|e: chain::Error| away(&e))?;
        let first = signature::first(&job.signature, !code.is_empty(), &self.factories);
        Ok(match first.map_err(|why| why.refusal(job.wrong, Reason::FactoryNotAllowed))? {
            None => job.call.clone(),
            // A call to a contract that is not there would go through, and pay nothing.
            Some(_) if !self.batches.has_multicall().await.map_err(|e| away(&e))? => {
                return Err(NotTaken::NoContract.refusal(job.wrong, Reason::FactoryNotAllowed));
            }
            Some(made) => {
                let making = Call { to: made.factory, data: made.calldata };
                Call { to: MULTICALL3, data: multicall::all(vec![making, job.call.clone()]) }
            }
        })
    }

    /// Sends it, alone or with others, and waits for its end.
    pub async fn settle(&self, job: &Job, plan: Plan) -> End {
        if !job.may_be_batched() {
            let gas = plan.gas + plan.gas / 3;
            let sent = self.sender.submit(Tx::call(plan.call.to, plan.call.data, "settle").with_gas(gas)).await;
            return self.ended(job, &sent).await;
        }
        let sent = self.batches.send(job.call.clone(), job.settlement.amount).await;
        self.ended(job, &sent).await
    }

    /// What became of a job whose transaction ended so.
    async fn ended(&self, job: &Job, sent: &Outcome) -> End {
        let settlement = &job.settlement;
        let told = match sent {
            Outcome::Done { tx_hash, .. } if settlement.means != Means::Eip3009 => return End::Paid(tx_hash.0),
            Outcome::Unknown { txs } => return End::Unknown(txs.last().map(|tx| tx.0)),
            // A batch goes through although a row of it failed: its own receipt tells, and where that has nothing of this
            // row, the chain.
            Outcome::Done { tx_hash, .. } => match self.used_in(settlement, *tx_hash).await {
                Ok(Some(end)) => Ok(end),
                Ok(None) => self.look(settlement).await,
                Err(e) => Err(e),
            },
            Outcome::Reverted { .. } | Outcome::NeverSent { .. } => self.look(settlement).await,
        };
        match told {
            Ok(End::Unknown(None)) => {
                let message = format!("the settlement did not go through: {sent:?}");
                End::Unpaid(Refusal::new(Reason::InvalidTransactionState, message))
            }
            Ok(end) => end,
            Err(e) => {
                tracing::warn!(error = %chain_of(&e), "the chain does not say what became of a settlement");
                End::Unknown(None)
            }
        }
    }

    /// What the chain says of a settlement. `Unknown`: it can still happen, or was sent as this and cannot be read yet.
    ///
    /// # Errors
    /// `Rpc`.
    pub async fn look(&self, settlement: &Settlement) -> Result<End, chain::Error> {
        match settlement.means {
            Means::Permit2 => self.look_at_permit2(settlement, EXACT_PROXY).await,
            Means::Upto => self.look_at_permit2(settlement, UPTO_PROXY).await,
            Means::Eip3009 => self.look_at_eip3009(settlement).await,
        }
    }

    async fn look_at_eip3009(&self, settlement: &Settlement) -> Result<End, chain::Error> {
        let (payer, nonce) = (Address::from(settlement.payer), B256::from(settlement.nonce));
        if !self.chain.usdc(settlement.token.into()).authorization_state(payer, nonce).await? {
            return self.unless_expired(settlement.valid_before).await;
        }
        let Some(tx) = self.using(settlement).await? else { return Ok(End::Unknown(None)) };
        Ok(self.used_in(settlement, tx).await?.unwrap_or(End::Unknown(Some(tx.0))))
    }

    /// The transaction that used or cancelled an authorisation, since it was checked.
    async fn using(&self, settlement: &Settlement) -> Result<Option<B256>, chain::Error> {
        let about = Filter::new()
            .address(Address::from(settlement.token))
            .event_signature(vec![abi::AuthorizationUsed::SIGNATURE_HASH, abi::AuthorizationCanceled::SIGNATURE_HASH])
            .topic1(Address::from(settlement.payer).into_word())
            .topic2(B256::from(settlement.nonce));
        let newest = self.chain.head().await?.number;
        for blocks in permit2::pieces(settlement.since_block.saturating_sub(REORGANISED_MAX), newest) {
            let filter = about.clone().from_block(*blocks.start()).to_block(*blocks.end());
            let used: Vec<Log> = self.chain.request("eth_getLogs", (filter,)).await?;
            if let Some(tx) = used.first().and_then(|log| log.transaction_hash) {
                return Ok(Some(tx));
            }
        }
        Ok(None)
    }

    /// What the authorisation was used for in this transaction; `None`: for nothing there.
    async fn used_in(&self, settlement: &Settlement, tx: B256) -> Result<Option<End>, chain::Error> {
        let Some(receipt) = self.chain.receipt(tx).await? else { return Ok(Some(End::Unknown(Some(tx.0)))) };
        let logs: Vec<exact::Log> = receipt.inner.logs().iter().filter_map(of_token).collect();
        let expected = Expected {
            token: settlement.token,
            payer: settlement.payer,
            pay_to: settlement.pay_to,
            nonce: settlement.nonce,
            value: settlement.amount,
        };
        Ok(match exact::classify(&expected, &logs) {
            exact::Outcome::Paid => Some(End::Paid(tx.0)),
            exact::Outcome::Unpaid => Some(unpaid("its nonce was cancelled, or used for something else")),
            exact::Outcome::Unknown => None,
        })
    }

    /// A nonce that is spent has paid only if the transfer is found: its payer can take it back at any time.
    async fn look_at_permit2(&self, settlement: &Settlement, proxy: Address) -> Result<End, chain::Error> {
        let nonce = U256::from_be_bytes(settlement.nonce);
        let call = abi::nonceBitmapCall { owner: settlement.payer.into(), word: nonce >> 8 };
        let bitmap = self.chain.read(PERMIT2, call, BlockId::latest()).await?;
        if !bitmap.bit((nonce & U256::from(0xff)).to()) {
            return self.unless_expired(settlement.valid_before).await;
        }
        let sought = Sought {
            token: settlement.token.into(),
            payer: settlement.payer.into(),
            pay_to: settlement.pay_to.into(),
            nonce: settlement.nonce,
            proxy,
            amount: settlement.amount,
            since_block: settlement.since_block,
        };
        let is_taken = |tx: &B256| self.books.read(|accounts| accounts.has_paid_in(tx));
        Ok(match permit2::find(&self.chain, &sought, is_taken).await? {
            Spent::Here { amount, tx, .. } if amount == U256::from(settlement.amount.micro()) => End::Paid(tx.0),
            Spent::Here { .. } | Spent::Elsewhere => unpaid("its nonce was withdrawn, or used for something else"),
            Spent::Unread(tx) => End::Unknown(Some(tx.0)),
        })
    }

    async fn unless_expired(&self, valid_before: u64) -> Result<End, chain::Error> {
        let head = self.chain.head().await?;
        Ok(if head.timestamp >= valid_before { unpaid("it expired") } else { End::Unknown(None) })
    }
}

fn unpaid(why: &str) -> End {
    End::Unpaid(Refusal::new(Reason::InvalidTransactionState, why))
}

fn of_token(log: &Log) -> Option<exact::Log> {
    let token = log.address().into_array();
    if let Ok(used) = abi::AuthorizationUsed::decode_log(&log.inner) {
        return Some(exact::Log::Used { token, authorizer: used.authorizer.into_array(), nonce: used.nonce.0 });
    }
    if let Ok(gone) = abi::AuthorizationCanceled::decode_log(&log.inner) {
        return Some(exact::Log::Canceled { token, authorizer: gone.authorizer.into_array(), nonce: gone.nonce.0 });
    }
    let moved = abi::Transfer::decode_log(&log.inner).ok()?;
    let value = Usdc(moved.value.saturating_to());
    Some(exact::Log::Transfer { token, from: moved.from.into_array(), to: moved.to.into_array(), value })
}

fn away(error: &chain::Error) -> Refusal {
    tracing::warn!(error = %chain_of(error), "a payment cannot be looked at");
    Refusal::new(Reason::UnexpectedVerifyError, "the chain does not answer")
}
