//! Flags, variables, ports and times of containers that run our programs, by what `--help` says.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use k8s_openapi::api::core::v1::{Container, Probe};

use crate::{
    help::{Help, help},
    objects::Cluster,
    quantity::seconds,
    workloads::{Workload, name},
};

/// Seconds that a pod stays in the lists of those who call it after it was told to stop.
const LEAST_PRE_STOP: i64 = 5;

/// The program of an image of ours: `scone/decoder-service-cuda:0.1.0` is decoder-service.
pub(crate) fn program_of(image: &str) -> Option<&'static str> {
    let name = image.strip_prefix("scone/")?.split(':').next()?;
    let name = name.strip_suffix("-cuda").unwrap_or(name);
    ["embed-service", "decoder-service", "trainer"]
        .into_iter()
        .find(|program| *program == name)
}

pub(crate) fn problems(cluster: &Cluster) -> Vec<String> {
    let mut problems = Vec::new();
    for workload in cluster.workloads() {
        for container in workload.all_containers() {
            let mut found = Vec::new();
            if let Some(program) = program_of(container.image.as_deref().unwrap_or_default()) {
                check(program, &workload, container, cluster, &mut found);
            }
            let title = format!("{}/{}", workload.title(), container.name);
            problems.extend(
                found
                    .into_iter()
                    .map(|problem| format!("{title}: {problem}")),
            );
        }
    }
    problems
}

fn check(
    program: &'static str,
    workload: &Workload<'_>,
    container: &Container,
    cluster: &Cluster,
    problems: &mut Vec<String>,
) {
    let args = container.args.as_deref().unwrap_or_default();
    let Some((command, flags)) = args.split_first() else {
        problems.push(format!("{program} is given no command"));
        return;
    };
    let Some(help) = help(program, command) else {
        problems.push(format!("{command} is no command of {program}"));
        return;
    };
    for flag in flags.iter().filter(|flag| flag.starts_with("--")) {
        let name = flag.split('=').next().unwrap_or_default();
        if !help.flags.contains(name) {
            problems.push(format!("{name} is no flag of {program} {command}"));
        }
    }
    let environment = environment(container, cluster, problems);
    // One ConfigMap may be for all commands of a pod.
    let helps: Vec<_> = commands(program, workload).collect();
    for variable in environment.keys().filter(|name| name.starts_with("SCONE_")) {
        if !helps.iter().any(|help| help.variables.contains(variable)) {
            problems.push(format!("{variable} is no variable of {program} {command}"));
        }
    }
    if command == "serve" {
        let prefix = if program == "embed-service" {
            "SCONE_EMBED_"
        } else {
            "SCONE_"
        };
        ports(prefix, container, &environment, problems);
        probes(container, problems);
        times(prefix, workload, container, &environment, problems);
        embed_addresses(&environment, cluster, problems);
    }
}

/// What a program says of each of its commands that a pod runs.
fn commands(program: &'static str, workload: &Workload<'_>) -> impl Iterator<Item = Arc<Help>> {
    workload
        .all_containers()
        .filter(move |container| {
            program_of(container.image.as_deref().unwrap_or_default()) == Some(program)
        })
        .filter_map(move |container| help(program, container.args.as_ref()?.first()?))
}

/// Values that a container's program sees; those that Kubernetes fills in are empty.
pub(crate) fn environment(
    container: &Container,
    cluster: &Cluster,
    problems: &mut Vec<String>,
) -> BTreeMap<String, String> {
    let mut environment = BTreeMap::new();
    for source in container.env_from.iter().flatten() {
        let map = source.config_map_ref.as_ref().map(|map| map.name.as_str());
        let found = map.and_then(|map| cluster.config_map(map));
        match found {
            Some(found) => environment.extend(found.data.clone().unwrap_or_default()),
            None => problems.push(format!("there is no ConfigMap {map:?}")),
        }
    }
    for variable in container.env.iter().flatten() {
        let value = variable.value.clone().unwrap_or_default();
        environment.insert(variable.name.clone(), value);
    }
    environment
}

