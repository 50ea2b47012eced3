//! The remote embed tier against embed-services that answer, lie, hang and die.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use candle_core::Device;
use common::{
    Fixture, TestEngine, collect, embedded, encode, engine_config, engine_over, eventually,
    fixture, fixture_of, greedy, int4_table_of, limits, shards_of,
};
use decoder_service::{
    Error,
    embed_tier::{Answers, EmbedTier, Lookup, LookupBatch, LookupError, Remote, TableName},
    engine::OnLookupFailure,
    model::ServedModel,
    startup::TierInfo,
};
use scone_embed_client::Options;
use scone_fgram::Table;
use scone_test_support::{Behaviour, Change, EmbedServer, PATIENCE, Setup, tables::open};
use tokio::runtime::Runtime;

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
}

/// A server of a real table.
type Server = EmbedServer<Arc<Table>>;

fn options(servers: &[&Server]) -> Options {
    let addresses = servers.iter().map(|server| server.address.to_string());
    Options {
        timeout: Duration::from_secs(5),
        start_timeout: PATIENCE,
        poll_interval: Duration::from_millis(10),
        ..Options::new(addresses.map(|a| a.parse().unwrap()).collect())
    }
}

fn connect(runtime: &Runtime, fixture: &Fixture, options: &Options) -> Result<Remote, Error> {
    let model = ServedModel::load(&fixture.model, &Device::Cpu).unwrap();
    runtime.block_on(Remote::connect(Options {
        model: Some(model.info.table_facts()),
        ..options.clone()
    }))
}

fn engine(fixture: &Fixture, tier: Remote, on_failure: OnLookupFailure) -> TestEngine {
    let mut config = engine_config(limits(4, 4, 64));
    config.on_lookup_failure = on_failure;
    let model = ServedModel::load(&fixture.model, &Device::Cpu).unwrap();
    engine_over(model, config, Some(Box::new(tier)))
}

/// A prompt and some decode steps in one batch.
fn batch() -> LookupBatch {
    let ids = encode("the fox met the other bear and the bear sat near the café by the river.");
    let mut batch = LookupBatch::default();
    batch.push(&ids, 0);
    batch.push(&ids[4..7], 2);
    batch.push(&ids[..1], 0);
    batch.push(&ids[10..30], 2);
    batch.push(&ids[..2], 1);
    batch
}

fn answers(tier: &mut dyn EmbedTier, batch: &LookupBatch) -> Answers {
    let mut out = Answers::default();
    let table = &tier.current(&TableName::default()).unwrap();
    let out_of = &mut out;
    tier.lookup(&mut [Lookup {
        table,
        batch,
        out: out_of,
    }]);
    out
}

/// Where positions match, their rows; and no failure.
fn assert_same(got: Answers, expected: Answers) {
    assert_eq!(got.error(), None);
    assert_eq!(got.match_lengths(), expected.match_lengths());
    for position in 0..got.match_lengths().len() {
        assert_eq!(got.row(position), expected.row(position));
    }
}

fn expected(fixture: &Fixture, batch: &LookupBatch) -> Answers {
    let model = ServedModel::load(&fixture.model, &Device::Cpu).unwrap();
    answers(&mut *embedded(fixture, &model), batch)
}

/// A server that treats look-ups so.
fn misbehaving(table: Arc<Table>, behaviour: Behaviour) -> Server {
    let setup = Setup {
        behaviour,
        ..Setup::default()
    };
    Server::start_with(table, setup)
}

#[test]
fn the_answers_are_those_of_the_embedded_table() {
    let (fixture, runtime, batch) = (fixture(), runtime(), batch());
    let expected = expected(&fixture, &batch);
    // Small limits, so that the prompt goes in several messages.
    let setup = Setup {
        max_positions: 12,
        ..Setup::default()
    };
    let server = Server::start_with(open(&fixture.table), setup);
    let mut tier = connect(&runtime, &fixture, &options(&[&server])).unwrap();
    assert_same(answers(&mut tier, &batch), expected);
    assert!(server.lookups() > 5);
}

#[test]
fn shards_answer_together_what_one_table_answers() {
    let (fixture, runtime, batch) = (fixture(), runtime(), batch());
    let expected = expected(&fixture, &batch);
    let servers: Vec<_> = shards_of(&fixture, 3)
        .iter()
        .map(|shard| Server::start(open(shard)))
        .collect();
    let all: Vec<_> = servers.iter().collect();
    let mut tier = connect(&runtime, &fixture, &options(&all)).unwrap();
    assert_same(answers(&mut tier, &batch), expected);
    assert!(servers.iter().all(|server| server.lookups() > 0));
}

#[test]
fn a_missing_shard_is_a_start_up_error_that_names_it() {
    let (fixture, runtime) = (fixture(), runtime());
    let shards = shards_of(&fixture, 2);
    let server = Server::start(open(&shards[1]));
    let mut options = options(&[&server]);
    options.start_timeout = Duration::from_millis(300);
    let error = connect(&runtime, &fixture, &options)
        .unwrap_err()
        .to_string();
    assert!(error.contains("shards [0]"), "{error}");
}

