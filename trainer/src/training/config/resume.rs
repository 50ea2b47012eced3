//! What a resumed run may change.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use serde_json::Value;

use super::schema::TrainConfig;
use scone_model::DeviceChoice;

/// The keys in which two configs differ, as dotted paths with both values.
pub fn differences(old: &TrainConfig, new: &TrainConfig) -> Result<Vec<Difference>> {
    let (old, new) = (serde_json::to_value(old)?, serde_json::to_value(new)?);
    let mut found = Vec::new();
    compare("", &old, &new, &mut found);
    Ok(found)
}

/// One key of [`differences`].
#[derive(Debug, Clone, PartialEq)]
pub struct Difference {
    /// Dotted path.
    pub key: String,
    /// Value in the old config, as JSON.
    pub old: String,
    /// Value in the new config, as JSON.
    pub new: String,
}

fn compare(path: &str, old: &Value, new: &Value, found: &mut Vec<Difference>) {
    if let (Value::Object(a), Value::Object(b)) = (old, new) {
        let keys: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
        for key in keys {
            let inner = if path.is_empty() {
                key.clone()
            } else {
                format!("{path}.{key}")
            };
            compare(
                &inner,
                a.get(key).unwrap_or(&Value::Null),
                b.get(key).unwrap_or(&Value::Null),
                found,
            );
        }
    } else if old != new {
        found.push(Difference {
            key: path.to_owned(),
            old: old.to_string(),
            new: new.to_string(),
        });
    }
}

/// Keys that may change between a checkpoint and its continuation: they do not enter the weights.
const FREE_KEYS: [&str; 11] = [
    "training.recompute",
    "data.valid",
    "training.patience",
    "training.keep_best",
    "training.max_skips",
    "training.log_every",
    "training.eval_every",
    "training.eval_tokens",
    "training.checkpoint_every",
    "training.threads",
    "output.dtype",
];

/// Whether sums come out the same on both: which card of several it is does not matter.
fn same_kind(old: DeviceChoice, new: DeviceChoice) -> bool {
    matches!(
        (old, new),
        (DeviceChoice::Cuda(_), DeviceChoice::Cuda(_)) | (DeviceChoice::Cpu, DeviceChoice::Cpu)
    )
}

/// Refuses to continue a run of `old` as `new` when they would not give the same weights.
///
/// # Errors
/// Names every key that differs.
pub fn check_resumable(old: &TrainConfig, new: &TrainConfig) -> Result<()> {
    let different: Vec<String> = differences(old, new)?
        .into_iter()
        .filter(|d| !FREE_KEYS.contains(&d.key.as_str()))
        .filter(|d| d.key != "device" || !same_kind(old.device, new.device))
        .map(|d| format!("{} was {} and is now {}", d.key, d.old, d.new))
        .collect();
    ensure!(
        different.is_empty(),
        "cannot continue the run in this directory with another config: {}; use the old value, or \
         another --out directory",
        different.join("; ")
    );
    Ok(())
}
