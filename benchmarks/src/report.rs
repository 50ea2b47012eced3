//! Results: one JSON object a line on stdout; notes for people on stderr.

use std::io::Write as _;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;

/// Prints the results of one benchmark.
#[derive(Debug, Clone, Copy)]
pub struct Report {
    bench: &'static str,
}

impl Report {
    /// Begins a benchmark: says what machine it runs on.
    ///
    /// # Errors
    /// When stdout is closed.
    pub fn begin(bench: &'static str) -> Result<Self> {
        let machine = Self { bench: "machine" };
        let case = format!("{}, {}", processor(), kernel());
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        machine.line(&case, "machine", "cores", cores as f64, "cores")?;
        let memory = kib_of("/proc/meminfo", "MemTotal:") as f64 / f64::from(1 << 20);
        machine.line(&case, "machine", "memory", memory, "GiB")?;
        machine.line(&case, "machine", "load average", load(), "processes")?;
        Ok(Self { bench })
    }

    /// Prints one result.
    ///
    /// # Errors
    /// When `value` is not a number, so nothing was measured, or stdout is closed.
    pub fn line(
        &self,
        case: &str,
        subject: &str,
        metric: &str,
        value: f64,
        unit: &str,
    ) -> Result<()> {
        ensure!(
            value.is_finite(),
            "{case}, {subject}, {metric}: nothing was measured"
        );
        let line = json!({
            "bench": self.bench,
            "case": case,
            "subject": subject,
            "metric": metric,
            // Four significant digits are more than any of this is good for.
            "value": format!("{value:.3e}").parse::<f64>()?,
            "unit": unit,
        });
        let mut out = std::io::stdout().lock();
        writeln!(out, "{line}")?;
        Ok(out.flush()?)
    }

    /// Says on stderr what is going on.
    pub fn note(&self, text: impl std::fmt::Display) {
        eprintln!("{}: {text}", self.bench);
    }
}

/// The middle value, or the mean of the two middle ones; 0 of nothing.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        n if n % 2 == 1 => sorted[n / 2],
        n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}

/// The smallest of `sorted` that `share` of all are not above; 0 of nothing.
pub fn percentile(sorted: &[Duration], share: f64) -> Duration {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    let index = rank.clamp(1, sorted.len().max(1)) - 1;
    sorted.get(index).copied().unwrap_or_default()
}

/// Microseconds.
pub fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// Memory of this process in bytes: anonymous, and pages of files it has mapped.
pub fn resident_bytes() -> (u64, u64) {
    let status = |field| 1024 * kib_of("/proc/self/status", field);
    (status("RssAnon:"), status("RssFile:"))
}

/// The number of KiB behind `field` in a file of /proc; 0 where there is none.
fn kib_of(file: &str, field: &str) -> u64 {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(field));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .unwrap_or(0)
}

fn processor() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("model name"));
    let name = line.and_then(|line| line.split_once(": "));
    name.map_or("unknown processor", |(_, name)| name)
        .to_owned()
}

fn kernel() -> String {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease");
    let release = release.unwrap_or_else(|_| "unknown".to_owned());
    format!("{} {}", std::env::consts::OS, release.trim())
}

/// Processes that wanted to run in the last minute, on average: above the number of cores, figures
/// are of a busy machine.
fn load() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let first = text.split_whitespace().next();
    first.and_then(|load| load.parse().ok()).unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_is_the_middle() {
        assert_eq!(median(&[]), 0.0);
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
    }

    #[test]
    fn percentiles_are_values_that_were_seen() {
        let times: Vec<Duration> = (1..=100).map(Duration::from_micros).collect();
        assert_eq!(percentile(&times, 0.5), Duration::from_micros(50));
        assert_eq!(percentile(&times, 0.99), Duration::from_micros(99));
        assert_eq!(percentile(&times[..1], 0.99), Duration::from_micros(1));
        assert_eq!(percentile(&[], 0.5), Duration::ZERO);
    }
}
