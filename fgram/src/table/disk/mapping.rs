//! Files seen as memory, and their blocks on the disk.
#![expect(
    unsafe_code,
    reason = "mapping a file, its pages and its blocks on the disk have no safe interface"
)]

use std::fs::File;
use std::hint::black_box;
use std::io::{self, Read as _};
#[cfg(target_os = "linux")]
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;

use memmap2::{Advice, Mmap, MmapMut};
use scone_files::hex;
use sha2::{Digest as _, Sha256};

#[cfg(target_os = "linux")]
use super::lost_pages::Watch;
use super::page::page_bytes;
use crate::error::{Error, Result};

/// Bytes of a file that are read, and hashed, at once: they stay in a core's cache in between.
const PIECE_BYTES: usize = 1 << 18;

/// A whole file as memory: mapped, and so shared with every process that maps it, or a copy.
///
/// The files of a finished table are never written again: publish another version beside it, or
/// replace a file by renaming a new one over it. Who writes to one that is mapped changes the bytes
/// here. Pages that it has no more, after it was cut short, are read as zeros, and [`Mapping::lost`]
/// says so (on Linux; elsewhere reading them ends the process).
pub(crate) struct Mapping {
    /// Watches `map`; dropped before it.
    #[cfg(target_os = "linux")]
    watch: Option<Watch>,
    map: Mmap,
    /// The file that is mapped; none of a copy.
    file: Option<File>,
    /// Whether the system tells this process which pages are in memory.
    may_ask: bool,
}

/// Refuses what is there and no file: to open a pipe is to wait for somebody who writes to it.
pub(super) fn must_be_a_file(path: &Path) -> Result<()> {
    match std::fs::metadata(path) {
        Ok(found) if !found.is_file() => {
            let file = path.display().to_string();
            Err(Error::format(file, "not a file"))
        }
        // What is missing is said by whoever opens it.
        _ => Ok(()),
    }
}

