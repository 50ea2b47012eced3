//! A source of training text and its weight.

use std::path::PathBuf;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An entry of `data.train`: a path (file, directory, pattern, tokens), or `{path, weight}`.
#[derive(Debug, Clone, PartialEq)]
pub struct Source {
    /// Where the text is.
    pub path: PathBuf,
    /// How often an epoch has each document of it; 1 when only the path is given.
    pub weight: f64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Weighted {
    path: PathBuf,
    #[serde(default = "once")]
    weight: f64,
}

fn once() -> f64 {
    1.0
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "a path, or a map of `path` and `weight`")]
enum Written {
    Path(PathBuf),
    Weighted(Weighted),
}

impl<'de> Deserialize<'de> for Source {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Ok(match Written::deserialize(from)? {
            Written::Path(path) => Self { path, weight: 1.0 },
            Written::Weighted(Weighted { path, weight }) => Self { path, weight },
        })
    }
}

impl Serialize for Source {
    /// As it is usually written: a source without a weight is its path.
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        if self.weight == 1.0 {
            return self.path.serialize(to);
        }
        let path = self.path.clone();
        let weight = self.weight;
        Weighted { path, weight }.serialize(to)
    }
}
