//! The end that connects.

use std::{io, path::PathBuf, sync::Arc};

use scone_files::Followed;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{ClientConfig, client::Resumption, pki_types::ServerName},
};

use crate::{Error, follow::follow, pem, validity};

/// What a client trusts, and how it says who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientFiles {
    /// Authorities of servers; there are no others.
    pub ca: PathBuf,
    /// The client's certificate and its key, for servers that demand one.
    pub identity: Option<(PathBuf, PathBuf)>,
}

struct Config {
    client: Arc<ClientConfig>,
    /// When its own certificate ends.
    ends: Option<i64>,
}

/// A client's side of TLS, for HTTP/2. Clones share the certificates.
#[derive(Clone, Debug)]
pub struct ClientTls {
    config: Arc<Followed<Config, Error>>,
}

impl ClientTls {
    /// Reads the files. Those that change are noticed by [`follow`](Self::follow).
    ///
    /// # Errors
    /// Names the file that cannot be read or used.
    pub fn open(files: ClientFiles) -> Result<Self, Error> {
        let mut paths = vec![files.ca.clone()];
        if let Some((cert, key)) = &files.identity {
            paths.extend([cert.clone(), key.clone()]);
        }
        let config = Followed::open(paths, move |contents, _| config(&files, contents))?;
        let config = Arc::new(config);
        Ok(Self { config })
    }

    /// When the certificate that it shows ends, or one between it and its authority, in seconds since
    /// 1970; `None` when it shows none, or that does not say.
    pub fn ends(&self) -> Option<i64> {
        self.config.current().ends
    }

    /// Looks at the files every other second, for ever.
    pub async fn follow(self) {
        follow(self.config).await;
    }

    /// Takes the client's part of a handshake with the server of this name, a host name or an IP
    /// address, which its certificate must have. Has no limit of time.
    ///
    /// # Errors
    /// When the server speaks no TLS, has another name, or its certificate is not trusted.
    pub async fn connect<S>(&self, name: &str, stream: S) -> io::Result<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let name = server_name(name).map_err(io::Error::other)?;
        let config = Arc::clone(&self.config.current().client);
        TlsConnector::from(config).connect(name, stream).await
    }

    /// Whether a server can have this name.
    ///
    /// # Errors
    /// When it is neither a host name nor an IP address.
    pub fn check_name(name: &str) -> Result<(), Error> {
        server_name(name).map(drop)
    }
}

fn server_name(name: &str) -> Result<ServerName<'static>, Error> {
    // As they stand before a port.
    let inner = name
        .strip_prefix('[')
        .and_then(|name| name.strip_suffix(']'));
    let parsed = ServerName::try_from(inner.unwrap_or(name).to_owned());
    parsed.map_err(|_| Error::Name(name.to_owned()))
}

fn config(files: &ClientFiles, contents: &[Vec<u8>]) -> Result<Config, Error> {
    let mut ends = None;
    let text = |at: usize| contents.get(at).map_or(&[][..], Vec::as_slice);
    let builder = ClientConfig::builder_with_provider(pem::provider());
    let builder = builder.with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| Error::Content {
        path: files.ca.clone(),
        problem: error.to_string(),
    })?;
    let builder = builder.with_root_certificates(pem::authorities(&files.ca, text(0))?);
    let mut config = match &files.identity {
        None => builder.with_no_client_auth(),
        Some((cert, key)) => {
            let (chain, private) = (pem::chain(cert, text(1))?, pem::key(key, text(2))?);
            ends = validity::chain_ends(&chain);
            let built = builder.with_client_auth_cert(chain, private);
            built.map_err(|source| Error::Pair {
                cert: cert.clone(),
                key: key.clone(),
                source,
            })?
        }
    };
    config.resumption = Resumption::disabled();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Config {
        client: Arc::new(config),
        ends,
    })
}