#[test]
fn nobody_there_is_a_start_up_error_that_names_the_address() {
    let (fixture, runtime) = (fixture(), runtime());
    let options = Options {
        start_timeout: Duration::from_millis(300),
        ..Options::new(vec!["http://127.0.0.1:1".parse().unwrap()])
    };
    let error = connect(&runtime, &fixture, &options)
        .unwrap_err()
        .to_string();
    assert!(error.contains("127.0.0.1:1"), "{error}");
}

#[test]
fn the_table_of_another_model_is_refused() {
    let (fixture, other, runtime) = (fixture(), fixture_of(2, 3), runtime());
    let server = Server::start(open(&other.table));
    let error = connect(&runtime, &fixture, &options(&[&server])).unwrap_err();
    let Error::Incompatible(incompatible) = &error else {
        panic!("{error}");
    };
    assert_eq!(incompatible.what, "model_hash");
    let status = tonic::Status::from(error);
    assert_eq!(status.code(), tonic::Code::FailedPrecondition);
}

#[test]
fn replicas_share_the_work_and_stand_in_for_one_another() {
    let (fixture, runtime) = (fixture(), runtime());
    let table = open(&fixture.table);
    let [first, second] = [(); 2].map(|()| Server::start(table.clone()));
    let tier = connect(&runtime, &fixture, &options(&[&first, &second])).unwrap();
    let engine = engine(&fixture, tier, OnLookupFailure::Fail);
    let whole = engine.run(greedy("the fox", 120));
    assert!(first.lookups() > 5 && second.lookups() > 5);

    let mut running = engine.submit(greedy("the fox", 120));
    running.blocking_recv().unwrap().unwrap();
    first.kill();
    let mut rest = collect(&mut running);
    let mut ids = whole.ids[..1].to_vec();
    ids.append(&mut rest.ids);
    assert_eq!(ids, whole.ids, "same tokens and no error");
}

#[test]
fn a_replica_that_hangs_is_passed_over_within_the_timeout() {
    let (fixture, runtime, batch) = (fixture(), runtime(), batch());
    let expected = expected(&fixture, &batch);
    let table = open(&fixture.table);
    let hanging = misbehaving(table.clone(), Behaviour::Silent);
    let good = Server::start(table);
    let mut options = options(&[&hanging, &good]);
    options.timeout = Duration::from_millis(1000);
    let mut tier = connect(&runtime, &fixture, &options).unwrap();
    while hanging.lookups() == 0 || good.lookups() == 0 {
        let got = answers(&mut tier, &batch);
        assert_eq!(got.error(), None);
        assert_eq!(got.match_lengths(), expected.match_lengths());
    }
}

#[test]
fn a_tier_that_hangs_fails_in_time() {
    let (fixture, runtime, batch) = (fixture(), runtime(), batch());
    let server = misbehaving(open(&fixture.table), Behaviour::Silent);
    let mut options = options(&[&server]);
    options.timeout = Duration::from_millis(100);
    let mut tier = connect(&runtime, &fixture, &options).unwrap();
    let began = Instant::now();
    let got = answers(&mut tier, &batch);
    assert!(began.elapsed() < Duration::from_secs(5));
    assert!(matches!(got.error(), Some(LookupError::Unavailable(_))));
    assert!(got.match_lengths().iter().all(|&length| length == 0));
}

#[test]
fn a_bad_answer_is_an_error_and_never_a_row() {
    let (fixture, runtime, batch) = (fixture(), runtime(), batch());
    let cut: Change = Arc::new(|mut rows| {
        rows.rows = rows.rows.slice(..rows.rows.len() - 1);
        rows
    });
    let other_table: Change = Arc::new(|mut rows| {
        rows.table_id = "another".into();
        rows
    });
    for change in [cut, other_table] {
        let table = open(&fixture.table);
        let server = misbehaving(table.clone(), Behaviour::Changed(change));
        let mut tier = connect(&runtime, &fixture, &options(&[&server])).unwrap();
        let got = answers(&mut tier, &batch);
        assert!(matches!(got.error(), Some(LookupError::BadAnswer(_))));
        assert!(got.match_lengths().iter().all(|&length| length == 0));
        server.kill();
        drop(tier);
        eventually("the table is closed", || Arc::strong_count(&table) == 1);
    }
}

#[test]
fn a_killed_tier_gives_unavailable_and_serves_again_when_it_is_back() {
    let (fixture, runtime) = (fixture(), runtime());
    let table = open(&fixture.table);
    let server = Server::start(table.clone());
    let address = server.address;
    let mut options = options(&[&server]);
    options.timeout = Duration::from_millis(300);
    let tier = connect(&runtime, &fixture, &options).unwrap();
    let engine = engine(&fixture, tier, OnLookupFailure::Fail);
    let whole = engine.run(greedy("the fox", 500));

    let mut running = engine.submit(greedy("the fox", 500));
    running.blocking_recv().unwrap().unwrap();
    server.kill();
    let error = loop {
        match running.blocking_recv().unwrap() {
            Ok(delta) => assert_eq!(delta.finish, None, "must not finish"),
            Err(error) => break error,
        }
    };
    assert_eq!(tonic::Status::from(error).code(), tonic::Code::Unavailable);

    // While it is away, look-ups fail at once instead of after the timeout.
    std::thread::sleep(Duration::from_millis(400));
    let began = Instant::now();
    engine
        .submit(greedy("the fox", 500))
        .blocking_recv()
        .unwrap()
        .unwrap_err();
    assert!(
        began.elapsed() < Duration::from_millis(200),
        "{:?}",
        began.elapsed()
    );

    let setup = Setup {
        address,
        ..Setup::default()
    };
    let back = Server::start_with(table, setup);
    eventually("it serves again", || {
        let first = engine.submit(greedy("the fox", 1)).blocking_recv().unwrap();
        first.is_ok()
    });
    assert_eq!(engine.run(greedy("the fox", 500)).ids, whole.ids);
    assert!(back.lookups() > 0);
}

