//! TLS for both ends of a connection, from files that are read again when they change.
//!
//! - [`ServerTls`] is a server's certificate, and the authority whose client certificates it demands,
//! - [`ClientTls`] is the authority that a client trusts, and its own certificate; [`Connector`] opens
//!   connections with it for tonic.
//!
//! Files are PEM, as cert-manager and openssl write them. Those that changed and cannot be used are
//! logged, and what was before stays. Connections that are open stay as they are.
//!
//! TLS 1.3 and 1.2 by rustls with its own choice of ciphers. A session is never resumed: connections
//! are few and long, and each shows its certificate.

mod client;
mod connector;
mod error;
mod follow;
mod pem;
mod server;
mod validity;

pub use client::{ClientFiles, ClientTls};
pub use connector::Connector;
pub use error::Error;
pub use server::{Protocol, ServerFiles, ServerTls};
pub use tokio_rustls::{client::TlsStream as ClientStream, server::TlsStream as ServerStream};
