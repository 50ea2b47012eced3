//! The service as a client sees it: `run` on a free port and a real gRPC client.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::{net::SocketAddr, time::Duration};

use candle_core::Device;
use common::{CONTEXT, Fixture, fixture, limits};
use decoder_service::{
    Config, SERVICE_NAME,
    config::{CacheOptions, EmbedSource, ModelConfig},
    engine::OnLookupFailure,
    scheduler::Limits,
};
use scone_fgram::{RowDtype, TableOptions};
use scone_model::{Dtype, KvDtype, WeightType};
use scone_proto::decoder::v1::{
    FinishReason, GenerateRequest, GenerateResponse, GetModelInfoRequest, SamplingParameters,
    TokenIds, decoder_service_client::DecoderServiceClient, finish::StoppedBy,
    generate_request::Prompt,
};
use scone_service::connections::ConnectionLimits;
use tokio::{
    sync::oneshot,
    task::JoinHandle,
    time::{sleep, timeout},
};
use tonic::{Code, Request, Status, transport::Channel};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

const PATIENCE: Duration = Duration::from_secs(60);

struct Service {
    fixture: Fixture,
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<Result<(), decoder_service::Error>>,
}

impl Service {
    async fn start(max_batch: usize, max_queue: usize) -> Self {
        let fixture = fixture();
        let embed = EmbedSource::Table(fixture.table.clone());
        Self::over(fixture, embed, max_batch, max_queue).await
    }

    async fn over(
        fixture: Fixture,
        embed: EmbedSource,
        max_batch: usize,
        max_queue: usize,
    ) -> Self {
        Self::draining_in(fixture, embed, max_batch, max_queue, PATIENCE).await
    }

    async fn draining_in(
        fixture: Fixture,
        embed: EmbedSource,
        max_batch: usize,
        max_queue: usize,
        drain_timeout: Duration,
    ) -> Self {
        let config = Self::config(&fixture, embed, limits(max_batch, max_queue, 64));
        let config = Config {
            drain_timeout,
            ..config
        };
        Self::run(fixture, config).await
    }

    /// One table, and these limits of connections.
    async fn limiting(connections: ConnectionLimits) -> Self {
        let fixture = fixture();
        let embed = EmbedSource::Table(fixture.table.clone());
        let config = Self::config(&fixture, embed, limits(1, 8, 64));
        let config = Config {
            connections,
            ..config
        };
        Self::run(fixture, config).await
    }

    fn config(fixture: &Fixture, embed: EmbedSource, limits: Limits) -> Config {
        Config {
            model: ModelConfig {
                model: fixture.model.clone(),
                chat_template: None,
                device: Device::Cpu,
                dtype: Dtype::F32,
                weights: WeightType::F32,
                embed,
                tables: Vec::new(),
                table: TableOptions::default(),
                kv_memory: 4 << 20,
                kv_dtype: KvDtype::F16,
                on_lookup_failure: OnLookupFailure::Fail,
            },
            engine: common::engine_config(limits),
            http: None,
            connections: ConnectionLimits::default(),
            api_keys: None,
            tls: None,
            max_connection_streams: 256,
            traces: None,
            metrics_listen: None,
            drain_timeout: PATIENCE,
        }
    }

    async fn run(fixture: Fixture, config: Config) -> Self {
        let any = "127.0.0.1:0".parse().unwrap();
        let listener = scone_service::grpc::bind(any).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let shutdown = async {
            stopped.await.ok();
        };
        let task = tokio::spawn(decoder_service::run(config, listener, shutdown));
        Self {
            fixture,
            address,
            stop: Some(stop),
            task,
        }
    }

    /// A connection to the service, once the model is loaded.
    async fn channel(&self) -> Channel {
        let url = format!("http://{}", self.address);
        let channel = Channel::from_shared(url).unwrap().connect().await.unwrap();
        let mut health = HealthClient::new(channel.clone());
        let mut watch = health.watch(this_service()).await.unwrap().into_inner();
        loop {
            let news = timeout(PATIENCE, watch.message()).await.unwrap();
            if news.unwrap().unwrap().status() == ServingStatus::Serving {
                return channel;
            }
        }
    }

