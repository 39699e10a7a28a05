use crate::blocks::Blocks;
use crate::cid;
use crate::cli::ADDED;
use crate::error::Result;
use crate::kubo::Kubo;
use serde::Serialize;
use std::path::Path;

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Shared {
    pub cid: String,
    /// Blocks that moved.
    pub blocks: u64,
}

/// Puts a graph, which must be here whole, into a Kubo node, pins it there and announces it if told to. `progress` hears
/// the blocks sent so far.
pub async fn add(dir: &Path, cid: &str, api: String, announces: Announce, progress: impl Fn(u64)) -> Result<Shared> {
    let (root, blocks) = (cid::parse(cid)?, Blocks::open(dir)?);
    let kubo = Kubo::new(net::Client::new(), api);
    let count = kubo.add(&blocks, &root, progress).await?;
    if announces == Announce::Yes {
        kubo.provide(&root).await?;
    }
    Ok(Shared { cid: cid.to_owned(), blocks: count })
}

/// Whether a node tells the network what it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Announce {
    Yes,
    No,
}

/// Brings a graph here out of a Kubo node, block by block, and pins it. `progress` hears the blocks that came so far.
pub async fn get(dir: &Path, cid: &str, api: String, progress: impl Fn(u64)) -> Result<Shared> {
    let (root, blocks) = (cid::parse(cid)?, Blocks::open(dir)?);
    let _writing = blocks.writing()?;
    let count = Kubo::new(net::Client::new(), api).fetch(&blocks, &root, progress).await?;
    blocks.pin(&root, ADDED)?;
    Ok(Shared { cid: cid.to_owned(), blocks: count })
}
