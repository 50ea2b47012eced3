//! Tiny models, tokenizers and tables made in code.
#![allow(
    dead_code,
    clippy::unwrap_used,
    unreachable_pub,
    reason = "tests; each test file uses its own part"
)]

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use candle_core::{Device, Tensor};
use decoder_service::{
    embed_tier::{EmbedTier, Embedded},
    engine::{self, EngineConfig, EngineHandle, EngineParts, Message, OnLookupFailure},
    metrics::Metrics,
    model::ServedModel,
    request::{Draft, Prompt, Request},
    scheduler::Limits,
    sequence::{Delta, Finish},
};
use scone_fgram::{
    FgramSet, NGram, RowDtype, SetHeader, TableOptions,
    table::{BuildOptions, NamedDir, build_table},
};
use scone_model::{
    FgramModelConfig, KvDtype, ModelConfig, checkpoint,
    config::{LlamaConfig, TokenIds},
    init_fgram_parameters, init_parameters,
};
use serde_json::{Value, json};
use tokenizers::Tokenizer;
use tokio::sync::mpsc;

/// bos and eos of the tiny model.
pub const EOS: u32 = 260;
/// Positions of the tiny model.
pub const CONTEXT: usize = 1024;
/// K of the tiny model.
pub const MAX_N: u8 = 3;
/// What its f-grams were counted on.
pub const CORPUS: &str = "the other day there was a fox, then the fox met the other bear; \
                          the bear sat there and the café was near the river. the end.";

/// The character that byte-level tokenizers write for each byte (GPT-2's table).
pub fn byte_chars() -> Vec<char> {
    let plain = |b: u32| (33..=126).contains(&b) || (161..=172).contains(&b) || b >= 174;
    let mut next = 256;
    (0..256)
        .map(|b| {
            if plain(b) {
                return char::from_u32(b).unwrap();
            }
            next += 1;
            char::from_u32(next - 1).unwrap()
        })
        .collect()
}

/// A byte-level BPE: id = byte value below 256, then four merges, then the special token.
pub fn byte_level_json() -> Value {
    let mut vocab: BTreeMap<String, u32> = byte_chars()
        .iter()
        .enumerate()
        .map(|(b, c)| (c.to_string(), b as u32))
        .collect();
    let merges = ["t h", "th e", "Ġ the", "Ã ©"];
    for (i, merge) in merges.iter().enumerate() {
        vocab.insert(merge.replace(' ', ""), 256 + i as u32);
    }
    let byte_level = json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true
    });
    json!({
        "version": "1.0",
        "added_tokens": [{
            "id": EOS, "content": "<|endoftext|>", "special": true, "single_word": false,
            "lstrip": false, "rstrip": false, "normalized": false
        }],
        "pre_tokenizer": byte_level,
        "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "fuse_unk": false,
            "byte_fallback": false, "vocab": vocab, "merges": merges
        }
    })
}

pub fn byte_level() -> Tokenizer {
    byte_level_json().to_string().parse().unwrap()
}

/// A model directory with a table, in a folder that goes away with it.
pub struct Fixture {
    _folder: tempfile::TempDir,
    pub model: PathBuf,
    pub table: PathBuf,
}

/// A SCONE model of width 32 with random weights and its f16 table.
pub fn fixture() -> Fixture {
    fixture_of(1, MAX_N)
}

/// As [`fixture`], with other weights for another seed.
pub fn fixture_of(seed: u64, max_n: u8) -> Fixture {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("tiny");
    write_model(&model, seed, max_n);
    let table = folder.path().join("table");
    write_table(&model, &table, (0, 1), RowDtype::F16);
    Fixture {
        _folder: folder,
        model,
        table,
    }
}

/// The tables of `shards` shards beside a fixture's model.
pub fn shards_of(fixture: &Fixture, shards: u32) -> Vec<PathBuf> {
    (0..shards)
        .map(|shard| {
            let dir = fixture
                .model
                .with_file_name(format!("shard{shard}of{shards}"));
            write_table(&fixture.model, &dir, (shard, shards), RowDtype::F16);
            dir
        })
        .collect()
}

/// Another version of the fixture's table: int4 rows.
pub fn int4_table_of(fixture: &Fixture) -> PathBuf {
    let dir = fixture.model.with_file_name("int4");
    write_table(&fixture.model, &dir, (0, 1), RowDtype::Int4);
    dir
}

/// Another table of the fixture's model: only the f-grams that occur twice and more.
pub fn small_table_of(fixture: &Fixture) -> PathBuf {
    let dir = fixture.model.with_file_name("small");
    let whole = FgramSet::read(fixture.model.join("fgrams.bin")).unwrap();
    let often = whole.iter().filter(|fgram| fgram.count >= 2);
    let often = often.map(|f| (NGram::from_slice(f.ids).unwrap(), f.count));
    let set = FgramSet::new(whole.header().clone(), often.collect()).unwrap();
    assert!(set.len() > 10 && set.len() < whole.len());
    write_table_of(&fixture.model, &set, &dir, (0, 1), RowDtype::F16);
    dir
}

