//! A directory of tokens stands for the text it was made of in every command.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use support::{Fixture, bytes};
use trainer::corpus::{TokenFormat, tokenize_to};

#[test]
fn training_on_tokens_is_training_on_the_text() {
    let fixture = Fixture::new();
    let text = fixture.path("train.jsonl");
    for (format, name) in [
        (TokenFormat::Shards, "shards"),
        (TokenFormat::Parquet, "rows"),
    ] {
        let options = fixture.corpus_options();
        let inputs = std::slice::from_ref(&text);
        let out = fixture.path(name);
        tokenize_to(&out, format, inputs, &fixture.tokenizer, &options).unwrap();
        assert_eq!(fixture.corpus(name), fixture.corpus("train.jsonl"));
    }
    fixture.train("text", &[]).unwrap();
    let tokens = fixture.path("shards").display().to_string();
    let train = format!("data.train=[{tokens}]");
    fixture.train("tokens", &[&train]).unwrap();
    let weights = |run: &str| bytes(&fixture.path(run).join("model.safetensors"));
    assert!(weights("text") == weights("tokens"));
    // Twice the weight is twice the stream, and another model.
    let train = format!("data.train=[{{path: {tokens}, weight: 2}}]");
    fixture.train("twice", &[&train]).unwrap();
    assert!(weights("text") != weights("twice"));
}
