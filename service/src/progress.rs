//! How far a long command has come.

use std::{
    io::{self, IsTerminal as _},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tracing::info;

/// How often progress is logged when nobody watches a bar.
const LOG_EVERY: Duration = Duration::from_secs(5);

/// A bar on a terminal, log lines elsewhere; both on stderr.
#[derive(Debug)]
pub struct Progress {
    doing: &'static str,
    bar: ProgressBar,
    terminal: bool,
    logged: Instant,
}

impl Progress {
    /// Work on rows, such as `verifying`. Nothing is shown before [`Progress::report`].
    #[must_use]
    pub fn new(doing: &'static str) -> Self {
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
        // A template that does not parse would leave the default style.
        if let Ok(style) =
            ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} rows, {eta} left")
        {
            bar.set_style(style);
        }
        bar.set_message(doing);
        Self {
            doing,
            bar,
            terminal: io::stderr().is_terminal(),
            logged: Instant::now(),
        }
    }

    /// Shows how many rows are done, now and then.
    pub fn report(&mut self, done: u64, total: u64) {
        if self.terminal {
            self.bar.set_length(total);
            self.bar.set_position(done);
        } else if self.logged.elapsed() >= LOG_EVERY {
            self.logged = Instant::now();
            info!(rows.done = done, rows.total = total, "{}", self.doing);
        }
    }

    /// Takes the bar away.
    pub fn clear(&self) {
        self.bar.finish_and_clear();
    }
}
