//! The files of a world: `world.json` for programs, `internal.json` for ourselves, development keys, the lock.
//!
//! Everything is written whole under another name and then renamed: a reader sees the old file or the new one.

use alloy::primitives::Address;
use alloy::signers::local::PrivateKeySigner;
use anyhow::{Context, Result, anyhow, bail};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Where a world lies unless told otherwise, relative to the working folder.
pub const DEFAULT_DIR: &str = ".vivarium/world";
/// Names the folder of the world that commands talk to.
pub const DIR_VARIABLE: &str = "VIVARIUM_WORLD";
const VERSION: u32 = 1;

/// The folder of one world.
#[derive(Clone, Debug)]
pub struct Folder {
    path: PathBuf,
}

/// `world.json`: what a program needs to talk to a running world. Kept current by `up`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorldFile {
    pub version: u32,
    pub rpc_url: String,
    pub chain_id: u64,
    pub usdc: Address,
    pub treasury: Address,
    pub lease_market: Address,
    /// The payment channel's contract; `null` until channels are offered.
    pub channel: Option<Address>,
    pub agent: AgentEntry,
    pub providers: Vec<ProviderEntry>,
    pub stewards: Vec<StewardEntry>,
    pub customer: KeyEntry,
}

/// Where the agent lives now, by the on-chain record.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentEntry {
    /// `null` while nobody is operator.
    pub url: Option<String>,
    pub operator: Option<Address>,
    pub epoch: u64,
    /// Process id of the tenant that serves, as far as its provider can tell.
    pub pid: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProviderEntry {
    pub url: String,
    /// `null` while the daemon is down.
    pub pid: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StewardEntry {
    pub address: Address,
    /// The order key: with k of these `vivarium steward …` acts.
    pub key_file: PathBuf,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyEntry {
    pub address: Address,
    pub key_file: PathBuf,
}

impl WorldFile {
    pub const VERSION: u32 = VERSION;

    /// Reads the world in `dir`, or says how to get one.
    pub fn load(dir: &Path) -> Result<Self> {
        let path = dir.join("world.json");
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == ErrorKind::NotFound => bail!(
                "there is no world in {} (no world.json); start one with `vivarium up`, or name another with --data-dir",
                dir.display()
            ),
            Err(e) => return Err(e).with_context(|| format!("cannot read {}", path.display())),
        };
        let world: Self =
            serde_json::from_str(&text).with_context(|| format!("{} is not a world file", path.display()))?;
        if world.version != VERSION {
            bail!(
                "{} has version {}, this program reads {VERSION}; use the program that wrote it",
                path.display(),
                world.version
            );
        }
        Ok(world)
    }
}

impl Folder {
    /// The folder `path`, created (0700) if it is not there.
    pub fn create(path: &Path) -> Result<Self> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .with_context(|| format!("cannot create the world's folder {}", path.display()))?;
        let path = path.canonicalize().with_context(|| format!("cannot resolve {}", path.display()))?;
        Ok(Self { path })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path.join(name)
    }

    /// A folder inside, created if it is not there.
    pub fn subfolder(&self, name: &str) -> Result<PathBuf> {
        let path = self.path.join(name);
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&path)
            .with_context(|| format!("cannot create {}", path.display()))?;
        Ok(path)
    }

    /// Takes the world for this process; the lock ends with it, however it ends.
    pub fn lock(&self) -> Result<Lock> {
        let path = self.join("world.lock");
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .with_context(|| format!("cannot open {}", path.display()))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Lock { file }),
            Err(rustix::io::Errno::WOULDBLOCK) => bail!(
                "a world already runs in {}; stop it with Ctrl-C, or start another with --data-dir DIR",
                self.path.display()
            ),
            Err(e) => Err(anyhow!(e)).with_context(|| format!("cannot lock {}", path.display())),
        }
    }

    /// Removes everything but the lock that we hold. Refuses folders that hold something else than a world.
    pub fn clear(&self) -> Result<()> {
        let entries: Vec<_> = fs::read_dir(&self.path)
            .with_context(|| format!("cannot list {}", self.path.display()))?
            .collect::<std::io::Result<_>>()?;
        let foreign =
            entries.iter().find(|e| !OWN_NAMES.iter().any(|own| e.file_name() == **own || is_numbered(e, own)));
        if let Some(foreign) = foreign {
            bail!(
                "--fresh would delete {}, which no world made; empty the folder yourself or use another --data-dir",
                foreign.path().display()
            );
        }
        for entry in entries.iter().filter(|e| e.file_name() != "world.lock") {
            let path = entry.path();
            let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.with_context(|| format!("cannot remove {}", path.display()))?;
        }
        Ok(())
    }

    /// The key called `name`, made at first use. Each world has its own. The file holds nothing but the key, because
    /// programs of any language read it; that it is a development key stands in its name and in the folder's README.
    pub fn development_key(&self, name: &str) -> Result<(PrivateKeySigner, PathBuf)> {
        let keys = self.subfolder("keys")?;
        let path = keys.join(format!("{name}.development-key"));
        if path.exists() {
            return Ok((read_key(&path)?, path));
        }
        let readme = keys.join("README");
        if !readme.exists() {
            write_private(&readme, KEYS_README.as_bytes())?;
        }
        let signer = PrivateKeySigner::random();
        write_private(&path, format!("{}\n", signer.to_bytes()).as_bytes())?;
        Ok((signer, path))
    }

    pub fn write_json(&self, name: &str, value: &impl Serialize) -> Result<()> {
        let mut text = serde_json::to_vec_pretty(value).with_context(|| format!("{name} cannot be written as JSON"))?;
        text.push(b'\n');
        write_private(&self.join(name), &text)
    }

    /// `None` if there is no such file yet.
    pub fn read_json<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        let path = self.join(name);
        match fs::read(&path) {
            Ok(bytes) => Ok(Some(
                serde_json::from_slice(&bytes)
                    .with_context(|| format!("{} is damaged; start over with --fresh", path.display()))?,
            )),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e).with_context(|| format!("cannot read {}", path.display())),
        }
    }
}

