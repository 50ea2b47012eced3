//! The service over a real socket, with a table made in code; and its command line.
#![allow(clippy::unwrap_used, reason = "tests")]

mod cli;
mod connections;
mod fetch;
#[cfg(feature = "object-store")]
mod fetch_objects;
mod limits;
mod lookup;
mod operation;
mod support;
mod switch;
mod tables;
