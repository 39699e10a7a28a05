//! What a lease leaves on the provider's disk.
//!
//! ```text
//! leases/<id>/seal.key      32 random bytes in hex, 0600; overwritten and removed first when the lease ends
//! leases/<id>/tenant.json   written again at each start
//! leases/<id>/port          the tenant's port, chosen once
//! leases/<id>/gift          the node key that the lease's one gift of gas is for; written before that leaves
//! leases/<id>/log, log.1    what it said
//! leases/<id>/data/         the only part that the tenant can write
//! ```

use crate::error::{Error, Result};
use rand::Rng;
use serde::Serialize;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Seek, SeekFrom, Write};
use std::net::{IpAddr, TcpListener};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The directory of one lease.
#[derive(Clone, Debug)]
pub struct LeaseDir {
    path: PathBuf,
}

/// `tenant.json`: what the node is told. The node refuses unknown keys, so this is the whole of it.
#[derive(Clone, Debug, Serialize)]
pub struct TenantFile<'a> {
    pub rpc_urls: &'a [String],
    pub chain_id: u64,
    pub treasury: String,
    pub lease_market: String,
    pub lease: u64,
    pub store_urls: &'a [String],
    pub listen: String,
    pub public_url: String,
    pub data_dir: &'static str,
    pub code_dir: &'static str,
    pub seal_key_file: &'static str,
    pub threads: u32,
}

impl LeaseDir {
    /// The directory of `lease` under `root`, made with its seal key if it is new.
    pub fn open(root: &Path, lease: u64) -> Result<Self> {
        let dir = Self { path: root.join(lease.to_string()) };
        let failed = |e: std::io::Error| Error::retry(format!("cannot make {}", dir.path.display())).caused_by(e);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir.data()).map_err(failed)?;
        dir.make_seal_key().map_err(failed)?;
        Ok(dir)
    }

    /// The leases that have a directory. Anything else in `root` is left alone.
    pub fn list(root: &Path) -> Result<Vec<u64>> {
        let failed = |e: std::io::Error| Error::retry(format!("cannot read {}", root.display())).caused_by(e);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(root).map_err(failed)?;
        let mut leases = Vec::new();
        for entry in fs::read_dir(root).map_err(failed)? {
            if let Some(lease) = entry.map_err(failed)?.file_name().to_str().and_then(|n| n.parse().ok()) {
                leases.push(lease);
            }
        }
        leases.sort_unstable();
        Ok(leases)
    }

    pub fn data(&self) -> PathBuf {
        self.path.join("data")
    }

    pub fn seal_key(&self) -> PathBuf {
        self.path.join("seal.key")
    }

    pub fn tenant_file(&self) -> PathBuf {
        self.path.join("tenant.json")
    }

    pub fn log(&self) -> PathBuf {
        self.path.join("log")
    }

    /// The port of this lease: chosen once and kept, so that the announced URL stays true over restarts.
    ///
    /// Taken from below the range that the kernel hands to outgoing connections (32768 upwards), so that
    /// nothing takes it by accident while the tenant restarts.
    pub fn port(&self, ip: IpAddr) -> Result<u16> {
        let path = self.path.join("port");
        match fs::read_to_string(&path) {
            Ok(text) => {
                let bad = |e| Error::setup(format!("{} does not hold a port", path.display())).caused_by(e);
                return text.trim().parse().map_err(|e: std::num::ParseIntError| bad(e));
            }
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => return Err(Error::retry(format!("cannot read {}", path.display())).caused_by(e)),
        }
        let mut dice = rand::rng();
        for _ in 0..200 {
            let port = 20_000 + u16::try_from(dice.next_u32() % 12_000).unwrap_or(0);
            if TcpListener::bind((ip, port)).is_ok() {
                write_whole(&path, port.to_string().as_bytes(), 0o600)
                    .map_err(|e| Error::retry(format!("cannot write {}", path.display())).caused_by(e))?;
                return Ok(port);
            }
        }
        Err(Error::retry(format!("no free port between 20000 and 31999 on {ip}")))
    }

    /// Notes that the lease's gift of gas goes to `node_key`. False when one is noted already, by this daemon or one before it:
    /// then there is no second.
    ///
    /// A daemon that dies between this and the gift leaves the lease without one. The other order would have every start pay.
    pub fn note_gift(root: &Path, lease: u64, node_key: &str) -> Result<bool> {
        let path = root.join(lease.to_string()).join("gift");
        let failed = |e: std::io::Error| Error::retry(format!("cannot write {}", path.display())).caused_by(e);
        if path.try_exists().map_err(failed)? {
            return Ok(false);
        }
        write_whole(&path, node_key.as_bytes(), 0o600).map_err(failed)?;
        Ok(true)
    }

    /// The gift that is noted has not left, and will not.
    pub fn forget_gift(root: &Path, lease: u64) -> Result<()> {
        let path = root.join(lease.to_string()).join("gift");
        match fs::remove_file(&path) {
            Err(e) if e.kind() != ErrorKind::NotFound => {
                Err(Error::retry(format!("cannot remove {}", path.display())).caused_by(e))
            }
            _ => Ok(()),
        }
    }

    pub fn write_tenant_file(&self, tenant: &TenantFile) -> Result<()> {
        let failed =
            |e: std::io::Error| Error::retry(format!("cannot write {}", self.tenant_file().display())).caused_by(e);
        let text = serde_json::to_vec_pretty(tenant).map_err(|e| failed(e.into()))?;
        write_whole(&self.tenant_file(), &text, 0o644).map_err(failed)
    }

    /// Overwrites and removes the seal key, then removes everything else. Can be repeated after a crash.
    ///
    /// On a disk that writes elsewhere (copy-on-write, flash) the old bytes may outlive this; the docs of the
    /// provider say so.
    pub fn destroy(root: &Path, lease: u64) -> Result<()> {
        let dir = Self { path: root.join(lease.to_string()) };
        let failed = |e: std::io::Error| Error::retry(format!("cannot destroy {}", dir.path.display())).caused_by(e);
        dir.destroy_seal_key().map_err(failed)?;
        match fs::remove_dir_all(&dir.path) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(failed(e)),
            _ => Ok(()),
        }
    }

    fn make_seal_key(&self) -> std::io::Result<()> {
        if self.seal_key().exists() {
            return Ok(());
        }
        let mut key = [0u8; 32];
        rand::rng().fill_bytes(&mut key);
        write_whole(&self.seal_key(), hex::encode(key).as_bytes(), 0o600)
    }

    fn destroy_seal_key(&self) -> std::io::Result<()> {
        let path = self.seal_key();
        let mut file = match OpenOptions::new().write(true).open(&path) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
            opened => opened?,
        };
        let length = usize::try_from(file.metadata()?.len()).unwrap_or(64);
        file.seek(SeekFrom::Start(0))?;
        file.write_all(&vec![b'0'; length])?;
        file.sync_all()?;
        fs::remove_file(&path)
    }
}

