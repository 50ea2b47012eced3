//! A grafted model is the base model, whatever its table is used for.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::cell::Cell;
use std::path::Path;

use candle_core::{Device, IndexOp as _, Tensor};
use scone_fgram::NGram;
use scone_fgram::set::FgramSet;
use scone_fgram::table::{LookupResult, Span};
use scone_fgram::{RowDtype, StoreKind, Table, TableOptions};
use scone_model::checkpoint::{load_model_dir, save_model_dir};
use scone_model::config::{Gpt2Config, LlamaConfig, LlamaVariant};
use scone_model::{Decoder, ModelConfig, init_parameters};
use support::Fixture;
use trainer::graft::{Options, graft};
use trainer::precompute::{self, precompute};

fn bases(vocab: usize) -> Vec<ModelConfig> {
    let mut llama = LlamaConfig::new(vocab, 32, 2, 4, 48, 64);
    llama.num_key_value_heads = Some(2);
    llama.torch_dtype = "bfloat16".into();
    llama.initializer_range = 0.2;
    let mut qwen3 = llama.clone();
    qwen3.model_type = LlamaVariant::Qwen3;
    (qwen3.num_attention_heads, qwen3.head_dim) = (6, Some(10));
    qwen3.torch_dtype = "float32".into();
    let mut gpt2 = Gpt2Config::new(vocab, 32, 2, 4, 64);
    gpt2.initializer_range = 0.2;
    [llama, qwen3]
        .map(ModelConfig::Llama)
        .into_iter()
        .chain([ModelConfig::Gpt2(gpt2)])
        .collect()
}

