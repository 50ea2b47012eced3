//! OpenAI's API as its clients see it: `run` on free ports, and HTTP by hand.
#![allow(clippy::unwrap_used, unreachable_pub, reason = "tests")]

#[path = "../common/mod.rs"]
mod common;

mod chat;
mod client;
mod completions;
mod errors;
mod explain;
mod keys;
mod openapi;
mod operations;
mod service;
mod tables;
mod terminal;
mod tokens;
