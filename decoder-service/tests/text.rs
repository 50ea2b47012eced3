//! Detokenisation against decoding the whole text at once.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::sync::{Arc, LazyLock};

use common::{byte_level, byte_level_json, encode, fixture};
use decoder_service::{
    model::ServedModel,
    text::{Decode, Detokenizer, Pieces, TextStream, load_tokenizer},
};
use proptest::prelude::*;
use serde_json::json;
use tokenizers::Tokenizer;

/// A decoder of the sentencepiece kind: words carry their space in front, the first space of a text
/// is dropped, bytes stand for characters without a piece.
fn sentencepiece() -> Tokenizer {
    let pieces = ["<unk>", "▁", "▁the", "▁fox", "a", "né", "日本", "!", "▁▁"];
    let mut vocab: Vec<_> = pieces.iter().map(|p| json!([p, -1.0])).collect();
    vocab.extend((0..256).map(|b| json!([format!("<0x{b:02X}>"), -9.0])));
    json!({
        "version": "1.0",
        "added_tokens": [],
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}
        ]},
        "model": {"type": "Unigram", "unk_id": 0, "vocab": vocab, "byte_fallback": true}
    })
    .to_string()
    .parse()
    .unwrap()
}

const FIRST_BYTE: u32 = 9;

fn pieces(decoder: &Arc<dyn Decode>, context: &[u32], ids: &[u32]) -> Vec<String> {
    let mut detokenizer = Detokenizer::new(decoder.clone(), context);
    let mut pieces: Vec<String> = ids
        .iter()
        .map(|&id| detokenizer.push(id).unwrap())
        .collect();
    pieces.push(detokenizer.finish().unwrap());
    pieces
}

#[test]
fn a_character_split_over_tokens_comes_whole() {
    let decoder: Arc<dyn Decode> = Arc::new(byte_level());
    let ids: Vec<u32> = "a日b".bytes().map(u32::from).collect();
    assert_eq!(pieces(&decoder, &[], &ids), ["a", "", "", "日", "b", ""]);
}

/// What each token writes, put together.
fn said(tokenizer: Tokenizer, before: Option<u32>, ids: &[u32]) -> Vec<u8> {
    let pieces = Pieces::new(Arc::new(tokenizer));
    let mut last = before;
    let said = ids
        .iter()
        .flat_map(|&id| pieces.piece(last.replace(id), id));
    said.collect()
}

#[test]
fn what_tokens_write_alone_is_the_text_in_bytes() {
    let text = "the café is 日本 <|endoftext|> the\n";
    assert_eq!(said(byte_level(), None, &encode(text)), text.as_bytes());
    let cafe = encode("é");
    let pieces = Pieces::new(Arc::new(byte_level()));
    assert_eq!(
        pieces.piece(None, u32::from(b'\xE6')),
        [0xE6],
        "part of a character"
    );
    assert_eq!(pieces.piece(None, cafe[0]), "é".as_bytes());
    assert_eq!(pieces.piece(None, 100_000), [] as [u8; 0], "no such token");

    // " the" keeps its space behind another token only, bytes are themselves.
    let e_acute: Vec<u32> = "é".bytes().map(|b| FIRST_BYTE + u32::from(b)).collect();
    let ids = [&[2, 3, 7][..], &e_acute, &[2, 6]].concat();
    assert_eq!(
        said(sentencepiece(), None, &ids),
        "the fox!é the日本".as_bytes()
    );
    assert_eq!(said(sentencepiece(), Some(3), &[2]), b" the");
}

#[test]
fn an_unfinished_character_at_the_end_is_replaced() {
    let decoder: Arc<dyn Decode> = Arc::new(byte_level());
    let ids: Vec<u32> = "a日".bytes().map(u32::from).take(3).collect();
    assert_eq!(pieces(&decoder, &[], &ids), ["a", "", "", "\u{fffd}"]);
}

#[test]
fn the_first_generated_word_keeps_its_space() {
    let decoder: Arc<dyn Decode> = Arc::new(sentencepiece());
    assert_eq!(pieces(&decoder, &[2], &[3, 7]), [" fox", "!", ""]);
    assert_eq!(
        pieces(&decoder, &[], &[3, 7]),
        ["fox", "!", ""],
        "as the decoder has it"
    );
}

#[test]
fn broken_bytes_for_ever_are_not_held_for_ever() {
    let decoder: Arc<dyn Decode> = Arc::new(byte_level());
    let ids = vec![0x80; 200];
    let pieces = pieces(&decoder, &[], &ids);
    assert_eq!(pieces.concat(), "\u{fffd}".repeat(200));
    assert!(pieces[..30].concat().chars().count() > 10);
}

#[test]
fn special_tokens_for_ever_cost_nothing_and_show_nothing() {
    let decoder: Arc<dyn Decode> = Arc::new(byte_level());
    let mut ids = vec![common::EOS; 100];
    ids.extend(encode("ok"));
    assert_eq!(pieces(&decoder, &[], &ids).concat(), "ok");
}

#[test]
fn a_stop_string_over_several_tokens_ends_the_text() {
    let decoder: Arc<dyn Decode> = Arc::new(byte_level());
    let stops: Arc<[String]> = [" the é".to_owned(), "zz".to_owned()].into();
    let mut text = TextStream::new(decoder, &[], stops);
    let mut out = String::new();
    let ids = encode("over the école");
    let stopped = ids
        .iter()
        .find_map(|&id| text.push(id, true, &mut out).unwrap());
    assert_eq!(stopped.unwrap().index, 0);
    assert_eq!(out, "over");
}

