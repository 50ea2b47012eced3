//! Which files an `--input` stands for, and what their names say about them.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

/// How a file is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// The whole file is one document.
    Text,
    /// Every line is a JSON object with the text in one field.
    Jsonl,
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

/// Resolves `paths` to files: a directory becomes every text file below it, sorted by path.
///
/// # Errors
/// When a path does not exist, a file has an unknown extension, or a directory holds no text.
pub fn expand(paths: &[PathBuf]) -> Result<Vec<Input>> {
    ensure!(!paths.is_empty(), "no input given");
    let mut inputs = Vec::new();
    for path in paths {
        let metadata =
            std::fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?;
        if metadata.is_dir() {
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

const KNOWN: &str = ".txt or .jsonl (or either as .zst or .gz)";

/// Files of other kinds are passed over here: a folder of text often holds a README or a licence.
fn add_directory(directory: &Path, inputs: &mut Vec<Input>) -> Result<()> {
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
        _ => None,
    }
}
