//! A shard: some documents of a corpus as token ids, in one file that is mapped.
//!
//! The layout is in `docs/formats.md` ("Tokens").

use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

use super::ids::TokenIds;
use super::mapping::Mapping;
use super::run::TokenRun;
use crate::sealed::{self, SEAL_BYTES};

const MAGIC: &[u8; 8] = b"SCONETOK";
/// Raised when the layout changes.
const VERSION: u32 = 3;
const HEADER_BYTES: usize = 8 + 4 + 4 + 32 + 5 * 8;
/// Items encoded, and bytes hashed, at a time.
const CHUNK: usize = 1 << 16;

/// A place in the inputs of a corpus: where the next document is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Place {
    /// Index of the file.
    pub(super) input: u64,
    /// Documents of that file before the place.
    pub(super) document: u64,
}

/// What a shard belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ShardHeader {
    /// Names inputs, tokenizer and options: see `key`.
    pub(super) key: [u8; 32],
    /// Where the next shard goes on.
    pub(super) next: Place,
}

/// Writes `run` as a shard file; it is there in full or not at all. Gives back its SHA-256.
pub(super) fn write(path: &Path, header: &ShardHeader, run: &TokenRun) -> Result<[u8; 32]> {
    let id_bytes = if matches!(run.ids, TokenIds::U16(_)) {
        2u32
    } else {
        4
    };
    sealed::write(path, |mut out| {
        out.write_all(MAGIC)?;
        out.write_all(&VERSION.to_le_bytes())?;
        out.write_all(&id_bytes.to_le_bytes())?;
        out.write_all(&header.key)?;
        let numbers = [
            run.ends.len() as u64,
            run.ids.len() as u64,
            run.text_bytes,
            header.next.input,
            header.next.document,
        ];
        write_items(&mut out, &numbers, |n| n.to_le_bytes())?;
        write_items(&mut out, &run.ends, |n| n.to_le_bytes())?;
        match &run.ids {
            TokenIds::U16(ids) => write_items(&mut out, ids, |n| n.to_le_bytes()),
            TokenIds::U32(ids) => write_items(&mut out, ids, |n| n.to_le_bytes()),
        }
    })
}

fn write_items<T: Copy, const N: usize>(
    out: &mut impl Write,
    items: &[T],
    encode: impl Fn(T) -> [u8; N],
) -> io::Result<()> {
    let mut bytes = Vec::with_capacity(CHUNK.min(items.len()) * N);
    for chunk in items.chunks(CHUNK) {
        bytes.clear();
        bytes.extend(chunk.iter().flat_map(|&item| encode(item)));
        out.write_all(&bytes)?;
    }
    Ok(())
}

/// A shard file that was checked, mapped.
pub(super) struct Shard {
    map: Mapping,
    pub(super) header: ShardHeader,
    pub(super) sha256: [u8; 32],
    documents: usize,
    tokens: usize,
    text_bytes: u64,
    wide: bool,
}

impl Shard {
    /// Opens a shard and reads it once: checksum, borders and ids are checked.
    ///
    /// # Errors
    /// When it cannot be read or is damaged in any way; `path` is named.
    pub(super) fn open(path: &Path, vocab_size: u32) -> Result<Self> {
        let open = || -> Result<Self> {
            let file = File::open(path)?;
            let shard = Self::parse(Mapping::new(&file)?)?;
            shard.check(vocab_size)?;
            shard.forget_pages();
            Ok(shard)
        };
        open().with_context(|| format!("cannot use the tokens in {}", path.display()))
    }

