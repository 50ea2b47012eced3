//! What a directory of tokens says about itself.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

/// Written last: a directory without it is not finished.
pub(super) const MANIFEST_FILE: &str = "tokens.json";
/// There while the directory is being written.
pub(super) const MARK_FILE: &str = "tokenize.json";
/// Raised when a directory of another version cannot be read.
const FORMAT_VERSION: u32 = 1;

/// How the tokens of a directory are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum TokenFormat {
    /// Files that are mapped into memory.
    Shards,
    /// Parquet files, for other engines: one row a document.
    Parquet,
}

impl TokenFormat {
    /// The name of file `index`.
    pub(super) fn file_name(self, index: usize) -> String {
        match self {
            Self::Shards => format!("tokens-{index:05}.bin"),
            Self::Parquet => format!("tokens-{index:05}.parquet"),
        }
    }
}

/// A finished directory of tokens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokensManifest {
    /// Version of this file.
    pub format_version: u32,
    /// How the tokens are stored.
    pub format: TokenFormat,
    /// Names inputs, tokenizer and options; hexadecimal.
    pub key: String,
    /// SHA-256 of the tokenizer.json; hexadecimal.
    pub tokenizer_hash: String,
    /// Every id is below it.
    pub vocab_size: u32,
    /// Documents in all files.
    pub documents: u64,
    /// Tokens in all files.
    pub tokens: u64,
    /// Bytes of UTF-8 text they stand for.
    pub text_bytes: u64,
    /// The files, in order.
    pub files: Vec<TokensFile>,
}

/// One file of tokens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokensFile {
    /// Its name in the directory.
    pub path: String,
    /// Its length.
    pub bytes: u64,
    /// Its checksum, hexadecimal: of a shard the one at its end, of other files that of all bytes.
    pub sha256: String,
    /// Documents in it.
    pub documents: u64,
    /// Tokens in it.
    pub tokens: u64,
    /// Bytes of UTF-8 text they stand for.
    pub text_bytes: u64,
}

impl TokensManifest {
    /// The manifest of these files.
    pub(super) fn new(
        format: TokenFormat,
        key: &[u8; 32],
        tokenizer_hash: &[u8; 32],
        vocab_size: u32,
        files: Vec<TokensFile>,
    ) -> Self {
        let sum = |of: fn(&TokensFile) -> u64| files.iter().map(of).sum();
        Self {
            format_version: FORMAT_VERSION,
            format,
            key: scone_files::hex(key),
            tokenizer_hash: scone_files::hex(tokenizer_hash),
            vocab_size,
            documents: sum(|file| file.documents),
            tokens: sum(|file| file.tokens),
            text_bytes: sum(|file| file.text_bytes),
            files,
        }
    }

    /// Reads the manifest of a directory.
    ///
    /// # Errors
    /// When it cannot be read or is of another version; its path is named.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(MANIFEST_FILE);
        let read = || -> Result<Self> {
            let manifest: Self = serde_json::from_slice(&std::fs::read(&path)?)?;
            let version = manifest.format_version;
            ensure!(
                version == FORMAT_VERSION,
                "format version {version}, this build reads {FORMAT_VERSION}"
            );
            Ok(manifest)
        };
        read().with_context(|| format!("cannot use {}", path.display()))
    }

    /// Its bytes.
    pub(super) fn to_json(&self) -> Result<Vec<u8>> {
        let mut json = serde_json::to_vec_pretty(self)?;
        json.push(b'\n');
        Ok(json)
    }
}