impl Mapping {
    /// Maps the file at `path`; reads nothing yet.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        must_be_a_file(path)?;
        let file = File::open(path).map_err(Error::at("open", path))?;
        // SAFETY: the memory is only read, as bytes, for which every value is valid. Its content
        // changes only if somebody writes to the file, against the rule in this type's
        // documentation; readers then see other bytes, which they must survive anyway.
        let map = unsafe { Mmap::map(&file) }.map_err(Error::at("map", path))?;
        Ok(Self {
            #[cfg(target_os = "linux")]
            watch: Some(Watch::over(&map)),
            map,
            may_ask: may_ask(&file),
            file: Some(file),
        })
    }

    /// Copies the first `bytes` of the file at `path` into memory of this process, which nobody
    /// changes, in large pages where there are some. Returns the SHA-256 of the copy too.
    ///
    /// # Errors
    /// When they cannot be read.
    pub(crate) fn copy(path: &Path, bytes: usize) -> Result<(Self, String)> {
        let read = || -> io::Result<_> {
            let mut file = File::open(path)?;
            let mut memory = MmapMut::map_anon(bytes)?;
            // A hint; what is refused costs speed alone.
            #[cfg(target_os = "linux")]
            let _ = memory.advise(Advice::HugePage);
            let mut hash = Sha256::new();
            for piece in memory.chunks_mut(PIECE_BYTES) {
                file.read_exact(piece)?;
                hash.update(&*piece);
            }
            let copy = Self {
                #[cfg(target_os = "linux")]
                watch: None,
                map: memory.make_read_only()?,
                file: None,
                may_ask: false,
            };
            Ok((copy, hex(&hash.finalize())))
        };
        read().map_err(Error::at("read", path))
    }

    /// Whether a page of the file could not be read, and was taken for zeros.
    pub(crate) fn lost(&self) -> bool {
        #[cfg(target_os = "linux")]
        return self.watch.as_ref().is_some_and(Watch::lost);
        #[cfg(not(target_os = "linux"))]
        false
    }

    /// The bytes of the file.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Rows are read at random offsets: reading ahead would only push others out of memory.
    pub(crate) fn expect_random_reads(&self) {
        // Hints; what is refused costs speed alone.
        let _ = self.map.advise(Advice::Random);
        #[cfg(target_os = "linux")]
        self.advise_file(0, 0, libc::POSIX_FADV_RANDOM);
    }

    /// Reads the first `bytes` into memory and waits for them, in the largest pages that the system
    /// and the file system have (2 MiB on x86-64 with ext4 or xfs on a recent Linux): random reads
    /// then seldom miss the processor's page tables. Pages that are in memory stay as they are.
    ///
    /// # Errors
    /// When they cannot be read, or the file was cut short.
    pub(crate) fn bring_in(&self, bytes: usize) -> io::Result<()> {
        let bytes = bytes.min(self.map.len());
        // Hints; what is refused costs speed alone.
        let advise = |advice| drop(self.map.advise_range(advice, 0, bytes));
        advise(Advice::Sequential);
        #[cfg(target_os = "linux")]
        let read = {
            advise(Advice::HugePage);
            let read = self.map.advise_range(Advice::PopulateRead, 0, bytes);
            // A page that is pushed out later must not bring its whole neighbourhood back.
            advise(Advice::NoHugePage);
            read
        };
        #[cfg(not(target_os = "linux"))]
        let read = Err(io::Error::from_raw_os_error(libc::EINVAL));
        if let Err(error) = read {
            // Before Linux 5.14, and elsewhere.
            if error.raw_os_error() != Some(libc::EINVAL) {
                return Err(error);
            }
            self.touch(bytes);
        }
        advise(Advice::Random);
        Ok(())
    }

    /// Reads a byte of each page of the first `bytes`.
    fn touch(&self, bytes: usize) {
        let firsts = self.map[..bytes].iter().step_by(page_bytes());
        black_box(firsts.fold(0, |sum, byte| sum ^ byte));
    }

    /// Asks the system to read the bytes soon, without waiting for them.
    pub(crate) fn read_soon(&self, start: usize, len: usize) {
        #[cfg(target_os = "linux")]
        self.advise_file(start, len, libc::POSIX_FADV_WILLNEED);
        #[cfg(not(target_os = "linux"))]
        let _ = self.map.advise_range(Advice::WillNeed, start, len);
    }

    /// A hint about a part of the file.
    #[cfg(target_os = "linux")]
    fn advise_file(&self, start: usize, len: usize, advice: libc::c_int) {
        let (Ok(start), Ok(len)) = (start.try_into(), len.try_into()) else {
            return;
        };
        if let Some(file) = &self.file {
            // SAFETY: a hint about a file that is open during the call; no memory of ours is touched.
            unsafe { libc::posix_fadvise(file.as_raw_fd(), start, len, advice) };
        }
    }

    /// Copies the bytes from `start` on, read from the file and not from the memory that it is mapped
    /// to: a page that is used once need not be put into the page tables of this process first.
    ///
    /// # Errors
    /// When they cannot be read, or the file was cut short: the mapping is [`lost`](Self::lost) then.
    pub(crate) fn read_at(&self, start: usize, out: &mut [u8]) -> io::Result<()> {
        let Some(file) = &self.file else {
            let bytes = start.checked_add(out.len());
            let bytes = bytes.and_then(|end| self.map.get(start..end));
            out.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
            return Ok(());
        };
        let read = file.read_exact_at(out, start as u64);
        #[cfg(target_os = "linux")]
        if let (Err(_), Some(watch)) = (&read, &self.watch) {
            watch.note_lost();
        }
        read
    }

    /// Number of pages of `page_bytes`, the last one perhaps in part.
    pub(crate) fn pages(&self) -> usize {
        self.map.len().div_ceil(page_bytes())
    }

    /// Whether [`Mapping::resident`] can tell.
    pub(crate) fn may_ask(&self) -> bool {
        self.may_ask
    }

    /// Says for `resident.len()` pages from page `first` on whether they are in memory; lowest bit
    /// of each byte. All 0 when the system does not tell, or for pages behind the end.
    #[cfg(target_os = "linux")]
    pub(crate) fn resident(&self, first: usize, resident: &mut [u8]) {
        resident.fill(0);
        let count = resident.len().min(self.pages().saturating_sub(first));
        if !self.may_ask || count == 0 {
            return;
        }
        // SAFETY: `first + count` pages lie inside the mapping, which starts at a page border and
        // lives as long as `self`; `resident` has a byte for each of them. The call reads no
        // memory of ours and writes nothing else.
        let failed = unsafe {
            let start = self.map.as_ptr().add(first * page_bytes());
            let len = count * page_bytes();
            libc::mincore(start.cast_mut().cast(), len, resident.as_mut_ptr()) != 0
        };
        if failed {
            resident.fill(0);
        }
    }

    /// Other systems: nothing is known to be in memory.
    #[cfg(not(target_os = "linux"))]
    pub(crate) fn resident(&self, _first: usize, resident: &mut [u8]) {
        resident.fill(0);
    }
}

/// Makes an empty file `length` bytes long and takes its blocks on the disk.
pub(crate) fn preallocate(file: &File, length: u64) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    if let Ok(signed @ 1..) = libc::off_t::try_from(length) {
        // SAFETY: the descriptor belongs to `file`, which is open during the call; no memory of
        // ours is touched.
        let code = unsafe { libc::posix_fallocate(file.as_raw_fd(), 0, signed) };
        if ![0, libc::EOPNOTSUPP, libc::EINVAL].contains(&code) {
            return Err(io::Error::from_raw_os_error(code));
        }
    }
    // For file systems that cannot; the others are as long as they should be already.
    file.set_len(length)
}

