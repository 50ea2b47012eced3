//! A set file asked for single f-grams: it is read through each time, and nothing of it stays in
//! memory.

use std::fs::File;
use std::io::{BufReader, Read as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use scone_files::hex;
use sha2::{Digest as _, Sha256};

use super::reader::put_key;
use super::sealed::HASH_BYTES;
use super::varint;
use crate::error::{Error, Result};
use crate::ngram::{MAX_N, TokenId};

/// Bytes read at a time.
const CHUNK: usize = 1 << 20;

/// Most bytes of a record: a length, K ids and two counts of at most 10 bytes each.
const MOST_RECORD_BYTES: usize = 10 * (MAX_N + 3);

/// Bytes before the totals by length, and where K stands among them.
const HEAD_BYTES: usize = 60;
const MAX_N_AT: usize = 16;

/// Where an f-gram stands in its set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rank {
    /// 0 is the most frequent f-gram.
    pub rank: u64,
    /// How often it occurs in the training corpus, overlaps included.
    pub count: u64,
    /// How often it is the longest match there; 0 while unknown.
    pub match_count: u64,
}

/// An open set file. Compare its [`hash`](Self::hash) with that of the set that is meant: nothing
/// else about its content is checked. It keeps its content when another file takes its place by rename.
#[derive(Debug)]
pub struct SetFile {
    file: File,
    path: PathBuf,
    hash: String,
    /// Bytes of the records' beginning and end.
    records: (u64, u64),
    len: u64,
}

impl SetFile {
    /// Opens a file and reads it through once, for its hash.
    ///
    /// # Errors
    /// When it cannot be read, or is too short for a set.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let read = |action: &'static str| Error::at(action, path);
        let file = File::open(path).map_err(read("open"))?;
        let mut hash = Sha256::new();
        let mut bytes = 0u64;
        let mut reader = BufReader::with_capacity(CHUNK, &file);
        let mut chunk = vec![0; CHUNK];
        loop {
            match reader.read(&mut chunk).map_err(read("read"))? {
                0 => break,
                some => {
                    hash.update(&chunk[..some]);
                    bytes += some as u64;
                }
            }
        }
        let (first, len) = read_head(&file, path)?;
        let end = bytes.saturating_sub(HASH_BYTES as u64);
        if end < first {
            return Err(Error::format(path.display().to_string(), "cut short"));
        }
        Ok(Self {
            hash: hex(&hash.finalize()),
            file,
            path: path.to_owned(),
            records: (first, end),
            len,
        })
    }

    /// SHA-256 of the file in lower-case hexadecimal, as tables carry it.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// S: the number of f-grams.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there are no f-grams.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Finds an f-gram; `None` when the set has no such one. Reads the file up to it, some 40 ns for
    /// each f-gram before: a thread should wait for it.
    ///
    /// # Errors
    /// When the file cannot be read, or holds what no set file does.
    pub fn find(&self, ids: &[TokenId]) -> Result<Option<Rank>> {
        let mut key = Vec::new();
        put_key(ids, &mut key);
        let mut buffer = Vec::with_capacity(CHUNK + MOST_RECORD_BYTES);
        let (mut at, end) = self.records;
        let mut rank = 0;
        while rank < self.len {
            // What is left of the last chunk is the beginning of a record.
            let more = CHUNK.min((end - at) as usize);
            let kept = buffer.len();
            buffer.resize(kept + more, 0);
            let read = self.file.read_exact_at(&mut buffer[kept..], at);
            read.map_err(Error::at("read", &self.path))?;
            at += more as u64;
            let last = at == end;
            let mut rest = buffer.as_slice();
            while rank < self.len && (last || rest.len() >= MOST_RECORD_BYTES) {
                match record(&mut rest, &key) {
                    Some(None) => rank += 1,
                    Some(Some((count, match_count))) => {
                        return Ok(Some(Rank {
                            rank,
                            count,
                            match_count,
                        }));
                    }
                    None => {
                        let problem = format!("the record of rank {rank} is damaged");
                        return Err(Error::format(self.path.display().to_string(), problem));
                    }
                }
            }
            let taken = buffer.len() - rest.len();
            buffer.drain(..taken);
        }
        Ok(None)
    }
}

