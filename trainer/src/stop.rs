//! SIGTERM, as an orchestrator sends it before it kills: the default, to die, does not hold for the
//! first process of a container, which must do it itself.
//!
//! Work that can end well asks [`Stop::asked`] now and then and ends with what it has. Anything else
//! ends at once with a message; all of it can be started again, and goes on where files were finished.
#![expect(unsafe_code, reason = "a signal handler has no safe interface")]

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Exit code of a process that a SIGTERM ends, as shells give it.
pub const EXIT_CODE: i32 = 128 + libc::SIGTERM;

static ASKED: AtomicBool = AtomicBool::new(false);

/// How many pieces of work look at [`ASKED`].
static LOOKING: AtomicUsize = AtomicUsize::new(0);

/// Handles SIGTERM from now on. For programs: a library leaves signals alone.
pub fn install() {
    let handler: extern "C" fn(libc::c_int) = on_sigterm;
    // SAFETY: a function of the type that `signal` takes, which does nothing that a handler must not.
    unsafe { libc::signal(libc::SIGTERM, handler as libc::sighandler_t) };
}

/// A second one is not waited for.
extern "C" fn on_sigterm(_signal: libc::c_int) {
    if LOOKING.load(Ordering::Relaxed) > 0 && !ASKED.swap(true, Ordering::Relaxed) {
        return;
    }
    let said =
        b"trainer: ended by SIGTERM; the same command goes on from the files that are finished\n";
    // SAFETY: both may be called in a handler; the bytes are static.
    unsafe {
        libc::write(libc::STDERR_FILENO, said.as_ptr().cast(), said.len());
        libc::_exit(EXIT_CODE);
    }
}

/// Work that ends well when it is asked to; while there is some, SIGTERM waits for it.
#[derive(Debug)]
pub struct Stop(());

impl Stop {
    /// Begins to look.
    #[must_use]
    pub fn watch() -> Self {
        LOOKING.fetch_add(1, Ordering::Relaxed);
        Self(())
    }

    /// Whether a SIGTERM came.
    #[must_use]
    pub fn asked(&self) -> bool {
        ASKED.load(Ordering::Relaxed)
    }
}

impl Drop for Stop {
    fn drop(&mut self) {
        LOOKING.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Work was ended by SIGTERM, with all that it had done on disk.
#[derive(Debug)]
pub struct Stopped {
    /// Steps that were done.
    pub step: u64,
}

impl fmt::Display for Stopped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "ended by SIGTERM after step {}, with a checkpoint: the same command goes on from there",
            self.step
        )
    }
}

impl std::error::Error for Stopped {}
