//! The flags of TLS for programs that are clients, the same for all of them.

use std::{fmt::Debug, marker::PhantomData, path::PathBuf};

use clap::Args;
use scone_tls::{ClientFiles, ClientTls, Error};

/// What differs between programs: the environment variables of the flags.
pub trait ClientTlsNames: Clone + Debug + Send + Sync + 'static {
    /// Environment variable of `--tls-ca`.
    const CA: &'static str;
    /// Environment variable of `--tls-cert`.
    const CERT: &'static str;
    /// Environment variable of `--tls-key`.
    const KEY: &'static str;
    /// Environment variable of `--tls-name`.
    const NAME: &'static str;
}

/// The flags of TLS towards a server, to be flattened into a program's own arguments.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "TLS")]
pub struct ClientTlsArgs<N: ClientTlsNames> {
    /// Authorities in PEM whose certificates servers must have: speak TLS. Plain when absent.
    #[arg(long, env = N::CA, value_name = "FILE")]
    pub tls_ca: Option<PathBuf>,

    /// Certificate in PEM to show to servers.
    #[arg(long, env = N::CERT, value_name = "FILE", requires = "tls_key", requires = "tls_ca")]
    pub tls_cert: Option<PathBuf>,

    /// Private key of --tls-cert, in PEM.
    #[arg(long, env = N::KEY, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,

    /// Name that the certificates of servers must have. Default: the host that was asked for.
    #[arg(long, env = N::NAME, value_name = "HOST", requires = "tls_ca")]
    pub tls_name: Option<String>,

    #[arg(skip)]
    names: PhantomData<N>,
}

impl<N: ClientTlsNames> ClientTlsArgs<N> {
    /// Reads the files; `None` when TLS is not asked for.
    ///
    /// # Errors
    /// Names the file that cannot be read or used, or a name that is none.
    pub fn open(&self) -> Result<Option<ClientTls>, Error> {
        open(
            &self.tls_ca,
            self.tls_cert.as_ref().zip(self.tls_key.as_ref()),
            &self.tls_name,
        )
    }
}

/// A client's side of TLS from the values of flags; `None` without an authority.
///
/// # Errors
/// Names the file that cannot be read or used, or a name that is none.
pub fn open(
    ca: &Option<PathBuf>,
    identity: Option<(&PathBuf, &PathBuf)>,
    name: &Option<String>,
) -> Result<Option<ClientTls>, Error> {
    let Some(ca) = ca.clone() else {
        return Ok(None);
    };
    if let Some(name) = name {
        ClientTls::check_name(name)?;
    }
    let identity = identity.map(|(cert, key)| (cert.clone(), key.clone()));
    ClientTls::open(ClientFiles { ca, identity }).map(Some)
}