const KEYS_README: &str = "\
DEVELOPMENT KEYS of a local test world, made by `vivarium up`. The money they hold is test money.
Never send anything of value to their addresses, and never use them elsewhere.
";

/// What a world puts into its folder; `…-` stands for a numbered one.
const OWN_NAMES: [&str; 13] = [
    "world.json",
    "internal.json",
    "world.lock",
    "manifest.toml",
    "keys",
    "logs",
    "chain",
    "store",
    "tmp",
    "customers",
    "proxy-",
    "steward-",
    "provider-",
];

fn is_numbered(entry: &fs::DirEntry, own: &str) -> bool {
    own.ends_with('-') && entry.file_name().to_string_lossy().starts_with(own)
}

/// Held as long as the world belongs to this process.
#[derive(Debug)]
pub struct Lock {
    file: File,
}

impl Drop for Lock {
    /// Closing is not enough: a child that another thread is just starting has a copy until it runs its own program.
    fn drop(&mut self) {
        flock(&self.file, FlockOperation::Unlock).ok();
    }
}

/// Where a customer in the world `dir` keeps its buyer's record (0700). `who` tells programs apart; each payer of each
/// has its own.
pub fn customer_record(dir: &Path, who: &str, payer: Address) -> Result<PathBuf> {
    let folder = dir.join("customers");
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&folder)
        .with_context(|| format!("cannot create {}", folder.display()))?;
    Ok(folder.join(format!("{who}-{payer}.record")))
}

/// Reads a key file: `#` lines are comments, the first other line is the private key in hex.
pub fn read_key(path: &Path) -> Result<PrivateKeySigner> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read the key file {}", path.display()))?;
    let line = text.lines().map(str::trim).find(|line| !line.is_empty() && !line.starts_with('#'));
    // The parser's own message is dropped: it may quote what it read.
    line.and_then(|line| line.parse().ok()).ok_or_else(|| {
        anyhow!("{} holds no private key (64 hex digits, after lines that start with #)", path.display())
    })
}

/// Writes `bytes` to `path` for the owner's eyes only, whole or not at all.
pub fn write_private(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    let write = || -> std::io::Result<()> {
        let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&partial)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&partial, path)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

/// The folder that commands use: the flag, else `$VIVARIUM_WORLD`, else `./.vivarium/world`.
pub fn chosen_dir(flag: Option<&Path>) -> PathBuf {
    match flag {
        Some(dir) => dir.to_owned(),
        None => std::env::var_os(DIR_VARIABLE).map_or_else(|| DEFAULT_DIR.into(), PathBuf::from),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn scratch() -> (tempfile::TempDir, Folder) {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::create(&dir.path().join("w")).unwrap();
        (dir, folder)
    }

    #[test]
    fn a_second_lock_of_the_same_folder_is_refused_and_free_again_after_the_first() {
        let (_dir, folder) = scratch();
        let first = folder.lock().unwrap();
        let refusal = folder.lock().unwrap_err().to_string();
        assert!(refusal.contains("already runs") && !refusal.contains('\n'), "{refusal}");
        drop(first);
        folder.lock().unwrap();
    }

    #[test]
    fn keys_are_private_marked_and_the_same_next_time() {
        let (_dir, folder) = scratch();
        let (first, path) = folder.development_key("creator").unwrap();
        let (again, _) = folder.development_key("creator").unwrap();
        let (other, _) = folder.development_key("customer").unwrap();
        assert_eq!(first.address(), again.address());
        assert_ne!(first.address(), other.address());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(path.to_string_lossy().ends_with("creator.development-key"));
        assert!(fs::read_to_string(folder.join("keys/README")).unwrap().starts_with("DEVELOPMENT KEYS"));
    }

    #[test]
    fn a_broken_key_file_is_refused_without_quoting_it() {
        let (_dir, folder) = scratch();
        let path = folder.join("bad");
        fs::write(&path, "# comment\n0xdeadbeef\n").unwrap();
        let refusal = format!("{:#}", read_key(&path).unwrap_err());
        assert!(refusal.contains("holds no private key") && !refusal.contains("deadbeef"), "{refusal}");
    }

    #[test]
    fn fresh_does_not_delete_what_no_world_made() {
        let (_dir, folder) = scratch();
        folder.write_json("world.json", &1).unwrap();
        folder.subfolder("provider-1").unwrap();
        folder.clear().unwrap();
        assert!(!folder.join("provider-1").exists());
        fs::write(folder.join("thesis.txt"), "years of work").unwrap();
        assert!(folder.clear().unwrap_err().to_string().contains("thesis.txt"));
        assert!(folder.join("thesis.txt").exists());
    }

    #[test]
    fn a_missing_world_says_how_to_get_one() {
        let (_dir, folder) = scratch();
        let refusal = WorldFile::load(folder.path()).unwrap_err().to_string();
        assert!(refusal.contains("vivarium up"), "{refusal}");
    }
}
