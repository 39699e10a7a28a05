//! A file that fills at its final place while its blocks arrive: nothing is written that was not verified, nothing is
//! read or hashed a second time, and whoever may read a beginning of it need not wait for its end.
//!
//! What is missing is a hole. What is there is believed by its hash alone, at each start: no note says what was written
//! before a kill or a power cut, so none can be wrong.

use crate::blocks::Blocks;
use crate::cid::{self, Cid};
use crate::dag::BLOCK_BYTES_MAX;
use crate::error::{Error, Result};
use crate::protobuf::len64;
use crate::unixfs::{FileNode, file_node};
use crate::walk::{DEPTH_MAX, check_waiting};
use rustix::fs::SeekFrom;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// Leaves of one file: 512 GiB by the profile, 30 MB of memory. A stranger's graph can have a leaf a byte.
const LEAVES_MAX: usize = 1 << 19;

/// A file of known parts. Drop it and `verified` closes, wherever it stands.
pub(crate) struct Place {
    file: File,
    path: PathBuf,
    /// In the order of the file. What lies in inner nodes is no part: it is written when the file is opened.
    leaves: Vec<Leaf>,
    /// Places in `leaves`, by digest: the same bytes may come in several.
    by_digest: Vec<usize>,
    bytes: u64,
    here: Mutex<Here>,
    /// Bytes from the start of the file of which each is verified.
    verified: watch::Sender<u64>,
}

struct Leaf {
    digest: [u8; 32],
    offset: u64,
    bytes: u64,
}

struct Here {
    leaves: Vec<bool>,
    /// The first one that is not here.
    front: usize,
}

impl Place {
    /// Lays out the file behind `root` at `path`, as long as it will be; what is there already stays, unread. The inner
    /// nodes are in `blocks`, and a root that is a leaf.
    ///
    /// `OverLimit` if it is longer than `bytes_max` or of too many parts, `Missing` names a node that is not there.
    pub(crate) fn open(
        path: &Path,
        blocks: &Blocks,
        root: &Cid,
        bytes_max: u64,
        verified: watch::Sender<u64>,
    ) -> Result<Self> {
        let failed = |e| Error::disk(format!("cannot write {}", path.display()), e);
        let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let file = opened.map_err(failed)?;
        let (leaves, bytes) =
            laid_out(blocks, root, bytes_max, &mut |offset, inline| file.write_all_at(inline, offset).map_err(failed))?;
        if file.metadata().map_err(failed)?.len() != bytes {
            file.set_len(bytes).map_err(failed)?;
        }
        let mut by_digest: Vec<usize> = (0..leaves.len()).collect();
        by_digest.sort_unstable_by_key(|at| leaves[*at].digest);
        let here = Mutex::new(Here { leaves: vec![false; leaves.len()], front: 0 });
        let place = Self { file, path: path.to_owned(), leaves, by_digest, bytes, here, verified };
        place.tell(&place.here());
        Ok(place)
    }

    /// Content bytes of the whole file.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Reads what is there already, in order, and takes what is right for verified: (leaves, bytes) that are.
    pub(crate) fn scan(&self) -> Result<(u64, u64)> {
        let failed = |e: std::io::Error| Error::disk(format!("cannot read {}", self.path.display()), e);
        let (mut blocks, mut bytes, mut content, mut data_from) = (0, 0, Vec::new(), 0);
        for (at, leaf) in self.leaves.iter().enumerate() {
            if data_from < leaf.offset {
                // Where the next data begins; beyond the last there is none. A file system that knows no holes says
                // that all is data.
                data_from = match rustix::fs::seek(&self.file, SeekFrom::Data(leaf.offset)) {
                    Ok(offset) => offset,
                    Err(rustix::io::Errno::NXIO) => break,
                    Err(e) => return Err(failed(e.into())),
                };
            }
            if data_from >= leaf.offset + leaf.bytes {
                continue;
            }
            content.resize(usize::try_from(leaf.bytes).map_err(|_| Error::over_limit("a leaf over 2^32 bytes"))?, 0);
            self.file.read_exact_at(&mut content, leaf.offset).map_err(failed)?;
            if cid::sha256(&content) == leaf.digest {
                (blocks, bytes) = (blocks + 1, bytes + leaf.bytes);
                self.mark([at]);
            }
        }
        Ok((blocks, bytes))
    }

