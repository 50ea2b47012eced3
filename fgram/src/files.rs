//! Reading and writing whole files so that nobody ever sees half of one.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;

use sha2::{Digest as _, Sha256};

use crate::error::{Error, Result};

/// Length of a SHA-256 in bytes.
pub(crate) const HASH_BYTES: usize = 32;

/// Turns an I/O error into ours, as in `.map_err(io_error("read", path))`.
pub(crate) fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io {
        action,
        path,
        source,
    }
}

/// The whole file.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(io_error("read", path))
}

/// Writes beside `path`, syncs, then renames over it: readers see the old file or the new one.
pub(crate) fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let name = path
        .file_name()
        .ok_or_else(|| Error::argument("path", "has no file name"))?;
    let mut temporary = name.to_owned();
    temporary.push(".tmp");
    let temporary = path.with_file_name(temporary);
    let written = write_synced(&temporary, bytes)
        .map_err(io_error("write", &temporary))
        .and_then(|()| fs::rename(&temporary, path).map_err(io_error("write", path)));
    if written.is_err() {
        // The error to report is the first one; a left-over temporary file does no harm.
        let _ = fs::remove_file(&temporary);
    }
    written?;
    sync_parent(path)
}

fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Makes a rename last through a power cut.
fn sync_parent(path: &Path) -> Result<()> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(parent)
        .and_then(|dir| dir.sync_all())
        .map_err(io_error("sync", parent))
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// SHA-256 as lower-case hexadecimal.
pub(crate) fn sha256_hex(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Appends the SHA-256 of `bytes` to them.
pub(crate) fn seal(bytes: &mut Vec<u8>) {
    let digest = Sha256::digest(&*bytes);
    bytes.extend_from_slice(&digest);
}

/// Checks and takes off what [`seal`] appended.
pub(crate) fn unseal<'a>(file: &str, bytes: &'a [u8]) -> Result<&'a [u8]> {
    let Some((body, stored)) = bytes.split_last_chunk::<HASH_BYTES>() else {
        let problem = format!("cut short: {} bytes hold not even a checksum", bytes.len());
        return Err(Error::format(file, problem));
    };
    if Sha256::digest(body).as_slice() != stored {
        let problem = "checksum does not match: the file is damaged or cut short";
        return Err(Error::format(file, problem));
    }
    Ok(body)
}
