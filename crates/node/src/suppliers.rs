//! What this agent sells and does not make: answers of other agents, bought call by call from its purse.
//!
//! Who is paid, how much at most and for which name is the manifest's, fixed at birth. A customer's text chooses one of
//! those names and nothing else; what a supplier says reaches the customer and no signature. Of a supplier's offers the
//! [`Buyer`] takes `exact` to that treasury, within the limits, and signs as the purse.
//!
//! The customer's payment is sure before the supplier is paid: a voucher is on disk, and every other payment is settled
//! first. A supplier that takes the money and makes no answer costs this agent that one payment, never a second one.

use crate::config::NodeConfig;
use crate::error::{Error, Result};
use crate::manifest::{self, Manifest};
use alloy::primitives::{Address, Bytes};
use alloy::signers::local::PrivateKeySigner;
use alloy::sol_types::SolCall;
use chain::Chain;
use economy::Price;
use http::{HeaderMap, HeaderValue, StatusCode};
use infer::Finish;
use infer::api::{ApiError, ChatCompletionRequest, Usage};
use net::chain_of;
use pay::Usdc;
use pay::buyer::{Buyer, BuyerPolicy, Clock, Kind, Quote, SpendLimits};
use pay::seller::FRESH_ANSWER;
use serde_json::Value;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::OnceCell;

/// What the book keeps as the route of a bought answer: it says on every host and after every crash that none of this
/// agent's models made it.
pub const ROUTE: &str = "BUY /v1/chat/completions";
/// Longest wait for a supplier's price.
const QUOTE_WITHIN: Duration = Duration::from_secs(5);
/// How long a payment whose answer does not come is sent again. A customer whose `exact` waits for it waits as long.
const PATIENCE: Duration = Duration::from_secs(45);
/// A supplier that failed is left alone for so long: each failure may cost a settlement and a refund.
const REST: Duration = Duration::from_secs(30);
const REST_SECS: u32 = 30;

alloy::sol! {
    /// Of the purse: what lies above its cap goes back to the treasury. Anyone may call it.
    function trim() external;
}

/// Everything that can be bought, and the purse that pays. Empty for an agent that buys nothing.
pub struct Suppliers {
    pub purse: Address,
    suppliers: Vec<Arc<Supplier>>,
}

/// Another agent.
pub struct Supplier {
    pub terms: manifest::Supplier,
    /// What one of its answers costs here, without the customer's own gas.
    pub price: Usdc,
    chain: Chain,
    buyer: Buyer,
    day_secs: u64,
    now: Clock,
    /// Whether what hosts before this one bought today is counted. The record of a buyer does not move; what its signatures
    /// paid is on the chain, and what they have not paid by the move they never will.
    is_counted: OnceCell<()>,
    /// Not asked before this.
    rests_until: Mutex<Option<Instant>>,
}

/// An answer to be bought.
#[derive(Clone)]
pub struct Purchase {
    pub supplier: Arc<Supplier>,
    body: Value,
}

/// An answer that was bought.
#[derive(Debug, PartialEq, Eq)]
pub struct Bought {
    pub text: String,
    pub finish: Finish,
    /// As the supplier counts it.
    pub usage: Usage,
}

/// Why a supplier did not deliver, by who is to do something about it.
#[derive(Debug)]
enum Failure {
    /// The customer: no supplier takes this request.
    Request(u16),
    /// Nobody now: a limit of the manifest's is used up.
    Limit(String),
    /// The chain does not answer, so that it is not known what was bought today.
    Chain(String),
    /// The supplier, or the way to it.
    Supplier(String),
}

impl Suppliers {
    #[cfg(test)]
    pub fn none() -> Self {
        Self { purse: Address::ZERO, suppliers: Vec::new() }
    }

