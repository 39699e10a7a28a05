//! The weights on this host: fetched by CID from untrusted stores, verified, put in place once.

use crate::context::Context;
use crate::error::{Error, Result};
use crate::manifest::{Adapter, Model};
use sha2::{Digest, Sha256};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use store::Blocks;
use store::fetch::Fetcher;
use store::unixfs::Limits;

/// A file that the manifest names.
pub struct Weights<'a> {
    cid: &'a str,
    file: &'a str,
    sha256: &'a str,
    bytes: u64,
}

impl<'a> From<&'a Model> for Weights<'a> {
    fn from(model: &'a Model) -> Self {
        Self { cid: &model.cid, file: &model.file, sha256: &model.sha256, bytes: model.bytes }
    }
}

impl<'a> From<&'a Adapter> for Weights<'a> {
    fn from(adapter: &'a Adapter) -> Self {
        Self { cid: &adapter.cid, file: &adapter.file, sha256: &adapter.sha256, bytes: adapter.bytes }
    }
}

/// A model's or adapter's file, fetched if it is not here yet. Every block is verified on arrival, and the whole file
/// against the manifest's sha2-256 once more before the engine maps it.
pub async fn ready<'a>(cx: &Context, weights: impl Into<Weights<'a>>) -> Result<PathBuf> {
    let model = weights.into();
    let dir = cx.config.data_dir.join("model");
    let path = dir.join(safe_name(model.file)?);
    if matches(&path, model.bytes, model.sha256).await? {
        return Ok(path);
    }
    let cid = store::cid::parse(model.cid).map_err(|e| Error::usage("the manifest's model CID").caused_by(e))?;
    // Of its own: another model may be on its way at the same time.
    let gathered = dir.join(format!("blocks-{cid}"));
    let blocks = Blocks::open(&gathered).map_err(|e| Error::retry("no place for the weights").caused_by(e))?;
    let mut fetcher = Fetcher::new(cx.http.clone(), cx.config.store_urls.clone());
    if let Some((arweave, transaction)) = cx.manifest.archive.of(&cx.http, &cid) {
        fetcher = fetcher.with_archive(arweave, transaction);
    }
    let told = AtomicU64::new(0);
    let progress = |p: &store::fetch::Progress| {
        let percent = p.bytes_total.filter(|t| *t > 0).map_or(0, |total| p.bytes_done.saturating_mul(100) / total);
        if percent >= told.load(Ordering::Relaxed) + 25 {
            told.store(percent, Ordering::Relaxed);
            tracing::info!(percent, bytes = p.bytes_done, "fetching the weights");
        }
    };
    fetcher
        .fetch_file(&blocks, &cid, &path, Limits::default(), progress)
        .await
        .map_err(|e| Error::retry(format!("the weights {cid} cannot be fetched")).caused_by(e))?;
    if !matches(&path, model.bytes, model.sha256).await? {
        return Err(Error::usage(format!(
            "the weights {cid} are not the file the manifest names: expected {} bytes, sha2-256 {}",
            model.bytes, model.sha256
        )));
    }
    // The file is whole and checked: the blocks have done their work.
    drop(blocks);
    let _ = std::fs::remove_dir_all(&gathered);
    Ok(path)
}

/// A manifest is a stranger's text: its file name must not leave the directory.
fn safe_name(name: &str) -> Result<&str> {
    let plain = !name.is_empty()
        && name.len() <= 128
        && !name.starts_with('.')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
    if plain { Ok(name) } else { Err(Error::usage(format!("`model.file` = {name:?} is not a plain file name"))) }
}

async fn matches(path: &Path, bytes: u64, sha256: &str) -> Result<bool> {
    let (path, expected) = (path.to_owned(), sha256.to_ascii_lowercase());
    let hashed = tokio::task::spawn_blocking(move || -> std::io::Result<bool> {
        let mut file = match std::fs::File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(false),
            Err(e) => return Err(e),
        };
        if file.metadata()?.len() != bytes {
            return Ok(false);
        }
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; 1 << 20];
        loop {
            let read = file.read(&mut buffer)?;
            if read == 0 {
                break;
            }
            hasher.update(&buffer[..read]);
        }
        Ok(hex::encode(hasher.finalize()) == expected)
    })
    .await
    .map_err(|e| Error::bug("hashing the weights was broken off").caused_by(e))?;
    hashed.map_err(|e| Error::retry("the weights cannot be read").caused_by(e))
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
