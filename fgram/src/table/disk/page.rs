//! Pages of memory.
#![expect(unsafe_code, reason = "their size has no safe interface")]

/// Bytes of a page of memory.
pub(crate) fn page_bytes() -> usize {
    // SAFETY: a question about the system without arguments that could be wrong.
    let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(bytes).unwrap_or(4096).max(1)
}