/// Where the records begin, and how many there are.
fn read_head(file: &File, path: &Path) -> Result<(u64, u64)> {
    let at = |bytes: &mut [u8], at| {
        let read = file.read_exact_at(bytes, at);
        read.map_err(Error::at("read", path))
    };
    let mut max_n = [0; 4];
    at(&mut max_n, MAX_N_AT as u64)?;
    let max_n = u32::from_le_bytes(max_n);
    if !(2..=MAX_N as u32).contains(&max_n) {
        let problem = format!("f-grams of up to {max_n} ids, not 2 to {MAX_N}");
        return Err(Error::format(path.display().to_string(), problem));
    }
    let totals = 8 * u64::from(max_n - 1);
    let mut len = [0; 8];
    at(&mut len, HEAD_BYTES as u64 + totals)?;
    Ok((HEAD_BYTES as u64 + totals + 8, u64::from_le_bytes(len)))
}

/// Takes one record off the front. Numbers have one spelling, so keys are compared as they are
/// written: the counts where it is the key's, `Some(None)` where it is another's, `None` where it is
/// no record.
fn record(rest: &mut &[u8], key: &[u8]) -> Option<Option<(u64, u64)>> {
    let found = rest.starts_with(key);
    let n = varint::take(rest)?;
    for _ in 0..n.min(MAX_N as u64) {
        varint::take(rest)?;
    }
    let counts = (varint::take(rest)?, varint::take(rest)?);
    Some(found.then_some(counts))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::ngram::NGram;
    use crate::set::{FgramSet, SetHeader};

    fn set(vocab_size: u32, tokens: u32) -> FgramSet {
        let header = SetHeader {
            vocab_size,
            max_n: 3,
            tokenizer_hash: [7; 32],
            min_count: 1,
        };
        let mut fgrams = Vec::new();
        for id in 0..tokens {
            let next = (id + 7) % vocab_size;
            let pair = NGram::from_slice(&[id, next]).unwrap();
            fgrams.push((pair, 1 + u64::from(id) * u64::from(id)));
        }
        FgramSet::new(header, fgrams).unwrap()
    }

    #[test]
    fn every_fgram_is_found_with_what_the_set_says_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fgrams.bin");
        // Several chunks.
        let mut set = set(400_000, 200_000);
        let matches = (0..set.len() as u64).map(|rank| rank % 300).collect();
        set.set_match_counts(matches).unwrap();
        set.write(&path).unwrap();
        let file = SetFile::open(&path).unwrap();
        assert_eq!((file.hash(), file.len()), (set.hash().as_str(), 200_000));
        for rank in [0, 1, 2, 99_999, 150_000, 199_998, 199_999] {
            let fgram = set.get(rank);
            let expected = Rank {
                rank: rank as u64,
                count: fgram.count,
                match_count: fgram.match_count,
            };
            assert_eq!(file.find(fgram.ids).unwrap(), Some(expected));
        }
        // A part of a key, and a key with more behind it, are others.
        for ids in [&[1u32, 7][..], &[1], &[1, 8, 8], &[399_999, 1]] {
            assert_eq!(file.find(ids).unwrap(), None, "{ids:?}");
        }
    }

    #[test]
    fn any_bytes_are_an_error_or_no_find_and_never_a_panic() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fgrams.bin");
        let bytes = set(300, 20).to_bytes();
        for cut in 0..bytes.len() {
            std::fs::write(&path, &bytes[..cut]).unwrap();
            if let Ok(file) = SetFile::open(&path) {
                let _ = file.find(&[299, 299]);
            }
        }
        for at in 0..bytes.len() {
            let mut bytes = bytes.clone();
            bytes[at] ^= 0xff;
            std::fs::write(&path, &bytes).unwrap();
            if let Ok(file) = SetFile::open(&path) {
                let _ = file.find(&[299, 299]);
            }
        }
        assert!(SetFile::open(dir.path().join("none")).is_err());
    }
}
