//! Complete or absent: written beside, synced, renamed.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{Error, Result};

/// Replaces `path` by `bytes`: readers see the old file or the new one, also after a power cut.
///
/// # Errors
/// When the file cannot be written; the old one, if any, is as before.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    write_atomic_with(path, |file| file.write_all(bytes))
}

/// As [`write_atomic`], for contents that are written piece by piece. The error of `write` is
/// passed on like one of the file's own.
///
/// # Errors
/// When the file cannot be written; the old one, if any, is as before.
pub fn write_atomic_with<T>(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<File>) -> io::Result<T>,
) -> Result<T> {
    let name = path.file_name().ok_or_else(|| Error {
        action: "write",
        path: path.to_owned(),
        source: io::Error::new(io::ErrorKind::InvalidInput, "not the path of a file"),
    })?;
    let temporary = path.with_file_name(temporary_name(name));
    let written = write_synced(&temporary, write)
        .map_err(Error::at("write", &temporary))
        .and_then(|value| publish(&temporary, path).map(|()| value));
    if written.is_err() {
        // The error to report is the first one; a left-over temporary file does no harm.
        let _ = fs::remove_file(&temporary);
    }
    written
}

/// A name that no other writer of the same file has, in this process or another.
fn temporary_name(name: &OsStr) -> OsString {
    static WRITES: AtomicU64 = AtomicU64::new(0);
    let write = WRITES.fetch_add(1, Ordering::Relaxed);
    let mut temporary = name.to_owned();
    temporary.push(format!(".{}-{write}.tmp", std::process::id()));
    temporary
}

fn write_synced<T>(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<File>) -> io::Result<T>,
) -> io::Result<T> {
    let mut file = BufWriter::new(File::create(path)?);
    let value = write(&mut file)?;
    file.into_inner()
        .map_err(io::IntoInnerError::into_error)?
        .sync_all()?;
    Ok(value)
}

/// Gives a file or directory, whose contents are synced, its final name, and makes that last
/// through a power cut.
///
/// # Errors
/// When it cannot be renamed or the directory it is in cannot be synced.
pub fn publish(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).map_err(Error::at("write", to))?;
    match to.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => sync_dir(parent),
        _ => sync_dir(Path::new(".")),
    }
}

/// Makes what happened to a directory's entries last through a power cut.
///
/// # Errors
/// When the directory cannot be opened or synced.
pub fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(Error::at("sync", dir))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_nothing_is_left_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        write_atomic(&path, b"one").unwrap();
        write_atomic(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_failed_write_leaves_the_old_file_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.bin");
        write_atomic(&path, b"old").unwrap();
        let failed = write_atomic_with(&path, |file| {
            file.write_all(b"half of the new")?;
            Err::<(), _>(io::Error::other("no more"))
        });
        let error = failed.unwrap_err();
        assert!(error.to_string().contains("cannot write"), "{error}");
        assert_eq!(error.source.to_string(), "no more");
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn writers_of_one_file_do_not_disturb_each_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.bin");
        std::thread::scope(|scope| {
            for i in 0..4u8 {
                let path = &path;
                scope.spawn(move || {
                    for _ in 0..20 {
                        write_atomic(path, &[i; 5000]).unwrap();
                        let read = fs::read(path).unwrap();
                        assert!(read.len() == 5000 && read.iter().all(|b| *b == read[0]));
                    }
                });
            }
        });
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_path_without_a_name_is_an_error() {
        assert!(write_atomic(Path::new(".."), b"").is_err());
    }

    #[test]
    fn a_directory_gets_its_final_name() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("partial"), dir.path().join("whole"));
        fs::create_dir(&from).unwrap();
        publish(&from, &to).unwrap();
        assert!(to.is_dir() && !from.exists());
    }
}
