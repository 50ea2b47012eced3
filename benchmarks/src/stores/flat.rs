//! The limit: rows in one buffer, copied from offsets that are known.

use anyhow::Result;

use super::store::Store;
use crate::batches::{Batch, Served};
use crate::rows;

/// All rows in served order.
pub(super) struct Flat {
    bytes: Vec<u8>,
    row_bytes: usize,
    out: Vec<u8>,
}

impl Flat {
    pub(super) fn new(served: &Served<'_>, row_bytes: usize) -> Self {
        let mut bytes = Vec::with_capacity(served.len() * row_bytes);
        (0..served.len() as u32)
            .for_each(|row| rows::encoded(served.ids(row), row_bytes, &mut bytes));
        Self {
            bytes,
            row_bytes,
            out: Vec::new(),
        }
    }
}

impl Store for Flat {
    fn read(&mut self, batch: &Batch) -> Result<&[u8]> {
        self.out.clear();
        for &row in &batch.rows {
            let start = row as usize * self.row_bytes;
            self.out
                .extend_from_slice(&self.bytes[start..start + self.row_bytes]);
        }
        Ok(&self.out)
    }
}
