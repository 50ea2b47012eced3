//! The way in that gRPC and HTTP share: a draft is checked, numbered and submitted, and its deltas
//! come back.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Instant,
};

use prometheus_client::metrics::counter::Counter;
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, Span, debug, info_span};

use crate::{
    client::Client,
    engine::{EngineConfig, EngineHandle, Message},
    error::Error,
    freed_memory,
    keys::Admitted,
    metrics::Metrics,
    model::ModelInfo,
    ranks::Ranks,
    request::{Draft, MAX_N, Request, TableChoice},
    sequence::Delta,
    startup::TierInfo,
    traces::Tracing,
    turns::Turn,
};

/// Prompts from this length in bytes are tokenised off the network threads.
const LONG_PROMPT_BYTES: usize = 4096;

/// Threads that tokenise long prompts at one time: tokens of running generations come first.
const TOKENISING_THREADS: usize = 2;

/// Bytes of long prompts that are tokenised or wait for it, of all clients together.
const TOKENISING_BYTES: usize = 32 << 20;

/// Bytes of long prompts that are tokenised at one time: while it is cut, a text takes some 160 times its
/// length. The largest there is goes alone.
const TOKENISED_AT_ONCE_BYTES: usize = 4 << 20;

/// Texts from this length in bytes leave so much memory behind that it is given back to the system.
const LARGE_TEXT_BYTES: usize = 256 << 10;

/// Where requests of every protocol come in.
pub struct Intake {
    info: Arc<ModelInfo>,
    tier: TierInfo,
    engine: EngineHandle,
    config: EngineConfig,
    metrics: Metrics,
    draining: CancellationToken,
    tokenising: Tokenising,
    ranks: Option<Ranks>,
    tracing: Tracing,
    /// Numbers requests that come without an id.
    next_id: AtomicU64,
}

/// What bounds the work on prompts before they have a place.
struct Tokenising {
    threads: Arc<Semaphore>,
    at_once: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
}

impl Default for Tokenising {
    fn default() -> Self {
        Self {
            threads: Arc::new(Semaphore::new(TOKENISING_THREADS)),
            at_once: Arc::new(Semaphore::new(TOKENISED_AT_ONCE_BYTES)),
            bytes: Arc::new(Semaphore::new(TOKENISING_BYTES)),
        }
    }
}

impl Tokenising {
    /// Runs `work` on a text of so many bytes on another thread, in turn. It is never begun when its
    /// client has left before.
    async fn run<T: Send + 'static>(
        &self,
        bytes: usize,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Error> {
        let size = u32::try_from(bytes.min(TOKENISING_BYTES)).unwrap_or(u32::MAX);
        let held = Arc::clone(&self.bytes).try_acquire_many_owned(size);
        let held = held.map_err(|_| Error::TooMuchText {
            most: TOKENISING_BYTES,
        })?;
        let turn = Arc::clone(&self.threads).acquire_owned().await;
        let turn = turn.map_err(|_| Error::Internal)?;
        let share = size.min(TOKENISED_AT_ONCE_BYTES as u32);
        let share = Arc::clone(&self.at_once).acquire_many_owned(share).await;
        let share = share.map_err(|_| Error::Internal)?;
        let done = tokio::task::spawn_blocking(move || {
            // Held here: the work goes on when whoever waits for it has left.
            let _held = (held, turn, share);
            let result = work();
            if bytes >= LARGE_TEXT_BYTES {
                freed_memory::give_back();
            }
            result
        });
        done.await.map_err(|_| Error::Internal)
    }
}

impl Intake {
    /// The way to a running engine.
    pub fn new(
        info: Arc<ModelInfo>,
        tier: TierInfo,
        engine: EngineHandle,
        config: EngineConfig,
        metrics: Metrics,
        draining: CancellationToken,
    ) -> Self {
        Self {
            ranks: info.fgrams.clone().map(Ranks::new),
            info,
            tier,
            engine,
            config,
            metrics,
            draining,
            tokenising: Tokenising::default(),
            tracing: Tracing::default(),
            next_id: AtomicU64::new(1),
        }
    }

    /// The same, with traces of its requests.
    #[must_use]
    pub fn traced(self, tracing: Tracing) -> Self {
        Self { tracing, ..self }
    }

    /// Facts of the model served.
    pub fn info(&self) -> &Arc<ModelInfo> {
        &self.info
    }

    /// Ranks and counts of the model's f-grams, if its directory has them.
    pub fn ranks(&self) -> Option<&Ranks> {
        self.ranks.as_ref()
    }

    /// Where rows come from.
    pub fn tier(&self) -> &TierInfo {
        &self.tier
    }