#[test]
fn fallback_goes_on_without_the_tier_and_uses_it_again() {
    let (fixture, runtime) = (fixture(), runtime());
    let server = Server::start(open(&fixture.table));
    let mut options = options(&[&server]);
    options.timeout = Duration::from_millis(20);
    let tier = connect(&runtime, &fixture, &options).unwrap();
    let engine = engine(&fixture, tier, OnLookupFailure::TokenEmbedding);
    server.behave(Behaviour::Silent);
    let usage = engine.run(greedy("the fox", 5)).finish.usage;
    assert!(usage.fallback_positions > 5 && usage.matched_positions == 0);
    server.behave(Behaviour::Answer);
    eventually("rows come again", || {
        engine
            .run(greedy("the fox", 5))
            .finish
            .usage
            .fallback_positions
            == 0
    });
}

#[test]
fn with_one_shard_of_two_away_only_its_positions_fall_back() {
    let (fixture, runtime) = (fixture(), runtime());
    let shards = shards_of(&fixture, 2);
    let [zero, one] = [0, 1].map(|shard| Server::start(open(&shards[shard])));
    let mut options = options(&[&zero, &one]);
    options.timeout = Duration::from_millis(100);
    let tier = connect(&runtime, &fixture, &options).unwrap();
    let monitor = tier.monitor();
    let engine = engine(&fixture, tier, OnLookupFailure::TokenEmbedding);
    one.kill();
    eventually("it is gone", || monitor.replicas() == [1, 0]);
    let usage = engine.run(greedy(common::CORPUS, 5)).finish.usage;
    assert!(usage.fallback_positions > 0 && usage.matched_positions > 0);
}

#[test]
fn a_generation_keeps_its_table_version_and_the_next_one_gets_the_new_one() {
    let (fixture, runtime) = (fixture(), runtime());
    let old = open(&fixture.table);
    let new = open(&int4_table_of(&fixture));
    let servers = [(); 2].map(|()| Server::start(old.clone()));
    let tier = connect(&runtime, &fixture, &options(&servers.each_ref())).unwrap();
    let told = TierInfo::Remote(tier.monitor());
    let engine = engine(&fixture, tier, OnLookupFailure::Fail);
    let with_old = engine.run(greedy("the fox", 900));

    // Not read, so it stands still in the middle until it is.
    let mut running = engine.submit(greedy("the fox", 900));
    running.blocking_recv().unwrap().unwrap();
    servers[0].serve(&[new.clone(), old.clone()]);
    assert_eq!(told.table_id(), old.manifest().table_id);
    servers[1].serve(&[new.clone(), old]);
    eventually("new sequences use the new version", || {
        told.table_id() == new.manifest().table_id
    });
    let mut beside = engine.submit(greedy("the fox", 900));
    let rest = collect(&mut running);
    assert_eq!(
        rest.ids,
        with_old.ids[1..],
        "not one row of the new version"
    );
    let with_new = collect(&mut beside);
    assert_ne!(
        with_new.ids, with_old.ids,
        "rows of the two versions differ"
    );

    // Neither the switch nor what ran beside it left a trace in the tokens.
    for server in &servers {
        server.serve(std::slice::from_ref(&new));
    }
    assert_eq!(engine.run(greedy("the fox", 900)).ids, with_new.ids);
}

#[test]
fn a_generation_whose_table_version_is_gone_ends_with_unavailable() {
    let (fixture, runtime) = (fixture(), runtime());
    let new = open(&int4_table_of(&fixture));
    let server = Server::start(open(&fixture.table));
    let tier = connect(&runtime, &fixture, &options(&[&server])).unwrap();
    let engine = engine(&fixture, tier, OnLookupFailure::Fail);
    let mut running = engine.submit(greedy("the fox", 900));
    running.blocking_recv().unwrap().unwrap();
    server.serve(&[new]);
    let error = loop {
        match running.blocking_recv().unwrap() {
            Ok(delta) => assert_eq!(delta.finish, None, "must not finish"),
            Err(error) => break error,
        }
    };
    assert_eq!(tonic::Status::from(error).code(), tonic::Code::Unavailable);
    eventually("new ones are served", || {
        let first = engine.submit(greedy("the fox", 1)).blocking_recv().unwrap();
        first.is_ok()
    });
}
