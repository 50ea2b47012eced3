//! Tests of the public interface, in one program because linking candle takes long.
#![allow(clippy::unwrap_used, reason = "tests")]

mod checkpoint;
mod common;
mod configs;
mod gguf;
mod gradients;
mod hostile;
mod inference;
mod oracles;
mod packed;
