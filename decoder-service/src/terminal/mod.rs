//! Generations in a terminal: what `generate`, `client` and `chat` have in common, and the two that
//! speak to a server.

pub mod chat;
pub mod client;
mod output;
mod sampling;
mod server;
mod shade;
mod text_args;

pub use output::{Format, Output, Summary};
pub use sampling::{DEFAULT_MAX_TOKENS, SamplingArgs};
pub use text_args::TextArgs;
