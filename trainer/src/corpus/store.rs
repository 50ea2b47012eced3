//! A directory of tokens, written in steps that can be interrupted anywhere.
//!
//! 1. The mark: what is being written. It is locked, so that a second process waits for the first.
//! 2. The inputs are read once and checked; the mark keeps that.
//! 3. The files, each by rename. Each says where in the inputs the next one begins, so a later run
//!    goes on behind the last; borders between files depend on the documents alone.
//! 4. The manifest by rename; then the mark is removed.

use std::fs::{self, File};
use std::io::{Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use super::inputs::Input;
use super::manifest::{MANIFEST_FILE, MARK_FILE, TokenFormat, TokensFile, TokensManifest};
use super::options::Options;
use super::run::TokenRun;
use super::shard::{self, Place, Shard, ShardHeader};
use super::{check, key, parquet_tokens};
use crate::tokenizer::TextTokenizer;

const CHECKED: &str = "checked\n";

/// The tokens of some inputs, and the directory they belong into.
pub(super) struct Store<'a> {
    dir: PathBuf,
    format: TokenFormat,
    key: [u8; 32],
    inputs: &'a [Input],
    tokenizer: &'a TextTokenizer,
    options: &'a Options,
}

impl<'a> Store<'a> {
    pub(super) fn new(
        dir: impl FnOnce(&str) -> PathBuf,
        format: TokenFormat,
        inputs: &'a [Input],
        tokenizer: &'a TextTokenizer,
        options: &'a Options,
    ) -> Self {
        let key = key::of(inputs, tokenizer, options);
        Self {
            dir: dir(&scone_files::hex(&key)),
            format,
            key,
            inputs,
            tokenizer,
            options,
        }
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The manifest, when the directory is finished.
    ///
    /// # Errors
    /// When it holds other tokens or its manifest cannot be read.
    pub(super) fn finished(&self) -> Result<Option<TokensManifest>> {
        if !self.dir.join(MANIFEST_FILE).exists() {
            return Ok(None);
        }
        let manifest = TokensManifest::read(&self.dir)?;
        self.ensure_same(
            manifest.key == scone_files::hex(&self.key) && manifest.format == self.format,
        )?;
        Ok(Some(manifest))
    }

    fn ensure_same(&self, same: bool) -> Result<()> {
        ensure!(
            same,
            "{} holds tokens of other inputs, or made by another tokenizer or with other options; \
             remove it or name another directory",
            self.dir.display()
        );
        Ok(())
    }

    /// Forgets that the directory is finished: files that are damaged are written again.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn reopen(&self) -> Result<()> {
        self.claim()?.write(&(self.mark() + CHECKED))?;
        let path = self.dir.join(MANIFEST_FILE);
        fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))
    }

    /// What the mark begins with.
    fn mark(&self) -> String {
        format!("{:?} {}\n", self.format, scone_files::hex(&self.key))
    }

    /// Takes the directory for this process; waits while another one writes it.
    ///
    /// # Errors
    /// When it cannot be made or holds other tokens.
    pub(super) fn claim(&self) -> Result<Claim> {
        let mark = self.dir.join(MARK_FILE);
        let open = || -> std::io::Result<File> {
            fs::create_dir_all(&self.dir)?;
            let mut options = File::options();
            let file = options
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(&mark)?;
            if file.try_lock().is_err() {
                tracing::info!(path = %self.dir.display(), "another process writes these tokens, waiting");
                file.lock()?;
            }
            Ok(file)
        };
        let file = open().with_context(|| format!("cannot write {}", mark.display()))?;
        Ok(Claim { file, path: mark })
    }

    /// Where writing begins: behind the files that an earlier run has left and that are sound. The
    /// inputs are checked first, unless an earlier run did.
    ///
    /// # Errors
    /// When the directory holds other tokens, cannot be written, or an input is not sound.
    pub(super) fn begin(&self, claim: &mut Claim) -> Result<Writer<'_>> {
        let own = self.mark();
        let found = claim.read()?;
        self.ensure_same(own.starts_with(&found) || found.starts_with(&own))?;
        if found.len() < own.len() {
            ensure!(
                !self.path(0).exists(),
                "{} holds files of tokens but neither {MANIFEST_FILE} nor {MARK_FILE}; remove it",
                self.dir.display()
            );
            claim.write(&own)?;
        }
        if !found.ends_with(CHECKED) {
            check::inputs(self.inputs, self.tokenizer, self.options)?;
            claim.write(&(own + CHECKED))?;
        }
        let mut writer = Writer {
            store: self,
            files: Vec::new(),
            run: TokenRun::new(self.tokenizer.vocab_size()),
            place: Place::default(),
        };
        writer.take_over()?;
        Ok(writer)
    }

    fn path(&self, index: usize) -> PathBuf {
        self.dir.join(self.format.file_name(index))
    }
}

/// The right to write a directory; held until it is dropped.
pub(super) struct Claim {
    file: File,
    path: PathBuf,
}

impl Claim {
    fn read(&mut self) -> Result<String> {
        let mut text = String::new();
        let mut read = || -> std::io::Result<()> {
            self.file.rewind()?;
            self.file.read_to_string(&mut text)?;
            Ok(())
        };
        read().with_context(|| format!("cannot read {}", self.path.display()))?;
        Ok(text)
    }

