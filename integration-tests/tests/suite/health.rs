//! Health and reflection, as probes and tools see them.

use integration_tests::{
    client::{begin, channel, decoder, finish, greedy},
    cluster::Service,
    eventually::in_time,
    fixtures::fixtures,
};
use scone_proto::{
    decoder::v1::decoder_service_server::SERVICE_NAME as DECODER,
    embed::v1::embed_service_server::SERVICE_NAME as EMBED,
};
use tokio_stream::once;
use tonic::{Code, transport::Channel};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

fn of(service: &str) -> HealthCheckRequest {
    HealthCheckRequest {
        service: service.to_owned(),
    }
}

async fn assert_serving(channel: &Channel, service: &str) {
    let mut client = HealthClient::new(channel.clone());
    for name in ["", service] {
        let answer = client.check(of(name)).await.unwrap().into_inner();
        assert_eq!(answer.status(), ServingStatus::Serving, "{name:?}");
    }
    let live = client.check(of("liveness")).await.unwrap().into_inner();
    assert_eq!(live.status(), ServingStatus::Serving);
    let unknown = client.check(of("scone.unknown")).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
}

async fn reflected(channel: Channel) -> Vec<String> {
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut client = ServerReflectionClient::new(channel);
    let stream = client.server_reflection_info(once(request)).await.unwrap();
    let answer = stream.into_inner().message().await.unwrap().unwrap();
    let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else {
        panic!("{answer:?}");
    };
    list.service
        .into_iter()
        .map(|service| service.name)
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn both_services_say_serving_and_list_themselves() {
    let f = fixtures();
    let embed = Service::embed(&f.table, &[]);
    let decoder = Service::decoder_remote(&f.model, &embed.address, &[]);
    for (service, name) in [(&embed, EMBED), (&decoder, DECODER)] {
        let channel = channel(&service.address).await;
        assert_serving(&channel, name).await;
        let services = reflected(channel).await;
        assert!(services.iter().any(|s| s == name), "{services:?}");
        assert!(
            services.iter().any(|s| s == "grpc.health.v1.Health"),
            "{services:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_sees_not_serving_while_the_decoder_drains() {
    let mut service = Service::decoder(&[]);
    let mut health = HealthClient::new(channel(&service.address).await);
    let mut watch = health.watch(of(DECODER)).await.unwrap().into_inner();
    let now = in_time("health", watch.message()).await.unwrap().unwrap();
    assert_eq!(now.status(), ServingStatus::Serving);

    // A running generation holds the drain open.
    let client = decoder(&service.address).await;
    let (head, rest) = begin(&client, greedy("The harbour", 1900)).await;
    service.process.terminate();
    let then = in_time("health", watch.message()).await.unwrap().unwrap();
    assert_eq!(then.status(), ServingStatus::NotServing);
    // Not ready, but alive: nothing to restart.
    let live = health.check(of("liveness")).await.unwrap().into_inner();
    assert_eq!(live.status(), ServingStatus::Serving);
    finish(head, rest).await.unwrap();
    assert!(service.process.wait().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_sees_not_serving_while_the_embed_service_drains() {
    let mut service = Service::embed(&fixtures().table, &[]);
    let mut health = HealthClient::new(channel(&service.address).await);
    let mut watch = health.watch(of(EMBED)).await.unwrap().into_inner();
    let now = in_time("health", watch.message()).await.unwrap().unwrap();
    assert_eq!(now.status(), ServingStatus::Serving);
    service.process.terminate();
    let then = in_time("health", watch.message()).await.unwrap().unwrap();
    assert_eq!(then.status(), ServingStatus::NotServing);
    assert!(service.process.wait().success());
}
