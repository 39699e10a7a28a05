//! A customer that signs before the clock runs, so that what is measured is the shop.

use super::devchain::{CHAIN_ID, DevChain};
use super::shop::{FREE, PRICE, now};
use alloy::primitives::B256;
use alloy::signers::local::PrivateKeySigner;
use anyhow::{Context, Result, anyhow, bail};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use pay::Usdc;
use pay::scheme::channel::client::{TopUp, config, pay, sign_voucher};
use pay::scheme::channel::{CHANNEL, ChannelConfig, ChannelDomain};
use pay::scheme::exact::{EXACT, client::sign};
use pay::scheme::upto::{self, UPTO};
use pay::wire::{
    PAYMENT_REQUIRED, PAYMENT_SIGNATURE, PaymentRequired, PaymentRequirements, decode_header, encode_header,
};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::OnceCell;

const MONEY: Usdc = Usdc(1_000_000_000_000);

#[derive(Clone)]
pub struct Customer {
    key: PrivateKeySigner,
    /// What it pays for.
    pub url: String,
    http: net::Client,
    offer: Arc<OnceCell<PaymentRequired>>,
}

/// From asking to the first piece of an answer's body, and to its end.
#[derive(Clone, Copy)]
pub struct Took {
    pub first: Duration,
    pub whole: Duration,
}

/// A channel whose vouchers are signed in order.
pub struct Channel {
    customer: Customer,
    offer: PaymentRequirements,
    domain: ChannelDomain,
    config: ChannelConfig,
    /// Calls signed for.
    calls: u128,
}

impl Customer {
    /// With money for everything, and with Permit2 allowed.
    pub async fn of(url: String, chain: &DevChain) -> Result<Self> {
        let key = PrivateKeySigner::random();
        chain.mint(key.address(), MONEY).await?;
        chain.allow_permit2(key.address()).await?;
        Ok(Self { key, url, http: net::Client::new(), offer: Arc::default() })
    }

    async fn offer(&self, scheme: &str) -> Result<PaymentRequirements> {
        let ask = async {
            let answer = self.http.send(Method::POST, &self.url, HeaderMap::new(), "{}".into()).await?;
            let header = answer.header(&PAYMENT_REQUIRED).context("the seller names no price")?;
            PaymentRequired::from_header(header).map_err(|e| anyhow!("{}", e.message))
        };
        let offer = self.offer.get_or_try_init(|| ask).await?;
        offer.accepts.iter().find(|o| o.scheme() == scheme).cloned().with_context(|| format!("no {scheme} is offered"))
    }

    pub async fn exact(&self) -> Result<String> {
        let offer = self.offer(EXACT).await?;
        let payment = sign(&self.key, &offer, now(), B256::from(rand::random::<[u8; 32]>()));
        Ok(payment.map_err(|e| anyhow!("{}", e.message))?.to_header())
    }

    pub async fn upto(&self) -> Result<String> {
        let offer = self.offer(UPTO).await?;
        let payment = upto::client::sign(&self.key, &offer, now(), rand::random());
        Ok(payment.map_err(|e| anyhow!("{}", e.message))?.to_header())
    }

    pub async fn channel(&self, slot: u32) -> Result<Channel> {
        let offer = self.offer(CHANNEL).await?;
        let mut salt = [0; 32];
        salt[28..].copy_from_slice(&slot.to_be_bytes());
        let config = config(self.key.address(), &offer, salt).map_err(|e| anyhow!("{}", e.message))?;
        Ok(Channel { customer: self.clone(), offer, domain: ChannelDomain::new(CHAIN_ID), config, calls: 0 })
    }

    async fn send(&self, url: &str, payment: Option<&str>, body: String) -> Result<net::Response> {
        let mut headers = HeaderMap::new();
        if let Some(payment) = payment {
            headers.insert(PAYMENT_SIGNATURE, HeaderValue::try_from(payment)?);
        }
        let answer = self.http.send(Method::POST, url, headers, body.into()).await?;
        let is_refused = payment.is_none() && !url.ends_with(FREE);
        let wanted = if is_refused { StatusCode::PAYMENT_REQUIRED } else { StatusCode::OK };
        if answer.status != wanted {
            let status = answer.status;
            let text = answer.bytes(1 << 16).await?;
            bail!("{url} answered {status} in place of {wanted}: {}", String::from_utf8_lossy(&text));
        }
        Ok(answer)
    }

    pub async fn call(&self, url: &str, payment: Option<&str>, body: String) -> Result<Took> {
        let asked = Instant::now();
        let mut answer = self.send(url, payment, body).await?;
        answer.body.chunk(url).await?.context("an answer without a body")?;
        let first = asked.elapsed();
        while answer.body.chunk(url).await?.is_some() {}
        Ok(Took { first, whole: asked.elapsed() })
    }

    pub async fn whole(&self, url: &str, payment: Option<&str>, body: String) -> Result<()> {
        self.send(url, payment, body).await?.bytes(1 << 16).await?;
        Ok(())
    }
}

impl Channel {
    /// Puts enough in for so many calls beside this one, and makes it.
    pub async fn open(&mut self, calls: u32) -> Result<()> {
        let amount = Usdc((PRICE.micro() * u128::from(calls + 1)).max(10_000));
        let valid_before = now() + self.offer.max_timeout_secs();
        let top_up = TopUp { amount, valid_before, salt: rand::random() };
        let payment = self.sign(0, Some(&top_up))?;
        let (customer, first) = (&self.customer, "{\"first\":true}".to_owned());
        customer.whole(&customer.url, Some(&payment), first).await
    }

    /// The next call's payment; `ahead`: calls on the channel that may come before it without being answered.
    pub fn payment(&mut self, ahead: u32) -> Result<String> {
        self.sign(ahead, None)
    }

    /// The next call's payment with somebody else's signature under its voucher.
    pub fn forged(&mut self) -> Result<String> {
        let mut payment = decode_header(&self.payment(0)?).map_err(|e| anyhow!("{}", e.message))?;
        let other =
            sign_voucher(&PrivateKeySigner::random(), &self.domain, &self.domain.channel_id(&self.config), PRICE);
        let other = other.map_err(|e| anyhow!("{}", e.message))?;
        payment["payload"]["voucher"]["signature"] = format!("0x{}", hex::encode(other.signature)).into();
        Ok(encode_header(&payment))
    }

    fn sign(&mut self, ahead: u32, top_up: Option<&TopUp>) -> Result<String> {
        self.calls += 1;
        let max = Usdc(PRICE.micro() * (self.calls + u128::from(ahead)));
        let payment = pay(&self.customer.key, &self.domain, &self.config, &self.offer, max, top_up);
        Ok(payment.map_err(|e| anyhow!("{}", e.message))?.to_header())
    }
}