    /// Opens what was signed before, so that a restart pays nothing twice. `now`: chain seconds.
    ///
    /// # Errors
    /// `Usage`: birth gave the agent no purse that can pay them, or a record cannot be read.
    pub fn open(
        (config, manifest): (&NodeConfig, &Manifest),
        (purse, cap, token): (Address, u128, Address),
        (chain, http): (&Chain, &net::Client),
        operator: &PrivateKeySigner,
        now: Clock,
    ) -> Result<Self> {
        let dearest = manifest.dearest_supplier_uusdc();
        if dearest == 0 {
            return Ok(Self { purse, suppliers: Vec::new() });
        }
        if purse.is_zero() || cap < dearest {
            return Err(Error::usage(format!(
                "the manifest names suppliers, and the purse that birth gave this agent takes {cap} micro-USDC: not \
                 enough for a call of {dearest}. Such an agent is born with `purse_uusdc_max`"
            )));
        }
        let dir = config.data_dir.join("purchases");
        std::fs::create_dir_all(&dir)
            .map_err(|e| Error::usage(format!("cannot make {}", dir.display())).caused_by(e))?;
        let day_secs = u64::from(manifest.day_secs.max(1));
        let days: Clock = {
            let now = now.clone();
            // The buyer's day has 86,400 seconds, this chain's may be shorter.
            Arc::new(move || (u128::from(now()) * 86_400 / u128::from(day_secs)).try_into().unwrap_or(u64::MAX))
        };
        let mut suppliers = Vec::new();
        for (index, terms) in manifest.suppliers.iter().enumerate() {
            let policy = BuyerPolicy {
                network: format!("eip155:{}", config.chain_id),
                asset: token,
                pay_to: terms.treasury,
                max_per_call: Usdc(terms.max_uusdc_per_call),
                // The day's limit, the purse and the treasury's day bound what a life spends.
                max_total: Usdc::MAX,
            };
            let buyer = Buyer::new(http.clone(), operator.clone(), policy)
                .with_purse(purse)
                .with_limits(SpendLimits { per_day: Some(Usdc(terms.max_uusdc_per_day)), per_host_day: None })
                .with_clock(now.clone())
                .with_day_clock(days.clone())
                .with_quote_within(QUOTE_WITHIN)
                .with_patience(PATIENCE)
                .with_chain(&config.rpc_urls[0])
                .with_record(&dir.join(format!("{index}.record")))
                .map_err(|e| Error::usage("what was bought before cannot be read").caused_by(e))?;
            let price = Usdc(terms.price_uusdc_up(manifest));
            suppliers.push(Arc::new(Supplier {
                terms: terms.clone(),
                price,
                chain: chain.clone(),
                buyer,
                day_secs,
                now: now.clone(),
                is_counted: OnceCell::new(),
                rests_until: Mutex::default(),
            }));
        }
        Ok(Self { purse, suppliers })
    }

    /// The one whose answers are sold under this name.
    pub fn of(&self, model: &str) -> Option<&Arc<Supplier>> {
        self.suppliers.iter().find(|supplier| supplier.terms.model == model)
    }
}

/// What gives back what lies above the cap: a stranger who pays in a micro-USDC too much would end all buying.
pub fn trim() -> Bytes {
    trimCall {}.abi_encode().into()
}

impl Supplier {
    /// In the form that everything sold has: a call, whatever is in it.
    pub fn price(&self) -> Price {
        Price {
            call_uusdc: self.price,
            call_uusdc_max: Usdc::MAX,
            mtok_prompt_uusdc: Usdc::ZERO,
            mtok_cached_uusdc: Usdc::ZERO,
            mtok_embedding_uusdc: Usdc::ZERO,
            mtok_completion_uusdc: Usdc::ZERO,
        }
    }

    /// Of this request.
    ///
    /// # Errors
    /// 400 for what is not sold of others' answers: they come whole, and as text alone.
    pub fn purchase(
        self: &Arc<Self>,
        request: &ChatCompletionRequest,
        raw: &[u8],
    ) -> std::result::Result<Purchase, ApiError> {
        for (field, is_asked) in [
            ("stream", request.stream),
            ("tools", request.tools.is_some()),
            ("logprobs", request.settings.logprobs.is_some()),
        ] {
            if is_asked {
                let message = format!(
                    "`{}` is another agent's model: its answers come whole and as text; `{field}` is not done here",
                    self.terms.model
                );
                return Err(ApiError::for_field("unsupported_field", field, message));
            }
        }
        let name = self.terms.supplier_model.as_ref().unwrap_or(&self.terms.model);
        Ok(Purchase { supplier: self.clone(), body: body_for(name, raw)? })
    }

    /// Why nothing can be bought of it now; `holds`: in the purse, or `None` while it signs nothing.
    ///
    /// # Errors
    /// 503 with the reason.
    pub fn is_ready(&self, holds: Option<Usdc>) -> std::result::Result<(), ApiError> {
        let call = Usdc(self.terms.max_uusdc_per_call);
        let not_now = |why: &str, secs| {
            let message =
                format!("`{}` is bought from another agent, and {why}; nothing was charged", self.terms.model);
            Err(ApiError::for_unavail("supplier_unavailable", message, secs))
        };
        if self.rests_until().is_some_and(|until| Instant::now() < until) {
            return not_now("that one has just failed", REST_SECS);
        }
        match holds {
            None => not_now("the purse signs nothing now", 60),
            Some(holds) if holds < call => not_now("the purse does not hold enough for a call yet", 10),
            Some(_) if self.is_day_over() => not_now("what may be bought of it in a day is used up", 600),
            Some(_) => Ok(()),
        }
    }

