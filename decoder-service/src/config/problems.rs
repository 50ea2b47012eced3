//! What is wrong with flags: all mistakes are reported at once, before a model is loaded or a port bound.

use std::{ops::RangeInclusive, path::Path, time::Duration};

use crate::error::Error;

/// More often would be a load of its own.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(10);

/// The mistakes found so far, each naming its flag.
#[derive(Debug, Default)]
pub(super) struct Problems(pub(super) Vec<String>);

impl Problems {
    pub(super) fn add(&mut self, problem: impl Into<String>) {
        self.0.push(problem.into());
    }

    /// Adds a problem unless `value` is in `allowed`.
    pub(super) fn range(&mut self, flag: &str, value: usize, allowed: RangeInclusive<usize>) {
        if !allowed.contains(&value) {
            let (least, most) = allowed.into_inner();
            self.add(format!("{flag} is {value}; allowed is {least} to {most}"));
        }
    }

    /// Adds a problem when `interval` is shorter than [`SHORTEST_INTERVAL`].
    pub(super) fn interval(&mut self, flag: &str, interval: Duration) {
        if interval < SHORTEST_INTERVAL {
            let (got, least) = (interval.as_millis(), SHORTEST_INTERVAL.as_millis());
            self.add(format!("{flag} is {got}ms; at least {least}ms is needed"));
        }
    }

    /// Adds a problem unless `dir` is a directory.
    pub(super) fn directory(&mut self, flag: &str, dir: &Path) {
        if !dir.is_dir() {
            self.add(format!("{flag} {}: no such directory", dir.display()));
        }
    }

    /// The checked value, which is there when there are no problems.
    pub(super) fn or<T>(self, checked: Option<T>) -> Result<T, Error> {
        match checked {
            Some(checked) if self.0.is_empty() => Ok(checked),
            _ => Err(Error::Flags(self.0)),
        }
    }
}
