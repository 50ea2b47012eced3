//! The token embedding at the last position of a prompt: what it changes, and what it leaves alone.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use candle_core::Device;
use common::{
    CORPUS, Done, Fixture, embedded, encode, engine, engine_config, engine_over, fixture, limits,
};
use decoder_service::{
    embed_tier::{Answers, Lookup, LookupBatch, TableName},
    model::ServedModel,
    request::{Draft, Prompt},
};
use scone_model::{Giving, KvDtype, Segment, sampling};

const TOP: u32 = 5;

fn scored(ids: &[u32], token_embedding_at_end: bool) -> Draft {
    Draft {
        prompt: Some(Prompt::Ids(ids.to_vec())),
        temperature: Some(0.0),
        max_tokens: Some(1),
        ignore_eos: Some(true),
        logprobs: Some(TOP),
        token_embedding_at_end,
        ..Draft::default()
    }
}

fn continued(ids: &[u32], max_tokens: u32) -> Draft {
    Draft {
        max_tokens: Some(max_tokens),
        ..scored(ids, false)
    }
}

fn top(done: &Done) -> &[(u32, f32)] {
    let tokens = done.deltas.iter().flat_map(|delta| &delta.tokens);
    &tokens.last().unwrap().top_logprobs
}

/// The first ids of the text that the f-grams are from: one ends at every position but the first.
fn text(tokens: usize) -> Vec<u32> {
    encode(CORPUS)[..tokens].to_vec()
}

/// The model called by hand, with the rows of all positions, or of all but the last.
fn by_hand(fixture: &Fixture, ids: &[u32], without_last: bool) -> Vec<(u32, f32)> {
    let mut model = ServedModel::load(&fixture.model, &Device::Cpu).unwrap();
    let mut tier = embedded(fixture, &model);
    let table = tier.current(&TableName::default()).unwrap();
    let (mut batch, mut out) = (LookupBatch::default(), Answers::default());
    batch.push(ids, 0);
    tier.lookup(&mut [Lookup {
        table: &table,
        batch: &batch,
        out: &mut out,
    }]);
    assert!(out.match_lengths()[1..].iter().all(|&length| length >= 2));
    let mut rows: Vec<_> = (0..ids.len()).map(|at| out.row(at)).collect();
    if without_last {
        *rows.last_mut().unwrap() = None;
    }
    let mut pool = model.new_pool(1 << 20, KvDtype::F32).unwrap();
    let segment = Segment {
        blocks: &[0, 1, 2, 3],
        held: 0,
        token_ids: ids,
        rows: &rows,
        samples: true,
    };
    let given = model
        .decoder
        .step_giving(&mut pool, &[segment], &[Giving::Last]);
    sampling::score(&given.unwrap().logits, 0, TOP as usize).top_logprobs
}

#[test]
fn the_last_position_alone_has_the_token_embedding() {
    let (served, other) = (fixture(), fixture());
    let engine = engine(&served, limits(2, 4, 64));
    for tokens in [2, 16, 17, 32, 47] {
        let ids = text(tokens);
        let (with, without) = (
            engine.run(scored(&ids, false)),
            engine.run(scored(&ids, true)),
        );
        assert_eq!(top(&with), by_hand(&other, &ids, false), "{tokens}");
        assert_eq!(top(&without), by_hand(&other, &ids, true), "{tokens}");
        assert_ne!(top(&with), top(&without), "a row makes a difference");
        assert!(with.matches[0] >= 2);
        assert_eq!(without.matches, [0]);
        let matched = |done: &Done| done.finish.usage.matched_positions;
        let computed = |done: &Done| done.finish.usage.positions;
        // What was computed for one is not computed for the other.
        assert!(computed(&without) <= 16, "{}", computed(&without));
        let first = u32::from(without.finish.usage.cached_tokens == 0);
        assert_eq!(matched(&without), computed(&without) - 1 - first);
        assert_eq!(with.finish.table, without.finish.table);
    }
}

#[test]
fn what_is_computed_so_is_for_nobody_else() {
    let fixtures = [fixture(), fixture()];
    // The last position fills a block.
    let (asked, longer) = (text(32), text(60));
    let untouched = engine(&fixtures[0], limits(2, 4, 64)).run(continued(&longer, 12));
    let engine = engine(&fixtures[1], limits(2, 4, 64));
    engine.run(scored(&asked, true));
    let after = engine.run(continued(&longer, 12));
    assert_eq!(after.finish.usage.cached_tokens, 0);
    assert_eq!((&after.ids, top(&after)), (&untouched.ids, top(&untouched)));
    // Nor does it take anything from others that is not the same for it.
    let again = engine.run(scored(&asked, true));
    assert_eq!(again.finish.usage.cached_tokens, 16);
}

#[test]
fn it_is_the_same_in_any_batch() {
    let fixtures = [(); 3].map(|()| fixture());
    let drafts: Vec<Draft> = [5, 16, 30, 33, 48, 64]
        .iter()
        .flat_map(|&tokens| [true, false].map(|without| scored(&text(tokens), without)))
        .chain([continued(&text(20), 20), continued(&text(48), 20)])
        .collect();
    let alone = engine(&fixtures[0], limits(1, 1, 64));
    let alone: Vec<Done> = drafts.iter().map(|d| alone.run(d.clone())).collect();
    for (fixture, batch, step_tokens) in [(&fixtures[1], 3, 7), (&fixtures[2], 16, 64)] {
        let model = ServedModel::load(&fixture.model, &Device::Cpu).unwrap();
        let tier = embedded(fixture, &model);
        let config = engine_config(limits(batch, 16, step_tokens));
        let together = engine_over(model, config, Some(tier));
        let mut streams: Vec<_> = drafts.iter().map(|d| together.submit(d.clone())).collect();
        for (stream, alone) in streams.iter_mut().zip(&alone) {
            let done = common::collect(stream);
            assert_eq!((&done.ids, top(&done)), (&alone.ids, top(alone)));
            assert_eq!(done.matches, alone.matches);
        }
    }
}
