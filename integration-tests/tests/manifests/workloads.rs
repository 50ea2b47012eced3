//! What makes pods, seen alike.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::{
    api::core::v1::{Container, PodSpec, PodTemplateSpec},
    apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta},
};

use crate::objects::Cluster;

/// Something that makes pods.
#[derive(Debug)]
pub(crate) struct Workload<'a> {
    pub(crate) kind: &'static str,
    pub(crate) name: &'a str,
    /// `None`: the autoscaler's, or not a matter of replicas.
    pub(crate) replicas: Option<i32>,
    pub(crate) selector: Option<&'a LabelSelector>,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) pod: &'a PodSpec,
    /// Volumes of the pods that are claims of a StatefulSet.
    pub(crate) claims: BTreeSet<&'a str>,
    /// The Service that names the pods of a StatefulSet.
    pub(crate) service: Option<&'a str>,
}

impl<'a> Workload<'a> {
    fn new(kind: &'static str, metadata: &'a ObjectMeta, template: &'a PodTemplateSpec) -> Self {
        let labels = template
            .metadata
            .as_ref()
            .and_then(|metadata| metadata.labels.clone());
        Self {
            kind,
            name: name(metadata),
            replicas: None,
            selector: None,
            labels: labels.unwrap_or_default(),
            pod: template.spec.as_ref().expect("a pod template has a spec"),
            claims: BTreeSet::new(),
            service: None,
        }
    }

    /// For messages.
    pub(crate) fn title(&self) -> String {
        format!("{} {}", self.kind, self.name)
    }

    /// Runs until it is told to stop, in replicas.
    pub(crate) fn is_service(&self) -> bool {
        matches!(self.kind, "Deployment" | "StatefulSet")
    }

    pub(crate) fn init_containers(&self) -> &'a [Container] {
        self.pod.init_containers.as_deref().unwrap_or_default()
    }

    /// Those of the start included.
    pub(crate) fn all_containers(&self) -> impl Iterator<Item = &'a Container> {
        self.init_containers().iter().chain(&self.pod.containers)
    }

    /// The number of a named port.
    pub(crate) fn port(&self, name: &str) -> Option<i32> {
        let ports = self
            .pod
            .containers
            .iter()
            .flat_map(|container| container.ports.iter().flatten());
        ports
            .filter(|port| port.name.as_deref() == Some(name))
            .map(|port| port.container_port)
            .next()
    }
}

pub(crate) fn name(metadata: &ObjectMeta) -> &str {
    metadata.name.as_deref().expect("objects have names")
}

impl Cluster {
    pub(crate) fn workloads(&self) -> Vec<Workload<'_>> {
        let mut all = Vec::new();
        for object in &self.deployments {
            let spec = object.spec.as_ref().expect("a Deployment has a spec");
            all.push(Workload {
                replicas: spec.replicas,
                selector: Some(&spec.selector),
                ..Workload::new("Deployment", &object.metadata, &spec.template)
            });
        }
        for object in &self.stateful_sets {
            let spec = object.spec.as_ref().expect("a StatefulSet has a spec");
            let claims = spec.volume_claim_templates.iter().flatten();
            all.push(Workload {
                replicas: spec.replicas,
                selector: Some(&spec.selector),
                claims: claims.map(|claim| name(&claim.metadata)).collect(),
                service: Some(spec.service_name.as_deref().unwrap_or("")),
                ..Workload::new("StatefulSet", &object.metadata, &spec.template)
            });
        }
        for object in &self.jobs {
            let spec = object.spec.as_ref().expect("a Job has a spec");
            all.push(Workload::new("Job", &object.metadata, &spec.template));
        }
        for object in &self.pods {
            all.push(Workload {
                kind: "Pod",
                name: name(&object.metadata),
                replicas: None,
                selector: None,
                labels: object.metadata.labels.clone().unwrap_or_default(),
                pod: object.spec.as_ref().expect("a Pod has a spec"),
                claims: BTreeSet::new(),
                service: None,
            });
        }
        all
    }
}
