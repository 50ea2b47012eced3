//! The flags of TLS, the same for both services.

use std::{marker::PhantomData, path::PathBuf};

use clap::Args;
use scone_tls::{ServerFiles, ServerTls};

use super::names::ConnectionNames;

/// The flags of TLS, part of [`ConnectionArgs`](super::ConnectionArgs).
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "TLS")]
pub struct TlsArgs<N: ConnectionNames> {
    /// Certificate in PEM, and those between it and its authority: clients must then speak TLS (the
    /// port of --metrics-listen stays as it is). Files are looked at every 2 seconds.
    #[arg(long, env = N::TLS_CERT, value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,

    /// Private key of --tls-cert, in PEM.
    #[arg(long, env = N::TLS_KEY, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,

    /// Authorities in PEM: clients must show a certificate of one of them.
    #[arg(long, env = N::TLS_CLIENT_CA, value_name = "FILE", requires = "tls_cert")]
    pub tls_client_ca: Option<PathBuf>,

    #[arg(skip)]
    names: PhantomData<N>,
}

impl<N: ConnectionNames> TlsArgs<N> {
    /// Reads the files, if there are any. Adds what is wrong.
    pub fn open(&self, problems: &mut Vec<String>) -> Option<ServerTls> {
        let files = ServerFiles {
            cert: self.tls_cert.clone()?,
            key: self.tls_key.clone()?,
            client_ca: self.tls_client_ca.clone(),
        };
        let opened = ServerTls::open(files);
        opened
            .inspect_err(|error| problems.push(format!("--tls-cert: {error}")))
            .ok()
    }
}
