//! From what was typed to what is checked. All mistakes are reported at once, before a port is
//! bound or a table opened.

mod args;
mod check;

pub use args::{LimitArgs, Names, ServeArgs};
pub use check::{Config, ConfigError};
