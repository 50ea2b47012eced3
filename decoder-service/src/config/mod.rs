//! From what was typed to what is checked: flags in one file, their limits in others. All mistakes are
//! reported at once.

mod args;
mod embed_tls;
mod model;
mod problems;
mod serve;
#[cfg(test)]
mod tests;

pub use args::{HttpListen, ModelArgs, ServeArgs};
pub use embed_tls::EmbedTlsArgs;
pub use model::{CacheOptions, EmbedSource, ModelConfig};
pub use serve::{Config, TraceConfig};
