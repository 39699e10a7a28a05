//! A paid request that reaches the agent's former host: it is carried to the new one.
//!
//! An unpaid one gets a 308, and its client learns the address. One that brings a payment may be its client's last word
//! (many libraries follow no redirect of a POST), and what it signed is good at the new host too.

use super::Api;
use crate::shared::Role;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures::stream;
use net::chain_of;
use pay::wire::PAYMENT_SIGNATURE;

/// What was carried once is not carried on: two hosts that each think that the other serves must not play ball.
const CARRIED: HeaderName = HeaderName::from_static("x-vivarium-carried");
/// Of one connection, and none of the other's business.
const OF_THE_CONNECTION: [HeaderName; 6] = [
    header::HOST,
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
];

pub(super) async fn paid(State(api): State<Api>, request: Request, next: Next) -> Response {
    let pays = request.headers().contains_key(&PAYMENT_SIGNATURE) && !request.headers().contains_key(&CARRIED);
    let to = api.shared.moved().filter(|_| pays && api.shared.role() == Role::Draining);
    match to {
        Some(url) => carry(&api, &url, request).await,
        None => next.run(request).await,
    }
}

async fn carry(api: &Api, url: &str, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let body: Bytes = match axum::body::to_bytes(body, infer::api::files::BODY_BYTES_MAX).await {
        Ok(body) => body,
        Err(e) => return (axum::http::StatusCode::PAYLOAD_TOO_LARGE, e.to_string()).into_response(),
    };
    let mut headers = without_the_connection(&head.headers);
    headers.insert(CARRIED, HeaderValue::from_static("1"));
    let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
    let there = format!("{url}{path}");
    match api.cx.http.send(head.method, &there, headers, body).await {
        Ok(net::Response { url, status, headers, body }) => {
            let pieces = stream::try_unfold((url, body), |(url, mut body)| async move {
                let piece = body.chunk(&url).await?;
                Ok::<_, net::Error>(piece.map(|piece| (piece, (url, body))))
            });
            (status, without_the_connection(&headers), Body::from_stream(pieces)).into_response()
        }
        // Whether it arrived is not known, and need not be: the same payment there gets the same answer.
        Err(e) => {
            tracing::warn!(error = %chain_of(&e), there, "a paid request could not be carried to the new host");
            axum::response::Redirect::permanent(&there).into_response()
        }
    }
}

fn without_the_connection(headers: &HeaderMap) -> HeaderMap {
    let mut kept = headers.clone();
    for name in &OF_THE_CONNECTION {
        kept.remove(name);
    }
    kept
}
