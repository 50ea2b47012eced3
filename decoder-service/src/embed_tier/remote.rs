//! Rows from embed-services over gRPC: the client of the embed tier, made blocking.

use std::sync::Arc;

use scone_embed_client::{ConnectError, EmbedClient, Monitor, Options};
use tokio::{runtime::Handle, task::JoinSet};

use super::{Answers, EmbedTier, LookupBatch, LookupError, Pending, TableFacts};
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

    fn begin(&mut self, table: &Arc<TableFacts>, batch: LookupBatch) -> Option<Pending> {
        let (client, table) = (self.client.clone(), table.clone());
        let positions = batch.positions();
        // Aborted with the set when nobody waits for it any more.
        let mut task = JoinSet::new();
        task.spawn_on(
            async move {
                let mut out = Answers::default();
                client.lookup(&table, &batch, &mut out).await;
                out
            },
            &self.runtime,
        );
        let runtime = self.runtime.clone();
        Some(Box::new(move || {
            match runtime.block_on(task.join_next()) {
                Some(Ok(answers)) => answers,
                // The runtime ends, or the look-up panicked.
                None | Some(Err(_)) => {
                    let mut answers = Answers::default();
                    answers.reset(positions);
                    let error = LookupError::Unavailable("the look-up was broken off".into());
                    answers.fail(0..positions, &error);
                    answers
                }
            }
        }))
    }
}
