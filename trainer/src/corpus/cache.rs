//! Cache files of tokenised corpora.
//!
//! Layout, little-endian: magic `SCONETOK`, u32 version, u32 bytes per id (2 or 4), 32 bytes key,
//! u64 documents, u64 tokens, u64 bytes of text, the end of every document (u64), the ids, sha256 of
//! all before. A file that does not check out is as good as none: the corpus is tokenised anew.

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

use super::ids::TokenIds;
use super::inputs::Input;
use super::options::Options;
use super::tokenized::TokenizedCorpus;
use crate::tokenizer::TextTokenizer;

const MAGIC: &[u8; 8] = b"SCONETOK";
/// Raised when the same tokenizer file begins to give other ids: 2 since its dropout is ignored.
const VERSION: u32 = 2;
const HEADER_BYTES: u64 = 8 + 4 + 4 + 32 + 3 * 8;
const SHA256_BYTES: u64 = 32;
/// Ids converted at a time.
const CHUNK: usize = 1 << 16;

/// The cache file of one tokenised corpus.
pub(super) struct Entry {
    path: PathBuf,
    key: [u8; 32],
}

impl Entry {
    /// The entry that belongs to these files as they are now.
    pub(super) fn new(
        dir: &Path,
        inputs: &[Input],
        tokenizer: &TextTokenizer,
        options: &Options,
    ) -> Self {
        let key = key(inputs, tokenizer, options);
        let name = scone_files::hex(&key[..16]);
        Self {
            path: dir.join(format!("tokens-{name}.bin")),
            key,
        }
    }

    /// The corpus, when the cache has it.
    pub(super) fn load(&self) -> Option<TokenizedCorpus> {
        let file = File::open(&self.path).ok()?;
        match read(file, &self.key) {
            Ok(corpus) => {
                tracing::info!(
                    path = %self.path.display(),
                    tokens = corpus.total_tokens(),
                    "took the tokenised corpus from the cache"
                );
                Some(corpus)
            }
            Err(error) => {
                tracing::warn!(path = %self.path.display(), "cache file not usable, tokenising anew: {error:#}");
                None
            }
        }
    }

    /// Keeps `corpus`; not being able to costs time later, so it is a warning only.
    pub(super) fn store(&self, corpus: &TokenizedCorpus) {
        if let Err(error) = self.try_store(corpus) {
            tracing::warn!(path = %self.path.display(), "cannot keep the tokenised corpus: {error:#}");
        }
    }

    fn try_store(&self, corpus: &TokenizedCorpus) -> Result<()> {
        let dir = self.path.parent().context("cache path has no directory")?;
        std::fs::create_dir_all(dir)?;
        Ok(scone_files::write_atomic_with(&self.path, |file| {
            write(file, &self.key, corpus)
        })?)
    }
}

/// Everything the tokens depend on. Contents stand in by size and modification time.
fn key(inputs: &[Input], tokenizer: &TextTokenizer, options: &Options) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(MAGIC);
    hash.update(VERSION.to_le_bytes());
    hash.update(tokenizer.sha256());
    hash.update((options.text_field.len() as u64).to_le_bytes());
    hash.update(&options.text_field);
    hash.update((options.max_document_bytes as u64).to_le_bytes());
    for input in inputs {
        let path = std::fs::canonicalize(&input.path).unwrap_or_else(|_| input.path.clone());
        let path = path.as_os_str().as_encoded_bytes();
        hash.update((path.len() as u64).to_le_bytes());
        hash.update(path);
        hash.update(input.bytes.to_le_bytes());
        if let Ok(metadata) = std::fs::metadata(&input.path) {
            hash.update(metadata.mtime().to_le_bytes());
            hash.update(metadata.mtime_nsec().to_le_bytes());
        }
    }
    hash.finalize().into()
}

