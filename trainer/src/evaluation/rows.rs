//! Where the rows of f-grams come from: nowhere, the live f-gram model, or a table.

use anyhow::{Context as _, Result, bail, ensure};
use scone_fgram::RowDtype;
use scone_fgram::matcher::{Match, Matcher};
use scone_fgram::table::{LookupResult, Span, Table};

/// Matches f-grams and gives their rows.
pub trait RowSource {
    /// Length of the longest f-gram that ends at each position of a document; 0: none.
    ///
    /// # Errors
    /// When the table cannot answer.
    fn tag(&mut self, document: &[u32]) -> Result<Vec<u8>>;

    /// One row for each f-gram, end to end.
    ///
    /// # Errors
    /// When a row cannot be computed or found.
    fn rows(&mut self, fgrams: &[&[u32]]) -> Result<Vec<f32>>;
}

fn match_lengths<E>(
    longest: impl Fn(&[u32]) -> Result<Option<Match>, E>,
    document: &[u32],
) -> Result<Vec<u8>, E> {
    let length = |end| Ok(longest(&document[..end])?.map_or(0, |found| found.len));
    (1..=document.len()).map(length).collect()
}

/// For a plain model: nothing ever matches.
#[derive(Debug)]
pub struct NoRows;

impl RowSource for NoRows {
    fn tag(&mut self, document: &[u32]) -> Result<Vec<u8>> {
        Ok(vec![0; document.len()])
    }

    fn rows(&mut self, _fgrams: &[&[u32]]) -> Result<Vec<f32>> {
        bail!("a plain model has no f-gram rows")
    }
}

/// Rows computed by a closure over A, rounded as a table of `dtype` would store them.
pub struct LiveRows<F> {
    matcher: Matcher,
    dim: usize,
    dtype: Option<RowDtype>,
    compute: F,
}

impl<F> std::fmt::Debug for LiveRows<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LiveRows")
            .field("dtype", &self.dtype)
            .finish_non_exhaustive()
    }
}

impl<F: FnMut(&[&[u32]]) -> Result<Vec<f32>>> LiveRows<F> {
    /// Rows of width `dim`; `dtype` absent: not rounded.
    pub fn new(matcher: Matcher, dim: usize, dtype: Option<RowDtype>, compute: F) -> Self {
        Self {
            matcher,
            dim,
            dtype,
            compute,
        }
    }
}

impl<F: FnMut(&[&[u32]]) -> Result<Vec<f32>>> RowSource for LiveRows<F> {
    fn tag(&mut self, document: &[u32]) -> Result<Vec<u8>> {
        match_lengths(|ids| Ok(self.matcher.longest(ids)), document)
    }

    fn rows(&mut self, fgrams: &[&[u32]]) -> Result<Vec<f32>> {
        let rows = (self.compute)(fgrams)?;
        match self.dtype {
            None => Ok(rows),
            Some(dtype) => round_rows(&rows, self.dim, dtype),
        }
    }
}

/// `rows` of width `dim` as they come back from a table of `dtype`.
///
/// # Errors
/// When a value is beyond what `dtype` can hold.
pub fn round_rows(rows: &[f32], dim: usize, dtype: RowDtype) -> Result<Vec<f32>> {
    let mut rounded = vec![0.0; rows.len()];
    let mut bytes = Vec::new();
    for (row, out) in rows.chunks(dim).zip(rounded.chunks_mut(dim)) {
        bytes.clear();
        dtype.encode(row, &mut bytes)?;
        dtype.decode(&bytes, out)?;
    }
    Ok(rounded)
}

/// Rows of a whole table (one shard of one), through the look-up that serving uses.
#[derive(Debug)]
pub struct TableRows<'a> {
    table: &'a Table,
    found: LookupResult,
}

impl<'a> TableRows<'a> {
    /// Rows of `table`.
    ///
    /// # Errors
    /// When the table is one shard of several.
    pub fn new(table: &'a Table) -> Result<Self> {
        let manifest = table.manifest();
        ensure!(
            manifest.shard_count == 1,
            "the table is shard {} of {}; evaluate needs a table in one piece",
            manifest.shard_index,
            manifest.shard_count
        );
        Ok(Self {
            table,
            found: LookupResult::default(),
        })
    }
}

impl RowSource for TableRows<'_> {
    fn tag(&mut self, document: &[u32]) -> Result<Vec<u8>> {
        let index = self.table.index();
        Ok(match_lengths(|ids| index.longest(ids), document)?)
    }

    fn rows(&mut self, fgrams: &[&[u32]]) -> Result<Vec<f32>> {
        let span = |ids: &&[u32]| Span {
            context: ids.len() as u32 - 1,
            answers: 1,
        };
        let spans: Vec<Span> = fgrams.iter().map(span).collect();
        let ids = fgrams.concat();
        self.table.lookup(&ids, &spans, &mut self.found)?;
        let manifest = self.table.manifest();
        let dim = manifest.dim as usize;
        let row_bytes = manifest.dtype.row_bytes(dim);
        for (fgram, &length) in fgrams.iter().zip(&self.found.match_lengths) {
            ensure!(
                usize::from(length) == fgram.len(),
                "the table has no row for f-gram {fgram:?}"
            );
        }
        let mut rows = vec![0.0; fgrams.len() * dim];
        for (&at, row) in self.found.row_index.iter().zip(rows.chunks_mut(dim)) {
            let start = at as usize * row_bytes;
            let bytes = self.found.rows.get(start..start + row_bytes);
            let bytes = bytes.context("the table answered too few rows")?;
            manifest.dtype.decode(bytes, row)?;
        }
        Ok(rows)
    }
}