#[test]
fn a_stop_string_before_min_tokens_does_not_count() {
    let decoder: Arc<dyn Decode> = Arc::new(byte_level());
    let mut text = TextStream::new(decoder, &[], ["b".to_owned()].into());
    let mut out = String::new();
    assert_eq!(text.push(b'b'.into(), false, &mut out).unwrap(), None);
    assert!(text.push(b'b'.into(), true, &mut out).unwrap().is_some());
    assert_eq!(out, "b");
}

fn any_bytes() -> impl Strategy<Value = Vec<u32>> {
    // Ends and middles of characters, stray and cut, between plain letters and merged tokens.
    let byte = prop_oneof![
        Just(b'a'.into()),
        Just(0xC3_u32),
        Just(0xA9),
        Just(0xE2),
        Just(0x82),
        Just(0xAC),
        Just(0xF0),
        Just(0x9F),
        Just(0x98),
        Just(0x80),
        Just(0xFF),
        256_u32..=260,
    ];
    prop::collection::vec(byte, 0..40)
}

fn sentencepiece_text() -> impl Strategy<Value = Vec<u32>> {
    let character = |c: char| {
        let mut bytes = [0; 4];
        let bytes = c.encode_utf8(&mut bytes).bytes();
        bytes.map(|b| FIRST_BYTE + u32::from(b)).collect::<Vec<_>>()
    };
    let piece = prop_oneof![
        (1_u32..FIRST_BYTE).prop_map(|id| vec![id]),
        prop::sample::select(vec!['é', '日', '😀', 'x']).prop_map(character),
    ];
    prop::collection::vec(piece, 0..20).prop_map(|pieces| pieces.concat())
}

/// The pieces put together are the whole text, and nothing certain is held back.
fn agrees_with_whole(decoder: &Arc<dyn Decode>, ids: &[u32], context: usize) {
    let (prompt, output) = ids.split_at(context.min(ids.len()));
    let before = decoder.decode(prompt).unwrap();
    let mut detokenizer = Detokenizer::new(decoder.clone(), prompt);
    let mut sent = String::new();
    for (i, &id) in output.iter().enumerate() {
        sent.push_str(&detokenizer.push(id).unwrap());
        let whole = decoder.decode(&ids[..prompt.len() + i + 1]).unwrap();
        if !whole.ends_with('\u{fffd}') && whole.starts_with(&before) {
            assert_eq!(format!("{before}{sent}"), whole, "held back");
        }
    }
    sent.push_str(&detokenizer.finish().unwrap());
    assert_eq!(format!("{before}{sent}"), decoder.decode(ids).unwrap());
}

/// Made once: reading a tokenizer costs more than a case.
static BYTE_LEVEL: LazyLock<Arc<dyn Decode>> = LazyLock::new(|| Arc::new(byte_level()));
static SENTENCEPIECE: LazyLock<Arc<dyn Decode>> = LazyLock::new(|| Arc::new(sentencepiece()));

proptest! {
    #![proptest_config(ProptestConfig::with_cases(80))]

    #[test]
    fn byte_level_pieces_are_the_whole_text(ids in any_bytes()) {
        agrees_with_whole(&BYTE_LEVEL, &ids, 0);
    }

    #[test]
    fn byte_level_pieces_after_a_prompt(text in "[a-c é日😀]{1,8}", ids in any_bytes()) {
        let prompt = encode(&text);
        let all = [prompt.clone(), ids].concat();
        agrees_with_whole(&BYTE_LEVEL, &all, prompt.len());
    }

    #[test]
    fn sentencepiece_pieces_are_the_whole_text(ids in sentencepiece_text()) {
        agrees_with_whole(&SENTENCEPIECE, &ids, 0);
    }

    #[test]
    fn sentencepiece_pieces_after_a_prompt(prompt in sentencepiece_text(), ids in sentencepiece_text()) {
        let all = [prompt.clone(), ids].concat();
        agrees_with_whole(&SENTENCEPIECE, &all, prompt.len());
    }
}

/// As training scripts store it: some merges left out at random, texts cut and filled up.
fn training_tokenizer() -> serde_json::Value {
    let mut stored = byte_level_json();
    stored["model"]["dropout"] = json!(0.5);
    stored["truncation"] = json!({
        "direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0
    });
    stored["padding"] = json!({
        "strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": null,
        "pad_id": 260, "pad_type_id": 0, "pad_token": "<|endoftext|>"
    });
    stored
}

#[test]
fn what_a_tokenizer_does_in_training_is_off_when_serving() {
    let text = "the other day there was a fox, then the fox met the other bear";
    let stored = training_tokenizer().to_string();
    let as_stored: Tokenizer = stored.parse().unwrap();
    let cut = as_stored.encode(text, true).unwrap();
    assert_eq!(cut.len(), 64, "it truncates to 8 and pads to 64 as stored");
    assert_eq!(cut.get_attention_mask().iter().sum::<u32>(), 8);

    let fixture = fixture();
    let path = fixture.model.join("tokenizer.json");
    std::fs::write(&path, stored).unwrap();
    let loaded = load_tokenizer(&path).unwrap();
    for _ in 0..6 {
        assert_eq!(loaded.encode(text, true).unwrap().get_ids(), encode(text));
    }
    assert!(load_tokenizer(&fixture.model.join("absent.json")).is_err());

    let served = ServedModel::load(&fixture.model, &candle_core::Device::Cpu).unwrap();
    assert_eq!(served.info.encode(text, true).unwrap(), encode(text));
}
