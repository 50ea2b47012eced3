//! A file seen as memory, shared with every process that maps it.
#![expect(unsafe_code, reason = "mapping a file has no safe interface")]

use std::fs::File;
use std::io;

use memmap2::{Advice, Mmap, UncheckedAdvice};

/// A whole file, mapped for reading.
///
/// Files of tokens are written under another name and renamed, and never written again. One that is
/// cut short while it is mapped kills the process with SIGBUS when it reads behind the new end; no
/// program can prevent that.
pub(super) struct Mapping(Mmap);

impl Mapping {
    /// Maps `file`; reads nothing yet.
    ///
    /// # Errors
    /// When the system cannot map it.
    pub(super) fn new(file: &File) -> io::Result<Self> {
        // SAFETY: the memory is only read, as bytes, for which every value is valid. Its content
        // changes only if somebody writes to the file, against the rule in this type's
        // documentation; readers then see other bytes, which they must survive anyway.
        let map = unsafe { Mmap::map(file) }?;
        // A hint; what is refused costs speed alone.
        let _ = map.advise(Advice::Sequential);
        Ok(Self(map))
    }

    /// The bytes of the file.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Takes the pages read so far out of this process's memory. They stay in the page cache while
    /// there is room, and are mapped again when they are read again.
    pub(super) fn forget_pages(&self) {
        // SAFETY: the mapping is of a file and read-only, so dropping its pages loses nothing:
        // the next read maps the same bytes of the file again. A hint; refusal does no harm.
        let _ = unsafe { self.0.unchecked_advise(UncheckedAdvice::DontNeed) };
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_mapping_has_the_bytes_of_its_file_also_after_it_forgot_them() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let bytes: Vec<u8> = (0..20_000u32).map(|i| i as u8).collect();
        std::fs::write(file.path(), &bytes).unwrap();
        let mapping = Mapping::new(file.as_file()).unwrap();
        assert_eq!(mapping.bytes(), bytes);
        mapping.forget_pages();
        assert_eq!(mapping.bytes(), bytes);
    }
}
