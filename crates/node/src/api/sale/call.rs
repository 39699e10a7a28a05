//! A sale that is paid by a voucher: put the deposit in if one came along, reserve, serve, charge what was delivered.
//! Nothing of it waits for the chain but a deposit. Refunds are [`super::refund`]'s.

use super::{Errand, Offers, Order, Paying, Sale, Terms, Wishes, Work, refused, transfer};
use crate::api::Api;
use crate::api::problem::Problem;
use crate::ask::{Ask, Reserved};
use crate::channels::{self, CallAnswer, CallWant, Moved};
use crate::context::Context;
use crate::contract_payers;
use crate::main_loop::Event;
use crate::shared::InFlight;
use alloy::primitives::Address;
use axum::response::{IntoResponse, Response};
use pay::book::channels::{AskedDeposit, Channel, ChannelAsk};
use pay::facilitator::api::Asked;
use pay::scheme::channel::client::deposit_of;
use pay::scheme::channel::server::{VerifiedVoucher, VoucherKind};
use pay::scheme::channel::{BATCH_SETTLEMENT, CHANNEL, ChannelDomain, Deposit, DepositMethod};
use pay::seller::offers::ChannelTerms;
use pay::{Challenge, Reason, Refusal, Usdc};
use std::time::Duration;
use tokio::sync::oneshot;

/// Looks, deposits and second decisions that one request may need.
const TURNS_MAX: u32 = 6;
/// A deposit or refund that takes longer is answered with 503; it goes on, and the same request asked again finds it.
pub(super) const MOVED_WITHIN: Duration = Duration::from_secs(60);

/// What offers name as the least deposit. Official clients put in this much each time, so that its gas (0.0014 USDC) is a
/// hundredth or so of it. Less is taken, down to [`ChannelLimits::deposit_min`](pay::book::ChannelLimits). A guess.
const DEPOSIT: Usdc = Usdc(100_000);

/// What is sold on channels with.
#[derive(Debug)]
pub struct Counter {
    /// Birth names the contract that clients know, and the token can be put into it; else nothing is sold on channels.
    pub is_open: bool,
    pub terms: ChannelTerms,
    pub domain: ChannelDomain,
}

/// The voucher behind a sale.
pub struct Call {
    pub paid: VerifiedVoucher,
    /// The deposit that came with it.
    pub put_in: Moved,
}

impl Counter {
    pub fn of(cx: &Context) -> Self {
        Self {
            is_open: cx.birth.options.channels == BATCH_SETTLEMENT && (cx.token.has_eip3009 || cx.permit2.collector),
            terms: ChannelTerms {
                receiver_authorizer: cx.config.treasury,
                withdraw_delay_secs: u64::from(cx.birth.options.withdrawDelay),
                deposit_min: DEPOSIT,
            },
            domain: ChannelDomain::new(cx.config.chain_id),
        }
    }
}