/// The fixture's table under its name, and two others: `int4` and `small`.
pub fn three_tables(fixture: &Fixture, model: &ServedModel) -> Box<dyn EmbedTier> {
    let (options, facts) = (TableOptions::default(), model.info.table_facts());
    let mut tables = Embedded::open(&fixture.table, &options, &facts).unwrap();
    for (name, dir) in [
        ("int4", int4_table_of(fixture)),
        ("small", small_table_of(fixture)),
    ] {
        let name = name.parse().unwrap();
        tables
            .add(&NamedDir { name, dir }, &options, &facts)
            .unwrap();
    }
    Box::new(tables)
}

fn config() -> ModelConfig {
    let mut config = LlamaConfig::new(EOS as usize + 1, 32, 2, 4, 64, CONTEXT);
    // Far from uniform, so that greedy decoding has something to choose.
    config.initializer_range = 0.3;
    config.bos_token_id = Some(EOS);
    config.eos_token_id = Some(TokenIds::One(EOS));
    ModelConfig::Llama(config)
}

fn write_model(dir: &Path, seed: u64, max_n: u8) {
    let config = config();
    let parameters = init_parameters(&config, seed).unwrap();
    let fgram = FgramModelConfig {
        num_hidden_layers: 1,
        num_attention_heads: 4,
        num_key_value_heads: None,
        intermediate_size: 64,
        final_norm: true,
        max_n: max_n.into(),
    };
    let mut fgram_parameters = init_fgram_parameters(&fgram, &config, seed).unwrap();
    // A starts as the identity; rows must depend on all of an f-gram to be told apart.
    for tensor in fgram_parameters.values_mut().filter(|t| t.rank() == 2) {
        let n = tensor.elem_count();
        let noise: Vec<f32> = (0..n).map(|i| (i as f32 * 12.9898).sin() * 0.2).collect();
        let noise = Tensor::from_vec(noise, tensor.dims(), &Device::Cpu).unwrap();
        *tensor = (&*tensor + noise).unwrap();
    }
    std::fs::create_dir_all(dir).unwrap();
    std::fs::write(dir.join("tokenizer.json"), byte_level_json().to_string()).unwrap();
    let set = fgram_set(dir, max_n);
    set.write(dir.join("fgrams.bin")).unwrap();
    let parts = checkpoint::FgramParts {
        config: &fgram,
        parameters: &fgram_parameters,
        fgram_set_hash: &set.hash(),
    };
    checkpoint::save_model_dir(dir, &config, &parameters, Some(parts)).unwrap();
}

/// All n-grams of the corpus.
fn fgram_set(dir: &Path, max_n: u8) -> FgramSet {
    let ids = encode(CORPUS);
    let mut counts: BTreeMap<&[u32], u64> = BTreeMap::new();
    for n in 2..=max_n as usize {
        for window in ids.windows(n) {
            *counts.entry(window).or_default() += 1;
        }
    }
    let hash = scone_files::sha256_file(&dir.join("tokenizer.json")).unwrap();
    let mut tokenizer_hash = [0; 32];
    for (byte, hex) in tokenizer_hash.iter_mut().zip(hash.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(hex).unwrap(), 16).unwrap();
    }
    let header = SetHeader {
        vocab_size: EOS + 1,
        max_n,
        tokenizer_hash,
        min_count: 1,
    };
    let fgrams = counts
        .into_iter()
        .map(|(ids, count)| (NGram::from_slice(ids).unwrap(), count));
    FgramSet::new(header, fgrams.collect()).unwrap()
}

fn write_table(model: &Path, dir: &Path, shard: (u32, u32), dtype: RowDtype) {
    let set = FgramSet::read(model.join("fgrams.bin")).unwrap();
    write_table_of(model, &set, dir, shard, dtype);
}

fn write_table_of(model: &Path, set: &FgramSet, dir: &Path, shard: (u32, u32), dtype: RowDtype) {
    let loaded = checkpoint::load_model_dir(model, &Device::Cpu).unwrap();
    let fgram = loaded.fgram.unwrap();
    let options = BuildOptions {
        dtype,
        dim: 32,
        shard,
        model_hash: loaded.model_hash.unwrap(),
        ..BuildOptions::default()
    };
    build_table(
        dir,
        set,
        &options,
        |fgrams, rows| -> Result<(), scone_fgram::Error> {
            *rows = fgram
                .rows(loaded.decoder.token_embedding(), fgrams)
                .unwrap();
            Ok(())
        },
        |_, _| {},
    )
    .unwrap();
}

pub fn encode(text: &str) -> Vec<u32> {
    byte_level().encode(text, true).unwrap().get_ids().to_vec()
}

/// An engine over a model, and what tests need beside it.
pub struct TestEngine {
    pub handle: EngineHandle,
    pub info: Arc<decoder_service::model::ModelInfo>,
    pub metrics: Metrics,
}

pub fn limits(max_batch: usize, max_queue: usize, max_step_tokens: usize) -> Limits {
    Limits {
        max_batch,
        max_queue,
        max_step_tokens,
    }
}

