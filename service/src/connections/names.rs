//! What differs between the flags of two services.

use std::fmt::Debug;

/// What differs between services: the environment variables of the flags, which have the
/// service's prefix, and how long its calls run.
pub trait ConnectionNames: Clone + Debug + Send + Sync + 'static {
    /// Environment variable of `--max-connections`.
    const MAX_CONNECTIONS: &'static str;
    /// Environment variable of `--max-connection-age`.
    const MAX_CONNECTION_AGE: &'static str;
    /// Environment variable of `--max-connection-age-grace`.
    const MAX_CONNECTION_AGE_GRACE: &'static str;
    /// Environment variable of `--connection-silence`.
    const CONNECTION_SILENCE: &'static str;
    /// Environment variable of `--max-unfinished-bytes`.
    const MAX_UNFINISHED_BYTES: &'static str;
    /// Environment variable of `--tls-cert`.
    const TLS_CERT: &'static str;
    /// Environment variable of `--tls-key`.
    const TLS_KEY: &'static str;
    /// Environment variable of `--tls-client-ca`.
    const TLS_CLIENT_CA: &'static str;
    /// Default of `--max-connection-age-grace`.
    const DEFAULT_GRACE: &'static str;
}
