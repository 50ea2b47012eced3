//! Files: what they take, and whether their pages are in memory.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

/// Every file below `dir`.
///
/// # Errors
/// When a folder cannot be read.
pub fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            } else {
                found.push(entry.path());
            }
        }
    }
    Ok(found)
}

/// Bytes that the files below `dir` take on the disk.
///
/// # Errors
/// When one cannot be looked at.
pub fn disk_bytes(dir: &Path) -> Result<u64> {
    let mut total = 0;
    for file in files(dir)? {
        // A block of stat is 512 bytes, whatever the file system has.
        total += 512 * std::fs::metadata(file)?.blocks();
    }
    Ok(total)
}

/// Drops the pages of all files below `dir` from the page cache. Nobody may have them mapped: the
/// system keeps such pages. The disk, or the host of a virtual machine, may still cache them.
///
/// # Errors
/// When `dd`, which asks the system to do so, is missing or fails.
pub fn drop_pages(dir: &Path) -> Result<()> {
    for file in files(dir)? {
        // Only pages that are on the disk can be dropped.
        File::open(&file)?.sync_all()?;
        let mut input = std::ffi::OsString::from("if=");
        input.push(&file);
        let mut dd = Command::new("dd");
        dd.arg(input).args(["iflag=nocache", "count=0"]);
        let status = dd.stderr(Stdio::null()).status().context("start dd")?;
        ensure!(status.success(), "dd {}: {status}", file.display());
    }
    Ok(())
}

/// Reads all files below `dir`, so that their pages are in memory if they fit.
///
/// # Errors
/// When one cannot be read.
pub fn read_pages(dir: &Path) -> Result<()> {
    let mut buffer = vec![0; 1 << 20];
    for file in files(dir)? {
        let mut file = File::open(file)?;
        while file.read(&mut buffer)? > 0 {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_drops_and_reads_all_files() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let inner = dir.path().join("inner");
        std::fs::create_dir(&inner).expect("a folder");
        std::fs::write(dir.path().join("a"), [1; 5000]).expect("a file");
        std::fs::write(inner.join("b"), [2; 5000]).expect("a file");
        assert_eq!(files(dir.path()).expect("a list").len(), 2);
        drop_pages(dir.path()).expect("dropped");
        read_pages(dir.path()).expect("read");
        assert!(disk_bytes(dir.path()).expect("a size") >= 10_000);
    }
}
