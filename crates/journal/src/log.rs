//! A log as bytes, without files or threads: what the writer puts into segments, and what a start makes of them.
//!
//! [`crate::Journal`] is this on a disk; whoever simulates a disk has the same.

use crate::error::{Error, Kind, Result};
use crate::record::{Lsn, Record};
use crate::segment::{self, Segment, TornTail, u64_of};
use crate::snapshot;
use std::path::{Path, PathBuf};

/// With what a segment that begins with this record begins. Synced before anything follows it.
pub fn header(first_lsn: Lsn) -> Vec<u8> {
    segment::header(first_lsn).to_vec()
}

/// What is written and synced at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// A segment of this name is begun for it.
    pub begins: Option<Lsn>,
    pub bytes: Vec<u8>,
    /// How many of the batch's first records these are; at least one.
    pub records: usize,
    /// (LSN, place of its frame in the segment).
    pub(crate) offsets: Vec<(Lsn, u64)>,
}

/// The first write of a batch: as many of its records as fit the segment, of which there are `segment_bytes`, header
/// included. `durable`: the last record that is synced.
///
/// # Panics
/// The batch is empty.
pub fn next_write(batch: &[Record], segment_bytes: u64, segment_bytes_max: u64, durable: Lsn) -> Write {
    let header = u64_of(segment::HEADER_BYTES);
    let first = batch.first().expect("a batch that has something to write");
    let is_full = segment_bytes > header && segment_bytes + u64_of(first.frame_bytes()) > segment_bytes_max;
    let begins = is_full.then_some(first.lsn);
    let from = if is_full { header } else { segment_bytes };
    let room = batch.iter().map(|r| u64_of(r.frame_bytes())).sum::<u64>().min(segment_bytes_max);
    let mut bytes = Vec::with_capacity(usize::try_from(room).unwrap_or_default());
    let (mut offsets, mut records) = (Vec::new(), 0);
    for record in batch {
        let offset = from + u64_of(bytes.len());
        if records > 0 && offset + u64_of(record.frame_bytes()) > segment_bytes_max {
            break;
        }
        offsets.push((record.lsn, offset));
        record.write_frame(durable, &mut bytes);
        records += 1;
    }
    Write { begins, bytes, records, offsets }
}

/// Records as they are handed to another log, without gaps, of which at least one. `durable`: the last that is synced here.
///
/// # Panics
/// There are none.
pub fn export(records: &[Record], durable: Lsn) -> Vec<u8> {
    let first = records.first().expect("a range that has something in it");
    let mut bytes = header(first.lsn);
    for record in records {
        record.write_frame(durable, &mut bytes);
    }
    bytes
}

/// What of an exported range is new to a log that goes on with `next_lsn`.
///
/// # Errors
/// `Gap`: some are missing in between. `Corrupt`: the bytes are not what was exported.
pub fn new_records(bytes: &[u8], next_lsn: Lsn) -> Result<Vec<Record>> {
    let all = crate::read_export(bytes)?;
    let new: Vec<Record> = all.into_iter().filter(|r| r.lsn >= next_lsn).collect();
    match new.first() {
        Some(first) if first.lsn != next_lsn => Err(Error::new(
            Kind::Gap,
            format!("the range begins at LSN {}; {next_lsn} is the next one here", first.lsn),
        )),
        _ => Ok(new),
    }
}

/// Reads a log's segments in their order and says whether they are one log.
#[derive(Debug)]
pub struct Reading {
    dir: PathBuf,
    reached: Lsn,
    next_lsn: Lsn,
    records: Vec<Record>,
}

impl Reading {
    /// `dir` names the log in errors. `reached`: what a snapshot holds, 0 without one; `first`: the oldest segment.
    ///
    /// # Errors
    /// `Corrupt`: records between the two are missing.
    pub fn new(dir: &Path, reached: Lsn, first: Option<Lsn>) -> Result<Self> {
        if let Some(first) = first.filter(|first| *first > reached + 1) {
            return Err(snapshot::missing(dir, first));
        }
        Ok(Self { dir: dir.to_path_buf(), reached, next_lsn: first.unwrap_or(reached + 1), records: Vec::new() })
    }

    /// One segment; `last`: only there may a crash have left an unfinished write, and how long the segment is without
    /// it is told.
    ///
    /// # Errors
    /// `Corrupt`: it is not the next one, or damaged anywhere but in its unfinished tail. `Version`: of another release.
    pub fn segment(&mut self, first_lsn: Lsn, bytes: &[u8], last: bool) -> Result<Option<TornTail>> {
        self.comes(first_lsn)?;
        Ok(self.scan(first_lsn, bytes, last)?.1)
    }

