//! Puts the contracts on a development chain, from the committed bytecode: no Solidity compiler is needed.

use alloy::{
    consensus::{SignableTransaction, TxEip1559, TxEnvelope},
    eips::{BlockId, Encodable2718},
    primitives::{Address, B256, Bytes, TxKind, U256},
    rpc::types::TransactionRequest,
    signers::{SignerSync, local::PrivateKeySigner},
    sol_types::SolConstructor,
};
use std::time::{Duration, Instant};

use crate::{
    bindings::{Addresses, LeaseMarket, Oversight, TestUSDC, TreasuryFactory},
    error::{Error, Kind},
    rpc::Chain,
};

/// What the lease market's constructor fixes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MarketParams {
    /// Micro-USDC that a provider must have at stake.
    pub stake_min: u128,
    /// Seconds from `rent` to `ready`.
    pub ready_within: u32,
    /// Seconds of rent past the last heartbeat that vouched.
    pub grace: u32,
    /// Seconds of silence after which anyone may expire a lease.
    pub drop_after: u32,
}

/// How long the deployment may wait for its block.
const MINED_TIMEOUT: Duration = Duration::from_secs(60);

/// What puts the contracts there: the code of each creation, in the order that it is sent in, and where the result is.
#[derive(Clone, Debug)]
pub struct Creations {
    /// Name and creation code with its arguments. The deployer sends them with consecutive nonces.
    pub codes: [(&'static str, Bytes); 4],
    /// Where they lie then.
    pub addresses: Addresses,
}

/// Token, market, the treasury's second half and the factory (which brings the first), when the deployer's next nonce is
/// `nonce`: the addresses follow from account and nonce, so nothing waits for anything.
pub fn creations(deployer: Address, nonce: u64, market: MarketParams) -> Creations {
    let [usdc, market_at, oversight, factory] = [0, 1, 2, 3].map(|n| deployer.create(nonce + n));
    let constructor = LeaseMarket::constructorCall {
        token_: usdc,
        minStake_: U256::from(market.stake_min),
        readyWithin_: market.ready_within,
        grace_: market.grace,
        dropAfter_: market.drop_after,
    };
    let half = TreasuryFactory::constructorCall { oversight };
    let codes = [
        ("TestUSDC", TestUSDC::BYTECODE.clone()),
        ("LeaseMarket", [&LeaseMarket::BYTECODE[..], &constructor.abi_encode()].concat().into()),
        ("Oversight", Oversight::BYTECODE.clone()),
        ("TreasuryFactory", [&TreasuryFactory::BYTECODE[..], &half.abi_encode()].concat().into()),
    ];
    Creations { codes, addresses: Addresses { usdc, market: market_at, factory } }
}

/// Deploys the contracts of [`creations`] in one block. The deployer pays the gas and has no rights afterwards.
///
/// # Errors
/// `Usage` when a contract refuses its arguments or the deployer cannot pay, `Unknown` when no block comes, `Rpc`.
pub async fn deploy(chain: &Chain, deployer: &PrivateKeySigner, market: MarketParams) -> Result<Addresses, Error> {
    let from = deployer.address();
    let first = chain.nonce(from, BlockId::pending()).await?;
    let Creations { codes, addresses } = creations(from, first, market);
    let max_fee = chain.head().await?.base_fee * 4 + 1_000_000_000;
    let mut txs = Vec::new();
    for ((name, code), nonce) in codes.into_iter().zip(first..) {
        txs.push((name, send_create(chain, deployer, (name, code), nonce, max_fee).await?));
    }
    for (name, tx) in txs {
        wait_mined(chain, name, tx).await?;
    }
    chain.verify_contracts(&addresses).await?;
    Ok(addresses)
}

async fn send_create(
    chain: &Chain,
    deployer: &PrivateKeySigner,
    (name, code): (&'static str, Bytes),
    nonce: u64,
    max_fee: u128,
) -> Result<B256, Error> {
    let call = TransactionRequest::default().from(deployer.address()).input(code.clone().into());
    let call = TransactionRequest { to: Some(TxKind::Create), ..call };
    let gas: U256 = chain.request("eth_estimateGas", (call, BlockId::pending())).await.map_err(|e| named(name, e))?;
    let gas: u64 = gas.try_into().map_err(|_| Error::rpc(format!("{name}: impossible gas estimate")))?;
    let tx = TxEip1559 {
        chain_id: chain.chain_id(),
        nonce,
        gas_limit: gas.saturating_add(gas / 4),
        max_fee_per_gas: max_fee,
        max_priority_fee_per_gas: 1_000_000,
        to: TxKind::Create,
        value: U256::ZERO,
        access_list: Default::default(),
        input: code,
    };
    let signature = deployer.sign_hash_sync(&tx.signature_hash()).expect("a key in memory signs");
    let signed = TxEnvelope::from(tx.into_signed(signature));
    let sent = chain.send_raw(signed.encoded_2718().into()).await;
    sent.map_err(|why| Error::usage(format!("{name}: the chain does not take its deployment: {why:?}")))?;
    Ok(*signed.tx_hash())
}

async fn wait_mined(chain: &Chain, name: &str, tx: B256) -> Result<(), Error> {
    let started = Instant::now();
    while started.elapsed() < MINED_TIMEOUT {
        match chain.receipt(tx).await? {
            Some(receipt) if receipt.status() => return Ok(()),
            Some(_) => return Err(Error::usage(format!("{name}: its deployment reverted ({tx})"))),
            None => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
    Err(Error::unknown(format!("{name}: its deployment {tx} was not mined in {MINED_TIMEOUT:?}")))
}

fn named(name: &str, error: Error) -> Error {
    match error.kind {
        Kind::Reverted(ref revert) => Error::usage(format!("{name}: its constructor refuses: {}", revert.text)),
        _ => error,
    }
}

/// Sets an account's ETH, in wei. Development chains only.
///
/// # Errors
/// `Rpc`: the endpoint is not a development chain, or does not answer.
pub async fn fund_eth(chain: &Chain, account: Address, wei: u128) -> Result<(), Error> {
    let _: serde_json::Value = chain.request("anvil_setBalance", (account, U256::from(wei))).await?;
    Ok(())
}
