//! What a server needs of a table.

use scone_fgram::{RowDtype, table::Span};
use scone_proto::embed::v1::{self as proto, GetTableInfoResponse, LookupRows};

/// A version of a table, cheap to clone.
pub trait Rows: Clone + Send + Sync + 'static {
    /// Its facts; limits and served versions are the server's.
    fn info(&self) -> GetTableInfoResponse;

    /// The longest f-gram that ends at each answered position, and its row.
    fn look_up(&self, ids: &[u32], spans: &[Span]) -> LookupRows;

    /// The version.
    fn id(&self) -> String {
        self.info().table_id
    }
}

/// The dtype as it travels.
pub(super) fn wire_dtype(dtype: RowDtype) -> i32 {
    match dtype {
        RowDtype::F32 => proto::RowDtype::F32,
        RowDtype::F16 => proto::RowDtype::F16,
        RowDtype::Bf16 => proto::RowDtype::Bf16,
        RowDtype::Int8 => proto::RowDtype::Int8,
        RowDtype::Int4 => proto::RowDtype::Int4,
    }
    .into()
}
