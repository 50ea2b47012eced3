//! Names of texts.

use sha2::{Digest as _, Sha256};

/// Names a text by its ids and by what its keys and values depend on besides: half a SHA-256, so
/// that nobody can make two texts with one name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Prefix([u8; 16]);

impl Prefix {
    /// The empty text under a table; `None` is the plain model.
    pub fn of_table(table_id: Option<&str>) -> Self {
        let (kind, id) = match table_id {
            Some(id) => (b'T', id),
            None => (b'-', ""),
        };
        Self::cut(Sha256::new().chain_update([kind]).chain_update(id))
    }

    /// This text with more ids after it.
    pub fn then(self, ids: &[u32]) -> Self {
        let mut hash = Sha256::new().chain_update(self.0);
        for id in ids {
            hash.update(id.to_le_bytes());
        }
        Self::cut(hash)
    }

    fn cut(hash: Sha256) -> Self {
        let mut half = [0; 16];
        half.copy_from_slice(&hash.finalize()[..16]);
        Self(half)
    }
}
