//! How far a long command has come.

use std::{
    io::{self, IsTerminal as _},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tracing::info;

/// How often progress is logged when nobody watches a bar.
const LOG_EVERY: Duration = Duration::from_secs(5);

/// What is counted.
#[derive(Clone, Copy, Debug)]
enum Unit {
    Rows,
    Bytes,
}

/// A bar on a terminal, log lines elsewhere; both on stderr.
#[derive(Debug)]
pub struct Progress {
    doing: &'static str,
    unit: Unit,
    bar: ProgressBar,
    terminal: bool,
    logged: Instant,
}

impl Progress {
    /// Work on rows, such as `verifying`. Nothing is shown before [`Progress::report`].
    #[must_use]
    pub fn new(doing: &'static str) -> Self {
        Self::of(Unit::Rows, doing)
    }

    /// Work on bytes, such as `copying`.
    #[must_use]
    pub fn bytes(doing: &'static str) -> Self {
        Self::of(Unit::Bytes, doing)
    }

    fn of(unit: Unit, doing: &'static str) -> Self {
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
        let template = match unit {
            Unit::Rows => "{msg} {wide_bar} {pos}/{len} rows, {eta} left",
            Unit::Bytes => "{msg} {wide_bar} {bytes}/{total_bytes}, {eta} left",
        };
        // A template that does not parse would leave the default style.
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_message(doing);
        Self {
            doing,
            unit,
            bar,
            terminal: io::stderr().is_terminal(),
            logged: Instant::now(),
        }
    }

    /// Shows how many are done, now and then.
    pub fn report(&mut self, done: u64, total: u64) {
        if self.terminal {
            self.bar.set_length(total);
            self.bar.set_position(done);
        } else if self.logged.elapsed() >= LOG_EVERY {
            self.logged = Instant::now();
            match self.unit {
                Unit::Rows => info!(rows.done = done, rows.total = total, "{}", self.doing),
                Unit::Bytes => info!(bytes.done = done, bytes.total = total, "{}", self.doing),
            }
        }
    }

    /// Takes the bar away.
    pub fn clear(&self) {
        self.bar.finish_and_clear();
    }
}
