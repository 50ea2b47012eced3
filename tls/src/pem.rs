//! Certificates and keys out of PEM.

use std::{path::Path, sync::Arc};

use tokio_rustls::rustls::{
    RootCertStore,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};

use crate::Error;

/// The cryptography, by name: what else is in the program must not choose it.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn wrong(path: &Path, problem: impl ToString) -> Error {
    Error::Content {
        path: path.to_owned(),
        problem: problem.to_string(),
    }
}

/// A chain of certificates, at least one.
pub(crate) fn chain(path: &Path, text: &[u8]) -> Result<Vec<CertificateDer<'static>>, Error> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text).collect();
    let chain = chain.map_err(|error| wrong(path, error))?;
    if chain.is_empty() {
        return Err(wrong(path, "holds no certificate in PEM"));
    }
    Ok(chain)
}

pub(crate) fn key(path: &Path, text: &[u8]) -> Result<PrivateKeyDer<'static>, Error> {
    PrivateKeyDer::from_pem_slice(text).map_err(|error| wrong(path, error))
}

/// Authorities, at least one.
pub(crate) fn authorities(path: &Path, text: &[u8]) -> Result<RootCertStore, Error> {
    let mut store = RootCertStore::empty();
    for certificate in chain(path, text)? {
        let added = store.add(certificate);
        added.map_err(|error| wrong(path, error))?;
    }
    Ok(store)
}
