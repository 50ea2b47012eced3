//! An embed-service for tests: serves a real table over the real protocol, and misbehaves on
//! request.

use std::{
    net::SocketAddr,
    path::Path,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use scone_fgram::{
    RowDtype, Table, TableOptions,
    table::{LookupResult, Span},
};
use scone_proto::embed::v1::{
    self as proto, GetTableInfoRequest, GetTableInfoResponse, LookupRequest, LookupResponse,
    LookupRows,
    embed_service_server::{EmbedService, EmbedServiceServer},
    lookup_response,
};
use tokio::{runtime::Runtime, sync::mpsc};
use tokio_stream::{Stream, StreamExt, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming};

/// Changes an answer before it is sent; `None` sends nothing.
pub type Meddle = Arc<dyn Fn(LookupRows) -> Option<LookupRows> + Send + Sync>;

#[derive(Clone)]
struct Service {
    /// Those it answers for, the current one first.
    tables: Arc<Mutex<Vec<Arc<Table>>>>,
    meddle: Meddle,
    lookups: Arc<AtomicU64>,
    max_positions: u32,
}

/// A running server, with threads of its own; dropping it cuts all connections.
pub struct EmbedServer {
    pub address: SocketAddr,
    pub table: Arc<Table>,
    service: Service,
    runtime: Option<Runtime>,
}

impl EmbedServer {
    pub fn start(table: &Path) -> Self {
        let any = "127.0.0.1:0".parse().unwrap();
        Self::over(open(table), any, Arc::new(Some), 2048)
    }

    pub fn over(
        table: Arc<Table>,
        address: SocketAddr,
        meddle: Meddle,
        max_positions: u32,
    ) -> Self {
        let service = Service {
            tables: Arc::new(Mutex::new(vec![table.clone()])),
            meddle,
            lookups: Arc::default(),
            max_positions,
        };
        let server = EmbedServiceServer::new(service.clone());
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let listener = runtime
            .block_on(scone_service::grpc::bind(address))
            .unwrap();
        let address = listener.local_addr().unwrap();
        runtime.spawn(async move {
            scone_service::grpc::server_builder()
                .add_service(server)
                .serve_with_incoming(scone_service::grpc::incoming(listener))
                .await
                .unwrap();
        });
        Self {
            address,
            table,
            service,
            runtime: Some(runtime),
        }
    }

    /// Answers for these tables from now on, the first one by default.
    pub fn serve(&self, tables: &[Arc<Table>]) {
        *self.service.tables.lock().unwrap() = tables.to_vec();
    }

    pub fn lookups(&self) -> u64 {
        self.service.lookups.load(Ordering::Relaxed)
    }

    /// Cuts everything, as a killed process would.
    pub fn kill(self) {}
}

impl Drop for EmbedServer {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

pub fn open(table: &Path) -> Arc<Table> {
    Arc::new(Table::open(table, &TableOptions::default()).unwrap())
}

impl Service {
    fn find(&self, table_id: Option<&str>) -> Result<Arc<Table>, Status> {
        let tables = self.tables.lock().unwrap();
        let mut tables = tables.iter();
        let found = tables.find(|t| table_id.is_none_or(|id| id == t.manifest().table_id));
        found
            .cloned()
            .ok_or_else(|| Status::failed_precondition("table_id is not served"))
    }

    fn answer(&self, request: LookupRequest) -> Option<LookupResponse> {
        self.lookups.fetch_add(1, Ordering::Relaxed);
        let ids: Vec<u32> = request
            .token_ids
            .chunks(4)
            .map(|b| u32::from_le_bytes(b.try_into().unwrap()))
            .collect();
        assert!(ids.len() <= self.max_positions as usize, "limit not kept");
        let spans = request.spans.iter().map(|s| Span {
            context: s.context,
            answers: s.answers,
        });
        let mut out = LookupResult::default();
        let table = self.find(request.table_id.as_deref()).unwrap();
        table
            .lookup(&ids, &spans.collect::<Vec<_>>(), &mut out)
            .unwrap();
        let rows = (self.meddle)(LookupRows {
            table_id: table.manifest().table_id.clone(),
            match_lengths: out.match_lengths.into(),
            row_index: out.row_index,
            rows: out.rows.into(),
        })?;
        Some(LookupResponse {
            id: request.id,
            result: Some(lookup_response::Result::Rows(rows)),
        })
    }
}

#[tonic::async_trait]
impl EmbedService for Service {
    type LookupStream = Pin<Box<dyn Stream<Item = Result<LookupResponse, Status>> + Send>>;

    async fn lookup(
        &self,
        request: Request<Streaming<LookupRequest>>,
    ) -> Result<Response<Self::LookupStream>, Status> {
        let mut requests = request.into_inner();
        let service = self.clone();
        let (sender, receiver) = mpsc::channel(16);
        tokio::spawn(async move {
            while let Some(Ok(request)) = requests.next().await {
                if let Some(response) = service.answer(request)
                    && sender.send(Ok(response)).await.is_err()
                {
                    break;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn lookup_once(
        &self,
        _request: Request<LookupRequest>,
    ) -> Result<Response<LookupResponse>, Status> {
        Err(Status::unimplemented("not used by the decoder"))
    }

    async fn get_table_info(
        &self,
        request: Request<GetTableInfoRequest>,
    ) -> Result<Response<GetTableInfoResponse>, Status> {
        let table = self.find(request.get_ref().table_id.as_deref())?;
        let m = table.manifest();
        let tables = self.tables.lock().unwrap().clone();
        let served = tables.iter().map(|table| table.manifest().table_id.clone());
        Ok(Response::new(GetTableInfoResponse {
            table_id: m.table_id.clone(),
            model_hash: m.model_hash.clone(),
            tokenizer_hash: m.tokenizer_hash.clone(),
            fgram_set_hash: m.fgram_set_hash.clone(),
            vocab_size: m.vocab_size,
            max_n: m.max_n.into(),
            dim: m.dim,
            dtype: match m.dtype {
                RowDtype::F32 => proto::RowDtype::F32,
                RowDtype::F16 => proto::RowDtype::F16,
                RowDtype::Bf16 => proto::RowDtype::Bf16,
                RowDtype::Int8 => proto::RowDtype::Int8,
                RowDtype::Int4 => proto::RowDtype::Int4,
            }
            .into(),
            row_bytes: m.row_bytes() as u32,
            rows: m.rows,
            shard_index: m.shard_index,
            shard_count: m.shard_count,
            store: m.store.name().to_owned(),
            max_request_bytes: 1 << 20,
            max_spans: 8,
            max_positions: self.max_positions,
            served_table_ids: served.collect(),
        }))
    }
}

/// Long enough for anything on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(20);
