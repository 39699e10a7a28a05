//! The connection to one chain endpoint: heads, reads at one block, plain requests with a deadline.

use alloy::{
    eips::BlockId,
    primitives::{Address, B256, Bytes, U256},
    rpc::{
        client::RpcClient,
        json_rpc::{RpcRecv, RpcSend},
        types::{Block, TransactionReceipt, TransactionRequest},
    },
    sol_types::SolCall,
    transports::{
        BoxTransport, RpcError, TransportError,
        http::{Http, HyperClient},
    },
};
use std::{fmt, future::Future, sync::Arc, time::Duration};

use crate::{
    bindings::Addresses,
    error::{Error, Kind},
    outbox::SendError,
};

/// Longest time one request may take. A guess: a node on loopback answers in milliseconds, a public one in under
/// a second, and the shortest fence of a scaled world is 8 s.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// Requests that travel in one HTTP body. Public endpoints refuse batches over 100.
const BATCH_MAX: usize = 64;
/// Times that a view which fails in its arithmetic is asked again, and the pause before: an endpoint may answer from the
/// state of one block and the clock of the one before while a block is made (seen of anvil 1.x; no view of ours fails so).
const TORN_MAX: u32 = 3;
const TORN_PAUSE: Duration = Duration::from_millis(50);

/// One endpoint of one chain. Cheap to clone; all clones share the connections.
#[derive(Clone)]
pub struct Chain {
    client: RpcClient,
    chain_id: u64,
    url: Arc<str>,
}

/// A block's header, as far as the project needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Height.
    pub number: u64,
    /// The block's own hash.
    pub hash: B256,
    /// The hash of the block before.
    pub parent: B256,
    /// Chain time, seconds. The protocol's only clock.
    pub timestamp: u64,
    /// Wei per gas that this block burnt; the next one's differs by at most 1/8.
    pub base_fee: u128,
}

impl Head {
    fn of(block: &Block) -> Self {
        let header = &block.header;
        Self {
            number: header.number,
            hash: header.hash,
            parent: header.parent_hash,
            timestamp: header.timestamp,
            base_fee: header.base_fee_per_gas.map_or(0, u128::from),
        }
    }
}

impl fmt::Debug for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Chain").field("url", &self.url).field("chain_id", &self.chain_id).finish()
    }
}

impl Chain {
    /// Prepares to speak to the endpoint at `rpc_url` (`http://` or `https://`). Nothing is sent yet: [`Chain::verify_chain`]
    /// tells whether it is there and is the right one.
    ///
    /// # Errors
    /// `Usage` when the URL cannot be read.
    pub fn connect(rpc_url: &str, chain_id: u64) -> Result<Self, Error> {
        if !rpc_url.parse().is_ok_and(|uri| net::is_http(&uri)) {
            return Err(Error::usage(format!("the RPC address {rpc_url:?} must begin with http:// or https://")));
        }
        let url = rpc_url.parse().map_err(|e| Error::usage(format!("the RPC address {rpc_url:?} is no URL: {e}")))?;
        // Not alloy's own pool: that one reads all of the system's certificates at each `connect`.
        let transport = Http::with_client(HyperClient::with_service(net::pool()), url);
        Ok(Self::over(BoxTransport::new(transport), rpc_url, chain_id))
    }

    /// The same over any transport, for a simulated network. `name` is what errors call the endpoint.
    pub fn over(transport: BoxTransport, name: &str, chain_id: u64) -> Self {
        // Not "local": alloy would then poll with another interval; this crate never lets alloy poll.
        Self { client: RpcClient::new(transport, false), chain_id, url: name.into() }
    }

    /// The chain id this connection was made for.
    pub fn chain_id(&self) -> u64 {
        self.chain_id
    }

    /// The endpoint's address.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Any JSON-RPC request, with the deadline.
    ///
    /// # Errors
    /// `Rpc` when the endpoint does not answer in time or answers nonsense, `Reverted` when it speaks for a contract.
    pub async fn request<P: RpcSend, R: RpcRecv>(&self, method: &'static str, params: P) -> Result<R, Error> {
        self.bounded(method, self.client.request(method, params)).await
    }

