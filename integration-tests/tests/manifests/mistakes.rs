//! Are mistakes told? The base, with one made in it at a time.

use serde_yaml_ng::Value;

use crate::{
    objects::documents,
    render,
    suite::{all_problems, cluster_of},
};

/// One mistake in the base, and what must be said about it.
struct Mistake {
    kind: &'static str,
    name: &'static str,
    /// Where, as a JSON pointer.
    at: &'static str,
    /// What stands there instead, as YAML; nothing takes the field away.
    instead: &'static str,
    told: &'static str,
}

const MISTAKES: &[Mistake] = &[
    mistake(
        "StatefulSet",
        "embed-service",
        "/spec/selector/matchLabels",
        "{a: b}",
        "its own pods",
    ),
    mistake(
        "StatefulSet",
        "embed-service",
        "/spec/serviceName",
        "other",
        "no headless Service",
    ),
    mistake(
        "StatefulSet",
        "embed-service",
        "/spec/replicas",
        "2",
        "fixes its replicas",
    ),
    mistake(
        "StatefulSet",
        "embed-service",
        "/spec/template/spec/enableServiceLinks",
        "",
        "enableServiceLinks",
    ),
    mistake(
        "StatefulSet",
        "embed-service",
        "/spec/template/spec/terminationGracePeriodSeconds",
        "25",
        "not above",
    ),
    mistake(
        "StatefulSet",
        "embed-service",
        "/spec/template/spec/volumes",
        "[]",
        "no volume",
    ),
    mistake(
        "StatefulSet",
        "embed-service",
        "/spec/template/spec/containers/0/volumeMounts/0/name",
        "x",
        "no volume",
    ),
    mistake(
        "StatefulSet",
        "embed-service",
        "/spec/template/spec/containers/0/args",
        "[serv]",
        "no command",
    ),
    mistake(
        "StatefulSet",
        "embed-service",
        "/spec/template/spec/containers/0/args",
        "[serve, --tabel]",
        "no flag",
    ),
    mistake(
        "StatefulSet",
        "embed-service",
        "/spec/template/spec/containers/0/ports/0/containerPort",
        "7301",
        "7301",
    ),
    mistake(
        "StatefulSet",
        "embed-service",
        "/spec/template/spec/containers/0/ports/1/name",
        "metrics-of-embedding",
        "1 to 15",
    ),
    mistake(
        "StatefulSet",
        "embed-service",
        "/spec/template/spec/containers/0/image",
        "scone/embed-service",
        "no tag",
    ),
    mistake(
        "StatefulSet",
        "embed-service",
        "/spec/template/spec/containers/0/image",
        "scone/embed:1",
        "no target",
    ),
    mistake(
        "StatefulSet",
        "embed-service",
        "/spec/template/spec/containers/0/resources/requests/memory",
        "8Gi",
        "more memory",
    ),
    mistake(
        "StatefulSet",
        "embed-service",
        "/spec/template/spec/containers/0/resources/requests/cpu",
        "",
        "no request of cpu",
    ),
    mistake(
        "StatefulSet",
        "embed-service",
        "/spec/template/spec/containers/0/livenessProbe/grpc/service",
        "scone.embed.v1.EmbedService",
        "liveness",
    ),
    mistake(
        "StatefulSet",
        "embed-service",
        "/spec/template/spec/containers/0/startupProbe/grpc/port",
        "7301",
        "not declared",
    ),
    mistake(
        "StatefulSet",
        "embed-service",
        "/spec/template/spec/containers/0/lifecycle",
        "",
        "preStop",
    ),
    mistake(
        "StatefulSet",
        "embed-service",
        "/spec/template/spec/containers/0/securityContext/readOnlyRootFilesystem",
        "false",
        "readOnly",
    ),
    mistake(
        "Deployment",
        "decoder-service",
        "/spec/template/spec/containers/0/envFrom/0/configMapRef/name",
        "x",
        "no ConfigMap",
    ),
    mistake(
        "Deployment",
        "decoder-service",
        "/spec/template/spec/containers/0/startupProbe/failureThreshold",
        "100",
        "startup probe",
    ),
    mistake(
        "Deployment",
        "decoder-service",
        "/spec/template/spec/volumes/0/persistentVolumeClaim/claimName",
        "x",
        "no claim",
    ),
    mistake(
        "ConfigMap",
        "decoder-service",
        "/data/SCONE_EMBED",
        "decoder-service:7400",
        "SCONE_EMBED names",
    ),
    mistake(
        "ConfigMap",
        "decoder-service",
        "/data/SCONE_TYPO",
        "'1'",
        "no variable",
    ),
    mistake(
        "Service",
        "decoder-service",
        "/spec/ports/0/targetPort",
        "grcp",
        "leads to",
    ),
    mistake(
        "Service",
        "decoder-service",
        "/spec/selector",
        "{a: b}",
        "of 0 workloads",
    ),
    mistake(
        "HorizontalPodAutoscaler",
        "embed-service",
        "/spec/scaleTargetRef/name",
        "x",
        "there is no",
    ),
    mistake(
        "HorizontalPodAutoscaler",
        "embed-service",
        "/spec/metrics/0/containerResource/container",
        "x",
        "cannot be measured",
    ),
    mistake(
        "HorizontalPodAutoscaler",
        "embed-service",
        "/spec/minReplicas",
        "9",
        "at least",
    ),
    mistake(
        "PodDisruptionBudget",
        "embed-service",
        "/spec/selector/matchLabels",
        "{a: b}",
        "0 disruption budgets",
    ),
    mistake(
        "NetworkPolicy",
        "embed-service",
        "/spec/ingress/0/from",
        "[]",
        "anybody",
    ),
    mistake(
        "NetworkPolicy",
        "decoder-service",
        "/spec/podSelector",
        "{}",
        "may be reached",
    ),
    mistake(
        "NetworkPolicy",
        "default-deny",
        "/spec/policyTypes",
        "[Ingress]",
        "by default",
    ),
    mistake(
        "PersistentVolumeClaim",
        "models",
        "/metadata/namespace",
        "default",
        "namespace scone",
    ),
];

