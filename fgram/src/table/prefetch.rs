//! Asks the processor for memory before it is needed.
//!
//! A look-up reads at random places of files far larger than the caches, and knows the places of a
//! whole step long before it reads the first. A load that misses the caches holds up what comes
//! after it as soon as the processor's window is full; a prefetch does not.
#![expect(unsafe_code, reason = "the prefetch instruction has no safe interface")]

/// Bytes of a cache line.
const LINE_BYTES: usize = 64;

/// Starts to read the cache lines that begin in `bytes`, from its first byte on. Pages that are not
/// in memory are left alone. Does nothing on processors other than x86-64.
#[inline]
pub(super) fn prefetch(bytes: &[u8]) {
    for line in bytes.chunks(LINE_BYTES) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a hint about an address inside `line`; it reads nothing that the program can see
        // and cannot fail, whatever the address is.
        unsafe {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast());
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = line;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_bytes_may_be_asked_for() {
        prefetch(&[]);
        let bytes = vec![1; 1000];
        prefetch(&bytes);
        prefetch(&bytes[999..]);
        assert_eq!(bytes, vec![1; 1000]);
    }
}
