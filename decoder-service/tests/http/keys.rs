//! API keys, over both protocols.

use std::{net::SocketAddr, path::PathBuf};

use decoder_service::keys::ApiKeys;
use scone_proto::decoder::v1::{
    GenerateRequest, GetModelInfoRequest, decoder_service_client::DecoderServiceClient,
    generate_request::Prompt,
};
use serde_json::Value;
use tempfile::TempDir;
use tokio::time::timeout;
use tonic::{Code, Request, Status, transport::Channel};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::{
    client::{Answer, greedy, receive, request, send},
    service::{PATIENCE, Service},
};

const ALICE: &str = "alice-0123456789abcdef";
const BOB: &str = "bob-0123456789abcdef";

/// A service whose keys are in this file.
struct Locked {
    service: Service,
    file: PathBuf,
    _dir: TempDir,
}

impl Locked {
    async fn start(keys: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("keys");
        std::fs::write(&file, keys).unwrap();
        let open = ApiKeys::open(file.clone()).unwrap();
        let change = |config: &mut decoder_service::Config, _: &_| {
            config.api_keys = Some(open);
            let http = config.http.as_mut().unwrap();
            http.cors_origins = vec!["https://elsewhere".to_owned()];
        };
        let service = Service::with(2, 4, change).await;
        Self {
            service,
            file,
            _dir: dir,
        }
    }

    fn http(&self) -> SocketAddr {
        self.service.http
    }

    async fn generate(&self, key: &str, max_tokens: u32, n: u32) -> Answer {
        let body = crate::client::with(
            greedy("then the fox", max_tokens),
            serde_json::json!({ "n": n }),
        );
        ask(
            self.http(),
            "POST",
            "/v1/completions",
            Some(key),
            &body.to_string(),
        )
        .await
    }
}

async fn ask(http: SocketAddr, method: &str, path: &str, key: Option<&str>, body: &str) -> Answer {
    let bearer = key.map(|key| format!("Bearer {key}"));
    let headers: Vec<_> = bearer
        .iter()
        .map(|b| ("authorization", b.as_str()))
        .collect();
    receive(send(http, &request(method, path, &headers, body)).await).await
}

/// With a key in its metadata.
fn keyed<T>(message: T, key: Option<&str>) -> Request<T> {
    let mut request = Request::new(message);
    if let Some(key) = key {
        let value = format!("Bearer {key}").parse().unwrap();
        request.metadata_mut().insert("authorization", value);
    }
    request
}

async fn generate_over_grpc(
    client: &mut DecoderServiceClient<Channel>,
    key: Option<&str>,
) -> Result<usize, Status> {
    let message = GenerateRequest {
        prompt: Some(Prompt::Text("then the fox".to_owned())),
        ..GenerateRequest::default()
    };
    let mut stream = client.generate(keyed(message, key)).await?.into_inner();
    let mut tokens = 0;
    while let Some(message) = stream.message().await? {
        tokens += message.tokens.len();
    }
    Ok(tokens)
}

