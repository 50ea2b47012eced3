//! The ids of a scan as a stream: one for each position, [`NONE`] between documents and where no
//! surviving n-gram starts. Several [`NONE`] in a row may be one: only neighbours matter.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read as _, Write as _};
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use crate::corpus::TokenizedCorpus;
use crate::mining::pairs::NONE;

/// Labels in memory at a time.
pub(super) const CHUNK: usize = 1 << 18;

/// Length and checksum of a file of labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct LabelsSum {
    pub(super) labels: u64,
    pub(super) crc: u32,
}

/// Where labels come from.
pub(super) enum Labels<'a> {
    /// Token ids.
    Tokens {
        corpus: &'a TokenizedCorpus,
        /// The document to read from, and how many of its ids were read.
        document: usize,
        read: usize,
        /// Ids read since pages were given back.
        held: usize,
    },
    /// A file that an earlier scan wrote.
    File {
        file: BufReader<File>,
        expected: LabelsSum,
        sum: crc32fast::Hasher,
        left: u64,
        bytes: Vec<u8>,
    },
}

/// Ids of mapped tokens that may stay in memory before their pages are given back.
const HELD: usize = 1 << 22;

impl<'a> Labels<'a> {
    pub(super) fn of_tokens(corpus: &'a TokenizedCorpus) -> Self {
        Self::Tokens {
            corpus,
            document: 0,
            read: 0,
            held: 0,
        }
    }

    pub(super) fn of_file(path: &Path, expected: LabelsSum) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        Ok(Self::File {
            file: BufReader::with_capacity(1 << 16, file),
            expected,
            sum: crc32fast::Hasher::new(),
            left: expected.labels,
            bytes: Vec::new(),
        })
    }

    /// Appends up to [`CHUNK`] labels; `false` at the end.
    pub(super) fn read(&mut self, out: &mut Vec<u32>) -> Result<bool> {
        let before = out.len();
        match self {
            Self::Tokens {
                corpus,
                document,
                read,
                held,
            } => {
                while out.len() < before + CHUNK && *document < corpus.document_count() {
                    let range = corpus.document_range(*document);
                    let start = range.start + *read;
                    let end = range.end.min(start + before + CHUNK - out.len());
                    corpus.copy_ids(start..end, out);
                    *read += end - start;
                    if end == range.end {
                        out.push(NONE);
                        *document += 1;
                        *read = 0;
                    }
                }
                *held += out.len() - before;
                if *held >= HELD {
                    corpus.forget_pages();
                    *held = 0;
                }
            }
            Self::File {
                file,
                expected,
                sum,
                left,
                bytes,
            } => {
                let count = (*left).min(CHUNK as u64);
                bytes.resize(4 * count as usize, 0);
                file.read_exact(bytes)
                    .context("cannot read labels of an earlier scan")?;
                sum.update(bytes);
                *left -= count;
                out.extend(
                    bytes
                        .as_chunks()
                        .0
                        .iter()
                        .map(|label| u32::from_le_bytes(*label)),
                );
                ensure!(
                    *left > 0 || sum.clone().finalize() == expected.crc,
                    "the labels of an earlier scan are damaged; remove the working directory"
                );
            }
        }
        Ok(out.len() > before)
    }
}

/// Writes labels for the scan after the next.
pub(super) struct LabelsWriter {
    file: BufWriter<File>,
    sum: crc32fast::Hasher,
    labels: u64,
    bytes: Vec<u8>,
}

impl LabelsWriter {
    pub(super) fn create(path: &Path) -> Result<Self> {
        let file =
            File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self {
            file: BufWriter::with_capacity(1 << 16, file),
            sum: crc32fast::Hasher::new(),
            labels: 0,
            bytes: Vec::new(),
        })
    }

    pub(super) fn write(&mut self, labels: &[u32]) -> Result<()> {
        self.bytes.resize(4 * labels.len(), 0);
        for (bytes, label) in self.bytes.as_chunks_mut().0.iter_mut().zip(labels) {
            *bytes = label.to_le_bytes();
        }
        self.labels += labels.len() as u64;
        self.sum.update(&self.bytes);
        self.file
            .write_all(&self.bytes)
            .context("cannot write labels")
    }

    pub(super) fn finish(mut self) -> Result<LabelsSum> {
        self.file.flush().context("cannot write labels")?;
        Ok(LabelsSum {
            labels: self.labels,
            crc: self.sum.finalize(),
        })
    }
}
