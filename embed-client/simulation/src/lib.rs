//! The client of the embedding tier in a simulated network: connections, time and all random choices are
//! turmoil's and a seed's, so a run can be repeated, and seconds of faults take milliseconds.
//!
//! - [`network`] is how client and servers speak over it,
//! - [`servers`] are the replicas, and what they were asked,
//! - [`faults`] says what breaks and when, by a seed,
//! - [`load`] looks up all the while and checks every answer,
//! - [`run`] is one world, from start to end.
//!
//! Steps that must succeed panic when they do not: this runs inside tests.
#![expect(clippy::unwrap_used, reason = "tests")]

pub mod faults;
pub mod load;
pub mod network;
mod run;
pub mod servers;

pub use run::{Report, run};
