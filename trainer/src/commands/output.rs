//! What commands leave behind: results on stdout, files by rename, facts about this process.

use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};

/// Prints one line on stdout. Unlike `println!` it does not panic when the reader has gone.
///
/// # Errors
/// When stdout cannot be written; [`is_closed_pipe`] tells whether anybody minds.
pub fn line(text: impl std::fmt::Display) -> Result<()> {
    writeln!(std::io::stdout(), "{text}").context("cannot write to stdout")
}

/// Whether `error` only says that the reader of stdout has gone, as in `trainer fgrams | head`.
pub fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<std::io::Error>())
        .any(|cause| cause.kind() == std::io::ErrorKind::BrokenPipe)
}

/// Writes a file that is there in full or not at all; directories on the way are made.
///
/// # Errors
/// When it cannot be written; `path` is named.
pub fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(scone_files::write_atomic(path, bytes)?)
}

/// The most memory this process ever had resident, bytes; `None` where the system does not say.
pub fn peak_memory_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// Bytes as MiB, for people.
pub fn mib(bytes: u64) -> String {
    format!("{:.0} MiB", bytes as f64 / f64::from(1 << 20))
}