    async fn client(&self) -> DecoderServiceClient<Channel> {
        DecoderServiceClient::new(self.channel().await)
    }

    fn stop(&mut self) {
        self.stop.take().unwrap().send(()).unwrap();
    }
}

fn this_service() -> HealthCheckRequest {
    HealthCheckRequest {
        service: SERVICE_NAME.to_owned(),
    }
}

fn request(text: &str, max_tokens: u32) -> GenerateRequest {
    GenerateRequest {
        prompt: Some(Prompt::Text(text.to_owned())),
        sampling: Some(SamplingParameters {
            max_tokens: Some(max_tokens),
            temperature: Some(0.0),
            ignore_eos: Some(true),
            ..SamplingParameters::default()
        }),
        request_id: String::new(),
        table: String::new(),
    }
}

async fn all(
    client: &mut DecoderServiceClient<Channel>,
    request: impl tonic::IntoRequest<GenerateRequest>,
) -> Result<Vec<GenerateResponse>, Status> {
    let mut stream = client.generate(request).await?.into_inner();
    let mut responses = Vec::new();
    while let Some(response) = stream.message().await? {
        responses.push(response);
    }
    Ok(responses)
}

fn ids(responses: &[GenerateResponse]) -> Vec<u32> {
    responses
        .iter()
        .flat_map(|r| &r.tokens)
        .map(|t| t.id)
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn generate_streams_tokens_text_and_one_finish() {
    let mut service = Service::start(4, 4).await;
    let mut client = service.client().await;
    let responses = all(&mut client, request("then the fox", 20)).await.unwrap();
    assert_eq!(ids(&responses).len(), 20);
    assert!(responses.len() >= 10, "streamed, not sent at once");
    let finishes: Vec<_> = responses.iter().filter_map(|r| r.finish.as_ref()).collect();
    assert_eq!(finishes.len(), 1);
    let finish = responses.last().unwrap().finish.as_ref().unwrap();
    assert_eq!(finish.reason(), FinishReason::Length);
    let usage = finish.usage.unwrap();
    assert_eq!(usage.completion_tokens, 20);
    assert!(usage.matched_positions > 0 && usage.matched_positions <= usage.positions);
    let timings = finish.timings.unwrap();
    assert!(timings.prefill_us > 0 && timings.decode_us > 0 && timings.lookup_us > 0);
    let steps = timings.lookup_us + timings.forward_us + timings.sampling_us;
    assert!(timings.forward_us > timings.sampling_us && timings.sampling_us > 0);
    assert!(steps <= timings.prefill_us + timings.decode_us);

    let mut stop = request("then the fox", 20);
    let token = ids(&responses)[3];
    stop.sampling.as_mut().unwrap().stop_token_ids = vec![token];
    let stopped = all(&mut client, stop).await.unwrap();
    let finish = stopped.last().unwrap().finish.clone().unwrap();
    assert_eq!(finish.reason(), FinishReason::Stop);
    assert_eq!(finish.stopped_by, Some(StoppedBy::StopTokenId(token)));
    service.stop();
    timeout(PATIENCE, service.task)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn model_info_health_and_bad_requests() {
    let service = Service::start(4, 4).await;
    let mut client = service.client().await;
    let info = client
        .get_model_info(GetModelInfoRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (info.model.as_str(), info.embed_mode.as_str()),
        ("tiny", "embedded")
    );
    assert_eq!((info.vocab_size, info.dim, info.max_n), (261, 32, 3));
    assert_eq!((info.max_batch, info.max_queue), (4, 4));
    assert_eq!(info.context_tokens as usize, CONTEXT);
    assert_eq!(info.table_id.len(), 32);

    let mut health = HealthClient::new(service.channel().await);
    let status = health
        .check(this_service())
        .await
        .unwrap()
        .into_inner()
        .status();
    assert_eq!(status, ServingStatus::Serving);

    let mut stops = request("x", 1);
    stops.sampling.as_mut().unwrap().stop = vec!["x".to_owned(); 10_000];
    let mut out_of_vocabulary = request("x", 1);
    out_of_vocabulary.prompt = Some(Prompt::TokenIds(TokenIds { ids: vec![999] }));
    let no_prompt = GenerateRequest::default();
    for (bad, field) in [
        (stops, "stop"),
        (out_of_vocabulary, "token_ids"),
        (no_prompt, "prompt"),
        (request(&"long ".repeat(3000), 1), "text"),
    ] {
        let status = all(&mut client, bad).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().starts_with(field), "{}", status.message());
    }
    assert_eq!(
        ids(&all(&mut client, request("x", 2)).await.unwrap()).len(),
        2,
        "it lives on"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_is_dropped_frees_its_slot() {
    let service = Service::start(1, 1).await;
    let mut client = service.client().await;
    for _ in 0..10 {
        let mut stream = client
            .generate(request("the fox", 1000))
            .await
            .unwrap()
            .into_inner();
        stream.message().await.unwrap().unwrap();
        drop(stream);
    }
    let responses = timeout(PATIENCE, async {
        loop {
            match all(&mut client, request("the fox", 3)).await {
                Ok(responses) => return responses,
                Err(status) => assert_eq!(status.code(), Code::ResourceExhausted),
            }
            sleep(Duration::from_millis(5)).await;
        }
    });
    assert_eq!(ids(&responses.await.unwrap()).len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn overload_is_refused_at_once_with_a_retry_hint() {
    let service = Service::start(1, 1).await;
    let mut client = service.client().await;
    let mut held = Vec::new();
    let status = timeout(PATIENCE, async {
        loop {
            match client.generate(request("the fox", 1000)).await {
                Ok(stream) => held.push(stream),
                Err(status) => return status,
            }
        }
    });
    let status = status.await.unwrap();
    assert_eq!(status.code(), Code::ResourceExhausted);
    let retry: u64 = status
        .metadata()
        .get(scone_proto::RETRY_PUSHBACK)
        .unwrap()
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!(retry >= 100);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deadline_that_passed_ends_the_work() {
    let service = Service::start(1, 1).await;
    let mut client = service.client().await;
    let mut late = Request::new(request("the fox", 1000));
    // Only the header: tonic's own client would give up by itself with set_timeout.
    late.metadata_mut()
        .insert("grpc-timeout", "1u".parse().unwrap());
    let status = all(&mut client, late).await.unwrap_err();
    assert!(
        matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled),
        "{status}"
    );
    assert_eq!(
        ids(&all(&mut client, request("x", 1)).await.unwrap()).len(),
        1
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn draining_finishes_what_runs_and_refuses_what_is_new() {
    let mut service = Service::start(1, 8).await;
    let mut client = service.client().await;
    let mut streams = long_streams(&mut client).await;
    service.stop();
    let refused = timeout(PATIENCE, async {
        loop {
            // One that came in before the news of the stop waits behind all others: not for that.
            let short = timeout(Duration::from_millis(50), all(&mut client, request("x", 1)));
            match short.await {
                Ok(Err(status)) => return status,
                Ok(Ok(_)) | Err(_) => sleep(Duration::from_millis(1)).await,
            }
        }
    });
    let refused = refused.await.unwrap();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    assert!(
        refused.metadata().contains_key(scone_proto::RETRY_PUSHBACK),
        "our own answer"
    );
    for stream in &mut streams {
        let mut tokens = 0;
        while let Some(response) = stream.message().await.unwrap() {
            tokens += response.tokens.len();
        }
        assert_eq!(tokens, 500, "waiting ones are finished too");
    }
    drop(client);
    timeout(PATIENCE, service.task)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
}

/// More work than is done before a test has acted, whatever else the machine does.
async fn long_streams(
    client: &mut DecoderServiceClient<Channel>,
) -> Vec<tonic::Streaming<GenerateResponse>> {
    let mut streams = Vec::new();
    for _ in 0..3 {
        let stream = client.generate(request("the fox", 500)).await.unwrap();
        streams.push(stream.into_inner());
    }
    streams
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_drain_timeout_ends_what_still_runs_with_unavailable() {
    let fixture = fixture();
    let embed = EmbedSource::Table(fixture.table.clone());
    let mut service = Service::draining_in(fixture, embed, 1, 8, Duration::ZERO).await;
    let mut client = service.client().await;
    let mut streams = long_streams(&mut client).await;
    service.stop();
    let last = streams.last_mut().unwrap();
    let status = timeout(PATIENCE, async {
        loop {
            match last.message().await {
                Ok(Some(response)) => assert_eq!(response.finish, None, "made it in time"),
                Ok(None) => panic!("the stream ended as if it were whole"),
                Err(status) => return status,
            }
        }
    });
    assert_eq!(status.await.unwrap().code(), Code::Unavailable);
    timeout(PATIENCE, service.task)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_of_another_model_is_a_start_up_error() {
    let (fixture, other) = (fixture(), common::fixture_of(2, 3));
    let embed = EmbedSource::Table(other.table.clone());
    let service = Service::over(fixture, embed, 1, 1).await;
    let error = timeout(PATIENCE, service.task)
        .await
        .unwrap()
        .unwrap()
        .unwrap_err();
    let text = error.to_string();
    assert!(text.contains("model_hash"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_table_it_is_built_once_and_kept() {
    let fixture = fixture();
    let cache = tempfile::tempdir().unwrap();
    let embed = |dtype| {
        EmbedSource::FromModel(CacheOptions {
            dir: cache.path().to_owned(),
            dtype,
        })
    };
    let mut service = Service::over(fixture, embed(RowDtype::F16), 1, 1).await;
    let mut client = service.client().await;
    let first = ids(&all(&mut client, request("the fox", 8)).await.unwrap());
    service.stop();
    drop(client);
    timeout(PATIENCE, service.task)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    let tables = || {
        std::fs::read_dir(cache.path().join("tables"))
            .unwrap()
            .map(|e| e.unwrap().path())
    };
    let table = tables().find(|path| path.is_dir()).unwrap();
    let manifest = table.join("table.json");
    let written = std::fs::metadata(&manifest).unwrap().modified().unwrap();

    let again = Service::over(service.fixture, embed(RowDtype::F16), 1, 1).await;
    let mut client = again.client().await;
    assert_eq!(
        ids(&all(&mut client, request("the fox", 8)).await.unwrap()),
        first
    );
    assert_eq!(
        std::fs::metadata(&manifest).unwrap().modified().unwrap(),
        written
    );
    assert_eq!(
        tables().filter(|path| path.is_dir()).count(),
        1,
        "nothing half-built is left"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_connection_more_than_allowed_is_closed() {
    let service = Service::limiting(ConnectionLimits {
        max_connections: 1,
        ..ConnectionLimits::default()
    })
    .await;
    let mut first = service.client().await;
    all(&mut first, request("x", 1)).await.unwrap();
    let url = format!("http://{}", service.address);
    let second = Channel::from_shared(url).unwrap().connect_lazy();
    let mut second = DecoderServiceClient::new(second);
    all(&mut second, request("x", 1)).await.unwrap_err();
    all(&mut first, request("x", 1)).await.unwrap();
}

/// The client stays, and its connection ends all the same, after what runs on it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_connection_ends_after_its_generations() {
    let service = Service::limiting(ConnectionLimits {
        max_connections: 1,
        max_age: Some(Duration::from_millis(20)),
        age_grace: PATIENCE,
        ..ConnectionLimits::default()
    })
    .await;
    let mut first = service.client().await;
    // A connection may grow old before the call reaches it; the next one begins anew.
    let text = async {
        loop {
            if let Ok(text) = all(&mut first, request("the fox", 200)).await {
                break text;
            }
        }
    };
    let text = timeout(PATIENCE, text).await.unwrap();
    assert_eq!(ids(&text).len(), 200);
    let url = format!("http://{}", service.address);
    let another = async {
        loop {
            let channel = Channel::from_shared(url.clone()).unwrap().connect_lazy();
            let mut second = DecoderServiceClient::new(channel);
            if all(&mut second, request("x", 1)).await.is_ok() {
                break;
            }
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, another).await.unwrap();
    drop(first);
}
