//! `embed-service fetch`: brings a table from where it was published to the disk it is served from.
//!
//! ```text
//! FROM/table.json, keys.bin, …  ──>  TO/<table id>-<digits>.partial/…  checked byte by byte
//!                                    TO/<table id>-<digits>/           renamed when all of it is there
//!                                    TO/current -> the version fetched last
//! ```
//!
//! A stopped fetch goes on where it was, in the middle of a file too; a version that is there is
//! used again; what is older than asked for goes. The order is always the same: a reader of
//! `TO/current` finds a complete table or none.

mod args;
mod copy;
mod source;
mod versions;

use std::{
    io::Write,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use scone_fgram::table::{MANIFEST_FILE, Manifest};
use serde_json::json;
use tracing::{info, warn};

pub use args::FetchArgs;

use self::{
    source::{Source, SourceError},
    versions::Versions,
};

/// How often a source without a table is looked at again.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// What one fetch did.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Fetched {
    /// Name of the version's directory in `--to`.
    pub version: String,
    /// The table it is.
    pub table_id: String,
    /// Bytes that came from the source; 0 when the version was there already.
    pub copied_bytes: u64,
    /// Names of the versions that were removed.
    pub removed: Vec<String>,
}

/// Fetches the table, and with `--every` goes on looking for the next one. Prints a line for each
/// version.
///
/// # Errors
/// When the source has no table in time or cannot be read, a file differs from its checksum, or the
/// disk cannot be written. With `--every` only of the first fetch: later ones are logged and tried
/// again.
pub fn run(args: &FetchArgs, out: &mut impl Write) -> anyhow::Result<()> {
    let mut last = fetch(args)?;
    print(args, &last, out)?;
    let Some(every) = args.every else {
        return Ok(());
    };
    loop {
        sleep(every);
        match fetch(args) {
            Ok(fetched) if fetched.version == last.version => {}
            Ok(fetched) => {
                print(args, &fetched, out)?;
                last = fetched;
            }
            Err(error) => warn!(
                error = format!("{error:#}"),
                "cannot fetch, trying again later"
            ),
        }
    }
}

/// Fetches the table once.
///
/// # Errors
/// As [`run`].
pub fn fetch(args: &FetchArgs) -> anyhow::Result<Fetched> {
    let source = Source::parse(&args.from)?;
    let versions = Versions::open(&args.to)?;
    let bytes = wait_for_manifest(&source, args.wait)?;
    let manifest = Manifest::from_json(&source.name_of(MANIFEST_FILE), &bytes)?;
    let version = versions::name(&manifest, &bytes);
    let copied_bytes = match versions.is_complete(&version, &bytes, &manifest) {
        true => 0,
        false => {
            info!(from = %args.from, version, rows = manifest.rows, "fetching");
            let partial = versions.begin(&version)?;
            let copied = copy::table(&source, &manifest, &bytes, &partial)?;
            versions.publish(&version)?;
            copied
        }
    };
    versions.make_current(&version)?;
    let removed = versions.remove_old(&version, args.keep)?;
    Ok(Fetched {
        version,
        table_id: manifest.table_id,
        copied_bytes,
        removed,
    })
}

/// The bytes of the source's table.json, which is there when all of the table is.
fn wait_for_manifest(source: &Source, wait: Duration) -> anyhow::Result<Vec<u8>> {
    let started = Instant::now();
    let mut told = false;
    loop {
        match source.read(MANIFEST_FILE) {
            Ok(bytes) => return Ok(bytes),
            Err(SourceError::Missing { name }) if started.elapsed() < wait => {
                if !told {
                    info!(name, "waiting for a table");
                    told = true;
                }
                sleep(LOOK_EVERY.min(wait.saturating_sub(started.elapsed())));
            }
            Err(error @ SourceError::Missing { .. }) => {
                bail!("{error}, so there is no complete table (--wait waits for one)")
            }
            Err(error) => return Err(error.into()),
        }
    }
}

fn print(args: &FetchArgs, fetched: &Fetched, out: &mut impl Write) -> anyhow::Result<()> {
    let path = args.to.join(&fetched.version);
    let written = if args.json {
        let line = json!({
            "event": "fetched",
            "table_id": fetched.table_id,
            "path": path,
            "copied_bytes": fetched.copied_bytes,
            "removed": fetched.removed,
        });
        writeln!(out, "{line}")
    } else {
        let (path, copied) = (path.display(), fetched.copied_bytes);
        writeln!(
            out,
            "table {} in {path}: {copied} bytes copied",
            fetched.table_id
        )
    };
    written
        .and_then(|()| out.flush())
        .context("cannot write the report")
}
