//! A node's disk, as far as a journal cares: the shipped format (`journal::log`) over bytes in memory. What was synced
//! stays; what was not is torn at any byte when the power fails, and a full disk takes half a write.

use crate::Chance;
use journal::log::{Reading, Write, export, header, new_records, next_write};
use journal::{Lsn, Record};
use std::path::Path;

/// Small, so that a life fills several segments.
const SEGMENT_BYTES_MAX: u64 = 64 << 10;
/// What a disk writes as a whole.
const SECTOR_BYTES: usize = 512;

#[derive(Clone, Debug)]
pub struct Disk {
    segments: Vec<(Lsn, Vec<u8>)>,
    /// What is synced there, for whoever follows.
    synced: Vec<Record>,
    /// Appended and not written yet.
    queue: Vec<Record>,
    next_lsn: Lsn,
    durable: Lsn,
    /// In which segment, and where there, the last write that was synced begins.
    last_write: Option<(usize, usize)>,
    /// It takes no writes.
    pub is_full: bool,
    /// A write failed: as the journal's writer does, nothing is written after it before the next start.
    failed: bool,
}

impl Disk {
    pub fn new() -> Self {
        let segments = vec![(1, header(1))];
        Self {
            segments,
            synced: Vec::new(),
            queue: Vec::new(),
            next_lsn: 1,
            durable: 0,
            last_write: None,
            is_full: false,
            failed: false,
        }
    }

    /// A successor's, with what it was given.
    pub fn with(records: Vec<Record>) -> Self {
        let mut disk = Self::new();
        disk.next_lsn += u64::try_from(records.len()).expect("small");
        disk.queue = records;
        disk.sync();
        disk
    }

    pub fn append(&mut self, kind: u8, time: u64, outputs_digest: [u8; 32], payload: Vec<u8>) {
        self.queue.push(Record { lsn: self.next_lsn, kind, time, outputs_digest, payload });
        self.next_lsn += 1;
    }

    /// Of the last record, synced or not.
    pub fn last_lsn(&self) -> Lsn {
        self.next_lsn - 1
    }

    /// The last record that was said to be synced.
    pub fn durable(&self) -> Lsn {
        self.durable
    }

    /// The synced records, up to this one.
    pub fn records_to(&self, lsn: Lsn) -> Vec<Record> {
        self.synced[..usize::try_from(lsn).expect("small").min(self.synced.len())].to_vec()
    }

