//! Which files an `--input` stands for, and what their names say about them.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use super::manifest::{MANIFEST_FILE, MARK_FILE, TokenFormat, TokensManifest};

/// How a file is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// The whole file is one document.
    Text,
    /// Every line is a JSON object with the text in one field.
    Jsonl,
    /// Every row is a document: a text, or a list of token ids.
    Parquet,
}

/// How a file is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    Plain,
    /// Zstandard.
    Zstd,
    /// gzip.
    Gzip,
}

/// One file to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Input {
    /// The file.
    pub path: PathBuf,
    /// Its size on disk, bytes.
    pub bytes: u64,
    /// How it is laid out.
    pub layout: Layout,
    /// How it is compressed.
    pub compression: Compression,
}

/// Inputs that are read in the same way, in order.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Group {
    /// A finished directory of tokens.
    Tokens(PathBuf),
    /// Files to tokenise.
    Files(Vec<Input>),
}

/// Resolves `paths`, which may be patterns, to directories of tokens and files between them.
///
/// # Errors
/// Those of [`expand`].
pub(super) fn groups(paths: &[PathBuf]) -> Result<Vec<Group>> {
    let paths: Vec<(PathBuf, bool)> = matching(paths)?
        .into_iter()
        .map(|path| {
            let tokens = is_tokens(&path)?;
            Ok((path, tokens))
        })
        .collect::<Result<_>>()?;
    let mut groups = Vec::new();
    for same in paths.chunk_by(|a, b| !a.1 && !b.1) {
        match same {
            [(dir, true)] => groups.push(Group::Tokens(dir.clone())),
            files => {
                let files: Vec<PathBuf> = files.iter().map(|(path, _)| path.clone()).collect();
                groups.push(Group::Files(expand(&files)?));
            }
        }
    }
    Ok(groups)
}

/// Whether `path` is a finished directory of mapped tokens.
///
/// # Errors
/// When it is one of tokens that cannot be used, or is not finished.
fn is_tokens(path: &Path) -> Result<bool> {
    if path.join(MANIFEST_FILE).exists() {
        return Ok(TokensManifest::read(path)?.format == TokenFormat::Shards);
    }
    ensure!(
        !path.join(MARK_FILE).exists(),
        "{} is not finished: start the `trainer tokenize` that writes it again",
        path.display()
    );
    Ok(false)
}

/// What `paths` stand for: one that does not exist may be a pattern with `*`, `?`, `[a-z]` or `**`,
/// whose matches come sorted by path.
fn matching(paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    ensure!(!paths.is_empty(), "no input given");
    let mut found = Vec::new();
    for path in paths {
        let pattern = path.to_str().filter(|text| text.contains(['*', '?', '[']));
        let Some(pattern) = pattern.filter(|_| !path.exists()) else {
            found.push(path.clone());
            continue;
        };
        let before = found.len();
        let matches = glob::glob(pattern).with_context(|| format!("the pattern {pattern}"))?;
        for path in matches {
            found.push(path.with_context(|| format!("the pattern {pattern}"))?);
        }
        ensure!(
            found.len() > before,
            "nothing matches the pattern {pattern}"
        );
    }
    Ok(found)
}

/// Resolves `paths` to files: a pattern becomes what it matches, a directory every text file below
/// it, sorted by path.
///
/// # Errors
/// When a path does not exist, a pattern matches nothing, a file has an unknown extension, or a
/// directory holds no text.
pub fn expand(paths: &[PathBuf]) -> Result<Vec<Input>> {
    let mut inputs = Vec::new();
    for path in &matching(paths)? {
        let metadata =
            std::fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?;
        if metadata.is_dir() {
            ensure!(
                !is_tokens(path)?,
                "{} holds tokens ({MANIFEST_FILE}), where text is needed",
                path.display()
            );
            let before = inputs.len();
            add_directory(path, &mut inputs)?;
            ensure!(
                inputs.len() > before,
                "{} holds no {KNOWN} file",
                path.display()
            );
        } else {
            let Some((layout, compression)) = classify(path) else {
                bail!("{}: unknown kind of file, expected {KNOWN}", path.display());
            };
            inputs.push(Input {
                path: path.clone(),
                bytes: metadata.len(),
                layout,
                compression,
            });
        }
    }
    Ok(inputs)
}

const KNOWN: &str = ".txt or .jsonl (or either as .zst or .gz) or .parquet";

/// Files of other kinds are passed over here: a folder of text often holds a README or a licence.
fn add_directory(directory: &Path, inputs: &mut Vec<Input>) -> Result<()> {
    is_tokens(directory)?;
    let list = || -> std::io::Result<Vec<PathBuf>> {
        std::fs::read_dir(directory)?
            .map(|entry| Ok(entry?.path()))
            .collect()
    };
    let mut paths = list().with_context(|| format!("cannot list {}", directory.display()))?;
    paths.sort();
    for path in paths {
        // A link to a directory is not followed, so that a cycle of links ends.
        let metadata = std::fs::symlink_metadata(&path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        if metadata.is_dir() {
            add_directory(&path, inputs)?;
        } else if let Some((layout, compression)) = classify(&path) {
            let metadata = std::fs::metadata(&path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            if metadata.is_file() {
                inputs.push(Input {
                    path,
                    bytes: metadata.len(),
                    layout,
                    compression,
                });
            }
        }
    }
    Ok(())
}

fn classify(path: &Path) -> Option<(Layout, Compression)> {
    let name = path.file_name()?.to_str()?.to_ascii_lowercase();
    let (name, compression) = match name.rsplit_once('.')? {
        (stem, "zst") => (stem, Compression::Zstd),
        (stem, "gz") => (stem, Compression::Gzip),
        _ => (name.as_str(), Compression::Plain),
    };
    match name.rsplit_once('.')?.1 {
        "txt" => Some((Layout::Text, compression)),
        "jsonl" => Some((Layout::Jsonl, compression)),
        // Compressed within.
        "parquet" if compression == Compression::Plain => Some((Layout::Parquet, compression)),
        _ => None,
    }
}
