//! Asks the processor for memory before it is needed.
//!
//! A look-up reads at random offsets of files far larger than the caches, and knows the offsets of a
//! whole step long before it reads the first. A load that misses the caches holds up what comes
//! after it as soon as the processor's window is full; a prefetch does not.
#![cfg_attr(
    target_arch = "x86_64",
    expect(unsafe_code, reason = "the instruction has no safe interface")
)]

/// Bytes of a cache line.
const LINE_BYTES: usize = 64;

/// More of one run of bytes is not asked for: the first cache has 32 KiB and more, and the processor reads
/// on by itself.
const MOST_BYTES: usize = 8192;

/// Starts to read the cache line of `byte`. Leaves a page that is not in memory alone; does nothing
/// on processors other than x86-64.
#[inline]
pub(crate) fn prefetch(byte: &u8) {
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

/// The same for all lines of `bytes`, or for the first [`MOST_BYTES`].
#[inline]
pub(crate) fn prefetch_all(bytes: &[u8]) {
    let bytes = &bytes[..bytes.len().min(MOST_BYTES)];
    bytes.iter().step_by(LINE_BYTES).for_each(prefetch);
    // The last line has no step of its own when the first byte is not at the start of one.
    bytes.last().map(prefetch);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_bytes_may_be_asked_for() {
        prefetch_all(&[]);
        let bytes = vec![1; 2 * MOST_BYTES];
        prefetch_all(&bytes);
        prefetch_all(&bytes[9..100]);
        prefetch(&bytes[2 * MOST_BYTES - 1]);
        assert_eq!(bytes, vec![1; 2 * MOST_BYTES]);
    }
}