    /// How the engine works.
    pub fn config(&self) -> &EngineConfig {
        &self.config
    }

    /// Whether new requests are refused because the service shuts down.
    pub fn is_draining(&self) -> bool {
        self.draining.is_cancelled()
    }

    /// Checks a draft and submits it.
    ///
    /// # Errors
    /// Why it is refused: a field outside its limit, a full queue, a service that drains. Refusals
    /// are counted.
    pub async fn start(&self, draft: Draft, deadline: Option<Instant>) -> Result<Deltas, Error> {
        let mut all = self.start_all(vec![draft], deadline).await?;
        all.pop().ok_or(Error::Internal)
    }

    /// Checks several drafts, then submits them: all or none.
    ///
    /// # Errors
    /// As [`start`](Self::start), for the first that is refused.
    pub async fn start_all(
        &self,
        drafts: Vec<Draft>,
        deadline: Option<Instant>,
    ) -> Result<Vec<Deltas>, Error> {
        let span = info_span!("generate", request.id = tracing::field::Empty);
        let started = self.checked_and_submitted(drafts, deadline);
        let started = started.instrument(span).await;
        started.inspect_err(|error| {
            debug!(error = %error, "request refused");
            self.metrics.ended(error.outcome());
        })
    }

    async fn checked_and_submitted(
        &self,
        mut drafts: Vec<Draft>,
        deadline: Option<Instant>,
    ) -> Result<Vec<Deltas>, Error> {
        if self.draining.is_cancelled() {
            return Err(Error::Draining);
        }
        for draft in &mut drafts {
            draft.turn = turn(draft);
        }
        let admitted = admit(&mut drafts)?;
        let requests = self.check(drafts, deadline).await?;
        if let Some(first) = requests.first() {
            Span::current().record("request.id", &first.id);
        }
        self.submit(requests, admitted)
    }

    async fn check(
        &self,
        mut drafts: Vec<Draft>,
        deadline: Option<Instant>,
    ) -> Result<Vec<Request>, Error> {
        for draft in &mut drafts {
            if draft.request_id.is_empty() {
                let number = self.next_id.fetch_add(1, Ordering::Relaxed);
                draft.request_id = format!("{}-{number}", std::process::id());
            }
        }
        for draft in &drafts {
            self.check_table(draft.table.as_deref())?;
        }
        let bytes: usize = drafts.iter().map(Draft::text_bytes).sum();
        let info = self.info.clone();
        let check = move || {
            let checked = drafts.into_iter().map(|draft| draft.check(&info, deadline));
            checked.collect::<Result<Vec<Request>, Error>>()
        };
        self.tokenise(bytes, check).await?
    }

    /// Does something to texts of so many bytes that takes as long as to tokenise them: long ones off the
    /// network threads, a few at a time, and not when their client has left before their turn.
    ///
    /// # Errors
    /// [`Error::TooMuchText`] when as much as there may be waits already.
    pub async fn tokenise<T: Send + 'static>(
        &self,
        bytes: usize,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Error> {
        match bytes < LONG_PROMPT_BYTES {
            true => Ok(work()),
            false => self.tokenising.run(bytes, work).await,
        }
    }

    /// Refuses a table that is not here before its text is tokenised. It may still be gone when the
    /// request gets its slot.
    ///
    /// # Errors
    /// [`Error::UnknownTable`].
    pub fn check_table(&self, table: Option<&str>) -> Result<(), Error> {
        let choice = TableChoice::read(table)?;
        let TableChoice::Named(name) = &choice else {
            return Ok(());
        };
        let plain = name.is_default() && self.info.max_n.is_none();
        match plain || self.tier.table(name).is_some() {
            true => Ok(()),
            false => Err(choice.unknown()),
        }
    }

    fn submit(
        &self,
        mut requests: Vec<Request>,
        admitted: Option<Arc<Admitted>>,
    ) -> Result<Vec<Deltas>, Error> {
        for request in &mut requests {
            debug!(
                request.id,
                prompt_tokens = request.prompt_ids.len(),
                n = request.n,
                "request"
            );
            let facts = (request.id.as_str(), request.prompt_ids.len(), request.n);
            request.trace = self.tracing.of(request.caller, request.arrived, facts);
        }
        let of_each = |request: &Request| (request.n, request.prompt_ids.clone());
        let of_each: Vec<(u32, Vec<u32>)> = requests.iter().map(of_each).collect();
        let traces: Vec<_> = requests.iter().flat_map(|one| one.trace.clone()).collect();
        let submitted = self.engine.submit_all(requests).inspect_err(|error| {
            for trace in &traces {
                trace.failed(error.outcome());
            }
        })?;
        let deltas = submitted.into_iter().zip(of_each);
        let deltas = deltas.map(|(messages, (completions, prompt_ids))| {
            let paying = admitted.clone().map(|admitted| Paying {
                counter: self.metrics.key_tokens(admitted.name()),
                admitted,
            });
            if let Some(paying) = &paying {
                paying.for_tokens(prompt_ids.len());
            }
            Deltas {
                messages,
                paying,
                completions,
                prompt_ids,
            }
        });
        Ok(deltas.collect())
    }
}

