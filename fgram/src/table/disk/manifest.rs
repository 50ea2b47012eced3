//! `table.json`: what a table is. A directory without one is not a table.

use std::path::Path;
use std::str::FromStr;
use std::{fmt, fs};

use scone_files::sha256_hex;
use serde::{Deserialize, Serialize};

use super::mapping::must_be_a_file;
use super::names::{BUILD_FILE, MANIFEST_FILE};
use crate::error::{Error, Result};
use crate::matcher::{ID_LIMIT, check_max_n};
use scone_row::RowDtype;

/// Format version of tables that this build writes and reads.
pub const FORMAT_VERSION: u32 = 2;

/// A larger file is no manifest.
const MAX_BYTES: u64 = 1 << 20;

/// Characters of a table id.
const TABLE_ID_DIGITS: usize = 32;

/// Widest row allowed, in elements.
pub(crate) const MAX_DIM: u32 = 1 << 20;

/// How the rows of a table are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StoreKind {
    /// A sled tree by f-gram.
    Sled,
    /// One immutable file of rows, opened by mmap.
    Mapped,
}

impl StoreKind {
    /// Every kind.
    pub const ALL: [StoreKind; 2] = [StoreKind::Sled, StoreKind::Mapped];

    /// The name used in flags, files and logs.
    pub fn name(self) -> &'static str {
        match self {
            StoreKind::Sled => "sled",
            StoreKind::Mapped => "mapped",
        }
    }
}

impl fmt::Display for StoreKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for StoreKind {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "sled" => Ok(StoreKind::Sled),
            "mapped" => Ok(StoreKind::Mapped),
            _ => Err(Error::argument(
                "store",
                format!("{text:?} is neither sled nor mapped"),
            )),
        }
    }
}

/// A file of the table whose bytes never change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Name inside the table directory.
    pub path: String,
    /// Its length.
    pub bytes: u64,
    /// Its SHA-256 in lower-case hexadecimal.
    pub sha256: String,
}

/// Facts of one shard of a table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of the table's layout.
    pub format_version: u32,
    /// Names one precompute run: the same on every shard and replica of it. See [`table_id`].
    pub table_id: String,
    /// The table id that the directory was built with. It begins every checksum of a row, and
    /// stays when an upsert gives the table another id.
    pub checksum_seed: String,
    /// SHA-256, lower-case hexadecimal, of the f-gram model and token embedding.
    pub model_hash: String,
    /// Base hash of the main model that the rows were made for: SHA-256, lower-case hexadecimal, of
    /// its parameters (`docs/formats.md`). Absent when whoever built the table did not know it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_hash: Option<String>,
    /// SHA-256, lower-case hexadecimal, of tokenizer.json.
    pub tokenizer_hash: String,
    /// SHA-256, lower-case hexadecimal, of the f-gram set file.
    pub fgram_set_hash: String,
    /// Number of token ids.
    pub vocab_size: u32,
    /// K: the longest f-gram, in tokens.
    pub max_n: u8,
    /// Row width in elements.
    pub dim: u32,
    /// Stored type of the elements.
    pub dtype: RowDtype,
    /// Rows of this shard.
    pub rows: u64,
    /// This shard, 0-based.
    pub shard_index: u32,
    /// How many shards there are.
    pub shard_count: u32,
    /// How the rows are stored.
    pub store: StoreKind,
    /// SHA-256, lower-case hexadecimal, of all rows with their keys, in the order of keys: of a
    /// sled table, whose own files change on every opening. The rows of a mapped one are a file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows_sha256: Option<String>,
    /// The files whose bytes never change.
    pub files: Vec<FileEntry>,
}

/// The file: the manifest and a checksum of it, so that no damaged field is believed.
#[derive(Serialize, Deserialize)]
struct Sealed {
    table: Manifest,
    /// SHA-256 of `table` as compact JSON.
    checksum: String,
}

impl Manifest {
    /// Bytes of one encoded row.
    pub fn row_bytes(&self) -> usize {
        self.dtype.row_bytes(self.dim as usize)
    }

