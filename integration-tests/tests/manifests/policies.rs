//! Who may talk to whom.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::{
    api::networking::v1::{NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort},
    apimachinery::pkg::util::intstr::IntOrString,
};

use crate::{
    objects::{Cluster, selects},
    workloads::{Workload, name},
};

/// Who may reach which port of which service: the label of a pod in this namespace, or a namespace.
const WANTED: [(&str, &str, &str); 5] = [
    ("embed-service", "grpc", "pod decoder-service"),
    ("embed-service", "metrics", "namespace monitoring"),
    ("decoder-service", "grpc", "namespace gateway"),
    ("decoder-service", "http", "namespace gateway"),
    ("decoder-service", "metrics", "namespace monitoring"),
];

/// Of a cluster that has policies at all: jobs are applied beside one that has.
pub(crate) fn problems(cluster: &Cluster) -> Vec<String> {
    if cluster.policies.is_empty() {
        return Vec::new();
    }
    let mut problems = Vec::new();
    let denies = |policy: &NetworkPolicy| {
        let spec = policy.spec.clone().unwrap_or_default();
        let types = spec.policy_types.unwrap_or_default();
        spec.pod_selector.unwrap_or_default().match_labels.is_none()
            && ["Ingress", "Egress"]
                .iter()
                .all(|kind| types.iter().any(|found| found == kind))
            && spec.ingress.is_none()
            && spec.egress.is_none()
    };
    if !cluster.policies.iter().any(denies) {
        problems.push("no policy denies everything by default".to_owned());
    }
    for workload in cluster
        .workloads()
        .iter()
        .filter(|workload| workload.is_service())
    {
        let label = &workload.labels["app.kubernetes.io/name"];
        let wanted: BTreeSet<_> = WANTED
            .iter()
            .filter(|(service, ..)| service == label)
            .map(|(_, port, peer)| (port.to_string(), peer.to_string()))
            .collect();
        let allowed = ingress(cluster, workload, &mut problems);
        if allowed != wanted {
            let title = workload.title();
            problems.push(format!(
                "{title}: may be reached by {allowed:?}, wanted {wanted:?}"
            ));
        }
    }
    problems
}

fn ingress(
    cluster: &Cluster,
    workload: &Workload<'_>,
    problems: &mut Vec<String>,
) -> BTreeSet<(String, String)> {
    let mut allowed = BTreeSet::new();
    for policy in &cluster.policies {
        let spec = policy.spec.clone().unwrap_or_default();
        if !selects(&spec.pod_selector.unwrap_or_default(), &workload.labels) {
            continue;
        }
        for rule in spec.ingress.iter().flatten() {
            let peers: Vec<_> = rule.from.iter().flatten().map(peer).collect();
            let ports: Vec<_> = rule.ports.iter().flatten().map(port).collect();
            // Absent means anybody, and any port.
            let peers = if peers.is_empty() {
                vec!["anybody".to_owned()]
            } else {
                peers
            };
            let ports = if ports.is_empty() {
                vec!["any port".to_owned()]
            } else {
                ports
            };
            for port in &ports {
                if workload.port(port).is_none() {
                    let policy = name(&policy.metadata);
                    problems.push(format!(
                        "NetworkPolicy {policy}: {} has no port {port}",
                        workload.title()
                    ));
                }
                allowed.extend(peers.iter().map(|peer| (port.clone(), peer.clone())));
            }
        }
    }
    allowed
}

fn peer(peer: &NetworkPolicyPeer) -> String {
    let label = |labels: Option<BTreeMap<String, String>>, key: &str| {
        labels
            .filter(|labels| labels.len() == 1)
            .and_then(|labels| labels.get(key).cloned())
    };
    match (&peer.pod_selector, &peer.namespace_selector, &peer.ip_block) {
        (Some(pods), None, None) => {
            let name = label(pods.match_labels.clone(), "app.kubernetes.io/name");
            format!("pod {}", name.unwrap_or_else(|| format!("{pods:?}")))
        }
        (None, Some(namespaces), None) => {
            let name = label(
                namespaces.match_labels.clone(),
                "kubernetes.io/metadata.name",
            );
            format!(
                "namespace {}",
                name.unwrap_or_else(|| format!("{namespaces:?}"))
            )
        }
        _ => format!("{peer:?}"),
    }
}

fn port(port: &NetworkPolicyPort) -> String {
    match &port.port {
        Some(IntOrString::String(name)) => name.clone(),
        other => format!("{other:?}"),
    }
}
