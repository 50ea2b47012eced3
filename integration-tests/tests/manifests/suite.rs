//! The tests over all manifests.

use std::{
    collections::BTreeSet,
    fs,
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
};

use serde_yaml_ng::Value;

use crate::{
    dockerfile, help, monitoring,
    objects::{Cluster, documents},
    pods, policies, programs, render, secrets, services,
};

/// Versions whose schemas kubernetes-validate is asked for: the oldest with sidecars by default and
/// sleeping preStop hooks that is still around, and the one that the types here are of.
const SCHEMAS: [&str; 2] = ["1.31", "1.36"];

pub(crate) fn all_problems(cluster: &Cluster) -> Vec<String> {
    let checks = [
        pods::problems,
        services::problems,
        policies::problems,
        programs::problems,
        dockerfile::problems,
        monitoring::problems,
        secrets::problems,
    ];
    checks.iter().flat_map(|check| check(cluster)).collect()
}

pub(crate) fn cluster_of(objects: Vec<Value>) -> Result<Cluster, String> {
    let mut cluster = Cluster::default();
    objects
        .into_iter()
        .try_for_each(|object| cluster.add(object))?;
    Ok(cluster)
}

#[test]
fn every_kustomization_fits_kubernetes_and_the_programs() {
    let folders = render::kustomizations();
    for wanted in [
        "base",
        "overlays/demo",
        "overlays/gpu",
        "overlays/sharded",
        "overlays/tls",
        "precompute",
    ] {
        assert!(
            folders.iter().any(|folder| folder == wanted),
            "{wanted} among {folders:?}"
        );
    }
    let mut report = Vec::new();
    for folder in folders.iter().filter(|folder| is_whole(folder)) {
        let cluster = match render::kubectl() {
            true => render::with_kubectl(folder).and_then(|text| Cluster::read(&text)),
            false => match render::by_hand(folder) {
                Some(objects) => cluster_of(objects),
                None => continue,
            },
        };
        match cluster {
            Ok(cluster) => {
                let problems = all_problems(&cluster);
                report.extend(
                    problems
                        .into_iter()
                        .map(|problem| format!("{folder}: {problem}")),
                );
            }
            Err(error) => report.push(format!("{folder}: {error}")),
        }
    }
    assert!(report.is_empty(), "\n{}", report.join("\n"));
}

/// Parts of others are checked with those: alone, a tier names Services that it does not bring.
fn is_whole(folder: &str) -> bool {
    !folder.starts_with("base/") && !folder.starts_with("overlays/sharded/")
}

/// The base is also read without kubectl, so that a machine without it checks the same.
#[test]
fn the_base_is_sound_as_it_is_read_without_kubectl() {
    let cluster = cluster_of(render::by_hand("base").unwrap()).unwrap();
    assert_eq!(all_problems(&cluster), [""; 0]);
    assert_eq!(cluster.workloads().len(), 2);
    if render::kubectl() {
        let rendered = Cluster::read(&render::with_kubectl("base").unwrap()).unwrap();
        let names = |cluster: &Cluster| -> BTreeSet<(&str, String)> {
            let metadata = cluster.metadata().into_iter();
            metadata
                .map(|(kind, metadata)| (kind, without_hash(kind, metadata.name.clone())))
                .collect()
        };
        assert_eq!(names(&rendered), names(&cluster));
    }
}

/// kustomize adds ten characters of hash to a generated name.
fn without_hash(kind: &str, name: Option<String>) -> String {
    let name = name.unwrap_or_default();
    match name.rsplit_once('-') {
        Some((plain, hash)) if kind == "ConfigMap" && hash.len() == 10 => plain.to_owned(),
        _ => name,
    }
}

/// Files that kustomizations may patch with are read, too, and so are those that nothing names.
#[test]
fn every_yaml_file_has_only_fields_that_there_are() {
    let mut objects = 0;
    for file in render::files(&render::root()) {
        let is_yaml = file
            .extension()
            .is_some_and(|extension| extension == "yaml");
        if !is_yaml || is_no_object(&file) {
            continue;
        }
        let text = fs::read_to_string(&file).unwrap();
        let documents = documents(&text).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        for document in documents {
            if let Some(operations) = document.as_sequence() {
                assert!(operations.iter().all(is_operation), "{}", file.display());
                continue;
            }
            let read = cluster_of(vec![document]);
            assert!(read.is_ok(), "{}: {:?}", file.display(), read.err());
            objects += 1;
        }
    }
    assert!(objects > 20, "{objects}");
}

/// Not for Kubernetes: kustomize's own, a training config, rules of an adapter.
fn is_no_object(file: &Path) -> bool {
    [
        "kustomization.yaml",
        "train/train.yaml",
        "queue-autoscaler/prometheus-adapter.yaml",
    ]
    .iter()
    .any(|name| file.ends_with(name))
}

/// One of a JSON patch.
fn is_operation(value: &Value) -> bool {
    let op = value["op"].as_str().unwrap_or_default();
    let path = value["path"].as_str().unwrap_or_default();
    path.starts_with('/')
        && (op == "remove" || ["add", "replace"].contains(&op) && value.get("value").is_some())
}

#[test]
fn strict_schemas_of_two_versions_accept_what_is_rendered() {
    let there = Command::new("kubernetes-validate")
        .arg("--version")
        .output();
    if !render::kubectl() || there.is_err() {
        eprintln!("kubectl or kubernetes-validate (PyPI) is not installed: no schemas");
        return;
    }
    for folder in render::kustomizations() {
        let text = render::with_kubectl(&folder).unwrap();
        // Those of Prometheus's operator are no part of Kubernetes' schemas.
        let known = documents(&text)
            .unwrap()
            .into_iter()
            .filter(|document| document["apiVersion"] != "monitoring.coreos.com/v1");
        let text: Vec<_> = known
            .map(|document| serde_yaml_ng::to_string(&document).unwrap())
            .collect();
        for version in SCHEMAS {
            let mut child = Command::new("kubernetes-validate")
                .args(["--strict", "--quiet", "-k", version, "-"])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            child
                .stdin
                .take()
                .unwrap()
                .write_all(text.join("---\n").as_bytes())
                .unwrap();
            let output = child.wait_with_output().unwrap();
            assert!(output.status.success(), "{folder}, {version}: {output:?}");
        }
    }
}

#[test]
fn the_documents_name_variables_that_there_are() {
    let word = |c: char| !(c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_');
    let commands = [
        ("embed-service", "serve"),
        ("embed-service", "fetch"),
        ("decoder-service", "serve"),
        ("trainer", "train"),
        ("trainer", "precompute"),
    ];
    let helps: Vec<_> = commands
        .iter()
        .map(|(p, c)| help::help(p, c).unwrap())
        .collect();
    for document in ["README.md", "../docs/operations.md"] {
        let text = fs::read_to_string(render::root().join(document)).unwrap();
        let named: BTreeSet<_> = text
            .split(word)
            .filter(|name| name.starts_with("SCONE_"))
            // What the build is told, not the program.
            .filter(|name| *name != "SCONE_REVISION")
            .collect();
        assert!(named.len() > 3, "{document}: {named:?}");
        for name in named {
            let known = helps.iter().any(|help| help.variables.contains(name));
            assert!(known, "{document}: {name}");
        }
    }
}
