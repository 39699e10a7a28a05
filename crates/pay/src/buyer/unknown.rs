//! What became of payments of which nobody has said it: a stream that was dropped, an answer that never came.
//!
//! Two are asked. The *chain* knows whether an authorisation was used, and after it has expired unused it never will be.
//! (By Permit2 it knows that a nonce is spent and no more: it counts as paid, at most what was signed.)
//! The *seller* has a receipt of what it took. A voucher has no entry of its own on the chain and never expires; it is
//! settled once the seller has a receipt for it, or when the time in which it would have been answered is over: the
//! next voucher on its channel covers it (`Memory::unknown_on`), and the seller's own count decides what is owed.
//!
//! A seller that lies about a receipt gains nothing: what was signed was counted when it was signed. A chain endpoint
//! that lies can make the buyer pay for a question again, within its limits: it is the caller's own endpoint.

use super::record::{Signed, Standing};
use super::{Buyer, Hash, authority};
use crate::receipt::SignedReceipt;
use crate::scheme::exact::EXACT;
use crate::scheme::permit2::{self, PERMIT2};
use crate::scheme::upto::UPTO;
use crate::wire::{self, PaymentPayload};
use crate::{RequestId, TransferMethod, Usdc};
use alloy::primitives::{Address, B256, Bytes, U256};
use alloy::sol_types::{SolCall, SolEvent};
use http::{HeaderMap, Method, StatusCode, header};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// Chain seconds after its expiry from which an unused authorisation counts as dead: a reorg may take back the blocks in
/// which it still was alive. A guess, unmeasured.
pub(super) const EXPIRED_SECS: u64 = 60;
/// After this a voucher whose answer never came is answered by the next one's. As long as an offer stands.
const VOUCHER_SECS: u64 = 300;
/// One look at all of them takes no longer than this.
const LOOK_WITHIN: Duration = Duration::from_secs(10);
/// One question to a seller.
const RECEIPT_WITHIN: Duration = Duration::from_secs(3);
/// Requests in one HTTP body: public endpoints refuse more than 100.
pub(super) const BATCH_MAX: usize = 50;
/// Blocks are at least this far apart on the chains that are known: how far back logs are looked for.
pub(super) const BLOCK_SECS_MIN: u64 = 1;
/// Redirects followed to a receipt.
const HOPS_MAX: usize = 2;

alloy::sol! {
    event AuthorizationUsed(address indexed authorizer, bytes32 indexed nonce);
    event AuthorizationCanceled(address indexed authorizer, bytes32 indexed nonce);
    event Transfer(address indexed from, address indexed to, uint256 value);
    function authorizationState(address authorizer, bytes32 nonce) external view returns (bool used);
    function nonceBitmap(address owner, uint256 word) external view returns (uint256 bits);
}

/// What became of one payment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It was taken. The same call asks for its answer and pays nothing.
    Paid,
    /// It was not taken and never will be.
    Unpaid,
    /// Nobody says.
    Unknown,
}

/// What became of all that were unknown.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Fates {
    pub paid: usize,
    pub unpaid: usize,
    pub unknown: usize,
}

/// The signed parts that a question needs.
pub(super) struct Authorization {
    method: TransferMethod,
    pub token: Address,
    payer: Address,
    pub pay_to: Address,
    pub value: Usdc,
    /// Exclusive.
    pub valid_before: u64,
    pub nonce: B256,
}