pub fn engine_config(limits: Limits) -> EngineConfig {
    EngineConfig {
        limits,
        on_lookup_failure: OnLookupFailure::Fail,
        prefix_cache: true,
        step_target: Duration::from_millis(50),
        client_timeout: Duration::from_secs(30),
        stall_time: Duration::from_millis(250),
        max_queue_time: Duration::from_secs(60),
        max_per_client: limits.max_batch + limits.max_queue,
    }
}

pub fn embedded(fixture: &Fixture, model: &ServedModel) -> Box<dyn EmbedTier> {
    let facts = model.info.table_facts();
    Box::new(Embedded::open(&fixture.table, &TableOptions::default(), &facts).unwrap())
}

/// An engine with the fixture's table, changed by `wrap`.
pub fn engine_with(
    fixture: &Fixture,
    config: EngineConfig,
    wrap: impl FnOnce(Box<dyn EmbedTier>) -> Box<dyn EmbedTier>,
) -> TestEngine {
    let model = ServedModel::load(&fixture.model, &Device::Cpu).unwrap();
    let tier = wrap(embedded(fixture, &model));
    engine_over(model, config, Some(tier))
}

pub fn engine_over(
    model: ServedModel,
    config: EngineConfig,
    tier: Option<Box<dyn EmbedTier>>,
) -> TestEngine {
    engine_with_memory(model, config, tier, 1 << 20)
}

/// With so many bytes for keys and values, in f32.
pub fn engine_with_memory(
    mut model: ServedModel,
    config: EngineConfig,
    tier: Option<Box<dyn EmbedTier>>,
    kv_memory: u64,
) -> TestEngine {
    let pool = model.new_pool(kv_memory, KvDtype::F32).unwrap();
    let info = Arc::new(model.info);
    let metrics = Metrics::default();
    let parts = EngineParts {
        info: info.clone(),
        decoder: model.decoder,
        pool,
        tier,
        metrics: metrics.clone(),
    };
    let (handle, _ended) = engine::start(config, parts).unwrap();
    TestEngine {
        handle,
        info,
        metrics,
    }
}

pub fn engine(fixture: &Fixture, limits: Limits) -> TestEngine {
    engine_with(fixture, engine_config(limits), |tier| tier)
}

/// A greedy request of `max_tokens` that no token ends.
pub fn greedy(text: &str, max_tokens: u32) -> Draft {
    Draft {
        prompt: Some(Prompt::Text(text.to_owned())),
        temperature: Some(0.0),
        max_tokens: Some(max_tokens),
        ignore_eos: Some(true),
        ..Draft::default()
    }
}

impl TestEngine {
    pub fn request(&self, draft: Draft) -> Request {
        draft.check(&self.info, None).unwrap()
    }

    pub fn submit(&self, draft: Draft) -> mpsc::Receiver<Message> {
        self.handle.submit(self.request(draft)).unwrap()
    }

    /// Runs a request to its end.
    pub fn run(&self, draft: Draft) -> Done {
        collect(&mut self.submit(draft))
    }
}

/// A finished completion.
#[derive(Debug)]
pub struct Done {
    pub ids: Vec<u32>,
    pub text: String,
    pub matches: Vec<u8>,
    pub deltas: Vec<Delta>,
    pub finish: Finish,
}

/// Waits for the end of the only completion of a request.
pub fn collect(messages: &mut mpsc::Receiver<Message>) -> Done {
    let mut deltas = Vec::new();
    while let Some(message) = messages.blocking_recv() {
        let delta = message.unwrap();
        let last = delta.finish.is_some();
        deltas.push(delta);
        if last {
            break;
        }
    }
    let tokens = || deltas.iter().flat_map(|delta| &delta.tokens);
    Done {
        ids: tokens().map(|t| t.id).collect(),
        matches: tokens().map(|t| t.match_length).collect(),
        text: deltas.iter().map(|d| d.text.as_str()).collect(),
        finish: deltas.last().and_then(|d| d.finish.clone()).unwrap(),
        deltas,
    }
}

/// Waits until something holds, at most ten seconds.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let began = std::time::Instant::now();
    while !holds() {
        assert!(began.elapsed() < Duration::from_secs(10), "never: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Waits until there is something, at most ten seconds.
pub fn eventually_some<T>(what: &str, mut get: impl FnMut() -> Option<T>) -> T {
    let mut found = None;
    eventually(what, || {
        found = get();
        found.is_some()
    });
    found.unwrap()
}

/// Token ids and text of all completions of a request, by their index.
pub fn collect_all(messages: &mut mpsc::Receiver<Message>, n: usize) -> Vec<(Vec<u32>, String)> {
    let mut all = vec![(Vec::new(), String::new()); n];
    let mut left = n;
    while left > 0 {
        let delta = messages.blocking_recv().unwrap().unwrap();
        let (ids, text) = &mut all[delta.index as usize];
        ids.extend(delta.tokens.iter().map(|token| token.id));
        text.push_str(&delta.text);
        left -= usize::from(delta.finish.is_some());
    }
    all
}
