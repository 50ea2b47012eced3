//! `embed-service inspect`: facts of a table from `table.json` and `keys.bin`. It opens no row
//! store, so it works beside a running server.

use std::{io::Write, path::PathBuf};

use anyhow::Context as _;
use clap::Args;
use scone_fgram::table::{HOT_ROW_OVERHEAD, Manifest, StoreKind, TableKeys};
use scone_service::args::parse_bytes;
use serde_json::{Value, json};

/// The flags of `embed-service inspect`.
#[derive(Args, Clone, Debug)]
pub struct InspectArgs {
    /// Table directory, as `trainer precompute` writes it.
    #[arg(long, env = "SCONE_EMBED_TABLE", value_name = "DIR")]
    pub table: PathBuf,

    /// Print one JSON object instead of text.
    #[arg(long)]
    pub json: bool,

    /// How many of the most served f-grams to list.
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub head: usize,

    /// Tell how many rows `serve` begins with in memory for this size, with a unit.
    #[arg(
        long,
        env = "SCONE_EMBED_HOT_BYTES",
        value_name = "BYTES",
        default_value = "64MiB",
        value_parser = parse_bytes
    )]
    pub hot_bytes: u64,
}

/// Prints the facts of a table.
///
/// # Errors
/// When there is no complete table, its files are damaged, or `out` cannot be written.
pub fn run(args: &InspectArgs, out: &mut impl Write) -> anyhow::Result<()> {
    let manifest = Manifest::read(&args.table)?;
    let keys = TableKeys::read(&args.table, &manifest)?;
    let facts = facts(&manifest, &keys, args);
    let written = if args.json {
        writeln!(out, "{facts}")
    } else {
        write_text(&facts, out)
    };
    written.context("cannot write the facts")
}

fn facts(manifest: &Manifest, keys: &TableKeys, args: &InspectArgs) -> Value {
    let row_bytes = manifest.row_bytes() as u64;
    let by_length = keys.count_by_length();
    let lengths = (2..=usize::from(manifest.max_n)).map(|n| (n.to_string(), json!(by_length[n])));
    let overhead = match manifest.store {
        StoreKind::Sled => HOT_ROW_OVERHEAD,
        StoreKind::Mapped => 0,
    };
    let hot_rows = (args.hot_bytes / (row_bytes + overhead)).min(manifest.rows);
    let files = manifest.files.iter();
    json!({
        "table_id": manifest.table_id,
        "format_version": manifest.format_version,
        "store": manifest.store.name(),
        "shard": format!("{}/{}", manifest.shard_index, manifest.shard_count),
        "rows": manifest.rows,
        "dim": manifest.dim,
        "dtype": manifest.dtype.name(),
        "row_bytes": row_bytes,
        "all_rows_bytes": manifest.rows * row_bytes,
        "max_n": manifest.max_n,
        "vocab_size": manifest.vocab_size,
        "model_hash": manifest.model_hash,
        "base_hash": manifest.base_hash,
        "tokenizer_hash": manifest.tokenizer_hash,
        "fgram_set_hash": manifest.fgram_set_hash,
        "rows_sha256": manifest.rows_sha256,
        "files": files
            .map(|file| json!({ "path": file.path, "bytes": file.bytes, "sha256": file.sha256 }))
            .collect::<Vec<_>>(),
        "rows_by_length": Value::Object(lengths.collect()),
        "hot_bytes": args.hot_bytes,
        "hot_rows": hot_rows,
        "head": keys.iter().take(args.head).collect::<Vec<_>>(),
    })
}

/// One fact a line, lists one entry a line below their name.
fn write_text(facts: &Value, out: &mut impl Write) -> std::io::Result<()> {
    for (name, value) in facts.as_object().into_iter().flatten() {
        match value {
            Value::String(text) => writeln!(out, "{name:16} {text}")?,
            Value::Array(entries) => {
                writeln!(out, "{name}")?;
                for entry in entries {
                    writeln!(out, "  {entry}")?;
                }
            }
            Value::Object(entries) => {
                writeln!(out, "{name}")?;
                for (key, entry) in entries {
                    writeln!(out, "  {key:14} {entry}")?;
                }
            }
            other => writeln!(out, "{name:16} {other}")?,
        }
    }
    Ok(())
}
