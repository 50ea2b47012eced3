//! Where the rows come from: tables in this process or embed-services elsewhere, behind one
//! trait. The tokens generated are the same either way.

mod embedded;
mod remote;

use std::sync::Arc;

pub use embedded::Embedded;
pub use remote::Remote;
pub use scone_embed_client::{
    Answers, Incompatible, LookupBatch, LookupError, ModelFacts, TableFacts,
};
pub use scone_fgram::table::TableName;

/// Look-ups under way: call it to wait for the answers of each. Dropped, they are given up.
pub type Pending = Box<dyn FnOnce() -> Vec<Answers>>;

/// A look-up in one version of one table.
#[derive(Debug)]
pub struct Lookup<'a> {
    /// Whose rows.
    pub table: &'a Arc<TableFacts>,
    /// What is looked up.
    pub batch: &'a LookupBatch,
    /// Where the answers go.
    pub out: &'a mut Answers,
}

/// Gives the rows for a step.
pub trait EmbedTier: Send {
    /// The version of a table that sequences which start now use to their end; `None` when there is
    /// no table of this name.
    fn current(&self, name: &TableName) -> Option<Arc<TableFacts>>;

    /// Answers all positions of some batches, each from one table version, into its `out`: resets
    /// it, notes the rows of matched positions, and marks the positions that nobody answered for.
    /// Blocks; a wrong row is never noted.
    fn lookup(&mut self, lookups: &mut [Lookup<'_>]);

    /// Begins look-ups that go on while the caller computes. `None` where answers are not waited
    /// for, so that asking early gains nothing.
    fn begin(&mut self, _lookups: Vec<(Arc<TableFacts>, LookupBatch)>) -> Option<Pending> {
        None
    }
}
