//! Several tables in one engine: each sequence has the rows of its own.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use candle_core::Device;
use common::{
    CORPUS, Done, Fixture, TestEngine, collect, engine_config, engine_over, fixture, greedy,
    limits, three_tables,
};
use decoder_service::{
    Error,
    engine::EngineConfig,
    model::ServedModel,
    request::{Draft, TableChoice},
};
use tonic::{Code, Status};

/// The names of the tables, and no table.
const ALL: [&str; 4] = ["", "int4", "small", "none"];

const PROMPTS: [&str; 4] = [
    "the fox met the other bear; ",
    "the bear sat near the river. the other fox was there and the end.",
    "there",
    "then the fox met",
];

fn engine(fixture: &Fixture, config: EngineConfig) -> TestEngine {
    let model = ServedModel::load(&fixture.model, &Device::Cpu).unwrap();
    let tier = three_tables(fixture, &model);
    engine_over(model, config, Some(tier))
}

fn of_table(table: &str, prompt: &str, max_tokens: u32) -> Draft {
    Draft {
        table: Some(table.to_owned()),
        ..greedy(prompt, max_tokens)
    }
}

fn said(done: &Done) -> (&[u32], &[u8]) {
    (&done.ids, &done.matches)
}

#[test]
fn different_tables_in_one_batch_give_the_tokens_that_each_gives_alone() {
    // A sled table is open once: each engine has its own.
    let fixtures = [(); 3].map(|()| fixture());
    let drafts: Vec<Draft> = PROMPTS
        .iter()
        .flat_map(|prompt| ALL.map(|table| of_table(table, prompt, 24)))
        .collect();
    let alone = engine(&fixtures[0], engine_config(limits(1, 1, 64)));
    let alone: Vec<Done> = drafts
        .iter()
        .map(|draft| alone.run(draft.clone()))
        .collect();
    for of_prompt in alone.chunks(ALL.len()) {
        let [default, int4, small, none] = of_prompt else {
            panic!("four tables");
        };
        assert_eq!(default.matches[0], int4.matches[0], "the same f-grams");
        assert!(none.matches.iter().all(|&length| length == 0));
        assert_eq!(none.finish.usage.matched_positions, 0);
        let matched = |done: &Done| done.finish.usage.matched_positions;
        assert!(matched(default) > 0 && matched(small) > 0);
    }
    // Rows do make a difference, or the comparison would be of nothing.
    let texts = |at: usize| alone.iter().skip(at).step_by(ALL.len()).map(|d| &d.ids);
    for (one, other) in [(0, 1), (0, 2), (0, 3), (2, 3)] {
        assert!(texts(one).ne(texts(other)), "tables {one} and {other}");
    }
    // Prompts in chunks and a batch that is smaller than what is asked for, or larger.
    for (fixture, batch, step_tokens) in [(&fixtures[1], 3, 7), (&fixtures[2], 16, 64)] {
        let together = engine(fixture, engine_config(limits(batch, 16, step_tokens)));
        let mut streams: Vec<_> = drafts.iter().map(|d| together.submit(d.clone())).collect();
        for (stream, alone) in streams.iter_mut().zip(&alone) {
            assert_eq!(said(&collect(stream)), said(alone));
        }
    }
}

#[test]
fn a_text_shares_what_is_computed_of_it_with_the_same_table_only() {
    let fixture = fixture();
    let engine = engine(&fixture, engine_config(limits(2, 2, 64)));
    let run = |table: &str| engine.run(of_table(table, CORPUS, 8));
    let first: Vec<Done> = ALL.iter().map(|table| run(table)).collect();
    for done in &first {
        assert_eq!(done.finish.usage.cached_tokens, 0);
    }
    for (table, before) in ALL.iter().zip(&first) {
        let again = run(table);
        assert!(again.finish.usage.cached_tokens > 0, "{table:?}");
        assert_eq!(said(&again), said(before));
    }
    // Another name of the default table is the same table.
    assert!(run("default").finish.usage.cached_tokens > 0);
}

#[test]
fn a_table_that_is_not_there_is_refused_by_name_and_nobody_else_suffers() {
    let fixture = fixture();
    let engine = engine(&fixture, engine_config(limits(2, 4, 64)));
    let mut good = engine.submit(of_table("small", "the fox", 20));
    let mut unknown = engine.submit(of_table("news", "the fox", 20));
    let refused = unknown.blocking_recv().unwrap().unwrap_err();
    assert!(matches!(&refused, Error::UnknownTable(name) if name == "news"));
    let status = Status::from(refused);
    assert_eq!(status.code(), Code::NotFound);
    assert!(status.message().contains("\"news\""), "{status}");
    assert_eq!(collect(&mut good).ids.len(), 20);
    for wrong in ["a b", "../x", &"x".repeat(1000)] {
        let error = of_table(wrong, "x", 1)
            .check(&engine.info, None)
            .unwrap_err();
        assert!(matches!(error, Error::UnknownTable(_)), "{error}");
        assert!(error.to_string().len() < 200);
    }
    assert_eq!(TableChoice::read(Some("none")).unwrap(), TableChoice::None);
}
