//! Named sizes of the f-gram side: `preset: small-100k`.
//!
//! The word is the depth of A (its width is the main model's), the number S, the f-grams kept. A
//! preset goes before what the file says, and overrides on the command line go before the preset.

use anyhow::{Result, bail};
use serde_yaml_ng::Mapping;

use super::overrides;

/// Blocks of A.
const DEPTHS: [(&str, usize); 3] = [("small", 2), ("medium", 4), ("large", 8)];

/// f-grams kept.
const SIZES: [(&str, usize); 4] = [
    ("10k", 10_000),
    ("100k", 100_000),
    ("500k", 500_000),
    ("1m", 1_000_000),
];

/// Sets the keys of the preset that the file or an override names, if one does.
pub(super) fn apply(root: &mut Mapping, specs: &[String]) -> Result<()> {
    for spec in specs.iter().filter(|spec| spec.starts_with("preset=")) {
        overrides::apply(root, spec)?;
    }
    let Some(value) = root.get("preset").filter(|value| !value.is_null()) else {
        return Ok(());
    };
    let name = value.as_str().unwrap_or_default();
    let parts = name.split_once('-');
    let found = parts.and_then(|(depth, size)| Some((pick(&DEPTHS, depth)?, pick(&SIZES, size)?)));
    let Some((depth, size)) = found else {
        let shown = serde_json::to_string(value)?;
        bail!("preset {shown} is not one of {{small,medium,large}}-{{10k,100k,500k,1m}}");
    };
    overrides::apply(root, &format!("fgram_model.num_hidden_layers={depth}"))?;
    overrides::apply(root, &format!("max_fgrams={size}"))
}

fn pick(list: &[(&str, usize)], name: &str) -> Option<usize> {
    let found = list.iter().find(|(known, _)| *known == name);
    found.map(|(_, value)| *value)
}
