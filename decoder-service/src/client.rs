//! Who asks.

use std::net::SocketAddr;

/// Who asks, for its share of the places.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Client {
    /// All that comes over one connection, by its far end.
    Connection(SocketAddr),
    /// All calls with one API key.
    Key(u64),
}
