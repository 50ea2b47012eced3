//! `embed-service upsert`: replaces rows of a sled table in place.

use std::{io::Write, path::PathBuf};

use anyhow::Context as _;
use clap::Args;
use scone_fgram::table::upsert;
use serde_json::json;

use scone_service::progress::Progress;

/// The flags of `embed-service upsert`.
#[derive(Args, Clone, Debug)]
pub struct UpsertArgs {
    /// The sled table to change. No server may have it open.
    #[arg(long, env = "SCONE_EMBED_TABLE", value_name = "DIR")]
    pub table: PathBuf,

    /// Table directory, of either store, with the rows to put in. All its f-grams must be in the
    /// table. When its model is another, it must have every row, and the table becomes that
    /// version.
    #[arg(long, env = "SCONE_EMBED_UPSERT_FROM", value_name = "DIR")]
    pub from: PathBuf,

    /// Print one JSON object instead of text.
    #[arg(long)]
    pub json: bool,
}

/// Replaces the rows; returns when all of them are on the disk. When it is stopped, the same call
/// again finishes it.
///
/// # Errors
/// When the tables do not fit each other, one of them is in use or damaged, or writing fails.
pub fn run(args: &UpsertArgs, out: &mut impl Write) -> anyhow::Result<()> {
    let mut progress = Progress::new("replacing");
    let report = upsert(&args.table, &args.from, |done, total| {
        progress.report(done, total);
    });
    progress.clear();
    let report = report?;
    let table_id = &report.manifest.table_id;
    let written = if args.json {
        let summary = json!({
            "event": "upserted",
            "table_id": table_id,
            "rows": report.manifest.rows,
            "replaced": report.replaced,
            "unchanged": report.unchanged,
        });
        writeln!(out, "{summary}")
    } else {
        writeln!(
            out,
            "table {table_id}: {} rows replaced, {} were the same already, of {} rows in all",
            report.replaced, report.unchanged, report.manifest.rows
        )
    };
    written.context("cannot write the report")
}
