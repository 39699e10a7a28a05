//! What a steward remembers of one agent, in `data_dir/agents/<treasury>/`.
//!
//! ```text
//! signed.json              epoch → seq → digest, written before a signature leaves
//! segments.jsonl           headers since the last acknowledged checkpoint, a line each
//! checkpoints/<digest>     objects acknowledged, with this steward's sealed share inside
//! released.jsonl           every share that left, a line each, written before it leaves
//! proposals.jsonl          every eviction that was proposed and what was found, a line each, for people
//! ```
//! A checkpoint older than the chain's is removed when the chain has a newer one: then its share, too, is gone
//! from here. (The sealed share is also in the content store; what ends it for good is a new share key.)

use crate::ack::Signed;
use crate::refusal::Refusal;
use crate::segments::{Change, Kept, SegmentBook};
use alloy::primitives::{Address, B256};
use chain::bindings::{Birth, State};
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use store::checkpoint::Checkpoint;

/// Shares for one treasury, at most one in this time: a successor asks again when too few stewards answered.
const SHARE_EVERY: Duration = Duration::from_millis(500);

/// As whom this steward counts for an agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seat {
    /// Its order key is a steward: the place in the treasury's list, from 0.
    Key { place: u64 },
    /// Its order key owns the Safe that is the steward: the place among the Safe's owners.
    OwnerOf { safe: Address, place: u64 },
    /// Its order key may rescue the agent and nothing else: the place among the rescuers.
    Rescuer { place: u64 },
}

impl Seat {
    /// Who acts first when several could: from 0.
    pub fn place(&self) -> u64 {
        match self {
            Self::Key { place } | Self::OwnerOf { place, .. } | Self::Rescuer { place } => *place,
        }
    }
}

/// A share that was given away: for people, who compare it with what they know of hosts. Nothing here reads it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Released {
    /// Chain seconds of the last block seen.
    pub at: u64,
    pub epoch: u64,
    pub lease: u64,
    pub operator: Address,
    /// Age recipient that it was sealed to.
    pub recipient: String,
    /// The acknowledged checkpoint whose share it is.
    pub seq: u64,
    pub digest: B256,
}

/// An eviction that this daemon proposed. Nothing here reads it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Proposed {
    /// Chain seconds.
    pub at: u64,
    pub epoch: u64,
    pub lease: u64,
    pub provider: Address,
    /// By its name in [`crate::suspicion::Fault`].
    pub fault: String,
    pub times: u32,
    /// Chain seconds.
    pub since: u64,
    /// The last look's words.
    pub found: Option<String>,
    /// What `evict` would keep; 0: nobody.
    pub keep: u64,
}

/// One agent's memory. Every method that changes it has written the disk before it returns.
#[derive(Debug)]
pub struct Agent {
    pub birth: Birth,
    pub seat: Seat,
    dir: PathBuf,
    signed: Signed,
    segments: SegmentBook,
    /// As of the last block seen.
    pub state: Option<State>,
    /// The last record that the acknowledged checkpoint contains, once its object was read.
    pruned_for: Option<B256>,
    shared_at: Option<Instant>,
}

impl Agent {
    /// Reads what an earlier run left, or begins.
    pub fn open(root: &Path, treasury: Address, birth: Birth, seat: Seat) -> Result<Self, Refusal> {
        let dir = root.join(treasury.to_string());
        fs::create_dir_all(dir.join("checkpoints")).map_err(|e| disk(&dir, e))?;
        let signed = match fs::read(dir.join("signed.json")) {
            Ok(text) => serde_json::from_slice(&text).map_err(|e| disk(&dir.join("signed.json"), e.into()))?,
            Err(e) if e.kind() == ErrorKind::NotFound => Signed::default(),
            Err(e) => return Err(disk(&dir.join("signed.json"), e)),
        };
        let segments = SegmentBook::new(read_lines(&dir.join("segments.jsonl"))?);
        Ok(Self { birth, seat, dir, signed, segments, state: None, pruned_for: None, shared_at: None })
    }

    pub fn signed(&self) -> &Signed {
        &self.signed
    }

    pub fn segments(&self) -> &SegmentBook {
        &self.segments
    }

    /// Notes, on the disk, that this place is about to be signed, and keeps the object.
    pub fn remember(&mut self, epoch: u64, seq: u64, digest: B256, object: &[u8]) -> Result<(), Refusal> {
        let mut signed = self.signed.clone();
        signed.remember(epoch, seq, digest)?;
        write_whole(&self.object_path(digest), object)?;
        write_json(&self.dir.join("signed.json"), &signed)?;
        self.signed = signed;
        Ok(())
    }

    /// An acknowledged object, if it is here.
    pub fn object(&self, digest: B256) -> Option<Vec<u8>> {
        fs::read(self.object_path(digest)).ok()
    }

    /// An object that this steward acknowledged itself: what it names was fetched.
    pub fn acknowledged(&self, digest: B256) -> Option<Checkpoint> {
        let object = Checkpoint::from_bytes(&self.object(digest)?).ok()?;
        (object.digest() == digest.0 && self.signed.has(object.epoch, object.seq, digest)).then_some(object)
    }

    pub fn keep_object(&self, digest: B256, object: &[u8]) -> Result<(), Refusal> {
        write_whole(&self.object_path(digest), object)
    }

