//! The Dockerfile: what the manifests run, it builds; what the workspace has, it is given.

use std::{collections::BTreeSet, fs, path::Path};

use crate::{objects::Cluster, render};

fn repository(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Names of its stages.
fn stages() -> BTreeSet<String> {
    let text = repository("k8s/images/Dockerfile");
    let froms = text.lines().filter(|line| line.starts_with("FROM "));
    froms
        .filter_map(|line| Some(line.split_once(" AS ")?.1.to_owned()))
        .collect()
}

/// Images of ours that nothing builds.
pub(crate) fn problems(cluster: &Cluster) -> Vec<String> {
    let stages = stages();
    let mut problems = Vec::new();
    for workload in cluster.workloads() {
        for container in workload.all_containers() {
            let image = container.image.clone().unwrap_or_default();
            let ours = image
                .strip_prefix("scone/")
                .and_then(|image| image.split(':').next());
            if ours.is_some_and(|target| !stages.contains(target)) {
                problems.push(format!(
                    "{}: the Dockerfile has no target {image}",
                    workload.title()
                ));
            }
        }
    }
    problems
}

/// Members that no program is made of: of these the build needs no more than the manifest.
const NOT_SHIPPED: [&str; 4] = [
    "embed-client/simulation",
    "test-support",
    "integration-tests",
    "benchmarks",
];

/// Cargo wants the manifest of every member of the workspace, whatever it builds.
#[test]
fn the_dockerfile_is_given_every_member_of_the_workspace() {
    let manifest = repository("Cargo.toml");
    let members = manifest
        .split_once("members = [")
        .unwrap()
        .1
        .split_once(']')
        .unwrap()
        .0;
    let members: Vec<_> = members.split('"').skip(1).step_by(2).collect();
    assert!(members.contains(&"fgram"), "{members:?}");
    let dockerfile = repository("k8s/images/Dockerfile");
    let let_in = repository(".dockerignore");
    let copies = |line: &str| dockerfile.lines().any(|found| found == line);
    for member in members {
        assert!(
            copies(&format!("COPY {member}/Cargo.toml {member}/")),
            "{member}'s manifest"
        );
        let sources = copies(&format!("COPY {member} {member}"));
        assert_ne!(
            sources,
            NOT_SHIPPED.contains(&member),
            "sources of {member}"
        );
        let kept = let_in.lines().any(|line| line == format!("!{member}"));
        assert!(kept, ".dockerignore keeps {member} out");
    }
}

#[test]
fn shell_scripts_parse() {
    let scripts: Vec<_> = render::files(&render::root())
        .into_iter()
        .filter(|file| file.extension().is_some_and(|extension| extension == "sh"))
        .collect();
    assert!(!scripts.is_empty());
    for script in scripts {
        let status = std::process::Command::new("sh")
            .arg("-n")
            .arg(&script)
            .status();
        assert!(status.unwrap().success(), "{}", script.display());
    }
}
