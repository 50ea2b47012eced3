//! From folders in k8s/ to YAML.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::LazyLock,
};

use serde_yaml_ng::{Mapping, Value};

use crate::objects::documents;

/// The folder with the manifests.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../k8s")
        .canonicalize()
        .unwrap()
}

/// Is `kubectl` there? Said once when not.
pub(crate) fn kubectl() -> bool {
    static THERE: LazyLock<bool> = LazyLock::new(|| {
        let there = Command::new("kubectl")
            .args(["kustomize", "--help"])
            .output();
        let there = there.is_ok_and(|output| output.status.success());
        if !there {
            eprintln!("kubectl is not installed: overlays are not rendered, their files are read");
        }
        there
    });
    *THERE
}

/// All files below a folder, sorted.
pub(crate) fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(files(&path)),
            false => found.push(path),
        }
    }
    found.sort();
    found
}

/// Folders with a kustomization, relative to k8s/. Components are part of others.
pub(crate) fn kustomizations() -> Vec<String> {
    let root = root();
    files(&root)
        .into_iter()
        .filter(|file| file.ends_with("kustomization.yaml"))
        .filter(|file| kustomization(file.parent().unwrap())["kind"] == "Kustomization")
        .map(|file| {
            file.parent()
                .unwrap()
                .strip_prefix(&root)
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned()
        })
        .collect()
}

/// `kubectl kustomize FOLDER`.
///
/// # Errors
/// What it printed.
pub(crate) fn with_kubectl(folder: &str) -> Result<String, String> {
    let output = Command::new("kubectl")
        .arg("kustomize")
        .arg(root().join(folder))
        .output();
    let output = output.map_err(|error| error.to_string())?;
    match output.status.success() {
        true => Ok(String::from_utf8(output.stdout).unwrap()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

fn kustomization(dir: &Path) -> Value {
    let file = dir.join("kustomization.yaml");
    let text = fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    serde_yaml_ng::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", file.display()))
}

/// The objects of a kustomization that only collects: resources, generated ConfigMaps, tags of images,
/// a namespace. `None` when it does more, which is kubectl's to do.
pub(crate) fn by_hand(folder: &str) -> Option<Vec<Value>> {
    let mut maps = BTreeMap::new();
    let mut objects = collect(&root().join(folder), &mut maps)?;
    objects.extend(maps.into_iter().map(|(name, data)| {
        let mapping = |fields: Vec<(String, String)>| {
            let fields = fields
                .into_iter()
                .map(|(key, value)| (key.into(), value.into()));
            Value::Mapping(Mapping::from_iter(fields))
        };
        let named = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let mut map = mapping(vec![named("apiVersion", "v1"), named("kind", "ConfigMap")]);
        map["metadata"] = mapping(vec![named("name", &name), named("namespace", "scone")]);
        map["data"] = mapping(data.into_iter().collect());
        map
    }));
    Some(objects)
}

type Maps = BTreeMap<String, BTreeMap<String, String>>;

fn collect(dir: &Path, maps: &mut Maps) -> Option<Vec<Value>> {
    let kustomization = kustomization(dir);
    if ["patches", "components", "nameSuffix"]
        .iter()
        .any(|key| kustomization.get(key).is_some())
    {
        return None;
    }
    let mut objects = Vec::new();
    for resource in texts(&kustomization["resources"]) {
        let path = dir.join(&resource);
        match path.is_dir() {
            true => objects.extend(collect(&path, maps)?),
            false => objects.extend(documents(&fs::read_to_string(&path).unwrap()).unwrap()),
        }
    }
    generate(dir, &kustomization, maps);
    for object in &mut objects {
        if object["kind"] != "Namespace" {
            object["metadata"]["namespace"] = "scone".into();
        }
        for image in kustomization["images"].as_sequence().into_iter().flatten() {
            tag(
                object,
                image["name"].as_str().unwrap(),
                image["newTag"].as_str().unwrap(),
            );
        }
    }
    Some(objects)
}

fn generate(dir: &Path, kustomization: &Value, maps: &mut Maps) {
    for generator in kustomization["configMapGenerator"]
        .as_sequence()
        .into_iter()
        .flatten()
    {
        let name = generator["name"].as_str().unwrap().to_owned();
        let data = maps.entry(name).or_default();
        for file in texts(&generator["envs"]) {
            let text = fs::read_to_string(dir.join(file)).unwrap();
            let lines = text.lines().filter(|line| !line.starts_with('#'));
            data.extend(lines.filter_map(pair));
        }
        data.extend(
            texts(&generator["literals"])
                .iter()
                .filter_map(|literal| pair(literal)),
        );
        for file in texts(&generator["files"]) {
            let text = fs::read_to_string(dir.join(&file)).unwrap();
            data.insert(file, text);
        }
    }
}

fn pair(line: &str) -> Option<(String, String)> {
    let (name, value) = line.split_once('=')?;
    Some((name.to_owned(), value.to_owned()))
}

fn texts(value: &Value) -> Vec<String> {
    let entries = value.as_sequence().into_iter().flatten();
    entries
        .map(|entry| entry.as_str().unwrap().to_owned())
        .collect()
}

/// Gives every container of an image its tag.
fn tag(object: &mut Value, image: &str, tag: &str) {
    match object {
        Value::Mapping(fields) => {
            for (key, value) in fields.iter_mut() {
                match value.as_str() == Some(image) && key == "image" {
                    true => *value = format!("{image}:{tag}").into(),
                    false => self::tag(value, image, tag),
                }
            }
        }
        Value::Sequence(entries) => entries.iter_mut().for_each(|e| self::tag(e, image, tag)),
        _ => {}
    }
}