    /// Takes a header in; on the disk before this returns.
    pub fn accept(&mut self, segment: Kept) -> Result<(), Refusal> {
        let mut book = self.segments.clone();
        let change = book.accept(segment)?;
        let path = self.dir.join("segments.jsonl");
        match (change, book.kept().last()) {
            (Change::Known, _) | (_, None) => {}
            (Change::Appended, Some(last)) => append_line(&path, last)?,
            (Change::Rewritten, Some(_)) => write_lines(&path, book.kept())?,
        }
        self.segments = book;
        Ok(())
    }

    /// Notes a share that is about to leave; on the disk before this returns.
    pub fn note_release(&self, released: &Released) -> Result<(), Refusal> {
        append_line(&self.dir.join("released.jsonl"), released)
    }

    /// Notes what is proposed to the quorum, for whoever asks later why.
    pub fn note_proposal(&self, proposed: &Proposed) -> Result<(), Refusal> {
        append_line(&self.dir.join("proposals.jsonl"), proposed)
    }

    /// Whether the chain's checkpoint is one whose object was not looked at yet.
    pub fn wants_object(&self) -> Option<B256> {
        let digest = self.state.as_ref()?.checkpointDigest;
        (!digest.is_zero() && self.pruned_for != Some(digest)).then_some(digest)
    }

    /// The chain has this checkpoint: segments that it covers and older objects go.
    pub fn prune(&mut self, digest: B256, object: &Checkpoint) -> Result<(), Refusal> {
        if self.segments.prune(object.lsn) {
            write_lines(&self.dir.join("segments.jsonl"), self.segments.kept())?;
        }
        let dir = self.dir.join("checkpoints");
        for entry in fs::read_dir(&dir).map_err(|e| disk(&dir, e))? {
            let path = entry.map_err(|e| disk(&dir, e))?.path();
            let older = fs::read(&path)
                .ok()
                .and_then(|bytes| Checkpoint::from_bytes(&bytes).ok())
                // One of the same place may still become the chain's by a reorg; what does not parse is litter.
                .is_none_or(|kept| kept.seq < object.seq);
            if older {
                fs::remove_file(&path).map_err(|e| disk(&path, e))?;
            }
        }
        self.pruned_for = Some(digest);
        Ok(())
    }

    /// Counts a released share; refuses the next one for a moment.
    pub fn may_share(&mut self) -> Result<(), Refusal> {
        if self.shared_at.is_some_and(|at| at.elapsed() < SHARE_EVERY) {
            return Err(Refusal::TooOften);
        }
        self.shared_at = Some(Instant::now());
        Ok(())
    }

    fn object_path(&self, digest: B256) -> PathBuf {
        self.dir.join("checkpoints").join(digest.to_string())
    }
}

fn read_lines(path: &Path) -> Result<Vec<Kept>, Refusal> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(disk(path, e)),
    };
    let mut kept = Vec::new();
    let mut rest = text.as_str();
    // A line without its end was being written when the power went: its sender got no answer and sends it again.
    while let Some((line, after)) = rest.split_once('\n') {
        kept.push(serde_json::from_str(line).map_err(|e| disk(path, e.into()))?);
        rest = after;
    }
    if !rest.is_empty() {
        write_lines(path, &kept)?;
    }
    Ok(kept)
}

fn line_of(entry: &impl Serialize) -> Result<Vec<u8>, Refusal> {
    let mut line = serde_json::to_vec(entry).map_err(|e| Refusal::Disk { why: e.to_string() })?;
    line.push(b'\n');
    Ok(line)
}

fn append_line(path: &Path, entry: &impl Serialize) -> Result<(), Refusal> {
    let mut line = line_of(entry)?;
    let mut write = || {
        let mut file = OpenOptions::new().create(true).read(true).append(true).open(path)?;
        let before = file.metadata()?.len();
        if before == 0 {
            // The file may be new: its name is to survive a power cut, too.
            File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()?;
        } else if !ends_with_a_line(&mut file)? {
            // A power cut tore the last one: what comes now stands by itself.
            line.insert(0, b'\n');
        }
        file.write_all(&line).and_then(|()| file.sync_data()).inspect_err(|_| {
            // Half a line in the middle would be corruption; at the end it is only a torn tail.
            let _ = file.set_len(before);
        })
    };
    write().map_err(|e| disk(path, e))
}

fn ends_with_a_line(file: &mut File) -> std::io::Result<bool> {
    let mut last = [0];
    file.seek(SeekFrom::End(-1))?;
    file.read_exact(&mut last)?;
    Ok(last == *b"\n")
}

fn write_lines(path: &Path, segments: &[Kept]) -> Result<(), Refusal> {
    let mut text = Vec::new();
    for segment in segments {
        text.extend(line_of(segment)?);
    }
    write_whole(path, &text)
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<(), Refusal> {
    let text = serde_json::to_vec_pretty(value).map_err(|e| Refusal::Disk { why: e.to_string() })?;
    write_whole(path, &text)
}

/// All of it or nothing, on the disk when this returns.
fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), Refusal> {
    let temporary = path.with_extension("new");
    let write = || {
        let mut file = File::create(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
    };
    write().map_err(|e| disk(path, e))
}

fn disk(path: &Path, e: std::io::Error) -> Refusal {
    Refusal::Disk { why: format!("{}: {e}", path.display()) }
}

#[cfg(test)]
mod tests;