    fn parse(map: Mapping) -> Result<Self> {
        let bytes = map.bytes();
        let header = bytes
            .first_chunk::<HEADER_BYTES>()
            .context("cut short within its header")?;
        ensure!(header.starts_with(MAGIC), "not a file of tokens");
        let u32_at = |at: usize| {
            header[at..]
                .first_chunk()
                .map_or(0, |b| u32::from_le_bytes(*b))
        };
        let u64_at = |at: usize| {
            header[at..]
                .first_chunk()
                .map_or(0, |b| u64::from_le_bytes(*b))
        };
        let (version, id_bytes) = (u32_at(8), u32_at(12));
        ensure!(
            version == VERSION,
            "format version {version}, this build reads {VERSION}"
        );
        ensure!(matches!(id_bytes, 2 | 4), "{id_bytes} bytes an id");
        let mut key = [0; 32];
        key.copy_from_slice(&header[16..48]);
        let (documents, tokens) = (u64_at(48), u64_at(56));
        let expected = documents
            .checked_mul(8)
            .zip(tokens.checked_mul(u64::from(id_bytes)))
            .and_then(|(a, b)| {
                a.checked_add(b)?
                    .checked_add((HEADER_BYTES + SEAL_BYTES) as u64)
            });
        ensure!(
            expected == Some(bytes.len() as u64),
            "{} bytes long, its header says otherwise",
            bytes.len()
        );
        let sha256 = *bytes.last_chunk().context("cut short")?;
        Ok(Self {
            header: ShardHeader {
                key,
                next: Place {
                    input: u64_at(72),
                    document: u64_at(80),
                },
            },
            sha256,
            documents: documents as usize,
            tokens: tokens as usize,
            text_bytes: u64_at(64),
            wide: id_bytes == 4,
            map,
        })
    }

    fn check(&self, vocab_size: u32) -> Result<()> {
        let bytes = self.map.bytes();
        let mut hash = Sha256::new();
        for (at, chunk) in bytes[..bytes.len() - SEAL_BYTES].chunks(CHUNK).enumerate() {
            hash.update(chunk);
            if at % 1024 == 1023 {
                self.forget_pages();
            }
        }
        ensure!(
            <[u8; 32]>::from(hash.finalize()) == self.sha256,
            "checksum does not match"
        );
        let ends = || self.ends().iter().map(|end| u64::from_le_bytes(*end));
        ensure!(
            ends().is_sorted() && ends().next_back().unwrap_or(0) == self.tokens as u64,
            "borders out of order"
        );
        let largest = match self.wide {
            true => self
                .ids::<4>()
                .iter()
                .map(|id| u32::from_le_bytes(*id))
                .max(),
            false => {
                let narrow = self.ids::<2>().iter();
                narrow
                    .map(|id| u16::from_le_bytes(*id))
                    .max()
                    .map(u32::from)
            }
        };
        ensure!(
            largest.is_none_or(|id| id < vocab_size),
            "token id {} with a vocabulary of {vocab_size}",
            largest.unwrap_or(0)
        );
        Ok(())
    }

    fn ends(&self) -> &[[u8; 8]] {
        let bytes = &self.map.bytes()[HEADER_BYTES..HEADER_BYTES + 8 * self.documents];
        bytes.as_chunks().0
    }

    fn ids<const N: usize>(&self) -> &[[u8; N]] {
        let start = HEADER_BYTES + 8 * self.documents;
        self.map.bytes()[start..start + N * self.tokens]
            .as_chunks()
            .0
    }

    /// Number of documents.
    pub(super) fn documents(&self) -> usize {
        self.documents
    }

    /// Number of tokens.
    pub(super) fn tokens(&self) -> usize {
        self.tokens
    }

    /// Bytes of text the tokens stand for.
    pub(super) fn text_bytes(&self) -> u64 {
        self.text_bytes
    }

    /// Bytes of the file.
    pub(super) fn file_bytes(&self) -> u64 {
        self.map.bytes().len() as u64
    }

    /// Where document `index` ends among the ids.
    pub(super) fn end(&self, index: usize) -> usize {
        u64::from_le_bytes(self.ends()[index]) as usize
    }

    /// Appends the ids at `range` to `out`.
    pub(super) fn copy_range(&self, range: Range<usize>, out: &mut Vec<u32>) {
        if self.wide {
            out.extend(
                self.ids::<4>()[range]
                    .iter()
                    .map(|id| u32::from_le_bytes(*id)),
            );
        } else {
            let narrow = self.ids::<2>()[range].iter();
            out.extend(narrow.map(|id| u32::from(u16::from_le_bytes(*id))));
        }
    }

    /// Takes what was read out of this process's memory.
    pub(super) fn forget_pages(&self) {
        self.map.forget_pages();
    }
}
