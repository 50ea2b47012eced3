//! Memory asked for before it is needed.
#![expect(unsafe_code, reason = "the processor's hint takes an address")]

/// Bytes by which kernels ask for weights ahead. Products of several rows leave the processor no
/// room to look ahead by itself.
const AHEAD: usize = 8 << 10;
/// Bytes of a cache line.
const LINE: usize = 64;

/// Asks for the two lines that lie ahead of a row of a tile; beyond the weights it does nothing.
#[inline(always)]
pub(crate) fn look_ahead<T>(row: &T) {
    let ahead = std::ptr::from_ref(row).cast::<i8>().wrapping_add(AHEAD);
    hint(ahead);
    hint(ahead.wrapping_add(LINE));
}

/// Asks for all of some memory that is read soon.
#[inline(always)]
pub(crate) fn ask_for<T>(memory: &[T]) {
    let start = memory.as_ptr().cast::<i8>();
    for at in (0..size_of_val(memory)).step_by(LINE) {
        hint(start.wrapping_add(at));
    }
}

#[inline(always)]
fn hint(address: *const i8) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a hint, which reads nothing that the program could notice, at any address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}
