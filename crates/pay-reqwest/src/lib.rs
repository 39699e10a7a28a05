//! [`pay::Buyer`] under the interface of `reqwest`: a program that has a `reqwest` client calls a seller of x402 by it,
//! and what the call costs is paid.
//!
//! ```no_run
//! # async fn example(buyer: pay::Buyer) -> Result<(), Box<dyn std::error::Error>> {
//! let paying = pay_reqwest::Paying::at(buyer, ["http://127.0.0.1:8402"])?;
//! let client = reqwest_middleware::ClientBuilder::new(reqwest::Client::new()).with(paying).build();
//! let question = r#"{"messages": [{"role": "user", "content": "ping"}]}"#;
//! let answer = client.post("http://127.0.0.1:8402/v1/chat/completions").body(question).send().await?;
//! println!("{}", answer.text().await?);
//! # Ok(())
//! # }
//! ```
//!
//! The buyer sends by its own connector, not by the client that it stands in: a client of `reqwest` follows redirects by
//! itself, so that a signed payment could reach a host that never named its payee, and it hides what was sent when an
//! answer is lost (docs/decisions/0024). All that the buyer promises therefore holds here: its limits, its record on
//! disk, the same payment for the same call. Of the client's own settings nothing reaches a paid request but its
//! headers, its body and its timeout.

use async_trait::async_trait;
use futures::stream;
use http::Extensions;
use pay::buyer::{Answer, Error as BuyerError};
use pay::wire::SettlementResponse;
use pay::{Buyer, Usdc};
use reqwest::{Body, Method, Request, Response, ResponseBuilderExt, Url};
use reqwest_middleware::{Error, Middleware, Next, Result};
use std::fmt;

/// Pays for `POST` requests to the sellers that it was told of. Every other request goes on to the client as it is.
#[derive(Clone)]
pub struct Paying {
    buyer: Buyer,
    sellers: Vec<Url>,
}

/// What an answer cost, among its extensions (`answer.extensions().get::<Payment>()`).
#[derive(Debug, Clone)]
pub struct Payment {
    /// Zero: it was free. By a channel or `upto` what was allowed, in micro-USDC; the receipt tells the charge.
    pub spent: Usdc,
    /// `None`: it was not paid for.
    pub scheme: Option<&'static str>,
    /// What the seller says of it in the head; of a stream it may say it in the last event instead.
    pub settlement: Option<SettlementResponse>,
}

/// A seller's address that is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadSeller(String);

impl fmt::Display for BadSeller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is no seller's address: give scheme, host and port, like http://127.0.0.1:8402", self.0)
    }
}

impl std::error::Error for BadSeller {}

impl Paying {
    /// Requests to these origins (scheme, host and port; a path is not looked at) are paid. A seller that moved is
    /// followed by its redirect, which the buyer checks; the payee is the buyer's, wherever it serves.
    ///
    /// # Errors
    /// An address that is no `http://` or `https://` one.
    pub fn at<'a>(buyer: Buyer, sellers: impl IntoIterator<Item = &'a str>) -> std::result::Result<Self, BadSeller> {
        let origin = |text: &str| {
            let url = Url::parse(text).ok().filter(|url| ["http", "https"].contains(&url.scheme()) && url.has_host());
            url.ok_or_else(|| BadSeller(text.to_owned()))
        };
        Ok(Self { buyer, sellers: sellers.into_iter().map(origin).collect::<std::result::Result<_, _>>()? })
    }

    /// Whether this is a request that is paid if its seller asks for it: a `POST` whose body is there whole, because it
    /// may have to be sent again.
    fn is_ours(&self, request: &Request) -> bool {
        let origin = request.url().origin();
        let is_whole = request.body().is_none_or(|body| body.as_bytes().is_some());
        *request.method() == Method::POST && is_whole && self.sellers.iter().any(|seller| seller.origin() == origin)
    }
}

#[async_trait]
impl Middleware for Paying {
    /// # Errors
    /// A [`pay::buyer::Error`] inside `Error::Middleware`, whose `kind` says what to do next; a timeout of the request's
    /// own leaves a payment out, and the same call asks for its answer.
    async fn handle(&self, request: Request, extensions: &mut Extensions, next: Next<'_>) -> Result<Response> {
        if !self.is_ours(&request) {
            return next.run(request, extensions).await;
        }
        let (url, headers, timeout) = (request.url().clone(), request.headers().clone(), request.timeout().copied());
        let body = request.body().and_then(Body::as_bytes).unwrap_or_default().to_vec();
        let call = self.buyer.post_bytes(url.as_str(), headers, body.into());
        let answer = match timeout {
            Some(timeout) => tokio::time::timeout(timeout, call).await.map_err(Error::middleware)?,
            None => call.await,
        };
        response(answer.map_err(Error::middleware)?)
    }
}

/// The answer as `reqwest` has them: read as it comes, and its payment is done with when it was read to its end.
fn response(answer: Answer) -> Result<Response> {
    let payment = Payment { spent: answer.spent, scheme: answer.scheme, settlement: answer.payment.clone() };
    let url: Url = answer.url.parse().map_err(Error::middleware)?;
    let mut head = http::Response::builder().status(answer.status).url(url).extension(payment);
    if let Some(headers) = head.headers_mut() {
        headers.clone_from(&answer.headers);
    }
    let pieces = stream::try_unfold(answer, |mut answer| async move {
        let piece = answer.chunk().await?;
        Ok::<_, BuyerError>(piece.map(|piece| (piece, answer)))
    });
    let whole = head.body(Body::wrap_stream(pieces)).map_err(Error::middleware)?;
    Ok(Response::from(whole))
}
