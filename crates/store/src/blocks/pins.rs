use super::Blocks;
use crate::cid::{self, Cid};
use crate::error::{Error, Result};
use crate::walk::Walk;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::PathBuf;

/// A root that garbage collection keeps, with all that it reaches, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pin {
    pub root: Cid,
    /// Sorted, at least one; such as `weights`, `checkpoint`, `added`.
    pub reasons: Vec<String>,
}

const REASON_BYTES_MAX: usize = 200;

impl Blocks {
    /// Keeps `root` and all that it reaches for `reason`. The same pin again is no error.
    pub fn pin(&self, root: &Cid, reason: &str) -> Result<()> {
        let fits = !reason.is_empty() && reason.len() <= REASON_BYTES_MAX && !reason.contains(char::is_control);
        if !fits || reason.trim() != reason {
            return Err(Error::usage(format!("{reason:?} is no reason: one line of at most {REASON_BYTES_MAX} bytes")));
        }
        self.change_pin(root, |reasons| reasons.insert(reason.to_owned()))?;
        Ok(())
    }

    /// Takes back one reason, or all of them for `None`. True if something was taken back.
    pub fn unpin(&self, root: &Cid, reason: Option<&str>) -> Result<bool> {
        self.change_pin(root, |reasons| match reason {
            Some(reason) => reasons.remove(reason),
            None => {
                let any = !reasons.is_empty();
                reasons.clear();
                any
            }
        })
    }

    /// Whether the graphs below `roots` can be kept. Leaves are looked for, not read.
    ///
    /// `Missing`, with the name of a block, unless all of them is here; `Corrupt` or `OverLimit` for a graph that no
    /// walk gets to the end of. `each` hears how many blocks were looked for.
    pub(crate) fn check_whole(&self, roots: &[Cid], mut each: impl FnMut(u64)) -> Result<()> {
        let mut walk = Walk::repeating_leaves(roots);
        let mut count = 0;
        while let Some((cid, depth)) = walk.next_block() {
            count += 1;
            each(count);
            if cid.codec() == cid::RAW && self.has(&cid) {
                continue;
            }
            walk.visited(&cid, depth, &self.get(&cid)?)?;
        }
        Ok(())
    }

    /// All pins, sorted by root.
    pub fn pins(&self) -> Result<Vec<Pin>> {
        let failed = |e| Error::disk("cannot list the pins", e);
        let mut pins = Vec::new();
        for entry in fs::read_dir(self.dir().join("pins")).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            let Some(root) = name.to_str().and_then(|name| cid::parse(name).ok()) else { continue };
            let reasons: Vec<String> = self.reasons(&root)?.into_iter().collect();
            if !reasons.is_empty() {
                pins.push(Pin { root, reasons });
            }
        }
        pins.sort_by_key(|p| p.root.to_string());
        Ok(pins)
    }

    fn pin_path(&self, root: &Cid) -> PathBuf {
        self.dir().join("pins").join(cid::normal(root).to_string())
    }

    fn reasons(&self, root: &Cid) -> Result<BTreeSet<String>> {
        match fs::read_to_string(self.pin_path(root)) {
            Ok(text) => Ok(text.lines().map(str::to_owned).collect()),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(BTreeSet::new()),
            Err(e) => Err(Error::disk(format!("cannot read the pin of {root}"), e)),
        }
    }

    /// Reads, changes and replaces one pin under a lock of its own, so that two processes lose no reason.
    fn change_pin(&self, root: &Cid, change: impl FnOnce(&mut BTreeSet<String>) -> bool) -> Result<bool> {
        cid::check(root).map_err(Error::usage)?;
        let failed = |e| Error::disk(format!("cannot change the pin of {root}"), e);
        let lock = File::create(self.dir().join("pins.lock")).map_err(failed)?;
        lock.lock().map_err(failed)?;
        let mut reasons = self.reasons(root)?;
        if !change(&mut reasons) {
            return Ok(false);
        }
        let path = self.pin_path(root);
        if reasons.is_empty() {
            fs::remove_file(&path).map_err(failed)?;
        } else {
            let tmp = self.tmp_path();
            let text: String = reasons.iter().map(|r| format!("{r}\n")).collect();
            let written = File::create(&tmp)
                .and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()))
                .and_then(|()| fs::rename(&tmp, &path));
            if written.is_err() {
                // Give the space back; the first error is the one to report.
                let _ = fs::remove_file(&tmp);
            }
            written.map_err(failed)?;
        }
        File::open(self.dir().join("pins")).and_then(|d| d.sync_all()).map_err(failed)?;
        Ok(true)
    }
}
