//! Rows from embed-services over gRPC: the client of the embed tier, made blocking.

use std::{
    future::Future,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    time::{Duration, Instant},
};

use scone_embed_client::{ConnectError, EmbedClient, Monitor, Options};
use scone_service::traces::{Kind, Span, Tracer, Value};
use tokio::{runtime::Handle, task::JoinSet};

use super::{Answers, EmbedTier, Lookup, LookupBatch, LookupError, Pending, TableFacts, TableName};
use crate::error::Error;

/// How long an answer is watched for before the thread sleeps: some round trips on one machine. A
/// processor that sleeps takes longer to wake than a look-up takes, and every decoding step waits for one.
const WATCH: Duration = Duration::from_millis(1);

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
        wait(&self.runtime, self.client.lookup_all(&mut lookups));
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
            match wait(&runtime, task.join_next()) {
                Some(Ok(answers)) => answers,
                // The runtime ends, or the look-up panicked.
                None | Some(Err(_)) => positions.into_iter().map(broken_off).collect(),
            }
        }))
    }
}

/// Runs `future` to its end on this thread, which first watches for it, giving way to others that
/// want the processor, and then sleeps.
fn wait<F: Future>(runtime: &Handle, future: F) -> F::Output {
    let mut future = pin!(future);
    let woken = Arc::new(Woken(AtomicBool::new(true)));
    let waker = Waker::from(Arc::clone(&woken));
    let started = Instant::now();
    // For timers and tasks of the future.
    let entered = runtime.enter();
    while started.elapsed() < WATCH {
        if woken.0.swap(false, Ordering::Acquire) {
            let polled = future.as_mut().poll(&mut Context::from_waker(&waker));
            if let Poll::Ready(output) = polled {
                return output;
            }
        }
        std::thread::yield_now();
    }
    drop(entered);
    runtime.block_on(future)
}

/// Whether a future has something to do.
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Release);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_for_what_comes_at_once_soon_or_late() {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_time()
            .build()
            .expect("a runtime");
        let handle = runtime.handle();
        assert_eq!(wait(handle, async { 1 }), 1);
        for delay in [WATCH / 10, 10 * WATCH] {
            let (sender, receiver) = tokio::sync::oneshot::channel();
            runtime.spawn(async move {
                tokio::time::sleep(delay).await;
                sender.send(delay)
            });
            assert_eq!(wait(handle, receiver), Ok(delay));
            // Timers of the future itself.
            wait(handle, async move { tokio::time::sleep(delay).await });
        }
    }
}
