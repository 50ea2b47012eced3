//! Files: what they take, and whether their pages are in memory.

use std::fs::File;
use std::hint::black_box;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use memmap2::{Advice, Mmap};
use rand::SeedableRng as _;
use rand::seq::SliceRandom as _;
use rand_chacha::ChaCha8Rng;

/// Bytes of a page of memory, on the systems that have these benchmarks.
const PAGE_BYTES: usize = 4096;

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

/// Reads all files below `dir` page by page in an order of no meaning, as random look-ups do: the
/// system then keeps each page by itself, where [`read_pages`] leaves it large runs of them that cost
/// the processor fewer page tables. Pages that are in memory already stay as they are.
///
/// # Errors
/// When a file cannot be mapped.
#[expect(unsafe_code, reason = "a file cannot be mapped safely")]
pub fn read_scattered(dir: &Path) -> Result<()> {
    for path in files(dir)? {
        let file = File::open(path)?;
        let pages = usize::try_from(file.metadata()?.len())?.div_ceil(PAGE_BYTES);
        if pages == 0 {
            continue;
        }
        // SAFETY: nobody has the files of a benchmark open for writing while it runs.
        let map = unsafe { Mmap::map(&file)? };
        let mut order: Vec<usize> = (0..pages).collect();
        order.shuffle(&mut ChaCha8Rng::seed_from_u64(pages as u64));
        for at in order.iter().map(|page| page * PAGE_BYTES) {
            map.advise_range(Advice::WillNeed, at, PAGE_BYTES.min(map.len() - at))?;
        }
        // Waits for the last ones.
        black_box(
            map.iter()
                .step_by(PAGE_BYTES)
                .fold(0, |sum, byte| sum ^ byte),
        );
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
        drop_pages(dir.path()).expect("dropped");
        read_scattered(dir.path()).expect("read");
        assert!(disk_bytes(dir.path()).expect("a size") >= 10_000);
    }
}
