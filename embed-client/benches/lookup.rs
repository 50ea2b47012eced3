//! What a look-up costs the thread that waits for it: over loopback, from a thread outside the
//! runtime, as the decoder's engine asks. The server is in this process and answers from memory, so
//! what is measured is the way there and back. Beside it the same bytes over a bare tonic stream,
//! without anything the client adds.
//!
//! Prints one JSON object a line.

use std::{
    pin::Pin,
    time::{Duration, Instant},
};

use scone_embed_client::{Answers, EmbedClient, LookupBatch, Options, endpoint};
use scone_proto::embed::v1::{
    GetTableInfoRequest, GetTableInfoResponse, LookupRequest, LookupResponse, LookupRows, RowDtype,
    embed_service_client::EmbedServiceClient,
    embed_service_server::{EmbedService, EmbedServiceServer},
    lookup_response,
};
use scone_service::grpc;
use tokio::{runtime::Runtime, sync::mpsc};
use tokio_stream::{Stream, StreamExt as _, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming};

const WARM_UP: usize = 500;
const ROUNDS: usize = 4000;
/// K: a window of the decoder is K ids with one answer.
const MAX_N: usize = 5;

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    // Two runtimes: the server's threads are not the client's.
    let (server, client) = (runtime(2)?, runtime(2)?);
    for dim in [1024, 2048] {
        let listener = server.block_on(grpc::bind("127.0.0.1:0".parse()?))?;
        let address = listener.local_addr()?.to_string();
        server.spawn(
            grpc::server_builder()
                .add_service(EmbedServiceServer::new(Answering { dim }))
                .serve_with_incoming(grpc::incoming(listener)),
        );
        for windows in [1, 32] {
            let case = format!("{windows} windows x {} KiB", dim * 2 / 1024);
            report(
                &case,
                "embed-client",
                &mut through_client(&client, &address, windows)?,
            );
            report(
                &case,
                "bare tonic stream",
                &mut bare(&client, &address, windows)?,
            );
        }
    }
    Ok(())
}

fn runtime(threads: usize) -> std::io::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_all()
        .build()
}

fn through_client(
    runtime: &Runtime,
    address: &str,
    windows: usize,
) -> Result<Vec<Duration>, Failure> {
    let options = Options::new(vec![address.parse()?]);
    let client = runtime.block_on(EmbedClient::connect(options))?;
    let table = client.current();
    let (mut batch, mut answers) = (LookupBatch::default(), Answers::default());
    for window in 0..windows as u32 {
        let ids: Vec<u32> = (0..MAX_N as u32).map(|i| window * 8 + i).collect();
        batch.push(&ids, MAX_N - 1);
    }
    measure(|| {
        runtime.block_on(client.lookup(&table, &batch, &mut answers));
        match answers.error() {
            Some(error) => Err(error.clone().into()),
            None => Ok(()),
        }
    })
}

fn bare(runtime: &Runtime, address: &str, windows: usize) -> Result<Vec<Duration>, Failure> {
    let (sender, requests) = mpsc::channel(16);
    let mut responses = runtime.block_on(async {
        let endpoint = endpoint(address, Duration::from_secs(5))?;
        let mut client = EmbedServiceClient::new(endpoint.connect().await?);
        let stream = client.lookup(ReceiverStream::new(requests)).await?;
        Ok::<_, Failure>(stream.into_inner())
    })?;
    let request = LookupRequest {
        token_ids: vec![0; windows * MAX_N * 4].into(),
        spans: vec![Default::default(); windows],
        ..Default::default()
    };
    measure(|| {
        runtime.block_on(async {
            sender.send(request.clone()).await?;
            responses.message().await?.ok_or("the stream ended")?;
            Ok(())
        })
    })
}

fn measure(mut round: impl FnMut() -> Result<(), Failure>) -> Result<Vec<Duration>, Failure> {
    let mut took = Vec::with_capacity(ROUNDS);
    for i in 0..WARM_UP + ROUNDS {
        let began = Instant::now();
        round()?;
        if i >= WARM_UP {
            took.push(began.elapsed());
        }
    }
    Ok(took)
}

fn report(case: &str, subject: &str, took: &mut [Duration]) {
    took.sort_unstable();
    for (metric, percent) in [("p50", 50), ("p90", 90), ("p99", 99)] {
        let value = took[took.len() * percent / 100].as_nanos() as f64 / 1000.0;
        println!(
            r#"{{"bench":"embed-client","case":"{case}","subject":"{subject}","metric":"{metric}","value":{value:.1},"unit":"us"}}"#
        );
    }
}

/// Answers every window with a row of its own.
struct Answering {
    dim: usize,
}

#[tonic::async_trait]
impl EmbedService for Answering {
    type LookupStream = Pin<Box<dyn Stream<Item = Result<LookupResponse, Status>> + Send>>;

    async fn lookup(
        &self,
        request: Request<Streaming<LookupRequest>>,
    ) -> Result<Response<Self::LookupStream>, Status> {
        let row_bytes = self.dim * 2;
        let answers = request.into_inner().map(move |request| {
            let request = request?;
            let windows = request.spans.len();
            let rows = LookupRows {
                table_id: "bench".to_owned(),
                match_lengths: vec![2; windows].into(),
                row_index: Vec::new(),
                rows: vec![0; windows * row_bytes].into(),
            };
            Ok(LookupResponse {
                id: request.id,
                result: Some(lookup_response::Result::Rows(rows)),
            })
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn lookup_once(
        &self,
        _request: Request<LookupRequest>,
    ) -> Result<Response<LookupResponse>, Status> {
        Err(Status::unimplemented("not measured"))
    }

    async fn get_table_info(
        &self,
        _request: Request<GetTableInfoRequest>,
    ) -> Result<Response<GetTableInfoResponse>, Status> {
        Ok(Response::new(GetTableInfoResponse {
            table_id: "bench".to_owned(),
            vocab_size: 1 << 16,
            max_n: MAX_N as u32,
            dim: self.dim as u32,
            dtype: RowDtype::F16.into(),
            row_bytes: self.dim as u32 * 2,
            rows: 1,
            shard_count: 1,
            max_request_bytes: 1 << 20,
            max_spans: 1024,
            max_positions: 4096,
            served_table_ids: vec!["bench".to_owned()],
            ..Default::default()
        }))
    }
}
