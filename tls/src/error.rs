use std::path::PathBuf;

use tokio_rustls::rustls;

/// Why files cannot be used for TLS.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read.
    #[error("{0}: {source}", source = .0.source)]
    File(#[from] scone_files::Error),
    /// A file holds something else.
    #[error("{}: {problem}", .path.display())]
    Content {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A certificate and a key that are none of TLS, or do not belong together.
    #[error("{} with {}: {source}", .cert.display(), .key.display())]
    Pair {
        /// File of the certificate.
        cert: PathBuf,
        /// File of the key.
        key: PathBuf,
        /// Why not.
        source: rustls::Error,
    },
    /// A server is called by something that can be no name in a certificate.
    #[error("{0:?} is neither a host name nor an IP address")]
    Name(String),
}
