//! What a pod must be by itself.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Container;

use crate::{
    objects::{Cluster, selects},
    quantity,
    workloads::{Workload, name},
};

/// A ConfigMap that is made by hand, with a file from outside of k8s/ (k8s/README.md).
const MADE_BY_HAND: &str = "mine-spark-scripts";

/// Claims of the base, which jobs are applied beside.
const CLAIMS: [&str; 1] = ["models"];

pub(crate) fn problems(cluster: &Cluster) -> Vec<String> {
    let mut problems = Vec::new();
    for workload in cluster.workloads() {
        let mut found = Vec::new();
        labels(&workload, &mut found);
        security(&workload, &mut found);
        volumes(&workload, cluster, &mut found);
        for container in workload.all_containers() {
            let mut of = Vec::new();
            restrictions(container, &mut of);
            resources(container, &mut of);
            ports(container, &mut of);
            image(container, &mut of);
            found.extend(
                of.into_iter()
                    .map(|problem| format!("{}: {problem}", container.name)),
            );
        }
        problems.extend(
            found
                .into_iter()
                .map(|problem| format!("{}: {problem}", workload.title())),
        );
    }
    problems
}

fn labels(workload: &Workload<'_>, problems: &mut Vec<String>) {
    if let Some(selector) = workload.selector
        && !selects(selector, &workload.labels)
    {
        problems.push("its selector does not choose the labels of its own pods".to_owned());
    }
    for spread in workload.pod.topology_spread_constraints.iter().flatten() {
        if !spread
            .label_selector
            .as_ref()
            .is_some_and(|selector| selects(selector, &workload.labels))
        {
            let key = &spread.topology_key;
            problems.push(format!("spreads other pods than its own over {key}"));
        }
    }
    if workload.is_service() && workload.pod.topology_spread_constraints.is_none() {
        problems.push("no topology spread: all replicas may be on one node".to_owned());
    }
}

fn security(workload: &Workload<'_>, problems: &mut Vec<String>) {
    let pod = workload.pod;
    let mut must = |holds: bool, what: &str| {
        if !holds {
            problems.push(format!("{what} is missing"));
        }
    };
    let context = pod.security_context.clone().unwrap_or_default();
    must(
        pod.enable_service_links == Some(false),
        "enableServiceLinks: false",
    );
    must(
        pod.automount_service_account_token == Some(false),
        "automountServiceAccountToken: false",
    );
    must(context.run_as_non_root == Some(true), "runAsNonRoot: true");
    must(
        context.run_as_user.is_some_and(|user| user > 0),
        "a runAsUser above 0",
    );
    let seccomp = context.seccomp_profile.map(|profile| profile.type_);
    must(
        seccomp.as_deref() == Some("RuntimeDefault"),
        "seccompProfile RuntimeDefault",
    );
}

fn restrictions(container: &Container, problems: &mut Vec<String>) {
    let context = container.security_context.clone().unwrap_or_default();
    let mut must = |holds: bool, what: &str| {
        if !holds {
            problems.push(format!("{what} is missing"));
        }
    };
    must(
        context.read_only_root_filesystem == Some(true),
        "readOnlyRootFilesystem: true",
    );
    must(
        context.allow_privilege_escalation == Some(false),
        "allowPrivilegeEscalation: false",
    );
    let capabilities = context.capabilities.unwrap_or_default();
    must(
        capabilities.drop.is_some_and(|dropped| dropped == ["ALL"]),
        "drop: [ALL]",
    );
    must(
        capabilities.add.is_none(),
        "an empty list of added capabilities",
    );
    must(context.privileged != Some(true), "privileged: false");
}

fn volumes(workload: &Workload<'_>, cluster: &Cluster, problems: &mut Vec<String>) {
    let volumes = workload.pod.volumes.as_deref().unwrap_or_default();
    let mut names: BTreeSet<&str> = workload.claims.clone();
    for volume in volumes {
        if !names.insert(&volume.name) {
            problems.push(format!("volume {} is declared twice", volume.name));
        }
        if let Some(map) = &volume.config_map
            && map.name != MADE_BY_HAND
            && cluster.config_map(&map.name).is_none()
        {
            problems.push(format!("there is no ConfigMap {}", map.name));
        }
        if let Some(claim) = &volume.persistent_volume_claim {
            let claim = claim.claim_name.as_str();
            let here = cluster
                .claims
                .iter()
                .any(|found| name(&found.metadata) == claim);
            if !here && !CLAIMS.contains(&claim) {
                problems.push(format!("there is no claim {claim}"));
            }
        }
    }
    for container in workload.all_containers() {
        for mount in container.volume_mounts.iter().flatten() {
            if !names.contains(mount.name.as_str()) {
                problems.push(format!(
                    "{}: mounts {}, which is no volume",
                    container.name, mount.name
                ));
            }
        }
    }
}

fn resources(container: &Container, problems: &mut Vec<String>) {
    let resources = container.resources.clone().unwrap_or_default();
    let requests = resources.requests.unwrap_or_default();
    let limits = resources.limits.unwrap_or_default();
    for name in ["cpu", "memory"] {
        if !requests.contains_key(name) {
            problems.push(format!("no request of {name}"));
        }
    }
    if !limits.contains_key("memory") {
        problems.push("no limit of memory".to_owned());
    }
    for (name, amount) in requests.iter().chain(&limits) {
        if quantity::parse(&amount.0).is_none() {
            problems.push(format!("{name}: {} is no amount", amount.0));
        }
    }
    for (name, request) in &requests {
        let limit = limits.get(name).and_then(|limit| quantity::parse(&limit.0));
        let request = quantity::parse(&request.0);
        if limit.is_some() && request > limit {
            problems.push(format!("requests more {name} than its limit"));
        }
        // Devices cannot be shared: Kubernetes wants both to be equal.
        if name.contains('/') && request != limit {
            problems.push(format!("request and limit of {name} differ"));
        }
    }
}

fn ports(container: &Container, problems: &mut Vec<String>) {
    let mut names = BTreeSet::new();
    for port in container.ports.iter().flatten() {
        let name = port.name.as_deref().unwrap_or_default();
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if name.is_empty() || name.len() > 15 || !name.bytes().all(plain) {
            problems.push(format!("port name {name:?}: 1 to 15 of a-z, 0-9 and -"));
        }
        if !names.insert(name) {
            problems.push(format!("port {name} is declared twice"));
        }
    }
    let probes = [
        &container.startup_probe,
        &container.readiness_probe,
        &container.liveness_probe,
    ];
    for probe in probes.into_iter().flatten() {
        let declared = container.ports.iter().flatten();
        if let Some(grpc) = &probe.grpc
            && !declared
                .clone()
                .any(|port| port.container_port == grpc.port)
        {
            problems.push(format!(
                "a probe asks port {}, which is not declared",
                grpc.port
            ));
        }
        if let Some(http) = &probe.http_get {
            use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
            let there = declared.clone().any(|port| match &http.port {
                IntOrString::Int(number) => port.container_port == *number,
                IntOrString::String(name) => port.name.as_ref() == Some(name),
            });
            if !there {
                problems.push(format!(
                    "a probe asks port {:?}, which is not declared",
                    http.port
                ));
            }
        }
    }
}

/// A version is named, so that two nodes never run two things.
fn image(container: &Container, problems: &mut Vec<String>) {
    let image = container.image.as_deref().unwrap_or_default();
    match image
        .rsplit('/')
        .next()
        .and_then(|name| name.split_once(':'))
    {
        Some((_, tag)) if tag != "latest" => {}
        _ => problems.push(format!("image {image:?} has no tag")),
    }
}