impl Api {
    /// [`Api::sell`] for a voucher.
    pub(super) async fn sell_call(
        &self,
        paid: VerifiedVoucher,
        order: Order,
        terms: Terms,
        wishes: Wishes,
        entered: InFlight,
    ) -> Result<Sale, Response> {
        let deposit = match &paid.kind {
            VoucherKind::Refund { amount } => {
                return Err(self.refund(&paid, *amount, &|refusal| self.refuse(&terms, refusal)).await);
            }
            VoucherKind::Deposit(deposit) => Some(deposit.clone()),
            VoucherKind::Voucher => None,
        };
        if order.errand == Errand::Probe {
            let refusal = Refusal::new(Reason::PaymentRequired, "nothing is sold here: post your question");
            return Err(self.refuse(&terms, refusal));
        }
        let channel = paid.channel;
        // The price may have risen since the offer that the customer accepted; it is never charged more than that.
        let ceiling = terms.price.min(paid.accepted);
        let ask = ChannelAsk {
            channel,
            max: paid.voucher.max,
            ceiling,
            deposit: deposit.as_ref().map(|d| AskedDeposit { key: d.key(&channel), amount: d.amount }),
            route: self.cx.manifest.booked(order.route, order.prompt.further()),
            body_digest: order.question.digest,
            fresh: wishes.fresh,
        };
        let date = order.prompt.date();
        let work = Work::of(order.prompt, order.settings, order.adapter, terms.max_tokens);
        let run = self.run_of(order.route, date, &work, terms.engine.as_ref());
        let (mut seen, mut put_in) = (None, None);
        let mut turns = 0;
        let not_reserved = loop {
            turns += 1;
            if turns > TURNS_MAX {
                return Err(self.refuse(&terms, busy()));
            }
            let want = CallWant {
                ask: ask.clone(),
                config: paid.config.clone(),
                voucher: paid.voucher.clone(),
                accepted: paid.accepted,
                identifier: wishes.identifier,
                prompt_tokens: terms.prompt_tokens,
                max_tokens: terms.max_tokens,
                run: run.clone(),
                seen: seen.take(),
            };
            // A voucher is charged for what is delivered, so a full engine may say so when it is reserved.
            let begin = || self.start(terms.place()?, work.clone());
            let want = Box::new(want);
            let (begun, answer) = self.reserve(begin, |taken, reply| Ask::ReserveCall { want, taken, reply }).await?;
            match answer {
                CallAnswer::Yes { request, mut guard } => {
                    let making = begun.running(&mut guard).map_err(IntoResponse::into_response)?;
                    return Ok(Sale {
                        request,
                        prompt_tokens: terms.prompt_tokens,
                        payer: Address::from(paid.config.payer),
                        amount: ceiling,
                        making,
                        tariff: self.tariff(terms.tariff, Usdc::ZERO),
                        stored_bytes: 0,
                        stored_as: None,
                        question: order.question,
                        signature: paid.voucher.signature.to_vec(),
                        paying: Paying::Voucher(Box::new(Call { paid, put_in })),
                        guard,
                        in_flight: entered,
                        api: self.clone(),
                    });
                }
                CallAnswer::Look => {
                    let found = channels::try_read(&self.cx, &channel).await;
                    seen = Some(found.map_err(|e| chain_is_away(&e))?);
                }
                CallAnswer::Deposit | CallAnswer::Depositing => {
                    let Some(deposit) = deposit.clone() else {
                        return Err(self.refuse(&terms, busy()));
                    };
                    // Nothing is put in for a call that is refused. The place is another's until the chain has taken it.
                    drop(self.place(&terms).map_err(IntoResponse::into_response)?);
                    put_in = self.deposit(&paid, deposit, &terms).await?;
                }
                CallAnswer::Corrective(reason, known) => {
                    let refusal = Refusal::new(reason, "the voucher does not cover what was charged and this call");
                    return Err(
                        self.answer_with(&terms, |offers| self.seller.correct(offers, refusal, &channel, &known))
                    );
                }
                CallAnswer::Refused(reason) => {
                    return Err(self.refuse(&terms, Refusal::new(reason, reason.as_str().replace('_', " "))));
                }
                CallAnswer::Replay { request } => break Reserved::Replay { request },
                CallAnswer::InFlight { request } => break Reserved::InFlight { request },
                CallAnswer::Conflict => break Reserved::Conflict,
                CallAnswer::Limited(limit) => break Reserved::Refused(limit),
                CallAnswer::Closed(why) => break Reserved::Closed(why),
            }
        };
        Err(self.not_reserved(not_reserved, order.question, &terms).await)
    }

