//! Where a table comes from.

use std::{
    fs::{self, File},
    io::{self, Read, Seek as _, SeekFrom},
    path::{Path, PathBuf},
};

use anyhow::bail;

#[cfg(feature = "object-store")]
mod object;

/// A larger table.json is none.
const MAX_MANIFEST_BYTES: u64 = 1 << 20;

/// A published table directory.
#[derive(Debug)]
pub(super) enum Source {
    /// On a disk or a mounted volume.
    Folder(PathBuf),
    /// In an object store.
    #[cfg(feature = "object-store")]
    Objects(object::Objects),
}

/// Why something cannot be had from a source.
#[derive(Debug, thiserror::Error)]
pub(super) enum SourceError {
    /// It is not there.
    #[error("{name} does not exist")]
    Missing {
        /// Path or URL.
        name: String,
    },
    /// It is there, or may be.
    #[error("cannot read {name}")]
    Unreadable {
        /// Path or URL.
        name: String,
        /// The reason.
        source: io::Error,
    },
}

impl Source {
    /// A path, or a URL.
    ///
    /// # Errors
    /// A scheme that this program does not know, or that needs a feature it was built without.
    pub(super) fn parse(from: &str) -> anyhow::Result<Self> {
        match from.split_once("://") {
            None => Ok(Self::Folder(PathBuf::from(from))),
            Some(("file", path)) if path.starts_with('/') => Ok(Self::Folder(PathBuf::from(path))),
            Some(("file", _)) => {
                bail!("--from {from}: a file:// URL has three slashes and no host")
            }
            #[cfg(feature = "object-store")]
            Some(_) => Ok(Self::Objects(object::Objects::parse(from)?)),
            #[cfg(not(feature = "object-store"))]
            Some((scheme @ ("s3" | "gs" | "az"), _)) => bail!(
                "--from {from}: this program was built without {scheme}:// \
                 (cargo build --features object-store -p embed-service)"
            ),
            #[cfg(not(feature = "object-store"))]
            Some((scheme, _)) => {
                bail!("--from {from}: {scheme}:// is not known, file:// and a path are")
            }
        }
    }

    /// A file of the table, for messages.
    pub(super) fn name_of(&self, path: &str) -> String {
        match self {
            Self::Folder(dir) => dir.join(path).display().to_string(),
            #[cfg(feature = "object-store")]
            Self::Objects(objects) => objects.name_of(path),
        }
    }

    /// All of a small file.
    ///
    /// # Errors
    /// When it is missing, larger than a manifest may be, or cannot be read.
    pub(super) fn read(&self, path: &str) -> Result<Vec<u8>, SourceError> {
        let mut bytes = Vec::new();
        let file = self.open(path, 0)?;
        file.take(MAX_MANIFEST_BYTES + 1)
            .read_to_end(&mut bytes)
            .map_err(|error| self.failed(path, error))?;
        if bytes.len() as u64 > MAX_MANIFEST_BYTES {
            let problem = format!("more than {MAX_MANIFEST_BYTES} bytes");
            return Err(self.failed(path, io::Error::other(problem)));
        }
        Ok(bytes)
    }

    /// A file from an offset on.
    ///
    /// # Errors
    /// When it is missing or cannot be opened.
    pub(super) fn open(&self, path: &str, offset: u64) -> Result<Box<dyn Read>, SourceError> {
        let opened: io::Result<Box<dyn Read>> = match self {
            Self::Folder(dir) => open_file(&dir.join(path), offset),
            #[cfg(feature = "object-store")]
            Self::Objects(objects) => objects.open(path, offset),
        };
        opened.map_err(|error| self.failed(path, error))
    }

    /// The paths of all files in a folder of the table, and below it.
    ///
    /// # Errors
    /// When it cannot be listed.
    pub(super) fn list(&self, folder: &str) -> Result<Vec<String>, SourceError> {
        let listed = match self {
            Self::Folder(dir) => list_files(dir, folder),
            #[cfg(feature = "object-store")]
            Self::Objects(objects) => objects.list(folder),
        };
        let mut paths = listed.map_err(|error| self.failed(folder, error))?;
        paths.sort();
        Ok(paths)
    }

    fn failed(&self, path: &str, source: io::Error) -> SourceError {
        let name = self.name_of(path);
        match source.kind() {
            io::ErrorKind::NotFound => SourceError::Missing { name },
            _ => SourceError::Unreadable { name, source },
        }
    }
}

fn open_file(path: &Path, offset: u64) -> io::Result<Box<dyn Read>> {
    let metadata = fs::metadata(path)?;
    // A FIFO would wait for a writer for good.
    if !metadata.is_file() {
        return Err(io::Error::other("not a file"));
    }
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(offset))?;
    Ok(Box::new(file))
}

fn list_files(dir: &Path, folder: &str) -> io::Result<Vec<String>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir.join(folder))? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name
            .to_str()
            .ok_or_else(|| io::Error::other("a name that is no UTF-8"))?;
        let path = format!("{folder}/{name}");
        if entry.file_type()?.is_dir() {
            paths.extend(list_files(dir, &path)?);
        } else {
            paths.push(path);
        }
    }
    Ok(paths)
}
