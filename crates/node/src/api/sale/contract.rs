//! A sale to a contract: nothing its signature says holds until the settlement, simulated, goes through. It is settled
//! before its first byte, whoever it is.

use super::Terms;
use crate::api::Api;
use crate::contract_payers;
use axum::response::Response;
use pay::book::RequestId;
use pay::seller::offers::{Unproven, UnprovenPayment};
use pay::{Refusal, Settle, TransferMethod, Verified};

impl Api {
    /// The payment of a payer whose key did not sign, once the chain takes it.
    pub(super) async fn contract_payer(&self, payer: Unproven, terms: &Terms) -> Result<Verified, Response> {
        let Unproven { payment: UnprovenPayment::Exact(verified), refusal } = payer else {
            return Err(self.refuse(terms, payer.refusal));
        };
        // Its nonce is used once it has paid, and simulates no more. Only the same signature asks for the same answer:
        // payer and nonce are public, and the book takes whoever names them for the payer.
        let request = RequestId::of_payment(TransferMethod::Eip3009, &verified.payer.into_array(), &verified.nonce.0);
        let known = self
            .look(move |node| Some(node.live.as_ref()?.state.book.entry(&request)?.reservation.settlement.clone()))
            .await
            .map_err(axum::response::IntoResponse::into_response)?;
        let settlement = verified.settlement();
        match known {
            Some(Settle::Exact(known)) if known == settlement => Ok(verified),
            Some(_) => Err(self.refuse(terms, refusal)),
            None => {
                let simulated = contract_payers::simulate_settlement(&self.cx, &settlement).await;
                // "No contract there" says less than what is wrong with the signature as a key's.
                let why = |found: Refusal| if found.reason == refusal.reason { refusal.clone() } else { found };
                simulated.map(|()| verified).map_err(|found| self.refuse(terms, why(found)))
            }
        }
    }
}
