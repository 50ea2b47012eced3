//! Certificates, made as tests run.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose,
};
use scone_tls::{ClientFiles, ServerFiles};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::{
    TlsConnector,
    rustls::{self, ClientConfig, RootCertStore, pki_types::ServerName},
};

/// An authority, with a folder for what it issues.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: TempDir,
}

/// The files of a certificate and its key.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The certificate.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

impl Authority {
    /// A new authority, which nobody knows.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn new() -> Self {
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let folder = tempfile::tempdir().unwrap();
        // A name of its own: one of the same name would be taken for this with a bad signature.
        let name = folder.path().display().to_string();
        params.distinguished_name.push(DnType::CommonName, name);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        fs::write(folder.path().join("ca.crt"), issuer.pem()).unwrap();
        Self { issuer, folder }
    }

    /// File of its own certificate.
    #[must_use]
    pub fn file(&self) -> PathBuf {
        self.folder.path().join("ca.crt")
    }

    /// Issues a certificate for these host names and IP addresses, in files called `file`.
    ///
    /// # Panics
    /// When it cannot be made or written.
    pub fn issue(&self, file: &str, names: &[&str]) -> Identity {
        self.write(file, names, |_| {})
    }

    /// As [`issue`](Self::issue), valid until the first second of a day: year, month and day.
    ///
    /// # Panics
    /// When it cannot be made or written.
    pub fn issue_until(&self, file: &str, names: &[&str], end: (i32, u8, u8)) -> Identity {
        let (year, month, day) = end;
        self.write(file, names, |params| {
            params.not_after = rcgen::date_time_ymd(year, month, day);
        })
    }

    fn write(
        &self,
        file: &str,
        names: &[&str],
        change: impl FnOnce(&mut CertificateParams),
    ) -> Identity {
        let at = |ending: &str| self.folder.path().join(format!("{file}.{ending}"));
        let identity = Identity {
            cert: at("crt"),
            key: at("key"),
        };
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name.push(DnType::CommonName, file);
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        fs::write(&identity.cert, cert.pem()).unwrap();
        fs::write(&identity.key, key.serialize_pem()).unwrap();
        identity
    }

    /// A server on loopback, which demands certificates of `clients`, if of any.
    ///
    /// # Panics
    /// When its certificate cannot be made.
    pub fn server(&self, clients: Option<&Authority>) -> ServerFiles {
        let Identity { cert, key } = self.issue("server", &["localhost", "127.0.0.1"]);
        let client_ca = clients.map(Authority::file);
        ServerFiles {
            cert,
            key,
            client_ca,
        }
    }

    /// A client that trusts this authority, and shows a certificate of `own`, if of any.
    ///
    /// # Panics
    /// When its certificate cannot be made.
    pub fn client(&self, own: Option<&Authority>) -> ClientFiles {
        let identity = own.map(|own| own.issue("client", &["client"]));
        ClientFiles {
            ca: self.file(),
            identity: identity.map(|identity| (identity.cert, identity.key)),
        }
    }
}

impl Authority {
    /// The answer of a server on loopback, which this authority has to vouch for, to a request of
    /// HTTP/1 that closes its connection.
    ///
    /// # Errors
    /// When there is no connection or no TLS.
    ///
    /// # Panics
    /// When this authority's own certificate cannot be used.
    pub async fn https(&self, address: &str, request: &str) -> io::Result<String> {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider);
        let config = config.with_safe_default_protocol_versions().unwrap();
        let config = config.with_root_certificates(roots).with_no_client_auth();
        let name = ServerName::try_from("localhost").unwrap();
        let stream = TcpStream::connect(address).await?;
        let connector = TlsConnector::from(Arc::new(config));
        let mut stream = connector.connect(name, stream).await?;
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    }
}

impl Default for Authority {
    fn default() -> Self {
        Self::new()
    }
}

/// Replaces a file by another, as a mounted Secret is: there is always one.
///
/// # Panics
/// When it cannot.
pub fn replace(file: &Path, by: &Path) {
    let beside = file.with_extension("new");
    fs::copy(by, &beside).unwrap();
    fs::rename(beside, file).unwrap();
}