    async fn bounded<T>(
        &self,
        what: &str,
        answer: impl Future<Output = Result<T, TransportError>>,
    ) -> Result<T, Error> {
        match tokio::time::timeout(REQUEST_TIMEOUT, answer).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(Error::of_transport(what, error)),
            Err(_) => Err(Error::rpc(format!("{what}: no answer from {} in {REQUEST_TIMEOUT:?}", self.url))),
        }
    }

    /// Refuses an endpoint that serves another chain.
    ///
    /// # Errors
    /// `WrongChain`, or `Rpc`.
    pub async fn verify_chain(&self) -> Result<(), Error> {
        let id: U256 = self.request("eth_chainId", ()).await?;
        if id == U256::from(self.chain_id) {
            return Ok(());
        }
        Err(Error::wrong_chain(format!("{} serves chain {id}, but chain {} is configured", self.url, self.chain_id)))
    }

    /// Refuses an endpoint or addresses that are not what they are taken for: chain id, code at each address, the
    /// token's six decimals, and that the market's token is this token.
    ///
    /// # Errors
    /// `WrongChain`, `Missing` naming the contract, or `Rpc`.
    pub async fn verify_contracts(&self, addresses: &Addresses) -> Result<(), Error> {
        self.verify_chain().await?;
        let Addresses { usdc, market, factory } = *addresses;
        self.verify_token(usdc).await?;
        self.verify_market(market, usdc).await?;
        self.verify_factory(factory).await
    }

    /// Refuses an address without code.
    ///
    /// # Errors
    /// `Missing` naming the contract, or `Rpc`.
    pub async fn verify_code(&self, name: &str, address: Address) -> Result<(), Error> {
        let code: Bytes = self.request("eth_getCode", (address, BlockId::latest())).await?;
        if code.is_empty() {
            return Err(Error::missing(format!("no {name} at {address} on chain {}", self.chain_id)));
        }
        Ok(())
    }

    /// The newest block.
    ///
    /// # Errors
    /// `Rpc`.
    pub async fn head(&self) -> Result<Head, Error> {
        let block: Option<Block> = self.request("eth_getBlockByNumber", ("latest", false)).await?;
        block.as_ref().map(Head::of).ok_or_else(|| Error::rpc(format!("{} has no latest block", self.url)))
    }

    /// The block with this hash, if the endpoint has it.
    ///
    /// # Errors
    /// `Rpc`.
    pub async fn block(&self, hash: B256) -> Result<Option<Head>, Error> {
        let block: Option<Block> = self.request("eth_getBlockByHash", (hash, false)).await?;
        Ok(block.as_ref().map(Head::of))
    }

    /// The block at this height on the endpoint's present chain.
    ///
    /// # Errors
    /// `Rpc`.
    pub async fn block_at(&self, number: u64) -> Result<Option<Head>, Error> {
        let block: Option<Block> = self.request("eth_getBlockByNumber", (format!("{number:#x}"), false)).await?;
        Ok(block.as_ref().map(Head::of))
    }

    /// An account's ETH, in wei, at `at`.
    ///
    /// # Errors
    /// `Rpc`.
    pub async fn eth_balance(&self, account: Address, at: BlockId) -> Result<U256, Error> {
        self.request("eth_getBalance", (account, at)).await
    }

    /// How many transactions of `account` the chain has mined at `at`: its next nonce.
    ///
    /// # Errors
    /// `Rpc`.
    pub async fn nonce(&self, account: Address, at: BlockId) -> Result<u64, Error> {
        let nonce: U256 = self.request("eth_getTransactionCount", (account, at)).await?;
        nonce.try_into().map_err(|_| Error::rpc(format!("eth_getTransactionCount: impossible nonce {nonce}")))
    }

    /// The receipt of a mined transaction; `None` while it is not part of the endpoint's chain.
    ///
    /// # Errors
    /// `Rpc`.
    pub async fn receipt(&self, hash: B256) -> Result<Option<TransactionReceipt>, Error> {
        self.request("eth_getTransactionReceipt", (hash,)).await
    }

    /// Sends a signed transaction, and sorts the refusals by what the outbox does next. That the endpoint already
    /// has it is success.
    ///
    /// # Errors
    /// See [`SendError`]; the words are geth's, which the other nodes follow.
    pub async fn send_raw(&self, raw: Bytes) -> Result<(), SendError> {
        let request = self.client.request::<_, B256>("eth_sendRawTransaction", (raw,));
        let error = match tokio::time::timeout(REQUEST_TIMEOUT, request).await {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(RpcError::ErrorResp(error))) => error,
            Ok(Err(_)) | Err(_) => return Err(SendError::Transport),
        };
        let words = error.message.to_lowercase();
        let says = |any: &[&str]| any.iter().any(|part| words.contains(part));
        if says(&["already known", "already imported", "known transaction"]) {
            return Ok(());
        }
        Err(if says(&["nonce too low"]) {
            SendError::NonceTooLow
        } else if says(&["replacement transaction underpriced"]) {
            SendError::ReplacementUnderpriced
        } else if says(&["base fee", "underpriced"]) {
            SendError::FeeTooLow
        } else if says(&["insufficient funds"]) {
            SendError::InsufficientFunds
        } else if says(&["pool is full", "rate limit", "too many requests"]) {
            SendError::Transport
        } else {
            SendError::Refused(error.message.to_string())
        })
    }

    /// One typed read of a contract at a block.
    ///
    /// # Errors
    /// `Reverted`, `Rpc`, or `Missing` when what came back is not what the ABI says.
    pub async fn read<C: SolCall>(&self, to: Address, call: C, at: BlockId) -> Result<C::Return, Error> {
        let what = short_name(C::SIGNATURE);
        let request = TransactionRequest::default().to(to).input(Bytes::from(call.abi_encode()).into());
        let mut torn = 0;
        loop {
            let asked = self.client.request::<_, Bytes>("eth_call", (request.clone(), at));
            match self.bounded(what, asked).await {
                Err(e) if torn < TORN_MAX && matches!(&e.kind, Kind::Reverted(revert) if revert.name == "Panic") => {
                    torn += 1;
                    tokio::time::sleep(TORN_PAUSE).await;
                }
                answer => return decode::<C>(to, &answer?),
            }
        }
    }

    /// Many reads at one block, in order; one request for each 64. Errors are per call, because one reverting view
    /// must not hide the others.
    ///
    /// # Errors
    /// `Rpc` when the endpoint fails as a whole.
    pub async fn read_many<C: SolCall>(
        &self,
        calls: impl IntoIterator<Item = (Address, C)>,
        at: BlockId,
    ) -> Result<Vec<Result<C::Return, Error>>, Error> {
        let calls: Vec<(Address, C)> = calls.into_iter().collect();
        let params: Vec<_> = calls
            .iter()
            .map(|(to, call)| (TransactionRequest::default().to(*to).input(Bytes::from(call.abi_encode()).into()), at))
            .collect();
        let answers: Vec<Result<Bytes, Error>> = self.request_many("eth_call", params).await?;
        Ok(calls.iter().zip(answers).map(|((to, _), answer)| decode::<C>(*to, &answer?)).collect())
    }

    /// The same method with many parameter sets, answered in order, batched over HTTP.
    ///
    /// # Errors
    /// `Rpc` when the endpoint fails as a whole; the inner results are per request.
    pub async fn request_many<P: RpcSend, R: RpcRecv>(
        &self,
        method: &'static str,
        params: Vec<P>,
    ) -> Result<Vec<Result<R, Error>>, Error> {
        let mut answers = Vec::with_capacity(params.len());
        for chunk in params.chunks(BATCH_MAX) {
            let mut batch = self.client.new_batch();
            let mut waiters = Vec::with_capacity(chunk.len());
            for one in chunk {
                waiters.push(batch.add_call(method, one).map_err(|e| Error::of_transport(method, e))?);
            }
            self.bounded(method, batch.send()).await?;
            for waiter in waiters {
                answers.push(self.bounded(method, waiter).await);
            }
        }
        Ok(answers)
    }
}

fn decode<C: SolCall>(to: Address, data: &Bytes) -> Result<C::Return, Error> {
    C::abi_decode_returns(data).map_err(|e| {
        let what = short_name(C::SIGNATURE);
        Error::missing(format!("{what}: the contract at {to} does not answer as its ABI says")).with_source(e)
    })
}

/// A view that reverts or answers nonsense means that another contract lives there.
pub(crate) fn foreign<T>(name: &str, address: Address, answer: Result<T, Error>) -> Result<T, Error> {
    answer.map_err(|e| if e.is_transient() { e } else { Error::missing(format!("no {name} at {address}: {e}")) })
}

/// `heartbeat` of `heartbeat(bytes32,bytes32,bool)`.
fn short_name(signature: &'static str) -> &'static str {
    signature.split_once('(').map_or(signature, |(name, _)| name)
}
