//! A sale to a contract: nothing its signature says holds until the settlement, simulated, goes through. It is settled
//! before its first byte, whoever it is.

use super::Terms;
use crate::api::Api;
use crate::contract_payers;
use axum::response::Response;
use pay::book::RequestId;
use pay::seller::offers::{Unproven, UnprovenPayment};
use pay::{Refusal, Settle};

impl Api {
    /// The payment of a payer whose key did not sign, once the chain takes it.
    pub(super) async fn contract_payer(&self, payer: Unproven, terms: &Terms) -> Result<Settle, Response> {
        let Unproven { payment, refusal } = payer;
        let settlement = match payment {
            UnprovenPayment::Exact(verified) => Settle::Exact(verified.settlement()),
            UnprovenPayment::Permit2(payment) => Settle::Permit2(payment),
        };
        // Its nonce is used once it has paid, and simulates no more. Only the same signature asks for the same answer:
        // payer and nonce are public, and the book takes whoever names them for the payer.
        let request = RequestId::of_payment(settlement.method(), &settlement.payer(), &settlement.nonce());
        let known = self
            .look(move |node| Some(node.live.as_ref()?.state.book.entry(&request)?.reservation.settlement.clone()))
            .await
            .map_err(axum::response::IntoResponse::into_response)?;
        match known {
            Some(known) if known == settlement => Ok(settlement),
            Some(_) => Err(self.refuse(terms, refusal)),
            None => {
                let simulated = match &settlement {
                    Settle::Exact(exact) => contract_payers::simulate_settlement(&self.cx, exact).await,
                    Settle::Permit2(payment) => contract_payers::simulate_permit2(&self.cx, payment).await,
                };
                // "No contract there" says less than what is wrong with the signature as a key's.
                let why = |found: Refusal| if found.reason == refusal.reason { refusal.clone() } else { found };
                simulated.map(|()| settlement).map_err(|found| self.refuse(terms, why(found)))
            }
        }
    }
}