impl Authorization {
    /// Of a payment on `network` that has a nonce of its own.
    pub fn of(signed: &Signed, network: &str) -> Option<Self> {
        let payment = PaymentPayload::from_header(&signed.header).ok()?;
        let accepted = |name: &str| payment.accepted.get(name).and_then(Value::as_str);
        if !accepted("scheme").is_some_and(|scheme| [EXACT, UPTO].contains(&scheme))
            || accepted("network") != Some(network)
        {
            return None;
        }
        if let Some(fields) = payment.payload.get("permit2Authorization") {
            let text = |path: &str| fields.pointer(path).and_then(Value::as_str);
            return Some(Self {
                method: TransferMethod::Permit2,
                token: wire::address(accepted("asset")?).ok()?,
                payer: wire::address(text("/from")?).ok()?,
                pay_to: wire::address(text("/witness/to")?).ok()?,
                value: wire::amount(text("/permitted/amount")?).ok()?,
                // Permit2's deadline is inclusive.
                valid_before: text("/deadline")?.parse::<u64>().ok()?.checked_add(1)?,
                nonce: permit2::nonce(text("/nonce")?).ok()?.into(),
            });
        }
        let text = |name: &str| payment.payload.pointer(&format!("/authorization/{name}")).and_then(Value::as_str);
        Some(Self {
            method: TransferMethod::Eip3009,
            token: wire::address(accepted("asset")?).ok()?,
            payer: wire::address(text("from")?).ok()?,
            pay_to: wire::address(text("to")?).ok()?,
            value: wire::amount(text("value")?).ok()?,
            valid_before: text("validBefore")?.parse().ok()?,
            nonce: text("nonce")?.parse().ok()?,
        })
    }

    /// The question whether it was used: whom to ask it, and what.
    fn question(&self) -> (Address, Vec<u8>) {
        match self.method {
            TransferMethod::Eip3009 => {
                (self.token, authorizationStateCall { authorizer: self.payer, nonce: self.nonce }.abi_encode())
            }
            TransferMethod::Permit2 => permit2_question(self.payer, &self.nonce.0),
        }
    }

    /// What the answer to it says.
    fn is_used(&self, answer: &[u8]) -> Option<bool> {
        match self.method {
            TransferMethod::Eip3009 => authorizationStateCall::abi_decode_returns(answer).ok(),
            TransferMethod::Permit2 => is_permit2_spent(&self.nonce.0, answer),
        }
    }

    fn request(&self) -> RequestId {
        RequestId::of_payment(self.method, &self.payer.into_array(), &self.nonce.0)
    }
}

impl Buyer {
    /// Asks this endpoint of the policy's chain (plain HTTP JSON-RPC) about payments that are unknown.
    pub fn with_chain(mut self, rpc_url: &str) -> Self {
        self.chain = Some(rpc_url.into());
        self
    }

    /// Finds out what became of payments that are out and that nobody waits for, in at most ten seconds.
    pub async fn ask_about_unknown(&self) -> Fates {
        let asked: Vec<(Hash, Signed)> = {
            let known = self.known();
            let out = known
                .memory
                .unresolved
                .iter()
                .filter(|(key, signed)| signed.standing == Standing::Unknown && !known.on_wire.contains_key(*key));
            out.map(|(key, signed)| (*key, signed.clone())).collect()
        };
        let found = self.fates(&asked).await;
        let mut fates = Fates::default();
        for fate in &found {
            match fate {
                Fate::Paid => fates.paid += 1,
                Fate::Unpaid => fates.unpaid += 1,
                Fate::Unknown => fates.unknown += 1,
            }
        }
        let keys: Vec<(Hash, Fate)> = asked.iter().zip(found).map(|((key, _), fate)| (*key, fate)).collect();
        self.believe(&keys);
        fates
    }

    /// Finds out what became of the payment for this very call; `None` if none is out.
    pub async fn ask_about(&self, url: &str, body: &[u8]) -> Option<Fate> {
        let key = self.key(&super::parse(url, url).ok()?, body);
        let signed = self.known().memory.unresolved.get(&key).cloned()?;
        let fate = match signed.standing {
            Standing::Settled => Fate::Paid,
            Standing::Unknown => self.fates(&[(key, signed)]).await[0],
        };
        self.believe(&[(key, fate)]);
        Some(fate)
    }

    fn believe(&self, found: &[(Hash, Fate)]) {
        if found.iter().all(|(_, fate)| *fate == Fate::Unknown) {
            return;
        }
        self.change(|memory| {
            for (key, fate) in found {
                match fate {
                    Fate::Unpaid => drop(memory.unresolved.remove(key)),
                    Fate::Paid => {
                        if let Some(signed) = memory.unresolved.get_mut(key) {
                            signed.standing = Standing::Settled;
                        }
                    }
                    Fate::Unknown => {}
                }
            }
        });
    }

