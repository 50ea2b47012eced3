//! What every part of the project promises about files, in one place.
//!
//! - A file is complete or absent, also after a power cut: [`write_atomic`] and [`write_atomic_with`]
//!   write beside the target, sync, rename, and sync the directory; [`publish`] does the last two
//!   steps for whole directories.
//! - A hash is SHA-256 in lower-case hexadecimal: [`hex`], [`sha256_hex`], [`sha256_file`].
//! - What is made of small files, certificates for example, follows them: [`Followed`].
//! - What can be made again is kept in one folder: [`cache_dir`].
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests"))]

mod atomic;
mod cache;
mod followed;
mod hash;

pub use atomic::{publish, sync_dir, write_atomic, write_atomic_with};
pub use cache::cache_dir;
pub use followed::{Followed, Refreshed};
pub use hash::{Hashing, hex, sha256_file, sha256_hex};

use std::io;
use std::path::{Path, PathBuf};

/// A file operation that failed: `cannot write model.safetensors`, with the system's reason as the
/// source.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}", .path.display())]
pub struct Error {
    /// What was being done.
    pub action: &'static str,
    /// To which file or directory.
    pub path: PathBuf,
    /// Why not.
    pub source: io::Error,
}

/// Result of a file operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Wraps an I/O error, as in `.map_err(Error::at("read", path))`.
    pub fn at(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self {
            action,
            path,
            source,
        }
    }
}
