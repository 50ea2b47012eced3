//! YAML documents as the objects they must be.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{
        apps::v1::{Deployment, StatefulSet},
        autoscaling::v2::HorizontalPodAutoscaler,
        batch::v1::Job,
        core::v1::{ConfigMap, Namespace, PersistentVolumeClaim, Pod, Service},
        networking::v1::NetworkPolicy,
        policy::v1::PodDisruptionBudget,
    },
    apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta},
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_yaml_ng::Value;

/// Everything that one kustomization makes.
#[derive(Debug, Default)]
pub(crate) struct Cluster {
    pub(crate) namespaces: Vec<Namespace>,
    pub(crate) config_maps: Vec<ConfigMap>,
    pub(crate) services: Vec<Service>,
    pub(crate) claims: Vec<PersistentVolumeClaim>,
    pub(crate) pods: Vec<Pod>,
    pub(crate) deployments: Vec<Deployment>,
    pub(crate) stateful_sets: Vec<StatefulSet>,
    pub(crate) jobs: Vec<Job>,
    pub(crate) autoscalers: Vec<HorizontalPodAutoscaler>,
    pub(crate) budgets: Vec<PodDisruptionBudget>,
    pub(crate) policies: Vec<NetworkPolicy>,
    pub(crate) monitors: Vec<ServiceMonitor>,
    pub(crate) rules: Vec<PrometheusRule>,
}

