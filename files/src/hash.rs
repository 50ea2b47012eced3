//! SHA-256 and hexadecimal.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use sha2::{Digest as _, Sha256};

use crate::{Error, Result};

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// SHA-256 of bytes as lower-case hexadecimal.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// SHA-256 of a file as lower-case hexadecimal, read piece by piece.
///
/// # Errors
/// When the file cannot be read.
pub fn sha256_file(path: &Path) -> Result<String> {
    let mut hash = Sha256::new();
    File::open(path)
        .and_then(|mut file| io::copy(&mut file, &mut hash))
        .map_err(Error::at("read", path))?;
    Ok(hex(&hash.finalize()))
}

/// Passes on what is written, and knows its length and SHA-256.
pub struct Hashing<W> {
    to: W,
    bytes: u64,
    hash: Sha256,
}

impl<W: Write> Hashing<W> {
    /// Nothing was written yet.
    pub fn new(to: W) -> Self {
        Self {
            to,
            bytes: 0,
            hash: Sha256::new(),
        }
    }

    /// How many bytes were written, and their SHA-256 as lower-case hexadecimal.
    pub fn finish(self) -> (u64, String) {
        (self.bytes, hex(&self.hash.finalize()))
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.to.write(bytes)?;
        self.bytes += written as u64;
        self.hash.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_hashes() {
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sha256_hex(b"abc"), abc);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("abc");
        std::fs::write(&path, b"abc").unwrap();
        assert_eq!(sha256_file(&path).unwrap(), abc);
        assert!(sha256_file(&dir.path().join("absent")).is_err());
        assert_eq!(hex(&[0, 10, 255]), "000aff");
        // A writer that takes three bytes.
        let mut room = [0; 3];
        let mut hashing = Hashing::new(&mut room[..]);
        assert_eq!(hashing.write(b"abcd").unwrap(), 3);
        hashing.flush().unwrap();
        assert_eq!(hashing.finish(), (3, abc.to_owned()));
        assert_eq!(&room, b"abc");
    }
}
