//! The file of keys: a line is `NAME KEY [max_concurrent=N] [tokens_per_minute=N]`.

use std::{collections::HashSet, sync::Arc};

use super::{Key, KeyLimits, digest, usage::Usage};

/// Compared one by one with each call.
const MOST_KEYS: usize = 4096;
/// Fewer characters than of 16 random bytes in base64 would be guessed.
const LEAST_CHARS: usize = 16;
const MOST_CHARS: usize = 256;
const MOST_NAME_CHARS: usize = 64;

const FORM: &str = "expected NAME KEY [max_concurrent=N] [tokens_per_minute=N]";

/// Why a file of keys cannot be used. Says nothing of what is in it.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// It cannot be read.
    #[error("{0}: {source}", source = .0.source)]
    File(#[from] scone_files::Error),
    /// A line is wrong.
    #[error("{0}: {1}")]
    Content(String, String),
}

/// The keys of a file; those that were there before, by their names, go on counting.
pub(super) fn parse(text: &[u8], before: &[Arc<Key>]) -> Result<Vec<Arc<Key>>, String> {
    let text = std::str::from_utf8(text).map_err(|_| "it is not UTF-8".to_owned())?;
    let mut keys: Vec<Arc<Key>> = Vec::new();
    let (mut names, mut digests) = (HashSet::new(), HashSet::new());
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let at = |problem: &str| format!("line {number}: {problem}");
        let (name, secret, limits) = fields(line).map_err(at)?;
        let digest = digest(secret.as_bytes());
        if !names.insert(name) {
            return Err(at("the name of another key"));
        }
        if !digests.insert(digest) {
            return Err(at("the key of another name"));
        }
        if keys.len() == MOST_KEYS {
            return Err(at(&format!("more than {MOST_KEYS} keys")));
        }
        let known = before.iter().find(|key| &*key.name == name);
        keys.push(Arc::new(Key {
            name: name.into(),
            digest,
            limits,
            usage: known.map_or_else(|| Arc::new(Usage::new(&limits)), |key| key.usage.clone()),
        }));
    }
    match keys.is_empty() {
        true => Err("holds no key".to_owned()),
        false => Ok(keys),
    }
}

fn fields(line: &str) -> Result<(&str, &str, KeyLimits), &'static str> {
    let mut words = line.split_whitespace();
    let (name, secret) = words.next().zip(words.next()).ok_or(FORM)?;
    let in_name = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if name.len() > MOST_NAME_CHARS || !name.chars().all(in_name) {
        return Err("a name has at most 64 letters, digits, dots, hyphens and underscores");
    }
    let visible = secret.bytes().all(|byte| byte.is_ascii_graphic());
    if !visible || !(LEAST_CHARS..=MOST_CHARS).contains(&secret.len()) {
        return Err("a key has 16 to 256 characters of ASCII, without spaces");
    }
    let mut limits = KeyLimits::default();
    for word in words {
        let (limit, value) = word.split_once('=').ok_or(FORM)?;
        let field = match limit {
            "max_concurrent" => &mut limits.max_concurrent,
            "tokens_per_minute" => &mut limits.tokens_per_minute,
            _ => return Err(FORM),
        };
        let value = value.parse().ok().filter(|&value: &u32| value > 0);
        let value = value.ok_or("a limit is a whole number above 0")?;
        if field.replace(value).is_some() {
            return Err("a limit is there twice");
        }
    }
    Ok((name, secret, limits))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    const SECRET: &str = "0123456789abcdef";

    #[test]
    fn lines_have_a_name_a_key_and_limits() {
        let text = format!(
            "# ours\n\n a.b-c_1 {SECRET}\nd {SECRET}e tokens_per_minute=9 max_concurrent=2"
        );
        let keys = parse(text.as_bytes(), &[]).unwrap();
        let names: Vec<&str> = keys.iter().map(|key| key.name()).collect();
        assert_eq!(names, ["a.b-c_1", "d"]);
        assert_eq!(keys[0].limits, KeyLimits::default());
        assert_eq!(keys[1].limits.tokens_per_minute, Some(9));
        assert_eq!(keys[1].limits.max_concurrent, Some(2));
    }

    #[test]
    fn a_wrong_line_is_named_by_its_number_and_not_shown() {
        let long = "x".repeat(257);
        for (text, problem) in [
            ("# none\n".to_owned(), "holds no key"),
            ("\na".to_owned(), "line 2: expected NAME KEY"),
            (format!("a {SECRET} {SECRET}"), "line 1: expected NAME KEY"),
            (format!("a {SECRET} most=1"), "line 1: expected NAME KEY"),
            (format!("a {SECRET} max_concurrent=0"), "above 0"),
            (
                format!("a {SECRET} max_concurrent=1 max_concurrent=2"),
                "twice",
            ),
            (
                format!("a {SECRET}\na {SECRET}b"),
                "line 2: the name of another",
            ),
            (
                format!("a {SECRET}\nb {SECRET}"),
                "line 2: the key of another",
            ),
            (format!("{SECRET}: {SECRET}"), "a name has"),
            ("a short".to_owned(), "16 to 256"),
            (format!("a {long}"), "16 to 256"),
            ("a ключключключключ".to_owned(), "16 to 256"),
        ] {
            let said = parse(text.as_bytes(), &[]).unwrap_err();
            assert!(said.contains(problem), "{said}");
            assert!(!said.contains(SECRET), "{said}");
        }
        assert!(parse(b"\xff", &[]).unwrap_err().contains("UTF-8"));
    }
}
