//! Asks the processor for memory before it is needed.
//!
//! A look-up reads at random places of files far larger than the caches, and knows the places of a
//! whole step long before it reads the first. A load that misses the caches holds up what comes
//! after it as soon as the processor's window is full; a prefetch does not.
#![expect(unsafe_code, reason = "the prefetch instruction has no safe interface")]

/// Bytes of a cache line.
const LINE_BYTES: usize = 64;

/// Starts to read the cache line of `byte`. Leaves a page that is not in memory alone; does nothing
/// on processors other than x86-64.
#[inline]
pub(super) fn prefetch(byte: &u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint about the address of a byte; it reads nothing that the program can see and
    // cannot fail, whatever the address is.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(byte).cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = byte;
}

/// The same for all of `bytes`, line by line from the first byte on.
#[inline]
pub(super) fn prefetch_all(bytes: &[u8]) {
    bytes.iter().step_by(LINE_BYTES).for_each(prefetch);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_bytes_may_be_asked_for() {
        prefetch_all(&[]);
        let bytes = vec![1; 1000];
        prefetch_all(&bytes);
        prefetch(&bytes[999]);
        assert_eq!(bytes, vec![1; 1000]);
    }
}
