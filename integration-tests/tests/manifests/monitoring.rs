//! Alerts, dashboard, autoscaling rules: do they speak of metrics that there are?

use std::{collections::BTreeSet, fs};

use crate::{objects::Cluster, render::root};

/// Sections of the runbook, as the links to them are written.
fn sections() -> BTreeSet<String> {
    let path = root().join("../docs/operations.md");
    let text = fs::read_to_string(path).unwrap();
    let headings = text.lines().filter(|line| line.starts_with('#'));
    let link = |line: &str| {
        let words = line.trim_start_matches('#').trim().to_lowercase();
        words.replace(' ', "-")
    };
    headings.map(link).collect()
}

/// Names that the custom metrics API will have.
fn custom_metrics() -> BTreeSet<String> {
    let path = root().join("components/queue-autoscaler/prometheus-adapter.yaml");
    let text = fs::read_to_string(path).unwrap();
    let rules: serde_yaml_ng::Value = serde_yaml_ng::from_str(&text).unwrap();
    let rules = rules["rules"].as_sequence().unwrap();
    rules
        .iter()
        .map(|rule| rule["name"]["as"].as_str().unwrap().to_owned())
        .collect()
}

pub(crate) fn problems(cluster: &Cluster) -> Vec<String> {
    let mut problems = Vec::new();
    for monitor in &cluster.monitors {
        for endpoint in &monitor.spec.endpoints {
            let scraped = cluster.services.iter().filter(|service| {
                let labels = service.metadata.labels.clone().unwrap_or_default();
                let ports = service
                    .spec
                    .iter()
                    .flat_map(|spec| spec.ports.iter().flatten());
                crate::objects::selects(&monitor.spec.selector, &labels)
                    && ports
                        .clone()
                        .any(|port| port.name.as_ref() == Some(&endpoint.port))
            });
            if scraped.count() == 0 {
                problems.push(format!("{:?}: scrapes nothing", monitor.metadata.name));
            }
        }
    }
    let sections = if cluster.rules.is_empty() {
        BTreeSet::new()
    } else {
        sections()
    };
    let rules = cluster.rules.iter().flat_map(|object| &object.spec.groups);
    for rule in rules.flat_map(|group| &group.rules) {
        let alert = &rule.alert;
        let runbook = rule
            .annotations
            .get("runbook")
            .map(String::as_str)
            .unwrap_or_default();
        let section = runbook
            .strip_prefix("docs/operations.md#")
            .unwrap_or_default();
        if section != alert.to_lowercase() || !sections.contains(section) {
            problems.push(format!("{alert}: no section of its own in the runbook"));
        }
        if !rule.labels.contains_key("severity") || !rule.annotations.contains_key("summary") {
            problems.push(format!("{alert}: severity and summary are missing"));
        }
        if metrics_in(&rule.expr).is_empty() {
            problems.push(format!("{alert}: asks for no metric"));
        }
    }
    for autoscaler in &cluster.autoscalers {
        let metrics = autoscaler.spec.metrics.iter().flatten();
        for metric in metrics.filter_map(|metric| metric.pods.as_ref()) {
            if !custom_metrics().contains(&metric.metric.name) {
                problems.push(format!("{} is served by no rule", metric.metric.name));
            }
        }
    }
    problems
}

/// Names of metrics of ours in a text; a name that ends in `_` is a prefix, and none.
pub(crate) fn metrics_in(text: &str) -> BTreeSet<String> {
    let word = |c: char| !(c.is_ascii_alphanumeric() || c == '_');
    text.split(word)
        .filter(|name| name.starts_with("scone_embed_") || name.starts_with("scone_decoder_"))
        .filter(|name| !name.ends_with('_'))
        .map(str::to_owned)
        .collect()
}

/// Every metric that some file speaks of: the file, and the name.
pub(crate) fn metrics_asked_for() -> BTreeSet<(String, String)> {
    let root = root();
    let mut asked = BTreeSet::new();
    let served = custom_metrics();
    let files = [
        "components/monitoring/alerts.yaml",
        "components/monitoring/dashboard.json",
        "components/queue-autoscaler/prometheus-adapter.yaml",
        "../docs/operations.md",
        "../docs/limits.md",
    ];
    for file in files {
        let text = fs::read_to_string(root.join(file)).unwrap();
        let names = metrics_in(&text);
        assert!(!names.is_empty(), "{file}");
        // Names that the adapter gives are no names of ours.
        let own = names
            .into_iter()
            .filter(|name| name == "scone_decoder_queue_depth" || !served.contains(name));
        asked.extend(own.map(|name| (file.to_owned(), name)));
    }
    asked
}

/// Grafana takes JSON of any shape: what can be checked is that panels ask for something.
#[test]
fn every_panel_of_the_dashboard_asks_for_a_metric() {
    let path = root().join("components/monitoring/dashboard.json");
    let dashboard: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    assert!(panels.len() > 10);
    let mut ids = BTreeSet::new();
    for panel in panels {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{panel}");
        if panel["type"] == "row" {
            continue;
        }
        for target in panel["targets"].as_array().unwrap() {
            let expr = target["expr"].as_str().unwrap();
            assert!(!metrics_in(expr).is_empty(), "{}: {expr}", panel["title"]);
        }
    }
}
