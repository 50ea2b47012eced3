//! What is in memory: rows kept because they are asked for often, and rows on their way there.
//! Knows no file and no store.

pub(crate) mod flights;
pub(crate) mod hot_set;
pub(crate) mod request;
pub(crate) mod tiny_lfu;
