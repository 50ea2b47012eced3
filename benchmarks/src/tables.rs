//! Builds whatever is measured once, and remembers what it took.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result};
use scone_fgram::table::{BuildOptions, build_table};
use scone_fgram::{Error, FgramSet, RowDtype, StoreKind, TokenId};

use crate::rows;

/// Something that was built in a folder of its own.
#[derive(Debug, Clone, PartialEq)]
pub struct Built {
    /// The folder.
    pub dir: PathBuf,
    /// What building it took, in seconds, flushed to the disk.
    pub seconds: f64,
    /// Whether this run did it.
    pub fresh: bool,
}

/// Builds in `parent/name` by `build`, or takes what an earlier run has finished there. What was
/// interrupted is made anew: else its time would say nothing.
///
/// # Errors
/// Those of `build`, and when files cannot be written.
pub fn once(parent: &Path, name: &str, build: impl FnOnce(&Path) -> Result<()>) -> Result<Built> {
    let dir = parent.join(name);
    let mark = parent.join(format!("{name}.seconds"));
    if let Ok(seconds) = fs::read_to_string(&mark) {
        let seconds = seconds.trim().parse();
        let seconds = seconds.with_context(|| format!("{}: not a number", mark.display()))?;
        let fresh = false;
        return Ok(Built {
            dir,
            seconds,
            fresh,
        });
    }
    if dir.exists() {
        fs::remove_dir_all(&dir)?;
    }
    fs::create_dir_all(&dir)?;
    let start = Instant::now();
    build(&dir)?;
    let seconds = start.elapsed().as_secs_f64();
    fs::write(&mark, format!("{seconds}\n"))?;
    Ok(Built {
        dir,
        seconds,
        fresh: true,
    })
}

/// Builds the table of a set with synthetic rows of `row_bytes` bytes.
///
/// # Errors
/// When the table cannot be built there.
pub fn build(dir: &Path, set: &FgramSet, store: StoreKind, row_bytes: usize) -> Result<()> {
    let dim = row_bytes / 4;
    let options = BuildOptions {
        store,
        dtype: RowDtype::F32,
        dim,
        model_hash: "00".repeat(32),
        ..BuildOptions::default()
    };
    let rows = |batch: &[&[TokenId]], out: &mut Vec<f32>| {
        batch.iter().for_each(|ids| rows::numbers(ids, dim, out));
        Ok::<(), Error>(())
    };
    build_table(dir, set, &options, rows, |_, _| {})?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn builds_once_and_starts_again_after_a_failure() {
        let parent = tempfile::tempdir().expect("a temporary folder");
        let failed = once(parent.path(), "a", |dir| {
            fs::write(dir.join("half"), "")?;
            anyhow::bail!("stopped")
        });
        failed.expect_err("the build failed");
        let built = once(parent.path(), "a", |dir| {
            assert!(!dir.join("half").exists());
            Ok(())
        });
        let built = built.expect("built");
        assert!(built.fresh);
        let again = once(parent.path(), "a", |_| anyhow::bail!("must not build"));
        let again = again.expect("there already");
        assert_eq!((again.seconds, again.fresh), (built.seconds, false));
    }
}
