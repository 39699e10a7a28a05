use super::{Buyer, Error, Kind, OnWire};
use crate::Usdc;
use crate::scheme::exact::Hash;
use crate::wire::SettlementResponse;
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, StatusCode};

/// A whole answer.
#[derive(Debug)]
pub struct Paid {
    /// Where it came from, after redirects.
    pub url: String,
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub payment: Option<SettlementResponse>,
    /// Amount of the payment that this answer took; zero for a free one.
    pub spent: Usdc,
}

/// An answer whose body is still coming.
pub struct Answer {
    pub url: String,
    pub status: StatusCode,
    pub headers: HeaderMap,
    /// What the head says about the payment. A stream may say it in its last event instead.
    pub payment: Option<SettlementResponse>,
    pub spent: Usdc,
    /// What it was paid by; `None`: it was free, or not paid for.
    pub scheme: Option<&'static str>,
    body: net::Body,
    resolves: Option<Resolves>,
}

/// The payment to forget when the body has been read to its end. An authorisation whose answer is dropped before is
/// kept for the same call; a voucher is not: it was taken, the seller knows what it is owed, and the channel is free
/// for the next call.
pub(super) struct Resolves {
    pub buyer: Buyer,
    pub key: Option<Hash>,
    pub is_on_channel: bool,
    /// The head said that the payment was taken.
    pub is_said_taken: bool,
    pub _on_wire: Option<OnWire>,
}

impl Resolves {
    fn done(mut self) {
        if let Some(key) = self.key.take() {
            self.buyer.resolve(&key);
        }
    }
}

impl Drop for Resolves {
    fn drop(&mut self) {
        match self.key.take() {
            Some(key) if self.is_on_channel => self.buyer.resolve(&key),
            Some(key) if self.is_said_taken => self.buyer.settle(&key),
            _ => {}
        }
    }
}

impl Answer {
    pub(super) fn new(
        answer: net::Response,
        payment: Option<SettlementResponse>,
        (spent, scheme): (Usdc, Option<&'static str>),
        resolves: Option<Resolves>,
    ) -> Self {
        let net::Response { url, status, headers, body } = answer;
        Self { url, status, headers, payment, spent, scheme, body, resolves }
    }

    /// The next piece of the body, or `None` at its end.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, Error> {
        match self.body.chunk(&self.url).await {
            Ok(None) => {
                if let Some(resolves) = self.resolves.take() {
                    resolves.done();
                }
                Ok(None)
            }
            Ok(piece) => Ok(piece),
            Err(error) => {
                let kind = if self.resolves.is_some() { Kind::OutcomeUnknown } else { Kind::Unreachable };
                Err(Error::new(kind, &self.url, error.message))
            }
        }
    }

    /// The whole body, at most `bytes_max` long.
    pub async fn collect(mut self, bytes_max: usize) -> Result<Paid, Error> {
        let mut body = BytesMut::new();
        while let Some(piece) = self.chunk().await? {
            if body.len() + piece.len() > bytes_max {
                return Err(Error::new(Kind::BadAnswer, &self.url, format!("answer is longer than {bytes_max} bytes")));
            }
            body.extend_from_slice(&piece);
        }
        let Self { url, status, headers, payment, spent, .. } = self;
        Ok(Paid { url, status, headers, body: body.freeze(), payment, spent })
    }
}
