//! `key.sub=value` on the command line.

use anyhow::{Context as _, Result, ensure};
use serde_yaml_ng::{Mapping, Value};

/// Sets the value of `a.b=value`; the value is read as YAML, so `[x, y]`, `3e-3`, `null` work.
pub(crate) fn apply(root: &mut Mapping, spec: &str) -> Result<()> {
    let (path, text) = spec
        .split_once('=')
        .with_context(|| format!("override `{spec}` is not of the form key=value"))?;
    let mut value: Value = serde_yaml_ng::from_str(text)
        .with_context(|| format!("override `{path}`: value `{text}` is not YAML"))?;
    // YAML 1.1 wants a dot in a float: `3e-3` would be a string.
    if let Value::String(text) = &value
        && let Ok(number) = text.parse::<f64>()
        && number.is_finite()
    {
        value = Value::from(number);
    }
    let keys: Vec<&str> = path.trim().split('.').collect();
    ensure!(
        keys.iter().all(|key| !key.is_empty()),
        "override `{spec}` has an empty key"
    );
    let (last, parents) = keys.split_last().context("override without a key")?;
    let mut at = root;
    for key in parents {
        let entry = at
            .entry(Value::from(*key))
            .or_insert(Value::Mapping(Mapping::new()));
        if entry.is_null() {
            *entry = Value::Mapping(Mapping::new());
        }
        at = entry
            .as_mapping_mut()
            .with_context(|| format!("override `{path}`: `{key}` is not a section"))?;
    }
    at.insert(Value::from(*last), value);
    Ok(())
}