/// Nothing tells what is here and what is not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_key_and_with_a_wrong_one_every_answer_is_the_same() {
    let locked = Locked::start(&format!("alice {ALICE}\n")).await;
    let http = locked.http();
    let mut said = None;
    let models = ask(http, "GET", "/v1/models", Some(ALICE), "").await.json();
    let name = models["data"][0]["id"].as_str().unwrap();
    let of_model = format!("/v1/models/{name}");
    for (method, path) in [
        ("POST", "/v1/completions"),
        ("POST", "/v1/chat/completions"),
        ("GET", "/v1/models"),
        ("GET", &of_model),
        ("GET", "/v1/models/none"),
        ("POST", "/v1/fgrams/explain"),
        ("POST", "/v1/fgrams/describe"),
        ("POST", "/tokenize"),
        ("POST", "/detokenize"),
        ("GET", "/tokenizer_info"),
        ("GET", "/version"),
        ("GET", "/openapi.json"),
        ("GET", "/nothing"),
        ("DELETE", "/v1/completions"),
        ("GET", "/health/"),
    ] {
        for key in [None, Some(""), Some("x"), Some(BOB), Some(&ALICE[1..])] {
            let answer = ask(http, method, path, key, "").await;
            assert_eq!(answer.status, 401, "{method} {path}");
            assert_eq!(answer.headers["www-authenticate"], "Bearer");
            assert_eq!(answer.headers["x-should-retry"], "false");
            let error = answer.error();
            assert_eq!(error["code"], "invalid_api_key");
            assert_eq!(error["type"], "invalid_request_error");
            assert!(!error.to_string().contains(name), "{error}");
            assert_eq!(*said.get_or_insert(answer.body.clone()), answer.body);
        }
    }
    for path in [
        "/health",
        "/metrics",
        "/",
        "/page/page.js",
        "/page/style.css",
    ] {
        assert_eq!(ask(http, "GET", path, None, "").await.status, 200, "{path}");
    }
    assert!(
        locked
            .service
            .metric("scone_decoder_unauthenticated_total")
            .await
            >= 65.0
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_of_other_origins_may_ask_for_a_key_and_send_one() {
    let locked = Locked::start(&format!("alice {ALICE}\n")).await;
    let from = ("origin", "https://elsewhere");
    let asks = ("access-control-request-method", "POST");
    let wants = ("access-control-request-headers", "authorization");
    let preflight = request("OPTIONS", "/v1/completions", &[from, asks, wants], "");
    let preflight = receive(send(locked.http(), &preflight).await).await;
    assert_eq!(preflight.status, 204);
    assert_eq!(
        preflight.headers["access-control-allow-headers"],
        "authorization"
    );
    let refused = request("POST", "/v1/completions", &[from], "{}");
    let refused = receive(send(locked.http(), &refused).await).await;
    assert_eq!(refused.status, 401);
    assert_eq!(
        refused.headers["access-control-allow-origin"],
        "https://elsewhere"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_grpc_everything_but_health_needs_a_key() {
    let locked = Locked::start(&format!("alice {ALICE}\n")).await;
    let mut client = locked.service.grpc().await;
    for key in [None, Some(BOB), Some("")] {
        let info = client
            .get_model_info(keyed(GetModelInfoRequest {}, key))
            .await;
        let refused = [
            info.map(drop).unwrap_err(),
            generate_over_grpc(&mut client, key)
                .await
                .map(drop)
                .unwrap_err(),
        ];
        for status in refused {
            assert_eq!(status.code(), Code::Unauthenticated, "{status}");
            assert!(status.message().contains("authorization"), "{status}");
        }
    }
    let info = client.get_model_info(keyed(GetModelInfoRequest {}, Some(ALICE)));
    assert!(!info.await.unwrap().into_inner().model.is_empty());
    assert!(generate_over_grpc(&mut client, Some(ALICE)).await.unwrap() > 0);
    let channel = Channel::from_shared(format!("http://{}", locked.service.grpc)).unwrap();
    let channel = channel.connect().await.unwrap();
    let mut health = HealthClient::new(channel.clone());
    health.check(HealthCheckRequest::default()).await.unwrap();
    // What is not there is refused as what is; with a key it is not there.
    let paths = ["/no.Service/Call", "/scone.decoder.v1.DecoderService/None"];
    for path in paths.map(|path| path.parse().unwrap()) {
        let mut raw = tonic::client::Grpc::new(channel.clone());
        raw.ready().await.unwrap();
        let codec = tonic_prost::ProstCodec::<(), ()>::default();
        let without = raw.unary(Request::new(()), path, codec).await.unwrap_err();
        assert_eq!(without.code(), Code::Unauthenticated);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_has_limits_of_its_own() {
    let keys = format!("alice {ALICE} max_concurrent=1 tokens_per_minute=20\nbob {BOB}\n");
    let locked = Locked::start(&keys).await;
    let two = locked.generate(ALICE, 4, 2).await;
    assert_eq!(two.status, 429);
    assert_eq!(two.error()["code"], "key_busy");
    assert_eq!(two.headers["retry-after"], "1");
    // A call that takes more than is left is not cut.
    assert_eq!(locked.generate(ALICE, 24, 1).await.status, 200);
    let spent = locked.generate(ALICE, 1, 1).await;
    assert_eq!(spent.status, 429);
    assert_eq!(spent.error()["code"], "rate_limit_exceeded");
    assert_eq!(spent.error()["type"], "rate_limit_error");
    // More than 24 were taken of 20, and one comes back every 3 seconds.
    let after: u32 = spent.headers["retry-after"].parse().unwrap();
    assert!((1..=120).contains(&after), "{after}");
    let mut client = locked.service.grpc().await;
    let status = generate_over_grpc(&mut client, Some(ALICE))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.metadata().get("grpc-retry-pushback-ms").is_some());
    assert_eq!(locked.generate(BOB, 4, 2).await.status, 200);
    let tokens = locked
        .service
        .metric("scone_decoder_key_tokens_total{key=\"alice\"}")
        .await;
    assert!(tokens > 24.0, "{tokens}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_change_while_the_service_runs() {
    let locked = Locked::start(&format!("alice {ALICE}\n")).await;
    let status = async |key| locked.generate(key, 1, 1).await.status;
    assert_eq!((status(ALICE).await, status(BOB).await), (200, 401));
    std::fs::write(&locked.file, format!("bob {BOB}\n")).unwrap();
    let changed = async { while status(BOB).await != 200 {} };
    timeout(PATIENCE, changed).await.unwrap();
    assert_eq!(status(ALICE).await, 401);
    // A file that cannot be used changes nothing; the next one does.
    std::fs::write(&locked.file, "bob short\n").unwrap();
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    assert_eq!(status(BOB).await, 200);
    std::fs::write(&locked.file, format!("alice {ALICE}\n")).unwrap();
    let changed = async { while status(ALICE).await != 200 {} };
    timeout(PATIENCE, changed).await.unwrap();
    assert_eq!(status(BOB).await, 401);
    let error: Value = locked.generate(BOB, 1, 1).await.error();
    assert_eq!(error["code"], "invalid_api_key");
}
