//! The flags of TLS towards embed-services.

use std::path::PathBuf;

use clap::Args;
use scone_embed_client::Tls;
use scone_service::client_tls;

/// The flags of TLS towards embed-services.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "TLS")]
pub struct EmbedTlsArgs {
    /// Authorities in PEM whose certificates embed-services must have: speak TLS with all of them.
    /// Plain when absent. Files are looked at every 2 seconds.
    #[arg(
        long,
        env = "SCONE_EMBED_TLS_CA",
        value_name = "FILE",
        requires = "embed"
    )]
    pub embed_tls_ca: Option<PathBuf>,

    /// Certificate in PEM to show to embed-services.
    #[arg(
        long,
        env = "SCONE_EMBED_TLS_CERT",
        value_name = "FILE",
        requires = "embed_tls_key",
        requires = "embed_tls_ca"
    )]
    pub embed_tls_cert: Option<PathBuf>,

    /// Private key of --embed-tls-cert, in PEM.
    #[arg(
        long,
        env = "SCONE_EMBED_TLS_KEY",
        value_name = "FILE",
        requires = "embed_tls_cert"
    )]
    pub embed_tls_key: Option<PathBuf>,

    /// Name that the certificates of embed-services must have. Default: the host in --embed, whatever
    /// addresses it resolves to.
    #[arg(
        long,
        env = "SCONE_EMBED_TLS_NAME",
        value_name = "HOST",
        requires = "embed_tls_ca"
    )]
    pub embed_tls_name: Option<String>,
}

impl EmbedTlsArgs {
    /// Reads the files, if there are any. Adds what is wrong.
    pub(super) fn open(&self, problems: &mut Vec<String>) -> Option<Tls> {
        let identity = self
            .embed_tls_cert
            .as_ref()
            .zip(self.embed_tls_key.as_ref());
        match client_tls::open(&self.embed_tls_ca, identity, &self.embed_tls_name) {
            Ok(client) => Some(Tls {
                client: client?,
                name: self.embed_tls_name.clone(),
            }),
            Err(error) => {
                problems.push(format!("--embed-tls-ca: {error}"));
                None
            }
        }
    }
}
