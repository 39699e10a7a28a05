use std::cell::Cell;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};
use store::fetch::Progress;

const REDRAW: Duration = Duration::from_millis(100);

/// A line on standard error that says how far it is, for people at a terminal only.
pub struct Bar {
    started: Instant,
    /// When it was last drawn; `None` before, and for ever where nobody sees it.
    drawn: Cell<Option<Instant>>,
    is_seen: bool,
}

impl Bar {
    pub fn new(json: bool) -> Self {
        Self { started: Instant::now(), drawn: Cell::new(None), is_seen: !json && std::io::stderr().is_terminal() }
    }

    /// Bytes done, of a sum that nobody knows yet.
    pub fn bytes(&self, done: u64) {
        self.draw(|rate| format!("{}, {}/s", megabytes(done), megabytes(rate(done))));
    }

    /// Blocks done, of a number that nobody knows yet.
    pub fn blocks(&self, done: u64) {
        self.draw(|rate| format!("{done} blocks, {}/s", rate(done)));
    }

    pub fn fetch(&self, progress: &Progress) {
        self.draw(|rate| fetching(progress, rate));
    }

    fn draw(&self, line: impl FnOnce(&dyn Fn(u64) -> u64) -> String) {
        let now = Instant::now();
        if !self.is_seen || self.drawn.get().is_some_and(|drawn| now.duration_since(drawn) < REDRAW) {
            return;
        }
        self.drawn.set(Some(now));
        let elapsed = now.duration_since(self.started);
        let text = line(&|count| a_second(count, elapsed));
        // A bar that cannot be drawn stops nothing.
        let _ = write!(std::io::stderr(), "\r\x1b[K{text}");
    }

    /// Wipes the line, so that what follows stands alone.
    pub fn clear(&self) {
        if self.drawn.take().is_some() {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}

fn fetching(progress: &Progress, rate: impl Fn(u64) -> u64) -> String {
    let total = progress.bytes_total.map(|total| format!(" of {}", megabytes(total))).unwrap_or_default();
    // Of what came over the wire: blocks that were here before say nothing about the sources.
    let fetched = progress.sources.iter().map(|source| source.bytes).sum();
    let dropped = progress.sources.iter().filter(|source| source.dropped.is_some()).count();
    let dropped = if dropped > 0 { format!(", {dropped} dropped") } else { String::new() };
    let (done, speed, sources) = (megabytes(progress.bytes_done), megabytes(rate(fetched)), progress.sources.len());
    format!("{done}{total}, {speed}/s, {sources} sources{dropped}")
}

/// Rounded down; what took no time took a millisecond.
fn a_second(count: u64, elapsed: Duration) -> u64 {
    let elapsed_ms = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX).max(1);
    count.saturating_mul(1000) / elapsed_ms
}

/// One decimal, rounded down.
fn megabytes(bytes: u64) -> String {
    format!("{}.{} MB", bytes / 1_000_000, bytes / 100_000 % 10)
}

#[cfg(test)]
mod tests {
    use super::*;
    use store::fetch::SourceReport;

    #[test]
    fn a_line_says_how_far_how_fast_and_from_how_many() {
        let source = |bytes, dropped: Option<&str>| SourceReport {
            bytes,
            dropped: dropped.map(str::to_owned),
            ..SourceReport::default()
        };
        let mut progress = Progress {
            blocks_done: 3,
            bytes_done: 2_999_999,
            bytes_total: None,
            sources: vec![source(1_000_000, None), source(500_000, Some("lied"))],
        };
        let in_half_a_second = |bytes| a_second(bytes, Duration::from_millis(500));
        // 1.5 MB came over the wire in that time; the rest was here before.
        assert_eq!(fetching(&progress, in_half_a_second), "2.9 MB, 3.0 MB/s, 2 sources, 1 dropped");
        progress.bytes_total = Some(10_000_000);
        progress.sources.pop();
        assert_eq!(fetching(&progress, in_half_a_second), "2.9 MB of 10.0 MB, 2.0 MB/s, 1 sources");
    }

    #[test]
    fn rates_have_no_zero_and_no_overflow() {
        assert_eq!(a_second(5, Duration::ZERO), 5_000);
        assert_eq!(a_second(u64::MAX, Duration::from_secs(1)), u64::MAX / 1_000);
        assert_eq!(megabytes(99_999), "0.0 MB");
    }

    #[test]
    fn nobody_sees_a_bar_beside_json() {
        let bar = Bar::new(true);
        bar.bytes(1);
        bar.blocks(1);
        assert!(bar.drawn.get().is_none(), "nothing is drawn, so that nothing is to be wiped");
        bar.clear();
    }
}
