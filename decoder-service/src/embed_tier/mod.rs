//! Where the rows come from: a table in this process or embed-services elsewhere, behind one
//! trait. The tokens generated are the same either way.

mod embedded;
mod remote;

use std::sync::Arc;

pub use embedded::Embedded;
pub use remote::Remote;
pub use scone_embed_client::{
    Answers, Incompatible, LookupBatch, LookupError, ModelFacts, TableFacts,
};

/// A look-up under way: call it to wait for its answers. Dropped, the look-up is given up.
pub type Pending = Box<dyn FnOnce() -> Answers>;

/// Gives the rows for a step.
pub trait EmbedTier: Send {
    /// The table version that sequences which start now use to their end.
    fn current(&self) -> Arc<TableFacts>;

    /// Answers all positions of a batch from one table version into `out`: resets it, notes the
    /// rows of matched positions, and marks the positions that nobody answered for. Blocks; a
    /// wrong row is never noted.
    fn lookup(&mut self, table: &TableFacts, batch: &LookupBatch, out: &mut Answers);

    /// Begins a look-up that goes on while the caller computes. `None` where answers are not waited
    /// for, so that asking early gains nothing.
    fn begin(&mut self, _table: &Arc<TableFacts>, _batch: LookupBatch) -> Option<Pending> {
        None
    }
}
