//! Services, autoscalers, budgets: do they reach what they are for?

use k8s_openapi::{
    api::{autoscaling::v2::MetricSpec, core::v1::Container},
    apimachinery::pkg::util::intstr::IntOrString,
};

use crate::{
    objects::{Cluster, contains, selects},
    workloads::{Workload, name},
};

pub(crate) fn problems(cluster: &Cluster) -> Vec<String> {
    let mut problems = Vec::new();
    namespaces(cluster, &mut problems);
    services(cluster, &mut problems);
    stateful_sets(cluster, &mut problems);
    autoscalers(cluster, &mut problems);
    budgets(cluster, &mut problems);
    problems
}

fn namespaces(cluster: &Cluster, problems: &mut Vec<String>) {
    for (kind, metadata) in cluster.metadata() {
        if metadata.namespace.as_deref() != Some("scone") {
            problems.push(format!(
                "{kind} {}: not in the namespace scone",
                name(metadata)
            ));
        }
    }
}

fn services(cluster: &Cluster, problems: &mut Vec<String>) {
    let workloads = cluster.workloads();
    for service in &cluster.services {
        let title = format!("Service {}", name(&service.metadata));
        let spec = service.spec.clone().unwrap_or_default();
        let selector = spec.selector.unwrap_or_default();
        let chosen: Vec<_> = workloads
            .iter()
            .filter(|workload| contains(&workload.labels, &selector))
            .collect();
        if selector.is_empty() || chosen.len() != 1 {
            problems.push(format!(
                "{title}: chooses the pods of {} workloads, not of one",
                chosen.len()
            ));
            continue;
        }
        for port in spec.ports.iter().flatten() {
            let number = match &port.target_port {
                Some(IntOrString::String(name)) => chosen[0].port(name),
                other => {
                    problems.push(format!("{title}: targetPort {other:?} is no name"));
                    continue;
                }
            };
            if number != Some(port.port) {
                let target = &port.target_port;
                problems.push(format!(
                    "{title}: port {} leads to {target:?}, {number:?}",
                    port.port
                ));
            }
        }
    }
}

fn stateful_sets(cluster: &Cluster, problems: &mut Vec<String>) {
    for workload in cluster.workloads() {
        let Some(service) = workload.service else {
            continue;
        };
        let found = cluster
            .services
            .iter()
            .find(|found| name(&found.metadata) == service);
        let spec = found.and_then(|service| service.spec.as_ref());
        if spec.and_then(|spec| spec.cluster_ip.as_deref()) != Some("None") {
            let title = workload.title();
            problems.push(format!(
                "{title}: serviceName {service} is no headless Service"
            ));
        }
    }
}

fn autoscalers(cluster: &Cluster, problems: &mut Vec<String>) {
    let workloads = cluster.workloads();
    let mut targets = Vec::new();
    for autoscaler in &cluster.autoscalers {
        let title = format!("HorizontalPodAutoscaler {}", name(&autoscaler.metadata));
        let spec = autoscaler.spec.clone();
        let target = (
            spec.scale_target_ref.kind.clone(),
            spec.scale_target_ref.name.clone(),
        );
        let found = workloads
            .iter()
            .find(|workload| (workload.kind, workload.name) == (&target.0, target.1.as_str()));
        let Some(workload) = found else {
            problems.push(format!("{title}: there is no {} {}", target.0, target.1));
            continue;
        };
        if workload.replicas.is_some() {
            problems.push(format!("{title}: {} fixes its replicas", workload.title()));
        }
        if spec.min_replicas.unwrap_or(1) > spec.max_replicas {
            problems.push(format!("{title}: more replicas at least than at most"));
        }
        if spec.behavior.is_none() {
            problems.push(format!("{title}: no behavior"));
        }
        let metrics = spec.metrics.unwrap_or_default();
        if metrics.is_empty() {
            problems.push(format!("{title}: no metric"));
        }
        problems.extend(
            metrics
                .iter()
                .filter(|metric| !can_be_measured(metric, workload))
                .map(|metric| format!("{title}: {} cannot be measured", metric.type_)),
        );
        targets.push(target);
    }
    let all = targets.len();
    targets.sort();
    targets.dedup();
    if targets.len() < all {
        problems.push("two autoscalers have one target".to_owned());
    }
    for workload in workloads.iter().filter(|workload| workload.is_service()) {
        let target = (workload.kind.to_owned(), workload.name.to_owned());
        if workload.replicas.is_none() && !targets.contains(&target) {
            problems.push(format!(
                "{}: neither replicas nor an autoscaler",
                workload.title()
            ));
        }
    }
}

/// A share of a resource is one of what is requested: by every container of the pod, or by one.
fn can_be_measured(metric: &MetricSpec, workload: &Workload<'_>) -> bool {
    let requests = |container: &Container, resource: &str| {
        let requests = container
            .resources
            .as_ref()
            .and_then(|of| of.requests.as_ref());
        requests.is_some_and(|requests| requests.contains_key(resource))
    };
    let mut containers = workload.all_containers();
    if let Some(resource) = &metric.resource {
        return containers.all(|container| requests(container, &resource.name));
    }
    if let Some(resource) = &metric.container_resource {
        let found = containers.find(|container| container.name == resource.container);
        return found.is_some_and(|container| requests(container, &resource.name));
    }
    let pods = metric.pods.as_ref();
    pods.is_some_and(|pods| pods.target.average_value.is_some())
}

fn budgets(cluster: &Cluster, problems: &mut Vec<String>) {
    let services: Vec<_> = cluster.workloads();
    let services: Vec<_> = services
        .iter()
        .filter(|workload| workload.is_service())
        .collect();
    for workload in &services {
        let covering = cluster.budgets.iter().filter(|budget| {
            let spec = budget.spec.as_ref();
            let selector = spec.and_then(|spec| spec.selector.as_ref());
            selector.is_some_and(|selector| selects(selector, &workload.labels))
        });
        // With two, evictions are refused altogether.
        let count = covering.count();
        if count != 1 {
            problems.push(format!("{}: {count} disruption budgets", workload.title()));
        }
    }
}
