//! Collecting the quorum's signatures for a rescue from the peers' daemons, and submitting it.

use crate::desk::{Desk, OrderRequest, SignatureAnswer};
use crate::orders::{Action, OrderFile};
use crate::watch::Rescue;
use alloy::primitives::Address;
use anyhow::{Context, Result, bail};
use chain::sender::{SenderHandle, Tx};
use chain::treasury::calls;
use std::time::Duration;

/// A peer that takes longer is passed over; k of n need to answer, not all.
const PEER_DEADLINE: Duration = Duration::from_secs(3);

/// Asks the peers one after the other until there are enough signatures, then sends `rescue`.
pub async fn rescue(desk: &Desk, sender: &SenderHandle, treasury: Address, rescue: &Rescue) -> Result<()> {
    // Within `termMax`, which is a uint32 on chain.
    let term = u32::try_from(rescue.term).context("a term beyond what the treasury knows")?;
    let action = Action::Rescue { offer: rescue.offer, term, prepay_uusdc: rescue.prepay_uusdc };
    let mut order = OrderFile::new(desk.eyes.first(), treasury, action, rescue.nonce, rescue.deadline).await?;
    order.sign(&desk.order_key)?;
    let request = OrderRequest {
        treasury,
        action: "rescue".into(),
        offer: rescue.offer,
        term,
        prepay_uusdc: rescue.prepay_uusdc,
        nonce: rescue.nonce,
        deadline: rescue.deadline,
    };
    let http = desk.http().with_deadline(PEER_DEADLINE);
    let mut refusals = Vec::new();
    for peer in &desk.config.peers {
        if order.approval().is_ok() {
            break;
        }
        let url = format!("{}/sign-order", peer.url.trim_end_matches('/'));
        match http.call_json::<SignatureAnswer>(&url, &request).await {
            Ok(answer) if order.accept(peer.address, &answer.signature) => {}
            Ok(_) => refusals.push(format!("{} did not sign this order", peer.url)),
            Err(e) => refusals.push(e.to_string()),
        }
    }
    let approval = match order.approval() {
        Ok(approval) => approval,
        Err(missing) => bail!("no rescue: {missing}: {}", refusals.join("; ")),
    };
    let data = calls::rescue(rescue.offer, term, rescue.prepay_uusdc, approval);
    sender.send_and_wait(Tx::call(treasury, data, "rescue")).await.context("the rescue was not accepted")?;
    tracing::warn!(%treasury, offer = rescue.offer, term, prepay_uusdc = rescue.prepay_uusdc, "agent rescued");
    Ok(())
}
