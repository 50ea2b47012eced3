//! The versions of a table on a disk.

use std::{
    fs::{self, File, TryLockError},
    path::{Path, PathBuf},
    time::SystemTime,
};

use anyhow::{Context as _, bail};
use scone_fgram::table::{MANIFEST_FILE, Manifest, StoreKind};
use scone_files::{publish, sha256_hex, sync_dir};
use tracing::info;

/// The link to the version fetched last.
const CURRENT: &str = "current";

/// Ends the name of a version that is not complete.
const PARTIAL: &str = ".partial";

/// Held while versions are written or removed.
const LOCK: &str = ".fetch.lock";

/// Digits of the manifest's hash in a version's name.
const HASH_DIGITS: usize = 8;

/// Digits of a table id.
const ID_DIGITS: usize = 32;

/// Name of the directory of a version: its table id, and digits that tell shards and stores of one
/// table apart.
pub(super) fn name(manifest: &Manifest, manifest_bytes: &[u8]) -> String {
    let hash = sha256_hex(manifest_bytes);
    format!("{}-{}", manifest.table_id, &hash[..HASH_DIGITS])
}

/// Is this what [`name`] gives, so that it may be removed?
fn is_version(name: &str) -> bool {
    let digits = |text: &str, n| text.len() == n && text.bytes().all(|b| b.is_ascii_hexdigit());
    name.split_once('-')
        .is_some_and(|(id, hash)| digits(id, ID_DIGITS) && digits(hash, HASH_DIGITS))
}

/// A folder of versions, locked against other fetches.
#[derive(Debug)]
pub(super) struct Versions {
    dir: PathBuf,
    /// Unlocked when it is closed.
    _lock: File,
}

impl Versions {
    /// Creates the folder when it is missing.
    ///
    /// # Errors
    /// When it cannot be written to, or another fetch is at work in it.
    pub(super) fn open(dir: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let path = dir.join(LOCK);
        let lock =
            File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                bail!("another fetch is at work in {}", dir.display())
            }
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("cannot lock {}", path.display()));
            }
        }
        Ok(Self {
            dir: dir.to_owned(),
            _lock: lock,
        })
    }

    /// Is the version there, with every file at its full length? Whoever serves it checks the rest.
    pub(super) fn is_complete(&self, version: &str, bytes: &[u8], manifest: &Manifest) -> bool {
        let dir = self.dir.join(version);
        let same = fs::read(dir.join(MANIFEST_FILE)).is_ok_and(|found| found == bytes);
        let whole = manifest.files.iter().all(|file| {
            fs::metadata(dir.join(&file.path)).is_ok_and(|metadata| metadata.len() == file.bytes)
        });
        same && whole && (manifest.store == StoreKind::Mapped || dir.join("rows.sled").is_dir())
    }

    /// A directory to copy into: the copy that was begun before, or the version itself when it has
    /// lost something.
    ///
    /// # Errors
    /// When it cannot be made.
    pub(super) fn begin(&self, version: &str) -> anyhow::Result<PathBuf> {
        let (whole, partial) = (self.dir.join(version), self.partial(version));
        if whole.exists() && !partial.exists() {
            fs::rename(&whole, &partial)
                .with_context(|| format!("cannot rename {}", whole.display()))?;
        }
        fs::create_dir_all(&partial)
            .with_context(|| format!("cannot create {}", partial.display()))?;
        Ok(partial)
    }

    /// Gives a complete copy its name.
    ///
    /// # Errors
    /// When it cannot be renamed.
    pub(super) fn publish(&self, version: &str) -> anyhow::Result<()> {
        let whole = self.dir.join(version);
        if whole.exists() {
            // It was incomplete, and a copy had been begun already.
            fs::remove_dir_all(&whole)
                .with_context(|| format!("cannot remove {}", whole.display()))?;
        }
        Ok(publish(&self.partial(version), &whole)?)
    }

    /// Points `current` to a version, in one step.
    ///
    /// # Errors
    /// When the link cannot be made.
    pub(super) fn make_current(&self, version: &str) -> anyhow::Result<()> {
        let link = self.dir.join(CURRENT);
        if fs::read_link(&link).is_ok_and(|target| target == Path::new(version)) {
            return Ok(());
        }
        let new = self.dir.join(".current.new");
        // Left by a fetch that was killed here.
        let _ = fs::remove_file(&new);
        std::os::unix::fs::symlink(version, &new)
            .with_context(|| format!("cannot create the link {}", new.display()))?;
        publish(&new, &link)?;
        info!(version, "is the current table now");
        Ok(())
    }

    /// Removes versions beyond `keep`, the current one counted, and copies that nobody will finish;
    /// returns their names. Other names are not touched.
    ///
    /// # Errors
    /// When the folder cannot be read or a version cannot be removed.
    pub(super) fn remove_old(
        &self,
        current: &str,
        keep: std::num::NonZeroUsize,
    ) -> anyhow::Result<Vec<String>> {
        let mut others = Vec::new();
        let mut removed = Vec::new();
        for (name, changed) in self.directories()? {
            if name.strip_suffix(PARTIAL).is_some_and(is_version) {
                removed.push(name);
            } else if is_version(&name) && name != current {
                others.push((changed, name));
            }
        }
        others.sort_unstable();
        others.truncate(others.len().saturating_sub(keep.get() - 1));
        removed.extend(others.into_iter().map(|(_, name)| name));
        for name in &removed {
            let path = self.dir.join(name);
            // A server that has it open reads on: the space is given back when it is closed.
            fs::remove_dir_all(&path)
                .with_context(|| format!("cannot remove {}", path.display()))?;
            info!(version = name, "removed an old version");
        }
        sync_dir(&self.dir)?;
        Ok(removed)
    }

    fn directories(&self) -> anyhow::Result<Vec<(String, SystemTime)>> {
        let cannot = || format!("cannot read {}", self.dir.display());
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.dir).with_context(cannot)? {
            let entry = entry.with_context(cannot)?;
            // Not through links: `current` is none.
            let metadata = entry.metadata().with_context(cannot)?;
            if let (true, Ok(name)) = (metadata.is_dir(), entry.file_name().into_string()) {
                found.push((name, metadata.modified().with_context(cannot)?));
            }
        }
        Ok(found)
    }

    fn partial(&self, version: &str) -> PathBuf {
        self.dir.join(format!("{version}{PARTIAL}"))
    }
}
