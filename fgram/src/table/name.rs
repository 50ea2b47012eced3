//! Names of tables that are served side by side.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use crate::error::{Error, Result};

/// Most tables that one process serves.
pub const MAX_TABLES: usize = 64;

/// Most characters of a name.
const MAX_CHARS: usize = 64;

/// In requests: no table at all.
const NONE: &str = "none";

/// The default table's name where one is written out.
const DEFAULT: &str = "default";

/// Which of the tables that are served side by side. The default one, which requests use that name
/// none, is the empty text and `default`; others have 1 to 64 letters, digits, `.`, `_` and `-`.
/// `none` is no table's name.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableName(Arc<str>);

impl TableName {
    /// Whether a request asks for no table by this text.
    pub fn is_none(text: &str) -> bool {
        text == NONE
    }

    /// Whether it is the default table.
    pub fn is_default(&self) -> bool {
        self.0.is_empty()
    }

    /// As in messages: empty for the default table.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(if self.is_default() { DEFAULT } else { &self.0 })
    }
}

impl FromStr for TableName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if text.is_empty() || text == DEFAULT {
            return Ok(Self::default());
        }
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        let spoken = text != NONE && text.chars().all(allowed) && !text.starts_with('.');
        if spoken && text.len() <= MAX_CHARS {
            return Ok(Self(text.into()));
        }
        let shown: String = text.chars().take(MAX_CHARS).collect();
        let problem = format!(
            "{shown:?} is no name of a table: 1 to {MAX_CHARS} letters, digits, '.', '_' and '-', \
             no '.' first, and not \"{NONE}\""
        );
        Err(Error::argument("table", problem))
    }
}

/// A table directory with the name it is served by: `NAME=DIR`, or `DIR` for the default table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedDir {
    /// Its name.
    pub name: TableName,
    /// Where it is.
    pub dir: PathBuf,
}

impl NamedDir {
    /// The default table.
    pub fn default_at(dir: impl Into<PathBuf>) -> Self {
        Self {
            name: TableName::default(),
            dir: dir.into(),
        }
    }
}

impl FromStr for NamedDir {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        // A path with an equals sign in a folder's name is still a path.
        let named = text.split_once('=').filter(|(name, _)| !name.contains('/'));
        let (name, dir) = match named {
            Some((name, dir)) => (name.parse()?, dir),
            None => (TableName::default(), text),
        };
        if dir.is_empty() {
            return Err(Error::argument("table", "names no directory"));
        }
        let dir = dir.into();
        Ok(Self { name, dir })
    }
}

impl fmt::Display for NamedDir {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.name.is_default() {
            write!(f, "{}=", self.name)?;
        }
        self.dir.display().fmt(f)
    }
}

/// The first name that is there twice, if one is.
pub fn repeated_name(dirs: &[NamedDir]) -> Option<&TableName> {
    let earlier = |(at, dir): (usize, &NamedDir)| dirs[..at].iter().any(|d| d.name == dir.name);
    let repeated = dirs
        .iter()
        .enumerate()
        .find(|&(at, dir)| earlier((at, dir)));
    repeated.map(|(_, dir)| &dir.name)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn names_are_short_and_plain_and_none_is_no_table() {
        let parse = |text: &str| text.parse::<TableName>();
        for text in ["news", "a", "v1.2_b-C", &"x".repeat(64)] {
            assert_eq!(parse(text).unwrap().as_str(), text);
        }
        assert_eq!(parse("").unwrap(), parse("default").unwrap());
        assert_eq!(TableName::default().to_string(), "default");
        for text in ["none", "a b", "a/b", ".hidden", "a:b", "é", &"x".repeat(65)] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains("no name of a table"), "{error}");
        }
    }

    #[test]
    fn a_directory_may_have_a_name_before_it() {
        let parse = |text: &str| text.parse::<NamedDir>();
        let named = parse("news=/t/a=b").unwrap();
        assert_eq!((named.name.as_str(), named.dir), ("news", "/t/a=b".into()));
        let plain = parse("/t/a=b").unwrap();
        assert!(plain.name.is_default());
        assert_eq!(plain.to_string(), "/t/a=b");
        assert_eq!(parse("x=y").unwrap().to_string(), "x=y");
        assert!(parse("news=").is_err());
        assert!(parse("none=/t").is_err());
        let dirs = ["/a", "x=/b", "default=/c"].map(|text| parse(text).unwrap());
        assert!(repeated_name(&dirs).unwrap().is_default());
        assert_eq!(repeated_name(&dirs[..2]), None);
    }
}
