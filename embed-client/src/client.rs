//! The client: connects, cuts batches into messages, puts the answers together.

use std::{
    future::{Future as _, poll_fn},
    sync::Arc,
    task::Poll,
};

use scone_fgram::table::TableName;
use scone_proto::embed::v1::LookupRows;
use tokio::{
    task::JoinSet,
    time::{Instant, timeout_at},
};
use tracing::warn;

use crate::{
    ask::Asker,
    batch::{Answers, LookupBatch},
    chance::Chance,
    error::{ConnectError, LookupError},
    facts::TableFacts,
    members::Members,
    options::Options,
    pace::Pace,
    parts::{self, Part},
    pool::{Pool, Start, Stats},
};

/// A client of the embed tier. See the [crate documentation](crate). Cloning is cheap; the
/// connections end with the last clone.
#[derive(Clone, Debug)]
pub struct EmbedClient {
    asker: Arc<Asker>,
    _connections: Arc<JoinSet<()>>,
}

/// What a client knows of its cluster. Keeps no connection open.
#[derive(Clone, Debug)]
pub struct Monitor {
    pool: Arc<Pool>,
}

impl EmbedClient {
    /// Connects to all addresses, and waits until every shard of one table version has a replica
    /// and every replica known was tried. Must be called within a tokio runtime, which then
    /// carries the connections.
    ///
    /// # Errors
    /// [`ConnectError::Incompatible`] when all replicas that answer serve another model's table,
    /// [`ConnectError::NotReady`] when a shard has no replica in `options.start_timeout`.
    pub async fn connect(options: Options) -> Result<Self, ConnectError> {
        let deadline = Instant::now() + options.start_timeout;
        let pool = Pool::new(options.model.clone());
        let asker = Asker {
            pool: pool.clone(),
            timeout: options.timeout,
            hedge: options.hedge,
            pace: Pace::default(),
            chance: Chance::new(options.seed),
        };
        let mut connections = JoinSet::new();
        connections.spawn(Members::new(options, pool.clone()).follow());
        started(&pool, deadline).await?;
        Ok(Self {
            asker: Arc::new(asker),
            _connections: Arc::new(connections),
        })
    }

    /// The version of the default table that new work should use. A text should be looked up in one
    /// version from start to end: keep what this returns and pass it to each
    /// [`lookup`](Self::lookup).
    ///
    /// # Panics
    /// Where there is no default table: ask for [`table`](Self::table) where there need not be one.
    pub fn current(&self) -> Arc<TableFacts> {
        self.monitor().current()
    }

    /// As [`current`](Self::current), of any table; `None` when there is no table of this name.
    pub fn table(&self, name: &TableName) -> Option<Arc<TableFacts>> {
        self.asker.pool.view().current(name).cloned()
    }

    /// A handle that tells about the cluster and keeps no connection open.
    pub fn monitor(&self) -> Monitor {
        Monitor {
            pool: self.asker.pool.clone(),
        }
    }

    /// Answers all positions of `batch` from one table version into `out`: resets it, notes
    /// the rows of matched positions, and marks the positions that nobody answered for. A wrong row
    /// is never noted.
    ///
    /// Takes no longer than `Options::timeout`. A version that no replica serves any more fails at
    /// once.
    pub async fn lookup(&self, table: &TableFacts, batch: &LookupBatch, out: &mut Answers) {
        self.lookup_all(&mut [(table, batch, out)]).await;
    }

    /// As [`lookup`](Self::lookup), of several table versions at once: each has messages of its own,
    /// all under way at the same time.
    pub async fn lookup_all(&self, lookups: &mut [(&TableFacts, &LookupBatch, &mut Answers)]) {
        let mut parts = Vec::new();
        for (at, (table, batch, out)) in lookups.iter_mut().enumerate() {
            parts.extend(
                self.parts(table, batch, out)
                    .into_iter()
                    .map(|part| (at, part)),
            );
        }
        let ask = |table, part| Box::pin(self.asker.answer(table, part));
        let asked = parts
            .iter()
            .map(|(at, part)| (*at, part, ask(lookups[*at].0, part)));
        let mut asked: Vec<_> = asked.collect();
        // All on the caller's thread: a task for each would cost a step two wake-ups more. Rows
        // are checked while others are still on their way.
        poll_fn(|context| {
            asked.retain_mut(|(at, part, answer)| match answer.as_mut().poll(context) {
                Poll::Pending => true,
                Poll::Ready(answer) => {
                    let (table, _, out) = &mut lookups[*at];
                    put(part, answer, table, out);
                    false
                }
            });
            if asked.is_empty() {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    }
}

impl EmbedClient {
    /// Resets `out` and cuts a batch into messages; none for a version that nobody serves.
    fn parts(&self, table: &TableFacts, batch: &LookupBatch, out: &mut Answers) -> Vec<Part> {
        out.reset(batch.positions());
        let limits = self.asker.pool.view().version(table).map(|v| v.limits);
        let Some(limits) = limits else {
            let (name, table_id) = (&table.name, &table.table_id);
            let text = format!("no embed-service serves version {table_id} of the {name} table");
            out.fail(0..batch.positions(), &LookupError::Unavailable(text));
            return Vec::new();
        };
        parts::split(batch, table.max_n as usize, table.shard_count, limits)
    }
}

impl Monitor {
    /// The version of the default table that new work uses.
    ///
    /// # Panics
    /// Where there is no default table, see [`tables`](Self::tables).
    pub fn current(&self) -> Arc<TableFacts> {
        let current = self.pool.view().current(&TableName::default()).cloned();
        current.expect("there is a default table")
    }

    /// The version of each table that new work uses, the default table first.
    pub fn tables(&self) -> Vec<Arc<TableFacts>> {
        self.pool.view().currents().cloned().collect()
    }

    /// How many replicas of each shard of the default table's current version are connected.
    pub fn replicas(&self) -> Vec<usize> {
        self.pool.view().replicas(&TableName::default())
    }

    /// Counters since the start.
    pub fn stats(&self) -> Stats {
        self.pool.stats()
    }
}

/// Writes an answer, or its absence, to the positions it is for.
fn put(
    part: &Part,
    answer: Result<LookupRows, LookupError>,
    table: &TableFacts,
    out: &mut Answers,
) {
    match answer {
        Ok(rows) => parts::merge(part, rows, table, out),
        Err(error) => {
            for position in part.owned(table.shard_count) {
                out.fail(position..position + 1, &error);
            }
        }
    }
}

/// Waits until the pool can answer.
async fn started(pool: &Pool, deadline: Instant) -> Result<(), ConnectError> {
    let mut changes = pool.changes();
    let mut told = false;
    loop {
        let start = pool.start();
        match &start {
            Start::Ready => return Ok(()),
            Start::Refused(refused) => return Err(refused.clone().into()),
            Start::Usable => {}
            Start::Waiting(missing) if !told => {
                warn!(missing, "waiting for embed-services");
                told = true;
            }
            Start::Waiting(_) => {}
        }
        if timeout_at(deadline, changes.changed()).await.is_err() {
            return match start {
                Start::Waiting(missing) => Err(ConnectError::NotReady(missing)),
                _ => Ok(()),
            };
        }
    }
}
