//! How to reach the embed tier.

use std::{sync::Arc, time::Duration};

use scone_tls::ClientTls;

use crate::{
    address::{Address, Resolve, SystemResolver, host},
    endpoint::{Open, Tcp},
    facts::ModelFacts,
};

/// TLS with embed-services.
#[derive(Clone, Debug)]
pub struct Tls {
    /// What is trusted, and the client's own certificate.
    pub client: ClientTls,
    /// What the certificates of all servers must say; the host that each was named by when absent.
    pub name: Option<String>,
}

impl Tls {
    /// What the certificate of a server at `host:port` must say.
    #[must_use]
    pub fn name_of(&self, address: &str) -> String {
        let name = self.name.as_deref();
        name.unwrap_or_else(|| host(address)).to_owned()
    }
}

/// How to reach the embed tier, and how hard to try.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the replicas of all shards are.
    pub addresses: Vec<Address>,
    /// Encrypted, or plain when absent.
    pub tls: Option<Tls>,
    /// What tables must agree with; that of the first table met when absent.
    pub model: Option<ModelFacts>,
    /// How long a look-up may take, all tries included.
    pub timeout: Duration,
    /// How long [`EmbedClient::connect`](crate::EmbedClient::connect) waits for a replica of each
    /// shard.
    pub start_timeout: Duration,
    /// How often names are resolved and files read again.
    pub resolve_interval: Duration,
    /// How often each replica is asked which table versions it answers for.
    pub poll_interval: Duration,
    /// Whether a late look-up is sent to a second replica as well.
    pub hedge: bool,
    /// How names become addresses.
    pub resolver: Arc<dyn Resolve>,
    /// How connections without TLS are opened.
    pub open: Arc<dyn Open>,
    /// Where random choices begin: the same from the same seed, unknown when absent.
    pub seed: Option<u64>,
}

impl Options {
    /// Options with defaults: 500 ms a look-up, 30 s to start, names resolved every 5 s, replicas
    /// polled every second, hedging on.
    pub fn new(addresses: Vec<Address>) -> Self {
        Self {
            addresses,
            tls: None,
            model: None,
            timeout: Duration::from_millis(500),
            start_timeout: Duration::from_secs(30),
            resolve_interval: Duration::from_secs(5),
            poll_interval: Duration::from_secs(1),
            hedge: true,
            resolver: Arc::new(SystemResolver),
            open: Arc::new(Tcp),
            seed: None,
        }
    }
}
