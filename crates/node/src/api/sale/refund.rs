//! A channel's money back, on request of its payer: whether or not anything is sold, and for no price.

use super::call::{MOVED_WITHIN, chain_is_away};
use super::{Offers, refused, transfer};
use crate::api::Api;
use crate::api::problem::Problem;
use crate::ask::Ask;
use crate::channels;
use axum::Json;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use pay::book::channels::RefundAsk;
use pay::scheme::channel::server::{VerifiedVoucher, VoucherKind};
use pay::seller::offers::{self, Accepted, ChannelPrice, Prices};
use pay::wire::{PAYMENT_SIGNATURE, Resource};
use pay::{Reason, Refusal, Usdc};
use serde_json::json;

/// Before the paid routes: an agent that does not sell, or whose engine does not run, gives back what its channels hold
/// all the same. To whoever looks, which the official clients do before they ask, it offers the channel and nothing
/// else.
pub async fn without_a_sale(State(api): State<Api>, request: Request, next: Next) -> Response {
    if api.channels.is_open
        && !api.can_sell()
        && let Some(answer) = api.refund_alone(request.method(), request.uri().path(), request.headers()).await
    {
        return answer;
    }
    next.run(request).await
}

impl Api {
    fn can_sell(&self) -> bool {
        let embeds = self.cx.manifest.embedding.is_none() || self.shared.embedder().is_some();
        embeds && self.shared.engine().is_some() && self.shared.price().is_some()
    }

    /// The answer to a refund, or to a look while nothing is sold; `None` to everything else.
    async fn refund_alone(&self, method: &Method, path: &str, headers: &HeaderMap) -> Option<Response> {
        let asks_back = offers::asks_back(headers);
        let looks = method == Method::GET && !headers.contains_key(&PAYMENT_SIGNATURE);
        if !asks_back && !looks {
            return None;
        }
        if let Err(elsewhere) = self.here(path).await {
            return Some(elsewhere);
        }
        let refuse = |refusal| {
            self.shared.refuse();
            self.with_channel_alone(path, |offers| refused(&self.seller.refuse(offers, refusal)))
        };
        if looks {
            let closed = self.first_price().await.err()?;
            let message = format!("{closed}; what your channel holds is given back if you ask for it");
            return Some(refuse(Refusal::new(Reason::PaymentRequired, message)));
        }
        let (domain, now) = (&self.channels.domain, self.shared.now());
        let taken = self.with_channel_alone(path, |offers| self.seller.accept_any(headers, offers, domain, now));
        let paid = match taken.map(|taken| taken.payment) {
            Ok(Accepted::Channel(paid)) => paid,
            Ok(_) => return None,
            Err(challenge) => {
                self.shared.refuse();
                return Some(refused(&challenge));
            }
        };
        match paid.kind {
            VoucherKind::Refund { amount } => Some(self.refund(&paid, amount, &refuse).await),
            VoucherKind::Voucher | VoucherKind::Deposit(_) => None,
        }
    }

    fn with_channel_alone<T>(&self, path: &str, then: impl FnOnce(&Offers<'_>) -> T) -> T {
        let resource = Resource {
            url: format!("{}{path}", self.cx.config.public_url),
            description: "what a channel holds and was not charged, given back".to_owned(),
            mime_type: "application/json".to_owned(),
        };
        let free = ChannelPrice { ceiling: Usdc::ZERO, carry: Usdc::ZERO };
        then(&Offers {
            prices: Prices { channel: Some(free), ..Prices::default() },
            resource: &resource,
            quoted_before: &|_, _| false,
            known: &|_, _, _| false,
            facilitator: self.cx.relay.address(),
            channels: &self.channels.terms,
            transfer: transfer(&self.cx),
            takes_permits: false,
        })
    }

    /// Gives back what is not charged, for a payer that signed for it.
    pub(super) async fn refund(
        &self,
        paid: &VerifiedVoucher,
        amount: Option<Usdc>,
        refuse: &(dyn Fn(Refusal) -> Response + Sync),
    ) -> Response {
        let channel = paid.channel;
        let state = match channels::try_read(&self.cx, &channel).await {
            Ok(state) => state,
            Err(e) => return chain_is_away(&e),
        };
        if state.balance == state.claimed {
            return refuse(Refusal::new(Reason::RefundNoBalance, "nothing is left in this channel"));
        }
        match self.lacks_gas_for(paid).await {
            Ok(None) => {}
            Ok(Some(refusal)) => return refuse(refusal),
            Err(response) => return response,
        }
        let ask = RefundAsk { channel, amount };
        let seen = (paid.config.clone(), state);
        let asked = self.ask(|reply| Ask::GiveBack { ask, seen, reply });
        let outcome = match tokio::time::timeout(MOVED_WITHIN, asked).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(response)) => return response,
            Err(_) => return Problem::for_unavail("the refund is on its way; ask again", 2).into_response(),
        };
        let (amount, tx) = match outcome {
            Ok(Some(moved)) => moved,
            Ok(None) => return refuse(Refusal::new(Reason::RefundFailed, "the refund did not go through")),
            Err(reason @ Reason::RefundOverDay) => {
                let message = "the agent gives no more back today: ask for less, ask tomorrow, or take it out by the \
                               contract (initiateWithdraw)";
                return refuse(Refusal::new(reason, message));
            }
            Err(reason) => return refuse(Refusal::new(reason, reason.as_str().replace('_', " "))),
        };
        let Some(known) = self.channel(paid).await else { return chain_is_away(&"the channel is not known here") };
        let (name, value) = self.seller.refund_header(&channel, &known, amount, tx.0);
        ([(name, value)], Json(json!({}))).into_response()
    }
}
