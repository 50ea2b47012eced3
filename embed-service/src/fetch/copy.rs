//! Copies the files of a table, and believes none that differs from its checksum.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    path::{Component, Path},
};

use anyhow::{Context as _, bail, ensure};
use scone_fgram::table::{FileEntry, MANIFEST_FILE, Manifest, StoreKind, Table, TableOptions};
use scone_files::{hex, sync_dir, write_atomic};
use scone_service::progress::Progress;
use sha2::{Digest as _, Sha256};

use super::source::Source;

/// Bytes read at once.
const CHUNK: usize = 1 << 20;

/// Folder of a sled table's own files, which table.json does not list: sled changes them.
const SLED_FOLDER: &str = "rows.sled";

/// Makes the directory `partial` a copy of the table; returns the bytes that were copied. What is in
/// it already and sound is kept. The manifest comes last.
///
/// # Errors
/// When something cannot be read or written, or differs from its checksum.
pub(super) fn table(
    source: &Source,
    manifest: &Manifest,
    manifest_bytes: &[u8],
    partial: &Path,
) -> anyhow::Result<u64> {
    let mut progress = FileProgress::new(manifest);
    let mut copied = 0;
    for entry in &manifest.files {
        copied += checked_file(source, entry, partial, &mut progress)?;
    }
    if manifest.store == StoreKind::Sled {
        copied += sled_folder(source, partial)?;
    }
    progress.bar.clear();
    write_atomic(&partial.join(MANIFEST_FILE), manifest_bytes)?;
    check(source, manifest, manifest_bytes, partial)?;
    sync_dir(partial)?;
    Ok(copied)
}

/// The lengths and headers of all files, and every row of a sled table, whose files have no
/// checksums of their own.
fn check(
    source: &Source,
    manifest: &Manifest,
    manifest_bytes: &[u8],
    partial: &Path,
) -> anyhow::Result<()> {
    let checked = open_and_verify(manifest.store, partial);
    if let Err(error) = checked {
        // The copy may be a mixture of two tables; the next try must not believe it.
        fs::remove_dir_all(partial)
            .with_context(|| format!("cannot remove the bad copy {}", partial.display()))?;
        let changed = source
            .read(MANIFEST_FILE)
            .is_ok_and(|bytes| bytes != manifest_bytes);
        return Err(error.context(match changed {
            true => "the source was replaced while it was copied; try again",
            false => "the copy is not the table that its manifest describes",
        }));
    }
    Ok(())
}

fn open_and_verify(store: StoreKind, dir: &Path) -> anyhow::Result<()> {
    let options = TableOptions {
        hot_bytes: 0,
        warm: false,
        ..TableOptions::default()
    };
    let table = Table::open(dir, &options)?;
    if store == StoreKind::Sled {
        let mut progress = Progress::new("verifying");
        table.verify(|done, total| progress.report(done, total))?;
        progress.clear();
    }
    Ok(())
}

/// Copies a file that has a checksum; returns the bytes that came from the source.
fn checked_file(
    source: &Source,
    entry: &FileEntry,
    partial: &Path,
    progress: &mut FileProgress,
) -> anyhow::Result<u64> {
    ensure!(
        is_plain(&entry.path),
        "{MANIFEST_FILE} names {:?}, which is outside the table",
        entry.path
    );
    let target = partial.join(&entry.path);
    let had = fs::metadata(&target).is_ok_and(|metadata| metadata.len() > 0);
    let before = progress.done;
    match continue_file(source, entry, &target, progress) {
        // What was there may be damaged and the source sound: once more, from the start.
        Err(CopyError::Differs(_)) if had => {
            progress.done = before;
            continue_file(source, entry, &target, progress).map_err(CopyError::into_error)
        }
        result => result.map_err(CopyError::into_error),
    }
}

#[derive(Debug)]
enum CopyError {
    /// The bytes are there, but are not those of the table.
    Differs(String),
    /// Anything else.
    Other(anyhow::Error),
}

impl CopyError {
    fn into_error(self) -> anyhow::Error {
        match self {
            Self::Differs(problem) => anyhow::Error::msg(problem),
            Self::Other(error) => error,
        }
    }
}

