//! The end that is connected to.

use std::{io, path::PathBuf, sync::Arc};

use scone_files::Followed;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{ServerConfig, server::NoServerSessionStorage, server::WebPkiClientVerifier},
    server::TlsStream,
};

use crate::{Error, follow::follow, pem, validity};

/// Where a server's certificate is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerFiles {
    /// The certificate, and those between it and its authority.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// Authorities of the certificates that clients must show; none must when absent.
    pub client_ca: Option<PathBuf>,
}

/// What is spoken over TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2, and over it gRPC.
    Http2,
}

/// The same certificate for each protocol.
struct Configs {
    http1: Arc<ServerConfig>,
    http2: Arc<ServerConfig>,
    ends: Option<i64>,
}

/// A server's side of TLS. Clones share the certificate.
#[derive(Clone, Debug)]
pub struct ServerTls {
    configs: Arc<Followed<Configs, Error>>,
}

impl ServerTls {
    /// Reads the files. Those that change are noticed by [`follow`](Self::follow).
    ///
    /// # Errors
    /// Names the file that cannot be read or used.
    pub fn open(files: ServerFiles) -> Result<Self, Error> {
        let mut paths = vec![files.cert.clone(), files.key.clone()];
        paths.extend(files.client_ca.clone());
        let configs = Followed::open(paths, move |contents, _| configs(&files, contents))?;
        let configs = Arc::new(configs);
        Ok(Self { configs })
    }

    /// When the certificate that new connections get ends, or one between it and its authority, in
    /// seconds since 1970; `None` when it does not say.
    pub fn ends(&self) -> Option<i64> {
        self.configs.current().ends
    }

    /// Looks at the files every other second, for ever.
    pub async fn follow(self) {
        follow(self.configs).await;
    }

    /// Takes the server's part of a handshake. Has no limit of time.
    ///
    /// # Errors
    /// When the client speaks no TLS, refuses the certificate, or shows none that it must. It was told
    /// why; the stream comes back so that it can read that.
    pub async fn accept<S>(
        &self,
        protocol: Protocol,
        stream: S,
    ) -> Result<TlsStream<S>, (io::Error, S)>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let configs = self.configs.current();
        let config = match protocol {
            Protocol::Http1 => &configs.http1,
            Protocol::Http2 => &configs.http2,
        };
        let acceptor = TlsAcceptor::from(Arc::clone(config));
        acceptor.accept(stream).into_fallible().await
    }
}

fn configs(files: &ServerFiles, contents: &[Vec<u8>]) -> Result<Configs, Error> {
    let text = |at: usize| contents.get(at).map_or(&[][..], Vec::as_slice);
    let chain = pem::chain(&files.cert, text(0))?;
    let ends = validity::chain_ends(&chain);
    let key = pem::key(&files.key, text(1))?;
    let pair = |source| Error::Pair {
        cert: files.cert.clone(),
        key: files.key.clone(),
        source,
    };
    let provider = pem::provider();
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider));
    let builder = builder.with_safe_default_protocol_versions();
    let builder = builder.map_err(pair)?;
    let builder = match &files.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let roots = Arc::new(pem::authorities(path, text(2))?);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider).build();
            builder.with_client_cert_verifier(verifier.map_err(|error| Error::Content {
                path: path.clone(),
                problem: error.to_string(),
            })?)
        }
    };
    let mut http1 = builder.with_single_cert(chain, key).map_err(pair)?;
    // Who resumes a session shows no certificate again, though that may have run out meanwhile.
    http1.session_storage = Arc::new(NoServerSessionStorage {});
    http1.send_tls13_tickets = 0;
    let mut http2 = http1.clone();
    http1.alpn_protocols = vec![b"http/1.1".to_vec()];
    http2.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Configs {
        http1: Arc::new(http1),
        http2: Arc::new(http2),
        ends,
    })
}
