//! A log of one line an entry.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// Appends lines to a file.
#[derive(Debug)]
pub(super) struct Lines {
    path: PathBuf,
    /// First line of the file; empty: none.
    header: &'static str,
    /// The step a line is of; `None` for a broken one.
    step_of: fn(&str) -> Option<u64>,
    file: File,
}

impl Lines {
    /// Opens the log of a run that goes on after `step`.
    pub(super) fn open(
        path: &Path,
        header: &'static str,
        step_of: fn(&str) -> Option<u64>,
        step: u64,
    ) -> Result<Self> {
        let file = Self::cut(path, header, step_of, step)
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self {
            path: path.to_owned(),
            header,
            step_of,
            file,
        })
    }

    /// Drops the lines after `step`, all of them after step 0, and broken ones.
    pub(super) fn rewind(&mut self, step: u64) -> Result<()> {
        *self = Self::open(&self.path, self.header, self.step_of, step)?;
        Ok(())
    }

    /// Adds one line.
    pub(super) fn write(&mut self, line: &str) -> Result<()> {
        self.file
            .write_all(format!("{line}\n").as_bytes())
            .with_context(|| format!("cannot write {}", self.path.display()))
    }

    fn cut(path: &Path, header: &str, step_of: fn(&str) -> Option<u64>, step: u64) -> Result<File> {
        let old = match fs::read_to_string(path) {
            Ok(old) => old,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error.into()),
        };
        let keep = |line: &&str| step_of(line).is_some_and(|at| step > 0 && at <= step);
        let mut kept = String::new();
        if !header.is_empty() {
            kept.push_str(header);
            kept.push('\n');
        }
        for line in old.lines().filter(keep) {
            kept.push_str(line);
            kept.push('\n');
        }
        if kept != old {
            scone_files::write_atomic(path, kept.as_bytes())?;
        }
        Ok(OpenOptions::new().create(true).append(true).open(path)?)
    }
}
