//! Who may call: keys from a file, each with a name and, if wanted, limits.
//!
//! Of a key no more than its SHA-256 is kept, which is compared with that of what a caller sends, in a
//! time that does not depend on where they differ. Names, not keys, are in logs and metrics. The file
//! is read again when it changes; a key keeps what it has used by its name.

mod file;
mod usage;

use std::{fmt, path::PathBuf, sync::Arc, time::Duration};

use prometheus_client::metrics::counter::Counter;
use scone_files::{Followed, Refreshed};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use tokio::{task::spawn_blocking, time::sleep};
use tonic::codegen::http::{HeaderMap, header};
use tracing::{info, warn};

pub use self::file::KeysError;
use self::usage::Usage;
use crate::{client::Client, error::Error};

/// How often the file is looked at.
const INTERVAL: Duration = Duration::from_secs(2);

/// The scheme of `authorization`, without regard to case.
const SCHEME: &str = "bearer ";

/// The keys that may call. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct ApiKeys {
    keys: Arc<Followed<Vec<Arc<Key>>, KeysError>>,
    /// Calls without a key that is known.
    pub refused: Counter,
}

impl ApiKeys {
    /// Reads the file. That it changed is noticed by [`follow`](Self::follow).
    ///
    /// # Errors
    /// When it cannot be read, or what line is wrong.
    pub fn open(path: PathBuf) -> Result<Self, KeysError> {
        let name = path.display().to_string();
        let read = move |contents: &[Vec<u8>], before: Option<&Vec<Arc<Key>>>| {
            let text = contents.first().map_or(&[][..], Vec::as_slice);
            let keys = file::parse(text, before.map_or(&[], Vec::as_slice));
            keys.map_err(|problem| KeysError::Content(name.clone(), problem))
        };
        let keys = Arc::new(Followed::open(vec![path], read)?);
        let refused = Counter::default();
        Ok(Self { keys, refused })
    }

    /// Looks at the file every other second, for ever.
    pub async fn follow(self) {
        loop {
            sleep(INTERVAL).await;
            let keys = self.clone();
            // A look that was lost is made up for by the next.
            let _ = spawn_blocking(move || keys.refresh()).await;
        }
    }

    fn refresh(&self) {
        match self.keys.refresh() {
            Refreshed::Same => {}
            Refreshed::Changed => info!(keys = self.keys.current().len(), "API keys changed"),
            Refreshed::Refused(error) => {
                warn!(%error, "API keys changed and cannot be used; those before stay in use");
            }
        }
    }

    /// Whose key the headers of a call have.
    ///
    /// # Errors
    /// [`Error::Unauthenticated`], whatever is wrong.
    pub fn caller(&self, headers: &HeaderMap) -> Result<Arc<Key>, Error> {
        let found = bearer(headers).and_then(|sent| self.find(sent));
        found.ok_or_else(|| {
            self.refused.inc();
            Error::Unauthenticated
        })
    }

    fn find(&self, sent: &[u8]) -> Option<Arc<Key>> {
        let sent = digest(sent);
        let mut found = None;
        // All of them, whichever it is.
        for key in self.keys.current().iter() {
            if bool::from(key.digest.ct_eq(&sent)) {
                found = Some(Arc::clone(key));
            }
        }
        found
    }
}

fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let value = headers.get(header::AUTHORIZATION)?.as_bytes();
    let (scheme, key) = value.split_at_checked(SCHEME.len())?;
    let known = scheme.eq_ignore_ascii_case(SCHEME.as_bytes());
    known.then(|| key.trim_ascii())
}

fn digest(key: &[u8]) -> [u8; 32] {
    Sha256::digest(key).into()
}

/// One key, by its name.
pub struct Key {
    name: Arc<str>,
    digest: [u8; 32],
    limits: KeyLimits,
    usage: Arc<Usage>,
}

/// What the calls with one key may take together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeyLimits {
    /// Sequences that run and wait.
    pub max_concurrent: Option<u32>,
    /// Tokens of prompts, and generated ones.
    pub tokens_per_minute: Option<u32>,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Key").field(&self.name).finish()
    }
}

impl Key {
    /// What it is called in the file.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its number, which no other key of this process has.
    pub fn id(&self) -> u64 {
        self.usage.id
    }

    /// Its share of the places is one, over all connections.
    pub fn client(&self) -> Client {
        Client::Key(self.id())
    }

    /// Lets a call with so many sequences in.
    ///
    /// # Errors
    /// When more run than may, or as many tokens were used as may.
    pub fn admit(self: Arc<Self>, sequences: u32) -> Result<Admitted, Error> {
        self.usage.take(&self.limits, sequences)?;
        Ok(Admitted {
            key: self,
            sequences,
        })
    }
}

/// A call that was let in, until all of it has ended.
#[derive(Debug)]
pub struct Admitted {
    key: Arc<Key>,
    sequences: u32,
}

impl Admitted {
    /// Counts tokens that it took.
    pub fn charge(&self, tokens: usize) {
        self.key.usage.charge(&self.key.limits, tokens);
    }

    /// Its key's name.
    pub fn name(&self) -> &Arc<str> {
        &self.key.name
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.key.usage.give_back(self.sequences);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    const ALICE: &str = "alice-0123456789abcdef";
    const BOB: &str = "bob-0123456789abcdef";

    fn headers(value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, value.parse().unwrap());
        headers
    }

    #[test]
    fn a_caller_is_known_by_the_key_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys");
        std::fs::write(&path, format!("alice {ALICE}\nbob {BOB}\n")).unwrap();
        let keys = ApiKeys::open(path).unwrap();
        let name = |value: &str| {
            let caller = keys.caller(&headers(value));
            caller.map(|key| key.name().to_owned()).ok()
        };
        assert_eq!(name(&format!("Bearer {ALICE}")).as_deref(), Some("alice"));
        assert_eq!(name(&format!("bearer  {BOB} ")).as_deref(), Some("bob"));
        for wrong in ["", "Bearer", "Bearer ", "Bearer alice", "Basic YTpi", ALICE] {
            assert_eq!(name(wrong), None, "{wrong}");
        }
        assert_eq!(name(&format!("Bearer {ALICE}x")), None);
        assert_eq!(name(&format!("Bearer {}", &ALICE[1..])), None);
        assert!(keys.caller(&HeaderMap::new()).is_err());
    }

    #[test]
    fn a_key_keeps_what_it_used_and_what_is_said_of_it_is_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys");
        let write = |limit: u32| {
            let line = format!("alice {ALICE} max_concurrent={limit}\n");
            std::fs::write(&path, line).unwrap();
        };
        write(2);
        let keys = ApiKeys::open(path.clone()).unwrap();
        let alice = || keys.caller(&headers(&format!("Bearer {ALICE}"))).unwrap();
        let held = alice().admit(2).unwrap();
        assert!(matches!(
            alice().admit(1),
            Err(Error::KeyBusy { most: 2, .. })
        ));
        write(3);
        keys.refresh();
        let more = alice().admit(1).unwrap();
        assert!(matches!(
            alice().admit(1),
            Err(Error::KeyBusy { most: 3, .. })
        ));
        drop((held, more));
        let said = format!("{:?} {:?}", alice().admit(3).unwrap(), keys);
        assert!(said.contains("alice"));
        for secret in [ALICE, &scone_files::hex(&digest(ALICE.as_bytes()))] {
            assert!(!said.contains(secret), "{said}");
        }
    }
}
