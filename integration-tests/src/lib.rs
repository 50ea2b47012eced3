//! A harness that runs the real binaries: `trainer` makes the fixtures, `embed-service` and
//! `decoder-service` are started on free loopback ports and spoken to over gRPC.
//!
//! - [`binaries`] builds the three binaries once and says where they are,
//! - [`folders`] holds all files of a run,
//! - [`fixtures`] makes text, model directories and tables with them, once,
//! - [`process`] starts processes, keeps their logs, and stops them on drop,
//! - [`cluster`] starts the two services and waits for their address,
//! - [`client`] sends generations and collects tokens,
//! - [`rows`] speaks the embed tier's own protocol,
//! - [`proxy`] is a bad network between them,
//! - [`clock`] is a wall clock that jumps,
//! - [`http2`] is a client that keeps to nothing,
//! - [`memory`] watches what a process takes,
//! - [`eventually`] waits for conditions, with a bound.
//!
//! Helpers panic when a step that must succeed does not: they run inside tests, where a panic with
//! the logs of the process is the report.
//!
//! All files live in `<target>/tmp/integration-tests`. The folder is wiped by the next run, so the
//! logs of a failed test can be read afterwards.

pub mod binaries;
pub mod client;
pub mod clock;
pub mod cluster;
pub mod eventually;
pub mod fixtures;
pub mod folders;
pub mod http2;
pub mod memory;
pub mod process;
pub mod proxy;
pub mod rows;
