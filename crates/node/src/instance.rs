//! Which process this is, as its heartbeats say.
//!
//! A host's image can be copied with all its keys, and then two processes can sign as one operator. Each process draws a
//! number of its own at its start and puts it into its heartbeats. An honest one that reads another number in its own
//! epoch stops: what it would do from there on would be half of a quarrel. A copy that does not stop stays inside the
//! operator's row of docs/operating/keys.md, and stewards can evict the host.

use crate::error::{Error, Result};
use alloy::primitives::B256;
use std::path::Path;
use store::seal::lockbox;

const FILE: &str = "instances.sealed";
/// Numbers kept: a heartbeat of a process before this one may still be mined. Of those longer ago none can be. A guess,
/// unmeasured.
const KEPT: usize = 64;

/// The numbers of the processes that ran on this lease, this one's last.
#[derive(Debug, Clone)]
pub struct Instances(Vec<B256>);

impl Instances {
    /// Draws a number for this process. It is on disk before any heartbeat can carry it.
    ///
    /// # Errors
    /// The file cannot be read or written, or opens under another lease's key.
    pub fn begin(data_dir: &Path, seal_key: &[u8; 32]) -> Result<Self> {
        let path = data_dir.join(FILE);
        let mut known = match std::fs::read(&path) {
            Ok(sealed) => {
                let open = lockbox::unlock(seal_key, &sealed).map_err(|e| {
                    Error::usage(format!("{} does not open under this lease's key", path.display())).caused_by(e)
                })?;
                open.chunks_exact(32).map(B256::from_slice).collect()
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(e) => return Err(Error::retry(format!("cannot read {}", path.display())).caused_by(e)),
        };
        known.push(B256::from(rand::random::<[u8; 32]>()));
        known.drain(..known.len().saturating_sub(KEPT));
        let bytes: Vec<u8> = known.iter().flat_map(|number| number.0).collect();
        lockbox::lock_to(&path, seal_key, &bytes)
            .map_err(|e| Error::retry("this process's number cannot be written").caused_by(e))?;
        Ok(Self(known))
    }

    /// This process's.
    pub fn own(&self) -> B256 {
        self.0.last().copied().unwrap_or_default()
    }

    /// Whether no process of this lease, as far as this disk knows, has this number.
    pub fn is_foreign(&self, number: B256) -> bool {
        !self.0.contains(&number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_process_has_a_number_and_knows_those_before_it() {
        let dir = tempfile::tempdir().unwrap();
        let first = Instances::begin(dir.path(), &[1; 32]).unwrap();
        let second = Instances::begin(dir.path(), &[1; 32]).unwrap();
        assert_ne!(first.own(), second.own());
        assert!(!second.is_foreign(first.own()) && first.is_foreign(second.own()));
        for _ in 0..KEPT {
            Instances::begin(dir.path(), &[1; 32]).unwrap();
        }
        let last = Instances::begin(dir.path(), &[1; 32]).unwrap();
        assert!(last.is_foreign(first.own()) && last.0.len() == KEPT);
        // The image of a host without the lease's key tells nothing, here and of the keys.
        let refused = Instances::begin(dir.path(), &[2; 32]).unwrap_err();
        assert_eq!(refused.kind, crate::error::Kind::Usage, "{refused}");
    }
}