fn ports(
    prefix: &str,
    container: &Container,
    environment: &BTreeMap<String, String>,
    problems: &mut Vec<String>,
) {
    let declared = container.ports.iter().flatten();
    let declared: BTreeMap<_, _> = declared
        .map(|port| {
            (
                port.name.as_deref().unwrap_or_default(),
                port.container_port,
            )
        })
        .collect();
    let variables = [
        ("grpc", "LISTEN"),
        ("http", "HTTP_LISTEN"),
        ("metrics", "METRICS_LISTEN"),
    ];
    for (port, variable) in variables {
        let variable = format!("{prefix}{variable}");
        let listens = environment.get(&variable);
        let number = listens.and_then(|address| address.rsplit_once(':')?.1.parse::<i32>().ok());
        if number.as_ref() != declared.get(port) {
            let declared = declared.get(port);
            problems.push(format!(
                "{variable} is {listens:?}, but port {port} is {declared:?}"
            ));
        }
        if listens.is_some_and(|address| !address.starts_with("0.0.0.0:")) {
            problems.push(format!("{variable} is not reached from outside of the pod"));
        }
    }
}

fn probes(container: &Container, problems: &mut Vec<String>) {
    let probes = [
        ("startup", &container.startup_probe),
        ("readiness", &container.readiness_probe),
        ("liveness", &container.liveness_probe),
    ];
    for (kind, probe) in probes {
        if probe.is_none() {
            problems.push(format!("no {kind} probe"));
        }
    }
    let [(_, startup), (_, readiness), (_, liveness)] = probes;
    let names = |probe: &Option<Probe>| probe.as_ref().map(asked);
    if names(startup) != names(readiness) || names(readiness) == names(liveness) {
        problems.push("startup and readiness ask for one thing, liveness for another".to_owned());
    }
}

/// The health service name, or the path, that a probe asks for.
pub(crate) fn asked(probe: &Probe) -> String {
    match (&probe.grpc, &probe.http_get) {
        (Some(grpc), _) => grpc.service.clone().unwrap_or_default(),
        (_, Some(http)) => http.path.clone().unwrap_or_default(),
        _ => String::new(),
    }
}

fn times(
    prefix: &str,
    workload: &Workload<'_>,
    container: &Container,
    environment: &BTreeMap<String, String>,
    problems: &mut Vec<String>,
) {
    let mut time = |variable: &str| {
        let value = environment.get(variable)?;
        let seconds = seconds(value);
        if seconds.is_none() {
            problems.push(format!("{variable}: {value} is not one number with a unit"));
        }
        seconds
    };
    let drain = time(&format!("{prefix}DRAIN_TIMEOUT"));
    let start = time("SCONE_EMBED_START_TIMEOUT");
    let lifecycle = container
        .lifecycle
        .as_ref()
        .and_then(|lifecycle| lifecycle.pre_stop.as_ref());
    let sleep = lifecycle
        .and_then(|stop| stop.sleep.as_ref())
        .map_or(0, |sleep| sleep.seconds);
    if sleep < LEAST_PRE_STOP {
        problems.push(format!(
            "preStop sleeps {sleep} s, {LEAST_PRE_STOP} at least"
        ));
    }
    let grace = workload.pod.termination_grace_period_seconds.unwrap_or(30);
    match drain {
        None => problems.push(format!("{prefix}DRAIN_TIMEOUT is not set")),
        Some(drain) if grace as f64 <= sleep as f64 + drain => problems.push(format!(
            "terminationGracePeriodSeconds {grace} is not above preStop {sleep} and the drain of {drain} s"
        )),
        Some(_) => {}
    }
    let budget = container.startup_probe.as_ref().map(|probe| {
        f64::from(probe.period_seconds.unwrap_or(10) * probe.failure_threshold.unwrap_or(3))
    });
    if let (Some(budget), Some(start)) = (budget, start)
        && budget <= start
    {
        problems.push(format!(
            "the startup probe allows {budget} s, the service waits {start} s"
        ));
    }
}

/// Headless Services alone resolve to every replica.
fn embed_addresses(
    environment: &BTreeMap<String, String>,
    cluster: &Cluster,
    problems: &mut Vec<String>,
) {
    let mut headless = BTreeSet::new();
    for service in &cluster.services {
        let spec = service.spec.clone().unwrap_or_default();
        if spec.cluster_ip.as_deref() == Some("None") {
            let ports = spec.ports.iter().flatten();
            let grpc = ports.filter(|port| port.name.as_deref() == Some("grpc"));
            headless.extend(grpc.map(|port| format!("{}:{}", name(&service.metadata), port.port)));
        }
    }
    let Some(addresses) = environment.get("SCONE_EMBED") else {
        return;
    };
    let named: BTreeSet<_> = addresses.split(',').map(str::to_owned).collect();
    // Every shard is asked, so every one must be named.
    if named != headless {
        problems.push(format!(
            "SCONE_EMBED names {named:?}, the headless Services are {headless:?}"
        ));
    }
}
