//! `vivarium receipt`: fetches a receipt and checks its signature against the chain's record.

use super::link::{Place, block_on};
use anyhow::{Context, Result, ensure};
use pay::receipt::SignedReceipt;
use serde_json::json;

/// Fetches the signed receipt of a call and checks it.
///
/// A good receipt is signed by the operator of this treasury and names this treasury and chain. One from an
/// earlier epoch is signed by that epoch's operator: its address is then shown, not compared.
#[derive(clap::Args)]
pub struct Flags {
    /// The call's request id, as `vivarium ask` prints it
    id: String,
    #[command(flatten)]
    place: Place,
    /// One JSON object: {"receipt": …, "signer", "is_operator_now"}
    #[arg(long)]
    json: bool,
}

pub fn run(flags: Flags) -> Result<()> {
    block_on(async {
        let link = flags.place.link()?;
        let value = link.get(&format!("/receipts/{}", flags.id)).await?;
        let signed = SignedReceipt::from_json(&value.to_string()).context("the agent's receipt is not a receipt")?;
        let receipt = &signed.receipt;
        ensure!(receipt.agent == link.world.treasury, "the receipt is for another agent ({})", receipt.agent);
        ensure!(receipt.chain_id == link.world.chain_id, "the receipt is for another chain ({})", receipt.chain_id);
        let signer = signed.signer().context("the receipt's signature is not valid")?;
        let state = link.record.read().await?.state;
        let now = state.epoch == receipt.epoch;
        ensure!(
            !now || signer == state.operator,
            "the receipt is signed by {signer}, the operator is {}",
            state.operator
        );
        if flags.json {
            println!("{}", json!({ "receipt": value, "signer": signer, "is_operator_now": now }));
        } else {
            println!("receipt     {} (epoch {})", flags.id, receipt.epoch);
            println!("paid        {} by {}", receipt.amount, receipt.payer);
            println!(
                "for         {} prompt and {} completion tokens",
                receipt.prompt_tokens, receipt.completion_tokens
            );
            println!(
                "signed by   {signer}{}",
                if now { ", the operator now" } else { ", operator of an earlier epoch" }
            );
        }
        Ok(())
    })
}
