//! Documents as a stream, from files of every known kind.
//!
//! Memory is bounded by one document: a text longer than [`Options::max_document_bytes`] becomes several
//! documents, split behind the last line end before the limit. Refusing it would stop whoever has one
//! large .txt file, and a border once in 8 MiB changes at most K-1 n-grams there. A .jsonl line has to
//! be parsed whole, so one longer than 64 MiB is an error; of a Parquet file one page of
//! each column that is read is in memory.

mod lines;
mod rows;

use anyhow::{Context as _, Result};

#[cfg(test)]
pub(super) use lines::MAX_LINE_BYTES;

use super::inputs::{Input, Layout};
use super::options::Options;
use super::shard::Place;
use crate::progress::Progress;
use lines::TextFile;
use rows::RowFile;
pub(super) use rows::TOKENIZER_PROPERTY;

/// One document as a file holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Content {
    /// Text, not empty.
    Text(String),
    /// Token ids, not empty, of row `row`, counted from 1, and the bytes of text they stand for where
    /// the file says so.
    Ids {
        ids: Vec<u32>,
        bytes: Option<u64>,
        row: u64,
    },
}

impl Content {
    /// About what it takes in memory.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Ids { ids, .. } => 4 * ids.len(),
        }
    }
}

/// A document and where the one behind it is.
#[derive(Debug)]
pub(super) struct Document {
    pub(super) content: Content,
    pub(super) next: Place,
}

/// Iterator over the documents of some inputs, in order. Empty documents are left out. After an
/// error it ends.
pub(super) struct Documents<'a> {
    inputs: std::vec::IntoIter<Input>,
    options: &'a Options,
    progress: &'a Progress,
    current: Option<Box<dyn Source + 'a>>,
    /// Where the next document is.
    place: Place,
    failed: bool,
}

/// A file being read.
trait Source: Send {
    /// The next document; `None` at the end of the file.
    fn next(&mut self, options: &Options) -> Result<Option<Content>>;
}

impl<'a> Documents<'a> {
    /// Reads `inputs`; `progress` counts bytes on disk.
    pub(super) fn new(inputs: Vec<Input>, options: &'a Options, progress: &'a Progress) -> Self {
        Self {
            inputs: inputs.into_iter(),
            options,
            progress,
            current: None,
            place: Place::default(),
            failed: false,
        }
    }

    /// Reads `inputs` from `place` on. What is before it in the same file is read and passed over.
    ///
    /// # Errors
    /// When the file has fewer documents, or cannot be read.
    pub(super) fn from_place(
        inputs: Vec<Input>,
        place: Place,
        options: &'a Options,
        progress: &'a Progress,
    ) -> Result<Self> {
        let mut documents = Self::new(inputs, options, progress);
        for _ in 0..place.input {
            let passed = documents.inputs.next().context("fewer files than before")?;
            progress.add(passed.bytes);
        }
        documents.place.input = place.input;
        if place.document > 0 {
            documents.open_next()?;
        }
        for _ in 0..place.document {
            let source = documents.current.as_mut();
            let passed = source.map(|source| source.next(options)).transpose()?;
            passed.flatten().context("fewer documents than before")?;
            documents.place.document += 1;
        }
        Ok(documents)
    }

    /// Opens the next file; `false` when there is none.
    fn open_next(&mut self) -> Result<bool> {
        let Some(input) = self.inputs.next() else {
            return Ok(false);
        };
        self.current = Some(match input.layout {
            Layout::Text | Layout::Jsonl => Box::new(TextFile::open(input, self.progress)?),
            Layout::Parquet => Box::new(RowFile::open(input, self.options, self.progress)?),
        });
        Ok(true)
    }

    fn try_next(&mut self) -> Result<Option<Document>> {
        loop {
            if let Some(source) = &mut self.current {
                if let Some(content) = source.next(self.options)? {
                    self.place.document += 1;
                    let next = self.place;
                    return Ok(Some(Document { content, next }));
                }
                self.current = None;
                self.place = Place {
                    input: self.place.input + 1,
                    document: 0,
                };
            }
            if !self.open_next()? {
                return Ok(None);
            }
        }
    }
}

impl Iterator for Documents<'_> {
    type Item = Result<Document>;

    fn next(&mut self) -> Option<Result<Document>> {
        if self.failed {
            return None;
        }
        let next = self.try_next();
        self.failed = next.is_err();
        next.transpose()
    }
}
