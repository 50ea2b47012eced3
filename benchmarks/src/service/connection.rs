//! What a client asks of any connection.

use anyhow::Result;
use bytes::Bytes;

/// One connection; asks and waits.
pub trait Connection: Send {
    /// Sends a question and waits for the whole answer.
    ///
    /// # Errors
    /// When the connection breaks.
    fn ask(&mut self, question: &Bytes) -> Result<()>;

    /// The last answer.
    fn answer(&self) -> &[u8];
}
