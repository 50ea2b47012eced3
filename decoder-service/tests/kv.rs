//! KV blocks: bounded memory, sequences that give way, texts that begin alike. The tokens are the
//! same whatever happens.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use candle_core::Device;
use common::{
    Done, Fixture, TestEngine, collect, embedded, engine_config, engine_with_memory, eventually,
    fixture, greedy, limits,
};
use decoder_service::{
    engine::EngineConfig,
    error::Error,
    model::ServedModel,
    request::{Draft, Prompt},
};
use scone_model::{KV_BLOCK_POSITIONS, KvDtype};

/// Memory of so many blocks.
fn memory(fixture: &Fixture, blocks: usize) -> u64 {
    let model = ServedModel::load(&fixture.model, &Device::Cpu).unwrap();
    (model.decoder.kv_block_bytes(KvDtype::F32) * blocks) as u64
}

fn engine(fixture: &Fixture, config: EngineConfig, blocks: usize) -> TestEngine {
    eventually("the table is free", || {
        scone_fgram::Table::open(&fixture.table, &scone_fgram::TableOptions::default()).is_ok()
    });
    let model = ServedModel::load(&fixture.model, &Device::Cpu).unwrap();
    let tier = embedded(fixture, &model);
    engine_with_memory(model, config, Some(tier), memory(fixture, blocks))
}

/// Texts of ids that begin alike, and go on differently.
fn drafts() -> Vec<Draft> {
    let common: Vec<u32> = (0..70).map(|i| 3 + i * 7 % 20).collect();
    (0..6u32)
        .map(|i| {
            let mut ids = common[..30 + 8 * i as usize].to_vec();
            ids.extend([4 + i, 5, 6 + i]);
            Draft {
                prompt: Some(Prompt::Ids(ids)),
                temperature: Some(if i % 2 == 0 { 0.0 } else { 1.0 }),
                seed: Some(u64::from(i)),
                ..greedy("", 40)
            }
        })
        .collect()
}

fn all(engine: &TestEngine) -> Vec<Done> {
    let mut receivers: Vec<_> = drafts().into_iter().map(|d| engine.submit(d)).collect();
    receivers.iter_mut().map(collect).collect()
}

fn ids(done: &[Done]) -> Vec<Vec<u32>> {
    done.iter().map(|done| done.ids.clone()).collect()
}

/// One text at a time, nothing shared.
fn alone(fixture: &Fixture) -> Vec<Vec<u32>> {
    let mut config = engine_config(limits(1, 8, 4096));
    config.prefix_cache = false;
    let engine = engine(fixture, config, 100);
    ids(&drafts()
        .into_iter()
        .map(|d| engine.run(d))
        .collect::<Vec<_>>())
}

#[test]
fn shared_beginnings_do_not_change_the_tokens() {
    let fixture = fixture();
    let expected = alone(&fixture);
    for prefix_cache in [false, true] {
        let mut config = engine_config(limits(3, 8, 40));
        config.prefix_cache = prefix_cache;
        let engine = engine(&fixture, config, 100);
        assert_eq!(ids(&all(&engine)), expected);
        let again = all(&engine);
        assert_eq!(ids(&again), expected);
        for (done, draft) in again.iter().zip(drafts()) {
            let Some(Prompt::Ids(prompt)) = draft.prompt else {
                unreachable!()
            };
            let whole = (prompt.len() - 1) / KV_BLOCK_POSITIONS * KV_BLOCK_POSITIONS;
            let cached = if prefix_cache { whole } else { 0 };
            assert_eq!(done.finish.usage.cached_tokens as usize, cached);
        }
        assert_eq!(engine.metrics.cached_positions.get() > 0, prefix_cache);
        eventually("all blocks are free", || {
            engine.metrics.kv_blocks_used.get() == 0
        });
    }
}

#[test]
fn sequences_that_gave_way_go_on_with_the_same_tokens() {
    let fixture = fixture();
    let expected = alone(&fixture);
    for prefix_cache in [false, true] {
        let mut config = engine_config(limits(6, 8, 64));
        config.prefix_cache = prefix_cache;
        // Each text takes up to 8 blocks; not even two fit to their end.
        let engine = engine(&fixture, config, 12);
        assert_eq!(ids(&all(&engine)), expected);
        assert!(engine.metrics.preemptions.get() > 0);
        eventually("all blocks are free", || {
            engine.metrics.kv_blocks_used.get() == 0
        });
    }
}

