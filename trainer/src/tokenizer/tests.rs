#![allow(clippy::unwrap_used, reason = "tests")]
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
