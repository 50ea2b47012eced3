//! Files that end with the SHA-256 of all bytes before it.

use std::fs::File;
use std::io::{self, BufWriter, Read as _, Write};
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use sha2::{Digest as _, Sha256};

/// Bytes of the checksum.
pub(crate) const SEAL_BYTES: usize = 32;

/// Writes a file by rename, and its checksum behind what `write` writes. Gives back the checksum.
///
/// # Errors
/// When it cannot be written; it is then as before.
pub(crate) fn write(
    path: &Path,
    write: impl FnOnce(&mut Sealing<'_>) -> io::Result<()>,
) -> Result<[u8; SEAL_BYTES]> {
    Ok(scone_files::write_atomic_with(path, |file| {
        let mut out = Sealing {
            file,
            hash: Sha256::new(),
        };
        write(&mut out)?;
        let seal: [u8; SEAL_BYTES] = out.hash.finalize().into();
        out.file.write_all(&seal)?;
        Ok(seal)
    })?)
}

/// Reads a small file that was written so, without its checksum.
///
/// # Errors
/// When it cannot be read or its checksum does not match; `path` is named.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    let read = || -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(path)?.read_to_end(&mut bytes)?;
        let body = bytes.len().checked_sub(SEAL_BYTES).context("cut short")?;
        let seal = bytes.split_off(body);
        ensure!(
            Sha256::digest(&bytes)[..] == seal,
            "checksum does not match"
        );
        Ok(bytes)
    };
    read().with_context(|| format!("cannot use {}", path.display()))
}

/// A file being written, with the checksum so far.
pub(crate) struct Sealing<'a> {
    file: &'a mut BufWriter<File>,
    hash: Sha256,
}

impl Write for Sealing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hash.update(&bytes[..written]);
        Ok(written)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