/// The same in the overlay with TLS.
const MISTAKES_WITH_TLS: &[Mistake] = &[
    mistake(
        "Deployment",
        "decoder-service",
        "/spec/template/spec/containers/0/readinessProbe/httpGet/port",
        "http",
        "a port with TLS",
    ),
    mistake(
        "StatefulSet",
        "embed-service",
        "/spec/template/spec/containers/0/livenessProbe",
        "{grpc: {port: 7300, service: liveness}}",
        "a port with TLS",
    ),
    mistake(
        "Deployment",
        "decoder-service",
        "/spec/template/spec/containers/0/volumeMounts/0/mountPath",
        "/elsewhere",
        "in no Secret",
    ),
    mistake(
        "Deployment",
        "decoder-service",
        "/spec/template/spec/containers/0/volumeMounts/0/subPath",
        "tls.crt",
        "in no Secret",
    ),
    mistake(
        "StatefulSet",
        "embed-service",
        "/spec/template/spec/volumes/0",
        "{name: tls, emptyDir: {}}",
        "in no Secret",
    ),
    mistake(
        "StatefulSet",
        "embed-service",
        "/spec/template/spec/volumes/0/secret/secretName",
        "other",
        "does not say how",
    ),
    mistake(
        "Service",
        "decoder-service",
        "/spec/ports/0/appProtocol",
        "kubernetes.io/h2c",
        "appProtocol",
    ),
    mistake(
        "StatefulSet",
        "embed-service",
        "/spec/template/spec/containers/0/envFrom",
        "[]",
        "TLS between the tiers",
    ),
];

const fn mistake(
    kind: &'static str,
    name: &'static str,
    at: &'static str,
    instead: &'static str,
    told: &'static str,
) -> Mistake {
    Mistake {
        kind,
        name,
        at,
        instead,
        told,
    }
}

#[test]
fn each_mistake_is_told() {
    tell(&render::by_hand("base").unwrap(), MISTAKES);
    if render::kubectl() {
        let text = render::with_kubectl("overlays/tls").unwrap();
        tell(&documents(&text).unwrap(), MISTAKES_WITH_TLS);
    }
}

fn tell(sound: &[Value], mistakes: &[Mistake]) {
    for Mistake {
        kind,
        name,
        at,
        instead,
        told,
    } in mistakes
    {
        let mut objects = sound.to_vec();
        let object = objects
            .iter_mut()
            .find(|object| object["kind"] == *kind && object["metadata"]["name"] == *name)
            .unwrap_or_else(|| panic!("there is no {kind} {name}"));
        change(object, at, instead);
        let problems = all_problems(&cluster_of(objects).unwrap());
        assert!(
            problems.iter().any(|problem| problem.contains(told)),
            "{at} = {instead}: {problems:?}"
        );
    }
}

#[test]
fn fields_that_do_not_exist_and_values_of_the_wrong_type_are_told() {
    let read = |at: &str, instead: &str| {
        let mut objects = render::by_hand("base").unwrap();
        let object = objects
            .iter_mut()
            .find(|object| object["kind"] == "Deployment")
            .unwrap();
        change(object, at, instead);
        cluster_of(objects).unwrap_err()
    };
    let error = read("/spec/template/spec/containers/0/readynessProbe", "{}");
    assert!(error.contains("readynessProbe"), "{error}");
    let error = read("/spec/replicas", "two");
    assert!(error.contains("two"), "{error}");
    let error = read("/apiVersion", "apps/v1beta1");
    assert!(error.contains("apps/v1beta1"), "{error}");
}

/// Sets what is at a JSON pointer, or takes it away.
fn change(object: &mut Value, at: &str, instead: &str) {
    let (parent, last) = at.rsplit_once('/').unwrap();
    let parent = parent
        .split('/')
        .skip(1)
        .fold(object, |value, key| match value {
            Value::Sequence(entries) => &mut entries[key.parse::<usize>().unwrap()],
            other => &mut other[key],
        });
    match parent {
        Value::Sequence(entries) => {
            entries[last.parse::<usize>().unwrap()] = serde_yaml_ng::from_str(instead).unwrap();
        }
        Value::Mapping(fields) if instead.is_empty() => {
            assert!(fields.remove(last).is_some(), "{at} is not there");
        }
        Value::Mapping(fields) => {
            fields.insert(last.into(), serde_yaml_ng::from_str(instead).unwrap());
        }
        other => panic!("{at}: {other:?}"),
    }
}
