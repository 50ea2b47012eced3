//! Traces: one over both processes, by a collector of our own.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use integration_tests::{
    client::{self, generate, greedy},
    cluster::Service,
    eventually::eventually,
    fixtures::fixtures,
};
use scone_proto::{
    TRACEPARENT,
    decoder::v1::{ExplainRequest, explain_request},
    otlp::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse, Span, any_value,
        trace_service_server::{TraceService, TraceServiceServer},
    },
};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, transport::Server};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";

/// Keeps each span with the name of its service.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<(String, Span)>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        for of_process in request.into_inner().resource_spans {
            let attributes = of_process.resource.unwrap().attributes;
            let named = attributes.iter().find(|fact| fact.key == "service.name");
            let value = named.and_then(|fact| fact.value.clone()?.value);
            let Some(any_value::Value::StringValue(service)) = value else {
                return Err(Status::invalid_argument("no service.name"));
            };
            let spans = of_process.scope_spans.into_iter();
            let spans = spans.flat_map(|scope| scope.spans);
            let mut kept = self.0.lock().unwrap();
            kept.extend(spans.map(|span| (service.clone(), span)));
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    async fn start() -> (Self, SocketAddr) {
        let collector = Self::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let service = TraceServiceServer::new(collector.clone());
        let serving = Server::builder().add_service(service);
        tokio::spawn(serving.serve_with_incoming(TcpListenerStream::new(listener)));
        (collector, address)
    }

    fn spans(&self) -> Vec<(String, Span)> {
        self.0.lock().unwrap().clone()
    }

    /// The spans of this name.
    fn named(&self, service: &str, name: &str) -> Vec<Span> {
        let spans = self.spans().into_iter();
        let spans = spans.filter(|(of, span)| of == service && span.name == name);
        spans.map(|(_, span)| span).collect()
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_trace_goes_from_the_caller_through_both_processes() {
    let (collector, address) = Collector::start().await;
    let endpoint = format!("--otlp-endpoint=http://{address}");
    let embed = Service::embed(&fixtures().table, &[&endpoint]);
    // A caller's trace is recorded whatever the share of others is.
    let flags = [&*endpoint, "--trace-sample=0"];
    let decoder = Service::decoder_remote(&fixtures().model, &embed.address, &flags);
    let client = client::decoder(&decoder.address).await;

    let plain = generate(&client, greedy("The harbour town", 20))
        .await
        .unwrap();
    let mut traced = Request::new(greedy("The clockmaker said", 20));
    let context = format!("00-{TRACE}-{CALLER}-01").parse().unwrap();
    traced.metadata_mut().insert(TRACEPARENT, context);
    let stream = client.clone().generate(traced).await.unwrap();
    let completion = client::collect(stream.into_inner()).await.unwrap();
    assert_eq!((plain.ids.len(), completion.ids.len()), (20, 20));

    eventually("spans of both processes", async || {
        let look_ups = collector.named("embed-service", "look-up").len();
        (look_ups > 0 && !collector.named("decoder-service", "generate").is_empty()).then_some(())
    })
    .await;
    let spans = collector.spans();
    assert!(spans.iter().all(|(_, span)| hex(&span.trace_id) == TRACE));
    let requests = collector.named("decoder-service", "generate");
    let [request] = &requests[..] else {
        panic!("one request was traced: {requests:?}");
    };
    assert_eq!(hex(&request.parent_span_id), CALLER);
    for name in ["queue", "prefill", "decode"] {
        let parts = collector.named("decoder-service", name);
        assert_eq!(parts.len(), 1, "{name}");
        assert_eq!(parts[0].parent_span_id, request.span_id, "{name}");
        assert!(parts[0].start_time_unix_nano <= parts[0].end_time_unix_nano);
    }
    // Of the prompt alone: those of decoding steps are a number in "decode".
    let asked = collector.named("decoder-service", "look-up");
    assert!(!asked.is_empty() && asked.len() < 5, "{}", asked.len());
    assert!(
        asked
            .iter()
            .all(|span| span.parent_span_id == request.span_id)
    );
    let answered = collector.named("embed-service", "look-up");
    let is_asked = |id: &[u8]| asked.iter().any(|span| span.span_id == id);
    assert!(answered.iter().all(|span| is_asked(&span.parent_span_id)));
}

/// What explains an f-gram is a part of its caller's trace as any other request, over both protocols.
#[tokio::test(flavor = "multi_thread")]
async fn both_runs_of_an_explanation_are_parts_of_the_callers_trace() {
    let (collector, address) = Collector::start().await;
    let flags = [
        &*format!("--otlp-endpoint=http://{address}"),
        "--trace-sample=0",
    ];
    let decoder = Service::decoder_embedded(&fixtures().model, &fixtures().table, &flags);
    let text = "The harbour town";
    let mut asked = Request::new(ExplainRequest {
        prompt: Some(explain_request::Prompt::Text(text.to_owned())),
        ..ExplainRequest::default()
    });
    let context = format!("00-{TRACE}-{CALLER}-01");
    let value = context.parse().unwrap();
    asked.metadata_mut().insert(TRACEPARENT, value);
    let mut client = client::decoder(&decoder.address).await;
    let explained = client.explain(asked).await.unwrap().into_inner();
    let runs = 1 + usize::from(explained.fgram.is_some());

    let body = format!("{{\"prompt\": \"{text}\"}}");
    let head = format!(
        "POST /v1/fgrams/explain HTTP/1.1\r\nhost: test\r\ntraceparent: {context}\r\n\
         connection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let mut http = TcpStream::connect(decoder.http.as_deref().unwrap())
        .await
        .unwrap();
    http.write_all((head + &body).as_bytes()).await.unwrap();
    let mut answer = String::new();
    http.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");

    eventually("spans of both", async || {
        let requests = collector.named("decoder-service", "generate");
        (requests.len() >= 2 * runs).then_some(())
    })
    .await;
    let requests = collector.named("decoder-service", "generate");
    assert_eq!(requests.len(), 2 * runs);
    for request in requests {
        assert_eq!(hex(&request.trace_id), TRACE);
        assert_eq!(hex(&request.parent_span_id), CALLER);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_collector_or_a_share_nothing_is_sent_and_a_lost_collector_costs_spans_alone() {
    let (collector, address) = Collector::start().await;
    let endpoint = format!("--otlp-endpoint=http://{address}");
    // The decoder has no collector, so that the embed-service is asked for no span.
    let embed = Service::embed(&fixtures().table, &[&endpoint]);
    let silent = Service::decoder_remote(&fixtures().model, &embed.address, &["--log-format=json"]);
    let none = Service::decoder_remote(
        &fixtures().model,
        &embed.address,
        &[&endpoint, "--trace-sample=0"],
    );
    // Nobody listens there.
    let lost = Service::decoder(&["--otlp-endpoint=http://127.0.0.1:9", "--trace-sample=1"]);
    let mut texts = Vec::new();
    for service in [&silent, &none, &lost] {
        let client = client::decoder(&service.address).await;
        let completion = generate(&client, greedy("The harbour town", 20));
        texts.push(completion.await.unwrap().ids);
    }
    assert!(texts[0] == texts[1] && texts[1] == texts[2], "{texts:?}");
    let log = silent.process.stderr();
    let mut log = log.lines().map(serde_json::from_str::<Value>);
    let first = log.next().unwrap().unwrap();
    assert_eq!(first["message"], "starting");
    assert!(first["config"].as_str().unwrap().contains("traces: None"));
    assert!(log.all(|line| line.is_ok()), "JSON, all of it");
    // They send what they have before they end.
    for mut service in [silent, none, lost, embed] {
        service.process.terminate();
        assert!(service.process.wait().success());
    }
    assert_eq!(collector.spans().len(), 0);
}