fn save_base(fixture: &Fixture, dir: &Path, config: &ModelConfig) {
    save_model_dir(dir, config, &init_parameters(config, 9).unwrap(), None).unwrap();
    std::fs::copy(fixture.path("tokenizer.json"), dir.join("tokenizer.json")).unwrap();
    std::fs::write(dir.join("generation_config.json"), r#"{"top_k": 7}"#).unwrap();
}

fn f32_table() -> precompute::Options {
    precompute::Options {
        store: StoreKind::Mapped,
        dtype: RowDtype::F32,
        ..precompute::Options::default()
    }
}

/// Greedy continuation of a prompt; `embed` gives the inputs of a text, `(T, D)`.
fn greedy(decoder: &Decoder, prompt: &[u32], embed: impl Fn(&[u32]) -> Tensor) -> Vec<u32> {
    let mut ids = prompt.to_vec();
    for _ in 0..20 {
        let inputs = embed(&ids).unsqueeze(0).unwrap();
        let hidden = decoder.forward(&inputs).unwrap();
        let last = hidden.i((.., ids.len() - 1)).unwrap();
        let logits = decoder.logits(&last).unwrap().flatten_all().unwrap();
        ids.push(logits.argmax(0).unwrap().to_scalar::<u32>().unwrap());
    }
    ids
}

#[test]
fn a_graft_has_the_rows_and_the_tokens_of_its_base() {
    let fixture = Fixture::new();
    let vocab = fixture.tokenizer.vocab_size() as usize;
    for (i, config) in bases(vocab).into_iter().enumerate() {
        let (base, out) = (
            fixture.path(&format!("base-{i}")),
            fixture.path(&format!("graft-{i}")),
        );
        save_base(&fixture, &base, &config);
        let options = Options { layers: 2, seed: 1 };
        let hash = graft(&base, &fixture.path("fgrams.bin"), &out, options).unwrap();

        for name in [
            "model.safetensors",
            "generation_config.json",
            "tokenizer.json",
        ] {
            assert_eq!(
                support::bytes(&base.join(name)),
                support::bytes(&out.join(name)),
                "{name}"
            );
        }
        let before = load_model_dir(&base, &Device::Cpu).unwrap();
        let after = load_model_dir(&out, &Device::Cpu).unwrap();
        assert_eq!(after.config, before.config);
        assert_eq!(after.model_hash, Some(hash));

        let table_dir = fixture.path(&format!("table-{i}"));
        precompute(&out, &table_dir, &Device::Cpu, &f32_table()).unwrap();
        let table = Table::open(&table_dir, &TableOptions::default()).unwrap();
        let set = FgramSet::read(out.join("fgrams.bin")).unwrap();
        check_rows(&before.decoder, &table, &set);
        check_tokens(&fixture, &before.decoder, &after.decoder, &table);
    }
}

/// Every row is the token embedding of the f-gram's last token, bit for bit.
fn check_rows(decoder: &Decoder, table: &Table, set: &FgramSet) {
    let tokens: Vec<Vec<f32>> = decoder.token_embedding().to_vec2().unwrap();
    assert!(!set.is_empty());
    for fgram in set.iter() {
        let span = Span {
            context: fgram.ids.len() as u32 - 1,
            answers: 1,
        };
        let mut found = LookupResult::default();
        table.lookup(fgram.ids, &[span], &mut found).unwrap();
        assert_eq!(found.row_index, [0]);
        let last = &tokens[*fgram.ids.last().unwrap() as usize];
        let expected: Vec<u8> = last.iter().flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!(found.rows, expected);
    }
}

/// Base with token embeddings, graft with rows of the table: the same greedy tokens.
fn check_tokens(fixture: &Fixture, base: &Decoder, graft: &Decoder, table: &Table) {
    let prompt = fixture
        .tokenizer
        .encode_document("the river runs after a blue kite in the rain. our cook hears")
        .unwrap();
    let plain = greedy(base, &prompt, |ids| {
        base.input_embeddings(None, ids).unwrap()
    });
    let matched = Cell::new(0);
    let grafted = greedy(graft, &prompt, |ids| {
        let found = look_up(table, ids);
        matched.set(matched.get() + found.row_index.len());
        let rows = found.rows.as_chunks::<4>().0;
        let rows: Vec<f32> = rows.iter().map(|&b| f32::from_le_bytes(b)).collect();
        let rows = Tensor::from_vec(rows, ((), 32), &Device::Cpu).unwrap();
        let vocab = graft.shape().vocab_size as u32;
        let mut next = found.row_index.iter();
        let index: Vec<u32> = ids
            .iter()
            .zip(&found.match_lengths)
            .map(|(&id, &len)| match len {
                0 => id,
                _ => vocab + next.next().unwrap(),
            })
            .collect();
        graft.input_embeddings(Some(&rows), &index).unwrap()
    });
    assert_eq!(plain, grafted);
    assert!(matched.get() > 20, "rows of the table were used");
}

/// All positions of a text.
fn look_up(table: &Table, ids: &[u32]) -> LookupResult {
    let span = Span {
        context: 0,
        answers: ids.len() as u32,
    };
    let mut found = LookupResult::default();
    table.lookup(ids, &[span], &mut found).unwrap();
    found
}

#[test]
fn what_does_not_belong_together_is_refused() {
    let fixture = Fixture::new();
    let vocab = fixture.tokenizer.vocab_size() as usize;
    let base = fixture.path("base");
    let fgrams = fixture.path("fgrams.bin");
    let refused = |config: &ModelConfig, fgrams: &Path, out: &str| {
        save_base(&fixture, &base, config);
        let error = graft(&base, fgrams, &fixture.path(out), Options::default()).unwrap_err();
        assert!(!fixture.path(out).join("model.safetensors").exists() || out == "base");
        format!("{error:#}")
    };
    let fits = &bases(vocab)[0];
    let error = refused(fits, &fgrams, "base");
    assert!(error.contains("already holds a model"), "{error}");
    let error = refused(&bases(vocab + 7)[0], &fgrams, "out");
    assert!(error.contains("vocab_size"), "{error}");

    let set = FgramSet::read(&fgrams).unwrap();
    let mut header = set.header().clone();
    header.tokenizer_hash = [3; 32];
    let grams = set
        .iter()
        .map(|f| (NGram::from_slice(f.ids).unwrap(), f.count));
    let other = FgramSet::new(header, grams.collect()).unwrap();
    other.write(fixture.path("other.bin")).unwrap();
    let error = refused(fits, &fixture.path("other.bin"), "out");
    assert!(error.contains("tokenizer"), "{error}");
}
