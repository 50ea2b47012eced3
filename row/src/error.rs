//! What can be wrong with a row.

use crate::dtype::RowDtype;

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Any failure of this crate.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    /// Not the number of bytes that the elements take.
    #[error("row: {got} bytes, but {dim} elements of {dtype} take {expected}")]
    Length {
        /// Type of the elements.
        dtype: RowDtype,
        /// Number of elements.
        dim: usize,
        /// Bytes they take.
        expected: usize,
        /// Bytes there are.
        got: usize,
    },
    /// An element that is not finite, or too large for the type.
    #[error("row: element {index} is {value}, which {dtype} cannot hold")]
    Element {
        /// Type of the elements.
        dtype: RowDtype,
        /// Which element.
        index: usize,
        /// Its value.
        value: f32,
    },
    /// Not the name of a type.
    #[error("dtype: {0:?} is none of f32, f16, bf16, int8, int4")]
    Name(String),
}
