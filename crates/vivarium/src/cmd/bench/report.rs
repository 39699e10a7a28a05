//! Figures as rows of a table: printed as they are measured, and written into docs/benchmarks.md on request.

use anyhow::{Context, Result, bail};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Rows of one bench.
pub struct Report {
    /// The section's marker in docs/benchmarks.md.
    name: &'static str,
    rows: Vec<String>,
}

impl Report {
    pub fn new(name: &'static str) -> Self {
        println!("| what | figure | beside it |");
        println!("| --- | --- | --- |");
        Self { name, rows: Vec::new() }
    }

    /// `beside`: the peer of the same run and the ratio, or how it was measured.
    pub fn row(&mut self, what: &str, figure: impl Into<String>, beside: impl Into<String>) {
        let row = format!("| {what} | {} | {} |", figure.into(), beside.into());
        println!("{row}");
        self.rows.push(row);
    }

    /// Replaces this bench's section in the file.
    pub fn write(&self, file: &Path) -> Result<()> {
        let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        let text = self.placed_in(&text, &format!("{}; {}", today(), machine()))?;
        std::fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
    }

    fn placed_in(&self, text: &str, when_and_where: &str) -> Result<String> {
        let (begin, end) =
            (format!("<!-- bench {}: begin -->", self.name), format!("<!-- bench {}: end -->", self.name));
        let (before, rest) = text.split_once(&begin).with_context(|| format!("there is no line {begin:?}"))?;
        let Some((_, after)) = rest.split_once(&end) else { bail!("there is no line {end:?}") };
        let rows = self.rows.join("\n");
        let table = format!("{when_and_where}.\n\n| what | figure | beside it |\n| --- | --- | --- |\n{rows}");
        Ok(format!("{before}{begin}\n{table}\n{end}{after}"))
    }
}

/// Of a series; at least one.
pub fn percentile(of: &[Duration], percent: usize) -> Duration {
    let mut sorted = of.to_vec();
    sorted.sort_unstable();
    let at = (sorted.len() * percent).div_ceil(100).max(1) - 1;
    sorted.get(at).copied().unwrap_or_default()
}

/// The upper one of two in the middle; NaN of nothing.
pub fn median(mut of: Vec<f64>) -> f64 {
    of.sort_by(f64::total_cmp);
    of.get(of.len() / 2).copied().unwrap_or(f64::NAN)
}

/// A process's memory as Linux counts it under this name (`VmRSS:` now, `VmHWM:` at most), in KiB; `None` once it ended.
pub fn memory_kib(pid: u32, name: &str) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().trim_end_matches(" kB").parse().ok()
}

/// CPU time of this process, all its threads: user and system time of proc(5)'s `stat`, in ticks that are 10 ms on every
/// Linux.
pub fn cpu_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The name before may hold spaces; behind it, the times are fields 12 and 13.
    let after = stat.rsplit_once(')').map_or("", |(_, after)| after);
    let ticks = after.split_ascii_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok());
    Duration::from_millis(ticks.sum::<u64>() * 10)
}

/// `12.3 µs`: a part of `of`, which so many share.
pub fn micros_each(of: Duration, count: u32) -> String {
    format!("{:.1} µs", of.as_secs_f64() * 1e6 / f64::from(count))
}

/// `1.23 ms`, with its sign.
pub fn millis_between(more: Duration, less: Duration) -> String {
    format!("{:+.2} ms", (more.as_secs_f64() - less.as_secs_f64()) * 1e3)
}

pub fn millis(of: Duration) -> String {
    format!("{:.2} ms", of.as_secs_f64() * 1e3)
}

/// The date in UTC. Civil from days: H. Hinnant, "chrono-compatible low-level date algorithms", days_to_civil.
fn today() -> String {
    let secs = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let days = secs / 86_400 + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let day_of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year}-{month:02}-{day:02}")
}

/// Cores, processor, load and build, as far as Linux tells.
fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpus = read("/proc/cpuinfo");
    let model = cpus.lines().find_map(|l| l.strip_prefix("model name")?.split_once(':')).map_or("?", |(_, m)| m.trim());
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let load = read("/proc/loadavg").split(' ').next().unwrap_or("?").to_owned();
    let profile =
        if cfg!(debug_assertions) { "development profile, optimised dependencies" } else { "release profile" };
    format!("{cores} cores of {model}, load {load} at the end, {profile}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_is_replaced_and_nothing_around_it() {
        let mut report = Report { name: "x", rows: Vec::new() };
        report.row("calls", "5/s", "half of theirs");
        let old = "a\n<!-- bench x: begin -->\nold\n<!-- bench x: end -->\nb\n";
        let new = report.placed_in(old, "2026-01-02; a machine").unwrap();
        assert!(new.starts_with("a\n<!-- bench x: begin -->\n2026-01-02; a machine.\n\n| what |"), "{new}");
        assert!(new.ends_with("| calls | 5/s | half of theirs |\n<!-- bench x: end -->\nb\n") && !new.contains("old"));
        assert_eq!(report.placed_in(&new, "2026-01-02; a machine").unwrap(), new);
        assert!(report.placed_in("no place for it", "").is_err());
    }

    #[test]
    fn percentiles_are_of_the_series() {
        let series: Vec<Duration> = (1..=200).rev().map(Duration::from_millis).collect();
        assert_eq!(percentile(&series, 50), Duration::from_millis(100));
        assert_eq!(percentile(&series, 99), Duration::from_millis(198));
        assert_eq!(percentile(&series[..1], 99), Duration::from_millis(200));
    }
}
