#![allow(clippy::unwrap_used, reason = "tests")]
use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};

use super::*;

const TEXT: &str = include_str!("../../tests/data/harbour.txt");

fn trained(vocab_size: usize) -> TextTokenizer {
    train(
        TEXT.split("\n\n").map(|text| Ok(text.to_owned())),
        vocab_size,
        2,
    )
    .unwrap()
}

#[test]
fn has_the_size_asked_for_and_the_separator_first() {
    let tokenizer = trained(400);
    assert_eq!(tokenizer.vocab_size(), 400);
    assert_eq!(tokenizer.token_id(END_OF_TEXT), Some(0));
}

#[test]
fn training_twice_gives_the_same_bytes() {
    let first = trained(700);
    for threads in [1, 4] {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        assert!(
            pool.install(|| trained(700)).json() == first.json(),
            "{threads} threads"
        );
    }
}

#[test]
fn text_survives_the_round_trip() {
    let tokenizer = trained(400);
    for text in [
        TEXT,
        "",
        " ",
        "  two  spaces\n\n\ttab\r\n",
        "naïve café 🙂 終わり",
        "\u{0}\u{7f}",
    ] {
        let ids = tokenizer.encode_document(text).unwrap();
        assert_eq!(tokenizer.decode(&ids).unwrap(), text);
    }
}

/// Text that is hard to cut: white space of all kinds, contractions, marks, numbers, other scripts.
fn awkward_texts() -> Vec<String> {
    let mut rng = StdRng::seed_from_u64(3);
    let parts = [
        " ",
        "  ",
        "\n",
        "\t",
        "\r\n",
        "\u{a0}",
        "\u{2003}",
        "\u{200b}",
        "\u{85}",
        "\u{1c}",
        "'",
        "'s",
        "'ll",
        "'S",
        "don't",
        "a",
        "Zwölf",
        "e\u{301}",
        "終わり",
        "ⓐ",
        "Ⅷ",
        "½",
        "42",
        "٣",
        "٫",
        "_",
        "--",
        "...",
        "🙂",
        "👩‍👩‍👧",
        "ª",
        "\u{e000}",
        "\0",
        "<|endoftext|>",
        "ा",
        "ก็",
    ];
    let mut texts: Vec<String> = (0..3000)
        .map(|_| {
            (0..rng.random_range(0..12))
                .map(|_| parts[rng.random_range(0..parts.len())])
                .collect()
        })
        .collect();
    texts.push((0..0x3000).filter_map(char::from_u32).collect());
    texts.push(
        (0x3000..0x11_0000)
            .filter_map(char::from_u32)
            .step_by(13)
            .flat_map(|c| [c, 'x', ' '])
            .collect(),
    );
    texts
}

#[test]
fn words_and_ids_are_those_of_the_tokenizers_crate() {
    let tokenizer = trained(400);
    assert!(tokenizer.caches.is_some());
    let byte_level = ByteLevel::new(false, false, true);
    for text in awkward_texts().iter().map(String::as_str).chain([TEXT]) {
        let mut expected = PreTokenizedString::from(text);
        byte_level.pre_tokenize(&mut expected).unwrap();
        let expected = expected.get_splits(OffsetReferential::Normalized, OffsetType::Byte);
        let expected: Vec<String> = expected
            .into_iter()
            .map(|(word, ..)| word.to_owned())
            .collect();
        let words: Vec<String> = words::split(text)
            .map(|word| words::as_byte_level(word).unwrap())
            .collect();
        assert_eq!(words, expected, "{text:?}");
        let ids = tokenizer
            .inner
            .encode_fast(text, false)
            .unwrap()
            .get_ids()
            .to_vec();
        assert_eq!(tokenizer.encode_document(text).unwrap(), ids, "{text:?}");
    }
}