    pub(crate) fn comes(&self, first_lsn: Lsn) -> Result<()> {
        if first_lsn == self.next_lsn {
            return Ok(());
        }
        Err(Error::new(
            Kind::Corrupt,
            format!(
                "the log in {} lacks LSN {} to {}. Move this folder away and start again: the node then restores from \
                 the last acknowledged checkpoint",
                self.dir.display(),
                self.next_lsn,
                first_lsn.saturating_sub(1)
            ),
        ))
    }

    pub(crate) fn scan(&mut self, first_lsn: Lsn, bytes: &[u8], last: bool) -> Result<(Segment, Option<TornTail>)> {
        let scan = segment::scan(Segment::new(&self.dir, first_lsn), bytes, last)?;
        self.next_lsn = scan.next_lsn;
        let reached = self.reached;
        self.records.extend(scan.records.into_iter().filter(|r| r.lsn > reached));
        Ok((scan.segment, scan.torn))
    }

    /// All records after the snapshot, and the LSN that comes next.
    ///
    /// # Errors
    /// `Corrupt`: the snapshot holds more than the log.
    pub fn end(self) -> Result<(Vec<Record>, Lsn)> {
        if self.next_lsn <= self.reached {
            return Err(Error::new(
                Kind::Corrupt,
                format!(
                    "the log in {} ends at LSN {} but its snapshot holds LSN {}: acknowledged records are gone. Move \
                     this folder away and start again: the node then restores from the last acknowledged checkpoint",
                    self.dir.display(),
                    self.next_lsn - 1,
                    self.reached
                ),
            ));
        }
        Ok((self.records, self.next_lsn))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(lsns: std::ops::RangeInclusive<Lsn>) -> Vec<Record> {
        let record = |lsn| Record { lsn, kind: 1, time: lsn, outputs_digest: [7; 32], payload: vec![8; 100] };
        lsns.map(record).collect()
    }

    /// Segments of at most 600 bytes, a sync for each batch.
    fn log(batches: &[Vec<Record>]) -> Vec<(Lsn, Vec<u8>)> {
        let (mut segments, mut durable) = (vec![(1, header(1))], 0);
        for batch in batches {
            let mut rest = &batch[..];
            while !rest.is_empty() {
                let bytes = segments.last().map_or(0, |(_, bytes)| u64_of(bytes.len()));
                let write = next_write(rest, bytes, 600, durable);
                segments.extend(write.begins.map(|first| (first, header(first))));
                segments.last_mut().unwrap().1.extend(write.bytes);
                durable = rest[write.records - 1].lsn;
                rest = &rest[write.records..];
            }
        }
        segments
    }

    fn read(segments: &[(Lsn, Vec<u8>)]) -> Result<(Vec<Record>, Option<TornTail>)> {
        let mut reading = Reading::new(Path::new("log"), 0, segments.first().map(|(first, _)| *first))?;
        let mut torn = None;
        for (i, (first, bytes)) in segments.iter().enumerate() {
            torn = reading.segment(*first, bytes, i + 1 == segments.len())?;
        }
        Ok((reading.end()?.0, torn))
    }

    #[test]
    fn what_is_written_is_read_and_a_segment_holds_no_more_than_it_may() {
        let segments = log(&[records(1..=2), records(3..=9)]);
        assert!(segments.len() > 2 && segments.iter().all(|(_, bytes)| bytes.len() <= 600), "{}", segments.len());
        assert_eq!(read(&segments).unwrap(), (records(1..=9), None));
    }

    #[test]
    fn a_last_write_cut_at_any_byte_leaves_whole_records_and_damage_before_it_is_refused() {
        let whole = log(&[records(1..=1), records(2..=3)]);
        let one = 165;
        for cut in 32 + one..whole[0].1.len() {
            let torn = vec![(1, whole[0].1[..cut].to_vec())];
            let (kept, _) = read(&torn).unwrap();
            let left = u64_of((cut - 32) / one);
            assert_eq!(kept, records(1..=left), "cut at {cut}");
        }
        for damaged in [40, 32 + one - 1] {
            let mut segments = whole.clone();
            segments[0].1[damaged] ^= 1;
            assert_eq!(read(&segments).unwrap_err().kind, Kind::Corrupt, "at {damaged}");
        }
        let mut lacks = log(&[records(1..=2), records(3..=9)]);
        lacks.remove(1);
        assert_eq!(read(&lacks).unwrap_err().kind, Kind::Corrupt);
    }
}