fn write(file: impl Write, key: &[u8; 32], corpus: &TokenizedCorpus) -> io::Result<()> {
    let mut out = HashWriter {
        inner: file,
        hash: Sha256::new(),
    };
    out.write_all(MAGIC)?;
    out.write_all(&VERSION.to_le_bytes())?;
    let id_bytes: u32 = if matches!(corpus.ids, TokenIds::U16(_)) {
        2
    } else {
        4
    };
    out.write_all(&id_bytes.to_le_bytes())?;
    out.write_all(key)?;
    out.write_all(&(corpus.ends.len() as u64).to_le_bytes())?;
    out.write_all(&(corpus.ids.len() as u64).to_le_bytes())?;
    out.write_all(&corpus.text_bytes.to_le_bytes())?;
    write_chunks(&mut out, &corpus.ends, |n| n.to_le_bytes())?;
    match &corpus.ids {
        TokenIds::U16(ids) => write_chunks(&mut out, ids, |n| n.to_le_bytes())?,
        TokenIds::U32(ids) => write_chunks(&mut out, ids, |n| n.to_le_bytes())?,
    }
    let hash = out.hash.finalize();
    out.inner.write_all(&hash)
}

fn write_chunks<T: Copy, const N: usize>(
    out: &mut impl Write,
    items: &[T],
    encode: impl Fn(T) -> [u8; N],
) -> io::Result<()> {
    let mut bytes = Vec::with_capacity(CHUNK * N);
    for chunk in items.chunks(CHUNK) {
        bytes.clear();
        bytes.extend(chunk.iter().flat_map(|&item| encode(item)));
        out.write_all(&bytes)?;
    }
    Ok(())
}

fn read(file: File, key: &[u8; 32]) -> Result<TokenizedCorpus> {
    let file_bytes = file.metadata()?.len();
    let mut input = HashReader {
        inner: BufReader::new(file),
        hash: Sha256::new(),
    };
    ensure!(&input.array::<8>()? == MAGIC, "not a cache file");
    let version = u32::from_le_bytes(input.array()?);
    ensure!(version == VERSION, "version {version}, expected {VERSION}");
    let id_bytes = u64::from(u32::from_le_bytes(input.array()?));
    ensure!(&input.array::<32>()? == key, "key of another corpus");
    let documents = u64::from_le_bytes(input.array()?);
    let tokens = u64::from_le_bytes(input.array()?);
    let text_bytes = u64::from_le_bytes(input.array()?);
    let expected = documents
        .checked_mul(8)
        .zip(tokens.checked_mul(id_bytes))
        .and_then(|(a, b)| a.checked_add(b)?.checked_add(HEADER_BYTES + SHA256_BYTES));
    ensure!(
        expected == Some(file_bytes),
        "{file_bytes} bytes long, the header says otherwise"
    );
    let ends = read_chunks(&mut input, documents as usize, u64::from_le_bytes)?;
    let ids = match id_bytes {
        2 => TokenIds::U16(read_chunks(
            &mut input,
            tokens as usize,
            u16::from_le_bytes,
        )?),
        4 => TokenIds::U32(read_chunks(
            &mut input,
            tokens as usize,
            u32::from_le_bytes,
        )?),
        _ => anyhow::bail!("{id_bytes} bytes per id"),
    };
    let hash: [u8; 32] = input.hash.clone().finalize().into();
    ensure!(input.array::<32>()? == hash, "checksum does not match");
    ensure!(
        ends.is_sorted() && ends.last().copied().unwrap_or(0) == tokens,
        "borders out of order"
    );
    Ok(TokenizedCorpus {
        ids,
        ends,
        text_bytes,
    })
}

fn read_chunks<T, const N: usize>(
    input: &mut HashReader<impl Read>,
    count: usize,
    decode: impl Fn([u8; N]) -> T,
) -> io::Result<Vec<T>> {
    let mut items = Vec::with_capacity(count);
    let mut bytes = vec![0; CHUNK.min(count) * N];
    while items.len() < count {
        let wanted = (count - items.len()).min(CHUNK) * N;
        input.fill(&mut bytes[..wanted])?;
        items.extend(
            bytes[..wanted]
                .as_chunks::<N>()
                .0
                .iter()
                .map(|&item| decode(item)),
        );
    }
    Ok(items)
}

struct HashWriter<W> {
    inner: W,
    hash: Sha256,
}

impl<W: Write> Write for HashWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hash.update(&bytes[..written]);
        Ok(written)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

struct HashReader<R> {
    inner: R,
    hash: Sha256,
}

impl<R: Read> HashReader<R> {
    fn fill(&mut self, out: &mut [u8]) -> io::Result<()> {
        self.inner.read_exact(out)?;
        self.hash.update(out);
        Ok(())
    }
    fn array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut out = [0; N];
        self.fill(&mut out)?;
        Ok(out)
    }
}
