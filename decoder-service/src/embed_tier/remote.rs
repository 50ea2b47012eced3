//! Rows from embed-services over gRPC: the client of the embed tier, made blocking.

use std::sync::Arc;

use scone_embed_client::{ConnectError, EmbedClient, Monitor, Options};
use tokio::runtime::Handle;

use super::{Answers, EmbedTier, LookupBatch, TableFacts};
use crate::error::Error;

/// The embed tier behind addresses.
#[derive(Debug)]
pub struct Remote {
    client: EmbedClient,
    runtime: Handle,
}

impl Remote {
    /// Connects; see [`EmbedClient::connect`]. The runtime this is called in carries the
    /// connections.
    ///
    /// # Errors
    /// When no table that belongs to the model is there, or a shard has no replica in time.
    pub async fn connect(options: Options) -> Result<Self, Error> {
        match EmbedClient::connect(options).await {
            Ok(client) => Ok(Self {
                client,
                runtime: Handle::current(),
            }),
            Err(ConnectError::NotReady(missing)) => Err(Error::EmbedTier(missing)),
            Err(ConnectError::Incompatible(incompatible)) => Err(incompatible.into()),
        }
    }

    /// Tells about the cluster.
    pub fn monitor(&self) -> Monitor {
        self.client.monitor()
    }
}

impl EmbedTier for Remote {
    fn current(&self) -> Arc<TableFacts> {
        self.client.current()
    }

    fn lookup(&mut self, table: &TableFacts, batch: &LookupBatch, out: &mut Answers) {
        self.runtime.block_on(self.client.lookup(table, batch, out));
    }
}
