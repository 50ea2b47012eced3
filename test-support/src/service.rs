//! The gRPC side of the server.

use std::{
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
};

use scone_fgram::table::Span;
use scone_proto::embed::v1::{
    GetTableInfoRequest, GetTableInfoResponse, LookupRequest, LookupResponse,
    embed_service_server::EmbedService, lookup_response,
};
use tokio::sync::{mpsc, watch};
use tokio_stream::{Stream, StreamExt as _, wrappers::ReceiverStream};
use tonic::{Code, Request, Response, Status, Streaming};

use crate::{
    behaviour::{Behaviour, refusal},
    tables::Rows,
};

/// What a test may change while the server runs.
#[derive(Debug)]
struct State<T> {
    /// The current version first.
    tables: Vec<T>,
    behaviour: Behaviour,
}

/// `EmbedService` as tests want it; clones share everything.
#[derive(Clone, Debug)]
pub struct Service<T> {
    state: Arc<Mutex<State<T>>>,
    max_positions: u32,
    max_spans: u32,
    /// Look-ups that were read.
    pub(crate) lookups: Arc<AtomicU64>,
    /// Answers to GetTableInfo.
    pub(crate) polls: Arc<AtomicU64>,
    /// Streams end when this changes.
    streams: watch::Sender<u64>,
}

impl<T: Rows> Service<T> {
    /// Serves `table`, of which a request may ask for so many positions in so many spans.
    #[must_use]
    pub fn new(table: T, max_positions: u32, max_spans: u32) -> Self {
        let state = State {
            tables: vec![table],
            behaviour: Behaviour::Answer,
        };
        Self {
            state: Arc::new(Mutex::new(state)),
            max_positions,
            max_spans,
            lookups: Arc::default(),
            polls: Arc::default(),
            streams: watch::Sender::new(0),
        }
    }

    /// Treats look-ups so from now on.
    pub fn behave(&self, behaviour: Behaviour) {
        self.state().behaviour = behaviour;
    }

    /// Answers for these versions from now on, the first one by default.
    pub fn serve_tables(&self, tables: &[T]) {
        self.state().tables = tables.to_vec();
    }

    /// Ends the open streams in good order, answered or not.
    pub fn end_streams(&self) {
        self.streams.send_modify(|n| *n += 1);
    }

    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap()
    }

    fn find(&self, table_id: Option<&str>) -> Option<T> {
        let state = self.state();
        let mut tables = state.tables.iter();
        let found = tables.find(|table| table_id.is_none_or(|id| id == table.id()));
        found.cloned()
    }

    fn answer(&self, request: &LookupRequest) -> Option<lookup_response::Result> {
        self.lookups.fetch_add(1, Ordering::Relaxed);
        let (ids, _) = request.token_ids.as_chunks::<4>();
        let ids: Vec<u32> = ids.iter().map(|id| u32::from_le_bytes(*id)).collect();
        let spans = request.spans.iter().map(|span| Span {
            context: span.context,
            answers: span.answers,
        });
        let spans: Vec<Span> = spans.collect();
        let kept = ids.len() <= self.max_positions as usize;
        assert!(
            kept && spans.len() <= self.max_spans as usize,
            "limit not kept"
        );
        let answer = match self.find(request.table_id.as_deref()) {
            Some(table) => lookup_response::Result::Rows(table.look_up(&ids, &spans)),
            None => refusal(Code::FailedPrecondition, "table_id is not served", None),
        };
        self.state().behaviour.apply(answer)
    }

    /// Answers one stream until it ends, or is told to.
    async fn serve(
        self,
        mut requests: Streaming<LookupRequest>,
        answers: mpsc::Sender<Result<LookupResponse, Status>>,
    ) {
        let mut end = self.streams.subscribe();
        loop {
            let request = tokio::select! {
                request = requests.next() => request,
                _ = end.changed() => break,
            };
            let Some(Ok(request)) = request else { break };
            let Some(result) = self.answer(&request) else {
                continue;
            };
            let response = LookupResponse {
                id: request.id,
                result: Some(result),
            };
            if answers.send(Ok(response)).await.is_err() {
                break;
            }
        }
    }
}

#[tonic::async_trait]
impl<T: Rows> EmbedService for Service<T> {
    type LookupStream = Pin<Box<dyn Stream<Item = Result<LookupResponse, Status>> + Send>>;

    async fn lookup(
        &self,
        request: Request<Streaming<LookupRequest>>,
    ) -> Result<Response<Self::LookupStream>, Status> {
        let (sender, receiver) = mpsc::channel(16);
        tokio::spawn(self.clone().serve(request.into_inner(), sender));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn lookup_once(
        &self,
        _request: Request<LookupRequest>,
    ) -> Result<Response<LookupResponse>, Status> {
        Err(Status::unimplemented("not used by clients under test"))
    }

    async fn get_table_info(
        &self,
        request: Request<GetTableInfoRequest>,
    ) -> Result<Response<GetTableInfoResponse>, Status> {
        self.polls.fetch_add(1, Ordering::Relaxed);
        let table = self.find(request.get_ref().table_id.as_deref());
        let table = table.ok_or_else(|| Status::failed_precondition("table_id is not served"))?;
        Ok(Response::new(GetTableInfoResponse {
            max_request_bytes: 1 << 20,
            max_spans: self.max_spans,
            max_positions: self.max_positions,
            served_table_ids: self.state().tables.iter().map(Rows::id).collect(),
            ..table.info()
        }))
    }
}