/// All of it or nothing, on the disk when this returns.
fn write_whole(path: &Path, bytes: &[u8], mode: u32) -> std::io::Result<()> {
    let temporary = path.with_extension("new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn key_and_port_are_made_once_and_kept() {
        let root = tempfile::tempdir().unwrap();
        let ip = IpAddr::from([127, 0, 0, 1]);
        let dir = LeaseDir::open(root.path(), 7).unwrap();
        let (key, port) = (fs::read(dir.seal_key()).unwrap(), dir.port(ip).unwrap());
        assert_eq!(key.len(), 64);
        assert_eq!(fs::metadata(dir.seal_key()).unwrap().permissions().mode() & 0o777, 0o600);
        let _taken = TcpListener::bind((ip, port)).unwrap();
        let again = LeaseDir::open(root.path(), 7).unwrap();
        assert_eq!((fs::read(again.seal_key()).unwrap(), again.port(ip).unwrap()), (key.clone(), port));
        let other = LeaseDir::open(root.path(), 8).unwrap();
        assert_ne!(fs::read(other.seal_key()).unwrap(), key);
        assert_ne!(other.port(ip).unwrap(), port, "a taken port was handed out");
        assert_eq!(LeaseDir::list(root.path()).unwrap(), [7, 8]);
    }

    #[test]
    fn a_gift_is_noted_once_a_lease_until_it_is_known_not_to_have_left() {
        let root = tempfile::tempdir().unwrap();
        for lease in [7, 8] {
            LeaseDir::open(root.path(), lease).unwrap();
            assert!(LeaseDir::note_gift(root.path(), lease, "0x01").unwrap());
        }
        assert!(!LeaseDir::note_gift(root.path(), 7, "0x02").unwrap());
        assert_eq!(fs::read_to_string(root.path().join("7/gift")).unwrap(), "0x01");
        LeaseDir::forget_gift(root.path(), 7).unwrap();
        LeaseDir::forget_gift(root.path(), 7).unwrap();
        assert!(LeaseDir::note_gift(root.path(), 7, "0x02").unwrap());
        assert!(!LeaseDir::note_gift(root.path(), 8, "0x02").unwrap());
        // A disk that cannot keep it: no gift.
        LeaseDir::note_gift(root.path(), 9, "0x01").unwrap_err();
    }

    #[test]
    fn destroying_overwrites_the_key_and_does_not_follow_links() {
        let root = tempfile::tempdir().unwrap();
        let outside = root.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("precious"), "x").unwrap();
        let leases = root.path().join("leases");
        let dir = LeaseDir::open(&leases, 7).unwrap();
        std::os::unix::fs::symlink(&outside, dir.data().join("link")).unwrap();
        // A second name of the same file shows what became of its bytes.
        let witness = root.path().join("witness");
        fs::hard_link(dir.seal_key(), &witness).unwrap();
        LeaseDir::destroy(&leases, 7).unwrap();
        assert_eq!(fs::read_to_string(&witness).unwrap(), "0".repeat(64));
        assert!(outside.join("precious").exists());
        assert_eq!(LeaseDir::list(&leases).unwrap(), [] as [u64; 0]);
        LeaseDir::destroy(&leases, 7).unwrap();
    }
}
