//! Wall clocks that jump, of single processes: the machine's own stays as it is.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::Command,
    sync::LazyLock,
};

use crate::{folders::scratch, process::run};

/// The wall clock of the processes that it was given to. Made for Linux with glibc.
#[derive(Debug)]
pub struct Clock {
    path: PathBuf,
    file: File,
}

impl Clock {
    /// One that is right.
    ///
    /// # Panics
    /// When there is no C compiler, which the linker needs as well.
    pub fn right() -> Self {
        let path = scratch("clock").join("seconds");
        fs::write(&path, 0i64.to_ne_bytes()).expect("write the file of a clock");
        let file = File::options().write(true).open(&path);
        Self {
            file: file.expect("open the file of a clock"),
            path,
        }
    }

    /// Gives it to a process that is not started yet.
    pub fn of(&self, command: &mut Command) {
        command
            .env("LD_PRELOAD", library())
            .env("MOVED_CLOCK", &self.path);
    }

    /// Moves it to so many seconds after the machine's, or before.
    ///
    /// # Panics
    /// When the file cannot be written.
    pub fn set(&self, seconds: i64) {
        // In place and whole: processes have it mapped.
        let written = self.file.write_all_at(&seconds.to_ne_bytes(), 0);
        written.expect("write the file of a clock");
    }
}

fn library() -> &'static Path {
    static LIBRARY: LazyLock<PathBuf> = LazyLock::new(|| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/clock.c");
        let library = scratch("clock").join("clock.so");
        let mut compile = Command::new("cc");
        compile
            .args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"])
            .args([&library, &source]);
        run("cc", compile).success();
        library
    });
    &LIBRARY
}