/// Linux tells which pages of a file are in memory to the file's owner and to who may write it;
/// to others it says that all are.
fn may_ask(file: &File) -> bool {
    let Ok(metadata) = file.metadata() else {
        return false;
    };
    // SAFETY: a question about this process, which cannot fail.
    let user = unsafe { libc::geteuid() };
    cfg!(target_os = "linux") && (user == 0 || user == metadata.uid())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::fs;

    use super::*;

    fn mapped(bytes: &[u8]) -> Mapping {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, bytes).unwrap();
        // The mapping outlives the name of its file.
        Mapping::open(&path).unwrap()
    }

    #[test]
    fn a_mapping_has_the_bytes_of_its_file() {
        let bytes: Vec<u8> = (0..3 * page_bytes() + 7).map(|i| i as u8).collect();
        let mapping = mapped(&bytes);
        mapping.expect_random_reads();
        mapping.read_soon(page_bytes() + 5, 2 * page_bytes());
        let mut read = vec![0; page_bytes()];
        mapping.read_at(7, &mut read).unwrap();
        assert_eq!(read, bytes[7..][..page_bytes()]);
        mapping.bring_in(page_bytes() + 5).unwrap();
        mapping.bring_in(usize::MAX).unwrap();
        mapping.touch(2 * page_bytes());
        assert_eq!(mapping.bytes(), bytes);
        assert_eq!(mapping.pages(), 4);
        mapped(&[]).bring_in(1).unwrap();
        assert!(mapped(&[]).bytes().is_empty());
    }

    #[test]
    fn a_copy_has_the_bytes_and_their_hash_and_keeps_them() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for bytes in [vec![], vec![3; PIECE_BYTES + 7]] {
            fs::write(file.path(), &bytes).unwrap();
            let (copy, sha256) = Mapping::copy(file.path(), bytes.len()).unwrap();
            assert_eq!(sha256, scone_files::sha256_hex(&bytes));
            fs::write(file.path(), b"else").unwrap();
            assert_eq!(copy.bytes(), bytes);
            assert!(!copy.lost() && !copy.may_ask());
            let mut read = vec![0; bytes.len()];
            copy.read_at(0, &mut read).unwrap();
            assert_eq!(read, bytes);
            for start in [1, usize::MAX] {
                assert!(copy.read_at(start, &mut [0; PIECE_BYTES + 7]).is_err());
            }
        }
        assert!(Mapping::copy(file.path(), 5).is_err());
    }

    #[test]
    fn pages_just_written_are_in_memory_and_those_behind_the_end_are_not() {
        let mapping = mapped(&vec![1; 2 * page_bytes() + 1]);
        let mut resident = [9; 5];
        mapping.resident(1, &mut resident);
        let in_memory = u8::from(mapping.may_ask());
        assert_eq!(
            resident.map(|page| page & 1),
            [in_memory, in_memory, 0, 0, 0]
        );
        mapping.resident(7, &mut resident);
        assert_eq!(resident, [0; 5]);
        mapping.resident(usize::MAX, &mut resident);
        assert_eq!(resident, [0; 5]);
    }

    #[test]
    fn what_is_brought_in_is_in_memory() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), vec![1; 100 * page_bytes()]).unwrap();
        file.as_file().sync_all().unwrap();
        // Where the file system can: the pages leave memory.
        let input = format!("if={}", file.path().display());
        let mut push_out = std::process::Command::new("dd");
        push_out.args([&input, "iflag=nocache", "count=0", "status=none"]);
        println!("pushed out: {:?}", push_out.status());
        let mapping = Mapping::open(file.path()).unwrap();
        mapping.bring_in(99 * page_bytes() + 1).unwrap();
        let mut resident = [0; 100];
        mapping.resident(0, &mut resident);
        let expected = u8::from(mapping.may_ask());
        assert!(resident.iter().all(|page| page & 1 == expected));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_file_that_was_cut_short_is_an_error_and_not_the_end() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(4 * page_bytes() as u64).unwrap();
        let mapping = Mapping::open(file.path()).unwrap();
        file.as_file().set_len(page_bytes() as u64).unwrap();
        mapping.bring_in(page_bytes()).unwrap();
        let mut page = vec![0; page_bytes()];
        mapping.read_at(0, &mut page).unwrap();
        assert!(!mapping.lost());
        assert!(mapping.read_at(page_bytes(), &mut page).is_err() && mapping.lost());
        let read = mapping.bring_in(usize::MAX);
        // Before Linux 5.14 the system has no such call, and reading the pages would be the end.
        assert!(read.is_err());
    }

    #[test]
    fn a_file_is_made_of_zeros_to_its_length() {
        let file = tempfile::tempfile().unwrap();
        for length in [0, 1, 5000] {
            preallocate(&file, length).unwrap();
            assert_eq!(file.metadata().unwrap().len(), length);
        }
        assert!(preallocate(&file, u64::MAX).is_err());
    }

    #[test]
    fn a_missing_file_is_named() {
        let text = Mapping::open(Path::new("/nowhere/rows.bin"))
            .map(|_| ())
            .unwrap_err()
            .to_string();
        assert!(text.contains("cannot open /nowhere/rows.bin"), "{text}");
    }
}
