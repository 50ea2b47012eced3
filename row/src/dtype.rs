//! The types in which the elements of a row may be stored. Layouts are those of `RowDtype` in
//! `scone/embed/v1/embed.proto`; all little-endian, scales before the values they scale.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Elements that share one scale in [`RowDtype::Int4`].
pub const INT4_GROUP: usize = 32;

/// Stored type of the elements of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RowDtype {
    /// IEEE 754 single precision: exact.
    F32,
    /// IEEE 754 half precision, rounded to nearest even.
    F16,
    /// The upper half of an f32, rounded to nearest even.
    Bf16,
    /// One f32 scale for the row, then a signed byte for each element.
    Int8,
    /// One f16 scale for each [`INT4_GROUP`] elements, then a signed nibble for each element,
    /// low nibble first.
    Int4,
}

impl RowDtype {
    /// Every dtype, in the order of the proto.
    pub const ALL: [RowDtype; 5] = [
        RowDtype::F32,
        RowDtype::F16,
        RowDtype::Bf16,
        RowDtype::Int8,
        RowDtype::Int4,
    ];

    /// The name used in flags, files and logs.
    pub fn name(self) -> &'static str {
        match self {
            RowDtype::F32 => "f32",
            RowDtype::F16 => "f16",
            RowDtype::Bf16 => "bf16",
            RowDtype::Int8 => "int8",
            RowDtype::Int4 => "int4",
        }
    }

    /// Bytes of one encoded row of `dim` elements, scales included.
    pub fn row_bytes(self, dim: usize) -> usize {
        match self {
            RowDtype::F32 => 4 * dim,
            RowDtype::F16 | RowDtype::Bf16 => 2 * dim,
            RowDtype::Int8 => 4 + dim,
            RowDtype::Int4 => 2 * dim.div_ceil(INT4_GROUP) + dim.div_ceil(2),
        }
    }
}

impl fmt::Display for RowDtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