    async fn fates(&self, asked: &[(Hash, Signed)]) -> Vec<Fate> {
        let until = Instant::now() + LOOK_WITHIN;
        let mut fates = vec![Fate::Unknown; asked.len()];
        let authorizations: Vec<(usize, Authorization)> = asked
            .iter()
            .enumerate()
            .filter_map(|(at, (_, signed))| Some((at, Authorization::of(signed, &self.policy.network)?)))
            .collect();
        if let Some(chain) = self.chain.as_deref() {
            for some in authorizations.chunks(BATCH_MAX) {
                let by_chain = timeout_at(until, self.by_chain(chain, asked, some)).await;
                for ((at, _), fate) in some.iter().zip(by_chain.ok().flatten().unwrap_or_default()) {
                    fates[*at] = fate;
                }
            }
        }
        // A seller that does not answer is asked once.
        let mut silent = BTreeSet::new();
        for (at, authorization) in &authorizations {
            let host = authority(&asked[*at].1.url);
            if fates[*at] != Fate::Unknown || silent.contains(&host) {
                continue;
            }
            let url = format!("http://{host}/receipts/{}", authorization.request());
            match timeout_at(until, self.receipt(&url)).await {
                Ok(Ok(Some(receipt))) if is_for(&receipt, authorization) => fates[*at] = Fate::Paid,
                Ok(Ok(_)) => {}
                Ok(Err(_)) | Err(_) => drop(silent.insert(host)),
            }
        }
        let now = (self.clock)();
        for ((_, signed), fate) in asked.iter().zip(&mut fates) {
            if signed.on_channel.is_some() && now > signed.at.saturating_add(VOUCHER_SECS) {
                *fate = Fate::Paid;
            }
        }
        fates
    }

    /// `None`: the endpoint does not answer, or not what it should.
    async fn by_chain(
        &self,
        chain: &str,
        asked: &[(Hash, Signed)],
        some: &[(usize, Authorization)],
    ) -> Option<Vec<Fate>> {
        let mut calls = vec![("eth_getBlockByNumber", json!(["latest", false]))];
        calls.extend(some.iter().map(|(_, a)| {
            let (to, data) = a.question();
            ("eth_call", json!([{ "to": to, "data": Bytes::from(data) }, "latest"]))
        }));
        let answers = self.rpc(chain, &calls).await?;
        let quantity = |name: &str| answers[0].get(name).and_then(Value::as_str).and_then(number);
        let (height, now) = (quantity("number")?, quantity("timestamp")?);
        let mut fates = Vec::with_capacity(some.len());
        for ((at, authorization), answer) in some.iter().zip(&answers[1..]) {
            let used = answer.as_str().and_then(|text| text.parse::<Bytes>().ok());
            let used = used.and_then(|bytes| authorization.is_used(&bytes));
            fates.push(match used {
                Some(true) if authorization.method == TransferMethod::Permit2 => Fate::Paid,
                Some(true) => {
                    let age = now.saturating_sub(asked[*at].1.at).saturating_add(VOUCHER_SECS) / BLOCK_SECS_MIN;
                    self.how_used(chain, authorization, height.saturating_sub(age)).await
                }
                // Read after the block whose time this is: it will never be used.
                Some(false) if now > authorization.valid_before.saturating_add(EXPIRED_SECS) => Fate::Unpaid,
                Some(false) | None => Fate::Unknown,
            });
        }
        Some(fates)
    }

