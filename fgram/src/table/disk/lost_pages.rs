//! What happens when a page of a mapped file is gone: not the end of the process.
//!
//! The system sends SIGBUS to a thread that reads a page of a mapping which the file has no more, as
//! after somebody cut it short, or which the disk cannot read. By default that ends the process, with
//! all its other tables. Here the page becomes one of zeros, the mapping is marked, and the thread
//! goes on: rows of zeros fail their checksums, keys of zeros are those of no slot, and the mark
//! says why. Faults anywhere else go to whoever handled them before.
#![expect(
    unsafe_code,
    reason = "a signal handler, and a mapping in the place of another, have no safe interface"
)]

use std::mem::{MaybeUninit, transmute};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};
use std::sync::{Once, OnceLock};

use libc::{c_int, c_void, siginfo_t};

use super::page::page_bytes;

/// The mapping that was watched last; each knows the one before it.
static LAST: AtomicPtr<Range> = AtomicPtr::new(ptr::null_mut());

/// Who handled the signal before.
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

/// Where a file is mapped. Never freed, since a handler may be looking at it: 40 bytes for each
/// mapping that there ever was.
struct Range {
    start: usize,
    end: usize,
    page_bytes: usize,
    mapped: AtomicBool,
    lost: AtomicBool,
    before: AtomicPtr<Range>,
}

/// A mapping whose pages may get lost. Drop it before the mapping.
pub(super) struct Watch(&'static Range);

impl Watch {
    /// Watches the memory of a mapping, which begins at a page border.
    pub(super) fn over(memory: &[u8]) -> Self {
        static INSTALLED: Once = Once::new();
        INSTALLED.call_once(install);
        let (start, page_bytes) = (memory.as_ptr() as usize, page_bytes());
        let range: &'static Range = Box::leak(Box::new(Range {
            start,
            end: start + memory.len().next_multiple_of(page_bytes),
            page_bytes,
            mapped: AtomicBool::new(true),
            lost: AtomicBool::new(false),
            before: AtomicPtr::new(ptr::null_mut()),
        }));
        let mut last = LAST.load(Ordering::Relaxed);
        loop {
            range.before.store(last, Ordering::Relaxed);
            let new = ptr::from_ref(range).cast_mut();
            match LAST.compare_exchange_weak(last, new, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return Self(range),
                Err(newer) => last = newer,
            }
        }
    }

    /// A read of the file itself has found a part of it gone.
    pub(super) fn note_lost(&self) {
        self.0.lost.store(true, Ordering::Relaxed);
    }

    /// Whether a page was lost.
    pub(super) fn lost(&self) -> bool {
        self.0.lost.load(Ordering::Relaxed)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.mapped.store(false, Ordering::Release);
    }
}

/// Sends SIGBUS to [`on_bus_error`]. Where that fails the signal does what it did before.
fn install() {
    let mut before = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: all zeros are a sigaction: numbers, a set of signals and no function. The first call
    // asks who handles the signal, and is over when the answer is read. The second installs a
    // function of the type that SA_SIGINFO asks for, which does nothing that a handler must not do
    // (see there). SA_ONSTACK: a thread that ran out of its stack still has this one.
    unsafe {
        if libc::sigaction(libc::SIGBUS, ptr::null(), before.as_mut_ptr()) != 0 {
            return;
        }
        if BEFORE.set(before.assume_init()).is_err() {
            return;
        }
        let mut ours = MaybeUninit::<libc::sigaction>::zeroed().assume_init();
        let handler: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) = on_bus_error;
        ours.sa_sigaction = handler as libc::sighandler_t;
        ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigaction(libc::SIGBUS, &raw const ours, ptr::null_mut());
    }
}

/// Runs in the thread that met the fault, at any instruction of it. So it takes no lock, allocates
/// nothing, and reads only atomics and what never changes; mmap and sigaction are single system calls.
extern "C" fn on_bus_error(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel hands a handler with SA_SIGINFO a siginfo that is valid while it runs, and
    // one of SIGBUS has an address when the kernel itself sent it, which a positive code says.
    let (by_kernel, address) = unsafe { ((*info).si_code > 0, (*info).si_addr() as usize) };
    if by_kernel && watched(address).is_some_and(|range| range.replace_page(address)) {
        return;
    }
    pass_on(signal, info, context);
}

/// The mapping that the address is in.
fn watched(address: usize) -> Option<&'static Range> {
    let mut next = LAST.load(Ordering::Acquire);
    loop {
        // SAFETY: null, or from a reference to a range, and no range is ever freed. The list was
        // complete before its head was published with Release.
        let range = unsafe { next.cast_const().as_ref() }?;
        let holds = (range.start..range.end).contains(&address);
        // Another mapping may have had the same addresses before.
        if holds && range.mapped.load(Ordering::Acquire) {
            return Some(range);
        }
        next = range.before.load(Ordering::Relaxed);
    }
}