    pub fn has_news(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Writes and syncs what was appended. False: the disk is full, and half a write is on it.
    pub fn sync(&mut self) -> bool {
        if self.has_news() && (self.is_full || self.failed) {
            if !std::mem::replace(&mut self.failed, true) {
                let write = self.next();
                self.put(&write, write.bytes.len() / 2);
            }
            self.queue.clear();
            return false;
        }
        while self.has_news() {
            self.sync_once();
        }
        true
    }

    fn next(&self) -> Write {
        let bytes = self.segments.last().map_or(0, |(_, bytes)| bytes.len());
        let bytes = u64::try_from(bytes).expect("a length");
        next_write(&self.queue, bytes, SEGMENT_BYTES_MAX, self.durable)
    }

    fn put(&mut self, write: &Write, bytes: usize) {
        self.segments.extend(write.begins.map(|first| (first, header(first))));
        let (_, segment) = self.segments.last_mut().expect("there is one from the start");
        segment.extend(&write.bytes[..bytes]);
    }

    fn sync_once(&mut self) {
        let write = self.next();
        self.put(&write, write.bytes.len());
        let index = self.segments.len() - 1;
        self.last_write = Some((index, self.segments[index].1.len() - write.bytes.len()));
        self.durable = self.queue[write.records - 1].lsn;
        self.synced.extend(self.queue.drain(..write.records));
    }

    /// The power fails while what was appended is being written: some writes are synced, and nobody was told; the next one
    /// ends at any byte, or has a hole where the disk had not come yet; the rest was never begun. What was said to be
    /// durable stays what it was.
    pub fn loses_power(&mut self, chance: &mut Chance) {
        let told = self.durable;
        if self.failed {
            self.queue.clear();
        }
        while self.has_news() {
            let write = self.next();
            if write.records < self.queue.len() && chance.of_1000(500) {
                self.sync_once();
                continue;
            }
            let length = write.bytes.len();
            let below = |chance: &mut Chance, n: usize| {
                usize::try_from(chance.below(u64::try_from(n).expect("a length"))).expect("below a length")
            };
            match chance.below(8) {
                0 if write.begins.is_some() => {
                    let whole = header(self.queue[0].lsn);
                    let cut = below(chance, whole.len());
                    self.segments.push((self.queue[0].lsn, whole[..cut].to_vec()));
                }
                1 | 2 => {
                    self.put(&write, length);
                    let (_, segment) = self.segments.last_mut().expect("there is one from the start");
                    let from = segment.len() - length + below(chance, length);
                    let to = segment.len().min(from + SECTOR_BYTES);
                    segment[from..to].fill(0);
                }
                _ => {
                    let cut = below(chance, length + 1);
                    self.put(&write, cut);
                }
            }
            self.queue.clear();
        }
        self.durable = told;
    }

    /// What a start finds, its torn tail cut off.
    ///
    /// # Errors
    /// It is damaged anywhere else.
    pub fn start(&mut self) -> Result<Vec<Record>, journal::Error> {
        self.queue.clear();
        self.failed = false;
        let mut reading = Reading::new(Path::new("journal"), 0, self.segments.first().map(|(first, _)| *first))?;
        let mut torn = None;
        let count = self.segments.len();
        for (index, (first, bytes)) in self.segments.iter().enumerate() {
            torn = reading.segment(*first, bytes, index + 1 == count)?;
        }
        let (records, next_lsn) = reading.end()?;
        if let (Some(torn), Some((first, bytes))) = (torn, self.segments.last_mut()) {
            match usize::try_from(torn.offset).expect("a length") {
                0 => *bytes = header(*first),
                offset => bytes.truncate(offset),
            }
        }
        (self.next_lsn, self.durable, self.last_write) = (next_lsn, next_lsn - 1, None);
        self.synced.clone_from(&records);
        Ok(records)
    }

    /// What is synced after this record, for another node. `None`: nothing.
    pub fn export_after(&self, lsn: Lsn) -> Option<Vec<u8>> {
        let new = self.synced.get(usize::try_from(lsn).expect("small")..).filter(|new| !new.is_empty())?;
        Some(export(new, self.durable))
    }

    /// What another node exported, synced when this returns. What is known is passed over, and what does not follow left.
    pub fn import(&mut self, bytes: &[u8]) {
        if let Ok(new) = new_records(bytes, self.next_lsn) {
            self.next_lsn += u64::try_from(new.len()).expect("small");
            self.queue.extend(new);
            self.sync();
        }
    }

    /// One flipped bit in front of the last write, on a copy: whether a start refuses it. `None`: nothing was written since
    /// the last start, so that nothing says of what is there that it was whole.
    pub fn refuses_damage(&self, chance: &mut Chance) -> Option<bool> {
        let header_bytes = header(1).len();
        let (last, end) = self.last_write?;
        let frames = |index: usize| if index == last { end } else { self.segments[index].1.len() } - header_bytes;
        let mut place = chance.below((0..=last).map(frames).sum::<usize>().try_into().ok().filter(|n| *n > 0)?);
        let mut copy = self.clone();
        for index in 0..=last {
            let here = u64::try_from(frames(index)).expect("a length");
            if place < here {
                let at = header_bytes + usize::try_from(place).expect("below a length");
                copy.segments[index].1[at] ^= 1 << chance.below(8);
                break;
            }
            place -= here;
        }
        Some(copy.start().is_err_and(|e| e.kind == journal::Kind::Corrupt))
    }

    /// The last write goes, synced as it was: a disk that lies.
    pub fn forgets_the_last_write(&mut self) {
        if let Some((index, at)) = self.last_write {
            self.segments[index].1.truncate(at);
        }
    }
}
