//! What `keys.bin`, `index.bin` and `rows.bin` have in common: they are listed in `table.json`, and
//! begin with the same 128 bytes (`docs/formats.md`, "The header").

use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};

use scone_files::sha256_file;

use super::manifest::{FileEntry, Manifest};
use super::mapping::{Mapping, must_be_a_file};
use crate::error::{Error, Result};

/// Bytes of the header.
pub(crate) const HEADER_BYTES: usize = 128;

/// Numbers in the header whose meaning depends on the file.
pub(crate) const FACTS: usize = 6;

/// Where the facts begin.
const FACTS_AT: usize = 72;

/// Where the CRC-32 of all bytes before it stands.
const CRC_AT: usize = HEADER_BYTES - 4;

/// Bytes read at once where the file is compared with what is in memory.
const COMPARED_BYTES: usize = 1 << 20;

/// One of the three kinds of file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FileKind {
    /// Name in the table directory.
    pub(crate) name: &'static str,
    pub(crate) magic: [u8; 8],
    pub(crate) version: u32,
}

impl FileKind {
    /// The header of this file in the table of `manifest`.
    pub(crate) fn header(&self, manifest: &Manifest, facts: [u64; FACTS]) -> [u8; HEADER_BYTES] {
        let mut out = Vec::with_capacity(HEADER_BYTES);
        out.extend_from_slice(&self.magic);
        out.extend_from_slice(&self.version.to_le_bytes());
        out.extend_from_slice(manifest.checksum_seed.as_bytes());
        out.extend_from_slice(&manifest.vocab_size.to_le_bytes());
        out.extend_from_slice(&u32::from(manifest.max_n).to_le_bytes());
        out.extend_from_slice(&manifest.shard_index.to_le_bytes());
        out.extend_from_slice(&manifest.shard_count.to_le_bytes());
        out.extend_from_slice(&manifest.rows.to_le_bytes());
        out.resize(FACTS_AT, 0);
        facts
            .iter()
            .for_each(|fact| out.extend_from_slice(&fact.to_le_bytes()));
        out.resize(CRC_AT, 0);
        let crc = crc32fast::hash(&out);
        let mut header = [0; HEADER_BYTES];
        header[..CRC_AT].copy_from_slice(&out);
        header[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        header
    }

    /// Checks the header of a file that should belong to the table of `manifest`; returns its
    /// facts. `file` names it in errors. Survives any bytes at all.
    pub(crate) fn read_header(
        &self,
        file: &str,
        bytes: &[u8],
        manifest: &Manifest,
    ) -> Result<[u64; FACTS]> {
        let wrong = |problem: String| Err(Error::format(file, problem));
        let Some(header) = bytes.first_chunk::<HEADER_BYTES>() else {
            return wrong(format!("cut short: {} bytes hold no header", bytes.len()));
        };
        if !header.starts_with(&self.magic) {
            return wrong(format!(
                "it does not start with {}",
                self.magic.escape_ascii()
            ));
        }
        let version = u32_at(header, 8);
        if version != self.version {
            let known = self.version;
            return wrong(format!(
                "format version {version}, this build reads {known}"
            ));
        }
        if crc32fast::hash(&header[..CRC_AT]) != u32_at(header, CRC_AT) {
            return wrong("checksum of the header does not match: the file is damaged".into());
        }
        let mut facts = [0; FACTS];
        for (fact, bytes) in facts.iter_mut().zip(header[FACTS_AT..].as_chunks::<8>().0) {
            *fact = u64::from_le_bytes(*bytes);
        }
        if *header != self.header(manifest, facts) {
            return wrong("it belongs to another table or shard than table.json".into());
        }
        Ok(facts)
    }
}

/// The u32 at `at`, which is inside the header.
fn u32_at(header: &[u8; HEADER_BYTES], at: usize) -> u32 {
    let bytes = header[at..].first_chunk().copied();
    u32::from_le_bytes(bytes.unwrap_or_default())
}

/// One of the files, open.
pub(crate) struct TableFile {
    path: PathBuf,
    map: Mapping,
    facts: [u64; FACTS],
}

impl TableFile {
    /// Maps the file in `dir`; checks its length against `manifest` and its header, and reads
    /// nothing else.
    pub(crate) fn open(dir: &Path, manifest: &Manifest, kind: &FileKind) -> Result<Self> {
        let path = dir.join(kind.name);
        let map = Mapping::open(&path)?;
        let listed = entry(&path, manifest, kind.name)?;
        check_length(&path, listed, map.bytes().len() as u64)?;
        Self::with(path, map, manifest, kind)
    }

