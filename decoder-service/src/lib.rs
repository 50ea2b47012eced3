//! Generates text with continuous batching over an f-gram table.