    /// Reads the manifest of the table in `dir`.
    ///
    /// # Errors
    /// [`Error::NoTable`] when there is none; otherwise when it is damaged or of another version.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(MANIFEST_FILE);
        let length = match fs::metadata(&path) {
            Ok(metadata) => metadata.len(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(no_table(dir));
            }
            Err(error) => return Err(Error::at("read", &path)(error)),
        };
        if length > MAX_BYTES {
            let file = path.display().to_string();
            let problem = format!("{length} bytes, at most {MAX_BYTES}");
            return Err(Error::format(file, problem));
        }
        Self::read_file(&path)
    }

    /// Reads a manifest under whatever name it has.
    pub(crate) fn read_file(path: &Path) -> Result<Self> {
        must_be_a_file(path)?;
        let bytes = fs::read(path).map_err(Error::at("read", path))?;
        Self::from_json(&path.display().to_string(), &bytes)
    }

    /// Reads the bytes of a manifest; `file` names it in errors. Survives any bytes at all.
    ///
    /// # Errors
    /// When they are not what [`Manifest::to_json`] writes.
    pub fn from_json(file: &str, bytes: &[u8]) -> Result<Self> {
        let wrong = |problem: String| Error::format(file, problem);
        check_version(bytes).map_err(wrong)?;
        let sealed: Sealed = serde_json::from_slice(bytes)
            .map_err(|error| wrong(format!("not a table manifest: {error}")))?;
        if sealed.checksum != checksum(&sealed.table) {
            return Err(wrong(
                "checksum does not match: the file is damaged or was edited".into(),
            ));
        }
        sealed
            .table
            .check()
            .map_err(|error| wrong(error.to_string()))?;
        Ok(sealed.table)
    }

    /// The bytes of `table.json`.
    pub fn to_json(&self) -> Vec<u8> {
        let sealed = Sealed {
            table: self.clone(),
            checksum: checksum(self),
        };
        let mut json = pretty(&sealed);
        json.push(b'\n');
        json
    }

    /// Checks what can be checked without the other files.
    pub(crate) fn check(&self) -> Result<()> {
        check_max_n(self.max_n)?;
        check_range("vocab_size", self.vocab_size, 1, ID_LIMIT)?;
        check_range("dim", self.dim, 1, MAX_DIM)?;
        check_range("shard_count", self.shard_count, 1, ID_LIMIT)?;
        check_range("shard_index", self.shard_index, 0, self.shard_count - 1)?;
        if self.rows >= u64::from(ID_LIMIT) {
            let problem = format!("{} is not below {ID_LIMIT}", self.rows);
            return Err(Error::argument("rows", problem));
        }
        check_hash("model_hash", &self.model_hash)?;
        if let Some(base_hash) = &self.base_hash {
            check_hash("base_hash", base_hash)?;
        }
        check_hash("tokenizer_hash", &self.tokenizer_hash)?;
        check_hash("fgram_set_hash", &self.fgram_set_hash)?;
        if self.table_id != table_id(&self.model_hash, &self.fgram_set_hash, self.dtype) {
            let problem = "does not follow from model_hash, fgram_set_hash and dtype";
            return Err(Error::argument("table_id", problem));
        }
        check_digits("checksum_seed", &self.checksum_seed, TABLE_ID_DIGITS)?;
        Ok(())
    }

    /// The first property in which two runs differ, with its values in `self` and `other`. Files
    /// and checksums are results, not properties; a base that only one of them names is no
    /// difference.
    pub(crate) fn difference(&self, other: &Self) -> Option<(&'static str, String, String)> {
        let pairs = self.properties().into_iter().zip(other.properties());
        let mut differing = pairs.filter(|(a, b)| a.1 != b.1);
        let first = differing.next().map(|((field, a), (_, b))| (field, a, b));
        first.or_else(|| match (&self.base_hash, &other.base_hash) {
            (Some(a), Some(b)) if a != b => Some(("base", a.clone(), b.clone())),
            _ => None,
        })
    }

    fn properties(&self) -> [(&'static str, String); 12] {
        [
            ("format version", self.format_version.to_string()),
            ("model", self.model_hash.clone()),
            ("f-gram set", self.fgram_set_hash.clone()),
            ("tokenizer", self.tokenizer_hash.clone()),
            ("vocab_size", self.vocab_size.to_string()),
            ("max_n", self.max_n.to_string()),
            ("dim", self.dim.to_string()),
            ("dtype", self.dtype.to_string()),
            ("store", self.store.to_string()),
            (
                "shard",
                format!("{}/{}", self.shard_index, self.shard_count),
            ),
            ("rows", self.rows.to_string()),
            ("table id", self.table_id.clone()),
        ]
    }
}

/// The id of a table: the first 32 hexadecimal digits of the SHA-256 of the text
/// `scone-table-1 {model_hash} {fgram_set_hash} {dtype}`. Nothing about stores or shards.
pub fn table_id(model_hash: &str, fgram_set_hash: &str, dtype: RowDtype) -> String {
    let text = format!("scone-table-1 {model_hash} {fgram_set_hash} {dtype}");
    let mut id = sha256_hex(text.as_bytes());
    id.truncate(TABLE_ID_DIGITS);
    id
}

/// The version comes before everything else, so that a later format is called by its name.
fn check_version(bytes: &[u8]) -> std::result::Result<(), String> {
    #[derive(Deserialize)]
    struct Table {
        format_version: u64,
    }
    #[derive(Deserialize)]
    struct Outer {
        table: Table,
    }
    match serde_json::from_slice::<Outer>(bytes) {
        Ok(outer) if outer.table.format_version != u64::from(FORMAT_VERSION) => {
            let found = outer.table.format_version;
            Err(format!(
                "format version {found}, this build reads {FORMAT_VERSION}"
            ))
        }
        // What is wrong with it is said by the full parse.
        _ => Ok(()),
    }
}

fn checksum(manifest: &Manifest) -> String {
    sha256_hex(&serde_json::to_vec(manifest).expect("strings and numbers serialise"))
}

fn pretty(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec_pretty(value).expect("strings and numbers serialise")
}

fn no_table(dir: &Path) -> Error {
    let problem = if dir.join(BUILD_FILE).exists() {
        "its building has not ended; run the same precompute again to finish it".to_owned()
    } else {
        format!("it has no {MANIFEST_FILE}")
    };
    Error::NoTable {
        dir: dir.to_owned(),
        problem,
    }
}

fn check_range(field: &'static str, value: u32, least: u32, most: u32) -> Result<()> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(Error::argument(
        field,
        format!("{value} is not {least} to {most}"),
    ))
}

pub(crate) fn check_hash(field: &'static str, hash: &str) -> Result<()> {
    check_digits(field, hash, 64)
}

fn check_digits(field: &'static str, text: &str, digits: usize) -> Result<()> {
    let digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    if text.len() == digits && text.bytes().all(digit) {
        return Ok(());
    }
    Err(Error::argument(
        field,
        format!("is not {digits} lower-case hexadecimal digits"),
    ))
}
