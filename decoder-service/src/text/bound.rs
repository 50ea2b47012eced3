//! How long a text can be that still fits.

use serde_json::Value;
use tokenizers::{Tokenizer, pre_tokenizers::byte_level::ByteLevel};

/// Most bytes of text that one token of this tokenizer stands for; `None` where a token may stand for
/// any number of them, as with unknown words or a normaliser that takes text away.
///
/// Known of byte-level BPE, which gives each byte of a text to one token and drops none.
pub(crate) fn longest_token(tokenizer: &Tokenizer) -> Option<usize> {
    let json: Value = serde_json::from_str(&tokenizer.to_string(false).ok()?).ok()?;
    let keeps_all = json["model"]["type"] == "BPE"
        && json["normalizer"].is_null()
        && is_byte_level(&json["pre_tokenizer"])
        && json["added_tokens"].as_array()?.iter().all(takes_no_spaces);
    if !keeps_all {
        return None;
    }
    // Written with one or two bytes of UTF-8 for each byte of text.
    let vocabulary = tokenizer.get_vocab(true);
    // A byte without a token of its own would be dropped, or be unknown together with others.
    let every_byte = ByteLevel::alphabet()
        .iter()
        .all(|byte| vocabulary.contains_key(byte.encode_utf8(&mut [0; 4]) as &str));
    if !every_byte {
        return None;
    }
    vocabulary.keys().map(String::len).max()
}

/// Whether the spaces around an added token are no part of it.
fn takes_no_spaces(token: &Value) -> bool {
    token["lstrip"] == false && token["rstrip"] == false
}

/// Whether text is only cut, and its bytes become characters.
fn is_byte_level(pre_tokenizer: &Value) -> bool {
    let only_cuts = |part: &Value| match part["type"].as_str() {
        Some("ByteLevel" | "Digits") => true,
        Some("Split") => part["behavior"] != "Removed",
        _ => false,
    };
    match pre_tokenizer["pretokenizers"].as_array() {
        None => pre_tokenizer["type"] == "ByteLevel",
        Some(parts) => {
            parts.iter().all(only_cuts) && parts.iter().any(|part| part["type"] == "ByteLevel")
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn tokenizer(change: impl FnOnce(&mut Value)) -> Tokenizer {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/demo/tokenizer.json");
        let mut json = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        change(&mut json);
        json.to_string().parse().unwrap()
    }

    #[test]
    fn tokens_of_bytes_have_a_longest_one() {
        let demo = tokenizer(|_| ());
        let longest = longest_token(&demo).unwrap();
        assert!((13..64).contains(&longest), "{longest}");
        // As many bytes as there can be in a token of a text.
        let text = "international <|endoftext|> 0123456789 ".repeat(20);
        let ids = demo.encode_fast(text.as_str(), true).unwrap();
        assert!(text.len() <= ids.len() * longest);
        let split = serde_json::json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": "x"}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        ]});
        let cut = tokenizer(|json| json["pre_tokenizer"] = split.clone());
        assert_eq!(longest_token(&cut), Some(longest));
    }

    #[test]
    fn what_may_take_text_away_has_none() {
        let removes = serde_json::json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": "x"}, "behavior": "Removed", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        ]});
        let changes: [&dyn Fn(&mut Value); 4] = [
            &|json| {
                // A byte that no text in the vocabulary's merges has.
                json["model"]["vocab"]
                    .as_object_mut()
                    .unwrap()
                    .remove("\u{142}")
                    .unwrap();
            },
            &|json| json["normalizer"] = serde_json::json!({"type": "Lowercase"}),
            &|json| json["pre_tokenizer"] = removes.clone(),
            &|json| json["added_tokens"][0]["rstrip"] = true.into(),
        ];
        for change in changes {
            assert_eq!(longest_token(&tokenizer(change)), None);
        }
    }
}