    /// Used with the matching transfer in the same receipt is paid; cancelled is not.
    async fn how_used(&self, chain: &str, authorization: &Authorization, from_block: u64) -> Fate {
        let Authorization { token, payer, pay_to, value, nonce, .. } = authorization;
        let either = [AuthorizationUsed::SIGNATURE_HASH, AuthorizationCanceled::SIGNATURE_HASH];
        let filter = json!({
            "address": token, "fromBlock": format!("{from_block:#x}"), "topics": [either, payer.into_word(), nonce],
        });
        let Some(logs) = self.rpc(chain, &[("eth_getLogs", json!([filter]))]).await else { return Fate::Unknown };
        let Some(log) = logs[0].as_array().and_then(|logs| logs.first()) else { return Fate::Unknown };
        if has_topics(log, &[AuthorizationCanceled::SIGNATURE_HASH]) {
            return Fate::Unpaid;
        }
        let receipt = self.rpc(chain, &[("eth_getTransactionReceipt", json!([log["transactionHash"]]))]).await;
        let logs = receipt.as_ref().and_then(|receipt| receipt[0].get("logs")?.as_array());
        let is_transfer = |log: &Value| {
            let of_token = log["address"].as_str().and_then(|text| text.parse::<Address>().ok()) == Some(*token);
            let amount = log["data"].as_str().and_then(|text| text.parse::<U256>().ok());
            of_token
                && has_topics(log, &[Transfer::SIGNATURE_HASH, payer.into_word(), pay_to.into_word()])
                && amount == Some(U256::from(value.micro()))
        };
        if logs.is_some_and(|logs| logs.iter().any(is_transfer)) { Fate::Paid } else { Fate::Unknown }
    }

    /// Several requests in one body, answered in order. `None` if any of them is not.
    pub(super) async fn rpc(&self, chain: &str, calls: &[(&str, Value)]) -> Option<Vec<Value>> {
        let batch: Vec<Value> = calls
            .iter()
            .enumerate()
            .map(|(id, (method, params))| json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params }))
            .collect();
        let answers: Vec<Value> = self.client.call_json(chain, &batch).await.ok()?;
        (0..calls.len()).map(|id| answers.iter().find(|a| a["id"] == id)?.get("result").cloned()).collect()
    }

    /// The receipt at this address or where it redirects to; `None` if the seller says that it has none.
    async fn receipt(&self, url: &str) -> Result<Option<SignedReceipt>, net::Error> {
        let client = self.client.with_deadline(RECEIPT_WITHIN);
        let mut url = url.to_owned();
        for _ in 0..=HOPS_MAX {
            let answer = client.send(Method::GET, &url, HeaderMap::new(), bytes::Bytes::new()).await?;
            match answer.status {
                StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT => {
                    match answer.header(&header::LOCATION) {
                        Some(location) => url = location.to_owned(),
                        None => return Ok(None),
                    }
                }
                StatusCode::OK => {
                    let text = answer.bytes(64 << 10).await?;
                    return Ok(SignedReceipt::from_json(&String::from_utf8_lossy(&text)).ok());
                }
                _ => return Ok(None),
            }
        }
        Ok(None)
    }
}

/// The question whether a nonce of Permit2 is spent: whom to ask it, and what.
pub(super) fn permit2_question(owner: Address, nonce: &Hash) -> (Address, Vec<u8>) {
    let word = U256::from_be_bytes(*nonce) >> 8;
    (PERMIT2, nonceBitmapCall { owner, word }.abi_encode())
}

/// What the answer to it says.
pub(super) fn is_permit2_spent(nonce: &Hash, answer: &[u8]) -> Option<bool> {
    let bits = nonceBitmapCall::abi_decode_returns(answer).ok()?;
    Some(bits.bit(usize::from(nonce[31])))
}

fn is_for(receipt: &SignedReceipt, authorization: &Authorization) -> bool {
    let receipt = &receipt.receipt;
    let name = receipt.paid_by.name();
    (receipt.agent, receipt.payer, name) == (authorization.pay_to, authorization.payer, authorization.nonce.0)
}

pub(super) fn has_topics(log: &Value, wanted: &[B256]) -> bool {
    let topics = log["topics"].as_array().map(Vec::as_slice).unwrap_or_default();
    let is = |(topic, wanted): (&Value, &B256)| topic.as_str().and_then(|t| t.parse::<B256>().ok()) == Some(*wanted);
    topics.len() >= wanted.len() && topics.iter().zip(wanted).all(is)
}

pub(super) fn number(text: &str) -> Option<u64> {
    u64::from_str_radix(text.strip_prefix("0x")?, 16).ok()
}
