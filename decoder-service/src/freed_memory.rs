//! Memory that was freed, given back to the system.

/// Gives the pages of freed memory back to the system. The allocator keeps what loading a model
/// freed for later, and nothing that comes later needs as much.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[expect(unsafe_code, reason = "a call of the C library")]
pub(crate) fn give_back() {
    // SAFETY: it takes the allocator's own locks, and changes nothing that is allocated.
    unsafe { libc::malloc_trim(0) };
}

/// Only glibc's allocator keeps so much.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub(crate) fn give_back() {}

#[cfg(all(test, target_os = "linux", target_env = "gnu"))]
mod tests {
    /// Pages in memory.
    fn resident() -> usize {
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
        statm.split(' ').nth(1).unwrap().parse().unwrap()
    }

    #[test]
    fn what_was_freed_is_given_back() {
        // Too small for mappings of their own, and with something behind them.
        let mut blocks: Vec<Vec<u8>> = (0..4096).map(|i| vec![i as u8; 16 << 10]).collect();
        let last = blocks.pop();
        drop(blocks);
        let before = resident();
        super::give_back();
        let pages = (32 << 20) / 4096;
        assert!(resident() + pages < before, "{before} to {}", resident());
        assert_eq!(last.map(|block| block.len()), Some(16 << 10));
    }
}
