//! What several endpoints agree on: a head, and what is read there. A liar or a laggard among them cannot make it up alone.

use crate::error::Error;
use crate::rpc::{Chain, Head};
use futures::future::try_join_all;
use std::future::Future;

/// Blocks by which one endpoint may lie behind another. A guess: public endpoints of one chain are a few blocks apart,
/// and twenty are less than a minute of most chains.
pub const LAG_BLOCKS_MAX: u64 = 20;

/// The newest block that all `chains` have, the same at each. With one endpoint: its newest block.
///
/// # Errors
/// `Rpc` when an endpoint does not answer, when one lies more than [`LAG_BLOCKS_MAX`] blocks behind another, when they
/// differ about the block's hash, and for no endpoint at all. None of it says who is right: look again later.
pub async fn common_head(chains: &[Chain]) -> Result<Head, Error> {
    let mut heads = Vec::with_capacity(chains.len());
    for chain in chains {
        heads.push((chain, chain.head().await?));
    }
    let newest = heads.iter().map(|(_, head)| head.number).max().unwrap_or_default();
    let Some((behind, lowest)) = heads.iter().min_by_key(|(_, head)| head.number).copied() else {
        return Err(Error::rpc("no endpoint"));
    };
    if newest - lowest.number > LAG_BLOCKS_MAX {
        let lag = newest - lowest.number;
        return Err(Error::rpc(format!("{} is {lag} blocks behind another endpoint", behind.url())));
    }
    for (chain, head) in heads {
        // Its own word on its newest block needs no second question.
        let same = if head.number == lowest.number { Some(head) } else { chain.block_at(lowest.number).await? };
        if same.is_none_or(|block| block.hash != lowest.hash) {
            return Err(Error::rpc(format!("{} has another block {}", chain.url(), lowest.number)));
        }
    }
    Ok(lowest)
}

/// One read at every endpoint, side by side: what all of them answer. Read at one block, by its hash.
///
/// # Errors
/// As the read's own, `Rpc` when two answers differ (which of them is true, nobody can say: look again later), and for no
/// endpoint at all.
pub async fn agreed<T, F>(chains: &[Chain], what: &str, read: impl Fn(Chain) -> F) -> Result<T, Error>
where
    T: PartialEq,
    F: Future<Output = Result<T, Error>>,
{
    let mut answers = try_join_all(chains.iter().map(|chain| read(chain.clone()))).await?;
    let Some(first) = answers.pop() else { return Err(Error::rpc("no endpoint")) };
    match answers.iter().position(|answer| *answer != first) {
        Some(at) => {
            let (one, other) = (chains[at].url(), chains[answers.len()].url());
            Err(Error::rpc(format!("{one} and {other} differ about {what}")))
        }
        None => Ok(first),
    }
}