impl Range {
    /// Puts a page of zeros in the place of the one at `address`, so that the read that failed
    /// succeeds when it is repeated. Returns whether there is one.
    fn replace_page(&self, address: usize) -> bool {
        self.lost.store(true, Ordering::Relaxed);
        let page = address - address % self.page_bytes;
        // SAFETY: the page is inside a mapping of ours that is read-only and still mapped: the
        // thread that reads it holds a reference to it, and its owner marks it before unmapping it.
        // Nothing but bytes of a file is replaced, for which every value is valid, and unmapping
        // the whole takes this page along. The errno of the interrupted code is put back.
        unsafe {
            let errno = libc::__errno_location();
            let before = *errno;
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
            let at = page as *mut c_void;
            let got = libc::mmap(at, self.page_bytes, libc::PROT_READ, flags, -1, 0);
            *errno = before;
            got == at
        }
    }
}

/// Does what would have been done without us.
fn pass_on(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    let Some(before) = BEFORE.get() else {
        return end_by(signal);
    };
    match before.sa_sigaction {
        libc::SIG_DFL => end_by(signal),
        // SAFETY: as in `on_bus_error`. The kernel does not let a fault of its own be ignored.
        libc::SIG_IGN if unsafe { (*info).si_code <= 0 } => {}
        libc::SIG_IGN => end_by(signal),
        handler if before.sa_flags & libc::SA_SIGINFO != 0 => {
            // SAFETY: whoever installed it with SA_SIGINFO promised a function of this type.
            let handler: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) =
                unsafe { transmute(handler) };
            handler(signal, info, context);
        }
        handler => {
            // SAFETY: without SA_SIGINFO it is a function of this type.
            let handler: extern "C" fn(c_int) = unsafe { transmute(handler) };
            handler(signal);
        }
    }
}

/// Ends the process as the signal does by default, once the handler returns.
fn end_by(signal: c_int) {
    // SAFETY: both calls may be made in a handler, and have no arguments that could be wrong. The
    // signal is blocked until the handler returns.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        libc::raise(signal);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::hint::black_box;
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::{Command, ExitStatus};

    use memmap2::Mmap;

    use super::*;

    const CHILD: &str = "SCONE_TEST_LOST_PAGES";

    /// A mapping of three pages of ones, two of which are gone.
    fn cut_short() -> Mmap {
        let file = tempfile::tempfile().unwrap();
        let page = page_bytes();
        std::io::Write::write_all(&mut &file, &vec![1; 3 * page]).unwrap();
        // SAFETY: bytes that are read as bytes.
        let map = unsafe { Mmap::map(&file) }.unwrap();
        file.set_len(page as u64).unwrap();
        map
    }

    fn run(task: &str) -> ExitStatus {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args([
            "--exact",
            "table::disk::lost_pages::tests::child",
            "--nocapture",
        ]);
        command.env(CHILD, task).status().unwrap()
    }

    #[test]
    fn faults_elsewhere_do_what_they_did_before() {
        assert_eq!(run("watched").code(), Some(0));
        assert_eq!(run("elsewhere").signal(), Some(libc::SIGBUS));
        assert_eq!(run("unmapped").signal(), Some(libc::SIGBUS));
        assert_eq!(run("sent").signal(), Some(libc::SIGBUS));
        assert_eq!(run("handler").code(), Some(HANDLED));
        assert_eq!(run("ignored").code(), Some(0));
    }

    const HANDLED: i32 = 77;

    /// Somebody's own handler, that knows nothing of ours.
    extern "C" fn handler(_signal: c_int) {
        // SAFETY: ends the process, which a handler may do.
        unsafe { libc::_exit(HANDLED) }
    }

    fn handle_by(handler: libc::sighandler_t) {
        // SAFETY: a function of the type that `signal` takes, or one of its constants.
        unsafe { libc::signal(libc::SIGBUS, handler) };
    }

    /// The other end of the test above; nothing without it.
    #[test]
    fn child() {
        let Ok(task) = std::env::var(CHILD) else {
            return;
        };
        let page = page_bytes();
        match task.as_str() {
            "handler" => handle_by(handler as extern "C" fn(c_int) as libc::sighandler_t),
            "ignored" => handle_by(libc::SIG_IGN),
            // Rust's own handler, which stands there otherwise, takes a signal that was sent for nothing.
            "sent" => handle_by(libc::SIG_DFL),
            _ => {}
        }
        let watched = cut_short();
        let watch = Watch::over(&watched);
        assert_eq!((watched[0], watch.lost()), (1, false));
        // The last page first: the one before it is still as it was.
        assert_eq!((watched[3 * page - 1], watch.lost()), (0, true));
        assert_eq!(
            [watched[page], watched[2 * page], watched[page - 1]],
            [0, 0, 1]
        );
        match task.as_str() {
            "elsewhere" | "handler" => _ = black_box(cut_short()[page]),
            "unmapped" => {
                drop(watch);
                drop(watched);
                _ = black_box(cut_short()[page]);
            }
            // SAFETY: sends a signal to this process.
            "sent" | "ignored" => unsafe { _ = libc::kill(libc::getpid(), libc::SIGBUS) },
            _ => {}
        }
    }
}
