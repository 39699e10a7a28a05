//! `vivarium fund`: a gift to the agent.

use super::link::{Place, block_on};
use anyhow::{Result, ensure};
use economy::Usdc;
use serde_json::json;
use std::path::PathBuf;
use vivarium::world::files::read_key;
use vivarium::world::wallet::Wallet;

/// Sends test USDC to the agent's treasury. The agent books it as a gift; nobody gets rights by it. One that sleeps is woken
/// once it has enough, which this says.
#[derive(clap::Args)]
pub struct Flags {
    /// USDC, like 5 or 0.25
    #[arg(value_parser = Usdc::parse)]
    amount: Usdc,
    #[command(flatten)]
    place: Place,
    /// Who gives [default: the world's customer]
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// One JSON object: {"transaction", "amount_uusdc", "treasury"}
    #[arg(long)]
    json: bool,
}

pub fn run(flags: Flags) -> Result<()> {
    ensure!(!flags.amount.is_zero(), "fund 0: name an amount above zero");
    block_on(async {
        let link = flags.place.link()?;
        let key_file = flags.key.as_ref().unwrap_or(&link.world.customer.key_file);
        let wallet = Wallet::new(link.record.chain.clone(), read_key(key_file)?);
        let (usdc, treasury) = (link.world.usdc, link.world.treasury);
        let balance = link.record.chain.usdc(usdc).balance(wallet.address()).await?;
        ensure!(
            balance >= alloy::primitives::U256::from(flags.amount.micro()),
            "{} has only {}; give less, or use another --key",
            wallet.address(),
            u128::try_from(balance).map_or_else(|_| balance.to_string(), |b| Usdc(b).to_string())
        );
        // Asked before, because stewards may have woken it a block later.
        let sleep = match flags.json {
            true => None,
            false => {
                let state = link.record.read().await?.state;
                let had = Usdc(state.balance.saturating_to());
                link.record.sleep(&state).await?.map(|sleep| (sleep, had))
            }
        };
        let gift = chain::usdc::calls::transfer(treasury, flags.amount.micro());
        let done = wallet.send(chain::Tx::call(usdc, gift, "the gift")).await?;
        if flags.json {
            let amount = flags.amount.micro().to_string();
            println!("{}", json!({ "transaction": done.tx_hash, "amount_uusdc": amount, "treasury": treasury }));
        } else {
            println!("gave {} to {treasury} (transaction {})", flags.amount, done.tx_hash);
            if let Some((sleep, had)) = sleep {
                println!("it sleeps; {}", sleep.wants(had.saturating_add(flags.amount)));
            }
        }
        Ok(())
    })
}
