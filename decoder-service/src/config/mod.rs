//! From what was typed to what is checked: flags in one file, their limits in another.

mod args;
mod check;
mod embed_tls;

pub use args::{HttpListen, ModelArgs, ServeArgs};
pub use check::{CacheOptions, Config, EmbedSource, ModelConfig};
pub use embed_tls::EmbedTlsArgs;
