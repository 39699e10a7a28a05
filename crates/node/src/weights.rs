//! The weights on this host: fetched by CID from untrusted stores, verified, and read while the tail arrives.

use crate::context::Context;
use crate::error::{Error, Result};
use crate::manifest::{Adapter, Further, Model};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use store::Blocks;
use store::fetch::Fetcher;
use tokio::sync::watch;

/// A file that the manifest names.
#[derive(Clone, Copy)]
pub struct Weights<'a> {
    cid: &'a str,
    file: &'a str,
    bytes: u64,
}

impl<'a> From<&'a Model> for Weights<'a> {
    fn from(model: &'a Model) -> Self {
        Self { cid: &model.cid, file: &model.file, bytes: model.bytes }
    }
}

impl<'a> From<&'a Further> for Weights<'a> {
    fn from(model: &'a Further) -> Self {
        Self { cid: &model.cid, file: &model.file, bytes: model.bytes }
    }
}

impl<'a> From<&'a Adapter> for Weights<'a> {
    fn from(adapter: &'a Adapter) -> Self {
        Self { cid: &adapter.cid, file: &adapter.file, bytes: adapter.bytes }
    }
}

/// Where a model's or adapter's file belongs.
pub fn path<'a>(cx: &Context, weights: impl Into<Weights<'a>>) -> Result<PathBuf> {
    Ok(cx.config.data_dir.join("model").join(safe_name(weights.into().file)?))
}

/// A model's or adapter's file, whole: fetched if it is not here yet.
pub async fn ready<'a>(cx: &Context, weights: impl Into<Weights<'a>>) -> Result<PathBuf> {
    let weights = weights.into();
    let path = path(cx, weights)?;
    arrive(cx, weights, watch::Sender::new(0)).await?;
    Ok(path)
}

/// Fetches what is missing of the file into its place; `verified` says how far it is right from its start, and closes
/// when this ends. Every block is checked, on arrival or where it lies, by the manifest's CID: at each start once, and
/// no byte of it twice.
pub async fn arrive<'a>(cx: &Context, weights: impl Into<Weights<'a>>, verified: watch::Sender<u64>) -> Result<()> {
    let weights = weights.into();
    let path = path(cx, weights)?;
    let cid = store::cid::parse(weights.cid).map_err(|e| Error::usage("the manifest's model CID").caused_by(e))?;
    let no_place = |e: store::Error| Error::retry("no place for the weights").caused_by(e);
    // Of its own: another model may be on its way at the same time. It stays: the file is checked by it at each start.
    let nodes = Blocks::open(path.with_file_name(format!("nodes-{cid}"))).map_err(no_place)?;
    let mut fetcher = Fetcher::new(cx.http.clone(), cx.config.store_urls.clone());
    if let Some((arweave, transaction)) = cx.manifest.archive.of(&cx.http, &cid) {
        fetcher = fetcher.with_archive(arweave, transaction);
    }
    let told = AtomicU64::new(0);
    let progress = |p: &store::fetch::Progress| {
        let percent = p.bytes_total.filter(|t| *t > 0).map_or(0, |total| p.bytes_done.saturating_mul(100) / total);
        if percent >= told.load(Ordering::Relaxed) + 25 {
            told.store(percent, Ordering::Relaxed);
            tracing::info!(percent, bytes = p.bytes_done, "the weights are arriving");
        }
    };
    let fetched = fetcher.fetch_in_place(&nodes, &cid, (&path, weights.bytes), verified, progress).await;
    fetched.map_err(|e| Error::retry(format!("the weights {cid} cannot be fetched")).caused_by(e))?;
    let bytes = std::fs::metadata(&path).map_err(|e| Error::retry("the weights are gone").caused_by(e))?.len();
    if bytes != weights.bytes {
        let named = weights.bytes;
        return Err(Error::usage(format!("the weights {cid} hold {bytes} bytes, and the manifest names {named}")));
    }
    Ok(())
}

/// A manifest is a stranger's text: its file name must not leave the directory.
fn safe_name(name: &str) -> Result<&str> {
    let plain = !name.is_empty()
        && name.len() <= 128
        && !name.starts_with('.')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
    if plain { Ok(name) } else { Err(Error::usage(format!("`model.file` = {name:?} is not a plain file name"))) }
}

#[cfg(test)]
mod tests {
    use super::safe_name;

    #[test]
    fn a_manifest_cannot_name_a_file_elsewhere() {
        assert!(safe_name("SmolLM2-135M-Instruct.Q4_1.gguf").is_ok());
        for bad in ["", "../x", "/etc/passwd", ".hidden", "a/b", "a\0b"] {
            assert!(safe_name(bad).is_err(), "{bad:?}");
        }
    }
}
