//! Files: what they take, whether their pages are in memory, and what the disk itself can do.

use std::fs::File;
use std::hint::black_box;
use std::io::Read as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use memmap2::{Advice, Mmap, MmapMut};
use rand::seq::SliceRandom as _;
use rand::{RngExt as _, SeedableRng as _};
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

/// Time of one read of a page at a random offset of the largest file below `dir`, while `depth`
/// threads read, past the page cache: what the disk can do for look-ups of cold rows. `None` where
/// the file system does not open files so.
///
/// # Errors
/// When there is no file, or it cannot be read.
pub fn random_reads(dir: &Path, depth: usize, reads: usize) -> Result<Option<Duration>> {
    let size = |path: &PathBuf| std::fs::metadata(path).map_or(0, |found| found.len());
    let path = files(dir)?.into_iter().max_by_key(size);
    let path = path.context("there is no file to read")?;
    let pages = usize::try_from(size(&path))? / PAGE_BYTES;
    ensure!(pages > 0, "{} has no whole page", path.display());
    let mut options = File::options();
    options.read(true).custom_flags(libc::O_DIRECT);
    let Ok(file) = options.open(&path) else {
        return Ok(None);
    };
    let mut rng = ChaCha8Rng::seed_from_u64(reads as u64);
    let offsets = (0..reads).map(|_| (rng.random_range(0..pages) * PAGE_BYTES) as u64);
    let offsets: Vec<u64> = offsets.collect();
    let next = AtomicUsize::new(0);
    let read_all = || -> Result<()> {
        // Such reads want memory that begins at a page border.
        let mut page = MmapMut::map_anon(PAGE_BYTES)?;
        while let Some(&offset) = offsets.get(next.fetch_add(1, Ordering::Relaxed)) {
            file.read_exact_at(&mut page, offset)?;
            black_box(&page);
        }
        Ok(())
    };
    let start = Instant::now();
    thread::scope(|scope| {
        let readers: Vec<_> = (0..depth).map(|_| scope.spawn(read_all)).collect();
        let mut ended = readers.into_iter().map(|reader| reader.join());
        ended.try_for_each(|ended| ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })?;
    Ok(Some(start.elapsed() / u32::try_from(reads)?))
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
        let read = random_reads(dir.path(), 3, 10).expect("read");
        assert!(read.is_none_or(|time| time > Duration::ZERO));
        assert!(random_reads(&inner.join("b"), 1, 1).is_err(), "no folder");
    }
}