    fn write(&mut self, text: &str) -> Result<()> {
        let mut write = || -> std::io::Result<()> {
            self.file.rewind()?;
            self.file.write_all(text.as_bytes())?;
            self.file.sync_all()
        };
        write().with_context(|| format!("cannot write {}", self.path.display()))
    }

    /// Removes the mark: the directory is finished.
    pub(super) fn finish(self) -> Result<()> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", self.path.display()))
            }
            _ => Ok(()),
        }
    }
}

/// Writes the files of a directory one after another.
pub(super) struct Writer<'a> {
    store: &'a Store<'a>,
    files: Vec<TokensFile>,
    run: TokenRun,
    place: Place,
}

impl Writer<'_> {
    /// Keeps the sound files of an earlier run and removes everything behind them.
    fn take_over(&mut self) -> Result<()> {
        let store = self.store;
        for index in 0.. {
            let path = store.path(index);
            if !path.exists() {
                break;
            }
            match read_back(store.format, &path, store.tokenizer.vocab_size()) {
                Ok((header, file)) if header.key == store.key => {
                    self.place = header.next;
                    self.files.push(file);
                }
                // Of another run, or damaged: it is written again.
                _ => break,
            }
        }
        let kept: Vec<_> = self.files.iter().map(|file| file.path.clone()).collect();
        for entry in fs::read_dir(&store.dir)? {
            let name = entry?.file_name();
            let name = name.to_string_lossy();
            if name.starts_with("tokens-") && !kept.iter().any(|kept| *kept == name) {
                fs::remove_file(store.dir.join(&*name))?;
            }
        }
        if !kept.is_empty() {
            tracing::info!(path = %store.dir.display(), files = kept.len(), "going on behind the tokens of an earlier run");
        }
        Ok(())
    }

    /// Where the first document to be written is.
    pub(super) fn place(&self) -> Place {
        self.place
    }

    /// Adds a document; `next` is where the one behind it is.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub(super) fn push(&mut self, ids: &[u32], text_bytes: u64, next: Place) -> Result<()> {
        self.run.push(ids, text_bytes);
        self.place = next;
        if self.run.ids.len() as u64 >= self.store.options.shard_tokens {
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        let store = self.store;
        let path = store.path(self.files.len());
        let vocab_size = store.tokenizer.vocab_size();
        let header = ShardHeader {
            key: store.key,
            next: self.place,
        };
        let run = std::mem::replace(&mut self.run, TokenRun::new(vocab_size));
        match store.format {
            TokenFormat::Shards => drop(shard::write(&path, &header, &run)?),
            TokenFormat::Parquet => {
                parquet_tokens::write(&path, &header, &store.tokenizer.sha256(), &run)?;
            }
        }
        let (_, file) = read_back(store.format, &path, vocab_size)?;
        self.files.push(file);
        Ok(())
    }

    /// Writes what is left and the manifest.
    ///
    /// # Errors
    /// When there are no tokens at all, or a file cannot be written.
    pub(super) fn finish(mut self) -> Result<TokensManifest> {
        if !self.run.ends.is_empty() {
            self.flush()?;
        }
        let store = self.store;
        let manifest = TokensManifest::new(
            store.format,
            &store.key,
            &store.tokenizer.sha256(),
            store.tokenizer.vocab_size(),
            self.files,
        );
        ensure!(manifest.tokens > 0, "the input holds no text");
        let path = store.dir.join(MANIFEST_FILE);
        scone_files::write_atomic(&path, &manifest.to_json()?)?;
        Ok(manifest)
    }
}

/// What is in a file that this run or an earlier one wrote.
fn read_back(
    format: TokenFormat,
    path: &Path,
    vocab_size: u32,
) -> Result<(ShardHeader, TokensFile)> {
    let name = path.file_name().unwrap_or_default();
    let name = name.to_string_lossy().into_owned();
    match format {
        TokenFormat::Shards => {
            let shard = Shard::open(path, vocab_size)?;
            let file = TokensFile {
                path: name,
                bytes: shard.file_bytes(),
                sha256: scone_files::hex(&shard.sha256),
                documents: shard.documents() as u64,
                tokens: shard.tokens() as u64,
                text_bytes: shard.text_bytes(),
            };
            Ok((shard.header, file))
        }
        TokenFormat::Parquet => {
            let facts = parquet_tokens::facts(path)?;
            let file = TokensFile {
                path: name,
                bytes: fs::metadata(path)?.len(),
                sha256: scone_files::sha256_file(path)?,
                documents: facts.documents,
                tokens: facts.tokens,
                text_bytes: facts.text_bytes,
            };
            let header = ShardHeader {
                key: facts.key,
                next: facts.next,
            };
            Ok((header, file))
        }
    }
}

/// Opens the shards of a finished directory; every byte of them is read and checked.
///
/// # Errors
/// When a file is missing or damaged, or is not the one that the manifest names.
pub(super) fn open_shards(dir: &Path, manifest: &TokensManifest) -> Result<Vec<Shard>> {
    use rayon::prelude::*;
    let open = |file: &TokensFile| -> Result<Shard> {
        let path = dir.join(&file.path);
        let shard = Shard::open(&path, manifest.vocab_size)?;
        ensure!(
            scone_files::hex(&shard.sha256) == file.sha256,
            "{} is not the file that {MANIFEST_FILE} names",
            path.display()
        );
        Ok(shard)
    };
    manifest
        .files
        .par_iter()
        .with_max_len(1)
        .map(open)
        .collect()
}
