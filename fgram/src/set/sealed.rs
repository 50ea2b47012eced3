//! Files that end in the SHA-256 of what comes before.

use sha2::{Digest as _, Sha256};

use crate::error::{Error, Result};

/// Length of a SHA-256 in bytes.
pub(super) const HASH_BYTES: usize = 32;

/// Appends the SHA-256 of `bytes` to them.
pub(super) fn seal(bytes: &mut Vec<u8>) {
    let digest = Sha256::digest(&*bytes);
    bytes.extend_from_slice(&digest);
}

/// Checks and takes off what [`seal`] appended.
pub(super) fn unseal<'a>(file: &str, bytes: &'a [u8]) -> Result<&'a [u8]> {
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
