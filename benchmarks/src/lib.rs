//! Benchmarks of the embedding tier beside its peers; what they measure is in
//! `docs/performance.md`.
//!
//! Each is a `cargo bench -p scone-benchmarks --bench NAME` that runs by itself: it makes its data
//! under the target folder (once: later runs take what is there), measures every subject in the
//! same run, interleaved, several rounds, and prints medians as one JSON object a line on stdout.
//! Without the `--bench` flag that `cargo bench` adds, it does the same with tiny data, so that
//! `cargo test --benches` shows that it works. Only the benchmarks use this crate.
//!
//! Helpers end the benchmark with an error when a subject answers wrongly: a fast wrong answer is
//! not a result.

pub mod args;
pub mod batches;
pub mod disk;
pub mod fgrams;
pub mod policies;
pub mod report;
pub mod rows;
pub mod service;
pub mod stores;
pub mod tables;
pub mod trace;
