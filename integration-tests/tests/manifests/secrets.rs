//! Certificates and keys: files of Secrets that k8s/README.md says how to make, and nothing that still
//! speaks plainly to a port with TLS.

use std::{collections::BTreeMap, fs};

use k8s_openapi::api::core::v1::{Container, Probe, Volume};

use crate::{
    objects::Cluster,
    programs::{environment, program_of},
    render,
    workloads::{Workload, name},
};

/// Endings of variables whose values are files that nobody else should read, or that come with such.
const FILES: [&str; 4] = ["_TLS_CERT", "_TLS_KEY", "_TLS_CA", "_TLS_CLIENT_CA"];

pub(crate) fn problems(cluster: &Cluster) -> Vec<String> {
    let mut problems = Vec::new();
    let mut encrypted = BTreeMap::new();
    for workload in cluster.workloads() {
        for volume in workload.pod.volumes.iter().flatten() {
            if let Some(problem) = not_explained(volume) {
                problems.push(format!("{}: {problem}", workload.title()));
            }
        }
        for container in &workload.pod.containers {
            let image = container.image.as_deref().unwrap_or_default();
            let Some(program @ ("embed-service" | "decoder-service")) = program_of(image) else {
                continue;
            };
            let environment = environment(container, cluster, &mut Vec::new());
            let mut found = Vec::new();
            files(&workload, container, &environment, &mut found);
            let certificate = match program {
                "embed-service" => "SCONE_EMBED_SERVER_TLS_CERT",
                _ => "SCONE_TLS_CERT",
            };
            let speaks_tls = environment.contains_key(certificate);
            if speaks_tls {
                probes(container, &mut found);
            }
            ports(cluster, &workload, speaks_tls, &mut found);
            let asks_with_tls = environment.contains_key("SCONE_EMBED_TLS_CA");
            encrypted.insert(program, (speaks_tls, asks_with_tls));
            let title = workload.title();
            problems.extend(found.into_iter().map(|found| format!("{title}: {found}")));
        }
    }
    if let (Some((served, _)), Some((_, asked))) = (
        encrypted.get("embed-service"),
        encrypted.get("decoder-service"),
    ) && served != asked
    {
        problems.push(format!(
            "TLS between the tiers: embed-service {served}, decoder-service {asked}"
        ));
    }
    problems
}

fn not_explained(volume: &Volume) -> Option<String> {
    let secret = volume.secret.as_ref()?.secret_name.as_deref()?;
    let readme = fs::read_to_string(render::root().join("README.md")).unwrap();
    let told = readme.contains(&format!(" {secret} "));
    (!told).then(|| format!("k8s/README.md does not say how Secret {secret} is made"))
}

/// Files that variables name are in Secrets that are mounted.
fn files(
    workload: &Workload<'_>,
    container: &Container,
    environment: &BTreeMap<String, String>,
    problems: &mut Vec<String>,
) {
    let is_file =
        |name: &str| name == "SCONE_API_KEYS" || FILES.iter().any(|ending| name.ends_with(ending));
    let secret = |volume: &str| {
        let mut volumes = workload.pod.volumes.iter().flatten();
        volumes.any(|found| found.name == volume && found.secret.is_some())
    };
    for (variable, path) in environment.iter().filter(|(name, _)| is_file(name)) {
        let mut mounts = container.volume_mounts.iter().flatten();
        let there = mounts.any(|mount| {
            let below = path.strip_prefix(&mount.mount_path);
            // A file that is mounted by itself never changes.
            below.is_some_and(|file| file.starts_with('/'))
                && mount.sub_path.is_none()
                && secret(&mount.name)
        });
        if !there {
            problems.push(format!("{variable}: {path} is in no Secret"));
        }
    }
}

fn probes(container: &Container, problems: &mut Vec<String>) {
    let all = [
        &container.startup_probe,
        &container.readiness_probe,
        &container.liveness_probe,
    ];
    let plain = |probe: &Probe| {
        probe.http_get.as_ref().is_some_and(|get| {
            use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
            get.port == IntOrString::String("metrics".to_owned())
        })
    };
    if !all.into_iter().flatten().all(plain) {
        problems.push("a probe asks a port with TLS, not metrics".to_owned());
    }
}

/// Whoever goes by a Service's `appProtocol` is told the truth.
fn ports(cluster: &Cluster, workload: &Workload<'_>, tls: bool, problems: &mut Vec<String>) {
    for service in &cluster.services {
        let spec = service.spec.clone().unwrap_or_default();
        let chosen = crate::objects::contains(&workload.labels, &spec.selector.unwrap_or_default());
        let ports = spec.ports.into_iter().flatten().filter(|_| chosen);
        for port in ports {
            let number = port.name.as_deref().unwrap_or_default();
            let says_tls = port.app_protocol.as_deref() == Some("https");
            if number != "metrics" && says_tls != tls {
                let name = name(&service.metadata);
                problems.push(format!(
                    "port {number} of Service {name}: appProtocol and TLS ({tls}) differ"
                ));
            }
        }
    }
}
