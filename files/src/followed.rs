//! What is made of small files, and made again when they change.

use std::{
    fmt, fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, RwLock},
};

use crate::{Error, Result, sha256_hex};

/// Certificates, keys and lists are far below; something larger is another file.
const MAX_BYTES: u64 = 1 << 20;

/// A value made of small files. [`refresh`](Self::refresh) looks at them again; what cannot be used
/// leaves the value as it was.
pub struct Followed<T, E> {
    paths: Vec<PathBuf>,
    make: Make<T, E>,
    /// SHA-256 of what the files held when they were looked at last, or why they could not be read:
    /// secrets among them are not kept.
    seen: Mutex<Result<Vec<String>, String>>,
    made: RwLock<Arc<T>>,
}

/// Makes the value of the contents of the files, in their order, and of the value before.
type Make<T, E> = Box<dyn Fn(&[Vec<u8>], Option<&T>) -> Result<T, E> + Send + Sync>;

/// What a look at the files came to.
#[derive(Debug, PartialEq, Eq)]
pub enum Refreshed<E> {
    /// They are as they were.
    Same,
    /// They changed, and so did the value.
    Changed,
    /// They changed, and cannot be used. Said once for each such change.
    Refused(E),
}

impl<T, E: From<Error>> Followed<T, E> {
    /// Reads the files and makes the value.
    ///
    /// # Errors
    /// When a file cannot be read or has more than 1 MiB, and what `make` says.
    pub fn open(
        paths: Vec<PathBuf>,
        make: impl Fn(&[Vec<u8>], Option<&T>) -> Result<T, E> + Send + Sync + 'static,
    ) -> Result<Self, E> {
        let contents = read_all(&paths)?;
        let made = make(&contents, None)?;
        Ok(Self {
            paths,
            make: Box::new(make),
            seen: Mutex::new(Ok(hashes(&contents))),
            made: RwLock::new(Arc::new(made)),
        })
    }

    /// The value made of the last files that could be used.
    pub fn current(&self) -> Arc<T> {
        Arc::clone(&self.made.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Looks at the files, and makes the value again when they hold something else. Reads files:
    /// not for a network thread.
    pub fn refresh(&self) -> Refreshed<E> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let read = read_all(&self.paths);
        let now = match &read {
            Ok(contents) => Ok(hashes(contents)),
            Err(error) => Err(format!("{error}: {}", error.source)),
        };
        if *seen == now {
            return Refreshed::Same;
        }
        *seen = now;
        let made = match read {
            Ok(contents) => (self.make)(&contents, Some(&self.current())),
            Err(error) => Err(error.into()),
        };
        match made {
            Ok(made) => {
                *self.made.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(made);
                Refreshed::Changed
            }
            Err(error) => Refreshed::Refused(error),
        }
    }
}

impl<T, E> fmt::Debug for Followed<T, E> {
    /// The files, and nothing of what is in them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Followed").field(&self.paths).finish()
    }
}

fn hashes(contents: &[Vec<u8>]) -> Vec<String> {
    contents.iter().map(|bytes| sha256_hex(bytes)).collect()
}

fn read_all(paths: &[PathBuf]) -> Result<Vec<Vec<u8>>> {
    paths.iter().map(|path| read(path)).collect()
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let at = || Error::at("read", path);
    let found = fs::metadata(path).map_err(at())?;
    // To open a pipe is to wait for somebody who writes to it.
    if !found.is_file() {
        return Err(at()(io::Error::other("not a file")));
    }
    let file = fs::File::open(path).map_err(at())?;
    let mut bytes = Vec::new();
    let read = file.take(MAX_BYTES + 1).read_to_end(&mut bytes);
    if read.map_err(at())? as u64 > MAX_BYTES {
        let problem = format!("it has more than {MAX_BYTES} bytes");
        return Err(at()(io::Error::other(problem)));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Bad(#[expect(dead_code, reason = "for a failing test's message")] String);

    impl From<Error> for Bad {
        fn from(error: Error) -> Self {
            Self(error.to_string())
        }
    }

    /// A number in a file, and how many numbers were before it.
    fn number(path: &Path) -> Result<Followed<(u32, u32), Bad>, Bad> {
        Followed::open(
            vec![path.to_owned()],
            |contents, before: Option<&(u32, u32)>| {
                let text = String::from_utf8_lossy(&contents[0]);
                let number = text.parse().map_err(|_| Bad(text.into_owned()))?;
                Ok((number, before.map_or(0, |(_, count)| count + 1)))
            },
        )
    }

    #[test]
    fn what_cannot_be_used_is_said_once_and_leaves_the_value() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("number");
        assert!(number(&path).is_err(), "there is no file");
        fs::write(&path, "7").unwrap();
        let followed = number(&path).unwrap();
        assert_eq!(*followed.current(), (7, 0));
        assert!(matches!(followed.refresh(), Refreshed::Same));
        fs::write(&path, "seven").unwrap();
        assert!(matches!(followed.refresh(), Refreshed::Refused(_)));
        assert!(matches!(followed.refresh(), Refreshed::Same));
        assert_eq!(*followed.current(), (7, 0));
        fs::remove_file(&path).unwrap();
        assert!(matches!(followed.refresh(), Refreshed::Refused(_)));
        assert!(matches!(followed.refresh(), Refreshed::Same));
        fs::write(&path, "8").unwrap();
        assert!(matches!(followed.refresh(), Refreshed::Changed));
        assert_eq!(*followed.current(), (8, 1));
    }

    #[test]
    fn what_is_no_small_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(number(dir.path()).is_err());
        let path = dir.path().join("number");
        fs::write(&path, " ".repeat(MAX_BYTES as usize + 1)).unwrap();
        let error = format!("{:?}", number(&path).unwrap_err());
        assert!(error.contains("cannot read"), "{error}");
    }
}
