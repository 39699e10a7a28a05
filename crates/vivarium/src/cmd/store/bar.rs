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
        self.draw(|rate| {
            let total = progress.bytes_total.map(|total| format!(" of {}", megabytes(total))).unwrap_or_default();
            // Of what came over the wire: blocks that were here before say nothing about the sources.
            let fetched = progress.sources.iter().map(|source| source.bytes).sum();
            let dropped = progress.sources.iter().filter(|source| source.dropped.is_some()).count();
            let dropped = if dropped > 0 { format!(", {dropped} dropped") } else { String::new() };
            let (done, speed, sources) =
                (megabytes(progress.bytes_done), megabytes(rate(fetched)), progress.sources.len());
            format!("{done}{total}, {speed}/s, {sources} sources{dropped}")
        });
    }

    fn draw(&self, line: impl FnOnce(&dyn Fn(u64) -> u64) -> String) {
        let now = Instant::now();
        if !self.is_seen || self.drawn.get().is_some_and(|drawn| now.duration_since(drawn) < REDRAW) {
            return;
        }
        self.drawn.set(Some(now));
        let elapsed_ms = u64::try_from(now.duration_since(self.started).as_millis()).unwrap_or(u64::MAX).max(1);
        let text = line(&|bytes| bytes.saturating_mul(1000) / elapsed_ms);
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

/// One decimal, rounded down.
fn megabytes(bytes: u64) -> String {
    format!("{}.{} MB", bytes / 1_000_000, bytes / 100_000 % 10)
}
