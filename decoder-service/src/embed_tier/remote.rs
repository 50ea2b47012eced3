//! Rows from embed-services over gRPC: the client of the embed tier, made blocking.

use std::{sync::Arc, time::Instant};

use scone_embed_client::{ConnectError, EmbedClient, Monitor, Options};
use scone_service::traces::{Kind, Span, Tracer, Value};
use tokio::{runtime::Handle, task::JoinSet};

use super::{Answers, EmbedTier, Lookup, LookupBatch, LookupError, Pending, TableFacts, TableName};
use crate::error::Error;

/// The embed tier behind addresses.
#[derive(Debug)]
pub struct Remote {
    client: EmbedClient,
    runtime: Handle,
    tracer: Tracer,
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
                tracer: Tracer::default(),
            }),
            Err(ConnectError::NotReady(missing)) => Err(Error::EmbedTier(missing)),
            Err(ConnectError::Incompatible(incompatible)) => Err(incompatible.into()),
        }
    }

    /// The same, with spans of look-ups that are traced.
    #[must_use]
    pub fn traced(self, tracer: Tracer) -> Self {
        Self { tracer, ..self }
    }

    /// Tells about the cluster.
    pub fn monitor(&self) -> Monitor {
        self.client.monitor()
    }
}

impl EmbedTier for Remote {
    fn current(&self, name: &TableName) -> Option<Arc<TableFacts>> {
        self.client.table(name)
    }

    fn lookup(&mut self, lookups: &mut [Lookup<'_>]) {
        let lookups = lookups.iter_mut();
        let lookups = lookups.map(|Lookup { table, batch, out }| (&***table, *batch, &mut **out));
        let mut lookups: Vec<_> = lookups.collect();
        let began = Instant::now();
        self.runtime.block_on(self.client.lookup_all(&mut lookups));
        for (table, batch, out) in &lookups {
            record(&self.tracer, began, table, batch, out);
        }
    }

    fn begin(&mut self, lookups: Vec<(Arc<TableFacts>, LookupBatch)>) -> Option<Pending> {
        let client = self.client.clone();
        let tracer = self.tracer.clone();
        let positions: Vec<usize> = lookups.iter().map(|(_, batch)| batch.positions()).collect();
        // Aborted with the set when nobody waits for it any more.
        let mut task = JoinSet::new();
        task.spawn_on(
            async move {
                let began = Instant::now();
                let mut all: Vec<Answers> = lookups.iter().map(|_| Answers::default()).collect();
                let each = lookups.iter().zip(&mut all);
                let each = each.map(|((table, batch), out)| (&**table, batch, out));
                client.lookup_all(&mut each.collect::<Vec<_>>()).await;
                for ((table, batch), out) in lookups.iter().zip(&all) {
                    record(&tracer, began, table, batch, out);
                }
                all
            },
            &self.runtime,
        );
        let runtime = self.runtime.clone();
        Some(Box::new(move || {
            match runtime.block_on(task.join_next()) {
                Some(Ok(answers)) => answers,
                // The runtime ends, or the look-up panicked.
                None | Some(Err(_)) => positions.into_iter().map(broken_off).collect(),
            }
        }))
    }
}

/// Tells of a look-up that is over, if it is traced.
fn record(tracer: &Tracer, began: Instant, table: &TableFacts, batch: &LookupBatch, out: &Answers) {
    let Some(trace) = batch.trace else { return };
    tracer.record(Span {
        name: "look-up",
        kind: Kind::Client,
        context: trace.span,
        parent: Some(trace.parent),
        began,
        ended: Instant::now(),
        attributes: vec![
            ("positions", Value::Count(batch.positions() as u64)),
            ("sequences", Value::Count(batch.spans.len() as u64)),
            ("table.id", Value::Text(table.table_id.clone())),
        ],
        error: out.error().map(ToString::to_string),
    });
}

fn broken_off(positions: usize) -> Answers {
    let mut answers = Answers::default();
    answers.reset(positions);
    let error = LookupError::Unavailable("the look-up was broken off".into());
    answers.fail(0..positions, &error);
    answers
}