/// Reads what `target` has, appends the rest, and compares length and checksum. A file that differs
/// is removed.
fn continue_file(
    source: &Source,
    entry: &FileEntry,
    target: &Path,
    progress: &mut FileProgress,
) -> Result<u64, CopyError> {
    let (hash, copied) = append(source, entry, target, progress).map_err(CopyError::Other)?;
    let length = fs::metadata(target).map_or(0, |metadata| metadata.len());
    if length == entry.bytes && hash == entry.sha256 {
        return Ok(copied);
    }
    fs::remove_file(target)
        .with_context(|| format!("cannot remove the bad copy {}", target.display()))
        .map_err(CopyError::Other)?;
    let name = source.name_of(&entry.path);
    Err(CopyError::Differs(format!(
        "{name} is not the file that {MANIFEST_FILE} lists: {length} bytes with SHA-256 {hash}, \
         {} bytes with {} expected",
        entry.bytes, entry.sha256
    )))
}

fn append(
    source: &Source,
    entry: &FileEntry,
    target: &Path,
    progress: &mut FileProgress,
) -> anyhow::Result<(String, u64)> {
    let cannot = |action: &str| format!("cannot {action} {}", target.display());
    let mut options = OpenOptions::new();
    let options = options.read(true).append(true).create(true);
    let mut file = options.open(target).with_context(|| cannot("open"))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; CHUNK];
    let mut have = 0;
    loop {
        let n = file.read(&mut buffer).with_context(|| cannot("read"))?;
        if n == 0 {
            break;
        }
        hash.update(&buffer[..n]);
        have += n as u64;
        progress.add(n);
    }
    let mut copied = 0;
    if have < entry.bytes {
        let from = source.open(&entry.path, have)?;
        // One byte more than it may have shows that it is too long.
        let mut from = from.take(entry.bytes - have + 1);
        loop {
            let n = read_some(&mut from, &mut buffer)
                .with_context(|| format!("cannot read {}", source.name_of(&entry.path)))?;
            if n == 0 {
                break;
            }
            file.write_all(&buffer[..n])
                .with_context(|| cannot("write"))?;
            hash.update(&buffer[..n]);
            copied += n as u64;
            progress.add(n);
        }
    }
    file.sync_all().with_context(|| cannot("sync"))?;
    Ok((hex(&hash.finalize()), copied))
}

fn read_some(from: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match from.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// Copies the files of sled anew: half of one cannot be told from all of it.
fn sled_folder(source: &Source, partial: &Path) -> anyhow::Result<u64> {
    let folder = partial.join(SLED_FOLDER);
    if folder.exists() {
        fs::remove_dir_all(&folder)
            .with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    let mut copied = 0;
    for path in source.list(SLED_FOLDER)? {
        if !is_plain(&path) {
            bail!("{} is outside the table", source.name_of(&path));
        }
        let target = partial.join(&path);
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent)
                .with_context(|| format!("cannot create {}", parent.display()))?;
        }
        let mut from = source.open(&path, 0)?;
        let mut file =
            File::create(&target).with_context(|| format!("cannot create {}", target.display()))?;
        copied += io::copy(&mut from, &mut file)
            .and_then(|copied| file.sync_all().map(|()| copied))
            .with_context(|| {
                format!(
                    "cannot copy {} to {}",
                    source.name_of(&path),
                    target.display()
                )
            })?;
    }
    Ok(copied)
}

/// A relative path that stays below the directory it is joined to.
fn is_plain(path: &str) -> bool {
    let mut components = Path::new(path).components().peekable();
    components.peek().is_some() && components.all(|part| matches!(part, Component::Normal(_)))
}

/// How much of all files is there.
#[derive(Debug)]
struct FileProgress {
    bar: Progress,
    done: u64,
    total: u64,
}

impl FileProgress {
    fn new(manifest: &Manifest) -> Self {
        Self {
            bar: Progress::bytes("fetching"),
            done: 0,
            total: manifest.files.iter().map(|file| file.bytes).sum(),
        }
    }

    fn add(&mut self, bytes: usize) {
        self.done += bytes as u64;
        self.bar.report(self.done, self.total);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_paths_below_the_directory_are_plain() {
        for path in ["rows.bin", "rows.sled/db", "a/b/c"] {
            assert!(is_plain(path), "{path}");
        }
        for path in ["", "/etc/passwd", "../rows.bin", "a/../../b", "."] {
            assert!(!is_plain(path), "{path}");
        }
    }
}