/// The part of Prometheus's operator's resource that is used here.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct ServiceMonitor {
    pub(crate) metadata: ObjectMeta,
    pub(crate) spec: ServiceMonitorSpec,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct ServiceMonitorSpec {
    pub(crate) selector: LabelSelector,
    pub(crate) endpoints: Vec<Endpoint>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Endpoint {
    pub(crate) port: String,
    #[expect(dead_code, reason = "only its name is checked")]
    pub(crate) interval: Option<String>,
}

/// The part of Prometheus's operator's resource that is used here.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct PrometheusRule {
    pub(crate) metadata: ObjectMeta,
    pub(crate) spec: PrometheusRuleSpec,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct PrometheusRuleSpec {
    pub(crate) groups: Vec<RuleGroup>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct RuleGroup {
    #[expect(dead_code, reason = "only its name is checked")]
    pub(crate) name: String,
    pub(crate) rules: Vec<Rule>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Rule {
    pub(crate) alert: String,
    pub(crate) expr: String,
    #[expect(dead_code, reason = "only its name is checked")]
    pub(crate) r#for: Option<String>,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) annotations: BTreeMap<String, String>,
}

/// Reads all documents of a text. Documents without content do not count.
pub(crate) fn documents(text: &str) -> Result<Vec<Value>, String> {
    serde_yaml_ng::Deserializer::from_str(text)
        .map(|document| {
            let mut value = Value::deserialize(document).map_err(|error| error.to_string())?;
            // Merge keys are YAML's, not ours to leave unread.
            value.apply_merge().map_err(|error| error.to_string())?;
            Ok(value)
        })
        .filter(|document| !matches!(document, Ok(Value::Null)))
        .collect()
}

impl Cluster {
    /// Adds an object.
    ///
    /// # Errors
    /// A kind that is not known here, a value of the wrong type, or fields that the kind does not have.
    pub(crate) fn add(&mut self, document: Value) -> Result<(), String> {
        let text = |key: &str| {
            document
                .get(key)
                .and_then(Value::as_str)
                .unwrap_or("")
                .to_owned()
        };
        let (version, kind) = (text("apiVersion"), text("kind"));
        match (version.as_str(), kind.as_str()) {
            ("v1", "Namespace") => self.namespaces.push(read(document)?),
            ("v1", "ConfigMap") => self.config_maps.push(read(document)?),
            ("v1", "Service") => self.services.push(read(document)?),
            ("v1", "PersistentVolumeClaim") => self.claims.push(read(document)?),
            ("v1", "Pod") => self.pods.push(read(document)?),
            ("apps/v1", "Deployment") => self.deployments.push(read(document)?),
            ("apps/v1", "StatefulSet") => self.stateful_sets.push(read(document)?),
            ("batch/v1", "Job") => self.jobs.push(read(document)?),
            ("autoscaling/v2", "HorizontalPodAutoscaler") => self.autoscalers.push(read(document)?),
            ("policy/v1", "PodDisruptionBudget") => self.budgets.push(read(document)?),
            ("networking.k8s.io/v1", "NetworkPolicy") => self.policies.push(read(document)?),
            ("monitoring.coreos.com/v1", "ServiceMonitor") => {
                self.monitors.push(read_resource(document)?)
            }
            ("monitoring.coreos.com/v1", "PrometheusRule") => {
                self.rules.push(read_resource(document)?)
            }
            _ => return Err(format!("{version} {kind} is no kind that is checked here")),
        }
        Ok(())
    }

    /// All objects of a text.
    ///
    /// # Errors
    /// The first that cannot be read, by its name.
    pub(crate) fn read(text: &str) -> Result<Self, String> {
        let mut cluster = Self::default();
        for document in documents(text)? {
            let name = document
                .get("metadata")
                .and_then(|metadata| metadata.get("name"));
            let kind = document.get("kind").cloned();
            let of = format!("{kind:?} {name:?}");
            cluster
                .add(document)
                .map_err(|error| format!("{of}: {error}"))?;
        }
        Ok(cluster)
    }

    /// The metadata of every object but the namespace, with its kind.
    pub(crate) fn metadata(&self) -> Vec<(&'static str, &ObjectMeta)> {
        let mut all = Vec::new();
        macro_rules! of {
            ($($kind:literal $field:ident),* $(,)?) => {
                $(all.extend(self.$field.iter().map(|object| ($kind, &object.metadata)));)*
            };
        }
        of!(
            "ConfigMap" config_maps,
            "Service" services,
            "PersistentVolumeClaim" claims,
            "Pod" pods,
            "Deployment" deployments,
            "StatefulSet" stateful_sets,
            "Job" jobs,
            "HorizontalPodAutoscaler" autoscalers,
            "PodDisruptionBudget" budgets,
            "NetworkPolicy" policies,
            "ServiceMonitor" monitors,
            "PrometheusRule" rules,
        );
        all
    }

    pub(crate) fn config_map(&self, name: &str) -> Option<&ConfigMap> {
        self.config_maps
            .iter()
            .find(|map| map.metadata.name.as_deref() == Some(name))
    }
}

/// One object, of which every field must be known.
fn read<T: DeserializeOwned>(document: Value) -> Result<T, String> {
    let mut unknown = Vec::new();
    let object = serde_ignored::deserialize(document, |path| unknown.push(path.to_string()))
        .map_err(|error: serde_yaml_ng::Error| error.to_string())?;
    match unknown.as_slice() {
        [] => Ok(object),
        _ => Err(format!("no such field: {}", unknown.join(", "))),
    }
}

/// One of the kinds that are declared here, which need no version and no kind.
fn read_resource<T: DeserializeOwned>(mut document: Value) -> Result<T, String> {
    if let Value::Mapping(fields) = &mut document {
        fields.remove("apiVersion");
        fields.remove("kind");
    }
    read(document)
}

/// Does a selector choose these labels? Only `matchLabels` is used here.
pub(crate) fn selects(selector: &LabelSelector, labels: &BTreeMap<String, String>) -> bool {
    assert!(
        selector.match_expressions.is_none(),
        "matchExpressions are not read here"
    );
    contains(labels, &selector.match_labels.clone().unwrap_or_default())
}

pub(crate) fn contains(
    labels: &BTreeMap<String, String>,
    wanted: &BTreeMap<String, String>,
) -> bool {
    wanted
        .iter()
        .all(|(key, value)| labels.get(key) == Some(value))
}
