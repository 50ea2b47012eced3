//! What can go wrong, in words that name the file or field and the limit.

use std::io;
use std::path::{Path, PathBuf};

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Any failure of this crate. [`Error::kind`] sorts them by what a caller can do about it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused a file operation.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was being done, as in "cannot read …".
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },

    /// A file is not what it should be: wrong magic, version, length, checksum or content.
    #[error("{file}: {problem}")]
    Format {
        /// Path or kind of the file.
        file: String,
        /// What is wrong with it, and where.
        problem: String,
    },

    /// An argument is outside its limits.
    #[error("{field}: {problem}")]
    InvalidArgument {
        /// The argument.
        field: &'static str,
        /// What is wrong, with the limit.
        problem: String,
    },

    /// A row that its type cannot hold, or of another length.
    #[error(transparent)]
    Row(#[from] scone_row::Error),

    /// An f-gram of a set is impossible, or a part of it is missing.
    #[error("f-gram {ids:?}: {problem}")]
    InvalidFgram {
        /// The f-gram.
        ids: Vec<u32>,
        /// What is wrong.
        problem: String,
    },

    /// A directory without a manifest: not a table, or one whose building has not ended.
    #[error("{} has no complete table: {problem}", dir.display())]
    NoTable {
        /// The directory.
        dir: PathBuf,
        /// What was found instead.
        problem: String,
    },

    /// Another process holds the table open.
    #[error(
        "the table {} is open in another process; a sled table serves one process at a time, \
         so stop that one or give each its own copy",
        dir.display()
    )]
    TableInUse {
        /// The table directory.
        dir: PathBuf,
    },

    /// The directory belongs to another model, f-gram set, dtype, shard or store.
    #[error(
        "{} was begun with another {field}: there {found}, now {expected}; \
         use another directory or remove this one",
        dir.display()
    )]
    TableMismatch {
        /// The table directory.
        dir: PathBuf,
        /// Which property differs.
        field: &'static str,
        /// Its value in this call.
        expected: String,
        /// Its value in the directory.
        found: String,
    },

    /// The rows of one table cannot go into the other.
    #[error(
        "the rows of {} cannot go into {}: another {field}: there {found}, here {expected}",
        from.display(),
        dir.display()
    )]
    UpsertMismatch {
        /// The table to be changed.
        dir: PathBuf,
        /// The table that the rows come from.
        from: PathBuf,
        /// Which property differs.
        field: &'static str,
        /// Its value in `dir`.
        expected: String,
        /// Its value in `from`.
        found: String,
    },

    /// An upsert was stopped: some rows are old and some are new.
    #[error(
        "an upsert of the table {} is unfinished: start it again to finish it",
        dir.display()
    )]
    UnfinishedUpsert {
        /// The table directory.
        dir: PathBuf,
    },

    /// Stored rows are missing or damaged.
    #[error("the table {} is damaged: {problem}", dir.display())]
    DataLoss {
        /// The table directory.
        dir: PathBuf,
        /// What is damaged.
        problem: String,
    },

    /// The store under a table failed.
    #[error("cannot {action} the rows of the table {}", dir.display())]
    Store {
        /// What was being done.
        action: &'static str,
        /// The table directory.
        dir: PathBuf,
        /// What the store said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// What a caller can do about an [`Error`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The caller gave something impossible; the same call will fail again.
    InvalidInput,
    /// Table, model or directory disagree; a retry cannot help.
    Mismatch,
    /// Another process is in the way; a retry may help.
    Busy,
    /// Bytes on disk are damaged or missing.
    DataLoss,
    /// The operating system or the store failed (disk full, permissions, …).
    Io,
}

impl Error {
    /// Sorts the error by what can be done about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::InvalidArgument { .. } | Error::InvalidFgram { .. } | Error::Row(_) => {
                ErrorKind::InvalidInput
            }
            Error::NoTable { .. }
            | Error::TableMismatch { .. }
            | Error::UpsertMismatch { .. }
            | Error::UnfinishedUpsert { .. } => ErrorKind::Mismatch,
            Error::TableInUse { .. } => ErrorKind::Busy,
            Error::Format { .. } | Error::DataLoss { .. } => ErrorKind::DataLoss,
            Error::Io { .. } | Error::Store { .. } => ErrorKind::Io,
        }
    }

    pub(crate) fn argument(field: &'static str, problem: impl Into<String>) -> Self {
        Error::InvalidArgument {
            field,
            problem: problem.into(),
        }
    }

    pub(crate) fn format(file: impl Into<String>, problem: impl Into<String>) -> Self {
        Error::Format {
            file: file.into(),
            problem: problem.into(),
        }
    }

    /// Wraps an I/O error, as in `.map_err(Error::at("read", path))`.
    pub(crate) fn at(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Error::Io {
            action,
            path,
            source,
        }
    }

    /// Gives an error about the content of a file the name of that file.
    pub(crate) fn in_file(self, file: &str) -> Self {
        match self {
            Error::InvalidArgument { .. } | Error::InvalidFgram { .. } => {
                Error::format(file, self.to_string())
            }
            other => other,
        }
    }

    pub(crate) fn data_loss(dir: &Path, problem: impl Into<String>) -> Self {
        Error::DataLoss {
            dir: dir.to_owned(),
            problem: problem.into(),
        }
    }

    pub(crate) fn fgram(ids: &[u32], problem: impl Into<String>) -> Self {
        Error::InvalidFgram {
            ids: ids.to_vec(),
            problem: problem.into(),
        }
    }
}

impl From<scone_files::Error> for Error {
    fn from(error: scone_files::Error) -> Self {
        let scone_files::Error {
            action,
            path,
            source,
        } = error;
        Error::Io {
            action,
            path,
            source,
        }
    }
}
