//! The client: connects, cuts batches into messages, puts the answers together.

use std::{
    future::{Future as _, poll_fn},
    sync::Arc,
    task::Poll,
};

use scone_proto::embed::v1::LookupRows;
use tokio::{
    task::JoinSet,
    time::{Instant, timeout_at},
};
use tracing::warn;

use crate::{
    ask::Asker,
    batch::{Answers, LookupBatch},
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
        };
        let mut connections = JoinSet::new();
        connections.spawn(Members::new(options, pool.clone()).follow());
        started(&pool, deadline).await?;
        Ok(Self {
            asker: Arc::new(asker),
            _connections: Arc::new(connections),
        })
    }

    /// The table version that new work should use. A text should be looked up in one version from
    /// start to end: keep what this returns and pass it to each [`lookup`](Self::lookup).
    pub fn current(&self) -> Arc<TableFacts> {
        self.monitor().current()
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
        out.reset(batch.positions());
        let limits = self.asker.pool.view().version(table).map(|v| v.limits);
        let Some(limits) = limits else {
            let table_id = &table.table_id;
            let text = format!("no embed-service serves table {table_id}");
            out.fail(0..batch.positions(), &LookupError::Unavailable(text));
            return;
        };
        let parts = parts::split(batch, table.max_n as usize, table.shard_count, limits);
        let ask = |part| Box::pin(self.asker.answer(table, part));
        let mut asked: Vec<_> = parts.iter().map(|part| (part, ask(part))).collect();
        // All on the caller's thread: a task for each would cost a step two wake-ups more. Rows
        // are checked while others are still on their way.
        poll_fn(|context| {
            asked.retain_mut(|(part, answer)| match answer.as_mut().poll(context) {
                Poll::Pending => true,
                Poll::Ready(answer) => {
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

impl Monitor {
    /// The table version that new work uses.
    pub fn current(&self) -> Arc<TableFacts> {
        let view = self.pool.view();
        // A client exists only once there is a version, and then there always is one.
        view.current()
            .cloned()
            .expect("a connected client has a table version")
    }

    /// How many replicas of each shard of the current version are connected.
    pub fn replicas(&self) -> Vec<usize> {
        self.pool.view().replicas()
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