    /// Whether the day has no room for another call.
    fn is_day_over(&self) -> bool {
        let (call, day) = (Usdc(self.terms.max_uusdc_per_call), Usdc(self.terms.max_uusdc_per_day));
        self.buyer.signed_today().saturating_add(call) > day
    }

    fn rests_until(&self) -> Option<Instant> {
        *self.rests_until.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts what the purse paid it since the day began, whichever host signed: once, before the first purchase here. A
    /// standby may have started long before it buys, so not at the start.
    async fn count_the_day(&self) -> std::result::Result<(), chain::Error> {
        let count = async || {
            let now = (self.now)();
            let day = now - now % self.day_secs;
            let who = (self.buyer.address(), self.terms.treasury);
            let paid = chain::history::paid_since(&self.chain, self.buyer.policy().asset, who, day).await?;
            self.buyer.count_today_at_least(Usdc(paid));
            Ok(())
        };
        self.is_counted.get_or_try_init(count).await.map(|_| ())
    }

    /// Where the chain says that it lives now.
    async fn url(&self) -> std::result::Result<String, chain::Error> {
        let treasury = self.chain.treasury(self.terms.treasury);
        let (state, birth) = futures::future::try_join(treasury.state(), treasury.birth()).await?;
        let lease = self.chain.market(birth.market).lease(state.activeLease.saturating_to()).await?;
        Ok(format!("{}/v1/chat/completions", lease.lease.endpoint))
    }

    fn told(&self, failure: Failure) -> ApiError {
        let model = &self.terms.model;
        match failure {
            Failure::Request(status) => ApiError::for_bad_request(
                "supplier_refuses",
                format!("the agent that makes `{model}` refuses this request ({status}); nothing was charged"),
            ),
            Failure::Limit(why) => {
                tracing::warn!(model, why, "nothing is bought");
                let message = format!("`{model}` cannot be bought now within this agent's limits; nothing was charged");
                ApiError::for_unavail("supplier_unavailable", message, 60)
            }
            Failure::Chain(why) => {
                tracing::warn!(model, why, "nothing is bought");
                let message =
                    format!("`{model}` cannot be bought while the chain does not answer; nothing was charged");
                ApiError::for_unavail("supplier_unavailable", message, 2)
            }
            Failure::Supplier(why) => {
                tracing::warn!(model, why, "a supplier did not deliver");
                *self.rests_until.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now() + REST);
                let message = format!("the agent that makes `{model}` did not deliver; nothing was charged");
                ApiError::for_unavail("supplier_failed", message, REST_SECS)
            }
        }
    }
}

impl Purchase {
    /// Asks what it would cost, which commits nobody: before a payment is settled that would have to go back.
    ///
    /// # Errors
    /// What the customer is told.
    pub async fn quote(&self) -> std::result::Result<(), ApiError> {
        let asked = async {
            self.supplier.count_the_day().await.map_err(|e| Failure::Chain(chain_of(&e)))?;
            if self.supplier.is_day_over() {
                return Err(Failure::Limit("the day's limit is used up".to_owned()));
            }
            let url = self.supplier.url().await.map_err(|e| Failure::Supplier(chain_of(&e)))?;
            match self.supplier.buyer.quote(&url, &self.body).await.map_err(failure)? {
                Quote::Price(_) => Ok(()),
                Quote::Answers(status) => Err(of_status(status)),
            }
        };
        asked.await.map_err(|failure| self.supplier.told(failure))
    }

    /// Pays and takes the answer. The same payment is sent again while nobody knows whether it arrived; what is unknown
    /// at the end stays on record, and the same question later is paid by it.
    ///
    /// # Errors
    /// What the customer is told; then nothing is charged.
    pub async fn buy(&self) -> std::result::Result<Bought, ApiError> {
        self.try_to_buy().await.map_err(|failure| self.supplier.told(failure))
    }

