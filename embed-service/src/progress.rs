//! How far a long command has come.

use std::{
    io::{self, IsTerminal as _},
    time::{Duration, Instant},
};

use tracing::info;

/// A bar that is overwritten on a terminal, log lines elsewhere; both on stderr.
pub(crate) struct Progress {
    doing: &'static str,
    terminal: bool,
    last: Instant,
}

impl Progress {
    /// Nothing is shown before [`Progress::report`].
    pub(crate) fn new(doing: &'static str) -> Self {
        Self {
            doing,
            terminal: io::stderr().is_terminal(),
            last: Instant::now(),
        }
    }

    /// Shows how many rows are done, now and then.
    pub(crate) fn report(&mut self, done: u64, total: u64) {
        let every = if self.terminal {
            Duration::from_millis(100)
        } else {
            Duration::from_secs(5)
        };
        if self.last.elapsed() < every {
            return;
        }
        self.last = Instant::now();
        if self.terminal {
            eprint!(
                "\r{} {} {done} of {total} rows\x1b[K",
                self.doing,
                bar(done, total)
            );
        } else {
            info!(rows.done = done, rows.total = total, "{}", self.doing);
        }
    }

    /// Takes the bar away.
    pub(crate) fn clear(&self) {
        if self.terminal {
            eprint!("\r\x1b[K");
        }
    }
}

/// `[########            ]`
fn bar(done: u64, total: u64) -> String {
    const WIDTH: u64 = 20;
    let full = (done.min(total) * WIDTH)
        .checked_div(total)
        .unwrap_or(WIDTH) as usize;
    format!("[{:<20}]", "#".repeat(full))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_fills_from_left_to_right() {
        assert_eq!(bar(0, 10), "[                    ]");
        assert_eq!(bar(5, 10), "[##########          ]");
        assert_eq!(bar(10, 10), "[####################]");
        assert_eq!(bar(0, 0), "[####################]");
    }
}
