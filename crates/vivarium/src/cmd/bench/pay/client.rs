//! A customer that signs before the clock runs, so that what is measured is the shop.

use super::devchain::{CHAIN_ID, DevChain};
use super::shop::{PAID, PRICE, Shop, now};
use alloy::primitives::B256;
use alloy::signers::local::PrivateKeySigner;
use anyhow::{Context, Result, anyhow, bail};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use pay::Usdc;
use pay::scheme::channel::client::{TopUp, config, pay};
use pay::scheme::channel::{CHANNEL, ChannelConfig, ChannelDomain};
use pay::scheme::exact::{EXACT, client::sign};
use pay::scheme::upto::{self, UPTO};
use pay::wire::{PAYMENT_REQUIRED, PAYMENT_SIGNATURE, PaymentRequired, PaymentRequirements};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::OnceCell;

const MONEY: Usdc = Usdc(1_000_000_000_000);

#[derive(Clone)]
pub struct Customer {
    key: PrivateKeySigner,
    http: net::Client,
    offer: Arc<OnceCell<PaymentRequired>>,
}

/// A channel whose vouchers are signed in order.
pub struct Channel {
    customer: Customer,
    url: String,
    offer: PaymentRequirements,
    domain: ChannelDomain,
    config: ChannelConfig,
    /// Calls signed for.
    calls: u128,
}

impl Customer {
    pub async fn with_money(chain: &DevChain) -> Result<Self> {
        let key = PrivateKeySigner::random();
        chain.mint(key.address(), MONEY).await?;
        chain.allow_permit2(key.address()).await?;
        Ok(Self { key, http: net::Client::new(), offer: Arc::default() })
    }

    async fn offer(&self, shop: &Shop, scheme: &str) -> Result<PaymentRequirements> {
        let ask = async {
            let url = format!("{}{PAID}", shop.url);
            let answer = self.http.send(Method::POST, &url, HeaderMap::new(), "{}".into()).await?;
            let header = answer.header(&PAYMENT_REQUIRED).context("the shop names no price")?;
            PaymentRequired::from_header(header).map_err(|e| anyhow!("{}", e.message))
        };
        let offer = self.offer.get_or_try_init(|| ask).await?;
        offer.accepts.iter().find(|o| o.scheme() == scheme).cloned().with_context(|| format!("no {scheme} is offered"))
    }

    pub async fn exact(&self, shop: &Shop) -> Result<String> {
        let offer = self.offer(shop, EXACT).await?;
        let payment = sign(&self.key, &offer, now(), B256::from(rand::random::<[u8; 32]>()));
        Ok(payment.map_err(|e| anyhow!("{}", e.message))?.to_header())
    }

    pub async fn upto(&self, shop: &Shop) -> Result<String> {
        let offer = self.offer(shop, UPTO).await?;
        let payment = upto::client::sign(&self.key, &offer, now(), rand::random());
        Ok(payment.map_err(|e| anyhow!("{}", e.message))?.to_header())
    }

    pub async fn channel(&self, shop: &Shop, slot: u32) -> Result<Channel> {
        let offer = self.offer(shop, CHANNEL).await?;
        let mut salt = [0; 32];
        salt[28..].copy_from_slice(&slot.to_be_bytes());
        let config = config(self.key.address(), &offer, salt).map_err(|e| anyhow!("{}", e.message))?;
        let (url, domain) = (format!("{}{PAID}", shop.url), ChannelDomain::new(CHAIN_ID));
        Ok(Channel { customer: self.clone(), url, offer, domain, config, calls: 0 })
    }

    async fn send(&self, url: &str, payment: Option<&str>, body: String) -> Result<net::Response> {
        let mut headers = HeaderMap::new();
        if let Some(payment) = payment {
            headers.insert(PAYMENT_SIGNATURE, HeaderValue::try_from(payment)?);
        }
        let answer = self.http.send(Method::POST, url, headers, body.into()).await?;
        let wanted =
            if payment.is_none() && url.ends_with(PAID) { StatusCode::PAYMENT_REQUIRED } else { StatusCode::OK };
        if answer.status != wanted {
            let status = answer.status;
            let text = answer.bytes(1 << 16).await?;
            bail!("{url} answered {status} in place of {wanted}: {}", String::from_utf8_lossy(&text));
        }
        Ok(answer)
    }

    /// From asking to the first piece of the body; the rest is read after.
    pub async fn first_byte(&self, url: &str, payment: Option<&str>, body: String) -> Result<Duration> {
        let asked = Instant::now();
        let mut answer = self.send(url, payment, body).await?;
        answer.body.chunk(url).await?.context("an answer without a body")?;
        let took = asked.elapsed();
        while answer.body.chunk(url).await?.is_some() {}
        Ok(took)
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
        self.customer.whole(&self.url, Some(&payment), "{\"first\":true}".to_owned()).await
    }

    /// The next call's payment; `ahead`: calls on the channel that may come before it without being answered.
    pub fn payment(&mut self, ahead: u32) -> Result<String> {
        self.sign(ahead, None)
    }

    fn sign(&mut self, ahead: u32, top_up: Option<&TopUp>) -> Result<String> {
        self.calls += 1;
        let max = Usdc(PRICE.micro() * (self.calls + u128::from(ahead)));
        let payment = pay(&self.customer.key, &self.domain, &self.config, &self.offer, max, top_up);
        Ok(payment.map_err(|e| anyhow!("{}", e.message))?.to_header())
    }
}