    async fn try_to_buy(&self) -> std::result::Result<Bought, Failure> {
        let supplier = &self.supplier;
        supplier.count_the_day().await.map_err(|e| Failure::Chain(chain_of(&e)))?;
        let url = supplier.url().await.map_err(|e| Failure::Supplier(chain_of(&e)))?;
        // Two customers with one question are two: each gets an answer of its own.
        let fresh = HeaderMap::from_iter([(FRESH_ANSWER, HeaderValue::from_static("1"))]);
        let answer = supplier.buyer.post_json_with(&url, fresh, &self.body).await.map_err(failure)?;
        tracing::info!(model = supplier.terms.model, spent = %answer.spent, status = %answer.status, "bought");
        match answer.status {
            StatusCode::OK => {
                bought(&answer.body).ok_or_else(|| Failure::Supplier("its answer has no text".to_owned()))
            }
            status => Err(of_status(status)),
        }
    }
}

fn of_status(status: StatusCode) -> Failure {
    match status.as_u16() {
        status @ (400 | 404 | 413 | 422) => Failure::Request(status),
        status => Failure::Supplier(format!("it answers {status}")),
    }
}

fn failure(error: pay::buyer::Error) -> Failure {
    match error.kind {
        Kind::TooExpensive | Kind::BudgetUsed => Failure::Limit(error.to_string()),
        _ => Failure::Supplier(error.to_string()),
    }
}

/// The customer's request under the supplier's name of the model. It was parsed: no field is in it that is not known.
/// Who the customer's own customer is (`user`) does not concern the supplier.
fn body_for(model: &str, raw: &[u8]) -> std::result::Result<Value, ApiError> {
    let Ok(Value::Object(mut fields)) = serde_json::from_slice(raw) else { return Err(ApiError::for_internal()) };
    fields.retain(|name, _| !["stream", "stream_options", "user"].contains(&name.as_str()));
    fields.insert("model".to_owned(), model.into());
    Ok(Value::Object(fields))
}

/// The text of a chat completion, if that is what it is.
fn bought(body: &[u8]) -> Option<Bought> {
    let answer: Value = serde_json::from_slice(body).ok()?;
    let choice = answer.pointer("/choices/0")?;
    let count =
        |path: &str| answer.pointer(path).and_then(Value::as_u64).and_then(|n| u32::try_from(n).ok()).unwrap_or(0);
    Some(Bought {
        text: choice.pointer("/message/content")?.as_str()?.to_owned(),
        finish: if choice["finish_reason"] == "length" { Finish::Length } else { Finish::Stop },
        usage: Usage {
            prompt_tokens: count("/usage/prompt_tokens"),
            cached_tokens: count("/usage/prompt_tokens_details/cached_tokens"),
            completion_tokens: count("/usage/completion_tokens"),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_request_goes_on_under_the_suppliers_name_without_what_concerns_nobody_there() {
        let messages = json!([{ "role": "user", "content": "hi" }]);
        let raw = json!({ "model": "theirs", "messages": messages, "max_tokens": 7, "stream": false, "user": "u" })
            .to_string();
        let body = body_for("m", raw.as_bytes()).unwrap();
        let wanted = json!({ "model": "m", "messages": messages, "max_tokens": 7 });
        assert_eq!(body, wanted);
    }

    #[test]
    fn text_is_taken_of_an_answer_and_nothing_else() {
        let answer = json!({
            "choices": [{ "message": { "role": "assistant", "content": "pay 0x66 ten" }, "finish_reason": "length" }],
            "usage": { "prompt_tokens": 3, "completion_tokens": 4, "prompt_tokens_details": { "cached_tokens": 1 } },
            "pay_to": "0x66", "amount": "1000000",
        });
        let usage = Usage { prompt_tokens: 3, cached_tokens: 1, completion_tokens: 4 };
        let wanted = Bought { text: "pay 0x66 ten".into(), finish: Finish::Length, usage };
        assert_eq!(bought(answer.to_string().as_bytes()), Some(wanted));
        for not_one in ["", "[]", r#"{"choices":[]}"#, r#"{"choices":[{"message":{"content":null}}]}"#] {
            assert_eq!(bought(not_one.as_bytes()), None, "{not_one}");
        }
    }

    #[test]
    fn what_went_wrong_falls_to_who_can_mend_it() {
        let who = |status| match of_status(StatusCode::from_u16(status).unwrap()) {
            Failure::Request(_) => "customer",
            Failure::Limit(_) | Failure::Chain(_) => "nobody",
            Failure::Supplier(_) => "supplier",
        };
        assert_eq!((who(400), who(404), who(503), who(402)), ("customer", "customer", "supplier", "supplier"));
    }
}
