//! `trainer precompute`.

use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use clap::builder::BoolishValueParser;
use scone_fgram::{FgramSet, RowDtype, StoreKind};
use scone_model::DeviceChoice;

use super::output;
use crate::join::join;
use crate::precompute::{Options, precompute};

/// Flags of `trainer precompute`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Model directory with an f-gram model.
    #[arg(long, env = "SCONE_MODEL")]
    model: PathBuf,
    /// Table directory to write; an interrupted one is finished.
    #[arg(long, env = "SCONE_OUT")]
    out: PathBuf,
    /// How rows are stored: sled (rows can be replaced in place) or mapped (one immutable file, for
    /// large tables, read-only volumes and several processes).
    #[arg(
        long,
        env = "SCONE_STORE",
        default_value = "sled",
        help_heading = "Table"
    )]
    store: StoreKind,
    /// Type of the row elements: f32, f16, bf16, int8 or int4.
    #[arg(
        long,
        env = "SCONE_DTYPE",
        default_value = "f16",
        help_heading = "Table"
    )]
    dtype: RowDtype,
    /// Only shard I of N, as in 0/4, I from 0; absent: the whole table.
    #[arg(long, env = "SCONE_SHARD", value_name = "I/N", value_parser = parse_shard, help_heading = "Table")]
    shard: Option<(u32, u32)>,
    /// Compute nothing: put the rows of these tables, all shards of one table of the model, into one.
    #[arg(long, env = "SCONE_JOIN", value_name = "TABLE", num_args = 1.., value_delimiter = ':',
          conflicts_with = "shard", help_heading = "Table")]
    join: Vec<PathBuf>,
    /// Where to compute: cpu or cuda:N.
    #[arg(
        long,
        env = "SCONE_DEVICE",
        default_value = "cpu",
        help_heading = "Work"
    )]
    device: DeviceChoice,
    /// f-grams computed at once; does not change the result.
    #[arg(
        long,
        env = "SCONE_BATCH_ROWS",
        default_value_t = 1024,
        help_heading = "Work"
    )]
    batch_rows: usize,
    /// Rows compared with the f-gram model at the end, drawn at random; 0: none.
    #[arg(
        long,
        env = "SCONE_VERIFY_ROWS",
        default_value_t = 1000,
        help_heading = "Work"
    )]
    verify_rows: usize,
    /// Print the table's manifest as one JSON object.
    #[arg(long, env = "SCONE_JSON", value_parser = BoolishValueParser::new(), help_heading = "Output")]
    json: bool,
}

fn parse_shard(text: &str) -> anyhow::Result<(u32, u32)> {
    let (index, count) = text.split_once('/').context("expected I/N, as in 0/4")?;
    let (index, count) = (index.parse::<u32>()?, count.parse::<u32>()?);
    ensure!(
        index < count,
        "shard {index} of {count}: the first is 0, the last {count} - 1"
    );
    Ok((index, count))
}

/// Runs `trainer precompute`.
///
/// # Errors
/// Flags that make no sense, a device that cannot be opened, and those of [`precompute`].
pub fn run(args: Args) -> anyhow::Result<()> {
    ensure!(args.batch_rows > 0, "--batch-rows must be at least 1");
    let options = Options {
        store: args.store,
        dtype: args.dtype,
        shard: args.shard.unwrap_or((0, 1)),
        batch_rows: args.batch_rows,
        verify_rows: args.verify_rows,
    };
    let manifest = match &args.join[..] {
        [] => precompute(&args.model, &args.out, &args.device.open()?, &options)?,
        shards => {
            let path = args.model.join("fgrams.bin");
            let set = FgramSet::read(&path)?;
            join(&set, shards, &args.out, args.store)?
        }
    };
    if args.json {
        return output::line(serde_json::to_string(&manifest)?);
    }
    output::line(format_args!(
        "{}: {} rows of {} {} in {}, table id {}",
        args.out.display(),
        manifest.rows,
        manifest.dim,
        manifest.dtype,
        manifest.store,
        manifest.table_id
    ))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn shards_count_from_zero() {
        assert_eq!(parse_shard("1/4").unwrap(), (1, 4));
        for bad in ["4/4", "1", "a/2", "0/0", "-1/2"] {
            assert!(parse_shard(bad).is_err(), "{bad}");
        }
    }
}
