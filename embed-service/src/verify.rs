//! `embed-service verify`: reads a whole table and compares every checksum.

use std::{
    io::{self, IsTerminal as _, Write},
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use clap::Args;
use scone_fgram::table::{Table, TableOptions};
use serde_json::json;
use tracing::info;

/// The flags of `embed-service verify`.
#[derive(Args, Clone, Debug)]
pub struct VerifyArgs {
    /// Table directory, as `trainer precompute` writes it. A sled table must not be open elsewhere.
    #[arg(long, env = "SCONE_EMBED_TABLE", value_name = "DIR")]
    pub table: PathBuf,

    /// Print one JSON object instead of text.
    #[arg(long)]
    pub json: bool,
}

/// Checks a table; returns only when all of it is sound.
///
/// # Errors
/// The first damage found, or why the table cannot be read.
pub fn run(args: &VerifyArgs, out: &mut impl Write) -> anyhow::Result<()> {
    let options = TableOptions {
        hot_bytes: 0,
        warm: false,
        ..TableOptions::default()
    };
    let table = Table::open(&args.table, &options)?;
    let mut progress = Progress::new();
    let report = table.verify(|done, total| progress.report(done, total))?;
    progress.clear();
    let table_id = &table.manifest().table_id;
    let written = if args.json {
        let report = json!({
            "event": "verified",
            "table_id": table_id,
            "rows": report.rows,
            "row_bytes": report.row_bytes,
            "files": report.files,
        });
        writeln!(out, "{report}")
    } else {
        writeln!(
            out,
            "table {table_id} is sound: {} rows of {} bytes in all, {} files",
            report.rows, report.row_bytes, report.files
        )
    };
    written.context("cannot write the report")
}

/// A line that is overwritten on a terminal, log lines elsewhere.
struct Progress {
    terminal: bool,
    last: Instant,
}

impl Progress {
    fn new() -> Self {
        Self {
            terminal: io::stderr().is_terminal(),
            last: Instant::now(),
        }
    }

    fn report(&mut self, done: u64, total: u64) {
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
            eprint!("\rverifying {done} of {total} rows\x1b[K");
        } else {
            info!(rows.done = done, rows.total = total, "verifying");
        }
    }

    fn clear(&self) {
        if self.terminal {
            eprint!("\r\x1b[K");
        }
    }
}
