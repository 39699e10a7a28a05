//! Two folds for readers: money over time (the dashboard's chart) and the log of a life.

use borsh::{BorshDeserialize, BorshSerialize};
use std::collections::VecDeque;

const SAMPLES_MAX: usize = 720;
const EVENTS_MAX: usize = 2_000;

/// Money at one moment, micro-USDC.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Sample {
    /// Chain seconds.
    pub at: u64,
    pub balance: u128,
    pub earned: u128,
    pub rent: u128,
}

/// At most [`SAMPLES_MAX`] samples over the whole life: when full, every second one goes and the stride doubles.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct History {
    samples: Vec<Sample>,
    stride_secs: u64,
}

impl Default for History {
    fn default() -> Self {
        Self { samples: Vec::new(), stride_secs: 1 }
    }
}

impl History {
    pub fn observe(&mut self, sample: Sample) {
        if self.samples.last().is_some_and(|last| sample.at < last.at + self.stride_secs) {
            return;
        }
        self.samples.push(sample);
        if self.samples.len() > SAMPLES_MAX {
            let mut keep = false;
            self.samples.retain(|_| {
                keep = !keep;
                keep
            });
            self.stride_secs *= 2;
        }
    }

    pub fn samples(&self) -> &[Sample] {
        &self.samples
    }
}

/// One line of `vivarium log`.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct LogLine {
    /// The record and the place among its outputs.
    pub record: (u64, u32),
    /// Counts from 1 over the whole life, through moves.
    pub seq: u64,
    /// Chain seconds.
    pub at: u64,
    pub block: u64,
    pub kind: String,
    pub text: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct EventLog {
    lines: VecDeque<LogLine>,
    last_seq: u64,
}

impl EventLog {
    pub fn add(&mut self, record: (u64, u32), at: u64, block: u64, kind: &str, text: String) {
        self.last_seq += 1;
        if self.lines.len() == EVENTS_MAX {
            self.lines.pop_front();
        }
        self.lines.push_back(LogLine { record, seq: self.last_seq, at, block, kind: kind.to_owned(), text });
    }

    /// The line that an output of a record wrote, if it is still kept.
    pub fn of_record(&self, lsn: u64, index: u32) -> Option<&LogLine> {
        self.lines.iter().rev().find(|l| l.record == (lsn, index))
    }

    pub fn after(&self, seq: u64) -> impl Iterator<Item = &LogLine> {
        self.lines.iter().filter(move |l| l.seq > seq)
    }

    pub fn last(&self, count: usize) -> impl Iterator<Item = &LogLine> {
        self.lines.iter().skip(self.lines.len().saturating_sub(count))
    }

    pub fn last_seq(&self) -> u64 {
        self.last_seq
    }
}