    /// Simulated, sent, waited for.
    async fn deposit(&self, paid: &VerifiedVoucher, deposit: Deposit, terms: &Terms) -> Result<Moved, Response> {
        let channel = paid.channel;
        if let Some(refusal) = self.lacks_gas_for(paid).await? {
            return Err(self.refuse(terms, refusal));
        }
        if !deposit.is_signed_by_key && !self.shared.relay_has_gas() {
            return Err(self.without_gas(terms));
        }
        if let Err(refusal) = contract_payers::simulate_deposit(&self.cx, &paid.config, &deposit).await {
            // The same deposit may just be going in by an earlier try: then it is waited for.
            let state = channels::try_read(&self.cx, &channel).await.map_err(|e| chain_is_away(&e))?;
            if state.balance < deposit.amount {
                return Err(self.refuse(terms, refusal));
            }
        }
        let another = self.for_another(paid, &deposit, terms);
        let (reply, moved) = oneshot::channel();
        self.cx.tell(Event::Ask(Box::new(Ask::PutIn { channel, deposit, another, reply }))).await;
        match tokio::time::timeout(MOVED_WITHIN, moved).await {
            Ok(Ok(Some(moved))) => Ok(Some(moved)),
            Ok(Ok(None)) => Err(self.refuse(terms, Refusal::new(Reason::DepositFailed, "the deposit reverted"))),
            Ok(Err(_)) | Err(_) => {
                let why = "the deposit's outcome is not known yet; ask the same again";
                Err(Problem::for_unavail(why, 2).into_response())
            }
        }
    }

    /// What another's facilitator is asked to put in, where the manifest names one: a key's deposit, for which all is
    /// signed in the payment itself.
    fn for_another(&self, paid: &VerifiedVoucher, deposit: &Deposit, terms: &Terms) -> Option<Box<Asked>> {
        let needs_a_permit = matches!(&deposit.method, DepositMethod::Permit2 { permit: Some(_), .. });
        if self.cx.depositor.is_none() || !deposit.is_signed_by_key || needs_a_permit {
            return None;
        }
        let way = (CHANNEL, transfer(&self.cx));
        let offer = self.with_offers(terms, |offers| self.seller.requirements_of(way, paid.accepted, offers));
        let payment = deposit_of(&paid.config, &paid.channel, deposit, &paid.voucher, &offer);
        Some(Box::new(Asked { payment, requirements: offer }))
    }

    /// Why a payer that has had many deposits and refunds for what it bought gets no more of them today.
    pub(super) async fn lacks_gas_for(&self, paid: &VerifiedVoucher) -> Result<Option<Refusal>, Response> {
        let (channel, payer) = (paid.channel, paid.config.payer);
        if self.look(move |node| node.has_gas_for(&channel, &payer)).await.map_err(IntoResponse::into_response)? {
            return Ok(None);
        }
        let message = "too many deposits and refunds today for what was bought: use what lies in your channels, pay by \
                       exact, or take it out by the contract (initiateWithdraw)";
        Ok(Some(Refusal::new(Reason::TooManyOpen, message)))
    }

    /// `PAYMENT-RESPONSE` of a call: what its customer is told was charged so far.
    pub(super) async fn told(&self, call: &Call) -> Option<String> {
        let channel = self.channel(&call.paid).await?;
        let told = channel.told(call.paid.voucher.max, call.paid.accepted);
        let deposit = call.put_in.map(|(amount, tx)| (amount, tx.0));
        let (_, value) = self.seller.channel_header(&call.paid.channel, &channel, told, deposit);
        value.to_str().ok().map(str::to_owned)
    }

    pub(super) async fn channel(&self, paid: &VerifiedVoucher) -> Option<Channel> {
        let id = paid.channel;
        self.look(move |node| node.live.as_ref()?.state.book.channels().channel(&id).cloned()).await.ok().flatten()
    }

    fn answer_with(&self, terms: &Terms, make: impl FnOnce(&Offers<'_>) -> Challenge) -> Response {
        self.shared.refuse();
        self.with_offers(terms, |offers| refused(&make(offers)))
    }

    /// Asks the main loop something that it answers.
    pub(super) async fn ask<T>(&self, make: impl FnOnce(oneshot::Sender<T>) -> Ask) -> Result<T, Response> {
        let (reply, answer) = oneshot::channel();
        self.cx.tell(Event::Ask(Box::new(make(reply)))).await;
        answer.await.map_err(|_| Problem::for_unavail("the node is stopping", 5).into_response())
    }
}

fn busy() -> Refusal {
    Refusal::new(Reason::ChannelBusy, "the channel is busy: try again in a moment")
}

pub(super) fn chain_is_away(error: &dyn std::fmt::Display) -> Response {
    tracing::warn!(%error, "a channel cannot be read");
    Problem::for_unavail("the chain does not answer; nothing was charged", 2).into_response()
}
