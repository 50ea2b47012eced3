//! Text and tokens as the trainer reads them: what several tests need.
#![allow(clippy::unwrap_used, reason = "tests")]

mod cache;
mod parquet_files;
mod reading;
mod tokens;

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Result;
use flate2::Compression;
use flate2::write::GzEncoder;
use ruzstd::encoding::{CompressionLevel, compress_to_vec};
use tempfile::TempDir;

use super::reader::{Content, Documents};
use super::*;
use crate::progress::{Progress, Unit};
use crate::tokenizer::TextTokenizer;

const TEXT: &str = include_str!("../../../tests/data/harbour.txt");

fn tokenizer(vocab_size: usize) -> TextTokenizer {
    crate::tokenizer::train(std::iter::once(Ok(TEXT.to_owned())), vocab_size, 2).unwrap()
}

/// The paragraphs of the text, a document each.
fn json_lines() -> String {
    let line = |text| serde_json::json!({ "text": text }).to_string() + "\n";
    TEXT.split("\n\n").map(line).collect()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    compress_to_vec(bytes, CompressionLevel::Fastest)
}

fn put(dir: &TempDir, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
    let path = dir.path().join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, bytes).unwrap();
    path
}

fn options() -> Options {
    Options {
        cache_dir: None,
        ..Options::default()
    }
}

fn read_with(paths: &[PathBuf], options: &Options) -> Result<Vec<String>> {
    let progress = Progress::new("test", 0, Unit::Bytes);
    Documents::new(expand(paths)?, options, &progress)
        .map(|document| match document?.content {
            Content::Text(text) => Ok(text),
            Content::Ids { ids, .. } => Ok(format!("{ids:?}")),
        })
        .collect()
}

fn read(path: &Path) -> Result<Vec<String>> {
    read_with(&[path.to_owned()], &options())
}

fn error(path: &Path) -> String {
    format!("{:#}", read(path).unwrap_err())
}

const LINES: &str = "{\"text\":\"one\",\"id\":1}\n\n{\"id\":{\"a\":[1,2]},\"text\":\"two \\u00e9\"}\n{\"text\":\"\"}\n{\"text\":\"three\"}";

fn tokens_of(dir: &Path, inputs: &[PathBuf], options: &Options) -> Result<TokensManifest> {
    tokenize_to(dir, TokenFormat::Shards, inputs, &tokenizer(400), options)
}

fn files_in(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let entry = |entry: std::io::Result<std::fs::DirEntry>| {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        (name, std::fs::read(path).unwrap())
    };
    let mut files: Vec<_> = std::fs::read_dir(dir).unwrap().map(entry).collect();
    files.sort();
    files
}
