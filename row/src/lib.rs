//! The stored form of a row: what a table holds, what travels, and what a model reads instead of a
//! token embedding.
//!
//! The table crate writes and reads rows, the model crate decodes them into its input; they do not
//! know each other, and agree here.

mod codec;
mod dtype;
mod error;

pub use dtype::{INT4_GROUP, RowDtype};
pub use error::{Error, Result};

/// One stored row, borrowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EncodedRow<'a> {
    /// Type of its elements.
    pub dtype: RowDtype,
    /// `dtype.row_bytes(dim)` bytes.
    pub bytes: &'a [u8],
}

impl EncodedRow<'_> {
    /// Fills `out` with the row's elements.
    ///
    /// # Errors
    /// When the row has another number of bytes than `out.len()` elements take.
    pub fn decode(&self, out: &mut [f32]) -> Result<()> {
        self.dtype.decode(self.bytes, out)
    }
}
