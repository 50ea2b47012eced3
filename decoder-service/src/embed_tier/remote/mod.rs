//! Rows from embed-services over gRPC.
//!
//! Every address is one replica of one shard, kept connected in the background with one Lookup
//! stream. A step becomes one message for each shard that owns a position of it, a prompt several,
//! all under way at once. A look-up that fails or is late is tried once more on another replica of
//! the shard, within the same `timeout`.

mod link;
mod parts;
mod pool;

use std::{sync::Arc, time::Duration};

use tokio::{
    runtime::Handle,
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep, timeout_at},
};
use tracing::warn;

use self::pool::{FirstContact, Pool};
use super::{Answers, EmbedTier, LookupBatch, ModelFacts, TableFacts, TierError};
use crate::error::Error;

/// How to reach the embed tier.
#[derive(Clone, Debug)]
pub struct RemoteOptions {
    /// `http://host:port` of each replica of each shard.
    pub addresses: Vec<String>,
    /// How long a look-up may take, retry included.
    pub timeout: Duration,
    /// How long to wait at start until all shards have a replica.
    pub start_timeout: Duration,
}

/// The embed tier behind addresses. See the [module documentation](self).
#[derive(Debug)]
pub struct Remote {
    pool: Arc<Pool>,
    facts: TableFacts,
    timeout: Duration,
    runtime: Handle,
    /// The connections end with this value.
    _connections: JoinSet<()>,
}

impl Remote {
    /// Connects to all addresses and checks their tables against the model and one another.
    ///
    /// # Errors
    /// When a table does not belong to the model, or a shard has no replica in time.
    pub async fn connect(options: &RemoteOptions, model: ModelFacts) -> Result<Self, Error> {
        let pool = Pool::new(model);
        let mut connections = JoinSet::new();
        let (sender, mut first) = mpsc::channel(options.addresses.len().max(1));
        for address in &options.addresses {
            connections.spawn(pool.clone().keep_connected(address.clone(), sender.clone()));
        }
        drop(sender);
        let deadline = Instant::now() + options.start_timeout;
        let mut problems = Vec::new();
        while let Ok(Some((address, contact))) = timeout_at(deadline, first.recv()).await {
            match contact {
                FirstContact::Joined => {}
                FirstContact::Refused(incompatible) => return Err(incompatible.into()),
                FirstContact::Failed(problem) => problems.push(format!("{address}: {problem}")),
            }
        }
        let facts = all_shards(&pool, deadline, &problems).await?;
        Ok(Self {
            pool,
            facts,
            timeout: options.timeout,
            runtime: Handle::current(),
            _connections: connections,
        })
    }
}

/// Waits until every shard has a replica.
async fn all_shards(
    pool: &Pool,
    deadline: Instant,
    problems: &[String],
) -> Result<TableFacts, Error> {
    let mut told = false;
    loop {
        let missing = pool.missing();
        if let (Some(facts), Some([])) = (pool.facts(), missing.as_deref()) {
            return Ok(facts.clone());
        }
        if Instant::now() >= deadline {
            let what = match missing {
                None => "no embed-service answered".to_owned(),
                Some(missing) => format!("shards {missing:?} have no embed-service"),
            };
            return Err(Error::Config(format!(
                "--embed: {what}; {}",
                if problems.is_empty() {
                    "name at least one replica of each shard".to_owned()
                } else {
                    problems.join("; ")
                }
            )));
        }
        if !told {
            warn!(?missing, "waiting for embed-services");
            told = true;
        }
        sleep(Duration::from_millis(50)).await;
    }
}

impl EmbedTier for Remote {
    fn facts(&self) -> &TableFacts {
        &self.facts
    }

    fn mode(&self) -> &'static str {
        "remote"
    }

    fn lookup(&mut self, batch: &LookupBatch, out: &mut Answers) {
        let Some(limits) = self.pool.limits() else {
            let error = TierError::Unavailable("no embed-service is connected".into());
            out.fail(0..batch.positions(), &error);
            return;
        };
        let shards = self.facts.shard_count;
        let parts = parts::split(batch, self.facts.max_n as usize, shards, limits);
        let runtime = self.runtime.clone();
        for (part, answer) in runtime.block_on(self.answers(parts)) {
            let merged = answer.and_then(|rows| {
                let merged = parts::merge(&part, &rows, &self.facts, out);
                merged.map_err(TierError::BadAnswer)
            });
            if let Err(error) = merged {
                for position in part.owned(shards) {
                    out.fail(position..position + 1, &error);
                }
            }
        }
    }
}

type Answered = (
    parts::Part,
    Result<scone_proto::embed::v1::LookupRows, TierError>,
);

impl Remote {
    /// Asks for all parts at once.
    async fn answers(&self, mut parts: Vec<parts::Part>) -> Vec<Answered> {
        let limit = self.timeout;
        // The usual decode step is one message: no task for it.
        if parts.len() == 1 {
            let part = parts.remove(0);
            let answer = self.pool.answer(&part, limit).await;
            return vec![(part, answer)];
        }
        let mut tasks = JoinSet::new();
        for part in parts {
            let pool = self.pool.clone();
            tasks.spawn(async move {
                let answer = pool.answer(&part, limit).await;
                (part, answer)
            });
        }
        tasks.join_all().await
    }
}
