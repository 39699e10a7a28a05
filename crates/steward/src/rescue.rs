//! Collecting signatures for a rescue from the peers' daemons, as many as birth asks of them, and submitting it.

use crate::desk::{Desk, OrderRequest, SignatureAnswer};
use crate::orders::repaid;
use crate::watch::Rescue;
use alloy::primitives::{Address, Bytes, U256};
use anyhow::{Context, Result, ensure};
use chain::orders::{Order, approval, domain, recover, rescue_argument, sign};
use chain::sender::SenderHandle;
use chain::treasury::calls;
use std::time::Duration;

/// A peer that takes longer is passed over; k of n need to answer, not all.
pub const PEER_DEADLINE: Duration = Duration::from_secs(3);

/// Asks the peers one after the other until there are enough signatures, then sends `rescue`.
pub async fn rescue(desk: &Desk, sender: &SenderHandle, treasury: Address, rescue: &Rescue) -> Result<()> {
    let (birth, _) = desk.watched().remove(&treasury).context("the agent is not watched any more")?;
    let chain_id = desk.config.chain_id;
    let (domain, needed) = (domain(chain_id, treasury), usize::from(birth.options.rescueThreshold));
    let rescuers = &birth.options.rescuers;
    // Within `termMax`, which is a uint32 on chain.
    let term = u32::try_from(rescue.term).context("a term beyond what the treasury knows")?;
    let argument = rescue_argument(rescue.offer, term, rescue.prepay_uusdc);
    let order = Order::new("rescue", argument, U256::from(rescue.nonce), rescue.deadline);
    let mut signatures: Vec<Bytes> = vec![sign(&order, &domain, &desk.order_key)?];
    let request = OrderRequest {
        treasury,
        action: "rescue".into(),
        offer: rescue.offer,
        term,
        prepay_uusdc: rescue.prepay_uusdc,
        nonce: rescue.nonce,
        deadline: rescue.deadline,
        signature: sign(&order, &domain, &desk.order_key)?,
    };
    let http = desk.http().with_deadline(PEER_DEADLINE);
    let mut refusals = Vec::new();
    for peer in desk.config.peers.iter().filter(|p| rescuers.contains(&p.address)) {
        if signatures.len() >= needed {
            break;
        }
        let url = format!("{}/sign-order", peer.url.trim_end_matches('/'));
        match http.call_json::<SignatureAnswer>(&url, &request).await {
            Ok(answer) if recover(&order, &domain, &answer.signature).ok() == Some(peer.address) => {
                signatures.push(answer.signature);
            }
            Ok(_) => refusals.push(format!("{} did not sign this order", peer.url)),
            Err(e) => refusals.push(e.to_string()),
        }
    }
    let found = signatures.len();
    ensure!(found >= needed, "{found} of {needed} daemons sign the rescue: {}", refusals.join("; "));
    let approval = approval(&order, &domain, &signatures, rescuers, needed)?;
    let data = calls::rescue(rescue.offer, term, rescue.prepay_uusdc, approval);
    let tx = repaid(desk.eyes.first(), desk.address(), treasury, data, "rescue").await;
    sender.send_and_wait(tx.context("the rescue was not accepted")?).await.context("the rescue was not accepted")?;
    tracing::warn!(%treasury, offer = rescue.offer, term, prepay_uusdc = rescue.prepay_uusdc, "agent rescued");
    Ok(())
}
