//! .parquet files: a column of texts, or one of lists of token ids.

use std::collections::VecDeque;

use anyhow::{Context as _, Result, bail};

use super::lines::split;
use super::{Content, Source};
use crate::columns::{Lists, Numbers, ParquetFile, Texts};
use crate::corpus::inputs::Input;
use crate::corpus::options::Options;
use crate::progress::Progress;

/// Column that says how many bytes of text a row's ids stand for; it may be missing.
pub(in crate::corpus) const TEXT_BYTES_COLUMN: &str = "text_bytes";
/// Entry of a file's key-value list: SHA-256 of the tokenizer.json that made its ids.
pub(in crate::corpus) const TOKENIZER_PROPERTY: &str = "scone.tokenizer_hash";

/// A file being read.
pub(super) struct RowFile<'a> {
    file: ParquetFile,
    column: Column,
    progress: &'a Progress,
    rows: u64,
    /// Of the file, as far as it was reported.
    reported: u64,
    bytes: u64,
    /// Pieces of a long text that wait for their turn.
    pieces: VecDeque<String>,
}

enum Column {
    Texts(Box<Texts>),
    Ids(Box<Lists>, Option<Box<Numbers>>),
}

impl<'a> RowFile<'a> {
    pub(super) fn open(input: Input, options: &Options, progress: &'a Progress) -> Result<Self> {
        let file = ParquetFile::open(&input.path)?;
        let (text, ids) = (&options.text_field, &options.ids_field);
        let column = if let Some(column) = file.texts(text) {
            Column::Texts(Box::new(Texts::new(&file, column)))
        } else if let Some(column) = file.lists(ids) {
            let text_bytes = file.numbers(TEXT_BYTES_COLUMN);
            let text_bytes = text_bytes.map(|column| Box::new(Numbers::new(&file, column)));
            Column::Ids(Box::new(Lists::new(&file, column)), text_bytes)
        } else {
            bail!(
                "{}: neither a column {text:?} of texts nor a column {ids:?} of lists of token ids; \
                 its columns are {}",
                input.path.display(),
                file.column_names()
            );
        };
        Ok(Self {
            file,
            column,
            progress,
            rows: 0,
            reported: 0,
            bytes: input.bytes,
            pieces: VecDeque::new(),
        })
    }

    /// Reports the share of the file that its rows so far are.
    fn report(&mut self) {
        self.rows += 1;
        let total = self.file.rows().max(self.rows);
        let done = (u128::from(self.bytes) * u128::from(self.rows) / u128::from(total)) as u64;
        self.progress.add(done.saturating_sub(self.reported));
        self.reported = done;
    }
}

impl Source for RowFile<'_> {
    fn next(&mut self, options: &Options) -> Result<Option<Content>> {
        loop {
            if let Some(piece) = self.pieces.pop_front() {
                return Ok(Some(Content::Text(piece)));
            }
            match &mut self.column {
                Column::Texts(texts) => {
                    let Some(text) = texts.next()? else {
                        return Ok(None);
                    };
                    let path = self.file.path();
                    split(path, text, options.max_document_bytes, &mut self.pieces);
                    self.report();
                }
                Column::Ids(lists, text_bytes) => {
                    let Some(list) = lists.next()? else {
                        return Ok(None);
                    };
                    let bytes = text_bytes
                        .as_mut()
                        .map(|column| column.next())
                        .transpose()?;
                    let bytes = bytes.flatten().and_then(|bytes| u64::try_from(bytes).ok());
                    self.report();
                    let row = self.rows;
                    let ids: Option<Vec<u32>> =
                        list.into_iter().map(|id| u32::try_from(id).ok()).collect();
                    let ids = ids.with_context(|| {
                        let path = self.file.path().display();
                        format!("{path}, row {row}: a token id that is none")
                    })?;
                    if !ids.is_empty() {
                        return Ok(Some(Content::Ids { ids, bytes, row }));
                    }
                }
            }
        }
    }
}
