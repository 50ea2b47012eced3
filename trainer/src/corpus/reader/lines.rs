//! .txt and .jsonl files, compressed or not.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, Read};
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, Visitor};

use super::{Content, Source};
use crate::corpus::decompress;
use crate::corpus::inputs::{Input, Layout};
use crate::corpus::options::Options;
use crate::progress::Progress;

/// The longest line of a .jsonl file, bytes.
pub(in crate::corpus) const MAX_LINE_BYTES: usize = 64 << 20;

/// A file being read.
pub(super) struct TextFile<'a> {
    input: Input,
    source: Box<dyn BufRead + Send + 'a>,
    /// Lines read so far; of a .txt file the line ends that were handed out.
    line: u64,
    /// Bytes of the file's text that were read but not yet handed out.
    rest: Vec<u8>,
    /// Pieces of a long .jsonl document that wait for their turn.
    pieces: VecDeque<String>,
}

impl<'a> TextFile<'a> {
    pub(super) fn open(input: Input, progress: &'a Progress) -> Result<Self> {
        let file = File::open(&input.path)
            .with_context(|| format!("cannot open {}", input.path.display()))?;
        let source = decompress::open(Counted { file, progress }, input.compression);
        Ok(Self {
            input,
            source,
            line: 0,
            rest: Vec::new(),
            pieces: VecDeque::new(),
        })
    }

    fn next_text(&mut self, max_bytes: usize) -> Result<Option<String>> {
        let path = &self.input.path;
        let wanted = (max_bytes + 1).saturating_sub(self.rest.len()) as u64;
        (&mut self.source)
            .take(wanted)
            .read_to_end(&mut self.rest)
            .with_context(|| format!("cannot read {}", path.display()))?;
        if self.rest.is_empty() {
            return Ok(None);
        }
        let cut = split_point(&self.rest, max_bytes);
        if cut < self.rest.len() {
            log_split(path, max_bytes);
        }
        let behind = self.rest.split_off(cut);
        let text = std::mem::replace(&mut self.rest, behind);
        let before = self.line;
        self.line += line_ends(&text);
        String::from_utf8(text).map(Some).map_err(|error| {
            let valid = error.utf8_error().valid_up_to();
            anyhow!(
                "{}, line {}: not UTF-8 text; convert it first, for example with iconv",
                path.display(),
                before + line_ends(&error.as_bytes()[..valid]) + 1
            )
        })
    }

    fn next_line(&mut self, options: &Options) -> Result<Option<String>> {
        loop {
            if let Some(piece) = self.pieces.pop_front() {
                return Ok(Some(piece));
            }
            if !self.read_line()? {
                return Ok(None);
            }
            if self.rest.trim_ascii().is_empty() {
                continue;
            }
            let text = text_of_line(&self.rest, &options.text_field)
                .with_context(|| format!("{}, line {}", self.input.path.display(), self.line))?;
            let max_bytes = options.max_document_bytes;
            split(&self.input.path, text, max_bytes, &mut self.pieces);
        }
    }

    /// Reads the next line into `rest`; `false` at the end of the file.
    fn read_line(&mut self) -> Result<bool> {
        self.rest.clear();
        self.line += 1;
        let position = || format!("{}, line {}", self.input.path.display(), self.line);
        let read = (&mut self.source)
            .take(MAX_LINE_BYTES as u64 + 1)
            .read_until(b'\n', &mut self.rest)
            .with_context(position)?;
        if read > MAX_LINE_BYTES {
            bail!(
                "{}: longer than the limit of {MAX_LINE_BYTES} bytes",
                position()
            );
        }
        Ok(read > 0)
    }
}

/// Queues `text` in pieces of at most `max_bytes` bytes; `path` is what it came from.
pub(super) fn split(
    path: &Path,
    mut text: String,
    max_bytes: usize,
    pieces: &mut VecDeque<String>,
) {
    if text.len() > max_bytes {
        log_split(path, max_bytes);
    }
    while text.len() > max_bytes {
        let behind = text.split_off(split_point(text.as_bytes(), max_bytes));
        pieces.push_back(std::mem::replace(&mut text, behind));
    }
    if !text.is_empty() {
        pieces.push_back(text);
    }
}

impl Source for TextFile<'_> {
    fn next(&mut self, options: &Options) -> Result<Option<Content>> {
        let text = match self.input.layout {
            Layout::Text => self.next_text(options.max_document_bytes),
            _ => self.next_line(options),
        };
        Ok(text?.map(Content::Text))
    }
}

fn line_ends(text: &[u8]) -> u64 {
    text.iter().filter(|byte| **byte == b'\n').count() as u64
}

fn log_split(path: &Path, max_bytes: usize) {
    tracing::debug!(path = %path.display(), max_bytes, "split a long document at a line end");
}

/// Where to cut `text` so that the first part has at most `max_bytes`: behind the last line end,
/// else before a character. All of it when it is short enough.
fn split_point(text: &[u8], max_bytes: usize) -> usize {
    if text.len() <= max_bytes {
        return text.len();
    }
    if let Some(newline) = text[..max_bytes].iter().rposition(|&byte| byte == b'\n') {
        return newline + 1;
    }
    let mut cut = max_bytes;
    // 0b10xx_xxxx continues a UTF-8 character; one has at most three such bytes.
    while cut > max_bytes.saturating_sub(3) && text[cut] & 0b1100_0000 == 0b1000_0000 {
        cut -= 1;
    }
    cut.max(1)
}

fn text_of_line(line: &[u8], field: &str) -> Result<String> {
    let mut json = serde_json::Deserializer::from_slice(line);
    let text = TextField(field).deserialize(&mut json)?;
    json.end()?;
    text.with_context(|| format!("no field {field:?}"))
}

/// Takes one string out of a JSON object and builds nothing else.
struct TextField<'a>(&'a str);

impl<'de> DeserializeSeed<'de> for TextField<'_> {
    type Value = Option<String>;

    fn deserialize<D: serde::Deserializer<'de>>(self, json: D) -> Result<Self::Value, D::Error> {
        json.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for TextField<'_> {
    type Value = Option<String>;

    fn expecting(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "a JSON object with a string in field {:?}", self.0)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut text = None;
        while let Some(key) = map.next_key::<String>()? {
            if key == self.0 {
                text = Some(map.next_value::<String>()?);
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(text)
    }
}

/// Reports what is read from disk.
struct Counted<'a> {
    file: File,
    progress: &'a Progress,
}

impl Read for Counted<'_> {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let read = self.file.read(out)?;
        self.progress.add(read as u64);
        Ok(read)
    }
}
