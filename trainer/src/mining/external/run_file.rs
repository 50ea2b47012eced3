//! Sorted runs of counted pairs on disk.
//!
//! A run is blocks of entries, each a varint of the step from the pair before (in the first entry of a
//! block from 0) and a varint of the count. The place of every block is kept in memory, so that a
//! merge may start anywhere.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

/// Entries of a block: one place in memory for each.
const BLOCK: u32 = 1 << 14;
/// Bytes written and read at a time.
pub(super) const BUFFER: usize = 1 << 16;
/// The longest entry: two varints of 64 bits.
const ENTRY_BYTES: usize = 20;

/// A pair and how often it was found.
pub(super) type Counted = (u64, u64);

/// A finished run.
#[derive(Debug)]
pub(super) struct Run {
    file: File,
    bytes: u64,
    /// First pair and place of each block.
    blocks: Vec<(u64, u64)>,
}

impl Run {
    /// The first pair of each block.
    pub(super) fn marks(&self) -> impl Iterator<Item = u64> + '_ {
        self.blocks.iter().map(|&(first, _)| first)
    }

    /// The entries of pairs from `first` on.
    pub(super) fn entries_from(&self, first: u64) -> Result<Entries<'_>> {
        let block = self.blocks.partition_point(|&(start, _)| start <= first);
        let block = self.blocks.get(block.saturating_sub(1));
        let mut entries = Entries {
            run: self,
            left: 0,
            at: block.map_or(self.bytes, |&(_, at)| at),
            buffer: vec![0; BUFFER],
            read: 0,
            filled: 0,
            head: None,
        };
        entries.advance()?;
        while entries.head.is_some_and(|(pair, _)| pair < first) {
            entries.advance()?;
        }
        Ok(entries)
    }
}

/// Writes one run, in order of pairs.
pub(super) struct RunWriter {
    file: File,
    buffer: Vec<u8>,
    written: u64,
    blocks: Vec<(u64, u64)>,
    in_block: u32,
    last: u64,
}

impl RunWriter {
    /// Starts a run. The file loses its name at once, so nothing is left of it when the process ends.
    pub(super) fn create(path: &Path) -> Result<Self> {
        let create = || -> io::Result<File> {
            let mut options = File::options();
            let file = options
                .read(true)
                .write(true)
                .create(true)
                .truncate(true)
                .open(path)?;
            std::fs::remove_file(path)?;
            Ok(file)
        };
        let file = create().with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self {
            file,
            buffer: Vec::with_capacity(BUFFER + ENTRY_BYTES),
            written: 0,
            blocks: Vec::new(),
            in_block: 0,
            last: 0,
        })
    }

    /// Adds an entry; its pair is above that of the entry before.
    pub(super) fn push(&mut self, (pair, count): Counted) -> Result<()> {
        if self.in_block == 0 {
            self.blocks
                .push((pair, self.written + self.buffer.len() as u64));
            self.last = 0;
        }
        self.in_block = (self.in_block + 1) % BLOCK;
        put_varint(pair - self.last, &mut self.buffer);
        put_varint(count, &mut self.buffer);
        self.last = pair;
        if self.buffer.len() >= BUFFER {
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        self.file
            .write_all_at(&self.buffer, self.written)
            .context("cannot write a sorted run")?;
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    /// Ends the run.
    pub(super) fn finish(mut self) -> Result<Run> {
        self.flush()?;
        Ok(Run {
            file: self.file,
            bytes: self.written,
            blocks: self.blocks,
        })
    }
}

fn put_varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Reads the entries of a run, one ahead.
pub(super) struct Entries<'a> {
    run: &'a Run,
    /// Entries of the head's block not yet read.
    left: u32,
    /// Place in the file behind what is in `buffer`.
    at: u64,
    buffer: Vec<u8>,
    read: usize,
    filled: usize,
    head: Option<Counted>,
}

impl Entries<'_> {
    /// The entry to come.
    pub(super) fn head(&self) -> Option<Counted> {
        self.head
    }

    /// Goes on to the next entry.
    pub(super) fn advance(&mut self) -> Result<()> {
        if self.filled - self.read < ENTRY_BYTES && self.at < self.run.bytes {
            self.fill()?;
        }
        if self.read == self.filled {
            self.head = None;
            return Ok(());
        }
        let before = match self.left {
            0 => {
                self.left = BLOCK;
                0
            }
            _ => self.head.map_or(0, |(pair, _)| pair),
        };
        self.left -= 1;
        let step = self.varint()?;
        let count = self.varint()?;
        self.head = Some((before + step, count));
        Ok(())
    }

    fn fill(&mut self) -> Result<()> {
        self.buffer.copy_within(self.read..self.filled, 0);
        self.filled -= self.read;
        self.read = 0;
        let wanted =
            (self.run.bytes - self.at).min((self.buffer.len() - self.filled) as u64) as usize;
        let into = &mut self.buffer[self.filled..self.filled + wanted];
        self.run
            .file
            .read_exact_at(into, self.at)
            .context("cannot read a sorted run")?;
        self.filled += wanted;
        self.at += wanted as u64;
        Ok(())
    }

    fn varint(&mut self) -> Result<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let Some(&byte) = self.buffer[..self.filled].get(self.read) else {
                break;
            };
            self.read += 1;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        bail!("a sorted run was changed while it was read")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_run_is_read_from_anywhere() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = RunWriter::create(&dir.path().join("run")).unwrap();
        let entry = |i: u64| ((i * i) << 20, 1 + i % 300);
        let len = 3 * u64::from(BLOCK) + 5;
        for i in 0..len {
            writer.push(entry(i)).unwrap();
        }
        let run = writer.finish().unwrap();
        assert_eq!(run.marks().count(), 4);
        for start in [
            0,
            1,
            700,
            u64::from(BLOCK),
            u64::from(BLOCK) + 1,
            len - 1,
            len,
        ] {
            let mut entries = run.entries_from(entry(start).0).unwrap();
            for i in start..len {
                assert_eq!(entries.head(), Some(entry(i)));
                entries.advance().unwrap();
            }
            assert_eq!(entries.head(), None);
        }
        let between = run.entries_from(entry(4).0 + 1).unwrap();
        assert_eq!(between.head(), Some(entry(5)));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_run_may_be_empty() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunWriter::create(&dir.path().join("run")).unwrap();
        let run = run.finish().unwrap();
        assert_eq!(run.entries_from(0).unwrap().head(), None);
    }
}