#[test]
fn the_completions_of_a_request_share_its_prompt() {
    let fixture = fixture();
    let engine = engine(&fixture, engine_config(limits(4, 4, 20)), 100);
    let draft = Draft {
        prompt: Some(Prompt::Ids((0..66).map(|i| 3 + i % 20).collect())),
        n: Some(4),
        temperature: Some(1.0),
        seed: Some(3),
        ..greedy("", 5)
    };
    let mut messages = engine.submit(draft);
    let mut usages = Vec::new();
    while let Some(message) = messages.blocking_recv() {
        usages.extend(message.unwrap().finish.map(|finish| finish.usage));
    }
    let mut cached: Vec<u32> = usages.iter().map(|usage| usage.cached_tokens).collect();
    cached.sort_unstable();
    assert_eq!(cached, [0, 64, 64, 64]);
}

#[test]
fn what_can_never_fit_is_refused_by_the_flag_that_bounds_it() {
    let fixture = fixture();
    let engine = engine(&fixture, engine_config(limits(2, 2, 64)), 3);
    let ids = |n: u32| Draft {
        prompt: Some(Prompt::Ids((0..n).map(|i| 3 + i % 20).collect())),
        ..greedy("", 100)
    };
    let error = ids(48).check(&engine.info, None).unwrap_err();
    assert!(matches!(error, Error::InvalidField { .. }));
    let text = error.to_string();
    assert!(
        text.contains("48") && text.contains("--kv-memory"),
        "{text}"
    );
    // What fits runs to the end of the memory.
    let done = engine.run(ids(40));
    assert_eq!(done.ids.len(), 8);
    let mut model = ServedModel::load(&fixture.model, &Device::Cpu).unwrap();
    let error = model.new_pool(100, KvDtype::F16).unwrap_err().to_string();
    assert!(error.contains("--kv-memory"), "{error}");
}

/// Scored in chunks, beside others, after giving way, with a prefix that others have cached: each
/// token of a prompt has the log probability and the match length it had when it was generated.
#[test]
fn a_scored_prompt_has_the_log_probabilities_of_its_generation() {
    let fixture = fixture();
    let generating = |draft: Draft| Draft {
        logprobs: Some(2),
        ..draft
    };
    let roomy = engine(&fixture, engine_config(limits(6, 6, 64)), 200);
    let generated: Vec<(Vec<u32>, Done)> = drafts()
        .into_iter()
        .map(|draft| {
            let Some(Prompt::Ids(prompt)) = draft.prompt.clone() else {
                panic!("ids");
            };
            (prompt, roomy.run(generating(draft)))
        })
        .collect();
    drop(roomy);
    // Every sequence has up to 9 blocks, so some give way; chunks of 11 end inside blocks.
    let tight = engine(&fixture, engine_config(limits(6, 6, 11)), 20);
    for round in 0..2 {
        let scored = generated.iter().map(|(prompt, done)| {
            let ids = [prompt.as_slice(), &done.ids].concat();
            tight.submit(Draft {
                prompt: Some(Prompt::Ids(ids)),
                echo: Some(true),
                ..generating(greedy("", 40))
            })
        });
        let mut receivers: Vec<_> = scored.collect();
        for ((prompt, done), receiver) in generated.iter().zip(&mut receivers) {
            let again = collect(receiver);
            let told: Vec<_> = again.deltas.iter().flat_map(|d| &d.prompt).collect();
            assert_eq!(told.len(), prompt.len() + done.ids.len(), "round {round}");
            assert_eq!(told[0].logprob, None);
            let expected = done.deltas.iter().flat_map(|delta| &delta.tokens);
            for (told, expected) in told[prompt.len()..].iter().zip(expected) {
                assert_eq!(*told, expected);
            }
            assert_eq!(again.finish.usage.cached_tokens, 0);
            assert_eq!(again.ids.len(), 40);
        }
    }
    assert!(tight.metrics.preemptions.get() > 0);
}
