//! Progress of long work: a bar on a terminal, a log line every few seconds elsewhere.
//!
//! Bars and logs share stderr (stdout carries results), so log lines are written through the bars'
//! [`MultiProgress`]: the bar is taken away, the line printed, the bar drawn again below it.

use std::io::{IsTerminal, Write};
use std::sync::{LazyLock, Mutex};
use std::time::{Duration, Instant};

use anyhow::Context;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// How often work that has no terminal logs where it is.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// Sends `tracing` events to stderr, above any progress bar.
///
/// # Errors
/// When `filter` is not a log filter, or logging was already started.
pub fn init_logging(filter: &str) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(filter).with_context(|| format!("--log {filter:?}"))?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(AboveBars)
        .try_init()
        .map_err(|e| anyhow::anyhow!("cannot start logging: {e}"))
}

struct AboveBars;

impl<'a> MakeWriter<'a> for AboveBars {
    type Writer = AboveBars;
    fn make_writer(&'a self) -> AboveBars {
        AboveBars
    }
}

impl Write for AboveBars {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        BARS.suspend(|| std::io::stderr().write(line))
    }
    fn flush(&mut self) -> std::io::Result<()> {
        std::io::stderr().flush()
    }
}

/// What the numbers of a [`Progress`] count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Bytes, shown as MiB and so on.
    Bytes,
    /// Anything else, shown as a plain number.
    Items,
}

/// One piece of long work. Safe to share between threads.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
    label: String,
    started: Instant,
    /// When the last log line was written; `None` on a terminal, where the bar shows everything.
    last_log: Option<Mutex<Instant>>,
}

impl Progress {
    /// Starts a bar (or the log lines) for `total` units of `label`; a total of 0 is unknown.
    pub fn new(label: &str, total: u64, unit: Unit) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let bar = if terminal {
            BARS.add(ProgressBar::new(total))
        } else {
            ProgressBar::with_draw_target(Some(total), indicatif::ProgressDrawTarget::hidden())
        };
        bar.set_style(style(total, unit));
        bar.set_prefix(label.to_owned());
        let now = Instant::now();
        Self {
            bar,
            label: label.to_owned(),
            started: now,
            last_log: (!terminal).then(|| Mutex::new(now)),
        }
    }

    /// Adds `delta` units.
    pub fn add(&self, delta: u64) {
        self.bar.inc(delta);
        self.log_if_due();
    }

    /// Sets the position.
    pub fn set(&self, position: u64) {
        self.bar.set_position(position);
        self.log_if_due();
    }

    /// Sets the text behind the numbers, such as the loss.
    pub fn message(&self, text: impl Into<String>) {
        self.bar.set_message(text.into());
    }

    /// Units done so far.
    pub fn position(&self) -> u64 {
        self.bar.position()
    }

    /// Time since the work began.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Takes the bar away; dropping does the same.
    pub fn finish(self) {}

    fn log_if_due(&self) {
        let Some(last) = &self.last_log else { return };
        let Ok(mut last) = last.try_lock() else {
            return;
        };
        if last.elapsed() < LOG_EVERY {
            return;
        }
        *last = Instant::now();
        let (done, total) = (self.bar.position(), self.bar.length().unwrap_or(0));
        let percent = if total == 0 {
            0.0
        } else {
            100.0 * done as f64 / total as f64
        };
        let left = if done == 0 || total < done {
            0.0
        } else {
            self.started.elapsed().as_secs_f64() * (total - done) as f64 / done as f64
        };
        tracing::info!(
            done,
            total,
            percent = format_args!("{percent:.1}"),
            seconds_left = format_args!("{left:.0}"),
            "{} {}",
            self.label,
            self.bar.message()
        );
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
        BARS.remove(&self.bar);
    }
}

fn style(total: u64, unit: Unit) -> ProgressStyle {
    let template = match (total, unit) {
        (0, Unit::Bytes) => "{prefix} {spinner} {bytes} ({bytes_per_sec}) {msg}",
        (0, Unit::Items) => "{prefix} {spinner} {human_pos} ({per_sec}) {msg}",
        (_, Unit::Bytes) => {
            "{prefix} [{bar:30}] {bytes}/{total_bytes} ({bytes_per_sec}, {eta} left) {msg}"
        }
        (_, Unit::Items) => {
            "{prefix} [{bar:30}] {human_pos}/{human_len} ({per_sec}, {eta} left) {msg}"
        }
    };
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
