//! The client against embed-services that come and go, fail, lag and switch tables.
#![allow(clippy::unwrap_used, reason = "tests")]

mod asking;
mod failures;
mod members;
mod tls;
mod versions;
