//! The engine: same tokens whatever the batch, and what happens when clients or the embed tier
//! misbehave.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use candle_core::{Device, Tensor};
use common::{
    CONTEXT, Done, EOS, TestEngine, collect, collect_all, encode, engine, engine_config,
    engine_over, engine_with, eventually, eventually_some, fixture, greedy, limits,
};
use decoder_service::{
    Error,
    client::Client,
    embed_tier::{Answers, EmbedTier, Lookup, LookupBatch, LookupError, TableFacts, TableName},
    engine::{Message, OnLookupFailure},
    metrics::Outcome,
    model::ServedModel,
    request::{Draft, Prompt},
    sequence::FinishReason,
};
use scone_fgram::FgramSet;
use scone_model::checkpoint;
use tokio::sync::mpsc;

/// The real look-up.
type Inner<'a> = dyn FnMut(&LookupBatch, &mut Answers) + 'a;

/// A tier that does what a test wants before the real one answers.
struct Wrapped<F> {
    inner: Box<dyn EmbedTier>,
    around: F,
}

impl<F> EmbedTier for Wrapped<F>
where
    F: FnMut(&mut Inner<'_>, &LookupBatch, &mut Answers) + Send,
{
    fn current(&self, name: &TableName) -> Option<Arc<TableFacts>> {
        self.inner.current(name)
    }

    fn lookup(&mut self, lookups: &mut [Lookup<'_>]) {
        for Lookup { table, batch, out } in lookups {
            out.reset(batch.positions());
            let inner = &mut self.inner;
            let mut lookup = |batch: &LookupBatch, out: &mut Answers| {
                inner.lookup(&mut [Lookup { table, batch, out }]);
            };
            (self.around)(&mut lookup, batch, out);
        }
    }
}

fn wrap<F>(around: F) -> impl FnOnce(Box<dyn EmbedTier>) -> Box<dyn EmbedTier>
where
    F: FnMut(&mut Inner<'_>, &LookupBatch, &mut Answers) + Send + 'static,
{
    |inner| Box::new(Wrapped { inner, around })
}

/// Steps take at least this long, so that a test can act in the middle.
fn slow(step: Duration) -> impl FnOnce(Box<dyn EmbedTier>) -> Box<dyn EmbedTier> {
    wrap(move |lookup, batch, out| {
        std::thread::sleep(step);
        lookup(batch, out);
    })
}

fn outcomes(engine: &TestEngine, outcome: &'static str) -> u64 {
    engine
        .metrics
        .requests
        .get_or_create(&Outcome { outcome })
        .get()
}

const PROMPTS: [&str; 6] = [
    "the fox",
    "the bear sat near the river. the other fox was there and the end.",
    "café",
    "there",
    "x",
    "then the fox met the other bear; ",
];

#[test]
fn tokens_are_those_of_the_input_rule_computed_from_scratch() {
    let fixture = fixture();
    let engine = engine(&fixture, limits(2, 2, 8));
    let done = engine.run(greedy("then the fox", 12));

    let loaded = checkpoint::load_model_dir(&fixture.model, &Device::Cpu).unwrap();
    let (decoder, fgram) = (loaded.decoder, loaded.fgram.unwrap());
    let set = FgramSet::read(fixture.model.join("fgrams.bin")).unwrap();
    let t = decoder.token_embedding().to_vec2::<f32>().unwrap();
    let mut ids = encode("then the fox");
    let prompt = ids.len();
    let mut matches = Vec::new();
    for _ in 0..12 {
        let mut input = Vec::new();
        let mut last = 0;
        for end in 1..=ids.len() {
            // Brute force: the longest run of ids that ends here and is in the set.
            let longest = (2..=3.min(end))
                .rev()
                .map(|n| &ids[end - n..end])
                .find(|run| set.iter().any(|f| f.ids == *run));
            last = longest.map_or(0, <[u32]>::len);
            match longest {
                None => input.extend(&t[ids[end - 1] as usize]),
                Some(run) => {
                    let row = fgram.rows(decoder.token_embedding(), &[run]).unwrap();
                    let (mut bytes, mut stored) = (Vec::new(), vec![0.0; 32]);
                    scone_fgram::RowDtype::F16.encode(&row, &mut bytes).unwrap();
                    scone_fgram::RowDtype::F16
                        .decode(&bytes, &mut stored)
                        .unwrap();
                    input.extend(stored);
                }
            }
        }
        let input = Tensor::from_vec(input, (1, ids.len(), 32), &Device::Cpu).unwrap();
        let hidden = decoder.forward(&input).unwrap().squeeze(0).unwrap();
        let logits = decoder.logits(&hidden).unwrap().to_vec2::<f32>().unwrap();
        let row = &logits[ids.len() - 1];
        let best = (0..row.len())
            .max_by(|&a, &b| row[a].total_cmp(&row[b]))
            .unwrap();
        ids.push(best as u32);
        matches.push(last as u8);
    }
    assert_eq!(done.ids, ids[prompt..]);
    assert_eq!(done.matches, matches);
    assert!(done.finish.usage.matched_positions > 0);
    assert_eq!(
        done.finish.usage.positions,
        (prompt + 11) as u32,
        "the last token is not fed"
    );
}

#[test]
fn the_batch_does_not_change_the_tokens() {
    let fixture = fixture();
    let drafts = || {
        PROMPTS.iter().enumerate().map(|(i, prompt)| Draft {
            temperature: Some(if i % 2 == 0 { 0.0 } else { 1.0 }),
            seed: Some(i as u64),
            ..greedy(prompt, 16)
        })
    };
    let alone = engine(&fixture, limits(1, 1, 4096));
    let one_by_one: Vec<Vec<u32>> = drafts().map(|draft| alone.run(draft).ids).collect();
    drop(alone);
    for (max_batch, step_tokens) in [(6, 7), (3, 5), (6, 512)] {
        let together = engine_retry(&fixture, max_batch, step_tokens);
        let mut receivers: Vec<_> = drafts().map(|draft| together.submit(draft)).collect();
        let ids: Vec<_> = receivers.iter_mut().map(|r| collect(r).ids).collect();
        drop(together);
        assert_eq!(
            ids, one_by_one,
            "batch {max_batch}, {step_tokens} tokens a step"
        );
    }
}

/// The engine before holds the sled table until its thread has ended.
fn engine_retry(fixture: &common::Fixture, max_batch: usize, step_tokens: usize) -> TestEngine {
    wait_for_table(fixture);
    engine(fixture, limits(max_batch, 8, step_tokens))
}

fn wait_for_table(fixture: &common::Fixture) {
    eventually("the table is free", || {
        scone_fgram::Table::open(&fixture.table, &scone_fgram::TableOptions::default()).is_ok()
    });
}

#[test]
fn one_lookup_a_step_carries_the_whole_batch() {
    let fixture = fixture();
    let most = Arc::new(AtomicUsize::new(0));
    let seen = most.clone();
    let engine = engine_with(
        &fixture,
        engine_config(limits(6, 6, 512)),
        wrap(move |lookup, batch, out| {
            seen.fetch_max(batch.spans.len(), Ordering::Relaxed);
            for span in &batch.spans {
                assert!(span.context <= 2, "only K-1 ids of context are needed");
            }
            std::thread::sleep(Duration::from_millis(3));
            lookup(batch, out);
        }),
    );
    let mut receivers: Vec<_> = PROMPTS
        .iter()
        .map(|p| engine.submit(greedy(p, 20)))
        .collect();
    for receiver in &mut receivers {
        collect(receiver);
    }
    assert_eq!(most.load(Ordering::Relaxed), 6);
}

#[test]
fn a_client_that_leaves_frees_its_slot() {
    let fixture = fixture();
    let engine = engine_with(
        &fixture,
        engine_config(limits(1, 2, 64)),
        slow(Duration::from_millis(5)),
    );
    let mut first = engine.submit(greedy("the fox", 800));
    first.blocking_recv().unwrap().unwrap();
    let queued = engine.submit(greedy("the fox", 800));
    drop(first);
    drop(queued);
    let done = engine.run(greedy("the bear", 3));
    assert_eq!(done.ids.len(), 3);
    assert_eq!(outcomes(&engine, "cancelled"), 2);
    eventually("nothing runs", || engine.metrics.running.get() == 0);
}

#[test]
fn a_full_queue_refuses_at_once_and_frees_up() {
    let fixture = fixture();
    let engine = engine_with(
        &fixture,
        engine_config(limits(1, 1, 64)),
        slow(Duration::from_millis(5)),
    );
    let mut first = engine.submit(greedy("the fox", 40));
    let mut second = engine.submit(greedy("the fox", 2));
    let refused = engine.handle.submit(engine.request(greedy("x", 1)));
    assert!(matches!(
        refused,
        Err(Error::QueueFull {
            running_and_waiting: 2,
            ..
        })
    ));
    let three = Draft {
        n: Some(3),
        ..greedy("x", 1)
    };
    let refused = engine.handle.submit(engine.request(three));
    assert!(matches!(
        refused,
        Err(Error::InvalidField { field: "n", .. })
    ));
    collect(&mut first);
    collect(&mut second);
    eventually("a slot is free", || {
        engine.handle.submit(engine.request(greedy("x", 1))).is_ok()
    });
}

#[test]
fn a_deadline_ends_a_running_and_a_waiting_request() {
    let fixture = fixture();
    let engine = engine_with(
        &fixture,
        engine_config(limits(1, 4, 64)),
        slow(Duration::from_millis(10)),
    );
    let with_deadline = |ms| {
        let deadline = Instant::now() + Duration::from_millis(ms);
        greedy("the fox", 800)
            .check(&engine.info, Some(deadline))
            .unwrap()
    };
    let mut running = engine.handle.submit(with_deadline(100)).unwrap();
    let mut waiting = engine.handle.submit(with_deadline(20)).unwrap();
    let Some(Err(Error::DeadlineExceeded { tokens: 0 })) = waiting.blocking_recv() else {
        panic!("the waiting request should end first, without a token");
    };
    let mut tokens = 0;
    let error = loop {
        match running.blocking_recv().unwrap() {
            Ok(delta) => tokens += delta.tokens.len(),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::DeadlineExceeded { .. }), "{error}");
    assert!(tokens < 800);
    assert_eq!(outcomes(&engine, "deadline_exceeded"), 2);
}

#[test]
fn a_client_that_does_not_read_pauses_alone_and_loses_nothing() {
    let fixture = fixture();
    let engine = engine(&fixture, limits(2, 2, 64));
    let expected = engine.run(greedy("the fox", 70));
    let mut lazy = engine.submit(greedy("the fox", 70));
    let quick = engine.run(greedy("the bear", 70));
    assert_eq!(quick.ids.len(), 70);
    eventually("the lazy client is behind", || {
        lazy.len() + 1 == lazy.max_capacity()
    });
    eventually("only the lazy one runs", || {
        engine.metrics.running.get() == 1
    });
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(engine.metrics.running.get(), 1, "it keeps its slot");
    let done = collect(&mut lazy);
    assert_eq!((done.ids, done.text), (expected.ids, expected.text));
}

#[test]
fn a_client_that_never_reads_loses_its_slot() {
    let fixture = fixture();
    let mut config = engine_config(limits(1, 1, 64));
    config.client_timeout = Duration::from_millis(50);
    let engine = engine_with(&fixture, config, |tier| tier);
    let lazy = engine.submit(greedy("the fox", 800));
    eventually("it ends", || outcomes(&engine, "client_stalled") == 1);
    assert_eq!(engine.run(greedy("x", 2)).ids.len(), 2);
    assert!(matches!(last_word(lazy), Error::ClientStalled(_)));
}

/// What a client that reads at last is told after the tokens that were made for it.
fn last_word(mut lazy: mpsc::Receiver<Message>) -> Error {
    loop {
        match lazy.blocking_recv().expect("a reason why it ended") {
            Ok(delta) => assert!(delta.finish.is_none()),
            Err(error) => {
                assert!(lazy.blocking_recv().is_none());
                return error;
            }
        }
    }
}

#[test]
fn clients_that_do_not_read_keep_nobody_out_and_lose_nothing() {
    let fixture = fixture();
    let mut config = engine_config(limits(2, 2, 64));
    config.stall_time = Duration::from_millis(20);
    let engine = engine_with(&fixture, config, |tier| tier);
    let four = Draft {
        n: Some(4),
        ..greedy("the fox", 90)
    };
    let expected = collect_all(&mut engine.submit(four.clone()), 4);
    // All places, and nobody reads.
    let mut lazy = eventually_some("all places", || {
        let four = engine.request(four.clone());
        engine.handle.submit(four).ok()
    });
    for prompt in ["the bear", "x", "there"] {
        let alone = eventually_some("a place", || {
            engine
                .handle
                .submit(engine.request(greedy(prompt, 40)))
                .ok()
        });
        let mut alone = alone;
        assert_eq!(collect(&mut alone).ids.len(), 40);
    }
    assert!(lazy.len() + 1 >= lazy.max_capacity(), "it is still behind");
    assert_eq!(outcomes(&engine, "client_stalled"), 0);
    assert!(engine.metrics.preemptions.get() > 0, "its slots were taken");
    assert_eq!(collect_all(&mut lazy, 4), expected);
    eventually("nothing runs", || engine.metrics.running.get() == 0);
}

#[test]
fn no_more_clients_that_do_not_read_are_kept_than_there_are_places() {
    let fixture = fixture();
    let mut config = engine_config(limits(1, 1, 64));
    config.stall_time = Duration::from_millis(20);
    let engine = engine_with(&fixture, config, |tier| tier);
    let two = Draft {
        n: Some(2),
        ..greedy("the fox", 800)
    };
    let first = engine.submit(two.clone());
    let second = eventually_some("places", || {
        engine.handle.submit(engine.request(two.clone())).ok()
    });
    eventually("there is no room beside", || {
        outcomes(&engine, "client_stalled") == 2
    });
    eventually("it is told", || first.is_closed() || second.is_closed());
    let ended = if first.is_closed() { first } else { second };
    assert!(matches!(last_word(ended), Error::ClientStalled(_)));
    assert_eq!(engine.run(greedy("x", 2)).ids.len(), 2);
}

#[test]
fn a_client_takes_no_more_than_its_share() {
    let fixture = fixture();
    let mut config = engine_config(limits(2, 2, 64));
    config.max_per_client = 2;
    let engine = engine_with(&fixture, config, slow(Duration::from_millis(5)));
    let of = |client| Draft {
        client: Some(Client::Key(client)),
        ..greedy("the fox", 300)
    };
    let _one = engine.submit(of(1));
    let two = engine.submit(of(1));
    let refused = engine.handle.submit(engine.request(of(1)));
    assert!(matches!(refused, Err(Error::ClientBusy { most: 2, .. })));
    let _other = engine.submit(of(2));
    let three = Draft {
        n: Some(3),
        ..of(3)
    };
    let refused = engine.handle.submit(engine.request(three));
    assert!(matches!(
        refused,
        Err(Error::InvalidField { field: "n", .. })
    ));
    drop(two);
    eventually("its share is free again", || {
        engine.handle.submit(engine.request(of(1))).is_ok()
    });
}

/// Steps of 10 ms, for which the others wait 200 ms at most.
fn one_at_a_time(fixture: &common::Fixture) -> TestEngine {
    let mut config = engine_config(limits(1, 8, 64));
    config.max_queue_time = Duration::from_millis(200);
    engine_with(fixture, config, slow(Duration::from_millis(10)))
}

#[test]
fn nobody_waits_longer_than_the_queue_may_be() {
    let fixture = fixture();
    let engine = one_at_a_time(&fixture);
    // Nothing is known of how long sequences take: it waits, and then it has waited too long.
    let mut long = engine.submit(greedy("the fox", 60));
    let mut waits = engine.submit(greedy("x", 1));
    let error = waits.blocking_recv().unwrap().unwrap_err();
    assert!(matches!(error, Error::QueueTooLong { .. }), "{error}");
    assert_eq!(collect(&mut long).ids.len(), 60, "what runs goes on");
}

/// A sequence that has ended teaches how long others would wait, though none has waited yet.
#[test]
fn who_would_wait_too_long_is_told_at_once() {
    let fixture = fixture();
    let engine = one_at_a_time(&fixture);
    // The first has been counted when the second ends.
    engine.run(greedy("the fox", 15));
    engine.run(greedy("the fox", 15));
    let mut refused = None;
    let mut taken = Vec::new();
    for _ in 0..9 {
        match engine.handle.submit(engine.request(greedy("the fox", 15))) {
            Ok(one) => taken.push(one),
            Err(error) => refused = refused.or(Some(error)),
        }
    }
    let Some(Error::QueueTooLong { retry_after, .. }) = refused else {
        panic!("{refused:?}");
    };
    assert!(retry_after >= Duration::from_millis(100));
    assert!(!taken.is_empty());
}

/// Fails all positions of spans that end in this byte, while `active`.
fn failing_on(
    byte: u8,
    active: Arc<AtomicBool>,
) -> impl FnOnce(Box<dyn EmbedTier>) -> Box<dyn EmbedTier> {
    wrap(move |lookup, batch, out| {
        lookup(batch, out);
        let (mut id, mut position) = (0, 0);
        for span in &batch.spans {
            let (context, answers) = (span.context as usize, span.answers as usize);
            id += context + answers;
            if batch.ids[id - 1] == u32::from(byte) && active.load(Ordering::Relaxed) {
                let error = LookupError::Unavailable("test".into());
                out.fail(position..position + answers, &error);
            }
            position += answers;
        }
    })
}

#[test]
fn a_failed_lookup_ends_only_the_sequences_it_concerns() {
    let fixture = fixture();
    let active = Arc::new(AtomicBool::new(true));
    let engine = engine_with(
        &fixture,
        engine_config(limits(4, 4, 512)),
        failing_on(b'!', active.clone()),
    );
    let mut good = engine.submit(greedy("the fox", 30));
    let mut bad = engine.submit(greedy("the bear!", 30));
    let error = bad.blocking_recv().unwrap().unwrap_err();
    assert!(
        matches!(error, Error::Lookup(LookupError::Unavailable(_))),
        "{error}"
    );
    assert_eq!(collect(&mut good).ids.len(), 30);
    assert_eq!(outcomes(&engine, "lookup_failed"), 1);

    active.store(false, Ordering::Relaxed);
    assert_eq!(
        engine.run(greedy("the bear!", 5)).ids.len(),
        5,
        "it serves again"
    );
}

#[test]
fn token_embedding_fallback_goes_on_and_counts() {
    let fixture = fixture();
    let mut config = engine_config(limits(4, 4, 512));
    config.on_lookup_failure = OnLookupFailure::TokenEmbedding;
    let always = wrap(|_, batch: &LookupBatch, out: &mut Answers| {
        out.fail(
            0..batch.positions(),
            &LookupError::Unavailable("test".into()),
        );
    });
    let engine = engine_with(&fixture, config, always);
    let done = engine.run(greedy("the fox", 10));
    let usage = done.finish.usage;
    assert_eq!(usage.fallback_positions, usage.positions);
    assert_eq!(usage.matched_positions, 0);
    assert_eq!(
        engine.metrics.fallback_positions.get(),
        u64::from(usage.positions)
    );

    // The same as a model without a table.
    drop(engine);
    wait_for_table(&fixture);
    let model = ServedModel::load(&fixture.model, &Device::Cpu).unwrap();
    let plain = engine_over(model, engine_config(limits(1, 1, 64)), None);
    assert_eq!(plain.run(greedy("the fox", 10)).ids, done.ids);
}

#[test]
fn n_completions_have_seeds_of_their_own() {
    let fixture = fixture();
    let engine = engine(&fixture, limits(4, 4, 64));
    let draft = |seed| Draft {
        temperature: Some(1.5),
        seed: Some(seed),
        ..greedy("the fox", 12)
    };
    let alone: Vec<_> = (7..10).map(|seed| engine.run(draft(seed)).ids).collect();
    let mut together = engine.submit(Draft {
        n: Some(3),
        ..draft(7)
    });
    let mut ids = vec![Vec::new(); 3];
    let mut finished = 0;
    while let Some(message) = together.blocking_recv() {
        let delta = message.unwrap();
        finished += usize::from(delta.finish.is_some());
        ids[delta.index as usize].extend(delta.tokens.iter().map(|t| t.id));
    }
    assert_eq!(finished, 3);
    assert_eq!(ids, alone);
    assert_ne!(ids[0], ids[1]);
}

fn text_of(engine: &TestEngine, draft: Draft) -> Done {
    let done = engine.run(draft);
    assert_eq!(
        engine.info.decode(&done.ids).unwrap(),
        done.text,
        "text is that of the tokens"
    );
    done
}

#[test]
fn every_way_to_stop() {
    let fixture = fixture();
    let engine = engine(&fixture, limits(2, 2, 64));
    let free = text_of(&engine, greedy("the fox", 20));
    assert_eq!(free.finish.reason, FinishReason::Length);
    assert_eq!(free.finish.usage.completion_tokens, 20);

    // A stop token: counted, and its text is not sent.
    let token = free.ids[4];
    let first = free.ids.iter().position(|&id| id == token).unwrap();
    let draft = Draft {
        stop_token_ids: vec![token],
        ..greedy("the fox", 20)
    };
    let done = engine.run(draft.clone());
    assert_eq!(done.finish.reason, FinishReason::StopToken(token));
    assert_eq!(done.ids, free.ids[..=first]);
    assert_eq!(done.text, engine.info.decode(&free.ids[..first]).unwrap());

    // Not before min_tokens: the token is not even chosen.
    let done = engine.run(Draft {
        min_tokens: Some(20),
        ..draft
    });
    assert_eq!(done.ids.len(), 20);
    assert!(!done.ids.contains(&token));

    // A stop string out of the middle of the text, over the border of two tokens.
    let chars: Vec<char> = free.text.chars().collect();
    let stop: String = chars[5..8].iter().collect();
    let at = free.text.find(&stop).unwrap();
    let done = engine.run(Draft {
        stop: vec![stop.clone()],
        ..greedy("the fox", 20)
    });
    assert_eq!(done.finish.reason, FinishReason::StopString(stop));
    assert_eq!(done.text, free.text[..at]);

    // The end of the context.
    let done = engine.run(greedy("the fox", 10_000));
    assert_eq!(done.ids.len(), CONTEXT - encode("the fox").len());
    assert_eq!(done.finish.reason, FinishReason::Length);
}

#[test]
fn echo_sends_the_prompt_first_and_once() {
    let fixture = fixture();
    let engine = engine(&fixture, limits(2, 2, 64));
    let plain = engine.run(greedy("the café", 6));
    let echo = |prompt| Draft {
        echo: Some(true),
        prompt: Some(prompt),
        ..greedy("", 6)
    };
    for prompt in [
        Prompt::Text("the café".into()),
        Prompt::Ids(encode("the café")),
    ] {
        let done = engine.run(echo(prompt));
        assert_eq!(done.text, format!("the café{}", plain.text));
        assert_eq!(done.ids, plain.ids);
    }
}

#[test]
fn an_empty_prompt_starts_from_bos() {
    let fixture = fixture();
    let engine = engine(&fixture, limits(2, 2, 64));
    let from_bos = Draft {
        prompt: Some(Prompt::Ids(vec![EOS])),
        ..greedy("", 6)
    };
    assert_eq!(engine.run(greedy("", 6)).ids, engine.run(from_bos).ids);
}

#[test]
fn logprobs_are_reported_when_asked() {
    let fixture = fixture();
    let engine = engine(&fixture, limits(2, 2, 64));
    let done = engine.run(Draft {
        logprobs: Some(3),
        ..greedy("the fox", 4)
    });
    for delta in &done.deltas {
        for token in &delta.tokens {
            assert_eq!(token.top_logprobs.len(), 3);
            assert_eq!(
                token.top_logprobs[0],
                (token.id, token.logprob.unwrap()),
                "greedy"
            );
            assert!(token.top_logprobs.windows(2).all(|w| w[0].1 >= w[1].1));
        }
    }
    let done = engine.run(greedy("the fox", 2));
    assert!(
        done.deltas
            .iter()
            .flat_map(|d| &d.tokens)
            .all(|t| t.logprob.is_none())
    );
}
