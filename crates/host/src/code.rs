//! Tenants' programs: fetched by CID from stores that nobody needs to trust, verified, laid out once.

use crate::config::HostConfig;
use crate::error::{Error, Result};
use crate::lease_loop::CodeDigest;
use std::path::PathBuf;
use store::fetch::Fetcher;
use store::unixfs::{Limits, export};
use store::{Blocks, cid};

/// Bytes of one tenant's code at most. A guess: a program and an engine for every kind of processor are 100 MB.
const CODE_BYTES_MAX: u64 = 4 << 30;
/// Files and directories of one tenant's code at most.
const CODE_ENTRIES_MAX: u64 = 4096;

/// The code of all tenants, in `code/<cid>/`, and the blocks it came in, in `blocks/`.
#[derive(Clone, Debug)]
pub struct Codes {
    blocks: Blocks,
    root: PathBuf,
    fetcher: Fetcher,
}

impl Codes {
    pub fn open(config: &HostConfig) -> Result<Self> {
        let root = config.data_dir.join("code");
        std::fs::create_dir_all(&root)
            .map_err(|e| Error::setup(format!("cannot make {}", root.display())).caused_by(e))?;
        let blocks = Blocks::open(config.data_dir.join("blocks"))
            .map_err(|e| Error::setup("no place for tenants' code").caused_by(e))?;
        let fetcher = Fetcher::new(net::Client::new(), config.store_urls.clone()).with_bytes_max(CODE_BYTES_MAX);
        Ok(Self { blocks, root, fetcher })
    }

    /// Where [`Codes::fetch`] puts it: a directory that appears only when it is whole.
    pub fn dir(&self, code: CodeDigest) -> PathBuf {
        self.root.join(cid::dag_pb(code).to_string())
    }

    /// Makes the code present. Blocks that are here already are not asked for again; a directory that is laid
    /// out already is taken as it is, for only this daemon writes there and tenants see it read-only.
    pub async fn fetch(&self, code: CodeDigest) -> Result<()> {
        let (root, dir) = (cid::dag_pb(code), self.dir(code));
        if dir.is_dir() {
            return Ok(());
        }
        self.fetcher
            .fetch_dag(&self.blocks, &root, |_| ())
            .await
            .map_err(|e| Error::retry(format!("the tenant's code {root} cannot be fetched")).caused_by(e))?;
        let blocks = self.blocks.clone();
        let limits = Limits { bytes_max: CODE_BYTES_MAX, entries_max: CODE_ENTRIES_MAX, executable: true };
        let laid_out = tokio::task::spawn_blocking(move || export(&blocks, &root, &dir, limits)).await;
        match laid_out {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(e)) => Err(Error::tenant(format!("the tenant's code {root} cannot be laid out")).caused_by(e)),
            Err(e) => Err(Error::retry("laying out the tenant's code was broken off").caused_by(e)),
        }
    }
}