    /// Writes a leaf, whose bytes were found to be `cid`'s, wherever it belongs.
    ///
    /// `Corrupt` if it is not as long as the node above it says.
    pub(crate) fn put(&self, cid: &Cid, content: &[u8]) -> Result<()> {
        let places = self.places(&cid::digest(cid));
        for leaf in places.iter().map(|at| &self.leaves[*at]) {
            let (bytes, claimed) = (len64(content), leaf.bytes);
            if bytes != claimed {
                return Err(Error::corrupt(format!("{cid} holds {bytes} bytes; its parent says {claimed}")));
            }
            let written = self.file.write_all_at(content, leaf.offset);
            written.map_err(|e| Error::disk(format!("cannot write {}", self.path.display()), e))?;
        }
        self.mark(places.iter().copied());
        Ok(())
    }

    /// Up to `room` leaves that are not here, from place `next` on, which it moves forward.
    pub(crate) fn missing(&self, next: &mut usize, room: usize) -> Vec<Cid> {
        let here = self.here();
        let mut missing = Vec::new();
        while missing.len() < room && *next < self.leaves.len() {
            if !here.leaves[*next] {
                missing.push(cid::raw(self.leaves[*next].digest));
            }
            *next += 1;
        }
        missing
    }

    pub(crate) fn is_whole(&self) -> bool {
        self.here().front == self.leaves.len()
    }

    fn places(&self, digest: &[u8; 32]) -> &[usize] {
        let of = |at: &usize| self.leaves[*at].digest;
        let from = self.by_digest.partition_point(|at| of(at) < *digest);
        let count = self.by_digest[from..].partition_point(|at| of(at) == *digest);
        &self.by_digest[from..from + count]
    }

    /// After the bytes are written: whoever hears of them may read them.
    fn mark(&self, places: impl IntoIterator<Item = usize>) {
        let mut here = self.here();
        for at in places {
            here.leaves[at] = true;
        }
        let front = here.front + here.leaves[here.front..].iter().take_while(|is_here| **is_here).count();
        if front > here.front {
            here.front = front;
            self.tell(&here);
        }
    }

    fn tell(&self, here: &Here) {
        self.verified.send_replace(self.leaves.get(here.front).map_or(self.bytes, |leaf| leaf.offset));
    }

    fn here(&self) -> MutexGuard<'_, Here> {
        // Marks are set one by one and never taken back.
        self.here.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The leaves of a file and its length. What its nodes hold themselves goes to `inline`, with its offset.
fn laid_out(
    blocks: &Blocks,
    root: &Cid,
    bytes_max: u64,
    inline: &mut impl FnMut(u64, &[u8]) -> Result<()>,
) -> Result<(Vec<Leaf>, u64)> {
    let (mut leaves, mut offset) = (Vec::new(), 0);
    let mut stack = vec![(cid::normal(root), None, 0usize)];
    while let Some((cid, claimed, depth)) = stack.pop() {
        if depth > DEPTH_MAX {
            return Err(Error::over_limit(format!("{cid} lies {depth} levels deep; the limit is {DEPTH_MAX}")));
        }
        if let Some(bytes) = claimed.filter(|_| cid.codec() == cid::RAW) {
            if leaves.len() == LEAVES_MAX {
                return Err(Error::over_limit(format!("{root} has over {LEAVES_MAX} leaves")));
            }
            if usize::try_from(bytes).unwrap_or(usize::MAX) > BLOCK_BYTES_MAX {
                return Err(Error::corrupt(format!("{cid} is one block, and of {bytes} bytes by its parent's claim")));
            }
            leaves.push(Leaf { digest: cid::digest(&cid), offset, bytes });
            offset += bytes;
            continue;
        }
        let node = file_node(&cid, &blocks.get(&cid)?, claimed)?;
        let FileNode { inline: own, parts, bytes } = node;
        if depth == 0 && bytes > bytes_max {
            return Err(Error::over_limit(format!("{root} is {bytes} bytes long; {bytes_max} are allowed here")));
        }
        if !own.is_empty() {
            inline(offset, &own)?;
            offset += len64(&own);
        }
        check_waiting(&cid, stack.len() + parts.len())?;
        stack.extend(parts.into_iter().rev().map(|(part, bytes)| (cid::normal(&part), Some(bytes), depth + 1)));
    }
    Ok((leaves, offset))
}
