//! `embed-service verify`: reads a whole table and checks every byte of it.

use std::{io::Write, path::PathBuf, time::Instant};

use anyhow::Context as _;
use clap::{Args, builder::BoolishValueParser};
use scone_fgram::table::{Table, TableOptions};
use serde_json::json;

use scone_service::progress::Progress;

/// The flags of `embed-service verify`.
#[derive(Args, Clone, Debug)]
pub struct VerifyArgs {
    /// Table directory, as `trainer precompute` writes it. A sled table must not be open elsewhere.
    #[arg(long, env = "SCONE_EMBED_TABLE", value_name = "DIR")]
    pub table: PathBuf,

    /// Compare the SHA-256 of every file with table.json too. Without it each byte is checked by the
    /// checksums of rows, keys and index, as fast as the disk is: they find damage, but not a table that
    /// somebody made of other rows with their checksums.
    #[arg(long, env = "SCONE_EMBED_VERIFY_SHA256", value_parser = BoolishValueParser::new())]
    pub sha256: bool,

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
    let started = Instant::now();
    let table = Table::open(&args.table, &options)?;
    let mut progress = Progress::new("verifying");
    let report = table.verify(|done, total| progress.report(done, total))?;
    progress.clear();
    if args.sha256 {
        table.verify_sha256()?;
    }
    let seconds = started.elapsed().as_secs_f64();
    let table_id = &table.manifest().table_id;
    let written = if args.json {
        let report = json!({
            "event": "verified",
            "table_id": table_id,
            "rows": report.rows,
            "row_bytes": report.row_bytes,
            "files": report.files,
            "bytes": report.bytes,
            "seconds": seconds,
            "sha256": args.sha256,
        });
        writeln!(out, "{report}")
    } else {
        writeln!(
            out,
            "table {table_id} is sound: {} rows of {} bytes in all, {} files; {} bytes read in \
             {seconds:.1} s",
            report.rows, report.row_bytes, report.files, report.bytes
        )
    };
    written.context("cannot write the report")
}
