//! Names that only running services tell: health services and metrics.

use std::{collections::BTreeSet, path::Path};

use integration_tests::{
    client::{channel, collect, decoder, greedy},
    cluster::{Service, http_get},
    eventually::eventually,
    fixtures::fixtures,
    folders::scratch,
};
use scone_test_support::certificates::Authority;
use tonic::Request;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::{
    monitoring::metrics_asked_for,
    objects::Cluster,
    programs::{asked, program_of},
    render,
};

const KEY: &str = "0123456789abcdef";

const METRICS: [&str; 2] = ["--metrics-listen", "127.0.0.1:0"];

/// Names as Prometheus stores them, by `# TYPE` of OpenMetrics.
fn stored_names(exposition: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for line in exposition
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "))
    {
        let (name, kind) = line.split_once(' ').unwrap();
        let suffixes: &[&str] = match kind.trim() {
            "counter" => &["_total"],
            // Prose calls a histogram by its bare name.
            "histogram" => &["_bucket", "_sum", "_count", ""],
            "info" => &["_info"],
            _ => &[""],
        };
        names.extend(suffixes.iter().map(|suffix| format!("{name}{suffix}")));
    }
    names
}

/// The services that the containers of the base ask their probes of.
fn probed(program: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut base = Cluster::default();
    for object in render::by_hand("base").unwrap() {
        base.add(object).unwrap();
    }
    for workload in base.workloads() {
        for container in &workload.pod.containers {
            if program_of(container.image.as_deref().unwrap()) == Some(program) {
                let probes = [
                    &container.startup_probe,
                    &container.readiness_probe,
                    &container.liveness_probe,
                ];
                names.extend(probes.into_iter().flatten().map(asked));
            }
        }
    }
    names
}

/// Both tiers with certificates, of which there are metrics.
fn over_tls() -> (Service, Service) {
    let (f, authority) = (fixtures(), Authority::new());
    let (files, client) = (authority.server(None), authority.client(Some(&authority)));
    let flag = |name: &str, path: &Path| format!("--{name}={}", path.display());
    let server = [flag("tls-cert", &files.cert), flag("tls-key", &files.key)];
    let server: Vec<&str> = server.iter().map(String::as_str).collect();
    let embed = Service::embed(&f.table, &[&METRICS[..], &server].concat());
    let (cert, key) = client.identity.unwrap();
    let shown = [
        flag("embed-tls-ca", &client.ca),
        flag("embed-tls-cert", &cert),
        flag("embed-tls-key", &key),
    ];
    let shown: Vec<&str> = shown.iter().map(String::as_str).collect();
    let address = format!("https://{}", embed.address);
    let flags = [&METRICS[..], &server, &shown].concat();
    let decoder = Service::decoder_remote(&f.model, &address, &flags);
    (embed, decoder)
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_and_alerts_name_what_the_services_have() {
    let f = fixtures();
    let embed = Service::embed(&f.table, &METRICS);
    let keys = scratch("keys").join("keys");
    std::fs::write(&keys, format!("somebody {KEY}\n")).unwrap();
    let keys = format!("--api-keys={}", keys.display());
    let flags = [&METRICS[..], &[&keys]].concat();
    let decoder_service = Service::decoder_remote(&f.model, &embed.address, &flags);

    for (service, program) in [
        (&embed, "embed-service"),
        (&decoder_service, "decoder-service"),
    ] {
        let names = probed(program);
        assert_eq!(names.len(), 2, "{names:?}");
        let mut health = HealthClient::new(channel(&service.address).await);
        for service in names {
            let answer = health.check(HealthCheckRequest { service }).await;
            assert!(answer.is_ok(), "{program}: {answer:?}");
        }
    }

    // Some figures are there after the first generation.
    let mut request = Request::new(greedy("The harbour", 4));
    let bearer = format!("Bearer {KEY}").parse().unwrap();
    request.metadata_mut().insert("authorization", bearer);
    let mut client = decoder(&decoder_service.address).await;
    let stream = client.generate(request).await.unwrap().into_inner();
    collect(stream).await.unwrap();
    // A table that is looked at again has an outcome, some time later.
    embed.process.hang_up();
    let unchanged = "scone_embed_table_switches_total{outcome=\"unchanged\"}";
    eventually("a look at the table", async || {
        embed.metric(unchanged).await
    })
    .await;
    let (embed_tls, decoder_tls) = over_tls();
    let mut names = BTreeSet::new();
    for service in [&embed, &decoder_service, &embed_tls, &decoder_tls] {
        let text = http_get(service.metrics.as_deref().unwrap(), "/metrics").await;
        names.extend(stored_names(&text));
    }
    let missing: Vec<_> = metrics_asked_for()
        .into_iter()
        .filter(|(_, name)| !names.contains(name))
        .collect();
    assert!(missing.is_empty(), "{missing:?} among {names:?}");
}