#[test]
fn other_tokenizers_are_left_to_the_crate() {
    let json = String::from_utf8(trained(300).json).unwrap();
    let other = |from: &str, to: &str| {
        assert!(json.contains(from), "{from}");
        TextTokenizer::from_json(json.replacen(from, to, 1).into_bytes())
            .unwrap()
            .caches
            .is_none()
    };
    assert!(other(
        "\"add_prefix_space\": false",
        "\"add_prefix_space\": true"
    ));
    assert!(other(
        "\"normalizer\": null",
        "\"normalizer\": {\"type\": \"Lowercase\"}"
    ));
    assert!(other("\"special\": true", "\"special\": false"));
    assert!(!other("\"special\": true", "\"special\":true"));
}

/// `json` with settings that a file may keep from the training of its model.
fn with_training_settings(json: &[u8]) -> Vec<u8> {
    let mut json: serde_json::Value = serde_json::from_slice(json).unwrap();
    json["model"]["dropout"] = serde_json::json!(0.5);
    json["truncation"] = serde_json::json!({
        "max_length": 4, "strategy": "LongestFirst", "stride": 0, "direction": "Right",
    });
    json["padding"] = serde_json::json!({
        "strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": null,
        "pad_id": 0, "pad_type_id": 0, "pad_token": END_OF_TEXT,
    });
    serde_json::to_vec(&json).unwrap()
}

#[test]
fn dropout_truncation_and_padding_of_the_file_do_not_apply() {
    let plain = trained(400);
    let stored = with_training_settings(plain.json());
    // They do something where they are not switched off.
    let raw = Tokenizer::from_bytes(&stored).unwrap();
    let drawn = |text| raw.encode_fast(text, false).unwrap().get_ids().to_vec();
    assert_eq!(drawn(TEXT).len(), 64);
    assert!((0..50).any(|_| drawn("the harbour") != drawn("the harbour")));

    // Once with the word cache and once without, which `add_prefix_space` rules out.
    for prefix_space in [false, true] {
        let changed = |json: &[u8]| {
            let mut json: serde_json::Value = serde_json::from_slice(json).unwrap();
            json["pre_tokenizer"]["add_prefix_space"] = prefix_space.into();
            TextTokenizer::from_json(serde_json::to_vec(&json).unwrap()).unwrap()
        };
        let (plain, stored) = (changed(plain.json()), changed(&stored));
        assert_eq!(stored.caches.is_none(), prefix_space);
        let expected = plain.encode_document(TEXT).unwrap();
        for _ in 0..6 {
            assert_eq!(stored.encode_document(TEXT).unwrap(), expected);
        }
        assert_ne!(stored.sha256(), plain.sha256());
    }
    let tokenizer = TextTokenizer::from_json(stored.clone()).unwrap();
    assert_eq!(tokenizer.json(), stored);
    assert_eq!(
        scone_files::hex(&tokenizer.sha256()),
        scone_files::sha256_hex(&stored)
    );
}

#[test]
fn text_that_spells_the_separator_is_text() {
    let tokenizer = trained(300);
    let text = "before<|endoftext|>after";
    let ids = tokenizer.encode_document(text).unwrap();
    assert!(!ids.contains(&0), "{ids:?}");
    assert_eq!(tokenizer.decode(&ids).unwrap(), text);
}

#[test]
fn loads_what_it_wrote() {
    let tokenizer = trained(300);
    let again = TextTokenizer::from_json(tokenizer.json().to_vec()).unwrap();
    assert_eq!(again.sha256(), tokenizer.sha256());
    assert_eq!(
        again.encode_document(TEXT).unwrap(),
        tokenizer.encode_document(TEXT).unwrap()
    );
}

#[test]
fn a_vocabulary_smaller_than_the_alphabet_is_refused() {
    let error = train(std::iter::empty(), 256, 2).unwrap_err().to_string();
    assert!(error.contains("256") && error.contains("257"), "{error}");
}

#[test]
fn an_error_while_reading_stops_training() {
    let documents = [Ok("some text".to_owned()), Err(anyhow!("disk on fire"))];
    assert_eq!(
        train(documents.into_iter(), 300, 2)
            .unwrap_err()
            .to_string(),
        "disk on fire"
    );
}

#[test]
fn what_is_not_a_tokenizer_is_an_error() {
    for json in ["", "{}", "[1, 2"] {
        assert!(TextTokenizer::from_json(json.into()).is_err(), "{json}");
    }
}
