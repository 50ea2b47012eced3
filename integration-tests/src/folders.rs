//! The folders of a test run: one of its own for each run, and in it one for each test.

use std::{
    fs,
    fs::File,
    path::{Path, PathBuf},
    sync::{
        LazyLock,
        atomic::{AtomicU32, Ordering},
    },
};

use crate::binaries::binaries;

/// The folder of this test run, empty at its start. A second run in the same target folder waits
/// for the first one to end.
///
/// # Panics
/// When the folder cannot be made.
pub fn run_dir() -> &'static Path {
    static RUN_DIR: LazyLock<(PathBuf, File)> = LazyLock::new(|| {
        let parent = binaries().target.join("tmp");
        fs::create_dir_all(&parent).expect("create the tmp folder");
        let lock = File::create(parent.join("integration-tests.lock")).expect("create a lock file");
        lock.lock().expect("lock the folder of the test run");
        let path = parent.join("integration-tests");
        if path.exists() {
            fs::remove_dir_all(&path).expect("remove the folder of the last run");
        }
        fs::create_dir_all(path.join("logs")).expect("create the folder of this run");
        (path, lock)
    });
    &RUN_DIR.0
}

/// A new empty folder for one test.
///
/// # Panics
/// When it cannot be made.
pub fn scratch(name: &str) -> PathBuf {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let path = run_dir().join(format!("scratch/{number:03}-{name}"));
    fs::create_dir_all(&path).expect("create a scratch folder");
    path
}

/// A copy of a folder for one test: sled lets one process in, and some tests break files.
///
/// # Panics
/// When it cannot be copied.
pub fn copy_of(dir: &Path) -> PathBuf {
    let name = dir.file_name().and_then(|name| name.to_str());
    let copy = scratch(name.expect("a named folder")).join("copy");
    copy_folder(dir, &copy).expect("copy a fixture");
    copy
}

fn copy_folder(from: &Path, to: &Path) -> std::io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_folder(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}