/// The news of one request. Dropping it cancels the request within one step.
#[derive(Debug)]
pub struct Deltas {
    messages: mpsc::Receiver<Message>,
    /// Completions that are not finished yet.
    completions: u32,
    prompt_ids: Vec<u32>,
    paying: Option<Paying>,
}

/// Who pays for the tokens of a request.
#[derive(Debug)]
struct Paying {
    admitted: Arc<Admitted>,
    counter: Counter,
}

impl Paying {
    fn for_tokens(&self, tokens: usize) {
        self.admitted.charge(tokens);
        self.counter.inc_by(tokens as u64);
    }
}

/// How a draft is known when it comes back after a refusal: as it came, before it is numbered.
fn turn(draft: &Draft) -> Option<Turn> {
    let key = draft.key.as_ref().map(|key| key.id());
    let connection = match draft.client? {
        Client::Connection(far_end) => Some(far_end),
        Client::Key(_) => None,
    };
    Turn::of(key, &draft.request_id, connection)
}

/// Counts the drafts of a call towards its key, which then is the client as well.
fn admit(drafts: &mut [Draft]) -> Result<Option<Arc<Admitted>>, Error> {
    let Some(key) = drafts.first().and_then(|draft| draft.key.clone()) else {
        return Ok(None);
    };
    let client = key.client();
    let mut sequences: u32 = 0;
    for draft in drafts {
        draft.client = Some(client);
        // More are refused soon, for another reason.
        let n = draft.n.unwrap_or(1).min(MAX_N);
        sequences = sequences.saturating_add(n);
    }
    Ok(Some(Arc::new(key.admit(sequences)?)))
}

impl Deltas {
    /// What is continued.
    pub fn prompt_ids(&self) -> &[u32] {
        &self.prompt_ids
    }
}

impl Stream for Deltas {
    type Item = Result<Delta, Error>;

    /// At most one error, after which nothing comes; never an end before every completion has
    /// finished.
    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        Poll::Ready(match ready!(this.messages.poll_recv(context)) {
            Some(Ok(delta)) => {
                this.completions -= u32::from(delta.finish.is_some());
                if let Some(paying) = &this.paying {
                    paying.for_tokens(delta.tokens.len());
                }
                Some(Ok(delta))
            }
            Some(Err(error)) => {
                this.completions = 0;
                this.messages.close();
                Some(Err(error))
            }
            None if this.completions > 0 => {
                // The engine ended without a word: never let that look like a whole answer.
                this.completions = 0;
                Some(Err(Error::Internal))
            }
            None => None,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::sync::mpsc::channel;

    use super::*;

    #[tokio::test]
    async fn texts_take_turns_within_a_budget_and_those_whose_clients_left_are_not_begun() {
        let tokenising = Arc::new(Tokenising::default());
        let mut gates = Vec::new();
        let mut running = Vec::new();
        for _ in 0..TOKENISING_THREADS {
            let (gate, closed) = channel::<()>();
            let (begun, seen) = channel();
            let tokenising = tokenising.clone();
            let bytes = TOKENISED_AT_ONCE_BYTES / TOKENISING_THREADS;
            running.push(tokio::spawn(async move {
                let work = move || {
                    begun.send(()).unwrap();
                    closed.recv().unwrap();
                };
                tokenising.run(bytes, work).await
            }));
            tokio::task::spawn_blocking(move || seen.recv().unwrap())
                .await
                .unwrap();
            gates.push(gate);
        }
        let refused = tokenising.run(TOKENISING_BYTES, || ()).await;
        assert!(matches!(refused, Err(Error::TooMuchText { .. })));
        let left = tokenising.run(1, || panic!("its client left"));
        let left = tokio::time::timeout(std::time::Duration::from_millis(20), left);
        assert!(left.await.is_err(), "all threads are busy");
        for gate in gates {
            gate.send(()).unwrap();
        }
        for one in running {
            one.await.unwrap().unwrap();
        }
        assert_eq!(tokenising.run(TOKENISING_BYTES, || 7).await.unwrap(), 7);
    }
}
