//! `vivarium conversations`: what a customer has stored with the agent, and deleting of it.

use super::link::{Link, Place, block_on};
use anyhow::{Context, Result, ensure};
use http::{HeaderMap, Method};
use node::export::ExportRequest;
use std::io::Write;
use std::path::PathBuf;
use vivarium::world::files::read_key;

/// Longest archive that is taken.
const ARCHIVE_BYTES_MAX: usize = 1 << 30;

/// Prints all conversations that a customer stored, as one JSON object, or deletes one.
///
/// The customer is whoever paid: the request is signed with that key, as a message that can be no payment. `--delete`
/// destroys a conversation's key on the agent's host at once, and in its memory with the next checkpoint. What that
/// cannot prove is in the answer.
#[derive(clap::Args)]
pub struct Flags {
    #[command(flatten)]
    place: Place,
    /// Who paid [default: the world's customer]
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// Delete the answer with this id
    #[arg(long, value_name = "ID", conflicts_with = "key")]
    delete: Option<String>,
}

pub fn run(flags: Flags) -> Result<()> {
    block_on(talk(flags))
}

async fn talk(flags: Flags) -> Result<()> {
    let link = flags.place.link()?;
    let answer = match &flags.delete {
        Some(id) => delete(&link, id).await?,
        None => export(&link, &flags).await?,
    };
    std::io::stdout().write_all(&answer).context("cannot write to standard output")
}

async fn export(link: &Link, flags: &Flags) -> Result<Vec<u8>> {
    let world = &link.world;
    let key = read_key(flags.key.as_ref().unwrap_or(&world.customer.key_file))?;
    let at = link.record.chain.head().await?.timestamp;
    let request = ExportRequest::signed(world.treasury, world.chain_id, at, &key).context("the key does not sign")?;
    let url = format!("{}/v1/responses/export", link.record.url().await?);
    let answer = link.http.post_json(&url, &request).await?.success_or_read().await?;
    Ok(answer.bytes(ARCHIVE_BYTES_MAX).await?.to_vec())
}

async fn delete(link: &Link, id: &str) -> Result<Vec<u8>> {
    ensure!(id.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'), "`{id}` is no id of an answer");
    let url = format!("{}/v1/responses/{id}", link.record.url().await?);
    let answer = link.http.send(Method::DELETE, &url, HeaderMap::new(), bytes::Bytes::new()).await?;
    let mut text = answer.success_or_read().await?.bytes(1 << 20).await?.to_vec();
    text.push(b'\n');
    Ok(text)
}
