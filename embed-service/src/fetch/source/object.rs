//! Tables in S3, Google Cloud Storage or Azure Blob Storage.

use std::{
    env, fmt,
    io::{self, Read},
    sync::Arc,
};

use anyhow::Context as _;
use bytes::{Buf as _, Bytes};
use futures_util::{StreamExt as _, TryStreamExt as _, stream::BoxStream};
use object_store::{GetOptions, GetRange, ObjectStore, parse_url_opts, path::Path};
use tokio::runtime::Runtime;
use url::Url;

/// The objects below one URL. Addresses and credentials come from the environment variables of the
/// store's own tools (`AWS_…`, `GOOGLE_…`, `AZURE_…`), or from the machine's or pod's identity.
#[derive(Debug)]
pub(in crate::fetch) struct Objects {
    url: String,
    store: Box<dyn ObjectStore>,
    folder: Path,
    /// Reads one object at a time for a caller that blocks.
    runtime: Arc<Runtime>,
}

impl Objects {
    /// # Errors
    /// A URL of no known store, or settings in the environment that make no sense.
    pub(super) fn parse(url: &str) -> anyhow::Result<Self> {
        let parsed = Url::parse(url).with_context(|| format!("--from {url}"))?;
        // Variables that are no text are none of the store's.
        let variables = env::vars_os().filter_map(|(name, value)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        });
        let (store, folder) =
            parse_url_opts(&parsed, variables).with_context(|| format!("--from {url}"))?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot start the network")?;
        Ok(Self {
            url: url.trim_end_matches('/').to_owned(),
            store,
            folder,
            runtime: Arc::new(runtime),
        })
    }

    pub(super) fn name_of(&self, path: &str) -> String {
        format!("{}/{path}", self.url)
    }

    pub(super) fn open(&self, path: &str, offset: u64) -> io::Result<Box<dyn Read>> {
        let options = GetOptions {
            // Not for 0: an empty object has no such range.
            range: (offset > 0).then_some(GetRange::Offset(offset)),
            ..GetOptions::default()
        };
        let path = self.path(path)?;
        let object = self.runtime.block_on(self.store.get_opts(&path, options))?;
        Ok(Box::new(ObjectReader {
            runtime: Arc::clone(&self.runtime),
            stream: object.into_stream(),
            chunk: Bytes::new(),
        }))
    }

    pub(super) fn list(&self, folder: &str) -> io::Result<Vec<String>> {
        let prefix = self.path(folder)?;
        let objects = self.store.list(Some(&prefix)).try_collect::<Vec<_>>();
        let objects = self.runtime.block_on(objects)?;
        let below = |location: &Path| {
            let parts: Vec<_> = location.prefix_match(&self.folder)?.collect();
            let parts: Vec<_> = parts.iter().map(AsRef::as_ref).collect();
            Some(parts.join("/"))
        };
        Ok(objects
            .iter()
            .filter_map(|object| below(&object.location))
            .collect())
    }

    fn path(&self, path: &str) -> io::Result<Path> {
        let inner = Path::parse(path).map_err(io::Error::other)?;
        Ok(self.folder.parts().chain(inner.parts()).collect())
    }
}

/// Reads an object as its pieces arrive.
struct ObjectReader {
    runtime: Arc<Runtime>,
    stream: BoxStream<'static, object_store::Result<Bytes>>,
    chunk: Bytes,
}

impl fmt::Debug for ObjectReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ObjectReader").finish_non_exhaustive()
    }
}

impl Read for ObjectReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.chunk.is_empty() {
            match self.runtime.block_on(self.stream.next()) {
                Some(chunk) => self.chunk = chunk?,
                None => return Ok(0),
            }
        }
        let n = buffer.len().min(self.chunk.len());
        self.chunk.copy_to_slice(&mut buffer[..n]);
        Ok(n)
    }
}