    /// Reads the file in `dir` into memory that nobody else changes; checks every byte.
    pub(crate) fn read(dir: &Path, manifest: &Manifest, kind: &FileKind) -> Result<Self> {
        let path = dir.join(kind.name);
        let listed = entry(&path, manifest, kind.name)?;
        must_be_a_file(&path)?;
        let found = fs::metadata(&path).map_err(Error::at("open", &path))?;
        check_length(&path, listed, found.len())?;
        let (map, sha256) = Mapping::copy(&path, listed.bytes as usize)?;
        let file = Self::with(path, map, manifest, kind)?;
        file.check_sha256(&sha256, listed)?;
        Ok(file)
    }

    fn with(path: PathBuf, map: Mapping, manifest: &Manifest, kind: &FileKind) -> Result<Self> {
        let facts = kind.read_header(&path.display().to_string(), map.bytes(), manifest)?;
        Ok(Self { path, map, facts })
    }

    /// The numbers of the header that belong to this kind of file.
    pub(crate) fn facts(&self) -> [u64; FACTS] {
        self.facts
    }

    /// The whole file.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.map.bytes()
    }

    /// The memory it is mapped to.
    pub(crate) fn map(&self) -> &Mapping {
        &self.map
    }

    /// Reads the first `bytes` of the file into memory.
    ///
    /// # Errors
    /// When they cannot be read.
    pub(crate) fn bring_in(&self, bytes: usize) -> Result<()> {
        let read = self.map.bring_in(bytes);
        read.map_err(Error::at("read", &self.path))
    }

    /// An error about this file.
    pub(crate) fn wrong(&self, problem: impl Into<String>) -> Error {
        Error::format(self.path.display().to_string(), problem)
    }

    /// Copies bytes of the file as it is on the disk.
    ///
    /// # Errors
    /// When they cannot be read.
    pub(crate) fn read_at(&self, start: usize, out: &mut [u8]) -> Result<()> {
        let read = self.map.read_at(start, out);
        read.map_err(|error| match self.check_not_lost() {
            Err(lost) => lost,
            Ok(()) => Error::at("read", &self.path)(error),
        })
    }

    /// Checks the beginning of the file as it was read from the disk: the header, and zeros behind it.
    pub(crate) fn check_header(
        &self,
        bytes: &[u8],
        manifest: &Manifest,
        kind: &FileKind,
    ) -> Result<()> {
        let facts = kind.read_header(&self.path.display().to_string(), bytes, manifest)?;
        let zeros = bytes.iter().skip(HEADER_BYTES).all(|&byte| byte == 0);
        match facts == self.facts && zeros {
            true => Ok(()),
            false => Err(self.wrong("the beginning is not what it was when it was opened")),
        }
    }

    /// Compares the file on the disk with what was read of it when it was opened.
    pub(crate) fn check_same(&self) -> Result<()> {
        let mut file = File::open(&self.path).map_err(Error::at("open", &self.path))?;
        let mut piece = vec![0; COMPARED_BYTES];
        for bytes in self.bytes().chunks(COMPARED_BYTES) {
            let piece = &mut piece[..bytes.len()];
            file.read_exact(piece)
                .map_err(Error::at("read", &self.path))?;
            if piece != bytes {
                return Err(self.wrong("has changed since it was opened: it is damaged"));
            }
        }
        Ok(())
    }

    /// Compares the SHA-256 of the whole file as it is on the disk with `table.json`.
    pub(crate) fn verify(&self, manifest: &Manifest, kind: &FileKind) -> Result<()> {
        let listed = entry(&self.path, manifest, kind.name)?;
        self.check_sha256(&sha256_file(&self.path)?, listed)
    }

    /// # Errors
    /// When a page of the file was gone when it was read.
    pub(crate) fn check_not_lost(&self) -> Result<()> {
        if self.map.lost() {
            return Err(self.wrong(
                "a part of it could not be read: it was cut short while it was open, or the disk \
                 fails; the table answers no more until it is opened again",
            ));
        }
        Ok(())
    }

    fn check_sha256(&self, sha256: &str, listed: &FileEntry) -> Result<()> {
        if sha256 == listed.sha256 {
            return Ok(());
        }
        Err(self.wrong("checksum differs from that in table.json: the file is damaged"))
    }
}

fn entry<'a>(path: &Path, manifest: &'a Manifest, name: &str) -> Result<&'a FileEntry> {
    let listed = manifest.files.iter().find(|entry| entry.path == name);
    listed.ok_or_else(|| Error::format(path.display().to_string(), "is not listed in table.json"))
}

fn check_length(path: &Path, listed: &FileEntry, bytes: u64) -> Result<()> {
    if bytes == listed.bytes {
        return Ok(());
    }
    let problem = format!("{bytes} bytes, but table.json says {}", listed.bytes);
    Err(Error::format(path.display().to_string(), problem))
}
